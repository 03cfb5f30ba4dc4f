//! Padding with one value (ONNX `Pad`).

use super::permute::Element;
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product_of};
use crate::exec::Exec;
use crate::few::Few;

const NAME: &str = "pad";
/// Elements that one task writes at least.
const GRAIN: usize = 1 << 14;

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
