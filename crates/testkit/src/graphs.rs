//! Graphs for tests, written node by node.

use std::collections::BTreeMap;

use narrowbit_ir::{AttrMap, Dim, Fact, Graph, Model, OpError, OpSource, ValueId, ValueType};
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor};

/// Builds a graph from operators of the registry.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
    opset: i64,
}

impl GraphBuilder {
    /// An empty graph with operators of an opset.
    pub fn new(opset: i64) -> GraphBuilder {
        GraphBuilder { graph: Graph::new("test"), opset }
    }

    /// An `f32` input; negative extents are symbols (−1 is `d0`, −2 is `d1`).
    pub fn input(&mut self, name: &str, shape: &[i64]) -> ValueId {
        self.typed_input(name, DType::F32, shape)
    }

    /// An input as [`GraphBuilder::input`] of any type.
    pub fn typed_input(&mut self, name: &str, dtype: DType, shape: &[i64]) -> ValueId {
        let dim = |&d: &i64| if d < 0 { Dim::sym(&format!("d{}", -1 - d)) } else { Dim::Known(d) };
        let ty: ValueType = Fact::tensor(Some(dtype), Some(shape.iter().map(dim).collect())).ty;
        self.graph.add_input(name, ty)
    }

    /// A constant.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        self.graph.add_const(name, tensor)
    }

    /// A node of one output, named after its operator.
    ///
    /// # Errors
    /// When there is no such operator, or it refuses its attributes.
    pub fn node(&mut self, op: &str, inputs: &[ValueId], attrs: AttrMap) -> Result<ValueId, OpError> {
        let name = format!("{op}_{}", self.graph.node_count());
        self.named(&name, "", op, inputs, attrs)
    }

    /// A node of one output of the node's name, of any domain.
    ///
    /// # Errors
    /// As [`GraphBuilder::node`].
    pub fn named(
        &mut self,
        name: &str,
        domain: &str,
        op: &str,
        inputs: &[ValueId],
        mut attrs: AttrMap,
    ) -> Result<ValueId, OpError> {
        let missing = || OpError::Unsupported(format!("operator {op} of domain \"{domain}\""));
        let op = Registry.build(domain, op, self.opset, &mut attrs).ok_or_else(missing)??;
        let id = self.graph.add_node(name, op, inputs.iter().copied().map(Some).collect(), &[Some(name)]);
        self.graph.node(id).output(0).ok_or(OpError::MissingInput(0))
    }

    /// Makes a value an output.
    pub fn output(&mut self, value: ValueId) {
        self.graph.add_output(value);
    }

    /// The graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// A model around the graph.
    pub fn model(self) -> Model {
        let opsets = BTreeMap::from([(String::new(), self.opset)]);
        Model {
            graph: self.graph,
            ir_version: 10,
            opsets,
            producer_name: "narrowbit-testkit".into(),
            ..Model::default()
        }
    }
}
