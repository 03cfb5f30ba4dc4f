//! Products, convolutions, pooling, attention and statistics of floats: the same bits on every tier and number of threads, and
//! no access beside the operands. What flips a bit between two roundings to 8 bits flips a code sooner or later.
//!
//! Functions of elements and rows, movement and recurrent layers have such tests of their own. bfloat16 is not here: its tiles
//! and vectors sum in other orders.

use crate::activation::Activation;
use crate::attention::{AttentionParams, HeadView, attention, attention_of_few};
use crate::blocks::{BlockShape, Blocks, Values, blocks_gemm, blocks_gemm_int8};
use crate::calibrate::{Range, channel_min_max, histogram, min_max, moments};
use crate::conv::{
    Conv2dParams, Conv3dParams, ConvEpilogue, ConvTranspose2dParams, conv_transpose2d_prepack, conv_transpose2d_run,
    conv2d_prepack, conv2d_run, conv3d_run,
};
use crate::gemm::{Bias, Gemm, Lhs, MatrixView, PackedB, Rhs, gemm};
use crate::integer::{
    Divisor, PoolDepth, PoolNhwcParams, Quant, avg_pool2d_nhwc, depthwise_nhwc, depthwise_nhwc_pack, max_pool2d_nhwc,
};
use crate::panel::{
    Elements, Epilogue, FloatMatMul, Residual, Rows, Target, conv_transpose2d_nhwc, conv_transpose2d_nhwc_pack,
    conv2d_nhwc, conv2d_nhwc_pack, panel_float_matmul, panel_gemm, panel_gemm_pack,
};
use crate::pooling::{Pool2dParams, average_pool2d, max_pool2d};
use crate::testing::{Guarded, Random, assert_close, assert_same_everywhere, bits, with_special};

/// Fills a column's scales or zero points.
type Column<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// Rows, columns and depth around the tiles of all tiers, in one block of the depth and in several.
const PRODUCTS: [[usize; 3]; 9] = [
    [1, 1, 1],
    [1, 33, 7],
    [3, 31, 400],
    [5, 17, 16],
    [13, 49, 130],
    [15, 65, 20],
    [29, 63, 9],
    [64, 97, 800],
    // Several blocks of rows in one panel of columns.
    [300, 20, 19],
];

#[test]
fn multiplies_matrices_to_the_same_bits_everywhere() {
    let mut r = Random::new(71);
    for (i, [m, n, k]) in PRODUCTS.into_iter().enumerate() {
        let (a, b, c, bias) = (r.vec(m * k), r.vec(k * n), r.vec(m * n), r.vec(n));
        let activation = [Activation::None, Activation::GeluErf, Activation::Relu][i % 3];
        for packed in [false, true] {
            assert_same_everywhere(&format!("gemm {m}×{n}×{k} packed {packed}"), &|exec, edge| {
                let [mut a, mut b, mut c, mut bias] = [&a, &b, &c, &bias].map(|v| Guarded::at(edge, v));
                let mut y = Guarded::at(edge, &vec![0.25f32; m * n]);
                let (left, right) = (MatrixView::row_major(a.get(), k), MatrixView::row_major(b.get(), n));
                let panels = PackedB::new(exec, right, (k, n), (1, 0)).unwrap();
                let right = if packed { Rhs::Packed(&panels) } else { Rhs::View(right) };
                let g = Gemm {
                    alpha: 0.7,
                    beta: 0.3,
                    bias: Bias::Column(bias.get()),
                    residual: Some(c.get()),
                    activation,
                    ..Gemm::new(m, n, k, Lhs::View(left), right)
                };
                gemm(exec, &g, y.get()).unwrap();
                bits(y.get())
            });
        }
        assert_same_everywhere(&format!("panel {m}×{n}×{k}"), &|exec, edge| {
            let [mut a, mut b, mut c, mut bias] = [&a, &b, &c, &bias].map(|v| Guarded::at(edge, v));
            let mut y = Guarded::at(edge, &vec![9f32; m * n]);
            let panels = panel_gemm_pack(exec, (k, n), &*b.get(), false).unwrap();
            let residual = Residual::F32(c.get());
            let e = Epilogue { bias: bias.get(), residual, activation, ..Epilogue::default() };
            panel_gemm(exec, Rows::F32(a.get()), (m, k, k), &panels, &e, Target::F32(y.get())).unwrap();
            bits(y.get())
        });
        assert_same_everywhere(&format!("two activations {m}×{n}×{k}"), &|exec, edge| {
            let ([mut a, mut b], mut y) =
                ([&a, &b].map(|v| Guarded::at(edge, v)), Guarded::at(edge, &vec![9f32; m * n]));
            let (a, b) = (Elements::F32(a.get()), Elements::F32(b.get()));
            let p = FloatMatMul { a, b, shape: [m, k, n], batch: &[], scale: 0.125, activation };
            panel_float_matmul(exec, &p, y.get()).unwrap();
            bits(y.get())
        });
    }
}

#[test]
fn multiplies_weights_by_blocks_to_the_same_bits_everywhere() {
    let mut r = Random::new(72);
    for [m, n, k] in [[1, 1, 16], [1, 65, 70], [2, 33, 40], [7, 70, 200], [20, 130, 130]] {
        for (bits_of_code, shifted) in [(2, false), (4, true), (4, false), (8, true)] {
            let shape = BlockShape { k, n, bits: bits_of_code, block: 32, values: Values::Integers };
            let (x, seed) = (r.vec(m * k), r.below(1000));
            let code = |column: usize, i: usize| ((column * 31 + i * 7 + seed) % (1 << bits_of_code)) as u8;
            for rounded in [false, true] {
                assert_same_everywhere(&format!("{m}×{n}×{k} {bits_of_code} bits {rounded}"), &|exec, edge| {
                    let codes = |c: usize, to: &mut [u8]| to.iter_mut().enumerate().for_each(|(i, v)| *v = code(c, i));
                    let scales = |c: usize, to: &mut [f32]| to.fill(0.01 + c as f32 * 1e-4);
                    let zeros = |c: usize, to: &mut [f32]| to.fill((c % 3) as f32);
                    let zeros = shifted.then_some(&zeros as Column);
                    let w = Blocks::pack(exec, shape, &codes, &scales, zeros).unwrap();
                    let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![9f32; m * n]));
                    let run = if rounded { blocks_gemm_int8 } else { blocks_gemm };
                    run(exec, x.get(), m, &w, &Epilogue::default(), Target::F32(y.get())).unwrap();
                    bits(y.get())
                });
            }
        }
    }
}

fn conv(size: [usize; 6], strides: [usize; 2], pads: [usize; 4], dilations: [usize; 2], groups: usize) -> Conv2dParams {
    let [c, h, w, oc, kh, kw] = size;
    Conv2dParams { n: 2, c, h, w, oc, kh, kw, strides, pads, dilations, groups }
}

fn convolutions() -> [Conv2dParams; 12] {
    [
        conv([3, 9, 11, 5, 3, 3], [1, 1], [1; 4], [1, 1], 1),
        conv([3, 23, 21, 16, 7, 7], [2, 2], [3; 4], [1, 1], 1),
        conv([8, 7, 7, 20, 1, 1], [1, 1], [0; 4], [1, 1], 1),
        conv([8, 9, 9, 20, 1, 1], [2, 2], [0; 4], [1, 1], 1),
        conv([4, 12, 40, 6, 3, 3], [2, 1], [0, 2, 1, 3], [1, 2], 2),
        conv([33, 6, 19, 33, 3, 3], [1, 1], [1; 4], [1, 1], 1),
        conv([6, 1, 70, 4, 1, 5], [1, 1], [0, 2, 0, 2], [1, 1], 1),
        conv([7, 9, 11, 7, 3, 3], [1, 1], [1; 4], [1, 1], 7),
        conv([5, 14, 37, 5, 3, 3], [2, 2], [1; 4], [1, 1], 5),
        conv([19, 10, 9, 19, 5, 5], [1, 1], [2; 4], [1, 1], 19),
        // Windows that reach far beyond the image.
        conv([18, 14, 13, 37, 3, 3], [1, 1], [12, 11, 12, 11], [12, 11], 1),
        conv([32, 7, 9, 20, 3, 4], [2, 1], [5, 9, 8, 12], [6, 7], 2),
    ]
}

#[test]
fn convolves_to_the_same_bits_everywhere() {
    let mut r = Random::new(73);
    for p in convolutions() {
        let (x, w, bias) = (r.vec(p.n * p.c * p.h * p.w), r.vec(p.weight_len().unwrap()), r.vec(p.oc));
        let plane: usize = p.output().unwrap().iter().product();
        let residual = r.vec(p.n * p.oc * plane);
        assert_same_everywhere(&format!("{p:?}"), &|exec, edge| {
            let [mut x, mut w, mut bias, mut residual] = [&x, &w, &bias, &residual].map(|v| Guarded::at(edge, v));
            let mut y = Guarded::at(edge, &vec![9f32; p.n * p.oc * plane]);
            let weights = conv2d_prepack(exec, &p, w.get()).unwrap();
            let e = ConvEpilogue {
                bias: Some(bias.get()),
                residual: Some(residual.get()),
                activation: Activation::Silu { alpha: 1.0 },
                accumulate: false,
            };
            conv2d_run(exec, &p, x.get(), &weights, &e, y.get()).unwrap();
            bits(y.get())
        });
        // As if the channels stood last.
        assert_same_everywhere(&format!("channels last {p:?}"), &|exec, edge| {
            let [mut x, mut w, mut bias, mut residual] = [&x, &w, &bias, &residual].map(|v| Guarded::at(edge, v));
            let mut y = Guarded::at(edge, &vec![9f32; p.n * p.oc * plane]);
            let (rows, target) = (Rows::F32(x.get()), Target::F32(y.get()));
            let residual = Residual::F32(residual.get());
            let e = Epilogue { bias: bias.get(), residual, activation: Activation::HardSwish, ..Epilogue::default() };
            if p.groups == p.c {
                let weights = depthwise_nhwc_pack(exec, &p, &*w.get(), &[]).unwrap();
                depthwise_nhwc(exec, &p, rows, 0, &weights, &e, target).unwrap();
            } else {
                let weights = conv2d_nhwc_pack(exec, &p, &*w.get()).unwrap();
                conv2d_nhwc(exec, &p, rows, 0, &weights, &e, target).unwrap();
            }
            bits(y.get())
        });
    }
}

#[test]
fn convolves_transposed_and_in_depth_to_the_same_bits_everywhere() {
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
    let overlap = ConvTranspose2dParams { kh: 4, kw: 3, pads: [1, 1], ..base };
    let grouped = ConvTranspose2dParams { groups: 2, dilations: [2, 1], kh: 3, out: [13, 18], ..base };
    let mut r = Random::new(74);
    for p in [base, overlap, grouped] {
        let (x, w, bias) =
            (r.vec(p.n * p.c * p.h * p.w), r.vec(p.c * p.oc / p.groups * p.kh * p.kw), r.vec(p.oc * p.kh * p.kw));
        let len = p.n * p.oc * p.out[0] * p.out[1];
        assert_same_everywhere(&format!("{p:?}"), &|exec, edge| {
            let [mut x, mut w, mut bias] = [&x, &w, &bias].map(|v| Guarded::at(edge, v));
            let mut y = Guarded::at(edge, &vec![9f32; len]);
            let weights = conv_transpose2d_prepack(exec, &p, w.get()).unwrap();
            let e = ConvEpilogue { bias: Some(&bias.get()[..p.oc]), ..ConvEpilogue::default() };
            conv_transpose2d_run(exec, &p, x.get(), &weights, &e, y.get()).unwrap();
            bits(y.get())
        });
        if p == base {
            assert_same_everywhere("channels last", &|exec, edge| {
                let [mut x, mut w, mut bias] = [&x, &w, &bias].map(|v| Guarded::at(edge, v));
                let mut y = Guarded::at(edge, &vec![9f32; len]);
                let weights = conv_transpose2d_nhwc_pack(exec, &p, &*w.get()).unwrap();
                let e = Epilogue { bias: bias.get(), ..Epilogue::default() };
                let (rows, target) = (Rows::F32(x.get()), Target::F32(y.get()));
                conv_transpose2d_nhwc(exec, &p, rows, &weights, &e, target).unwrap();
                bits(y.get())
            });
        }
    }
    let slice = conv([3, 6, 7, 5, 3, 3], [1, 1], [1; 4], [1, 1], 1);
    let p = Conv3dParams { slice, d: 3, kd: 2, stride: 1, pads: [1, 0], dilation: 1 };
    let (x, planes) = (r.vec(slice.n * 3 * 3 * 42), [0, 1].map(|_| r.vec(slice.weight_len().unwrap())));
    let len = slice.n * slice.oc * p.output().unwrap().iter().product::<usize>();
    assert_same_everywhere("volume", &|exec, edge| {
        let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![9f32; len]));
        let weights = planes.each_ref().map(|w| conv2d_prepack(exec, &slice, w).unwrap());
        conv3d_run(exec, &p, x.get(), &weights, &ConvEpilogue::default(), y.get()).unwrap();
        bits(y.get())
    });
}

#[test]
fn pools_to_the_same_bits_everywhere() {
    let mut r = Random::new(75);
    for (c, window, stride, pad) in [(1, 2, 2, 0), (5, 3, 2, 1), (17, 3, 1, 1), (33, 2, 1, 0)] {
        let [h, w] = [9, 19];
        let out = [h, w].map(|len| (len + 2 * pad - window) / stride + 1);
        let x = r.vec(2 * c * h * w);
        let (window, strides, pads, dilations) = ([window; 2], [stride; 2], [pad; 4], [1, 1]);
        let p = Pool2dParams { planes: 2 * c, h, w, window, strides, pads, dilations, out };
        let depth = PoolDepth::ONE;
        let last = PoolNhwcParams { n: 2, h, w, c, window, strides, pads, dilations, out, depth };
        for max in [false, true] {
            assert_same_everywhere(&format!("{p:?} max {max}"), &|exec, edge| {
                let (mut x, len) = (Guarded::at(edge, &x), 2 * c * out[0] * out[1]);
                let [mut y, mut z] = [0, 1].map(|_| Guarded::at(edge, &vec![9f32; len]));
                if max {
                    max_pool2d(exec, &p, x.get(), y.get()).unwrap();
                    max_pool2d_nhwc::<f32>(exec, &last, x.get(), z.get()).unwrap();
                } else {
                    average_pool2d(exec, &p, false, x.get(), y.get()).unwrap();
                    let (x, z) = (Quant::F32(x.get()), Target::F32(z.get()));
                    avg_pool2d_nhwc(exec, &last, Divisor::Inside, x, z).unwrap();
                }
                bits(&[y.get(), z.get()].concat())
            });
        }
    }
}

#[test]
fn attends_to_the_same_bits_everywhere() {
    let base = AttentionParams {
        batch: 2,
        heads: 4,
        kv_heads: 4,
        queries: 19,
        keys: 33,
        depth: 16,
        value_depth: 9,
        scale: 0.25,
        causal: false,
        guarded: false,
    };
    let mut r = Random::new(76);
    for p in [
        base,
        AttentionParams { kv_heads: 2, keys: 50, depth: 7, value_depth: 33, ..base },
        AttentionParams { causal: true, keys: 45, ..base },
        AttentionParams { queries: 1, depth: 70, value_depth: 130, kv_heads: 1, ..base },
        AttentionParams { queries: 2, causal: true, depth: 64, value_depth: 64, kv_heads: 2, ..base },
        AttentionParams { batch: 1, heads: 1, kv_heads: 1, queries: 150, keys: 700, depth: 64, ..base },
    ] {
        let q = r.vec(p.batch * p.heads * p.queries * p.depth);
        let k = r.vec(p.batch * p.kv_heads * p.keys * p.depth);
        let v = r.vec(p.batch * p.kv_heads * p.keys * p.value_depth);
        let mask = r.vec(p.batch * p.heads * p.queries * p.keys);
        assert_same_everywhere(&format!("{p:?}"), &|exec, edge| {
            let [mut q, mut k, mut v, mut mask] = [&q, &k, &v, &mask].map(|x| Guarded::at(edge, x));
            let mut out = Guarded::at(edge, &vec![9f32; p.batch * p.heads * p.queries * p.value_depth]);
            let strides = |heads: usize, rows: usize, columns: usize| [heads * rows * columns, rows * columns, columns];
            let views = [
                HeadView { data: q.get(), strides: strides(p.heads, p.queries, p.depth) },
                HeadView { data: k.get(), strides: strides(p.kv_heads, p.keys, p.depth) },
                HeadView { data: v.get(), strides: strides(p.kv_heads, p.keys, p.value_depth) },
            ];
            let mask = HeadView { data: mask.get(), strides: strides(p.heads, p.queries, p.keys) };
            let to = strides(p.heads, p.queries, p.value_depth);
            attention(exec, &p, views, Some(mask), None, out.get(), to).unwrap();
            let mut few = Guarded::at(edge, &vec![9f32; out.get().len()]);
            attention_of_few(exec, &p, views, Some(mask), few.get(), to).unwrap();
            assert_close(few.get(), out.get(), 1e-5, &format!("{p:?}"));
            bits(&[out.get(), few.get()].concat())
        });
    }
}

#[test]
fn records_the_same_bits_everywhere() {
    let mut r = Random::new(77);
    for len in [1, 7, 16, 17, 33, 255, 257, 1000, 70_001] {
        let (x, special) = (r.vec(len), with_special(r.vec(len)));
        let zeros: Vec<f32> = x.iter().map(|v| 0f32.copysign(*v)).collect();
        for x in [x, special, zeros] {
            assert_same_everywhere(&format!("{len} elements"), &|exec, edge| {
                let mut x = Guarded::at(edge, &x);
                let (range, m) = (min_max(exec, x.get()), moments(exec, x.get()));
                let mut bins = vec![0u64; 64];
                histogram(exec, x.get(), (-1.0, 1.0), false, &mut bins).unwrap();
                let mut channels = vec![Range::EMPTY; len];
                channel_min_max(exec, x.get(), [1, len, 1], &mut channels).unwrap();
                let sums =
                    [m.sum, m.sum_square].into_iter().flat_map(|v| [v.to_bits() as u32, (v.to_bits() >> 32) as u32]);
                let ranges = channels.iter().chain([&range]).flat_map(|r| bits(&[r.min, r.max]));
                sums.chain(ranges)
                    .chain([m.count as u32, m.abs_max.to_bits()])
                    .chain(bins.iter().map(|&b| b as u32))
                    .collect()
            });
        }
    }
}
