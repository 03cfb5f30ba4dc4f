use narrowbit_tensor::Tensor;

/// What flows along an edge when a graph runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Datum {
    /// A tensor.
    Tensor(Tensor),
    /// A sequence of data of one type.
    Sequence(Vec<Datum>),
    /// A value that may be absent.
    Optional(Option<Box<Datum>>),
}

impl Datum {
    /// The tensor, if this is one.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Datum::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// What this is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Datum::Tensor(_) => "a tensor",
            Datum::Sequence(_) => "a sequence",
            Datum::Optional(_) => "an optional",
        }
    }
}

impl From<Tensor> for Datum {
    fn from(t: Tensor) -> Datum {
        Datum::Tensor(t)
    }
}
