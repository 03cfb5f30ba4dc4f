use anyhow::{Result, bail};
use narrowbit_tensor::Tensor;

/// Counts are kept for each pair of classes: 128 MiB for this many.
const MAX_CLASSES: usize = 4096;

/// Pixels by labelled and predicted class.
#[derive(Debug)]
pub struct Confusion {
    ignore: i64,
    classes: usize,
    /// `[labelled, predicted]`.
    counts: Vec<u64>,
}

impl Confusion {
    /// An empty count; pixels labelled `ignore` do not enter it.
    pub fn new(ignore: i64) -> Confusion {
        Confusion { ignore, classes: 0, counts: Vec::new() }
    }

    /// Adds scores `[n, classes, h, w]` or `[n, h, w, classes]`, or predicted classes `[n, h, w]`, with masks
    /// `[n, h, w]`.
    pub fn add(&mut self, output: &Tensor, masks: &Tensor) -> Result<()> {
        let labels = masks.to_i64s()?;
        let (predicted, classes) = predictions(output, masks.shape())?;
        let classes = classes.unwrap_or_else(|| 1 + predicted.iter().copied().max().unwrap_or(0));
        self.grow(classes)?;
        for (&label, &p) in labels.iter().zip(&predicted) {
            if label == self.ignore {
                continue;
            }
            let Some(l) = usize::try_from(label).ok().filter(|&l| l < MAX_CLASSES) else {
                bail!("a mask holds {label}, which is no class\nhelp: name the value to ignore with --ignore")
            };
            self.grow(l + 1)?;
            self.counts[l * self.classes + p] += 1;
        }
        Ok(())
    }

    fn grow(&mut self, classes: usize) -> Result<()> {
        if classes <= self.classes {
            return Ok(());
        }
        if classes > MAX_CLASSES {
            bail!("the output tells {classes} classes apart; masks are scored for up to {MAX_CLASSES}");
        }
        let mut counts = vec![0; classes * classes];
        for (l, row) in self.counts.chunks(self.classes.max(1)).enumerate() {
            counts[l * classes..l * classes + row.len()].copy_from_slice(row);
        }
        (self.counts, self.classes) = (counts, classes);
        Ok(())
    }

    fn at(&self, label: usize, predicted: usize) -> u64 {
        self.counts[label * self.classes + predicted]
    }

    /// The mean over all classes of intersection over union; an absent class counts as 0.
    pub fn miou(&self) -> f64 {
        let iou = |c: usize| {
            let hit = self.at(c, c);
            let either: u64 = (0..self.classes).map(|o| self.at(c, o) + self.at(o, c)).sum::<u64>() - hit;
            hit as f64 / either.max(1) as f64
        };
        (0..self.classes).map(iou).sum::<f64>() / self.classes as f64
    }

    /// The share of pixels with the right class.
    pub fn pixel_accuracy(&self) -> f64 {
        let hits: u64 = (0..self.classes).map(|c| self.at(c, c)).sum();
        hits as f64 / self.counts.iter().sum::<u64>() as f64
    }
}

/// The predicted class of each pixel, and the number of classes where the output tells it.
fn predictions(output: &Tensor, masks: &[usize]) -> Result<(Vec<usize>, Option<usize>)> {
    let shape = output.shape();
    if shape == masks {
        let classes = output.to_f64s()?.into_iter().map(|c| (c.max(0.0) as usize).min(MAX_CLASSES)).collect();
        return Ok((classes, None));
    }
    let (&[n, h, w], 4) = (masks, shape.len()) else {
        bail!("the output {shape:?} holds no class scores for masks {masks:?}");
    };
    let (classes, step, next) = match *shape {
        [on, c, oh, ow] if [on, oh, ow] == [n, h, w] => (c, h * w, 1),
        [on, oh, ow, c] if [on, oh, ow] == [n, h, w] => (c, 1, c),
        _ => bail!("the output {shape:?} does not fit masks {masks:?}\nhelp: resize the masks to the model's output"),
    };
    let scores = output.to_f32s()?;
    let best = |image: usize, pixel: usize| {
        let at = |c: usize| scores[image * classes * h * w + pixel * next + c * step];
        (1..classes).fold(0, |best, c| if at(c) > at(best) { c } else { best })
    };
    Ok(((0..n).flat_map(|i| (0..h * w).map(move |p| best(i, p))).collect(), Some(classes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_both_layouts_alike() {
        let masks = Tensor::from_bytes(narrowbit_tensor::DType::U8, [1, 1, 4], vec![0u8, 1, 1, 255]).unwrap();
        let nchw = Tensor::new([1, 2, 1, 4], vec![1f32, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]).unwrap();
        let nhwc = Tensor::new([1, 1, 4, 2], vec![1f32, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]).unwrap();
        for out in [nchw, nhwc] {
            let mut c = Confusion::new(255);
            c.add(&out, &masks).unwrap();
            assert_eq!(c.pixel_accuracy(), 2.0 / 3.0);
            assert_eq!(c.miou(), (0.5 + 0.5) / 2.0);
        }
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() {
        let masks = Tensor::zeros(narrowbit_tensor::DType::U8, [1, 2, 2]).unwrap();
        let out = Tensor::zeros(narrowbit_tensor::DType::F32, [1, 3, 4, 4]).unwrap();
        assert!(Confusion::new(255).add(&out, &masks).is_err());
    }

    #[test]
    fn refuses_classes_whose_counts_take_too_much_memory() {
        let masks = Tensor::new([1, 1, 2], vec![0i64, 60_000]).unwrap();
        let out = Tensor::new([1, 1, 2], vec![0f32, 1.0]).unwrap();
        assert!(Confusion::new(255).add(&out, &masks).is_err());
        let out = Tensor::new([1, 1, 2], vec![0f32, 60_000.0]).unwrap();
        assert!(Confusion::new(60_000).add(&out, &masks).is_err());
    }
}
