//! What follows a product: bounds, roundings, factors and shifts, in loops over accumulators or in the tiles themselves.

use half::bf16;

use super::tests::{bytes, params};
use super::*;
use crate::activation::Activation;
use crate::testing::{Guarded, Random, execs};

#[test]
fn saturates_where_a_clip_lies_beyond_the_codes() {
    let (x, w) = (vec![3u8; 5 * 8], vec![1i8; 8 * 20]);
    for exec in execs() {
        let weights = panel_gemm_pack(&exec, (8, 20), &w, false).unwrap();
        for (lo, hi, want) in [(60.0, 70.0, 127), (-50.0, -40.0, -128), (5.0, 50.0, 24)] {
            let activation = Activation::Clip { lo, hi };
            let e = Epilogue { offsets: &[0; 20], scales: &[1.0; 20], activation, ..Epilogue::default() };
            let mut y = vec![0i8; 5 * 20];
            panel_gemm(&exec, Rows::U8(&x), (5, 8, 8), &weights, &e, Target::I8(&mut y, 4.0, -72)).unwrap();
            assert_eq!(y, [want; 5 * 20], "{activation:?} {exec:?}");
        }
    }
}

#[test]
fn rounds_before_the_sum_as_two_operators_do() {
    let mut random = Random::new(11);
    let (m, k, n) = (29, 66, 33);
    let (x, residual) = (bytes(&mut random, m * k), bytes(&mut random, m * n));
    let w: Vec<i8> = bytes(&mut random, k * n).into_iter().map(|b| b as i8).collect();
    let scales: Vec<f32> = (0..n).map(|_| 0.0004 * (1.0 + random.unit() * 0.5)).collect();
    let offsets = vec![77; n];
    // Floats are rounded, or steps that the factors give at once.
    let at_once: Vec<f32> = scales.iter().map(|s| s / 0.03).collect();
    let forms = [(&scales, 1.0 / 0.03), (&at_once, 1.0)];
    for (exec, (scales, inverse)) in
        forms.into_iter().flat_map(|form| execs().into_iter().map(move |exec| (exec, form)))
    {
        let weights = panel_gemm_pack(&exec, (k, n), &w, false).unwrap();
        let plain = Epilogue { offsets: &offsets, scales, ..Epilogue::default() };
        let product = |e: &Epilogue, y: Target| panel_gemm(&exec, Rows::U8(&x), (m, k, k), &weights, e, y);
        let mut codes = vec![0u8; m * n];
        product(&plain, Target::U8(&mut codes, inverse, 99)).unwrap();
        assert!(codes.contains(&0) && codes.contains(&255), "the test wants codes that saturate");
        let sum = |i: usize, zero: f32| {
            let (a, b) = ((f32::from(codes[i]) - 99.0) * 0.03, (f32::from(residual[i]) - zero) * 0.07);
            (((a + b).max(0.0) * (1.0 / 0.05)).round_ties_even() as i32 + 5).clamp(0, 255) as u8
        };
        let e = Epilogue { stage: Some(Stage::new(false, inverse, 0.03, 99)), activation: Activation::Relu, ..plain };
        let mut got = vec![0u8; m * n];
        let staged = Epilogue { residual: Residual::U8(&residual, 0.07, 120), ..e };
        product(&staged, Target::U8(&mut got, 1.0 / 0.05, 5)).unwrap();
        assert_eq!(got, (0..m * n).map(|i| sum(i, 120.0)).collect::<Vec<_>>(), "{exec:?}");
        let signed: Vec<i8> = residual.iter().map(|&b| (b ^ 0x80) as i8).collect();
        let staged = Epilogue { residual: Residual::I8(&signed, 0.07, -8), ..e };
        product(&staged, Target::U8(&mut got, 1.0 / 0.05, 5)).unwrap();
        assert_eq!(got, (0..m * n).map(|i| sum(i, 120.0)).collect::<Vec<_>>(), "{exec:?}");
        assert!(product(&e, Target::U8(&mut got, 1.0, 0)).is_err(), "a stage without a residual");
    }
}

#[test]
fn adds_codes_behind_a_rounding_as_two_operators_do() {
    let mut random = Random::new(12);
    let (m, k, n) = (29, 66, 33);
    let (x, residual) = (bytes(&mut random, m * k), bytes(&mut random, m * n));
    let w: Vec<i8> = bytes(&mut random, k * n).into_iter().map(|b| b as i8).collect();
    let (ratios, offsets) = (vec![0.013; n], vec![77; n]);
    for exec in execs() {
        let weights = panel_gemm_pack(&exec, (k, n), &w, false).unwrap();
        let plain = Epilogue { offsets: &offsets, scales: &ratios, ..Epilogue::default() };
        let product = |e: &Epilogue, y: Target| panel_gemm(&exec, Rows::U8(&x), (m, k, k), &weights, e, y);
        let mut codes = vec![0u8; m * n];
        product(&plain, Target::U8(&mut codes, 1.0, 99)).unwrap();
        assert!(codes.contains(&0) && codes.contains(&255), "the test wants codes that saturate");
        // Halves make ties, which the result's odd zero point moves.
        for (ratio, unit, fixed, first) in
            [(0.5, 0.5, -7.0, true), (0.713, 1.31, -61.37, true), (0.713, 1.31, 5.1, false)]
        {
            let alike = |code: u8, r: u8| {
                let (code, r) = (f32::from(code), f32::from(r));
                let v = match first {
                    true => code.mul_add(ratio, r.mul_add(unit, fixed)),
                    false => r.mul_add(unit, code.mul_add(ratio, fixed)),
                };
                v.clamp(0.0, 255.0).round_ties_even() as u8
            };
            let sum = |i: usize| alike(codes[i], residual[i]);
            let stage = Some(Stage::of_codes(false, 1.0, 99, CodeSum { ratio, fixed, first }));
            let e = Epilogue { stage, residual: Residual::U8(&residual, unit, 0), ..plain };
            let mut got = vec![0u8; m * n];
            product(&e, Target::U8(&mut got, 1.0, 0)).unwrap();
            assert_eq!(got, (0..m * n).map(sum).collect::<Vec<_>>(), "{exec:?} {ratio} {first}");
            let row: Vec<f32> = (0..n).map(|j| f32::from(residual[j])).collect();
            let e = Epilogue { residual: Residual::Row(&row, unit), ..e };
            product(&e, Target::U8(&mut got, 1.0, 0)).unwrap();
            let want: Vec<u8> = (0..m * n).map(|i| alike(codes[i], residual[i % n])).collect();
            assert_eq!(got, want, "{exec:?} {ratio} {first} row");
            let short = Epilogue { residual: Residual::Row(&row[1..], unit), ..e };
            assert!(product(&short, Target::U8(&mut got, 1.0, 0)).is_err(), "a short row");
            let bare = Epilogue { stage: None, ..e };
            assert!(product(&bare, Target::U8(&mut got, 1.0, 0)).is_err(), "a row without a stage");
        }
    }
}

#[test]
fn multiplies_results_by_the_factors_of_their_columns() {
    let mut random = Random::new(13);
    let (m, k, n) = (29, 66, 35);
    let x = bytes(&mut random, m * k);
    let w: Vec<i8> = bytes(&mut random, k * n).into_iter().map(|b| b as i8).collect();
    let scales: Vec<f32> = (0..n).map(|_| 0.0004 * (1.0 + random.unit() * 0.5)).collect();
    let factors: Vec<f32> = (0..n).map(|i| 0.5 + 3.0 * i as f32).collect();
    let offsets = vec![77; n];
    for exec in execs() {
        let weights = panel_gemm_pack(&exec, (k, n), &w, false).unwrap();
        let product = |e: &Epilogue, y: Target| panel_gemm(&exec, Rows::U8(&x), (m, k, k), &weights, e, y);
        for activation in [Activation::None, Activation::Relu, Activation::HardSwish] {
            let plain = Epilogue { offsets: &offsets, scales: &scales, activation, ..Epilogue::default() };
            let (mut floats, mut scaled) = (vec![0f32; m * n], vec![0f32; m * n]);
            product(&plain, Target::F32(&mut floats)).unwrap();
            let e = Epilogue { factors: &factors, ..plain };
            product(&e, Target::F32(&mut scaled)).unwrap();
            let want: Vec<f32> = (0..m * n).map(|i| floats[i] * factors[i % n]).collect();
            assert_eq!(scaled, want, "{activation:?} {exec:?}");
            let code = |v: &f32| (v.round_ties_even().clamp(-300.0, 300.0) as i32 + 9).clamp(0, 255) as u8;
            let mut codes = vec![0u8; m * n];
            product(&e, Target::U8(&mut codes, 1.0, 9)).unwrap();
            assert_eq!(codes, want.iter().map(code).collect::<Vec<_>>(), "{activation:?} {exec:?}");
            assert!(codes.contains(&255), "the test wants codes that saturate");
        }
        let short = Epilogue { offsets: &offsets, scales: &scales, factors: &factors[1..], ..Epilogue::default() };
        assert!(product(&short, Target::U8(&mut vec![0; m * n], 1.0, 9)).is_err(), "too few factors");
    }
}

#[test]
fn shifts_results_behind_the_activation_before_they_are_rounded() {
    let mut random = Random::new(14);
    let (m, k) = (29, 66);
    for n in [1, 15, 35, 64] {
        let x = bytes(&mut random, m * k);
        let w: Vec<i8> = bytes(&mut random, k * n).into_iter().map(|b| b as i8).collect();
        let scales: Vec<f32> = (0..n).map(|_| 0.0004 * (1.0 + random.unit() * 0.5)).collect();
        // Of both signs, and some of nothing.
        let factors: Vec<f32> = (0..n).map(|i| (i as f32 % 7.0) - 3.0).collect();
        let shifts: Vec<f32> = (0..n).map(|i| (i as f32 % 5.0) * 1.3 - 2.0).collect();
        let (offsets, inverse) = (vec![77; n], 3.7f32);
        for exec in execs() {
            let weights = panel_gemm_pack(&exec, (k, n), &w, false).unwrap();
            let product = |e: &Epilogue, y: Target| panel_gemm(&exec, Rows::U8(&x), (m, k, k), &weights, e, y);
            for activation in [
                Activation::None,
                Activation::Relu,
                Activation::Clip { lo: -0.5, hi: 1.0 },
                Activation::HardSwish,
                Activation::Silu { alpha: 1.0 },
            ] {
                let plain = Epilogue { offsets: &offsets, scales: &scales, activation, ..Epilogue::default() };
                let mut floats = vec![0f32; m * n];
                product(&plain, Target::F32(&mut floats)).unwrap();
                for (factors, shifts) in [(&[][..], &shifts[..]), (&factors, &shifts), (&factors, &[])] {
                    let of = |x: &[f32], i: usize, other: f32| x.get(i % n).copied().unwrap_or(other);
                    let e = Epilogue { factors, shifts, ..plain };
                    let mut y = vec![0f32; m * n];
                    product(&e, Target::F32(&mut y)).unwrap();
                    let want = |i: usize| floats[i].mul_add(of(factors, i, 1.0), of(shifts, i, 0.0));
                    assert_eq!(y, (0..m * n).map(want).collect::<Vec<_>>(), "{activation:?} {exec:?}");
                    let code = |i: usize| {
                        let v = floats[i].mul_add(of(factors, i, 1.0) * inverse, of(shifts, i, 0.0) * inverse);
                        (v.round_ties_even() as i32 + 9).clamp(0, 255) as u8
                    };
                    let mut codes = vec![0u8; m * n];
                    product(&e, Target::U8(&mut codes, inverse, 9)).unwrap();
                    let want: Vec<u8> = (0..m * n).map(code).collect();
                    assert_eq!(codes, want, "{activation:?} {} {exec:?}", shifts.len());
                    let mut signed = vec![0i8; m * n];
                    product(&e, Target::I8(&mut signed, inverse, 9 - 128)).unwrap();
                    let want: Vec<i8> = want.iter().map(|&c| (c ^ 0x80) as i8).collect();
                    assert_eq!(signed, want, "{activation:?} {} {exec:?}", shifts.len());
                }
            }
            let long = vec![0.0; n + 1];
            let e = Epilogue { offsets: &offsets, scales: &scales, shifts: &long, ..Epilogue::default() };
            assert!(product(&e, Target::U8(&mut vec![0; m * n], 1.0, 9)).is_err(), "too many shifts");
        }
    }
}

#[test]
fn shifts_the_columns_of_all_groups_of_a_convolution() {
    let mut random = Random::new(15);
    for p in params() {
        let [oh, ow] = p.output().unwrap();
        let x = bytes(&mut random, p.n * p.h * p.w * p.c);
        let w: Vec<i8> = bytes(&mut random, p.weight_len().unwrap()).into_iter().map(|b| b as i8).collect();
        let scales: Vec<f32> = (0..p.oc).map(|_| 0.0002 * (1.0 + random.unit() * 0.5)).collect();
        let factors: Vec<f32> = (0..p.oc).map(|i| 0.1 + 0.3 * (i % 6) as f32).collect();
        let shifts: Vec<f32> = (0..p.oc).map(|i| 0.7 * (i % 5) as f32 - 1.1).collect();
        let offsets: Vec<i32> = (0..p.oc).map(|i| i as i32 * 11 - 90).collect();
        let len = p.n * oh * ow * p.oc;
        for exec in execs() {
            let weights = conv2d_nhwc_pack(&exec, &p, &w).unwrap();
            let activation = Activation::HardSwish;
            let plain = Epilogue { offsets: &offsets, scales: &scales, activation, ..Epilogue::default() };
            let (mut floats, mut codes) = (vec![0f32; len], Guarded::new(&vec![0u8; len]));
            conv2d_nhwc(&exec, &p, Rows::U8(&x), 77, &weights, &plain, Target::F32(&mut floats)).unwrap();
            let e = Epilogue { factors: &factors, shifts: &shifts, ..plain };
            let target = Target::U8(codes.get(), 7.3, 40);
            conv2d_nhwc(&exec, &p, Rows::U8(&x), 77, &weights, &e, target).unwrap();
            let code = |i: usize| {
                let v = floats[i].mul_add(factors[i % p.oc] * 7.3, shifts[i % p.oc] * 7.3);
                (v.round_ties_even() as i32 + 40).clamp(0, 255) as u8
            };
            assert_eq!(codes.get(), (0..len).map(code).collect::<Vec<_>>(), "{p:?} {exec:?}");
        }
    }
}

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
