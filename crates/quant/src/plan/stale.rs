//! Scales of a configuration that were chosen with other settings than those that count now.
//!
//! A flag or an edited setting that changes a type, a granularity or a method would have no effect, or a half one, if the
//! scales in the file were taken all the same. What depends on a changed setting is chosen anew, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{Graph, NodeId, QuantRole, ValueId};
use serde_json::Value;

use super::{Kind, Layout, channels, first_product, settings};
use crate::encodings::{Encoding, Encodings, Given};
use crate::observe::Method;
use crate::options::{Matcher, PatternError, QuantOptions};
use crate::scheme::{ActivationScheme, Formula, WeightScheme};

/// What was left out of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stale {
    /// The tensors whose scales are of no use, in order.
    pub tensors: Vec<String>,
    /// The settings that differ, as `weights.type: int8 → int4`.
    pub settings: Vec<String>,
}

/// Takes out of `given` what was chosen with other settings (`before`) than those that count (`now`). Entries without scales
/// say what somebody wants of a tensor, and stay.
///
/// # Errors
/// When an override can't be read.
pub fn take_stale(
    given: &mut Encodings,
    (graph, layout): (&Graph, &Layout),
    before: &QuantOptions,
    now: &QuantOptions,
) -> Result<Stale, PatternError> {
    if before == now {
        return Ok(Stale::default());
    }
    let matchers = (Matcher::new(&before.overrides)?, Matcher::new(&now.overrides)?);
    let both = Both { graph, layout, before: (before, &matchers.0), now: (now, &matchers.1) };
    let tensors: BTreeSet<String> = match both.is_another_graph() {
        true => given.tensors.keys().cloned().collect(),
        false => both.weights().chain(both.activations(given)).collect(),
    };
    let known = |e: &Encoding| !e.values.contains(&Given::Nothing);
    let tensors: Vec<String> = tensors.into_iter().filter(|name| given.tensors.get(name).is_some_and(known)).collect();
    tensors.iter().for_each(|name| drop(given.tensors.remove(name)));
    both.take_biases(given, &tensors);
    let settings = if tensors.is_empty() { Vec::new() } else { differences(before, now) };
    Ok(Stale { tensors, settings })
}

/// The settings of before and of now, each with its overrides.
struct Both<'a> {
    graph: &'a Graph,
    layout: &'a Layout,
    before: (&'a QuantOptions, &'a Matcher<'a>),
    now: (&'a QuantOptions, &'a Matcher<'a>),
}

impl<'a> Both<'a> {
    fn differ<T: PartialEq>(&self, of: impl Fn(&'a QuantOptions, &'a Matcher<'a>) -> T) -> bool {
        of(self.before.0, self.before.1) != of(self.now.0, self.now.1)
    }

    /// Whether values of the float graph themselves are others.
    fn is_another_graph(&self) -> bool {
        self.differ(|o, _| (o.equalize, o.smooth, o.shiftmax, o.layer_mad, o.cross_layer_equalization, &o.rates))
    }

    fn name(&self, v: ValueId) -> String {
        self.graph.value(v).name.clone()
    }

    /// The weights whose scheme is another one.
    fn weights(&self) -> impl Iterator<Item = String> {
        let first = first_product(self.graph, self.layout);
        let of = |(&id, &kind): (&NodeId, &Kind)| {
            let node = self.graph.node(id);
            let input = match (kind, node.op.quant()) {
                (Kind::Embedding, _) => 0,
                (Kind::Product, QuantRole::Weighted { weight, .. }) => weight,
                _ => return None,
            };
            let scheme = |o: &QuantOptions, m: &Matcher| {
                let own = m.of(node).find_map(|o| o.weights);
                let scheme = own.unwrap_or(o.weights);
                let bits = o.input_weight_bits.filter(|_| own.is_none() && first == Some(id));
                WeightScheme { bits: bits.or(scheme.bits), ..scheme }
            };
            let stale = self.graph.const_input(id, input).is_some() && self.differ(scheme);
            node.input(input).filter(|_| stale).map(|v| self.name(v))
        };
        let found: Vec<String> = self.layout.kinds.iter().filter_map(of).collect();
        found.into_iter()
    }

    /// The members of groups whose scheme, method or granularity is another one.
    fn activations(&self, given: &Encodings) -> impl Iterator<Item = String> {
        let by_channel = |o, m| {
            let mut all = channels::counts(self.graph, self.layout, m, o);
            all.extend(channels::rounded(self.graph, self.layout, o));
            all
        };
        let allowed = by_channel(self.now.0, self.now.1);
        let stale = |group: &&[ValueId]| {
            // Of several scales where there may be one alone, or of one where the settings would have had several.
            let split = |v: &ValueId| {
                let several = given.tensors.get(&self.name(*v)).is_some_and(|e| e.values.len() > 1);
                several && !allowed.contains_key(v)
            };
            let granular = self.differ(|o, _| (o.per_tensor_activations, o.channel_activations, o.float_outputs));
            let resettled = granular && group.iter().any(|v| allowed.contains_key(v));
            let several_gone = group.iter().any(split);
            self.differ(|o, m| self.activation(group, o, m)) || resettled || several_gone
        };
        let groups: Vec<&[ValueId]> = self.layout.groups().filter(stale).collect();
        let names: Vec<String> = groups.into_iter().flatten().map(|&v| self.name(v)).collect();
        names.into_iter()
    }

    /// All that the range and the codes of a group follow from, beside samples.
    fn activation(
        &self,
        group: &[ValueId],
        o: &QuantOptions,
        matcher: &Matcher,
    ) -> (ActivationScheme, Method, Option<crate::scheme::Statistic>, Vec<Option<crate::observe::Range>>) {
        let (scheme, method) = settings(self.graph, group, matcher, o);
        let method = self.layout.method(self.graph, method, &scheme);
        let maker = |v: &ValueId| self.graph.producer(*v).map(|(n, _)| self.graph.node(n).op.name());
        let fixed = group.iter().map(|v| o.fixed_ranges.of(maker(v)?)).collect();
        (scheme, method, Some(o.statistic).filter(|_| scheme.formula == Formula::Vitis), fixed)
    }

    /// Takes out the biases whose corrections belong to other scales, or that are to be corrected in another way.
    fn take_biases(&self, given: &mut Encodings, tensors: &[String]) {
        if self.differ(|o, _| (o.bias_correction, o.correct_activations)) {
            given.biases.clear();
        }
        let stale: BTreeSet<&str> = tensors.iter().map(String::as_str).collect();
        let reads = |id: NodeId| {
            let inputs = self.graph.node(id).inputs.iter().flatten();
            inputs.into_iter().any(|&v| stale.contains(self.graph.value(v).name.as_str()))
        };
        let moved: BTreeSet<&str> =
            self.graph.nodes().filter(|(id, _)| reads(*id)).map(|(_, n)| n.name.as_str()).collect();
        given.biases.retain(|node, _| !moved.contains(node.as_str()));
    }
}

/// The settings that scales depend on and that differ, by their path in a configuration.
fn differences(before: &QuantOptions, now: &QuantOptions) -> Vec<String> {
    let (Ok(before), Ok(now)) = (serde_json::to_value(before), serde_json::to_value(now)) else { return Vec::new() };
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten("", &before, &mut old);
    flatten("", &now, &mut new);
    let aside = ["override", "dynamic.", "weight-only.", "half.", "target", "op-types", "keep-", "rates."];
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let text = |all: &BTreeMap<String, String>, key: &str| all.get(key).map_or("none", String::as_str).to_owned();
    let mut found: Vec<String> = keys
        .into_iter()
        .filter(|k| old.get(*k) != new.get(*k) && !aside.iter().any(|a| k.starts_with(a)))
        .map(|k| format!("{k}: {} → {}", text(&old, k), text(&new, k)))
        .collect();
    if old.get("override") != new.get("override") {
        found.push("override".to_owned());
    }
    found
}

/// The leaves of an object by their path; lists are leaves.
fn flatten(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            let dot = if path.is_empty() { "" } else { "." };
            map.iter().for_each(|(key, v)| flatten(&format!("{path}{dot}{key}"), v, found));
        }
        Value::String(s) => drop(found.insert(path.to_owned(), s.clone())),
        v => drop(found.insert(path.to_owned(), v.to_string())),
    }
}
