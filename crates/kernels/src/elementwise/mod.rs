//! Functions of one to three tensors, element by element.

mod binary;
mod select;
mod unary;
mod walk;

pub use binary::{BinaryOp, binary, binary_assign};
pub use select::select;
pub use unary::{UnaryOp, unary, unary_in_place};
pub use walk::MAX_DIMS;

pub(crate) use binary::Binary;
pub(crate) use unary::Unary;

use crate::simd::{Simd, low_bits};

/// Elements that one task of a cheap function takes at least.
pub(crate) const GRAIN: usize = 1 << 14;

/// `y[i] = f(x[i])`; `x` and `y` may be the same.
///
/// # Safety
/// Both pointers cover `len` elements.
#[inline(always)]
pub(crate) unsafe fn map<S: Simd>(s: S, x: *const f32, y: *mut f32, len: usize, f: impl Fn(S::F) -> S::F) {
    let mut i = 0;
    // SAFETY: whole vectors, then the lanes that are left, of `len`.
    unsafe {
        while i + S::LANES <= len {
            s.store(y.add(i), f(s.load(x.add(i))));
            i += S::LANES;
        }
        if i < len {
            let bits = low_bits(len - i);
            s.store_bits(y.add(i), f(s.load_bits(x.add(i), bits)), bits);
        }
    }
}

#[cfg(test)]
mod tests;
