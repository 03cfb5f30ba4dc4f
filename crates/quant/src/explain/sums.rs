//! What rounding costs, value by value.

use super::{Choice, decibels};
use crate::observe::Range;

/// Sums over values and what their codes stand for.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    noise: f64,
    signal: f64,
    count: u64,
    beyond: u64,
    range: Option<Range>,
    scales: Option<(f32, f32)>,
}

impl Sums {
    /// Adds a value, what stands for it, and whether it lies beyond the codes.
    pub fn add(&mut self, x: f32, back: f32, beyond: bool) {
        if !x.is_finite() {
            return;
        }
        let (x, back) = (f64::from(x), f64::from(back));
        self.noise += (x - back).powi(2);
        self.signal += x * x;
        self.count += 1;
        self.beyond += u64::from(beyond);
        let own = Range { min: x, max: x };
        self.range = Some(self.range.map_or(own, |r| r.union(own)));
    }

    /// Adds a scale.
    pub fn scale(&mut self, scale: f32) {
        let (least, greatest) = self.scales.unwrap_or((scale, scale));
        self.scales = Some((least.min(scale), greatest.max(scale)));
    }

    /// Signal to noise, in decibels.
    pub fn sqnr_db(&self) -> f64 {
        decibels(self.signal, self.noise)
    }

    /// Values added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The squared error of all.
    pub fn noise(&self) -> f64 {
        self.noise
    }

    /// The choice that these sums are of.
    pub fn choice(&self, format: String, granularity: String, method: &str) -> Choice {
        let n = self.count.max(1) as f64;
        let (least, greatest) = self.scales.unwrap_or((1.0, 1.0));
        Choice {
            chosen: false,
            format,
            symmetric: true,
            granularity,
            method: method.to_owned(),
            range: self.range.unwrap_or(Range { min: 0.0, max: 0.0 }),
            scale: least,
            greatest_scale: (least != greatest).then_some(greatest),
            zero_point: 0,
            sqnr_db: self.sqnr_db(),
            mse: self.noise / n,
            saturated: self.beyond as f64 / n,
        }
    }
}
