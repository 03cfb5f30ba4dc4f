use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// One case of `index.json`; paths are relative to the case's folder.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    /// The name, also that of the folder.
    pub name: String,
    /// Operators of the model, subgraphs included, with the domain in front for others than ONNX's own.
    pub op_types: Vec<String>,
    /// Operator set versions by domain.
    pub opset_imports: BTreeMap<String, i64>,
    /// Relative tolerance.
    pub rtol: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// The model file.
    pub model: String,
    /// Inputs with expected outputs.
    pub data_sets: Vec<DataSet>,
}

/// Inputs with expected outputs.
#[derive(Debug, Clone, Deserialize)]
pub struct DataSet {
    /// In the order of the graph's inputs.
    pub inputs: Vec<Entry>,
    /// In the order of the graph's outputs.
    pub outputs: Vec<Entry>,
}

/// One data file.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    /// The graph input or output.
    pub name: String,
    /// `tensor`, `sequence`, `optional` or `map`.
    pub kind: String,
    /// The file.
    pub file: String,
}

/// Reads `index.json` of a folder with exported cases.
///
/// # Errors
/// When the file is missing or malformed, in words.
pub fn read_index(dir: &Path) -> Result<Vec<Case>, String> {
    let path = dir.join("index.json");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}
