use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{Attr, AttrMap, Body, Function, Graph, Model, Node, NodeError, Op, Opaque, ValueId};

use super::OVERLOAD;
use super::error::{ImportError, Result};
use super::graph::build_operator;
use super::source::Source;

/// Functions that call functions may nest this deep.
const MAX_DEPTH: usize = 64;

/// Inlining may make this many nodes: functions that call functions grow exponentially.
const MAX_NODES: usize = 1 << 18;

/// Longer prefixes for the names of inlined values and nodes are cut.
const MAX_PREFIX: usize = 128;

/// Replaces each call of a model's own function by the nodes of its body, in subgraphs too, and forgets the
/// functions. Names of the calling graph do not change; inner names get the calling node's name in front.
///
/// # Errors
/// When a function calls itself, the calls nest too deep or make too many nodes, or an operator of a body
/// refuses its attributes. The model is then unchanged.
pub fn inline_functions(model: &mut Model) -> Result<()> {
    if model.functions.is_empty() {
        return Ok(());
    }
    let key = |f: &Function| (f.domain.clone(), f.name.clone(), f.overload.clone());
    let functions: BTreeMap<_, &Function> = model.functions.iter().map(|f| (key(f), f)).collect();
    let mut inliner = Inliner { src: Source::new("model", None), functions, nodes: 0, calls: Vec::new() };
    let graph = inliner.graph(&model.graph, None)?;
    let mut opsets = model.opsets.clone();
    for f in &model.functions {
        for (domain, &version) in &f.opsets {
            let stated = *opsets.entry(domain.clone()).or_insert(version);
            if stated != version {
                tracing::warn!(
                    "function \"{}\" uses version {version} of domain \"{domain}\", the model {stated}; its nodes are kept as they are",
                    f.name
                );
            }
        }
    }
    model.graph = graph;
    model.opsets = opsets;
    model.functions.clear();
    Ok(())
}

/// The function whose body is being copied.
struct Call<'a> {
    function: &'a Function,
    /// The caller's attributes over the function's defaults.
    attrs: AttrMap,
}

struct Inliner<'a> {
    src: Source,
    functions: BTreeMap<(String, String, String), &'a Function>,
    nodes: usize,
    /// Functions under way, for recursion.
    calls: Vec<*const Function>,
}

/// How values and nodes of the copied graph are called in the new one.
#[derive(Clone, Copy)]
struct Names<'a> {
    prefix: &'a str,
    /// Names that only the copied graph itself may use.
    reserved: &'a Graph,
    /// Names given by the caller, by value of the copied graph.
    given: &'a BTreeMap<ValueId, String>,
}

impl<'a> Inliner<'a> {
    /// A copy of a graph with all calls expanded.
    fn graph(&mut self, old: &Graph, call: Option<&Call<'a>>) -> Result<Graph> {
        let mut new = Graph::new(old.name.clone());
        (new.doc, new.metadata, new.notes) = (old.doc.clone(), old.metadata.clone(), old.notes.clone());
        let mut map = vec![None; old.value_capacity()];
        for &id in old.inputs() {
            map[id.index()] = Some(new.add_input(&old.value(id).name, old.value(id).ty.clone()));
        }
        let names = Names { prefix: "", reserved: old, given: &BTreeMap::new() };
        self.copy(&mut new, old, &mut map, call, names)?;
        for id in old.outputs() {
            match map[id.index()] {
                Some(v) => new.add_output(v),
                None => {
                    return Err(self.src.broken("model", format!("output \"{}\" is not made", old.value(*id).name)));
                }
            }
        }
        Ok(new)
    }

    /// Copies constants and nodes; `map` holds the new value of each input already.
    fn copy(
        &mut self,
        new: &mut Graph,
        old: &Graph,
        map: &mut [Option<ValueId>],
        call: Option<&Call<'a>>,
        names: Names,
    ) -> Result<()> {
        for (id, v) in old.values() {
            if let Some(t) = old.constant(id) {
                map[id.index()] = Some(new.add_const(&names.of(new, &v.name, self.nodes), t.clone()));
            }
        }
        for (_, node) in old.nodes() {
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                let problem = format!("its functions expand to more than {MAX_NODES} nodes");
                return Err(self.src.invalid(
                    "model",
                    problem,
                    "inline the functions with the tool that wrote the model",
                ));
            }
            let inputs: Vec<Option<ValueId>> = node.inputs.iter().map(|v| v.and_then(|v| map[v.index()])).collect();
            let outputs: Vec<Option<String>> = node
                .outputs
                .iter()
                .map(|v| {
                    v.map(|v| {
                        names.given.get(&v).cloned().unwrap_or_else(|| names.of(new, &old.value(v).name, self.nodes))
                    })
                })
                .collect();
            let made = self.node(new, node, inputs, &outputs, call, names)?;
            for (v, made) in node.outputs.iter().zip(made) {
                let (Some(v), Some(made)) = (*v, made) else { continue };
                map[v.index()] = Some(made);
                if call.is_none() {
                    new.set_type(made, old.value(v).ty.clone());
                }
            }
        }
        Ok(())
    }

    fn node(
        &mut self,
        new: &mut Graph,
        node: &Node,
        inputs: Vec<Option<ValueId>>,
        outputs: &[Option<String>],
        call: Option<&Call<'a>>,
        names: Names,
    ) -> Result<Vec<Option<ValueId>>> {
        let name = names.of_node(&node.name);
        let (mut extra, mut op) = (node.extra.clone(), node.op.clone());
        if let Some(opaque) = node.op.downcast::<Opaque>() {
            let mut attrs = self.attributes(&opaque.attrs, call)?;
            if let Some(function) = self.function(opaque, &node.extra) {
                return self.expand(new, function, &name, inputs, outputs, attrs, names);
            }
            op = match call {
                None => Arc::new(Opaque { attrs, ..opaque.clone() }),
                Some(call) => {
                    let error = |error| NodeError { node: name.clone(), op: opaque.name.clone(), error };
                    let op = build_operator(&call.function.opsets, &opaque.domain, &opaque.name, &mut attrs)
                        .map_err(|e| ImportError::Node { file: self.src.file(), error: Box::new(error(e)) })?;
                    attrs.into_iter().for_each(|(k, v)| extra.set(k, v));
                    op
                }
            };
        }
        let bodies = op.bodies();
        // Bodies of an operator that was just built are expanded already.
        if !bodies.is_empty() && call.is_none() {
            let bodies: Vec<Body> = bodies
                .into_iter()
                .map(|(_, b)| Ok(Body { graph: self.graph(&b.graph, None)?, captures: b.captures }))
                .collect::<Result<_>>()?;
            op = op.with_bodies(bodies).unwrap_or(op);
        }
        Ok(self.add(new, &name, op, inputs, outputs, Some((node, extra))))
    }

    fn add(
        &self,
        new: &mut Graph,
        name: &str,
        op: Arc<dyn Op>,
        inputs: Vec<Option<ValueId>>,
        outputs: &[Option<String>],
        from: Option<(&Node, AttrMap)>,
    ) -> Vec<Option<ValueId>> {
        let outputs: Vec<Option<&str>> = outputs.iter().map(Option::as_deref).collect();
        let id = new.add_node(name, op, inputs, &outputs);
        if let Some((node, extra)) = from {
            new.describe_node(id, extra, node.doc.clone(), node.metadata.clone());
        }
        new.node(id).outputs.clone()
    }

    /// The function that a node calls.
    fn function(&self, op: &Opaque, extra: &AttrMap) -> Option<&'a Function> {
        let overload = match extra.get(OVERLOAD) {
            Some(Attr::Str(b)) => String::from_utf8_lossy(b).into_owned(),
            _ => String::new(),
        };
        self.functions.get(&(op.domain.clone(), op.name.clone(), overload)).copied()
    }

    /// Attributes with references to the caller's filled in and subgraphs expanded.
    fn attributes(&mut self, attrs: &AttrMap, call: Option<&Call<'a>>) -> Result<AttrMap> {
        let mut out = AttrMap::new();
        for (name, value) in attrs.iter() {
            let value = match (value, call) {
                (Attr::Ref { name, .. }, Some(call)) => call.attrs.get(name).cloned(),
                (Attr::Graph(g), _) => Some(Attr::Graph(Box::new(self.graph(g, call)?))),
                (other, _) => Some(other.clone()),
            };
            if let Some(value) = value {
                out.set(name, value);
            }
        }
        Ok(out)
    }

    #[allow(clippy::too_many_arguments)] // a call's whole context
    fn expand(
        &mut self,
        new: &mut Graph,
        f: &'a Function,
        name: &str,
        inputs: Vec<Option<ValueId>>,
        outputs: &[Option<String>],
        given: AttrMap,
        names: Names,
    ) -> Result<Vec<Option<ValueId>>> {
        let place = format!("node \"{name}\" (function {})", f.name);
        if self.calls.contains(&std::ptr::from_ref(f)) {
            return Err(self.src.broken(place, "calls itself"));
        }
        if self.calls.len() >= MAX_DEPTH || inputs.len() > f.graph.inputs().len() {
            let problem = format!("has {} inputs, or calls more than {MAX_DEPTH} deep", inputs.len());
            return Err(self.src.broken(place, problem));
        }
        let mut attrs = f.attrs.clone();
        given.into_iter().for_each(|(k, v)| attrs.set(k, v));
        let call = Call { function: f, attrs };
        let mut map = vec![None; f.graph.value_capacity()];
        for (&id, v) in f.graph.inputs().iter().zip(inputs) {
            map[id.index()] = v;
        }
        // The first output that is a value takes the caller's name for it; others are copies.
        let mut wanted: BTreeMap<ValueId, String> = BTreeMap::new();
        let mut copies = Vec::new();
        for (i, (&id, name)) in f.graph.outputs().iter().zip(outputs).enumerate() {
            let Some(name) = name else { continue };
            if f.graph.producer(id).is_none() || wanted.contains_key(&id) {
                copies.push((i, id, name.clone()));
            } else {
                wanted.insert(id, name.clone());
            }
        }
        let prefix: String = format!("{name}/").chars().take(MAX_PREFIX).collect();
        self.calls.push(std::ptr::from_ref(f));
        let inner = Names { prefix: &prefix, reserved: names.reserved, given: &wanted };
        self.copy(new, &f.graph, &mut map, Some(&call), inner)?;
        self.calls.pop();
        let mut made: Vec<Option<ValueId>> = f.graph.outputs().iter().map(|id| map[id.index()]).collect();
        made.resize(outputs.len(), None);
        for (i, id, output) in copies {
            let identity = build_operator(&f.opsets, "", "Identity", &mut AttrMap::new());
            let identity = identity.map_err(|error| ImportError::Node {
                file: self.src.file(),
                error: Box::new(NodeError { node: name.into(), op: "Identity".into(), error }),
            })?;
            made[i] = self.add(new, &output, identity, vec![map[id.index()]], &[Some(output.clone())], None)[0];
        }
        let missing = outputs.iter().zip(&made).any(|(o, m)| o.is_some() && m.is_none());
        if missing { Err(self.src.broken(place, "has more outputs than the function")) } else { Ok(made) }
    }
}

impl Names<'_> {
    /// A name for a value of the copied graph that takes none from the graph that it is copied into.
    fn of(&self, new: &Graph, name: &str, serial: usize) -> String {
        if self.prefix.is_empty() {
            return name.into();
        }
        let wanted = format!("{}{name}", self.prefix);
        let taken = |n: &String| self.reserved.value_named(n).is_some() || new.value_named(n).is_some();
        if !taken(&wanted) {
            return wanted;
        }
        // The count of nodes so far: the first number that is tried is free, or nearly so.
        let mut free = (serial..).map(|i| format!("{wanted}_{i}")).filter(|n| !taken(n));
        free.next().unwrap_or(wanted)
    }

    fn of_node(&self, name: &str) -> String {
        let wanted = format!("{}{name}", self.prefix);
        // The graph numbers names that are taken already; it does not know those that are still to come.
        let reserved = !self.prefix.is_empty() && self.reserved.node_named(&wanted).is_some();
        if reserved { format!("{wanted}_inlined") } else { wanted }
    }
}
