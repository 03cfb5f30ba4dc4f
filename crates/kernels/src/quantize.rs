//! Quantizing and dequantizing with ONNX semantics; every tier gives the same bits.
//!
//! `QuantizeLinear`: `y = saturate(round_half_even(x / scale) + zero_point)`, by division
//! in f32; NaN gives the smallest value, as in ONNX Runtime. `DequantizeLinear`:
//! `y = (x − zero_point) · scale` in f32.

use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "quantize";
/// Elements that one task converts at least.
const GRAIN: usize = 1 << 14;

mod sealed {
    use super::Simd;

    /// Vector access to a quantized type.
    pub trait Lanes: Copy + Send + Sync + Default + 'static {
        /// # Safety
        /// `p` covers `n <= LANES` elements.
        #[doc(hidden)]
        #[allow(private_bounds)]
        unsafe fn load<S: Simd>(s: S, p: *const Self, n: usize) -> S::I;
        /// # Safety
        /// `p` covers `n <= LANES` elements; each lane fits the type.
        #[doc(hidden)]
        #[allow(private_bounds)]
        unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::I, n: usize);
    }
}

/// An integer type that tensors are quantized to.
pub trait Quantized: sealed::Lanes {
    /// Smallest value.
    const MIN: i32;
    /// Largest value.
    const MAX: i32;
}

macro_rules! quantized {
    ($($type:ty: $load:ident, $store:ident as $raw:ty;)*) => {$(
        impl Quantized for $type {
            const MIN: i32 = <$type>::MIN as i32;
            const MAX: i32 = <$type>::MAX as i32;
        }
        impl sealed::Lanes for $type {
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const Self, n: usize) -> S::I {
                // SAFETY: passed on to the caller.
                unsafe { s.$load(p, n) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::I, n: usize) {
                // SAFETY: passed on to the caller.
                unsafe { s.$store(p.cast::<$raw>(), v, n) }
            }
        }
    )*};
}

quantized! {
    u8: load_u8_n, store_low8_n as u8;
    i8: load_i8_n, store_low8_n as u8;
    u16: load_u16_n, store_low16_n as u16;
    i16: load_i16_n, store_low16_n as u16;
    i32: load_i32_n, store_i32_n as i32;
}

/// Scales and zero points over the middle of `[outer, axis, inner]`.
#[derive(Clone, Copy, Debug)]
pub struct QuantScales<'a> {
    /// One scale for all (length 1), or one per position of the axis.
    pub scales: &'a [f32],
    /// As many as scales, or none, which means 0.
    pub zero_points: &'a [i32],
    /// How the tensor divides around the axis; `[1, 1, len]` for a single scale.
    pub shape: [usize; 3],
}

impl<'a> QuantScales<'a> {
    /// One scale for a tensor of `len` elements.
    pub fn per_tensor(scale: &'a f32, zero_point: &'a i32, len: usize) -> Self {
        let (scales, zero_points) = (std::slice::from_ref(scale), std::slice::from_ref(zero_point));
        QuantScales { scales, zero_points, shape: [1, 1, len] }
    }

    pub(crate) fn check(&self, x: usize, y: usize) -> Result {
        let len = product(NAME, &self.shape)?;
        exact(NAME, "x", x, len)?;
        exact(NAME, "y", y, len)?;
        let axis = self.shape[1];
        let scales = self.scales.len();
        require(NAME, scales == 1 || scales == axis, "there must be one scale, or one per channel")?;
        let points = self.zero_points.len();
        require(NAME, points == 0 || points == scales, "there must be as many zero points as scales, or none")
    }

    fn zero_point(&self, i: usize) -> i32 {
        self.zero_points.get(i).copied().unwrap_or(0)
    }

    /// Calls `body(start, len, scale index)` for runs that share a scale; a run with
    /// index `None` goes along the axis, one scale per element.
    pub(crate) fn runs(&self, exec: &Exec, body: &(dyn Fn(usize, usize, Option<usize>) + Sync)) {
        let [outer, axis, inner] = self.shape;
        let len = outer * axis * inner;
        if self.scales.len() == 1 {
            exec.split(len, GRAIN, &|range| body(range.start, range.len(), Some(0)));
        } else if inner == 1 {
            exec.split(outer, GRAIN / axis.max(1) + 1, &|range| {
                range.for_each(|row| body(row * axis, axis, None));
            });
        } else {
            exec.split(outer * axis, GRAIN / inner.max(1) + 1, &|range| {
                range.for_each(|row| body(row * inner, inner, Some(row % axis)));
            });
        }
    }
}

/// ONNX `QuantizeLinear`.
///
/// # Errors
/// A slice has another length than the shape, or scales and zero points don't match it.
pub fn quantize<T: Quantized>(exec: &Exec, x: &[f32], y: &mut [T], params: &QuantScales<'_>) -> Result {
    params.check(x.len(), y.len())?;
    let out = SharedMut::new(y);
    params.runs(exec, &|start, len, index| {
        let x = &x[start..][..len];
        // SAFETY: the runs are disjoint.
        let y = unsafe { out.slice(start, len) };
        if T::MAX == i32::MAX {
            quantize_wide(x, y, params, index);
        } else {
            exec.isa().dispatch(Quantize { x, y, lane: Lane { params, index } });
        }
    });
    Ok(())
}

/// A slice with one scale and zero point, on the calling thread.
pub(crate) fn quantize_slice(isa: Isa, x: &[f32], y: &mut [u8], scale: f32, zero: i32) {
    let n = x.len().min(y.len());
    let params = QuantScales::per_tensor(&scale, &zero, n);
    isa.dispatch(Quantize { x: &x[..n], y: &mut y[..n], lane: Lane { params: &params, index: Some(0) } });
}

/// ONNX `DequantizeLinear`.
///
/// # Errors
/// As [`quantize`].
pub fn dequantize<T: Quantized>(exec: &Exec, x: &[T], y: &mut [f32], params: &QuantScales<'_>) -> Result {
    params.check(x.len(), y.len())?;
    let out = SharedMut::new(y);
    params.runs(exec, &|start, len, index| {
        let x = &x[start..][..len];
        // SAFETY: the runs are disjoint.
        let y = unsafe { out.slice(start, len) };
        exec.isa().dispatch(Dequantize { x, y, lane: Lane { params, index } });
    });
    Ok(())
}

/// `x = dequantize(quantize(x))` in place, for a quantized range `low ..= high` (at most
/// 16 bits wide).
///
/// # Errors
/// As [`quantize`], or the range is empty or too wide.
pub fn fake_quantize(exec: &Exec, x: &mut [f32], (low, high): (i32, i32), params: &QuantScales<'_>) -> Result {
    params.check(x.len(), x.len())?;
    let narrow = low <= high && low >= -(1 << 16) && high <= 1 << 16;
    require(NAME, narrow, "the range must be within 16 bits")?;
    let out = SharedMut::new(x);
    params.runs(exec, &|start, len, index| {
        // SAFETY: the runs are disjoint.
        let x = unsafe { out.slice(start, len) };
        exec.isa().dispatch(Fake { x, range: (low, high), lane: Lane { params, index } });
    });
    Ok(())
}

/// Scale and zero point of each element of a run.
#[derive(Clone, Copy)]
struct Lane<'a> {
    params: &'a QuantScales<'a>,
    index: Option<usize>,
}

impl Lane<'_> {
    /// Scale and zero point of elements `i..i + n`.
    #[inline(always)]
    fn at<S: Simd>(&self, s: S, i: usize, n: usize) -> (S::F, S::I) {
        let p = self.params;
        match self.index {
            Some(index) => (s.splat(p.scales[index]), s.splat_i(p.zero_point(index))),
            // SAFETY: a run along the axis has as many elements as scales.
            None => unsafe {
                let point = if p.zero_points.is_empty() {
                    s.splat_i(0)
                } else {
                    s.load_i32_n(p.zero_points.as_ptr().add(i), n)
                };
                (s.load_bits(p.scales.as_ptr().add(i), low_bits(n)), point)
            },
        }
    }
}

/// `round_half_even(x / scale)`, limited so that adding the zero point stays in range.
#[inline(always)]
pub(crate) fn steps<S: Simd>(s: S, x: S::F, scale: S::F, point: S::I, (low, high): (i32, i32)) -> S::I {
    let floor = s.to_f32(s.sub_i(s.splat_i(low), point));
    let ceiling = s.to_f32(s.sub_i(s.splat_i(high), point));
    // A NaN takes the second operand of `max`: the smallest value.
    let v = s.max(s.div(x, scale), floor);
    s.to_i32(s.min(v, ceiling))
}

struct Quantize<'a, T> {
    x: &'a [f32],
    y: &'a mut [T],
    lane: Lane<'a>,
}

impl<T: Quantized> Kernel for Quantize<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut i = self.whole_vectors(s);
        while i < self.x.len() {
            let n = (self.x.len() - i).min(S::LANES);
            let (scale, point) = self.lane.at(s, i, n);
            // SAFETY: `n` elements are left in both slices.
            unsafe {
                let x = s.load_bits(self.x.as_ptr().add(i), low_bits(n));
                let v = s.add_i(steps(s, x, scale, point, (T::MIN, T::MAX)), point);
                T::store(s, self.y.as_mut_ptr().add(i), v, n);
            }
            i += n;
        }
    }
}

impl<T: Quantized> Quantize<'_, T> {
    /// Quantizes whole vectors with one scale, and tells how many elements. Multiplies by the scale's inverse, and
    /// divides only where the product is so near the middle between two codes that the quotient may round otherwise.
    #[inline(always)]
    fn whole_vectors<S: Simd>(&mut self, s: S) -> usize {
        let Some(index) = self.lane.index else { return 0 };
        let (scale, zero) = (self.lane.params.scales[index], self.lane.params.zero_point(index));
        let inverse = 1.0 / scale;
        if !scale.is_normal() || !inverse.is_normal() {
            return 0;
        }
        let (low, high) = ((T::MIN as i64 - i64::from(zero)) as f32, (T::MAX as i64 - i64::from(zero)) as f32);
        // Inverse, product and quotient are each off by half an ulp at most: 3 · 2⁻²⁴ of the largest step.
        let margin = 0.5 - low.abs().max(high.abs()) * 4.0 * f32::EPSILON;
        let (point, by, over) = (s.splat_i(zero), s.splat(inverse), s.splat(scale));
        let (floor, ceiling, margin) = (s.splat(low), s.splat(high), s.splat(margin));
        let whole = self.x.len() / S::LANES * S::LANES;
        let mut i = 0;
        while i < whole {
            // SAFETY: a whole vector is left in both slices.
            unsafe {
                let x = s.load(self.x.as_ptr().add(i));
                // A NaN takes the second operand of `max`: the smallest value.
                let v = s.min(s.max(s.mul(x, by), floor), ceiling);
                let mut near = s.to_i32(v);
                let off = s.abs(s.sub(v, s.to_f32(near)));
                if s.mask_bits(s.lt(margin, off)) != 0 {
                    near = steps(s, x, over, point, (T::MIN, T::MAX));
                }
                T::store(s, self.y.as_mut_ptr().add(i), s.add_i(near, point), S::LANES);
            }
            i += S::LANES;
        }
        whole
    }
}

/// 32-bit results: f32 has too few digits for the limits, so these are f64.
fn quantize_wide<T: Quantized>(x: &[f32], y: &mut [T], params: &QuantScales<'_>, index: Option<usize>) {
    let s = crate::isa::Scalar::new();
    for (i, (&x, y)) in x.iter().zip(y).enumerate() {
        let at = index.unwrap_or(i);
        let rounded = f64::from((x / params.scales[at]).round_ties_even());
        let v = (rounded + f64::from(params.zero_point(at))).max(f64::from(T::MIN)).min(f64::from(T::MAX));
        // NaN: `max` gave the smallest value.
        // SAFETY: `y` is one element.
        unsafe { T::store(s, y, v as i32, 1) };
    }
}

struct Dequantize<'a, T> {
    x: &'a [T],
    y: &'a mut [f32],
    lane: Lane<'a>,
}

impl<T: Quantized> Kernel for Dequantize<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        while i < self.x.len() {
            let n = (self.x.len() - i).min(S::LANES);
            let (scale, point) = self.lane.at(s, i, n);
            // SAFETY: `n` elements are left in both slices.
            unsafe {
                let x = T::load(s, self.x.as_ptr().add(i), n);
                let v = s.mul(s.to_f32(s.sub_i(x, point)), scale);
                s.store_bits(self.y.as_mut_ptr().add(i), v, low_bits(n));
            }
            i += n;
        }
    }
}

struct Fake<'a> {
    x: &'a mut [f32],
    range: (i32, i32),
    lane: Lane<'a>,
}

impl Kernel for Fake<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        while i < self.x.len() {
            let n = (self.x.len() - i).min(S::LANES);
            let (scale, point) = self.lane.at(s, i, n);
            // SAFETY: `n` elements are left.
            unsafe {
                let p = self.x.as_mut_ptr().add(i);
                let v = steps(s, s.load_bits(p, low_bits(n)), scale, point, self.range);
                s.store_bits(p, s.mul(s.to_f32(v), scale), low_bits(n));
            }
            i += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    fn reference(x: f32, scale: f32, point: i32, (low, high): (i32, i32)) -> i32 {
        let v = f64::from((x / scale).round_ties_even()) + f64::from(point);
        if v.is_nan() { low } else { v.clamp(f64::from(low), f64::from(high)) as i32 }
    }

    #[test]
    fn rounds_values_next_to_a_tie_as_the_quotient() {
        let mut r = Random::new(17);
        for _ in 0..40 {
            let scale = (0.001 + r.unit().abs()) * 10f32.powi(r.below(9) as i32 - 5);
            let ties = (-300..300).map(|k| (k as f32 + 0.5) * scale);
            let x: Vec<f32> = ties.flat_map(|t| [t, t.next_up(), t.next_down()]).collect();
            let want: Vec<u8> = x.iter().map(|&v| reference(v, scale, 128, (0, 255)) as u8).collect();
            for exec in execs() {
                let mut y = vec![0u8; x.len()];
                quantize(&exec, &x, &mut y, &QuantScales::per_tensor(&scale, &128, x.len())).unwrap();
                assert_eq!(y, want, "scale {scale} {}", exec.isa());
            }
        }
    }

    /// Values around ties and limits, and the special ones.
    fn values(len: usize) -> Vec<f32> {
        let mut r = Random::new(len as u64 + 5);
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e10, -1e10, 0.0, -0.0, 0.5, 1.5, -2.5];
        (0..len)
            .map(|i| match i % 4 {
                0 => special[r.below(special.len())],
                1 => (r.below(600) as f32 - 300.0) * 0.5,
                2 => r.unit() * 40_000.0,
                _ => r.unit() * 3.0,
            })
            .collect()
    }

    fn check<T: Quantized + PartialEq + std::fmt::Debug + Into<i64>>(points: [i32; 3]) {
        for shape in [[1, 1, 1], [1, 1, 1003], [3, 5, 17], [4, 21, 1], [2, 3, 40], [1, 1, 20_000], [0, 3, 2]] {
            let x = values(shape.iter().product());
            let mut r = Random::new(3);
            for channels in [1, shape[1]] {
                let scales: Vec<f32> = (0..channels).map(|_| 0.01 + r.unit().abs()).collect();
                let zero_points: Vec<i32> = (0..channels).map(|i| points[i % 3]).collect();
                let params = QuantScales { scales: &scales, zero_points: &zero_points, shape };
                let channel = |i: usize| {
                    if channels == 1 { 0 } else { i / shape[2] % shape[1] }
                };
                let want: Vec<i64> = x
                    .iter()
                    .enumerate()
                    .map(|(i, &v)| reference(v, scales[channel(i)], zero_points[channel(i)], (T::MIN, T::MAX)).into())
                    .collect();
                let back: Vec<f32> = want
                    .iter()
                    .enumerate()
                    .map(|(i, &q)| (q as i32).wrapping_sub(zero_points[channel(i)]) as f32 * scales[channel(i)])
                    .collect();
                for exec in execs() {
                    let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![T::default(); x.len()]));
                    quantize(&exec, gx.get(), y.get(), &params).unwrap();
                    let got: Vec<i64> = y.get().iter().map(|&v| v.into()).collect();
                    assert_eq!(got, want, "{shape:?} {exec:?}");
                    let mut z = Guarded::new(&x);
                    dequantize(&exec, y.get(), z.get(), &params).unwrap();
                    assert_eq!(z.get(), back, "{shape:?} {exec:?}");
                    if T::MAX < i32::MAX {
                        fake_quantize(&exec, gx.get(), (T::MIN, T::MAX), &params).unwrap();
                        assert_eq!(gx.get(), back, "fake {shape:?} {exec:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn equals_the_onnx_formulas_bit_for_bit() {
        check::<u8>([0, 128, 255]);
        check::<i8>([0, -128, 127]);
        check::<u16>([0, 40_000, 65_535]);
        check::<i16>([0, -32_768, 99]);
        check::<i32>([0, 7, -9]);
    }

    #[test]
    fn refuses_scales_that_do_not_match() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let params = QuantScales { scales: &[1.0, 2.0], zero_points: &[], shape: [1, 3, 2] };
        assert!(quantize(&exec, &[0.0; 6], &mut [0u8; 6], &params).is_err());
        let params = QuantScales { scales: &[1.0], zero_points: &[0, 0], shape: [1, 3, 2] };
        assert!(quantize(&exec, &[0.0; 6], &mut [0u8; 6], &params).is_err());
        let params = QuantScales { zero_points: &[], ..params };
        assert!(quantize(&exec, &[0.0; 5], &mut [0u8; 6], &params).is_err());
        assert!(fake_quantize(&exec, &mut [0.0; 6], (5, 4), &params).is_err());
    }
}
