//! Transposed convolution whose windows tile the output, channels last: each result is one product, so that a line of
//! pixels and a row of the window make a line of results.

use super::Rows;
use super::drive::{Lines, SERIAL, Source, Sweep, part, parts};
use super::epilogue::Epilogue;
use super::lines::Placed;
use super::pack::{ByColumn, PanelElement, Panels, Part};
use super::target::Target;
use crate::conv::ConvTranspose2dParams;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;

const NAME: &str = "tiling transposed convolution";

/// Whether [`conv_transpose2d_nhwc`] computes it: windows tile the output, and there is one group.
pub fn conv_transpose2d_nhwc_fits(p: &ConvTranspose2dParams) -> bool {
    let some = [p.n, p.c, p.h, p.w, p.oc, p.kh, p.kw].iter().all(|&d| d > 0);
    some && p.groups == 1 && p.tiles_exactly()
}

/// Packs weights `[c, oc, kh, kw]` for [`conv_transpose2d_nhwc`]: a group of panels for each row of the window, whose
/// columns are those of the window, with the output channels of each.
///
/// # Errors
/// [`conv_transpose2d_nhwc_fits`] is false, or `weights` has another length.
pub fn conv_transpose2d_nhwc_pack<T: PanelElement>(
    exec: &Exec,
    p: &ConvTranspose2dParams,
    weights: &[T],
) -> Result<Panels> {
    p.check()?;
    require(NAME, conv_transpose2d_nhwc_fits(p), "the windows do not tile the output")?;
    exact(NAME, "weights", weights.len(), product(NAME, &[p.c, p.oc, p.kh, p.kw])?)?;
    let column = |part: Part, column: usize, from: usize, out: &mut [T]| {
        let (t, o) = (column / p.oc, column % p.oc);
        for (k, v) in out.iter_mut().enumerate() {
            *v = weights[(((from + k) * p.oc + o) * p.kh + part.group) * p.kw + t];
        }
    };
    Panels::pack(exec, (p.kh, p.kw * p.oc, 1, p.c), &ByColumn(column))
}

/// As [`conv_transpose2d_nhwc_pack`], of floats that are rounded to bfloat16, half to even; the image is rounded on the way.
///
/// # Errors
/// As [`conv_transpose2d_nhwc_pack`].
pub fn conv_transpose2d_nhwc_pack_bf16(exec: &Exec, p: &ConvTranspose2dParams, weights: &[f32]) -> Result<Panels> {
    conv_transpose2d_nhwc_pack(exec, p, &super::rounded(weights))
}

/// Computes `y` `[n, out height, out width, oc]` from `x` `[n, h, w, c]`. Columns of the epilogue are
/// `[kh, kw, oc]`: one for each place of the window and output channel.
///
/// # Errors
/// The parameters are not those of the weights, a slice has another length than the shape, or the epilogue does not fit.
pub fn conv_transpose2d_nhwc(
    exec: &Exec,
    p: &ConvTranspose2dParams,
    x: Rows<'_>,
    weights: &Panels,
    epilogue: &Epilogue<'_>,
    mut y: Target<'_>,
) -> Result {
    p.check()?;
    let n = p.kw * p.oc;
    let shape = (weights.groups, weights.columns.n, weights.runs, weights.run_len);
    let fits = conv_transpose2d_nhwc_fits(p) && shape == (p.kh, n, 1, p.c);
    require(NAME, fits, "the weights were packed for another shape")?;
    exact(NAME, "x", x.len(), product(NAME, &[p.n, p.h, p.w, p.c])?)?;
    let results = product(NAME, &[p.n, p.out[0], p.out[1], p.oc])?;
    exact(NAME, "y", y.len(), results)?;
    epilogue.check(NAME, x.ints(), p.kh * n, results)?;
    require(NAME, epilogue.rows.is_none(), "pixels have no formats of their own")?;
    require(NAME, x.ints() != weights.column_sums().is_empty(), "rows and weights have different types")?;
    y.require_results(NAME)?;
    let (kernel, bytes, lines) = (weights.kernel, p.c * weights.size, p.n * p.h);
    let copy = x.copying(kernel, weights.size);
    let whole = bytes.is_multiple_of(4) || kernel.takes_tails();
    let is_read = copy == super::lines::Copying::Flip(0) && whole && !bytes.is_multiple_of(2048);
    let direct = is_read.then_some(p.c * x.size());
    let (ints, signed, out) = (x.ints(), x.signed() && copy == super::lines::Copying::Flip(0), y.shared());
    let sweep = Sweep { isa: exec.isa(), panels: weights.view(), runs: &[0], epilogue, ints, signed, out, ld: n };
    let count = p.kh * weights.columns.count();
    let work = results.saturating_mul(p.c) / if ints { 4 } else { 1 };
    let (down, across) = parts(exec, work, (lines, p.w * bytes, 1), (count, weights.bytes()));
    let source = Source(x.ptr());
    exec.pool().run_if(work >= SERIAL, down * across, &|task| {
        let (lines, panels) = (part(lines, down, task / across), part(count, across, task % across));
        let first = |i: usize| source.ptr().wrapping_add((lines.start * p.w + i) * p.c * x.size());
        let placed = Placed { start: &first, bytes, direct, copy };
        let body = |pixels: Lines| {
            sweep.walk(|walk| {
                for panel in panels.clone() {
                    let (row, panel) = (panel / weights.columns.count(), panel % weights.columns.count());
                    for (i, line) in lines.clone().enumerate() {
                        let skip = i * p.w;
                        let tail = match pixels.tail.is_null() {
                            true => pixels.tail,
                            false => pixels.tail.wrapping_add(skip * kernel.depth),
                        };
                        let a = pixels.a.wrapping_add(skip * pixels.stride);
                        let at = (line * p.kh + row) * p.w * n;
                        // SAFETY: the pixels lie in `x` or were copied with slack; tasks write disjoint results.
                        unsafe { walk.rows(Lines { a, count: p.w, tail, ..pixels }, (row, panel), at) };
                    }
                }
            });
        };
        // SAFETY: all pixels lie in `x`.
        unsafe { placed.with(exec.isa(), kernel, lines.len() * p.w, body) };
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::conv_transpose2d_reference;
    use crate::testing::{Guarded, Random, execs};

    const BASE: ConvTranspose2dParams = ConvTranspose2dParams {
        n: 2,
        c: 7,
        h: 3,
        w: 5,
        oc: 6,
        kh: 2,
        kw: 2,
        strides: [2, 2],
        pads: [0, 0],
        dilations: [1, 1],
        groups: 1,
        out: [6, 10],
    };

    /// The plain definition on integers, channels last.
    fn reference(p: &ConvTranspose2dParams, x: &[i32], w: &[i8]) -> Vec<i32> {
        let mut y = vec![0; p.n * p.out[0] * p.out[1] * p.oc];
        for (at, y) in y.iter_mut().enumerate() {
            let (o, column, line) = (at % p.oc, at / p.oc % p.out[1], at / p.oc / p.out[1]);
            let (row, image) = (line % p.out[0], line / p.out[0]);
            let pixel = ((image * p.h + row / p.kh) * p.w + column / p.kw) * p.c;
            let weight = |c: usize| i32::from(w[((c * p.oc + o) * p.kh + row % p.kh) * p.kw + column % p.kw]);
            *y = (0..p.c).map(|c| x[pixel + c] * weight(c)).sum();
        }
        y
    }

    #[test]
    fn equals_plain_loops_on_every_tier() {
        let wide = ConvTranspose2dParams { n: 1, c: 64, h: 2, w: 33, oc: 40, out: [4, 66], ..BASE };
        let strips = ConvTranspose2dParams { kh: 1, kw: 3, strides: [1, 3], out: [3, 15], ..BASE };
        let deep = ConvTranspose2dParams { n: 1, c: 2048, h: 1, w: 6, oc: 3, out: [2, 12], ..BASE };
        let mut random = Random::new(71);
        for p in [BASE, wide, strips, deep] {
            let x: Vec<u8> = (0..p.n * p.h * p.w * p.c).map(|_| random.next() as u8).collect();
            let w: Vec<i8> = (0..p.c * p.oc * p.kh * p.kw).map(|_| random.next() as i8).collect();
            let columns = p.kh * p.kw * p.oc;
            let bias: Vec<i32> = (0..p.oc).map(|_| random.below(2001) as i32 - 1000).collect();
            for (signed, zero) in [(false, 0), (false, 131), (true, -5)] {
                let values = x.iter().map(|&b| if signed { i32::from(b as i8) } else { i32::from(b) } - zero);
                let sums = reference(&p, &values.collect::<Vec<_>>(), &w);
                let code = |(i, s): (usize, &i32)| {
                    let v = (s + bias[i % p.oc]) as f32 * 0.004;
                    (v.round_ties_even().clamp(-9.0, 246.0) as i32 + 9) as u8
                };
                let want: Vec<u8> = sums.iter().enumerate().map(code).collect();
                let (mut from, mut y) = (Guarded::new(&x), Guarded::new(&vec![0u8; want.len()]));
                let as_signed: Vec<i8> = x.iter().map(|&b| b as i8).collect();
                let mut from_signed = Guarded::new(&as_signed);
                for exec in execs() {
                    let weights = conv_transpose2d_nhwc_pack(&exec, &p, &w).unwrap();
                    let shift = if signed { 128 } else { 0 };
                    let offset = |(i, s): (usize, &i32)| bias[i % p.oc] - (zero + shift) * s;
                    let offsets: Vec<i32> = weights.column_sums().iter().enumerate().map(offset).collect();
                    let scales = vec![0.004; columns];
                    let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
                    let rows = if signed { Rows::I8(from_signed.get()) } else { Rows::U8(from.get()) };
                    y.get().fill(0);
                    conv_transpose2d_nhwc(&exec, &p, rows, &weights, &epilogue, Target::U8(y.get(), 1.0, 9)).unwrap();
                    assert_eq!(y.get(), want, "{p:?} {signed} {exec:?}");
                }
            }
        }
    }

    #[test]
    fn equals_the_definition_of_floats() {
        let p = ConvTranspose2dParams { n: 1, ..BASE };
        let mut random = Random::new(72);
        let (x, w) = (random.vec(p.c * p.h * p.w), random.vec(p.c * p.oc * p.kh * p.kw));
        let want = conv_transpose2d_reference(&p, &x, &w, None);
        let mut last = vec![0.0; x.len()];
        x.iter().enumerate().for_each(|(i, &v)| last[i % (p.h * p.w) * p.c + i / (p.h * p.w)] = v);
        for (exec, bf16) in execs().iter().flat_map(|exec| [(exec, false), (exec, true)]) {
            let pack = if bf16 { conv_transpose2d_nhwc_pack_bf16 } else { conv_transpose2d_nhwc_pack::<f32> };
            let (weights, most) = (pack(exec, &p, &w).unwrap(), if bf16 { 0.03 } else { 1e-5 });
            let mut y = vec![0f32; want.len()];
            let target = Target::F32(&mut y);
            conv_transpose2d_nhwc(exec, &p, Rows::F32(&last), &weights, &Epilogue::default(), target).unwrap();
            for (i, &v) in want.iter().enumerate() {
                let plane = p.out[0] * p.out[1];
                let got = y[i % plane * p.oc + i / plane];
                assert!((got - v).abs() < most, "{got} is not {v}, {exec:?} bf16 {bf16}");
            }
        }
    }

    #[test]
    fn refuses_windows_that_overlap_and_other_weights() {
        let exec = &execs()[0];
        for p in [
            ConvTranspose2dParams { kh: 3, out: [7, 10], ..BASE },
            ConvTranspose2dParams { pads: [1, 0], out: [5, 10], ..BASE },
            ConvTranspose2dParams { out: [7, 10], ..BASE },
            ConvTranspose2dParams { n: 0, ..BASE },
        ] {
            assert!(!conv_transpose2d_nhwc_fits(&p));
            assert!(conv_transpose2d_nhwc_pack(exec, &p, &vec![0i8; p.c * p.oc * p.kh * p.kw]).is_err());
        }
        assert!(conv_transpose2d_nhwc_pack(exec, &BASE, &[0i8; 5]).is_err());
        let weights = conv_transpose2d_nhwc_pack(exec, &BASE, &[0i8; 7 * 6 * 4]).unwrap();
        let (x, mut y) = (vec![0u8; 2 * 3 * 5 * 7], vec![0f32; 2 * 6 * 10 * 6]);
        let (offsets, scales) = (vec![0; 24], vec![1.0; 24]);
        let epilogue = Epilogue { offsets: &offsets, scales: &scales, ..Epilogue::default() };
        let mut run = |p: &ConvTranspose2dParams, x: &[u8], e: &Epilogue<'_>| {
            conv_transpose2d_nhwc(exec, p, Rows::U8(x), &weights, e, Target::F32(&mut y))
        };
        assert!(run(&BASE, &x, &epilogue).is_ok());
        assert!(run(&BASE, &x[1..], &epilogue).is_err());
        assert!(run(&ConvTranspose2dParams { oc: 5, ..BASE }, &x, &epilogue).is_err());
        assert!(run(&BASE, &x, &Epilogue { scales: &scales[1..], ..epilogue }).is_err());
    }
}
