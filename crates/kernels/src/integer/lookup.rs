//! Functions of one 8-bit integer through a table of their 256 results.

use crate::buffer::SharedMut;
use crate::error::{Result, exact};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd};

/// Bytes that one task takes at least.
const GRAIN: usize = 1 << 15;

/// `y[i] = table[x[i]]`; an i8 is passed, and indexes the table, as its bits.
///
/// # Errors
/// The slices differ in length.
pub fn lookup(exec: &Exec, x: &[u8], table: &[u8; 256], y: &mut [u8]) -> Result {
    exact("lookup", "y", y.len(), x.len())?;
    let y = SharedMut::new(y);
    exec.split(x.len(), GRAIN, &|range| {
        let (start, len) = (range.start, range.len());
        exec.isa().dispatch(Lookup { table, x: x[range].as_ptr(), y: y.ptr().wrapping_add(start), len });
    });
    Ok(())
}

/// `y[i] = table[y[i]]`.
pub fn lookup_in_place(exec: &Exec, table: &[u8; 256], y: &mut [u8]) {
    let len = y.len();
    let y = SharedMut::new(y);
    exec.split(len, GRAIN, &|range| {
        let y = y.ptr().wrapping_add(range.start);
        exec.isa().dispatch(Lookup { table, x: y, y, len: range.len() });
    });
}

/// Pointers cover `len` bytes that no other task writes.
struct Lookup<'a> {
    table: &'a [u8; 256],
    x: *const u8,
    y: *mut u8,
    len: usize,
}

impl Kernel for Lookup<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the struct's contract.
        unsafe { s.lookup(self.table, self.x, self.y, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    #[test]
    fn looks_up_every_byte_at_every_length() {
        let mut random = Random::new(5);
        let table: [u8; 256] = std::array::from_fn(|_| random.next() as u8);
        for len in (0..130).chain([255, 256, 257, 100_001]) {
            let x: Vec<u8> = (0..len).map(|i| if i < 256 { i as u8 } else { random.next() as u8 }).collect();
            let want: Vec<u8> = x.iter().map(|&v| table[usize::from(v)]).collect();
            for exec in execs() {
                let (mut from, mut to) = (Guarded::new(&x), Guarded::new(&vec![0u8; len]));
                lookup(&exec, from.get(), &table, to.get()).unwrap();
                assert_eq!(to.get(), want, "{len} {exec:?}");
                lookup_in_place(&exec, &table, from.get());
                assert_eq!(from.get(), want, "in place, {len} {exec:?}");
            }
        }
    }

    #[test]
    fn refuses_results_of_another_length() {
        assert!(lookup(&execs()[0], &[1, 2], &[0; 256], &mut [0]).is_err());
    }
}
