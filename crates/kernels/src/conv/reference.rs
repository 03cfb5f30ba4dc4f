//! The definitions of convolution and its transpose, for tests.

use super::{Conv2dParams, ConvTranspose2dParams};

/// `y[n, o, ·, ·] = bias[o] + Σ x · w`, in f64, element by element.
///
/// # Panics
/// The parameters are invalid or a slice is too short: this is for tests.
pub fn conv2d_reference(p: &Conv2dParams, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let [oh, ow] = p.output().expect("valid parameters");
    let (cg, og) = (p.c / p.groups, p.oc / p.groups);
    let mut y = Vec::with_capacity(p.n * p.oc * oh * ow);
    for n in 0..p.n {
        for o in 0..p.oc {
            for oy in 0..oh {
                for ox in 0..ow {
                    let mut sum = bias.map_or(0.0, |b| f64::from(b[o]));
                    for c in 0..cg {
                        for r in 0..p.kh {
                            for t in 0..p.kw {
                                let iy = (oy * p.strides[0] + r * p.dilations[0]).wrapping_sub(p.pads[0]);
                                let ix = (ox * p.strides[1] + t * p.dilations[1]).wrapping_sub(p.pads[1]);
                                if iy < p.h && ix < p.w {
                                    let channel = o / og * cg + c;
                                    let pixel = x[((n * p.c + channel) * p.h + iy) * p.w + ix];
                                    let weight = w[((o * cg + c) * p.kh + r) * p.kw + t];
                                    sum += f64::from(pixel) * f64::from(weight);
                                }
                            }
                        }
                    }
                    y.push(sum as f32);
                }
            }
        }
    }
    y
}

/// Scatters each input pixel times its window into the output, in f64.
///
/// # Panics
/// As [`conv2d_reference`].
pub fn conv_transpose2d_reference(p: &ConvTranspose2dParams, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let (cg, og) = (p.c / p.groups, p.oc / p.groups);
    let [oh, ow] = p.out;
    let mut y = vec![0f64; p.n * p.oc * oh * ow];
    for n in 0..p.n {
        for c in 0..p.c {
            let group = c / cg;
            for o in 0..og {
                for iy in 0..p.h {
                    for ix in 0..p.w {
                        for r in 0..p.kh {
                            for t in 0..p.kw {
                                let oy = (iy * p.strides[0] + r * p.dilations[0]).wrapping_sub(p.pads[0]);
                                let ox = (ix * p.strides[1] + t * p.dilations[1]).wrapping_sub(p.pads[1]);
                                if oy < oh && ox < ow {
                                    let pixel = x[((n * p.c + c) * p.h + iy) * p.w + ix];
                                    let weight = w[((c * og + o) * p.kh + r) * p.kw + t];
                                    let channel = group * og + o;
                                    y[((n * p.oc + channel) * oh + oy) * ow + ox] +=
                                        f64::from(pixel) * f64::from(weight);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    let plane = oh * ow;
    y.iter().enumerate().map(|(i, &v)| (v + bias.map_or(0.0, |b| f64::from(b[i / plane % p.oc]))) as f32).collect()
}
