//! GroupQueryAttention: causal attention whose heads share keys, with rotation and a cache.

use std::sync::Arc;

use narrowbit_ir::{AttrMap, Datum, Dim, EvalCx, Fact, InferCx, Op, OpError, check_size};
use narrowbit_tensor::{DType, Tensor};

use super::attend::split_heads;
use super::attention::heads;
use super::rotary_embedding::rotate;
use super::support::{DOMAIN, extents, permute};
use crate::nn::attention::{Attention, QkOutput};
use crate::nn::rotary_embedding::RotaryEmbedding;

/// Causal attention with a cache of keys and values, which several query heads share.
///
/// Inputs: query `[batch, length, heads * size]`, or packed with keys and values
/// `[batch, length, (heads + 2 * kv heads) * size]`; key and value `[batch, length, kv heads * size]`, absent where packed;
/// optional past_key and past_value `[batch, kv heads, past, size]`; seqlens_k (i32): valid keys of each batch element, less 1;
/// total_sequence_length; with `do_rotary`, cos_cache and sin_cache `[positions, rotated / 2]` and optional position_ids
/// `[batch, length]`; optional attention_bias, which broadcasts to `[batch, heads, length, total]`. Outputs:
/// `[batch, length, heads * size]`; present key and value `[batch, kv heads, max(past, total), size]`, zeros behind what is valid.
/// Source: ONNX Runtime, com.microsoft.GroupQueryAttention.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupQueryAttention {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub kv_num_heads: usize,
    /// Factor of the products of queries and keys; `None` is one over the root of the head's size.
    pub scale: Option<f32>,
    /// Scores become `softcap · tanh(score / softcap)`; 0 is off.
    pub softcap: f32,
    /// How many keys a query sees, its own among them; all where absent.
    pub window: Option<usize>,
    /// Whether queries and keys are rotated.
    pub do_rotary: bool,
    /// Whether pairs that are rotated are neighbours instead of halves.
    pub rotary_interleaved: bool,
}

/// Makes a GroupQueryAttention.
///
/// # Errors
/// When an attribute is wrong or asks for what is not supported: a smooth softmax, scores as an output, a quantized cache.
pub fn build(_opset: i64, attrs: &mut AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let num_heads = heads(attrs)?;
    let kv = attrs.int("kv_num_heads")?.ok_or_else(|| OpError::attribute("kv_num_heads", "is missing"))?;
    let kv_num_heads = usize::try_from(kv).ok().filter(|&kv| kv > 0 && num_heads % kv == 0);
    let kv_num_heads = kv_num_heads.ok_or_else(|| {
        OpError::attribute("kv_num_heads", format!("is {kv}, which does not divide {num_heads} heads"))
    })?;
    let unsupported = |name: &str| OpError::Unsupported(format!("attribute \"{name}\""));
    for name in ["smooth_softmax", "qk_output"] {
        // Older files write -1 for a smooth softmax that is off.
        if attrs.int_or(name, 0)? > 0 {
            return Err(unsupported(name));
        }
    }
    for name in ["k_quant_type", "v_quant_type"] {
        if attrs.string(name)?.is_some_and(|s| s != "NONE") {
            return Err(unsupported(name));
        }
    }
    attrs.take("kv_cache_bit_width");
    Ok(Arc::new(GroupQueryAttention {
        num_heads,
        kv_num_heads,
        scale: attrs.float("scale")?,
        softcap: attrs.float_or("softcap", 0.0)?,
        window: usize::try_from(attrs.int_or("local_window_size", -1)?).ok().filter(|&w| w > 0),
        do_rotary: attrs.flag("do_rotary")?,
        rotary_interleaved: attrs.flag("rotary_interleaved")?,
    }))
}

/// Queries, keys and values by head, and the extents of all.
struct Parts {
    batch: usize,
    length: usize,
    size: usize,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// What of the cache is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Keys in the cache that is handed on.
    pub total: usize,
    /// By batch element: valid keys, of which these are from before.
    pub valid: Vec<(usize, usize)>,
    /// Whether there is nothing from before.
    pub is_first: bool,
}

impl GroupQueryAttention {
    /// `[batch, heads, length, size]` of input `i`.
    fn by_head(&self, x: &[f32], [batch, length, heads, size]: [usize; 4]) -> Result<Tensor, OpError> {
        Ok(Tensor::new([batch, heads, length, size], split_heads(x, batch, length, heads, size))?)
    }

    fn parts(&self, cx: &EvalCx) -> Result<Parts, OpError> {
        let query = cx.get(0)?;
        let [batch, length, width] = extents(query, 0)?;
        let (heads, kv) = (self.num_heads, self.kv_num_heads);
        let packed = cx.opt(1).is_none();
        let all = if packed { heads + 2 * kv } else { heads };
        if width == 0 || width % all != 0 {
            let expected = format!("a width that {all} heads divide");
            return Err(OpError::input(0, format!("of shape {:?}", query.shape()), expected));
        }
        let size = width / all;
        let x = query.to_f32s()?;
        if packed {
            let part = |from: usize, heads: usize| {
                let rows =
                    x.chunks_exact(width).flat_map(|row| row[from * size..(from + heads) * size].iter().copied());
                self.by_head(&rows.collect::<Vec<f32>>(), [batch, length, heads, size])
            };
            return Ok(Parts {
                batch,
                length,
                size,
                q: part(0, heads)?,
                k: part(heads, kv)?,
                v: part(heads + kv, kv)?,
            });
        }
        let other = |i: usize| {
            let t = cx.get(i)?;
            if t.shape() != [batch, length, kv * size] {
                let expected = format!("[{batch}, {length}, {}]", kv * size);
                return Err(OpError::input(i, format!("of shape {:?}", t.shape()), expected));
            }
            self.by_head(&t.to_f32s()?, [batch, length, kv, size])
        };
        let q = self.by_head(&x, [batch, length, heads, size])?;
        Ok(Parts { batch, length, size, q, k: other(1)?, v: other(2)? })
    }

    fn cache(&self, cx: &EvalCx, p: &Parts) -> Result<Cache, OpError> {
        let mut past = 0;
        for i in [3, 4] {
            let Some(t) = cx.opt(i) else { continue };
            let [b, h, n, s] = extents(t, i)?;
            if [b, h, s] != [p.batch, self.kv_num_heads, p.size] || i == 4 && n != past {
                let expected = format!("[{}, {}, past, {}], the same twice", p.batch, self.kv_num_heads, p.size);
                return Err(OpError::input(i, format!("of shape {:?}", t.shape()), expected));
            }
            past = n;
        }
        if cx.opt(3).is_some() != cx.opt(4).is_some() {
            return Err(OpError::Value("past_key and past_value must be given together".into()));
        }
        let given = cx.get(6)?.to_i64s()?;
        let &[all] = given.as_slice() else {
            return Err(OpError::input(6, format!("{} elements", given.len()), "one integer"));
        };
        let lengths = cx.get(5)?.to_i64s()?;
        if lengths.len() != p.batch {
            return Err(OpError::input(5, format!("{} elements", lengths.len()), format!("{}, one each", p.batch)));
        }
        self.cache_of(&lengths, all, past, p.length)
    }

    /// What is valid of a cache of `past` rows with `length` new ones: `lengths` has seqlens_k of each batch element, `all` is
    /// total_sequence_length.
    ///
    /// # Errors
    /// When these contradict each other.
    pub fn cache_of(&self, lengths: &[i64], all: i64, past: usize, length: usize) -> Result<Cache, OpError> {
        let all = usize::try_from(all).ok().filter(|&n| n >= length).ok_or_else(|| {
            OpError::input(6, format!("{all}"), format!("a length of at least the {} new elements", length))
        })?;
        let (is_first, total) = (all == length, past.max(all));
        let problem = |n: i64| {
            let message = format!("seqlens_k has {n}: with {} new keys, {past} of the past and {total} in all", length);
            OpError::Value(message)
        };
        let valid = |n: i64| {
            let keys = n.checked_add(1).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0 && n <= total);
            let keys = keys.ok_or_else(|| problem(n))?;
            // The first elements of a batch may be padded behind; later ones follow what is valid.
            let before = if is_first { 0 } else { keys.checked_sub(length).ok_or_else(|| problem(n))? };
            if before > past { Err(problem(n)) } else { Ok((keys, before)) }
        };
        let valid = lengths.iter().map(|&n| valid(n)).collect::<Result<_, OpError>>()?;
        Ok(Cache { total, valid, is_first })
    }

    /// Queries and keys, rotated by the angles of their positions.
    fn rotated(&self, cx: &EvalCx, p: &mut Parts, cache: &Cache) -> Result<(), OpError> {
        if !self.do_rotary {
            return Ok(());
        }
        let (cos, sin) = (cx.get(7)?, cx.get(8)?);
        let ids = match cx.opt(9) {
            Some(ids) if ids.shape() == [p.batch, p.length] => ids.clone(),
            Some(ids) => {
                let expected = format!("[{}, {}]", p.batch, p.length);
                return Err(OpError::input(9, format!("of shape {:?}", ids.shape()), expected));
            }
            None => {
                let row = |&(_, before): &(usize, usize)| (before..before + p.length).map(|i| i as i64);
                Tensor::new([p.batch, p.length], cache.valid.iter().flat_map(row).collect::<Vec<i64>>())?
            }
        };
        let rotary_dim = cos.shape().last().map_or(0, |half| half.saturating_mul(2));
        let op = RotaryEmbedding { interleaved: self.rotary_interleaved, rotary_dim, num_heads: None };
        p.q = rotate(&op, &p.q, [cos, sin], ids.clone())?;
        p.k = rotate(&op, &p.k, [cos, sin], ids)?;
        Ok(())
    }

    /// The cache with new elements `[batch, kv heads, length, size]` behind the valid ones of the past.
    fn present(&self, cx: &EvalCx, past: usize, new: &Tensor, p: &Parts, cache: &Cache) -> Result<Tensor, OpError> {
        let shape = [p.batch, self.kv_num_heads, cache.total, p.size];
        let mut out = vec![0f32; check_size(DType::F32, &shape)?];
        let new = new.to_f32s()?;
        let old = cx.opt(past).map(|t| t.to_f32s()).transpose()?;
        let of_old = old.as_ref().map_or(0, |o| o.len() / (p.batch * self.kv_num_heads).max(1));
        let fresh = p.length * p.size;
        for (i, to) in out.chunks_exact_mut(cache.total.saturating_mul(p.size).max(1)).enumerate() {
            let before = cache.valid[i / self.kv_num_heads].1 * p.size;
            if let Some(old) = &old {
                to[..before].copy_from_slice(&old[i * of_old..][..before]);
            }
            to[before..before + fresh].copy_from_slice(&new[i * fresh..][..fresh]);
        }
        Ok(Tensor::new(shape, out)?)
    }

    /// Attention of queries `[batch, heads, length, size]` on the cache.
    fn attend(&self, cx: &EvalCx, p: &Parts, cache: &Cache, k: &Tensor, v: &Tensor) -> Result<Tensor, OpError> {
        let op = Attention {
            is_causal: true,
            q_num_heads: None,
            kv_num_heads: None,
            scale: self.scale.filter(|&s| s != 0.0),
            softcap: self.softcap,
            softmax_precision: None,
            qk_output: QkOutput::Product,
            left_window: self.window.map(|w| w - 1),
            right_window: None,
        };
        // Without a past, positions are those of the elements, whatever is padded behind: nobody before sees it.
        let valid = (!cache.is_first)
            .then(|| Tensor::vector(cache.valid.iter().map(|&(keys, _)| keys as i64).collect::<Vec<i64>>()));
        let bias =
            cx.opt(10).map(|b| Ok::<_, OpError>(Tensor::from_f32s(DType::F32, b.shape(), b.to_f32s()?.into_owned())?));
        let data = [Some(p.q.clone()), Some(k.clone()), Some(v.clone()), bias.transpose()?, None, None, valid];
        let data = data.map(|t| t.map(Datum::Tensor));
        let refs: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
        op.eval(&EvalCx::new(&refs, 1))?.pop().ok_or(OpError::MissingInput(0))
    }
}

impl Op for GroupQueryAttention {
    fn name(&self) -> &str {
        "GroupQueryAttention"
    }

    fn domain(&self) -> &str {
        DOMAIN
    }

    fn infer(&self, cx: &InferCx) -> Result<Vec<Fact>, OpError> {
        let dtype = cx.get(0)?.dtype();
        let (heads, kv) = (Dim::from(self.num_heads), Dim::from(self.kv_num_heads));
        let Some([batch, length, width]) = cx.shape(0) else {
            return Ok(vec![Fact::tensor(dtype, None); 3]);
        };
        let all = if cx.opt(1).is_some() { heads.clone() } else { Dim::from(self.num_heads + 2 * self.kv_num_heads) };
        let size = width.div(&all);
        let past = match (cx.opt(3), cx.shape(3)) {
            (None, _) => Some(0),
            (Some(_), Some([_, _, past, _])) => past.as_usize(),
            _ => None,
        };
        let given = cx.ints(6).and_then(|v| usize::try_from(*v.first()?).ok());
        let total = past.zip(given).map_or(Dim::Unknown, |(past, all)| past.max(all).into());
        let present = Fact::tensor(dtype, Some(vec![batch.clone(), kv, total, size.clone()]));
        let y = Fact::tensor(dtype, Some(vec![batch.clone(), length.clone(), heads.mul(&size)]));
        Ok(vec![y, present.clone(), present])
    }

    fn eval(&self, cx: &EvalCx) -> Result<Vec<Tensor>, OpError> {
        for i in 11..14 {
            if cx.opt(i).is_some() {
                return Err(OpError::Unsupported(format!("input {i} of GroupQueryAttention")));
            }
        }
        let dtype = cx.get(0)?.dtype();
        let mut p = self.parts(cx)?;
        let cache = self.cache(cx, &p)?;
        self.rotated(cx, &mut p, &cache)?;
        let k = self.present(cx, 3, &p.k, &p, &cache)?;
        let v = self.present(cx, 4, &p.v, &p, &cache)?;
        let y = if cache.is_first {
            self.attend(cx, &p, &cache, &p.k, &p.v)?
        } else {
            self.attend(cx, &p, &cache, &k, &v)?
        };
        let (_, rows) = permute(&y.to_f32s()?, y.shape(), &[0, 2, 1, 3]);
        let y = Tensor::from_f32s(dtype, [p.batch, p.length, self.num_heads * p.size], rows)?;
        let cast = |t: Tensor| -> Result<Tensor, OpError> {
            Ok(if dtype == DType::F32 { t } else { Tensor::from_f32s(dtype, t.shape(), t.to_f32s()?.into_owned())? })
        };
        Ok(vec![y, cast(k)?, cast(v)?])
    }

    fn attrs(&self) -> AttrMap {
        AttrMap::new()
            .with("num_heads", self.num_heads as i64)
            .with("kv_num_heads", self.kv_num_heads as i64)
            .with_opt("scale", self.scale)
            .with_unless("softcap", self.softcap, 0.0)
            .with_opt("local_window_size", self.window.map(|w| w as i64))
            .with_unless("do_rotary", i64::from(self.do_rotary), 0)
            .with_unless("rotary_interleaved", i64::from(self.rotary_interleaved), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two query heads of size 1 on one key head; all scores are 0.
    fn run(attrs: AttrMap, inputs: [Option<Tensor>; 7]) -> Result<Vec<Tensor>, OpError> {
        let op = build(1, &mut attrs.with("num_heads", 2i64).with("kv_num_heads", 1i64))?;
        let data = inputs.map(|t| t.map(Datum::Tensor));
        let refs: Vec<Option<&Datum>> = data.iter().map(Option::as_ref).collect();
        op.eval(&EvalCx::new(&refs, 3))
    }

    fn floats(shape: [usize; 3], values: &[f32]) -> Option<Tensor> {
        Some(Tensor::new(shape, values.to_vec()).unwrap())
    }

    fn cache(values: &[f32]) -> Option<Tensor> {
        Some(Tensor::new([1, 1, values.len(), 1], values.to_vec()).unwrap())
    }

    fn lengths(valid: i32, all: i32) -> [Option<Tensor>; 2] {
        [Some(Tensor::vector(vec![valid - 1])), Some(Tensor::scalar(all))]
    }

    fn prompt(attrs: AttrMap, valid: i32, all: i32) -> Result<Vec<Tensor>, OpError> {
        // Packed: two queries, a key and a value for each element.
        let qkv = floats([1, 3, 4], &[0., 0., 1., 1., 0., 0., 2., 2., 0., 0., 3., 6.]);
        let [valid, all] = lengths(valid, all);
        run(attrs, [qkv, None, None, None, None, valid, all])
    }

    #[test]
    fn averages_what_each_query_sees() {
        let y = prompt(AttrMap::new(), 3, 3).unwrap();
        assert_eq!(y[0].to_f32s().unwrap()[..], [1., 1., 1.5, 1.5, 3., 3.]);
        assert_eq!(y[2].to_f32s().unwrap()[..], [1., 2., 6.]);
        let y = prompt(AttrMap::new().with("local_window_size", 2i64), 3, 3).unwrap();
        assert_eq!(y[0].to_f32s().unwrap()[..], [1., 1., 1.5, 1.5, 4., 4.]);
    }

    #[test]
    fn puts_new_elements_behind_the_valid_ones() {
        let step = |valid: i32, past: Option<Tensor>| {
            let (q, kv) = (floats([1, 1, 2], &[0., 0.]), floats([1, 1, 1], &[9.]));
            let [valid, all] = lengths(valid, 4);
            run(AttrMap::new(), [q, kv.clone(), kv, past.clone(), past, valid, all])
        };
        let y = step(3, cache(&[1., 2., 7., 7.])).unwrap();
        assert_eq!(y[0].to_f32s().unwrap()[..], [4., 4.]);
        assert_eq!(y[1].to_f32s().unwrap()[..], [1., 2., 9., 0.]);
        assert!(step(5, cache(&[1., 2., 7., 7.])).is_err());
        assert!(step(0, cache(&[1., 2., 7., 7.])).is_err());
        assert!(step(4, cache(&[1., 2.])).is_err());
        assert!(step(4, None).is_err());
    }

    #[test]
    fn refuses_lengths_and_attributes_that_do_not_fit() {
        assert!(prompt(AttrMap::new(), 3, 2).is_err());
        assert!(prompt(AttrMap::new(), i32::MIN + 1, 3).is_err());
        assert!(prompt(AttrMap::new().with("do_rotary", 1i64), 3, 3).is_err());
        for (name, value) in [("smooth_softmax", 1i64), ("qk_output", 1)] {
            assert!(prompt(AttrMap::new().with(name, value), 3, 3).is_err(), "{name}");
        }
        assert!(build(1, &mut AttrMap::new().with("num_heads", 3i64).with("kv_num_heads", 2i64)).is_err());
    }
}
