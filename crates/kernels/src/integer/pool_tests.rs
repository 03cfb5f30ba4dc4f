use super::*;
use crate::testing::{Guarded, Random, execs};

fn params() -> Vec<PoolNhwcParams> {
    let base = PoolNhwcParams {
        n: 2,
        h: 7,
        w: 9,
        c: 5,
        window: [3, 3],
        strides: [2, 2],
        pads: [1, 1, 1, 1],
        dilations: [1, 1],
        out: [4, 5],
        depth: PoolDepth::ONE,
    };
    let deep = PoolDepth { len: 5, window: 3, stride: 2, pads: [1, 1], dilation: 1, out: 3 };
    vec![
        base,
        PoolNhwcParams { c: 64, window: [2, 2], pads: [0; 4], out: [3, 4], ..base },
        PoolNhwcParams { c: 83, strides: [1, 1], out: [7, 9], ..base },
        PoolNhwcParams { c: 145, n: 1, dilations: [2, 3], out: [3, 3], ..base },
        // As with ceil_mode, the last windows begin in the padding.
        PoolNhwcParams { pads: [2, 0, 0, 1], window: [2, 3], out: [5, 5], ..base },
        PoolNhwcParams { c: 600, n: 1, window: [7, 9], pads: [0; 4], out: [1, 1], ..base },
        // Volumes.
        PoolNhwcParams { depth: deep, ..base },
        PoolNhwcParams { c: 67, depth: PoolDepth { window: 2, stride: 1, pads: [0, 1], out: 5, ..deep }, ..base },
        PoolNhwcParams { c: 16, depth: PoolDepth { dilation: 2, stride: 1, out: 3, ..deep }, ..base },
    ]
}

/// Calls `body(output element, elements of the window, count with padding)`.
fn walk(p: &PoolNhwcParams, mut body: impl FnMut(usize, &[usize], usize)) {
    let ([oh, ow], z) = (p.out, p.depth);
    for i in 0..p.n * z.out * oh * ow * p.c {
        let (c, ox, oy, n) = (i % p.c, i / p.c % ow, i / p.c / ow % oh, i / p.c / ow / oh);
        let (oz, n) = (n % z.out, n / z.out);
        let (mut taps, mut padded) = (Vec::new(), 0);
        for d in 0..z.window {
            for r in 0..p.window[0] {
                for k in 0..p.window[1] {
                    let deep = oz * z.stride + d * z.dilation;
                    let y = oy * p.strides[0] + r * p.dilations[0];
                    let x = ox * p.strides[1] + k * p.dilations[1];
                    let plane = y < p.h + p.pads[0] + p.pads[2] && x < p.w + p.pads[1] + p.pads[3];
                    padded += usize::from(plane && deep < z.len + z.pads[0] + z.pads[1]);
                    let (y, x) = (y.wrapping_sub(p.pads[0]), x.wrapping_sub(p.pads[1]));
                    let deep = deep.wrapping_sub(z.pads[0]);
                    if deep < z.len && y < p.h && x < p.w {
                        taps.push((((n * z.len + deep) * p.h + y) * p.w + x) * p.c + c);
                    }
                }
            }
        }
        body(i, &taps, padded);
    }
}

#[test]
fn takes_the_largest_of_each_window() {
    let mut random = Random::new(1);
    for p in params() {
        let len = p.n * p.depth.len * p.h * p.w * p.c;
        let x: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        let signed: Vec<i8> = x.iter().map(|&v| v as i8).collect();
        let floats = random.vec(len);
        let (mut u, mut i, mut f) = (Vec::new(), Vec::new(), Vec::new());
        walk(&p, |_, taps, _| {
            u.push(taps.iter().map(|&t| x[t]).max().unwrap_or(0));
            i.push(taps.iter().map(|&t| signed[t]).max().unwrap_or(-128));
            f.push(taps.iter().map(|&t| floats[t]).fold(f32::NEG_INFINITY, f32::max));
        });
        for exec in execs() {
            let mut y = Guarded::new(&vec![0u8; u.len()]);
            max_pool2d_nhwc(&exec, &p, Guarded::new(&x).get(), y.get()).unwrap();
            assert_eq!(y.get(), u, "{p:?} {exec:?}");
            let mut y = Guarded::new(&vec![0i8; u.len()]);
            max_pool2d_nhwc(&exec, &p, Guarded::new(&signed).get(), y.get()).unwrap();
            assert_eq!(y.get(), i, "{p:?} {exec:?}");
            let mut y = Guarded::new(&vec![0f32; u.len()]);
            max_pool2d_nhwc(&exec, &p, Guarded::new(&floats).get(), y.get()).unwrap();
            assert_eq!(y.get(), f, "{p:?} {exec:?}");
        }
    }
}

#[test]
fn averages_windows_with_and_without_padding() {
    let mut random = Random::new(6);
    for p in params() {
        let len = p.n * p.depth.len * p.h * p.w * p.c;
        let x: Vec<i8> = (0..len).map(|_| random.next() as i8).collect();
        let floats = random.vec(len);
        let (zero, scale) = (-11, 0.37f32);
        for divisor in [Divisor::Inside, Divisor::Padded, Divisor::One] {
            let (mut want, mut want_floats) = (Vec::new(), Vec::new());
            walk(&p, |_, taps, padded| {
                let count = match divisor {
                    Divisor::Inside => taps.len() as f32,
                    Divisor::Padded => padded as f32,
                    Divisor::One => 1.0,
                };
                let sum: i32 = taps.iter().map(|&t| i32::from(x[t]) - zero).sum();
                let v = sum as f32 * scale / count;
                let v = if v.is_nan() { 0.0 } else { (v * 2.1).round_ties_even().clamp(-100.0, 155.0) + 100.0 };
                want.push(v as u8);
                want_floats.push(taps.iter().fold(0.0, |sum, &t| sum + floats[t]) / count);
            });
            for exec in execs() {
                let mut y = Guarded::new(&vec![0u8; want.len()]);
                let mut from = Guarded::new(&x);
                let x = Quant::I8(from.get(), scale, zero);
                avg_pool2d_nhwc(&exec, &p, divisor, x, Target::U8(y.get(), 2.1, 100)).unwrap();
                assert_eq!(y.get(), want, "{p:?} {divisor:?} {exec:?}");
                let mut y = Guarded::new(&vec![0f32; want.len()]);
                let mut from = Guarded::new(&floats);
                avg_pool2d_nhwc(&exec, &p, divisor, Quant::F32(from.get()), Target::F32(y.get())).unwrap();
                let same = y.get().iter().zip(&want_floats).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
                assert!(same, "{p:?} {divisor:?} {exec:?}");
            }
        }
    }
}

#[test]
fn averages_all_pixels() {
    let mut random = Random::new(8);
    let [n, pixels, c] = [2, 49, 333];
    let x: Vec<u8> = (0..n * pixels * c).map(|_| random.next() as u8).collect();
    let want: Vec<f32> = (0..n * c)
        .map(|i| {
            let sum: i32 = (0..pixels).map(|p| i32::from(x[(i / c * pixels + p) * c + i % c]) - 7).sum();
            sum as f32 * 0.5 / pixels as f32
        })
        .collect();
    for exec in execs() {
        let mut y = vec![0f32; n * c];
        global_avg_pool_nhwc(&exec, Quant::U8(&x, 0.5, 7), [n, pixels, c], Target::F32(&mut y)).unwrap();
        assert_eq!(y, want, "{exec:?}");
    }
}

#[test]
fn refuses_bad_parameters_and_lengths() {
    let exec = &execs()[0];
    let p = params()[0];
    let (x, mut y) = (vec![0u8; p.n * p.h * p.w * p.c], vec![0u8; 200]);
    assert!(max_pool2d_nhwc(exec, &p, &x, &mut y).is_ok());
    assert!(max_pool2d_nhwc(exec, &p, &x[1..], &mut y).is_err());
    assert!(max_pool2d_nhwc(exec, &p, &x, &mut y[1..]).is_err());
    assert!(max_pool2d_nhwc(exec, &PoolNhwcParams { strides: [0, 1], ..p }, &x, &mut y).is_err());
    assert!(max_pool2d_nhwc(exec, &PoolNhwcParams { window: [usize::MAX, 1], ..p }, &x, &mut y).is_err());
    let deep = PoolDepth { len: 2, ..PoolDepth::ONE };
    assert!(max_pool2d_nhwc(exec, &PoolNhwcParams { depth: deep, ..p }, &x, &mut y).is_err());
    let still = PoolDepth { stride: 0, ..PoolDepth::ONE };
    assert!(max_pool2d_nhwc(exec, &PoolNhwcParams { depth: still, ..p }, &x, &mut y).is_err());
    assert!(max_pool2d_nhwc(exec, &PoolNhwcParams { pads: [0, 0, 0, usize::MAX], ..p }, &x, &mut y).is_err());
}
