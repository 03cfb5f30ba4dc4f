//! Passes that recognise functions written in primitive operators, and what has to wait for them.

pub mod affine_into_weights;
pub mod gelu;
pub mod hard_swish;
pub mod layer_norm;
pub mod rms_norm;
pub mod softmax;
