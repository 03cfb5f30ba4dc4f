//! GridSample of floats over one to three axes: the operator says which elements a place mixes, vectors run over the channels.

use std::sync::Arc;

use narrowbit_ir::Op;
use narrowbit_kernels::movement::{Tap, mix_pixels};
use narrowbit_ops::tensor::grid_sample::{GridSample, Places};
use narrowbit_tensor::DType;

use super::Maybe;
use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};

/// Places whose elements are found at a time.
const BLOCK: usize = 64;
/// Elements times taps of a task at the least.
const GRAIN: usize = 1 << 15;

struct Sample {
    op: Arc<dyn Op>,
    channels: usize,
    /// Extents of the image, and places of the grid, of each batch entry.
    space: Vec<usize>,
    places: usize,
}

/// The kernel of a GridSample.
pub fn build(cx: &BuildCx) -> Maybe {
    let (Some(x), Some(grid), Some(y)) = (cx.node.input(0), cx.node.input(1), cx.node.output(0)) else {
        return Ok(None);
    };
    let (Some(dims), Some(of_grid), Some(out)) = (cx.f32_shape(0), cx.f32_shape(1), cx.f32_out()) else {
        return Ok(None);
    };
    let Some(op) = cx.node.op.downcast::<GridSample>() else { return Ok(None) };
    let pixels = dims.get(2..).map_or(0, |space| space.iter().product::<usize>());
    let known = !dims.contains(&0) && !out.contains(&0) && u32::try_from(pixels).is_ok();
    let fits = (3..=5).contains(&dims.len()) && op.fits(&dims, &of_grid);
    if !known || !fits {
        return Ok(None);
    }
    let places = out[2..].iter().product();
    let kernel = Sample { op: cx.node.op.clone(), channels: dims[1], space: dims[2..].to_vec(), places };
    let (ins, outs) = (vec![(cx.channels_last)(x), grid], vec![(cx.channels_last)(y)]);
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs }))
}

impl Kernel for Sample {
    fn name(&self) -> &str {
        "grid_sample_f32"
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let missing = || narrowbit_ir::OpError::MissingInput(0);
        let op = self.op.downcast::<GridSample>().ok_or_else(missing)?;
        let (exec, x, grid) = (cx.exec, cx.f32s(0)?, cx.f32s(1)?);
        debug_assert_eq!(cx.view(0)?.dtype, DType::F32);
        let y: &mut [u8] = cx.outs.first_mut().ok_or_else(missing)?.bytes;
        let (c, places, axes) = (self.channels, self.places, self.space.len());
        let pixels: usize = self.space.iter().product();
        let finder = Places::new(op, &self.space);
        let each = finder.taps();
        let rows = grid.len() / axes;
        let parts = (rows * c * each / GRAIN).clamp(1, if exec.threads() == 1 { 1 } else { 4 * exec.threads() });
        let failed = std::sync::Mutex::new(None);
        exec.split_rows([y], rows, parts, &|range, [y]| {
            let (y, mut taps): (&mut [f32], _) = (bytemuck::cast_slice_mut(y), [Tap::default(); BLOCK * MOST_TAPS]);
            let mut at = range.start;
            while at < range.end {
                // A block lies in one batch entry.
                let (batch, end) = (at / places, range.end.min((at / places + 1) * places).min(at + BLOCK));
                let count = end - at;
                let (taps, image) = (&mut taps[..count * each], &x[batch * pixels * c..][..pixels * c]);
                for (place, taps) in grid[at * axes..end * axes].chunks_exact(axes).zip(taps.chunks_exact_mut(each)) {
                    finder.find(place, |i, pixel, weight| taps[i] = Tap { pixel: pixel as u32, weight: weight as f32 });
                }
                let y = &mut y[(at - range.start) * c..][..count * c];
                if let Err(e) = mix_pixels(exec, c, image, taps, each, y) {
                    *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
                    return;
                }
                at = end;
            }
        });
        let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failed.map_or(Ok(()), |e| Err(e.into()))
    }
}

/// Taps of a place at the most: of two axes of four neighbours.
const MOST_TAPS: usize = 16;
