//! `inspect --integer-only`: the proof that a model runs on integers.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use narrowbit_fixed::{LowerError, Proof, Rounding};
use narrowbit_ir::{Dim, Graph, Node, QuantRole};
use serde::Serialize;

use super::Inspect;
use crate::args::Global;
use crate::{fixed, model, output};

/// Layers of steps in time.
const RECURRENT: [&str; 4] = ["DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"];

#[derive(Serialize)]
struct Summary {
    file: PathBuf,
    integer_only: bool,
    rounding: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    buffer_bits: Option<u8>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    needs_floats: Option<Place>,
    /// Products and recurrent layers before the first code or behind the last one, which run on floats.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    float_products: Vec<String>,
    #[serde(flatten)]
    proof: Proof,
}

#[derive(Serialize)]
struct Place {
    node: String,
    op: String,
    why: String,
}

pub(super) fn run(args: &Inspect, global: &Global) -> Result<ExitCode> {
    let mut model = model::load_runnable(&args.file)?;
    model::sanitize(&mut model)?;
    let options = args.integer.options(&model);
    let mut shapes = model::smallest_shapes(&model.graph)?;
    for (v, shape) in &mut shapes {
        bind(&model.graph, *v, shape, &args.dim);
    }
    let (proof, needs_floats) = match fixed::lowered(&model, &shapes, options, &fixed::exec(1)?) {
        Ok(lowered) => (lowered.proof, None),
        Err(LowerError::NeedsFloats { node, op, why }) => (Proof::default(), Some(Place { node, op, why })),
        Err(e) => return Err(e.into()),
    };
    let float_products = float_products(&model.graph, &proof);
    let summary = Summary {
        file: args.file.clone(),
        integer_only: needs_floats.is_none() && float_products.is_empty(),
        rounding: if options.rounding == Rounding::HalfUp { "half-up" } else { "half-even" },
        buffer_bits: options.buffer_bits,
        needs_floats,
        float_products,
        proof,
    };
    if global.json {
        output::json(&summary)?;
    } else {
        output::print(&text(&summary))?;
    }
    Ok(if summary.integer_only { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The nodes with the work of a network among those that are no part of the proof.
fn float_products(graph: &Graph, proof: &Proof) -> Vec<String> {
    let outside = |name: &String| proof.before.contains(name) || proof.after.contains(name);
    let weighty = |n: &Node| matches!(n.op.quant(), QuantRole::Weighted { .. }) || RECURRENT.contains(&n.op.name());
    graph.nodes().filter(|(_, n)| weighty(n) && outside(&n.name)).map(|(_, n)| n.name.clone()).collect()
}

fn bind(graph: &Graph, v: narrowbit_ir::ValueId, shape: &mut [usize], dims: &[(String, usize)]) {
    let stated = graph.value(v).ty.tensor().and_then(|t| t.shape.clone()).unwrap_or_default();
    for (extent, dim) in shape.iter_mut().zip(&stated) {
        if let Dim::Sym(name) = dim
            && let Some((_, n)) = dims.iter().find(|(d, _)| **d == **name)
        {
            *extent = *n;
        }
    }
}

fn text(s: &Summary) -> String {
    let file = s.file.display();
    if let Some(p) = &s.needs_floats {
        return format!(
            "{file} does not run on integers alone\n  first node that needs floats: {} ({})\n  {}\n",
            p.node, p.op, p.why
        );
    }
    let buffer = s.buffer_bits.map_or(String::new(), |b| format!(", a buffer of {b} bits that saturates"));
    let mut out = match &s.float_products[..] {
        [] => format!("{file} runs on integers alone: shifts round {}{buffer}\n", s.rounding),
        [first, ..] => format!(
            "{file} does not run on integers alone: {} of its products run on floats, {first} for one\n  between: shifts round {}{buffer}\n",
            s.float_products.len(),
            s.rounding
        ),
    };
    let list = |names: &[String]| names.join(", ");
    if !s.proof.before.is_empty() {
        out.push_str(&format!("  before, up to the codes of the input: {} nodes\n", s.proof.before.len()));
    }
    let rows: Vec<Vec<String>> = s.proof.rows.iter().map(row).collect();
    out.push_str(&output::table(&["node", "op", "integers", "from", "to", "bits"], &rows));
    if !s.proof.after.is_empty() {
        out.push_str(&format!("  behind, on dequantized results: {}\n", list(&s.proof.after)));
    }
    if let Some(first) = &s.proof.first_after {
        out.push_str(&format!("  the first of these: {first}\n"));
    }
    out
}

fn row(r: &narrowbit_fixed::ProofRow) -> Vec<String> {
    let saturates = if r.saturates { ", may saturate" } else { "" };
    vec![
        r.node.clone(),
        r.op.clone(),
        format!("{}{saturates}", r.integers),
        r.bounds.0.to_string(),
        r.bounds.1.to_string(),
        r.bits.to_string(),
    ]
}
