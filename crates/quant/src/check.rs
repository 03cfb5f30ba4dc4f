//! What can go wrong in the integers of a quantized graph, whoever made it: scales that nobody calibrated, sums that a
//! register of some bits can't hold, multipliers that 8 bits do not come near to.

use narrowbit_ir::{Graph, Node, NodeId, QuantRole, ValueId};
use narrowbit_tensor::{DType, Tensor};
use serde::Serialize;

/// What is checked against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bits of the register that products are summed up in.
    pub buffer_bits: u8,
    /// Bits of the mantissa that scales are approximated with.
    pub scale_bits: u8,
    /// The mean relative error of the multipliers of a node beyond which it is reported.
    pub scale_error: f64,
}

impl Default for Limits {
    /// As QuantizeML: sums of 32 bits, scales of 8, errors of 5 %.
    fn default() -> Limits {
        Limits { buffer_bits: 32, scale_bits: 8, scale_error: 0.05 }
    }
}

/// The longest right shift that a hardware's multiplier has: beyond it, mantissas lose bits.
const MOST_SHIFT: i32 = 31;

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Finding {
    /// A scale that no calibration gave.
    Uncalibrated {
        /// The quantized tensor.
        tensor: String,
        /// What is wrong, as a predicate.
        why: String,
    },
    /// A sum that the register can't hold for some input within the codes.
    Saturation {
        /// The product.
        node: String,
        /// The output channel with the widest range.
        channel: usize,
        /// Its least and greatest sum.
        sums: (i64, i64),
        /// The bits that hold them, the sign among them.
        bits: u32,
        /// How many channels are concerned.
        channels: usize,
    },
    /// Biases at the end of 32 bits, where what was beyond has been cut off.
    ClippedBias {
        /// The product.
        node: String,
        /// How many channels are concerned.
        channels: usize,
    },
    /// Multipliers far from what a mantissa of few bits gives.
    ScaleError {
        /// The product.
        node: String,
        /// The mean of |approximation − multiplier| / multiplier.
        mean: f64,
    },
}

/// The findings and what was looked at.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Checked {
    /// Activations with a scale.
    pub tensors: usize,
    /// Products of integers with constant weights.
    pub products: usize,
    /// Names of products of integer weights whose data are in no one format that is known, so that nothing is said of
    /// their sums.
    pub unseen: Vec<String>,
    /// The most bits that a sum needs.
    pub most_bits: u32,
    /// What was found, in the order of the graph.
    pub findings: Vec<Finding>,
}

/// Checks a graph with QuantizeLinear and DequantizeLinear nodes.
///
/// Sums are bounded by interval arithmetic: each code of the data may be anything that its type, and a Relu before it,
/// allow; weights and biases are what they are. A sum outside the register is possible only where this says so.
pub fn check(graph: &Graph, limits: Limits) -> Checked {
    let mut found = Checked::default();
    // A scale of 1 may well be calibrated: images of 0 … 255 have it. Where several have nothing else, none was.
    let untouched = activations(graph).count() > 1 && activations(graph).all(|(_, id)| is_initial(graph, id));
    for (v, id) in activations(graph) {
        found.tensors += 1;
        if let Some(why) = uncalibrated(graph, id, untouched) {
            found.findings.push(Finding::Uncalibrated { tensor: graph.value(v).name.clone(), why });
        }
    }
    for (_, node) in graph.nodes() {
        if let Some(p) = product(graph, node) {
            found.products += 1;
            saturation(&p, node, limits, &mut found);
            found.findings.extend(clipped_bias(graph, node));
            scale_error(graph, &p, node, limits, &mut found);
        } else if has_integer_weights(graph, node) {
            found.unseen.push(node.name.clone());
        }
    }
    found
}

/// The QuantizeLinear nodes of what is no constant, with their results.
fn activations(graph: &Graph) -> impl Iterator<Item = (ValueId, NodeId)> {
    let quantizes = |(id, n): (NodeId, &Node)| Some((n.output(0)?, id)).filter(|_| n.op.name() == "QuantizeLinear");
    graph.nodes().filter_map(quantizes)
}

fn scalar(graph: &Graph, id: NodeId, input: usize) -> Option<f32> {
    graph.const_input(id, input)?.to_f32s().ok()?.first().copied()
}

/// Whether a quantizer has the scale 1 and the zero point that it had before any calibration.
fn is_initial(graph: &Graph, id: NodeId) -> bool {
    let all = |input: usize, ok: &dyn Fn(f32) -> bool| {
        graph.const_input(id, input).and_then(|t| Some(t.to_f32s().ok()?.iter().all(|&v| ok(v))))
    };
    all(1, &|s| s == 1.0) == Some(true) && all(2, &|z| z == 0.0 || z == 128.0 || z == 32768.0) != Some(false)
}

fn uncalibrated(graph: &Graph, id: NodeId, untouched: bool) -> Option<String> {
    let Some(scales) = graph.const_input(id, 1) else { return Some("has a scale that is no constant".into()) };
    let scales = scales.to_f32s().ok()?;
    if let Some(s) = scales.iter().find(|s| !s.is_normal() || **s < 0.0) {
        return Some(format!("has the scale {s}"));
    }
    if !is_initial(graph, id) {
        return None;
    }
    let most = graph.node(id).input(0).and_then(|v| magnitude(graph, v));
    // No method takes a range wider than what it saw, but to the next power of two, and codes without a sign hold twice
    // as much as those with one.
    let span = graph
        .const_input(id, 2)
        .map_or(DType::U8, Tensor::dtype)
        .int_range()
        .map_or(256.0, |(lo, hi)| (hi - lo) as f64);
    match most {
        Some(_) if is_shared(graph, id) => None,
        Some(most) if most < span / 4.0 => {
            Some(format!("has the scale 1, but no value beyond {most:.3}: nothing was observed, or zeros alone"))
        }
        Some(_) => None,
        None => untouched.then(|| "has the scale 1, as all others have: nothing was observed".into()),
    }
}

/// Whether a Concat reads the result, whose operands have the scale of the widest of them.
fn is_shared(graph: &Graph, id: NodeId) -> bool {
    let outputs = |n: NodeId| graph.node(n).outputs.iter().flatten().copied();
    let readers = |n: NodeId| outputs(n).flat_map(|v| graph.uses(v)).map(|u| u.node);
    readers(id).flat_map(readers).any(|n| graph.node(n).op.name() == "Concat")
}

/// The greatest magnitude that a value can have, where that is known.
fn magnitude(graph: &Graph, mut v: ValueId) -> Option<f64> {
    // What folds into the rounding; a chain of them is no product's result that anybody rounds.
    for _ in 0..8 {
        let node = graph.node(graph.producer(v)?.0);
        match node.op.name() {
            "Relu" | "Clip" => v = node.input(0)?,
            "Softmax" | "Sigmoid" | "HardSigmoid" | "Tanh" => return Some(1.0),
            _ => {
                let p = product(graph, node)?;
                let channels = p.scales.len();
                let most = |(i, s): (usize, &(i128, i128))| s.0.abs().max(s.1.abs()) as f64 * p.scales[i % channels];
                return Some(p.sums.iter().enumerate().map(most).fold(0.0, f64::max));
            }
        }
    }
    None
}

/// A product with constant weights.
struct Product {
    /// Scale of the data times that of each output channel.
    scales: Vec<f64>,
    sums: Vec<(i128, i128)>,
}

fn product(graph: &Graph, node: &Node) -> Option<Product> {
    let QuantRole::Weighted { data, weight, bias, channel } = node.op.quant() else { return None };
    let (x, w) = (data_format(graph, node.input(data)?)?, dequantized(graph, node.input(weight)?)?);
    let codes = graph.const_input(w, 0)?;
    let weights = codes.to_i64s().ok().filter(|_| codes.dtype().is_int() && codes.rank() > 0)?;
    let axis = match node.op.name() {
        "Gemm" if node.op.attrs().int_or("transB", 0) == Ok(1) => 0,
        _ => channel.resolve(codes.rank())?,
    };
    let (channels, inner) = (codes.shape()[axis], codes.shape()[axis + 1..].iter().product::<usize>().max(1));
    let zeros = graph.const_input(w, 2).and_then(|t| t.to_i64s().ok()).unwrap_or_else(|| vec![0]);
    let scales = graph.const_input(w, 1)?.to_f32s().ok()?.into_owned();
    let input_scale = f64::from(scalar(graph, x, 1)?);
    let at = |all: usize, c: usize| if all == channels { c } else { 0 };
    if zeros.len() != scales.len() || !(zeros.len() == 1 || zeros.len() == channels) || channels == 0 {
        return None;
    }
    let (low, high) = data_range(graph, x)?;
    let product = (0..channels).map(|c| input_scale * f64::from(scales[at(scales.len(), c)])).collect::<Vec<_>>();
    let bias = bias.and_then(|i| bias_codes(graph, node, i, &product));
    let groups = node.op.attrs().int_or("group", 1).unwrap_or(1).max(1) as usize;
    // Channels of a transposed convolution repeat in each group: every group is a range of its own.
    let apart = if node.op.name() == "ConvTranspose" { groups } else { 1 };
    if !weights.len().is_multiple_of(apart) || apart > weights.len().max(1) {
        return None;
    }
    let per_group = weights.len() / apart;
    let mut sums = vec![(0i128, 0i128); channels * apart];
    for (i, &v) in weights.iter().enumerate() {
        let c = i / inner % channels;
        let v = i128::from(v) - i128::from(zeros[at(zeros.len(), c)]);
        let (a, b) = (v * i128::from(low), v * i128::from(high));
        let sum = &mut sums[i / per_group.max(1) * channels + c];
        *sum = (sum.0 + a.min(b), sum.1 + a.max(b));
    }
    for (c, sum) in sums.iter_mut().enumerate() {
        let b = bias.as_ref().and_then(|b| b.get(c)).map_or(0, |&b| i128::from(b));
        *sum = (sum.0 + b, sum.1 + b);
    }
    Some(Product { scales: product, sums })
}

/// Whether the weights of a product are constant integers.
fn has_integer_weights(graph: &Graph, node: &Node) -> bool {
    let QuantRole::Weighted { weight, .. } = node.op.quant() else { return false };
    let codes = node.input(weight).and_then(|v| dequantized(graph, v)).and_then(|w| graph.const_input(w, 0));
    codes.is_some_and(|t| t.dtype().is_int())
}

/// Operators whose results are among the elements of their first input, or 0.
const SELECTING: &[&str] = &[
    "DepthToSpace",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "GlobalMaxPool",
    "Identity",
    "MaxPool",
    "ReduceMax",
    "Relu",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// The DequantizeLinear whose codes the elements of a value are, wherever they went from there.
fn data_format(graph: &Graph, mut v: ValueId) -> Option<NodeId> {
    loop {
        let (id, _) = graph.producer(v)?;
        match graph.node(id).op.name() {
            "DequantizeLinear" => return Some(id),
            name if SELECTING.contains(&name) => v = graph.node(id).input(0)?,
            _ => return None,
        }
    }
}

/// The DequantizeLinear that makes a value.
fn dequantized(graph: &Graph, v: ValueId) -> Option<NodeId> {
    let (id, _) = graph.producer(v)?;
    (graph.node(id).op.name() == "DequantizeLinear").then_some(id)
}

/// The least and the greatest code of the data less their zero point; padding is zero.
fn data_range(graph: &Graph, dq: NodeId) -> Option<(i64, i64)> {
    let codes = graph.node(dq).input(0)?;
    let zero = graph.const_input(dq, 2).and_then(|t| t.to_i64s().ok()?.first().copied()).unwrap_or(0);
    let maker = graph.producer(codes).map(|(n, _)| n).filter(|&n| graph.node(n).op.name() == "QuantizeLinear");
    let dtype =
        maker.and_then(|n| graph.const_input(n, 2)).or(graph.const_input(dq, 2)).map_or(DType::U8, Tensor::dtype);
    let (low, high): (i64, i64) = match dtype {
        DType::I8 => (-128, 127),
        DType::U8 => (0, 255),
        DType::I16 => (-32768, 32767),
        DType::U16 => (0, 65535),
        _ => return None,
    };
    let relu = maker
        .and_then(|n| graph.producer(graph.node(n).input(0)?))
        .is_some_and(|(n, _)| graph.node(n).op.name() == "Relu");
    Some(((if relu { 0 } else { low.saturating_sub(zero) }).min(0), high.saturating_sub(zero).max(0)))
}

/// A bias in units of the product.
fn bias_codes(graph: &Graph, node: &Node, input: usize, units: &[f64]) -> Option<Vec<i64>> {
    let v = node.input(input)?;
    if let Some(dq) = dequantized(graph, v) {
        return graph.const_input(dq, 0)?.to_i64s().ok();
    }
    let values = graph.constant(v)?.to_f32s().ok()?;
    let unit = |i: usize| units.get(i).or(units.first()).copied().unwrap_or(1.0);
    Some(values.iter().enumerate().map(|(i, &b)| (f64::from(b) / unit(i)).round_ties_even() as i64).collect())
}

fn bits_of((low, high): (i128, i128)) -> u32 {
    let bits = |x: i128| 129 - if x < 0 { !x } else { x }.leading_zeros();
    bits(low).max(bits(high))
}

fn saturation(p: &Product, node: &Node, limits: Limits, found: &mut Checked) {
    let bits: Vec<u32> = p.sums.iter().map(|&s| bits_of(s)).collect();
    let most = bits.iter().copied().max().unwrap_or(0);
    found.most_bits = found.most_bits.max(most);
    let over = bits.iter().filter(|&&b| b > u32::from(limits.buffer_bits)).count();
    let widest = bits.iter().position(|&b| b == most).filter(|_| over > 0);
    let Some(channel) = widest else { return };
    let (low, high) = p.sums[channel];
    let whole = |x: i128| x.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
    let sums = (whole(low), whole(high));
    found.findings.push(Finding::Saturation { node: node.name.clone(), channel, sums, bits: most, channels: over });
}

/// Names of products whose biases were cut off at the end of 32 bits.
pub fn clipped_biases(graph: &Graph) -> Vec<String> {
    graph.nodes().filter(|(_, n)| clipped_bias(graph, n).is_some()).map(|(_, n)| n.name.clone()).collect()
}

fn clipped_bias(graph: &Graph, node: &Node) -> Option<Finding> {
    let QuantRole::Weighted { bias: Some(bias), .. } = node.op.quant() else { return None };
    let codes = graph.const_input(dequantized(graph, node.input(bias)?)?, 0)?;
    let codes = Some(codes).filter(|t| t.dtype() == DType::I32)?.to_i64s().ok()?;
    let channels = codes.iter().filter(|&&b| b >= i32::MAX.into() || b <= i32::MIN.into()).count();
    (channels > 0).then(|| Finding::ClippedBias { node: node.name.clone(), channels })
}

fn scale_error(graph: &Graph, p: &Product, node: &Node, limits: Limits, found: &mut Checked) {
    let Some(out) = output_scale(graph, node) else { return };
    let errors: Vec<f64> = p.scales.iter().map(|s| relative_error(s / out, limits.scale_bits)).collect();
    let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
    if mean > limits.scale_error {
        found.findings.push(Finding::ScaleError { node: node.name.clone(), mean });
    }
}

/// The scale that the result of a product is rounded to, behind the Relu or Clip that it goes through.
fn output_scale(graph: &Graph, node: &Node) -> Option<f64> {
    let mut v = node.output(0)?;
    for _ in 0..8 {
        let reader = graph.uses(v).first()?.node;
        match graph.node(reader).op.name() {
            "QuantizeLinear" => return scalar(graph, reader, 1).map(f64::from),
            "Relu" | "Clip" => v = graph.node(reader).output(0)?,
            _ => return None,
        }
    }
    None
}

/// How far a multiplier is from `m · 2^−f` with `m` of some bits and `f` up to 31.
fn relative_error(multiplier: f64, bits: u8) -> f64 {
    if !multiplier.is_normal() || multiplier <= 0.0 {
        return 1.0;
    }
    let frac = (i32::from(bits) - multiplier.log2().ceil() as i32).min(MOST_SHIFT);
    let most = 2f64.powi(bits.into()) - 1.0;
    let mantissa = (multiplier * 2f64.powi(frac)).round_ties_even().min(most);
    (mantissa * 2f64.powi(-frac) / multiplier - 1.0).abs()
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::text;
    use narrowbit_ops::Registry;

    use super::*;

    const GRAPH: &str = r#"model opset=21 graph "g" {
        input %x: f32[n, 2] const %sx: f32[] = 0.5 const %z: i8[] = 0 const %sy: f32[] = 0.3
        const %w: i8[2, 2] = [100, -100, 1, 127] const %sw: f32[2] = [0.25, 0.125] const %zw: i8[2] = [0, 0]
        %q = QuantizeLinear(%x, %sx, %z) %d = DequantizeLinear(%q, %sx, %z)
        %dw = DequantizeLinear(%w, %sw, %zw) {axis=1} %y = MatMul(%d, %dw) @"product"
        %r = Relu(%y) %qy = QuantizeLinear(%r, %sy, %z) %dy = DequantizeLinear(%qy, %sy, %z) output %dy }"#;

    fn checked(text: &str, limits: Limits) -> Checked {
        check(&text::parse_model(text, &Registry).unwrap().graph, limits)
    }

    #[test]
    fn finds_nothing_in_a_sound_graph() {
        let c = checked(GRAPH, Limits::default());
        assert_eq!((c.tensors, c.products, c.findings), (2, 1, vec![]));
        // 101 · −128 and 227 · 128.
        assert_eq!(c.most_bits, 16);
    }

    #[test]
    fn proves_that_a_narrow_register_may_saturate() {
        let c = checked(GRAPH, Limits { buffer_bits: 15, ..Limits::default() });
        let sums = (-100 * 127 - 127 * 128, 100 * 128 + 127 * 127);
        let expected = Finding::Saturation { node: "product".into(), channel: 1, sums, bits: 16, channels: 1 };
        assert_eq!(c.findings, [expected]);
    }

    #[test]
    fn sees_products_behind_what_only_selects_and_names_the_others() {
        let behind = |op: &str| {
            GRAPH.replace("MatMul(%d, %dw)", "MatMul(%m, %dw)").replace("%dw = ", &format!("%m = {op} %dw = "))
        };
        let c = checked(&behind("Flatten(%d)"), Limits { buffer_bits: 15, ..Limits::default() });
        assert_eq!((c.products, c.unseen.len(), c.findings.len()), (1, 0, 1));
        let c = checked(&behind("Exp(%d)"), Limits { buffer_bits: 15, ..Limits::default() });
        assert_eq!((c.products, c.unseen, c.findings), (0, vec!["product".to_owned()], vec![]));
    }

    #[test]
    fn reports_biases_that_were_cut_off() {
        let with_bias = |b: &str| {
            let weights = r#"const %b: i32[2] = [BIAS] const %sb: f32[2] = [0.125, 0.0625] const %zb: i32[2] = [0, 0]
                %db = DequantizeLinear(%b, %sb, %zb) {axis=0} %y = Gemm(%d, %dw, %db) @"product""#;
            checked(
                &GRAPH.replace("%y = MatMul(%d, %dw) @\"product\"", &weights.replace("BIAS", b)),
                Limits { buffer_bits: 40, ..Limits::default() },
            )
        };
        assert_eq!(with_bias("2147483646, -2147483647").findings, []);
        let expected = Finding::ClippedBias { node: "product".into(), channels: 1 };
        assert_eq!(with_bias("2147483647, 5").findings, [expected]);
    }

    #[test]
    fn reports_scales_that_bits_can_not_hold() {
        let c = checked(&GRAPH.replace("[0.25, 0.125]", "[0.25, 0.00000000001]"), Limits::default());
        assert!(matches!(&c.findings[..], [Finding::ScaleError { mean, .. }] if *mean > 0.05), "{c:?}");
    }

    fn uncalibrated_in(text: &str) -> Vec<(String, String)> {
        let of = |f| match f {
            Finding::Uncalibrated { tensor, why } => Some((tensor, why)),
            _ => None,
        };
        checked(text, Limits::default()).findings.into_iter().filter_map(of).collect()
    }

    #[test]
    fn believes_a_scale_of_1_that_values_can_have() {
        let ones = GRAPH.replace("%sx: f32[] = 0.5", "%sx: f32[] = 1");
        assert_eq!(uncalibrated_in(&ones), [], "another scale was calibrated");
        // Sums of the second channel reach 127 · 128 + 101 · 128 steps of 0.125.
        assert_eq!(uncalibrated_in(&GRAPH.replace("%sy: f32[] = 0.3", "%sy: f32[] = 1")), []);
        let both = ones.replace("%sy: f32[] = 0.3", "%sy: f32[] = 1");
        let names: Vec<String> = uncalibrated_in(&both).into_iter().map(|f| f.0).collect();
        assert_eq!(names, ["q"], "the result may have it, the input shows nothing else");
        let shifted = both.replace("const %z: i8[] = 0", "const %z: i8[] = 3");
        assert_eq!(uncalibrated_in(&shifted), [], "a zero point was observed");
    }

    #[test]
    fn reports_a_scale_of_1_that_no_value_comes_near() {
        let small = GRAPH.replace("%sy: f32[] = 0.3", "%sy: f32[] = 1").replace("[0.25, 0.125]", "[0.0025, 0.00125]");
        let found = uncalibrated_in(&small);
        assert!(matches!(&found[..], [(name, why)] if name == "qy" && why.contains("no value beyond")), "{found:?}");
        let softmax = r#"model opset=21 graph "g" { input %x: f32[n, 4] const %s: f32[] = 1 const %z: u8[] = 0
            %p = Softmax(%x) %q = QuantizeLinear(%p, %s, %z) %y = DequantizeLinear(%q, %s, %z) output %y }"#;
        assert_eq!(uncalibrated_in(softmax).len(), 1);
        let shared = softmax.replace("output %y", "%c = Concat(%y, %y) {axis=1} output %c");
        assert_eq!(uncalibrated_in(&shared), [], "its scale is that of the widest operand");
        assert_eq!(uncalibrated_in(&softmax.replace("Softmax", "Abs")), [], "integers up to 255, as far as is known");
        assert_eq!(uncalibrated_in(&softmax.replace("= 1 const", "= 0 const")).len(), 1, "no scale at all");
    }
}
