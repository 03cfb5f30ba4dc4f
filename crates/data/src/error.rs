//! What can go wrong with a data set, where, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Where in the data something is: a file, and where known an array and a sample of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The file or folder.
    pub file: PathBuf,
    /// The array, dataset or tensor in the file.
    pub array: Option<String>,
    /// The sample, counted from 0 in the order of the file.
    pub sample: Option<usize>,
}

impl Place {
    /// A whole file.
    pub fn file(path: impl AsRef<Path>) -> Place {
        Place { file: path.as_ref().to_owned(), array: None, sample: None }
    }

    /// The same file, at an array.
    pub fn array(&self, name: impl Into<String>) -> Place {
        Place { array: Some(name.into()), ..self.clone() }
    }

    /// The same file and array, at a sample.
    pub fn sample(&self, index: usize) -> Place {
        Place { sample: Some(index), ..self.clone() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.file.display())?;
        if let Some(array) = &self.array {
            write!(f, ", array \"{array}\"")?;
        }
        if let Some(sample) = self.sample {
            write!(f, ", sample {sample}")?;
        }
        Ok(())
    }
}

/// Why data could not be opened, read, converted or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("can't {action} {place}: {source}")]
    Io {
        /// Where.
        place: Box<Place>,
        /// What was tried: "open", "read", "write".
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is damaged or is not what its name says.
    #[error("in {place}: {what}\nhelp: {help}")]
    Format {
        /// Where.
        place: Box<Place>,
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// The file is sound but holds something that can't be used.
    #[error("in {place}: {what}\nhelp: {help}")]
    Unsupported {
        /// Where.
        place: Box<Place>,
        /// What can't be used.
        what: String,
        /// What to do.
        help: String,
    },
    /// Something exceeds a limit of [`crate::Limits`].
    #[error("in {place}: {what}\nhelp: {help}")]
    TooLarge {
        /// Where.
        place: Box<Place>,
        /// What is too large, and the limit.
        what: String,
        /// What to do.
        help: String,
    },
    /// A value is NaN or infinite.
    #[error("in {place}: element {element} is {value}\nhelp: remove or repair this sample")]
    NotFinite {
        /// Where.
        place: Box<Place>,
        /// The element's offset in the sample.
        element: usize,
        /// The value.
        value: f64,
    },
    /// The data does not fit the model or the labels do not fit the data.
    #[error("in {place}: {what}\nhelp: {help}")]
    Fit {
        /// Where.
        place: Box<Place>,
        /// What does not fit what.
        what: String,
        /// What to do.
        help: String,
    },
    /// An option has an impossible value.
    #[error("{what}\nhelp: {help}")]
    Config {
        /// Which option, and what is wrong with it.
        what: String,
        /// What to do.
        help: String,
    },
    /// A sample was asked for that does not exist.
    #[error("sample {index} was asked for, but the data set has {len} samples")]
    Index {
        /// The sample.
        index: usize,
        /// The number of samples.
        len: usize,
    },
}

macro_rules! shorthand {
    ($($name:ident => $variant:ident),*) => {
        $(pub(crate) fn $name(place: &Place, what: impl Into<String>, help: impl Into<String>) -> DataError {
            DataError::$variant { place: Box::new(place.clone()), what: what.into(), help: help.into() }
        })*
    };
}

impl DataError {
    shorthand! { format => Format, unsupported => Unsupported, too_large => TooLarge, fit => Fit }

    pub(crate) fn io(place: &Place, action: &'static str, source: io::Error) -> DataError {
        DataError::Io { place: Box::new(place.clone()), action, source }
    }

    pub(crate) fn config(what: impl Into<String>, help: impl Into<String>) -> DataError {
        DataError::Config { what: what.into(), help: help.into() }
    }

    /// An error of the tensor layer, which only an internal mismatch of lengths can cause.
    pub(crate) fn tensor(place: &Place, source: narrowbit_tensor::TensorError) -> DataError {
        DataError::format(place, source.to_string(), "write the file again with the tool that made it")
    }
}
