//! Writing `.npy` and `.npz`, atomically and in constant memory.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use narrowbit_tensor::staged::beside;
use narrowbit_tensor::{DType, Tensor};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::{DataError, Place, npy};

/// Members above this get 64-bit sizes.
const ZIP64_FROM: u64 = u32::MAX as u64 - (1 << 16);

/// Writes one array; the file appears complete or not at all.
///
/// # Errors
/// When the file can't be written or NumPy has no such element type.
pub fn write_npy(path: impl AsRef<Path>, tensor: &Tensor) -> Result<(), DataError> {
    let path = path.as_ref();
    let place = Place::file(path);
    let header = npy::header_bytes(tensor.dtype(), tensor.shape(), &place)?;
    atomically(path, |file| {
        file.write_all(&header)?;
        file.write_all(tensor.bytes())
    })
}

/// Writes an archive of named arrays, one after the other; it appears complete or not at all.
///
/// # Errors
/// As [`write_npy`]; also when a name comes twice.
pub fn write_npz(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (impl Into<String>, Tensor)>,
) -> Result<(), DataError> {
    let mut writer = NpzWriter::create(path)?;
    for (name, tensor) in arrays {
        writer.add(name, &tensor)?;
    }
    writer.finish()
}

/// Writes through a temporary file beside the target and renames it.
fn atomically(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<(), DataError> {
    let place = Place::file(path);
    let failed = |e| DataError::io(&place, "write", e);
    let temporary = beside(path).map_err(failed)?;
    let mut out = BufWriter::new(temporary.as_file());
    write(&mut out).and_then(|()| out.flush()).map_err(failed)?;
    drop(out);
    temporary.persist(path).map(|_| ()).map_err(|e| failed(e.error))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An archive whose arrays grow row by row, several at a time, in constant memory.
///
/// Rows go to one anonymous temporary file per array beside the target; [`NpzWriter::finish`]
/// puts them together. Dropped without it, nothing is left behind.
#[derive(Debug)]
pub struct NpzWriter {
    path: PathBuf,
    arrays: Vec<Growing>,
    compress: bool,
}

#[derive(Debug)]
struct Growing {
    name: String,
    dtype: DType,
    /// Without axis 0 if `rows` counts it, else the whole shape.
    shape: Vec<usize>,
    rows: Option<usize>,
    spool: BufWriter<File>,
}

impl NpzWriter {
    /// Starts an archive at `path`; a file that is there stays until [`NpzWriter::finish`].
    ///
    /// # Errors
    /// When the folder does not exist.
    pub fn create(path: impl AsRef<Path>) -> Result<NpzWriter, DataError> {
        let path = path.as_ref().to_owned();
        // What can't be written is told of before the work, not after it.
        drop(beside(&path).map_err(|e| DataError::io(&Place::file(&path), "write", e))?);
        Ok(NpzWriter { path, arrays: Vec::new(), compress: false })
    }

    /// Deflates the arrays, as `numpy.savez_compressed` does.
    #[must_use]
    pub fn compressed(mut self) -> NpzWriter {
        self.compress = true;
        self
    }

    fn start(&mut self, name: String, tensor: &Tensor, rows: Option<usize>) -> Result<(), DataError> {
        let place = Place::file(&self.path).array(&name);
        npy::header_bytes(tensor.dtype(), tensor.shape(), &place)?;
        if self.arrays.iter().any(|a| a.name == name) {
            return Err(DataError::unsupported(
                &place,
                "an array of this name is there already",
                "choose another name",
            ));
        }
        let spool = tempfile::tempfile_in(folder_of(&self.path)).map_err(|e| DataError::io(&place, "write", e))?;
        let shape = tensor.shape()[usize::from(rows.is_some())..].to_vec();
        self.arrays.push(Growing { name, dtype: tensor.dtype(), shape, rows, spool: BufWriter::new(spool) });
        Ok(())
    }

    /// Adds a whole array.
    ///
    /// # Errors
    /// When the name is taken, NumPy has no such type, or the disk is full.
    pub fn add(&mut self, name: impl Into<String>, tensor: &Tensor) -> Result<(), DataError> {
        let name = name.into();
        let place = Place::file(&self.path).array(&name);
        self.start(name, tensor, None)?;
        match self.arrays.last_mut() {
            Some(array) => array.spool.write_all(tensor.bytes()).map_err(|e| DataError::io(&place, "write", e)),
            None => Ok(()),
        }
    }

    /// Appends `[n, …]` rows to the array of that name, which starts with its first rows. A tensor without
    /// dimensions is one row, so that such results make a vector.
    ///
    /// # Errors
    /// When rows differ in type or shape from earlier ones, or as [`NpzWriter::add`].
    pub fn append(&mut self, name: &str, rows: &Tensor) -> Result<(), DataError> {
        let place = Place::file(&self.path).array(name);
        let vector;
        let rows = match rows.rank() {
            0 => {
                vector = rows.reshaped([1]).map_err(|e| DataError::tensor(&place, e))?;
                &vector
            }
            _ => rows,
        };
        let Some((&n, row)) = rows.shape().split_first() else { return Ok(()) };
        if !self.arrays.iter().any(|a| a.name == name) {
            self.start(name.to_owned(), rows, Some(0))?;
        }
        let Some(array) = self.arrays.iter_mut().find(|a| a.name == name) else { return Ok(()) };
        match &mut array.rows {
            Some(count) if array.dtype == rows.dtype() && array.shape == row => {
                array.spool.write_all(rows.bytes()).map_err(|e| DataError::io(&place, "write", e))?;
                *count += n;
                Ok(())
            }
            _ => {
                let what = format!("rows of {} {row:?} do not go with {} {:?}", rows.dtype(), array.dtype, array.shape);
                Err(DataError::fit(&place, what, "write results of different shapes to different files, or pad them"))
            }
        }
    }

    /// Puts the archive together and moves it into place.
    ///
    /// # Errors
    /// When the disk is full or the target can't be replaced.
    pub fn finish(self) -> Result<(), DataError> {
        let place = Place::file(&self.path);
        let failed = |e| DataError::io(&place, "write", e);
        let temporary = beside(&self.path).map_err(failed)?;
        let mut zip = ZipWriter::new(FirstError { inner: BufWriter::new(temporary.as_file()), failed: false });
        for array in self.arrays {
            let mut shape: Vec<usize> = array.rows.into_iter().collect();
            shape.extend(&array.shape);
            let header = npy::header_bytes(array.dtype, &shape, &place.array(&array.name))?;
            put(&mut zip, array, &header, self.compress).map_err(failed)?;
        }
        let mut out = zip.finish().map_err(|e| failed(e.into()))?;
        out.flush().map_err(failed)?;
        drop(out);
        temporary.persist(&self.path).map(|_| ()).map_err(|e| failed(e.error))
    }
}

/// A writer that takes everything after its first error: `ZipWriter` tries to complete its archive when it is dropped, and would
/// print what comes of that.
struct FirstError<W> {
    inner: W,
    failed: bool,
}

impl<W> FirstError<W> {
    fn pass<T>(&mut self, afterwards: T, act: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Ok(afterwards);
        }
        let result = act(&mut self.inner);
        self.failed = result.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        result
    }
}

impl<W: Write> Write for FirstError<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pass(bytes.len(), |w| w.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass((), Write::flush)
    }
}

impl<W: Seek> Seek for FirstError<W> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.pass(0, |w| w.seek(to))
    }
}

fn put<W: Write + Seek>(zip: &mut ZipWriter<W>, array: Growing, header: &[u8], compress: bool) -> io::Result<()> {
    let mut spool = array.spool.into_inner().map_err(io::IntoInnerError::into_error)?;
    spool.rewind()?;
    let len = spool.metadata()?.len();
    let method = if compress { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    let options = SimpleFileOptions::default().compression_method(method).large_file(len > ZIP64_FROM);
    zip.start_file(format!("{}.npy", array.name), options)?;
    zip.write_all(header)?;
    io::copy(&mut BufReader::new(spool).take(len), zip)?;
    Ok(())
}
