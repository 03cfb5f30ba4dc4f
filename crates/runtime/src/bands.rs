//! Convolutions around a depthwise one, run together on one band of the image after the other: what they hand each other
//! stays in the second cache, and no image of it is ever made.
//!
//! MobileNet's blocks widen a small image sixfold for a depthwise convolution, which does little with much. An image of
//! 112 × 112 × 96 floats takes longer to be written and read than to be computed.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use narrowbit_ir::{NodeId, OpError, ValueId};
use narrowbit_kernels::conv::Conv2dParams;
use narrowbit_kernels::{Exec, Few, with_scratch_bytes};
use narrowbit_tensor::DType;

use crate::error::StepError;
use crate::kernel::{Built, Concrete, Kernel, RunCx};
use crate::session::Operands;
use crate::view::{View, ViewMut};

/// Convolutions at the most: one before the depthwise one, one behind it.
const MOST: usize = 3;
/// Bytes of bands that stay in the second cache until they are read; an image of more does not.
pub const SCRATCH: usize = 448 << 10;
/// Rows of the result for each thread at the least: a thread makes the rows that its first windows share with the thread
/// before once more.
const ROWS_EACH: usize = 6;

/// What the joining of steps needs to know of their values.
pub struct Values<'a> {
    /// The type of a value as it stands in memory.
    pub ty: &'a dyn Fn(ValueId) -> Concrete,
    /// The value whose memory a value shares.
    pub root: &'a dyn Fn(ValueId) -> ValueId,
    /// Whether somebody else than steps reads the value.
    pub is_kept: &'a dyn Fn(ValueId) -> bool,
}

/// Steps in order, by their first node.
pub type Steps = Vec<(NodeId, Built)>;

/// Joins convolutions that hand each other large images. Returns the steps, and the nodes of those that went into another
/// one, behind the node of that.
pub fn join(steps: Steps, values: &Values, exec: &Exec) -> (Steps, Vec<(NodeId, NodeId)>) {
    let chains = chains(&steps, values, exec);
    if chains.is_empty() {
        return (steps, Vec::new());
    }
    let (mut joined, mut kept) = (Vec::new(), Vec::new());
    let mut steps: Vec<Option<(NodeId, Built)>> = steps.into_iter().map(Some).collect();
    for i in 0..steps.len() {
        let Some(chain) = chains.iter().find(|chain| chain.last() == Some(&i)) else {
            // Not those that a later step takes.
            let taken = chains.iter().any(|chain| chain.contains(&i));
            kept.extend(if taken { None } else { steps[i].take() });
            continue;
        };
        let parts: Vec<(NodeId, Built)> = chain.iter().filter_map(|&k| steps[k].take()).collect();
        let Some(&(first, _)) = parts.first() else { continue };
        joined.extend(parts[1..].iter().map(|&(node, _)| (first, node)));
        kept.push((first, Bands::build(parts.into_iter().map(|(_, built)| built).collect(), values, exec)));
    }
    (kept, joined)
}

/// The steps of each chain, in order; no step is in two of them.
fn chains(steps: &[(NodeId, Built)], values: &Values, exec: &Exec) -> Vec<Vec<usize>> {
    let mut chains: Vec<Vec<usize>> = Vec::new();
    for (i, (_, built)) in steps.iter().enumerate() {
        let Some(window) = built.kernel.window().filter(|p| p.groups > 1 && p.groups == p.c) else { continue };
        if !is_regular(window) || chains.iter().flatten().any(|&k| k == i) {
            continue;
        }
        let mut chain = vec![i];
        if let Some(before) = maker(steps, values, built.ins[0]).filter(|&k| !chains.iter().flatten().any(|&x| x == k))
        {
            chain.insert(0, before);
        }
        if let Some(behind) = built.outs.first().and_then(|&v| reader(steps, values, v)) {
            chain.push(behind);
        }
        let result =
            chain.last().and_then(|&k| steps[k].1.kernel.window()).and_then(|p| Some((p.n, p.output().ok()?[0])));
        let Some((n, rows)) = result else { continue };
        if chain.len() > 1 && n * rows >= ROWS_EACH * exec.threads() {
            chains.push(chain);
        }
    }
    chains
}

/// Whether each window meets the image, and each band's padding can be told from its rows.
fn is_regular(p: &Conv2dParams) -> bool {
    let reach = (p.kh - 1) * p.dilations[0] + 1;
    p.pads[0] < reach && p.pads[2] < reach && p.n * p.h * p.w * p.c > 0 && p.output().is_ok()
}

/// Whether a value is a large image that the steps at these positions alone hand each other.
fn is_handed_on(steps: &[(NodeId, Built)], values: &Values, v: ValueId) -> bool {
    let root = (values.root)(v);
    let ty = (values.ty)(v);
    let readers = steps.iter().flat_map(|(_, built)| &built.ins).filter(|&&x| (values.root)(x) == root).count();
    let images = ty.shape.first().copied().unwrap_or(1).max(1);
    root == v && readers == 1 && !(values.is_kept)(v) && ty.bytes() / images > SCRATCH
}

/// The convolution that makes a depthwise one's image, if they can be joined.
fn maker(steps: &[(NodeId, Built)], values: &Values, v: ValueId) -> Option<usize> {
    let made = steps.iter().position(|(_, built)| built.outs.first() == Some(&v))?;
    let p = steps[made].1.kernel.window().filter(|p| p.groups == 1 && is_regular(p))?;
    // Windows of a narrow image are copied at little cost; those of a wide one would be for each band.
    let cheap = (p.kh, p.kw) == (1, 1) || p.c <= 4;
    (cheap && is_handed_on(steps, values, v)).then_some(made)
}

/// The convolution of one pixel that reads a depthwise one's result, if they can be joined.
fn reader(steps: &[(NodeId, Built)], values: &Values, v: ValueId) -> Option<usize> {
    let reads = steps.iter().position(|(_, built)| built.ins.first() == Some(&v))?;
    let p = steps[reads].1.kernel.window().filter(|p| p.groups == 1 && is_regular(p))?;
    ((p.kh, p.kw) == (1, 1) && is_handed_on(steps, values, v)).then_some(reads)
}

/// One convolution of a chain.
struct Stage {
    kernel: Box<dyn Kernel>,
    window: Conv2dParams,
    /// Rows of its result.
    rows: usize,
    /// What its results stand in memory as, and bytes of a row of them.
    dtype: DType,
    row_bytes: usize,
    /// The operand of the step that is added to its results.
    residual: Option<usize>,
}

impl Stage {
    /// The rows of the image that some rows of the result read.
    fn reads(&self, rows: &Range<usize>) -> Range<usize> {
        let p = &self.window;
        let end = (rows.end - 1) * p.strides[0] + (p.kh - 1) * p.dilations[0] + 1;
        (rows.start * p.strides[0]).saturating_sub(p.pads[0])..end.saturating_sub(p.pads[0]).min(p.h)
    }

    /// The convolution of those rows that makes these.
    fn band(&self, rows: &Range<usize>) -> Conv2dParams {
        let (p, read) = (&self.window, self.reads(rows));
        let end = (rows.end - 1) * p.strides[0] + (p.kh - 1) * p.dilations[0] + 1;
        let above = p.pads[0].saturating_sub(rows.start * p.strides[0]);
        let below = end.saturating_sub(p.pads[0] + p.h);
        Conv2dParams { n: 1, h: read.len(), pads: [above, p.pads[1], below, p.pads[3]], ..*p }
    }
}

/// The chain as one kernel.
struct Bands {
    name: String,
    stages: Vec<Stage>,
    /// Rows of the result at a time.
    lines: usize,
    /// Bytes of what stages hand on.
    scratch: [usize; MOST - 1],
    /// What the kernels of a band run on.
    alone: Exec,
}

/// A few rows of an image in scratch, the first one in front.
#[derive(Clone, Default)]
struct Held(Range<usize>);

impl Held {
    /// Moves the rows from `first` on to the front.
    fn forget(&mut self, first: usize, scratch: &mut [u8], row_bytes: usize) {
        if first >= self.0.end {
            self.0 = first..first;
        } else if first > self.0.start {
            let from = (first - self.0.start) * row_bytes;
            scratch.copy_within(from..(self.0.end - self.0.start) * row_bytes, 0);
            self.0.start = first;
        }
    }
}

impl Bands {
    fn build(parts: Vec<Built>, values: &Values, exec: &Exec) -> Built {
        let (mut ins, mut outs, mut stages) = (Vec::new(), Vec::new(), Vec::new());
        let mut names: Vec<String> = Vec::new();
        for (i, part) in parts.into_iter().enumerate() {
            let Some(&window) = part.kernel.window() else { continue };
            if i == 0 {
                ins.extend(part.ins.first());
            }
            let residual = part.ins.get(1).map(|_| ins.len());
            ins.extend(part.ins.get(1));
            let dtype = part.outs.first().map_or(DType::F32, |&v| (values.ty)(v).dtype);
            let [rows, columns] = window.output().unwrap_or_default();
            let row_bytes = dtype.byte_len(columns * window.oc).unwrap_or(0);
            names.push(part.kernel.name().into());
            stages.push(Stage { kernel: part.kernel, window, rows, dtype, row_bytes, residual });
            outs = part.outs;
        }
        let rows = stages.last().map_or(1, |stage| stage.rows);
        let fits = |&lines: &usize| bytes(&stages, lines).iter().sum::<usize>() <= SCRATCH;
        let lines =
            std::iter::successors(Some(rows), |lines| Some(lines / 2)).take_while(|&lines| lines > 1).find(fits);
        let lines = lines.unwrap_or(1);
        let scratch = bytes(&stages, lines);
        let kernel = Bands { name: names.join(" → "), stages, lines, scratch, alone: exec.alone() };
        Built { kernel: Box::new(kernel), ins, outs }
    }

    /// Some rows of one image's result.
    fn part(&self, cx: &Sources, image: usize, rows: Range<usize>, out: &mut [u8]) -> Result<(), StepError> {
        let line = self.stages.last().map_or(0, |stage| stage.row_bytes);
        let [first, second] = self.scratch.map(|bytes| bytes.next_multiple_of(64));
        with_scratch_bytes(first + second, |scratch| {
            let (a, b) = scratch.split_at_mut(first);
            let (mut scratch, mut held) = ([a, b], [Held::default(), Held::default()]);
            for from in rows.clone().step_by(self.lines) {
                let band = from..rows.end.min(from + self.lines);
                let out = &mut out[(from - rows.start) * line..(band.end - rows.start) * line];
                self.band(cx, image, band, (&mut scratch, &mut held), out)?;
            }
            Ok(())
        })
    }

    /// As [`Bands::part`], of a few rows.
    fn band(
        &self,
        cx: &Sources,
        image: usize,
        rows: Range<usize>,
        (scratch, held): (&mut [&mut [u8]; MOST - 1], &mut [Held; MOST - 1]),
        out: &mut [u8],
    ) -> Result<(), StepError> {
        // From the end: which rows each stage still has to make.
        let mut wanted: [Range<usize>; MOST] = std::array::from_fn(|_| 0..0);
        let last = self.stages.len() - 1;
        wanted[last] = rows;
        for i in (0..last).rev() {
            let read = match wanted[i + 1].is_empty() {
                true => held[i].0.end..held[i].0.end,
                false => self.stages[i + 1].reads(&wanted[i + 1]),
            };
            held[i].forget(read.start, scratch[i], self.stages[i].row_bytes);
            wanted[i] = held[i].0.end..read.end;
        }
        for (i, stage) in self.stages.iter().enumerate() {
            let rows = wanted[i].clone();
            if rows.is_empty() {
                continue;
            }
            let (before, here) = scratch.split_at_mut(i);
            let read = stage.reads(&rows);
            let x = match i {
                0 => cx.image.rows(image, stage.window.h, &read),
                _ => {
                    let bytes = self.stages[i - 1].row_bytes;
                    let from = (read.start - held[i - 1].0.start) * bytes;
                    &before[i - 1][from..from + read.len() * bytes]
                }
            };
            let y = match here.first_mut() {
                Some(buffer) if i < last => {
                    let from = (rows.start - held[i].0.start) * stage.row_bytes;
                    held[i].0.end = rows.end;
                    &mut buffer[from..from + rows.len() * stage.row_bytes]
                }
                _ => &mut *out,
            };
            let dtype = if i == 0 { cx.image.0.dtype } else { self.stages[i - 1].dtype };
            let residual = stage.residual.and_then(|at| cx.residuals.get(at)).and_then(|r| r.as_ref());
            let residual = residual.map(|r| (r.0.dtype, r.rows(image, stage.rows, &rows)));
            stage.run(&self.alone, (dtype, x), residual, &rows, y)?;
        }
        Ok(())
    }
}

impl Stage {
    fn run(
        &self,
        exec: &Exec,
        (dtype, x): (DType, &[u8]),
        residual: Option<(DType, &[u8])>,
        rows: &Range<usize>,
        y: &mut [u8],
    ) -> Result<(), StepError> {
        let p = self.band(rows);
        let [_, columns] = p.output()?;
        let (read, made) = ([1, p.c, p.h, p.w], [1, p.oc, rows.len(), columns]);
        let mut cx = RunCx { exec, ins: Few::new(), outs: Few::new() };
        cx.ins.push(Some(View { dtype, shape: &read, bytes: x, channels_last: true }));
        if let Some((dtype, bytes)) = residual {
            cx.ins.push(Some(View { dtype, shape: &made, bytes, channels_last: true }));
        }
        cx.outs.push(ViewMut { dtype: self.dtype, shape: &made, bytes: y });
        self.kernel.run_band(&p, &mut cx)
    }
}

/// Bytes that the stages but the last hand on for so many rows of the result.
fn bytes(stages: &[Stage], lines: usize) -> [usize; MOST - 1] {
    let (mut bytes, mut lines) = ([0; MOST - 1], lines);
    for i in (1..stages.len()).rev() {
        let p = &stages[i].window;
        lines = ((lines - 1) * p.strides[0] + (p.kh - 1) * p.dilations[0] + 1).min(p.h);
        bytes[i - 1] = lines * stages[i - 1].row_bytes;
    }
    bytes
}

/// A view of images, by row.
struct Images<'a>(View<'a>);

impl<'a> Images<'a> {
    /// Rows of one image of `height` rows.
    fn rows(&self, image: usize, height: usize, rows: &Range<usize>) -> &'a [u8] {
        let count = self.0.shape.first().copied().unwrap_or(1) * height;
        let bytes = self.0.bytes.len() / count.max(1);
        &self.0.bytes[(image * height + rows.start) * bytes..(image * height + rows.end) * bytes]
    }
}

/// The operands of a run.
struct Sources<'a> {
    image: Images<'a>,
    /// By position among the operands.
    residuals: Few<Option<Images<'a>>, 4>,
}

impl Kernel for Bands {
    fn name(&self) -> &str {
        &self.name
    }

    fn on_integers(&self) -> bool {
        self.stages.iter().all(|stage| stage.kernel.on_integers())
    }

    fn operands(&self) -> Operands {
        self.stages.first().map_or(Operands::F32, |stage| stage.kernel.operands())
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let residuals = (0..cx.ins.len()).map(|i| cx.ins.get(i).copied().flatten().map(Images)).collect();
        let operands = Sources { image: Images(cx.view(0)?), residuals };
        let Some(last) = self.stages.last() else { return Ok(()) };
        let (n, rows, threads) = (last.window.n, last.rows, cx.exec.threads());
        let out = cx.outs.first_mut().ok_or(OpError::MissingInput(0))?;
        // A part must not span images.
        let each = threads.div_ceil(n).min(rows);
        let failed = Mutex::new(None);
        cx.exec.split_rows([&mut *out.bytes], n * rows, n * each, &|part, [bytes]| {
            let (image, first) = (part.start / rows, part.start % rows);
            if let Err(e) = self.part(&operands, image, first..first + part.len(), bytes) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}
