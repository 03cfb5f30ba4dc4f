//! GatherBlockQuantized: rows of a table that is quantized by blocks.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor, minifloat, shape, subbyte};

use super::support::DOMAIN;

/// `y = dequantize(gather(data, indices))`, blocks of `block_size` along `quantize_axis`.
///
/// Inputs: data (i4, u4, fp8, fp4, or u8 with `bits` bits a code packed along the last axis, low bits first),
/// indices (i32, i64), scales (f32, f16, bf16; data's shape with blocks along the axis), optional zero points of
/// data's type (u8: packed as data). Without zero points zero is 0, for u8 data `2^(bits-1)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatherBlockQuantized {
    /// Bits of a code of u8 data: 2, 4 or 8.
    pub bits: usize,
    /// Codes that share a scale; 0 is the whole axis.
    pub block_size: usize,
    /// The axis of the blocks.
    pub quantize_axis: i64,
    /// The axis that indices select along.
    pub gather_axis: i64,
}

/// Makes a GatherBlockQuantized.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let bits = attrs.int_or("bits", 4)?;
    if !matches!(bits, 2 | 4 | 8) {
        return Err(OpError::attribute("bits", format!("is {bits}, expected 2, 4 or 8")));
    }
    let size = attrs.int_or("block_size", 128)?;
    let block_size =
        usize::try_from(size).ok().filter(|&b| b == 0 || b >= 16 && b.is_power_of_two()).ok_or_else(|| {
            OpError::attribute("block_size", format!("is {size}, expected 0 or a power of two from 16 on"))
        })?;
    Ok(Arc::new(GatherBlockQuantized {
        bits: bits as usize,
        block_size,
        quantize_axis: attrs.int_or("quantize_axis", 1)?,
        gather_axis: attrs.int_or("gather_axis", 0)?,
    }))
}

/// Codes as numbers, one per logical element.
fn values(t: &Tensor, bits: usize) -> Result<Vec<f32>, OpError> {
    Ok(match t.dtype() {
        DType::U8 if bits == 8 => t.slice::<u8>()?.iter().map(|&c| f32::from(c)).collect(),
        DType::U8 => {
            let n = t.len().saturating_mul(8 / bits);
            subbyte::unpack(t.bytes(), bits, n).into_iter().map(f32::from).collect()
        }
        DType::F4E2M1 => t.codes()?.into_iter().map(|c| minifloat::decode(DType::F4E2M1, c)).collect(),
        DType::I4 | DType::U4 => t.to_i64s()?.into_iter().map(|c| c as f32).collect(),
        d if d.is_minifloat() => t.bytes().iter().map(|&c| minifloat::decode(d, c)).collect(),
        d => return Err(OpError::input(0, d.name(), "i4, u4, u8, fp8 or fp4")),
    })
}

impl GatherBlockQuantized {
    /// Elements per stored one along the last axis.
    fn per(&self, dtype: DType) -> usize {
        if dtype == DType::U8 { 8 / self.bits } else { 1 }
    }

    fn axis(&self, axis: i64, rank: usize, name: &str) -> Result<usize, OpError> {
        let problem = || OpError::attribute(name, format!("is {axis}, but there are {rank} dimensions"));
        shape::axis(axis, rank).ok_or_else(problem)
    }
}

impl Op for GatherBlockQuantized {
    fn name(&self) -> &str {
        "GatherBlockQuantized"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = cx.dtype(2);
        let (Some(data), Some(indices), Some(d)) = (cx.shape(0), cx.shape(1), cx.dtype(0)) else {
            return Ok(vec![Fact::tensor(dtype, None)]);
        };
        let a = self.axis(self.gather_axis, data.len(), "gather_axis")?;
        let mut logical = data.to_vec();
        if let Some(last) = logical.last_mut() {
            *last = last.mul(&self.per(d).into());
        }
        let out: Vec<Dim> = logical[..a].iter().chain(indices).chain(&logical[a + 1..]).cloned().collect();
        Ok(vec![Fact::tensor(dtype, Some(out))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (data, indices, scales) = (cx.get(0)?, cx.get(1)?, cx.get(2)?);
        let rank = data.rank();
        let (ga, qa) =
            (self.axis(self.gather_axis, rank, "gather_axis")?, self.axis(self.quantize_axis, rank, "quantize_axis")?);
        let mut logical = data.shape().to_vec();
        logical[rank - 1] = logical[rank - 1].saturating_mul(self.per(data.dtype()));
        let block = if self.block_size == 0 { logical[qa].max(1) } else { self.block_size };
        let mut grid = logical.clone();
        grid[qa] = grid[qa].div_ceil(block);
        if scales.rank() != rank || shape::broadcast(scales.shape(), &grid)? != grid {
            return Err(OpError::input(2, format!("of shape {:?}", scales.shape()), format!("{grid:?}")));
        }
        let scale_strides = shape::broadcast_strides(scales.shape(), &grid);
        let (codes, scales_f) = (values(data, self.bits)?, scales.to_f32s()?);
        let zeros = cx.opt(3).map(|z| self.zeros(z, &grid)).transpose()?;
        let default = if data.dtype() == DType::U8 { (1u32 << (self.bits - 1)) as f32 } else { 0.0 };
        let grid_strides = shape::strides(&grid);
        let strides = shape::strides(&logical);

        let out: Vec<usize> = logical[..ga].iter().chain(indices.shape()).chain(&logical[ga + 1..]).copied().collect();
        let mut y = Vec::with_capacity(check_size(DType::F32, &out)?);
        let (outer, inner) = (logical[..ga].iter().product::<usize>(), logical[ga + 1..].iter().product::<usize>());
        let picks = indices.to_i64s()?;
        for o in 0..outer {
            for &p in &picks {
                let at = if p < 0 { p + logical[ga] as i64 } else { p };
                let Some(row) = usize::try_from(at).ok().filter(|&r| r < logical[ga]) else {
                    return Err(OpError::Value(format!("index {p} is outside of an axis of {}", logical[ga])));
                };
                for i in 0..inner {
                    let flat = (o * logical[ga] + row) * inner + i;
                    let (mut scale_at, mut zero_at) = (0, 0);
                    for d in 0..rank {
                        let c = flat / strides[d] % logical[d];
                        let c = if d == qa { c / block } else { c };
                        scale_at += c * scale_strides[d];
                        zero_at += c * grid_strides[d];
                    }
                    let zero = zeros.as_ref().map_or(default, |z| z[zero_at]);
                    y.push((codes[flat] - zero) * scales_f[scale_at]);
                }
            }
        }
        Ok(vec![Tensor::from_f32s(scales.dtype(), out, y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with_unless("bits", self.bits as i64, 4)
            .with_unless("block_size", self.block_size as i64, 128)
            .with_unless("quantize_axis", self.quantize_axis, 1)
            .with_unless("gather_axis", self.gather_axis, 0)
    }
}

impl GatherBlockQuantized {
    /// One zero point per block, in the order of `grid`.
    fn zeros(&self, z: &Tensor, grid: &[usize]) -> Result<Vec<f32>, OpError> {
        let n = shape::count(grid)?;
        let per = self.per(z.dtype());
        let last = grid.last().copied().unwrap_or(1);
        let row = last.div_ceil(per);
        if z.len() != n / last.max(1) * row {
            return Err(OpError::input(
                3,
                format!("of shape {:?}", z.shape()),
                format!("zero points for blocks {grid:?}"),
            ));
        }
        let all = values(z, self.bits)?;
        Ok(all.chunks_exact((row * per).max(1)).flat_map(|r| r[..last].iter().copied()).collect())
    }
}
