//! Rows that find their range at run time, written in primitive operators, as one operator.
//!
//! narrowbit's `--approach dynamic` writes a scale and zero point per token as ReduceMin and ReduceMax, a few operators on
//! their results, and a QuantizeLinear whose block is the row. All of it is [`DynamicQuantizeRows`] here; its
//! product is `Cast(MatMulInteger(x, w) − zero · column_sums(w)) · (scale · scale_w)`, which is the product of
//! DequantizeLinears in blocks of a row. Both give the same bits as the operators that they replace.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Node, Op, OpError, ValueId};
use narrowbit_kernels::dynamic::dynamic_params;
use narrowbit_tensor::{DType, Tensor};

use super::{Made, Rewriter};

/// The greatest least scale that is taken for that of a row of zeros.
const TINY: f32 = 1e-30;

/// DynamicQuantizeLinear for each row along the last axis: codes (u8) of `x`'s shape, scales (f32) and zero points (u8)
/// with 1 in the place of the last extent. Made here, never in a file.
#[derive(Debug, Clone, Copy)]
pub struct DynamicQuantizeRows;

impl Op for DynamicQuantizeRows {
    fn name(&self) -> &str {
        "DynamicQuantizeRows"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let shape = cx.get(0)?.shape().map(<[_]>::to_vec);
        let rows = shape.clone().map(|mut s| {
            s.last_mut().into_iter().for_each(|d| *d = Dim::Known(1));
            s
        });
        let scale = Fact::tensor(Some(DType::F32), rows.clone());
        Ok(vec![Fact::tensor(Some(DType::U8), shape), scale, Fact::tensor(Some(DType::U8), rows)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let mut rows = x.shape().to_vec();
        let columns = rows.last().copied().ok_or_else(|| OpError::shape("a scalar has no rows"))?;
        if let Some(last) = rows.last_mut() {
            *last = 1;
        }
        let (mut codes, mut scales, mut zeros) = (Vec::with_capacity(x.len()), Vec::new(), Vec::new());
        for row in x.slice::<f32>()?.chunks(columns.max(1)) {
            let (low, high) = row.iter().fold((0f32, 0f32), |(lo, hi), &v| (lo.min(v), hi.max(v)));
            let (scale, zero) = dynamic_params(low, high);
            let code = |&v: &f32| ((v / scale).round_ties_even() as i32).saturating_add(zero).clamp(0, 255) as u8;
            codes.extend(row.iter().map(code));
            scales.push(scale);
            zeros.push(zero as u8);
        }
        Ok(vec![Tensor::new(x.shape(), codes)?, Tensor::new(rows.clone(), scales)?, Tensor::new(rows, zeros)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
    }
}

/// Codes of rows in the graph as it was: their scales and zero points, and the block of the QuantizeLinear.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    scale: ValueId,
    zero: ValueId,
    block: i64,
}

/// The node that makes a value, if it is of this operator.
fn made_by<'a>(r: &Rewriter<'a>, v: ValueId, name: &str) -> Option<&'a Node> {
    let node = r.graph.node(r.graph.producer(v)?.0);
    (node.op.name() == name && node.op.domain().is_empty()).then_some(node)
}

fn scalar(r: &Rewriter, v: Option<ValueId>) -> Option<f32> {
    let t = r.graph.constant(v?)?;
    if t.dtype() == DType::F32 && t.len() == 1 { t.to_f32s().ok()?.first().copied() } else { None }
}

/// What a Clip with one bound limits: from below by `low`, or from above by `high`.
fn clipped(r: &Rewriter, v: ValueId, low: Option<f32>, high: Option<f32>) -> Option<ValueId> {
    let node = made_by(r, v, "Clip")?;
    let same = |i: usize, want: Option<f32>| match (node.input(i), want) {
        (None, None) => true,
        (Some(b), Some(want)) => scalar(r, Some(b)) == Some(want),
        _ => false,
    };
    (same(1, low) && same(2, high)).then(|| node.input(0))?
}

/// Whether `v` is a reduction of `x` along its last axis that keeps the axis.
fn reduces(r: &Rewriter, v: ValueId, name: &str, x: ValueId) -> Option<()> {
    let node = made_by(r, v, name)?;
    let mut attrs = node.op.attrs();
    let axes = match node.input(1) {
        Some(axes) => r.graph.constant(axes)?.to_i64s().ok()?,
        None => attrs.ints("axes").ok()??,
    };
    (node.input(0) == Some(x) && axes == [-1] && attrs.int_or("keepdims", 1) == Ok(1)).then_some(())
}

/// `QuantizeLinear(x, scale, zero)` in blocks of a row, the scale and zero point those of its extremes and 0.
pub(super) fn quantize(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let mut attrs = node.op.attrs();
    let block = attrs.int_or("block_size", 0).ok()?;
    let last = attrs.int_or("axis", 1) == Ok(-1);
    let (x, scale, zero, codes) = (node.input(0)?, node.input(1)?, node.input(2)?, node.output(0)?);
    if block < 1 || !last || r.graph.constant(scale).is_some() {
        return None;
    }
    let least = made_by(r, scale, "Clip").and_then(|c| scalar(r, c.input(1))).filter(|&l| l > 0.0 && l <= TINY)?;
    let step = made_by(r, clipped(r, scale, Some(least), None)?, "Div")?;
    let range = made_by(r, step.input(0)?, "Sub").filter(|_| scalar(r, step.input(1)) == Some(255.0))?;
    let (high, low) = (range.input(0)?, range.input(1)?);
    reduces(r, clipped(r, high, Some(0.0), None)?, "ReduceMax", x)?;
    reduces(r, clipped(r, low, None, Some(0.0))?, "ReduceMin", x)?;
    let cast = made_by(r, zero, "Cast")?;
    let to_u8 = cast.op.attrs().int_or("to", 0) == Ok(i64::from(DType::U8.to_onnx()));
    let whole = made_by(r, made_by(r, cast.input(0).filter(|_| to_u8)?, "Abs")?.input(0)?, "Round")?;
    let ratio = made_by(r, whole.input(0)?, "Div")?;
    if ratio.input(0) != Some(low) || ratio.input(1) != Some(scale) {
        return None;
    }
    let from = r.moved.get(&x).copied().unwrap_or(x);
    let names = ["codes", "scale", "zero_point"].map(|s| format!("{}_{s}", node.name));
    let outputs = names.each_ref().map(|n| Some(n.as_str()));
    let made = r.patch.node_outputs(&node.name, Arc::new(DynamicQuantizeRows), &[Some(from)], &outputs);
    let [Some(new_codes), Some(new_scale), Some(new_zero)] = made.as_slice() else { return None };
    r.replace(scale, *new_scale, Some(DType::F32));
    r.replace(zero, *new_zero, Some(DType::U8));
    r.rows.insert(codes, Rows { scale, zero, block });
    Some(Made { value: *new_codes, dtype: Some(DType::U8), of: None })
}

/// `MatMulInteger(codes, w)` with the correction and the scaling behind it.
pub(super) fn product(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let codes = node.input(0)?;
    let rows = *r.rows.get(&codes).filter(|_| node.input(2).is_none())?;
    let sum = r.graph.only_use(node.output(0)?).filter(|u| u.input == 0)?;
    let sub = r.graph.node(sum.node);
    let sums = shifts(r, sub.input(1).filter(|_| sub.op.name() == "Sub")?, rows.zero)?;
    let (factor, of) = super::dynamic::scaling(r, sub.output(0)?)?;
    let mul = made_by(r, factor, "Mul")?;
    let w_scale = match (mul.input(0)?, mul.input(1)?) {
        (a, b) if a == rows.scale => b,
        (a, b) if b == rows.scale => a,
        _ => return None,
    };
    let w = node.input(1)?;
    let p = super::dynamic::weights(r, node, w, w_scale, 3)?;
    if column_sums(r.graph.constant(w)?, &p.zeros)? != sums {
        return None;
    }
    let moved = |v: ValueId| Some(r.moved.get(&v).copied().unwrap_or(v));
    let inputs = [moved(codes), moved(rows.scale), moved(rows.zero)];
    let attrs = AttrMap::new().with("axis", -1i64).with("block_size", rows.block);
    let a = r.add(&format!("{}_a_dequantized", node.name), "DequantizeLinear", &inputs, attrs)?;
    let b = r.dequantize(&format!("{}_b", node.name), w, &p, -1)?;
    let y = r.add(&node.name, "MatMul", &[Some(a), Some(b)], AttrMap::new())?;
    Some(Made { of: Some(of), ..Made::float(y) })
}

/// The constant of a `Cast(zero) · constant`.
fn shifts(r: &Rewriter, v: ValueId, zero: ValueId) -> Option<Vec<i32>> {
    let mul = made_by(r, v, "Mul")?;
    let is_zero = |v: ValueId| {
        let cast = made_by(r, v, "Cast").filter(|c| c.input(0) == Some(zero));
        cast.is_some_and(|c| c.op.attrs().int_or("to", 0) == Ok(i64::from(DType::I32.to_onnx())))
    };
    let (a, b) = (mul.input(0)?, mul.input(1)?);
    let sums = if is_zero(a) { b } else { Some(a).filter(|_| is_zero(b))? };
    let vector = r.graph.constant(sums)?.rank() <= 1;
    r.elements::<i32>(sums).filter(|_| vector)
}

/// By column of a matrix of codes: their sum less their zero points.
fn column_sums(w: &Tensor, zeros: &[i64]) -> Option<Vec<i32>> {
    let &[rows, columns] = w.shape() else { return None };
    let mut sums = vec![0i32; columns];
    let add = |sums: &mut [i32], row: &[u8]| match w.dtype() {
        DType::I8 => sums.iter_mut().zip(row).for_each(|(s, &c)| *s = s.wrapping_add(i32::from(c as i8))),
        _ => sums.iter_mut().zip(row).for_each(|(s, &c)| *s = s.wrapping_add(i32::from(c))),
    };
    w.bytes().chunks_exact(columns.max(1)).for_each(|row| add(&mut sums, row));
    let zero = |j: usize| zeros.get(if zeros.len() == 1 { 0 } else { j }).copied().unwrap_or(0) as i32;
    let depth = i32::try_from(rows).ok()?;
    Some(sums.iter().enumerate().map(|(j, s)| s.wrapping_sub(depth.wrapping_mul(zero(j)))).collect())
}
