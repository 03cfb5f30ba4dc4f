//! Arithmetic, logic, reductions, matrix products, casts.

pub mod relu;

crate::registry::operators! {
    "Relu" => relu::build,
}
