//! Axes of operators along or over dimensions.

use narrowbit_ir::{AttrMap, OpError};
use narrowbit_tensor::shape;

/// The axis counted from the front.
///
/// # Errors
/// When it is outside of the rank.
pub(crate) fn resolve(axis: i64, rank: usize) -> Result<usize, OpError> {
    shape::axis(axis, rank)
        .ok_or_else(|| OpError::Shape(format!("axis {axis} is outside of a tensor with {rank} dimensions")))
}

/// For each dimension whether it is among `axes`.
///
/// # Errors
/// When an axis is outside of the rank or is named twice.
pub(crate) fn mask(axes: &[i64], rank: usize) -> Result<Vec<bool>, OpError> {
    let mut mask = vec![false; rank];
    for &a in axes {
        let i = resolve(a, rank)?;
        if std::mem::replace(&mut mask[i], true) {
            return Err(OpError::Shape(format!("axis {a} is given twice")));
        }
    }
    Ok(mask)
}

/// A shape seen along one axis: elements before it, its extent, elements after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Along {
    pub outer: usize,
    pub len: usize,
    pub inner: usize,
}

impl Along {
    /// `axis` must be within the shape.
    pub(crate) fn new(shape: &[usize], axis: usize) -> Along {
        // Saturating: an empty tensor may have any extents beside its 0.
        let product = |s: &[usize]| s.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        Along { outer: product(&shape[..axis]), len: shape[axis], inner: product(&shape[axis + 1..]) }
    }

    /// The offsets of the first element of each line along the axis, in row-major order of the others.
    pub(crate) fn lines(self) -> impl Iterator<Item = usize> {
        let outer = if self.inner == 0 { 0 } else { self.outer };
        (0..outer).flat_map(move |o| (0..self.inner).map(move |i| o * self.len * self.inner + i))
    }

    /// The offsets of the elements of the line that starts at `start`.
    pub(crate) fn line(self, start: usize) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator {
        (0..self.len).map(move |k| start + k * self.inner)
    }
}

/// Takes `keepdims`, which is true where it is absent.
///
/// # Errors
/// When it is no integer.
pub(crate) fn keepdims(attrs: &mut AttrMap) -> Result<bool, OpError> {
    Ok(attrs.int_or("keepdims", 1)? != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_lines_along_an_axis() {
        let a = Along::new(&[2, 3, 2], 1);
        assert_eq!(a.lines().collect::<Vec<_>>(), [0, 1, 6, 7]);
        assert_eq!(a.line(7).collect::<Vec<_>>(), [7, 9, 11]);
    }

    #[test]
    fn refuses_axes_outside_of_the_rank_or_twice() {
        assert!(mask(&[2], 2).is_err());
        assert!(mask(&[0, -2], 2).is_err());
        assert_eq!(mask(&[-1], 2), Ok(vec![false, true]));
    }
}
