//! Decoding of JPEG and PNG files.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};

use crate::resize::Image;
use crate::source::{Source, read_small};
use crate::{DataError, Limits, Place};

/// Compressed pictures above this are taken for a mistake.
const MAX_FILE: u64 = 256 << 20;

/// The picture as RGB; grey is repeated, transparency is dropped, as Pillow's `convert("RGB")` does.
///
/// The content decides the format, not the ending. Orientation tags are ignored, as Pillow does.
pub(crate) fn decode(source: &Source, place: &Place, limits: &Limits) -> Result<Image<u8>, DataError> {
    let bytes = read_small(source, place, MAX_FILE)?;
    // The decoders are fuzzed by their authors; a panic that is left must not end a long run.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_bytes(bytes, place, limits)));
    decoded.unwrap_or_else(|_| Err(damaged(place, "the decoder gave up")))
}

fn damaged(place: &Place, what: &str) -> DataError {
    DataError::format(place, format!("the image can't be decoded: {what}"), "open it in a viewer; replace or remove it")
}

fn decode_bytes(bytes: Vec<u8>, place: &Place, limits: &Limits) -> Result<Image<u8>, DataError> {
    let failed = |e: ImageError| damaged(place, &e.to_string());
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| DataError::io(place, "read", e))?;
    if !matches!(reader.format(), Some(ImageFormat::Jpeg | ImageFormat::Png)) {
        return Err(DataError::unsupported(
            place,
            "this is no JPEG or PNG image",
            "convert it, or remove it from the folder",
        ));
    }
    let mut bounds = image::Limits::default();
    // Eight bytes are the widest pixel (16-bit RGBA); the decoder's own buffers come on top.
    bounds.max_alloc = Some((limits.image_pixels as u64).saturating_mul(16));
    reader.limits(bounds);
    let decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > limits.image_pixels as u64 {
        let what = format!("the image claims {width}×{height} pixels, the limit is {} in all", limits.image_pixels);
        return Err(DataError::too_large(place, what, "resize it, or remove it from the folder"));
    }
    let rgb = DynamicImage::from_decoder(decoder).map_err(failed)?.into_rgb8();
    Ok(Image { width: width as usize, height: height as usize, channels: 3, data: rgb.into_raw() })
}
