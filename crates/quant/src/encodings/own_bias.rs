//! Biases in our own configuration: those that took up the errors of rounding, which scales alone do not tell.

use std::collections::BTreeMap;

use narrowbit_ir::{Graph, Node, NodeId, QuantRole, ValueId};
use narrowbit_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::Encodings;

/// The bias of a product as it was written: int32 codes with their scales, or float values.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeptBias {
    /// One for each output channel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<i32>,
    /// Of the codes: one, or one for each. The codes count as they are where the product still has these scales; where it has
    /// others, the values that they stand for are rounded anew.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scales: Vec<f32>,
    /// Instead of codes, where the bias is float.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<f32>,
}

impl KeptBias {
    /// The bias of a product in a quantized graph, where it has a constant one.
    pub fn of(graph: &Graph, product: NodeId) -> Option<KeptBias> {
        let node = graph.node(product);
        match node.op.name() {
            "QLinearConv" => KeptBias::of_qlinear(graph, product, 8),
            "QGemm" => KeptBias::of_qlinear(graph, product, 6),
            "MatMul" => KeptBias::of_value(graph, added(graph, node)?),
            _ => {
                let QuantRole::Weighted { bias, .. } = node.op.quant() else { return None };
                KeptBias::of_value(graph, node.input(bias?)?)
            }
        }
    }

    fn of_value(graph: &Graph, v: ValueId) -> Option<KeptBias> {
        if let Some(values) = graph.constant(v).filter(|t| t.dtype() == DType::F32) {
            return Some(KeptBias { values: values.to_f32s().ok()?.to_vec(), ..KeptBias::default() });
        }
        let (dq, _) = graph.producer(v).filter(|(n, _)| graph.node(*n).op.name() == "DequantizeLinear")?;
        let (codes, scales) = (graph.const_input(dq, 0)?, graph.const_input(dq, 1)?);
        Some(KeptBias { codes: int32(codes)?, scales: scales.to_f32s().ok()?.to_vec(), ..KeptBias::default() })
    }

    /// Codes at an input of a QLinear operator, whose scales are those of the products.
    fn of_qlinear(graph: &Graph, id: NodeId, at: usize) -> Option<KeptBias> {
        let scales = |i: usize| graph.const_input(id, i)?.to_f32s().ok();
        let (codes, x, w) = (int32(graph.const_input(id, at)?)?, *scales(1)?.first()?, scales(4)?);
        let scales = w.iter().map(|&w| (f64::from(x) * f64::from(w)) as f32).collect();
        Some(KeptBias { codes, scales, ..KeptBias::default() })
    }

    /// What it stands for, one for each output channel.
    ///
    /// # Errors
    /// When it has another number of values, or contradicts itself.
    pub fn values(&self, channels: usize) -> Result<Vec<f64>, String> {
        let count = self.codes.len().max(self.values.len());
        if count != channels {
            return Err(format!("its bias has {count} values for {channels} channels"));
        }
        match (self.codes.is_empty(), self.scales.len()) {
            (true, 0) if self.values.iter().all(|x| x.is_finite()) => {
                Ok(self.values.iter().map(|&x| x.into()).collect())
            }
            (false, n) if self.values.is_empty() && (n == 1 || n == channels) => {
                let scale = |i: usize| f64::from(self.scales[if n == 1 { 0 } else { i }]);
                let values: Vec<f64> = self.codes.iter().enumerate().map(|(i, &c)| f64::from(c) * scale(i)).collect();
                if values.iter().all(|x| x.is_finite()) { Ok(values) } else { Err("its bias is not finite".into()) }
            }
            _ => Err("its bias has codes with one scale or a scale each, or else finite values".into()),
        }
    }

    /// Whether its codes are those of a bias with these scales.
    pub fn has_scales(&self, scales: &[f32]) -> bool {
        let own = |i: usize| self.scales[if self.scales.len() == 1 { 0 } else { i }];
        !self.codes.is_empty() && scales.iter().enumerate().all(|(i, s)| own(i).to_bits() == s.to_bits())
    }
}

/// The constant, perhaps behind a DequantizeLinear, that an Add gives to a MatMul.
fn added(graph: &Graph, product: &Node) -> Option<ValueId> {
    let u = graph.only_use(product.output(0)?)?;
    let add = graph.node(u.node);
    add.input(1usize.checked_sub(u.input)?).filter(|_| add.op.name() == "Add")
}

fn int32(codes: &Tensor) -> Option<Vec<i32>> {
    let codes = codes.to_i64s().ok().filter(|_| codes.dtype() == DType::I32)?;
    Some(codes.into_iter().map(|c| c as i32).collect())
}

impl Encodings {
    /// The biases of products with a constant weight, by the node's name.
    pub fn biases_of(graph: &Graph) -> BTreeMap<String, KeptBias> {
        let of = |(id, node): (NodeId, &Node)| {
            let name =
                node.name.strip_suffix("_quant").filter(|_| super::qlinear::float_name(node.op.name()).is_some());
            Some((name.unwrap_or(&node.name).to_owned(), KeptBias::of(graph, id)?))
        };
        graph.nodes().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_codes_from_values_and_refuses_both() {
        let codes = KeptBias { codes: vec![3, -4], scales: vec![0.5], values: Vec::new() };
        assert_eq!(codes.values(2), Ok(vec![1.5, -2.0]));
        assert!(codes.has_scales(&[0.5, 0.5]) && !codes.has_scales(&[0.5, 0.25]));
        let values = KeptBias { values: vec![1.0, f32::NAN], ..KeptBias::default() };
        assert!(values.values(2).is_err() && !values.has_scales(&[0.5]));
        assert!(codes.values(3).is_err_and(|e| e.contains("2 values for 3")));
        assert!(KeptBias { values: vec![1.0, 1.0], ..codes }.values(2).is_err());
        assert!(KeptBias { codes: vec![1, 2, 3], scales: vec![1.0, 2.0], values: vec![] }.values(3).is_err());
    }
}
