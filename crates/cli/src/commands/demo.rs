use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use narrowbit_data::{DataOptions, Dataset, Fill, Preprocess};
use narrowbit_import::onnx;
use narrowbit_ir::Model;
use narrowbit_quant::encodings::Encodings;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::quantize::{self, Seen};
use narrowbit_quant::ranges::Ranges;
use narrowbit_runtime::{Options, Session};
use serde::Serialize;

use crate::args::{Floats, Global, Products, Threads};
use crate::check::Check;
use crate::commands::calibrate::Job;
use crate::comparison::{Comparison, TensorRow};
use crate::metrics::{Meter, Metric, Score};
use crate::runs::Runs;
use crate::{data, interrupt, model, output};

/// Quantize the example networks of this repository and show what was gained and lost
///
/// Cleans each network, calibrates it on its calibration set, quantizes it to int8, and measures float and
/// int8 on the test set. The networks and data are part of the program; the folder examples/ shows how they
/// were trained.
#[derive(Debug, Args)]
pub struct Demo {
    /// Show so many tensors with the lowest SQNR of each network; 0 for all
    #[arg(long, value_name = "N", default_value_t = 8)]
    top: usize,
    #[command(flatten)]
    threads: Threads,
}

/// A network with its data, as files in memory.
struct Example {
    name: &'static str,
    what: &'static str,
    model: &'static [u8],
    calib: &'static [u8],
    test: &'static [u8],
    case: &'static str,
}

macro_rules! example {
    ($name:literal, $what:literal) => {
        Example {
            name: $name,
            what: $what,
            model: include_bytes!(concat!("../../../../examples/", $name, "/model.onnx")),
            calib: include_bytes!(concat!("../../../../examples/", $name, "/calib.npz")),
            test: include_bytes!(concat!("../../../../examples/", $name, "/test.npz")),
            case: include_str!(concat!("../../../../examples/", $name, "/case.json")),
        }
    };
}

const EXAMPLES: &[Example] = &[
    example!("digits-cnn", "convolutional network on handwritten digits"),
    example!("digits-vit", "vision transformer on handwritten digits"),
    example!("diabetes-mlp", "regression of disease progression"),
];

/// What became of one network.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    nodes_before: usize,
    nodes_after: usize,
    integer_nodes: usize,
    calibration_samples: u64,
    test_samples: usize,
    float: Vec<Score>,
    int8: Vec<Score>,
    bytes_float: usize,
    bytes_int8: usize,
    float_ms: f64,
    int8_ms: f64,
    sqnr_db: f64,
    tensors: Vec<TensorRow>,
    /// The metric that counts lost at most half a point.
    within_half_a_point: bool,
}

impl Demo {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        interrupt::install();
        let rows = EXAMPLES.iter().map(|e| self.example(e)).collect::<Result<Vec<Row>>>()?;
        if global.json {
            output::json(&rows)?;
        } else {
            rows.iter().zip(EXAMPLES).try_for_each(|(r, e)| output::print(&self.text(r, e)))?;
            output::print(&table(&rows))?;
        }
        let good = rows.iter().all(|r| r.within_half_a_point);
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn example(&self, e: &Example) -> Result<Row> {
        output::note(format!("{}: cleaning, calibrating, quantizing, measuring …", e.name));
        let mut float = onnx::parse(e.model, None)?;
        let nodes_before = float.graph.node_count();
        let options = QuantOptions::default();
        model::prepare(&mut float, &options)?;
        let calib = self.open(e, "calib.npz", e.calib, &float)?;
        quantize::prepare(&mut float, &options)?;
        let layout = quantize::layout(&float, &options)?;
        let job = Job {
            threads: self.threads.threads,
            runs: Runs::new(&float.graph, &calib, None, 1)?,
            histograms: quantize::needs_histograms(&float.graph, &layout, &options),
            positions: None,
            channels: quantize::channels(&float.graph, &layout, &options),
            also: Vec::new(),
            mask: None,
            float: Floats::default(),
            skip: 0,
            keep: true,
        };
        let done = job.run(&float, &layout, &calib, Ranges::default())?;
        let inputs = Check::new(done.kept, &calib, job.runs)?.map_or(Vec::new(), |c| c.all_inputs());
        let seen = Seen { inputs: &inputs, ..Seen::default() };
        let mut int8 = float.clone();
        let (none, exec) = (Encodings::default(), self.threads.exec()?);
        let (_, fates, ..) = quantize::quantize_with(&mut int8, layout, &done.ranges, &none, &options, seen, &exec)?;
        let bytes_int8 = onnx::to_bytes(&int8)?.len();
        let test = self.open(e, "test.npz", e.test, &float)?;
        let (float_scores, float_ms) = self.measure(&float, &test)?;
        let (int8_scores, int8_ms) = self.measure(&int8, &test)?;
        let mut comparison =
            Comparison::new(&float.graph, &int8.graph, self.threads.threads, true, Products::default())?;
        let runs = Runs::new(&float.graph, &test, None, 50)?;
        for batch in runs.batches(&test, 0, Fill::Last) {
            let batch = batch?;
            let n = batch.indices.len();
            comparison.add(&data::tensors(batch), &runs, n)?;
        }
        let outputs = comparison.outputs();
        Ok(Row {
            name: e.name,
            nodes_before,
            nodes_after: float.graph.node_count(),
            integer_nodes: fates.iter().filter(|f| f.integer).count(),
            calibration_samples: done.ranges.samples,
            test_samples: test.len(),
            within_half_a_point: within(&float_scores, &int8_scores),
            float: float_scores,
            int8: int8_scores,
            bytes_float: e.model.len(),
            bytes_int8,
            float_ms,
            int8_ms,
            sqnr_db: outputs.iter().map(|r| r.cumulative.sqnr_db).fold(f64::INFINITY, f64::min),
            tensors: comparison.tensors(),
        })
    }

    fn open(&self, e: &Example, file: &str, bytes: &'static [u8], model: &Model) -> Result<Dataset> {
        let options = DataOptions { preprocess: Preprocess::from_json(e.case)?, ..DataOptions::default() };
        let data = Dataset::from_bytes(format!("{}/{file}", e.name), bytes.into(), &options)?;
        Ok(data.bind(&model::input_specs(&model.graph)?)?)
    }

    /// The metrics on the test set, and the median latency of one sample in milliseconds.
    fn measure(&self, model: &Model, test: &Dataset) -> Result<(Vec<Score>, f64)> {
        let session =
            Session::new(model.graph.clone(), Options { threads: self.threads.threads, ..Options::default() })?;
        let labels = test.labels().context("the example has no labels")?;
        let mut metrics = Metric::defaults(labels.kind());
        metrics.truncate(1);
        let mut meter = Meter::new(metrics, labels.kind(), 255)?;
        for batch in test.batches(50) {
            let batch = batch?;
            let labels = batch.labels.clone().context("the example has no labels")?;
            let out = session.run(&data::tensors(batch))?;
            meter.add(&out[0], &labels)?;
        }
        let one = data::tensors(test.batch(0..1)?);
        let mut times: Vec<f64> = Vec::new();
        for _ in 0..51 {
            let start = Instant::now();
            session.run(&one)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok((meter.scores(), times[times.len() / 2]))
    }

    fn text(&self, r: &Row, e: &Example) -> String {
        let mut rows: Vec<&TensorRow> = r.tensors.iter().collect();
        if self.top > 0 {
            rows.sort_by(|a, b| a.isolated_or_cumulative().total_cmp(&b.isolated_or_cumulative()));
            rows.truncate(self.top);
        }
        format!(
            "\n{}: {}\n  cleaned {} → {} nodes, calibrated on {} samples, {} nodes compute on integers\n  SQNR of the output {}, of the {} most affected of {} tensors:\n{}",
            r.name,
            e.what,
            r.nodes_before,
            r.nodes_after,
            r.calibration_samples,
            r.integer_nodes,
            output::decibels(r.sqnr_db),
            rows.len(),
            r.tensors.len(),
            indent(&TensorRow::table(&rows))
        )
    }
}

fn within(float: &[Score], int8: &[Score]) -> bool {
    let loss =
        |(f, q): (&Score, &Score)| if f.metric.higher_is_better() { f.value - q.value } else { q.value - f.value };
    float.iter().zip(int8).all(|p| loss(p) <= 0.005)
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("    {l}\n")).collect()
}

fn table(rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let score = |s: &[Score]| s.first().map(Score::to_string).unwrap_or_default();
            vec![
                r.name.to_owned(),
                r.test_samples.to_string(),
                score(&r.float),
                score(&r.int8),
                output::decibels(r.sqnr_db),
                output::bytes(r.bytes_float as u64),
                output::bytes(r.bytes_int8 as u64),
                format!("{:.3} ms", r.float_ms),
                format!("{:.3} ms", r.int8_ms),
                if r.within_half_a_point { "yes".into() } else { "NO".into() },
            ]
        })
        .collect();
    let header = [
        "network",
        "test samples",
        "float",
        "int8",
        "output SQNR",
        "float file",
        "int8 file",
        "float run",
        "int8 run",
        "within 0.5 points",
    ];
    format!("\n{}", output::table(&header, &cells))
}
