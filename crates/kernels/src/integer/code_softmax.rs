//! Softmax of codes by a table of exponentials (QLinearSoftmax).

use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "qlinear softmax";
/// Elements that one task takes at least.
const GRAIN: usize = 1 << 12;
/// Rows whose sums grow side by side: each waits for its own last addition.
const TOGETHER: usize = 8;

/// The format of the results of [`softmax_codes`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeFormat {
    /// Whether codes, those of the operand too, are i8, else u8.
    pub signed: bool,
    /// Steps of the result that make up 1.
    pub steps: f32,
    /// The result's zero point.
    pub zero: i32,
}

/// Softmax of each row of `[rows, columns]` of codes, given and made by their bits:
/// `saturate(round_half_even(e · steps / sum(e)) + zero)` with `e = table[greatest code of the row − code]`; the sum is
/// taken in f32 from left to right, as ONNX Runtime takes it. NaN gives the least code.
///
/// # Errors
/// A slice has another length than the shape.
pub fn softmax_codes(
    exec: &Exec,
    x: &[u8],
    [rows, columns]: [usize; 2],
    table: &[f32; 256],
    format: CodeFormat,
    y: &mut [u8],
) -> Result {
    let len = product(NAME, &[rows, columns])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    if len == 0 {
        return Ok(());
    }
    let y = SharedMut::new(y);
    exec.split(rows, GRAIN / columns + 1, &|range| {
        with_scratch(TOGETHER * columns, |parts| {
            for first in range.clone().step_by(TOGETHER) {
                let count = TOGETHER.min(range.end - first);
                let x = &x[first * columns..(first + count) * columns];
                // SAFETY: no other task has these rows.
                let y = unsafe { y.slice(first * columns, x.len()) };
                exec.isa().dispatch(Block { x, y, columns, table, format, parts: &mut *parts });
            }
        });
    });
    Ok(())
}

/// At most [`TOGETHER`] rows of `x` and `y`, and scratch for as many.
struct Block<'a> {
    x: &'a [u8],
    y: &'a mut [u8],
    columns: usize,
    table: &'a [f32; 256],
    format: CodeFormat,
    parts: &'a mut [f32],
}

impl Kernel for Block<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.x.len() / self.columns;
        let sums = if rows == TOGETHER { self.exponentials::<TOGETHER>() } else { self.each(rows) };
        for (i, sum) in sums.into_iter().enumerate().take(rows) {
            self.round(s, i, sum);
        }
    }
}

impl Block<'_> {
    /// What turns the bits of a code into a number of the same order.
    fn flip(&self) -> u8 {
        if self.format.signed { 0x80 } else { 0 }
    }

    /// Looks all rows up one by one.
    #[inline(always)]
    fn each(&mut self, rows: usize) -> [f32; TOGETHER] {
        let mut sums = [0f32; TOGETHER];
        let (x, columns) = (self.x, self.columns);
        for i in 0..rows {
            let parts = &mut self.parts[i * columns..(i + 1) * columns];
            let flip = if self.format.signed { 0x80 } else { 0 };
            sums[i] = look_up([&x[i * columns..][..columns]], self.table, flip, parts)[0];
        }
        sums
    }

    /// Looks `N` rows up side by side; the parts of row `i` follow those of the row before.
    #[inline(always)]
    fn exponentials<const N: usize>(&mut self) -> [f32; N] {
        let (x, columns, flip) = (self.x, self.columns, self.flip());
        let rows: [&[u8]; N] = std::array::from_fn(|i| &x[i * columns..][..columns]);
        look_up(rows, self.table, flip, &mut self.parts[..N * columns])
    }

    #[inline(always)]
    fn round<S: Simd>(&mut self, s: S, i: usize, sum: f32) {
        let (low, high) = if self.format.signed { (-128.0, 127.0) } else { (0.0, 255.0) };
        let (low, high, zero) = (s.splat(low), s.splat(high), s.splat(self.format.zero as f32));
        let (steps, sum) = (s.splat(self.format.steps), s.splat(sum));
        let parts = &self.parts[i * self.columns..(i + 1) * self.columns];
        let y = &mut self.y[i * self.columns..(i + 1) * self.columns];
        for j in (0..self.columns).step_by(S::LANES) {
            let n = S::LANES.min(self.columns - j);
            // SAFETY: `n` elements from `j` on lie in both rows.
            unsafe {
                let e = s.load_bits(parts.as_ptr().add(j), low_bits(n));
                let v = s.add(s.round_even(s.div(s.mul(e, steps), sum)), zero);
                // `max` passes its second operand on when the first is NaN.
                s.store_low8_n(y.as_mut_ptr().add(j), s.to_i32(s.max(s.min(high, v), low)), n);
            }
        }
    }
}

/// The exponentials of rows of one length, one row after the other in `parts`, and their sums.
#[inline(always)]
fn look_up<const N: usize>(rows: [&[u8]; N], table: &[f32; 256], flip: u8, parts: &mut [f32]) -> [f32; N] {
    let columns = rows[0].len();
    let greatest = rows.map(|row| row.iter().fold(0, |most, &c| most.max(c ^ flip)));
    let mut sums = [0f32; N];
    for j in 0..columns {
        for i in 0..N {
            let e = table[usize::from(greatest[i].wrapping_sub(rows[i][j] ^ flip))];
            parts[i * columns + j] = e;
            sums[i] += e;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    fn plain(row: &[i32], table: &[f32; 256], steps: f32, zero: i32, (low, high): (i32, i32)) -> Vec<u8> {
        let most = row.iter().copied().max().unwrap();
        let e = |c: &i32| table[(most - c) as usize];
        let sum = row.iter().fold(0f32, |sum, c| sum + e(c));
        let code = |c| ((e(c) * steps / sum).round_ties_even() + zero as f32).max(low as f32).min(high as f32);
        row.iter().map(|c| code(c) as i32 as u8).collect()
    }

    #[test]
    fn softens_codes_as_plain_loops_on_every_tier() {
        let mut random = Random::new(5);
        let table: [f32; 256] = std::array::from_fn(|d| (20.0 - d as f32 * 0.07).exp());
        for (rows, columns) in [(1, 1), (3, 5), (8, 16), (19, 33), (9, 197), (40, 128), (2, 1030)] {
            let x: Vec<u8> = (0..rows * columns).map(|_| random.next() as u8).collect();
            for (signed, zero, steps) in [(false, 0, 255.0), (true, -128, 255.0), (false, 9, 300.0), (true, 3, 77.0)] {
                let value = |b: &u8| if signed { i32::from(*b as i8) } else { i32::from(*b) };
                let bounds = if signed { (-128, 127) } else { (0, 255) };
                let codes: Vec<i32> = x.iter().map(value).collect();
                let want: Vec<u8> =
                    codes.chunks(columns).flat_map(|row| plain(row, &table, steps, zero, bounds)).collect();
                for exec in execs() {
                    let (mut from, mut y) = (Guarded::new(&x), Guarded::new(&x));
                    let format = CodeFormat { signed, steps, zero };
                    softmax_codes(&exec, from.get(), [rows, columns], &table, format, y.get()).unwrap();
                    assert_eq!(y.get(), want, "{rows}×{columns} {format:?} {exec:?}");
                }
            }
        }
    }

    #[test]
    fn refuses_lengths_that_do_not_fit_the_shape() {
        let (exec, table) = (&execs()[0], [1.0; 256]);
        let format = CodeFormat { signed: false, steps: 255.0, zero: 0 };
        assert!(softmax_codes(exec, &[0; 6], [2, 3], &table, format, &mut [0; 6]).is_ok());
        assert!(softmax_codes(exec, &[0; 5], [2, 3], &table, format, &mut [0; 6]).is_err());
        assert!(softmax_codes(exec, &[0; 6], [2, 3], &table, format, &mut [0; 5]).is_err());
        assert!(softmax_codes(exec, &[], [0, 3], &table, format, &mut []).is_ok());
        assert!(softmax_codes(exec, &[], [usize::MAX, 3], &table, format, &mut []).is_err());
    }
}
