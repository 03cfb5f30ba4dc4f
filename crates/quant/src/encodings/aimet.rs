//! AIMET's encodings. A value is `(code + offset) · scale` with unsigned codes, so that the offset of a symmetric one is
//! −2^(bits−1).
//!
//! Version 0.6.1 has `{"activation_encodings": {name: [{bitwidth, dtype, is_symmetric, min, max, scale, offset}, …]}, …}`,
//! version 1.0.0 lists of `{name, enc_type, dtype, bw, is_sym, scale: […], offset: […]}`.

use serde_json::{Map, Value, json};

use super::{Encoding, Encodings, EncodingsError, Given, Part, held, integer, scale};
use crate::observe::Range;
use crate::scheme::ScalePoint;

const PARTS: [(&str, Part); 2] = [("activation_encodings", Part::Output), ("param_encodings", Part::Param)];

pub(super) fn read(all: &Map<String, Value>) -> Result<Encodings, String> {
    let mut found = Encodings::default();
    for (key, part) in PARTS {
        match all.get(key) {
            None => {}
            Some(Value::Object(entries)) => entries.iter().for_each(|(name, e)| found.add(name, old(e, part))),
            Some(Value::Array(entries)) => {
                for e in entries {
                    let name = e["name"].as_str().ok_or_else(|| format!("an entry of \"{key}\" has no name"))?;
                    found.add(name, new(e, part));
                }
            }
            Some(_) => return Err(format!("\"{key}\" is neither an object nor a list")),
        }
    }
    Ok(found)
}

/// `true`, or the text `"True"` of older versions.
fn flag(v: &Value) -> Option<bool> {
    v.as_bool().or_else(|| v.as_str().map(|s| s.eq_ignore_ascii_case("true")))
}

fn check_type(v: &Value) -> Result<(), String> {
    match v.as_str() {
        None => Ok(()),
        Some(t) if t.eq_ignore_ascii_case("int") => Ok(()),
        Some(t) => Err(format!("the type {t} is no integer: the tensor stays as it is")),
    }
}

/// The code of zero: unsigned codes from 0, or signed ones where the entry is symmetric.
fn zero_point(offset: f64, bits: u64, signed: bool) -> Result<i32, String> {
    if offset.fract() != 0.0 || offset.abs() > f64::from(1 << 16) {
        return Err(format!("{offset} is no offset"));
    }
    let middle = if signed { 1i64 << (bits - 1) } else { 0 };
    Ok((-(offset as i64) - middle) as i32)
}

fn number(v: &Value, what: &str) -> Result<f64, String> {
    v.as_f64().ok_or_else(|| format!("{what} is no number"))
}

fn old(e: &Value, part: Part) -> Result<Encoding, String> {
    let entries = e.as_array().filter(|a| !a.is_empty()).ok_or("an entry is a list of objects")?;
    let first = &entries[0];
    check_type(&first["dtype"])?;
    let bits = first["bitwidth"].as_u64().ok_or("it has no bitwidth")?;
    let signed = flag(&first["is_symmetric"]).unwrap_or(false);
    let format = integer(bits, signed, Some(part))?;
    let value = |v: &Value| {
        if v["scale"].is_null() {
            let (min, max) = (number(&v["min"], "min")?, number(&v["max"], "max")?);
            return Ok(Given::Range(Range { min, max }));
        }
        let zero_point = zero_point(number(&v["offset"], "offset")?, bits, signed)?;
        Ok(Given::Point(ScalePoint { scale: scale(number(&v["scale"], "scale")?)?, zero_point }))
    };
    let values = entries.iter().map(value).collect::<Result<Vec<_>, String>>()?;
    Ok(Encoding { symmetric: Some(signed), ..Encoding::new(Some(part), format, values) })
}

fn new(e: &Value, part: Part) -> Result<Encoding, String> {
    check_type(&e["dtype"])?;
    let kind = e["enc_type"].as_str().unwrap_or("PER_TENSOR");
    if !matches!(kind, "PER_TENSOR" | "PER_CHANNEL") {
        return Err(format!("the granularity {kind} is not ours for products"));
    }
    let bits = e["bw"].as_u64().ok_or("it has no bw")?;
    let signed = flag(&e["is_sym"]).unwrap_or(false);
    let format = integer(bits, signed, Some(part))?;
    let list = |key: &str| e[key].as_array().cloned().ok_or_else(|| format!("{key} is no list"));
    let (scales, offsets) = (list("scale")?, list("offset")?);
    if scales.len() != offsets.len() || scales.is_empty() {
        return Err(format!("{} scales and {} offsets", scales.len(), offsets.len()));
    }
    let value = |(s, o): (&Value, &Value)| {
        let zero_point = zero_point(number(o, "an offset")?, bits, signed)?;
        Ok(Given::Point(ScalePoint { scale: scale(number(s, "a scale")?)?, zero_point }))
    };
    let values = scales.iter().zip(&offsets).map(value).collect::<Result<Vec<_>, String>>()?;
    Ok(Encoding { symmetric: Some(signed), ..Encoding::new(Some(part), format, values) })
}

/// What both versions write of a tensor.
struct Plain {
    bits: u8,
    symmetric: bool,
    points: Vec<ScalePoint>,
    range: (i32, i32),
    offsets: Vec<i64>,
}

fn plain(name: &str, e: &Encoding) -> Result<Plain, EncodingsError> {
    let refuse = |problem: &str| EncodingsError::Unwritable {
        tensor: name.to_owned(),
        problem: problem.to_owned(),
        help: "AIMET's files hold integers with scale and offset: quantize to these",
    };
    let points: Option<Vec<ScalePoint>> =
        e.values.iter().map(|v| if let Given::Point(p) = v { Some(*p) } else { None }).collect();
    let points = points.ok_or_else(|| refuse("it has no scale"))?;
    let format = e.format.filter(|f| !f.is_float()).ok_or_else(|| refuse("its codes are floats"))?;
    let bits = e.bits.unwrap_or(format.dtype().bits() as u8);
    let lowest = if format.is_signed() { -(1i64 << (bits - 1)) } else { 0 };
    let highest = lowest + (1i64 << bits) - 1;
    let offsets = points.iter().map(|p| lowest - i64::from(p.zero_point)).collect();
    // Signed codes are what AIMET calls symmetric; others it can't hold with another zero point.
    let symmetric = format.is_signed();
    if symmetric && points.iter().any(|p| p.zero_point != 0) {
        return Ok(Plain { bits, symmetric: false, points, range: (lowest as i32, highest as i32), offsets });
    }
    Ok(Plain { bits, symmetric, points, range: (lowest as i32, highest as i32), offsets })
}

fn part_of(e: &Encoding) -> usize {
    usize::from(e.part == Some(Part::Param))
}

pub(super) fn write(e: &Encodings) -> Result<Value, EncodingsError> {
    let mut parts = [Vec::new(), Vec::new()];
    for (name, encoding) in &e.tensors {
        let p = plain(name, encoding)?;
        let scales: Vec<f64> = p.points.iter().map(|p| p.scale.into()).collect();
        let offsets: Vec<f64> = p.offsets.iter().map(|&o| o as f64).collect();
        parts[part_of(encoding)].push(json!({
            "name": name,
            "enc_type": if scales.len() > 1 { "PER_CHANNEL" } else { "PER_TENSOR" },
            "dtype": "INT",
            "bw": p.bits,
            "is_sym": p.symmetric,
            "scale": scales,
            "offset": offsets,
        }));
    }
    let [activations, params] = parts;
    Ok(json!({"version": "1.0.0", "activation_encodings": activations, "param_encodings": params}))
}

pub(super) fn write_v0(e: &Encodings) -> Result<Value, EncodingsError> {
    let mut parts = [Map::new(), Map::new()];
    for (name, encoding) in &e.tensors {
        let p = plain(name, encoding)?;
        let entry = |(point, offset): (&ScalePoint, &i64)| {
            let range = held(*point, p.range);
            json!({
                "bitwidth": p.bits,
                "dtype": "int",
                "is_symmetric": if p.symmetric { "True" } else { "False" },
                "max": range.max,
                "min": range.min,
                "offset": offset,
                "scale": f64::from(point.scale),
            })
        };
        let entries: Vec<Value> = p.points.iter().zip(&p.offsets).map(entry).collect();
        parts[part_of(encoding)].insert(name.clone(), entries.into());
    }
    let [activations, params] = parts;
    Ok(json!({"version": "0.6.1", "activation_encodings": activations, "param_encodings": params}))
}
