//! Writing updates into a copy of a tensor: what ScatterElements and ScatterND share.

use narrowbit_ir::{AttrMap, OpError};
use narrowbit_tensor::{DType, Tensor};

use super::moves;

/// What becomes of an element that is updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// The last update stands.
    None,
    /// The sum with all updates.
    Add,
    /// The product with all updates.
    Mul,
    /// The largest of it and all updates (opset 18).
    Max,
    /// The smallest of it and all updates (opset 18).
    Min,
}

impl Reduction {
    /// Takes the attribute `reduction`.
    ///
    /// # Errors
    /// When it has another value.
    pub fn take(attrs: &mut AttrMap) -> Result<Reduction, OpError> {
        match attrs.string("reduction")?.as_deref() {
            None | Some("none") => Ok(Reduction::None),
            Some("add") => Ok(Reduction::Add),
            Some("mul") => Ok(Reduction::Mul),
            Some("max") => Ok(Reduction::Max),
            Some("min") => Ok(Reduction::Min),
            Some(other) => Err(OpError::attribute("reduction", format!("is \"{other}\""))),
        }
    }

    /// The attribute's value.
    pub fn name(self) -> &'static str {
        ["none", "add", "mul", "max", "min"][self as usize]
    }

    fn floats(self, a: f64, b: f64) -> f64 {
        match self {
            Reduction::None => b,
            Reduction::Add => a + b,
            Reduction::Mul => a * b,
            Reduction::Max => {
                if b > a || b.is_nan() {
                    b
                } else {
                    a
                }
            }
            Reduction::Min => {
                if b < a || b.is_nan() {
                    b
                } else {
                    a
                }
            }
        }
    }

    fn ints(self, a: i64, b: i64, unsigned: bool) -> i64 {
        let flip = if unsigned { i64::MIN } else { 0 };
        match self {
            Reduction::None => b,
            Reduction::Add => a.wrapping_add(b),
            Reduction::Mul => a.wrapping_mul(b),
            Reduction::Max => {
                if b ^ flip > a ^ flip {
                    b
                } else {
                    a
                }
            }
            Reduction::Min => {
                if b ^ flip < a ^ flip {
                    b
                } else {
                    a
                }
            }
        }
    }
}

/// `x` with each block of `block` elements of `updates` written at its offset in `targets`, in order.
///
/// # Errors
/// When types differ, an offset is out of range, or the type can't be reduced.
pub fn scatter(
    x: &Tensor,
    updates: &Tensor,
    targets: &[usize],
    block: usize,
    reduction: Reduction,
) -> Result<Tensor, OpError> {
    if x.dtype() != updates.dtype() {
        return Err(OpError::Value(format!("types differ: {} and {}", x.dtype(), updates.dtype())));
    }
    if x.is_empty() || updates.is_empty() {
        return Ok(x.clone());
    }
    match reduction {
        Reduction::None => overwrite(x, updates, targets, block),
        r if x.dtype().is_float() => {
            let (mut out, new) = (x.to_f64s()?, updates.to_f64s()?);
            let single = x.dtype() == DType::F32;
            fold(&mut out, &new, targets, block, |a, b| {
                let v = r.floats(a, b);
                if single { f64::from(v as f32) } else { v }
            })?;
            Ok(Tensor::from_f64s(x.dtype(), x.shape(), &out)?)
        }
        r => {
            let (mut out, new) = (x.to_i64s()?, updates.to_i64s()?);
            let unsigned = x.dtype() == DType::U64;
            fold(&mut out, &new, targets, block, |a, b| r.ints(a, b, unsigned))?;
            Ok(Tensor::from_i64s(x.dtype(), x.shape(), &out)?)
        }
    }
}

fn overwrite(x: &Tensor, updates: &Tensor, targets: &[usize], block: usize) -> Result<Tensor, OpError> {
    let block = block.max(1);
    let mut source: Vec<(usize, usize)> = (0..x.len() / block).map(|i| (0, i * block)).collect();
    for (i, &at) in targets.iter().enumerate() {
        *source.get_mut(at / block).ok_or_else(|| outside(at))? = (1, i * block);
    }
    moves::pick_blocks(&[x, updates], x.shape(), block, source.into_iter())
}

fn fold<T: Copy>(
    out: &mut [T],
    new: &[T],
    targets: &[usize],
    block: usize,
    f: impl Fn(T, T) -> T,
) -> Result<(), OpError> {
    for (new, &at) in new.chunks_exact(block.max(1)).zip(targets) {
        let old = out.get_mut(at..at.saturating_add(block)).ok_or_else(|| outside(at))?;
        old.iter_mut().zip(new).for_each(|(a, &b)| *a = f(*a, b));
    }
    Ok(())
}

fn outside(at: usize) -> OpError {
    OpError::Value(format!("offset {at} lies outside of the data"))
}
