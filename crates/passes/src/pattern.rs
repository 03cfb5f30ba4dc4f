//! Patterns that read like the formula that they recognise.
//!
//! ```
//! use narrowbit_passes::pattern::{num, var};
//! // The Gaussian error linear unit.
//! let gelu = var("x") * 0.5 * ((var("x") / std::f64::consts::SQRT_2).erf() + 1.0);
//! ```
//!
//! Add and Mul match with their operands in either order, a product with a number also matches the quotient by its
//! reciprocal and the other way round, a square also matches `Pow(x, 2)`. Numbers are constants of one element,
//! equal up to [`TOLERANCE`].

use std::collections::BTreeMap;
use std::ops::{Add, Div, Mul, Sub};

use narrowbit_ir::{NodeId, ValueId};

use crate::View;
use crate::pass::{Found, OrNo, unless_skipped};

/// How far a number in a file may be off, relative to the number that is meant: exporters round to `f32` and,
/// some, to six digits.
pub const TOLERANCE: f64 = 1e-5;

/// A pattern.
#[derive(Debug, Clone)]
pub enum Expr {
    /// Any value; the same name is the same value everywhere.
    Var(&'static str),
    /// Any constant of one element.
    Scalar(&'static str),
    /// A constant with one element of this value.
    Num(f64),
    /// A node with this operator; `label` finds the node again.
    Op {
        /// The operator's name in ONNX's own domain.
        op: &'static str,
        /// The first inputs.
        args: Vec<Expr>,
        /// The name under which the match knows the node.
        label: Option<&'static str>,
    },
    /// A part whose value has a name; where the name is bound already, only that value matches.
    Named(&'static str, Box<Expr>),
    /// The first alternative that matches.
    Any(Vec<Expr>),
}

/// Any value.
pub fn var(name: &'static str) -> Expr {
    Expr::Var(name)
}

/// Any constant of one element.
pub fn scalar(name: &'static str) -> Expr {
    Expr::Scalar(name)
}

/// A number.
pub fn num(value: f64) -> Expr {
    Expr::Num(value)
}

/// A node of an operator.
pub fn op(name: &'static str, args: impl Into<Vec<Expr>>) -> Expr {
    Expr::Op { op: name, args: args.into(), label: None }
}

/// The first alternative that matches.
pub fn any(alternatives: impl Into<Vec<Expr>>) -> Expr {
    Expr::Any(alternatives.into())
}

/// The square, as a product, a power or a square of its own.
pub fn square(x: Expr) -> Expr {
    any([op("Mul", [x.clone(), x.clone()]), op("Pow", [x, num(2.0)])])
}

/// The reciprocal of the square root, times something: `x / sqrt(v)` or `x * (1 / sqrt(v))`.
pub fn over_sqrt(x: Expr, v: Expr) -> Expr {
    let root = v.sqrt();
    let inverse = any([op("Reciprocal", [root.clone()]), op("Div", [num(1.0), root.clone()])]);
    any([op("Div", [x.clone(), root]), op("Mul", [x, inverse])])
}

impl Expr {
    /// The error function.
    pub fn erf(self) -> Expr {
        op("Erf", [self])
    }

    /// The hyperbolic tangent.
    pub fn tanh(self) -> Expr {
        op("Tanh", [self])
    }

    /// The square root.
    pub fn sqrt(self) -> Expr {
        any([op("Sqrt", [self.clone()]), op("Pow", [self, num(0.5)])])
    }

    /// The same pattern under a name.
    pub fn named(self, name: &'static str) -> Expr {
        Expr::Named(name, Box::new(self))
    }

    /// The same pattern whose node can be found under a name.
    pub fn label(self, name: &'static str) -> Expr {
        match self {
            Expr::Op { op, args, .. } => Expr::Op { op, args, label: Some(name) },
            other => other,
        }
    }

    /// Matches the pattern with the value that a node makes first.
    ///
    /// # Errors
    /// [`crate::Miss::No`] where it does not match; [`crate::Miss::Skip`] where an inner value is read outside of
    /// the match.
    pub fn find(&self, view: &View, id: NodeId) -> Found<Match> {
        let out = view.output(id)?;
        let found = self.at(view, out, Match::default()).or_no()?;
        for &node in found.nodes.iter().filter(|&&n| n != id) {
            let value = view.output(node)?;
            let inner = |u: &narrowbit_ir::Use| found.nodes.contains(&u.node);
            unless_skipped(
                !view.graph.is_output(value) && view.graph.uses(value).iter().all(inner),
                format!("\"{}\" is read elsewhere", view.graph.value(value).name),
            )?;
        }
        Ok(found)
    }

    fn at(&self, view: &View, v: ValueId, m: Match) -> Option<Match> {
        match self {
            Expr::Var(name) => m.bind(name, v),
            Expr::Scalar(name) => {
                view.scalar(v)?;
                m.bind(name, v)
            }
            Expr::Num(x) => is_near(view.scalar(v)?, *x).then_some(m),
            Expr::Named(name, inner) => match m.values.get(name) {
                Some(&bound) => (bound == v).then_some(m),
                None => inner.at(view, v, m)?.bind(name, v),
            },
            Expr::Any(list) => list.iter().find_map(|e| e.at(view, v, m.clone())),
            Expr::Op { op, args, label } => node(view, v, op, args, *label, m.clone()).or_else(|| {
                // A factor and its reciprocal are the same thing.
                let (other, factor) = match (*op, args.as_slice()) {
                    ("Div", [x, Expr::Num(c)]) if *c != 0.0 => ("Mul", [x.clone(), num(1.0 / c)]),
                    ("Mul", [x, Expr::Num(c)] | [Expr::Num(c), x]) if *c != 0.0 => ("Div", [x.clone(), num(1.0 / c)]),
                    _ => return None,
                };
                node(view, v, other, &factor, *label, m)
            }),
        }
    }
}

fn node(view: &View, v: ValueId, op: &str, args: &[Expr], label: Option<&'static str>, mut m: Match) -> Option<Match> {
    let id = view.made_by(v, &[op]).ok()?;
    let node = view.node(id);
    if node.inputs.len() < args.len() {
        return None;
    }
    m.nodes.push(id);
    if let Some(label) = label {
        m.labels.insert(label, id);
    }
    let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
    let in_order =
        |order: &[usize], m: Match| args.iter().zip(order).try_fold(m, |m, (arg, &i)| arg.at(view, *inputs.get(i)?, m));
    let straight: Vec<usize> = (0..args.len()).collect();
    let found = in_order(&straight, m.clone());
    match (op, args.len(), inputs.len()) {
        ("Add" | "Mul", 2, 2) => found.or_else(|| in_order(&[1, 0], m)),
        _ => found,
    }
}

/// What a pattern was matched with.
#[derive(Debug, Clone, Default)]
pub struct Match {
    values: BTreeMap<&'static str, ValueId>,
    labels: BTreeMap<&'static str, NodeId>,
    nodes: Vec<NodeId>,
}

impl Match {
    fn bind(mut self, name: &'static str, v: ValueId) -> Option<Match> {
        match self.values.insert(name, v) {
            Some(old) if old != v => None,
            _ => Some(self),
        }
    }

    /// The value of a name.
    ///
    /// # Errors
    /// [`crate::Miss::No`] where the pattern has no such name.
    pub fn value(&self, name: &str) -> Found<ValueId> {
        self.values.get(name).copied().or_no()
    }

    /// The node under a label.
    ///
    /// # Errors
    /// [`crate::Miss::No`] where the pattern has no such label.
    pub fn node(&self, label: &str) -> Found<NodeId> {
        self.labels.get(label).copied().or_no()
    }

    /// The nodes of the match.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }
}

/// Whether a number in a file is the one that is meant.
pub fn is_near(found: f64, meant: f64) -> bool {
    (found - meant).abs() <= TOLERANCE * meant.abs()
}

impl From<f64> for Expr {
    fn from(x: f64) -> Expr {
        num(x)
    }
}

macro_rules! operator {
    ($($trait:ident $method:ident),*) => { $(
        impl<T: Into<Expr>> $trait<T> for Expr {
            type Output = Expr;

            fn $method(self, other: T) -> Expr {
                op(stringify!($trait), [self, other.into()])
            }
        }
    )* };
}
operator!(Add add, Sub sub, Mul mul, Div div);
