use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use narrowbit_tensor::mapped::map_file;

use super::error::{ImportError, Result};

/// The file being read: its name for messages, and its external data.
#[derive(Debug)]
pub(super) struct Source {
    file: String,
    base: Option<PathBuf>,
    /// External data, mapped once per file.
    maps: RefCell<BTreeMap<PathBuf, Bytes>>,
    /// What the model has taken of the limits below.
    captures: Cell<usize>,
    dense: Cell<usize>,
}

/// Captured values of all subgraphs together: each subgraph of a node lists all of the node's as inputs.
const MAX_CAPTURES: usize = 1 << 20;

/// Bytes that all sparse tensors of a model may take when they are made dense.
const MAX_DENSE: usize = 1 << 28;

impl Source {
    pub(super) fn new(file: impl Into<String>, base: Option<&Path>) -> Source {
        Source {
            file: file.into(),
            base: base.map(Path::to_path_buf),
            maps: RefCell::default(),
            captures: Cell::new(0),
            dense: Cell::new(0),
        }
    }

    pub(super) fn file(&self) -> String {
        self.file.clone()
    }

    pub(super) fn invalid(
        &self,
        place: impl Into<String>,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) -> ImportError {
        ImportError::Invalid { file: self.file(), place: place.into(), problem: problem.into(), help: help.into() }
    }

    pub(super) fn broken(&self, place: impl Into<String>, problem: impl Into<String>) -> ImportError {
        self.invalid(
            place,
            problem,
            "the file breaks the ONNX specification; run onnx.checker on it or export it again",
        )
    }

    /// Counts captured values before subgraphs get inputs for them.
    pub(super) fn charge_captures(&self, place: &str, n: usize) -> Result<()> {
        self.captures.set(self.captures.get().saturating_add(n));
        if self.captures.get() <= MAX_CAPTURES {
            return Ok(());
        }
        let problem = format!("the model's subgraphs read more than {MAX_CAPTURES} values from around them");
        Err(self.invalid(place, problem, "split the model; narrowbit makes an input for each of them"))
    }

    /// Counts the bytes of a sparse tensor before it is made dense.
    pub(super) fn charge_dense(&self, place: &str, bytes: usize) -> Result<()> {
        self.dense.set(self.dense.get().saturating_add(bytes));
        if self.dense.get() <= MAX_DENSE {
            return Ok(());
        }
        let problem = format!("the model's sparse tensors take more than {} MiB as dense ones", MAX_DENSE >> 20);
        Err(self.invalid(place, problem, "narrowbit computes on dense tensors only; save the model with dense ones"))
    }

    /// The external data read so far, by file.
    pub(super) fn external_files(self) -> Vec<PathBuf> {
        self.maps.into_inner().into_keys().collect()
    }

    /// Gives the content of a file of external data that is not in its place yet.
    pub(super) fn stands_in(&self, location: &OsStr, bytes: Bytes) {
        if let Some(base) = &self.base {
            self.maps.borrow_mut().insert(base.components().collect::<PathBuf>().join(location), bytes);
        }
    }

    /// The file at `location`, relative to the model's folder, as a memory map.
    pub(super) fn external(&self, place: &str, location: &str) -> Result<Bytes> {
        let Some(base) = &self.base else {
            let help = "load the model from its file instead of from bytes";
            return Err(self.invalid(place, "has external data, but the model's folder is not known", help));
        };
        let relative = Path::new(location);
        let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside || location.is_empty() {
            let problem = format!("external data {location:?} lies outside of the model's folder");
            return Err(self.invalid(place, problem, "put the data file beside the model and save the model again"));
        }
        // `./weights` and `weights` are one file.
        let path: PathBuf =
            base.components().chain(relative.components().filter(|c| *c != Component::CurDir)).collect();
        if let Some(bytes) = self.maps.borrow().get(&path) {
            return Ok(bytes.clone());
        }
        let io = |source| ImportError::Io { path: path.clone(), source };
        // A link inside of the folder may still lead out of it.
        let (real, folder) = (path.canonicalize().map_err(io)?, base.canonicalize().map_err(io)?);
        if !real.starts_with(&folder) {
            let problem = format!("external data {location:?} is a link that leads out of the model's folder");
            return Err(self.invalid(place, problem, "copy the data file into the model's folder"));
        }
        let bytes = map_file(&real).map_err(io)?;
        self.maps.borrow_mut().insert(path, bytes.clone());
        Ok(bytes)
    }
}
