//! Labels: class indices, masks, or scores, beside the samples or in a file of their own.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use narrowbit_tensor::{DType, Tensor};

use crate::column::{Column, check_range};
use crate::convert::cast;
use crate::source::{Source, read_small};
use crate::table::{self, Values};
use crate::{DataError, Limits, Place, arrays};

/// Text files above this are taken for a mistake.
const MAX_TEXT: u64 = 256 << 20;

/// What a label is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelKind {
    /// The index of the right class: `i64`, no dimensions.
    Class,
    /// The class of each pixel: integers, height × width.
    Mask,
    /// A number, or several: `f32`.
    Score,
}

/// The labels of a data set, read on demand.
#[derive(Clone)]
pub struct Labels {
    column: Arc<dyn Column>,
    kind: LabelKind,
    class_names: Vec<String>,
}

impl std::fmt::Debug for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Labels({:?}, {} of {})", self.kind, self.len(), self.column.place(0))
    }
}

impl Labels {
    /// Opens `.npy`, `.npz`, `.safetensors`, or a text file (`.csv`, `.txt`) with one label per
    /// line or columns of which one is called `label`.
    ///
    /// # Errors
    /// When the file can't be read or holds no labels.
    pub fn open(path: impl AsRef<Path>, limits: &Limits) -> Result<Labels, DataError> {
        let path = path.as_ref();
        Labels::from_source(&Source::open(path)?, path, limits)
    }

    /// Opens a file that is in memory; `name` stands for its path, with the ending.
    ///
    /// # Errors
    /// As [`Labels::open`].
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Bytes, limits: &Limits) -> Result<Labels, DataError> {
        Labels::from_source(&Source::Memory(bytes), name.as_ref(), limits)
    }

    fn from_source(source: &Source, path: &Path, limits: &Limits) -> Result<Labels, DataError> {
        let place = Place::file(path);
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        if matches!(ending.as_str(), "csv" | "txt" | "tsv") {
            return Labels::from_table(&read_table(source, &place)?.labels, &place);
        }
        let mut columns = arrays(source, path, limits)?;
        let chosen = match columns.len() {
            1 => Some(0),
            _ => columns.iter().position(|(name, _)| is_label_name(name)),
        };
        match chosen {
            Some(i) => Labels::from_column(columns.swap_remove(i).1),
            None => {
                let names: Vec<&str> = columns.iter().map(|(n, _)| n.as_str()).collect();
                let what = format!("none of the arrays {names:?} is called \"labels\"");
                Err(DataError::fit(&place, what, "rename the array to \"labels\", \"masks\" or \"scores\""))
            }
        }
    }

    pub(crate) fn from_table(cells: &[String], place: &Place) -> Result<Labels, DataError> {
        let (tensor, class_names) = match table::values(cells) {
            Values::Classes(v) => (Tensor::vector(v), Vec::new()),
            Values::Named(v, names) => (Tensor::vector(v), names),
            Values::Scores(v) => (Tensor::vector(v), Vec::new()),
        };
        Ok(Labels { class_names, ..Labels::from_column(Arc::new(Held { tensor, place: place.clone() }))? })
    }

    pub(crate) fn from_classes(classes: Vec<i64>, class_names: Vec<String>, place: &Place) -> Labels {
        let column = Arc::new(Held { tensor: Tensor::vector(classes), place: place.clone() });
        Labels { column, kind: LabelKind::Class, class_names }
    }

    /// Tells the kind from element type and shape (of the first sample, where they differ).
    pub(crate) fn from_column(column: Arc<dyn Column>) -> Result<Labels, DataError> {
        let shape = match column.shape() {
            Some(shape) => shape.to_vec(),
            None if column.len() == 0 => Vec::new(),
            None => column.read(0, 1)?.shape()[1..].to_vec(),
        };
        let extents = shape.iter().filter(|&&d| d != 1).count();
        let kind = match (column.dtype().is_float(), extents) {
            (true, _) => LabelKind::Score,
            // A mask of one pixel row is still a mask.
            (false, _) if shape.len() >= 2 => LabelKind::Mask,
            (false, 0) => LabelKind::Class,
            (false, _) => LabelKind::Score,
        };
        Ok(Labels { column, kind, class_names: Vec::new() })
    }

    /// The number of labels.
    pub fn len(&self) -> usize {
        self.column.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the labels are.
    pub fn kind(&self) -> LabelKind {
        self.kind
    }

    /// Names of the classes by index: of class folders, or of names in a table; else empty.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Labels `start..start + n`: classes as `i64` of shape `[n]`; masks as `u8` (or `i64` where
    /// the file has wider integers) of shape `[n, height, width]`; scores as `f32` of shape
    /// `[n]` or `[n, …]`.
    ///
    /// # Errors
    /// When the range leaves the labels or they can't be read.
    pub fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len())?;
        let place = self.column.place(start);
        let tensor = self.column.read(start, n)?;
        let failed = |e| DataError::tensor(&place, e);
        match self.kind {
            LabelKind::Class => cast(tensor.reshaped([n]).map_err(failed)?, DType::I64, &place),
            LabelKind::Score => cast(tensor, DType::F32, &place),
            LabelKind::Mask => {
                let sample = &tensor.shape()[1..];
                // [1, H, W] and [H, W, 1] are masks with a channel dimension.
                let shape = match *sample {
                    [1, h, w] | [h, w, 1] | [h, w] => [n, h, w],
                    _ => {
                        let what = format!("shape {sample:?} is no mask");
                        return Err(DataError::fit(&place, what, "store masks as [samples, height, width]"));
                    }
                };
                let to = if matches!(tensor.dtype(), DType::U8 | DType::Bool) { DType::U8 } else { DType::I64 };
                cast(tensor.reshaped(shape).map_err(failed)?, to, &place)
            }
        }
    }

    pub(crate) fn place(&self, index: usize) -> Place {
        self.column.place(index)
    }
}

pub(crate) fn read_table(source: &Source, place: &Place) -> Result<table::Labelled, DataError> {
    let bytes = read_small(source, place, MAX_TEXT)?;
    let text = String::from_utf8(bytes)
        .map_err(|e| DataError::format(place, format!("this is no text: {}", e.utf8_error()), "save it as UTF-8"))?;
    table::labelled(table::rows(&text, place)?, place)
}

/// Whether an array of this name holds labels, unless a model input has the name.
pub(crate) fn is_label_name(name: &str) -> bool {
    const NAMES: [&str; 11] =
        ["labels", "label", "masks", "mask", "targets", "target", "scores", "score", "y", "y_test", "y_true"];
    NAMES.contains(&name.to_ascii_lowercase().as_str())
}

/// A column that is in memory: parsed text, folder names.
struct Held {
    tensor: Tensor,
    place: Place,
}

impl Column for Held {
    fn len(&self) -> usize {
        self.tensor.len()
    }

    fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    fn shape(&self) -> Option<&[usize]> {
        Some(&[])
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len())?;
        let size = self.tensor.dtype().byte_len(1).unwrap_or(1);
        let bytes = self.tensor.bytes().slice(start * size..(start + n) * size);
        Tensor::from_bytes(self.tensor.dtype(), [n], bytes).map_err(|e| DataError::tensor(&self.place, e))
    }

    fn place(&self, index: usize) -> Place {
        self.place.sample(index)
    }
}
