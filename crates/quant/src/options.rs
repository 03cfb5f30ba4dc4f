//! What the user asks for: a preset, schemes, the range method, which nodes, overrides.

use globset::{Glob, GlobMatcher};
use narrowbit_ir::{Graph, Node};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::approach::{Approach, DynamicOptions, HalfOptions, WeightOnlyOptions};
use crate::fill::Rates;
use crate::observe::{Method, Range};
use crate::scheme::{
    ActivationScheme, Formula, NumberFormat, Preset, SchemeError, Statistic, WeightScheme, check_pair, vitis,
};
use crate::target::Target;

/// The settings of a quantization, as resolved from defaults, a config file and flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct QuantOptions {
    /// The preset that the other settings began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Preset>,
    /// The runtime that the file is for, if its limits are to be kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// How nodes are quantized that no override has another approach for; decides which of the other settings count.
    pub approach: Approach,
    /// The operators that integers are written in (static quantization).
    #[serde(skip_serializing_if = "is_default")]
    pub form: GraphForm,
    /// How activations are represented.
    pub activations: ActivationScheme,
    /// How weights are represented.
    pub weights: WeightScheme,
    /// How ranges are chosen.
    pub method: Method,
    /// How one fix position comes from those of the batches, for scales that are powers of two.
    #[serde(skip_serializing_if = "is_default")]
    pub statistic: Statistic,
    /// Whose outputs have the range that their function has, whatever calibration saw.
    #[serde(skip_serializing_if = "is_default")]
    pub fixed_ranges: FixedRanges,
    /// Whether activations have one position of the fraction each, where the scheme would have one per channel.
    #[serde(skip_serializing_if = "is_default")]
    pub per_tensor_activations: bool,
    /// Bits of the codes of the first product's weights; as the others' if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_weight_bits: Option<u8>,
    /// Bits of the register in which fixed-point hardware sums up, and saturates; 32 if absent (QuantizeML's `buffer_bits`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_bits: Option<u8>,
    /// Whether attention's Softmax becomes a softmax of powers of two before calibration (schemes that round blocks).
    #[serde(skip_serializing_if = "is_default")]
    pub shiftmax: bool,
    /// Whether LayerNormalization becomes a normalization by the mean magnitude before calibration (as above).
    #[serde(skip_serializing_if = "is_default")]
    pub layer_mad: bool,
    /// Operator types to quantize; empty: all that have an integer form.
    pub op_types: Vec<String>,
    /// Whether the first Conv, Gemm or MatMul stays float.
    pub keep_first: bool,
    /// Whether the last Conv, Gemm or MatMul with a constant weight stays float, unless it is the only one that is left.
    pub keep_last: bool,
    /// Whether depthwise convolutions stay float, unless no other product with a constant weight is left.
    #[serde(skip_serializing_if = "is_default")]
    pub keep_depthwise: bool,
    /// Whether tables read by Gather (embeddings) are stored in 8 bits.
    pub embeddings: bool,
    /// Whether factors of channels move from normalisations into the weights behind them, where channels stand out
    /// (static and dynamic quantization).
    pub smooth: bool,
    /// Whether biases of integer products stay float, for runtimes that dequantize no int32.
    #[serde(skip_serializing_if = "is_default")]
    pub float_biases: bool,
    /// Whether convolutions whose outputs no integer node reads hand on floats, and those with a function behind them
    /// (HardSwish, SiLU, Sigmoid …) round once, behind the function and constant factors and summands. Otherwise all hand on
    /// integers, which is the form that ONNX Runtime computes on integers.
    pub float_outputs: bool,
    /// Whether what a depthwise convolution reads may have a scale per channel, where that is much finer; needs
    /// `float_outputs`.
    pub channel_activations: bool,
    /// Whether channels between convolutions get the same range in both weights ([`crate::equalize`]).
    #[serde(skip_serializing_if = "is_default")]
    pub equalize: bool,
    /// Whether values are scaled to fill the codes of their positions ([`crate::fill`]; schemes that round blocks).
    #[serde(skip_serializing_if = "is_default")]
    pub cross_layer_equalization: bool,
    /// By what values are scaled, instead of what calibration would find.
    #[serde(skip_serializing_if = "Rates::is_empty")]
    pub rates: Rates,
    /// Whether biases take up what rounding the weights changes in the mean ([`crate::plan`]).
    #[serde(skip_serializing_if = "is_default")]
    pub bias_correction: bool,
    /// Whether biases of convolutions take up what rounding the activations changes in the mean, where there are samples to measure it on.
    pub correct_activations: bool,
    /// How weights are rounded; if absent, as [`QuantOptions::rounding_of`] says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_rounding: Option<WeightRounding>,
    /// Settings of dynamic quantization.
    pub dynamic: DynamicOptions,
    /// Settings of weights by blocks.
    pub weight_only: WeightOnlyOptions,
    /// Settings of float16 and bfloat16.
    pub half: HalfOptions,
    /// Exceptions, the later ones over the earlier.
    #[serde(rename = "override")]
    pub overrides: Vec<Override>,
}

impl Default for QuantOptions {
    fn default() -> QuantOptions {
        QuantOptions {
            scheme: None,
            target: None,
            approach: Approach::default(),
            form: GraphForm::default(),
            activations: ActivationScheme::default(),
            weights: WeightScheme::default(),
            method: Method::Auto,
            statistic: Statistic::default(),
            fixed_ranges: FixedRanges::default(),
            per_tensor_activations: false,
            input_weight_bits: None,
            buffer_bits: None,
            shiftmax: false,
            layer_mad: false,
            op_types: Vec::new(),
            keep_first: false,
            keep_last: false,
            keep_depthwise: false,
            embeddings: true,
            smooth: true,
            float_biases: false,
            float_outputs: true,
            channel_activations: true,
            equalize: false,
            cross_layer_equalization: false,
            rates: Rates::new(),
            bias_correction: false,
            correct_activations: true,
            weight_rounding: None,
            dynamic: DynamicOptions::default(),
            weight_only: WeightOnlyOptions::default(),
            half: HalfOptions::default(),
            overrides: Vec::new(),
        }
    }
}

fn is_default<T: Default + PartialEq>(x: &T) -> bool {
    *x == T::default()
}

/// The operators that integers are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GraphForm {
    /// Those of floats, with QuantizeLinear and DequantizeLinear around them.
    #[default]
    Qdq,
    /// QLinear operators ([`crate::qoperator`]).
    Qoperator,
}

/// How the codes of weights are found, once their scales are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WeightRounding {
    /// Each weight to the nearest value.
    Nearest,
    /// So that the outputs err least on the samples ([`crate::gptq`]).
    Gptq,
}

/// Functions whose outputs need no observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FixedRanges {
    /// None: every range is observed.
    #[default]
    Off,
    /// Softmax: 0 … 1.
    Softmax,
    /// Softmax, Sigmoid and HardSigmoid: 0 … 1; Tanh: −1 … 1.
    All,
}

impl FixedRanges {
    /// The range of an operator's output, by the operator's name.
    pub fn of(self, op: &str) -> Option<Range> {
        match (self, op) {
            (FixedRanges::Off, _) => None,
            (_, "Softmax") => Some(Range { min: 0.0, max: 1.0 }),
            (FixedRanges::All, "Sigmoid" | "HardSigmoid") => Some(Range { min: 0.0, max: 1.0 }),
            (FixedRanges::All, "Tanh") => Some(Range { min: -1.0, max: 1.0 }),
            _ => None,
        }
    }
}

/// Bits up to which weights are rounded by samples unless the user says otherwise.
const COARSE: usize = 4;

/// What must be said of fp8 files.
const FP8: &str = "ONNX Runtime 1.31.1 refuses matrix products and convolutions of fp8, and Reshape, Transpose or MaxPool beside them, with its optimizations on: set the session option session.disable_quant_qdq to 1 there";

impl QuantOptions {
    /// Checks that the schemes of every node can be computed with, those of overrides included.
    ///
    /// # Errors
    /// The first pair of weights and activations that can't be multiplied.
    pub fn check(&self) -> Result<(), SchemeError> {
        check_pair(&self.activations, &self.weights)?;
        self.activations.check_method(self.method)?;
        WeightScheme { bits: self.input_weight_bits.or(self.weights.bits), ..self.weights }.check()?;
        if (self.shiftmax || self.layer_mad) && !self.rounds_blocks() {
            return Err(SchemeError::Functions);
        }
        if let Some(bits) = self.buffer_bits.filter(|b| !(8..=32).contains(b)) {
            return Err(SchemeError::Buffer(bits));
        }
        let calibrated = |o: &&Override| o.float != Some(true) && o.approach.is_none_or(Approach::needs_ranges);
        self.overrides.iter().filter(calibrated).try_for_each(|o| {
            let activations = o.activations.unwrap_or(self.activations);
            activations.check_method(o.method.unwrap_or(self.method))?;
            check_pair(&activations, &o.weights.unwrap_or(self.weights))
        })
    }

    /// Checks that dynamic products have weights of the types that they multiply.
    ///
    /// # Errors
    /// The first other type.
    pub fn check_dynamic(&self) -> Result<(), SchemeError> {
        let mut all = self.overrides.iter().filter_map(|o| o.weights).chain([self.weights]);
        all.try_for_each(|w| w.check_dynamic())
    }

    /// The first version of ONNX's operator set that has all formats of static quantization.
    pub fn least_opset(&self) -> i64 {
        let weights = self.overrides.iter().filter_map(|o| o.weights).chain([self.weights]).map(|w| w.format);
        let activations = self.overrides.iter().filter_map(|o| o.activations).chain([self.activations]);
        weights.chain(activations.map(|a| a.format)).map(|f| f.least_opset()).max().unwrap_or(13)
    }

    /// The bits of the codes whose fix positions calibration has to search, if a scheme asks for it.
    pub fn position_bits(&self) -> Option<u8> {
        let schemes = self.overrides.iter().filter_map(|o| o.activations).chain([self.activations]);
        schemes.into_iter().find(|s| s.formula == Formula::Vitis).map(|s| vitis::bits_of(s.code_range()))
    }

    /// Whether activations are rounded at the ends of blocks only, as fixed-point hardware does (QuantizeML), and integers
    /// end before the first operator without integer form.
    pub(crate) fn rounds_blocks(&self) -> bool {
        self.activations.formula == Formula::Quantizeml && !self.activations.format.is_float()
    }

    /// Bits of the register in which fixed-point hardware sums up.
    pub fn buffer_bits(&self) -> u8 {
        self.buffer_bits.unwrap_or(32)
    }

    /// Whether every weight and activation is int8 or uint8.
    pub fn is_8_bit_integer(&self) -> bool {
        let eight = |f: NumberFormat| matches!(f, NumberFormat::Int8 | NumberFormat::Uint8);
        let own =
            |o: &Override| o.weights.is_none_or(|w| eight(w.format)) && o.activations.is_none_or(|a| eight(a.format));
        eight(self.weights.format) && eight(self.activations.format) && self.overrides.iter().all(own)
    }

    /// How a weight of this scheme is rounded where there are samples; `own` is what an exception says.
    pub fn rounding_of(&self, own: Option<WeightRounding>, scheme: &WeightScheme) -> WeightRounding {
        let bits = scheme.bits.map_or(scheme.format.dtype().bits(), usize::from);
        let coarse = scheme.formula == Formula::Narrowbit && (scheme.format.is_float() || bits <= COARSE);
        self.rounding(own, coarse)
    }

    /// As [`QuantOptions::rounding_of`], for weights by blocks.
    pub fn rounding_of_blocks(&self, own: Option<WeightRounding>, blocks: &WeightOnlyOptions) -> WeightRounding {
        self.rounding(own, blocks.codes.dtype().bits() <= COARSE)
    }

    fn rounding(&self, own: Option<WeightRounding>, coarse: bool) -> WeightRounding {
        // What is named after a tool has the tool's codes.
        let usual = if coarse && self.scheme.is_none() { WeightRounding::Gptq } else { WeightRounding::Nearest };
        own.or(self.weight_rounding).unwrap_or(usual)
    }

    /// Whether any weight is rounded by samples where there are some.
    pub fn rounds_by_samples(&self) -> bool {
        let first = WeightScheme { bits: self.input_weight_bits.or(self.weights.bits), ..self.weights };
        let usual = [Override::default(), Override { weights: Some(first), ..Override::default() }];
        let of = |approach: Approach, o: &Override| match approach {
            _ if o.approach.is_some_and(|own| own != approach) => WeightRounding::Nearest,
            Approach::Static => self.rounding_of(o.weight_rounding, &o.weights.unwrap_or(self.weights)),
            Approach::WeightOnly => {
                self.rounding_of_blocks(o.weight_rounding, &o.weight_only.unwrap_or(self.weight_only))
            }
            _ => WeightRounding::Nearest,
        };
        let all = || self.overrides.iter().filter(|o| o.float != Some(true)).chain(&usual);
        self.approaches().into_iter().any(|a| all().any(|o| of(a, o) == WeightRounding::Gptq))
    }

    /// What must be said of every model that is made with these settings.
    pub fn warnings(&self) -> Vec<&'static str> {
        let (a, w) = (self.activations.formula, self.weights.formula);
        let second = Some(w).filter(|w| *w != a);
        let formulas = [Some(a), second].into_iter().flatten().filter_map(Formula::warning);
        let fp8 = self.activations.format.is_float().then_some(FP8);
        formulas.chain(fp8).collect()
    }

    /// Fills in what a text in JSON leaves open from the preset that it names, or else from `preset`.
    ///
    /// # Errors
    /// When a setting has the wrong type, or there is none of that name.
    pub fn from_json(mut text: Value, preset: Option<Preset>) -> Result<QuantOptions, serde_json::Error> {
        let plain: QuantOptions = serde_json::from_value(text.clone())?;
        let Some(preset) = preset.or(plain.scheme) else { return Ok(plain) };
        if let Some(given) = text.as_object_mut() {
            given.remove("scheme");
        }
        serde_json::from_value(over(&preset.options(), text)?)
    }

    /// Fills in what the exceptions in a text leave open of a type's settings (`weights = { type = "int4" }`) with what the
    /// whole job has; `texts` are those of the first overrides.
    ///
    /// # Errors
    /// When a setting has the wrong type, or there is none of that name.
    pub fn fill_overrides(&mut self, texts: &[Value]) -> Result<(), serde_json::Error> {
        let job = Override {
            activations: Some(self.activations),
            weights: Some(self.weights),
            dynamic: Some(self.dynamic),
            weight_only: Some(self.weight_only),
            ..Override::default()
        };
        for (own, text) in self.overrides.iter_mut().zip(texts) {
            let mut base = job.clone();
            if let Some(blocks) = base.weight_only.as_mut().zip(own.weight_only) {
                blocks.0.take_type(blocks.1.codes);
            }
            let all: Override = serde_json::from_value(over(&base, text.clone())?)?;
            // What the text does not speak of is no exception.
            own.activations = own.activations.and(all.activations);
            own.weights = own.weights.and(all.weights);
            own.dynamic = own.dynamic.and(all.dynamic);
            own.weight_only = own.weight_only.and(all.weight_only);
        }
        Ok(())
    }
}

/// Settings of a type: a text may give a part of one.
const PARTS: [&str; 5] = ["activations", "weights", "dynamic", "weight-only", "half"];

/// What a text says, over what it leaves open.
fn over<T: Serialize>(base: &T, text: Value) -> Result<Value, serde_json::Error> {
    let mut all = serde_json::to_value(base)?;
    let (Some(map), Value::Object(given)) = (all.as_object_mut(), text) else { return Ok(all) };
    for (key, value) in given {
        match (map.get_mut(&key), value) {
            (Some(Value::Object(part)), Value::Object(own)) if PARTS.contains(&key.as_str()) => part.extend(own),
            (_, value) => drop(map.insert(key, value)),
        }
    }
    Ok(all)
}

/// Another treatment for the nodes that match all criteria given.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Override {
    /// The operator's name, for instance `MatMul`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op_type: Option<String>,
    /// A glob over the node's name, for instance `/layer1/*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A regular expression that must match somewhere in the node's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Whether the node stays float.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float: Option<bool>,
    /// Another approach for the node, which is quantized whatever the operator types are ([`crate::mixture`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approach: Option<Approach>,
    /// The range method for what the node reads and makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Another scheme for what the node reads and makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<ActivationScheme>,
    /// Another scheme for the node's weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightScheme>,
    /// Another rounding for the node's weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_rounding: Option<WeightRounding>,
    /// Other settings of dynamic quantization for the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic: Option<DynamicOptions>,
    /// Other blocks for the node's weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_only: Option<WeightOnlyOptions>,
}

impl std::fmt::Display for Override {
    /// The criteria, for messages: `exception (name "/layer1/*")`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let criteria = [("op-type", &self.op_type), ("name", &self.name), ("regex", &self.regex)];
        let given = criteria.iter().filter_map(|(what, v)| v.as_ref().map(|v| format!("{what} \"{v}\"")));
        write!(f, "the exception for {}", given.collect::<Vec<_>>().join(" and "))
    }
}

/// A pattern of an override that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("override {index}: {problem}\nhelp: names are globs (\"/layer1/*\"), regex is a regular expression")]
pub struct PatternError {
    /// Which override, counted from 1.
    pub index: usize,
    /// What is wrong.
    pub problem: String,
}

/// Overrides ready to be matched.
#[derive(Debug)]
pub struct Matcher<'a>(Vec<(&'a Override, Option<GlobMatcher>, Option<Regex>)>);

impl<'a> Matcher<'a> {
    /// Compiles the patterns.
    ///
    /// # Errors
    /// The first pattern that can't be read, or an override without any criterion.
    pub fn new(overrides: &'a [Override]) -> Result<Matcher<'a>, PatternError> {
        let compile = |(i, o): (usize, &'a Override)| {
            let error = |problem: String| PatternError { index: i + 1, problem };
            if o.op_type.is_none() && o.name.is_none() && o.regex.is_none() {
                return Err(error("has neither op-type nor name nor regex, so it would match every node".into()));
            }
            let glob = o.name.as_deref().map(Glob::new).transpose().map_err(|e| error(e.to_string()))?;
            let regex = o.regex.as_deref().map(Regex::new).transpose().map_err(|e| error(e.to_string()))?;
            Ok((o, glob.map(|g| g.compile_matcher()), regex))
        };
        overrides.iter().enumerate().map(compile).collect::<Result<_, _>>().map(Matcher)
    }

    /// The overrides that match no node of a graph.
    pub fn unmatched(&self, graph: &Graph) -> Vec<&'a Override> {
        let idle = |o: &&Override| graph.nodes().all(|(_, n)| self.of(n).all(|m| !std::ptr::eq(m, *o)));
        self.0.iter().map(|(o, ..)| *o).filter(idle).collect()
    }

    /// The overrides that match a node, the strongest first.
    pub fn of<'s>(&'s self, node: &'s Node) -> impl Iterator<Item = &'a Override> + 's {
        self.0.iter().rev().filter_map(move |(o, glob, regex)| {
            let op = o.op_type.as_deref().is_none_or(|t| t == node.op.name());
            let name = glob.as_ref().is_none_or(|g| g.is_match(&node.name));
            let re = regex.as_ref().is_none_or(|r| r.is_match(&node.name));
            (op && name && re).then_some(*o)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_settings_stand_above_the_preset_that_they_name() {
        let text = serde_json::json!({"scheme": "vitis-dpu", "method": "minmax", "keep-first": true});
        let o = QuantOptions::from_json(text, None).unwrap();
        assert_eq!((o.scheme, o.method, o.keep_first), (Some(Preset::VitisDpu), Method::Minmax, true));
        assert_eq!(o.activations.formula, Formula::Vitis);
        assert_eq!(QuantOptions::from_json(serde_json::to_value(&o).unwrap(), None).unwrap(), o);
    }

    #[test]
    fn lets_a_preset_from_elsewhere_win_over_the_one_in_the_text() {
        let text = serde_json::json!({"scheme": "vitis-dpu"});
        let o = QuantOptions::from_json(text, Some(Preset::Pytorch)).unwrap();
        assert_eq!(o, Preset::Pytorch.options());
    }

    #[test]
    fn fills_what_exceptions_leave_open_with_what_the_job_has() {
        let text = serde_json::json!([
            {"name": "a", "weights": {"type": "int4"}},
            {"name": "b", "activations": {"symmetric": true}, "weight-only": {"type": "mxfp4"}},
        ]);
        let texts: Vec<Value> = serde_json::from_value(text.clone()).unwrap();
        let all = serde_json::json!({"weights": {"per-channel": false, "type": "uint8"}, "override": text});
        let mut o = QuantOptions::from_json(all, None).unwrap();
        o.activations.format = NumberFormat::Int16;
        o.fill_overrides(&texts).unwrap();
        let weights = WeightScheme { format: NumberFormat::Int4, ..o.weights };
        assert!(!weights.per_channel && weights.symmetric);
        assert_eq!(o.overrides[0].weights, Some(weights));
        assert_eq!((o.overrides[0].activations, o.overrides[1].weights), (None, None));
        assert_eq!(o.overrides[1].activations, Some(ActivationScheme { symmetric: true, ..o.activations }));
        let blocks = o.overrides[1].weight_only.unwrap();
        assert_eq!(blocks.algorithm, blocks.codes.usual_algorithm());
    }

    #[test]
    fn lets_a_part_of_a_types_settings_stand_above_those_of_the_preset() {
        let text = serde_json::json!({"scheme": "pytorch", "weights": {"reduce-range": true}});
        let o = QuantOptions::from_json(text, None).unwrap();
        assert_eq!(o.weights, WeightScheme { reduce_range: true, ..Preset::Pytorch.options().weights });
    }

    #[test]
    fn refuses_settings_that_do_not_exist() {
        assert!(QuantOptions::from_json(serde_json::json!({"scheme": "nothing"}), None).is_err());
        assert!(QuantOptions::from_json(serde_json::json!({"scheme": "pytorch", "mehtod": 1}), None).is_err());
    }

    #[test]
    fn asks_for_the_opset_that_has_the_formats() {
        assert_eq!(QuantOptions::default().least_opset(), 13);
        assert_eq!(Preset::IncJaxFp8.options().least_opset(), 19);
    }
}
