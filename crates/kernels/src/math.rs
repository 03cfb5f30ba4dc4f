//! exp, log, tanh, erf and the activations built on them, for any tier.
//!
//! Each function reduces its argument and evaluates a polynomial. The coefficients
//! are weighted minimax fits (Lawson iteration on Chebyshev nodes) made for this
//! crate. Errors against f64, over all finite arguments, tested below:
//! exp 1.5 ulp, log 2 ulp, tanh 2 ulp, erf 2 ulp, sigmoid 3 ulp.

use crate::simd::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the product of the first with a small integer is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// √(2/π)
const ROOT_2_PI: f32 = 0.797_884_6;

/// Horner's rule, highest power last.
#[inline(always)]
pub(crate) fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut y = s.splat(coefficients[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        y = s.mul_add(y, x, s.splat(coefficients[i]));
    }
    y
}

/// eˣ; overflows to infinity, underflows through the denormals to 0.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Beyond this the result is infinity anyway; NaN passes.
    exp_to_ninety(s, s.min(s.splat(90.0), x))
}

/// [`exp`] of what is at most 90.
#[inline(always)]
fn exp_to_ninety<S: Simd>(s: S, x: S::F) -> S::F {
    // Below, the result is 0 anyway; NaN passes.
    let x = s.max(s.splat(-105.0), x);
    let n = s.round_even(s.mul(x, s.splat(LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), x);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);
    let p = polynomial(s, r, [0.5, 0.166_665_12, 0.041_666_187, 0.008_369_599, 0.001_395_171_7]);
    let y = s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0));
    s.scale_exp(y, n)
}

/// eˣ for x ≤ 0, flushing results below 2^−126 to 0: the softmax inner loop.
#[inline(always)]
pub(crate) fn exp_nonpositive<S: Simd>(s: S, x: S::F) -> S::F {
    let tiny = s.lt(x, s.splat(-87.3));
    let x = s.max(s.splat(-87.3), x);
    let n = s.round_even(s.mul(x, s.splat(LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), x);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);
    let p = polynomial(s, r, [0.5, 0.166_665_12, 0.041_666_187, 0.008_369_599, 0.001_395_171_7]);
    let y = s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0));
    s.select(tiny, s.splat(0.0), s.scale_exp(y, n))
}

/// A divisor that stays the same: three multiplications instead of a division, with its bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Divisor {
    by: f32,
    inverse: f32,
}

impl Divisor {
    /// For quotients of 0 and of numbers whose magnitude is `least` … 2³¹ · `least`; `None` where the bits could differ.
    ///
    /// Markstein's theorem ("Computation of elementary functions on the IBM RISC System/6000", 1990): with the rounded
    /// inverse of a divisor whose fraction is not all ones, one correction of the product rounds correctly, as long
    /// as nothing leaves the range of normal numbers.
    pub fn new(by: f32, least: f32) -> Option<Divisor> {
        let near_one = |x: f32| (2f32.powi(-40)..2f32.powi(40)).contains(&x.abs());
        let fits = near_one(by) && near_one(least) && by.to_bits() & 0x7f_ffff != 0x7f_ffff;
        fits.then_some(Divisor { by, inverse: 1.0 / by })
    }

    /// `x / by`.
    #[inline(always)]
    pub fn divide<S: Simd>(self, s: S, x: S::F) -> S::F {
        let (by, inverse) = (s.splat(self.by), s.splat(self.inverse));
        let q = s.mul(x, inverse);
        // What is left is exact.
        s.mul_add(s.mul_add(s.neg(q), by, x), inverse, q)
    }
}

/// ln x; −∞ at 0, NaN below.
#[inline(always)]
pub(crate) fn log<S: Simd>(s: S, x: S::F) -> S::F {
    let small = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(small, s.mul(x, s.splat(8_388_608.0)), x);
    let offset = s.select(small, s.splat(-23.0), s.splat(0.0));
    // x = m · 2^e with m in [√½, √2).
    let bits = s.to_bits(scaled);
    let shifted = s.sub_i(bits, s.splat_i(0x3f35_04f3));
    let e = s.sar_i::<23>(shifted);
    let m = s.float_of(s.sub_i(bits, s.shl_i::<23>(e)));
    let e = s.add(s.to_f32(e), offset);
    let f = s.sub(m, s.splat(1.0));
    let p = polynomial(
        s,
        f,
        [
            0.333_333_1,
            -0.249_999_87,
            0.200_022_43,
            -0.166_692_7,
            0.142_183_26,
            -0.123_838,
            0.118_750_76,
            -0.117_940_92,
            0.069_155_954,
        ],
    );
    let f2 = s.mul(f, f);
    let tail = s.mul_add(s.mul(f2, f), p, s.mul(e, s.splat(LN2_LOW)));
    let y = s.add(s.mul_add(f2, s.splat(-0.5), tail), f);
    let y = s.mul_add(e, s.splat(LN2_HIGH), y);
    let y = s.select(s.eq(x, s.splat(f32::INFINITY)), x, y);
    let y = s.select(s.eq(x, s.splat(0.0)), s.splat(f32::NEG_INFINITY), y);
    let y = s.select(s.lt(x, s.splat(0.0)), s.splat(f32::NAN), y);
    s.select(s.unordered(x, x), x, y)
}

/// tanh x.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let t = s.abs(x);
    let x2 = s.mul(x, x);
    let p =
        polynomial(s, x2, [-0.333_333_28, 0.133_331_58, -0.053_940_564, 0.021_666_344, -0.008_091_965, 0.002_064_662]);
    let near = s.mul_add(s.mul(x2, x), p, x);
    // 1 − 2 / (e^2t + 1); beyond 10 it is 1.
    let e = exp(s, s.min(s.splat(20.0), s.add(t, t)));
    let far = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    s.select(s.lt(t, s.splat(0.65)), near, s.copysign(far, x))
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    // With e = e^−|x|: 1/(1+e) for x ≥ 0 and e/(1+e) below, neither of which cancels.
    let e = exp(s, s.neg(s.abs(x)));
    let top = s.select(s.lt(x, s.splat(0.0)), e, s.splat(1.0));
    s.div(top, s.add(s.splat(1.0), e))
}

/// The error function.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let x2 = s.mul(x, x);
    let p = polynomial(
        s,
        x2,
        [0.128_379_17, -0.376_126_35, 0.112_836_94, -0.026_859_27, 0.005_200_634, -0.000_813_743_75, 8.345_225e-5],
    );
    let near = s.mul_add(x, p, x);
    // erf t = 1 − e^(t·(q(t) − 1)); beyond 4 it is 1.
    let t = s.min(s.splat(4.0), s.abs(x));
    let q = polynomial(
        s,
        t,
        [-0.128_648_49, -0.635_151_3, -0.106_236_89, 0.023_762_075, -0.003_642_465, 0.000_322_805_4, -1.123_146_6e-5],
    );
    let power = s.sub(s.mul(q, t), t);
    let far = s.sub(s.splat(1.0), exp_nonpositive(s, power));
    s.select(s.lt(s.abs(x), s.splat(0.92)), near, s.copysign(far, x))
}

/// `x/2 · (1 + erf(x/√2))`, ONNX `Gelu` with `approximate="none"`: 4 ulp from −1 on, 25 ulp from −4 on, 1e-9 below.
///
/// Computed as `max(x, 0) − |x|/2 · erfc(|x|/√2)`, where ln erfc(t/√2) is a polynomial, which fits up to 5.5 and
/// falls on from there.
/// Unlike `1 + erf`, nothing cancels where x is negative.
#[inline(always)]
pub(crate) fn gelu_erf<S: Simd>(s: S, x: S::F) -> S::F {
    // At 14 the second term is 0, and infinity times 0 would be none.
    let t = s.min(s.splat(14.0), s.abs(x));
    let q = polynomial(
        s,
        t,
        [
            -0.797_886_5,
            -0.318_290_56,
            -0.036_401_305,
            0.004_889_858_4,
            -5.887_125_4e-5,
            -0.000_166_667_1,
            4.547_581_6e-5,
            -6.378_026_7e-6,
            4.875_138e-7,
            -1.603_213_4e-8,
        ],
    );
    let erfc = exp_to_ninety(s, s.mul(q, t));
    s.sub(s.max(s.splat(0.0), x), s.mul(s.mul(t, s.splat(0.5)), erfc))
}

/// [`gelu_erf`] to 7e-7, for results that are rounded to 8 bits: `max(x, 0) − h(|x|)`, where h(t) = t/2 · erfc(t/√2) is a
/// polynomial up to 5.5 and below 1e-7 from there on.
#[inline(always)]
pub(crate) fn gelu_erf_coarse<S: Simd>(s: S, x: S::F) -> S::F {
    let t = s.min(s.splat(5.5), s.abs(x));
    let u = s.mul_add(t, s.splat(2.0 / 5.5), s.splat(-1.0));
    let h = polynomial(
        s,
        u,
        [
            0.008_194_84,
            -0.060_579_08,
            0.191_202_28,
            -0.308_643_3,
            0.180_241_42,
            0.260_049_4,
            -0.638_719_56,
            0.461_279_4,
            0.192_287_9,
            -0.548_725,
            0.185_008_56,
            0.236_379_46,
            -0.154_078_08,
            -0.039_761_286,
            0.035_862_73,
        ],
    );
    s.sub(s.max(s.splat(0.0), x), h)
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`, ONNX `Gelu` with `approximate="tanh"`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let x2 = s.mul(x, x);
    let inner = s.mul(x, s.mul_add(x2, s.splat(0.044_715 * ROOT_2_PI), s.splat(ROOT_2_PI)));
    // x/2 · (1 + tanh u) = x · sigmoid(2u)
    s.mul(x, sigmoid(s, s.add(inner, inner)))
}

/// ln(1 + eˣ), without overflow.
#[inline(always)]
pub(crate) fn softplus<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.neg(s.abs(x)));
    // log1p(e) = log(1+e) · e / ((1+e) − 1), exact to rounding for small e.
    let u = s.add(e, s.splat(1.0));
    let d = s.sub(u, s.splat(1.0));
    let ratio = s.mul(log(s, u), s.div(e, d));
    let log1p = s.select(s.eq(d, s.splat(0.0)), e, ratio);
    s.add(s.max(s.splat(0.0), x), log1p)
}

/// eˣ − 1.
#[inline(always)]
pub(crate) fn exp_m1<S: Simd>(s: S, x: S::F) -> S::F {
    // Near 0 the series of (eˣ − 1 − x)/x², elsewhere the difference.
    let p = polynomial(s, x, [0.5, 0.166_666_67, 0.041_666_668, 0.008_333_334, 0.001_388_889]);
    let near = s.mul_add(s.mul(x, x), p, x);
    let far = s.sub(exp(s, x), s.splat(1.0));
    s.select(s.lt(s.abs(x), s.splat(0.3)), near, far)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::Kernel;

    struct Apply<'a>(Function, &'a [f32], &'a mut [f32]);

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Function {
        Exp,
        Log,
        Tanh,
        Erf,
        Sigmoid,
        Softplus,
        ExpM1,
        Gelu,
        CoarseGelu,
    }

    impl Kernel for Apply<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.1.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
                // SAFETY: chunks hold at most `LANES` elements, `x.len()` of them.
                let v = unsafe { s.load_n(x.as_ptr(), x.len()) };
                let v = match self.0 {
                    Function::Exp => exp(s, v),
                    Function::Log => log(s, v),
                    Function::Tanh => tanh(s, v),
                    Function::Erf => erf(s, v),
                    Function::Sigmoid => sigmoid(s, v),
                    Function::Softplus => softplus(s, v),
                    Function::ExpM1 => exp_m1(s, v),
                    Function::Gelu => gelu_erf(s, v),
                    Function::CoarseGelu => gelu_erf_coarse(s, v),
                };
                // SAFETY: as above.
                unsafe { s.store_n(y.as_mut_ptr(), v, y.len()) };
            }
        }
    }

    fn exact(function: Function, x: f64) -> f64 {
        match function {
            Function::Exp => x.exp(),
            Function::Log => x.ln(),
            Function::Tanh => x.tanh(),
            Function::Erf => erf_series(x),
            Function::Sigmoid if x < 0.0 => x.exp() / (1.0 + x.exp()),
            Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Function::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Function::ExpM1 => x.exp_m1(),
            Function::Gelu | Function::CoarseGelu => {
                x.max(0.0) - x.abs() / 2.0 * erfc(x.abs() / std::f64::consts::SQRT_2)
            }
        }
    }

    /// 1 − erf x of x ≥ 0, without cancellation where it is small.
    fn erfc(x: f64) -> f64 {
        if x < 2.0 {
            return 1.0 - erf_series(x);
        }
        let f = (1..200).rev().fold(0.0, |f, n| n as f64 / 2.0 / (x + f));
        (-x * x).exp() / (x + f) / std::f64::consts::PI.sqrt()
    }

    /// erf by its Taylor series (|x| < 3) or continued fraction.
    fn erf_series(x: f64) -> f64 {
        let t = x.abs();
        if t > 6.0 {
            return x.signum();
        }
        if t < 3.0 {
            let mut term = t;
            let mut sum = t;
            for n in 1..200 {
                term *= -t * t / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            return x.signum() * sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let mut f = 0.0;
        for n in (1..80).rev() {
            f = n as f64 / 2.0 / (t + f);
        }
        x.signum() * (1.0 - (-t * t).exp() / (t + f) / std::f64::consts::PI.sqrt())
    }

    fn ulps(got: f32, want: f64) -> f64 {
        let rounded = want as f32;
        if got == rounded || (got.is_nan() && rounded.is_nan()) {
            return 0.0;
        }
        if !rounded.is_finite() || !got.is_finite() {
            return f64::INFINITY;
        }
        let bits = rounded.abs().max(f32::MIN_POSITIVE).to_bits();
        let ulp = f64::from(f32::from_bits(bits + 1)) - f64::from(f32::from_bits(bits));
        (f64::from(got) - want).abs() / ulp
    }

    /// Every 997th float of both signs, and the special ones.
    fn arguments() -> Vec<f32> {
        let mut xs: Vec<f32> = (0..u32::MAX / 997).map(|i| f32::from_bits(i * 997)).collect();
        xs.retain(|x| x.is_finite());
        xs.extend((-4000..4000).map(|i| i as f32 * 0.03));
        xs.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, -1.0]);
        xs
    }

    struct Divide<'a>(Divisor, &'a mut [f32]);

    impl Kernel for Divide<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.1.chunks_mut(S::LANES) {
                // SAFETY: the part is as long as it says.
                unsafe {
                    let v = s.load_n(x.as_ptr(), x.len());
                    s.store_n(x.as_mut_ptr(), self.0.divide(s, v), x.len());
                }
            }
        }
    }

    #[test]
    fn divides_by_a_known_divisor_with_the_bits_of_a_division() {
        let mut r = crate::testing::Random::new(31);
        for isa in Isa::available() {
            for n in 1..300u32 {
                let by = match n % 3 {
                    0 => (n as f32).sqrt(),
                    1 => -0.37 * n as f32,
                    _ => f32::from_bits(0x3f80_0000 + n.wrapping_mul(2_654_435_761) % 0x80_0000),
                };
                let least = [3.1e-9f32, 0.0123, 7e5][n as usize % 3];
                let xs: Vec<f32> = r.vec(500).iter().map(|v| (v * 2147483000.0).trunc() * least).collect();
                let xs: Vec<f32> = xs.into_iter().chain((-250..250).map(|i| i as f32 * least)).collect();
                let mut ys = xs.clone();
                isa.dispatch(Divide(Divisor::new(by, least).expect("an ordinary divisor"), &mut ys));
                for (x, y) in xs.iter().zip(&ys) {
                    assert!((x / by).to_bits() == y.to_bits() || *x == 0.0 && *y == 0.0, "{x} / {by}: {y} {isa:?}");
                }
            }
        }
        let refused = [(0.0, 1.0), (f32::NAN, 1.0), (f32::from_bits(0x3fff_ffff), 1.0), (1e-30, 1.0), (3.0, 1e-30)];
        assert!(refused.iter().all(|&(by, least)| Divisor::new(by, least).is_none()));
    }

    #[test]
    fn keeps_the_stated_error_of_gelu_on_every_tier() {
        let xs: Vec<f32> = (-15_000..9000).map(|i| i as f32 * 0.001).chain(arguments()).collect();
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut ys = vec![0.0; xs.len()];
            isa.dispatch(Apply(Function::Gelu, &xs, &mut ys));
            for (&x, &y) in xs.iter().zip(&ys).filter(|(x, _)| x.is_finite()) {
                let want = exact(Function::Gelu, f64::from(x));
                let bound = if x >= -1.0 { 4.0 } else { 25.0 };
                let near = ulps(y, want) <= bound || x < -4.0 && (f64::from(y) - want).abs() < 1e-9;
                assert!(near, "{x}: {y:e} against {want:e}, {} ulp", ulps(y, want));
            }
            assert_eq!(ys[ys.len() - 6..ys.len() - 3], [0.0, f32::INFINITY, 0.0], "-0, ∞, −∞");
            assert!(ys[ys.len() - 3].is_nan());
            let bits = ys.iter().map(|y| if y.is_nan() { 0 } else { y.to_bits() }).collect::<Vec<_>>();
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{isa:?}");
        }
    }

    #[test]
    fn rounds_a_coarse_gelu_alike_on_every_tier_to_less_than_a_millionth() {
        let xs: Vec<f32> = (-9000..9000).map(|i| i as f32 * 0.001).chain([-1e30, 1e30, f32::NAN]).collect();
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut ys = vec![0.0; xs.len()];
            isa.dispatch(Apply(Function::CoarseGelu, &xs, &mut ys));
            for (&x, &y) in xs.iter().zip(&ys).filter(|(x, _)| x.abs() < 10.0) {
                // The fit is good to 6e-7; a last rounding of x itself comes on top.
                let error = (f64::from(y) - exact(Function::CoarseGelu, f64::from(x))).abs();
                assert!(error < 7e-7 + f64::from(x.abs()) * 6e-8, "{x}: {error:e}");
            }
            assert!(ys[18_000].abs() < 1e-6 && ys[18_001] == 1e30 && ys[18_002].is_nan());
            let bits = ys.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{isa:?}");
        }
    }

    #[test]
    fn stays_within_the_stated_ulps_on_every_tier() {
        let xs = arguments();
        let bounds = [
            (Function::Exp, 1.5),
            (Function::Log, 2.0),
            (Function::Tanh, 2.0),
            (Function::Erf, 2.0),
            (Function::Sigmoid, 3.0),
            (Function::Softplus, 4.0),
            (Function::ExpM1, 4.0),
        ];
        for (function, bound) in bounds {
            let mut reference: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let mut ys = vec![0.0; xs.len()];
                isa.dispatch(Apply(function, &xs, &mut ys));
                let mut worst = (0.0, 0.0);
                if reference.is_none() {
                    for (&x, &y) in xs.iter().zip(&ys) {
                        let error = ulps(y, exact(function, f64::from(x)));
                        if error > worst.0 {
                            worst = (error, x);
                        }
                    }
                }
                assert!(worst.0 <= bound, "{function:?} on {isa}: {worst:?}");
                // The same operations in the same order: tiers agree bit for bit.
                let first = reference.get_or_insert_with(|| ys.clone());
                for ((a, b), x) in first.iter().zip(&ys).zip(&xs) {
                    let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                    assert!(same, "{function:?}({x}): {a} against {b} on {isa}");
                }
            }
        }
    }
}
