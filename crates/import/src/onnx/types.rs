use bytes::Bytes;
use narrowbit_ir::{Dim, TensorType, ValueType};
use narrowbit_tensor::DType;
use prost::Message;

use super::error::Result;
use super::proto::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use super::proto::type_proto::{Optional, Sequence, Tensor, Value};
use super::proto::{TensorShapeProto, TypeProto};
use super::source::Source;

/// The type of a message; `place` names the value in errors.
pub(super) fn read(src: &Source, place: &str, t: &TypeProto) -> Result<ValueType> {
    let inner = |t: &Option<Box<TypeProto>>| match t {
        Some(t) => read(src, place, t).map(Box::new),
        None => Ok(Box::new(ValueType::Unknown)),
    };
    Ok(match &t.value {
        Some(Value::TensorType(t)) => ValueType::Tensor(TensorType {
            dtype: DType::from_onnx(t.elem_type.unwrap_or(0).into()),
            shape: t.shape.as_ref().map(|s| s.dim.iter().map(|d| dim(src, place, d)).collect()).transpose()?,
        }),
        Some(Value::SequenceType(s)) => ValueType::Sequence(inner(&s.elem_type)?),
        Some(Value::OptionalType(o)) => ValueType::Optional(inner(&o.elem_type)?),
        Some(Value::MapType(_) | Value::SparseTensorType(_) | Value::OpaqueType(_)) | None => ValueType::Unknown,
    })
}

fn dim(src: &Source, place: &str, d: &Dimension) -> Result<Dim> {
    Ok(match &d.value {
        // Some exporters write −1 for an extent that they do not know.
        Some(DimValue::DimValue(-1)) | None => Dim::Unknown,
        Some(DimValue::DimValue(n)) if *n < 0 => {
            return Err(src.broken(place, format!("has a negative extent, {n}")));
        }
        Some(DimValue::DimValue(n)) => Dim::Known(*n),
        Some(DimValue::DimParam(s)) if s.is_empty() => Dim::Unknown,
        Some(DimValue::DimParam(s)) => Dim::sym(s),
    })
}

/// The message encoded, where it says more than [`ValueType`] holds; empty otherwise.
pub(super) fn rest(t: &TypeProto) -> Bytes {
    if says_more(t) { t.encode_to_vec().into() } else { Bytes::new() }
}

fn says_more(t: &TypeProto) -> bool {
    let inner = |t: &Option<Box<TypeProto>>| t.as_ref().is_some_and(|t| says_more(t));
    t.denotation.is_some()
        || match &t.value {
            Some(Value::TensorType(t)) => {
                let code = t.elem_type.unwrap_or(0);
                (code != 0 && DType::from_onnx(code.into()).is_none())
                    || t.shape.iter().flat_map(|s| &s.dim).any(|d| d.denotation.is_some())
            }
            Some(Value::SequenceType(s)) => inner(&s.elem_type),
            Some(Value::OptionalType(o)) => inner(&o.elem_type),
            Some(Value::MapType(_) | Value::SparseTensorType(_) | Value::OpaqueType(_)) => true,
            None => false,
        }
}

/// The message for a type, completed with what `rest` kept of the file's; `None` where nothing is known.
pub(super) fn write(ty: &ValueType, rest: &Bytes) -> Option<TypeProto> {
    let kept = if rest.is_empty() { None } else { TypeProto::decode(rest.clone()).ok() };
    overlay(ty, kept)
}

fn overlay(ty: &ValueType, kept: Option<TypeProto>) -> Option<TypeProto> {
    let denotation = kept.as_ref().and_then(|k| k.denotation.clone());
    let kept_value = kept.as_ref().and_then(|k| k.value.clone());
    let value = match (ty, kept_value) {
        (ValueType::Unknown, _) => return kept,
        (ValueType::Tensor(t), k) => {
            let k = match k {
                Some(Value::TensorType(k)) => Some(k),
                _ => None,
            };
            tensor(t, k)?
        }
        (ValueType::Sequence(e), k) => {
            let k = match k {
                Some(Value::SequenceType(s)) => s.elem_type.map(|t| *t),
                _ => None,
            };
            Value::SequenceType(Box::new(Sequence { elem_type: overlay(e, k).map(Box::new) }))
        }
        (ValueType::Optional(e), k) => {
            let k = match k {
                Some(Value::OptionalType(s)) => s.elem_type.map(|t| *t),
                _ => None,
            };
            Value::OptionalType(Box::new(Optional { elem_type: overlay(e, k).map(Box::new) }))
        }
    };
    Some(TypeProto { denotation, value: Some(value) })
}

fn tensor(t: &TensorType, kept: Option<Tensor>) -> Option<Value> {
    let elem_type = t.dtype.map(DType::to_onnx).or(kept.as_ref().and_then(|k| k.elem_type))?;
    let kept = kept.and_then(|k| k.shape).map(|s| s.dim).unwrap_or_default();
    let shape = t.shape.as_ref().map(|dims| {
        let same_rank = kept.len() == dims.len();
        let denotation = |i: usize| if same_rank { kept[i].denotation.clone() } else { None };
        let dim = dims.iter().enumerate().map(|(i, d)| Dimension { denotation: denotation(i), value: dim_value(d) });
        TensorShapeProto { dim: dim.collect() }
    });
    Some(Value::TensorType(Tensor { elem_type: Some(elem_type), shape }))
}

fn dim_value(d: &Dim) -> Option<DimValue> {
    match d {
        Dim::Known(n) if *n >= 0 => Some(DimValue::DimValue(*n)),
        Dim::Sym(s) => Some(DimValue::DimParam(s.to_string())),
        _ => None,
    }
}
