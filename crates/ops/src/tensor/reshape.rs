//! Reshape: the same elements under another shape.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, QuantRole};
use narrowbit_tensor::{Tensor, shape};

use super::{factors, params};
use crate::support::show;

/// `y` has the elements of `data` in the same order under the shape of input 1; any type.
///
/// An extent of −1 is what is left; 0 copies the input's extent, unless `allow_zero`.
/// Source: ONNX Reshape.
#[derive(Debug, Clone, Copy)]
pub struct Reshape {
    /// Whether 0 in the shape means an extent of 0 (opset 14).
    pub allow_zero: bool,
}

/// Makes a Reshape from `allowzero`.
///
/// # Errors
/// When the attribute is no integer.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Reshape { allow_zero: attrs.flag("allowzero")? }))
}

impl Reshape {
    fn infer_shape(&self, x: Option<&[Dim]>, target: &[Dim]) -> Result<Vec<Dim>, OpError> {
        let mut out = Vec::with_capacity(target.len());
        let mut open = None;
        // Extents copied by 0 are equal on both sides, even unknown ones.
        let mut total: Vec<Option<&Dim>> = x.unwrap_or_default().iter().map(Some).collect();
        let mut parts = Vec::new();
        for (i, d) in target.iter().enumerate() {
            let mut found = d.clone();
            match d {
                Dim::Known(0) if !self.allow_zero => match (x, x.and_then(|x| x.get(i))) {
                    (None, _) => found = Dim::Unknown,
                    (Some(x), None) => return Err(copies_nothing(&show(x), i)),
                    (_, Some(copied)) => {
                        found = copied.clone();
                        total[i] = None;
                    }
                },
                Dim::Known(-1) => {
                    found = Dim::Unknown;
                    if open.replace(i).is_some() {
                        return Err(two_open(&show(target)));
                    }
                }
                Dim::Known(n) if *n < 0 => return Err(OpError::Value(format!("extent {n} of the shape is negative"))),
                _ => parts.push(d.clone()),
            }
            out.push(found);
        }
        let Some(x) = x else { return Ok(out) };
        let total: Vec<Dim> = total.into_iter().flatten().cloned().collect();
        let mismatch = |_| OpError::shape(format!("shape {} can't be reshaped to {}", show(x), show(target)));
        // A single extent that is not known is as good as -1.
        let unknown: Vec<usize> = (0..target.len()).filter(|&i| target[i] == Dim::Unknown).collect();
        match (open, unknown.as_slice()) {
            (Some(i), []) => out[i] = factors::quotient(&total, &parts).map_err(mismatch)?,
            (None, &[i]) => {
                parts.retain(|d| *d != Dim::Unknown);
                out[i] = factors::quotient(&total, &parts).map_err(mismatch)?;
            }
            (None, []) => {
                if let (Dim::Known(a), Dim::Known(b)) = (factors::product(&total), factors::product(&parts))
                    && a != b
                {
                    return Err(mismatch((a, b)));
                }
            }
            _ => {}
        }
        Ok(out)
    }

    fn eval_shape(&self, x: &[usize], target: &[i64]) -> Result<Vec<usize>, OpError> {
        let mut out = Vec::with_capacity(target.len());
        let mut open = None;
        for (i, &d) in target.iter().enumerate() {
            out.push(match d {
                0 if !self.allow_zero => *x.get(i).ok_or_else(|| copies_nothing(&format!("{x:?}"), i))?,
                -1 if open.is_some() => return Err(two_open(&format!("{target:?}"))),
                -1 => {
                    open = Some(i);
                    1
                }
                d => params::extents(&[d])?[0],
            });
        }
        let n = shape::count(x)?;
        let rest = shape::count(&out)?;
        if let Some(i) = open {
            out[i] = n.checked_div(rest).unwrap_or(0);
        }
        if shape::count(&out)? != n {
            return Err(OpError::shape(format!("shape {x:?} can't be reshaped to {target:?}")));
        }
        Ok(out)
    }
}

fn copies_nothing(x: &str, i: usize) -> OpError {
    OpError::shape(format!("the shape copies extent {i} of the input, whose shape is {x}"))
}

fn two_open(target: &str) -> OpError {
    OpError::shape(format!("the shape {target} has more than one -1"))
}

impl Op for Reshape {
    fn name(&self) -> &str {
        "Reshape"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?;
        cx.get(1)?;
        let shape = match params::dims(cx, 1) {
            Some(target) => Some(self.infer_shape(x.shape(), &target)?),
            None => params::vector_len(cx, 1).filter(|&n| n <= Fact::MAX_DIMS).map(params::unknown),
        };
        let small = shape.as_ref().is_some_and(|s| s.len() <= 1);
        Ok(vec![Fact::tensor(x.dtype(), shape).with_dims(x.dims.clone().filter(|_| small))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let x = cx.get(0)?;
        let shape = self.eval_shape(x.shape(), &cx.get(1)?.to_i64s()?)?;
        Ok(vec![x.reshaped(shape)?])
    }

    fn quant(&self) -> QuantRole {
        QuantRole::Transparent
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with_unless("allowzero", i64::from(self.allow_zero), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &str) -> Vec<Dim> {
        let one = |t: &str| match t {
            "?" => Dim::Unknown,
            t => t.parse().map_or_else(|_| Dim::sym(t), Dim::Known),
        };
        text.split(", ").map(one).collect()
    }

    fn infer(x: &str, target: &str) -> Result<String, OpError> {
        let shape = Reshape { allow_zero: false }.infer_shape(Some(&dims(x)), &dims(target))?;
        Ok(shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn keeps_names_when_heads_are_split_off() {
        assert_eq!(infer("batch, seq, 384", "0, 0, 12, 32").unwrap(), "batch, seq, 12, 32");
        assert_eq!(infer("batch, seq, 384", "batch, -1, 12, 32").unwrap(), "batch, seq, 12, 32");
        assert_eq!(infer("batch, seq, 12, 32", "0, 0, -1").unwrap(), "batch, seq, 384");
        assert_eq!(infer("?, seq, 384", "0, -1, 12, 32").unwrap(), "?, seq, 12, 32");
        assert_eq!(infer("batch, seq, 384", "?, seq, 384").unwrap(), "batch, seq, 384");
        assert_eq!(infer("batch, 3, 4", "-1, 12").unwrap(), "batch, 12");
        assert_eq!(infer("batch, seq, 8", "-1, 8").unwrap(), "batch*seq, 8");
    }

    #[test]
    fn refuses_shapes_of_other_sizes() {
        assert!(infer("2, 3", "4, -1").is_err());
        assert!(infer("2, 3", "7").is_err());
        assert!(infer("2, 3", "-1, -1").is_err());
        assert!(infer("2, 3", "2, 3, 0").is_err());
        let r = Reshape { allow_zero: false };
        assert!(r.eval_shape(&[2, 3], &[-1, -1]).is_err());
        assert!(r.eval_shape(&[2, 3], &[0, 0, 0]).is_err());
        assert!(r.eval_shape(&[2, 3], &[-2, 3]).is_err());
        assert_eq!(r.eval_shape(&[0, 3], &[0, -1]).unwrap(), [0, 0]);
        assert_eq!(Reshape { allow_zero: true }.eval_shape(&[0, 3], &[3, 0]).unwrap(), [3, 0]);
    }
}
