//! What a kernel runs on: an instruction-set tier and a thread pool.

use std::ops::Range;

use crate::buffer::SharedMut;
use crate::isa::Isa;
use crate::pool::Pool;

/// What [`Exec::split_rows`] calls with the numbers of some rows and their bytes.
pub type RowsBody<'a, const N: usize> = &'a (dyn Fn(Range<usize>, [&mut [u8]; N]) + Sync);

/// A tier and a pool; every kernel takes one. Share it by reference or `Arc`.
pub struct Exec {
    isa: Isa,
    pool: Pool,
    bf16: bool,
    rounds_blocks: bool,
}

impl Exec {
    /// Kernels of tier `isa` on `threads` threads, the caller's included.
    pub fn new(isa: Isa, threads: usize) -> Exec {
        Exec { isa, pool: Pool::new(threads), bf16: false, rounds_blocks: false }
    }

    /// The same, where products of floats may round their operands to bfloat16.
    pub fn with_bf16(self, bf16: bool) -> Exec {
        Exec { bf16, ..self }
    }

    /// The same settings on the calling thread alone: for kernels that a task of another one runs.
    pub fn alone(&self) -> Exec {
        Exec { isa: self.isa, pool: Pool::new(1), bf16: self.bf16, rounds_blocks: self.rounds_blocks }
    }

    /// Whether products of floats may round their operands to bfloat16; sums stay f32.
    pub fn bf16(&self) -> bool {
        self.bf16
    }

    /// Whether products are of bfloat16: where floats may be rounded to it and an instruction multiplies it, and where
    /// nothing is lost by it (`exact`) and it is faster than f32.
    pub fn takes_bf16(&self, exact: bool) -> bool {
        self.bf16 && self.isa.multiplies_bf16() || exact && self.isa.gains_by_bf16()
    }

    /// The same, where rows of products with weights by blocks may be rounded to int8.
    pub fn with_rounded_blocks(self, rounds_blocks: bool) -> Exec {
        Exec { rounds_blocks, ..self }
    }

    /// Whether rows of products with weights by blocks may be rounded to int8, unless the model forbids it.
    pub fn rounds_blocks(&self) -> bool {
        self.rounds_blocks
    }

    /// The instruction-set tier.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The thread pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Splits `0..len` into ranges of at least `grain` items (a multiple of it, but for
    /// the last) and runs `body` on each, in parallel when there are several.
    pub fn split(&self, len: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        let grain = grain.max(1);
        let units = len.div_ceil(grain);
        // A few ranges per thread even out a busy core.
        let parts = if self.threads() == 1 { 1 } else { units.min(4 * self.threads()) };
        if parts <= 1 {
            if len > 0 {
                body(0..len);
            }
            return;
        }
        self.pool.run(parts, &|part| {
            let start = units * part / parts * grain;
            let end = (units * (part + 1) / parts * grain).min(len);
            body(start..end);
        });
    }

    /// Splits slices of `rows` equal rows each into `parts` pieces of the same rows, as even as rows allow, and runs `body` on the
    /// rows' numbers and their bytes in each slice, in parallel. What is left behind the last whole row is not touched.
    pub fn split_rows<const N: usize>(&self, data: [&mut [u8]; N], rows: usize, parts: usize, body: RowsBody<'_, N>) {
        let parts = parts.max(1);
        let data = data.map(|slice| (slice.len() / rows.max(1), SharedMut::new(slice)));
        self.pool.run(parts, &|i| {
            let range = rows * i / parts..rows * (i + 1) / parts;
            // SAFETY: the pieces do not overlap, and the slices are borrowed until all tasks are done.
            body(range.clone(), data.map(|(unit, base)| unsafe { base.slice(range.start * unit, range.len() * unit) }));
        });
    }
}

impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Exec({}, {} threads)", self.isa, self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn pieces_of_memory_are_whole_rows() {
        for threads in [1, 3] {
            let exec = Exec::new(Isa::detect(), threads);
            for (len, rows, parts) in [(0, 3, 2), (7, 3, 2), (100, 14, 4), (100, 14, 40), (9, 0, 2)] {
                let (mut data, mut other) = (vec![0u8; len], vec![0u8; rows]);
                exec.split_rows([&mut data, &mut other], rows, parts, &|range, [piece, other]| {
                    let unit = len / rows.max(1);
                    assert_eq!((piece.len(), other.len()), (range.len() * unit, range.len()));
                    piece.iter_mut().zip(range.start * unit..).for_each(|(x, i)| *x += i as u8 + 1);
                    other.iter_mut().for_each(|x| *x += 1);
                });
                let whole = len.checked_div(rows).unwrap_or(0) * rows;
                let want = (0..len).map(|i| if i < whole { i as u8 + 1 } else { 0 });
                assert!(data.iter().copied().eq(want), "{len} {rows}");
                assert!(other.iter().all(|&x| x == 1));
            }
        }
    }

    #[test]
    fn splits_without_gaps_or_overlap() {
        for threads in [1, 3] {
            let exec = Exec::new(Isa::detect(), threads);
            for len in [0, 1, 9, 100, 1001] {
                let ranges = Mutex::new(Vec::new());
                exec.split(len, 10, &|range| ranges.lock().unwrap().push(range));
                let mut ranges = ranges.into_inner().unwrap();
                ranges.sort_by_key(|r| r.start);
                let mut at = 0;
                for range in ranges {
                    assert_eq!(range.start, at);
                    at = range.end;
                }
                assert_eq!(at, len);
            }
        }
    }
}
