//! Operators on 8-bit tensors beside the matrix products, mostly in NHWC.
//!
//! Everywhere a quantized value stands for `f32(q − zero point) · scale`, and a result is
//! `saturate(round_half_even(v · inverse scale) + zero point)`, the same bits on every tier. `fixed` knows no scales.

mod affine;
mod binary;
mod block;
mod code_softmax;
mod columns;
mod depthwise;
mod fixed;
mod layout;
mod lookup;
mod pool;
mod qlinear;
mod rows;

pub use affine::affine;
pub use binary::{Broadcast, binary};
pub use block::Quant;
pub use code_softmax::{CodeFormat, softmax_codes};
pub use columns::softmax_columns;
pub use depthwise::{DepthwiseElement, DepthwiseWeights, depthwise_nhwc, depthwise_nhwc_pack};
pub use fixed::{ApartWeights, FixedElement, Rescale, RescaleChannel, rescale, sums_apart};
pub use layout::{dequantize_to_nchw, quantize_to_nhwc, to_nchw, to_nhwc};
pub use lookup::{lookup, lookup_in_place};
pub use pool::{
    Divisor, PoolDepth, PoolElement, PoolNhwcParams, avg_pool2d_nhwc, global_avg_pool_nhwc, max_pool2d_nhwc,
};
pub use qlinear::{CodeOp, CodePair, qlinear_binary};
pub(crate) use rows::exponentials_or_zeros;
pub use rows::{RowNorm, layer_norm_rows, softmax_rows, unary_rows};
