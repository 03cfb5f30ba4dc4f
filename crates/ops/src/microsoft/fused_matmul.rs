//! FusedMatMul: a scaled product of operands that may be transposed.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::support::{DOMAIN, permute};
use crate::quant::product::{Product, infer_product, mac_f64};

/// `y = alpha * a' · b'` with numpy's batch rules. `trans` swaps an operand's last two axes;
/// `trans_batch` moves its first axis to the last but one place, before that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusedMatMul {
    /// Factor of the product.
    pub alpha: f32,
    /// Whether the last two axes of a and b are swapped.
    pub trans: [bool; 2],
    /// Whether the first axis of a and b is the row axis.
    pub trans_batch: [bool; 2],
}

/// Makes a FusedMatMul.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(FusedMatMul {
        alpha: attrs.float_or("alpha", 1.0)?,
        trans: [attrs.flag("transA")?, attrs.flag("transB")?],
        trans_batch: [attrs.flag("transBatchA")?, attrs.flag("transBatchB")?],
    }))
}

impl FusedMatMul {
    /// The order of an operand's axes before the product; vectors stay as they are.
    fn order(&self, side: usize, rank: usize) -> Vec<usize> {
        let mut perm: Vec<usize> = (0..rank).collect();
        if rank >= 2 && self.trans_batch[side] {
            perm[..rank - 1].rotate_left(1);
        }
        if rank >= 2 && self.trans[side] {
            perm.swap(rank - 1, rank - 2);
        }
        perm
    }
}

impl Op for FusedMatMul {
    fn name(&self) -> &str {
        "FusedMatMul"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let turned = |i: usize| {
            let s = cx.shape(i)?;
            Some(self.order(i, s.len()).into_iter().map(|p| s[p].clone()).collect::<Vec<Dim>>())
        };
        let out = infer_product(turned(0).as_deref(), turned(1).as_deref())?;
        Ok(vec![Fact::tensor(cx.get(0)?.dtype(), out)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let turned = |i: usize| {
            let t = cx.get(i)?;
            Ok::<_, OpError>(permute(&t.to_f32s()?, t.shape(), &self.order(i, t.rank())))
        };
        let ((sa, a), (sb, b)) = (turned(0)?, turned(1)?);
        let product = Product::new(&sa, &sb, DType::F64)?;
        let alpha = f64::from(self.alpha);
        let y: Vec<f64> = product.run(&a, &b, 0f64, mac_f64).into_iter().map(|v| v * alpha).collect();
        Ok(vec![Tensor::from_f64s(cx.get(0)?.dtype(), product.out, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        let flag = i64::from;
        AttrMap::new()
            .with_unless("alpha", self.alpha, 1.0)
            .with_unless("transA", flag(self.trans[0]), 0)
            .with_unless("transB", flag(self.trans[1]), 0)
            .with_unless("transBatchA", flag(self.trans_batch[0]), 0)
            .with_unless("transBatchB", flag(self.trans_batch[1]), 0)
    }
}
