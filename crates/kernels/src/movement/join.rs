//! Lines of several tensors side by side, and apart again: Concat and Split.

use crate::buffer::SharedMut;
use crate::error::{Result, exact, require};
use crate::exec::Exec;
use crate::few::Few;

/// Bytes that a task copies at the least.
const PART: usize = 1 << 16;

/// The lines of a result of `bytes` bytes whose lines have `widths` bytes of each tensor.
fn lines(kernel: &'static str, bytes: usize, widths: impl Iterator<Item = usize>) -> Result<(usize, usize)> {
    let total = widths.fold(0usize, usize::saturating_add);
    let lines = bytes.checked_div(total).unwrap_or(0);
    require(kernel, lines * total == bytes, "the lines do not fill the tensor")?;
    Ok((lines, total))
}

/// Joins tensors: each gives so many bytes to each line of `y`, in this order.
///
/// # Errors
/// A length does not fit the number of lines.
pub fn concat(exec: &Exec, parts: &[(&[u8], usize)], y: &mut [u8]) -> Result {
    let (lines, total) = lines("concat", y.len(), parts.iter().map(|p| p.1))?;
    for (x, width) in parts {
        exact("concat", "part", x.len(), lines * width)?;
    }
    let y = SharedMut::new(y);
    exec.split(lines, PART.div_ceil(total.max(1)), &|range| {
        for line in range {
            let mut at = line * total;
            for &(x, width) in parts {
                // SAFETY: `at..at + width` is in this line of `y`, which only this task writes.
                unsafe { y.slice(at, width).copy_from_slice(&x[line * width..][..width]) };
                at += width;
            }
        }
    });
    Ok(())
}

/// Splits the lines of a tensor: each part takes so many bytes of each line, in this order.
///
/// # Errors
/// A length does not fit the number of lines.
pub fn split(exec: &Exec, x: &[u8], parts: &mut [(&mut [u8], usize)]) -> Result {
    let (lines, total) = lines("split", x.len(), parts.iter().map(|p| p.1))?;
    for (y, width) in parts.iter() {
        exact("split", "part", y.len(), lines * width)?;
    }
    let parts: Few<Option<(SharedMut<u8>, usize)>, 8> =
        parts.iter_mut().map(|(y, width)| Some((SharedMut::new(y), *width))).collect();
    exec.split(lines, PART.div_ceil(total.max(1)), &|range| {
        for line in range {
            let mut at = line * total;
            for (y, width) in parts.iter().flatten() {
                // SAFETY: these are the bytes of this line in the part, which only this task writes.
                unsafe { y.slice(line * width, *width).copy_from_slice(&x[at..at + width]) };
                at += width;
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
    fn joins_lines_and_takes_them_apart() {
        for exec in execs() {
            for (lines, widths) in [(1, [3, 0, 5]), (7, [1, 2, 3]), (5000, [64, 17, 1]), (0, [1, 1, 1])] {
                let data = widths.map(|w: usize| (0..lines * w).map(|i| (i * 7 + w) as u8).collect::<Vec<u8>>());
                let want: Vec<u8> = (0..lines)
                    .flat_map(|l| data.iter().zip(widths).flat_map(move |(x, w)| x[l * w..(l + 1) * w].to_vec()))
                    .collect();
                let mut y = vec![0; want.len()];
                let parts: Vec<(&[u8], usize)> = data.iter().map(Vec::as_slice).zip(widths).collect();
                concat(&exec, &parts, &mut y).unwrap();
                assert_eq!(y, want);
                let mut back = widths.map(|w| vec![0; lines * w]);
                let mut parts: Vec<(&mut [u8], usize)> = back.iter_mut().map(Vec::as_mut_slice).zip(widths).collect();
                split(&exec, &y, &mut parts).unwrap();
                assert_eq!(back, data);
            }
        }
    }

    #[test]
    fn refuses_lengths_of_other_numbers_of_lines() {
        let exec = &execs()[0];
        let (mut y, a, b) = ([0; 12], [1; 8], [2; 4]);
        assert!(concat(exec, &[(&a, 2), (&b, 1)], &mut y).is_ok());
        assert!(concat(exec, &[(&a, 2), (&b[1..], 1)], &mut y).is_err());
        assert!(concat(exec, &[(&a, 2), (&b, 3)], &mut y).is_err());
        assert!(concat(exec, &[], &mut y).is_err());
        let (mut c, mut d) = ([0; 8], [0; 3]);
        assert!(split(exec, &y, &mut [(&mut c, 2), (&mut d, 1)]).is_err());
    }
}
