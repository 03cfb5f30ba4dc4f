//! Functions of single 8-bit integers, through a table of 256 entries.

use narrowbit_ir::ValueId;
use narrowbit_kernels::integer;

use crate::collapse::Lookup;
use crate::kernel::{BuildCx, Built, simple};

/// Codes that are a function of other codes, whatever nodes lie between: each byte of the source is looked up, in the
/// layout that it has.
pub fn lookup(cx: &BuildCx, lookup: &Lookup, y: ValueId) -> Built {
    let (table, x) = (lookup.table, lookup.source);
    let kernel = simple("lookup_i8", move |cx| {
        let (exec, x) = (cx.exec, cx.view(0)?.bytes);
        let Some(y) = cx.outs.first_mut() else { return Ok(()) };
        Ok(integer::lookup(exec, x, &table, y.bytes)?)
    });
    let last = cx.is_channels_last(x);
    let place = |v: ValueId| if last { (cx.channels_last)(v) } else { v };
    Built { kernel, ins: vec![place(x)], outs: vec![place(y)] }
}
