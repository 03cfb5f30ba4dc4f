//! The data set: opened, bound to a model's inputs, read in batches.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use narrowbit_tensor::{DType, Tensor};

use crate::batches::{Batch, Batches};
use crate::bind::{self, Binding, Plan};
use crate::column::{Column, Columns, Concat, stack};
use crate::labels::{LabelKind, Labels, is_label_name};
use crate::pixels::PixelPlan;
use crate::random::Random;
use crate::resize::Image;
use crate::source::{Source, Span};
use crate::{DataError, InputSpec, Limits, Place, Preprocess, arrays, folder, h5, input, rng};

/// More indices than these (2 GiB of them) are not held at once.
pub(crate) const MAX_CHOSEN: usize = 1 << 28;

/// Which part of a file with several parts is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// The group `calibration` of an HDF5 file.
    #[default]
    Calibration,
    /// The group `test` of an HDF5 file.
    Test,
}

impl Split {
    pub(crate) fn group_names(self) -> &'static [&'static str] {
        match self {
            Split::Calibration => &["calibration", "calib", "train"],
            Split::Test => &["test", "validation", "val"],
        }
    }
}

/// What is to be read, and how.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// The part of a file with several parts.
    pub split: Split,
    /// Labels in a file of their own, in the order of the samples.
    pub labels: Option<PathBuf>,
    /// Preprocessing of images.
    pub preprocess: Preprocess,
    /// At most so many samples: the first ones, or the first ones after shuffling.
    pub samples: Option<usize>,
    /// Whether to shuffle.
    pub shuffle: bool,
    /// The seed of the shuffle.
    pub seed: u64,
    /// Whether NaN and infinity in floating-point inputs are an error. Default true.
    pub check_finite: bool,
    /// Threads that decode image files; 0 for as many as the machine runs at once.
    pub threads: usize,
    /// Bounds on memory.
    pub limits: Limits,
}

impl Default for DataOptions {
    fn default() -> DataOptions {
        DataOptions {
            split: Split::default(),
            labels: None,
            preprocess: Preprocess::default(),
            samples: None,
            shuffle: false,
            seed: 0,
            check_finite: true,
            threads: 0,
            limits: Limits::default(),
        }
    }
}

/// Named samples, and labels where there are any; `Send` and `Sync`.
///
/// Opened, it gives the arrays as they are in the file. [`Dataset::bind`] then fits them to a
/// model's inputs; only a bound data set preprocesses.
pub struct Dataset {
    pub(crate) place: Place,
    data: Columns,
    /// All arrays as one, where their lengths differ.
    joined: Option<Columns>,
    label_columns: Columns,
    labels: Option<Labels>,
    bindings: Option<Vec<Binding>>,
    pub(crate) options: DataOptions,
    order: Order,
    random: bool,
}

enum Order {
    First(usize),
    Chosen(Vec<usize>),
}

/// How many samples the inputs of a model take in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunSize<'a> {
    /// Any number.
    Any,
    /// Exactly so many, as this input says.
    Fixed(usize, &'a InputSpec),
    /// One: no input has an axis for them.
    One,
}

impl Dataset {
    /// Opens a file or folder; see the crate's page for the formats.
    ///
    /// # Errors
    /// When it can't be read, is damaged, or holds nothing usable.
    pub fn open(path: impl AsRef<Path>, options: &DataOptions) -> Result<Dataset, DataError> {
        let path = path.as_ref();
        if path.is_dir() {
            let found = folder::open(path, &options.limits)?;
            return Dataset::assemble(Place::file(path), found.columns, found.labels, options);
        }
        let source = Source::open(path)?;
        Dataset::from_source(&source, path, h5::Origin::path(path), options)
    }

    /// Opens a file that is in memory; `name` stands for its path, with the ending.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Bytes, options: &DataOptions) -> Result<Dataset, DataError> {
        let source = Source::Memory(bytes.clone());
        Dataset::from_source(&source, name.as_ref(), h5::Origin::Memory(bytes), options)
    }

    fn from_source(
        source: &Source,
        path: &Path,
        origin: h5::Origin,
        options: &DataOptions,
    ) -> Result<Dataset, DataError> {
        let place = Place::file(path);
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let mut magic = [0u8; 8];
        let hdf5 = source.read_at(0, &mut magic).is_ok() && &magic == b"\x89HDF\r\n\x1a\n";
        if !hdf5 && folder::is_image(path) {
            let limits = options.limits.clone();
            let picture = folder::Picture { source: source.clone(), place: place.clone(), limits };
            return Dataset::assemble(place, vec![("images".to_owned(), Arc::new(picture))], None, options);
        }
        let columns = match hdf5 || matches!(ending.as_str(), "h5" | "hdf5") {
            true => h5::open(origin, &place, options.split, &options.limits)?,
            false => arrays(source, path, &options.limits)?,
        };
        Dataset::assemble(place, columns, None, options)
    }

    /// Random samples of a model's inputs: standard normal numbers; integers below the
    /// vocabulary, or 0 and 1; ones for masks; the same in all samples where an input has no batch axis. Free dimensions get 224 for image sides, 3 for
    /// channels and 32 for sequences. The data set is bound.
    ///
    /// # Errors
    /// When an input's type has no random values or a sample is too large.
    pub fn random(specs: &[InputSpec], n: usize, seed: u64) -> Result<Dataset, DataError> {
        let options = DataOptions { check_finite: false, ..DataOptions::default() };
        let specs = &input::readings(specs).into_iter().next().unwrap_or_default();
        let column = |s: &InputSpec| {
            let column = Random::new(s, n, seed, &options.limits)?;
            Ok((s.name.clone(), Arc::new(column) as Arc<dyn Column>))
        };
        let data = specs.iter().map(column).collect::<Result<Vec<_>, DataError>>()?;
        let binding = |(spec, (_, column)): (&InputSpec, &(String, Arc<dyn Column>))| {
            // Numbers of its own for each sample would not go together in a run.
            let shared = spec.batch_axis().is_none() && n > 0;
            let plan = if shared { Plan::Shared(column.read(0, 1)?) } else { Plan::Array(None) };
            Ok(Binding { spec: spec.clone(), column: column.clone(), plan })
        };
        let bindings = specs.iter().zip(&data).map(binding).collect::<Result<_, DataError>>()?;
        let place = Place::file("random samples");
        let mut out = Dataset::assemble(place, data, None, &options)?;
        (out.bindings, out.order, out.random) = (Some(bindings), Order::First(n), true);
        Ok(out)
    }

    fn assemble(
        place: Place,
        columns: Columns,
        labels: Option<Labels>,
        options: &DataOptions,
    ) -> Result<Dataset, DataError> {
        let (mut labelled, mut data): (Vec<_>, Vec<_>) = columns.into_iter().partition(|(n, _)| is_label_name(n));
        if data.is_empty() {
            data = std::mem::take(&mut labelled);
        }
        // Arrays of different lengths can only be parts of one, as QuantizeML concatenates them.
        // Binding looks at the parts again: an input may have the name of one.
        let ragged = data.iter().any(|(_, c)| c.len() != data[0].1.len());
        let joined = if ragged { Concat::new(data.iter().map(|(_, c)| c.clone()).collect()).ok() } else { None };
        let joined = joined.map(|all| vec![(String::new(), Arc::new(all) as Arc<dyn Column>)]);
        let mut out = Dataset {
            place,
            data,
            joined,
            label_columns: labelled,
            labels,
            bindings: None,
            options: options.clone(),
            order: Order::First(0),
            random: false,
        };
        if let Some(path) = &options.labels {
            out.labels = Some(Labels::open(path, &options.limits)?);
        }
        let total = out.unbound().first().map_or(0, |(_, c)| c.len());
        out.order = out.choose(total)?;
        Ok(out)
    }

    /// The columns that an unbound data set shows.
    fn unbound(&self) -> &Columns {
        self.joined.as_ref().unwrap_or(&self.data)
    }

    fn choose(&self, total: usize) -> Result<Order, DataError> {
        let n = self.options.samples.unwrap_or(total).min(total);
        if !self.options.shuffle {
            return Ok(Order::First(n));
        }
        if n > MAX_CHOSEN {
            let what = format!("{n} samples are too many to shuffle");
            return Err(DataError::too_large(&self.place, what, "choose fewer with --samples"));
        }
        Ok(Order::Chosen(rng::shuffled(total, n, self.options.seed)))
    }

    /// Fits the arrays to a model's inputs.
    ///
    /// Arrays go by name; a single input takes the only array, an array called `images`, or all
    /// arrays concatenated. An array that has the input's layout keeps it; images are turned,
    /// resized, cropped and normalised as the options say.
    ///
    /// Samples lie along axis 0 of the arrays, and along the batch axis of the inputs: where that is only
    /// [assumed](crate::BatchAxis::Assumed), it is the first axis if it is free. If it is a number, other inputs and the
    /// arrays tell: an input without a batch axis takes an array of its own shape for all samples, or values that are the same
    /// in all samples of a run.
    ///
    /// # Errors
    /// When no array fits an input, naming array, shape, input and what to do.
    pub fn bind(mut self, specs: &[InputSpec]) -> Result<Dataset, DataError> {
        let options = self.options.preprocess.clone().validated()?;
        let (bindings, total) = bind::bind(specs, &self.data, &self.label_columns, &options, &self.place)?;
        self.order = self.choose(total)?;
        let own = self.label_columns.iter().find(|(name, _)| specs.iter().all(|s| s.name != *name));
        if let (None, Some((_, column))) = (&self.labels, own) {
            self.labels = Some(Labels::from_column(column.clone())?);
        }
        if let Some(labels) = self.labels.as_ref().filter(|l| l.len() != total) {
            let what = format!("there are {} labels for {total} samples", labels.len());
            return Err(DataError::fit(&labels.place(0), what, "give one label per sample, in the same order"));
        }
        self.bindings = Some(bindings);
        Ok(self)
    }

    /// The number of samples, after `samples` of the options.
    pub fn len(&self) -> usize {
        match &self.order {
            Order::First(n) => *n,
            Order::Chosen(order) => order.len(),
        }
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the model inputs if bound, else of the arrays (one may be empty).
    pub fn names(&self) -> Vec<&str> {
        match &self.bindings {
            Some(b) => b.iter().map(|b| b.spec.name.as_str()).collect(),
            None => self.unbound().iter().map(|(n, _)| n.as_str()).collect(),
        }
    }

    /// Element type and sample shape of each array in the file; no shape where samples differ.
    pub fn arrays(&self) -> Vec<(&str, DType, Option<&[usize]>)> {
        self.data.iter().map(|(n, c)| (n.as_str(), c.dtype(), c.shape())).collect()
    }

    /// The model's inputs with their batch axes, if bound.
    pub fn specs(&self) -> impl Iterator<Item = &InputSpec> {
        self.bindings.iter().flatten().map(|b| &b.spec)
    }

    /// The number of samples in a run, as far as the model's inputs say it.
    pub fn run_size(&self) -> RunSize<'_> {
        let fixed = self.specs().find_map(|s| Some(RunSize::Fixed(s.fixed_batch()?, s)));
        let open = self.specs().any(|s| s.batch_axis().is_some()) || self.specs().next().is_none();
        fixed.unwrap_or(if open { RunSize::Any } else { RunSize::One })
    }

    /// Whether the samples are random numbers.
    pub fn is_random(&self) -> bool {
        self.random
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.place.file
    }

    /// The labels, in the order of the file; known after [`Dataset::bind`].
    pub fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }

    /// One line per input: where it comes from and what is done to it. Empty before `bind`.
    pub fn describe(&self) -> Vec<String> {
        self.bindings.iter().flatten().map(Binding::describe).collect()
    }

    /// The name of the sample with an index in the file (see [`Batch::indices`]): where the file names its samples, as HDF5
    /// groups do, that; else the index in six digits.
    pub fn sample_name(&self, index: usize) -> String {
        let bound = self.bindings.iter().flatten().find_map(|b| b.column.name(index));
        let named = bound.or_else(|| self.data.iter().find_map(|(_, c)| c.name(index)));
        named.map_or_else(|| format!("{index:06}"), str::to_owned)
    }

    /// Sample `index` as `(name, [1, …])` tensors.
    ///
    /// # Errors
    /// When there is no such sample, or it can't be read or converted.
    pub fn sample(&self, index: usize) -> Result<Vec<(String, Tensor)>, DataError> {
        Ok(self.batch(index..index.saturating_add(1))?.inputs)
    }

    /// The samples at positions `range` in the data set's order.
    ///
    /// # Errors
    /// As [`Dataset::sample`]; also when the samples' shapes differ, see [`Dataset::batches`].
    pub fn batch(&self, range: Range<usize>) -> Result<Batch, DataError> {
        self.arranged(self.rows(range)?)
    }

    /// The samples at positions `range`, those of each input along axis 0.
    pub(crate) fn rows(&self, range: Range<usize>) -> Result<Batch, DataError> {
        let indices = self.indices(range.clone())?;
        let (inputs, labels) = (self.inputs(&indices)?, self.label_rows(&indices)?);
        Ok(Batch { start: range.start, inputs, labels, filled: 0, indices })
    }

    /// Samples in the shapes of the inputs: axis 0 goes where the input has its batch, or away.
    pub(crate) fn arranged(&self, mut batch: Batch) -> Result<Batch, DataError> {
        for (binding, (_, tensor)) in self.bindings.iter().flatten().zip(&mut batch.inputs) {
            let failed = |e| DataError::tensor(&binding.column.place(0), e);
            *tensor = match binding.spec.batch_axis() {
                Some(axis) => tensor.with_axis_moved(0, axis).map_err(failed)?,
                None => binding.only(tensor, &batch.indices)?,
            };
        }
        Ok(batch)
    }

    /// All samples, `size` at a time (0 counts as 1); the last batch may have fewer. Where
    /// samples differ in shape, a batch ends where the shape changes.
    pub fn batches(&self, size: usize) -> Batches<'_> {
        self.batches_from(0, size)
    }

    /// As [`Dataset::batches`] without the first `start` samples.
    pub fn batches_from(&self, start: usize, size: usize) -> Batches<'_> {
        Batches::new(self, start, size)
    }

    fn indices(&self, range: Range<usize>) -> Result<Vec<usize>, DataError> {
        if range.start > range.end || range.end > self.len() {
            return Err(DataError::Index { index: range.end.saturating_sub(1), len: self.len() });
        }
        if range.len() > MAX_CHOSEN {
            let what = format!("{} samples are too many for one batch", range.len());
            return Err(DataError::too_large(&self.place, what, "use a smaller --batch"));
        }
        Ok(match &self.order {
            Order::First(_) => range.collect(),
            Order::Chosen(order) => order[range].to_vec(),
        })
    }

    /// Whether samples may differ in shape.
    pub(crate) fn varying(&self) -> bool {
        match &self.bindings {
            Some(b) => !b.iter().all(Binding::fixed_shape),
            None => self.unbound().iter().any(|(_, c)| c.shape().is_none()),
        }
    }

    fn inputs(&self, indices: &[usize]) -> Result<Vec<(String, Tensor)>, DataError> {
        let mut out = Vec::new();
        match &self.bindings {
            Some(bindings) => {
                for b in bindings {
                    let tensor = match &b.plan {
                        Plan::Shared(tensor) => tensor.clone(),
                        _ => by_runs(indices, |start, n| b.read(start, n, self.options.threads), &b.column)?,
                    };
                    if self.options.check_finite {
                        check_finite(&tensor, indices, &b.column)?;
                    }
                    out.push((b.spec.name.clone(), tensor));
                }
            }
            None => {
                for (name, column) in self.unbound() {
                    out.push((name.clone(), by_runs(indices, |start, n| column.read(start, n), column)?));
                }
            }
        }
        Ok(out)
    }

    /// The input that gets the values of 8-bit images as they are, 0 … 255, in a floating-point type, if there is one.
    pub fn raw_pixels(&self) -> Option<&InputSpec> {
        let Preprocess { scale, offset, range, mean, std, .. } = &self.options.preprocess;
        let told = scale.is_some() || offset.is_some() || range.is_some() || mean.is_some() || std.is_some();
        let raw = |b: &&Binding| {
            matches!(b.plan, Plan::Pixels(_)) && b.column.dtype() == DType::U8 && b.spec.dtype.is_float() && !told
        };
        self.bindings.iter().flatten().find(raw).map(|b| &b.spec)
    }

    /// The way of the images, if they are resized or cropped.
    fn geometry(&self) -> Option<&PixelPlan> {
        self.bindings.iter().flatten().find_map(|b| match &b.plan {
            Plan::Pixels(p) if p.moves_pixels() => Some(&**p),
            _ => None,
        })
    }

    fn label_rows(&self, indices: &[usize]) -> Result<Option<Tensor>, DataError> {
        let Some(labels) = &self.labels else { return Ok(None) };
        if indices.is_empty() {
            return labels.read(0, 0).map(Some);
        }
        let place = labels.place(indices[0]);
        match self.geometry().filter(|_| labels.kind() == LabelKind::Mask) {
            None => stack(runs(indices).map(|(start, n)| labels.read(start, n)).collect::<Result<_, _>>()?, &place)
                .map(Some),
            Some(plan) => {
                let one = |&i: &usize| moved_mask(labels.read(i, 1)?, plan, &labels.place(i));
                stack(indices.iter().map(one).collect::<Result<_, _>>()?, &place).map(Some)
            }
        }
    }
}

/// A `[1, height, width]` mask after the images' resize and crop.
fn moved_mask(mask: Tensor, plan: &PixelPlan, place: &Place) -> Result<Tensor, DataError> {
    let failed = |e| DataError::tensor(place, e);
    let &[1, height, width] = mask.shape() else { return Ok(mask) };
    if mask.is_empty() {
        return Err(DataError::fit(place, "the mask has no pixels", "remove this sample"));
    }
    // Class indices are small: f32 holds them exactly.
    let data = mask.to_f32s().map_err(failed)?.into_owned();
    let moved = plan.apply_to_mask(Image { width, height, channels: 1, data }, place)?;
    let values: Vec<i64> = moved.data.iter().map(|&v| v as i64).collect();
    Tensor::from_i64s(mask.dtype(), [1, moved.height, moved.width], &values).map_err(failed)
}

/// Runs of consecutive indices as (first, length).
fn runs(indices: &[usize]) -> impl Iterator<Item = (usize, usize)> + '_ {
    indices.chunk_by(|a, b| a.checked_add(1) == Some(*b)).map(|run| (run[0], run.len()))
}

fn by_runs(
    indices: &[usize],
    read: impl Fn(usize, usize) -> Result<Tensor, DataError>,
    column: &Arc<dyn Column>,
) -> Result<Tensor, DataError> {
    match indices.first() {
        None => column.read(0, 0),
        Some(&first) => {
            stack(runs(indices).map(|(start, n)| read(start, n)).collect::<Result<_, _>>()?, &column.place(first))
        }
    }
}

fn check_finite(tensor: &Tensor, indices: &[usize], column: &Arc<dyn Column>) -> Result<(), DataError> {
    let bad = match tensor.dtype() {
        DType::F32 => tensor.slice::<f32>().ok().and_then(|v| v.iter().position(|x| !x.is_finite())),
        d if d.is_float() => tensor.to_f64s().ok().and_then(|v| v.iter().position(|x| !x.is_finite())),
        _ => None,
    };
    let Some(at) = bad else { return Ok(()) };
    let per_sample = (tensor.len() / indices.len().max(1)).max(1);
    let value = tensor.to_f64s().ok().and_then(|v| v.get(at).copied()).unwrap_or(f64::NAN);
    let place = column.place(indices.get(at / per_sample).copied().unwrap_or_default());
    Err(DataError::NotFinite { place: Box::new(place), element: at % per_sample, value })
}
