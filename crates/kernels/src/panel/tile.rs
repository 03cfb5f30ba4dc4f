//! The register tiles: up to `MR` rows read where they lie, by one packed panel.
//!
//! A step takes 4 bytes of each row (four 8-bit integers or one float) and a word of each
//! column, so that both element types share the walk over memory.

use std::cell::Cell;

use crate::simd::Simd;

/// A run of a tile: elements that lie side by side in each row, and their words in the panel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Run {
    /// Bytes from the start of a row to the run; they wrap.
    pub at: usize,
    /// Bytes of the panel before the run's words that are passed over.
    pub skip: usize,
}

/// One tile of work. Row `i` of run `r` starts at `a + runs[r].at + i · stride`.
#[repr(C)]
pub(crate) struct Tile {
    /// The first row. Only runs need be in memory.
    pub a: *const u8,
    /// Bytes between rows.
    pub stride: usize,
    /// At least one.
    pub runs: *const Run,
    pub n_runs: usize,
    /// Steps of 4 bytes in each run, at least one.
    pub steps: usize,
    /// The panel: runs × steps × width words, and what runs pass over.
    pub b: *const u32,
    /// Where the kernel is bounded, what packing keeps of the panel (`limits::find_limits`).
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub limits: *const f32,
    /// Where not null, the panel's weights taken apart (`limits::take_apart`), so that a bounded kernel need not do it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub apart: *const u32,
    /// Receives the blocks of steps in which a bounded kernel took weights apart, or would have.
    pub slow: Cell<usize>,
    /// Where memory lies that is wanted next: twice 64 bytes of it are fetched into the L2 cache in each 4 steps. Need not
    /// be valid.
    pub ahead: *const u32,
    /// Receives the accumulators: rows × width words.
    pub out: *mut u32,
    /// Where not null, the results are made in the place of the accumulators, by a kernel that [`Ends`] says makes them.
    pub end: *const End,
}

/// The results of a tile of floats: `min(high, max(low, accumulator + bias))`, NaN where that is the sum.
#[repr(C, align(8))]
pub(crate) struct End {
    /// The first result, f32 or bfloat16, and bytes between rows. The next tile goes on behind.
    pub out: Cell<*mut u8>,
    pub ld: usize,
    /// As many floats as the tile has columns.
    pub bias: *const f32,
    pub low: f32,
    pub high: f32,
    /// Whether the results are bfloat16.
    pub half: bool,
}

/// The results that a kernel makes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Ends {
    /// None: it stores accumulators.
    None,
    /// Floats.
    Floats,
    /// Floats and bfloat16.
    Halves,
}

#[cfg(target_arch = "x86_64")]
impl Tile {
    /// What the assembly of tiles takes: the accumulators' address, or that of the end with 1 added for floats and 3 for
    /// bfloat16.
    #[inline(always)]
    pub fn destination(&self) -> usize {
        // SAFETY: whoever made the tile vouches for its end.
        match unsafe { self.end.as_ref() } {
            None => self.out as usize,
            Some(end) => self.end as usize + if end.half { 3 } else { 1 },
        }
    }
}

/// A compiled tile kernel.
///
/// # Safety
/// The CPU has the kernel's tier, and the tile's pointers cover its shape.
pub(crate) type TileFn = unsafe fn(&Tile);

/// How a step multiplies: 8-bit integers (u8 rows, i8 columns, exact in i32) or floats.
pub(crate) trait Dot: Copy {
    type Acc: Copy;
    type A: Copy;
    type B: Copy;
    fn zero(self) -> Self::Acc;
    /// # Safety
    /// `p` covers 4 bytes.
    unsafe fn row(self, p: *const u8) -> Self::A;
    /// # Safety
    /// `p` covers a vector of words.
    unsafe fn column(self, p: *const u32) -> Self::B;
    fn dot(self, acc: Self::Acc, a: Self::A, b: Self::B) -> Self::Acc;
    /// # Safety
    /// `p` covers a vector of words.
    unsafe fn store(self, p: *mut u32, acc: Self::Acc);
}

/// Floats: one fused multiply-add per step, in the order of the steps on every tier.
#[derive(Clone, Copy)]
pub(crate) struct Floats<S>(pub S);

impl<S: Simd> Dot for Floats<S> {
    type Acc = S::F;
    type A = S::F;
    type B = S::F;
    #[inline(always)]
    fn zero(self) -> S::F {
        self.0.splat(0.0)
    }
    #[inline(always)]
    unsafe fn row(self, p: *const u8) -> S::F {
        // SAFETY: passed on to the caller.
        self.0.splat(unsafe { p.cast::<f32>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn column(self, p: *const u32) -> S::F {
        // SAFETY: passed on to the caller.
        unsafe { self.0.load(p.cast()) }
    }
    #[inline(always)]
    fn dot(self, acc: S::F, a: S::F, b: S::F) -> S::F {
        self.0.mul_add(a, b, acc)
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32, acc: S::F) {
        // SAFETY: passed on to the caller.
        unsafe { self.0.store(p.cast(), acc) }
    }
}

/// Integers on the portable tier.
#[derive(Clone, Copy)]
pub(crate) struct PortableInts;

impl Dot for PortableInts {
    type Acc = i32;
    type A = [u8; 4];
    type B = [u8; 4];
    #[inline(always)]
    fn zero(self) -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn row(self, p: *const u8) -> [u8; 4] {
        // SAFETY: passed on to the caller.
        unsafe { p.cast::<[u8; 4]>().read() }
    }
    #[inline(always)]
    unsafe fn column(self, p: *const u32) -> [u8; 4] {
        // SAFETY: passed on to the caller.
        unsafe { p.cast::<[u8; 4]>().read() }
    }
    #[inline(always)]
    fn dot(self, acc: i32, a: [u8; 4], b: [u8; 4]) -> i32 {
        let products = a.into_iter().zip(b).map(|(a, b)| i32::from(a) * i32::from(b as i8));
        products.fold(acc, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32, acc: i32) {
        // SAFETY: passed on to the caller.
        unsafe { *p = acc as u32 }
    }
}

/// Pairs of 16-bit integers on the portable tier; sums wrap.
#[derive(Clone, Copy)]
pub(crate) struct PortableShorts;

impl Dot for PortableShorts {
    type Acc = i32;
    type A = [i16; 2];
    type B = [i16; 2];
    #[inline(always)]
    fn zero(self) -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn row(self, p: *const u8) -> [i16; 2] {
        // SAFETY: passed on to the caller.
        unsafe { p.cast::<[i16; 2]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn column(self, p: *const u32) -> [i16; 2] {
        // SAFETY: passed on to the caller.
        unsafe { p.cast::<[i16; 2]>().read() }
    }
    #[inline(always)]
    fn dot(self, acc: i32, a: [i16; 2], b: [i16; 2]) -> i32 {
        let products = a.into_iter().zip(b).map(|(a, b)| i32::from(a) * i32::from(b));
        products.fold(acc, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32, acc: i32) {
        // SAFETY: passed on to the caller.
        unsafe { *p = acc as u32 }
    }
}

/// Pairs of bfloat16 on the portable tier: the second product first, as VDPBF16PS.
#[derive(Clone, Copy)]
pub(crate) struct PortableBf16;

impl Dot for PortableBf16 {
    type Acc = f32;
    type A = [f32; 2];
    type B = [f32; 2];
    #[inline(always)]
    fn zero(self) -> f32 {
        0.0
    }
    #[inline(always)]
    unsafe fn row(self, p: *const u8) -> [f32; 2] {
        // SAFETY: passed on to the caller.
        let word = unsafe { p.cast::<u32>().read_unaligned() };
        [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
    }
    #[inline(always)]
    unsafe fn column(self, p: *const u32) -> [f32; 2] {
        // SAFETY: passed on to the caller.
        unsafe { self.row(p.cast()) }
    }
    #[inline(always)]
    fn dot(self, acc: f32, a: [f32; 2], b: [f32; 2]) -> f32 {
        a[0].mul_add(b[0], a[1].mul_add(b[1], acc))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32, acc: f32) {
        // SAFETY: passed on to the caller.
        unsafe { *p = acc.to_bits() }
    }
}

/// Computes one tile; inlined into a function with the tier's features.
///
/// # Safety
/// The tile's pointers cover `MR` rows and `NV · lanes` columns.
#[inline(always)]
pub(crate) unsafe fn run_tile<D: Dot, const MR: usize, const NV: usize>(d: D, lanes: usize, t: &Tile) {
    let width = NV * lanes;
    let mut acc = [[d.zero(); NV]; MR];
    let mut b = t.b;
    for r in 0..t.n_runs {
        // SAFETY: each step reads 4 bytes of each row and a row of the panel.
        unsafe {
            let run = *t.runs.add(r);
            let mut a = t.a.wrapping_add(run.at);
            b = b.byte_add(run.skip);
            for _ in 0..t.steps {
                let mut columns = [d.column(b); NV];
                for (v, column) in columns.iter_mut().enumerate().skip(1) {
                    *column = d.column(b.add(v * lanes));
                }
                for (i, line) in acc.iter_mut().enumerate() {
                    let x = d.row(a.add(i * t.stride));
                    for (c, &y) in line.iter_mut().zip(&columns) {
                        *c = d.dot(*c, x, y);
                    }
                }
                a = a.add(4);
                b = b.add(width);
            }
        }
    }
    for (i, line) in acc.iter().enumerate() {
        for (v, &c) in line.iter().enumerate() {
            // SAFETY: `out` has rows × width words.
            unsafe { d.store(t.out.add(i * width + v * lanes), c) };
        }
    }
}
