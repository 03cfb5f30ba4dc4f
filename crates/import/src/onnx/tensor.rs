use bytes::Bytes;
use narrowbit_tensor::{DType, Tensor, TensorError, shape};

use super::error::Result;
use super::proto::{SparseTensorProto, TensorProto, tensor_proto::DataLocation};
use super::source::Source;

/// The tensor of a message; `place` names it in errors.
pub(super) fn read(src: &Source, place: &str, t: TensorProto) -> Result<Tensor> {
    let shape = dims(src, place, &t.dims)?;
    let dtype = dtype(src, place, t.data_type.unwrap_or(0))?;
    if t.segment.is_some() {
        return Err(src.invalid(place, "is stored in segments", "save the model again with a current version of onnx"));
    }
    let n = shape::count(&shape).map_err(|e| src.broken(place, e.to_string()))?;
    let made = if t.data_location == Some(DataLocation::External as i32) {
        external(src, place, dtype, n, &t).map(|b| Tensor::from_bytes(dtype, shape, b))?
    } else if dtype == DType::String {
        let strings = t.string_data.into_iter().map(String::from_utf8).collect::<std::result::Result<Vec<_>, _>>();
        let strings = strings.map_err(|_| src.broken(place, "holds a string that is not UTF-8"))?;
        Tensor::from_strings(shape, strings)
    } else {
        match t.raw_data {
            Some(raw) if !raw.is_empty() => Tensor::from_bytes(dtype, shape, raw),
            _ => typed(src, place, dtype, shape, t)?,
        }
    };
    made.map_err(|e| src.broken(place, e.to_string()))
}

fn dims(src: &Source, place: &str, dims: &[i64]) -> Result<Vec<usize>> {
    let each = |&d: &i64| {
        usize::try_from(d).map_err(|_| src.broken(place, format!("has the shape {dims:?}; an extent is negative")))
    };
    dims.iter().map(each).collect()
}

fn dtype(src: &Source, place: &str, code: i32) -> Result<DType> {
    DType::from_onnx(code.into()).ok_or_else(|| {
        let problem = format!("has the element type {code}, which narrowbit does not know");
        src.invalid(place, problem, "convert the tensor to one of ONNX's types 1 to 26")
    })
}

/// Data in the fields of protobuf's own types.
fn typed(
    src: &Source,
    place: &str,
    dtype: DType,
    shape: Vec<usize>,
    t: TensorProto,
) -> Result<std::result::Result<Tensor, TensorError>> {
    use DType::*;
    let int32 = |f: &dyn Fn(i32) -> Option<u8>| -> Result<Bytes> {
        let bytes: Option<Vec<u8>> = t.int32_data.iter().map(|&x| f(x)).collect();
        bytes.map(Bytes::from).ok_or_else(|| src.broken(place, format!("holds numbers that do not fit {dtype}")))
    };
    Ok(match dtype {
        F32 => Tensor::new(shape, t.float_data),
        F64 => Tensor::new(shape, t.double_data),
        I32 => Tensor::new(shape, t.int32_data),
        I64 => Tensor::new(shape, t.int64_data),
        U64 => Tensor::new(shape, t.uint64_data),
        U32 => Tensor::new(shape, t.uint64_data.iter().map(|&x| x as u32).collect()),
        Complex64 => {
            Tensor::from_bytes(dtype, shape, t.float_data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
        }
        Complex128 => {
            Tensor::from_bytes(dtype, shape, t.double_data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
        }
        I16 | U16 | F16 | Bf16 => {
            let bytes: Vec<u8> = t.int32_data.iter().flat_map(|&x| (x as u16).to_le_bytes()).collect();
            Tensor::from_bytes(dtype, shape, bytes)
        }
        Bool => Tensor::from_bytes(dtype, shape, int32(&|x| Some(u8::from(x != 0)))?),
        I8 => Tensor::from_bytes(
            dtype,
            shape,
            int32(&|x| i8::try_from(x).ok().or(u8::try_from(x).ok().map(|x| x as i8)).map(|x| x as u8))?,
        ),
        // Bytes, packed types included: one number for each byte of the packed form.
        _ => Tensor::from_bytes(
            dtype,
            shape,
            int32(&|x| u8::try_from(x).ok().or(i8::try_from(x).ok().map(|x| x as u8)))?,
        ),
    })
}

fn external(src: &Source, place: &str, dtype: DType, n: usize, t: &TensorProto) -> Result<Bytes> {
    let entry =
        |key: &str| t.external_data.iter().find(|e| e.key.as_deref() == Some(key)).and_then(|e| e.value.as_deref());
    let Some(location) = entry("location") else {
        return Err(src.broken(place, "has external data without a location"));
    };
    let number =
        |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text.trim().parse::<usize>().map(Some).map_err(|_| {
                src.broken(place, format!("has external data with the {key} {text:?}, which is no number"))
            }),
        };
    let needed = dtype.byte_len(n).ok_or_else(|| src.broken(place, "has more elements than memory can address"))?;
    if dtype == DType::String {
        return Err(src.broken(place, "has strings as external data"));
    }
    if needed == 0 {
        return Ok(Bytes::new());
    }
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?.unwrap_or(needed));
    if length != needed {
        let problem = format!("needs {needed} bytes of external data, but its length says {length}");
        return Err(src.broken(place, problem));
    }
    let file = src.external(place, location)?;
    let end = offset.checked_add(length).filter(|&end| end <= file.len()).ok_or_else(|| {
        let problem =
            format!("bytes {offset} to {offset}+{length} lie behind the end of {location:?} ({} bytes)", file.len());
        src.invalid(
            place,
            problem,
            "the data file is incomplete or belongs to another model; download or save it again",
        )
    })?;
    Ok(file.slice(offset..end))
}

/// A sparse tensor as a dense one.
pub(super) fn read_sparse(src: &Source, place: &str, s: SparseTensorProto) -> Result<Tensor> {
    let shape = dims(src, place, &s.dims)?;
    let (Some(values), Some(indices)) = (s.values, s.indices) else {
        return Err(src.broken(place, "is sparse, but lacks values or indices"));
    };
    let (values, indices) = (read(src, place, values)?, read(src, place, indices)?);
    let n = shape::count(&shape).map_err(|e| src.broken(place, e.to_string()))?;
    let dtype = values.dtype();
    let width = dtype.bits() / 8;
    if width == 0 {
        return Err(src.invalid(place, format!("is sparse and holds {dtype}"), "save it as a dense tensor"));
    }
    src.charge_dense(place, n.saturating_mul(width))?;
    let flat = flat_indices(&shape, &indices, values.len())
        .ok_or_else(|| src.broken(place, "is sparse, and its indices do not fit its values and shape"))?;
    let mut dense = vec![0u8; n * width];
    for (k, i) in flat.into_iter().enumerate() {
        dense[i * width..][..width].copy_from_slice(&values.bytes()[k * width..][..width]);
    }
    Tensor::from_bytes(dtype, shape, dense).map_err(|e| src.broken(place, e.to_string()))
}

/// Positions in row-major order, from linear (`[nnz]`) or coordinate (`[nnz, rank]`) indices.
fn flat_indices(shape: &[usize], indices: &Tensor, nnz: usize) -> Option<Vec<usize>> {
    let n: usize = shape.iter().product();
    let at = indices.to_i64s().ok()?;
    let at: Option<Vec<usize>> = at.into_iter().map(|i| usize::try_from(i).ok()).collect();
    let at = at?;
    let flat: Vec<usize> = match indices.shape() {
        [k] if *k == nnz => at,
        [k, r] if *k == nnz && *r == shape.len() && *r > 0 => {
            let strides = shape::strides(shape);
            let one = |c: &[usize]| {
                c.iter().zip(shape).all(|(i, d)| i < d).then(|| c.iter().zip(&strides).map(|(i, s)| i * s).sum())
            };
            at.chunks_exact(*r).map(one).collect::<Option<_>>()?
        }
        _ => return None,
    };
    flat.iter().all(|&i| i < n).then_some(flat)
}
