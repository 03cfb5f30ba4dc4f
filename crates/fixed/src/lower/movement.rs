//! Operators that only move elements: what they do to a tensor of positions, the program does to integers.

use std::collections::BTreeMap;

use narrowbit_ir::{Datum, EvalCx, Node, NodeId};
use narrowbit_tensor::Tensor;

use super::{Lowering, State, Why};
use crate::dyadic::Dyadic;
use crate::run::{FILL, Width};
use crate::value::{Fixed, Layout, Unit};

/// What moves elements of its first input, with the inputs that are no data.
const MOVES: &[&str] = &[
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Dropout",
    "Slice",
    "Pad",
    "Gather",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
    "Split",
    "Concat",
];

impl Lowering<'_> {
    pub(super) fn movement(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let name = node.op.name();
        let nearest =
            name == "Resize" && node.op.attrs().string("mode").is_ok_and(|m| m.is_none_or(|m| m == "nearest"));
        if !MOVES.contains(&name) && !nearest {
            return Err("the operator has no integer form here".into());
        }
        let data = if name == "Concat" { node.inputs.len() } else { 1 };
        let codes = (0..data).any(|i| {
            node.input(i).is_some_and(|v| matches!(self.states.get(&v), Some(State::Ints { codes: true, .. })))
        });
        let operands = (0..data).map(|i| self.ints(node, i)).collect::<Result<Vec<_>, _>>()?;
        let mut positions = self.places(&operands)?;
        let constants: BTreeMap<usize, Tensor> =
            (data..node.inputs.len()).filter_map(|i| Some((i, self.tensor(node, i)?))).collect();
        let given = (data..node.inputs.len()).filter(|&i| node.input(i).is_some());
        if let Some(i) = given.into_iter().find(|i| !constants.contains_key(i)) {
            return Err(format!("input {i} is only known at run time"));
        }
        if name == "Pad" && constants.get(&2).is_some_and(|t| t.to_f32s().is_ok_and(|v| v.iter().any(|&x| x != 0.0))) {
            return Err("it pads with something else than zero".into());
        }
        // A value to pad with is of the data's type; positions begin at 1, and nothing is 0.
        let inputs: Vec<Option<Datum>> = (0..node.inputs.len())
            .map(|i| match i < data {
                true => positions.pop_front().map(Datum::Tensor),
                false if name == "Pad" && i == 2 => None,
                false => constants.get(&i).cloned().map(Datum::Tensor),
            })
            .collect();
        let refs: Vec<Option<&Datum>> = inputs.iter().map(Option::as_ref).collect();
        let made = node.op.eval(&EvalCx::new(&refs, node.outputs.len())).map_err(|e| e.to_string())?;
        let made = made.iter().map(Places::of).collect::<Result<Vec<_>, _>>()?;
        let units: Option<Vec<Unit>> = made.iter().map(|t| t.unit(&operands)).collect();
        // Elements of different units in one channel: all get the finest, and lie where they lay.
        let aligned = units.is_none() && !codes;
        let operands = if aligned { self.aligned_operands(operands)? } else { operands };
        self.row(id, "moves integers".into(), operands[0].bounds);
        for (i, (t, v)) in made.iter().zip(&node.outputs).enumerate() {
            let Some(v) = v else { continue };
            let unit = units.as_ref().map_or(&operands[0].unit, |u| &u[i]).clone();
            let fixed = self.moved(&operands, t, unit);
            self.states.insert(*v, State::Ints { fixed, codes, clip: super::Clip::default() });
        }
        Ok(())
    }

    /// Operands in one unit: mantissas are multiplied in, and all have the finest fraction.
    fn aligned_operands(&mut self, mut all: Vec<Fixed>) -> Result<Vec<Fixed>, Why> {
        for x in &mut all {
            *x = self.expanded(x.clone(), i32::MIN)?;
        }
        let most = all.iter().map(|x| x.unit.scales[0].frac).max().unwrap_or(0);
        all.into_iter().map(|x| self.expanded(x, most)).collect()
    }

    /// A tensor for each operand of where its elements lie among those of all, from 1 on.
    fn places(&self, operands: &[Fixed]) -> Result<std::collections::VecDeque<Tensor>, Why> {
        let mut begin = 1i64;
        let mut all = std::collections::VecDeque::new();
        for x in operands {
            let places: Vec<i64> = x.layout.positions(&x.shape).into_iter().map(|p| begin + i64::from(p)).collect();
            begin += places.len() as i64;
            all.push_back(Tensor::new(x.shape.clone(), places).map_err(|e| e.to_string())?);
        }
        if begin >= i64::from(FILL) { Err("it moves too many integers".into()) } else { Ok(all) }
    }

    /// The operands' elements at these places.
    fn moved(&mut self, operands: &[Fixed], places: &Places, unit: Unit) -> Fixed {
        let shape = places.shape.clone();
        let last = operands.iter().any(|x| x.layout == Layout::ChannelsLast) && shape.len() == 4;
        let layout = if last { Layout::ChannelsLast } else { Layout::natural(shape.len(), unit.axis) };
        let mut indices = vec![FILL; places.places.len()];
        for (&to, &place) in layout.positions(&shape).iter().zip(&places.places) {
            indices[to as usize] = u32::try_from(place - 1).unwrap_or(FILL);
        }
        let zero = operands[0].zero;
        let bounds = operands.iter().fold((zero, zero), |(lo, hi), x| (x.bounds.0.min(lo), x.bounds.1.max(hi)));
        let widths: Vec<Width> = operands.iter().map(|x| self.widths[x.register]).collect();
        let width = if widths.iter().all(|w| *w == widths[0]) { widths[0] } else { Width::narrowest(bounds) };
        let from: Vec<_> = operands.iter().map(|x| x.register).collect();
        let register = self.gathered(&from, indices, zero, width);
        Fixed { register, shape, layout, unit, zero, bounds }
    }
}

/// For each element of a tensor, where it lies among those of all operands, from 1 on; 0 for what is no element.
struct Places {
    shape: Vec<usize>,
    places: Vec<i64>,
}

impl Places {
    fn of(t: &Tensor) -> Result<Places, Why> {
        Ok(Places { shape: t.shape().to_vec(), places: t.to_i64s().map_err(|e| e.to_string())? })
    }

    /// The unit, where the operands agree but for their scales and the elements of each channel have one.
    fn unit(&self, operands: &[Fixed]) -> Option<Unit> {
        let first = operands.first()?;
        let like = |x: &Fixed| (x.unit.divisor, x.zero) == (first.unit.divisor, first.zero);
        if !operands.iter().all(like) {
            return None;
        }
        if operands.iter().all(|x| x.unit.axis.is_none() && x.unit == first.unit) {
            return Some(first.unit.clone());
        }
        let axis = Layout::channels(self.shape.len());
        // Without channels there is no scale to have.
        let at = self.shape.len().checked_sub(axis).filter(|&at| self.shape[at] > 0)?;
        let inner: usize = self.shape[at + 1..].iter().product();
        // The scales of operands lie innermost, as their channels do.
        let of = |x: &'_ Fixed| {
            (0..x.shape.iter().product()).map(|i: usize| x.unit.scales[i % x.unit.scales.len()]).collect::<Vec<_>>()
        };
        let all: Vec<Dyadic> = operands.iter().flat_map(of).collect();
        let mut scales: Vec<Option<Dyadic>> = vec![None; self.shape[at]];
        for (i, &place) in self.places.iter().enumerate() {
            let Some(&scale) = usize::try_from(place - 1).ok().and_then(|p| all.get(p)) else { continue };
            if *scales[i / inner % self.shape[at]].get_or_insert(scale) != scale {
                return None;
            }
        }
        let scales = scales.into_iter().map(|s| s.unwrap_or(Dyadic::ONE)).collect();
        Some(Unit { scales, axis: Some(axis), divisor: first.unit.divisor })
    }
}
