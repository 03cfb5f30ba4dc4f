//! The usual end of a depthwise convolution, in registers.

use crate::activation::Activation;
use crate::panel::{Epilogue, Out, Residual, Rounding};
use crate::simd::{Simd, low_bits};

/// Pixels whose functions are computed side by side.
pub(super) const TOGETHER: usize = 4;

/// Whether the results need but a bias and a clamp.
pub(super) fn is_plain(e: &Epilogue<'_>) -> bool {
    let affine = !e.factors.is_empty() || !e.shifts.is_empty();
    matches!(e.residual, Residual::None) && !affine && !e.activation.needs_pass()
}

/// Bias, clamp and rounding of a vector of channels.
pub(super) struct Finish<S: Simd> {
    bias: S::F,
    low: S::F,
    high: S::F,
    pub rounding: Rounding<S>,
}

impl<S: Simd> Finish<S> {
    /// # Safety
    /// The bias, if any, has `n` columns from `column` on.
    #[inline(always)]
    pub unsafe fn new(s: S, e: &Epilogue<'_>, out: &Out, column: usize, n: usize) -> Self {
        let (low, high) = if e.activation.needs_pass() { Activation::None } else { e.activation }.bounds();
        let bias = if e.bias.is_empty() {
            // What adds nothing, to no zero either.
            s.splat(-0.0)
        } else {
            // SAFETY: passed on to the caller.
            unsafe { s.load_bits(e.bias.as_ptr().add(column), low_bits(n)) }
        };
        Finish { bias, low: s.splat(low), high: s.splat(high), rounding: Rounding::new(s, out) }
    }

    /// A result before it is rounded.
    #[inline(always)]
    pub fn clamped(&self, s: S, sum: S::F) -> S::F {
        s.min(self.high, s.max(self.low, s.add(sum, self.bias)))
    }

    /// # Safety
    /// As [`Out::put`].
    #[inline(always)]
    pub unsafe fn put(&self, s: S, out: &Out, at: usize, v: S::F, n: usize) {
        // SAFETY: passed on to the caller.
        unsafe { out.put(s, &self.rounding, at, self.clamped(s, v), n) };
    }
}
