//! Sums of the magnitudes of rows, and quotients by them: a normalization by the mean magnitude.

use narrowbit_ir::{Attr, Node, NodeId, ValueId};
use narrowbit_ops::math::reduce::Reduce;
use narrowbit_tensor::DType;

use super::convert::within;
use super::{Lowering, Why};
use crate::dyadic::{Dyadic, shifted};
use crate::run::{Join, Step, Width};
use crate::value::{Fixed, Layout, Unit};

/// The longest shift that brings a quotient's operands to whole units.
const MOST_SHIFT: i32 = 40;

impl Lowering<'_> {
    pub(super) fn magnitude(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let x = self.reals(node, 0)?;
        let ends =
            [x.bounds.0.checked_sub(x.zero), x.bounds.1.checked_sub(x.zero)].map(|e| e.and_then(i64::checked_abs));
        let [Some(a), Some(b)] = ends else { return Err("its integers would need more than 62 bits".into()) };
        let bounds = (0, a.max(b));
        let (width, len) = (Width::narrowest(bounds), x.shape.iter().product());
        let register = self.step(Step::Magnitude(x.zero), &[x.register], width, len);
        self.row(id, "|x|".into(), bounds);
        self.set(node, Fixed { register, zero: 0, bounds, ..x });
        Ok(())
    }

    /// The sum over the last axis.
    pub(super) fn total(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let op: &Reduce = node.op.downcast().ok_or("it is another operator of that name")?;
        let x = self.reals(node, 0)?;
        let axes = match &op.axes {
            Some(axes) => axes.clone(),
            None => self.tensor(node, 1).and_then(|t| t.to_i64s().ok()).unwrap_or_default(),
        };
        let rank = x.shape.len() as i64;
        if !matches!(axes[..], [a] if a == -1 || a + 1 == rank) {
            return Err("it is not the sum over the last axis".into());
        }
        let x = self.in_one_unit(x)?;
        let x = self.laid(x, Layout::Plain);
        let row = x.shape.last().copied().filter(|&row| row > 0).ok_or("its last axis is empty")?;
        let end = |v: i64| v.checked_sub(x.zero)?.checked_mul(row as i64).filter(|v| v.unsigned_abs() < 1 << 61);
        let (Some(low), Some(high)) = (end(x.bounds.0), end(x.bounds.1)) else {
            return Err("its sums would need more than 62 bits".into());
        };
        let (bounds, shape) = ((low, high), self.shape(node.output(0).ok_or("it makes nothing")?)?);
        let len = shape.iter().product();
        if len * row != x.shape.iter().product::<usize>() {
            return Err("its result is of another shape".into());
        }
        let register = self.step(Step::Total(row, x.zero), &[x.register], Width::wide(bounds), len);
        let buffer = self.buffer().unwrap_or((i64::MIN, i64::MAX));
        if !within(bounds, buffer) {
            return Err("its sums do not fit the buffer".into());
        }
        self.row(id, format!("the sum of {row}"), bounds);
        self.set(node, Fixed { register, shape, zero: 0, bounds, ..x });
        Ok(())
    }

    /// A quotient whose fraction the Cast behind it cuts off.
    pub(super) fn quotient(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let out = node.output(0).ok_or("it makes nothing")?;
        let cut =
            self.graph.only_use(out).map(|u| self.graph.node(u.node)).is_some_and(|n| target(n) == Some(DType::I32));
        if !cut {
            return Err("its quotient is not cut off to an integer: only a Cast to int32 may read it".into());
        }
        let (a, b) = (self.reals(node, 0)?, self.reals(node, 1)?);
        let (a, b) = (self.expanded(a, i32::MIN)?, self.expanded(b, i32::MIN)?);
        if b.bounds.0 <= b.zero {
            return Err("its divisor may be zero: a Max or Clip to one step of its scale belongs before it".into());
        }
        let frac = b.unit.scales[0].frac.saturating_sub(a.unit.scales[0].frac);
        if frac.abs() > MOST_SHIFT {
            return Err(format!("its operands are {} bits apart", frac.unsigned_abs()));
        }
        let (l, r) = (frac.max(0) as u32, (-frac).max(0) as u32);
        let end = |v: i64, by: u32| shifted(v, by).filter(|v| v.unsigned_abs() < 1 << 61);
        let ends = || -> Option<[i64; 4]> {
            let of = |x: &Fixed, by| {
                Some([end(x.bounds.0.checked_sub(x.zero)?, by)?, end(x.bounds.1.checked_sub(x.zero)?, by)?])
            };
            let ([a0, a1], [b0, b1]) = (of(&a, l)?, of(&b, r)?);
            Some([a0, a1, b0, b1])
        };
        let [low, high, least, _] = ends().ok_or("its integers would need more than 62 bits")?;
        let bounds = ((low / least).min(0), (high / least).max(0));
        let most = low.unsigned_abs().max(high.unsigned_abs()) as i64;
        if !within((low, high), self.buffer().unwrap_or((i64::MIN, i64::MAX))) {
            return Err("its dividend does not fit the buffer".into());
        }
        let shape = self.shape(out)?;
        let fixed = self.joint((a, b), Join::Div(l, r), shape, Unit::tensor(Dyadic::ONE), bounds)?;
        let shift = if l > 0 { format!("(a << {l}) / b") } else { format!("a / (b << {r})") };
        self.row(id, format!("{shift}, cut off towards zero"), bounds);
        self.set(node, fixed);
        if let Some(x) = node.input(1).and_then(|v| self.magnitudes_of(v)) {
            self.shares.insert(out, (x, most));
        }
        Ok(())
    }

    /// Casts between floats and integers of whole numbers.
    pub(super) fn cast(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (from, out) = (node.input(0).ok_or("it reads nothing")?, node.output(0).ok_or("it makes nothing")?);
        let x = self.reals(node, 0)?;
        let unit = x.unit.scales[0];
        if !x.unit.is_plain() || unit.frac > 0 || x.zero != 0 {
            return Err("it casts what are no whole numbers".into());
        }
        let end = |v: i64| shifted(v, unit.frac.unsigned_abs()).is_some_and(|v| i32::try_from(v).is_ok());
        if !end(x.bounds.0) || !end(x.bounds.1) {
            return Err("its integers may need more than 32 bits".into());
        }
        match target(node) {
            Some(DType::F32) => {}
            Some(DType::I32) => {
                let back = self.graph.only_use(out).map(|u| self.graph.node(u.node));
                if back.and_then(target) != Some(DType::F32) {
                    return Err("its integers are read by others than a Cast back to float32".into());
                }
            }
            _ => return Err("it casts to another type than int32 or float32".into()),
        }
        let bounds = x.bounds;
        self.row(id, "whole numbers already".into(), bounds);
        self.set(node, x);
        if let Some(&share) = self.shares.get(&from) {
            self.shares.insert(out, share);
        }
        Ok(())
    }

    /// The bound of a product `x · (a / Σ |x|)`: `|x|` is a part of the sum.
    pub(super) fn share(&self, node: &Node) -> Option<i64> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let of = |x: ValueId, p: ValueId| self.shares.get(&p).filter(|s| s.0 == x).map(|s| s.1);
        of(a, b).or_else(|| of(b, a))
    }

    /// The value whose magnitudes a value adds up over the last axis, at the least.
    fn magnitudes_of(&self, v: ValueId) -> Option<ValueId> {
        let maker = |v: ValueId| self.graph.producer(v).map(|(n, _)| self.graph.node(n));
        let mut sum = maker(v)?;
        // A greater divisor makes the quotient smaller.
        if sum.op.name() == "Max"
            || sum.op.name() == "Clip" && sum.input(2).is_none() && sum.op.attrs().float("max").ok()?.is_none()
        {
            sum = maker(sum.input(0)?)?;
        }
        let abs = (sum.op.name() == "ReduceSum").then(|| sum.input(0)).flatten().and_then(maker)?;
        (abs.op.name() == "Abs").then(|| abs.input(0)).flatten()
    }
}

/// The type that a Cast makes.
fn target(node: &Node) -> Option<DType> {
    match node.op.attrs().get("to") {
        Some(Attr::Int(to)) if node.op.name() == "Cast" => DType::from_onnx(*to),
        _ => None,
    }
}
