//! Turns a plan into explicit QuantizeLinear and DequantizeLinear nodes.
//!
//! The forms are those that ONNX Runtime's integer fusions look for: every scale has a zero point of its
//! own shape, a quantized value is read through one DequantizeLinear, weights are integer constants behind
//! a DequantizeLinear, biases are int32 with the scale of the product.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, ConstId, Graph, NodeId, Op, OpError, Patch, PatchError, ValueId};
use narrowbit_kernels::Exec;
use narrowbit_ops::Registry;
use narrowbit_ops::functions::LayerMad;
use narrowbit_tensor::{DType, Tensor, TensorError, minifloat};

use crate::parallel::in_parallel;
use crate::plan::functions::NormParams;
use crate::plan::{ActivationParams, Kind, QuantPlan, WeightError, WeightParams};
use crate::scheme::Formula;

/// Why the plan could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QdqError {
    /// An operator could not be made.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The edit was refused.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A weight could not be quantized.
    #[error(transparent)]
    Weight(#[from] WeightError),
}

/// Puts the plan's QuantizeLinear and DequantizeLinear nodes into the graph.
///
/// A value that an integer node makes is read through its DequantizeLinear by everyone, and that
/// node's output takes over its name; a value that a float node makes only by integer nodes: floats keep
/// reading the exact value.
///
/// # Errors
/// When the plan was made for another state of the graph.
pub fn insert(graph: &mut Graph, plan: &QuantPlan, opset: i64, exec: &Exec) -> Result<(), QdqError> {
    let codes = codes(graph, plan, exec)?;
    let mut writer = Writer { graph, plan, opset, codes, patch: Patch::new(graph), shared: BTreeMap::new() };
    for (&v, params) in &plan.activations {
        writer.activation(v, params)?;
    }
    for (&(node, input), params) in &plan.weights {
        match plan.layout.kinds.get(&node) {
            Some(Kind::Embedding) => writer.embedding(node, params)?,
            _ => writer.weight(node, input, params)?,
        }
    }
    for &(node, input) in plan.biases.keys() {
        writer.bias(node, input)?;
    }
    for (norm, params) in &plan.norms {
        writer.norm(norm, params)?;
    }
    for (&(node, input), bias) in &plan.float_biases {
        let name = format!("{}_bias_corrected", writer.graph.node(node).name);
        let bias = writer.patch.constant(&name, bias.clone());
        writer.patch.set_input(node, input, Some(bias));
    }
    let patch = writer.patch;
    graph.apply(patch)?;
    Ok(())
}

struct Writer<'a> {
    graph: &'a Graph,
    plan: &'a QuantPlan,
    opset: i64,
    /// The weights as integers.
    codes: BTreeMap<SharedKey, Tensor>,
    patch: Patch,
    /// Nodes that read the same constant with the same parameters share its quantized form.
    shared: BTreeMap<SharedKey, ValueId>,
}

/// What tells the quantized forms of constants apart: a constant, its new element type, the axis of its scales, and the bits of scales and zero points.
pub(crate) type SharedKey = (ConstId, &'static str, Option<usize>, Vec<(u32, i32)>);

pub(crate) fn key(id: ConstId, params: &WeightParams) -> SharedKey {
    let bits = params.points.iter().map(|p| (p.scale.to_bits(), p.zero_point)).collect();
    (id, params.scheme.format.name(), params.axis, bits)
}

/// The integers of all weights of the plan.
fn codes(graph: &Graph, plan: &QuantPlan, exec: &Exec) -> Result<BTreeMap<SharedKey, Tensor>, WeightError> {
    let mut jobs: BTreeMap<SharedKey, (&Tensor, &WeightParams)> = BTreeMap::new();
    for (&(node, input), params) in &plan.weights {
        let Some(v) = graph.node(node).input(input) else { continue };
        if let (Some(w), Some(id)) = (graph.constant(v), graph.const_id(v)) {
            jobs.insert(key(id, params), (w, params));
        }
    }
    let (keys, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
    let made = in_parallel(exec, &jobs, |(w, params)| {
        let codes = params.tensor(exec, w);
        w.release();
        codes
    });
    keys.into_iter().zip(made).map(|(key, codes)| Ok((key, codes?))).collect()
}

impl Writer<'_> {
    fn op(&self, name: &str, axis: Option<usize>) -> Result<Arc<dyn Op>, OpError> {
        // Without an axis in the scale's shape the attribute has no meaning.
        Registry::make(name, self.opset, AttrMap::new().with_opt("axis", axis.map(|a| a as i64)))
    }

    fn activation(&mut self, v: ValueId, params: &ActivationParams) -> Result<(), QdqError> {
        let name = self.graph.value(v).name.clone();
        let (scale, zero, axis) = self.plan.format(v, params)?;
        let scale = self.patch.constant(&format!("{name}_scale"), scale);
        let zero = self.patch.constant(&format!("{name}_zero_point"), zero);
        let q = self.op("QuantizeLinear", axis)?;
        let dq = self.op("DequantizeLinear", axis)?;
        if let Some(tensor) = self.graph.constant(v) {
            // A constant operand is stored as integers right away.
            let codes = quantize_constant(tensor, params)?;
            let codes = self.patch.constant(&format!("{name}_quantized"), codes);
            let out = self.patch.node(&format!("{name}_DequantizeLinear"), dq, &[Some(codes), Some(scale), Some(zero)]);
            self.redirect_integer_readers(v, out);
            return Ok(());
        }
        let x = self.clipped(v, &name, params)?;
        let q = self.patch.node_outputs(
            &format!("{name}_QuantizeLinear"),
            q,
            &[Some(x), Some(scale), Some(zero)],
            &[Some(&format!("{name}_quantized"))],
        );
        let out = self.patch.node_outputs(
            &format!("{name}_DequantizeLinear"),
            dq,
            &[q[0], Some(scale), Some(zero)],
            &[Some(&format!("{name}_dequantized"))],
        );
        let Some(out) = out[0] else { return Ok(()) };
        let made_by_integers = self.graph.producer(v).is_some_and(|(n, _)| self.makes_integers(n));
        if made_by_integers {
            self.patch.replace(v, out);
            self.patch.rename(v, &format!("{name}_float"));
        } else {
            self.redirect_integer_readers(v, out);
        }
        Ok(())
    }

    /// The value within the codes in use, where QuantizeLinear would saturate at those of the type.
    fn clipped(&mut self, v: ValueId, name: &str, params: &ActivationParams) -> Result<ValueId, QdqError> {
        if params.scheme.format.is_float() && behind_clip(self.graph, v) {
            // ONNX Runtime 1.31.1 refuses to optimize a model with fp8 codes of what a Relu or Clip makes
            // (clip_quantizelinear.cc); their magnitude is the same number.
            let abs = self.op("Abs", None)?;
            return Ok(self.patch.node(&format!("{name}_Abs"), abs, &[Some(v)]));
        }
        if let Some(scales) = self.plan.channel_scales.get(&v).filter(|_| params.scheme.formula == Formula::Quantizeml)
        {
            return self.clipped_channels(v, name, params, scales);
        }
        if !params.scheme.needs_clip() {
            return Ok(v);
        }
        let (qmin, qmax) = params.scheme.code_range();
        let value = |code: i32| (f64::from(code - params.point.zero_point) * f64::from(params.point.scale)) as f32;
        let lo = self.patch.constant(&format!("{name}_least"), Tensor::scalar(value(qmin)));
        let hi = self.patch.constant(&format!("{name}_greatest"), Tensor::scalar(value(qmax)));
        let clip = self.op("Clip", None)?;
        Ok(self.patch.node(&format!("{name}_Clip"), clip, &[Some(v), Some(lo), Some(hi)]))
    }

    /// The value within the codes of each channel, along axis 1 of four.
    ///
    /// QuantizeLinear would saturate there by itself, mostly. But ONNX Runtime 1.31.1 fuses it with what is before it
    /// whatever the scales are, and fails when it runs; a Min in between keeps them apart.
    fn clipped_channels(
        &mut self,
        v: ValueId,
        name: &str,
        params: &ActivationParams,
        scales: &[f32],
    ) -> Result<ValueId, QdqError> {
        let (qmin, qmax) = params.scheme.code_range();
        let bound = |code: i32| {
            let of = |&s: &f32| (f64::from(code - params.point.zero_point) * f64::from(s)) as f32;
            Tensor::new([1, scales.len(), 1, 1], scales.iter().map(of).collect::<Vec<f32>>())
        };
        let mut limit = |graph: ValueId, op: &str, suffix: &str, code: i32| -> Result<ValueId, QdqError> {
            let bound = self.patch.constant(&format!("{name}_{suffix}"), bound(code)?);
            let op_made = self.op(op, None)?;
            Ok(self.patch.node(&format!("{name}_{op}"), op_made, &[Some(graph), Some(bound)]))
        };
        let below = limit(v, "Min", "greatest", qmax)?;
        if qmin > params.scheme.format.type_range().0 {
            return limit(below, "Max", "least", qmin);
        }
        Ok(below)
    }

    fn makes_integers(&self, n: NodeId) -> bool {
        self.plan.layout.is_integer(n)
    }

    fn redirect_integer_readers(&mut self, v: ValueId, out: ValueId) {
        for u in self.graph.uses(v) {
            if self.plan.layout.is_integer(u.node) {
                self.patch.set_input(u.node, u.input, Some(out));
            }
        }
    }

    fn weight(&mut self, node: NodeId, input: usize, params: &WeightParams) -> Result<(), QdqError> {
        let Some(v) = self.graph.node(node).input(input) else { return Ok(()) };
        let Some(id) = self.graph.const_id(v) else { return Ok(()) };
        let key = key(id, params);
        let out = match self.shared.get(&key) {
            Some(&out) => out,
            None => {
                let Some(codes) = self.codes.get(&key).cloned() else { return Ok(()) };
                let out = self.dequantized(&self.graph.value(v).name.clone(), codes, params)?;
                self.shared.insert(key, out);
                out
            }
        };
        self.patch.set_input(node, input, Some(out));
        Ok(())
    }

    fn dequantized(&mut self, name: &str, codes: Tensor, params: &WeightParams) -> Result<ValueId, QdqError> {
        let codes = self.patch.constant(&format!("{name}_quantized"), codes);
        let (scale, zero) = params.tensors();
        let scale = self.patch.constant(&format!("{name}_scale"), scale);
        let zero = self.patch.constant(&format!("{name}_zero_point"), zero);
        let dq = self.op("DequantizeLinear", params.axis)?;
        Ok(self.patch.node(&format!("{name}_DequantizeLinear"), dq, &[Some(codes), Some(scale), Some(zero)]))
    }

    fn bias(&mut self, node: NodeId, input: usize) -> Result<(), QdqError> {
        let params = &self.plan.biases[&(node, input)];
        let Some(v) = self.graph.node(node).input(input) else { return Ok(()) };
        let Some(b) = self.graph.constant(v) else { return Ok(()) };
        let name = format!("{}_bias", self.graph.node(node).name);
        // A row [1, n] of Gemm is the vector [n].
        let shape = [b.len()];
        let codes = self.patch.constant(&format!("{name}_quantized"), Tensor::new(shape, params.quantize(b))?);
        let (scales, zeros) = match (params.per_channel, params.scales.first()) {
            (true, _) | (false, None) => {
                (Tensor::new(shape, params.scales.clone())?, Tensor::zeros(DType::I32, shape)?)
            }
            (false, Some(&s)) => (Tensor::scalar(s), Tensor::scalar(0i32)),
        };
        let scale = self.patch.constant(&format!("{name}_scale"), scales);
        let zero = self.patch.constant(&format!("{name}_zero_point"), zeros);
        let dq = self.op("DequantizeLinear", params.per_channel.then_some(0))?;
        let out = self.patch.node(&format!("{name}_DequantizeLinear"), dq, &[Some(codes), Some(scale), Some(zero)]);
        self.patch.set_input(node, input, Some(out));
        Ok(())
    }

    /// A normalization by the mean magnitude: γ becomes int8 codes and β int32 ones, the sums are one step at the least, and two
    /// Casts cut the quotient off, as a division of integers does.
    fn norm(&mut self, f: &LayerMad, p: &NormParams) -> Result<(), QdqError> {
        let name = self.graph.node(f.div).name.clone();
        let (gamma, beta) = (Tensor::vector(p.gamma.clone()), Tensor::vector(p.beta.clone()));
        let gamma = self.integers(&format!("{name}_gamma"), gamma, Tensor::scalar(0i8), p.dividend)?;
        let beta = self.integers(&format!("{name}_beta"), beta, Tensor::scalar(0i32), p.unit * p.step)?;
        self.patch.set_input(f.div, 0, Some(gamma));
        self.patch.set_input(f.add.0, f.add.1, Some(beta));
        let least = self.patch.constant(&format!("{name}_step"), Tensor::scalar(p.step));
        self.patch.set_input(f.clip, 1, Some(least));
        let (Some(quotient), Some(product)) = (self.graph.node(f.div).output(0), self.graph.node(f.mul.0).output(0))
        else {
            return Ok(());
        };
        let cast = |to: DType| Registry::make("Cast", self.opset, AttrMap::new().with("to", to as i64));
        let (whole, float) = (cast(DType::I32)?, cast(DType::F32)?);
        let whole = self.patch.node(&format!("{name}_Whole"), whole, &[Some(quotient)]);
        let float = self.patch.node(&format!("{name}_Quotient"), float, &[Some(whole)]);
        self.patch.set_input(f.mul.0, f.mul.1, Some(float));
        let unit = self.patch.constant(&format!("{name}_unit"), Tensor::scalar(p.unit));
        let mul = self.op("Mul", None)?;
        let scaled = self.patch.node(&format!("{name}_Scaled"), mul, &[Some(product), Some(unit)]);
        self.patch.set_input(f.add.0, 1 - f.add.1, Some(scaled));
        Ok(())
    }

    /// Constant integers of one scale behind a DequantizeLinear.
    fn integers(&mut self, name: &str, codes: Tensor, zero: Tensor, scale: f32) -> Result<ValueId, QdqError> {
        let codes = self.patch.constant(&format!("{name}_quantized"), codes);
        let scale = self.patch.constant(&format!("{name}_scale"), Tensor::scalar(scale));
        let zero = self.patch.constant(&format!("{name}_zero_point"), zero);
        let dq = self.op("DequantizeLinear", None)?;
        Ok(self.patch.node(&format!("{name}_DequantizeLinear"), dq, &[Some(codes), Some(scale), Some(zero)]))
    }

    /// The table becomes integers; the rows that Gather picks are dequantized.
    fn embedding(&mut self, node: NodeId, params: &WeightParams) -> Result<(), QdqError> {
        let gather = self.graph.node(node);
        let (Some(v), Some(out)) = (gather.input(0), gather.output(0)) else { return Ok(()) };
        let Some(codes) = self.graph.const_id(v).and_then(|id| self.codes.get(&key(id, params)).cloned()) else {
            return Ok(());
        };
        let name = self.graph.value(v).name.clone();
        let codes = self.patch.constant(&format!("{name}_quantized"), codes);
        let (scale, zero) = params.tensors();
        let scale = self.patch.constant(&format!("{name}_scale"), scale);
        let zero = self.patch.constant(&format!("{name}_zero_point"), zero);
        self.patch.set_input(node, 0, Some(codes));
        let dq = self.op("DequantizeLinear", None)?;
        let rows = self.patch.node(&format!("{name}_DequantizeLinear"), dq, &[Some(out), Some(scale), Some(zero)]);
        self.patch.replace(out, rows);
        let out_name = self.graph.value(out).name.clone();
        self.patch.rename(out, &format!("{out_name}_quantized"));
        Ok(())
    }
}

/// Whether a value is what a Relu, or a Clip to what is not negative, makes.
fn behind_clip(graph: &Graph, v: ValueId) -> bool {
    let Some((id, _)) = graph.producer(v) else { return false };
    let least = || graph.const_input(id, 1).and_then(|t| t.to_f32s().ok()?.first().copied());
    match graph.node(id).op.name() {
        "Relu" => true,
        "Clip" => least().is_some_and(|lo| lo >= 0.0),
        _ => false,
    }
}

/// The codes of a constant activation.
fn quantize_constant(t: &Tensor, params: &ActivationParams) -> Result<Tensor, TensorError> {
    let (lo, hi) = params.scheme.code_range();
    let (dtype, scale) = (params.scheme.format.dtype(), params.point.scale);
    if params.scheme.format.is_float() {
        let codes: Vec<u8> = t.to_f32s()?.iter().map(|&x| minifloat::encode(dtype, x / scale, true)).collect();
        return Tensor::from_bytes(dtype, t.shape(), codes);
    }
    let code = |&x: &f32| {
        let q = f64::from((x / scale).round_ties_even()) + f64::from(params.point.zero_point);
        q.clamp(f64::from(lo), f64::from(hi)) as i64
    };
    let codes: Vec<i64> = t.to_f32s()?.iter().map(code).collect();
    Tensor::from_i64s(dtype, t.shape(), &codes)
}
