//! A look at a model's protobuf encoding before it is decoded.

use bytes::{Buf, Bytes};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::proto::{AttributeProto, NodeProto, TensorProto, TypeProto, ValueInfoProto};

/// Decoded messages are larger than their encoding, an empty one of two bytes up to a kilobyte. What they take may
/// be this much, and this many times the file's size: more than any sensible model, and no danger.
const BASE_COST: usize = 256 << 20;
const COST_PER_BYTE: usize = 64;

/// As deep as prost decodes.
const MAX_DEPTH: usize = 100;

/// The fields of a model that narrowbit does not use, each with its key, as in the file.
///
/// # Errors
/// In words, when the encoding is broken or decoding would take an absurd amount of memory.
pub(super) fn scan(bytes: &Bytes) -> Result<Vec<Bytes>, String> {
    let mut left = bytes.len().saturating_mul(COST_PER_BYTE).saturating_add(BASE_COST);
    walk(bytes, Kind::Model, &mut left, 0)?;
    unused_fields(bytes).map_err(|e| e.to_string())
}

/// The messages whose number matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Training,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Value,
    Type,
    Function,
    /// Key-value pairs and other small ones.
    Leaf,
}

impl Kind {
    /// The message in a field, where the field holds one.
    fn field(self, tag: u32) -> Option<Kind> {
        use Kind::*;
        Some(match (self, tag) {
            (Model, 7) => Graph,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Training, 1 | 2) => Graph,
            (Graph | Function, 1 | 7) if (self == Graph) == (tag == 1) => Node,
            (Graph, 5) => Tensor,
            (Graph, 15) => Sparse,
            (Graph, 11..=13) | (Function, 12) => Value,
            (Node, 5) | (Function, 11) => Attribute,
            (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
            (Attribute, 6 | 11) => Graph,
            (Attribute, 22 | 23) => Sparse,
            (Attribute, 14 | 15) | (Value, 2) => Type,
            (Type, 1 | 4 | 5 | 8 | 9) => Type,
            (Model, 8 | 14 | 26) | (Graph, 14 | 16) | (Function, 9 | 14) | (Training, 3 | 4) => Leaf,
            (Node, 9 | 10) | (Tensor, 13 | 16) | (Value, 4) | (Type, 2) | (Leaf, _) => Leaf,
            _ => return None,
        })
    }

    /// Bytes that one takes when decoded, at least.
    fn cost(self) -> usize {
        match self {
            Kind::Node => size_of::<NodeProto>(),
            Kind::Attribute => size_of::<AttributeProto>(),
            Kind::Tensor => size_of::<TensorProto>(),
            Kind::Sparse => 2 * size_of::<TensorProto>(),
            Kind::Value => size_of::<ValueInfoProto>(),
            Kind::Type => size_of::<TypeProto>(),
            Kind::Leaf => 64,
            Kind::Model | Kind::Training | Kind::Graph | Kind::Function => 512,
        }
    }
}

fn walk(bytes: &[u8], kind: Kind, left: &mut usize, depth: usize) -> Result<(), String> {
    let broken = |e: DecodeError| e.to_string();
    if depth > MAX_DEPTH {
        return Err("messages are nested too deeply".into());
    }
    let mut rest = bytes;
    while rest.has_remaining() {
        let (tag, wire): (u32, WireType) = decode_key(&mut rest).map_err(broken)?;
        let inner = kind.field(tag).filter(|_| wire == WireType::LengthDelimited);
        let Some(inner) = inner else {
            skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(broken)?;
            continue;
        };
        let len = decode_varint(&mut rest).map_err(broken)?;
        let len = usize::try_from(len).ok().filter(|&n| n <= rest.len()).ok_or("a length exceeds the file")?;
        *left = left.checked_sub(inner.cost()).ok_or("it consists of far more parts than its size allows for")?;
        let (message, after) = rest.split_at(len);
        // A leaf's fields are mostly text.
        if inner != Kind::Leaf {
            walk(message, inner, left, depth + 1)?;
        }
        rest = after;
    }
    Ok(())
}

fn unused_fields(bytes: &Bytes) -> Result<Vec<Bytes>, DecodeError> {
    const USED: [u32; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 14, 25];
    let mut rest = bytes.clone();
    let mut out = Vec::new();
    while rest.has_remaining() {
        let start = bytes.len() - rest.remaining();
        let (tag, wire): (u32, WireType) = decode_key(&mut rest)?;
        skip_field(wire, tag, &mut rest, DecodeContext::default())?;
        if !USED.contains(&tag) {
            out.push(bytes.slice(start..bytes.len() - rest.remaining()));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::encoding::{encode_key, encode_varint};

    fn field(tag: u32, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_key(tag, WireType::LengthDelimited, &mut out);
        encode_varint(content.len() as u64, &mut out);
        out.extend(content);
        out
    }

    #[test]
    fn refuses_millions_of_empty_messages() {
        let attributes = field(5, &[]).repeat(2_000_000);
        let model = field(7, &field(1, &attributes));
        assert!(scan(&Bytes::from(model)).unwrap_err().contains("far more parts"));
    }

    #[test]
    fn refuses_lengths_behind_the_end_and_deep_nesting() {
        assert!(scan(&Bytes::from_static(&[0x3a, 0x7f, 0])).is_err());
        let mut graph = Vec::new();
        for _ in 0..60 {
            graph = field(1, &field(5, &field(6, &graph)));
        }
        assert!(scan(&Bytes::from(field(7, &graph))).unwrap_err().contains("nested"));
    }

    #[test]
    fn keeps_fields_that_are_not_used() {
        let mut model = field(7, &[]);
        let unknown = field(99, b"future");
        model.extend(&unknown);
        assert_eq!(scan(&Bytes::from(model)).unwrap(), [Bytes::from(unknown)]);
    }
}
