use anyhow::{Result, bail};
use narrowbit_tensor::Tensor;

/// Hits among the highest outputs.
#[derive(Debug, Default)]
pub struct Counts {
    samples: u64,
    first: u64,
    five: u64,
}

impl Counts {
    /// Adds outputs `[n, …]`, read as `n` rows of class scores, with labels `[n]`.
    pub fn add(&mut self, output: &Tensor, labels: &Tensor) -> Result<()> {
        let (scores, labels) = (output.to_f32s()?, labels.to_i64s()?);
        if labels.is_empty() || scores.len() % labels.len() != 0 {
            bail!("the output {:?} has no row of scores for each of {} labels", output.shape(), labels.len());
        }
        let classes = scores.len() / labels.len();
        for (row, &label) in scores.chunks_exact(classes.max(1)).zip(&labels) {
            let Some(&own) = usize::try_from(label).ok().and_then(|l| row.get(l)) else {
                bail!(
                    "label {label} is outside of the model's {classes} classes\nhelp: check --labels, or their offset"
                );
            };
            // Of equal scores the first one wins, as in numpy's argmax.
            let before = row.iter().enumerate().filter(|&(i, &s)| s > own || s == own && (i as i64) < label).count();
            self.samples += 1;
            self.first += u64::from(before == 0 && !own.is_nan());
            self.five += u64::from(before < 5 && !own.is_nan());
        }
        Ok(())
    }

    /// The share of samples whose label comes first.
    pub fn top1(&self) -> f64 {
        self.first as f64 / self.samples as f64
    }

    /// The share of samples whose label is among the first five.
    pub fn top5(&self) -> f64 {
        self.five as f64 / self.samples as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_label_at_its_place() {
        let out = Tensor::new([2, 6], vec![0f32, 9.0, 1.0, 2.0, 3.0, 4.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]).unwrap();
        let mut c = Counts::default();
        c.add(&out, &Tensor::vector(vec![1i64, 5])).unwrap();
        assert_eq!((c.top1(), c.top5()), (0.5, 0.5));
    }

    #[test]
    fn refuses_labels_outside_of_the_classes() {
        let out = Tensor::new([1, 2], vec![0f32, 1.0]).unwrap();
        assert!(Counts::default().add(&out, &Tensor::vector(vec![2i64])).is_err());
        assert!(Counts::default().add(&out, &Tensor::vector(vec![-1i64])).is_err());
    }
}
