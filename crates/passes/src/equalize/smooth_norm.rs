//! The pass [`SmoothNorm`].

use narrowbit_ir::{NodeId, Patch, ValueId};
use narrowbit_tensor::{DType, Tensor, shape};

use crate::View;
use crate::pass::{Found, Miss, OrNo, pass, unless_skipped, when};

pass! {
    /// **What it does:** moves a factor of each channel from the scale and bias of a LayerNormalization or
    /// RMSNormalization into the weights of the products that read it, so that no channel stands out in the activation
    /// (one scale for all would leave the others a few codes) and none in the weights. The factor is that of
    /// SmoothQuant with α = ½ (Xiao et al. 2022), `√(max|x_j| / max|w_j|)`, rounded to a power of two; `max|x_j|` is
    /// taken as `|bias_j| + 4 · |scale_j|`, because a normalised value has variance 1: no samples are needed.
    ///
    /// **When it applies:** to normalisations over the last axis with constant scale and bias, whose readers are all
    /// products with a constant weight, or operators before them that keep the last axis; where the factors of two
    /// channels differ by 4 or more. Run by `quantize` and `calibrate`, not by `sanitize`.
    ///
    /// **Numerical effect:** none: powers of two are exact.
    ///
    /// **Example:** `n = LayerNormalization(x, s, b)`, `y = MatMul(n, w)` →
    /// `n.smoothed = LayerNormalization(x, s / f, b / f)`, `y = MatMul(n.smoothed, f · w)`.
    SmoothNorm = "smooth-norm", Equalize, rule
}

/// What the name of an activation ends in whose channels have been divided by factors.
const SUFFIX: &str = "smoothed";
/// How many standard deviations of a normalised value count.
const DEVIATIONS: f64 = 4.0;
/// The least exponents of two between the greatest and the least factor for which the graph is changed.
const LEAST_SPREAD: i32 = 2;
/// Operators that may stand between a normalisation and a product, if they keep the last axis.
const MOVES: &[&str] = &["Gather", "Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"];
/// Operators between a normalisation and its products.
const MOST_MOVES: usize = 8;

fn rule(view: &View, id: NodeId) -> Found<Patch> {
    view.expect(id, &["LayerNormalization", "RMSNormalization"])?;
    let y = view.output(id)?;
    let rank = view.rank(y).or_no()?;
    when(shape::axis(view.int(id, "axis", -1), rank) == rank.checked_sub(1))?;
    when(view.node(id).outputs.iter().skip(1).flatten().all(|&v| view.is_unread(v)))?;
    when(!view.graph.value(y).name.ends_with(SUFFIX))?;
    let scale = plain(view.graph.const_input(id, 1).or_no()?)?;
    let bias = match view.node(id).input(2) {
        Some(b) => Some(plain(view.graph.constant(b).or_no()?)?),
        None => None,
    };
    let n = scale.len();
    when(n > 1 && scale.rank() == 1 && bias.is_none_or(|b| b.shape() == [n]))?;
    let products = products(view, y, n)?;
    let exponents = exponents(&magnitudes(scale, bias)?, &rows(&products, n)?);
    let (low, high) = exponents.iter().fold((0, 0), |(l, h), &e| (l.min(e), h.max(e)));
    when(high - low >= LEAST_SPREAD)?;
    let factors: Vec<f32> = exponents.iter().map(|&e| 2f32.powi(e)).collect();
    let mut patch = view.patch();
    for p in &products {
        let w = patch.constant(&view.graph.value(view.input(p.id, 1)?).name, p.scaled(&factors)?);
        patch.set_input(p.id, 1, Some(w));
    }
    let mut inputs = view.node(id).inputs.clone();
    for (i, t) in [(1, Some(scale)), (2, bias)] {
        let (Some(t), Some(v)) = (t, view.node(id).input(i)) else { continue };
        let divided: Vec<f32> = t.to_f32s()?.iter().zip(&factors).map(|(x, f)| x / f).collect();
        inputs[i] = Some(patch.constant(&view.graph.value(v).name, Tensor::from_f32s(t.dtype(), [n], divided)?));
    }
    let smoothed = patch.node(&view.name_for(y, SUFFIX), view.node(id).op.clone(), &inputs);
    // Not `replace`: what is divided must not bear the name of what was not.
    for reader in view.graph.uses(y) {
        patch.set_input(reader.node, reader.input, Some(smoothed));
    }
    Ok(patch)
}

/// A tensor in whose type powers of two multiply exactly.
fn plain(t: &Tensor) -> Found<&Tensor> {
    when(matches!(t.dtype(), DType::F32 | DType::Bf16))?;
    Ok(t)
}

/// A product with a constant weight that reads the normalised value.
struct Product<'a> {
    id: NodeId,
    weight: &'a Tensor,
    /// Whether the channels of the input are the last axis of the weight, not the one before.
    transposed: bool,
}

impl Product<'_> {
    /// The greatest magnitude of the weights of each input channel, at the least what is in `most`, as bits: those of
    /// floats without a sign are ordered as the floats, and integers are compared many at a time.
    fn raise(&self, most: &mut [u32]) -> Found<()> {
        let w = self.weight.to_f32s()?;
        let magnitude = |x: &f32| x.abs().to_bits();
        if self.transposed {
            for row in w.chunks_exact(most.len()) {
                most.iter_mut().zip(row).for_each(|(m, x)| *m = magnitude(x).max(*m));
            }
        } else {
            for (m, row) in most.iter_mut().zip(w.chunks_exact(self.weight.shape()[1])) {
                *m = row.iter().map(magnitude).fold(*m, u32::max);
            }
        }
        Ok(())
    }

    fn scaled(&self, factors: &[f32]) -> Found<Tensor> {
        let mut w = self.weight.to_f32s()?.into_owned();
        if self.transposed {
            for row in w.chunks_exact_mut(factors.len()) {
                row.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
            }
        } else {
            for (f, row) in factors.iter().zip(w.chunks_exact_mut(self.weight.shape()[1])) {
                row.iter_mut().for_each(|x| *x *= f);
            }
        }
        Ok(Tensor::from_f32s(self.weight.dtype(), self.weight.shape(), w)?)
    }
}

/// The products that read a value of `n` channels, directly or through operators that keep the last axis.
fn products<'a>(view: &View<'a>, value: ValueId, n: usize) -> Found<Vec<Product<'a>>> {
    let (mut found, mut open, mut moves) = (Vec::new(), vec![value], 0);
    while let Some(v) = open.pop() {
        unless_skipped(!view.graph.is_output(v), "it is an output of the model")?;
        for reader in view.graph.uses(v) {
            let id = reader.node;
            if reader.input == 0 && view.expect(id, &["MatMul", "Gemm"]).is_ok() {
                found.push(product(view, id, n)?);
            } else {
                let keeps = reader.input == 0 && keeps_last_axis(view, id, v, n).is_ok();
                let why = || format!("{} \"{}\" reads it, too", view.node(id).op.name(), view.node(id).name);
                unless_skipped(keeps && moves < MOST_MOVES, why())?;
                moves += 1;
                open.push(view.output(id)?);
            }
        }
    }
    when(!found.is_empty())?;
    Ok(found)
}

fn product<'a>(view: &View<'a>, id: NodeId, n: usize) -> Found<Product<'a>> {
    let why = |what: &str| format!("{what} of {} \"{}\"", view.node(id).op.name(), view.node(id).name);
    let weight = view.graph.const_input(id, 1).ok_or_else(|| Miss::Skip(why("no constant weight")))?;
    let gemm = view.is(id, "Gemm");
    let transposed = gemm && view.int(id, "transB", 0) != 0;
    when(!gemm || view.int(id, "transA", 0) == 0)?;
    unless_skipped(view.is_single_use(view.input(id, 1)?), why("other readers of the weight"))?;
    when(weight.rank() == 2 && weight.shape()[usize::from(transposed)] == n && !weight.is_empty())?;
    Ok(Product { id, weight: plain(weight)?, transposed })
}

fn keeps_last_axis(view: &View, id: NodeId, input: ValueId, n: usize) -> Found<()> {
    view.expect(id, MOVES)?;
    let y = view.output(id)?;
    let (before, after) = (view.rank(input).or_no()?, view.rank(y).or_no()?);
    let last = view.shape(y).and_then(|s| s.last()?.as_usize());
    when(last == Some(n))?;
    match view.node(id).op.name() {
        "Gather" => when(shape::axis(view.int(id, "axis", 0), before).is_some_and(|a| a + 1 < before)),
        // A slice of all channels could still turn them round.
        "Slice" => {
            let axes = view.ints(view.input(id, 3)?).or_no()?;
            when(axes.iter().all(|&a| shape::axis(a, before).is_some_and(|a| a + 1 < before)))
        }
        "Transpose" => when(crate::sanitize::merge_transposes::perm(view, id)?.last() == Some(&before.wrapping_sub(1))),
        _ => when(after > 0),
    }
}

/// The magnitude that a channel of a normalised value may have, by channel.
fn magnitudes(scale: &Tensor, bias: Option<&Tensor>) -> Found<Vec<f64>> {
    let bias = bias.map(|b| b.to_f64s()).transpose()?;
    let at = |i: usize| bias.as_ref().map_or(0.0, |b| b[i].abs());
    Ok(scale.to_f64s()?.iter().enumerate().map(|(i, s)| DEVIATIONS * s.abs() + at(i)).collect())
}

fn rows(products: &[Product], n: usize) -> Found<Vec<f64>> {
    let mut most = vec![0; n];
    for p in products {
        p.raise(&mut most)?;
    }
    Ok(most.into_iter().map(|bits| f64::from(f32::from_bits(bits))).collect())
}

/// `log2 √(x / w)` around its mean, rounded; 0 for channels without any.
fn exponents(x: &[f64], w: &[f64]) -> Vec<i32> {
    let logs: Vec<Option<f64>> =
        x.iter().zip(w).map(|(x, w)| Some(0.5 * (x / w).log2()).filter(|l| l.is_finite())).collect();
    let known: Vec<f64> = logs.iter().flatten().copied().collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    // Far from where floats end.
    logs.iter().map(|l| l.map_or(0, |l| (l - mean).round().clamp(-12.0, 12.0) as i32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divides_an_outlier_between_activation_and_weight() {
        assert_eq!(exponents(&[1.0, 1.0, 1.0, 1024.0, 1.0, 1.0], &[1.0; 6]), [-1, -1, -1, 4, -1, -1]);
        assert_eq!(exponents(&[4.0, 64.0], &[1.0, 1.0 / 16.0]), [-2, 2]);
    }

    #[test]
    fn leaves_dead_channels_alone() {
        assert_eq!(exponents(&[0.0, 1.0, 1.0], &[1.0, 0.0, 1.0]), [0, 0, 0]);
    }
}
