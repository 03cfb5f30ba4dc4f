use bytes::Bytes;
use narrowbit_ir::Datum;
use narrowbit_tensor::Tensor;
use prost::Message;

use super::error::{ImportError, Result};
use super::proto::{OptionalProto, SequenceProto, optional_proto, sequence_proto};
use super::source::Source;
use super::tensor;

/// What a data file (`.pb`) holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatumKind {
    /// A `TensorProto`.
    Tensor,
    /// A `SequenceProto`.
    Sequence,
    /// An `OptionalProto`.
    Optional,
}

/// Reads a `TensorProto`, as the data files of ONNX's tests hold them.
///
/// # Errors
/// When the bytes are no valid tensor.
pub fn parse_tensor(bytes: impl Into<Bytes>) -> Result<Tensor> {
    let src = Source::new("tensor", None);
    tensor::read(&src, "tensor", decode(&src, bytes.into())?)
}

/// Reads a message of the given kind.
///
/// # Errors
/// When the bytes are no valid message, or it holds maps or sparse tensors.
pub fn parse_datum(bytes: impl Into<Bytes>, kind: DatumKind) -> Result<Datum> {
    let (src, bytes) = (Source::new("data", None), bytes.into());
    match kind {
        DatumKind::Tensor => Ok(tensor::read(&src, "tensor", decode(&src, bytes)?)?.into()),
        DatumKind::Sequence => sequence(&src, decode(&src, bytes)?),
        DatumKind::Optional => optional(&src, decode(&src, bytes)?),
    }
}

fn decode<M: Message + Default>(src: &Source, bytes: Bytes) -> Result<M> {
    M::decode(bytes).map_err(|e| ImportError::NotOnnx { file: src.file(), problem: e.to_string() })
}

fn sequence(src: &Source, s: SequenceProto) -> Result<Datum> {
    use sequence_proto::DataType as T;
    let data = match s.elem_type.and_then(|t| T::try_from(t).ok()) {
        Some(T::Sequence) => s.sequence_values.into_iter().map(|x| sequence(src, x)).collect::<Result<_>>()?,
        Some(T::Optional) => s.optional_values.into_iter().map(|x| optional(src, x)).collect::<Result<_>>()?,
        Some(T::Map | T::SparseTensor) => return Err(src.broken("sequence", "holds maps or sparse tensors")),
        _ => {
            let tensor = |t| tensor::read(src, "tensor of a sequence", t).map(Datum::Tensor);
            s.tensor_values.into_iter().map(tensor).collect::<Result<_>>()?
        }
    };
    Ok(Datum::Sequence(data))
}

fn optional(src: &Source, o: OptionalProto) -> Result<Datum> {
    use optional_proto::DataType as T;
    let inner = match o.elem_type.and_then(|t| T::try_from(t).ok()) {
        Some(T::Sequence) => o.sequence_value.map(|s| sequence(src, s)).transpose()?,
        Some(T::Optional) => o.optional_value.map(|x| optional(src, *x)).transpose()?,
        Some(T::Map | T::SparseTensor) => return Err(src.broken("optional", "holds a map or a sparse tensor")),
        _ => o.tensor_value.map(|t| tensor::read(src, "tensor of an optional", t).map(Datum::Tensor)).transpose()?,
    };
    Ok(Datum::Optional(inner.map(Box::new)))
}
