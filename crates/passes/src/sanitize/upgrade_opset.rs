//! The pass [`UpgradeOpset`].

use std::sync::Arc;

use narrowbit_import::onnx::ir_version_of;
use narrowbit_ir::{Attr, AttrMap, Body, Dim, Graph, Model, NodeError, NodeId, Op, OpError, Opaque, Patch, ValueId};
use narrowbit_ops::Registry;
use narrowbit_ops::math::softmax::Softmax;
use narrowbit_tensor::{DType, Tensor};

use crate::{Pass, PassCx, PassError, Stage};

/// **What it does:** brings a model to a newer version of ONNX's operator set: attributes that became
/// inputs (Squeeze, Unsqueeze, Split, ReduceSum, Clip, Pad, Slice, TopK, Reduce*), operators that were
/// renamed (Upsample to Resize, Scatter to ScatterElements), meanings that changed (Softmax of a
/// flattened matrix, GroupNormalization's scale per group).
///
/// **When it applies:** to models below [`crate::SanitizeOptions::min_opset`], and when a recognised function
/// needs a newer operator. Not where an operator of ONNX's domain is unknown or has no newer form.
///
/// **Numerical effect:** none.
///
/// **Example:** `y = Squeeze(x) {axes=[1]}` → `y = Squeeze(x, [1])`.
#[derive(Debug, Clone, Copy)]
pub struct UpgradeOpset;

impl Pass for UpgradeOpset {
    fn name(&self) -> &'static str {
        "upgrade-opset"
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    fn doc(&self) -> &'static str {
        "Brings a model to a newer version of ONNX's operator set."
    }

    /// The operator set belongs to the model: the manager calls [`upgrade`].
    fn run(&self, _: &mut PassCx) -> Result<(), PassError> {
        Ok(())
    }
}

/// Checks that [`upgrade`] would succeed, as far as that can be said without doing it.
///
/// # Errors
/// The first node that has no form in the newer operator set.
pub fn check(model: &Model, to: i64) -> Result<(), Box<NodeError>> {
    if model.opset() >= to { Ok(()) } else { check_graph(&model.graph, model.opset(), to) }
}

fn check_graph(graph: &Graph, from: i64, to: i64) -> Result<(), Box<NodeError>> {
    for (_, node) in graph.nodes() {
        let refuse = |why: &str| {
            let error = OpError::Unsupported(format!("{why}; the model stays at opset {from}"));
            Err(Box::new(NodeError { node: node.name.clone(), op: node.op.name().into(), error }))
        };
        let op = &node.op;
        if op.is::<Opaque>() && op.domain().is_empty() {
            return refuse(&format!("what became of {} by opset {to} is not known", op.name()));
        }
        if op.name() == "Scan" && from < 9 && to >= 9 {
            return refuse("Scan of opset 8 has a batch axis, which later versions have not");
        }
        if op.name() == "BatchNormalization" && from < 14 && node.outputs.iter().skip(1).any(Option::is_some) {
            return refuse("BatchNormalization in training mode has other outputs from opset 14 on");
        }
        for (_, body) in op.bodies() {
            check_graph(&body.graph, from, to)?;
        }
    }
    Ok(())
}

/// Brings a model to the operator set `to`; one that is newer stays as it is.
///
/// # Errors
/// The first node that has no form in the newer operator set. The model is then unchanged.
pub fn upgrade(model: &mut Model, to: i64) -> Result<(), Box<NodeError>> {
    let from = model.opset();
    check(model, to)?;
    if from >= to {
        return Ok(());
    }
    let mut graph = model.graph.clone();
    upgrade_graph(&mut graph, from, to)?;
    model.graph = graph;
    model.opsets.remove("ai.onnx");
    model.opsets.insert(String::new(), to);
    model.ir_version = model.ir_version.max(ir_version_of(to));
    Ok(())
}

fn upgrade_graph(graph: &mut Graph, from: i64, to: i64) -> Result<(), Box<NodeError>> {
    let facts = crate::pass::facts_of(graph);
    for id in graph.order().to_vec() {
        let node = graph.node(id);
        if !node.op.domain().is_empty() {
            continue;
        }
        let (name, op) = (node.name.clone(), node.op.name().to_string());
        let place = |error| Box::new(NodeError { node: name.clone(), op: op.clone(), error });
        let patch = if node.op.bodies().is_empty() {
            Some(upgrade_node(graph, &facts, id, from, to).map_err(place)?)
        } else {
            upgrade_bodies(graph, id, from, to)?
        };
        let broken = |e: narrowbit_ir::PatchError| place(OpError::Unsupported(e.to_string()));
        if let Some(patch) = patch {
            graph.apply(patch).map_err(broken)?;
        }
    }
    Ok(())
}

fn upgrade_bodies(graph: &Graph, id: NodeId, from: i64, to: i64) -> Result<Option<Patch>, Box<NodeError>> {
    let mut bodies: Vec<Body> = graph.node(id).op.bodies().into_iter().map(|(_, b)| b.clone()).collect();
    for body in &mut bodies {
        upgrade_graph(&mut body.graph, from, to)?;
    }
    let mut patch = Patch::new(graph);
    Ok(graph.node(id).op.with_bodies(bodies).map(|op| {
        patch.set_op(id, op);
        patch
    }))
}

/// A node on its way to a newer operator set.
struct Draft<'a> {
    graph: &'a Graph,
    facts: &'a narrowbit_ir::infer::Facts,
    id: NodeId,
    name: String,
    attrs: AttrMap,
    inputs: Vec<Option<ValueId>>,
    patch: Patch,
    /// The constants that the patch adds.
    made: Vec<(ValueId, Tensor)>,
    /// Set where the node is replaced by several.
    replaced: bool,
}

type Step = fn(&mut Draft, i64) -> Result<(), OpError>;

/// What changed, by operator and by the version that changed it, in the order of versions.
const STEPS: &[(&str, i64, Step)] = &[
    ("Upsample", 9, |d, _| d.floats_to_input("scales", 1)),
    ("BatchNormalization", 9, |d, _| d.drop("spatial")),
    ("Slice", 10, slice),
    ("TopK", 10, |d, _| d.int_to_input("k", 1)),
    ("Upsample", 10, |d, _| d.rename("Resize")),
    ("Clip", 11, clip),
    ("Pad", 11, pad),
    ("Resize", 11, resize),
    ("Scatter", 11, |d, _| d.rename("ScatterElements")),
    ("Dropout", 12, |d, _| d.drop("ratio")),
    ("Squeeze", 13, |d, _| d.ints_to_input("axes", 1)),
    ("Unsqueeze", 13, |d, _| d.ints_to_input("axes", 1)),
    ("Split", 13, |d, _| d.ints_to_input("split", 1)),
    ("ReduceSum", 13, |d, _| d.ints_to_input("axes", 1)),
    ("Softmax", 13, softmax),
    ("LogSoftmax", 13, softmax),
    ("Hardmax", 13, softmax),
    ("ReduceMax", 18, |d, _| d.ints_to_input("axes", 1)),
    ("ReduceMin", 18, |d, _| d.ints_to_input("axes", 1)),
    ("ReduceMean", 18, |d, _| d.ints_to_input("axes", 1)),
    ("ReduceProd", 18, |d, _| d.ints_to_input("axes", 1)),
    ("ReduceL1", 18, |d, _| d.ints_to_input("axes", 1)),
    ("ReduceL2", 18, |d, _| d.ints_to_input("axes", 1)),
    ("ReduceLogSum", 18, |d, _| d.ints_to_input("axes", 1)),
    ("ReduceLogSumExp", 18, |d, _| d.ints_to_input("axes", 1)),
    ("ReduceSumSquare", 18, |d, _| d.ints_to_input("axes", 1)),
    ("Split", 18, split_outputs),
    ("DFT", 20, dft),
    ("GridSample", 20, grid_sample),
    ("GroupNormalization", 21, group_normalization),
];

fn upgrade_node(
    graph: &Graph,
    facts: &narrowbit_ir::infer::Facts,
    id: NodeId,
    from: i64,
    to: i64,
) -> Result<Patch, OpError> {
    let node = graph.node(id);
    let mut draft = Draft {
        graph,
        facts,
        id,
        name: node.op.name().into(),
        attrs: node.op.attrs(),
        inputs: node.inputs.clone(),
        patch: Patch::new(graph),
        made: Vec::new(),
        replaced: false,
    };
    for (name, since, step) in STEPS {
        if *since > from && *since <= to && draft.name == *name && !draft.replaced {
            step(&mut draft, to)?;
        }
    }
    if draft.replaced {
        return Ok(draft.patch);
    }
    let op = make(&draft.name, to, draft.attrs)?;
    draft.patch.set_op(id, op);
    for i in 0..draft.inputs.len().max(node.inputs.len()) {
        let new = draft.inputs.get(i).copied().flatten();
        if new != node.input(i) {
            draft.patch.set_input(id, i, new);
        }
    }
    Ok(draft.patch)
}

fn make(name: &str, opset: i64, mut attrs: AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let source: &dyn narrowbit_ir::OpSource = &Registry;
    source.build("", name, opset, &mut attrs).unwrap_or_else(|| Err(OpError::Unsupported(format!("operator {name}"))))
}

impl Draft<'_> {
    fn rename(&mut self, name: &str) -> Result<(), OpError> {
        self.name = name.into();
        Ok(())
    }

    fn drop(&mut self, attr: &str) -> Result<(), OpError> {
        self.attrs.take(attr);
        Ok(())
    }

    fn constant(&mut self, suffix: &str, tensor: Tensor) -> ValueId {
        let node = self.graph.node(self.id);
        let base = node.output(0).map_or(node.name.as_str(), |v| self.graph.value(v).name.as_str());
        let v = self.patch.constant(&format!("{base}.{suffix}"), tensor.clone());
        self.made.push((v, tensor));
        v
    }

    /// The content of an input that does not depend on the model's inputs.
    fn known(&self, v: ValueId) -> Option<&Tensor> {
        let made = self.made.iter().find(|(m, _)| *m == v).map(|(_, t)| t);
        made.or_else(|| self.graph.get_value(v).and_then(|_| self.graph.constant(v)))
            .or_else(|| self.facts.get(v).value.as_ref())
    }

    fn set(&mut self, i: usize, value: ValueId) {
        if self.inputs.len() <= i {
            self.inputs.resize(i + 1, None);
        }
        self.inputs[i] = Some(value);
    }

    fn ints_to_input(&mut self, attr: &str, i: usize) -> Result<(), OpError> {
        if let Some(v) = self.attrs.ints(attr)? {
            let c = self.constant(attr, Tensor::vector(v));
            self.set(i, c);
        }
        Ok(())
    }

    fn int_to_input(&mut self, attr: &str, i: usize) -> Result<(), OpError> {
        if let Some(v) = self.attrs.int(attr)? {
            let c = self.constant(attr, Tensor::vector(vec![v]));
            self.set(i, c);
        }
        Ok(())
    }

    fn floats_to_input(&mut self, attr: &str, i: usize) -> Result<(), OpError> {
        if let Some(v) = self.attrs.floats(attr)? {
            let c = self.constant(attr, Tensor::vector(v));
            self.set(i, c);
        }
        Ok(())
    }

    /// A float attribute becomes a scalar input of the type of input 0.
    fn float_to_input(&mut self, attr: &str, i: usize) -> Result<(), OpError> {
        let Some(v) = self.attrs.float(attr)? else { return Ok(()) };
        let dtype = self.inputs.first().copied().flatten().and_then(|x| self.facts.dtype(x)).unwrap_or(DType::F32);
        let t = if dtype.is_float() {
            Tensor::from_f32s(dtype, [], vec![v])?
        } else {
            Tensor::from_i64s(dtype, [], &[v as i64])?
        };
        let c = self.constant(attr, t);
        self.set(i, c);
        Ok(())
    }

    fn input_shape(&self) -> Option<&[Dim]> {
        self.facts.shape(self.inputs.first().copied().flatten()?)
    }
}

fn slice(d: &mut Draft, _: i64) -> Result<(), OpError> {
    d.ints_to_input("starts", 1)?;
    d.ints_to_input("ends", 2)?;
    d.ints_to_input("axes", 3)
}

fn clip(d: &mut Draft, _: i64) -> Result<(), OpError> {
    // The bounds of opset 6 default to the greatest numbers: no bound.
    for (name, bound) in [("min", f32::MIN), ("max", f32::MAX)] {
        if matches!(d.attrs.get(name), Some(Attr::Float(v)) if *v == bound) {
            d.attrs.take(name);
        }
    }
    d.float_to_input("min", 1)?;
    d.float_to_input("max", 2)
}

fn pad(d: &mut Draft, _: i64) -> Result<(), OpError> {
    d.ints_to_input("pads", 1)?;
    d.float_to_input("value", 2)
}

/// Resize of opset 10: `(x, scales)`, positions as `floor(x / scale)`, or `ceil` where an axis shrinks (as ONNX
/// Runtime rounds; the specification does not say).
fn resize(d: &mut Draft, _: i64) -> Result<(), OpError> {
    let mode = d.attrs.clone().string("mode")?.unwrap_or_else(|| "nearest".into());
    let scales = d.inputs.get(1).copied().flatten().ok_or(OpError::MissingInput(1))?;
    d.attrs.set("coordinate_transformation_mode", "asymmetric");
    if mode == "nearest" {
        let known = d.known(scales).map(Tensor::to_f32s).transpose()?.unwrap_or_default();
        let rounding = match (known.iter().all(|&s| s >= 1.0), known.iter().all(|&s| s <= 1.0)) {
            _ if known.is_empty() => None,
            (true, _) => Some("floor"),
            (_, true) => Some("ceil"),
            _ => None,
        };
        let help = "Resize to the nearest element with scales that are not known, or above 1 and below 1";
        d.attrs.set("nearest_mode", rounding.ok_or_else(|| OpError::Unsupported(help.into()))?);
    }
    // The region of interest is required until opset 13, and not read here.
    let roi = d.constant("roi", Tensor::vector(Vec::<f32>::new()));
    d.inputs.truncate(1);
    d.set(1, roi);
    d.set(2, scales);
    Ok(())
}

/// Softmax over all axes from one on, taken together, unless only one of them is longer than 1.
fn softmax(d: &mut Draft, to: i64) -> Result<(), OpError> {
    let node = d.graph.node(d.id);
    let (axis, flattened) =
        node.op.downcast::<Softmax>().map_or((d.attrs.clone().int_or("axis", 1)?, true), |s| (s.axis, s.flattened));
    d.attrs.take("axis");
    if !flattened {
        d.attrs.set("axis", axis);
        return Ok(());
    }
    let rank = d.input_shape().map(<[Dim]>::len);
    let long: Option<Vec<usize>> = d.input_shape().and_then(|s| {
        let from = if axis < 0 { axis + s.len() as i64 } else { axis };
        let from = usize::try_from(from).ok().filter(|&a| a < s.len())?;
        Some((from..s.len()).filter(|&a| s[a] != Dim::Known(1)).collect())
    });
    match (rank, long.as_deref()) {
        (Some(rank), Some([])) => d.attrs.set("axis", rank as i64 - 1),
        (_, Some([one])) => d.attrs.set("axis", *one as i64),
        _ => flatten_softmax(d, axis, to)?,
    }
    Ok(())
}

fn flatten_softmax(d: &mut Draft, axis: i64, to: i64) -> Result<(), OpError> {
    let node = d.graph.node(d.id);
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Err(OpError::MissingInput(0)) };
    let name = &d.graph.value(y).name;
    let shape = d.patch.node(&format!("{name}.shape"), make("Shape", to, AttrMap::new())?, &[Some(x)]);
    let flatten = make("Flatten", to, AttrMap::new().with("axis", axis))?;
    let flat = d.patch.node(&format!("{name}.flat"), flatten, &[Some(x)]);
    let op = make(&d.name, to, AttrMap::new().with("axis", 1i64))?;
    let soft = d.patch.node(&format!("{name}.rows"), op, &[Some(flat)]);
    let out = d.patch.node(name, make("Reshape", to, AttrMap::new())?, &[Some(soft), Some(shape)]);
    d.patch.replace(y, out);
    d.replaced = true;
    Ok(())
}

fn split_outputs(d: &mut Draft, _: i64) -> Result<(), OpError> {
    if d.inputs.get(1).copied().flatten().is_none() {
        d.attrs.set("num_outputs", d.graph.node(d.id).outputs.len() as i64);
    }
    Ok(())
}

/// The axis becomes an input, whose default is another one than the attribute's.
fn dft(d: &mut Draft, _: i64) -> Result<(), OpError> {
    let axis = d.attrs.int_or("axis", 1)?;
    let axis = d.constant("axis", Tensor::scalar(axis));
    d.set(2, axis);
    Ok(())
}

fn grid_sample(d: &mut Draft, _: i64) -> Result<(), OpError> {
    let mode = d.attrs.clone().string("mode")?;
    let new = match mode.as_deref() {
        None | Some("bilinear") => "linear",
        Some("bicubic") => "cubic",
        Some(other) => other,
    };
    d.attrs.set("mode", new);
    Ok(())
}

/// Scale and bias of one number per group become one number per channel.
fn group_normalization(d: &mut Draft, _: i64) -> Result<(), OpError> {
    let groups = d.attrs.clone().int_or("num_groups", 1)?;
    let channels = d.input_shape().and_then(|s| s.get(1)).and_then(Dim::as_usize);
    for (i, suffix) in [(1, "scale"), (2, "bias")] {
        let v = d.inputs.get(i).copied().flatten().ok_or(OpError::MissingInput(i))?;
        let (Some(t), Some(c)) = (d.known(v).cloned(), channels) else {
            return Err(OpError::Unsupported("GroupNormalization whose scale or channels are not known".into()));
        };
        let per_group = usize::try_from(groups).ok().filter(|&g| g > 0 && c % g == 0 && t.len() == g).map(|g| c / g);
        let per_group = per_group.ok_or_else(|| OpError::attribute("num_groups", "does not divide the channels"))?;
        let values = t.to_f64s()?.into_iter().flat_map(|x| std::iter::repeat_n(x, per_group)).collect::<Vec<_>>();
        let new = Tensor::from_f64s(t.dtype(), [c], &values)?;
        let c = d.constant(suffix, new);
        d.set(i, c);
    }
    Ok(())
}
