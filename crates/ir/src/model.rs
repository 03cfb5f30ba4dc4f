use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{AttrMap, Graph};

/// A model file: a graph with what surrounds it.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The main graph.
    pub graph: Graph,
    /// The version of the file format (ONNX `ir_version`).
    pub ir_version: i64,
    /// The operator set versions, by domain (`""` is ONNX's own).
    pub opsets: BTreeMap<String, i64>,
    /// The tool that wrote the file.
    pub producer_name: String,
    /// That tool's version.
    pub producer_version: String,
    /// The model's namespace.
    pub domain: String,
    /// The model's own version.
    pub model_version: i64,
    /// A description.
    pub doc: String,
    /// Free key-value pairs, in the file's order.
    pub metadata: Vec<(String, String)>,
    /// Functions that the model defines.
    pub functions: Vec<Function>,
    /// Fields that narrowbit does not use, encoded as in the file (training info and the like).
    pub extra: Vec<Bytes>,
}

impl Model {
    /// The version of ONNX's own operator set.
    pub fn opset(&self) -> i64 {
        self.opsets.get("").or_else(|| self.opsets.get("ai.onnx")).copied().unwrap_or(1)
    }

    /// Sets a metadata entry, replacing one of the same key.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<String>) {
        let value = value.into();
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value,
            None => self.metadata.push((key.into(), value)),
        }
    }
}

/// An operator that the model defines by a graph (ONNX `FunctionProto`).
#[derive(Debug, Clone)]
pub struct Function {
    /// The function's domain.
    pub domain: String,
    /// The function's name.
    pub name: String,
    /// Distinguishes functions of one name.
    pub overload: String,
    /// The body; its inputs and outputs are the function's.
    pub graph: Graph,
    /// Names of attributes that the caller must give.
    pub required_attrs: Vec<String>,
    /// Attributes with defaults.
    pub attrs: AttrMap,
    /// The operator set versions of the body.
    pub opsets: BTreeMap<String, i64>,
    /// A description.
    pub doc: String,
}
