//! Layer, RMS, group, instance and batch normalisation.

use super::rows::fold;
use crate::activation::Activation;
use crate::buffer::SharedMut;
use crate::elementwise::map;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

/// Elements that one task normalises at least.
const GRAIN: usize = 1 << 13;

/// Parameters of a normalisation over rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerNorm<'a> {
    /// Factor per column.
    pub scale: Option<&'a [f32]>,
    /// Offset per column.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance (or mean square).
    pub epsilon: f32,
    /// Added to x first, element by element (`SkipLayerNormalization`).
    pub skip: Option<&'a [f32]>,
    /// Added to x first, per column.
    pub skip_bias: Option<&'a [f32]>,
}

/// Further results of a normalisation over rows.
#[derive(Debug, Default)]
pub struct LayerNormOutputs<'a> {
    /// Mean of each row (0 for RMS normalisation).
    pub mean: Option<&'a mut [f32]>,
    /// `1 / √(variance + epsilon)` of each row.
    pub inv_std: Option<&'a mut [f32]>,
    /// x + skip + skip bias, of the shape of x.
    pub sum: Option<&'a mut [f32]>,
}

/// `y = (x − mean) / √(variance + ε) · scale + bias` over each row of `[rows, columns]`
/// (ONNX `LayerNormalization`).
///
/// # Errors
/// A slice has another length than the shape.
pub fn layer_norm(
    exec: &Exec,
    x: &[f32],
    y: &mut [f32],
    shape: [usize; 2],
    params: &LayerNorm<'_>,
    outputs: LayerNormOutputs<'_>,
) -> Result {
    rows(exec, x, y, shape, params, outputs, true)
}

/// `y = x / √(mean of squares + ε) · scale + bias` over each row (ONNX `RMSNormalization`).
///
/// # Errors
/// A slice has another length than the shape.
pub fn rms_norm(
    exec: &Exec,
    x: &[f32],
    y: &mut [f32],
    shape: [usize; 2],
    params: &LayerNorm<'_>,
    outputs: LayerNormOutputs<'_>,
) -> Result {
    rows(exec, x, y, shape, params, outputs, false)
}

fn rows(
    exec: &Exec,
    x: &[f32],
    y: &mut [f32],
    [rows, columns]: [usize; 2],
    params: &LayerNorm<'_>,
    mut outputs: LayerNormOutputs<'_>,
    center: bool,
) -> Result {
    const NAME: &str = "layer_norm";
    let len = product(NAME, &[rows, columns])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    for (what, slice) in [("scale", params.scale), ("bias", params.bias), ("skip bias", params.skip_bias)] {
        slice.map_or(Ok(()), |s| exact(NAME, what, s.len(), columns))?;
    }
    params.skip.map_or(Ok(()), |s| exact(NAME, "skip", s.len(), len))?;
    outputs.mean.as_deref().map_or(Ok(()), |s| exact(NAME, "mean", s.len(), rows))?;
    outputs.inv_std.as_deref().map_or(Ok(()), |s| exact(NAME, "inv_std", s.len(), rows))?;
    outputs.sum.as_deref().map_or(Ok(()), |s| exact(NAME, "sum", s.len(), len))?;
    if len == 0 {
        return Ok(());
    }
    let share = |slice: &mut Option<&mut [f32]>| slice.as_deref_mut().map(SharedMut::new);
    let (mean, inv_std) = (share(&mut outputs.mean), share(&mut outputs.inv_std));
    let (sum, y) = (share(&mut outputs.sum), SharedMut::new(y));
    exec.split(rows, GRAIN / columns + 1, &|range| {
        for row in range {
            let at = row * columns;
            // SAFETY: each row owns its elements of every output.
            let y = unsafe { y.slice(at, columns) };
            let input = &x[at..][..columns];
            let skips = params.skip.is_some() || params.skip_bias.is_some();
            if skips || sum.is_some() {
                let skip = params.skip.map(|s| &s[at..][..columns]);
                exec.isa().dispatch(AddSkip { x: input, skip, bias: params.skip_bias, y });
                if let Some(sum) = sum {
                    // SAFETY: as above.
                    unsafe { sum.slice(at, columns) }.copy_from_slice(y);
                }
            }
            let source = if skips { y.as_ptr() } else { input.as_ptr() };
            let job = RowNorm { x: source, y, scale: params.scale, bias: params.bias, epsilon: params.epsilon, center };
            let (m, inv) = exec.isa().dispatch(job);
            for (out, value) in [(mean, m), (inv_std, inv)] {
                if let Some(out) = out {
                    // SAFETY: as above.
                    unsafe { out.slice(row, 1)[0] = value };
                }
            }
        }
    });
    Ok(())
}

struct AddSkip<'a> {
    x: &'a [f32],
    skip: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Kernel for AddSkip<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        while i < self.x.len() {
            let bits = low_bits((self.x.len() - i).min(S::LANES));
            // SAFETY: all slices have the length of x, where `bits` ends.
            unsafe {
                let mut v = s.load_bits(self.x.as_ptr().add(i), bits);
                if let Some(skip) = self.skip {
                    v = s.add(v, s.load_bits(skip.as_ptr().add(i), bits));
                }
                if let Some(bias) = self.bias {
                    v = s.add(v, s.load_bits(bias.as_ptr().add(i), bits));
                }
                s.store_bits(self.y.as_mut_ptr().add(i), v, bits);
            }
            i += S::LANES;
        }
    }
}

/// One row; `x` covers as many elements as `y` and may be it.
struct RowNorm<'a> {
    x: *const f32,
    y: &'a mut [f32],
    scale: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    epsilon: f32,
    center: bool,
}

impl Kernel for RowNorm<'_> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let n = self.y.len();
        // SAFETY: `x` covers the row; it is not written before the last loop below.
        let row = unsafe { std::slice::from_raw_parts(self.x, n) };
        let (mean, variance) = moments(s, row, self.center);
        let inv = 1.0 / (variance + self.epsilon).sqrt();
        let (m, factor) = (s.splat(mean), s.splat(inv));
        let mut i = 0;
        while i < n {
            let bits = low_bits((n - i).min(S::LANES));
            // SAFETY: `bits` ends at the row's end; scale and bias are as long.
            unsafe {
                let v = s.sub(s.load_bits(self.x.add(i), bits), m);
                let mut v = s.mul(v, factor);
                if let Some(scale) = self.scale {
                    v = s.mul(v, s.load_bits(scale.as_ptr().add(i), bits));
                }
                if let Some(bias) = self.bias {
                    v = s.add(v, s.load_bits(bias.as_ptr().add(i), bits));
                }
                s.store_bits(self.y.as_mut_ptr().add(i), v, bits);
            }
            i += S::LANES;
        }
        (mean, inv)
    }
}

/// Mean and variance of a row in two passes, or 0 and the mean square.
#[inline(always)]
fn moments<S: Simd>(s: S, row: &[f32], center: bool) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = if center {
        s.sum(fold(
            s,
            row,
            s.splat(0.0),
            #[inline(always)]
            |a, b| s.add(a, b),
            #[inline(always)]
            |a, b| s.add(a, b),
        )) / n
    } else {
        0.0
    };
    let m = s.splat(mean);
    let squares = fold(
        s,
        row,
        s.splat(0.0),
        #[inline(always)]
        |a, v| {
            let d = s.sub(v, m);
            s.mul_add(d, d, a)
        },
        #[inline(always)]
        |a, b| s.add(a, b),
    );
    (mean, s.sum(squares) / n)
}

/// Normalises each of `groups` groups of channels of `[n, c, inner]`, then scales and
/// offsets per channel (ONNX `GroupNormalization`; `InstanceNormalization` with
/// `groups == c`).
///
/// # Errors
/// A slice has another length than the shape, or the groups don't divide the channels.
pub fn group_norm(
    exec: &Exec,
    x: &[f32],
    y: &mut [f32],
    [n, c, inner]: [usize; 3],
    groups: usize,
    (scale, bias): (&[f32], &[f32]),
    epsilon: f32,
) -> Result {
    const NAME: &str = "group_norm";
    let len = product(NAME, &[n, c, inner])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    exact(NAME, "scale", scale.len(), c)?;
    exact(NAME, "bias", bias.len(), c)?;
    require(NAME, groups > 0 && c.is_multiple_of(groups), "the groups must divide the channels")?;
    if len == 0 {
        return Ok(());
    }
    let y = SharedMut::new(y);
    let (channels, block) = (c / groups, c / groups * inner);
    exec.split(n * groups, GRAIN / block + 1, &|range| {
        for index in range {
            let x = &x[index * block..][..block];
            // SAFETY: each group owns its block.
            let y = unsafe { y.slice(index * block, block) };
            let first = index % groups * channels;
            let (scale, bias) = (&scale[first..][..channels], &bias[first..][..channels]);
            exec.isa().dispatch(Group { x, y, inner, scale, bias, epsilon });
        }
    });
    Ok(())
}

struct Group<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    inner: usize,
    scale: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
}

impl Kernel for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mean, variance) = moments(s, self.x, true);
        let inv = 1.0 / (variance + self.epsilon).sqrt();
        for (i, (&scale, &bias)) in self.scale.iter().zip(self.bias).enumerate() {
            let (m, factor, offset) = (s.splat(mean), s.splat(inv * scale), s.splat(bias));
            let x = self.x[i * self.inner..][..self.inner].as_ptr();
            let y = self.y[i * self.inner..][..self.inner].as_mut_ptr();
            // SAFETY: both have `inner` elements.
            unsafe {
                map(
                    s,
                    x,
                    y,
                    self.inner,
                    #[inline(always)]
                    |v| s.mul_add(s.sub(v, m), factor, offset),
                );
            }
        }
    }
}

/// `y = act(x · scale[channel] + shift[channel])` over `[n, c, inner]`, or over pixels with their channels last as
/// `[pixels, c, 1]`: batch normalisation at inference, with scale `γ / √(variance + ε)` and shift `β − mean · scale`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn batch_norm(
    exec: &Exec,
    x: &[f32],
    y: &mut [f32],
    [n, c, inner]: [usize; 3],
    (scale, shift): (&[f32], &[f32]),
    activation: Activation,
) -> Result {
    const NAME: &str = "batch_norm";
    let len = product(NAME, &[n, c, inner])?;
    exact(NAME, "x", x.len(), len)?;
    exact(NAME, "y", y.len(), len)?;
    exact(NAME, "scale", scale.len(), c)?;
    exact(NAME, "shift", shift.len(), c)?;
    if len == 0 {
        return Ok(());
    }
    let y = SharedMut::new(y);
    if inner == 1 {
        exec.split(n, 2 * GRAIN / c + 1, &|range| {
            let x = &x[range.start * c..range.end * c];
            // SAFETY: each task owns its rows.
            let y = unsafe { y.slice(range.start * c, x.len()) };
            exec.isa().dispatch(AffineRows { x, y, scale, shift, activation });
        });
        return Ok(());
    }
    exec.split(n * c, 2 * GRAIN / inner + 1, &|range| {
        for index in range {
            let x = &x[index * inner..][..inner];
            // SAFETY: each channel owns its plane.
            let y = unsafe { y.slice(index * inner, inner) };
            let (scale, shift) = (scale[index % c], shift[index % c]);
            exec.isa().dispatch(Affine { x, y, scale, shift, activation });
        }
    });
    Ok(())
}

/// Rows with a factor and an offset for each column.
struct AffineRows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    activation: Activation,
}

impl Kernel for AffineRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.scale.len();
        let (scale, shift) = (self.scale.as_ptr(), self.shift.as_ptr());
        for (x, y) in self.x.chunks_exact(c).zip(self.y.chunks_exact_mut(c)) {
            let (x, y) = (x.as_ptr(), y.as_mut_ptr());
            let mut j = 0;
            // SAFETY: whole vectors, then the lanes that are left, of rows that are as long as both vectors.
            unsafe {
                while j + S::LANES <= c {
                    let v = s.mul_add(s.load(x.add(j)), s.load(scale.add(j)), s.load(shift.add(j)));
                    s.store(y.add(j), self.activation.apply(s, v));
                    j += S::LANES;
                }
                if j < c {
                    let bits = low_bits(c - j);
                    let (a, b) = (s.load_bits(scale.add(j), bits), s.load_bits(shift.add(j), bits));
                    let v = s.mul_add(s.load_bits(x.add(j), bits), a, b);
                    s.store_bits(y.add(j), self.activation.apply(s, v), bits);
                }
            }
        }
    }
}

struct Affine<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    scale: f32,
    shift: f32,
    activation: Activation,
}

impl Kernel for Affine<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scale, shift) = (s.splat(self.scale), s.splat(self.shift));
        let activation = self.activation;
        // SAFETY: both slices have the same length.
        unsafe {
            map(
                s,
                self.x.as_ptr(),
                self.y.as_mut_ptr(),
                self.x.len(),
                #[inline(always)]
                |v| activation.apply(s, s.mul_add(v, scale, shift)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, execs};

    fn normalise(row: &[f32], epsilon: f32, center: bool) -> Vec<f64> {
        let n = row.len() as f64;
        let mean = if center { row.iter().map(|&v| f64::from(v)).sum::<f64>() / n } else { 0.0 };
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        row.iter().map(|&v| (f64::from(v) - mean) / (variance + f64::from(epsilon)).sqrt()).collect()
    }

    #[test]
    fn normalises_rows_with_and_without_skip() {
        let mut r = Random::new(13);
        for exec in execs() {
            for [rows, columns] in [[1, 1], [3, 7], [50, 384], [5, 33]] {
                let len = rows * columns;
                let (x, skip) = (r.vec(len), r.vec(len));
                let (scale, bias, skip_bias) = (r.vec(columns), r.vec(columns), r.vec(columns));
                for (center, with_skip) in [(true, false), (true, true), (false, false), (false, true)] {
                    let sum: Vec<f32> = (0..len)
                        .map(|i| if with_skip { x[i] + skip[i] + skip_bias[i % columns] } else { x[i] })
                        .collect();
                    let want: Vec<f32> = sum
                        .chunks(columns)
                        .flat_map(|row| normalise(row, 1e-5, center))
                        .enumerate()
                        .map(|(i, v)| (v * f64::from(scale[i % columns]) + f64::from(bias[i % columns])) as f32)
                        .collect();
                    let params = LayerNorm {
                        scale: Some(&scale),
                        bias: Some(&bias),
                        epsilon: 1e-5,
                        skip: with_skip.then_some(&skip[..]),
                        skip_bias: with_skip.then_some(&skip_bias[..]),
                    };
                    let (mut gx, mut y) = (Guarded::new(&x), Guarded::new(&x));
                    let (mut mean, mut inv, mut sums) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; len]);
                    let outputs =
                        LayerNormOutputs { mean: Some(&mut mean), inv_std: Some(&mut inv), sum: Some(&mut sums) };
                    let run = if center { layer_norm } else { rms_norm };
                    run(&exec, gx.get(), y.get(), [rows, columns], &params, outputs).unwrap();
                    // Rounding of mean and variance in f32 vectors.
                    assert_close(y.get(), &want, 2e-5, &format!("{rows}x{columns} {exec:?}"));
                    assert_close(&sums, &sum, 1e-6, "sum");
                    assert!(inv.iter().all(|v| v.is_finite()));
                }
            }
        }
    }

    #[test]
    fn normalises_groups_and_channels() {
        let mut r = Random::new(14);
        let (n, c, inner) = (2, 6, 37);
        let (x, scale, bias) = (r.vec(n * c * inner), r.vec(c), r.vec(c));
        for exec in execs() {
            for groups in [1, 3, 6] {
                let want: Vec<f32> = x
                    .chunks(c / groups * inner)
                    .flat_map(|group| normalise(group, 1e-3, true))
                    .enumerate()
                    .map(|(i, v)| (v * f64::from(scale[i / inner % c]) + f64::from(bias[i / inner % c])) as f32)
                    .collect();
                let mut y = Guarded::new(&x);
                group_norm(&exec, &x, y.get(), [n, c, inner], groups, (&scale, &bias), 1e-3).unwrap();
                assert_close(y.get(), &want, 2e-5, "group");
            }
            let want: Vec<f32> =
                x.iter().enumerate().map(|(i, v)| (v * scale[i / inner % c] + bias[i / inner % c]).max(0.0)).collect();
            let mut y = Guarded::new(&x);
            batch_norm(&exec, &x, y.get(), [n, c, inner], (&scale, &bias), Activation::Relu).unwrap();
            assert_close(y.get(), &want, 1e-6, "batch");
            // The same with channels last: the same bits.
            let last = |v: &[f32]| -> Vec<f32> {
                (0..v.len()).map(|i| v[i / (c * inner) * c * inner + i % c * inner + i / c % inner]).collect()
            };
            let (planes, x) = (y.get().to_vec(), last(&x));
            let (mut x, mut y) = (Guarded::new(&x), Guarded::new(&x));
            batch_norm(&exec, x.get(), y.get(), [n * inner, c, 1], (&scale, &bias), Activation::Relu).unwrap();
            assert_eq!(y.get(), last(&planes), "{exec:?}");
        }
        let exec = Exec::new(crate::Isa::detect(), 1);
        let mut y = vec![0.0; x.len()];
        assert!(group_norm(&exec, &x, &mut y, [n, c, inner], 4, (&scale, &bias), 0.0).is_err());
    }
}
