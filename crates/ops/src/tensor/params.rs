//! Parameters that are attributes in older opsets and inputs in newer ones; axes; extents with symbols.

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, OpError};
use narrowbit_tensor::{Tensor, shape};

/// A list of integers that is an attribute in older opsets and an input in newer ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ints {
    /// Neither: the default applies.
    Absent,
    /// The attribute.
    Attr(Vec<i64>),
    /// The input at this position, where present.
    Input(usize),
}

/// What inference knows of [`Ints`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Not given: the default applies.
    Absent,
    /// Given, but its contents are not known.
    Unknown,
    /// Its elements, symbols included.
    Dims(Vec<Dim>),
}

impl Ints {
    /// Takes the attribute `name` before opset `since`, the input at `index` from then on.
    ///
    /// # Errors
    /// When the attribute is no list of integers.
    pub fn take(attrs: &mut AttrMap, name: &str, index: usize, opset: i64, since: i64) -> Result<Ints, OpError> {
        if opset >= since {
            return Ok(Ints::Input(index));
        }
        Ok(attrs.ints(name)?.map_or(Ints::Absent, Ints::Attr))
    }

    /// The attribute's value, for [`narrowbit_ir::Op::attrs`].
    pub fn attr(&self) -> Option<Vec<i64>> {
        match self {
            Ints::Attr(v) => Some(v.clone()),
            _ => None,
        }
    }

    /// What is known when types are inferred.
    pub fn infer(&self, cx: &InferCx) -> Known {
        match self {
            Ints::Absent => Known::Absent,
            Ints::Attr(v) => Known::Dims(v.iter().map(|&i| Dim::Known(i)).collect()),
            Ints::Input(i) if cx.opt(*i).is_none() => Known::Absent,
            Ints::Input(i) => dims(cx, *i).map_or(Known::Unknown, Known::Dims),
        }
    }

    /// The value at run time.
    ///
    /// # Errors
    /// When the input is no tensor of integers.
    pub fn eval(&self, cx: &EvalCx) -> Result<Option<Vec<i64>>, OpError> {
        match self {
            Ints::Absent => Ok(None),
            Ints::Attr(v) => Ok(Some(v.clone())),
            Ints::Input(i) if cx.datum(*i).is_none() => Ok(None),
            Ints::Input(i) => Ok(Some(cx.get(*i)?.to_i64s()?)),
        }
    }
}

/// A parameter is given, but inference does not know its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotKnown;

impl Known {
    /// All elements as numbers, `None` where absent.
    ///
    /// # Errors
    /// When they are given but not known as numbers.
    pub fn numbers(&self) -> Result<Option<Vec<i64>>, NotKnown> {
        match self {
            Known::Absent => Ok(None),
            Known::Unknown => Err(NotKnown),
            Known::Dims(d) => d.iter().map(Dim::as_known).collect::<Option<Vec<_>>>().map(Some).ok_or(NotKnown),
        }
    }
}

/// The elements of an integer input as extents, where known.
pub fn dims(cx: &InferCx, i: usize) -> Option<Vec<Dim>> {
    match cx.dims(i) {
        Some(d) => Some(d.to_vec()),
        None => Some(cx.ints(i)?.into_iter().map(Dim::Known).collect()),
    }
}

/// The length of a one-dimensional input, where known.
pub fn vector_len(cx: &InferCx, i: usize) -> Option<usize> {
    match cx.shape(i)? {
        [n] => n.as_usize(),
        _ => None,
    }
}

/// The single integer of an input at run time.
///
/// # Errors
/// When it is no tensor of integers or has no element.
pub fn scalar(cx: &EvalCx, i: usize) -> Result<i64, OpError> {
    let v = cx.get(i)?.to_i64s()?;
    v.first().copied().ok_or_else(|| OpError::input(i, "an empty tensor", "a tensor of one element"))
}

/// The single floating-point number of an input at run time, where present.
///
/// # Errors
/// When it is no tensor of numbers or has no element.
pub fn float(cx: &EvalCx, i: usize) -> Result<Option<f64>, OpError> {
    let Some(t) = cx.opt(i) else { return Ok(None) };
    match t.to_f64s()?.first() {
        Some(&v) => Ok(Some(v)),
        None => Err(OpError::input(i, "an empty tensor", "a tensor of one element")),
    }
}

/// An axis counted from the front.
///
/// # Errors
/// When it is outside of `[-rank, rank)`.
pub fn axis(a: i64, rank: usize) -> Result<usize, OpError> {
    shape::axis(a, rank).ok_or_else(|| OpError::shape(format!("axis {a} is outside of [-{rank}, {rank})")))
}

/// Axes counted from the front.
///
/// # Errors
/// When one is out of range or named twice.
pub fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let mut seen = vec![false; rank];
    let mut out = Vec::with_capacity(list.len().min(rank));
    for &a in list {
        let i = axis(a, rank)?;
        if std::mem::replace(&mut seen[i], true) {
            return Err(OpError::shape(format!("axis {a} is named twice")));
        }
        out.push(i);
    }
    Ok(out)
}

/// Extents from integers.
///
/// # Errors
/// When one is negative.
pub fn extents(v: &[i64]) -> Result<Vec<usize>, OpError> {
    v.iter()
        .map(|&d| usize::try_from(d).map_err(|_| OpError::Value(format!("{v:?} is no shape: {d} is negative"))))
        .collect()
}

/// The index counted from the front.
///
/// # Errors
/// When it is outside of `[-n, n)`.
pub fn index(i: i64, n: usize) -> Result<usize, OpError> {
    let out = if i < 0 { i.checked_add_unsigned(n as u64) } else { Some(i) };
    out.and_then(|i| usize::try_from(i).ok())
        .filter(|&i| i < n)
        .ok_or_else(|| OpError::Value(format!("index {i} is outside of [-{n}, {n})")))
}

/// Extents of a type, for shapes that are known as numbers.
pub fn known(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&d| Dim::from(d)).collect()
}

/// `rank` extents of which nothing is known.
pub fn unknown(rank: usize) -> Vec<Dim> {
    vec![Dim::Unknown; rank]
}

/// The better known of two extents that must be equal.
///
/// # Errors
/// When they are different numbers.
pub fn unify(a: &Dim, b: &Dim) -> Result<Dim, OpError> {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) if x != y => Err(OpError::shape(format!("extents {x} and {y} should be equal"))),
        (Dim::Known(_), _) | (_, Dim::Unknown) => Ok(a.clone()),
        (_, Dim::Known(_)) | (Dim::Unknown, _) => Ok(b.clone()),
        _ => Ok(a.clone()),
    }
}

/// A shape given by the contents of an input: its extents where known, as many unknown ones where only its length is.
///
/// # Errors
/// When an extent is negative.
pub fn shape_input(cx: &InferCx, i: usize) -> Result<Option<Vec<Dim>>, OpError> {
    match dims(cx, i) {
        Some(d) => match d.iter().find(|d| d.as_known().is_some_and(|n| n < 0)) {
            Some(bad) => Err(OpError::Value(format!("extent {bad} of the shape is negative"))),
            None => Ok(Some(d)),
        },
        None => Ok(vector_len(cx, i).filter(|&n| n <= Fact::MAX_DIMS).map(unknown)),
    }
}

/// The single boolean of a tensor; any numeric type counts as true where not zero.
///
/// # Errors
/// When it is empty or no tensor of booleans or integers.
pub fn first_bool(t: &Tensor, i: usize) -> Result<bool, OpError> {
    let v = t.to_i64s()?.first().copied();
    v.map(|v| v != 0).ok_or_else(|| OpError::input(i, "an empty tensor", "a tensor of one element"))
}
