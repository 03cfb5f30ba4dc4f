//! FusedGemm: Gemm and an activation in one.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError};
use narrowbit_tensor::{DType, Tensor, shape};

use super::activation::Fused;
use super::support::{DOMAIN, extents, permute};
use crate::quant::product::{Product, infer_product, mac_f64};

/// `y = activation(alpha * a' · b' + beta * c)`, where `'` transposes on demand; c broadcasts to `[m, n]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FusedGemm {
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of c.
    pub beta: f32,
    /// Whether a is `[k, m]`.
    pub trans_a: bool,
    /// Whether b is `[n, k]`.
    pub trans_b: bool,
    /// What is applied last.
    pub activation: Fused,
}

const PARAMS: [&str; 3] = ["activation_alpha", "activation_beta", "activation_gamma"];

/// Makes a FusedGemm.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let name = attrs.string("activation")?.unwrap_or_default();
    let mut params = Vec::new();
    for p in PARAMS {
        // Parameters are given from the first on; one after a gap would have another meaning.
        match attrs.float(p)? {
            Some(v) if params.len() == PARAMS.iter().position(|q| *q == p).unwrap_or(0) => params.push(v),
            Some(_) => return Err(OpError::attribute(p, "is given without the parameters before it")),
            None => {}
        }
    }
    Ok(Arc::new(FusedGemm {
        alpha: attrs.float_or("alpha", 1.0)?,
        beta: attrs.float_or("beta", 1.0)?,
        trans_a: attrs.flag("transA")?,
        trans_b: attrs.flag("transB")?,
        activation: Fused::new(name, params)?,
    }))
}

/// A matrix, transposed on demand.
pub(crate) fn matrix<T: Copy>(x: &[T], shape: [usize; 2], transpose: bool) -> ([usize; 2], Vec<T>) {
    if transpose { ([shape[1], shape[0]], permute(x, &shape, &[1, 0]).1) } else { (shape, x.to_vec()) }
}

/// The symbolic shape of a product of matrices that may be transposed.
pub(crate) fn infer_gemm(
    a: Option<&[Dim]>,
    b: Option<&[Dim]>,
    ta: bool,
    tb: bool,
) -> Result<Option<Vec<Dim>>, OpError> {
    let turn = |s: Option<&[Dim]>, t: bool| match s {
        Some([r, c]) => Some(if t { vec![c.clone(), r.clone()] } else { vec![r.clone(), c.clone()] }),
        _ => None,
    };
    infer_product(turn(a, ta).as_deref(), turn(b, tb).as_deref())
}

impl Op for FusedGemm {
    fn name(&self) -> &str {
        "FusedGemm"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let out = infer_gemm(cx.shape(0), cx.shape(1), self.trans_a, self.trans_b)?;
        Ok(vec![Fact::tensor(cx.get(0)?.dtype(), out)])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let (a, b) = (cx.get(0)?, cx.get(1)?);
        let (sa, xs) = matrix(&a.to_f32s()?, extents(a, 0)?, self.trans_a);
        let (sb, ys) = matrix(&b.to_f32s()?, extents(b, 1)?, self.trans_b);
        let product = Product::new(&sa, &sb, DType::F64)?;
        let mut y = product.run(&xs, &ys, 0f64, mac_f64);
        y.iter_mut().for_each(|v| *v *= f64::from(self.alpha));
        if let Some(c) = cx.opt(2) {
            if shape::broadcast(c.shape(), &product.out)? != product.out {
                return Err(OpError::shape(format!(
                    "c of shape {:?} does not broadcast to {:?}",
                    c.shape(),
                    product.out
                )));
            }
            let cs = c.to_f32s()?;
            let strides = shape::broadcast_strides(c.shape(), &product.out);
            for (v, o) in y.iter_mut().zip(shape::offsets(&product.out, &strides)) {
                *v += f64::from(self.beta) * f64::from(cs[o]);
            }
        }
        self.activation.apply(&mut y);
        Ok(vec![Tensor::from_f64s(a.dtype(), product.out, &y)?])
    }

    fn attrs(&self) -> AttrMap {
        let mut attrs = AttrMap::new()
            .with_unless("alpha", self.alpha, 1.0)
            .with_unless("beta", self.beta, 1.0)
            .with_unless("transA", i64::from(self.trans_a), 0)
            .with_unless("transB", i64::from(self.trans_b), 0)
            .with_unless("activation", self.activation.name.clone(), String::new());
        for (name, v) in PARAMS.iter().zip(&self.activation.params) {
            attrs.set(*name, *v);
        }
        attrs
    }
}
