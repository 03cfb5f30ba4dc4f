//! From accumulators to results: correction, scale, bias, residual, activation, rounding.
//!
//! In this order, lane by lane and alike on every tier:
//! `v = f32(acc + offset − weight zero · row sum) · scale + bias + residual`, the
//! activation, and for integer results
//! `saturate(round_half_even(v · inverse_scale) + zero_point)`.

use crate::activation::Activation;
use crate::error::{Result, exact, require};
use crate::simd::{Kernel, Simd, low_bits};

/// What happens to the sums of a product. Arrays have one element per column, or none.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Added to integer sums: the bias in units of the product of the scales, less the
    /// rows' zero point times the column sum of the weights.
    pub offsets: &'a [i32],
    /// Factor of integer sums: scale of the rows times scale of the column.
    pub scales: &'a [f32],
    /// Zero points of the weights where they are not all 0.
    pub weight_zeros: &'a [i32],
    /// Added to the floats.
    pub bias: &'a [f32],
    /// Added to the floats; of the result's shape.
    pub residual: Residual<'a>,
    /// Applied last.
    pub activation: Activation,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue {
            offsets: &[],
            scales: &[],
            weight_zeros: &[],
            bias: &[],
            residual: Residual::None,
            activation: Activation::None,
        }
    }
}

/// A tensor of the result's shape that is added to it.
#[derive(Clone, Copy, Debug)]
pub enum Residual<'a> {
    /// Nothing.
    None,
    /// Floats.
    F32(&'a [f32]),
    /// `(x − zero point) · scale`.
    U8(&'a [u8], f32, i32),
    /// `(x − zero point) · scale`.
    I8(&'a [i8], f32, i32),
}

impl Residual<'_> {
    fn len(&self) -> Option<usize> {
        match self {
            Residual::None => None,
            Residual::F32(x) => Some(x.len()),
            Residual::U8(x, ..) => Some(x.len()),
            Residual::I8(x, ..) => Some(x.len()),
        }
    }
}

/// Where the results go.
#[derive(Debug)]
pub enum Target<'a> {
    /// As floats.
    F32(&'a mut [f32]),
    /// Quantized: one over the scale, and the zero point.
    U8(&'a mut [u8], f32, i32),
    /// Quantized: one over the scale, and the zero point.
    I8(&'a mut [i8], f32, i32),
}

impl Target<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Target::F32(y) => y.len(),
            Target::U8(y, ..) => y.len(),
            Target::I8(y, ..) => y.len(),
        }
    }

    /// The format, which is shared among tasks that write disjoint elements.
    pub(crate) fn shared(&mut self) -> Out {
        match self {
            Target::F32(y) => Out { data: y.as_mut_ptr().cast(), kind: Kind::F32, inverse: 1.0, zero: 0 },
            Target::U8(y, inverse, zero) => {
                Out { data: y.as_mut_ptr(), kind: Kind::U8, inverse: *inverse, zero: *zero }
            }
            Target::I8(y, inverse, zero) => {
                Out { data: y.as_mut_ptr().cast(), kind: Kind::I8, inverse: *inverse, zero: *zero }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    U8,
    I8,
}

/// A target whose borrow was erased.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub data: *mut u8,
    pub kind: Kind,
    inverse: f32,
    zero: i32,
}

// SAFETY: tasks write disjoint elements of the target that `Target::shared` borrowed.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// Writes `n` results from element `at` on.
    ///
    /// # Safety
    /// The elements lie in the target, and nobody else uses them.
    #[inline(always)]
    pub unsafe fn put<S: Simd>(&self, s: S, rounding: &Rounding<S>, at: usize, v: S::F, n: usize) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self.kind {
                Kind::F32 => s.store_bits(self.data.cast::<f32>().add(at), v, low_bits(n)),
                Kind::U8 | Kind::I8 => s.store_low8_n(self.data.add(at), rounding.apply(s, v), n),
            }
        }
    }
}

/// `saturate(round_half_even(v · inverse) + zero)`, its constants in vectors.
#[derive(Clone, Copy)]
pub(crate) struct Rounding<S: Simd> {
    inverse: S::F,
    low: S::F,
    high: S::F,
    zero: S::I,
}

impl<S: Simd> Rounding<S> {
    /// Of an integer target; meaningless for floats.
    #[inline(always)]
    pub fn new(s: S, out: &Out) -> Self {
        let (low, high) = if out.kind == Kind::I8 { (-128, 127) } else { (0, 255) };
        let bound = |x: i32| s.splat(x.wrapping_sub(out.zero) as f32);
        Rounding { inverse: s.splat(out.inverse), low: bound(low), high: bound(high), zero: s.splat_i(out.zero) }
    }

    /// NaN gives the smallest value.
    #[inline(always)]
    pub fn apply(&self, s: S, v: S::F) -> S::I {
        let v = s.min(self.high, s.mul(v, self.inverse));
        // `max` passes its second operand on when the first is NaN.
        s.add_i(s.to_i32(s.max(v, self.low)), self.zero)
    }
}

impl Epilogue<'_> {
    /// Bias, residual and activation of `n` results, which are columns from `column` on
    /// and elements from `at` on.
    ///
    /// # Safety
    /// [`Epilogue::check`] accepted lengths that cover these places.
    #[inline(always)]
    pub unsafe fn rest<S: Simd>(&self, s: S, mut v: S::F, column: usize, at: usize, n: usize) -> S::F {
        let bits = low_bits(n);
        // SAFETY: the caller vouches for these places.
        unsafe {
            if !self.bias.is_empty() {
                v = s.add(v, s.load_bits(self.bias.as_ptr().add(column), bits));
            }
            match self.residual {
                Residual::None => {}
                Residual::F32(r) => v = s.add(v, s.load_bits(r.as_ptr().add(at), bits)),
                Residual::U8(r, scale, zero) => {
                    let r = s.sub_i(s.load_u8_n(r.as_ptr().add(at), n), s.splat_i(zero));
                    v = s.mul_add(s.to_f32(r), s.splat(scale), v);
                }
                Residual::I8(r, scale, zero) => {
                    let r = s.sub_i(s.load_i8_n(r.as_ptr().add(at), n), s.splat_i(zero));
                    v = s.mul_add(s.to_f32(r), s.splat(scale), v);
                }
            }
        }
        self.activation.apply(s, v)
    }

    /// Checks the lengths against `columns` (of all groups) and the result's elements.
    pub(crate) fn check(&self, kernel: &'static str, ints: bool, columns: usize, results: usize) -> Result {
        if ints {
            exact(kernel, "scales", self.scales.len(), columns)?;
            exact(kernel, "offsets", self.offsets.len(), columns)?;
        }
        for (name, len) in [("bias", self.bias.len()), ("weight zero points", self.weight_zeros.len())] {
            if len != 0 {
                exact(kernel, name, len, columns)?;
            }
        }
        require(kernel, ints || self.weight_zeros.is_empty(), "floats have no weight zero points")?;
        match self.residual.len() {
            Some(len) => exact(kernel, "residual", len, results),
            None => Ok(()),
        }
    }
}

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
    /// Place of the first column in the per-column arrays.
    pub column: usize,
    /// Sums of the rows' elements, where weights have zero points.
    pub row_sums: *const i32,
    pub out: Out,
    /// Elements from the start of the target to the tile's corner, and between its rows.
    pub at: usize,
    pub ld: usize,
}

impl Kernel for Finish<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made `self` vouches for its pointers and lengths.
        unsafe {
            match self.ints {
                true => self.rows::<S, true>(s),
                false => self.rows::<S, false>(s),
            }
        }
    }
}

impl Finish<'_> {
    #[inline(always)]
    unsafe fn rows<S: Simd, const INTS: bool>(&self, s: S) {
        let rounding = Rounding::new(s, &self.out);
        let mut j = 0;
        while j < self.n {
            let n = (self.n - j).min(S::LANES);
            for i in 0..self.rows {
                // SAFETY: row `i`, columns `j..j + n` are in the tile and the arrays.
                unsafe { self.vector::<S, INTS>(s, &rounding, i, j, n) };
            }
            j += S::LANES;
        }
    }

    #[inline(always)]
    unsafe fn vector<S: Simd, const INTS: bool>(&self, s: S, rounding: &Rounding<S>, i: usize, j: usize, n: usize) {
        let e = self.epilogue;
        let (bits, column) = (low_bits(n), self.column + j);
        let acc = self.acc.wrapping_add(i * self.width + j);
        let at = self.at + i * self.ld + j;
        // SAFETY: the caller vouches for these places; `check` for the arrays.
        unsafe {
            let mut v = if INTS {
                let mut x = s.add_i(s.load_i32_n(acc.cast(), n), s.load_i32_n(e.offsets.as_ptr().add(column), n));
                if !e.weight_zeros.is_empty() {
                    // Lane by lane: such weights are rare.
                    x = self.less_zeros(s, x, i, column, n);
                }
                s.mul(s.to_f32(x), s.load_bits(e.scales.as_ptr().add(column), bits))
            } else {
                s.load_bits(acc.cast(), bits)
            };
            v = e.rest(s, v, column, at, n);
            self.out.put(s, rounding, at, v, n);
        }
    }

    #[inline(always)]
    unsafe fn less_zeros<S: Simd>(&self, s: S, x: S::I, i: usize, column: usize, n: usize) -> S::I {
        let mut lanes = [0i32; 16];
        // SAFETY: at most 16 lanes; one sum per row; one zero point per column.
        unsafe {
            s.store_i32_n(lanes.as_mut_ptr(), x, n);
            let sum = *self.row_sums.add(i);
            for (k, lane) in lanes[..n].iter_mut().enumerate() {
                *lane = lane.wrapping_sub(sum.wrapping_mul(*self.epilogue.weight_zeros.as_ptr().add(column + k)));
            }
            s.load_i32_n(lanes.as_ptr(), n)
        }
    }
}
