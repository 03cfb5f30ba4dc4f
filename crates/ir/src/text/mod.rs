//! The text form of graphs and models: for tests, dumps and people.
//!
//! ```text
//! model opset=13 "com.microsoft"=1
//! graph "g" {
//!   input %x: f32[batch, 3]
//!   const %w: f32[3, 2] = [1, 2, 3, 4, 5, 6]
//!   %y: f32[batch, 2] = Gemm(%x, %w, _) {alpha=0.5} @"fc"
//!   %z = com.microsoft.Gelu(%y)
//!   output %z
//! }
//! ```
//! A value is `%` and its name, in quotes where it holds other characters than letters, digits and `_./-`.
//! `_` stands for an input or output that is left out. What follows `@` is the node's name. `;` begins a comment.
//! Extents are numbers, names (quoted where they are expressions) and `?`; a type of which nothing is known is left out.
//! Contents of long constants are not written, only a checksum (`#…`), which [`parse`](parse_graph) refuses;
//! it also takes `random(seed)`: numbers in `[-1, 1)`. Subgraphs are attributes: `body=graph "b" captures=1 { … }`.

mod lex;
mod parse;
mod print;

pub use parse::{TextError, parse_graph, parse_model};
pub use print::{print_graph, print_model};
