use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use narrowbit_tensor::Tensor;

use crate::{AttrMap, ConstId, Fact, NodeId, Op, ValueId, ValueType};

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Def {
    /// An input of the graph.
    Input,
    /// A tensor of the constant pool.
    Const(ConstId),
    /// An output of a node.
    Node(NodeId, usize),
}

/// A place where a value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Use {
    /// The reading node.
    pub node: NodeId,
    /// Which of its inputs.
    pub input: usize,
}

/// An edge of the graph.
#[derive(Debug, Clone)]
pub struct Value {
    /// Unique within the graph; kept from the file.
    pub name: String,
    /// The type as far as it is known.
    pub ty: ValueType,
    /// Where it comes from.
    pub def: Def,
}

/// What a file says of a value that narrowbit does not use, kept so that it survives a round trip.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValueNote {
    /// A description.
    pub doc: String,
    /// Free key-value pairs.
    pub metadata: Vec<(String, String)>,
    /// Tensors with quantization parameters of this value: role and name (ONNX `quantization_annotation`).
    pub quantization: Vec<(String, String)>,
    /// The encoded ONNX `TypeProto`, where it says more than [`ValueType`] can: denotations, maps, sparse tensors.
    pub ty: Bytes,
}

/// An operator applied to values.
#[derive(Debug, Clone)]
pub struct Node {
    /// The name in the file; may be empty or repeated there, is neither here.
    pub name: String,
    /// What it computes.
    pub op: Arc<dyn Op>,
    /// What it reads; `None` where an optional input is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// What it makes; `None` where an optional output is left out.
    pub outputs: Vec<Option<ValueId>>,
    /// Attributes of the file that the operator does not know.
    pub extra: AttrMap,
    /// The description in the file.
    pub doc: String,
    /// Free key-value pairs in the file.
    pub metadata: Vec<(String, String)>,
}

impl Node {
    /// A node without description or metadata.
    pub fn new(
        name: impl Into<String>,
        op: Arc<dyn Op>,
        inputs: Vec<Option<ValueId>>,
        outputs: Vec<Option<ValueId>>,
    ) -> Node {
        Node { name: name.into(), op, inputs, outputs, extra: AttrMap::new(), doc: String::new(), metadata: Vec::new() }
    }

    /// The input at a position, where present.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// The output at a position, where present.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }
}

/// A directed acyclic graph of nodes and values with a pool of constants.
///
/// Built value by value ([`Graph::add_input`], [`Graph::add_const`],
/// [`Graph::add_node`]: a node may only read values that exist), edited only by
/// [`crate::Patch`]. Nodes stand in topological order.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// The graph's name in the file.
    pub name: String,
    /// The graph's description in the file.
    pub doc: String,
    /// Free key-value pairs in the file.
    pub metadata: Vec<(String, String)>,
    /// What the file says of values beyond their types, by value name.
    pub notes: BTreeMap<String, ValueNote>,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) order: Vec<NodeId>,
    pub(crate) values: Vec<Option<Value>>,
    pub(crate) uses: Vec<Vec<Use>>,
    pub(crate) consts: Vec<Tensor>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) names: BTreeMap<String, ValueId>,
    pub(crate) node_names: BTreeMap<String, NodeId>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds an input. A name already taken gets a suffix.
    pub fn add_input(&mut self, name: &str, ty: ValueType) -> ValueId {
        let id = self.add_value(name, ty, Def::Input);
        self.inputs.push(id);
        id
    }

    /// Adds a constant. A name already taken gets a suffix.
    pub fn add_const(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let ty = Fact::constant(tensor.clone()).ty;
        let c = ConstId(self.consts.len() as u32);
        self.consts.push(tensor);
        self.add_value(name, ty, Def::Const(c))
    }

    /// Adds a node at the end of the order; one new value for each output that has a
    /// name. Names already taken get a suffix. The inputs must be values of this graph.
    pub fn add_node(
        &mut self,
        name: &str,
        op: Arc<dyn Op>,
        inputs: Vec<Option<ValueId>>,
        outputs: &[Option<&str>],
    ) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        let outs = outputs
            .iter()
            .enumerate()
            .map(|(i, n)| n.map(|n| self.add_value(n, ValueType::Unknown, Def::Node(id, i))))
            .collect();
        let name = self.free_node_name(if name.is_empty() { op.name() } else { name });
        self.node_names.insert(name.clone(), id);
        for (i, v) in inputs.iter().enumerate() {
            if let Some(v) = v {
                self.uses[v.index()].push(Use { node: id, input: i });
            }
        }
        self.nodes.push(Some(Node::new(name, op, inputs, outs)));
        self.order.push(id);
        id
    }

    /// Makes a value an output of the graph.
    pub fn add_output(&mut self, value: ValueId) {
        self.outputs.push(value);
    }

    pub(crate) fn add_value(&mut self, name: &str, ty: ValueType, def: Def) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let name = self.free_value_name(name);
        self.names.insert(name.clone(), id);
        self.values.push(Some(Value { name, ty, def }));
        self.uses.push(Vec::new());
        id
    }

    pub(crate) fn free_value_name(&self, name: &str) -> String {
        free_name(name, "value", |n| self.names.contains_key(n))
    }

    pub(crate) fn free_node_name(&self, name: &str) -> String {
        free_name(name, "node", |n| self.node_names.contains_key(n))
    }

    /// The ids of all nodes in topological order.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// All nodes in topological order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.order.iter().map(|&id| (id, self.node(id)))
    }

    /// The number of nodes.
    pub fn node_count(&self) -> usize {
        self.order.len()
    }

    /// A node. Panics when it was removed: ids come from this graph and do not outlive a patch that removes them.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.index()].as_ref().expect("the node was removed by a patch")
    }

    /// A node, where it exists still.
    pub fn get_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())?.as_ref()
    }

    /// A node to describe (name, doc, metadata, extra attributes); its edges change only by a patch.
    pub fn describe_node(&mut self, id: NodeId, extra: AttrMap, doc: String, metadata: Vec<(String, String)>) {
        if let Some(Some(node)) = self.nodes.get_mut(id.index()) {
            (node.extra, node.doc, node.metadata) = (extra, doc, metadata);
        }
    }

    /// A value. Panics when it was removed: ids come from this graph and do not outlive a patch that removes them.
    pub fn value(&self, id: ValueId) -> &Value {
        self.values[id.index()].as_ref().expect("the value was removed by a patch")
    }

    /// A value, where it exists still.
    pub fn get_value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id.index())?.as_ref()
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().filter_map(|(i, v)| Some((ValueId(i as u32), v.as_ref()?)))
    }

    /// One more than the greatest index of a value: the length of side tables.
    pub fn value_capacity(&self) -> usize {
        self.values.len()
    }

    /// One more than the greatest index of a node: the length of side tables.
    pub fn node_capacity(&self) -> usize {
        self.nodes.len()
    }

    /// Sets what is known of a value's type.
    pub fn set_type(&mut self, id: ValueId, ty: ValueType) {
        if let Some(Some(v)) = self.values.get_mut(id.index()) {
            v.ty = ty;
        }
    }

    /// The value of that name.
    pub fn value_named(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// The node of that name.
    pub fn node_named(&self, name: &str) -> Option<NodeId> {
        self.node_names.get(name).copied()
    }

    /// The inputs, in the file's order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The outputs, in the file's order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// Whether a value is an output of the graph.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.contains(&id)
    }

    /// The nodes that read a value (a node that reads it twice stands twice).
    pub fn uses(&self, id: ValueId) -> &[Use] {
        self.uses.get(id.index()).map_or(&[], Vec::as_slice)
    }

    /// The only node that reads the value, where there is just one use and the value is no output of the graph.
    pub fn only_use(&self, id: ValueId) -> Option<Use> {
        match self.uses(id) {
            [one] if !self.is_output(id) => Some(*one),
            _ => None,
        }
    }

    /// The node that makes a value, and which of its outputs the value is.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, usize)> {
        match self.value(id).def {
            Def::Node(n, i) => Some((n, i)),
            _ => None,
        }
    }

    /// The tensor of a constant value.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        match self.value(id).def {
            Def::Const(c) => self.consts.get(c.index()),
            _ => None,
        }
    }

    /// The tensor of a node's input, where that is a constant.
    pub fn const_input(&self, node: NodeId, i: usize) -> Option<&Tensor> {
        self.constant(self.node(node).input(i)?)
    }

    /// The constant pool's entry of a constant value; values of one entry share their tensor.
    pub fn const_id(&self, id: ValueId) -> Option<ConstId> {
        match self.value(id).def {
            Def::Const(c) => Some(c),
            _ => None,
        }
    }
}

fn free_name(name: &str, default: &str, taken: impl Fn(&str) -> bool) -> String {
    let name = if name.is_empty() { default } else { name };
    if !taken(name) {
        return name.into();
    }
    // Doubling first keeps this fast for a hostile file with a million equal names.
    let mut hi = 1usize;
    while taken(&format!("{name}_{hi}")) {
        hi = hi.saturating_mul(2);
    }
    let mut lo = hi / 2;
    while hi - lo > 1 {
        let mid = lo + (hi - lo) / 2;
        if taken(&format!("{name}_{mid}")) { lo = mid } else { hi = mid }
    }
    format!("{name}_{hi}")
}
