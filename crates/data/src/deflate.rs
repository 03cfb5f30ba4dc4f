//! A deflated archive member read as if it were flat, in constant memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flate2::Crc;
use flate2::read::DeflateDecoder;

use crate::source::{Section, Source, Span};

/// Deflate can't expand by more than this (RFC 1951: a 258-byte match takes at least 2 bits).
const MAX_RATIO: u64 = 1032;

/// Backward jumps that restart decompression before the member is spooled to disk.
const RESTARTS: u32 = 2;

const CHUNK: usize = 64 * 1024;

/// A deflated member.
///
/// Small members are kept whole once read. Others are decompressed with one forward
/// cursor; after a few backward jumps (a shuffled pass) the member is decompressed once
/// into an anonymous temporary file, where any order is cheap.
pub(crate) struct Deflated {
    packed: Section,
    size: u64,
    crc: u32,
    keep_whole: bool,
    state: Mutex<State>,
}

enum State {
    Idle { restarts: u32 },
    Cursor { cursor: Box<Cursor>, restarts: u32 },
    Whole(Bytes),
    Spooled(Source),
}

struct Cursor {
    decoder: DeflateDecoder<Section>,
    at: u64,
    crc: Crc,
}

impl Deflated {
    /// # Errors
    /// When `size` is more than deflate could make of the packed bytes.
    pub(crate) fn new(packed: Section, size: u64, crc: u32, whole_limit: u64) -> io::Result<Deflated> {
        if size > packed.len().saturating_mul(MAX_RATIO).saturating_add(CHUNK as u64) {
            return Err(invalid(format!(
                "{size} bytes are declared, but {} packed bytes can't hold them",
                packed.len()
            )));
        }
        let state = Mutex::new(State::Idle { restarts: 0 });
        Ok(Deflated { packed, size, crc, keep_whole: size <= whole_limit, state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced as a whole, so a panic elsewhere can't leave it half made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> Cursor {
        Cursor { decoder: DeflateDecoder::new(self.packed.clone()), at: 0, crc: Crc::new() }
    }

    fn read_whole(&self) -> io::Result<Bytes> {
        let mut cursor = self.start();
        let mut out = Vec::new();
        let mut chunk = vec![0; CHUNK];
        while cursor.at < self.size {
            let n = (self.size - cursor.at).min(CHUNK as u64) as usize;
            self.advance(&mut cursor, &mut chunk[..n])?;
            out.extend_from_slice(&chunk[..n]);
        }
        Ok(out.into())
    }

    fn spool(&self) -> io::Result<Source> {
        let mut file: File = tempfile::tempfile()?;
        let mut cursor = self.start();
        let mut chunk = vec![0; CHUNK];
        while cursor.at < self.size {
            let n = (self.size - cursor.at).min(CHUNK as u64) as usize;
            self.advance(&mut cursor, &mut chunk[..n])?;
            file.write_all(&chunk[..n])?;
        }
        file.flush()?;
        Source::from_file(file)
    }

    /// Fills `buf` from the cursor; at the end checks length and checksum.
    fn advance(&self, cursor: &mut Cursor, buf: &mut [u8]) -> io::Result<()> {
        cursor.decoder.read_exact(buf)?;
        cursor.crc.update(buf);
        cursor.at += buf.len() as u64;
        if cursor.at == self.size {
            if cursor.decoder.read(&mut [0])? != 0 {
                return Err(invalid(format!("the member holds more than the {} bytes it declares", self.size)));
            }
            if cursor.crc.sum() != self.crc {
                return Err(invalid("the checksum does not match: the data is damaged".into()));
            }
        }
        Ok(())
    }

    fn skip(&self, cursor: &mut Cursor, to: u64) -> io::Result<()> {
        let mut chunk = vec![0; (to - cursor.at).min(CHUNK as u64) as usize];
        while cursor.at < to {
            let n = (to - cursor.at).min(chunk.len() as u64) as usize;
            self.advance(cursor, &mut chunk[..n])?;
        }
        Ok(())
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Span for Deflated {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut state = self.lock();
        let (mut cursor, restarts) = match &*state {
            State::Whole(bytes) => return Source::Memory(bytes.clone()).read_at(offset, buf),
            State::Spooled(source) => return source.read_at(offset, buf),
            State::Idle { .. } | State::Cursor { .. } if self.keep_whole && offset > 0 => {
                let bytes = self.read_whole()?;
                *state = State::Whole(bytes.clone());
                return Source::Memory(bytes).read_at(offset, buf);
            }
            _ => match std::mem::replace(&mut *state, State::Idle { restarts: 0 }) {
                State::Cursor { cursor, restarts } if cursor.at <= offset => (cursor, restarts),
                State::Cursor { restarts, .. } => (Box::new(self.start()), restarts + 1),
                State::Idle { restarts } => (Box::new(self.start()), restarts),
                State::Whole(_) | State::Spooled(_) => (Box::new(self.start()), 0),
            },
        };
        if restarts > RESTARTS {
            let source = self.spool()?;
            *state = State::Spooled(source.clone());
            return source.read_at(offset, buf);
        }
        self.skip(&mut cursor, offset)?;
        self.advance(&mut cursor, buf)?;
        *state = State::Cursor { cursor, restarts };
        Ok(())
    }

    fn prepare_random_access(&self) -> io::Result<()> {
        let mut state = self.lock();
        if !self.keep_whole && !matches!(*state, State::Spooled(_)) {
            *state = State::Spooled(self.spool()?);
        }
        Ok(())
    }

    fn release(&self) {
        let mut state = self.lock();
        match &*state {
            State::Spooled(_) => {}
            State::Cursor { restarts, .. } | State::Idle { restarts } => *state = State::Idle { restarts: *restarts },
            State::Whole(_) => *state = State::Idle { restarts: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::DeflateEncoder;

    fn packed(data: &[u8]) -> (Section, u32) {
        let mut enc = DeflateEncoder::new(Vec::new(), Compression::default());
        enc.write_all(data).unwrap();
        let mut crc = Crc::new();
        crc.update(data);
        (Source::Memory(enc.finish().unwrap().into()).whole(), crc.sum())
    }

    #[test]
    fn reads_in_any_order_whether_kept_or_spooled() {
        let data: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for whole_limit in [0, 1 << 20] {
            let (section, crc) = packed(&data);
            let d = Deflated::new(section, data.len() as u64, crc, whole_limit).unwrap();
            let mut buf = [0; 100];
            for at in [0usize, 200_000, 10, 299_900, 5, 150_000, 1, 100, 50, 299_900] {
                d.read_at(at as u64, &mut buf).unwrap();
                assert_eq!(buf[..], data[at..at + 100]);
            }
            d.release();
            d.read_at(7, &mut buf).unwrap();
            assert_eq!(buf[..], data[7..107]);
            assert!(d.read_at(299_950, &mut buf).is_err());
        }
    }

    #[test]
    fn refuses_a_lying_size_and_a_wrong_checksum() {
        let data = vec![7u8; 100_000];
        let (section, crc) = packed(&data);
        assert!(Deflated::new(section.clone(), u64::MAX, crc, 0).is_err());
        let mut buf = vec![0; 99_999];
        let short = Deflated::new(section.clone(), 99_999, crc, 0).unwrap();
        assert!(short.read_at(0, &mut buf).unwrap_err().to_string().contains("more than"));
        let mut buf = vec![0; 100_001];
        let long = Deflated::new(section.clone(), 100_001, crc, 0).unwrap();
        assert!(long.read_at(0, &mut buf).is_err());
        let mut buf = vec![0; 100_000];
        let wrong = Deflated::new(section, 100_000, crc ^ 1, 0).unwrap();
        assert!(wrong.read_at(0, &mut buf).unwrap_err().to_string().contains("checksum"));
    }
}
