//! The command as its users meet it: what it prints, its exit codes, the files it leaves, and its results
//! beside those of ONNX Runtime. One program, so that it is linked once.

mod approaches;
mod batches;
mod bench;
mod calibration;
mod decisions;
mod encodings;
mod errors;
mod explain;
mod files;
mod fixed;
mod flow;
mod help;
mod home;
mod job;
mod json;
mod lstm;
mod memory;
mod mixture;
mod models;
mod onnxruntime;
mod peers;
mod rounding;
mod schemes;
mod server;
mod shared;
mod targets;
mod warnings;
