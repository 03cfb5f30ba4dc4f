use serde::{Deserialize, Serialize};

use super::Spread;
use super::means::MOST;
use super::peak::{concat, moved};

/// The moving average of each sample's greatest magnitude by channel, as QuantizeML's `OutputObserver` keeps it with
/// `per-axis`: that of [`Peak`](super::Peak) for each channel, and not started while it is exactly 1 in all of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peaks {
    /// Samples seen.
    samples: u64,
    /// The magnitudes of the first sample; empty before it, and for good when samples disagree about the channels.
    first: Vec<f32>,
    /// The averages now.
    now: Vec<f32>,
}

impl Peaks {
    /// Adds one sample's extremes by channel.
    pub(super) fn add(&mut self, sample: &Spread) {
        let next: Vec<f32> = sample.channels().map(|(min, max)| min.abs().max(max.abs())).collect();
        if self.samples > 0 && next.len() != self.now.len() {
            (self.first, self.now) = (Vec::new(), Vec::new());
        } else if self.now.iter().all(|&p| p == 1.0) {
            self.now.clone_from(&next);
        } else {
            self.now.iter_mut().zip(&next).for_each(|(old, &new)| *old = moved(*old, new));
        }
        if self.samples == 0 {
            self.first = next;
        }
        self.samples = self.samples.saturating_add(1);
    }

    /// The same where the values of each channel, or all, are `rates` times as large.
    pub(crate) fn times(&self, rates: &[f32]) -> Peaks {
        let rate = |i: usize| rates.get(i).or(rates.first()).copied().unwrap_or(1.0);
        let scaled = |all: &[f32]| all.iter().enumerate().map(|(i, x)| x * rate(i)).collect();
        Peaks { samples: self.samples, first: scaled(&self.first), now: scaled(&self.now) }
    }

    /// The averages over the samples of `self` followed by those of `next`, up to the rounding of f32.
    pub(super) fn concat(&self, next: &Peaks) -> Peaks {
        match (self.samples, next.samples) {
            (_, 0) => return self.clone(),
            (0, _) => return next.clone(),
            _ if self.now.len() != next.now.len() => return Peaks { samples: 1, ..Peaks::default() },
            _ => {}
        }
        let each = self.now.iter().zip(next.now.iter().zip(&next.first));
        let now = each.map(|(&old, (&new, &first))| concat(old, new, first, next.samples)).collect();
        Peaks { samples: self.samples.saturating_add(next.samples), first: self.first.clone(), now }
    }

    /// The averaged magnitudes; empty where the record is of no use.
    pub fn values(&self) -> &[f32] {
        &self.now
    }

    /// Whether it can be an average of magnitudes: what a file claims may not.
    pub(crate) fn is_sound(&self) -> bool {
        let all = self.first.iter().chain(&self.now);
        self.first.len() == self.now.len()
            && self.now.len() <= MOST
            && all.into_iter().all(|x| x.is_finite() && *x >= 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: &[[f32; 2]]) -> Peaks {
        let mut p = Peaks::default();
        samples.iter().for_each(|s| p.add(&Spread::new(s.map(|x| (-x, x / 2.0)))));
        p
    }

    #[test]
    fn moves_each_channel_and_starts_again_where_all_are_one() {
        assert_eq!(of(&[]).values(), [0.0; 0]);
        assert_eq!(of(&[[1.0, 1.0], [4.0, 8.0]]).values(), [4.0, 8.0]);
        let p = of(&[[1.0, 2.0], [2.0, 4.0]]);
        assert!((p.values()[0] - 1.1).abs() < 1e-6 && (p.values()[1] - 2.2).abs() < 1e-6, "{p:?}");
    }

    #[test]
    fn joins_to_the_average_of_all_samples() {
        let samples: Vec<[f32; 2]> = (0..12).map(|i| [2.0 + (i * 7 % 5) as f32, 3.0 + (i * 3 % 4) as f32]).collect();
        let (joined, all) = (of(&samples[..5]).concat(&of(&samples[5..])), of(&samples));
        // The same sum in another order: a few ulp of f32.
        assert!(joined.values().iter().zip(all.values()).all(|(a, b)| (a - b).abs() < 1e-5), "{joined:?} {all:?}");
        assert!(joined.is_sound());
    }

    #[test]
    fn gives_up_on_other_channels() {
        let mut p = of(&[[2.0, 3.0]]);
        p.add(&Spread::new([(0.0, 1.0)]));
        assert!(p.values().is_empty() && p.is_sound());
        let bad: Peaks = serde_json::from_str(r#"{"samples":1,"first":[-1.0],"now":[1.0]}"#).unwrap();
        assert!(!bad.is_sound());
    }
}
