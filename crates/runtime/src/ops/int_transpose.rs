//! Transposed convolution on integers: where its windows tile the output here, others by phases.

use std::sync::Arc;

use narrowbit_kernels::conv::ConvTranspose2dParams;
use narrowbit_kernels::panel::{Panels, conv_transpose2d_nhwc, conv_transpose2d_nhwc_fits, conv_transpose2d_nhwc_pack};

use super::Maybe;
use super::conv::transposed_params;
use super::finish::{Finish, Loaded, load, rows};
use super::images::window;
use crate::error::StepError;
use crate::fuse::{Fusion, Ints};
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::lower::QParams;

struct Transposed {
    p: ConvTranspose2dParams,
    input: QParams,
    weights: Arc<Panels>,
    finish: Finish,
}

/// The kernel, and those of its epilogue's operands that are known.
pub(super) fn build(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Maybe {
    let (Some(Some(x)), Some(out), Some(w)) = (ints.operands.first(), f.output, cx.node.input(1)) else {
        return Ok(None);
    };
    let shape = |v| (cx.types)(v).map(|t| t.shape);
    let (Some(dims), Some(of_weights), Some(y)) = (shape(x.value), shape(w), cx.node.output(0).and_then(shape)) else {
        return Ok(None);
    };
    let p = window(cx, &dims, &of_weights, &y, true).map(|w| transposed_params(cx, &w, &dims, &of_weights, &y));
    let Some(p) = p.filter(conv_transpose2d_nhwc_fits) else { return super::phases::integers(cx, f, ints) };
    let Some(weights) = cx.int_weights(w, 1) else { return Ok(None) };
    let Some(loaded) = load(cx, &weights, p.oc) else { return Ok(None) };
    let pack = || conv_transpose2d_nhwc_pack(cx.exec, &p, &loaded.data).map_err(StepError::from);
    let packed = cx.weights.get(cx.id, "conv-transpose-i8", pack)?;
    // A column for each place of the window: all of them have the formats of the output channels.
    let places = p.kh * p.kw;
    let each = Loaded { data: Vec::new(), scales: loaded.scales.repeat(places), zeros: loaded.zeros.repeat(places) };
    let mut finish = Finish::new(f, ints, x.params, each, packed.column_sums(), (p.c, 1.0));
    let mut ins = vec![(cx.channels_last)(x.value)];
    finish.at_run_time(*x, &mut ins, packed.column_sums(), p.c);
    if cx.node.input(2).is_some() {
        let Some(bias) = cx.floats(2) else { return Ok(None) };
        finish.add_bias(&bias.repeat(places));
    }
    finish.take_residual(f, ints, &mut ins, cx.channels_last);
    let kernel = Transposed { p, input: x.params, weights: packed, finish };
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![(cx.channels_last)(out)] }))
}

impl Kernel for Transposed {
    fn name(&self) -> &str {
        self.weights.kernel().name
    }

    fn on_integers(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let format = self.finish.format(cx)?;
        let (x, epilogue) = (rows(cx, self.input.dtype)?, self.finish.epilogue(cx, &format)?);
        let (exec, y) = (cx.exec, self.finish.target(cx)?);
        Ok(conv_transpose2d_nhwc(exec, &self.p, x, &self.weights, &epilogue, y)?)
    }
}
