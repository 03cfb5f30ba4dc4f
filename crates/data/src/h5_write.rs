//! Writing HDF5: a flat file of datasets at the root, in constant memory but for a few bytes per dataset.
//!
//! What is written is the least that the format has, which every reader since HDF5 1.0 knows ("HDF5 File Format
//! Specification 3.0"): superblock 0, object headers 1, contiguous little-endian data, and a root group whose names stand in
//! a local heap, its symbols in nodes below one B-tree node. A crate that writes HDF5 would bring filters, chunks and links
//! that we do not write.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use narrowbit_tensor::staged::beside;
use narrowbit_tensor::{DType, Tensor};
use tempfile::NamedTempFile;

use crate::{DataError, Place};

/// The address of nothing.
const UNDEFINED: u64 = u64::MAX;
/// Half of the symbols of a node; the format's own default is 4.
const LEAF_K: u16 = 32;
const SYMBOLS: usize = 2 * LEAF_K as usize;
/// Datasets that one B-tree node can index.
const MOST: usize = SYMBOLS * 2 * u16::MAX as usize;
const SUPERBLOCK: u64 = 96;

/// A dataset whose elements are written.
#[derive(Debug)]
struct Written {
    dtype: DType,
    shape: Vec<usize>,
    address: u64,
    bytes: u64,
}

/// A file of datasets at the root; it appears complete or not at all.
#[derive(Debug)]
pub struct H5Writer {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    at: u64,
    datasets: BTreeMap<String, Written>,
}

impl H5Writer {
    /// Starts a file at `path`; one that is there stays until [`H5Writer::finish`].
    ///
    /// # Errors
    /// When the folder does not exist.
    pub fn create(path: impl AsRef<Path>) -> Result<H5Writer, DataError> {
        let path = path.as_ref().to_owned();
        let place = Place::file(&path);
        let failed = |e| DataError::io(&place, "write", e);
        let mut out = BufWriter::new(beside(&path).map_err(failed)?);
        out.write_all(&[0; SUPERBLOCK as usize]).map_err(failed)?;
        Ok(H5Writer { path, out, at: SUPERBLOCK, datasets: BTreeMap::new() })
    }

    /// Adds a dataset. bfloat16 and 8-bit floats become float32, booleans uint8: HDF5 has no such types.
    ///
    /// # Errors
    /// When the name is empty, has a slash or is taken, the type is no number of whole bytes, or the disk is full.
    pub fn add(&mut self, name: &str, tensor: &Tensor) -> Result<(), DataError> {
        let place = Place::file(&self.path).array(name);
        let help = "choose another name";
        if name.is_empty() || name == "." || name.contains(['/', '\0']) {
            return Err(DataError::unsupported(&place, "HDF5 has no such name in a group", help));
        }
        if self.datasets.contains_key(name) {
            return Err(DataError::unsupported(&place, "a dataset of this name is there already", help));
        }
        if self.datasets.len() >= MOST {
            return Err(DataError::too_large(&place, format!("more than {MOST} datasets"), "write an .npz"));
        }
        let floats;
        let tensor = match tensor.dtype() {
            DType::Bool => tensor,
            d if datatype(d).is_none() => {
                floats = tensor.to_f32s().ok().and_then(|v| Tensor::new(tensor.shape(), v.into_owned()).ok());
                let help = "write an .npz, or convert the output to float32";
                floats.as_ref().ok_or_else(|| DataError::unsupported(&place, format!("HDF5 has no type {d}"), help))?
            }
            _ => tensor,
        };
        let address = self.at;
        self.put(tensor.bytes()).map_err(|e| DataError::io(&place, "write", e))?;
        let written = Written {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            address,
            bytes: tensor.bytes().len() as u64,
        };
        self.datasets.insert(name.to_owned(), written);
        Ok(())
    }

    /// Writes the groups and moves the file into place.
    ///
    /// # Errors
    /// When the disk is full or the target can't be replaced.
    pub fn finish(mut self) -> Result<(), DataError> {
        let place = Place::file(&self.path);
        let failed = |e| DataError::io(&place, "write", e);
        let superblock = self.groups().map_err(failed)?;
        self.out.seek(SeekFrom::Start(0)).and_then(|_| self.out.write_all(&superblock)).map_err(failed)?;
        let file = self.out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.persist(&self.path).map(|_| ()).map_err(|e| failed(e.error))
    }

    /// Writes bytes at the end, and up to the next multiple of 8.
    fn put(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.at;
        self.out.write_all(bytes)?;
        let gap = bytes.len().next_multiple_of(8) - bytes.len();
        self.out.write_all(&[0; 8][..gap])?;
        self.at += (bytes.len() + gap) as u64;
        Ok(at)
    }

    /// Object headers, heap, symbols and tree; the superblock that goes to the start.
    fn groups(&mut self) -> io::Result<Vec<u8>> {
        let datasets = std::mem::take(&mut self.datasets);
        // The names in the order of their bytes, each behind the empty one that the tree begins with.
        let mut heap = vec![0u8; 8];
        let mut symbols: Vec<(u64, u64)> = Vec::new();
        for (name, d) in &datasets {
            let header = self.put(&object_header(&messages(d)))?;
            symbols.push((heap.len() as u64, header));
            heap.extend(name.as_bytes());
            heap.push(0);
            heap.resize(heap.len().next_multiple_of(8), 0);
        }
        let data = self.put(&heap)?;
        let mut head = b"HEAP\0\0\0\0".to_vec();
        // 1: no free space.
        [heap.len() as u64, 1, data].iter().for_each(|v| head.extend(v.to_le_bytes()));
        let heap = self.put(&head)?;
        let mut children = Vec::new();
        for part in symbols.chunks(SYMBOLS) {
            children.push((self.put(&symbol_node(part))?, part.last().map_or(0, |s| s.0)));
        }
        let internal_k = u16::try_from(children.len().div_ceil(2)).unwrap_or(u16::MAX).max(16);
        let tree = self.put(&tree_node(&children, internal_k))?;
        let table: Vec<u8> = [tree, heap].iter().flat_map(|a| a.to_le_bytes()).collect();
        let root = self.put(&object_header(&[(0x11, table.clone())]))?;
        Ok(superblock(root, &table, internal_k, self.at))
    }
}

fn superblock(root: u64, table: &[u8], internal_k: u16, end: u64) -> Vec<u8> {
    let mut b = b"\x89HDF\r\n\x1a\n".to_vec();
    // Versions, and the sizes of addresses and lengths.
    b.extend([0, 0, 0, 0, 0, 8, 8, 0]);
    b.extend(LEAF_K.to_le_bytes());
    b.extend(internal_k.to_le_bytes());
    b.extend(0u32.to_le_bytes());
    // Base, free space, end, driver; the root: name, header, and its table in the scratch pad (1).
    [0, UNDEFINED, end, UNDEFINED, 0, root, 1].iter().for_each(|v: &u64| b.extend(v.to_le_bytes()));
    b.extend(table);
    b
}

fn symbol_node(symbols: &[(u64, u64)]) -> Vec<u8> {
    let mut b = b"SNOD\x01\0".to_vec();
    b.extend((symbols.len() as u16).to_le_bytes());
    for (name, header) in symbols {
        [*name, *header, 0, 0, 0].iter().for_each(|v| b.extend(v.to_le_bytes()));
    }
    b.resize(8 + SYMBOLS * 40, 0);
    b
}

/// One node whose keys are the last names of its children.
fn tree_node(children: &[(u64, u64)], internal_k: u16) -> Vec<u8> {
    let mut b = b"TREE\0\0".to_vec();
    b.extend((children.len() as u16).to_le_bytes());
    [UNDEFINED, UNDEFINED, 0].iter().for_each(|v| b.extend(v.to_le_bytes()));
    for (child, last) in children {
        [child, last].iter().for_each(|v| b.extend(v.to_le_bytes()));
    }
    b.resize(24 + 8 + usize::from(internal_k) * 2 * 16, 0);
    b
}

/// Version 1: each message with its type and length, in multiples of 8.
fn object_header(messages: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, data) in messages {
        let len = data.len().next_multiple_of(8);
        body.extend(kind.to_le_bytes());
        body.extend((len as u16).to_le_bytes());
        body.extend([0; 4]);
        body.extend(data);
        body.resize(body.len() + len - data.len(), 0);
    }
    let mut b = vec![1, 0];
    b.extend((messages.len() as u16).to_le_bytes());
    b.extend(1u32.to_le_bytes());
    b.extend((body.len() as u32).to_le_bytes());
    b.extend([0; 4]);
    b.extend(body);
    b
}

fn messages(d: &Written) -> [(u16, Vec<u8>); 4] {
    let mut space = vec![1, d.shape.len() as u8, 0, 0, 0, 0, 0, 0];
    d.shape.iter().for_each(|&n| space.extend((n as u64).to_le_bytes()));
    let mut layout = vec![3, 1];
    let address = if d.bytes == 0 { UNDEFINED } else { d.address };
    [address, d.bytes].iter().for_each(|v| layout.extend(v.to_le_bytes()));
    let kind = datatype(d.dtype).unwrap_or_default();
    // A fill value of version 2: space is there, none is defined.
    [(0x01, space), (0x03, kind), (0x05, vec![2, 2, 0, 0]), (0x08, layout)]
}

/// The message of an element type: class and version, flags, bytes, and where the bits are.
fn datatype(dtype: DType) -> Option<Vec<u8>> {
    let bytes = (dtype.bits() / 8) as u32;
    let whole = |signed: bool| {
        let mut b = vec![0x10, if signed { 8 } else { 0 }, 0, 0];
        b.extend(bytes.to_le_bytes());
        [0, 8 * bytes as u16].iter().for_each(|v: &u16| b.extend(v.to_le_bytes()));
        Some(b)
    };
    let float = |mantissa: u8, exponent: u8| {
        let bits = 8 * bytes as u16;
        // A mantissa without its first bit, and the sign in the highest bit.
        let mut b = vec![0x11, 0x20, (bits - 1) as u8, 0];
        b.extend(bytes.to_le_bytes());
        [0, bits].iter().for_each(|v: &u16| b.extend(v.to_le_bytes()));
        b.extend([mantissa, exponent, 0, mantissa]);
        b.extend(((1u32 << (exponent - 1)) - 1).to_le_bytes());
        Some(b)
    };
    match dtype {
        DType::F16 => float(10, 5),
        DType::F32 => float(23, 8),
        DType::F64 => float(52, 11),
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => whole(true),
        DType::U8 | DType::U16 | DType::U32 | DType::U64 | DType::Bool => whole(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path, name: &str) -> (Vec<u64>, Vec<f32>) {
        let file = hdf5_reader::Hdf5File::open(path).unwrap();
        let dataset = file.dataset(name).unwrap();
        (dataset.shape().to_vec(), dataset.read_array::<f32>().unwrap().iter().copied().collect())
    }

    #[test]
    fn writes_what_the_reader_reads() {
        let dir = tempfile::tempdir().unwrap();
        for n in [0, 1, 64, 65, 5000] {
            let path = dir.path().join(format!("{n}.h5"));
            let mut out = H5Writer::create(&path).unwrap();
            // Not in the order of their names.
            for i in (0..n).rev() {
                out.add(&format!("s{i}"), &Tensor::new([1, 3], vec![i as f32, 0.5, -1.0]).unwrap()).unwrap();
            }
            out.finish().unwrap();
            for i in (0..n).step_by(61) {
                assert_eq!(read(&path, &format!("s{i}")), (vec![1, 3], vec![i as f32, 0.5, -1.0]));
            }
            let file = hdf5_reader::Hdf5File::open(&path).unwrap();
            assert_eq!(file.root_group().unwrap().member_names().unwrap().1.len(), n);
        }
    }

    #[test]
    fn widens_types_that_hdf5_has_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.h5");
        let mut out = H5Writer::create(&path).unwrap();
        let half = Tensor::new([2], vec![half::bf16::from_f32(1.5), half::bf16::from_f32(-2.0)]).unwrap();
        out.add("bf16", &half).unwrap();
        out.add("empty", &Tensor::new([0, 4], Vec::<f32>::new()).unwrap()).unwrap();
        out.finish().unwrap();
        assert_eq!(read(&path, "bf16").1, [1.5, -2.0]);
        assert_eq!(read(&path, "empty"), (vec![0, 4], vec![]));
    }

    #[test]
    fn refuses_names_that_are_paths_or_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.h5");
        let mut out = H5Writer::create(&path).unwrap();
        let t = Tensor::scalar(1f32);
        assert!(out.add("a/b", &t).is_err() && out.add("", &t).is_err());
        out.add("a", &t).unwrap();
        assert!(out.add("a", &t).is_err());
        drop(out);
        assert!(!path.exists(), "what is not finished leaves nothing");
    }
}
