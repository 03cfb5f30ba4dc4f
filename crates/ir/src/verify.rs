use std::collections::BTreeSet;

use crate::graph::{Def, Graph, Use};
use crate::{NodeId, ValueId};

/// An invariant of the graph that does not hold: a bug in narrowbit, never in a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("graph \"{graph}\": {problem}")]
pub struct VerifyError {
    /// The graph's name.
    pub graph: String,
    /// What does not hold.
    pub problem: String,
}

impl Graph {
    /// Checks that edges, uses, names and the node order agree with each other.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn verify(&self) -> Result<(), VerifyError> {
        self.verify_nodes()
            .and_then(|()| self.verify_values())
            .map_err(|problem| VerifyError { graph: self.name.clone(), problem })
    }

    fn verify_nodes(&self) -> Result<(), String> {
        let listed: BTreeSet<NodeId> = self.order.iter().copied().collect();
        let live = self.nodes.iter().flatten().count();
        if listed.len() != self.order.len() || live != self.order.len() {
            return Err(format!("{live} nodes, but the order lists {}", self.order.len()));
        }
        let mut made: BTreeSet<ValueId> = BTreeSet::new();
        for &id in &self.order {
            let Some(node) = self.get_node(id) else { return Err(format!("the order lists {id}, which is removed")) };
            for (i, v) in node.inputs.iter().enumerate() {
                let Some(v) = *v else { continue };
                let Some(value) = self.get_value(v) else {
                    return Err(format!("node \"{}\" reads {v}, which is removed", node.name));
                };
                if matches!(value.def, Def::Node(..)) && !made.contains(&v) {
                    return Err(format!("node \"{}\" reads \"{}\" before it is made", node.name, value.name));
                }
                if !self.uses(v).contains(&Use { node: id, input: i }) {
                    return Err(format!("input {i} of node \"{}\" is not among the uses of {v}", node.name));
                }
            }
            for (i, v) in node.outputs.iter().enumerate() {
                let Some(v) = *v else { continue };
                if self.get_value(v).map(|x| x.def) != Some(Def::Node(id, i)) {
                    return Err(format!("output {i} of node \"{}\" does not name its maker", node.name));
                }
                made.insert(v);
            }
            for (_, body) in node.op.bodies() {
                body.graph.verify().map_err(|e| format!("in node \"{}\": {e}", node.name))?;
            }
        }
        Ok(())
    }

    fn verify_values(&self) -> Result<(), String> {
        for (id, value) in self.values() {
            if self.names.get(&value.name) != Some(&id) {
                return Err(format!("the name \"{}\" does not lead to {id}", value.name));
            }
            for u in self.uses(id) {
                if self.get_node(u.node).and_then(|n| n.input(u.input)) != Some(id) {
                    return Err(format!("a use of \"{}\" names {}, which does not read it", value.name, u.node));
                }
            }
            let ok = match value.def {
                Def::Input => self.inputs.contains(&id),
                Def::Const(c) => c.index() < self.consts.len(),
                Def::Node(n, i) => self.get_node(n).and_then(|n| n.output(i)) == Some(id),
            };
            if !ok {
                return Err(format!("value \"{}\" has no maker", value.name));
            }
        }
        let ends = self.inputs.iter().chain(&self.outputs);
        match ends.copied().find(|&v| self.get_value(v).is_none()) {
            Some(v) => Err(format!("an input or output is {v}, which is removed")),
            None => Ok(()),
        }
    }
}
