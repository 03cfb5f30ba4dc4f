use super::*;
use crate::activation::Activation;
use crate::conv::conv2d_reference;
use crate::panel::Residual;
use crate::testing::{Guarded, Random, assert_close, execs};

fn params() -> Vec<Conv2dParams> {
    let base = Conv2dParams {
        n: 1,
        c: 5,
        h: 9,
        w: 11,
        oc: 5,
        kh: 3,
        kw: 3,
        strides: [1, 1],
        pads: [1, 1, 1, 1],
        dilations: [1, 1],
        groups: 5,
    };
    let of = |c: usize, p: Conv2dParams| Conv2dParams { c, oc: c, groups: c, ..p };
    vec![
        base,
        of(32, base),
        of(16, Conv2dParams { w: 20, h: 4, ..base }),
        of(64, Conv2dParams { n: 2, strides: [2, 2], ..base }),
        of(81, Conv2dParams { n: 2, h: 8, pads: [0, 1, 2, 0], ..base }),
        of(144, Conv2dParams { kh: 5, kw: 5, pads: [2; 4], w: 30, ..base }),
        of(24, Conv2dParams { kh: 5, kw: 5, pads: [1, 2, 2, 1], strides: [2, 2], ..base }),
        of(40, Conv2dParams { kh: 7, kw: 7, pads: [3; 4], h: 7, w: 7, ..base }),
        of(66, Conv2dParams { kh: 2, kw: 4, pads: [0; 4], strides: [1, 3], ..base }),
        of(17, Conv2dParams { dilations: [2, 3], pads: [2, 3, 2, 3], ..base }),
        of(3, Conv2dParams { kh: 1, kw: 1, pads: [0; 4], ..base }),
        of(8, Conv2dParams { kh: 1, kw: 9, h: 1, pads: [0, 4, 0, 4], ..base }),
        of(130, Conv2dParams { kh: 9, kw: 1, pads: [4, 0, 4, 0], w: 3, ..base }),
        // Windows that see only padding.
        of(4, Conv2dParams { h: 1, w: 1, pads: [4, 5, 4, 5], ..base }),
    ]
}

/// NCHW to NHWC.
fn nhwc<T: Copy>(x: &[T], (n, c, pixels): (usize, usize, usize)) -> Vec<T> {
    (0..n * c * pixels).map(|i| x[(i / (pixels * c) * c + i % c) * pixels + i / c % pixels]).collect()
}

#[test]
fn convolves_integers_exactly_on_every_tier() {
    let mut random = Random::new(31);
    for p in params() {
        let ([oh, ow], zero, c) = (p.output().unwrap(), 77, p.c);
        let planes: Vec<u8> = (0..p.n * c * p.h * p.w).map(|_| random.next() as u8).collect();
        let w: Vec<i8> = (0..p.weight_len().unwrap()).map(|_| random.next() as i8).collect();
        let zeros: Vec<i32> = (0..c).map(|_| random.below(9) as i32 - 4).collect();
        // Floats hold these sums exactly.
        let float: Vec<f32> = planes.iter().map(|&b| (i32::from(b) - zero) as f32).collect();
        let image = (p.n, c, p.h * p.w);
        let x = nhwc(&planes, image);
        let signed: Vec<i8> = x.iter().map(|&b| (b ^ 0x80) as i8).collect();
        for zeros in [&[][..], &zeros] {
            let shifted = |i: usize| i32::from(w[i]) - zeros.get(i / (p.kh * p.kw)).copied().unwrap_or(0);
            let fw: Vec<f32> = (0..w.len()).map(|i| shifted(i) as f32).collect();
            let want = nhwc(&conv2d_reference(&p, &float, &fw, None), (p.n, c, oh * ow));
            for exec in execs() {
                let weights = depthwise_nhwc_pack(&exec, &p, &w, zeros).unwrap();
                let offsets: Vec<i32> = weights.column_sums().iter().map(|s| -zero * s).collect();
                let scales = vec![1.0; c];
                let e = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
                let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![0f32; want.len()]));
                depthwise_nhwc(&exec, &p, Rows::U8(gx.get()), zero, &weights, &e, Target::F32(y.get())).unwrap();
                assert_eq!(y.get(), want, "{p:?} {exec:?}");
                let mut gx = Guarded::new(&signed);
                let x = Rows::I8(gx.get());
                depthwise_nhwc(&exec, &p, x, zero - 128, &weights, &e, Target::F32(y.get())).unwrap();
                assert_eq!(y.get(), want, "{p:?} {exec:?} signed");
            }
        }
    }
}

#[test]
fn finishes_as_the_definition_on_every_tier() {
    let mut random = Random::new(33);
    let p = params()[4];
    let ([oh, ow], c) = (p.output().unwrap(), p.c);
    let planes: Vec<u8> = (0..p.n * c * p.h * p.w).map(|_| random.next() as u8).collect();
    let w: Vec<u8> = (0..p.weight_len().unwrap()).map(|_| random.next() as u8).collect();
    let float: Vec<f32> = planes.iter().map(|&b| f32::from(b)).collect();
    let fw: Vec<f32> = w.iter().map(|&b| f32::from(b)).collect();
    let sums = nhwc(&conv2d_reference(&p, &float, &fw, None), (p.n, c, oh * ow));
    let x = nhwc(&planes, (p.n, c, p.h * p.w));
    let scales: Vec<f32> = (0..c).map(|_| 1e-4 * (2.0 + random.unit())).collect();
    let offsets: Vec<i32> = (0..c).map(|_| -(random.below(100_000) as i32)).collect();
    let (bias, residual) =
        (random.vec(c), random.vec(sums.len()).iter().map(|v| (v * 127.0) as i8).collect::<Vec<_>>());
    for (activation, add) in [(Activation::Relu, false), (Activation::HardSwish, true), (Activation::None, true)] {
        let value = |i: usize| {
            let v = (sums[i] as i32 + offsets[i % c]) as f32 * scales[i % c] + bias[i % c];
            let v = if add { f32::from(residual[i]).mul_add(0.01, v) } else { v };
            match activation {
                Activation::Relu => v.max(0.0),
                Activation::HardSwish => v * (v * (1.0 / 6.0) + 0.5).clamp(0.0, 1.0),
                _ => v,
            }
        };
        let round = |v: f32| ((v * 20.0).round_ties_even().clamp(-123.0, 132.0) as i32 - 5) as i8;
        let want: Vec<i8> = (0..sums.len()).map(|i| round(value(i))).collect();
        for exec in execs() {
            let weights = depthwise_nhwc_pack(&exec, &p, &w, &[]).unwrap();
            let residual = if add { Residual::I8(&residual, 0.01, 0) } else { Residual::None };
            let e = Epilogue {
                offsets: &offsets,
                scales: &scales,
                bias: &bias,
                residual,
                activation,
                ..Epilogue::default()
            };
            let mut y = Guarded::new(&vec![0i8; want.len()]);
            depthwise_nhwc(&exec, &p, Rows::U8(&x), 0, &weights, &e, Target::I8(y.get(), 20.0, -5)).unwrap();
            assert_eq!(y.get(), want, "{activation:?} {exec:?}");
        }
    }
}

#[test]
fn scales_and_shifts_channels_behind_the_activation_on_every_tier() {
    let mut random = Random::new(37);
    for p in params() {
        let ([oh, ow], c) = (p.output().unwrap(), p.c);
        let x: Vec<u8> = (0..p.n * p.h * p.w * c).map(|_| random.next() as u8).collect();
        let w: Vec<i8> = (0..p.weight_len().unwrap()).map(|_| random.next() as i8).collect();
        let scales: Vec<f32> = (0..c).map(|_| 1e-4 * (2.0 + random.unit())).collect();
        let offsets: Vec<i32> = (0..c).map(|i| i as i32 * 37 - 900).collect();
        let factors: Vec<f32> = (0..c).map(|i| 0.4 * (i % 5) as f32 - 0.7).collect();
        let shifts: Vec<f32> = (0..c).map(|i| 0.3 * (i % 7) as f32 - 0.9).collect();
        for activation in [Activation::None, Activation::Relu, Activation::HardSwish] {
            for exec in execs() {
                let weights = depthwise_nhwc_pack(&exec, &p, &w, &[]).unwrap();
                let plain = Epilogue { offsets: &offsets, scales: &scales, activation, ..Epilogue::default() };
                let mut floats = vec![0f32; p.n * oh * ow * c];
                depthwise_nhwc(&exec, &p, Rows::U8(&x), 77, &weights, &plain, Target::F32(&mut floats)).unwrap();
                for (factors, shifts) in [(&factors[..], &shifts[..]), (&[], &shifts)] {
                    let e = Epilogue { factors, shifts, ..plain };
                    let mut y = Guarded::new(&vec![0u8; floats.len()]);
                    depthwise_nhwc(&exec, &p, Rows::U8(&x), 77, &weights, &e, Target::U8(y.get(), 9.0, 31)).unwrap();
                    let code = |(i, v): (usize, &f32)| {
                        let v = (v * factors.get(i % c).unwrap_or(&1.0) + shifts[i % c]) * 9.0;
                        (v.round_ties_even() as i32 + 31).clamp(0, 255) as u8
                    };
                    let want: Vec<u8> = floats.iter().enumerate().map(code).collect();
                    assert_eq!(y.get(), want, "{p:?} {activation:?} {exec:?}");
                }
            }
        }
    }
}

#[test]
fn rounds_square_windows_alike_on_every_tier() {
    let mut random = Random::new(34);
    let base = params()[0];
    let shapes = [1, 15, 16, 24, 48, 64, 96, 144].into_iter().flat_map(|c| {
        [([1, 1], [1; 4]), ([2, 2], [1; 4]), ([2, 1], [0, 2, 1, 0]), ([1, 2], [0, 0, 1, 2]), ([1, 1], [3, 4, 3, 5])]
            .map(|(strides, pads)| Conv2dParams { n: 2, c, oc: c, groups: c, strides, pads, ..base })
    });
    let shapes =
        shapes.flat_map(|p| [3, 5, 7].map(|k| Conv2dParams { kh: k, kw: k, h: p.h.max(7), w: p.w.max(7), ..p }));
    for p in shapes {
        let ([oh, ow], c) = (p.output().unwrap(), p.c);
        let x: Vec<u8> = (0..p.n * p.h * p.w * c).map(|_| random.next() as u8).collect();
        let signed: Vec<i8> = x.iter().map(|&b| (b ^ 0x80) as i8).collect();
        let w: Vec<i8> = (0..p.weight_len().unwrap()).map(|_| random.next() as i8).collect();
        let scales: Vec<f32> = (0..c).map(|_| 1e-3 * (2.0 + random.unit())).collect();
        // Weights without a scale: NaN must be alike too.
        let scales: Vec<f32> = scales.iter().enumerate().map(|(i, &s)| if i == 13 { f32::NAN } else { s }).collect();
        let (offsets, bias) = ((0..c).map(|i| i as i32 * 37 - 9000).collect::<Vec<_>>(), random.vec(c));
        for (activation, bias) in
            [(Activation::None, &bias[..]), (Activation::Relu, &[]), (Activation::Clip { lo: 0.0, hi: 6.0 }, &bias[..])]
        {
            let e = Epilogue { offsets: &offsets, scales: &scales, bias, activation, ..Epilogue::default() };
            let (mut want, mut first) = (vec![0f32; p.n * oh * ow * c], None);
            for exec in execs() {
                let weights = depthwise_nhwc_pack(&exec, &p, &w, &[]).unwrap();
                if first.is_none() {
                    depthwise_nhwc(&exec, &p, Rows::U8(&x), 77, &weights, &e, Target::F32(&mut want)).unwrap();
                    first = Some(());
                }
                let code = |v: f32, zero: i32, low: i32| match (v * 7.0).round_ties_even() {
                    v if v.is_nan() => low,
                    v => (v as i32).saturating_add(zero).clamp(low, low + 255),
                };
                let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![0u8; want.len()]));
                let target = Target::U8(y.get(), 7.0, 31);
                depthwise_nhwc(&exec, &p, Rows::U8(gx.get()), 77, &weights, &e, target).unwrap();
                let codes: Vec<u8> = want.iter().map(|&v| code(v, 31, 0) as u8).collect();
                assert_eq!(y.get(), codes, "{p:?} {activation:?} {exec:?}");
                let (mut gx, mut y) = (Guarded::new(&signed), Guarded::new(&vec![0i8; want.len()]));
                let target = Target::I8(y.get(), 7.0, -128);
                depthwise_nhwc(&exec, &p, Rows::I8(gx.get()), 77 - 128, &weights, &e, target).unwrap();
                let codes: Vec<i8> = want.iter().map(|&v| code(v, -128, -128) as i8).collect();
                assert_eq!(y.get(), codes, "{p:?} {activation:?} {exec:?} signed");
            }
        }
    }
}

#[test]
fn convolves_floats_alike_on_every_tier() {
    let mut random = Random::new(35);
    for p in params() {
        let ([oh, ow], c) = (p.output().unwrap(), p.c);
        let (planes, w) = (random.vec(p.n * c * p.h * p.w), random.vec(p.weight_len().unwrap()));
        let want = nhwc(&conv2d_reference(&p, &planes, &w, None), (p.n, c, oh * ow));
        let x = nhwc(&planes, (p.n, c, p.h * p.w));
        let mut first: Option<Vec<f32>> = None;
        for exec in execs() {
            let weights = depthwise_nhwc_pack(&exec, &p, &w, &[]).unwrap();
            let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![0f32; want.len()]));
            let e = Epilogue::default();
            depthwise_nhwc(&exec, &p, Rows::F32(gx.get()), 0, &weights, &e, Target::F32(y.get())).unwrap();
            // The order of up to 49 additions.
            assert_close(y.get(), &want, 1e-5, "depthwise");
            let y = y.get().to_vec();
            assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{p:?} {exec:?}");
        }
    }
}

#[test]
fn convolves_bfloat16_as_floats_that_are_rounded() {
    let rounded = |x: &[f32]| -> Vec<half::bf16> { x.iter().copied().map(half::bf16::from_f32).collect() };
    let mut random = Random::new(36);
    for p in params() {
        let [oh, ow] = p.output().unwrap();
        let (w, bias) = (random.vec(p.weight_len().unwrap()), random.vec(p.c));
        let half = rounded(&random.vec(p.n * p.h * p.w * p.c));
        let x: Vec<f32> = half.iter().map(|v| v.to_f32()).collect();
        for (exec, activation) in execs().iter().flat_map(|e| [(e, Activation::Relu), (e, Activation::HardSwish)]) {
            let weights = depthwise_nhwc_pack(exec, &p, &w, &[]).unwrap();
            let e = Epilogue { bias: &bias, activation, ..Epilogue::default() };
            let mut want = vec![0f32; p.n * oh * ow * p.c];
            depthwise_nhwc(exec, &p, Rows::F32(&x), 0, &weights, &e, Target::F32(&mut want)).unwrap();
            let (mut x, mut y) = (Guarded::new(&half), Guarded::new(&rounded(&vec![9.0; want.len()])));
            depthwise_nhwc(exec, &p, Rows::Bf16(x.get()), 0, &weights, &e, Target::Bf16(y.get())).unwrap();
            assert_eq!(y.get(), rounded(&want), "{p:?} {activation:?} {exec:?}");
        }
    }
}

#[test]
fn refuses_other_shapes_and_types() {
    let exec = &execs()[0];
    let p = params()[0];
    let (w, x) = (vec![1i8; 45], vec![1u8; 9 * 11 * 5]);
    assert!(depthwise_nhwc_pack(exec, &p, &w[1..], &[]).is_err());
    assert!(depthwise_nhwc_pack(exec, &p, &w, &[0; 4]).is_err());
    assert!(depthwise_nhwc_pack(exec, &p, &w, &[i32::MAX; 5]).is_err());
    assert!(depthwise_nhwc_pack(exec, &Conv2dParams { groups: 1, ..p }, &w, &[]).is_err());
    let weights = depthwise_nhwc_pack(exec, &p, &w, &[]).unwrap();
    let (offsets, scales) = ([0; 5], [1.0; 5]);
    let e = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
    let mut y = vec![0f32; x.len()];
    let mut run = |p: &Conv2dParams, x: Rows<'_>, e: &Epilogue<'_>| {
        depthwise_nhwc(exec, p, x, 0, &weights, e, Target::F32(&mut y))
    };
    assert!(run(&p, Rows::U8(&x), &e).is_ok());
    assert!(run(&p, Rows::U8(&x[1..]), &e).is_err());
    let wide = Conv2dParams { pads: [1, 1, 1, 1 << 40], strides: [1, 1 << 39], ..p };
    assert!(run(&wide, Rows::U8(&x), &e).is_err());
    assert!(run(&p, Rows::F32(&[0.0; 495]), &Epilogue::default()).is_err());
    assert!(run(&p, Rows::U8(&x), &Epilogue { scales: &scales[1..], ..e }).is_err());
    assert!(run(&Conv2dParams { dilations: [2, 1], pads: [2, 1, 2, 1], ..p }, Rows::U8(&x), &e).is_err());
}
