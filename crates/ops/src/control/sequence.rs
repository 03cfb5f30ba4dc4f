//! Operators on sequences: construct, empty, at, insert, erase, length.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Datum, EvalCx, Fact, InferCx, Op, OpError, TensorType, ValueType};
use narrowbit_tensor::{DType, Tensor};

use super::support::{join, tensors};

/// A sequence longer than this is taken for a model that never ends.
const MAX_LEN: usize = 1 << 24;

/// A simple operator on sequences; the positions are i32 or i64 scalars in `[-n, n)` (insert: `[-n, n]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// The inputs, tensors of one type, as a sequence (ONNX SequenceConstruct 11).
    Construct,
    /// A sequence without elements, of tensors of a type: f32 where there is none (ONNX SequenceEmpty 11).
    Empty(Option<DType>),
    /// The element at a position (ONNX SequenceAt 11).
    At,
    /// A sequence with one more tensor, before a position or at the end (ONNX SequenceInsert 11).
    Insert,
    /// A sequence without the element at a position or without its last (ONNX SequenceErase 11).
    Erase,
    /// The number of elements, an i64 scalar (ONNX SequenceLength 11).
    Length,
}

macro_rules! builders {
    ($($(#[$doc:meta])* $name:ident => $op:expr),*) => {
        $($(#[$doc])* pub fn $name(_opset: i64, _attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> { Ok(Arc::new($op)) })*
    };
}
builders! {
    /// Makes a SequenceConstruct.
    construct => Sequence::Construct,
    /// Makes a SequenceAt.
    at => Sequence::At,
    /// Makes a SequenceInsert.
    insert => Sequence::Insert,
    /// Makes a SequenceErase.
    erase => Sequence::Erase,
    /// Makes a SequenceLength.
    length => Sequence::Length
}

/// Makes a SequenceEmpty.
pub fn empty(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Sequence::Empty(crate::quant::quantize_linear::dtype(attrs, "dtype")?)))
}

/// An input that must be a sequence.
pub(crate) fn sequence<'a>(cx: &EvalCx<'a>, i: usize) -> Result<&'a [Datum], OpError> {
    match cx.datum(i) {
        Some(Datum::Sequence(s)) => Ok(s),
        Some(Datum::Optional(Some(d))) => match d.as_ref() {
            Datum::Sequence(s) => Ok(s),
            other => Err(OpError::input(i, other.kind(), "a sequence")),
        },
        Some(other) => Err(OpError::input(i, other.kind(), "a sequence")),
        None => Err(OpError::MissingInput(i)),
    }
}

fn position(t: &Tensor, n: usize, last: usize) -> Result<usize, OpError> {
    let p = match t.to_i64s()?.as_slice() {
        [p] => *p,
        _ => return Err(OpError::input(1, format!("of shape {:?}", t.shape()), "a single integer")),
    };
    let len = n as i64;
    let at = if p < 0 { p.checked_add(len) } else { Some(p) };
    at.and_then(|p| usize::try_from(p).ok())
        .filter(|&p| p <= last && last != usize::MAX)
        .ok_or_else(|| OpError::Value(format!("position {p} is outside of a sequence of {n} elements")))
}

impl Sequence {
    fn element(cx: &InferCx, i: usize) -> ValueType {
        match cx.opt(i).map(|f| &f.ty) {
            Some(ValueType::Sequence(t)) => (**t).clone(),
            _ => ValueType::Unknown,
        }
    }
}

impl Op for Sequence {
    fn name(&self) -> &str {
        match self {
            Sequence::Construct => "SequenceConstruct",
            Sequence::Empty(_) => "SequenceEmpty",
            Sequence::At => "SequenceAt",
            Sequence::Insert => "SequenceInsert",
            Sequence::Erase => "SequenceErase",
            Sequence::Length => "SequenceLength",
        }
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let of = |t: ValueType| ValueType::Sequence(Box::new(t));
        let ty = match self {
            Sequence::Construct => {
                let mut types = (0..cx.len()).map(|i| cx.opt(i).map(|f| f.ty.clone()).unwrap_or_default());
                let first = types.next().unwrap_or_default();
                of(types.fold(first, |a, b| join(&a, &b)))
            }
            Sequence::Empty(d) => {
                of(ValueType::Tensor(TensorType { dtype: Some(d.unwrap_or(DType::F32)), shape: None }))
            }
            Sequence::At => Sequence::element(cx, 0),
            Sequence::Insert => {
                let element = Sequence::element(cx, 0);
                of(cx.opt(1).map_or(element.clone(), |f| join(&element, &f.ty)))
            }
            Sequence::Erase => of(Sequence::element(cx, 0)),
            Sequence::Length => ValueType::Tensor(TensorType::new(DType::I64, vec![])),
        };
        Ok(vec![Fact { ty, ..Fact::default() }])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        tensors(self.eval_data(cx)?)
    }

    fn eval_data(&self, cx: &EvalCx) -> Result<Vec<Datum>, OpError> {
        let out = match self {
            Sequence::Construct => Datum::Sequence(cx.all()?.into_iter().cloned().map(Datum::Tensor).collect()),
            Sequence::Empty(_) => Datum::Sequence(Vec::new()),
            Sequence::At => {
                let s = sequence(cx, 0)?;
                s[position(cx.get(1)?, s.len(), s.len().wrapping_sub(1))?].clone()
            }
            Sequence::Insert => {
                let s = sequence(cx, 0)?;
                let at = cx.opt(2).map_or(Ok(s.len()), |p| position(p, s.len(), s.len()))?;
                if s.len() >= MAX_LEN {
                    return Err(OpError::Unsupported(format!("a sequence of more than {MAX_LEN} elements")));
                }
                let mut s = s.to_vec();
                s.insert(at, Datum::Tensor(cx.get(1)?.clone()));
                Datum::Sequence(s)
            }
            Sequence::Erase => {
                let s = sequence(cx, 0)?;
                let last = s.len().wrapping_sub(1);
                let default = Tensor::scalar(-1i64);
                let mut rest = s.to_vec();
                rest.remove(position(cx.opt(1).unwrap_or(&default), s.len(), last)?);
                Datum::Sequence(rest)
            }
            Sequence::Length => Datum::Tensor(Tensor::scalar(sequence(cx, 0)?.len() as i64)),
        };
        Ok(vec![out])
    }

    fn attrs(&self) -> AttrMap {
        match self {
            Sequence::Empty(d) => AttrMap::new().with_opt("dtype", d.map(|d| i64::from(d.to_onnx()))),
            _ => AttrMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: Sequence, ins: &[Datum]) -> Result<Datum, OpError> {
        let refs: Vec<Option<&Datum>> = ins.iter().map(Some).collect();
        Ok(op.eval_data(&EvalCx::new(&refs, 1))?.remove(0))
    }

    fn t(v: i64) -> Datum {
        Datum::Tensor(Tensor::scalar(v))
    }

    #[test]
    fn inserts_reads_and_erases() {
        let s = run(Sequence::Construct, &[t(1), t(2)]).unwrap();
        let s = run(Sequence::Insert, &[s, t(9), t(-2)]).unwrap();
        assert_eq!(run(Sequence::At, &[s.clone(), t(0)]).unwrap(), t(9));
        assert_eq!(run(Sequence::Length, std::slice::from_ref(&s)).unwrap(), t(3));
        assert_eq!(run(Sequence::Erase, &[s]).unwrap(), Datum::Sequence(vec![t(9), t(1)]));
    }

    #[test]
    fn refuses_positions_outside() {
        let s = Datum::Sequence(vec![t(1)]);
        assert!(run(Sequence::At, &[s.clone(), t(1)]).is_err());
        assert!(run(Sequence::At, &[s.clone(), t(-2)]).is_err());
        assert!(run(Sequence::At, &[Datum::Sequence(vec![]), t(0)]).is_err());
        assert!(run(Sequence::Erase, &[Datum::Sequence(vec![])]).is_err());
        assert!(run(Sequence::Length, &[t(1)]).is_err());
    }
}
