//! Add, Sub and Mul: operands aligned by shifts; factors of all elements.

use narrowbit_ir::{Node, NodeId};

use super::constant::numbers;
use super::{Lowering, Why};
use crate::dyadic::{Dyadic, shifted};
use crate::proof::bits_of;
use crate::run::{Join, Step, Width};
use crate::value::{Fixed, Layout, Unit};

/// The longest left shift that aligns an operand.
const MOST_SHIFT: i32 = 40;

impl Lowering<'_> {
    pub(super) fn join(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (a, b) = (self.ints(node, 0)?, self.ints(node, 1)?);
        let shape = self.shape(node.output(0).ok_or("it makes nothing")?)?;
        let name = node.op.name();
        let (a, b, how, unit, words) = match name {
            "Mul" => {
                let (a, b) = (self.expanded(a, i32::MIN)?, self.expanded(b, i32::MIN)?);
                let unit = a.unit.scales[0].times(b.unit.scales[0]).ok_or("its scale does not fit 64 bits")?;
                (a, b, Join::Mul, Unit::tensor(unit), "a · b".to_owned())
            }
            _ => self.aligned(a, b, name == "Sub")?,
        };
        let bounds = joined(&a, &b, how)?;
        let share = if how == Join::Mul { self.share(node) } else { None };
        let bounds = share.map_or(bounds, |most| (bounds.0.max(-most), bounds.1.min(most)));
        let fixed = self.joint((a, b), how, shape, unit, bounds)?;
        self.row(id, words, bounds);
        self.set(node, fixed);
        Ok(())
    }

    /// Both operands, repeated where they have extent 1, become one.
    pub(super) fn joint(
        &mut self,
        (a, b): (Fixed, Fixed),
        how: Join,
        shape: Vec<usize>,
        unit: Unit,
        bounds: (i64, i64),
    ) -> Result<Fixed, Why> {
        let layout = [&a, &b].into_iter().find(|x| x.shape == shape).map_or(Layout::Plain, |x| x.layout);
        let (a, b) = (self.stretched(a, &shape, layout)?, self.stretched(b, &shape, layout)?);
        let (from, zeros) = ([a.register, b.register], (a.zero, b.zero));
        let register = self.step(Step::Join(how, zeros), &from, Width::wide(bounds), shape.iter().product());
        Ok(Fixed { register, shape, layout, unit, zero: 0, bounds })
    }

    /// The number by which a Mul or Div scales its other operand: a constant of one element that is no integer behind a
    /// DequantizeLinear; and which input that operand is.
    pub(super) fn factor(&self, node: &Node) -> Option<(usize, Dyadic)> {
        let number = |i: usize| {
            let v = node.input(i).filter(|v| !self.states.contains_key(v))?;
            let t = self.graph.constant(v).or(self.facts.get(v).value.as_ref()).filter(|t| t.len() == 1)?;
            numbers(t).ok()?.first().copied()
        };
        match node.op.name() {
            "Div" => number(1).map(|d| (0, d)),
            _ => number(1).map(|d| (0, d)).or_else(|| number(0).map(|d| (1, d))),
        }
    }

    /// A factor for all elements is one of the unit: the integers stay what they are.
    pub(super) fn scale(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (i, factor) = self.factor(node).ok_or("it has no factor")?;
        let x = self.reals(node, i)?;
        let factor = match node.op.name() {
            "Div" if factor.is_power_of_two() => Dyadic::new(1, -factor.frac),
            "Div" => return Err("it divides by a number that is no power of two".into()),
            _ => factor,
        };
        if factor.mantissa <= 0 {
            return Err("its factor is not above zero".into());
        }
        let shape = self.shape(node.output(0).ok_or("it makes nothing")?)?;
        if shape.len() != x.shape.len() {
            return Err("its factor has more axes than its operand".into());
        }
        let scaled = |s: &Dyadic| s.times(factor).ok_or_else(|| "its scale does not fit 64 bits".to_owned());
        let scales = x.unit.scales.iter().map(scaled).collect::<Result<_, _>>()?;
        let bounds = x.bounds;
        self.row(id, "a factor of the unit".into(), bounds);
        self.set(node, Fixed { unit: Unit { scales, ..x.unit }, ..x });
        Ok(())
    }

    /// Both operands of a sum in one unit.
    fn aligned(&mut self, a: Fixed, b: Fixed, minus: bool) -> Result<(Fixed, Fixed, Join, Unit, String), Why> {
        let join = |l: u32, r: u32| if minus { Join::Sub(l, r) } else { Join::Add(l, r) };
        let sign = if minus { '−' } else { '+' };
        if a.unit == b.unit && a.unit.divisor == 1 {
            let unit = a.unit.clone();
            return Ok((a, b, join(0, 0), unit, format!("a {sign} b, aligned already")));
        }
        // Zero points may stay; mantissas have to go.
        let plain = |x: &Fixed| x.unit.is_plain();
        let a = if plain(&a) { a } else { self.expanded(a, i32::MIN)? };
        let b = if plain(&b) { b } else { self.expanded(b, i32::MIN)? };
        let (fa, fb) = (a.unit.scales[0].frac, b.unit.scales[0].frac);
        let frac = fa.max(fb);
        if frac - fa > MOST_SHIFT || frac - fb > MOST_SHIFT {
            return Err(format!("its operands are {} bits apart", (fa - fb).abs()));
        }
        let (l, r) = ((frac - fa) as u32, (frac - fb) as u32);
        let unit = if fa >= fb { a.unit.clone() } else { b.unit.clone() };
        Ok((a, b, join(l, r), unit, format!("(a << {l}) {sign} (b << {r})")))
    }

    /// A tensor repeated along the axes in which it has extent 1.
    fn stretched(&mut self, x: Fixed, shape: &[usize], layout: Layout) -> Result<Fixed, Why> {
        if x.shape == shape {
            return Ok(self.laid(x, layout));
        }
        let missing = shape.len().checked_sub(x.shape.len()).ok_or("its operands do not fit together")?;
        let fits = x.shape.iter().zip(&shape[missing..]).all(|(&a, &b)| a == b || a == 1);
        if !fits {
            return Err("its operands do not fit together".into());
        }
        let (from, to) = (x.layout.positions(&x.shape), layout.positions(shape));
        let mut indices = vec![0; to.len()];
        for (i, &place) in to.iter().enumerate() {
            let (mut rest, mut at, mut step) = (i, 0, 1);
            for axis in (0..shape.len()).rev() {
                let index = rest % shape[axis];
                rest /= shape[axis];
                if axis >= missing {
                    let extent = x.shape[axis - missing];
                    at += if extent == 1 { 0 } else { index * step };
                    step *= extent;
                }
            }
            indices[place as usize] = from[at];
        }
        let width = self.widths[x.register];
        let register = self.gathered(&[x.register], indices, 0, width);
        Ok(Fixed { register, shape: shape.to_vec(), layout, ..x })
    }
}

fn joined(a: &Fixed, b: &Fixed, how: Join) -> Result<(i64, i64), Why> {
    let ends = |x: &Fixed, by: u32| -> Option<[i64; 2]> {
        Some([shifted(x.bounds.0.checked_sub(x.zero)?, by)?, shifted(x.bounds.1.checked_sub(x.zero)?, by)?])
    };
    let (l, r) = match how {
        Join::Add(l, r) | Join::Sub(l, r) => (l, r),
        Join::Mul | Join::Div(..) => (0, 0),
    };
    let one = |x: i64, y: i64| match how {
        Join::Div(..) => None,
        Join::Add(..) => x.checked_add(y),
        Join::Sub(..) => x.checked_sub(y),
        Join::Mul => x.checked_mul(y),
    };
    let found = || -> Option<(i64, i64)> {
        let (a, b) = (ends(a, l)?, ends(b, r)?);
        let all: Option<Vec<i64>> = a.iter().flat_map(|&x| b.iter().map(move |&y| one(x, y))).collect();
        let all = all?;
        let bounds = (*all.iter().min()?, *all.iter().max()?);
        (bits_of(bounds) <= 62).then_some(bounds)
    };
    found().ok_or_else(|| "its integers would need more than 62 bits".into())
}
