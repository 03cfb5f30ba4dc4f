//! Windows of a convolution copied into rows, one after another: for kernels that take many rows of many bytes at
//! a time, where the lines of the output are short or the runs of a window are.

use super::image::Image;
use super::lines::SLACK;
use super::table::PanelKernel;
use crate::conv::Conv2dParams;
use crate::simd::{Kernel, Simd};

/// Whether windows are copied: `ow` is the length of an output line, and all windows or none of a set of weights are
/// copied where its panels have one run for several of the image.
pub(crate) fn pays(kernel: &PanelKernel, p: &Conv2dParams, ow: usize, joined: bool) -> bool {
    if joined {
        return true;
    }
    let columns = p.oc / p.groups;
    match kernel.takes_tails() {
        true => fills_blocks(ow, columns),
        false => fills_tiles(kernel.mr, ow, columns) && p.kh * p.kw > 1,
    }
}

/// Blocks of 16 rows for each line, which wait for each other where one holds the line, against full blocks and a copy: 32
/// bytes a cycle, while the product of 64 bytes by 16 columns takes one.
fn fills_blocks(ow: usize, columns: usize) -> bool {
    let tiles = ow.div_ceil(16) * 16;
    let lines = if ow <= 16 { tiles * 8 / 5 } else { tiles };
    lines * columns > ow * (columns + 32)
}

/// Low tiles for each line against higher ones, and a copy as above. A step of a tile of `h` rows takes `h` cycles and
/// about two more for its weights, which come from the second cache; a row of 4 bytes by 32 columns takes one.
fn fills_tiles(highest: usize, ow: usize, columns: usize) -> bool {
    let each_row = |height: usize| 1.0 + 2.0 / height.max(1) as f64;
    let line = each_row(ow / ow.div_ceil(highest).max(1));
    line > each_row(highest.saturating_sub(1)) + 4.0 / columns.max(1) as f64
}

/// Copies windows of a padded image of bytes with its channels last.
pub(crate) struct Windows<'a> {
    pub p: &'a Conv2dParams,
    pub image: &'a Image,
    /// What padding holds.
    pub fill: u8,
    /// Whether the taps of a row lie side by side.
    pub joins_taps: bool,
}

impl Windows<'_> {
    /// Bytes of a window of one group.
    pub fn bytes(&self) -> usize {
        let p = self.p;
        p.kh * p.kw * (p.c / p.groups) * self.image.size
    }

    /// Copies the window of output pixel `(oy, ox)` of a group: by row, tap and channel.
    ///
    /// # Safety
    /// There are `n` images, and `to` covers the bytes of a window.
    pub unsafe fn copy(&self, n: usize, (oy, ox): (usize, usize), group: usize, mut to: *mut u8) {
        let p = self.p;
        let tap = p.c / p.groups * self.image.size;
        let (taps, at_once) = if self.joins_taps { (1, p.kw) } else { (p.kw, 1) };
        for ky in 0..p.kh {
            let y = (oy * p.strides[0] + ky * p.dilations[0]).wrapping_sub(p.pads[0]);
            let line = (y < p.h).then(|| (n * p.h + y) * p.w);
            for kx in 0..taps {
                let x = ox * p.strides[1] + kx * p.dilations[1];
                // SAFETY: passed on to the caller.
                unsafe { self.segment(line, (x, at_once), group, to) };
                to = to.wrapping_add(at_once * tap);
            }
        }
    }

    /// Copies `n` pixels from `x`, counted from the left padding, on.
    ///
    /// # Safety
    /// `line`, if any, is the first pixel of a row of the image; `to` covers the pixels.
    unsafe fn segment(&self, line: Option<usize>, (x, n): (usize, usize), group: usize, to: *mut u8) {
        let (p, channels) = (self.p, self.p.c / self.p.groups);
        let tap = channels * self.image.size;
        // Pixels before the image, and in it.
        let left = p.pads[1].saturating_sub(x).min(n);
        let first = (x + left).saturating_sub(p.pads[1]);
        let real = if line.is_some() { p.w.saturating_sub(first).min(n - left) } else { 0 };
        let left = if line.is_some() { left } else { 0 };
        // SAFETY: `left + real <= n`, and pixels `first..first + real` are in the image.
        unsafe {
            to.write_bytes(self.fill, left * tap);
            let body = to.add(left * tap);
            if let Some(line) = line.filter(|_| real > 0) {
                self.image.pixels((line + first, real), (group * channels, channels), body, tap);
            }
            body.add(real * tap).write_bytes(self.fill, (n - left - real) * tap);
        }
    }
}

/// Windows whose rows each lie side by side in padded lines, to be copied into rows one behind another, with zeros behind
/// each.
pub(crate) struct JoinedWindows {
    /// The first window.
    pub from: *const u8,
    /// Bytes between windows down and across.
    pub strides: [usize; 2],
    /// Windows down and across.
    pub out: [usize; 2],
    /// Rows of a window, and bytes between them.
    pub runs: (usize, usize),
    /// Bytes of a row of a window.
    pub run: usize,
    /// What is written: `pitch` bytes for each window, and [`SLACK`] more.
    pub to: *mut u8,
    pub pitch: usize,
}

/// What a tier's code moves with the fewest instructions.
type Piece = [u8; SLACK];

impl Kernel for JoinedWindows {
    type Out = ();

    /// Copies whole pieces: what is read behind a row is overwritten by the next one, or by zeros. So lines have
    /// [`SLACK`] bytes behind them, too.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let JoinedWindows { from, strides, out, runs, run, to, pitch } = self;
        let bytes = runs.0 * run;
        for i in 0..out[0] * out[1] {
            let from = from.wrapping_add(i / out[1] * strides[0] + i % out[1] * strides[1]);
            let to = to.wrapping_add(i * pitch);
            for row in 0..runs.0 {
                let (from, to) = (from.wrapping_add(row * runs.1), to.wrapping_add(row * run));
                let mut at = 0;
                while at < run {
                    // SAFETY: less than the slack is read and written behind the row.
                    unsafe {
                        to.add(at).cast::<Piece>().write_unaligned(from.add(at).cast::<Piece>().read_unaligned());
                    }
                    at += size_of::<Piece>();
                }
            }
            // SAFETY: the row of the result has `pitch` bytes.
            unsafe { to.add(bytes).write_bytes(0, pitch - bytes) };
        }
    }
}
