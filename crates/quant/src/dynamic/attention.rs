//! Attention on integers whose ranges are found at run time: both products of `softmax(q · kᵀ · factor + mask) · v`.
//!
//! Queries, keys and values have a scale each (DynamicQuantizeLinear). Scores are floats again before the softmax. A row of its
//! results is divided by the greatest of them, which then multiplies the row of the result: so the fixed range [0, 1] of uint8 fits each
//! row, and a long one of small weights keeps its 8 bits.

use std::collections::BTreeSet;

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{AttrMap, Graph, Node, NodeId, OpError, ValueId};
use narrowbit_tensor::{DType, Tensor};

use super::DEEPEST;
use super::write::{Codes, Writer};
use crate::plan::Reason;
use crate::select::Selection;

/// Nodes from a softmax back to its product: an exporter's factor and masks between them.
const MOST: usize = 5;

/// Two products of activations and the softmax between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    /// Queries and keys.
    pub scores: NodeId,
    softmax: NodeId,
    /// The softmax's results and values.
    pub values: NodeId,
}

/// The attentions whose products were selected, but have no constant weight. Extents that are known must fit 32-bit sums.
pub(super) fn find(graph: &Graph, facts: &Facts, found: &Selection) -> Vec<Attention> {
    let free = |id: NodeId| {
        let node = graph.node(id);
        node.op.name() == "MatMul" && found.reasons.get(&id) == Some(&Reason::WeightNotConstant) && fits(facts, node)
    };
    let softmax = |(id, node): (NodeId, &Node)| {
        let y = node.output(0).filter(|&y| node.op.name() == "Softmax" && !graph.is_output(y))?;
        let read = graph.only_use(y).filter(|u| u.input == 0 && free(u.node))?;
        let scores = maker(graph, node.input(0)?, MOST).filter(|&id| free(id))?;
        is_last(facts, node).then_some(Attention { scores, softmax: id, values: read.node })
    };
    // Each product once: two softmaxes may read one.
    let mut taken = BTreeSet::new();
    let once = |a: &Attention| a.scores != a.values && taken.insert(a.scores) && taken.insert(a.values);
    graph.nodes().filter_map(softmax).filter(once).collect()
}

/// The product behind the additions and factors of scores, `left` nodes away at the most.
fn maker(graph: &Graph, v: ValueId, left: usize) -> Option<NodeId> {
    let left = left.checked_sub(1)?;
    let (id, _) = graph.producer(v)?;
    let node = graph.node(id);
    let constant = |i: usize| node.input(i).is_some_and(|v| graph.constant(v).is_some());
    match node.op.name() {
        "MatMul" => Some(id),
        "Mul" | "Div" if constant(1) => maker(graph, node.input(0)?, left),
        "Mul" if constant(0) => maker(graph, node.input(1)?, left),
        "Add" => node.inputs.iter().flatten().find_map(|&v| maker(graph, v, left)),
        _ => None,
    }
}

/// Whether the softmax is along the last axis. Its rank, where another axis is counted from the front, must be known.
fn is_last(facts: &Facts, node: &Node) -> bool {
    let axis = node.op.attrs().int_or("axis", -1);
    let rank = node.output(0).and_then(|v| facts.shape(v)).map(<[_]>::len);
    axis == Ok(-1) || rank.is_some_and(|r| axis == Ok(r as i64 - 1))
}

/// Whether the sums of a product fit in 32 bits, as far as its extents are known.
fn fits(facts: &Facts, node: &Node) -> bool {
    let depth = node.input(0).and_then(|v| facts.shape(v)?.last()?.as_usize());
    depth.is_none_or(|k| k <= DEEPEST)
}

impl Writer<'_> {
    /// Rewrites both products.
    pub(super) fn attention(&mut self, a: &Attention) -> Result<(), OpError> {
        let (graph, first, second) = (self.graph, self.graph.node(a.scores), self.graph.node(a.values));
        let softmax = graph.node(a.softmax);
        let [Some(q), Some(k), Some(p), Some(v)] = [first.input(0), first.input(1), softmax.output(0), second.input(1)]
        else {
            return Ok(());
        };
        let (Some(scores), Some(y)) = (first.output(0), second.output(0)) else { return Ok(()) };
        let (q, k, v) = (self.behind_transpose(q)?, self.behind_transpose(k)?, self.behind_transpose(v)?);
        let scale = self.node(format!("{}_scales", first.name), "Mul", &[Some(q.scale), Some(k.scale)])?;
        let out = self.integers(&first.name, (q.codes, q.zero), k, scale)?;
        self.patch.replace(scores, out);

        let name = &softmax.name;
        let greatest = self.greatest(&format!("{name}_greatest"), p)?;
        let parts = self.node(format!("{name}_parts"), "Div", &[Some(p), Some(greatest)])?;
        let step = self.shared("weights_scale", Tensor::scalar(1f32 / 255.0));
        let zero = self.shared("weights_zero_point", Tensor::scalar(0u8));
        let codes = self.node(format!("{name}_codes"), "QuantizeLinear", &[Some(parts), Some(step), Some(zero)])?;
        let scale = self.node(format!("{}_scales", second.name), "Mul", &[Some(v.scale), Some(step)])?;
        let sum = self.integers(&second.name, (codes, zero), v, scale)?;
        let out = self.node(format!("{}_rows", second.name), "Mul", &[Some(sum), Some(greatest)])?;
        self.patch.replace(y, out);
        Ok(())
    }

    /// `Cast(MatMulInteger(a, b)) · scale`. Both zero points are there: OpenVINO does not run the operator without the first.
    fn integers(
        &mut self,
        name: &str,
        (a, a_zero): (ValueId, ValueId),
        b: Codes,
        scale: ValueId,
    ) -> Result<ValueId, OpError> {
        let inputs = [a, b.codes, a_zero, b.zero].map(Some);
        let sum = self.node(format!("{name}_quant"), "MatMulInteger", &inputs)?;
        let sum = self.cast(format!("{name}_float"), sum, DType::F32)?;
        self.node(format!("{name}_scaled"), "Mul", &[Some(sum), Some(scale)])
    }

    /// The greatest element of each row.
    fn greatest(&mut self, name: &str, x: ValueId) -> Result<ValueId, OpError> {
        /// The operator set from which on axes are an input.
        const AXES_AS_INPUT: i64 = 18;
        if self.opset >= AXES_AS_INPUT {
            let axes = self.shared("token_axes", Tensor::vector(vec![-1i64]));
            return self.node(name.to_owned(), "ReduceMax", &[Some(x), Some(axes)]);
        }
        let op = self.op("ReduceMax", AttrMap::new().with("axes", narrowbit_ir::Attr::Ints(vec![-1])))?;
        Ok(self.patch.node(name, op, &[Some(x)]))
    }

    /// The codes of an activation. What a Transpose makes is quantized before it: the same codes, of which a quarter of
    /// the bytes is moved.
    fn behind_transpose(&mut self, x: ValueId) -> Result<Codes, OpError> {
        let node = self.graph.producer(x).map(|(id, _)| self.graph.node(id));
        let Some((node, source)) = node.filter(|n| n.op.name() == "Transpose").and_then(|n| Some((n, n.input(0)?)))
        else {
            return self.whole(x);
        };
        if let Some(&found) = self.turned.get(&x) {
            return Ok(found);
        }
        let from = self.whole(source)?;
        let name = format!("{}_codes", self.graph.value(x).name);
        let turned = Codes { codes: self.patch.node(&name, node.op.clone(), &[Some(from.codes)]), ..from };
        self.turned.insert(x, turned);
        Ok(turned)
    }
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::{Model, ValueId, interp, text};
    use narrowbit_kernels::{Exec, Isa};
    use narrowbit_ops::Registry;
    use narrowbit_tensor::Tensor;

    use crate::approach::{Approach, AttentionProducts, DynamicOptions, Granularity};
    use crate::options::{Override, QuantOptions};

    /// Two heads of 400 tokens: each weight is about 1/400, which is 0 in steps of 1/255.
    const TEXT: &str = r#"graph "g" {
        input %x: f32[1, 400, 8] input %m: f32[1, 1, 1, 400]
        const %w: f32[8, 24] = random(1) const %d: f32[] = [2.0] const %s: i64[4] = [1, 400, 6, 4]
        const %i: i64[3] = [2, 2, 2]
        %p = MatMul(%x, %w) @"qkv" %r = Reshape(%p, %s)
        %q, %k, %v = Split(%r, %i) {axis=2}
        %qt = Transpose(%q) {perm=[0, 2, 1, 3]} %kt = Transpose(%k) {perm=[0, 2, 3, 1]}
        %vt = Transpose(%v) {perm=[0, 2, 1, 3]}
        %a = MatMul(%qt, %kt) @"scores" %b = Div(%a, %d) %c = Add(%b, %m) %e = Softmax(%c) {axis=3} @"softmax"
        %y = MatMul(%e, %vt) @"values" output %y
    }"#;

    fn model(opset: i64) -> Model {
        text::parse_model(&format!("model opset={opset} {TEXT}"), &Registry).unwrap()
    }

    fn options(attention: AttentionProducts, granularity: Granularity) -> QuantOptions {
        QuantOptions {
            approach: Approach::Dynamic,
            dynamic: DynamicOptions { granularity, attention, ..DynamicOptions::default() },
            ..QuantOptions::default()
        }
    }

    fn quantized(mut model: Model, options: &QuantOptions) -> Model {
        crate::quantize::convert(&mut model, options, &Exec::new(Isa::detect(), 2)).unwrap();
        model
    }

    fn count(model: &Model, op: &str) -> usize {
        model.graph.nodes().filter(|(_, n)| n.op.name() == op).count()
    }

    fn run(model: &Model) -> Vec<f32> {
        let mut random = narrowbit_tensor::SplitMix64::new(5);
        let x: Vec<f32> = (0..400 * 8).map(|_| random.normal() as f32 * 0.3 + 0.2).collect();
        let mask = (0..400).map(|i| if i < 380 { 0.0 } else { -10000.0 }).collect::<Vec<f32>>();
        let inputs = [Tensor::new([1, 400, 8], x).unwrap(), Tensor::new([1, 1, 1, 400], mask).unwrap()];
        interp::run_tensors(&model.graph, &inputs).unwrap()[0].to_f32s().unwrap().into_owned()
    }

    #[test]
    fn keeps_long_rows_of_small_weights() {
        let want = run(&model(21));
        let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (opset, granularity) in [(21, Granularity::Token), (21, Granularity::Tensor), (13, Granularity::Tensor)] {
            let got = quantized(model(opset), &options(AttentionProducts::Int8, granularity));
            assert_eq!([count(&got, "MatMul"), count(&got, "MatMulInteger")], [0, 3]);
            // Queries, keys and values are quantized where they are not turned yet.
            let turned: Vec<_> = got.graph.nodes().filter(|(_, n)| n.op.name() == "Transpose").collect();
            let u8s =
                |v: Option<ValueId>| v.and_then(|v| got.graph.producer(v)).map(|(n, _)| got.graph.node(n).op.name());
            assert!(turned.len() == 3 && turned.iter().all(|(_, n)| u8s(n.input(0)) == Some("DynamicQuantizeLinear")));
            for (g, w) in run(&got).iter().zip(&want) {
                // 8 bits of each operand.
                assert!((g - w).abs() < 0.02 * most, "{g} {w} of {most}");
            }
        }
    }

    #[test]
    fn leaves_attention_float_where_it_is_asked_to() {
        let float = quantized(model(21), &options(AttentionProducts::Float, Granularity::Token));
        assert_eq!([count(&float, "MatMul"), count(&float, "MatMulInteger")], [2, 1]);
        let mut o = options(AttentionProducts::Int8, Granularity::Token);
        o.overrides.push(Override { name: Some("values".into()), float: Some(true), ..Override::default() });
        let half = quantized(model(21), &o);
        assert_eq!([count(&half, "MatMul"), count(&half, "MatMulInteger")], [2, 1], "both products or none");
    }

    #[test]
    fn takes_a_product_of_two_softmaxes_once() {
        let twice = TEXT.replace("output %y", "output %y %f = Softmax(%b) %z = MatMul(%f, %vt) output %z");
        let twice = text::parse_model(&format!("model opset=21 {twice}"), &Registry).unwrap();
        let got = quantized(twice, &options(AttentionProducts::Int8, Granularity::Token));
        assert_eq!([count(&got, "MatMul"), count(&got, "MatMulInteger")], [1, 3]);
    }

    #[test]
    fn leaves_other_products_of_activations_float() {
        // A softmax over keys' rows, and one that somebody else reads.
        for (from, to) in [("axis=3", "axis=2"), ("output %y", "output %y output %e"), ("Div(%a, %d)", "Pow(%a, %d)")] {
            let text = format!("model opset=21 {}", TEXT.replace(from, to));
            let other = text::parse_model(&text, &Registry).unwrap();
            let got = quantized(other, &options(AttentionProducts::Int8, Granularity::Token));
            assert_eq!(count(&got, "MatMulInteger"), 1, "{to}");
        }
    }
}
