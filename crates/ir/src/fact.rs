use std::fmt;

use narrowbit_tensor::{DType, Tensor};

use crate::Dim;

/// The type of a tensor as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TensorType {
    /// The element type.
    pub dtype: Option<DType>,
    /// The extents; `None` where not even the rank is known.
    pub shape: Option<Vec<Dim>>,
}

impl TensorType {
    /// A type with known element type and shape.
    pub fn new(dtype: DType, shape: Vec<Dim>) -> TensorType {
        TensorType { dtype: Some(dtype), shape: Some(shape) }
    }

    /// The exact type of a tensor.
    pub fn of(tensor: &Tensor) -> TensorType {
        TensorType::new(tensor.dtype(), tensor.shape().iter().map(|&d| d.into()).collect())
    }

    /// All extents as numbers, where they are known.
    pub fn concrete_shape(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().map(Dim::as_usize).collect()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dtype.map_or("?", DType::name))?;
        match &self.shape {
            None => f.write_str("[..]"),
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                write!(f, "[{}]", dims.join(", "))
            }
        }
    }
}

/// The type of a value as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ValueType {
    /// Nothing is known.
    #[default]
    Unknown,
    /// A tensor.
    Tensor(TensorType),
    /// A sequence of values of one type.
    Sequence(Box<ValueType>),
    /// A value that may be absent.
    Optional(Box<ValueType>),
}

impl ValueType {
    /// The tensor type, if this is known to be a tensor.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            ValueType::Tensor(t) => Some(t),
            _ => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Unknown => f.write_str("?"),
            ValueType::Tensor(t) => t.fmt(f),
            ValueType::Sequence(t) => write!(f, "seq({t})"),
            ValueType::Optional(t) => write!(f, "optional({t})"),
        }
    }
}

/// All that inference knows of a value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fact {
    /// Its type.
    pub ty: ValueType,
    /// Its content, where that does not depend on the model's inputs.
    pub value: Option<Tensor>,
    /// The elements of a small integer tensor (rank 0 or 1), symbols included:
    /// how extents travel through Shape, Gather, Concat and the like.
    pub dims: Option<Vec<Dim>>,
}

impl Fact {
    /// A tensor of the given type; either part may be unknown.
    pub fn tensor(dtype: Option<DType>, shape: Option<Vec<Dim>>) -> Fact {
        Fact { ty: ValueType::Tensor(TensorType { dtype, shape }), ..Fact::default() }
    }

    /// A constant.
    pub fn constant(value: Tensor) -> Fact {
        let dims = (value.rank() <= 1 && value.len() <= Fact::MAX_DIMS && value.dtype().is_int())
            .then(|| value.to_i64s().ok())
            .flatten()
            .map(|v| v.into_iter().map(Dim::Known).collect());
        Fact { ty: ValueType::Tensor(TensorType::of(&value)), dims, value: Some(value) }
    }

    /// The same fact with the elements of a shape computation.
    pub fn with_dims(mut self, dims: Option<Vec<Dim>>) -> Fact {
        self.dims = dims.filter(|d| d.len() <= Fact::MAX_DIMS);
        self
    }

    /// Contents of integer tensors longer than this are no shape computation.
    pub const MAX_DIMS: usize = 64;

    /// The element type, where known.
    pub fn dtype(&self) -> Option<DType> {
        self.ty.tensor()?.dtype
    }

    /// The extents, where the rank is known.
    pub fn shape(&self) -> Option<&[Dim]> {
        self.ty.tensor()?.shape.as_deref()
    }
}
