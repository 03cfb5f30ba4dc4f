//! The crate from outside: formats, binding, agreement with NumPy, hostile input.

mod binding;
mod formats;
mod hostile;
mod numpy;
mod runs;
