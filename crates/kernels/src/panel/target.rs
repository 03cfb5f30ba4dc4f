//! Where the results of a product go: as floats, sums, or integers that they are rounded to.

use half::bf16;

use super::stage::IntFormat;
use crate::error::{Result, require};
use crate::simd::{Simd, low_bits};

/// Where the results go.
#[derive(Debug)]
pub enum Target<'a> {
    /// As floats.
    F32(&'a mut [f32]),
    /// As floats that are rounded to bfloat16, half to even: products of floats by panels, and depthwise convolutions of
    /// floats.
    Bf16(&'a mut [bf16]),
    /// Quantized: one over the scale, and the zero point.
    U8(&'a mut [u8], f32, i32),
    /// Quantized: one over the scale, and the zero point.
    I8(&'a mut [i8], f32, i32),
    /// The sums themselves, `acc + offset − weight zero · row sum`, untouched by scales, bias, residual and activation:
    /// products of panels and of two activations only.
    I32(&'a mut [i32]),
}

impl Target<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Target::F32(y) => y.len(),
            Target::Bf16(y) => y.len(),
            Target::U8(y, ..) => y.len(),
            Target::I8(y, ..) => y.len(),
            Target::I32(y) => y.len(),
        }
    }

    /// Refuses a target of plain sums, and one of bfloat16.
    pub(crate) fn require_results(&self, kernel: &'static str) -> Result {
        self.require_no_sums(kernel)?;
        require(
            kernel,
            !matches!(self, Target::Bf16(_)),
            "only convolutions and products of floats have results of bfloat16",
        )
    }

    /// Refuses a target of plain sums.
    pub(crate) fn require_no_sums(&self, kernel: &'static str) -> Result {
        require(
            kernel,
            !matches!(self, Target::I32(_)),
            "only products of panels and of two activations have a target of sums",
        )
    }

    /// Refuses sums of floats, and sums of integers as bfloat16.
    pub(crate) fn require_type(&self, kernel: &'static str, ints: bool) -> Result {
        match self {
            Target::I32(_) => require(kernel, ints, "sums of floats are no integers"),
            Target::Bf16(_) => require(kernel, !ints, "only sums of floats become bfloat16"),
            _ => Ok(()),
        }
    }

    /// The format, which is shared among tasks that write disjoint elements.
    pub(crate) fn shared(&mut self) -> Out {
        match self {
            Target::F32(y) => Out::floats(y.as_mut_ptr()),
            Target::Bf16(y) => Out { data: y.as_mut_ptr().cast(), kind: Kind::Bf16, inverse: 1.0, zero: 0 },
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
    Bf16,
    U8,
    I8,
    I32,
}

/// A target whose borrow was erased.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub data: *mut u8,
    pub kind: Kind,
    /// One over the scale, and the zero point, of integers.
    pub inverse: f32,
    pub zero: i32,
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
            Kind::F32 | Kind::Bf16 | Kind::I32 => return None,
        };
        Some(IntFormat { signed, inverse: self.inverse, zero: self.zero })
    }

    /// Bytes of an element.
    pub fn size(&self) -> usize {
        match self.kind {
            Kind::U8 | Kind::I8 => 1,
            Kind::Bf16 => 2,
            Kind::F32 | Kind::I32 => 4,
        }
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
                Kind::Bf16 => s.store_bf16_n(self.data.cast::<u16>().add(at), v, n),
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
