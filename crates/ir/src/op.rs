use std::any::Any;
use std::fmt;
use std::sync::Arc;

use narrowbit_tensor::{DType, Tensor, TensorError, memory, shape};

use crate::{AttrMap, Datum, Dim, Fact, Graph};

/// An operator with its attributes: what a node computes.
///
/// One implementation per ONNX operator, immutable and shared. Attribute forms of
/// several opsets may be kept side by side (axes as an attribute until opset 17,
/// as an input from 18 on), so that a file survives a round trip.
pub trait Op: Any + fmt::Debug + Send + Sync {
    /// The ONNX operator name, for instance `Conv`.
    fn name(&self) -> &str;

    /// The operator's domain; empty for ONNX's own.
    fn domain(&self) -> &str {
        ""
    }

    /// Types and shapes of the outputs, one fact per output of the node
    /// (`cx.n_outputs()` at most are used).
    ///
    /// # Errors
    /// When the inputs' types or shapes contradict the operator's definition.
    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError>;

    /// The outputs, exactly as ONNX defines them; clarity before speed.
    ///
    /// # Errors
    /// When the inputs contradict the operator's definition.
    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError>;

    /// As [`Op::eval`] for operators on sequences and optionals.
    ///
    /// # Errors
    /// As [`Op::eval`].
    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        Ok(self.eval(cx)?.into_iter().map(Datum::Tensor).collect())
    }

    /// How the operator may be quantized.
    fn quant(&self) -> QuantRole {
        QuantRole::Float
    }

    /// All attributes that differ from their defaults, for export and the text form.
    fn attrs(&self) -> AttrMap;

    /// The subgraphs, with the names of the attributes that hold them.
    fn bodies(&self) -> Vec<(&'static str, &Body)> {
        Vec::new()
    }

    /// The same operator with other subgraphs, in the order of [`Op::bodies`].
    /// `None` for operators without subgraphs.
    fn with_bodies(&self, _bodies: Vec<Body>) -> Option<Arc<dyn Op>> {
        None
    }

    /// Whether equal inputs give equal outputs (false for random operators).
    fn is_deterministic(&self) -> bool {
        true
    }
}

impl dyn Op {
    /// The operator as its concrete type.
    pub fn downcast<T: Op>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }

    /// Whether the operator has this concrete type.
    pub fn is<T: Op>(&self) -> bool {
        self.downcast::<T>().is_some()
    }
}

/// A subgraph of a control-flow operator.
///
/// Values that the subgraph takes from the enclosing graph are made explicit: they
/// are the last `captures` inputs of `graph` and, in the same order, the last
/// `captures` inputs of the node. All bodies of a node have the same captures.
#[derive(Debug, Clone)]
pub struct Body {
    /// The subgraph.
    pub graph: Graph,
    /// How many of its inputs are captured values.
    pub captures: usize,
}

/// How an operator may be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantRole {
    /// A product with a weight: Conv, Gemm, MatMul.
    Weighted {
        /// The input with the activation.
        data: usize,
        /// The input with the weight (for MatMul an activation when it is not constant).
        weight: usize,
        /// The input with the bias.
        bias: Option<usize>,
        /// The weight's axis of output channels, counted from the back (1 = last) for MatMul,
        /// whose weight may have any rank.
        channel: ChannelAxis,
    },
    /// Arithmetic on quantized values: Add, Mul; Concat and friends with `same_scale`.
    Arithmetic {
        /// Whether all inputs and the output must share scale and zero point.
        same_scale: bool,
    },
    /// Moves or selects elements of its first input without computing: Reshape, Transpose, MaxPool.
    Transparent,
    /// Stays in floating point: Softmax, LayerNormalization.
    Float,
}

/// Where a weight has its output channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelAxis {
    /// Counted from the front.
    Front(usize),
    /// Counted from the back: 1 is the last axis.
    Back(usize),
}

impl ChannelAxis {
    /// The axis of a weight of the given rank, where it exists.
    pub fn resolve(self, rank: usize) -> Option<usize> {
        match self {
            ChannelAxis::Front(a) => (a < rank).then_some(a),
            ChannelAxis::Back(b) => rank.checked_sub(b),
        }
    }
}

/// Makes operators from names and attributes; the registry of the operator crate is one.
pub trait OpSource {
    /// The operator `domain`.`name` at `opset`, taking what it knows out of `attrs`;
    /// `None` when there is no such operator.
    fn build(&self, domain: &str, name: &str, opset: i64, attrs: &mut AttrMap) -> Option<Result<Arc<dyn Op>, OpError>>;
}

/// Why an operator could not be made, typed or run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// A required input is absent.
    #[error("input {0} is missing")]
    MissingInput(usize),
    /// An input has a type that the operator does not take.
    #[error("input {index} is {found}, expected {expected}")]
    Input {
        /// The input's position.
        index: usize,
        /// What was found.
        found: String,
        /// What the operator takes.
        expected: String,
    },
    /// An attribute is absent or wrong.
    #[error("attribute \"{name}\" {problem}")]
    Attribute {
        /// The attribute.
        name: String,
        /// What is wrong, as the rest of a sentence.
        problem: String,
    },
    /// Shapes contradict each other or the attributes.
    #[error("{0}")]
    Shape(String),
    /// An element of an input is out of its range.
    #[error("{0}")]
    Value(String),
    /// The operator exists, but not in this form.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// An output would be larger than narrowbit allows.
    #[error("an output of shape {shape:?} and type {dtype} would take more than {} GiB", MAX_BYTES >> 30)]
    TooLarge {
        /// The output's type.
        dtype: DType,
        /// The output's shape.
        shape: Vec<usize>,
    },
    /// A tensor could not be made or read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A node of a subgraph failed.
    #[error(transparent)]
    Body(Box<NodeError>),
}

impl OpError {
    /// An attribute error; `problem` continues the sentence `attribute "name" …`.
    pub fn attribute(name: &str, problem: impl Into<String>) -> OpError {
        OpError::Attribute { name: name.into(), problem: problem.into() }
    }

    /// An input error.
    pub fn input(index: usize, found: impl Into<String>, expected: impl Into<String>) -> OpError {
        OpError::Input { index, found: found.into(), expected: expected.into() }
    }

    /// A shape error.
    pub fn shape(message: impl Into<String>) -> OpError {
        OpError::Shape(message.into())
    }
}

impl From<NodeError> for OpError {
    fn from(e: NodeError) -> OpError {
        OpError::Body(Box::new(e))
    }
}

/// An operator's error with the node that it came from.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("in node \"{node}\" ({op}): {error}")]
pub struct NodeError {
    /// The node's name.
    pub node: String,
    /// The operator's name.
    pub op: String,
    /// What happened.
    #[source]
    pub error: OpError,
}

/// No single tensor that an operator makes may take more bytes than this: a bound
/// on what a hostile model can ask for.
pub(crate) const MAX_BYTES: usize = 1 << 33;
/// Bytes for each element that reference operators need for a copy in 64 bits while they run.
const WORKING: usize = 8;

/// Checks that an output of this type and shape may be made and that there is memory for it, and gives its element
/// count: for who allocates it next. Reference operators collect it in steps or in 64 bits, and there must be room for
/// that, too.
///
/// # Errors
/// When it would take more memory than narrowbit allows, or than is left.
pub fn check_size(dtype: DType, out: &[usize]) -> Result<usize, OpError> {
    let n = check_limit(dtype, out)?;
    let bytes = byte_len(dtype, n).unwrap_or(0);
    memory::check(bytes, n.saturating_mul(WORKING).max(bytes.saturating_mul(2)))?;
    Ok(n)
}

/// As [`check_size`], for who allocates nothing yet: whatever memory there is.
///
/// # Errors
/// When it would take more memory than narrowbit allows.
pub fn check_limit(dtype: DType, out: &[usize]) -> Result<usize, OpError> {
    let too_large = || OpError::TooLarge { dtype, shape: out.to_vec() };
    let n = shape::count(out).map_err(|_| too_large())?;
    byte_len(dtype, n).filter(|&b| b <= MAX_BYTES).map(|_| n).ok_or_else(too_large)
}

/// Bytes of so many elements; of strings, those of the list.
fn byte_len(dtype: DType, n: usize) -> Option<usize> {
    if dtype == DType::String { n.checked_mul(size_of::<String>()) } else { dtype.byte_len(n) }
}

/// What an operator sees when types are inferred.
#[derive(Debug, Clone, Copy)]
pub struct InferCx<'a> {
    ins: &'a [Option<&'a Fact>],
    n_outputs: usize,
}

impl<'a> InferCx<'a> {
    /// A context over one fact per input.
    pub fn new(ins: &'a [Option<&'a Fact>], n_outputs: usize) -> InferCx<'a> {
        InferCx { ins, n_outputs }
    }

    /// The number of inputs, trailing absent ones included.
    pub fn len(&self) -> usize {
        self.ins.len()
    }

    /// Whether there are no inputs.
    pub fn is_empty(&self) -> bool {
        self.ins.is_empty()
    }

    /// The number of outputs of the node, trailing absent ones included.
    pub fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// An input's fact, where the input is present.
    pub fn opt(&self, i: usize) -> Option<&'a Fact> {
        self.ins.get(i).copied().flatten()
    }

    /// A required input's fact.
    ///
    /// # Errors
    /// When the input is absent.
    pub fn get(&self, i: usize) -> Result<&'a Fact, OpError> {
        self.opt(i).ok_or(OpError::MissingInput(i))
    }

    /// An input's element type, where known.
    pub fn dtype(&self, i: usize) -> Option<DType> {
        self.opt(i)?.dtype()
    }

    /// An input's extents, where the rank is known.
    pub fn shape(&self, i: usize) -> Option<&'a [Dim]> {
        self.opt(i)?.shape()
    }

    /// An input's content, where it is a constant.
    pub fn value(&self, i: usize) -> Option<&'a Tensor> {
        self.opt(i)?.value.as_ref()
    }

    /// An input's content as integers, where it is a constant of an integer type.
    pub fn ints(&self, i: usize) -> Option<Vec<i64>> {
        self.value(i)?.to_i64s().ok()
    }

    /// An input's content as extents, symbols included, where known.
    pub fn dims(&self, i: usize) -> Option<&'a [Dim]> {
        self.opt(i)?.dims.as_deref()
    }
}

/// What an operator sees when it runs.
#[derive(Debug, Clone, Copy)]
pub struct EvalCx<'a> {
    ins: &'a [Option<&'a Datum>],
    n_outputs: usize,
}

impl<'a> EvalCx<'a> {
    /// A context over one datum per input.
    pub fn new(ins: &'a [Option<&'a Datum>], n_outputs: usize) -> EvalCx<'a> {
        EvalCx { ins, n_outputs }
    }

    /// The number of inputs, trailing absent ones included.
    pub fn len(&self) -> usize {
        self.ins.len()
    }

    /// Whether there are no inputs.
    pub fn is_empty(&self) -> bool {
        self.ins.is_empty()
    }

    /// The number of outputs of the node, trailing absent ones included.
    pub fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// An input of any kind, where present.
    pub fn datum(&self, i: usize) -> Option<&'a Datum> {
        self.ins.get(i).copied().flatten()
    }

    /// An input tensor, where present.
    pub fn opt(&self, i: usize) -> Option<&'a Tensor> {
        self.datum(i)?.tensor()
    }

    /// A required input tensor.
    ///
    /// # Errors
    /// When the input is absent or no tensor.
    pub fn get(&self, i: usize) -> Result<&'a Tensor, OpError> {
        match self.datum(i) {
            None => Err(OpError::MissingInput(i)),
            Some(Datum::Tensor(t)) => Ok(t),
            Some(other) => Err(OpError::input(i, other.kind(), "a tensor")),
        }
    }

    /// Checks that there is memory for the copies of the inputs that reference operators make to compute in one type, and
    /// for what they make of them there:
    /// what runs an operator asks first. For the outputs [`check_size`] does.
    ///
    /// # Errors
    /// When there is not.
    pub fn check_memory(&self) -> Result<(), OpError> {
        let tensors = self.ins.iter().flatten().filter_map(|d| d.tensor());
        let elements = tensors.fold(0usize, |n, t| n.saturating_add(t.len()));
        Ok(memory::check(0, elements.saturating_mul(2 * WORKING))?)
    }

    /// All inputs as tensors.
    ///
    /// # Errors
    /// When one is absent or no tensor.
    pub fn all(&self) -> Result<Vec<&'a Tensor>, OpError> {
        (0..self.len()).map(|i| self.get(i)).collect()
    }
}

/// An operator that narrowbit does not know: kept as it is, so that the file
/// survives a round trip; it can be neither typed nor run.
#[derive(Debug, Clone)]
pub struct Opaque {
    /// The operator's domain.
    pub domain: String,
    /// The operator's name.
    pub name: String,
    /// Its attributes.
    pub attrs: AttrMap,
}

impl Op for Opaque {
    fn name(&self) -> &str {
        &self.name
    }

    fn domain(&self) -> &str {
        &self.domain
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::default(); cx.n_outputs()])
    }

    fn eval(&self, _: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        Err(OpError::Unsupported(format!("operator {} of domain \"{}\"", self.name, self.domain)))
    }

    fn attrs(&self) -> AttrMap {
        self.attrs.clone()
    }

    fn is_deterministic(&self) -> bool {
        false
    }
}
