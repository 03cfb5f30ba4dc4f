//! Weights in panels: for each panel, run and step, a word of each column.

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::limits;
use super::table::PanelKernel;
use crate::buffer::Buffer;
use crate::error::{Result, product};
use crate::exec::Exec;
#[cfg(target_arch = "x86_64")]
use crate::isa::Avx2;
use crate::isa::Isa;

const NAME: &str = "panel weights";

/// An element of a panel.
pub trait PanelElement: Copy + Default + Send + Sync + 'static {
    /// Elements in a step of 4 bytes.
    const PER_STEP: usize;
    /// The kernels of this element, best first.
    #[doc(hidden)]
    fn table() -> &'static [PanelKernel];
    /// The word of up to `PER_STEP` elements.
    #[doc(hidden)]
    fn word(elements: impl Fn(usize) -> Self) -> u32;
}

impl PanelElement for i8 {
    const PER_STEP: usize = 4;
    fn table() -> &'static [PanelKernel] {
        super::table::INT_KERNELS
    }
    #[inline(always)]
    fn word(elements: impl Fn(usize) -> i8) -> u32 {
        u32::from_le_bytes([elements(0) as u8, elements(1) as u8, elements(2) as u8, elements(3) as u8])
    }
}

/// Pairs of 16-bit integers: what 8-bit ones are transformed to.
impl PanelElement for i16 {
    const PER_STEP: usize = 2;
    fn table() -> &'static [PanelKernel] {
        super::table::SHORT_KERNELS
    }
    #[inline(always)]
    fn word(elements: impl Fn(usize) -> i16) -> u32 {
        u32::from(elements(0) as u16) | u32::from(elements(1) as u16) << 16
    }
}

impl PanelElement for f32 {
    const PER_STEP: usize = 1;
    fn table() -> &'static [PanelKernel] {
        super::table::FLOAT_KERNELS
    }
    #[inline(always)]
    fn word(elements: impl Fn(usize) -> f32) -> u32 {
        elements(0).to_bits()
    }
}

impl PanelElement for bf16 {
    const PER_STEP: usize = 2;
    fn table() -> &'static [PanelKernel] {
        super::table::BF16_KERNELS
    }
    #[inline(always)]
    fn word(elements: impl Fn(usize) -> bf16) -> u32 {
        u32::from(elements(0).to_bits()) | u32::from(elements(1).to_bits()) << 16
    }
}

/// How the columns of a product divide into panels of at most `nr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    pub n: usize,
    pub nr: usize,
    pub lanes: usize,
}

impl Columns {
    pub fn count(&self) -> usize {
        self.n.div_ceil(self.nr)
    }
    /// Columns of panel `p` that count.
    pub fn valid(&self, p: usize) -> usize {
        self.nr.min(self.n - p * self.nr)
    }
    /// Columns of panel `p` in memory.
    pub fn width(&self, p: usize) -> usize {
        self.valid(p).next_multiple_of(self.lanes)
    }
    /// Columns of all panels in memory.
    pub fn padded(&self) -> usize {
        (self.count() - 1) * self.nr + self.width(self.count() - 1)
    }
}

/// Packed columns in anyone's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelsView<'a> {
    pub kernel: &'static PanelKernel,
    pub columns: Columns,
    pub runs: usize,
    pub run_len: usize,
    pub steps: usize,
    /// Groups one after another.
    pub data: &'a [f32],
    /// See [`Panels::starts`]; none where the kernel takes no i8 rows.
    pub starts: &'a [i32],
    /// See [`Panels::limits`].
    pub limits: &'a [f32],
}

impl PanelsView<'_> {
    /// Panel `p` of a group.
    #[inline]
    pub fn panel(&self, group: usize, p: usize) -> &[f32] {
        let per_panel = self.runs * self.steps;
        let start = (group * self.columns.padded() + p * self.columns.nr) * per_panel;
        &self.data[start..start + self.columns.width(p) * per_panel]
    }

    /// The limits of panel `p` of a group, for a tile of it; null where its kernel takes none.
    #[inline]
    pub fn limits(&self, group: usize, p: usize) -> *const f32 {
        let at = (group * self.columns.count() + p) * limit_words(self.kernel, 1, (self.runs, self.steps));
        self.limits.get(at).map_or(std::ptr::null(), std::ptr::from_ref)
    }

    /// What the sums of i8 rows start from, so that they are those of the rows with 128 added: a number for each column
    /// of the panel in memory.
    pub fn starts(&self, group: usize, p: usize) -> &[i32] {
        &self.starts[group * self.columns.padded() + p * self.columns.nr..][..self.columns.width(p)]
    }
}

/// Packed weights of a product or of all groups of a convolution, with the column sums
/// that correct for the rows' zero point.
#[derive(Debug)]
pub struct Panels {
    pub(crate) kernel: &'static PanelKernel,
    pub(crate) columns: Columns,
    pub(crate) groups: usize,
    pub(crate) runs: usize,
    /// Elements of a run, and the steps that take them.
    pub(crate) run_len: usize,
    pub(crate) steps: usize,
    /// Bytes of an element.
    pub(crate) size: usize,
    data: Buffer,
    /// By group and column, for integers.
    sums: Vec<i32>,
    /// 128 times the sums of the columns in memory, for kernels that take i8 rows.
    starts: Vec<i32>,
    /// What `limits::find_limits` finds, by group and panel: for bounded kernels.
    limits: Buffer,
}

impl Panels {
    /// Packs `groups` matrices of `n` columns and `runs · run_len` rows. Padding is zero.
    ///
    /// # Errors
    /// A dimension is 0 or the product overflows.
    pub(crate) fn pack<T: PanelElement>(
        exec: &Exec,
        (groups, n, runs, run_len): (usize, usize, usize, usize),
        lines: &impl Lines<T>,
    ) -> Result<Panels> {
        let mut panels = Self::zeros::<T>(exec, (groups, n, runs, run_len))?;
        let Panels { kernel, columns, steps, .. } = panels;
        let out = crate::buffer::SharedMut::new(&mut panels.data);
        let per_panel = runs * steps;
        let per_panel_limits = if T::PER_STEP == 4 { limit_words(kernel, 1, (runs, steps)) } else { 0 };
        panels.limits = Buffer::lasting(groups * columns.count() * per_panel_limits);
        let limits = crate::buffer::SharedMut::new(&mut panels.limits);
        let all_sums = crate::buffer::SharedMut::new(&mut panels.sums);
        exec.split(groups * columns.count(), 1, &|range| {
            for task in range {
                let (group, p) = (task / columns.count(), task % columns.count());
                let (width, valid) = (columns.width(p), columns.valid(p));
                let start = (group * columns.padded() + p * kernel.nr) * per_panel;
                // SAFETY: each task has a panel of its own.
                let panel = unsafe { out.slice(start, width * per_panel) };
                for (run, block) in panel.chunks_exact_mut(width * steps).enumerate() {
                    let part = Part { group, first: p * kernel.nr, valid, run, run_len };
                    lines.fill(part, width, block);
                }
                // SAFETY: each task has limits of its own.
                let limits = unsafe { limits.slice(task * per_panel_limits, per_panel_limits) };
                find_limits(exec.isa(), panel, (steps, width), limits);
                if T::PER_STEP == 4 {
                    // SAFETY: each task has columns of its own.
                    column_sums(panel, width, unsafe { all_sums.slice(group * n + p * kernel.nr, valid) });
                }
            }
        });
        if kernel.takes_signed() && T::PER_STEP == 4 {
            panels.starts.resize(groups * columns.padded(), 0);
            for (to, from) in panels.starts.chunks_exact_mut(columns.padded()).zip(panels.sums.chunks_exact(n)) {
                to.iter_mut().zip(from).for_each(|(to, sum)| *to = sum.wrapping_mul(128));
            }
        }
        Ok(panels)
    }

    /// Panels of zeros, for whoever fills [`Panels::words`].
    ///
    /// # Errors
    /// As [`Panels::pack`].
    pub(crate) fn zeros<T: PanelElement>(
        exec: &Exec,
        (groups, n, runs, run_len): (usize, usize, usize, usize),
    ) -> Result<Panels> {
        let kernel = PanelKernel::best(T::table(), exec.isa());
        crate::error::require(NAME, groups * n * runs * run_len > 0, "the weights are empty")?;
        let columns = Columns { n, nr: kernel.nr, lanes: kernel.lanes };
        let steps = run_len.div_ceil(T::PER_STEP).next_multiple_of(kernel.depth / 4);
        let data = Buffer::lasting(product(NAME, &[groups, runs, steps, columns.padded()])?);
        let sums = vec![0i32; if T::PER_STEP == 4 { groups * n } else { 0 }];
        let (size, starts, limits) = (4 / T::PER_STEP, Vec::new(), Buffer::lasting(0));
        Ok(Panels { kernel, columns, groups, runs, run_len, steps, size, data, sums, starts, limits })
    }

    /// The words of all panels; panel `p` of a group begins at `(group · columns in memory + first column) · runs · steps`.
    pub(crate) fn words(&mut self) -> &mut [f32] {
        &mut self.data
    }

    pub(crate) fn view(&self) -> PanelsView<'_> {
        let Panels { kernel, columns, runs, run_len, steps, .. } = *self;
        let (data, starts, limits) = (&self.data, &self.starts, &self.limits);
        PanelsView { kernel, columns, runs, run_len, steps, data, starts, limits }
    }

    /// The sum of each column of integer weights, groups one after another.
    pub fn column_sums(&self) -> &[i32] {
        &self.sums
    }

    /// The kernel that the panels are packed for.
    pub fn kernel(&self) -> &'static PanelKernel {
        self.kernel
    }

    /// Whether they are of bfloat16, so that rows are, too.
    pub fn multiplies_bf16(&self) -> bool {
        self.size == 2
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        4 * (self.data.len() + self.limits.len())
    }
}

/// Steps whose rows bounded kernels compare with limits at a time.
pub(crate) const BLOCK: usize = 16;

/// Words of the limits of so many panels, whose runs have so many steps.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub(crate) fn limit_words(kernel: &PanelKernel, panels: usize, (runs, steps): (usize, usize)) -> usize {
    #[cfg(target_arch = "x86_64")]
    if kernel.bounded() {
        return panels * runs * steps.div_ceil(BLOCK) * limits::BLOCK_WORDS;
    }
    0
}

/// Finds the limits of a panel with so many steps in a run and columns in memory; none are asked for where the kernel is
/// not bounded.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub(crate) fn find_limits(isa: Isa, panel: &[f32], shape: (usize, usize), to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if !to.is_empty() && Avx2::new(isa).is_some() {
        // SAFETY: the token says that the CPU has AVX2; panels of bounded kernels have one or two vectors of columns.
        unsafe { limits::find_limits(panel, shape, to) };
    }
}

/// Takes the weights of a panel for bounded kernels apart, which takes twice its words.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub(crate) fn take_apart(isa: Isa, panel: &[f32], width: usize, to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if Avx2::new(isa).is_some() {
        // SAFETY: the token says that the CPU has AVX2; panels of bounded kernels have one or two vectors of columns.
        unsafe { limits::take_apart(panel, width, to) };
    }
}

/// A run of a panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub group: usize,
    /// The first column, and how many count.
    pub first: usize,
    pub valid: usize,
    pub run: usize,
    pub run_len: usize,
}

/// Where weights are packed from.
pub(crate) trait Lines<T: PanelElement>: Sync {
    /// Fills the words `[step, column]` of a zeroed block with `width` columns in memory.
    fn fill(&self, part: Part, width: usize, block: &mut [f32]);
}

/// Steps that are filled column by column at a time, so that their words stay in L1.
const STEPS: usize = 64;

/// Weights whose columns lie apart: a function copies the elements of a column and run from some on.
pub(crate) struct ByColumn<F>(pub F);

impl<T: PanelElement, F: Fn(Part, usize, usize, &mut [T]) + Sync> Lines<T> for ByColumn<F> {
    fn fill(&self, part: Part, width: usize, block: &mut [f32]) {
        let mut elements = [T::default(); STEPS * 4];
        for (i, block) in block.chunks_mut(STEPS * width).enumerate() {
            let from = i * STEPS * T::PER_STEP;
            let len = (part.run_len - from).min(STEPS * T::PER_STEP);
            elements[len..].fill(T::default());
            for c in 0..part.valid {
                (self.0)(part, part.first + c, from, &mut elements[..len]);
                let steps = elements.chunks_exact(T::PER_STEP);
                for (line, step) in block.chunks_exact_mut(width).zip(steps) {
                    line[c] = f32::from_bits(T::word(|k| step[k]));
                }
            }
        }
    }
}

/// A row-major matrix of so many columns.
pub(crate) struct RowMajor<'a, T>(pub &'a [T], pub usize);

impl<T: PanelElement> Lines<T> for RowMajor<'_, T> {
    fn fill(&self, part: Part, width: usize, block: &mut [f32]) {
        let none = [T::default(); 64];
        for (step, line) in block.chunks_exact_mut(width).enumerate() {
            let row = |i: usize| {
                let k = step * T::PER_STEP + i;
                // Rows beyond the last are zero; a panel has at most 64 columns.
                if k < part.run_len { &self.0[k * self.1 + part.first..][..part.valid] } else { &none[..part.valid] }
            };
            let rows: [&[T]; 4] = std::array::from_fn(|i| if i < T::PER_STEP { row(i) } else { &none[..part.valid] });
            for (c, word) in line[..part.valid].iter_mut().enumerate() {
                *word = f32::from_bits(T::word(|k| rows[k][c]));
            }
        }
    }
}

pub(crate) fn column_sums(panel: &[f32], width: usize, sums: &mut [i32]) {
    for row in panel.chunks_exact(width) {
        for (sum, word) in sums.iter_mut().zip(row) {
            let bytes = word.to_bits().to_le_bytes().map(|b| i32::from(b as i8));
            *sum = sum.wrapping_add(bytes.into_iter().sum());
        }
    }
}
