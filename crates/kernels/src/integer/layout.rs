//! NCHW to NHWC and back, with the conversion between floats and integers on the way.

use super::block::{Input, Quant};
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::movement::turn::{NARROW, Turn, WIDE, blocks};
use crate::movement::{Element, permute};
use crate::panel::Kind;
use crate::quantize::{Quantized, steps};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "layout";

/// `[n, c, pixels]` to `[n, pixels, c]`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn to_nhwc<T: Element>(exec: &Exec, x: &[T], shape: [usize; 3], y: &mut [T]) -> Result {
    permute(exec, x, &shape, &[0, 2, 1], y)
}

/// `[n, pixels, c]` to `[n, c, pixels]`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn to_nchw<T: Element>(exec: &Exec, x: &[T], [n, c, pixels]: [usize; 3], y: &mut [T]) -> Result {
    permute(exec, x, &[n, pixels, c], &[0, 2, 1], y)
}

/// Quantizes `[n, c, pixels]` to `[n, pixels, c]`, as ONNX `QuantizeLinear` with one scale.
///
/// # Errors
/// A slice has another length than the shape, or `T` has over 8 bits.
pub fn quantize_to_nhwc<T: Quantized + Element>(
    exec: &Exec,
    x: &[f32],
    [n, c, pixels]: [usize; 3],
    (scale, zero): (f32, i32),
    y: &mut [T],
) -> Result {
    let len = product(NAME, &[n, c, pixels])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    require(NAME, size_of::<T>() == 1, "only 8-bit integers are supported")?;
    let to = SharedMut::new(y);
    blocks(exec, [n, c, pixels], &|image, channels, range| {
        let start = image * c * pixels;
        let y = to.ptr().wrapping_add(start + range.start * c + channels.start).cast::<u8>();
        let pitch = range.len().next_multiple_of(16);
        with_scratch(NARROW * WIDE / 4, |scratch| {
            let block = scratch.as_mut_ptr().cast::<u8>();
            for (i, channel) in channels.clone().enumerate() {
                let x = &x[start + channel * pixels + range.start..][..range.len()];
                let y = block.wrapping_add(i * pitch);
                exec.isa().dispatch(QuantizeRow { x, y, scale, zero, limits: (T::MIN, T::MAX) });
            }
            let (rows, columns) = (channels.len(), range.len());
            exec.isa().dispatch(Turn { x: block.cast_const(), ld_x: pitch, rows, columns, y, ld_y: c });
        });
    });
    Ok(())
}

/// Dequantizes `[n, pixels, c]` (NHWC) to floats `[n, c, pixels]`, as ONNX `DequantizeLinear`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn dequantize_to_nchw(exec: &Exec, x: Quant<'_>, [n, c, pixels]: [usize; 3], y: &mut [f32]) -> Result {
    if let Quant::F32(x) = x {
        return to_nchw(exec, x, [n, c, pixels], y);
    }
    let len = product(NAME, &[n, c, pixels])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    let (input, to) = (x.input(), SharedMut::new(y));
    blocks(exec, [n, c, pixels], &|image, channels, range| {
        let start = image * c * pixels;
        let x = input.byte(start + range.start * c + channels.start);
        let pitch = range.len().next_multiple_of(16);
        with_scratch(NARROW * WIDE / 4, |scratch| {
            let y = scratch.as_mut_ptr().cast::<u8>();
            let (rows, columns) = (range.len(), channels.len());
            exec.isa().dispatch(Turn { x, ld_x: c, rows, columns, y, ld_y: pitch });
            for (i, channel) in channels.clone().enumerate() {
                let x = Input { data: y.wrapping_add(i * pitch), ..input };
                // SAFETY: each block owns its elements of the result.
                let y = unsafe { to.slice(start + channel * pixels + range.start, range.len()) };
                exec.isa().dispatch(DequantizeRow { x, y });
            }
        });
    });
    Ok(())
}

/// `y` covers as many bytes as `x` has elements.
struct QuantizeRow<'a> {
    x: &'a [f32],
    y: *mut u8,
    scale: f32,
    zero: i32,
    limits: (i32, i32),
}

impl Kernel for QuantizeRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scale, zero) = (s.splat(self.scale), s.splat_i(self.zero));
        let mut i = 0;
        while i < self.x.len() {
            let n = (self.x.len() - i).min(S::LANES);
            // SAFETY: `n` elements are left in both.
            unsafe {
                let v = steps(s, s.load_bits(self.x.as_ptr().add(i), low_bits(n)), scale, zero, self.limits);
                s.store_low8_n(self.y.add(i), s.add_i(v, zero), n);
            }
            i += n;
        }
    }
}

struct DequantizeRow<'a> {
    x: Input,
    y: &'a mut [f32],
}

impl Kernel for DequantizeRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        debug_assert!(self.x.kind != Kind::F32);
        // SAFETY: the scratch row has as many elements as `y`.
        unsafe { self.x.read(s, 0, self.y.len(), self.y.as_mut_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{QuantScales, quantize};
    use crate::testing::{Guarded, Random, execs};

    const SHAPES: &[[usize; 3]] = &[
        [1, 1, 1],
        [2, 3, 5],
        [1, 3, 1000],
        [2, 4, 49],
        [1, 8, 33],
        [3, 16, 17],
        [1, 24, 300],
        [1, 70, 260],
        [2, 130, 49],
        [1, 17, 600],
        [0, 3, 4],
    ];

    fn nhwc<T: Copy>(x: &[T], [n, c, pixels]: [usize; 3]) -> Vec<T> {
        (0..n * c * pixels).map(|i| x[(i / (pixels * c) * c + i % c) * pixels + i / c % pixels]).collect()
    }

    #[test]
    fn swaps_the_layout_as_the_definition() {
        let mut random = Random::new(2);
        for &shape in SHAPES {
            let len = shape.iter().product();
            let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            let floats = random.vec(len);
            let (want_bytes, want_floats) = (nhwc(&bytes, shape), nhwc(&floats, shape));
            for exec in execs() {
                let (mut x, mut y) = (Guarded::new(&bytes), Guarded::new(&vec![0u8; len]));
                to_nhwc(&exec, x.get(), shape, y.get()).unwrap();
                assert_eq!(y.get(), want_bytes, "{shape:?} {exec:?}");
                x.get().fill(0);
                to_nchw(&exec, y.get(), shape, x.get()).unwrap();
                assert_eq!(x.get(), bytes, "{shape:?} {exec:?}");
                let (mut x, mut y) = (Guarded::new(&floats), Guarded::new(&vec![0f32; len]));
                to_nhwc(&exec, x.get(), shape, y.get()).unwrap();
                assert_eq!(y.get(), want_floats, "{shape:?} {exec:?}");
                x.get().fill(0.0);
                to_nchw(&exec, y.get(), shape, x.get()).unwrap();
                assert_eq!(x.get(), floats, "{shape:?} {exec:?}");
            }
        }
    }

    #[test]
    fn converts_on_the_way() {
        let mut random = Random::new(4);
        for &shape in SHAPES {
            let x: Vec<f32> = random.vec(shape.iter().product()).iter().map(|v| v * 30.0).collect();
            let (scale, zero) = (0.23f32, -5);
            for exec in execs() {
                let mut planes = vec![0i8; x.len()];
                quantize(&exec, &x, &mut planes, &QuantScales::per_tensor(&scale, &zero, x.len())).unwrap();
                let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&vec![0i8; x.len()]));
                quantize_to_nhwc(&exec, gx.get(), shape, (scale, zero), y.get()).unwrap();
                assert_eq!(y.get(), nhwc(&planes, shape), "{shape:?} {exec:?}");
                let want: Vec<f32> = planes.iter().map(|&q| (i32::from(q) - zero) as f32 * scale).collect();
                dequantize_to_nchw(&exec, Quant::I8(y.get(), scale, zero), shape, gx.get()).unwrap();
                assert_eq!(gx.get(), want, "{shape:?} {exec:?}");
            }
        }
    }

    #[test]
    fn refuses_other_lengths_and_wide_integers() {
        let exec = &execs()[0];
        assert!(to_nhwc(exec, &[1u8; 6], [1, 2, 3], &mut [0; 5]).is_err());
        assert!(to_nchw(exec, &[1u8; 5], [1, 2, 3], &mut [0; 6]).is_err());
        assert!(quantize_to_nhwc(exec, &[1.0; 6], [1, 2, 3], (1.0, 0), &mut [0i8; 5]).is_err());
        assert!(quantize_to_nhwc(exec, &[1.0; 6], [1, 2, 3], (1.0, 0), &mut [0i16; 6]).is_err());
        assert!(dequantize_to_nchw(exec, Quant::U8(&[1; 6], 1.0, 0), [1, 2, 2], &mut [0.0; 6]).is_err());
    }
}
