use super::*;

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
