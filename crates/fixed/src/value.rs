//! Values while a graph is lowered: where their integers lie, and what these stand for.

use crate::dyadic::Dyadic;
use crate::run::Register;

/// What one step of an integer stands for: `scale / divisor`, the scale of the tensor or of each channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// One scale, or one per channel; positive.
    pub scales: Vec<Dyadic>,
    /// The axis of the channels counted from the back, 1 for the last; `None` with one scale.
    pub axis: Option<usize>,
    /// What means are still to be divided by.
    pub divisor: i64,
}

impl Unit {
    /// One scale for all.
    pub fn tensor(scale: Dyadic) -> Unit {
        Unit { scales: vec![scale], axis: None, divisor: 1 }
    }

    /// Whether one power of two is the unit of all.
    pub fn is_plain(&self) -> bool {
        self.divisor == 1 && self.scales.len() == 1 && self.scales[0].is_power_of_two()
    }

    /// The most bits of a mantissa.
    pub fn bits(&self) -> u32 {
        self.scales.iter().map(|s| s.bits()).max().unwrap_or(0)
    }
}

/// In which order a tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As its shape says.
    Plain,
    /// `[n, c, h, w]` with the channels last.
    ChannelsLast,
}

/// Integers that stand for `(integer − zero) · unit`.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    pub register: Register,
    pub shape: Vec<usize>,
    pub layout: Layout,
    pub unit: Unit,
    pub zero: i64,
    /// The least and the greatest integer that can be there.
    pub bounds: (i64, i64),
}

/// A constant of integers.
#[derive(Debug, Clone)]
pub(crate) struct Codes {
    pub values: Vec<i64>,
    pub shape: Vec<usize>,
    pub unit: Unit,
}

impl Layout {
    /// Where each element of a tensor lies, in the order of its shape.
    pub fn positions(self, shape: &[usize]) -> Vec<u32> {
        let count = shape.iter().product::<usize>();
        match (self, shape) {
            (Layout::ChannelsLast, &[_, c, h, w]) => {
                let place = |i: usize| {
                    let (x, y, ch, n) = (i % w, i / w % h, i / (w * h) % c, i / (w * h * c));
                    (((n * h + y) * w + x) * c + ch) as u32
                };
                (0..count).map(place).collect()
            }
            _ => (0..count as u32).collect(),
        }
    }

    /// The axis of the channels of a tensor, from the back: that of images, or the last one.
    pub fn channels(rank: usize) -> usize {
        if rank == 4 { 3 } else { 1 }
    }

    /// The layout in which the axis of a unit lies innermost.
    pub fn natural(rank: usize, axis: Option<usize>) -> Layout {
        if rank == 4 && axis == Some(3) { Layout::ChannelsLast } else { Layout::Plain }
    }
}
