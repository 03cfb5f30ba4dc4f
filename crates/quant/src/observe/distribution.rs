use narrowbit_tensor::minifloat;

use super::{Histogram, Range};
use crate::scheme::NumberFormat;

/// The range whose fp8 scale is `σ(x) / σ(fp8 values)`: the tensor's values are spread as the format's own.
///
/// Source: `compute_scale_zp_float8` of ONNX Runtime's `quant_utils`. The standard deviation is that of the
/// recorded distribution, each bin's values counted at its middle. `None` for formats that are not fp8.
pub fn range(h: &Histogram, format: NumberFormat) -> Option<Range> {
    let most = f64::from(format.float_max()?);
    let half = h.width() / 2.0;
    let cells = || h.counts().iter().enumerate().filter(|(_, c)| **c > 0).map(|(i, &c)| (h.edge(i) + half, c as f64));
    let total: f64 = cells().map(|(_, c)| c).sum();
    let mean = cells().map(|(x, c)| x * c).sum::<f64>() / total.max(1.0);
    let variance = cells().map(|(x, c)| (x - mean).powi(2) * c).sum::<f64>() / total.max(1.0);
    let magnitude = f64::from(scale(variance.sqrt() as f32, format)?) * most;
    Some(Range { min: -magnitude, max: magnitude })
}

/// `σ / σ(fp8 values)`, where the latter is the standard deviation of all finite values of the format; `None` for
/// formats that are not fp8. In f32, as there.
pub fn scale(deviation: f32, format: NumberFormat) -> Option<f32> {
    format.float_max()?;
    let values = (0..=255u8).map(|code| f64::from(minifloat::decode(format.dtype(), code))).filter(|v| v.is_finite());
    // Symmetric about zero: the mean is 0, and −0 counts as in ONNX Runtime.
    let (n, squares) = values.fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + v * v));
    Some(deviation / f64::sqrt(squares / n) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_values_as_the_format_does() {
        // numpy.std of the 254 finite values of e4m3fn, in float32.
        let unit = scale(1.0, NumberFormat::Fp8E4m3).unwrap();
        assert_eq!(unit, 1.0 / 100.057_724);
        assert_eq!(scale(1.0, NumberFormat::Int8), None);
    }

    #[test]
    fn follows_the_deviation_of_what_was_seen() {
        let mut h = Histogram::default();
        h.add(&(0..100_000).map(|i| (i % 1000) as f32 / 1000.0 - 0.4995).collect::<Vec<_>>());
        let r = range(&h, NumberFormat::Fp8E4m3).unwrap();
        let expected = f64::from(scale(1.0 / 12f32.sqrt(), NumberFormat::Fp8E4m3).unwrap()) * 448.0;
        // The values of a bin lie within half its width, 1/4096, of its middle.
        assert!((r.max / expected - 1.0).abs() < 1e-3, "{r:?} {expected}");
    }
}
