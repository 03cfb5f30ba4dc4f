//! QuantizeLinear and DequantizeLinear between floats and whole-byte integers.

use narrowbit_ir::ValueId;
use narrowbit_kernels::Few;
use narrowbit_kernels::codes::{Code, dequantize_codes, quantize_fp8};
use narrowbit_kernels::dynamic::{dynamic_quantize, dynamic_quantize_rows};
use narrowbit_kernels::quantize::{QuantScales, Quantized, dequantize, quantize};
use narrowbit_tensor::{DType, Element, shape};

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Kernel, RunCx, simple};

/// Scales and zero points of a node.
struct Params {
    scales: Vec<f32>,
    zeros: Vec<i32>,
    split: [usize; 3],
}

impl Params {
    fn scales(&self) -> QuantScales<'_> {
        QuantScales { scales: &self.scales, zero_points: &self.zeros, shape: self.split }
    }
}

/// The kernel of a quantization or its inverse; blocked scales and narrow types run on the reference.
pub fn build(cx: &BuildCx) -> Maybe {
    Ok(plan(cx))
}

/// DynamicQuantizeLinear: the range of a tensor, and its codes.
pub fn dynamic(cx: &BuildCx) -> Maybe {
    let (Some(x), [Some(y), Some(scale), Some(zero)]) = (cx.node.input(0), cx.node.outputs.as_slice()) else {
        return Ok(None);
    };
    if cx.f32_shape(0).is_none() {
        return Ok(None);
    }
    let kernel = simple("dynamic_quantize_u8", |cx| {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        let [y, scale, zero] = cx.outs.as_mut_slice() else { return Ok(()) };
        let (s, z) = dynamic_quantize(exec, x, y.slice::<u8>()?)?;
        scale.slice::<f32>()?.fill(s);
        zero.slice::<u8>()?.fill(z as u8);
        Ok(())
    });
    // One scale for all: the order of the elements does not matter.
    let last = cx.is_channels_last(x);
    let place = |v: ValueId| if last { (cx.channels_last)(v) } else { v };
    Ok(Some(Built { kernel, ins: vec![place(x)], outs: vec![place(*y), *scale, *zero] }))
}

/// The codes of rows that have a range each.
pub fn dynamic_rows(cx: &BuildCx) -> Maybe {
    let (Some(x), [Some(y), Some(scale), Some(zero)]) = (cx.node.input(0), cx.node.outputs.as_slice()) else {
        return Ok(None);
    };
    let Some(shape) = cx.f32_shape(0) else { return Ok(None) };
    let Some((&columns, rows)) = shape.split_last() else { return Ok(None) };
    let rows: usize = rows.iter().product();
    let kernel = Box::new(DynamicRows { rows, columns });
    Ok(Some(Built { kernel, ins: vec![x], outs: vec![*y, *scale, *zero] }))
}

/// Rows, each with a format that is found at run time.
struct DynamicRows {
    rows: usize,
    columns: usize,
}

impl Kernel for DynamicRows {
    fn name(&self) -> &str {
        "dynamic_quantize_rows_u8"
    }

    fn rows(&self) -> Option<(usize, usize)> {
        Some((self.rows, 1))
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        self.run_rows(self.rows, cx)
    }

    fn run_rows(&self, rows: usize, cx: &mut RunCx) -> Result<(), StepError> {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        let mut zeros: Few<i32, 64> = (0..rows).map(|_| 0).collect();
        let [y, scale, zero] = cx.outs.as_mut_slice() else { return Ok(()) };
        let shape = [rows, self.columns];
        dynamic_quantize_rows(exec, x, shape, y.slice::<u8>()?, scale.slice::<f32>()?, &mut zeros)?;
        zero.slice::<u8>()?.iter_mut().zip(zeros.iter()).for_each(|(to, &z)| *to = z as u8);
        Ok(())
    }
}

fn plan(cx: &BuildCx) -> Option<Built> {
    let (x, y) = (cx.node.input(0)?, cx.node.output(0)?);
    let (from, to) = (cx.ty(0)?, cx.out(0)?);
    let code = super::coded::fp8(from.dtype).or(super::coded::fp8(to.dtype));
    let p = params(cx, &from.shape, code.is_some())?;
    // A single scale does not care for the order of the elements.
    let last = cx.is_channels_last(x) && p.scales.len() == 1;
    let (float, int) = if cx.node.op.name() == "QuantizeLinear" { (&from, &to) } else { (&to, &from) };
    if float.dtype != DType::F32 {
        return None;
    }
    let quantizes = cx.node.op.name() == "QuantizeLinear";
    macro_rules! kernel {
        ($t:ty) => {
            match quantizes {
                true => simple("quantize_linear", move |cx| quantized::<$t>(cx, &p)),
                false => simple("dequantize_linear", move |cx| dequantized::<$t>(cx, &p)),
            }
        };
    }
    let kernel = match int.dtype {
        DType::U8 => kernel!(u8),
        DType::I8 => kernel!(i8),
        DType::U16 => kernel!(u16),
        DType::I16 => kernel!(i16),
        DType::I32 if !quantizes => kernel!(i32),
        _ if quantizes && cx.int("saturate", 1) == 0 => return None,
        _ if code.is_some() => fp8(code?, quantizes, p),
        _ => return None,
    };
    let place = |v| if last { (cx.channels_last)(v) } else { v };
    Some(Built { kernel, ins: vec![place(x)], outs: vec![place(y)] })
}

/// The kernel between floats and fp8.
fn fp8(code: Code, quantizes: bool, p: Params) -> Box<dyn Kernel> {
    if quantizes {
        return simple("quantize_fp8", move |cx| {
            let (exec, x) = (cx.exec, cx.f32s(0)?);
            let Some(y) = cx.outs.first_mut() else { return Ok(()) };
            Ok(quantize_fp8(exec, code, x, y.bytes, &p.scales())?)
        });
    }
    simple("dequantize_fp8", move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        Ok(dequantize_codes(exec, code, x, cx.out_f32s()?, &p.scales())?)
    })
}

/// Zero points of fp8 are 0, whatever their bytes read as integers.
fn params(cx: &BuildCx, dims: &[usize], fp8: bool) -> Option<Params> {
    let scales = cx.constant(1).filter(|t| t.dtype() == DType::F32)?;
    let zeros = match cx.node.input(2) {
        None => Vec::new(),
        Some(_) if fp8 => cx.floats(2)?.iter().all(|&z| z == 0.0).then(Vec::new)?,
        Some(_) => cx.ints(2)?.into_iter().map(i32::try_from).collect::<Result<_, _>>().ok()?,
    };
    if cx.int("block_size", 0) != 0 || scales.rank() > 1 {
        return None;
    }
    let split = match scales.len() {
        1 => [1, 1, dims.iter().product()],
        n => {
            let axis = shape::axis(cx.int("axis", 1), dims.len()).filter(|&a| dims[a] == n)?;
            [dims[..axis].iter().product(), n, dims[axis + 1..].iter().product()]
        }
    };
    Some(Params { scales: scales.to_f32s().ok()?.into_owned(), zeros, split })
}

fn quantized<T: Quantized + Element>(cx: &mut RunCx, p: &Params) -> Result<(), StepError> {
    let (exec, x) = (cx.exec, cx.f32s(0)?);
    let Some(out) = cx.outs.first_mut() else { return Ok(()) };
    Ok(quantize::<T>(exec, x, out.slice::<T>()?, &p.scales())?)
}

fn dequantized<T: Quantized + Element>(cx: &mut RunCx, p: &Params) -> Result<(), StepError> {
    let (exec, x) = (cx.exec, cx.view(0)?.slice::<T>()?);
    Ok(dequantize::<T>(exec, x, cx.out_f32s()?, &p.scales())?)
}
