//! Rows by panels with tiles of vectors, on one thread.

use super::drive::{Lines, Source, Sweep};
use super::epilogue::Residual;
use super::finish::Finish;
use super::pack::{self, BLOCK};
use super::target::Kind;
use super::tile::{End, Ends, Run, Tile};
use crate::buffer::with_scratch;
use crate::few::Few;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd};

/// Bytes of a residual beyond which it is not expected in the second cache.
const FAR: usize = 1 << 20;
/// Bytes of a line of the cache.
const LINE: usize = 64;
/// Words of the largest tile.
const TILE_WORDS: usize = 14 * 32;
/// Most rows whose results are made together.
const MOST_ROWS: usize = 64;

/// Added to the sums of a tile, they change nothing: no zero's sign either.
static NOTHING: [f32; 32] = [-0.0; 32];

/// Memory that the tiles of a walk bring into the second cache for a later one, in the place of weights that are there
/// already.
#[derive(Default)]
struct Later(Few<(Source, usize), 4>);

impl Later {
    /// What the next tile fetches: `bytes` bytes, or the last ones and what follows them.
    fn next(&mut self, bytes: usize) -> Option<*const u32> {
        let last = self.0.last_mut()?;
        let from = last.0.ptr();
        let left = last.1.saturating_sub(bytes);
        *last = (Source(from.wrapping_add(bytes)), left);
        if left == 0 {
            self.0.pop();
        }
        Some(from.cast())
    }
}

#[repr(align(64))]
struct Accumulators([std::mem::MaybeUninit<u32>; TILE_WORDS]);

/// A panel for bounded kernels with its weights taken apart (`limits::take_apart`), once it is known that its tiles would
/// spend more time on that, each for itself.
struct Apart<'s> {
    /// Room for the largest panel; empty where kernels are not bounded.
    words: &'s mut [f32],
    /// The panel that the others tell of.
    panel: *const u32,
    /// Blocks of steps whose weights its tiles took apart.
    blocks: usize,
    done: bool,
}

impl Apart<'_> {
    /// Blocks in tiles that take as long as one in memory, which is written.
    const TILES: usize = 2;

    fn of(&mut self, panel: *const u32) -> *const u32 {
        if self.panel != panel {
            (self.panel, self.blocks, self.done) = (panel, 0, false);
        }
        if self.done { self.words.as_ptr().cast() } else { std::ptr::null() }
    }

    /// What the next `tiles` tiles take, after one had to take `blocks` blocks apart, as they are expected to.
    fn after(&mut self, isa: Isa, blocks: usize, tiles: usize, (words, width): (&[f32], usize)) -> *const u32 {
        self.blocks += blocks;
        if blocks == 0 || (self.blocks + blocks * tiles) * BLOCK * width < Self::TILES * words.len() {
            return std::ptr::null();
        }
        pack::take_apart(isa, words, width, self.words);
        self.done = true;
        self.words.as_ptr().cast()
    }
}

/// What multiplies rows by the panels of a sweep with tiles of vectors.
pub(crate) struct Vectors<'s, 'a> {
    sweep: &'s Sweep<'a>,
    later: Later,
    apart: Apart<'s>,
}

impl<'a> Vectors<'_, 'a> {
    /// Calls `body` with it.
    pub fn with<R>(sweep: &Sweep<'a>, body: impl FnOnce(Vectors<'_, 'a>) -> R) -> R {
        let panels = &sweep.panels;
        let room = if panels.kernel.bounded() { 2 * panels.runs * panels.steps * panels.columns.nr } else { 0 };
        let with = |words: &mut [f32]| {
            let apart = Apart { words, panel: std::ptr::null(), blocks: 0, done: false };
            body(Vectors { sweep, later: Later::default(), apart })
        };
        if room == 0 { with(&mut []) } else { with_scratch(room, with) }
    }

    /// Whether the kernel is.
    pub fn bounded(&self) -> bool {
        self.sweep.panels.kernel.bounded()
    }

    /// As [`super::drive::Walk::fetch`].
    pub fn fetch(&mut self, from: *const u8, bytes: usize) {
        self.later.0.push((Source(from), bytes));
    }

    /// Splits rows, at least one, into tiles of even height.
    ///
    /// # Safety
    /// As [`super::drive::Walk::rows`].
    pub unsafe fn rows(&mut self, (lines, runs): (Lines, &[Run]), (group, p): (usize, usize), at: usize) {
        let Lines { a, stride, count, .. } = lines;
        let sweep = self.sweep;
        let (panels, columns, epilogue) = (sweep.panels, &sweep.panels.columns, sweep.epilogue);
        let (kernel, words) = (panels.kernel, panels.panel(group, p));
        let (b, limits) = (words.as_ptr().cast(), panels.limits(group, p));
        let (width, n, column) = (columns.width(p), columns.valid(p), group * columns.n + p * columns.nr);
        let (n_runs, steps, row) = (runs.len(), panels.steps, at / sweep.ld.max(1));
        let at = at + p * columns.nr;
        debug_assert!(!kernel.bounded() || !limits.is_null());
        let mut acc = Accumulators([std::mem::MaybeUninit::uninit(); TILE_WORDS]);
        let acc = acc.0.as_mut_ptr().cast::<u32>();
        let mut sums = [0i32; MOST_ROWS];
        let tiles = count.div_ceil(kernel.mr);
        let (even, longer) = (count / tiles, count % tiles);
        // Results of small tiles are made together: what is done once for them takes as long as a tile.
        let together = (TILE_WORDS / width).min(MOST_ROWS).max(kernel.mr) - kernel.mr;
        let sums_rows = !epilogue.weight_zeros.is_empty();
        let end = self.end((column, n), at).filter(|_| n == width);
        let residual = match epilogue.residual {
            Residual::F32(r) if size_of_val(r) > FAR => Some(r.as_ptr().cast::<u8>()),
            Residual::Bf16(r) if size_of_val(r) > FAR => Some(r.as_ptr().cast()),
            _ => None,
        };
        let (higher, lower) = (kernel.tile(even + usize::from(longer > 0), width), kernel.tile(even, width));
        let mut tile = Tile {
            a,
            stride,
            runs: runs.as_ptr(),
            n_runs,
            steps,
            b,
            limits,
            apart: self.apart.of(b),
            slow: 0.into(),
            ahead: std::ptr::null(),
            out: acc,
            end: end.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
        };
        let (mut first, mut from) = (0, 0);
        for t in 0..tiles {
            let (rows, function) = if t < longer { (even + 1, higher) } else { (even, lower) };
            tile.a = a.wrapping_add(from * stride);
            tile.out = acc.wrapping_add((from - first) * width);
            tile.ahead = match self.later.next(fetched(n_runs * steps)) {
                Some(next) => next,
                None => ahead(b, panels.runs * steps, width, t),
            };
            if let Some(r) = residual {
                let (size, to) = (epilogue.residual.size(), at + from * sweep.ld);
                let from = r.wrapping_add(to * size);
                sweep.isa.dispatch(Fetch { from, rows, ld: sweep.ld * size, width: width * size });
            }
            // SAFETY: the caller vouches for the rows, `panel` for the columns; the kernel's
            // tier was proven when it was chosen.
            unsafe { function(&tile) };
            if kernel.bounded() && tile.apart.is_null() {
                tile.apart = self.apart.after(sweep.isa, tile.slow.get(), tiles - t - 1, (words, width));
            }
            if let Some(end) = &end {
                end.out.set(end.out.get().wrapping_add(rows * end.ld));
                from += rows;
                first = from;
                continue;
            }
            if sums_rows {
                // SAFETY: as above.
                unsafe { sweep.row_sums(tile.a, stride, &mut sums[from - first..][..rows]) };
            }
            from += rows;
            if from - first <= together && t + 1 < tiles {
                continue;
            }
            let finish = Finish {
                epilogue,
                ints: sweep.ints,
                acc,
                rows: from - first,
                width,
                n,
                row: row + first,
                column,
                row_sums: sums.as_ptr(),
                out: sweep.out,
                at: at + first * sweep.ld,
                ld: sweep.ld,
            };
            finish.run(sweep.isa);
            first = from;
        }
    }

    /// What makes `n` columns' results from element `to` on in the tile itself, where its kernel does.
    fn end(&self, (column, n): (usize, usize), to: usize) -> Option<End> {
        let Sweep { epilogue, out, ld, .. } = *self.sweep;
        let half = out.kind == Kind::Bf16;
        let makes = self.sweep.panels.kernel.ends >= if half { Ends::Halves } else { Ends::Floats };
        if !makes || !(half || out.kind == Kind::F32) || !epilogue.only_clamps() {
            return None;
        }
        let (low, high) = epilogue.activation.bounds();
        let bias = epilogue.bias.get(column..column + n).unwrap_or(&NOTHING).as_ptr();
        let size = out.size();
        Some(End { out: out.data.wrapping_add(to * size).into(), ld: ld * size, bias, low, high, half })
    }
}

/// Brings a tile's part of a residual, which lies in short pieces of its rows, into the caches while the tile is made.
struct Fetch {
    from: *const u8,
    rows: usize,
    /// Bytes between rows, and of a row.
    ld: usize,
    width: usize,
}

impl Kernel for Fetch {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.rows {
            for column in (0..self.width).step_by(LINE) {
                // SAFETY: a prefetch is a hint and reads nothing.
                unsafe { s.prefetch(self.from.wrapping_add(row * self.ld + column).cast()) };
            }
        }
    }
}

/// What tile `t` of a panel of `steps` steps fetches ahead: its part of the panel behind this one.
///
/// Weights come from memory, which takes longer than the first tile has; all tiles of a panel have the time. What is
/// fetched by the first four tiles is a whole panel; the others go over their own panel again, which costs nothing.
pub(super) fn ahead(panel: *const u32, steps: usize, width: usize, t: usize) -> *const u32 {
    let (words, part) = (steps * width, fetched(steps) / 4);
    if t * part < words { panel.wrapping_add(words + t * part) } else { panel }
}

/// Bytes that a tile of so many steps fetches: two lines of the cache each four steps.
fn fetched(steps: usize) -> usize {
    steps / 4 * 128
}
