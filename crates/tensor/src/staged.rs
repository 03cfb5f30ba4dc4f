//! Files that appear complete or not at all.

use std::io;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// An empty file under a temporary name in the folder of `path`, to be renamed to `path` when it is complete. Dropped
/// before, it goes away. It is readable as the user's umask allows, as a result should be.
///
/// # Errors
/// When the folder does not exist or can't be written, or `path` is a folder, a device or a pipe: a rename would put a file in
/// its place.
pub fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Before the temporary file, whose name would stand in the error.
    if let Err(e) = std::fs::metadata(folder) {
        let text =
            format!("the folder {} can't be used ({e})\nhelp: create it, or choose another path", folder.display());
        return Err(io::Error::new(e.kind(), text));
    }
    if let Ok(there) = std::fs::metadata(path)
        && !there.is_file()
    {
        let (kind, what) = match there.is_dir() {
            true => (io::ErrorKind::IsADirectory, "a folder"),
            false => (io::ErrorKind::InvalidInput, "a device or a pipe"),
        };
        return Err(io::Error::new(
            kind,
            format!("this is {what}, and results are files\nhelp: give the path of a file"),
        ));
    }
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
        let error = beside(Path::new("no/such/file")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("no/such") && error.to_string().contains("help: create it"), "{error}");
    }

    #[test]
    fn replaces_files_alone() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(beside(dir.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        #[cfg(unix)]
        {
            let socket = dir.path().join("socket");
            let _open = std::os::unix::net::UnixListener::bind(&socket)?;
            assert_eq!(beside(&socket).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        Ok(())
    }
}
