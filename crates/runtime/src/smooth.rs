//! Constants for each column that stand before a rounding, as SmoothQuant leaves them (NNCF): they go into what makes the
//! columns, so that nobody passes over them once more.
//!
//! `LayerNormalization(x, γ, β) · s` is `LayerNormalization(x, γ · s, β · s)`; and where the columns are the heads of an
//! attention, `(w · v) · s` is `w · (v · s)`, whose values a product of integer weights makes: `s` multiplies the weights' scales
//! and the bias. Both are the same within the rounding of floats.

use std::sync::Arc;

use narrowbit_ir::{Graph, Node, Patch, PatchError, ValueId};
use narrowbit_tensor::{DType, Tensor, shape};

use crate::scene::{Scene, op, rewrite};

/// Rounds of edits, each of the whole graph.
const ROUNDS: usize = 2;

/// The graph without constants that can go into what they multiply; `None` where there is nothing to do.
///
/// # Errors
/// Never for a graph that verifies.
pub fn absorb(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    if !graph.nodes().any(|(_, n)| n.op.name() == "QuantizeLinear") {
        return Ok(None);
    }
    rewrite(graph, ROUNDS, |scene| {
        let mut patch = Patch::new(scene.graph);
        for (_, node) in scene.graph.nodes().filter(|(_, n)| n.op.name() == "Mul") {
            if let Some(factor) = Factor::of(scene, node) {
                factor.normalization(&mut patch).or_else(|| factor.heads(&mut patch));
            }
        }
        (!patch.is_empty()).then_some(patch)
    })
}

/// `x · s`, whose result is rounded.
struct Factor<'a> {
    scene: &'a Scene<'a>,
    x: ValueId,
    y: ValueId,
    /// By column.
    s: Vec<f32>,
}

impl<'a> Factor<'a> {
    fn of(scene: &'a Scene<'a>, mul: &Node) -> Option<Factor<'a>> {
        let (a, b, y) = (mul.input(0)?, mul.input(1)?, mul.output(0)?);
        let (x, s) = if scene.graph.constant(b).is_some() { (a, b) } else { (b, a) };
        let (t, columns) = (scene.graph.constant(s)?, scene.shape(x)?.last()?.as_usize()?);
        let row = t.shape().last() == Some(&columns) && t.len() == columns && columns > 1;
        let rounded = scene.only_reader(y)?.op.name() == "QuantizeLinear";
        let alone = scene.graph.only_use(x).is_some() && !scene.graph.is_output(x);
        let fits = row && rounded && alone && scene.same_shape(x, y) && t.rank() <= scene.shape(x)?.len();
        let s = t.to_f32s().ok().filter(|_| fits && t.dtype() == DType::F32)?.into_owned();
        Some(Factor { scene, x, y, s })
    }

    /// A constant row times the factor.
    fn scaled(&self, patch: &mut Patch, v: ValueId) -> Option<ValueId> {
        let t = self.scene.graph.constant(v).filter(|t| t.dtype() == DType::F32)?;
        let values = t.to_f32s().ok().filter(|v| v.len() == self.s.len())?;
        let product = values.iter().zip(&self.s).map(|(v, s)| v * s).collect::<Vec<f32>>();
        let t = Tensor::new(t.shape(), product).ok()?;
        Some(patch.constant(&format!("{}_scaled", self.scene.graph.value(v).name), t))
    }

    fn normalization(&self, patch: &mut Patch) -> Option<()> {
        let node = self.scene.only_made_by(self.x, &["LayerNormalization", "RMSNormalization"])?;
        let rank = self.scene.shape(self.x)?.len();
        let last = shape::axis(node.op.attrs().int_or("axis", -1).ok()?, rank)? + 1 == rank;
        let mut inputs = node.inputs.clone();
        let known = |v: &Option<ValueId>| {
            v.is_none_or(|v| self.scene.graph.constant(v).is_some_and(|t| t.len() == self.s.len()))
        };
        if !last || inputs.len() < 2 || !inputs[1..].iter().all(known) {
            return None;
        }
        for input in inputs.iter_mut().skip(1) {
            *input = match *input {
                Some(v) => Some(self.scaled(patch, v)?),
                None => None,
            };
        }
        let y = patch.node(&node.name, Arc::clone(&node.op), &inputs);
        patch.replace(self.y, y);
        Some(())
    }

    /// Columns that are the heads of an attention, one after the other.
    fn heads(&self, patch: &mut Patch) -> Option<()> {
        let scene = self.scene;
        let joined = scene.only_made_by(self.x, &["Reshape"])?.input(0)?;
        let moved = scene.only_made_by(joined, &["Transpose"])?;
        let product = scene.only_made_by(moved.input(0)?, &["MatMul"])?;
        let (weights, v) = (product.input(0)?, product.input(1)?);
        let ahead = scene.only_made_by(v, &["Transpose"])?;
        let parted = scene.only_made_by(ahead.input(0)?, &["Reshape"])?;
        // Rows of the result and of the values have their heads in the same order.
        let dims = [joined, ahead.input(0)?].map(|v| scene.extents(v).filter(|d| d.len() == 4));
        let ([Some(a), Some(b)], swap) = (dims, vec![0, 2, 1, 3]) else { return None };
        let same = a[2..] == b[2..] && a[0] == b[0] && a[2] * a[3] == self.s.len();
        let orders = scene.perm(moved)? == swap && scene.perm(ahead)? == swap;
        let columns = scene.shape(parted.input(0)?)?.last()?.as_usize()? == self.s.len();
        if !same || !orders || !columns || scene.constant(weights).is_some() {
            return None;
        }
        let y = parted.input(0)?;
        self.scaled_product(patch, y)?;
        patch.replace(self.y, self.x);
        Some(())
    }

    /// A product of integer weights, with its bias, whose columns are multiplied by the factor.
    fn scaled_product(&self, patch: &mut Patch, y: ValueId) -> Option<()> {
        let scene = self.scene;
        let made = scene.only_made_by(y, &["Add", "MatMul", "Gemm"])?;
        let (product, add) = if made.op.name() == "Add" {
            let (a, b) = (made.input(0)?, made.input(1)?);
            let at = usize::from(scene.graph.constant(a).is_some());
            let product = scene.only_made_by([a, b][at], &["MatMul", "Gemm"])?;
            (product, Some((made, at)))
        } else {
            (made, None)
        };
        let w = product.input(1)?;
        let dequantize = scene.only_made_by(w, &["DequantizeLinear"])?;
        let codes = scene.graph.constant(dequantize.input(0)?)?;
        let axis = crate::lower::channel_axis(product, codes.rank());
        let attrs = dequantize.op.attrs();
        let scale = scene.graph.constant(dequantize.input(1)?).filter(|t| t.rank() <= 1)?;
        let one = scale.len() == 1;
        let along = shape::axis(attrs.clone().int_or("axis", 1).ok()?, codes.rank())? == axis;
        let plain =
            codes.rank() == 2 && codes.shape()[axis] == self.s.len() && attrs.clone().int_or("block_size", 0) == Ok(0);
        // One zero point for all columns would need another for each.
        let zero = dequantize.input(2).is_none_or(|z| !one || scene.graph.constant(z).is_some_and(is_zero));
        let beta = product.op.attrs().float_or("beta", 1.0) == Ok(1.0);
        if !plain || !zero || !(one || along && scale.len() == self.s.len()) || !beta {
            return None;
        }
        let scales = scale.to_f32s().ok()?;
        let scales: Vec<f32> = self.s.iter().enumerate().map(|(i, s)| s * scales[if one { 0 } else { i }]).collect();
        if !scales.iter().all(|s| s.is_normal()) {
            return None;
        }
        let name = |v: ValueId| format!("{}_scaled", scene.graph.value(v).name);
        let mut inputs = product.inputs.clone();
        if let Some(c) = product.input(2) {
            inputs[2] = Some(self.scaled(patch, c)?);
        }
        let bias = match add {
            Some((add, at)) => Some((add, at, self.scaled(patch, add.input(1 - at)?)?)),
            None => None,
        };
        let scale = patch.constant(&name(dequantize.input(1)?), Tensor::vector(scales));
        let axis = narrowbit_ir::AttrMap::new().with("axis", axis as i64);
        let zero = dequantize.input(2).filter(|_| !one);
        let of = [dequantize.input(0), Some(scale), zero];
        let used = if zero.is_some() { 3 } else { 2 };
        inputs[1] = Some(patch.node(&name(w), op("DequantizeLinear", axis)?, &of[..used]));
        let mut scaled = patch.node(&product.name, Arc::clone(&product.op), &inputs);
        if let Some((add, at, bias)) = bias {
            let mut inputs = [Some(bias); 2];
            inputs[at] = Some(scaled);
            scaled = patch.node(&add.name, Arc::clone(&add.op), &inputs);
        }
        patch.replace(y, scaled);
        Some(())
    }
}

fn is_zero(t: &Tensor) -> bool {
    t.to_i64s().is_ok_and(|z| z.iter().all(|&z| z == 0))
}
