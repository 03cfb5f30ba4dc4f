//! From accumulators to results: correction, scale, bias, residual, activation, rounding.
//!
//! In this order, lane by lane and alike on every tier:
//! `v = f32(acc + offset − weight zero · row sum − row zero · column sum) · (row scale · scale) + bias`, the stage, the
//! residual, the activation, a factor, a shift, and for integer results
//! `saturate(round_half_even(v · inverse_scale) + zero_point)`. Factor and shift are multiplied by the inverse scale first, and
//! are one multiplication and addition with a single rounding.

use super::epilogue::{Epilogue, Residual, load_bf16};
use super::forms::{ANY, BF16, Form, PASS, PLAIN, ROWS, is_code, is_float_sum};
use super::stage::{Stage, Steps};
use super::target::Out;
use crate::activation::Activation;
use crate::simd::{Simd, low_bits};

/// One tile's accumulators and where they go.
pub(crate) struct Finish<'a> {
    pub epilogue: &'a Epilogue<'a>,
    /// Whether the accumulators are i32, else f32.
    pub ints: bool,
    /// `rows × width` words.
    pub acc: *const u32,
    pub rows: usize,
    pub width: usize,
    /// Columns that count, at most `width`.
    pub n: usize,
    /// Place of the first row among all rows.
    pub row: usize,
    /// Place of the first column in the per-column arrays.
    pub column: usize,
    /// Sums of the rows' elements, where weights have zero points.
    pub row_sums: *const i32,
    pub out: Out,
    /// Elements from the start of the target to the tile's corner, and between its rows.
    pub at: usize,
    pub ld: usize,
}

/// What is the same for all results: in registers, because the compiler can't tell that results do not overwrite it.
#[derive(Clone, Copy)]
struct Constants<S: Simd> {
    acc: *const u32,
    width: usize,
    data: *mut u8,
    at: usize,
    ld: usize,
    zero: S::I,
    /// What is added, as [`Finish::residual`] numbers it.
    added: u8,
    /// The residual of integers: its elements, scale and zero point.
    residual: *const u8,
    residual_scale: S::F,
    residual_zero: S::I,
    /// The stage before it.
    stage: Steps<S>,
    /// The scale and the zero point of the first row, where rows have their own, and how far apart those of the next one are.
    row_scales: *const f32,
    row_zeros: *const i32,
    row_step: usize,
}

/// What is the same for all rows of a vector of columns.
struct Column<S: Simd> {
    offset: S::I,
    /// What is taken off for each step of a row's zero point, and for each one of the sum of its elements.
    sum: S::I,
    weight_zero: S::I,
    scale: S::F,
    bias: S::F,
    /// Steps that are added behind the stage.
    row: S::F,
    /// What results are multiplied by before they are rounded: one over their scale, and the column's factor.
    inverse: S::F,
    /// Added to that product.
    shift: S::F,
    low: S::F,
    high: S::F,
}

impl<S: Simd> Column<S> {
    /// What is rounded: a value behind its activation, with factor and shift.
    #[inline(always)]
    fn scaled<F: Form>(&self, s: S, v: S::F) -> S::F {
        if F::MODE == PASS { s.mul_add(v, self.inverse, self.shift) } else { s.mul(v, self.inverse) }
    }
}

impl Finish<'_> {
    /// The sums with their offsets, as integers.
    #[inline(always)]
    pub(super) unsafe fn sums<S: Simd>(&self, s: S) {
        let e = self.epilogue;
        let mut j = 0;
        while j < self.n {
            let n = (self.n - j).min(S::LANES);
            // SAFETY: columns `j..j + n` are in the arrays, rows in the tile; accumulators are whole vectors.
            unsafe {
                let offset = s.load_i32_n(e.offsets.as_ptr().add(self.column + j), n);
                for i in 0..self.rows {
                    let mut x = s.add_i(s.to_bits(s.load(self.acc.add(i * self.width + j).cast())), offset);
                    if !e.weight_zeros.is_empty() {
                        let zeros = s.load_i32_n(e.weight_zeros.as_ptr().add(self.column + j), n);
                        x = s.sub_i(x, s.mul_i(s.splat_i(*self.row_sums.add(i)), zeros));
                    }
                    s.store_i32_n(self.out.data.cast::<i32>().add(self.at + i * self.ld + j), x, n);
                }
            }
            j += S::LANES;
        }
    }

    /// Whether the sums' factors give steps of the first rounding, and nothing is added before it.
    pub(super) fn is_plain(&self, residual: u8) -> bool {
        let e = self.epilogue;
        let stage = e.stage.is_none_or(|stage| stage.is_in_steps());
        let result = is_float_sum(residual) || self.out.inverse == 1.0 && e.factors.is_empty();
        e.bias.is_empty() && stage && result
    }

    #[inline(always)]
    pub(super) unsafe fn rows<S: Simd, F: Form>(&self, s: S) {
        let constants = self.constants(s);
        let mut j = 0;
        while j < self.n {
            let n = (self.n - j).min(S::LANES);
            // SAFETY: columns `j..j + n`, or two vectors of them, are in the arrays and in the tile.
            unsafe {
                // With a length that the compiler knows, no masks are made.
                if is_code(F::KIND) && j + 2 * S::LANES <= self.n {
                    self.codes::<S, F, 2>(s, constants, j);
                    j += S::LANES;
                } else if is_code(F::KIND) && n == S::LANES {
                    self.codes::<S, F, 1>(s, constants, j);
                } else if !is_code(F::KIND) && F::MODE != PASS && j + 2 * S::LANES <= self.n {
                    self.pairs::<S, F>(s, constants, j);
                    j += S::LANES;
                } else if !is_code(F::KIND) && F::MODE == PASS && n == S::LANES {
                    self.passes::<S, F>(s, constants, j);
                } else {
                    let column = self.column::<S, F>(s, j, n);
                    for i in 0..self.rows {
                        self.vector::<S, F>(s, &constants, &column, (i, j), n);
                    }
                }
            }
            j += S::LANES;
        }
    }

    /// Integer results of `COLUMNS` (1 or 2) whole vectors of columns from `j` on, four vectors at a time.
    #[inline(always)]
    unsafe fn codes<S: Simd, F: Form, const COLUMNS: usize>(&self, s: S, constants: Constants<S>, j: usize) {
        let (c, rows) = (&constants, 4 / COLUMNS);
        // SAFETY: the caller vouches for the columns, and the rows are in the tile.
        unsafe {
            let last = j + (COLUMNS - 1) * S::LANES;
            let columns = [self.column::<S, F>(s, j, S::LANES), self.column::<S, F>(s, last, S::LANES)];
            let mut low = [c.zero; 4];
            for (k, low) in low.iter_mut().enumerate() {
                *low = s.to_i32(columns[k % COLUMNS].low);
            }
            let mut i = 0;
            while i + rows <= self.rows {
                let (mut x, mut v, mut to) = ([c.residual_scale; 4], [c.zero; 4], [c.data; 4]);
                for (k, x) in x.iter_mut().enumerate() {
                    let (column, place) = (&columns[k % COLUMNS], (i + k / COLUMNS, j + k % COLUMNS * S::LANES));
                    *x = self.before::<S, F>(s, c, column, place, S::LANES);
                    to[k] = c.data.wrapping_add(c.at + place.0 * c.ld + place.1);
                }
                if F::MODE == PASS {
                    self.activation::<F>().apply_all(s, &mut x);
                }
                for (k, &x) in x.iter().enumerate() {
                    let column = &columns[k % COLUMNS];
                    let plain = F::MODE == PLAIN && !is_float_sum(F::RESIDUAL);
                    let x = if plain { x } else { column.scaled::<F>(s, x) };
                    // NaN passes, and gives the smallest integer.
                    v[k] = s.to_i32(s.min(column.high, x));
                }
                match F::KIND {
                    1 => s.store_codes::<false>(to, v, low, c.zero),
                    _ => s.store_codes::<true>(to, v, low, c.zero),
                }
                i += rows;
            }
            for i in i..self.rows {
                for (k, column) in columns[..COLUMNS].iter().enumerate() {
                    let place = (i, j + k * S::LANES);
                    self.vector::<S, F>(s, c, column, place, S::LANES);
                }
            }
        }
    }

    /// Results that are floats or bfloat16, of two whole vectors of columns from `j` on.
    #[inline(always)]
    unsafe fn pairs<S: Simd, F: Form>(&self, s: S, constants: Constants<S>, j: usize) {
        let c = &constants;
        // SAFETY: the caller vouches for the columns, and the rows are in the tile.
        unsafe {
            let last = j + S::LANES;
            let (left, right) = (self.column::<S, F>(s, j, S::LANES), self.column::<S, F>(s, last, S::LANES));
            for i in 0..self.rows {
                let at = c.at + i * c.ld + j;
                let (a, b) = (
                    self.value::<S, F>(s, c, &left, (i, j), S::LANES),
                    self.value::<S, F>(s, c, &right, (i, last), S::LANES),
                );
                // NaN passes: `min` and `max` give their second operand then.
                let (a, b) = (s.min(left.high, s.max(left.low, a)), s.min(right.high, s.max(right.low, b)));
                if F::KIND == 3 {
                    s.store_bf16_pair(c.data.cast::<u16>().add(at), a, b);
                } else {
                    s.store(c.data.cast::<f32>().add(at), a);
                    s.store(c.data.cast::<f32>().add(at + S::LANES), b);
                }
            }
        }
    }

    /// Results that are floats or bfloat16, of a whole vector of columns from `j` on, behind a function: four rows at a time.
    #[inline(always)]
    unsafe fn passes<S: Simd, F: Form>(&self, s: S, constants: Constants<S>, j: usize) {
        let c = &constants;
        // SAFETY: the caller vouches for the columns, and the rows are in the tile.
        unsafe {
            let column = self.column::<S, F>(s, j, S::LANES);
            let mut i = 0;
            while i + 4 <= self.rows {
                let mut v = [column.bias; 4];
                for (k, v) in v.iter_mut().enumerate() {
                    *v = self.before::<S, F>(s, c, &column, (i + k, j), S::LANES);
                }
                self.activation::<F>().apply_all(s, &mut v);
                for (k, &v) in v.iter().enumerate() {
                    self.store::<S, F>(s, c, &column, (i + k, j), v, S::LANES);
                }
                i += 4;
            }
            for i in i..self.rows {
                self.vector::<S, F>(s, c, &column, (i, j), S::LANES);
            }
        }
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Constants<S> {
        let (residual, scale, zero) = match self.epilogue.residual {
            Residual::U8(r, scale, zero) => (r.as_ptr(), scale, zero),
            Residual::I8(r, scale, zero) => (r.as_ptr().cast(), scale, zero),
            Residual::Row(_, scale) => (std::ptr::null(), scale, 0),
            Residual::Bf16(r) => (r.as_ptr().cast(), 1.0, 0),
            _ => (std::ptr::null(), 1.0, 0),
        };
        let stage = self.epilogue.stage.unwrap_or(Stage::new(false, 1.0, 1.0, 0));
        let (row_scales, row_zeros, row_step) = match &self.epilogue.rows {
            None => (std::ptr::null(), std::ptr::null(), 0),
            Some(rows) if rows.scales.len() == 1 => (rows.scales.as_ptr(), rows.zeros.as_ptr(), 0),
            Some(rows) => (rows.scales[self.row..].as_ptr(), rows.zeros[self.row..].as_ptr(), 1),
        };
        Constants {
            acc: self.acc,
            width: self.width,
            data: self.out.data,
            at: self.at,
            ld: self.ld,
            zero: s.splat_i(self.out.zero),
            added: self.residual(),
            residual,
            residual_scale: s.splat(scale),
            residual_zero: s.splat_i(zero),
            stage: Steps::new(s, stage),
            row_scales,
            row_zeros,
            row_step,
        }
    }

    #[inline(always)]
    unsafe fn column<S: Simd, F: Form>(&self, s: S, j: usize, n: usize) -> Column<S> {
        let (e, at, bits) = (self.epilogue, self.column + j, low_bits(n));
        let (lo, hi) = e.activation.bounds();
        let inverse = match e.factors.is_empty() {
            true => s.splat(self.out.inverse),
            // SAFETY: `check` made sure of the arrays' lengths.
            false => s.mul(unsafe { s.load_bits(e.factors.as_ptr().add(at), bits) }, s.splat(self.out.inverse)),
        };
        let shift = match e.shifts.is_empty() {
            // Adding −0 changes nothing.
            true => s.splat(-0.0),
            // SAFETY: as above.
            false => s.mul(unsafe { s.load_bits(e.shifts.as_ptr().add(at), bits) }, s.splat(self.out.inverse)),
        };
        let (low, high) = match F::KIND {
            0 | 3 => (s.splat(lo), s.splat(hi)),
            _ => {
                let (least, most) = if F::KIND == 1 { (0, 255) } else { (-128, 127) };
                let (least, most) = (s.splat((least - self.out.zero) as f32), s.splat((most - self.out.zero) as f32));
                if F::MODE == PASS {
                    // The activation has clamped.
                    (least, most)
                } else {
                    // A clamp before the multiplication by `inverse` is one after it with bounds that were multiplied alike,
                    // and change their places where it is negative.
                    let (a, b) = (s.mul(s.splat(lo), inverse), s.mul(s.splat(hi), inverse));
                    let turned = s.lt(inverse, s.splat(0.0));
                    let (low, high) = (s.select(turned, b, a), s.select(turned, a, b));
                    (s.min(s.max(low, least), most), s.min(high, most))
                }
            }
        };
        // SAFETY: `check` made sure of the arrays' lengths.
        unsafe {
            Column {
                offset: if F::INTS { s.load_i32_n(e.offsets.as_ptr().add(at), n) } else { s.splat_i(0) },
                sum: match &e.rows {
                    Some(rows) if F::INTS => s.load_i32_n(rows.column_sums.as_ptr().add(at), n),
                    _ => s.splat_i(0),
                },
                weight_zero: match F::MODE == PASS && !e.weight_zeros.is_empty() {
                    true => s.load_i32_n(e.weight_zeros.as_ptr().add(at), n),
                    false => s.splat_i(0),
                },
                scale: if F::INTS || !e.scales.is_empty() {
                    s.load_bits(e.scales.as_ptr().add(at), bits)
                } else {
                    s.splat(1.0)
                },
                // As for the shift.
                bias: if e.bias.is_empty() { s.splat(-0.0) } else { s.load_bits(e.bias.as_ptr().add(at), bits) },
                row: match e.residual {
                    Residual::Row(row, _) => s.load_bits(row.as_ptr().add(at), bits),
                    _ => s.splat(0.0),
                },
                inverse,
                shift,
                low,
                high,
            }
        }
    }

    /// What is clamped: the sums with all that the epilogue does to them.
    #[inline(always)]
    unsafe fn value<S: Simd, F: Form>(
        &self,
        s: S,
        c: &Constants<S>,
        column: &Column<S>,
        place: (usize, usize),
        n: usize,
    ) -> S::F {
        // SAFETY: passed on to the caller.
        let v = unsafe { self.before::<S, F>(s, c, column, place, n) };
        if F::MODE == PASS { self.activation::<F>().apply(s, v) } else { v }
    }

    /// The function behind the sum of all, as exact as the results are.
    #[inline(always)]
    fn activation<F: Form>(&self) -> Activation {
        let activation = self.epilogue.activation;
        if is_code(F::KIND) { activation.coarse() } else { activation }
    }

    /// What the activation is a function of.
    #[inline(always)]
    unsafe fn before<S: Simd, F: Form>(
        &self,
        s: S,
        c: &Constants<S>,
        column: &Column<S>,
        (i, j): (usize, usize),
        n: usize,
    ) -> S::F {
        let e = self.epilogue;
        let acc = c.acc.wrapping_add(i * c.width + j);
        let at = c.at + i * c.ld + j;
        // SAFETY: the caller vouches for these places; the accumulators are whole vectors.
        unsafe {
            let mut v = if F::INTS {
                let mut x = s.add_i(s.to_bits(s.load(acc.cast())), column.offset);
                if F::MODE == PASS && !e.weight_zeros.is_empty() {
                    x = s.sub_i(x, s.mul_i(s.splat_i(*self.row_sums.add(i)), column.weight_zero));
                }
                let mut scale = column.scale;
                if F::MODE == ROWS || F::MODE == PASS && !c.row_scales.is_null() {
                    let (row_scale, zero) = (*c.row_scales.add(i * c.row_step), *c.row_zeros.add(i * c.row_step));
                    x = s.sub_i(x, s.mul_i(s.splat_i(zero), column.sum));
                    scale = s.mul(s.splat(row_scale), scale);
                }
                s.mul(s.to_f32(x), scale)
            } else {
                s.mul(s.load(acc.cast()), column.scale)
            };
            if F::MODE != PLAIN {
                v = s.add(v, column.bias);
            }
            let added = if F::RESIDUAL == ANY { c.added } else { F::RESIDUAL };
            if added == 1
                && let Residual::F32(r) = e.residual
            {
                v = s.add(v, s.load_bits(r.as_ptr().add(at), low_bits(n)));
            }
            if added == BF16 {
                v = s.add(v, load_bf16(s, c.residual.cast::<u16>().add(at), n));
            } else if added > 1 {
                let r = match added {
                    6 | 9 => column.row,
                    2 | 4 | 7 => s.to_f32(s.sub_i(s.load_u8_n(c.residual.add(at), n), c.residual_zero)),
                    _ => s.to_f32(s.sub_i(s.load_i8_n(c.residual.add(at).cast(), n), c.residual_zero)),
                };
                if added < 4 {
                    v = s.mul_add(r, c.residual_scale, v);
                } else {
                    let steps = if F::MODE == PLAIN { v } else { c.stage.in_steps(s, v) };
                    let steps = c.stage.rounded(s, steps);
                    v = match is_float_sum(added) {
                        true => c.stage.float_sum(s, steps, r, c.residual_scale),
                        false => c.stage.code_sum(s, steps, r, c.residual_scale),
                    };
                }
            }
            v
        }
    }

    /// The results of row `i` from column `j` on, `n` of them.
    #[inline(always)]
    unsafe fn vector<S: Simd, F: Form>(
        &self,
        s: S,
        c: &Constants<S>,
        column: &Column<S>,
        (i, j): (usize, usize),
        n: usize,
    ) {
        // SAFETY: the caller vouches for these places.
        unsafe {
            let mut v = self.value::<S, F>(s, c, column, (i, j), n);
            if !is_code(F::KIND) {
                return self.store::<S, F>(s, c, column, (i, j), v, n);
            }
            // NaN gives the smallest value: `max` passes its second operand on.
            v = s.max(s.min(column.high, column.scaled::<F>(s, v)), column.low);
            s.store_low8_n(c.data.add(c.at + i * c.ld + j), s.add_i(s.to_i32(v), c.zero), n);
        }
    }

    /// Clamps results that are floats or bfloat16, multiplies and shifts them, and writes them.
    #[inline(always)]
    unsafe fn store<S: Simd, F: Form>(
        &self,
        s: S,
        c: &Constants<S>,
        column: &Column<S>,
        (i, j): (usize, usize),
        v: S::F,
        n: usize,
    ) {
        let at = c.at + i * c.ld + j;
        // NaN passes: `min` and `max` give their second operand then.
        let mut v = s.min(column.high, s.max(column.low, v));
        if F::MODE == PASS {
            v = column.scaled::<F>(s, v);
        }
        // SAFETY: the caller vouches for these places.
        unsafe {
            match F::KIND {
                3 => s.store_bf16_n(c.data.cast::<u16>().add(at), v, n),
                _ if n == S::LANES => s.store(c.data.cast::<f32>().add(at), v),
                _ => s.store_bits(c.data.cast::<f32>().add(at), v, low_bits(n)),
            }
        }
    }
}
