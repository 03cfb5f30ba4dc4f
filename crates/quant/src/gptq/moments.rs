//! Sums of `x · xᵀ` and of x over the input columns of a product, group by group.

use std::sync::{Mutex, PoisonError};

use narrowbit_kernels::gemm::{Gemm, Lhs, MatrixView, Rhs, gemm};
use narrowbit_kernels::{Exec, KernelError};
use narrowbit_tensor::SplitMix64;

use super::columns::{Columns, ColumnsOf};

/// Columns that are taken of all samples together, for each input of an output: the matrix is an estimate, whose own error makes
/// the weights' greater by one part in that many.
const COLUMNS_PER_INPUT: usize = 8;
/// … and at the least.
const COLUMNS: usize = 8192;
/// Columns that are multiplied at a time: the matrix is read and written once for all of them.
const WAITING: usize = 512;
/// Their elements at the most.
const ELEMENTS: usize = 1 << 21;
/// Rows and columns of a part of the matrix that is computed at a time: only those on and above the diagonal are.
const PANEL: usize = 256;

/// The moments of the inputs of an operator.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    groups: usize,
    k: usize,
    /// `[groups, k, k]`; on and above the diagonal.
    products: Vec<f32>,
    /// `[groups, k]`.
    sums: Vec<f64>,
    /// Columns added.
    rows: u64,
    /// Columns that wait to be multiplied, `[…, groups, k]`.
    waiting: Vec<f32>,
    /// Columns that a run may add.
    quota: usize,
    /// Where the columns of the next run are.
    place: SplitMix64,
}

impl Moments {
    /// Bytes that the moments of a product take.
    pub fn bytes(c: &Columns) -> usize {
        c.k.saturating_mul(c.k).saturating_mul(c.groups).saturating_mul(size_of::<f32>())
    }

    /// Nothing yet, for so many runs of the model.
    pub fn new(c: &Columns, runs: usize) -> Moments {
        let most = COLUMNS.max(c.k.saturating_mul(COLUMNS_PER_INPUT));
        Moments {
            groups: c.groups,
            k: c.k,
            products: vec![0.0; c.groups * c.k * c.k],
            sums: vec![0.0; c.groups * c.k],
            rows: 0,
            waiting: Vec::new(),
            quota: most.div_ceil(runs.max(1)),
            place: SplitMix64::new(0),
        }
    }

    /// Columns added.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds the columns of a run, or as many of them as it may, spread evenly.
    ///
    /// # Errors
    /// Never for columns of this product.
    pub fn add(&mut self, exec: &Exec, columns: &ColumnsOf) -> Result<(), KernelError> {
        let width = self.groups * self.k;
        let most = WAITING.min(ELEMENTS / width).max(1);
        if let Some(matrix) = columns.matrix().filter(|_| (most..=self.quota).contains(&columns.rows)) {
            matrix.chunks(most * width).try_for_each(|part| self.multiply(exec, part))?;
            return Ok(());
        }
        let rows = columns.rows.min(self.quota);
        let chosen: Vec<usize> = (0..rows).map(|i| self.choose(i, columns.rows)).collect();
        for part in chosen.chunks(most) {
            let from = self.waiting.len();
            self.waiting.resize(from + part.len() * width, 0.0);
            gather(exec, columns, part, &mut self.waiting[from..]);
            if self.waiting.len() >= most * width {
                self.finish(exec)?;
            }
        }
        Ok(())
    }

    /// Multiplies the columns that wait.
    ///
    /// # Errors
    /// Never for columns of this product.
    pub fn finish(&mut self, exec: &Exec) -> Result<(), KernelError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.multiply(exec, &waiting)?;
        waiting.clear();
        self.waiting = waiting;
        Ok(())
    }

    /// The i-th of the columns that a run adds: all of them, or one of each of as many equal parts as the quota has (a fixed
    /// step would fall on the same pixels of each line).
    fn choose(&mut self, i: usize, rows: usize) -> usize {
        if rows <= self.quota {
            return i;
        }
        let (from, to) = (i * rows / self.quota, (i + 1) * rows / self.quota);
        from + self.place.below((to - from).max(1) as u64) as usize
    }

    /// Adds `xᵀ · x` of each group, and the sums, for columns `[…, groups, k]`.
    fn multiply(&mut self, exec: &Exec, x: &[f32]) -> Result<(), KernelError> {
        let (k, width) = (self.k, self.groups * self.k);
        if x.is_empty() {
            return Ok(());
        }
        let products = self.products.chunks_mut(k * k);
        let groups: Vec<Mutex<&mut [f32]>> = products.map(Mutex::new).collect();
        let failed = Mutex::new(None);
        exec.pool().run(groups.len(), &|g| {
            let mut products = groups[g].lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(e) = add(exec, &x[g * k..], (x.len() / width, width, k), &mut products) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        });
        if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(e);
        }
        for column in x.chunks_exact(width) {
            self.sums.iter_mut().zip(column).for_each(|(s, v)| *s += f64::from(*v));
        }
        self.rows += (x.len() / width) as u64;
        Ok(())
    }

    /// `Σ x_i x_j` of a group, or about the means where that is asked for.
    pub fn entry(&self, group: usize, i: usize, j: usize, centred: bool) -> f64 {
        let (low, high) = (i.min(j), i.max(j));
        let sum = f64::from(self.products[(group * self.k + low) * self.k + high]);
        if !centred || self.rows == 0 {
            return sum;
        }
        let about = sum - self.sums[group * self.k + i] * self.sums[group * self.k + j] / self.rows as f64;
        // What is left of a constant input is rounding errors.
        if i == j && about < sum * 1e-6 { 0.0 } else { about }
    }

    /// The means of all columns, `[groups, k]`.
    pub fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|s| s / self.rows.max(1) as f64).collect()
    }

    /// Adds the moments of other columns with as many inputs and groups.
    pub fn merge(&mut self, other: &Moments) {
        self.products.iter_mut().zip(&other.products).for_each(|(a, b)| *a += b);
        self.sums.iter_mut().zip(&other.sums).for_each(|(a, b)| *a += b);
        self.rows += other.rows;
    }
}

/// Gathers some columns on the threads of `exec`.
fn gather(exec: &Exec, columns: &ColumnsOf, chosen: &[usize], to: &mut [f32]) {
    /// Columns of a task.
    const COLUMNS: usize = 32;
    let width = to.len() / chosen.len().max(1);
    let parts: Vec<Mutex<&mut [f32]>> = to.chunks_mut(COLUMNS * width).map(Mutex::new).collect();
    exec.pool().run(parts.len(), &|p| {
        let mut part = parts[p].lock().unwrap_or_else(PoisonError::into_inner);
        part.chunks_exact_mut(width).zip(&chosen[p * COLUMNS..]).for_each(|(to, &row)| columns.gather(row, to));
    });
}

/// Adds `xᵀ · x`, on and above the diagonal, of `rows` rows of `k` elements that begin `step` apart.
fn add(
    exec: &Exec,
    x: &[f32],
    (rows, step, k): (usize, usize, usize),
    products: &mut [f32],
) -> Result<(), KernelError> {
    for top in (0..k).step_by(PANEL) {
        let height = PANEL.min(k - top);
        let left = Lhs::View(MatrixView { data: &x[top..], row_stride: 1, col_stride: step });
        let right = Rhs::View(MatrixView { data: &x[top..], row_stride: step, col_stride: 1 });
        let g = Gemm { ldc: k, beta: 1.0, ..Gemm::new(height, k - top, rows, left, right) };
        gemm(exec, &g, &mut products[top * k + top..])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use narrowbit_ir::text;
    use narrowbit_kernels::Isa;
    use narrowbit_ops::Registry;
    use narrowbit_runtime::View;

    use super::*;

    fn columns(text: &str) -> Columns {
        let model = text::parse_model(text, &Registry).unwrap();
        Columns::of(&model.graph, model.graph.nodes().next().unwrap().0).unwrap()
    }

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut r = SplitMix64::new(seed);
        (0..n).map(|_| r.normal() as f32 + 0.5).collect()
    }

    #[test]
    fn adds_up_all_columns_whatever_the_runs_and_threads() {
        let c = columns(
            r#"model opset=17 graph "g" { input %x: f32[2, 300] const %w: f32[300, 4] = random(1) %y = MatMul(%x, %w) output %y }"#,
        );
        let x = noise(700 * 300, 1);
        let of = |rows: usize, threads: usize| {
            let exec = Exec::new(Isa::detect(), threads);
            let mut m = Moments::new(&c, 1);
            for run in x.chunks(rows * 300) {
                let shape = [run.len() / 300, 300];
                m.add(&exec, &c.view(&View::new(&shape, run), run).unwrap()).unwrap();
            }
            m.finish(&exec).unwrap();
            m
        };
        let whole = of(700, 1);
        assert_eq!(whole.rows(), 700);
        for (i, j) in [(0, 0), (3, 299), (299, 3), (280, 290), (255, 256)] {
            let sum: f64 = x.chunks(300).map(|r| f64::from(r[i]) * f64::from(r[j])).sum();
            let mean = |i: usize| x.chunks(300).map(|r| f64::from(r[i])).sum::<f64>() / 700.0;
            // Sums of 700 products in 32 bits.
            assert!((whole.entry(0, i, j, false) - sum).abs() < 1e-3, "{i} {j}");
            let about = sum - 700.0 * mean(i) * mean(j);
            assert!((whole.entry(0, i, j, true) - about).abs() < 1e-3, "{i} {j}");
            assert!((whole.means()[i] - mean(i)).abs() < 1e-9);
        }
        let (parts, threads) = (of(7, 1), of(700, 3));
        assert_eq!((&whole.products, &whole.sums), (&threads.products, &threads.sums));
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
        assert!(parts.products.iter().zip(&whole.products).all(close) && parts.rows() == 700);
    }

    #[test]
    fn takes_each_group_by_itself_and_no_more_columns_than_it_needs() {
        let c = columns(
            r#"model opset=17 graph "g" { input %x: f32[1, 6, 200, 200] const %w: f32[6, 2, 1, 1] = random(1)
                %y = Conv(%x, %w) {group=3} output %y }"#,
        );
        let (exec, x) = (Exec::new(Isa::detect(), 2), noise(6 * 40_000, 2));
        let of = |runs| {
            let mut m = Moments::new(&c, runs);
            m.add(&exec, &c.view(&View::new(&[1, 6, 200, 200], &x), &x).unwrap()).unwrap();
            m.finish(&exec).unwrap();
            m
        };
        let m = of(2);
        assert_eq!(m.rows(), COLUMNS as u64 / 2);
        for g in 0..3 {
            let exact: f64 = (0..40_000).map(|p| f64::from(x[2 * g * 40_000 + p]).powi(2)).sum::<f64>() / 40_000.0;
            let found = m.entry(g, 0, 0, false) / m.rows() as f64;
            // A tenth of the pixels: 1/√4096 of the standard deviation of a square.
            assert!((found - exact).abs() < 0.15, "{found} {exact}");
        }
        assert_ne!(of(3).entry(0, 0, 1, false), m.entry(0, 0, 1, false));
    }
}
