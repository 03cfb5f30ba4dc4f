//! Rewrites that make a model easier to quantize and leave its function as it is.

pub mod smooth_norm;
