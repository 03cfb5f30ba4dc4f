//! Products whose columns are several tensors, as exporters write the queries, keys and values of attention: one product
//! for each tensor instead.
//!
//! `Split(Transpose(Reshape(x · w + b)))`, with quantization anywhere between, is for each part
//! `Transpose(Reshape(x · wᵢ + bᵢ))` with the part's columns: the same sums. What quantizes, or scales, a part behind the
//! split acts on each element alone and goes before the movements, so that the product writes the part's integers and the
//! attention reads them where they are; before, all moved twice as floats. Products of floats stay one: a copy of
//! their weights costs more memory than the movements cost time.

use std::collections::BTreeSet;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Graph, Node, NodeId, Op, OpSource, Patch, PatchError, ValueId};
use narrowbit_ops::Registry;
use narrowbit_tensor::{Tensor, shape};

/// The opset whose Transpose is written.
const OPSET: i64 = 21;

/// The graph with a product for each part.
///
/// # Errors
/// Never for a graph that verifies.
pub fn split(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    let (mut patch, mut seen) = (Patch::new(graph), BTreeSet::new());
    for (_, node) in graph.nodes() {
        if let Some(v) = node.input(0).filter(|_| matches!(node.op.name(), "Split" | "Gather"))
            && seen.insert(v)
            && let Some(product) = Product::find(graph, v)
        {
            product.split(&mut patch);
        }
    }
    if patch.is_empty() {
        return Ok(None);
    }
    let mut graph = graph.clone();
    graph.apply(patch)?;
    Ok(Some(graph))
}

/// A part of the columns.
struct Section {
    /// Along the axis that is split.
    start: usize,
    size: usize,
    out: ValueId,
    /// Whether the axis is gone.
    squeezed: bool,
}

/// What happens to each element by itself.
struct Layer<'a> {
    node: &'a Node,
    /// Which input the elements are; the others are constant.
    at: usize,
}

impl Layer<'_> {
    fn is_sum(&self) -> bool {
        self.node.op.name() == "Add"
    }
}

/// Where the columns go.
struct Moves<'a> {
    reshape: &'a Node,
    /// The shape that is made, and the axis of it that is split.
    shape: Vec<i64>,
    axis: usize,
    perm: Option<Vec<usize>>,
}

struct Product<'a> {
    graph: &'a Graph,
    node: &'a Node,
    columns: usize,
    /// From the product on.
    layers: Vec<Layer<'a>>,
    moves: Option<Moves<'a>>,
    sections: Vec<Section>,
}

impl<'a> Product<'a> {
    /// The product whose columns the readers of `v` share out.
    fn find(graph: &'a Graph, v: ValueId) -> Option<Product<'a>> {
        let (mut at, mut layers, mut perm, mut reshape) = (v, Vec::new(), None, None);
        let node = loop {
            let node = graph.node(graph.producer(at)?.0);
            let free = at == v || graph.only_use(at).is_some();
            if !free || graph.is_output(at) {
                return None;
            }
            at = match node.op.name() {
                "MatMul" | "Gemm" => break node,
                // What has an element for each column can't change places with these.
                "Transpose" | "Reshape" if layers.iter().any(Layer::is_sum) => return None,
                "Transpose" if perm.is_none() && reshape.is_none() => {
                    perm = Some(axes(node)?);
                    node.input(0)?
                }
                "Reshape" if reshape.is_none() => {
                    reshape = Some(node);
                    node.input(0)?
                }
                _ => {
                    let layer = layer(graph, node)?;
                    let x = layer.node.input(layer.at)?;
                    layers.push(layer);
                    x
                }
            };
        };
        layers.reverse();
        let (codes, axis) = weights(graph, node)?;
        let columns = codes.shape()[axis];
        let moves = match reshape {
            Some(reshape) => Some(Moves { reshape, ..moves(graph, reshape, perm)? }),
            None if perm.is_some() => return None,
            None => None,
        };
        let mut product = Product { graph, node, columns, layers, moves, sections: Vec::new() };
        let unit = match &mut product.moves {
            None => 1,
            Some(m) => m.split_at(graph, v, columns)?,
        };
        product.sections = product.sections_of(v, columns / unit)?;
        (product.sections.len() > 1).then_some(product)
    }

    /// The parts that the readers of `v` take, where there are `count` along their axis.
    fn sections_of(&self, v: ValueId, count: usize) -> Option<Vec<Section>> {
        let graph = self.graph;
        let axis = |node: &Node| match &self.moves {
            Some(m) => Some(node.op.attrs().int_or("axis", 0).ok()? == m.position() as i64),
            // Without a Reshape it is the last one.
            None => {
                let axis = node.op.attrs().int_or("axis", 0).ok()?;
                let rank = graph.value(v).ty.tensor().and_then(|t| Some(t.shape.as_ref()?.len()));
                Some(axis == -1 || rank.is_some_and(|r| axis + 1 == r as i64))
            }
        };
        if let Some(only) = graph.only_use(v).filter(|_| !graph.is_output(v)) {
            let node = graph.node(only.node);
            if node.op.name() != "Split" || !axis(node)? {
                return None;
            }
            let sizes = sizes(graph, node, count)?;
            let mut start = 0;
            let mut sections = Vec::new();
            for (out, size) in node.outputs.iter().zip(sizes) {
                // Sizes are the file's, and need not add up.
                if size > count - start {
                    return None;
                }
                if let Some(out) = *out {
                    sections.push(Section { start, size, out, squeezed: false });
                }
                start += size;
            }
            return (start == count).then_some(sections);
        }
        let gathered = graph.uses(v).iter().map(|u| {
            let node = graph.node(u.node);
            if node.op.name() != "Gather" || u.input != 0 || self.moves.is_none() || !axis(node)? {
                return None;
            }
            let index = graph.constant(node.input(1)?).filter(|t| t.rank() == 0)?.to_i64s().ok()?;
            let start = shape::axis(*index.first()?, count)?;
            Some(Section { start, size: 1, out: node.output(0)?, squeezed: true })
        });
        gathered.collect()
    }

    /// Puts the products of the parts in the place of the one.
    fn split(&self, patch: &mut Patch) -> Option<()> {
        // All or none: a part that can't be made would keep the whole product alive.
        let tails: Vec<Tail> = self.sections.iter().map(|s| self.tail(s)).collect();
        let unit = self.columns / self.count();
        let fits = |s: &Section| self.slices(s.start * unit, s.size * unit);
        let slices: Option<Vec<Vec<Vec<Operand>>>> = self.sections.iter().map(fits).collect();
        for ((section, tail), slices) in self.sections.iter().zip(tails).zip(slices?) {
            let name = |node: &Node| format!("{}_{}", node.name, section.start);
            let mut slices = slices.into_iter();
            let mut y = emit(patch, &name(self.node), self.node, None, slices.next()?);
            for (layer, operands) in self.layers.iter().zip(slices) {
                y = emit(patch, &name(layer.node), layer.node, Some((layer.at, y)), operands);
            }
            for layer in &tail.layers {
                let mut inputs = layer.node.inputs.clone();
                inputs[layer.at] = Some(y);
                y = patch.node(&name(layer.node), Arc::clone(&layer.node.op), &inputs);
            }
            if let Some(m) = &self.moves {
                let target = m.target(section.size, tail.squeezed)?;
                let target = patch.constant(&format!("{}_shape", name(m.reshape)), Tensor::vector(target));
                y = patch.node(&name(m.reshape), Arc::clone(&m.reshape.op), &[Some(y), Some(target)]);
            }
            if tail.perm.iter().enumerate().any(|(i, &p)| i != p) {
                let perm: Vec<i64> = tail.perm.iter().map(|&p| p as i64).collect();
                let op = transpose(perm)?;
                y = patch.node(&format!("{}_moved", name(self.node)), op, &[Some(y)]);
            }
            patch.replace(tail.end, y);
        }
        Some(())
    }

    /// Parts along the axis that is split.
    fn count(&self) -> usize {
        self.moves.as_ref().map_or(self.columns, |m| m.count())
    }

    /// The constants of the product and of each layer, for columns from `from` on.
    fn slices(&self, from: usize, n: usize) -> Option<Vec<Vec<Operand<'a>>>> {
        let (graph, columns) = (self.graph, self.columns);
        let part = Part { graph, columns, from, n };
        let mut all = Vec::new();
        let mut product = vec![Operand::Same(self.node.input(0)?), part.weights(self.node)?];
        if let Some(c) = self.node.input(2) {
            product.push(part.operand(c)?);
        }
        all.push(product);
        for layer in &self.layers {
            let others = layer.node.inputs.iter().enumerate().filter(|(i, _)| *i != layer.at);
            let others: Option<Vec<Operand>> = others.map(|(_, v)| part.operand((*v)?)).collect();
            all.push(others?);
        }
        Some(all)
    }

    /// What follows a part and can go with it.
    fn tail(&self, section: &Section) -> Tail<'a> {
        let perm = self.moves.as_ref().map_or_else(Vec::new, |m| m.perm_of(section.squeezed));
        let mut tail = Tail { layers: Vec::new(), perm, squeezed: section.squeezed, end: section.out };
        let Some(m) = &self.moves else { return tail };
        let mut pending = Vec::new();
        let (mut at, mut perm, mut squeezed) = (section.out, tail.perm.clone(), tail.squeezed);
        while let Some(node) = self.next(at) {
            match node.op.name() {
                "Squeeze" if !squeezed && section.size == 1 && self.squeezes(node, position(&perm, m.axis)) => {
                    squeezed = true;
                    perm = without(&perm, m.axis);
                }
                "Transpose" => match axes(node).filter(|p| p.len() == perm.len()) {
                    Some(next) => perm = next.iter().map(|&i| perm[i]).collect(),
                    None => break,
                },
                _ => match scalar_layer(self.graph, node) {
                    Some(layer) => pending.push(layer),
                    None => break,
                },
            }
            let Some(y) = node.output(0) else { break };
            at = y;
            // A factor goes along only where a rounding follows: attention looks for it behind the movements.
            if pending.is_empty() || matches!(node.op.name(), "QuantizeLinear" | "QLinearMul") {
                tail.layers.append(&mut pending);
                (tail.perm, tail.squeezed, tail.end) = (perm.clone(), squeezed, at);
            }
        }
        tail
    }

    /// The node that alone reads a value.
    fn next(&self, v: ValueId) -> Option<&'a Node> {
        let only = self.graph.only_use(v).filter(|u| u.input == 0 && !self.graph.is_output(v))?;
        let node = self.graph.node(only.node);
        (node.outputs.iter().flatten().count() == 1).then_some(node)
    }

    fn squeezes(&self, node: &Node, axis: usize) -> bool {
        let axes = match node.input(1) {
            Some(axes) => self.graph.constant(axes).and_then(|t| t.to_i64s().ok()),
            None => node.op.attrs().ints("axes").ok().flatten(),
        };
        axes.is_some_and(|a| a == [axis as i64])
    }
}

/// What follows a part: layers, then axes in another order, up to a value.
struct Tail<'a> {
    layers: Vec<Layer<'a>>,
    perm: Vec<usize>,
    squeezed: bool,
    end: ValueId,
}

impl Moves<'_> {
    /// Finds the axis that is split: the reader's, which has to be the first of those that the columns become. Returns the columns
    /// of each place on it.
    fn split_at(&mut self, graph: &Graph, v: ValueId, columns: usize) -> Option<usize> {
        let reader = graph.node(graph.uses(v).first()?.node);
        let axis = reader.op.attrs().int_or("axis", 0).ok()?;
        let axis = shape::axis(axis, self.shape.len())?;
        self.axis = self.perm.as_ref().map_or(axis, |p| p[axis]);
        let inner: Option<Vec<usize>> =
            self.shape[self.axis..].iter().map(|&d| usize::try_from(d).ok().filter(|&d| d > 0)).collect();
        let inner = inner?;
        (shape::count(&inner).ok()? == columns && self.axis > 0).then(|| columns / inner[0])
    }

    fn count(&self) -> usize {
        self.shape[self.axis] as usize
    }

    /// Where the axis is behind the Transpose.
    fn position(&self) -> usize {
        self.perm.as_ref().map_or(self.axis, |p| position(p, self.axis))
    }

    /// The shape of a part.
    fn target(&self, size: usize, squeezed: bool) -> Option<Vec<i64>> {
        let mut shape = self.shape.clone();
        if squeezed {
            shape.remove(self.axis);
        } else {
            shape[self.axis] = i64::try_from(size).ok()?;
        }
        Some(shape)
    }

    /// The order of its axes.
    fn perm_of(&self, squeezed: bool) -> Vec<usize> {
        let perm = self.perm.clone().unwrap_or_else(|| (0..self.shape.len()).collect());
        if squeezed { without(&perm, self.axis) } else { perm }
    }
}

/// Where an axis goes.
fn position(perm: &[usize], axis: usize) -> usize {
    perm.iter().position(|&a| a == axis).unwrap_or(axis)
}

/// An order of axes without one of them.
fn without(perm: &[usize], axis: usize) -> Vec<usize> {
    perm.iter().filter(|&&a| a != axis).map(|&a| a - usize::from(a > axis)).collect()
}

/// A Reshape to a known shape; its axis is found later.
fn moves<'a>(graph: &'a Graph, reshape: &'a Node, perm: Option<Vec<usize>>) -> Option<Moves<'a>> {
    let shape = graph.constant(reshape.input(1)?)?.to_i64s().ok()?;
    let fits = perm.as_ref().is_none_or(|p| p.len() == shape.len());
    let plain = reshape.op.attrs().int_or("allowzero", 0) == Ok(0);
    (fits && plain).then_some(Moves { reshape, shape, axis: 0, perm })
}

/// An operator that acts on each element alone: with one constant for all, or the sum with one for each column.
fn layer<'a>(graph: &'a Graph, node: &'a Node) -> Option<Layer<'a>> {
    if node.op.name() == "Add" {
        let known = |i: usize| node.input(i).is_some_and(|v| is_constant(graph, v));
        let at = if known(1) { 0 } else { 1 };
        return (known(0) != known(1)).then_some(Layer { node, at });
    }
    scalar_layer(graph, node)
}

/// As [`layer`], with one constant for all.
fn scalar_layer<'a>(graph: &'a Graph, node: &'a Node) -> Option<Layer<'a>> {
    let single =
        |v: &Option<ValueId>| v.is_none_or(|v| graph.constant(v).is_some_and(|t| t.len() == 1 && t.rank() <= 1));
    let fits = matches!(node.op.name(), "QuantizeLinear" | "DequantizeLinear" | "Mul" | "Div" | "QLinearMul");
    (fits && node.inputs.len() > 1 && node.inputs[1..].iter().all(single)).then_some(Layer { node, at: 0 })
}

/// Whether a value is a constant, or one behind a DequantizeLinear.
fn is_constant(graph: &Graph, v: ValueId) -> bool {
    let known = |v: &ValueId| graph.constant(*v).is_some();
    let dequantized = |(id, _): (NodeId, usize)| {
        let node = graph.node(id);
        node.op.name() == "DequantizeLinear" && node.inputs.iter().flatten().all(known)
    };
    known(&v) || graph.producer(v).is_some_and(dequantized)
}

/// The integers of a product's weights, and the axis of its columns.
fn weights<'a>(graph: &'a Graph, product: &Node) -> Option<(&'a Tensor, usize)> {
    let dequantize = graph.node(graph.producer(product.input(1)?)?.0);
    let codes = graph.constant(dequantize.input(0).filter(|_| dequantize.op.name() == "DequantizeLinear")?)?;
    let axis = crate::lower::channel_axis(product, 2);
    (codes.rank() == 2 && !codes.is_empty() && !codes.dtype().is_packed()).then_some((codes, axis))
}

/// The sizes of the parts of a Split.
fn sizes(graph: &Graph, node: &Node, count: usize) -> Option<Vec<usize>> {
    let given = match node.input(1) {
        Some(sizes) => Some(graph.constant(sizes)?.to_i64s().ok()?),
        None => node.op.attrs().ints("split").ok()?,
    };
    match given {
        Some(sizes) => sizes.into_iter().map(|s| usize::try_from(s).ok()).collect(),
        None => {
            let parts = node.outputs.len();
            count.is_multiple_of(parts.max(1)).then(|| vec![count / parts; parts])
        }
    }
}

/// The axes of a Transpose that names them.
fn axes(node: &Node) -> Option<Vec<usize>> {
    let perm = node.op.attrs().ints("perm").ok()??;
    let axes: Option<Vec<usize>> = perm.iter().map(|&a| usize::try_from(a).ok().filter(|&a| a < perm.len())).collect();
    axes
}

fn transpose(perm: Vec<i64>) -> Option<Arc<dyn Op>> {
    Registry.build("", "Transpose", OPSET, &mut AttrMap::new().with("perm", perm))?.ok()
}

/// An input of a part's node.
enum Operand<'a> {
    /// What the whole product has.
    Same(ValueId),
    /// A part of a constant.
    Part(Tensor),
    /// A part of one behind a DequantizeLinear: its integers, scale and zero point.
    Dequantized(&'a Node, Vec<Operand<'a>>),
}

/// Adds a node of these operands, with `x` among them.
fn emit(patch: &mut Patch, name: &str, node: &Node, x: Option<(usize, ValueId)>, operands: Vec<Operand>) -> ValueId {
    let mut inputs: Vec<Option<ValueId>> = Vec::new();
    for (i, operand) in operands.into_iter().enumerate() {
        inputs.push(Some(match operand {
            Operand::Same(v) => v,
            Operand::Part(t) => patch.constant(&format!("{name}_{i}"), t),
            Operand::Dequantized(dequantize, parts) => {
                emit(patch, &format!("{name}_{i}_dequantized"), dequantize, None, parts)
            }
        }));
    }
    if let Some((at, x)) = x {
        inputs.insert(at, Some(x));
    }
    patch.node(name, Arc::clone(&node.op), &inputs)
}

/// Some of the columns.
#[derive(Clone, Copy)]
struct Part<'a> {
    graph: &'a Graph,
    columns: usize,
    from: usize,
    n: usize,
}

impl<'a> Part<'a> {
    fn weights(&self, product: &Node) -> Option<Operand<'a>> {
        let (_, axis) = weights(self.graph, product)?;
        self.dequantized(product.input(1)?, axis)
    }

    /// A constant row, or one for all.
    fn operand(&self, v: ValueId) -> Option<Operand<'a>> {
        match self.graph.constant(v) {
            Some(t) if t.len() == 1 => Some(Operand::Same(v)),
            Some(t) => Some(Operand::Part(self.cut(t, t.rank().checked_sub(1)?)?)),
            None => {
                let x = self.graph.node(self.graph.producer(v)?.0).input(0)?;
                self.dequantized(v, self.graph.constant(x)?.rank().checked_sub(1)?)
            }
        }
    }

    /// A part along `axis` of a constant behind a DequantizeLinear of one scale, or of one for each column.
    fn dequantized(&self, v: ValueId, axis: usize) -> Option<Operand<'a>> {
        let node = self.graph.node(self.graph.producer(v)?.0);
        let codes = self.graph.constant(node.input(0).filter(|_| node.op.name() == "DequantizeLinear")?)?;
        let attrs = node.op.attrs();
        if attrs.clone().int_or("block_size", 0).ok()? != 0 {
            return None;
        }
        let along = shape::axis(attrs.clone().int_or("axis", 1).ok()?, codes.rank().max(1));
        let mut parts = vec![Operand::Part(self.cut(codes, axis)?)];
        for v in node.inputs.iter().skip(1).flatten() {
            let t = self.graph.constant(*v)?;
            parts.push(match t.len() {
                1 => Operand::Same(*v),
                _ if t.rank() == 1 && along == Some(axis) => Operand::Part(self.cut(t, 0)?),
                _ => return None,
            });
        }
        Some(Operand::Dequantized(node, parts))
    }

    /// Elements of the columns, which lie along `axis`.
    fn cut(&self, t: &Tensor, axis: usize) -> Option<Tensor> {
        let dims = t.shape();
        if *dims.get(axis)? != self.columns || self.from + self.n > self.columns {
            return None;
        }
        let element = t.dtype().byte_len(1)?;
        let inner = dims[axis + 1..].iter().product::<usize>() * element;
        let rows: usize = dims[..axis].iter().product();
        let mut bytes = Vec::with_capacity(rows * self.n * inner);
        for row in 0..rows {
            let start = (row * self.columns + self.from) * inner;
            bytes.extend_from_slice(t.bytes().get(start..start + self.n * inner)?);
        }
        let mut shape = dims.to_vec();
        shape[axis] = self.n;
        Tensor::from_bytes(t.dtype(), shape, bytes).ok()
    }
}
