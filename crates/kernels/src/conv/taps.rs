//! Windows without the taps that meet nothing but padding.

use std::borrow::Cow;
use std::ops::Range;

use super::{Conv2dParams, window_count};

/// The part of a convolution's window that is left when outer rows and columns are taken off which meet nothing but padding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taps {
    /// Height and width of the whole window.
    window: [usize; 2],
    down: Range<usize>,
    across: Range<usize>,
}

impl Taps {
    /// Whether no tap was taken off.
    pub fn are_all(&self) -> bool {
        (self.down.len(), self.across.len()) == (self.window[0], self.window[1])
    }

    /// Taps of the whole window.
    pub fn whole(&self) -> usize {
        self.window[0] * self.window[1]
    }

    /// Where the whole window has tap `i` of this part; both are counted row by row.
    pub fn place(&self, i: usize) -> usize {
        let width = self.across.len();
        (self.down.start + i / width) * self.window[1] + self.across.start + i % width
    }

    /// The part's weights of those of whole windows, `[…, height, width]`.
    pub fn cut<'a, T: Copy>(&self, w: &'a [T]) -> Cow<'a, [T]> {
        if self.are_all() {
            return Cow::Borrowed(w);
        }
        let [height, width] = self.window;
        let windows = w.chunks_exact(height * width);
        let lines = windows.flat_map(|window| window.chunks_exact(width).take(self.down.end).skip(self.down.start));
        Cow::Owned(lines.flat_map(|line| &line[self.across.clone()]).copied().collect())
    }
}

impl Conv2dParams {
    /// The convolution without the outer rows and columns of its window that meet the image nowhere, with as much less padding,
    /// and the taps that are left. All, where the parameters are invalid.
    ///
    /// What padding adds is 0, or is taken off again as the zero point's share, so that results are the same.
    pub fn seen_taps(&self) -> (Conv2dParams, Taps) {
        let p = self;
        let mut taps = Taps { window: [p.kh, p.kw], down: 0..p.kh, across: 0..p.kw };
        let Ok(out) = p.output() else { return (*p, taps) };
        let mut less = *p;
        if let Some((seen, after)) = Axis::of(p, out, 0).seen() {
            (less.kh, less.pads[0], less.pads[2]) = (seen.len(), p.pads[0] - seen.start * p.dilations[0], after);
            taps.down = seen;
        }
        if let Some((seen, after)) = Axis::of(p, out, 1).seen() {
            (less.kw, less.pads[1], less.pads[3]) = (seen.len(), p.pads[1] - seen.start * p.dilations[1], after);
            taps.across = seen;
        }
        (less, taps)
    }
}

/// A valid window over one axis.
pub(crate) struct Axis {
    pub len: usize,
    pub out: usize,
    pub before: usize,
    pub window: usize,
    pub stride: usize,
    pub dilation: usize,
}

impl Axis {
    /// The rows (0) or columns (1) of a convolution with so many results.
    pub fn of(p: &Conv2dParams, out: [usize; 2], i: usize) -> Axis {
        let (len, window) = ([p.h, p.w][i], [p.kh, p.kw][i]);
        Axis { len, out: out[i], before: p.pads[i], window, stride: p.strides[i], dilation: p.dilations[i] }
    }

    /// Whether a tap meets the image at one of its steps.
    fn sees(&self, tap: usize) -> bool {
        let start = tap * self.dilation;
        let step = self.before.saturating_sub(start).div_ceil(self.stride);
        step < self.out && start + step * self.stride - self.before < self.len
    }

    /// The taps from the first to the last that meet the image, and the padding after the image that they need; `None` where none
    /// can be taken off.
    pub fn seen(&self) -> Option<(Range<usize>, usize)> {
        let first = (0..self.window).find(|&tap| self.sees(tap))?;
        let last = (0..self.window).rfind(|&tap| self.sees(tap))?;
        // The first tap starts at the image or before it: there is no negative padding.
        let start = first.min(self.before / self.dilation);
        let before = self.before - start * self.dilation;
        (last + 1..=self.window)
            .find_map(|end| {
                let reach = (self.out - 1) * self.stride + (end - 1 - start) * self.dilation + 1;
                let after = reach.saturating_sub(self.len + before);
                // Without padding there may be room for more steps.
                let count = window_count(self.len, before, after, end - start, self.stride, self.dilation).ok()?;
                (count == self.out).then_some((start..end, after))
            })
            .filter(|(taps, _)| taps.len() < self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conv2d_reference;
    use super::*;
    use crate::testing::Random;

    const PLAIN: Conv2dParams = Conv2dParams {
        n: 2,
        c: 4,
        h: 7,
        w: 5,
        oc: 6,
        kh: 3,
        kw: 3,
        strides: [1; 2],
        pads: [0; 4],
        dilations: [1; 2],
        groups: 1,
    };

    fn dilated(dilations: [usize; 2], pads: [usize; 4]) -> Conv2dParams {
        Conv2dParams { dilations, pads, ..PLAIN }
    }

    /// Height, width and padding of what is left.
    fn left(p: Conv2dParams) -> ([usize; 2], [usize; 4]) {
        let (less, taps) = p.seen_taps();
        assert_eq!(less.output().unwrap(), p.output().unwrap(), "{p:?}");
        assert_eq!(taps.are_all(), less == p, "{p:?}");
        ([less.kh, less.kw], less.pads)
    }

    #[test]
    fn takes_off_rows_and_columns_that_meet_only_padding() {
        assert_eq!(left(dilated([9, 6], [9, 6, 9, 6])), ([1, 1], [0; 4]));
        assert_eq!(left(dilated([7, 4], [7, 4, 7, 4])), ([1, 3], [0, 4, 0, 4]));
        // The first row of taps meets only padding, the last one the image.
        assert_eq!(left(dilated([4, 9], [12, 9, 0, 9])), ([2, 1], [8, 0, 0, 0]));
        // The taps that are left would start within the image, which no padding says.
        assert_eq!(left(dilated([9, 1], [8, 1, 10, 1])), ([2, 3], [8, 1, 1, 1]));
        // … and here end in it.
        assert_eq!(left(dilated([9, 1], [12, 1, 7, 1])).0, [2, 3]);
        assert_eq!(left(Conv2dParams { strides: [2, 3], ..dilated([8, 8], [8; 4]) }), ([1, 1], [0; 4]));
    }

    #[test]
    fn keeps_windows_whose_outer_taps_meet_the_image() {
        for p in [dilated([1; 2], [1; 4]), dilated([6, 4], [6, 4, 6, 4]), dilated([3, 2], [0; 4]), PLAIN] {
            assert_eq!(left(p), ([3, 3], p.pads));
        }
        // Steps that pass over the image.
        let over = Conv2dParams { h: 1, strides: [5, 1], ..dilated([5, 1], [8, 1, 8, 1]) };
        assert_eq!(left(over).0, [3, 3]);
        let invalid = Conv2dParams { strides: [0, 1], ..dilated([9, 9], [9; 4]) };
        assert_eq!(invalid.seen_taps().0, invalid);
    }

    #[test]
    fn gives_the_same_sums_as_the_whole_window() {
        let mut r = Random::new(3);
        let mut fewer = 0;
        for _ in 0..400 {
            let mut below = |n: usize| r.below(n);
            let p = Conv2dParams {
                h: 1 + below(9),
                w: 1 + below(9),
                kh: 1 + below(4),
                kw: 1 + below(5),
                strides: [1 + below(3), 1 + below(3)],
                pads: [below(14), below(14), below(14), below(14)],
                dilations: [1 + below(10), 1 + below(10)],
                groups: 1 + below(2),
                ..PLAIN
            };
            let (Ok(len), (less, taps)) = (p.weight_len(), p.seen_taps()) else { continue };
            let (x, w) = (r.vec(p.n * p.c * p.h * p.w), r.vec(len));
            let got = conv2d_reference(&less, &x, &taps.cut(&w), None);
            assert_eq!(got, conv2d_reference(&p, &x, &w, None), "{p:?}");
            let numbers: Vec<usize> = (0..p.kh * p.kw).collect();
            let places: Vec<usize> = (0..less.kh * less.kw).map(|i| taps.place(i)).collect();
            assert_eq!(*taps.cut(&numbers), places);
            fewer += usize::from(!taps.are_all());
        }
        assert!(fewer > 50, "{fewer}");
    }
}
