//! Which column feeds which model input, and what is done to it on the way.

use std::sync::Arc;

use narrowbit_tensor::{DType, Tensor};

use crate::column::{Column, Concat};
use crate::convert::cast;
use crate::pixels::{Dims, Numeric, PixelPlan};
use crate::preprocess::{Channels, ImageLayout, Preprocess};
use crate::{DataError, InputSpec, Place, input};

/// A model input with its column.
pub(crate) struct Binding {
    /// With its batch axis known.
    pub(crate) spec: InputSpec,
    pub(crate) column: Arc<dyn Column>,
    pub(crate) plan: Plan,
}

pub(crate) enum Plan {
    /// The array is the input as it is, for all samples; with a dimension of 1 before its own.
    Shared(Tensor),
    /// Reshape and convert; with preprocessing of values where it is asked for.
    Array(Option<Numeric>),
    /// The whole way of images.
    Pixels(Box<PixelPlan>),
}

type Columns<'a> = &'a [(String, Arc<dyn Column>)];

/// Finds a column for each input, and where its samples are; also gives the number of samples.
pub(crate) fn bind(
    specs: &[InputSpec],
    data: Columns<'_>,
    labels: Columns<'_>,
    options: &Preprocess,
    file: &Place,
) -> Result<(Vec<Binding>, usize), DataError> {
    let columns = choose(specs, data, labels, file)?;
    let mut unfit = None;
    for specs in input::readings(specs) {
        match fitted(&specs, &columns, options, file) {
            Ok(done) => return Ok(done),
            Err(e) => unfit = unfit.or(Some(e)),
        }
    }
    unfit.map_or(Ok((Vec::new(), 0)), Err)
}

/// The inputs with their columns, as far as these fit one reading of the shapes.
fn fitted(
    specs: &[InputSpec],
    columns: &[Arc<dyn Column>],
    options: &Preprocess,
    file: &Place,
) -> Result<(Vec<Binding>, usize), DataError> {
    let shared: Vec<bool> = specs.iter().zip(columns).map(|(s, c)| is_shared(s, c, columns)).collect();
    let counted = || specs.iter().zip(columns).zip(&shared).filter(|(_, shared)| !**shared).map(|(b, _)| b);
    let len = counted().next().map_or(1, |(_, c)| c.len());
    if let Some((spec, column)) = counted().find(|(_, c)| c.len() != len) {
        let first = counted().next().map_or("", |(s, _)| &s.name);
        let what = format!("input \"{}\" has {} samples, input \"{first}\" has {len}", spec.name, column.len());
        return Err(DataError::fit(&column.place(0), what, "give as many samples to each input"));
    }
    let mut out = Vec::new();
    for ((spec, column), shared) in specs.iter().zip(columns).zip(&shared) {
        let plan = match shared {
            true => Plan::Shared(whole(spec, column)?),
            false => plan(spec, column, options, specs.len() == 1)?,
        };
        out.push(Binding { spec: spec.clone(), column: column.clone(), plan });
    }
    let pixels = out.iter().any(|b| matches!(b.plan, Plan::Pixels(_)));
    let values = out.iter().any(|b| matches!(b.plan, Plan::Array(Some(_))));
    if options.changes_values() && !pixels && !values || changes_geometry(options) && !pixels {
        let what = "preprocessing is given, but no input is an image";
        return Err(DataError::fit(file, what, "leave the preprocessing out, or give images"));
    }
    Ok((out, len))
}

/// Whether an array has the whole shape of an input without a batch axis, and is no series of samples.
fn is_shared(spec: &InputSpec, column: &Arc<dyn Column>, all: &[Arc<dyn Column>]) -> bool {
    let Some(sample) = column.shape().filter(|_| spec.batch_axis().is_none() && !column.is_image_files()) else {
        return false;
    };
    let single = column.len() == 1 && sample.iter().all(|&d| d == 1) && spec.shape.is_empty();
    let series = fit(sample, spec).is_some() && all.iter().all(|c| c.len() == column.len());
    !series && (single || same(&column.file_shape(), &spec.shape))
}

/// An array that is an input, as `[1, …]`.
fn whole(spec: &InputSpec, column: &Arc<dyn Column>) -> Result<Tensor, DataError> {
    let place = column.place(0);
    let tensor = column.read(0, column.len())?;
    let mut shape = vec![1];
    shape.extend(if spec.shape.is_empty() { &[] } else { tensor.shape() });
    cast(tensor.reshaped(shape).map_err(|e| DataError::tensor(&place, e))?, spec.dtype, &place)
}

/// Columns in the order of the inputs: by name, else the only one, else all in a row.
fn choose(
    specs: &[InputSpec],
    data: Columns<'_>,
    labels: Columns<'_>,
    file: &Place,
) -> Result<Vec<Arc<dyn Column>>, DataError> {
    let named = |s: &InputSpec| data.iter().chain(labels).find(|(n, _)| *n == s.name).map(|(_, c)| c.clone());
    let found: Vec<Option<Arc<dyn Column>>> = specs.iter().map(named).collect();
    if let Some(all) = found.iter().cloned().collect() {
        return Ok(all);
    }
    let none = found.iter().all(Option::is_none);
    match specs {
        [_] if data.len() == 1 => Ok(vec![data[0].1.clone()]),
        [_] if !data.is_empty() => {
            const USUAL: [&str; 6] = ["images", "image", "inputs", "input", "data", "x"];
            let usual = data.iter().find(|(n, _)| USUAL.contains(&n.to_ascii_lowercase().as_str()));
            match usual {
                Some((_, column)) => Ok(vec![column.clone()]),
                None => Ok(vec![Arc::new(Concat::new(data.iter().map(|(_, c)| c.clone()).collect())?)]),
            }
        }
        // numpy.savez without names: arr_0, arr_1, … in the order of the inputs.
        _ if none && data.len() == specs.len() && data.iter().all(|(n, _)| n.starts_with("arr_")) => {
            Ok(data.iter().map(|(_, c)| c.clone()).collect())
        }
        _ => {
            let missing: Vec<&str> =
                specs.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(s, _)| s.name.as_str()).collect();
            let have: Vec<&str> = data.iter().chain(labels).map(|(n, _)| n.as_str()).collect();
            let what = format!("no array for the model's inputs {missing:?}; the arrays are {have:?}");
            Err(DataError::fit(file, what, "save one array per input under the input's name"))
        }
    }
}

fn changes_geometry(options: &Preprocess) -> bool {
    options.resize.is_some() || options.crop.is_some() || options.channels.is_some()
}

fn plan(spec: &InputSpec, column: &Arc<dyn Column>, options: &Preprocess, only: bool) -> Result<Plan, DataError> {
    let place = column.place(0);
    if column.len() == 0 {
        return Err(DataError::fit(&place, "there are no samples", "give at least one"));
    }
    let first = match column.shape() {
        Some(shape) => shape.to_vec(),
        None => column.read(0, 1)?.shape()[1..].to_vec(),
    };
    let rank = spec.sample().len() + 1;
    if colours_of_one(spec, column) {
        return Err(unfit(&first, column.dtype(), spec, &place));
    }
    let geometry = changes_geometry(options);
    let fits = fit(&first, spec).is_some();
    let untouched = !geometry && !options.changes_values();
    let numbers = !matches!(column.dtype(), DType::Bool | DType::I64 | DType::U64 | DType::String);
    // Values that need no work keep their type on the way: exact for integers, and a batch at a time.
    // A layout that is given may turn an image whose shape leaves it open.
    let untouched = untouched && (options.layout.is_none() || rank != 4);
    let plain = fits && untouched && !column.is_image_files() && column.dtype() != DType::U8;
    // Rows of floats are no image that has the wrong size, unless somebody says what to do about that.
    let image = rank == 4 || fits || geometry || column.is_image_files() || column.dtype() == DType::U8;
    let behind = spec.batch_axis().is_some_and(|axis| axis > 0);
    if !plain
        && numbers
        && image
        && !behind
        && matches!(rank, 3 | 4)
        && let Some(first) = as_picture(&first, rank)
    {
        return Ok(Plan::Pixels(Box::new(pixel_plan(spec, column, &first, options)?)));
    }
    if !fits {
        return Err(unfit(&first, column.dtype(), spec, &place));
    }
    let numeric = Numeric::new(options);
    let values = options.changes_values() && only && spec.dtype.is_float() && numeric.channels() == 1;
    Ok(Plan::Array(values.then_some(numeric)))
}

/// Whether an input of a fixed `[3, height, width]` or `[height, width, 3]` is read as a batch of gray images, where the data
/// are files of images: these are its channels.
fn colours_of_one(spec: &InputSpec, column: &Arc<dyn Column>) -> bool {
    let fixed = matches!(spec.shape[..], [Some(3), Some(_), Some(_)] | [Some(_), Some(_), Some(3)]);
    fixed && spec.batch_axis() == Some(0) && column.is_image_files()
}

fn unfit(sample: &[usize], dtype: DType, spec: &InputSpec, place: &Place) -> DataError {
    let dims: Vec<String> = spec.sample().iter().map(|d| d.map_or("any".into(), |d| d.to_string())).collect();
    let what = format!(
        "samples of shape {sample:?} ({dtype}) do not fit input \"{}\", which wants [{}] ({}) per sample",
        spec.name,
        dims.join(", "),
        spec.dtype
    );
    let help = match spec.batch_axis() {
        Some(0) => "reshape the array so that axis 0 counts samples and the rest is the input's shape".to_owned(),
        Some(axis) => format!(
            "the samples of {} lie along its axis {axis}; in the array axis 0 counts samples, and the rest is the input's shape without \
             that axis",
            spec.shape_text()
        ),
        None => format!(
            "{} has no batch axis: give an array of this shape for all samples, or one with an axis before it that counts samples",
            spec.shape_text()
        ),
    };
    DataError::fit(place, what, help)
}

/// The shape in which a sample satisfies an input, if it does: as it is; with a dimension of
/// extent 1 removed from the front or, where the input's shape is fixed, anywhere; or flattened.
pub(crate) fn fit(sample: &[usize], spec: &InputSpec) -> Option<Vec<usize>> {
    let want = &spec.sample()[..];
    if same(sample, want) {
        return Some(sample.to_vec());
    }
    if let [1, rest @ ..] = sample
        && same(rest, want)
    {
        return Some(rest.to_vec());
    }
    let fixed: Vec<usize> = want.iter().copied().collect::<Option<_>>()?;
    let long = |s: &[usize]| s.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    // A flat input takes the elements in their order, whatever the sample's dimensions.
    let flat = matches!(fixed[..], [n] if n == sample.iter().product::<usize>());
    (flat || long(&fixed) == long(sample)).then_some(fixed)
}

/// The dimensions of a sample that may be an image for an input of `rank`, without leading ones
/// that stand for a batch.
fn as_picture(sample: &[usize], rank: usize) -> Option<Vec<usize>> {
    let sample = match sample {
        [1, rest @ ..] if rest.len() == 3 => rest,
        other => other,
    };
    match (sample.len(), rank) {
        (3, 4) | (2, 3 | 4) => Some(sample.to_vec()),
        _ => None,
    }
}

fn is_channels(extent: usize) -> bool {
    matches!(extent, 1 | 3 | 4)
}

fn pixel_plan(
    spec: &InputSpec,
    column: &Arc<dyn Column>,
    sample: &[usize],
    options: &Preprocess,
) -> Result<PixelPlan, DataError> {
    let wants = spec.sample();
    let flat = wants.len() == 2;
    let layout = model_layout(spec, options, flat);
    let want = match (flat, layout, &wants[..]) {
        (true, _, &[h, w]) => [h, w, None],
        (false, ImageLayout::Nchw, &[c, h, w]) => [h, w, c],
        (false, ImageLayout::Nhwc, &[h, w, c]) => [h, w, c],
        _ => [None; 3],
    };
    let source = source_dims(sample, spec, layout, column, options);
    let Some(source) = source else {
        return Err(unfit(sample, column.dtype(), spec, &column.place(0)));
    };
    let channels = match (options.channels, want[2]) {
        (Some(Channels::Gray), Some(c)) if c != 1 => return Err(wrong_channels(spec, "gray", c)),
        (Some(order @ (Channels::Rgb | Channels::Bgr)), Some(c)) if c != 3 => {
            return Err(wrong_channels(spec, &order.to_string(), c));
        }
        (given, _) => given,
    };
    let channels = if flat { channels.or(Some(Channels::Gray)) } else { channels };
    Ok(PixelPlan {
        source,
        layout,
        dtype: spec.dtype,
        want,
        flat,
        channels,
        resize: options.resize,
        filter: options.filter.unwrap_or_default(),
        crop: options.crop,
        numeric: Numeric::new(options),
        input: spec.name.clone(),
    })
}

fn wrong_channels(spec: &InputSpec, order: &str, wants: usize) -> DataError {
    let what = format!("channels are set to {order}, but input \"{}\" wants {wants}", spec.name);
    DataError::config(what, "leave \"channels\" out, or set it to what the model wants")
}

/// The layout that the model wants: as given, else told from which of its dimensions can be
/// channels; channels first where that does not tell.
fn model_layout(spec: &InputSpec, options: &Preprocess, flat: bool) -> ImageLayout {
    if let Some(layout) = options.layout.filter(|_| !flat) {
        return layout;
    }
    let channels = |d: Option<&Option<usize>>| d.copied().flatten().is_some_and(is_channels);
    let sample = spec.sample();
    match (channels(sample.first()), channels(sample.get(2))) {
        (false, true) => ImageLayout::Nhwc,
        _ => ImageLayout::Nchw,
    }
}

/// How a sample's dimensions are to be read. An array that has the model's layout keeps it.
fn source_dims(
    sample: &[usize],
    spec: &InputSpec,
    layout: ImageLayout,
    column: &Arc<dyn Column>,
    options: &Preprocess,
) -> Option<Dims> {
    let model = match layout {
        ImageLayout::Nchw => Dims::Chw,
        ImageLayout::Nhwc => Dims::Hwc,
    };
    let &[first, _, last] = sample else { return Some(Dims::Hw) };
    if column.is_image_files() {
        return Some(Dims::Hwc);
    }
    let resized = options.resize.is_some() || options.crop.is_some();
    let want = spec.sample();
    let doubtful = match model {
        Dims::Chw => want.first() == Some(&None) && !is_channels(first) && is_channels(last),
        _ => want.get(2) == Some(&None) && is_channels(first) && !is_channels(last),
    };
    let as_is = !resized && !doubtful && same(sample, &want);
    if column.dtype() == DType::U8 && is_channels(last) {
        // Pixels of 8 bits come channels last, unless only the model's own layout fits.
        let turned = |s: &[usize]| same(&[s[2], s[0], s[1]], &want);
        let channels_last = resized || model == Dims::Hwc || turned(sample);
        return Some(if as_is && !channels_last { model } else { Dims::Hwc });
    }
    match (is_channels(first), is_channels(last)) {
        _ if as_is => Some(model),
        (false, true) => Some(Dims::Hwc),
        (true, false) => Some(Dims::Chw),
        (true, true) => Some(model),
        (false, false) => None,
    }
}

/// Whether a shape satisfies the wanted one dimension by dimension.
fn same(sample: &[usize], want: &[Option<usize>]) -> bool {
    sample.len() == want.len() && sample.iter().zip(want).all(|(&a, b)| b.is_none_or(|b| a == b))
}

impl Binding {
    /// Whether all samples have one shape.
    pub(crate) fn fixed_shape(&self) -> bool {
        match &self.plan {
            Plan::Shared(_) => true,
            Plan::Array(_) => self.column.shape().is_some(),
            Plan::Pixels(p) => self.column.shape().is_some() || p.fixed_size(),
        }
    }

    /// What is done, in a line for a person.
    pub(crate) fn describe(&self) -> String {
        let at = self.column.place(0);
        let from = at.array.unwrap_or_else(|| at.file.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let shape = self.column.shape().map_or("varying shape".to_owned(), |s| format!("{s:?}"));
        let how = match &self.plan {
            Plan::Shared(_) => ", the same for all samples".to_owned(),
            Plan::Array(None) => String::new(),
            Plan::Array(Some(_)) => ", values preprocessed".to_owned(),
            Plan::Pixels(p) => {
                let turn = match (p.source, p.layout) {
                    (Dims::Hwc, ImageLayout::Nchw) => ", NHWC to NCHW",
                    (Dims::Chw, ImageLayout::Nhwc) => ", NCHW to NHWC",
                    _ => "",
                };
                format!(", as images{turn}")
            }
        };
        format!(
            "input \"{}\" ({}) from \"{from}\" ({} {shape}){how}",
            self.spec.name,
            self.spec.dtype,
            self.column.dtype()
        )
    }

    /// The values of an input without a batch axis, from those of each sample of a run.
    ///
    /// # Errors
    /// When they differ: `indices` are the samples.
    pub(crate) fn only(&self, rows: &Tensor, indices: &[usize]) -> Result<Tensor, DataError> {
        let failed = |e| DataError::tensor(&self.column.place(0), e);
        let first = rows.first_of_axis(0, 1).map_err(failed)?;
        let len = first.bytes().len();
        let other = rows.bytes().chunks_exact(len.max(1)).position(|row| row != &first.bytes()[..]);
        if let Some(i) = other {
            let [a, b] = [0, i].map(|i| indices.get(i).copied().unwrap_or_default());
            let what = format!(
                "input \"{}\" ({}) has no batch axis, but samples {a} and {b} differ in it and are of one run",
                self.spec.name,
                self.spec.shape_text()
            );
            let help = "run samples one by one (--batch 1) where the model leaves the batch free; else give one array for all samples";
            return Err(DataError::fit(&self.column.place(b), what, help));
        }
        first.reshaped(&first.shape()[1..]).map_err(failed)
    }

    /// Samples `start..start + n` of the file, in the model's shape and type, samples along axis 0; one row of what all share.
    pub(crate) fn read(&self, start: usize, n: usize, threads: usize) -> Result<Tensor, DataError> {
        let place = self.column.place(start);
        let failed = |e| DataError::tensor(&place, e);
        match &self.plan {
            Plan::Shared(tensor) => Ok(tensor.clone()),
            Plan::Array(numeric) => {
                let tensor = self.column.read(start, n)?;
                let sample = tensor.shape().get(1..).unwrap_or_default();
                let Some(shape) = fit(sample, &self.spec) else {
                    return Err(unfit(sample, tensor.dtype(), &self.spec, &place));
                };
                let mut whole = vec![n];
                whole.extend(shape);
                let tensor = tensor.reshaped(whole.clone()).map_err(failed)?;
                let tensor = match numeric {
                    None => tensor,
                    Some(num) => {
                        let values = tensor.to_f32s().map_err(failed)?.iter().map(|&x| num.apply(x, 0)).collect();
                        Tensor::new(whole, values).map_err(failed)?
                    }
                };
                cast(tensor, self.spec.dtype, &place)
            }
            Plan::Pixels(plan) => {
                let one = |i: usize| {
                    let place = self.column.place(i);
                    let sample = self.column.read(i, 1)?;
                    let shape = as_picture(&sample.shape()[1..], self.spec.sample().len() + 1)
                        .unwrap_or_else(|| sample.shape()[1..].to_vec());
                    let sample = sample.reshaped(shape).map_err(|e| DataError::tensor(&place, e))?;
                    let out = plan.apply(&sample, &place)?;
                    let mut shape = vec![1];
                    shape.extend(out.shape());
                    out.reshaped(shape).map_err(|e| DataError::tensor(&place, e))
                };
                // Arrays are read in order: their decompression has one cursor.
                let threads = if self.column.is_image_files() { threads } else { 1 };
                crate::column::stack(in_threads(start..start + n, threads, one)?, &place)
            }
        }
    }
}

/// Results of `one` for each index, in order, computed by several threads (0: all the machine has).
fn in_threads(
    range: std::ops::Range<usize>,
    threads: usize,
    one: impl Fn(usize) -> Result<Tensor, DataError> + Sync,
) -> Result<Vec<Tensor>, DataError> {
    let most = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    let threads = most.min(range.len());
    if threads < 2 {
        return range.map(one).collect();
    }
    let (one, end) = (&one, range.end);
    let share = |t: usize| (range.start + t..end).step_by(threads).map(one).collect::<Result<Vec<_>, _>>();
    let shares = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|t| scope.spawn(move || share(t))).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut shares: Vec<_> = shares.into_iter().map(Vec::into_iter).collect();
    Ok((0..end - range.start).filter_map(|i| shares[i % threads].next()).collect())
}
