//! `.safetensors` files: one column per tensor.

use std::sync::Arc;

use narrowbit_tensor::DType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::column::{ArrayColumn, Column, Columns, Layout};
use crate::source::{Source, Span};
use crate::{DataError, Limits, Place};

/// Headers of data files are small: a tensor takes about 100 bytes.
const MAX_HEADER: u64 = 16 << 20;

/// The tensors of a file in the order of their bytes.
pub(crate) fn open(source: &Source, place: &Place, limits: &Limits) -> Result<Columns, DataError> {
    let bad = |what: String| DataError::format(place, what, "save it again with safetensors' save_file");
    let mut len = [0u8; 8];
    source.read_at(0, &mut len).map_err(|_| bad("the file is too short for .safetensors".into()))?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER || len > source.len().saturating_sub(8) {
        return Err(bad(format!("the header claims {len} bytes")));
    }
    let mut text = vec![0; len as usize];
    source.read_at(8, &mut text).map_err(|e| DataError::io(place, "read", e))?;
    let meta: Metadata = serde_json::from_slice(&text).map_err(|e| bad(format!("the header can't be used: {e}")))?;
    let data = 8 + len;
    if source.len() - data != meta.data_len() as u64 {
        let (has, wants) = (source.len() - data, meta.data_len());
        return Err(bad(format!("{has} bytes of data follow the header, which describes {wants}")));
    }
    let mut out = Vec::new();
    for name in meta.offset_keys() {
        let Some(info) = meta.info(&name) else { continue };
        let at = place.array(&name);
        let dtype = element_type(info.dtype).ok_or_else(|| {
            let what = format!("elements of type {} can't be used", info.dtype);
            DataError::unsupported(&at, what, "convert the tensor to float32 or an integer type")
        })?;
        let start = data + info.data_offsets.0 as u64;
        let layout = Layout { dtype, big_endian: false, fortran: false, shape: info.shape.clone(), start };
        let span = Arc::new(source.clone());
        out.push((name, Arc::new(ArrayColumn::new(span, layout, at, limits)?) as Arc<dyn Column>));
    }
    if out.is_empty() {
        return Err(bad("the file holds no tensors".into()));
    }
    Ok(out)
}

fn element_type(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::BOOL => DType::Bool,
        Dtype::U8 => DType::U8,
        Dtype::I8 => DType::I8,
        Dtype::I16 => DType::I16,
        Dtype::U16 => DType::U16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::I64 => DType::I64,
        Dtype::U64 => DType::U64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F8_E4M3 => DType::F8E4M3Fn,
        Dtype::F8_E5M2 => DType::F8E5M2,
        _ => return None,
    })
}
