//! From accumulators to results: correction, scale, bias, residual, activation, rounding.
//!
//! In this order, lane by lane and alike on every tier:
//! `v = f32(acc + offset − weight zero · row sum − row zero · column sum) · (row scale · scale) + bias`, the stage, the
//! residual, the activation, a factor, and for integer results
//! `saturate(round_half_even(v · inverse_scale) + zero_point)`.

use crate::activation::Activation;
use crate::error::{Result, exact, require};
use crate::simd::{Kernel, Simd, low_bits};

pub use super::stage::Stage;
use super::stage::{IntFormat, Steps};

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
    /// Multiplies what the activation gives: one over a scale of each column's own, for integers of scale 1.
    pub factors: &'a [f32],
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

impl RowParams<'_> {
    #[inline(always)]
    fn at(&self, row: usize) -> (f32, i32) {
        let i = if self.scales.len() == 1 { 0 } else { row };
        (self.scales[i], self.zeros[i])
    }
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
    /// `(x − zero point) · scale`.
    U8(&'a [u8], f32, i32),
    /// `(x − zero point) · scale`.
    I8(&'a [i8], f32, i32),
}

impl Residual<'_> {
    /// Bytes of an element; 0 without a residual.
    pub(crate) fn size(&self) -> usize {
        match self {
            Residual::None => 0,
            Residual::F32(_) => 4,
            Residual::U8(..) | Residual::I8(..) => 1,
        }
    }

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
    /// The sums themselves, `acc + offset − weight zero · row sum`, untouched by scales, bias, residual and activation:
    /// products of a panel only.
    I32(&'a mut [i32]),
}

impl Target<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Target::F32(y) => y.len(),
            Target::U8(y, ..) => y.len(),
            Target::I8(y, ..) => y.len(),
            Target::I32(y) => y.len(),
        }
    }

    /// Refuses a target of plain sums.
    pub(crate) fn require_results(&self, kernel: &'static str) -> Result {
        require(kernel, !matches!(self, Target::I32(_)), "only products of a panel have a target of sums")
    }

    /// The format, which is shared among tasks that write disjoint elements.
    pub(crate) fn shared(&mut self) -> Out {
        match self {
            Target::F32(y) => Out::floats(y.as_mut_ptr()),
            Target::U8(y, inverse, zero) => {
                Out { data: y.as_mut_ptr(), kind: Kind::U8, inverse: *inverse, zero: *zero }
            }
            Target::I8(y, inverse, zero) => {
                Out { data: y.as_mut_ptr().cast(), kind: Kind::I8, inverse: *inverse, zero: *zero }
            }
            Target::I32(y) => Out { data: y.as_mut_ptr().cast(), kind: Kind::I32, inverse: 1.0, zero: 0 },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    U8,
    I8,
    I32,
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
    /// Floats from `data` on.
    pub fn floats(data: *mut f32) -> Out {
        Out { data: data.cast(), kind: Kind::F32, inverse: 1.0, zero: 0 }
    }

    /// Sums from `data` on.
    pub fn sums(data: *mut i32) -> Out {
        Out { data: data.cast(), kind: Kind::I32, inverse: 1.0, zero: 0 }
    }

    /// Integers of type u8 from `data` on: one over their scale, and their zero point.
    pub fn codes(data: *mut u8, inverse: f32, zero: i32) -> Out {
        Out { data, kind: Kind::U8, inverse, zero }
    }

    /// The format of integer codes, if that is what the results become.
    pub fn int_format(&self) -> Option<IntFormat> {
        let signed = match self.kind {
            Kind::U8 => false,
            Kind::I8 => true,
            Kind::F32 | Kind::I32 => return None,
        };
        Some(IntFormat { signed, inverse: self.inverse, zero: self.zero })
    }

    /// Bytes of an element.
    pub fn size(&self) -> usize {
        if matches!(self.kind, Kind::U8 | Kind::I8) { 1 } else { 4 }
    }

    /// The same target from element `at` on.
    pub fn skip(self, at: usize) -> Out {
        Out { data: self.data.wrapping_add(at * self.size()), ..self }
    }

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
                Kind::I32 => s.store_i32_n(self.data.cast::<i32>().add(at), s.to_i32(v), n),
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
        let (low, high) = (low - i64::from(out.zero), high - i64::from(out.zero));
        Rounding {
            inverse: s.splat(out.inverse),
            low: s.splat(low as f32),
            high: s.splat(high as f32),
            zero: s.splat_i(out.zero),
        }
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
        let fits = self.stage.is_none() || matches!(self.residual, Residual::U8(..) | Residual::I8(..));
        require(kernel, fits, "only a sum of integers has a stage before it")?;
        match self.residual.len() {
            Some(len) => exact(kernel, "residual", len, results),
            None => Ok(()),
        }
    }

    /// The sum with a residual of `r` steps of `scale`. Behind a stage it is that of two tensors that are dequantized one
    /// by one, with all roundings, as in the graph.
    #[inline(always)]
    fn sum<S: Simd>(&self, s: S, v: S::F, r: S::F, scale: f32) -> S::F {
        match self.stage {
            Some(stage) => s.add(Steps::new(s, stage).apply(s, v), s.mul(r, s.splat(scale))),
            None => s.mul_add(r, s.splat(scale), v),
        }
    }

    /// Bias, residual and activation of `n` results, which are columns from `column` on
    /// and elements from `at` on.
    ///
    /// # Safety
    /// `Epilogue::check` accepted lengths that cover these places.
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
                    v = self.sum(s, v, s.to_f32(r), scale);
                }
                Residual::I8(r, scale, zero) => {
                    let r = s.sub_i(s.load_i8_n(r.as_ptr().add(at), n), s.splat_i(zero));
                    v = self.sum(s, v, s.to_f32(r), scale);
                }
            }
        }
        v = self.activation.apply(s, v);
        if !self.factors.is_empty() {
            // SAFETY: as above.
            v = s.mul(v, unsafe { s.load_bits(self.factors.as_ptr().add(column), bits) });
        }
        v
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

impl Kernel for Finish<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made `self` vouches for its pointers and lengths.
        unsafe {
            match (self.ints, self.out.kind) {
                (true, Kind::F32) => self.by_residual::<S, true, 0>(s),
                (true, Kind::U8) => self.by_residual::<S, true, 1>(s),
                (true, Kind::I8) => self.by_residual::<S, true, 2>(s),
                (true, Kind::I32) => self.sums(s),
                (false, Kind::I32) => {}
                (false, Kind::F32) => self.by_residual::<S, false, 0>(s),
                (false, Kind::U8) => self.by_residual::<S, false, 1>(s),
                (false, Kind::I8) => self.by_residual::<S, false, 2>(s),
            }
        }
    }
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
    /// The residual of integers: its elements, scale and zero point.
    residual: *const u8,
    residual_scale: S::F,
    residual_zero: S::I,
    /// The stage before it.
    stage: Steps<S>,
}

/// What is the same for all rows of a vector of columns.
struct Column<S: Simd> {
    offset: S::I,
    scale: S::F,
    bias: S::F,
    /// What results are multiplied by before they are rounded: one over their scale, and the column's factor.
    inverse: S::F,
    low: S::F,
    high: S::F,
}

impl Finish<'_> {
    /// The sums with their offsets, as integers.
    #[inline(always)]
    unsafe fn sums<S: Simd>(&self, s: S) {
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

    #[inline(always)]
    unsafe fn by_residual<S: Simd, const INTS: bool, const KIND: u8>(&self, s: S) {
        // SAFETY: passed on to the caller.
        unsafe {
            match (self.epilogue.residual, self.epilogue.stage) {
                (Residual::None, _) => self.by_activation::<S, INTS, KIND, 0>(s),
                (Residual::F32(..), _) => self.by_activation::<S, INTS, KIND, 1>(s),
                (Residual::U8(..), None) => self.by_activation::<S, INTS, KIND, 2>(s),
                (Residual::I8(..), None) => self.by_activation::<S, INTS, KIND, 3>(s),
                (Residual::U8(..), Some(_)) => self.by_activation::<S, INTS, KIND, 4>(s),
                (Residual::I8(..), Some(_)) => self.by_activation::<S, INTS, KIND, 5>(s),
            }
        }
    }

    #[inline(always)]
    unsafe fn by_activation<S: Simd, const INTS: bool, const KIND: u8, const RESIDUAL: u8>(&self, s: S) {
        // SAFETY: passed on to the caller.
        unsafe {
            let e = self.epilogue;
            let factors = KIND == 0 && !e.factors.is_empty();
            if e.activation.needs_pass() || !e.weight_zeros.is_empty() || e.rows.is_some() || factors {
                self.rows::<S, INTS, KIND, RESIDUAL, true>(s);
            } else {
                self.rows::<S, INTS, KIND, RESIDUAL, false>(s);
            }
        }
    }

    #[inline(always)]
    unsafe fn rows<S: Simd, const INTS: bool, const KIND: u8, const RESIDUAL: u8, const PASS: bool>(&self, s: S) {
        let constants = self.constants(s);
        let mut j = 0;
        while j < self.n {
            let n = (self.n - j).min(S::LANES);
            // SAFETY: columns `j..j + n` are in the arrays.
            unsafe {
                let column = self.column::<S, INTS, KIND>(s, j, n);
                // With a length that the compiler knows, no masks are made.
                if n == S::LANES {
                    self.column_rows::<S, INTS, KIND, RESIDUAL, PASS>(s, constants, &column, j, S::LANES);
                } else {
                    self.column_rows::<S, INTS, KIND, RESIDUAL, PASS>(s, constants, &column, j, n);
                }
            }
            j += S::LANES;
        }
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, s: S) -> Constants<S> {
        let (residual, scale, zero) = match self.epilogue.residual {
            Residual::U8(r, scale, zero) => (r.as_ptr(), scale, zero),
            Residual::I8(r, scale, zero) => (r.as_ptr().cast(), scale, zero),
            _ => (std::ptr::null(), 1.0, 0),
        };
        let stage = self.epilogue.stage.unwrap_or(Stage::new(false, 1.0, 0));
        Constants {
            acc: self.acc,
            width: self.width,
            data: self.out.data,
            at: self.at,
            ld: self.ld,
            zero: s.splat_i(self.out.zero),
            residual,
            residual_scale: s.splat(scale),
            residual_zero: s.splat_i(zero),
            stage: Steps::new(s, stage),
        }
    }

    #[inline(always)]
    unsafe fn column_rows<S: Simd, const INTS: bool, const KIND: u8, const RESIDUAL: u8, const PASS: bool>(
        &self,
        s: S,
        constants: Constants<S>,
        column: &Column<S>,
        j: usize,
        n: usize,
    ) {
        for i in 0..self.rows {
            // SAFETY: row `i` is in the tile, columns `j..j + n` too.
            unsafe { self.vector::<S, INTS, KIND, RESIDUAL, PASS>(s, &constants, column, (i, j), n) };
        }
    }

    #[inline(always)]
    unsafe fn column<S: Simd, const INTS: bool, const KIND: u8>(&self, s: S, j: usize, n: usize) -> Column<S> {
        let (e, at, bits) = (self.epilogue, self.column + j, low_bits(n));
        let (lo, hi) = e.activation.bounds();
        // A clamp before the multiplication by `inverse` is one after it with bounds that
        // were multiplied alike.
        let bound = |x: i32| s.splat((x - self.out.zero) as f32);
        let inverse = match e.factors.is_empty() {
            true => s.splat(self.out.inverse),
            // SAFETY: `check` made sure of the arrays' lengths.
            false => s.mul(unsafe { s.load_bits(e.factors.as_ptr().add(at), bits) }, s.splat(self.out.inverse)),
        };
        let within = |least: i32, most: i32| {
            let (low, high) = (s.mul(s.splat(lo), inverse), s.mul(s.splat(hi), inverse));
            (s.min(s.max(low, bound(least)), bound(most)), s.min(high, bound(most)))
        };
        let (low, high) = match KIND {
            0 => (s.splat(lo), s.splat(hi)),
            1 => within(0, 255),
            _ => within(-128, 127),
        };
        // SAFETY: `check` made sure of the arrays' lengths.
        unsafe {
            Column {
                offset: if INTS { s.load_i32_n(e.offsets.as_ptr().add(at), n) } else { s.splat_i(0) },
                scale: if INTS || !e.scales.is_empty() {
                    s.load_bits(e.scales.as_ptr().add(at), bits)
                } else {
                    s.splat(1.0)
                },
                // Adding −0 changes nothing.
                bias: if e.bias.is_empty() { s.splat(-0.0) } else { s.load_bits(e.bias.as_ptr().add(at), bits) },
                inverse,
                low,
                high,
            }
        }
    }

    #[inline(always)]
    unsafe fn vector<S: Simd, const INTS: bool, const KIND: u8, const RESIDUAL: u8, const PASS: bool>(
        &self,
        s: S,
        constants: &Constants<S>,
        column: &Column<S>,
        (i, j): (usize, usize),
        n: usize,
    ) {
        let (e, c, bits) = (self.epilogue, constants, low_bits(n));
        let acc = c.acc.wrapping_add(i * c.width + j);
        let at = c.at + i * c.ld + j;
        // SAFETY: the caller vouches for these places; the accumulators are whole vectors.
        unsafe {
            let mut v = if INTS {
                let mut x = s.add_i(s.to_bits(s.load(acc.cast())), column.offset);
                if PASS && !e.weight_zeros.is_empty() {
                    let zeros = s.load_i32_n(e.weight_zeros.as_ptr().add(self.column + j), n);
                    x = s.sub_i(x, s.mul_i(s.splat_i(*self.row_sums.add(i)), zeros));
                }
                let mut scale = column.scale;
                if PASS && let Some(rows) = &e.rows {
                    let (row_scale, zero) = rows.at(self.row + i);
                    let sums = s.load_i32_n(rows.column_sums.as_ptr().add(self.column + j), n);
                    x = s.sub_i(x, s.mul_i(s.splat_i(zero), sums));
                    scale = s.mul(s.splat(row_scale), scale);
                }
                s.mul(s.to_f32(x), scale)
            } else {
                s.mul(s.load(acc.cast()), column.scale)
            };
            v = s.add(v, column.bias);
            if RESIDUAL == 1
                && let Residual::F32(r) = e.residual
            {
                v = s.add(v, s.load_bits(r.as_ptr().add(at), bits));
            }
            if RESIDUAL > 1 {
                let r = c.residual.add(at);
                let r = if RESIDUAL.is_multiple_of(2) { s.load_u8_n(r, n) } else { s.load_i8_n(r.cast(), n) };
                let r = s.to_f32(s.sub_i(r, c.residual_zero));
                v = match RESIDUAL > 3 {
                    true => s.add(c.stage.apply(s, v), s.mul(r, c.residual_scale)),
                    false => s.mul_add(r, c.residual_scale, v),
                };
            }
            if PASS {
                v = if KIND == 0 { e.activation.apply(s, v) } else { e.activation.apply_coarsely(s, v) };
            }
            if KIND == 0 {
                // NaN passes: `min` and `max` give their second operand then.
                v = s.min(column.high, s.max(column.low, v));
                if PASS && !e.factors.is_empty() {
                    v = s.mul(v, column.inverse);
                }
                s.store_bits(c.data.cast::<f32>().add(at), v, bits);
                return;
            }
            // NaN gives the smallest value: `max` passes its second operand on.
            v = s.max(s.min(column.high, s.mul(v, column.inverse)), column.low);
            s.store_low8_n(c.data.add(at), s.add_i(s.to_i32(v), c.zero), n);
        }
    }
}
