//! Checks the operator types that a user asks to quantize.

use narrowbit_ir::{Attr, AttrMap, QuantRole};
use narrowbit_ops::entries;

use crate::plan::ARITHMETIC;

/// A name among the operator types to quantize that can't be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpTypeError {
    /// There is no such operator.
    #[error("op-types: there is no operator \"{name}\"\nhelp: {help}")]
    Unknown {
        /// The name.
        name: String,
        /// Names near it, or all that can be quantized.
        help: String,
    },
    /// The operator always computes on floats.
    #[error("op-types: {name} has no integer form\nhelp: {help}")]
    Float {
        /// The name.
        name: String,
        /// All that can be quantized.
        help: String,
    },
}

/// The operators that have an integer form, in alphabetical order.
pub fn quantizable() -> Vec<&'static str> {
    let mut names: Vec<&str> = entries().filter(|e| e.domain.is_empty()).filter_map(|e| integer_form(e)).collect();
    names.sort_unstable();
    names
}

/// The name of an operator with an integer form.
fn integer_form(e: &narrowbit_ops::Entry) -> Option<&'static str> {
    // What some operators require; the others leave it alone.
    let mut attrs = AttrMap::new();
    attrs.set("axis", Attr::Int(0));
    attrs.set("blocksize", Attr::Int(1));
    attrs.set("kernel_shape", Attr::Ints(vec![1]));
    let role = (e.build)(13, &mut attrs).ok()?.quant();
    let known = match role {
        QuantRole::Weighted { .. } | QuantRole::Transparent => true,
        QuantRole::Arithmetic { same_scale } => same_scale || ARITHMETIC.contains(&e.name),
        _ => false,
    };
    known.then_some(e.name)
}

/// Operators that keep computing on floats, and whose weights are stored as integers by approaches that are about weights.
pub(crate) const RECURRENT: [&str; 3] = ["GRU", "LSTM", "RNN"];

/// As [`check`], for approaches that store the weights of recurrent operators too.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_weights(names: &[String]) -> Result<(), OpTypeError> {
    let rest: Vec<String> = names.iter().filter(|n| !RECURRENT.contains(&n.as_str())).cloned().collect();
    check(&rest)
}

/// Checks that each name is that of an operator with an integer form.
///
/// # Errors
/// The first name that is not, with those that may be meant.
pub fn check(names: &[String]) -> Result<(), OpTypeError> {
    if names.is_empty() {
        return Ok(());
    }
    let possible = quantizable();
    let Some(name) = names.iter().find(|n| !possible.contains(&n.as_str())) else { return Ok(()) };
    let name = name.clone();
    let all = format!("these have: {}", possible.join(" "));
    if entries().any(|e| e.name == name) {
        return Err(OpTypeError::Float { name, help: all });
    }
    let near: Vec<String> = possible.iter().filter(|p| is_near(&name, p)).map(|p| format!("\"{p}\"")).collect();
    let help = match near.is_empty() {
        true => format!("operators with an integer form are {}", possible.join(" ")),
        false => format!("did you mean {}?", near.join(" or ")),
    };
    Err(OpTypeError::Unknown { name, help })
}

/// Whether two names differ in case, or in a third of their letters at the most.
fn is_near(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    distance(&a, &b) <= b.chars().count() / 3
}

/// The least number of letters to insert, remove or replace (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str) -> String {
        check(&["Conv".into(), name.into()]).unwrap_err().to_string()
    }

    #[test]
    fn takes_operators_with_an_integer_form() {
        let names = quantizable();
        for name in ["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "Concat", "Reshape", "Gather", "MaxPool"]
        {
            assert!(names.contains(&name), "{name} is missing from {names:?}");
        }
        let names: Vec<String> = names.into_iter().map(String::from).collect();
        assert_eq!(check(&names), Ok(()));
        assert_eq!(check(&[]), Ok(()));
    }

    #[test]
    fn names_what_may_be_meant_for_an_unknown_operator() {
        assert!(error("conv").contains("no operator \"conv\"\nhelp: did you mean \"Conv\""), "{}", error("conv"));
        assert!(error("Matmull").contains("\"MatMul\""));
        let far = error("Frobnicate");
        assert!(far.contains("integer form are") && far.contains(" Gemm "), "{far}");
    }

    #[test]
    fn refuses_operators_without_an_integer_form() {
        assert!(error("LayerNormalization").starts_with("op-types: LayerNormalization has no integer form"));
    }

    #[test]
    fn counts_letters_to_change() {
        assert_eq!((distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")), (3, 0, 3));
    }
}
