//! Speed of the 8-bit kernels in one run: multiply-adds of depthwise convolutions beside
//! the float kernels, and bytes of the others beside a copy of as many bytes.
//!
//! `ints [threads]`

use std::time::Instant;

use narrowbit_kernels::conv::{Conv2dParams, ConvEpilogue, conv2d_prepack, conv2d_run};
use narrowbit_kernels::elementwise::BinaryOp;
use narrowbit_kernels::integer::*;
use narrowbit_kernels::panel::{Epilogue, Rows, Target};
use narrowbit_kernels::{Activation, Exec, Isa, KernelError};

/// Least seconds of a run.
fn time(mut run: impl FnMut() -> Result<(), KernelError>) -> Result<f64, KernelError> {
    let start = Instant::now();
    let (mut best, mut runs) = (f64::INFINITY, 0);
    while runs < 5 || start.elapsed().as_secs_f64() < 0.1 {
        let t = Instant::now();
        run()?;
        best = best.min(t.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best)
}

fn depthwise(exec: &Exec, [c, size, kernel, stride]: [usize; 4]) -> Result<(), KernelError> {
    let pad = kernel / 2;
    let p = Conv2dParams {
        n: 1,
        c,
        h: size,
        w: size,
        oc: c,
        kh: kernel,
        kw: kernel,
        strides: [stride; 2],
        pads: [pad; 4],
        dilations: [1; 2],
        groups: c,
    };
    let [oh, ow] = p.output()?;
    let (len, outputs) = (c * size * size, c * oh * ow);
    let macs = (outputs * kernel * kernel) as f64 * 1e-9;
    let x: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
    let w: Vec<i8> = (0..c * kernel * kernel).map(|i| (i * 11 % 255) as i8).collect();
    let weights = depthwise_nhwc_pack(exec, &p, &w, &[])?;
    let (offsets, scales, mut y) = (vec![3; c], vec![0.001; c], vec![0u8; outputs]);
    let e = Epilogue { offsets: &offsets, scales: &scales, activation: Activation::Relu, ..Epilogue::default() };
    let ints = time(|| depthwise_nhwc(exec, &p, Rows::U8(&x), 9, &weights, &e, Target::U8(&mut y, 9.0, 3)))?;
    let x: Vec<f32> = x.iter().map(|&v| f32::from(v)).collect();
    let w: Vec<f32> = w.iter().map(|&v| f32::from(v)).collect();
    let (weights, mut y) = (depthwise_nhwc_pack(exec, &p, &w, &[])?, vec![0f32; outputs]);
    let e = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
    let floats = time(|| depthwise_nhwc(exec, &p, Rows::F32(&x), 0, &weights, &e, Target::F32(&mut y)))?;
    let weights = conv2d_prepack(exec, &p, &w)?;
    let e = ConvEpilogue { activation: Activation::Relu, ..ConvEpilogue::default() };
    let planes = time(|| conv2d_run(exec, &p, &x, &weights, &e, &mut y))?;
    println!(
        "depthwise {c:4} x {size:3}, {kernel}x{kernel} / {stride}: int8 {:5.1} GMAC/s, f32 NHWC {:5.1}, f32 NCHW {:5.1}; int8 {:.2} times NCHW",
        macs / ints,
        macs / floats,
        macs / planes,
        planes / ints
    );
    Ok(())
}

fn layout(exec: &Exec, [c, pixels]: [usize; 2]) -> Result<(), KernelError> {
    let (x, mut y) = (vec![1u8; c * pixels], vec![0u8; c * pixels]);
    let (xf, mut yf) = (vec![1f32; c * pixels], vec![0f32; c * pixels]);
    let shape = [1, c, pixels];
    let copy = time(|| {
        y.copy_from_slice(&x);
        Ok(())
    })?;
    let copy_f = time(|| {
        yf.copy_from_slice(&xf);
        Ok(())
    })?;
    let times = [
        time(|| to_nhwc(exec, &x, shape, &mut y))? / copy,
        time(|| to_nchw(exec, &x, shape, &mut y))? / copy,
        time(|| to_nhwc(exec, &xf, shape, &mut yf))? / copy_f,
        time(|| to_nchw(exec, &xf, shape, &mut yf))? / copy_f,
        time(|| quantize_to_nhwc(exec, &xf, shape, (0.1, 3), &mut y))? / copy_f,
        time(|| dequantize_to_nchw(exec, Quant::U8(&x, 0.1, 3), shape, &mut yf))? / copy_f,
    ];
    println!(
        "layout {c:3} x {pixels:5}, times a copy: u8 to NHWC {:.1}, to NCHW {:.1}; f32 {:.1}, {:.1}; quantize {:.1}, dequantize {:.1}",
        times[0], times[1], times[2], times[3], times[4], times[5]
    );
    Ok(())
}

fn elements(exec: &Exec, len: usize) -> Result<(), KernelError> {
    let (x, z, mut y) = (vec![7u8; len], vec![9u8; len], vec![0u8; len]);
    let copy = time(|| {
        y.copy_from_slice(&x);
        Ok(())
    })?;
    let table = [5; 256];
    let look = time(|| lookup(exec, &x, &table, &mut y))? / copy;
    let mut two = |op| {
        let (a, b) = (Quant::U8(&x, 0.1, 3), Quant::U8(&z, 0.2, 5));
        time(|| binary(exec, op, a, b, Broadcast::Same, Activation::Relu, Target::U8(&mut y, 4.0, 2)))
    };
    let (add, mul) = (two(BinaryOp::Add)? / copy, two(BinaryOp::Mul)? / copy);
    let c = 64;
    let (a, b) = (Quant::U8(&x, 0.1, 3), Quant::U8(&z[..c], 0.2, 5));
    let shape = Broadcast::Images { n: 1, pixels: len / c, channels: c };
    let scale = time(|| binary(exec, BinaryOp::Mul, a, b, shape, Activation::None, Target::U8(&mut y, 4.0, 2)))? / copy;
    println!(
        "{len:8} bytes, times a copy: lookup {look:.1}, add {add:.1}, mul {mul:.1}, per image and channel {scale:.1}"
    );
    Ok(())
}

fn pools(exec: &Exec) -> Result<(), KernelError> {
    let (h, c) = (112, 64);
    let p = PoolNhwcParams {
        n: 1,
        h,
        w: h,
        c,
        window: [3; 2],
        strides: [2; 2],
        pads: [1; 4],
        dilations: [1; 2],
        out: [56; 2],
        depth: PoolDepth::ONE,
    };
    let (x, mut y) = (vec![7u8; h * h * c], vec![0u8; 56 * 56 * c]);
    let floats = vec![1f32; x.len()];
    let mut means = vec![0f32; y.len()];
    let max = time(|| max_pool2d_nhwc(exec, &p, &x, &mut y))?;
    let mean = time(|| avg_pool2d_nhwc(exec, &p, Divisor::Inside, Quant::U8(&x, 0.1, 3), Target::U8(&mut y, 9.0, 1)))?;
    let max_f = time(|| max_pool2d_nhwc(exec, &p, &floats, &mut means))?;
    let global = time(|| {
        let y = Target::U8(&mut y[..2048], 9.0, 1);
        global_avg_pool_nhwc(exec, Quant::U8(&x[..2048 * 49], 0.1, 3), [1, 49, 2048], y)
    })?;
    println!(
        "pools 3x3 / 2 on 112 x 112 x 64: f32 max / int8 max {:.1}, f32 max / int8 mean {:.1}; global 49 x 2048 {:.1} us",
        max_f / max,
        max_f / mean,
        global * 1e6
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |n| n.parse())?;
    let exec = Exec::new(Isa::from_env()?, threads);
    println!("{exec:?}");
    for shape in [
        [32, 112, 3, 1],
        [96, 112, 3, 2],
        [144, 56, 3, 1],
        [144, 56, 3, 2],
        [192, 28, 3, 1],
        [384, 14, 3, 1],
        [576, 14, 3, 2],
        [960, 7, 3, 1],
        [240, 28, 5, 1],
        [672, 14, 5, 2],
        [96, 56, 7, 1],
        [768, 7, 7, 1],
    ] {
        depthwise(&exec, shape)?;
    }
    for shape in [[3, 50176], [16, 12544], [64, 3136], [256, 3136], [256, 49], [1280, 49]] {
        layout(&exec, shape)?;
    }
    for len in [50_176, 802_816, 8 << 20] {
        elements(&exec, len)?;
    }
    pools(&exec)?;
    Ok(())
}
