//! What a person reads of a lowering.

use serde::Serialize;

/// The integer operations of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProofRow {
    /// The node's name.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// What is computed, in words.
    pub integers: String,
    /// The bits of the multiplier, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiplier_bits: Option<u32>,
    /// The least and the greatest right shift (negative: left), where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<(i32, i32)>,
    /// The least and the greatest integer that any input can give: interval arithmetic on the actual weights.
    pub bounds: (i64, i64),
    /// Bits that hold these, the sign among them.
    pub bits: u32,
    /// Whether the buffer saturates for some input that the intervals allow.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub saturates: bool,
}

/// The integer operations of all nodes between the first QuantizeLinear and the last DequantizeLinear.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Proof {
    /// One row per node that computes.
    pub rows: Vec<ProofRow>,
    /// Nodes that run before: on the float inputs, up to their QuantizeLinear.
    pub before: Vec<String>,
    /// Nodes that run on the dequantized results.
    pub after: Vec<String>,
    /// The first of these that has no integer form here, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_after: Option<String>,
}

/// The bits that hold integers in a range, the sign among them.
pub(crate) fn bits_of((low, high): (i64, i64)) -> u32 {
    let bits = |x: i64| 65 - if x < 0 { !x } else { x }.leading_zeros();
    bits(low).max(bits(high))
}
