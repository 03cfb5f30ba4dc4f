//! The usual end of a depthwise convolution, in registers.

use crate::activation::Activation;
use crate::panel::{Epilogue, Out, Residual, Rounding};
use crate::simd::{Simd, low_bits};

/// Whether the results need but a bias and a clamp.
pub(super) fn is_plain(e: &Epilogue<'_>) -> bool {
    let affine = !e.factors.is_empty() || !e.shifts.is_empty();
    matches!(e.residual, Residual::None) && !affine && !e.activation.needs_pass()
}

/// Bias, clamp and rounding of a vector of channels.
pub(super) struct Finish<S: Simd> {
    bias: Option<S::F>,
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
            None
        } else {
            // SAFETY: passed on to the caller.
            Some(unsafe { s.load_bits(e.bias.as_ptr().add(column), low_bits(n)) })
        };
        Finish { bias, low: s.splat(low), high: s.splat(high), rounding: Rounding::new(s, out) }
    }

    /// # Safety
    /// As [`Out::put`].
    #[inline(always)]
    pub unsafe fn put(&self, s: S, out: &Out, at: usize, mut v: S::F, n: usize) {
        if let Some(bias) = self.bias {
            v = s.add(v, bias);
        }
        let v = s.min(self.high, s.max(self.low, v));
        // SAFETY: passed on to the caller.
        unsafe { out.put(s, &self.rounding, at, v, n) };
    }
}
