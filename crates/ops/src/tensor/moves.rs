//! Copying elements of any type without looking at them: the ground on which most operators of this group stand.

use narrowbit_ir::{OpError, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

/// The offset that stands for "no element of the input": the fill value is taken.
const OUTSIDE: usize = usize::MAX;

/// A tensor of `shape` made of blocks of `block` consecutive elements; each pick names a source and the
/// offset in it, in elements, at which a block starts.
///
/// # Errors
/// When the sources' types differ, a pick leaves its source, or the output would be too large.
pub fn pick_blocks(
    sources: &[&Tensor],
    shape: &[usize],
    block: usize,
    picks: impl Iterator<Item = (usize, usize)>,
) -> Result<Tensor, OpError> {
    let dtype = common_dtype(sources)?;
    let n = check_size(dtype, shape)?;
    match dtype {
        DType::String => {
            let sources = sources.iter().map(|t| t.strings()).collect::<Result<Vec<_>, _>>()?;
            Ok(Tensor::from_strings(shape, copy(&sources, n, block, picks)?)?)
        }
        d if d.is_packed() => {
            let codes = sources.iter().map(|t| t.codes()).collect::<Result<Vec<_>, _>>()?;
            let sources: Vec<&[u8]> = codes.iter().map(Vec::as_slice).collect();
            Ok(Tensor::from_codes(d, shape, &copy(&sources, n, block, picks)?)?)
        }
        d => match d.bits() {
            8 => pick_bytes::<1>(sources, shape, n, block, picks),
            16 => pick_bytes::<2>(sources, shape, n, block, picks),
            32 => pick_bytes::<4>(sources, shape, n, block, picks),
            64 => pick_bytes::<8>(sources, shape, n, block, picks),
            _ => pick_bytes::<16>(sources, shape, n, block, picks),
        },
    }
}

fn common_dtype(sources: &[&Tensor]) -> Result<DType, OpError> {
    let dtype = sources.first().ok_or(OpError::MissingInput(0))?.dtype();
    match sources.iter().position(|t| t.dtype() != dtype) {
        None => Ok(dtype),
        Some(i) => Err(OpError::Value(format!("types differ: {dtype} and {}", sources[i].dtype()))),
    }
}

fn pick_bytes<const N: usize>(
    sources: &[&Tensor],
    shape: &[usize],
    n: usize,
    block: usize,
    picks: impl Iterator<Item = (usize, usize)>,
) -> Result<Tensor, OpError> {
    let views: Vec<&[[u8; N]]> = sources.iter().map(|t| t.bytes().as_chunks::<N>().0).collect();
    let out = copy(&views, n, block, picks)?.into_flattened();
    Ok(Tensor::from_bytes(sources[0].dtype(), shape, out)?)
}

fn copy<T: Clone>(
    sources: &[&[T]],
    n: usize,
    block: usize,
    picks: impl Iterator<Item = (usize, usize)>,
) -> Result<Vec<T>, OpError> {
    let mut out = Vec::with_capacity(n);
    for (source, at) in picks {
        let all = sources.get(source).copied().unwrap_or_default();
        let part = at.checked_add(block).and_then(|end| all.get(at..end)).ok_or_else(|| {
            OpError::Value(format!("element {at} is outside of the input, which has {} elements", all.len()))
        })?;
        match part {
            [one] => out.push(one.clone()),
            many => out.extend_from_slice(many),
        }
    }
    Ok(out)
}

/// A tensor of `shape` whose elements are those of `x` at the given offsets.
///
/// # Errors
/// As [`pick_blocks`].
pub fn take(x: &Tensor, shape: &[usize], offsets: impl Iterator<Item = usize>) -> Result<Tensor, OpError> {
    pick_blocks(&[x], shape, 1, offsets.map(|o| (0, o)))
}

/// The slices of `x` at `indices` along `axis` (checked by the caller), laid out under `index_shape` in its place.
///
/// # Errors
/// When an index is out of range or the output would be too large.
pub fn take_axis(x: &Tensor, axis: usize, indices: &[usize], index_shape: &[usize]) -> Result<Tensor, OpError> {
    let (outer, rest) = x.shape().split_at(axis);
    let extent = rest[0];
    let shape = [outer, index_shape, &rest[1..]].concat();
    if let Some(i) = indices.iter().find(|&&i| i >= extent) {
        return Err(OpError::Value(format!("index {i} is outside of axis {axis}, which has {extent} elements")));
    }
    if check_size(x.dtype(), &shape)? == 0 {
        return Ok(Tensor::zeros(x.dtype(), shape)?);
    }
    let outer = shape::count(outer)?;
    let inner = shape::count(&rest[1..])?;
    let picks = (0..outer).flat_map(|o| indices.iter().map(move |&i| (0, (o * extent + i) * inner)));
    pick_blocks(&[x], &shape, inner, picks)
}

/// A tensor of `shape`, of the rank of `x`: along each axis `a` the element at `i` comes from `index(a, i)` of `x`,
/// or is the single element `fill` where that is `None`.
///
/// # Errors
/// When an index is out of range, the ranks differ or the output would be too large.
pub fn remap(
    x: &Tensor,
    shape: &[usize],
    index: impl Fn(usize, usize) -> Option<usize>,
    fill: Option<&Tensor>,
) -> Result<Tensor, OpError> {
    if x.rank() != shape.len() {
        return Err(OpError::shape(format!("shapes {:?} and {shape:?} differ in rank", x.shape())));
    }
    if check_size(x.dtype(), shape)? == 0 {
        return Ok(Tensor::zeros(x.dtype(), shape)?);
    }
    let mut tables = Vec::with_capacity(shape.len());
    for (a, (&n, stride)) in shape.iter().zip(shape::strides(x.shape())).enumerate() {
        tables.push(table(n, x.shape()[a], stride, |i| index(a, i), a)?);
    }
    // Trailing axes that are taken whole are copied in one piece.
    let mut block = 1;
    while let Some(a) = tables.len().checked_sub(1) {
        let whole = shape[a] == x.shape()[a] && tables[a].iter().enumerate().all(|(i, &o)| o == i * block);
        if !whole {
            break;
        }
        tables.pop();
        block *= shape[a];
    }
    let filler = match fill {
        Some(f) => Some(pick_blocks(&[f], &[block], 1, (0..block).map(|_| (0, 0)))?),
        None => None,
    };
    let sources: Vec<&Tensor> = std::iter::once(x).chain(filler.as_ref()).collect();
    let picks = Walk::new(&tables).map(|o| if o == OUTSIDE { (1, 0) } else { (0, o) });
    pick_blocks(&sources, shape, block, picks)
}

fn table(
    n: usize,
    extent: usize,
    stride: usize,
    index: impl Fn(usize) -> Option<usize>,
    axis: usize,
) -> Result<Vec<usize>, OpError> {
    (0..n)
        .map(|i| match index(i) {
            None => Ok(OUTSIDE),
            Some(j) if j < extent => Ok(j * stride),
            Some(j) => Err(OpError::Value(format!("index {j} is outside of axis {axis}, which has {extent} elements"))),
        })
        .collect()
}

/// Walks all combinations of one entry per table, the last fastest, and yields their sums.
struct Walk<'a> {
    tables: &'a [Vec<usize>],
    index: Vec<usize>,
    /// The sum of the entries of all tables before each one.
    before: Vec<usize>,
    done: bool,
}

impl<'a> Walk<'a> {
    fn new(tables: &'a [Vec<usize>]) -> Walk<'a> {
        let mut walk = Walk {
            tables,
            index: vec![0; tables.len()],
            before: vec![0; tables.len()],
            done: tables.iter().any(Vec::is_empty),
        };
        walk.refresh(0);
        walk
    }

    fn refresh(&mut self, from: usize) {
        if self.done {
            return;
        }
        for a in from + 1..self.tables.len() {
            self.before[a] = self.before[a - 1].saturating_add(self.tables[a - 1][self.index[a - 1]]);
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.done {
            return None;
        }
        let Some(last) = self.tables.len().checked_sub(1) else {
            self.done = true;
            return Some(0);
        };
        let out = self.before[last].saturating_add(self.tables[last][self.index[last]]);
        let mut a = last;
        loop {
            self.index[a] += 1;
            if self.index[a] < self.tables[a].len() {
                break;
            }
            self.index[a] = 0;
            if a == 0 {
                self.done = true;
                break;
            }
            a -= 1;
        }
        self.refresh(a);
        Some(out)
    }
}

/// The permuted tensor: axis `i` of the output is axis `perm[i]` of `x`; `perm` must be a permutation.
///
/// # Errors
/// When the output would be too large.
pub fn permute(x: &Tensor, perm: &[usize]) -> Result<Tensor, OpError> {
    let shape: Vec<usize> = perm.iter().map(|&p| x.shape()[p]).collect();
    let own = shape::strides(x.shape());
    let strides: Vec<usize> = perm.iter().map(|&p| own[p]).collect();
    if x.is_empty() {
        return Ok(x.reshaped(shape)?);
    }
    let fixed = perm.iter().enumerate().rev().take_while(|&(i, &p)| i == p).count();
    let lead = perm.len() - fixed;
    let block = shape::count(&shape[lead..])?;
    let picks = shape::offsets(&shape[..lead], &strides[..lead]).map(|o| (0, o));
    pick_blocks(&[x], &shape, block, picks)
}

/// The tensor broadcast to `to`, which its shape must broadcast to.
///
/// # Errors
/// When it does not, or the output would be too large.
pub fn broadcast_to(x: &Tensor, to: &[usize]) -> Result<Tensor, OpError> {
    if shape::broadcast(x.shape(), to)? != to {
        return Err(OpError::shape(format!("shape {:?} does not broadcast to {to:?}", x.shape())));
    }
    if x.shape() == to {
        return Ok(x.clone());
    }
    let lead = to.len() - x.rank();
    let own = x.reshaped([&vec![1; lead], x.shape()].concat())?;
    remap(&own, to, |a, i| Some(if own.shape()[a] == 1 { 0 } else { i }), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iota(shape: &[usize]) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product::<usize>() as i32).collect()).unwrap()
    }

    #[test]
    fn permutes_and_keeps_trailing_blocks() {
        let y = permute(&iota(&[2, 3, 2]), &[1, 0, 2]).unwrap();
        assert_eq!(y.shape(), [3, 2, 2]);
        assert_eq!(y.to_i64s().unwrap(), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    }

    #[test]
    fn remaps_with_fill_for_packed_types_and_strings() {
        let x = Tensor::from_i64s(DType::I4, [3], &[1, -2, 3]).unwrap();
        let fill = Tensor::from_i64s(DType::I4, [], &[7]).unwrap();
        let y = remap(&x, &[4], |_, i| i.checked_sub(1), Some(&fill)).unwrap();
        assert_eq!(y.to_i64s().unwrap(), [7, 1, -2, 3]);
        let s = Tensor::from_strings([2], vec!["a".into(), "b".into()]).unwrap();
        assert_eq!(take_axis(&s, 0, &[1, 0], &[2]).unwrap().strings().unwrap(), ["b", "a"]);
    }

    #[test]
    fn refuses_indices_outside_of_the_input() {
        assert!(take(&iota(&[2]), &[1], [2].into_iter()).is_err());
        assert!(take_axis(&iota(&[2]), 0, &[5], &[1]).is_err());
        assert!(remap(&iota(&[2]), &[1], |_, _| Some(9), None).is_err());
        assert!(remap(&iota(&[1]), &[1 << 40], |_, _| Some(0), None).is_err());
    }

    #[test]
    fn broadcasts_in_whole_blocks() {
        assert_eq!(broadcast_to(&iota(&[2, 1]), &[2, 2, 2]).unwrap().to_i64s().unwrap(), [0, 0, 1, 1, 0, 0, 1, 1]);
        assert!(broadcast_to(&iota(&[3]), &[1]).is_err());
    }
}
