//! Passes that recognise functions written in primitive operators.

pub mod gelu;
pub mod hard_swish;
pub mod layer_norm;
pub mod rms_norm;
pub mod softmax;
