//! Discrete Fourier transforms of any length in f64.

use std::f64::consts::PI;

use narrowbit_ir::{OpError, check_size};
use narrowbit_tensor::DType;

/// A complex number: real and imaginary part.
pub(crate) type Complex = [f64; 2];

fn times([a, b]: Complex, [c, d]: Complex) -> Complex {
    [a * c - b * d, a * d + b * c]
}

/// `exp(-πi · numerator / denominator)`.
fn root(numerator: usize, denominator: usize) -> Complex {
    let angle = PI * numerator as f64 / denominator as f64;
    [libm::cos(angle), -libm::sin(angle)]
}

/// Transforms of one length: radix 2 where that is a power of two, else a convolution of such a length with a chirp.
///
/// Source: L. Bluestein, A linear filtering approach to the computation of discrete Fourier transform (1970):
/// with `kj = (k² + j² - (k - j)²) / 2`, `X[k] = w[k] · Σ (x[j] w[j]) / w[k - j]` for `w[k] = exp(-πi k² / n)`.
pub(crate) struct Fft {
    n: usize,
    /// `exp(-2πi k / m)` for `k < m / 2`, `m` the power of two.
    twiddles: Vec<Complex>,
    chirp: Option<Chirp>,
    work: Vec<Complex>,
}

struct Chirp {
    /// `w`.
    factors: Vec<Complex>,
    /// The transform of `1 / w`, laid out for a circular convolution, over its length.
    spectrum: Vec<Complex>,
}

impl Fft {
    /// Transforms of `n` numbers.
    ///
    /// # Errors
    /// When `n` is 0 or the tables would be too large.
    pub fn new(n: usize) -> Result<Fft, OpError> {
        let m = if n.is_power_of_two() { Some(n) } else { n.checked_mul(2).and_then(usize::checked_next_power_of_two) };
        let m = m.filter(|_| n > 0).ok_or_else(|| OpError::Value(format!("a Fourier transform of length {n}")))?;
        check_size(DType::F64, &[2, m])?;
        let twiddles = (0..m / 2).map(|k| root(2 * k, m)).collect();
        let mut fft = Fft { n, twiddles, chirp: None, work: Vec::new() };
        if n == m {
            return Ok(fft);
        }
        // k² modulo 2n: the angle stays exact.
        let factors: Vec<Complex> = (0..n as u128).map(|k| root(((k * k) % (2 * n as u128)) as usize, n)).collect();
        let mut spectrum = vec![[0.0; 2]; m];
        for (k, &[re, im]) in factors.iter().enumerate() {
            spectrum[k] = [re, -im];
            spectrum[(m - k) % m] = [re, -im];
        }
        radix2(&mut spectrum, &fft.twiddles);
        spectrum.iter_mut().flatten().for_each(|v| *v /= m as f64);
        fft.chirp = Some(Chirp { factors, spectrum });
        fft.work = vec![[0.0; 2]; m];
        Ok(fft)
    }

    /// Transforms `n` numbers in place.
    pub fn forward(&mut self, x: &mut [Complex]) {
        let x = &mut x[..self.n];
        let Some(chirp) = &self.chirp else { return radix2(x, &self.twiddles) };
        let work = &mut self.work;
        work.fill([0.0; 2]);
        work.iter_mut().zip(x.iter().zip(&chirp.factors)).for_each(|(to, (&v, &w))| *to = times(v, w));
        radix2(work, &self.twiddles);
        // Conjugated, so that the same transform leads back.
        work.iter_mut().zip(&chirp.spectrum).for_each(|(v, &s)| {
            let [re, im] = times(*v, s);
            *v = [re, -im];
        });
        radix2(work, &self.twiddles);
        for ((to, &[re, im]), &w) in x.iter_mut().zip(work.iter()).zip(&chirp.factors) {
            *to = times([re, -im], w);
        }
    }

    /// The inverse of [`Fft::forward`], divided by `n`.
    pub fn inverse(&mut self, x: &mut [Complex]) {
        let n = self.n as f64;
        let x = &mut x[..self.n];
        // Real and imaginary part change places: i·conj(v).
        x.iter_mut().for_each(|v| v.swap(0, 1));
        self.forward(x);
        x.iter_mut().for_each(|v| *v = [v[1] / n, v[0] / n]);
    }
}

/// Decimation in time of a power of two; `twiddles` are `exp(-2πi k / len)` for the first half of `k`.
fn radix2(x: &mut [Complex], twiddles: &[Complex]) {
    let n = x.len();
    if n < 2 {
        return;
    }
    let shift = usize::BITS - n.trailing_zeros();
    for i in 0..n {
        let j = i.reverse_bits() >> shift;
        if i < j {
            x.swap(i, j);
        }
    }
    let mut half = 1;
    while half < n {
        let stride = n / (2 * half);
        for block in x.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for (k, (a, b)) in low.iter_mut().zip(high).enumerate() {
                let t = times(*b, twiddles[k * stride]);
                *b = [a[0] - t[0], a[1] - t[1]];
                *a = [a[0] + t[0], a[1] + t[1]];
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(x: &[Complex]) -> Vec<Complex> {
        let n = x.len();
        let sum = |k: usize| {
            let terms = x.iter().enumerate().map(|(j, &v)| times(v, root(2 * (k * j % n), n)));
            terms.fold([0.0; 2], |a, b| [a[0] + b[0], a[1] + b[1]])
        };
        (0..n).map(sum).collect()
    }

    #[test]
    fn equals_the_definition_at_any_length_and_back() {
        for n in (1..40).chain([60, 64, 97, 128, 200, 257]) {
            let x: Vec<Complex> = (0..n).map(|i| [(i * 37 % 11) as f64 - 5.0, (i * 17 % 7) as f64 - 3.0]).collect();
            let (mut fft, mut y) = (Fft::new(n).unwrap(), x.clone());
            fft.forward(&mut y);
            // Sums of up to 257 numbers up to 6, rounded to about 1e-16 of them.
            let near = |a: &[Complex], b: &[Complex]| {
                a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-10)
            };
            assert!(near(&y, &direct(&x)), "{n}");
            fft.inverse(&mut y);
            assert!(near(&y, &x), "{n}");
        }
    }

    #[test]
    fn refuses_no_length_and_tables_without_bounds() {
        assert!(Fft::new(0).is_err());
        assert!(Fft::new(usize::MAX).is_err());
        assert!(Fft::new((1 << 40) + 1).is_err());
    }
}
