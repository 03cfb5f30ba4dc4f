//! Numbers of 8 and 16 bits that products of floats read: fp8, float16 and bfloat16, widened on the way, and the
//! rounding of floats to fp8. Every tier gives the same bits.

use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::isa::Isa;
use crate::quantize::QuantScales;
use crate::simd::{Kernel, Simd};

const NAME: &str = "codes";
/// Elements that one task converts at least.
const GRAIN: usize = 1 << 14;

/// A format of fewer bits than a float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// fp8 of 4 exponent and 3 mantissa bits, at most 448, without infinities (ONNX `FLOAT8E4M3FN`).
    E4m3,
    /// fp8 of 5 exponent and 2 mantissa bits, at most 57344 (ONNX `FLOAT8E5M2`).
    E5m2,
    /// IEEE half precision.
    F16,
    /// The upper half of a float.
    Bf16,
}

impl Code {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Code::E4m3 | Code::E5m2 => 1,
            Code::F16 | Code::Bf16 => 2,
        }
    }

    /// Whether every number is one of bfloat16.
    pub fn fits_bf16(self) -> bool {
        self != Code::F16
    }

    /// `n` numbers as bits of floats; 0 in the other lanes.
    ///
    /// # Safety
    /// `p` covers `n <= LANES` numbers.
    #[inline(always)]
    pub(crate) unsafe fn load<S: Simd>(self, s: S, p: *const u8, n: usize) -> S::I {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Code::E4m3 => e4m3(s, s.load_u8_n(p, n)),
                Code::E5m2 => ieee::<S, 24, 21>(s, s.load_u8_n(p, n), 4.0, 1.0 / 65536.0, 124.0),
                Code::F16 => ieee::<S, 16, 13>(s, s.load_u16_n(p.cast(), n), 1024.0, 1.0 / 16_777_216.0, 31744.0),
                Code::Bf16 => s.shl_i::<16>(s.load_u16_n(p.cast(), n)),
            }
        }
    }
}

/// Numbers below the least normal one are multiples of 2⁻⁹; 127 is NaN.
#[inline(always)]
fn e4m3<S: Simd>(s: S, code: S::I) -> S::I {
    let size = s.and_i(code, s.splat_i(0x7f));
    let (steps, sign) = (s.to_f32(size), s.and_i(s.shl_i::<24>(code), s.splat_i(i32::MIN)));
    let normal = s.float_of(s.add_i(s.shl_i::<20>(size), s.splat_i(120 << 23)));
    let value = s.select(s.lt(steps, s.splat(8.0)), s.mul(steps, s.splat(1.0 / 512.0)), normal);
    let value = s.select(s.eq(steps, s.splat(127.0)), s.splat(f32::NAN), value);
    s.xor_i(s.to_bits(value), sign)
}

/// A format of 5 exponent bits with infinities. `SIGN` takes its sign to that of a float, `SHIFT` its lowest bit to the
/// one of a float; `normal` is the code of the least normal number, those below are multiples of `step`; `infinite` is
/// the code of infinity.
#[inline(always)]
fn ieee<S: Simd, const SIGN: u32, const SHIFT: u32>(s: S, code: S::I, normal: f32, step: f32, infinite: f32) -> S::I {
    let size = s.and_i(code, s.splat_i((1 << (31 - SIGN)) - 1));
    let (steps, sign) = (s.to_f32(size), s.and_i(s.shl_i::<SIGN>(code), s.splat_i(i32::MIN)));
    let finite = s.add_i(s.shl_i::<SHIFT>(size), s.splat_i(112 << 23));
    // The largest exponent of this format becomes that of a float.
    let endless = s.float_of(s.add_i(finite, s.splat_i(112 << 23)));
    let value = s.select(s.lt(steps, s.splat(infinite)), s.float_of(finite), endless);
    let value = s.select(s.lt(steps, s.splat(normal)), s.mul(steps, s.splat(step)), value);
    s.xor_i(s.to_bits(value), sign)
}

/// Floats rounded to bfloat16, half to even, as the upper halves of bits of floats.
#[inline(always)]
pub(crate) fn round_bf16<S: Simd>(s: S, v: S::F) -> S::I {
    let bits = s.to_bits(v);
    let odd = s.and_i(s.sar_i::<16>(bits), s.splat_i(1));
    let rounded = s.float_of(s.add_i(bits, s.add_i(odd, s.splat_i(0x7fff))));
    let nan = s.float_of(s.splat_i(0x7fc0_0000));
    s.to_bits(s.select(s.unordered(v, v), nan, rounded))
}

/// Widens numbers to floats.
///
/// # Errors
/// `x` does not have the bytes of as many numbers as `y` has floats.
pub fn widen(exec: &Exec, code: Code, x: &[u8], y: &mut [f32]) -> Result {
    exact(NAME, "x", x.len(), product(NAME, &[y.len(), code.size()])?)?;
    let len = y.len();
    let out = SharedMut::new(y);
    exec.split(len, GRAIN, &|range| {
        // SAFETY: ranges are disjoint.
        let y = unsafe { out.slice(range.start, range.len()) };
        let x = &x[range.start * code.size()..range.end * code.size()];
        // SAFETY: as many numbers as floats.
        unsafe { decode(exec.isa(), code, x.as_ptr(), y.as_mut_ptr(), y.len()) };
    });
    Ok(())
}

/// Widens `len` numbers to floats.
///
/// # Safety
/// `src` covers the numbers and `dst` the floats; they don't overlap.
pub(crate) unsafe fn decode(isa: Isa, code: Code, src: *const u8, dst: *mut f32, len: usize) {
    match code {
        Code::E4m3 => isa.dispatch(Decode::<0, true> { src, dst: dst.cast(), len }),
        Code::E5m2 => isa.dispatch(Decode::<1, true> { src, dst: dst.cast(), len }),
        Code::F16 => isa.dispatch(Decode::<2, true> { src, dst: dst.cast(), len }),
        Code::Bf16 => isa.dispatch(Decode::<3, true> { src, dst: dst.cast(), len }),
    }
}

/// Widens `len` numbers to bfloat16; those of float16 are cut, not rounded.
///
/// # Safety
/// `src` covers the numbers and `dst` the results; they don't overlap.
pub(crate) unsafe fn decode_bf16(isa: Isa, code: Code, src: *const u8, dst: *mut u16, len: usize) {
    match code {
        Code::E4m3 => isa.dispatch(Decode::<0, false> { src, dst: dst.cast(), len }),
        Code::E5m2 => isa.dispatch(Decode::<1, false> { src, dst: dst.cast(), len }),
        Code::F16 => isa.dispatch(Decode::<2, false> { src, dst: dst.cast(), len }),
        Code::Bf16 => isa.dispatch(Decode::<3, false> { src, dst: dst.cast(), len }),
    }
}

/// By format, for one compiled loop each.
const CODES: [Code; 4] = [Code::E4m3, Code::E5m2, Code::F16, Code::Bf16];

struct Decode<const CODE: usize, const WIDE: bool> {
    src: *const u8,
    dst: *mut u8,
    len: usize,
}

impl<const CODE: usize, const WIDE: bool> Decode<CODE, WIDE> {
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, s: S, i: usize, n: usize) {
        let code = CODES[CODE];
        // SAFETY: the caller vouches for `n` numbers from `i` on.
        unsafe {
            let bits = code.load(s, self.src.add(i * code.size()), n);
            if WIDE {
                s.store_i32_n(self.dst.cast::<i32>().add(i), bits, n);
            } else {
                s.store_low16_n(self.dst.cast::<u16>().add(i), s.sar_i::<16>(bits), n);
            }
        }
    }
}

impl<const CODE: usize, const WIDE: bool> Kernel for Decode<CODE, WIDE> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        // SAFETY: whole vectors, then what is left.
        unsafe {
            while i + S::LANES <= self.len {
                self.vector(s, i, S::LANES);
                i += S::LANES;
            }
            if i < self.len {
                self.vector(s, i, self.len - i);
            }
        }
    }
}

/// ONNX `DequantizeLinear` of numbers without zero points: each widened, then multiplied by its scale.
///
/// # Errors
/// A slice has another length than the shape, or the scales don't match it.
pub fn dequantize_codes(exec: &Exec, code: Code, x: &[u8], y: &mut [f32], params: &QuantScales<'_>) -> Result {
    params.check(x.len() / code.size(), y.len())?;
    let out = SharedMut::new(y);
    params.runs(exec, &|start, len, index| {
        // SAFETY: the runs are disjoint.
        let y = unsafe { out.slice(start, len) };
        // SAFETY: `check` made sure of as many numbers.
        unsafe { decode(exec.isa(), code, x.as_ptr().add(start * code.size()), y.as_mut_ptr(), len) };
        match index {
            Some(i) => y.iter_mut().for_each(|y| *y *= params.scales[i]),
            None => y.iter_mut().zip(params.scales).for_each(|(y, scale)| *y *= scale),
        }
    });
    Ok(())
}

/// ONNX `QuantizeLinear` to fp8 that saturates: `x / scale` rounded half to even; what is too large, infinity included,
/// becomes the largest number, and NaN stays NaN. Zero points are 0, as ONNX wants.
///
/// # Errors
/// The format has 16 bits, a slice has another length than the shape, or the scales don't match it.
pub fn quantize_fp8(exec: &Exec, code: Code, x: &[f32], y: &mut [u8], params: &QuantScales<'_>) -> Result {
    require(NAME, code.size() == 1, "only fp8 is quantized to")?;
    params.check(x.len(), y.len())?;
    let out = SharedMut::new(y);
    params.runs(exec, &|start, len, index| {
        let x = &x[start..][..len];
        // SAFETY: the runs are disjoint.
        let y = unsafe { out.slice(start, len) };
        let scale = index.map(|i| params.scales[i]);
        let scales = params.scales;
        match code {
            Code::E4m3 => exec.isa().dispatch(Encode::<true> { x, y, scale, scales }),
            _ => exec.isa().dispatch(Encode::<false> { x, y, scale, scales }),
        }
    });
    Ok(())
}

struct Encode<'a, const E4M3: bool> {
    x: &'a [f32],
    y: &'a mut [u8],
    /// One for all elements, else one of `scales` for each.
    scale: Option<f32>,
    scales: &'a [f32],
}

impl<const E4M3: bool> Kernel for Encode<'_, E4M3> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (most, least, steps) = if E4M3 { (448.0, 1.0 / 64.0, 512.0) } else { (57344.0, 1.0 / 16384.0, 65536.0) };
        let one = self.scale.map(|scale| s.splat(scale));
        let mut i = 0;
        while i < self.x.len() {
            let n = (self.x.len() - i).min(S::LANES);
            // SAFETY: `n` elements are left of all; along an axis there are as many scales.
            unsafe {
                let x = s.load_n(self.x.as_ptr().add(i), n);
                let scale = match one {
                    Some(scale) => scale,
                    None => s.load_n(self.scales.as_ptr().add(i), n),
                };
                let v = s.div(x, scale);
                let sign = s.and_i(s.sar_i::<24>(s.to_bits(v)), s.splat_i(0x80));
                // NaN passes until it is replaced.
                let size = s.min(s.splat(most), s.abs(v));
                let bits = s.to_bits(size);
                let normal = match E4M3 {
                    true => s.sar_i::<20>(rounded::<S, 20>(s, bits, 120)),
                    false => s.sar_i::<21>(rounded::<S, 21>(s, bits, 112)),
                };
                let small = s.to_i32(s.mul(size, s.splat(steps)));
                let is_small = s.lt(size, s.splat(least));
                let code = s.select(is_small, s.float_of(small), s.float_of(normal));
                let code = s.select(s.unordered(v, v), s.float_of(s.splat_i(0x7f)), code);
                s.store_low8_n(self.y.as_mut_ptr().add(i), s.add_i(s.to_bits(code), sign), n);
            }
            i += S::LANES;
        }
    }
}

/// Bits of a float rounded half to even at bit `SHIFT`, with `exponent` taken off its exponent.
#[inline(always)]
fn rounded<S: Simd, const SHIFT: u32>(s: S, bits: S::I, exponent: i32) -> S::I {
    let odd = s.and_i(s.sar_i::<SHIFT>(bits), s.splat_i(1));
    let half = s.splat_i((1 << (SHIFT - 1)) - 1 - (exponent << 23));
    s.add_i(bits, s.add_i(odd, half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    /// The value of a code by the format's definition.
    fn value(code: Code, c: u16) -> f64 {
        let (exponent, mantissa, bias) = match code {
            Code::E4m3 => (4, 3, 7),
            Code::E5m2 => (5, 2, 15),
            Code::F16 => (5, 10, 15),
            Code::Bf16 => return f64::from(f32::from_bits(u32::from(c) << 16)),
        };
        let (e, m) = (i32::from(c >> mantissa) & ((1 << exponent) - 1), f64::from(c & ((1 << mantissa) - 1)));
        let sign = if c >> (mantissa + exponent) & 1 == 1 { -1.0 } else { 1.0 };
        let steps = f64::from(1 << mantissa);
        let last = e == (1 << exponent) - 1;
        let size = match code {
            Code::E4m3 if last && m == 7.0 => f64::NAN,
            Code::E5m2 | Code::F16 if last && m == 0.0 => f64::INFINITY,
            Code::E5m2 | Code::F16 if last => f64::NAN,
            _ if e == 0 => m / steps * 2f64.powi(1 - bias),
            _ => (1.0 + m / steps) * 2f64.powi(e - bias),
        };
        sign * size
    }

    fn same(a: f64, b: f64) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    #[test]
    fn widens_every_code_on_every_tier() {
        for code in CODES {
            let count = if code.size() == 1 { 256usize } else { 65536 };
            let bytes: Vec<u8> = match code.size() {
                1 => (0..=255).collect(),
                _ => (0..=65535u16).flat_map(u16::to_le_bytes).collect(),
            };
            for exec in execs() {
                let (mut x, mut y) = (Guarded::new(&bytes), Guarded::new(&vec![0f32; count]));
                widen(&exec, code, x.get(), y.get()).unwrap();
                for (c, &y) in y.get().iter().enumerate() {
                    assert!(same(f64::from(y), value(code, c as u16)), "{code:?} {c:#x} {y} {exec:?}");
                }
                let mut halves = Guarded::new(&vec![0u16; count]);
                // SAFETY: as many numbers as results.
                unsafe { decode_bf16(exec.isa(), code, x.get().as_ptr(), halves.get().as_mut_ptr(), count) };
                for (c, &h) in halves.get().iter().enumerate().filter(|_| code.fits_bf16()) {
                    let got = f64::from(f32::from_bits(u32::from(h) << 16));
                    assert!(same(got, value(code, c as u16)), "{code:?} {c:#x} {got} {exec:?}");
                }
            }
        }
    }

    /// Rounding by the definition: the nearest number, of two the one with an even code.
    fn nearest(code: Code, x: f32) -> u8 {
        let most = if code == Code::E4m3 { 448.0 } else { 57344.0 };
        if x.is_nan() {
            return 0x7f | u8::from(x.is_sign_negative()) << 7;
        }
        let size = f64::from(x).abs().min(most);
        let finite = (0..0x7fu16).filter(|&c| value(code, c).is_finite());
        let distance = |c: u16| (value(code, c) - size).abs();
        let best = finite.min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
        best.unwrap() as u8 | u8::from(x.is_sign_negative()) << 7
    }

    #[test]
    fn rounds_to_the_nearest_fp8_around_every_border() {
        let mut r = Random::new(8);
        for code in [Code::E4m3, Code::E5m2] {
            let finite: Vec<f64> = (0..0x7fu16).map(|c| value(code, c)).filter(|v| v.is_finite()).collect();
            let mut xs = vec![f32::INFINITY, f32::NAN, 1e30, f32::MIN_POSITIVE, 1e-40, 449.0, 465.0, 60000.0, 62000.0];
            for pair in finite.windows(2) {
                let middle = ((pair[0] + pair[1]) / 2.0) as f32;
                for x in [pair[0] as f32, middle] {
                    xs.extend([x, f32::from_bits(x.to_bits() + 1), f32::from_bits(x.to_bits().saturating_sub(1))]);
                }
            }
            xs.extend((0..4000).map(|_| f32::from_bits((r.next() as u32) & 0x7fff_ffff)));
            xs.extend((0..4000).map(|_| r.unit() * 600.0));
            let xs: Vec<f32> = xs.iter().flat_map(|&x| [x, -x]).collect();
            let want: Vec<u8> = xs.iter().map(|&x| nearest(code, x)).collect();
            for exec in execs() {
                let (mut x, mut y) = (Guarded::new(&xs), Guarded::new(&vec![0u8; xs.len()]));
                let params = QuantScales::per_tensor(&1.0, &0, xs.len());
                quantize_fp8(&exec, code, x.get(), y.get(), &params).unwrap();
                for (i, (&got, &want)) in y.get().iter().zip(&want).enumerate() {
                    let nan = xs[i].is_nan() && got & 0x7f == 0x7f;
                    assert!(got == want || nan, "{code:?} {}: {got:#x}, not {want:#x} {exec:?}", xs[i]);
                }
            }
        }
    }

    #[test]
    fn divides_by_the_scale_of_each_channel() {
        let x: Vec<f32> = (0..3 * 5 * 7).map(|i| i as f32 - 50.0).collect();
        let scales = [0.5, 0.3, 2.0, 7.0, 0.01];
        for (shape, of) in [([3, 5, 7], 7), ([21, 5, 1], 1)] {
            for exec in execs() {
                let mut y = Guarded::new(&vec![0u8; x.len()]);
                let params = QuantScales { scales: &scales, zero_points: &[], shape };
                quantize_fp8(&exec, Code::E4m3, &x, y.get(), &params).unwrap();
                let mut back = Guarded::new(&vec![0f32; x.len()]);
                dequantize_codes(&exec, Code::E4m3, y.get(), back.get(), &params).unwrap();
                for (i, (&y, &back)) in y.get().iter().zip(back.get().iter()).enumerate() {
                    assert_eq!(y, nearest(Code::E4m3, x[i] / scales[i / of % 5]));
                    assert_eq!(back, value(Code::E4m3, y.into()) as f32 * scales[i / of % 5]);
                }
            }
        }
    }

    #[test]
    fn refuses_wrong_lengths_and_wide_formats() {
        let exec = Exec::new(Isa::detect(), 1);
        assert!(widen(&exec, Code::F16, &[0; 3], &mut [0.0; 2]).is_err());
        let params = QuantScales::per_tensor(&1.0, &0, 2);
        assert!(quantize_fp8(&exec, Code::E4m3, &[0.0; 2], &mut [0; 3], &params).is_err());
        assert!(quantize_fp8(&exec, Code::F16, &[0.0; 2], &mut [0; 2], &params).is_err());
    }
}
