//! Reductions, softmax, normalisation: functions of rows or of channels.

mod axis;
mod extreme;
mod norm;
mod rows;
mod running;
mod softmax;

pub use axis::{ReduceOp, reduce};
pub use extreme::{ArgExtreme, arg_extreme};
pub use norm::{LayerNorm, LayerNormOutputs, batch_norm, group_norm, layer_norm, rms_norm};
pub use running::{Running, running_sum, running_sum_in_place};
pub use softmax::{log_softmax, softmax};

pub(crate) use rows::{CHAINS, softmax_row, sum_of_chains};
pub(crate) use softmax::{Columns, Form, block_width};

#[cfg(test)]
mod tests;
