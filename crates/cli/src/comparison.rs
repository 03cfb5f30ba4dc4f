//! Two models on the same inputs, tensor by tensor.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Result, bail};
use narrowbit_data::{Dataset, Fill};
use narrowbit_ir::{Def, Graph, NodeId, ValueId};
use narrowbit_runtime::{Options, Session};
use narrowbit_tensor::{DType, Tensor};
use serde::Serialize;

use crate::args::Products;
use crate::metrics::{Deviation, Figures};
use crate::runs::Runs;
use crate::{data, interrupt, model, output};

/// The figures of one tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorRow {
    /// The tensor's name.
    pub name: String,
    /// The operator that makes it in the reference.
    pub op: String,
    /// With all error up to here.
    pub cumulative: Figures,
    /// With the error of its own node alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated: Option<Figures>,
    /// The share of codes at the least or greatest value, where the tensor is quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturated: Option<f64>,
    /// The scale of the codes, where the tensor is quantized; the greatest, where channels have their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<f64>,
}

impl TensorRow {
    /// A row with cumulative figures only.
    pub fn new(graph: &Graph, v: ValueId, cumulative: Figures) -> TensorRow {
        let op = graph.producer(v).map_or("input", |(n, _)| graph.node(n).op.name());
        let name = graph.value(v).name.clone();
        TensorRow { name, op: op.to_owned(), cumulative, isolated: None, saturated: None, step: None }
    }

    /// The mean error of these figures in steps of the tensor's codes.
    pub fn mean_steps(&self, figures: Figures) -> Option<f64> {
        Some(figures.mean_error / self.step?)
    }

    /// The SQNR that ranks a tensor.
    pub fn isolated_or_cumulative(&self) -> f64 {
        self.isolated.map_or(self.cumulative.sqnr_db, |f| f.sqnr_db)
    }

    /// Rows as a table.
    pub fn table(rows: &[&TensorRow]) -> String {
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|r| {
                vec![
                    r.name.clone(),
                    r.op.clone(),
                    r.isolated.map_or(String::new(), |f| output::decibels(f.sqnr_db)),
                    output::decibels(r.cumulative.sqnr_db),
                    format!("{:.5}", r.cumulative.cosine),
                    format!("{:.2e}", r.cumulative.max_error),
                    r.mean_steps(r.isolated.unwrap_or(r.cumulative)).map_or(String::new(), steps_text),
                    r.saturated.map_or(String::new(), |s| format!("{:.2} %", s * 100.0)),
                ]
            })
            .collect();
        let titles =
            ["tensor", "operator", "isolated", "cumulative", "cosine", "max error", "mean (steps)", "saturated"];
        output::table(&titles, &cells)
    }
}

/// A mean error in steps, for a table.
pub fn steps_text(steps: f64) -> String {
    // No sign for what is nothing.
    let rounded = (steps * 100.0).round() / 100.0 + 0.0;
    if rounded == 0.0 { "0.00".into() } else { format!("{rounded:+.2}") }
}

/// Collects the deviation of every tensor that both models have.
pub struct Comparison {
    a: Session,
    b: Session,
    /// Values of B by their counterparts in A.
    pairs: BTreeMap<ValueId, ValueId>,
    /// Codes of B by the value of A that they represent.
    codes: BTreeMap<ValueId, ValueId>,
    parts: Vec<Part>,
    cumulative: BTreeMap<ValueId, Deviation>,
    isolated: BTreeMap<ValueId, Deviation>,
    saturation: BTreeMap<ValueId, (u64, u64)>,
    /// Values of A that do not show which part of a run that was filled up is of its own samples.
    unclear: BTreeSet<ValueId>,
}

/// What makes one value of B from the nearest values that A has too.
struct Part {
    /// The value of A that it is compared with.
    value: ValueId,
    session: Session,
    /// The values of A that it reads.
    inputs: Vec<ValueId>,
}

impl Comparison {
    /// Prepares a comparison; isolated figures need a session for each tensor. `float` is for B.
    pub fn new(a: &Graph, b: &Graph, threads: usize, isolated: bool, float: Products) -> Result<Comparison> {
        let pairs = pairs(a, b);
        if pairs.is_empty() {
            bail!("the models have no tensor in common\nhelp: B must have been made from A; names must have been kept");
        }
        let codes = codes(b, &pairs);
        let parts = if isolated { parts(a, b, &pairs, threads, float)? } else { Vec::new() };
        let observe_b: BTreeSet<ValueId> = pairs.values().chain(codes.values()).copied().collect();
        let (a, b): (Arc<Graph>, Arc<Graph>) = (Arc::new(a.clone()), Arc::new(b.clone()));
        Ok(Comparison {
            a: Session::new(a, Options { threads, observe: pairs.keys().copied().collect() })?,
            b: float.apply(Session::new(b, Options { threads, observe: observe_b })?)?,
            pairs,
            codes,
            parts,
            cumulative: BTreeMap::new(),
            isolated: BTreeMap::new(),
            saturation: BTreeMap::new(),
            unclear: BTreeSet::new(),
        })
    }

    /// Adds all batches of a data set, with a bar that says what is going on.
    pub fn run(&mut self, what: &str, dataset: &Dataset, runs: &Runs) -> Result<()> {
        let bar = output::progress(what, dataset.len());
        for batch in runs.batches(dataset, 0, Fill::Last) {
            if interrupt::requested() {
                bail!("stopped by Ctrl-C after {} of {} samples", bar.position(), dataset.len());
            }
            let batch = batch?;
            let n = batch.indices.len();
            self.add(&data::tensors(batch), runs, n)?;
            bar.inc(n as u64);
        }
        bar.finish_and_clear();
        if !self.unclear.is_empty() {
            tracing::warn!(
                "{} tensors do not show which part of the last run, which was filled up, is of which sample: it is not in their figures, \
                 or whole where it is the only run",
                self.unclear.len()
            );
        }
        Ok(())
    }

    /// Runs both on one batch of `n` samples, and perhaps others that fill it up and do not count.
    ///
    /// Of values that do not show which part is of which sample, such a batch is left out, unless there was no other.
    pub fn add(&mut self, inputs: &[Tensor], runs: &Runs, n: usize) -> Result<()> {
        let mut reference: BTreeMap<ValueId, Tensor> = BTreeMap::new();
        self.a.run_observed(inputs, &mut |v, view| {
            reference.insert(v, view.to_tensor().map_err(|e| e.to_string())?);
            Ok(())
        })?;
        let back: BTreeMap<ValueId, ValueId> = self.pairs.iter().map(|(&a, &b)| (b, a)).collect();
        let represented: BTreeMap<ValueId, ValueId> = self.codes.iter().map(|(&a, &c)| (c, a)).collect();
        let (cumulative, saturation) = (&mut self.cumulative, &mut self.saturation);
        let unclear = RefCell::new(&mut self.unclear);
        let part = |a: ValueId, t: Tensor, others: bool| {
            let part = runs.part(a, t.clone(), n)?;
            if part.is_none() {
                unclear.borrow_mut().insert(a);
            }
            anyhow::Ok(part.or(if others { None } else { Some(t) }))
        };
        let fed = model::fed(self.b.graph(), inputs)?;
        self.b.run_observed(&fed, &mut |v, view| {
            let text = |e: &dyn std::fmt::Display| e.to_string();
            let of_samples = |a: ValueId, others: bool| {
                let got = view.to_tensor().map_err(|e| text(&e))?;
                part(a, got, others).map_err(|e| text(&e))
            };
            if let Some(&a) = represented.get(&v)
                && let Some(codes) = of_samples(a, saturation.contains_key(&a))?
            {
                let counts = saturation.entry(a).or_default();
                counts.0 += saturated(codes.dtype(), codes.bytes());
                counts.1 += codes.bytes().len() as u64;
            }
            if let Some((&a, r)) = back.get(&v).and_then(|a| Some((a, reference.get(a)?))) {
                let others = cumulative.contains_key(&a);
                let expected = part(a, r.clone(), others).map_err(|e| text(&e))?;
                if let (Some(expected), Some(got)) = (expected, of_samples(a, others)?) {
                    cumulative.entry(a).or_default().add(&expected, &got).map_err(|e| text(&e))?;
                }
            }
            Ok(())
        })?;
        for p in &self.parts {
            let inputs: Option<Vec<Tensor>> = p.inputs.iter().map(|v| reference.get(v).cloned()).collect();
            let (Some(inputs), Some(expected)) = (inputs, reference.get(&p.value)) else { continue };
            let others = self.isolated.contains_key(&p.value);
            let Some(expected) = part(p.value, expected.clone(), others)? else { continue };
            if let Some(got) = p.session.run(&model::fed(p.session.graph(), &inputs)?)?.into_iter().next()
                && let Some(got) = part(p.value, got, others)?
            {
                self.isolated.entry(p.value).or_default().add(&expected, &got)?;
            }
        }
        Ok(())
    }

    fn row(&self, v: ValueId) -> Option<TensorRow> {
        let mut row = TensorRow::new(self.a.graph(), v, self.cumulative.get(&v)?.figures());
        row.isolated = self.isolated.get(&v).map(Deviation::figures);
        row.saturated = self.saturation.get(&v).map(|(n, all)| *n as f64 / (*all).max(1) as f64);
        row.step = self.codes.get(&v).and_then(|&codes| step(self.b.graph(), codes));
        Some(row)
    }

    /// The outputs of the models.
    pub fn outputs(&self) -> Vec<TensorRow> {
        self.a.graph().outputs().iter().filter_map(|&v| self.row(v)).collect()
    }

    /// All tensors but graph inputs, in the reference's order.
    pub fn tensors(&self) -> Vec<TensorRow> {
        let graph = self.a.graph();
        let made = graph.nodes().flat_map(|(_, n)| n.outputs.iter().flatten().copied());
        made.filter_map(|v| self.row(v)).collect()
    }
}

/// The model whose inputs tell the shapes of runs that serve both: A, or B where that fixes what A leaves open.
///
/// # Errors
/// When both fix a dimension of an input, and differ.
pub fn narrower<'a>(a: &'a Graph, b: &'a Graph) -> Result<&'a Graph> {
    let (of_a, of_b) = (model::input_specs(a)?, model::input_specs(b)?);
    let mut found = a;
    for x in &of_a {
        let Some(y) = of_b.iter().find(|y| y.name == x.name) else { continue };
        let differ = |(x, y): (&Option<usize>, &Option<usize>)| matches!((x, y), (Some(x), Some(y)) if x != y);
        if x.shape.len() != y.shape.len() || x.shape.iter().zip(&y.shape).any(differ) {
            bail!(
                "input \"{}\" is {} in A and {} in B: no run serves both\nhelp: compare models of the same batch, or export one of them with a free batch axis",
                x.name,
                x.shape_text(),
                y.shape_text()
            );
        }
        if x.shape.iter().zip(&y.shape).any(|(x, y)| x.is_none() && y.is_some()) {
            found = b;
        }
    }
    Ok(found)
}

/// The scale of the codes that a QuantizeLinear makes, the greatest of several, where it is a constant.
fn step(graph: &Graph, codes: ValueId) -> Option<f64> {
    let scales = graph.const_input(graph.producer(codes)?.0, 1)?.to_f64s().ok()?;
    scales.into_iter().reduce(f64::max).filter(|s| *s > 0.0)
}

/// Codes at either end of their type.
fn saturated(dtype: DType, bytes: &[u8]) -> u64 {
    let (low, high) = match dtype {
        DType::I8 => (0x80, 0x7f),
        _ => (0, 255),
    };
    bytes.iter().filter(|&&c| c == low || c == high).count() as u64
}

/// Float values of both graphs by name. Where a value of B is only read through its quantized form, that form
/// is what follows from it, so it is what is compared.
fn pairs(a: &Graph, b: &Graph) -> BTreeMap<ValueId, ValueId> {
    let wide = |d: DType| matches!(d, DType::F32 | DType::F16 | DType::Bf16 | DType::F64);
    let float = |g: &Graph, v: ValueId| g.value(v).ty.tensor().is_none_or(|t| t.dtype.is_none_or(wide));
    let makes = |g: &Graph, v: ValueId| matches!(g.value(v).def, Def::Node(..) | Def::Input);
    let both = a.values().filter_map(|(va, value)| Some((va, b.value_named(&value.name)?)));
    both.filter(|&(va, vb)| float(a, va) && float(b, vb) && makes(a, va) && makes(b, vb)).collect()
}

/// The output of QuantizeLinear by the value of A whose codes it holds.
fn codes(b: &Graph, pairs: &BTreeMap<ValueId, ValueId>) -> BTreeMap<ValueId, ValueId> {
    let back: BTreeMap<ValueId, ValueId> = pairs.iter().map(|(&a, &b)| (b, a)).collect();
    let mut out = BTreeMap::new();
    for (_, q) in b.nodes().filter(|(_, n)| n.op.name() == "QuantizeLinear") {
        let (Some(x), Some(y)) = (q.input(0), q.output(0)) else { continue };
        let dequantized = b.uses(y).iter().filter_map(|u| b.node(u.node).output(0));
        if let Some(&a) = [x].into_iter().chain(dequantized).find_map(|v| back.get(&v)) {
            out.insert(a, y);
        }
    }
    out
}

fn parts(
    a: &Graph,
    b: &Graph,
    pairs: &BTreeMap<ValueId, ValueId>,
    threads: usize,
    float: Products,
) -> Result<Vec<Part>> {
    let back: BTreeMap<ValueId, ValueId> = pairs.iter().map(|(&a, &b)| (b, a)).collect();
    let mut out = Vec::new();
    for (&va, &vb) in pairs {
        if let Some((graph, inputs)) = cut(b, vb, &back) {
            let session = float.apply(Session::new(graph, Options { threads, ..Options::default() })?)?;
            out.push(Part { value: va, session, inputs });
        }
    }
    let order: BTreeMap<ValueId, usize> =
        a.nodes().flat_map(|(_, n)| n.outputs.iter().flatten().copied()).enumerate().map(|(i, v)| (v, i)).collect();
    out.sort_by_key(|p| order.get(&p.value).copied());
    Ok(out)
}

/// The part of B that makes `target` from values that A has too; `None` where nothing is computed, or where
/// more than values of A would be needed.
fn cut(b: &Graph, target: ValueId, back: &BTreeMap<ValueId, ValueId>) -> Option<(Graph, Vec<ValueId>)> {
    let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
    let mut reads: BTreeSet<ValueId> = BTreeSet::new();
    let mut open = vec![target];
    while let Some(v) = open.pop() {
        if v != target && back.contains_key(&v) {
            reads.insert(v);
            continue;
        }
        match b.value(v).def {
            Def::Const(_) => {}
            Def::Input => return None,
            Def::Node(n, _) => {
                if nodes.insert(n) {
                    open.extend(b.node(n).inputs.iter().flatten());
                }
            }
        }
    }
    if nodes.is_empty() || reads.is_empty() {
        return None;
    }
    let mut graph = Graph::new("part");
    let mut map: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for &v in &reads {
        map.insert(v, graph.add_input(&b.value(v).name, b.value(v).ty.clone()));
    }
    for (id, node) in b.nodes().filter(|(id, _)| nodes.contains(id)) {
        for &v in node.inputs.iter().flatten() {
            if let (None, Some(t)) = (map.get(&v), b.constant(v)) {
                map.insert(v, graph.add_const(&b.value(v).name, t.clone()));
            }
        }
        let inputs = node.inputs.iter().map(|v| v.and_then(|v| map.get(&v).copied())).collect();
        let names: Vec<Option<&str>> = node.outputs.iter().map(|v| v.map(|v| b.value(v).name.as_str())).collect();
        let new = graph.add_node(&node.name, node.op.clone(), inputs, &names);
        let made = graph.node(new).outputs.clone();
        map.extend(b.node(id).outputs.iter().zip(made).filter_map(|(v, m)| Some(((*v)?, m?))));
    }
    graph.add_output(*map.get(&target)?);
    let inputs = reads.iter().filter_map(|v| back.get(v).copied()).collect();
    Some((graph, inputs))
}
