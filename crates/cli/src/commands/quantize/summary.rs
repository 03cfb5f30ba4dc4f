//! What a quantization gave, as text and as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use narrowbit_quant::approach::Approach;
use narrowbit_quant::encodings::Applied;
use narrowbit_quant::equalize::Equalized;
use narrowbit_quant::gptq::Report;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::quantize::NodeFate;
use narrowbit_quant::scheme::NumberFormat;
use serde::Serialize;

use super::warnings::unshrunk;
use super::{Made, Quantize};
use crate::args::Global;
use crate::check::Loss;
use crate::data::DataArgs;
use crate::measure::Speed;
use crate::{model, output};

/// What a quantization gave.
#[derive(Serialize)]
pub struct Summary {
    model: PathBuf,
    output: PathBuf,
    approach: Approach,
    /// What each approach of a mixture is for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
    /// Whether values of samples count: whether any node is static.
    #[serde(skip)]
    calibrated: bool,
    /// Nodes that compute on integers, and all nodes of the cleaned graph.
    pub integer_nodes: usize,
    /// Nodes whose weights or results have become another type, where they are no integers that they compute on.
    stored_nodes: usize,
    /// That type, or what the nodes compute on: int8, int16, fp8.
    format: String,
    nodes: usize,
    /// Normalisations whose channels were evened out with the weights behind them.
    pub smoothed: usize,
    /// Activations with a scale per channel: in front of depthwise convolutions, and of fixed point all images.
    pub by_channel: usize,
    /// Activations that were multiplied to fill their codes.
    #[serde(skip_serializing_if = "is_zero")]
    filled: usize,
    /// Why the others do not: number of nodes by operator and reason.
    pub float: Vec<FloatGroup>,
    /// Bytes on disk.
    pub bytes_before: u64,
    /// Bytes on disk.
    pub bytes_after: u64,
    /// The error of the outputs on the first calibration samples.
    pub error: Option<Loss>,
    /// The time of a run beside the float model's, where it was measured.
    pub speed: Option<Speed>,
    /// What became of the entries of another tool's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    encodings: Option<Applied>,
    /// The convolutions whose channels were evened out.
    #[serde(skip_serializing_if = "Option::is_none")]
    equalized: Option<Equalized>,
    /// What rounding weights by samples did, where it took place.
    #[serde(skip_serializing_if = "Option::is_none")]
    rounding: Option<Report>,
    samples: u64,
    /// Samples per run of the calibration, where it took place here.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
    random: bool,
    seconds: f64,
    /// What was changed for the target, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapted: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    node_list: Vec<NodeFate>,
}

/// The nodes of an approach in a mixture.
#[derive(Serialize)]
struct Part {
    approach: Approach,
    /// What their constants or results are, where they are no integers that they compute on.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<String>,
    count: usize,
    /// Number of nodes by operator.
    ops: BTreeMap<String, usize>,
}

/// Nodes that stay float for one reason.
#[derive(Serialize)]
pub struct FloatGroup {
    /// The operator.
    pub op: String,
    /// The reason's code.
    pub reason: &'static str,
    why: String,
    /// How many nodes.
    pub count: usize,
    example: String,
}

/// Below this ratio answers begin to differ visibly.
const POOR_SQNR: f64 = 15.0;
impl Quantize {
    pub(super) fn summary(
        &self,
        global: &Global,
        options: &QuantOptions,
        made: Made,
        error: Option<Loss>,
        seconds: f64,
    ) -> Result<Summary> {
        let Made { fates, ranges, warnings, encodings, equalized, by_channel, batch, rounding, .. } = made;
        let calibrated = options.uses(Approach::Static) && (ranges.is_some() || !options.is_mixture());
        let (samples, random) = ranges.map_or((0, false), |r| (r.samples, r.random));
        let mut warnings = warnings;
        if random {
            warnings.push("the ranges come from random samples: the accuracy of this model means nothing".to_owned());
        }
        if error.as_ref().is_some_and(|e| e.elements == 0) {
            let text = "the float model's outputs on the samples that the result was compared on are empty, so that nothing is known of its error: give samples on which it finds something";
            warnings.push(text.to_owned());
        }
        if let Some(e) = error.as_ref().filter(|e| e.figures.sqnr_db < POOR_SQNR) {
            warnings.push(format!(
                "the outputs differ strongly from the float model's (SQNR {}): do not ship this before looking at `narrowbit compare`",
                output::decibels(e.figures.sqnr_db)
            ));
        }
        let float = groups(&fates);
        let sizes = (model::size_on_disk(&self.model)?, model::size_on_disk(&self.output)?);
        warnings.extend(unshrunk(&float, sizes, options));
        Ok(Summary {
            model: self.model.clone(),
            output: self.output.clone(),
            approach: options.approach,
            parts: parts(&fates, options),
            calibrated,
            format: format_name(options),
            stored_nodes: fates.iter().filter(|f| f.stored.is_some()).count(),
            integer_nodes: fates.iter().filter(|f| f.integer).count(),
            nodes: fates.len(),
            smoothed: 0,
            by_channel,
            filled: options.rates.len(),
            float,
            bytes_before: sizes.0,
            bytes_after: sizes.1,
            error,
            speed: None,
            encodings,
            equalized,
            rounding,
            samples,
            batch,
            random,
            seconds,
            adapted: Vec::new(),
            warnings,
            node_list: if global.json || global.verbose > 0 { fates } else { Vec::new() },
        })
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The format of a model whose nodes have different ones.
pub const MIXED: &str = "mixed";

/// What a model becomes with these settings: int8, int16, fp8, int4, float16, or [`MIXED`].
pub fn format_name(options: &QuantOptions) -> String {
    if options.is_mixture() {
        return MIXED.into();
    }
    match options.approach {
        Approach::WeightOnly => options.weight_only.codes.to_string(),
        Approach::Float16 => "float16".into(),
        Approach::Bfloat16 => "bfloat16".into(),
        Approach::Static if options.activations.format.is_float() => "fp8".into(),
        Approach::Static if matches!(options.activations.format, NumberFormat::Int16 | NumberFormat::Uint16) => {
            "int16".into()
        }
        _ => "int8".into(),
    }
}

/// Operators that integers pay for.
const PRODUCTS: [&str; 4] = ["Conv", "ConvTranspose", "Gemm", "MatMul"];

/// Whether a reason is a loss that nobody asked for.
pub fn unasked(g: &FloatGroup) -> bool {
    PRODUCTS.contains(&g.op.as_str())
        && !matches!(
            g.reason,
            "excluded" | "type-not-selected" | "edge-layer" | "depthwise" | "not-float-data" | "no-weight"
        )
}

/// What became of nodes, by approach and format, in a mixture.
fn parts(fates: &[NodeFate], options: &QuantOptions) -> Vec<Part> {
    let fp8 = |a: Approach| (a == Approach::Static && options.activations.format.is_float()).then(|| "fp8".to_owned());
    let mut all: Vec<Part> = Vec::new();
    for f in fates.iter().filter(|f| f.is_done()) {
        let Some(approach) = f.approach else { continue };
        let stored = f.stored.clone().or_else(|| fp8(approach));
        let place = all.iter().position(|p| p.approach == approach && p.stored == stored).unwrap_or_else(|| {
            all.push(Part { approach, stored, count: 0, ops: BTreeMap::new() });
            all.len() - 1
        });
        all[place].count += 1;
        *all[place].ops.entry(f.op.clone()).or_default() += 1;
    }
    all.sort_by_key(|p| std::cmp::Reverse(p.count));
    all
}

impl Part {
    fn text(&self) -> String {
        let mut ops: Vec<(&String, &usize)> = self.ops.iter().collect();
        ops.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let ops: Vec<String> = ops.into_iter().map(|(op, n)| format!("{n} {op}")).collect();
        let what = match (self.approach, &self.stored) {
            (Approach::WeightOnly, Some(codes)) => format!("weight-only, on constants of {codes}"),
            (_, Some(half)) => format!("in {half}"),
            (approach, None) => format!("{approach}, on integers"),
        };
        format!("          {} {what}:\n            {}\n", self.count, ops.join(", "))
    }
}

fn groups(fates: &[NodeFate]) -> Vec<FloatGroup> {
    let mut by: BTreeMap<(&str, &'static str), FloatGroup> = BTreeMap::new();
    for f in fates {
        let (Some(reason), Some(why)) = (f.reason, &f.why) else { continue };
        let new = || FloatGroup { op: f.op.clone(), reason, why: why.clone(), count: 0, example: f.node.clone() };
        by.entry((&f.op, reason)).or_insert_with(new).count += 1;
    }
    let mut all: Vec<FloatGroup> = by.into_values().collect();
    all.sort_by_key(|g| std::cmp::Reverse(g.count));
    all
}

/// Groups by what keeps them float, products first: those are the ones that cost speed.
fn by_reason(groups: &[FloatGroup]) -> Vec<(&str, Vec<&FloatGroup>)> {
    let mut out: Vec<(&str, Vec<&FloatGroup>)> = Vec::new();
    for g in groups.iter().filter(|g| g.reason != "not-float-data") {
        match out.iter_mut().find(|(why, _)| *why == g.why) {
            Some((_, all)) => all.push(g),
            None => out.push((&g.why, vec![g])),
        }
    }
    out.sort_by_key(|(_, all)| !all.iter().any(|g| PRODUCTS.contains(&g.op.as_str())));
    out
}

/// What became of entries, each list up to ten names.
fn applied(e: &Applied) -> String {
    let mut out = format!("  entries {} quantized tensors have one\n", e.matched);
    for (what, names) in [
        ("that match no quantized tensor", &e.unmatched),
        ("left out, whose scales are our own", &e.without),
        ("not used", &e.ignored),
    ] {
        if !names.is_empty() {
            let some = names.iter().take(10).map(|n| format!("            {n}\n")).collect::<String>();
            let more = names.len().saturating_sub(10);
            let more = if more > 0 { format!("            and {more} more\n") } else { String::new() };
            out.push_str(&format!("          {} {what}:\n{some}{more}", names.len()));
        }
    }
    out
}

/// The summary for people; `skipped` says that the speed would take too long to measure.
pub fn text(s: &Summary, data: &DataArgs, skipped: bool) -> String {
    let mut out = format!("{} → {}\n", s.model.display(), s.output.display());
    let (done, what, rest) = match s.approach {
        _ if !s.parts.is_empty() => (s.integer_nodes + s.stored_nodes, "are quantized".to_owned(), "as before"),
        Approach::WeightOnly => (s.stored_nodes, format!("read constants of {}", s.format), "as before"),
        Approach::Float16 | Approach::Bfloat16 => (s.stored_nodes, format!("are in {}", s.format), "float32"),
        _ if s.format == "fp8" => (s.integer_nodes, "compute in fp8".to_owned(), "float"),
        _ => (s.integer_nodes, "compute on integers".to_owned(), "float"),
    };
    out.push_str(&format!("  nodes   {done} of {} {what}\n", s.nodes));
    s.parts.iter().for_each(|p| out.push_str(&p.text()));
    if s.approach == Approach::Dynamic && s.parts.is_empty() && s.stored_nodes > 0 {
        out.push_str(&format!("          {} on floats, their weights in 8 bits (recurrent)\n", s.stored_nodes));
    }
    for (why, groups) in by_reason(&s.float) {
        let count: usize = groups.iter().map(|g| g.count).sum();
        let ops: Vec<String> = groups.iter().map(|g| format!("{} {}", g.count, g.op)).collect();
        out.push_str(&format!("          {count} {rest}, {why}:\n            {}\n", ops.join(", ")));
    }
    if s.smoothed > 0 {
        out.push_str(&format!(
            "  smooth  {} normalisations: channels that stand out moved into the weights behind them (--smooth=no leaves them)\n",
            s.smoothed
        ));
    }
    if s.by_channel > 0 {
        out.push_str(&format!(
            "  channel {} activations have a scale per channel (ONNX Runtime computes on floats what reads them: --target onnxruntime)\n",
            s.by_channel
        ));
    }
    if s.filled > 0 {
        out.push_str(&format!(
            "  fill    {} activations multiplied to fill their codes, weights behind divided (--cross-layer-equalization=no leaves them)\n",
            s.filled
        ));
    }
    if let Some((rounded, (nearest_db, rounded_db))) = s.rounding.as_ref().and_then(|r| Some((r, r.means()?))) {
        out.push_str(&format!(
            "  weights {} rounded by the samples: SQNR of their products {} in the mean, of nearest weights {} (--weight-rounding nearest)\n",
            rounded.weights.len(),
            output::decibels(rounded_db),
            output::decibels(nearest_db)
        ));
    }
    let ratio = s.bytes_after as f64 / s.bytes_before.max(1) as f64;
    out.push_str(&format!(
        "  size    {} → {} ({:.0} %)\n",
        output::bytes(s.bytes_before),
        output::bytes(s.bytes_after),
        ratio * 100.0
    ));
    if let Some(e) = s.error.as_ref().filter(|e| e.elements == 0) {
        out.push_str(&format!("  error   nothing to compare: the outputs on {} samples have no elements\n", e.samples));
    } else if let Some(e) = &s.error {
        out.push_str(&format!(
            "  error   SQNR {}, cosine {:.5}, max {:.3e} on {} {}samples\n",
            output::decibels(e.figures.sqnr_db),
            e.figures.cosine,
            e.figures.max_error,
            e.samples,
            if s.calibrated { "calibration " } else { "" }
        ));
        for (f, q) in e.float.iter().zip(&e.quantized) {
            out.push_str(&format!("  metric  {f} float, {q} {}, on the same samples\n", s.format));
        }
    } else if !s.calibrated {
        out.push_str("  error   not measured (--data DATA does it on its first samples)\n");
    }
    if let Some(speed) = &s.speed {
        out.push_str(&speed.text());
    } else if skipped {
        out.push_str(
            "  speed   not measured, because it takes more than a tenth of the time (--measure does it all the same)\n",
        );
    }
    match s.calibrated && s.samples > 0 {
        true => {
            let runs = s.batch.filter(|&b| b > 1).map(|b| format!(", {b} a run,")).unwrap_or_default();
            out.push_str(&format!(
                "  time    {:.1} s for {} calibration samples{runs} and all else\n",
                s.seconds, s.samples
            ))
        }
        false => out.push_str(&format!("  time    {:.1} s for all of it\n", s.seconds)),
    }
    if let Some(e) = s.equalized.as_ref().filter(|e| !e.pairs.is_empty()) {
        out.push_str(&format!(
            "  equal   {} pairs of convolutions: channel ranges at most {:.1} : 1 apart, before {:.1} : 1\n",
            e.pairs.len(),
            e.spread_after,
            e.spread_before
        ));
    }
    if let Some(e) = &s.encodings {
        out.push_str(&applied(e));
    }
    s.adapted.iter().for_each(|a| out.push_str(&format!("adapted: {a}\n")));
    s.warnings.iter().for_each(|w| out.push_str(&format!("warning: {w}\n")));
    let path = data.data.as_deref().unwrap_or(Path::new("DATA")).display();
    let preprocess = data.preprocess.preprocess.as_ref().map(|p| format!(" --preprocess {}", p.display()));
    let (model, output, preprocess) = (s.model.display(), s.output.display(), preprocess.unwrap_or_default());
    out.push_str(&format!("next: narrowbit compare {model} {output} --data {path}{preprocess}\n"));
    out
}
