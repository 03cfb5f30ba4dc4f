//! The number formats that ONNX can carry between QuantizeLinear and DequantizeLinear.

use narrowbit_tensor::{DType, Tensor, TensorError, minifloat};
use serde::{Deserialize, Serialize};

/// The element type that quantized values are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NumberFormat {
    /// −8 … 7.
    Int4,
    /// 0 … 15.
    Uint4,
    /// −128 … 127.
    Int8,
    /// 0 … 255.
    Uint8,
    /// −32768 … 32767.
    Int16,
    /// 0 … 65535.
    Uint16,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinity: up to 448.
    #[serde(rename = "fp8_e4m3")]
    Fp8E4m3,
    /// 8-bit float, 5 exponent and 2 mantissa bits: up to 57344.
    #[serde(rename = "fp8_e5m2")]
    Fp8E5m2,
}

impl NumberFormat {
    /// The tensor element type.
    pub fn dtype(self) -> DType {
        match self {
            NumberFormat::Int4 => DType::I4,
            NumberFormat::Uint4 => DType::U4,
            NumberFormat::Int8 => DType::I8,
            NumberFormat::Uint8 => DType::U8,
            NumberFormat::Int16 => DType::I16,
            NumberFormat::Uint16 => DType::U16,
            NumberFormat::Fp8E4m3 => DType::F8E4M3Fn,
            NumberFormat::Fp8E5m2 => DType::F8E5M2,
        }
    }

    /// The format whose codes have an element type.
    pub fn of_dtype(dtype: DType) -> Option<NumberFormat> {
        use NumberFormat::{Fp8E4m3, Fp8E5m2, Int4, Int8, Int16, Uint4, Uint8, Uint16};
        [Int4, Uint4, Int8, Uint8, Int16, Uint16, Fp8E4m3, Fp8E5m2].into_iter().find(|f| f.dtype() == dtype)
    }

    /// The name in options and messages.
    pub fn name(self) -> &'static str {
        match self {
            NumberFormat::Int4 => "int4",
            NumberFormat::Uint4 => "uint4",
            NumberFormat::Int8 => "int8",
            NumberFormat::Uint8 => "uint8",
            NumberFormat::Int16 => "int16",
            NumberFormat::Uint16 => "uint16",
            NumberFormat::Fp8E4m3 => "fp8_e4m3",
            NumberFormat::Fp8E5m2 => "fp8_e5m2",
        }
    }

    /// Whether the codes are floats, which have no zero point.
    pub fn is_float(self) -> bool {
        self.dtype().is_minifloat()
    }

    /// Whether codes can be negative.
    pub fn is_signed(self) -> bool {
        self.is_float() || self.dtype().is_signed_int()
    }

    /// The greatest value of a float format; `None` for integers.
    pub fn float_max(self) -> Option<f32> {
        minifloat::max_value(self.dtype())
    }

    /// The least and the greatest value of the type; the whole numbers below its ends for floats.
    pub fn type_range(self) -> (i32, i32) {
        match self.dtype().int_range() {
            Some((lo, hi)) => (lo as i32, hi as i32),
            None => {
                let most = self.float_max().unwrap_or_default() as i32;
                (-most, most)
            }
        }
    }

    /// Zero points as a tensor of the type: integers, or the zeros of a float type.
    ///
    /// # Errors
    /// When there are not as many as `shape` asks for.
    pub fn zero_points(self, shape: &[usize], values: &[i32]) -> Result<Tensor, TensorError> {
        let wide = |&v: &i32| i64::from(v);
        match self.is_float() {
            true => Tensor::zeros(self.dtype(), shape),
            false => Tensor::from_i64s(self.dtype(), shape, &values.iter().map(wide).collect::<Vec<_>>()),
        }
    }

    /// The first version of ONNX's operator set whose QuantizeLinear and DequantizeLinear know the type.
    pub fn least_opset(self) -> i64 {
        match self {
            NumberFormat::Int8 | NumberFormat::Uint8 => 13,
            NumberFormat::Fp8E4m3 | NumberFormat::Fp8E5m2 => 19,
            _ => 21,
        }
    }

    /// The least and the greatest code in use. `symmetric` int8 and int16 leave out the least one, so that
    /// the codes of x and −x differ only in sign; `reduced` drops a bit, so that products of pairs do not overflow
    /// the 16-bit intermediates of x86 before VNNI. `bits` is the number of bits of codes that are
    /// narrower than their type.
    ///
    /// Source: `ONNX_INT_TYPE_RANGE`, `_SYMMETRIC_RANGE` and `_REDUCED_RANGE` of ONNX Runtime's `quant_utils`.
    pub fn code_range(self, symmetric: bool, reduced: bool, bits: Option<u8>) -> (i32, i32) {
        if let (Some(bits), false) = (bits.filter(|&b| (2..16).contains(&b)), self.is_float()) {
            let values = 1i32 << bits;
            return match (self.is_signed(), symmetric) {
                (true, true) => (1 - values / 2, values / 2 - 1),
                (true, false) => (-values / 2, values / 2 - 1),
                (false, _) => (0, values - 1),
            };
        }
        let (lo, hi) = self.type_range();
        match (self, reduced, symmetric) {
            (NumberFormat::Int8 | NumberFormat::Int16, true, _) => (lo / 2, -lo / 2),
            (NumberFormat::Int4, true, _) => (lo / 2, hi / 2),
            (_, true, _) if !self.is_float() => (0, hi / 2),
            (NumberFormat::Int8 | NumberFormat::Int16, false, true) => (-hi, hi),
            _ => (lo, hi),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_code_ranges_of_onnx_runtime() {
        use NumberFormat::*;
        for (format, whole, symmetric, reduced) in [
            (Int8, (-128, 127), (-127, 127), (-64, 64)),
            (Uint8, (0, 255), (0, 255), (0, 127)),
            (Int16, (-32768, 32767), (-32767, 32767), (-16384, 16384)),
            (Uint16, (0, 65535), (0, 65535), (0, 32767)),
            (Int4, (-8, 7), (-8, 7), (-4, 3)),
            (Uint4, (0, 15), (0, 15), (0, 7)),
        ] {
            assert_eq!(format.code_range(false, false, None), whole);
            assert_eq!(format.code_range(true, false, None), symmetric);
            assert_eq!(format.code_range(false, true, None), reduced);
        }
    }

    #[test]
    fn counts_the_sign_among_the_bits_of_narrow_codes() {
        assert_eq!(NumberFormat::Int8.code_range(false, false, Some(4)), (-8, 7));
        assert_eq!(NumberFormat::Int8.code_range(true, false, Some(4)), (-7, 7));
        assert_eq!(NumberFormat::Uint8.code_range(false, false, Some(4)), (0, 15));
        assert_eq!(NumberFormat::Fp8E4m3.code_range(false, false, Some(4)), (-448, 448));
    }
}
