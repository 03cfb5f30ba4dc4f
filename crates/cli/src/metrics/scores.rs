use anyhow::{Result, bail};
use narrowbit_tensor::Tensor;

/// Outputs beside their labels.
#[derive(Debug, Default)]
pub struct Pairs {
    outputs: Vec<f64>,
    labels: Vec<f64>,
}

impl Pairs {
    /// Adds outputs with as many labels.
    pub fn add(&mut self, output: &Tensor, labels: &Tensor) -> Result<()> {
        if output.len() != labels.len() {
            bail!("the output {:?} has not one number for each of the labels {:?}", output.shape(), labels.shape());
        }
        self.outputs.extend(output.to_f64s()?);
        self.labels.extend(labels.to_f64s()?);
        Ok(())
    }

    /// The linear correlation.
    pub fn pearson(&self) -> f64 {
        correlation(&self.outputs, &self.labels)
    }

    /// The correlation of ranks; equal values share the mean of their ranks.
    pub fn spearman(&self) -> f64 {
        correlation(&ranks(&self.outputs), &ranks(&self.labels))
    }

    /// The mean squared difference.
    pub fn mse(&self) -> f64 {
        let sum: f64 = self.outputs.iter().zip(&self.labels).map(|(a, b)| (a - b) * (a - b)).sum();
        sum / self.outputs.len() as f64
    }
}

/// Pearson's correlation coefficient of two lists of one length.
pub fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        ab += (x - ma) * (y - mb);
        aa += (x - ma) * (x - ma);
        bb += (y - mb) * (y - mb);
    }
    ab / (aa * bb).sqrt()
}

/// Ranks from 1 on; equal values share the mean of theirs.
pub fn ranks(v: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..v.len()).collect();
    order.sort_by(|&i, &j| v[i].total_cmp(&v[j]));
    let mut out = vec![0.0; v.len()];
    let mut at = 0;
    while at < order.len() {
        let end = at + order[at..].iter().take_while(|&&i| v[i] == v[order[at]]).count().max(1);
        let rank = (at + 1 + end) as f64 / 2.0;
        order[at..end].iter().for_each(|&i| out[i] = rank);
        at = end;
    }
    out
}

/// One vector per sample: outputs `[n, d]` as they are, outputs `[n, length, d]` averaged over the positions
/// that `mask` (`[n, length]`, non-zero counts) keeps.
pub fn embeddings(output: &Tensor, mask: Option<&Tensor>) -> Result<Vec<Vec<f64>>> {
    let values = output.to_f64s()?;
    match *output.shape() {
        [_, d] if d > 0 => Ok(values.chunks_exact(d).map(<[f64]>::to_vec).collect()),
        [n, length, d] if length * d > 0 => {
            let mask = match mask.filter(|m| m.shape() == [n, length]) {
                Some(m) => m.to_f64s()?,
                None => vec![1.0; n * length],
            };
            let sample = |(rows, mask): (&[f64], &[f64])| {
                let kept = mask.iter().sum::<f64>().max(1e-9);
                let column =
                    |c: usize| rows.iter().skip(c).step_by(d).zip(mask).map(|(x, m)| x * m).sum::<f64>() / kept;
                (0..d).map(column).collect()
            };
            Ok(values.chunks_exact(length * d).zip(mask.chunks_exact(length)).map(sample).collect())
        }
        _ => bail!("the output {:?} is no embedding of shape [n, d] or [n, length, d]", output.shape()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_the_mean_of_ties() {
        assert_eq!(ranks(&[10.0, 20.0, 10.0, 5.0]), [2.5, 4.0, 2.5, 1.0]);
    }

    #[test]
    fn correlates_lines_and_order() {
        let p = Pairs { outputs: vec![1.0, 2.0, 3.0, 100.0], labels: vec![2.0, 3.0, 4.0, 5.0] };
        assert!((p.spearman() - 1.0).abs() < 1e-12);
        assert!(p.pearson() < 0.9);
    }

    #[test]
    fn averages_only_unmasked_positions() {
        let out = Tensor::new([1, 2, 2], vec![1f32, 2.0, 30.0, 40.0]).unwrap();
        let mask = Tensor::new([1, 2], vec![1i64, 0]).unwrap();
        assert_eq!(embeddings(&out, Some(&mask)).unwrap(), [[1.0, 2.0]]);
        assert_eq!(embeddings(&out, None).unwrap(), [[15.5, 21.0]]);
    }
}
