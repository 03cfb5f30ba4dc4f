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
        (0..out.len()).all(|i| out[i] == self.products(product, first[i], i, 0, &self.a[..], (PITCH, 0, GRANULES)))
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
            Product::U8U8 => (false, false),
        };
        x.iter().enumerate().fold(sum, |sum, (k, &x)| {
            let word = self.b[(granule * HALF + k / 4) * self.columns + column];
            sum.wrapping_add((sign(signed_x, x) * sign(signed_y, word.to_le_bytes()[k % 4])) as u32)
        })
    }
}
