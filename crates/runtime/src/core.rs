use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use narrowbit_ir::{Fact, Graph, TensorType, ValueId, ValueType};
use narrowbit_kernels::Exec;
use narrowbit_tensor::{DType, Tensor};

use crate::compile::{self, CompileError, Plan};
use crate::error::RunError;
use crate::exec::{Arena, Clock};
use crate::session::{Observer, Profile};
use crate::stages::Stages;
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
    by_input: HashMap<Key, Entry>,
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
        let inputs: Vec<Tensor> = inputs.iter().map(compile::aligned).collect();
        let key = self.key(&inputs);
        let (plan, arena) = match self.program(exec, &key, &inputs)? {
            (Program::Plan(plan), arena) => (plan, arena),
            (Program::Stages(stages), _) => return stages.run(self, exec, &inputs, observer, profile),
        };
        let mut arena = arena.unwrap_or_else(|| Arena::new(&plan));
        let _awake = exec.pool().keep_awake();
        let mut clock = Clock::new(profile);
        let out = arena.run(&plan, &self.graph, exec, &inputs, &self.observe, observer, &mut clock)?;
        if let Some(e) = self.plans.lock().unwrap_or_else(PoisonError::into_inner).by_input.get_mut(&key) {
            e.idle.push(arena);
        }
        Ok(out)
    }

    /// Bytes of the arena for these inputs; 0 where nothing of the graph is compiled beforehand.
    pub fn arena_bytes(&self, exec: &Exec, inputs: &[Tensor]) -> Result<usize, RunError> {
        match self.program(exec, &self.key(inputs), inputs)?.0 {
            Program::Plan(plan) => Ok(plan.slots.iter().sum()),
            Program::Stages(stages) => stages.arena_bytes(self, exec, inputs),
        }
    }

    fn key(&self, inputs: &[Tensor]) -> Key {
        inputs.iter().map(|t| (t.shape().to_vec(), self.known(t).and_then(|t| t.to_i64s().ok()))).collect()
    }

    /// A tensor between parts that the shapes behind it may depend on.
    fn known<'a>(&self, t: &'a Tensor) -> Option<&'a Tensor> {
        let extents = matches!(t.dtype(), DType::I64 | DType::I32) && t.len() <= MOST_EXTENTS && t.rank() <= 1;
        (self.stage.is_some() && extents).then_some(t)
    }

    /// The program for these inputs, and an idle arena of it.
    fn program(&self, exec: &Exec, key: &Key, inputs: &[Tensor]) -> Result<(Program, Option<Arena>), RunError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.clock += 1;
        let now = plans.clock;
        if let Some(e) = plans.by_input.get_mut(key) {
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
            let oldest = plans.by_input.iter().min_by_key(|(_, e)| e.used).map(|(k, _)| k.clone());
            oldest.and_then(|k| plans.by_input.remove(&k));
        }
        plans.by_input.insert(key.clone(), Entry { program: program.clone(), idle: Vec::new(), used: now });
        Ok((program, None))
    }

    fn facts(&self, inputs: &[Tensor]) -> BTreeMap<ValueId, Fact> {
        let fact = |t: &Tensor| match self.known(t) {
            Some(t) => Fact::constant(t.clone()),
            None => Fact { ty: ValueType::Tensor(TensorType::of(t)), ..Fact::default() },
        };
        self.graph.inputs().iter().copied().zip(inputs.iter().map(fact)).collect()
    }
}
