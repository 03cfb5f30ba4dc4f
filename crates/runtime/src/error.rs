use narrowbit_ir::{NodeError, OpError};
use narrowbit_kernels::KernelError;
use narrowbit_tensor::memory::readable;

/// Why a model could not be compiled or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A node's inputs contradict its operator.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The graph could not be edited for integer execution.
    #[error(transparent)]
    Patch(#[from] narrowbit_ir::PatchError),
    /// A kernel refused its arguments.
    #[error("in node \"{node}\": {error}")]
    Kernel {
        /// The node's name.
        node: String,
        /// What the kernel says.
        #[source]
        error: StepError,
    },
    /// The number of inputs is wrong.
    #[error("the model has {expected} inputs ({names}), {actual} were given")]
    InputCount {
        /// How many the model has.
        expected: usize,
        /// Their names.
        names: String,
        /// How many were given.
        actual: usize,
    },
    /// An input has another type or shape than the model says.
    #[error("input \"{name}\" is {actual}, the model takes {expected}\nhelp: {help}")]
    Input {
        /// The input's name.
        name: String,
        /// What the model takes.
        expected: String,
        /// What was given.
        actual: String,
        /// What to do.
        help: &'static str,
    },
    /// The number of outputs is wrong.
    #[error("the model has {expected} outputs, {actual} views were given for them")]
    OutputCount {
        /// How many the model has.
        expected: usize,
        /// How many were given.
        actual: usize,
    },
    /// An output was to go into a view of another type or shape.
    #[error(
        "output \"{name}\" is {expected}, the view for it is {actual}\nhelp: make a view of the result's type and shape"
    )]
    Output {
        /// The output's name.
        name: String,
        /// What it is.
        expected: String,
        /// What was given.
        actual: String,
    },
    /// The instruction set that the environment asks for is not there.
    #[error(transparent)]
    Isa(#[from] narrowbit_kernels::IsaError),
    /// No instruction multiplies bfloat16.
    #[error(
        "this machine has no products of bfloat16 (AVX512-BF16 or AMX-BF16) at instruction set \"{isa}\"\nhelp: run floats in 32 bits"
    )]
    NoBf16 {
        /// The instruction set.
        isa: String,
    },
    /// An observer gave up.
    #[error("{0}")]
    Observer(String),
}

/// Why one step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// A fast kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The reference evaluation failed.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A tensor could not be read.
    #[error(transparent)]
    Tensor(#[from] narrowbit_tensor::TensorError),
    /// There is no memory for what the steps of a run make.
    #[error(
        "the values of a run take {}, the result of this node, {largest}, the most of it, and there is not that much memory left\nhelp: {}",
        readable(*bytes as u64),
        "run smaller inputs or fewer samples at a time, on a machine or under a limit (ulimit -v) with more memory"
    )]
    Arena {
        /// Bytes of all values, where those that live at different times share memory.
        bytes: usize,
        /// Type and shape of the largest result.
        largest: String,
    },
    /// The result has another type or shape than was inferred.
    #[error("output {index} was inferred as {inferred}, but came out as {actual}")]
    Inferred {
        /// Which output.
        index: usize,
        /// What inference said.
        inferred: String,
        /// What came out.
        actual: String,
    },
}
