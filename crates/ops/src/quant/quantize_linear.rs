//! QuantizeLinear: floats to codes with a scale and a zero point.

use std::sync::Arc;

use half::{bf16, f16};
use narrowbit_ir::{AttrMap, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::params::{Grain, ints, quantize_all};

/// `y = saturate(round_half_even(x / y_scale) + y_zero_point)` (ONNX QuantizeLinear 10 to 25,
/// and ONNX Runtime's `com.microsoft` form).
///
/// Inputs: `x` (f32, f16, bf16, i32), `y_scale`, optional `y_zero_point`, whose type is the
/// output's. Scale and zero point are scalars, vectors along `axis`, or of `x`'s rank with one
/// element per `block_size` elements along `axis`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizeLinear {
    /// The axis of a vector of scales; `None` where the file does not say (1; `com.microsoft`: per tensor).
    pub axis: Option<i64>,
    /// Elements along the axis that share a scale; 0 where the scale is not blocked.
    pub block_size: usize,
    /// The output type where there is no zero point; `None` is uint8.
    pub output_dtype: Option<DType>,
    /// The type in which `x` is divided by the scale; `None` is f32, as in ONNX Runtime.
    pub precision: Option<DType>,
    /// Whether fp8 codes saturate instead of becoming infinity or NaN.
    pub saturate: bool,
    /// Whether this is the `com.microsoft` operator.
    pub microsoft: bool,
}

/// Makes a QuantizeLinear of ONNX's own domain.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(QuantizeLinear {
        axis: attrs.int("axis")?,
        block_size: block_size(attrs)?,
        output_dtype: dtype(attrs, "output_dtype")?,
        precision: dtype(attrs, "precision")?,
        saturate: attrs.int_or("saturate", 1)? != 0,
        microsoft: false,
    }))
}

/// Makes a QuantizeLinear of the `com.microsoft` domain.
pub fn build_microsoft(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let axis = attrs.int("axis")?;
    let plain = QuantizeLinear { axis, saturate: true, microsoft: true, ..QuantizeLinear::default() };
    Ok(Arc::new(plain))
}

impl Default for QuantizeLinear {
    fn default() -> QuantizeLinear {
        QuantizeLinear {
            axis: None,
            block_size: 0,
            output_dtype: None,
            precision: None,
            saturate: true,
            microsoft: false,
        }
    }
}

/// Takes `block_size`, which must not be negative.
pub(crate) fn block_size(attrs: &mut AttrMap) -> Result<usize, OpError> {
    let n = attrs.int_or("block_size", 0)?;
    usize::try_from(n).map_err(|_| OpError::attribute("block_size", format!("is {n}, but must not be negative")))
}

/// Takes an element type; absent or 0 is `None`.
pub(crate) fn dtype(attrs: &mut AttrMap, name: &str) -> Result<Option<DType>, OpError> {
    match attrs.int_or(name, 0)? {
        0 => Ok(None),
        code => DType::from_onnx(code)
            .map(Some)
            .ok_or_else(|| OpError::attribute(name, format!("is {code}, which is no element type"))),
    }
}

/// The axis to quantize along: 1 unless said, none for `com.microsoft` unless said.
pub(crate) fn axis_of(axis: Option<i64>, microsoft: bool, rank: usize) -> Option<i64> {
    // A vector has only axis 0; the default 1 would be out of range and means per tensor there.
    axis.or((!microsoft).then_some(if rank == 1 { 0 } else { 1 }))
}

impl QuantizeLinear {
    fn out_type(&self, zero: Option<DType>) -> DType {
        zero.or(self.output_dtype).unwrap_or(DType::U8)
    }
}

/// `x / s` in the precision of a half type, or in f32.
fn divide(precision: DType, x: f32, s: f32) -> f32 {
    match precision {
        DType::F16 => (f16::from_f32(x) / f16::from_f32(s)).to_f32(),
        DType::Bf16 => (bf16::from_f32(x) / bf16::from_f32(s)).to_f32(),
        _ => x / s,
    }
}

impl Op for QuantizeLinear {
    fn name(&self) -> &str {
        "QuantizeLinear"
    }

    fn domain(&self) -> &str {
        if self.microsoft { "com.microsoft" } else { "" }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        let dtype = match cx.opt(2) {
            Some(z) => z.dtype().or(self.output_dtype),
            None => Some(self.out_type(None)),
        };
        Ok(vec![Fact::tensor(dtype, x.shape().map(<[_]>::to_vec))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (x, scale, zero) = (cx.get(0)?, cx.get(1)?, cx.opt(2));
        if zero.is_some_and(|z| z.len() != scale.len()) {
            return Err(OpError::shape(format!(
                "the scale has {} elements, but the zero point has {}",
                scale.len(),
                zero.map_or(0, Tensor::len)
            )));
        }
        let dtype = self.out_type(zero.map(Tensor::dtype));
        let axis = axis_of(self.axis, self.microsoft, x.rank());
        let grain = Grain::resolve(x.shape(), scale.shape(), axis, self.block_size)?;
        let zeros = match zero {
            Some(z) if dtype.is_int() => ints(z)?,
            _ => Vec::new(),
        };
        // ONNX's default is the scale's type; ONNX Runtime divides half types in f32, and its codes are the reference.
        let precision = self.precision.unwrap_or(DType::F32);
        let (xs, scales) = (x.to_f32s()?, scale.to_f32s()?);
        let y =
            quantize_all(dtype, x.shape(), &xs, &zeros, grain, self.saturate, |v, p| divide(precision, v, scales[p]))?;
        Ok(vec![y])
    }

    fn attrs(&self) -> AttrMap {
        let code = |d: DType| i64::from(d.to_onnx());
        AttrMap::new()
            .with_opt("axis", self.axis)
            .with_unless("block_size", self.block_size as i64, 0)
            .with_opt("output_dtype", self.output_dtype.map(code))
            .with_opt("precision", self.precision.map(code))
            .with_unless("saturate", i64::from(self.saturate), 1)
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
    fn rounds_ties_to_even_per_axis() {
        let op = QuantizeLinear { axis: Some(0), ..QuantizeLinear::default() };
        let x = Tensor::new([2, 2], vec![0.5f32, 1.5, 300.0, -4.0]).unwrap();
        let y = run(&op, &[x, Tensor::vector(vec![1f32, 2.0]), Tensor::vector(vec![1u8, 10])]).unwrap();
        assert_eq!(y[0].slice::<u8>().unwrap().as_ref(), [1, 3, 160, 8]);
    }

    #[test]
    fn packs_four_bit_blocks() {
        let op = QuantizeLinear { axis: Some(1), block_size: 2, ..QuantizeLinear::default() };
        let x = Tensor::new([1, 3], vec![7f32, -9.0, 4.0]).unwrap();
        let s = Tensor::new([1, 2], vec![1f32, 2.0]).unwrap();
        let z = Tensor::from_i64s(DType::I4, [1, 2], &[0, 1]).unwrap();
        let y = run(&op, &[x, s, z]).unwrap();
        assert_eq!((y[0].dtype(), y[0].to_i64s().unwrap()), (DType::I4, vec![7, -8, 3]));
    }

    #[test]
    fn refuses_a_zero_point_of_another_length() {
        let x = Tensor::vector(vec![1f32, 2.0]);
        let bad = run(&QuantizeLinear::default(), &[x, Tensor::scalar(1f32), Tensor::vector(vec![0u8, 0])]);
        assert!(matches!(bad, Err(OpError::Shape(_))));
        assert!(build(21, &mut AttrMap::new().with("block_size", -1i64)).is_err());
    }
}
