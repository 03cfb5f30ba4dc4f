//! MatMul and Gemm of floats, with packed constants on the right.

use std::sync::Arc;

use narrowbit_kernels::gemm::{BatchDim, Bias, Gemm, Lhs, MatrixView, PackedB, Rhs, gemm};
use narrowbit_kernels::panel::{
    Epilogue, Panels, Residual, Rows, Target, panel_gemm, panel_gemm_deepest, panel_gemm_pack, panel_gemm_pack_bf16,
};
use narrowbit_kernels::{Activation, Exec, KernelError};
use narrowbit_tensor::{DType, Tensor, shape};

use super::Maybe;
use super::stack::{self, Stack};
use crate::error::StepError;
use crate::fuse::Fusion;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};

/// The kernel of a matrix product with its epilogue.
pub fn build(cx: &BuildCx, f: &Fusion) -> Maybe {
    let (Some(a), Some(b), Some(out)) = (cx.f32_shape(0), cx.f32_shape(1), f.output) else { return Ok(None) };
    if let Some(built) = super::blocks::dequantized(cx, f)? {
        return Ok(Some(built));
    }
    if let Some(built) = super::coded::product(cx, f)? {
        return Ok(Some(built));
    }
    let problem = match cx.node.op.name() {
        "Gemm" => gemm_problem(cx, &a, &b),
        _ => matmul_problem(&a, &b),
    };
    let Some(mut p) = problem else { return Ok(None) };
    p.activation = f.activation;
    let mut ins = vec![cx.node.inputs[0].unwrap_or(out)];
    if !p.set_bias(cx, f, &mut ins) {
        return Ok(None);
    }
    if cx.is_constant(1) && p.batch.iter().all(|d| d.b == 0) {
        p.packed = Some(p.pack(cx)?);
    } else if let Some(stack) = p.stack(cx.exec, &b).filter(|_| cx.is_constant(1)) {
        p.packed = Some(p.pack_stack(cx, stack)?);
    } else {
        p.b_at = ins.len();
        ins.push(cx.node.inputs[1].unwrap_or(out));
    }
    if let Some(r) = f.residual {
        p.residual_at = Some(ins.len());
        ins.push(r);
    }
    Ok(Some(Built { kernel: Box::new(p), ins, outs: vec![out] }))
}

/// A constant right operand.
enum Packed {
    /// For rows read in place.
    Panels(Arc<Panels>),
    /// For rows that are packed too; both in blocks of the depth.
    Blocks(Arc<PackedB>),
    /// Several matrices, for rows read in place.
    Stack(Stack, Arc<Vec<Panels>>),
}

struct Product {
    m: usize,
    n: usize,
    k: usize,
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
    batch: Vec<BatchDim>,
    packed: Option<Packed>,
    b_at: usize,
    bias: Option<Vec<f32>>,
    bias_at: Option<usize>,
    residual_at: Option<usize>,
    activation: Activation,
}

impl Product {
    fn new(m: usize, n: usize, k: usize) -> Product {
        Product {
            m,
            n,
            k,
            trans_a: false,
            trans_b: false,
            alpha: 1.0,
            batch: Vec::new(),
            packed: None,
            b_at: 0,
            bias: None,
            bias_at: None,
            residual_at: None,
            activation: Activation::None,
        }
    }

    fn pack(&self, cx: &BuildCx) -> Result<Packed, StepError> {
        let (k, n) = (self.k, self.n);
        let plain = !self.trans_a && self.alpha == 1.0 && self.batch.is_empty() && self.bias_at.is_none();
        if plain && cx.exec.bf16() && k * n > 0 {
            let packed = cx.packed("panels", |w| panel_gemm_pack_bf16(cx.exec, (k, n), w, self.trans_b))?;
            return Ok(Packed::Panels(packed));
        }
        if plain && (1..=panel_gemm_deepest(cx.exec)).contains(&k) && n > 0 {
            let packed = cx.packed("panels", |w| panel_gemm_pack(cx.exec, (k, n), w, self.trans_b))?;
            return Ok(Packed::Panels(packed));
        }
        let packed = cx.packed("b", |w| PackedB::new(cx.exec, view(w, self.trans_b, k, n), (k, n), (1, 0)))?;
        Ok(Packed::Blocks(packed))
    }

    /// The products with a right operand of shape `b` as those with a stack of matrices, if it may be one. Deep ones stay as
    /// they are.
    fn stack(&self, exec: &Exec, b: &[usize]) -> Option<Stack> {
        let plain = !self.trans_a && !self.trans_b && self.alpha == 1.0 && self.bias_at.is_none();
        let matrices = b[..b.len().saturating_sub(2)].iter().product();
        Stack::new([self.m, self.k, self.n], &self.batch, matrices)
            .filter(|_| plain && b.len() > 2 && self.k <= panel_gemm_deepest(exec))
    }

    fn pack_stack(&self, cx: &BuildCx, stack: Stack) -> Result<Packed, StepError> {
        let shape = (self.k, self.n);
        let one = |w: &[f32]| match cx.exec.bf16() {
            true => panel_gemm_pack_bf16(cx.exec, shape, w, false),
            false => panel_gemm_pack(cx.exec, shape, w, false),
        };
        Ok(Packed::Stack(stack, cx.packed("stack", |w| stack::pack(w, shape, one))?))
    }

    /// What follows the sums of panels.
    fn epilogue<'a>(&'a self, cx: &RunCx<'a>) -> Result<Epilogue<'a>, StepError> {
        let bias = self.bias.as_deref().unwrap_or_default();
        let residual = self.residual_at.map(|i| cx.f32s(i)).transpose()?.map_or(Residual::None, Residual::F32);
        Ok(Epilogue { bias, residual, activation: self.activation, ..Epilogue::default() })
    }

    /// Takes the bias from Gemm's third input or the fusion; false where its form has no kernel.
    fn set_bias(&mut self, cx: &BuildCx, f: &Fusion, ins: &mut Vec<narrowbit_ir::ValueId>) -> bool {
        let row = |t: &Tensor, n: usize| t.dtype() == DType::F32 && t.len() == n && t.shape().last() == Some(&n);
        if let Some(v) = f.bias {
            self.bias = (cx.consts)(v).and_then(|t| Some(t.to_f32s().ok()?.into_owned()));
            if self.bias.is_none() {
                return false;
            }
        }
        if cx.node.op.name() != "Gemm" {
            return true;
        }
        let beta = cx.float("beta", 1.0);
        match (cx.node.input(2), cx.constant(2)) {
            (None, _) => true,
            (_, Some(t)) if row(&t, self.n) => {
                self.bias = t.to_f32s().ok().map(|v| v.iter().map(|x| x * beta).collect());
                true
            }
            (Some(v), None) if beta == 1.0 => {
                let fits =
                    cx.f32_shape(2).is_some_and(|s| s.iter().product::<usize>() == self.n && s.last() == Some(&self.n));
                self.bias_at = fits.then_some(ins.len());
                ins.extend(fits.then_some(v));
                fits
            }
            _ => false,
        }
    }
}

fn gemm_problem(cx: &BuildCx, a: &[usize], b: &[usize]) -> Option<Product> {
    let ([a0, a1], [b0, b1]) = (a, b) else { return None };
    let (ta, tb) = (cx.int("transA", 0) != 0, cx.int("transB", 0) != 0);
    let (m, k) = if ta { (*a1, *a0) } else { (*a0, *a1) };
    let (kb, n) = if tb { (*b1, *b0) } else { (*b0, *b1) };
    let p = Product { trans_a: ta, trans_b: tb, alpha: cx.float("alpha", 1.0), ..Product::new(m, n, k) };
    (k == kb).then_some(p)
}

fn matmul_problem(a: &[usize], b: &[usize]) -> Option<Product> {
    // Vectors on either side are rare: the reference handles them.
    let (&[ref a_batch @ .., m, k], &[ref b_batch @ .., kb, n]) = (a, b) else { return None };
    if k != kb {
        return None;
    }
    if b_batch.iter().product::<usize>() == 1 && a_batch.len() >= b_batch.len() {
        // One matrix for all rows: the batch only makes it taller.
        return Some(Product::new(m * a_batch.iter().product::<usize>(), n, k));
    }
    let out = shape::broadcast(a_batch, b_batch).ok()?;
    let steps = |batch: &[usize], size: usize| -> Vec<usize> {
        shape::broadcast_strides(batch, &out).into_iter().map(|s| s * size).collect()
    };
    let (sa, sb, sc) = (steps(a_batch, m * k), steps(b_batch, k * n), steps(&out, m * n));
    let batch = (0..out.len()).map(|i| BatchDim { len: out[i], a: sa[i], b: sb[i], c: sc[i], bias: 0 });
    Some(Product { batch: batch.collect(), ..Product::new(m, n, k) })
}

/// The shape of a batched product of row-major matrices.
pub(super) struct Problem {
    pub shape: [usize; 3],
    pub batch: Vec<BatchDim>,
}

/// The product of two operands of rank 2 or more; `None` where their shapes don't fit.
pub(super) fn problem(a: &[usize], b: &[usize]) -> Option<Problem> {
    matmul_problem(a, b).map(|p| Problem { shape: [p.m, p.k, p.n], batch: p.batch })
}

/// A `rows × columns` matrix, stored transposed or not.
fn view(data: &[f32], transposed: bool, rows: usize, columns: usize) -> MatrixView<'_> {
    if transposed { MatrixView::transposed(data, rows) } else { MatrixView::row_major(data, columns) }
}

impl Kernel for Product {
    fn name(&self) -> &str {
        match &self.packed {
            Some(Packed::Blocks(b)) => b.kernel().name,
            Some(Packed::Panels(b)) => b.kernel().name,
            Some(Packed::Stack(_, all)) => all.first().map_or("panel", |b| b.kernel().name),
            None => "gemm_f32_unpacked",
        }
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let x = cx.f32s(0)?;
        let b = match &self.packed {
            Some(Packed::Panels(w)) => {
                let (exec, shape, epilogue) = (cx.exec, (self.m, self.k, self.k), self.epilogue(cx)?);
                return Ok(panel_gemm(exec, Rows::F32(x), shape, w, &epilogue, Target::F32(cx.out_f32s()?))?);
            }
            Some(Packed::Stack(stack, all)) => {
                let (exec, epilogue) = (cx.exec, self.epilogue(cx)?);
                let matrix = |i: usize| Some((all.get(i)?, epilogue));
                return stack.run(exec, Rows::F32(x), matrix, Target::F32(cx.out_f32s()?));
            }
            Some(Packed::Blocks(p)) => Rhs::Packed(p),
            None => Rhs::View(view(cx.f32s(self.b_at)?, self.trans_b, self.k, self.n)),
        };
        let a = Lhs::View(view(x, self.trans_a, self.m, self.k));
        let bias = match (self.bias_at, &self.bias) {
            (Some(i), _) => Bias::Column(cx.f32s(i)?),
            (None, Some(b)) => Bias::Column(b),
            (None, None) => Bias::None,
        };
        let residual = self.residual_at.map(|i| cx.f32s(i)).transpose()?;
        let g = Gemm {
            alpha: self.alpha,
            bias,
            residual,
            activation: self.activation,
            batch: &self.batch,
            ..Gemm::new(self.m, self.n, self.k, a, b)
        };
        let exec = cx.exec;
        gemm(exec, &g, cx.out_f32s()?).map_err(|e: KernelError| e.into())
    }
}
