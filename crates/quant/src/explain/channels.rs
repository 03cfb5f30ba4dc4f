//! Activations with a scale for each channel.

use super::sums::Sums;
use super::{Choice, Explanation, named};
use crate::plan::ActivationParams;
use crate::scheme::{Formula, quantizeml, vitis};

/// What a scale for each index of axis 1 costs, and one for all of them, over the runs of some samples.
#[derive(Debug, Clone)]
pub struct ByChannel {
    params: ActivationParams,
    scales: Vec<f32>,
    own: Sums,
    whole: Sums,
}

impl ByChannel {
    /// Of the scales that a plan has; the parameters hold the greatest.
    pub fn new(params: ActivationParams, scales: Vec<f32>) -> ByChannel {
        let (mut own, mut whole) = (Sums::default(), Sums::default());
        scales.iter().for_each(|&s| own.scale(s));
        whole.scale(params.point.scale);
        ByChannel { params, scales, own, whole }
    }

    /// Adds what the tensor holds in a run, in the order of `shape`.
    pub fn add(&mut self, values: &[f32], shape: &[usize]) {
        let inner: usize = shape.iter().skip(2).product();
        let channels = self.scales.len().max(1);
        let (lo, hi) = self.params.scheme.code_range();
        let zero = f64::from(self.params.point.zero_point);
        let round = |x: f32, scale: f32| {
            let place = f64::from(x) / f64::from(scale) + zero;
            let code = place.round_ties_even().clamp(f64::from(lo), f64::from(hi));
            let beyond = place < f64::from(lo) - 0.501 || place > f64::from(hi) + 0.501;
            (((code - zero) * f64::from(scale)) as f32, beyond)
        };
        for (i, &x) in values.iter().enumerate() {
            let scale = self.scales.get(i / inner.max(1) % channels).copied().unwrap_or(1.0);
            let (back, beyond) = round(x, scale);
            self.own.add(x, back, beyond);
            let (back, beyond) = round(x, self.params.point.scale);
            self.whole.add(x, back, beyond);
        }
    }

    /// Values added.
    pub fn count(&self) -> u64 {
        self.own.count()
    }

    /// Explains them.
    pub fn explanation(&self) -> Explanation {
        let ActivationParams { scheme, point, .. } = self.params;
        let format = named(scheme.format, scheme.bits);
        let (lo, hi) = scheme.code_range();
        let scales: Vec<String> = self.scales.iter().take(8).map(|s| format!("{s:e}")).collect();
        let more = if self.scales.len() > 8 { ", …" } else { "" };
        let mut formula =
            vec![format!("a scale for each of {} channels: {}{more}", self.scales.len(), scales.join(", "))];
        let first = self.scales.first().copied().unwrap_or(point.scale);
        match scheme.formula {
            Formula::Quantizeml => formula.push(format!(
                "scale = 2^−frac = 2^−{} = {first:e} of channel 0, frac = value bits − ceil(log2(max|x|)) of the moving maximum",
                quantizeml::frac_of(first)
            )),
            Formula::Vitis => formula.push(format!("scale = 2^−{} = {first:e} of channel 0", vitis::position_of(first))),
            _ => formula.push(format!("scale = {first:e} of channel 0, from the extremes of the channel")),
        }
        let zero = point.zero_point;
        formula
            .push(format!("code = clamp(round(x / {first:e}) + {zero}, {lo}, {hi}), x ≈ (code − {zero}) · {first:e}"));
        let of = |sums: &Sums, per: &str| Choice {
            symmetric: scheme.symmetric,
            zero_point: zero,
            ..sums.choice(format.clone(), per.into(), "extremes")
        };
        let own = Choice { chosen: true, ..of(&self.own, "channel") };
        Explanation { formula, choices: vec![own, of(&self.whole, "tensor")] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Range;
    use crate::scheme::{ActivationScheme, NumberFormat, ScalePoint};

    #[test]
    fn measures_each_channel_in_its_own_steps() {
        let scheme = ActivationScheme { format: NumberFormat::Uint8, symmetric: true, ..ActivationScheme::default() };
        let point = ScalePoint { scale: 1.0, zero_point: 0 };
        let params = ActivationParams { scheme, point, range: Range { min: 0.0, max: 255.0 } };
        let mut seen = ByChannel::new(params, vec![1.0, 0.125]);
        // [1, 2, 2]: whole steps in channel 0, eighths in channel 1.
        seen.add(&[3.0, 200.0, 0.125, 0.375], &[1, 2, 2]);
        let found = seen.explanation();
        assert_eq!((found.choices[0].mse, found.choices[0].greatest_scale), (0.0, Some(1.0)));
        assert!(found.choices[1].mse > 0.0 && found.choices[0].granularity == "channel");
        assert_eq!(seen.count(), 4);
    }
}
