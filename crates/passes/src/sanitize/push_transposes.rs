//! The pass [`PushTransposes`].

use std::collections::BTreeSet;

use narrowbit_ir::{AttrMap, Datum, EvalCx, NodeId, Patch, ValueId};
use narrowbit_tensor::Tensor;

use super::merge_transposes::perm;
use crate::View;
use crate::pass::{Found, Miss, OrNo, pass, when};

pass! {
    /// **What it does:** removes a Transpose by taking it through the elementwise nodes before it to Transposes that
    /// it cancels, as in models exported from NHWC.
    ///
    /// **When it applies:** where all the nodes between have one reader, and each of their inputs is cancelled, a
    /// constant (which is transposed), or a single number.
    ///
    /// **Numerical effect:** none.
    ///
    /// **Example:** `a = Transpose(x) {perm=[0, 2, 3, 1]}`, `b = Relu(a)`, `y = Transpose(b) {perm=[0, 3, 1, 2]}`
    /// → `y = Relu(x)`.
    PushTransposes = "push-transposes", Sanitize, rule
}

/// Operators that compute each element from the elements at the same place.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Add",
    "Cast",
    "Ceil",
    "Clip",
    "Cos",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Log",
    "Max",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
];

/// Nodes between two Transposes that are looked through.
const MAX_NODES: usize = 32;

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["Transpose"])?;
    let (b, outer) = (view.input(id, 0)?, perm(view, id)?);
    view.made_by(b, ELEMENTWISE)?;
    let mut lift = Lift { view, outer: &outer, nodes: BTreeSet::new(), cancelled: 0, patch: view.patch() };
    let out = lift.value(b)?;
    when(lift.cancelled > 0)?;
    lift.patch.replace(view.output(id)?, out);
    Ok(lift.patch)
}

/// Rebuilds a tree of elementwise nodes with their output transposed by `outer`.
struct Lift<'v, 'g> {
    view: &'v View<'g>,
    outer: &'v [usize],
    nodes: BTreeSet<NodeId>,
    cancelled: usize,
    patch: Patch,
}

impl Lift<'_, '_> {
    /// A value equal to `v` transposed.
    fn value(&mut self, v: ValueId) -> Found<ValueId> {
        let view = self.view;
        if let Some(t) = view.graph.constant(v) {
            return self.constant(v, t);
        }
        if let Ok(t) = view.made_by(v, &["Transpose"]) {
            let inner = perm(view, t)?;
            let cancels = inner.len() == self.outer.len() && self.outer.iter().enumerate().all(|(i, &o)| inner[o] == i);
            when(cancels)?;
            self.cancelled += 1;
            return view.input(t, 0);
        }
        let id = view.made_by(v, ELEMENTWISE)?;
        when(view.is_single_use(v) && self.nodes.insert(id) && self.nodes.len() <= MAX_NODES)?;
        when(view.rank(v) == Some(self.outer.len()))?;
        let mut inputs = Vec::new();
        for input in &view.node(id).inputs {
            inputs.push(match input {
                Some(v) => Some(self.value(*v)?),
                None => None,
            });
        }
        let (node, name) = (view.node(id), view.name_for(v, "transposed"));
        let made = self.patch.node_outputs(&node.name, node.op.clone(), &inputs, &[Some(&name)]);
        made.first().copied().flatten().or_no()
    }

    fn constant(&mut self, v: ValueId, t: &Tensor) -> Found<ValueId> {
        if t.len() == 1 && t.rank() <= 1 {
            return Ok(v);
        }
        let rank = self.outer.len();
        when(t.rank() <= rank)?;
        let mut shape = vec![1; rank - t.rank()];
        shape.extend(t.shape());
        let perm: Vec<i64> = self.outer.iter().map(|&p| p as i64).collect();
        let op = self.view.make("Transpose", AttrMap::new().with("perm", perm))?;
        let data = Datum::Tensor(t.reshaped(shape)?);
        let new = op.eval(&EvalCx::new(&[Some(&data)], 1)).map_err(Miss::from)?.pop().or_no()?;
        Ok(self.patch.constant(&self.view.graph.value(v).name, new))
    }
}
