//! One vector interface over the instruction sets: a kernel is written once,
//! generic over [`Simd`], and [`Isa::dispatch`] compiles it per tier.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bytes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;

use crate::isa::{Isa, Scalar};

/// Vector operations of one tier, on a token that proves the tier.
///
/// Results are the same on every tier, lane by lane (`mul_add` rounds once), except
/// `sum`, whose order depends on the lane count.
///
/// # Safety
/// The `unsafe` methods access memory as documented: `load`/`store` touch `LANES`
/// elements, `_n` forms the first `n <= LANES`, `_bits` forms the lanes set in `bits`.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of 32 bits.
    const LANES: usize;
    /// f32 lanes.
    type F: Copy;
    /// i32 lanes.
    type I: Copy;
    /// A truth value per lane.
    type M: Copy;
    /// Sixteen floats.
    type Table: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn splat_i(self, x: i32) -> Self::I;
    unsafe fn load(self, p: *const f32) -> Self::F;
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::F;
    unsafe fn load_bits(self, p: *const f32, bits: u32) -> Self::F;
    /// Lane `i` is `p[i * stride]`.
    unsafe fn load_strided_bits(self, p: *const f32, stride: usize, bits: u32) -> Self::F;
    unsafe fn store(self, p: *mut f32, v: Self::F);
    unsafe fn store_n(self, p: *mut f32, v: Self::F, n: usize);
    unsafe fn store_bits(self, p: *mut f32, v: Self::F, bits: u32);
    unsafe fn prefetch(self, p: *const f32);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a < b ? a : b`: passes `b` on when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`: passes `b` on when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn sqrt(self, a: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    fn neg(self, a: Self::F) -> Self::F;
    fn round_even(self, a: Self::F) -> Self::F;
    fn floor(self, a: Self::F) -> Self::F;
    fn ceil(self, a: Self::F) -> Self::F;
    /// `a · 2ⁿ`, rounded once, for a in 0.5 … 2 and an integer n in −160 … 140.
    fn scale_exp(self, a: Self::F, n: Self::F) -> Self::F;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::F, b: Self::F) -> Self::F;

    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// Either is NaN.
    fn unordered(self, a: Self::F, b: Self::F) -> Self::M;
    /// `m ? a : b`.
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// One bit per lane.
    fn mask_bits(self, m: Self::M) -> u32;

    /// Lanes `i` and `i + LANES / 2` are added, then the halves of that: chains of a fixed number that are joined in this
    /// order give the same bits on every tier.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane, in the order of [`Simd::sum`]; as `max`, the upper half's where one is NaN or both are zeros.
    fn hmax(self, a: Self::F) -> f32;
    /// The smallest lane, likewise.
    fn hmin(self, a: Self::F) -> f32;

    fn to_bits(self, a: Self::F) -> Self::I;
    fn float_of(self, a: Self::I) -> Self::F;
    /// Rounds half to even; out of range and NaN give `i32::MIN`.
    fn to_i32(self, a: Self::F) -> Self::I;
    fn to_f32(self, a: Self::I) -> Self::F;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The low 32 bits of the product.
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a.low · b.low + a.high · b.high` of the signed 16-bit halves of each lane.
    fn madd_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn table(self, values: &[f32; 16]) -> Self::Table;
    /// The value that the low four bits of each lane name; the other bits don't count.
    fn look_up(self, table: Self::Table, index: Self::I) -> Self::F;
    /// The value that the low eight bits of each lane name; the other bits don't count.
    fn look_up_byte(self, table: &[f32; 256], index: Self::I) -> Self::F;
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Shifts the sign in.
    fn sar_i<const N: u32>(self, a: Self::I) -> Self::I;
    unsafe fn load_i32_n(self, p: *const i32, n: usize) -> Self::I;
    unsafe fn load_u8_n(self, p: *const u8, n: usize) -> Self::I;
    unsafe fn load_i8_n(self, p: *const i8, n: usize) -> Self::I;
    unsafe fn load_u16_n(self, p: *const u16, n: usize) -> Self::I;
    unsafe fn load_i16_n(self, p: *const i16, n: usize) -> Self::I;
    unsafe fn store_i32_n(self, p: *mut i32, v: Self::I, n: usize);
    /// Stores the lanes of `bits` one after the other and returns how many they are; up to `LANES` elements are written.
    #[inline(always)]
    unsafe fn store_i32_of(self, p: *mut i32, v: Self::I, bits: u32) -> usize {
        if bits == low_bits(Self::LANES) {
            // SAFETY: passed on to the caller.
            unsafe { self.store_i32_n(p, v, Self::LANES) };
            return Self::LANES;
        }
        let mut lanes = [0i32; 16];
        // SAFETY: at most 16 lanes.
        unsafe { self.store_i32_n(lanes.as_mut_ptr(), v, Self::LANES) };
        let mut n = 0;
        for (i, lane) in lanes[..Self::LANES].iter().enumerate() {
            // SAFETY: the caller vouches for `LANES` elements, and `n` is at most `i`.
            unsafe { *p.add(n) = *lane };
            n += (bits >> i & 1) as usize;
        }
        n
    }
    /// Stores the low 8 bits of each lane.
    unsafe fn store_low8_n(self, p: *mut u8, v: Self::I, n: usize);
    /// Stores `max(v, low) + zero` of four vectors at four places, saturated to i8 if `SIGNED`, else to u8.
    ///
    /// `zero` is the same in all lanes, −128 … 255.
    unsafe fn store_codes<const SIGNED: bool>(
        self,
        to: [*mut u8; 4],
        v: [Self::I; 4],
        low: [Self::I; 4],
        zero: Self::I,
    );
    /// Stores the low 16 bits of each lane.
    unsafe fn store_low16_n(self, p: *mut u16, v: Self::I, n: usize);

    /// Writes `n` floats rounded to bfloat16, half to even. Where the processor has an instruction for it, which its products of
    /// bfloat16 go with, a denormal becomes 0, as these take it.
    #[inline(always)]
    unsafe fn store_bf16_n(self, p: *mut u16, v: Self::F, n: usize) {
        // SAFETY: passed on to the caller.
        unsafe { self.store_low16_n(p, self.sar_i::<16>(crate::codes::round_bf16(self, v)), n) };
    }

    /// Writes two vectors as bfloat16, one behind the other, as [`Simd::store_bf16_n`] does.
    ///
    /// # Safety
    /// `p` covers two vectors of 16-bit elements.
    #[inline(always)]
    unsafe fn store_bf16_pair(self, p: *mut u16, a: Self::F, b: Self::F) {
        // SAFETY: passed on to the caller.
        unsafe {
            self.store_bf16_n(p, a, Self::LANES);
            self.store_bf16_n(p.add(Self::LANES), b, Self::LANES);
        }
    }

    /// `dst[i]` is the bytes `i` of four rows of `n`, the first row's lowest, combined
    /// with `flip` by exclusive or.
    #[inline(always)]
    unsafe fn zip_bytes(self, rows: [*const u8; 4], flip: Self::I, dst: *mut i32, n: usize) {
        let mut i = 0;
        while i < n {
            let m = (n - i).min(Self::LANES);
            // SAFETY: the caller vouches for `n` elements of each.
            unsafe {
                let (a, b) = (self.load_u8_n(rows[0].add(i), m), self.load_u8_n(rows[1].add(i), m));
                let (c, d) = (self.load_u8_n(rows[2].add(i), m), self.load_u8_n(rows[3].add(i), m));
                let low = self.add_i(a, self.shl_i::<8>(b));
                let high = self.shl_i::<16>(self.add_i(c, self.shl_i::<8>(d)));
                self.store_i32_n(dst.add(i), self.xor_i(self.add_i(low, high), flip), m);
            }
            i += m;
        }
    }

    /// `dst[c * ld_dst + r] = src[r * ld_src + c]` for `rows`, `cols` `<= 16`.
    #[inline(always)]
    unsafe fn transpose_bytes(
        self,
        src: *const u8,
        ld_src: usize,
        rows: usize,
        cols: usize,
        dst: *mut u8,
        ld_dst: usize,
    ) {
        for c in 0..cols {
            for r in 0..rows {
                // SAFETY: the caller vouches for the tile.
                unsafe { *dst.add(c * ld_dst + r) = *src.add(r * ld_src + c) };
            }
        }
    }

    /// `y[i] = table[x[i]]` for `len` bytes; `x` and `y` may be the same.
    #[inline(always)]
    unsafe fn lookup(self, table: &[u8; 256], x: *const u8, y: *mut u8, len: usize) {
        for i in 0..len {
            // SAFETY: the caller vouches for `len` bytes.
            unsafe { *y.add(i) = table[usize::from(*x.add(i))] };
        }
    }

    /// `dst[c * ld_dst + r] = src[r * ld_src + c]` for `rows`, `cols` `<= LANES`.
    unsafe fn transpose_tile(
        self,
        src: *const f32,
        ld_src: usize,
        rows: usize,
        cols: usize,
        dst: *mut f32,
        ld_dst: usize,
    );
}

/// A computation that is compiled once per tier.
///
/// `run` must be `#[inline(always)]`, so that the tier's features reach its body.
pub trait Kernel {
    type Out;
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

impl Isa {
    /// Runs a kernel with the widest vectors of this tier.
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Out {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(token) = crate::isa::Avx512::new(self) {
                return avx512::run(token, kernel);
            }
            if let Some(token) = crate::isa::Avx2::new(self) {
                return avx2::run(token, kernel);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(token) = crate::isa::Neon::new(self) {
            return neon::run(token, kernel);
        }
        kernel.run(Scalar::new())
    }
}

/// The lowest `n` bits set, `n <= 32`.
#[inline(always)]
pub(crate) fn low_bits(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1u32 << n) - 1 }
}

/// [`Simd::scale_exp`] by two factors, which reach both the denormals and 2^128.
#[inline(always)]
fn scale_in_two<S: Simd>(s: S, a: S::F, n: S::F) -> S::F {
    let n = s.to_i32(n);
    let half = s.sar_i::<1>(n);
    s.mul(s.mul(a, power_of_two(s, half)), power_of_two(s, s.sub_i(n, half)))
}

/// `2ⁿ` of normal floats.
#[inline(always)]
fn power_of_two<S: Simd>(s: S, n: S::I) -> S::F {
    s.float_of(s.shl_i::<23>(s.add_i(n, s.splat_i(127))))
}
