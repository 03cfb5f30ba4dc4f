//! Every function of rows and channels gives the same bits on every tier, and touches nothing beside its operands.

use super::*;
use crate::activation::Activation;
use crate::testing::{Guarded, Random, assert_same_everywhere, bits, with_special};

/// Around the lanes and the chains of all tiers, and one long enough to be summed in parts.
const COLUMNS: [usize; 13] = [1, 2, 7, 8, 15, 16, 17, 31, 33, 49, 384, 1000, 17_001];

fn assert_reduces(op: ReduceOp, x: &[f32], shape: [usize; 3]) {
    assert_same_everywhere(&format!("{op:?} {shape:?}"), &|exec, edge| {
        let (mut x, mut y) = (Guarded::at(edge, x), Guarded::at(edge, &vec![9.0; shape[0] * shape[2]]));
        reduce(exec, op, x.get(), y.get(), shape).unwrap();
        bits(y.get())
    });
}

#[test]
fn reduces_to_the_same_bits_everywhere() {
    let ops =
        [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min, ReduceOp::L1, ReduceOp::L2, ReduceOp::SumSquare];
    let mut r = Random::new(41);
    for columns in COLUMNS {
        let x = r.vec(3 * columns);
        let special = with_special(x.clone());
        // Zeros of both signs: which one is the extreme?
        let zeros: Vec<f32> = x.iter().map(|v| 0f32.copysign(*v)).collect();
        for op in ops {
            assert_reduces(op, &x, [3, columns, 1]);
            assert_reduces(op, &x, [1, 3, columns]);
            assert_reduces(op, &special, [3, columns, 1]);
            assert_reduces(op, &zeros, [3, columns, 1]);
        }
    }
    let long = r.vec(70_001);
    ops.into_iter().for_each(|op| assert_reduces(op, &long, [1, 70_001, 1]));
}

#[test]
fn normalises_to_the_same_bits_everywhere() {
    let (mut r, rows) = (Random::new(42), 3);
    for columns in COLUMNS {
        let [x, skip] = [0, 1].map(|_| r.vec(rows * columns));
        let vectors = [0, 1, 2].map(|_| r.vec(columns));
        for (run, with_skip) in [(layer_norm as Norm, false), (layer_norm, true), (rms_norm, false), (rms_norm, true)] {
            assert_same_everywhere(&format!("{columns} skip {with_skip}"), &|exec, edge| {
                let [mut x, mut skip] = [&x, &skip].map(|v| Guarded::at(edge, v));
                let [mut scale, mut bias, mut skip_bias] = vectors.each_ref().map(|v| Guarded::at(edge, v));
                let [mut y, mut sum] = [0, 1].map(|_| Guarded::at(edge, &vec![9f32; rows * columns]));
                let [mut mean, mut inv] = [0, 1].map(|_| Guarded::at(edge, &vec![9f32; rows]));
                let params = LayerNorm {
                    scale: Some(scale.get()),
                    bias: Some(bias.get()),
                    epsilon: 1e-5,
                    skip: with_skip.then_some(skip.get()),
                    skip_bias: with_skip.then_some(skip_bias.get()),
                };
                let out = LayerNormOutputs { mean: Some(mean.get()), inv_std: Some(inv.get()), sum: Some(sum.get()) };
                run(exec, x.get(), y.get(), [rows, columns], &params, out).unwrap();
                bits(&[y.get(), mean.get(), inv.get(), sum.get()].concat())
            });
        }
    }
}

type Norm = fn(
    &crate::Exec,
    &[f32],
    &mut [f32],
    [usize; 2],
    &LayerNorm<'_>,
    LayerNormOutputs<'_>,
) -> Result<(), crate::KernelError>;

#[test]
fn normalises_channels_to_the_same_bits_everywhere() {
    let mut r = Random::new(43);
    for (c, inner) in [(6, 37), (4, 16), (2, 7), (6, 1)] {
        let (x, scale, bias) = (r.vec(2 * c * inner), r.vec(c), r.vec(c));
        for groups in [1, 2, c] {
            assert_same_everywhere(&format!("{c} channels of {inner} in {groups} groups"), &|exec, edge| {
                let [mut x, mut scale, mut bias] = [&x, &scale, &bias].map(|v| Guarded::at(edge, v));
                let mut y = Guarded::at(edge, &vec![9f32; 2 * c * inner]);
                let affine = (&*scale.get(), &*bias.get());
                group_norm(exec, x.get(), y.get(), [2, c, inner], groups, affine, 1e-3).unwrap();
                bits(y.get())
            });
        }
        for activation in [Activation::None, Activation::Relu, Activation::Silu { alpha: 1.0 }] {
            assert_same_everywhere(&format!("{c} channels of {inner}, {activation:?}"), &|exec, edge| {
                let [mut x, mut scale, mut bias] = [&x, &scale, &bias].map(|v| Guarded::at(edge, v));
                let mut y = Guarded::at(edge, &vec![9f32; 2 * c * inner]);
                let affine = (&*scale.get(), &*bias.get());
                batch_norm(exec, x.get(), y.get(), [2, c, inner], affine, activation).unwrap();
                bits(y.get())
            });
        }
    }
}

#[test]
fn softens_to_the_same_bits_everywhere() {
    let mut r = Random::new(44);
    for columns in COLUMNS {
        for shape in [[3, columns, 1], [1, 3, columns], [2, columns.min(9), 19]] {
            let mut x = r.vec(shape.iter().product());
            x.iter_mut().for_each(|v| *v *= 20.0);
            let plain: Soft = |exec, x, y, shape| softmax(exec, x, y, shape, false);
            let without_nan: Soft = |exec, x, y, shape| softmax(exec, x, y, shape, true);
            let special = with_special(x.clone());
            let runs = [(x.clone(), plain), (x, log_softmax as Soft), (special.clone(), plain), (special, without_nan)];
            for (x, run) in runs {
                assert_same_everywhere(&format!("{shape:?}"), &|exec, edge| {
                    let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![9f32; x.len()]));
                    run(exec, x.get(), y.get(), shape).unwrap();
                    bits(y.get())
                });
            }
        }
    }
}

type Soft = fn(&crate::Exec, &[f32], &mut [f32], [usize; 3]) -> Result<(), crate::KernelError>;
