//! Files as bytes without reading them: memory maps.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use memmap2::Mmap;

/// The maps that are in use.
static MAPS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

/// Keeps a map alive while slices of it live.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

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
    let map = Arc::new(unsafe { Mmap::map(&file)? });
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|m| m.strong_count() > 0);
    maps.push(Arc::downgrade(&map));
    Ok(Bytes::from_owner(Owner(map)))
}

/// Gives the memory of bytes of a mapped file back to the system, which reads them from the file again when
/// they are touched. Does nothing to other bytes, and nothing where the system has no such call.
pub(crate) fn release(bytes: &[u8]) {
    let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let start = bytes.as_ptr() as usize;
    for map in maps.iter().filter_map(Weak::upgrade) {
        let Some(offset) = start.checked_sub(map.as_ptr() as usize).filter(|o| o + bytes.len() <= map.len()) else {
            continue;
        };
        // A refusal leaves the pages where they are.
        // SAFETY: the map is of a file and nobody can write to it, so that what is dropped is what the file holds.
        #[cfg(unix)]
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) };
        #[cfg(not(unix))]
        let _ = offset;
        return;
    }
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
    fn reads_released_bytes_again() -> io::Result<()> {
        let path = std::env::temp_dir().join(format!("narrowbit-released-{}", std::process::id()));
        let content: Vec<u8> = (0..50_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content)?;
        let bytes = map_file(&path)?;
        std::fs::remove_file(&path)?;
        for part in [&bytes[..], &bytes[5000..30_001], &bytes[7..7]] {
            release(part);
            assert_eq!(bytes, content);
        }
        release(&content);
        Ok(())
    }

    #[test]
    fn refuses_folders_and_missing_files() {
        assert!(map_file(&std::env::temp_dir()).is_err());
        assert!(map_file(Path::new("no/such/file")).is_err());
    }
}
