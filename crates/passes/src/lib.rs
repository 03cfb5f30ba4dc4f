//! Rewrites of graphs: [`sanitize()`] brings a model into the form that the other layers expect.
//!
//! A [`Pass`] is one file with its documentation template (what it does, when it applies, numerical
//! effect, example) and one line in [`passes`]; its tests are text files under `tests/filetests`.
//! The [`Manager`] runs the passes stage by stage until nothing changes; each rewrite is one
//! [`narrowbit_ir::Patch`], counted, and a match that is left alone is reported with its reason.
#![forbid(unsafe_code)]

pub mod attention;
pub mod equalize;
mod error;
pub mod fuse;
mod manager;
mod options;
mod pass;
pub mod pattern;
pub mod replace;
mod report;
pub mod sanitize;
mod view;

use narrowbit_ir::{Model, infer};

pub use error::PassError;
pub use manager::Manager;
pub use options::SanitizeOptions;
pub use pass::{Found, Miss, OrNo, Pass, PassCx, Stage, unless_skipped, when};
pub use report::{PassReport, Report, Skipped};
pub use view::View;

/// Every pass, in the order in which they run.
pub fn passes() -> &'static [&'static dyn Pass] {
    &[
        &sanitize::inline_functions::InlineFunctions,
        &sanitize::upgrade_opset::UpgradeOpset,
        &sanitize::dead_code::DeadCode,
        &sanitize::constant_folding::ConstantFolding,
        &sanitize::identity::Identity,
        &sanitize::shape_computations::ShapeComputations,
        &sanitize::common_subexpressions::CommonSubexpressions,
        &sanitize::einsum_to_matmul::EinsumToMatmul,
        &sanitize::merge_transposes::MergeTransposes,
        &sanitize::merge_reshapes::MergeReshapes,
        &sanitize::merge_slices::MergeSlices,
        &sanitize::push_transposes::PushTransposes,
        &sanitize::select_early::SelectEarly,
        &sanitize::batchnorm_into_conv::BatchnormIntoConv,
        &sanitize::conv_add_bias::ConvAddBias,
        &sanitize::scalar_into_weights::ScalarIntoWeights,
        &sanitize::pad_into_window::PadIntoWindow,
        &sanitize::transposed_constant::TransposedConstant,
        &sanitize::matmul_add_to_gemm::MatmulAddToGemm,
        &sanitize::gemm_alpha_beta::GemmAlphaBeta,
        &sanitize::maxpool_before_relu::MaxpoolBeforeRelu,
        &sanitize::global_average_pool::GlobalAveragePool,
        &sanitize::min_max_to_clip::MinMaxToClip,
        &fuse::softmax::Softmax,
        &fuse::layer_norm::LayerNorm,
        &fuse::rms_norm::RmsNorm,
        &fuse::gelu::Gelu,
        &fuse::hard_swish::HardSwish,
        &fuse::affine_into_weights::AffineIntoWeights,
        &equalize::smooth_norm::SmoothNorm,
    ]
}

/// Prepares a clean model for quantization, by the passes of [`Stage::Equalize`]: the function stays the same, the
/// ranges of channels come closer to each other.
///
/// # Errors
/// When a node contradicts its operator.
pub fn equalize(model: &mut Model) -> Result<Report, PassError> {
    let options = SanitizeOptions::default();
    let names: Vec<&str> = passes().iter().filter(|p| p.stage() == Stage::Equalize).map(|p| p.name()).collect();
    let report = Manager::only(&names, &options)?.run(model)?;
    infer::annotate(&mut model.graph)?;
    Ok(report)
}

/// Brings a model into a clean form with the same outputs up to float rounding: one operator set, no
/// functions, folded constants, merged and recognised operators. Names of inputs, outputs and of the
/// activations that survive are kept, and types are inferred for all values.
///
/// # Errors
/// When a node contradicts its operator, a function can't be expanded, or a dump can't be written.
pub fn sanitize(model: &mut Model, options: &SanitizeOptions) -> Result<Report, PassError> {
    let report = Manager::new(options)?.run(model)?;
    infer::annotate(&mut model.graph)?;
    Ok(report)
}
