//! HDF5 files: root datasets, or `calibration/<name>` and `test/<name>` with one sample each.
//!
//! The reader is the pure Rust crate `hdf5-reader`. It is hardened, but large; every call
//! goes through [`guarded`], which turns a panic on a hostile file into an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hdf5_reader::error::Error;
use hdf5_reader::{Dataset, Datatype, Hdf5File, OpenOptions, SliceInfo, SliceInfoElem};
use narrowbit_tensor::{DType, Tensor};

use crate::column::{Column, Columns, check_empty, check_range, make_tensor, stack, swap_bytes};
use crate::{DataError, Limits, Place, Split};

/// Items read from one handle before it is opened anew: the reader caches each object's
/// header for as long as the file is open.
const ITEMS_PER_HANDLE: usize = 1024;

/// Where the bytes come from, to open them anew.
#[derive(Clone)]
pub(crate) enum Origin {
    Path(std::path::PathBuf),
    Memory(Bytes),
}

impl Origin {
    pub(crate) fn path(path: &Path) -> Origin {
        Origin::Path(path.to_owned())
    }
}

struct Handle {
    origin: Origin,
    place: Place,
    limits: Limits,
    cache_bytes: usize,
    open: Mutex<(Hdf5File, usize)>,
}

impl Handle {
    fn new(origin: Origin, place: Place, limits: &Limits, cache_bytes: usize) -> Result<Arc<Handle>, DataError> {
        let file = open_file(&origin, &place, limits, cache_bytes)?;
        Ok(Arc::new(Handle { origin, place, limits: limits.clone(), cache_bytes, open: Mutex::new((file, 0)) }))
    }

    fn dataset(&self, path: &str, at: &Place) -> Result<Dataset, DataError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.1 >= ITEMS_PER_HANDLE {
            *open = (open_file(&self.origin, &self.place, &self.limits, self.cache_bytes)?, 0);
        }
        open.1 += 1;
        guarded(at, || open.0.dataset(path))
    }
}

fn open_file(origin: &Origin, place: &Place, limits: &Limits, cache_bytes: usize) -> Result<Hdf5File, DataError> {
    let options = OpenOptions::default()
        .with_chunk_cache_bytes(cache_bytes)
        .with_max_chunk_bytes(limits.read_bytes)
        .with_max_read_bytes(limits.read_bytes)
        .with_max_object_header_bytes(limits.whole_bytes);
    guarded(place, || match origin {
        Origin::Path(path) => Hdf5File::open_with_options(path, options),
        Origin::Memory(bytes) => Hdf5File::from_owner(bytes.clone(), options),
    })
}

/// Runs a call of the reader; its errors and panics become [`DataError`].
fn guarded<T>(place: &Place, call: impl FnOnce() -> Result<T, Error>) -> Result<T, DataError> {
    let help = "check the file with h5dump, or save it again with h5py";
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Error::Io(e))) => Err(DataError::io(place, "read", e)),
        Ok(Err(e)) => Err(DataError::format(place, format!("the HDF5 file can't be read: {e}"), help)),
        Err(_) => Err(DataError::format(place, "the HDF5 reader gave up on this file: it is damaged", help)),
    }
}

/// The columns of a file; `split` picks the group where there are groups.
pub(crate) fn open(origin: Origin, place: &Place, split: Split, limits: &Limits) -> Result<Columns, DataError> {
    let handle = Handle::new(origin.clone(), place.clone(), limits, limits.whole_bytes)?;
    let (groups, datasets) = members(&handle, "/")?;
    if let Some(group) = split.group_names().iter().find(|n| groups.iter().any(|g| g == *n)) {
        let (items, arrays) = members(&handle, group)?;
        if arrays.iter().any(|a| a == "images" || a == "inputs") {
            return whole_columns(&handle, &format!("/{group}"), arrays);
        }
        // Each sample is read once: a cache would keep all of them.
        let handle = Handle::new(origin, place.clone(), limits, 0)?;
        return item_columns(&handle, group, items, arrays);
    }
    if !datasets.is_empty() {
        return whole_columns(&handle, "", datasets);
    }
    let what = format!("there is no group \"{}\", only {groups:?}", split.group_names()[0]);
    let help =
        "put one dataset per input at the root, or one sample per member into the groups \"calibration\" and \"test\"";
    Err(DataError::format(place, what, help))
}

/// Names of the groups and datasets in a group, each sorted, as h5py lists them.
fn members(handle: &Handle, group: &str) -> Result<(Vec<String>, Vec<String>), DataError> {
    let open = handle.open.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut groups, mut datasets) = guarded(&handle.place, || open.0.group(group)?.member_names())?;
    if groups.len() + datasets.len() > handle.limits.arrays {
        let what = format!("group \"{group}\" has {} members", groups.len() + datasets.len());
        return Err(DataError::too_large(&handle.place, what, "stack the samples into one dataset per input"));
    }
    groups.sort_unstable();
    datasets.sort_unstable();
    Ok((groups, datasets))
}

fn whole_columns(handle: &Arc<Handle>, prefix: &str, names: Vec<String>) -> Result<Columns, DataError> {
    names.into_iter().map(|n| Ok((n.clone(), Arc::new(Rows::new(handle, &format!("{prefix}/{n}"))?) as _))).collect()
}

fn item_columns(
    handle: &Arc<Handle>,
    group: &str,
    groups: Vec<String>,
    datasets: Vec<String>,
) -> Result<Columns, DataError> {
    let place = handle.place.array(group);
    let column = |names: &Arc<[String]>, field: Option<&str>| {
        Items::new(handle, group, names, field)
            .map(|c| (field.unwrap_or_default().to_owned(), Arc::new(c) as Arc<dyn Column>))
    };
    match (groups.first(), datasets.is_empty()) {
        (None, true) => Err(DataError::format(&place, "the group is empty", "write one member per sample into it")),
        (None, false) => Ok(vec![column(&datasets.into(), None)?]),
        (Some(first), true) => {
            let (_, fields) = members(handle, &format!("{group}/{first}"))?;
            if fields.is_empty() {
                let what = format!("sample \"{first}\" holds no datasets");
                return Err(DataError::format(&place, what, "write one dataset per input into each sample's group"));
            }
            let names: Arc<[String]> = groups.into();
            fields.iter().map(|f| column(&names, Some(f))).collect()
        }
        (Some(_), false) => {
            let what = "the group mixes groups and datasets";
            Err(DataError::unsupported(&place, what, "use either one dataset or one group per sample"))
        }
    }
}

/// Element type and byte order of a dataset.
fn element_type(dataset: &Dataset, place: &Place) -> Result<(DType, bool), DataError> {
    use hdf5_reader::ByteOrder::BigEndian;
    let found = match dataset.dtype() {
        Datatype::FixedPoint { size, signed, byte_order } => {
            let dtype = match (size, signed) {
                (1, true) => Some(DType::I8),
                (1, false) => Some(DType::U8),
                (2, true) => Some(DType::I16),
                (2, false) => Some(DType::U16),
                (4, true) => Some(DType::I32),
                (4, false) => Some(DType::U32),
                (8, true) => Some(DType::I64),
                (8, false) => Some(DType::U64),
                _ => None,
            };
            dtype.map(|d| (d, matches!(byte_order, BigEndian)))
        }
        Datatype::FloatingPoint { size, byte_order } => {
            let dtype = match size {
                2 => Some(DType::F16),
                4 => Some(DType::F32),
                8 => Some(DType::F64),
                _ => None,
            };
            dtype.map(|d| (d, matches!(byte_order, BigEndian)))
        }
        // h5py stores booleans as an enumeration over int8.
        Datatype::Enum { base, .. } if matches!(**base, Datatype::FixedPoint { size: 1, .. }) => {
            Some((DType::Bool, false))
        }
        _ => None,
    };
    found.ok_or_else(|| {
        let what = format!("elements of HDF5 type {:.80} can't be used", format!("{:?}", dataset.dtype()));
        DataError::unsupported(place, what, "save as bool, an integer type, float16, float32 or float64")
    })
}

/// Bytes of one element, copied as they are.
#[derive(Clone)]
struct Raw<const N: usize>([u8; N]);

impl<const N: usize> hdf5_reader::H5Type for Raw<N> {
    fn hdf5_type() -> Datatype {
        Datatype::FixedPoint { size: N as u8, signed: false, byte_order: hdf5_reader::ByteOrder::LittleEndian }
    }

    fn from_bytes(bytes: &[u8], _: &Datatype) -> Result<Self, Error> {
        let found = bytes.get(..N).and_then(|b| b.try_into().ok());
        found.map(Raw).ok_or_else(|| Error::InvalidData(format!("expected {N} bytes, got {}", bytes.len())))
    }

    fn element_size(_: &Datatype) -> usize {
        N
    }

    fn decode_vec(raw: &[u8], _: &Datatype, count: usize) -> Option<Result<Vec<Self>, Error>> {
        let bytes = raw.get(..count.checked_mul(N)?)?;
        Some(bytes.chunks_exact(N).map(|b| Self::from_bytes(b, &Self::hdf5_type())).collect())
    }
}

/// The elements of a selection, little-endian, as a tensor of `shape`.
fn read_elements(
    dataset: &Dataset,
    rows: Option<(u64, u64)>,
    shape: Vec<usize>,
    place: &Place,
) -> Result<Tensor, DataError> {
    fn bytes<const N: usize>(d: &Dataset, rows: Option<(u64, u64)>) -> Result<Vec<u8>, Error> {
        let values = match rows {
            None => d.read_array::<Raw<N>>()?,
            Some((start, end)) => {
                let mut selection = SliceInfo::all(d.ndim());
                if let Some(first) = selection.selections.first_mut() {
                    *first = SliceInfoElem::Slice { start, end, step: 1 };
                }
                d.read_slice::<Raw<N>>(&selection)?
            }
        };
        Ok(values.iter().flat_map(|v| v.0).collect())
    }
    let (dtype, big_endian) = element_type(dataset, place)?;
    let mut data = guarded(place, || match dtype.bits() {
        8 => bytes::<1>(dataset, rows),
        16 => bytes::<2>(dataset, rows),
        32 => bytes::<4>(dataset, rows),
        _ => bytes::<8>(dataset, rows),
    })?;
    if big_endian {
        swap_bytes(&mut data, dtype);
    }
    make_tensor(dtype, shape, data, place)
}

fn dims(dataset: &Dataset, place: &Place) -> Result<Vec<usize>, DataError> {
    let dims: Option<Vec<usize>> = dataset.shape().iter().map(|&d| usize::try_from(d).ok()).collect();
    let sound = dims.filter(|d| narrowbit_tensor::shape::count(d).is_ok());
    sound.ok_or_else(|| {
        let what = format!("shape {:?} is larger than memory can address", dataset.shape());
        DataError::format(place, what, "save the file again: it is damaged")
    })
}

/// A dataset whose axis 0 counts samples.
struct Rows {
    dataset: Dataset,
    place: Place,
    dtype: DType,
    len: usize,
    row: Vec<usize>,
    limits: Limits,
}

impl Rows {
    fn new(handle: &Arc<Handle>, path: &str) -> Result<Rows, DataError> {
        let place = handle.place.array(path.trim_start_matches('/'));
        let dataset = handle.dataset(path, &place)?;
        let (dtype, _) = element_type(&dataset, &place)?;
        let shape = dims(&dataset, &place)?;
        let (len, row) = match shape.split_first() {
            Some((&n, row)) => (n, row.to_vec()),
            None => (1, Vec::new()),
        };
        check_empty(len, &row, &place)?;
        Ok(Rows { dataset, place, dtype, len, row, limits: handle.limits.clone() })
    }
}

impl Column for Rows {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> Option<&[usize]> {
        Some(&self.row)
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len)?;
        let mut shape = vec![n];
        shape.extend(&self.row);
        check_bytes(self.dtype, &shape, &self.place, &self.limits)?;
        if n == 0 {
            return make_tensor(self.dtype, shape, Vec::new(), &self.place);
        }
        let rows = (self.dataset.ndim() > 0).then_some((start as u64, (start + n) as u64));
        read_elements(&self.dataset, rows, shape, &self.place)
    }

    fn place(&self, index: usize) -> Place {
        self.place.sample(index)
    }
}

/// Refuses a read above the limit before anything is allocated.
fn check_bytes(dtype: DType, shape: &[usize], place: &Place, limits: &Limits) -> Result<(), DataError> {
    let bytes = narrowbit_tensor::shape::count(shape).ok().and_then(|n| dtype.byte_len(n)).unwrap_or(usize::MAX);
    match bytes <= limits.read_bytes {
        true => Ok(()),
        false => {
            let what = format!("shape {shape:?} takes {bytes} bytes, the limit is {}", limits.read_bytes);
            Err(DataError::too_large(place, what, "check that axis 0 counts samples, or use a smaller --batch"))
        }
    }
}

/// One object per sample: `group/name`, or `group/name/field`.
struct Items {
    handle: Arc<Handle>,
    group: String,
    names: Arc<[String]>,
    field: Option<String>,
    dtype: DType,
}

impl Items {
    fn new(handle: &Arc<Handle>, group: &str, names: &Arc<[String]>, field: Option<&str>) -> Result<Items, DataError> {
        let (group, field) = (group.to_owned(), field.map(str::to_owned));
        let mut items = Items { handle: handle.clone(), group, names: names.clone(), field, dtype: DType::F32 };
        let place = items.place(0);
        items.dtype = element_type(&handle.dataset(&items.path(0), &place)?, &place)?.0;
        Ok(items)
    }

    fn path(&self, index: usize) -> String {
        let (group, name) = (&self.group, &self.names[index]);
        match &self.field {
            Some(field) => format!("/{group}/{name}/{field}"),
            None => format!("/{group}/{name}"),
        }
    }

    fn one(&self, index: usize) -> Result<Tensor, DataError> {
        let place = self.place(index);
        let dataset = self.handle.dataset(&self.path(index), &place)?;
        let mut shape = vec![1];
        shape.extend(dims(&dataset, &place)?);
        check_bytes(element_type(&dataset, &place)?.0, &shape, &place, &self.handle.limits)?;
        read_elements(&dataset, None, shape, &place)
    }
}

impl Column for Items {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> Option<&[usize]> {
        None
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len())?;
        let pieces = (start..start + n).map(|i| self.one(i)).collect::<Result<_, _>>()?;
        stack(pieces, &self.place(start))
    }

    fn name(&self, index: usize) -> Option<&str> {
        self.names.get(index).map(String::as_str)
    }

    fn place(&self, index: usize) -> Place {
        let path = self.names.get(index).map(|_| self.path(index).trim_start_matches('/').to_owned());
        self.handle.place.array(path.unwrap_or_default()).sample(index)
    }
}
