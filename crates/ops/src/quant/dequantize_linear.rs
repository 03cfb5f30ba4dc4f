//! DequantizeLinear: codes back to floats.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::params::{Grain, ints};
use super::quantize_linear::{axis_of, block_size, dtype};

/// `y = (x - x_zero_point) * x_scale` (ONNX DequantizeLinear 10 to 25, and ONNX Runtime's
/// `com.microsoft` form).
///
/// Inputs: `x` (integers of 2 to 32 bits, fp8, fp4), `x_scale`, optional `x_zero_point` of `x`'s
/// type. The product is formed in f32 and rounded once to the output type: `output_dtype`, or the
/// scale's type.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DequantizeLinear {
    /// The axis of a vector of scales; `None` where the file does not say (1; `com.microsoft`: per tensor).
    pub axis: Option<i64>,
    /// Elements along the axis that share a scale; 0 where the scale is not blocked.
    pub block_size: usize,
    /// The output type; `None` is the scale's.
    pub output_dtype: Option<DType>,
    /// Whether this is the `com.microsoft` operator.
    pub microsoft: bool,
}

/// Makes a DequantizeLinear of ONNX's own domain.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let output_dtype = dtype(attrs, "output_dtype")?;
    if let Some(d) = output_dtype.filter(|d| !matches!(d, DType::F32 | DType::F16 | DType::Bf16)) {
        return Err(OpError::attribute("output_dtype", format!("is {d}, expected f32, f16 or bf16")));
    }
    let (axis, block_size) = (attrs.int("axis")?, block_size(attrs)?);
    Ok(Arc::new(DequantizeLinear { axis, block_size, output_dtype, microsoft: false }))
}

/// Makes a DequantizeLinear of the `com.microsoft` domain.
pub fn build_microsoft(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(DequantizeLinear { axis: attrs.int("axis")?, microsoft: true, ..DequantizeLinear::default() }))
}

impl Op for DequantizeLinear {
    fn name(&self) -> &str {
        "DequantizeLinear"
    }

    fn domain(&self) -> &str {
        if self.microsoft { "com.microsoft" } else { "" }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let dtype = self.output_dtype.or(cx.dtype(1));
        Ok(vec![Fact::tensor(dtype, x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, scale, zero) = (cx.get(0)?, cx.get(1)?, cx.opt(2));
        if let Some(z) = zero.filter(|z| z.len() != scale.len()) {
            let message = format!("the scale has {} elements, but the zero point has {}", scale.len(), z.len());
            return Err(OpError::shape(message));
        }
        let axis = axis_of(self.axis, self.microsoft, x.rank());
        let grain = Grain::resolve(x.shape(), scale.shape(), axis, self.block_size)?;
        let scales = scale.to_f32s()?;
        let mut y = Vec::with_capacity(x.len());
        if x.dtype().is_int() && (x.dtype().bits() <= 16 || x.dtype() == DType::I32) {
            let zeros = zero.map(ints).transpose()?;
            let codes = ints(x)?;
            for r in grain.runs(codes.len()) {
                y.extend(codes[r.start..r.start + r.len].iter().enumerate().map(|(i, &c)| {
                    let p = r.param + i * r.step;
                    let z = zeros.as_ref().map_or(0, |z| z[p]);
                    c.wrapping_sub(z) as f32 * scales[p]
                }));
            }
        } else if x.dtype().is_minifloat() {
            let values = x.to_f32s()?;
            for r in grain.runs(values.len()) {
                let vs = &values[r.start..r.start + r.len];
                y.extend(vs.iter().enumerate().map(|(i, &v)| v * scales[r.param + i * r.step]));
            }
        } else {
            return Err(OpError::input(0, x.dtype().name(), "a quantized type"));
        }
        let out = self.output_dtype.unwrap_or(scale.dtype());
        Ok(vec![Tensor::from_f32s(out, x.shape(), y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_opt("axis", self.axis)
            .with_unless("block_size", self.block_size as i64, 0)
            .with_opt("output_dtype", self.output_dtype.map(|d| i64::from(d.to_onnx())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::Datum;

    fn run(op: &dyn Op, ins: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
        let data: Vec<Datum> = ins.iter().cloned().map(Datum::Tensor).collect();
        let refs: Vec<Option<&Datum>> = data.iter().map(Some).collect();
        op.eval(&EvalCx::new(&refs, 1))
    }

    #[test]
    fn subtracts_the_zero_point_of_the_axis() {
        let x = Tensor::new([1, 2], vec![10i8, -10]).unwrap();
        let ins = [x, Tensor::vector(vec![0.5f32, 2.0]), Tensor::vector(vec![2i8, -2])];
        let y = run(&DequantizeLinear::default(), &ins).unwrap();
        assert_eq!(y[0].slice::<f32>().unwrap().as_ref(), [4.0, -16.0]);
    }

    #[test]
    fn rounds_once_to_half() {
        let x = Tensor::vector(vec![2049i32]);
        let y = run(&DequantizeLinear::default(), &[x, Tensor::scalar(f16::from_f32(1.0))]).unwrap();
        assert_eq!(y[0].to_f64s().unwrap(), [2048.0]);
    }

    #[test]
    fn refuses_floats_as_codes() {
        let x = Tensor::vector(vec![1f32]);
        assert!(run(&DequantizeLinear::default(), &[x, Tensor::scalar(1f32)]).is_err());
    }

    use half::f16;
}
