mod external;
mod functions;
mod hostile;
mod reading;
mod tensors;
mod writing;

use bytes::Bytes;
use narrowbit_ir::Model;
use prost::Message;

use super::error::{ImportError, Result};
use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use super::proto::type_proto::{Tensor, Value};
use super::proto::*;

/// An `f32` value; negative extents are left unknown.
fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| Dimension { denotation: None, value: (d >= 0).then_some(DimValue::DimValue(d)) };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let ty = Value::TensorType(Tensor { elem_type: Some(1), shape: Some(shape) });
    let ty = TypeProto { denotation: None, value: Some(ty) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..Default::default() }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        name: Some(format!("{op}_{}", outputs.first().copied().unwrap_or_default())),
        op_type: Some(op.into()),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        ..Default::default()
    }
}

fn with_graph(mut n: NodeProto, name: &str, g: GraphProto) -> NodeProto {
    n.attribute.push(AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(g),
        ..Default::default()
    });
    n
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(i),
        ..Default::default()
    }
}

fn floats(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    let raw: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(1),
        raw_data: Some(raw.into()),
        ..Default::default()
    }
}

fn graph(nodes: Vec<NodeProto>, inputs: &[&str], outputs: &[&str]) -> GraphProto {
    GraphProto {
        name: Some("g".into()),
        node: nodes,
        input: inputs.iter().map(|n| value(n, &[2])).collect(),
        output: outputs.iter().map(|n| value(n, &[2])).collect(),
        ..Default::default()
    }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

fn model(g: GraphProto) -> ModelProto {
    ModelProto { ir_version: Some(8), opset_import: vec![opset("", 17)], graph: Some(g), ..Default::default() }
}

fn parse(m: &ModelProto) -> Result<Model> {
    super::parse(Bytes::from(m.encode_to_vec()), None)
}

fn rewrite(m: &Model) -> ModelProto {
    ModelProto::decode(Bytes::from(super::to_bytes(m).unwrap())).unwrap()
}

fn problem(m: &ModelProto) -> String {
    match parse(m) {
        Ok(_) => panic!("the model was read"),
        Err(e @ ImportError::Invalid { .. }) => e.to_string(),
        Err(e) => panic!("another error: {e}"),
    }
}
