//! Sums of products of integers.

use narrowbit_kernels::conv::Conv2dParams;
use narrowbit_kernels::integer::{ApartWeights, sums_apart};
use narrowbit_kernels::panel::{
    Epilogue, Panels, Rows, Target, conv2d_nhwc, conv2d_nhwc_pack, panel_gemm, panel_gemm_pack,
};
use narrowbit_kernels::{Exec, KernelError};

use super::data::{Data, Int, Width, with_ints, with_narrow};
use super::parts;

/// The most 8-bit parts of a weight.
const MOST_PARTS: usize = 3;
/// The most products of 8 bits whose sum 32 bits hold whatever their operands are.
const MOST_DEPTH: usize = i32::MAX as usize / (255 * 128);

/// A convolution of channels-last codes, or a matrix product of rows, on the 8-bit kernels. Weights of more bits are
/// `Σ part · 256^i` of signed bytes: each part is columns of its own in the same product, whose sums are shifted and added.
/// Additions wrap, so that the whole is exact wherever the whole fits 32 bits.
#[derive(Debug)]
pub struct Dense {
    /// The shape with the columns of all parts; `None` for a matrix product.
    conv: Option<Conv2dParams>,
    /// Rows and depth of a matrix product.
    rows: (usize, usize),
    panels: Panels,
    /// Bias less the zero point's part.
    offsets: Vec<i32>,
    columns: Columns,
    zero: i32,
    /// Rows of the result.
    lines: usize,
}

/// How the columns of a product lie: `[groups, parts, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Columns {
    groups: usize,
    parts: usize,
    width: usize,
}

impl Columns {
    /// All of them.
    fn count(self) -> usize {
        self.groups * self.parts * self.width
    }

    /// The output channel and the part of a column.
    fn of(self, column: usize) -> (usize, usize) {
        let (group, part) = (column / (self.parts * self.width), column / self.width % self.parts);
        (group * self.width + column % self.width, part)
    }
}

/// The weights of a product, zero points taken off.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// `[oc, c / groups, kh, kw]`, or `k × n` of a matrix product.
    pub values: &'a [i64],
    /// In units of the product, one per output channel, or none.
    pub bias: &'a [i64],
    /// The code of zero in the data.
    pub zero: i64,
    /// Whether the data are signed codes.
    pub signed: bool,
}

impl Weights<'_> {
    /// The number of 8-bit parts, where these are few enough for a product of this depth.
    pub fn parts(&self, depth: usize) -> Option<usize> {
        let fits = |parts: usize| self.values.iter().all(|&v| rest(v, parts) == 0);
        let parts = (1..=MOST_PARTS).find(|&parts| fits(parts))?;
        (parts == 1 || depth <= MOST_DEPTH).then_some(parts)
    }
}

/// What is left of a weight when its lowest `parts` signed bytes are taken off.
pub(crate) fn rest(value: i64, parts: usize) -> i64 {
    (0..parts).fold(value, |v, _| v.wrapping_sub(i64::from(v as i8)) >> 8)
}

/// A signed byte of a weight.
pub(super) fn part(value: i64, part: usize) -> i8 {
    rest(value, part) as i8
}

impl Dense {
    /// A convolution, with weights of so many [`Weights::parts`].
    ///
    /// # Errors
    /// When the shape is none.
    pub fn conv(exec: &Exec, p: Conv2dParams, w: &Weights<'_>, parts: usize) -> Result<Dense, KernelError> {
        let [oh, ow] = p.output()?;
        let columns = Columns { groups: p.groups, parts, width: p.oc / p.groups.max(1) };
        let wide = Conv2dParams { oc: columns.count(), ..p };
        let per = p.c / p.groups.max(1) * p.kh * p.kw;
        let mut narrow = Vec::with_capacity(per * wide.oc);
        for column in 0..wide.oc {
            let (channel, at) = columns.of(column);
            narrow.extend(w.values[channel * per..][..per].iter().map(|&v| part(v, at)));
        }
        let panels = conv2d_nhwc_pack(exec, &wide, &narrow)?;
        Ok(Dense::new(Some(wide), (0, 0), panels, w, columns, p.n * oh * ow))
    }

    /// A product of `m` rows with a `k × n` matrix of so many [`Weights::parts`].
    ///
    /// # Errors
    /// When a dimension is 0.
    pub fn matrix(exec: &Exec, [m, k, n]: [usize; 3], w: &Weights<'_>, parts: usize) -> Result<Dense, KernelError> {
        let columns = Columns { groups: 1, parts, width: n };
        let row = |r: usize| (0..columns.count()).map(move |column| (r, columns.of(column)));
        let narrow: Vec<i8> =
            (0..k).flat_map(row).map(|(r, (channel, at))| part(w.values[r * n + channel], at)).collect();
        let panels = panel_gemm_pack(exec, (k, columns.count()), &narrow, false)?;
        Ok(Dense::new(None, (m, k), panels, w, columns, m))
    }

    fn new(
        conv: Option<Conv2dParams>,
        rows: (usize, usize),
        panels: Panels,
        w: &Weights<'_>,
        columns: Columns,
        lines: usize,
    ) -> Dense {
        // Kernels read signed rows with 128 added.
        let zero = w.zero as i32 + if w.signed { 128 } else { 0 };
        let bias = |column: usize| match columns.of(column) {
            (channel, 0) => w.bias.get(channel).map_or(0, |&b| b as i32),
            _ => 0,
        };
        let offset = |(i, s): (usize, &i32)| bias(i).wrapping_sub(zero.wrapping_mul(*s));
        let offsets = panels.column_sums().iter().enumerate().map(offset).collect();
        Dense { conv, rows, panels, offsets, columns, zero: w.zero as i32, lines }
    }

    pub(super) fn run(&self, exec: &Exec, x: &Data) -> Result<Data, KernelError> {
        let count = self.columns.count();
        let mut sums = vec![0i32; self.lines * count];
        let x = match x {
            Data::I8(x) => Rows::I8(x),
            Data::U8(x) => Rows::U8(x),
            _ => return Err(KernelError::Invalid { kernel: "dense", what: "its data are no codes of 8 bits" }),
        };
        // The kernels ask for scales; sums do not use them.
        let scales = vec![Default::default(); count];
        let epilogue = Epilogue { offsets: &self.offsets, scales: &scales, ..Epilogue::default() };
        let target = Target::I32(&mut sums);
        match &self.conv {
            Some(p) => conv2d_nhwc(exec, p, x, self.zero, &self.panels, &epilogue, target)?,
            None => {
                let (m, k) = self.rows;
                panel_gemm(exec, x, (m, k, k), &self.panels, &epilogue, target)?;
            }
        }
        Ok(Data::I32(if self.columns.parts == 1 { sums } else { self.joined(exec, &sums) }))
    }

    /// The parts' sums, each shifted to its place and added.
    fn joined(&self, exec: &Exec, sums: &[i32]) -> Vec<i32> {
        let Columns { groups, parts: count, width } = self.columns;
        let mut y = vec![0i32; self.lines * groups * width];
        parts(exec, &mut y, width, &|from, y| {
            let sums = sums[from * count..].chunks(count * width);
            for (y, sums) in y.chunks_mut(width.max(1)).zip(sums) {
                y.copy_from_slice(&sums[..width]);
                for (i, part) in sums.chunks(width).enumerate().skip(1) {
                    y.iter_mut().zip(part).for_each(|(y, &s)| *y = y.wrapping_add(s << (8 * i)));
                }
            }
        });
        y
    }
}

/// Each channel's own sums.
pub(super) fn apart(exec: &Exec, x: &Data, weights: &ApartWeights) -> Result<Data, KernelError> {
    let mut y = vec![0; weights.len()];
    let wide = || KernelError::Invalid { kernel: "apart", what: "its integers have 64 bits" };
    with_narrow!(x, x => sums_apart(exec, x, weights, &mut y)?, wide());
    Ok(Data::I32(y))
}

/// A convolution of channels-last integers in plain loops, its sums in 64 bits, which saturate at the end where the
/// buffer is narrower. A matrix product is one of images of one pixel.
#[derive(Debug)]
pub struct Direct {
    /// The shape.
    pub conv: Conv2dParams,
    /// `[group][tap][channel][output channel of the group]`.
    pub weights: Vec<i64>,
    /// One per output channel, or none.
    pub bias: Vec<i64>,
    /// The code of zero in the data.
    pub zero: i64,
    /// Where sums saturate.
    pub buffer: (i64, i64),
}

impl Direct {
    /// Orders weights `[oc, c / groups, kh, kw]` for the loops.
    pub fn new(conv: Conv2dParams, w: &Weights<'_>, buffer: (i64, i64)) -> Direct {
        let (c, m, taps) = (conv.c / conv.groups, conv.oc / conv.groups, conv.kh * conv.kw);
        let mut weights = vec![0; w.values.len()];
        for (i, &v) in w.values.iter().enumerate() {
            let (tap, ch, o) = (i % taps, i / taps % c, i / (taps * c));
            weights[((o / m * taps + tap) * c + ch) * m + o % m] = v;
        }
        Direct { conv, weights, bias: w.bias.to_vec(), zero: w.zero, buffer }
    }

    pub(super) fn run(&self, exec: &Exec, x: &Data, width: Width) -> Data {
        let p = &self.conv;
        let Ok([oh, ow]) = p.output() else { return Data::zeros(width, 0) };
        let mut y = Data::zeros(width, p.n * oh * ow * p.oc);
        with_ints!(x, x => with_ints!(&mut y, y => self.all(exec, x, y, [oh, ow])));
        y
    }

    fn all<A: Int, B: Int>(&self, exec: &Exec, x: &[A], y: &mut [B], [oh, ow]: [usize; 2]) {
        let p = &self.conv;
        parts(exec, y, p.oc, &|from, y| {
            let mut sums = vec![0i64; p.oc];
            for (i, y) in y.chunks_mut(p.oc).enumerate() {
                let at = from / p.oc + i;
                sums.fill(0);
                sums.iter_mut().zip(&self.bias).for_each(|(s, &b)| *s = b);
                self.pixel(x, [at / (oh * ow), at / ow % oh, at % ow], &mut sums);
                for (y, s) in y.iter_mut().zip(&sums) {
                    *y = B::low((*s).clamp(self.buffer.0, self.buffer.1));
                }
            }
        });
    }

    fn pixel<A: Int>(&self, x: &[A], [n, oy, ox]: [usize; 3], sums: &mut [i64]) {
        let p = &self.conv;
        let (c, m) = (p.c / p.groups, p.oc / p.groups);
        for (ky, kx) in (0..p.kh).flat_map(|ky| (0..p.kw).map(move |kx| (ky, kx))) {
            let iy = (oy * p.strides[0] + ky * p.dilations[0]).wrapping_sub(p.pads[0]);
            let ix = (ox * p.strides[1] + kx * p.dilations[1]).wrapping_sub(p.pads[1]);
            if iy >= p.h || ix >= p.w {
                continue;
            }
            let pixel = &x[((n * p.h + iy) * p.w + ix) * p.c..][..p.c];
            let tap = ky * p.kw + kx;
            if (c, m) == (1, 1) {
                let weights = &self.weights[tap..];
                let step = p.kh * p.kw;
                for (g, (s, x)) in sums.iter_mut().zip(pixel).enumerate() {
                    *s += x.wide().wrapping_sub(self.zero).wrapping_mul(weights[g * step]);
                }
                continue;
            }
            for (g, (sums, pixel)) in sums.chunks_mut(m).zip(pixel.chunks(c)).enumerate() {
                let weights = &self.weights[(g * p.kh * p.kw + tap) * c * m..][..c * m];
                for (x, w) in pixel.iter().zip(weights.chunks(m)) {
                    let x = x.wide().wrapping_sub(self.zero);
                    sums.iter_mut().zip(w).for_each(|(s, w)| *s = s.wrapping_add(x.wrapping_mul(*w)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_kernels::Isa;

    /// Integers all over `-spread..spread`, the same at each run.
    fn integers(len: usize, spread: i64) -> Vec<i64> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as i64 % (2 * spread) - spread
        };
        (0..len).map(|_| next()).collect()
    }

    fn conv(c: usize, oc: usize, groups: usize, k: usize, stride: usize) -> Conv2dParams {
        let (strides, pads, dilations) = ([stride, 1], [1, 0, 1, 1], [1, 1]);
        Conv2dParams { n: 2, c, h: 5, w: 7, oc, kh: k, kw: k, strides, pads, dilations, groups }
    }

    const ALL: (i64, i64) = (i64::MIN, i64::MAX);
    const WIDTHS: [Width; 2] = [Width::I8, Width::U8];

    #[test]
    fn multiplies_wide_weights_in_parts_as_the_plain_loops_do() {
        for (spread, expected) in [(128, 1), (30_000, 2), (60_000, 3)] {
            for p in [conv(3, 5, 1, 3, 2), conv(17, 16, 1, 1, 1), conv(8, 12, 2, 3, 1), conv(64, 33, 1, 3, 1)] {
                let values = integers(p.weight_len().unwrap(), spread);
                let bias = integers(p.oc, 9999);
                for width in WIDTHS {
                    let x = Data::of(width, &integers(p.n * p.h * p.w * p.c, 128));
                    let w = Weights { values: &values, bias: &bias, zero: 5, signed: width == Width::I8 };
                    let parts = w.parts(p.c * p.kh * p.kw).unwrap();
                    assert_eq!(parts, expected);
                    let want = Direct::new(p, &w, ALL).run(&Exec::new(Isa::detect(), 1), &x, Width::I32);
                    for isa in Isa::available() {
                        let exec = Exec::new(isa, 2);
                        let dense = Dense::conv(&exec, p, &w, parts).unwrap();
                        assert_eq!(dense.run(&exec, &x).unwrap(), want, "{p:?} {isa:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn multiplies_matrices_in_parts() {
        let (m, k, n) = (7, 67, 10);
        let values = integers(k * n, 30_000);
        let turned: Vec<i64> = (0..n * k).map(|i| values[i % k * n + i / k]).collect();
        let p = Conv2dParams { n: m, h: 1, w: 1, pads: [0; 4], ..conv(k, n, 1, 1, 1) };
        for width in WIDTHS {
            let x = Data::of(width, &integers(m * k, 128));
            let w = Weights { values: &values, bias: &[], zero: 0, signed: width == Width::I8 };
            let exec = Exec::new(Isa::detect(), 2);
            let dense = Dense::matrix(&exec, [m, k, n], &w, 2).unwrap();
            let want = Direct::new(p, &Weights { values: &turned, ..w }, ALL).run(&exec, &x, Width::I32);
            assert_eq!(dense.run(&exec, &x).unwrap(), want);
        }
    }

    #[test]
    fn sums_channels_up_as_the_plain_loops_do() {
        for p in [conv(5, 5, 5, 3, 2), conv(33, 33, 33, 2, 1)] {
            let (values, bias) = (integers(p.weight_len().unwrap(), 4000), integers(p.oc, 9999));
            let narrow = |all: &[i64]| all.iter().map(|&v| v as i32).collect::<Vec<_>>();
            let w = Weights { values: &values, bias: &bias, zero: 5, signed: true };
            let (x, exec) = (Data::of(Width::I8, &integers(p.n * p.h * p.w * p.c, 128)), Exec::new(Isa::detect(), 2));
            let weights = ApartWeights::new(&p, &narrow(&values), &narrow(&bias), 5).unwrap();
            let want = Direct::new(p, &w, ALL).run(&exec, &x, Width::I32);
            assert_eq!(apart(&exec, &x, &weights).unwrap(), want, "{p:?}");
        }
    }

    #[test]
    fn takes_weights_apart_that_have_few_parts() {
        let parts = |values: &[i64], depth| Weights { values, bias: &[], zero: 0, signed: false }.parts(depth);
        assert_eq!(parts(&[-128, 127], 1 << 20), Some(1));
        assert_eq!((parts(&[128], 9), parts(&[-129], 9), parts(&[32639], 9)), (Some(2), Some(2), Some(2)));
        assert_eq!((parts(&[32640], 9), parts(&[i64::MIN], 9), parts(&[128], 1 << 20)), (Some(3), None, None));
        for value in [-8_000_000, -32_896, -1, 0, 127, 128, 255, 8_355_711] {
            let whole: i64 = (0..3).map(|i| i64::from(part(value, i)) << (8 * i)).sum();
            assert_eq!(whole, value);
        }
    }
}
