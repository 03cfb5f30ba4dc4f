//! Biases that a configuration holds: what samples told of them when it was written need not be measured again.

use narrowbit_ir::{Graph, NodeId};
use narrowbit_tensor::Tensor;

use super::weights::{Bias, bias};
use super::{BiasParams, PlanError, QuantPlan};
use crate::encodings::KeptBias;

/// What a bias has become.
pub(super) enum Kept {
    /// Float values.
    Float(Tensor),
    /// Codes with their scales.
    Codes(BiasParams),
}

impl QuantPlan {
    /// Makes the bias of a product as the configuration has it; `None` where that says nothing. `inputs` are the scales of
    /// what the product reads, none where its bias stays float; `cut` is as for [`bias`].
    pub(super) fn kept(
        &mut self,
        graph: &Graph,
        key: (NodeId, usize),
        b: &Bias,
        inputs: &[f32],
        cut: Option<i32>,
    ) -> Result<Option<Kept>, PlanError> {
        let name = &graph.node(key.0).name;
        let Some(kept) = self.kept_biases.get(name) else { return Ok(None) };
        let refuse = |why: String| PlanError::Given(format!("node \"{name}\": {why}"));
        let exact = kept.values(b.tensor.len()).map_err(refuse)?;
        let values = Tensor::new(b.tensor.shape(), exact.iter().map(|&x| x as f32).collect::<Vec<_>>());
        let values = values.map_err(|e| refuse(e.to_string()))?;
        if inputs.is_empty() {
            return Ok(Some(Kept::Float(values)));
        }
        let Some(weight) = self.weights.get_mut(&key) else { return Ok(None) };
        let made = bias(&values, inputs, weight, cut);
        let codes = codes(kept, &made, &values, &exact);
        Ok(Some(Kept::Codes(BiasParams { codes: Some(codes), ..made })))
    }
}

fn codes(kept: &KeptBias, made: &BiasParams, values: &Tensor, exact: &[f64]) -> Vec<i32> {
    if kept.has_scales(&made.scales) {
        return kept.codes.clone();
    }
    // Where the scheme has no way of its own: of all the digits, which float32 would not hold.
    let code = |(&x, &s): (&f64, &f32)| {
        (x / f64::from(s)).round_ties_even().clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
    };
    match made.codes {
        Some(_) => made.quantize(values),
        None => exact.iter().zip(&made.scales).map(code).collect(),
    }
}
