//! Images as convolutions read them, channels last: the channels of a pixel side by side, or in parts that stand apart,
//! which become one on the way.

use super::drive::{Rows, Source};
use super::lines::Copying;
use crate::error::{KernelError, Result, exact, require};
use crate::few::Few;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "conv2d nhwc";

/// Some of an image's channels: dense pixels of theirs.
#[derive(Clone, Copy, Default)]
struct Part {
    pixels: Source,
    channels: usize,
}

/// An image, and how its elements are copied.
pub(crate) struct Image {
    parts: Few<Part, 4>,
    /// Channels of all parts.
    channels: usize,
    pub isa: Isa,
    pub copy: Copying,
    /// Bytes of an element as it is copied, and in the image.
    pub size: usize,
    pub source_size: usize,
}

impl Image {
    /// Of `pixels` pixels with `channels` channels, which `parts` have together.
    ///
    /// # Errors
    /// There is no part, their types differ, or their lengths are those of another image.
    pub fn new(
        isa: Isa,
        parts: &[Rows<'_>],
        (pixels, channels): (usize, usize),
        (copy, size): (Copying, usize),
    ) -> Result<Image> {
        let first = parts.first().ok_or(KernelError::Invalid { kernel: NAME, what: "the image has no part" })?;
        let alike = |x: &Rows<'_>| (x.size(), x.signed()) == (first.size(), first.signed());
        require(NAME, parts.iter().all(alike), "parts of the image have different types")?;
        let mut image = Image { parts: Few::new(), channels, isa, copy, size, source_size: first.size() };
        let mut sum = 0;
        for x in parts {
            let of = x.len() / pixels.max(1);
            exact(NAME, "x", x.len(), of * pixels)?;
            image.parts.push(Part { pixels: Source(x.ptr()), channels: of });
            sum += of;
        }
        exact(NAME, "channels of x", sum, if pixels == 0 { 0 } else { channels })?;
        Ok(image)
    }

    /// An image in one part, whose length was checked.
    pub fn whole(
        isa: Isa,
        pixels: Source,
        channels: usize,
        (copy, size, source_size): (Copying, usize, usize),
    ) -> Image {
        let mut parts = Few::new();
        parts.push(Part { pixels, channels });
        Image { parts, channels, isa, copy, size, source_size }
    }

    /// The whole image, if it has one part.
    pub fn dense(&self) -> Option<*const u8> {
        match &*self.parts {
            [part] => Some(part.pixels.ptr()),
            _ => None,
        }
    }

    /// Where `count` pixels from pixel `first` on stand, and how many bytes of them.
    pub fn places(&self, first: usize, count: usize) -> impl Iterator<Item = (*const u8, usize)> {
        self.parts.iter().map(move |part| {
            let stride = part.channels * self.source_size;
            (part.pixels.ptr().wrapping_add(first * stride), count * stride)
        })
    }

    /// Copies `count` pixels from pixel `first` on, of each `channels` channels from `from` on, to places `pitch` bytes apart.
    /// Of an image in parts, all channels.
    ///
    /// # Safety
    /// The image has the pixels, `to` covers what is written, and they don't overlap.
    pub unsafe fn pixels(
        &self,
        (first, count): (usize, usize),
        (from, channels): (usize, usize),
        to: *mut u8,
        pitch: usize,
    ) {
        debug_assert!(self.parts.len() == 1 || (from, channels) == (0, self.channels));
        let mut at = 0;
        for part in self.parts.iter() {
            let n = if self.parts.len() == 1 { channels } else { part.channels };
            let stride = part.channels * self.source_size;
            let src = part.pixels.ptr().wrapping_add(first * stride + from * self.source_size);
            let bytes = n * self.size;
            // SAFETY: passed on to the caller.
            unsafe {
                match self.copy {
                    _ if n == part.channels && bytes == pitch => {
                        self.copy.copy(self.isa, src, to.add(at), count * bytes);
                    }
                    Copying::Flip(flip)
                        if [src as usize, to as usize, at, stride, pitch, bytes].iter().all(|v| v % 4 == 0) =>
                    {
                        let flip = i32::from_ne_bytes([flip; 4]);
                        self.isa.dispatch(Strided {
                            src,
                            stride,
                            dst: to.add(at),
                            pitch,
                            words: bytes / 4,
                            count,
                            flip,
                        });
                    }
                    _ => {
                        for i in 0..count {
                            self.copy.copy(self.isa, src.wrapping_add(i * stride), to.add(at + i * pitch), bytes);
                        }
                    }
                }
            }
            at += bytes;
        }
    }
}

/// Copies `count` times some words, each combined with `flip`; all stand on multiples of four bytes.
struct Strided {
    src: *const u8,
    /// Bytes between what is read, and between what is written.
    stride: usize,
    dst: *mut u8,
    pitch: usize,
    words: usize,
    count: usize,
    flip: i32,
}

impl Kernel for Strided {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let flip = s.splat_i(self.flip);
        for i in 0..self.count {
            let src = self.src.wrapping_add(i * self.stride).cast::<f32>();
            let dst = self.dst.wrapping_add(i * self.pitch).cast::<f32>();
            let mut at = 0;
            while at < self.words {
                let bits = low_bits((self.words - at).min(S::LANES));
                // SAFETY: the caller vouches for the words; `bits` are those that are left.
                unsafe {
                    let v = s.load_bits(src.add(at), bits);
                    s.store_bits(dst.add(at), s.float_of(s.xor_i(s.to_bits(v), flip)), bits);
                }
                at += S::LANES;
            }
        }
    }
}
