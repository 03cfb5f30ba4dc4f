//! Functions of single 8-bit integers, through a table of 256 entries.

use narrowbit_ir::{Datum, EvalCx, ValueId};
use narrowbit_kernels::integer;
use narrowbit_tensor::{DType, Tensor};

use super::Maybe;
use crate::collapse::Lookup;
use crate::error::StepError;
use crate::fuse::{Fusion, Ints};
use crate::kernel::{BuildCx, Built, simple};
use crate::lower::{self, QParams};

/// Codes that are a function of other codes, whatever nodes lie between.
pub fn lookup(cx: &BuildCx, lookup: &Lookup, y: ValueId) -> Built {
    step(cx, "lookup_i8", lookup.table, lookup.source, y)
}

/// A function of single elements, through a table.
pub fn function(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Maybe {
    let (&[Some(x)], Some(out), Some(to)) = (ints.operands.as_slice(), f.output, ints.output) else { return Ok(None) };
    let Some(table) = entries(cx, x.params, to)? else { return Ok(None) };
    Ok(Some(step(cx, "lookup_i8", table, x.value, out)))
}

/// QuantizeLinear of a DequantizeLinear: integers from one format to another.
pub fn requantize(cx: &BuildCx) -> Option<Built> {
    let to = lower::target(cx.facts, cx.node)?;
    let from = lower::source(cx.graph, cx.facts, cx.node.input(0)?)?;
    let y = cx.node.output(0)?;
    Some(step(cx, "requantize_i8", encode(to, &decode(from.params)), from.value, y))
}

/// The kernel that looks each byte of `x` up, in the layout that it has.
fn step(cx: &BuildCx, name: &'static str, table: [u8; 256], x: ValueId, y: ValueId) -> Built {
    let kernel = simple(name, move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        Ok(integer::lookup(exec, x, &table, y.bytes)?)
    });
    let last = cx.is_channels_last(x);
    let place = |v: ValueId| if last { (cx.channels_last)(v) } else { v };
    Built { kernel, ins: vec![place(x)], outs: vec![place(y)] }
}

/// What each of the 256 codes means, by its bits.
fn decode(from: QParams) -> Vec<f32> {
    let value = |bits: u8| if from.dtype == DType::U8 { i32::from(bits) } else { i32::from(bits as i8) };
    (0..=255).map(|bits| (value(bits) - from.zero) as f32 * from.scale).collect()
}

/// The bits of the codes of 256 floats.
fn encode(to: QParams, y: &[f32]) -> [u8; 256] {
    let (low, high) = if to.dtype == DType::U8 { (0, 255) } else { (-128, 127) };
    // NaN converts to 0: the smallest value in ONNX Runtime.
    let round = |v: f32| match v.is_nan() {
        true => low,
        false => ((v / to.scale).round_ties_even() as i32).saturating_add(to.zero).clamp(low, high),
    };
    std::array::from_fn(|i| round(y[i]) as u8)
}

/// What the operator and the QuantizeLinear behind it make of each integer.
fn entries(cx: &BuildCx, from: QParams, to: QParams) -> Result<Option<[u8; 256]>, StepError> {
    let x = Datum::Tensor(Tensor::new([256], decode(from))?);
    let constants: Vec<Option<Datum>> = (0..cx.node.inputs.len()).map(|i| cx.constant(i).map(Datum::Tensor)).collect();
    let operands: Vec<Option<&Datum>> =
        constants.iter().enumerate().map(|(i, c)| if i == 0 { Some(&x) } else { c.as_ref() }).collect();
    let results = cx.node.op.eval(&EvalCx::new(&operands, 1))?;
    let Some(y) = results.first().filter(|y| y.len() == 256 && y.dtype() == DType::F32) else { return Ok(None) };
    Ok(Some(encode(to, &y.to_f32s()?)))
}
