//! Max and average pooling of NHWC images; vectors run over the channels.

use std::ops::Range;

use super::block::{Input, Quant, integers};
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::panel::{Kind, Out, Rounding, Target};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "pool nhwc";

/// Multiply-free steps (element times tap) that one task takes at least.
const GRAIN: usize = 1 << 15;
/// Channels of a task where rows are few.
const CHANNELS: usize = 256;
/// Elements that 32-bit sums of 8-bit integers hold.
const MAX_WINDOW: usize = 1 << 23;

/// Shape of a 2-D pooling of NHWC images; the caller works out `out` (floor or ceil).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolNhwcParams {
    /// Images.
    pub n: usize,
    /// Image height.
    pub h: usize,
    /// Image width.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Window height and width.
    pub window: [usize; 2],
    /// Steps down and across.
    pub strides: [usize; 2],
    /// Padding at the top, left, bottom, right.
    pub pads: [usize; 4],
    /// Steps within the window.
    pub dilations: [usize; 2],
    /// Output height and width.
    pub out: [usize; 2],
}

impl PoolNhwcParams {
    /// One window over all pixels of `n` images of `c` channels (ONNX `GlobalAveragePool`).
    pub fn whole([n, pixels, c]: [usize; 3]) -> PoolNhwcParams {
        PoolNhwcParams {
            n,
            h: 1,
            w: pixels,
            c,
            window: [1, pixels.max(1)],
            strides: [1, 1],
            pads: [0; 4],
            dilations: [1, 1],
            out: [1, 1],
        }
    }

    fn check(&self, x: usize, y: usize) -> Result {
        exact(NAME, "x", x, product(NAME, &[self.n, self.h, self.w, self.c])?)?;
        exact(NAME, "y", y, product(NAME, &[self.n, self.out[0], self.out[1], self.c])?)?;
        for axis in 0..2 {
            let (window, stride, dilation) = (self.window[axis], self.strides[axis], self.dilations[axis]);
            require(NAME, window > 0 && stride > 0 && dilation > 0, "window, stride and dilation must be above 0")?;
            product(NAME, &[window, dilation, 64])?;
            product(NAME, &[self.out[axis].max(1), stride, 64])?;
            let limit = isize::MAX as usize / 64;
            require(NAME, self.pads[axis].max(self.pads[axis + 2]) < limit, "the padding is too large")?;
        }
        let elements = product(NAME, &[self.window[0].min(self.h), self.window[1].min(self.w)])?;
        require(NAME, elements < MAX_WINDOW, "the window has over eight million elements")
    }

    /// Taps of output position `o` that lie in the image.
    fn taps(&self, axis: usize, o: usize) -> Range<usize> {
        self.taps_within(axis, o, self.pads[axis], self.pads[axis] + [self.h, self.w][axis])
    }

    /// Taps whose place in the padded line is in `from..to`.
    fn taps_within(&self, axis: usize, o: usize, from: usize, to: usize) -> Range<usize> {
        let (start, dilation, window) = (o * self.strides[axis], self.dilations[axis], self.window[axis]);
        let first = |place: usize| place.saturating_sub(start).div_ceil(dilation).min(window);
        first(from)..first(to).max(first(from))
    }

    /// Elements of the window at an output position that count.
    fn count(&self, axis: usize, o: usize, include_pad: bool) -> usize {
        if include_pad {
            let padded = [self.h, self.w][axis] + self.pads[axis] + self.pads[axis + 2];
            return self.taps_within(axis, o, 0, padded).len();
        }
        self.taps(axis, o).len()
    }

    /// Calls `body(image, output row, channels)` for parts of the result, in parallel.
    fn parts(&self, exec: &Exec, body: &(dyn Fn(usize, usize, Range<usize>) + Sync)) {
        let [oh, ow] = self.out;
        if self.n * oh * ow * self.c == 0 {
            return;
        }
        let step = if self.n * oh < 4 * exec.threads() { CHANNELS } else { self.c };
        let across = self.c.div_ceil(step);
        let window = self.window[0].min(self.h).max(1) * self.window[1].min(self.w).max(1);
        let work = (ow * step.min(self.c)).saturating_mul(window);
        exec.split(self.n * oh * across, GRAIN / work + 1, &|range| {
            for index in range {
                let (row, part) = (index / across, index % across);
                body(row / oh, row % oh, part * step..self.c.min((part + 1) * step));
            }
        });
    }

    /// The taps of output pixel `(oy, ox)`: the first element in `image`, and how rows and
    /// columns go on.
    fn window(&self, image: usize, oy: usize, ox: usize, channel: usize) -> Window {
        let (rows, columns) = (self.taps(0, oy), self.taps(1, ox));
        let place = |axis: usize, o: usize, tap: usize| {
            (o * self.strides[axis] + tap * self.dilations[axis]).wrapping_sub(self.pads[axis])
        };
        let empty = rows.is_empty() || columns.is_empty();
        let (y, x) = if empty { (0, 0) } else { (place(0, oy, rows.start), place(1, ox, columns.start)) };
        Window {
            first: ((image * self.h + y) * self.w + x) * self.c + channel,
            rows: if empty { 0 } else { rows.len() },
            columns: if empty { 0 } else { columns.len() },
            steps: [self.dilations[0] * self.w * self.c, self.dilations[1] * self.c],
        }
    }
}

/// Places of the taps of one output: `first + row · steps[0] + column · steps[1]`.
struct Window {
    first: usize,
    rows: usize,
    columns: usize,
    steps: [usize; 2],
}

impl Window {
    #[inline(always)]
    fn each(&self, mut body: impl FnMut(usize)) {
        for r in 0..self.rows {
            for c in 0..self.columns {
                body(self.first + r * self.steps[0] + c * self.steps[1]);
            }
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for i8 {}
    impl Sealed for f32 {}
}

/// An element of a maximum: u8, i8 or f32.
pub trait PoolElement: sealed::Sealed + Copy + Send + Sync + PartialOrd + 'static {
    /// What an empty window gives.
    const LOWEST: Self;
}
impl PoolElement for u8 {
    const LOWEST: u8 = 0;
}
impl PoolElement for i8 {
    const LOWEST: i8 = i8::MIN;
}
impl PoolElement for f32 {
    const LOWEST: f32 = f32::NEG_INFINITY;
}

/// Largest value of each window; padding does not count (ONNX `MaxPool`). A NaN is skipped.
///
/// # Errors
/// The parameters are invalid or a slice has another length than the shape.
pub fn max_pool2d_nhwc<T: PoolElement>(exec: &Exec, p: &PoolNhwcParams, x: &[T], y: &mut [T]) -> Result {
    p.check(x.len(), y.len())?;
    let out = SharedMut::new(y);
    p.parts(exec, &|image, oy, channels| {
        exec.isa().dispatch(MaxRow { p, x, image, oy, channels, out });
    });
    Ok(())
}

/// The channels of one output row; no other task writes them.
struct MaxRow<'a, T> {
    p: &'a PoolNhwcParams,
    x: &'a [T],
    image: usize,
    oy: usize,
    channels: Range<usize>,
    out: SharedMut<T>,
}

impl<T: PoolElement> Kernel for MaxRow<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (p, [oh, ow]) = (self.p, self.p.out);
        for ox in 0..ow {
            let window = p.window(self.image, self.oy, ox, self.channels.start);
            let at = ((self.image * oh + self.oy) * ow + ox) * p.c + self.channels.start;
            // SAFETY: the task owns these channels of the row.
            let y = unsafe { self.out.slice(at, self.channels.len()) };
            let mut done = 0;
            // A block of 64 lets the compiler keep the maxima in registers.
            let (blocks, rest) = y.as_chunks_mut::<64>();
            for y in blocks {
                *y = maxima(self.x, &window, done);
                done += 64;
            }
            let (blocks, rest) = rest.as_chunks_mut::<16>();
            for y in blocks {
                *y = maxima(self.x, &window, done);
                done += 16;
            }
            for (i, y) in rest.iter_mut().enumerate() {
                [*y] = maxima(self.x, &window, done + i);
            }
        }
    }
}

/// Maxima of `N` channels from `offset` on.
#[inline(always)]
fn maxima<T: PoolElement, const N: usize>(x: &[T], window: &Window, offset: usize) -> [T; N] {
    let mut best = [T::LOWEST; N];
    window.each(
        #[inline(always)]
        |at| {
            if let Some(x) = x[at + offset..].first_chunk::<N>() {
                for i in 0..N {
                    best[i] = if x[i] > best[i] { x[i] } else { best[i] };
                }
            }
        },
    );
    best
}

/// What the sum of a window is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisor {
    /// The elements inside the image.
    Inside,
    /// The elements inside the padded image.
    Padded,
    /// Nothing: the sum itself, for a scale that has the divisor in it.
    One,
}

/// Mean of each window (ONNX `AveragePool`): `(Σ q − elements · zero point) · scale / divisor`, the sum being exact for
/// integers.
///
/// # Errors
/// The parameters are invalid or a slice has another length than the shape.
pub fn avg_pool2d_nhwc(exec: &Exec, p: &PoolNhwcParams, divisor: Divisor, x: Quant<'_>, mut y: Target<'_>) -> Result {
    p.check(x.len(), y.len())?;
    y.require_results(NAME)?;
    let (x, out) = (x.input(), y.shared());
    p.parts(exec, &|image, oy, channels| {
        exec.isa().dispatch(MeanRow { p, x, image, oy, channels, divisor, out });
    });
    Ok(())
}

/// Mean of each channel: `[n, pixels, c]` to `[n, c]` (ONNX `GlobalAveragePool`).
///
/// # Errors
/// A slice has another length than the shape.
pub fn global_avg_pool_nhwc(exec: &Exec, x: Quant<'_>, shape: [usize; 3], y: Target<'_>) -> Result {
    avg_pool2d_nhwc(exec, &PoolNhwcParams::whole(shape), Divisor::Inside, x, y)
}

/// The channels of one output row; no other task writes them.
struct MeanRow<'a> {
    p: &'a PoolNhwcParams,
    x: Input,
    image: usize,
    oy: usize,
    channels: Range<usize>,
    divisor: Divisor,
    out: Out,
}

impl Kernel for MeanRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.x.kind {
            Kind::F32 => self.row(
                s,
                #[inline(always)]
                |window, offset, n| {
                    let mut sum = s.splat(0.0);
                    window.each(
                        #[inline(always)]
                        |at| {
                            // SAFETY: `check` and `Window` keep the tap in the image.
                            let x = unsafe { s.load_bits(self.x.data.cast::<f32>().add(at + offset), low_bits(n)) };
                            sum = s.add(sum, x);
                        },
                    );
                    sum
                },
            ),
            Kind::U8 => self.integer_row::<S, false>(s),
            Kind::I8 => self.integer_row::<S, true>(s),
            // `Quant` has none.
            Kind::Bf16 | Kind::I32 => {}
        }
    }
}

impl MeanRow<'_> {
    #[inline(always)]
    fn integer_row<S: Simd, const SIGNED: bool>(&self, s: S) {
        let scale = s.splat(self.x.scale);
        self.row(
            s,
            #[inline(always)]
            |window, offset, n| {
                let elements = (window.rows * window.columns) as i32;
                let mut sum = s.splat_i(elements.wrapping_mul(self.x.zero).wrapping_neg());
                window.each(
                    #[inline(always)]
                    |at| {
                        // SAFETY: `check` and `Window` keep the tap in the image.
                        sum = s.add_i(sum, unsafe { integers::<S, SIGNED>(s, self.x.data.add(at + offset), n) });
                    },
                );
                s.mul(s.to_f32(sum), scale)
            },
        );
    }

    #[inline(always)]
    fn row<S: Simd>(&self, s: S, sum: impl Fn(&Window, usize, usize) -> S::F) {
        let (p, [oh, ow]) = (self.p, self.p.out);
        let rounding = Rounding::new(s, &self.out);
        let count = |axis: usize, o: usize| match self.divisor {
            Divisor::One => 1,
            divisor => p.count(axis, o, divisor == Divisor::Padded),
        };
        let down = count(0, self.oy);
        for ox in 0..ow {
            let window = p.window(self.image, self.oy, ox, self.channels.start);
            let divisor = s.splat((down * count(1, ox)) as f32);
            let at = ((self.image * oh + self.oy) * ow + ox) * p.c + self.channels.start;
            let (mut i, len) = (0, self.channels.len());
            // SAFETY: the task owns these channels of the row.
            unsafe {
                while i + S::LANES <= len {
                    self.out.put(s, &rounding, at + i, s.div(sum(&window, i, S::LANES), divisor), S::LANES);
                    i += S::LANES;
                }
                if i < len {
                    self.out.put(s, &rounding, at + i, s.div(sum(&window, i, len - i), divisor), len - i);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
