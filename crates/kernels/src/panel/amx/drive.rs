//! The walk of blocks over rows.
//!
//! All blocks of a call have one height, so that the tiles are configured once (about 200 cycles): the last one overlaps the
//! one before where the rows do not divide. What finishes a block runs after the next block was started: the processor then
//! computes both at the same time, as far ahead as it looks. Where a panel is longer than half of L1, its depth is
//! walked in parts, and the sums of a few blocks wait in L2 meanwhile: else rows and columns would both come from L2,
//! 64 bytes a cycle, which is all that it gives.

use super::{Block, GRANULE, HALF, Product, Shape, TALL, Tiles, WIDE};
use crate::isa::Isa;
use crate::panel::drive::{Lines, Sweep};
use crate::panel::finish::Finish;

/// Granules of a panel that are walked at a time: 32 KiB.
const DEEP: usize = 16;
/// Blocks whose sums wait while the depth is walked in parts.
const SLOTS: usize = 8;
const SLOT_WORDS: usize = TALL * WIDE;

#[repr(align(64))]
struct Zeros([u32; WIDE]);
static ZEROS: Zeros = Zeros([0; WIDE]);

/// What a thread keeps between the blocks of a product.
pub(crate) struct State<'a> {
    isa: Isa,
    /// The slots.
    sums: *mut u32,
    row_sums: [[i32; TALL]; SLOTS],
    /// The block that was computed last, which is not finished yet, and its slot.
    pending: Option<Finish<'a>>,
    last_slot: usize,
}

impl<'a> State<'a> {
    /// Words that the sums take.
    pub const WORDS: usize = SLOTS * SLOT_WORDS;

    /// # Safety
    /// `sums` covers [`State::WORDS`] words while the state lives, and nobody else uses them.
    pub unsafe fn new(isa: Isa, sums: *mut u32) -> State<'a> {
        State { isa, sums, row_sums: [[0; TALL]; SLOTS], pending: None, last_slot: 0 }
    }

    /// Finishes the last block.
    pub fn flush(&mut self) {
        if let Some(finish) = self.pending.take() {
            finish.run(self.isa);
        }
    }

    fn slot(&self, slot: usize) -> *mut u32 {
        self.sums.wrapping_add(slot * SLOT_WORDS)
    }
}

/// A part of the depth of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Depth {
    run: usize,
    n_runs: usize,
    granule: usize,
    granules: usize,
}

/// Part `i` of the depth of `runs` of so many granules, and the number of parts.
fn depth(runs: usize, granules: usize, i: usize) -> (Depth, usize) {
    if runs * granules <= DEEP {
        return (Depth { run: 0, n_runs: runs, granule: 0, granules }, 1);
    }
    if runs > 1 {
        let (at_once, whole) = ((DEEP / granules).max(1), runs);
        let n_runs = at_once.min(whole - i * at_once);
        return (Depth { run: i * at_once, n_runs, granule: 0, granules }, whole.div_ceil(at_once));
    }
    let parts = granules.div_ceil(DEEP);
    let (from, to) = (granules * i / parts, granules * (i + 1) / parts);
    (Depth { run: 0, n_runs: 1, granule: from, granules: to - from }, parts)
}

/// One call of [`rows`].
pub(crate) struct Work<'s, 'a, T> {
    pub sweep: &'s Sweep<'a>,
    pub tiles: &'s mut T,
    pub state: &'s mut State<'a>,
    pub lines: Lines,
    pub group: usize,
    pub panel: usize,
    /// The place in the result of the first row's first column of the group.
    pub at: usize,
}

impl<'a, T: Tiles> Work<'_, 'a, T> {
    /// Multiplies the lines by the panel.
    ///
    /// # Safety
    /// As [`Sweep::walk`]'s `rows`; the unit is there.
    pub unsafe fn run(mut self) {
        let (panels, count) = (self.sweep.panels, self.lines.count);
        let blocks = count.div_ceil(TALL);
        let height = count.div_ceil(blocks);
        self.tiles.configure(Shape::new(height, panels.columns.width(self.panel) / HALF));
        // SAFETY (of both): rows `from..from + height` are among the lines.
        let from = |block: usize| (block * height).min(count - height);
        let parts = depth(panels.runs, self.granules(), 0).1;
        if parts == 1 {
            for block in 0..blocks {
                let slot = (self.state.last_slot + 1) % 2;
                // SAFETY: as above; the pending block has the other slot.
                unsafe {
                    self.multiply(from(block), 0, slot);
                    self.finish(from(block), height, slot);
                }
            }
            return;
        }
        for first in (0..blocks).step_by(SLOTS) {
            self.state.flush();
            for part in 0..parts {
                for block in first..blocks.min(first + SLOTS) {
                    // SAFETY: as above; no pending block has the slot.
                    unsafe {
                        self.multiply(from(block), part, block - first);
                        if part + 1 == parts {
                            self.finish(from(block), height, block - first);
                        }
                    }
                }
            }
        }
    }

    /// Granules of each run that are read in place.
    fn granules(&self) -> usize {
        self.sweep.panels.steps / HALF - usize::from(!self.lines.tail.is_null())
    }

    unsafe fn multiply(&mut self, from: usize, part: usize, slot: usize) {
        let (panels, lines, granules) = (self.sweep.panels, &self.lines, self.granules());
        let width = panels.columns.width(self.panel);
        let (d, parts) = depth(panels.runs, granules, part);
        let out = self.state.slot(slot);
        let (start, start_stride) = match (part, self.sweep.signed) {
            (0, false) => (ZEROS.0.as_ptr(), 0),
            (0, true) => (panels.starts(self.group, self.panel).as_ptr().cast(), 0),
            _ => (out.cast_const(), 4 * width),
        };
        let tail = if part + 1 == parts { lines.tail } else { std::ptr::null() };
        let b = panels.panel(self.group, self.panel).as_ptr().cast::<u32>();
        let block = Block {
            a: lines.a.wrapping_add(from * lines.stride + d.granule * GRANULE),
            stride: lines.stride,
            runs: self.sweep.runs[d.run..].as_ptr(),
            n_runs: d.n_runs,
            granules: d.granules,
            tail: if tail.is_null() { tail } else { tail.wrapping_add(from * GRANULE) },
            b: b.wrapping_add((d.run * granules + d.granule) * HALF * width),
            start,
            start_stride,
            out,
        };
        let product = match (self.sweep.ints, self.sweep.signed) {
            (true, false) => Product::U8I8,
            (true, true) => Product::I8I8,
            (false, _) => Product::Bf16,
        };
        // SAFETY: the caller vouches for the rows, `panel` for the columns; the slot holds the largest block.
        unsafe { self.tiles.multiply(product, &block) };
    }

    /// Leaves a block to be finished after the next one was computed.
    unsafe fn finish(&mut self, from: usize, rows: usize, slot: usize) {
        let (sweep, columns) = (self.sweep, &self.sweep.panels.columns);
        if !sweep.epilogue.weight_zeros.is_empty() {
            let a = self.lines.a.wrapping_add(from * self.lines.stride);
            // SAFETY: passed on to the caller.
            unsafe { sweep.row_sums(a, self.lines.stride, &mut self.state.row_sums[slot][..rows]) };
        }
        let finish = Finish {
            epilogue: sweep.epilogue,
            ints: sweep.ints,
            acc: self.state.slot(slot),
            rows,
            width: columns.width(self.panel),
            n: columns.valid(self.panel),
            row: self.at / sweep.ld.max(1) + from,
            column: self.group * columns.n + self.panel * columns.nr,
            row_sums: self.state.row_sums[slot].as_ptr(),
            out: sweep.out,
            at: self.at + from * sweep.ld + self.panel * columns.nr,
            ld: sweep.ld,
        };
        self.state.flush();
        self.state.pending = Some(finish);
        self.state.last_slot = slot % 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_each_granule_of_a_panel_once() {
        for (runs, granules) in [(1, 1), (1, 16), (1, 17), (1, 48), (9, 1), (9, 8), (3, 24), (49, 1), (1, 0)] {
            let parts = depth(runs, granules, 0).1;
            let mut seen = vec![0; runs * granules];
            for i in 0..parts {
                let (d, n) = depth(runs, granules, i);
                assert_eq!(n, parts);
                assert!(d.n_runs > 0 && (d.n_runs == 1 || d.granules == granules));
                for r in d.run..d.run + d.n_runs {
                    (d.granule..d.granule + d.granules).for_each(|g| seen[r * granules + g] += 1);
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{runs} {granules}");
        }
    }
}
