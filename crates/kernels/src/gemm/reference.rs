//! The definition of the product, for tests.

use super::{Bias, Gemm, Lhs, Rhs};
use crate::activation::Activation;
use crate::isa::Scalar;

/// Computes one product (no batch) of two views in f64, element by element.
///
/// # Panics
/// An operand is not a view, or a slice is too short: this is for tests.
pub fn gemm_reference(g: &Gemm<'_>, c: &mut [f32]) {
    let (Lhs::View(a), Rhs::View(b)) = (g.a, g.b) else { panic!("the reference takes views") };
    for i in 0..g.m {
        for j in 0..g.n {
            let at = i * g.ldc + j;
            let dot: f64 = (0..g.k)
                .map(|p| {
                    let x = a.data[i * a.row_stride + p * a.col_stride];
                    let y = b.data[p * b.row_stride + j * b.col_stride];
                    f64::from(x) * f64::from(y)
                })
                .sum();
            let mut x = f64::from(g.alpha) * dot;
            if g.beta != 0.0 {
                x += f64::from(g.beta) * f64::from(c[at]);
            }
            x += match g.bias {
                Bias::None => 0.0,
                Bias::Row(bias) => f64::from(bias[i]),
                Bias::Column(bias) => f64::from(bias[j]),
            };
            x += g.residual.map_or(0.0, |r| f64::from(r[at]));
            c[at] = apply(g.activation, x as f32);
        }
    }
}

fn apply(activation: Activation, x: f32) -> f32 {
    activation.apply(Scalar::new(), x)
}
