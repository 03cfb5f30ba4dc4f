//! Operators that only move elements: what they do to a tensor of positions, the program does to integers.

use std::collections::BTreeMap;

use narrowbit_ir::{Datum, EvalCx, Node, NodeId};
use narrowbit_tensor::Tensor;

use super::{Lowering, State, Why};
use crate::run::{FILL, Width};
use crate::value::{Fixed, Layout};

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
        let operands = self.operands(node, data, codes)?;
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
        self.row(id, "moves integers".into(), operands[0].bounds);
        for (t, v) in made.iter().zip(&node.outputs) {
            let Some(v) = v else { continue };
            let fixed = self.moved(&operands, t)?;
            self.states.insert(*v, State::Ints { fixed, codes, clip: super::Clip::default() });
        }
        Ok(())
    }

    /// The data operands, in one unit.
    fn operands(&mut self, node: &Node, data: usize, codes: bool) -> Result<Vec<Fixed>, Why> {
        let mut all = (0..data).map(|i| self.ints(node, i)).collect::<Result<Vec<_>, _>>()?;
        let first = (all[0].unit.clone(), all[0].zero);
        let one = first.0.axis.is_none() && all.iter().all(|x| (&x.unit, x.zero) == (&first.0, first.1));
        if one || codes {
            return Ok(all);
        }
        // Mantissas are multiplied in, and all have the finest fraction.
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

    /// The operands' elements as a tensor of places says.
    fn moved(&mut self, operands: &[Fixed], places: &Tensor) -> Result<Fixed, Why> {
        let shape = places.shape().to_vec();
        let last = operands.iter().any(|x| x.layout == Layout::ChannelsLast) && shape.len() == 4;
        let layout = if last { Layout::ChannelsLast } else { Layout::Plain };
        let places = places.to_i64s().map_err(|e| e.to_string())?;
        let mut indices = vec![FILL; places.len()];
        for (&to, &place) in layout.positions(&shape).iter().zip(&places) {
            indices[to as usize] = u32::try_from(place - 1).unwrap_or(FILL);
        }
        let zero = operands[0].zero;
        let (lo, hi) = operands.iter().fold((zero, zero), |(lo, hi), x| (x.bounds.0.min(lo), x.bounds.1.max(hi)));
        let widths: Vec<Width> = operands.iter().map(|x| self.widths[x.register]).collect();
        let width = if widths.iter().all(|w| *w == widths[0]) { widths[0] } else { Width::wide((lo, hi)) };
        let from: Vec<_> = operands.iter().map(|x| x.register).collect();
        let register = self.gathered(&from, indices, zero, width);
        Ok(Fixed { register, shape, layout, bounds: (lo, hi), ..operands[0].clone() })
    }
}
