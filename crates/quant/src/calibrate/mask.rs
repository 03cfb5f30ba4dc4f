//! Positions that are padding: calibration does not observe them.

use narrowbit_tensor::Tensor;

/// The name of the input that marks padding in exported transformers.
pub const USUAL_NAME: &str = "attention_mask";

/// Which positions of each sample count.
pub struct Mask {
    /// `[samples, positions]`.
    keep: Vec<bool>,
    samples: usize,
    positions: usize,
}

impl Mask {
    /// A mask `[samples, positions]`, 0 where a position is padding; `None` of another rank, or where nothing is.
    pub fn new(input: &Tensor) -> Option<Mask> {
        let &[samples, positions] = input.shape() else { return None };
        let keep: Vec<bool> = input.to_f64s().ok()?.iter().map(|&v| v != 0.0).collect();
        keep.contains(&false).then_some(Mask { keep, samples, positions })
    }

    /// The values at positions that count, of a tensor in row-major order; `None` where it has no axis of positions.
    ///
    /// Such an axis is the second one of `[samples, positions, width]`, the first one of `[samples · positions, …]`, and the one
    /// before the last of `[samples, heads, positions, …]`, or the last if that has no such extent.
    pub fn kept(&self, shape: &[usize], values: &[f32]) -> Option<Vec<f32>> {
        let (s, p) = (self.samples, self.positions);
        let axis = match *shape {
            [a, b, _] if (a, b) == (s, p) => 1,
            [a, _] if a == s * p && p > 0 => return Some(self.rows(values, values.len() / a.max(1))),
            [a, _, b, _] if (a, b) == (s, p) => 2,
            [a, _, _, b] if (a, b) == (s, p) => 3,
            _ => return None,
        };
        let between: usize = shape[1..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        if values.len() != s * between * p * inner || values.is_empty() {
            return None;
        }
        let mut kept = Vec::with_capacity(values.len());
        for (i, run) in values.chunks_exact(inner).enumerate() {
            let (sample, position) = (i / (between * p), i % p);
            if self.keep[sample * p + position] {
                kept.extend_from_slice(run);
            }
        }
        Some(kept)
    }

    fn rows(&self, values: &[f32], inner: usize) -> Vec<f32> {
        let rows = values.chunks_exact(inner.max(1)).zip(&self.keep);
        rows.filter(|(_, keep)| **keep).flat_map(|(row, _)| row.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask() -> Mask {
        Mask::new(&Tensor::new([2, 3], vec![1i64, 1, 0, 1, 0, 0]).unwrap()).unwrap()
    }

    /// Which of the values 0, 1, 2 … of a shape are kept.
    fn kept(shape: &[usize]) -> Option<Vec<usize>> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| i as f32).collect();
        mask().kept(shape, &values).map(|v| v.iter().map(|&x| x as usize).collect())
    }

    #[test]
    fn keeps_the_positions_that_count_in_every_layout() {
        assert_eq!(kept(&[2, 3, 2]).unwrap(), [0, 1, 2, 3, 6, 7]);
        assert_eq!(kept(&[6, 2]).unwrap(), [0, 1, 2, 3, 6, 7]);
        // [samples, heads, positions, width], and the width before the positions.
        assert_eq!(kept(&[2, 2, 3, 1]).unwrap(), [0, 1, 3, 4, 6, 9]);
        assert_eq!(kept(&[2, 1, 2, 3]).unwrap(), [0, 1, 3, 4, 6, 9]);
    }

    #[test]
    fn leaves_what_has_no_positions_whole() {
        // The second axis of two is mostly one of features that happens to be as long.
        assert_eq!(kept(&[2, 3]), None);
        assert_eq!(kept(&[2, 4]), None);
        assert_eq!(kept(&[5, 3, 2]), None);
        assert_eq!(kept(&[]), None);
        assert!(Mask::new(&Tensor::new([1, 2], vec![1i64, 1]).unwrap()).is_none(), "nothing is padding");
        assert!(Mask::new(&Tensor::new([2], vec![0i64, 1]).unwrap()).is_none());
    }
}
