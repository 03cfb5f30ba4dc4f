use serde::{Deserialize, Serialize};

/// The moving average of each sample's greatest magnitude, as QuantizeML's `OutputObserver` keeps it: in f32,
/// with a momentum of 0.9, started by the first sample.
///
/// Source: QuantizeML 0.8.1, `layers/output_observer.py`: `new = old − (old − max|x|)·(1 − momentum)`; an average of
/// exactly 1 counts as not started.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peak {
    /// Samples seen.
    samples: u64,
    /// The magnitude of the first sample, which started the average.
    first: f32,
    /// The average now.
    now: f32,
}

/// `1 − 0.9` as Python computes it, then rounded to f32.
const DECAY: f32 = 0.099_999_999_999_999_98_f64 as f32;

/// An average after one more sample.
pub(super) fn moved(average: f32, magnitude: f32) -> f32 {
    average - (average - magnitude) * DECAY
}

/// The average `old` followed by `n` samples whose own average is `new` and whose first one was `first`.
///
/// A sequence started by x₁ gives x₁ the weight m^(n−1), where in the longer one it has (1−m)·m^(n−1): the
/// difference m^n·x₁ is taken back.
pub(super) fn concat(old: f32, new: f32, first: f32, n: u64) -> f32 {
    let fade = (1.0 - f64::from(DECAY)).powf(n as f64);
    (f64::from(new) + fade * (f64::from(old) - f64::from(first))).max(0.0) as f32
}

impl Peak {
    pub(super) fn add(&mut self, magnitude: f32) {
        if self.samples == 0 || self.now == 1.0 {
            self.now = magnitude;
        } else {
            self.now = moved(self.now, magnitude);
        }
        if self.samples == 0 {
            self.first = magnitude;
        }
        self.samples = self.samples.saturating_add(1);
    }

    /// The same of values that are `rate` times as large.
    pub(crate) fn times(&self, rate: f32) -> Peak {
        Peak { first: self.first * rate, now: self.now * rate, ..*self }
    }

    /// The average over the samples of `self` followed by those of `next`, up to the rounding of f32.
    pub(super) fn concat(&self, next: &Peak) -> Peak {
        match (self.samples, next.samples) {
            (_, 0) => *self,
            (0, _) => *next,
            (_, n) => {
                let now = concat(self.now, next.now, next.first, n);
                Peak { samples: self.samples.saturating_add(n), first: self.first, now }
            }
        }
    }

    /// The averaged magnitude; `None` before the first sample.
    pub fn value(&self) -> Option<f32> {
        (self.samples > 0).then_some(self.now)
    }

    /// Whether it can be an average of magnitudes: what a file claims may not.
    pub(crate) fn is_sound(&self) -> bool {
        [self.first, self.now].iter().all(|x| x.is_finite() && *x >= 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Peak {
        let mut p = Peak::default();
        values.iter().for_each(|&v| p.add(v));
        p
    }

    #[test]
    fn starts_with_the_first_sample_and_moves_by_a_tenth() {
        assert_eq!(of(&[]).value(), None);
        assert_eq!(of(&[4.0]).value(), Some(4.0));
        let two = of(&[4.0, 8.0]).value().unwrap();
        assert!((two - 4.4).abs() < 1e-6, "{two}");
        // An average of 1 looks like none to QuantizeML.
        assert_eq!(of(&[1.0, 8.0]).value(), Some(8.0));
    }

    #[test]
    fn joins_to_the_average_of_all_samples() {
        let values: Vec<f32> = (0..20).map(|i| 2.0 + (i * 7 % 5) as f32).collect();
        let joined = of(&values[..8]).concat(&of(&values[8..]));
        let (a, b) = (joined.value().unwrap(), of(&values).value().unwrap());
        // The same sum in another order: a few ulp of f32.
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}
