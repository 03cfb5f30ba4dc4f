use std::collections::HashMap;
use std::io::{self, Write};

use bytes::Bytes;
use narrowbit_ir::ValueNote;
use narrowbit_tensor::Tensor;

use super::graph::props;
use super::rope::Rope;
use crate::onnx::proto::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};

/// The field of `TensorProto` with raw data.
const RAW_DATA: u32 = 9;

/// Tensors of a page or more begin at a page, so that they can be mapped on their own; smaller ones at a cache line.
const PAGE: u64 = 4096;
const LINE: u64 = 64;

/// The data file beside a model: what is written where.
#[derive(Debug)]
pub(super) struct External {
    location: String,
    threshold: usize,
    end: u64,
    entries: Vec<(u64, Bytes)>,
    /// Where data stands already: tensors that share memory share it in the file too.
    known: HashMap<(usize, usize), u64>,
}

impl External {
    pub(super) fn new(location: String, threshold: usize) -> External {
        External { location, threshold, end: 0, entries: Vec::new(), known: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn add(&mut self, bytes: &Bytes) -> u64 {
        let key = (bytes.as_ptr() as usize, bytes.len());
        if let Some(&offset) = self.known.get(&key) {
            return offset;
        }
        let align = if bytes.len() as u64 >= PAGE { PAGE } else { LINE };
        let offset = self.end.next_multiple_of(align);
        self.end = offset + bytes.len() as u64;
        self.entries.push((offset, bytes.clone()));
        self.known.insert(key, offset);
        offset
    }

    /// Writes the data file from front to back.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut at = 0;
        for (offset, bytes) in &self.entries {
            io::copy(&mut io::Read::take(io::repeat(0), offset - at), out)?;
            out.write_all(bytes)?;
            at = offset + bytes.len() as u64;
        }
        Ok(())
    }
}

/// An initializer, inline or external.
pub(super) fn initializer(name: &str, t: &Tensor, note: Option<&ValueNote>, external: Option<&mut External>) -> Rope {
    let mut proto = head(t);
    proto.name = Some(name.into());
    if let Some(note) = note {
        proto.doc_string = (!note.doc.is_empty()).then(|| note.doc.clone());
        proto.metadata_props = props(&note.metadata);
    }
    match external {
        Some(x) if t.bytes().len() >= x.threshold.max(1) => {
            let offset = x.add(t.bytes());
            let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.into()), value: Some(v) };
            proto.external_data = vec![
                entry("location", x.location.clone()),
                entry("offset", offset.to_string()),
                entry("length", t.bytes().len().to_string()),
            ];
            proto.data_location = Some(DataLocation::External as i32);
            let mut out = Rope::default();
            out.fields(&proto);
            out
        }
        _ => inline(proto, t),
    }
}

/// A tensor without a name, as attributes hold it.
pub(super) fn plain(t: &Tensor) -> Rope {
    inline(head(t), t)
}

fn head(t: &Tensor) -> TensorProto {
    let strings = t.strings().unwrap_or_default();
    TensorProto {
        dims: t.shape().iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect(),
        data_type: Some(t.dtype().to_onnx()),
        string_data: strings.iter().map(|s| s.as_bytes().to_vec()).collect(),
        ..TensorProto::default()
    }
}

fn inline(proto: TensorProto, t: &Tensor) -> Rope {
    let mut out = Rope::default();
    out.fields(&proto);
    if t.strings().is_err() {
        out.bytes(RAW_DATA, t.bytes().clone());
    }
    out
}
