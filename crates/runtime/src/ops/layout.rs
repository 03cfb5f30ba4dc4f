//! Moving the channels of a value between the second and the last axis.

use narrowbit_kernels::integer::{to_nchw, to_nhwc};
use narrowbit_kernels::movement::Element;

use crate::error::StepError;
use crate::kernel::{Concrete, Kernel, RunCx, simple};

/// The name of the kernel that changes the layout of a value.
pub const LAYOUT_CHANGE: &str = "change_layout";

/// The kernel that moves channels last, or back to the second axis, in a value of rank 3 or more.
pub fn change_layout(ty: &Concrete, last: bool) -> Box<dyn Kernel> {
    let (n, c) = (ty.shape[0], ty.shape[1]);
    let pixels: usize = ty.shape[2..].iter().product();
    let dims = [n, c, pixels];
    let bits = ty.dtype.bits();
    simple(LAYOUT_CHANGE, move |cx| match bits {
        8 => run::<u8>(cx, dims, last),
        16 => run::<u16>(cx, dims, last),
        32 => run::<u32>(cx, dims, last),
        _ => run::<u64>(cx, dims, last),
    })
}

fn run<T: Element + bytemuck::Pod>(cx: &mut RunCx, dims: [usize; 3], last: bool) -> Result<(), StepError> {
    let (exec, x) = (cx.exec, cx.view(0)?.bytes);
    let Some(y) = cx.outs.first_mut() else { return Ok(()) };
    let y = bytemuck::cast_slice_mut(y.bytes);
    let change = if last { to_nhwc::<T> } else { to_nchw::<T> };
    Ok(change(exec, bytemuck::cast_slice(x), dims, y)?)
}
