use crate::DType;
use half::{bf16, f16};

/// A Rust type that stores one element of a [`DType`] in whole bytes.
///
/// Booleans are stored as `u8`, minifloats as their bit patterns in `u8`, packed
/// types as bytes of several elements; all of these are read as `u8` slices.
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + std::fmt::Debug {
    /// The type that a new tensor of this element gets.
    const DTYPE: DType;

    /// Whether a tensor of `dtype` may be read as a slice of this element.
    fn reads(dtype: DType) -> bool {
        dtype == Self::DTYPE
    }
}

macro_rules! element {
    ($($t:ty => $d:ident),* $(,)?) => {
        $(impl Element for $t { const DTYPE: DType = DType::$d; })*
    };
}
element! { f32 => F32, f64 => F64, f16 => F16, bf16 => Bf16, i8 => I8, i16 => I16, u16 => U16,
i32 => I32, u32 => U32, i64 => I64, u64 => U64 }

impl Element for u8 {
    const DTYPE: DType = DType::U8;

    fn reads(dtype: DType) -> bool {
        matches!(dtype.bits(), 1..=8)
    }
}
