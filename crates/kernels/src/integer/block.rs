//! Quantized operands, and blocks of them as floats that stay in the first cache.

use crate::activation::Activation;
use crate::elementwise::{Unary, UnaryOp};
use crate::panel::{Kind, Out, Rounding};
use crate::simd::{Kernel, Simd, low_bits};

/// Floats of a block.
pub(super) const BLOCK: usize = 512;

/// A tensor as an operand: floats, or integers that stand for `(q − zero point) · scale`.
#[derive(Clone, Copy, Debug)]
pub enum Quant<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Integers, their scale and zero point.
    U8(&'a [u8], f32, i32),
    /// Integers, their scale and zero point.
    I8(&'a [i8], f32, i32),
}

impl Quant<'_> {
    /// Elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Quant::F32(x) => x.len(),
            Quant::U8(x, ..) => x.len(),
            Quant::I8(x, ..) => x.len(),
        }
    }

    pub(super) fn input(&self) -> Input {
        match *self {
            Quant::F32(x) => Input { data: x.as_ptr().cast(), kind: Kind::F32, scale: 1.0, zero: 0 },
            Quant::U8(x, scale, zero) => Input { data: x.as_ptr(), kind: Kind::U8, scale, zero },
            Quant::I8(x, scale, zero) => Input { data: x.as_ptr().cast(), kind: Kind::I8, scale, zero },
        }
    }
}

/// An operand whose borrow was erased.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub data: *const u8,
    pub kind: Kind,
    pub scale: f32,
    pub zero: i32,
}

// SAFETY: only read, while the slice that it came from is borrowed.
unsafe impl Send for Input {}
// SAFETY: as above.
unsafe impl Sync for Input {}

impl Input {
    /// The place of element `at` of integers.
    pub fn byte(&self, at: usize) -> *const u8 {
        self.data.wrapping_add(at)
    }

    /// Writes elements `at..at + len` to `to` as floats.
    ///
    /// # Safety
    /// The elements lie in the operand; `to` covers as many.
    #[inline(always)]
    pub unsafe fn read<S: Simd>(&self, s: S, at: usize, len: usize, to: *mut f32) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self.kind {
                Kind::F32 => std::ptr::copy_nonoverlapping(self.data.cast::<f32>().add(at), to, len),
                Kind::U8 => self.convert::<S, false>(s, self.data.add(at), len, to),
                Kind::I8 => self.convert::<S, true>(s, self.data.add(at), len, to),
                // `Quant` has none.
                Kind::Bf16 | Kind::I32 => {}
            }
        }
    }

    #[inline(always)]
    unsafe fn convert<S: Simd, const SIGNED: bool>(&self, s: S, x: *const u8, len: usize, to: *mut f32) {
        let (scale, zero) = (s.splat(self.scale), s.splat_i(self.zero));
        let mut i = 0;
        // SAFETY: whole vectors, then the lanes that are left, of `len`.
        unsafe {
            while i + S::LANES <= len {
                let v = s.sub_i(integers::<S, SIGNED>(s, x.add(i), S::LANES), zero);
                s.store(to.add(i), s.mul(s.to_f32(v), scale));
                i += S::LANES;
            }
            if i < len {
                let v = s.sub_i(integers::<S, SIGNED>(s, x.add(i), len - i), zero);
                s.store_bits(to.add(i), s.mul(s.to_f32(v), scale), low_bits(len - i));
            }
        }
    }
}

/// `n` integers of 8 bits.
///
/// # Safety
/// `x` covers them.
#[inline(always)]
pub(super) unsafe fn integers<S: Simd, const SIGNED: bool>(s: S, x: *const u8, n: usize) -> S::I {
    // SAFETY: passed on to the caller.
    unsafe { if SIGNED { s.load_i8_n(x.cast(), n) } else { s.load_u8_n(x, n) } }
}

/// Writes floats to elements `at..at + len` of a target.
///
/// # Safety
/// `from` covers `len` floats; the elements lie in the target and nobody else uses them.
#[inline(always)]
pub(super) unsafe fn write<S: Simd>(s: S, out: &Out, at: usize, len: usize, from: *const f32) {
    // SAFETY: whole vectors, then the lanes that are left, of `len`.
    unsafe {
        if out.kind == Kind::F32 {
            std::ptr::copy_nonoverlapping(from, out.data.cast::<f32>().add(at), len);
            return;
        }
        let (rounding, y) = (Rounding::new(s, out), out.data.add(at));
        let mut i = 0;
        while i + S::LANES <= len {
            s.store_low8_n(y.add(i), rounding.apply(s, s.load(from.add(i))), S::LANES);
            i += S::LANES;
        }
        if i < len {
            let v = s.load_bits(from.add(i), low_bits(len - i));
            s.store_low8_n(y.add(i), rounding.apply(s, v), len - i);
        }
    }
}

/// Applies an activation to `len` floats in place.
///
/// # Safety
/// `x` covers them, and nobody else uses them.
#[inline(always)]
pub(super) unsafe fn activate<S: Simd>(s: S, activation: Activation, x: *mut f32, len: usize) {
    if activation != Activation::None {
        Unary { op: UnaryOp::Activation(activation), x, y: x, len }.run(s);
    }
}
