//! What happens to the sums of a product, in the order and the arithmetic that [`super::finish`] tells.

use half::bf16;

use super::stage::{Stage, Steps};
use crate::activation::Activation;
use crate::error::{Result, exact, require};
use crate::simd::{Simd, low_bits};

/// What happens to the sums of a product. Arrays have one element per column, or none.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Added to integer sums: the bias in units of the product of the scales, less the
    /// rows' zero point times the column sum of the weights.
    pub offsets: &'a [i32],
    /// Factor of the sums: scale of the rows times scale of the column. Sums of floats may have none.
    pub scales: &'a [f32],
    /// Zero points of the weights where they are not all 0.
    pub weight_zeros: &'a [i32],
    /// Added to the floats.
    pub bias: &'a [f32],
    /// The integers that the floats become, and are read from again, before an integer residual is added.
    pub stage: Option<Stage>,
    /// Added to the floats; of the result's shape.
    pub residual: Residual<'a>,
    /// Applied to the sum of all these.
    pub activation: Activation,
    /// Multiplies what the activation gives: a constant of the network, or one over a scale of each column's own, for
    /// integers of scale 1.
    pub factors: &'a [f32],
    /// Added after that.
    pub shifts: &'a [f32],
    /// The format of integer rows, where it is known only when the product runs.
    pub rows: Option<RowParams<'a>>,
}

/// Scale and zero point of integer rows that were quantized with a range of their own: their factor
/// comes on top of [`Epilogue::scales`], and their zero point is taken off the sums as
/// `zero point · (column sum − depth · weight zero point)`.
#[derive(Clone, Copy, Debug)]
pub struct RowParams<'a> {
    /// One scale for all rows, or one per row.
    pub scales: &'a [f32],
    /// As many zero points; 128 more than the rows' own where these are i8, which kernels read as u8.
    pub zeros: &'a [i32],
    /// By column: the sum of the weights, less the depth times the column's zero point.
    pub column_sums: &'a [i32],
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue {
            offsets: &[],
            scales: &[],
            weight_zeros: &[],
            bias: &[],
            stage: None,
            residual: Residual::None,
            activation: Activation::None,
            factors: &[],
            shifts: &[],
            rows: None,
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
    /// Floats that were rounded to bfloat16: of sums of floats only.
    Bf16(&'a [bf16]),
    /// `(x − zero point) · scale`.
    U8(&'a [u8], f32, i32),
    /// `(x − zero point) · scale`.
    I8(&'a [i8], f32, i32),
    /// Behind a stage only: steps for each column, alike in all rows, and their scale.
    Row(&'a [f32], f32),
}

impl Residual<'_> {
    /// Bytes of an element; 0 without a residual.
    pub(crate) fn size(&self) -> usize {
        match self {
            Residual::None => 0,
            Residual::F32(_) => 4,
            Residual::Bf16(_) => 2,
            Residual::U8(..) | Residual::I8(..) => 1,
            // In cache at all times.
            Residual::Row(..) => 0,
        }
    }

    /// Elements, where there is one for each result.
    fn len(&self) -> Option<usize> {
        match self {
            Residual::None | Residual::Row(..) => None,
            Residual::F32(x) => Some(x.len()),
            Residual::Bf16(x) => Some(x.len()),
            Residual::U8(x, ..) => Some(x.len()),
            Residual::I8(x, ..) => Some(x.len()),
        }
    }
}

/// `n` floats that stand as bfloat16.
///
/// # Safety
/// `from` covers them.
#[inline(always)]
pub(crate) unsafe fn load_bf16<S: Simd>(s: S, from: *const u16, n: usize) -> S::F {
    // SAFETY: passed on to the caller.
    s.float_of(s.shl_i::<16>(unsafe { s.load_u16_n(from, n) }))
}

impl Epilogue<'_> {
    /// Whether sums of floats need but a bias and a clamp.
    pub(crate) fn only_clamps(&self) -> bool {
        let affine = !self.scales.is_empty() || !self.factors.is_empty() || !self.shifts.is_empty();
        matches!(self.residual, Residual::None) && !affine && !self.activation.needs_pass()
    }

    /// Checks the lengths against `columns` (of all groups) and the result's elements.
    pub(crate) fn check(&self, kernel: &'static str, ints: bool, columns: usize, results: usize) -> Result {
        if ints || !self.scales.is_empty() {
            exact(kernel, "scales", self.scales.len(), columns)?;
        }
        if ints {
            exact(kernel, "offsets", self.offsets.len(), columns)?;
        }
        let arrays = [
            ("bias", self.bias.len()),
            ("weight zero points", self.weight_zeros.len()),
            ("factors", self.factors.len()),
            ("shifts", self.shifts.len()),
        ];
        for (name, len) in arrays {
            if len != 0 {
                exact(kernel, name, len, columns)?;
            }
        }
        require(kernel, ints || self.weight_zeros.is_empty(), "floats have no weight zero points")?;
        if let Some(rows) = &self.rows {
            let count = results / columns.max(1);
            let fits = rows.scales.len() == 1 || rows.scales.len() == count;
            require(kernel, ints && fits, "there must be one scale for all integer rows, or one per row")?;
            exact(kernel, "zero points of the rows", rows.zeros.len(), rows.scales.len())?;
            exact(kernel, "column sums", rows.column_sums.len(), columns)?;
        }
        let staged = self.stage.is_some();
        let fits = match self.residual {
            Residual::None | Residual::F32(_) => !staged,
            Residual::Bf16(_) => !ints,
            Residual::U8(..) | Residual::I8(..) => true,
            Residual::Row(..) => staged,
        };
        require(kernel, fits, "only a sum of integers, or of a row, has a stage before it, and a row needs one")?;
        require(kernel, ints || !staged, "only sums of integers have a stage")?;
        if let Residual::Row(row, _) = self.residual {
            exact(kernel, "residual", row.len(), columns)?;
        }
        match self.residual.len() {
            Some(len) => exact(kernel, "residual", len, results),
            None => Ok(()),
        }
    }

    /// The sum with a residual of `r` steps of `scale`. Behind a stage it has all roundings of the graph's operators.
    #[inline(always)]
    fn sum<S: Simd>(&self, s: S, v: S::F, r: S::F, scale: f32) -> S::F {
        match self.stage {
            Some(stage) => Steps::new(s, stage).sum(s, v, r, s.splat(scale)),
            None => s.mul_add(r, s.splat(scale), v),
        }
    }

    /// Bias, residual, activation, factor and shift of `n` results, which are columns from `column` on and elements from
    /// `at` on.
    ///
    /// # Safety
    /// `Epilogue::check` accepted lengths that cover these places.
    #[inline(always)]
    pub unsafe fn rest<S: Simd>(&self, s: S, v: S::F, column: usize, at: usize, n: usize) -> S::F {
        // SAFETY: passed on to the caller.
        unsafe {
            let v = self.before(s, v, column, at, n);
            self.behind(s, self.activation.apply(s, v), column, n)
        }
    }

    /// As [`Epilogue::rest`], of several results of the same columns, whose elements are `step` apart.
    ///
    /// # Safety
    /// As [`Epilogue::rest`].
    #[inline(always)]
    pub unsafe fn rest_of_all<S: Simd, const N: usize>(
        &self,
        s: S,
        v: &mut [S::F; N],
        column: usize,
        (at, step): (usize, usize),
        n: usize,
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            for (k, v) in v.iter_mut().enumerate() {
                *v = self.before(s, *v, column, at + k * step, n);
            }
            self.activation.apply_all(s, v);
            for v in v.iter_mut() {
                *v = self.behind(s, *v, column, n);
            }
        }
    }

    /// Bias and residual.
    ///
    /// # Safety
    /// As [`Epilogue::rest`].
    #[inline(always)]
    unsafe fn before<S: Simd>(&self, s: S, mut v: S::F, column: usize, at: usize, n: usize) -> S::F {
        let bits = low_bits(n);
        // SAFETY: the caller vouches for these places.
        unsafe {
            if !self.bias.is_empty() {
                v = s.add(v, s.load_bits(self.bias.as_ptr().add(column), bits));
            }
            match self.residual {
                Residual::None => v,
                Residual::Row(r, scale) => self.sum(s, v, s.load_bits(r.as_ptr().add(column), bits), scale),
                Residual::F32(r) => s.add(v, s.load_bits(r.as_ptr().add(at), bits)),
                Residual::Bf16(r) => s.add(v, load_bf16(s, r.as_ptr().cast::<u16>().add(at), n)),
                Residual::U8(r, scale, zero) => {
                    let r = s.sub_i(s.load_u8_n(r.as_ptr().add(at), n), s.splat_i(zero));
                    self.sum(s, v, s.to_f32(r), scale)
                }
                Residual::I8(r, scale, zero) => {
                    let r = s.sub_i(s.load_i8_n(r.as_ptr().add(at), n), s.splat_i(zero));
                    self.sum(s, v, s.to_f32(r), scale)
                }
            }
        }
    }

    /// Factor and shift.
    ///
    /// # Safety
    /// As [`Epilogue::rest`].
    #[inline(always)]
    unsafe fn behind<S: Simd>(&self, s: S, mut v: S::F, column: usize, n: usize) -> S::F {
        let bits = low_bits(n);
        if !self.factors.is_empty() {
            // SAFETY: the caller vouches for these places.
            v = s.mul(v, unsafe { s.load_bits(self.factors.as_ptr().add(column), bits) });
        }
        if !self.shifts.is_empty() {
            // SAFETY: as above.
            v = s.add(v, unsafe { s.load_bits(self.shifts.as_ptr().add(column), bits) });
        }
        v
    }
}
