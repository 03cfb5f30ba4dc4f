//! Scales, zero points and ranges in the files of other tools: Vitis AI's `quant_info.json`, AIMET's encodings, and the
//! `TensorQuantOverrides` of ONNX Runtime's `quantize_static`.
//!
//! [`Encodings::parse`] reads any of them, [`Encodings::write`] writes them, [`Encodings::of_graph`] takes them from a
//! quantized graph, and a plan is made with them by tensor name ([`crate::plan::QuantPlan::with_encodings`]).

mod aimet;
mod graph;
mod overrides;
mod own;
mod own_bias;
pub mod qlinear;
mod vitis;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use own::Decided;
pub use own_bias::KeptBias;
use serde::Serialize;
use serde_json::Value;

use crate::observe::Range;
use crate::scheme::{ActivationScheme, Formula, NumberFormat, ScalePoint, SchemeError, WeightScheme};

/// A file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `quant_info.json` of Vitis AI: bits and fix positions.
    Vitis,
    /// AIMET's encodings of version 1.0.0: a list with an entry per tensor.
    Aimet,
    /// AIMET's encodings of version 0.6.1: entries by tensor name.
    AimetV0,
    /// `TensorQuantOverrides` of ONNX Runtime's `quantize_static`, as JSON.
    Ort,
}

/// Whose numbers an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A weight.
    Param,
    /// An input of the model.
    Input,
    /// What an operator makes.
    Output,
}

/// What a file says of one index of a tensor's axis, or of all of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Given {
    /// Scale and zero point.
    Point(ScalePoint),
    /// The range that scale and zero point are to be computed from.
    Range(Range),
    /// Neither; only types are given.
    Nothing,
}

/// What a file says of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoding {
    /// Whose numbers they are, where the file says so.
    pub part: Option<Part>,
    /// The element type.
    pub format: Option<NumberFormat>,
    /// Bits of codes that are narrower than the type.
    pub bits: Option<u8>,
    /// Whether zero has the middle code.
    pub symmetric: Option<bool>,
    /// Whether one bit less is used.
    pub reduce_range: Option<bool>,
    /// The axis with an entry for each index, where the file says so; negative from the end.
    pub axis: Option<i64>,
    /// One for the tensor, or one for each index of the axis.
    pub values: Vec<Given>,
}

/// What a file says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encodings {
    /// By tensor name.
    pub tensors: BTreeMap<String, Encoding>,
    /// Entries that can't be used, with the reason.
    pub ignored: Vec<String>,
    /// Whether these are of our own configuration, whose formulas are those of the settings.
    pub own: bool,
    /// Biases that took up the errors of rounding, by the product that they belong to; of our own configuration.
    pub biases: BTreeMap<String, KeptBias>,
    /// Positions of biases of 8 bits, for formats that have them, by the bias's name: `<node>_bias`, because constants in files
    /// that we write are named after the product.
    pub bias_positions: BTreeMap<String, i32>,
    /// Whether biases of the model took up errors of rounding, for formats that say so.
    pub bias_corrected: bool,
}

/// Why a file can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodingsError {
    /// The system says no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        #[source]
        source: std::io::Error,
    },
    /// The file is none of the formats, or contradicts its own.
    #[error(
        "{path}: {problem}\nhelp: `quantize --encodings` reads Vitis' quant_info.json, AIMET's encodings, and ONNX Runtime's TensorQuantOverrides as JSON"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A format has no way to say what a tensor has.
    #[error("tensor \"{tensor}\": {problem}\nhelp: {help}")]
    Unwritable {
        /// The tensor.
        tensor: String,
        /// What the format lacks.
        problem: String,
        /// What to do.
        help: &'static str,
    },
    /// The model holds no quantized tensors.
    #[error(
        "the model holds no QuantizeLinear and DequantizeLinear with constant scales\nhelp: give a model that was quantized statically, in the form qdq"
    )]
    Nothing,
}

/// Larger files are refused.
const MAX_FILE: u64 = 256 << 20;

impl Encodings {
    /// Reads a file of any of the formats.
    ///
    /// # Errors
    /// When it can't be read or is none of them.
    pub fn load(path: &Path) -> Result<Encodings, EncodingsError> {
        let io = |source| EncodingsError::Io { path: path.into(), source };
        let mut text = Vec::new();
        std::fs::File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_end(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_FILE {
            let problem = format!("larger than {MAX_FILE} bytes");
            return Err(EncodingsError::Format { path: path.into(), problem });
        }
        Encodings::parse(&text, path)
    }

    /// Reads the text of a file; `path` names it in errors.
    ///
    /// # Errors
    /// When it is none of the formats.
    pub fn parse(text: &[u8], path: &Path) -> Result<Encodings, EncodingsError> {
        let bad = |problem: String| EncodingsError::Format { path: path.into(), problem };
        let value: Value = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
        let Value::Object(all) = value else { return Err(bad("this is no JSON object".into())) };
        let read = if all.contains_key("activation_encodings") || all.contains_key("param_encodings") {
            aimet::read(&all)
        } else if all.get("param").is_some_and(Value::is_object) && all.get("output").is_some_and(Value::is_object) {
            vitis::read(&all)
        } else {
            overrides::read(&all)
        };
        read.map_err(bad)
    }

    /// The text of a file.
    ///
    /// # Errors
    /// When the format can't say what a tensor has.
    pub fn write(&self, format: Format) -> Result<String, EncodingsError> {
        let value = match format {
            Format::Vitis => vitis::write(self)?,
            Format::Aimet => aimet::write(self)?,
            Format::AimetV0 => aimet::write_v0(self)?,
            Format::Ort => overrides::write(self)?,
        };
        Ok(format!("{value:#}\n"))
    }

    /// Adds an entry; one that contradicts itself is ignored with a reason.
    fn add(&mut self, name: &str, encoding: Result<Encoding, String>) {
        match encoding {
            Ok(e) => drop(self.tensors.insert(name.to_owned(), e)),
            Err(why) => self.ignored.push(format!("{name}: {why}")),
        }
    }
}

/// What an entry says of an activation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Activation {
    /// Of the tensor; with a scale for each channel the greatest of them, and the zero point of all.
    pub value: Given,
    /// The scale of each index of axis 1; empty for one of the tensor.
    pub scales: Vec<f32>,
}

impl Activation {
    fn of(values: &[Given]) -> Result<Activation, String> {
        let points = values.iter().map(|v| if let Given::Point(p) = v { Ok(*p) } else { Err(()) });
        match (values, points.collect::<Result<Vec<ScalePoint>, ()>>()) {
            (&[value], _) => Ok(Activation { value, scales: Vec::new() }),
            (_, Ok(points)) if !points.is_empty() => {
                let zero_point = points[0].zero_point;
                if points.iter().any(|p| p.zero_point != zero_point) {
                    return Err("the channels of an activation have one zero point".into());
                }
                let scales: Vec<f32> = points.iter().map(|p| p.scale).collect();
                let scale = scales.iter().copied().fold(0.0, f32::max);
                Ok(Activation { value: Given::Point(ScalePoint { scale, zero_point }), scales })
            }
            _ => Err("an activation has one range".into()),
        }
    }
}

/// What became of a file's entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Quantized tensors that an entry was about.
    pub matched: usize,
    /// Names in the file that no quantized tensor of the cleaned graph has.
    pub unmatched: Vec<String>,
    /// Quantized tensors without an entry: they have scales of our own.
    pub without: Vec<String>,
    /// Entries that could not be used, with the reason.
    pub ignored: Vec<String>,
}

/// A scale that divides.
fn scale(x: f64) -> Result<f32, String> {
    let s = x as f32;
    if s.is_finite() && s >= f32::MIN_POSITIVE { Ok(s) } else { Err(format!("{x} is no scale")) }
}

/// The integer type that holds codes of so many bits, and the bits, where the type has more. 8-bit types hold narrower codes
/// of activations, which have no narrower type.
fn integer(bits: u64, signed: bool, part: Option<Part>) -> Result<(NumberFormat, Option<u8>), String> {
    use NumberFormat::{Int4, Int8, Int16, Uint4, Uint8, Uint16};
    let of = |unsigned, with_sign| if signed { with_sign } else { unsigned };
    let narrow = |n: u64| if n == bits { None } else { u8::try_from(bits).ok() };
    match bits {
        4 if part == Some(Part::Param) => Ok((of(Uint4, Int4), None)),
        2..=8 => Ok((of(Uint8, Int8), narrow(8))),
        9..=16 => Ok((of(Uint16, Int16), narrow(16))),
        _ => Err(format!("codes of {bits} bits are not ours")),
    }
}

impl Encoding {
    /// An entry about types.
    fn new(part: Option<Part>, (format, bits): (NumberFormat, Option<u8>), values: Vec<Given>) -> Encoding {
        Encoding { part, format: Some(format), bits, symmetric: None, reduce_range: None, axis: None, values }
    }

    /// The scheme and the values of an activation, where this entry is about one; `own` is [`Encodings::own`].
    ///
    /// # Errors
    /// Why it can't be used.
    pub(crate) fn activation(
        &self,
        before: ActivationScheme,
        own: bool,
    ) -> Result<(ActivationScheme, Activation), String> {
        let found = Activation::of(&self.values)?;
        let mut s = before;
        if let Some(format) = self.format {
            (s.format, s.bits) = (format, self.bits);
        }
        s.symmetric = self.symmetric.unwrap_or(s.symmetric);
        s.reduce_range = self.reduce_range.unwrap_or(s.reduce_range);
        let range = if own {
            own_activation(&mut s, before, found.value).map_err(|e| first_line(&e))?;
            s.format.type_range()
        } else {
            if let Given::Point(p) = found.value {
                s.symmetric = p.zero_point == middle(s.format, s.bits);
            }
            s.formula = kept(s.formula);
            s.check().map_err(|e| first_line(&e))?;
            s.code_range()
        };
        check_point(found.value, range)?;
        Ok((s, found))
    }

    /// The scheme of a weight, where this entry is about one; `own` is [`Encodings::own`].
    ///
    /// # Errors
    /// Why it can't be used.
    pub(crate) fn weight(&self, before: WeightScheme, own: bool) -> Result<WeightScheme, String> {
        let mut s = before;
        if let Some(format) = self.format {
            (s.format, s.bits) = (format, self.bits);
        }
        s.symmetric = self.symmetric.unwrap_or(s.symmetric);
        s.reduce_range = self.reduce_range.unwrap_or(s.reduce_range);
        if self.values.iter().any(|v| matches!(v, Given::Point(_))) {
            let middle = middle(s.format, s.bits);
            let around = self.values.iter().all(|v| matches!(v, Given::Point(p) if p.zero_point == middle));
            s.symmetric = around && (before.symmetric || !own);
        }
        s.per_channel = self.axis.is_some() || self.values.len() > 1;
        if !own {
            s.formula = kept(s.formula);
        }
        s.check().map_err(|e| first_line(&e))?;
        let range = if s.bits.is_some() { s.code_range() } else { s.format.type_range() };
        self.values.iter().try_for_each(|&v| check_point(v, range))?;
        Ok(s)
    }
}

/// Makes a scheme fit an entry of our own: `before` is that of the settings.
fn own_activation(s: &mut ActivationScheme, before: ActivationScheme, value: Given) -> Result<(), SchemeError> {
    let Given::Point(p) = value else {
        // The formula chooses between signed and unsigned codes by itself.
        if s.check().is_err() && (before.format, s.format) == (NumberFormat::Int8, NumberFormat::Uint8) {
            s.format = before.format;
        }
        return s.check();
    };
    let usual = p.zero_point == 0 || p.zero_point == middle(s.format, s.bits);
    s.symmetric &= usual;
    if !usual && s.check().is_err() {
        s.formula = kept(s.formula);
    }
    s.check_type()
}

/// The formula that codes are made by: a scale that is given divides.
fn kept(formula: Formula) -> Formula {
    if formula == Formula::Vitis { formula } else { Formula::Narrowbit }
}

/// The code of zero in symmetric schemes.
fn middle(format: NumberFormat, bits: Option<u8>) -> i32 {
    let bits = bits.map_or(format.dtype().bits(), usize::from);
    if format.is_signed() { 0 } else { 1 << (bits - 1) }
}

fn check_point(value: Given, (lo, hi): (i32, i32)) -> Result<(), String> {
    match value {
        Given::Point(p) if !(lo..=hi).contains(&p.zero_point) => {
            Err(format!("the zero point {} is outside {lo} … {hi}", p.zero_point))
        }
        Given::Range(r) if !(r.min.is_finite() && r.max.is_finite() && r.min <= r.max) => {
            Err(format!("{} … {} is no range", r.min, r.max))
        }
        _ => Ok(()),
    }
}

fn first_line(e: &impl std::fmt::Display) -> String {
    e.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The range that the codes of a point hold.
pub(crate) fn held(p: ScalePoint, (lo, hi): (i32, i32)) -> Range {
    let value = |code: i32| f64::from(code - p.zero_point) * f64::from(p.scale);
    Range { min: value(lo), max: value(hi) }
}

#[cfg(test)]
mod tests;
