//! Convolutions that read the planes of volumes, against images made of these planes and against the definition.

use super::tests::bytes;
use super::*;
use crate::conv::{Conv2dParams, Conv3dParams};
use crate::testing::{Guarded, Random, bits, execs};

fn volumes() -> Vec<Conv3dParams> {
    let slice = Conv2dParams {
        n: 1,
        c: 5,
        h: 7,
        w: 9,
        oc: 19,
        kh: 3,
        kw: 3,
        strides: [1; 2],
        pads: [1; 4],
        dilations: [1; 2],
        groups: 1,
    };
    let base = Conv3dParams { slice, d: 5, kd: 3, stride: 1, pads: [1; 2], dilation: 1 };
    let wide = Conv2dParams { n: 2, c: 16, oc: 33, ..slice };
    let point = Conv2dParams { kh: 1, kw: 1, pads: [0; 4], ..wide };
    vec![
        base,
        // Windows that Winograd's algorithm takes, dilated in depth, and with a plane that meets nothing.
        Conv3dParams { slice: wide, stride: 2, pads: [2, 0], ..base },
        Conv3dParams { slice: wide, d: 7, dilation: 2, pads: [1, 3], ..base },
        Conv3dParams { slice: wide, d: 1, pads: [1, 1], ..base },
        // Planes alone: as they stand, some of them, and with padding around them.
        Conv3dParams { slice: wide, kd: 1, pads: [0; 2], ..base },
        Conv3dParams { slice: wide, kd: 1, pads: [0; 2], stride: 2, ..base },
        Conv3dParams { slice: Conv2dParams { groups: 2, c: 12, oc: 8, ..slice }, kd: 1, pads: [1, 0], ..base },
        // Groups of several planes: single channels, some together; few channels; full groups; steps within the planes.
        Conv3dParams { slice: Conv2dParams { n: 2, groups: 18, c: 18, oc: 18, ..slice }, ..base },
        Conv3dParams { slice: Conv2dParams { groups: 3, c: 12, oc: 15, ..slice }, stride: 2, ..base },
        Conv3dParams { slice: Conv2dParams { groups: 2, c: 10, oc: 40, strides: [2; 2], ..slice }, ..base },
        Conv3dParams { slice: Conv2dParams { groups: 17, c: 17, oc: 34, kh: 1, pads: [0, 1, 0, 1], ..slice }, ..base },
        Conv3dParams {
            slice: Conv2dParams { groups: 32, dilations: [3, 2], pads: [3; 4], c: 32, oc: 32, ..slice },
            ..base
        },
        // One pixel of several planes, of every other one, and of all.
        Conv3dParams { slice: point, ..base },
        Conv3dParams { slice: Conv2dParams { strides: [2; 2], ..point }, kd: 1, pads: [0; 2], stride: 2, ..base },
        Conv3dParams { slice: point, kd: 5, pads: [0; 2], ..base },
        // More planes than lie in place in a list, few channels, and windows of other sides.
        Conv3dParams {
            slice: Conv2dParams { c: 1, kh: 5, kw: 2, strides: [2, 1], pads: [2, 0, 1, 1], oc: 4, ..slice },
            d: 11,
            kd: 9,
            pads: [4, 5],
            ..base
        },
        Conv3dParams { slice: Conv2dParams { c: 3, kh: 7, kw: 7, pads: [3; 4], strides: [2; 2], ..slice }, ..base },
        Conv3dParams { slice: Conv2dParams { c: 8, dilations: [6, 7], pads: [6, 7, 6, 7], ..wide }, ..base },
    ]
}

/// The images whose channels are the planes that a window meets.
fn images<T: Copy>(p: &Conv3dParams, x: &[T], padding: T) -> Vec<T> {
    let ([od, ..], s) = (p.output().unwrap(), &p.slice);
    let mut out = Vec::new();
    for (n, depth) in (0..s.n).flat_map(|n| (0..od).map(move |z| (n, z))) {
        let channels = s.c / p.groups();
        for (pixel, part) in (0..s.h * s.w).flat_map(|i| (0..p.groups() * p.kd).map(move |part| (i, part))) {
            let z = (depth * p.stride + part % p.kd * p.dilation).wrapping_sub(p.pads[0]);
            let at = |z: usize| ((n * p.d + z) * s.h * s.w + pixel) * s.c + part / p.kd * channels;
            match z < p.d {
                true => out.extend_from_slice(&x[at(z)..][..channels]),
                false => out.extend(std::iter::repeat_n(padding, channels)),
            }
        }
    }
    out
}

#[test]
fn convolves_planes_as_images_made_of_them_on_every_tier() {
    let mut random = Random::new(21);
    for p in volumes() {
        let (planes, pad) = (p.planes().unwrap(), 77);
        let len = planes.n * planes.oc * planes.output().unwrap().iter().product::<usize>();
        let x = bytes(&mut random, p.slice.n * p.d * p.slice.h * p.slice.w * p.slice.c);
        let w: Vec<i8> = bytes(&mut random, planes.weight_len().unwrap()).into_iter().map(|b| b as i8).collect();
        let signed: Vec<i8> = x.iter().map(|&b| b as i8).collect();
        let (made, made_signed) = (images(&p, &x, pad as u8), images(&p, &signed, pad as i8));
        let mut guarded = Guarded::new(&x);
        for exec in execs() {
            let weights = conv2d_nhwc_pack(&exec, &planes, &w).unwrap();
            let scales = vec![1.0; planes.oc];
            let e = Epilogue { offsets: weights.column_sums(), scales: &scales, ..Epilogue::default() };
            let (mut want, mut y) = (vec![0i32; len], vec![1i32; len]);
            let winograd = WinogradWeights::pack_ints(&exec, &planes, &w).ok().filter(|_| planes.strides == [1; 2]);
            for (image, volume) in
                [(Rows::U8(&made), Rows::U8(guarded.get())), (Rows::I8(&made_signed), Rows::I8(&signed))]
            {
                let pixels = Pixels::Planes(volume, &p);
                conv2d_nhwc(&exec, &planes, image, pad, &weights, &e, Target::I32(&mut want)).unwrap();
                conv2d_nhwc_pixels(&exec, &planes, pixels, pad, &weights, &e, Target::I32(&mut y)).unwrap();
                assert_eq!(y, want, "{p:?} {}", weights.kernel().name);
                if let Some(weights) = &winograd {
                    y.fill(1);
                    winograd_nhwc(&exec, &planes, pixels, pad, weights, &e, Target::I32(&mut y)).unwrap();
                    assert_eq!(y, want, "{p:?} {}", weights.name());
                }
            }
        }
    }
}

#[test]
fn convolves_planes_of_floats_with_the_bits_of_images_on_every_tier() {
    let mut random = Random::new(22);
    for p in volumes() {
        let planes = p.planes().unwrap();
        let len = planes.n * planes.oc * planes.output().unwrap().iter().product::<usize>();
        let x = random.vec(p.slice.n * p.d * p.slice.h * p.slice.w * p.slice.c);
        let w = random.vec(planes.weight_len().unwrap());
        let (made, mut guarded, mut first) = (images(&p, &x, 0.0), Guarded::new(&x), None);
        for exec in execs() {
            let (weights, e) = (conv2d_nhwc_pack(&exec, &planes, &w).unwrap(), Epilogue::default());
            let (image, pixels) = (Rows::F32(&made), Pixels::Planes(Rows::F32(guarded.get()), &p));
            let (mut want, mut y) = (vec![0f32; len], vec![1f32; len]);
            conv2d_nhwc(&exec, &planes, image, 0, &weights, &e, Target::F32(&mut want)).unwrap();
            conv2d_nhwc_pixels(&exec, &planes, pixels, 0, &weights, &e, Target::F32(&mut y)).unwrap();
            assert_eq!(bits(&y), bits(&want), "{p:?} {}", weights.kernel().name);
            assert_eq!(*first.get_or_insert(bits(&y)), bits(&y), "{p:?} {}", weights.kernel().name);
            for side in [2, 4] {
                let Ok(weights) = WinogradWeights::pack(&exec, &planes, side, &w) else { continue };
                if planes.strides != [1; 2] {
                    continue;
                }
                let all = Pixels::Parts(std::slice::from_ref(&image));
                winograd_nhwc(&exec, &planes, all, 0, &weights, &e, Target::F32(&mut want)).unwrap();
                winograd_nhwc(&exec, &planes, pixels, 0, &weights, &e, Target::F32(&mut y)).unwrap();
                assert_eq!(bits(&y), bits(&want), "{p:?} {}", weights.name());
            }
        }
    }
}

/// `x` `[n, d, h, w, c]` by the definition, as `[n, od, oh, ow, oc]`, of whole numbers.
fn definition(p: &Conv3dParams, x: &[f32], w: &[f32]) -> Vec<f32> {
    let ([od, oh, ow], s) = (p.output().unwrap(), &p.slice);
    let (cg, og) = (s.c / s.groups, s.oc / s.groups);
    let result = |i: usize| {
        let (o, ox, oy) = (i % s.oc, i / s.oc % ow, i / s.oc / ow % oh);
        let (oz, n) = (i / s.oc / ow / oh % od, i / s.oc / ow / oh / od);
        let taps = (0..cg * p.kd * s.kh * s.kw).map(|t| {
            let (kx, ky, kz, c) = (t % s.kw, t / s.kw % s.kh, t / s.kw / s.kh % p.kd, t / s.kw / s.kh / p.kd);
            let z = (oz * p.stride + kz * p.dilation).wrapping_sub(p.pads[0]);
            let y = (oy * s.strides[0] + ky * s.dilations[0]).wrapping_sub(s.pads[0]);
            let at = (ox * s.strides[1] + kx * s.dilations[1]).wrapping_sub(s.pads[1]);
            let inside = z < p.d && y < s.h && at < s.w;
            let pixel = || x[(((n * p.d + z) * s.h + y) * s.w + at) * s.c + o / og * cg + c];
            if inside { pixel() * w[o * cg * p.kd * s.kh * s.kw + t] } else { 0.0 }
        });
        taps.sum()
    };
    (0..s.n * od * oh * ow * s.oc).map(result).collect()
}

#[test]
fn convolves_volumes_by_the_planes_that_are_seen() {
    let mut random = Random::new(23);
    let mut fewer = 0;
    for p in volumes() {
        let mut whole = |len: usize| (0..len).map(|_| random.below(9) as f32 - 4.0).collect::<Vec<f32>>();
        let x = whole(p.slice.n * p.d * p.slice.h * p.slice.w * p.slice.c);
        let w = whole(p.slice.weight_len().unwrap() * p.kd);
        let (seen, left) = p.seen_planes();
        assert_eq!(seen.output().unwrap(), p.output().unwrap());
        fewer += usize::from(left.len() < p.kd);
        let (planes, exec) = (seen.planes().unwrap(), &execs()[0]);
        let weights = conv2d_nhwc_pack(exec, &planes, &p.by_plane(&w, &left, |_| 0.0).unwrap()).unwrap();
        let want = definition(&p, &x, &w);
        let (mut y, pixels) = (vec![1f32; want.len()], Pixels::Planes(Rows::F32(&x), &seen));
        let e = Epilogue::default();
        conv2d_nhwc_pixels(exec, &planes, pixels, 0, &weights, &e, Target::F32(&mut y)).unwrap();
        // Sums of small whole numbers are exact.
        assert_eq!(y, want, "{p:?}");
    }
    assert!(fewer > 0);
}

#[test]
fn refuses_planes_of_another_volume() {
    let (exec, p) = (&execs()[0], volumes()[0]);
    let planes = p.planes().unwrap();
    let weights = conv2d_nhwc_pack(exec, &planes, &vec![1f32; planes.weight_len().unwrap()]).unwrap();
    let x = vec![0f32; p.d * p.slice.h * p.slice.w * p.slice.c];
    let mut y = vec![0f32; planes.n * planes.oc * planes.output().unwrap().iter().product::<usize>()];
    let mut run = |x: &[f32], p: &Conv3dParams| {
        let pixels = Pixels::Planes(Rows::F32(x), p);
        conv2d_nhwc_pixels(exec, &planes, pixels, 0, &weights, &Epilogue::default(), Target::F32(&mut y)).is_ok()
    };
    assert!(run(&x, &p));
    assert!(!run(&x[1..], &p));
    assert!(!run(&x, &Conv3dParams { d: 6, ..p }));
    assert!(!run(&x, &Conv3dParams { kd: 1, pads: [0; 2], ..p }));
    assert!(!run(&x, &Conv3dParams { stride: 0, ..p }));
    assert!(
        Conv3dParams { slice: Conv2dParams { c: 0, ..p.slice }, kd: 1 << 40, pads: [1 << 39; 2], ..p }
            .planes()
            .is_err()
    );
}
