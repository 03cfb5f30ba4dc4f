//! Every function of elements gives the same bits on every tier, and touches nothing beside its operands.

use super::*;
use crate::activation::Activation;
use crate::testing::{Guarded, Random, assert_same_everywhere, bits, with_special};

/// Around the lanes of all tiers, and one of several tasks.
const LENGTHS: [usize; 10] = [0, 1, 7, 8, 9, 15, 16, 17, 33, 33_001];

fn functions() -> Vec<UnaryOp> {
    let activations = [
        Activation::None,
        Activation::Relu,
        Activation::Clip { lo: -0.5, hi: 0.25 },
        Activation::LeakyRelu { alpha: 0.1 },
        Activation::Sigmoid,
        Activation::Silu { alpha: 1.702 },
        Activation::HardSwish,
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::Tanh,
    ];
    let others = [
        UnaryOp::Exp,
        UnaryOp::Log,
        UnaryOp::Erf,
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
    activations.into_iter().map(UnaryOp::Activation).chain(others).collect()
}

#[test]
fn applies_functions_to_the_same_bits_everywhere() {
    let mut r = Random::new(51);
    for op in functions() {
        for len in LENGTHS {
            let x = with_special(r.vec(len).iter().map(|v| v * 12.0).collect());
            assert_same_everywhere(&format!("{op:?} of {len}"), &|exec, edge| {
                let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![9f32; len]));
                unary(exec, op, x.get(), y.get()).unwrap();
                let apart = bits(y.get());
                unary_in_place(exec, op, x.get());
                assert_eq!(apart, bits(x.get()), "in place");
                apart
            });
        }
    }
}

#[test]
fn broadcasts_to_the_same_bits_everywhere() {
    let ops = [
        BinaryOp::Add,
        BinaryOp::Sub,
        BinaryOp::Mul,
        BinaryOp::Div,
        BinaryOp::Min,
        BinaryOp::Max,
        BinaryOp::Pow,
        BinaryOp::PRelu,
    ];
    type Shapes = (&'static [usize], &'static [usize], &'static [usize]);
    let shapes: [Shapes; 9] = [
        (&[], &[], &[]),
        (&[7], &[7], &[7]),
        (&[33], &[1], &[33]),
        (&[1], &[3, 17], &[3, 17]),
        (&[4, 5, 19], &[19], &[4, 5, 19]),
        (&[2, 3, 9], &[3, 1], &[2, 3, 9]),
        (&[2, 1, 4, 1], &[3, 1, 33], &[2, 3, 4, 33]),
        (&[7, 1], &[1, 9], &[7, 9]),
        (&[40_001], &[40_001], &[40_001]),
    ];
    let mut r = Random::new(52);
    for op in ops {
        for (sa, sb, sy) in shapes {
            let (a, b) = (with_special(r.vec(sa.iter().product())), r.vec(sb.iter().product()));
            assert_same_everywhere(&format!("{op:?} {sa:?} {sb:?}"), &|exec, edge| {
                let [mut a, mut b] = [&a, &b].map(|v| Guarded::at(edge, v));
                let mut y = Guarded::at(edge, &vec![9f32; sy.iter().product()]);
                binary(exec, op, (a.get(), sa), (b.get(), sb), (y.get(), sy)).unwrap();
                let apart = bits(y.get());
                if sa == sy {
                    binary_assign(exec, op, (a.get(), sy), (b.get(), sb)).unwrap();
                    assert_eq!(apart, bits(a.get()), "in place");
                }
                apart
            });
        }
    }
}
