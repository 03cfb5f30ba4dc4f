//! The samples of a data set, some at a time.

use narrowbit_tensor::Tensor;

use crate::column::stack;
use crate::dataset::MAX_CHOSEN;
use crate::error::Place;
use crate::{DataError, Dataset};

/// Some samples.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The position of the first sample in the data set (after shuffling).
    pub start: usize,
    /// For each sample its index in the file; those that fill the batch up are not among them.
    pub indices: Vec<usize>,
    /// Input name and tensor, in the order of the model's inputs, samples along the batch axis of each (axis 0 where the data
    /// set is not bound).
    pub inputs: Vec<(String, Tensor)>,
    /// Labels of the same samples, as [`crate::Labels::read`] gives them; masks follow the images' resize
    /// and crop.
    pub labels: Option<Tensor>,
    /// Samples behind those of `indices` that fill the batch up: copies.
    pub filled: usize,
}

/// What fills up a batch that has fewer samples than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// The last sample, again and again: for results that are dropped. It adds nothing to the range of a
    /// tensor that is quantized at run time.
    Last,
    /// Samples from the beginning of the data set: for statistics in which they count again, none much more often than another.
    /// Where samples differ in shape, those of the batch.
    First,
}

/// Batches in order; see [`Dataset::batches`]. Ends after the first error.
pub struct Batches<'a> {
    data: &'a Dataset,
    size: usize,
    at: usize,
    /// The sample that ended the last batch by its shape.
    next: Option<Batch>,
    fill: Option<Fill>,
    failed: bool,
}

impl<'a> Batches<'a> {
    /// The samples from position `start` on, `size` at a time.
    pub(crate) fn new(data: &'a Dataset, start: usize, size: usize) -> Batches<'a> {
        Batches { data, size: size.max(1), at: start, next: None, fill: None, failed: false }
    }

    /// Fills up batches that have fewer samples than the others, the last one as a rule, so that all have the same number.
    #[must_use]
    pub fn filled(self, fill: Fill) -> Batches<'a> {
        Batches { fill: Some(fill), ..self }
    }

    /// Samples up to `size`, as long as their shapes are the same.
    fn grouped(&mut self) -> Result<Batch, DataError> {
        let shapes = |b: &Batch| {
            b.inputs
                .iter()
                .map(|(_, t)| t)
                .chain(&b.labels)
                .map(|t| (t.dtype(), t.shape()[1..].to_vec()))
                .collect::<Vec<_>>()
        };
        let mut group = vec![match self.next.take() {
            Some(sample) => sample,
            None => self.data.rows(self.at..self.at + 1)?,
        }];
        let shape = shapes(&group[0]);
        let start = group[0].start;
        while group.len() < self.size && start + group.len() < self.data.len() {
            let at = start + group.len();
            let sample = self.data.rows(at..at + 1)?;
            if shapes(&sample) != shape {
                self.next = Some(sample);
                break;
            }
            group.push(sample);
        }
        self.at = start + group.len();
        join(group, &self.data.place)
    }

    /// The next batch, samples along axis 0.
    fn rows(&mut self) -> Result<Batch, DataError> {
        let varying = self.size > 1 && self.data.varying();
        let batch = if varying {
            self.grouped()?
        } else {
            let end = self.at.saturating_add(self.size).min(self.data.len());
            let start = std::mem::replace(&mut self.at, end);
            self.data.rows(start..end)?
        };
        match self.fill {
            Some(fill) => self.fill_up(batch, fill, varying),
            None => Ok(batch),
        }
    }

    fn fill_up(&self, mut batch: Batch, fill: Fill, varying: bool) -> Result<Batch, DataError> {
        let (place, real) = (&self.data.place, batch.indices.len());
        let missing = self.size.saturating_sub(real);
        if missing == 0 || real == 0 {
            return Ok(batch);
        }
        let largest = batch.inputs.iter().map(|(_, t)| t.bytes().len() / real).max().unwrap_or_default();
        if self.size > MAX_CHOSEN || largest.saturating_mul(self.size) > self.data.options.limits.read_bytes {
            let what = format!("the {} samples that the model takes in a run are too many to fill up", self.size);
            return Err(DataError::too_large(place, what, "export the model with a smaller or a free batch"));
        }
        let others = match fill {
            Fill::First if !varying => Some(self.data.rows(0..missing.min(self.data.len()))?),
            _ => None,
        };
        let axes: Vec<bool> = self.data.specs().map(|s| s.batch_axis().is_some()).collect();
        for (i, (_, tensor)) in batch.inputs.iter_mut().enumerate() {
            // What all samples share is there once.
            if !axes.get(i).copied().unwrap_or(true) {
                continue;
            }
            let from = others.as_ref().map_or(&*tensor, |o| &o.inputs[i].1);
            let row = from.bytes().len() / from.shape()[0].max(1);
            let skipped = if fill == Fill::Last { from.bytes().len() - row } else { 0 };
            let source = &from.bytes()[skipped..];
            let mut bytes = Vec::with_capacity(row * self.size);
            bytes.extend_from_slice(tensor.bytes());
            bytes.extend(source.iter().cycle().take(row * missing));
            let mut shape = tensor.shape().to_vec();
            shape[0] = self.size;
            *tensor = Tensor::from_bytes(tensor.dtype(), shape, bytes).map_err(|e| DataError::tensor(place, e))?;
        }
        batch.filled = missing;
        Ok(batch)
    }
}

fn join(group: Vec<Batch>, place: &Place) -> Result<Batch, DataError> {
    let start = group.first().map_or(0, |b| b.start);
    let indices = group.iter().flat_map(|b| b.indices.clone()).collect();
    let names: Vec<String> = group[0].inputs.iter().map(|(n, _)| n.clone()).collect();
    let column = |k: usize| stack(group.iter().map(|b| b.inputs[k].1.clone()).collect(), place);
    let inputs = names.into_iter().enumerate().map(|(k, n)| Ok((n, column(k)?))).collect::<Result<_, DataError>>()?;
    let labels: Option<Vec<Tensor>> = group.iter().map(|b| b.labels.clone()).collect();
    Ok(Batch { start, indices, inputs, labels: labels.map(|l| stack(l, place)).transpose()?, filled: 0 })
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.at >= self.data.len() {
            return None;
        }
        let batch = self.rows().and_then(|b| self.data.arranged(b));
        self.failed = batch.is_err();
        Some(batch)
    }
}
