use serde::{Deserialize, Serialize};

/// Sums of a tensor's elements by channel: what bias correction needs, in memory that does not grow with samples.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Means {
    /// Elements of each channel.
    count: u64,
    /// Their sum, per channel.
    sums: Vec<f64>,
}

/// Records of more channels are none.
pub(super) const MOST: usize = 1 << 24;

impl Means {
    /// Adds one sample's sums of `count` elements per channel; those of another number of channels empty the record for good.
    pub fn add(&mut self, count: u64, sums: &[f64]) {
        self.merge(&Means { count, sums: sums.to_vec() });
    }

    /// Adds another record.
    pub fn merge(&mut self, next: &Means) {
        if self.count == 0 {
            self.clone_from(next);
        } else if self.sums.len() == next.sums.len() {
            self.count = self.count.saturating_add(next.count);
            self.sums.iter_mut().zip(&next.sums).for_each(|(a, b)| *a += b);
        } else if next.count > 0 {
            self.sums.clear();
        }
    }

    /// The mean of each channel.
    pub fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|s| s / self.count.max(1) as f64).collect()
    }

    /// Elements of each channel.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether it can be a record: what a file claims may not.
    pub(crate) fn is_sound(&self) -> bool {
        self.sums.len() <= MOST && self.sums.iter().all(|s| s.is_finite())
    }
}

/// The sums by channel of `values` in memory order, whose channels have `inner` elements beside each other; what is not
/// finite counts as 0.
pub(crate) fn sums(values: &[f32], channels: usize, inner: usize) -> Vec<f64> {
    let mut sums = vec![0f64; channels];
    if inner == 1 {
        for row in values.chunks_exact(channels.max(1)) {
            row.iter().zip(&mut sums).for_each(|(&x, s)| *s += finite(x));
        }
        return sums;
    }
    for (i, run) in values.chunks_exact(inner.max(1)).enumerate() {
        sums[i % channels] += sum(run);
    }
    sums
}

/// The sum of finite values, in chains: one addition need not wait for the one before.
fn sum(run: &[f32]) -> f64 {
    const CHAINS: usize = 8;
    let mut chains = [0f64; CHAINS];
    let parts = run.chunks_exact(CHAINS);
    let rest = parts.remainder();
    for part in parts {
        chains.iter_mut().zip(part).for_each(|(c, &x)| *c += finite(x));
    }
    chains.iter_mut().zip(rest).for_each(|(c, &x)| *c += finite(x));
    chains.iter().sum()
}

/// A choice, not a branch: the compiler makes vectors of it.
fn finite(x: f32) -> f64 {
    if x.is_finite() { f64::from(x) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_channels_wherever_they_lie() {
        // [2 samples, 2 channels, 3] and the same with channels last.
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(sums(&values, 2, 3), [0.0 + 1.0 + 2.0 + 6.0 + 7.0 + 8.0, 3.0 + 4.0 + 5.0 + 9.0 + 10.0 + 11.0]);
        assert_eq!(sums(&[1.0, 10.0, 2.0, f32::NAN], 2, 1), [3.0, 10.0]);
        // Longer runs than there are chains, and no multiple of them.
        let values: Vec<f32> = (0..38).map(|i| if i == 20 { f32::INFINITY } else { i as f32 }).collect();
        assert_eq!(sums(&values, 2, 19), [171.0, (19..38).sum::<i32>() as f64 - 20.0]);
    }

    #[test]
    fn merges_to_the_record_of_all_samples_and_gives_up_on_others() {
        let mut m = Means::default();
        m.add(2, &[1.0, 2.0]);
        m.add(2, &[3.0, 6.0]);
        assert_eq!(m.means(), [1.0, 2.0]);
        m.add(1, &[1.0]);
        m.add(1, &[1.0, 1.0]);
        assert!(m.means().is_empty());
    }
}
