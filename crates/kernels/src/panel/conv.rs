//! Convolution of NHWC images with packed weights: no copy of the image where its rows can
//! be read in place, else one padded copy of a band of it.

use std::ops::Range;

use super::drive::{CHUNK, Lines, Rows, SERIAL, Sweep, Walk, flat, part, parts};
use super::epilogue::Epilogue;
use super::gather::{self, JoinedWindows, Windows};
use super::image::{Image, Pixels};
use super::lines::{Copying, SLACK, spread};
use super::pack::{ByColumn, PanelElement, Panels, Part};
use super::seen;
use super::table::PanelKernel;
use super::target::Target;
use crate::buffer::with_scratch;
use crate::conv::Conv2dParams;
use crate::error::{KernelError, Result, exact, product, require};
use crate::exec::Exec;
use crate::few::Few;

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

/// Bytes of lines that are copied at a time where weights are small.
const FEW_LINES: usize = 1 << 16;

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

/// The runs of a window, and the elements of each; `size` is that of an element in bytes.
fn runs_of(p: &Conv2dParams, kernel: &PanelKernel, size: usize) -> (usize, usize) {
    let channels = p.c / p.groups.max(1);
    let (runs, len) = if joins_taps(p) { (p.kh, p.kw * channels) } else { (p.kh * p.kw, channels) };
    // Runs that do not fill steps of many bytes, or of two floats, are one: the windows are copied then.
    let padded = (kernel.takes_tails() || size == 2) && !(len * size).is_multiple_of(kernel.depth);
    if padded { (1, runs * len) } else { (runs, len) }
}

/// Whether the taps of a row of the window lie side by side, so that they are one run.
fn joins_taps(p: &Conv2dParams) -> bool {
    p.groups == 1 && (p.dilations[1] == 1 || p.kw == 1)
}

/// Whether the pixels of a tile's rows would meet in the same sets of the cache, where an output line has `ow` of them.
fn aliased(p: &Conv2dParams, size: usize, ow: usize) -> bool {
    (p.strides[1] * p.c * size).is_multiple_of(2048) && ow > 4
}

/// Packs weights `[oc, c / groups, kh, kw]` (ONNX `Conv`) for [`conv2d_nhwc`].
///
/// # Errors
/// The parameters are invalid or `w` has another length.
pub fn conv2d_nhwc_pack<T: PanelElement>(exec: &Exec, p: &Conv2dParams, w: &[T]) -> Result<Panels> {
    exact(NAME, "weights", w.len(), p.weight_len()?)?;
    let (channels, n) = (p.c / p.groups, p.oc / p.groups);
    let (runs, run_len) = runs_of(p, PanelKernel::best(T::table(), exec.isa()), size_of::<T>());
    let (joined, taps) = (joins_taps(p) || runs == 1, p.kh * p.kw);
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

/// As [`conv2d_nhwc_pack`], of floats that are rounded to bfloat16, half to even; the image is rounded on the way.
///
/// # Errors
/// As [`conv2d_nhwc_pack`].
pub fn conv2d_nhwc_pack_bf16(exec: &Exec, p: &Conv2dParams, w: &[f32]) -> Result<Panels> {
    conv2d_nhwc_pack(exec, p, &super::rounded(w))
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
    y: Target<'_>,
) -> Result {
    conv2d_nhwc_pixels(exec, p, Pixels::Parts(&[x]), pad, weights, epilogue, y)
}

/// As [`conv2d_nhwc`], of an image whose channels stand apart: in several tensors, or in the planes of a volume.
///
/// # Errors
/// As [`conv2d_nhwc`]; or the parts differ in type, there are several and groups, or `p` is no convolution of these planes.
pub fn conv2d_nhwc_pixels(
    exec: &Exec,
    p: &Conv2dParams,
    image: Pixels<'_>,
    pad: i32,
    weights: &Panels,
    epilogue: &Epilogue<'_>,
    mut y: Target<'_>,
) -> Result {
    let [oh, ow] = p.output()?;
    let pixels = product(NAME, &[p.n, oh, ow])?;
    product(NAME, &[p.n, p.h, p.w, p.c])?;
    let all = image.rows();
    let x = *all.first().ok_or(KernelError::Invalid { kernel: NAME, what: "the image has no part" })?;
    require(NAME, all.len() == 1 || p.groups == 1, "an image in parts has no groups")?;
    let copy = x.copying(weights.kernel, weights.size);
    let image = Image::of(exec.isa(), p, &image, (copy, weights.size))?;
    exact(NAME, "y", y.len(), product(NAME, &[pixels, p.oc])?)?;
    let packed = (weights.groups, weights.columns.n, weights.runs, weights.run_len);
    let (runs, run_len) = runs_of(p, weights.kernel, weights.size);
    require(NAME, packed == (p.groups, p.oc / p.groups, runs, run_len), "the weights were packed for another shape")?;
    require(NAME, x.ints() != weights.column_sums().is_empty(), "image and weights have different types")?;
    epilogue.check(NAME, x.ints(), p.oc, y.len())?;
    y.require_type(NAME, x.ints())?;
    x.require_type(NAME, weights.size)?;
    require(NAME, conv2d_nhwc_fits(p, x.size()), "the padded image takes over 4 GiB")?;
    if pixels == 0 {
        return Ok(());
    }
    if (p.kh, p.kw, p.groups, p.pads) == (1, 1, 1, [0; 4]) && image.dense().is_some() {
        let [sh, sw] = p.strides;
        let start = |i: usize| ((i / (oh * ow) * p.h + i / ow % oh * sh) * p.w + i % ow * sw) * p.c;
        let dense = (sh, sw) == (1, 1);
        return flat(exec, x, pixels, &start, dense.then_some(p.c), weights, epilogue, y);
    }
    let conv = Conv::new(p, x, image, pad, [oh, ow], weights);
    let out = y.shared();
    let offsets = conv.runs(weights);
    let (ints, signed) = (x.ints(), x.signed() && copy == Copying::Flip(0));
    let sweep =
        Sweep { isa: exec.isa(), panels: weights.view(), runs: &offsets, epilogue, ints, signed, out, ld: p.oc };
    let by_taps = weights.size == 4 && offsets.len() == p.kh * p.kw;
    if !(by_taps && seen::run(exec, p, &conv.image, !aliased(p, weights.size, ow), &sweep)) {
        conv.run(exec, &sweep, weights.bytes());
    }
    Ok(())
}

struct Conv<'a> {
    p: &'a Conv2dParams,
    out: [usize; 2],
    image: Image,
    /// Byte that padding holds, after the flip.
    fill: u8,
    copies: bool,
    /// Whether each window is copied into a row of its own.
    gathers: bool,
    geometry: Geometry,
}

impl<'a> Conv<'a> {
    fn new(
        p: &'a Conv2dParams,
        x: Rows<'_>,
        mut image: Image,
        pad: i32,
        out: [usize; 2],
        weights: &Panels,
    ) -> Conv<'a> {
        let (size, kernel, copy) = (weights.size, weights.kernel, image.copy);
        let reach = |i: usize, k: usize| (out[i] - 1) * p.strides[i] + (k - 1) * p.dilations[i] + 1;
        let reach = [reach(0, p.kh), reach(1, p.kw)];
        let padded = p.pads[0] + p.pads[1] > 0 || reach[0] > p.h || reach[1] > p.w;
        let (runs, _) = runs_of(p, kernel, size);
        let ragged = !(weights.run_len * size).is_multiple_of(kernel.depth);
        let apart = image.dense().is_none();
        let copies =
            padded || apart || aliased(p, size, out[1]) && !joins_taps(p) || ragged || copy != Copying::Flip(0);
        // What follows a run is multiplied by zeros, which must not be NaN.
        let gathers = gather::pays(kernel, p, out[1], runs == 1 && p.kh * p.kw > 1) || size == 2 && ragged;
        let dense = p.c * size;
        // Joined taps need their pixels side by side.
        let pixel = if copies && !joins_taps(p) { spread(dense, 4) } else { dense };
        let width = if copies { reach[1] } else { p.w };
        let fill = match copy {
            Copying::Flip(flip) if x.ints() => (pad as u8) ^ flip,
            _ => 0,
        };
        image.fill = fill;
        let geometry = Geometry { pixel, pitch: width * pixel, reach };
        Conv { p, out, image, fill, copies, gathers, geometry }
    }

    fn runs(&self, weights: &Panels) -> Few<usize, 64> {
        let (p, g) = (self.p, &self.geometry);
        if self.gathers {
            return (0..weights.runs).map(|run| run * weights.run_len * weights.size).collect();
        }
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
        let window = spread(self.windows().bytes(), panels.kernel.depth);
        let line = if self.gathers { ow * window } else { p.strides[0] * self.geometry.pitch };
        let (mut down, across) = parts(exec, work, (lines, line, 1), (count, bytes));
        // A band must not span images.
        let bands = down.div_ceil(p.n).min(oh);
        down = p.n * bands;
        exec.pool().run_if(work >= SERIAL, down * across, &|task| {
            let (index, columns) = (task / across, part(count, across, task % across));
            let (image, band) = (index / bands, part(oh, bands, index % bands));
            match self.gathers {
                true => self.gathered_band(sweep, image, band, columns),
                false => self.band(sweep, image, band, columns, bytes),
            }
        });
    }

    fn windows(&self) -> Windows<'_> {
        Windows { p: self.p, image: &self.image, fill: self.fill, joins_taps: joins_taps(self.p) }
    }

    /// As [`Conv::band`], with a copy of each window.
    fn gathered_band(&self, sweep: &Sweep<'_>, image: usize, band: Range<usize>, columns: Range<usize>) {
        let (p, g, ow) = (self.p, &self.geometry, self.out[1]);
        let windows = self.windows();
        let (bytes, rows) = (windows.bytes(), band.len() * ow);
        let pitch = spread(bytes, sweep.panels.kernel.depth);
        if !joins_taps(p) {
            return self.gathered(sweep, (image, band.clone()), columns, (rows, pitch), &|group, base| {
                for i in 0..rows {
                    let (pixel, to) = ((band.start + i / ow, i % ow), base.wrapping_add(i * pitch));
                    // SAFETY: the images were checked by the caller; the scratch has `pitch` bytes for each row.
                    unsafe {
                        windows.copy(image, pixel, group, to);
                        to.add(bytes).write_bytes(0, pitch - bytes);
                    }
                }
            });
        }
        // Windows overlap: their lines are padded and rounded once.
        let lines = self.reach(band.len());
        with_scratch((lines * g.pitch + SLACK).div_ceil(4), |scratch| {
            let from = scratch.as_mut_ptr().cast::<u8>();
            for i in 0..lines {
                // SAFETY: the scratch has `pitch` bytes for the line.
                unsafe { self.copy_line(self.line(image, band.start * p.strides[0] + i), from.add(i * g.pitch)) };
            }
            let gather = |to: *mut u8| JoinedWindows {
                from,
                strides: [p.strides[0] * g.pitch, p.strides[1] * g.pixel],
                out: [band.len(), ow],
                runs: (p.kh, p.dilations[0] * g.pitch),
                run: bytes / p.kh,
                to,
                pitch,
            };
            self.gathered(sweep, (image, band.clone()), columns, (rows, pitch), &|_, to| {
                self.image.isa.dispatch(gather(to));
            });
        });
    }

    /// Multiplies `rows` windows of a band, `pitch` bytes apart, which `gather` copies to where it is told, by group.
    fn gathered(
        &self,
        sweep: &Sweep<'_>,
        (image, band): (usize, Range<usize>),
        columns: Range<usize>,
        (rows, pitch): (usize, usize),
        gather: &dyn Fn(usize, *mut u8),
    ) {
        let (count, [oh, ow]) = (sweep.panels.columns.count(), self.out);
        with_scratch((rows * pitch + SLACK).div_ceil(4), |scratch| {
            let base = scratch.as_mut_ptr().cast::<u8>();
            let mut at_column = columns.start;
            while at_column < columns.end {
                let group = at_column / count;
                let panels = at_column % count..(columns.end - group * count).min(count);
                at_column += panels.len();
                gather(group, base);
                let lines = Lines { a: base, stride: pitch, count: rows, tail: std::ptr::null() };
                let at = (image * oh + band.start) * ow * self.p.oc + group * sweep.panels.columns.n;
                sweep.walk(|walk| {
                    for panel in panels.clone() {
                        // SAFETY: the rows are whole steps; tasks write disjoint tiles.
                        unsafe { walk.rows(lines, (group, panel), at) };
                    }
                });
            }
        });
    }

    /// Lines of the padded image that so many lines of the output read.
    fn reach(&self, lines: usize) -> usize {
        (lines - 1) * self.p.strides[0] + (self.p.kh - 1) * self.p.dilations[0] + 1
    }

    /// The first pixel of a line, which is counted from the padding above the image on; `None` in the padding.
    fn line(&self, image: usize, padded: usize) -> Option<usize> {
        let y = padded.wrapping_sub(self.p.pads[0]);
        (y < self.p.h).then(|| (image * self.p.h + y) * self.p.w)
    }

    fn band(&self, sweep: &Sweep<'_>, image: usize, band: Range<usize>, columns: Range<usize>, bytes: usize) {
        let (p, g, [oh, ow]) = (self.p, &self.geometry, self.out);
        let count = sweep.panels.columns.count();
        // Multiplies the windows of some lines of the band, whose first one starts at `base`.
        let tiles = |walk: &mut Walk<'_, '_>, base: *const u8, lines: Range<usize>| {
            for c in columns.clone() {
                let (group, panel) = (c / count, c % count);
                let channels = group * (p.c / p.groups) * self.image.size;
                for i in lines.clone() {
                    let a = base.wrapping_add(i * p.strides[0] * g.pitch + channels);
                    let lines = Lines { a, stride: p.strides[1] * g.pixel, count: ow, tail: std::ptr::null() };
                    let at = ((image * oh + band.start + i) * ow) * p.oc + group * sweep.panels.columns.n;
                    // SAFETY: the windows of the band lie in the image, or in its copy with
                    // slack; tasks write disjoint tiles.
                    unsafe { walk.rows(lines, (group, panel), at) };
                }
            }
        };
        if let Some(source) = self.image.dense().filter(|_| !self.copies) {
            let image = source.wrapping_add(image * p.h * p.w * p.c * self.image.source_size);
            let base = image.wrapping_add(band.start * p.strides[0] * g.pitch);
            return sweep.walk(|walk| tiles(walk, base, 0..band.len()));
        }
        let reach = |n: usize| self.reach(n);
        // Weights that stay in the second cache are read again for every few lines; what these leave of the time brings
        // the next ones there.
        let few = if bytes <= CHUNK { (FEW_LINES / g.pitch.max(1)).max(1) } else { band.len() };
        with_scratch((reach(band.len()) * g.pitch + SLACK).div_ceil(4), |scratch| {
            let base = scratch.as_mut_ptr().cast::<u8>();
            let (mut done, mut copied) = (0, 0);
            sweep.walk(|walk| {
                while done < band.len() {
                    let next = (done + few).min(band.len());
                    for i in copied..reach(next) {
                        let line = self.line(image, band.start * p.strides[0] + i);
                        // SAFETY: the scratch has `pitch` bytes for the line.
                        unsafe { self.copy_line(line, base.add(i * g.pitch)) };
                    }
                    copied = reach(next);
                    if bytes <= CHUNK {
                        let y = |i: usize| (band.start * p.strides[0] + i).saturating_sub(p.pads[0]).min(p.h);
                        let (from, to) = (y(copied), y(reach(next + few)));
                        let pixels = ((image * p.h + from) * p.w, (to - from) * p.w);
                        for (at, bytes) in self.image.places(pixels.0, pixels.1) {
                            at.into_iter().for_each(|at| walk.fetch(at, bytes));
                        }
                    }
                    tiles(walk, base, done..next);
                    done = next;
                }
            });
        });
    }

    /// Writes one padded line of `pitch` bytes.
    ///
    /// # Safety
    /// `line`, if any, is the first pixel of a row of the image; `dst` covers `pitch` bytes.
    unsafe fn copy_line(&self, line: Option<usize>, dst: *mut u8) {
        let (p, g) = (self.p, &self.geometry);
        let width = g.reach[1];
        let left = p.pads[1].min(width);
        let real = if line.is_some() { p.w.min(width - left) } else { 0 };
        let filled = if line.is_some() { left } else { 0 };
        // SAFETY: `filled + real <= width`, and `width` pixels are `pitch` bytes.
        unsafe {
            dst.write_bytes(self.fill, filled * g.pixel);
            let body = dst.add(filled * g.pixel);
            if let Some(line) = line {
                self.image.pixels((line, real), (0, p.c), body, g.pixel);
            }
            body.add(real * g.pixel).write_bytes(self.fill, (width - filled - real) * g.pixel);
        }
    }
}
