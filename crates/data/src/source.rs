//! Random access to bytes: of a file by positional reads, or of memory.
//!
//! Files are read, not mapped: a mapped file that another process truncates kills the
//! reader with a signal, and mapping needs `unsafe`; positional reads of whole rows cost
//! one copy and keep memory as flat.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::{DataError, Place};

/// A run of bytes that can be read at any offset by several threads.
pub(crate) trait Span: Send + Sync {
    /// The length in bytes.
    fn len(&self) -> u64;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the range leaves the span.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Makes reads in any order cheap, where that takes preparation.
    fn prepare_random_access(&self) -> io::Result<()> {
        Ok(())
    }

    /// Gives up buffers; the next read takes them again.
    fn release(&self) {}
}

/// A whole file or a buffer.
#[derive(Clone)]
pub(crate) enum Source {
    File(Arc<File>, u64),
    Memory(Bytes),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Source, DataError> {
        let place = Place::file(path);
        let file = File::open(path).map_err(|e| DataError::io(&place, "open", e))?;
        let len = file.metadata().map_err(|e| DataError::io(&place, "read", e))?.len();
        Ok(Source::File(Arc::new(file), len))
    }

    pub(crate) fn from_file(file: File) -> io::Result<Source> {
        let len = file.metadata()?.len();
        Ok(Source::File(Arc::new(file), len))
    }

    /// The bytes from `start`, `len` of them.
    pub(crate) fn section(&self, start: u64, len: u64) -> io::Result<Section> {
        match start.checked_add(len) {
            Some(end) if end <= self.len() => Ok(Section { source: self.clone(), start, len, at: 0 }),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    pub(crate) fn whole(&self) -> Section {
        Section { source: self.clone(), start: 0, len: self.len(), at: 0 }
    }
}

impl Span for Source {
    fn len(&self) -> u64 {
        match self {
            Source::File(_, len) => *len,
            Source::Memory(bytes) => bytes.len() as u64,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Source::File(file, _) => read_exact_at(file, buf, offset),
            Source::Memory(bytes) => {
                let from = usize::try_from(offset).ok();
                let range = from.and_then(|f| f.checked_add(buf.len()).map(|end| f..end));
                let found = range.and_then(|r| bytes.get(r)).ok_or(io::ErrorKind::UnexpectedEof)?;
                buf.copy_from_slice(found);
                Ok(())
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// A part of a source, also a sequential reader with its own position.
#[derive(Clone)]
pub(crate) struct Section {
    source: Source,
    start: u64,
    len: u64,
    at: u64,
}

impl Span for Section {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.len => self.source.read_at(self.start + offset, buf),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = (self.len.saturating_sub(self.at)).min(buf.len() as u64) as usize;
        self.read_at(self.at, &mut buf[..n])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Reads a small file whole.
///
/// # Errors
/// When it can't be read or is longer than `limit` bytes.
pub(crate) fn read_small(source: &Source, place: &Place, limit: u64) -> Result<Vec<u8>, DataError> {
    if source.len() > limit {
        let what = format!("the file has {} bytes, the limit is {limit}", source.len());
        return Err(DataError::too_large(place, what, "check that this is the file you meant"));
    }
    let mut out = vec![0; source.len() as usize];
    source.read_at(0, &mut out).map_err(|e| DataError::io(place, "read", e))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sections_and_refuses_to_leave_them() {
        let source = Source::Memory(Bytes::from_static(b"0123456789"));
        let mut s = source.section(2, 5).unwrap();
        let mut buf = [0; 3];
        s.read_at(2, &mut buf).unwrap();
        assert_eq!(&buf, b"456");
        assert!(s.read_at(3, &mut buf).is_err());
        assert!(s.read_at(u64::MAX, &mut buf).is_err());
        let mut all = Vec::new();
        s.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"23456");
        assert!(source.section(8, 3).is_err());
        assert!(source.section(u64::MAX, 1).is_err());
    }
}
