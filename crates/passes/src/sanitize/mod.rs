//! Passes that bring a file into one form and remove what changes nothing.

pub mod batchnorm_into_conv;
pub mod common_subexpressions;
pub mod constant_folding;
pub mod conv_add_bias;
pub mod dead_code;
pub mod einsum_to_matmul;
pub mod gemm_alpha_beta;
pub mod global_average_pool;
pub mod identity;
pub mod inline_functions;
pub mod matmul_add_to_gemm;
pub mod maxpool_before_relu;
pub mod merge_reshapes;
pub mod merge_slices;
pub mod merge_transposes;
pub mod min_max_to_clip;
pub mod pad_into_window;
pub mod push_transposes;
pub mod scalar_into_weights;
pub mod select_early;
pub mod shape_computations;
pub mod transposed_constant;
pub mod upgrade_opset;
pub(crate) mod weights;
