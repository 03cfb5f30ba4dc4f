//! Any operator, through its reference implementation on copied tensors.

use std::sync::Arc;

use narrowbit_ir::{Datum, EvalCx, Graph, NodeId, Op, OpError, ValueId, interp};
use narrowbit_tensor::Tensor;

use crate::error::StepError;
use crate::fuse::Fusion;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};

struct Reference {
    op: Arc<dyn Op>,
    /// By input of the node: its content, or its place among the operands.
    inputs: Vec<Operand>,
    /// By output of the node: its place among the results.
    outputs: Vec<Option<usize>>,
}

enum Operand {
    Absent,
    Constant(Datum),
    Read(usize),
}

/// The kernel of any node.
pub fn build(cx: &BuildCx) -> Built {
    let (mut ins, mut outs) = (Vec::new(), Vec::new());
    let mut inputs: Vec<Operand> = Vec::new();
    for v in &cx.node.inputs {
        inputs.push(match v.map(|v| (v, (cx.consts)(v))) {
            None => Operand::Absent,
            Some((_, Some(t))) => Operand::Constant(Datum::Tensor(t)),
            Some((v, None)) => {
                ins.push(v);
                Operand::Read(ins.len() - 1)
            }
        });
    }
    let outputs = cx
        .node
        .outputs
        .iter()
        .map(|v| {
            outs.push((*v)?);
            Some(outs.len() - 1)
        })
        .collect();
    Built { kernel: Box::new(Reference { op: cx.node.op.clone(), inputs, outputs }), ins, outs }
}

impl Kernel for Reference {
    fn name(&self) -> &str {
        "reference"
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let mut read = Vec::new();
        for operand in &self.inputs {
            read.push(match operand {
                Operand::Read(i) => Some(Datum::Tensor(cx.view(*i)?.to_tensor()?)),
                _ => None,
            });
        }
        let refs: Vec<Option<&Datum>> = self
            .inputs
            .iter()
            .zip(&read)
            .map(|(operand, read)| match operand {
                Operand::Constant(d) => Some(d),
                _ => read.as_ref(),
            })
            .collect();
        let results = self.op.eval(&EvalCx::new(&refs, self.outputs.len()))?;
        for (i, place) in self.outputs.iter().enumerate().filter_map(|(i, p)| Some((i, (*p)?))) {
            let result = results.get(i).ok_or(OpError::Value(format!("output {i} was not made")))?;
            store(cx, i, place, result)?;
        }
        Ok(())
    }
}

fn store(cx: &mut RunCx, index: usize, place: usize, result: &Tensor) -> Result<(), StepError> {
    let out = &mut cx.outs[place];
    if out.dtype != result.dtype() || out.shape != result.shape() {
        return Err(StepError::Inferred {
            index,
            inferred: format!("{}{:?}", out.dtype, out.shape),
            actual: format!("{}{:?}", result.dtype(), result.shape()),
        });
    }
    out.bytes.copy_from_slice(result.bytes());
    Ok(())
}

/// A fusion without a kernel of its own: its nodes one after the other.
struct Sequence {
    nodes: Graph,
    outputs: usize,
}

/// The kernel of a fusion that no builder takes.
pub fn fused(cx: &BuildCx, f: &Fusion) -> Built {
    let mut graph = Graph::new("fused");
    let mut map = std::collections::BTreeMap::new();
    let mut ins = Vec::new();
    // A fusion lists its product first, whatever stands before it.
    for &n in cx.graph.order().iter().filter(|n| f.nodes.contains(n)) {
        add(cx, n, &mut graph, &mut map, &mut ins);
    }
    let outs: Vec<ValueId> = f.output.into_iter().collect();
    for v in &outs {
        if let Some(&v) = map.get(v) {
            graph.add_output(v);
        }
    }
    Built { kernel: Box::new(Sequence { nodes: graph, outputs: outs.len() }), ins, outs }
}

fn add(
    cx: &BuildCx,
    id: NodeId,
    graph: &mut Graph,
    map: &mut std::collections::BTreeMap<ValueId, ValueId>,
    ins: &mut Vec<ValueId>,
) {
    let node = cx.graph.node(id);
    let inputs = node.inputs.iter().map(|v| {
        let v = (*v)?;
        let known = map.get(&v).copied();
        Some(known.unwrap_or_else(|| {
            let value = cx.graph.value(v);
            let new = match (cx.consts)(v) {
                Some(t) => graph.add_const(&value.name, t),
                None => {
                    ins.push(v);
                    graph.add_input(&value.name, value.ty.clone())
                }
            };
            map.insert(v, new);
            new
        }))
    });
    let inputs: Vec<Option<ValueId>> = inputs.collect();
    let names: Vec<Option<&str>> = node.outputs.iter().map(|v| v.map(|v| cx.graph.value(v).name.as_str())).collect();
    let new = graph.add_node(&node.name, node.op.clone(), inputs, &names);
    let outputs = graph.node(new).outputs.clone();
    map.extend(node.outputs.iter().zip(outputs).filter_map(|(a, b)| Some(((*a)?, b?))));
}

impl Kernel for Sequence {
    fn name(&self) -> &str {
        "reference"
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let mut inputs = Vec::new();
        for i in 0..cx.ins.len() {
            inputs.push(cx.view(i)?.to_tensor()?);
        }
        let results = interp::run_tensors(&self.nodes, &inputs).map_err(OpError::from)?;
        for (i, t) in results.iter().enumerate().take(self.outputs) {
            store(cx, i, i, t)?;
        }
        Ok(())
    }
}
