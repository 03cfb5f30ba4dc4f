//! What is computed of whole rows: magnitudes and their sums, and the softmax of powers of two.

use narrowbit_kernels::Exec;

use super::data::{Data, Int, Width, with_ints};
use super::parts;

/// `|x − zero|`.
pub(super) fn magnitude(exec: &Exec, x: &Data, zero: i64, width: Width) -> Data {
    let mut y = Data::zeros(width, x.len());
    with_ints!(x, x => with_ints!(&mut y, y => parts(exec, y, 1, &|from, y| {
        for (y, x) in y.iter_mut().zip(&x[from..]) {
            *y = Int::low(x.wide().wrapping_sub(zero).wrapping_abs());
        }
    })));
    y
}

/// The sums of rows.
pub(super) fn total(exec: &Exec, x: &Data, row: usize, zero: i64, width: Width) -> Data {
    let mut y = Data::zeros(width, x.len() / row.max(1));
    with_ints!(x, x => with_ints!(&mut y, y => parts(exec, y, 1, &|from, y| {
        for (y, row) in y.iter_mut().zip(x[from * row..].chunks(row)) {
            *y = Int::low(row.iter().map(|x| x.wide().wrapping_sub(zero)).sum());
        }
    })));
    y
}

/// A softmax of powers of two: `2^(l − t)` with `l = ⌊x⌋ − max ⌊x⌋` and `t = round(log2 Σ 2^l)`, in units of `2^−bits`,
/// what is less than one of these being 0.
///
/// Source: QuantizeML 0.8.1, `QuantizedShiftmax`: terms are counted in units of `2^(−2·bits)`, less is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shifts {
    /// Integers of a row.
    pub row: usize,
    /// Fraction bits of the integers (negative: they are multiples of a power of two).
    pub frac: i32,
    /// Fraction bits of the results.
    pub bits: u32,
    /// The greatest sum of terms; others saturate there.
    pub most: i64,
}

impl Shifts {
    pub(super) fn run(&self, exec: &Exec, x: &Data, width: Width) -> Data {
        let mut y = Data::zeros(width, x.len());
        with_ints!(x, x => with_ints!(&mut y, y => parts(exec, y, self.row, &|from, y| {
            for (y, x) in y.chunks_mut(self.row.max(1)).zip(x[from..].chunks(self.row.max(1))) {
                self.one(x, y);
            }
        })));
        y
    }

    fn one<A: Int, B: Int>(&self, x: &[A], y: &mut [B]) {
        // Lowering has proved that left shifts lose nothing.
        let (right, left) = (self.frac.clamp(0, 63) as u32, (-self.frac).clamp(0, 63) as u32);
        let whole = |x: &A| x.wide() >> right << left;
        let most = x.iter().map(whole).max().unwrap_or_default();
        let (bits, one) = (i64::from(self.bits), 1i64 << (2 * self.bits));
        let term = |x: &A| match most - whole(x) {
            down if down <= 2 * bits => one >> down,
            _ => 0,
        };
        let sum: i64 = x.iter().map(term).fold(0i64, |s, t| s.saturating_add(t)).min(self.most);
        // The greatest term alone is 2^(2·bits): there is nothing negative below.
        let t = i64::from(round_log2(sum)) - 2 * bits;
        for (y, x) in y.iter_mut().zip(x) {
            let exponent = bits - t - (most - whole(x));
            *y = B::low(if exponent >= 0 { 1 << exponent.min(62) } else { 0 });
        }
    }
}

/// The logarithm to the base of two of what is above zero, rounded: no power of two is halfway, because √2 is irrational.
fn round_log2(x: i64) -> u32 {
    let (x, floor) = (x.max(1) as u128, 63 - x.max(1).leading_zeros());
    floor + u32::from(x * x >= 1 << (2 * floor + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_kernels::Isa;

    #[test]
    fn rounds_logarithms() {
        let of = [1, 2, 3, 4, 5, 6, 7, 11, 12, 181, 182, i64::MAX].map(round_log2);
        // √2·2² = 5.66, √2·2³ = 11.3, √2·2⁷ = 181.02
        assert_eq!(of, [0, 1, 2, 2, 2, 3, 3, 3, 4, 7, 8, 63]);
    }

    #[test]
    fn drops_what_is_below_its_units() {
        let exec = Exec::new(Isa::detect(), 1);
        let shiftmax = |frac: i32, most: i64, x: &[i64]| {
            let s = Shifts { row: x.len(), frac, bits: 10, most };
            s.run(&exec, &Data::of(Width::I32, x), Width::U16).to_i64s()
        };
        assert_eq!(shiftmax(0, i64::MAX, &[7]), [1024]);
        // 2 · 2⁰ + 2⁻¹ + …: t = 1; −10 − 1 is below.
        assert_eq!(shiftmax(0, i64::MAX, &[5, 5, 4, -4, -5]), [512, 512, 256, 1, 0]);
        // Fractions are cut off downwards: −0.25 is −1.
        assert_eq!(shiftmax(2, i64::MAX, &[-1, 3, -4]), [512, 1024, 512].map(|v| v / 2));
        // Sixteen terms of 2²⁰: t is 4, or 1 where sums saturate at 2²¹.
        assert_eq!((shiftmax(0, i64::MAX, &[0; 16])[0], shiftmax(0, 1 << 21, &[0; 16])[0]), (64, 512));
    }
}
