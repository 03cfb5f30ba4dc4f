//! Loading and preparing models.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use narrowbit_data::{BatchAxis, InputSpec};
use narrowbit_fixed::{FixedModel, Shapes};
use narrowbit_import::onnx;
use narrowbit_ir::{Attr, Dim, Graph, Model, ValueId};
use narrowbit_passes::SanitizeOptions;
use narrowbit_passes::replace::{self, Replaced};
use narrowbit_passes::sanitize::upgrade_opset;
use narrowbit_quant::approach::Approach;
use narrowbit_quant::options::QuantOptions;
use narrowbit_quant::quantize;
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};

use crate::args::Products;

/// Reads a model file of a format that is known by its ending.
pub fn load(path: &Path) -> Result<Model> {
    match ending(path).as_str() {
        "keras" | "h5" | "hdf5" | "pt" | "pth" | "safetensors" => bail!(
            "{}: this version reads ONNX models only\nhelp: export the model to ONNX (torch.onnx.export, tf2onnx) first",
            path.display()
        ),
        _ => onnx::load(path).map_err(|e| match no_model(path) {
            Some(what) => anyhow!(
                "{} is {what}, not a model\nhelp: give an ONNX file; samples are given by --data",
                path.display()
            ),
            None => e.into(),
        }),
    }
}

/// Refuses to write a model over the one that it is made from.
pub fn check_apart(from: &Path, to: &Path, what: &str, ending: &str) -> Result<()> {
    if let (Ok(a), Ok(b)) = (from.canonicalize(), to.canonicalize())
        && a == b
    {
        bail!(
            "{} is {what}: it would be lost\nhelp: write elsewhere, for instance to {}",
            to.display(),
            from.with_extension(ending).display()
        );
    }
    Ok(())
}

/// Inputs as a graph takes them: those of another model than they were read for, whose floats may have other types.
pub fn fed(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let as_taken = |(&v, t): (&ValueId, &Tensor)| match graph.value(v).ty.tensor().and_then(|ty| ty.dtype) {
        Some(to) if to != t.dtype() && to.is_float() && t.dtype().is_float() => {
            Ok(Tensor::from_f64s(to, t.shape(), &t.to_f64s()?)?)
        }
        _ => Ok(t.clone()),
    };
    graph.inputs().iter().zip(inputs).map(as_taken).collect()
}

/// The ending of a file's name, in small letters.
pub fn ending(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// What a file is that holds arrays and no model, by its ending or its first bytes.
pub fn no_model(path: &Path) -> Option<&'static str> {
    match ending(path).as_str() {
        "npy" => return Some("an array (.npy)"),
        "csv" | "json" | "txt" => return Some("a text file"),
        // Models of other tools, some of which are archives: loading says what to do.
        "keras" | "pt" | "pth" | "safetensors" => return None,
        _ => {}
    }
    let mut start = [0; 8];
    // What can't be read is told of when it is loaded.
    let read = File::open(path).and_then(|mut f| f.read(&mut start)).ok()?;
    match start[..read] {
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Some("an array (.npy)"),
        [0x89, b'H', b'D', b'F', ..] => Some("an HDF5 file"),
        _ => None,
    }
}

/// Reads a model that is to be run: functions inlined, every operator known.
pub fn load_runnable(path: &Path) -> Result<Model> {
    let mut model = load(path)?;
    onnx::inline_functions(&mut model)?;
    onnx::check_supported(&model).with_context(|| path.display().to_string())?;
    Ok(model)
}

/// Cleans a model's graph with the default passes.
pub fn sanitize(model: &mut Model) -> Result<narrowbit_passes::Report> {
    Ok(narrowbit_passes::sanitize(model, &SanitizeOptions::default())?)
}

/// Cleans a model's graph, puts what fixed point can compute in the place of what it can't, and evens out channels, as the
/// options ask for; gives the normalisations that were smoothed.
pub fn prepare(model: &mut Model, options: &QuantOptions) -> Result<usize> {
    sanitize(model)?;
    replace(model, options)?;
    if !options.smooth || !options.uses(Approach::Static) && !options.uses(Approach::Dynamic) {
        return Ok(0);
    }
    Ok(narrowbit_passes::equalize(model)?.rewrites())
}

/// Brings a model whose nodes get different approaches to the operator set that has the forms of all, before any is chosen:
/// calibration and rewriting must see the same nodes.
pub fn raise_for_mixture(model: &mut Model, options: &QuantOptions) -> Result<()> {
    if !options.is_mixture() {
        return Ok(());
    }
    upgrade_opset::upgrade(model, quantize::opset(options))
        .map_err(|e| anyhow::Error::new(*e))
        .context("the model can't be brought to the operator set that this mixture needs")
}

/// Replaces Softmax and LayerNormalization in a cleaned model by what fixed point computes, if the options ask for it.
pub fn replace(model: &mut Model, options: &QuantOptions) -> Result<()> {
    if !options.shiftmax && !options.layer_mad {
        return Ok(());
    }
    options.check()?;
    if !options.uses(Approach::Static) {
        bail!("--shiftmax and --layer-mad are for --approach static\nhelp: leave them away, or leave --approach away");
    }
    type Replace = fn(&mut Model) -> Result<Replaced, narrowbit_passes::PassError>;
    let asked: [(bool, &str, &str, Replace); 2] = [
        (options.shiftmax, "--shiftmax", "Softmax", replace::shiftmax),
        (options.layer_mad, "--layer-mad", "LayerNormalization", replace::layer_mad),
    ];
    for (_, flag, op, replace) in asked.into_iter().filter(|a| a.0) {
        let done = replace(model)?;
        for (node, why) in &done.skipped {
            tracing::warn!("{flag} leaves \"{node}\" ({op}) as it is: {why}");
        }
        if done.count == 0 {
            tracing::warn!("{flag} has found no {op} that it can replace");
        }
    }
    Ok(())
}

/// Scales the values of a cleaned float model as those of the file that was quantized from it (`rates`), so that each is
/// compared with its like; a model that does not have them stays as it is.
pub fn scale_as(float: &mut Model, quantized: &Model) {
    let rates = crate::fixed::settings(quantized).map(|o| o.rates).unwrap_or_default();
    if let Err(e) = narrowbit_quant::fill::apply(&mut float.graph, &rates) {
        tracing::debug!("values are compared unscaled: {e}");
    }
}

/// Checks that a model could be brought to a version of ONNX's operator set.
pub fn check_opset(model: &Model, least: i64) -> Result<()> {
    upgrade_opset::check(model, wanted(least)).map_err(|e| anyhow!("the number format needs opset {least}: {e}"))
}

/// Brings a model to a version of ONNX's operator set that has its number formats.
pub fn raise_opset(model: &mut Model, least: i64) -> Result<()> {
    upgrade_opset::upgrade(model, wanted(least)).map_err(|e| anyhow!("the number format needs opset {least}: {e}"))
}

/// Cleaning has brought models to 13 where that could be, and others do with what they have.
fn wanted(least: i64) -> i64 {
    if least > 13 { least } else { 0 }
}

/// A session over a model for running: cleaned, if it is a float model, so that it runs fast.
pub fn session(path: &Path, threads: usize) -> Result<Session> {
    let mut model = load_runnable(path)?;
    sanitize(&mut model)?;
    Ok(Session::new(model.graph, Options { threads, ..Options::default() })?)
}

/// What a graph wants as inputs.
pub fn input_specs(graph: &Graph) -> Result<Vec<InputSpec>> {
    graph.inputs().iter().map(|&v| input_spec(graph, v)).collect()
}

fn input_spec(graph: &Graph, v: ValueId) -> Result<InputSpec> {
    let value = graph.value(v);
    let Some(ty) = value.ty.tensor() else { bail!("input \"{}\" is {}, not a tensor", value.name, value.ty) };
    let dtype = ty.dtype.unwrap_or(DType::F32);
    let shape: Vec<Option<usize>> = match &ty.shape {
        Some(dims) => dims.iter().map(|d| d.as_usize()).collect(),
        None => bail!("input \"{}\" has no shape in the file\nhelp: export the model with input shapes", value.name),
    };
    let batch = batch_axis(graph, v);
    Ok(InputSpec { vocabulary: vocabulary(graph, v), batch, ..InputSpec::new(value.name.clone(), dtype, shape) })
}

/// The axis of an input along which samples lie, as far as the file tells it: by the name of a dimension, or because a recurrent
/// operator reads it, which has time first.
fn batch_axis(graph: &Graph, v: ValueId) -> BatchAxis {
    let dims = graph.value(v).ty.tensor().and_then(|t| t.shape.as_deref()).unwrap_or_default();
    let names_batch = |d: &Dim| matches!(d, Dim::Sym(s) if s.to_ascii_lowercase().contains("batch"));
    match dims.iter().position(names_batch) {
        Some(axis) => BatchAxis::At(axis),
        None if dims.len() == 3 && is_time_major(graph, v) => BatchAxis::At(1),
        None => BatchAxis::Assumed,
    }
}

/// Whether all readers of a value are recurrent operators with time along the first axis of what they read, `[steps, samples,
/// features]` (of states, `[directions, samples, features]`), through operators that leave axes where they are.
fn is_time_major(graph: &Graph, v: ValueId) -> bool {
    const KEEPS_AXES: [&str; 14] = [
        "Identity",
        "Cast",
        "Dropout",
        "MatMul",
        "Add",
        "Mul",
        "Sub",
        "Div",
        "Relu",
        "Tanh",
        "LayerNormalization",
        "QuantizeLinear",
        "DequantizeLinear",
        "Slice",
    ];
    let (mut open, mut seen, mut found) = (vec![v], BTreeSet::new(), false);
    while let Some(v) = open.pop() {
        for u in graph.uses(v) {
            let node = graph.node(u.node);
            let time_first = node.op.attrs().get("layout").is_none_or(|a| matches!(a, Attr::Int(0)));
            match (node.op.name(), u.input) {
                ("LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM", 0 | 5 | 6) if time_first => found = true,
                (name, 0) if KEEPS_AXES.contains(&name) && seen.insert(u.node) => open.extend(node.output(0)),
                (name, 0) if KEEPS_AXES.contains(&name) => {}
                _ => return false,
            }
        }
    }
    found
}

/// The shapes of a graph's inputs with every free dimension 1.
pub fn smallest_shapes(graph: &Graph) -> Result<Shapes> {
    let shape = |&v: &ValueId| Ok((v, input_spec(graph, v)?.shape.into_iter().map(|d| d.unwrap_or(1)).collect()));
    graph.inputs().iter().map(shape).collect()
}

/// The rows of the table that an input of indices reads.
fn vocabulary(graph: &Graph, v: ValueId) -> Option<u64> {
    let reads_table = |u: &narrowbit_ir::Use| {
        let node = graph.node(u.node);
        (node.op.name() == "Gather" && u.input == 1).then(|| graph.const_input(u.node, 0)).flatten()
    };
    graph.uses(v).iter().find_map(reads_table).and_then(|t| t.shape().first().map(|&n| n as u64))
}

/// The size of a model on disk: its file and every file of external data that it names.
pub fn size_on_disk(path: &Path) -> Result<u64> {
    let size = |p: &Path| Ok(std::fs::metadata(p).with_context(|| p.display().to_string())?.len());
    let data = onnx::external_files(path)?;
    data.iter().map(PathBuf::as_path).chain([path]).map(size).sum()
}

/// A model that runs fast, or node by node on the reference operators.
pub enum Runner {
    /// Compiled.
    Fast(Session),
    /// Exactly as ONNX defines each operator.
    Reference(Box<Graph>),
    /// On integers alone.
    Integer(Box<FixedModel>),
}

impl Runner {
    /// Loads a model; `float` is for the compiled one.
    pub fn new(path: &Path, threads: usize, reference: bool, float: Products) -> Result<Runner> {
        if reference {
            Ok(Runner::Reference(Box::new(load_runnable(path)?.graph)))
        } else {
            Ok(Runner::Fast(float.apply(session(path, threads)?)?))
        }
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        match self {
            Runner::Fast(s) => s.graph(),
            Runner::Reference(g) => g,
            Runner::Integer(m) => m.graph(),
        }
    }

    /// Names of the outputs.
    pub fn output_names(&self) -> Vec<String> {
        let graph = self.graph();
        graph.outputs().iter().map(|&v| graph.value(v).name.clone()).collect()
    }

    /// Runs one batch.
    pub fn run(&self, inputs: &[narrowbit_tensor::Tensor]) -> Result<Vec<narrowbit_tensor::Tensor>> {
        match self {
            Runner::Fast(s) => Ok(s.run(inputs)?),
            Runner::Reference(g) => Ok(narrowbit_ir::interp::run_tensors(g, inputs)?),
            Runner::Integer(m) => Ok(m.run(inputs)?),
        }
    }
}
