//! Where the greatest or least element of an axis lies (ONNX `ArgMax`, `ArgMin`).

use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "arg_extreme";
/// Elements that a task looks at, at least.
const GRAIN: usize = 1 << 14;
/// Columns that a task takes at a time: some vectors of every tier, whole cache lines.
const COLUMNS: usize = 64;
/// Most lanes of a vector.
const LANES: usize = 16;

/// Which element's place is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArgExtreme {
    /// The least instead of the greatest.
    pub least: bool,
    /// The last of equal ones instead of the first.
    pub last: bool,
}

impl ArgExtreme {
    /// Whether `v` takes the place of `best`, which stands before it: NaN is the extreme, as in numpy.
    fn beats(self, v: f32, best: f32) -> bool {
        let (v, best) = if self.least { (-v, -best) } else { (v, best) };
        match (v.is_nan(), best.is_nan()) {
            (true, nan) => !nan || self.last,
            (false, true) => false,
            _ => v > best || self.last && v == best,
        }
    }
}

/// The place of the extreme along the middle axis of `x` `[outer, axis, inner]`: `y` `[outer, inner]`.
///
/// # Errors
/// A slice has another length than the shape, or the axis is empty or longer than 2³¹ − 1.
pub fn arg_extreme(exec: &Exec, how: ArgExtreme, x: &[f32], [outer, axis, inner]: [usize; 3], y: &mut [i64]) -> Result {
    exact(NAME, "x", x.len(), product(NAME, &[outer, axis, inner])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[outer, inner])?)?;
    require(NAME, axis > 0 && i32::try_from(axis).is_ok(), "an axis is empty or too long")?;
    if y.is_empty() {
        return Ok(());
    }
    let to = SharedMut::new(y);
    if inner == 1 {
        exec.split(outer, GRAIN / axis + 1, &|range| {
            for row in range {
                let x = &x[row * axis..][..axis];
                let at = exec.isa().dispatch(Row { x, how }).unwrap_or_else(|| one_by_one(how, x, 1));
                // SAFETY: each row is one task's.
                unsafe { to.slice(row, 1)[0] = at as i64 };
            }
        });
        return Ok(());
    }
    let blocks = inner.div_ceil(COLUMNS);
    exec.split(outer * blocks, GRAIN / (axis * COLUMNS) + 1, &|range| {
        for block in range {
            let (row, column) = (block / blocks, block % blocks * COLUMNS);
            let n = COLUMNS.min(inner - column);
            let x = &x[row * axis * inner + column..(row + 1) * axis * inner];
            // SAFETY: each block is one task's.
            let y = unsafe { to.slice(row * inner + column, n) };
            exec.isa().dispatch(Columns { x, axis, ld: inner, how, y });
        }
    });
    Ok(())
}

/// The definition, for elements `step` apart.
fn one_by_one(how: ArgExtreme, x: &[f32], step: usize) -> usize {
    let mut best = (0, f32::NAN);
    for (i, &v) in x.iter().step_by(step).enumerate() {
        if i == 0 || how.beats(v, best.1) {
            best = (i, v);
        }
    }
    best.0
}

/// The best elements so far, lane by lane: as keys, whose greatest is wanted, and their places.
#[derive(Clone, Copy)]
struct Best<S: Simd> {
    keys: S::F,
    places: S::F,
    /// Bits where a lane has seen NaN.
    nan: S::F,
}

impl<S: Simd> Best<S> {
    #[inline(always)]
    fn new(s: S) -> Self {
        let none = s.splat(f32::NEG_INFINITY);
        Best { keys: none, places: s.float_of(s.splat_i(0)), nan: s.splat(0.0) }
    }

    #[inline(always)]
    fn see(&mut self, s: S, how: ArgExtreme, v: S::F, place: S::I) {
        let key = if how.least { s.neg(v) } else { v };
        let place = s.float_of(place);
        if how.last {
            let kept = s.lt(key, self.keys);
            (self.keys, self.places) = (s.select(kept, self.keys, key), s.select(kept, self.places, place));
        } else {
            let taken = s.lt(self.keys, key);
            (self.keys, self.places) = (s.select(taken, key, self.keys), s.select(taken, place, self.places));
        }
        self.nan = s.select(s.unordered(v, v), s.splat(1.0), self.nan);
    }

    #[inline(always)]
    fn has_nan(self, s: S) -> bool {
        s.hmax(self.nan) != 0.0
    }

    /// Keys and places as arrays.
    #[inline(always)]
    fn lanes(self, s: S) -> ([f32; LANES], [i32; LANES]) {
        let (mut keys, mut places) = ([0f32; LANES], [0i32; LANES]);
        // SAFETY: no vector has more lanes.
        unsafe {
            s.store(keys.as_mut_ptr(), self.keys);
            s.store(places.as_mut_ptr().cast(), self.places);
        }
        (keys, places)
    }
}

/// The place in a row; `None` where it has NaN.
struct Row<'a> {
    x: &'a [f32],
    how: ArgExtreme,
}

impl Kernel for Row<'_> {
    type Out = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<usize> {
        let Row { x, how } = self;
        let whole = x.len() / S::LANES * S::LANES;
        let mut steps = [0i32; LANES];
        steps.iter_mut().enumerate().for_each(|(i, step)| *step = i as i32);
        let mut best = Best::new(s);
        // SAFETY: whole vectors of the row.
        unsafe {
            let first = s.load_i32_n(steps.as_ptr(), S::LANES);
            for i in (0..whole).step_by(S::LANES) {
                best.see(s, how, s.load(x.as_ptr().add(i)), s.add_i(first, s.splat_i(i as i32)));
            }
        }
        if best.has_nan(s) || x[whole..].iter().any(|v| v.is_nan()) {
            return None;
        }
        let (keys, places) = best.lanes(s);
        let rest = x[whole..].iter().enumerate().map(|(i, &v)| (if how.least { -v } else { v }, whole + i));
        let lanes = keys.iter().zip(places).map(|(&key, place)| (key, place as usize));
        // A row whose elements are all the worst there can be was not seen to beat anything: its first one stands.
        let start = (f32::NEG_INFINITY, 0);
        let all = lanes.take(if whole == 0 { 0 } else { S::LANES }).chain(rest);
        let better = |best: (f32, usize), other: (f32, usize)| {
            let tie = if how.last { other.1 > best.1 } else { other.1 < best.1 };
            if other.0 > best.0 || other.0 == best.0 && tie { other } else { best }
        };
        Some(all.fold(start, better).1)
    }
}

/// The places in columns side by side.
struct Columns<'a> {
    x: &'a [f32],
    axis: usize,
    /// Elements from a row to the next.
    ld: usize,
    how: ArgExtreme,
    y: &'a mut [i64],
}

impl Kernel for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Columns { x, axis, ld, how, y } = self;
        for (j, y) in y.chunks_mut(S::LANES).enumerate() {
            let (j, bits) = (j * S::LANES, low_bits(y.len()));
            let mut best = Best::new(s);
            for i in 0..axis {
                // SAFETY: the lanes in `bits` are columns of row `i`.
                let v = unsafe { s.load_bits(x.as_ptr().add(i * ld + j), bits) };
                best.see(s, how, v, s.splat_i(i as i32));
            }
            let (nan, (_, places)) = (best.has_nan(s), best.lanes(s));
            for (c, (y, place)) in y.iter_mut().zip(places).enumerate() {
                *y = if nan { one_by_one(how, &x[j + c..], ld) as i64 } else { i64::from(place) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    #[test]
    fn finds_the_places_that_the_definition_says() {
        let mut random = Random::new(3);
        let few = [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY];
        for [outer, axis, inner] in [[1, 1, 1], [3, 7, 1], [2, 100, 1], [5, 33, 1], [2, 5, 3], [1, 21, 200], [3, 1, 70]]
        {
            for kind in 0..5 {
                let value = |random: &mut Random| match kind {
                    0 => random.unit(),
                    // Many equal ones, of all rows alike in the next.
                    1 => few[random.below(6)],
                    2 => f32::NEG_INFINITY,
                    3 => f32::INFINITY,
                    _ if random.below(20) == 0 => f32::NAN,
                    _ => random.unit(),
                };
                let x: Vec<f32> = (0..outer * axis * inner).map(|_| value(&mut random)).collect();
                for (least, last) in [(false, false), (false, true), (true, false), (true, true)] {
                    let how = ArgExtreme { least, last };
                    let at = |i: usize| {
                        let column = &x[i / inner * axis * inner + i % inner..(i / inner + 1) * axis * inner];
                        one_by_one(how, column, inner) as i64
                    };
                    let want: Vec<i64> = (0..outer * inner).map(at).collect();
                    for exec in execs() {
                        let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![-1i64; want.len()]));
                        arg_extreme(&exec, how, gx.get(), [outer, axis, inner], y.get()).unwrap();
                        assert_eq!(y.get(), want, "{outer}×{axis}×{inner} kind {kind} {how:?} {exec:?}");
                    }
                }
            }
        }
        assert_eq!(one_by_one(ArgExtreme::default(), &[1.0, f32::NAN, 2.0, f32::NAN], 1), 1);
        assert_eq!(one_by_one(ArgExtreme { least: true, last: true }, &[1.0, f32::NAN, f32::NAN, 0.0], 1), 2);
        assert_eq!(one_by_one(ArgExtreme { least: true, last: false }, &[1.0, 0.0, 0.0], 1), 1);
    }

    #[test]
    fn refuses_empty_axes_and_other_lengths() {
        let exec = &execs()[0];
        assert!(arg_extreme(exec, ArgExtreme::default(), &[], [1, 0, 1], &mut [0]).is_err());
        assert!(arg_extreme(exec, ArgExtreme::default(), &[1.0; 6], [1, 2, 3], &mut [0; 2]).is_err());
        assert!(arg_extreme(exec, ArgExtreme::default(), &[1.0; 5], [1, 2, 3], &mut [0; 3]).is_err());
    }
}
