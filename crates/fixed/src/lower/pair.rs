//! MatMul of two activations.

use narrowbit_ir::{Node, NodeId};

use super::convert::within;
use super::{Lowering, Why};
use crate::run::{Pair, Step, Width, rest};
use crate::value::{Fixed, Layout, Unit};

/// The most 8-bit parts of an integer of an operand.
const MOST_PARTS: usize = 3;

impl Lowering<'_> {
    pub(super) fn pair(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (a, b) = (self.reals(node, 0)?, self.reals(node, 1)?);
        let (a, b) = (self.in_one_unit(a)?, self.in_one_unit(b)?);
        let (a, b) = (self.laid(a, Layout::Plain), self.laid(b, Layout::Plain));
        let pair = shaped(&a.shape, &b.shape)?;
        let shape = self.shape(node.output(0).ok_or("it makes nothing")?)?;
        let [m, k, n] = pair.shape;
        let len: usize = shape.iter().product();
        if len != pair.count() * m * n {
            return Err("its result is of another shape".into());
        }
        let unit = a.unit.scales[0].times(b.unit.scales[0]).ok_or("its scale does not fit 64 bits")?;
        let most = sums(&a, &b, k).ok_or("its sums would need more than 62 bits")?;
        let buffer = self.buffer().unwrap_or((i64::MIN, i64::MAX));
        let parts = self.parts(&a).zip(self.parts(&b));
        let kernels = Width::wide(most) == Width::I32 && within(most, buffer) && len * k > 0;
        let parts = parts.filter(|&parts| kernels && fits_kernels(&pair, parts));
        let kept = (most.0.max(buffer.0), most.1.min(buffer.1));
        let pair = Pair { zeros: (a.zero, b.zero), parts, buffer, ..pair };
        let width = if parts.is_some() { Width::I32 } else { Width::wide(kept) };
        let from = [a.register, b.register];
        let register = self.step(Step::Pair(Box::new(pair)), &from, width, len);
        let operands = match parts {
            Some((1, 1)) => "8-bit products in a 32-bit accumulator".to_owned(),
            Some((a, b)) => format!("8-bit products of {a} by {b} bytes in a 32-bit accumulator"),
            None => format!("products in a {}-bit accumulator", if width == Width::I32 { 32 } else { 64 }),
        };
        self.row(id, format!("{operands}: sums of {k} products of two activations"), most).saturates =
            !within(most, buffer);
        self.set(
            node,
            Fixed { register, shape, layout: Layout::Plain, unit: Unit::tensor(unit), zero: 0, bounds: kept },
        );
        Ok(())
    }

    /// Sums along any axis need one unit.
    pub(super) fn in_one_unit(&mut self, x: Fixed) -> Result<Fixed, Why> {
        if x.unit.axis.is_none() && x.unit.divisor == 1 { Ok(x) } else { self.expanded(x, i32::MIN) }
    }

    /// The 8-bit parts of an operand's integers, where these are few: codes are taken as they are.
    fn parts(&self, x: &Fixed) -> Option<usize> {
        if matches!(self.widths[x.register], Width::I8 | Width::U8) {
            return i32::try_from(x.zero).is_ok().then_some(1);
        }
        let ends = [x.bounds.0.checked_sub(x.zero)?, x.bounds.1.checked_sub(x.zero)?];
        (1..=MOST_PARTS).find(|&parts| ends.iter().all(|&v| rest(v, parts) == 0))
    }
}

/// Whether the right operands, packed, and the sums of all parts are of a size to make.
fn fits_kernels(pair: &Pair, (left, right): (usize, usize)) -> bool {
    /// The widest panel of any kernel, whose columns are padded.
    const PANEL: usize = 64;
    let ([m, k, n], count) = (pair.shape, pair.count());
    let fits = |sizes: [usize; 3]| {
        sizes.iter().try_fold(1usize, |all, &s| all.checked_mul(s)).is_some_and(|all| all <= super::MOST_ELEMENTS)
    };
    fits([count, k, (n * right).next_multiple_of(PANEL)]) && fits([count, m * left, n * right])
}

/// The product of tensors of these shapes, whose batch dimensions repeat where they are 1.
fn shaped(a: &[usize], b: &[usize]) -> Result<Pair, Why> {
    let ([before_a @ .., m, k], [before_b @ .., depth, n]) = (a, b) else {
        return Err("an operand is a vector".into());
    };
    if k != depth {
        return Err("its operands do not fit together".into());
    }
    let rank = before_a.len().max(before_b.len());
    let mut batch = Vec::with_capacity(rank);
    // From the innermost dimension on, where steps are known.
    let (mut step_a, mut step_b) = (1, 1);
    for axis in 1..=rank {
        let of = |s: &[usize]| s.len().checked_sub(axis).map_or(1, |i| s[i]);
        let (x, y) = (of(before_a), of(before_b));
        if x != y && x != 1 && y != 1 {
            return Err("its operands do not fit together".into());
        }
        let step = |own: usize, step: usize| if own == 1 { 0 } else { step };
        batch.push((if x == 1 { y } else { x }, step(x, step_a), step(y, step_b)));
        (step_a, step_b) = (step_a * x, step_b * y);
    }
    batch.reverse();
    Ok(Pair { shape: [*m, *k, *n], batch, zeros: (0, 0), parts: None, buffer: (i64::MIN, i64::MAX) })
}

/// The least and the greatest sum of `depth` products, the operands anything within their bounds.
fn sums(a: &Fixed, b: &Fixed, depth: usize) -> Option<(i64, i64)> {
    let ends = |x: &Fixed| Some([x.bounds.0.checked_sub(x.zero)?.min(0), x.bounds.1.checked_sub(x.zero)?.max(0)]);
    let (a, b, depth) = (ends(a)?, ends(b)?, i128::try_from(depth).ok()?);
    let all = || a.iter().flat_map(|&x| b.iter().map(move |&y| i128::from(x) * i128::from(y)));
    let whole = |v: i128| v.checked_mul(depth).filter(|v| v.unsigned_abs() < 1 << 61).map(|v| v as i64);
    Some((whole(all().min()?)?, whole(all().max()?)?))
}
