//! A Softmax whose results are 0 where they are no numbers, which exporters write in three operators (PyTorch does for
//! attention with a mask, whose rows may be without any key): `Where(IsNaN(p), 0, p)`.

use std::sync::Arc;

use narrowbit_ir::{Node, ValueId};
use narrowbit_ops::math::softmax::{Kind, Softmax};

use super::{Made, Rewriter};

/// The Where.
pub fn join(r: &mut Rewriter, node: &Node) -> Option<Made> {
    let (condition, zero, p) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let test = made_by(r, condition, "IsNaN")?;
    let softmax = made_by(r, p, "Softmax")?;
    let plain = softmax.op.downcast::<Softmax>().filter(|s| s.kind == Kind::Softmax)?;
    // One zero, so that the result has the softmax's shape and type.
    let zero = r.graph.constant(zero).filter(|t| t.len() == 1 && t.rank() <= 1)?;
    let is_seen = r.graph.uses(p).len() != 2 || r.graph.is_output(p);
    if test.input(0) != Some(p) || zero.to_f64s().ok()? != [0.0] || is_seen {
        return None;
    }
    let x = r.input(softmax, 0);
    let op = Arc::new(Softmax { guarded: true, ..*plain });
    let value = r.patch.node(&softmax.name, op, &[x]);
    Some(Made { value, dtype: r.dtype(p), of: None })
}

/// The node of a name that makes a value.
fn made_by<'a>(r: &Rewriter<'a>, v: ValueId, name: &str) -> Option<&'a Node> {
    let node = r.graph.node(r.graph.producer(v)?.0);
    (node.op.name() == name).then_some(node)
}
