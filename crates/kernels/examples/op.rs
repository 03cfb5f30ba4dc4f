//! Median time of one operator, for comparing with other runtimes.
//!
//! `op <threads> conv|nhwc|nhwci8 <c> <h> <w> <oc> <kernel> <stride> <pad> <groups>` ·
//! `depthwise <c> <h> <w> <kernel> <stride>` · `dilated <c> <h> <w> <oc> <dilation>` ·
//! `winograd <c> <h> <w> <oc> <side> <dilation>` · `winogradi8 <c> <h> <w> <oc>` ·
//! `op <threads> linear <m> <k> <n>` · `attention <heads> <rows> <depth>` ·
//! `softmax|layernorm <rows> <columns>` · `gelu|add|exp|silu|relu <len>` ·
//! `convtranspose <c> <h> <w> <oc>` · `maxpool <c> <h> <w>` · `heads <rows> <heads> <depth>`

use std::time::Instant;

use narrowbit_kernels::attention::{AttentionParams, HeadView, attention};
use narrowbit_kernels::conv::{
    Conv2dParams, ConvEpilogue, ConvTranspose2dParams, conv_transpose2d_prepack, conv_transpose2d_run, conv2d_prepack,
    conv2d_run,
};
use narrowbit_kernels::elementwise::{BinaryOp, UnaryOp, binary, unary};
use narrowbit_kernels::gemm::{Gemm, Lhs, MatrixView, PackedB, Rhs, gemm};
use narrowbit_kernels::integer::{depthwise_nhwc, depthwise_nhwc_pack};
use narrowbit_kernels::movement::permute;
use narrowbit_kernels::panel::{
    Epilogue, Pixels, Rows, Target, WinogradWeights, conv2d_nhwc, conv2d_nhwc_pack, winograd_nhwc,
};
use narrowbit_kernels::pooling::{Pool2dParams, max_pool2d};
use narrowbit_kernels::reduce::{LayerNorm, LayerNormOutputs, layer_norm, softmax};
use narrowbit_kernels::{Activation, Buffer, Exec, Isa, KernelError};

/// Aligned as sessions align their values.
fn zeros(len: usize) -> Buffer {
    Buffer::new(len)
}

fn fill(len: usize) -> Buffer {
    let mut x = zeros(len);
    x.iter_mut().enumerate().for_each(|(i, x)| *x = (i * 7 % 23) as f32 * 0.1 - 1.1);
    x
}

/// Seconds of CPU time of this thread (a busy machine does not disturb it), or of wall
/// time when several threads work.
fn now(threads: usize) -> f64 {
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the struct.
    unsafe { libc::clock_gettime(clock, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Runs for about a third of a second; prints the median and the least microseconds.
fn time(exec: &Exec, mut run: impl FnMut() -> Result<(), KernelError>) -> Result<(), KernelError> {
    for _ in 0..3 {
        run()?;
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (start.elapsed().as_secs_f64() < 0.3 && times.len() < 5000) {
        let t = now(exec.threads());
        run()?;
        times.push((now(exec.threads()) - t) * 1e6);
    }
    times.sort_by(f64::total_cmp);
    println!("{:.2} {:.2}", times[times.len() / 2], times[0]);
    Ok(())
}

fn conv(exec: &Exec, n: &[usize]) -> Result<(), KernelError> {
    let [c, h, w, oc, kernel, stride, pad, groups] = n[..] else {
        return usage();
    };
    let p = Conv2dParams {
        n: 1,
        c,
        h,
        w,
        oc,
        kh: kernel,
        kw: kernel,
        strides: [stride; 2],
        pads: [pad; 4],
        dilations: [1; 2],
        groups,
    };
    let [oh, ow] = p.output()?;
    let (x, bias) = (fill(c * h * w), fill(oc));
    let weights = conv2d_prepack(exec, &p, &fill(p.weight_len()?))?;
    let mut y = zeros(oc * oh * ow);
    let epilogue = ConvEpilogue { bias: Some(&bias), activation: Activation::Relu, ..ConvEpilogue::default() };
    time(exec, || conv2d_run(exec, &p, &x, &weights, &epilogue, &mut y))
}

/// The same on NHWC: by panels of weights, or with tiles of `side` by Winograd's algorithm.
fn nhwc(exec: &Exec, n: &[usize], side: Option<usize>, dilation: usize) -> Result<(), KernelError> {
    let [c, h, w, oc, kernel, stride, pad, groups] = n[..] else {
        return usage();
    };
    let (strides, pads) = ([stride; 2], [pad; 4]);
    let p = Conv2dParams { n: 1, c, h, w, oc, kh: kernel, kw: kernel, strides, pads, dilations: [dilation; 2], groups };
    let [oh, ow] = p.output()?;
    let (x, bias, weights) = (fill(c * h * w), fill(oc), fill(p.weight_len()?));
    let mut y = zeros(oc * oh * ow);
    let e = Epilogue { bias: &bias, activation: Activation::Relu, ..Epilogue::default() };
    if let Some(side) = side {
        let weights = WinogradWeights::pack(exec, &p, side, &weights)?;
        return time(exec, || {
            winograd_nhwc(exec, &p, Pixels::Parts(&[Rows::F32(&x)]), 0, &weights, &e, Target::F32(&mut y))
        });
    }
    let weights = conv2d_nhwc_pack(exec, &p, &weights)?;
    time(exec, || conv2d_nhwc(exec, &p, Rows::F32(&x), 0, &weights, &e, Target::F32(&mut y)))
}

/// The same of 8-bit integers, as plain sums or with tiles of 3.
fn nhwc_ints(exec: &Exec, n: &[usize], tiles: bool) -> Result<(), KernelError> {
    let [c, h, w, oc, kernel, stride, pad, groups] = n[..] else {
        return usage();
    };
    let (strides, pads) = ([stride; 2], [pad; 4]);
    let p = Conv2dParams { n: 1, c, h, w, oc, kh: kernel, kw: kernel, strides, pads, dilations: [1; 2], groups };
    let [oh, ow] = p.output()?;
    let x: Vec<u8> = (0..c * h * w).map(|i| (i * 7 % 251) as u8).collect();
    let weights: Vec<i8> = (0..p.weight_len()?).map(|i| (i * 13 % 255) as i8).collect();
    let (scales, mut y) = (vec![1e-4; oc], vec![0u8; oc * oh * ow]);
    if tiles {
        let weights = WinogradWeights::pack_ints(exec, &p, &weights)?;
        let e = Epilogue { offsets: weights.column_sums(), scales: &scales, ..Epilogue::default() };
        return time(exec, || {
            winograd_nhwc(exec, &p, Pixels::Parts(&[Rows::U8(&x)]), 3, &weights, &e, Target::U8(&mut y, 1.0, 3))
        });
    }
    let weights = conv2d_nhwc_pack(exec, &p, &weights)?;
    let e = Epilogue { offsets: weights.column_sums(), scales: &scales, ..Epilogue::default() };
    time(exec, || conv2d_nhwc(exec, &p, Rows::U8(&x), 3, &weights, &e, Target::U8(&mut y, 1.0, 3)))
}

/// Depthwise windows of an NHWC image with padding that keeps its size.
fn depthwise(exec: &Exec, [c, h, w, kernel, stride]: [usize; 5]) -> Result<(), KernelError> {
    let (strides, pads) = ([stride; 2], [kernel / 2; 4]);
    let p = Conv2dParams { n: 1, c, h, w, oc: c, kh: kernel, kw: kernel, strides, pads, dilations: [1; 2], groups: c };
    let [oh, ow] = p.output()?;
    let (x, bias) = (fill(c * h * w), fill(c));
    let weights = depthwise_nhwc_pack(exec, &p, &fill(c * kernel * kernel), &[])?;
    let mut y = zeros(c * oh * ow);
    let e = Epilogue { bias: &bias, activation: Activation::Relu, ..Epilogue::default() };
    time(exec, || depthwise_nhwc(exec, &p, Rows::F32(&x), 0, &weights, &e, Target::F32(&mut y)))
}

fn linear(exec: &Exec, [m, k, n]: [usize; 3]) -> Result<(), KernelError> {
    let (a, b) = (fill(m * k), fill(k * n));
    let packed = PackedB::new(exec, MatrixView::row_major(&b, n), (k, n), (1, 0))?;
    let g = Gemm::new(m, n, k, Lhs::View(MatrixView::row_major(&a, k)), Rhs::Packed(&packed));
    let mut c = zeros(m * n);
    time(exec, || gemm(exec, &g, &mut c))
}

fn attend(exec: &Exec, [heads, rows, depth]: [usize; 3]) -> Result<(), KernelError> {
    let p = AttentionParams {
        batch: 1,
        heads,
        kv_heads: heads,
        queries: rows,
        keys: rows,
        depth,
        value_depth: depth,
        scale: 0.125,
        causal: false,
        guarded: false,
    };
    let data = fill(heads * rows * depth);
    let view = HeadView { data: &data, strides: [heads * rows * depth, depth, heads * depth] };
    let mut out = zeros(data.len());
    time(exec, || attention(exec, &p, [view; 3], None, None, &mut out, view.strides))
}

fn conv_transpose(exec: &Exec, [c, h, w, oc]: [usize; 4]) -> Result<(), KernelError> {
    let p = ConvTranspose2dParams {
        n: 1,
        c,
        h,
        w,
        oc,
        kh: 2,
        kw: 2,
        strides: [2, 2],
        pads: [0, 0],
        dilations: [1, 1],
        groups: 1,
        out: [2 * h, 2 * w],
    };
    let weights = conv_transpose2d_prepack(exec, &p, &fill(c * oc * 4))?;
    let x = fill(c * h * w);
    let mut y = zeros(oc * h * w * 4);
    time(exec, || conv_transpose2d_run(exec, &p, &x, &weights, &ConvEpilogue::default(), &mut y))
}

fn max_pool(exec: &Exec, [c, h, w]: [usize; 3]) -> Result<(), KernelError> {
    let p = Pool2dParams {
        planes: c,
        h,
        w,
        window: [3, 3],
        strides: [2, 2],
        pads: [1; 4],
        dilations: [1, 1],
        out: [h / 2, w / 2],
    };
    let x = fill(c * h * w);
    let mut y = zeros(c * (h / 2) * (w / 2));
    time(exec, || max_pool2d(exec, &p, &x, &mut y))
}

fn usage() -> Result<(), KernelError> {
    eprintln!("see the first lines of the example's source");
    std::process::exit(2)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let threads: usize = args.next().unwrap_or_default().parse()?;
    let name = args.next().unwrap_or_default();
    let n = args.map(|text| text.parse()).collect::<Result<Vec<usize>, _>>()?;
    let exec = Exec::new(Isa::from_env()?, threads);
    let exec = &exec;
    let map = |op: UnaryOp, len: usize| {
        let (x, mut y) = (fill(len), zeros(len));
        time(exec, || unary(exec, op, &x, &mut y))
    };
    match (name.as_str(), &n[..]) {
        ("conv", n) => conv(exec, n)?,
        ("nhwc", n) => nhwc(exec, n, None, 1)?,
        ("dilated", &[c, h, w, oc, dilation]) => nhwc(exec, &[c, h, w, oc, 3, 1, dilation, 1], None, dilation)?,
        ("nhwci8", n) => nhwc_ints(exec, n, false)?,
        ("winogradi8", &[c, h, w, oc]) => nhwc_ints(exec, &[c, h, w, oc, 3, 1, 1, 1], true)?,
        ("winograd", &[c, h, w, oc, side, dilation]) => {
            nhwc(exec, &[c, h, w, oc, 3, 1, dilation, 1], Some(side), dilation)?
        }
        ("depthwise", &[c, h, w, kernel, stride]) => depthwise(exec, [c, h, w, kernel, stride])?,
        ("linear", &[m, k, n]) => linear(exec, [m, k, n])?,
        ("attention", &[heads, rows, depth]) => attend(exec, [heads, rows, depth])?,
        ("convtranspose", &[c, h, w, oc]) => conv_transpose(exec, [c, h, w, oc])?,
        ("maxpool", &[c, h, w]) => max_pool(exec, [c, h, w])?,
        ("gelu", &[len]) => map(UnaryOp::Activation(Activation::GeluErf), len)?,
        ("silu", &[len]) => map(UnaryOp::Activation(Activation::Silu { alpha: 1.0 }), len)?,
        ("relu", &[len]) => map(UnaryOp::Activation(Activation::Relu), len)?,
        ("exp", &[len]) => map(UnaryOp::Exp, len)?,
        ("add", &[len]) => {
            let (a, b, mut y) = (fill(len), fill(len), zeros(len));
            time(exec, || binary(exec, BinaryOp::Add, (&a, &[len]), (&b, &[len]), (&mut y, &[len])))?;
        }
        ("softmax", &[rows, columns]) => {
            let (x, mut y) = (fill(rows * columns), zeros(rows * columns));
            time(exec, || softmax(exec, &x, &mut y, [rows, columns, 1], false))?;
        }
        ("layernorm", &[rows, columns]) => {
            let (x, mut y) = (fill(rows * columns), zeros(rows * columns));
            let scale = fill(columns);
            let params = LayerNorm { scale: Some(&scale), bias: Some(&scale), epsilon: 1e-5, ..LayerNorm::default() };
            time(exec, || layer_norm(exec, &x, &mut y, [rows, columns], &params, LayerNormOutputs::default()))?;
        }
        ("heads", &[rows, heads, depth]) => {
            let (x, mut y) = (fill(rows * heads * depth), zeros(rows * heads * depth));
            time(exec, || permute(exec, &x, &[rows, heads, depth], &[1, 0, 2], &mut y))?;
        }
        _ => usage()?,
    }
    Ok(())
}
