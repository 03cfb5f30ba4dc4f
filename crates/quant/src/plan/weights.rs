use narrowbit_ir::{Graph, Node, NodeId, QuantRole};
use narrowbit_kernels::quantize::{QuantScales, quantize};
use narrowbit_kernels::{Exec, KernelError, calibrate};
use narrowbit_tensor::{DType, Tensor, TensorError};

use super::{Kind, QuantPlan};
use crate::observe::Range;
use crate::options::{Matcher, QuantOptions};
use crate::parallel::in_parallel;
use crate::scheme::{IntType, ScalePoint, WeightScheme};

/// Scales and zero points of a constant weight.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightParams {
    /// How it is represented.
    pub scheme: WeightScheme,
    /// The axis with a scale for each index; `None` for one scale in all.
    pub axis: Option<usize>,
    /// One entry per index of the axis, or one in all.
    pub points: Vec<ScalePoint>,
}

/// Scales of a constant bias, which is stored as int32 with zero point 0.
#[derive(Debug, Clone, PartialEq)]
pub struct BiasParams {
    /// One entry per output channel: the activation's scale times the weight's.
    pub scales: Vec<f32>,
    /// Whether the weight has a scale for each channel, and the scales differ.
    pub per_channel: bool,
}

/// Why a weight could not be quantized.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The parameters belong to another weight.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The weight can't be read or its integers can't be kept.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// A constant that becomes integers.
struct Job<'a> {
    node: NodeId,
    input: usize,
    tensor: &'a Tensor,
    scheme: WeightScheme,
    axis: Option<usize>,
    bias: Option<Bias<'a>>,
}

/// The bias that goes with a weight.
struct Bias<'a> {
    /// The node and input that read it.
    key: (NodeId, usize),
    tensor: &'a Tensor,
    /// The scale of the activation that the weight multiplies.
    input_scale: f32,
}

/// Chooses the scales of all weights and biases of the integer nodes.
pub(super) fn plan(graph: &Graph, matcher: &Matcher, options: &QuantOptions, exec: &Exec, plan: &mut QuantPlan) {
    let kinds = plan.layout.kinds.iter();
    let jobs: Vec<Job> = kinds.filter_map(|(&id, &kind)| job(graph, matcher, options, plan, id, kind)).collect();
    let found = in_parallel(exec, &jobs, |j| params(exec, j.tensor, j.scheme, j.axis));
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    for (j, mut found) in jobs.iter().zip(found) {
        if let Some(b) = &j.bias {
            let scales = fit_bias(b.input_scale, &mut found, b.tensor);
            biases.push((b.key, BiasParams { scales, per_channel: found.axis.is_some() }));
        }
        weights.push(((j.node, j.input), found));
    }
    plan.weights.extend(weights);
    plan.biases.extend(biases);
}

fn job<'a>(
    graph: &'a Graph,
    matcher: &Matcher,
    options: &QuantOptions,
    plan: &QuantPlan,
    id: NodeId,
    kind: Kind,
) -> Option<Job<'a>> {
    let node = graph.node(id);
    let scheme = matcher.of(node).find_map(|o| o.weights).unwrap_or(options.weights);
    match (kind, node.op.quant()) {
        (Kind::Embedding, _) => {
            let scheme = WeightScheme { per_channel: false, ..scheme };
            Some(Job { node: id, input: 0, tensor: graph.const_input(id, 0)?, scheme, axis: None, bias: None })
        }
        (Kind::Product, QuantRole::Weighted { data, weight, bias, channel }) => {
            let tensor = graph.const_input(id, weight)?;
            let axis = channel.resolve(tensor.rank()).filter(|_| scheme.per_channel);
            // Channels of a transposed convolution repeat in each group.
            let axis = axis.filter(|_| node.op.name() != "ConvTranspose" || groups(node) == 1);
            let input_scale = node.input(data).and_then(|v| plan.activations.get(&v)).map(|a| a.point.scale);
            let key = bias.map(|i| (id, i)).or_else(|| added_bias(graph, plan, id, tensor));
            let bias = key.and_then(|key| {
                Some(Bias { key, tensor: graph.const_input(key.0, key.1)?, input_scale: input_scale? })
            });
            Some(Job { node: id, input: weight, tensor, scheme, axis, bias })
        }
        _ => None,
    }
}

/// The Add and its input that give a MatMul a bias: a constant vector along the output's last axis, added
/// to what nothing else reads.
///
/// ONNX Runtime merges such a pair into Gemm before it looks for integer products. With a float bias it then
/// finds none, and dequantizes the weights at each run.
fn added_bias(graph: &Graph, plan: &QuantPlan, product: NodeId, weight: &Tensor) -> Option<(NodeId, usize)> {
    let node = graph.node(product);
    let u = graph.only_use(node.output(0)?).filter(|_| node.op.name() == "MatMul" && weight.rank() == 2)?;
    let add = graph.node(u.node);
    let at = 1usize.checked_sub(u.input)?;
    let bias = graph.const_input(u.node, at)?;
    let float = add.op.name() == "Add" && !plan.layout.kinds.contains_key(&u.node);
    let row = bias.dtype() == DType::F32 && bias.shape() == &weight.shape()[1..];
    let finite = || bias.to_f32s().is_ok_and(|b| b.iter().all(|x| x.is_finite()));
    (float && row && finite()).then_some((u.node, at))
}

fn groups(node: &Node) -> i64 {
    node.op.attrs().int_or("group", 1).unwrap_or(1)
}

/// The scales and zero points of a constant: one for each index of the axis, or one in all.
pub(crate) fn params(exec: &Exec, w: &Tensor, scheme: WeightScheme, axis: Option<usize>) -> WeightParams {
    let values = w.to_f32s().unwrap_or_default();
    let ranges = ranges(exec, &values, w.shape(), axis);
    let mut points: Vec<ScalePoint> = ranges.iter().map(|&r| scheme.qparams(r)).collect();
    // A dead channel has no range of its own: any scale represents it, the layer's largest keeps its bias in range.
    let largest = ranges.iter().zip(&points).filter(|(r, _)| !is_zero(r)).map(|(_, p)| p.scale).fold(0f32, f32::max);
    for (p, _) in points.iter_mut().zip(&ranges).filter(|(_, r)| is_zero(r) && largest > 0.0) {
        p.scale = largest;
    }
    WeightParams { scheme, axis, points }
}

fn is_zero(r: &Range) -> bool {
    r.min == 0.0 && r.max == 0.0
}

/// The extremes of each index of the axis, or of all elements.
fn ranges(exec: &Exec, values: &[f32], shape: &[usize], axis: Option<usize>) -> Vec<Range> {
    let split = split(shape, axis);
    let mut found = vec![calibrate::Range::EMPTY; split[1]];
    // The lengths agree by construction; a failure would leave empty ranges, which count as zero.
    let done = match axis {
        Some(_) => calibrate::channel_min_max(exec, values, split, &mut found).is_ok(),
        None => {
            found = vec![calibrate::min_max(exec, values)];
            true
        }
    };
    debug_assert!(done);
    let finite = |r: calibrate::Range| if r.min > r.max { (0.0, 0.0) } else { (r.min, r.max) };
    found.into_iter().map(finite).map(|(lo, hi)| Range { min: lo.into(), max: hi.into() }).collect()
}

/// `[outer, channels, inner]` around an axis; one channel without one.
fn split(shape: &[usize], axis: Option<usize>) -> [usize; 3] {
    match axis {
        Some(a) => [shape[..a].iter().product(), shape[a], shape[a + 1..].iter().product()],
        None => [1, 1, shape.iter().product()],
    }
}

/// The bias's scales; a channel's weight scale is enlarged where the bias would overflow int32
/// (a tiny weight scale under a large bias). Accumulators keep a factor of two of room.
fn fit_bias(input: f32, weight: &mut WeightParams, bias: &Tensor) -> Vec<f32> {
    const LIMIT: f64 = (1i64 << 30) as f64;
    let values = bias.to_f32s().unwrap_or_default();
    let input = f64::from(input);
    if weight.points.len() == 1 {
        let largest = values.iter().fold(0f64, |m, &b| m.max(f64::from(b).abs()));
        enlarge(&mut weight.points[0], largest / LIMIT / input);
        return vec![(input * f64::from(weight.points[0].scale)) as f32; values.len()];
    }
    let pairs = values.iter().zip(weight.points.iter_mut());
    pairs
        .map(|(&b, p)| {
            enlarge(p, f64::from(b).abs() / LIMIT / input);
            (input * f64::from(p.scale)) as f32
        })
        .collect()
}

fn enlarge(p: &mut ScalePoint, least: f64) {
    if f64::from(p.scale) < least {
        p.scale = least as f32;
    }
}

impl WeightParams {
    /// The weight as an integer tensor, `saturate(round_half_even(w / scale) + zero_point)`.
    ///
    /// # Errors
    /// Never for a weight that the parameters were made for.
    pub fn tensor(&self, exec: &Exec, w: &Tensor) -> Result<Tensor, WeightError> {
        let values = w.to_f32s()?;
        let scales: Vec<f32> = self.points.iter().map(|p| p.scale).collect();
        let zero_points: Vec<i32> = self.points.iter().map(|p| p.zero_point).collect();
        let shape = split(w.shape(), self.axis);
        let params = QuantScales { scales: &scales, zero_points: &zero_points, shape };
        // Scales put every weight within the codes in use, so that saturating at the type's ends is enough.
        Ok(match self.scheme.int {
            IntType::Int8 => {
                let mut codes = vec![0i8; values.len()];
                quantize(exec, &values, &mut codes, &params)?;
                Tensor::new(w.shape(), codes)?
            }
            IntType::Uint8 => {
                let mut codes = vec![0u8; values.len()];
                quantize(exec, &values, &mut codes, &params)?;
                Tensor::new(w.shape(), codes)?
            }
        })
    }

    /// Scales and zero points by name of their ONNX inputs: scalars, or vectors along the axis.
    pub fn tensors(&self) -> (Tensor, Tensor) {
        let scales: Vec<f32> = self.points.iter().map(|p| p.scale).collect();
        let zeros: Vec<i64> = self.points.iter().map(|p| p.zero_point.into()).collect();
        let shape: Vec<usize> = if self.axis.is_some() { vec![scales.len()] } else { Vec::new() };
        let zeros = Tensor::from_i64s(self.scheme.int.dtype(), shape.clone(), &zeros);
        let scales = Tensor::new(shape, scales);
        (scales.unwrap_or_else(|_| Tensor::scalar(1f32)), zeros.unwrap_or_else(|_| Tensor::scalar(0u8)))
    }
}

impl BiasParams {
    /// The bias as int32 codes, `round_half_even(b / scale)`.
    pub fn quantize(&self, bias: &Tensor) -> Vec<i32> {
        let values = bias.to_f32s().unwrap_or_default();
        let code = |(&b, &s): (&f32, &f32)| {
            (f64::from(b) / f64::from(s)).round_ties_even().clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
        };
        values.iter().zip(&self.scales).map(code).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec() -> Exec {
        Exec::new(narrowbit_kernels::Isa::detect(), 1)
    }

    fn codes(p: &WeightParams, w: &Tensor) -> Vec<i64> {
        p.tensor(&exec(), w).unwrap().to_i64s().unwrap()
    }

    #[test]
    fn gives_each_output_channel_its_scale() {
        let w = Tensor::new([2, 1, 2], vec![1.27f32, -0.1, 0.0, 12.7]).unwrap();
        let p = params(&exec(), &w, WeightScheme::default(), Some(0));
        assert_eq!(codes(&p, &w), [127, -10, 0, 127]);
        let w = Tensor::new([2, 2], vec![1.27f32, 12.7, -1.27, 0.1]).unwrap();
        let p = params(&exec(), &w, WeightScheme::default(), Some(1));
        assert_eq!(codes(&p, &w), [127, 127, -127, 1]);
    }

    #[test]
    fn gives_a_dead_channel_the_largest_scale() {
        let w = Tensor::new([2, 1], vec![0.0f32, 12.7]).unwrap();
        let p = params(&exec(), &w, WeightScheme::default(), Some(0));
        assert_eq!(p.points[0].scale, p.points[1].scale);
    }

    #[test]
    fn enlarges_a_scale_whose_bias_would_overflow() {
        let w = Tensor::new([2, 1], vec![1e-12f32, 1.0]).unwrap();
        let mut p = params(&exec(), &w, WeightScheme::default(), Some(0));
        let b = Tensor::new([2], vec![100f32, 100.0]).unwrap();
        let scales = fit_bias(0.01, &mut p, &b);
        let codes = BiasParams { scales: scales.clone(), per_channel: true }.quantize(&b);
        for (c, s) in codes.iter().zip(&scales) {
            assert!((f64::from(*c) * f64::from(*s) - 100.0).abs() < 1e-3, "{c} * {s}");
            assert!(c.abs() <= 1 << 30);
        }
    }
}
