use super::*;
use crate::testing::{Edge, Guarded, Random};

#[test]
fn emulates_products_of_all_signs_and_shapes() {
    assert!(trial::passes(&mut Emulated::new()));
}

#[test]
fn emulates_products_of_bfloat16() {
    assert!(trial::passes_bf16(&mut Emulated::new()));
}

#[test]
fn flushes_denormals_of_bfloat16() {
    let mut tiles = Emulated::new();
    tiles.configure(Shape::new(1, 1));
    // Rows: the least normal number and a denormal; columns: one half and one.
    let (a, b) = ([0x0080u16, 0x0040].repeat(16), [0x3f00u16, 0x3f80].repeat(256));
    let mut out = [1f32; 16];
    // SAFETY: as many rows as are configured.
    unsafe {
        tiles.load(0, [0u8; GRANULE].as_ptr(), 0);
        tiles.load(4, a.as_ptr().cast(), 0);
        tiles.load(6, b.as_ptr().cast(), GRANULE);
        tiles.dot(Product::Bf16, 0, 4, 6);
        tiles.store(0, out.as_mut_ptr().cast(), 0);
    }
    assert_eq!(out, [0.0; 16]);
}

/// Tiles that get one product in a thousand wrong.
struct Broken(Emulated, usize);

impl Tiles for Broken {
    fn configure(&mut self, shape: Shape) {
        self.0.configure(shape);
    }

    unsafe fn multiply(&mut self, product: Product, block: &Block) {
        self.1 += 1;
        // SAFETY: passed on to the caller; a block has at least one result.
        unsafe {
            self.0.multiply(product, block);
            if self.1 == 40 {
                *block.out ^= 1 << 20;
            }
        }
    }
}

#[test]
fn finds_tiles_that_are_wrong_once() {
    assert!(!trial::passes(&mut Broken(Emulated::new(), 0)));
}

#[test]
fn clears_rows_that_are_not_configured() {
    let mut tiles = Emulated::new();
    tiles.configure(Shape::new(3, 1));
    let ones = [1u8; GRANULE * HALF];
    let mut out = [7u8; GRANULE * HALF];
    // SAFETY: 16 rows of both.
    unsafe {
        tiles.load(4, ones.as_ptr(), GRANULE);
        tiles.load(6, ones.as_ptr(), GRANULE);
        tiles.load(0, [0u8; GRANULE].as_ptr(), 0);
        tiles.dot(Product::U8U8, 0, 4, 6);
        tiles.store(0, out.as_mut_ptr(), GRANULE);
    }
    let (stored, rest) = out.split_at(3 * GRANULE);
    assert!(stored.chunks_exact(4).all(|w| w == 64i32.to_le_bytes()));
    assert!(rest.iter().all(|&b| b == 7));
}

#[test]
#[should_panic(expected = "not configured")]
fn refuses_a_tile_that_is_not_configured() {
    let mut tiles = Emulated::new();
    tiles.configure(Shape::new(16, 1));
    // SAFETY: the row is there.
    unsafe { tiles.load(5, [0u8; GRANULE].as_ptr(), 0) };
}

#[test]
fn sums_wrap_as_the_processors_do() {
    // 65 025 · 64 products on top of the largest sum.
    let mut tiles = Emulated::new();
    tiles.configure(Shape::new(1, 1));
    let (ones, start) = ([255u8; GRANULE * HALF], [i32::MAX; 16]);
    let mut out = [0i32; 16];
    // SAFETY: as many rows as are configured.
    unsafe {
        tiles.load(0, start.as_ptr().cast(), 0);
        tiles.load(4, ones.as_ptr(), 0);
        tiles.load(6, ones.as_ptr(), 0);
        tiles.dot(Product::U8U8, 0, 4, 6);
        tiles.store(0, out.as_mut_ptr().cast(), 0);
    }
    assert_eq!(out, [i32::MAX.wrapping_add(64 * 65_025); 16]);
}

/// Multiplies blocks of every shape whose rows, tail, columns, starts and results lie at inaccessible pages.
fn stays_within_the_operands(tiles: &mut impl Tiles, product: Product) {
    let mut r = Random::new(81);
    let mut words = |n: usize| -> Vec<u32> { (0..n).map(|_| r.next() as u32 & 0x7fff_7fff).collect() };
    for rows in [1, 2, 15, 16, 17, 31, 32] {
        for vectors in [1, 2] {
            // Runs of a row overlap or leave gaps; the last one ends with the row, and the last row with the memory.
            for (granules, offsets, stride) in
                [(1, &[0][..], 64), (2, &[0, 192], 320), (1, &[0, 7, 64], 129), (0, &[0], 64)]
            {
                let (columns, last) = (16 * vectors, offsets[offsets.len() - 1]);
                let bytes = (rows - 1) * stride + last + granules * GRANULE;
                let a: Vec<u8> = words(bytes.div_ceil(4)).iter().flat_map(|w| w.to_le_bytes()).take(bytes).collect();
                let tail = words(if granules == 1 && offsets.len() > 1 { 0 } else { rows * GRANULE / 4 });
                let depth = offsets.len() * granules + usize::from(!tail.is_empty());
                let (b, start) = (words(depth * HALF * columns), words(columns));
                let mut first = None;
                for edge in [Edge::Before, Edge::Behind] {
                    let (mut a, mut runs) = (Guarded::at(edge, &a), Guarded::at(edge, offsets));
                    let [mut tail, mut b, mut start] = [&tail, &b, &start].map(|v| Guarded::at(edge, v));
                    let mut out = Guarded::at(edge, &vec![7u32; rows * columns]);
                    let tail = tail.get();
                    tiles.configure(Shape::new(rows, vectors));
                    let block = Block {
                        a: a.get().as_ptr(),
                        stride,
                        runs: runs.get().as_ptr(),
                        n_runs: offsets.len(),
                        granules,
                        tail: if tail.is_empty() { std::ptr::null() } else { tail.as_ptr().cast() },
                        b: b.get().as_ptr(),
                        start: start.get().as_ptr(),
                        start_stride: 0,
                        out: out.get().as_mut_ptr(),
                    };
                    // SAFETY: exactly what the shape says.
                    unsafe { tiles.multiply(product, &block) };
                    let got = out.get().to_vec();
                    assert_eq!(first.get_or_insert(got.clone()), &got, "{rows}×{columns} {granules} {edge:?}");
                }
            }
        }
    }
}

#[test]
fn emulates_blocks_within_their_operands() {
    for product in [Product::U8I8, Product::I8I8, Product::Bf16] {
        stays_within_the_operands(&mut Emulated::new(), product);
    }
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn multiplies_blocks_within_their_operands() {
    let isa = crate::Isa::detect();
    let Some(token) = crate::isa::Amx::new(isa) else {
        eprintln!("skipped: this machine has no AMX tiles that may be used (its best tier is {isa})");
        return;
    };
    for product in [Product::U8I8, Product::I8I8] {
        stays_within_the_operands(&mut hardware::Hardware::new(token), product);
    }
    if isa.bf16() == crate::isa::Bf16::Tiles {
        stays_within_the_operands(&mut hardware::Hardware::new(token), Product::Bf16);
    } else {
        eprintln!("skipped: these tiles do not multiply bfloat16");
    }
}
