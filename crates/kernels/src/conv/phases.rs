//! A transposed convolution as ordinary ones: results that are a stride apart meet the same taps of the window, so that each
//! such phase is a convolution with stride 1 of the image as it is, without the zeros between its pixels.

use crate::error::{KernelError, Result, require};

const NAME: &str = "phases of a transposed convolution";

/// A transposed convolution along one axis (ONNX `ConvTranspose`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransposedAxis {
    /// Extent of the image.
    pub len: usize,
    /// Extent of the window.
    pub window: usize,
    /// Results from one pixel to the next.
    pub stride: usize,
    /// Results from one tap to the next.
    pub dilation: usize,
    /// Results cut at the start.
    pub pad: usize,
    /// Extent of the result.
    pub out: usize,
}

/// Every `stride`-th result along an axis, as a convolution with stride 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The first of the results.
    pub first: usize,
    /// How many there are.
    pub count: usize,
    /// How many the convolution makes, where it makes more: the first ones count.
    pub made: usize,
    /// Which tap of the transposed window each tap of the convolution's is; `None` for one that multiplies by 0.
    pub taps: Vec<Option<usize>>,
    /// Pixels from one tap to the next.
    pub dilation: usize,
    /// Zeros before and behind the image.
    pub pads: [usize; 2],
}

impl TransposedAxis {
    /// The phases, in the order of their first results: as many as the stride, or as there are results where those are fewer.
    ///
    /// Tap `r` of pixel `i` goes to result `i · stride + r · dilation − pad`. The taps that meet result `q − pad` are those
    /// with `r · dilation ≡ q` modulo the stride; they are a step of `stride / gcd` apart, and their pixels
    /// `dilation / gcd`, the other way round.
    ///
    /// # Errors
    /// An extent is 0 or too large, or so much is cut at the start that windows would be mostly zeros.
    pub fn phases(&self) -> Result<Vec<Phase>> {
        let some = [self.len, self.window, self.stride, self.dilation, self.out].iter().all(|&n| n > 0);
        require(NAME, some, "an extent is 0")?;
        // So that no position overflows.
        let all = [self.len, self.window, self.stride, self.dilation, self.pad, self.out];
        require(NAME, all.iter().all(|&n| n < 1 << 30), "an extent is too large")?;
        (0..self.stride.min(self.out)).map(|first| self.phase(first)).collect()
    }

    fn phase(&self, first: usize) -> Result<Phase> {
        let common = gcd(self.stride, self.dilation);
        let (step, dilation) = (self.stride / common, self.dilation / common);
        let (residue, start) = ((first + self.pad) % self.stride, (first + self.pad) / self.stride);
        let lowest = (0..step.min(self.window)).find(|r| r * self.dilation % self.stride == residue);
        // The pixels that the first result meets, the last of them with the lowest tap.
        let (mut taps, last) = match lowest {
            Some(r) => {
                let taps: Vec<Option<usize>> = (r..self.window).step_by(step).map(Some).rev().collect();
                (taps, (start * self.stride + residue) as i64 - (r * self.dilation) as i64)
            }
            // Nothing is added up there.
            None => (vec![None], start as i64 * self.stride as i64),
        };
        let last = last.div_euclid(self.stride as i64);
        let mut begin = last - (taps.len() as i64 - 1) * dilation as i64;
        // A convolution begins at the image's start or before it.
        let more = usize::try_from(begin).unwrap_or(0).div_ceil(dilation);
        require(NAME, more <= self.window, "too much is cut at the start")?;
        taps.splice(0..0, std::iter::repeat_n(None, more));
        begin -= (more * dilation) as i64;
        let count = (self.out - first).div_ceil(self.stride);
        let reach = (taps.len() as i64 - 1) * dilation as i64 + 1;
        let behind = begin + count as i64 - 1 + reach - self.len as i64;
        let pads = [usize::try_from(-begin), usize::try_from(behind.max(0))];
        let [Ok(before), Ok(after)] = pads else { return Err(KernelError::Overflow { kernel: NAME }) };
        let made = count + usize::try_from(-behind.min(0)).unwrap_or(0);
        Ok(Phase { first, count, made, taps, dilation, pads: [before, after] })
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The weights of a phase, `[oc, c / groups, taps …]` (ONNX `Conv`), of those of the whole window, `[c, oc / groups, window …]`
/// (ONNX `ConvTranspose`). `taps` has those of each axis, and `none` is the weight of an output channel that multiplies by 0.
///
/// # Errors
/// `w` has another length, or a tap is not in the window.
pub fn phase_weights<T: Copy>(
    w: &[T],
    [c, oc, groups]: [usize; 3],
    window: &[usize],
    taps: &[&[Option<usize>]],
    none: impl Fn(usize) -> T,
) -> Result<Vec<T>> {
    let size = crate::error::product(NAME, window)?;
    require(NAME, groups > 0 && c.is_multiple_of(groups) && oc.is_multiple_of(groups), "groups must divide channels")?;
    let (cg, og) = (c / groups, oc / groups);
    crate::error::exact(NAME, "weights", w.len(), crate::error::product(NAME, &[c, og, size])?)?;
    let fits = |(taps, &n): (&&[Option<usize>], &usize)| taps.iter().flatten().all(|&t| t < n);
    require(NAME, taps.len() == window.len() && taps.iter().zip(window).all(fits), "a tap is not in the window")?;
    // The places of all taps, row by row.
    let places = taps.iter().zip(window).fold(vec![Some(0)], |outer, (taps, &n)| {
        outer.iter().flat_map(|&at| taps.iter().map(move |&t| Some(at? * n + t?))).collect()
    });
    let mut out = Vec::with_capacity(crate::error::product(NAME, &[oc, cg, places.len()])?);
    for o in 0..oc {
        for i in 0..cg {
            let from = &w[(((o / og) * cg + i) * og + o % og) * size..][..size];
            out.extend(places.iter().map(|at| at.map_or_else(|| none(o), |at: usize| from[at])));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::{ConvTranspose2dParams, conv_transpose2d_reference};
    use crate::testing::Random;

    /// The results of all phases along an axis, by the definition of a convolution.
    fn by_phases(axis: &TransposedAxis, x: &[f32], w: &[f32]) -> Vec<f32> {
        let mut y = vec![f32::NAN; axis.out];
        for phase in axis.phases().unwrap() {
            assert!(phase.made >= phase.count, "{axis:?} {phase:?}");
            let reach = (phase.taps.len() - 1) * phase.dilation + 1;
            assert_eq!(phase.made, axis.len + phase.pads[0] + phase.pads[1] + 1 - reach, "{axis:?} {phase:?}");
            let weights = phase_weights(w, [1, 1, 1], &[axis.window], &[&phase.taps], |_| 0.0).unwrap();
            for m in 0..phase.count {
                let pixel = |t: usize| (m + t * phase.dilation).checked_sub(phase.pads[0]).and_then(|i| x.get(i));
                let sum = weights.iter().enumerate().map(|(t, w)| pixel(t).map_or(0.0, |x| x * w)).sum();
                let at = &mut y[phase.first + m * axis.stride];
                assert!(at.is_nan(), "one phase makes each result");
                *at = sum;
            }
        }
        y
    }

    #[test]
    fn equals_the_definition_for_all_small_windows() {
        let mut random = Random::new(5);
        let mut seen = 0;
        for code in 0..6 * 6 * 5 * 4 * 8 * 4 {
            let digit = |base: usize, below: usize| code / below % base;
            let axis = TransposedAxis {
                len: 1 + digit(6, 1),
                window: 1 + digit(6, 6),
                stride: 1 + digit(5, 36),
                dilation: 1 + digit(4, 180),
                pad: digit(8, 720),
                out: 0,
            };
            let full = (axis.len - 1) * axis.stride + (axis.window - 1) * axis.dilation + 1 + digit(4, 5760);
            let Some(out) = full.checked_sub(axis.pad + digit(3, 5760)).filter(|&n| n > 0) else { continue };
            let axis = TransposedAxis { out, ..axis };
            if axis.phases().is_err() {
                // Only where the start of the image is out of reach.
                assert!(axis.pad > (axis.window - 1) * axis.dilation, "{axis:?}");
                continue;
            }
            let (x, w) = (random.vec(axis.len), random.vec(axis.window));
            let p = ConvTranspose2dParams {
                n: 1,
                c: 1,
                h: 1,
                w: axis.len,
                oc: 1,
                kh: 1,
                kw: axis.window,
                strides: [1, axis.stride],
                pads: [0, axis.pad],
                dilations: [1, axis.dilation],
                groups: 1,
                out: [1, out],
            };
            let want = conv_transpose2d_reference(&p, &x, &w, None);
            crate::testing::assert_close(&by_phases(&axis, &x, &w), &want, 1e-6, &format!("{axis:?}"));
            seen += 1;
        }
        assert!(seen > 10_000, "{seen}");
    }

    #[test]
    fn gives_each_output_channel_its_group_and_its_zero() {
        // Two groups of two input and one output channel, a window of two taps.
        let w = [1, 2, 3, 4, 5, 6, 7, 8];
        let none = |o: usize| -1 - o as i32;
        let got = phase_weights(&w, [4, 2, 2], &[2], &[&[Some(1), None]], none).unwrap();
        assert_eq!(got, [2, -1, 4, -1, 6, -2, 8, -2]);
        let both = phase_weights(&w, [1, 2, 1], &[2, 2], &[&[Some(1), Some(0)], &[Some(0)]], none).unwrap();
        assert_eq!(both, [3, 1, 7, 5]);
    }

    #[test]
    fn refuses_what_is_no_window() {
        let axis = TransposedAxis { len: 4, window: 3, stride: 2, dilation: 1, pad: 1, out: 8 };
        assert_eq!(axis.phases().unwrap().len(), 2);
        for wrong in [
            TransposedAxis { len: 0, ..axis },
            TransposedAxis { stride: 0, ..axis },
            TransposedAxis { window: usize::MAX, ..axis },
            TransposedAxis { pad: 100, ..axis },
            TransposedAxis { out: 1 << 40, ..axis },
        ] {
            assert!(wrong.phases().is_err(), "{wrong:?}");
        }
        let none = |_: usize| 0;
        assert!(phase_weights(&[0; 5], [1, 2, 1], &[3], &[&[Some(0)]], none).is_err());
        assert!(phase_weights(&[0; 6], [1, 2, 1], &[3], &[&[Some(3)]], none).is_err());
        assert!(phase_weights(&[0; 6], [1, 2, 0], &[3], &[&[Some(0)]], none).is_err());
        assert!(phase_weights(&[0; 6], [1, 2, 1], &[3], &[], none).is_err());
    }
}
