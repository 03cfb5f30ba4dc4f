//! Depthwise convolutions of activations with a scale per channel (NNCF): the scales go into the weights on both sides.
//!
//! `QuantizeLinear(v, s)` of channel c is `round(v / s[c])`, so that `1 / s` may multiply the weights and the bias of the
//! convolution before it, through a Relu, and `s` the weights behind it, whose every channel reads one channel only.
//! The codes stay the same but for a value on a border; what remains has one scale, 1, as the kernels want it.

use narrowbit_ir::{AttrMap, Node, ValueId};
use narrowbit_tensor::{DType, Tensor};

use super::batchnorm::{floats, weights};
use super::{Made, Params, Rewriter, Rule};

/// The rule of an operator.
pub fn rule(name: &str) -> Option<Rule> {
    (name == "Conv").then_some(fold)
}

/// A QuantizeLinear with a scale per channel, its DequantizeLinear behind it.
struct Pair {
    /// What is quantized.
    x: ValueId,
    scales: Vec<f32>,
    zero: i64,
    dtype: DType,
}

impl Pair {
    fn unit(&self) -> Params {
        Params { scales: vec![1.0], zeros: vec![self.zero], dtype: self.dtype }
    }

    fn inverse(&self) -> Vec<f64> {
        self.scales.iter().map(|&s| 1.0 / f64::from(s)).collect()
    }
}

/// x, w, bias of a depthwise convolution.
fn fold(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let (codes, w) = weights(r, node.input(1)?)?;
    let shape = r.graph.constant(codes)?.shape();
    let (channels, rank) = (*shape.first()?, shape.len());
    let groups = usize::try_from(node.op.attrs().int_or("group", 1).ok()?).ok()?;
    if channels < 2 || groups != channels || shape[1] != 1 {
        return None;
    }
    let pair = pair(r, node.input(0)?, channels)?;
    let x = match divided(r, &pair) {
        Some(x) => x,
        None => multiplied(r, &pair, rank)?,
    };
    let name = node.name.as_str();
    let quantized = r.quantize(&format!("{name}_x"), x, &pair.unit())?;
    let x = r.dequantize(&format!("{name}_x"), quantized.value, &pair.unit(), 0)?;
    let factor: Vec<f64> = pair.scales.iter().map(|&s| f64::from(s)).collect();
    let w = r.dequantize(&format!("{name}_w"), codes, &scaled(&w, &factor)?, 0)?;
    let inputs: Vec<Option<ValueId>> = [Some(x), Some(w), r.input(node, 2)].to_vec();
    let used = if node.input(2).is_some() { 3 } else { 2 };
    Some(Made::float(r.add(name, "Conv", &inputs[..used], node.op.attrs())?))
}

/// The scales of weights times a factor for each of their channels.
fn scaled(p: &Params, factor: &[f64]) -> Option<Params> {
    let at = |i: usize| if p.scales.len() == 1 { 0 } else { i };
    let scales: Vec<f32> = factor.iter().enumerate().map(|(i, f)| (f64::from(p.scales[at(i)]) * f) as f32).collect();
    let zeros = (0..factor.len()).map(|i| p.zeros[at(i)]).collect();
    scales.iter().all(|s| s.is_normal()).then_some(Params { scales, zeros, dtype: p.dtype })
}

/// The pair that makes `v` for this reader alone, with one zero point and scales along axis 1.
fn pair(r: &Rewriter, v: ValueId, channels: usize) -> Option<Pair> {
    let made_by = |v: ValueId, name: &str| {
        r.graph.only_use(v)?;
        let node = r.graph.node(r.graph.producer(v)?.0);
        let along = node.op.attrs().int_or("axis", 1) == Ok(1) && node.op.domain().is_empty();
        (node.op.name() == name && along && node.op.attrs().get("block_size").is_none()).then_some(node)
    };
    let dequantize = made_by(v, "DequantizeLinear")?;
    let quantize = made_by(dequantize.input(0)?, "QuantizeLinear")?;
    let (from, to) = (r.params(quantize, 1, quantize.output(0))?, r.params(dequantize, 1, quantize.output(0))?);
    let same = from.scales == to.scales && from.zeros == to.zeros && from.dtype == to.dtype;
    let zero = *from.zeros.first()?;
    let fits = from.scales.len() == channels && from.zeros.iter().all(|&z| z == zero);
    let positive = from.scales.iter().all(|&s| s > 0.0 && s.is_normal() && (1.0 / s).is_normal());
    let x = quantize.input(0)?;
    (same && fits && positive).then_some(Pair { x, scales: from.scales, zero, dtype: from.dtype })
}

/// The values in units of their channels' scales, from the convolution that makes them.
fn divided(r: &mut Rewriter, pair: &Pair) -> Option<ValueId> {
    r.graph.only_use(pair.x)?;
    let mut conv = r.graph.node(r.graph.producer(pair.x)?.0);
    let relu = match conv.op.name() {
        "Relu" => true,
        "Clip" => is_relu(r, conv, pair)?,
        _ => false,
    };
    if relu {
        let x = conv.input(0)?;
        r.graph.only_use(x)?;
        conv = r.graph.node(r.graph.producer(x)?.0);
    }
    if conv.op.name() != "Conv" {
        return None;
    }
    let (codes, w) = weights(r, conv.input(1)?)?;
    if r.graph.constant(codes)?.shape().first() != Some(&pair.scales.len()) {
        return None;
    }
    let inverse = pair.inverse();
    let bias = match conv.input(2) {
        Some(b) => Some(floats(r, b).filter(|b| b.len() == inverse.len())?),
        None => None,
    };
    let w = r.dequantize(&format!("{}_w", conv.name), codes, &scaled(&w, &inverse)?, 0)?;
    let mut inputs = vec![r.input(conv, 0), Some(w)];
    if let Some(b) = bias {
        let values: Vec<f32> = b.iter().zip(&inverse).map(|(b, f)| (b * f) as f32).collect();
        inputs.push(Some(r.patch.constant(&format!("{}_bias", conv.name), Tensor::vector(values))));
    }
    let y = r.add(&conv.name, "Conv", &inputs, conv.op.attrs())?;
    if relu { r.add(&format!("{}_relu", conv.name), "Relu", &[Some(y)], AttrMap::new()) } else { Some(y) }
}

/// Whether a Clip is a Relu to what quantizes its result: every channel saturates at the upper bound or before.
fn is_relu(r: &Rewriter, node: &Node, pair: &Pair) -> Option<bool> {
    let mut attrs = node.op.attrs();
    let bound = |i: usize, said: Option<f32>| match node.input(i) {
        Some(v) => r.elements::<f32>(v)?.first().copied(),
        None => said,
    };
    let (low, high) = (bound(1, attrs.float("min").ok()?)?, bound(2, attrs.float("max").ok()?));
    let most = if pair.dtype == DType::U8 { 255 } else { 127 };
    let saturates =
        |&s: &f32| high.is_none_or(|h| ((h / s).round_ties_even() as i64).saturating_add(pair.zero) >= most);
    (low == 0.0 && pair.scales.iter().all(saturates)).then_some(true)
}

/// The values in units of their channels' scales, by a product of their own.
fn multiplied(r: &mut Rewriter, pair: &Pair, rank: usize) -> Option<ValueId> {
    let values: Vec<f32> = pair.inverse().iter().map(|&f| f as f32).collect();
    let mut shape = vec![1; rank];
    shape[1] = values.len();
    let name = format!("{}_units", r.graph.value(pair.x).name);
    let factor = r.patch.constant(&name, Tensor::new(shape, values).ok()?);
    let x = r.moved.get(&pair.x).copied().unwrap_or(pair.x);
    r.add(&name, "Mul", &[Some(x), Some(factor)], AttrMap::new())
}
