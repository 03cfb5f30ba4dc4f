//! Normalisations and softmax of floats.

use narrowbit_kernels::Activation;
use narrowbit_kernels::reduce::{
    LayerNorm, LayerNormOutputs, batch_norm, group_norm, layer_norm, log_softmax, rms_norm, softmax,
};
use narrowbit_ops::math::softmax::Softmax;
use narrowbit_tensor::shape;

use super::Maybe;
use crate::kernel::{BuildCx, Built, simple};

/// The kernel of a normalisation.
pub fn build(cx: &BuildCx) -> Maybe {
    let extra = cx.node.outputs.iter().skip(1).flatten().count() > 0;
    if cx.f32_out().is_none() || extra || cx.f32_shape(0) != cx.f32_out() {
        return Ok(None);
    }
    Ok(match cx.node.op.name() {
        "LayerNormalization" => layer(cx, true),
        "RMSNormalization" => layer(cx, false),
        "InstanceNormalization" => group(cx, None),
        "GroupNormalization" => group(cx, Some(cx.int("num_groups", 1))),
        "BatchNormalization" => batch(cx),
        name => soft(cx, name == "LogSoftmax"),
    })
}

fn layer(cx: &BuildCx, centred: bool) -> Option<Built> {
    let (x, y, dims) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?);
    let axis = shape::axis(cx.int("axis", -1), dims.len())?;
    let columns: usize = dims[axis..].iter().product();
    let rows: usize = dims[..axis].iter().product();
    let scale = cx.floats(1).filter(|s| s.len() == columns)?;
    let bias = match cx.node.input(2) {
        None => None,
        Some(_) => Some(cx.floats(2).filter(|b| b.len() == columns)?),
    };
    let epsilon = cx.float("epsilon", 1e-5);
    let name = if centred { "layer_norm_f32" } else { "rms_norm_f32" };
    let kernel = simple(name, move |cx| {
        let params = LayerNorm { scale: Some(&scale), bias: bias.as_deref(), epsilon, ..LayerNorm::default() };
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        let norm = if centred { layer_norm } else { rms_norm };
        Ok(norm(exec, x, cx.out_f32s()?, [rows, columns], &params, LayerNormOutputs::default())?)
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}

fn group(cx: &BuildCx, groups: Option<i64>) -> Option<Built> {
    let (x, y, dims) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?);
    let (&[n, c], inner) = (dims.get(..2)?, dims[2..].iter().product()) else { return None };
    let groups = groups.map_or(Some(c), |g| usize::try_from(g).ok())?;
    // Before opset 21 GroupNormalization has one scale per group: the reference handles that.
    let (scale, bias) = (cx.floats(1).filter(|s| s.len() == c)?, cx.floats(2).filter(|b| b.len() == c)?);
    let epsilon = cx.float("epsilon", 1e-5);
    let kernel = simple("group_norm_f32", move |cx| {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        Ok(group_norm(exec, x, cx.out_f32s()?, [n, c, inner], groups, (&scale, &bias), epsilon)?)
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}

/// What a BatchNormalization does in evaluation.
pub(super) struct Affine {
    /// `[outer, channels, inner]` as the kernels take it, in the layout of the operand.
    pub shape: [usize; 3],
    /// By channel.
    pub scale: Vec<f32>,
    /// By channel.
    pub shift: Vec<f32>,
}

/// The factors and offsets of a BatchNormalization, for an operand whose channels are last or in their place.
pub(super) fn affine(cx: &BuildCx, channels_last: bool) -> Option<Affine> {
    let dims = cx.f32_shape(0)?;
    let (&[n, c], inner) = (dims.get(..2)?, dims[2..].iter().product::<usize>()) else { return None };
    let vectors: Option<Vec<Vec<f32>>> = (1..5).map(|i| cx.floats(i).filter(|v| v.len() == c)).collect();
    let [gamma, beta, mean, var] = <[Vec<f32>; 4]>::try_from(vectors?).ok()?;
    let epsilon = cx.float("epsilon", 1e-5);
    if cx.int("training_mode", 0) != 0 {
        return None;
    }
    let scale: Vec<f32> = gamma.iter().zip(&var).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    let shift = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
    let shape = if channels_last { [n.checked_mul(inner)?, c, 1] } else { [n, c, inner] };
    Some(Affine { shape, scale, shift })
}

fn batch(cx: &BuildCx) -> Option<Built> {
    let (x, y) = (cx.node.input(0)?, cx.node.output(0)?);
    let last = cx.is_channels_last(x);
    let Affine { shape, scale, shift } = affine(cx, last)?;
    let kernel = simple("batch_norm_f32", move |cx| {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        Ok(batch_norm(exec, x, cx.out_f32s()?, shape, (&scale, &shift), Activation::None)?)
    });
    let place = |v| if last { (cx.channels_last)(v) } else { v };
    Some(Built { kernel, ins: vec![place(x)], outs: vec![place(y)] })
}

fn soft(cx: &BuildCx, log: bool) -> Option<Built> {
    let (x, y, dims) = (cx.node.input(0)?, cx.node.output(0)?, cx.f32_shape(0)?);
    let split = lines(cx, &dims)?;
    let kernel = simple(if log { "log_softmax_f32" } else { "softmax_f32" }, move |cx| {
        let (exec, x) = (cx.exec, cx.f32s(0)?);
        match log {
            true => log_softmax(exec, x, cx.out_f32s()?, split)?,
            false => softmax(exec, x, cx.out_f32s()?, split, false)?,
        }
        Ok(())
    });
    Some(Built { kernel, ins: vec![x], outs: vec![y] })
}

/// How a Softmax sees an input of `dims`: `[outer, length, inner]`. Before opset 13 all axes from its axis on are one.
pub(super) fn lines(cx: &BuildCx, dims: &[usize]) -> Option<[usize; 3]> {
    let lines = cx.node.op.downcast::<Softmax>()?.lines(dims).ok()?;
    (lines.iter().product::<usize>() == dims.iter().product()).then_some(lines)
}
