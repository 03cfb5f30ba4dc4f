use std::collections::BTreeSet;
use std::sync::Arc;

use narrowbit_ir::{Dim, Graph, NodeId, TensorType, ValueId};
use narrowbit_kernels::{Exec, Isa};
use narrowbit_tensor::{DType, Tensor};

use crate::attention;
use crate::compile;
use crate::core::Core;
use crate::error::RunError;
use crate::forms;
use crate::parts;
use crate::projections;
use crate::rows;
use crate::smooth;
use crate::transparent;
use crate::view::{View, ViewMut};

/// How a session runs.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Threads, the caller's included; 0 for one per core.
    pub threads: usize,
    /// Values to be seen by [`Session::run_observed`]: no fusion swallows them.
    pub observe: BTreeSet<ValueId>,
}

/// How convolutions, and products with constant weights, of floats are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Float {
    /// In 32 bits.
    #[default]
    F32,
    /// With operands that are rounded to bfloat16, and sums in 32 bits: a relative error of up to 2⁻⁹ for each operand, and
    /// for what is added to a convolution whose image it is elsewhere.
    Bf16,
}

/// A graph ready to run. Plans for several input shapes are kept; packed weights are shared by all of
/// them and by concurrent runs.
#[derive(Debug)]
pub struct Session {
    core: Arc<Core>,
    exec: Exec,
}

/// Time by node.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    /// One row per step.
    pub rows: Vec<ProfileRow>,
}

/// What a step multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    /// 32-bit floats, or nothing.
    F32,
    /// Floats rounded to bfloat16.
    Bf16,
    /// fp8, each product exact.
    Fp8,
    /// Integers.
    Int8,
}

/// The time of one step.
#[derive(Debug, Clone)]
pub struct ProfileRow {
    /// The node (the first one of a fusion).
    pub node: NodeId,
    /// All nodes that the step computes, in their order; none for a mere change of layout.
    pub nodes: Vec<NodeId>,
    /// The kernel that ran.
    pub kernel: String,
    /// Whether it multiplied integers.
    pub on_integers: bool,
    /// What it multiplied.
    pub operands: Operands,
    /// Bytes of the operands and results in memory, without what is packed in the kernel.
    pub bytes: usize,
    /// Seconds.
    pub seconds: f64,
}

/// Sees a value right after it is made.
pub type Observer<'a> = &'a mut dyn FnMut(ValueId, View) -> Result<(), String>;

impl Session {
    /// Prepares a graph. Nothing is packed or planned before the first run.
    ///
    /// # Errors
    /// When the environment forces an instruction set that is not there, or the graph does not verify.
    pub fn new(graph: impl Into<Arc<Graph>>, options: Options) -> Result<Session, RunError> {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let exec = Exec::new(Isa::from_env()?, threads);
        let mut graph = graph.into();
        // Who asked to see values knows them by the graph as it is.
        if options.observe.is_empty() {
            if let Some(wide) = forms::widen(&graph)? {
                graph = Arc::new(wide);
            }
            if let Some(apart) = parts::take_apart(&graph)? {
                graph = Arc::new(apart);
            }
            if let Some(qdq) = forms::to_qdq(&graph)? {
                graph = Arc::new(qdq);
            }
            if let Some(lowered) = transparent::sink(&graph)? {
                graph = Arc::new(lowered);
            }
            if let Some(parts) = projections::split(&graph)? {
                graph = Arc::new(parts);
            }
            graph = transparent::lift_dynamic(&graph)?.map_or(graph, Arc::new);
            if let Some(one) = attention::normalise(&graph)? {
                graph = Arc::new(one);
            }
            if let Some(less) = smooth::absorb(&graph)? {
                graph = Arc::new(less);
                // What was rounded behind a factor may now be rounded before its movements.
                graph = transparent::sink(&graph)?.map_or(graph, Arc::new);
            }
            if let Some(early) = rows::select(&graph)? {
                graph = Arc::new(early);
                // Rows may have been taken right behind a DequantizeLinear.
                graph = transparent::sink(&graph)?.map_or(graph, Arc::new);
            }
        }
        Ok(Session { core: Arc::new(Core::new(graph, options.observe, None)), exec })
    }

    /// The same graph with another arithmetic of floats; nothing that was packed for the old one is used.
    ///
    /// # Errors
    /// The instruction set has no bfloat16, where that is asked for.
    pub fn with_float(self, float: Float) -> Result<Session, RunError> {
        let (isa, bf16) = (self.exec.isa(), float == Float::Bf16);
        if bf16 && !isa.multiplies_bf16() {
            return Err(RunError::NoBf16 { isa: isa.to_string() });
        }
        let core = Core::new(self.core.graph.clone(), self.core.observe.clone(), None);
        Ok(Session { core: Arc::new(core), exec: self.exec.with_bf16(bf16) })
    }

    /// The same graph, where rows of products with weights by blocks of integers may be rounded to int8 by blocks, as `accuracy_level` 4
    /// of MatMulNBits allows it: for DequantizeLinear before a product, which has no such attribute, and for
    /// MatMulNBits of level 0. Nothing that was packed before is used.
    pub fn with_rounded_blocks(self, rounds: bool) -> Session {
        let core = Core::new(self.core.graph.clone(), self.core.observe.clone(), None);
        Session { core: Arc::new(core), exec: self.exec.with_rounded_blocks(rounds) }
    }

    /// The same session on threads of its own: graph, weights and plans are shared.
    ///
    /// Runs of both at the same time do not wait for each other. Results do not depend on the number of threads.
    pub fn fork(&self, threads: usize) -> Session {
        let exec = Exec::new(self.exec.isa(), threads);
        let exec = exec.with_bf16(self.exec.bf16()).with_rounded_blocks(self.exec.rounds_blocks());
        Session { core: self.core.clone(), exec }
    }

    /// The graph that runs: unless values are observed, half precision is float32, operators on integers (QLinearConv,
    /// MatMulInteger …) are written with QuantizeLinear and DequantizeLinear, and operators that only move elements may stand on the
    /// other side of a DequantizeLinear than in the graph that was given.
    pub fn graph(&self) -> &Graph {
        &self.core.graph
    }

    /// Threads and instruction set.
    pub fn exec(&self) -> &Exec {
        &self.exec
    }

    /// Runs the graph on one tensor per input, in the order of [`Graph::inputs`].
    ///
    /// # Errors
    /// When an input has another type or shape than the model says, or a node can't run on it.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        self.run_with(inputs, &mut |_, _| Ok(()), None)
    }

    /// As [`Session::run`]; `observer` sees the values of [`Options::observe`] as they are made, graph
    /// inputs among them first.
    ///
    /// # Errors
    /// As [`Session::run`], and when the observer gives up.
    pub fn run_observed(&self, inputs: &[Tensor], observer: Observer) -> Result<Vec<Tensor>, RunError> {
        self.run_with(inputs, observer, None)
    }

    /// As [`Session::run`], with the time of each step.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn profile(&self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Profile), RunError> {
        let mut profile = Profile::default();
        let out = self.run_with(inputs, &mut |_, _| Ok(()), Some(&mut profile))?;
        Ok((out, profile))
    }

    /// As [`Session::run`], from and into memory of the caller: after a few runs on inputs of the same shapes, a run makes no
    /// allocation (but for operators whose shapes depend on data, and those without a kernel of their own). Several
    /// threads may do so at once, each with views of its own; [`Session::fork`] keeps them from waiting for one pool.
    ///
    /// `outputs` are in the order of [`Graph::outputs`]; their types and shapes must be those of the results.
    ///
    /// # Errors
    /// As [`Session::run`], and when a view does not fit. What the outputs hold is arbitrary then.
    pub fn run_into(&self, inputs: &[View], outputs: &mut [ViewMut]) -> Result<(), RunError> {
        self.check(inputs.len(), &|i| (inputs[i].dtype, inputs[i].shape))?;
        let whole =
            |i: usize| if inputs[i].is_whole() && !inputs[i].channels_last { Ok(()) } else { Err(self.torn(i)) };
        (0..inputs.len()).try_for_each(whole)?;
        let names = self.graph().outputs();
        if outputs.len() != names.len() {
            return Err(RunError::OutputCount { expected: names.len(), actual: outputs.len() });
        }
        self.core.run_views(&self.exec, inputs, &mut |_, _| Ok(()), None, &mut |i, made| {
            let to = &mut outputs[i];
            if (to.dtype, to.shape) != (made.dtype, made.shape) || !to.is_whole() {
                return Err(RunError::Output {
                    name: self.graph().value(names[i]).name.clone(),
                    expected: format!("{}{:?}", made.dtype, made.shape),
                    actual: format!("{}{:?} in {} bytes", to.dtype, to.shape, to.bytes.len()),
                });
            }
            to.bytes.copy_from_slice(made.bytes);
            Ok(())
        })
    }

    /// The error of a view whose bytes are not those of its shape.
    fn torn(&self, i: usize) -> RunError {
        let value = self.graph().value(self.graph().inputs()[i]);
        RunError::Input {
            name: value.name.clone(),
            expected: value.ty.to_string(),
            actual: "a view of bytes that are not those of its type and shape".into(),
            help: "make it with View::new from as many elements as the shape says",
        }
    }

    fn run_with(
        &self,
        inputs: &[Tensor],
        observer: Observer,
        profile: Option<&mut Profile>,
    ) -> Result<Vec<Tensor>, RunError> {
        self.check(inputs.len(), &|i| (inputs[i].dtype(), inputs[i].shape()))?;
        self.observe_inputs(inputs, observer)?;
        self.core.run(&self.exec, inputs, observer, profile)
    }

    fn observe_inputs(&self, inputs: &[Tensor], observer: Observer) -> Result<(), RunError> {
        for (&v, t) in self.graph().inputs().iter().zip(inputs).filter(|(v, _)| self.core.observe.contains(v)) {
            let t = compile::aligned(t).map_err(|e| RunError::Observer(e.to_string()))?;
            let view = View { dtype: t.dtype(), shape: t.shape(), bytes: t.bytes(), channels_last: false };
            observer(v, view).map_err(RunError::Observer)?;
        }
        Ok(())
    }

    /// Checks the number of inputs, and the type and shape of each.
    fn check<'t>(&self, count: usize, input: &dyn Fn(usize) -> (DType, &'t [usize])) -> Result<(), RunError> {
        let names = || {
            let names: Vec<&str> = self.graph().inputs().iter().map(|&v| self.graph().value(v).name.as_str()).collect();
            names.join(", ")
        };
        let expected = self.graph().inputs().len();
        if count != expected {
            return Err(RunError::InputCount { expected, names: names(), actual: count });
        }
        for (i, &v) in self.graph().inputs().iter().enumerate() {
            let value = self.graph().value(v);
            let Some(ty) = value.ty.tensor() else { continue };
            let (dtype, shape) = input(i);
            if let Some(help) = mismatch(ty, dtype, shape) {
                return Err(RunError::Input {
                    name: value.name.clone(),
                    expected: ty.to_string(),
                    actual: TensorType::new(dtype, shape.iter().map(|&d| d.into()).collect()).to_string(),
                    help,
                });
            }
        }
        Ok(())
    }

    /// Bytes of the arena for these inputs: what the run needs beside weights. Of a graph whose shapes depend on the
    /// content of the inputs, only what comes before; 0 where that is nothing.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn arena_bytes(&self, inputs: &[Tensor]) -> Result<usize, RunError> {
        self.check(inputs.len(), &|i| (inputs[i].dtype(), inputs[i].shape()))?;
        self.core.arena_bytes(&self.exec, inputs)
    }
}

/// What is wrong with an input, as a remedy.
fn mismatch(ty: &TensorType, dtype: DType, given: &[usize]) -> Option<&'static str> {
    if ty.dtype.is_some_and(|d| d != dtype) {
        return Some("convert the data to the model's element type");
    }
    let shape = ty.shape.as_ref()?;
    if shape.len() != given.len() {
        return Some("give the data the model's number of dimensions (a batch dimension comes first)");
    }
    let fits = |(d, &n): (&Dim, &usize)| d.as_usize().is_none_or(|k| k == n);
    let all = shape.iter().zip(given).all(fits);
    (!all).then_some("the extents that are numbers must match; resize, crop or change the layout of the data")
}
