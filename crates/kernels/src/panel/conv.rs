//! Convolution of NHWC images with packed weights: no copy of the image where its rows can
//! be read in place, else one padded copy of a band of it.

use super::drive::{Rows, SERIAL, SLACK, Source, Sweep, copy_flipped, flat, part, parts, spread};
use super::finish::{Epilogue, Target};
use super::pack::{ByColumn, PanelElement, Panels, Part};
use crate::buffer::with_scratch;
use crate::conv::Conv2dParams;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;

const NAME: &str = "conv2d nhwc";

/// Distances in the image that the kernels read, in bytes.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    /// Between pixels of a row, and between rows.
    pixel: usize,
    pitch: usize,
    /// Rows and columns that the windows of the whole output reach.
    reach: [usize; 2],
}

/// Bytes of a padded image beyond which it is not convolved here: padding and dilation can
/// ask for any number of them.
const MOST_BYTES: usize = 1 << 32;

/// Whether the part of the padded image that the windows reach is of a size that can be
/// copied; `size` is that of an element in bytes.
pub fn conv2d_nhwc_fits(p: &Conv2dParams, size: usize) -> bool {
    let Ok(out) = p.output() else { return false };
    let reach = |i: usize, k: usize| {
        let steps = (out[i] - 1).checked_mul(p.strides[i])?;
        steps.checked_add((k - 1).checked_mul(p.dilations[i])?)?.checked_add(1)
    };
    // Pixels may be spread apart by a cache line.
    let pixel = p.c.checked_mul(size).and_then(|bytes| bytes.checked_add(64));
    let lines = reach(0, p.kh).zip(reach(1, p.kw)).and_then(|(h, w)| h.checked_mul(w));
    lines.zip(pixel).and_then(|(n, pixel)| n.checked_mul(pixel)).is_some_and(|bytes| bytes <= MOST_BYTES)
}

fn runs_of(p: &Conv2dParams) -> (usize, usize) {
    let channels = p.c / p.groups.max(1);
    if joins_taps(p) { (p.kh, p.kw * channels) } else { (p.kh * p.kw, channels) }
}

/// Whether the taps of a row of the window lie side by side, so that they are one run.
fn joins_taps(p: &Conv2dParams) -> bool {
    p.groups == 1 && (p.dilations[1] == 1 || p.kw == 1)
}

/// Packs weights `[oc, c / groups, kh, kw]` (ONNX `Conv`) for [`conv2d_nhwc`].
///
/// # Errors
/// The parameters are invalid or `w` has another length.
pub fn conv2d_nhwc_pack<T: PanelElement>(exec: &Exec, p: &Conv2dParams, w: &[T]) -> Result<Panels> {
    exact(NAME, "weights", w.len(), p.weight_len()?)?;
    let (channels, n) = (p.c / p.groups, p.oc / p.groups);
    let (runs, run_len) = runs_of(p);
    let (joined, taps) = (joins_taps(p), p.kh * p.kw);
    let column = |part: Part, column: usize, from: usize, out: &mut [T]| {
        let w = &w[(part.group * n + column) * channels * taps..][..channels * taps];
        if taps == 1 {
            return out.copy_from_slice(&w[from..][..out.len()]);
        }
        let (mut tap, mut c) =
            if joined { (part.run * p.kw + from / channels, from % channels) } else { (part.run, from) };
        for o in out {
            *o = w[c * taps + tap];
            c += 1;
            if c == channels {
                (c, tap) = (0, tap + 1);
            }
        }
    };
    Panels::pack(exec, (p.groups, n, runs, run_len), &ByColumn(column))
}

/// `y = epilogue(conv(x, w))` for NHWC `x` and `y`; `pad` is the element that padding
/// holds (the zero point of integers; ignored for floats).
///
/// # Errors
/// The parameters are invalid, the weights were packed for others, or a slice has another
/// length.
pub fn conv2d_nhwc(
    exec: &Exec,
    p: &Conv2dParams,
    x: Rows<'_>,
    pad: i32,
    weights: &Panels,
    epilogue: &Epilogue<'_>,
    mut y: Target<'_>,
) -> Result {
    let [oh, ow] = p.output()?;
    let pixels = product(NAME, &[p.n, oh, ow])?;
    exact(NAME, "x", x.len(), product(NAME, &[p.n, p.h, p.w, p.c])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[pixels, p.oc])?)?;
    let packed = (weights.groups, weights.columns.n, weights.runs, weights.run_len);
    let (runs, run_len) = runs_of(p);
    require(NAME, packed == (p.groups, p.oc / p.groups, runs, run_len), "the weights were packed for another shape")?;
    require(NAME, x.ints() != weights.column_sums().is_empty(), "image and weights have different types")?;
    epilogue.check(NAME, x.ints(), p.oc, y.len())?;
    require(NAME, conv2d_nhwc_fits(p, x.size()), "the padded image takes over 4 GiB")?;
    if pixels == 0 {
        return Ok(());
    }
    if (p.kh, p.kw, p.groups, p.pads) == (1, 1, 1, [0; 4]) {
        let [sh, sw] = p.strides;
        let start = |i: usize| ((i / (oh * ow) * p.h + i / ow % oh * sh) * p.w + i % ow * sw) * p.c;
        let dense = (sh, sw) == (1, 1);
        return flat(exec, x, pixels, &start, dense.then_some(p.c), weights, epilogue, y);
    }
    let conv = Conv::new(p, x, pad, [oh, ow]);
    let out = y.shared();
    let offsets = conv.runs();
    let sweep =
        Sweep { isa: exec.isa(), panels: weights.view(), runs: &offsets, epilogue, ints: x.ints(), out, ld: p.oc };
    conv.run(exec, &sweep, weights.bytes());
    Ok(())
}

struct Conv<'a> {
    p: &'a Conv2dParams,
    out: [usize; 2],
    size: usize,
    /// Byte that padding holds, after the flip.
    fill: u8,
    flip: u8,
    x: Source,
    copies: bool,
    geometry: Geometry,
}

impl<'a> Conv<'a> {
    fn new(p: &'a Conv2dParams, x: Rows<'_>, pad: i32, out: [usize; 2]) -> Conv<'a> {
        let size = x.size();
        let reach = |i: usize, k: usize| (out[i] - 1) * p.strides[i] + (k - 1) * p.dilations[i] + 1;
        let reach = [reach(0, p.kh), reach(1, p.kw)];
        let padded = p.pads[0] + p.pads[1] > 0 || reach[0] > p.h || reach[1] > p.w;
        let aliased = (p.strides[1] * p.c * size).is_multiple_of(2048) && out[1] > 4;
        let (_, run_len) = runs_of(p);
        let ragged = !(run_len * size).is_multiple_of(4);
        let copies = padded || aliased && !joins_taps(p) || ragged || x.flip() != 0;
        let dense = p.c * size;
        // Joined taps need their pixels side by side.
        let pixel = if copies && !joins_taps(p) { spread(dense) } else { dense };
        let width = if copies { reach[1] } else { p.w };
        let fill = if x.ints() { (pad as u8) ^ x.flip() } else { 0 };
        let geometry = Geometry { pixel, pitch: width * pixel, reach };
        Conv { p, out, size, fill, flip: x.flip(), x: Source(x.ptr()), copies, geometry }
    }

    fn runs(&self) -> Vec<usize> {
        let (p, g) = (self.p, &self.geometry);
        let row = |r: usize| r * p.dilations[0] * g.pitch;
        if joins_taps(p) {
            return (0..p.kh).map(row).collect();
        }
        (0..p.kh * p.kw).map(|t| row(t / p.kw) + t % p.kw * p.dilations[1] * g.pixel).collect()
    }

    fn run(&self, exec: &Exec, sweep: &Sweep<'_>, bytes: usize) {
        let (p, [oh, ow], panels) = (self.p, self.out, sweep.panels);
        let lines = p.n * oh;
        let count = panels.columns.count() * p.groups;
        let work = (lines * ow).saturating_mul(p.oc).saturating_mul(panels.runs * panels.steps);
        let line = p.strides[0] * self.geometry.pitch;
        let (mut down, across) = parts(exec, work, (lines, line, 1), (count, bytes));
        // A band must not span images.
        let bands = down.div_ceil(p.n).min(oh);
        down = p.n * bands;
        exec.pool().run_if(work >= SERIAL, down * across, &|task| {
            let (index, columns) = (task / across, part(count, across, task % across));
            let (image, band) = (index / bands, part(oh, bands, index % bands));
            self.band(sweep, image, band, columns);
        });
    }

    fn band(&self, sweep: &Sweep<'_>, image: usize, band: std::ops::Range<usize>, columns: std::ops::Range<usize>) {
        let (p, g, [oh, ow]) = (self.p, &self.geometry, self.out);
        let count = sweep.panels.columns.count();
        let tiles = |base: *const u8| {
            for c in columns.clone() {
                let (group, panel) = (c / count, c % count);
                let channels = group * (p.c / p.groups) * self.size;
                for (i, oy) in band.clone().enumerate() {
                    let a = base.wrapping_add(i * p.strides[0] * g.pitch + channels);
                    let at = ((image * oh + oy) * ow) * p.oc + group * sweep.panels.columns.n;
                    // SAFETY: the windows of the band lie in the image, or in its copy with
                    // slack; tasks write disjoint tiles.
                    unsafe { sweep.rows(a, p.strides[1] * g.pixel, ow, (group, panel), at) };
                }
            }
        };
        let source = self.x.ptr().wrapping_add(image * p.h * p.w * p.c * self.size);
        if !self.copies {
            tiles(source.wrapping_add(band.start * p.strides[0] * g.pitch));
            return;
        }
        let lines = (band.len() - 1) * p.strides[0] + (p.kh - 1) * p.dilations[0] + 1;
        with_scratch((lines * g.pitch + SLACK).div_ceil(4), |scratch| {
            let base = scratch.as_mut_ptr().cast::<u8>();
            for i in 0..lines {
                let y = (band.start * p.strides[0] + i).wrapping_sub(p.pads[0]);
                let line = (y < p.h).then(|| source.wrapping_add(y * p.w * p.c * self.size));
                // SAFETY: the scratch has `pitch` bytes for the line.
                unsafe { self.copy_line(line, base.add(i * g.pitch)) };
            }
            tiles(base);
        });
    }

    /// Writes one padded line of `pitch` bytes.
    ///
    /// # Safety
    /// `line`, if any, is a row of the image; `dst` covers `pitch` bytes.
    unsafe fn copy_line(&self, line: Option<*const u8>, dst: *mut u8) {
        let (p, g) = (self.p, &self.geometry);
        let (width, dense) = (g.reach[1], p.c * self.size);
        let left = p.pads[1].min(width);
        let real = if line.is_some() { p.w.min(width - left) } else { 0 };
        let filled = if line.is_some() { left } else { 0 };
        // SAFETY: `filled + real <= width`, and `width` pixels are `pitch` bytes.
        unsafe {
            dst.write_bytes(self.fill, filled * g.pixel);
            let body = dst.add(filled * g.pixel);
            if let Some(line) = line {
                if g.pixel == dense {
                    copy_flipped(line, body, real * dense, self.flip);
                } else {
                    for x in 0..real {
                        copy_flipped(line.add(x * dense), body.add(x * g.pixel), dense, self.flip);
                    }
                }
            }
            body.add(real * g.pixel).write_bytes(self.fill, (width - filled - real) * g.pixel);
        }
    }
}
