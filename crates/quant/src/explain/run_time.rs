//! Activations whose range is found at run time.

use narrowbit_kernels::dynamic::dynamic_params;

use super::sums::Sums;
use super::{Choice, Explanation};
use crate::approach::Granularity;

/// The extremes of a row or a tensor, with 0.
type Extremes = (f32, f32);

/// What scales that are found at run time cost, by token and by tensor, over the runs of some samples.
#[derive(Debug, Clone, Default)]
pub struct RunTime {
    token: Sums,
    tensor: Sums,
    /// The first row of the first run, and all of that run.
    first: Option<(Extremes, Extremes)>,
    zeros: (i32, i32),
}

fn extremes(values: &[f32]) -> Extremes {
    values.iter().filter(|x| x.is_finite()).fold((0.0, 0.0), |(lo, hi), &x| (lo.min(x), hi.max(x)))
}

fn round(sums: &mut Sums, values: &[f32], (low, high): Extremes) -> i32 {
    let (scale, zero) = dynamic_params(low, high);
    sums.scale(scale);
    for &x in values {
        let code = ((x / scale).round_ties_even() + zero as f32).clamp(0.0, 255.0);
        sums.add(x, (code - zero as f32) * scale, false);
    }
    zero
}

impl RunTime {
    /// Adds what a tensor holds in a run, whose last axis has `columns` elements.
    pub fn add(&mut self, values: &[f32], columns: usize) {
        let rows = values.chunks(columns.max(1));
        let whole = extremes(values);
        let first = rows.clone().next().map_or((0.0, 0.0), extremes);
        let zero = round(&mut self.tensor, values, whole);
        let mut own = None;
        for row in rows {
            let zero = round(&mut self.token, row, extremes(row));
            own.get_or_insert(zero);
        }
        if self.first.is_none() && !values.is_empty() {
            self.first = Some((first, whole));
            self.zeros = (own.unwrap_or(0), zero);
        }
    }

    /// Values added.
    pub fn count(&self) -> u64 {
        self.token.count()
    }

    /// Explains them; `None` where nothing was added.
    pub fn explanation(&self, granularity: Granularity) -> Option<Explanation> {
        let (row, whole) = self.first?;
        let token = granularity == Granularity::Token;
        let ((low, high), what) = if token { (row, "the first row") } else { (whole, "the tensor") };
        let (scale, zero) = dynamic_params(low, high);
        let formula = vec![
            format!("of {what} in the first run, at run time (DynamicQuantizeLinear), 0 included:"),
            format!("scale = (max − min) / 255 = ({high:.6} − {low:.6}) / 255 = {scale:e}"),
            format!("zero_point = round(−min / scale) = {zero}"),
            format!("code = clamp(round(x / {scale:e}) + {zero}, 0, 255)"),
            format!("x ≈ (code − {zero}) · {scale:e}"),
        ];
        let of = |sums: &Sums, granularity: &str, zero_point: i32| Choice {
            symmetric: false,
            zero_point,
            ..sums.choice("uint8".into(), granularity.into(), "run time")
        };
        let mut choices = vec![of(&self.token, "token", self.zeros.0), of(&self.tensor, "tensor", self.zeros.1)];
        if !token {
            choices.reverse();
        }
        choices[0].chosen = true;
        Some(Explanation { formula, choices })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_scales_of_rows_with_those_of_tensors() {
        let mut seen = RunTime::default();
        assert_eq!(seen.explanation(Granularity::Token), None);
        seen.add(&[-5.0, 7.0, 0.01, -0.02], 2);
        seen.add(&[1.0, 2.0, 3.0, 0.004], 2);
        let token = seen.explanation(Granularity::Token).unwrap();
        let [a, b] = &token.choices[..] else { panic!("{token:?}") };
        assert!(a.chosen && a.granularity == "token" && a.sqnr_db > b.sqnr_db, "{token:?}");
        // −5 … 7: the row's own, as the formula of ONNX has it.
        assert!(token.formula[1].ends_with(&format!("{:e}", 12f32 / 255.0)), "{token:?}");
        assert_eq!((a.zero_point, token.choices[0].range.max), (106, 7.0));
        assert_eq!(seen.count(), 8);
        let tensor = seen.explanation(Granularity::Tensor).unwrap();
        assert_eq!((tensor.choices[0].granularity.as_str(), tensor.choices[0].chosen), ("tensor", true));
    }
}
