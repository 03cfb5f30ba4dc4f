use std::fmt;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $onnx:literal, $bits:literal;)*) => {
        /// An element type; the discriminant is ONNX's `TensorProto.DataType`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum DType { $($(#[$doc])* $variant = $code,)* }

        impl DType {
            /// Every element type, in the order of ONNX's codes.
            pub const ALL: &'static [DType] = &[$(DType::$variant),*];

            /// The short name of the text form, for instance `f32`.
            pub fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// ONNX's name, for instance `FLOAT`.
            pub fn onnx_name(self) -> &'static str {
                match self { $(DType::$variant => $onnx,)* }
            }

            /// Bits of one element; 0 for strings, which are not stored as bytes.
            pub fn bits(self) -> usize {
                match self { $(DType::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    /// IEEE binary32.
    F32 = 1, "f32", "FLOAT", 32;
    /// Unsigned 8-bit integer.
    U8 = 2, "u8", "UINT8", 8;
    /// Signed 8-bit integer.
    I8 = 3, "i8", "INT8", 8;
    /// Unsigned 16-bit integer.
    U16 = 4, "u16", "UINT16", 16;
    /// Signed 16-bit integer.
    I16 = 5, "i16", "INT16", 16;
    /// Signed 32-bit integer.
    I32 = 6, "i32", "INT32", 32;
    /// Signed 64-bit integer.
    I64 = 7, "i64", "INT64", 64;
    /// UTF-8 strings.
    String = 8, "string", "STRING", 0;
    /// Booleans, one byte each, 0 or 1.
    Bool = 9, "bool", "BOOL", 8;
    /// IEEE binary16.
    F16 = 10, "f16", "FLOAT16", 16;
    /// IEEE binary64.
    F64 = 11, "f64", "DOUBLE", 64;
    /// Unsigned 32-bit integer.
    U32 = 12, "u32", "UINT32", 32;
    /// Unsigned 64-bit integer.
    U64 = 13, "u64", "UINT64", 64;
    /// Pair of `f32`; kept in files, no operator computes with it.
    Complex64 = 14, "c64", "COMPLEX64", 64;
    /// Pair of `f64`; kept in files, no operator computes with it.
    Complex128 = 15, "c128", "COMPLEX128", 128;
    /// bfloat16: the upper half of an `f32`.
    Bf16 = 16, "bf16", "BFLOAT16", 16;
    /// fp8, 4 exponent and 3 mantissa bits, no infinity, maximum 448.
    F8E4M3Fn = 17, "f8e4m3fn", "FLOAT8E4M3FN", 8;
    /// As `f8e4m3fn` with one zero and one NaN (0x80), maximum 240.
    F8E4M3Fnuz = 18, "f8e4m3fnuz", "FLOAT8E4M3FNUZ", 8;
    /// fp8, 5 exponent and 2 mantissa bits, IEEE-like, maximum 57344.
    F8E5M2 = 19, "f8e5m2", "FLOAT8E5M2", 8;
    /// As `f8e5m2` with one zero and one NaN (0x80), maximum 57344.
    F8E5M2Fnuz = 20, "f8e5m2fnuz", "FLOAT8E5M2FNUZ", 8;
    /// Unsigned 4-bit integer, two to a byte.
    U4 = 21, "u4", "UINT4", 4;
    /// Signed 4-bit integer, two to a byte.
    I4 = 22, "i4", "INT4", 4;
    /// fp4, 2 exponent bits and 1 mantissa bit, maximum 6, two to a byte.
    F4E2M1 = 23, "f4e2m1", "FLOAT4E2M1", 4;
    /// A power of two with 8 exponent bits, bias 127; 255 is NaN.
    F8E8M0 = 24, "f8e8m0", "FLOAT8E8M0", 8;
    /// Unsigned 2-bit integer, four to a byte.
    U2 = 25, "u2", "UINT2", 2;
    /// Signed 2-bit integer, four to a byte.
    I2 = 26, "i2", "INT2", 2;
}

impl DType {
    /// The type with ONNX's code, or `None` for 0 (undefined) and unknown codes.
    pub fn from_onnx(code: i64) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| *d as i64 == code)
    }

    /// The type with the short name or ONNX's name, in any case.
    pub fn from_name(name: &str) -> Option<DType> {
        let same = |d: &DType| name.eq_ignore_ascii_case(d.name()) || name.eq_ignore_ascii_case(d.onnx_name());
        DType::ALL.iter().copied().find(same)
    }

    /// ONNX's `TensorProto.DataType` code.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// Bytes that `elements` elements take when packed as ONNX packs them; `None` on overflow.
    pub fn byte_len(self, elements: usize) -> Option<usize> {
        elements.checked_mul(self.bits()).map(|bits| bits.div_ceil(8))
    }

    /// Whether elements are narrower than a byte and share bytes.
    pub fn is_packed(self) -> bool {
        matches!(self.bits(), 2 | 4)
    }

    /// Whether this is a floating-point type, 4-bit and 8-bit ones included.
    pub fn is_float(self) -> bool {
        use DType::*;
        matches!(self, F64 | F32 | F16 | Bf16) || self.is_minifloat()
    }

    /// Whether this is a floating-point type of at most 8 bits.
    pub fn is_minifloat(self) -> bool {
        use DType::*;
        matches!(self, F8E4M3Fn | F8E4M3Fnuz | F8E5M2 | F8E5M2Fnuz | F4E2M1 | F8E8M0)
    }

    /// Whether this is an integer type; `Bool` is none.
    pub fn is_int(self) -> bool {
        self.int_range().is_some()
    }

    /// Whether this is an integer type with negative values.
    pub fn is_signed_int(self) -> bool {
        self.int_range().is_some_and(|(lo, _)| lo < 0)
    }

    /// The least and the greatest value of an integer type; `None` for other types.
    pub fn int_range(self) -> Option<(i128, i128)> {
        use DType::*;
        let signed = match self {
            I2 | I4 | I8 | I16 | I32 | I64 => true,
            U2 | U4 | U8 | U16 | U32 | U64 => false,
            _ => return None,
        };
        let bits = self.bits();
        Some(if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_type_by_code_and_name() {
        for &d in DType::ALL {
            assert_eq!(DType::from_onnx(d.to_onnx() as i64), Some(d));
            assert_eq!(DType::from_name(d.name()), Some(d));
            assert_eq!(DType::from_name(d.onnx_name()), Some(d));
        }
        assert_eq!(DType::from_onnx(0), None);
        assert_eq!(DType::from_onnx(999), None);
    }

    #[test]
    fn gives_integer_ranges_and_byte_lengths() {
        assert_eq!(DType::I8.int_range(), Some((-128, 127)));
        assert_eq!(DType::U4.int_range(), Some((0, 15)));
        assert_eq!(DType::F32.int_range(), None);
        assert_eq!(DType::I4.byte_len(3), Some(2));
        assert_eq!(DType::U2.byte_len(5), Some(2));
        assert_eq!(DType::F64.byte_len(usize::MAX), None);
    }
}
