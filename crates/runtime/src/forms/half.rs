//! Networks in half precision, computed in float32.
//!
//! Kernels compute in float32. A graph on float16 or bfloat16 tensors is rewritten: its constants are widened where they
//! are packed, its Casts between the two precisions go away, and operators read and make float32. Results differ from
//! the graph's own by the roundings between operators that are not made, and in that nothing overflows between them;
//! ONNX Runtime does the same on processors without such operators.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use narrowbit_ir::infer::{self, Facts};
use narrowbit_ir::{AttrMap, Graph, Node, NodeId, Op, Patch, PatchError, ValueId, ValueType};
use narrowbit_ops::Registry;
use narrowbit_tensor::DType;

use super::OPSET;

/// Operators that mean the same on float32 tensors: their attributes name no type.
const SAME: &[&str] = &[
    "Abs",
    "Add",
    "ArgMax",
    "ArgMin",
    "AveragePool",
    "BatchNormalization",
    "Ceil",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Cos",
    "CumSum",
    "DepthToSpace",
    "Div",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "RMSNormalization",
    "Reciprocal",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Round",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Swish",
    "Tanh",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];

fn is_half(dtype: Option<DType>) -> bool {
    matches!(dtype, Some(DType::F16 | DType::Bf16))
}

/// The graph on float32; `None` where no operator computes in half precision, or one does that has no float32 form.
///
/// # Errors
/// Never for a graph that verifies.
pub fn widen(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    if !mentions_half(graph) {
        return Ok(None);
    }
    let options = infer::Options { max_folded: 0, strict: false };
    let Ok(facts) = infer::infer(graph, &BTreeMap::new(), options) else { return Ok(None) };
    let half = |v: &Option<ValueId>| v.is_some_and(|v| is_half(facts.dtype(v)));
    let touches = |n: &Node| n.inputs.iter().chain(&n.outputs).any(half);
    let touched: Vec<(NodeId, &Node)> = graph.nodes().filter(|(_, n)| touches(n)).collect();
    // Constants behind a Cast are widened where they are packed, as they stand.
    let stored = |n: &Node| n.op.name() == "Cast" && n.input(0).is_some_and(|v| graph.constant(v).is_some());
    if touched.iter().all(|(_, n)| stored(n)) || !touched.iter().all(|(_, n)| has_wide_form(n)) {
        return Ok(None);
    }
    let mut wide = Widener { graph, facts: &facts, patch: Patch::new(graph), stands: BTreeMap::new() };
    wide.inputs()?;
    for (id, node) in touched {
        wide.node(id, node)?;
    }
    wide.replace();
    wide.outputs()?;
    let changed: BTreeSet<ValueId> = graph.values().map(|(v, _)| v).filter(|&v| is_half(facts.dtype(v))).collect();
    let ends: BTreeSet<ValueId> = graph.inputs().iter().copied().collect();
    let mut result = graph.clone();
    result.apply(wide.patch)?;
    for v in changed.into_iter().filter(|v| !ends.contains(v)) {
        if result.get_value(v).is_some() && result.constant(v).is_none() {
            result.set_type(v, ValueType::Unknown);
        }
    }
    Ok(Some(result))
}

/// Whether a value may be in half precision: what would make it is a constant, an input or a Cast.
fn mentions_half(graph: &Graph) -> bool {
    let input = |v: &ValueId| is_half(graph.value(*v).ty.tensor().and_then(|t| t.dtype));
    let cast = |n: &Node| {
        let to = n.op.attrs().int_or("to", 0).ok().and_then(DType::from_onnx);
        n.op.name() == "Cast" && is_half(to)
    };
    let constant = |v: &Option<ValueId>| v.and_then(|v| graph.constant(v)).is_some_and(|t| is_half(Some(t.dtype())));
    graph.inputs().iter().any(input) || graph.nodes().any(|(_, n)| cast(n) || n.inputs.iter().any(constant))
}

fn has_wide_form(node: &Node) -> bool {
    let name = node.op.name();
    node.op.domain().is_empty() && node.op.bodies().is_empty() && (name == "Cast" || SAME.contains(&name))
}

struct Widener<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    patch: Patch,
    /// The float32 value that stands for a value, where it is another one.
    stands: BTreeMap<ValueId, ValueId>,
}

fn cast(to: DType) -> Result<Arc<dyn Op>, PatchError> {
    let made = Registry::make("Cast", OPSET, AttrMap::new().with("to", i64::from(to.to_onnx())));
    made.map_err(|e| PatchError::Unknown(e.to_string()))
}

impl Widener<'_> {
    fn half(&self, v: ValueId) -> bool {
        is_half(self.facts.dtype(v))
    }

    fn stand(&self, v: ValueId) -> ValueId {
        self.stands.get(&v).copied().unwrap_or(v)
    }

    /// A float32 form of an input or a constant.
    fn widened(&mut self, v: ValueId) -> Result<ValueId, PatchError> {
        let name = format!("{}_wide", self.graph.value(v).name);
        let wide = self.patch.node(&name, cast(DType::F32)?, &[Some(v)]);
        self.stands.insert(v, wide);
        Ok(wide)
    }

    fn inputs(&mut self) -> Result<(), PatchError> {
        for &v in self.graph.inputs() {
            if self.half(v) {
                self.widened(v)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, id: NodeId, node: &Node) -> Result<(), PatchError> {
        for (i, v) in node.inputs.iter().enumerate() {
            let Some(v) = *v else { continue };
            if self.half(v) && self.graph.constant(v).is_some() && !self.stands.contains_key(&v) {
                self.widened(v)?;
            }
            if self.stand(v) != v {
                self.patch.set_input(id, i, Some(self.stand(v)));
            }
        }
        if node.op.name() != "Cast" {
            return Ok(());
        }
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Ok(()) };
        let float = |v: ValueId| self.half(v) || self.facts.dtype(v) == Some(DType::F32);
        if float(x) && float(y) {
            self.stands.insert(y, self.stand(x));
        } else if self.half(y) {
            self.patch.set_op(id, cast(DType::F32)?);
        }
        Ok(())
    }

    /// Lets all nodes read what stands for the values that Casts between the two precisions made.
    fn replace(&mut self) {
        for (&v, &by) in &self.stands {
            for u in self.graph.uses(v) {
                // A Cast that was added reads the value itself; it is no node of the graph.
                self.patch.set_input(u.node, u.input, Some(by));
            }
        }
    }

    /// Gives the outputs their own types and names.
    fn outputs(&mut self) -> Result<(), PatchError> {
        let outputs: BTreeSet<ValueId> = self.graph.outputs().iter().copied().collect();
        for v in outputs {
            let by = self.stand(v);
            let Some(dtype) = self.facts.dtype(v).filter(|_| self.half(v) || by != v) else { continue };
            if self.graph.constant(v).is_some() || self.graph.producer(v).is_none() {
                continue;
            }
            let name = format!("{}_end", self.graph.value(v).name);
            let end = self.patch.node(&name, cast(dtype)?, &[Some(by)]);
            self.patch.set_type(end, self.graph.value(v).ty.clone());
            self.patch.replace(v, end);
            for u in self.graph.uses(v) {
                self.patch.set_input(u.node, u.input, Some(by));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::{interp, text};
    use narrowbit_tensor::Tensor;

    use super::*;

    fn graph(body: &str) -> Graph {
        text::parse_graph(&format!("graph \"g\" {{ {body} }}"), &Registry, 21).unwrap()
    }

    fn names(g: &Graph) -> Vec<&str> {
        g.nodes().map(|(_, n)| n.op.name()).collect()
    }

    #[test]
    fn computes_float16_in_float32_with_types_and_names_of_the_ends() {
        let g = graph(
            "input %x: f32[2, 4] const %w: f16[4, 3] = random(1) const %b: f16[3] = random(2)
             %h = Cast(%x) {to=10} %m = MatMul(%h, %w) %a = Add(%m, %b) %f = Cast(%a) {to=1} %s = Softmax(%f)
             %t = Cast(%s) {to=10} %u = Mul(%t, %a) output %u output %f",
        );
        let wide = widen(&g).unwrap().unwrap();
        let facts = infer::infer(&wide, &BTreeMap::new(), infer::Options::default()).unwrap();
        let product = wide.nodes().find(|(_, n)| n.op.name() == "MatMul").unwrap().1;
        assert_eq!(facts.dtype(product.output(0).unwrap()), Some(DType::F32));
        let end = |g: &Graph| g.outputs().iter().map(|&v| g.value(v).name.clone()).collect::<Vec<_>>();
        assert_eq!(end(&wide), end(&g));
        let x = Tensor::new([2, 4], (0..8).map(|i| i as f32 * 0.3 - 1.0).collect()).unwrap();
        let (want, got) = (
            interp::run_tensors(&g, std::slice::from_ref(&x)).unwrap(),
            interp::run_tensors(&wide, std::slice::from_ref(&x)).unwrap(),
        );
        for (w, g) in want.iter().zip(&got) {
            assert_eq!((w.dtype(), w.shape()), (g.dtype(), g.shape()));
            let (w, g) = (w.to_f64s().unwrap(), g.to_f64s().unwrap());
            // A few roundings to 11 bits.
            assert!(w.iter().zip(&g).all(|(a, b)| (a - b).abs() < 4e-3), "{w:?} {g:?}");
        }
    }

    #[test]
    fn takes_inputs_in_half_precision_and_casts_of_integers() {
        let g = graph(
            "input %x: bf16[3] input %i: i64[3] %h = Cast(%i) {to=16} %y = Add(%x, %h) %z = Identity(%x)
             output %y output %z",
        );
        let wide = widen(&g).unwrap().unwrap();
        let x = Tensor::from_f32s(DType::Bf16, [3], vec![1.0, 2.5, -3.0]).unwrap();
        let got = interp::run_tensors(&wide, &[x, Tensor::vector(vec![1i64, 2, 3])]).unwrap();
        assert_eq!(got[0].dtype(), DType::Bf16);
        assert_eq!(got[0].to_f64s().unwrap(), [2.0, 4.5, 0.0]);
        assert_eq!(got[1].to_f64s().unwrap(), [1.0, 2.5, -3.0]);
    }

    #[test]
    fn leaves_what_has_no_half_precision_or_no_float32_form() {
        assert!(widen(&graph("input %x: f32[2] %y = Relu(%x) output %y")).unwrap().is_none());
        let stored = graph(
            "input %x: f32[2, 4] const %w: f16[4, 3] = random(1) %f = Cast(%w) {to=1} %y = MatMul(%x, %f) output %y",
        );
        assert!(widen(&stored).unwrap().is_none());
        let other = graph("input %x: f16[2] %y = BitCast(%x) {to=5} output %y");
        assert_eq!(names(&other), ["BitCast"]);
        assert!(widen(&other).unwrap().is_none());
    }
}
