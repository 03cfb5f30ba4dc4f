//! Products with weights that stay in memory as numbers of 8 or 16 bits: each task widens a panel into its scratch, where
//! the rows that it has find it in a cache.

use super::drive::{CHUNK, Lines, SERIAL, Source, Sweep, part, parts};
use super::epilogue::{Epilogue, Residual};
use super::gather::Windows;
use super::image::Image;
use super::lines::{Placed, SLACK, spread};
use super::packing::{Elements, Packing};
use super::target::{Out, Target};
use crate::buffer::{Buffer, SharedMut, with_scratch};
use crate::codes::{Code, decode, decode_bf16};
use crate::conv::Conv2dParams;
use crate::error::{Result, at_least, exact, product, require, span};
use crate::exec::Exec;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd};

const NAME: &str = "product with coded weights";

/// Packed weights of `groups` matrices of `k` rows and `n` columns.
#[derive(Debug)]
pub struct CodedPanels {
    packing: Packing,
    groups: usize,
    code: Code,
    /// Bytes of the codes, in the order of the panels' elements.
    data: Buffer,
    /// Rows that share a scale, and the scales `[groups, panel, block, column in memory]`.
    blocks: Option<(usize, Vec<f32>)>,
}

/// The scale of a group, column and block.
pub type BlockScale<'a> = &'a dyn Fn(usize, usize, usize) -> f32;

/// What the elements of weights are, by group, column and row.
pub struct CodedWeights<'a> {
    /// The format.
    pub code: Code,
    /// Groups, columns of each and rows.
    pub shape: [usize; 3],
    /// The bits of an element.
    pub element: &'a (dyn Fn(usize, usize, usize) -> u16 + Sync),
    /// Rows that share a scale, and the scale of a group, column and block.
    pub blocks: Option<(usize, BlockScale<'a>)>,
}

impl CodedPanels {
    /// Packs weights, to be multiplied as bfloat16 if `bf16` is set, the instruction set multiplies that, and the
    /// elements are numbers of bfloat16; else as floats.
    ///
    /// # Errors
    /// A dimension or a block is 0.
    pub fn pack(exec: &Exec, w: &CodedWeights<'_>, bf16: bool) -> Result<CodedPanels> {
        let [groups, n, k] = w.shape;
        require(NAME, groups > 0 && n > 0 && k > 0, "a dimension is 0")?;
        require(NAME, w.blocks.as_ref().is_none_or(|b| b.0 > 0), "a block has no rows")?;
        let bf16 = bf16 && w.code.fits_bf16() && w.blocks.is_none();
        let packing = Packing::new(exec.isa(), k, n, bf16);
        let elements = product(NAME, &[groups, packing.words(), packing.per_word()])?;
        let mut data = Buffer::lasting(product(NAME, &[elements, w.code.size()])?.div_ceil(4));
        let panels = packing.columns.count();
        let out = SharedMut::new(&mut data);
        let (element, size) = (w.element, w.code.size());
        exec.split(groups * panels, 1, &|range| {
            for task in range {
                let (group, p) = (task / panels, task % panels);
                let width = packing.columns.width(p);
                let start = group * packing.words() + packing.panel(p).start;
                let bytes = out.ptr().cast::<u8>().wrapping_add(start * packing.per_word() * size);
                for column in 0..packing.columns.valid(p) {
                    for row in 0..k {
                        let (step, part) = (row / packing.per_word(), row % packing.per_word());
                        let at = ((step * width + column) * packing.per_word() + part) * size;
                        let bits = element(group, p * packing.columns.nr + column, row).to_le_bytes();
                        // SAFETY: the panel is this task's, and the element lies in it.
                        unsafe { bytes.add(at).copy_from_nonoverlapping(bits.as_ptr(), size) };
                    }
                }
            }
        });
        let blocks = w.blocks.as_ref().map(|(rows, scale)| (*rows, scales(&packing, groups, k.div_ceil(*rows), scale)));
        Ok(CodedPanels { packing, groups, code: w.code, data, blocks })
    }

    /// The name of the kernel that multiplies.
    pub fn kernel_name(&self) -> &'static str {
        match (self.code, self.packing.bf16) {
            (Code::E4m3 | Code::E5m2, true) => "panel_fp8_as_bf16",
            (Code::E4m3 | Code::E5m2, false) => "panel_fp8_as_f32",
            (Code::F16, _) => "panel_f16_as_f32",
            (Code::Bf16, true) => "panel_bf16_as_bf16",
            (Code::Bf16, false) => "panel_bf16_as_f32",
        }
    }

    /// Whether they are multiplied as bfloat16.
    pub fn multiplies_bf16(&self) -> bool {
        self.packing.bf16
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        4 * (self.data.len() + self.blocks.as_ref().map_or(0, |b| b.1.len()))
    }

    /// Widens panel `p` of a group.
    fn widen(&self, isa: Isa, group: usize, p: usize, to: &mut [f32]) {
        let range = self.packing.panel(p);
        let start = (group * self.packing.words() + range.start) * self.packing.per_word() * self.code.size();
        let codes = self.data.as_ptr().cast::<u8>().wrapping_add(start);
        let to = &mut to[..range.len()];
        // SAFETY: the codes of the panel, and as many words as it has.
        unsafe {
            match self.packing.bf16 {
                true => decode_bf16(isa, self.code, codes, to.as_mut_ptr().cast(), 2 * to.len()),
                false => decode(isa, self.code, codes, to.as_mut_ptr(), to.len()),
            }
        }
        if let Some((rows, scales)) = &self.blocks {
            let (width, count) = (self.packing.columns.width(p), self.packing.k.div_ceil(*rows));
            let first = (group * self.packing.columns.padded() + p * self.packing.columns.nr) * count;
            isa.dispatch(ScaleBlocks { to, width, rows: *rows, scales: &scales[first..first + count * width] });
        }
    }

    /// `out[at + i · ld + j] = epilogue(rows · panels)` for the columns of some panels of a group.
    ///
    /// # Safety
    /// The rows are padded to whole steps, `out` covers the results, and nobody else uses those.
    unsafe fn multiply(&self, isa: Isa, lines: Lines, group: usize, panels: std::ops::Range<usize>, to: &Results<'_>) {
        let Packing { columns, .. } = self.packing;
        let most = panels.clone().map(|p| self.packing.panel(p).len()).max().unwrap_or(0);
        with_scratch(most, |words| {
            for p in panels {
                self.widen(isa, group, p, words);
                let (n, first) = (columns.valid(p), group * columns.n + p * columns.nr);
                let of = |x: &'_ [f32]| if x.is_empty() { 0..0 } else { first..first + n };
                let e = to.epilogue;
                let epilogue = Epilogue {
                    bias: &e.bias[of(e.bias)],
                    scales: &e.scales[of(e.scales)],
                    factors: &e.factors[of(e.factors)],
                    shifts: &e.shifts[of(e.shifts)],
                    ..*e
                };
                let mut view = self.packing.view(words);
                view.columns.n = n;
                let (out, ld) = (to.out, to.ld);
                let sweep =
                    Sweep { isa, panels: view, runs: &[0], epilogue: &epilogue, ints: false, signed: false, out, ld };
                // SAFETY: passed on to the caller.
                sweep.walk(|walk| unsafe { walk.rows(lines, (0, 0), to.at + first) });
            }
        });
    }
}

impl Packing {
    /// Elements in a word of a panel.
    fn per_word(&self) -> usize {
        if self.bf16 { 2 } else { 1 }
    }
}

/// Where the results of rows go: column `j` of row `i` to `at + i · ld + j`.
struct Results<'a> {
    epilogue: &'a Epilogue<'a>,
    out: Out,
    at: usize,
    ld: usize,
}

fn scales(packing: &Packing, groups: usize, blocks: usize, of: BlockScale<'_>) -> Vec<f32> {
    let columns = packing.columns;
    let mut all = Vec::with_capacity(groups * columns.padded() * blocks);
    for group in 0..groups {
        for p in 0..columns.count() {
            for block in 0..blocks {
                let column = |c| if c < columns.valid(p) { of(group, p * columns.nr + c, block) } else { 0.0 };
                all.extend((0..columns.width(p)).map(column));
            }
        }
    }
    all
}

/// Multiplies the rows of a panel of floats by the scales of their blocks.
struct ScaleBlocks<'a> {
    to: &'a mut [f32],
    width: usize,
    rows: usize,
    scales: &'a [f32],
}

impl Kernel for ScaleBlocks<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, scales) in self.to.chunks_mut(self.rows * self.width).zip(self.scales.chunks_exact(self.width)) {
            for row in block.chunks_exact_mut(self.width) {
                let vectors = row.chunks_exact_mut(S::LANES).zip(scales.chunks_exact(S::LANES));
                for (to, scale) in vectors {
                    // SAFETY: whole vectors; a width is several of them.
                    unsafe { s.store(to.as_mut_ptr(), s.mul(s.load(to.as_ptr()), s.load(scale.as_ptr()))) };
                }
            }
        }
    }
}

/// `y = epilogue(x · w)`: rows `m` of `k` elements, `lda` elements apart; `y` is dense `m × n`.
///
/// # Errors
/// A slice is too short for the shape, the weights have groups or another depth, or the epilogue does not fit.
pub fn coded_gemm(
    exec: &Exec,
    x: Elements<'_>,
    (m, k, lda): (usize, usize, usize),
    weights: &CodedPanels,
    epilogue: &Epilogue<'_>,
    y: &mut [f32],
) -> Result {
    let (packing, n) = (&weights.packing, weights.packing.columns.n);
    require(NAME, weights.groups == 1, "the weights are those of a convolution")?;
    exact(NAME, "rows of the weights", packing.k, k)?;
    at_least(NAME, "x", x.len(), span(NAME, &[(m, lda), (k, 1)])?)?;
    require(NAME, m <= 1 || lda > 0, "the rows overlap")?;
    exact(NAME, "y", y.len(), product(NAME, &[m, n])?)?;
    check(epilogue, n, y.len())?;
    if m == 0 {
        return Ok(());
    }
    let (form, source, out) = (x.form(), Source(x.ptr()), Target::F32(y).shared());
    let bytes = k * packing.size();
    let work = product(NAME, &[m, n, k])?;
    let count = packing.columns.count();
    let rows = (m, spread(bytes, packing.kernel.depth), 2 * packing.kernel.mr);
    let (down, across) = parts(exec, work, rows, (count, 4 * packing.words()));
    exec.pool().run_if(work >= SERIAL, down * across, &|task| {
        let (rows, panels) = (part(m, down, task / across), part(count, across, task % across));
        let start = |i: usize| source.ptr().wrapping_add((rows.start + i) * lda * form.size());
        let placed = Placed { start: &start, bytes, direct: None, copy: form.copying(packing.bf16) };
        let to = Results { epilogue, out, at: rows.start * n, ld: n };
        // SAFETY: the rows lie in `x` and are copied with zeros behind them; tasks write disjoint results.
        let body = |lines: Lines| unsafe { weights.multiply(exec.isa(), lines, 0, panels.clone(), &to) };
        // SAFETY: as above.
        unsafe { placed.with(exec.isa(), packing.kernel, rows.len(), body) };
    });
    Ok(())
}

fn check(epilogue: &Epilogue<'_>, columns: usize, results: usize) -> Result {
    require(NAME, matches!(epilogue.residual, Residual::None | Residual::F32(_)), "the residual is of integers")?;
    epilogue.check(NAME, false, columns, results)
}

/// `y = epilogue(conv(x, w))` for an NHWC image `x` and result `y`. The rows of the weights are the window's, by row, tap
/// and channel of the group.
///
/// # Errors
/// The parameters are invalid, the weights have another shape, a slice has another length, or the epilogue does not fit.
pub fn coded_conv2d_nhwc(
    exec: &Exec,
    p: &Conv2dParams,
    x: Elements<'_>,
    weights: &CodedPanels,
    epilogue: &Epilogue<'_>,
    y: &mut [f32],
) -> Result {
    let [oh, ow] = p.output()?;
    let packing = &weights.packing;
    let pixels = product(NAME, &[p.n, oh, ow])?;
    exact(NAME, "x", x.len(), product(NAME, &[p.n, p.h, p.w, p.c])?)?;
    exact(NAME, "y", y.len(), product(NAME, &[pixels, p.oc])?)?;
    exact(NAME, "rows of the weights", packing.k, product(NAME, &[p.kh, p.kw, p.c / p.groups])?)?;
    exact(NAME, "groups of the weights", weights.groups, p.groups)?;
    exact(NAME, "columns of the weights", packing.columns.n, p.oc / p.groups)?;
    check(epilogue, p.oc, y.len())?;
    if pixels == 0 {
        return Ok(());
    }
    let (form, out) = (x.form(), Target::F32(y).shared());
    let image =
        Image::whole(exec.isa(), Source(x.ptr()), p.c, (form.copying(packing.bf16), packing.size(), form.size()));
    let windows = Windows { p, image: &image, fill: 0, joins_taps: p.groups == 1 && p.dilations[1] == 1 };
    let (bytes, count) = (windows.bytes(), packing.columns.count());
    let pitch = spread(bytes, packing.kernel.depth);
    let work = product(NAME, &[pixels, p.oc, packing.k])?;
    // Enough rows that the widening of the weights does not count, few enough to keep them in a cache.
    let band =
        (CHUNK / pitch).max(4 * packing.kernel.mr).min(pixels.div_ceil(4 * exec.threads()).max(packing.kernel.mr));
    let bands = pixels.div_ceil(band);
    exec.pool().run_if(work >= SERIAL, bands * p.groups, &|task| {
        let (rows, group) = (part(pixels, bands, task / p.groups), task % p.groups);
        with_scratch((rows.len() * pitch + SLACK).div_ceil(4), |scratch| {
            let a = scratch.as_mut_ptr().cast::<u8>();
            for (i, pixel) in rows.clone().enumerate() {
                let (n, to) = (pixel / (oh * ow), a.wrapping_add(i * pitch));
                // SAFETY: the image was checked above; the scratch has `pitch` bytes for each row.
                unsafe {
                    windows.copy(n, (pixel / ow % oh, pixel % ow), group, to);
                    to.add(bytes).write_bytes(0, pitch - bytes);
                }
            }
            let lines = Lines { a, stride: pitch, count: rows.len(), tail: std::ptr::null() };
            let to = Results { epilogue, out, at: rows.start * p.oc, ld: p.oc };
            // SAFETY: the rows are whole steps; tasks write disjoint results.
            unsafe { weights.multiply(exec.isa(), lines, group, 0..count, &to) };
        });
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::codes::widen;
    use crate::testing::{Guarded, Random, assert_close, execs};

    fn codes(r: &mut Random, code: Code, len: usize) -> Vec<u8> {
        let one = |r: &mut Random| match code {
            // Without NaN, and of sizes whose products have few bits.
            Code::E4m3 => vec![(0x20 + r.below(0x20)) as u8 | (r.below(2) as u8) << 7],
            Code::E5m2 => vec![(0x34 + r.below(0x10)) as u8 | (r.below(2) as u8) << 7],
            Code::F16 => ((0x3000 + r.below(0x0c00)) as u16 | (r.below(2) as u16) << 15).to_le_bytes().to_vec(),
            Code::Bf16 => ((0x3e00 + r.below(0x0200)) as u16 | (r.below(2) as u16) << 15).to_le_bytes().to_vec(),
        };
        (0..len).flat_map(|_| one(r)).collect()
    }

    fn floats(exec: &Exec, code: Code, x: &[u8]) -> Vec<f32> {
        let mut y = vec![0f32; x.len() / code.size()];
        widen(exec, code, x, &mut y).unwrap();
        y
    }

    fn element(code: Code, x: &[u8], i: usize) -> u16 {
        if code.size() == 1 { u16::from(x[i]) } else { u16::from_le_bytes([x[2 * i], x[2 * i + 1]]) }
    }

    #[test]
    fn multiplies_codes_of_every_format_at_odd_sizes() {
        let mut r = Random::new(41);
        for code in [Code::E4m3, Code::E5m2, Code::F16, Code::Bf16] {
            for [m, k, n] in [[1, 1, 1], [3, 5, 7], [1, 130, 33], [31, 67, 70], [60, 64, 32]] {
                let (w, bias) = (codes(&mut r, code, k * n), r.vec(n));
                let (scale, residual) = (r.vec(n), r.vec(m * n));
                for coded in [false, true] {
                    let x = if coded { codes(&mut r, Code::E4m3, m * k) } else { Vec::new() };
                    let plain = r.vec(m * k);
                    for exec in execs() {
                        let (mut gx, mut gf) = (Guarded::new(&x), Guarded::new(&plain));
                        let rows = if coded { Elements::Coded(Code::E4m3, gx.get()) } else { Elements::F32(gf.get()) };
                        let xs = if coded { floats(&exec, Code::E4m3, &x) } else { plain.clone() };
                        let ws = floats(&exec, code, &w);
                        let of = |_: usize, c: usize, row: usize| element(code, &w, row * n + c);
                        let weights = CodedWeights { code, shape: [1, n, k], element: &of, blocks: None };
                        let weights = CodedPanels::pack(&exec, &weights, coded).unwrap();
                        let epilogue = Epilogue {
                            bias: &bias,
                            scales: &scale,
                            residual: Residual::F32(&residual),
                            activation: Activation::Relu,
                            ..Epilogue::default()
                        };
                        let mut y = Guarded::new(&vec![0f32; m * n]);
                        coded_gemm(&exec, rows, (m, k, k), &weights, &epilogue, y.get()).unwrap();
                        let sum = |i: usize, j: usize| -> f64 {
                            (0..k).map(|l| f64::from(xs[i * k + l]) * f64::from(ws[l * n + j])).sum()
                        };
                        let want = |at: usize| {
                            let v = (sum(at / n, at % n) as f32) * scale[at % n] + bias[at % n] + residual[at];
                            v.max(0.0)
                        };
                        let want: Vec<f32> = (0..m * n).map(want).collect();
                        // Sums of products that are exact, in another order than the definition's.
                        assert_close(y.get(), &want, 2e-4, &format!("{code:?} {coded} {m} {k} {n} {exec:?}"));
                    }
                }
            }
        }
    }

    #[test]
    fn scales_blocks_of_rows() {
        let mut r = Random::new(42);
        let (m, k, n, rows) = (5, 77, 37, 32);
        let (w, x, scale) = (codes(&mut r, Code::E4m3, k * n), r.vec(m * k), r.vec(k.div_ceil(rows) * n));
        for exec in execs() {
            let ws = floats(&exec, Code::E4m3, &w);
            let of = |_: usize, c: usize, row: usize| u16::from(w[row * n + c]);
            let by_block = |_: usize, c: usize, block: usize| scale[block * n + c];
            let blocks: Option<(usize, BlockScale)> = Some((rows, &by_block));
            let weights = CodedWeights { code: Code::E4m3, shape: [1, n, k], element: &of, blocks };
            let weights = CodedPanels::pack(&exec, &weights, true).unwrap();
            assert!(!weights.multiplies_bf16() && weights.bytes() < 2 * k * n.next_multiple_of(32) + 4096);
            let mut y = vec![0f32; m * n];
            coded_gemm(&exec, Elements::F32(&x), (m, k, k), &weights, &Epilogue::default(), &mut y).unwrap();
            let one = |i: usize, j: usize, l: usize| x[i * k + l] * ws[l * n + j] * scale[l / rows * n + j];
            let want: Vec<f32> = (0..m * n).map(|at| (0..k).map(|l| one(at / n, at % n, l)).sum()).collect();
            assert_close(&y, &want, 1e-4, &format!("{exec:?}"));
        }
    }

    #[test]
    fn convolves_codes_as_floats() {
        let mut r = Random::new(43);
        let base = Conv2dParams {
            n: 2,
            c: 6,
            h: 9,
            w: 11,
            oc: 34,
            kh: 3,
            kw: 3,
            strides: [1, 1],
            pads: [1, 1, 1, 1],
            dilations: [1, 1],
            groups: 1,
        };
        let cases = [
            base,
            Conv2dParams { groups: 2, strides: [2, 2], ..base },
            Conv2dParams { kh: 1, kw: 1, pads: [0; 4], ..base },
            Conv2dParams { dilations: [2, 2], pads: [2, 0, 1, 3], ..base },
        ];
        for p in cases {
            let (channels, taps, n) = (p.c / p.groups, p.kh * p.kw, p.oc / p.groups);
            let w = codes(&mut r, Code::E4m3, p.oc * channels * taps);
            let x = codes(&mut r, Code::E4m3, p.n * p.h * p.w * p.c);
            for exec in execs() {
                let of = |g: usize, c: usize, row: usize| {
                    u16::from(w[((g * n + c) * channels + row % channels) * taps + row / channels])
                };
                let shape = [p.groups, n, channels * taps];
                let weights = CodedWeights { code: Code::E4m3, shape, element: &of, blocks: None };
                let weights = CodedPanels::pack(&exec, &weights, true).unwrap();
                let [oh, ow] = p.output().unwrap();
                let mut gx = Guarded::new(&x);
                let mut y = Guarded::new(&vec![0f32; p.n * oh * ow * p.oc]);
                let rows = Elements::Coded(Code::E4m3, gx.get());
                coded_conv2d_nhwc(&exec, &p, rows, &weights, &Epilogue::default(), y.get()).unwrap();
                let (xs, ws) = (floats(&exec, Code::E4m3, &x), floats(&exec, Code::E4m3, &w));
                let got = y.get();
                for (at, &got) in got.iter().enumerate() {
                    let (o, pixel) = (at % p.oc, at / p.oc);
                    let (image, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
                    let mut sum = 0f32;
                    for t in 0..taps {
                        let iy = (oy * p.strides[0] + t / p.kw * p.dilations[0]).wrapping_sub(p.pads[0]);
                        let ix = (ox * p.strides[1] + t % p.kw * p.dilations[1]).wrapping_sub(p.pads[1]);
                        if iy < p.h && ix < p.w {
                            for c in 0..channels {
                                let channel = o / n * channels + c;
                                let x = xs[((image * p.h + iy) * p.w + ix) * p.c + channel];
                                sum += x * ws[(o * channels + c) * taps + t];
                            }
                        }
                    }
                    assert!((got - sum).abs() <= 1e-4 * sum.abs().max(1.0), "{p:?} {at} {exec:?}");
                }
            }
        }
    }

    #[test]
    fn refuses_weights_of_another_shape_and_short_slices() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        let of = |_: usize, _: usize, _: usize| 0x38;
        let weights = |shape| CodedWeights { code: Code::E4m3, shape, element: &of, blocks: None };
        assert!(CodedPanels::pack(&exec, &weights([1, 0, 3]), true).is_err());
        let w = CodedPanels::pack(&exec, &weights([1, 4, 3]), true).unwrap();
        let run = |x: &[f32], k: usize, y: usize, e: &Epilogue<'_>| {
            coded_gemm(&exec, Elements::F32(x), (2, k, k), &w, e, &mut vec![0.0; y])
        };
        let plain = Epilogue::default();
        assert!(run(&[1.0; 6], 3, 8, &plain).is_ok());
        assert!(run(&[1.0; 5], 3, 8, &plain).is_err());
        assert!(run(&[1.0; 8], 4, 8, &plain).is_err());
        assert!(run(&[1.0; 6], 3, 7, &plain).is_err());
        assert!(run(&[1.0; 6], 3, 8, &Epilogue { scales: &[1.0; 3], ..plain }).is_err());
    }
}
