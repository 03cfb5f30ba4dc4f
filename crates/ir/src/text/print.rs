use std::fmt::{self, Write};

use narrowbit_tensor::{DType, Tensor};

use crate::{Attr, Body, Dim, Graph, Model, NodeId, TensorType, ValueId, ValueType};

/// Constants with more elements are written as a checksum.
const MAX_ELEMENTS: usize = 256;

/// The text form of a model's operator sets and main graph.
pub fn print_model(model: &Model) -> String {
    let mut out = String::from("model");
    for (domain, version) in &model.opsets {
        match domain.as_str() {
            "" | "ai.onnx" => out += &format!(" opset={version}"),
            domain => out += &format!(" {domain:?}={version}"),
        }
    }
    out.push('\n');
    out + &print_graph(&model.graph)
}

/// The text form of a graph.
pub fn print_graph(graph: &Graph) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = Printer { out: &mut out, indent: 0 }.graph(graph, None);
    out.push('\n');
    out
}

struct Printer<'a> {
    out: &'a mut String,
    indent: usize,
}

impl Printer<'_> {
    fn line(&mut self) -> fmt::Result {
        self.out.push('\n');
        (0..self.indent).for_each(|_| self.out.push_str("  "));
        Ok(())
    }

    fn graph(&mut self, graph: &Graph, captures: Option<usize>) -> fmt::Result {
        write!(self.out, "graph {}", quoted(&graph.name))?;
        if let Some(n) = captures {
            write!(self.out, " captures={n}")?;
        }
        self.out.push_str(" {");
        self.indent += 1;
        for &v in graph.inputs() {
            self.line()?;
            self.out.push_str("input ");
            self.definition(graph, v)?;
        }
        for (v, _) in graph.values() {
            let Some(t) = graph.constant(v) else { continue };
            self.line()?;
            self.out.push_str("const ");
            self.name(graph, v);
            write!(self.out, ": {} = ", tensor_type(&TensorType::of(t)))?;
            self.content(t)?;
        }
        for (id, _) in graph.nodes() {
            self.line()?;
            self.node(graph, id)?;
        }
        for &v in graph.outputs() {
            self.line()?;
            self.out.push_str("output ");
            self.name(graph, v);
        }
        self.indent -= 1;
        self.line()?;
        self.out.push('}');
        Ok(())
    }

    fn name(&mut self, graph: &Graph, v: ValueId) {
        let name = &graph.value(v).name;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
        self.out.push('%');
        self.out.push_str(&if !name.is_empty() && name.chars().all(plain) { name.clone() } else { quoted(name) });
    }

    fn definition(&mut self, graph: &Graph, v: ValueId) -> fmt::Result {
        self.name(graph, v);
        match &graph.value(v).ty {
            ValueType::Unknown => Ok(()),
            ty => write!(self.out, ": {}", value_type(ty)),
        }
    }

    fn node(&mut self, graph: &Graph, id: NodeId) -> fmt::Result {
        let node = graph.node(id);
        for (i, v) in node.outputs.iter().enumerate() {
            self.out.push_str(if i > 0 { ", " } else { "" });
            match v {
                Some(v) => self.definition(graph, *v)?,
                None => self.out.push('_'),
            }
        }
        self.out.push_str(if node.outputs.is_empty() { "" } else { " = " });
        if !node.op.domain().is_empty() {
            write!(self.out, "{}.", node.op.domain())?;
        }
        write!(self.out, "{}(", node.op.name())?;
        for (i, v) in node.inputs.iter().enumerate() {
            self.out.push_str(if i > 0 { ", " } else { "" });
            match v {
                Some(v) => self.name(graph, *v),
                None => self.out.push('_'),
            }
        }
        self.out.push(')');
        self.attributes(graph, id)?;
        if node.name != node.op.name() {
            write!(self.out, " @{}", quoted(&node.name))?;
        }
        Ok(())
    }

    fn attributes(&mut self, graph: &Graph, id: NodeId) -> fmt::Result {
        let node = graph.node(id);
        let (attrs, bodies) = (node.op.attrs(), node.op.bodies());
        let mut first = true;
        let mut next = |out: &mut String, name: &str| {
            out.push_str(if std::mem::take(&mut first) { " {" } else { ", " });
            out.push_str(name);
            out.push('=');
        };
        for (name, attr) in attrs.iter().chain(node.extra.iter()) {
            next(self.out, name);
            self.attr(attr)?;
        }
        for (name, Body { graph, captures }) in bodies {
            next(self.out, name);
            self.graph(graph, Some(*captures))?;
        }
        self.out.push_str(if first { "" } else { "}" });
        Ok(())
    }

    fn attr(&mut self, attr: &Attr) -> fmt::Result {
        match attr {
            Attr::Float(x) => self.out.push_str(&float(f64::from(*x), true)),
            Attr::Int(i) => write!(self.out, "{i}")?,
            Attr::Str(s) => self.out.push_str(&bytes(s)),
            Attr::Tensor(t) => {
                write!(self.out, "{} ", tensor_type(&TensorType::of(t)))?;
                self.content(t)?;
            }
            Attr::Graph(g) => self.graph(g, None)?,
            Attr::Floats(v) => self.list("floats", v, |x| float(f64::from(*x), true))?,
            Attr::Ints(v) => self.list("ints", v, i64::to_string)?,
            Attr::Strs(v) => self.list("strs", v, |s| bytes(s))?,
            Attr::Tensors(v) => {
                self.out.push_str("tensors[");
                for t in v {
                    write!(self.out, "{} ", tensor_type(&TensorType::of(t)))?;
                    self.content(t)?;
                    self.out.push(' ');
                }
                self.out.push(']');
            }
            Attr::Type(t) => write!(self.out, "type {}", value_type(t))?,
            Attr::Ref { name, kind } => write!(self.out, "ref {} {kind}", quoted(name))?,
            Attr::Raw(b) => write!(self.out, "raw {}", quoted(&hex(b)))?,
        }
        Ok(())
    }

    /// An empty list says of what it is one.
    fn list<T>(&mut self, kind: &str, items: &[T], text: impl Fn(&T) -> String) -> fmt::Result {
        let kind = if items.is_empty() { kind } else { "" };
        write!(self.out, "{kind}[{}]", items.iter().map(text).collect::<Vec<_>>().join(", "))
    }

    fn content(&mut self, t: &Tensor) -> fmt::Result {
        let text: Option<Vec<String>> = if t.len() > MAX_ELEMENTS {
            None
        } else if t.dtype() == DType::String {
            t.strings().ok().map(|s| s.iter().map(|s| quoted(s)).collect())
        } else if t.dtype() == DType::F64 {
            t.to_f64s().ok().map(|v| v.into_iter().map(|x| float(x, false)).collect())
        } else if t.dtype().is_float() {
            t.to_f32s().ok().map(|v| v.iter().map(|&x| float32(x)).collect())
        } else {
            t.to_i64s().ok().map(|v| v.iter().map(i64::to_string).collect())
        };
        match text {
            Some(items) if t.rank() == 0 => self.out.push_str(&items.join(", ")),
            Some(items) => write!(self.out, "[{}]", items.join(", "))?,
            None => write!(self.out, "#{:016x}", checksum(t))?,
        }
        Ok(())
    }
}

/// FNV-1a over the bytes, and over each string with a separator.
fn checksum(t: &Tensor) -> u64 {
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
    let start = t.bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
    let strings = t.strings().unwrap_or_default();
    strings.iter().flat_map(|s| s.as_bytes().iter().chain(&[0])).fold(start, step)
}

fn float32(x: f32) -> String {
    // The shortest text of the narrower type: 0.1 and not 0.10000000149.
    format!("{x:?}").trim_end_matches(".0").to_string()
}

/// The shortest text that gives back the number; with a point or an exponent where it must not be read as an integer.
fn float(x: f64, marked: bool) -> String {
    let narrow = x as f32;
    let text = if f64::from(narrow) == x && marked { format!("{narrow:?}") } else { format!("{x:?}") };
    if marked { text } else { text.trim_end_matches(".0").to_string() }
}

fn bytes(b: &[u8]) -> String {
    match std::str::from_utf8(b) {
        Ok(s) => quoted(s),
        Err(_) => format!("bytes {}", quoted(&hex(b))),
    }
}

fn hex(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect()
}

/// In quotes; quotes, backslashes and control characters escaped.
fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn value_type(ty: &ValueType) -> String {
    match ty {
        ValueType::Unknown => "?".into(),
        ValueType::Tensor(t) => tensor_type(t),
        ValueType::Sequence(t) => format!("seq({})", value_type(t)),
        ValueType::Optional(t) => format!("optional({})", value_type(t)),
    }
}

fn tensor_type(t: &TensorType) -> String {
    let dtype = t.dtype.map_or("?", DType::name);
    match &t.shape {
        None => format!("{dtype}[..]"),
        Some(s) => format!("{dtype}[{}]", s.iter().map(dim).collect::<Vec<_>>().join(", ")),
    }
}

fn dim(d: &Dim) -> String {
    match d {
        Dim::Sym(s) => {
            let start = s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            let plain = start && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            if plain { s.to_string() } else { quoted(s) }
        }
        other => other.to_string(),
    }
}
