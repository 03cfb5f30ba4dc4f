//! A model of the tile unit, after the pseudo-code of Intel's Software Developer's Manual (volume 2, TILELOADD,
//! TILESTORED, TDPBSSD and its like). For tests; a product of a tile takes microseconds.

use super::{Block, GRANULE, HALF, Product, Shape, Tiles};

type Row = [u8; GRANULE];

/// Eight tiles.
pub(crate) struct Emulated {
    /// Rows of each tile as configured; its rows have 64 bytes.
    rows: [usize; 8],
    tiles: [[Row; HALF]; 8],
    shape: Shape,
}

impl Emulated {
    /// Tiles that are not configured.
    pub fn new() -> Emulated {
        Emulated { rows: [0; 8], tiles: [[[0; GRANULE]; HALF]; 8], shape: Shape::new(1, 1) }
    }

    /// TILELOADD: the rows that are configured; the others are cleared.
    ///
    /// # Safety
    /// `from` covers 64 bytes of each row.
    pub unsafe fn load(&mut self, tile: usize, from: *const u8, stride: usize) {
        self.check(tile);
        for (i, row) in self.tiles[tile].iter_mut().enumerate() {
            *row = match i < self.rows[tile] {
                // SAFETY: the caller vouches for the row.
                true => unsafe { from.wrapping_add(i * stride).cast::<Row>().read() },
                false => [0; GRANULE],
            };
        }
    }

    /// TILESTORED.
    ///
    /// # Safety
    /// `to` covers 64 bytes of each row.
    pub unsafe fn store(&self, tile: usize, to: *mut u8, stride: usize) {
        self.check(tile);
        for (i, row) in self.tiles[tile].iter().enumerate().take(self.rows[tile]) {
            // SAFETY: the caller vouches for the row.
            unsafe { to.wrapping_add(i * stride).cast::<Row>().write(*row) };
        }
    }

    /// TDPBUSD and its like: `sums[m][n] += Σ a[m][k] · b[k][n]` over words of four bytes.
    pub fn dot(&mut self, product: Product, sums: usize, a: usize, b: usize) {
        // What the processor refuses (#UD): tiles that do not fit each other.
        assert!(sums != a && sums != b && a != b, "an operand is named twice");
        assert_eq!((self.rows[sums], self.rows[b]), (self.rows[a], HALF), "the tiles' rows do not fit");
        self.check(sums);
        if product == Product::Bf16 {
            return self.dot_bf16(sums, a, b);
        }
        for m in 0..self.rows[sums] {
            let mut line = self.tiles[sums][m];
            for (x, columns) in self.tiles[a][m].chunks_exact(4).zip(&self.tiles[b]) {
                for (c, y) in line.chunks_exact_mut(4).zip(columns.chunks_exact(4)) {
                    let sum = i32::from_le_bytes([c[0], c[1], c[2], c[3]]);
                    c.copy_from_slice(&word(product, sum, x, y).to_le_bytes());
                }
            }
            self.tiles[sums][m] = line;
        }
    }

    /// TDPBF16PS: even and odd elements are summed apart over the tile, then together, then onto the sums. Each step
    /// rounds half to even; denormals are 0 before and after it, whatever MXCSR says.
    fn dot_bf16(&mut self, sums: usize, a: usize, b: usize) {
        let word = |w: &[u8]| u32::from_le_bytes([w[0], w[1], w[2], w[3]]);
        let pair = |w: &[u8]| [f32::from_bits(word(w) << 16), f32::from_bits(word(w) & 0xffff_0000)].map(flush);
        for m in 0..self.rows[sums] {
            let mut apart = [[0f32; 2]; GRANULE / 4];
            for (x, columns) in self.tiles[a][m].chunks_exact(4).zip(&self.tiles[b]) {
                let x = pair(x);
                for (sum, y) in apart.iter_mut().zip(columns.chunks_exact(4)) {
                    let y = pair(y);
                    *sum = [flush(x[0].mul_add(y[0], sum[0])), flush(x[1].mul_add(y[1], sum[1]))];
                }
            }
            for (c, [even, odd]) in self.tiles[sums][m].chunks_exact_mut(4).zip(apart) {
                let sum = flush(flush(f32::from_bits(word(c))) + flush(even + odd));
                c.copy_from_slice(&sum.to_le_bytes());
            }
        }
    }

    fn check(&self, tile: usize) {
        assert!(self.rows[tile] > 0, "tile {tile} is not configured");
    }
}

/// A denormal is 0 of its sign.
fn flush(v: f32) -> f32 {
    if v.is_subnormal() { 0f32.copysign(v) } else { v }
}

/// DPBD: four products of bytes, each extended by its sign or by zeros.
fn word(product: Product, sum: i32, x: &[u8], y: &[u8]) -> i32 {
    let (signed_x, signed_y) = match product {
        Product::U8I8 => (false, true),
        Product::I8I8 => (true, true),
        Product::I8U8 => (true, false),
        Product::U8U8 | Product::Bf16 => (false, false),
    };
    let extend = |signed: bool, v: u8| if signed { i32::from(v as i8) } else { i32::from(v) };
    x.iter().zip(y).fold(sum, |sum, (&x, &y)| sum.wrapping_add(extend(signed_x, x) * extend(signed_y, y)))
}

/// The addresses of a granule.
struct At {
    high: *const u8,
    low: *const u8,
    stride: usize,
    b: *const u8,
    b_stride: usize,
}

macro_rules! half {
    (high $at:ident) => {
        $at.high
    };
    (low $at:ident) => {
        $at.low
    };
}

macro_rules! emulate {
    ([$self:ident $at:ident $product:ident] $($step:tt)*) => {
        $(emulate!(@ $self $at $product $step);)*
    };
    // SAFETY (of the three below): `multiply` vouches for the block.
    (@ $self:ident $at:ident $product:ident [load_a $tile:literal $half:tt _]) => {
        // SAFETY: as above.
        unsafe { $self.load($tile, half!($half $at), $at.stride) }
    };
    (@ $self:ident $at:ident $product:ident [load_b $tile:literal $side:literal _]) => {
        // SAFETY: as above.
        unsafe { $self.load($tile, $at.b.wrapping_add(64 * $side), $at.b_stride) }
    };
    (@ $self:ident $at:ident $product:ident [dot $sums:literal $a:literal $b:literal]) => {
        $self.dot($product, $sums, $a, $b)
    };
}

macro_rules! start {
    ([$self:ident $at:ident] $([sums $tile:literal $half:tt $side:literal])*) => {
        // SAFETY: `multiply` vouches for the block.
        $(unsafe { $self.load($tile, half!($half $at).wrapping_add(64 * $side), $at.stride) };)*
    };
}

macro_rules! finish {
    ([$self:ident $at:ident] $([sums $tile:literal $half:tt $side:literal])*) => {
        // SAFETY: `multiply` vouches for the block.
        $(unsafe { $self.store($tile, half!($half $at).wrapping_add(64 * $side).cast_mut(), $at.stride) };)*
    };
}

macro_rules! block {
    ($name:ident, $tall:tt, $wide:tt) => {
        /// # Safety
        /// The block covers the shape.
        unsafe fn $name(&mut self, product: Product, t: &Block) {
            let place = |at: *const u8, stride: usize, b: *const u8| At {
                high: at,
                low: at.wrapping_add(HALF * stride),
                stride,
                b,
                b_stride: $wide * GRANULE,
            };
            let at = place(t.start.cast(), t.start_stride, std::ptr::null());
            sums!($tall, $wide, start[self at]);
            let mut b: *const u8 = t.b.cast();
            for r in 0..if t.granules > 0 { t.n_runs } else { 0 } {
                // SAFETY: there are that many runs.
                let run = t.a.wrapping_add(unsafe { *t.runs.add(r) });
                for g in 0..t.granules {
                    let at = place(run.wrapping_add(g * GRANULE), t.stride, b);
                    granule!($tall, $wide, emulate[self at product]);
                    b = b.wrapping_add(HALF * $wide * GRANULE);
                }
            }
            if !t.tail.is_null() {
                let at = place(t.tail, GRANULE, b);
                granule!($tall, $wide, emulate[self at product]);
            }
            let at = place(t.out.cast(), $wide * GRANULE, std::ptr::null());
            sums!($tall, $wide, finish[self at]);
        }
    };
}

impl Emulated {
    block!(tall_wide, 2, 2);
    block!(tall_slim, 2, 1);
    block!(flat_wide, 1, 2);
    block!(flat_slim, 1, 1);
}

impl Tiles for Emulated {
    fn configure(&mut self, shape: Shape) {
        if self.rows != shape.registers() {
            self.tiles = [[[0; GRANULE]; HALF]; 8];
        }
        (self.rows, self.shape) = (shape.registers(), shape);
    }

    unsafe fn multiply(&mut self, product: Product, block: &Block) {
        // SAFETY: passed on to the caller.
        unsafe {
            match (self.shape.rows[1] > 0, self.shape.vectors) {
                (true, 2) => self.tall_wide(product, block),
                (true, _) => self.tall_slim(product, block),
                (false, 2) => self.flat_wide(product, block),
                (false, _) => self.flat_slim(product, block),
            }
        }
    }
}
