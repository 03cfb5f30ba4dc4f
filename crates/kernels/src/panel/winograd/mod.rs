//! Convolution by 3 × 3 windows at stride 1, dilated or not, with fewer multiplications: Winograd's algorithm on NHWC images.
//!
//! A tile of `M × M` results comes from `N × N` pixels, `N = M + 2`. Pixels and weights are transformed so that each of the `N²` points is
//! a product of its own, tiles by channels times channels by output channels, which the panel kernels multiply: `N² / M²`
//! multiplications for each result and channel instead of nine. Floats have tiles of 4 (2.25 multiplications) and 2 (4), 8-bit integers of 3
//! (2.78, of 16-bit integers). What finishes a sum is shared with all other products. Floats are computed lane by lane in one order,
//! integers exactly, so the bits are the same on every tier.

mod form;
mod grid;

use std::marker::PhantomData;
use std::ops::Range;

use form::{Form, Four, MOST_CHANNELS, Three, Two};
use grid::Grid;

use super::drive::{CHUNK, Rows, SERIAL, Sweep, part, parts};
use super::epilogue::Epilogue;
use super::finish::Finish;
use super::image::{Image, Pixels};
use super::lines::{Copying, spread};
use super::pack::{PanelElement, Panels};
use super::seen;
use super::table::{Body, PanelKernel};
use super::target::Target;
use super::tile::{Run, Tile};
use crate::buffer::{SharedMut, with_scratch};
use crate::conv::Conv2dParams;
use crate::error::{KernelError, Result, exact, product, require};
use crate::exec::Exec;
use crate::isa::{AvxVnni, Isa, Tier, Vnni};
use crate::simd::{Kernel, Simd};

const NAME: &str = "winograd nhwc";

/// Bytes of transformed weights beyond which the form with the fewer points is taken: the other's are 2.25 times larger.
const MOST_WEIGHTS: usize = 16 << 20;

/// Channels beyond which the pixels of a few tiles take too much memory.
const MOST_FLOAT_CHANNELS: usize = 4096;

/// Pixels of a line that are finished at a time.
const LINE: usize = 16;

/// The side of the tiles of results by which a convolution is computed in the least time, 2 or 4; `None` where
/// plain sums are faster, or it has other windows or steps. It depends on the size of one image, never on how many there are,
/// so that a batch has the bits of its images. Where plain sums may be of bfloat16, tiles of f32 must be faster than those.
pub fn winograd_side(exec: &Exec, p: &Conv2dParams) -> Option<usize> {
    let [oh, ow] = p.output().ok()?;
    if !fits(p) || !(16..=MOST_FLOAT_CHANNELS).contains(&p.c) || p.oc < 16 {
        return None;
    }
    // In multiplications for each channel and output channel: those of the tiles, what their transforms take, and reading the weights,
    // a float of which comes from beyond the second cache in the time of some 32 multiplications.
    let read = 32.0;
    let cost = |side: usize| {
        let (tiles, points) = (Grid::new(p, [oh, ow], side).tiles(), (side + 2) * (side + 2));
        let transforms = 8.0 / p.c as f64 + 8.0 / p.oc as f64;
        points as f64 * (tiles as f64 * (1.0 + transforms) + read)
    };
    let four = p.c.saturating_mul(p.oc).saturating_mul(36 * 4) <= MOST_WEIGHTS;
    let side = if four && cost(4) < cost(2) { 4 } else { 2 };
    let product = match exec.bf16() {
        false => 0.85,
        // Nothing is as fast as the processor's tiles, if it has them.
        true if matches!(PanelKernel::best(half::bf16::table(), exec.isa()).body, Body::Tiles(_)) => return None,
        true if exec.isa().gains_by_bf16() => 0.5,
        true => 0.85,
    };
    // Products of bfloat16 multiply padding, too.
    let share = if exec.bf16() { 1.0 } else { seen::share(p) };
    (cost(side) < product * share * 9.0 * ((oh * ow) as f64 + read)).then_some(side)
}

/// Whether windows are 3 × 3, dilated or not, at stride 1.
fn fits(p: &Conv2dParams) -> bool {
    (p.kh, p.kw, p.strides, p.groups) == (3, 3, [1; 2], 1)
}

/// Whether a convolution of 8-bit integers takes less time in tiles than as plain sums; the results are the same.
pub fn winograd_pays(isa: Isa, p: &Conv2dParams) -> bool {
    let Ok([oh, ow]) = p.output() else { return false };
    // Tiles of the processor multiply nothing but 8 bits; an instruction of aarch64 makes sixteen products of 8 bits, but four of 16.
    let dots = matches!(isa.tier(), Tier::NeonDot | Tier::NeonI8mm);
    let tiles = matches!(PanelKernel::best(i8::table(), isa).body, Body::Tiles(_));
    if !fits(p) || dots || tiles || p.c < 16 || p.oc < 16 || p.c > MOST_CHANNELS {
        return false;
    }
    // In multiplications of 8 bits for each channel and output channel, fitted to measurements. Dot products take four of 8 bits
    // or two of 16 at once; without them bytes are spread to 16 bits in each tile of sums, which transformed ones are spared. Deep
    // tiles leave the second cache, and weights of 50 bytes instead of nine are read in each run.
    let (product, transform, read) = match (Vnni::new(isa).is_some(), AvxVnni::new(isa).is_some()) {
        (true, _) => (2.0, 45.0, 700.0),
        (_, true) => (2.1, 45.0, 350.0),
        _ => (1.1, 22.0, 220.0),
    };
    let deep = 0.5 * (p.c as f64 / 512.0).powi(2);
    let tiles = Grid::new(p, [oh, ow], 3).tiles() as f64;
    let cost = 25.0 * tiles * (product + deep + transform / p.c as f64 + transform / p.oc as f64);
    cost + read < 0.92 * 9.0 * (oh * ow) as f64
}

/// Transformed weights.
#[derive(Debug)]
pub struct WinogradWeights {
    /// A group for each point.
    panels: Panels,
    side: usize,
    /// Of integers, the sums of the output channels' weights.
    sums: Vec<i32>,
}

impl WinogradWeights {
    /// Transforms weights `[oc, c, 3, 3]` (ONNX `Conv`) for tiles of `side × side` results, as [`winograd_side`] tells.
    ///
    /// # Errors
    /// `side` is neither 2 nor 4, the parameters are invalid or of another window, or `w` has another length.
    pub fn pack(exec: &Exec, p: &Conv2dParams, side: usize, w: &[f32]) -> Result<WinogradWeights> {
        exact(NAME, "weights", w.len(), p.weight_len()?)?;
        require(NAME, (p.kh, p.kw, p.groups) == (3, 3, 1), "the window is not 3 × 3, or there are groups")?;
        let panels = match side {
            2 => transformed::<Two, f32, f32, 2, 4>(exec, p, w)?,
            4 => transformed::<Four, f32, f32, 4, 6>(exec, p, w)?,
            _ => return Err(KernelError::Invalid { kernel: NAME, what: "tiles have sides of 2 or 4" }),
        };
        Ok(WinogradWeights { panels, side, sums: Vec::new() })
    }

    /// As [`WinogradWeights::pack`], of integers.
    ///
    /// # Errors
    /// As [`WinogradWeights::pack`]; or there are too many channels for sums of 30 bits.
    pub fn pack_ints(exec: &Exec, p: &Conv2dParams, w: &[i8]) -> Result<WinogradWeights> {
        exact(NAME, "weights", w.len(), p.weight_len()?)?;
        require(NAME, (p.kh, p.kw, p.groups) == (3, 3, 1), "the window is not 3 × 3, or there are groups")?;
        require(NAME, p.c <= MOST_CHANNELS, "too many channels")?;
        let sums = w.chunks_exact(p.c * 9).map(|w| w.iter().map(|&w| i32::from(w)).sum()).collect();
        let panels = transformed::<Three<false>, i8, i16, 3, 5>(exec, p, w)?;
        Ok(WinogradWeights { panels, side: 3, sums })
    }

    /// The sum of each output channel's integer weights.
    pub fn column_sums(&self) -> &[i32] {
        &self.sums
    }

    /// The kernel's name.
    pub fn name(&self) -> &'static str {
        match self.side {
            2 => "winograd2_nhwc_f32",
            3 => "winograd3_nhwc_i8",
            _ => "winograd4_nhwc_f32",
        }
    }
}

/// Panels of `T` from weights of `W`.
fn transformed<F: Form<M, N>, W: Weight, T: PanelElement, const M: usize, const N: usize>(
    exec: &Exec,
    p: &Conv2dParams,
    w: &[W],
) -> Result<Panels> {
    let mut panels = Panels::zeros::<T>(exec, (N * N, p.oc, 1, p.c))?;
    let (columns, steps) = (panels.columns, panels.steps);
    let words = SharedMut::new(panels.words());
    exec.split(columns.count(), 1, &|range| {
        for panel in range {
            let (width, first) = (columns.width(panel), panel * columns.nr);
            for column in 0..columns.valid(panel) {
                let windows = &w[(first + column) * p.c * 9..][..p.c * 9];
                let to = words.ptr().wrapping_add(first * steps + column);
                let (point, form) = (columns.padded() * steps, PhantomData);
                exec.isa().dispatch(Weights::<F, W, M, N> { windows, to, point, step: width, form });
            }
        }
    });
    Ok(panels)
}

/// As [`super::conv2d_nhwc_pixels`], with weights of [`WinogradWeights::pack`] and an image of floats, or those of
/// [`WinogradWeights::pack_ints`] and one of integers.
///
/// A result of floats differs from the plain sum by some roundings more; infinities become NaN in all results of a tile.
///
/// # Errors
/// As [`super::conv2d_nhwc_pixels`]; or the steps are not 1, weights have zero points, or rows have formats of their own.
pub fn winograd_nhwc(
    exec: &Exec,
    p: &Conv2dParams,
    image: Pixels<'_>,
    pad: i32,
    weights: &WinogradWeights,
    epilogue: &Epilogue<'_>,
    y: Target<'_>,
) -> Result {
    let signed = image.rows().first().is_some_and(Rows::signed);
    match weights.side {
        2 => run::<Two, 2, 4>(exec, p, (image, 0), weights, epilogue, y),
        4 => run::<Four, 4, 6>(exec, p, (image, 0), weights, epilogue, y),
        _ if signed => run::<Three<true>, 3, 5>(exec, p, (image, pad), weights, epilogue, y),
        _ => run::<Three<false>, 3, 5>(exec, p, (image, pad), weights, epilogue, y),
    }
}

fn run<F: Form<M, N>, const M: usize, const N: usize>(
    exec: &Exec,
    p: &Conv2dParams,
    (image, pad): (Pixels<'_>, i32),
    weights: &WinogradWeights,
    epilogue: &Epilogue<'_>,
    mut y: Target<'_>,
) -> Result {
    let [oh, ow] = p.output()?;
    let pixels = product(NAME, &[p.n, oh, ow])?;
    require(NAME, fits(p), "the window is not 3 × 3, there are groups, or the steps are not 1")?;
    let of_type = |x: &Rows<'_>| if F::INTS { x.ints() } else { matches!(x, Rows::F32(_)) };
    require(NAME, image.rows().iter().all(of_type), "image and weights have different types")?;
    let image = Image::of(exec.isa(), p, &image, (Copying::Flip(0), F::PIXEL))?;
    exact(NAME, "y", y.len(), product(NAME, &[pixels, p.oc])?)?;
    let weights = &weights.panels;
    let packed = (weights.groups, weights.columns.n, weights.run_len);
    require(NAME, packed == (N * N, p.oc, p.c), "the weights were packed for another shape")?;
    epilogue.check(NAME, F::INTS, p.oc, y.len())?;
    require(NAME, epilogue.weight_zeros.is_empty(), "the weights have zero points")?;
    require(NAME, epilogue.rows.is_none(), "rows have formats of their own")?;
    y.require_type(NAME, F::INTS)?;
    if pixels == 0 {
        return Ok(());
    }
    let out = y.shared();
    let (panels, isa, ints) = (weights.view(), exec.isa(), F::INTS);
    let sweep = Sweep { isa, panels, runs: &[0], epilogue, ints, signed: false, out, ld: p.oc };
    let grid = Grid::new(p, [oh, ow], M);
    let pitch = spread(panels.steps * 4, 4);
    let job = Job::<F, M, N> { p, out: [oh, ow], grid, image, pad: pad as u8, sweep: &sweep, pitch, form: PhantomData };
    let tiles = product(NAME, &[p.n, grid.tiles()])?;
    let count = panels.columns.count();
    let work = tiles.saturating_mul(N * N).saturating_mul(p.oc).saturating_mul(panels.steps);
    // Where weights come from memory, parts of few tiles would wait for them: a task goes over its own tiles in parts, too.
    let far = !F::INTS && weights.bytes() > MOST_WEIGHTS;
    let tile = if far { (N * N * pitch).min(CHUNK / (4 * panels.kernel.mr)) } else { N * N * pitch };
    let (down, across) = parts(exec, work, (tiles, tile, 2 * panels.kernel.mr), (count, weights.bytes()));
    exec.pool().run_if(work >= SERIAL, down * across, &|task| {
        job.task(part(tiles, down, task / across), part(count, across, task % across));
    });
    Ok(())
}

struct Job<'a, F, const M: usize, const N: usize> {
    p: &'a Conv2dParams,
    /// Height and width of the result.
    out: [usize; 2],
    grid: Grid,
    image: Image,
    /// The byte that padding holds, of integers.
    pad: u8,
    sweep: &'a Sweep<'a>,
    /// Bytes between the tiles of a point.
    pitch: usize,
    form: PhantomData<F>,
}

/// Memory of a task.
struct Scratch {
    /// Transformed pixels: points, tiles, channels.
    points: *mut u8,
    /// Products: points, tiles, columns of a panel.
    products: *mut f32,
    /// Sums: lines of pixels, columns of a panel.
    sums: *mut f32,
    /// The pixels of a tile that reaches beyond the image.
    patch: *mut u8,
    /// Between points: bytes of the pixels, words of the products.
    apart: [usize; 2],
}

impl<F: Form<M, N>, const M: usize, const N: usize> Job<'_, F, M, N> {
    fn task(&self, tiles: Range<usize>, columns: Range<usize>) {
        let (nr, c) = (self.sweep.panels.columns.nr, self.p.c);
        // Beside products and weights, the pixels stay in the second cache.
        let most = (CHUNK / (N * N * self.pitch)).max(4 * self.sweep.panels.kernel.mr);
        let chunks = tiles.len().div_ceil(most).max(1);
        let most = tiles.len().div_ceil(chunks);
        // Not a multiple of what collides in the first cache.
        let apart = [spread(most * self.pitch, 64), spread(most * nr * 4, 64) / 4];
        let words = [N * N * apart[0] / 4, N * N * apart[1], M * LINE * nr, (N * N * c * F::PIXEL).div_ceil(4)];
        let words = words.map(|n| n.next_multiple_of(16));
        with_scratch(words.iter().sum(), |scratch| {
            let points = scratch.as_mut_ptr();
            let products = points.wrapping_add(words[0]);
            let sums = products.wrapping_add(words[1]);
            let (points, patch) = (points.cast(), sums.wrapping_add(words[2]).cast());
            let scratch = Scratch { points, products, sums, patch, apart };
            for chunk in 0..chunks {
                let part = part(tiles.len(), chunks, chunk);
                let part = tiles.start + part.start..tiles.start + part.end;
                for (i, tile) in part.clone().enumerate() {
                    // SAFETY: the scratch has `most` tiles; the image was checked.
                    unsafe { self.enter(tile, i, &scratch) };
                }
                for panel in columns.clone() {
                    // SAFETY: as above; tasks write disjoint results.
                    unsafe {
                        self.multiply(part.len(), panel, panel + 1 < columns.end, &scratch);
                        self.leave(part.clone(), panel, &scratch);
                    }
                }
            }
        });
    }

    /// Transforms the pixels of a tile, which becomes tile `at` of the scratch.
    ///
    /// # Safety
    /// The scratch has the tile.
    unsafe fn enter(&self, tile: usize, at: usize, scratch: &Scratch) {
        let (p, (image, [y, x], _)) = (self.p, self.grid.place(tile, M));
        let (top, left) = (y.wrapping_sub(p.pads[0]), x.wrapping_sub(p.pads[1]));
        let inside = |i: usize, from: usize, len: usize| from < len && from + (N - 1) * p.dilations[i] < len;
        let (mut to, apart) = (scratch.points.wrapping_add(at * self.pitch), scratch.apart[0]);
        let whole = inside(0, top, p.h) && inside(1, left, p.w);
        let corner = image * p.h * p.w + if whole { top * p.w + left } else { 0 };
        for (from, pixel) in self.image.places(corner, 1) {
            let (from, line, step) = match from.filter(|_| whole) {
                Some(from) => (from, p.dilations[0] * p.w * pixel, p.dilations[1] * pixel),
                None => {
                    // SAFETY: the patch has N² pixels, the image those that are copied.
                    unsafe { self.patch(from, pixel, (top, left), scratch.patch) };
                    (scratch.patch.cast_const(), N * pixel, pixel)
                }
            };
            let (channels, form) = (pixel / F::PIXEL, PhantomData::<F>);
            self.image.isa.dispatch(Enter::<F, M, N> { from, pixel: step, line, channels, to, apart, form });
            to = to.wrapping_add(channels * F::POINT);
        }
    }

    /// Copies the pixels of a tile of an image, each of so many bytes, with padding around the image, or in its place.
    ///
    /// # Safety
    /// `first` is the image's first pixel, and `to` covers N² of them.
    unsafe fn patch(&self, first: Option<*const u8>, bytes: usize, (top, left): (usize, usize), to: *mut u8) {
        let p = self.p;
        for i in 0..N * N {
            let (down, across) = (i / N * p.dilations[0], i % N * p.dilations[1]);
            let (y, x) = (top.wrapping_add(down), left.wrapping_add(across));
            // SAFETY: the caller vouches for both.
            unsafe {
                let to = to.add(i * bytes);
                match first.filter(|_| y < p.h && x < p.w) {
                    Some(first) => std::ptr::copy_nonoverlapping(first.add((y * p.w + x) * bytes), to, bytes),
                    None => to.write_bytes(self.pad, bytes),
                }
            }
        }
    }

    /// Multiplies all points of so many tiles by a panel's columns.
    ///
    /// # Safety
    /// The scratch has the tiles, transformed.
    unsafe fn multiply(&self, tiles: usize, panel: usize, more: bool, scratch: &Scratch) {
        let panels = self.sweep.panels;
        let (kernel, width) = (panels.kernel, panels.columns.width(panel));
        let blocks = tiles.div_ceil(kernel.mr);
        for point in 0..N * N {
            let b = panels.panel(point, panel);
            // The weights of the next product are fetched meanwhile.
            let next = match point + 1 {
                next if next < N * N => panels.panel(next, panel),
                _ if more => panels.panel(0, panel + 1),
                _ => b,
            };
            let a = scratch.points.wrapping_add(point * scratch.apart[0]);
            let out = scratch.products.wrapping_add(point * scratch.apart[1]);
            for block in 0..blocks {
                let rows = part(tiles, blocks, block);
                let tile = Tile {
                    a: a.wrapping_add(rows.start * self.pitch).cast_const(),
                    stride: self.pitch,
                    runs: &Run { at: 0, skip: 0 },
                    n_runs: 1,
                    steps: panels.steps,
                    b: b.as_ptr().cast(),
                    limits: std::ptr::null(),
                    apart: std::ptr::null(),
                    slow: 0.into(),
                    ahead: next.as_ptr().wrapping_add(block % 4 * panels.steps * 8).cast(),
                    out: out.wrapping_add(rows.start * width).cast(),
                    end: std::ptr::null(),
                };
                // SAFETY: rows, columns and products are in the scratch and the panel; the kernel's tier was proven when it was
                // chosen.
                unsafe { kernel.tile(rows.len(), width)(&tile) };
            }
        }
    }

    /// Transforms the products of some tiles and finishes their results.
    ///
    /// # Safety
    /// The scratch has the products, and nobody else uses the results.
    unsafe fn leave(&self, tiles: Range<usize>, panel: usize, scratch: &Scratch) {
        let (columns, [oh, ow]) = (&self.sweep.panels.columns, self.out);
        let (width, valid) = (columns.width(panel), columns.valid(panel));
        let mut tile = tiles.start;
        while tile < tiles.end {
            let (image, [y, x], following) = self.grid.place(tile, M);
            let count = (LINE / M).min(tiles.end - tile).min(following);
            let from = scratch.products.wrapping_add((tile - tiles.start) * width).cast_const();
            let (to, line, apart) = (scratch.sums, LINE * width, scratch.apart[1]);
            self.sweep.isa.dispatch(Leave::<F, M, N> { from, apart, to, line, count, width, form: PhantomData });
            let [down, across] = self.grid.steps;
            let rows = (count * M).min(ow.saturating_sub(x).div_ceil(across));
            let lines = if rows == 0 { 0 } else { M.min(oh.saturating_sub(y).div_ceil(down)) };
            for i in 0..lines {
                let row = (image * oh + y + i * down) * ow + x;
                let finish = Finish {
                    epilogue: self.sweep.epilogue,
                    ints: F::INTS,
                    acc: to.wrapping_add(i * line).cast_const().cast(),
                    rows,
                    width,
                    n: valid,
                    row,
                    column: panel * columns.nr,
                    row_sums: std::ptr::null(),
                    out: self.sweep.out,
                    at: row * self.sweep.ld + panel * columns.nr,
                    ld: across * self.sweep.ld,
                };
                finish.run(self.sweep.isa);
            }
            tile += count;
        }
    }
}

/// `G g Gᵀ` of an output channel's windows, rounded once.
struct Weights<'a, F, W, const M: usize, const N: usize> {
    windows: &'a [W],
    /// Where the first point of the first channel goes, and words between points and between steps.
    to: *mut f32,
    point: usize,
    step: usize,
    form: PhantomData<F>,
}

/// A weight before it is transformed.
trait Weight: Copy + Into<f64> + Sync {}
impl Weight for f32 {}
impl Weight for i8 {}

/// Channels whose windows are transformed side by side.
const SIDE: usize = 16;

impl<F: Form<M, N>, W: Weight, const M: usize, const N: usize> Kernel for Weights<'_, F, W, M, N> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (block, windows) in self.windows.chunks(SIDE * 9).enumerate() {
            let mut taps = [[0f64; SIDE]; 9];
            for (c, window) in windows.chunks_exact(9).enumerate() {
                for (tap, &w) in taps.iter_mut().zip(window) {
                    tap[c] = w.into();
                }
            }
            for (i, down) in F::WEIGHTS.iter().enumerate() {
                let mut line = [[0f64; SIDE]; 3];
                for (j, line) in line.iter_mut().enumerate() {
                    for c in 0..SIDE {
                        line[c] = down[0] * taps[j][c] + down[1] * taps[3 + j][c] + down[2] * taps[6 + j][c];
                    }
                }
                for (j, across) in F::WEIGHTS.iter().enumerate() {
                    let mut u = [0f64; SIDE];
                    for c in 0..SIDE {
                        u[c] = across[0] * line[0][c] + across[1] * line[1][c] + across[2] * line[2][c];
                    }
                    let to = self.to.wrapping_add((i * N + j) * self.point);
                    for (c, &u) in u[..windows.len() / 9].iter().enumerate() {
                        // SAFETY: the caller vouches for the words of each point's channels.
                        unsafe { F::weight(to, self.step, block * SIDE + c, u) };
                    }
                }
            }
        }
    }
}

/// `Bᵀ d B` of a tile, channel by channel.
struct Enter<F, const M: usize, const N: usize> {
    from: *const u8,
    /// Bytes between pixels, and between lines of them.
    pixel: usize,
    line: usize,
    channels: usize,
    to: *mut u8,
    /// Bytes between points.
    apart: usize,
    form: PhantomData<F>,
}

impl<F: Form<M, N>, const M: usize, const N: usize> Enter<F, M, N> {
    /// `n` channels from `c` on.
    #[inline(always)]
    unsafe fn channels<S: Simd>(&self, s: S, c: usize, n: usize) {
        let mut lines = [[F::zero(s); N]; N];
        for j in 0..N {
            let mut d = [F::zero(s); N];
            for (i, d) in d.iter_mut().enumerate() {
                let from = self.from.wrapping_add(i * self.line + j * self.pixel + c * F::PIXEL);
                // SAFETY: the caller vouches for the channels of N lines of N pixels.
                *d = unsafe { F::pixels(s, from, n) };
            }
            for (line, v) in lines.iter_mut().zip(F::enter(s, d)) {
                line[j] = v;
            }
        }
        for (i, line) in lines.into_iter().enumerate() {
            for (j, v) in F::enter(s, line).into_iter().enumerate() {
                let to = self.to.wrapping_add((i * N + j) * self.apart + c * F::POINT);
                // SAFETY: as above, of N² points.
                unsafe { F::points(s, to, v, n) };
            }
        }
    }
}

impl<F: Form<M, N>, const M: usize, const N: usize> Kernel for Enter<F, M, N> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut c = 0;
        while c < self.channels {
            let n = (self.channels - c).min(S::LANES);
            // SAFETY: `n` channels are left. With a length that the compiler knows, no masks are made.
            unsafe {
                match n == S::LANES {
                    true => self.channels(s, c, S::LANES),
                    false => self.channels(s, c, n),
                }
            }
            c += n;
        }
    }
}

/// `Aᵀ m A` of tiles side by side, column by column.
struct Leave<F, const M: usize, const N: usize> {
    from: *const f32,
    /// Words between points.
    apart: usize,
    to: *mut f32,
    /// Words between lines of sums.
    line: usize,
    /// Tiles.
    count: usize,
    /// Columns, in whole vectors.
    width: usize,
    form: PhantomData<F>,
}

impl<F: Form<M, N>, const M: usize, const N: usize> Kernel for Leave<F, M, N> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for tile in 0..self.count {
            for column in (0..self.width).step_by(S::LANES) {
                let from = self.from.wrapping_add(tile * self.width + column);
                let to = self.to.wrapping_add(tile * M * self.width + column);
                let mut lines = [[F::zero(s); N]; M];
                for j in 0..N {
                    let mut m = [F::zero(s); N];
                    for (i, m) in m.iter_mut().enumerate() {
                        // SAFETY: the caller vouches for the products of N² points.
                        *m = unsafe { F::products(s, from.add((i * N + j) * self.apart)) };
                    }
                    for (line, v) in lines.iter_mut().zip(F::leave(s, m)) {
                        line[j] = v;
                    }
                }
                for (i, line) in lines.into_iter().enumerate() {
                    for (j, v) in F::leave(s, line).into_iter().enumerate() {
                        // SAFETY: as above, of M lines of M pixels of each tile.
                        unsafe { F::sums(s, to.add(i * self.line + j * self.width), v) };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
