//! Einsum: sums of products in Einstein's notation.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor, shape};

use super::num::Num;
use super::product::multiply;

/// The sum of products that `equation` describes, for instance `bij,bjk->bik`; one numeric type.
/// Floating-point types are accumulated in `f64` and rounded once, integers wrap around.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Einsum {
    /// The equation as the file has it.
    pub equation: String,
    inputs: Vec<Vec<Label>>,
    /// `None` where the equation has no arrow.
    output: Option<Vec<Label>>,
}

/// A subscript of an equation; dimensions of an ellipsis are counted from the back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    /// All of `...`, before its number of dimensions is known.
    Ellipsis,
    /// One dimension of `...`: 0 is its last.
    Lead(usize),
    Letter(char),
}

/// Makes an Einsum from its attribute `equation`.
///
/// # Errors
/// When the equation is missing or malformed.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let equation = attrs.string("equation")?.ok_or_else(|| OpError::attribute("equation", "is missing"))?;
    Ok(Arc::new(Einsum::new(equation)?))
}

impl Einsum {
    /// Reads an equation.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn new(equation: String) -> Result<Einsum, OpError> {
        let bad = |why: &str| OpError::attribute("equation", format!("{equation:?} {why}"));
        let compact: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match compact.split_once("->") {
            Some((l, r)) => (l, Some(r)),
            None => (compact.as_str(), None),
        };
        let inputs: Option<Vec<_>> = left.split(',').map(labels).collect();
        let inputs = inputs.ok_or_else(|| bad("has other subscripts than letters and one ellipsis"))?;
        let output = match right.map(labels) {
            Some(None) => return Err(bad("has other output subscripts than letters and one ellipsis")),
            other => other.flatten(),
        };
        if let Some(out) = &output {
            let known = |l: &Label| *l == Label::Ellipsis || inputs.iter().any(|i| i.contains(l));
            let twice = (1..out.len()).any(|i| out[..i].contains(&out[i]));
            if twice || !out.iter().all(known) {
                return Err(bad("repeats an output subscript or has one that no input has"));
            }
        }
        Ok(Einsum { equation, inputs, output })
    }

    /// The subscripts of each operand and of the result as numbers, for operands of these ranks: equal numbers are equal
    /// subscripts.
    ///
    /// # Errors
    /// When the equation does not fit the ranks.
    pub fn subscripts(&self, ranks: &[usize]) -> Result<(Vec<Vec<usize>>, Vec<usize>), OpError> {
        let (inputs, output) = self.expand(ranks)?;
        let mut known: Vec<Label> = Vec::new();
        let mut number = |l: Label| {
            known.iter().position(|k| *k == l).unwrap_or_else(|| {
                known.push(l);
                known.len() - 1
            })
        };
        let inputs = inputs.into_iter().map(|term| term.into_iter().map(&mut number).collect()).collect();
        Ok((inputs, output.into_iter().map(number).collect()))
    }

    /// The labels of each input and of the output for inputs of these ranks.
    fn expand(&self, ranks: &[usize]) -> Result<(Vec<Vec<Label>>, Vec<Label>), OpError> {
        let bad = |why: String| OpError::Shape(format!("equation {:?} {why}", self.equation));
        if ranks.len() != self.inputs.len() {
            return Err(bad(format!("has {} operands, {} were given", self.inputs.len(), ranks.len())));
        }
        let (mut inputs, mut lead) = (Vec::new(), 0);
        for (i, (term, &rank)) in self.inputs.iter().zip(ranks).enumerate() {
            let dots = usize::from(term.contains(&Label::Ellipsis));
            let letters = term.len() - dots;
            if rank < letters || dots == 0 && rank > letters {
                return Err(bad(format!("does not fit operand {i} with {rank} dimensions")));
            }
            lead = lead.max(rank - letters);
            inputs.push(spread(term, rank - letters));
        }
        let output = match &self.output {
            Some(out) => spread(out, lead),
            None => implicit(&inputs, lead),
        };
        Ok((inputs, output))
    }
}

/// The subscripts of one term, or `None` where it is malformed.
fn labels(term: &str) -> Option<Vec<Label>> {
    let letters = |s: &str| s.chars().map(|c| c.is_ascii_alphabetic().then_some(Label::Letter(c))).collect();
    let Some((before, after)) = term.split_once("...") else { return letters(term) };
    let (mut all, after): (Vec<Label>, Vec<Label>) = (letters(before)?, letters(after)?);
    all.push(Label::Ellipsis);
    all.extend(after);
    Some(all)
}

/// A term with its ellipsis as `n` dimensions.
fn spread(term: &[Label], n: usize) -> Vec<Label> {
    let one = |&l: &Label| match l {
        Label::Ellipsis => (0..n).rev().map(Label::Lead).collect(),
        other => vec![other],
    };
    term.iter().flat_map(one).collect()
}

/// Without an arrow: the ellipsis, then all letters that occur once, in alphabetical order.
fn implicit(inputs: &[Vec<Label>], lead: usize) -> Vec<Label> {
    let mut counts: BTreeMap<Label, usize> = BTreeMap::new();
    inputs.iter().flatten().for_each(|&l| *counts.entry(l).or_default() += 1);
    let once = counts.into_iter().filter(|&(l, n)| n == 1 && matches!(l, Label::Letter(_))).map(|(l, _)| l);
    (0..lead).rev().map(Label::Lead).chain(once).collect()
}

/// An operand whose dimensions have labels, each at most once.
struct Operand<T> {
    labels: Vec<Label>,
    data: Vec<T>,
}

type Extents = BTreeMap<Label, usize>;

/// The extent of each label over all inputs; extents of 1 broadcast.
fn extents(inputs: &[Vec<Label>], shapes: &[&[usize]]) -> Result<Extents, OpError> {
    let mut all = Extents::new();
    for (&label, &d) in inputs.iter().flatten().zip(shapes.iter().copied().flatten()) {
        let e = all.entry(label).or_insert(d);
        match (*e, d) {
            (a, b) if a == b => {}
            (1, b) => *e = b,
            (_, 1) => {}
            (a, b) => return Err(OpError::Shape(format!("a subscript of Einsum stands for extents {a} and {b}"))),
        }
    }
    Ok(all)
}

/// `data` read as an operand of dimensions `to`: strides add up over repeated
/// labels (diagonals) and are 0 for labels that it has not or has with extent 1.
fn gather<T: Copy>(
    data: &[T],
    labels: &[Label],
    own: &[usize],
    to: &[Label],
    extents: &Extents,
) -> Result<Vec<T>, OpError> {
    let dims: Vec<usize> = to.iter().map(|l| extents.get(l).copied().unwrap_or(1)).collect();
    check_size(DType::F64, &dims)?;
    if labels == to && own == dims {
        return Ok(data.to_vec());
    }
    let own_strides = shape::strides(own);
    let stride = |l: &Label| {
        let all = labels.iter().zip(own.iter().zip(&own_strides));
        all.filter(|(x, (d, _))| *x == l && **d != 1).map(|(_, (_, s))| *s).sum()
    };
    let strides: Vec<usize> = to.iter().map(stride).collect();
    if data.is_empty() || shape::count(&dims)? == 0 {
        return Ok(Vec::new());
    }
    Ok(shape::offsets(&dims, &strides).map(|i| data[i]).collect())
}

fn sizes(labels: &[Label], extents: &Extents) -> Vec<usize> {
    labels.iter().map(|l| extents.get(l).copied().unwrap_or(1)).collect()
}

impl<T: Num> Operand<T> {
    /// With each label once, and summed over those that nothing else needs.
    fn new(
        x: (&[T], &[usize]),
        labels: &[Label],
        needed: &dyn Fn(Label) -> bool,
        extents: &Extents,
    ) -> Result<Operand<T>, OpError> {
        let mut kept: Vec<Label> = Vec::new();
        for &l in labels {
            if needed(l) && !kept.contains(&l) {
                kept.push(l);
            }
        }
        let mut gone: Vec<Label> = Vec::new();
        for &l in labels {
            if !needed(l) && !gone.contains(&l) {
                gone.push(l);
            }
        }
        let all: Vec<Label> = kept.iter().chain(&gone).copied().collect();
        let data = gather(x.0, labels, x.1, &all, extents)?;
        if gone.is_empty() {
            return Ok(Operand { labels: kept, data });
        }
        let (n, len) = (shape::count(&sizes(&gone, extents))?, shape::count(&sizes(&kept, extents))?);
        if data.is_empty() {
            return Ok(Operand { labels: kept, data: vec![T::ZERO; len] });
        }
        let data = data.chunks(n).map(|c| c.iter().fold(T::ZERO, |s, &v| s.plus(v))).collect();
        Ok(Operand { labels: kept, data })
    }

    /// The product with another operand, summed over the labels that nothing else needs:
    /// a batch of matrix products.
    fn contract(
        self,
        other: Operand<T>,
        needed: &dyn Fn(Label) -> bool,
        extents: &Extents,
    ) -> Result<Operand<T>, OpError> {
        let pick = |from: &[Label], f: &dyn Fn(Label) -> bool| -> Vec<Label> {
            from.iter().copied().filter(|&l| f(l)).collect()
        };
        let both = |l: Label| other.labels.contains(&l);
        let batch = pick(&self.labels, &|l| both(l) && needed(l));
        let depth = pick(&self.labels, &|l| both(l) && !needed(l));
        let rows = pick(&self.labels, &|l| !both(l));
        let columns = pick(&other.labels, &|l| !self.labels.contains(&l));
        let join = |parts: [&[Label]; 3]| parts.concat();
        let size = |l: &[Label]| shape::count(&sizes(l, extents));
        let (b, m, k, n) = (size(&batch)?, size(&rows)?, size(&depth)?, size(&columns)?);
        let own = sizes(&self.labels, extents);
        let x = gather(&self.data, &self.labels, &own, &join([&batch, &rows, &depth]), extents)?;
        let own = sizes(&other.labels, extents);
        let y = gather(&other.data, &other.labels, &own, &join([&batch, &depth, &columns]), extents)?;
        let labels = join([&batch, &rows, &columns]);
        let mut data = vec![T::ZERO; check_size(DType::F64, &sizes(&labels, extents))?];
        if !data.is_empty() && k > 0 {
            for i in 0..b {
                let (x, y) = (&x[i * m * k..][..m * k], &y[i * k * n..][..k * n]);
                multiply(m, k, n, x, y, &mut data[i * m * n..][..m * n]);
            }
        }
        Ok(Operand { labels, data })
    }
}

impl Einsum {
    fn apply<T: Num>(&self, ins: &[(Vec<T>, &[usize])]) -> Result<(Vec<T>, Vec<usize>), OpError> {
        let shapes: Vec<&[usize]> = ins.iter().map(|x| x.1).collect();
        let ranks: Vec<usize> = shapes.iter().map(|s| s.len()).collect();
        let (terms, output) = self.expand(&ranks)?;
        let extents = extents(&terms, &shapes)?;
        // An operand's extents of 1 are widened first, so that all operands agree on each label's extent.
        let mut acc: Option<Operand<T>> = None;
        for (i, (data, own)) in ins.iter().enumerate() {
            let later = |l: Label| output.contains(&l) || terms[i + 1..].iter().any(|t| t.contains(&l));
            let before = acc.as_ref().map(|a| a.labels.clone()).unwrap_or_default();
            let x = Operand::new((data, own), &terms[i], &|l| later(l) || before.contains(&l), &extents)?;
            acc = Some(match acc {
                None => x,
                Some(a) => a.contract(x, &later, &extents)?,
            });
        }
        let acc = acc.ok_or(OpError::MissingInput(0))?;
        let own = sizes(&acc.labels, &extents);
        let y = gather(&acc.data, &acc.labels, &own, &output, &extents)?;
        Ok((y, sizes(&output, &extents)))
    }
}

impl Op for Einsum {
    fn name(&self) -> &str {
        "Einsum"
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = (0..cx.len()).find_map(|i| cx.dtype(i));
        let shapes: Option<Vec<&[Dim]>> = (0..cx.len()).map(|i| cx.shape(i)).collect();
        let Some(shapes) = shapes else { return Ok(vec![Fact::tensor(dtype, None)]) };
        let ranks: Vec<usize> = shapes.iter().map(|s| s.len()).collect();
        let (terms, output) = self.expand(&ranks)?;
        let mut extents: BTreeMap<Label, Dim> = BTreeMap::new();
        for (&label, d) in terms.iter().flatten().zip(shapes.iter().copied().flatten()) {
            let e = extents.entry(label).or_insert_with(|| d.clone());
            *e = e.broadcast(d).ok_or_else(|| {
                OpError::Shape(format!("a subscript of equation {:?} stands for extents {e} and {d}", self.equation))
            })?;
        }
        let out = output.iter().map(|l| extents.get(l).cloned().unwrap_or(Dim::Known(1))).collect();
        Ok(vec![Fact::tensor(dtype, Some(out))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let ins = cx.all()?;
        let dtype = cx.get(0)?.dtype();
        if let Some(i) = ins.iter().position(|x| x.dtype() != dtype) {
            return Err(OpError::input(i, ins[i].dtype().name(), dtype.name()));
        }
        let y = if dtype.is_float() {
            let data = ins.iter().map(|x| Ok((x.to_f64s()?, x.shape()))).collect::<Result<Vec<_>, OpError>>()?;
            let (y, out) = self.apply(&data)?;
            Tensor::from_f64s(dtype, out, &y)?
        } else if dtype.is_int() {
            let data = ins.iter().map(|x| Ok((x.to_i64s()?, x.shape()))).collect::<Result<Vec<_>, OpError>>()?;
            let (y, out) = self.apply(&data)?;
            Tensor::from_i64s(dtype, out, &y)?
        } else {
            return Err(OpError::input(0, dtype.name(), "a numeric type"));
        };
        Ok(vec![y])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new().with("equation", self.equation.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(equation: &str, shapes: &[&[usize]]) -> Result<(Vec<i64>, Vec<usize>), OpError> {
        let fill = |s: &[usize]| (1..=s.iter().product::<usize>() as i64).collect::<Vec<_>>();
        let ins: Vec<(Vec<i64>, &[usize])> = shapes.iter().map(|&s| (fill(s), s)).collect();
        Einsum::new(equation.into())?.apply(&ins)
    }

    #[test]
    fn computes_products_sums_diagonals_and_permutations() {
        assert_eq!(run("ij,jk->ik", &[&[1, 2], &[2, 2]]), Ok((vec![7, 10], vec![1, 2])));
        assert_eq!(run("ij->ji", &[&[2, 2]]), Ok((vec![1, 3, 2, 4], vec![2, 2])));
        assert_eq!(run("ii->i", &[&[2, 2]]), Ok((vec![1, 4], vec![2])));
        assert_eq!(run("ii", &[&[2, 2]]), Ok((vec![5], vec![])));
        assert_eq!(run("ij->i", &[&[2, 2]]), Ok((vec![3, 7], vec![2])));
        assert_eq!(run("i,i", &[&[3], &[3]]), Ok((vec![14], vec![])));
        assert_eq!(run(" b a ", &[&[1, 2]]), Ok((vec![1, 2], vec![2, 1])));
    }

    #[test]
    fn broadcasts_ellipses_and_extents_of_one() {
        assert_eq!(run("...ij,...jk", &[&[2, 1, 1], &[1, 2]]), Ok((vec![1, 2, 2, 4], vec![2, 1, 2])));
        assert_eq!(run("...i->...", &[&[2, 2]]), Ok((vec![3, 7], vec![2])));
        assert_eq!(run("ij,ij->i", &[&[2, 2], &[2, 1]]), Ok((vec![3, 14], vec![2])));
        assert_eq!(run("i,j,k->ijk", &[&[1], &[2], &[2]]), Ok((vec![1, 2, 2, 4], vec![1, 2, 2])));
    }

    #[test]
    fn refuses_malformed_equations_and_operands() {
        for equation in ["i1->i", "i->j", "i->ii", "....i", "..i"] {
            assert!(Einsum::new(equation.into()).is_err(), "{equation}");
        }
        assert!(run("ij,jk", &[&[1, 2], &[3, 1]]).is_err());
        assert!(run("ij", &[&[1]]).is_err());
        assert!(run("i,j", &[&[1]]).is_err());
    }
}
