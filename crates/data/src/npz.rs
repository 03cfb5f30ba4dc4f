//! `.npz` archives: one column per array, read in slices from inside the archive.

use std::io::BufReader;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use crate::column::{ArrayColumn, Column, Columns};
use crate::deflate::Deflated;
use crate::source::{Source, Span};
use crate::{DataError, Limits, Place, npy};

/// The arrays of an archive in the order of the archive, without the ending `.npy`.
///
/// Members of another ending are left alone.
pub(crate) fn open(source: &Source, place: &Place, limits: &Limits) -> Result<Columns, DataError> {
    let damaged = |e: zip::result::ZipError| {
        DataError::format(place, format!("this is no sound .npz archive: {e}"), "save it again with numpy.savez")
    };
    let archive = ZipArchive::new(BufReader::new(source.whole())).map_err(damaged)?;
    if archive.len() > limits.arrays {
        let what = format!("the archive has {} members, the limit is {}", archive.len(), limits.arrays);
        return Err(DataError::too_large(place, what, "stack the samples into one array per input"));
    }
    let index = archive.metadata();
    let mut out = Vec::new();
    for i in 0..index.len() {
        let entry = index.entry(i).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?;
        let Some(name) = name.strip_suffix(".npy") else { continue };
        let at = place.array(name);
        if entry.encrypted() {
            return Err(DataError::unsupported(&at, "the member is encrypted", "save it without a password"));
        }
        let start = data_start(source, entry.header_start(), &at)?;
        let packed = source.section(start, entry.compressed_size()).map_err(|_| {
            DataError::format(&at, "the member leaves the archive", "copy or save the file again: it is truncated")
        })?;
        let span: Arc<dyn Span> = match entry.compression() {
            CompressionMethod::Stored if entry.size() == packed.len() => Arc::new(packed),
            CompressionMethod::Stored => {
                return Err(DataError::format(&at, "a stored member has two different sizes", "save the file again"));
            }
            CompressionMethod::Deflated => {
                let whole = limits.whole_bytes as u64;
                let member = Deflated::new(packed, entry.size(), entry.crc32(), whole);
                Arc::new(member.map_err(|e| DataError::format(&at, e.to_string(), "save the file again"))?)
            }
            method => {
                let what = format!("compression method {method} can't be read");
                return Err(DataError::unsupported(&at, what, "use numpy.savez or numpy.savez_compressed"));
            }
        };
        let header = npy::read_header(span.as_ref(), &at)?;
        span.release();
        out.push((name.to_owned(), Arc::new(ArrayColumn::new(span, header.into(), at, limits)?) as Arc<dyn Column>));
    }
    if out.is_empty() {
        return Err(DataError::format(place, "the archive holds no .npy arrays", "save arrays with numpy.savez"));
    }
    Ok(out)
}

/// The offset of a member's bytes: after the local header, whose lengths may differ from the
/// central directory's (APPNOTE.TXT 4.3.7).
fn data_start(source: &Source, header: u64, place: &Place) -> Result<u64, DataError> {
    let mut local = [0u8; 30];
    let sound = source.read_at(header, &mut local).is_ok() && local.starts_with(b"PK\x03\x04");
    let length = |at: usize| u64::from(u16::from_le_bytes([local[at], local[at + 1]]));
    header
        .checked_add(30 + length(26) + length(28))
        .filter(|_| sound)
        .ok_or_else(|| DataError::format(place, "the member has no sound local header", "copy or save the file again"))
}
