//! Neural-network layers: convolution, pooling, normalisation, attention, recurrence.

pub mod attention;
pub mod average_pool;
pub mod batch_normalization;
pub mod conv;
pub mod conv_transpose;
pub mod deform_conv;
pub mod global_pool;
pub mod group_normalization;
pub mod instance_normalization;
pub mod layer_normalization;
pub mod loss;
pub mod lp_normalization;
pub mod lp_pool;
pub mod lrn;
mod macs;
pub mod max_pool;
pub mod max_roi_pool;
pub mod max_unpool;
pub mod mean_variance_normalization;
pub mod negative_log_likelihood_loss;
mod pool;
mod real;
pub mod recurrent;
pub mod rms_normalization;
pub mod roi_align;
pub mod rotary_embedding;
pub mod softmax_cross_entropy_loss;
mod stats;
#[cfg(test)]
mod testing;
pub mod window;

pub use attention::Attention;
pub use average_pool::AveragePool;
pub use batch_normalization::BatchNormalization;
pub use conv::{Conv, ConvShape};
pub use conv_transpose::{ConvTranspose, ConvTransposeShape};
pub use deform_conv::DeformConv;
pub use global_pool::{GlobalAveragePool, GlobalLpPool, GlobalMaxPool};
pub use group_normalization::GroupNormalization;
pub use instance_normalization::InstanceNormalization;
pub use layer_normalization::LayerNormalization;
pub use lp_normalization::LpNormalization;
pub use lp_pool::LpPool;
pub use lrn::Lrn;
pub use macs::macs;
pub use max_pool::MaxPool;
pub use max_roi_pool::MaxRoiPool;
pub use max_unpool::MaxUnpool;
pub use mean_variance_normalization::MeanVarianceNormalization;
pub use negative_log_likelihood_loss::NegativeLogLikelihoodLoss;
pub use recurrent::{Gru, Lstm, Rnn};
pub use rms_normalization::RmsNormalization;
pub use roi_align::RoiAlign;
pub use rotary_embedding::RotaryEmbedding;
pub use softmax_cross_entropy_loss::SoftmaxCrossEntropyLoss;
pub use window::{AutoPad, Span, Window, WindowAttrs};

crate::registry::operators! {
    "Attention" => attention::build,
    "AveragePool" => average_pool::build,
    "BatchNormalization" => batch_normalization::build,
    "Conv" => conv::build,
    "ConvTranspose" => conv_transpose::build,
    "DeformConv" => deform_conv::build,
    "GRU" => recurrent::build_gru,
    "GlobalAveragePool" => global_pool::build_average,
    "GlobalLpPool" => global_pool::build_lp,
    "GlobalMaxPool" => global_pool::build_max,
    "GroupNormalization" => group_normalization::build,
    "InstanceNormalization" => instance_normalization::build,
    "LRN" => lrn::build,
    "LSTM" => recurrent::build_lstm,
    "LayerNormalization" => layer_normalization::build,
    "LpNormalization" => lp_normalization::build,
    "LpPool" => lp_pool::build,
    "MaxPool" => max_pool::build,
    "MaxRoiPool" => max_roi_pool::build,
    "MaxUnpool" => max_unpool::build,
    "MeanVarianceNormalization" => mean_variance_normalization::build,
    "NegativeLogLikelihoodLoss" => negative_log_likelihood_loss::build,
    "RMSNormalization" => rms_normalization::build,
    "RNN" => recurrent::build_rnn,
    "RoiAlign" => roi_align::build,
    "RotaryEmbedding" => rotary_embedding::build,
    "SoftmaxCrossEntropyLoss" => softmax_cross_entropy_loss::build,
}
