//! The packed form, and its way back to floats.

use super::PANEL;
use crate::buffer::{Buffer, SharedMut};
use crate::error::{Result, product, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd};

const NAME: &str = "block weights";

/// The sizes of a weight that is quantized by blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Length of the sums.
    pub k: usize,
    /// Columns.
    pub n: usize,
    /// Bits of a code: 2, 4 or 8.
    pub bits: usize,
    /// Codes of a column that share a scale: a multiple of 16. The last block of a column may be shorter.
    pub block: usize,
    /// What codes stand for.
    pub values: Values,
}

/// The values of codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// Integers: the code less the one in the middle, or less a zero point.
    #[default]
    Integers,
    /// fp4 e2m1, of 4 bits and without zero points: sign and magnitude 0, 0.5, 1, 1.5, 2, 3, 4 or 6 (OCP Microscaling
    /// Formats 1.0, section 5.3.3).
    E2m1,
}

impl BlockShape {
    /// Blocks of a column.
    pub fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Codes in a word of 32 bits.
    pub(crate) fn per_word(&self) -> usize {
        32 / self.bits
    }

    /// Words of a column; the last block is padded.
    pub(crate) fn words(&self) -> usize {
        self.blocks() * self.block / self.per_word()
    }

    fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Bit of code `i` of a word: the low bits of its four bytes, then the next ones. So four codes in a row have the
    /// places of bytes, which instructions on bytes multiply.
    pub(crate) fn bit(&self, i: usize) -> usize {
        8 * (i % 4) + self.bits * (i / 4)
    }
}

/// A weight that is quantized by blocks, packed for all tiers: for each panel of 64 columns and each few rows, a word
/// of each column.
#[derive(Debug)]
pub struct Blocks {
    pub(crate) shape: BlockShape,
    words: Buffer,
    scales: Buffer,
    /// Zero points, less the code in the middle; empty where all are 0.
    shifts: Buffer,
}

/// A panel of [`Blocks`].
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// By word and column.
    pub words: &'a [f32],
    /// By block and column.
    pub scales: &'a [f32],
    /// As the scales, or empty.
    pub shifts: &'a [f32],
}

/// The elements of a column, in order.
type Column<'a, T> = &'a (dyn Fn(usize, &mut [T]) + Sync);

impl Blocks {
    /// Packs columns that functions fill: the codes of a column (`k`), its scales and its zero points (one for
    /// each block; none for `2^(bits − 1)`).
    ///
    /// # Errors
    /// The shape is empty, too large, or of other bits or blocks than [`BlockShape`] says.
    pub fn pack(
        exec: &Exec,
        shape: BlockShape,
        codes: Column<'_, u8>,
        scales: Column<'_, f32>,
        zeros: Option<Column<'_, f32>>,
    ) -> Result<Blocks> {
        require(NAME, matches!(shape.bits, 2 | 4 | 8), "codes have 2, 4 or 8 bits")?;
        require(NAME, shape.block > 0 && shape.block.is_multiple_of(16), "blocks are multiples of 16")?;
        require(NAME, shape.k > 0 && shape.n > 0, "the weight is empty")?;
        let integers = shape.values == Values::Integers;
        require(NAME, integers || shape.bits == 4 && zeros.is_none(), "fp4 has 4 bits and no zero points")?;
        // Padded by less than a block and a panel.
        product(NAME, &[shape.k.saturating_add(shape.block), shape.n.saturating_add(PANEL)])?;
        let columns = shape.panels() * PANEL;
        let mut packed = Blocks {
            shape,
            words: Buffer::lasting(product(NAME, &[shape.words(), columns])?),
            scales: Buffer::lasting(product(NAME, &[shape.blocks(), columns])?),
            shifts: Buffer::new(if zeros.is_some() { product(NAME, &[shape.blocks(), columns])? } else { 0 }),
        };
        let out = [&mut packed.words, &mut packed.scales, &mut packed.shifts].map(|b| SharedMut::new(b));
        let (words, blocks) = (shape.words(), shape.blocks());
        exec.split(shape.panels(), 1, &|range| {
            let (mut column, mut values) = (vec![0u8; words * shape.per_word()], vec![0f32; blocks]);
            for panel in range {
                for c in 0..PANEL.min(shape.n - panel * PANEL) {
                    codes(panel * PANEL + c, &mut column[..shape.k]);
                    // SAFETY: each task has panels of its own, which lie in the buffers.
                    let to = unsafe { out[0].slice(panel * PANEL * words, PANEL * words) };
                    for (line, codes) in to.chunks_exact_mut(PANEL).zip(column.chunks_exact(shape.per_word())) {
                        let word = codes.iter().enumerate().map(|(i, &code)| u32::from(code) << shape.bit(i));
                        line[c] = f32::from_bits(word.fold(0, |all, code| all | code));
                    }
                    scales(panel * PANEL + c, &mut values);
                    // SAFETY: as above.
                    let to = unsafe { out[1].slice(panel * PANEL * blocks, PANEL * blocks) };
                    to.chunks_exact_mut(PANEL).zip(&values).for_each(|(line, &v)| line[c] = v);
                    let Some(zeros) = zeros else { continue };
                    zeros(panel * PANEL + c, &mut values);
                    // SAFETY: as above.
                    let to = unsafe { out[2].slice(panel * PANEL * blocks, PANEL * blocks) };
                    let middle = (1 << (shape.bits - 1)) as f32;
                    to.chunks_exact_mut(PANEL).zip(&values).for_each(|(line, &v)| line[c] = v - middle);
                }
            }
        });
        if packed.shifts.iter().all(|&s| s == 0.0) {
            packed.shifts = Buffer::new(0);
        }
        Ok(packed)
    }

    /// The sizes.
    pub fn shape(&self) -> BlockShape {
        self.shape
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        4 * (self.words.len() + self.scales.len() + self.shifts.len())
    }

    pub(crate) fn panel(&self, p: usize) -> Panel<'_> {
        let cut = |b: &'_ [f32], len: usize| -> std::ops::Range<usize> {
            if b.is_empty() { 0..0 } else { p * len..(p + 1) * len }
        };
        let (words, blocks) = (PANEL * self.shape.words(), PANEL * self.shape.blocks());
        Panel {
            words: &self.words[cut(&self.words, words)],
            scales: &self.scales[cut(&self.scales, blocks)],
            shifts: &self.shifts[cut(&self.shifts, blocks)],
        }
    }
}

/// Gives each value of a vector of words, and its place among them, to `$each`.
macro_rules! unpack {
    ($s:ident, $table:ident, $bits:ident, $word:expr, |$i:ident, $v:ident| $each:expr) => {{
        let word = $word;
        match $bits {
            2 => unpack!(@index $s $table word $i $v $each, 0 0 1 8 2 16 3 24 4 2 5 10 6 18 7 26 8 4 9 12 10 20 11 28
                         12 6 13 14 14 22 15 30),
            4 => unpack!(@index $s $table word $i $v $each, 0 0 1 8 2 16 3 24 4 4 5 12 6 20 7 28),
            _ => {
                // Signed bytes: the code in the middle is 0.
                let word = $s.xor_i(word, $s.splat_i(0x8080_8080u32 as i32));
                unpack!(@byte $s word $i $v $each, 0 24 1 16 2 8 3 0)
            }
        }
    }};
    (@index $s:ident $table:ident $word:ident $i:ident $v:ident $each:expr, $($at:literal $bit:literal)*) => {{
        $({
            let ($i, $v) = ($at, $s.look_up($table, $s.sar_i::<$bit>($word)));
            $each
        })*
    }};
    (@byte $s:ident $word:ident $i:ident $v:ident $each:expr, $($at:literal $bit:literal)*) => {{
        $({
            let ($i, $v) = ($at, $s.to_f32($s.sar_i::<24>($s.shl_i::<$bit>($word))));
            $each
        })*
    }};
}

impl BlockShape {
    /// The values of codes of 2 or 4 bits by their low four bits.
    pub(crate) fn table(&self) -> [f32; 16] {
        const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let count = 1 << self.bits.min(4);
        std::array::from_fn(|i| match self.values {
            Values::Integers => (i % count) as f32 - (count / 2) as f32,
            Values::E2m1 if i < 8 => E2M1[i],
            Values::E2m1 => -E2M1[i - 8],
        })
    }
}

/// Rows `from..from + k` of some columns as floats, `dst[row · width + column]`; `from` is a multiple of 16.
pub(crate) struct Unpack<'a> {
    pub weights: &'a Blocks,
    /// The first row, and their number.
    pub rows: (usize, usize),
    /// The first column, and their number: multiples of the lanes.
    pub column: usize,
    pub width: usize,
    pub dst: *mut f32,
}

impl Kernel for Unpack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut c = 0;
        while c < self.width {
            let column = self.column + c;
            // SAFETY: whoever built this made sure of the columns and of `dst`.
            unsafe {
                match self.weights.shape.bits {
                    // Padding beyond the last panel.
                    _ if column >= self.weights.shape.n.next_multiple_of(PANEL) => self.zeros(s, c),
                    2 => self.vector::<S, 2>(s, c),
                    4 => self.vector::<S, 4>(s, c),
                    _ => self.vector::<S, 8>(s, c),
                }
            }
            c += S::LANES;
        }
    }
}

impl Unpack<'_> {
    #[inline(always)]
    unsafe fn zeros<S: Simd>(&self, s: S, c: usize) {
        for row in 0..self.rows.1 {
            // SAFETY: passed on to the caller.
            unsafe { s.store(self.dst.add(row * self.width + c), s.splat(0.0)) };
        }
    }

    #[inline(always)]
    unsafe fn vector<S: Simd, const BITS: usize>(&self, s: S, c: usize) {
        let (shape, (from, k)) = (self.weights.shape, self.rows);
        let column = self.column + c;
        let panel = self.weights.panel(column / PANEL);
        let at = column % PANEL;
        let (table, per) = (s.table(&shape.table()), 32 / BITS);
        let mut row = 0;
        // SAFETY: the caller vouches for the rows and columns; words, scales and shifts have 64 columns each.
        unsafe {
            while row < k {
                // Groups of rows lie in one block: its length is a multiple of theirs.
                let block = (from + row) / shape.block;
                let scale = s.load(panel.scales.as_ptr().add(block * PANEL + at));
                let shift = match panel.shifts.is_empty() {
                    true => s.splat(0.0),
                    false => s.load(panel.shifts.as_ptr().add(block * PANEL + at)),
                };
                let word = s.to_bits(s.load(panel.words.as_ptr().add((from + row) / per * PANEL + at)));
                let end = per.min(k - row);
                let to = self.dst.add(row * self.width + c);
                unpack!(s, table, BITS, word, |i, v| {
                    if i < end {
                        s.store(to.wrapping_add(i * self.width), s.mul(s.sub(v, shift), scale));
                    }
                });
                row += per;
            }
        }
    }
}
