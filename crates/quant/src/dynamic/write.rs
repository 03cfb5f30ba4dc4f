//! Dynamic products in standard operators.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Graph, Model, Node, Op, OpError, Patch, ValueId};
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor, TensorError};

use super::Job;
use super::attention::Attention;
use super::weights::{Key, Weight, key};
use crate::approach::Granularity;
use crate::qdq::QdqError;

/// The least scale of a row: that of a row of zeros.
const LEAST_SCALE: f32 = f32::MIN_POSITIVE;

/// Rewrites the products of a graph.
pub(super) fn products(
    model: &mut Model,
    jobs: &[Job],
    weights: &BTreeMap<Key, Weight>,
    attentions: &[Attention],
) -> Result<(), QdqError> {
    let opset = model.opset();
    let graph = &model.graph;
    let mut writer = Writer {
        graph,
        opset,
        patch: Patch::new(graph),
        codes: BTreeMap::new(),
        turned: BTreeMap::new(),
        constants: BTreeMap::new(),
        written: BTreeMap::new(),
    };
    for job in jobs {
        let found = key(graph, job).and_then(|key| Some((key, weights.get(&key)?)));
        let Some((key, weight)) = found else { continue };
        writer.product(job, &key, weight)?;
    }
    for attention in attentions {
        writer.attention(attention)?;
    }
    let patch = writer.patch;
    model.graph.apply(patch)?;
    Ok(())
}

/// An activation as codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes {
    pub codes: ValueId,
    pub scale: ValueId,
    /// u8, one for all; for rows: i32, one per row.
    pub zero: ValueId,
}

/// The constants of a weight.
#[derive(Debug, Clone, Copy)]
struct Constants {
    codes: ValueId,
    scale: ValueId,
    zero: ValueId,
    /// Whether any zero point is not 0.
    zeros: bool,
    /// The sums of the columns.
    sums: Option<ValueId>,
}

pub(super) struct Writer<'a> {
    pub graph: &'a Graph,
    pub opset: i64,
    pub patch: Patch,
    /// Products that read one value share its codes.
    codes: BTreeMap<(ValueId, Granularity, usize), Codes>,
    /// Codes of what a Transpose makes.
    pub turned: BTreeMap<ValueId, Codes>,
    constants: BTreeMap<&'static str, ValueId>,
    written: BTreeMap<(Key, Granularity), Constants>,
}

impl Writer<'_> {
    pub(super) fn op(&self, name: &str, attrs: AttrMap) -> Result<Arc<dyn Op>, OpError> {
        Registry::make(name, self.opset, attrs)
    }

    /// A node with one output of the same name.
    pub(super) fn node(&mut self, name: String, op: &str, inputs: &[Option<ValueId>]) -> Result<ValueId, OpError> {
        let op = self.op(op, AttrMap::new())?;
        Ok(self.patch.node(&name, op, inputs))
    }

    pub(super) fn cast(&mut self, name: String, x: ValueId, to: DType) -> Result<ValueId, OpError> {
        let op = self.op("Cast", AttrMap::new().with("to", i64::from(to.to_onnx())))?;
        Ok(self.patch.node(&name, op, &[Some(x)]))
    }

    /// A constant that all rows share.
    pub(super) fn shared(&mut self, name: &'static str, value: Tensor) -> ValueId {
        let patch = &mut self.patch;
        *self.constants.entry(name).or_insert_with(|| patch.constant(name, value))
    }

    fn product(&mut self, job: &Job, key: &Key, weight: &Weight) -> Result<(), QdqError> {
        let node = self.graph.node(job.node);
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Ok(()) };
        let w = self.weight(job, key, weight)?;
        let k = weight.codes.shape().first().copied().unwrap_or(0);
        let x = match job.granularity {
            Granularity::Tensor => self.whole(x)?,
            Granularity::Token => self.rows(x, k)?,
        };
        let sum = match (job.granularity, w.sums) {
            (Granularity::Token, Some(sums)) => self.corrected(node, x, w, sums)?,
            _ => self.scaled(job, node, x, w)?,
        };
        let out = match node.input(2) {
            Some(bias) => self.biased(job, node, sum, bias)?,
            None => sum,
        };
        self.patch.replace(y, out);
        Ok(())
    }

    /// One scale and zero point for the whole tensor.
    pub(super) fn whole(&mut self, x: ValueId) -> Result<Codes, OpError> {
        let key = (x, Granularity::Tensor, 0);
        if let Some(&codes) = self.codes.get(&key) {
            return Ok(codes);
        }
        let name = self.graph.value(x).name.clone();
        let op = self.op("DynamicQuantizeLinear", AttrMap::new())?;
        let outs = ["codes", "scale", "zero_point"].map(|s| format!("{name}_{s}"));
        let outs = self.patch.node_outputs(
            &format!("{name}_DynamicQuantizeLinear"),
            op,
            &[Some(x)],
            &outs.each_ref().map(|s| Some(s.as_str())),
        );
        let made = |i: usize| outs.get(i).copied().flatten().ok_or(OpError::MissingInput(i));
        let codes = Codes { codes: made(0)?, scale: made(1)?, zero: made(2)? };
        self.codes.insert(key, codes);
        Ok(codes)
    }

    /// A scale and zero point for each row of `k` elements.
    fn rows(&mut self, x: ValueId, k: usize) -> Result<Codes, OpError> {
        let key = (x, Granularity::Token, k);
        if let Some(&codes) = self.codes.get(&key) {
            return Ok(codes);
        }
        let base = self.graph.value(x).name.clone();
        let name = |what: &str| format!("{base}_token_{what}");
        let axes = self.shared("token_axes", Tensor::vector(vec![-1i64]));
        let zero = self.shared("token_zero", Tensor::scalar(0f32));
        let steps = self.shared("token_steps", Tensor::scalar(255f32));
        let least = self.shared("token_least_scale", Tensor::scalar(LEAST_SCALE));
        let low = self.node(name("min"), "ReduceMin", &[Some(x), Some(axes)])?;
        let high = self.node(name("max"), "ReduceMax", &[Some(x), Some(axes)])?;
        // The range holds 0, so that 0 has a code of its own.
        let low = self.node(name("low"), "Clip", &[Some(low), None, Some(zero)])?;
        let high = self.node(name("high"), "Clip", &[Some(high), Some(zero)])?;
        let range = self.node(name("range"), "Sub", &[Some(high), Some(low)])?;
        let step = self.node(name("step"), "Div", &[Some(range), Some(steps)])?;
        let scale = self.node(name("scale"), "Clip", &[Some(step), Some(least)])?;
        let ratio = self.node(name("ratio"), "Div", &[Some(low), Some(scale)])?;
        let whole = self.node(name("whole"), "Round", &[Some(ratio)])?;
        let positive = self.node(name("positive"), "Abs", &[Some(whole)])?;
        let zero = self.cast(name("zero_point"), positive, DType::U8)?;
        let attrs = AttrMap::new().with("axis", -1i64).with("block_size", k as i64);
        let quantize = self.op("QuantizeLinear", attrs)?;
        let codes = self.patch.node(&name("codes"), quantize, &[Some(x), Some(scale), Some(zero)]);
        let zero = self.cast(name("zero_point_int32"), zero, DType::I32)?;
        let codes = Codes { codes, scale, zero };
        self.codes.insert(key, codes);
        Ok(codes)
    }

    fn weight(&mut self, job: &Job, key: &Key, weight: &Weight) -> Result<Constants, QdqError> {
        let at = (*key, job.granularity);
        if let Some(&found) = self.written.get(&at) {
            return Ok(found);
        }
        let name = match self.graph.node(job.node).input(1) {
            Some(w) => self.graph.value(w).name.clone(),
            None => self.graph.node(job.node).name.clone(),
        };
        let (scale, zero) = weight.params.tensors();
        let scale = if job.conv && scale.rank() == 1 { spread(&scale, weight.codes.rank() - 1)? } else { scale };
        let rows = job.granularity == Granularity::Token;
        let sums = if rows { Some(Tensor::vector(weight.sums.clone())) } else { None };
        // ConvInteger of other runtimes takes one zero point; here all are 0.
        let zero = if job.conv && zero.rank() == 1 { Tensor::zeros(zero.dtype(), [])? } else { zero };
        let made = Constants {
            codes: self.patch.constant(&format!("{name}_quantized"), weight.codes.clone()),
            scale: self.patch.constant(&format!("{name}_scale"), scale),
            zero: self.patch.constant(&format!("{name}_zero_point"), zero),
            zeros: weight.params.points.iter().any(|p| p.zero_point != 0),
            sums: sums.map(|s| self.patch.constant(&format!("{name}_column_sums"), s)),
        };
        self.written.insert(at, made);
        Ok(made)
    }

    /// `Cast(MatMulInteger(x, w)) · (scale_x · scale_w)`, the form of ONNX Runtime's `quantize_dynamic`.
    fn scaled(&mut self, job: &Job, node: &Node, x: Codes, w: Constants) -> Result<ValueId, OpError> {
        let name = node.name.as_str();
        let inputs = [x.codes, w.codes, x.zero, w.zero].map(Some);
        let (op, attrs) = if job.conv { ("ConvInteger", node.op.attrs()) } else { ("MatMulInteger", AttrMap::new()) };
        let op = self.op(op, attrs)?;
        let sum = self.patch.node(&format!("{name}_quant"), op, &inputs);
        let sum = self.cast(format!("{name}_float"), sum, DType::F32)?;
        let scale = self.node(format!("{name}_scales"), "Mul", &[Some(x.scale), Some(w.scale)])?;
        self.node(format!("{name}_scaled"), "Mul", &[Some(sum), Some(scale)])
    }

    /// `Cast(MatMulInteger(x, w) − zero_x · sums) · (scale_x · scale_w)`, the zero point and scale of x by row. This order
    /// is that of DynamicQuantizeLinear's products, so that one kernel gives the bits of both.
    fn corrected(&mut self, node: &Node, x: Codes, w: Constants, sums: ValueId) -> Result<ValueId, OpError> {
        let name = node.name.as_str();
        let inputs = [Some(x.codes), Some(w.codes), None, Some(w.zero)];
        let used = if w.zeros { 4 } else { 2 };
        let sum = self.node(format!("{name}_quant"), "MatMulInteger", &inputs[..used])?;
        let shift = self.node(format!("{name}_shift"), "Mul", &[Some(x.zero), Some(sums)])?;
        let sum = self.node(format!("{name}_shifted"), "Sub", &[Some(sum), Some(shift)])?;
        let sum = self.cast(format!("{name}_float"), sum, DType::F32)?;
        let scale = self.node(format!("{name}_scales"), "Mul", &[Some(x.scale), Some(w.scale)])?;
        self.node(format!("{name}_scaled"), "Mul", &[Some(sum), Some(scale)])
    }

    fn biased(&mut self, job: &Job, node: &Node, sum: ValueId, bias: ValueId) -> Result<ValueId, QdqError> {
        let bias = match self.graph.constant(bias) {
            Some(b) if job.conv => {
                let rank = self.graph.const_input(job.node, 1).map_or(4, Tensor::rank);
                let b = spread(b, rank - 1)?;
                self.patch.constant(&format!("{}_bias", node.name), b)
            }
            _ => bias,
        };
        Ok(self.node(format!("{}_biased", node.name), "Add", &[Some(sum), Some(bias)])?)
    }
}

/// A vector along the first of `rank` axes.
fn spread(t: &Tensor, rank: usize) -> Result<Tensor, TensorError> {
    let mut shape = vec![1; rank];
    shape[0] = t.len();
    t.reshaped(shape)
}
