//! LayerMadNormalization: a layer normalization by the mean magnitude.

use narrowbit_ir::{Graph, NodeId, OpError, Patch, ValueId};
use narrowbit_tensor::Tensor;

use super::{Walk, Writer};

/// `y = γ · x / mean |x| + β` over the last axis, of `C` elements, of a tensor of floats of any shape; γ and β are
/// constants of `C` elements. A row of zeros gives β.
///
/// Source: QuantizeML 0.8.1, `layers/normalization.py` (`LayerMadNormalization`), in the order of its quantized layer,
/// which divides once for each row and channel: `p = γC / Σ |x|`, `y = x · p + β`. That has no word on rows of zeros.
///
/// As operators: `p = Div(γC, Clip(ReduceSum(Abs(x)), least))`, `y = Add(Mul(x, p), β)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMad {
    /// What is normalized.
    pub x: ValueId,
    /// The result.
    pub y: ValueId,
    /// The Clip of the sums, whose input 1 is the least one.
    pub clip: NodeId,
    /// The Div, whose input 0 is the constant `γ · C`.
    pub div: NodeId,
    /// The Mul of the data and the quotient, and which of its inputs the quotient is.
    pub mul: (NodeId, usize),
    /// The Add, and which of its inputs is the constant β.
    pub add: (NodeId, usize),
    /// The nodes, in topological order; the Add is the last.
    pub nodes: Vec<NodeId>,
}

impl LayerMad {
    /// What sums of magnitudes are taken for where they are less: such rows are zeros but for rounding, and what they are
    /// multiplied by stays finite.
    const LEAST: f32 = 1.0 / (1u64 << 40) as f32;

    /// The function whose last node is this one; `None` where it is another, an inner value is read elsewhere, or γ and β
    /// are no rows of constants.
    pub fn find(graph: &Graph, last: NodeId) -> Option<LayerMad> {
        let y = graph.node(last).output(0)?;
        let mut walk = Walk::new(graph);
        let node = walk.take(last, "Add")?;
        let beta = (0..2).find(|&i| graph.const_input(last, i).is_some())?;
        let product = node.input(1 - beta)?;
        let (mul, _) = graph.producer(product)?;
        let node = walk.take(mul, "Mul")?;
        let divided = |i: &usize| {
            let maker = node.input(*i).and_then(|v| graph.producer(v));
            maker.is_some_and(|(n, _)| graph.node(n).op.name() == "Div")
        };
        let at = (0..2).find(divided)?;
        let x = node.input(1 - at)?;
        let (div, _) = graph.producer(node.input(at)?)?;
        let (gamma, least) = (walk.take(div, "Div")?.input(0)?, graph.node(div).input(1)?);
        let (clip, _) = graph.producer(least)?;
        let sum = walk.take(clip, "Clip").filter(|n| n.input(2).is_none())?.input(0)?;
        let magnitudes = walk.reduced(sum, "ReduceSum")?;
        let same = walk.made_by(magnitudes, "Abs")?.input(0)? == x;
        let row = |v: ValueId| graph.constant(v).is_some_and(|t| t.rank() == 1 && !t.is_empty());
        let beta_value = graph.node(last).input(beta)?;
        if !same || !row(gamma) || !row(beta_value) || graph.constant(graph.node(clip).input(1)?)?.len() != 1 {
            return None;
        }
        let fits = graph.constant(gamma)?.shape() == graph.constant(beta_value)?.shape();
        let nodes = walk.finish(last).filter(|_| fits)?;
        Some(LayerMad { x, y, clip, div, mul: (mul, at), add: (last, beta), nodes })
    }

    /// The nodes of the function as it is quantized for integers, where this is the last one: γ and β behind a DequantizeLinear
    /// each, the quotient cut off by a Cast to an integer and back, the product multiplied by a number; and what it normalizes.
    pub fn find_quantized(graph: &Graph, last: NodeId) -> Option<(ValueId, Vec<NodeId>)> {
        let mut walk = Walk::new(graph);
        let maker = |v: ValueId| graph.producer(v).map(|(n, _)| n);
        let constant = |v: ValueId| {
            let dequantized = maker(v).filter(|&n| graph.node(n).op.name() == "DequantizeLinear");
            dequantized.is_some_and(|n| graph.const_input(n, 0).is_some())
        };
        let node = walk.take(last, "Add")?;
        let beta = (0..2).find(|&i| node.input(i).is_some_and(constant))?;
        let node = walk.made_by(node.input(1 - beta)?, "Mul")?;
        let number = |v: ValueId| graph.constant(v).is_some_and(|t| t.len() == 1);
        let unit = (0..2).find(|&i| node.input(i).is_some_and(number))?;
        let node = walk.made_by(node.input(1 - unit)?, "Mul")?;
        let cast = |v: ValueId| maker(v).is_some_and(|n| graph.node(n).op.name() == "Cast");
        let at = (0..2).find(|&i| node.input(i).is_some_and(cast))?;
        let x = node.input(1 - at)?;
        let whole = walk.made_by(node.input(at)?, "Cast")?.input(0)?;
        let quotient = walk.made_by(whole, "Cast")?.input(0)?;
        let node = walk.made_by(quotient, "Div")?;
        let clip = walk.made_by(node.input(1).filter(|_| node.input(0).is_some_and(constant))?, "Clip")?;
        let magnitudes = walk.reduced(clip.input(0)?, "ReduceSum")?;
        let same = walk.made_by(magnitudes, "Abs")?.input(0)? == x;
        let nodes = walk.finish(last).filter(|_| same)?;
        Some((x, nodes))
    }

    /// Adds the function of `x` to a patch, with γ and β of the last axis; gives its result. Names begin with `name`.
    ///
    /// # Errors
    /// When the operator set has no such operator, or γ and β are not of one length.
    pub fn write(
        patch: &mut Patch,
        opset: i64,
        name: &str,
        x: ValueId,
        gamma: &[f32],
        beta: &[f32],
    ) -> Result<ValueId, OpError> {
        if gamma.len() != beta.len() || gamma.is_empty() {
            return Err(OpError::Shape(format!("γ has {} elements and β {}", gamma.len(), beta.len())));
        }
        let channels = gamma.len() as f32;
        let mut w = Writer { patch, opset, name };
        let abs = w.node("Abs", "Abs", &[x])?;
        let sum = w.reduce("ReduceSum", "ReduceSum", 13, abs)?;
        let least = w.number("least", LayerMad::LEAST);
        let sum = w.node("Clip", "Clip", &[sum, least])?;
        let gamma: Vec<f32> = gamma.iter().map(|g| g * channels).collect();
        let gamma = w.row("gamma", gamma);
        let p = w.node("Div", "Div", &[gamma, sum])?;
        let product = w.node("Mul", "Mul", &[x, p])?;
        let beta = w.row("beta", beta.to_vec());
        w.node("Add", "Add", &[product, beta])
    }
}

impl Writer<'_> {
    fn row(&mut self, suffix: &str, values: Vec<f32>) -> ValueId {
        self.patch.constant(&format!("{}_{suffix}", self.name), Tensor::vector(values))
    }
}
