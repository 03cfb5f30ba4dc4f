//! What control-flow and sequence operators share.

use std::collections::BTreeMap;

use narrowbit_ir::infer::{Options, infer};
use narrowbit_ir::interp::run;
use narrowbit_ir::{
    AttrMap, Body, Datum, Dim, EvalCx, Fact, Graph, InferCx, OpError, TensorType, ValueType, check_size,
};
use narrowbit_tensor::{DType, Tensor, shape};

/// Subgraphs may be nested this deep: each level takes stack when it runs.
pub(crate) const MAX_DEPTH: usize = 64;

/// The number of captured values that the importer appended to the node's inputs.
pub(crate) fn take_captures(attrs: &mut AttrMap) -> Result<usize, OpError> {
    let n = attrs.int_or("__captures", 0)?;
    usize::try_from(n).map_err(|_| OpError::attribute("__captures", format!("is {n}, but must not be negative")))
}

/// Takes a subgraph whose last `captures` inputs are captured values.
pub(crate) fn take_body(attrs: &mut AttrMap, name: &str, captures: usize) -> Result<Body, OpError> {
    let graph = attrs.graph(name)?.ok_or_else(|| OpError::attribute(name, "is missing"))?;
    if graph.inputs().len() < captures {
        let problem = format!("has {} inputs, but captures {captures} values", graph.inputs().len());
        return Err(OpError::attribute(name, problem));
    }
    if depth(&graph) > MAX_DEPTH {
        return Err(OpError::attribute(name, format!("holds subgraphs nested deeper than {MAX_DEPTH} levels")));
    }
    Ok(Body { graph, captures })
}

/// Levels of subgraphs, the graph itself included.
fn depth(graph: &Graph) -> usize {
    let inner = graph.nodes().flat_map(|(_, n)| n.op.bodies()).map(|(_, b)| depth(&b.graph)).max();
    1 + inner.unwrap_or(0)
}

/// Bodies that replace `old`, where there are as many of them.
pub(crate) fn replacement<const N: usize>(bodies: Vec<Body>) -> Option<[Body; N]> {
    bodies.try_into().ok()
}

/// The last `captures` inputs.
pub(crate) fn captured(cx: &EvalCx, captures: usize) -> Result<Vec<Datum>, OpError> {
    let from = cx.len().checked_sub(captures).ok_or(OpError::MissingInput(cx.len()))?;
    data(cx, from, cx.len())
}

/// The inputs `from..to`, all present.
pub(crate) fn data(cx: &EvalCx, from: usize, to: usize) -> Result<Vec<Datum>, OpError> {
    (from..to).map(|i| cx.datum(i).cloned().ok_or(OpError::MissingInput(i))).collect()
}

/// Runs a body; the number of inputs and outputs is checked.
pub(crate) fn run_body(body: &Body, inputs: &[Datum], outputs: usize) -> Result<Vec<Datum>, OpError> {
    let outs = run(&body.graph, inputs)?;
    if outs.len() < outputs {
        let message = format!("the subgraph has {} outputs, {outputs} are needed", outs.len());
        return Err(OpError::Value(message));
    }
    Ok(outs)
}

/// Turns data into tensors, for [`narrowbit_ir::Op::eval`].
pub(crate) fn tensors(data: Vec<Datum>) -> Result<Vec<Tensor>, OpError> {
    let tensor = |d: Datum| match d {
        Datum::Tensor(t) => Ok(t),
        other => Err(OpError::Unsupported(format!("an output that is {} where tensors are expected", other.kind()))),
    };
    data.into_iter().map(tensor).collect()
}

/// The only element of a boolean tensor.
pub(crate) fn condition(t: &Tensor, index: usize) -> Result<bool, OpError> {
    match t.bools()?.as_slice() {
        [c] => Ok(*c),
        _ => Err(OpError::input(index, format!("of shape {:?}", t.shape()), "a single boolean")),
    }
}

/// Infers a body from one fact per input. Contradictions inside leave types unknown: exporters
/// write branches that only fit the shapes for which they are taken.
pub(crate) fn infer_body(body: &Body, inputs: Vec<Fact>) -> Result<Vec<Fact>, OpError> {
    let given: BTreeMap<_, _> = body.graph.inputs().iter().copied().zip(inputs).collect();
    let facts = infer(&body.graph, &given, Options { strict: false, ..Options::default() })?;
    Ok(body.graph.outputs().iter().map(|&v| facts.get(v).clone()).collect())
}

/// The facts of the captured values.
pub(crate) fn captured_facts(cx: &InferCx, captures: usize) -> Vec<Fact> {
    (cx.len().saturating_sub(captures)..cx.len()).map(|i| cx.opt(i).cloned().unwrap_or_default()).collect()
}

/// A fact with only its type: contents change from one iteration to the next.
pub(crate) fn type_only(fact: Option<&Fact>) -> Fact {
    Fact { ty: fact.map(|f| f.ty.clone()).unwrap_or_default(), ..Fact::default() }
}

/// What holds whichever of two facts is true.
pub(crate) fn join(a: &ValueType, b: &ValueType) -> ValueType {
    match (a, b) {
        (ValueType::Tensor(a), ValueType::Tensor(b)) => ValueType::Tensor(join_tensors(a, b)),
        (ValueType::Sequence(a), ValueType::Sequence(b)) => ValueType::Sequence(Box::new(join(a, b))),
        (ValueType::Optional(a), ValueType::Optional(b)) => ValueType::Optional(Box::new(join(a, b))),
        _ => ValueType::Unknown,
    }
}

fn join_tensors(a: &TensorType, b: &TensorType) -> TensorType {
    let shape = match (&a.shape, &b.shape) {
        (Some(x), Some(y)) if x.len() == y.len() => {
            Some(x.iter().zip(y).map(|(d, e)| if d.same(e) { d.clone() } else { Dim::Unknown }).collect())
        }
        _ => None,
    };
    TensorType { dtype: a.dtype.filter(|_| a.dtype == b.dtype), shape }
}

/// The type without what may depend on a wrong guess: shapes.
pub(crate) fn forget_shape(ty: &ValueType) -> ValueType {
    match ty {
        ValueType::Tensor(t) => ValueType::Tensor(TensorType { dtype: t.dtype, shape: None }),
        ValueType::Sequence(t) => ValueType::Sequence(Box::new(forget_shape(t))),
        ValueType::Optional(t) => ValueType::Optional(Box::new(forget_shape(t))),
        ValueType::Unknown => ValueType::Unknown,
    }
}

/// A tensor's elements in a form that can be cut and joined.
enum Parts {
    Strings(Vec<String>),
    /// Whole bytes, this many per element.
    Bytes(Vec<u8>, usize),
}

impl Parts {
    fn of(t: &Tensor) -> Result<Parts, OpError> {
        Ok(match t.dtype() {
            DType::String => Parts::Strings(t.strings()?.to_vec()),
            d if d.is_packed() => Parts::Bytes(t.codes()?, 1),
            d => Parts::Bytes(t.bytes().to_vec(), d.bits() / 8),
        })
    }

    fn tensor(self, dtype: DType, shape: Vec<usize>) -> Result<Tensor, OpError> {
        Ok(match self {
            Parts::Strings(s) => Tensor::from_strings(shape, s)?,
            Parts::Bytes(b, _) if dtype.is_packed() => Tensor::from_codes(dtype, shape, &b)?,
            Parts::Bytes(b, _) => Tensor::from_bytes(dtype, shape, b)?,
        })
    }
}

/// The elements `start..start + len` along an axis, which must be in range.
pub(crate) fn slice_axis(t: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor, OpError> {
    let mut out = t.shape().to_vec();
    let extent = out[axis];
    out[axis] = len;
    let inner: usize = t.shape()[axis + 1..].iter().product();
    fn cut<T: Clone>(x: &[T], row: usize, start: usize, len: usize) -> Vec<T> {
        if row == 0 { Vec::new() } else { x.chunks_exact(row).flat_map(|r| r[start..start + len].to_vec()).collect() }
    }
    let parts = match Parts::of(t)? {
        Parts::Strings(s) => Parts::Strings(cut(&s, extent * inner, start * inner, len * inner)),
        Parts::Bytes(b, w) => Parts::Bytes(cut(&b, extent * inner * w, start * inner * w, len * inner * w), w),
    };
    parts.tensor(t.dtype(), out)
}

/// The slice at one index of an axis, without that axis.
pub(crate) fn index_axis(t: &Tensor, axis: usize, at: usize) -> Result<Tensor, OpError> {
    let mut shape = t.shape().to_vec();
    shape.remove(axis);
    Ok(slice_axis(t, axis, at, 1)?.reshaped(shape)?)
}

/// Tensors joined along an existing axis.
pub(crate) fn concat(ts: &[Tensor], axis: usize) -> Result<Tensor, OpError> {
    let first = ts.first().ok_or_else(|| OpError::Value("there is nothing to concatenate".into()))?;
    let mut out = first.shape().to_vec();
    out[axis] = 0;
    for t in ts {
        let fits = t.dtype() == first.dtype()
            && t.rank() == first.rank()
            && (0..t.rank()).all(|i| i == axis || t.shape()[i] == first.shape()[i]);
        if !fits {
            let message = format!("{t:?} can't be joined with {first:?} along axis {axis}");
            return Err(OpError::shape(message));
        }
        out[axis] = out[axis].saturating_add(t.shape()[axis]);
    }
    check_size(first.dtype(), &out)?;
    let outer: usize = first.shape()[..axis].iter().product();
    let inner: usize = first.shape()[axis + 1..].iter().product();
    fn join<T: Clone>(xs: &[(&[T], usize)], outer: usize) -> Vec<T> {
        (0..outer)
            .flat_map(|o| xs.iter().flat_map(move |&(x, row)| x[o * row..(o + 1) * row].iter().cloned()))
            .collect()
    }
    let parts = ts.iter().map(Parts::of).collect::<Result<Vec<_>, _>>()?;
    let rows = ts.iter().map(|t| t.shape()[axis] * inner);
    let joined = if first.dtype() == DType::String {
        let xs: Vec<(&[String], usize)> = parts
            .iter()
            .zip(rows)
            .filter_map(|(p, r)| if let Parts::Strings(s) = p { Some((s.as_slice(), r)) } else { None })
            .collect();
        Parts::Strings(join(&xs, outer))
    } else {
        let xs: Vec<(&[u8], usize)> = parts
            .iter()
            .zip(rows)
            .filter_map(|(p, r)| if let Parts::Bytes(b, w) = p { Some((b.as_slice(), r * w)) } else { None })
            .collect();
        Parts::Bytes(join(&xs, outer), 1)
    };
    joined.tensor(first.dtype(), out)
}

/// Tensors of one shape joined along a new axis.
pub(crate) fn stack(ts: &[Tensor], axis: usize) -> Result<Tensor, OpError> {
    let wide = |t: &Tensor| {
        let mut s = t.shape().to_vec();
        s.insert(axis.min(s.len()), 1);
        Ok(t.reshaped(s)?)
    };
    concat(&ts.iter().map(wide).collect::<Result<Vec<_>, OpError>>()?, axis)
}

/// An axis in `[-rank, rank)`.
pub(crate) fn axis(a: i64, rank: usize, name: &str) -> Result<usize, OpError> {
    shape::axis(a, rank).ok_or_else(|| OpError::attribute(name, format!("is {a}, but there are {rank} dimensions")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_and_joins_along_any_axis() {
        let t = Tensor::new([2, 3], vec![1i16, 2, 3, 4, 5, 6]).unwrap();
        let middle = slice_axis(&t, 1, 1, 1).unwrap();
        assert_eq!(middle.to_i64s().unwrap(), [2, 5]);
        assert_eq!(index_axis(&t, 0, 1).unwrap().to_i64s().unwrap(), [4, 5, 6]);
        assert_eq!(concat(&[middle, t.clone()], 1).unwrap().to_i64s().unwrap(), [2, 1, 2, 3, 5, 4, 5, 6]);
        assert_eq!(stack(&[t.clone(), t], 2).unwrap().shape(), [2, 3, 2]);
    }

    #[test]
    fn cuts_and_joins_packed_types_and_strings() {
        let t = Tensor::from_i64s(DType::I4, [3], &[-8, 7, 1]).unwrap();
        let joined = concat(&[slice_axis(&t, 0, 1, 2).unwrap(), t], 0).unwrap();
        assert_eq!(joined.to_i64s().unwrap(), [7, 1, -8, 7, 1]);
        let s = Tensor::from_strings([2], vec!["a".into(), "b".into()]).unwrap();
        assert_eq!(concat(&[index_axis(&s, 0, 1).unwrap().reshaped([1]).unwrap(), s], 0).unwrap().len(), 3);
    }

    #[test]
    fn refuses_to_join_what_does_not_fit() {
        let (a, b) = (Tensor::vector(vec![1f32]), Tensor::vector(vec![1i32]));
        assert!(concat(&[a.clone(), b], 0).is_err());
        assert!(concat(&[], 0).is_err());
        assert!(stack(&[a, Tensor::vector(vec![1f32, 2.0])], 0).is_err());
    }
}
