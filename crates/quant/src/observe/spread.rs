use serde::{Deserialize, Serialize};

use super::means::MOST;

/// The extremes of each channel of a tensor: what a scale per channel comes from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The least element of each channel; empty before the first sample.
    min: Vec<f32>,
    /// The greatest.
    max: Vec<f32>,
    /// Whether samples disagreed about the number of channels, or had a channel without a finite element.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    void: bool,
}

impl Spread {
    /// The extremes of one sample, as (least, greatest) by channel.
    pub fn new(channels: impl IntoIterator<Item = (f32, f32)>) -> Spread {
        let (min, max): (Vec<f32>, Vec<f32>) = channels.into_iter().unzip();
        let void = min.iter().zip(&max).any(|(a, b)| !(a.is_finite() && b.is_finite() && a <= b));
        if void { Spread { void, ..Spread::default() } } else { Spread { min, max, void } }
    }

    /// Adds another record; those of another number of channels empty it for good.
    pub fn merge(&mut self, next: &Spread) {
        if self.void || next.void {
            *self = Spread { void: true, ..Spread::default() };
        } else if self.min.is_empty() {
            self.clone_from(next);
        } else if self.min.len() == next.min.len() {
            self.min.iter_mut().zip(&next.min).for_each(|(a, b)| *a = a.min(*b));
            self.max.iter_mut().zip(&next.max).for_each(|(a, b)| *a = a.max(*b));
        } else if !next.min.is_empty() {
            *self = Spread { void: true, ..Spread::default() };
        }
    }

    /// The least and the greatest element by channel; empty where the record is of no use.
    pub fn channels(&self) -> impl ExactSizeIterator<Item = (f32, f32)> + '_ {
        self.min.iter().copied().zip(self.max.iter().copied())
    }

    /// Whether it can be a record: what a file claims may not.
    pub(crate) fn is_sound(&self) -> bool {
        let ordered = || self.channels().all(|(a, b)| a.is_finite() && b.is_finite() && a <= b);
        self.min.len() == self.max.len() && self.min.len() <= MOST && ordered() && (!self.void || self.min.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_extremes_and_gives_up_on_others() {
        let mut s = Spread::default();
        s.merge(&Spread::new([(0.0, 1.0), (-2.0, 0.5)]));
        s.merge(&Spread::new([(-1.0, 0.5), (0.0, 3.0)]));
        assert_eq!(s.channels().collect::<Vec<_>>(), [(-1.0, 1.0), (-2.0, 3.0)]);
        s.merge(&Spread::default());
        assert_eq!(s.channels().len(), 2);
        s.merge(&Spread::new([(0.0, 1.0)]));
        s.merge(&Spread::new([(0.0, 1.0)]));
        assert_eq!(s.channels().len(), 0);
        assert!(s.is_sound());
    }

    #[test]
    fn knows_what_is_no_record() {
        assert_eq!(Spread::new([(f32::INFINITY, f32::NEG_INFINITY)]).channels().len(), 0);
        let parse = |text: &str| serde_json::from_str::<Spread>(text).unwrap();
        assert!(parse(r#"{"min":[0.0],"max":[1.0]}"#).is_sound());
        for bad in [r#"{"min":[0.0],"max":[]}"#, r#"{"min":[2.0],"max":[1.0]}"#, r#"{"min":[0],"max":[1],"void":true}"#]
        {
            assert!(!parse(bad).is_sound(), "{bad}");
        }
    }
}
