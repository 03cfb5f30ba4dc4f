//! Why a tensor has the scale that it has, what that costs, and what other choices would give.

mod bias;
mod blocks;
mod channels;
mod formula;
mod run_time;
mod sums;

pub use bias::bias;
pub use blocks::blocks;
pub use channels::ByChannel;
pub use run_time::RunTime;

use narrowbit_kernels::Exec;
use narrowbit_tensor::{DType, Tensor, minifloat};
use serde::Serialize;

use crate::observe::{Loss, Method, Range, Stats};
use crate::plan::{WeightError, WeightParams};
use crate::scheme::{ActivationScheme, NumberFormat, ScalePoint, Statistic, WeightScheme};
use formula::Case;

/// One way to represent a tensor, and what it costs on the recorded values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// Whether the settings choose it.
    pub chosen: bool,
    /// The element type, with the bits where there are fewer.
    pub format: String,
    /// Whether zero has the middle code.
    pub symmetric: bool,
    /// What shares a scale: the tensor, a channel, a token, or a block of so many.
    pub granularity: String,
    /// How the range was chosen.
    pub method: String,
    /// The range that scale and zero point are computed from; of the whole tensor.
    pub range: Range,
    /// The scale; the least of several.
    pub scale: f32,
    /// The greatest of several scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greatest_scale: Option<f32>,
    /// The zero point; of the first channel.
    pub zero_point: i32,
    /// Signal to quantization noise, in decibels.
    pub sqnr_db: f64,
    /// Mean squared error, in the tensor's unit squared.
    pub mse: f64,
    /// The share of elements beyond the codes.
    pub saturated: f64,
}

/// What there is to say of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The formula with the numbers put in, line by line.
    pub formula: Vec<String>,
    /// The choice of the settings first, then the others.
    pub choices: Vec<Choice>,
}

/// The methods that are shown for the chosen type.
const METHODS: [(Method, &str); 7] = [
    (Method::Minmax, "minmax"),
    (Method::MovingAverage, "moving-average"),
    (Method::Percentile(99.999), "percentile 99.999"),
    (Method::Percentile(99.9), "percentile 99.9"),
    (Method::PercentileSearch, "percentile-search"),
    (Method::Entropy, "entropy"),
    (Method::Mse, "mse"),
];

/// The name of a method in tables.
fn method_name(method: Method) -> String {
    match (method, METHODS.iter().find(|(m, _)| *m == method)) {
        (_, Some((_, name))) => (*name).to_owned(),
        (Method::Percentile(p), _) => format!("percentile {p}"),
        (Method::MovingPeak, _) => "moving-peak".to_owned(),
        (Method::Distribution, _) => "distribution".to_owned(),
        (Method::Diffs, _) => "diffs".to_owned(),
        (_, None) => "auto".to_owned(),
    }
}

/// Explains an activation from its record; `None` where it has none that the method takes, or no histogram to measure with.
pub fn activation(
    stats: &Stats,
    scheme: ActivationScheme,
    method: Method,
    statistic: Statistic,
    search: bool,
) -> Option<Explanation> {
    let of = |scheme: ActivationScheme, method: Method, chosen: bool| -> Option<Choice> {
        scheme.check().and_then(|()| scheme.check_method(method)).ok()?;
        let range = stats.range(method, &scheme, statistic, search)?;
        let point = scheme.qparams(range);
        let extremes = stats.extremes.map(|(lo, hi)| (f64::from(lo), f64::from(hi)))?;
        let Loss { mse, sqnr_db, saturated } = stats.histogram.as_ref()?.loss(extremes, &scheme, point);
        Some(Choice {
            chosen,
            format: named(scheme.format, scheme.bits),
            symmetric: scheme.symmetric || scheme.format.is_float(),
            granularity: "tensor".into(),
            method: method_name(method),
            range,
            scale: point.scale,
            greatest_scale: None,
            zero_point: point.zero_point,
            sqnr_db,
            mse,
            saturated,
        })
    };
    let scheme = scheme.of_tensor(stats.range(method, &scheme, statistic, search)?, false);
    let first = of(scheme, method, true)?;
    let case = Case {
        formula: scheme.formula,
        format: scheme.format,
        symmetric: scheme.symmetric,
        codes: scheme.code_range(),
        range: first.range,
        point: scheme.qparams(first.range),
        weight: false,
    };
    let formula = case.lines();
    let mut choices = vec![first];
    let same = METHODS.iter().filter(|(m, _)| *m != method).filter_map(|(m, _)| of(scheme, *m, false));
    choices.extend(same);
    let plain = |format, symmetric, bits| ActivationScheme { format, symmetric, bits, ..ActivationScheme::default() };
    use NumberFormat::{Fp8E4m3, Int8, Int16, Uint8, Uint16};
    for other in [
        plain(Uint8, false, None),
        plain(Int8, true, None),
        plain(Int8, false, None),
        plain(Uint16, false, None),
        plain(Int16, true, None),
        plain(Fp8E4m3, true, None),
        plain(Uint8, false, Some(4)),
    ] {
        if (other.format, other.symmetric, other.bits) == (scheme.format, scheme.symmetric, scheme.bits) {
            continue;
        }
        choices.extend([Method::Minmax, Method::Mse].into_iter().filter_map(|m| of(other, m, false)));
    }
    Some(Explanation { formula, choices })
}

/// Explains a constant weight whose output channels lie along `channel`, if it has such.
///
/// # Errors
/// When the weight can't be read.
pub fn weight(
    exec: &Exec,
    w: &Tensor,
    scheme: WeightScheme,
    channel: Option<usize>,
) -> Result<Explanation, WeightError> {
    let values = w.to_f32s()?;
    let mut choices = Vec::new();
    let plain =
        |format, symmetric, per_channel| WeightScheme { format, symmetric, per_channel, ..WeightScheme::default() };
    use NumberFormat::{Fp8E4m3, Int4, Int8, Int16, Uint8};
    let others = [
        plain(Int8, true, true),
        plain(Int8, true, false),
        plain(Int8, false, true),
        plain(Uint8, false, true),
        plain(Int16, true, true),
        plain(Fp8E4m3, true, true),
        plain(Int4, true, true),
        plain(Int4, true, false),
    ];
    let mut formula_lines = Vec::new();
    let different = others.into_iter().filter(|o| *o != scheme);
    for (i, s) in [scheme].into_iter().chain(different).enumerate() {
        let axis = channel.filter(|_| s.per_channel);
        let params = WeightParams::new(exec, w, s, axis);
        let codes = params.tensor(exec, w)?;
        let choice = of_weight(&params, &values, &codes, w.shape(), i == 0)?;
        if i == 0 {
            let part = channel_range(&values, w.shape(), axis);
            let point = params.points.first().copied().unwrap_or(ScalePoint { scale: 1.0, zero_point: 0 });
            let (formula, format, symmetric, codes) = (s.formula, s.format, s.symmetric, s.code_range());
            formula_lines = Case { formula, format, symmetric, codes, range: part, point, weight: true }.lines();
            if params.points.len() > 1 {
                formula_lines.insert(0, format!("of channel 0 of {}:", params.points.len()));
            }
        }
        choices.push(choice);
    }
    Ok(Explanation { formula: formula_lines, choices })
}

/// The extremes of the first index of an axis, or of all.
fn channel_range(values: &[f32], shape: &[usize], axis: Option<usize>) -> Range {
    let inner: usize = axis.map_or(1, |a| shape[a + 1..].iter().product());
    let first = |i: usize| axis.is_none_or(|a| (i / inner.max(1)).is_multiple_of(shape[a].max(1)));
    let own = values.iter().enumerate().filter(|(i, v)| first(*i) && v.is_finite());
    own.fold(Range { min: 0.0, max: 0.0 }, |r, (_, &v)| r.union(Range { min: v.into(), max: v.into() }))
}

fn of_weight(
    params: &WeightParams,
    values: &[f32],
    codes: &Tensor,
    shape: &[usize],
    chosen: bool,
) -> Result<Choice, WeightError> {
    let s = params.scheme;
    let (lo, hi) = s.code_range();
    let inner: usize = params.axis.map_or(1, |a| shape[a + 1..].iter().product());
    let codes = codes.to_f64s()?;
    let (mut noise, mut signal, mut beyond, mut range) = (0f64, 0f64, 0usize, Range { min: 0.0, max: 0.0 });
    for (i, (&x, &code)) in values.iter().zip(codes.iter()).enumerate() {
        let p = params.points[if params.axis.is_some() { i / inner.max(1) % params.points.len() } else { 0 }];
        let (x, scale) = (f64::from(x), f64::from(p.scale));
        let back = (code - f64::from(p.zero_point)) * scale;
        noise += (x - back).powi(2);
        signal += x * x;
        let place = x / scale + f64::from(p.zero_point);
        beyond += usize::from(is_beyond(place, s.format, (lo, hi)));
        range = range.union(Range { min: x, max: x });
    }
    let scales = || params.points.iter().map(|p| p.scale);
    let (least, greatest) = (scales().fold(f32::INFINITY, f32::min), scales().fold(0f32, f32::max));
    let n = values.len().max(1) as f64;
    Ok(Choice {
        chosen,
        format: named(s.format, s.bits),
        symmetric: s.symmetric || s.format.is_float(),
        granularity: if params.axis.is_some() { "channel" } else { "tensor" }.into(),
        method: "minmax".into(),
        range,
        scale: least,
        greatest_scale: (params.points.len() > 1).then_some(greatest),
        zero_point: params.points.first().map_or(0, |p| p.zero_point),
        sqnr_db: decibels(signal, noise),
        mse: noise / n,
        saturated: beyond as f64 / n,
    })
}

/// Whether a value lies more than half a step beyond the last code, in units of the scale; rounding does not count.
fn is_beyond(place: f64, format: NumberFormat, (lo, hi): (i32, i32)) -> bool {
    const ROUNDING: f64 = 1e-4;
    match format.float_max() {
        Some(top) => place.abs() > f64::from(top) * (1.0 + ROUNDING),
        None => place < f64::from(lo) - 0.5 - ROUNDING || place > f64::from(hi) + 0.5 + ROUNDING,
    }
}

/// `10 · log10(signal / noise)`; no noise is 300 dB, which JSON can hold.
pub(crate) fn decibels(signal: f64, noise: f64) -> f64 {
    if noise <= 0.0 { 300.0 } else { (10.0 * (signal / noise).log10()).clamp(-300.0, 300.0) }
}

fn named(format: NumberFormat, bits: Option<u8>) -> String {
    match bits {
        Some(b) if usize::from(b) != format.dtype().bits() => format!("{} ({b} bits)", format.name()),
        _ => format.name().to_owned(),
    }
}

impl crate::observe::Histogram {
    /// What quantizing the recorded values with a scale and zero point costs; the values of a bin count at its middle, and
    /// vary by `width² / 12` within it where the bin is narrower than a step.
    /// No value lies beyond the exact `extremes`.
    pub fn loss(&self, extremes: (f64, f64), scheme: &ActivationScheme, point: ScalePoint) -> Loss {
        let (lo, hi) = scheme.code_range();
        let (step, zero, width) = (f64::from(point.scale), f64::from(point.zero_point), self.width());
        let dtype: DType = scheme.format.dtype();
        let (mut noise, mut signal, mut beyond, mut total) = (0f64, 0f64, 0f64, 0f64);
        for (i, &n) in self.counts().iter().enumerate().filter(|(_, n)| **n > 0) {
            let (x, n) = ((self.edge(i) + width / 2.0).max(extremes.0).min(extremes.1), n as f64);
            let place = x / step + zero;
            let back = if scheme.format.is_float() {
                let code = minifloat::encode(dtype, place as f32, true);
                f64::from(minifloat::decode(dtype, code)) * step
            } else {
                (place.round_ties_even().clamp(f64::from(lo), f64::from(hi)) - zero) * step
            };
            let out = is_beyond(place, scheme.format, (lo, hi));
            // A bin that spans several steps has the rounding error of each.
            let miss = match (scheme.format.is_float(), out) {
                // Codes of floats are finer than a step near zero and coarser far from it.
                (true, _) => (x - back).powi(2) + width * width / 12.0,
                (false, false) if width >= step => step * step / 12.0,
                (false, _) => (x - back).powi(2) + width.min(step).powi(2) / 12.0,
            };
            noise += n * miss;
            signal += n * (x * x + width * width / 12.0);
            beyond += if out { n } else { 0.0 };
            total += n;
        }
        let total = total.max(1.0);
        Loss { mse: noise / total, sqnr_db: decibels(signal, noise), saturated: beyond / total }
    }
}

#[cfg(test)]
mod tests {
    use narrowbit_kernels::Isa;

    use super::*;

    fn stats(values: &[f32]) -> Stats {
        let mut s = Stats::new(true);
        s.add_sample(values);
        s
    }

    #[test]
    fn shows_each_formula_with_its_numbers() {
        let lines = |scheme: ActivationScheme, weight| {
            let range = Range { min: -0.5, max: 1.5 };
            let (formula, format, symmetric, codes) =
                (scheme.formula, scheme.format, scheme.symmetric, scheme.code_range());
            Case { formula, format, symmetric, codes, range, point: scheme.qparams(range), weight }.lines().join("\n")
        };
        for preset in crate::scheme::Preset::ALL {
            let scheme = preset.options().activations;
            let text = lines(scheme, false);
            let point = scheme.qparams(Range { min: -0.5, max: 1.5 });
            assert!(text.contains(&format!("{:e}", point.scale)), "{preset:?}: {text}");
            assert!(scheme.format.is_float() || text.contains("zero_point"), "{preset:?}: {text}");
        }
        let pytorch = crate::scheme::Preset::Pytorch.options();
        assert!(lines(pytorch.activations, false).contains("qmin − round(min / scale)"));
        assert!(lines(pytorch.activations, true).contains("round_half_even(x · (1 / scale))"));
        let vitis = lines(crate::scheme::Preset::VitisDpu.options().activations, true);
        assert!(vitis.contains("scale = 2^-6 = ") && vitis.contains("round_half_away"), "{vitis}");
    }

    #[test]
    fn puts_the_numbers_into_the_formula() {
        let values: Vec<f32> = (0..=2550).map(|i| i as f32 / 100.0 - 5.0).collect();
        let e = activation(&stats(&values), ActivationScheme::default(), Method::Minmax, Statistic::default(), true)
            .unwrap();
        assert!(e.formula[0].contains("(20.500000 − -5.000000) / (255 − 0) = 1e-1"), "{:?}", e.formula);
        assert!(e.formula[1].ends_with("= 50"), "{:?}", e.formula);
        let first = &e.choices[0];
        assert!(first.chosen && first.zero_point == 50 && first.saturated == 0.0);
        // Uniform noise of a step: 10·log10(E[x²] / (s²/12)).
        let power = values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64;
        assert!((first.sqnr_db - 10.0 * (power / (0.01 / 12.0)).log10()).abs() < 0.3, "{first:?}");
        let of = |format: &str| e.choices.iter().find(|c| c.format == format && c.method == "minmax").unwrap();
        assert!(of("uint16").sqnr_db > first.sqnr_db + 40.0 && of("uint8 (4 bits)").sqnr_db < first.sqnr_db - 20.0);
    }

    #[test]
    fn counts_what_saturates() {
        let mut values = vec![0.5f32; 999];
        values.push(100.0);
        let e = activation(
            &stats(&values),
            ActivationScheme::default(),
            Method::Percentile(99.0),
            Statistic::default(),
            true,
        )
        .unwrap();
        assert!((e.choices[0].saturated - 0.001).abs() < 1e-9, "{:?}", e.choices[0]);
        let none = Stats::new(true);
        assert_eq!(activation(&none, ActivationScheme::default(), Method::Minmax, Statistic::default(), true), None);
    }

    #[test]
    fn compares_the_ways_to_hold_a_weight() {
        let exec = Exec::new(Isa::detect(), 1);
        let w = Tensor::new([2, 4], vec![1.0f32, -0.5, 0.25, 0.1, 100.0, 50.0, -25.0, 10.0]).unwrap();
        let e = weight(&exec, &w, WeightScheme::default(), Some(0)).unwrap();
        assert_eq!(e.formula[0], "of channel 0 of 2:");
        assert!(e.formula[1].contains("max(0.500000, 1.000000) / 127"), "{:?}", e.formula);
        let first = &e.choices[0];
        assert!(first.greatest_scale > Some(first.scale) && first.granularity == "channel");
        let whole = e.choices.iter().find(|c| c.format == "int8" && c.granularity == "tensor").unwrap();
        assert!(whole.mse > first.mse && e.choices.iter().filter(|c| c.chosen).count() == 1);
    }
}
