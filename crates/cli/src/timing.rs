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

/// The time of a whole run, and its steps; those are empty where the graph runs node by node.
pub type ProfiledRun = (f64, Vec<ProfileRow>);

/// Profiles one run.
pub fn profile(session: &Session, inputs: &[Tensor]) -> Result<ProfiledRun> {
    let start = Instant::now();
    let (_, profile) = session.profile(inputs)?;
    Ok((start.elapsed().as_secs_f64(), profile.rows))
}

/// The steps of several runs of the same plan.
pub struct Profiled {
    /// Each with the median of its times; empty where the graph runs node by node.
    pub steps: Vec<ProfileRow>,
    /// Seconds of a whole profiled run, the median.
    pub whole: f64,
}

impl Profiled {
    /// Profiles so many runs.
    pub fn new(session: &Session, inputs: &[Tensor], runs: usize) -> Result<Profiled> {
        Ok(Profiled::of((0..runs).map(|_| profile(session, inputs)).collect::<Result<_>>()?))
    }

    /// The medians over runs of the same plan.
    pub fn of(mut runs: Vec<ProfiledRun>) -> Profiled {
        let whole = median(runs.iter().map(|r| r.0).collect());
        let Some((_, mut steps)) = runs.pop() else { return Profiled { steps: Vec::new(), whole } };
        for (i, step) in steps.iter_mut().enumerate() {
            let others = runs.iter().filter_map(|(_, rows)| rows.get(i)).map(|r| r.seconds);
            step.seconds = median(others.chain([step.seconds]).collect());
        }
        Profiled { steps, whole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_ir::NodeId;

    fn step(i: usize, seconds: f64) -> ProfileRow {
        let node = NodeId::from_index(i);
        ProfileRow { node, nodes: vec![node], kernel: "k".into(), on_integers: false, bytes: 4, seconds }
    }

    #[test]
    fn takes_the_median_of_each_step_and_of_the_whole() {
        let runs = [3.0, 1.0, 2.0].map(|t| (10.0 * t, vec![step(0, t), step(1, 4.0 - t)])).to_vec();
        let p = Profiled::of(runs);
        assert_eq!((p.whole, p.steps[0].seconds, p.steps[1].seconds), (20.0, 2.0, 2.0));
    }

    #[test]
    fn has_no_steps_where_a_graph_runs_node_by_node() {
        let p = Profiled::of(vec![(1.0, Vec::new())]);
        assert!(p.steps.is_empty() && p.whole == 1.0);
        assert!(Profiled::of(Vec::new()).steps.is_empty());
    }
}
