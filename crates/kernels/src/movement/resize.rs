//! Nearest and linear resizing of NCHW images. The caller maps output to input
//! coordinates (ONNX `Resize` has many rules); the kernels apply the tables.

use super::permute::Element;
use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;

const NAME: &str = "resize";
/// Elements that one task writes at least.
const GRAIN: usize = 1 << 13;

/// Linear interpolation of one output coordinate: `x[low] + (x[high] − x[low]) · fraction`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearTap {
    /// Input coordinate at or below.
    pub low: usize,
    /// Input coordinate above.
    pub high: usize,
    /// Weight of `high`, 0 … 1.
    pub fraction: f32,
}

/// `y[p, i, j] = x[p, rows[i], columns[j]]` for `planes` images of `[h, w]`.
///
/// # Errors
/// A coordinate is outside of the image, or a slice has another length.
pub fn resize_nearest<T: Element>(
    exec: &Exec,
    x: &[T],
    [planes, h, w]: [usize; 3],
    rows: &[usize],
    columns: &[usize],
    y: &mut [T],
) -> Result {
    exact(NAME, "x", x.len(), product(NAME, &[planes, h, w])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[planes, rows.len(), columns.len()])?)?;
    let inside = rows.iter().all(|&i| i < h) && columns.iter().all(|&j| j < w);
    require(NAME, inside, "a coordinate is outside of the image")?;
    if y.is_empty() {
        return Ok(());
    }
    let (oh, ow) = (rows.len(), columns.len());
    // Doubling is the common case and needs no table.
    let doubles = ow == 2 * w && columns.iter().enumerate().all(|(j, &c)| c == j / 2);
    let out = SharedMut::new(y);
    exec.split(planes * oh, GRAIN / ow + 1, &|range| {
        for index in range {
            let from = &x[(index / oh * h + rows[index % oh]) * w..][..w];
            // SAFETY: each output row is one task's.
            let to = unsafe { out.slice(index * ow, ow) };
            if doubles {
                for (pair, &v) in to.chunks_exact_mut(2).zip(from) {
                    pair.fill(v);
                }
            } else {
                for (v, &column) in to.iter_mut().zip(columns) {
                    *v = from[column];
                }
            }
        }
    });
    Ok(())
}

/// Bilinear resizing of `planes` images of `[h, w]`: columns first, then rows.
///
/// # Errors
/// A coordinate is outside of the image, or a slice has another length.
pub fn resize_linear(
    exec: &Exec,
    x: &[f32],
    [planes, h, w]: [usize; 3],
    rows: &[LinearTap],
    columns: &[LinearTap],
    y: &mut [f32],
) -> Result {
    exact(NAME, "x", x.len(), product(NAME, &[planes, h, w])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[planes, rows.len(), columns.len()])?)?;
    let fits = |taps: &[LinearTap], len: usize| taps.iter().all(|t| t.low < len && t.high < len);
    require(NAME, fits(rows, h) && fits(columns, w), "a coordinate is outside of the image")?;
    if y.is_empty() {
        return Ok(());
    }
    let (oh, ow) = (rows.len(), columns.len());
    let out = SharedMut::new(y);
    exec.split(planes * oh, GRAIN / ow + 1, &|range| {
        for index in range {
            let tap = rows[index % oh];
            let line = |row: usize| &x[(index / oh * h + row) * w..][..w];
            let (top, bottom) = (line(tap.low), line(tap.high));
            // SAFETY: each output row is one task's.
            let to = unsafe { out.slice(index * ow, ow) };
            for (v, t) in to.iter_mut().zip(columns) {
                let across = |line: &[f32]| line[t.low] + (line[t.high] - line[t.low]) * t.fraction;
                let (a, b) = (across(top), across(bottom));
                *v = a + (b - a) * tap.fraction;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::execs;

    #[test]
    fn resizes_by_the_tables() {
        let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
        for exec in execs() {
            let mut y = vec![0.0; 2 * 4 * 6];
            resize_nearest(&exec, &x, [2, 2, 3], &[0, 0, 1, 1], &[0, 0, 1, 1, 2, 2], &mut y).unwrap();
            assert_eq!(y[..6], [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
            assert_eq!(y[42..], [9.0, 9.0, 10.0, 10.0, 11.0, 11.0]);
            let mut y = vec![0u8; 2];
            resize_nearest(&exec, &[1, 2, 3, 4], [1, 2, 2], &[1], &[1, 0], &mut y).unwrap();
            assert_eq!(y, [4, 3]);
            let tap = |low, high, fraction| LinearTap { low, high, fraction };
            let mut y = vec![0.0; 2 * 3];
            let columns = [tap(0, 1, 0.0), tap(0, 1, 0.5), tap(1, 2, 0.25)];
            resize_linear(&exec, &x, [2, 2, 3], &[tap(0, 1, 0.5)], &columns, &mut y).unwrap();
            assert_eq!(y, [1.5, 2.0, 2.75, 7.5, 8.0, 8.75]);
        }
    }

    #[test]
    fn refuses_coordinates_outside_of_the_image() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        assert!(resize_nearest(&exec, &[0.0; 4], [1, 2, 2], &[2], &[0], &mut [0.0]).is_err());
        let tap = LinearTap { low: 0, high: 2, fraction: 0.0 };
        assert!(resize_linear(&exec, &[0.0; 4], [1, 2, 2], &[tap], &[tap], &mut [0.0]).is_err());
    }
}
