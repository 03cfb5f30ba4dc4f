//! Columns: a named run of samples of one kind, read by row.

use std::sync::{Arc, Mutex, PoisonError};

use narrowbit_tensor::{DType, Tensor};

use crate::source::Span;
use crate::{DataError, Limits, Place, npy};

/// Samples of one input or of the labels, in the order of the file.
pub(crate) trait Column: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// The element type; of the first sample where they may differ.
    fn dtype(&self) -> DType;

    /// The shape of one sample, without a batch dimension; `None` where samples may differ.
    fn shape(&self) -> Option<&[usize]>;

    /// The shape of the whole array as the file has it, for arrays that are one sample each.
    fn file_shape(&self) -> Vec<usize> {
        let mut shape = vec![self.len()];
        shape.extend(self.shape().unwrap_or_default());
        shape
    }

    /// Samples `start..start + n` as `[n, …]`; columns of separate items need equal shapes.
    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError>;

    /// Where sample `index` comes from, for messages.
    fn place(&self, index: usize) -> Place;

    /// The name that the file has for sample `index`, where samples have names.
    fn name(&self, _index: usize) -> Option<&str> {
        None
    }

    /// Gives up buffers.
    fn release(&self) {}

    /// Whether the samples are decoded image files (`u8`, height × width × 3).
    fn is_image_files(&self) -> bool {
        false
    }
}

/// Columns under their names in the file; the name may be empty.
pub(crate) type Columns = Vec<(String, Arc<dyn Column>)>;

/// Where an array's bytes are and how to read them.
pub(crate) struct Layout {
    pub(crate) dtype: DType,
    pub(crate) big_endian: bool,
    pub(crate) fortran: bool,
    pub(crate) shape: Vec<usize>,
    /// Bytes before the first element.
    pub(crate) start: u64,
}

impl From<npy::Header> for Layout {
    fn from(h: npy::Header) -> Layout {
        Layout { dtype: h.dtype, big_endian: h.big_endian, fortran: h.fortran, shape: h.shape, start: h.data_start }
    }
}

/// Samples without elements that an array may have: a file of a few bytes could claim any number.
const MOST_EMPTY: usize = 1 << 20;

/// Refuses more samples without elements (caches that begin at length 0 have such) than anybody needs.
pub(crate) fn check_empty(len: usize, row: &[usize], place: &Place) -> Result<(), DataError> {
    if len > MOST_EMPTY && row.contains(&0) {
        let what = format!("{len} samples of shape {row:?} hold nothing");
        return Err(DataError::format(place, what, "check that axis 0 counts samples"));
    }
    Ok(())
}

/// An array whose axis 0 counts samples, read in slices.
pub(crate) struct ArrayColumn {
    span: Arc<dyn Span>,
    layout: Layout,
    len: usize,
    row: Vec<usize>,
    row_bytes: usize,
    place: Place,
    limits: Limits,
    /// Rows of a Fortran-ordered array that were gathered together.
    block: Mutex<Option<(usize, Vec<u8>)>>,
}

impl ArrayColumn {
    pub(crate) fn new(
        span: Arc<dyn Span>,
        layout: Layout,
        place: Place,
        limits: &Limits,
    ) -> Result<ArrayColumn, DataError> {
        // An array without dimensions is one sample without dimensions.
        let (len, row) = match layout.shape.split_first() {
            Some((&n, row)) => (n, row.to_vec()),
            None => (1, Vec::new()),
        };
        let count = narrowbit_tensor::shape::count(&row).map_err(|e| DataError::tensor(&place, e))?;
        let row_bytes = layout.dtype.byte_len(count).unwrap_or(usize::MAX);
        if row_bytes > limits.read_bytes {
            let what =
                format!("one sample of shape {row:?} takes {row_bytes} bytes, the limit is {}", limits.read_bytes);
            return Err(DataError::too_large(&place, what, "check that axis 0 counts samples"));
        }
        check_empty(len, &row, &place)?;
        if layout.fortran && row_bytes > 0 && len > 1 {
            span.prepare_random_access().map_err(|e| DataError::io(&place, "unpack", e))?;
        }
        let limits = limits.clone();
        Ok(ArrayColumn { span, layout, len, row, row_bytes, place, limits, block: Mutex::new(None) })
    }

    fn at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DataError> {
        let fail = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
                DataError::format(&self.place, format!("the data is damaged: {e}"), "copy or save the file again")
            }
            _ => DataError::io(&self.place, "read", e),
        };
        self.span.read_at(self.layout.start + offset, buf).map_err(fail)
    }

    /// Bytes of rows in row-major order from an array stored column by column.
    fn gather(&self, start: usize, n: usize) -> Result<Vec<u8>, DataError> {
        const BLOCK: usize = 4 << 20;
        let size = self.layout.dtype.byte_len(1).unwrap_or(1);
        let rows = (BLOCK / self.row_bytes.max(1)).clamp(1, self.len.max(1));
        let mut out = Vec::with_capacity(n * self.row_bytes);
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        for row in start..start + n {
            let first = row / rows * rows;
            if block.as_ref().is_none_or(|(at, _)| *at != first) {
                *block = Some((first, self.gather_block(first, rows.min(self.len - first), size)?));
            }
            if let Some((_, bytes)) = &*block {
                let at = (row - first) * self.row_bytes;
                out.extend_from_slice(&bytes[at..at + self.row_bytes]);
            }
        }
        Ok(out)
    }

    fn gather_block(&self, first: usize, rows: usize, size: usize) -> Result<Vec<u8>, DataError> {
        let mut out = vec![0; rows * self.row_bytes];
        let mut line = vec![0; rows * size];
        let strides = narrowbit_tensor::shape::strides(&self.row);
        // Column-major: the first axis of the sample varies fastest after the sample axis.
        let mut index = vec![0usize; self.row.len()];
        for element in 0..self.row_bytes / size {
            let offset = (element as u64 * self.len as u64 + first as u64) * size as u64;
            self.at(offset, &mut line)?;
            let to: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>() * size;
            for (r, value) in line.chunks_exact(size).enumerate() {
                out[r * self.row_bytes + to..][..size].copy_from_slice(value);
            }
            for (i, &extent) in index.iter_mut().zip(&self.row) {
                *i += 1;
                if *i < extent {
                    break;
                }
                *i = 0;
            }
        }
        Ok(out)
    }
}

impl Column for ArrayColumn {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> DType {
        self.layout.dtype
    }

    fn shape(&self) -> Option<&[usize]> {
        Some(&self.row)
    }

    fn file_shape(&self) -> Vec<usize> {
        self.layout.shape.clone()
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len)?;
        let bytes = n.checked_mul(self.row_bytes).filter(|&b| b <= self.limits.read_bytes).ok_or_else(|| {
            let what =
                format!("{n} samples of {} bytes exceed the limit of {}", self.row_bytes, self.limits.read_bytes);
            DataError::too_large(&self.place, what, "use a smaller --batch")
        })?;
        let mut data = if self.layout.fortran && !self.row.is_empty() {
            self.gather(start, n)?
        } else {
            let mut data = vec![0; bytes];
            self.at(start as u64 * self.row_bytes as u64, &mut data)?;
            data
        };
        if self.layout.big_endian {
            swap_bytes(&mut data, self.layout.dtype);
        }
        let mut shape = vec![n];
        shape.extend(&self.row);
        make_tensor(self.layout.dtype, shape, data, &self.place)
    }

    fn place(&self, index: usize) -> Place {
        self.place.sample(index)
    }

    fn release(&self) {
        self.span.release();
        *self.block.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Turns bytes in the machine-independent order into a tensor; booleans become 0 or 1.
pub(crate) fn make_tensor(
    dtype: DType,
    shape: Vec<usize>,
    mut data: Vec<u8>,
    place: &Place,
) -> Result<Tensor, DataError> {
    if dtype == DType::Bool {
        data.iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    Tensor::from_bytes(dtype, shape, data).map_err(|e| DataError::tensor(place, e))
}

/// Reverses the bytes of each element.
pub(crate) fn swap_bytes(data: &mut [u8], dtype: DType) {
    let size = dtype.byte_len(1).unwrap_or(1);
    if size > 1 {
        data.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
}

pub(crate) fn check_range(start: usize, n: usize, len: usize) -> Result<(), DataError> {
    match start.checked_add(n) {
        Some(end) if end <= len => Ok(()),
        _ => Err(DataError::Index { index: start.saturating_add(n).saturating_sub(1), len }),
    }
}

/// Columns of equal samples one after the other, as concatenated along axis 0.
pub(crate) struct Concat {
    parts: Vec<Arc<dyn Column>>,
    /// The first sample of each part.
    starts: Vec<usize>,
    len: usize,
    last: Mutex<usize>,
}

impl Concat {
    /// # Errors
    /// When the parts' samples differ in shape or type.
    pub(crate) fn new(parts: Vec<Arc<dyn Column>>) -> Result<Concat, DataError> {
        let mut starts = Vec::with_capacity(parts.len());
        let mut len = 0usize;
        for part in &parts {
            if (part.dtype(), part.shape()) != (parts[0].dtype(), parts[0].shape()) {
                let what = format!(
                    "arrays to concatenate differ: {}{:?} here, {}{:?} in {}",
                    part.dtype(),
                    part.shape().unwrap_or_default(),
                    parts[0].dtype(),
                    parts[0].shape().unwrap_or_default(),
                    parts[0].place(0)
                );
                let help = "name the arrays after the model's inputs, or give all the same sample shape and type";
                return Err(DataError::fit(&part.place(0), what, help));
            }
            starts.push(len);
            len = len.saturating_add(part.len());
        }
        Ok(Concat { parts, starts, len, last: Mutex::new(0) })
    }

    fn part_of(&self, index: usize) -> usize {
        self.starts.partition_point(|&s| s <= index).saturating_sub(1)
    }

    /// Keeps the buffers of one part only, so that memory does not grow with the parts.
    fn enter(&self, part: usize) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != part {
            self.parts[*last].release();
            *last = part;
        }
    }
}

impl Column for Concat {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> DType {
        self.parts.first().map_or(DType::F32, |p| p.dtype())
    }

    fn shape(&self) -> Option<&[usize]> {
        self.parts.first()?.shape()
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len)?;
        let mut pieces = Vec::new();
        let (mut at, end) = (start, start + n);
        while at < end {
            let part = self.part_of(at);
            let from = at - self.starts[part];
            let take = (end - at).min(self.parts[part].len() - from);
            if take > 0 {
                self.enter(part);
                pieces.push(self.parts[part].read(from, take)?);
            }
            at += take;
        }
        match pieces.is_empty() {
            true => self.parts[0].read(0, 0),
            false => stack(pieces, &self.place(start)),
        }
    }

    fn place(&self, index: usize) -> Place {
        let part = self.part_of(index);
        self.parts[part].place(index.saturating_sub(self.starts[part]))
    }

    fn release(&self) {
        self.parts.iter().for_each(|p| p.release());
    }
}

/// Joins `[n, …]` tensors of one type and sample shape along axis 0.
///
/// # Errors
/// When types or sample shapes differ.
pub(crate) fn stack(mut pieces: Vec<Tensor>, place: &Place) -> Result<Tensor, DataError> {
    if pieces.len() == 1 {
        return Ok(pieces.remove(0));
    }
    let Some(first) = pieces.first() else {
        return Err(DataError::Index { index: 0, len: 0 });
    };
    let (dtype, mut shape) = (first.dtype(), first.shape().to_vec());
    let mut rows = 0;
    let mut data = Vec::with_capacity(pieces.iter().map(|p| p.bytes().len()).sum());
    for piece in &pieces {
        if piece.dtype() != dtype || piece.shape().get(1..) != shape.get(1..) || piece.rank() == 0 {
            let what =
                format!("samples of a batch differ: {:?} {dtype} and {:?} {}", &shape, piece.shape(), piece.dtype());
            return Err(DataError::fit(place, what, "use --batch 1, or --resize images to one size"));
        }
        rows += piece.shape()[0];
        data.extend_from_slice(piece.bytes());
    }
    shape[0] = rows;
    Tensor::from_bytes(dtype, shape, data).map_err(|e| DataError::tensor(place, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn column(data: Vec<u8>, layout: Layout) -> ArrayColumn {
        let span = Arc::new(Source::Memory(data.into()));
        ArrayColumn::new(span, layout, Place::file("x"), &Limits::default()).unwrap()
    }

    #[test]
    fn gathers_rows_of_a_fortran_ordered_array() {
        // numpy.arange(24).reshape(4, 3, 2).tobytes(order="F")
        let value = |i: usize, j: usize, k: usize| (i * 6 + j * 2 + k) as i16;
        let mut data = Vec::new();
        for k in 0..2 {
            for j in 0..3 {
                for i in 0..4 {
                    data.extend(value(i, j, k).to_be_bytes());
                }
            }
        }
        let layout = Layout { dtype: DType::I16, big_endian: true, fortran: true, shape: vec![4, 3, 2], start: 0 };
        let c = column(data, layout);
        assert_eq!(c.read(1, 2).unwrap().to_i64s().unwrap(), (6..18).collect::<Vec<_>>());
        assert_eq!(c.read(3, 1).unwrap().shape(), [1, 3, 2]);
        assert!(c.read(3, 2).is_err());
    }

    #[test]
    fn concatenates_parts_and_refuses_different_ones() {
        let part = |n: usize, row: usize| {
            let layout = Layout { dtype: DType::U8, big_endian: false, fortran: false, shape: vec![n, row], start: 0 };
            Arc::new(column((0..n * row).map(|i| i as u8).collect(), layout)) as Arc<dyn Column>
        };
        let c = Concat::new(vec![part(2, 2), part(0, 2), part(3, 2)]).unwrap();
        assert_eq!(c.len(), 5);
        assert_eq!(c.read(1, 3).unwrap().to_i64s().unwrap(), [2, 3, 0, 1, 2, 3]);
        assert_eq!(c.place(2).sample, Some(0));
        assert!(Concat::new(vec![part(2, 2), part(2, 3)]).is_err());
    }
}
