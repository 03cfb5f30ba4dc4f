//! Recognition of attention written in primitive operators; the graph is not changed.

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Graph, NodeId, ValueId};

use crate::pass::{Found, OrNo, when};
use crate::{SanitizeOptions, View};

/// `y = softmax(scale · q · k + mask) · v`, written as MatMul, Mul or Div, Add, Softmax, MatMul.
#[derive(Debug, Clone)]
pub struct Attention {
    /// The queries `[…, s, d]`, before any scaling that was found.
    pub q: ValueId,
    /// The keys as the product reads them, transposed: `[…, d, t]`, before any scaling that was found.
    pub k: ValueId,
    /// The values `[…, t, e]`.
    pub v: ValueId,
    /// The product of all constant factors of q, k and their product.
    pub scale: f64,
    /// What is added to the scores, in the order of the additions.
    pub masks: Vec<ValueId>,
    /// The product of queries and keys.
    pub scores: NodeId,
    /// The Softmax.
    pub softmax: NodeId,
    /// The product with the values.
    pub output: NodeId,
    /// All nodes between `q`, `k`, `v` and the output, in topological order; those of scaled queries and keys included.
    pub nodes: Vec<NodeId>,
}

/// All attentions of a graph whose inner values nobody else reads.
pub fn find_attention(graph: &Graph, facts: &Facts) -> Vec<Attention> {
    let options = SanitizeOptions::default();
    let view = View { graph, facts, opset: options.min_opset, options: &options };
    graph.order().iter().filter_map(|&id| at(&view, id).ok()).collect()
}

fn at(view: &View, softmax: NodeId) -> Found<Attention> {
    view.expect(softmax, &["Softmax"])?;
    let weights = view.output(softmax)?;
    let rank = view.rank(weights).or_no()? as i64;
    when(matches!(view.int(softmax, "axis", -1), a if a == -1 || a == rank - 1))?;
    let output = view.only_reader(weights)?;
    view.expect(output, &["MatMul"])?;
    when(view.input(output, 0)? == weights)?;
    let v = view.input(output, 1)?;

    let (mut scale, mut masks, mut nodes) = (1.0, Vec::new(), vec![output, softmax]);
    let mut value = view.input(softmax, 0)?;
    let scores = loop {
        when(view.is_single_use(value))?;
        let id = view.maker(value)?;
        nodes.push(id);
        if view.is(id, "MatMul") {
            break id;
        }
        if let Some((x, factor)) = scaled(view, id) {
            (value, scale) = (x, scale * factor);
            continue;
        }
        view.expect(id, &["Add"])?;
        // The scores are what leads to a product; the scale of what is added before it does not concern the mask.
        when(scale == 1.0)?;
        let leads = |v: ValueId| leads_to_product(view, v);
        let (a, b) = (view.input(id, 0)?, view.input(id, 1)?);
        let (x, mask) = if leads(a) { (a, b) } else { (b, a) };
        masks.push(mask);
        value = x;
    };
    masks.reverse();
    let mut side = |i: usize| -> Found<ValueId> {
        let mut value = view.input(scores, i)?;
        while let Ok(id) = view.maker(value) {
            let Some((x, factor)) = scaled(view, id).filter(|_| view.is_single_use(value)) else { break };
            nodes.push(id);
            (value, scale) = (x, scale * factor);
        }
        Ok(value)
    };
    let (q, k) = (side(0)?, side(1)?);
    nodes.sort_by_key(|n| view.graph.order().iter().position(|o| o == n));
    Ok(Attention { q, k, v, scale, masks, scores, softmax, output, nodes })
}

/// What a node multiplies by a constant number, and the number.
fn scaled(view: &View, id: NodeId) -> Option<(ValueId, f64)> {
    let node = view.node(id);
    let (a, b) = (node.input(0)?, node.input(1)?);
    if view.is(id, "Div") {
        return view.scalar(b).filter(|&c| c != 0.0).map(|c| (a, 1.0 / c));
    }
    if !view.is(id, "Mul") {
        return None;
    }
    view.scalar(b).map(|c| (a, c)).or_else(|| view.scalar(a).map(|c| (b, c)))
}

fn leads_to_product(view: &View, mut v: ValueId) -> bool {
    for _ in 0..4 {
        let Ok(id) = view.maker(v) else { return false };
        if view.is(id, "MatMul") {
            return true;
        }
        let next = scaled(view, id).map(|s| s.0).or_else(|| {
            let node = view.node(id);
            let first = view.is(id, "Add").then(|| node.input(0)).flatten()?;
            view.made_by(first, &["MatMul", "Mul", "Div", "Add"]).is_ok().then_some(first)
        });
        match next {
            Some(x) => v = x,
            None => return false,
        }
    }
    false
}
