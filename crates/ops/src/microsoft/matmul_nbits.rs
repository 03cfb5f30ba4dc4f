//! MatMulNBits: a product with a weight of 2, 4 or 8 bits, quantized by blocks.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::support::{DOMAIN, vector};
use crate::quant::product::mac_f64;

/// `y = a · dequantize(b)ᵗ + bias`, `dequantize(b)[n, k] = (code - zero[n, k / block]) * scale[n, k / block]`.
///
/// Inputs: a `[.., k]`; b (u8) `[n, blocks, block * bits / 8]`, low bits first; scales `[n, blocks]`; optional
/// zero points, packed (u8, rows of `ceil(blocks * bits / 8)` bytes) or as `[n, blocks]` of a's type;
/// optional g_idx `[k]`, the block of each k; optional bias `[n]`. Without zero points zero is `2^(bits-1)`.
/// `accuracy_level` states the least accuracy that the model asks for; this computes in floats always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatMulNBits {
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Bits of a code: 2, 4 or 8.
    pub bits: usize,
    /// Codes that share a scale.
    pub block_size: usize,
    /// The attribute of the file; 0 where absent.
    pub accuracy_level: i64,
}

/// Makes a MatMulNBits.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let mut positive = |name: &str| {
        let v = attrs.int(name)?.ok_or_else(|| OpError::attribute(name, "is missing"))?;
        usize::try_from(v)
            .ok()
            .filter(|&v| v > 0 && v <= i32::MAX as usize)
            .ok_or_else(|| OpError::attribute(name, format!("is {v}, but must be positive")))
    };
    let (n, k, block_size) = (positive("N")?, positive("K")?, positive("block_size")?);
    let bits = attrs.int_or("bits", 4)?;
    if !matches!(bits, 2 | 4 | 8) {
        return Err(OpError::attribute("bits", format!("is {bits}, expected 2, 4 or 8")));
    }
    if block_size < 16 || !block_size.is_power_of_two() {
        return Err(OpError::attribute("block_size", format!("is {block_size}, expected a power of two from 16 on")));
    }
    if attrs.int_or("weight_prepacked", 0)? != 0 {
        return Err(OpError::Unsupported("a weight packed for one device (weight_prepacked)".into()));
    }
    let accuracy_level = attrs.int_or("accuracy_level", 0)?;
    Ok(Arc::new(MatMulNBits { n, k, bits: bits as usize, block_size, accuracy_level }))
}

impl MatMulNBits {
    /// Blocks of each column.
    pub fn blocks(&self) -> usize {
        self.k.div_ceil(self.block_size)
    }

    fn code(&self, bytes: &[u8], i: usize) -> u8 {
        let per = 8 / self.bits;
        bytes[i / per] >> (self.bits * (i % per)) & (0xffu16 >> (8 - self.bits)) as u8
    }

    fn expect(&self, t: &Tensor, index: usize, n: usize) -> Result<(), OpError> {
        match t.len() == n {
            true => Ok(()),
            false => Err(OpError::input(index, format!("of shape {:?}", t.shape()), format!("{n} elements"))),
        }
    }

    /// The zero point of each block, column by column.
    fn zeros(&self, t: Option<&Tensor>) -> Result<Vec<f32>, OpError> {
        let blocks = self.blocks();
        let Some(t) = t else { return Ok(vec![(1u32 << (self.bits - 1)) as f32; self.n * blocks]) };
        if t.dtype() != DType::U8 {
            self.expect(t, 3, self.n * blocks)?;
            return Ok(t.to_f32s()?.into_owned());
        }
        let row = (blocks * self.bits).div_ceil(8);
        self.expect(t, 3, self.n * row)?;
        let bytes = t.slice::<u8>()?;
        let rows = bytes.chunks_exact(row);
        Ok(rows.flat_map(|r| (0..blocks).map(|b| f32::from(self.code(r, b))).collect::<Vec<_>>()).collect())
    }

    /// The weight in floats, `[n, k]`.
    ///
    /// # Errors
    /// When the inputs' sizes do not fit the attributes.
    pub fn dequantize(
        &self,
        b: &Tensor,
        scales: &Tensor,
        zeros: Option<&Tensor>,
        group: Option<&Tensor>,
    ) -> Result<Vec<f32>, OpError> {
        let blocks = self.blocks();
        let column = blocks.saturating_mul(self.block_size / 8 * self.bits);
        check_size(DType::F32, &[self.n, blocks, self.block_size])?;
        self.expect(b, 1, self.n.saturating_mul(column))?;
        self.expect(scales, 2, self.n.saturating_mul(blocks))?;
        let (bytes, scales, zeros) = (b.slice::<u8>()?, scales.to_f32s()?, self.zeros(zeros)?);
        let block_of: Vec<usize> = match group {
            None => (0..self.k).map(|k| k / self.block_size).collect(),
            Some(g) if g.len() >= self.k => {
                g.to_i64s()?.iter().map(|&g| usize::try_from(g).unwrap_or(usize::MAX)).collect()
            }
            Some(g) => {
                return Err(OpError::input(4, format!("of shape {:?}", g.shape()), format!("{} elements", self.k)));
            }
        };
        if let Some(bad) = block_of[..self.k].iter().find(|&&b| b >= blocks) {
            return Err(OpError::Value(format!("g_idx names block {bad} of {blocks}")));
        }
        let mut w = Vec::with_capacity(self.n * self.k);
        for (n, codes) in bytes.chunks_exact(column).enumerate() {
            w.extend(block_of[..self.k].iter().enumerate().map(|(k, &block)| {
                let p = n * blocks + block;
                (f32::from(self.code(codes, k)) - zeros[p]) * scales[p]
            }));
        }
        Ok(w)
    }
}

impl Op for MatMulNBits {
    fn name(&self) -> &str {
        "MatMulNBits"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let a = cx.get(0)?;
        let out = a.shape().map(|s| {
            let mut s = s.to_vec();
            if let Some(d) = s.last_mut() {
                *d = self.n.into();
            }
            s
        });
        if let Some(Dim::Known(k)) = a.shape().and_then(<[Dim]>::last).filter(|d| **d != Dim::from(self.k)) {
            return Err(OpError::shape(format!("a has {k} columns, the weight {} rows", self.k)));
        }
        Ok(vec![Fact::tensor(a.dtype(), out)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let a = cx.get(0)?;
        if a.shape().last() != Some(&self.k) {
            return Err(OpError::shape(format!("a of shape {:?} does not have {} columns", a.shape(), self.k)));
        }
        let w = self.dequantize(cx.get(1)?, cx.get(2)?, cx.opt(3), cx.opt(4))?;
        let bias = vector(cx.opt(5), 5, self.n)?;
        let mut out = a.shape().to_vec();
        if let Some(d) = out.last_mut() {
            *d = self.n;
        }
        let mut y = Vec::with_capacity(check_size(DType::F64, &out)?);
        for row in a.to_f32s()?.chunks_exact(self.k) {
            y.extend(w.chunks_exact(self.k).enumerate().map(|(n, column)| {
                let sum = row.iter().zip(column).fold(0f64, |s, (&x, &w)| mac_f64(s, x, w));
                sum + bias.as_ref().map_or(0.0, |b| f64::from(b[n]))
            }));
        }
        Ok(vec![Tensor::from_f64s(a.dtype(), out, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with("N", self.n as i64)
            .with("K", self.k as i64)
            .with("block_size", self.block_size as i64)
            .with("bits", self.bits as i64)
            .with_unless("accuracy_level", self.accuracy_level, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(bits: usize) -> MatMulNBits {
        MatMulNBits { n: 1, k: 18, bits, block_size: 16, accuracy_level: 0 }
    }

    #[test]
    fn reads_low_bits_first_and_blocks_of_their_own() {
        let mut bytes = vec![0u8; 16];
        (bytes[0], bytes[8]) = (0x2f, 0x19);
        let b = Tensor::new([1, 2, 8], bytes).unwrap();
        let scales = Tensor::vector(vec![1f32, 0.5]);
        let w = op(4).dequantize(&b, &scales, None, None).unwrap();
        assert_eq!((w[0], w[1], w[2], w[16], w[17]), (7.0, -6.0, -8.0, 0.5, -3.5));
        let zeros = Tensor::vector(vec![0x10u8]);
        let w = op(4).dequantize(&b, &scales, Some(&zeros), None).unwrap();
        assert_eq!((w[0], w[16]), (15.0, 4.0));
    }

    #[test]
    fn refuses_sizes_that_do_not_fit() {
        let scales = Tensor::vector(vec![1f32, 0.5]);
        assert!(op(4).dequantize(&Tensor::vector(vec![0u8; 15]), &scales, None, None).is_err());
        assert!(op(8).dequantize(&Tensor::vector(vec![0u8; 16]), &scales, None, None).is_err());
        let group = Tensor::vector(vec![5i32; 18]);
        assert!(op(4).dequantize(&Tensor::vector(vec![0u8; 16]), &scales, None, Some(&group)).is_err());
        let attrs = || AttrMap::new().with("N", 1i64).with("K", 16i64);
        assert!(build(1, &mut attrs().with("block_size", 24i64)).is_err());
        assert!(build(1, &mut attrs().with("block_size", 32i64).with("bits", 3i64)).is_err());
    }
}
