use std::collections::BTreeSet;

use crate::graph::Def;
use crate::{Graph, NodeId, ValueId, ValueType};

impl Graph {
    /// The graph of some of the nodes, all ids kept.
    ///
    /// Its inputs are what these nodes read of the graph's inputs and of what other nodes make, in the order of ids;
    /// its outputs what other nodes or the graph's outputs need of theirs. Types of inputs that other nodes make are
    /// not taken over: they may say less than is known when the part runs.
    #[must_use]
    pub fn part(&self, nodes: &BTreeSet<NodeId>) -> Graph {
        self.part_with(nodes, &BTreeSet::new())
    }

    /// The graph of what some values depend on, all ids kept, for those who see values while it runs: it makes them, has no
    /// outputs, which would be kept until a run ends, and takes the tensors of the graph's inputs, whether they are read or not.
    #[must_use]
    pub fn making(&self, values: &BTreeSet<ValueId>) -> Graph {
        let (mut wanted, mut nodes) = (values.clone(), BTreeSet::new());
        for (id, node) in self.nodes().rev() {
            if node.outputs.iter().flatten().any(|v| wanted.contains(v)) {
                wanted.extend(node.inputs.iter().flatten());
                nodes.insert(id);
            }
        }
        let inputs = self.inputs.iter().copied().collect();
        let mut part = self.part_with(&nodes, &inputs);
        part.inputs.clone_from(&self.inputs);
        part.outputs.clear();
        part
    }

    /// The part of some nodes, and values that stay although none of them reads them.
    fn part_with(&self, nodes: &BTreeSet<NodeId>, also: &BTreeSet<ValueId>) -> Graph {
        let mut part = self.clone();
        part.order.retain(|n| nodes.contains(n));
        for (i, node) in part.nodes.iter_mut().enumerate() {
            if !nodes.contains(&NodeId(i as u32)) {
                *node = None;
            }
        }
        part.node_names.retain(|_, n| nodes.contains(n));
        part.uses.iter_mut().for_each(|uses| uses.retain(|u| nodes.contains(&u.node)));
        part.inputs.clear();
        part.outputs.clear();
        for i in 0..part.values.len() {
            let id = ValueId(i as u32);
            let read = !part.uses[i].is_empty() || also.contains(&id);
            let Some(value) = &mut part.values[i] else { continue };
            match value.def {
                Def::Node(n, _) if nodes.contains(&n) => {
                    if self.is_output(id) || self.uses(id).len() > part.uses[i].len() {
                        part.outputs.push(id);
                    }
                }
                Def::Node(..) if read => {
                    (value.def, value.ty) = (Def::Input, ValueType::Unknown);
                    part.inputs.push(id);
                }
                Def::Input if read => part.inputs.push(id),
                Def::Const(_) if read => {}
                _ => {
                    part.names.remove(&value.name);
                    part.values[i] = None;
                }
            }
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{AttrMap, Opaque};

    fn chain() -> (Graph, Vec<NodeId>) {
        let mut g = Graph::new("g");
        let x = g.add_input("x", ValueType::Unknown);
        let c = g.add_const("c", narrowbit_tensor::Tensor::scalar(1f32));
        let mut nodes = Vec::new();
        let mut v = x;
        for name in ["a", "b", "d"] {
            let op = Arc::new(Opaque { domain: String::new(), name: "Add".into(), attrs: AttrMap::new() });
            nodes.push(g.add_node(name, op, vec![Some(v), Some(c)], &[Some(name)]));
            v = g.node(nodes[nodes.len() - 1]).output(0).unwrap();
        }
        g.add_output(v);
        (g, nodes)
    }

    fn names(g: &Graph, ids: &[ValueId]) -> Vec<String> {
        ids.iter().map(|&v| g.value(v).name.clone()).collect()
    }

    #[test]
    fn cuts_a_graph_where_it_is_told() {
        let (g, n) = chain();
        let first = g.part(&BTreeSet::from([n[0], n[1]]));
        let second = g.part(&BTreeSet::from([n[2]]));
        assert_eq!(
            (names(&first, first.inputs()), names(&first, first.outputs())),
            (vec!["x".into()], vec!["b".into()])
        );
        assert_eq!(
            (names(&second, second.inputs()), names(&second, second.outputs())),
            (vec!["b".into()], vec!["d".into()])
        );
        assert_eq!(first.inputs(), &g.inputs()[..1]);
        assert_eq!(second.outputs(), g.outputs());
        first.verify().unwrap();
        second.verify().unwrap();
    }

    #[test]
    fn keeps_what_several_parts_read() {
        let (g, n) = chain();
        let all = g.part(&n.iter().copied().collect());
        assert_eq!((all.inputs(), all.outputs(), all.order()), (g.inputs(), g.outputs(), g.order()));
        let none = g.part(&BTreeSet::new());
        assert!(none.order().is_empty() && none.inputs().is_empty() && none.outputs().is_empty());
    }

    #[test]
    fn makes_what_is_asked_for_from_all_inputs() {
        let (mut g, n) = chain();
        g.add_input("unread", ValueType::Unknown);
        let b = g.node(n[1]).output(0).unwrap();
        let some = g.making(&BTreeSet::from([b]));
        assert_eq!((some.order(), some.inputs(), some.outputs()), (&n[..2], g.inputs(), &[][..]));
        assert!(some.value_named("d").is_none() && some.value_named("b") == Some(b));
        some.verify().unwrap();
        let none = g.making(&g.inputs().iter().copied().collect());
        assert!(none.order().is_empty() && none.inputs() == g.inputs() && none.value_named("c").is_none());
        none.verify().unwrap();
    }
}
