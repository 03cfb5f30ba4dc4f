use std::fmt;

use serde::Serialize;

/// Why a node computes in floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// The operator has no integer form.
    FloatOperator,
    /// The node does not compute on float32: on integers, booleans or shapes, or in another floating-point type.
    NotFloatData,
    /// An override or an option says so.
    Excluded,
    /// Its type is not among the operator types to quantize.
    TypeNotSelected,
    /// The first or the last layer, which an option keeps.
    EdgeLayer,
    /// A depthwise convolution, which an option keeps.
    Depthwise,
    /// The second operand is no constant, where only a constant one has an integer kernel; or the first one is.
    WeightNotConstant,
    /// The weight or the bias holds NaN or infinity.
    WeightNotFinite,
    /// An operand or attribute has a form that integer kernels do not have (Gemm with transposed A, say).
    Form,
    /// A table that 8 bits do not pay for: a small one, one with other readers, or not read along axis 0.
    Table,
    /// Not all inputs are integers already: quantizing it would add a conversion instead of saving one.
    FloatInput,
    /// Nothing that reads the output computes on integers.
    FloatConsumer,
    /// It computes on what an operator without integer form makes, where fixed-point hardware ends.
    BehindFloat,
    /// It has no constant weight, and the approach is about weights.
    NoWeight,
    /// Its weights have no form by blocks.
    NoBlocks,
    /// An override gives it to another approach.
    OtherApproach,
    /// Half precision would lose or overflow its sums, powers or exponentials.
    Sensitive,
    /// The operator is not among those that are written in half precision.
    NoHalfForm,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 18] = [
        Reason::FloatOperator,
        Reason::NotFloatData,
        Reason::Excluded,
        Reason::TypeNotSelected,
        Reason::EdgeLayer,
        Reason::Depthwise,
        Reason::WeightNotConstant,
        Reason::WeightNotFinite,
        Reason::Form,
        Reason::Table,
        Reason::FloatInput,
        Reason::FloatConsumer,
        Reason::BehindFloat,
        Reason::NoWeight,
        Reason::NoBlocks,
        Reason::OtherApproach,
        Reason::Sensitive,
        Reason::NoHalfForm,
    ];

    /// The code in JSON output, for instance `float-input`.
    pub fn code(self) -> &'static str {
        match self {
            Reason::FloatOperator => "float-operator",
            Reason::NotFloatData => "not-float-data",
            Reason::Excluded => "excluded",
            Reason::TypeNotSelected => "type-not-selected",
            Reason::EdgeLayer => "edge-layer",
            Reason::Depthwise => "depthwise",
            Reason::WeightNotConstant => "weight-not-constant",
            Reason::WeightNotFinite => "weight-not-finite",
            Reason::Form => "form",
            Reason::Table => "table",
            Reason::FloatInput => "float-input",
            Reason::FloatConsumer => "float-consumer",
            Reason::BehindFloat => "behind-float",
            Reason::NoWeight => "no-weight",
            Reason::NoBlocks => "no-blocks",
            Reason::OtherApproach => "other-approach",
            Reason::Sensitive => "sensitive",
            Reason::NoHalfForm => "no-half-form",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::FloatOperator => "the operator has no integer form",
            Reason::NotFloatData => "does not compute on float32 (shapes, indices, booleans, other types)",
            Reason::Excluded => "kept float by an option",
            Reason::TypeNotSelected => "its type is not among --op-types",
            Reason::EdgeLayer => "first or last layer, kept float by an option",
            Reason::Depthwise => "a depthwise convolution, kept float by an option",
            Reason::WeightNotConstant => "its weight, the second operand, is not a constant",
            Reason::WeightNotFinite => "the weight or bias holds NaN or infinity",
            Reason::Form => "a form without integer kernel (transposed A, alpha, beta, a bias that is no constant row, a weight vector, transposed volumes)",
            Reason::Table => "a table that is small, has other readers, or is not read along axis 0",
            Reason::FloatInput => "an input is not integer already: quantizing would add a conversion",
            Reason::FloatConsumer => "no integer node reads its output",
            Reason::BehindFloat => "it comes after the first operator without integer form, where this scheme ends",
            Reason::NoWeight => "has no constant weight, which this approach is about",
            Reason::NoBlocks => "weights by blocks are those of MatMul, Gemm, Gather, LSTM, GRU and RNN",
            Reason::OtherApproach => "belongs to another approach",
            Reason::Sensitive => "needs the range or the precision of float32 for its sums, powers or exponentials",
            Reason::NoHalfForm => "not among the operators that are written in half precision",
        })
    }
}
