//! Rounds a matrix of weights column by column, handing on each error.

use narrowbit_kernels::gemm::{Gemm, Lhs, MatrixView, Rhs, gemm};
use narrowbit_kernels::{Exec, KernelError};

use super::factor::Factor;

/// The values that the weights of a product can have.
pub(crate) trait Grid: Sync {
    /// Rounds values that belong to input `k` (within its group) and to the output channels from `first` on to the nearest
    /// values of the grid; gives their codes and what these stand for.
    fn round(&self, k: usize, first: usize, x: &[f32], codes: &mut [i32], values: &mut [f32]);
}

/// Some output channels of a weight, rounded.
#[derive(Debug)]
pub(super) struct Part {
    /// `[outputs, k]`.
    pub codes: Vec<i32>,
    /// Sums of squares over the samples: of the outputs, and of their errors with each weight rounded to the nearest and as it
    /// is now.
    pub power: Power,
}

/// Sums of squares of outputs and of their errors, over all samples and channels.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Power {
    pub signal: f64,
    pub nearest: f64,
    pub rounded: f64,
}

impl std::ops::AddAssign for Power {
    fn add_assign(&mut self, other: Power) {
        self.signal += other.signal;
        self.nearest += other.nearest;
        self.rounded += other.rounded;
    }
}

/// Steps whose errors are handed on one by one; the product of all steps before with their feedback is one of matrices.
const STEPS: usize = 32;

/// Rounds the weights `[n, k]` of the output channels from `first` on. Where the nearest values give the lesser error to an output
/// channel, it keeps them.
///
/// # Errors
/// Never for weights and a factor of one size.
pub(super) fn round(
    exec: &Exec,
    factor: &Factor,
    weights: &[f32],
    grid: &dyn Grid,
    first: usize,
) -> Result<Part, KernelError> {
    let k = factor.order.len();
    let n = weights.len() / k.max(1);
    let mut work = Work::new(factor, weights, grid, first);
    let mut block = vec![0f32; STEPS * 3 * n];
    for start in (0..k).step_by(STEPS) {
        let steps = STEPS.min(k - start);
        let block = &mut block[..steps * 3 * n];
        block.fill(0.0);
        if start > 0 {
            let feedback = Lhs::View(MatrixView::transposed(&factor.feedback[start..], k));
            let errors = Rhs::View(MatrixView::row_major(&work.errors, 3 * n));
            gemm(exec, &Gemm::new(steps, 3 * n, start, feedback, errors), block)?;
        }
        for p in 0..steps {
            let (before, now) = block.split_at_mut(p * 3 * n);
            let _ = before;
            let now = &mut now[..3 * n];
            for q in start..start + p {
                let f = factor.feedback[q * k + start + p];
                let errors = &work.errors[q * 3 * n..][..3 * n];
                now.iter_mut().zip(errors).for_each(|(t, e)| *t += f * e);
            }
            work.step(start + p, now);
        }
    }
    Ok(work.finish())
}

/// The state of [`round`]. Each row of three times n floats is about the rounded weights, the nearest ones, and the weights
/// themselves, whose "error" is the output.
struct Work<'a> {
    factor: &'a Factor,
    grid: &'a dyn Grid,
    first: usize,
    n: usize,
    /// `[k, 3, n]`, by step.
    errors: Vec<f32>,
    /// `[k, n]`, by step.
    codes: Vec<i32>,
    /// As `codes`.
    nearest: Vec<i32>,
    /// By output channel.
    power: Vec<Power>,
    targets: Vec<f32>,
    values: Vec<f32>,
}

impl<'a> Work<'a> {
    fn new(factor: &'a Factor, weights: &[f32], grid: &'a dyn Grid, first: usize) -> Work<'a> {
        let k = factor.order.len();
        let n = weights.len() / k.max(1);
        let mut errors = vec![0f32; k * 3 * n];
        for (row, &column) in errors.chunks_exact_mut((3 * n).max(1)).zip(&factor.order) {
            row[2 * n..].iter_mut().enumerate().for_each(|(o, w)| *w = weights[o * k + column]);
        }
        let power = vec![Power::default(); n];
        let (codes, nearest) = (vec![0; k * n], vec![0; k * n]);
        Work { factor, grid, first, n, errors, codes, nearest, power, targets: vec![0.0; n], values: vec![0.0; n] }
    }

    /// Rounds one column, where `handed` is what the errors of those before it give to it.
    fn step(&mut self, p: usize, handed: &[f32]) {
        let Work { n, ref mut targets, ref mut values, .. } = *self;
        let (column, pivot) = (self.factor.order[p], self.factor.pivots[p]);
        let (errors, w) = self.errors[p * 3 * n..][..3 * n].split_at_mut(2 * n);
        let (rounded, nearest) = errors.split_at_mut(n);
        targets.iter_mut().zip(w.iter().zip(handed)).for_each(|(t, (w, h))| *t = w + h);
        self.grid.round(column, self.first, targets, &mut self.codes[p * n..][..n], values);
        let damping = self.factor.damping;
        let square = |x: f32| f64::from(x) * f64::from(x);
        for o in 0..n {
            rounded[o] = w[o] - values[o];
            let power = &mut self.power[o];
            // The damping is no part of the error.
            power.rounded += pivot * square(targets[o] - values[o]) - damping * square(rounded[o]);
            power.signal += pivot * square(w[o] + handed[2 * n + o]) - damping * square(w[o]);
        }
        self.grid.round(column, self.first, w, &mut self.nearest[p * n..][..n], values);
        for o in 0..n {
            nearest[o] = w[o] - values[o];
            self.power[o].nearest += pivot * square(nearest[o] + handed[n + o]) - damping * square(nearest[o]);
        }
    }

    fn finish(self) -> Part {
        let (k, n) = (self.factor.order.len(), self.n);
        let mut codes = vec![0i32; k * n];
        let mut power = Power::default();
        for (o, mut own) in self.power.into_iter().enumerate() {
            let better = own.rounded < own.nearest;
            let from = if better { &self.codes } else { &self.nearest };
            own.rounded = own.rounded.min(own.nearest);
            power += own;
            for (p, &column) in self.factor.order.iter().enumerate() {
                codes[o * k + column] = from[p * n + o];
            }
        }
        Part { codes, power }
    }
}

#[cfg(test)]
mod tests {
    use narrowbit_kernels::Isa;

    use super::*;

    /// Whole numbers from −7 to 7 times a step.
    struct Steps(f32);

    impl Grid for Steps {
        fn round(&self, _: usize, _: usize, x: &[f32], codes: &mut [i32], values: &mut [f32]) {
            for ((&x, c), v) in x.iter().zip(codes).zip(values) {
                *c = (x / self.0).round_ties_even().clamp(-7.0, 7.0) as i32;
                *v = *c as f32 * self.0;
            }
        }
    }

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut r = narrowbit_tensor::SplitMix64::new(seed);
        (0..n).map(|_| r.normal() as f32).collect()
    }

    /// `e H eᵀ` of each output channel, added up.
    fn error(h: &[f64], e: &[f64], k: usize) -> f64 {
        let row = |e: &[f64]| (0..k * k).map(|i| e[i / k] * h[i] * e[i % k]).sum::<f64>();
        e.chunks_exact(k).map(row).sum()
    }

    /// Inputs that share most of what they hold.
    fn moments(k: usize) -> Vec<f64> {
        let rows: Vec<Vec<f32>> = (0..3 * k as u64)
            .map(|s| {
                let x = noise(k + 1, s);
                (0..k).map(|i| 2.0 * x[k] + x[i]).collect()
            })
            .collect();
        (0..k * k).map(|i| rows.iter().map(|x| f64::from(x[i / k]) * f64::from(x[i % k])).sum()).collect()
    }

    #[test]
    fn errs_less_than_the_nearest_weights_and_says_by_how_much() {
        for (k, n) in [(3, 2), (32, 5), (70, 9)] {
            let (exec, h, w) = (Exec::new(Isa::detect(), 2), moments(k), noise(n * k, 99));
            let factor = Factor::new(&exec, k, |i, j| h[i * k + j]).unwrap();
            let grid = Steps(0.3);
            let part = round(&exec, &factor, &w, &grid, 0).unwrap();
            let errors = |codes: &[i32]| -> Vec<f64> {
                w.iter().zip(codes).map(|(&w, &c)| f64::from(w) - f64::from(c as f32 * 0.3)).collect()
            };
            let mut nearest = vec![0i32; n * k];
            grid.round(0, 0, &w, &mut nearest, &mut vec![0.0; n * k]);
            let (a, b) = (error(&h, &errors(&part.codes), k), error(&h, &errors(&nearest), k));
            let signal = error(&h, &w.iter().map(|&w| f64::from(w)).collect::<Vec<_>>(), k);
            // Sums of 32-bit products.
            let close = |a: f64, b: f64| (a - b).abs() < 1e-4 * b.abs() + 1e-6 * signal;
            assert!(close(part.power.rounded, a), "{k}: {:?} {a}", part.power);
            assert!(close(part.power.nearest, b), "{k}: {:?} {b}", part.power);
            assert!(close(part.power.signal, signal), "{k}: {:?} {signal}", part.power);
            assert!(a <= b, "{k}: {a} {b}");
            assert!(k == 3 || a < 0.5 * b, "{k}: {a} is not much less than {b}");
        }
    }

    #[test]
    fn rounds_to_the_nearest_where_inputs_are_apart() {
        let exec = Exec::new(Isa::detect(), 1);
        let (k, w) = (40, noise(3 * 40, 5));
        let factor = Factor::new(&exec, k, |i, j| if i == j { 1.0 + i as f64 } else { 0.0 }).unwrap();
        let part = round(&exec, &factor, &w, &Steps(0.3), 0).unwrap();
        let mut nearest = vec![0i32; w.len()];
        Steps(0.3).round(0, 0, &w, &mut nearest, &mut vec![0.0; w.len()]);
        assert_eq!(part.codes, nearest);
    }
}
