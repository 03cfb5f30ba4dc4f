//! The pass [`SelectEarly`].

use std::sync::Arc;

use narrowbit_ir::{AttrMap, NodeId, Op, Patch, ValueId};
use narrowbit_tensor::shape;

use super::merge_transposes;
use crate::View;
use crate::pass::{Found, Miss, OrNo, pass, when};

pass! {
    /// **What it does:** moves a Gather that takes some rows, as the class token of a vision transformer is taken, before the
    /// operators that compute each row by itself, so that rows which nobody reads are not computed: most of the last
    /// block of such a transformer.
    ///
    /// **When it applies:** to constant indices of fewer rows than there are, along another axis than the last; behind
    /// functions of one element, sums and products of values of the same shape or of the last axes, LayerNormalization,
    /// RMSNormalization and Softmax over the last axis, MatMul with a constant matrix, and Transpose; where nobody else
    /// reads the value that rows are taken from. A quantized graph stays as it is: its forms are known by their order.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `n = LayerNormalization(x, s)`, `y = Gather(n, 0) {axis=1}` → `g = Gather(x, 0) {axis=1}`,
    /// `y = LayerNormalization(g, s)`.
    SelectEarly = "select-early", Sanitize, rule
}

/// Functions of one element.
const UNARY: &[&str] = &[
    "Abs",
    "Clip",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Tanh",
];
const BINARY: &[&str] = &["Add", "Sub", "Mul", "Div"];
/// What becomes of a value's name in front of the operator.
const SUFFIX: &str = "selected";

/// The rows that are taken.
struct Rows {
    op: Arc<dyn Op>,
    indices: ValueId,
    axis: usize,
    /// Axes of the value that they are taken from.
    rank: usize,
    /// Whether the axis goes away, because there is one index without an axis of its own.
    drops: bool,
}

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Gather"])?;
    let (x, indices) = (view.input(id, 0)?, view.input(id, 1)?);
    let extents = view.shape(x).or_no()?;
    let rank = extents.len();
    let axis = shape::axis(view.int(id, "axis", 0), rank).or_no()?;
    let chosen = view.graph.constant(indices).or_no()?;
    when(axis + 1 < rank && chosen.rank() <= 1 && view.is_single_use(x))?;
    when(chosen.len() < extents[axis].as_usize().or_no()?)?;
    when(!view.graph.nodes().any(|(_, n)| is_quantized(n.op.name())))?;
    let op = view.node(id).op.clone();
    let rows = Rows { op, indices, axis, rank, drops: chosen.rank() == 0 };
    let maker = view.maker(x)?;
    when(view.node(maker).outputs.iter().flatten().count() == 1)?;
    let mut patch = view.patch();
    let inputs = &view.node(maker).inputs;
    let made = match view.node(maker).op.name() {
        _ if !view.node(maker).op.domain().is_empty() => return Err(Miss::No),
        name if UNARY.contains(&name) => rows.first(view, &mut patch, maker, view.node(maker).op.clone())?,
        name if BINARY.contains(&name) => {
            let both: Vec<_> =
                (0..2).map(|i| rows.operand(view, &mut patch, x, view.input(maker, i)?)).collect::<Found<_>>()?;
            when(both.iter().zip(inputs).any(|(new, old)| *new != *old))?;
            patch.node(&view.name_for(x, SUFFIX), view.node(maker).op.clone(), &both)
        }
        "LayerNormalization" | "RMSNormalization" | "Softmax" => {
            when(shape::axis(view.int(maker, "axis", -1), rank) == rank.checked_sub(1))?;
            let name = view.node(maker).op.name();
            let op = view.make(name, view.node(maker).op.attrs().with("axis", -1i64))?;
            rows.first(view, &mut patch, maker, op)?
        }
        "MatMul" => {
            when(view.graph.const_input(maker, 1).or_no()?.rank() == 2 && rank - usize::from(rows.drops) >= 2)?;
            rows.first(view, &mut patch, maker, view.node(maker).op.clone())?
        }
        "Transpose" => rows.transposed(view, &mut patch, maker)?,
        _ => return Err(Miss::No),
    };
    patch.replace(view.output(id)?, made);
    Ok(patch)
}

/// Whether an operator is of a quantized graph: QuantizeLinear, QLinearConv, MatMulInteger, DynamicQuantizeMatMul, MatMulNBits …
fn is_quantized(op: &str) -> bool {
    op.contains("Quantize")
        || op.contains("Dequantize")
        || op.contains("QLinear")
        || op.contains("Integer")
        || op.ends_with("NBits")
}

impl Rows {
    /// The rows of a value.
    fn of(&self, view: &View, patch: &mut Patch, value: ValueId) -> ValueId {
        patch.node(&view.name_for(value, SUFFIX), self.op.clone(), &[Some(value), Some(self.indices)])
    }

    /// An operator whose first operand has the rows of its result.
    fn first(&self, view: &View, patch: &mut Patch, maker: NodeId, op: Arc<dyn Op>) -> Found<ValueId> {
        let mut inputs = view.node(maker).inputs.clone();
        let x = view.input(maker, 0)?;
        when(view.rank(x) == Some(self.rank))?;
        inputs[0] = Some(self.of(view, patch, x));
        Ok(patch.node(&view.name_for(view.output(maker)?, SUFFIX), op, &inputs))
    }

    /// An operand of a sum or product that makes `whole`: its rows, or itself where it has only axes behind that of the rows.
    fn operand(&self, view: &View, patch: &mut Patch, whole: ValueId, v: ValueId) -> Found<Option<ValueId>> {
        if view.same_shape(v, whole) {
            return Ok(Some(self.of(view, patch, v)));
        }
        when(view.rank(v).or_no()? < self.rank - self.axis)?;
        Ok(Some(v))
    }

    fn transposed(&self, view: &View, patch: &mut Patch, maker: NodeId) -> Found<ValueId> {
        let perm = merge_transposes::perm(view, maker)?;
        let axis = *perm.get(self.axis).or_no()?;
        when(axis + 1 < self.rank)?;
        let x = view.input(maker, 0)?;
        let gather = view.make("Gather", AttrMap::new().with("axis", axis as i64))?;
        let rows = patch.node(&view.name_for(x, SUFFIX), gather, &[Some(x), Some(self.indices)]);
        let kept = perm.iter().filter(|&&p| !self.drops || p != axis);
        let perm: Vec<i64> = kept.map(|&p| (p - usize::from(self.drops && p > axis)) as i64).collect();
        let op = view.make("Transpose", AttrMap::new().with("perm", perm))?;
        Ok(patch.node(&view.name_for(view.output(maker)?, SUFFIX), op, &[Some(rows)]))
    }
}
