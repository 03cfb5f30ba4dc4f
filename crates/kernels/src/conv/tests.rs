use super::*;
use crate::testing::{Guarded, Random, assert_close, execs};

/// Sums of at most ~600 products of magnitude ≤ 1 in f32.
const TOLERANCE: f32 = 1e-4;

fn params(
    size: [usize; 6],
    strides: [usize; 2],
    pads: [usize; 4],
    dilations: [usize; 2],
    groups: usize,
) -> Conv2dParams {
    let [c, h, w, oc, kh, kw] = size;
    Conv2dParams { n: 2, c, h, w, oc, kh, kw, strides, pads, dilations, groups }
}

fn cases() -> Vec<Conv2dParams> {
    vec![
        params([3, 9, 11, 5, 3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1),
        params([3, 23, 21, 16, 7, 7], [2, 2], [3, 3, 3, 3], [1, 1], 1),
        params([8, 7, 7, 20, 1, 1], [1, 1], [0; 4], [1, 1], 1),
        params([8, 8, 8, 20, 1, 1], [2, 2], [0; 4], [1, 1], 1),
        params([4, 12, 40, 6, 3, 3], [2, 1], [0, 2, 1, 3], [1, 2], 2),
        params([2, 5, 6, 3, 5, 4], [3, 3], [4, 4, 4, 4], [1, 1], 1),
        params([64, 6, 50, 33, 3, 3], [1, 1], [1; 4], [1, 1], 1),
        params([3, 32, 32, 9, 8, 8], [8, 8], [0; 4], [1, 1], 1),
        params([6, 1, 70, 4, 1, 5], [1, 1], [0, 2, 0, 2], [1, 1], 1),
        params([7, 9, 11, 7, 3, 3], [1, 1], [1; 4], [1, 1], 7),
        params([5, 14, 37, 5, 3, 3], [2, 2], [1; 4], [1, 1], 5),
        params([4, 10, 33, 4, 5, 5], [1, 1], [2; 4], [1, 1], 4),
        params([4, 15, 15, 4, 5, 5], [2, 2], [2, 1, 2, 2], [1, 1], 4),
        params([3, 20, 20, 3, 3, 3], [3, 1], [0, 4, 0, 4], [2, 3], 3),
        params([4, 8, 8, 8, 3, 3], [1, 1], [1; 4], [1, 1], 4),
    ]
}

#[test]
fn equals_the_reference_for_every_shape_and_tier() {
    for (index, p) in cases().into_iter().enumerate() {
        let mut r = Random::new(index as u64 + 1);
        let x = r.vec(p.n * p.c * p.h * p.w);
        let w = r.vec(p.weight_len().unwrap());
        let bias = r.vec(p.oc);
        let plain = conv2d_reference(&p, &x, &w, Some(&bias));
        let residual = r.vec(plain.len());
        let want: Vec<f32> = plain.iter().zip(&residual).map(|(a, b)| (a + b).max(0.0)).collect();
        for exec in execs() {
            let weights = conv2d_prepack(&exec, &p, &w).unwrap();
            let mut image = Guarded::new(&x);
            let mut y = Guarded::new(&vec![f32::NAN; plain.len()]);
            let epilogue = ConvEpilogue { bias: Some(&bias), ..ConvEpilogue::default() };
            conv2d_run(&exec, &p, image.get(), &weights, &epilogue, y.get()).unwrap();
            assert_close(y.get(), &plain, TOLERANCE, &format!("{p:?} {exec:?}"));
            let epilogue = ConvEpilogue { residual: Some(&residual), activation: Activation::Relu, ..epilogue };
            conv2d_run(&exec, &p, image.get(), &weights, &epilogue, y.get()).unwrap();
            assert_close(y.get(), &want, TOLERANCE, &format!("fused {p:?} {exec:?}"));
        }
    }
}

#[test]
fn transposes_with_and_without_overlap() {
    let base = ConvTranspose2dParams {
        n: 2,
        c: 6,
        h: 5,
        w: 9,
        oc: 20,
        kh: 2,
        kw: 2,
        strides: [2, 2],
        pads: [0, 0],
        dilations: [1, 1],
        groups: 1,
        out: [10, 18],
    };
    let overlap = ConvTranspose2dParams { kh: 4, kw: 3, pads: [1, 1], out: [10, 18], ..base };
    let grouped = ConvTranspose2dParams { groups: 2, dilations: [2, 1], kh: 3, out: [13, 18], ..base };
    let cropped = ConvTranspose2dParams { kh: 3, kw: 3, strides: [1, 3], pads: [2, 0], out: [3, 28], ..base };
    for p in [base, overlap, grouped, cropped] {
        let mut r = Random::new(4);
        let x = r.vec(p.n * p.c * p.h * p.w);
        let w = r.vec(p.c * p.oc / p.groups * p.kh * p.kw);
        let bias = r.vec(p.oc);
        let want: Vec<f32> =
            conv_transpose2d_reference(&p, &x, &w, Some(&bias)).into_iter().map(|v| v.max(0.0)).collect();
        for exec in execs() {
            let weights = conv_transpose2d_prepack(&exec, &p, &w).unwrap();
            let mut y = Guarded::new(&vec![f32::NAN; want.len()]);
            let epilogue = ConvEpilogue { bias: Some(&bias), activation: Activation::Relu, ..ConvEpilogue::default() };
            conv_transpose2d_run(&exec, &p, &x, &weights, &epilogue, y.get()).unwrap();
            assert_close(y.get(), &want, TOLERANCE, &format!("{p:?} {exec:?}"));
        }
    }
}

#[test]
fn convolves_volumes_like_a_2d_convolution_over_stacked_channels() {
    // With a window over the full depth and no padding, depth joins the channels.
    let slice = params([3, 6, 7, 4, 3, 3], [1, 1], [1; 4], [1, 1], 1);
    let p = Conv3dParams { slice, d: 2, kd: 2, stride: 1, pads: [0, 0], dilation: 1 };
    let mut r = Random::new(8);
    let x = r.vec(slice.n * 3 * 2 * 42);
    let w = r.vec(4 * 3 * 2 * 9);
    let flat = Conv2dParams { c: 6, ..slice };
    let want = conv2d_reference(&flat, &x, &w, None);
    for exec in execs() {
        let weights: Vec<_> = (0..2)
            .map(|step| {
                let plane: Vec<f32> = w.chunks(9).skip(step).step_by(2).flatten().copied().collect();
                conv2d_prepack(&exec, &slice, &plane).unwrap()
            })
            .collect();
        let mut y = vec![0.0; want.len()];
        conv3d_run(&exec, &p, &x, &weights, &ConvEpilogue::default(), &mut y).unwrap();
        assert_close(&y, &want, TOLERANCE, "volume");
    }
}

#[test]
fn refuses_a_window_beyond_the_image_and_wrong_lengths() {
    let exec = crate::Exec::new(crate::Isa::detect(), 1);
    let p = params([3, 2, 2, 5, 3, 3], [1, 1], [0; 4], [1, 1], 1);
    assert!(p.output().is_err());
    let p = params([3, 9, 9, 5, 3, 3], [1, 1], [0; 4], [1, 1], 2);
    assert!(p.output().is_err());
    let p = params([3, 9, 9, 5, 3, 3], [1, 1], [usize::MAX, 0, 1, 0], [1, 1], 1);
    assert!(p.output().is_err());
    let p = params([3, 9, 9, 5, 3, 3], [1, 1], [0; 4], [1, 1], 1);
    assert!(conv2d_prepack(&exec, &p, &[0.0; 3]).is_err());
}
