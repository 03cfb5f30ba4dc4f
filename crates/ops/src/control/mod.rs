//! Control flow, sequences and optionals.

crate::registry::operators! {}
