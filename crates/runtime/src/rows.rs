//! Rows that are taken out of a result, as the class token of a vision transformer is, before the operators that compute
//! each row by itself: rows that nobody reads are not computed.
//!
//! Of a float graph the pass `select-early` does the same; here it reaches through QuantizeLinear and DequantizeLinear, the
//! operators of other tools' quantized files, and attention. Where a range is found at run time for all rows of a tensor
//! (DynamicQuantizeLinear), rows are taken behind it. The rows that are computed get the bits that they would have had.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Graph, Node, NodeId, Patch, PatchError, ValueId};
use narrowbit_ops::math::softmax::Softmax;
use narrowbit_tensor::{Tensor, shape};

use crate::scene::{Scene, op, rewrite, same};

/// Places where rows are taken, at the most.
const PLACES: usize = 8;

/// Operators of one operand.
const UNARY: &[&str] = &[
    "Abs",
    "Cast",
    "Clip",
    "Elu",
    "Erf",
    "Exp",
    "FastGelu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsNaN",
    "LeakyRelu",
    "Neg",
    "QLinearLeakyRelu",
    "QLinearSigmoid",
    "QuickGelu",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Sqrt",
    "Swish",
    "Tanh",
];

/// Operators of several operands that repeat along axes of one element, by the inputs that these are.
const BINARY: &[(&str, &[usize])] = &[
    ("Add", &[0, 1]),
    ("Sub", &[0, 1]),
    ("Mul", &[0, 1]),
    ("Div", &[0, 1]),
    ("Pow", &[0, 1]),
    ("Where", &[0, 1, 2]),
    ("QLinearAdd", &[0, 3]),
    ("QLinearMul", &[0, 3]),
];

/// The graph that takes rows early; `None` where it has none to take.
///
/// # Errors
/// Never for a graph that verifies.
pub fn select(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    let picks = |n: &Node| matches!(n.op.name(), "Gather" | "Slice");
    if !graph.nodes().any(|(_, n)| picks(n)) {
        return Ok(None);
    }
    rewrite(graph, PLACES, |scene| {
        scene.graph.nodes().filter(|(_, n)| picks(n)).find_map(|(id, node)| Region::find(scene, id, node)?.patch())
    })
}

/// The rows that are taken.
struct Pick {
    /// What they are taken from, and along which axis of it.
    x: ValueId,
    axis: usize,
    indices: Vec<i64>,
    /// Whether the axis goes away.
    drops: bool,
}

impl Pick {
    /// A Gather or Slice of at most half of the rows.
    fn of(scene: &Scene, node: &Node) -> Option<Pick> {
        let (x, mut attrs) = (node.input(0)?, node.op.attrs());
        let dims = scene.shape(x)?;
        let ints = |i: usize| scene.constant(node.input(i)?)?.to_i64s().ok();
        let (axis, indices, drops) = match node.op.name() {
            "Gather" => {
                let indices = scene.constant(node.input(1)?).filter(|t| t.rank() <= 1)?;
                (attrs.int_or("axis", 0).ok()?, indices.to_i64s().ok()?, indices.rank() == 0)
            }
            _ => {
                let ([start], [end], [axis]) = (&ints(1)?[..], &ints(2)?[..], &ints(3)?[..]) else { return None };
                let forward = node.input(4).is_none() || ints(4)? == [1];
                let few = *start >= 0 && end > start && end - start <= 1 << 16;
                (*axis, (few && forward).then(|| (*start..*end).collect())?, false)
            }
        };
        let axis = shape::axis(axis, dims.len())?;
        let rows = dims[axis].as_usize()?;
        let known = |&i: &i64| shape::axis(i, rows).is_some();
        let few = !indices.is_empty() && 2 * indices.len() <= rows && indices.iter().all(known);
        (few && axis + 1 < dims.len()).then_some(Pick { x, axis, indices, drops })
    }
}

/// The nodes that compute taken rows only, and the axis of rows of what they read and make.
struct Region<'a> {
    scene: &'a Scene<'a>,
    pick: Pick,
    y: ValueId,
    /// By node: the axis of the rows of each input that has them.
    nodes: BTreeMap<NodeId, Vec<Option<usize>>>,
    axes: BTreeMap<ValueId, usize>,
}

impl<'a> Region<'a> {
    fn find(scene: &'a Scene<'a>, root: NodeId, node: &Node) -> Option<Region<'a>> {
        let pick = Pick::of(scene, node)?;
        let axes = [(pick.x, pick.axis)].into();
        let mut region = Region { scene, pick, y: node.output(0)?, nodes: BTreeMap::new(), axes };
        for &id in scene.graph.order().iter().rev() {
            region.enter(id, root);
        }
        let product = |id: &NodeId| matches!(scene.graph.node(*id).op.name(), "MatMul" | "Gemm" | "MatMulNBits");
        region.nodes.keys().any(product).then_some(region)
    }

    /// Takes a node in where all readers of its results are: they come first.
    fn enter(&mut self, id: NodeId, root: NodeId) -> Option<()> {
        let (graph, node) = (self.scene.graph, self.scene.graph.node(id));
        let mut axis = None;
        for &v in node.outputs.iter().flatten() {
            let inside = graph.uses(v).iter().all(|u| {
                u.node == root
                    || self.nodes.get(&u.node).is_some_and(|axes| axes.get(u.input).is_some_and(Option::is_some))
            });
            let of = self.axes.get(&v).copied().filter(|_| inside && !graph.is_output(v))?;
            (*axis.get_or_insert(of) == of).then_some(())?;
        }
        let axes = self.operands(node, axis?)?;
        let wanted = || node.inputs.iter().zip(&axes).filter_map(|(v, axis)| Some(((*v)?, (*axis)?)));
        // A value whose rows lie along two axes would be cut twice.
        if wanted().any(|(v, axis)| self.axes.get(&v).is_some_and(|&other| other != axis)) {
            return None;
        }
        self.axes.extend(wanted());
        self.nodes.insert(id, axes);
        Some(())
    }

    /// The axis of the rows of each input, where those of the results lie along `axis`; `None` where a result depends on
    /// other rows too, or the operator is not known.
    fn operands(&self, node: &Node, axis: usize) -> Option<Vec<Option<usize>>> {
        let (scene, name, y) = (self.scene, node.op.name(), *node.outputs.first()?);
        let (x, out) = (node.input(0)?, scene.shape(y?)?);
        let mut axes = vec![None; node.inputs.len()];
        let rank = scene.shape(x)?.len();
        if UNARY.contains(&name) {
            axes[0] = Some(axis);
            return (rank == out.len()).then_some(axes);
        }
        if let Some((_, data)) = BINARY.iter().find(|(n, _)| *n == name) {
            for &i in *data {
                axes[i] = self.along(node.input(i)?, out.len(), axis)?;
            }
            return Some(axes);
        }
        let last = |default| Some(shape::axis(node.op.attrs().int_or("axis", default).ok()?, rank)? > axis);
        axes[0] = Some(axis);
        let fits = match name {
            "LayerNormalization" | "RMSNormalization" => last(-1)? && node.outputs.len() == 1,
            // Before opset 13 the default is the second axis, and a row spans all axes from it on.
            "Softmax" => last(if node.op.downcast::<Softmax>()?.flattened { 1 } else { -1 })?,
            "QLinearSoftmax" => node.op.attrs().int_or("opset", 13).ok()? >= 13 && last(-1)?,
            "DynamicQuantizeRows" => true,
            "QuantizeLinear" | "DequantizeLinear" => self.codes(node, axis, &mut axes)?,
            "MatMulNBits" => axis + 2 == out.len() && rank == out.len(),
            "MatMul" => self.product(node, axis, out.len(), &mut axes)?,
            "Gemm" => {
                let plain = node.op.attrs().int_or("transA", 0) == Ok(0);
                axes[0] = Some(0);
                if let Some(c) = node.input(2) {
                    axes[2] = self.along(c, 2, 0)?;
                }
                plain && axis == 0
            }
            "Transpose" => {
                axes[0] = Some(*scene.perm(node)?.get(axis)?);
                true
            }
            _ if crate::ops::is_alias(node) => {
                axes[0] = Some(self.before_reshape(x, y?, axis)?);
                true
            }
            _ => false,
        };
        fits.then_some(axes)
    }

    /// Where `axis` of a result of `rank` axes is among those of an operand that may repeat: `Some(None)` where it repeats.
    fn along(&self, v: ValueId, rank: usize, axis: usize) -> Option<Option<usize>> {
        let dims = self.scene.shape(v)?;
        let Some(at) = (axis + dims.len()).checked_sub(rank) else { return Some(None) };
        match dims.get(at)?.as_usize()? {
            1 => Some(None),
            _ => Some(Some(at)),
        }
    }

    fn product(&self, node: &Node, axis: usize, rank: usize, axes: &mut [Option<usize>]) -> Option<bool> {
        let ranks = [node.input(0)?, node.input(1)?].map(|v| self.scene.shape(v).map(<[_]>::len));
        if axis + 1 == rank || ranks.iter().any(|r| r.is_none_or(|r| r < 2)) {
            return None;
        }
        axes[0] = self.along(node.input(0)?, rank, axis)?;
        axes[1] = if axis + 2 == rank { None } else { self.along(node.input(1)?, rank, axis)? };
        Some(axes[0].is_some() || axes[1].is_some())
    }

    /// Scales and zero points go along another axis, or with each block of a row.
    fn codes(&self, node: &Node, axis: usize, axes: &mut [Option<usize>]) -> Option<bool> {
        let (x, scale) = (self.scene.shape(node.input(0)?)?, self.scene.shape(node.input(1)?)?);
        if scale.iter().all(|d| d.as_usize() == Some(1)) && scale.len() <= 1 {
            return Some(true);
        }
        let along = shape::axis(node.op.attrs().int_or("axis", 1).ok()?, x.len())?;
        if node.op.attrs().int_or("block_size", 0).ok()? != 0 {
            axes.iter_mut().for_each(|a| *a = Some(axis));
        }
        Some(along != axis)
    }

    /// The axis of `x` that becomes `axis` of its form `y`, where all before it are joined or parted alike.
    fn before_reshape(&self, x: ValueId, y: ValueId, axis: usize) -> Option<usize> {
        let (from, to) = (self.scene.shape(x)?, self.scene.shape(y)?);
        let count = |dims: &[narrowbit_ir::Dim]| -> Option<usize> { dims.iter().map(|d| d.as_usize()).product() };
        (0..from.len()).find(|&at| {
            let before = same(&from[..at], &to[..axis])
                || count(&from[..at]).zip(count(&to[..axis])).is_some_and(|(a, b)| a == b);
            before && from[at].same(&to[axis])
        })
    }

    /// The edit.
    fn patch(self) -> Option<Patch> {
        let (graph, mut patch) = (self.scene.graph, Patch::new(self.scene.graph));
        let indices = patch.constant("rows_taken", Tensor::vector(self.pick.indices.clone()));
        let mut taken: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for &id in graph.order().iter().filter(|id| self.nodes.contains_key(id)) {
            let (node, axes) = (graph.node(id), self.nodes.get(&id)?);
            let mut inputs = node.inputs.clone();
            for (input, axis) in inputs.iter_mut().zip(axes) {
                if let (Some(v), Some(axis)) = (*input, *axis) {
                    *input = Some(self.taken(&mut patch, v, axis, indices, &mut taken)?);
                }
            }
            let name = |v: ValueId| format!("{}_taken", graph.value(v).name);
            if crate::ops::is_alias(node) {
                let (x, y) = (*inputs.first()?, node.output(0)?);
                let shape = patch.constant(&format!("{}_shape", name(y)), Tensor::vector(self.shape_of(y)?));
                let rows = patch.node(&name(y), op("Reshape", AttrMap::new())?, &[x, Some(shape)]);
                taken.insert(y, rows);
                continue;
            }
            let names: Vec<Option<String>> = node.outputs.iter().map(|v| v.map(name)).collect();
            let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
            let made = patch.node_outputs(&node.name, Arc::clone(&node.op), &inputs, &names);
            taken.extend(node.outputs.iter().zip(made).filter_map(|(old, new)| Some(((*old)?, new?))));
        }
        let mut y = *taken.get(&self.pick.x)?;
        if self.pick.drops {
            let axes = patch.constant("rows_axis", Tensor::vector(vec![self.pick.axis as i64]));
            y = patch.node("row", op("Squeeze", AttrMap::new())?, &[Some(y), Some(axes)]);
        }
        patch.replace(self.y, y);
        Some(patch)
    }

    /// The rows of a value. Those of a DequantizeLinear that others read whole are taken out of its codes, so that products
    /// on integers still read codes.
    fn taken(
        &self,
        patch: &mut Patch,
        v: ValueId,
        axis: usize,
        indices: ValueId,
        taken: &mut BTreeMap<ValueId, ValueId>,
    ) -> Option<ValueId> {
        if let Some(&rows) = taken.get(&v) {
            return Some(rows);
        }
        let name = format!("{}_taken", self.scene.graph.value(v).name);
        let codes = self.scene.maker(v).and_then(|(_, node)| {
            let axes = (node.op.name() == "DequantizeLinear").then(|| self.operands(node, axis))??;
            // As in the region: no value is cut along two axes.
            let one = |(v, a): (&Option<ValueId>, &Option<usize>)| {
                v.zip(*a).is_none_or(|(v, a)| self.axes.get(&v).is_none_or(|&known| known == a))
            };
            node.inputs.iter().zip(&axes).all(one).then_some((node, axes))
        });
        let rows = match codes {
            Some((node, axes)) => {
                let mut inputs = node.inputs.clone();
                for (input, axis) in inputs.iter_mut().zip(axes) {
                    if let (Some(v), Some(axis)) = (*input, axis) {
                        *input = Some(self.taken(patch, v, axis, indices, taken)?);
                    }
                }
                patch.node(&name, Arc::clone(&node.op), &inputs)
            }
            None => {
                let gather = op("Gather", AttrMap::new().with("axis", axis as i64))?;
                patch.node(&name, gather, &[Some(v), Some(indices)])
            }
        };
        taken.insert(v, rows);
        Some(rows)
    }

    /// The extents of a value with the taken rows alone, for a Reshape.
    fn shape_of(&self, v: ValueId) -> Option<Vec<i64>> {
        let axis = *self.axes.get(&v)?;
        let mut shape: Vec<i64> = self
            .scene
            .shape(v)?
            .iter()
            .map(|d| d.as_usize().and_then(|d| i64::try_from(d).ok()).unwrap_or(-1))
            .collect();
        *shape.get_mut(axis)? = i64::try_from(self.pick.indices.len()).ok()?;
        (shape.iter().filter(|&&d| d < 0).count() <= 1 && !shape.contains(&0)).then_some(shape)
    }
}
