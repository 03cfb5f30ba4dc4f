//! Products of rows with a constant stack of matrices, `[…, k, n]`: the experts of a mixture, say. Each matrix is packed by
//! itself.

use std::sync::Arc;

use narrowbit_kernels::gemm::BatchDim;
use narrowbit_kernels::panel::{Epilogue, Panels, Residual, Rows, Target, panel_gemm, panel_gemm_pack};
use narrowbit_kernels::{Exec, Few, KernelError};

use super::Maybe;
use super::finish::{Finish, Loaded, load, rows};
use super::integer::finish_product;
use crate::error::StepError;
use crate::fuse::{Fusion, Ints};
use crate::kernel::{BuildCx, Built, Kernel, RunCx};
use crate::lower::{self, QParams};

/// Matrices beyond which a stack is not packed: panels of very small ones are mostly padding.
const MOST: usize = 1024;

/// How the products of a stack lie in their operands.
pub(super) struct Stack {
    /// Rows, depth and columns of each.
    pub shape: [usize; 3],
    batch: Vec<BatchDim>,
}

impl Stack {
    /// The products of `a` `[…, m, k]` with `matrices` matrices `[…, k, n]`, whose shapes give `shape` and `batch`; `None` where
    /// there is nothing to multiply, or too many of them.
    pub fn new(shape: [usize; 3], batch: &[BatchDim], matrices: usize) -> Option<Stack> {
        let fits = !shape.contains(&0) && (1..=MOST).contains(&matrices) && batch.iter().all(|dim| dim.len > 0);
        fits.then(|| Stack { shape, batch: batch.to_vec() })
    }

    /// For each product: where its rows start, its matrix, and where its results start.
    fn products(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let [_, k, n] = self.shape;
        let count: usize = self.batch.iter().map(|dim| dim.len).product();
        (0..count).map(move |mut index| {
            let (mut a, mut b, mut c) = (0, 0, 0);
            for dim in self.batch.iter().rev() {
                let i = index % dim.len;
                (a, b, c) = (a + i * dim.a, b + i * dim.b, c + i * dim.c);
                index /= dim.len;
            }
            (a, b / (k * n), c)
        })
    }

    /// Computes `y`, product after product; `epilogue` is that of all results.
    pub fn run<'a>(
        &self,
        exec: &Exec,
        x: Rows<'_>,
        matrix: impl Fn(usize) -> Option<(&'a Panels, Epilogue<'a>)>,
        mut y: Target<'_>,
    ) -> Result<(), StepError> {
        let [m, k, n] = self.shape;
        let short = || KernelError::Invalid { kernel: "stack", what: "an operand is too short" };
        for (a, b, c) in self.products() {
            let (weights, mut epilogue) = matrix(b).ok_or_else(short)?;
            epilogue.residual = part_of(epilogue.residual, c, m * n).ok_or_else(short)?;
            let x = rows_of(x, a, m * k).ok_or_else(short)?;
            let y = target_of(&mut y, c, m * n).ok_or_else(short)?;
            panel_gemm(exec, x, (m, k, k), weights, &epilogue, y)?;
        }
        Ok(())
    }
}

fn rows_of(x: Rows<'_>, at: usize, len: usize) -> Option<Rows<'_>> {
    let end = at.checked_add(len)?;
    Some(match x {
        Rows::U8(x) => Rows::U8(x.get(at..end)?),
        Rows::I8(x) => Rows::I8(x.get(at..end)?),
        Rows::F32(x) => Rows::F32(x.get(at..end)?),
        Rows::Bf16(x) => Rows::Bf16(x.get(at..end)?),
    })
}

fn part_of(residual: Residual<'_>, at: usize, len: usize) -> Option<Residual<'_>> {
    let end = at.checked_add(len)?;
    Some(match residual {
        Residual::F32(x) => Residual::F32(x.get(at..end)?),
        Residual::Bf16(x) => Residual::Bf16(x.get(at..end)?),
        Residual::U8(x, scale, zero) => Residual::U8(x.get(at..end)?, scale, zero),
        Residual::I8(x, scale, zero) => Residual::I8(x.get(at..end)?, scale, zero),
        // Alike for all rows.
        Residual::None | Residual::Row(..) => residual,
    })
}

fn target_of<'a>(y: &'a mut Target<'_>, at: usize, len: usize) -> Option<Target<'a>> {
    let end = at.checked_add(len)?;
    Some(match y {
        Target::F32(y) => Target::F32(y.get_mut(at..end)?),
        Target::Bf16(y) => Target::Bf16(y.get_mut(at..end)?),
        Target::U8(y, inverse, zero) => Target::U8(y.get_mut(at..end)?, *inverse, *zero),
        Target::I8(y, inverse, zero) => Target::I8(y.get_mut(at..end)?, *inverse, *zero),
        Target::I32(y) => Target::I32(y.get_mut(at..end)?),
    })
}

/// Packs each `k × n` matrix of `w`.
pub(super) fn pack<T>(
    w: &[T],
    (k, n): (usize, usize),
    pack: impl Fn(&[T]) -> Result<Panels, KernelError>,
) -> Result<Vec<Panels>, KernelError> {
    w.chunks_exact((k * n).max(1)).map(pack).collect()
}

/// The products of integer rows with a stack of integers.
struct IntStack {
    stack: Stack,
    input: QParams,
    weights: Arc<Vec<Panels>>,
    /// One for each matrix: their sums differ.
    finishes: Vec<Finish>,
}

/// The kernel of a MatMul with a stack of integer matrices, whose scale is one or one for each column.
pub(super) fn integers(cx: &BuildCx, f: &Fusion, ints: &Ints) -> Maybe {
    let (Some(Some(x)), Some(out), Some(w)) = (ints.operands.first(), f.output, cx.node.input(1)) else {
        return Ok(None);
    };
    let (Some(dims), Some(of_weights)) = ((cx.types)(x.value), (cx.types)(w)) else { return Ok(None) };
    let Some(problem) = super::matmul::problem(&dims.shape, &of_weights.shape) else { return Ok(None) };
    let [_, k, n] = problem.shape;
    let count = of_weights.shape[..of_weights.shape.len().saturating_sub(2)].iter().product();
    let Some(stack) = Stack::new(problem.shape, &problem.batch, count) else { return Ok(None) };
    let axis = lower::channel_axis(cx.node, of_weights.shape.len());
    let Some(loaded) = cx.int_weights(w, axis).and_then(|weights| load(cx, &weights, n)) else { return Ok(None) };
    let weights = cx.weights.get(cx.id, "stack-i8", || {
        pack(&loaded.data, (k, n), |w| panel_gemm_pack(cx.exec, (k, n), w, false)).map_err(StepError::from)
    })?;
    let (mut ins, mut finishes) = (Vec::new(), Vec::with_capacity(weights.len()));
    for panels in weights.iter() {
        let of_one = Loaded { data: Vec::new(), scales: loaded.scales.clone(), zeros: loaded.zeros.clone() };
        // All have the same operands.
        ins = vec![x.value];
        let finish = finish_product(cx, (f, ints, *x), of_one, panels.column_sums(), (k, 1.0), &mut ins);
        let Some(finish) = finish else { return Ok(None) };
        finishes.push(finish);
    }
    let kernel = IntStack { stack, input: x.params, weights, finishes };
    Ok(Some(Built { kernel: Box::new(kernel), ins, outs: vec![out] }))
}

impl Kernel for IntStack {
    fn on_integers(&self) -> bool {
        true
    }

    fn name(&self) -> &str {
        self.weights.first().map_or("panel", |w| w.kernel().name)
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let formats = self.finishes.iter().map(|f| f.format(cx)).collect::<Result<Few<_, 16>, StepError>>()?;
        let all = self.finishes.iter().zip(formats.iter()).map(|(f, format)| f.epilogue(cx, format));
        let epilogues = all.collect::<Result<Few<_, 16>, StepError>>()?;
        let matrix = |i: usize| Some((self.weights.get(i)?, *epilogues.get(i)?));
        let (exec, x, Some(first)) = (cx.exec, rows(cx, self.input.dtype)?, self.finishes.first()) else {
            return Ok(());
        };
        self.stack.run(exec, x, matrix, first.target(cx)?)
    }
}
