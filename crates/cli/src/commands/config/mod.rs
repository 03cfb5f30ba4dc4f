mod decisions;
mod others;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use narrowbit_ir::Graph;
use narrowbit_quant::approach::Approach;
use narrowbit_quant::encodings::{Decided, Encodings};
use narrowbit_quant::options::{Override, QuantOptions};
use narrowbit_quant::plan::Layout;
use narrowbit_quant::scheme::Formula;
use serde_json::Value;

use self::decisions::Decision;
use crate::args::Global;
use crate::{fixed, measure, model, output};

/// Write the decisions of a quantized model into a file, to edit and to quantize again with
///
/// The JSON holds the settings that the model was quantized with; for each node whether it is quantized, or `why` it is
/// not, and the tensors that it reads and makes; for each tensor its type, bits, axis, scales and zero points, by the name
/// in the float model (and `_equalized`, where `rates` say by what it was multiplied).
/// `quantize -c FILE` takes the settings, `quantized` of nodes where it is edited (false without `why`, or true with it),
/// and all of the tensors: without samples, if every tensor has scales. A tensor whose type, bits or axis are edited gets
/// scales of its own again, as does one whose scales are taken out, and as do all whose settings (`weights`, `method` …)
/// are edited or overruled by flags. Biases follow from the scales, and those that took up what samples told are in `bias`
/// of their node. Of models without calibrated scales (--approach) the settings say all, and of a mixture they do of the nodes
/// that have another `approach` than static.
#[derive(Debug, Args)]
pub struct Config {
    /// The quantized model (.onnx)
    model: PathBuf,
    /// Where to write the decisions (.json)
    #[arg(short, long, value_name = "CONFIG.json")]
    output: PathBuf,
}

/// Decisions of nodes and of tensors.
#[derive(Debug, Default)]
pub struct Decisions {
    nodes: Vec<Decision>,
    tensors: BTreeMap<String, Decided>,
    /// The settings that the scales were chosen with, where the file says so.
    settings: Option<QuantOptions>,
}

/// The key of the settings that the scales of a file were chosen with.
const SCALES_FOR: &str = "scales-for";

impl Config {
    /// Runs the command.
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let model = model::load(&self.model)?;
        let settings = fixed::settings(&model);
        let mixture = settings.as_ref().is_some_and(QuantOptions::is_mixture);
        let scaled = settings.as_ref().is_none_or(|o| o.uses(Approach::Static));
        let blocks = settings.as_ref().is_some_and(|o| o.activations.formula == Formula::Quantizeml);
        let found = if scaled { decisions::of_graph(&model.graph, blocks) } else { Vec::new() };
        let mut nodes = match settings.as_ref().filter(|_| mixture) {
            Some(settings) => decisions::with_others(&model.graph, found, settings)?,
            None => found.into_iter().map(|(_, d)| d).collect(),
        };
        let scaled = scaled && (!mixture || nodes.iter().any(|d| d.quantized && d.approach.is_none()));
        let mut tensors = if scaled { Encodings::decided(&model.graph, settings.as_ref()) } else { BTreeMap::new() };
        if scaled && !nodes.iter().any(|d| d.quantized) {
            bail!("{}: no node is quantized\nhelp: `narrowbit quantize` makes a quantized model", self.model.display());
        }
        if mixture && scaled {
            let named = |name: &str| nodes.iter().any(|d| d.approach.is_none() && d.names(name));
            tensors.retain(|name, _| named(name));
        }
        if settings.as_ref().is_some_and(|o| o.bias_correction || o.correct_activations) {
            decisions::keep_biases(&mut nodes, Encodings::biases_of(&model.graph));
        }
        let settings = settings.unwrap_or_else(|| as_another_tool(&nodes));
        let chosen_with = serde_json::to_string(&settings)?;
        let mut all = explicit(settings)?;
        if let Some(map) = all.as_object_mut().filter(|_| scaled) {
            map.insert("nodes".into(), serde_json::to_value(&nodes)?);
            map.insert("tensors".into(), serde_json::to_value(&tensors)?);
            // A text, because nobody is to edit it.
            map.insert(SCALES_FOR.into(), chosen_with.into());
        }
        write(&self.output, &(serde_json::to_string_pretty(&all)? + "\n"))?;
        if global.json {
            output::json(&all)?;
        } else {
            let (file, quantized) = (self.model.display(), nodes.iter().filter(|d| d.quantized).count());
            let what = match scaled {
                true => format!("{quantized} of {} nodes are quantized, decisions in", nodes.len()),
                false => "all follows from the settings, which are in".to_owned(),
            };
            output::print(&format!("{file}: {what} {}\n", self.output.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The settings as JSON, with those that the scheme has on and this job off: left out, they would be the scheme's.
fn explicit(settings: QuantOptions) -> Result<Value> {
    let scheme = settings.scheme.map(|p| serde_json::to_value(p.options())).transpose()?;
    let mut all = serde_json::to_value(settings)?;
    if let (Some(Value::Object(scheme)), Some(all)) = (scheme, all.as_object_mut()) {
        for (key, _) in scheme.into_iter().filter(|(_, on)| *on == Value::Bool(true)) {
            all.entry(key).or_insert(Value::Bool(false));
        }
    }
    Ok(all)
}

/// The settings for a model that another tool has quantized: what it has left float stays float.
fn as_another_tool(nodes: &[Decision]) -> QuantOptions {
    let float = nodes.iter().filter(|d| !d.quantized);
    let overrides = float.map(|d| forced(d, true)).collect();
    QuantOptions { overrides, ..QuantOptions::default() }
}

/// The exception that makes a node float, or quantized.
fn forced(d: &Decision, float: bool) -> Override {
    Override { name: Some(measure::glob(&d.node)), float: Some(float), ..Override::default() }
}

/// Writes beside the target and renames.
fn write(path: &Path, text: &str) -> Result<()> {
    let named = || path.display().to_string();
    let mut file = narrowbit_tensor::staged::beside(path).with_context(named)?;
    file.write_all(text.as_bytes()).with_context(named)?;
    file.persist(path).map_err(|e| e.error).with_context(named)?;
    Ok(())
}

impl Decisions {
    /// Takes the decisions out of a configuration; `None` where it holds none.
    ///
    /// # Errors
    /// When they have another form.
    pub fn take(text: &mut Value) -> Result<Option<Decisions>, serde_json::Error> {
        let Some(map) = text.as_object_mut() else { return Ok(None) };
        let (nodes, tensors, chosen_with) = (map.remove("nodes"), map.remove("tensors"), map.remove(SCALES_FOR));
        if nodes.is_none() && tensors.is_none() {
            return Ok(None);
        }
        let nodes = nodes.map(serde_json::from_value).transpose()?.unwrap_or_default();
        let tensors = tensors.map(serde_json::from_value).transpose()?.unwrap_or_default();
        let chosen_with: Option<String> = chosen_with.map(serde_json::from_value).transpose()?;
        let settings = chosen_with.map(|text| serde_json::from_str(&text)).transpose()?;
        Ok(Some(Decisions { nodes, tensors, settings }))
    }

    /// The exceptions that edited decisions of nodes stand for; others follow from the settings.
    pub fn overrides(&self) -> impl Iterator<Item = Override> {
        let edited = |d: &&Decision| d.is_edited();
        self.nodes.iter().filter(edited).map(|d| forced(d, !d.quantized))
    }

    /// Refuses edited decisions that a layout does not carry out.
    ///
    /// # Errors
    /// The first node that is not there, or can't be quantized.
    pub fn check(&self, graph: &Graph, layout: &Layout) -> Result<()> {
        for d in self.nodes.iter().filter(|d| d.is_edited()) {
            let Some(id) = graph.node_named(&d.node) else {
                bail!(
                    "nodes: the cleaned model has no node \"{}\"\nhelp: `narrowbit config` writes the names; take the entry out",
                    d.node
                )
            };
            let why = match layout.others.fate_of(id) {
                Some(fate) => fate.why.clone(),
                None => layout.reasons.get(&id).map(ToString::to_string),
            };
            if let Some(why) = why.filter(|_| d.quantized) {
                bail!(
                    "nodes: \"{}\" ({}) can't be quantized: {why}\nhelp: set \"quantized\" to false again",
                    d.node,
                    d.op
                );
            }
        }
        Ok(())
    }

    /// The scales and types of tensors, and the biases of products.
    ///
    /// # Errors
    /// When an entry contradicts itself.
    pub fn encodings(&self) -> Result<Encodings> {
        let tensors = Encodings::of_decided(&self.tensors).map_err(|why| anyhow!("{why}"))?;
        let biases = self.nodes.iter().filter_map(|d| Some((d.node.clone(), d.bias.clone()?))).collect();
        Ok(Encodings { biases, ..tensors })
    }

    /// The settings that the scales were chosen with, where the file says so.
    pub fn settings(&self) -> Option<&QuantOptions> {
        self.settings.as_ref()
    }
}
