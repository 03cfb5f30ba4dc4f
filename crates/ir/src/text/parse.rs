use std::collections::BTreeMap;

use bytes::Bytes;
use narrowbit_tensor::{DType, SplitMix64, Tensor, shape};

use super::lex::{Token, tokens};
use crate::{Attr, AttrMap, Dim, Graph, Model, OpSource, Opaque, TensorType, ValueId, ValueType, check_limit};

/// What is wrong in a text form, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TextError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

type Result<T> = std::result::Result<T, TextError>;

/// Subgraphs and types may be nested this deep.
const MAX_DEPTH: usize = 64;
/// A short text must not take much memory.
const MAX_RANDOM: usize = 1 << 24;

/// Reads a model: a `model` line with the operator sets (opset 21 where it is missing), then the main graph.
///
/// # Errors
/// The first place where the text does not follow the form, or names an operator in a wrong way.
pub fn parse_model(text: &str, source: &dyn OpSource) -> Result<Model> {
    let mut p = Parser::new(text, source)?;
    p.header()?;
    let graph = p.graph()?;
    p.end()?;
    Ok(Model { graph, opsets: p.opsets, ir_version: 10, ..Model::default() })
}

/// Reads a graph whose operators are of one operator set; those of other domains are of version 1.
///
/// # Errors
/// As [`parse_model`].
pub fn parse_graph(text: &str, source: &dyn OpSource, opset: i64) -> Result<Graph> {
    let mut p = Parser::new(text, source)?;
    p.opsets.insert(String::new(), opset);
    let graph = p.graph()?;
    p.end()?;
    Ok(graph)
}

struct Parser<'a> {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    opsets: BTreeMap<String, i64>,
    source: &'a dyn OpSource,
}

impl<'a> Parser<'a> {
    fn new(text: &str, source: &'a dyn OpSource) -> Result<Parser<'a>> {
        Ok(Parser { tokens: tokens(text)?, at: 0, depth: 0, opsets: BTreeMap::new(), source })
    }

    fn error<T>(&self, problem: impl Into<String>) -> Result<T> {
        Err(TextError { line: self.tokens[self.at].1, problem: problem.into() })
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn eat(&mut self, token: &Token) -> bool {
        let found = self.peek() == token;
        if found {
            self.next();
        }
        found
    }

    fn sign(&mut self, c: char) -> bool {
        self.eat(&Token::Sign(c))
    }

    fn word(&mut self, w: &str) -> bool {
        matches!(self.peek(), Token::Word(x) if x == w) && self.eat(&Token::Word(w.into()))
    }

    fn expect(&mut self, c: char) -> Result<()> {
        if self.sign(c) { Ok(()) } else { self.unexpected(&format!("'{c}'")) }
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T> {
        let found = match self.peek() {
            Token::End => "the end".into(),
            Token::Value(v) => format!("%{v}"),
            Token::Word(w) | Token::Number(w) => w.clone(),
            Token::Text(t) => format!("{t:?}"),
            Token::Sign(c) => format!("'{c}'"),
        };
        self.error(format!("expected {wanted}, found {found}"))
    }

    fn any_word(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Word(w) => {
                self.next();
                Ok(w)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn text(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Text(t) => {
                self.next();
                Ok(t)
            }
            _ => self.unexpected("a text in quotes"),
        }
    }

    fn int(&mut self) -> Result<i64> {
        match self.peek().clone() {
            Token::Number(n) => match n.parse() {
                Ok(n) => {
                    self.next();
                    Ok(n)
                }
                Err(_) => self.error(format!("{n} is no integer")),
            },
            _ => self.unexpected("an integer"),
        }
    }

    fn end(&mut self) -> Result<()> {
        if *self.peek() == Token::End { Ok(()) } else { self.unexpected("the end") }
    }

    fn header(&mut self) -> Result<()> {
        if !self.word("model") {
            self.opsets.insert(String::new(), 21);
            return Ok(());
        }
        loop {
            let domain = if self.word("opset") {
                String::new()
            } else if let Token::Text(domain) = self.peek().clone() {
                self.next();
                domain
            } else {
                return Ok(());
            };
            self.expect('=')?;
            let version = self.int()?;
            self.opsets.insert(domain, version);
        }
    }

    fn graph(&mut self) -> Result<Graph> {
        if !self.word("graph") {
            return self.unexpected("graph");
        }
        self.graph_body().map(|g| g.0)
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { self.error(format!("nested deeper than {MAX_DEPTH}")) } else { Ok(()) }
    }

    /// What follows `graph`; also the number of captures, where it is given.
    fn graph_body(&mut self) -> Result<(Graph, Option<i64>)> {
        self.deeper()?;
        let mut graph = Graph::new(self.text()?);
        let mut captures = None;
        if self.word("captures") {
            self.expect('=')?;
            captures = Some(self.int()?);
        }
        self.expect('{')?;
        while !self.sign('}') {
            self.statement(&mut graph)?;
        }
        self.depth -= 1;
        Ok((graph, captures))
    }

    fn statement(&mut self, graph: &mut Graph) -> Result<()> {
        match self.peek().clone() {
            Token::Word(w) if w == "input" => {
                self.next();
                let (name, ty) = self.definition(graph)?;
                graph.add_input(&name, ty);
                Ok(())
            }
            Token::Word(w) if w == "const" => {
                self.next();
                let (name, ty) = self.definition(graph)?;
                self.expect('=')?;
                let Some(ty) = ty.tensor() else { return self.error("a constant needs a tensor type") };
                let tensor = self.content(ty)?;
                graph.add_const(&name, tensor);
                Ok(())
            }
            Token::Word(w) if w == "output" => {
                self.next();
                let v = self.value(graph)?;
                graph.add_output(v);
                Ok(())
            }
            _ => self.node(graph),
        }
    }

    fn value(&mut self, graph: &Graph) -> Result<ValueId> {
        match self.peek().clone() {
            Token::Value(name) => match graph.value_named(&name) {
                Some(v) => {
                    self.next();
                    Ok(v)
                }
                None => self.error(format!("%{name} is read before it is made")),
            },
            _ => self.unexpected("a value"),
        }
    }

    /// A new name, with a type where a colon follows.
    fn definition(&mut self, graph: &Graph) -> Result<(String, ValueType)> {
        let name = match self.peek().clone() {
            Token::Value(name) if !name.is_empty() => name,
            _ => return self.unexpected("a value"),
        };
        if graph.value_named(&name).is_some() {
            return self.error(format!("%{name} is made twice"));
        }
        self.next();
        let ty = if self.sign(':') { self.value_type()? } else { ValueType::Unknown };
        Ok((name, ty))
    }

    fn node(&mut self, graph: &mut Graph) -> Result<()> {
        let mut outputs = Vec::new();
        while matches!(self.peek(), Token::Value(_)) || *self.peek() == Token::Word("_".into()) {
            outputs.push(if self.word("_") { None } else { Some(self.definition(graph)?) });
            self.sign(',');
        }
        if !outputs.is_empty() {
            self.expect('=')?;
        }
        let line = self.tokens[self.at].1;
        let full = self.any_word()?;
        let (domain, name) = full.rsplit_once('.').unwrap_or(("", &full));
        self.expect('(')?;
        let mut inputs = Vec::new();
        while !self.sign(')') {
            inputs.push(if self.word("_") { None } else { Some(self.value(graph)?) });
            self.sign(',');
        }
        let mut attrs = if self.sign('{') { self.attributes()? } else { AttrMap::new() };
        let node = if self.sign('@') { self.text()? } else { name.to_string() };
        let version = self.opsets.get(domain).copied().unwrap_or(1);
        let op = match self.source.build(domain, name, version, &mut attrs) {
            Some(op) => op.map_err(|e| TextError { line, problem: format!("in node {node:?} ({name}): {e}") })?,
            None => {
                let attrs = std::mem::take(&mut attrs);
                std::sync::Arc::new(Opaque { domain: domain.into(), name: name.into(), attrs })
            }
        };
        let names: Vec<Option<&str>> = outputs.iter().map(|o| o.as_ref().map(|o| o.0.as_str())).collect();
        let id = graph.add_node(&node, op, inputs, &names);
        let made = graph.node(id).outputs.clone();
        for (v, out) in made.into_iter().zip(outputs) {
            if let (Some(v), Some((_, ty))) = (v, out) {
                graph.set_type(v, ty);
            }
        }
        graph.describe_node(id, attrs, String::new(), Vec::new());
        Ok(())
    }

    fn attributes(&mut self) -> Result<AttrMap> {
        let mut attrs = AttrMap::new();
        while !self.sign('}') {
            let name = self.any_word()?;
            self.expect('=')?;
            let value = self.attr(&mut attrs)?;
            attrs.set(name, value);
            self.sign(',');
        }
        Ok(attrs)
    }

    fn attr(&mut self, attrs: &mut AttrMap) -> Result<Attr> {
        match self.peek().clone() {
            Token::Number(n) => {
                self.next();
                number(&n).map_or_else(|| self.error(format!("{n} is no number")), Ok)
            }
            Token::Text(t) => {
                self.next();
                Ok(Attr::Str(Bytes::from(t)))
            }
            Token::Sign('[') => self.list(),
            Token::Word(w) => self.worded_attr(&w, attrs),
            _ => self.unexpected("an attribute's value"),
        }
    }

    fn worded_attr(&mut self, word: &str, attrs: &mut AttrMap) -> Result<Attr> {
        if DType::from_name(word).is_some() {
            let ty = self.tensor_type()?;
            return self.content(&ty).map(Attr::Tensor);
        }
        self.next();
        match word {
            "inf" | "NaN" => Ok(Attr::Float(word.parse().unwrap_or(f32::NAN))),
            "graph" => {
                let (graph, captures) = self.graph_body()?;
                if let Some(n) = captures {
                    // The name under which the importer tells it, too.
                    attrs.set("__captures", n);
                }
                Ok(Attr::Graph(Box::new(graph)))
            }
            "ints" | "floats" | "strs" => {
                let list = self.list()?;
                Ok(match word {
                    "floats" if matches!(&list, Attr::Ints(v) if v.is_empty()) => Attr::Floats(Vec::new()),
                    "strs" if matches!(&list, Attr::Ints(v) if v.is_empty()) => Attr::Strs(Vec::new()),
                    _ => list,
                })
            }
            "tensors" => {
                self.expect('[')?;
                let mut list = Vec::new();
                while !self.sign(']') {
                    let ty = self.tensor_type()?;
                    list.push(self.content(&ty)?);
                }
                Ok(Attr::Tensors(list))
            }
            "type" => self.value_type().map(Attr::Type),
            "ref" => {
                let name = self.text()?;
                Ok(Attr::Ref { name, kind: self.int()? as i32 })
            }
            "raw" => self.hex().map(Attr::Raw),
            "bytes" => self.hex().map(Attr::Str),
            other => self.error(format!("{other} begins no attribute's value")),
        }
    }

    fn hex(&mut self) -> Result<Bytes> {
        let text = self.text()?;
        let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok());
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        bytes.map_or_else(|| self.error(format!("{text:?} are no hexadecimal bytes")), |b| Ok(b.into()))
    }

    fn list(&mut self) -> Result<Attr> {
        self.expect('[')?;
        let (mut ints, mut floats, mut strs) = (Vec::new(), Vec::new(), Vec::new());
        while !self.sign(']') {
            match self.attr(&mut AttrMap::new())? {
                Attr::Int(i) => ints.push(i),
                Attr::Float(x) => floats.push(x),
                Attr::Str(s) => strs.push(s),
                _ => return self.error("a list holds numbers or texts"),
            }
            self.sign(',');
        }
        match (ints.is_empty(), floats.is_empty(), strs.is_empty()) {
            (_, true, true) => Ok(Attr::Ints(ints)),
            (true, false, true) => Ok(Attr::Floats(floats)),
            (true, true, false) => Ok(Attr::Strs(strs)),
            _ => self.error("a list holds things of one kind"),
        }
    }

    fn value_type(&mut self) -> Result<ValueType> {
        self.deeper()?;
        let wrap: Option<fn(Box<ValueType>) -> ValueType> = match self.peek() {
            Token::Word(w) if w == "seq" => Some(ValueType::Sequence),
            Token::Word(w) if w == "optional" => Some(ValueType::Optional),
            _ => None,
        };
        let ty = match wrap {
            Some(wrap) => {
                self.next();
                self.expect('(')?;
                let inner = self.value_type()?;
                self.expect(')')?;
                wrap(Box::new(inner))
            }
            None => self.plain_type()?,
        };
        self.depth -= 1;
        Ok(ty)
    }

    fn plain_type(&mut self) -> Result<ValueType> {
        let unknown = *self.peek() == Token::Sign('?');
        if unknown && self.tokens.get(self.at + 1).map(|t| &t.0) != Some(&Token::Sign('[')) {
            self.next();
            return Ok(ValueType::Unknown);
        }
        self.tensor_type().map(ValueType::Tensor)
    }

    fn tensor_type(&mut self) -> Result<TensorType> {
        let dtype = if self.sign('?') {
            None
        } else {
            let name = self.any_word()?;
            match DType::from_name(&name) {
                Some(d) => Some(d),
                None => return self.error(format!("{name} is no element type")),
            }
        };
        self.expect('[')?;
        if self.sign('.') {
            self.expect('.')?;
            self.expect(']')?;
            return Ok(TensorType { dtype, shape: None });
        }
        let mut shape = Vec::new();
        while !self.sign(']') {
            let token = self.next();
            shape.push(match token {
                Token::Number(n) => match n.parse() {
                    Ok(n) => Dim::Known(n),
                    Err(_) => return self.error(format!("{n} is no extent")),
                },
                Token::Word(s) | Token::Text(s) => Dim::sym(&s),
                Token::Sign('?') => Dim::Unknown,
                _ => return self.error("expected an extent"),
            });
            self.sign(',');
        }
        Ok(TensorType { dtype, shape: Some(shape) })
    }

    fn content(&mut self, ty: &TensorType) -> Result<Tensor> {
        let (Some(dtype), Some(shape)) = (ty.dtype, ty.concrete_shape()) else {
            return self.error("a constant needs an element type and a shape of numbers");
        };
        let n = match check_limit(dtype, &shape) {
            Ok(n) => n,
            Err(e) => return self.error(e.to_string()),
        };
        if self.sign('#') {
            return self.error("the content is left out of this text form");
        }
        if self.word("random") {
            self.expect('(')?;
            let seed = self.int()?;
            self.expect(')')?;
            if n > MAX_RANDOM {
                return self.error(format!("random content has at most {MAX_RANDOM} elements, the shape has {n}"));
            }
            return self.tensor(Tensor::from_f32s(dtype, shape, random(seed as u64, n)));
        }
        let mut items = Vec::new();
        if self.sign('[') {
            while !self.sign(']') {
                if *self.peek() == Token::End {
                    return self.unexpected("']'");
                }
                items.push(self.next());
                self.sign(',');
            }
        } else {
            items.push(self.next());
        }
        self.elements(dtype, shape, items)
    }

    /// One item for all elements, or one for each.
    fn elements(&self, dtype: DType, shape: Vec<usize>, items: Vec<Token>) -> Result<Tensor> {
        let n = shape::count(&shape).unwrap_or(0);
        if items.len() != n {
            return self.error(format!("{} elements are given, the shape has {n}", items.len()));
        }
        let mut strings = Vec::new();
        let (mut ints, mut floats) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                Token::Text(t) if dtype == DType::String => strings.push(t),
                Token::Number(t) | Token::Word(t) if dtype.is_float() => match t.parse::<f64>() {
                    Ok(x) => floats.push(x),
                    Err(_) => return self.error(format!("{t} is no number")),
                },
                Token::Number(t) => match t.parse::<i64>() {
                    Ok(i) => ints.push(i),
                    Err(_) => return self.error(format!("{t} is no integer")),
                },
                _ => return self.error("an element is no number"),
            }
        }
        self.tensor(match dtype {
            DType::String => Tensor::from_strings(shape, strings),
            DType::F32 => Tensor::new(shape, floats.into_iter().map(|x| x as f32).collect()),
            d if d.is_float() => Tensor::from_f64s(d, shape, &floats),
            d => Tensor::from_i64s(d, shape, &ints),
        })
    }

    fn tensor(&self, t: std::result::Result<Tensor, narrowbit_tensor::TensorError>) -> Result<Tensor> {
        t.map_or_else(|e| self.error(e.to_string()), Ok)
    }
}

/// An integer, or a float where there is a point, an exponent or no digit.
fn number(text: &str) -> Option<Attr> {
    match text.parse::<i64>() {
        Ok(i) => Some(Attr::Int(i)),
        Err(_) => text.parse::<f32>().ok().map(Attr::Float),
    }
}

/// Numbers in `[-1, 1)`.
fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed);
    (0..n).map(|_| rng.signed_unit()).collect()
}
