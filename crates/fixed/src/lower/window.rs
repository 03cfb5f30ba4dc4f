//! Pooling: the greatest of a window, or its sum with a division that waits for the rounding behind it.

use narrowbit_ir::{Node, NodeId};
use narrowbit_ops::math::reduce::Reduce;
use narrowbit_ops::nn::{AveragePool, MaxPool, Window};

use super::{Lowering, State, Why};
use crate::run::{Fold, Map, Pool, Step, Width};
use crate::value::{Fixed, Layout, Unit};

impl Lowering<'_> {
    pub(super) fn pool(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let x = node.input(0).ok_or("it reads nothing")?;
        let codes = matches!(self.states.get(&x), Some(State::Ints { codes: true, .. }));
        let x = self.ints(node, 0)?;
        if x.shape.len() != 4 {
            return Err("it is not of two dimensions".into());
        }
        let out = node.output(0).ok_or("it makes nothing")?;
        if node.output(1).is_some() {
            return Err("it gives the places of the greatest".into());
        }
        let shape = self.shape(out)?;
        let (fold, window) = self.window(node, &x)?;
        super::fits(&window.kernel)?;
        super::fits(&[x.shape[0], x.shape[1], window.positions()])?;
        let x = self.laid(x, Layout::ChannelsLast);
        let x = if fold == Fold::Sum { self.without_zero(x) } else { x };
        let &[n, c, h, w] = &x.shape[..] else { return Err("it is not of two dimensions".into()) };
        let pair = |v: &[usize]| [v[0], v[1]];
        let pool = Pool {
            fold,
            input: [n, h, w, c],
            output: pair(&window.output),
            kernel: pair(&window.kernel),
            strides: pair(&window.strides),
            dilations: pair(&window.dilations),
            begins: pair(&window.begins),
        };
        let taps = window.taps() as i64;
        if taps == 0 {
            return Err("its window holds no value".into());
        }
        let (bounds, unit, words) = match fold {
            Fold::Max => (x.bounds, x.unit.clone(), format!("the greatest of {taps}")),
            Fold::Sum => {
                let ends = (x.bounds.0.checked_mul(taps), x.bounds.1.checked_mul(taps));
                let (Some(lo), Some(hi)) = ends else { return Err("its sums would need more than 64 bits".into()) };
                let divisor =
                    x.unit.divisor.checked_mul(taps).filter(|d| *d < 1 << 30).ok_or("its window is too large")?;
                let unit = divided(&x.unit, divisor);
                ((lo.min(0), hi.max(0)), unit, format!("the sum of {taps}, divided where it is rounded"))
            }
        };
        let width = if fold == Fold::Max { self.widths[x.register] } else { Width::wide(bounds) };
        let len = n * pool.output[0] * pool.output[1] * c;
        let register = self.step(Step::Pool(pool), &[x.register], width, len);
        self.row(id, words, bounds);
        let mut fixed = Fixed { register, shape: vec![n, c, window.output[0], window.output[1]], bounds, unit, ..x };
        if shape != fixed.shape {
            // The mean over all pixels without the axes: one pixel, whatever its layout.
            if shape.iter().product::<usize>() != len || window.positions() != 1 || shape.len() != 2 {
                return Err("its result is of another shape".into());
            }
            let unit = Unit { axis: fixed.unit.axis.map(|_| 1), ..fixed.unit };
            fixed = Fixed { shape, layout: Layout::Plain, unit, ..fixed };
        }
        self.states.insert(out, State::Ints { fixed, codes, clip: super::Clip::default() });
        Ok(())
    }

    fn window(&self, node: &Node, x: &Fixed) -> Result<(Fold, Window), Why> {
        let spatial = &x.shape[2..];
        let all = Window {
            input: spatial.to_vec(),
            kernel: spatial.to_vec(),
            strides: vec![1, 1],
            dilations: vec![1, 1],
            begins: vec![0, 0],
            ends: vec![0, 0],
            output: vec![1, 1],
        };
        let op = &node.op;
        if let Some(p) = op.downcast::<MaxPool>() {
            let window = p.window.resolve(spatial, &p.window.kernel_shape).map_err(|e| e.to_string())?;
            return Ok((Fold::Max, window));
        }
        if let Some(p) = op.downcast::<AveragePool>() {
            let window = p.window.resolve(spatial, &p.window.kernel_shape).map_err(|e| e.to_string())?;
            let count = |a: usize, o: usize| {
                let s = window.span(a, o);
                if p.count_include_pad { s.padded } else { s.len }
            };
            let full = (0..2).all(|a| (0..window.output[a]).all(|o| count(a, o) == window.kernel[a]));
            return if full {
                Ok((Fold::Sum, window))
            } else {
                Err("its windows have different numbers of values".into())
            };
        }
        if let Some(r) = op.downcast::<Reduce>() {
            let axes = match &r.axes {
                Some(axes) => axes.clone(),
                None => self.tensor(node, 1).and_then(|t| t.to_i64s().ok()).unwrap_or_default(),
            };
            let mut axes: Vec<i64> = axes.into_iter().map(|a| if a < 0 { a + 4 } else { a }).collect();
            axes.sort_unstable();
            return if axes == [2, 3] { Ok((Fold::Sum, all)) } else { Err("it is not the mean of all pixels".into()) };
        }
        Ok((if op.name() == "GlobalMaxPool" { Fold::Max } else { Fold::Sum }, all))
    }

    /// The integers with the zero point taken off.
    fn without_zero(&mut self, x: Fixed) -> Fixed {
        if x.zero == 0 {
            return x;
        }
        let bounds = (x.bounds.0 - x.zero, x.bounds.1 - x.zero);
        let map = Map { subtract: x.zero, ..Map::identity() };
        let register = self.mapped(&x, map, Width::wide(bounds));
        Fixed { register, zero: 0, bounds, ..x }
    }
}

/// A unit to be divided: powers of two go into the fraction.
fn divided(unit: &Unit, divisor: i64) -> Unit {
    let twos = divisor.trailing_zeros();
    let scale = |s: &crate::Dyadic| crate::Dyadic { frac: s.frac + twos as i32, ..*s };
    Unit { scales: unit.scales.iter().map(scale).collect(), axis: unit.axis, divisor: divisor >> twos }
}
