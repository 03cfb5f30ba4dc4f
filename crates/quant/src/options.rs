//! What the user asks for: schemes, the range method, which nodes, overrides.

use globset::{Glob, GlobMatcher};
use narrowbit_ir::{Graph, Node};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::approach::{Approach, DynamicOptions, HalfOptions, WeightOnlyOptions};
use crate::observe::Method;
use crate::scheme::{ActivationScheme, WeightScheme};

/// The settings of a quantization, as resolved from defaults, a config file and flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct QuantOptions {
    /// How the model is quantized; decides which of the other settings count.
    pub approach: Approach,
    /// How activations are represented.
    pub activations: ActivationScheme,
    /// How weights are represented.
    pub weights: WeightScheme,
    /// How ranges are chosen.
    pub method: Method,
    /// Operator types to quantize; empty: all that have an integer form.
    pub op_types: Vec<String>,
    /// Whether the first Conv, Gemm or MatMul stays float.
    pub keep_first: bool,
    /// Whether the last Conv, Gemm or MatMul stays float.
    pub keep_last: bool,
    /// Whether tables read by Gather (embeddings) are stored in 8 bits.
    pub embeddings: bool,
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
            approach: Approach::default(),
            activations: ActivationScheme::default(),
            weights: WeightScheme::default(),
            method: Method::default(),
            op_types: Vec::new(),
            keep_first: false,
            keep_last: false,
            embeddings: true,
            dynamic: DynamicOptions::default(),
            weight_only: WeightOnlyOptions::default(),
            half: HalfOptions::default(),
            overrides: Vec::new(),
        }
    }
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
    /// The range method for what the node reads and makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Another scheme for what the node reads and makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<ActivationScheme>,
    /// Another scheme for the node's weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightScheme>,
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
