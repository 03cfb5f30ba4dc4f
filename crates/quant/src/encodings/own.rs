//! Scales and zero points in our own configuration: what `narrowbit config` writes, and `quantize --config` applies.

use std::collections::BTreeMap;

use narrowbit_ir::Graph;
use narrowbit_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::graph::table;
use super::{Encoding, Encodings, Given, Part, middle, qlinear, scale};
use crate::options::QuantOptions;
use crate::scheme::{NumberFormat, ScalePoint};

/// What was decided of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Decided {
    /// The element type.
    #[serde(rename = "type")]
    pub format: NumberFormat,
    /// Bits of codes that are narrower than the type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// The axis with a scale for each index; one scale for the tensor without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<i64>,
    /// One for the tensor, or one for each index of the axis; none where they are to be chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scales: Vec<f32>,
    /// As many as scales, or one for all of them; the code in the middle where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zero_points: Vec<i32>,
    /// `type:bits@axis` that the scales were chosen for: they count as long as the entry says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales_for: Option<String>,
    /// Where there is one scale, and it is a power of two: the negative of its exponent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction_bits: Option<i32>,
}

impl Decided {
    fn of(e: &Encoding) -> Option<Decided> {
        let points = e.values.iter().map(|v| if let Given::Point(p) = v { Some(*p) } else { None });
        let points: Vec<ScalePoint> = points.collect::<Option<_>>()?;
        let scales: Vec<f32> = points.iter().map(|p| p.scale).collect();
        let fraction_bits = if let [s] = scales[..] { fraction_bits(s) } else { None };
        let mut made = Decided {
            format: e.format?,
            bits: e.bits,
            axis: e.axis,
            scales,
            zero_points: points.iter().map(|p| p.zero_point).collect(),
            scales_for: None,
            fraction_bits,
        };
        made.scales_for = Some(made.form());
        Some(made)
    }

    /// What scales depend on.
    fn form(&self) -> String {
        let bits = self.bits.map(|b| format!(":{b}")).unwrap_or_default();
        let axis = self.axis.map(|a| format!("@{a}")).unwrap_or_default();
        format!("{}{bits}{axis}", self.format.name())
    }

    fn encoding(&self) -> Result<Encoding, String> {
        let stale = self.scales_for.as_ref().is_some_and(|form| *form != self.form());
        let values = if stale || self.scales.is_empty() { vec![Given::Nothing] } else { self.points()? };
        let axis = self.axis;
        Ok(Encoding { axis, ..Encoding::new(None, (self.format, self.bits), values) })
    }

    fn points(&self) -> Result<Vec<Given>, String> {
        let (scales, zeros) = (&self.scales, &self.zero_points);
        if zeros.len() > 1 && zeros.len() != scales.len() {
            return Err(format!("{} scales and {} zero points", scales.len(), zeros.len()));
        }
        if self.axis.is_none() && scales.len() > 1 {
            return Err(format!("{} scales, but no axis that they lie along", scales.len()));
        }
        if let (&[s], Some(f)) = (&scales[..], self.fraction_bits)
            && fraction_bits(s) != Some(f)
        {
            return Err(format!(
                "the scale is {s}, but fraction-bits says {f}: edit the scale and leave fraction-bits out"
            ));
        }
        let zero = |i: usize| zeros.get(i).or(zeros.first()).copied();
        let usual = if self.format.is_float() { 0 } else { middle(self.format, self.bits) };
        let point = |(i, &s): (usize, &f32)| {
            Ok(Given::Point(ScalePoint { scale: scale(f64::from(s))?, zero_point: zero(i).unwrap_or(usual) }))
        };
        scales.iter().enumerate().map(point).collect()
    }
}

/// The negative exponent of a power of two.
fn fraction_bits(scale: f32) -> Option<i32> {
    let power = scale.is_normal() && scale > 0.0 && scale.to_bits() & 0x7f_ffff == 0;
    power.then_some(127 - (scale.to_bits() >> 23) as i32)
}

impl Encodings {
    /// What was decided of each tensor of a quantized graph, by the name that it had before; `options` are those that it was
    /// quantized with. Biases and the numbers of normalizations follow from the others and are left out, as are scales of
    /// blocks and of run time.
    pub fn decided(graph: &Graph, options: Option<&QuantOptions>) -> BTreeMap<String, Decided> {
        let mut found = Encodings::of_graph(graph).unwrap_or_default();
        let widths = options.map(widths).unwrap_or_default();
        let narrow = |found: &mut Encodings, name: &str, codes: &Tensor| {
            if let Some(entry) = found.tensors.get_mut(name).filter(|e| e.part == Some(Part::Param)) {
                entry.bits = narrowed(codes, &widths);
            }
        };
        for (id, node) in graph.nodes() {
            for v in qlinear::codes(graph, id).map_or(Vec::new(), |(operands, _)| operands) {
                if let Some(codes) = graph.constant(v) {
                    narrow(&mut found, &qlinear::plain_name(graph, v), codes);
                }
            }
            let dequantized = node.input(0).filter(|_| node.op.name() == "DequantizeLinear");
            let Some(v) = dequantized.map(|v| table(graph, v).unwrap_or(v)) else { continue };
            let Some(codes) = graph.constant(v) else { continue };
            let name = &qlinear::plain_name(graph, v);
            // A dividend of a normalization: its numbers follow from the scale of the data.
            let divided = node.output(0).and_then(|v| graph.only_use(v)).map(|u| graph.node(u.node).op.name());
            if divided == Some("Div") {
                found.tensors.remove(name);
                continue;
            }
            narrow(&mut found, name, codes);
        }
        found.tensors.iter().filter_map(|(name, e)| Some((name.clone(), Decided::of(e)?))).collect()
    }

    /// The entries of our own configuration; what an entry does not say, and what formula makes codes, stays as the settings
    /// have it.
    ///
    /// # Errors
    /// The tensor whose entry contradicts itself, and how.
    pub fn of_decided(all: &BTreeMap<String, Decided>) -> Result<Encodings, String> {
        let one = |(name, d): (&String, &Decided)| match d.encoding() {
            Ok(e) => Ok((name.clone(), e)),
            Err(why) => Err(format!("tensors: \"{name}\": {why}")),
        };
        let tensors = all.iter().map(one).collect::<Result<_, _>>()?;
        Ok(Encodings { tensors, own: true, ..Encodings::default() })
    }

    /// Whether no entry asks for another type than int8 and uint8.
    pub fn is_8_bit_integer(&self) -> bool {
        let eight = |f: NumberFormat| matches!(f, NumberFormat::Int8 | NumberFormat::Uint8);
        self.tensors.values().all(|e| e.format.is_none_or(eight))
    }

    /// The first operator set that holds the types of all entries.
    pub fn least_opset(&self) -> i64 {
        self.tensors.values().filter_map(|e| Some(e.format?.least_opset())).max().unwrap_or(13)
    }
}

/// The widths of narrower codes that the settings may have given a weight.
fn widths(o: &QuantOptions) -> Vec<u8> {
    let own = o.overrides.iter().filter_map(|o| o.weights?.bits);
    let mut all: Vec<u8> = own.chain(o.weights.bits).chain(o.input_weight_bits).collect();
    all.sort_unstable();
    all
}

/// The least of some widths that holds all codes.
fn narrowed(codes: &Tensor, widths: &[u8]) -> Option<u8> {
    let signed = codes.dtype().is_signed_int();
    let codes = codes.to_i64s().ok().filter(|_| !widths.is_empty())?;
    let fits = |bits: u8| {
        let half = 1i64 << bits.clamp(1, 32).saturating_sub(1);
        let (low, high) = if signed { (-half, half - 1) } else { (0, 2 * half - 1) };
        codes.iter().all(|c| (low..=high).contains(c))
    };
    widths.iter().copied().find(|&b| fits(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Given>, String> {
        let d: Decided = serde_json::from_str(text).map_err(|e| e.to_string())?;
        d.encoding().map(|e| e.values)
    }

    #[test]
    fn takes_scales_as_long_as_type_bits_and_axis_are_those_that_they_were_chosen_for() {
        let point = |scale, zero_point| Given::Point(ScalePoint { scale, zero_point });
        let same =
            r#"{"type":"int8","bits":4,"axis":1,"scales":[0.5,0.25],"zero-points":[0,1],"scales-for":"int8:4@1"}"#;
        assert_eq!(read(same), Ok(vec![point(0.5, 0), point(0.25, 1)]));
        for (from, to) in [("\"int8\"", "\"int16\""), ("\"bits\":4", "\"bits\":8"), ("\"axis\":1,", "")] {
            assert_eq!(read(&same.replace(from, to)), Ok(vec![Given::Nothing]), "{from}");
        }
        assert_eq!(read(r#"{"type":"uint8","scales":[0.5]}"#), Ok(vec![point(0.5, 128)]), "around the middle");
        assert_eq!(read(r#"{"type":"fp8_e4m3"}"#), Ok(vec![Given::Nothing]));
    }

    #[test]
    fn refuses_numbers_that_contradict_each_other() {
        for (text, says) in [
            (r#"{"type":"int8","scales":[0.5,0.25]}"#, "no axis"),
            (r#"{"type":"int8","axis":0,"scales":[0.5,0.25],"zero-points":[0,0,0]}"#, "3 zero points"),
            (r#"{"type":"int8","scales":[0.5],"fraction-bits":2}"#, "fraction-bits says 2"),
            (r#"{"type":"int8","scales":[0.3],"fraction-bits":2}"#, "fraction-bits says 2"),
            (r#"{"type":"int8","scales":[0]}"#, "is no scale"),
            (r#"{"type":"int8","scales":[1e-45]}"#, "is no scale"),
            (r#"{"type":"int3"}"#, "int3"),
        ] {
            assert!(read(text).is_err_and(|e| e.contains(says)), "{text}: {:?}", read(text));
        }
        assert!(read(r#"{"type":"int8","scales":[0.25],"fraction-bits":2}"#).is_ok());
    }

    #[test]
    fn names_the_width_that_the_settings_gave() {
        let codes = |v: Vec<i8>| Tensor::vector(v);
        assert_eq!(narrowed(&codes(vec![-8, 7]), &[4, 8]), Some(4));
        assert_eq!(narrowed(&codes(vec![-1, 1]), &[4, 8]), Some(4), "not as few as these need");
        assert_eq!(narrowed(&codes(vec![-9]), &[4, 8]), Some(8));
        assert_eq!(narrowed(&codes(vec![-9]), &[]), None);
    }
}
