use bytes::Bytes;
use narrowbit_ir::{Attr, Graph};
use prost::Message;

use super::error::Result;
use super::proto::attribute_proto::AttributeType as T;
use super::proto::{AttributeProto, GraphProto};
use super::source::Source;
use super::{tensor, types};

/// The value of an attribute; `subgraph` reads graphs, which need their surroundings.
pub(super) fn read(
    src: &Source,
    place: &str,
    a: AttributeProto,
    subgraph: &mut dyn FnMut(GraphProto) -> Result<Graph>,
) -> Result<Attr> {
    if let Some(name) = a.ref_attr_name.clone().filter(|n| !n.is_empty()) {
        return Ok(Attr::Ref { name, kind: a.r#type.unwrap_or(0) });
    }
    let name = a.name.clone().unwrap_or_default();
    let place = format!("{place}, attribute \"{name}\"");
    let missing = || src.broken(place.clone(), "has no value of its type");
    Ok(match kind(&a) {
        // Protobuf writers may leave out zeros.
        Some(T::Float) => Attr::Float(a.f.unwrap_or(0.0)),
        Some(T::Int) => Attr::Int(a.i.unwrap_or(0)),
        Some(T::String) => Attr::Str(Bytes::from(a.s.unwrap_or_default())),
        Some(T::Tensor) => Attr::Tensor(tensor::read(src, &place, a.t.ok_or_else(missing)?)?),
        Some(T::Graph) => Attr::Graph(Box::new(subgraph(a.g.ok_or_else(missing)?)?)),
        Some(T::Floats) => Attr::Floats(a.floats),
        Some(T::Ints) => Attr::Ints(a.ints),
        Some(T::Strings) => Attr::Strs(a.strings.into_iter().map(Bytes::from).collect()),
        Some(T::Tensors) => {
            Attr::Tensors(a.tensors.into_iter().map(|t| tensor::read(src, &place, t)).collect::<Result<_>>()?)
        }
        Some(T::TypeProto) if a.tp.as_ref().is_some_and(|t| types::rest(t).is_empty()) => {
            let tp = a.tp.ok_or_else(missing)?;
            Attr::Type(types::read(src, &place, &tp)?)
        }
        Some(T::SparseTensor) if name == "sparse_value" => {
            Attr::Tensor(tensor::read_sparse(src, &place, a.sparse_tensor.ok_or_else(missing)?)?)
        }
        _ => Attr::Raw(a.encode_to_vec().into()),
    })
}

/// The type that is stated or, in files of the first IR versions, the one whose field is set.
fn kind(a: &AttributeProto) -> Option<T> {
    match a.r#type.and_then(|t| T::try_from(t).ok()) {
        Some(T::Undefined) | None => {}
        known => return known,
    }
    let fields = [
        (a.f.is_some(), T::Float),
        (a.i.is_some(), T::Int),
        (a.s.is_some(), T::String),
        (a.t.is_some(), T::Tensor),
        (a.g.is_some(), T::Graph),
        (!a.floats.is_empty(), T::Floats),
        (!a.ints.is_empty(), T::Ints),
        (!a.strings.is_empty(), T::Strings),
        (!a.tensors.is_empty(), T::Tensors),
    ];
    fields.into_iter().find(|(set, _)| *set).map(|(_, t)| t)
}
