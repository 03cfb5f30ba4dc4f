//! From an image sample to the tensor that a model input wants.

use narrowbit_tensor::{DType, Tensor};

use crate::convert::cast;
use crate::preprocess::{Channels, Crop, ImageLayout, Preprocess, Resize, ResizeFilter};
use crate::resize::{Image, Pixel, resize};
use crate::{DataError, Place};

/// How the dimensions of a sample are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dims {
    /// Height, width.
    Hw,
    /// Height, width, channels.
    Hwc,
    /// Channels, height, width.
    Chw,
}

/// The values' part of preprocessing: `y = (x * scale + offset - mean[c]) / std[c]` in `f32`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numeric {
    scale: Option<f32>,
    offset: Option<f32>,
    mean: Option<Vec<f32>>,
    std: Option<Vec<f32>>,
}

impl Numeric {
    pub(crate) fn new(options: &Preprocess) -> Numeric {
        let (scale, offset) = options.scale_offset();
        Numeric { scale, offset, mean: options.mean.clone(), std: options.std.clone() }
    }

    /// The number of channels that mean and std speak of; 1 fits any.
    pub(crate) fn channels(&self) -> usize {
        self.mean.iter().chain(&self.std).map(Vec::len).max().unwrap_or(1)
    }

    /// # Errors
    /// When mean or std have neither one value nor one per channel.
    fn check(&self, channels: usize, place: &Place) -> Result<(), DataError> {
        for (name, list) in [("mean", &self.mean), ("std", &self.std)] {
            if let Some(n) = list.as_ref().map(Vec::len).filter(|&n| n != 1 && n != channels) {
                let what = format!("{name} has {n} values, the image has {channels} channels");
                return Err(DataError::fit(place, what, "give one value, or one per channel"));
            }
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn apply(&self, x: f32, channel: usize) -> f32 {
        let of = |list: &[f32]| list.get(channel).or(list.first()).copied();
        let mut y = x;
        if let Some(s) = self.scale {
            y *= s;
        }
        if let Some(o) = self.offset {
            y += o;
        }
        if let Some(m) = self.mean.as_deref().and_then(of) {
            y -= m;
        }
        if let Some(s) = self.std.as_deref().and_then(of) {
            y /= s;
        }
        y
    }
}

/// The whole way of one image input.
#[derive(Debug, Clone)]
pub(crate) struct PixelPlan {
    pub(crate) source: Dims,
    /// The model's layout.
    pub(crate) layout: ImageLayout,
    /// The model's element type.
    pub(crate) dtype: DType,
    /// The model's height, width and channels, where fixed.
    pub(crate) want: [Option<usize>; 3],
    /// Whether the model's input has no channel dimension.
    pub(crate) flat: bool,
    pub(crate) channels: Option<Channels>,
    pub(crate) resize: Option<Resize>,
    pub(crate) filter: ResizeFilter,
    pub(crate) crop: Option<Crop>,
    pub(crate) numeric: Numeric,
    /// The model input, for messages.
    pub(crate) input: String,
}

impl PixelPlan {
    /// Whether all results have the same shape, whatever the images' sizes.
    pub(crate) fn fixed_size(&self) -> bool {
        let exact = self.crop.is_some() || matches!(self.resize, Some(Resize::Exact { .. }));
        exact || self.want[0].is_some() && self.want[1].is_some()
    }

    /// One sample (without batch dimension) as the model wants it, still without batch dimension.
    pub(crate) fn apply(&self, sample: &Tensor, place: &Place) -> Result<Tensor, DataError> {
        let failed = |e| DataError::tensor(place, e);
        match sample.dtype() {
            DType::U8 => {
                let pixels = sample.slice::<u8>().map_err(failed)?;
                self.run(self.image(&pixels, sample.shape(), place)?, place)
            }
            _ => {
                let pixels = sample.to_f32s().map_err(failed)?;
                self.run(self.image(&pixels, sample.shape(), place)?, place)
            }
        }
    }

    fn image<T: Pixel>(&self, data: &[T], shape: &[usize], place: &Place) -> Result<Image<T>, DataError> {
        let (height, width, channels) = match (self.source, shape) {
            (Dims::Hw, &[h, w]) => (h, w, 1),
            (Dims::Hwc, &[h, w, c]) => (h, w, c),
            (Dims::Chw, &[c, h, w]) => (h, w, c),
            _ => {
                let what = format!("shape {shape:?} is no image of {:?}", self.source);
                return Err(DataError::fit(place, what, "give all samples the same number of dimensions"));
            }
        };
        if data.is_empty() {
            return Err(DataError::fit(
                place,
                format!("an image of shape {shape:?} has no pixels"),
                "remove this sample",
            ));
        }
        let data = match self.source {
            Dims::Chw if channels > 1 => {
                let plane = height * width;
                (0..plane * channels).map(|i| data[i % channels * plane + i / channels]).collect()
            }
            _ => data.to_vec(),
        };
        Ok(Image { width, height, channels, data })
    }

    fn run<T: Pixel>(&self, image: Image<T>, place: &Place) -> Result<Tensor, DataError> {
        let image = self.channelled(image, place)?;
        let image = sized(image, self.resize, self.filter, place)?;
        let image = cropped(image, self.crop, place)?;
        self.check_size(&image, place)?;
        self.numeric.check(image.channels, place)?;
        let (h, w, c) = (image.height, image.width, image.channels);
        let values = self.values(&image);
        let shape = match (self.flat, self.layout) {
            (true, _) => vec![h, w],
            (false, ImageLayout::Nchw) => vec![c, h, w],
            (false, ImageLayout::Nhwc) => vec![h, w, c],
        };
        let out = Tensor::new(shape, values).map_err(|e| DataError::tensor(place, e))?;
        cast(out, self.dtype, place)
    }

    /// The values in the model's layout.
    fn values<T: Pixel>(&self, image: &Image<T>) -> Vec<f32> {
        let (c, plane) = (image.channels, image.width * image.height);
        let (channel_step, pixel_step) = match self.layout {
            ImageLayout::Nchw => (plane, 1),
            ImageLayout::Nhwc => (1, c),
        };
        let mut out = vec![0f32; plane * c];
        for k in 0..c {
            let to = out[k * channel_step..].iter_mut().step_by(pixel_step);
            let from = image.data[k..].iter().step_by(c);
            to.zip(from).for_each(|(y, x)| *y = self.numeric.apply(x.to_f32(), k));
        }
        out
    }

    /// The channels that the model wants.
    fn channelled<T: Pixel>(&self, image: Image<T>, place: &Place) -> Result<Image<T>, DataError> {
        let have = image.channels;
        let want = match self.channels {
            Some(Channels::Gray) => 1,
            Some(Channels::Rgb | Channels::Bgr) => 3,
            None => self.want[2].unwrap_or(have),
        };
        let pick: Vec<usize> = match (have, want) {
            (a, b) if a == b && self.channels != Some(Channels::Bgr) => return Ok(image),
            (1, 3) => vec![0, 0, 0],
            (3 | 4, 3) => vec![0, 1, 2],
            (3 | 4, 1) => return Ok(luma(&image)),
            _ => {
                let what = format!("the image has {have} channels, input \"{}\" wants {want}", self.input);
                return Err(DataError::fit(place, what, "convert the images to RGB or grey"));
            }
        };
        let pick = if self.channels == Some(Channels::Bgr) { pick.into_iter().rev().collect() } else { pick };
        let data = image.data.chunks_exact(have).flat_map(|p| pick.iter().map(|&k| p[k])).collect();
        Ok(Image { channels: want, data, ..image })
    }

    fn check_size<T>(&self, image: &Image<T>, place: &Place) -> Result<(), DataError> {
        let [h, w, c] = self.want;
        let fits = |want: Option<usize>, have: usize| want.is_none_or(|n| n == have);
        let show = |d: Option<usize>| d.map_or("any".to_owned(), |d| d.to_string());
        if !fits(h, image.height) || !fits(w, image.width) {
            let (want_w, want_h) = (show(w), show(h));
            let what = format!(
                "the image is {}×{} (width × height), input \"{}\" wants {want_w}×{want_h}",
                image.width, image.height, self.input
            );
            return Err(DataError::fit(place, what, format!("add --resize {want_w}x{want_h}, or --resize and --crop")));
        }
        if !fits(c, image.channels) {
            let what = format!("the image has {} channels, input \"{}\" wants {}", image.channels, self.input, show(c));
            return Err(DataError::fit(place, what, "set the preprocessing key \"channels\" to rgb, bgr or gray"));
        }
        Ok(())
    }

    /// A mask of the image's classes, resized with the nearest filter and cropped like the image.
    pub(crate) fn apply_to_mask(&self, mask: Image<f32>, place: &Place) -> Result<Image<f32>, DataError> {
        cropped(sized(mask, self.resize, ResizeFilter::Nearest, place)?, self.crop, place)
    }

    /// Whether the image's geometry changes.
    pub(crate) fn moves_pixels(&self) -> bool {
        self.resize.is_some() || self.crop.is_some()
    }
}

/// Luma by Pillow's integer formula for 8 bits (`L24` in `Convert.c`), which also is ITU-R 601.
fn luma<T: Pixel>(image: &Image<T>) -> Image<T> {
    let one = |p: &[T]| {
        let [r, g, b] = [p[0], p[1], p[2]].map(T::to_f32);
        // 65536 times at most 255 needs 24 bits, which f64 holds exactly.
        let sum = f64::from(r) * 19595.0 + f64::from(g) * 38470.0 + f64::from(b) * 7471.0;
        match T::IS_INTEGER {
            true => T::from_f32(((sum + 32768.0) / 65536.0).floor() as f32),
            false => T::from_f32((sum / 65536.0) as f32),
        }
    };
    let data = image.data.chunks_exact(image.channels).map(one).collect();
    Image { width: image.width, height: image.height, channels: 1, data }
}

fn sized<T: Pixel>(
    image: Image<T>,
    to: Option<Resize>,
    filter: ResizeFilter,
    place: &Place,
) -> Result<Image<T>, DataError> {
    let (width, height) = match to {
        None => return Ok(image),
        Some(Resize::Exact { width, height }) => (width as usize, height as usize),
        Some(Resize::Shorter(side)) => {
            // torchvision truncates the longer side.
            let side = side as usize;
            let long = |long: usize, short: usize| (side * long / short.max(1)).max(1);
            match image.width <= image.height {
                true => (side, long(image.height, image.width)),
                false => (long(image.width, image.height), side),
            }
        }
    };
    const MAX: usize = crate::preprocess::MAX_SIDE as usize;
    if width > MAX || height > MAX {
        let what = format!("resizing {}×{} would give {width}×{height}", image.width, image.height);
        return Err(DataError::too_large(place, what, "remove this image, or --resize to an exact size"));
    }
    Ok(resize(image, width, height, filter))
}

/// The middle of an image; odd margins are split as torchvision does (half to even).
fn cropped<T: Pixel>(image: Image<T>, crop: Option<Crop>, place: &Place) -> Result<Image<T>, DataError> {
    let Some(crop) = crop else { return Ok(image) };
    let (w, h) = (crop.width as usize, crop.height as usize);
    if w > image.width || h > image.height {
        let what = format!("the image is {}×{}, smaller than the crop {w}×{h}", image.width, image.height);
        return Err(DataError::fit(place, what, "add --resize to a size at least that large"));
    }
    let margin = |all: usize, part: usize| ((all - part) as f64 / 2.0).round_ties_even() as usize;
    let (top, left, c) = (margin(image.height, h), margin(image.width, w), image.channels);
    let data =
        (top..top + h).flat_map(|y| image.data[(y * image.width + left) * c..][..w * c].iter().copied()).collect();
    Ok(Image { width: w, height: h, channels: c, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(layout: ImageLayout, options: &Preprocess) -> PixelPlan {
        PixelPlan {
            source: Dims::Hwc,
            layout,
            dtype: DType::F32,
            want: [None; 3],
            flat: false,
            channels: options.channels,
            resize: options.resize,
            filter: options.filter.unwrap_or_default(),
            crop: options.crop,
            numeric: Numeric::new(options),
            input: "input".into(),
        }
    }

    fn options(toml: &str) -> Preprocess {
        Preprocess::from_toml(toml).unwrap()
    }

    #[test]
    fn normalises_in_the_documented_order() {
        let o = options(
            "scale = 0.00392156862745098\noffset = 0.1\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]",
        );
        let t = Tensor::new([1, 2, 3], vec![10u8, 20, 30, 40, 50, 60]).unwrap();
        let y = plan(ImageLayout::Nchw, &o).apply(&t, &Place::default()).unwrap();
        assert_eq!(y.shape(), [3, 1, 2]);
        let want = (40f32 * 0.003_921_569 + 0.1 - 0.485) / 0.229;
        assert_eq!(y.slice::<f32>().unwrap()[1], want);
    }

    #[test]
    fn reorders_and_reduces_channels() {
        let t = Tensor::new([1, 1, 3], vec![255u8, 10, 0]).unwrap();
        let at = Place::default();
        let bgr = plan(ImageLayout::Nhwc, &options("channels = 'bgr'")).apply(&t, &at).unwrap();
        assert_eq!(bgr.slice::<f32>().unwrap().as_ref(), [0.0, 10.0, 255.0]);
        let gray = plan(ImageLayout::Nhwc, &options("channels = 'gray'")).apply(&t, &at).unwrap();
        // (255·19595 + 10·38470 + 32768) >> 16
        assert_eq!(gray.slice::<f32>().unwrap().as_ref(), [82.0]);
        let t = Tensor::new([1, 1, 1], vec![9u8]).unwrap();
        let rgb = plan(ImageLayout::Nhwc, &options("channels = 'rgb'")).apply(&t, &at).unwrap();
        assert_eq!(rgb.shape(), [1, 1, 3]);
    }

    #[test]
    fn resizes_the_shorter_side_and_crops_the_middle() {
        let t = Tensor::new([4, 9, 1], (0..36u8).collect::<Vec<_>>()).unwrap();
        let y = plan(ImageLayout::Nhwc, &options("crop = '2x2'")).apply(&t, &Place::default()).unwrap();
        // Margins of 3.5 and 1 pixels; 3.5 rounds to the even 4.
        assert_eq!(y.slice::<f32>().unwrap().as_ref(), [13.0, 14.0, 22.0, 23.0]);
        let y = plan(ImageLayout::Nhwc, &options("resize = 2")).apply(&t, &Place::default()).unwrap();
        assert_eq!(y.shape(), [2, 4, 1]);
    }

    #[test]
    fn refuses_a_wrong_size_and_says_what_to_add() {
        let t = Tensor::new([4, 9, 1], vec![0u8; 36]).unwrap();
        let mut p = plan(ImageLayout::Nhwc, &Preprocess::default());
        p.want = [Some(8), Some(8), None];
        let e = p.apply(&t, &Place::file("a.png")).unwrap_err().to_string();
        assert!(e.contains("9×4") && e.contains("--resize 8x8"), "{e}");
        assert!(plan(ImageLayout::Nhwc, &options("crop = 5")).apply(&t, &Place::default()).is_err());
        assert!(plan(ImageLayout::Nhwc, &options("mean = [1, 2, 3]")).apply(&t, &Place::default()).is_err());
    }
}
