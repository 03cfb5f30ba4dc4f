//! The reference interpreter: runs a graph node by node with [`Op::eval`](crate::Op::eval).

use narrowbit_tensor::Tensor;

use crate::graph::Def;
use crate::{Datum, EvalCx, Graph, NodeError, NodeId, OpError, ValueId};

/// Runs `graph` on one datum per input, in the order of [`Graph::inputs`].
///
/// # Errors
/// When a node can't be run on its inputs, or the number of inputs is wrong.
pub fn run(graph: &Graph, inputs: &[Datum]) -> Result<Vec<Datum>, NodeError> {
    run_observed(graph, inputs, &mut |_, _, _| {})
}

/// As [`run`] for graphs whose inputs and outputs are tensors.
///
/// # Errors
/// As [`run`]; also when an output is no tensor.
pub fn run_tensors(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, NodeError> {
    let inputs: Vec<Datum> = inputs.iter().cloned().map(Datum::Tensor).collect();
    let outputs = run(graph, &inputs)?;
    let tensor = |d: Datum| match d {
        Datum::Tensor(t) => Ok(t),
        other => Err(graph_error(graph, OpError::Value(format!("an output is {}, not a tensor", other.kind())))),
    };
    outputs.into_iter().map(tensor).collect()
}

/// As [`run`]; `observe` sees each value of the graph right after it is made.
///
/// # Errors
/// As [`run`].
pub fn run_observed(
    graph: &Graph,
    inputs: &[Datum],
    observe: &mut dyn FnMut(NodeId, ValueId, &Datum),
) -> Result<Vec<Datum>, NodeError> {
    if inputs.len() != graph.inputs().len() {
        let message = format!("the graph has {} inputs, {} were given", graph.inputs().len(), inputs.len());
        return Err(graph_error(graph, OpError::Value(message)));
    }
    let mut state = State::new(graph);
    for (&id, d) in graph.inputs().iter().zip(inputs) {
        state.data[id.index()] = Some(d.clone());
    }
    for (id, node) in graph.nodes() {
        let error = |error| NodeError { node: node.name.clone(), op: node.op.name().into(), error };
        let outs = state.eval(id).map_err(error)?;
        for (i, (&v, d)) in node.outputs.iter().zip(outs).enumerate() {
            let Some(v) = v else { continue };
            observe(id, v, &d);
            debug_assert!(i < node.outputs.len());
            state.data[v.index()] = Some(d);
        }
        if let Some(v) = node.outputs.iter().flatten().find(|v| state.data[v.index()].is_none()) {
            let message = format!("output \"{}\" was not made", graph.value(*v).name);
            return Err(error(OpError::Unsupported(message)));
        }
        state.release(id);
    }
    Ok(graph.outputs().iter().filter_map(|&v| state.get(v)).collect())
}

fn graph_error(graph: &Graph, error: OpError) -> NodeError {
    NodeError { node: graph.name.clone(), op: "graph".into(), error }
}

struct State<'a> {
    graph: &'a Graph,
    data: Vec<Option<Datum>>,
    /// Reads still to come, by value; outputs are read once more at the end.
    left: Vec<usize>,
}

impl<'a> State<'a> {
    fn new(graph: &'a Graph) -> State<'a> {
        let n = graph.value_capacity();
        let mut left = vec![0; n];
        for (id, _) in graph.values() {
            left[id.index()] = graph.uses(id).len() + usize::from(graph.is_output(id));
        }
        State { graph, data: vec![None; n], left }
    }

    fn get(&self, v: ValueId) -> Option<Datum> {
        match self.graph.value(v).def {
            Def::Const(_) => self.graph.constant(v).cloned().map(Datum::Tensor),
            _ => self.data[v.index()].clone(),
        }
    }

    fn eval(&self, id: NodeId) -> Result<Vec<Datum>, OpError> {
        let node = self.graph.node(id);
        let data: Vec<Option<Datum>> = node.inputs.iter().map(|v| v.and_then(|v| self.get(v))).collect();
        let refs: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
        let cx = EvalCx::new(&refs, node.outputs.len());
        cx.check_memory()?;
        node.op.eval_data(&cx)
    }

    /// Frees what the node was the last to read.
    fn release(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        for v in node.inputs.iter().flatten() {
            self.left[v.index()] -= 1;
            if self.left[v.index()] == 0 {
                self.data[v.index()] = None;
            }
        }
        for v in node.outputs.iter().flatten().filter(|v| self.left[v.index()] == 0) {
            self.data[v.index()] = None;
        }
    }
}
