use anyhow::{Result, bail};
use narrowbit_tensor::Tensor;
use serde::Serialize;

/// How far values are from their reference, summed over tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Deviation {
    count: u64,
    signal: f64,
    noise: f64,
    dot: f64,
    other: f64,
    max: f64,
    /// Sum of x − r.
    sum: f64,
    /// Sum of |r − x| / (|r| + |x|).
    relative: f64,
    /// Values that are not both zero.
    compared: u64,
}

/// The figures of a deviation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Signal to quantization noise ratio, `10·log10(Σ ref² / Σ (ref − x)²)`, in dB; infinite (null) where equal.
    pub sqnr_db: f64,
    /// Cosine of the angle between both.
    pub cosine: f64,
    /// The largest absolute difference.
    pub max_error: f64,
    /// The mean of `x − ref`: errors of one sign, which the next product adds up.
    pub mean_error: f64,
    /// Symmetric mean absolute percentage error: the mean of `|ref − x| / (|ref| + |x|)` where not both are zero, as a share.
    pub smape: f64,
}

impl Deviation {
    /// Adds a tensor beside its reference.
    pub fn add(&mut self, reference: &Tensor, x: &Tensor) -> Result<()> {
        if reference.shape() != x.shape() {
            bail!("the outputs have different shapes, {:?} and {:?}", reference.shape(), x.shape());
        }
        self.add_slices(&reference.to_f32s()?, &x.to_f32s()?);
        Ok(())
    }

    /// Adds values beside their reference, of one length.
    pub fn add_slices(&mut self, reference: &[f32], x: &[f32]) {
        for (&r, &x) in reference.iter().zip(x) {
            let (r, x) = (f64::from(r), f64::from(x));
            self.signal += r * r;
            self.noise += (r - x) * (r - x);
            self.dot += r * x;
            self.other += x * x;
            self.max = self.max.max((r - x).abs());
            self.sum += x - r;
            let size = r.abs() + x.abs();
            if size > 0.0 {
                self.relative += (r - x).abs() / size;
                self.compared += 1;
            }
        }
        self.count += reference.len() as u64;
    }

    /// How many values were compared.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// The signal to noise ratio in dB; infinite where both are equal.
    pub fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }

    /// All figures.
    pub fn figures(&self) -> Figures {
        let norm = (self.signal * self.other).sqrt();
        let cosine = if norm == 0.0 { if self.noise == 0.0 { 1.0 } else { 0.0 } } else { self.dot / norm };
        let smape = self.relative / self.compared.max(1) as f64;
        let mean_error = self.sum / self.count.max(1) as f64;
        Figures { sqnr_db: self.sqnr_db(), cosine, max_error: self.max, mean_error, smape }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_noise_against_signal() {
        let mut d = Deviation::default();
        d.add_slices(&[10.0, 0.0], &[9.0, 0.0]);
        assert!((d.sqnr_db() - 20.0).abs() < 1e-9);
        assert_eq!((d.figures().max_error, d.figures().mean_error), (1.0, -0.5));
        // One of 19; two zeros say nothing.
        assert!((d.figures().smape - 1.0 / 19.0).abs() < 1e-12);
        let mut equal = Deviation::default();
        equal.add_slices(&[0.0], &[0.0]);
        assert_eq!((equal.sqnr_db(), equal.figures().cosine), (f64::INFINITY, 1.0));
    }
}
