use super::*;
use crate::activation::Activation;
use crate::panel::{Epilogue, Residual, Target};
use crate::testing::{Guarded, Random, execs};

/// A weight and its floats, `[k][n]`.
struct Weight {
    shape: BlockShape,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    floats: Vec<f32>,
}

fn weight(random: &mut Random, shape: BlockShape, zeros: bool) -> Weight {
    let BlockShape { k, n, bits, block, .. } = shape;
    let blocks = shape.blocks();
    let codes: Vec<u8> = (0..n * k).map(|_| (random.next() & ((1 << bits) - 1)) as u8).collect();
    let scales: Vec<f32> = (0..n * blocks).map(|_| 0.01 + 0.005 * random.unit()).collect();
    let middle = (1 << (bits - 1)) as f32;
    let zeros: Vec<f32> =
        (0..n * blocks).map(|_| if zeros { random.below(1 << bits) as f32 } else { middle }).collect();
    let mut w = Weight { shape, codes, scales, zeros, floats: vec![0.0; n * k] };
    for i in 0..n * k {
        let (column, row) = (i / k, i % k);
        let at = column * blocks + row / block;
        let value = match shape.values {
            Values::Integers => f32::from(w.codes[i]) - w.zeros[at],
            Values::E2m1 => fp4(w.codes[i]),
        };
        w.floats[row * n + column] = value * w.scales[at];
    }
    w
}

/// fp4 e2m1 by its bits: a sign, two bits of exponent with bias 1, one of mantissa.
fn fp4(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 1 & 3), f32::from(code & 1));
    let magnitude = if exponent == 0 { 0.5 * mantissa } else { (1.0 + 0.5 * mantissa) * 2f32.powi(exponent - 1) };
    if code & 8 == 0 { magnitude } else { -magnitude }
}

fn pack(exec: &crate::Exec, w: &Weight) -> Blocks {
    let (k, blocks) = (w.shape.k, w.shape.blocks());
    let codes = |n: usize, to: &mut [u8]| to.copy_from_slice(&w.codes[n * k..][..k]);
    let scales = |n: usize, to: &mut [f32]| to.copy_from_slice(&w.scales[n * blocks..][..blocks]);
    let zeros = |n: usize, to: &mut [f32]| to.copy_from_slice(&w.zeros[n * blocks..][..blocks]);
    let has_zeros = w.shape.values == Values::Integers;
    Blocks::pack(exec, w.shape, &codes, &scales, has_zeros.then_some(&zeros)).unwrap()
}

fn shapes() -> Vec<BlockShape> {
    let shape = |k, n, bits, block| BlockShape { k, n, bits, block, values: Values::Integers };
    let mut all = vec![shape(16, 1, 4, 16), shape(1, 3, 4, 32), shape(800, 130, 4, 32), shape(40, 64, 2, 128)];
    for bits in [2, 4, 8] {
        all.extend([shape(100, 33, bits, 32), shape(256, 65, bits, 64), shape(47, 20, bits, 16)]);
    }
    all
}

fn fp4_shapes() -> Vec<BlockShape> {
    let shape = |k, n, block| BlockShape { k, n, bits: 4, block, values: Values::E2m1 };
    vec![shape(100, 33, 32), shape(16, 1, 16), shape(47, 130, 32)]
}

#[test]
fn multiplies_rows_as_with_unpacked_weights_on_every_tier() {
    let mut random = Random::new(31);
    for shape in shapes().into_iter().chain(fp4_shapes()) {
        for (m, zeros) in [(1, false), (1, true), (2, false), (3, true), (5, false), (9, true), (SMALL + 3, true)] {
            let zeros = zeros && shape.values == Values::Integers;
            let w = weight(&mut random, shape, zeros);
            let (k, n) = (shape.k, shape.n);
            let x = random.vec(m * k);
            let (bias, residual) = (random.vec(n), random.vec(m * n));
            let exact = |i: usize| -> (f64, f64) {
                let terms = (0..k).map(|q| f64::from(x[i / n * k + q]) * f64::from(w.floats[q * n + i % n]));
                terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
            };
            for exec in execs() {
                let packed = pack(&exec, &w);
                let middle = (1 << (shape.bits - 1)) as f32;
                assert_eq!(packed.panel(0).shifts.is_empty(), w.zeros.iter().all(|&z| z == middle));
                let mut x = Guarded::new(&x);
                let mut y = Guarded::new(&vec![0f32; m * n]);
                let epilogue = Epilogue {
                    bias: &bias,
                    residual: Residual::F32(&residual),
                    activation: Activation::Relu,
                    ..Epilogue::default()
                };
                blocks_gemm(&exec, x.get(), m, &packed, &epilogue, Target::F32(y.get())).unwrap();
                for (i, &got) in y.get().iter().enumerate() {
                    let (sum, size) = exact(i);
                    let want = (sum + f64::from(bias[i % n]) + f64::from(residual[i])).max(0.0);
                    // Half an ulp for each of the terms and of the codes with their zero points, at the most.
                    let tolerance = (size + 2.0) * 1e-6 * 10.0;
                    assert!((f64::from(got) - want).abs() <= tolerance, "{shape:?} {m} {exec:?}: {i}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn multiplies_rounded_rows_alike_on_every_tier() {
    let mut random = Random::new(32);
    for shape in shapes() {
        for (m, zeros) in [(1, false), (2, true), (3, false), (9, true)] {
            let w = weight(&mut random, shape, zeros);
            let BlockShape { k, n, block, .. } = shape;
            let x = random.vec(m * k);
            // Rounded as documented, then in f64.
            let mut rounded = x.clone();
            for row in rounded.chunks_mut(k) {
                for part in row.chunks_mut(block) {
                    let scale = part.iter().fold(0f32, |a, v| a.max(v.abs())) / 127.0;
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    part.iter_mut().for_each(|v| *v = (*v * inverse).round_ties_even() * scale);
                }
            }
            let want: Vec<(f64, f64)> = (0..m * n)
                .map(|i| {
                    let terms = (0..k).map(|q| f64::from(rounded[i / n * k + q]) * f64::from(w.floats[q * n + i % n]));
                    terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
                })
                .collect();
            let mut first: Option<Vec<f32>> = None;
            for exec in execs() {
                let packed = pack(&exec, &w);
                let mut y = Guarded::new(&vec![0f32; m * n]);
                let target = Target::F32(y.get());
                blocks_gemm_int8(&exec, &x, m, &packed, &Epilogue::default(), target).unwrap();
                for (&got, &(sum, size)) in y.get().iter().zip(&want) {
                    assert!((f64::from(got) - sum).abs() <= (size + 1.0) * 1e-5, "{shape:?} {m} {exec:?} {got} {sum}");
                }
                let first = first.get_or_insert_with(|| y.get().to_vec());
                assert_eq!(y.get(), first, "{shape:?} {m} {exec:?}");
            }
        }
    }
}

#[test]
fn refuses_shapes_that_it_does_not_know() {
    let exec = &execs()[0];
    let pack = |k, n, bits, block| {
        let shape = BlockShape { k, n, bits, block, values: Values::Integers };
        Blocks::pack(exec, shape, &|_, c| c.fill(1), &|_, s| s.fill(1.0), None)
    };
    assert!(pack(32, 4, 4, 32).is_ok());
    for (k, n, bits, block) in [(32, 4, 3, 32), (32, 4, 4, 24), (32, 4, 4, 0), (0, 4, 4, 32), (32, 0, 4, 32)] {
        assert!(pack(k, n, bits, block).is_err());
    }
    assert!(pack(usize::MAX / 2, 4, 4, 32).is_err());
    let w = pack(32, 4, 4, 32).unwrap();
    let mut y = [0.0; 8];
    let plain = Epilogue::default();
    assert!(blocks_gemm(exec, &[1.0; 64], 2, &w, &plain, Target::F32(&mut y)).is_ok());
    assert!(blocks_gemm(exec, &[1.0; 63], 2, &w, &plain, Target::F32(&mut y)).is_err());
    assert!(blocks_gemm(exec, &[1.0; 64], 2, &w, &plain, Target::F32(&mut y[..7])).is_err());
    assert!(blocks_gemm(exec, &[1.0; 64], 2, &w, &plain, Target::U8(&mut [0; 8], 1.0, 0)).is_err());
    let middle = |_: usize, z: &mut [f32]| z.fill(8.0);
    let fp4 = |bits, with_zeros: bool| {
        let shape = BlockShape { k: 32, n: 4, bits, block: 32, values: Values::E2m1 };
        Blocks::pack(exec, shape, &|_, c| c.fill(1), &|_, s| s.fill(1.0), with_zeros.then_some(&middle))
    };
    assert!(fp4(8, false).is_err() && fp4(4, true).is_err());
    let w4 = fp4(4, false).unwrap();
    assert!(blocks_gemm_int8(exec, &[1.0; 64], 2, &w4, &plain, Target::F32(&mut y)).is_err(), "it has no integers");
    assert!(blocks_gemm_int8(exec, &[1.0; 63], 2, &w, &plain, Target::F32(&mut y)).is_err());
}

#[test]
fn takes_four_bits_for_each_weight() {
    let exec = &execs()[0];
    let shape = BlockShape { k: 1024, n: 256, bits: 4, block: 32, values: Values::Integers };
    let w = Blocks::pack(exec, shape, &|_, c| c.fill(1), &|_, s| s.fill(1.0), None).unwrap();
    assert_eq!(w.bytes(), 1024 * 256 / 2 + 1024 / 32 * 256 * 4);
}
