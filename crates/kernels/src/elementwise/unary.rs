//! Functions of one tensor.

use super::{GRAIN, map};
use crate::activation::Activation;
use crate::buffer::SharedMut;
use crate::error::{Result, exact};
use crate::exec::Exec;
use crate::math;
use crate::simd::{Kernel, Simd};

/// A function of one f32 (ONNX operator of the same name; errors in ulp where not exact).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum UnaryOp {
    /// One of the fusable activations.
    Activation(Activation),
    /// eˣ (1.5 ulp)
    Exp,
    /// ln x (2 ulp)
    Log,
    /// erf x (2 ulp)
    Erf,
    /// x for x ≥ 0, `alpha` · (eˣ − 1) below
    Elu {
        /// Factor below 0.
        alpha: f32,
    },
    /// `gamma` · (x for x > 0, `alpha` · (eˣ − 1) below)
    Selu {
        /// Factor below 0.
        alpha: f32,
        /// Factor of all.
        gamma: f32,
    },
    /// ln(1 + eˣ) (4 ulp)
    Softplus,
    /// x / (1 + |x|)
    Softsign,
    /// x · tanh(ln(1 + eˣ))
    Mish,
    /// √x
    Sqrt,
    /// 1 / x
    Reciprocal,
    /// −x
    Neg,
    /// |x|
    Abs,
    /// Largest integer not above x
    Floor,
    /// Smallest integer not below x
    Ceil,
    /// Nearest integer, half to even
    Round,
    /// x²
    Square,
    /// −1, 0 or 1
    Sign,
}

impl UnaryOp {
    /// Elements per task: fewer for the functions that compute longer.
    fn grain(self) -> usize {
        match self {
            UnaryOp::Activation(activation) if !activation.needs_pass() => GRAIN,
            UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round => GRAIN,
            UnaryOp::Square | UnaryOp::Sign => GRAIN,
            _ => GRAIN / 4,
        }
    }
}

/// `y[i] = op(x[i])`.
///
/// # Errors
/// The slices differ in length.
pub fn unary(exec: &Exec, op: UnaryOp, x: &[f32], y: &mut [f32]) -> Result {
    exact("unary", "y", y.len(), x.len())?;
    let y = SharedMut::new(y);
    exec.split(x.len(), op.grain(), &|range| {
        let (x, len) = (x[range.clone()].as_ptr(), range.len());
        exec.isa().dispatch(Unary { op, x, y: y.ptr().wrapping_add(range.start), len });
    });
    Ok(())
}

/// `y[i] = op(y[i])`.
pub fn unary_in_place(exec: &Exec, op: UnaryOp, y: &mut [f32]) {
    let len = y.len();
    let y = SharedMut::new(y);
    exec.split(len, op.grain(), &|range| {
        let y = y.ptr().wrapping_add(range.start);
        exec.isa().dispatch(Unary { op, x: y, y, len: range.len() });
    });
}

/// Pointers cover `len` elements that no other task touches.
pub(crate) struct Unary {
    pub op: UnaryOp,
    pub x: *const f32,
    pub y: *mut f32,
    pub len: usize,
}

macro_rules! each {
    ($s:ident, $self:ident, $v:ident => $body:expr) => {
        // SAFETY: `Unary` covers `len` elements.
        unsafe {
            map(
                $s,
                $self.x,
                $self.y,
                $self.len,
                #[inline(always)]
                |$v| $body,
            )
        }
    };
}

impl Kernel for Unary {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero = s.splat(0.0);
        let one = s.splat(1.0);
        match self.op {
            UnaryOp::Activation(activation) => self.activate(s, activation),
            UnaryOp::Exp => each!(s, self, v => math::exp(s, v)),
            UnaryOp::Log => each!(s, self, v => math::log(s, v)),
            UnaryOp::Erf => each!(s, self, v => math::erf(s, v)),
            UnaryOp::Elu { alpha } => each!(s, self, v => elu(s, v, alpha)),
            UnaryOp::Selu { alpha, gamma } => {
                each!(s, self, v => s.mul(elu(s, v, alpha), s.splat(gamma)));
            }
            UnaryOp::Softplus => each!(s, self, v => math::softplus(s, v)),
            UnaryOp::Softsign => each!(s, self, v => s.div(v, s.add(one, s.abs(v)))),
            UnaryOp::Mish => each!(s, self, v => s.mul(v, math::tanh(s, math::softplus(s, v)))),
            UnaryOp::Sqrt => each!(s, self, v => s.sqrt(v)),
            UnaryOp::Reciprocal => each!(s, self, v => s.div(one, v)),
            UnaryOp::Neg => each!(s, self, v => s.neg(v)),
            UnaryOp::Abs => each!(s, self, v => s.abs(v)),
            UnaryOp::Floor => each!(s, self, v => s.floor(v)),
            UnaryOp::Ceil => each!(s, self, v => s.ceil(v)),
            UnaryOp::Round => each!(s, self, v => s.round_even(v)),
            UnaryOp::Square => each!(s, self, v => s.mul(v, v)),
            UnaryOp::Sign => each!(s, self, v => {
                let signed = s.select(s.eq(v, zero), zero, s.copysign(one, v));
                s.select(s.unordered(v, v), v, signed)
            }),
        }
    }
}

impl Unary {
    /// One loop per activation, so that the choice is not made per element.
    #[inline(always)]
    fn activate<S: Simd>(self, s: S, activation: Activation) {
        macro_rules! only {
            ($pattern:pat) => {
                each!(s, self, v => match activation {
                    $pattern => activation.apply(s, v),
                    _ => v,
                })
            };
        }
        match activation {
            Activation::None => only!(Activation::None),
            Activation::Relu => only!(Activation::Relu),
            Activation::Clip { .. } => only!(Activation::Clip { .. }),
            Activation::LeakyRelu { .. } => only!(Activation::LeakyRelu { .. }),
            Activation::Sigmoid => only!(Activation::Sigmoid),
            Activation::Silu { .. } => only!(Activation::Silu { .. }),
            Activation::HardSwish => only!(Activation::HardSwish),
            Activation::HardSigmoid { .. } => only!(Activation::HardSigmoid { .. }),
            Activation::GeluErf => only!(Activation::GeluErf),
            Activation::GeluErfCoarse => only!(Activation::GeluErfCoarse),
            Activation::GeluTanh => only!(Activation::GeluTanh),
            Activation::Tanh => only!(Activation::Tanh),
        }
    }
}

#[inline(always)]
fn elu<S: Simd>(s: S, x: S::F, alpha: f32) -> S::F {
    let below = s.mul(math::exp_m1(s, x), s.splat(alpha));
    s.select(s.lt(x, s.splat(0.0)), below, x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, execs};

    fn reference(op: UnaryOp, x: f32) -> f32 {
        let d = f64::from(x);
        let elu = |alpha: f32| {
            if d < 0.0 { f64::from(alpha) * d.exp_m1() } else { d }
        };
        let y = match op {
            UnaryOp::Activation(a) => return a.apply(crate::isa::Scalar::new(), x),
            UnaryOp::Exp => d.exp(),
            UnaryOp::Log => d.ln(),
            UnaryOp::Elu { alpha } => elu(alpha),
            UnaryOp::Selu { alpha, gamma } => f64::from(gamma) * elu(alpha),
            UnaryOp::Softplus => d.exp().ln_1p(),
            UnaryOp::Softsign => d / (1.0 + d.abs()),
            UnaryOp::Mish => d * d.exp().ln_1p().tanh(),
            UnaryOp::Sqrt => d.sqrt(),
            UnaryOp::Reciprocal => 1.0 / d,
            UnaryOp::Neg => -d,
            UnaryOp::Abs => d.abs(),
            UnaryOp::Floor => d.floor(),
            UnaryOp::Ceil => d.ceil(),
            UnaryOp::Round => d.round_ties_even(),
            UnaryOp::Square => d * d,
            UnaryOp::Sign if d.is_nan() || d == 0.0 => d.abs(),
            UnaryOp::Sign => d.signum(),
            UnaryOp::Erf => return x,
        };
        y as f32
    }

    #[test]
    fn equals_the_definition_at_every_length() {
        let ops = [
            UnaryOp::Activation(Activation::Relu),
            UnaryOp::Activation(Activation::HardSwish),
            UnaryOp::Activation(Activation::GeluTanh),
            UnaryOp::Activation(Activation::Silu { alpha: 1.702 }),
            UnaryOp::Activation(Activation::LeakyRelu { alpha: 0.1 }),
            UnaryOp::Exp,
            UnaryOp::Log,
            UnaryOp::Elu { alpha: 1.5 },
            UnaryOp::Selu { alpha: 1.67, gamma: 1.05 },
            UnaryOp::Softplus,
            UnaryOp::Softsign,
            UnaryOp::Mish,
            UnaryOp::Sqrt,
            UnaryOp::Reciprocal,
            UnaryOp::Neg,
            UnaryOp::Abs,
            UnaryOp::Floor,
            UnaryOp::Ceil,
            UnaryOp::Round,
            UnaryOp::Square,
            UnaryOp::Sign,
        ];
        let mut r = Random::new(2);
        for exec in execs() {
            for op in ops {
                for len in [0, 1, 7, 16, 33, 20_000] {
                    let mut x: Vec<f32> = r.vec(len).iter().map(|v| v * 6.0).collect();
                    if let Some(first) = x.first_mut() {
                        *first = [f32::NAN, 0.0, 2.5][len % 3];
                    }
                    let want: Vec<f32> = x.iter().map(|&x| reference(op, x)).collect();
                    let mut y = Guarded::new(&x);
                    unary(&exec, op, &x, y.get()).unwrap();
                    // The stated ulps, with room for products of two functions.
                    assert_close(y.get(), &want, 1e-6, &format!("{op:?} {exec:?}"));
                    unary_in_place(&exec, op, &mut x);
                    assert_close(&x, &want, 1e-6, &format!("{op:?} in place {exec:?}"));
                }
            }
        }
    }

    #[test]
    fn refuses_slices_of_different_length() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        assert!(unary(&exec, UnaryOp::Exp, &[0.0; 3], &mut [0.0; 4]).is_err());
    }
}
