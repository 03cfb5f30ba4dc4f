//! Convolutions of floats whose windows reach far beyond the image: a result is the sum of the taps that meet the image, which are
//! read where it lies. Padding is neither made nor multiplied; as it would add zeros, the bits are those of whole windows.

use std::ops::Range;

use super::drive::{Lines, SERIAL, Source, Sweep, part};
use super::image::Image;
use super::lines::spread;
use super::tile::Run;
use crate::buffer::{SharedMut, with_scratch};
use crate::conv::{Axis, Conv2dParams};
use crate::exec::Exec;
use crate::few::Few;

/// Results along an axis that are sums of the same taps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stretch {
    results: Range<usize>,
    taps: Range<usize>,
}

/// The stretches of an axis, one behind another.
type Stretches = Few<Stretch, 12>;

impl Axis {
    /// The taps of a result that meet the image.
    fn taps(&self, result: usize) -> Range<usize> {
        let at = result * self.stride;
        let first = self.before.saturating_sub(at).div_ceil(self.dilation);
        let end = (self.len + self.before).saturating_sub(at).div_ceil(self.dilation);
        first.min(self.window)..end.min(self.window)
    }

    /// `None` where a result meets nothing of the image, or each few results meet something else.
    fn stretches(&self) -> Option<Stretches> {
        let mut all = Stretches::new();
        let mut from = 0;
        while from < self.out {
            let taps = self.taps(from);
            let end = (from + 1..self.out).find(|&i| self.taps(i) != taps).unwrap_or(self.out);
            if taps.is_empty() || all.len() == 12 {
                return None;
            }
            all.push(Stretch { results: from..end, taps });
            from = end;
        }
        Some(all)
    }
}

/// What rows of so many results take, in those of a step of one: a tile of up to 14 rows waits for its weights as long as two more
/// rows take.
fn rows(n: usize) -> usize {
    n + 2 * n.div_ceil(14)
}

/// The stretches down and across, and the share of the time of whole windows that sums of only the taps that meet the image take,
/// where they can be told apart.
///
/// It depends on shapes alone, as the choice of a kernel whose sums have another order does.
fn plan(p: &Conv2dParams) -> Option<([Stretches; 2], f64)> {
    // Taps side by side are one run, which can't be passed over in part.
    let apart = p.dilations[1] > 1 || p.kw == 1;
    if !apart || p.kh * p.kw == 1 || p.dilations == [1; 2] || p.c / p.groups.max(1) < 16 {
        return None;
    }
    let out = p.output().ok()?;
    let (down, across) = (Axis::of(p, out, 0).stretches()?, Axis::of(p, out, 1).stretches()?);
    let lines: usize = down.iter().map(|s| s.results.len() * s.taps.len()).sum();
    let line: usize = across.iter().map(|s| rows(s.results.len()) * s.taps.len()).sum();
    // Whole windows can be copied one behind another, so that all tiles are high.
    let whole = (out[0] * p.kh) as f64 * (p.kw * (out[1] + out[1].div_ceil(7))) as f64;
    Some(([down, across], lines as f64 * line as f64 / whole))
}

/// Share of the time of whole windows beyond which they are multiplied.
const MOST: f64 = 0.88;

/// The share of the time of whole windows that the faster of both takes.
pub(super) fn share(p: &Conv2dParams) -> f64 {
    plan(p).map(|(_, share)| share).filter(|&share| share < MOST).unwrap_or(1.0)
}

/// Whether a convolution of floats, channels last, is computed without its padding: then its depth is that of the taps that meet
/// the image, and weights are read for many results at a time.
pub fn conv2d_nhwc_skips_padding(p: &Conv2dParams) -> bool {
    share(p) < 1.0
}

/// One image of a convolution.
struct Seen<'a> {
    p: &'a Conv2dParams,
    out: [usize; 2],
    stretches: &'a [Stretches; 2],
    /// The pixels of all images or of this one, and bytes of one.
    pixels: Source,
    pixel: usize,
    index: usize,
    sweep: &'a Sweep<'a>,
}

/// Convolves, if [`conv2d_nhwc_skips_padding`]; returns whether it did. The sweep has all runs of the window, one for each tap, and
/// a kernel of vectors; the image is of floats, which `in_place` tells to be read where they are.
pub(super) fn run(exec: &Exec, p: &Conv2dParams, image: &Image, in_place: bool, sweep: &Sweep<'_>) -> bool {
    let Some((stretches, _)) = plan(p).filter(|&(_, share)| share < MOST) else { return false };
    let Ok(out) = p.output() else { return false };
    let whole = image.dense().filter(|_| in_place);
    let dense = p.c * image.size;
    for index in 0..p.n {
        if let Some(pixels) = whole {
            let pixels = Source(pixels.wrapping_add(index * p.h * p.w * dense));
            Seen { p, out, stretches: &stretches, pixels, pixel: dense, index, sweep }.all(exec);
            continue;
        }
        let pixel = spread(dense, 4);
        with_scratch(p.h * p.w * pixel / 4, |scratch| {
            let to = SharedMut::new(scratch);
            exec.split(p.h, 1, &|lines| {
                let (first, count) = ((index * p.h + lines.start) * p.w, lines.len() * p.w);
                let to = to.ptr().wrapping_add(lines.start * p.w * pixel / 4).cast();
                // SAFETY: the image was checked; tasks write lines of their own.
                unsafe { image.pixels((first, count), (0, p.c), to, pixel) };
            });
            let pixels = Source(to.ptr().cast_const().cast());
            Seen { p, out, stretches: &stretches, pixels, pixel, index, sweep }.all(exec);
        });
    }
    true
}

impl Seen<'_> {
    fn all(&self, exec: &Exec) {
        let panels = self.sweep.panels;
        let (columns, [oh, ow]) = (panels.columns.count() * self.p.groups, self.out);
        let work = (oh * ow).saturating_mul(self.p.oc).saturating_mul(panels.steps);
        // Each part of the lines reads the weights again.
        let wanted = if exec.threads() > 1 && work >= SERIAL { 4 * exec.threads() } else { 1 };
        let across = wanted.min(columns);
        let down = wanted.div_ceil(across).min(oh);
        exec.pool().run_if(work >= SERIAL, down * across, &|task| {
            self.task(part(oh, down, task / across), part(columns, across, task % across));
        });
    }

    /// Some lines of the result, of some panels.
    fn task(&self, lines: Range<usize>, columns: Range<usize>) {
        let panels = self.sweep.panels;
        self.sweep.walk(|walk| {
            for column in columns {
                let place = (column / panels.columns.count(), column % panels.columns.count());
                let words = panels.steps * panels.columns.width(place.1);
                for down in self.stretches[0].iter() {
                    let lines = down.results.start.max(lines.start)..down.results.end.min(lines.end);
                    for across in self.stretches[1].iter() {
                        let runs = self.runs([&down.taps, &across.taps], words * 4);
                        for y in lines.clone() {
                            let (rows, at) = self.rows(y, &across.results, place.0);
                            // SAFETY: the stretches' taps lie in the image, and its runs in the panel; tasks write disjoint tiles.
                            unsafe { walk.rows_of(&runs, rows, place, at) };
                        }
                    }
                }
            }
        });
    }

    /// The runs of some taps, whose words take so many bytes each.
    fn runs(&self, [down, across]: [&Range<usize>; 2], bytes: usize) -> Few<Run, 16> {
        let p = self.p;
        let mut runs = Few::new();
        let mut next = 0;
        for (i, j) in down.clone().flat_map(|i| across.clone().map(move |j| (i, j))) {
            let (tap, pixels) = (i * p.kw + j, i * p.dilations[0] * p.w + j * p.dilations[1]);
            runs.push(Run { at: pixels * self.pixel, skip: (tap - next) * bytes });
            next = tap + 1;
        }
        runs
    }

    /// The windows of some results of a line, and the first one's place in the result.
    fn rows(&self, y: usize, results: &Range<usize>, group: usize) -> (Lines, usize) {
        let (p, [oh, ow]) = (self.p, self.out);
        let line = (y * p.strides[0]).wrapping_sub(p.pads[0]).wrapping_mul(p.w);
        let pixel = line.wrapping_add(results.start * p.strides[1]).wrapping_sub(p.pads[1]);
        let channels = group * (p.c / p.groups) * 4;
        // A window may start before the image: its taps do not.
        let a = self.pixels.ptr().wrapping_add(pixel.wrapping_mul(self.pixel)).wrapping_add(channels);
        let lines = Lines { a, stride: p.strides[1] * self.pixel, count: results.len(), tail: std::ptr::null() };
        (lines, ((self.index * oh + y) * ow + results.start) * p.oc + group * self.sweep.panels.columns.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASPP: Conv2dParams = Conv2dParams {
        n: 1,
        c: 960,
        h: 28,
        w: 28,
        oc: 256,
        kh: 3,
        kw: 3,
        strides: [1; 2],
        pads: [24; 4],
        dilations: [24; 2],
        groups: 1,
    };

    #[test]
    fn divides_lines_where_other_taps_meet_the_image() {
        let stretches = |p: &Conv2dParams| -> Vec<(Range<usize>, Range<usize>)> {
            let all = Axis::of(p, p.output().unwrap(), 0).stretches().unwrap();
            all.iter().map(|s| (s.results.clone(), s.taps.clone())).collect()
        };
        assert_eq!(stretches(&ASPP), [(0..4, 1..3), (4..24, 1..2), (24..28, 0..2)]);
        let p = Conv2dParams { dilations: [12; 2], pads: [12; 4], ..ASPP };
        assert_eq!(stretches(&p), [(0..12, 1..3), (12..16, 0..3), (16..28, 0..2)]);
        let p = Conv2dParams { strides: [3; 2], pads: [24, 24, 0, 24], ..ASPP };
        assert_eq!(stretches(&p), [(0..2, 1..3)]);
        assert!(Axis::of(&Conv2dParams { pads: [80; 4], ..ASPP }, [140; 2], 0).stretches().is_none());
    }

    #[test]
    fn skips_padding_where_there_is_much_of_it() {
        let dilated = |d: usize| Conv2dParams { dilations: [d; 2], pads: [d; 4], ..ASPP };
        for (d, pays) in [(1, false), (2, false), (6, true), (12, true), (24, true)] {
            assert_eq!(conv2d_nhwc_skips_padding(&dilated(d)), pays, "{d}");
        }
        assert!(!conv2d_nhwc_skips_padding(&Conv2dParams { pads: [0; 4], dilations: [3; 2], ..ASPP }));
        assert!(!conv2d_nhwc_skips_padding(&Conv2dParams { c: 8, ..ASPP }));
        // A result that is a sum of nothing.
        assert!(!conv2d_nhwc_skips_padding(&Conv2dParams { pads: [80; 4], ..ASPP }));
        assert!(!conv2d_nhwc_skips_padding(&Conv2dParams { dilations: [24, 1], pads: [24, 1, 24, 1], ..ASPP }));
    }
}
