//! Files as bytes without reading them: memory maps.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;

/// The content of a file as a read-only memory map: pages are read from disk when they are touched,
/// and tensors made from slices of it keep the map alive.
///
/// The file must not be changed in place while the bytes are in use; replacing it by a rename, as
/// narrowbit itself writes files, is safe. A file that another program truncates meanwhile ends the
/// process with SIGBUS, as it does for every program that maps files.
///
/// # Errors
/// When the file can't be opened or mapped, or is no regular file.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is private and read-only, and `Mmap` owns it for as long as any slice of the
    // bytes lives; that nobody changes the file in place is the documented contract of this function.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_a_file_and_keeps_it_after_removal() -> io::Result<()> {
        let path = std::env::temp_dir().join(format!("narrowbit-mapped-{}", std::process::id()));
        std::fs::write(&path, b"content")?;
        let bytes = map_file(&path)?;
        std::fs::remove_file(&path)?;
        assert_eq!(bytes.slice(3..), b"tent"[..]);
        Ok(())
    }

    #[test]
    fn refuses_folders_and_missing_files() {
        assert!(map_file(&std::env::temp_dir()).is_err());
        assert!(map_file(Path::new("no/such/file")).is_err());
    }
}
