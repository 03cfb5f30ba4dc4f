//! Names of a graph that belong to the graphs around it, and the order of its nodes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use super::proto::{AttributeProto, GraphProto, NodeProto};

/// The names that a graph reads but does not define, in the order of first use.
pub(super) fn free_names(g: &GraphProto) -> Vec<String> {
    let inputs = g.input.iter().filter_map(|v| v.name.as_deref());
    let dense = g.initializer.iter().filter_map(|t| t.name.as_deref());
    let sparse = g.sparse_initializer.iter().filter_map(|s| s.values.as_ref()?.name.as_deref());
    let made = g.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    let own: BTreeSet<&str> = inputs.chain(dense).chain(sparse).chain(made).collect();
    let mut found = Found::default();
    for n in &g.node {
        n.input.iter().for_each(|name| found.add(name, &own));
        captured_names(n).iter().for_each(|name| found.add(name, &own));
    }
    g.output.iter().filter_map(|v| v.name.as_deref()).for_each(|name| found.add(name, &own));
    found.names
}

/// The names that a node's subgraphs take from around the node, in the order of first use.
pub(super) fn captured_names(n: &NodeProto) -> Vec<String> {
    let mut found = Found::default();
    let none = BTreeSet::new();
    for g in n.attribute.iter().flat_map(subgraphs) {
        free_names(g).iter().for_each(|name| found.add(name, &none));
    }
    found.names
}

fn subgraphs(a: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    a.g.iter()
}

#[derive(Default)]
struct Found {
    names: Vec<String>,
    seen: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, name: &str, own: &BTreeSet<&str>) {
        if !name.is_empty() && !own.contains(name) && self.seen.insert(name.into()) {
            self.names.push(name.into());
        }
    }
}

/// Why nodes can't be ordered.
pub(super) enum OrderError {
    /// Two nodes, or one twice, make this value.
    Twice(String),
    /// The node at this position reads its own output, directly or not.
    Cycle(usize),
}

/// The order in which nodes run: the file's own where that is topological, otherwise the nearest to it.
/// `reads[i]` are the names that node `i` needs. The flag tells whether the file's order was kept.
pub(super) fn order(nodes: &[NodeProto], reads: &[Vec<&str>]) -> Result<(Vec<usize>, bool), OrderError> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        for o in n.output.iter().filter(|o| !o.is_empty()) {
            if maker.insert(o, i).is_some() {
                return Err(OrderError::Twice(o.clone()));
            }
        }
    }
    let makers = |i: usize| reads[i].iter().filter_map(|r| maker.get(r).copied());
    if (0..nodes.len()).all(|i| makers(i).all(|m| m < i)) {
        return Ok(((0..nodes.len()).collect(), true));
    }
    let mut waiting = vec![0usize; nodes.len()];
    let mut readers = vec![Vec::new(); nodes.len()];
    for (i, waiting) in waiting.iter_mut().enumerate() {
        for m in makers(i) {
            *waiting += 1;
            readers[m].push(i);
        }
    }
    let mut ready: BinaryHeap<_> = (0..nodes.len()).filter(|&i| waiting[i] == 0).map(Reverse).collect();
    let mut out = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        out.push(i);
        for &r in &readers[i] {
            waiting[r] -= 1;
            if waiting[r] == 0 {
                ready.push(Reverse(r));
            }
        }
    }
    match waiting.iter().position(|&w| w > 0) {
        None => Ok((out, false)),
        Some(i) => Err(OrderError::Cycle(i)),
    }
}
