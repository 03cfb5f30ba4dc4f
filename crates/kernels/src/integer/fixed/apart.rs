//! Depthwise convolution to plain sums: each channel alone, channels innermost.

use crate::buffer::SharedMut;
use crate::conv::Conv2dParams;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd};

use super::FixedElement;

const NAME: &str = "sums apart";
/// Elements of the result that one task makes at least.
const GRAIN: usize = 1 << 12;

/// Weights and biases of a depthwise convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApartWeights {
    params: Conv2dParams,
    output: [usize; 2],
    /// `[kh · kw, c]`.
    weights: Vec<i32>,
    bias: Vec<i32>,
    /// The zero point of the data.
    zero: i32,
}

impl ApartWeights {
    /// From weights `[c, 1, kh, kw]` less their zero points, a bias for each channel or none, and the zero point of the
    /// data, which padding holds.
    ///
    /// # Errors
    /// `p` is not a depthwise convolution with an output channel for each channel, or a slice has another length.
    pub fn new(p: &Conv2dParams, weights: &[i32], bias: &[i32], zero: i32) -> Result<ApartWeights> {
        let output = p.output()?;
        require(NAME, p.groups == p.c && p.oc == p.c, "groups and output channels must equal the input channels")?;
        let taps = product(NAME, &[p.kh, p.kw])?;
        exact(NAME, "weights", weights.len(), product(NAME, &[p.c, taps])?)?;
        if !bias.is_empty() {
            exact(NAME, "bias", bias.len(), p.c)?;
        }
        let turned = (0..taps).flat_map(|t| (0..p.c).map(move |c| weights[c * taps + t])).collect();
        let bias = if bias.is_empty() { vec![0; p.c] } else { bias.to_vec() };
        Ok(ApartWeights { params: *p, output, weights: turned, bias, zero })
    }

    /// Elements of the result.
    #[allow(clippy::len_without_is_empty)] // A convolution has a result.
    pub fn len(&self) -> usize {
        self.params.n * self.output[0] * self.output[1] * self.params.c
    }
}

/// `y = bias + Σ (x − zero) · weight` of each channel's window, in 32 bits that wrap; `x` is `[n, h, w, c]`, `y`
/// `[n, oh, ow, c]`.
///
/// # Errors
/// A slice has another length.
pub fn sums_apart<A: FixedElement>(exec: &Exec, x: &[A], weights: &ApartWeights, y: &mut [i32]) -> Result {
    let (p, [oh, ow]) = (&weights.params, weights.output);
    exact(NAME, "x", x.len(), product(NAME, &[p.n, p.h, p.w, p.c])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[p.n, oh, ow, p.c])?)?;
    let out = SharedMut::new(y);
    exec.split(p.n * oh * ow, GRAIN / p.c.max(1) + 1, &|range| {
        // SAFETY: ranges of pixels lie within `y` and do not overlap.
        let y = unsafe { out.slice(range.start * p.c, range.len() * p.c) };
        exec.isa().dispatch(Pixels { x, weights, first: range.start, y });
    });
    Ok(())
}

/// Pixels of the result from the `first` on.
struct Pixels<'a, A> {
    x: &'a [A],
    weights: &'a ApartWeights,
    first: usize,
    y: &'a mut [i32],
}

impl<A: FixedElement> Kernel for Pixels<'_, A> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (p, [oh, ow]) = (&self.weights.params, self.weights.output);
        for (i, y) in self.y.chunks_exact_mut(p.c.max(1)).enumerate() {
            let at = self.first + i;
            let (n, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
            y.copy_from_slice(&self.weights.bias);
            for (tap, weights) in self.weights.weights.chunks_exact(p.c.max(1)).enumerate() {
                let iy = (oy * p.strides[0] + tap / p.kw * p.dilations[0]).wrapping_sub(p.pads[0]);
                let ix = (ox * p.strides[1] + tap % p.kw * p.dilations[1]).wrapping_sub(p.pads[1]);
                if iy < p.h && ix < p.w {
                    let pixel = &self.x[((n * p.h + iy) * p.w + ix) * p.c..][..p.c];
                    add(y, pixel, weights, self.weights.zero);
                }
            }
        }
    }
}

#[inline(always)]
fn add<A: FixedElement>(y: &mut [i32], x: &[A], weights: &[i32], zero: i32) {
    for ((y, x), w) in y.iter_mut().zip(x).zip(weights) {
        *y = y.wrapping_add(x.wide().wrapping_sub(zero).wrapping_mul(*w));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    fn params(c: usize, [kh, kw]: [usize; 2], strides: [usize; 2], dilations: [usize; 2]) -> Conv2dParams {
        let pads = [1, 0, 2, 1];
        Conv2dParams { n: 2, c, h: 7, w: 9, oc: c, kh, kw, strides, pads, dilations, groups: c }
    }

    /// The definition, on padding that is there.
    fn plain(p: &Conv2dParams, x: &[i64], w: &[i32], bias: &[i32], zero: i64) -> Vec<i32> {
        let [oh, ow] = p.output().unwrap();
        let sum = |i: usize| {
            let (c, ox, oy, n) = (i % p.c, i / p.c % ow, i / p.c / ow % oh, i / p.c / ow / oh);
            let mut sum = i64::from(bias.get(c).copied().unwrap_or(0));
            for (t, &w) in w[c * p.kh * p.kw..][..p.kh * p.kw].iter().enumerate() {
                let y = (oy * p.strides[0] + t / p.kw * p.dilations[0]) as i64 - p.pads[0] as i64;
                let z = (ox * p.strides[1] + t % p.kw * p.dilations[1]) as i64 - p.pads[1] as i64;
                let inside = (0..p.h as i64).contains(&y) && (0..p.w as i64).contains(&z);
                let at = ((n * p.h) as i64 + y) * p.w as i64 + z;
                let value = if inside { x[at as usize * p.c + c] } else { zero };
                sum += (value - zero) * i64::from(w);
            }
            sum as i32
        };
        (0..p.n * oh * ow * p.c).map(sum).collect()
    }

    fn check<A: FixedElement>(p: &Conv2dParams, spread: usize, zero: i32) {
        let mut random = Random::new((p.c * p.kw) as u64);
        let x: Vec<A> =
            (0..p.n * p.h * p.w * p.c).map(|_| A::low(random.below(spread) as i32 - spread as i32 / 2)).collect();
        let wide: Vec<i64> = x.iter().map(|x| x.wide().into()).collect();
        let w: Vec<i32> = (0..p.c * p.kh * p.kw).map(|_| random.below(400) as i32 - 200).collect();
        let bias: Vec<i32> = (0..p.c).map(|_| random.below(4000) as i32 - 2000).collect();
        for bias in [&[][..], &bias] {
            let want = plain(p, &wide, &w, bias, zero.into());
            let weights = ApartWeights::new(p, &w, bias, zero).unwrap();
            for exec in execs() {
                let (mut x, mut y) = (Guarded::new(&x), Guarded::new(&vec![0; want.len()]));
                sums_apart(&exec, x.get(), &weights, y.get()).unwrap();
                assert_eq!(y.get(), want, "{p:?} {exec:?}");
            }
        }
    }

    #[test]
    fn adds_up_windows_of_each_channel() {
        for (c, kernel) in [(1, [3, 3]), (2, [2, 3]), (5, [3, 1]), (16, [3, 3]), (67, [3, 3]), (130, [1, 1])] {
            for (strides, dilations) in [([1, 1], [1, 1]), ([2, 1], [1, 2])] {
                let p = params(c, kernel, strides, dilations);
                check::<i8>(&p, 256, -7);
                check::<u8>(&p, 256, 100);
                check::<i32>(&p, 1 << 20, 0);
            }
        }
    }

    #[test]
    fn refuses_other_convolutions_and_lengths() {
        let p = params(4, [3, 3], [1, 1], [1, 1]);
        assert!(ApartWeights::new(&Conv2dParams { groups: 2, ..p }, &[0; 72], &[], 0).is_err());
        assert!(ApartWeights::new(&p, &[0; 35], &[], 0).is_err());
        assert!(ApartWeights::new(&p, &[0; 36], &[0; 3], 0).is_err());
        let weights = ApartWeights::new(&p, &[0; 36], &[], 0).unwrap();
        assert!(sums_apart(&execs()[0], &[0i8; 5], &weights, &mut [0; 5]).is_err());
    }
}
