//! Operators that stand for several others, as those: each part has a kernel, and what belongs together is fused across them.
//!
//! ONNX Runtime's optimizer writes SkipLayerNormalization, EmbedLayerNormalization, Attention and MultiHeadAttention, its
//! dynamic quantization QAttention; ONNX 23 has an Attention of its own. Sums are those of the kernels then, within the
//! rounding of floats of what the operators say. Forms with a cache, a window or a soft cap stay as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Graph, Node, Op, OpSource, Patch, PatchError, ValueId};
use narrowbit_ops::Registry;
use narrowbit_ops::microsoft::attention::{Attention, MultiHeadAttention};
use narrowbit_ops::microsoft::skip_layer_norm::SkipLayerNorm;
use narrowbit_ops::nn::attention::Attention as OnnxAttention;
use narrowbit_tensor::{DType, Tensor};

use crate::scene::{Scene, op, rewrite};

/// Added to the scores of keys that a mask hides, unless the file says otherwise (ONNX Runtime).
const FILTER: f32 = -10000.0;
/// Scores of a mask that is a constant, at the most.
const MOST: usize = 1 << 24;

/// The operators that are taken apart.
const WHOLE: [&str; 6] = [
    "Attention",
    "EmbedLayerNormalization",
    "MultiHeadAttention",
    "QAttention",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];

/// The graph with parts instead of what they make up; `None` where there is nothing to do.
///
/// # Errors
/// Never for a graph that verifies.
pub fn take_apart(graph: &Graph) -> Result<Option<Graph>, PatchError> {
    if !graph.nodes().any(|(_, n)| WHOLE.contains(&n.op.name())) {
        return Ok(None);
    }
    rewrite(graph, 1, |scene| {
        let mut edit = Edit { scene, patch: Patch::new(scene.graph), moved: BTreeMap::new() };
        for (_, node) in scene.graph.nodes() {
            let made = match (node.op.domain(), node.op.name()) {
                ("", "Attention") => edit.onnx_attention(node),
                ("com.microsoft", "Attention" | "QAttention") => edit.self_attention(node),
                ("com.microsoft", "MultiHeadAttention") => edit.multi_head(node),
                ("com.microsoft", "EmbedLayerNormalization") => edit.embedding(node),
                ("com.microsoft", "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization") => edit.skip(node),
                _ => None,
            };
            for (old, new) in made.into_iter().flatten() {
                edit.patch.replace(old, new);
                edit.moved.insert(old, new);
            }
        }
        (!edit.patch.is_empty()).then_some(edit.patch)
    })
}

/// Results of a node, and what stands for them.
type Made = Vec<(ValueId, ValueId)>;

/// What attention is made of.
struct Heads {
    count: i64,
    /// The factor of the scores.
    scale: f32,
    /// Whether queries, keys and values have an axis of heads already.
    apart: bool,
    /// Added to the scores, one after the other.
    masks: Vec<ValueId>,
}

struct Edit<'a> {
    scene: &'a Scene<'a>,
    patch: Patch,
    /// What stands for a value of the graph from here on.
    moved: BTreeMap<ValueId, ValueId>,
}

impl Edit<'_> {
    fn input(&self, node: &Node, i: usize) -> Option<ValueId> {
        let v = node.input(i)?;
        Some(self.moved.get(&v).copied().unwrap_or(v))
    }

    /// The extent of an axis, from the back where negative, where it is known.
    fn extent(&self, node: &Node, i: usize, axis: isize) -> Option<usize> {
        let shape = self.scene.shape(node.input(i)?)?;
        shape.get(if axis < 0 { shape.len().checked_add_signed(axis)? } else { axis as usize })?.as_usize()
    }

    fn rank(&self, node: &Node, i: usize) -> Option<usize> {
        Some(self.scene.shape(node.input(i)?)?.len())
    }

    fn is(&self, node: &Node, i: usize, dtype: DType) -> bool {
        node.input(i).is_some_and(|v| self.scene.dtype(v) == Some(dtype))
    }

    /// Whether only the output `kept` and the first one have readers.
    fn makes_only(&self, node: &Node, kept: usize) -> bool {
        node.outputs.iter().enumerate().all(|(i, v)| {
            let unused = |v: ValueId| self.scene.graph.uses(v).is_empty() && !self.scene.graph.is_output(v);
            i == 0 || i == kept || v.is_none_or(unused)
        })
    }

    fn add(&mut self, name: &str, operator: &str, inputs: &[ValueId], attrs: AttrMap) -> Option<ValueId> {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        Some(self.patch.node(name, op(operator, attrs)?, &inputs))
    }

    fn floats(&mut self, name: &str, x: f32) -> ValueId {
        self.patch.constant(name, Tensor::scalar(x))
    }

    fn reshaped(&mut self, name: &str, x: ValueId, shape: Vec<i64>) -> Option<ValueId> {
        let shape = self.patch.constant(&format!("{name}_shape"), Tensor::vector(shape));
        self.add(name, "Reshape", &[x, shape], AttrMap::new())
    }

    fn turned(&mut self, name: &str, x: ValueId, perm: [i64; 4]) -> Option<ValueId> {
        self.add(name, "Transpose", &[x], AttrMap::new().with("perm", perm.to_vec()))
    }

    /// `softmax(q · kᵀ · scale + masks) · v` of `[batch, length, heads · size]`, or by head, in the same form.
    fn attend(&mut self, name: &str, [q, k, v]: [ValueId; 3], heads: &Heads) -> Option<ValueId> {
        let part = |edit: &mut Self, what: &str, x, perm: [i64; 4]| {
            let name = format!("{name}_{what}");
            let x =
                if heads.apart { x } else { edit.reshaped(&format!("{name}_heads"), x, vec![0, 0, heads.count, -1])? };
            if heads.apart && perm == [0, 1, 2, 3] { Some(x) } else { edit.turned(&name, x, perm) }
        };
        let (rows, keys) = if heads.apart { ([0, 1, 2, 3], [0, 1, 3, 2]) } else { ([0, 2, 1, 3], [0, 2, 3, 1]) };
        let (q, k, v) = (part(self, "queries", q, rows)?, part(self, "keys", k, keys)?, part(self, "values", v, rows)?);
        let mut s = self.add(&format!("{name}_scores"), "MatMul", &[q, k], AttrMap::new())?;
        let scale = self.floats(&format!("{name}_scale"), heads.scale);
        s = self.add(&format!("{name}_scaled"), "Mul", &[s, scale], AttrMap::new())?;
        for &mask in &heads.masks {
            s = self.add(&format!("{name}_masked"), "Add", &[s, mask], AttrMap::new())?;
        }
        let p = self.add(&format!("{name}_weights"), "Softmax", &[s], AttrMap::new().with("axis", -1i64))?;
        let y = self.add(&format!("{name}_product"), "MatMul", &[p, v], AttrMap::new())?;
        if heads.apart {
            return Some(y);
        }
        let y = self.turned(&format!("{name}_turned"), y, rows)?;
        self.reshaped(name, y, vec![0, 0, -1])
    }

    /// The mask of ONNX Runtime's `[batch, keys]` or `[batch, queries, keys]`, as what is added to scores.
    fn hidden(&mut self, node: &Node, i: usize, filter: f32) -> Option<ValueId> {
        let axes = match self.rank(node, i).filter(|_| self.is(node, i, DType::I32))? {
            2 => vec![1i64, 2],
            3 => vec![1],
            _ => return None,
        };
        let (mask, name) = (self.input(node, i)?, &node.name);
        let zero = self.patch.constant(&format!("{name}_none"), Tensor::scalar(0i32));
        let seen = self.add(&format!("{name}_seen"), "Greater", &[mask, zero], AttrMap::new())?;
        let (shown, hidden) =
            (self.floats(&format!("{name}_shown"), 0.0), self.floats(&format!("{name}_hidden"), filter));
        let added = self.add(&format!("{name}_added"), "Where", &[seen, shown, hidden], AttrMap::new())?;
        let axes = self.patch.constant(&format!("{name}_axes"), Tensor::vector(axes));
        self.add(&format!("{name}_mask"), "Unsqueeze", &[added, axes], AttrMap::new())
    }

    /// What hides the keys behind each of `queries` rows.
    fn causal(&mut self, name: &str, queries: usize, keys: usize, filter: f32) -> Option<ValueId> {
        queries.checked_mul(keys).filter(|&n| n <= MOST)?;
        let row = |i: usize| (0..keys).map(move |j| if j > i { filter } else { 0.0 });
        let mask = Tensor::new([queries, keys], (0..queries).flat_map(row).collect::<Vec<f32>>()).ok()?;
        Some(self.patch.constant(&format!("{name}_causal"), mask))
    }

    /// Inputs: Q, K, V, attn_mask, and a cache.
    fn onnx_attention(&mut self, node: &Node) -> Option<Made> {
        let op = node.op.downcast::<OnnxAttention>()?.clone();
        let (y, apart) = (node.output(0)?, self.rank(node, 0)? == 4);
        let floats =
            (0..3).all(|i| self.is(node, i, DType::F32) && self.rank(node, i) == Some(if apart { 4 } else { 3 }));
        let plain = op.softcap == 0.0 && op.left_window.is_none() && op.right_window.is_none();
        let cached = (4..node.inputs.len()).any(|i| node.input(i).is_some());
        if !floats
            || !plain
            || cached
            || !self.makes_only(node, 0)
            || op.softmax_precision.is_some_and(|d| d != DType::F32)
        {
            return None;
        }
        let count = |named: Option<usize>, i: usize| if apart { self.extent(node, i, 1) } else { named };
        let (heads, of_keys) = (count(op.q_num_heads, 0)?, count(op.kv_num_heads, 1)?);
        let size = self.extent(node, 0, -1)? / if apart { 1 } else { heads };
        if heads != of_keys || apart && self.extent(node, 2, 1) != Some(heads) {
            return None;
        }
        let lengths = [0, 1].map(|i| self.extent(node, i, -2));
        let mut masks = Vec::new();
        if let Some(mask) = self.input(node, 3) {
            // A shorter last axis hides the other keys.
            let whole = self.extent(node, 3, -1).is_some_and(|n| Some(n) == lengths[1]);
            masks.push(Some(mask).filter(|_| whole && self.is(node, 3, DType::F32))?);
        }
        if op.is_causal {
            masks.push(self.causal(&node.name, lengths[0]?, lengths[1]?, f32::NEG_INFINITY)?);
        }
        let heads = Heads { count: heads as i64, scale: op.scale.unwrap_or(1.0 / (size as f32).sqrt()), apart, masks };
        let parts = [self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?];
        Some(vec![(y, self.attend(&node.name, parts, &heads)?)])
    }

    /// Inputs: input, weights, bias, mask_index, past, attention_bias; quantized: input, weights, bias, input_scale,
    /// weight_scale, mask_index, the zero points of input and weights, past.
    fn self_attention(&mut self, node: &Node) -> Option<Made> {
        let op = node.op.downcast::<Attention>()?.clone();
        let (y, x, w) = (node.output(0)?, self.input(node, 0)?, self.input(node, 1)?);
        let (mask_at, past_at) = if op.quantized { (5, 8) } else { (3, 4) };
        let typed = if op.quantized { self.is(node, 3, DType::F32) } else { self.is(node, 0, DType::F32) };
        if !typed || node.input(past_at).is_some() || !self.makes_only(node, 0) {
            return None;
        }
        let columns = self.extent(node, 1, -1)?;
        let widths = match &op.qkv_hidden_sizes {
            Some(sizes) => sizes.clone(),
            None => vec![(columns / 3) as i64; 3],
        };
        let size = widths[0] as usize / op.num_heads;
        if widths.iter().sum::<i64>() != columns as i64 || size == 0 {
            return None;
        }
        let name = node.name.clone();
        let mut qkv = if op.quantized {
            let inputs = [Some(x), Some(w), self.input(node, 6), self.input(node, 7)];
            let sums =
                self.patch.node(&format!("{name}_sums"), crate::scene::op("MatMulInteger", AttrMap::new())?, &inputs);
            let to = AttrMap::new().with("to", i64::from(DType::F32.to_onnx()));
            let sums = self.add(&format!("{name}_floats"), "Cast", &[sums], to)?;
            let scales = [self.input(node, 3)?, self.input(node, 4)?];
            let known = scales.map(|v| self.scene.constant(v).and_then(|t| t.to_f32s().ok()));
            let factor = match &known {
                [Some(x), Some(w)] if x.len() == 1 => {
                    let product = w.iter().map(|w| x[0] * w).collect();
                    self.patch.constant(&format!("{name}_factor"), Tensor::vector::<f32>(product))
                }
                _ => self.add(&format!("{name}_factor"), "Mul", &scales, AttrMap::new())?,
            };
            self.add(&format!("{name}_projection"), "Mul", &[sums, factor], AttrMap::new())?
        } else {
            self.add(&format!("{name}_projection"), "MatMul", &[x, w], AttrMap::new())?
        };
        if let Some(bias) = self.input(node, 2) {
            qkv = self.add(&format!("{name}_biased"), "Add", &[qkv, bias], AttrMap::new())?;
        }
        let mut masks = Vec::new();
        let filter = op.mask_filter_value.unwrap_or(FILTER);
        if node.input(mask_at).is_some() {
            masks.push(self.hidden(node, mask_at, filter)?);
        }
        if op.unidirectional {
            let length = self.extent(node, 0, 1)?;
            masks.push(self.causal(&name, length, length, f32::MIN)?);
        }
        masks.extend(self.input(node, 5).filter(|_| !op.quantized));
        let sizes = self.patch.constant(&format!("{name}_sizes"), Tensor::vector(widths));
        let outputs = ["q", "k", "v"].map(|part| format!("{name}_{part}"));
        let outputs = outputs.each_ref().map(|name| Some(name.as_str()));
        let split = crate::scene::op("Split", AttrMap::new().with("axis", -1i64))?;
        let made = self.patch.node_outputs(&format!("{name}_split"), split, &[Some(qkv), Some(sizes)], &outputs);
        let &[Some(q), Some(k), Some(v)] = made.as_slice() else { return None };
        let scale = op.scale.filter(|&s| s != 0.0).unwrap_or(1.0 / (size as f32).sqrt());
        let heads = Heads { count: op.num_heads as i64, scale, apart: false, masks };
        Some(vec![(y, self.attend(&name, [q, k, v], &heads)?)])
    }

    /// Inputs: query, key, value, bias, key_padding_mask, attention_bias, and a cache.
    fn multi_head(&mut self, node: &Node) -> Option<Made> {
        let op = *node.op.downcast::<MultiHeadAttention>()?;
        let y = node.output(0)?;
        let rows = (0..3).all(|i| self.is(node, i, DType::F32) && self.rank(node, i) == Some(3));
        let cached = (6..node.inputs.len()).any(|i| node.input(i).is_some());
        if !rows || cached || !self.makes_only(node, 0) {
            return None;
        }
        let widths = [0, 1, 2].map(|i| self.extent(node, i, -1));
        let [Some(wide), Some(of_keys), Some(of_values)] = widths else { return None };
        let size = wide / op.num_heads;
        if wide != of_keys || size == 0 {
            return None;
        }
        let mut parts = [self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?];
        if let Some(bias) = node.input(3) {
            let bias = self.scene.constant(bias)?.to_f32s().ok()?.into_owned();
            let mut rest = Some(bias.as_slice()).filter(|b| b.len() == wide + of_keys + of_values)?;
            for (i, (part, width)) in parts.iter_mut().zip([wide, of_keys, of_values]).enumerate() {
                let (own, others) = rest.split_at(width);
                rest = others;
                let own = self.patch.constant(&format!("{}_bias_{i}", node.name), Tensor::vector(own.to_vec()));
                *part = self.add(&format!("{}_biased_{i}", node.name), "Add", &[*part, own], AttrMap::new())?;
            }
        }
        let mut masks = Vec::new();
        if node.input(4).is_some() {
            masks.push(self.hidden(node, 4, op.mask_filter_value.unwrap_or(FILTER))?);
        }
        if op.unidirectional {
            let (queries, keys) = (self.extent(node, 0, 1)?, self.extent(node, 1, 1)?);
            masks.push(self.causal(&node.name, queries, keys, f32::MIN).filter(|_| queries == keys)?);
        }
        masks.extend(self.input(node, 5));
        let scale = op.scale.filter(|&s| s != 0.0).unwrap_or(1.0 / (size as f32).sqrt());
        let heads = Heads { count: op.num_heads as i64, scale, apart: false, masks };
        Some(vec![(y, self.attend(&node.name, parts, &heads)?)])
    }

    /// Inputs: input, skip, gamma, beta (not with the root mean square), bias. Outputs: y, statistics, the sum.
    fn skip(&mut self, node: &Node) -> Option<Made> {
        let op = *node.op.downcast::<SkipLayerNorm>()?;
        let y = node.output(0)?;
        if !self.is(node, 0, DType::F32) || !self.makes_only(node, 3) {
            return None;
        }
        let (name, operands) = (&node.name, [self.input(node, 0)?, self.input(node, 1)?]);
        let mut sum = self.add(&format!("{name}_sum"), "Add", &operands, AttrMap::new())?;
        if let Some(bias) = self.input(node, if op.simplified { 3 } else { 4 }) {
            sum = self.add(&format!("{name}_biased"), "Add", &[sum, bias], AttrMap::new())?;
        }
        let beta = self.input(node, 3).filter(|_| !op.simplified);
        let normed = self.normed(name, sum, [self.input(node, 2), beta], (op.epsilon, op.simplified))?;
        let mut made = vec![(y, normed)];
        made.extend(node.output(3).map(|s| (s, sum)));
        Some(made)
    }

    /// Layer normalisation over the last axis, or by the root mean square.
    fn normed(
        &mut self,
        name: &str,
        x: ValueId,
        [gamma, beta]: [Option<ValueId>; 2],
        (epsilon, simplified): (f32, bool),
    ) -> Option<ValueId> {
        let mut attrs = AttrMap::new().with("axis", -1i64).with("epsilon", epsilon);
        if simplified {
            // Younger than the other forms.
            let norm: Arc<dyn Op> = Registry.build("", "RMSNormalization", 23, &mut attrs)?.ok()?;
            return Some(self.patch.node(name, norm, &[Some(x), gamma]));
        }
        let inputs: Vec<Option<ValueId>> = [Some(x), gamma].into_iter().chain(beta.map(Some)).collect();
        Some(self.patch.node(name, op("LayerNormalization", attrs)?, &inputs))
    }

    /// Inputs: input_ids, segment_ids, the tables of words, positions and segments, gamma, beta, mask, position_ids. Outputs:
    /// y, a mask, the sum.
    fn embedding(&mut self, node: &Node) -> Option<Made> {
        let y = node.output(0)?;
        if !self.is(node, 2, DType::F32) || !self.makes_only(node, 2) || self.rank(node, 0)? != 2 {
            return None;
        }
        let epsilon = node.op.attrs().float_or("epsilon", 1e-12).ok()?;
        let name = &node.name;
        let rows = |edit: &mut Self, what: &str, table: usize, ids: ValueId| {
            let inputs = [edit.input(node, table)?, ids];
            edit.add(&format!("{name}_{what}"), "Gather", &inputs, AttrMap::new().with("axis", 0i64))
        };
        let positions = match self.input(node, 8) {
            Some(ids) => ids,
            None => {
                let length = self.extent(node, 0, 1).filter(|&n| n <= MOST)?;
                let all = Tensor::new([1, length], (0..length as i64).collect::<Vec<i64>>()).ok()?;
                self.patch.constant(&format!("{name}_places"), all)
            }
        };
        let ids = self.input(node, 0)?;
        let words = rows(self, "words", 2, ids)?;
        let places = rows(self, "positions", 3, positions)?;
        let mut sum = self.add(&format!("{name}_sum"), "Add", &[words, places], AttrMap::new())?;
        if let Some(segments) = self.input(node, 1).filter(|_| node.input(4).is_some()) {
            let segments = rows(self, "segments", 4, segments)?;
            sum = self.add(&format!("{name}_summed"), "Add", &[sum, segments], AttrMap::new())?;
        }
        let normed = self.normed(name, sum, [self.input(node, 5), self.input(node, 6)], (epsilon, false))?;
        let mut made = vec![(y, normed)];
        made.extend(node.output(2).map(|s| (s, sum)));
        Some(made)
    }
}
