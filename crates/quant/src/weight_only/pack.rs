//! A whole matrix by blocks, and its bytes in the layouts of files.

use narrowbit_kernels::blocks::search_scales;
use narrowbit_kernels::{Exec, Isa};
use narrowbit_tensor::{DType, Tensor, TensorError, minifloat};

use super::block;
use crate::approach::{Algorithm, BlockScales, WeightOnlyOptions};
use crate::dynamic::transpose_bytes;
use crate::parallel::in_parallel;

/// A matrix of `n` columns, each of which is a sum over `k`; in memory `[k, n]`, or `[n, k]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub values: &'a [f32],
    pub n: usize,
    pub k: usize,
    /// Whether a column's elements stand beside each other.
    pub by_column: bool,
}

/// A quantized matrix.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    pub n: usize,
    pub k: usize,
    pub options: WeightOnlyOptions,
    /// `[n, k]`, a byte each, two's complement where they are signed.
    pub codes: Vec<u8>,
    /// `[n, blocks]`.
    pub scales: Vec<f32>,
    /// `[n, blocks]`, where there are zero points.
    pub zeros: Option<Vec<u8>>,
}

/// Columns that one task takes: their elements of one row share cache lines.
const COLUMNS: usize = 64;

impl Blocks {
    /// Quantizes a matrix on the threads of `exec`.
    pub fn new(exec: &Exec, m: Matrix, options: WeightOnlyOptions) -> Blocks {
        let symmetric = block::Symmetric::new(&options);
        let starts: Vec<usize> = (0..m.n).step_by(COLUMNS).collect();
        let parts = in_parallel(exec, &starts, |&n0| {
            let columns = n0..(n0 + COLUMNS).min(m.n);
            match &symmetric {
                Some(s) => symmetric_part(exec.isa(), m, columns, &options, s),
                None => part(m, columns, &options),
            }
        });
        let mut all = Blocks {
            n: m.n,
            k: m.k,
            options,
            codes: Vec::with_capacity(m.n * m.k),
            scales: Vec::with_capacity(m.n * m.k.div_ceil(options.block)),
            zeros: has_zeros(&options).then(Vec::new),
        };
        for (codes, points) in parts {
            all.codes.extend(codes);
            all.scales.extend(points.iter().map(|p| p.scale));
            if let Some(zeros) = &mut all.zeros {
                zeros.extend(points.iter().map(|p| p.zero as u8));
            }
        }
        all
    }

    /// Blocks of a column.
    pub fn blocks(&self) -> usize {
        self.k.div_ceil(self.options.block)
    }

    /// Codes as the element type says, `[n, k]`.
    pub fn codes_by_column(&self) -> Result<Tensor, TensorError> {
        tensor(self.options.codes.dtype(), [self.n, self.k], &self.codes)
    }

    /// Codes as the element type says, `[k, n]`.
    pub fn codes_by_row(&self) -> Result<Tensor, TensorError> {
        let codes = transpose_bytes(&self.codes, self.n, self.k);
        tensor(self.options.codes.dtype(), [self.k, self.n], &codes)
    }

    /// Codes in whole blocks, `[blocks, block, n]`; what is beyond `k` has code `fill`.
    pub fn codes_in_blocks(&self, fill: u8) -> Result<Tensor, TensorError> {
        let mut codes = transpose_bytes(&self.codes, self.n, self.k);
        codes.resize(self.blocks() * self.options.block * self.n, fill);
        tensor(self.options.codes.dtype(), [self.blocks(), self.options.block, self.n], &codes)
    }

    /// Scales of the type that the settings name, `[n, blocks]`, or `[blocks, n]`.
    pub fn scales(&self, by_column: bool) -> Result<Tensor, TensorError> {
        let blocks = self.blocks();
        let (shape, scales) = match by_column {
            true => ([self.n, blocks], self.scales.clone()),
            false => {
                let turned = (0..blocks * self.n).map(|i| self.scales[i % self.n * blocks + i / self.n]);
                ([blocks, self.n], turned.collect())
            }
        };
        if self.options.scales() == BlockScales::E8m0 {
            let powers = scales.iter().map(|&s| minifloat::encode(DType::F8E8M0, s, true)).collect::<Vec<u8>>();
            return Tensor::from_bytes(DType::F8E8M0, shape, powers);
        }
        Tensor::new(shape, scales)
    }

    /// Zero points, `[n, blocks]`, or `[blocks, n]`.
    pub fn zeros(&self, by_column: bool) -> Option<Result<Tensor, TensorError>> {
        let zeros = self.zeros.as_ref()?;
        let (dtype, blocks) = (self.options.codes.dtype(), self.blocks());
        Some(match by_column {
            true => tensor(dtype, [self.n, blocks], zeros),
            false => tensor(dtype, [blocks, self.n], &transpose_bytes(zeros, self.n, blocks)),
        })
    }

    /// The unsigned code of a signed one: ONNX Runtime's operators know unsigned codes only.
    fn offset(&self) -> u8 {
        let (lo, _) = self.options.codes.code_range().unwrap_or((0, 0));
        lo.unsigned_abs() as u8
    }

    /// The codes of MatMulNBits, u8 `[n, blocks, block · bits / 8]`, low bits first; what is beyond `k` is 0. Packed on the
    /// threads of `exec`.
    pub fn nbits_codes(&self, exec: &Exec) -> Result<Tensor, TensorError> {
        let (bits, block) = (self.options.codes.dtype().bits(), self.options.block);
        let (offset, per) = (self.offset(), 8 / bits);
        let row = self.blocks() * block / per;
        let starts: Vec<usize> = (0..self.n).step_by(COLUMNS).collect();
        let packed = in_parallel(exec, &starts, |&n0| {
            let columns = n0..(n0 + COLUMNS).min(self.n);
            let mut out = vec![0u8; columns.len() * row];
            for (column, to) in columns.zip(out.chunks_exact_mut(row)) {
                pack_row(&self.codes[column * self.k..][..self.k], bits, offset, to);
                let zero = |b: usize| self.zeros.as_ref().map_or(0, |z| z[column * self.blocks() + b]);
                for k in self.k..self.blocks() * block {
                    to[k / per] |= low(zero(k / block).wrapping_add(offset), bits) << (bits * (k % per));
                }
            }
            out
        });
        Tensor::from_bytes(DType::U8, [self.n, self.blocks(), block / per], packed.concat())
    }

    /// The zero points of MatMulNBits, u8 `[n, ceil(blocks · bits / 8)]`; `None` where all are the middle code.
    pub fn nbits_zeros(&self) -> Option<Result<Tensor, TensorError>> {
        let zeros = self.zeros.as_ref()?;
        let (bits, blocks) = (self.options.codes.dtype().bits(), self.blocks());
        let row = (blocks * bits).div_ceil(8);
        let mut out = vec![0u8; self.n * row];
        for (to, from) in out.chunks_exact_mut(row).zip(zeros.chunks_exact(blocks)) {
            pack_row(from, bits, self.offset(), to);
        }
        Some(Tensor::from_bytes(DType::U8, [self.n, row], out))
    }
}

/// The low bits of a code.
fn low(code: u8, bits: usize) -> u8 {
    if bits == 8 { code } else { code & ((1 << bits) - 1) }
}

/// Packs codes with an offset, low bits first.
fn pack_row(codes: &[u8], bits: usize, offset: u8, to: &mut [u8]) {
    let per = 8 / bits;
    for (chunk, out) in codes.chunks(per).zip(to) {
        let byte = |b: u8, (i, &c): (usize, &u8)| b | low(c.wrapping_add(offset), bits) << (bits * i);
        *out = chunk.iter().enumerate().fold(0, byte);
    }
}

fn has_zeros(options: &WeightOnlyOptions) -> bool {
    options.codes.has_zero_point() || options.algorithm == Algorithm::Hqq
}

fn tensor(dtype: DType, shape: impl Into<Vec<usize>>, codes: &[u8]) -> Result<Tensor, TensorError> {
    if dtype.is_packed() {
        Tensor::from_codes(dtype, shape, codes)
    } else {
        Tensor::from_bytes(dtype, shape, codes.to_vec())
    }
}

/// As [`part`], for blocks whose scales a kernel finds.
fn symmetric_part(
    isa: Isa,
    m: Matrix,
    columns: std::ops::Range<usize>,
    options: &WeightOnlyOptions,
    symmetric: &block::Symmetric,
) -> (Vec<u8>, Vec<block::Point>) {
    let (n, per) = (columns.len(), m.k.div_ceil(options.block));
    let mut codes = vec![0u8; n * m.k];
    let mut points = vec![block::Point { scale: 1.0, zero: 0 }; n * per];
    let mut scales = vec![0f32; n];
    let mut turned = vec![0f32; if m.by_column { n * options.block } else { 0 }];
    for (b, k0) in (0..m.k).step_by(options.block).enumerate() {
        let len = options.block.min(m.k - k0);
        let (x, ld) = match m.by_column {
            true => {
                for (c, column) in columns.clone().enumerate() {
                    let values = &m.values[column * m.k + k0..][..len];
                    values.iter().enumerate().for_each(|(i, &v)| turned[i * n + c] = v);
                }
                (&turned[..len * n], n)
            }
            false => (&m.values[k0 * m.n + columns.start..][..(len - 1) * m.n + n], m.n),
        };
        let found = search_scales(isa, (x, ld), [len, n], symmetric.search(), &mut scales, (&mut codes[k0..], m.k));
        debug_assert!(found.is_ok(), "the slices are those of the shape: {found:?}");
        for (c, &scale) in scales.iter().enumerate() {
            points[c * per + b].scale = scale;
        }
    }
    (codes, points)
}

/// Codes `[columns, k]` and the scales and zero points of their blocks.
fn part(m: Matrix, columns: std::ops::Range<usize>, options: &WeightOnlyOptions) -> (Vec<u8>, Vec<block::Point>) {
    let mut codes = vec![0u8; columns.len() * m.k];
    let mut points = vec![block::Point { scale: 1.0, zero: 0 }; columns.len() * m.k.div_ceil(options.block)];
    let per = m.k.div_ceil(options.block);
    let mut buffer = vec![0f32; columns.len() * options.block];
    for (b, k0) in (0..m.k).step_by(options.block).enumerate() {
        let len = options.block.min(m.k - k0);
        for (c, n) in columns.clone().enumerate() {
            let block = match m.by_column {
                true => &m.values[n * m.k + k0..][..len],
                false => {
                    if c == 0 {
                        collect(m, &columns, k0, len, &mut buffer);
                    }
                    &buffer[c * len..][..len]
                }
            };
            points[c * per + b] = block::quantize(block, options, &mut codes[c * m.k + k0..][..len]);
        }
    }
    (codes, points)
}

/// Brings `len` rows of some columns into the order `[column, row]`.
fn collect(m: Matrix, columns: &std::ops::Range<usize>, k0: usize, len: usize, to: &mut [f32]) {
    for i in 0..len {
        let row = &m.values[(k0 + i) * m.n..][columns.clone()];
        for (c, &v) in row.iter().enumerate() {
            to[c * len + i] = v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approach::{BlockFormat, BlockType};

    fn of(codes: BlockType, values: &[f32], [n, k]: [usize; 2], by_column: bool) -> Blocks {
        let exec = Exec::new(narrowbit_kernels::Isa::detect(), 2);
        let options = WeightOnlyOptions {
            codes,
            block: 16,
            algorithm: Algorithm::Rtn,
            format: BlockFormat::Qdq,
            ..WeightOnlyOptions::default()
        };
        Blocks::new(&exec, Matrix { values, n, k, by_column }, options)
    }

    fn values(n: usize, k: usize) -> Vec<f32> {
        (0..n * k).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect()
    }

    #[test]
    fn makes_the_same_blocks_of_both_layouts() {
        let (n, k) = (70, 41);
        let by_column = values(n, k);
        let by_row: Vec<f32> = (0..n * k).map(|i| by_column[i % n * k + i / n]).collect();
        let int4 = |x: &[f32], by_column| of(BlockType::Int4, x, [n, k], by_column);
        let (a, b) = (int4(&by_column, true), int4(&by_row, false));
        assert_eq!((&a.codes, &a.scales, &a.zeros), (&b.codes, &b.scales, &b.zeros));
        let a = of(BlockType::Uint4, &by_column, [n, k], true);
        let b = of(BlockType::Uint4, &by_row, [n, k], false);
        assert_eq!((&a.codes, &a.scales, &a.zeros), (&b.codes, &b.scales, &b.zeros));
        assert_eq!(a.blocks(), 3);
        let (c, r) = (a.codes_by_column().unwrap().to_i64s().unwrap(), a.codes_by_row().unwrap().to_i64s().unwrap());
        assert_eq!(c[5 * k + 7], r[7 * n + 5]);
        let (c, r) = (a.scales(true).unwrap().to_f64s().unwrap(), a.scales(false).unwrap().to_f64s().unwrap());
        assert_eq!(c[5 * 3 + 2], r[2 * n + 5]);
    }

    #[test]
    fn packs_codes_as_the_operator_of_onnx_runtime_reads_them() {
        // One column: 17 codes −8, −7, … and one block more for the last.
        let x: Vec<f32> = (0..17).map(|i| (i % 16) as f32 - 8.0).collect();
        let b = of(BlockType::Int4, &x, [1, 17], true);
        assert_eq!(b.scales[0], 1.0);
        let exec = Exec::new(Isa::detect(), 2);
        let codes = b.nbits_codes(&exec).unwrap();
        assert_eq!(codes.shape(), [1, 2, 8]);
        assert_eq!(codes.bytes()[..4], [0x10, 0x32, 0x54, 0x76]);
        assert_eq!(codes.bytes()[8], 0x80, "−8 of a block of its own, and the middle code as padding");
        assert!(b.nbits_zeros().is_none());
        let z = of(BlockType::Uint2, &x, [1, 17], true);
        let zeros = z.nbits_zeros().unwrap().unwrap();
        assert_eq!(zeros.shape(), [1, 1]);
        assert_eq!(zeros.bytes()[0], z.zeros.as_ref().unwrap()[0] | z.zeros.as_ref().unwrap()[1] << 2);
    }

    #[test]
    fn fills_the_last_block() {
        let b = of(BlockType::Nf4, &values(2, 20), [2, 20], true);
        let t = b.codes_in_blocks(7).unwrap();
        assert_eq!(t.shape(), [2, 16, 2]);
        assert_eq!(t.to_i64s().unwrap()[2 * 20..], [7; 24]);
    }
}
