//! Dynamic quantization: int8 weights, and activations that find their range at run time.
//!
//! With one scale per token each row along the last axis has the range of its own elements and
//! 0: `scale = (max − min) / 255`, `zero = round(−min / scale)`, the formula of ONNX DynamicQuantizeLinear, by row. The
//! rows become uint8 by a QuantizeLinear whose block is the whole row, and the product is
//! `(MatMulInteger(x, w) − zero · column_sums(w)) · scale · scale_w` in standard operators, because the zero point of
//! MatMulInteger is one for all rows in ONNX Runtime. With one scale per tensor it is DynamicQuantizeLinear →
//! MatMulInteger (or ConvInteger) → Cast → Mul, as ONNX Runtime's `quantize_dynamic` writes it and as ONNX Runtime fuses.
//! The two products of attention, of activations both, are those of [`attention`]; an LSTM is an operator of ONNX Runtime ([`lstm`]).

mod attention;
mod lstm;
mod recurrent;
mod weights;
mod write;

pub(crate) use weights::transpose_bytes;

use narrowbit_ir::{Model, Node, NodeId};
use narrowbit_kernels::Exec;

use crate::approach::{Approach, ApproachError, AttentionProducts, Granularity};
use crate::options::{Matcher, QuantOptions};
use crate::parallel::in_parallel;
use crate::plan::{Kind, Layout, QuantPlan, Reason, weight_params};
use crate::qdq::{self, QdqError};
use crate::quantize::{Converted, NodeFate, QuantizeError, facts};
use crate::scheme::{ActivationScheme, WeightScheme};
use crate::select::{Selection, select};
use attention::Attention;

/// Operator types that are quantized unless the user names some.
const USUAL: [&str; 3] = ["MatMul", "Gemm", "Gather"];
/// The longest sum of products of two 8-bit codes that 32 bits hold for certain.
const DEEPEST: usize = (i32::MAX / (255 * 255)) as usize;

/// What is dynamic in a graph.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    found: Selection,
    jobs: Vec<Job>,
    tables: Vec<(NodeId, WeightScheme)>,
    attentions: Vec<Attention>,
    /// LSTMs, whose products become those of integers.
    lstms: Vec<(NodeId, WeightScheme)>,
    /// Other recurrent operators, whose weights become integers, and which go on computing on floats.
    recurrent: Vec<(NodeId, WeightScheme)>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Quantizes a sanitized model in place.
///
/// # Errors
/// When the settings can't be written, or the model is quantized already or holds nothing of the kind.
pub(crate) fn quantize(model: &mut Model, options: &QuantOptions, exec: &Exec) -> Result<Converted, QuantizeError> {
    let other = |s: &ActivationScheme| *s != ActivationScheme::default();
    if other(&options.activations) || options.overrides.iter().filter_map(|o| o.activations.as_ref()).any(other) {
        return Err(ApproachError::Activations.into());
    }
    options.check_dynamic()?;
    let (found, warnings) = select_products(model, options)?;
    let mut chosen = of_selection(model, found, options)?;
    chosen.warnings.extend(warnings);
    let fates = model.graph.nodes().map(|(id, node)| chosen.fate(id, node)).collect();
    write(model, &chosen, exec)?;
    Ok(Converted { fates, warnings: chosen.warnings, ..Converted::default() })
}

/// Selects the dynamic nodes of a mixture.
///
/// # Errors
/// When the settings of one can't be written.
pub(crate) fn choose(model: &Model, options: &QuantOptions) -> Result<Chosen, QuantizeError> {
    let chosen = of_selection(model, select(model, options, Approach::Dynamic, &USUAL)?, options)?;
    let stored = chosen.tables.iter().chain(&chosen.lstms).chain(&chosen.recurrent).map(|t| t.1);
    let schemes = chosen.jobs.iter().map(|j| j.scheme).chain(stored);
    schemes.into_iter().try_for_each(|s| s.check_dynamic())?;
    Ok(chosen)
}

fn of_selection(model: &Model, mut found: Selection, options: &QuantOptions) -> Result<Chosen, QuantizeError> {
    drop_deep(model, &mut found);
    let matcher = Matcher::new(&options.overrides)?;
    let jobs: Vec<Job> =
        found.products.iter().map(|&id| job(model, &matcher, options, id)).collect::<Result<_, _>>()?;
    let needed = if jobs.iter().any(|j| j.granularity == Granularity::Token) { 21 } else { 13 };
    if model.opset() < needed && !jobs.is_empty() {
        return Err(ApproachError::Opset(model.opset(), needed).into());
    }
    let own = |a: &Attention| matcher.of(model.graph.node(a.scores)).find_map(|o| o.dynamic);
    let on_integers = |a: &Attention| own(a).unwrap_or(options.dynamic).attention == AttentionProducts::Int8;
    let mut attentions = attention::find(&model.graph, &facts(model)?, &found);
    attentions.retain(on_integers);
    for a in &attentions {
        found.reasons.remove(&a.scores);
        found.reasons.remove(&a.values);
    }
    let scheme = |id: NodeId| WeightScheme {
        per_channel: false,
        ..matcher.of(model.graph.node(id)).find_map(|o| o.weights).unwrap_or(options.weights)
    };
    let tables = found.tables.iter().map(|&id| (id, scheme(id))).collect();
    let own = |id: NodeId| matcher.of(model.graph.node(id)).find_map(|o| o.weights).unwrap_or(options.weights);
    let (mut lstms, mut recurrent, mut whys) = (Vec::new(), Vec::new(), Vec::new());
    for &id in &found.recurrent {
        let (node, scheme) = (model.graph.node(id), own(id));
        let dynamic = matcher.of(node).find_map(|o| o.dynamic).unwrap_or(options.dynamic);
        match lstm::check(&model.graph, node, &scheme, dynamic.lstm) {
            Ok(()) => lstms.push((id, scheme)),
            Err(why) => {
                recurrent.push((id, scheme));
                whys.push((id, why));
            }
        }
    }
    let warnings = recurrent::warnings(&model.graph, &whys);
    Ok(Chosen { found, jobs, tables, attentions, lstms, recurrent, warnings })
}

/// Rewrites what was chosen in a graph whose nodes are still those that it was chosen in.
///
/// # Errors
/// When the graph can't be rewritten.
pub(crate) fn write(model: &mut Model, chosen: &Chosen, exec: &Exec) -> Result<(), QuantizeError> {
    tables(model, &chosen.tables, exec)?;
    lstm::write(model, &chosen.lstms, exec)?;
    recurrent::write(model, &chosen.recurrent, exec)?;
    let weights = weights::make(&model.graph, &chosen.jobs, exec).map_err(QdqError::from)?;
    Ok(write::products(model, &chosen.jobs, &weights, &chosen.attentions)?)
}

impl Chosen {
    /// What becomes of a node.
    pub fn fate(&self, id: NodeId, node: &Node) -> NodeFate {
        let reason = self.found.reasons.get(&id).copied();
        if let Some((_, scheme)) = self.recurrent.iter().find(|(n, _)| *n == id) {
            return NodeFate { stored: Some(scheme.format.name().to_owned()), ..NodeFate::new(node, None) };
        }
        NodeFate { integer: reason.is_none(), ..NodeFate::new(node, reason) }
    }
}

/// The usual products; convolutions, whose samples share a range, only where there is nothing else, and with a warning.
fn select_products(model: &Model, options: &QuantOptions) -> Result<(Selection, Vec<String>), QuantizeError> {
    match select(model, options, Approach::Dynamic, &USUAL)?.filled(model) {
        Err(QuantizeError::Nothing(why)) if options.op_types.is_empty() => {
            let all = [&USUAL[..], &["Conv"]].concat();
            let found = select(model, options, Approach::Dynamic, &all)?.filled(model);
            let found = found.map_err(|_| QuantizeError::Nothing(why))?;
            let text = "the model has no products but convolutions, which therefore are quantized (ConvInteger): all samples of a run share a range, and --approach static is faster";
            Ok((found, vec![text.to_owned()]))
        }
        other => Ok((other?, Vec::new())),
    }
}

/// A product to rewrite.
#[derive(Debug, Clone, Copy)]
struct Job {
    node: NodeId,
    granularity: Granularity,
    scheme: WeightScheme,
    /// Whether it is a convolution.
    conv: bool,
    /// Whether the weight has its output channels first and the sum last (Gemm with `transB`).
    transposed: bool,
}

fn job(model: &Model, matcher: &Matcher, options: &QuantOptions, id: NodeId) -> Result<Job, ApproachError> {
    let node = model.graph.node(id);
    let conv = node.op.name() == "Conv";
    let scheme = matcher.of(node).find_map(|o| o.weights).unwrap_or(options.weights);
    if conv && scheme.per_channel && !scheme.symmetric {
        return Err(ApproachError::ConvZeroPoints);
    }
    let dynamic = matcher.of(node).find_map(|o| o.dynamic).unwrap_or(options.dynamic);
    // The windows of a convolution overlap: a row of the product has no range of its own.
    let granularity = if conv { Granularity::Tensor } else { dynamic.granularity };
    Ok(Job { node: id, granularity, scheme, conv, transposed: is_transposed(node) })
}

fn is_transposed(node: &Node) -> bool {
    node.op.name() == "Gemm" && node.op.attrs().int_or("transB", 0).is_ok_and(|t| t != 0)
}

/// Leaves products float whose sums might not fit in 32 bits.
fn drop_deep(model: &Model, found: &mut Selection) {
    let deep = |&id: &NodeId| {
        let (node, w) = (model.graph.node(id), model.graph.const_input(id, 1));
        w.is_some_and(|w| match node.op.name() {
            "Conv" => w.shape()[1..].iter().product::<usize>() > DEEPEST,
            _ => w.shape()[usize::from(is_transposed(node))] > DEEPEST,
        })
    };
    let (out, kept): (Vec<NodeId>, Vec<NodeId>) = found.products.iter().copied().partition(|id| deep(id));
    found.products = kept;
    found.reasons.extend(out.into_iter().map(|id| (id, Reason::Form)));
}

/// Tables are stored in 8 bits as in static quantization: one scale, dequantized behind the Gather.
fn tables(model: &mut Model, tables: &[(NodeId, WeightScheme)], exec: &Exec) -> Result<(), QuantizeError> {
    let graph = &model.graph;
    let jobs: Vec<_> =
        tables.iter().filter_map(|&(id, scheme)| Some((id, graph.const_input(id, 0)?, scheme))).collect();
    let params = in_parallel(exec, &jobs, |(_, table, scheme)| weight_params(exec, table, *scheme, None));
    let mut layout = Layout::default();
    layout.kinds.extend(jobs.iter().map(|(id, ..)| (*id, Kind::Embedding)));
    let weights = jobs.iter().zip(params).map(|((id, ..), p)| ((*id, 0), p)).collect();
    let plan = QuantPlan { weights, ..QuantPlan::of_layout(layout) };
    let opset = model.opset();
    Ok(qdq::insert(&mut model.graph, &plan, opset, exec)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use narrowbit_ir::{interp, text};
    use narrowbit_kernels::Isa;
    use narrowbit_ops::Registry;
    use narrowbit_tensor::Tensor;

    use super::*;
    use crate::approach::DynamicOptions;

    const TEXT: &str = r#"model opset=21 graph "g" {
        input %x: f32[n, t, 8] const %w: f32[8, 4] = random(1) const %v: f32[3, 4] = random(2)
        const %b: f32[3] = [1, 2, 3] const %k: f32[2, 1, 3, 3] = random(3) const %cb: f32[2] = [1, -1]
        %m = MatMul(%x, %w) @"m" output %m
        input %g: f32[n, 4] %y = Gemm(%g, %v, %b) {transB=1} @"g" output %y
        input %p: f32[n, 1, 5, 5] %c = Conv(%p, %k, %cb) {pads=[1, 1, 1, 1]} @"c" output %c
    }"#;

    fn exec() -> Exec {
        Exec::new(Isa::detect(), 2)
    }

    fn options(granularity: Granularity, types: &[&str]) -> QuantOptions {
        QuantOptions {
            approach: Approach::Dynamic,
            dynamic: DynamicOptions { granularity, ..DynamicOptions::default() },
            op_types: types.iter().map(ToString::to_string).collect(),
            ..QuantOptions::default()
        }
    }

    fn quantized(options: &QuantOptions) -> (Model, Converted) {
        let mut model = text::parse_model(TEXT, &Registry).unwrap();
        let done = crate::quantize::convert(&mut model, options, &exec()).unwrap();
        (model, done)
    }

    /// Rows of very different sizes.
    fn inputs() -> Vec<Tensor> {
        let row = |r: usize, k: usize| ((r * 31 + k * 17) % 13) as f32 - 5.0;
        let sized = |n: usize, columns: usize| -> Vec<f32> {
            (0..n).map(|i| row(i / columns, i % columns) * 10f32.powi((i / columns) as i32 % 4)).collect()
        };
        vec![
            Tensor::new([2, 3, 8], sized(48, 8)).unwrap(),
            Tensor::new([2, 4], sized(8, 4)).unwrap(),
            Tensor::new([2, 1, 5, 5], sized(50, 5)).unwrap(),
        ]
    }

    fn count(model: &Model, op: &str) -> usize {
        model.graph.nodes().filter(|(_, n)| n.op.name() == op).count()
    }

    /// By row, the largest error over the largest magnitude.
    fn errors(float: &Tensor, got: &Tensor, columns: usize) -> Vec<f32> {
        let (f, g) = (float.to_f32s().unwrap(), got.to_f32s().unwrap());
        let rows = f.chunks(columns).zip(g.chunks(columns));
        rows.map(|(f, g)| {
            let top = f.iter().fold(0f32, |m, v| m.max(v.abs()));
            f.iter().zip(g).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / top
        })
        .collect()
    }

    #[test]
    fn keeps_the_results_of_every_row_with_a_scale_per_token() {
        let float = text::parse_model(TEXT, &Registry).unwrap();
        let want = interp::run_tensors(&float.graph, &inputs()).unwrap();
        let (model, done) = quantized(&options(Granularity::Token, &["MatMul", "Gemm", "Conv"]));
        assert_eq!(done.fates.iter().filter(|f| f.integer).count(), 3);
        assert_eq!([count(&model, "MatMulInteger"), count(&model, "ConvInteger")], [2, 1]);
        assert_eq!(count(&model, "DynamicQuantizeLinear"), 1, "only the convolution has a scale per tensor");
        let got = interp::run_tensors(&model.graph, &inputs()).unwrap();
        // A row of 8 with 8 bits on both sides: half a step of each is 1/510 and 1/254 of the extremes.
        for (i, columns) in [(0, 4), (1, 3)] {
            for e in errors(&want[i], &got[i], columns) {
                assert!(e < 0.03, "output {i}: {:?}", errors(&want[i], &got[i], columns));
            }
        }
        assert_eq!(want[2].shape(), got[2].shape());
        let names = |m: &Model| m.graph.outputs().iter().map(|&v| m.graph.value(v).name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&model), names(&float));
    }

    #[test]
    fn loses_small_rows_with_a_scale_per_tensor() {
        let float = text::parse_model(TEXT, &Registry).unwrap();
        let want = interp::run_tensors(&float.graph, &inputs()).unwrap();
        let (model, _) = quantized(&options(Granularity::Tensor, &["MatMul", "Gemm", "Conv"]));
        assert_eq!(count(&model, "DynamicQuantizeLinear"), 3);
        assert_eq!(count(&model, "QuantizeLinear"), 0);
        let got = interp::run_tensors(&model.graph, &inputs()).unwrap();
        let rows = errors(&want[0], &got[0], 4);
        assert!(rows.iter().any(|&e| e > 0.1), "{rows:?}");
        assert!(rows.iter().any(|&e| e < 0.03), "{rows:?}");
    }

    #[test]
    fn finds_the_same_codes_as_the_formula() {
        let (model, _) = quantized(&options(Granularity::Token, &["MatMul"]));
        let mut seen: BTreeMap<String, Tensor> = BTreeMap::new();
        let data: Vec<_> = inputs().into_iter().map(narrowbit_ir::Datum::Tensor).collect();
        interp::run_observed(&model.graph, &data, &mut |_, v, d| {
            if let narrowbit_ir::Datum::Tensor(t) = d {
                seen.insert(model.graph.value(v).name.clone(), t.clone());
            }
        })
        .unwrap();
        // Row 0 is 0·17, 1·17, 2·17 … mod 13, less 5: −5, −1, 3, 7, −2, 2, 6, −3.
        let scale = seen["x_token_scale"].to_f32s().unwrap()[0];
        assert_eq!(scale, 12.0 / 255.0);
        assert_eq!(seen["x_token_zero_point"].to_i64s().unwrap()[0], 106); // round(5 · 255 / 12) = 106.25
        let codes = seen["x_token_codes"].to_i64s().unwrap();
        assert_eq!(codes[..4], [0, 85, 170, 255]); // 106 − 106.25, 106 − 21.25, 106 + 63.75, 106 + 148.75 rounded
    }

    #[test]
    fn leaves_zero_rows_at_zero() {
        let (model, _) = quantized(&options(Granularity::Token, &["MatMul"]));
        let mut fed = inputs();
        fed[0] = Tensor::new([1, 1, 8], vec![0f32; 8]).unwrap();
        let got = interp::run_tensors(&model.graph, &fed).unwrap();
        assert_eq!(got[0].to_f32s().unwrap().as_ref(), [0.0; 4]);
    }

    #[test]
    fn refuses_other_activations_and_old_operator_sets() {
        let mut o = options(Granularity::Token, &["MatMul"]);
        let mut old = text::parse_model(&TEXT.replace("opset=21", "opset=17"), &Registry).unwrap();
        let of = |m: &mut Model, o: &QuantOptions| crate::quantize::convert(m, o, &exec()).unwrap_err().to_string();
        assert!(of(&mut old, &o).contains("opset 17"));
        o.activations.symmetric = true;
        assert!(of(&mut text::parse_model(TEXT, &Registry).unwrap(), &o).contains("asymmetric uint8"));
        let mut o = options(Granularity::Tensor, &["Conv"]);
        o.weights.symmetric = false;
        assert!(of(&mut text::parse_model(TEXT, &Registry).unwrap(), &o).contains("ConvInteger"));
    }

    #[test]
    fn takes_asymmetric_and_unsigned_weights() {
        let float = text::parse_model(TEXT, &Registry).unwrap();
        let want = interp::run_tensors(&float.graph, &inputs()).unwrap();
        for granularity in [Granularity::Token, Granularity::Tensor] {
            let mut o = options(granularity, &["MatMul", "Gemm"]);
            o.weights.symmetric = false;
            o.weights.format = crate::scheme::NumberFormat::Uint8;
            let got = interp::run_tensors(&quantized(&o).0.graph, &inputs()).unwrap();
            let best = errors(&want[0], &got[0], 4).into_iter().fold(1f32, f32::min);
            assert!(best < 0.03, "{granularity:?}: {best}");
        }
    }
}
