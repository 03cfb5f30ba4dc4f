use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};

use crate::{DType, Element, TensorError, minifloat, shape, subbyte};

/// An immutable array of elements; cloning shares the data.
///
/// Element order is row-major. See the crate's page for the byte layout.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Clone, PartialEq)]
enum Data {
    Bytes(Bytes),
    Strings(Arc<[String]>),
}

/// Lets a typed vector own the bytes of a tensor without a copy.
struct Owner<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Tensor {
    /// A tensor of `T::DTYPE` that takes over `values`, one per element of `shape`.
    ///
    /// # Errors
    /// When `values` has another length than `shape` asks for.
    pub fn new<T: Element>(shape: impl Into<Vec<usize>>, values: Vec<T>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        check_len(T::DTYPE, &shape, shape::count(&shape)?, values.len(), "elements")?;
        Ok(Tensor { dtype: T::DTYPE, shape, data: Data::Bytes(Bytes::from_owner(Owner(values))) })
    }

    /// A tensor of any type but strings over `bytes`, which are shared, not copied.
    ///
    /// # Errors
    /// When `bytes` has another length than dtype and shape ask for.
    pub fn from_bytes(
        dtype: DType,
        shape: impl Into<Vec<usize>>,
        bytes: impl Into<Bytes>,
    ) -> Result<Tensor, TensorError> {
        let (shape, bytes) = (shape.into(), bytes.into());
        if dtype == DType::String {
            return Err(TensorError::Type { expected: "a type stored as bytes".into(), actual: dtype });
        }
        let expected = dtype.byte_len(shape::count(&shape)?).ok_or_else(|| TensorError::TooLarge(shape.clone()))?;
        check_len(dtype, &shape, expected, bytes.len(), "bytes")?;
        Ok(Tensor { dtype, shape, data: Data::Bytes(bytes) })
    }

    /// A tensor of strings.
    ///
    /// # Errors
    /// When `values` has another length than `shape` asks for.
    pub fn from_strings(shape: impl Into<Vec<usize>>, values: Vec<String>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        check_len(DType::String, &shape, shape::count(&shape)?, values.len(), "elements")?;
        Ok(Tensor { dtype: DType::String, shape, data: Data::Strings(values.into()) })
    }

    /// A tensor of booleans.
    ///
    /// # Errors
    /// When `values` has another length than `shape` asks for.
    pub fn from_bools(shape: impl Into<Vec<usize>>, values: Vec<bool>) -> Result<Tensor, TensorError> {
        let bytes: Vec<u8> = values.into_iter().map(u8::from).collect();
        Tensor::from_bytes(DType::Bool, shape, bytes)
    }

    /// A tensor of a packed type (2 or 4 bits) from one code per element.
    ///
    /// # Errors
    /// When `dtype` is not packed or `codes` has another length than `shape` asks for.
    pub fn from_codes(dtype: DType, shape: impl Into<Vec<usize>>, codes: &[u8]) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        if !dtype.is_packed() {
            return Err(TensorError::Type { expected: "a 2-bit or 4-bit type".into(), actual: dtype });
        }
        check_len(dtype, &shape, shape::count(&shape)?, codes.len(), "elements")?;
        Tensor::from_bytes(dtype, shape, subbyte::pack(codes.iter().copied(), dtype.bits()))
    }

    /// A tensor of `dtype` from integers, each wrapped to the type's width (booleans: non-zero is true;
    /// floating-point types: rounded to nearest).
    ///
    /// # Errors
    /// When the length does not fit, or for strings and complex types.
    pub fn from_i64s(dtype: DType, shape: impl Into<Vec<usize>>, values: &[i64]) -> Result<Tensor, TensorError> {
        use DType::*;
        let shape = shape.into();
        fn conv<T: Element>(s: Vec<usize>, v: &[i64], f: impl Fn(i64) -> T) -> Result<Tensor, TensorError> {
            Tensor::new(s, v.iter().map(|&x| f(x)).collect())
        }
        match dtype {
            I64 => conv(shape, values, |x| x),
            I32 => conv(shape, values, |x| x as i32),
            I16 => conv(shape, values, |x| x as i16),
            I8 => conv(shape, values, |x| x as i8),
            U64 => conv(shape, values, |x| x as u64),
            U32 => conv(shape, values, |x| x as u32),
            U16 => conv(shape, values, |x| x as u16),
            U8 => conv(shape, values, |x| x as u8),
            Bool => Tensor::from_bools(shape, values.iter().map(|&x| x != 0).collect()),
            U4 | I4 | U2 | I2 => Tensor::from_codes(dtype, shape, &values.iter().map(|&x| x as u8).collect::<Vec<_>>()),
            _ => Tensor::from_f64s(dtype, shape, &values.iter().map(|&x| x as f64).collect::<Vec<_>>()),
        }
    }

    /// A tensor of a floating-point `dtype` from `f64` values, each rounded to nearest even
    /// (types of at most 8 bits saturate).
    ///
    /// # Errors
    /// When the length does not fit or `dtype` is not a floating-point type.
    pub fn from_f64s(dtype: DType, shape: impl Into<Vec<usize>>, values: &[f64]) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        match dtype {
            DType::F64 => Tensor::new(shape, values.to_vec()),
            DType::F32 => Tensor::new(shape, values.iter().map(|&x| x as f32).collect()),
            DType::F16 => Tensor::new(shape, values.iter().map(|&x| f16::from_f64(x)).collect()),
            DType::Bf16 => Tensor::new(shape, values.iter().map(|&x| bf16::from_f64(x)).collect()),
            d if d.is_minifloat() => {
                let codes: Vec<u8> = values.iter().map(|&x| minifloat::encode(d, x as f32, true)).collect();
                if d.is_packed() { Tensor::from_codes(d, shape, &codes) } else { Tensor::from_bytes(d, shape, codes) }
            }
            d => Err(TensorError::Type { expected: "a floating-point type".into(), actual: d }),
        }
    }

    /// A tensor of `dtype` from `f32` values, rounded as [`Tensor::from_f64s`] rounds.
    ///
    /// # Errors
    /// As [`Tensor::from_f64s`].
    pub fn from_f32s(dtype: DType, shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Result<Tensor, TensorError> {
        match dtype {
            DType::F32 => Tensor::new(shape, values),
            _ => Tensor::from_f64s(dtype, shape, &values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
        }
    }

    /// A tensor without dimensions.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor { dtype: T::DTYPE, shape: Vec::new(), data: Data::Bytes(Bytes::from_owner(Owner(vec![value]))) }
    }

    /// A one-dimensional tensor.
    pub fn vector<T: Element>(values: Vec<T>) -> Tensor {
        Tensor { dtype: T::DTYPE, shape: vec![values.len()], data: Data::Bytes(Bytes::from_owner(Owner(values))) }
    }

    /// A tensor whose bytes are all zero (strings: all empty).
    ///
    /// # Errors
    /// When the shape has more elements than memory can address.
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        let n = shape::count(&shape)?;
        if dtype == DType::String {
            return Tensor::from_strings(shape, vec![String::new(); n]);
        }
        let len = dtype.byte_len(n).ok_or_else(|| TensorError::TooLarge(shape.clone()))?;
        Tensor::from_bytes(dtype, shape, vec![0u8; len])
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents, in elements.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        // Does not overflow: every constructor counts the shape with `shape::count`.
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Gives memory back where the content is part of a mapped file: for content that was copied into another form
    /// and is hardly needed any more. Reading it later still works.
    pub fn release(&self) {
        crate::mapped::release(self.bytes());
    }

    /// The bytes; empty for strings.
    pub fn bytes(&self) -> &Bytes {
        static EMPTY: Bytes = Bytes::new();
        match &self.data {
            Data::Bytes(b) => b,
            Data::Strings(_) => &EMPTY,
        }
    }

    /// The elements as a slice, copied only where the bytes are not aligned for `T`.
    ///
    /// # Errors
    /// When `T` does not read this dtype (see [`Element::reads`]).
    pub fn slice<T: Element>(&self) -> Result<Cow<'_, [T]>, TensorError> {
        let bytes = match &self.data {
            Data::Bytes(b) if T::reads(self.dtype) => b,
            _ => return Err(TensorError::Type { expected: T::DTYPE.to_string(), actual: self.dtype }),
        };
        Ok(match bytemuck::try_cast_slice(bytes) {
            Ok(s) => Cow::Borrowed(s),
            Err(_) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(bytes)),
        })
    }

    /// The elements where they can be read in place; `None` for other types and for bytes that are not aligned.
    pub fn aligned<T: Element>(&self) -> Option<&[T]> {
        match &self.data {
            Data::Bytes(b) if T::reads(self.dtype) => bytemuck::try_cast_slice(b).ok(),
            _ => None,
        }
    }

    /// The strings.
    ///
    /// # Errors
    /// When this is no tensor of strings.
    pub fn strings(&self) -> Result<&[String], TensorError> {
        match &self.data {
            Data::Strings(s) => Ok(s),
            Data::Bytes(_) => Err(TensorError::Type { expected: "strings".into(), actual: self.dtype }),
        }
    }

    /// The booleans.
    ///
    /// # Errors
    /// When this is no tensor of booleans.
    pub fn bools(&self) -> Result<Vec<bool>, TensorError> {
        match self.dtype {
            DType::Bool => Ok(self.bytes().iter().map(|&b| b != 0).collect()),
            d => Err(TensorError::Type { expected: "bool".into(), actual: d }),
        }
    }

    /// The codes of a packed type, one to a byte, not sign-extended.
    ///
    /// # Errors
    /// When the type is not packed.
    pub fn codes(&self) -> Result<Vec<u8>, TensorError> {
        if !self.dtype.is_packed() {
            return Err(TensorError::Type { expected: "a 2-bit or 4-bit type".into(), actual: self.dtype });
        }
        Ok(subbyte::unpack(self.bytes(), self.dtype.bits(), self.len()))
    }

    /// Integers and booleans as `i64` (`u64` beyond `i64::MAX` wraps).
    ///
    /// # Errors
    /// For floating-point types and strings.
    pub fn to_i64s(&self) -> Result<Vec<i64>, TensorError> {
        use DType::*;
        macro_rules! as_i64 {
            ($t:ty) => {
                self.slice::<$t>()?.iter().map(|&x| x as i64).collect()
            };
        }
        Ok(match self.dtype {
            I64 => self.slice::<i64>()?.into_owned(),
            I32 => as_i64!(i32),
            I16 => as_i64!(i16),
            I8 => as_i64!(i8),
            U64 => as_i64!(u64),
            U32 => as_i64!(u32),
            U16 => as_i64!(u16),
            U8 | Bool => as_i64!(u8),
            U4 | U2 => self.codes()?.into_iter().map(i64::from).collect(),
            I4 | I2 => {
                subbyte::unpack_signed(self.bytes(), self.dtype.bits(), self.len()).into_iter().map(i64::from).collect()
            }
            d => return Err(TensorError::Type { expected: "an integer type".into(), actual: d }),
        })
    }

    /// Every number as `f64` (64-bit integers are rounded).
    ///
    /// # Errors
    /// For strings and complex types.
    pub fn to_f64s(&self) -> Result<Vec<f64>, TensorError> {
        use DType::*;
        Ok(match self.dtype {
            F64 => self.slice::<f64>()?.into_owned(),
            F32 => self.slice::<f32>()?.iter().map(|&x| f64::from(x)).collect(),
            F16 => self.slice::<f16>()?.iter().map(|x| x.to_f64()).collect(),
            Bf16 => self.slice::<bf16>()?.iter().map(|x| x.to_f64()).collect(),
            U64 => self.slice::<u64>()?.iter().map(|&x| x as f64).collect(),
            F4E2M1 => self.codes()?.into_iter().map(|c| f64::from(minifloat::decode(F4E2M1, c))).collect(),
            d if d.is_minifloat() => self.bytes().iter().map(|&c| f64::from(minifloat::decode(d, c))).collect(),
            _ => self.to_i64s()?.into_iter().map(|x| x as f64).collect(),
        })
    }

    /// Every number as `f32`, rounded to nearest; borrowed where it is `f32` already.
    ///
    /// # Errors
    /// For strings and complex types.
    pub fn to_f32s(&self) -> Result<Cow<'_, [f32]>, TensorError> {
        match self.dtype {
            DType::F32 => self.slice::<f32>(),
            _ => Ok(self.to_f64s()?.into_iter().map(|x| x as f32).collect::<Vec<_>>().into()),
        }
    }

    /// The same data under another shape of as many elements.
    ///
    /// # Errors
    /// When the numbers of elements differ.
    pub fn reshaped(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        check_len(self.dtype, &shape, shape::count(&shape)?, self.len(), "elements")?;
        Ok(Tensor { dtype: self.dtype, shape, data: self.data.clone() })
    }
}

fn check_len(
    dtype: DType,
    shape: &[usize],
    expected: usize,
    actual: usize,
    unit: &'static str,
) -> Result<(), TensorError> {
    if expected == actual {
        return Ok(());
    }
    Err(TensorError::Length { dtype, shape: shape.to_vec(), expected, actual, unit })
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "{}{:?} ", self.dtype, self.shape)?;
        let more = if self.len() > SHOWN { ", …" } else { "" };
        match (&self.data, self.len()) {
            (Data::Strings(s), _) => write!(f, "{:?}{more}", &s[..s.len().min(SHOWN)]),
            (_, n) if n <= 4096 => match self.to_f64s() {
                Ok(v) => write!(f, "{:?}{more}", &v[..v.len().min(SHOWN)]),
                Err(_) => write!(f, "({} bytes)", self.bytes().len()),
            },
            _ => write!(f, "({} bytes)", self.bytes().len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_and_reads_tensors_of_each_kind() {
        let t = Tensor::new([2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(t.slice::<f32>().unwrap().as_ref(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(Tensor::from_i64s(DType::I4, [3], &[-8, 7, -1]).unwrap().to_i64s().unwrap(), [-8, 7, -1]);
        assert_eq!(Tensor::from_f64s(DType::F4E2M1, [2], &[6.0, -0.5]).unwrap().to_f64s().unwrap(), [6.0, -0.5]);
        assert_eq!(Tensor::from_bools([2], vec![true, false]).unwrap().bools().unwrap(), [true, false]);
        assert_eq!(Tensor::scalar(3i64).shape(), [0usize; 0]);
    }

    #[test]
    fn reads_misaligned_bytes_by_copying() {
        let mut raw = vec![0u8];
        raw.extend(1.5f32.to_le_bytes());
        let t = Tensor::from_bytes(DType::F32, [1], Bytes::from(raw).slice(1..)).unwrap();
        assert_eq!(t.slice::<f32>().unwrap().as_ref(), [1.5]);
    }

    #[test]
    fn refuses_wrong_lengths_and_types() {
        assert!(Tensor::new([3], vec![1f32]).is_err());
        assert!(Tensor::from_bytes(DType::F32, [usize::MAX, 2], vec![]).is_err());
        assert!(Tensor::from_bytes(DType::F32, [0, 1 << 40, 1 << 40], vec![]).is_err());
        assert!(Tensor::from_bytes(DType::I4, [3], vec![0u8]).is_err());
        assert!(Tensor::scalar(1f32).slice::<i32>().is_err());
        assert!(Tensor::scalar(1f32).to_i64s().is_err());
        assert!(Tensor::scalar(1f32).reshaped([2]).is_err());
    }
}
