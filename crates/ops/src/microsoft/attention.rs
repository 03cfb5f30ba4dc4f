//! Attention and QAttention: self-attention with the input projection.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::attend::{Bias, FILTER, Heads, added, append, attend, mask, split_heads};
use super::matmul_integer_to_float::scale_bias;
use super::qgemm::per_column;
use super::support::{DOMAIN, extents, permute, vector};
use crate::quant::matmul_integer::{Side, centred};
use crate::quant::params::single_f32;
use crate::quant::product::{Product, mac_f64, mac_i32};

/// Multi-head self-attention: `[q, k, v] = input · weights + bias`, then attention.
///
/// Inputs: input `[batch, length, width]`, weights `[width, 3 * hidden]` (or the sum of
/// `qkv_hidden_sizes`), optional bias, optional mask_index (i32), optional past `[2, batch, heads, past, size]`,
/// optional attention_bias `[batch or 1, heads or 1, length, total]`. Quantized: input, weights (8 bits), bias,
/// input_scale, weight_scale, optional mask_index, input_zero_point, weight_zero_point, past; the projection is an
/// integer product. Outputs: `[batch, length, v_hidden]`; present `[2, batch, heads, total, size]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// The number of heads.
    pub num_heads: usize,
    /// Whether a query only sees keys up to its own position.
    pub unidirectional: bool,
    /// Factor of the products of queries and keys; `None` is one over the root of the head's size.
    pub scale: Option<f32>,
    /// What is added for masked keys; `None` is -10000.
    pub mask_filter_value: Option<f32>,
    /// The widths of queries, keys and values; `None` is thirds of the weights.
    pub qkv_hidden_sizes: Option<Vec<i64>>,
    /// Whether this is QAttention.
    pub quantized: bool,
}

fn make(attrs: &mut AttrMap, quantized: bool) -> Result<Arc<dyn Op>, OpError> {
    let heads = heads(attrs)?;
    for name in ["do_rotary", "past_present_share_buffer"] {
        if attrs.flag(name)? {
            return Err(OpError::Unsupported(format!("attribute \"{name}\"")));
        }
    }
    attrs.take("rotary_embedding_dim");
    let qkv_hidden_sizes = if quantized { None } else { attrs.ints("qkv_hidden_sizes")? };
    if let Some(s) = qkv_hidden_sizes.as_ref() {
        let fits = |v: &i64| *v > 0 && *v <= i64::from(i32::MAX) && v % heads as i64 == 0;
        if s.len() != 3 || s[0] != s[1] || !s.iter().all(fits) {
            let problem = format!("is {s:?}: expected three multiples of {heads}, the first two equal");
            return Err(OpError::attribute("qkv_hidden_sizes", problem));
        }
    }
    Ok(Arc::new(Attention {
        num_heads: heads,
        unidirectional: attrs.flag("unidirectional")?,
        scale: attrs.float("scale")?,
        mask_filter_value: attrs.float("mask_filter_value")?,
        qkv_hidden_sizes,
        quantized,
    }))
}

/// Makes an Attention.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    make(attrs, false)
}

/// Makes a QAttention.
pub fn build_quantized(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    make(attrs, true)
}

/// Takes the number of heads, which must be positive.
pub(crate) fn heads(attrs: &mut AttrMap) -> Result<usize, OpError> {
    let n = attrs.int("num_heads")?.ok_or_else(|| OpError::attribute("num_heads", "is missing"))?;
    usize::try_from(n)
        .ok()
        .filter(|&n| n > 0 && n <= 1 << 20)
        .ok_or_else(|| OpError::attribute("num_heads", format!("is {n}, but must be positive")))
}

impl Attention {
    /// Widths of queries (and keys) and of values.
    fn widths(&self, columns: usize) -> Result<(usize, usize), OpError> {
        let (q, v) = match &self.qkv_hidden_sizes {
            Some(s) => (s[0] as usize, s[2] as usize),
            None => (columns / 3, columns / 3),
        };
        let fits = 2 * q + v == columns && q % self.num_heads == 0 && v % self.num_heads == 0;
        if !fits {
            let message = format!("weights of {columns} columns can't be split among {} heads", self.num_heads);
            return Err(OpError::shape(message));
        }
        Ok((q, v))
    }

    /// `input · weights + bias`, `[batch * length, columns]`.
    fn project(&self, cx: &EvalCx, columns: usize) -> Result<Vec<f32>, OpError> {
        let (x, w) = (cx.get(0)?, cx.get(1)?);
        let product = Product::new(x.shape(), w.shape(), DType::F64)?;
        let bias = vector(cx.opt(2), 2, columns)?;
        if self.quantized {
            let xs = centred(x, cx.opt(6), 0, Side::Rows)?;
            let acc = product.run(&xs, &centred(w, cx.opt(7), 1, Side::Columns)?, 0, mac_i32);
            let scales = per_column(&cx.get(4)?.to_f32s()?, columns, "scales")?;
            return Ok(scale_bias(acc, single_f32(cx.get(3)?, 3)?, &scales, bias.as_deref(), columns));
        }
        let sums = product.run(&x.to_f32s()?, &w.to_f32s()?, 0f64, mac_f64);
        let add = |(i, s): (usize, f64)| (s + bias.as_ref().map_or(0.0, |b| f64::from(b[i % columns]))) as f32;
        Ok(sums.into_iter().enumerate().map(add).collect())
    }

    fn out_type(&self, cx: &EvalCx) -> Result<DType, OpError> {
        Ok(cx.get(if self.quantized { 3 } else { 0 })?.dtype())
    }
}

/// The columns `from..from + width` of rows of `columns`.
fn columns_of(x: &[f32], columns: usize, from: usize, width: usize) -> Vec<f32> {
    x.chunks_exact(columns.max(1)).flat_map(|r| r[from..from + width].iter().copied()).collect()
}

impl Op for Attention {
    fn name(&self) -> &str {
        if self.quantized { "QAttention" } else { "Attention" }
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let x = cx.get(0)?.shape();
        let dtype = cx.dtype(if self.quantized { 3 } else { 0 });
        let width = match (&self.qkv_hidden_sizes, cx.shape(1).and_then(<[Dim]>::last)) {
            (Some(s), _) => Dim::Known(s[2]),
            (None, Some(d)) => d.div(&Dim::Known(3)),
            (None, None) => Dim::Unknown,
        };
        let size = width.div(&Dim::Known(self.num_heads as i64));
        let Some([batch, length, _]) = x else { return Ok(vec![Fact::tensor(dtype, None); 2]) };
        let past = if self.quantized { 8 } else { 4 };
        let total = match cx.opt(past) {
            None => length.clone(),
            Some(f) => f.shape().and_then(|s| s.get(3)).map_or(Dim::Unknown, |p| p.add(length)),
        };
        let out = vec![batch.clone(), length.clone(), width];
        let present = vec![Dim::Known(2), batch.clone(), (self.num_heads).into(), total, size];
        Ok(vec![Fact::tensor(dtype, Some(out)), Fact::tensor(dtype, Some(present))])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let [batch, length, _] = extents(cx.get(0)?, 0)?;
        let [_, columns] = extents(cx.get(1)?, 1)?;
        let (q_width, v_width) = self.widths(columns)?;
        let (heads, size, v_size) = (self.num_heads, q_width / self.num_heads, v_width / self.num_heads);
        let qkv = self.project(cx, columns)?;
        let part = |from, width, size| split_heads(&columns_of(&qkv, columns, from, width), batch, length, heads, size);
        let q = part(0, q_width, size);
        let (mut k, mut v) = (part(q_width, q_width, size), part(2 * q_width, v_width, v_size));
        let mut total = length;
        let (mask_at, past_at) = if self.quantized { (5, 8) } else { (3, 4) };
        if let Some(past) = cx.opt(past_at) {
            let [two, b, n, p, s] = extents(past, past_at)?;
            if [two, b, n, s] != [2, batch, heads, size] || size != v_size {
                return Err(OpError::input(
                    past_at,
                    format!("of shape {:?}", past.shape()),
                    format!("[2, {batch}, {heads}, .., {size}]"),
                ));
            }
            let values = past.to_f32s()?;
            let (pk, pv) = values.split_at(values.len() / 2);
            (k, v) = (append(pk, &k, batch * heads), append(pv, &v, batch * heads));
            total += p;
        }
        let filter = self.mask_filter_value.unwrap_or(FILTER);
        let masked = mask(cx.opt(mask_at), mask_at, [batch, length, total], self.unidirectional, filter)?;
        let extra = if self.quantized { None } else { cx.opt(5) };
        let bias = Bias { mask: masked, added: added(extra, 5, [batch, heads, length, total])? };
        let h = Heads { batch, heads, length, total, size, v_size, q, k, v };
        let scale = self.scale.filter(|&s| s != 0.0).unwrap_or(1.0 / (size as f32).sqrt());
        let (y, _) = attend(&h, scale, &bias, false)?;
        let dtype = self.out_type(cx)?;
        let mut out = vec![Tensor::from_f32s(dtype, [batch, length, v_width], y)?];
        if size == v_size {
            check_size(DType::F32, &[2, batch, heads, total, size])?;
            let present = [h.k, h.v].concat();
            out.push(Tensor::from_f32s(dtype, [2, batch, heads, total, size], present)?);
        }
        Ok(out)
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with("num_heads", self.num_heads as i64)
            .with_unless("unidirectional", i64::from(self.unidirectional), 0)
            .with_opt("scale", self.scale)
            .with_opt("mask_filter_value", self.mask_filter_value)
            .with_opt("qkv_hidden_sizes", self.qkv_hidden_sizes.clone())
    }
}

/// Attention on projected queries, keys and values, self or cross.
///
/// Inputs: query `[batch, length, hidden]` (or packed with key and value `[batch, length, heads, 3, size]`),
/// optional key `[batch, keys, hidden]` (or packed with value `[batch, keys, heads, 2, size]`, or by head
/// `[batch, heads, keys, size]`), optional value in the same form, optional bias of all three, optional
/// key_padding_mask (i32), optional attention_bias, optional past_key and past_value `[batch, heads, past, size]`.
/// Outputs: `[batch, length, v_hidden]`; present key and value; the scores before the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultiHeadAttention {
    /// The number of heads.
    pub num_heads: usize,
    /// Whether a query only sees keys up to its own position.
    pub unidirectional: bool,
    /// Factor of the products of queries and keys; `None` is one over the root of the head's size.
    pub scale: Option<f32>,
    /// What is added for masked keys; `None` is -10000.
    pub mask_filter_value: Option<f32>,
}

/// Makes a MultiHeadAttention.
pub fn build_multi_head(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(MultiHeadAttention {
        num_heads: heads(attrs)?,
        unidirectional: attrs.flag("unidirectional")?,
        scale: attrs.float("scale")?,
        mask_filter_value: attrs.float("mask_filter_value")?,
    }))
}

/// One of query, key and value as `[batch, heads, length, size]`.
struct Part {
    values: Vec<f32>,
    length: usize,
    size: usize,
}

impl MultiHeadAttention {
    /// A part from `[batch, length, hidden]`, with its slice of the bias.
    fn rows(&self, t: &Tensor, index: usize, bias: &mut &[f32]) -> Result<Part, OpError> {
        let [batch, length, hidden] = extents(t, index)?;
        if hidden % self.num_heads != 0 {
            return Err(OpError::input(
                index,
                format!("of shape {:?}", t.shape()),
                format!("a multiple of {} columns", self.num_heads),
            ));
        }
        let mut x = t.to_f32s()?.into_owned();
        take_bias(&mut x, hidden, bias)?;
        let size = hidden / self.num_heads;
        Ok(Part { values: split_heads(&x, batch, length, self.num_heads, size), length, size })
    }

    /// The parts of a packed tensor `[batch, length, heads, parts, size]`.
    fn packed(&self, t: &Tensor, index: usize, parts: usize, bias: &mut &[f32]) -> Result<Vec<Part>, OpError> {
        let [batch, length, heads, p, size] = extents(t, index)?;
        if p != parts || heads != self.num_heads {
            let expected = format!("[batch, length, {}, {parts}, size]", self.num_heads);
            return Err(OpError::input(index, format!("of shape {:?}", t.shape()), expected));
        }
        let (_, apart) = permute(&t.to_f32s()?, t.shape(), &[3, 0, 1, 2, 4]);
        let hidden = heads * size;
        apart
            .chunks(length.saturating_mul(batch * hidden).max(1))
            .map(|x| {
                let mut x = x.to_vec();
                take_bias(&mut x, hidden, bias)?;
                Ok(Part { values: split_heads(&x, batch, length, heads, size), length, size })
            })
            .collect()
    }

    fn parts(&self, cx: &EvalCx) -> Result<[Part; 3], OpError> {
        let owned = cx.opt(3).map(|t| t.to_f32s()).transpose()?.unwrap_or_default();
        let mut bias: &[f32] = &owned;
        let query = cx.get(0)?;
        let all =
            |v: Vec<Part>| v.try_into().map_err(|_| OpError::input(0, "an empty tensor", "queries, keys and values"));
        if query.rank() == 5 {
            return all(self.packed(query, 0, 3, &mut bias)?);
        }
        let q = self.rows(query, 0, &mut bias)?;
        let key = cx.get(1)?;
        if key.rank() == 5 {
            let kv = self.packed(key, 1, 2, &mut bias)?;
            return all([q].into_iter().chain(kv).collect());
        }
        if key.rank() == 4 {
            let by_head = |i: usize| {
                let t = cx.get(i)?;
                let [_, _, length, size] = extents(t, i)?;
                Ok::<_, OpError>(Part { values: t.to_f32s()?.into_owned(), length, size })
            };
            return Ok([q, by_head(1)?, by_head(2)?]);
        }
        Ok([q, self.rows(key, 1, &mut bias)?, self.rows(cx.get(2)?, 2, &mut bias)?])
    }
}

/// Adds the next `width` numbers of the bias to each row.
fn take_bias(x: &mut [f32], width: usize, bias: &mut &[f32]) -> Result<(), OpError> {
    if bias.is_empty() || width == 0 {
        return Ok(());
    }
    if bias.len() < width {
        return Err(OpError::shape(format!("the bias ends {} numbers too early", width - bias.len())));
    }
    let (own, rest) = bias.split_at(width);
    x.chunks_exact_mut(width).for_each(|r| r.iter_mut().zip(own).for_each(|(v, b)| *v += b));
    *bias = rest;
    Ok(())
}

impl Op for MultiHeadAttention {
    fn name(&self) -> &str {
        "MultiHeadAttention"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = cx.get(0)?.dtype();
        let heads = Dim::from(self.num_heads);
        let (out, batch) = match (cx.shape(0), cx.shape(2), cx.shape(1)) {
            (Some([b, s, n, _, h]), _, _) => (Some(vec![b.clone(), s.clone(), n.mul(h)]), b.clone()),
            (Some([b, s, _]), Some([_, _, v]), _) => (Some(vec![b.clone(), s.clone(), v.clone()]), b.clone()),
            (Some([b, s, _]), Some([_, n, _, v]), _) => (Some(vec![b.clone(), s.clone(), n.mul(v)]), b.clone()),
            (Some([b, s, _]), None, Some([_, _, n, _, h])) => (Some(vec![b.clone(), s.clone(), n.mul(h)]), b.clone()),
            _ => (None, Dim::Unknown),
        };
        let present = Fact::tensor(dtype, Some(vec![batch.clone(), heads.clone(), Dim::Unknown, Dim::Unknown]));
        let qk = Fact::tensor(dtype, Some(vec![batch, heads, Dim::Unknown, Dim::Unknown]));
        Ok(vec![Fact::tensor(dtype, out), present.clone(), present, qk])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        let batch = cx.get(0)?.shape().first().copied().unwrap_or(0);
        let heads = self.num_heads;
        let [q, mut k, mut v] = self.parts(cx)?;
        let past = |part: &mut Part, i: usize| {
            let Some(t) = cx.opt(i) else { return Ok(()) };
            let [b, n, p, s] = extents(t, i)?;
            if [b, n, s] != [batch, heads, part.size] {
                return Err(OpError::input(
                    i,
                    format!("of shape {:?}", t.shape()),
                    format!("[{batch}, {heads}, .., {}]", part.size),
                ));
            }
            part.values = append(&t.to_f32s()?, &part.values, batch * heads);
            part.length += p;
            Ok(())
        };
        past(&mut k, 6)?;
        past(&mut v, 7)?;
        let sizes =
            |p: &Part| batch.saturating_mul(heads).saturating_mul(p.length).saturating_mul(p.size) == p.values.len();
        if k.size != q.size || k.length != v.length || ![&q, &k, &v].into_iter().all(sizes) {
            return Err(OpError::shape("queries, keys and values do not fit together".to_string()));
        }
        let (length, total) = (q.length, k.length);
        let masked =
            mask(cx.opt(4), 4, [batch, length, total], self.unidirectional, self.mask_filter_value.unwrap_or(FILTER))?;
        let bias = Bias { mask: masked, added: added(cx.opt(5), 5, [batch, heads, length, total])? };
        let h =
            Heads { batch, heads, length, total, size: q.size, v_size: v.size, q: q.values, k: k.values, v: v.values };
        let scale = self.scale.filter(|&s| s != 0.0).unwrap_or(1.0 / (h.size as f32).sqrt());
        let wants_scores = cx.n_outputs() > 3;
        if wants_scores {
            check_size(DType::F32, &[batch, heads, length, total])?;
        }
        let (y, scores) = attend(&h, scale, &bias, wants_scores)?;
        let dtype = cx.get(0)?.dtype();
        let mut out = vec![
            Tensor::from_f32s(dtype, [batch, length, heads * h.v_size], y)?,
            Tensor::from_f32s(dtype, [batch, heads, total, h.size], h.k)?,
            Tensor::from_f32s(dtype, [batch, heads, total, h.v_size], h.v)?,
        ];
        if wants_scores {
            out.push(Tensor::from_f32s(dtype, [batch, heads, length, total], scores)?);
        }
        Ok(out)
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with("num_heads", self.num_heads as i64)
            .with_unless("unidirectional", i64::from(self.unidirectional), 0)
            .with_opt("scale", self.scale)
            .with_opt("mask_filter_value", self.mask_filter_value)
    }
}
