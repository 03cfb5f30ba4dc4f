use std::fmt;
use std::sync::Arc;

/// One extent of a shape, or one element of a shape computation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number. Negative only inside shape computations (Reshape's −1).
    Known(i64),
    /// A name such as `batch`, or an expression over names such as `2*batch`;
    /// two symbols with the same text are the same number.
    Sym(Arc<str>),
    /// Not known, and not known to equal any other.
    Unknown,
}

impl Dim {
    /// The symbol `name`.
    pub fn sym(name: &str) -> Dim {
        Dim::Sym(name.into())
    }

    /// The extent as a number, where it is known and not negative.
    pub fn as_usize(&self) -> Option<usize> {
        match self {
            Dim::Known(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The number, where it is known.
    pub fn as_known(&self) -> Option<i64> {
        match self {
            Dim::Known(n) => Some(*n),
            _ => None,
        }
    }

    /// Whether both are certainly the same number.
    pub fn same(&self, other: &Dim) -> bool {
        self == other && *self != Dim::Unknown
    }

    fn text(&self) -> String {
        match self {
            Dim::Sym(s) if s.contains(['+', '-', ' ']) && !s.starts_with('(') => format!("({s})"),
            other => other.to_string(),
        }
    }

    fn binary(&self, other: &Dim, op: &str, f: impl Fn(i64, i64) -> Option<i64>) -> Dim {
        match (self, other) {
            (Dim::Known(a), Dim::Known(b)) => f(*a, *b).map_or(Dim::Unknown, Dim::Known),
            (Dim::Unknown, _) | (_, Dim::Unknown) => Dim::Unknown,
            // Texts grow with each step of a shape computation: past this it helps nobody.
            (a, b) if a.text().len() + b.text().len() > 200 => Dim::Unknown,
            (a, b) => Dim::Sym(format!("{}{op}{}", a.text(), b.text()).into()),
        }
    }

    /// The sum.
    pub fn add(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Known(0), d) | (d, Dim::Known(0)) => d.clone(),
            (Dim::Known(_), Dim::Sym(_)) => other.add(self),
            _ => self.binary(other, " + ", i64::checked_add),
        }
    }

    /// The difference.
    pub fn sub(&self, other: &Dim) -> Dim {
        match (self, other) {
            (d, Dim::Known(0)) => d.clone(),
            (a, b) if a.same(b) => Dim::Known(0),
            _ => self.binary(other, " - ", i64::checked_sub),
        }
    }

    /// The product; numbers come first in the text of a symbolic one.
    pub fn mul(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Known(1), d) | (d, Dim::Known(1)) => d.clone(),
            (Dim::Known(0), _) | (_, Dim::Known(0)) => Dim::Known(0),
            (Dim::Sym(a), Dim::Sym(b)) if a > b => other.mul(self),
            (Dim::Sym(_), Dim::Known(_)) => other.mul(self),
            _ => self.binary(other, "*", i64::checked_mul),
        }
    }

    /// The quotient rounded toward zero, as ONNX's Div of integers.
    pub fn div(&self, other: &Dim) -> Dim {
        match (self, other) {
            (d, Dim::Known(1)) => d.clone(),
            (a, b) if a.same(b) && *a != Dim::Known(0) => Dim::Known(1),
            _ => self.binary(other, "/", i64::checked_div),
        }
    }

    /// The extent of two broadcast extents, or `None` where they can't be broadcast.
    pub fn broadcast(&self, other: &Dim) -> Option<Dim> {
        match (self, other) {
            (Dim::Known(1), d) | (d, Dim::Known(1)) => Some(d.clone()),
            (Dim::Known(a), Dim::Known(b)) => (a == b).then_some(Dim::Known(*a)),
            // Anything but 1 wins: the symbol must be 1 or equal to it.
            (Dim::Known(a), _) | (_, Dim::Known(a)) => Some(Dim::Known(*a)),
            (a, b) if a.same(b) => Some(a.clone()),
            _ => Some(Dim::Unknown),
        }
    }

    /// The shape that two shapes broadcast to, or `None` where they can't be broadcast.
    pub fn broadcast_shapes(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
        let rank = a.len().max(b.len());
        let one = Dim::Known(1);
        let at = |s: &[Dim], i: usize| if i + s.len() < rank { one.clone() } else { s[i + s.len() - rank].clone() };
        (0..rank).map(|i| at(a, i).broadcast(&at(b, i))).collect()
    }

    /// The product of all extents.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::Known(1), |n, d| n.mul(d))
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        i64::try_from(n).map_or(Dim::Unknown, Dim::Known)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Sym(s) => f.write_str(s),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_symbols_through_arithmetic() {
        let b = Dim::sym("batch");
        assert_eq!(b.mul(&Dim::Known(12)), Dim::Known(12).mul(&b));
        assert_eq!(b.mul(&Dim::Known(1)), b);
        assert_eq!(b.sub(&b), Dim::Known(0));
        assert_eq!(Dim::Known(2).add(&b).mul(&Dim::Known(3)).to_string(), "3*(batch + 2)");
        assert_eq!(Dim::Unknown.add(&b), Dim::Unknown);
        assert_eq!(Dim::Known(i64::MAX).add(&Dim::Known(1)), Dim::Unknown);
    }

    #[test]
    fn broadcasts_symbols_against_numbers() {
        let s = Dim::broadcast_shapes(&[Dim::sym("n"), Dim::Known(1)], &[Dim::Known(7)]);
        assert_eq!(s, Some(vec![Dim::sym("n"), Dim::Known(7)]));
        assert_eq!(Dim::broadcast_shapes(&[Dim::Known(2)], &[Dim::Known(3)]), None);
    }
}
