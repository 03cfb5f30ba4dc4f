//! Each operation gives on every tier what one lane of portable Rust gives.

use super::{Kernel, Simd};
use crate::testing::{Random, assert_same_everywhere, bits};

/// Numbers that the instruction sets treat apart, in pairs with each other: NaN, zeros of both signs, infinities, denormals,
/// halves, and what lies at the ends of i32.
const SPECIAL: [f32; 24] = [
    f32::NAN,
    0.0,
    -0.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    1e-40,
    -1e-40,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    2147483520.0,
    2147483648.0,
    -2147483648.0,
    -2147483904.0,
    4e9,
    -4e9,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    8388607.5,
    -8388608.5,
    3.0,
];
const LEN: usize = 24 * 24;

/// Writes the results of all operations on floats, one operation after the other.
struct Floats<'a> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut Vec<u32>,
}

impl Kernel for Floats<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut all: [Vec<f32>; 18] = std::array::from_fn(|_| vec![0.0; LEN]);
        let mut whole = vec![0i32; LEN];
        for i in (0..LEN).step_by(S::LANES) {
            // SAFETY: the lengths are multiples of the lanes of every tier.
            unsafe {
                let (a, b) = (s.load(self.a.as_ptr().add(i)), s.load(self.b.as_ptr().add(i)));
                let one = s.splat(1.0);
                let results = [
                    s.add(a, b),
                    s.sub(a, b),
                    s.mul(a, b),
                    s.div(a, b),
                    s.mul_add(a, b, one),
                    s.min(a, b),
                    s.max(a, b),
                    s.sqrt(a),
                    s.abs(a),
                    s.neg(a),
                    s.round_even(a),
                    s.floor(a),
                    s.ceil(a),
                    s.copysign(a, b),
                    s.select(s.lt(a, b), one, s.splat(2.0)),
                    s.select(s.eq(a, b), one, s.splat(2.0)),
                    s.select(s.unordered(a, b), one, s.splat(2.0)),
                    s.to_f32(s.to_i32(a)),
                ];
                for (to, v) in all.iter_mut().zip(results) {
                    s.store(to.as_mut_ptr().add(i), v);
                }
                s.store_i32_n(whole.as_mut_ptr().add(i), s.to_i32(a), S::LANES);
                // One bit per lane.
                let lanes = s.mask_bits(s.lt(a, b));
                for k in 0..S::LANES {
                    assert_eq!(lanes >> k & 1 == 1, self.a[i + k] < self.b[i + k]);
                }
                assert_eq!(lanes >> (S::LANES - 1) >> 1, 0);
            }
        }
        all.iter().for_each(|v| self.out.extend(bits(v)));
        self.out.extend(whole.iter().map(|&v| v as u32));
    }
}

/// Likewise of integers, and of moves of bytes.
struct Integers<'a> {
    a: &'a [i32],
    b: &'a [i32],
    out: &'a mut Vec<u32>,
}

impl Kernel for Integers<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let values: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.5);
        let bytes: [f32; 256] = std::array::from_fn(|i| i as f32 * 0.25);
        let table = s.table(&values);
        let mut all: [Vec<i32>; 10] = std::array::from_fn(|_| vec![0; LEN]);
        for i in (0..LEN).step_by(S::LANES) {
            // SAFETY: the lengths are multiples of the lanes of every tier.
            unsafe {
                let a = s.load_i32_n(self.a.as_ptr().add(i), S::LANES);
                let b = s.load_i32_n(self.b.as_ptr().add(i), S::LANES);
                let results = [
                    s.add_i(a, b),
                    s.sub_i(a, b),
                    s.mul_i(a, b),
                    s.and_i(a, b),
                    s.xor_i(a, b),
                    s.madd_i(a, b),
                    s.shl_i::<5>(a),
                    s.sar_i::<7>(a),
                    s.to_bits(s.look_up(table, a)),
                    s.to_bits(s.look_up_byte(&bytes, a)),
                ];
                for (to, v) in all.iter_mut().zip(results) {
                    s.store_i32_n(to.as_mut_ptr().add(i), v, S::LANES);
                }
            }
        }
        all.iter().for_each(|v| self.out.extend(v.iter().map(|&v| v as u32)));
        self.out.extend(codes::<S, true>(s, self.a, self.b, -128));
        self.out.extend(codes::<S, false>(s, self.a, self.b, 255));
    }
}

/// `store_codes` of all of `v`, 64 at a time.
#[inline(always)]
fn codes<S: Simd, const SIGNED: bool>(s: S, v: &[i32], low: &[i32], zero: i32) -> Vec<u32> {
    let mut codes = vec![0u8; LEN];
    let quarter = LEN / 4;
    for i in (0..quarter).step_by(S::LANES) {
        // SAFETY: a quarter is a multiple of the lanes of every tier.
        unsafe {
            let at = |k: usize| i + k * quarter;
            let load = |p: &[i32], k: usize| s.load_i32_n(p.as_ptr().add(at(k)), S::LANES);
            let (v, low) = ([0, 1, 2, 3].map(|k| load(v, k)), [0, 1, 2, 3].map(|k| load(low, k)));
            let to = [0, 1, 2, 3].map(|k| codes.as_mut_ptr().wrapping_add(at(k)));
            s.store_codes::<SIGNED>(to, v, low, s.splat_i(zero));
        }
    }
    codes.into_iter().map(u32::from).collect()
}

#[test]
fn gives_the_same_lanes_on_every_tier() {
    let a: Vec<f32> = (0..LEN).map(|i| SPECIAL[i / 24]).collect();
    let b: Vec<f32> = (0..LEN).map(|i| SPECIAL[i % 24]).collect();
    assert_same_everywhere("floats", &|exec, _| {
        let mut out = Vec::new();
        exec.isa().dispatch(Floats { a: &a, b: &b, out: &mut out });
        out
    });
    let mut random = Random::new(3);
    let mut integers = || -> Vec<i32> {
        let mut some = vec![i32::MIN, i32::MAX, 0, -1, 0x8000_8000u32 as i32, 127, -128, 255];
        some.resize_with(LEN, || random.next() as i32 >> random.below(30));
        some
    };
    let (a, b) = (integers(), integers());
    assert_same_everywhere("integers", &|exec, _| {
        let mut out = Vec::new();
        exec.isa().dispatch(Integers { a: &a, b: &b, out: &mut out });
        out
    });
}

/// Moves of bytes at all sizes that fit a tile.
struct Moves<'a> {
    from: &'a [u8],
    flip: i32,
    out: &'a mut Vec<u32>,
}

impl Kernel for Moves<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        let p = self.from.as_ptr();
        for n in 0..=40 {
            let (mut words, mut looked) = (vec![0i32; 41], vec![0u8; 41]);
            // SAFETY: there are four rows of 64 bytes.
            unsafe {
                s.zip_bytes([p, p.add(64), p.add(128), p.add(192)], s.splat_i(self.flip), words.as_mut_ptr(), n);
                s.lookup(&table, p, looked.as_mut_ptr(), n);
            }
            self.out.extend(words.iter().map(|&v| v as u32));
            self.out.extend(looked.iter().map(|&v| u32::from(v)));
        }
        for (rows, cols) in (1..=16).flat_map(|rows| (1..=16).map(move |cols| (rows, cols))) {
            let mut tile = vec![9u8; 16 * 17];
            // SAFETY: there are 16 rows of 16 bytes, and as many columns of 17.
            unsafe { s.transpose_bytes(p, 16, rows, cols, tile.as_mut_ptr(), 17) };
            self.out.extend(tile.iter().map(|&v| u32::from(v)));
        }
    }
}

#[test]
fn moves_the_same_bytes_on_every_tier() {
    let mut random = Random::new(5);
    let from: Vec<u8> = (0..256).map(|_| random.next() as u8).collect();
    for flip in [0, 0x8080_8080u32 as i32] {
        assert_same_everywhere("moves", &|exec, _| {
            let mut out = Vec::new();
            exec.isa().dispatch(Moves { from: &from, flip, out: &mut out });
            out
        });
    }
}
