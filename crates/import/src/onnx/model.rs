use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use narrowbit_ir::{Function, Graph, Model};
use narrowbit_tensor::mapped::map_file;
use prost::Message;

use super::error::{ImportError, Result};
use super::graph::{GraphReader, check_closed, pairs};
use super::proto::{FunctionProto, GraphProto, ModelProto, OperatorSetIdProto, ValueInfoProto};
use super::source::Source;
use super::{attr, wire};

/// The oldest version of ONNX's own operator set that narrowbit reads.
pub const OLDEST_OPSET: i64 = 7;

/// The newest version of ONNX's own operator set that narrowbit reads.
pub const NEWEST_OPSET: i64 = 25;

/// How a file is read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Versions of ONNX's own operator set that are accepted.
    pub opsets: RangeInclusive<i64>,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions { opsets: OLDEST_OPSET..=NEWEST_OPSET }
    }
}

/// Reads an ONNX file, mapped into memory; see [`narrowbit_tensor::mapped::map_file`] for what that asks of the file.
///
/// # Errors
/// When the file can't be read or is no valid model; the error names the file, the place and the remedy.
pub fn load(path: impl AsRef<Path>) -> Result<Model> {
    load_with(path, &ReadOptions::default())
}

/// As [`load`].
///
/// # Errors
/// As [`load`].
pub fn load_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Model> {
    let path = path.as_ref();
    read(&source(path), map(path)?, options)
}

/// The files of external data that a model's tensors lie in, each once, in the order of their names.
///
/// # Errors
/// As [`load`].
pub fn external_files(path: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let path = path.as_ref();
    let src = source(path);
    read(&src, map(path)?, &ReadOptions::default())?;
    Ok(src.external_files())
}

/// Reads a model that lies at `now` but is called `path`; its external data too may lie elsewhere than it is called.
pub(super) fn read_staged(path: &Path, now: &Path, data: Option<(&Path, &Path)>) -> Result<Model> {
    let src = source(path);
    if let Some((called, now)) = data {
        src.stands_in(called.file_name().unwrap_or_default(), map(now)?);
    }
    read(&src, map(now)?, &ReadOptions::default())
}

fn source(path: &Path) -> Source {
    let base = path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    Source::new(path.display().to_string(), base)
}

fn map(path: &Path) -> Result<Bytes> {
    map_file(path).map_err(|source| ImportError::Io { path: path.into(), source })
}

/// Reads an ONNX model from memory; `base` is the folder where its external data lies.
///
/// # Errors
/// As [`load`].
pub fn parse(bytes: impl Into<Bytes>, base: Option<&Path>) -> Result<Model> {
    parse_with(bytes, base, &ReadOptions::default())
}

/// As [`parse`].
///
/// # Errors
/// As [`load`].
pub fn parse_with(bytes: impl Into<Bytes>, base: Option<&Path>, options: &ReadOptions) -> Result<Model> {
    read(&Source::new("model", base), bytes.into(), options)
}

fn read(src: &Source, bytes: Bytes, options: &ReadOptions) -> Result<Model> {
    let not_onnx = |problem: String| ImportError::NotOnnx { file: src.file(), problem };
    if bytes.is_empty() {
        return Err(not_onnx("the file is empty".into()));
    }
    let extra = wire::scan(&bytes).map_err(not_onnx)?;
    let m = ModelProto::decode(bytes).map_err(|e| not_onnx(e.to_string()))?;
    let Some(graph) = m.graph else { return Err(not_onnx("it holds no graph".into())) };
    let opsets = opsets(m.opset_import);
    check_opset(src, &opsets, &graph, options)?;
    check_closed(src, &graph)?;
    let functions = m.functions.into_iter().map(|f| function(src, f)).collect::<Result<_>>()?;
    let graph = GraphReader { src, opsets: &opsets, build: true }.read(graph, &[])?;
    Ok(Model {
        graph,
        ir_version: m.ir_version.unwrap_or(0),
        opsets,
        producer_name: m.producer_name.unwrap_or_default(),
        producer_version: m.producer_version.unwrap_or_default(),
        domain: m.domain.unwrap_or_default(),
        model_version: m.model_version.unwrap_or(0),
        doc: m.doc_string.unwrap_or_default(),
        metadata: pairs(m.metadata_props),
        functions,
        extra,
    })
}

fn opsets(imports: Vec<OperatorSetIdProto>) -> BTreeMap<String, i64> {
    imports.into_iter().map(|o| (o.domain.unwrap_or_default(), o.version.unwrap_or(1))).collect()
}

fn check_opset(src: &Source, opsets: &BTreeMap<String, i64>, g: &GraphProto, options: &ReadOptions) -> Result<()> {
    let own = |d: Option<&str>| matches!(d, None | Some("" | "ai.onnx"));
    let version = match opsets.get("").or_else(|| opsets.get("ai.onnx")) {
        Some(v) => *v,
        // Files older than opset imports; a model of other domains needs none.
        None if g.node.iter().any(|n| own(n.domain.as_deref())) => 1,
        None => return Ok(()),
    };
    match options.opsets.contains(&version) {
        true => Ok(()),
        false => Err(ImportError::Opset { file: src.file(), version }),
    }
}

/// A function; its nodes stay opaque, as their operators depend on the caller's attributes.
fn function(src: &Source, f: FunctionProto) -> Result<Function> {
    let name = f.name.unwrap_or_default();
    let info = |name: &String| ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() };
    let types: BTreeMap<&str, &ValueInfoProto> =
        f.value_info.iter().filter_map(|v| Some((v.name.as_deref()?, v))).collect();
    let typed = |name: &String| types.get(name.as_str()).map_or_else(|| info(name), |v| (*v).clone());
    let body = GraphProto {
        name: Some(name.clone()),
        input: f.input.iter().map(typed).collect(),
        output: f.output.iter().map(typed).collect(),
        node: f.node,
        value_info: f.value_info.clone(),
        metadata_props: f.metadata_props,
        ..GraphProto::default()
    };
    check_closed(src, &body)?;
    let opsets = opsets(f.opset_import);
    let reader = GraphReader { src, opsets: &opsets, build: false };
    let graph = reader.read(body, &[])?;
    let place = format!("function \"{name}\"");
    let mut no_graphs = |_: GraphProto| -> Result<Graph> { Err(src.broken(&place, "has a graph as a default")) };
    let mut attrs = narrowbit_ir::AttrMap::new();
    for a in f.attribute_proto {
        let key = a.name.clone().unwrap_or_default();
        attrs.set(key, attr::read(src, &place, a, &mut no_graphs)?);
    }
    Ok(Function {
        domain: f.domain.unwrap_or_default(),
        name,
        overload: f.overload.unwrap_or_default(),
        graph,
        required_attrs: f.attribute,
        attrs,
        opsets,
        doc: f.doc_string.unwrap_or_default(),
    })
}
