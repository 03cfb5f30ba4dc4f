//! NCHW to NHWC and back, with the conversion between floats and integers on the way.

use std::ops::Range;

use super::block::{Input, Quant};
use crate::buffer::{SharedMut, with_scratch};
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::movement::{Element, permute};
use crate::panel::Kind;
use crate::quantize::{Quantized, steps};
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "layout";

/// A block: the channels and pixels that one step transposes.
const CHANNELS: usize = 64;
const PIXELS: usize = 256;
/// Elements that one task moves at least.
const GRAIN: usize = 1 << 15;
/// Channels up to which pixels are gathered one by one.
const NARROW: usize = 4;

/// `[n, c, pixels]` to `[n, pixels, c]`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn to_nhwc<T: Element>(exec: &Exec, x: &[T], shape: [usize; 3], y: &mut [T]) -> Result {
    swap(exec, x, shape, y)
}

/// `[n, pixels, c]` to `[n, c, pixels]`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn to_nchw<T: Element>(exec: &Exec, x: &[T], [n, c, pixels]: [usize; 3], y: &mut [T]) -> Result {
    swap(exec, x, [n, pixels, c], y)
}

/// `[n, rows, columns]` to `[n, columns, rows]`.
fn swap<T: Element>(exec: &Exec, x: &[T], [n, rows, columns]: [usize; 3], y: &mut [T]) -> Result {
    let len = product(NAME, &[n, rows, columns])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    if rows == 1 || columns == 1 {
        y.copy_from_slice(x);
        return Ok(());
    }
    let narrow = rows.min(columns) <= NARROW;
    if size_of::<T>() != 1 && !(narrow && size_of::<T>() == 4) {
        return permute(exec, x, &[n, rows, columns], &[0, 2, 1], y);
    }
    let (from, to) = (Source(x.as_ptr()), SharedMut::new(y));
    blocks(exec, [n, rows, columns], &|image, r, c| {
        let start = image * rows * columns;
        let x = from.at(start + r.start * columns + c.start);
        let y = to.ptr().wrapping_add(start + c.start * rows + r.start);
        exec.isa().dispatch(Transpose { x, ld_x: columns, rows: r.len(), columns: c.len(), y, ld_y: rows });
    });
    Ok(())
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
        with_scratch(CHANNELS * PIXELS / 4, |scratch| {
            let block = scratch.as_mut_ptr().cast::<u8>();
            for (i, channel) in channels.clone().enumerate() {
                let x = &x[start + channel * pixels + range.start..][..range.len()];
                let y = block.wrapping_add(i * pitch);
                exec.isa().dispatch(QuantizeRow { x, y, scale, zero, limits: (T::MIN, T::MAX) });
            }
            let (rows, columns) = (channels.len(), range.len());
            exec.isa().dispatch(Transpose { x: block.cast_const(), ld_x: pitch, rows, columns, y, ld_y: c });
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
        with_scratch(CHANNELS * PIXELS / 4, |scratch| {
            let y = scratch.as_mut_ptr().cast::<u8>();
            let (rows, columns) = (range.len(), channels.len());
            exec.isa().dispatch(Transpose { x, ld_x: c, rows, columns, y, ld_y: pitch });
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

/// Calls `body(image, rows, columns)` for blocks of `[n, rows, columns]`: at most
/// [`PIXELS`] along the longer side and [`CHANNELS`] along the other.
fn blocks(exec: &Exec, [n, rows, columns]: [usize; 3], body: &(dyn Fn(usize, Range<usize>, Range<usize>) + Sync)) {
    if n * rows * columns == 0 {
        return;
    }
    let (high, wide) = if rows < columns { (CHANNELS, PIXELS) } else { (PIXELS, CHANNELS) };
    let (down, across) = (rows.div_ceil(high), columns.div_ceil(wide));
    let size = high.min(rows) * wide.min(columns);
    exec.split(n * down * across, GRAIN.div_ceil(size), &|range| {
        for index in range {
            let (image, block) = (index / (down * across), index % (down * across));
            // Neighbours that write to the same rows of the result follow each other.
            let (i, j) = (block % down, block / down);
            body(image, i * high..rows.min((i + 1) * high), j * wide..columns.min((j + 1) * wide));
        }
    });
}

#[derive(Clone, Copy)]
struct Source<T>(*const T);
// SAFETY: only read, while the slice that it came from is borrowed.
unsafe impl<T: Sync> Send for Source<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Source<T> {}
impl<T> Source<T> {
    fn at(&self, offset: usize) -> *const T {
        self.0.wrapping_add(offset)
    }
}

/// `x` covers `rows × columns` at `ld_x`, `y` the transpose at `ld_y`, of which no other
/// task writes an element.
struct Transpose<T> {
    x: *const T,
    ld_x: usize,
    rows: usize,
    columns: usize,
    y: *mut T,
    ld_y: usize,
}

impl<T: Element> Kernel for Transpose<T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the struct's contract.
        unsafe {
            match (self.rows, self.columns) {
                (2, _) => self.few_rows::<2>(),
                (3, _) => self.few_rows::<3>(),
                (4, _) => self.few_rows::<4>(),
                (_, 2) => self.few_columns::<2>(),
                (_, 3) => self.few_columns::<3>(),
                (_, 4) => self.few_columns::<4>(),
                _ if size_of::<T>() == 1 => self.bytes(s),
                _ => self.plain(),
            }
        }
    }
}

impl<T: Element> Transpose<T> {
    #[inline(always)]
    unsafe fn few_rows<const N: usize>(self) {
        for c in 0..self.columns {
            for r in 0..N {
                // SAFETY: the struct's contract.
                unsafe { *self.y.add(c * self.ld_y + r) = *self.x.add(r * self.ld_x + c) };
            }
        }
    }

    #[inline(always)]
    unsafe fn few_columns<const N: usize>(self) {
        for r in 0..self.rows {
            for c in 0..N {
                // SAFETY: the struct's contract.
                unsafe { *self.y.add(c * self.ld_y + r) = *self.x.add(r * self.ld_x + c) };
            }
        }
    }

    #[inline(always)]
    unsafe fn plain(self) {
        for c in 0..self.columns {
            for r in 0..self.rows {
                // SAFETY: the struct's contract.
                unsafe { *self.y.add(c * self.ld_y + r) = *self.x.add(r * self.ld_x + c) };
            }
        }
    }

    /// Tiles of 16 × 16; the last ones overlap those before them.
    #[inline(always)]
    unsafe fn bytes<S: Simd>(self, s: S) {
        let (x, y) = (self.x.cast::<u8>(), self.y.cast::<u8>());
        let (high, wide) = (self.rows.min(16), self.columns.min(16));
        for c in (0..self.columns).step_by(16) {
            let c = c.min(self.columns - wide);
            for r in (0..self.rows).step_by(16) {
                let r = r.min(self.rows - high);
                // SAFETY: the tile lies in both matrices.
                unsafe {
                    let (from, to) = (x.add(r * self.ld_x + c), y.add(c * self.ld_y + r));
                    if (high, wide) == (16, 16) {
                        s.transpose_bytes(from, self.ld_x, 16, 16, to, self.ld_y);
                    } else {
                        s.transpose_bytes(from, self.ld_x, high, wide, to, self.ld_y);
                    }
                }
            }
        }
    }
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
