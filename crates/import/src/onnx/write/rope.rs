use std::io::{self, Write};

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Encoded protobuf in pieces: small ones are gathered, tensors' bytes are shared, never copied.
#[derive(Debug, Default)]
pub(super) struct Rope {
    parts: Vec<Bytes>,
    tail: Vec<u8>,
    len: usize,
}

/// Shared bytes shorter than this are copied: a piece of their own would cost more.
const SMALL: usize = 256;

impl Rope {
    /// The length of all pieces in bytes.
    pub(super) fn len(&self) -> usize {
        self.len + self.tail.len()
    }

    /// Appends the fields of an encoded message.
    pub(super) fn fields(&mut self, message: &impl Message) {
        self.tail.extend(message.encode_to_vec());
    }

    /// Appends a message as a field.
    pub(super) fn proto(&mut self, tag: u32, message: &impl Message) {
        self.head(tag, message.encoded_len());
        self.fields(message);
    }

    /// Appends a message in pieces as a field.
    pub(super) fn message(&mut self, tag: u32, message: Rope) {
        self.head(tag, message.len());
        for part in message.parts {
            self.raw(part);
        }
        self.tail.extend(message.tail);
    }

    /// Appends a string or bytes field.
    pub(super) fn bytes(&mut self, tag: u32, bytes: Bytes) {
        self.head(tag, bytes.len());
        self.raw(bytes);
    }

    /// Appends encoded fields as they are.
    pub(super) fn raw(&mut self, bytes: Bytes) {
        if bytes.len() < SMALL {
            self.tail.extend_from_slice(&bytes);
            return;
        }
        self.flush();
        self.len += bytes.len();
        self.parts.push(bytes);
    }

    fn head(&mut self, tag: u32, len: usize) {
        encode_key(tag, WireType::LengthDelimited, &mut self.tail);
        encode_varint(len as u64, &mut self.tail);
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            let tail = Bytes::from(std::mem::take(&mut self.tail));
            self.len += tail.len();
            self.parts.push(tail);
        }
    }

    /// Writes all pieces.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.parts.iter().try_for_each(|p| out.write_all(p))?;
        out.write_all(&self.tail)
    }

    /// All pieces in one.
    pub(super) fn into_vec(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        self.parts.iter().for_each(|p| out.extend_from_slice(p));
        out.extend(self.tail);
        out
    }
}
