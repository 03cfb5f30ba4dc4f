//! Where the time of a run goes: by node and by operator type, against the peak of the machine.

use narrowbit_ir::Graph;
use narrowbit_ir::infer::Facts;
use narrowbit_kernels::peak::Arithmetic;
use narrowbit_runtime::{Operands, ProfileRow};
use serde::Serialize;

use super::peaks::Peaks;
use crate::timing::Profiled;
use crate::{macs, output};

/// The time of an operator type with one kernel.
#[derive(Debug, Serialize)]
pub struct OpRow {
    op: String,
    kernel: String,
    nodes: usize,
    ms: f64,
    /// Of all steps together.
    share: f64,
    /// 10⁹ operations per second; a multiply-accumulate counts as two. Absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    gops: Option<f64>,
    /// Of the machine's peak for integers or floats on these threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_share: Option<f64>,
}

/// The time of one step.
#[derive(Debug, Serialize)]
pub struct NodeRow {
    node: String,
    op: String,
    /// Further nodes in the same kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fused: Vec<String>,
    kernel: String,
    on_integers: bool,
    ms: f64,
    share: f64,
    macs: u64,
    bytes: usize,
    /// 10⁹ bytes of operands and results per second.
    gb_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_share: Option<f64>,
}

/// The profile of a model.
#[derive(Debug, Serialize)]
pub struct Profile {
    /// By operator type and kernel, longest first.
    #[serde(rename = "profile")]
    ops: Vec<OpRow>,
    /// By step, longest first.
    #[serde(rename = "profile_nodes")]
    nodes: Vec<NodeRow>,
    /// Milliseconds of the profiled run as a whole: the steps, and what is between them.
    #[serde(rename = "profile_ms")]
    whole_ms: f64,
    /// What the shares of the peak are shares of.
    peaks: Peaks,
}

/// Arithmetic and time of a row.
#[derive(Default, Clone, Copy)]
struct Sum {
    seconds: f64,
    macs: u64,
    nodes: usize,
}

impl Sum {
    fn gops(&self) -> Option<f64> {
        (self.macs > 0 && self.seconds > 0.0).then(|| self.macs as f64 * 2e-9 / self.seconds)
    }
}

impl Profile {
    /// Sums steps up.
    pub fn new(graph: &Graph, facts: &Facts, profiled: &Profiled, peaks: &Peaks) -> Profile {
        let total: f64 = profiled.steps.iter().map(|r| r.seconds).sum::<f64>().max(f64::MIN_POSITIVE);
        let peak = |step: &ProfileRow| peaks.of(arithmetic(step)).gops;
        let mut ops: Vec<(&str, &ProfileRow, Sum)> = Vec::new();
        let mut nodes = Vec::new();
        for step in &profiled.steps {
            let macs = |&n| macs::of_node(facts, graph.node(n)).unwrap_or(0);
            let macs = step.nodes.iter().map(macs).fold(0, u64::saturating_add);
            let one = Sum { seconds: step.seconds, macs, nodes: 1 };
            let op = graph.node(step.node).op.name();
            nodes.push(node_row(graph, step, one, total, peak(step)));
            let same = |(o, r, _): &&mut (&str, &ProfileRow, Sum)| {
                *o == op && r.kernel == step.kernel && r.on_integers == step.on_integers
            };
            match ops.iter_mut().find(same) {
                Some((_, _, sum)) => {
                    sum.seconds += one.seconds;
                    sum.macs = sum.macs.saturating_add(macs);
                    sum.nodes += 1;
                }
                None => ops.push((op, step, one)),
            }
        }
        let mut ops: Vec<OpRow> = ops
            .into_iter()
            .map(|(op, step, sum)| OpRow {
                op: op.into(),
                kernel: step.kernel.clone(),
                nodes: sum.nodes,
                ms: sum.seconds * 1e3,
                share: sum.seconds / total,
                gops: sum.gops(),
                peak_share: sum.gops().map(|g| g / peak(step)),
            })
            .collect();
        ops.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        nodes.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Profile { ops, nodes, whole_ms: profiled.whole * 1e3, peaks: peaks.clone() }
    }

    /// Two tables, and what they are held against; at most `top` nodes unless that is 0.
    pub fn text(&self, top: usize) -> String {
        let rate = |gops: Option<f64>, share: Option<f64>| {
            [gops.map_or(String::new(), |g| format!("{g:.1}")), share.map_or(String::new(), percent)]
        };
        let line = |head: [&str; 2], nodes: String, ms: f64, share: f64, rate: [String; 2]| {
            let cells = head.map(str::to_owned).into_iter().chain([nodes, format!("{ms:.3}"), percent(share)]);
            cells.chain(rate).collect::<Vec<String>>()
        };
        let ops: Vec<Vec<String>> = self
            .ops
            .iter()
            .map(|r| line([&r.op, &r.kernel], r.nodes.to_string(), r.ms, r.share, rate(r.gops, r.peak_share)))
            .collect();
        let mut out = self.peaks.text();
        out.push_str(&output::table(&["operator", "kernel", "nodes", "ms", "share", "GOP/s", "of peak"], &ops));
        let shown = if top == 0 { self.nodes.len() } else { top.min(self.nodes.len()) };
        let nodes: Vec<Vec<String>> = self.nodes[..shown]
            .iter()
            .map(|r| {
                let op = if r.fused.is_empty() { r.op.clone() } else { format!("{} + {}", r.op, r.fused.len()) };
                line([&r.node, &op], r.kernel.clone(), r.ms, r.share, rate(r.gops, r.peak_share))
            })
            .collect();
        out.push('\n');
        out.push_str(&output::table(&["node", "operator", "kernel", "ms", "share", "GOP/s", "of peak"], &nodes));
        if shown < self.nodes.len() {
            out.push_str(&format!("and {} more (--top 0 shows all)\n", self.nodes.len() - shown));
        }
        if self.ops.iter().any(|r| r.kernel.starts_with("winograd")) {
            out.push_str(
                "GOP/s count nine products for each window of 3 × 3: winograd2 makes 4, winograd3 2.78 and winograd4 2.25 of them\n",
            );
        }
        let beyond = |r: &NodeRow| !r.kernel.starts_with("winograd") && r.peak_share.is_some_and(|share| share > 1.3);
        if self.nodes.iter().any(|r| r.op == "Conv" && beyond(r)) {
            out.push_str("GOP/s count all taps of a window: those that meet only padding are not multiplied\n");
        }
        let steps: f64 = self.ops.iter().map(|r| r.ms).sum();
        out.push_str(&format!("steps {steps:.3} ms, the whole run {:.3} ms\n", self.whole_ms));
        out
    }
}

/// The peak that a step is held against: products of fp8 are those of bfloat16.
fn arithmetic(step: &ProfileRow) -> Arithmetic {
    match step.operands {
        Operands::Int8 => Arithmetic::Int8,
        Operands::Bf16 | Operands::Fp8 => Arithmetic::Bf16,
        Operands::F32 => Arithmetic::F32,
    }
}

fn node_row(graph: &Graph, step: &ProfileRow, sum: Sum, total: f64, peak: f64) -> NodeRow {
    let node = graph.node(step.node);
    let names = step.nodes.iter().filter(|&&n| n != step.node).map(|&n| graph.node(n).name.clone());
    NodeRow {
        node: node.name.clone(),
        op: node.op.name().into(),
        fused: names.collect(),
        kernel: step.kernel.clone(),
        on_integers: step.on_integers,
        ms: step.seconds * 1e3,
        share: step.seconds / total,
        macs: sum.macs,
        bytes: step.bytes,
        gb_per_second: if step.seconds > 0.0 { step.bytes as f64 * 1e-9 / step.seconds } else { 0.0 },
        gops: sum.gops(),
        peak_share: sum.gops().map(|g| g / peak),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_two_operations_for_a_multiply_accumulate() {
        let sum = Sum { seconds: 0.5, macs: 1_000_000_000, nodes: 1 };
        assert_eq!(sum.gops(), Some(4.0));
        assert_eq!(Sum { macs: 0, ..sum }.gops(), None);
    }
}
