//! Products of extents, with symbols that cancel: how Reshape finds the extent of −1.

use narrowbit_ir::Dim;

/// A product of a number and symbols.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Product {
    number: i64,
    symbols: Vec<String>,
}

impl Product {
    /// `None` where a factor is unknown or the number overflows.
    fn of<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Option<Product> {
        let mut out = Product { number: 1, symbols: Vec::new() };
        for d in dims {
            match d {
                Dim::Unknown => return None,
                Dim::Known(n) => out.number = out.number.checked_mul(*n)?,
                Dim::Sym(text) => {
                    for atom in atoms(text) {
                        match atom.parse::<i64>() {
                            Ok(n) => out.number = out.number.checked_mul(n)?,
                            Err(_) => out.symbols.push(atom.to_string()),
                        }
                    }
                }
            }
        }
        out.symbols.sort();
        Some(out)
    }

    fn dim(&self) -> Dim {
        let symbols: Vec<Dim> = self.symbols.iter().map(|s| Dim::sym(s)).collect();
        Dim::Known(self.number).mul(&Dim::product(&symbols))
    }
}

/// The factors of a symbolic extent's text: `2*n*(m + 1)` has three. Text with a sum or a quotient
/// at its top level is one factor.
fn atoms(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let mut cuts = Vec::new();
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '*' if depth == 0 => cuts.push(i),
            '+' | '-' | '/' | ' ' if depth == 0 => return vec![text],
            _ => {}
        }
    }
    let mut out = Vec::new();
    let mut start = 0;
    for end in cuts.into_iter().chain([text.len()]) {
        out.push(bare(&text[start..end]));
        start = end + 1;
    }
    out
}

/// `(n + 1)` and `n + 1` are the same factor.
fn bare(atom: &str) -> &str {
    match atom.strip_prefix('(').and_then(|a| a.strip_suffix(')')) {
        Some(inner) if !inner.contains(['(', ')']) => inner,
        _ => atom,
    }
}

/// The product of extents, in a form that does not depend on their order.
pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    let dims: Vec<&Dim> = dims.into_iter().collect();
    if dims.iter().any(|d| **d == Dim::Known(0)) {
        return Dim::Known(0);
    }
    Product::of(dims).map_or(Dim::Unknown, |p| p.dim())
}

/// The product of `total` divided by that of `parts`, symbols cancelled; `Err` with both products
/// where numbers alone show that there is a remainder.
pub fn quotient(total: &[Dim], parts: &[Dim]) -> Result<Dim, (i64, i64)> {
    let mut total = total.to_vec();
    let mut parts = parts.to_vec();
    // An extent on both sides cancels even where its factors overflow.
    parts.retain(|p| match total.iter().position(|t| t.same(p) && *t != Dim::Known(0)) {
        Some(i) => {
            total.swap_remove(i);
            false
        }
        None => true,
    });
    let (Some(mut a), Some(mut b)) = (Product::of(&total), Product::of(&parts)) else { return Ok(Dim::Unknown) };
    if b.number == 0 {
        return Ok(Dim::Unknown);
    }
    b.symbols.retain(|s| match a.symbols.iter().position(|t| t == s) {
        Some(i) => {
            a.symbols.remove(i);
            false
        }
        None => true,
    });
    let common = gcd(a.number, b.number);
    (a.number, b.number) = (a.number / common, b.number / common);
    if b.symbols.is_empty() && b.number == 1 {
        return Ok(a.dim());
    }
    if a.symbols.is_empty() && b.symbols.is_empty() {
        return Err((a.number * common, b.number * common));
    }
    Ok(a.dim().div(&b.dim()))
}

fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    i64::try_from(a).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &str) -> Vec<Dim> {
        text.split(", ").map(|t| t.parse().map_or_else(|_| Dim::sym(t), Dim::Known)).collect()
    }

    #[test]
    fn cancels_symbols_and_numbers() {
        assert_eq!(quotient(&dims("batch, seq, 384"), &dims("batch, 12, 32")), Ok(Dim::sym("seq")));
        assert_eq!(quotient(&dims("batch, seq, 384"), &dims("batch, seq, 12")), Ok(Dim::Known(32)));
        assert_eq!(quotient(&dims("2*batch, 3"), &dims("batch")), Ok(Dim::Known(6)));
        assert_eq!(quotient(&dims("4*(n + 1)"), &dims("n + 1")), Ok(Dim::Known(4)));
        assert_eq!(quotient(&dims("n, 6"), &dims("4")).map(|d| d.to_string()), Ok("3*n/2".into()));
        assert_eq!(quotient(&dims("6"), &dims("4")), Err((6, 4)));
        assert_eq!(quotient(&[Dim::Unknown], &dims("4")), Ok(Dim::Unknown));
        assert_eq!(quotient(&dims("0"), &dims("0")), Ok(Dim::Unknown));
    }

    #[test]
    fn survives_products_that_overflow() {
        let big = i64::MAX.to_string();
        assert_eq!(product(&dims(&format!("{big}, {big}"))), Dim::Unknown);
        assert_eq!(quotient(&dims(&format!("{big}, 2, n")), &dims(&format!("{big}, n"))), Ok(Dim::Known(2)));
    }

    #[test]
    fn orders_factors() {
        assert_eq!(product(&dims("b, 2, a, 3")).to_string(), "6*a*b");
        assert_eq!(product(&dims("a*b, 6")).to_string(), "6*a*b");
    }
}
