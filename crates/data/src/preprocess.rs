//! How images become what a model wants: the options, their file form and their spelling.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

use crate::source::{Source, read_small};
use crate::{DataError, Place};

/// A larger side than this is taken for a mistake.
pub(crate) const MAX_SIDE: u32 = 16_384;

const MAX_FILE: u64 = 1 << 20;

/// Preprocessing of images; every part is optional.
///
/// Order of the steps: channels (RGB, BGR or grey), resize, crop, then for each value `x`
/// of channel `c`, in `f32` and in exactly this order of operations,
/// `y = (x * scale + offset - mean[c]) / std[c]`, then layout. Steps that are not given are
/// left out of the computation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocess {
    /// Factor on each pixel value, for instance 1/255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// Added after scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<f32>,
    /// Subtracted after scale and offset: one value, or one per channel of the result.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "one_or_many")]
    pub mean: Option<Vec<f32>>,
    /// Divides at the end: one value, or one per channel of the result.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "one_or_many")]
    pub std: Option<Vec<f32>>,
    /// Maps 0…255 to low…high: `scale = (high - low) / 255`, `offset = low`; excludes both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<[f32; 2]>,
    /// The layout that the model wants; by default told from the shape of its input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<ImageLayout>,
    /// The size to resize to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// The filter of the resize; bilinear by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<ResizeFilter>,
    /// Centre crop after the resize.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<Crop>,
    /// The channels that the model wants; images are taken as RGB or grey.
    #[serde(skip_serializing_if = "Option::is_none", alias = "order")]
    pub channels: Option<Channels>,
}

impl Preprocess {
    /// Reads a `.toml` or `.json` file.
    ///
    /// A file with a key `preprocess` (as a `case.json` has) gives that object; `null` there
    /// means none.
    ///
    /// # Errors
    /// When the file can't be read, has unknown fields or impossible values.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Preprocess, DataError> {
        let path = path.as_ref();
        let place = Place::file(path);
        let bytes = read_small(&Source::open(path)?, &place, MAX_FILE)?;
        let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| DataError::format(&place, format!("this is no text: {e}"), "write it as UTF-8"))?;
        let parsed = if json { Preprocess::from_json(text) } else { Preprocess::from_toml(text) };
        parsed.map_err(|e| match e {
            DataError::Config { what, help } => DataError::format(&place, what, help),
            other => other,
        })
    }

    /// Reads JSON text; see [`Preprocess::from_file`].
    ///
    /// # Errors
    /// As [`Preprocess::from_file`].
    pub fn from_json(text: &str) -> Result<Preprocess, DataError> {
        let mut value: serde_json::Value = serde_json::from_str(text).map_err(bad_text)?;
        if let Some(inner) = value.get_mut("preprocess") {
            value = inner.take();
        }
        if !value.is_object() && !value.is_null() {
            return Err(bad_text("it is no object"));
        }
        let parsed: Option<Preprocess> = serde_json::from_value(value).map_err(bad_text)?;
        parsed.unwrap_or_default().validated()
    }

    /// Reads TOML text; see [`Preprocess::from_file`].
    ///
    /// # Errors
    /// As [`Preprocess::from_file`].
    pub fn from_toml(text: &str) -> Result<Preprocess, DataError> {
        let mut table: toml::Table = toml::from_str(text).map_err(bad_text)?;
        if let Some(toml::Value::Table(inner)) = table.remove("preprocess") {
            table = inner;
        }
        toml::Value::Table(table).try_into::<Preprocess>().map_err(bad_text)?.validated()
    }

    /// These options with those of `over` in place of the same ones here: flags over a file.
    ///
    /// A `range` in `over` displaces `scale` and `offset` here, and the other way round.
    #[must_use]
    pub fn overlaid(mut self, over: Preprocess) -> Preprocess {
        if over.range.is_some() {
            (self.scale, self.offset) = (None, None);
        }
        if over.scale.is_some() || over.offset.is_some() {
            self.range = None;
        }
        Preprocess {
            scale: over.scale.or(self.scale),
            offset: over.offset.or(self.offset),
            mean: over.mean.or(self.mean),
            std: over.std.or(self.std),
            range: over.range.or(self.range),
            layout: over.layout.or(self.layout),
            resize: over.resize.or(self.resize),
            filter: over.filter.or(self.filter),
            crop: over.crop.or(self.crop),
            channels: over.channels.or(self.channels),
        }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Preprocess::default()
    }

    /// Whether values change (layout, size and channel order aside).
    pub fn changes_values(&self) -> bool {
        let one = |v: Option<f32>, neutral: f32| v.is_some_and(|v| v != neutral);
        one(self.scale, 1.0)
            || one(self.offset, 0.0)
            || self.range.is_some()
            || self.mean.as_ref().is_some_and(|m| m.iter().any(|&v| v != 0.0))
            || self.std.as_ref().is_some_and(|s| s.iter().any(|&v| v != 1.0))
    }

    /// The options, if they are possible.
    ///
    /// # Errors
    /// For values that are not finite, a `std` of zero, sizes of zero or above 16,384, and
    /// `range` together with `scale` or `offset`.
    pub fn validated(self) -> Result<Preprocess, DataError> {
        let numbers = [("scale", &self.scale), ("offset", &self.offset)]
            .into_iter()
            .flat_map(|(n, v)| v.iter().map(move |v| (n, *v)))
            .chain(self.mean.iter().flatten().map(|v| ("mean", *v)))
            .chain(self.std.iter().flatten().map(|v| ("std", *v)))
            .chain(self.range.iter().flatten().map(|v| ("range", *v)));
        for (name, value) in numbers {
            if !value.is_finite() || name == "std" && value == 0.0 {
                return Err(DataError::config(
                    format!("preprocessing: {name} is {value}"),
                    "give a finite number, for std not zero",
                ));
            }
        }
        if self.range.is_some() && (self.scale.is_some() || self.offset.is_some()) {
            return Err(DataError::config("preprocessing: range excludes scale and offset", "give one or the other"));
        }
        for (name, list) in [("mean", &self.mean), ("std", &self.std)] {
            if list.as_ref().is_some_and(Vec::is_empty) {
                return Err(DataError::config(
                    format!("preprocessing: {name} is empty"),
                    "give one value, or one per channel",
                ));
            }
        }
        let sides = match self.resize {
            Some(Resize::Exact { width, height }) => vec![width, height],
            Some(Resize::Shorter(side)) => vec![side],
            None => vec![],
        };
        let crop = self.crop.iter().flat_map(|c| [c.width, c.height]);
        if let Some(side) = sides.into_iter().chain(crop).find(|s| !(1..=MAX_SIDE).contains(s)) {
            let what = format!("preprocessing: a side of {side} pixels");
            return Err(DataError::config(what, format!("give sides from 1 to {MAX_SIDE}")));
        }
        Ok(self)
    }

    /// Scale and offset, where values change.
    pub(crate) fn scale_offset(&self) -> (Option<f32>, Option<f32>) {
        match self.range {
            Some([low, high]) => (Some((high - low) / 255.0), Some(low)),
            None => (self.scale, self.offset),
        }
    }
}

fn bad_text(e: impl fmt::Display) -> DataError {
    let help = "known keys: scale offset mean std range layout resize filter crop channels";
    DataError::config(format!("preprocessing can't be read: {}", e.to_string().trim_end()), help)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(f32),
    Many(Vec<f32>),
}

fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<f32>>, D::Error> {
    Ok(Option::<OneOrMany>::deserialize(d)?.map(|v| match v {
        OneOrMany::One(v) => vec![v],
        OneOrMany::Many(v) => v,
    }))
}

/// Order of an image's dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageLayout {
    /// Channels before height and width.
    Nchw,
    /// Channels last.
    Nhwc,
}

/// The size of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Exactly this size, whatever the aspect ratio.
    Exact {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// The shorter side gets this length, the longer one keeps the aspect ratio (rounded down,
    /// as torchvision does).
    Shorter(u32),
}

/// The size of a centre crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// The filter of a resize. All but the first two widen their support when shrinking
/// (antialias), as Pillow does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResizeFilter {
    /// The nearest pixel.
    Nearest,
    /// Linear between the four neighbours, without antialias.
    BilinearNoAa,
    /// Triangle.
    #[default]
    Bilinear,
    /// Cubic convolution with a = −0.5.
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
    /// Mean over the covered area.
    Area,
}

/// Number and order of the channels that a model wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel of luma (ITU-R 601, as Pillow's mode L).
    Gray,
}

/// Spelling of an enumeration: `FromStr` in any case, `Display`, and serde as a string.
macro_rules! spelled {
    ($t:ident, $what:literal: $($variant:ident = $name:literal $(| $alias:literal)*),*) => {
        impl FromStr for $t {
            type Err = DataError;

            fn from_str(s: &str) -> Result<$t, DataError> {
                match s.trim().to_ascii_lowercase().as_str() {
                    $($name $(| $alias)* => Ok($t::$variant),)*
                    _ => Err(DataError::config(
                        format!(concat!($what, " \"{:.40}\" is unknown"), s),
                        concat!("give one of", $(" ", $name),*),
                    )),
                }
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $($t::$variant => $name,)* })
            }
        }

        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<$t, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

spelled!(ImageLayout, "layout": Nchw = "nchw", Nhwc = "nhwc");
spelled!(ResizeFilter, "filter": Nearest = "nearest", BilinearNoAa = "bilinear-noaa", Bilinear = "bilinear",
    Bicubic = "bicubic" | "cubic", Lanczos = "lanczos" | "lanczos3", Area = "area" | "box");
spelled!(Channels, "channel order": Rgb = "rgb", Bgr = "bgr", Gray = "gray" | "grey" | "l");

/// `224x320` → (224, Some(320)); `224` → (224, None).
fn parse_size(s: &str) -> Result<(u32, Option<u32>), DataError> {
    let bad =
        |_| DataError::config(format!("size \"{s:.40}\" can't be read"), "write WIDTHxHEIGHT, for instance 224x224");
    match s.trim().split_once(['x', 'X', '×']) {
        Some((w, h)) => Ok((w.trim().parse().map_err(bad)?, Some(h.trim().parse().map_err(bad)?))),
        None => Ok((s.trim().parse().map_err(bad)?, None)),
    }
}

impl FromStr for Resize {
    type Err = DataError;

    fn from_str(s: &str) -> Result<Resize, DataError> {
        parse_size(s).map(Resize::from)
    }
}

impl From<(u32, Option<u32>)> for Resize {
    fn from(size: (u32, Option<u32>)) -> Resize {
        match size {
            (width, Some(height)) => Resize::Exact { width, height },
            (side, None) => Resize::Shorter(side),
        }
    }
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resize::Exact { width, height } => write!(f, "{width}x{height}"),
            Resize::Shorter(side) => write!(f, "{side}"),
        }
    }
}

impl FromStr for Crop {
    type Err = DataError;

    fn from_str(s: &str) -> Result<Crop, DataError> {
        parse_size(s).map(Crop::from)
    }
}

impl From<(u32, Option<u32>)> for Crop {
    fn from((width, height): (u32, Option<u32>)) -> Crop {
        Crop { width, height: height.unwrap_or(width) }
    }
}

impl fmt::Display for Crop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Side(u32),
    Pair([u32; 2]),
    Text(String),
}

macro_rules! sized {
    ($($t:ident),*) => {
        $(impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<$t, D::Error> {
                Ok(match SizeText::deserialize(d)? {
                    SizeText::Side(s) => (s, None).into(),
                    SizeText::Pair([w, h]) => (w, Some(h)).into(),
                    SizeText::Text(t) => t.parse().map_err(D::Error::custom)?,
                })
            }
        })*
    };
}
sized!(Resize, Crop);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_json_as_case_files_have_it() {
        let p = Preprocess::from_json(
            r#"{"scale": 0.00392156862745098, "mean": [0.485, 0.456, 0.406], "std": 0.5, "layout": "NCHW", "crop": null}"#,
        )
        .unwrap();
        assert_eq!((p.scale, p.layout), (Some(1.0 / 255.0), Some(ImageLayout::Nchw)));
        assert_eq!((p.mean.unwrap().len(), p.std), (3, Some(vec![0.5])));
        let case = r#"{"metric": "top1", "preprocess": {"scale": 2}}"#;
        assert_eq!(Preprocess::from_json(case).unwrap().scale, Some(2.0));
        assert!(Preprocess::from_json(r#"{"preprocess": null, "layout": "NHWC"}"#).unwrap().is_empty());
    }

    #[test]
    fn reads_sizes_in_all_spellings() {
        let p = Preprocess::from_toml("resize = 256\ncrop = '224x200'\nfilter = 'Bicubic'\norder = 'BGR'").unwrap();
        assert_eq!(p.resize, Some(Resize::Shorter(256)));
        assert_eq!(p.crop, Some(Crop { width: 224, height: 200 }));
        assert_eq!((p.filter, p.channels), (Some(ResizeFilter::Bicubic), Some(Channels::Bgr)));
        let p = Preprocess::from_json(r#"{"resize": [320, 240], "crop": 224}"#).unwrap();
        assert_eq!(p.resize, Some(Resize::Exact { width: 320, height: 240 }));
        assert_eq!(p.crop, Some(Crop { width: 224, height: 224 }));
    }

    #[test]
    fn writes_what_it_reads() {
        let p =
            Preprocess::from_toml("resize = 256\ncrop = 224\nstd = [1.5]\nlayout = 'nhwc'\nrange = [-1, 1]").unwrap();
        assert_eq!(Preprocess::from_toml(&toml::to_string(&p).unwrap()).unwrap(), p);
        assert_eq!(Preprocess::from_json(&serde_json::to_string(&p).unwrap()).unwrap(), p);
    }

    #[test]
    fn lets_flags_win_over_a_file() {
        let file = Preprocess::from_toml("range = [0, 1]\nmean = [0.5]").unwrap();
        let p = file.overlaid(Preprocess { scale: Some(2.0), ..Preprocess::default() });
        assert_eq!((p.range, p.scale, p.mean), (None, Some(2.0), Some(vec![0.5])));
    }

    #[test]
    fn refuses_unknown_fields_and_impossible_values() {
        for text in [
            "sacle = 1",
            "std = 0",
            "mean = []",
            "scale = inf",
            "resize = 0",
            "crop = '1x'",
            "crop = 999999",
            "layout = 'chw'",
            "filter = 'fuzzy'",
            "range = [0, 1]\nscale = 1",
            "scale = 'x'",
            "resize = [1, 2, 3]",
        ] {
            assert!(Preprocess::from_toml(text).is_err(), "{text}");
        }
        assert!(Preprocess::from_json("[1]").is_err());
        assert!(Preprocess::from_json(&"[".repeat(100_000)).is_err());
    }
}
