//! Activations that a kernel can fuse into its last step.

use crate::math;
use crate::simd::Simd;

/// A function applied to each output of a GEMM or convolution.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// x
    #[default]
    None,
    /// max(x, 0)
    Relu,
    /// min(max(x, lo), hi)
    Clip {
        /// Lower bound.
        lo: f32,
        /// Upper bound.
        hi: f32,
    },
    /// x for x ≥ 0, `alpha` · x below
    LeakyRelu {
        /// Slope below 0.
        alpha: f32,
    },
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// x · sigmoid(`alpha` · x): SiLU with 1, QuickGelu with 1.702
    Silu {
        /// Factor inside the sigmoid.
        alpha: f32,
    },
    /// x · min(max(x/6 + ½, 0), 1)
    HardSwish,
    /// min(max(`alpha` · x + `beta`, 0), 1)
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// x/2 · (1 + erf(x/√2))
    GeluErf,
    /// [`Activation::GeluErf`] to an absolute error of 1e-6, in half the operations: for results that are rounded to 8 bits
    GeluErfCoarse,
    /// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))
    GeluTanh,
    /// tanh x
    Tanh,
}

impl Activation {
    /// Bounds that clamp the result; infinite when the function is no clamp.
    #[inline(always)]
    pub(crate) fn bounds(self) -> (f32, f32) {
        match self {
            Activation::Relu => (0.0, f32::INFINITY),
            Activation::Clip { lo, hi } => (lo, hi),
            _ => (f32::NEG_INFINITY, f32::INFINITY),
        }
    }

    /// Whether the function is more than a clamp.
    #[inline(always)]
    pub(crate) fn needs_pass(self) -> bool {
        !matches!(self, Activation::None | Activation::Relu | Activation::Clip { .. })
    }

    /// The same to an absolute error of 1e-6 at most: for results that are rounded to 8 bits.
    #[inline(always)]
    pub(crate) fn coarse(self) -> Activation {
        if self == Activation::GeluErf { Activation::GeluErfCoarse } else { self }
    }

    /// The function on several vectors: chosen once, and their chains of operations run side by side.
    #[inline(always)]
    pub(crate) fn apply_all<S: Simd, const N: usize>(self, s: S, v: &mut [S::F; N]) {
        macro_rules! all {
            ($function:expr) => {
                for x in v.iter_mut() {
                    *x = $function.apply(s, *x);
                }
            };
        }
        match self {
            Activation::None => {}
            Activation::Relu => all!(Activation::Relu),
            Activation::Clip { lo, hi } => all!(Activation::Clip { lo, hi }),
            Activation::LeakyRelu { alpha } => all!(Activation::LeakyRelu { alpha }),
            Activation::Sigmoid => all!(Activation::Sigmoid),
            Activation::Silu { alpha } => all!(Activation::Silu { alpha }),
            Activation::HardSwish => all!(Activation::HardSwish),
            Activation::HardSigmoid { alpha, beta } => all!(Activation::HardSigmoid { alpha, beta }),
            Activation::GeluErf => all!(Activation::GeluErf),
            Activation::GeluErfCoarse => all!(Activation::GeluErfCoarse),
            Activation::GeluTanh => all!(Activation::GeluTanh),
            Activation::Tanh => all!(Activation::Tanh),
        }
    }

    /// The function on one vector.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        match self {
            Activation::None => x,
            Activation::Relu => s.max(s.splat(0.0), x),
            Activation::Clip { lo, hi } => s.min(s.splat(hi), s.max(s.splat(lo), x)),
            Activation::LeakyRelu { alpha } => s.select(s.lt(x, s.splat(0.0)), s.mul(x, s.splat(alpha)), x),
            Activation::Sigmoid => math::sigmoid(s, x),
            Activation::Silu { alpha } => s.mul(x, math::sigmoid(s, s.mul(x, s.splat(alpha)))),
            Activation::HardSwish => s.mul(x, hard_sigmoid(s, x, 1.0 / 6.0, 0.5)),
            Activation::HardSigmoid { alpha, beta } => hard_sigmoid(s, x, alpha, beta),
            Activation::GeluErf => math::gelu_erf(s, x),
            Activation::GeluErfCoarse => math::gelu_erf_coarse(s, x),
            Activation::GeluTanh => math::gelu_tanh(s, x),
            Activation::Tanh => math::tanh(s, x),
        }
    }
}

#[inline(always)]
fn hard_sigmoid<S: Simd>(s: S, x: S::F, alpha: f32, beta: f32) -> S::F {
    let y = s.add(s.mul(x, s.splat(alpha)), s.splat(beta));
    s.min(s.splat(1.0), s.max(s.splat(0.0), y))
}
