//! Padding with one value, and picking elements by a table for each axis (ONNX `Pad`).

use std::ops::Range;

use super::permute::Element;
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product_of, require};
use crate::exec::Exec;
use crate::few::Few;

const NAME: &str = "pad";
/// Elements that one task writes at least.
const GRAIN: usize = 1 << 14;
/// The place of an element that the input has not.
const OUTSIDE: usize = usize::MAX;

/// One axis of a padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// The input's extent.
    pub len: usize,
    /// Elements before it.
    pub before: usize,
    /// Elements behind it.
    pub after: usize,
}

impl Padding {
    fn padded(&self) -> usize {
        self.len.saturating_add(self.before).saturating_add(self.after)
    }

    fn is_none(&self) -> bool {
        self.before == 0 && self.after == 0
    }

    /// The place in the input of place `i` of the output, unless it was added.
    fn place(&self, i: usize) -> Option<usize> {
        i.checked_sub(self.before).filter(|&i| i < self.len)
    }
}

/// Writes `x` with `value` around it to `y`; `axes` are outermost first.
///
/// # Errors
/// A slice has another length than the axes say.
pub fn pad<T: Element>(exec: &Exec, x: &[T], axes: &[Padding], value: T, y: &mut [T]) -> Result {
    exact(NAME, "x", x.len(), product_of(NAME, axes.iter().map(|a| a.len))?)?;
    exact(NAME, "y", y.len(), product_of(NAME, axes.iter().map(Padding::padded))?)?;
    if y.is_empty() {
        return Ok(());
    }
    let (outer, row) = rows(axes);
    let width = row.padded();
    let rows = y.len() / width;
    let out = SharedMut::new(y);
    exec.split(rows, GRAIN / width + 1, &|range| {
        for index in range {
            // SAFETY: each output row is one task's.
            let line = unsafe { out.slice(index * width, width) };
            let Some(from) = source(outer, index) else {
                line.fill(value);
                continue;
            };
            let (before, rest) = line.split_at_mut(row.before);
            let (copied, after) = rest.split_at_mut(row.len);
            before.fill(value);
            copied.copy_from_slice(&x[from * row.len..][..row.len]);
            after.fill(value);
        }
    });
    Ok(())
}

/// One axis of a selection: the place in the input of each place of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    len: usize,
    places: Vec<usize>,
    /// Places that follow each other in the input as well.
    run: Range<usize>,
}

impl Places {
    /// An axis of `len` elements; `None` is an element that the input has not.
    ///
    /// # Errors
    /// A place is not below `len`.
    pub fn new(len: usize, places: impl Iterator<Item = Option<usize>>) -> Result<Places> {
        let places: Vec<usize> = places.map(|p| p.unwrap_or(OUTSIDE)).collect();
        require("pick", places.iter().all(|&p| p < len || p == OUTSIDE), "a place is out of range")?;
        let run = longest_run(&places);
        Ok(Places { len, places, run })
    }

    fn is_whole(&self) -> bool {
        self.run == (0..self.len) && self.places.len() == self.len
    }
}

/// The longest range of places that follow each other.
fn longest_run(places: &[usize]) -> Range<usize> {
    let (mut best, mut start) = (0..0, 0);
    for i in 0..places.len() {
        let follows = i > start && places[i] != OUTSIDE && places[i - 1].checked_add(1) == Some(places[i]);
        if !follows {
            start = i;
        }
        if places[i] != OUTSIDE && i + 1 - start > best.len() {
            best = start..i + 1;
        }
    }
    best
}

/// `y` has at each place the element of `x` that the axes name, or `value`; `axes` are outermost first.
///
/// # Errors
/// A slice has another length than the axes say.
pub fn pick<T: Element>(exec: &Exec, x: &[T], axes: &[Places], value: T, y: &mut [T]) -> Result {
    exact("pick", "x", x.len(), product_of("pick", axes.iter().map(|a| a.len))?)?;
    exact("pick", "y", y.len(), product_of("pick", axes.iter().map(|a| a.places.len()))?)?;
    if y.is_empty() {
        return Ok(());
    }
    let Some(last) = axes.iter().rposition(|a| !a.is_whole()) else {
        y.copy_from_slice(x);
        return Ok(());
    };
    let (outer, axis) = (&axes[..last], &axes[last]);
    let inner: usize = axes[last + 1..].iter().map(|a| a.len).product();
    let (width, from_width) = (axis.places.len() * inner, axis.len * inner);
    let rows = y.len() / width;
    let out = SharedMut::new(y);
    exec.split(rows, GRAIN / width + 1, &|range| {
        for index in range {
            // SAFETY: each output row is one task's.
            let line = unsafe { out.slice(index * width, width) };
            match picked(outer, index) {
                Some(from) => pick_row(&x[from * from_width..][..from_width], axis, inner, value, line),
                None => line.fill(value),
            }
        }
    });
    Ok(())
}

/// One row, in blocks of `inner` elements.
fn pick_row<T: Element>(x: &[T], axis: &Places, inner: usize, value: T, y: &mut [T]) {
    let Range { start, end } = axis.run;
    if start < end {
        let from = axis.places[start] * inner;
        y[start * inner..end * inner].copy_from_slice(&x[from..][..(end - start) * inner]);
    }
    for i in (0..start).chain(end..axis.places.len()) {
        let to = &mut y[i * inner..][..inner];
        match axis.places[i] {
            OUTSIDE => to.fill(value),
            place => to.copy_from_slice(&x[place * inner..][..inner]),
        }
    }
}

/// The row of the input that row `index` of the output holds, unless the input has none.
fn picked(outer: &[Places], mut index: usize) -> Option<usize> {
    let (mut row, mut step) = (0, 1);
    for axis in outer.iter().rev() {
        let place = axis.places[index % axis.places.len()];
        if place == OUTSIDE {
            return None;
        }
        row += place * step;
        step *= axis.len;
        index /= axis.places.len();
    }
    Some(row)
}

/// The axes before the last one that is padded, and that one with all behind it as one row.
fn rows(axes: &[Padding]) -> (&[Padding], Padding) {
    let last = axes.iter().rposition(|a| !a.is_none()).unwrap_or(0).min(axes.len().saturating_sub(1));
    let Some(axis) = axes.get(last) else { return (axes, Padding { len: 1, before: 0, after: 0 }) };
    let inner: usize = axes[last + 1..].iter().map(|a| a.len).product();
    let row = Padding { len: axis.len * inner, before: axis.before * inner, after: axis.after * inner };
    (&axes[..last], row)
}

/// The row of the input that row `index` of the output holds, unless it was added.
fn source(outer: &[Padding], mut index: usize) -> Option<usize> {
    let mut places: Few<usize, 8> = Few::new();
    for axis in outer.iter().rev() {
        places.push(axis.place(index % axis.padded())?);
        index /= axis.padded();
    }
    Some(outer.iter().zip(places.iter().rev()).fold(0, |row, (axis, place)| row * axis.len + place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    fn reference(x: &[u8], axes: &[Padding], value: u8) -> Vec<u8> {
        let all: usize = axes.iter().map(Padding::padded).product();
        let element = |mut index: usize| {
            let (mut at, mut step) = (0, 1);
            for axis in axes.iter().rev() {
                match axis.place(index % axis.padded()) {
                    Some(place) => at += place * step,
                    None => return value,
                }
                step *= axis.len;
                index /= axis.padded();
            }
            x[at]
        };
        (0..all).map(element).collect()
    }

    #[test]
    fn equals_the_definition() {
        let mut r = Random::new(23);
        let all: [&[(usize, usize, usize)]; 7] = [
            &[],
            &[(5, 1, 2)],
            &[(3, 0, 0), (4, 0, 0)],
            &[(2, 0, 1), (3, 2, 0), (17, 3, 9)],
            &[(1, 0, 0), (4, 1, 1), (5, 1, 1), (8, 0, 0)],
            &[(2, 0, 0), (0, 3, 1)],
            &[(2, 0, 0), (130, 0, 7), (3, 0, 0), (70, 0, 1)],
        ];
        for axes in all {
            let axes: Vec<Padding> = axes.iter().map(|&(len, before, after)| Padding { len, before, after }).collect();
            let len = axes.iter().map(|a| a.len).product::<usize>();
            let x: Vec<u8> = (0..len).map(|_| r.below(256) as u8).collect();
            let want = reference(&x, &axes, 9);
            for exec in execs() {
                let (mut from, mut y) = (Guarded::new(&x), Guarded::new(&vec![0u8; want.len()]));
                pad(&exec, from.get(), &axes, 9, y.get()).unwrap();
                assert_eq!(y.get(), want, "{axes:?} {exec:?}");
            }
        }
    }

    #[test]
    fn picks_elements_by_a_table_for_each_axis() {
        let mut r = Random::new(24);
        // Extents of input and output.
        let all: [&[(usize, usize)]; 6] =
            [&[], &[(5, 9)], &[(2, 2), (3, 7), (17, 40)], &[(4, 1), (3, 3)], &[(2, 3), (9, 4), (8, 8)], &[(3, 0)]];
        for extents in all {
            let place = |r: &mut Random, i: usize, [n, to]: [usize; 2]| match (n == to, i % 4) {
                (true, _) => Some(i),
                (_, 0) => None,
                // A run in the middle.
                (_, _) if i > 0 && i < n => Some(i - 1),
                _ => Some(r.below(n)),
            };
            let tables: Vec<Vec<Option<usize>>> =
                extents.iter().map(|&(n, to)| (0..to).map(|i| place(&mut r, i, [n, to])).collect()).collect();
            let axes: Vec<Places> =
                extents.iter().zip(&tables).map(|(&(n, _), t)| Places::new(n, t.iter().copied()).unwrap()).collect();
            let x: Vec<u16> = (0..extents.iter().map(|e| e.0).product()).map(|_| r.next() as u16).collect();
            let element = |mut index: usize| {
                let (mut at, mut step) = (0, 1);
                for (&(n, to), table) in extents.iter().zip(&tables).rev() {
                    let Some(place) = table[index % to] else { return 9 };
                    (at, step, index) = (at + place * step, step * n, index / to);
                }
                x[at]
            };
            let want: Vec<u16> = (0..extents.iter().map(|e| e.1).product()).map(element).collect();
            for exec in execs() {
                let (mut from, mut y) = (Guarded::new(&x), Guarded::new(&vec![0u16; want.len()]));
                pick(&exec, from.get(), &axes, 9, y.get()).unwrap();
                assert_eq!(y.get(), want, "{axes:?} {exec:?}");
            }
        }
        assert!(Places::new(3, [Some(3)].into_iter()).is_err());
        let axes = [Places::new(3, [Some(2), None].into_iter()).unwrap()];
        let exec = Exec::new(crate::Isa::detect(), 1);
        assert!(pick(&exec, &[1u8; 3], &axes, 0, &mut [0; 3]).is_err());
        assert!(pick(&exec, &[1u8; 2], &axes, 0, &mut [0; 2]).is_err());
    }

    #[test]
    fn refuses_other_lengths() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let axes = [Padding { len: 2, before: 1, after: 0 }];
        assert!(pad(&exec, &[1u8; 2], &axes, 0, &mut [0; 3]).is_ok());
        assert!(pad(&exec, &[1u8; 3], &axes, 0, &mut [0; 3]).is_err());
        assert!(pad(&exec, &[1u8; 2], &axes, 0, &mut [0; 4]).is_err());
        let huge = [Padding { len: 2, before: usize::MAX, after: 1 }];
        assert!(pad(&exec, &[1u8; 2], &huge, 0, &mut [0; 3]).is_err());
    }
}
