//! The forms of the algorithm: what becomes of pixels, weights and products.
//!
//! For a line of `M` results that a window of three takes from `N = M + 2` elements, `y = Aᵀ((G g) · (Bᵀ d))` (Winograd 1980; Lavin
//! and Gray 2015, "Fast Algorithms for Convolutional Neural Networks"); windows of two dimensions nest it. The matrices are
//! those of Toom and Cook for `N − 1` points and infinity.

use crate::simd::{Simd, low_bits};

/// A form with `M` results from `N` elements.
pub(super) trait Form<const M: usize, const N: usize>: Sync {
    /// `G`.
    const WEIGHTS: [[f64; 3]; N];
    /// Bytes of an element of the image, and of a transformed one.
    const PIXEL: usize;
    const POINT: usize;
    /// Whether sums are integers.
    const INTS: bool;

    /// A vector of what is transformed.
    type V<S: Simd>: Copy;

    fn zero<S: Simd>(s: S) -> Self::V<S>;

    /// `n` elements of the image.
    ///
    /// # Safety
    /// `from` covers them.
    unsafe fn pixels<S: Simd>(s: S, from: *const u8, n: usize) -> Self::V<S>;

    /// `Bᵀ d`.
    fn enter<S: Simd>(s: S, d: [Self::V<S>; N]) -> [Self::V<S>; N];

    /// Writes `n` transformed elements.
    ///
    /// # Safety
    /// `to` covers them.
    unsafe fn points<S: Simd>(s: S, to: *mut u8, v: Self::V<S>, n: usize);

    /// Writes a transformed weight of channel `c`; words of two steps are `step` apart.
    ///
    /// # Safety
    /// `to` covers the channels' words.
    unsafe fn weight(to: *mut f32, step: usize, c: usize, w: f64);

    /// A vector of products.
    ///
    /// # Safety
    /// `from` covers it.
    unsafe fn products<S: Simd>(s: S, from: *const f32) -> Self::V<S>;

    /// `Aᵀ m`.
    fn leave<S: Simd>(s: S, m: [Self::V<S>; N]) -> [Self::V<S>; M];

    /// Writes a vector of sums of windows, of what [`Form::leave`] gave down and across.
    ///
    /// # Safety
    /// `to` covers it.
    unsafe fn sums<S: Simd>(s: S, to: *mut f32, v: Self::V<S>);
}

/// What both forms of floats have in common.
macro_rules! floats {
    () => {
        const PIXEL: usize = 4;
        const POINT: usize = 4;
        const INTS: bool = false;

        type V<S: Simd> = S::F;

        #[inline(always)]
        fn zero<S: Simd>(s: S) -> S::F {
            s.splat(0.0)
        }

        #[inline(always)]
        unsafe fn pixels<S: Simd>(s: S, from: *const u8, n: usize) -> S::F {
            // SAFETY: passed on to the caller.
            unsafe { s.load_bits(from.cast(), low_bits(n)) }
        }

        #[inline(always)]
        unsafe fn points<S: Simd>(s: S, to: *mut u8, v: S::F, n: usize) {
            // SAFETY: passed on to the caller.
            unsafe { s.store_bits(to.cast(), v, low_bits(n)) }
        }

        #[inline(always)]
        unsafe fn weight(to: *mut f32, step: usize, c: usize, w: f64) {
            // SAFETY: passed on to the caller.
            unsafe { *to.add(c * step) = w as f32 };
        }

        #[inline(always)]
        unsafe fn products<S: Simd>(s: S, from: *const f32) -> S::F {
            // SAFETY: passed on to the caller.
            unsafe { s.load(from) }
        }

        #[inline(always)]
        unsafe fn sums<S: Simd>(s: S, to: *mut f32, v: S::F) {
            // SAFETY: passed on to the caller.
            unsafe { s.store(to, v) }
        }
    };
}

/// Two results: points 0, 1, −1.
pub(super) struct Two;

impl Form<2, 4> for Two {
    floats!();

    const WEIGHTS: [[f64; 3]; 4] = [[-1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    #[inline(always)]
    fn enter<S: Simd>(s: S, d: [S::F; 4]) -> [S::F; 4] {
        [s.sub(d[2], d[0]), s.add(d[1], d[2]), s.sub(d[2], d[1]), s.sub(d[3], d[1])]
    }

    #[inline(always)]
    fn leave<S: Simd>(s: S, m: [S::F; 4]) -> [S::F; 2] {
        [s.add(m[0], s.add(m[1], m[2])), s.add(s.sub(m[1], m[2]), m[3])]
    }
}

/// Four results: points 0, ±3/4, ±3/2.
///
/// The usual ±1 and ±2 lose twice as much: with 256 channels the results' error is 2.7e-6 of their root mean square, with
/// these 1.4e-6, with plain sums 0.6e-6. All constants are exact.
pub(super) struct Four;

impl Form<4, 6> for Four {
    floats!();

    const WEIGHTS: [[f64; 3]; 6] = [
        [64.0 / 81.0, 0.0, 0.0],
        [-128.0 / 243.0, -32.0 / 81.0, -8.0 / 27.0],
        [-128.0 / 243.0, 32.0 / 81.0, -8.0 / 27.0],
        [32.0 / 243.0, 16.0 / 81.0, 8.0 / 27.0],
        [32.0 / 243.0, -16.0 / 81.0, 8.0 / 27.0],
        [0.0, 0.0, 1.0],
    ];

    #[inline(always)]
    fn enter<S: Simd>(s: S, d: [S::F; 6]) -> [S::F; 6] {
        // (x² − 9/4)(x² − 9/16) without one of its factors each.
        let (even, odd) = (s.mul_add(d[2], s.splat(-2.25), d[4]), s.mul_add(d[1], s.splat(-2.25), d[3]));
        let (even2, odd2) = (s.mul_add(d[2], s.splat(-0.5625), d[4]), s.mul_add(d[1], s.splat(-0.5625), d[3]));
        [
            s.mul_add(d[0], s.splat(1.265_625), s.mul_add(d[2], s.splat(-2.8125), d[4])),
            s.mul_add(odd, s.splat(0.75), even),
            s.mul_add(odd, s.splat(-0.75), even),
            s.mul_add(odd2, s.splat(1.5), even2),
            s.mul_add(odd2, s.splat(-1.5), even2),
            s.mul_add(d[1], s.splat(1.265_625), s.mul_add(d[3], s.splat(-2.8125), d[5])),
        ]
    }

    #[inline(always)]
    fn leave<S: Simd>(s: S, m: [S::F; 6]) -> [S::F; 4] {
        let (sum, difference) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
        let (sum2, difference2) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
        [
            s.add(m[0], s.add(sum, sum2)),
            s.mul_add(difference2, s.splat(1.5), s.mul(difference, s.splat(0.75))),
            s.mul_add(sum2, s.splat(2.25), s.mul(sum, s.splat(0.5625))),
            s.mul_add(difference2, s.splat(3.375), s.mul_add(difference, s.splat(0.421_875), m[5])),
        ]
    }
}

/// Three results of 8-bit integers: points 0, ±1, 2, exact.
///
/// Rows of `G` are multiplied by the divisors of the points (2, −2, −6, 6, 1), so that weights stay integers of at most 49 · 128, and
/// pixels become at most 36 · 255 in magnitude: both have 16 bits. `Aᵀ` makes up for it by 6 over the divisors, so that what leaves
/// is 36 times the sum of a window, modulo 2³². A product with the inverse of 9 leaves 4 times the sum, modulo 2³² still,
/// which is that number itself while the sum has 30 bits: with up to [`MOST_CHANNELS`] channels.
pub(super) struct Three<const SIGNED: bool>;

/// Channels whose windows' sums have 30 bits whatever the values: 9 · 255 · 128 · 1827 < 2²⁹.
pub(super) const MOST_CHANNELS: usize = 1827;

impl<const SIGNED: bool> Form<3, 5> for Three<SIGNED> {
    const WEIGHTS: [[f64; 3]; 5] =
        [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 2.0, 4.0], [0.0, 0.0, 1.0]];
    const PIXEL: usize = 1;
    const POINT: usize = 2;
    const INTS: bool = true;

    type V<S: Simd> = S::I;

    #[inline(always)]
    fn zero<S: Simd>(s: S) -> S::I {
        s.splat_i(0)
    }

    /// i8 becomes u8, as all kernels read it: with 128 added.
    #[inline(always)]
    unsafe fn pixels<S: Simd>(s: S, from: *const u8, n: usize) -> S::I {
        // SAFETY: passed on to the caller.
        let v = unsafe { s.load_u8_n(from, n) };
        if SIGNED { s.xor_i(v, s.splat_i(0x80)) } else { v }
    }

    #[inline(always)]
    fn enter<S: Simd>(s: S, d: [S::I; 5]) -> [S::I; 5] {
        let twice = |x| s.add_i(x, x);
        let odd = s.sub_i(d[3], d[1]);
        let even = s.sub_i(odd, d[2]);
        [
            // 2 − x − 2x² + x³
            s.add_i(odd, twice(s.sub_i(d[0], d[2]))),
            // −2x − x² + x³
            s.sub_i(even, d[1]),
            // 2x − 3x² + x³
            s.add_i(s.sub_i(even, twice(s.sub_i(d[2], d[1]))), d[1]),
            // −x + x³
            odd,
            // 2x − x² − 2x³ + x⁴
            s.sub_i(s.sub_i(d[4], d[2]), twice(odd)),
        ]
    }

    #[inline(always)]
    unsafe fn points<S: Simd>(s: S, to: *mut u8, v: S::I, n: usize) {
        // SAFETY: passed on to the caller.
        unsafe { s.store_low16_n(to.cast(), v, n) }
    }

    #[inline(always)]
    unsafe fn weight(to: *mut f32, step: usize, c: usize, w: f64) {
        // SAFETY: passed on to the caller; a word holds two channels.
        unsafe { *to.add(c / 2 * step).cast::<i16>().add(c % 2) = w as i16 };
    }

    #[inline(always)]
    unsafe fn products<S: Simd>(s: S, from: *const f32) -> S::I {
        // SAFETY: passed on to the caller.
        s.to_bits(unsafe { s.load(from) })
    }

    #[inline(always)]
    fn leave<S: Simd>(s: S, m: [S::I; 5]) -> [S::I; 3] {
        let three = |x| s.add_i(s.add_i(x, x), x);
        let one = three(m[1]);
        let (two, back) = (s.add_i(m[3], m[3]), s.sub_i(m[3], m[2]));
        [
            // 3, −3, −1, 1, 0
            s.add_i(s.sub_i(three(m[0]), one), back),
            // 0, −3, 1, 2, 0
            s.add_i(s.sub_i(m[2], one), two),
            // 0, −3, −1, 4, 6
            s.add_i(s.sub_i(s.add_i(s.add_i(back, m[3]), two), one), three(s.add_i(m[4], m[4]))),
        ]
    }

    #[inline(always)]
    unsafe fn sums<S: Simd>(s: S, to: *mut f32, v: S::I) {
        // 9 · 954437177 = 2³³ + 1.
        let sum = s.sar_i::<2>(s.mul_i(v, s.splat_i(954_437_177)));
        // SAFETY: passed on to the caller.
        unsafe { s.store(to, s.float_of(sum)) }
    }
}
