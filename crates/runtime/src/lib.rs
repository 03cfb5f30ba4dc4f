//! Fast execution: a graph is compiled once per set of input shapes into a list of
//! steps over planned memory, each with the kernel that runs it.
//!
//! [`Session`] is the entry point: load, [`Session::run`], or [`Session::run_observed`] to look at
//! values as they are made (calibration). Constant operands are packed once per session.
#![forbid(unsafe_code)]
// Whatever a user gives ends in an error, never in a panic.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod attention;
mod bands;
mod collapse;
mod compile;
mod core;
mod error;
mod exec;
mod forms;
mod fuse;
mod kernel;
mod lower;
mod memory;
mod ops;
mod parts;
mod projections;
mod rounded_rows;
mod rows;
mod scene;
mod scope;
mod session;
mod smooth;
mod stages;
mod transparent;
mod view;
mod weights;

pub use error::RunError;
pub use session::{Float, Operands, Options, Profile, ProfileRow, Session};
pub use view::{View, ViewMut};
