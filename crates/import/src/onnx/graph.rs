use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use narrowbit_ir::{Attr, AttrMap, Graph, NodeError, Op, OpError, OpSource, Opaque, ValueId, ValueNote, ValueType};
use narrowbit_ops::Registry;
use prost::Message;

use super::error::{ImportError, Result};
use super::proto::{GraphProto, NodeProto, StringStringEntryProto, TensorAnnotation, ValueInfoProto};
use super::scope::{OrderError, captured_names, free_names, order};
use super::source::Source;
use super::{CAPTURES, DEVICES, OVERLOAD, attr, tensor, types};

/// Reads graphs of one model or function.
pub(super) struct GraphReader<'a> {
    pub(super) src: &'a Source,
    pub(super) opsets: &'a BTreeMap<String, i64>,
    /// Whether operators are built; nodes of function bodies stay opaque until they are inlined.
    pub(super) build: bool,
}

/// A value of the enclosing graph that a subgraph reads.
pub(super) type Capture = (String, ValueType);

impl GraphReader<'_> {
    /// The graph of a message; `captures` become its last inputs.
    pub(super) fn read(&self, g: GraphProto, captures: &[Capture]) -> Result<Graph> {
        let mut graph = Graph::new(g.name.unwrap_or_default());
        graph.doc = g.doc_string.unwrap_or_default();
        graph.metadata = pairs(g.metadata_props);
        let place = format!("graph \"{}\"", graph.name);

        let dense = g.initializer.iter().filter_map(|t| t.name.clone());
        let sparse = g.sparse_initializer.iter().filter_map(|s| s.values.as_ref()?.name.clone());
        let constants: std::collections::HashSet<String> = dense.chain(sparse).collect();
        for info in &g.input {
            // An input with an initializer is a constant with the right to be overridden, which nobody here uses.
            if !constants.contains(info.name.as_deref().unwrap_or_default()) {
                let name = self.fresh(&graph, &place, info.name.as_deref(), "an input")?;
                let ty = self.value_type(info)?;
                graph.add_input(name, ty);
            }
        }
        for (name, ty) in captures {
            graph.add_input(name, ty.clone());
        }
        for t in g.initializer {
            let name = self.fresh(&graph, &place, t.name.as_deref(), "an initializer")?.to_owned();
            let (doc, metadata) = (t.doc_string.clone().unwrap_or_default(), pairs(t.metadata_props.clone()));
            let tensor = tensor::read(self.src, &format!("initializer \"{name}\""), t)?;
            note(&mut graph, &name, |n| (n.doc, n.metadata) = (doc, metadata));
            graph.add_const(&name, tensor);
        }
        for s in g.sparse_initializer {
            let name = s.values.as_ref().and_then(|v| v.name.as_deref());
            let name = self.fresh(&graph, &place, name, "a sparse initializer")?.to_owned();
            let tensor = tensor::read_sparse(self.src, &format!("sparse initializer \"{name}\""), s)?;
            graph.add_const(&name, tensor);
        }

        let mut stated = HashMap::new();
        for info in g.value_info.iter().chain(&g.output) {
            stated.insert(info.name.clone().unwrap_or_default(), self.value_type(info)?);
        }
        self.nodes(&mut graph, &place, g.node, &stated)?;
        for info in &g.output {
            let name = info.name.as_deref().unwrap_or_default();
            let Some(id) = graph.value_named(name) else {
                return Err(self.src.broken(&place, format!("output \"{name}\" is made by nothing in the graph")));
            };
            graph.add_output(id);
        }
        let infos = g.value_info.iter().chain(&g.input).chain(&g.output);
        infos.for_each(|info| describe(&mut graph, info));
        g.quantization_annotation.into_iter().for_each(|a| annotate(&mut graph, a));
        Ok(graph)
    }

    /// A name that nothing in the graph has yet.
    fn fresh<'n>(&self, graph: &Graph, place: &str, name: Option<&'n str>, what: &str) -> Result<&'n str> {
        match name {
            None | Some("") => Err(self.src.broken(place, format!("{what} has no name"))),
            Some(name) if graph.value_named(name).is_some() => {
                Err(self.src.broken(place, format!("the name \"{name}\" is given to more than one value")))
            }
            Some(name) => Ok(name),
        }
    }

    fn value_type(&self, info: &ValueInfoProto) -> Result<ValueType> {
        let place = format!("value \"{}\"", info.name.as_deref().unwrap_or_default());
        info.r#type.as_ref().map_or(Ok(ValueType::Unknown), |t| types::read(self.src, &place, t))
    }

    fn nodes(
        &self,
        graph: &mut Graph,
        place: &str,
        nodes: Vec<NodeProto>,
        stated: &HashMap<String, ValueType>,
    ) -> Result<()> {
        let captured: Vec<Vec<String>> = nodes.iter().map(captured_names).collect();
        let reads: Vec<Vec<&str>> = nodes
            .iter()
            .zip(&captured)
            .map(|(n, c)| n.input.iter().chain(c).map(String::as_str).filter(|s| !s.is_empty()).collect())
            .collect();
        let (order, kept) = order(&nodes, &reads).map_err(|e| match e {
            OrderError::Twice(name) => {
                self.src.broken(place, format!("the name \"{name}\" is given to more than one value"))
            }
            OrderError::Cycle(i) => self.src.broken(place_of(&nodes[i]), "is part of a cycle"),
        })?;
        if !kept {
            tracing::warn!("{}: {place}: nodes are not in topological order; they were sorted", self.src.file());
        }
        let mut nodes: Vec<Option<(NodeProto, Vec<String>)>> = nodes.into_iter().zip(captured).map(Some).collect();
        for i in order {
            if let Some((node, captured)) = nodes[i].take() {
                self.node(graph, node, captured, stated)?;
            }
        }
        Ok(())
    }

    fn node(
        &self,
        graph: &mut Graph,
        n: NodeProto,
        captured: Vec<String>,
        stated: &HashMap<String, ValueType>,
    ) -> Result<()> {
        let place = place_of(&n);
        let find = |graph: &Graph, name: &str| {
            graph
                .value_named(name)
                .ok_or_else(|| self.src.broken(&place, format!("reads \"{name}\", which nothing in the graph makes")))
        };
        let mut inputs: Vec<Option<ValueId>> = n
            .input
            .iter()
            .map(|name| if name.is_empty() { Ok(None) } else { find(graph, name).map(Some) })
            .collect::<Result<_>>()?;
        let taken: Vec<ValueId> = captured.iter().map(|name| find(graph, name)).collect::<Result<_>>()?;
        let captures: Vec<Capture> =
            captured.into_iter().zip(&taken).map(|(name, &id)| (name, graph.value(id).ty.clone())).collect();
        for o in n.output.iter().filter(|o| !o.is_empty()) {
            self.fresh(graph, &place, Some(o), "an output")?;
        }

        let bodies = n.attribute.iter().filter(|a| a.g.is_some()).count();
        self.src.charge_captures(&place, bodies.saturating_mul(captures.len()))?;
        let op_type = n.op_type.unwrap_or_default();
        let domain = n.domain.unwrap_or_default();
        let mut attrs = AttrMap::new();
        for a in n.attribute {
            let mut name = a.name.clone().unwrap_or_default();
            let value = attr::read(self.src, &place, a, &mut |g| self.read(g, &captures))?;
            // Dense tensors have an attribute of their own.
            if op_type == "Constant" && name == "sparse_value" && matches!(value, Attr::Tensor(_)) {
                name = "value".into();
            }
            if attrs.get(&name).is_some() {
                return Err(self.src.broken(&place, format!("attribute \"{name}\" is given twice")));
            }
            attrs.set(name, value);
        }
        if bodies > 0 {
            // Loop's first two inputs may be left out, but captured values must not slip into their places.
            if op_type == "Loop" && inputs.len() < 2 {
                inputs.resize(2, None);
            }
            attrs.set(CAPTURES, captures.len() as i64);
            inputs.extend(taken.into_iter().map(Some));
        }
        let op = self.operator(&domain, &op_type, &mut attrs, n.name.as_deref().unwrap_or_default())?;
        if let Some(overload) = n.overload.filter(|o| !o.is_empty()) {
            attrs.set(OVERLOAD, overload);
        }
        if !n.device_configurations.is_empty() {
            let devices = NodeProto { device_configurations: n.device_configurations, ..NodeProto::default() };
            attrs.set(DEVICES, Attr::Raw(devices.encode_to_vec().into()));
        }
        let outputs: Vec<Option<&str>> = n.output.iter().map(|o| (!o.is_empty()).then_some(o.as_str())).collect();
        let id = graph.add_node(n.name.as_deref().unwrap_or_default(), op, inputs, &outputs);
        let made: Vec<ValueId> = graph.node(id).outputs.iter().flatten().copied().collect();
        for v in made {
            if let Some(ty) = stated.get(&graph.value(v).name) {
                graph.set_type(v, ty.clone());
            }
        }
        graph.describe_node(id, attrs, n.doc_string.unwrap_or_default(), pairs(n.metadata_props));
        Ok(())
    }

    /// The operator with the attributes that it knows; the others stay in `attrs`.
    fn operator(&self, domain: &str, op_type: &str, attrs: &mut AttrMap, node: &str) -> Result<Arc<dyn Op>> {
        let opaque = |attrs: AttrMap| Arc::new(Opaque { domain: domain.into(), name: op_type.into(), attrs });
        if !self.build {
            return Ok(opaque(std::mem::take(attrs)));
        }
        build_operator(self.opsets, domain, op_type, attrs).map_err(|error| ImportError::Node {
            file: self.src.file(),
            error: Box::new(NodeError { node: node.into(), op: op_type.into(), error }),
        })
    }
}

/// The operator at the opset that the model imports; one that narrowbit does not know, or not in this form, is opaque.
pub(super) fn build_operator(
    opsets: &BTreeMap<String, i64>,
    domain: &str,
    op_type: &str,
    attrs: &mut AttrMap,
) -> Result<Arc<dyn Op>, OpError> {
    let plain = if domain == "ai.onnx" { "" } else { domain };
    let version = opsets.get(plain).or_else(|| if plain.is_empty() { opsets.get("ai.onnx") } else { None });
    let opaque = |attrs: AttrMap| Arc::new(Opaque { domain: domain.into(), name: op_type.into(), attrs });
    let mut known = attrs.clone();
    match Registry.build(plain, op_type, version.copied().unwrap_or(1), &mut known) {
        None | Some(Err(OpError::Unsupported(_))) => Ok(opaque(std::mem::take(attrs))),
        Some(Ok(op)) => {
            *attrs = known;
            Ok(op)
        }
        Some(Err(error)) => Err(error),
    }
}

/// The names that a graph at the top reads and nothing defines are an error; for messages that name the first one.
pub(super) fn check_closed(src: &Source, g: &GraphProto) -> Result<()> {
    match free_names(g).first() {
        None => Ok(()),
        Some(name) => {
            let place = format!("graph \"{}\"", g.name.as_deref().unwrap_or_default());
            Err(src.broken(place, format!("\"{name}\" is read, but no node, input or initializer makes it")))
        }
    }
}

fn place_of(n: &NodeProto) -> String {
    let op = n.op_type.as_deref().unwrap_or_default();
    match (n.name.as_deref().unwrap_or_default(), n.output.first()) {
        ("", Some(o)) => format!("node ({op}) that makes \"{o}\""),
        (name, _) => format!("node \"{name}\" ({op})"),
    }
}

pub(super) fn pairs(props: Vec<StringStringEntryProto>) -> Vec<(String, String)> {
    props.into_iter().map(|p| (p.key.unwrap_or_default(), p.value.unwrap_or_default())).collect()
}

/// Changes the note of a value; a note that says nothing is not kept.
fn note(graph: &mut Graph, name: &str, change: impl FnOnce(&mut ValueNote)) {
    let mut note = graph.notes.remove(name).unwrap_or_default();
    change(&mut note);
    if note != ValueNote::default() {
        graph.notes.insert(name.into(), note);
    }
}

fn describe(graph: &mut Graph, info: &ValueInfoProto) {
    let Some(name) = info.name.as_deref().filter(|n| graph.value_named(n).is_some()) else { return };
    note(graph, name, |n| {
        if let Some(doc) = info.doc_string.clone().filter(|d| !d.is_empty()) {
            n.doc = doc;
        }
        n.metadata.extend(pairs(info.metadata_props.clone()));
        if let Some(t) = &info.r#type {
            n.ty = types::rest(t);
        }
    });
}

fn annotate(graph: &mut Graph, a: TensorAnnotation) {
    let name = a.tensor_name.unwrap_or_default();
    note(graph, &name, |n| n.quantization.extend(pairs(a.quant_parameter_tensor_names)));
}
