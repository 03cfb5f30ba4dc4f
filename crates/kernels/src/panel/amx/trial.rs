//! A few products of tiles against plain loops: what decides whether a processor's tiles are used, since most machines
//! that this is built on have none.

use super::{Block, GRANULE, HALF, Product, Shape, TALL, Tiles, WIDE};

const RUNS: usize = 2;
const GRANULES: usize = 2;
/// Bytes of a row: the granules of both runs, and those between and after, which must not count.
const PITCH: usize = (RUNS * GRANULES + 1) * GRANULE;
const DEPTH: usize = RUNS * GRANULES + 1;

/// Whether all shapes, signs, starts and tails come out right. Takes microseconds.
pub(crate) fn passes(tiles: &mut impl Tiles) -> bool {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let a: Vec<u8> = (0..TALL * PITCH).map(|_| byte()).collect();
    let tail: Vec<u8> = (0..TALL * GRANULE).map(|_| byte()).collect();
    let b: Vec<u32> = (0..DEPTH * HALF * WIDE).map(|_| u32::from_le_bytes([byte(), byte(), byte(), byte()])).collect();
    let products = [Product::U8I8, Product::I8I8, Product::I8U8, Product::U8U8];
    let shapes = [(32, 2), (29, 2), (16, 2), (3, 2), (32, 1), (17, 1), (16, 1), (1, 1)];
    products.into_iter().all(|product| {
        shapes.into_iter().all(|(rows, vectors)| {
            let case = Case { a: &a, tail: &tail, b: &b, rows, columns: 16 * vectors };
            case.is_right(tiles, product)
        })
    })
}

/// Whether products of bfloat16 come out right: sums of tiles differ from exact ones by their rounding alone.
pub(crate) fn passes_bf16(tiles: &mut impl Tiles) -> bool {
    let mut state = 0x9e37_79b9u32;
    // −2 to 2, without the bits that bfloat16 has not.
    let mut value = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from_bits(((state >> 8) as f32 / (1 << 22) as f32 - 2.0).to_bits() & 0xffff_0000)
    };
    let pair = |v: [f32; 2]| v[0].to_bits() >> 16 | v[1].to_bits();
    let mut words = |n: usize| -> Vec<u32> { (0..n).map(|_| pair([value(), value()])).collect() };
    let (a, b) = (words(TALL * GRANULE / 4), words(HALF * WIDE));
    let parts = |w: u32| [f32::from_bits(w << 16), f32::from_bits(w & 0xffff_0000)].map(f64::from);
    [(32, 2), (29, 2), (16, 1), (1, 1)].into_iter().all(|(rows, vectors)| {
        let columns = 16 * vectors;
        let start: Vec<f32> = (0..columns).map(|i| i as f32).collect();
        let mut out = vec![0f32; rows * columns];
        tiles.configure(Shape::new(rows, vectors));
        let block = Block {
            a: a.as_ptr().cast(),
            stride: GRANULE,
            runs: [0].as_ptr(),
            n_runs: 1,
            granules: 1,
            tail: std::ptr::null(),
            b: b.as_ptr(),
            start: start.as_ptr().cast(),
            start_stride: 0,
            out: out.as_mut_ptr().cast(),
        };
        // SAFETY: 32 rows of a granule, as many columns, and the results are there.
        unsafe { tiles.multiply(Product::Bf16, &block) };
        out.iter().enumerate().all(|(i, &got)| {
            let (row, column) = (i / columns, i % columns);
            let mut want = (f64::from(start[column]), f64::from(start[column]));
            for k in 0..HALF {
                let (x, y) = (parts(a[row * HALF + k]), parts(b[k * columns + column]));
                let terms = [x[0] * y[0], x[1] * y[1]];
                want = (want.0 + terms[0] + terms[1], want.1 + terms[0].abs() + terms[1].abs());
            }
            // 33 roundings to 24 bits.
            (f64::from(got) - want.0).abs() <= 2e-6 * want.1
        })
    })
}

struct Case<'a> {
    a: &'a [u8],
    tail: &'a [u8],
    b: &'a [u32],
    rows: usize,
    columns: usize,
}

impl Case<'_> {
    fn is_right(&self, tiles: &mut impl Tiles, product: Product) -> bool {
        let runs = [0, (GRANULES + 1) * GRANULE];
        let start: Vec<u32> = (0..self.columns as u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
        let mut out = vec![0u32; self.rows * self.columns];
        tiles.configure(Shape::new(self.rows, self.columns / 16));
        let block = Block {
            a: self.a.as_ptr(),
            stride: PITCH,
            runs: runs.as_ptr(),
            n_runs: RUNS,
            granules: GRANULES,
            tail: self.tail.as_ptr(),
            b: self.b.as_ptr(),
            start: start.as_ptr(),
            start_stride: 0,
            out: out.as_mut_ptr(),
        };
        // SAFETY: 32 rows of both, the granules of as many columns, and the results are there.
        unsafe { tiles.multiply(product, &block) };
        let first: Vec<u32> = (0..out.len()).map(|i| self.sum(product, &runs, &start, i)).collect();
        if out != first {
            return false;
        }
        // Once more on top, without the tail.
        let again = Block {
            n_runs: 1,
            tail: std::ptr::null(),
            start: first.as_ptr(),
            start_stride: 4 * self.columns,
            out: out.as_mut_ptr(),
            ..block
        };
        // SAFETY: as above.
        unsafe { tiles.multiply(product, &again) };
        (0..out.len()).all(|i| out[i] == self.products(product, first[i], i, 0, self.a, (PITCH, 0, GRANULES)))
    }

    /// Result `i` of the first product.
    fn sum(&self, product: Product, runs: &[usize], start: &[u32], i: usize) -> u32 {
        let run = |sum, (r, &at): (usize, &usize)| {
            self.products(product, sum, i, r * GRANULES, self.a, (PITCH, at, GRANULES))
        };
        let sum = runs.iter().enumerate().fold(start[i % self.columns], run);
        self.products(product, sum, i, DEPTH - 1, self.tail, (GRANULE, 0, 1))
    }

    /// Adds the products of some granules of a row by those of the columns from `granule` on.
    fn products(
        &self,
        product: Product,
        sum: u32,
        i: usize,
        granule: usize,
        rows: &[u8],
        (pitch, at, n): (usize, usize, usize),
    ) -> u32 {
        let (row, column) = (i / self.columns, i % self.columns);
        let x = &rows[row * pitch + at..][..n * GRANULE];
        let sign = |signed: bool, v: u8| if signed { i32::from(v as i8) } else { i32::from(v) };
        let (signed_x, signed_y) = match product {
            Product::U8I8 => (false, true),
            Product::I8I8 => (true, true),
            Product::I8U8 => (true, false),
            Product::U8U8 | Product::Bf16 => (false, false),
        };
        x.iter().enumerate().fold(sum, |sum, (k, &x)| {
            let word = self.b[(granule * HALF + k / 4) * self.columns + column];
            sum.wrapping_add((sign(signed_x, x) * sign(signed_y, word.to_le_bytes()[k % 4])) as u32)
        })
    }
}
