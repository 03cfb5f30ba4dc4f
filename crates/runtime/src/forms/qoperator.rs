//! QLinear operators as DequantizeLinear → operator → QuantizeLinear.
//!
//! Both mean the same real numbers, and products the same bits: operators and kernels multiply an exact sum by
//! `scale_x · scale_w / scale_y` and round once. QLinearAdd, QLinearMul, QLinearSoftmax, QLinearGlobalAveragePool and
//! functions of one element have an arithmetic of their own, and stay as they are: there are kernels for it
//! ([`crate::ops`], [`crate::collapse`]).

use narrowbit_ir::{AttrMap, Node, ValueId};
use narrowbit_tensor::Tensor;

use super::{Made, Params, Rewriter, Rule};

/// The rule of an operator.
pub fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "QLinearConv" => conv,
        "QLinearMatMul" => matmul,
        "QGemm" => gemm,
        "QLinearAveragePool" => average_pool,
        "QLinearConcat" => concat,
        "QLinearWhere" => select,
        _ => return None,
    })
}

/// The last axis to the second place, or back.
fn move_channels(r: &mut Rewriter, name: &str, x: ValueId, rank: usize, to_front: bool) -> Option<ValueId> {
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    if to_front {
        perm[1..].rotate_right(1);
    } else {
        perm[1..].rotate_left(1);
    }
    r.add(&format!("{name}_transposed"), "Transpose", &[Some(x)], AttrMap::new().with("perm", perm))
}

/// A bias of integers in units of `unit`, which is one for all or goes along the last axis.
fn bias(r: &mut Rewriter, name: &str, v: ValueId, unit: Vec<f32>) -> Option<ValueId> {
    r.elements::<i32>(v)?;
    let name = format!("{name}_bias_dequantized");
    let (scale, attrs) = match unit[..] {
        [one] => (Tensor::new([], vec![one]).ok()?, AttrMap::new()),
        _ => (Tensor::vector(unit), AttrMap::new().with("axis", -1i64)),
    };
    let scale = r.patch.constant(&format!("{name}_scale"), scale);
    r.add(&name, "DequantizeLinear", &[Some(v), Some(scale)], attrs)
}

/// x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias.
fn conv(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let (x, w, name) = (r.input(node, 0)?, node.input(3)?, node.name.as_str());
    let weight = r.graph.constant(w)?;
    let (rank, channels) = (weight.rank(), *weight.shape().first()?);
    let (px, pw) = (r.single(node, 1, node.input(0))?, r.params(node, 4, Some(w))?);
    let py = r.single(node, 6, node.input(0))?;
    if pw.dtype != weight.dtype() || ![1, channels].contains(&pw.scales.len()) {
        return None;
    }
    let mut attrs = node.op.attrs();
    let last = attrs.flag("channels_last").ok()?;
    let unit: Vec<f32> = pw.scales.iter().map(|s| px.scales[0] * s).collect();
    let bias = match node.input(8) {
        Some(b) => Some(bias(r, name, b, unit)?),
        None => None,
    };
    let x = if last { move_channels(r, name, x, rank, true)? } else { x };
    let x = r.dequantize(&format!("{name}_x"), x, &px, 0)?;
    let w = r.dequantize(&format!("{name}_w"), w, &pw, 0)?;
    let inputs: Vec<Option<ValueId>> = [Some(x), Some(w)].into_iter().chain(bias.map(Some)).collect();
    let y = r.add(name, "Conv", &inputs, attrs)?;
    let mut made = r.quantize(name, y, &py)?;
    if last {
        made.value = move_channels(r, name, made.value, rank, false)?;
    }
    Some(made)
}

/// The two operands of a product at inputs 0 and 3, each with its scale and zero point; those of the second may go
/// along `axis`, which has `columns` elements where it is constant.
fn operands(
    r: &mut Rewriter,
    node: &Node,
    axis: i64,
    fits: &dyn Fn(usize) -> bool,
) -> Option<([ValueId; 2], [Params; 2])> {
    let (a, b) = (r.input(node, 0)?, r.input(node, 3)?);
    let (pa, pb) = (r.single(node, 1, node.input(0))?, r.params(node, 4, node.input(3))?);
    if pb.scales.len() != 1 && !fits(pb.scales.len()) {
        return None;
    }
    let a = r.dequantize(&format!("{}_a", node.name), a, &pa, 0)?;
    let b = r.dequantize(&format!("{}_b", node.name), b, &pb, axis)?;
    Some(([a, b], [pa, pb]))
}

/// a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero.
fn matmul(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let py = r.single(node, 6, None)?;
    let columns = r.graph.constant(node.input(3)?).filter(|t| t.rank() >= 2).and_then(|t| t.shape().last().copied());
    let ([a, b], _) = operands(r, node, -1, &|n| columns == Some(n))?;
    let y = r.add(&node.name, "MatMul", &[Some(a), Some(b)], AttrMap::new())?;
    r.quantize(&node.name, y, &py)
}

/// a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero: floats where the last two are absent.
fn gemm(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let mut attrs = node.op.attrs();
    let alpha = attrs.clone().float_or("alpha", 1.0).ok()?;
    let axis = if attrs.clone().flag("transB").ok()? { 0 } else { 1 };
    let py = match (node.input(7), node.input(8)) {
        (None, None) => None,
        _ => Some(r.single(node, 7, None)?),
    };
    let shape = r.graph.constant(node.input(3)?).map(|t| t.shape().to_vec());
    let columns = shape.as_deref().and_then(|s| s.get(axis as usize).copied());
    let c = node.input(6);
    // A bias that is not a row has no constant in units of the columns' scales.
    let row = |v: ValueId| r.graph.constant(v).is_some_and(|t| t.shape().last().copied() == columns);
    if !c.is_none_or(row) {
        return None;
    }
    let ([a, b], [pa, pb]) = operands(r, node, axis, &|n| columns == Some(n))?;
    let unit: Vec<f32> = pb.scales.iter().map(|s| alpha * pa.scales[0] * s).collect();
    let c = match c {
        Some(v) => Some(bias(r, &node.name, v, unit)?),
        None => None,
    };
    attrs.set("beta", 1.0f32);
    let inputs: Vec<Option<ValueId>> = [Some(a), Some(b)].into_iter().chain(c.map(Some)).collect();
    let y = r.add(&node.name, "Gemm", &inputs, attrs)?;
    match py {
        Some(p) => r.quantize(&node.name, y, &p),
        None => Some(Made::float(y)),
    }
}

/// x, x_scale, x_zero, y_scale, y_zero. The operator sums floats in the window's order, kernels integers: a mean within an
/// ulp of a border between two codes may fall on either side.
fn average_pool(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let mut attrs = node.op.attrs();
    if attrs.flag("channels_last").ok()? {
        return None;
    }
    let (x, name) = (r.input(node, 0)?, node.name.as_str());
    let (px, py) = (r.single(node, 1, node.input(0))?, r.single(node, 3, node.input(0))?);
    let x = r.dequantize(&format!("{name}_x"), x, &px, 0)?;
    let y = r.add(name, "AveragePool", &[Some(x)], attrs)?;
    r.quantize(name, y, &py)
}

/// y_scale, y_zero, then x, x_scale, x_zero of each operand.
fn concat(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let py = r.single(node, 0, node.input(2))?;
    let mut floats = Vec::new();
    for i in (2..node.inputs.len()).step_by(3) {
        let (x, p) = (r.input(node, i)?, r.single(node, i + 1, node.input(i))?);
        floats.push(Some(r.dequantize(&format!("{}_{i}", node.name), x, &p, 0)?));
    }
    let y = r.add(&node.name, "Concat", &floats, node.op.attrs())?;
    r.quantize(&node.name, y, &py)
}

/// condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero.
fn select(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let (condition, x, y) = (r.input(node, 0)?, r.input(node, 1)?, r.input(node, 4)?);
    let (px, py) = (r.single(node, 2, node.input(1))?, r.single(node, 5, node.input(4))?);
    let pz = r.single(node, 7, node.input(1))?;
    let x = r.dequantize(&format!("{}_x", node.name), x, &px, 0)?;
    let y = r.dequantize(&format!("{}_y", node.name), y, &py, 0)?;
    let z = r.add(&node.name, "Where", &[Some(condition), Some(x), Some(y)], AttrMap::new())?;
    r.quantize(&node.name, z, &pz)
}
