//! Axes moved and cut, for tensors of any element type.

use crate::{DType, Tensor, TensorError, shape};

impl Tensor {
    /// The tensor with axis `from` at place `to` and the other axes in their order.
    ///
    /// # Errors
    /// When there is no such axis.
    pub fn with_axis_moved(&self, from: usize, to: usize) -> Result<Tensor, TensorError> {
        self.check_axis(from.max(to))?;
        if from == to {
            return Ok(self.clone());
        }
        let mut shape = self.shape().to_vec();
        let extent = shape.remove(from);
        shape.insert(to, extent);
        let (low, high) = (from.min(to), from.max(to));
        let count = |range: &[usize]| range.iter().product::<usize>();
        let inner = count(&self.shape()[high + 1..]);
        // Two neighbouring blocks of axes change places.
        let (a, b) = match from < to {
            true => (self.shape()[low], count(&self.shape()[low + 1..=high])),
            false => (count(&self.shape()[low..high]), self.shape()[high]),
        };
        let outer = count(&self.shape()[..low]);
        self.gathered(shape, inner, |take| {
            for o in 0..outer {
                (0..b).for_each(|j| (0..a).for_each(|i| take((o * a + i) * b + j)));
            }
        })
    }

    /// The first `n` places of an axis.
    ///
    /// # Errors
    /// When there is no such axis, or it is shorter.
    pub fn first_of_axis(&self, axis: usize, n: usize) -> Result<Tensor, TensorError> {
        self.check_axis(axis)?;
        let mut shape = self.shape().to_vec();
        let extent = std::mem::replace(&mut shape[axis], n);
        if n >= extent {
            return if n == extent { Ok(self.clone()) } else { Err(TensorError::Axis(axis, self.shape().to_vec())) };
        }
        let inner = self.shape()[axis + 1..].iter().product();
        let outer: usize = self.shape()[..axis].iter().product();
        self.gathered(shape, inner, |take| (0..outer).for_each(|o| (0..n).for_each(|i| take(o * extent + i))))
    }

    fn check_axis(&self, axis: usize) -> Result<(), TensorError> {
        if axis < self.rank() { Ok(()) } else { Err(TensorError::Axis(axis, self.shape().to_vec())) }
    }

    /// A tensor of runs of `run` elements of this one; `runs` calls back with the place of each, in order.
    fn gathered(
        &self,
        shape: Vec<usize>,
        run: usize,
        runs: impl FnOnce(&mut dyn FnMut(usize)),
    ) -> Result<Tensor, TensorError> {
        fn gather<T: Clone>(from: &[T], len: usize, run: usize, runs: impl FnOnce(&mut dyn FnMut(usize))) -> Vec<T> {
            let mut out = Vec::with_capacity(len);
            if len > 0 {
                runs(&mut |i| out.extend_from_slice(&from[i * run..][..run]));
            }
            out
        }
        let len = shape::count(&shape)?;
        match self.dtype() {
            DType::String => Tensor::from_strings(shape, gather(self.strings()?, len, run, runs)),
            d if d.is_packed() => Tensor::from_codes(d, shape, &gather(&self.codes()?, len, run, runs)),
            d => {
                let size = d.bits() / 8;
                Tensor::from_bytes(d, shape, gather(self.bytes(), len * size, run * size, runs))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[2, 3, 4]`, each element with its place.
    fn tensor() -> Tensor {
        Tensor::new([2, 3, 4], (0..24i16).collect()).unwrap()
    }

    #[test]
    fn moves_an_axis_either_way() {
        let t = tensor();
        let at = |t: &Tensor, i: [usize; 3]| {
            let s = t.shape();
            t.to_i64s().unwrap()[(i[0] * s[1] + i[1]) * s[2] + i[2]]
        };
        let forth = t.with_axis_moved(0, 1).unwrap();
        let end = t.with_axis_moved(0, 2).unwrap();
        assert_eq!((forth.shape(), end.shape()), (&[3, 2, 4][..], &[3, 4, 2][..]));
        for (a, b, c) in (0..2).flat_map(|a| (0..3).flat_map(move |b| (0..4).map(move |c| (a, b, c)))) {
            let value = at(&t, [a, b, c]);
            assert_eq!((at(&forth, [b, a, c]), at(&end, [b, c, a])), (value, value));
        }
        assert_eq!(forth.with_axis_moved(1, 0).unwrap(), t);
        assert_eq!(end.with_axis_moved(2, 0).unwrap(), t);
        assert_eq!(t.with_axis_moved(1, 1).unwrap(), t);
    }

    #[test]
    fn cuts_any_axis_and_type() {
        let t = tensor();
        assert_eq!(t.first_of_axis(0, 1).unwrap().to_i64s().unwrap(), (0..12).collect::<Vec<_>>());
        assert_eq!(t.first_of_axis(2, 1).unwrap().to_i64s().unwrap(), [0, 4, 8, 12, 16, 20]);
        assert_eq!(t.first_of_axis(1, 3).unwrap(), t);
        assert_eq!(t.first_of_axis(1, 0).unwrap().shape(), [2, 0, 4]);
        let packed = Tensor::from_codes(DType::U4, [3, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
        assert_eq!(packed.first_of_axis(1, 1).unwrap().codes().unwrap(), [1, 4, 7]);
        let words = Tensor::from_strings([2, 1], vec!["a".into(), "b".into()]).unwrap();
        assert_eq!(words.with_axis_moved(0, 1).unwrap().shape(), [1, 2]);
        assert_eq!(words.first_of_axis(0, 1).unwrap().strings().unwrap(), ["a"]);
    }

    #[test]
    fn refuses_axes_that_are_not_there() {
        let scalar = Tensor::scalar(1f32);
        assert!(scalar.with_axis_moved(0, 0).is_err() && scalar.first_of_axis(0, 0).is_err());
        let t = tensor();
        assert!(t.with_axis_moved(0, 3).is_err() && t.first_of_axis(0, 3).is_err());
        let empty = Tensor::new([0, 2], Vec::<f32>::new()).unwrap();
        assert_eq!(empty.with_axis_moved(0, 1).unwrap().shape(), [2, 0]);
    }
}
