//! RNN, GRU and LSTM: one driver over sequences and directions, one cell each.

mod activation;
mod driver;
mod dynamic_lstm;
mod gru;
mod lstm;
mod rnn;

pub use activation::{Activation, Function};
pub use dynamic_lstm::{DynamicQuantizeLstm, build as build_dynamic_lstm};
pub use gru::{Gru, build as build_gru};
pub use lstm::{Lstm, build as build_lstm};
pub use rnn::{Rnn, build as build_rnn};

use narrowbit_ir::{AttrMap, Dim, Fact, InferCx, OpError};

use crate::support::show;

/// Which way a sequence is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first element to the last.
    Forward,
    /// From the last element to the first.
    Reverse,
    /// Both, with a set of weights each.
    Bidirectional,
}

impl Direction {
    /// ONNX's spelling.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
            Direction::Bidirectional => "bidirectional",
        }
    }

    /// The number of sets of weights.
    pub fn count(self) -> usize {
        if self == Direction::Bidirectional { 2 } else { 1 }
    }

    /// Whether the `i`-th set of weights reads from the last element to the first.
    pub fn is_reverse(self, i: usize) -> bool {
        self == Direction::Reverse || i == 1
    }
}

/// The attributes that RNN, GRU and LSTM share.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentAttrs {
    /// Which way sequences are read.
    pub direction: Direction,
    /// The number of hidden units, where the file states it.
    pub hidden_size: Option<i64>,
    /// The activation functions, those of the first direction first.
    pub activations: Vec<Activation>,
    /// Inputs of activations are clipped to ±this.
    pub clip: Option<f32>,
    /// Whether the batch is the first axis (`layout` 1) instead of the sequence.
    pub batch_first: bool,
    /// The attributes `activations`, `activation_alpha` and `activation_beta` as they stand in the file.
    pub stated: AttrMapParts,
}

/// Attributes that are kept as the file states them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AttrMapParts {
    /// `activations`.
    pub activations: Option<Vec<String>>,
    /// `activation_alpha`.
    pub alpha: Option<Vec<f32>>,
    /// `activation_beta`.
    pub beta: Option<Vec<f32>>,
}

impl RecurrentAttrs {
    /// Takes the shared attributes; `defaults` are the activations of one direction.
    pub(super) fn take(attrs: &mut AttrMap, defaults: &[Function]) -> Result<RecurrentAttrs, OpError> {
        let direction = match attrs.string("direction")?.as_deref() {
            None | Some("forward") => Direction::Forward,
            Some("reverse") => Direction::Reverse,
            Some("bidirectional") => Direction::Bidirectional,
            Some(d) => {
                return Err(OpError::attribute(
                    "direction",
                    format!("is \"{d}\", not forward, reverse or bidirectional"),
                ));
            }
        };
        let stated = AttrMapParts {
            activations: attrs.strings("activations")?,
            alpha: attrs.floats("activation_alpha")?,
            beta: attrs.floats("activation_beta")?,
        };
        let batch_first = match attrs.int_or("layout", 0)? {
            l @ (0 | 1) => l == 1,
            l => return Err(OpError::attribute("layout", format!("is {l}, must be 0 or 1"))),
        };
        let hidden_size = match attrs.int("hidden_size")? {
            Some(h) if h < 1 => return Err(OpError::attribute("hidden_size", format!("is {h}, must be at least 1"))),
            h => h,
        };
        Ok(RecurrentAttrs {
            direction,
            hidden_size,
            activations: activation::resolve(&stated, defaults, direction.count())?,
            clip: attrs.float("clip")?.map(f32::abs),
            batch_first,
            stated,
        })
    }

    /// Adds the attributes to a map, as they were taken.
    pub(super) fn put(&self, attrs: AttrMap) -> AttrMap {
        let direction = (self.direction != Direction::Forward).then(|| self.direction.name());
        attrs
            .with_opt("direction", direction)
            .with_opt("hidden_size", self.hidden_size)
            .with_opt("activations", self.stated.activations.clone())
            .with_opt("activation_alpha", self.stated.alpha.clone())
            .with_opt("activation_beta", self.stated.beta.clone())
            .with_opt("clip", self.clip)
            .with_unless("layout", i64::from(self.batch_first), 0)
    }

    /// Infers Y and `states` final states.
    pub(super) fn infer(&self, cx: &InferCx, states: usize) -> Result<Vec<Fact>, OpError> {
        cx.get(0)?;
        cx.get(1)?;
        let dims = match cx.shape(0) {
            None => [Dim::Unknown, Dim::Unknown, Dim::Unknown],
            Some([a, b, c]) => [a.clone(), b.clone(), c.clone()],
            Some(s) => return Err(OpError::shape(format!("X of shape {} needs 3 axes", show(s)))),
        };
        let [first, second, _] = dims;
        let (seq, batch) = if self.batch_first { (second, first) } else { (first, second) };
        let hidden = match (self.hidden_size, cx.shape(2)) {
            (Some(h), _) => Dim::Known(h),
            (None, Some([_, _, h])) => h.clone(),
            _ => Dim::Unknown,
        };
        let dirs = Dim::from(self.direction.count());
        let (y, state) = match self.batch_first {
            true => (vec![batch.clone(), seq, dirs.clone(), hidden.clone()], vec![batch, dirs, hidden]),
            false => (vec![seq, dirs.clone(), batch.clone(), hidden.clone()], vec![dirs, batch, hidden]),
        };
        let mut outs = vec![Fact::tensor(cx.dtype(0), Some(y))];
        outs.extend(vec![Fact::tensor(cx.dtype(0), Some(state)); states]);
        Ok(outs)
    }
}
