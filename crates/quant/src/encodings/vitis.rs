//! `quant_info.json` of Vitis AI: `{"param": {name: [[bits, position], …]}, "output": {…}, "input": {…}, …}`; a value is
//! `code · 2^−position` with signed codes. Biases are among the parameters; what is read of them has no effect, because they
//! follow from the scales of their product.

use serde_json::{Map, Value, json};

use super::{Encoding, Encodings, EncodingsError, Given, Part, integer};
use crate::scheme::{ScalePoint, vitis};

const PARTS: [(&str, Part); 3] = [("param", Part::Param), ("output", Part::Output), ("input", Part::Input)];

/// Bits of a bias.
const BIAS_BITS: i64 = 8;

pub(super) fn read(all: &Map<String, Value>) -> Result<Encodings, String> {
    let mut found = Encodings::default();
    for (key, part) in PARTS {
        let Some(entries) = all.get(key) else { continue };
        let entries = entries.as_object().ok_or_else(|| format!("\"{key}\" is no object"))?;
        for (name, pairs) in entries {
            found.add(name, entry(pairs, part));
        }
    }
    Ok(found)
}

fn entry(pairs: &Value, part: Part) -> Result<Encoding, String> {
    let pair = match pairs.as_array().map(Vec::as_slice) {
        Some([Value::Array(pair)]) => pair.as_slice(),
        // Older versions have the pair itself.
        Some(pair @ [Value::Number(_), _]) => pair,
        _ => return Err("an entry is one pair [bits, position]: per-channel positions are for no DPU".into()),
    };
    let [bits, position] = pair else { return Err("an entry is a pair [bits, position]".into()) };
    let bits = bits.as_u64().ok_or("the bits are no number")?;
    let position = position.as_i64().ok_or("the position is no whole number: it was not calibrated")?;
    if !(-100..=100).contains(&position) {
        return Err(format!("the position {position} is out of range"));
    }
    let point = ScalePoint { scale: vitis::scale_of(position as i32), zero_point: 0 };
    Ok(Encoding::new(Some(part), integer(bits, true, None)?, vec![Given::Point(point)]))
}

pub(super) fn write(e: &Encodings) -> Result<Value, EncodingsError> {
    let mut parts = [Map::new(), Map::new(), Map::new()];
    for (name, encoding) in &e.tensors {
        let at = PARTS.iter().position(|(_, p)| encoding.part == Some(*p)).unwrap_or(1);
        parts[at].insert(name.clone(), json!([pair(name, encoding)?]));
    }
    for (name, position) in &e.bias_positions {
        parts[0].insert(name.clone(), json!([[BIAS_BITS, position]]));
    }
    let [param, output, input] = parts;
    Ok(json!({
        "param": param,
        "output": output,
        "input": input,
        "fast_finetuned": false,
        "bias_corrected": e.bias_corrected,
        // No graph_md5: that is of Vitis' own graph.
        "version": concat!("narrowbit ", env!("CARGO_PKG_VERSION")),
    }))
}

fn pair(name: &str, e: &Encoding) -> Result<[i64; 2], EncodingsError> {
    let refuse = |problem: String| {
        let help = "quantize with --scheme vitis-dpu";
        EncodingsError::Unwritable { tensor: name.to_owned(), problem, help }
    };
    let &[Given::Point(p)] = e.values.as_slice() else {
        return Err(refuse("Vitis has one position per tensor, and it has several scales".into()));
    };
    let format = e.format.filter(|f| !f.is_float() && f.is_signed());
    let Some(format) = format.filter(|_| p.zero_point == 0) else {
        return Err(refuse("Vitis has signed integers without a zero point".into()));
    };
    let position = vitis::position_of(p.scale);
    if vitis::scale_of(position).to_bits() != p.scale.to_bits() {
        return Err(refuse(format!("its scale {:e} is no power of two", p.scale)));
    }
    let bits = e.bits.map_or(format.dtype().bits() as i64, i64::from);
    Ok([bits, position.into()])
}
