//! Biases, whose scales follow from those of their product.

use narrowbit_tensor::Tensor;

use super::sums::Sums;
use super::{Choice, Explanation};
use crate::plan::{BiasParams, WeightError};
use crate::scheme::{Formula, vitis};

/// Explains a bias of a product of activations with the scales `inputs` (one, or one for each channel) and weights with the
/// scales `weights` (likewise).
///
/// # Errors
/// When the bias can't be read.
pub fn bias(
    b: &Tensor,
    params: &BiasParams,
    (inputs, weights): (&[f32], &[f32]),
    formula: Formula,
) -> Result<Explanation, WeightError> {
    let values = b.to_f32s()?;
    let codes = params.quantize(b);
    let scale_of = |i: usize| params.scales.get(i).or(params.scales.first()).copied().unwrap_or(1.0);
    let mut exact = Sums::default();
    for (i, (&x, &code)) in values.iter().zip(&codes).enumerate() {
        let scale = scale_of(i);
        exact.scale(scale);
        let place = f64::from(x) / f64::from(scale);
        exact.add(x, (f64::from(code) * f64::from(scale)) as f32, place.abs() > f64::from(i32::MAX));
    }
    let (input, weight) = (first(inputs), first(weights));
    let mut lines = match params.scales.len() {
        n if n > 1 && params.per_channel => vec![format!("of channel 0 of {n}:")],
        _ => Vec::new(),
    };
    lines.push(format!(
        "scale = scale_x · scale_w = {input:e} · {weight:e} = {:e}, that of the product's sums",
        scale_of(0)
    ));
    if let (Formula::Vitis, Some(own)) = (formula, vitis::bias_position(&codes, vitis::position_of(scale_of(0)))) {
        lines.push(format!(
            "8 bits at position {own}, shifted to position {} of the sums",
            vitis::position_of(scale_of(0))
        ));
    }
    let (x, code) = (values.first().copied().unwrap_or(0.0), codes.first().copied().unwrap_or(0));
    lines.push(format!("code = round(b / scale) = round({x:.6} / {:e}) = {code}, b ≈ code · scale", scale_of(0)));
    let granularity = if params.per_channel { "channel" } else { "tensor" };
    let mut choices = vec![Choice { chosen: true, ..exact.choice("int32".into(), granularity.into(), "product") }];
    for (bits, format) in [(16u32, "int16"), (8, "int8")] {
        choices.push(own_scale(&values, bits).choice(format.into(), "tensor".into(), "minmax"));
    }
    Ok(Explanation { formula: lines, choices })
}

fn first(scales: &[f32]) -> f32 {
    scales.first().copied().unwrap_or(1.0)
}

/// A bias of few bits with a scale of its own, as hardware has it that shifts it to the sums.
fn own_scale(values: &[f32], bits: u32) -> Sums {
    let most = (1i64 << (bits - 1)) as f32 - 1.0;
    let greatest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = if greatest > 0.0 { greatest / most } else { 1.0 };
    let mut sums = Sums::default();
    sums.scale(scale);
    values.iter().for_each(|&x| sums.add(x, (x / scale).round_ties_even() * scale, false));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_both_scales_into_the_formula() {
        let b = Tensor::vector(vec![1.0f32, -0.3]);
        let params = BiasParams { scales: vec![0.125, 0.25], per_channel: true, codes: None };
        let found = bias(&b, &params, (&[0.5], &[0.25, 0.5]), Formula::Narrowbit).unwrap();
        assert_eq!(found.formula[0], "of channel 0 of 2:");
        assert!(found.formula[1].contains("5e-1 · 2.5e-1 = 1.25e-1"), "{found:?}");
        assert!(found.formula[2].contains("= 8"), "{found:?}");
        // −0.3 becomes −0.25: the only error.
        assert!((found.choices[0].mse - 0.05f64.powi(2) / 2.0).abs() < 1e-6);
        assert_eq!((found.choices[0].format.as_str(), found.choices.len()), ("int32", 3));
    }
}
