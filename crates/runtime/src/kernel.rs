use std::any::Any;
use std::sync::Arc;

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Graph, Node, NodeId, ValueId};
use narrowbit_kernels::conv::Conv2dParams;
use narrowbit_kernels::{Exec, Few};
use narrowbit_tensor::{DType, Tensor};

use crate::error::StepError;
use crate::session::Operands;
use crate::view::{View, ViewMut};
use crate::weights::{Form, Weights};

/// One step of a compiled plan, with everything decided but the data.
pub trait Kernel: Send + Sync {
    /// What runs, for profiles.
    fn name(&self) -> &str;

    /// Computes the outputs.
    fn run(&self, cx: &mut RunCx) -> Result<(), StepError>;

    /// Whether it multiplies integers.
    fn on_integers(&self) -> bool {
        false
    }

    /// What it multiplies.
    fn operands(&self) -> Operands {
        match self.on_integers() {
            true => Operands::Int8,
            false if self.name().contains("bf16") => Operands::Bf16,
            false => Operands::F32,
        }
    }

    /// Whether it can read an operand as bfloat16 in the place of floats, where the session lets floats be rounded.
    fn reads_bf16(&self, _operand: usize) -> bool {
        false
    }

    /// Whether it can make its first output as bfloat16 in the place of floats.
    fn makes_bf16(&self) -> bool {
        false
    }

    /// The window of a convolution that can run on a band of its image ([`Kernel::run_band`]): channels last, its first operand
    /// the image, and a second one, if any, added to the results. No result depends on other rows than its window's.
    fn window(&self) -> Option<&Conv2dParams> {
        None
    }

    /// As [`Kernel::run`], of one image of another height and with other padding above and below than [`Kernel::window`] says:
    /// what `band` says.
    ///
    /// # Errors
    /// As [`Kernel::run`].
    fn run_band(&self, _band: &Conv2dParams, cx: &mut RunCx) -> Result<(), StepError> {
        self.run(cx)
    }

    /// How many rows its operands and results have of which each result depends on the same row of the operands alone
    /// ([`Kernel::run_rows`]), and how many of them it takes at a time at no loss. Operands of another length are the same for all.
    fn rows(&self) -> Option<(usize, usize)> {
        None
    }

    /// As [`Kernel::run`], of fewer rows than [`Kernel::rows`] says.
    ///
    /// # Errors
    /// As [`Kernel::run`].
    fn run_rows(&self, _rows: usize, cx: &mut RunCx) -> Result<(), StepError> {
        self.run(cx)
    }

    /// The operand whose memory the first output may take over. When it does, that operand is absent
    /// in [`RunCx`] and the output holds its data.
    fn in_place(&self) -> Option<usize> {
        None
    }
}

/// What a kernel sees when it runs.
pub struct RunCx<'a> {
    /// Threads and instruction set.
    pub exec: &'a Exec,
    /// The operands that the builder asked for, in its order; `None` for one made in place.
    pub ins: Few<Option<View<'a>>, 8>,
    /// The outputs.
    pub outs: Few<ViewMut<'a>, 4>,
}

impl<'a> RunCx<'a> {
    /// An operand as floats.
    pub fn f32s(&self, i: usize) -> Result<&'a [f32], StepError> {
        Ok(self.view(i)?.slice()?)
    }

    /// An operand.
    pub fn view(&self, i: usize) -> Result<View<'a>, StepError> {
        let missing = narrowbit_ir::OpError::MissingInput(i);
        self.ins.get(i).copied().flatten().ok_or_else(|| missing.into())
    }

    /// Whether the operand is absent because the output holds it.
    pub fn is_in_place(&self, i: usize) -> bool {
        self.ins.get(i).is_some_and(Option::is_none)
    }

    /// The first output as floats.
    pub fn out_f32s(&mut self) -> Result<&mut [f32], StepError> {
        let missing = narrowbit_ir::OpError::MissingInput(0);
        Ok(self.outs.first_mut().ok_or(missing)?.slice()?)
    }
}

/// The type of a value in a plan: everything is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concrete {
    /// The element type.
    pub dtype: DType,
    /// The extents, in elements.
    pub shape: Vec<usize>,
}

impl Concrete {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.dtype.byte_len(self.len()).unwrap_or(0)
    }
}

/// What a builder sees of the node that it compiles, and what follows it.
pub struct BuildCx<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// The node.
    pub id: NodeId,
    /// The node.
    pub node: &'a Node,
    /// The concrete type of each value, where there is one.
    pub types: &'a dyn Fn(ValueId) -> Option<Concrete>,
    /// The content of values that do not depend on the model's inputs.
    pub consts: &'a dyn Fn(ValueId) -> Option<Tensor>,
    /// Whether a value's content does not depend on the model's inputs: cheap, where `consts` may compute.
    pub is_const: &'a dyn Fn(ValueId) -> bool,
    /// Types and known contents of the graph's values.
    pub facts: &'a Facts,
    /// The id under which a value stands in memory with its channels last.
    pub channels_last: &'a dyn Fn(ValueId) -> ValueId,
    /// Whether a step before this one made that id, other than by a change of layout.
    pub is_made: &'a dyn Fn(ValueId) -> bool,
    /// Threads and instruction set.
    pub exec: &'a Exec,
    /// Packed operands of the session.
    pub weights: &'a Weights,
}

impl BuildCx<'_> {
    /// The integer weights behind a constant value, with scales along `axis`.
    pub fn int_weights(&self, v: ValueId, axis: usize) -> Option<crate::lower::IntWeights> {
        crate::lower::weights(self.graph, self.facts, v, axis)
    }

    /// Whether a value stands in memory with its channels last, and not the plain way.
    pub fn is_channels_last(&self, v: ValueId) -> bool {
        (self.is_made)((self.channels_last)(v)) && !(self.is_made)(v)
    }

    /// What a Concat of channels joins to a value that stands in memory with its channels last, as all its parts do. A
    /// kernel that copies its image on the way reads the parts instead, and nobody makes the value.
    pub fn joined(&self, v: ValueId) -> Option<Vec<ValueId>> {
        let (id, _) = self.graph.producer(v).filter(|_| self.is_channels_last(v))?;
        let node = self.graph.node(id);
        let rank = (self.types)(v)?.shape.len();
        let axis = node.op.attrs().int_or("axis", 1).ok().and_then(|a| narrowbit_tensor::shape::axis(a, rank));
        let parts: Option<Vec<ValueId>> = node.inputs.iter().copied().collect();
        parts.filter(|p| node.op.name() == "Concat" && axis == Some(1) && p.iter().all(|&v| self.is_channels_last(v)))
    }

    /// The concrete type of an input.
    pub fn ty(&self, i: usize) -> Option<Concrete> {
        (self.types)(self.node.input(i)?)
    }

    /// The concrete shape of an input of floats; `None` for other types.
    pub fn f32_shape(&self, i: usize) -> Option<Vec<usize>> {
        self.ty(i).filter(|t| t.dtype == DType::F32).map(|t| t.shape)
    }

    /// Whether an input is constant.
    pub fn is_constant(&self, i: usize) -> bool {
        self.node.input(i).is_some_and(|v| (self.is_const)(v))
    }

    /// The content of a constant input, or the error that it is none.
    pub fn weight(&self, i: usize) -> Result<Tensor, crate::error::StepError> {
        self.constant(i).ok_or_else(|| narrowbit_ir::OpError::MissingInput(i).into())
    }

    /// The constant second input in the form that `pack` gives its floats, made once for all sessions that share
    /// weights. The unpacked content, if it is part of a file, leaves the memory.
    pub fn packed<T: Any + Send + Sync>(
        &self,
        form: impl Into<Form>,
        pack: impl FnOnce(&[f32]) -> Result<T, narrowbit_kernels::KernelError>,
    ) -> Result<Arc<T>, StepError> {
        self.weights.get(self.id, form, || {
            let tensor = self.weight(1)?;
            let packed = match tensor.aligned::<f32>() {
                Some(floats) => pack(floats)?,
                // In a file, floats seldom stand where they can be read in place.
                None if tensor.dtype() == DType::F32 => self.weights.with_scratch(tensor.len(), |floats| {
                    narrowbit_kernels::movement::floats_of(self.exec, tensor.bytes(), floats)?;
                    pack(floats)
                })?,
                None => pack(&tensor.to_f32s()?)?,
            };
            tensor.release();
            Ok(packed)
        })
    }

    /// The content of a constant input.
    pub fn constant(&self, i: usize) -> Option<Tensor> {
        (self.consts)(self.node.input(i)?)
    }

    /// The content of a constant input as integers.
    pub fn ints(&self, i: usize) -> Option<Vec<i64>> {
        self.constant(i)?.to_i64s().ok()
    }

    /// The content of a constant input as floats.
    pub fn floats(&self, i: usize) -> Option<Vec<f32>> {
        self.constant(i)?.to_f32s().ok().map(|v| v.into_owned())
    }

    /// The concrete type of an output.
    pub fn out(&self, i: usize) -> Option<Concrete> {
        (self.types)(self.node.output(i)?)
    }

    /// The concrete shape of an output of floats; `None` for other types.
    pub fn f32_out(&self) -> Option<Vec<usize>> {
        self.out(0).filter(|t| t.dtype == DType::F32).map(|t| t.shape)
    }

    /// An integer attribute, with its default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.node.op.attrs().int_or(name, default).unwrap_or(default)
    }

    /// A float attribute, with its default.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.node.op.attrs().float_or(name, default).unwrap_or(default)
    }

    /// A list attribute.
    pub fn list(&self, name: &str) -> Option<Vec<i64>> {
        self.node.op.attrs().ints(name).ok().flatten()
    }
}

/// A kernel and the values that it reads and makes, in its order.
pub struct Built {
    /// What runs.
    pub kernel: Box<dyn Kernel>,
    /// What it reads while it runs; constants that are packed inside are not among them.
    pub ins: Vec<ValueId>,
    /// What it makes.
    pub outs: Vec<ValueId>,
}

/// A kernel from a function, for operators whose kernel is one call.
pub struct Simple<F> {
    /// What runs.
    pub name: &'static str,
    /// The operand whose memory the output may take over.
    pub in_place: Option<usize>,
    /// Whether it multiplies integers.
    pub on_integers: bool,
    /// The call.
    pub run: F,
}

impl<F: Fn(&mut RunCx) -> Result<(), StepError> + Send + Sync> Kernel for Simple<F> {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        (self.run)(cx)
    }

    fn in_place(&self) -> Option<usize> {
        self.in_place
    }

    fn on_integers(&self) -> bool {
        self.on_integers
    }
}

/// A boxed [`Simple`] that makes its output anew.
pub fn simple(
    name: &'static str,
    run: impl Fn(&mut RunCx) -> Result<(), StepError> + Send + Sync + 'static,
) -> Box<dyn Kernel> {
    Box::new(Simple { name, in_place: None, on_integers: false, run })
}

/// A boxed [`Simple`] that may take over the memory of operand 0.
pub fn in_place(
    name: &'static str,
    run: impl Fn(&mut RunCx) -> Result<(), StepError> + Send + Sync + 'static,
) -> Box<dyn Kernel> {
    Box::new(Simple { name, in_place: Some(0), on_integers: false, run })
}
