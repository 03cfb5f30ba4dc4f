//! The arguments that choose and prepare samples, shared by all commands that read data.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use narrowbit_data::{
    Batch, BatchAxis, Channels, Crop, DataOptions, Dataset, ImageLayout, InputSpec, Preprocess, Resize, ResizeFilter,
    Split,
};
use narrowbit_ir::Graph;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::scheme::Preset;
use narrowbit_tensor::Tensor;

use crate::model;
use crate::output;
use crate::runs::Runs;

/// Where samples come from.
#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// Samples: .npz, .npy, .h5, .safetensors, or a folder of images (JPEG, PNG) or sample files
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// Use N random samples instead of data: fine for speed, useless for accuracy
    #[arg(long, value_name = "N", value_parser = random_count, help_heading = "Data", conflicts_with = "data")]
    pub random: Option<usize>,
    /// Labels in a file of their own: .npy, .npz, .csv or .txt, in the order of the samples
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub labels: Option<PathBuf>,
    /// At most N samples
    #[arg(long, value_name = "N", value_parser = crate::args::count, help_heading = "Data")]
    pub samples: Option<usize>,
    /// Samples per run [default: what the file fixes, else 1; to calibrate as another tool (--scheme) and where the model
    /// takes as many: the tool's own, 32 of quantizeml]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub batch: Option<usize>,
    /// Which axis of an input counts samples, or `none`, where narrowbit is wrong about it; may be given for several
    #[arg(long, value_name = "INPUT=AXIS", value_parser = input_axis, help_heading = "Data")]
    pub batch_axis: Vec<(String, BatchAxis)>,
    /// Take the samples in random order
    #[arg(long, help_heading = "Data")]
    pub shuffle: bool,
    /// Seed of --shuffle and --random
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Data")]
    pub seed: u64,
    /// The part of an HDF5 file with groups `calibration` and `test`; by default what fits the command
    #[arg(long, value_enum, value_name = "PART", help_heading = "Data")]
    pub split: Option<SplitArg>,
    /// How images become inputs.
    #[command(flatten)]
    pub preprocess: PreprocessArgs,
}

/// Random samples: none say nothing, and past a few thousand more say nothing new.
fn random_count(text: &str) -> Result<usize, String> {
    const MOST: usize = 10_000_000;
    match crate::args::count(text)? {
        n if n <= MOST => Ok(n),
        _ => Err(format!("more than {MOST} samples")),
    }
}

/// A part of a file.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SplitArg {
    /// The group `calibration`
    Calibration,
    /// The group `test`
    Test,
}

/// How images become inputs: y = (x·scale + offset − mean) / std.
#[derive(Debug, Clone, Args)]
pub struct PreprocessArgs {
    /// Preprocessing from a TOML or JSON file with these keys; flags take precedence
    #[arg(long, value_name = "FILE", help_heading = "Preprocessing of images")]
    pub preprocess: Option<PathBuf>,
    /// Factor on each pixel value, for instance 0.00392157 (1/255)
    #[arg(long, value_name = "S", help_heading = "Preprocessing of images", allow_hyphen_values = true)]
    pub scale: Option<f32>,
    /// Added after the factor
    #[arg(long, value_name = "O", help_heading = "Preprocessing of images", allow_hyphen_values = true)]
    pub offset: Option<f32>,
    /// Subtracted, one value or one per channel
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        help_heading = "Preprocessing of images",
        allow_hyphen_values = true
    )]
    pub mean: Option<Vec<f32>>,
    /// Divides, one value or one per channel
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', help_heading = "Preprocessing of images")]
    pub std: Option<Vec<f32>>,
    /// Map 0…255 to LOW…HIGH, instead of --scale and --offset
    #[arg(
        long,
        value_name = "LOW,HIGH",
        value_delimiter = ',',
        num_args = 1,
        help_heading = "Preprocessing of images",
        allow_hyphen_values = true
    )]
    pub range: Option<Vec<f32>>,
    /// The layout that the model wants: nchw or nhwc
    #[arg(long, value_name = "LAYOUT", help_heading = "Preprocessing of images")]
    pub layout: Option<ImageLayout>,
    /// Resize to WxH, or so that the shorter side is N
    #[arg(long, value_name = "WxH", help_heading = "Preprocessing of images")]
    pub resize: Option<Resize>,
    /// Filter of --resize: nearest, bilinear, bilinear-noaa, bicubic, lanczos, area
    #[arg(long, value_name = "FILTER", help_heading = "Preprocessing of images")]
    pub filter: Option<ResizeFilter>,
    /// Crop the centre to WxH after resizing
    #[arg(long, value_name = "WxH", help_heading = "Preprocessing of images")]
    pub crop: Option<Crop>,
    /// Channels that the model wants: rgb, bgr or gray
    #[arg(long, value_name = "ORDER", help_heading = "Preprocessing of images")]
    pub channels: Option<Channels>,
}

impl PreprocessArgs {
    /// Flags over the file over nothing.
    pub fn resolve(&self) -> Result<Preprocess> {
        let file = match &self.preprocess {
            Some(path) => Preprocess::from_file(path)?,
            None => Preprocess::default(),
        };
        let range = match self.range.as_deref() {
            None => None,
            Some(&[low, high]) => Some([low, high]),
            Some(other) => bail!("--range takes two numbers, LOW,HIGH, not {}", other.len()),
        };
        let flags = Preprocess {
            scale: self.scale,
            offset: self.offset,
            mean: self.mean.clone(),
            std: self.std.clone(),
            range,
            layout: self.layout,
            resize: self.resize,
            filter: self.filter,
            crop: self.crop,
            channels: self.channels,
        };
        Ok(file.overlaid(flags).validated()?)
    }
}

/// `INPUT=AXIS`.
fn input_axis(text: &str) -> Result<(String, BatchAxis), String> {
    let (name, axis) = text.rsplit_once('=').ok_or("write INPUT=AXIS, for instance x=1 or table=none")?;
    let axis = match axis {
        "none" => BatchAxis::Absent,
        _ => BatchAxis::At(axis.parse().map_err(|_| format!("\"{axis}\" is no axis: write a number from 0, or none"))?),
    };
    Ok((name.to_owned(), axis))
}

impl DataArgs {
    /// The runs of a graph on a data set that is bound to it.
    pub fn runs(&self, graph: &Graph, dataset: &Dataset) -> Result<Runs> {
        Runs::new(graph, dataset, self.batch, 1)
    }

    /// The runs of a calibration: with as many samples as those of the tool that a scheme is named after where it has a say and the
    /// model leaves their number open.
    pub fn calibration_runs(&self, graph: &Graph, dataset: &Dataset, options: &QuantOptions) -> Result<Runs> {
        Runs::new(graph, dataset, self.batch, options.scheme.and_then(Preset::batch).unwrap_or(1))
    }

    /// What a graph wants as inputs, with the axes of samples as they are given.
    fn specs(&self, graph: &Graph) -> Result<Vec<InputSpec>> {
        let mut specs = model::input_specs(graph)?;
        for (name, axis) in &self.batch_axis {
            let names = || specs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            let Some(at) = specs.iter().position(|s| s.name == *name) else {
                bail!("--batch-axis: the model has no input \"{name}\"\nhelp: it has {}", names());
            };
            let spec = &mut specs[at];
            if let BatchAxis::At(axis) = *axis
                && axis >= spec.shape.len()
            {
                bail!(
                    "--batch-axis {name}={axis}: the input is {}\nhelp: axes count from 0; `none` is for an input without one",
                    spec.shape_text()
                );
            }
            spec.batch = *axis;
        }
        Ok(specs)
    }

    /// Opens the samples and fits them to a graph's inputs.
    pub fn open(&self, graph: &Graph, split: Split) -> Result<Dataset> {
        match (&self.data, self.random) {
            (Some(path), _) => self.open_path(path.clone(), graph, split),
            (None, Some(n)) => {
                output::note("warning: random samples say nothing about accuracy; use --data for real ones");
                Ok(Dataset::random(&self.specs(graph)?, n, self.seed)?)
            }
            (None, None) => bail!("no samples\nhelp: give real ones with --data PATH, or --random N to try things out"),
        }
    }

    /// Opens samples from another path with the same options.
    pub fn open_path(&self, path: PathBuf, graph: &Graph, split: Split) -> Result<Dataset> {
        let options = DataOptions {
            split: match self.split {
                Some(SplitArg::Calibration) => Split::Calibration,
                Some(SplitArg::Test) => Split::Test,
                None => split,
            },
            labels: self.labels.clone(),
            preprocess: self.preprocess.resolve()?,
            samples: self.samples,
            shuffle: self.shuffle,
            seed: self.seed,
            ..DataOptions::default()
        };
        let data = Dataset::open(path, &options)?.bind(&self.specs(graph)?)?;
        if data.is_empty() {
            bail!("{}: there are no samples", data.path().display());
        }
        if let Some(spec) = data.raw_pixels() {
            tracing::warn!(
                "input \"{}\" gets pixels as they are, 0 to 255: if the model was trained on others, give what was done to them (--preprocess FILE, or \
                 --range, --mean, --std); --scale 1 says that it was not",
                spec.name
            );
        }
        data.describe().iter().for_each(|line| tracing::info!("{line}"));
        Ok(data)
    }
}

/// Random samples for one run of a graph, of the number that its file fixes, else of those that are asked for, else one; and their
/// number.
pub fn random_run(graph: &Graph, asked: Option<usize>) -> Result<(Dataset, usize)> {
    let specs = model::input_specs(graph)?;
    let any = Dataset::random(&specs, 1, 0).context("random samples for the inputs")?;
    let runs = Runs::new(graph, &any, asked, 1)?;
    Ok((Dataset::random(&specs, runs.size, 0)?, runs.size))
}

/// The tensors of a batch in the order of the graph's inputs.
pub fn tensors(batch: Batch) -> Vec<Tensor> {
    batch.inputs.into_iter().map(|(_, t)| t).collect()
}

/// The arguments for a path without options.
pub fn plain(path: PathBuf) -> DataArgs {
    DataArgs {
        data: Some(path),
        random: None,
        labels: None,
        samples: None,
        batch: None,
        batch_axis: Vec::new(),
        shuffle: false,
        seed: 0,
        split: None,
        preprocess: PreprocessArgs {
            preprocess: None,
            scale: None,
            offset: None,
            mean: None,
            std: None,
            range: None,
            layout: None,
            resize: None,
            filter: None,
            crop: None,
            channels: None,
        },
    }
}
