//! Weights by blocks, rounded by samples ([`crate::gptq`]) with the scales and zero points that the algorithm chose.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, NodeId, ValueId};
use narrowbit_kernels::Exec;

use super::block::Values;
use super::pack::Blocks;
use super::{Job, Key, is_transposed, write};
use crate::gptq::{self, Columns, Grid, Report, Rounded, Rounder, Weight};
use crate::options::WeightRounding;
use crate::quantize::QuantizeError;

/// The products that read a constant in one way, and its scales.
struct Shared {
    readers: Vec<NodeId>,
    constant: ValueId,
    blocks: Blocks,
}

/// The weights of the jobs that are to be rounded so.
///
/// # Errors
/// When a sample can't be read or the float model can't be run on it, or the user asks to stop.
pub(super) fn round(
    graph: &Graph,
    jobs: &[Job],
    rounder: &mut Rounder,
    exec: &Exec,
) -> Result<(BTreeMap<Key, Blocks>, Report), QuantizeError> {
    let mut shared: BTreeMap<Key, Shared> = BTreeMap::new();
    for job in jobs.iter().filter(|j| j.rounding == WeightRounding::Gptq) {
        let node = graph.node(job.node);
        let Some(v) = node.input(1).filter(|_| matches!(node.op.name(), "MatMul" | "Gemm")) else { continue };
        let by_column = is_transposed(node);
        let Some(key) = write::key(graph, v, by_column, &job.options) else { continue };
        if let Some(known) = shared.get_mut(&key) {
            known.readers.push(job.node);
        } else if let Some(blocks) = write::blocks(graph, v, by_column, job.options, exec)? {
            shared.insert(key, Shared { readers: vec![job.node], constant: v, blocks });
        }
    }
    // In the order of the graph, as the report is.
    let mut order: Vec<(Key, Shared)> = shared.into_iter().collect();
    order.sort_by_key(|(_, s)| s.readers.first().copied());
    let weights: Vec<Weight> = order.iter().filter_map(|(_, s)| weight(graph, s)).collect();
    let mut codes: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    let report = gptq::round(graph, &weights, rounder, exec, &mut |i, Rounded { codes: own, .. }| {
        codes.insert(i, own.into_iter().map(|c| c as u8).collect());
        Ok(())
    })?;
    drop(weights);
    for (i, own) in codes {
        order[i].1.blocks.codes = own;
    }
    Ok((order.into_iter().map(|(key, s)| (key, s.blocks)).collect(), report))
}

fn weight<'a>(graph: &'a Graph, shared: &'a Shared) -> Option<Weight<'a>> {
    let columns: Option<Vec<Columns>> = shared.readers.iter().map(|&id| Columns::of(graph, id)).collect();
    let node = graph.node(*shared.readers.first()?).name.clone();
    let grid = Box::new(Scaled { values: Values::new(shared.blocks.options.codes), blocks: &shared.blocks });
    let tensor = graph.constant(shared.constant)?;
    Some(Weight { node, columns: columns.unwrap_or_default(), tensor, grid, centred: false })
}

/// The values that codes by blocks stand for.
struct Scaled<'a> {
    values: Values,
    blocks: &'a Blocks,
}

impl Grid for Scaled<'_> {
    fn round(&self, k: usize, first: usize, x: &[f32], codes: &mut [i32], values: &mut [f32]) {
        let (block, per) = (k / self.blocks.options.block, self.blocks.blocks());
        for (i, ((&x, code), value)) in x.iter().zip(codes).zip(values).enumerate() {
            let at = (first + i) * per + block;
            let zero = self.blocks.zeros.as_ref().map_or(0, |z| z[at]);
            let (byte, of) = self.values.round(x, self.blocks.scales[at], zero);
            (*code, *value) = (i32::from(byte), of);
        }
    }
}
