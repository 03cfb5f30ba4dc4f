//! The pass [`LayerNorm`].

use std::sync::LazyLock;

use narrowbit_ir::{AttrMap, NodeId, Patch, ValueId};
use narrowbit_tensor::Tensor;

use crate::View;
use crate::pass::{Found, OrNo, pass, when};
use crate::pattern::{Expr, op, over_sqrt, scalar, square, var};

pass! {
    /// **What it does:** writes `(x − mean(x)) / √(mean((x − mean(x))²) + ε) · scale + bias` as one LayerNormalization.
    ///
    /// **When it applies:** to means over the last axes, kept; squares as Mul or Pow; scale and bias constants of the
    /// normalised shape, or absent; where nobody else reads the inner values; the model is raised to opset 17.
    ///
    /// **Numerical effect:** none but rounding.
    ///
    /// **Example:** `m = ReduceMean(x)`, `d = Sub(x, m)`, `p = Pow(d, 2)`, `v = ReduceMean(p)`, `e = Add(v, 1e-5)`,
    /// `s = Sqrt(e)`, `y = Div(d, s)` → `y = LayerNormalization(x, [1, …])`.
    LayerNorm = "layer-norm", Fuse @ 17, rule
}

static NORMALIZED: LazyLock<Expr> = LazyLock::new(|| {
    let mean = op("ReduceMean", [var("x")]).label("mean");
    let centred = (var("x") - mean).named("d");
    let variance = op("ReduceMean", [square(centred.clone())]).label("variance");
    over_sqrt(centred, variance + scalar("epsilon"))
});

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Div", "Mul"])?;
    let found = NORMALIZED.find(view, id)?;
    let x = found.value("x")?;
    let rank = view.rank(x).or_no()?;
    let axis = last_axes(view, found.node("mean")?, rank)?;
    when(last_axes(view, found.node("variance")?, rank)? == axis)?;
    let epsilon = view.scalar(found.value("epsilon")?).or_no()? as f32;
    let tail = Tail::of(view, id, x, axis)?;
    let attrs = AttrMap::new().with("axis", axis as i64 - rank as i64).with("epsilon", epsilon);
    let mut patch = view.patch();
    let scale = tail.scale(view, &mut patch, x, axis)?;
    let bias = match tail.bias {
        Some(v) => Some(normalized_shape(view, &mut patch, v, rank - axis)?),
        None => None,
    };
    let inputs: Vec<Option<ValueId>> =
        [Some(x), Some(scale), bias].into_iter().take(2 + usize::from(bias.is_some())).collect();
    let y = patch.node(&view.node(id).name, view.make("LayerNormalization", attrs)?, &inputs);
    patch.replace(tail.output, y);
    Ok(patch)
}

/// The first of the last axes, all of which a mean is taken over and which are kept.
pub(super) fn last_axes(view: &View, mean: NodeId, rank: usize) -> Found<usize> {
    when(view.int(mean, "keepdims", 1) != 0)?;
    let mut axes = view.axes(mean, 1, rank)?.or_no()?;
    axes.sort_unstable();
    let first = rank.checked_sub(axes.len()).or_no()?;
    when(!axes.is_empty() && axes.iter().copied().eq(first..rank))?;
    Ok(first)
}

/// The scale and bias behind a normalisation.
pub(super) struct Tail {
    scale: Option<ValueId>,
    bias: Option<ValueId>,
    pub output: ValueId,
}

impl Tail {
    fn of(view: &View, id: NodeId, x: ValueId, axis: usize) -> Found<Tail> {
        let mut tail = Tail { scale: None, bias: None, output: view.output(id)? };
        if let Some((v, output)) = constant_operand(view, tail.output, "Mul", x, axis) {
            (tail.scale, tail.output) = (Some(v), output);
        }
        if let Some((v, output)) = constant_operand(view, tail.output, "Add", x, axis) {
            (tail.bias, tail.output) = (Some(v), output);
        }
        Ok(tail)
    }

    /// The scale in the normalised shape; ones where there is none.
    fn scale(&self, view: &View, patch: &mut Patch, x: ValueId, axis: usize) -> Found<ValueId> {
        let rank = view.rank(x).or_no()?;
        if let Some(v) = self.scale {
            return normalized_shape(view, patch, v, rank - axis);
        }
        let shape = view.concrete_from(x, axis).or_no()?;
        let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= 1 << 24).or_no()?;
        let ones = Tensor::from_f32s(view.dtype(x).or_no()?, shape, vec![1.0; n])?;
        Ok(patch.constant(&view.name_for(self.output, "scale"), ones))
    }
}

/// The constant that the only reader of `v` multiplies by or adds, where it has the normalised shape.
fn constant_operand(view: &View, v: ValueId, op: &str, x: ValueId, axis: usize) -> Option<(ValueId, ValueId)> {
    let reader = view.only_reader(v).ok().filter(|&r| view.is(r, op))?;
    let at = (0..2).find(|&i| view.graph.const_input(reader, i).is_some())?;
    let t = view.graph.const_input(reader, at)?;
    let shape = view.concrete_from(x, axis)?;
    let lead = t.rank().checked_sub(shape.len())?;
    let fits = t.shape()[..lead].iter().all(|&d| d == 1) && t.shape()[lead..] == shape && t.rank() <= view.rank(x)?;
    fits.then_some((view.node(reader).input(at)?, view.node(reader).output(0)?))
}

/// A constant without its leading axes of extent 1.
fn normalized_shape(view: &View, patch: &mut Patch, v: ValueId, rank: usize) -> Found<ValueId> {
    let t = view.graph.constant(v).or_no()?;
    if t.rank() == rank {
        return Ok(v);
    }
    let shape = t.shape()[t.rank() - rank..].to_vec();
    Ok(patch.constant(&view.graph.value(v).name, t.reshaped(shape)?))
}
