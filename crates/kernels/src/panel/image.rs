//! Images as convolutions read them, channels last: the channels of a pixel side by side, or in parts that stand apart,
//! which become one on the way: tensors, or the planes of a volume.

use super::drive::{Rows, Source};
use super::lines::Copying;
use crate::conv::{Conv2dParams, Conv3dParams};
use crate::error::{KernelError, Result, exact, product, require};
use crate::few::Few;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "conv2d nhwc";

/// What a convolution of images reads.
#[derive(Clone, Copy, Debug)]
pub enum Pixels<'a> {
    /// Channels that stand in several tensors, one behind another, as a `Concat` would join them: all `[n, h, w, channels of its
    /// own]`, of one type, with the same quantization.
    Parts(&'a [Rows<'a>]),
    /// Volumes `[n, d, h, w, c]`, for [`Conv3dParams::planes`].
    Planes(Rows<'a>, &'a Conv3dParams),
}

impl<'a> Pixels<'a> {
    /// The tensors.
    pub(crate) fn rows(&self) -> &[Rows<'a>] {
        match self {
            Pixels::Parts(parts) => parts,
            Pixels::Planes(x, _) => std::slice::from_ref(x),
        }
    }
}

/// Some of an image's channels: dense pixels of theirs.
#[derive(Clone, Copy, Default)]
struct Part {
    pixels: Source,
    channels: usize,
    /// Channels of a pixel in memory, and those before these.
    stride: usize,
    from: usize,
    /// Planes of a volume before the one that it is, from the padding on; the first image's.
    planes: usize,
}

impl Part {
    /// Of dense pixels.
    fn new(pixels: Source, channels: usize) -> Part {
        Part { pixels, channels, stride: channels, from: 0, planes: 0 }
    }
}

/// Volumes the groups of whose planes are the parts of images: group after group, plane after plane.
struct Volumes {
    /// Planes of a window and steps between them, and channels of a group.
    window: usize,
    dilation: usize,
    channels: usize,
    /// Pixels of a plane.
    plane: usize,
    /// Planes of a volume, images of it, and planes between these.
    depth: usize,
    images: usize,
    stride: usize,
    /// Planes of padding.
    before: usize,
}

/// An image, and how its elements are copied.
pub(crate) struct Image {
    /// The tensors.
    parts: Few<Part, 4>,
    /// Channels of all parts.
    channels: usize,
    volumes: Option<Volumes>,
    /// The byte that planes of padding hold, as it is copied.
    pub fill: u8,
    pub isa: Isa,
    pub copy: Copying,
    /// Bytes of an element as it is copied, and in the image.
    pub size: usize,
    pub source_size: usize,
}

impl Image {
    /// Of a convolution.
    ///
    /// # Errors
    /// There is no part, their types differ, or their lengths are those of another image; or the planes of volumes make other
    /// images than the convolution has.
    pub fn of(isa: Isa, p: &Conv2dParams, pixels: &Pixels<'_>, form: (Copying, usize)) -> Result<Image> {
        match pixels {
            Pixels::Parts(parts) => Image::new(isa, parts, (product(NAME, &[p.n, p.h, p.w])?, p.c), form),
            Pixels::Planes(x, volume) => {
                require(NAME, volume.planes()? == *p, "the planes make other images")?;
                Image::planes(isa, x, volume, form)
            }
        }
    }

    fn planes(isa: Isa, x: &Rows<'_>, p: &Conv3dParams, (copy, size): (Copying, usize)) -> Result<Image> {
        let ([images, ..], s) = (p.output()?, &p.slice);
        let (plane, count) = (product(NAME, &[s.h, s.w])?, product(NAME, &[s.n, p.d])?);
        exact(NAME, "x", x.len(), product(NAME, &[count, plane, s.c])?)?;
        if (p.kd, p.stride, p.pads) == (1, 1, [0; 2]) {
            return Ok(Image::whole(isa, Source(x.ptr()), s.c, (copy, size, x.size())));
        }
        // A single plane is a part as it stands.
        let channels = if p.kd == 1 { s.c } else { s.c / p.groups() };
        let (window, dilation) = (p.kd, p.dilation);
        let (depth, stride, before) = (p.d, p.stride, p.pads[0]);
        let volumes = Volumes { window, dilation, channels, plane, depth, images, stride, before };
        let whole = Image::whole(isa, Source(x.ptr()), s.c, (copy, size, x.size()));
        Ok(Image { channels: p.kd * s.c, volumes: Some(volumes), ..whole })
    }

    /// Of `pixels` pixels with `channels` channels, which `parts` have together.
    ///
    /// # Errors
    /// There is no part, their types differ, or their lengths are those of another image.
    fn new(
        isa: Isa,
        parts: &[Rows<'_>],
        (pixels, channels): (usize, usize),
        (copy, size): (Copying, usize),
    ) -> Result<Image> {
        let first = parts.first().ok_or(KernelError::Invalid { kernel: NAME, what: "the image has no part" })?;
        let alike = |x: &Rows<'_>| (x.size(), x.signed()) == (first.size(), first.signed());
        require(NAME, parts.iter().all(alike), "parts of the image have different types")?;
        let (volumes, fill, source_size) = (None, 0, first.size());
        let mut image = Image { parts: Few::new(), channels, volumes, fill, isa, copy, size, source_size };
        let mut sum = 0;
        for x in parts {
            let of = x.len() / pixels.max(1);
            exact(NAME, "x", x.len(), of * pixels)?;
            image.parts.push(Part::new(Source(x.ptr()), of));
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
        parts.push(Part::new(pixels, channels));
        Image { parts, channels, volumes: None, fill: 0, isa, copy, size, source_size }
    }

    /// The whole image, if it has one part.
    pub fn dense(&self) -> Option<*const u8> {
        match &*self.parts {
            [part] if self.volumes.is_none() => Some(part.pixels.ptr()),
            _ => None,
        }
    }

    /// All parts.
    fn parts(&self) -> impl Iterator<Item = Part> {
        let count = self.volumes.as_ref().map_or(self.parts.len(), |v| self.channels / v.channels);
        (0..count).map(move |i| match &self.volumes {
            None => self.parts[i],
            Some(v) => {
                let (from, planes) = (i / v.window * v.channels, i % v.window * v.dilation);
                Part { channels: v.channels, from, planes, ..self.parts[0] }
            }
        })
    }

    /// Where the pixels of a part from pixel `first` on stand; `None` in the padding of a volume.
    fn place(&self, part: &Part, first: usize) -> Option<*const u8> {
        let pixel = match &self.volumes {
            None => first,
            Some(v) => {
                let (image, pixel) = (first.checked_div(v.plane)?, first.checked_rem(v.plane)?);
                let z = (image % v.images * v.stride + part.planes).wrapping_sub(v.before);
                (z < v.depth).then(|| (image / v.images * v.depth + z) * v.plane + pixel)?
            }
        };
        Some(part.pixels.ptr().wrapping_add((pixel * part.stride + part.from) * self.source_size))
    }

    /// Where `count` pixels of one image from pixel `first` on stand, part by part, and how many bytes of them. Parts in the
    /// padding of a volume stand nowhere.
    pub fn places(&self, first: usize, count: usize) -> impl Iterator<Item = (Option<*const u8>, usize)> {
        self.parts().map(move |part| (self.place(&part, first), count * part.channels * self.source_size))
    }

    /// Copies `count` pixels of one image from pixel `first` on, of each `channels` channels from `from` on, to places `pitch` bytes apart.
    /// Of an image in parts, all channels, or those of a group.
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
        let whole = self.parts.len() > 1 || self.volumes.as_ref().is_some_and(|v| v.channels < self.channels);
        let (mut at, mut channel) = (0, 0);
        for part in self.parts() {
            // A group has whole parts, or a part whole groups.
            let here = !whole || (from..from + channels).contains(&channel);
            channel += part.channels;
            if !here {
                continue;
            }
            let (n, from) = if whole { (part.channels, 0) } else { (channels, from) };
            let (stride, bytes) = (part.stride * self.source_size, n * self.size);
            let Some(src) = self.place(&part, first).map(|src| src.wrapping_add(from * self.source_size)) else {
                // SAFETY: passed on to the caller.
                (0..count).for_each(|i| unsafe { to.add(at + i * pitch).write_bytes(self.fill, bytes) });
                at += bytes;
                continue;
            };
            // SAFETY: passed on to the caller.
            unsafe {
                match self.copy {
                    _ if n == part.stride && bytes == pitch => {
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
