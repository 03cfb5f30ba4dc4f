//! Where tests find what does not lie in the repository.

use std::env;
use std::path::{Path, PathBuf};

/// The repository.
pub fn repo() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, else `target` in the repository.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo().join("target"), |dir| repo().join(dir))
}

/// The folder with shared models: `NARROWBIT_SHARED`, else `../shared` beside the repository.
/// Says on stderr that a test is skipped when there is none.
pub fn shared_dir() -> Option<PathBuf> {
    let dir = env::var_os("NARROWBIT_SHARED").map_or_else(|| repo().join("../shared"), PathBuf::from);
    found(dir, "set NARROWBIT_SHARED to the folder with the shared models")
}

/// The exported ONNX node tests: `NARROWBIT_NODE_TESTS`, else `target/onnx-node`.
/// Says on stderr that a test is skipped when there are none.
pub fn node_tests() -> Option<PathBuf> {
    let dir = env::var_os("NARROWBIT_NODE_TESTS").map_or_else(|| target().join("onnx-node"), PathBuf::from);
    found(dir, "run `cargo xtask fixtures`, or set NARROWBIT_NODE_TESTS")
}

/// Cases with ONNX Runtime's outputs: `NARROWBIT_MS_TESTS`, else `target/ms-node`.
/// Says on stderr that a test is skipped when there are none.
pub fn ms_tests() -> Option<PathBuf> {
    let dir = env::var_os("NARROWBIT_MS_TESTS").map_or_else(|| target().join("ms-node"), PathBuf::from);
    found(dir, "run tests/conformance/ms_cases.py, or set NARROWBIT_MS_TESTS")
}

/// A Python with onnx and onnxruntime: that of the environment `NARROWBIT_VENV`, else of the one that
/// `cargo xtask fixtures` makes. Says on stderr that a test is skipped when there is none.
pub fn python() -> Option<PathBuf> {
    let venv = env::var_os("NARROWBIT_VENV").map_or_else(|| target().join("venv"), PathBuf::from);
    let python = if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" };
    found(venv.join(python), "run `cargo xtask fixtures`, or set NARROWBIT_VENV")
}

/// Whether ONNX Runtime and OpenVINO add products of u8 and i8 in 16 bits that saturate, as they do on processors without VNNI:
/// their results are not those of the model then. Says on stderr that such comparisons are skipped.
pub fn peers_saturate() -> bool {
    #[cfg(target_arch = "x86_64")]
    if !is_x86_feature_detected!("avx512vnni") && !is_x86_feature_detected!("avxvnni") {
        eprintln!("SKIPPED: the peers' sums of integers saturate on this processor, which has no VNNI");
        return true;
    }
    false
}

fn found(path: PathBuf, help: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} does not exist; {help}", path.display());
    None
}
