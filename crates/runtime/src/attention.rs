//! Attention as exporters write it, brought to the form that [`crate::fuse`] knows: one mask behind the product, and keys that
//! are transposed right before it.
//!
//! - Several masks (a bias of relative positions, then hidden keys) become one: `(s + a) + b` is `s + (a + b)`, within
//!   the rounding of floats, and `a + b` is made once for all layers that have the same two.
//! - A mask that is added under another shape (windows of an image, apart from the batch) gets the shape of the scores.
//! - A factor for each head (cosine attention) goes to the queries, which are fewer.
//! - A Transpose between Reshapes that only join or part leading axes goes behind them.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, Graph, Node, Patch, PatchError, ValueId};
use narrowbit_tensor::Tensor;

use crate::scene::{Scene, op, rewrite, same};

/// As many edits of one attention as are made, one in each round.
const ROUNDS: usize = 8;

/// The graph with all its attention in one form; `None` where there is nothing to do.
///
/// # Errors
/// Never for a graph that verifies.
pub fn normalise(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    if !graph.nodes().any(|(_, n)| n.op.name() == "Softmax") {
        return Ok(None);
    }
    rewrite(graph, ROUNDS, |scene| {
        let mut edit = Edit { scene, patch: Patch::new(scene.graph), sums: BTreeMap::new() };
        for (_, node) in scene.graph.nodes() {
            match node.op.name() {
                "Softmax" => edit.scores(node),
                "Reshape" => edit.transposed(node),
                _ => None,
            };
        }
        (!edit.patch.is_empty()).then_some(edit.patch)
    })
}

struct Edit<'a> {
    scene: &'a Scene<'a>,
    patch: Patch,
    /// Sums of two masks that were made.
    sums: BTreeMap<(ValueId, ValueId), ValueId>,
}

impl Edit<'_> {
    /// The first thing to do on the way to a Softmax.
    fn scores(&mut self, softmax: &Node) -> Option<()> {
        let x = softmax.input(0)?;
        self.reshaped_mask(x).or_else(|| self.masks(x)).or_else(|| self.head_factor(x))
    }

    /// Both sides of an Add: what leads to a product of activations, and the mask.
    fn sides(&self, add: &Node) -> Option<(ValueId, ValueId)> {
        let (a, b) = (add.input(0)?, add.input(1)?);
        let leads = |v: ValueId| self.leads_to_product(v, 8) && self.scene.same_shape(v, add.outputs[0].unwrap_or(v));
        if leads(a) { Some((a, b)) } else { leads(b).then_some((b, a)) }
    }

    /// Whether scores begin with a product of activations, in so many steps.
    fn leads_to_product(&self, v: ValueId, steps: usize) -> bool {
        let names = ["MatMul", "Mul", "Div", "Add", "Reshape"];
        let Some(node) = self.scene.only_made_by(v, &names).filter(|_| steps > 0) else { return false };
        match node.op.name() {
            "MatMul" => node.input(1).is_some_and(|b| self.scene.constant(b).is_none()),
            "Add" => node.inputs.iter().flatten().any(|&v| self.leads_to_product(v, steps - 1)),
            _ => node.input(0).is_some_and(|x| self.leads_to_product(x, steps - 1)),
        }
    }

    /// `Reshape(Reshape(s) + mask)` of the shape of `s`, the second shape with an axis of one in front.
    fn reshaped_mask(&mut self, x: ValueId) -> Option<()> {
        let scene = self.scene;
        let back = scene.only_made_by(x, &["Reshape"])?;
        let add = scene.only_made_by(back.input(0)?, &["Add"])?;
        let (wide, mask) = self.sides(add)?;
        let there = scene.only_made_by(wide, &["Reshape"])?;
        let s = there.input(0).filter(|&s| scene.same_shape(s, x))?;
        let (narrow, wide) = (scene.shape(s)?, scene.shape(wide)?);
        let in_front = wide.first()?.as_usize() == Some(1) && same(&wide[1..], narrow);
        let rank = scene.shape(mask)?.len();
        let mask = match rank == wide.len() {
            true if in_front && scene.shape(mask)?.first()?.as_usize() == Some(1) => {
                let axes = self.patch.constant("mask_axes", Tensor::vector(vec![0i64]));
                self.patch.node("mask", op("Squeeze", AttrMap::new())?, &[Some(mask), Some(axes)])
            }
            false if in_front && rank < wide.len() => mask,
            _ => return None,
        };
        let sum = self.patch.node(&add.name, Arc::clone(&add.op), &[Some(s), Some(mask)]);
        self.patch.replace(x, sum);
        Some(())
    }

    /// `(s + a) + b`.
    fn masks(&mut self, x: ValueId) -> Option<()> {
        let scene = self.scene;
        let outer = scene.only_made_by(x, &["Add"])?;
        let (inner, b) = self.sides(outer)?;
        let add = scene.only_made_by(inner, &["Add"])?;
        let (s, a) = self.sides(add)?;
        let sum = match self.sums.get(&(a, b)) {
            Some(&sum) => sum,
            None => {
                let sum = self.patch.node(&format!("{}_masks", add.name), Arc::clone(&add.op), &[Some(a), Some(b)]);
                self.sums.insert((a, b), sum);
                sum
            }
        };
        let masked = self.patch.node(&outer.name, Arc::clone(&outer.op), &[Some(s), Some(sum)]);
        self.patch.replace(x, masked);
        Some(())
    }

    /// `(q · kᵀ) · f`, with a constant `f` for each head: `(q · f) · kᵀ`.
    fn head_factor(&mut self, x: ValueId) -> Option<()> {
        let scene = self.scene;
        let made = scene.only_made_by(x, &["Add", "Mul"])?;
        let product = if made.op.name() == "Add" { self.sides(made)?.0 } else { x };
        let mul = scene.only_made_by(product, &["Mul"])?;
        let (scores, factor) = (mul.input(0)?, mul.input(1)?);
        let dims = scene.constant(factor)?.shape().to_vec();
        let by_head = dims.len() >= 3 && dims[dims.len() - 2..] == [1, 1] && dims.iter().any(|&d| d != 1);
        let matmul = scene.only_made_by(scores, &["MatMul"])?;
        let (q, kt) = (matmul.input(0)?, matmul.input(1)?);
        let quantized = |v| scene.maker(v).is_some_and(|(_, n)| n.op.name() == "DequantizeLinear");
        let rank = |v| scene.shape(v).map(<[Dim]>::len);
        let fits = by_head && scene.same_shape(scores, product) && rank(q) == rank(scores) && rank(q)? >= dims.len();
        let shared = scene.shape(q)?.len() >= 3 && self.covers(q, scores);
        if !fits || !shared || quantized(q) || scene.constant(kt).is_some() {
            return None;
        }
        let scaled = self.patch.node(&mul.name, Arc::clone(&mul.op), &[Some(q), Some(factor)]);
        let scores = self.patch.node(&matmul.name, Arc::clone(&matmul.op), &[Some(scaled), Some(kt)]);
        self.patch.replace(product, scores);
        Some(())
    }

    /// Whether queries have the heads of the scores.
    fn covers(&self, q: ValueId, scores: ValueId) -> bool {
        let lead = |v: ValueId| self.scene.shape(v).and_then(|s| s.len().checked_sub(2).map(|n| &s[..n]));
        lead(q).zip(lead(scores)).is_some_and(|(a, b)| same(a, b))
    }

    /// `Reshape(Transpose(x))` that keeps the last two axes, which the Transpose swaps: `Transpose(Reshape(x))`.
    fn transposed(&mut self, reshape: &Node) -> Option<()> {
        let scene = self.scene;
        let y = reshape.output(0)?;
        let transpose = scene.only_made_by(reshape.input(0)?, &["Transpose"])?;
        let (x, perm) = (transpose.input(0)?, scene.perm(transpose)?);
        let rank = perm.len();
        let (from, to) = (scene.shape(x)?.to_vec(), scene.shape(y)?.to_vec());
        let swaps = rank >= 2
            && perm[..rank - 2].iter().enumerate().all(|(i, &p)| i == p)
            && perm[rank - 2..] == [rank - 1, rank - 2];
        if !swaps || to.len() < 2 || !same(&[from[rank - 1].clone(), from[rank - 2].clone()], &to[to.len() - 2..]) {
            return None;
        }
        let last = to.len();
        let mut shape: Vec<i64> =
            to.iter().map(|d| d.as_usize().and_then(|d| i64::try_from(d).ok()).unwrap_or(-1)).collect();
        shape.swap(last - 2, last - 1);
        // One extent may be unknown, and none may be 0, which a Reshape takes for another meaning.
        if shape.iter().filter(|&&d| d < 0).count() > 1 || shape.contains(&0) {
            return None;
        }
        let mut swap: Vec<i64> = (0..last as i64).collect();
        swap.swap(last - 2, last - 1);
        let name = &reshape.name;
        let shape = self.patch.constant(&format!("{name}_shape"), Tensor::vector(shape));
        let dense = self.patch.node(name, op("Reshape", AttrMap::new())?, &[Some(x), Some(shape)]);
        let turn = op("Transpose", AttrMap::new().with("perm", swap))?;
        let turned = self.patch.node(&transpose.name, turn, &[Some(dense)]);
        self.patch.replace(y, turned);
        Some(())
    }
}
