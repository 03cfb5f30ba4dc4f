//! The pass [`SelectEarly`].

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, NodeId, Op, Patch, ValueId};
use narrowbit_tensor::{Tensor, shape};

use super::merge_transposes;
use crate::View;
use crate::pass::{Found, Miss, OrNo, pass, when};

pass! {
    /// **What it does:** moves a Gather that takes some rows, as the class token of a vision transformer is taken, before the
    /// operators that compute each row by itself, so that rows which nobody reads are not computed: most of the last
    /// block of such a transformer.
    ///
    /// **When it applies:** to constant indices of fewer rows than there are, along another axis than the last; behind
    /// functions of one element, sums and products of values of the same shape, of one row or of the last axes,
    /// LayerNormalization, RMSNormalization and Softmax over the last axis, MatMul whose left operand has the rows (with a
    /// constant matrix, or as the two of attention), Transpose, and a Reshape that keeps the rows' axis and those before
    /// it; where nobody else reads the value that rows are taken from. A quantized graph stays as it is: its forms are
    /// known by their order.
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
    count: usize,
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
    let rows = Rows { op, indices, axis, rank, count: chosen.len(), drops: chosen.rank() == 0 };
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
        "MatMul" => match view.graph.const_input(maker, 1) {
            Some(matrix) if matrix.rank() == 2 && rank - usize::from(rows.drops) >= 2 => {
                rows.first(view, &mut patch, maker, view.node(maker).op.clone())?
            }
            _ => rows.of_product(view, &mut patch, maker)?,
        },
        "Transpose" => rows.transposed(view, &mut patch, maker)?,
        "Reshape" => rows.reshaped(view, &mut patch, maker)?,
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

    /// The rows of a value that has them along another axis.
    fn along(&self, view: &View, patch: &mut Patch, value: ValueId, axis: usize) -> Found<ValueId> {
        let gather = view.make("Gather", AttrMap::new().with("axis", axis as i64))?;
        Ok(patch.node(&view.name_for(value, SUFFIX), gather, &[Some(value), Some(self.indices)]))
    }

    /// An operator whose first operand has the rows of its result.
    fn first(&self, view: &View, patch: &mut Patch, maker: NodeId, op: Arc<dyn Op>) -> Found<ValueId> {
        let mut inputs = view.node(maker).inputs.clone();
        let x = view.input(maker, 0)?;
        when(view.rank(x) == Some(self.rank))?;
        inputs[0] = Some(self.of(view, patch, x));
        Ok(patch.node(&view.name_for(view.output(maker)?, SUFFIX), op, &inputs))
    }

    /// An operand of a sum or product that makes `whole`: its rows, or itself where it has only axes behind that of the
    /// rows, or one row for all.
    fn operand(&self, view: &View, patch: &mut Patch, whole: ValueId, v: ValueId) -> Found<Option<ValueId>> {
        if view.same_shape(v, whole) {
            return Ok(Some(self.of(view, patch, v)));
        }
        let behind = self.rank - self.axis;
        let extents = view.shape(v).or_no()?;
        let one = |at: usize| extents[at] == Dim::Known(1);
        when(extents.len().checked_sub(behind).is_none_or(|at| !self.drops && one(at)))?;
        Ok(Some(v))
    }

    /// A product whose left operand has the rows of its result as those of its matrices. A product needs an axis of rows:
    /// one that goes away does so behind it.
    fn of_product(&self, view: &View, patch: &mut Patch, maker: NodeId) -> Found<ValueId> {
        let (x, y) = (view.input(maker, 0)?, view.output(maker)?);
        when(self.axis + 2 == self.rank && view.rank(x) == Some(self.rank))?;
        let mut inputs = view.node(maker).inputs.clone();
        if !self.drops {
            return self.first(view, patch, maker, view.node(maker).op.clone());
        }
        let list =
            patch.constant(&view.name_for(self.indices, "list"), Tensor::vector(view.ints(self.indices).or_no()?));
        inputs[0] = Some(patch.node(&view.name_for(x, SUFFIX), self.op.clone(), &[Some(x), Some(list)]));
        let made = patch.node(&view.name_for(y, SUFFIX), view.node(maker).op.clone(), &inputs);
        let axis = patch.constant(&view.name_for(y, "axis"), Tensor::vector(vec![self.axis as i64]));
        let op = view.make("Squeeze", AttrMap::new())?;
        Ok(patch.node(&view.name_for(y, "squeezed"), op, &[Some(made), Some(axis)]))
    }

    fn reshaped(&self, view: &View, patch: &mut Patch, maker: NodeId) -> Found<ValueId> {
        let (x, y) = (view.input(maker, 0)?, view.output(maker)?);
        let (before, after) = (view.shape(x).or_no()?, view.shape(y).or_no()?);
        when(self.axis + 1 < before.len() && before.iter().zip(&after[..=self.axis]).all(|(a, b)| a.same(b)))?;
        let mut target = view.ints(view.input(maker, 1)?).or_no()?;
        when(target.len() == self.rank && view.int(maker, "allowzero", 0) == 0)?;
        // An extent of 0 copies the one of the same place, which moves along with those behind the axis; -1 stays what is left.
        if self.drops {
            target.remove(self.axis);
        } else if target[self.axis] > 0 {
            target[self.axis] = self.count as i64;
        }
        // Counted from the end, the axis of the Gather would be another one here.
        let rows = self.along(view, patch, x, self.axis)?;
        let shape = patch.constant(&view.name_for(y, "selected_shape"), Tensor::vector(target));
        Ok(patch.node(&view.name_for(y, SUFFIX), view.node(maker).op.clone(), &[Some(rows), Some(shape)]))
    }

    fn transposed(&self, view: &View, patch: &mut Patch, maker: NodeId) -> Found<ValueId> {
        let perm = merge_transposes::perm(view, maker)?;
        let axis = *perm.get(self.axis).or_no()?;
        when(axis + 1 < self.rank)?;
        let x = view.input(maker, 0)?;
        let rows = self.along(view, patch, x, axis)?;
        let kept = perm.iter().filter(|&&p| !self.drops || p != axis);
        let perm: Vec<i64> = kept.map(|&p| (p - usize::from(self.drops && p > axis)) as i64).collect();
        let op = view.make("Transpose", AttrMap::new().with("perm", perm))?;
        Ok(patch.node(&view.name_for(view.output(maker)?, SUFFIX), op, &[Some(rows)]))
    }
}
