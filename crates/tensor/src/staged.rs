//! Files that appear complete or not at all.

use std::io;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// An empty file under a temporary name in the folder of `path`, to be renamed to `path` when it is complete. Dropped
/// before, it goes away. It is readable as the user's umask allows, as a result should be.
///
/// # Errors
/// When the folder does not exist or can't be written.
pub fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Before the temporary file, whose name would stand in the error.
    std::fs::metadata(folder)?;
    let mut builder = Builder::new();
    builder.prefix(".narrowbit-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_nothing_unless_it_is_kept() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("result");
        drop(beside(&path)?);
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 0);
        beside(&path)?.persist(&path)?;
        assert!(path.exists() && std::fs::read_dir(dir.path())?.count() == 1);
        Ok(())
    }

    #[test]
    fn refuses_folders_that_do_not_exist() {
        assert_eq!(beside(Path::new("no/such/file")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
