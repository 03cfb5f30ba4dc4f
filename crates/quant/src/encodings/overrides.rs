//! `TensorQuantOverrides` of ONNX Runtime: for each tensor a list of `{quant_type, scale, zero_point, rmin, rmax,
//! symmetric, reduce_range, axis}`, one object, or one for each channel. As JSON, types are the names of `QuantType`.

use serde_json::{Map, Value, json};

use super::{Encoding, Encodings, EncodingsError, Given, Part, scale};
use crate::observe::Range;
use crate::scheme::{NumberFormat, ScalePoint};

/// `QuantType` by name.
const TYPES: [(&str, NumberFormat); 8] = [
    ("QInt8", NumberFormat::Int8),
    ("QUInt8", NumberFormat::Uint8),
    ("QInt16", NumberFormat::Int16),
    ("QUInt16", NumberFormat::Uint16),
    ("QInt4", NumberFormat::Int4),
    ("QUInt4", NumberFormat::Uint4),
    ("QFLOAT8E4M3FN", NumberFormat::Fp8E4m3),
    ("QFLOAT8E5M2", NumberFormat::Fp8E5m2),
];

/// What an object may say.
const KEYS: [&str; 8] = ["quant_type", "scale", "zero_point", "rmin", "rmax", "symmetric", "reduce_range", "axis"];

pub(super) fn read(all: &Map<String, Value>) -> Result<Encodings, String> {
    let mut found = Encodings::default();
    for (name, list) in all {
        let list = list.as_array().ok_or_else(|| format!("\"{name}\" has no list of objects"))?;
        if !list.iter().all(Value::is_object) {
            return Err(format!("\"{name}\" has no list of objects"));
        }
        found.add(name, entry(list));
    }
    Ok(found)
}

fn entry(list: &[Value]) -> Result<Encoding, String> {
    let first = list.first().ok_or("the list is empty")?;
    if first.get("convert").is_some() {
        return Err("\"convert\" (two types of one tensor) is not supported".into());
    }
    let known = |key: &String| KEYS.contains(&key.as_str());
    let unknown = list.iter().filter_map(Value::as_object).flat_map(Map::keys).find(|k| !known(k));
    if let Some(key) = unknown {
        return Err(format!("\"{key}\" is no key of an override: those are {}", KEYS.join(", ")));
    }
    let format = match first.get("quant_type").and_then(Value::as_str) {
        None => None,
        Some(name) => {
            // `str(QuantType.QInt8)` and `repr` both occur.
            let short = name.trim_start_matches("QuantType.");
            let known = TYPES.iter().find(|(n, _)| *n == short);
            Some(known.ok_or_else(|| format!("the type {name} is unknown"))?.1)
        }
    };
    let flag = |key: &str| first.get(key).and_then(Value::as_bool);
    let axis = first.get("axis").and_then(Value::as_i64);
    let values = list.iter().map(value).collect::<Result<Vec<_>, String>>()?;
    let (symmetric, reduce_range) = (flag("symmetric"), flag("reduce_range"));
    Ok(Encoding { part: None, format, bits: None, symmetric, reduce_range, axis, values })
}

/// A number, or a list with one.
fn number(v: &Value, key: &str) -> Result<Option<f64>, String> {
    let found = match v.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(a)) if a.len() == 1 => a[0].as_f64(),
        Some(n) => n.as_f64(),
    };
    found.map(Some).ok_or_else(|| format!("{key} is no number"))
}

fn value(v: &Value) -> Result<Given, String> {
    let of = |key| number(v, key);
    match (of("scale")?, of("zero_point")?, of("rmin")?, of("rmax")?) {
        (Some(s), Some(z), ..) if z.fract() == 0.0 && z.abs() <= 65536.0 => {
            Ok(Given::Point(ScalePoint { scale: scale(s)?, zero_point: z as i32 }))
        }
        (Some(_), Some(z), ..) => Err(format!("{z} is no zero point")),
        (None, None, Some(min), Some(max)) => Ok(Given::Range(Range { min, max })),
        (None, None, None, None) => Ok(Given::Nothing),
        _ => Err("scale goes with zero_point, and rmin with rmax".into()),
    }
}

pub(super) fn write(e: &Encodings) -> Result<Value, EncodingsError> {
    let mut all = Map::new();
    for (name, encoding) in &e.tensors {
        let unwritable = |problem: &str, help| EncodingsError::Unwritable {
            tensor: name.clone(),
            problem: problem.to_owned(),
            help,
        };
        let refuse =
            |problem| unwritable(problem, "quantize without narrower codes (--weight-bits, --activation-bits)");
        if encoding.part != Some(Part::Param) && encoding.values.len() > 1 {
            // `quantize_static` takes a list of several only for initializers.
            let problem = "it has a scale per channel, which ONNX Runtime gives weights alone";
            let help = "quantize with --channel-activations=no, or with --scheme quantizeml --per-tensor-activations";
            return Err(unwritable(problem, help));
        }
        let format = encoding.format.filter(|_| encoding.bits.is_none());
        let known = TYPES.iter().find(|(_, f)| Some(*f) == format);
        let &(quant_type, _) = known.ok_or_else(|| refuse("ONNX Runtime has no such type"))?;
        let entry = |v: &Given| {
            let Given::Point(p) = v else { return Err(refuse("it has no scale")) };
            let mut entry = json!({"quant_type": quant_type, "scale": f64::from(p.scale), "zero_point": p.zero_point});
            if let (Some(axis), Value::Object(entry)) = (encoding.axis, &mut entry) {
                entry.insert("axis".into(), axis.into());
            }
            Ok(entry)
        };
        let list = encoding.values.iter().map(entry).collect::<Result<Vec<_>, EncodingsError>>()?;
        all.insert(name.clone(), list.into());
    }
    Ok(Value::Object(all))
}
