//! Times of several runs.

use std::time::Instant;

use anyhow::Result;
use narrowbit_runtime::{ProfileRow, Session};
use narrowbit_tensor::Tensor;

/// The middle value, the upper one of two; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A run that was profiled.
pub struct Profiled {
    /// Seconds of the whole run.
    pub whole: f64,
    /// Its steps.
    pub steps: Vec<ProfileRow>,
}

impl Profiled {
    /// Profiles one run.
    pub fn new(session: &Session, inputs: &[Tensor]) -> Result<Profiled> {
        let start = Instant::now();
        let (_, profile) = session.profile(inputs)?;
        Ok(Profiled { whole: start.elapsed().as_secs_f64(), steps: profile.rows })
    }

    /// The fastest of so many runs, one at the least: other work disturbed it least, and its steps add up.
    pub fn fastest(session: &Session, inputs: &[Tensor], runs: usize) -> Result<Profiled> {
        let mut best = Profiled::new(session, inputs)?;
        for _ in 1..runs {
            let next = Profiled::new(session, inputs)?;
            if next.whole < best.whole {
                best = next;
            }
        }
        Ok(best)
    }
}

/// The steps of several runs of one plan, each with the median of its times.
pub fn median_steps(mut runs: Vec<Profiled>) -> Vec<ProfileRow> {
    let mut steps = runs.pop().map_or(Vec::new(), |r| r.steps);
    for (i, step) in steps.iter_mut().enumerate() {
        let others = runs.iter().filter_map(|r| r.steps.get(i)).map(|s| s.seconds);
        step.seconds = median(others.chain([step.seconds]).collect());
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::NodeId;

    fn step(i: usize, seconds: f64) -> ProfileRow {
        let node = NodeId::from_index(i);
        ProfileRow {
            node,
            nodes: vec![node],
            kernel: "k".into(),
            on_integers: false,
            operands: narrowbit_runtime::Operands::F32,
            bytes: 4,
            seconds,
        }
    }

    #[test]
    fn takes_the_median_of_each_step() {
        let run = |t: f64| Profiled { whole: 9.0, steps: vec![step(0, t), step(1, 4.0 - t)] };
        let steps = median_steps([3.0, 1.0, 2.5].map(run).into());
        assert_eq!((steps[0].seconds, steps[1].seconds), (2.5, 1.5));
    }

    #[test]
    fn has_no_steps_where_a_graph_runs_node_by_node() {
        assert!(median_steps(vec![Profiled { whole: 1.0, steps: Vec::new() }]).is_empty());
        assert!(median_steps(Vec::new()).is_empty());
    }
}
