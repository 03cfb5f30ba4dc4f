//! Transposed convolutions whose windows overlap: for each phase of the results an ordinary convolution with stride 1, on integers
//! or on floats, whose results then go to their places.

use std::sync::Arc;

use narrowbit_kernels::conv::{Conv2dParams, Conv3dParams, TransposedAxis, phase_weights};
use narrowbit_kernels::integer::{DepthwiseWeights, depthwise_nhwc, depthwise_nhwc_pack};
use narrowbit_kernels::movement::{Interleave, interleave, pick_interleaved};
use narrowbit_kernels::panel::{
    Epilogue, Panels, Residual, Rows, Target, conv2d_nhwc_fits, conv2d_nhwc_pack, conv2d_nhwc_pack_bf16,
    conv2d_nhwc_pixels,
};
use narrowbit_kernels::{Activation, Exec, KernelError, with_scratch_bytes};

use super::Maybe;
use super::finish::{Finish, Loaded, load, rows};
use super::images::{Along, axes, pixels};
use crate::error::StepError;
use crate::fuse::{Fusion, Ints};
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::lower::{MOST_PHASES, QParams};
use crate::view::ViewMut;
use crate::weights::Form;

/// A phase of a transposed convolution: an ordinary one, and where its results stand.
pub(super) struct Phase {
    /// Of images, or of the planes of volumes.
    pub p: Conv2dParams,
    pub volumes: Option<Conv3dParams>,
    /// With pixels of one byte for each channel.
    pub at: Interleave,
    /// The number among the phases of all axes.
    index: usize,
    /// By axis.
    taps: Vec<Vec<Option<usize>>>,
    /// Of the whole window.
    window: Vec<usize>,
    /// Cut at the start of each axis.
    pads: [usize; 3],
}

impl Phase {
    /// The phases of a ConvTranspose of `x` `[n, c, …]` and weights `w` to `y`, over one to three axes; `None` for others.
    pub fn all(cx: &BuildCx, x: &[usize], w: &[usize], y: &[usize]) -> Option<Vec<Phase>> {
        if x.contains(&0) || w.contains(&0) || y.contains(&0) {
            return None;
        }
        let mut along = axes(cx, x, w, y, true).filter(|a| (1..=3).contains(&a.len()))?;
        let missing = 3 - along.len();
        along.splice(0..0, std::iter::repeat_n(Along::ONE, missing));
        let ones = [1; 3];
        let extents = |s: &[usize]| [&ones[..missing], &s[2..]].concat();
        let (from, to) = (extents(x), extents(y));
        let groups = cx.int("group", 1).max(1) as usize;
        let oc = w[1].checked_mul(groups)?;
        let of_axis = |i: usize| {
            let Along { kernel: window, stride, dilation, pads } = along[i];
            TransposedAxis { len: from[i], window, stride, dilation, pad: pads[0], out: to[i] }.phases().ok()
        };
        let [deep, down, across] = [of_axis(0)?, of_axis(1)?, of_axis(2)?];
        let count = deep.len().checked_mul(down.len())?.checked_mul(across.len())?;
        if count > MOST_PHASES {
            return None;
        }
        let mut phases = Vec::with_capacity(count);
        for (a, b, c) in deep
            .iter()
            .flat_map(|a| down.iter().map(move |b| (a, b)))
            .flat_map(|(a, b)| across.iter().map(move |c| (a, b, c)))
        {
            let slice = Conv2dParams {
                n: x[0],
                c: x[1],
                h: from[1],
                w: from[2],
                oc,
                kh: b.taps.len(),
                kw: c.taps.len(),
                strides: [1, 1],
                pads: [b.pads[0], c.pads[0], b.pads[1], c.pads[1]],
                dilations: [b.dilation, c.dilation],
                groups,
            };
            let whole =
                Conv3dParams { slice, d: from[0], kd: a.taps.len(), stride: 1, pads: a.pads, dilation: a.dilation };
            let volumes = (missing == 0).then_some(whole);
            let at = Interleave {
                n: x[0],
                made: [a.made, b.made, c.made],
                counts: [a.count, b.count, c.count],
                first: [a.first, b.first, c.first],
                steps: [along[0].stride, along[1].stride, along[2].stride],
                out: [to[0], to[1], to[2]],
                bytes: oc,
            };
            // Nothing but the strides and what is cut at the start says which phase that is, whatever the extents.
            let index = (a.first * along[1].stride + b.first) * along[2].stride + c.first;
            let p = if missing == 0 { whole.planes().ok()? } else { slice };
            let fits =
                if missing == 0 { whole.output().ok()? == at.made } else { slice.output().ok()? == at.made[1..] };
            let taps = [a, b, c].map(|p| p.taps.clone());
            let (window, pads) = (along.iter().map(|a| a.kernel).collect(), [0, 1, 2].map(|i| along[i].pads[0]));
            phases.push(Phase { p, volumes, at, index, taps: taps.to_vec(), window, pads });
            fits.then_some(())?;
        }
        Some(phases)
    }

    /// Whether volumes are images as they stand in memory, plane by plane, and each channel has its own window.
    pub fn is_depthwise(&self) -> bool {
        let p = &self.p;
        let in_place = self.volumes.is_none_or(|v| (v.kd, v.pads) == (1, [0; 2]));
        in_place && p.groups > 1 && p.groups == p.c && p.oc == p.c
    }

    /// The weights of its convolution, of those of the operator; `none` is what counts as none for an output channel.
    pub fn weights<T: Copy>(&self, w: &[T], none: impl Fn(usize) -> T) -> Result<Vec<T>, KernelError> {
        let slice = self.volumes.map_or(self.p, |v| v.slice);
        let taps: Vec<&[Option<usize>]> = self.taps.iter().map(Vec::as_slice).collect();
        let cut = phase_weights(w, [slice.c, slice.oc, slice.groups], &self.window, &taps, &none)?;
        match self.volumes {
            Some(v) => Ok(v.by_plane(&cut, &(0..v.kd), none)?.into_owned()),
            None => Ok(cut),
        }
    }

    /// What the packed weights are known by.
    pub fn form(&self, name: &'static str) -> Form {
        Form::of_phase(name, self.index, self.pads)
    }
}

/// Packed weights of a phase.
#[derive(Clone)]
enum Packed {
    Panels(Arc<Panels>),
    Depthwise(Arc<DepthwiseWeights>),
}

impl Packed {
    fn column_sums(&self) -> &[i32] {
        match self {
            Packed::Panels(w) => w.column_sums(),
            Packed::Depthwise(w) => w.column_sums(),
        }
    }

    fn name(&self, depthwise: &'static str) -> &str {
        match self {
            Packed::Panels(w) => w.kernel().name,
            Packed::Depthwise(_) => depthwise,
        }
    }

    fn run(
        &self,
        exec: &Exec,
        phase: &Phase,
        x: Rows<'_>,
        zero: i32,
        epilogue: &Epilogue<'_>,
        y: Target<'_>,
    ) -> Result<(), KernelError> {
        let parts = [x];
        match self {
            Packed::Panels(w) => {
                conv2d_nhwc_pixels(exec, &phase.p, pixels(&parts, phase.volumes.as_ref()), zero, w, epilogue, y)
            }
            Packed::Depthwise(w) => depthwise_nhwc(exec, &phase.p, x, zero, w, epilogue, y),
        }
    }
}

/// Calls `conv` for each phase with the memory of its results and what its residual is, of the whole `residual`, and copies the
/// results to their places in `y`. A pixel has `bytes` bytes in `y` and in the residual.
fn run_phases<'p>(
    exec: &Exec,
    phases: impl Iterator<Item = &'p Phase>,
    (y, bytes): (&mut [u8], usize),
    (residual, residual_bytes): (Option<&[u8]>, usize),
    mut conv: impl FnMut(usize, &mut [u8], &[u8]) -> Result<(), StepError>,
) -> Result<(), StepError> {
    for (i, phase) in phases.enumerate() {
        let made = Interleave { bytes, ..phase.at };
        let added = Interleave { bytes: if residual.is_some() { residual_bytes } else { 0 }, ..phase.at };
        let (len, beside) = (made.part_len()?, added.part_len()?);
        // Both are aligned for floats.
        let start = len.next_multiple_of(64);
        with_scratch_bytes(start + beside, |scratch| {
            let (part, other) = scratch.split_at_mut(start);
            if let Some(residual) = residual {
                pick_interleaved(exec, &added, residual, other)?;
            }
            conv(i, &mut part[..len], other)?;
            Ok::<(), StepError>(interleave(exec, &made, &part[..len], y)?)
        })?;
    }
    Ok(())
}

/// The phases of a node's convolution of images in memory with their channels last; `None` where there are none, or they would
/// take too much.
fn phases(cx: &BuildCx, x: &[usize], size: usize) -> Option<Vec<Phase>> {
    let shape = |v| (cx.types)(v).map(|t| t.shape);
    let (w, y) = (cx.node.input(1).and_then(shape)?, cx.node.output(0).and_then(shape)?);
    Phase::all(cx, x, &w, &y).filter(|all| all.iter().all(|phase| conv2d_nhwc_fits(&phase.p, size)))
}

struct OnIntegers {
    input: QParams,
    phases: Vec<(Phase, Packed, Finish)>,
    channels: usize,
}

/// The kernel on integers, with the operands of its epilogue.
pub(super) fn integers(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Maybe {
    let (Some(Some(x)), Some(out), Some(w)) = (ints.operands.first(), f.output, cx.node.input(1)) else {
        return Ok(None);
    };
    let Some(dims) = (cx.types)(x.value).map(|t| t.shape) else { return Ok(None) };
    let Some(phases) = phases(cx, &dims, 1) else { return Ok(None) };
    let Some(weights) = cx.int_weights(w, 1) else { return Ok(None) };
    let channels = phases.first().map_or(0, |phase| phase.p.oc);
    let Some(loaded) = load(cx, &weights, channels) else { return Ok(None) };
    let (mut all, mut operands) = (Vec::with_capacity(phases.len()), Vec::new());
    for phase in phases {
        // The zero point, with which a product is 0; it fits, as it did before it was moved with its codes.
        let none = |channel: usize| loaded.zeros.get(channel).map_or(0, |&zero| zero as i8);
        let mut zeros = loaded.zeros.clone();
        let (p, exec) = (&phase.p, cx.exec);
        let packed = if phase.is_depthwise() {
            let pack =
                || Ok::<_, StepError>(depthwise_nhwc_pack(exec, p, &phase.weights(&loaded.data, none)?, &zeros)?);
            let packed = cx.weights.get(cx.id, phase.form("phase-depthwise-i8"), pack)?;
            // They were taken off when the weights were packed.
            zeros.clear();
            Packed::Depthwise(packed)
        } else {
            let pack = || Ok::<_, StepError>(conv2d_nhwc_pack(exec, p, &phase.weights(&loaded.data, none)?)?);
            Packed::Panels(cx.weights.get(cx.id, phase.form("phase-i8"), pack)?)
        };
        let (depth, sums) = (p.c / p.groups * p.kh * p.kw, packed.column_sums());
        let each = Loaded { data: Vec::new(), scales: loaded.scales.clone(), zeros };
        let mut finish = Finish::new(f, ints, x.params, each, sums, (depth, 1.0));
        let mut ins = vec![(cx.channels_last)(x.value)];
        finish.at_run_time(*x, &mut ins, sums, depth);
        let Some(()) = finish.take_rest(cx, (f, ints), &mut ins, channels) else { return Ok(None) };
        all.push((phase, packed, finish));
        operands = ins;
    }
    let kernel = OnIntegers { input: x.params, phases: all, channels };
    Ok(Some(Built { kernel: Box::new(kernel), ins: operands, outs: vec![(cx.channels_last)(out)] }))
}

/// The first output, which the kernel keeps.
fn take_output<'a>(cx: &mut RunCx<'a>) -> Result<ViewMut<'a>, StepError> {
    let missing = narrowbit_ir::OpError::MissingInput(0);
    Ok(std::mem::take(cx.outs.first_mut().ok_or(missing)?))
}

/// The residual of a phase, in the format of the whole.
fn of_phase<'a>(whole: Residual<'a>, part: &'a [u8]) -> Residual<'a> {
    match whole {
        Residual::F32(_) => Residual::F32(bytemuck::cast_slice(part)),
        Residual::Bf16(_) => Residual::Bf16(bytemuck::cast_slice(part)),
        Residual::U8(_, scale, zero) => Residual::U8(part, scale, zero),
        Residual::I8(_, scale, zero) => Residual::I8(bytemuck::cast_slice(part), scale, zero),
        Residual::None | Residual::Row(..) => whole,
    }
}

/// The bytes of a residual of the result's shape, and those of an element.
fn bytes_of<'a>(residual: &Residual<'a>) -> (Option<&'a [u8]>, usize) {
    match *residual {
        Residual::F32(x) => (Some(bytemuck::cast_slice(x)), 4),
        Residual::Bf16(x) => (Some(bytemuck::cast_slice(x)), 2),
        Residual::U8(x, ..) => (Some(x), 1),
        Residual::I8(x, ..) => (Some(bytemuck::cast_slice(x)), 1),
        Residual::None | Residual::Row(..) => (None, 0),
    }
}

impl Kernel for OnIntegers {
    fn name(&self) -> &str {
        self.phases.first().map_or("", |(_, w, _)| w.name("depthwise_nhwc_i8"))
    }

    fn on_integers(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let y = take_output(cx)?;
        let (exec, cx, x) = (cx.exec, &*cx, rows(cx, self.input.dtype)?);
        let Some((_, _, finish)) = self.phases.first() else { return Ok(()) };
        let format = finish.format(cx)?;
        let (residual, size) = bytes_of(&finish.epilogue(cx, &format)?.residual);
        let pixel = y.dtype.bits() / 8 * self.channels;
        let phases = self.phases.iter().map(|(phase, ..)| phase);
        run_phases(exec, phases, (y.bytes, pixel), (residual, size * self.channels), |i, part, added| {
            let (phase, packed, finish) = &self.phases[i];
            let format = finish.format(cx)?;
            let epilogue = finish.epilogue(cx, &format)?;
            let epilogue = Epilogue { residual: of_phase(epilogue.residual, added), ..epilogue };
            let zero = format.as_ref().map_or(self.input.zero, |f| f.zero);
            Ok(packed.run(exec, phase, x, zero, &epilogue, finish.target_of(part))?)
        })
    }
}

struct OnFloats {
    phases: Vec<(Phase, Packed)>,
    bias: Vec<f32>,
    activation: Activation,
    channels: usize,
}

/// Output channels of a group below which most of a panel would be empty.
const NARROW: usize = 8;

/// The kernel on floats; `None` where the product of the whole window is the better one.
pub(super) fn floats(cx: &BuildCx, f: &Fusion) -> Maybe {
    let (Some(x), Some(dims), Some(out)) = (cx.node.input(0), cx.f32_shape(0), f.output) else { return Ok(None) };
    let Some(phases) = phases(cx, &dims, 4).filter(|_| f.residual.is_none()) else { return Ok(None) };
    let Some(first) = phases.first() else { return Ok(None) };
    let channels = first.p.oc;
    // Volumes have no other kernel.
    let narrow = channels / first.p.groups < NARROW && !first.is_depthwise() && first.volumes.is_none();
    if narrow {
        return Ok(None);
    }
    let mut all = Vec::with_capacity(phases.len());
    for phase in phases {
        let (p, exec) = (&phase.p, cx.exec);
        let packed = if phase.is_depthwise() {
            let pack = |w: &[f32]| depthwise_nhwc_pack(exec, p, &phase.weights(w, |_| 0.0)?, &[]);
            Packed::Depthwise(cx.packed(phase.form("phase-depthwise"), pack)?)
        } else {
            let pack = if exec.bf16() { conv2d_nhwc_pack_bf16 } else { conv2d_nhwc_pack::<f32> };
            Packed::Panels(cx.packed(phase.form("phase"), |w| pack(exec, p, &phase.weights(w, |_| 0.0)?))?)
        };
        all.push((phase, packed));
    }
    let bias = cx.floats(2).unwrap_or_default();
    let kernel = OnFloats { phases: all, bias, activation: f.activation, channels };
    let (ins, outs) = (vec![(cx.channels_last)(x)], vec![(cx.channels_last)(out)]);
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs }))
}

impl Kernel for OnFloats {
    fn name(&self) -> &str {
        self.phases.first().map_or("", |(_, w)| w.name("depthwise_nhwc_f32"))
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let (exec, x, y) = (cx.exec, Rows::F32(cx.f32s(0)?), take_output(cx)?);
        let epilogue = Epilogue { bias: &self.bias, activation: self.activation, ..Epilogue::default() };
        let phases = self.phases.iter().map(|(phase, _)| phase);
        run_phases(exec, phases, (y.bytes, 4 * self.channels), (None, 0), |i, part, _| {
            let (phase, packed) = &self.phases[i];
            let y = Target::F32(bytemuck::cast_slice_mut(part));
            Ok(packed.run(exec, phase, x, 0, &epilogue, y)?)
        })
    }
}
