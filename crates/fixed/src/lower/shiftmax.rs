//! The softmax of powers of two, which a graph writes in several nodes.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Node, NodeId};
use narrowbit_ops::functions::Shiftmax;

use super::{Clip, Lowering, State, Why};
use crate::dyadic::{Dyadic, shifted};
use crate::proof::bits_of;
use crate::run::{Shifts, Step, Width};
use crate::value::{Fixed, Layout, Unit};

/// All of a graph, by their first nodes.
pub(super) fn all(graph: &Graph) -> BTreeMap<NodeId, Shiftmax> {
    let found = graph.nodes().filter_map(|(id, _)| Shiftmax::find(graph, id));
    found.filter_map(|s| Some((*s.nodes.first()?, s))).collect()
}

impl Lowering<'_> {
    /// The whole function, where its first node stands.
    pub(super) fn shift_softmax(&mut self, first: &Node, s: &Shiftmax) -> Result<(), Why> {
        let x = self.reals(first, 0)?;
        let x = self.expanded(x, i32::MIN)?;
        let x = self.laid(x, Layout::Plain);
        let (&row, Some(&last)) = (x.shape.last().ok_or("it has no axis")?, s.nodes.last()) else {
            return Err("it has no nodes".into());
        };
        let bits = Shiftmax::BITS;
        let most = self.buffer().map_or(i64::MAX, |b| b.1);
        if most >> (2 * bits) < 1 {
            return Err(format!("its terms of {} bits do not fit the buffer", 2 * bits + 1));
        }
        let frac = x.unit.scales[0].frac;
        let up = u32::try_from(frac.saturating_neg()).unwrap_or(0);
        let fits = |v: i64| shifted(v, up).is_some_and(|v| bits_of((v, v)) <= 61);
        if !fits(x.bounds.0) || !fits(x.bounds.1) {
            return Err("its integers would need more than 62 bits".into());
        }
        let sum = i64::try_from(row).ok().and_then(|row| row.checked_mul(1 << (2 * bits)));
        let sum = sum.ok_or("its sums would need more than 64 bits")?;
        let bounds = (0, 1i64 << bits);
        let width = Width::narrowest(bounds);
        let shifts = Shifts { row, frac: frac.clamp(-63, 63), bits, most };
        let len = x.shape.iter().product();
        let register = self.step(Step::Shiftmax(shifts), &[x.register], width, len);
        let words = format!(
            "softmax of powers of two of {row}: terms of {} fraction bits, a shift of each by the rounded logarithm of their sum",
            2 * bits
        );
        let row = self.row(last, words, (0, sum));
        row.shift = Some((0, frac.max(0)));
        row.saturates = sum > most;
        let unit = Unit::tensor(Dyadic::new(1, bits as i32));
        let fixed = Fixed { register, unit, zero: 0, bounds, ..x };
        self.states.insert(s.y, State::Ints { fixed, codes: false, clip: Clip::default() });
        self.inner.extend(s.nodes.iter().skip(1));
        Ok(())
    }
}
