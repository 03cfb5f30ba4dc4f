use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use narrowbit_tensor::Tensor;

use crate::graph::{Def, Graph, Node, Use, Value};
use crate::{ConstId, Fact, NodeId, Op, ValueId, ValueType};

/// An edit of a graph, built as a value and applied as a whole or not at all.
///
/// A patch is made for one state of one graph: new values get the ids that they
/// will have, and [`Graph::apply`] refuses a patch made for another state.
///
/// Nodes that a patch leaves without readers are removed when it is applied.
#[derive(Debug)]
pub struct Patch {
    first_value: u32,
    first_node: u32,
    values: Vec<NewValue>,
    nodes: Vec<Node>,
    replaced: Vec<(ValueId, ValueId)>,
    rewired: Vec<(NodeId, usize, Option<ValueId>)>,
    ops: Vec<(NodeId, Arc<dyn Op>)>,
    renamed: Vec<(ValueId, String)>,
}

#[derive(Debug)]
struct NewValue {
    name: String,
    ty: ValueType,
    def: NewDef,
}

#[derive(Debug)]
enum NewDef {
    Const(Tensor),
    Node(NodeId, usize),
}

/// Why a patch could not be applied; the graph is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The graph was edited after the patch was begun.
    #[error("the patch was made for another state of the graph")]
    Stale,
    /// An id names nothing in the graph or the patch.
    #[error("the patch names {0}, which is not in the graph")]
    Unknown(String),
    /// The edit would make a cycle.
    #[error("the patch makes a cycle through node \"{0}\"")]
    Cycle(String),
    /// A value is replaced by itself.
    #[error("value \"{0}\" is replaced by itself")]
    SelfReplaced(String),
    /// An output of the graph keeps its name, so only a new value or another node's output that is
    /// not an output yet can stand in for it (see [`Graph::can_replace`]).
    #[error("value \"{0}\" is an output of the graph and can't be replaced by an input, a constant or another output")]
    Output(String),
}

impl Patch {
    /// An empty edit of `graph` as it is now.
    pub fn new(graph: &Graph) -> Patch {
        Patch {
            first_value: graph.values.len() as u32,
            first_node: graph.nodes.len() as u32,
            values: Vec::new(),
            nodes: Vec::new(),
            replaced: Vec::new(),
            rewired: Vec::new(),
            ops: Vec::new(),
            renamed: Vec::new(),
        }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
            && self.nodes.is_empty()
            && self.replaced.is_empty()
            && self.rewired.is_empty()
            && self.ops.is_empty()
            && self.renamed.is_empty()
    }

    /// Adds a constant. A name already taken gets a suffix.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let ty = Fact::constant(tensor.clone()).ty;
        self.value(name, ty, NewDef::Const(tensor))
    }

    /// Adds a node with one output of the same name. A name already taken gets a suffix.
    pub fn node(&mut self, name: &str, op: Arc<dyn Op>, inputs: &[Option<ValueId>]) -> ValueId {
        self.node_outputs(name, op, inputs, &[Some(name)])[0].expect("the output was asked for")
    }

    /// Adds a node; one new value for each output that has a name. Names already taken get a suffix.
    pub fn node_outputs(
        &mut self,
        name: &str,
        op: Arc<dyn Op>,
        inputs: &[Option<ValueId>],
        outputs: &[Option<&str>],
    ) -> Vec<Option<ValueId>> {
        let id = NodeId(self.first_node + self.nodes.len() as u32);
        let outs: Vec<Option<ValueId>> = outputs
            .iter()
            .enumerate()
            .map(|(i, n)| n.map(|n| self.value(n, ValueType::Unknown, NewDef::Node(id, i))))
            .collect();
        self.nodes.push(Node::new(name, op, inputs.to_vec(), outs.clone()));
        outs
    }

    fn value(&mut self, name: &str, ty: ValueType, def: NewDef) -> ValueId {
        let id = ValueId(self.first_value + self.values.len() as u32);
        self.values.push(NewValue { name: name.into(), ty, def });
        id
    }

    /// Sets the type of a value that this patch makes.
    pub fn set_type(&mut self, value: ValueId, ty: ValueType) {
        if let Some(v) = value.0.checked_sub(self.first_value).and_then(|i| self.values.get_mut(i as usize)) {
            v.ty = ty;
        }
    }

    /// Lets every reader of `old`, the graph's outputs included, read `new` instead.
    ///
    /// Where `new` is made by this patch, it takes over the name and type of `old`, so that names of
    /// activations survive rewrites. An existing `new` keeps its name, unless `old` is an output of the
    /// graph: output names never change, see [`Graph::can_replace`].
    /// Nodes of this patch that read `old` go on reading it.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        self.replaced.push((old, new));
    }

    /// Lets one input of an existing node read another value, or none.
    pub fn set_input(&mut self, node: NodeId, input: usize, value: Option<ValueId>) {
        self.rewired.push((node, input, value));
    }

    /// Gives an existing value another name, after all else; one already taken gets a suffix.
    pub fn rename(&mut self, value: ValueId, name: &str) {
        self.renamed.push((value, name.into()));
    }

    /// Gives an existing node another operator.
    pub fn set_op(&mut self, node: NodeId, op: Arc<dyn Op>) {
        self.ops.push((node, op));
    }
}

impl Graph {
    /// Whether [`Patch::replace`] may put the existing value `new` in the place of `old`: always, unless
    /// `old` is an output of the graph, whose name `new` then has to take.
    pub fn can_replace(&self, old: ValueId, new: ValueId) -> bool {
        !self.is_output(old) || matches!(self.value(new).def, Def::Node(..)) && !self.is_output(new)
    }

    /// Applies an edit as a whole.
    ///
    /// # Errors
    /// When the patch is stale, names unknown ids or makes a cycle; the graph is then unchanged.
    pub fn apply(&mut self, patch: Patch) -> Result<(), PatchError> {
        self.check(&patch)?;
        let order = Planner::new(self, &patch).order()?;
        let touched = self.edit(patch);
        self.order = order;
        self.prune(touched);
        Ok(())
    }

    fn check(&self, patch: &Patch) -> Result<(), PatchError> {
        if patch.first_value as usize != self.values.len() || patch.first_node as usize != self.nodes.len() {
            return Err(PatchError::Stale);
        }
        let is_new = |v: ValueId| v.0.checked_sub(patch.first_value).is_some_and(|i| (i as usize) < patch.values.len());
        let value = |v: ValueId| match is_new(v) || self.get_value(v).is_some() {
            true => Ok(()),
            false => Err(PatchError::Unknown(v.to_string())),
        };
        let node = |n: NodeId| match self.get_node(n) {
            Some(_) => Ok(()),
            None => Err(PatchError::Unknown(n.to_string())),
        };
        for n in &patch.nodes {
            n.inputs.iter().flatten().try_for_each(|&v| value(v))?;
        }
        for &(old, new) in &patch.replaced {
            if self.get_value(old).is_none() {
                return Err(PatchError::Unknown(old.to_string()));
            }
            value(new)?;
            if old == new {
                return Err(PatchError::SelfReplaced(self.value(old).name.clone()));
            }
            if !is_new(new) && !self.can_replace(old, new) {
                return Err(PatchError::Output(self.value(old).name.clone()));
            }
        }
        for &(n, _, v) in &patch.rewired {
            node(n)?;
            v.map_or(Ok(()), value)?;
        }
        patch.renamed.iter().try_for_each(|(v, _)| value(*v))?;
        patch.ops.iter().try_for_each(|(n, _)| node(*n))
    }

    /// Carries out a checked patch; gives the values that may have lost readers.
    fn edit(&mut self, patch: Patch) -> Vec<ValueId> {
        let mut touched = Vec::new();
        // A new value that replaces an old one takes its name over (the first one that it replaces).
        let heirs: BTreeMap<ValueId, ValueId> =
            patch.replaced.iter().rev().filter(|r| r.1.0 >= patch.first_value).map(|&(old, new)| (new, old)).collect();
        for v in patch.values {
            let id = ValueId(self.values.len() as u32);
            let def = match v.def {
                NewDef::Node(n, i) => Def::Node(n, i),
                NewDef::Const(t) => {
                    self.consts.push(t);
                    Def::Const(ConstId(self.consts.len() as u32 - 1))
                }
            };
            match heirs.get(&id) {
                Some(&old) => self.inherit(id, old, v.ty, def),
                None => {
                    self.add_value(&v.name, v.ty, def);
                }
            }
        }
        for (old, new) in patch.replaced {
            self.redirect(old, new);
            touched.push(old);
        }
        for mut node in patch.nodes {
            let id = NodeId(self.nodes.len() as u32);
            for (input, v) in node.inputs.iter().enumerate() {
                if let Some(v) = v {
                    self.uses[v.index()].push(Use { node: id, input });
                }
            }
            node.name = self.free_node_name(&node.name);
            self.node_names.insert(node.name.clone(), id);
            touched.extend(node.outputs.iter().flatten());
            self.nodes.push(Some(node));
        }
        for (node, input, value) in patch.rewired {
            touched.extend(self.set_input(node, input, value));
        }
        for (id, op) in patch.ops {
            if let Some(node) = &mut self.nodes[id.index()] {
                node.op = op;
            }
        }
        for (v, name) in patch.renamed {
            let name = self.free_value_name(&name);
            self.rename(v, name);
        }
        touched
    }

    /// Makes the value that takes over the name of `old`, which gets a name of its own.
    fn inherit(&mut self, id: ValueId, old: ValueId, ty: ValueType, def: Def) {
        let Value { name, ty: old_ty, .. } = self.value(old).clone();
        let spare = self.free_value_name(&format!("{name}.replaced"));
        self.rename(old, spare);
        self.names.insert(name.clone(), id);
        let ty = if ty == ValueType::Unknown { old_ty } else { ty };
        self.values.push(Some(Value { name, ty, def }));
        self.uses.push(Vec::new());
    }

    fn rename(&mut self, id: ValueId, name: String) {
        if let Some(v) = &mut self.values[id.index()] {
            self.names.remove(&v.name);
            v.name.clone_from(&name);
            self.names.insert(name, id);
        }
    }

    fn redirect(&mut self, old: ValueId, new: ValueId) {
        for u in std::mem::take(&mut self.uses[old.index()]) {
            if let Some(node) = &mut self.nodes[u.node.index()] {
                node.inputs[u.input] = Some(new);
                self.uses[new.index()].push(u);
            }
        }
        if !self.is_output(old) {
            return;
        }
        if !self.value(old).name.ends_with(".replaced") {
            let name = self.value(old).name.clone();
            let spare = self.free_value_name(&format!("{name}.replaced"));
            self.rename(old, spare);
            self.rename(new, name);
        }
        self.outputs.iter_mut().filter(|o| **o == old).for_each(|o| *o = new);
    }

    fn set_input(&mut self, id: NodeId, input: usize, value: Option<ValueId>) -> Option<ValueId> {
        let node = self.nodes[id.index()].as_mut()?;
        if node.inputs.len() <= input {
            node.inputs.resize(input + 1, None);
        }
        let old = std::mem::replace(&mut node.inputs[input], value);
        while node.inputs.last() == Some(&None) {
            node.inputs.pop();
        }
        let here = Use { node: id, input };
        if let Some(v) = old {
            self.uses[v.index()].retain(|u| *u != here);
        }
        if let Some(v) = value {
            self.uses[v.index()].push(here);
        }
        old
    }

    /// Removes what made `values`, and then what made its inputs, as far as nobody reads it.
    fn prune(&mut self, mut values: Vec<ValueId>) {
        let mut removed = false;
        while let Some(v) = values.pop() {
            if self.get_value(v).is_none() || !self.uses(v).is_empty() || self.is_output(v) {
                continue;
            }
            match self.value(v).def {
                Def::Input => {}
                Def::Const(c) => {
                    // The entry may be shared; an empty tensor frees the data of one that is not.
                    self.forget(v);
                    if !self.values().any(|(_, x)| x.def == Def::Const(c)) {
                        self.consts[c.index()] = Tensor::vector(Vec::<u8>::new());
                    }
                }
                Def::Node(n, _) => {
                    let Some(node) = self.get_node(n) else { continue };
                    let read = |&o: &ValueId| !self.uses(o).is_empty() || self.is_output(o);
                    if node.outputs.iter().flatten().any(read) {
                        continue;
                    }
                    values.extend(self.remove(n));
                    removed = true;
                }
            }
        }
        if removed {
            let nodes = &self.nodes;
            self.order.retain(|n| nodes[n.index()].is_some());
        }
    }

    fn forget(&mut self, v: ValueId) {
        if let Some(value) = self.values[v.index()].take() {
            self.names.remove(&value.name);
        }
    }

    fn remove(&mut self, id: NodeId) -> Vec<ValueId> {
        let Some(node) = self.nodes[id.index()].take() else { return Vec::new() };
        self.node_names.remove(&node.name);
        for o in node.outputs.iter().flatten() {
            self.forget(*o);
        }
        let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        for v in &inputs {
            self.uses[v.index()].retain(|u| u.node != id);
        }
        inputs
    }

    /// Removes every node whose outputs nobody reads and every constant without readers.
    pub fn remove_dead(&mut self) -> usize {
        let before = self.order.len();
        let all = self.values().map(|(id, _)| id).collect();
        self.prune(all);
        before - self.order.len()
    }
}

/// Finds the node order that holds after a patch, or the cycle that it would make.
struct Planner<'a> {
    graph: &'a Graph,
    patch: &'a Patch,
    replaced: BTreeMap<ValueId, ValueId>,
    rewired: BTreeMap<(NodeId, usize), Option<ValueId>>,
    /// By node: the place in the old order and, for new nodes, the place among those put there.
    position: Vec<(usize, usize)>,
}

impl<'a> Planner<'a> {
    fn new(graph: &'a Graph, patch: &'a Patch) -> Planner<'a> {
        let mut position = vec![(0, 0); graph.nodes.len()];
        for (i, n) in graph.order.iter().enumerate() {
            position[n.index()] = (i + 1, 0);
        }
        let mut planner = Planner {
            graph,
            patch,
            replaced: patch.replaced.iter().copied().collect(),
            rewired: patch.rewired.iter().map(|&(n, i, v)| ((n, i), v)).collect(),
            position,
        };
        for (k, node) in patch.nodes.iter().enumerate() {
            let makers = node.inputs.iter().flatten().filter_map(|&v| planner.maker(v));
            let last = makers.map(|n| planner.position[n.index()].0).max().unwrap_or(0);
            planner.position.push((last, k + 1));
        }
        planner
    }

    fn maker(&self, v: ValueId) -> Option<NodeId> {
        match v.0.checked_sub(self.patch.first_value) {
            Some(i) => match self.patch.values.get(i as usize)?.def {
                NewDef::Node(n, _) => Some(n),
                NewDef::Const(_) => None,
            },
            None => self.graph.producer(v).map(|p| p.0),
        }
    }

    /// The nodes whose outputs a node reads after the patch.
    fn makers(&self, id: NodeId) -> Vec<NodeId> {
        if let Some(k) = id.0.checked_sub(self.patch.first_node) {
            return self.patch.nodes[k as usize].inputs.iter().flatten().filter_map(|&v| self.maker(v)).collect();
        }
        let node = self.graph.node(id);
        let kept = node.inputs.iter().enumerate().filter(|(i, _)| !self.rewired.contains_key(&(id, *i)));
        let kept = kept.filter_map(|(_, v)| v.map(|v| self.replaced.get(&v).copied().unwrap_or(v)));
        let rewired = self.rewired.range((id, 0)..=(id, usize::MAX)).filter_map(|(_, v)| *v);
        kept.chain(rewired).filter_map(|v| self.maker(v)).collect()
    }

    fn order(&self) -> Result<Vec<NodeId>, PatchError> {
        let new = (0..self.patch.nodes.len() as u32).map(|k| NodeId(self.patch.first_node + k));
        let mut order: Vec<NodeId> = self.graph.order.iter().copied().chain(new).collect();
        order.sort_by_key(|n| self.position[n.index()]);
        let at = |n: NodeId| self.position[n.index()];
        if order.iter().all(|&n| self.makers(n).into_iter().all(|m| at(m) < at(n))) {
            return Ok(order);
        }
        self.sort(&order)
    }

    /// Kahn's algorithm, taking the ready node that stood first.
    fn sort(&self, nodes: &[NodeId]) -> Result<Vec<NodeId>, PatchError> {
        let mut waiting = vec![0usize; self.position.len()];
        let mut readers = vec![Vec::new(); self.position.len()];
        for &n in nodes {
            for m in self.makers(n) {
                waiting[n.index()] += 1;
                readers[m.index()].push(n);
            }
        }
        let key = |n: NodeId| (self.position[n.index()], n);
        let mut ready: BTreeSet<_> = nodes.iter().filter(|n| waiting[n.index()] == 0).map(|&n| key(n)).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some((_, n)) = ready.pop_first() {
            order.push(n);
            for &r in &readers[n.index()] {
                waiting[r.index()] -= 1;
                if waiting[r.index()] == 0 {
                    ready.insert(key(r));
                }
            }
        }
        match nodes.iter().find(|n| waiting[n.index()] > 0) {
            None => Ok(order),
            Some(&n) => Err(PatchError::Cycle(match n.0.checked_sub(self.patch.first_node) {
                Some(k) => self.patch.nodes[k as usize].name.clone(),
                None => self.graph.node(n).name.clone(),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Opaque, verify::VerifyError};

    fn op(name: &str) -> Arc<dyn Op> {
        Arc::new(Opaque { domain: "test".into(), name: name.into(), attrs: Default::default() })
    }

    /// x → a → b → (output "y")
    fn chain() -> (Graph, Vec<ValueId>) {
        let mut g = Graph::new("g");
        let x = g.add_input("x", ValueType::Unknown);
        let a = g.add_node("a", op("A"), vec![Some(x)], &[Some("a_out")]);
        let a = g.node(a).output(0).unwrap();
        let b = g.add_node("b", op("B"), vec![Some(a)], &[Some("y")]);
        let b = g.node(b).output(0).unwrap();
        g.add_output(b);
        (g, vec![x, a, b])
    }

    #[test]
    fn replaces_an_output_and_keeps_its_name() -> Result<(), VerifyError> {
        let (mut g, v) = chain();
        let mut p = Patch::new(&g);
        let c = p.node("c", op("C"), &[Some(v[0])]);
        p.replace(v[2], c);
        g.apply(p).unwrap();
        g.verify()?;
        assert_eq!(g.node_count(), 1, "a and b are dead");
        assert_eq!(g.value(g.outputs()[0]).name, "y");
        assert_eq!(g.value_named("y"), Some(g.outputs()[0]));
        Ok(())
    }

    #[test]
    fn bypasses_a_node_before_an_output() -> Result<(), VerifyError> {
        let (mut g, v) = chain();
        let mut p = Patch::new(&g);
        p.replace(v[2], v[1]);
        g.apply(p).unwrap();
        g.verify()?;
        assert_eq!(g.node_count(), 1);
        assert_eq!(g.value(v[1]).name, "y");
        Ok(())
    }

    #[test]
    fn refuses_to_rename_an_input_to_an_output() {
        let (mut g, v) = chain();
        assert!(!g.can_replace(v[2], v[0]));
        let mut p = Patch::new(&g);
        p.replace(v[2], v[0]);
        assert_eq!(g.apply(p), Err(PatchError::Output("y".into())));
        assert_eq!(g.node_count(), 2);
    }

    #[test]
    fn puts_a_node_between_and_reorders() -> Result<(), VerifyError> {
        let (mut g, v) = chain();
        let mut p = Patch::new(&g);
        let q = p.node("q", op("Q"), &[Some(v[1])]);
        p.replace(v[1], q);
        g.apply(p).unwrap();
        g.verify()?;
        let names: Vec<&str> = g.nodes().map(|(_, n)| n.name.as_str()).collect();
        assert_eq!(names, ["a", "q", "b"]);
        Ok(())
    }

    #[test]
    fn refuses_cycles_and_stale_patches_without_a_change() -> Result<(), VerifyError> {
        let (mut g, v) = chain();
        let mut p = Patch::new(&g);
        p.set_input(g.producer(v[1]).unwrap().0, 0, Some(v[2]));
        let mut stale = Patch::new(&g);
        stale.constant("k", Tensor::scalar(1f32));
        assert!(matches!(g.apply(p), Err(PatchError::Cycle(_))));
        g.verify()?;
        let mut first = Patch::new(&g);
        let k = first.constant("k", Tensor::scalar(1f32));
        first.set_input(g.producer(v[2]).unwrap().0, 1, Some(k));
        g.apply(first).unwrap();
        assert_eq!(g.apply(stale), Err(PatchError::Stale));
        g.verify()
    }

    #[test]
    fn sorts_when_a_reader_stood_before_its_new_maker() -> Result<(), VerifyError> {
        let mut g = Graph::new("g");
        let x = g.add_input("x", ValueType::Unknown);
        let early = g.add_node("early", op("E"), vec![Some(x)], &[Some("e")]);
        let late = g.add_node("late", op("L"), vec![Some(x)], &[Some("l")]);
        let (e, l) = (g.node(early).output(0).unwrap(), g.node(late).output(0).unwrap());
        g.add_output(e);
        g.add_output(l);
        let mut p = Patch::new(&g);
        p.set_input(early, 0, Some(l));
        g.apply(p).unwrap();
        g.verify()?;
        assert_eq!(g.order(), [late, early]);
        Ok(())
    }
}
