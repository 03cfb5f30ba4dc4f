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

/// Lanes of one panel row that come from one row of the image.
#[derive(Clone, Copy, Default)]
struct Segment {
    /// Position in the panel row.
    to: usize,
    /// Element of the channel plane at the first lane; may lie outside of it.
    from: isize,
    load: u32,
    store: u32,
}

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

impl PackImage<'_> {
    /// The segments of window element `(r, t)`; returns how many.
    #[inline(always)]
    fn segments(&self, lanes: usize, r: usize, t: usize, out: &mut [Segment; MAX_WIDTH]) -> usize {
        let im = self.image;
        let (first, n) = self.columns;
        let (mut y, mut x) = (first / im.ow, first % im.ow);
        let mut to = 0;
        let mut count = 0;
        while to < n {
            let len = (n - to).min(im.ow - x).min(lanes);
            let iy = (y * im.stride[0] + r * im.dilation[0]) as isize - im.pad[0] as isize;
            let ix = (x * im.stride[1] + t * im.dilation[1]) as isize - im.pad[1] as isize;
            let load = if iy < 0 || iy >= im.h as isize { 0 } else { visible(im, ix, len) };
            let from = if load == 0 { 0 } else { iy * im.w as isize + ix };
            out[count] = Segment { to, from, load, store: low_bits(len) };
            count += 1;
            to += len;
            x += len;
            if x == im.ow {
                (x, y) = (0, y + 1);
            }
        }
        while to < self.width {
            let len = (self.width - to).min(lanes);
            out[count] = Segment { to, from: 0, load: 0, store: low_bits(len) };
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
        let mut segments = [Segment::default(); MAX_WIDTH];
        for r in 0..im.kh {
            for t in 0..im.kw {
                let count = self.segments(S::LANES, r, t, &mut segments);
                let segments = &segments[..count];
                for c in 0..channels {
                    let src = self.data.wrapping_add((c0 + c) * plane);
                    let row = c * window + r * im.kw + t;
                    // SAFETY: `load` keeps only lanes inside the channel's plane; `store`
                    // only lanes inside the panel row.
                    unsafe {
                        let dst = self.dst.add(row * self.width);
                        if im.stride[1] == 1 {
                            copy(s, src, dst, segments);
                        } else {
                            copy_strided(s, src, dst, segments, im.stride[1]);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn copy<S: Simd>(s: S, src: *const f32, dst: *mut f32, segments: &[Segment]) {
    for segment in segments {
        // SAFETY: the caller's contract.
        unsafe {
            let v = s.load_bits(src.wrapping_offset(segment.from), segment.load);
            s.store_bits(dst.add(segment.to), v, segment.store);
        }
    }
}

#[inline(always)]
unsafe fn copy_strided<S: Simd>(s: S, src: *const f32, dst: *mut f32, segments: &[Segment], stride: usize) {
    for segment in segments {
        // SAFETY: the caller's contract.
        unsafe {
            let v = s.load_strided_bits(src.wrapping_offset(segment.from), stride, segment.load);
            s.store_bits(dst.add(segment.to), v, segment.store);
        }
    }
}
