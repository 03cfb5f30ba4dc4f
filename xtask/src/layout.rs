//! Where things are: the repository, the target directory and what lies beside them.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Absolute paths that the tasks read and write.
pub struct Layout {
    root: PathBuf,
    target: PathBuf,
}

impl Layout {
    /// Finds the repository from this crate's manifest and the target directory from the environment.
    pub fn find() -> Result<Self> {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?.to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => env::current_dir()?.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// A path inside the repository.
    pub fn repo(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The root of the repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside cargo's target directory.
    pub fn target(&self, path: &str) -> PathBuf {
        self.target.join(path)
    }

    /// The shared models and documents: `NARROWBIT_SHARED`, else the folder `shared` beside the
    /// repository if there is one.
    pub fn shared(&self) -> Option<PathBuf> {
        let dir = match env::var_os("NARROWBIT_SHARED") {
            Some(dir) => PathBuf::from(dir),
            None => self.root.parent()?.join("shared"),
        };
        dir.canonicalize().ok().filter(|dir| dir.is_dir())
    }
}
