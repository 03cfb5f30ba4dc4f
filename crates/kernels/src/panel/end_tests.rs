//! Tiles that make their results themselves give what the loops over accumulators give.

use half::bf16;

use super::*;
use crate::activation::Activation;
use crate::testing::{Guarded, Random, execs};

/// Rows with all that a sum can be: numbers, both zeros, infinities, NaN.
fn rows(random: &mut Random, (m, k): (usize, usize)) -> Vec<f32> {
    let mut x = random.vec(m * k);
    for (i, special) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0].into_iter().enumerate() {
        let row = random.below(m);
        x[row * k..(row + 1) * k].fill(if i < 3 { special } else { 0.0 });
        x[row * k + random.below(k)] = special;
    }
    x
}

#[test]
fn ends_tiles_as_the_loops_do() {
    let mut random = Random::new(77);
    for (m, k, n) in [(1, 1, 16), (13, 5, 32), (14, 8, 48), (31, 3, 70), (57, 6, 64)] {
        let (x, w, bias) = (rows(&mut random, (m, k)), random.vec(k * n), random.vec(n));
        // Factors of 1 change nothing, but the kernels don't end tiles with them.
        let ones = vec![1f32; n];
        let activations = [Activation::None, Activation::Relu, Activation::Clip { lo: -0.25, hi: 0.5 }];
        for (exec, activation, bias) in
            execs().iter().flat_map(|e| activations.map(|a| (e, a))).flat_map(|(e, a)| [(e, a, &bias[..]), (e, a, &[])])
        {
            for weights in [
                panel_gemm_pack(exec, (k, n), &w, false).unwrap(),
                panel_gemm_pack_bf16(exec, (k, n), &w, false).unwrap(),
            ] {
                let context = format!("{m} {k} {n} {activation:?} {}", weights.kernel().name);
                let plain = Epilogue { bias, activation, ..Epilogue::default() };
                let looped = Epilogue { scales: &ones, ..plain };
                let product =
                    |e: &Epilogue, y: Target| panel_gemm(exec, Rows::F32(&x), (m, k, k), &weights, e, y).unwrap();
                let (mut want, mut got) = (vec![9f32; m * n], Guarded::new(&vec![9f32; m * n]));
                product(&looped, Target::F32(&mut want));
                product(&plain, Target::F32(got.get()));
                assert_eq!(bits(got.get()), bits(&want), "{context}");
                let (mut want, mut got) = (vec![bf16::ONE; m * n], Guarded::new(&vec![bf16::ONE; m * n]));
                product(&looped, Target::Bf16(&mut want));
                product(&plain, Target::Bf16(got.get()));
                let words = |y: &[bf16]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(words(got.get()), words(&want), "{context}");
            }
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}
