//! Functions of one element between 8-bit codes and 8-bit codes: a table of 256 codes, made when the graph is lowered.

use narrowbit_ir::{Datum, EvalCx, Node, NodeId};
use narrowbit_tensor::{DType, Tensor};

use super::constant::{range, width_of};
use super::{Clip, Lowering, State, Why};
use crate::dyadic::Dyadic;
use crate::run::{Step, Width};
use crate::value::{Fixed, Unit};

/// What has one result for each element.
const CURVES: &[&str] = &[
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "LeakyRelu",
    "Elu",
    "Gelu",
    "Softplus",
    "Softsign",
    "Abs",
    "Neg",
    "Exp",
    "Sqrt",
    "Relu",
    "Clip",
];

/// Codes with the value that a function gives for each code of their type.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    pub from: Fixed,
    pub values: Tensor,
}

impl Lowering<'_> {
    /// Whether a node is a function of one element of what has few codes.
    pub(super) fn is_curve(&self, node: &Node) -> bool {
        let name = node.op.name();
        let few = |s: Option<&State>| match s {
            Some(State::Curve(_)) => true,
            Some(State::Ints { fixed, codes: false, clip }) => {
                let width = self.widths[fixed.register];
                *clip == Clip::default() && fixed.unit.is_plain() && matches!(width, Width::I8 | Width::U8)
            }
            _ => false,
        };
        let state = node.input(0).and_then(|v| self.states.get(&v));
        // These have a form of their own, which needs no table.
        let waits = matches!(name, "Relu" | "Clip" | "Abs") && matches!(state, Some(State::Ints { .. }));
        CURVES.contains(&name) && !waits && few(state)
    }

    pub(super) fn curve(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (x, out) = (node.input(0), node.output(0).ok_or("it makes nothing")?);
        let (from, values) = match x.and_then(|x| self.states.get(&x)).cloned() {
            Some(State::Curve(c)) => (c.from, c.values),
            Some(State::Ints { fixed, .. }) => {
                let (low, high) = range(self.widths[fixed.register]);
                let unit = fixed.unit.scales[0];
                // Up to nine bits times a power of two: exact.
                let value = |code: i64| ((code - fixed.zero) as f64 * 2f64.powi(-unit.frac)) as f32;
                let values = Tensor::vector((low..=high).map(value).collect::<Vec<f32>>());
                (fixed, values)
            }
            _ => return Err("it reads floats".into()),
        };
        let values = self.evaluated(node, values)?;
        let finite = values.dtype() == DType::F32 && values.to_f32s().is_ok_and(|v| v.iter().all(|x| !x.is_nan()));
        if !finite || values.len() != 256 {
            return Err("it has no number for some code".into());
        }
        let bounds = from.bounds;
        self.row(id, "part of a table of 256 codes".into(), bounds);
        self.states.insert(out, State::Curve(Curve { from, values }));
        Ok(())
    }

    /// A node on some tensor, its other inputs constant.
    fn evaluated(&self, node: &Node, x: Tensor) -> Result<Tensor, Why> {
        let mut inputs = vec![Some(Datum::Tensor(x))];
        for i in 1..node.inputs.len() {
            let constant = self.tensor(node, i);
            if node.input(i).is_some() && constant.is_none() {
                return Err(format!("input {i} is only known at run time"));
            }
            inputs.push(constant.map(Datum::Tensor));
        }
        let refs: Vec<Option<&Datum>> = inputs.iter().map(Option::as_ref).collect();
        let made = node.op.eval(&EvalCx::new(&refs, 1)).map_err(|e| e.to_string())?;
        made.into_iter().next().ok_or_else(|| "it makes nothing".into())
    }

    /// The QuantizeLinear behind a function: the table is complete.
    pub(super) fn tabulate(&mut self, id: NodeId, node: &Node, c: Curve) -> Result<(), Why> {
        let out = node.output(0).ok_or("it makes nothing")?;
        let codes = self.evaluated(node, c.values)?;
        let width = width_of(Some(codes.dtype())).ok_or("its codes are not integers of 8 or 16 bits")?;
        let table = codes.to_i64s().map_err(|e| e.to_string())?;
        let (first, len) = (range(self.widths[c.from.register]).0, c.from.shape.iter().product());
        let bounds = table.iter().fold((i64::MAX, i64::MIN), |(lo, hi), &v| (lo.min(v), hi.max(v)));
        let register = self.step(Step::Table(table, first), &[c.from.register], width, len);
        self.row(id, "a code from a table of 256".into(), bounds);
        let fixed = Fixed { register, unit: Unit::tensor(Dyadic::ONE), zero: 0, bounds, ..c.from };
        self.states.insert(out, State::Ints { fixed, codes: true, clip: Clip::default() });
        Ok(())
    }
}
