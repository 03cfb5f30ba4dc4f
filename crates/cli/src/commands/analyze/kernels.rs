//! How the weights of each layer are spread, before and after quantization.

use anyhow::Result;
use narrowbit_ir::{Graph, QuantRole};
use narrowbit_tensor::Tensor;
use serde::Serialize;

use super::dequantized;
use crate::output;

/// Bins of a histogram, over ± the greatest magnitude of the float weights.
const BINS: usize = 32;

/// The weights of a layer.
#[derive(Debug, Serialize)]
pub(super) struct Kernel {
    /// The node.
    pub name: String,
    op: String,
    shape: Vec<usize>,
    /// Half the range of the histograms: the greatest magnitude before.
    range: f32,
    /// The least and the greatest of the magnitudes that output channels reach.
    channels: (f32, f32),
    before: Distribution,
    /// Absent where they are not quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Distribution>,
}

impl Kernel {
    /// Whether the other model holds its weights as codes.
    pub fn is_quantized(&self) -> bool {
        self.after.is_some()
    }
}

/// Figures of finite values.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Distribution {
    min: f32,
    max: f32,
    mean: f64,
    /// The standard deviation.
    std: f64,
    /// The share of zeros.
    zeros: f64,
    /// Distinct values; of quantized weights those of the codes in use, in all channels.
    distinct: usize,
    /// Values in each bin.
    histogram: Vec<u64>,
}

impl Distribution {
    /// `None` where there is no finite value.
    fn new(values: &[f32], range: f32) -> Option<Distribution> {
        let finite: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
        let n = finite.len() as f64;
        let (min, max) = finite.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
        let mean = finite.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = finite.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let mut histogram = vec![0u64; BINS];
        for &v in &finite {
            let place = if range > 0.0 { (f64::from(v) / f64::from(range) + 1.0) / 2.0 } else { 0.5 };
            histogram[((place * BINS as f64) as usize).min(BINS - 1)] += 1;
        }
        let zeros = finite.iter().filter(|v| **v == 0.0).count() as f64 / n;
        let mut bits: Vec<u32> = finite.iter().map(|v| (v + 0.0).to_bits()).collect();
        bits.sort_unstable();
        bits.dedup();
        let distinct = bits.len();
        (n > 0.0).then_some(Distribution { min, max, mean, std: variance.sqrt(), zeros, distinct, histogram })
    }

    /// A bar for each bin, as high as its share of the fullest; empty bins are blank.
    fn bars(&self) -> String {
        const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let most = self.histogram.iter().copied().max().unwrap_or(0).max(1);
        let bar = |&n: &u64| match n {
            0 => ' ',
            _ => HEIGHTS[(n * 8).div_ceil(most) as usize - 1],
        };
        self.histogram.iter().map(bar).collect()
    }
}

/// The weights of all layers of the float model, with those of the quantized one of the same name.
pub(super) fn kernels(float: &Graph, quantized: &Graph) -> Result<Vec<Kernel>> {
    let mut rows = Vec::new();
    for (id, node) in float.nodes() {
        let QuantRole::Weighted { weight, channel, .. } = node.op.quant() else { continue };
        let Some(w) = float.const_input(id, weight) else { continue };
        let values = w.to_f32s()?;
        let range = values.iter().filter(|v| v.is_finite()).fold(0f32, |a, v| a.max(v.abs()));
        let Some(before) = Distribution::new(&values, range) else { continue };
        let other = quantized.node_named(&node.name).map(|n| quantized.node(n));
        let after = other.and_then(|n| dequantized(quantized, n, weight)).filter(|(_, v)| v.shape() == w.shape());
        let after = after.map(|(_, v)| v.to_f32s().map(|v| Distribution::new(&v, range))).transpose()?.flatten();
        let turned = node.op.name() == "Gemm" && node.op.attrs().int_or("transB", 0) == Ok(1);
        let axis = if turned { Some(0) } else { channel.resolve(w.rank()) };
        rows.push(Kernel {
            name: node.name.clone(),
            op: node.op.name().into(),
            shape: w.shape().to_vec(),
            range,
            channels: channels(w, &values, axis),
            before,
            after,
        });
    }
    Ok(rows)
}

/// The least and the greatest of the channels' greatest magnitudes.
fn channels(w: &Tensor, values: &[f32], axis: Option<usize>) -> (f32, f32) {
    let (count, inner) = match axis.and_then(|a| Some((*w.shape().get(a)?, a))) {
        Some((n, a)) if n > 0 => (n, w.shape()[a + 1..].iter().product::<usize>().max(1)),
        _ => (1, values.len().max(1)),
    };
    let mut most = vec![0f32; count];
    for (i, v) in values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
        let channel = &mut most[i / inner % count];
        *channel = channel.max(v.abs());
    }
    most.iter().fold((f32::INFINITY, 0.0), |(a, b), &v| (a.min(v), b.max(v)))
}

/// The table for people: a line before and one after quantization.
pub(super) fn table(kernels: &[Kernel]) -> String {
    let figures = |d: &Distribution| {
        vec![
            format!("{:.4}", d.min),
            format!("{:.4}", d.max),
            format!("{:.2e}", d.mean),
            format!("{:.3e}", d.std),
            format!("{:.1} %", d.zeros * 100.0),
            d.distinct.to_string(),
            format!("|{}|", d.bars()),
        ]
    };
    let mut rows = Vec::new();
    for k in kernels {
        let spread = if k.channels.0 > 0.0 { format!("{:.1}", k.channels.1 / k.channels.0) } else { "inf".into() };
        let name = vec![k.name.clone(), k.op.clone(), spread, "float".into()];
        rows.push([name, figures(&k.before)].concat());
        let after = k.after.as_ref().map(|d| ("codes", figures(d)));
        let (what, cells) = after.unwrap_or_else(|| ("not quantized", vec![String::new(); 7]));
        rows.push([vec![String::new(), String::new(), String::new(), what.into()], cells].concat());
    }
    let head = ["layer", "operator", "spread", "", "min", "max", "mean", "std", "zeros", "distinct", "distribution"];
    output::table(&head, &rows)
        + "spread: the greatest magnitude of an output channel over that of the channel with the least\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_values_in_bins_over_the_range() {
        let d = Distribution::new(&[-2.0, -0.01, 0.0, 0.0, 1.99, 2.0, f32::NAN, f32::INFINITY], 2.0).unwrap();
        assert_eq!((d.min, d.max, d.distinct), (-2.0, 2.0, 5));
        assert!((d.mean - 1.98 / 6.0).abs() < 1e-6 && (d.zeros - 2.0 / 6.0).abs() < 1e-12);
        assert_eq!((d.histogram[0], d.histogram[15], d.histogram[16], d.histogram[31]), (1, 1, 2, 2));
        assert_eq!(d.histogram.iter().sum::<u64>(), 6);
        assert_eq!(d.bars().chars().filter(|c| *c != ' ').collect::<String>(), "▄▄██");
        assert!(Distribution::new(&[f32::NAN], 0.0).is_none());
        assert_eq!(Distribution::new(&[0.0, -0.0], 0.0).unwrap().distinct, 1);
    }

    #[test]
    fn measures_the_channels_of_an_axis() {
        let w = Tensor::new([2, 3], vec![1f32, -8.0, 0.5, -2.0, 4.0, 0.25]).unwrap();
        let values = w.to_f32s().unwrap();
        assert_eq!(channels(&w, &values, Some(0)), (4.0, 8.0));
        assert_eq!(channels(&w, &values, Some(1)), (0.5, 8.0));
        assert_eq!(channels(&w, &values, None), (8.0, 8.0));
    }
}
