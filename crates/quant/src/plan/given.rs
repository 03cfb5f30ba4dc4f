//! Entries of another tool's file in a plan: which were used, and for what.

use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{Graph, NodeId, QuantRole, ValueId};
use narrowbit_kernels::Exec;
use narrowbit_tensor::Tensor;

use super::weights::{BiasParams, WeightParams};
use super::{ActivationParams, PlanError, weight_params};
use crate::encodings::{Activation, Applied, Encoding, Encodings, Given, held};
use crate::equalize;
use crate::scheme::{ActivationScheme, WeightScheme, vitis};

/// The entries, and what became of them so far.
pub(super) struct Used<'a> {
    given: &'a Encodings,
    names: BTreeSet<&'a str>,
    applied: Applied,
}

impl<'a> Used<'a> {
    pub fn new(given: &'a Encodings) -> Used<'a> {
        let applied = Applied { ignored: given.ignored.clone(), ..Applied::default() };
        Used { given, names: BTreeSet::new(), applied }
    }

    /// What became of all entries, in a plan with these biases.
    pub fn finish(mut self, graph: &Graph, planned: &BTreeMap<(NodeId, usize), BiasParams>) -> Applied {
        let bias = |name: &str| {
            let reads = |u: &narrowbit_ir::Use| match graph.node(u.node).op.quant() {
                QuantRole::Weighted { bias, .. } => bias == Some(u.input),
                _ => false,
            };
            let named = graph.value_named(name);
            named.is_some_and(|v| graph.constant(v).is_some() && graph.uses(v).iter().any(reads))
                // As we name them, after their product or the Add behind it.
                || named.is_none() && name.strip_suffix("_bias").is_some_and(|n| graph.node_named(n).is_some())
        };
        // A bias that has the position of the entry anyway is nothing to tell of.
        let same = |name: &str, entry: &Encoding| {
            let id = name.strip_suffix("_bias").and_then(|n| graph.node_named(n))?;
            let (_, params) = planned.range((id, 0)..=(id, usize::MAX)).next()?;
            let product = vitis::position_of(*params.scales.first()?);
            let position = vitis::bias_position(params.codes.as_ref()?, product)?;
            let point = entry.values.first()?;
            Some(matches!(point, Given::Point(p) if p.scale == vitis::scale_of(position)))
        };
        let told =
            |(name, e): &(&String, &Encoding)| same(name, e) != Some(true) && !self.names.contains(name.as_str());
        let idle = self.given.tensors.iter().filter(told).map(|(name, _)| name);
        let (biases, unmatched): (Vec<&String>, Vec<&String>) = idle.partition(|n| bias(n));
        let follow = |n: &String| format!("{n}: a bias, whose scale follows from those of the product");
        self.applied.ignored.extend(biases.into_iter().map(follow));
        self.applied.unmatched = unmatched.into_iter().cloned().collect();
        self.applied
    }

    /// Refuses what has no effect where somebody may have edited it.
    pub fn check(&self) -> Result<(), PlanError> {
        match self.applied.ignored.first().filter(|_| self.given.own) {
            Some(why) => Err(PlanError::Given(why.clone())),
            None => Ok(()),
        }
    }

    /// Refuses names of a configuration that no tensor of the graph has; tensors that stay float may have an entry.
    pub fn check_names(&self, graph: &Graph) -> Result<(), PlanError> {
        let idle = |n: &&String| !self.names.contains(n.as_str()) && graph.value_named(n).is_none();
        match self.given.tensors.keys().find(|n| self.given.own && idle(n)) {
            Some(name) => Err(PlanError::Given(format!("\"{name}\": the cleaned model has no tensor of that name"))),
            None => Ok(()),
        }
    }

    /// Refuses a file about an equalized model where this one is not: scales would go onto other numbers.
    pub fn check_equalized(&self, graph: &Graph) -> Result<(), PlanError> {
        let plain = |n: &String| graph.value_named(n.strip_suffix(equalize::SUFFIX)?);
        let idle = |n: &&String| !self.given.own && !self.names.contains(n.as_str()) && graph.value_named(n).is_none();
        let mut found = self.given.tensors.keys().filter(idle).filter_map(|n| Some((n, plain(n)?)));
        let Some((name, v)) = found.clone().next() else { return Ok(()) };
        let weights = graph.constant(v).is_some() && found.all(|(_, v)| graph.constant(v).is_some());
        Err(match weights {
            true => PlanError::Equalized(name.clone()),
            false => PlanError::Multiplied(name.clone()),
        })
    }

    /// The entry of a name. Other tools equalize weights, too, but under their own names.
    fn entry(&mut self, name: &str) -> Option<&'a Encoding> {
        let plain = || self.given.tensors.get_key_value(name.strip_suffix(equalize::SUFFIX)?);
        let (name, entry) = self.given.tensors.get_key_value(name).or_else(plain)?;
        self.names.insert(name);
        Some(entry)
    }

    fn without(&mut self, name: &str) {
        if !self.given.tensors.is_empty() {
            self.applied.without.push(name.to_owned());
        }
    }

    fn ignore(&mut self, name: &str, why: &str) {
        self.applied.ignored.push(format!("{name}: {why}"));
    }

    /// The scheme and the values that an entry of a group's members gives it; `channels` are those of a value that may have
    /// a scale for each.
    pub fn activation(
        &mut self,
        graph: &Graph,
        group: &[ValueId],
        scheme: ActivationScheme,
        channels: impl Fn(ValueId) -> Option<usize>,
    ) -> Option<(ActivationScheme, Option<Activation>)> {
        let mut found: Option<(ActivationScheme, Activation)> = None;
        for &v in group {
            let name = &graph.value(v).name;
            let Some(entry) = self.entry(name) else { continue };
            let new = entry.activation(scheme, self.given.own);
            let new = new.and_then(|n| fits(entry, &n.1, channels(v)).map(|()| n));
            match (new, &found) {
                (Err(why), _) => self.ignore(name, &why),
                (Ok(new), None) => {
                    self.applied.matched += 1;
                    found = Some(new);
                }
                (Ok(new), Some(first)) if new == *first => self.applied.matched += 1,
                (Ok(_), Some(_)) => self.ignore(name, "it shares its scale with another tensor, whose entry was taken"),
            }
        }
        if found.is_none()
            && let Some(&v) = group.first()
        {
            self.without(&graph.value(v).name);
        }
        found.map(|(s, given)| (s, Some(given).filter(|g| g.value != Given::Nothing)))
    }

    /// The parameters that an entry gives a weight, whose output channels lie along `channel`.
    pub fn weight(
        &mut self,
        exec: &Exec,
        name: &str,
        w: &Tensor,
        scheme: WeightScheme,
        channel: Option<usize>,
    ) -> Option<WeightParams> {
        let Some(entry) = self.entry(name) else {
            self.without(name);
            return None;
        };
        match weight(exec, entry, self.given.own, w, (scheme, channel)) {
            Ok(params) => {
                self.applied.matched += 1;
                Some(params)
            }
            Err(why) => {
                self.ignore(name, &why);
                None
            }
        }
    }
}

/// Whether an activation can have the scales that an entry gives it; `channels` are those that may have one each.
fn fits(entry: &Encoding, given: &Activation, channels: Option<usize>) -> Result<(), String> {
    match (given.scales.len(), channels) {
        (0, _) => Ok(()),
        (_, None) => {
            Err("only what a depthwise convolution alone reads behind a function that is no ReLU, with weights by \
                          channel and --channel-activations, has a scale per channel"
                .into())
        }
        (n, Some(c)) if n != c => Err(format!("{n} scales for {c} channels")),
        _ if !matches!(entry.axis, None | Some(1)) => Err("scales of an activation lie along axis 1".into()),
        _ => Ok(()),
    }
}

fn weight(
    exec: &Exec,
    entry: &Encoding,
    own: bool,
    w: &Tensor,
    (scheme, channel): (WeightScheme, Option<usize>),
) -> Result<WeightParams, String> {
    let scheme = entry.weight(scheme, own)?;
    let several = scheme.per_channel && !(entry.values.len() == 1 && entry.axis.is_none());
    let rank = w.rank() as i64;
    let along = match entry.axis {
        Some(a) if (-rank..rank).contains(&a) => Some(a.rem_euclid(rank) as usize),
        Some(a) => return Err(format!("axis {a} of a tensor of {rank} dimensions")),
        None => channel,
    };
    let axis = along.filter(|_| several);
    if several && axis.is_none() {
        return Err("this weight has one scale".into());
    }
    if axis.is_some() && axis != channel {
        let place = |a: Option<usize>| a.map_or("no axis".to_owned(), |a| format!("axis {a}"));
        return Err(format!("its scales lie along {}, but its output channels along {}", place(axis), place(channel)));
    }
    let mut params = weight_params(exec, w, scheme, axis);
    let channels = params.points.len();
    if entry.values.len() != channels && entry.values.len() != 1 {
        return Err(format!("{} scales for {channels} channels", entry.values.len()));
    }
    for (i, (point, divisor)) in params.points.iter_mut().zip(&mut params.divisors).enumerate() {
        let value = entry.values.get(i).or(entry.values.first()).copied().unwrap_or(Given::Nothing);
        let next = match value {
            // Some formulas divide by something else than the scale that they give.
            Given::Point(p) if own && p == *point => continue,
            Given::Point(p) => p,
            Given::Range(r) => scheme.qparams(r),
            Given::Nothing => continue,
        };
        (*point, *divisor) = (next, next.scale);
    }
    Ok(params)
}

/// The parameters of activations with a value that is given.
pub(super) fn fixed(scheme: ActivationScheme, value: Given) -> ActivationParams {
    match value {
        Given::Range(range) => ActivationParams { scheme, point: scheme.qparams(range), range },
        Given::Point(point) => ActivationParams { scheme, point, range: held(point, scheme.code_range()) },
        Given::Nothing => {
            let range = crate::observe::Range { min: 0.0, max: 0.0 };
            ActivationParams { scheme, point: scheme.qparams(range), range }
        }
    }
}
