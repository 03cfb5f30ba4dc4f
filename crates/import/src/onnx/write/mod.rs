//! Writing ONNX files.

mod graph;
mod rope;
mod tensor;
mod version;

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use narrowbit_ir::{Function, Model};
use narrowbit_tensor::staged::beside;
use tempfile::NamedTempFile;

use self::graph::{attribute, function_body, some};
use self::rope::Rope;
use self::tensor::External;
use super::error::ImportError;
use super::model::read_staged;
use super::proto::{FunctionProto, ModelProto, OperatorSetIdProto};

/// Protobuf readers refuse messages of 2 GiB and more.
const MAX_MESSAGE: usize = i32::MAX as usize;

pub use version::ir_version_of;

const MODEL_GRAPH: u32 = 7;
const MODEL_FUNCTIONS: u32 = 25;
const FUNCTION_NODE: u32 = 7;
const FUNCTION_ATTRIBUTE: u32 = 11;

/// Where the data of initializers goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExternalData {
    /// Into the model file, or into a file beside it when that would exceed 2 GiB.
    #[default]
    Auto,
    /// Into a file beside the model.
    Always,
    /// Into the model file.
    Never,
}

/// How a model is written.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// Where the data of initializers goes.
    pub external_data: ExternalData,
    /// Initializers of fewer bytes stay in the model file.
    pub external_threshold: usize,
}

impl Default for SaveOptions {
    fn default() -> SaveOptions {
        SaveOptions { external_data: ExternalData::Auto, external_threshold: 1024 }
    }
}

/// Why a model could not be written; files that stood there before are unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The model does not fit into one file.
    #[error("the model takes {0} bytes; ONNX files end at 2 GiB\nhelp: save it with external data")]
    TooLarge(usize),
}

/// Writes a model to `path`, and where needed its initializers to `path` with `.data` appended.
///
/// Both files are written under temporary names and renamed when they are complete. The bytes depend on the
/// model and the options alone.
///
/// # Errors
/// When a file can't be written, or the model exceeds 2 GiB without external data.
pub fn save(model: &Model, path: impl AsRef<Path>, options: &SaveOptions) -> Result<(), ExportError> {
    stage(model, path, options)?.commit()
}

/// A model that is written as [`save`] writes it, but still under a temporary name beside its place. Dropped
/// without [`Staged::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    model: NamedTempFile,
    data_path: PathBuf,
    data: Option<NamedTempFile>,
}

impl Staged {
    /// Reads what was written, so that it can be checked before it takes its place.
    ///
    /// # Errors
    /// As [`super::load`].
    pub fn load(&self) -> Result<Model, ImportError> {
        let data = self.data.as_ref().map(|file| (self.data_path.as_path(), file.path()));
        read_staged(&self.path, self.model.path(), data)
    }

    /// Moves the files into place; those that stood there before are replaced.
    ///
    /// # Errors
    /// When a file can't be replaced.
    pub fn commit(self) -> Result<(), ExportError> {
        let rename = |file: NamedTempFile, to: &Path| {
            file.persist(to).map_err(|e| ExportError::Io { path: to.into(), source: e.error })
        };
        // The data comes first, as the model refers to it.
        self.data.map(|f| rename(f, &self.data_path)).transpose()?;
        rename(self.model, &self.path)?;
        Ok(())
    }
}

/// Writes a model as [`save`] does, but leaves it to [`Staged::commit`] to put it in place.
///
/// # Errors
/// As [`save`].
pub fn stage(model: &Model, path: impl AsRef<Path>, options: &SaveOptions) -> Result<Staged, ExportError> {
    let path = path.as_ref();
    let mut data_path = path.to_path_buf().into_os_string();
    data_path.push(".data");
    let data_path = PathBuf::from(data_path);
    let location = data_path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let external = || Some(External::new(location.clone(), options.external_threshold));
    let mut data = if options.external_data == ExternalData::Always { external() } else { None };
    let mut rope = encode(model, &mut data);
    if rope.len() > MAX_MESSAGE && options.external_data == ExternalData::Auto {
        data = external();
        rope = encode(model, &mut data);
    }
    if rope.len() > MAX_MESSAGE {
        return Err(ExportError::TooLarge(rope.len()));
    }
    let data = data.filter(|d| !d.is_empty());
    let data = data.map(|d| temporary(&data_path, |out| d.write(out))).transpose()?;
    let model = temporary(path, |out| rope.write(out))?;
    Ok(Staged { path: path.into(), model, data_path, data })
}

/// The model as the bytes of one file.
///
/// # Errors
/// When it exceeds 2 GiB.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, ExportError> {
    let rope = encode(model, &mut None);
    if rope.len() > MAX_MESSAGE {
        return Err(ExportError::TooLarge(rope.len()));
    }
    Ok(rope.into_vec())
}

/// A complete file under a temporary name in the folder of `path`.
fn temporary(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<NamedTempFile, ExportError> {
    let make = || {
        let file = beside(path)?;
        let mut out = BufWriter::with_capacity(1 << 20, file.as_file());
        write(&mut out)?;
        out.flush()?;
        drop(out);
        if let Ok(old) = fs::metadata(path) {
            file.as_file().set_permissions(old.permissions())?;
        }
        Ok(file)
    };
    make().map_err(|source| ExportError::Io { path: path.into(), source })
}

fn encode(model: &Model, external: &mut Option<External>) -> Rope {
    let opset = |(domain, &version): (&String, &i64)| OperatorSetIdProto {
        domain: Some(domain.clone()),
        version: Some(version),
    };
    let mut out = Rope::default();
    out.fields(&ModelProto {
        ir_version: Some(version::ir_version(model)),
        opset_import: model.opsets.iter().map(opset).collect(),
        producer_name: some(&model.producer_name),
        producer_version: some(&model.producer_version),
        domain: some(&model.domain),
        model_version: (model.model_version != 0).then_some(model.model_version),
        doc_string: some(&model.doc),
        metadata_props: graph::props(&model.metadata),
        ..ModelProto::default()
    });
    out.message(MODEL_GRAPH, graph::graph(&model.graph, &[], external));
    model.functions.iter().for_each(|f| out.message(MODEL_FUNCTIONS, function(f)));
    model.extra.iter().for_each(|bytes| out.raw(bytes.clone()));
    out
}

fn function(f: &Function) -> Rope {
    let names = |ids: &[narrowbit_ir::ValueId]| ids.iter().map(|&id| f.graph.value(id).name.clone()).collect();
    let opset = |(domain, &version): (&String, &i64)| OperatorSetIdProto {
        domain: Some(domain.clone()),
        version: Some(version),
    };
    let (nodes, value_info) = function_body(&f.graph);
    let mut out = Rope::default();
    out.fields(&FunctionProto {
        name: Some(f.name.clone()),
        domain: Some(f.domain.clone()),
        overload: some(&f.overload),
        input: names(f.graph.inputs()),
        output: names(f.graph.outputs()),
        attribute: f.required_attrs.clone(),
        doc_string: some(&f.doc),
        opset_import: f.opsets.iter().map(opset).collect(),
        value_info,
        metadata_props: graph::props(&f.graph.metadata),
        ..FunctionProto::default()
    });
    nodes.into_iter().for_each(|n| out.message(FUNCTION_NODE, n));
    for (name, value) in f.attrs.iter() {
        out.message(FUNCTION_ATTRIBUTE, attribute(name, value, &[], &mut None));
    }
    out
}
