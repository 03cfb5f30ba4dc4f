use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use narrowbit_ir::{Fact, Graph, TensorType, ValueId, ValueType};
use narrowbit_kernels::Exec;
use narrowbit_tensor::{DType, Tensor, TensorError};

use crate::compile::{self, CompileError, Plan};
use crate::error::{RunError, StepError};
use crate::exec::{Arena, Clock, Take};
use crate::session::{Observer, Profile};
use crate::stages::Stages;
use crate::view::View;
use crate::weights::Weights;

/// What sessions on the same graph share: plans for several input shapes, and packed weights.
#[derive(Debug)]
pub struct Core {
    pub graph: Arc<Graph>,
    /// Values that no fusion swallows.
    pub observe: BTreeSet<ValueId>,
    /// How often a graph was cut for this part; `None` for what sees the model's inputs only.
    pub stage: Option<usize>,
    weights: Weights,
    plans: Mutex<Plans>,
}

/// Programs by inputs, with idle arenas.
#[derive(Default)]
struct Plans {
    by_input: Vec<(Key, Entry)>,
    /// Counts lookups, so that the program that was not used for longest goes first.
    clock: u64,
}

/// The inputs' shapes, and the contents of those that may say a shape themselves.
type Key = Vec<(Vec<usize>, Option<Vec<i64>>)>;

struct Entry {
    program: Program,
    idle: Vec<Arena>,
    used: u64,
}

/// How a graph runs on inputs of given shapes.
#[derive(Clone)]
enum Program {
    Plan(Arc<Plan>),
    /// Shapes depend on the content of the inputs.
    Stages(Arc<Stages>),
}

impl std::fmt::Debug for Plans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plans({})", self.by_input.len())
    }
}

/// Programs kept for different inputs.
const MOST_PROGRAMS: usize = 16;
/// Elements of an input of a part that may be a shape.
const MOST_EXTENTS: usize = 16;

impl Core {
    /// A graph, or the part of one behind so many cuts.
    pub fn new(graph: Arc<Graph>, observe: BTreeSet<ValueId>, stage: Option<usize>) -> Core {
        Core { graph, observe, stage, weights: Weights::default(), plans: Mutex::default() }
    }

    /// How often a graph was cut for this part.
    pub fn cuts(&self) -> usize {
        self.stage.unwrap_or(0)
    }

    /// Runs on inputs whose types were checked, `observer` seeing the values to observe but the inputs.
    pub fn run(
        &self,
        exec: &Exec,
        inputs: &[Tensor],
        observer: Observer,
        profile: Option<&mut Profile>,
    ) -> Result<Vec<Tensor>, RunError> {
        let inputs = self.aligned(inputs)?;
        let views: Vec<View> = inputs.iter().map(View::of).collect();
        let mut outputs = Vec::new();
        let mut take = |i: usize, view: View| {
            let maker = self.graph.outputs().get(i).and_then(|&v| self.graph.producer(v));
            let node = maker.map_or(&self.graph.name, |(id, _)| &self.graph.node(id).name);
            let copy = view.to_tensor();
            outputs.push(copy.map_err(|e| RunError::Kernel { node: node.clone(), error: StepError::Tensor(e) })?);
            Ok(())
        };
        self.run_views(exec, &views, observer, profile, &mut take)?;
        Ok(outputs)
    }

    fn aligned(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        tensors.iter().map(compile::aligned).collect::<Result<_, TensorError>>().map_err(|e| self.failed(e))
    }

    fn failed(&self, e: TensorError) -> RunError {
        RunError::Kernel { node: self.graph.name.clone(), error: StepError::Tensor(e) }
    }

    /// As [`Core::run`] on views, which are aligned for their types. Once an arena is there, a plan runs without
    /// an allocation.
    pub fn run_views(
        &self,
        exec: &Exec,
        inputs: &[View],
        observer: Observer,
        profile: Option<&mut Profile>,
        take: Take,
    ) -> Result<(), RunError> {
        let (plan, arena) = match self.program(exec, inputs)? {
            (Program::Plan(plan), arena) => (plan, arena),
            (Program::Stages(stages), _) => {
                let inputs: Result<Vec<Tensor>, TensorError> = inputs.iter().map(View::to_tensor).collect();
                let outputs = stages.run(self, exec, &inputs.map_err(|e| self.failed(e))?, observer, profile)?;
                let outputs = self.aligned(&outputs)?;
                return outputs.iter().enumerate().try_for_each(|(i, t)| take(i, View::of(t)));
            }
        };
        let mut arena = arena.map_or_else(|| self.new_arena(&plan), Ok)?;
        let _awake = exec.pool().keep_awake();
        let mut clock = Clock::new(profile);
        arena.run(&plan, &self.graph, exec, inputs, &self.observe, observer, &mut clock, take)?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(e) = self.find(&mut plans, inputs) {
            e.idle.push(arena);
        }
        Ok(())
    }

    /// An arena of a plan, if need be in the place of those that wait for other inputs.
    fn new_arena(&self, plan: &Plan) -> Result<Arena, RunError> {
        Arena::new(plan, &self.graph).or_else(|_| {
            let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
            plans.by_input.iter_mut().for_each(|(_, entry)| entry.idle.clear());
            drop(plans);
            Arena::new(plan, &self.graph)
        })
    }

    /// Bytes of the arena for these inputs; 0 where nothing of the graph is compiled beforehand.
    pub fn arena_bytes(&self, exec: &Exec, inputs: &[Tensor]) -> Result<usize, RunError> {
        let aligned = self.aligned(inputs)?;
        let views: Vec<View> = aligned.iter().map(View::of).collect();
        match self.program(exec, &views)?.0 {
            Program::Plan(plan) => Ok(plan.slots.iter().sum()),
            Program::Stages(stages) => stages.arena_bytes(self, exec, inputs),
        }
    }

    fn key(&self, inputs: &[View]) -> Key {
        inputs.iter().map(|v| (v.shape.to_vec(), self.known(v).and_then(|t| t.to_i64s().ok()))).collect()
    }

    /// The program for inputs, if there is one.
    fn find<'p>(&self, plans: &'p mut Plans, inputs: &[View]) -> Option<&'p mut Entry> {
        let same = |(shape, content): &(Vec<usize>, Option<Vec<i64>>), v: &View| {
            shape == v.shape && *content == self.known(v).and_then(|t| t.to_i64s().ok())
        };
        let all = |key: &Key| key.len() == inputs.len() && key.iter().zip(inputs).all(|(k, v)| same(k, v));
        plans.by_input.iter_mut().find(|(key, _)| all(key)).map(|(_, entry)| entry)
    }

    /// A tensor between parts that the shapes behind it may depend on.
    fn known(&self, v: &View) -> Option<Tensor> {
        let len: usize = v.shape.iter().product();
        let extents = matches!(v.dtype, DType::I64 | DType::I32) && len <= MOST_EXTENTS && v.shape.len() <= 1;
        if self.stage.is_some() && extents { v.to_tensor().ok() } else { None }
    }

    /// The program for these inputs, and an idle arena of it.
    fn program(&self, exec: &Exec, inputs: &[View]) -> Result<(Program, Option<Arena>), RunError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.clock += 1;
        let now = plans.clock;
        if let Some(e) = self.find(&mut plans, inputs) {
            e.used = now;
            return Ok((e.program.clone(), e.idle.pop()));
        }
        let facts = self.facts(inputs);
        let compiled = compile::compile(&self.graph, &facts, &self.observe, exec, &self.weights);
        self.weights.drop_scratch();
        let program = match compiled {
            Ok(plan) => Program::Plan(Arc::new(plan)),
            Err(CompileError::Dynamic) => Program::Stages(Arc::new(Stages::new(self, &facts)?)),
            Err(CompileError::Run(e)) => return Err(e),
        };
        if plans.by_input.len() >= MOST_PROGRAMS {
            let oldest = plans.by_input.iter().enumerate().min_by_key(|(_, (_, e))| e.used).map(|(i, _)| i);
            oldest.map(|i| plans.by_input.swap_remove(i));
        }
        let entry = Entry { program: program.clone(), idle: Vec::new(), used: now };
        plans.by_input.push((self.key(inputs), entry));
        Ok((program, None))
    }

    fn facts(&self, inputs: &[View]) -> BTreeMap<ValueId, Fact> {
        let ty = |v: &View| TensorType::new(v.dtype, v.shape.iter().map(|&d| d.into()).collect());
        let fact = |v: &View| match self.known(v) {
            Some(t) => Fact::constant(t),
            None => Fact { ty: ValueType::Tensor(ty(v)), ..Fact::default() },
        };
        self.graph.inputs().iter().copied().zip(inputs.iter().map(fact)).collect()
    }
}
