//! Convolution as a GEMM without an im2col matrix: panels of B are packed straight
//! from the image.

use crate::error::{Result, product, require};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "image columns";

/// The columns that a 2-D convolution window sees in one NCHW image.
///
/// Row `(c · kh + r) · kw + s` and column `y · ow + x` of the implied matrix is the pixel
/// `(c, y · stride_h + r · dilation_h − pad_top, x · stride_w + s · dilation_w − pad_left)`,
/// or 0 outside of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageColumns {
    /// Channels.
    pub c: usize,
    /// Image height.
    pub h: usize,
    /// Image width.
    pub w: usize,
    /// Window height.
    pub kh: usize,
    /// Window width.
    pub kw: usize,
    /// Step between windows, down and across.
    pub stride: [usize; 2],
    /// Zero rows above and columns left of the image.
    pub pad: [usize; 2],
    /// Step between window elements, down and across.
    pub dilation: [usize; 2],
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
}

impl ImageColumns {
    /// Rows of the implied matrix.
    pub fn rows(&self) -> usize {
        self.c * self.kh * self.kw
    }

    /// Columns of the implied matrix.
    pub fn columns(&self) -> usize {
        self.oh * self.ow
    }

    /// Elements of the image.
    pub(crate) fn len(&self) -> usize {
        self.c * self.h * self.w
    }

    /// Checks that no product overflows.
    pub(crate) fn check(&self) -> Result {
        product(NAME, &[self.c, self.kh, self.kw, self.oh, self.ow])?;
        product(NAME, &[self.c, self.h, self.w])?;
        require(NAME, self.kh > 0 && self.kw > 0, "the window must not be empty")?;
        require(NAME, self.stride[0] > 0 && self.stride[1] > 0, "strides must be above 0")?;
        for axis in 0..2 {
            let (window, out) = ([self.kh, self.kw][axis], [self.oh, self.ow][axis]);
            product(NAME, &[window, self.dilation[axis]])?;
            product(NAME, &[out, self.stride[axis]])?;
            require(NAME, self.pad[axis] < isize::MAX as usize / 16, "padding is too large")?;
        }
        Ok(())
    }
}

/// A masked vector copy from a channel's plane into the panel.
#[derive(Clone, Copy)]
struct LaneCopy {
    /// Element of the plane at the first lane; may lie outside of it.
    from: isize,
    /// Position in the panel, relative to the channel's first row.
    to: u32,
    load: u16,
    store: u16,
}

/// Copies that are made for each channel in turn. All taps of a channel come together,
/// while its pixels are in L1: planes of a power of two in size evict each other.
const MAX_COPIES: usize = 512;
/// Most columns of a panel.
const MAX_WIDTH: usize = 64;

/// Packs whole channels (`rows` is a multiple of the window) of some columns.
pub(super) struct PackImage<'a> {
    pub image: &'a ImageColumns,
    pub data: *const f32,
    /// First row and number of rows.
    pub rows: (usize, usize),
    /// First column and number of columns.
    pub columns: (usize, usize),
    pub width: usize,
    pub dst: *mut f32,
}

/// Lanes of the panel that show one row of the output.
#[derive(Clone, Copy, Default)]
struct Run {
    to: usize,
    len: usize,
    /// Top left corner of the first window, in the padded image.
    y: usize,
    x: usize,
}

impl PackImage<'_> {
    /// Cuts the panel's columns into runs of at most `lanes`; returns how many.
    #[inline(always)]
    fn runs(&self, lanes: usize, out: &mut [Run; MAX_WIDTH]) -> usize {
        let im = self.image;
        let (first, n) = self.columns;
        let (mut y, mut x) = (first / im.ow, first % im.ow);
        let (mut to, mut count) = (0, 0);
        while to < n {
            let len = (n - to).min(im.ow - x).min(lanes);
            out[count] = Run { to, len, y: y * im.stride[0], x: x * im.stride[1] };
            count += 1;
            to += len;
            x += len;
            if x == im.ow {
                (x, y) = (0, y + 1);
            }
        }
        count
    }

    /// Appends the copies of window element `(r, t)`; returns how many there are now.
    #[inline(always)]
    fn plan(
        &self,
        lanes: usize,
        runs: &[Run],
        (r, t): (usize, usize),
        out: &mut [LaneCopy; MAX_COPIES],
        mut count: usize,
    ) -> usize {
        let im = self.image;
        let (down, across) = (r * im.dilation[0], t * im.dilation[1]);
        let row = (r * im.kw + t) * self.width;
        for run in runs {
            let iy = (run.y + down).wrapping_sub(im.pad[0]);
            let ix = (run.x + across) as isize - im.pad[1] as isize;
            let load = if iy >= im.h { 0 } else { visible(im, ix, run.len) };
            let from = if load == 0 { 0 } else { (iy * im.w) as isize + ix };
            let store = low_bits(run.len) as u16;
            out[count] = LaneCopy { from, to: (row + run.to) as u32, load: load as u16, store };
            count += 1;
        }
        let mut to = self.columns.1;
        while to < self.width {
            let len = (self.width - to).min(lanes);
            let store = low_bits(len) as u16;
            out[count] = LaneCopy { from: 0, to: (row + to) as u32, load: 0, store };
            count += 1;
            to += len;
        }
        count
    }
}

/// The lanes `i < len` for which column `ix + i · stride` is inside the image.
#[inline(always)]
fn visible(im: &ImageColumns, ix: isize, len: usize) -> u32 {
    let step = im.stride[1] as isize;
    if ix >= 0 && ix + (len as isize - 1) * step < im.w as isize {
        return low_bits(len);
    }
    let skip = if ix < 0 { ((-ix + step - 1) / step) as usize } else { 0 };
    let room = im.w as isize - ix;
    let end = if room <= 0 { 0 } else { ((room + step - 1) / step) as usize };
    low_bits(end.min(len)) & !low_bits(skip.min(len))
}

impl Kernel for PackImage<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let im = self.image;
        let window = im.kh * im.kw;
        let plane = im.h * im.w;
        let (c0, channels) = (self.rows.0 / window, self.rows.1 / window);
        let mut runs = [Run::default(); MAX_WIDTH];
        let count = self.runs(S::LANES, &mut runs);
        let runs = &runs[..count];
        let mut copies = [LaneCopy { from: 0, to: 0, load: 0, store: 0 }; MAX_COPIES];
        let mut count = 0;
        for tap in 0..window {
            count = self.plan(S::LANES, runs, (tap / im.kw, tap % im.kw), &mut copies, count);
            if count + MAX_WIDTH > MAX_COPIES || tap + 1 == window {
                for c in 0..channels {
                    let src = self.data.wrapping_add((c0 + c) * plane);
                    // SAFETY: `load` keeps only lanes inside the channel's plane; `store`
                    // only lanes inside the panel's rows of this channel.
                    unsafe {
                        let dst = self.dst.add(c * window * self.width);
                        if im.stride[1] == 1 {
                            copy(s, src, dst, &copies[..count], plane);
                        } else {
                            copy_strided(s, src, dst, &copies[..count], im.stride[1]);
                        }
                    }
                }
                count = 0;
            }
        }
    }
}

#[inline(always)]
unsafe fn copy<S: Simd>(s: S, src: *const f32, dst: *mut f32, copies: &[LaneCopy], plane: usize) {
    for copy in copies {
        // SAFETY: the caller's contract.
        unsafe {
            let from = src.wrapping_offset(copy.from);
            // The next channel is a plane away, which the hardware does not guess.
            s.prefetch(from.wrapping_add(plane));
            let v = s.load_bits(from, copy.load.into());
            s.store_bits(dst.add(copy.to as usize), v, copy.store.into());
        }
    }
}

#[inline(always)]
unsafe fn copy_strided<S: Simd>(s: S, src: *const f32, dst: *mut f32, copies: &[LaneCopy], stride: usize) {
    for copy in copies {
        // SAFETY: the caller's contract.
        unsafe {
            let from = src.wrapping_offset(copy.from);
            let v = s.load_strided_bits(from, stride, copy.load.into());
            s.store_bits(dst.add(copy.to as usize), v, copy.store.into());
        }
    }
}
