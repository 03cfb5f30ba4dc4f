//! The command `explain`: ranges and weights here, what takes more than a range in [`forms`].

mod forms;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use narrowbit_data::{Fill, Split};
use narrowbit_ir::{Graph, Model, NodeId, QuantRole, ValueId};
use narrowbit_quant::approach::Approach;
use narrowbit_quant::calibrate::Calibrator;
use narrowbit_quant::explain::{self, Choice, Explanation};
use narrowbit_quant::gptq::{MEMORY, Report, Rounder};
use narrowbit_quant::observe::Stats;
use narrowbit_quant::options::{Matcher, QuantOptions, WeightRounding};
use narrowbit_quant::plan;
use narrowbit_quant::quantize;
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::WeightScheme;
use narrowbit_runtime::Float;
use serde::Serialize;

use crate::args::{Global, Threads};
use crate::commands::calibrate::MaskArgs;
use crate::commands::quantize::SchemeArgs;
use crate::commands::quantize::rounding::Passes;
use crate::data::{self, DataArgs};
use crate::{interrupt, model, output};

/// Say why a tensor gets its scale, what that costs, and what other choices would give
///
/// Puts the numbers into the formula, and compares range methods, types and granularities side by side on the values that
/// the tensor holds: those of the samples, or of ranges from `narrowbit calibrate`. A weight needs neither; with --data it says
/// what rounding by the samples gains, where the settings do it. With --approach dynamic an activation is explained by token and by
/// tensor, as DynamicQuantizeLinear finds its range in the samples, and with weight-only a weight by its blocks, of which the one
/// that errs most is shown. The scale of a bias is that of its product, which takes samples or ranges. Tensors are named as in the cleaned float model (`narrowbit inspect --sanitize`).
#[derive(Debug, Args)]
pub struct Explain {
    /// The float model (.onnx)
    model: PathBuf,
    /// The tensor: a weight, or what a node reads or makes
    tensor: String,
    /// Ranges from `narrowbit calibrate`, instead of --data
    #[arg(long, value_name = "RANGES.json")]
    ranges: Option<PathBuf>,
    #[command(flatten)]
    mask: MaskArgs,
    #[command(flatten)]
    scheme: SchemeArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    threads: Threads,
}

#[derive(Serialize)]
struct Summary {
    model: PathBuf,
    tensor: String,
    /// Weight or activation.
    kind: &'static str,
    /// What becomes of the tensor with these settings.
    role: String,
    /// Values recorded.
    count: u64,
    /// What rounding a weight by the samples gives, where the settings do it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rounding: Option<Report>,
    #[serde(flatten)]
    explanation: Explanation,
}

impl Explain {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        interrupt::install();
        let mut model = model::load_runnable(&self.model)?;
        model::sanitize(&mut model)?;
        let options = self.scheme.resolve()?;
        options.check()?;
        model::raise_for_mixture(&mut model, &options)?;
        model::replace(&mut model, &options)?;
        quantize::prepare(&mut model, &options)?;
        let v = self.find(&model.graph)?;
        let approach = self.approach(&model.graph, v, &options)?;
        let summary = match (model.graph.constant(v), approach) {
            (_, Approach::Float16 | Approach::Bfloat16) => bail!(
                "\"{}\" becomes {approach} with these settings: no scale, and the nearest of its values\nhelp: static, dynamic and weight-only have scales to explain",
                self.tensor
            ),
            (Some(_), approach) => self.weight(&model, v, approach, &options)?,
            (None, Approach::Dynamic) => self.at_run_time(&model, v, &options)?,
            (None, Approach::WeightOnly) => bail!(
                "\"{}\" stays float32: weight-only quantization is about constants\nhelp: name a weight of MatMul, Gemm or Gather",
                self.tensor
            ),
            (None, _) => self.activation(&model, v, &options)?,
        };
        if global.json {
            output::json(&summary)?;
        } else {
            output::print(&text(&summary))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn find(&self, graph: &Graph) -> Result<ValueId> {
        if let Some(v) = graph.value_named(&self.tensor) {
            return Ok(v);
        }
        let like = |name: &&str| name.contains(&self.tensor) || self.tensor.contains(*name) && !name.is_empty();
        let near: Vec<&str> = graph.values().map(|(_, v)| v.name.as_str()).filter(like).take(5).collect();
        let near = if near.is_empty() { String::new() } else { format!("; names like it: {}", near.join(", ")) };
        bail!(
            "the cleaned graph of {} has no tensor \"{}\"{near}\nhelp: `narrowbit inspect --sanitize {} --json` lists what nodes make; weights have their names in the file, or those that cleaning gave them",
            self.model.display(),
            self.tensor,
            self.model.display()
        )
    }

    fn weight(&self, model: &Model, v: ValueId, approach: Approach, options: &QuantOptions) -> Result<Summary> {
        let graph = &model.graph;
        let w = graph.constant(v).context("a constant")?;
        if !w.dtype().is_float() || w.is_empty() {
            bail!("\"{}\" holds {} {:?}, which is not quantized", self.tensor, w.dtype(), w.shape());
        }
        if approach == Approach::WeightOnly {
            return self.blocks(graph, v, w, options);
        }
        if approach == Approach::Static
            && let Some(bias) = self.bias(model, v, options)?
        {
            return Ok(bias);
        }
        let reader = graph.uses(v).iter().find_map(|u| as_weight(graph, u.node, u.input));
        let matcher = Matcher::new(&options.overrides)?;
        let (scheme, channel, role) = match reader {
            Some((id, channel)) => {
                let own = matcher.of(graph.node(id)).find_map(|o| o.weights);
                let node = graph.node(id);
                (own.unwrap_or(options.weights), channel, format!("the weight of {} \"{}\"", node.op.name(), node.name))
            }
            None => (options.weights, None, "a constant that no product has for its weight".to_owned()),
        };
        let mut explanation = explain::weight(&self.threads.exec()?, w, scheme, channel)?;
        if approach == Approach::Dynamic && reader.is_some() {
            let sum = "y = (Σ x_code · w_code − zero_x · Σ w_code) · scale_x · scale_w, the sum of MatMulInteger; scale_x is found at run time";
            explanation.formula.push(sum.to_owned());
        }
        let axis = channel.filter(|_| scheme.per_channel);
        let rounding = match reader.filter(|_| approach == Approach::Static) {
            Some((id, _)) => self.rounding(model, id, (scheme, axis), options)?,
            None => None,
        };
        Ok(Summary {
            model: self.model.clone(),
            tensor: self.tensor.clone(),
            kind: "weight",
            role,
            count: w.len() as u64,
            rounding,
            explanation,
        })
    }

    /// What rounding a node's weight by the samples gives, if there are any and the settings do it.
    fn rounding(
        &self,
        model: &Model,
        id: NodeId,
        (scheme, axis): (WeightScheme, Option<usize>),
        options: &QuantOptions,
    ) -> Result<Option<Report>> {
        let graph = &model.graph;
        let own = Matcher::new(&options.overrides)?.of(graph.node(id)).find_map(|o| o.weight_rounding);
        if self.data.data.is_none() || options.rounding_of(own, &scheme) != WeightRounding::Gptq {
            return Ok(None);
        }
        let dataset = self.data.open(graph, Split::Calibration)?;
        let runs = self.data.calibration_runs(graph, &dataset, options)?;
        let mut passes = Passes { dataset: &dataset, runs: &runs };
        let mask = self.mask.input(graph)?;
        let mut rounder = Rounder { samples: &mut passes, mask, float: Float::F32, memory: MEMORY };
        Ok(Some(plan::rounding_gain(graph, id, (scheme, axis), &mut rounder, &self.threads.exec()?)?))
    }

    fn activation(&self, model: &Model, v: ValueId, options: &QuantOptions) -> Result<Summary> {
        let graph = &model.graph;
        if let Some(found) = self.by_channel(model, v, options)? {
            return Ok(found);
        }
        let stats = self.stats(model, v, options)?;
        let layout = quantize::layout(model, options)?;
        let matcher = Matcher::new(&options.overrides)?;
        let maker = graph.producer(v).map(|p| p.0);
        let nodes: Vec<NodeId> = maker.into_iter().chain(graph.uses(v).iter().map(|u| u.node)).collect();
        let own: Vec<_> = nodes.iter().flat_map(|&n| matcher.of(graph.node(n))).collect();
        let scheme = own.iter().find_map(|o| o.activations).unwrap_or(options.activations);
        let scheme = self.fixed_scheme(model, v, options)?.unwrap_or(scheme);
        let method = own.iter().find_map(|o| o.method).unwrap_or(options.method);
        let method = layout.method(graph, method, &scheme);
        let role = match (layout.is_quantized(v), maker.and_then(|n| layout.reasons.get(&n))) {
            (true, _) => "quantized with these settings".to_owned(),
            (false, Some(reason)) => format!("stays float with these settings ({reason})"),
            (false, None) => "stays float with these settings: nothing reads it as integers".to_owned(),
        };
        let found = explain::activation(&stats, scheme, method, options.statistic, maker.is_some());
        let explanation = found.ok_or_else(|| {
            anyhow!(
                "the record of \"{}\" has not what this method needs, or no finite value\nhelp: calibrate without --no-histograms and with the same --scheme, or give samples with --data",
                self.tensor
            )
        })?;
        Ok(Summary {
            model: self.model.clone(),
            tensor: self.tensor.clone(),
            kind: "activation",
            role,
            count: stats.count,
            rounding: None,
            explanation,
        })
    }

    /// What is known of an activation's values.
    fn stats(&self, model: &Model, v: ValueId, options: &QuantOptions) -> Result<Stats> {
        if let Some(path) = &self.ranges {
            let mut ranges = Ranges::load(path)?;
            ranges.check(&model.graph)?;
            return ranges.tensors.remove(&self.tensor).ok_or_else(|| {
                anyhow!(
                    "{} has no record of \"{}\", which stays float\nhelp: give samples with --data instead",
                    path.display(),
                    self.tensor
                )
            });
        }
        if self.data.data.is_none() && self.data.random.is_none() {
            bail!(
                "\"{}\" is an activation: what it holds depends on the samples\nhelp: give them with --data, or ranges with --ranges",
                self.tensor
            );
        }
        let dataset = self.data.open(&model.graph, Split::Calibration)?;
        let threads = self.threads.threads;
        let made = Calibrator::with_channels(&model.graph, &[v], &BTreeMap::new(), true, threads, Ranges::default())?;
        let made = match options.position_bits() {
            Some(bits) => made.with_positions(bits),
            None => made,
        };
        let mut calibrator = match self.mask.input(&model.graph)? {
            Some(mask) => made.with_mask(mask),
            None => made,
        };
        let runs = self.data.calibration_runs(&model.graph, &dataset, options)?;
        let batches = runs.batches(&dataset, 0, Fill::First).map(|batch| {
            if interrupt::requested() {
                bail!("stopped by Ctrl-C");
            }
            let batch = batch?;
            let samples = batch.indices.len() as u64;
            anyhow::Ok((data::tensors(batch), samples))
        });
        calibrator.add(batches, |_, _| {})?;
        calibrator.into_ranges().tensors.remove(&self.tensor).context("a record")
    }
}

/// The product that has a constant for its weight, and the axis of its output channels.
fn as_weight(graph: &Graph, node: NodeId, input: usize) -> Option<(NodeId, Option<usize>)> {
    let n = graph.node(node);
    let QuantRole::Weighted { weight, channel, .. } = n.op.quant() else { return None };
    let rank = graph.const_input(node, weight).filter(|_| input == weight)?.rank();
    Some((node, channel.resolve(rank)))
}

fn text(s: &Summary) -> String {
    let mut out = format!("{} \"{}\": {}, {} values\n", s.kind, s.tensor, s.role, output::count(s.count));
    s.explanation.formula.iter().for_each(|l| out.push_str(&format!("  {l}\n")));
    if let Some(report) = &s.rounding {
        for g in &report.weights {
            out.push_str(&format!(
                "  rounded by the samples: SQNR of its product {}, of nearest weights {} (--weight-rounding nearest)\n",
                output::decibels(g.rounded_db),
                output::decibels(g.nearest_db)
            ));
        }
        report.left.iter().for_each(|l| out.push_str(&format!("  rounded to the nearest: {}\n", l.why)));
    }
    out.push('\n');
    let header = ["", "type", "zero", "per", "range by", "min", "max", "scale", "zero point", "SQNR", "MSE", "beyond"];
    let row = |c: &Choice| {
        let scale = match c.greatest_scale {
            Some(g) => format!("{:.3e} … {g:.3e}", c.scale),
            None => format!("{:.4e}", c.scale),
        };
        vec![
            if c.chosen { "→" } else { "" }.to_owned(),
            c.format.clone(),
            if c.symmetric { "middle" } else { "free" }.to_owned(),
            c.granularity.clone(),
            c.method.clone(),
            format!("{:.4}", c.range.min),
            format!("{:.4}", c.range.max),
            scale,
            c.zero_point.to_string(),
            format!("{:.1} dB", c.sqnr_db),
            format!("{:.2e}", c.mse),
            format!("{:.4} %", c.saturated * 100.0),
        ]
    };
    let rows: Vec<Vec<String>> = s.explanation.choices.iter().map(row).collect();
    out.push_str(&output::table(&header, &rows));
    let best = s.explanation.choices.iter().filter(|c| c.format == s.explanation.choices[0].format);
    if let Some(best) = best.max_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db)).filter(|b| !b.chosen) {
        out.push_str(&format!(
            "the least error in {}: {}, per {}, {:.1} dB\n",
            best.format, best.method, best.granularity, best.sqnr_db
        ));
    }
    out
}
