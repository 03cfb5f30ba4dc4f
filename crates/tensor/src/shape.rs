//! Arithmetic on shapes: element counts, strides, broadcasting, index walks.

use crate::TensorError;

/// The number of elements of a shape.
///
/// The product of the extents other than 0 has to be addressable too (NumPy asks for the same). So
/// whoever holds a shape that was counted may multiply any of its extents without overflow, those
/// beside a 0 included.
///
/// # Errors
/// [`TensorError::TooLarge`] when the product overflows.
pub fn count(shape: &[usize]) -> Result<usize, TensorError> {
    let addressable = shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(|| TensorError::TooLarge(shape.to_vec()))?;
    Ok(if shape.contains(&0) { 0 } else { addressable })
}

/// Row-major strides in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i].saturating_mul(shape[i]);
    }
    out
}

/// The shape that `a` and `b` broadcast to (ONNX multidirectional broadcasting).
///
/// # Errors
/// [`TensorError::Broadcast`] when two extents differ and neither is 1.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, TensorError> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(TensorError::Broadcast(a.to_vec(), b.to_vec())),
        })
        .collect()
}

/// The strides with which a tensor of `shape` is read when broadcast to `to`:
/// 0 along every broadcast dimension. `to` must be a shape that `shape` broadcasts to.
pub fn broadcast_strides(shape: &[usize], to: &[usize]) -> Vec<usize> {
    let own = strides(shape);
    let lead = to.len() - shape.len();
    (0..to.len()).map(|i| if i < lead || shape[i - lead] == 1 && to[i] != 1 { 0 } else { own[i - lead] }).collect()
}

/// Walks the elements of `shape` in row-major order and yields the offset that
/// each has under `strides`.
#[derive(Debug, Clone)]
pub struct Offsets<'a> {
    shape: &'a [usize],
    strides: &'a [usize],
    index: Vec<usize>,
    offset: usize,
    left: usize,
}

/// The offsets of all elements of `shape`, in row-major order, under `strides`.
/// A shape that [`count`] refuses has none: no tensor has it.
pub fn offsets<'a>(shape: &'a [usize], strides: &'a [usize]) -> Offsets<'a> {
    let left = count(shape).unwrap_or(0);
    Offsets { shape, strides, index: vec![0; shape.len()], offset: 0, left }
}

impl Iterator for Offsets<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let out = self.offset;
        for d in (0..self.shape.len()).rev() {
            self.index[d] += 1;
            self.offset += self.strides[d];
            if self.index[d] < self.shape[d] {
                break;
            }
            self.offset -= self.strides[d] * self.shape[d];
            self.index[d] = 0;
        }
        Some(out)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Offsets<'_> {}

/// The axis counted from the front, for an axis in `[-rank, rank)`; `None` outside of it.
pub fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = rank as i64;
    (-rank..rank).contains(&axis).then(|| axis.rem_euclid(rank.max(1)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_shapes_from_the_back() {
        assert_eq!(broadcast(&[2, 1, 4], &[3, 1]), Ok(vec![2, 3, 4]));
        assert_eq!(broadcast(&[], &[3]), Ok(vec![3]));
        assert_eq!(broadcast(&[1], &[0]), Ok(vec![0]));
        assert!(broadcast(&[2], &[3]).is_err());
    }

    #[test]
    fn walks_offsets_of_a_broadcast_operand() {
        let to = [2, 3];
        let s = broadcast_strides(&[3], &to);
        assert_eq!(offsets(&to, &s).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        let s = broadcast_strides(&[2, 1], &to);
        assert_eq!(offsets(&to, &s).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1]);
        assert_eq!(offsets(&[], &[]).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn refuses_counts_that_overflow() {
        assert!(count(&[usize::MAX, 2]).is_err());
        assert_eq!(count(&[]), Ok(1));
    }

    #[test]
    fn refuses_extents_beside_a_zero_that_overflow() {
        assert_eq!(count(&[0, 1 << 40, 1 << 20]), Ok(0));
        for shape in [[0, 1 << 40, 1 << 40], [1 << 40, 0, 1 << 40], [1 << 40, 1 << 40, 0]] {
            assert_eq!(count(&shape), Err(TensorError::TooLarge(shape.to_vec())));
            assert_eq!(offsets(&shape, &strides(&shape)).next(), None);
        }
    }

    #[test]
    fn normalises_axes_in_range_only() {
        assert_eq!(axis(-1, 3), Some(2));
        assert_eq!(axis(3, 3), None);
        assert_eq!(axis(0, 0), None);
    }
}
