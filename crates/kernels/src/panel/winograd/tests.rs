use super::*;
use crate::activation::Activation;
use crate::conv::conv2d_reference;
use crate::isa::Tier;
use crate::panel::epilogue::Residual;
use crate::testing::{Guarded, Random, assert_same_everywhere, bits, execs};

/// Images around the tiles of both forms, with channels around the vectors and panels of all tiers.
fn params() -> Vec<Conv2dParams> {
    let base = Conv2dParams {
        n: 1,
        c: 16,
        h: 9,
        w: 11,
        oc: 16,
        kh: 3,
        kw: 3,
        strides: [1; 2],
        pads: [1; 4],
        dilations: [1; 2],
        groups: 1,
    };
    vec![
        base,
        Conv2dParams { n: 3, c: 19, oc: 37, h: 14, w: 8, ..base },
        Conv2dParams { h: 1, w: 1, c: 33, ..base },
        Conv2dParams { pads: [0, 2, 1, 0], c: 5, oc: 3, h: 12, w: 5, ..base },
        Conv2dParams { pads: [4, 3, 5, 6], h: 2, w: 3, ..base },
        Conv2dParams { pads: [0; 4], h: 40, w: 50, c: 17, oc: 70, ..base },
        // Convolutions that lie in each other: of as many pixels, of others, of one or none each, beyond the image.
        Conv2dParams { dilations: [2; 2], pads: [2; 4], h: 16, w: 16, c: 33, oc: 35, ..base },
        Conv2dParams { n: 2, dilations: [4, 3], pads: [4, 2, 3, 5], h: 13, w: 17, ..base },
        Conv2dParams { dilations: [12, 1], pads: [12, 1, 12, 1], c: 5, ..base },
        Conv2dParams { dilations: [5, 12], pads: [3, 12, 8, 13], h: 4, w: 3, ..base },
        // More than one chunk of tiles.
        Conv2dParams { h: 6, w: 120, c: 300, oc: 16, ..base },
    ]
}

fn nhwc(x: &[f32], (n, c, pixels): (usize, usize, usize)) -> Vec<f32> {
    let at = |i: usize| (i / (pixels * c), i / c % pixels, i % c);
    (0..n * c * pixels).map(at).map(|(n, p, ch)| x[(n * c + ch) * pixels + p]).collect()
}

#[test]
fn convolves_nearly_as_plain_sums() {
    let mut r = Random::new(5);
    for p in params() {
        let [oh, ow] = p.output().unwrap();
        let (x, w, bias) = (r.vec(p.n * p.c * p.h * p.w), r.vec(p.weight_len().unwrap()), r.vec(p.oc));
        let want = nhwc(&conv2d_reference(&p, &x, &w, Some(&bias)), (p.n, p.oc, oh * ow));
        let x = nhwc(&x, (p.n, p.c, p.h * p.w));
        let size = (want.iter().map(|v| v * v).sum::<f32>() / want.len() as f32).sqrt();
        for (exec, side) in execs().iter().flat_map(|exec| [(exec, 2), (exec, 4)]) {
            let weights = WinogradWeights::pack(exec, &p, side, &w).unwrap();
            let e = Epilogue { bias: &bias, ..Epilogue::default() };
            let mut y = vec![9f32; want.len()];
            winograd_nhwc(exec, &p, Pixels::Parts(&[Rows::F32(&x)]), 0, &weights, &e, Target::F32(&mut y)).unwrap();
            let worst = y.iter().zip(&want).map(|(y, want)| (y - want).abs()).fold(0f32, f32::max);
            assert!(worst <= 2e-5 * size, "{p:?} side {side} {exec:?}: {worst} of {size}");
        }
    }
}

#[test]
fn gives_the_same_bits_everywhere_in_parts_and_in_batches() {
    let mut r = Random::new(6);
    for (p, side) in params().into_iter().flat_map(|p| [(p, 2), (p, 4)]) {
        let [oh, ow] = p.output().unwrap();
        let (pixels, len) = (p.n * p.h * p.w, p.n * oh * ow * p.oc);
        let widths = [p.c / 3, p.c - p.c / 3];
        let parts = widths.map(|c| r.vec(pixels * c));
        let joined: Vec<f32> = (0..pixels)
            .flat_map(|i| parts.iter().zip(widths).flat_map(move |(x, c)| x[i * c..(i + 1) * c].to_vec()))
            .collect();
        let (w, bias, added) = (r.vec(p.weight_len().unwrap()), r.vec(p.oc), r.vec(len));
        for in_parts in [false, true] {
            assert_same_everywhere(&format!("{p:?} side {side} in parts {in_parts}"), &|exec, edge| {
                let [mut x, mut first, mut second] = [&joined, &parts[0], &parts[1]].map(|v| Guarded::at(edge, v));
                let [mut bias, mut added] = [&bias, &added].map(|v| Guarded::at(edge, v));
                let mut y = Guarded::at(edge, &vec![9f32; len]);
                let whole = [Rows::F32(x.get())];
                let apart = [Rows::F32(first.get()), Rows::F32(second.get())];
                let all: &[Rows<'_>] = if in_parts { &apart } else { &whole };
                let weights = WinogradWeights::pack(exec, &p, side, &w).unwrap();
                let residual = Residual::F32(added.get());
                let e = Epilogue { bias: bias.get(), residual, activation: Activation::Relu, ..Epilogue::default() };
                winograd_nhwc(exec, &p, Pixels::Parts(all), 0, &weights, &e, Target::F32(y.get())).unwrap();
                bits(y.get())
            });
        }
        let one = Conv2dParams { n: 1, ..p };
        let images = joined.chunks_exact(p.h * p.w * p.c).flat_map(|x| plain(&one, x, side, &w));
        assert_eq!(plain(&p, &joined, side, &w), images.collect::<Vec<f32>>(), "{p:?} side {side}");
    }
}

fn plain(p: &Conv2dParams, x: &[f32], side: usize, w: &[f32]) -> Vec<f32> {
    let exec = &execs()[0];
    let weights = WinogradWeights::pack(exec, p, side, w).unwrap();
    let mut y = vec![0f32; p.n * p.oc * p.output().unwrap().iter().product::<usize>()];
    winograd_nhwc(exec, p, Pixels::Parts(&[Rows::F32(x)]), 0, &weights, &Epilogue::default(), Target::F32(&mut y))
        .unwrap();
    y
}

#[test]
fn gives_the_integers_of_plain_sums_on_every_tier() {
    let mut r = Random::new(7);
    for p in params() {
        let [oh, ow] = p.output().unwrap();
        let (pixels, len) = (p.n * p.h * p.w, p.n * oh * ow * p.oc);
        let widths = [p.c / 3, p.c - p.c / 3];
        // Values of all sizes, and the extremes that the transforms must hold.
        for extreme in [false, true] {
            let mut byte = |low: u8| if extreme { [low, !low][r.below(2)] } else { r.next() as u8 };
            let parts = widths.map(|c| (0..pixels * c).map(|_| byte(0)).collect::<Vec<u8>>());
            let w: Vec<i8> = (0..p.weight_len().unwrap()).map(|_| byte(0x80) as i8).collect();
            let joined: Vec<u8> = (0..pixels)
                .flat_map(|i| parts.iter().zip(widths).flat_map(move |(x, c)| x[i * c..(i + 1) * c].to_vec()))
                .collect();
            let signed = |x: &[u8]| x.iter().map(|&b| b as i8).collect::<Vec<i8>>();
            let (signed, signed_parts) = (signed(&joined), parts.each_ref().map(|x| signed(x)));
            for exec in execs() {
                let plain = super::super::conv2d_nhwc_pack(&exec, &p, &w).unwrap();
                let weights = WinogradWeights::pack_ints(&exec, &p, &w).unwrap();
                assert_eq!(weights.column_sums(), plain.column_sums());
                let scales = vec![1.0; p.oc];
                let e = Epilogue { offsets: plain.column_sums(), scales: &scales, ..Epilogue::default() };
                let all = [
                    (Rows::U8(&joined), parts.each_ref().map(|x| Rows::U8(x)), 131),
                    (Rows::I8(&signed), signed_parts.each_ref().map(|x| Rows::I8(x)), -77),
                ];
                for (whole, apart, pad) in all {
                    let (mut want, mut y) = (vec![0i32; len], vec![1i32; len]);
                    super::super::conv2d_nhwc(&exec, &p, whole, pad, &plain, &e, Target::I32(&mut want)).unwrap();
                    for image in [&[whole][..], &apart[..]] {
                        winograd_nhwc(&exec, &p, Pixels::Parts(image), pad, &weights, &e, Target::I32(&mut y)).unwrap();
                        assert_eq!(y, want, "{p:?} {exec:?} pad {pad} in {} parts", image.len());
                    }
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn reads_and_writes_no_integers_beside_the_operands() {
    let mut r = Random::new(8);
    for p in params() {
        let [oh, ow] = p.output().unwrap();
        let x: Vec<u8> = (0..p.n * p.h * p.w * p.c).map(|_| r.next() as u8).collect();
        let w: Vec<i8> = (0..p.weight_len().unwrap()).map(|_| r.next() as i8).collect();
        assert_same_everywhere(&format!("{p:?}"), &|exec, edge| {
            let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![9u8; p.n * oh * ow * p.oc]));
            let weights = WinogradWeights::pack_ints(exec, &p, &w).unwrap();
            let scales = vec![2e-4; p.oc];
            let e = Epilogue { offsets: weights.column_sums(), scales: &scales, ..Epilogue::default() };
            winograd_nhwc(exec, &p, Pixels::Parts(&[Rows::U8(x.get())]), 3, &weights, &e, Target::U8(y.get(), 1.0, 90))
                .unwrap();
            y.get().iter().map(|&code| u32::from(code)).collect()
        });
    }
}

#[test]
fn is_taken_where_it_pays_whatever_the_batch() {
    let base = Conv2dParams { c: 64, oc: 64, h: 56, w: 56, ..params()[0] };
    let exec = Exec::new(Isa::detect(), 1);
    let side = |p: Conv2dParams| {
        assert_eq!(winograd_side(&exec, &p), winograd_side(&exec, &Conv2dParams { n: 7, ..p }));
        winograd_side(&exec, &p)
    };
    assert_eq!(side(base), Some(4));
    assert_eq!(side(Conv2dParams { c: 256, oc: 256, h: 14, w: 14, ..base }), Some(2));
    // Large weights, which are read for few tiles.
    assert_eq!(side(Conv2dParams { c: 512, oc: 512, h: 7, w: 7, ..base }), None);
    // Dilation leaves fewer results to each tile.
    let dilated = |d: usize, p: Conv2dParams| Conv2dParams { dilations: [d; 2], pads: [d; 4], ..p };
    assert_eq!(side(dilated(2, base)), Some(4));
    assert_eq!(side(dilated(4, Conv2dParams { c: 512, oc: 512, h: 28, w: 28, ..base })), Some(2));
    assert_eq!(side(dilated(12, Conv2dParams { c: 512, oc: 512, h: 28, w: 28, ..base })), None);
    // Weights that would take four times their memory.
    assert_eq!(side(Conv2dParams { c: 1024, oc: 1024, h: 64, w: 64, ..base }), Some(2));
    let others = [
        Conv2dParams { strides: [2, 1], ..base },
        Conv2dParams { groups: 2, ..base },
        Conv2dParams { kw: 1, ..base },
        Conv2dParams { c: 3, ..base },
        Conv2dParams { c: 1 << 20, ..base },
        Conv2dParams { h: 0, ..base },
    ];
    assert!(others.into_iter().all(|p| winograd_side(&exec, &p).is_none()));
}

#[test]
fn gives_way_to_bfloat16_where_that_is_faster() {
    let base = Conv2dParams { c: 64, oc: 64, h: 56, w: 56, ..params()[0] };
    let deep = Conv2dParams { c: 256, oc: 256, h: 14, w: 14, ..base };
    let side = |isa: Isa, p: Conv2dParams| winograd_side(&Exec::new(isa, 1).with_bf16(true), &p);
    assert_eq!(side(Isa::emulated(), base), None);
    for isa in Isa::available().into_iter().filter(|isa| isa.tier() < Tier::Amx) {
        assert_eq!(side(isa, base), Some(4), "{isa}");
        assert_eq!(side(isa, deep), if isa.gains_by_bf16() { None } else { Some(2) }, "{isa}");
    }
}

#[test]
fn is_taken_for_integers_where_it_pays() {
    let base = Conv2dParams { c: 128, oc: 128, h: 256, w: 256, ..params()[0] };
    for isa in Isa::available().into_iter().filter(|isa| isa.tier() < Tier::Amx) {
        if matches!(isa.tier(), Tier::NeonDot | Tier::NeonI8mm) {
            assert!(!winograd_pays(isa, &base), "{isa}");
            continue;
        }
        assert!(winograd_pays(isa, &base), "{isa}");
        // As many products for one pixel as for nine.
        assert!(!winograd_pays(isa, &Conv2dParams { h: 1, w: 1, ..base }), "{isa}");
        assert!(!winograd_pays(isa, &Conv2dParams { strides: [1, 2], ..base }), "{isa}");
        let dots = matches!(isa.tier(), Tier::Vnni | Tier::AvxVnni);
        assert_eq!(winograd_pays(isa, &Conv2dParams { c: 32, oc: 32, ..base }), !dots, "{isa}");
    }
    assert!(!winograd_pays(Isa::emulated(), &base), "tiles multiply 8 bits");
}

#[test]
fn refuses_what_is_no_such_convolution() {
    let (exec, p) = (&execs()[0], params()[0]);
    let (w, x) = (vec![1f32; p.weight_len().unwrap()], vec![1f32; p.h * p.w * p.c]);
    assert!(WinogradWeights::pack(exec, &p, 3, &w).is_err());
    assert!(WinogradWeights::pack(exec, &p, 2, &w[1..]).is_err());
    assert!(WinogradWeights::pack(exec, &Conv2dParams { kh: 1, ..p }, 2, &w[..p.oc * p.c * 3]).is_err());
    let weights = WinogradWeights::pack(exec, &p, 2, &w).unwrap();
    let mut y = vec![0f32; p.h * p.w * p.oc];
    let mut run = |p: &Conv2dParams, x: Rows<'_>| {
        winograd_nhwc(exec, p, Pixels::Parts(&[x]), 0, &weights, &Epilogue::default(), Target::F32(&mut y)).is_ok()
    };
    assert!(run(&p, Rows::F32(&x)));
    assert!(!run(&p, Rows::F32(&x[1..])));
    assert!(!run(&p, Rows::U8(&vec![0; x.len()])));
    assert!(!run(&Conv2dParams { c: 8, oc: 32, h: 18, ..p }, Rows::F32(&x)));
    assert!(!run(&Conv2dParams { strides: [2; 2], ..p }, Rows::F32(&x)));
    let deep = Conv2dParams { c: MOST_CHANNELS + 1, oc: 1, ..p };
    assert!(WinogradWeights::pack_ints(exec, &deep, &vec![0; deep.weight_len().unwrap()]).is_err());
    assert!(!winograd_pays(exec.isa(), &Conv2dParams { oc: 64, h: 99, w: 99, ..deep }));
}
