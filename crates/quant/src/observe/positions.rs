use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Range;
use crate::scheme::{Rounding, Statistic, vitis};

/// How often each fix position was best for a batch (see [`vitis`]): all that a statistic over batches needs,
/// however many there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Positions {
    /// The bits of the codes, the sign among them.
    bits: u8,
    /// Batches by the position of least squared error.
    diffs: BTreeMap<i32, u64>,
    /// Batches by the position that just holds the extremes.
    extremes: BTreeMap<i32, u64>,
}

/// The positions that one batch asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPositions {
    /// The one of least squared error.
    pub diffs: i32,
    /// The one that just holds the extremes.
    pub extremes: i32,
}

impl BatchPositions {
    /// The positions for values between `min` and `max`, with activations' rounding (half up); others than finite
    /// values are passed over.
    pub fn of(values: &[f32], min: f32, max: f32, bits: u8) -> BatchPositions {
        let range = Range { min: min.into(), max: max.into() };
        BatchPositions {
            diffs: vitis::diffs(values, range, bits, Rounding::HalfUp),
            extremes: vitis::first_position(range, bits),
        }
    }
}

impl Positions {
    /// An empty record for codes of `bits`.
    pub fn new(bits: u8) -> Positions {
        Positions { bits, diffs: BTreeMap::new(), extremes: BTreeMap::new() }
    }

    /// The bits of the codes, the sign among them.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    pub(super) fn add(&mut self, p: BatchPositions) {
        *self.diffs.entry(p.diffs).or_default() += 1;
        *self.extremes.entry(p.extremes).or_default() += 1;
    }

    pub(super) fn merge(&mut self, next: &Positions) {
        for (mine, theirs) in [(&mut self.diffs, &next.diffs), (&mut self.extremes, &next.extremes)] {
            for (&position, &n) in theirs {
                let sum = mine.entry(position).or_default();
                *sum = sum.saturating_add(n);
            }
        }
    }

    /// The position over all batches: of least squared error with `search`, else the one that holds the
    /// extremes. `None` before the first batch.
    pub fn position(&self, search: bool, statistic: Statistic) -> Option<i32> {
        let counts = if search { &self.diffs } else { &self.extremes };
        let total: u64 = counts.values().fold(0, |n, &c| n.saturating_add(c));
        match statistic {
            // The least of equals: the first maximum.
            Statistic::Modal => counts.iter().rev().max_by_key(|(_, n)| **n).map(|(&p, _)| p),
            // Of scales: the least position.
            Statistic::Max => counts.keys().next().copied(),
            Statistic::Mean => {
                let sum: f64 = counts.iter().map(|(&p, &n)| f64::from(p) * n as f64).sum();
                (total > 0).then(|| (sum / total as f64).round_ties_even() as i32)
            }
            Statistic::Median => {
                let mut before = 0u64;
                let reaches = |(_, n): &(&i32, &u64)| {
                    before = before.saturating_add(**n);
                    before >= total.div_ceil(2)
                };
                counts.iter().find(reaches).map(|(&p, _)| p)
            }
        }
    }

    /// Whether it can be a record: what a file claims may not.
    pub(crate) fn is_sound(&self) -> bool {
        let known = |counts: &BTreeMap<i32, u64>| counts.keys().all(|p| (-200..=200).contains(p));
        (2..=16).contains(&self.bits) && known(&self.diffs) && known(&self.extremes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(positions: &[i32]) -> Positions {
        let mut all = Positions::new(8);
        positions.iter().for_each(|&p| all.add(BatchPositions { diffs: p, extremes: p - 1 }));
        all
    }

    #[test]
    fn takes_each_statistic_over_the_batches() {
        let p = record(&[5, 3, 3, 6, 5]);
        for (statistic, expected) in
            [(Statistic::Modal, 3), (Statistic::Max, 3), (Statistic::Mean, 4), (Statistic::Median, 5)]
        {
            assert_eq!(p.position(true, statistic), Some(expected), "{statistic:?}");
            assert_eq!(record(&[]).position(true, statistic), None);
        }
        assert_eq!(p.position(false, Statistic::Max), Some(2));
        // PyTorch's median of an even number is the lower one.
        assert_eq!(record(&[1, 4]).position(true, Statistic::Median), Some(1));
    }

    #[test]
    fn merges_to_the_record_of_all_batches() {
        let mut a = record(&[1, 2]);
        a.merge(&record(&[2, 7]));
        assert_eq!(a, record(&[1, 2, 2, 7]));
    }
}
