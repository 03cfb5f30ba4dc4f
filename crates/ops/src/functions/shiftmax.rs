//! Shiftmax: a softmax of powers of two.

use std::f64::consts::LN_2;

use narrowbit_ir::{Graph, NodeId, OpError, Patch, ValueId};

use super::{Walk, Writer};

/// `y = ⌊2^(l − t) · 2¹⁰⌋ · 2⁻¹⁰` with `l = ⌊x⌋ − max ⌊x⌋` and `t = round(log2 Σ 2^l)`, over the last axis of a tensor of
/// floats of any shape; of the shape and type of `x`. What would be below 2⁻¹⁰ is 0, and all else a power of two, so that
/// hardware needs a shift for each element and no division.
///
/// Source: QuantizeML 0.8.1, `layers/shiftmax.py`: the float function, and the 10 bits of its quantized one
/// (`exp_bitwidth`), after Cardarilli et al. 2021, "A pseudo-softmax function for hardware-based high speed image
/// classification".
///
/// As operators: `f = Floor(x)`, `l = f − ReduceMax(f)`, `t = Round(Log(ReduceSum(Pow(2, l))) · 1/ln 2)`,
/// `y = Floor(Pow(2, l − t) · 1024) · 1/1024`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shiftmax {
    /// The logits.
    pub x: ValueId,
    /// The result.
    pub y: ValueId,
    /// The nodes, in topological order.
    pub nodes: Vec<NodeId>,
}

impl Shiftmax {
    /// Fraction bits of the result (QuantizeML's `exp_bitwidth`).
    pub const BITS: u32 = 10;

    /// The function whose last node is this one; `None` where it is another, or an inner value is read elsewhere.
    pub fn find(graph: &Graph, last: NodeId) -> Option<Shiftmax> {
        let y = graph.node(last).output(0)?;
        let mut walk = Walk::new(graph);
        let steps = f64::from(1 << Shiftmax::BITS);
        let floored = walk.times(y, 1.0 / steps)?;
        let scaled = walk.made_by(floored, "Floor")?.input(0)?;
        let power = walk.times(scaled, steps)?;
        let difference = power_of_two(&mut walk, power)?;
        let node = walk.made_by(difference, "Sub")?;
        let (l, t) = (node.input(0)?, node.input(1)?);
        let log = walk.made_by(t, "Round")?.input(0)?;
        let ln = walk.times(log, 1.0 / LN_2)?;
        let sum = walk.made_by(ln, "Log")?.input(0)?;
        let terms = walk.reduced(sum, "ReduceSum")?;
        if power_of_two(&mut walk, terms)? != l {
            return None;
        }
        let node = walk.made_by(l, "Sub")?;
        let (f, most) = (node.input(0)?, node.input(1)?);
        if walk.reduced(most, "ReduceMax")? != f {
            return None;
        }
        let x = walk.made_by(f, "Floor")?.input(0)?;
        Some(Shiftmax { x, y, nodes: walk.finish(last)? })
    }

    /// Adds the function of `x` to a patch; gives its result. Names begin with `name`.
    ///
    /// # Errors
    /// When the operator set has no such operator.
    pub fn write(patch: &mut Patch, opset: i64, name: &str, x: ValueId) -> Result<ValueId, OpError> {
        let mut w = Writer { patch, opset, name };
        let two = w.number("base", 2.0);
        let f = w.node("Floor", "Floor", &[x])?;
        let most = w.reduce("ReduceMax", "ReduceMax", 18, f)?;
        let l = w.node("Sub", "Sub", &[f, most])?;
        let terms = w.node("Pow", "Pow", &[two, l])?;
        let sum = w.reduce("ReduceSum", "ReduceSum", 13, terms)?;
        let ln = w.node("Log", "Log", &[sum])?;
        let per = w.number("log2", (1.0 / LN_2) as f32);
        let log = w.node("Log2", "Mul", &[ln, per])?;
        let t = w.node("Round", "Round", &[log])?;
        let difference = w.node("Shift", "Sub", &[l, t])?;
        let power = w.node("Power", "Pow", &[two, difference])?;
        let steps = (1u32 << Shiftmax::BITS) as f32;
        let (up, down) = (w.number("steps", steps), w.number("step", 1.0 / steps));
        let scaled = w.node("Steps", "Mul", &[power, up])?;
        let floored = w.node("Whole", "Floor", &[scaled])?;
        w.node("Shiftmax", "Mul", &[floored, down])
    }
}

/// The exponent of a power of two.
fn power_of_two(walk: &mut Walk<'_>, v: ValueId) -> Option<ValueId> {
    let node = walk.made_by(v, "Pow")?;
    let exponent = node.input(1)?;
    walk.is_number(node.input(0)?, 2.0).then_some(exponent)
}
