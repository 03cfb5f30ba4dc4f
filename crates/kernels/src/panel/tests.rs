use super::*;
use crate::activation::Activation;
use crate::conv::Conv2dParams;
use crate::testing::{Guarded, Random, assert_close, execs};

pub(super) fn bytes(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.next() as u8).collect()
}

/// The product in plain loops, with everything that an epilogue can do.
struct Case {
    x: Vec<u8>,
    w: Vec<i8>,
    offsets: Vec<i32>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
    residual: Vec<u8>,
}

#[test]
fn multiplies_integers_as_plain_loops_on_every_tier() {
    let mut random = Random::new(7);
    for (m, k, n) in [(1, 4, 1), (3, 5, 7), (14, 64, 32), (15, 66, 33), (29, 130, 100), (60, 2048, 40), (197, 48, 65)] {
        let case = Case {
            x: bytes(&mut random, m * k),
            w: bytes(&mut random, k * n).into_iter().map(|b| b as i8).collect(),
            offsets: (0..n).map(|_| random.below(20_000) as i32 - 10_000).collect(),
            scales: (0..n).map(|_| 0.001 * (1.0 + random.unit() * 0.5)).collect(),
            zeros: (0..n).map(|_| random.below(7) as i32 - 3).collect(),
            residual: bytes(&mut random, m * n),
        };
        for signed in [false, true] {
            let want = reference(&case, (m, k, n), signed);
            for exec in execs() {
                let weights = panel_gemm_pack(&exec, (k, n), &case.w, false).unwrap();
                let x: Vec<i8> = case.x.iter().map(|&b| b as i8).collect();
                let rows = if signed { Rows::I8(&x) } else { Rows::U8(&case.x) };
                let epilogue = Epilogue {
                    offsets: &case.offsets,
                    scales: &case.scales,
                    weight_zeros: &case.zeros,
                    residual: Residual::U8(&case.residual, 0.25, 100),
                    activation: Activation::Relu,
                    ..Epilogue::default()
                };
                let mut y = vec![0u8; m * n];
                panel_gemm(&exec, rows, (m, k, k), &weights, &epilogue, Target::U8(&mut y, 0.5, 3)).unwrap();
                assert_eq!(y, want, "{m}×{k}×{n} {} signed {signed}", weights.kernel().name);
            }
        }
    }
}

fn reference(c: &Case, (m, k, n): (usize, usize, usize), signed: bool) -> Vec<u8> {
    let x = |i: usize| if signed { i32::from(c.x[i] as i8) + 128 } else { i32::from(c.x[i]) };
    let mut y = Vec::new();
    for i in 0..m {
        for j in 0..n {
            let dot: i32 = (0..k).map(|q| x(i * k + q) * (i32::from(c.w[q * n + j]) - c.zeros[j])).sum();
            let r = (f32::from(c.residual[i * n + j]) - 100.0).mul_add(0.25, (dot + c.offsets[j]) as f32 * c.scales[j]);
            y.push(((r.max(0.0) * 0.5).round_ties_even() as i32 + 3).clamp(0, 255) as u8);
        }
    }
    y
}

pub(super) fn params() -> Vec<Conv2dParams> {
    let base = Conv2dParams {
        n: 1,
        c: 3,
        h: 9,
        w: 11,
        oc: 5,
        kh: 3,
        kw: 3,
        strides: [1, 1],
        pads: [1, 1, 1, 1],
        dilations: [1, 1],
        groups: 1,
    };
    vec![
        base,
        Conv2dParams { kh: 1, kw: 1, pads: [0; 4], c: 8, oc: 33, ..base },
        Conv2dParams { kh: 1, kw: 1, pads: [0; 4], strides: [2, 2], c: 6, n: 2, ..base },
        Conv2dParams { kh: 7, kw: 7, pads: [3, 3, 2, 2], strides: [2, 2], h: 30, w: 31, oc: 64, ..base },
        Conv2dParams { c: 16, oc: 40, dilations: [2, 2], pads: [2, 2, 2, 2], ..base },
        Conv2dParams { c: 12, oc: 9, groups: 3, n: 2, ..base },
        Conv2dParams { c: 8, oc: 16, pads: [0; 4], ..base },
        Conv2dParams { c: 64, oc: 48, h: 16, w: 17, pads: [0, 2, 1, 0], strides: [1, 2], ..base },
        Conv2dParams { c: 2048, oc: 4, h: 3, w: 6, ..base },
        Conv2dParams { h: 1, kh: 1, pads: [0, 1, 0, 1], c: 4, w: 40, oc: 20, ..base },
        // Windows that reach far beyond the image: in place, of pixels that are spread, and of groups with odd panels.
        Conv2dParams { n: 2, c: 20, oc: 45, h: 14, w: 13, dilations: [12, 11], pads: [12, 11, 12, 11], ..base },
        Conv2dParams { c: 512, oc: 34, h: 6, w: 16, dilations: [4, 12], pads: [4, 12, 4, 12], ..base },
        Conv2dParams { n: 2, c: 48, oc: 70, groups: 2, dilations: [7, 6], pads: [5, 9, 8, 3], strides: [2, 1], ..base },
        Conv2dParams { c: 17, oc: 33, kw: 1, dilations: [6, 1], pads: [9, 0, 4, 0], ..base },
    ]
}

#[test]
fn convolves_images_in_parts_as_the_joined_image_on_every_tier() {
    let mut random = Random::new(8);
    for p in params().into_iter().filter(|p| p.groups == 1) {
        let [oh, ow] = p.output().unwrap();
        let (pixels, zero) = (p.n * p.h * p.w, 77);
        let w: Vec<i8> = bytes(&mut random, p.weight_len().unwrap()).into_iter().map(|b| b as i8).collect();
        let fw: Vec<f32> = w.iter().map(|&b| f32::from(b)).collect();
        // Parts of odd channels and of whole words.
        let first = [1, p.c / 2, p.c / 4 * 4].map(|c| c.clamp(1, p.c));
        for widths in first.map(|c| [c, (p.c - c) / 3, p.c - c - (p.c - c) / 3]) {
            let parts = widths.map(|c| bytes(&mut random, pixels * c));
            let joined: Vec<u8> = (0..pixels)
                .flat_map(|i| parts.iter().zip(widths).flat_map(move |(x, c)| x[i * c..(i + 1) * c].to_vec()))
                .collect();
            let floats = |x: &[u8]| x.iter().map(|&b| f32::from(b)).collect::<Vec<f32>>();
            let (whole, apart) = (floats(&joined), parts.each_ref().map(|x| floats(x)));
            let mut guarded = parts.each_ref().map(|x| Guarded::new(x));
            let guarded = guarded.each_mut().map(|x| &*x.get());
            for exec in execs() {
                let weights = conv2d_nhwc_pack(&exec, &p, &w).unwrap();
                let scales = vec![1.0; p.oc];
                let epilogue = Epilogue { offsets: weights.column_sums(), scales: &scales, ..Epilogue::default() };
                let (mut want, mut y) = (vec![0i32; p.n * oh * ow * p.oc], vec![1i32; p.n * oh * ow * p.oc]);
                let signed = |x: &[u8]| x.iter().map(|&b| b as i8).collect::<Vec<i8>>();
                let signed_parts = parts.each_ref().map(|x| signed(x));
                for (x, all) in [
                    (Rows::U8(&joined), guarded.map(Rows::U8)),
                    (Rows::I8(&signed(&joined)), signed_parts.each_ref().map(|x| Rows::I8(x))),
                ] {
                    conv2d_nhwc(&exec, &p, x, zero, &weights, &epilogue, Target::I32(&mut want)).unwrap();
                    conv2d_nhwc_pixels(&exec, &p, Pixels::Parts(&all), zero, &weights, &epilogue, Target::I32(&mut y))
                        .unwrap();
                    assert_eq!(y, want, "{p:?} {widths:?} {}", weights.kernel().name);
                }
                let weights = conv2d_nhwc_pack(&exec, &p, &fw).unwrap();
                let (mut want, mut y) = (vec![0f32; want.len()], vec![1f32; y.len()]);
                let plain = Epilogue::default();
                conv2d_nhwc(&exec, &p, Rows::F32(&whole), 0, &weights, &plain, Target::F32(&mut want)).unwrap();
                let all = apart.each_ref().map(|x| Rows::F32(x));
                conv2d_nhwc_pixels(&exec, &p, Pixels::Parts(&all), 0, &weights, &plain, Target::F32(&mut y)).unwrap();
                assert_close(&y, &want, 1e-6, weights.kernel().name);
            }
        }
    }
}

#[test]
fn refuses_parts_that_are_no_image() {
    let p = Conv2dParams { c: 3, ..params()[0] };
    let (exec, pixels) = (&execs()[0], p.n * p.h * p.w);
    let weights = conv2d_nhwc_pack(exec, &p, &vec![1i8; p.weight_len().unwrap()]).unwrap();
    let (x, scales) = (vec![0u8; 3 * pixels], vec![1.0; p.oc]);
    let epilogue = Epilogue { offsets: weights.column_sums(), scales: &scales, ..Epilogue::default() };
    let mut y = vec![0i32; p.n * p.oc * p.output().unwrap().iter().product::<usize>()];
    let mut run = |p: &Conv2dParams, all: &[Rows<'_>]| {
        conv2d_nhwc_pixels(exec, p, Pixels::Parts(all), 0, &weights, &epilogue, Target::I32(&mut y))
    };
    assert!(run(&p, &[Rows::U8(&x[..pixels]), Rows::U8(&x[pixels..])]).is_ok());
    assert!(run(&p, &[]).is_err());
    assert!(run(&p, &[Rows::U8(&x[..pixels]), Rows::U8(&x[..pixels])]).is_err());
    assert!(run(&p, &[Rows::U8(&x[1..pixels]), Rows::U8(&x[pixels..])]).is_err());
    assert!(run(&p, &[Rows::U8(&x[..pixels]), Rows::I8(&vec![0; 2 * pixels])]).is_err());
}

/// NCHW to NHWC.
fn nhwc<T: Copy>(x: &[T], (n, c, pixels): (usize, usize, usize)) -> Vec<T> {
    let at = |i: usize| (i / (pixels * c), i / c % pixels, i % c);
    (0..n * c * pixels).map(at).map(|(n, p, ch)| x[(n * c + ch) * pixels + p]).collect()
}

#[test]
fn convolves_as_the_reference_on_every_tier() {
    let mut random = Random::new(3);
    for p in params() {
        let [oh, ow] = p.output().unwrap();
        let x = bytes(&mut random, p.n * p.c * p.h * p.w);
        let w: Vec<i8> = bytes(&mut random, p.weight_len().unwrap()).into_iter().map(|b| b as i8 / 2).collect();
        let zero = 31;
        // Floats hold these sums exactly.
        let float: Vec<f32> = x.iter().map(|&b| f32::from(b) - zero as f32).collect();
        let fw: Vec<f32> = w.iter().map(|&b| f32::from(b)).collect();
        let want = crate::conv::conv2d_reference(&p, &float, &fw, None);
        let want = nhwc(&want, (p.n, p.oc, oh * ow));
        let flat = nhwc(&x, (p.n, p.c, p.h * p.w));
        let signed: Vec<i8> = flat.iter().map(|&b| (b ^ 0x80) as i8).collect();
        let floats = nhwc(&float, (p.n, p.c, p.h * p.w));
        for exec in execs() {
            let weights = conv2d_nhwc_pack(&exec, &p, &w).unwrap();
            let offsets: Vec<i32> = weights.column_sums().iter().map(|s| -zero * s).collect();
            let scales = vec![1.0; p.oc];
            let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
            let mut y = vec![0f32; want.len()];
            conv2d_nhwc(&exec, &p, Rows::U8(&flat), zero, &weights, &epilogue, Target::F32(&mut y)).unwrap();
            assert_eq!(y, want, "{p:?} {}", weights.kernel().name);
            conv2d_nhwc(&exec, &p, Rows::I8(&signed), zero - 128, &weights, &epilogue, Target::F32(&mut y)).unwrap();
            assert_eq!(y, want, "{p:?} {} signed", weights.kernel().name);
            let whole: Vec<i32> = want.iter().map(|&x| x as i32).collect();
            let mut sums = vec![0i32; want.len()];
            conv2d_nhwc(&exec, &p, Rows::U8(&flat), zero, &weights, &epilogue, Target::I32(&mut sums)).unwrap();
            assert_eq!(sums, whole, "{p:?} {} sums", weights.kernel().name);
            conv2d_nhwc(&exec, &p, Rows::I8(&signed), zero - 128, &weights, &epilogue, Target::I32(&mut sums)).unwrap();
            assert_eq!(sums, whole, "{p:?} {} signed sums", weights.kernel().name);
            let weights = conv2d_nhwc_pack(&exec, &p, &fw).unwrap();
            conv2d_nhwc(&exec, &p, Rows::F32(&floats), 0, &weights, &Epilogue::default(), Target::F32(&mut y)).unwrap();
            let floats = Rows::F32(&floats);
            assert!(conv2d_nhwc(&exec, &p, floats, 0, &weights, &Epilogue::default(), Target::I32(&mut sums)).is_err());
            // Sums of products of small integers: exact but for the largest windows.
            assert_close(&y, &want, 1e-5, weights.kernel().name);
        }
    }
}

/// Elements that bfloat16 holds, and so do their products.
fn halves(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| (random.below(33) as f32 - 16.0) / 16.0).collect()
}

#[test]
fn multiplies_bfloat16_as_floats_on_every_tier() {
    let mut random = Random::new(41);
    for (m, k, n) in [(1, 1, 1), (3, 5, 7), (17, 64, 32), (33, 66, 33), (60, 2048, 40)] {
        let (x, w, bias) = (halves(&mut random, m * k), halves(&mut random, k * n), halves(&mut random, n));
        let dot = |i: usize| (0..k).map(|q| x[i / n * k + q] * w[q * n + i % n]).sum::<f32>();
        let want: Vec<f32> = (0..m * n).map(|i| dot(i) + bias[i % n]).collect();
        for exec in execs() {
            let weights = panel_gemm_pack_bf16(&exec, (k, n), &w, false).unwrap();
            let epilogue = Epilogue { bias: &bias, ..Epilogue::default() };
            let mut y = vec![0f32; m * n];
            panel_gemm(&exec, Rows::F32(&x), (m, k, k), &weights, &epilogue, Target::F32(&mut y)).unwrap();
            // Multiples of 1/256 below 2¹⁶: exact in any order.
            assert_eq!(y, want, "{m}×{k}×{n} {}", weights.kernel().name);
        }
    }
}

#[test]
fn rounds_rows_to_bfloat16_half_to_even() {
    for exec in execs() {
        let weights = panel_gemm_pack_bf16(&exec, (1, 1), &[1.0], false).unwrap();
        let x = [257.0 / 256.0, 259.0 / 256.0, -3.0, 1.004, f32::NAN];
        let mut y = [0f32; 5];
        let plain = Epilogue::default();
        panel_gemm(&exec, Rows::F32(&x), (5, 1, 1), &weights, &plain, Target::F32(&mut y)).unwrap();
        assert_eq!(y[..4], [1.0, 260.0 / 256.0, -3.0, 258.0 / 256.0]);
        assert!(y[4].is_nan());
    }
}

#[test]
fn convolves_bfloat16_as_the_reference_on_every_tier() {
    let mut random = Random::new(42);
    for p in params() {
        let [oh, ow] = p.output().unwrap();
        let x = halves(&mut random, p.n * p.c * p.h * p.w);
        let w = halves(&mut random, p.weight_len().unwrap());
        let want = nhwc(&crate::conv::conv2d_reference(&p, &x, &w, None), (p.n, p.oc, oh * ow));
        let x = nhwc(&x, (p.n, p.c, p.h * p.w));
        for exec in execs() {
            let weights = conv2d_nhwc_pack_bf16(&exec, &p, &w).unwrap();
            let mut y = vec![0f32; want.len()];
            let plain = Epilogue::default();
            // What lies around the windows is not a number: it must not count.
            crate::buffer::with_scratch(1 << 20, |scratch| scratch.fill(f32::NAN));
            conv2d_nhwc(&exec, &p, Rows::F32(&x), 0, &weights, &plain, Target::F32(&mut y)).unwrap();
            assert_eq!(y, want, "{p:?} {}", weights.kernel().name);
        }
    }
}

fn rounded(x: &[f32]) -> Vec<half::bf16> {
    x.iter().copied().map(half::bf16::from_f32).collect()
}

#[test]
fn reads_adds_and_makes_bfloat16_as_floats_that_are_rounded() {
    use crate::testing::Guarded;
    let mut random = Random::new(43);
    for p in params() {
        let [oh, ow] = p.output().unwrap();
        let results = p.n * oh * ow * p.oc;
        let (x, w) = (halves(&mut random, p.n * p.c * p.h * p.w), random.vec(p.weight_len().unwrap()));
        let (bias, residual) = (random.vec(p.oc), halves(&mut random, results));
        for (exec, activation) in execs().iter().flat_map(|e| [(e, Activation::Relu), (e, Activation::HardSwish)]) {
            let weights = conv2d_nhwc_pack_bf16(exec, &p, &w).unwrap();
            let e = Epilogue { bias: &bias, residual: Residual::F32(&residual), activation, ..Epilogue::default() };
            let mut want = vec![0f32; results];
            conv2d_nhwc(exec, &p, Rows::F32(&x), 0, &weights, &e, Target::F32(&mut want)).unwrap();
            let [mut x, mut residual] = [&x, &residual].map(|v| Guarded::new(&rounded(v)));
            let mut y = Guarded::new(&rounded(&vec![9.0; results]));
            crate::buffer::with_scratch(1 << 20, |scratch| scratch.fill(f32::NAN));
            let e = Epilogue { residual: Residual::Bf16(residual.get()), ..e };
            let rows = Rows::Bf16(x.get());
            conv2d_nhwc(exec, &p, rows, 0, &weights, &e, Target::Bf16(y.get())).unwrap();
            assert_eq!(y.get(), rounded(&want), "{p:?} {activation:?} {}", weights.kernel().name);
            let mut floats = vec![0f32; results];
            conv2d_nhwc(exec, &p, rows, 0, &weights, &e, Target::F32(&mut floats)).unwrap();
            assert_eq!(floats, want, "{p:?} {activation:?} {}", weights.kernel().name);
        }
    }
}

#[test]
fn refuses_bfloat16_where_nothing_is_rounded_to_it() {
    let exec = &execs()[0];
    let (floats, ints) = (
        panel_gemm_pack(exec, (2, 1), &[1f32; 2], false).unwrap(),
        panel_gemm_pack(exec, (2, 1), &[1i8; 2], false).unwrap(),
    );
    let (x, mut y) = (rounded(&[1.0, 2.0]), rounded(&[0.0]));
    let plain = Epilogue::default();
    let rows = Rows::Bf16(&x);
    assert!(panel_gemm(exec, rows, (1, 2, 2), &floats, &plain, Target::F32(&mut [0.0])).is_err());
    assert!(panel_gemm(exec, Rows::F32(&[1.0, 2.0]), (1, 2, 2), &floats, &plain, Target::Bf16(&mut y)).is_ok());
    let e = Epilogue { offsets: &[0], scales: &[1.0], ..plain };
    assert!(panel_gemm(exec, rows, (1, 2, 2), &ints, &e, Target::F32(&mut [0.0])).is_err());
    assert!(panel_gemm(exec, Rows::U8(&[1, 2]), (1, 2, 2), &ints, &e, Target::Bf16(&mut y)).is_err());
    let added = Epilogue { residual: Residual::Bf16(&x[..1]), ..e };
    assert!(panel_gemm(exec, Rows::U8(&[1, 2]), (1, 2, 2), &ints, &added, Target::F32(&mut [0.0])).is_err());
}

#[test]
fn refuses_weights_of_another_shape_and_short_slices() {
    let exec = &execs()[0];
    let weights = panel_gemm_pack(exec, (4, 3), &[1i8; 12], false).unwrap();
    let (offsets, scales) = ([0; 3], [1.0; 3]);
    let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
    let mut y = [0f32; 6];
    let x = [1u8; 8];
    let run = |x: &[u8], shape, e: &Epilogue<'_>, y: &mut [f32]| {
        panel_gemm(exec, Rows::U8(x), shape, &weights, e, Target::F32(y))
    };
    assert!(run(&x, (2, 4, 4), &epilogue, &mut y).is_ok());
    assert!(run(&x, (2, 5, 4), &epilogue, &mut y).is_err());
    assert!(run(&x[..7], (2, 4, 4), &epilogue, &mut y).is_err());
    assert!(run(&x, (2, 4, 4), &epilogue, &mut y[..5]).is_err());
    assert!(run(&x, (2, 4, 4), &Epilogue { scales: &scales[..2], ..epilogue }, &mut y).is_err());
    assert!(panel_gemm(exec, Rows::F32(&[0.0; 8]), (2, 4, 4), &weights, &epilogue, Target::F32(&mut y)).is_err());
}

#[test]
fn reads_no_byte_beyond_the_rows() {
    use crate::testing::Guarded;
    let mut random = Random::new(11);
    for (m, k, n) in [(1, 1, 1), (5, 3, 9), (14, 64, 32), (15, 61, 17)] {
        let mut x = Guarded::new(&bytes(&mut random, m * k));
        let w: Vec<i8> = bytes(&mut random, k * n).into_iter().map(|b| b as i8).collect();
        let mut y = Guarded::new(&vec![0u8; m * n]);
        let (offsets, scales) = (vec![0; n], vec![0.01; n]);
        let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
        for exec in execs() {
            let weights = panel_gemm_pack(&exec, (k, n), &w, false).unwrap();
            panel_gemm(&exec, Rows::U8(x.get()), (m, k, k), &weights, &epilogue, Target::U8(y.get(), 1.0, 0)).unwrap();
        }
    }
}

#[test]
fn multiplies_two_activations_as_plain_loops_on_every_tier() {
    use crate::gemm::BatchDim;
    let mut random = Random::new(23);
    let shapes = [(1, [5, 7, 3]), (2, [17, 64, 33]), (3, [1, 300, 40]), (4, [30, 16, 100])];
    // Single columns, which are rows of the transposed product where their sums are short.
    let columns = [(3, [70, 8, 1]), (2, [33, 61, 1]), (2, [9, 1, 1]), (1, [1, 5, 1]), (2, [15, 130, 1])];
    for (batches, [m, k, n]) in shapes.into_iter().chain(columns) {
        let (a, b) = (bytes(&mut random, batches * m * k), bytes(&mut random, batches * k * n));
        let (sa, sb): (Vec<i8>, Vec<i8>) = (a.iter().map(|&x| x as i8).collect(), b.iter().map(|&x| x as i8).collect());
        let batch = [BatchDim { len: batches, a: m * k, b: k * n, c: m * n, bias: 0 }];
        for (a_signed, b_signed, a_zero, b_zero) in
            [(false, false, 0, 128), (false, true, 7, 0), (true, false, -5, 131), (true, true, 9, -3)]
        {
            let left = |i: usize| i64::from(if a_signed { i32::from(sa[i]) } else { i32::from(a[i]) } - a_zero);
            let right = |i: usize| i64::from(if b_signed { i32::from(sb[i]) } else { i32::from(b[i]) } - b_zero);
            let at = |i: usize| (i / (m * n), i / n % m, i % n);
            let dot = |(q, r, c): (usize, usize, usize)| -> i64 {
                (0..k).map(|d| left((q * m + r) * k + d) * right((q * k + d) * n + c)).sum()
            };
            let sums: Vec<i32> = (0..batches * m * n).map(|i| dot(at(i)) as i32).collect();
            let want: Vec<f32> = sums.iter().map(|&s| s as f32 * 0.5).collect();
            for exec in execs() {
                let p = IntMatMul {
                    a: (if a_signed { Rows::I8(&sa) } else { Rows::U8(&a) }, a_zero),
                    b: (if b_signed { Rows::I8(&sb) } else { Rows::U8(&b) }, b_zero),
                    shape: [m, k, n],
                    batch: &batch,
                    scale: 0.5,
                    activation: Activation::None,
                };
                let mut y = vec![0f32; want.len()];
                panel_matmul(&exec, &p, Target::F32(&mut y)).unwrap();
                assert_eq!(y, want, "{batches}×{m}×{k}×{n} {a_signed} {b_signed} {}", exec.isa());
                let mut y = vec![0; sums.len()];
                panel_matmul(&exec, &p, Target::I32(&mut y)).unwrap();
                assert_eq!(y, sums, "{batches}×{m}×{k}×{n} {a_signed} {b_signed} {}", exec.isa());
            }
        }
    }
}

#[test]
fn refuses_padding_that_no_memory_holds() {
    let p = Conv2dParams {
        n: 1,
        c: 4,
        h: 1,
        w: 1,
        oc: 8,
        kh: 2,
        kw: 2,
        strides: [1, 1],
        pads: [0, 0, 1 << 20, 1 << 20],
        dilations: [1 << 20, 1 << 20],
        groups: 1,
    };
    assert!(!conv2d_nhwc_fits(&p, 1));
    let exec = &execs()[0];
    let weights = conv2d_nhwc_pack(exec, &p, &[1f32; 8 * 4 * 4]).unwrap();
    let mut y = [0f32; 8];
    let (x, target) = ([0f32; 4], Target::F32(&mut y));
    assert!(conv2d_nhwc(exec, &p, Rows::F32(&x), 0, &weights, &Epilogue::default(), target).is_err());
}
