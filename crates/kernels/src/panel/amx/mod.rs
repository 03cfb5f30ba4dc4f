//! Products of tiles (Intel AMX): eight registers of 16 rows by 64 bytes, and instructions that multiply two of
//! them into a third.
//!
//! A block is up to 32 rows by 32 columns: four tiles of sums, two of rows and two of columns, so that each tile that is
//! loaded is used twice (Intel's optimization manual: a load takes 8 cycles of both ports, a product 16; a granule of
//! a full block loads for 32 and multiplies for 64). The panels are those of the vector kernels: 16 steps of 16 columns
//! are a tile.
//!
//! The blocks run on a [`Tiles`]: the processor's ([`hardware`]) or a model of it in plain Rust ([`emulated`]). Both
//! follow one [`schedule`], so that everything but the instructions themselves is tested on any machine.

#[macro_use]
mod schedule;
mod drive;
mod emulated;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod hardware;
#[cfg(any(test, all(target_arch = "x86_64", target_os = "linux")))]
mod trial;

pub(crate) use drive::{State, Work};
pub(crate) use emulated::Emulated;

/// Bytes of each row that a step takes.
pub(crate) const GRANULE: usize = 64;
/// Rows of a tile; steps of 4 bytes in a granule.
pub(crate) const HALF: usize = 16;
/// Rows of a block.
pub(crate) const TALL: usize = 2 * HALF;
/// Columns of a block.
pub(crate) const WIDE: usize = 32;

/// Rows and columns of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows of the upper tiles, 1 to 16, and of the lower ones; these are 0 unless the upper ones are 16.
    pub rows: [usize; 2],
    /// Tiles side by side: 1 or 2.
    pub vectors: usize,
}

impl Shape {
    /// The tiles of 1 to 32 rows by 1 or 2 vectors of columns.
    pub fn new(rows: usize, vectors: usize) -> Shape {
        Shape { rows: [rows.min(HALF), rows.saturating_sub(HALF).min(HALF)], vectors: vectors.clamp(1, 2) }
    }

    /// Rows of each register: sums (upper left, upper right, lower left, lower right), rows (upper, lower), columns
    /// (left, right). Each is 64 bytes wide where it has rows.
    pub fn registers(&self) -> [usize; 8] {
        let [high, low] = self.rows;
        [high, high, low, low, high, low, HALF, HALF]
    }
}

/// What is multiplied: rows by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    /// `tdpbusd`.
    U8I8,
    /// `tdpbssd`.
    I8I8,
    /// `tdpbsud`; no kernel needs it: weights are made i8 when they are packed.
    #[cfg_attr(not(test), allow(dead_code))]
    I8U8,
    /// `tdpbuud`; as above.
    #[cfg_attr(not(test), allow(dead_code))]
    U8U8,
    /// `tdpbf16ps`: pairs of bfloat16, with sums in f32.
    Bf16,
}

/// One block of work: row `i` of run `r` starts at `a + runs[r] + i · stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// The first row.
    pub a: *const u8,
    /// Bytes between rows.
    pub stride: usize,
    /// Byte offsets of the runs.
    pub runs: *const usize,
    pub n_runs: usize,
    /// Granules of each run; 0 where there is only a tail.
    pub granules: usize,
    /// One more granule of each row after the last run, 64 bytes apart; null for none.
    pub tail: *const u8,
    /// The panel: a tile, or two side by side, for each granule.
    pub b: *const u32,
    /// What the sums start from: rows of all columns, `start_stride` bytes apart (0: the same for all).
    pub start: *const u32,
    pub start_stride: usize,
    /// Receives the sums: rows × columns, dense.
    pub out: *mut u32,
}

/// What multiplies tiles.
pub(crate) trait Tiles {
    /// Sets the tiles of the blocks that follow.
    fn configure(&mut self, shape: Shape);

    /// Computes a block of the shape that was set last.
    ///
    /// # Safety
    /// The block's pointers cover the shape.
    unsafe fn multiply(&mut self, product: Product, block: &Block);
}

/// Which of the two a kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// The processor's.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Hardware,
    /// The model.
    Emulated,
}

#[cfg(test)]
mod tests;
