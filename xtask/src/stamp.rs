//! Stamp files: what something was made from, kept beside it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Says whether something made earlier is still current.
///
/// The file holds the inputs themselves, which are small, so that equal stamps mean equal inputs.
pub struct Stamp {
    file: PathBuf,
    inputs: String,
}

impl Stamp {
    /// A stamp at `file` for something made from `inputs`.
    pub fn new(file: PathBuf, inputs: &[&str]) -> Self {
        let inputs = inputs.join("\n--\n");
        Self { file, inputs }
    }

    /// Whether the last complete run had the same inputs.
    pub fn is_current(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|held| held == self.inputs)
    }

    /// Records a complete run.
    pub fn write(&self) -> Result<()> {
        fs::write(&self.file, &self.inputs).with_context(|| format!("cannot write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("narrowbit-stamp-{name}-{}", std::process::id()))
    }

    #[test]
    fn accepts_stamp_with_same_inputs() {
        let file = scratch("same");
        Stamp::new(file.clone(), &["a", "b"]).write().unwrap();
        assert!(Stamp::new(file.clone(), &["a", "b"]).is_current());
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn rejects_stamp_when_inputs_differ_or_file_is_missing() {
        let file = scratch("differs");
        assert!(!Stamp::new(file.clone(), &["a"]).is_current());
        Stamp::new(file.clone(), &["a"]).write().unwrap();
        assert!(!Stamp::new(file.clone(), &["a", "b"]).is_current());
        fs::remove_file(file).unwrap();
    }
}
