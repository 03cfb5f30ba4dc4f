//! A quantized model whose inside runs on integers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use narrowbit_ir::{Graph, NodeError, NodeId, ValueId, interp};
use narrowbit_kernels::Exec;
use narrowbit_tensor::{DType, Tensor, TensorError};

use crate::lower::{LowerError, Lowered, Options, Output, Shapes, data, lower};
use crate::run::{Data, RunError};

/// Programs that are kept, one per set of input shapes.
const MOST_KEPT: usize = 8;

/// Why a model could not run on integers.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FixedError {
    /// It has no program.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// What runs before or behind the program failed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The program failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The number of inputs is wrong.
    #[error("the model has {expected} inputs, {found} were given")]
    Inputs {
        /// How many it has.
        expected: usize,
        /// How many there were.
        found: usize,
    },
    /// A value was made by nobody.
    #[error("value \"{0}\" was not made")]
    Missing(String),
}

/// A quantized model that runs on integers from its QuantizeLinear to its last DequantizeLinear; what comes before (the
/// preprocessing and the rounding of float inputs) and behind (a Softmax, say) runs on the reference operators.
pub struct FixedModel {
    graph: Graph,
    options: Options,
    exec: Exec,
    kept: Mutex<Vec<(Shapes, Arc<Plan>)>>,
}

/// A program with the graphs around it.
struct Plan {
    lowered: Lowered,
    before: Graph,
    after: Graph,
}

impl FixedModel {
    /// A model; programs are made when shapes are known.
    pub fn new(graph: Graph, options: Options, exec: Exec) -> FixedModel {
        FixedModel { graph, options, exec, kept: Mutex::new(Vec::new()) }
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Runs on one tensor per input of the graph.
    ///
    /// # Errors
    /// When the model has no program for these shapes, or an input does not fit.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, FixedError> {
        let expected = self.graph.inputs().len();
        if inputs.len() != expected {
            return Err(FixedError::Inputs { expected, found: inputs.len() });
        }
        let plan = self.plan(inputs)?;
        let mut known: Vec<(ValueId, Tensor)> =
            self.graph.inputs().iter().copied().zip(inputs.iter().cloned()).collect();
        known.extend(plan.lowered.folded.iter().cloned());
        run_part(&self.graph, &plan.before, &mut known)?;
        let codes = |v: &ValueId| {
            let tensor = self.find(&known, *v)?;
            data(tensor).ok_or_else(|| FixedError::Missing(self.graph.value(*v).name.clone()))
        };
        let codes = plan.lowered.inputs.iter().map(codes).collect::<Result<Vec<_>, _>>()?;
        let made = plan.lowered.program.run(&self.exec, codes)?;
        for (data, output) in made.iter().zip(&plan.lowered.outputs) {
            let dtype = self.graph.value(output.value).ty.tensor().and_then(|t| t.dtype);
            known.push((output.value, value(data, output, dtype)?));
        }
        run_part(&self.graph, &plan.after, &mut known)?;
        self.graph.outputs().iter().map(|&v| self.find(&known, v).cloned()).collect()
    }

    fn find<'a>(&'a self, known: &'a [(ValueId, Tensor)], v: ValueId) -> Result<&'a Tensor, FixedError> {
        let made = known.iter().find(|(k, _)| *k == v).map(|(_, t)| t);
        made.or(self.graph.constant(v)).ok_or_else(|| FixedError::Missing(self.graph.value(v).name.clone()))
    }

    fn plan(&self, inputs: &[Tensor]) -> Result<Arc<Plan>, FixedError> {
        let shapes: Shapes =
            self.graph.inputs().iter().copied().zip(inputs.iter().map(|t| t.shape().to_vec())).collect();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plan)) = kept.iter().find(|(s, _)| *s == shapes) {
            return Ok(plan.clone());
        }
        let lowered = lower(&self.graph, &shapes, self.options, &self.exec)?;
        let before = self.graph.part(&needed(&self.graph, &lowered));
        let after = self.graph.part(&lowered.after);
        let plan = Arc::new(Plan { lowered, before, after });
        if kept.len() == MOST_KEPT {
            kept.remove(0);
        }
        kept.push((shapes, plan.clone()));
        Ok(plan)
    }
}

/// The nodes before the program but for those that only its constants come from.
fn needed(graph: &Graph, lowered: &Lowered) -> BTreeSet<NodeId> {
    let mut wanted: BTreeSet<ValueId> = lowered.inputs.iter().copied().collect();
    let reads = lowered.after.iter().flat_map(|&n| graph.node(n).inputs.iter().flatten().copied());
    wanted.extend(reads.chain(graph.outputs().iter().copied()));
    let mut nodes = BTreeSet::new();
    for (id, node) in graph.nodes().rev().filter(|(id, _)| lowered.before.contains(id)) {
        if node.outputs.iter().flatten().any(|v| wanted.contains(v)) {
            wanted.extend(node.inputs.iter().flatten());
            nodes.insert(id);
        }
    }
    nodes
}

/// Runs a part of a graph on values that are known, and adds what it makes.
fn run_part(graph: &Graph, part: &Graph, known: &mut Vec<(ValueId, Tensor)>) -> Result<(), FixedError> {
    if part.node_count() == 0 {
        return Ok(());
    }
    let input = |v: &ValueId| {
        let found = known.iter().find(|(k, _)| k == v).map(|(_, t)| t.clone());
        found.ok_or_else(|| FixedError::Missing(graph.value(*v).name.clone()))
    };
    let inputs = part.inputs().iter().map(input).collect::<Result<Vec<_>, _>>()?;
    let outputs = interp::run_tensors(part, &inputs)?;
    known.extend(part.outputs().iter().copied().zip(outputs));
    Ok(())
}

/// What integers stand for, as the graph has it.
fn value(data: &Data, output: &Output, dtype: Option<DType>) -> Result<Tensor, FixedError> {
    let integers = data.to_i64s();
    let at = |&p: &u32| integers.get(p as usize).copied().unwrap_or(output.zero);
    if output.codes {
        let codes: Vec<i64> = output.positions.iter().map(at).collect();
        return Ok(Tensor::from_i64s(code_type(data, dtype), output.shape.clone(), &codes)?);
    }
    let scale = |s: &crate::Dyadic| s.mantissa as f64 * 2f64.powi(-s.frac) / output.unit.divisor as f64;
    let scales: Vec<f64> = output.unit.scales.iter().map(scale).collect();
    let inner = output.unit.axis.map_or(1, |a| {
        let rank = output.shape.len();
        output.shape[(rank + 1).saturating_sub(a).min(rank)..].iter().product::<usize>().max(1)
    });
    let real = |(i, p): (usize, &u32)| (at(p) - output.zero) as f64 * scales[i / inner % scales.len()];
    let values = output.positions.iter().enumerate().map(|v| real(v) as f32).collect();
    let dtype = dtype.filter(|d| matches!(d, DType::F32 | DType::F16 | DType::Bf16)).unwrap_or(DType::F32);
    Ok(Tensor::from_f32s(dtype, output.shape.clone(), values)?)
}

fn code_type(data: &Data, dtype: Option<DType>) -> DType {
    let own = match data {
        Data::I8(_) => DType::I8,
        Data::U8(_) => DType::U8,
        Data::I16(_) => DType::I16,
        Data::U16(_) => DType::U16,
        Data::I32(_) => DType::I32,
        Data::I64(_) => DType::I64,
    };
    dtype.filter(|d| d.is_int()).unwrap_or(own)
}
