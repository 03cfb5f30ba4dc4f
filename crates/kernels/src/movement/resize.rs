//! Nearest resizing of images. The caller maps output to input coordinates (ONNX `Resize` has many rules); the kernel applies
//! the tables.

use super::permute::Element;
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;

const NAME: &str = "resize";
/// Elements that one task writes at least.
const GRAIN: usize = 1 << 13;

/// `y[p, i, j, k] = x[p, rows[i], columns[j], k]` for images `[planes, h, w, c]`: `c` is 1 where the channels stand before the
/// pixels.
///
/// # Errors
/// A coordinate is outside of the image, or a slice has another length.
pub fn resize_nearest<T: Element>(
    exec: &Exec,
    x: &[T],
    [planes, h, w, c]: [usize; 4],
    rows: &[usize],
    columns: &[usize],
    y: &mut [T],
) -> Result {
    exact(NAME, "x", x.len(), product(NAME, &[planes, h, w, c])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[planes, rows.len(), columns.len(), c])?)?;
    let inside = rows.iter().all(|&i| i < h) && columns.iter().all(|&j| j < w);
    require(NAME, inside, "a coordinate is outside of the image")?;
    if y.is_empty() {
        return Ok(());
    }
    let (oh, from, to) = (rows.len(), w * c, columns.len() * c);
    let spread = Spread::new(w, c, columns);
    let out = SharedMut::new(y);
    exec.split(planes * oh, GRAIN / to + 1, &|range| {
        let first = range.start;
        for index in range {
            let row = rows[index % oh];
            if index > first && index % oh > 0 && rows[index % oh - 1] == row {
                // SAFETY: both output rows are this task's.
                let (before, line) = unsafe { out.slice((index - 1) * to, 2 * to) }.split_at_mut(to);
                line.copy_from_slice(before);
                continue;
            }
            // SAFETY: each output row is one task's.
            let line = unsafe { out.slice(index * to, to) };
            spread.apply(&x[(index / oh * h + row) * from..][..from], line);
        }
    });
    Ok(())
}

/// How a row of pixels becomes longer or shorter.
enum Spread<'a> {
    /// It stays.
    Same,
    /// Each of its single elements is repeated so often.
    Repeat(usize),
    /// Single elements by table.
    Elements(&'a [usize]),
    /// Pixels of several elements by table.
    Pixels(&'a [usize], usize),
}

impl Spread<'_> {
    fn new(w: usize, c: usize, columns: &[usize]) -> Spread<'_> {
        let times = columns.len() / w.max(1);
        let repeats =
            times > 0 && columns.len() == times * w && columns.iter().enumerate().all(|(j, &at)| at == j / times);
        match (repeats, times, c) {
            (true, 1, _) => Spread::Same,
            (true, _, 1) => Spread::Repeat(times),
            (_, _, 1) => Spread::Elements(columns),
            _ => Spread::Pixels(columns, c),
        }
    }

    fn apply<T: Element>(&self, from: &[T], to: &mut [T]) {
        match *self {
            Spread::Same => to.copy_from_slice(from),
            // Constant factors compile to vector code.
            Spread::Repeat(2) => repeat::<T, 2>(from, to),
            Spread::Repeat(4) => repeat::<T, 4>(from, to),
            Spread::Repeat(8) => repeat::<T, 8>(from, to),
            Spread::Repeat(times) => to.chunks_exact_mut(times).zip(from).for_each(|(group, &v)| group.fill(v)),
            Spread::Elements(columns) => to.iter_mut().zip(columns).for_each(|(v, &at)| *v = from[at]),
            Spread::Pixels(columns, c) => {
                for (pixel, &at) in to.chunks_exact_mut(c).zip(columns) {
                    pixel.copy_from_slice(&from[at * c..][..c]);
                }
            }
        }
    }
}

fn repeat<T: Element, const N: usize>(from: &[T], to: &mut [T]) {
    let (groups, _) = to.as_chunks_mut::<N>();
    groups.iter_mut().zip(from).for_each(|(group, &v)| *group = [v; N]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    /// Each element by its definition.
    fn reference(x: &[u8], [planes, h, w, c]: [usize; 4], rows: &[usize], columns: &[usize]) -> Vec<u8> {
        let mut y = Vec::new();
        for p in 0..planes {
            for &i in rows {
                columns.iter().for_each(|&j| y.extend_from_slice(&x[((p * h + i) * w + j) * c..][..c]));
            }
        }
        y
    }

    #[test]
    fn equals_the_definition_for_any_tables() {
        let mut r = Random::new(5);
        for shape in [[1, 1, 1, 1], [2, 3, 5, 1], [3, 17, 31, 1], [2, 4, 3, 7], [1, 40, 40, 24]] {
            let [planes, h, w, c] = shape;
            let x: Vec<u8> = (0..planes * h * w * c).map(|_| r.below(256) as u8).collect();
            let repeated = |n: usize, times: usize| (0..n * times).map(|j| j / times).collect::<Vec<_>>();
            let any = |n: usize, len: usize, r: &mut Random| (0..len).map(|_| r.below(n)).collect::<Vec<_>>();
            let mut tables: Vec<_> = [1, 2, 3, 4, 8].map(|t| (repeated(h, t), repeated(w, t))).to_vec();
            tables.push((any(h, 2 * h + 1, &mut r), any(w, 2 * w + 1, &mut r)));
            tables.push((any(h, h.div_ceil(2), &mut r), repeated(w, 2)));
            for (rows, columns) in tables {
                let want = reference(&x, shape, &rows, &columns);
                for exec in execs() {
                    let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![0u8; want.len()]));
                    resize_nearest(&exec, gx.get(), shape, &rows, &columns, y.get()).unwrap();
                    assert_eq!(y.get(), want, "{shape:?} {exec:?}");
                }
            }
        }
    }

    #[test]
    fn moves_elements_of_any_width() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let mut y = [0.0f32; 6];
        resize_nearest(&exec, &[1.5, f32::INFINITY, -0.0], [1, 1, 3, 1], &[0], &[0, 0, 1, 1, 2, 2], &mut y).unwrap();
        assert_eq!(y.map(f32::to_bits), [1.5, 1.5, f32::INFINITY, f32::INFINITY, -0.0, -0.0].map(f32::to_bits));
    }

    #[test]
    fn refuses_coordinates_outside_of_the_image() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        assert!(resize_nearest(&exec, &[0.0; 4], [1, 2, 2, 1], &[2], &[0], &mut [0.0]).is_err());
        assert!(resize_nearest(&exec, &[0.0; 4], [1, 2, 2, 1], &[0], &[2], &mut [0.0]).is_err());
        assert!(resize_nearest(&exec, &[0.0; 4], [1, 2, 2, 1], &[0], &[0], &mut [0.0; 2]).is_err());
    }
}
