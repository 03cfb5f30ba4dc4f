//! Products whose rows are rounded with formats of their own: a few rows at a time, from the sums to the codes. A row's format
//! needs all of it, but no other row: the floats stay in the second cache.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use narrowbit_ir::{NodeId, ValueId};
use narrowbit_kernels::{Exec, Few, with_scratch_bytes};
use narrowbit_tensor::DType;

use crate::bands::{SCRATCH, Steps, Values};
use crate::error::StepError;
use crate::kernel::{Built, Kernel, RunCx};
use crate::session::Operands;
use crate::view::{View, ViewMut};

/// Bytes of floats from which on their way through memory takes longer than weights that are read anew for each few rows.
const LARGE: usize = 4 << 20;
/// The kernel that rounds rows.
const ROUNDING: &str = "dynamic_quantize_rows_u8";

/// Joins products of rows with their rounding where nobody else reads the floats, and these are many. Returns as [`crate::bands::join`].
pub fn join(steps: Steps, values: &Values, exec: &Exec) -> (Steps, Vec<(NodeId, NodeId)>) {
    let (mut kept, mut joined): (Steps, _) = (Vec::with_capacity(steps.len()), Vec::new());
    let readers = |steps: &[(NodeId, Built)], v: ValueId| {
        let root = (values.root)(v);
        steps.iter().flat_map(|(_, built)| &built.ins).filter(|&&x| (values.root)(x) == root).count()
    };
    let alone: Vec<bool> = steps
        .iter()
        .map(|(_, built)| {
            let x = built.ins.first().copied();
            built.kernel.name() == ROUNDING
                && x.is_some_and(|x| {
                    (values.root)(x) == x
                        && !(values.is_kept)(x)
                        && readers(&steps, x) == 1
                        && (values.ty)(x).bytes() > LARGE
                })
        })
        .collect();
    for ((node, built), alone) in steps.into_iter().zip(alone) {
        let x = built.ins.first().copied();
        // The product is where it was made: what it reads is there, too.
        let maker = kept.iter().position(|(_, made)| alone && made.outs.first().copied() == x && made.outs.len() == 1);
        let each = maker.and_then(|i| rows_at_once(&kept[i].1, &built, values));
        let (Some(i), Some(each)) = (maker, each) else {
            kept.push((node, built));
            continue;
        };
        let (first, made) = kept.remove(i);
        joined.push((first, node));
        kept.push((first, RoundedRows::build(made, built, each, exec)));
    }
    (kept, joined)
}

/// The rows that a product and a rounding take at a time, if they can go together.
fn rows_at_once(made: &Built, rounding: &Built, values: &Values) -> Option<usize> {
    let ((rows, each), (same, _)) = (made.kernel.rows()?, rounding.kernel.rows()?);
    let floats = (values.ty)(*made.outs.first()?);
    let fits = rows == same && rows > each && floats.dtype == DType::F32 && floats.bytes() / rows * each <= SCRATCH;
    fits.then_some(each)
}

struct RoundedRows {
    name: String,
    product: Box<dyn Kernel>,
    rounding: Box<dyn Kernel>,
    rows: usize,
    /// Rows at a time.
    each: usize,
    /// What the kernels of a few rows run on.
    alone: Exec,
}

impl RoundedRows {
    fn build(made: Built, rounding: Built, each: usize, exec: &Exec) -> Built {
        let name = format!("{} → {}", made.kernel.name(), rounding.kernel.name());
        let rows = made.kernel.rows().map_or(1, |(rows, _)| rows);
        let (product, rounding, outs) = (made.kernel, rounding.kernel, rounding.outs);
        let kernel = RoundedRows { name, product, rounding, rows, each, alone: exec.alone() };
        Built { kernel: Box::new(kernel), ins: made.ins, outs }
    }

    /// Some of the rows, whose results are these bytes.
    fn few(&self, cx: &Sources, rows: Range<usize>, [y, scale, zero]: [&mut [u8]; 3]) -> Result<(), StepError> {
        let (all, columns) = (rows.len(), y.len() / rows.len().max(1));
        with_scratch_bytes(self.each * columns * size_of::<f32>(), |scratch| {
            for from in (0..all).step_by(self.each) {
                let to = all.min(from + self.each);
                let (count, part) = (to - from, rows.start + from..rows.start + to);
                let floats = &mut scratch[..count * columns * size_of::<f32>()];
                let (shape, formats) = ([count, columns], [count, 1]);
                let mut run = RunCx { exec: &self.alone, ins: Few::new(), outs: Few::new() };
                for x in cx.0.iter() {
                    run.ins.push(x.as_ref().map(|x| self.rows_of(x, &part)));
                }
                run.outs.push(ViewMut { dtype: DType::F32, shape: &shape, bytes: floats });
                self.product.run_rows(count, &mut run)?;
                let mut run = RunCx { exec: &self.alone, ins: Few::new(), outs: Few::new() };
                run.ins.push(Some(View { dtype: DType::F32, shape: &shape, bytes: floats, channels_last: false }));
                let y = &mut y[from * columns..to * columns];
                run.outs.push(ViewMut { dtype: DType::U8, shape: &shape, bytes: y });
                let scale = &mut scale[from * size_of::<f32>()..to * size_of::<f32>()];
                run.outs.push(ViewMut { dtype: DType::F32, shape: &formats, bytes: scale });
                run.outs.push(ViewMut { dtype: DType::U8, shape: &formats, bytes: &mut zero[from..to] });
                self.rounding.run_rows(count, &mut run)?;
            }
            Ok(())
        })
    }

    /// Some rows of an operand, or what is the same for all.
    fn rows_of<'a>(&self, x: &View<'a>, rows: &Range<usize>) -> View<'a> {
        let mut outer = x.shape.iter().scan(1, |count, &extent| {
            *count *= extent;
            Some(*count)
        });
        if !outer.any(|count| count == self.rows) {
            return *x;
        }
        let bytes = x.bytes.len() / self.rows;
        View { bytes: &x.bytes[rows.start * bytes..rows.end * bytes], ..*x }
    }
}

/// The operands of a run.
struct Sources<'a>(Few<Option<View<'a>>, 8>);

impl Kernel for RoundedRows {
    fn name(&self) -> &str {
        &self.name
    }

    fn on_integers(&self) -> bool {
        self.product.on_integers()
    }

    fn operands(&self) -> Operands {
        self.product.operands()
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let sources = Sources((0..cx.ins.len()).map(|i| cx.ins.get(i).copied().flatten()).collect());
        let [y, scale, zero] = cx.outs.as_mut_slice() else { return Ok(()) };
        let parts = self.rows.div_ceil(self.each).min(4 * cx.exec.threads());
        let failed = Mutex::new(None);
        let outs = [&mut *y.bytes, &mut *scale.bytes, &mut *zero.bytes];
        cx.exec.split_rows(outs, self.rows, parts, &|rows, outs| {
            if let Err(e) = self.few(&sources, rows, outs) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}
