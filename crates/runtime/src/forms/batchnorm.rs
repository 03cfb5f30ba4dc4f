//! BatchNormalization behind a convolution with integer weights: a factor of the weights' scales, and a bias.
//!
//! Tools that quantize a network as it was trained (NNCF) leave it there. In evaluation it is
//! `(x − mean) · f + beta` with `f = gamma / sqrt(variance + epsilon)` per channel, so that the codes stay as they are.

use narrowbit_ir::{Node, ValueId};
use narrowbit_tensor::{DType, Tensor};

use super::{Made, Params, Rewriter};

/// x, gamma, beta, mean, variance.
pub fn fold(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let mut attrs = node.op.attrs();
    let plain = node.outputs.iter().flatten().count() == 1 && !attrs.flag("training_mode").ok()?;
    let epsilon = f64::from(attrs.float_or("epsilon", 1e-5).ok()?);
    let x = node.input(0).filter(|&x| plain && r.graph.only_use(x).is_some())?;
    let conv = r.graph.node(r.graph.producer(x)?.0);
    if conv.op.name() != "Conv" {
        return None;
    }
    let (codes, p) = weights(r, conv.input(1)?)?;
    let channels = *r.graph.constant(codes)?.shape().first()?;
    let vector = |v: Option<ValueId>| Some(floats(r, v?)?).filter(|v| v.len() == channels);
    let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|i| vector(node.input(i)));
    let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
    let bias = match conv.input(2) {
        Some(b) => vector(Some(b))?,
        None => vec![0.0; channels],
    };
    let factor: Vec<f64> = (0..channels).map(|i| gamma[i] / (variance[i] + epsilon).sqrt()).collect();
    let at = |i: usize| if p.scales.len() == 1 { 0 } else { i };
    let scales: Vec<f32> = (0..channels).map(|i| (f64::from(p.scales[at(i)]) * factor[i]) as f32).collect();
    let shift: Vec<f32> = (0..channels).map(|i| ((bias[i] - mean[i]) * factor[i] + beta[i]) as f32).collect();
    let exact = scales.iter().all(|s| s.is_normal()) && shift.iter().all(|b| b.is_finite());
    let zeros = (0..channels).map(|i| p.zeros[at(i)]).collect();
    let p = Params { scales, zeros, dtype: p.dtype };
    exact.then_some(())?;
    let w = r.dequantize(&format!("{}_w", node.name), codes, &p, 0)?;
    let shift = r.patch.constant(&format!("{}_bias", node.name), Tensor::vector(shift));
    let inputs = [r.input(conv, 0), Some(w), Some(shift)];
    Some(Made::float(r.add(&conv.name, "Conv", &inputs, conv.op.attrs())?))
}

/// The elements of a constant of floats, or of one behind a DequantizeLinear of a vector.
pub fn floats(r: &Rewriter, v: ValueId) -> Option<Vec<f64>> {
    if let Some(t) = r.graph.constant(v) {
        return t.to_f64s().ok().filter(|_| t.dtype() == DType::F32);
    }
    let node = r.graph.node(r.graph.producer(v)?.0);
    let codes = r.graph.constant(node.input(0).filter(|_| node.op.name() == "DequantizeLinear")?)?.to_i64s().ok()?;
    let scales = r.elements::<f32>(node.input(1)?)?;
    let zeros = match node.input(2) {
        Some(z) => r.graph.constant(z)?.to_i64s().ok()?,
        None => vec![0],
    };
    let fits = |n: usize| n == 1 || n == codes.len();
    let at = |n: usize, i: usize| if n == 1 { 0 } else { i };
    let value = |(i, c): (usize, &i64)| {
        let steps = c.wrapping_sub(zeros[at(zeros.len(), i)]) as f32;
        f64::from(steps * scales[at(scales.len(), i)])
    };
    (fits(scales.len()) && fits(zeros.len())).then(|| codes.iter().enumerate().map(value).collect())
}

/// The codes and format of weights behind a DequantizeLinear, with scales along the first axis.
pub fn weights(r: &Rewriter, v: ValueId) -> Option<(ValueId, Params)> {
    let node = r.graph.node(r.graph.producer(v)?.0);
    let codes = node.input(0).filter(|_| node.op.name() == "DequantizeLinear")?;
    let t = r.graph.constant(codes).filter(|t| t.rank() >= 3)?;
    let p = r.params(node, 1, Some(codes)).filter(|p| p.dtype == t.dtype())?;
    let attrs = node.op.attrs();
    let axis = attrs.clone().int_or("axis", 1).ok()?;
    let first = axis == 0 || axis == -(t.rank() as i64);
    let plain = attrs.get("block_size").is_none() && attrs.get("output_dtype").is_none();
    let fits = p.scales.len() == 1 || first && t.shape().first() == Some(&p.scales.len());
    (fits && plain).then_some((codes, p))
}
