use std::collections::{BTreeMap, BTreeSet};

use narrowbit_ir::{Attr, Def, Graph, Node, ValueId, ValueNote, ValueType};
use prost::Message;

use super::rope::Rope;
use super::tensor::{self, External};
use crate::onnx::proto::attribute_proto::AttributeType as T;
use crate::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, StringStringEntryProto, TensorAnnotation, ValueInfoProto,
};
use crate::onnx::{CAPTURES, DEVICES, OVERLOAD, types};

// Field numbers of the messages that are written in pieces.
const GRAPH_NODE: u32 = 1;
const GRAPH_INITIALIZER: u32 = 5;
const NODE_ATTRIBUTE: u32 = 5;
const ATTRIBUTE_T: u32 = 5;
const ATTRIBUTE_G: u32 = 6;
const ATTRIBUTE_TENSORS: u32 = 10;

/// Encodes a graph. `captured` are the names that its last inputs have in the graph around it: they are not
/// written as inputs but referred to by those names.
pub(super) fn graph(graph: &Graph, captured: &[&str], external: &mut Option<External>) -> Rope {
    GraphWriter::new(graph, captured).write(external)
}

/// The nodes of a function's body, and the types of its values; constants become nodes.
pub(super) fn function_body(graph: &Graph) -> (Vec<Rope>, Vec<ValueInfoProto>) {
    let w = GraphWriter::new(graph, &[]);
    let constants = w.constants().map(|(name, t, _)| {
        let proto = NodeProto { output: vec![name.into()], op_type: Some("Constant".into()), ..NodeProto::default() };
        let mut out = Rope::default();
        out.fields(&proto);
        out.message(NODE_ATTRIBUTE, attribute("value", &Attr::Tensor(t.clone()), &[], &mut None));
        out
    });
    let nodes = graph.nodes().map(|(_, n)| w.node(n, &mut None));
    let typed = graph.values().filter(|(_, v)| !matches!(v.def, Def::Const(_)));
    let infos = typed.filter_map(|(id, _)| w.typed_info(id)).collect();
    (constants.chain(nodes).collect(), infos)
}

struct GraphWriter<'a> {
    graph: &'a Graph,
    /// How many of the inputs are captured.
    captures: usize,
    /// Names by value where they differ from the graph's own.
    renamed: BTreeMap<ValueId, String>,
}

impl<'a> GraphWriter<'a> {
    fn new(graph: &'a Graph, captured: &[&str]) -> GraphWriter<'a> {
        let captures = captured.len().min(graph.inputs().len());
        let first = graph.inputs().len() - captures;
        let mut renamed = BTreeMap::new();
        for (&id, &name) in graph.inputs()[first..].iter().zip(captured) {
            if graph.value(id).name != name {
                renamed.insert(id, name.to_owned());
            }
        }
        // A value of the subgraph must not hide one that it reads from around it.
        let outer: BTreeSet<&str> = captured.iter().copied().collect();
        let is_capture = |id: ValueId| graph.inputs()[first..].contains(&id);
        for &name in &outer {
            if let Some(id) = graph.value_named(name).filter(|&id| !is_capture(id)) {
                let free = (1..).map(|i| format!("{name}_inner{i}"));
                let mut free = free.filter(|n| graph.value_named(n).is_none() && !outer.contains(n.as_str()));
                renamed.extend(free.next().map(|n| (id, n)));
            }
        }
        GraphWriter { graph, captures, renamed }
    }

    fn name(&self, id: ValueId) -> &str {
        self.renamed.get(&id).map_or_else(|| self.graph.value(id).name.as_str(), String::as_str)
    }

    fn note(&self, id: ValueId) -> Option<&'a ValueNote> {
        self.graph.notes.get(&self.graph.value(id).name)
    }

    fn own_inputs(&self) -> &'a [ValueId] {
        let inputs = self.graph.inputs();
        &inputs[..inputs.len() - self.captures]
    }

    fn constants(&self) -> impl Iterator<Item = (&str, &narrowbit_tensor::Tensor, Option<&ValueNote>)> {
        let constants = self.graph.values().filter_map(|(id, _)| Some((id, self.graph.constant(id)?)));
        constants.map(|(id, t)| (self.name(id), t, self.note(id)))
    }

    fn write(&self, external: &mut Option<External>) -> Rope {
        let g = self.graph;
        let mut out = Rope::default();
        for (_, node) in g.nodes() {
            out.message(GRAPH_NODE, self.node(node, external));
        }
        let (outputs, copies) = self.outputs();
        copies.iter().for_each(|copy| out.proto(GRAPH_NODE, copy));
        for (name, t, note) in self.constants() {
            out.message(GRAPH_INITIALIZER, tensor::initializer(name, t, note, external.as_mut()));
        }
        let ends: BTreeSet<ValueId> = g.inputs().iter().chain(g.outputs()).copied().collect();
        let inner = g.values().filter(|(id, v)| matches!(v.def, Def::Node(..)) && !ends.contains(id));
        out.fields(&GraphProto {
            name: Some(g.name.clone()),
            doc_string: some(&g.doc),
            input: self.own_inputs().iter().map(|&id| self.info(id)).collect(),
            output: outputs,
            value_info: inner.filter_map(|(id, _)| self.typed_info(id)).collect(),
            quantization_annotation: self.annotations(),
            metadata_props: props(&g.metadata),
            ..GraphProto::default()
        });
        out
    }

    /// The outputs; a captured value can't be one itself, so a copy is.
    fn outputs(&self) -> (Vec<ValueInfoProto>, Vec<NodeProto>) {
        let captured = &self.graph.inputs()[self.own_inputs().len()..];
        let mut copies = Vec::new();
        let mut infos = Vec::new();
        for (i, &id) in self.graph.outputs().iter().enumerate() {
            let mut info = self.info(id);
            if captured.contains(&id) {
                let free = (i..).map(|k| format!("{}_output{k}", self.name(id)));
                let name = free.into_iter().find(|n| self.graph.value_named(n).is_none());
                info.name.clone_from(&name);
                copies.push(NodeProto {
                    input: vec![self.name(id).into()],
                    output: name.into_iter().collect(),
                    op_type: Some("Identity".into()),
                    ..NodeProto::default()
                });
            }
            infos.push(info);
        }
        (infos, copies)
    }

    fn info(&self, id: ValueId) -> ValueInfoProto {
        let none = ValueNote::default();
        let note = self.note(id).unwrap_or(&none);
        ValueInfoProto {
            name: Some(self.name(id).into()),
            r#type: types::write(&self.graph.value(id).ty, &note.ty),
            doc_string: some(&note.doc),
            metadata_props: props(&note.metadata),
        }
    }

    /// The entry of an inner value, where there is something to say.
    fn typed_info(&self, id: ValueId) -> Option<ValueInfoProto> {
        let info = self.info(id);
        let says = info.r#type.is_some() || info.doc_string.is_some() || !info.metadata_props.is_empty();
        says.then_some(info)
    }

    fn annotations(&self) -> Vec<TensorAnnotation> {
        let noted = self.graph.notes.iter().filter(|(_, n)| !n.quantization.is_empty());
        let annotation = |(name, n): (&String, &ValueNote)| TensorAnnotation {
            tensor_name: Some(self.graph.value_named(name).map_or(name.as_str(), |id| self.name(id)).into()),
            quant_parameter_tensor_names: props(&n.quantization),
        };
        noted.map(annotation).collect()
    }

    fn node(&self, node: &Node, external: &mut Option<External>) -> Rope {
        let op_attrs = node.op.attrs();
        let mut attrs: BTreeMap<&str, &Attr> = node.extra.iter().chain(op_attrs.iter()).collect();
        let overload = string(attrs.remove(OVERLOAD));
        let devices = match attrs.remove(DEVICES) {
            Some(Attr::Raw(b)) => NodeProto::decode(b.clone()).unwrap_or_default().device_configurations,
            _ => Vec::new(),
        };
        let bodies = node.op.bodies();
        let stated = match attrs.remove(CAPTURES) {
            Some(Attr::Int(n)) => usize::try_from(*n).unwrap_or(0),
            _ => 0,
        };
        let captures = bodies.first().map_or(stated, |(_, b)| b.captures).min(node.inputs.len());
        let names = |v: &Option<ValueId>| v.map_or("", |v| self.name(v));
        let (own, captured) = node.inputs.split_at(node.inputs.len() - captures);
        let captured: Vec<&str> = captured.iter().map(names).collect();
        let graph_names: BTreeSet<&str> = bodies.iter().map(|(name, _)| *name).collect();

        let mut out = Rope::default();
        out.fields(&NodeProto {
            input: own.iter().map(|v| names(v).into()).collect(),
            output: node.outputs.iter().map(|v| names(v).into()).collect(),
            name: some(&node.name),
            op_type: Some(node.op.name().into()),
            domain: some(node.op.domain()),
            overload,
            doc_string: some(&node.doc),
            metadata_props: props(&node.metadata),
            device_configurations: devices,
            ..NodeProto::default()
        });
        for (name, value) in attrs.into_iter().filter(|(name, _)| !graph_names.contains(name)) {
            out.message(NODE_ATTRIBUTE, attribute(name, value, &captured, external));
        }
        for (name, body) in bodies {
            let body = graph(&body.graph, &captured, external);
            out.message(NODE_ATTRIBUTE, graph_attribute(name, body));
        }
        out
    }
}

fn graph_attribute(name: &str, body: Rope) -> Rope {
    let mut out = Rope::default();
    out.fields(&AttributeProto { name: Some(name.into()), r#type: Some(T::Graph as i32), ..AttributeProto::default() });
    out.message(ATTRIBUTE_G, body);
    out
}

pub(super) fn attribute(name: &str, value: &Attr, captured: &[&str], external: &mut Option<External>) -> Rope {
    let named = |t: T| AttributeProto { name: Some(name.into()), r#type: Some(t as i32), ..AttributeProto::default() };
    let mut out = Rope::default();
    match value {
        Attr::Raw(bytes) => out.raw(bytes.clone()),
        Attr::Graph(g) => return graph_attribute(name, graph(g, captured, external)),
        Attr::Tensor(t) => {
            out.fields(&named(T::Tensor));
            out.message(ATTRIBUTE_T, tensor::plain(t));
        }
        Attr::Tensors(ts) => {
            out.fields(&named(T::Tensors));
            ts.iter().for_each(|t| out.message(ATTRIBUTE_TENSORS, tensor::plain(t)));
        }
        Attr::Float(x) => out.fields(&AttributeProto { f: Some(*x), ..named(T::Float) }),
        Attr::Int(x) => out.fields(&AttributeProto { i: Some(*x), ..named(T::Int) }),
        Attr::Str(x) => out.fields(&AttributeProto { s: Some(x.to_vec()), ..named(T::String) }),
        Attr::Floats(x) => out.fields(&AttributeProto { floats: x.clone(), ..named(T::Floats) }),
        Attr::Ints(x) => out.fields(&AttributeProto { ints: x.clone(), ..named(T::Ints) }),
        Attr::Strs(x) => {
            let strings = x.iter().map(|s| s.to_vec()).collect();
            out.fields(&AttributeProto { strings, ..named(T::Strings) });
        }
        Attr::Type(t) => out.fields(&AttributeProto { tp: type_attribute(t), ..named(T::TypeProto) }),
        Attr::Ref { name: target, kind } => out.fields(&AttributeProto {
            name: Some(name.into()),
            ref_attr_name: Some(target.clone()),
            r#type: Some(*kind),
            ..AttributeProto::default()
        }),
    }
    out
}

fn type_attribute(t: &ValueType) -> Option<crate::onnx::proto::TypeProto> {
    Some(types::write(t, &bytes::Bytes::new()).unwrap_or_default())
}

fn string(attr: Option<&Attr>) -> Option<String> {
    match attr {
        Some(Attr::Str(b)) => String::from_utf8(b.to_vec()).ok(),
        _ => None,
    }
}

pub(super) fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.into())
}

pub(super) fn props(pairs: &[(String, String)]) -> Vec<StringStringEntryProto> {
    pairs.iter().map(|(k, v)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) }).collect()
}
