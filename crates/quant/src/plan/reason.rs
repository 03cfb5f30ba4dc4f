use std::fmt;

use serde::Serialize;

/// Why a node computes in floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// The operator has no integer form.
    FloatOperator,
    /// The operator computes on integers, booleans or shapes to begin with.
    NotFloatData,
    /// An override or an option says so.
    Excluded,
    /// Its type is not among the operator types to quantize.
    TypeNotSelected,
    /// The first or the last layer, which an option keeps.
    EdgeLayer,
    /// The weight is neither a constant nor an activation that can be quantized.
    WeightNotConstant,
    /// The weight holds NaN or infinity.
    WeightNotFinite,
    /// An attribute has a form that integer kernels do not have (Gemm with transposed A, say).
    Form,
    /// Not all inputs are integers already: quantizing it would add a conversion instead of saving one.
    FloatInput,
    /// Nothing that reads the output computes on integers.
    FloatConsumer,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 10] = [
        Reason::FloatOperator,
        Reason::NotFloatData,
        Reason::Excluded,
        Reason::TypeNotSelected,
        Reason::EdgeLayer,
        Reason::WeightNotConstant,
        Reason::WeightNotFinite,
        Reason::Form,
        Reason::FloatInput,
        Reason::FloatConsumer,
    ];

    /// The code in JSON output, for instance `float-input`.
    pub fn code(self) -> &'static str {
        match self {
            Reason::FloatOperator => "float-operator",
            Reason::NotFloatData => "not-float-data",
            Reason::Excluded => "excluded",
            Reason::TypeNotSelected => "type-not-selected",
            Reason::EdgeLayer => "edge-layer",
            Reason::WeightNotConstant => "weight-not-constant",
            Reason::WeightNotFinite => "weight-not-finite",
            Reason::Form => "form",
            Reason::FloatInput => "float-input",
            Reason::FloatConsumer => "float-consumer",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::FloatOperator => "the operator has no integer form",
            Reason::NotFloatData => "works on shapes, indices or booleans",
            Reason::Excluded => "kept float by an option",
            Reason::TypeNotSelected => "its type is not among --op-types",
            Reason::EdgeLayer => "first or last layer, kept float by an option",
            Reason::WeightNotConstant => "the weight is not a constant",
            Reason::WeightNotFinite => "the weight holds NaN or infinity",
            Reason::Form => "an attribute has a form without integer kernels",
            Reason::FloatInput => "its inputs are float: quantizing would add a conversion",
            Reason::FloatConsumer => "nothing integer reads its output",
        })
    }
}
