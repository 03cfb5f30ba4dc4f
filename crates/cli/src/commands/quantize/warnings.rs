//! What a user should know of a quantized model before shipping it.

use std::collections::BTreeMap;

use narrowbit_ir::Graph;
use narrowbit_quant::approach::Approach;
use narrowbit_quant::check::{Checked, Finding, Limits, check, clipped_biases};
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::plan::Reason;
use narrowbit_quant::quantize::NodeFate;
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::Preset;

use super::summary::FloatGroup;

/// Operators that hold most of a model's weights.
const WEIGHTY: [&str; 7] = ["Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"];

fn is_fixed(options: &QuantOptions) -> bool {
    matches!(options.scheme, Some(Preset::Quantizeml | Preset::VitisDpu))
}

/// Fixed-point hardware ends where the first layer has no integer form: a warning that names it. Recurrent layers before all
/// others have none either.
pub fn first_float(fates: &[NodeFate], options: &QuantOptions) -> Option<String> {
    if !is_fixed(options) {
        return None;
    }
    let formless = |f: &&NodeFate| f.reason == Some(Reason::FloatOperator.code());
    let before = fates.iter().take_while(|f| !f.integer).filter(formless);
    if let Some(f) = before.into_iter().find(|f| WEIGHTY.contains(&f.op.as_str())) {
        return Some(format!("\"{}\" ({}) has no integer form: it runs on floats, before all integers", f.node, f.op));
    }
    let first = fates.iter().skip_while(|f| !f.integer).find(formless)?;
    let rest = match options.scheme {
        Some(Preset::Quantizeml) => "it and all that depends on it run on floats",
        _ => "it runs on floats",
    };
    Some(format!(
        "\"{}\" ({}) has no integer form: a DequantizeLinear stands before it, and {rest}",
        first.node, first.op
    ))
}

/// Sums and biases of fixed point that the register can't hold.
pub fn narrow_register(graph: &Graph, options: &QuantOptions) -> Vec<String> {
    if !options.uses(Approach::Static) {
        return Vec::new();
    }
    let biases = clipped_biases(graph);
    let buffer_bits = options.buffer_bits();
    // Elsewhere nothing saturates: sums are floats, or modulo 2³², and deep ones are refused.
    let checked = match is_fixed(options) {
        true => check(graph, Limits { buffer_bits, ..Limits::default() }),
        false => Checked::default(),
    };
    let saturating = |f: &Finding| match f {
        Finding::Saturation { node, .. } => Some(node.clone()),
        _ => None,
    };
    let sums: Vec<String> = checked.findings.iter().filter_map(saturating).collect();
    let mut out = Vec::new();
    if let Some(first) = sums.first() {
        out.push(format!(
            "the sums of {} products, \"{first}\" first, take up to {} bits and may leave the register of {buffer_bits}: on integers alone they saturate; `narrowbit check` lists them (fewer bits: -w, -a; a wider register: -b)",
            sums.len(),
            checked.most_bits
        ));
    }
    if let Some(first) = biases.first() {
        out.push(format!(
            "biases of {} products, \"{first}\" first, do not fit 32 bits in units of the product and were cut off (fewer bits: -w, -a, --weights, --activations)",
            biases.len()
        ));
    }
    out
}

/// Inputs that had one value in all samples: of a calibration on blank data nothing can be expected.
pub fn blank_inputs(graph: &Graph, ranges: &Ranges) -> Option<String> {
    let is_blank = |name: &&str| {
        let stats = ranges.tensors.get(*name).filter(|s| s.count > 1);
        stats.and_then(|s| s.extremes).is_some_and(|(low, high)| low == high)
    };
    let names: Vec<&str> = graph.inputs().iter().map(|&v| graph.value(v).name.as_str()).filter(is_blank).collect();
    (!names.is_empty()).then(|| {
        let names = names.join("\", \"");
        format!("input \"{names}\" had the same value everywhere in all samples: the ranges fit no other data")
    })
}

/// That a file has not become smaller, because what holds its weights stays float.
pub fn unshrunk(float: &[FloatGroup], (before, after): (u64, u64), options: &QuantOptions) -> Option<String> {
    if after * 10 < before * 9 {
        return None;
    }
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    let asked = |g: &&FloatGroup| matches!(g.reason, "excluded" | "edge-layer" | "depthwise");
    for g in float.iter().filter(|g| WEIGHTY.contains(&g.op.as_str()) && !asked(g)) {
        *left.entry(&g.op).or_default() += g.count;
    }
    if left.is_empty() {
        return None;
    }
    let help = match options.approach {
        Approach::Dynamic if left.contains_key("Conv") && options.op_types.is_empty() => {
            "--op-types Conv,Gemm,MatMul takes convolutions in, --approach static too"
        }
        Approach::WeightOnly | Approach::Dynamic if left.contains_key("Conv") => {
            "--approach static quantizes convolutions"
        }
        _ => "--approach float16 halves weights of every kind",
    };
    let ops: Vec<String> = left.iter().map(|(op, n)| format!("{n} {op}")).collect();
    Some(format!("the file is hardly smaller: {} keep their weights as they are ({help})", ops.join(", ")))
}
