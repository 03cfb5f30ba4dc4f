//! Model files in and out.
//!
//! [`onnx`] reads and writes ONNX files. Whatever a file holds that narrowbit does
//! not use is kept with the graph and written back.
#![forbid(unsafe_code)]

pub mod onnx;
