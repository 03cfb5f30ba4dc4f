//! Resizing that mixes elements (ONNX `Resize`: linear, cubic, with and without antialiasing), one axis after the other.
//!
//! Sums are taken in f64, tap by tap, so that every tier and number of threads gives the bits of the operator's definition.

use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd};

use sealed::Wide;

const NAME: &str = "resample";
/// Elements that one task writes at least.
const GRAIN: usize = 1 << 12;

/// The weights of one axis: `y[i] = Σ weight[t] · x[index[t]]` over `t` in `starts[i]..starts[i + 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Taps<'a> {
    /// One more than output elements, ascending.
    pub starts: &'a [usize],
    /// By tap the input element.
    pub index: &'a [usize],
    /// As many weights.
    pub weight: &'a [f64],
}

impl Taps<'_> {
    /// Output elements.
    fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    fn check(&self, from: usize) -> Result {
        exact(NAME, "weight", self.weight.len(), self.index.len())?;
        require(NAME, self.index.iter().all(|&i| i < from), "a tap is outside of the image")?;
        let ascending = self.starts.is_sorted() && self.starts.last().is_some_and(|&n| n <= self.index.len());
        require(NAME, ascending, "the starts of the taps do not ascend")
    }

    /// The input elements and weights of output element `i`.
    #[inline(always)]
    fn of(&self, i: usize) -> impl Iterator<Item = (usize, f64)> {
        let range = self.starts[i]..self.starts[i + 1];
        self.index[range.clone()].iter().copied().zip(self.weight[range].iter().copied())
    }
}

mod sealed {
    /// What is mixed: elements, or sums that were taken along the other axis.
    pub trait Wide: Copy {
        fn wide(self) -> f64;
    }

    impl Wide for f64 {
        #[inline(always)]
        fn wide(self) -> f64 {
            self
        }
    }

    pub trait Sealed: Wide + Send + Sync + 'static {
        fn narrow(v: f64, round: bool) -> Self;
    }

    impl Wide for f32 {
        #[inline(always)]
        fn wide(self) -> f64 {
            f64::from(self)
        }
    }

    impl Sealed for f32 {
        #[inline(always)]
        fn narrow(v: f64, _round: bool) -> f32 {
            v as f32
        }
    }

    macro_rules! whole {
        ($($t:ty),*) => {$(
            impl Wide for $t {
                #[inline(always)]
                fn wide(self) -> f64 {
                    f64::from(self)
                }
            }

            impl Sealed for $t {
                #[inline(always)]
                fn narrow(v: f64, round: bool) -> $t {
                    // Saturates; NaN becomes 0.
                    (if round { v.round() } else { v }) as $t
                }
            }
        )*};
    }
    whole!(u8, i8);
}

/// An element that can be mixed: f32, u8, i8. Integers are cut off, or rounded half away from zero, and saturate.
pub trait Sample: sealed::Sealed {}
impl<T: sealed::Sealed> Sample for T {}

/// How images are resampled.
#[derive(Clone, Copy, Debug)]
pub struct Resample<'a> {
    /// Images `[planes, h, w, c]`: `c` is 1 where the channels stand before the pixels.
    pub shape: [usize; 4],
    /// Along `h`.
    pub rows: Taps<'a>,
    /// Along `w`.
    pub columns: Taps<'a>,
    /// Whether the columns are mixed before the rows.
    pub columns_first: bool,
    /// Whether integers are rounded.
    pub round: bool,
}

/// Resamples `x` to `y` `[planes, rows.len(), columns.len(), c]`.
///
/// # Errors
/// A tap is outside of the image, or a slice has another length.
pub fn resample<T: Sample>(exec: &Exec, p: &Resample<'_>, x: &[T], y: &mut [T]) -> Result {
    let [planes, h, w, c] = p.shape;
    let (oh, ow) = (p.rows.len(), p.columns.len());
    exact(NAME, "x", x.len(), product(NAME, &[planes, h, w, c])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[planes, oh, ow, c])?)?;
    p.rows.check(h)?;
    p.columns.check(w)?;
    if y.is_empty() {
        return Ok(());
    }
    let (from, to) = (w * c, ow * c);
    // A row of doubles before, and one behind the other axis.
    let words = product(NAME, &[2, from.max(to) + to])?;
    let out = SharedMut::new(y);
    exec.split(planes * oh, GRAIN / to + 1, &|range| {
        with_scratch(words, |scratch| {
            // SAFETY: scratch is aligned for vectors, and has two words for each double.
            let scratch = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<f64>(), words / 2) };
            let (first, second) = scratch.split_at_mut(from.max(to));
            for index in range.clone() {
                let image = &x[index / oh * h * from..][..h * from];
                // SAFETY: each output row is one task's.
                let y = unsafe { out.slice(index * to, to) };
                exec.isa().dispatch(Line { p, image, row: index % oh, first: &mut *first, second: &mut *second, y });
            }
        });
    });
    Ok(())
}

/// One row of the output.
struct Line<'a, T> {
    p: &'a Resample<'a>,
    image: &'a [T],
    row: usize,
    /// A row of the input or of the output, whichever is longer.
    first: &'a mut [f64],
    /// A row of the output.
    second: &'a mut [f64],
    y: &'a mut [T],
}

impl<T: Sample> Kernel for Line<'_, T> {
    type Out = ();

    /// The loops hold no vector type: the tier's features let the compiler choose the widest for doubles, and without
    /// contraction the bits stay.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Line { p, image, row, first, second, y } = self;
        let [_, _, w, c] = p.shape;
        let from = w * c;
        if p.columns_first {
            second.fill(0.0);
            let first = &mut first[..y.len()];
            for (i, weight) in p.rows.of(row) {
                // SAFETY: `resample` checked the taps.
                unsafe { mix(&image[i * from..][..from], &p.columns, c, first) };
                second.iter_mut().zip(&*first).for_each(|(sum, &v)| *sum += weight * v);
            }
        } else {
            let first = &mut first[..from];
            first.fill(0.0);
            for (i, weight) in p.rows.of(row) {
                let line = &image[i * from..][..from];
                first.iter_mut().zip(line).for_each(|(sum, &v)| *sum += weight * v.wide());
            }
            // SAFETY: `resample` checked the taps.
            unsafe { mix(first, &p.columns, c, second) };
        }
        y.iter_mut().zip(&*second).for_each(|(y, &v)| *y = T::narrow(v, p.round));
    }
}

/// `y[j, k] = Σ weight · x[index, k]` along a row of pixels of `c` elements.
///
/// # Safety
/// The taps passed [`Taps::check`] with the row's pixels.
#[inline(always)]
unsafe fn mix<X: Wide>(x: &[X], taps: &Taps<'_>, c: usize, y: &mut [f64]) {
    if c == 1 {
        // SAFETY: the caller's range of taps, each of which was checked to lie in a row.
        let term =
            |t: usize| unsafe { taps.weight.get_unchecked(t) * x.get_unchecked(*taps.index.get_unchecked(t)).wide() };
        for (y, ends) in y.iter_mut().zip(taps.starts.windows(2)) {
            *y = match ends[1] - ends[0] {
                // Linear mixing, but for borders.
                2 => 0.0 + term(ends[0]) + term(ends[0] + 1),
                _ => (ends[0]..ends[1]).fold(0.0, |sum, t| sum + term(t)),
            };
        }
        return;
    }
    for (j, y) in y.chunks_exact_mut(c).enumerate() {
        y.fill(0.0);
        for (i, weight) in taps.of(j) {
            y.iter_mut().zip(&x[i * c..][..c]).for_each(|(sum, &v)| *sum += weight * v.wide());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    /// Taps of any number, from none to three an element.
    struct Table(Vec<usize>, Vec<usize>, Vec<f64>);

    impl Table {
        fn new(from: usize, to: usize, r: &mut Random) -> Table {
            let mut t = Table(vec![0], Vec::new(), Vec::new());
            for _ in 0..to {
                for _ in 0..r.below(4) {
                    t.1.push(r.below(from));
                    t.2.push(f64::from(r.unit()) * 0.7);
                }
                t.0.push(t.1.len());
            }
            t
        }

        fn taps(&self) -> Taps<'_> {
            Taps { starts: &self.0, index: &self.1, weight: &self.2 }
        }
    }

    /// `[outer, from, inner]` along the middle, as the operator's definition adds.
    fn along(x: &[f64], [outer, from, inner]: [usize; 3], taps: &Taps<'_>) -> Vec<f64> {
        let mut y = Vec::new();
        for o in 0..outer {
            for i in 0..taps.len() {
                let element = |k| taps.of(i).fold(0.0, |sum, (at, w)| sum + w * x[(o * from + at) * inner + k]);
                y.extend((0..inner).map(element));
            }
        }
        y
    }

    fn check<T: Sample + PartialEq + std::fmt::Debug + Default>(x: &[T], p: &Resample<'_>) {
        let [planes, h, w, c] = p.shape;
        let wide: Vec<f64> = x.iter().map(|v| v.wide()).collect();
        let want = match p.columns_first {
            true => along(&along(&wide, [planes * h, w, c], &p.columns), [planes, h, p.columns.len() * c], &p.rows),
            false => along(&along(&wide, [planes, h, w * c], &p.rows), [planes * p.rows.len(), w, c], &p.columns),
        };
        let want: Vec<T> = want.iter().map(|&v| T::narrow(v, p.round)).collect();
        for exec in execs() {
            let (mut gx, mut y) = (Guarded::new(x), Guarded::new(&vec![T::default(); want.len()]));
            resample(&exec, p, gx.get(), y.get()).unwrap();
            assert_eq!(y.get(), want, "{:?} {exec:?}", p.shape);
        }
    }

    #[test]
    fn equals_the_definition_bit_by_bit() {
        let mut r = Random::new(8);
        for shape in [[1, 1, 1, 1], [2, 3, 5, 1], [3, 9, 31, 1], [2, 4, 3, 7], [1, 20, 20, 24]] {
            let [planes, h, w, c] = shape;
            let (rows, columns) = (Table::new(h, 2 * h + 1, &mut r), Table::new(w, w.div_ceil(2) + 1, &mut r));
            let floats = r.vec(planes * h * w * c);
            let codes: Vec<u8> = floats.iter().map(|v| (v * 127.0) as i8 as u8).collect();
            let signed: Vec<i8> = codes.iter().map(|&v| v as i8).collect();
            for (columns_first, round) in [(false, false), (true, true)] {
                let p = Resample { shape, rows: rows.taps(), columns: columns.taps(), columns_first, round };
                check(&floats, &p);
                check(&codes, &p);
                check(&signed, &p);
            }
        }
    }

    #[test]
    fn cuts_rounds_and_saturates_integers() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let one = Taps { starts: &[0, 1], index: &[0], weight: &[1.0] };
        let columns = Taps { starts: &[0, 1, 2, 3, 3], index: &[0, 0, 0], weight: &[1.5, 3.0, -1.0] };
        for (round, half) in [(false, 151), (true, 152)] {
            let p = Resample { shape: [1, 1, 1, 1], rows: one, columns, columns_first: false, round };
            let mut y = [9u8; 4];
            resample(&exec, &p, &[101u8], &mut y).unwrap();
            assert_eq!(y, [half, 255, 0, 0]);
        }
    }

    #[test]
    fn refuses_taps_outside_of_the_image() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let one = Taps { starts: &[0, 1], index: &[0], weight: &[1.0] };
        let base = Resample { shape: [1, 1, 2, 1], rows: one, columns: one, columns_first: false, round: false };
        assert!(resample(&exec, &base, &[0f32; 2], &mut [0.0]).is_ok());
        let wrong = [
            Taps { index: &[2], ..one },
            Taps { starts: &[0, 2], ..one },
            Taps { starts: &[1, 0], ..one },
            Taps { starts: &[], ..one },
            Taps { weight: &[], ..one },
        ];
        for columns in wrong {
            assert!(resample(&exec, &Resample { columns, ..base }, &[0f32; 2], &mut [0.0]).is_err(), "{columns:?}");
        }
        assert!(resample(&exec, &base, &[0f32; 3], &mut [0.0]).is_err());
    }
}
