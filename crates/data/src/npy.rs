//! The `.npy` format: header of versions 1 to 3, read and written.
//!
//! Source: NumPy enhancement proposal 1 and `numpy.lib.format`.

use narrowbit_tensor::{DType, shape};

use crate::source::Span;
use crate::{DataError, Place};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Longer headers are those of structured types, which can't be used.
const MAX_HEADER: usize = 64 * 1024;

/// What the header of an `.npy` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) dtype: DType,
    pub(crate) big_endian: bool,
    pub(crate) fortran: bool,
    pub(crate) shape: Vec<usize>,
    /// Bytes before the first element.
    pub(crate) data_start: u64,
    /// Bytes of all elements.
    pub(crate) data_len: u64,
}

/// Reads the header and checks that the data after it has exactly the declared size.
pub(crate) fn read_header(span: &dyn Span, place: &Place) -> Result<Header, DataError> {
    let read = |offset, buf: &mut [u8]| {
        span.read_at(offset, buf).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => truncated(place),
            _ => DataError::io(place, "read", e),
        })
    };
    let mut start = [0u8; 10];
    read(0, &mut start)?;
    if &start[..6] != MAGIC {
        return Err(DataError::format(place, "this is no .npy array", "save arrays with numpy.save or numpy.savez"));
    }
    let (text_at, text_len) = match start[6] {
        1 => (10, usize::from(u16::from_le_bytes([start[8], start[9]]))),
        2 | 3 => {
            let mut len = [0u8; 4];
            read(8, &mut len)?;
            (12, u32::from_le_bytes(len) as usize)
        }
        v => {
            return Err(DataError::unsupported(
                place,
                format!("unknown .npy version {v}"),
                "save it as version 1 to 3",
            ));
        }
    };
    if text_len > MAX_HEADER {
        let what = format!("the header has {text_len} bytes, the limit is {MAX_HEADER}");
        return Err(DataError::too_large(place, what, "save plain numeric arrays"));
    }
    let mut text = vec![0; text_len];
    read(text_at, &mut text)?;
    let text = String::from_utf8_lossy(&text);
    let mut header = parse_dict(&text, place)?;
    header.data_start = text_at + text_len as u64;
    header.data_len = data_len(&header, place)?;
    let present = span.len().saturating_sub(header.data_start);
    if present < header.data_len {
        return Err(truncated(place));
    }
    if present > header.data_len {
        let what = format!("shape {:?} takes {} bytes, but {present} follow", header.shape, header.data_len);
        return Err(DataError::format(place, what, "save the array again: its size and its header disagree"));
    }
    Ok(header)
}

fn truncated(place: &Place) -> DataError {
    DataError::format(place, "the file ends before the array does", "copy or save the file again: it is truncated")
}

fn data_len(header: &Header, place: &Place) -> Result<u64, DataError> {
    let bytes = shape::count(&header.shape).ok().and_then(|n| header.dtype.byte_len(n));
    bytes.map(|n| n as u64).ok_or_else(|| {
        let what = format!("shape {:?} is larger than memory can address", header.shape);
        DataError::format(place, what, "save the array again: its header is damaged")
    })
}

/// Parses the header's Python dictionary, of which NumPy writes three keys.
fn parse_dict(text: &str, place: &Place) -> Result<Header, DataError> {
    let bad = |what: &str| {
        DataError::format(
            place,
            format!("the .npy header {what}: {:.100}", text.trim()),
            "save the array with numpy.save",
        )
    };
    let mut p = Parser { rest: text.trim() };
    let (mut descr, mut fortran, mut dims) = (None, None, None);
    p.eat('{').ok_or_else(|| bad("is no dictionary"))?;
    while p.eat('}').is_none() {
        let key = p.string().ok_or_else(|| bad("has a key that is no string"))?;
        p.eat(':').ok_or_else(|| bad("lacks a colon"))?;
        match key {
            "descr" => match p.string() {
                Some(d) => descr = Some(d),
                None => {
                    let help = "save one plain numeric array per field";
                    return Err(DataError::unsupported(place, "structured element types can't be used", help));
                }
            },
            "fortran_order" => fortran = Some(p.boolean().ok_or_else(|| bad("has a bad fortran_order"))?),
            "shape" => dims = Some(p.tuple().ok_or_else(|| bad("has a bad shape"))?),
            _ => return Err(bad("has an unknown key")),
        }
        if p.eat(',').is_none() && !p.rest.starts_with('}') {
            return Err(bad("lacks a comma"));
        }
    }
    match (descr, fortran, dims) {
        (Some(descr), Some(fortran), Some(shape)) if p.rest.is_empty() => {
            let (dtype, big_endian) = element_type(descr, place)?;
            Ok(Header { dtype, big_endian, fortran, shape, data_start: 0, data_len: 0 })
        }
        _ => Err(bad("lacks a key or has text after it")),
    }
}

/// The element type of a NumPy type string such as `<f4`, and whether it is big-endian.
fn element_type(descr: &str, place: &Place) -> Result<(DType, bool), DataError> {
    let (order, code) = match descr.chars().next() {
        Some(c @ ('<' | '>' | '|' | '=')) => (c, &descr[1..]),
        _ => ('|', descr),
    };
    let dtype = match code {
        "b1" | "?" => DType::Bool,
        "i1" | "b" => DType::I8,
        "u1" | "B" => DType::U8,
        "i2" => DType::I16,
        "u2" => DType::U16,
        "i4" => DType::I32,
        "u4" => DType::U32,
        "i8" => DType::I64,
        "u8" => DType::U64,
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        _ => return Err(refuse_type(descr, code, place)),
    };
    Ok((dtype, order == '>'))
}

fn refuse_type(descr: &str, code: &str, place: &Place) -> DataError {
    let (kind, help) = match code.chars().next() {
        Some('U') => ("unicode strings", "save class indices as integers; a labels.csv may hold names"),
        Some('S' | 'a') => ("byte strings", "save class indices as integers; a labels.csv may hold names"),
        Some('O') => ("pickled Python objects", "save plain numeric arrays (allow_pickle=False)"),
        Some('M' | 'm') => ("dates", "convert them to numbers before saving"),
        Some('c') => ("complex numbers", "save the real and imaginary parts as two channels"),
        Some('V') => ("raw or structured elements", "convert to float32 before saving, bfloat16 too"),
        _ => ("an unknown element type", "save as bool, an integer type, float16, float32 or float64"),
    };
    DataError::unsupported(place, format!("elements of type \"{descr:.40}\" ({kind}) can't be used"), help)
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, c: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(c)?.trim_start();
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let quote = self.rest.chars().next().filter(|&c| c == '\'' || c == '"')?;
        let (text, rest) = self.rest[1..].split_once(quote)?;
        self.rest = rest.trim_start();
        Some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest.trim_start();
                return Some(value);
            }
        }
        None
    }

    fn tuple(&mut self) -> Option<Vec<usize>> {
        /// NumPy's own limit.
        const MAX_RANK: usize = 64;
        self.eat('(')?;
        let mut out = Vec::new();
        while self.eat(')').is_none() {
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            out.push(digits.parse().ok()?);
            // Python 2 wrote long integers as `3L`.
            self.rest = rest.strip_prefix('L').unwrap_or(rest).trim_start();
            if out.len() > MAX_RANK || self.eat(',').is_none() && !self.rest.starts_with(')') {
                return None;
            }
        }
        Some(out)
    }
}

/// The header of a little-endian array in row-major order, padded to 64 bytes as NumPy pads it.
pub(crate) fn header_bytes(dtype: DType, shape: &[usize], place: &Place) -> Result<Vec<u8>, DataError> {
    let descr = match dtype {
        DType::Bool => "|b1",
        DType::I8 => "|i1",
        DType::U8 => "|u1",
        DType::I16 => "<i2",
        DType::U16 => "<u2",
        DType::I32 => "<i4",
        DType::U32 => "<u4",
        DType::I64 => "<i8",
        DType::U64 => "<u8",
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        d => {
            let what = format!("NumPy has no element type {d}");
            return Err(DataError::unsupported(place, what, "convert the tensor to f32 before writing it"));
        }
    };
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let dims = if shape.len() == 1 { dims.trim_end().to_owned() } else { dims.trim_end_matches(", ").to_owned() };
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Version 1 holds 65,535 bytes of header, far more than a numeric array of rank 64 takes.
    let text_len = (10 + dict.len() + 1).next_multiple_of(64) - 10;
    let mut out = MAGIC.to_vec();
    out.extend([1, 0]);
    out.extend((text_len as u16).to_le_bytes());
    out.extend(dict.as_bytes());
    out.resize(10 + text_len - 1, b' ');
    out.push(b'\n');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn parse(bytes: Vec<u8>) -> Result<Header, DataError> {
        read_header(&Source::Memory(bytes.into()), &Place::file("x.npy"))
    }

    fn file(version: u8, dict: &str, data: usize) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend([version, 0]);
        match version {
            1 => out.extend((dict.len() as u16).to_le_bytes()),
            _ => out.extend((dict.len() as u32).to_le_bytes()),
        }
        out.extend(dict.as_bytes());
        out.resize(out.len() + data, 0);
        out
    }

    #[test]
    fn reads_all_versions_orders_and_endiannesses() {
        for version in 1..=3 {
            let h = parse(file(version, "{'descr': '>i2', 'fortran_order': True, 'shape': (3, 2), }\n", 12)).unwrap();
            assert_eq!((h.dtype, h.big_endian, h.fortran, h.shape), (DType::I16, true, true, vec![3, 2]));
        }
        let h = parse(file(1, "{'descr': '|b1', 'fortran_order': False, 'shape': ()}", 1)).unwrap();
        assert_eq!((h.dtype, h.shape.len(), h.data_len), (DType::Bool, 0, 1));
        let h = parse(file(1, "{\"shape\": (2L,), 'fortran_order': False, 'descr': '<f8'}", 16)).unwrap();
        assert_eq!((h.dtype, h.shape), (DType::F64, vec![2]));
    }

    #[test]
    fn writes_headers_that_it_reads() {
        for shape in [vec![], vec![5], vec![2, 3, 4], vec![0, 7]] {
            let mut bytes = header_bytes(DType::F32, &shape, &Place::default()).unwrap();
            assert_eq!(bytes.len() % 64, 0);
            bytes.resize(bytes.len() + 4 * shape.iter().product::<usize>(), 0);
            assert_eq!(parse(bytes).unwrap().shape, shape);
        }
        assert!(header_bytes(DType::Bf16, &[1], &Place::default()).is_err());
    }

    #[test]
    fn refuses_strings_objects_and_structures_by_name() {
        let refused = |descr: &str| {
            let dict = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,)}}");
            parse(file(1, &dict, 64)).unwrap_err().to_string()
        };
        assert!(refused("'<U8'").contains("unicode strings"));
        assert!(refused("'|O'").contains("pickled"));
        assert!(refused("'<c8'").contains("complex"));
        assert!(refused("[('a', '<f4')]").contains("structured"));
    }

    #[test]
    fn refuses_damaged_headers_and_lying_sizes() {
        let ok = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}";
        assert!(parse(file(1, ok, 7)).unwrap_err().to_string().contains("ends before"));
        assert!(parse(file(1, ok, 9)).unwrap_err().to_string().contains("takes 8 bytes"));
        assert!(parse(file(4, ok, 8)).is_err());
        assert!(parse(b"\x93NUMPY".to_vec()).is_err());
        let huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9)}";
        assert!(parse(file(1, huge, 8)).unwrap_err().to_string().contains("address"));
        for dict in ["", "{", "{'descr'", "{'descr': '<f4'}", "{'shape': (1}", "{'é': 1}", "{'shape': (-1,)}"] {
            assert!(parse(file(1, dict, 0)).is_err());
        }
        let mut long = file(2, ok, 8);
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(parse(long), Err(DataError::TooLarge { .. })));
    }
}
