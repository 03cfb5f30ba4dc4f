//! What the runtimes that a file is meant for can run, and how settings become what they can.
//!
//! [`ROWS`] is data: a row for each [`Feature`] that a file may have, a [`Verdict`] for each [`Target`], and where it is
//! known from. [`fit`] walks the features of some settings and follows the verdicts.

mod graph;
mod table;

use std::fmt;

use narrowbit_ir::Graph;
use serde::{Deserialize, Serialize};

use crate::approach::{Approach, BlockFormat, BlockScales, BlockType, Compute, Granularity, LstmProducts};
use crate::options::QuantOptions;
use crate::scheme::{ActivationScheme, Formula, NumberFormat};

use graph::{Part, convolves_joined, depths, hands_on_codes, has_table, joins_codes, multiplies};
pub use table::{PROFILES, Profile, ROWS, Row};

/// A runtime that a file is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Target {
    /// Our own, which runs all that we write.
    Narrowbit,
    /// ONNX Runtime on CPUs.
    Onnxruntime,
    /// OpenVINO on CPUs.
    Openvino,
    /// TensorRT on NVIDIA's GPUs.
    Tensorrt,
}

impl Target {
    /// The targets with limits, in the order of the table's columns.
    pub const LIMITED: [Target; 3] = [Target::Onnxruntime, Target::Openvino, Target::Tensorrt];

    /// What is known of the target; `None` for the one without limits.
    pub fn profile(self) -> Option<&'static Profile> {
        PROFILES.iter().find(|p| p.target == self)
    }
}

/// Something that a file may hold and a runtime may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// Activations of a type between QuantizeLinear and DequantizeLinear.
    Activations(NumberFormat),
    /// Weights of a type behind DequantizeLinear, by tensor or channel.
    Weights(NumberFormat),
    /// Zero points of activations that are not 0.
    ActivationZeroPoints,
    /// Zero points of weights that are not 0.
    WeightZeroPoints,
    /// Biases of int32 behind DequantizeLinear.
    Int32Biases,
    /// Concat of what a convolution's codes stand for with a constant.
    JoinedCodes,
    /// Convolutions on integers that hand on floats, or have a function between them and QuantizeLinear.
    FloatOutputs,
    /// Activations with a scale per channel, in front of depthwise convolutions.
    ChannelActivations,
    /// MatMul of fp8 operands.
    Fp8MatMul,
    /// Conv of fp8 operands whose results a pool or another product reads as they are.
    Fp8Conv,
    /// Convolutions of a Concat's int8 codes.
    JoinedInt8,
    /// The same, where the scheme has no uint8 to offer.
    JoinedPositions,
    /// Zero points of a transposed convolution's weights that are not 0.
    TransposedZeroPoints,
    /// Gather of a table of 8-bit integers.
    Tables,
    /// QLinearConv, QLinearMatMul and friends.
    QOperators,
    /// DynamicQuantizeLinear with MatMulInteger or ConvInteger.
    DynamicTensor,
    /// A scale for each row of an activation, found at run time (QuantizeLinear by blocks).
    DynamicToken,
    /// LSTMs on integers (com.microsoft.DynamicQuantizeLSTM).
    DynamicLstm,
    /// Weights by blocks behind DequantizeLinear.
    Blocks(BlockType),
    /// Weights by blocks of other lengths than 64 and 128 behind DequantizeLinear.
    ShortBlocks,
    /// Integer weights by blocks, the last of which is shorter than the others.
    RaggedCodes,
    /// Weights of floating-point types by such blocks.
    RaggedFloats,
    /// Scales of blocks that are powers of two in 8 bits (e8m0).
    PowerScales,
    /// Weights by blocks in `com.microsoft.MatMulNBits`.
    NBits(BlockType),
    /// Weights of 16 bits behind a Cast to float32.
    HalfWeights,
    /// Operators that compute in float16.
    Float16,
    /// Operators that compute in bfloat16.
    Bfloat16,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Feature::Activations(t) => write!(f, "activations of {}", t.name()),
            Feature::Weights(t) => write!(f, "weights of {} by channel or tensor", t.name()),
            Feature::ActivationZeroPoints => f.write_str("asymmetric activations"),
            Feature::WeightZeroPoints => f.write_str("asymmetric weights"),
            Feature::Int32Biases => f.write_str("biases of int32"),
            Feature::JoinedCodes => f.write_str("Concat of a convolution's codes with a constant"),
            Feature::FloatOutputs => f.write_str("convolutions on integers with float results"),
            Feature::ChannelActivations => f.write_str("activations with a scale per channel"),
            Feature::Fp8MatMul => f.write_str("MatMul of fp8"),
            Feature::Fp8Conv => f.write_str("Conv of fp8 in front of MaxPool or another product"),
            Feature::JoinedInt8 => f.write_str("convolutions of a Concat's int8 codes"),
            Feature::JoinedPositions => f.write_str("convolutions of a Concat's fixed-point codes"),
            Feature::TransposedZeroPoints => f.write_str("asymmetric weights of ConvTranspose"),
            Feature::Tables => f.write_str("tables of int8"),
            Feature::QOperators => f.write_str("QLinear operators"),
            Feature::DynamicTensor => f.write_str("scales found at run time"),
            Feature::DynamicToken => f.write_str("a scale for each token, found at run time"),
            Feature::DynamicLstm => f.write_str("LSTMs on integers"),
            Feature::Blocks(t) => write!(f, "blocks of {t} behind DequantizeLinear"),
            Feature::ShortBlocks => f.write_str("blocks of other lengths than 64 and 128"),
            Feature::RaggedCodes | Feature::RaggedFloats => {
                f.write_str("blocks that do not divide the depth of a product")
            }
            Feature::PowerScales => f.write_str("scales of e8m0"),
            Feature::NBits(t) => write!(f, "MatMulNBits of {t}"),
            Feature::HalfWeights => f.write_str("16-bit weights with float32 operators"),
            Feature::Float16 => f.write_str("operators of float16"),
            Feature::Bfloat16 => f.write_str("operators of bfloat16"),
        }
    }
}

/// How settings change where a target lacks a feature for which another will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Activations become int8 around 0.
    SymmetricInt8Activations,
    /// Activations get the zero point 0.
    SymmetricActivations,
    /// Activations become uint8.
    Uint8Activations,
    /// Weights become int8 around 0.
    SymmetricInt8Weights,
    /// Weights get the zero point 0.
    SymmetricWeights,
    /// Biases stay float.
    FloatBiases,
    /// Convolutions that only floats read hand on floats.
    FloatOutputs,
    /// All convolutions hand on integers.
    IntegerOutputs,
    /// Activations have one scale each.
    TensorActivations,
    /// Tables stay float.
    FloatTables,
    /// Products are dynamic by tensor instead of by token.
    DynamicTensor,
    /// LSTMs compute on floats, with weights stored in 8 bits.
    FloatLstm,
    /// Weights by blocks are written as MatMulNBits.
    NBits,
    /// Weights by blocks become int4.
    Int4,
    /// Blocks have 128 weights.
    Block128,
    /// Scales of blocks are float32.
    FloatScales,
    /// Operators compute in float32 on 16-bit weights.
    Float32Operators,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Change::SymmetricInt8Activations => "activations are symmetric int8",
            Change::SymmetricActivations => "activations are symmetric",
            Change::Uint8Activations => "activations are uint8",
            Change::SymmetricInt8Weights => "weights are symmetric int8",
            Change::SymmetricWeights => "weights are symmetric",
            Change::FloatBiases => "biases stay float",
            Change::FloatOutputs => "convolutions hand on floats where nothing reads integers",
            Change::IntegerOutputs => "convolutions hand on integers everywhere",
            Change::TensorActivations => "activations have one scale each",
            Change::FloatTables => "tables stay float",
            Change::DynamicTensor => "activations have one scale per tensor",
            Change::FloatLstm => "LSTMs compute on floats, their weights in 8 bits",
            Change::NBits => "weights are written as MatMulNBits",
            Change::Int4 => "blocks are symmetric int4",
            Change::Block128 => "blocks have 128 weights",
            Change::FloatScales => "scales of blocks are float32",
            Change::Float32Operators => "operators compute in float32",
        })
    }
}

/// What a target does with a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It runs it as ONNX defines it.
    Runs,
    /// It runs it, but the user should know this.
    Note(&'static str),
    /// It runs it as ONNX defines it, but on floats; settings are changed to have it on integers.
    Slow(Change, &'static str),
    /// It does not, for this reason; settings are changed.
    Adapt(Change, &'static str),
    /// It does not, for this reason, and nothing else would be what was asked for; what the user can do.
    Refuse(&'static str, &'static str),
}

/// What a target can't run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A feature.
    #[error("{runtime} does not run {feature}: it {why}\nhelp: {help}")]
    Feature {
        /// The runtime with the version that is known.
        runtime: &'static str,
        /// The feature.
        feature: Feature,
        /// What is known of it.
        why: &'static str,
        /// What to do.
        help: &'static str,
    },
    /// The operator set.
    #[error(
        "{runtime} reads operator sets up to {most}, and this needs {needed}\nhelp: choose types that older operator sets have, or leave --target away"
    )]
    Opset {
        /// The runtime with the version that is known.
        runtime: &'static str,
        /// Its last operator set.
        most: i64,
        /// What the model needs.
        needed: i64,
    },
}

/// Makes settings such that the target that they name runs the file; says what was changed and what else there is to know.
/// `graph` is the float model, `qoperator` whether integer operators are asked for.
///
/// # Errors
/// When the target lacks something for which there is nothing else.
pub fn fit(options: &mut QuantOptions, graph: &Graph, qoperator: bool) -> Result<Fitted, TargetError> {
    let mut fitted = Fitted::default();
    let Some(profile) = options.target.and_then(Target::profile) else { return Ok(fitted) };
    // Each change takes away the feature that asked for it, and brings in others that need none: few rounds do.
    for _ in 0..8 {
        let changed = round(options, graph, qoperator, profile, &mut fitted)?;
        if !changed {
            break;
        }
    }
    Ok(fitted)
}

/// What ONNX Runtime, which most files are for, can't load of a file with these settings, for users who name no target.
/// `graph` and `qoperator` are those of [`fit`].
pub fn unreadable(options: &QuantOptions, graph: &Graph, qoperator: bool) -> Vec<String> {
    let Some(profile) = Target::Onnxruntime.profile().filter(|_| options.target.is_none()) else { return Vec::new() };
    let said = |feature: Feature| match table::verdict(profile.target, feature) {
        Verdict::Refuse(why, help) => Some(format!("{} does not run {feature}: it {why} ({help})", profile.name)),
        Verdict::Adapt(Change::FloatScales, why) => Some(format!("{} does not run {feature}: it {why}", profile.name)),
        _ => None,
    };
    features(options, graph, qoperator).into_iter().filter_map(said).collect()
}

/// What became of settings for a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fitted {
    /// What was changed, and why.
    pub adapted: Vec<String>,
    /// What the user should know of the target.
    pub notes: Vec<String>,
}

/// Whether a setting has changed.
fn round(
    options: &mut QuantOptions,
    graph: &Graph,
    qoperator: bool,
    profile: &Profile,
    fitted: &mut Fitted,
) -> Result<bool, TargetError> {
    for feature in features(options, graph, qoperator) {
        match table::verdict(profile.target, feature) {
            Verdict::Runs => {}
            Verdict::Note(text) => {
                let note = format!("{}: {text}", profile.name);
                if !fitted.notes.contains(&note) {
                    fitted.notes.push(note);
                }
            }
            Verdict::Slow(change, why) | Verdict::Adapt(change, why) => {
                apply(options, change);
                fitted.adapted.push(format!("{change}: {} {why}", profile.name));
                return Ok(true);
            }
            Verdict::Refuse(why, help) => {
                return Err(TargetError::Feature { runtime: profile.name, feature, why, help });
            }
        }
    }
    Ok(false)
}

impl Target {
    /// Checks that the target reads an operator set.
    ///
    /// # Errors
    /// When it is too new.
    pub fn check_opset(self, needed: i64) -> Result<(), TargetError> {
        let Some(profile) = self.profile() else { return Ok(()) };
        match profile.opset {
            Some(most) if needed > most => Err(TargetError::Opset { runtime: profile.name, most, needed }),
            _ => Ok(()),
        }
    }
}

/// All that the file of a graph with these settings may hold. Of a mixture each approach is asked about its own nodes.
pub fn features(options: &QuantOptions, graph: &Graph, qoperator: bool) -> Vec<Feature> {
    let mut all = Vec::new();
    for approach in options.approaches() {
        let part = Part::new(options, approach, graph);
        if !part.is_empty() {
            let found = of_part(&part, qoperator);
            all.extend(found);
        }
    }
    let mut seen = Vec::new();
    all.retain(|f| {
        !seen.contains(f) && {
            seen.push(*f);
            true
        }
    });
    all
}

fn of_part(part: &Part, qoperator: bool) -> Vec<Feature> {
    let half = &part.options.half;
    match part.approach {
        Approach::Static => of_static(part, qoperator),
        Approach::Dynamic => of_dynamic(part),
        Approach::WeightOnly => of_blocks(part),
        Approach::Float16 | Approach::Bfloat16 => vec![match (half.compute(part.approach), part.approach) {
            (Compute::Float32, _) => Feature::HalfWeights,
            (Compute::Half, Approach::Float16) => Feature::Float16,
            (Compute::Half, _) => Feature::Bfloat16,
        }],
    }
}

fn of_static(part: &Part, qoperator: bool) -> Vec<Feature> {
    let (options, graph) = (part.options, part.graph);
    let mut all = Vec::new();
    for a in part.settings(|o| o.activations, options.activations) {
        // Symmetric schemes that take uint8 where nothing is negative keep the zero point 0.
        let unsigned = matches!(a.formula, Formula::Tensorflow | Formula::Ipex | Formula::Mxnet)
            || a.formula == Formula::Quantizeml && a.bits.is_some_and(|b| b < 8);
        all.push(Feature::Activations(a.format));
        if a.symmetric && unsigned && a.format == NumberFormat::Int8 {
            all.push(Feature::Activations(NumberFormat::Uint8));
        }
        if !a.symmetric && !a.format.is_float() {
            all.push(Feature::ActivationZeroPoints);
        }
        if a.format.is_float() && multiplies(part) {
            all.push(Feature::Fp8MatMul);
        }
        if a.format.is_float() && part.quantizes("Conv") && hands_on_codes(graph) {
            all.push(Feature::Fp8Conv);
        }
        if a.format == NumberFormat::Int8 && part.quantizes("Conv") && convolves_joined(graph) {
            let fixed = matches!(a.formula, Formula::Quantizeml | Formula::Vitis);
            all.push(if fixed { Feature::JoinedPositions } else { Feature::JoinedInt8 });
        }
    }
    for w in part.settings(|o| o.weights, options.weights) {
        all.push(Feature::Weights(w.format));
        // Unsigned codes around the middle one have a zero point, too.
        if !w.format.is_float() && (!w.symmetric || !w.format.is_signed()) {
            all.push(Feature::WeightZeroPoints);
            if part.quantizes("ConvTranspose") && part.has("ConvTranspose") {
                all.push(Feature::TransposedZeroPoints);
            }
        }
    }
    if !options.float_biases && !options.weights.format.is_float() {
        all.push(Feature::Int32Biases);
    }
    if !options.float_outputs && !options.activations.format.is_float() && joins_codes(part) {
        all.push(Feature::JoinedCodes);
    }
    let convolves = |group: fn(i64) -> bool| {
        let fits =
            |n: &narrowbit_ir::Node| n.op.name() == "Conv" && group(n.op.attrs().int_or("group", 1).unwrap_or(1));
        part.nodes().any(|(_, n)| fits(n)) && !options.activations.format.is_float()
    };
    if options.channel_activations && options.float_outputs && convolves(|groups| groups > 1) {
        all.push(Feature::ChannelActivations);
    }
    if options.float_outputs && convolves(|_| true) {
        all.push(Feature::FloatOutputs);
    }
    if options.embeddings && !options.weights.format.is_float() && has_table(part) {
        all.push(Feature::Tables);
    }
    if qoperator {
        all.push(Feature::QOperators);
    }
    all
}

fn of_dynamic(part: &Part) -> Vec<Feature> {
    let options = part.options;
    let rows = part.settings(|o| o.dynamic, options.dynamic);
    let lstms = part.quantizes("LSTM") && part.has("LSTM") && rows.iter().any(|d| d.lstm == LstmProducts::Int8);
    let mut all: Vec<Feature> = rows
        .into_iter()
        .map(|d| match d.granularity {
            Granularity::Token => Feature::DynamicToken,
            Granularity::Tensor => Feature::DynamicTensor,
        })
        .collect();
    if options.embeddings && has_table(part) {
        all.push(Feature::Tables);
    }
    all.extend(lstms.then_some(Feature::DynamicLstm));
    all
}

fn of_blocks(part: &Part) -> Vec<Feature> {
    let blocks = part.settings(|o| o.weight_only, part.options.weight_only);
    let of = |w: crate::approach::WeightOnlyOptions| {
        let powers = (w.scales() == BlockScales::E8m0).then_some(Feature::PowerScales);
        let form = match w.format {
            BlockFormat::Matmulnbits => vec![Feature::NBits(w.codes)],
            BlockFormat::Qdq if matches!(w.block, 64 | 128) => vec![Feature::Blocks(w.codes)],
            BlockFormat::Qdq => vec![Feature::Blocks(w.codes), Feature::ShortBlocks],
        };
        // The table of NF4 is no DequantizeLinear.
        let dequantized = w.format == BlockFormat::Qdq && w.codes != BlockType::Nf4;
        let ragged = (dequantized && depths(part).any(|k| !k.is_multiple_of(w.block)))
            .then(|| if w.codes.code_range().is_some() { Feature::RaggedCodes } else { Feature::RaggedFloats });
        form.into_iter().chain(powers).chain(ragged)
    };
    blocks.into_iter().flat_map(of).collect()
}

fn apply(options: &mut QuantOptions, change: Change) {
    match change {
        Change::SymmetricInt8Activations | Change::SymmetricActivations => {
            let own = options.overrides.iter_mut().filter_map(|o| o.activations.as_mut());
            own.chain([&mut options.activations]).for_each(|a| symmetric(a, change));
        }
        Change::Uint8Activations => {
            let own = options.overrides.iter_mut().filter_map(|o| o.activations.as_mut());
            own.chain([&mut options.activations]).for_each(|a| {
                a.format = NumberFormat::Uint8;
                // Their uint8 has no room for what is negative.
                if matches!(a.formula, Formula::Tensorflow | Formula::Ipex | Formula::Mxnet) {
                    (a.formula, a.bits) = (Formula::Narrowbit, None);
                }
            });
        }
        Change::SymmetricInt8Weights | Change::SymmetricWeights => {
            let own = options.overrides.iter_mut().filter_map(|o| o.weights.as_mut());
            own.chain([&mut options.weights]).for_each(|w| {
                w.symmetric = true;
                if change == Change::SymmetricInt8Weights || !w.format.is_signed() {
                    w.format = NumberFormat::Int8;
                }
            });
        }
        Change::FloatBiases => options.float_biases = true,
        Change::FloatOutputs => options.float_outputs = true,
        Change::IntegerOutputs => options.float_outputs = false,
        Change::TensorActivations => options.channel_activations = false,
        Change::FloatTables => options.embeddings = false,
        Change::DynamicTensor => {
            let own = options.overrides.iter_mut().filter_map(|o| o.dynamic.as_mut());
            own.chain([&mut options.dynamic]).for_each(|d| d.granularity = Granularity::Tensor);
        }
        Change::FloatLstm => {
            let own = options.overrides.iter_mut().filter_map(|o| o.dynamic.as_mut());
            own.chain([&mut options.dynamic]).for_each(|d| d.lstm = LstmProducts::Float);
        }
        Change::Float32Operators => options.half.compute = Some(Compute::Float32),
        Change::NBits | Change::Int4 | Change::Block128 | Change::FloatScales => {
            let own = options.overrides.iter_mut().filter_map(|o| o.weight_only.as_mut());
            own.chain([&mut options.weight_only]).for_each(|w| match change {
                // The others have no such form and need none.
                Change::NBits if w.codes.code_range().is_some() => {
                    w.format = BlockFormat::Matmulnbits;
                    // Whose rows are not to be rounded is why.
                    w.accuracy_level.get_or_insert(0);
                }
                Change::Int4 => w.codes = BlockType::Int4,
                Change::Block128 => w.block = 128,
                Change::FloatScales => w.scales = w.scales.map(|_| BlockScales::F32),
                _ => {}
            });
        }
    }
}

fn symmetric(a: &mut ActivationScheme, change: Change) {
    a.symmetric = true;
    if change == Change::SymmetricInt8Activations {
        a.format = NumberFormat::Int8;
        // These would take uint8 where nothing is negative.
        if matches!(a.formula, Formula::Tensorflow | Formula::Ipex | Formula::Mxnet | Formula::Quantizeml) {
            (a.formula, a.bits) = (Formula::Narrowbit, None);
        }
    }
}

#[cfg(test)]
mod tests;
