use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Node, NodeId, QuantRole, ValueId};
use narrowbit_kernels::quantize::{QuantScales, Quantized, quantize};
use narrowbit_kernels::{Exec, KernelError, calibrate};
use narrowbit_tensor::{DType, Element, Tensor, TensorError, minifloat};

use super::kept::Kept;
use super::{Kind, Layout, PlanError, QuantPlan, Used, blocks, channels, correction, shifts};
use crate::observe::{Range, Stats};
use crate::options::{Matcher, QuantOptions};
use crate::parallel::in_parallel;
use crate::scheme::{Formula, NumberFormat, Rounding, ScalePoint, WeightScheme, quantizeml, vitis};

/// Scales and zero points of a constant weight.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightParams {
    /// How it is represented.
    pub scheme: WeightScheme,
    /// The axis with a scale for each index; `None` for one scale in all.
    pub axis: Option<usize>,
    /// One entry per index of the axis, or one in all.
    pub points: Vec<ScalePoint>,
    /// What values are divided by to get codes, one per point: the scale, or what the formula takes instead.
    pub divisors: Vec<f32>,
    /// The codes, where they are not those of the nearest values.
    pub rounded: Option<RoundedWeight>,
}

/// The codes of a weight that was rounded by samples ([`crate::gptq`]).
#[derive(Debug, Clone, PartialEq)]
pub struct RoundedWeight {
    /// Of the weight's shape and the scheme's type.
    pub codes: Tensor,
    /// What rounding adds to each output channel in the mean over the samples, where the weight has one reader.
    pub mean_errors: Option<Vec<f64>>,
}

/// Scales of a constant bias, which is stored as int32 with zero point 0.
#[derive(Debug, Clone, PartialEq)]
pub struct BiasParams {
    /// One entry per output channel: the activation's scale times the weight's.
    pub scales: Vec<f32>,
    /// Whether the weight has a scale for each channel, and the scales differ.
    pub per_channel: bool,
    /// The codes, where the scheme rounds biases in a way of its own.
    pub codes: Option<Vec<i32>>,
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
    /// The axis of the output channels, if they can have a scale each.
    channel: Option<usize>,
    bias: Option<Bias<'a>>,
}

/// The bias that goes with a weight.
pub(super) struct Bias<'a> {
    /// The node and input that read it.
    key: (NodeId, usize),
    pub tensor: &'a Tensor,
    /// The activation that the weight multiplies.
    pub input: ValueId,
}

/// Chooses the scales of all weights and biases of the integer nodes.
pub(super) fn plan(
    graph: &Graph,
    matcher: &Matcher,
    stats: &BTreeMap<String, Stats>,
    options: &QuantOptions,
    exec: &Exec,
    used: &mut Used,
    plan: &mut QuantPlan,
) -> Result<(), PlanError> {
    let kinds = plan.layout.kinds.iter();
    let jobs: Vec<Job> = kinds.filter_map(|(&id, &kind)| job(graph, matcher, options, plan, id, kind)).collect();
    let found = in_parallel(exec, &jobs, |j| params(exec, j.tensor, j.scheme, j.axis));
    let given = |(j, own): (&Job, WeightParams)| {
        let name = graph.node(j.node).input(j.input).map_or("", |v| graph.value(v).name.as_str());
        used.weight(exec, name, j.tensor, j.scheme, j.channel).unwrap_or(own)
    };
    let found: Vec<WeightParams> = jobs.iter().zip(found).map(given).collect();
    let keys: Vec<_> = jobs.iter().map(|j| (j.node, j.input)).collect();
    let biases: Vec<_> = jobs.into_iter().map(|j| j.bias).collect();
    plan.weights.extend(keys.iter().copied().zip(found));
    let biases: Vec<_> = keys.into_iter().zip(biases).filter_map(|(key, b)| Some((key, b?))).collect();
    plan_biases(graph, &biases, stats, options, exec, plan)
}

/// Computes the biases anew, for weights that were rounded in another way since.
pub(super) fn again(
    graph: &Graph,
    matcher: &Matcher,
    stats: &BTreeMap<String, Stats>,
    options: &QuantOptions,
    exec: &Exec,
    plan: &mut QuantPlan,
) -> Result<(), PlanError> {
    let kinds = plan.layout.kinds.iter();
    let jobs = kinds.filter_map(|(&id, &kind)| job(graph, matcher, options, plan, id, kind));
    let biases: Vec<_> = jobs.filter_map(|j| Some(((j.node, j.input), j.bias?))).collect();
    plan_biases(graph, &biases, stats, options, exec, plan)
}

/// The biases that go with weights, by the node and input that read the weight.
fn plan_biases(
    graph: &Graph,
    biases: &[((NodeId, usize), Bias)],
    stats: &BTreeMap<String, Stats>,
    options: &QuantOptions,
    exec: &Exec,
    plan: &mut QuantPlan,
) -> Result<(), PlanError> {
    let shifted = shifts::correct(graph, plan);
    let shifts = plan.shifts.clone();
    // Without means nothing is known of what the weights add.
    let means = options.bias_correction.then_some(stats);
    for (key, b) in biases {
        let shift = shifts.get(&key.0).map(Vec::as_slice);
        let float = |w: &WeightParams| options.float_biases || w.scheme.format.is_float();
        if plan.weights.get(key).is_some_and(float)
            && let Some(Kept::Float(kept)) = plan.kept(graph, *key, b, &[], None)?
        {
            plan.float_biases.insert(b.key, kept);
            continue;
        }
        if let Some(weight) = plan.weights.get(key).filter(|w| float(w)) {
            if options.bias_correction || shift.is_some() {
                let corrected = correction::bias(graph, *key, b, (weight, shift), means, exec)?;
                plan.float_biases.insert(b.key, corrected);
            }
            continue;
        }
        let cut = shifted.get(&key.0).copied();
        let inputs = input_scales(graph, plan, key.0, b.input);
        if !inputs.is_empty()
            && let Some(Kept::Codes(kept)) = plan.kept(graph, *key, b, &inputs, cut)?
        {
            plan.biases.insert(b.key, kept);
            continue;
        }
        let Some(weight) = plan.weights.get_mut(key).filter(|_| !inputs.is_empty()) else { continue };
        let (inputs, before) = (&inputs[..], weight.points.clone());
        let made = match options.bias_correction || shift.is_some() {
            false => bias(b.tensor, inputs, weight, cut),
            true => {
                let moved = (&*weight, shift);
                let corrected = correction::bias(graph, *key, b, moved, means, exec)?;
                let made = bias(&corrected, inputs, weight, cut);
                let codes = Some(made.quantize(&corrected));
                BiasParams { codes, ..made }
            }
        };
        if weight.points != before {
            // Codes belong to scales.
            weight.rounded = None;
        }
        plan.biases.insert(b.key, made);
    }
    Ok(())
}

/// The scales, and where the scheme has its own way the codes, of a bias. `inputs` are the scales of the activation: one,
/// or one per channel of a depthwise convolution. `cut` is by how many bits the sums of the
/// product are shifted to become its output, where that is known.
pub(super) fn bias(b: &Tensor, inputs: &[f32], weight: &mut WeightParams, cut: Option<i32>) -> BiasParams {
    let input = |i: usize| inputs.get(i).or(inputs.first()).copied().unwrap_or(1.0);
    let per_channel = weight.axis.is_some();
    let values = b.to_f32s().unwrap_or_default();
    let scales_of = |weight: &WeightParams| -> Vec<f32> {
        let scale = |i: usize| weight.points.get(i).or(weight.points.first()).map_or(1.0, |p| p.scale);
        (0..values.len()).map(|i| (f64::from(input(i)) * f64::from(scale(i))) as f32).collect()
    };
    match weight.scheme.formula {
        Formula::Quantizeml => {
            let fracs: Vec<i32> = inputs.iter().map(|&s| quantizeml::frac_of(s)).collect();
            let codes = quantizeml::bias_codes(&values, &weight.divisors, &fracs);
            BiasParams { scales: scales_of(weight), per_channel, codes: Some(codes) }
        }
        Formula::Vitis => {
            let position = vitis::position_of(weight.points.first().map_or(1.0, |p| p.scale));
            let codes = vitis::bias_codes(&values, position + vitis::position_of(input(0)), cut.unwrap_or(0));
            BiasParams { scales: scales_of(weight), per_channel, codes: Some(codes) }
        }
        _ => BiasParams { scales: fit_bias(inputs, weight, b), per_channel, codes: None },
    }
}

/// The scales in which a product reads a value: one, or one for each channel of a depthwise convolution. Channels that are
/// added up have the finest of theirs, and so have values that were joined.
pub(super) fn input_scales(graph: &Graph, plan: &QuantPlan, product: NodeId, v: ValueId) -> Vec<f32> {
    let own = |v: ValueId| match plan.channel_scales.get(&v) {
        Some(all) => all.clone(),
        None => plan.activations.get(&v).map_or(Vec::new(), |a| vec![a.point.scale]),
    };
    let (kinds, direct) = (&plan.layout.kinds, own(v));
    let sources: Vec<Vec<f32>> = match direct.is_empty() {
        true => blocks::sources(graph, kinds, v).into_iter().map(own).collect(),
        false => vec![direct],
    };
    if let ([one], true) = (&sources[..], channels::is_depthwise(graph, product))
        && blocks::keeps_channels(graph, kinds, v)
    {
        return one.clone();
    }
    match sources.iter().any(Vec::is_empty) {
        true => Vec::new(),
        false => sources.into_iter().flatten().reduce(f32::min).into_iter().collect(),
    }
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
    let own = matcher.of(node).find_map(|o| o.weights);
    let scheme = own.unwrap_or(options.weights);
    match (kind, node.op.quant()) {
        (Kind::Embedding, _) => {
            let scheme = table_scheme(scheme);
            let tensor = graph.const_input(id, 0)?;
            Some(Job { node: id, input: 0, tensor, scheme, axis: None, channel: None, bias: None })
        }
        (Kind::Product, QuantRole::Weighted { data, weight, bias, channel }) => {
            let tensor = graph.const_input(id, weight)?;
            let bits =
                options.input_weight_bits.filter(|_| own.is_none() && first_product(graph, &plan.layout) == Some(id));
            let scheme = WeightScheme { bits: bits.or(scheme.bits), ..scheme };
            // Channels of a transposed convolution repeat in each group; ONNX Runtime multiplies stacks of matrices by one scale
            // alone ("b zero point is not valid" when it runs them).
            let whole = match node.op.name() {
                "ConvTranspose" => groups(node) == 1,
                "MatMul" => tensor.rank() <= 2,
                _ => true,
            };
            let channel = channel.resolve(tensor.rank()).filter(|_| whole);
            let axis = channel.filter(|_| scheme.per_channel);
            let key = bias_of(graph, &plan.layout, id, tensor, bias);
            let input = node.input(data).filter(|&v| !input_scales(graph, plan, id, v).is_empty());
            let bias = key.and_then(|key| Some(Bias { key, tensor: graph.const_input(key.0, key.1)?, input: input? }));
            Some(Job { node: id, input: weight, tensor, scheme, axis, channel, bias })
        }
        _ => None,
    }
}

/// The node and input that read the bias of a product.
fn bias_of(
    graph: &Graph,
    layout: &Layout,
    id: NodeId,
    weight: &Tensor,
    bias: Option<usize>,
) -> Option<(NodeId, usize)> {
    bias.map(|i| (id, i)).or_else(|| added_bias(graph, layout, id, weight))
}

/// The node and input that read the bias of a product with a constant weight.
pub(super) fn bias_key(graph: &Graph, layout: &Layout, id: NodeId) -> Option<(NodeId, usize)> {
    let QuantRole::Weighted { weight, bias, .. } = graph.node(id).op.quant() else { return None };
    bias_of(graph, layout, id, graph.const_input(id, weight)?, bias)
}

/// The scheme of a table: Gather moves neither 4-bit integers nor fp8. Narrower codes would make the file no smaller and a table
/// with one scale useless, but named schemes have them.
fn table_scheme(scheme: WeightScheme) -> WeightScheme {
    let scheme = WeightScheme { bits: scheme.bits.filter(|_| scheme.formula != Formula::Narrowbit), ..scheme };
    match scheme.format {
        NumberFormat::Int8 | NumberFormat::Uint8 | NumberFormat::Int16 | NumberFormat::Uint16 => {
            WeightScheme { per_channel: false, ..scheme }
        }
        _ => WeightScheme { per_channel: false, ..WeightScheme::default() },
    }
}

/// The first product with a constant weight: QuantizeML's input layer.
pub(super) fn first_product(graph: &Graph, layout: &Layout) -> Option<NodeId> {
    let product = |id: &NodeId| layout.kinds.get(id) == Some(&Kind::Product);
    let weighted = |id: &NodeId| match graph.node(*id).op.quant() {
        QuantRole::Weighted { weight, .. } => graph.const_input(*id, weight).is_some(),
        _ => false,
    };
    graph.nodes().map(|(id, _)| id).find(|id| product(id) && weighted(id))
}

/// The Add and its input that give a MatMul a bias: a constant vector along the output's last axis, added
/// to what nothing else reads.
///
/// ONNX Runtime merges such a pair into Gemm before it looks for integer products. With a float bias it then
/// finds none, and dequantizes the weights at each run.
pub(super) fn added_bias(graph: &Graph, layout: &Layout, product: NodeId, weight: &Tensor) -> Option<(NodeId, usize)> {
    let node = graph.node(product);
    let u = graph.only_use(node.output(0)?).filter(|_| node.op.name() == "MatMul" && weight.rank() == 2)?;
    let add = graph.node(u.node);
    let at = 1usize.checked_sub(u.input)?;
    let bias = graph.const_input(u.node, at)?;
    let alone = matches!(layout.kinds.get(&u.node), None | Some(Kind::Fused));
    let float = add.op.name() == "Add" && alone;
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
    let mut ranges = ranges(exec, &values, w.shape(), axis);
    if let (Formula::Vitis, Some(r)) = (scheme.formula, ranges.first_mut()) {
        let bits = vitis::bits_of(scheme.code_range());
        *r = vitis::range_of(vitis::limited(vitis::diffs(&values, *r, bits, Rounding::HalfAway), bits), bits);
    }
    let mut points: Vec<ScalePoint> = ranges.iter().map(|&r| scheme.qparams(r)).collect();
    let divisors = |points: &[ScalePoint]| ranges.iter().zip(points).map(|(&r, &p)| scheme.divisor(r, p)).collect();
    if scheme.formula != Formula::Narrowbit {
        let divisors = divisors(&points);
        return WeightParams { scheme, axis, points, divisors, rounded: None };
    }
    // A dead channel has no range of its own: any scale represents it, the layer's largest keeps its bias in range.
    let largest = ranges.iter().zip(&points).filter(|(r, _)| !is_zero(r)).map(|(_, p)| p.scale).fold(0f32, f32::max);
    for (p, _) in points.iter_mut().zip(&ranges).filter(|(_, r)| is_zero(r) && largest > 0.0) {
        p.scale = largest;
    }
    let divisors = divisors(&points);
    WeightParams { scheme, axis, points, divisors, rounded: None }
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
fn fit_bias(inputs: &[f32], weight: &mut WeightParams, bias: &Tensor) -> Vec<f32> {
    const LIMIT: f64 = (1i64 << 30) as f64;
    let values = bias.to_f32s().unwrap_or_default();
    if weight.points.len() == 1 {
        let input = f64::from(inputs.first().copied().unwrap_or(1.0));
        let largest = values.iter().fold(0f64, |m, &b| m.max(f64::from(b).abs()));
        enlarge(&mut weight.points[0], &mut weight.divisors[0], largest / LIMIT / input);
        return vec![(input * f64::from(weight.points[0].scale)) as f32; values.len()];
    }
    let pairs = values.iter().zip(weight.points.iter_mut().zip(weight.divisors.iter_mut()));
    pairs
        .enumerate()
        .map(|(i, (&b, (p, d)))| {
            let input = f64::from(inputs.get(i).or(inputs.first()).copied().unwrap_or(1.0));
            enlarge(p, d, f64::from(b).abs() / LIMIT / input);
            (input * f64::from(p.scale)) as f32
        })
        .collect()
}

fn enlarge(p: &mut ScalePoint, divisor: &mut f32, least: f64) {
    if f64::from(p.scale) < least {
        // Not all formulas divide by the scale, but all by something in proportion to it.
        let is_scale = *divisor == p.scale;
        *divisor = if is_scale { least as f32 } else { (f64::from(*divisor) * least / f64::from(p.scale)) as f32 };
        p.scale = least as f32;
    }
}

impl WeightParams {
    /// The parameters for a weight, with a scale for each index of `axis`, or one in all.
    pub fn new(exec: &Exec, w: &Tensor, scheme: WeightScheme, axis: Option<usize>) -> WeightParams {
        params(exec, w, scheme, axis)
    }

    /// The weight as a tensor of codes: `saturate(round(w / scale) + zero_point)` with the formula's rounding, or as samples
    /// rounded it.
    ///
    /// # Errors
    /// Never for a weight that the parameters were made for.
    pub fn tensor(&self, exec: &Exec, w: &Tensor) -> Result<Tensor, WeightError> {
        if let Some(rounded) = self.rounded.as_ref().filter(|r| r.codes.shape() == w.shape()) {
            return Ok(rounded.codes.clone());
        }
        let values = w.to_f32s()?;
        // Scales put every weight within the codes in use, so that saturating at the type's ends is enough.
        let plain = self.scheme.formula.is_plain() && self.scheme.bits.is_none();
        match self.scheme.format {
            NumberFormat::Int8 if plain => self.kernel::<i8>(exec, &values, w.shape()),
            NumberFormat::Uint8 if plain => self.kernel::<u8>(exec, &values, w.shape()),
            NumberFormat::Int16 if plain => self.kernel::<i16>(exec, &values, w.shape()),
            NumberFormat::Uint16 if plain => self.kernel::<u16>(exec, &values, w.shape()),
            _ => self.coded(&values, w.shape()),
        }
    }

    fn kernel<T: Quantized + Element>(
        &self,
        exec: &Exec,
        values: &[f32],
        dims: &[usize],
    ) -> Result<Tensor, WeightError> {
        let zero_points: Vec<i32> = self.points.iter().map(|p| p.zero_point).collect();
        let params = QuantScales { scales: &self.divisors, zero_points: &zero_points, shape: split(dims, self.axis) };
        let mut codes = vec![T::default(); values.len()];
        quantize(exec, values, &mut codes, &params)?;
        Ok(Tensor::new(dims, codes)?)
    }

    /// Value by value, for the formats and roundings that have no kernel.
    fn coded(&self, values: &[f32], dims: &[usize]) -> Result<Tensor, WeightError> {
        let [_, channels, inner] = split(dims, self.axis);
        let dtype = self.scheme.format.dtype();
        let code = |(i, &x): (usize, &f32)| {
            let c = i / inner.max(1) % channels.max(1);
            let (d, p) = (self.divisors[c], self.points[c]);
            if self.scheme.format.is_float() {
                i32::from(minifloat::encode(dtype, x / d, true))
            } else {
                self.scheme.code(x, d, p.zero_point)
            }
        };
        self.codes(dims, values.iter().enumerate().map(code))
    }

    /// Codes as a tensor of the scheme's type.
    pub(super) fn codes(&self, dims: &[usize], codes: impl Iterator<Item = i32>) -> Result<Tensor, WeightError> {
        let dtype = self.scheme.format.dtype();
        Ok(match dtype {
            DType::I16 => Tensor::new(dims, codes.map(|c| c as i16).collect::<Vec<_>>())?,
            DType::U16 => Tensor::new(dims, codes.map(|c| c as u16).collect::<Vec<_>>())?,
            _ if dtype.is_packed() => Tensor::from_codes(dtype, dims, &codes.map(|c| c as u8).collect::<Vec<_>>())?,
            _ => Tensor::from_bytes(dtype, dims, codes.map(|c| c as u8).collect::<Vec<_>>())?,
        })
    }

    /// Scales and zero points by name of their ONNX inputs: scalars, or vectors along the axis.
    pub fn tensors(&self) -> (Tensor, Tensor) {
        let scales: Vec<f32> = self.points.iter().map(|p| p.scale).collect();
        let zeros: Vec<i32> = self.points.iter().map(|p| p.zero_point).collect();
        let shape: Vec<usize> = if self.axis.is_some() { vec![scales.len()] } else { Vec::new() };
        let zeros = self.scheme.format.zero_points(&shape, &zeros);
        let scales = Tensor::new(shape, scales);
        (scales.unwrap_or_else(|_| Tensor::scalar(1f32)), zeros.unwrap_or_else(|_| Tensor::scalar(0u8)))
    }
}

impl BiasParams {
    /// The bias as int32 codes, `round_half_even(b / scale)` or as the scheme has it.
    pub fn quantize(&self, bias: &Tensor) -> Vec<i32> {
        if let Some(codes) = &self.codes {
            return codes.clone();
        }
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
        let scales = fit_bias(&[0.01], &mut p, &b);
        let codes = BiasParams { scales: scales.clone(), per_channel: true, codes: None }.quantize(&b);
        for (c, s) in codes.iter().zip(&scales) {
            assert!((f64::from(*c) * f64::from(*s) - 100.0).abs() < 1e-3, "{c} * {s}");
            assert!(c.abs() <= 1 << 30);
        }
    }
}
