//! Repeatable random numbers for tests.

use narrowbit_tensor::SplitMix64;

/// [`SplitMix64`] with what tests ask of it.
#[derive(Debug, Clone)]
pub struct Random(SplitMix64);

impl Random {
    /// A generator that always gives the same numbers for a seed.
    pub fn new(seed: u64) -> Random {
        Random(SplitMix64::new(seed))
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % (n.max(1) as u64)) as usize
    }

    /// A number in `[-1, 1)`.
    pub fn signed_unit(&mut self) -> f32 {
        self.0.signed_unit()
    }

    /// `n` numbers in `[-1, 1)`.
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.signed_unit()).collect()
    }
}
