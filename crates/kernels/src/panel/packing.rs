//! Right operands of float products that are packed on the way: for kernels of bfloat16, or of floats.

use super::drive::{Lines, Sweep};
use super::epilogue::Epilogue;
use super::lines::{Copying, Placed};
use super::pack::{Columns, PanelsView};
use super::table::{BF16_KERNELS, FLOAT_KERNELS, PanelKernel};
use super::target::Out;
use crate::buffer::with_scratch;
use crate::codes::{Code, round_bf16};
use crate::exec::Exec;
use crate::gemm::transpose_block;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, low_bits};

/// An operand of a product of floats.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// Floats, rounded to bfloat16 where the kernel multiplies that.
    F32(&'a [f32]),
    /// Numbers of fewer bits.
    Coded(Code, &'a [u8]),
}

impl Elements<'_> {
    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Elements::F32(x) => x.len(),
            Elements::Coded(code, x) => x.len() / code.size(),
        }
    }

    pub(crate) fn ptr(&self) -> *const u8 {
        match self {
            Elements::F32(x) => x.as_ptr().cast(),
            Elements::Coded(_, x) => x.as_ptr(),
        }
    }

    pub(crate) fn form(&self) -> Form {
        match self {
            Elements::F32(_) => Form::F32,
            Elements::Coded(code, _) => Form::Coded(*code),
        }
    }

    /// Whether all elements are numbers of bfloat16.
    pub(crate) fn fits_bf16(&self) -> bool {
        matches!(self, Elements::Coded(code, _) if code.fits_bf16())
    }
}

/// How elements lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    F32,
    Coded(Code),
}

impl Form {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Form::F32 => 4,
            Form::Coded(code) => code.size(),
        }
    }

    /// How rows are copied for a kernel.
    pub fn copying(self, bf16: bool) -> Copying {
        match (self, bf16) {
            (Form::F32, true) => Copying::Bf16,
            (Form::F32, false) => Copying::Flip(0),
            (Form::Coded(code), bf16) => Copying::Decode(code, bf16),
        }
    }
}

/// The kernel that multiplies, and how panels for it lie in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packing {
    pub kernel: &'static PanelKernel,
    pub bf16: bool,
    pub columns: Columns,
    pub k: usize,
    pub steps: usize,
}

/// A matrix in memory, one of whose axes is dense.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense {
    pub form: Form,
    pub start: *const u8,
    /// Elements between the lines, each of which is dense.
    pub stride: usize,
    /// Whether a line is a column, else a row.
    pub by_column: bool,
}

impl Packing {
    /// For a `k × n` matrix, neither of them 0; with `bf16` where the instruction set multiplies that.
    pub fn new(isa: Isa, k: usize, n: usize, bf16: bool) -> Packing {
        let bf16 = bf16 && isa.multiplies_bf16();
        let kernel = PanelKernel::best(if bf16 { BF16_KERNELS } else { FLOAT_KERNELS }, isa);
        let columns = Columns { n, nr: kernel.nr, lanes: kernel.lanes };
        let per_step = if bf16 { 2 } else { 1 };
        // Panels of floats are not padded: their rows are read element by element.
        let steps = if bf16 { k.div_ceil(per_step).next_multiple_of(kernel.depth / 4) } else { k };
        Packing { kernel, bf16, columns, k, steps }
    }

    /// Bytes of an element in rows and panels.
    pub fn size(&self) -> usize {
        if self.bf16 { 2 } else { 4 }
    }

    /// Words of all panels.
    pub fn words(&self) -> usize {
        self.steps * self.columns.padded()
    }

    /// Where the words of panel `p` lie among all.
    pub fn panel(&self, p: usize) -> std::ops::Range<usize> {
        let start = p * self.columns.nr * self.steps;
        start..start + self.columns.width(p) * self.steps
    }

    /// Fills panel `p`.
    ///
    /// # Safety
    /// `from` covers `k × n` elements.
    pub unsafe fn pack(&self, isa: Isa, from: Dense, p: usize, to: &mut [f32]) {
        let (width, valid, first) = (self.columns.width(p), self.columns.valid(p), p * self.columns.nr);
        let apart = if from.by_column { from.stride } else { 1 };
        let from = Dense { start: from.start.wrapping_add(first * apart * from.form.size()), ..from };
        if from.by_column {
            with_scratch(valid * self.steps, |words| {
                isa.dispatch(PackColumns { packing: self, from, valid, width, words, to });
            });
        } else {
            isa.dispatch(PackRows { packing: self, from, valid, width, to });
        }
    }

    /// Panels that were filled.
    pub fn view<'a>(&self, data: &'a [f32]) -> PanelsView<'a> {
        let Packing { kernel, columns, k, steps, .. } = *self;
        PanelsView { kernel, columns, runs: 1, run_len: k, steps, data, starts: &[], limits: &[] }
    }

    /// `out[at + i · ld + j] = epilogue(rows · panels)` for `m` rows that start where `start` says, of elements of `form`.
    ///
    /// # Safety
    /// The rows have `k` elements, `out` covers the results, and nobody else uses those.
    pub unsafe fn multiply(
        &self,
        isa: Isa,
        (start, form, m): (&dyn Fn(usize) -> *const u8, Form, usize),
        data: &[f32],
        epilogue: &Epilogue<'_>,
        (out, at, ld): (Out, usize, usize),
    ) {
        let panels = self.view(data);
        let sweep = Sweep { isa, panels, runs: &[0], epilogue, ints: false, signed: false, out, ld };
        let placed = Placed { start, bytes: self.k * self.size(), direct: None, copy: form.copying(self.bf16) };
        let body = |lines: Lines| {
            sweep.walk(|walk| {
                for p in 0..self.columns.count() {
                    // SAFETY: rows are copied with zeros behind them; the caller vouches for the results.
                    unsafe { walk.rows(lines, (0, p), at) };
                }
            });
        };
        // SAFETY: the caller vouches for the rows.
        unsafe { placed.with(isa, self.kernel, m, body) };
    }
}

/// Whether products of these operands are of bfloat16: where nothing is lost, or the user lets floats be rounded.
pub(crate) fn multiplies_bf16(exec: &Exec, operands: &[Elements<'_>]) -> bool {
    exec.takes_bf16(operands.iter().all(Elements::fits_bf16))
}

/// Bits of `n` floats, or of floats that are rounded to bfloat16.
///
/// # Safety
/// `p` covers `n` elements.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, form: Form, bf16: bool, p: *const u8, n: usize) -> S::I {
    // SAFETY: passed on to the caller.
    unsafe {
        match form {
            Form::F32 => {
                let v = s.load_bits(p.cast(), low_bits(n));
                if bf16 { round_bf16(s, v) } else { s.to_bits(v) }
            }
            Form::Coded(code) => code.load(s, p, n),
        }
    }
}

struct PackRows<'a> {
    packing: &'a Packing,
    from: Dense,
    valid: usize,
    width: usize,
    to: &'a mut [f32],
}

impl Kernel for PackRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackRows { packing: &Packing { bf16, .. }, width, .. } = self;
        for (step, line) in self.to.chunks_exact_mut(width).enumerate() {
            let rows = PackedRows { packing: self.packing, from: self.from, valid: self.valid };
            let mut c = 0;
            while c < width {
                // SAFETY: `pack`'s caller vouches for the elements, and widths are whole vectors.
                unsafe {
                    let word = match bf16 {
                        true => {
                            let low = s.and_i(s.sar_i::<16>(rows.at(s, 2 * step, c)), s.splat_i(0xffff));
                            s.xor_i(low, s.and_i(rows.at(s, 2 * step + 1, c), s.splat_i(!0xffff)))
                        }
                        false => rows.at(s, step, c),
                    };
                    s.store(line.as_mut_ptr().add(c), s.float_of(word));
                }
                c += S::LANES;
            }
        }
    }
}

/// Rows as they are packed, with zeros behind the last row and column.
struct PackedRows<'a> {
    packing: &'a Packing,
    from: Dense,
    valid: usize,
}

impl PackedRows<'_> {
    /// A vector of row `i` from column `c` on. No closure: those are compiled without the tier's instructions where they
    /// are not inlined.
    ///
    /// # Safety
    /// The matrix covers its `k × n` elements.
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, s: S, i: usize, c: usize) -> S::I {
        let n = self.valid.saturating_sub(c).min(S::LANES);
        if i >= self.packing.k || n == 0 {
            return s.splat_i(0);
        }
        let at = self.from.start.wrapping_add((i * self.from.stride + c) * self.from.form.size());
        // SAFETY: `n` elements of the row are left.
        unsafe { load(s, self.from.form, self.packing.bf16, at, n) }
    }
}

struct PackColumns<'a> {
    packing: &'a Packing,
    from: Dense,
    valid: usize,
    width: usize,
    /// `valid × steps` words, column by column.
    words: &'a mut [f32],
    to: &'a mut [f32],
}

impl Kernel for PackColumns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackColumns { packing: &Packing { bf16, k, steps, .. }, from, valid, width, words, to } = self;
        let size = from.form.size();
        for c in 0..valid {
            let column = &mut words[c * steps..(c + 1) * steps];
            column.fill(0.0);
            let start = from.start.wrapping_add(c * from.stride * size);
            let mut i = 0;
            while i < k {
                let n = (k - i).min(S::LANES);
                // SAFETY: `n` elements of the column are left, in memory and among the words.
                unsafe {
                    let bits = load(s, from.form, bf16, start.add(i * size), n);
                    if bf16 {
                        s.store_low16_n(column.as_mut_ptr().cast::<u16>().add(i), s.sar_i::<16>(bits), n);
                    } else {
                        s.store_i32_n(column.as_mut_ptr().cast::<i32>().add(i), bits, n);
                    }
                }
                i += S::LANES;
            }
        }
        if valid < width {
            to.fill(0.0);
        }
        // SAFETY: `valid × steps` words, which become `steps × width`.
        unsafe { transpose_block(s, words.as_ptr(), steps, valid, steps, to.as_mut_ptr(), width) };
    }
}
