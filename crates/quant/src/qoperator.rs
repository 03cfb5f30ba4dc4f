//! Turns a QDQ graph into QLinear operators (`--format qoperator`).
//!
//! DequantizeLinear → operator → QuantizeLinear becomes one operator on integers, where ONNX or ONNX
//! Runtime's `com.microsoft` domain has one; what has none stays in QDQ form, which every runtime that reads
//! QLinear operators reads too.

use std::sync::Arc;

use narrowbit_ir::infer;
use narrowbit_ir::{AttrMap, Graph, Model, Node, NodeId, Op, OpError, OpSource, Patch, ValueId, ValueType};
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor};

use crate::qdq::QdqError;

/// The domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Rewrites the model's graph; gives the number of operators that became integer ones.
///
/// # Errors
/// When an edit is refused.
pub fn convert(model: &mut Model) -> Result<usize, QdqError> {
    let opset = model.opset();
    let mut converted = 0;
    loop {
        let graph = &model.graph;
        let found = graph.nodes().find_map(|(id, node)| Converter { graph, opset }.convert(id, node).transpose());
        let Some(patch) = found else { break };
        model.graph.apply(patch?)?;
        converted += 1;
    }
    if model.graph.nodes().any(|(_, n)| n.op.domain() == MICROSOFT) {
        model.opsets.entry(MICROSOFT.into()).or_insert(1);
    }
    // Values between the operators are integers now.
    let inner: Vec<ValueId> = model.graph.nodes().flat_map(|(_, n)| n.outputs.iter().flatten().copied()).collect();
    for v in inner {
        if !model.graph.is_output(v) {
            model.graph.set_type(v, ValueType::Unknown);
        }
    }
    infer::annotate(&mut model.graph).map_err(|e| QdqError::Op(e.error))?;
    Ok(converted)
}

struct Converter<'a> {
    graph: &'a Graph,
    opset: i64,
}

/// An integer tensor with its scale and zero point.
#[derive(Clone, Copy)]
struct Quantized {
    codes: ValueId,
    scale: ValueId,
    zero: ValueId,
}

impl Quantized {
    fn triple(self) -> [Option<ValueId>; 3] {
        [Some(self.codes), Some(self.scale), Some(self.zero)]
    }
}

impl Converter<'_> {
    fn convert(&self, id: NodeId, node: &Node) -> Result<Option<Patch>, QdqError> {
        let Some(rule) = self.rule(id, node) else { return Ok(None) };
        let Some((output, last)) = self.quantized_output(node) else { return Ok(None) };
        let mut patch = Patch::new(self.graph);
        let Some((op, inputs)) = rule(self, node, output, &mut patch)? else { return Ok(None) };
        let name = &node.name;
        let out = patch.node_outputs(&format!("{name}_quant"), op, &inputs, &[Some(&format!("{name}_codes"))]);
        if let Some(out) = out[0] {
            patch.replace(last, out);
        }
        Ok(Some(patch))
    }

    fn rule(&self, _id: NodeId, node: &Node) -> Option<Rule> {
        Some(match node.op.name() {
            "Conv" => conv,
            "MatMul" => matmul,
            "Gemm" => gemm,
            "Add" => |c, n, o, p| binary(c, n, o, p, "QLinearAdd"),
            "Mul" => |c, n, o, p| binary(c, n, o, p, "QLinearMul"),
            "GlobalAveragePool" => |c, n, o, p| unary(c, n, o, p, "QLinearGlobalAveragePool"),
            "AveragePool" => |c, n, o, p| unary(c, n, o, p, "QLinearAveragePool"),
            "Sigmoid" => |c, n, o, p| unary(c, n, o, p, "QLinearSigmoid"),
            "LeakyRelu" => |c, n, o, p| unary(c, n, o, p, "QLinearLeakyRelu"),
            "Concat" => concat,
            "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" | "MaxPool" | "Slice" => movement,
            _ => return None,
        })
    }

    /// What a value is dequantized from.
    fn input(&self, node: &Node, i: usize) -> Option<Quantized> {
        let (n, _) = self.graph.producer(node.input(i)?)?;
        let dq = self.graph.node(n);
        let whole = dq.op.name() == "DequantizeLinear" && dq.op.attrs().get("block_size").is_none();
        let q = Quantized { codes: dq.input(0)?, scale: dq.input(1)?, zero: dq.input(2)? };
        whole.then_some(q)
    }

    /// Scale and zero point of the only reader, which quantizes, through a Relu or Clip whose bound the zero
    /// point takes over; and the quantized value.
    fn quantized_output(&self, node: &Node) -> Option<(Quantized, ValueId)> {
        let mut out = node.output(0)?;
        let mut reader = self.graph.node(self.graph.only_use(out)?.node);
        let clamps = matches!(reader.op.name(), "Relu" | "Clip");
        if clamps {
            out = reader.output(0)?;
            reader = self.graph.node(self.graph.only_use(out)?.node);
        }
        if reader.op.name() != "QuantizeLinear" || reader.input(0) != Some(out) {
            return None;
        }
        let q = Quantized { codes: reader.output(0)?, scale: reader.input(1)?, zero: reader.input(2)? };
        let zero = self.graph.constant(q.zero)?;
        let least = zero.dtype().int_range().map(|r| r.0 as i64);
        let bounded = zero.to_i64s().ok()?.first().copied() == least;
        (!clamps || bounded).then_some((q, q.codes))
    }

    fn make(&self, domain: &str, name: &str, mut attrs: AttrMap) -> Result<Arc<dyn Op>, OpError> {
        let built = Registry.build(domain, name, if domain.is_empty() { self.opset } else { 1 }, &mut attrs);
        built.unwrap_or_else(|| Err(OpError::Unsupported(format!("operator {name}"))))
    }
}

type Inputs = Vec<Option<ValueId>>;
type Built = Result<Option<(Arc<dyn Op>, Inputs)>, QdqError>;
type Rule = fn(&Converter, &Node, Quantized, &mut Patch) -> Built;

/// The int32 codes of a bias behind its DequantizeLinear; `Err(())` where it has another form.
fn bias(c: &Converter, node: &Node, i: usize) -> Result<Option<ValueId>, ()> {
    if node.input(i).is_none() {
        return Ok(None);
    }
    let codes = c.input(node, i).map(|q| q.codes).ok_or(())?;
    let is_i32 = c.graph.constant(codes).is_some_and(|t| t.dtype() == DType::I32);
    if is_i32 { Ok(Some(codes)) } else { Err(()) }
}

fn conv(c: &Converter, node: &Node, y: Quantized, _: &mut Patch) -> Built {
    let (Some(x), Some(w), Ok(b)) = (c.input(node, 0), c.input(node, 1), bias(c, node, 2)) else { return Ok(None) };
    let mut inputs: Inputs = [x.triple(), w.triple()].concat();
    inputs.extend([Some(y.scale), Some(y.zero)]);
    inputs.extend(b.map(Some));
    Ok(Some((c.make("", "QLinearConv", node.op.attrs())?, inputs)))
}

fn matmul(c: &Converter, node: &Node, y: Quantized, _: &mut Patch) -> Built {
    let (Some(a), Some(b)) = (c.input(node, 0), c.input(node, 1)) else { return Ok(None) };
    let mut inputs: Inputs = [a.triple(), b.triple()].concat();
    inputs.extend([Some(y.scale), Some(y.zero)]);
    Ok(Some((c.make("", "QLinearMatMul", AttrMap::new())?, inputs)))
}

fn gemm(c: &Converter, node: &Node, y: Quantized, _: &mut Patch) -> Built {
    let (Some(a), Some(b), Ok(bias)) = (c.input(node, 0), c.input(node, 1), bias(c, node, 2)) else { return Ok(None) };
    let mut inputs: Inputs = [a.triple(), b.triple()].concat();
    inputs.extend([bias, Some(y.scale), Some(y.zero)]);
    let mut attrs = node.op.attrs();
    attrs.take("beta");
    Ok(Some((c.make(MICROSOFT, "QGemm", attrs)?, inputs)))
}

fn binary(c: &Converter, node: &Node, y: Quantized, _: &mut Patch, name: &str) -> Built {
    let (Some(a), Some(b)) = (c.input(node, 0), c.input(node, 1)) else { return Ok(None) };
    let mut inputs: Inputs = [a.triple(), b.triple()].concat();
    inputs.extend([Some(y.scale), Some(y.zero)]);
    Ok(Some((c.make(MICROSOFT, name, AttrMap::new())?, inputs)))
}

fn unary(c: &Converter, node: &Node, y: Quantized, _: &mut Patch, name: &str) -> Built {
    let Some(x) = c.input(node, 0) else { return Ok(None) };
    let mut inputs: Inputs = x.triple().to_vec();
    inputs.extend([Some(y.scale), Some(y.zero)]);
    Ok(Some((c.make(MICROSOFT, name, node.op.attrs())?, inputs)))
}

fn concat(c: &Converter, node: &Node, y: Quantized, _: &mut Patch) -> Built {
    let parts: Option<Vec<Quantized>> = (0..node.inputs.len()).map(|i| c.input(node, i)).collect();
    let Some(parts) = parts else { return Ok(None) };
    let mut inputs: Inputs = vec![Some(y.scale), Some(y.zero)];
    inputs.extend(parts.into_iter().flat_map(Quantized::triple));
    Ok(Some((c.make(MICROSOFT, "QLinearConcat", node.op.attrs())?, inputs)))
}

/// Movement works on the codes as it is, where scale and zero point do not change.
fn movement(c: &Converter, node: &Node, y: Quantized, _: &mut Patch) -> Built {
    let Some(x) = c.input(node, 0) else { return Ok(None) };
    let same = |a: ValueId, b: ValueId| a == b || equal(c.graph.constant(a), c.graph.constant(b));
    if !same(x.scale, y.scale) || !same(x.zero, y.zero) {
        return Ok(None);
    }
    let mut inputs = node.inputs.clone();
    inputs[0] = Some(x.codes);
    Ok(Some((node.op.clone(), inputs)))
}

fn equal(a: Option<&Tensor>, b: Option<&Tensor>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a == b)
}
