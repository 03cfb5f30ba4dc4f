//! The weights of a plan, rounded by samples ([`crate::gptq`]) with the scales that the plan has.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, NodeId, QuantRole};
use narrowbit_kernels::Exec;
use narrowbit_tensor::minifloat;

use super::weights::{RoundedWeight, WeightError, WeightParams, bias_key};
use super::{Kind, QuantPlan};
use crate::gptq::{self, Columns, Grid, Rounded, Rounder, RoundingError, Weight};
use crate::options::{Matcher, QuantOptions, WeightRounding};
use crate::qdq;
use crate::scheme::WeightScheme;

/// A weight and the nodes and inputs that read it with the same parameters.
struct Shared {
    readers: Vec<(NodeId, usize)>,
    params: WeightParams,
}

/// Gives the plan's weights that the settings say so the codes that err least on the samples.
///
/// # Errors
/// When a sample can't be read or the float model can't be run on it, or the user asks to stop.
pub(super) fn round(
    graph: &Graph,
    plan: &mut QuantPlan,
    matcher: &Matcher,
    options: &QuantOptions,
    rounder: &mut Rounder,
    exec: &Exec,
) -> Result<gptq::Report, RoundingError> {
    let shared = shared(graph, plan, matcher, options);
    let (shared, weights): (Vec<&Shared>, Vec<Weight>) =
        shared.iter().filter_map(|s| Some((s, weight(graph, plan, options, s)?))).unzip();
    let mut codes: BTreeMap<(NodeId, usize), RoundedWeight> = BTreeMap::new();
    let report = gptq::round(graph, &weights, rounder, exec, &mut |i, rounded| {
        let made = made(&shared[i].params, &weights[i], &rounded)?;
        codes.extend(shared[i].readers.iter().map(|&r| (r, made.clone())));
        Ok(())
    })?;
    drop(weights);
    for (reader, rounded) in codes {
        plan.weights.entry(reader).and_modify(|p| p.rounded = Some(rounded));
    }
    Ok(report)
}

/// The weights that are to be rounded by samples.
fn shared(graph: &Graph, plan: &QuantPlan, matcher: &Matcher, options: &QuantOptions) -> Vec<Shared> {
    let mut found: Vec<Shared> = Vec::new();
    let mut places: BTreeMap<qdq::SharedKey, usize> = BTreeMap::new();
    for (&(id, input), params) in &plan.weights {
        if plan.layout.kinds.get(&id) != Some(&Kind::Product) {
            continue;
        }
        let own = matcher.of(graph.node(id)).find_map(|o| o.weight_rounding);
        let Some(constant) = graph.node(id).input(input).and_then(|v| graph.const_id(v)) else { continue };
        if options.rounding_of(own, &params.scheme) != WeightRounding::Gptq {
            continue;
        }
        let place = *places.entry(qdq::key(constant, params)).or_insert_with(|| {
            found.push(Shared { readers: Vec::new(), params: params.clone() });
            found.len() - 1
        });
        found[place].readers.push((id, input));
    }
    found
}

/// What rounding by samples would give the weight of a node with a scheme whose scales lie along `axis`.
///
/// # Errors
/// When a sample can't be read or the float model can't be run on it, or the user asks to stop.
pub fn gain(
    graph: &Graph,
    id: NodeId,
    (scheme, axis): (WeightScheme, Option<usize>),
    rounder: &mut Rounder,
    exec: &Exec,
) -> Result<gptq::Report, RoundingError> {
    let QuantRole::Weighted { weight, .. } = graph.node(id).op.quant() else { return Ok(gptq::Report::default()) };
    let Some(tensor) = graph.const_input(id, weight) else { return Ok(gptq::Report::default()) };
    let params = WeightParams::new(exec, tensor, scheme, axis);
    let columns = Columns::of(graph, id).into_iter().collect();
    let (node, grid) = (graph.node(id).name.clone(), Box::new(Points::new(&params)));
    gptq::round(graph, &[Weight { node, columns, tensor, grid, centred: false }], rounder, exec, &mut |_, _| Ok(()))
}

/// What is rounded.
fn weight<'a>(graph: &'a Graph, plan: &QuantPlan, options: &QuantOptions, shared: &'a Shared) -> Option<Weight<'a>> {
    let &(id, input) = shared.readers.first()?;
    let all: Option<Vec<Columns>> = shared.readers.iter().map(|&(id, _)| Columns::of(graph, id)).collect();
    // Products that read one tensor as matrices of different shapes have no inputs in common.
    let alike = |c: &Vec<Columns>| c.iter().all(|other| other.same_layout(&c[0]));
    let biased = bias_key(graph, &plan.layout, id)
        .is_some_and(|key| plan.biases.contains_key(&key) || plan.float_biases.contains_key(&key));
    Some(Weight {
        node: graph.node(id).name.clone(),
        columns: all.filter(alike).unwrap_or_default(),
        tensor: graph.const_input(id, input)?,
        grid: Box::new(Points::new(&shared.params)),
        centred: options.bias_correction && shared.readers.len() == 1 && biased,
    })
}

/// Codes in the order of the tensor, and the mean errors of the output channels.
fn made(params: &WeightParams, weight: &Weight, rounded: &Rounded) -> Result<RoundedWeight, WeightError> {
    let c = &weight.columns[0];
    let values = weight.tensor.to_f32s()?;
    let mut codes = vec![0i32; values.len()];
    let mut errors = vec![0f64; c.groups * c.n];
    let points = Points::new(params);
    for (row, error) in errors.iter_mut().enumerate() {
        let (group, n) = (row / c.n, row % c.n);
        for (k, (&code, mean)) in
            rounded.codes[row * c.k..][..c.k].iter().zip(&rounded.means[group * c.k..]).enumerate()
        {
            let place = c.place(group, n, k);
            codes[place] = code;
            *error += (f64::from(points.value(row, code)) - f64::from(values[place])) * mean;
        }
    }
    let codes = params.codes(weight.tensor.shape(), codes.into_iter())?;
    Ok(RoundedWeight { codes, mean_errors: (weight.columns.len() == 1).then_some(errors) })
}

/// The values that a scheme's codes stand for, by output channel.
struct Points<'a> {
    params: &'a WeightParams,
    /// The codes in use.
    range: (i32, i32),
    /// fp8: the value of each code.
    table: Vec<f32>,
}

impl<'a> Points<'a> {
    fn new(params: &'a WeightParams) -> Points<'a> {
        let format = params.scheme.format;
        let table = match format.is_float() {
            true => (0..=u8::MAX).map(|c| minifloat::decode(format.dtype(), c)).collect(),
            false => Vec::new(),
        };
        Points { params, range: params.scheme.code_range(), table }
    }

    fn channel(&self, output: usize) -> usize {
        if self.params.points.len() > 1 { output } else { 0 }
    }

    /// What DequantizeLinear makes of a code.
    fn value(&self, output: usize, code: i32) -> f32 {
        let point = self.params.points[self.channel(output)];
        match self.table.get(code as usize) {
            Some(v) => v * point.scale,
            None => (code - point.zero_point) as f32 * point.scale,
        }
    }
}

impl Grid for Points<'_> {
    fn round(&self, _: usize, first: usize, x: &[f32], codes: &mut [i32], values: &mut [f32]) {
        let scheme = &self.params.scheme;
        for (i, ((&x, code), value)) in x.iter().zip(codes).zip(values).enumerate() {
            let channel = self.channel(first + i);
            let divisor = self.params.divisors[channel];
            *code = match self.table.is_empty() {
                // Errors that are handed on may lead beyond the codes in use.
                true => {
                    scheme.code(x, divisor, self.params.points[channel].zero_point).clamp(self.range.0, self.range.1)
                }
                false => i32::from(minifloat::encode(scheme.format.dtype(), x / divisor, true)),
            };
            *value = self.value(first + i, *code);
        }
    }
}
