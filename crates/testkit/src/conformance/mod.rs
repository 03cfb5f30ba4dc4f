//! Runs the node tests of the `onnx` package on the reference interpreter.

mod case;
mod index;
mod manifest;
mod pool;

pub use case::{Outcome, State, run};
pub use index::{Case, DataSet, Entry, read_index};
pub use manifest::{Reasons, Required, differences, render};
pub use pool::run_all;
