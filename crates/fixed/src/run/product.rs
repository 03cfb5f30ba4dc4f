//! Sums of products of integers.

use narrowbit_kernels::conv::Conv2dParams;
use narrowbit_kernels::panel::{
    Epilogue, Panels, Rows, Target, conv2d_nhwc, conv2d_nhwc_pack, panel_gemm, panel_gemm_pack,
};
use narrowbit_kernels::{Exec, KernelError};

use super::data::{Data, Int, Width, with_ints};
use super::parts;

/// A convolution of channels-last codes, or a matrix product of rows, with weights of 8 bits, on the integer kernels.
#[derive(Debug)]
pub struct Dense {
    /// The shape; `None` for a matrix product.
    conv: Option<Conv2dParams>,
    /// Rows and depth of a matrix product.
    rows: (usize, usize),
    panels: Panels,
    /// Bias less the zero point's part.
    offsets: Vec<i32>,
    /// The kernels ask for scales; sums do not use them.
    columns: usize,
    zero: i32,
    len: usize,
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

impl Dense {
    /// A convolution.
    ///
    /// # Errors
    /// When the shape is none.
    pub fn conv(exec: &Exec, p: Conv2dParams, w: &Weights<'_>) -> Result<Dense, KernelError> {
        let [oh, ow] = p.output()?;
        let panels = conv2d_nhwc_pack(exec, &p, &narrow(w.values))?;
        Ok(Dense::new(Some(p), (0, 0), panels, w, (p.oc, p.n * oh * ow * p.oc)))
    }

    /// A product of `m` rows with a `k × n` matrix.
    ///
    /// # Errors
    /// When a dimension is 0.
    pub fn matrix(exec: &Exec, [m, k, n]: [usize; 3], w: &Weights<'_>) -> Result<Dense, KernelError> {
        let panels = panel_gemm_pack(exec, (k, n), &narrow(w.values), false)?;
        Ok(Dense::new(None, (m, k), panels, w, (n, m * n)))
    }

    fn new(
        conv: Option<Conv2dParams>,
        rows: (usize, usize),
        panels: Panels,
        w: &Weights<'_>,
        (columns, len): (usize, usize),
    ) -> Dense {
        // Kernels read signed rows with 128 added.
        let zero = w.zero as i32 + if w.signed { 128 } else { 0 };
        let bias = |i: usize| w.bias.get(i).map_or(0, |&b| b as i32);
        let offset = |(i, s): (usize, &i32)| bias(i).wrapping_sub(zero.wrapping_mul(*s));
        let offsets = panels.column_sums().iter().enumerate().map(offset).collect();
        Dense { conv, rows, panels, offsets, columns, zero: w.zero as i32, len }
    }

    pub(super) fn run(&self, exec: &Exec, x: &Data) -> Result<Data, KernelError> {
        let mut y = vec![0i32; self.len];
        let x = match x {
            Data::I8(x) => Rows::I8(x),
            Data::U8(x) => Rows::U8(x),
            _ => return Ok(Data::I32(y)),
        };
        let scales = vec![Default::default(); self.columns];
        let epilogue = Epilogue { offsets: &self.offsets, scales: &scales, ..Epilogue::default() };
        let target = Target::I32(&mut y);
        match &self.conv {
            Some(p) => conv2d_nhwc(exec, p, x, self.zero, &self.panels, &epilogue, target)?,
            None => {
                let (m, k) = self.rows;
                panel_gemm(exec, x, (m, k, k), &self.panels, &epilogue, target)?;
            }
        }
        Ok(Data::I32(y))
    }
}

fn narrow(values: &[i64]) -> Vec<i8> {
    values.iter().map(|&x| x as i8).collect()
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
