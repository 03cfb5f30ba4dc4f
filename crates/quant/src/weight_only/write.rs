//! The graph with weights by blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use narrowbit_ir::{AttrMap, Graph, Model, Node, Op, OpError, OpSource, Patch, ValueId};
use narrowbit_kernels::Exec;
use narrowbit_ops::Registry;
use narrowbit_tensor::{DType, Tensor};

use super::pack::{Blocks, Matrix};
use super::table::{NF4, NF4_TABLE};
use super::{Job, Key, is_transposed};
use crate::approach::{BlockFormat, BlockScales, BlockType, WeightOnlyOptions};
use crate::op_types::RECURRENT;
use crate::qdq::QdqError;

/// The domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Rewrites all jobs' nodes, one weight after the other; `rounded` has the weights that are quantized already.
pub(super) fn all(
    model: &mut Model,
    jobs: &[Job],
    rounded: BTreeMap<Key, Blocks>,
    exec: &Exec,
) -> Result<(), QdqError> {
    let opset = model.opset();
    let graph = &model.graph;
    let (patch, written) = (Patch::new(graph), BTreeMap::new());
    let mut writer = Writer { graph, opset, exec, patch, rounded, written, nf4: None };
    for job in jobs {
        let node = graph.node(job.node);
        match (node.op.name(), job.options.format) {
            ("Gather", _) => writer.table(job, node)?,
            (name, _) if RECURRENT.contains(&name) => writer.recurrent(job, node)?,
            (_, BlockFormat::Qdq) => writer.product(job, node)?,
            (_, BlockFormat::Matmulnbits) => writer.nbits(job, node)?,
        }
    }
    let patch = writer.patch;
    model.graph.apply(patch)?;
    if model.graph.nodes().any(|(_, n)| n.op.domain() == MICROSOFT) {
        model.opsets.entry(MICROSOFT.into()).or_insert(1);
    }
    Ok(())
}

struct Writer<'a> {
    graph: &'a Graph,
    opset: i64,
    exec: &'a Exec,
    patch: Patch,
    rounded: BTreeMap<Key, Blocks>,
    /// What stands for a constant, for all nodes that read it in the same way.
    written: BTreeMap<Key, Vec<Option<ValueId>>>,
    /// The table of NF4.
    nf4: Option<ValueId>,
}

fn make(domain: &str, name: &str, opset: i64, mut attrs: AttrMap) -> Result<Arc<dyn Op>, OpError> {
    let built = Registry.build(domain, name, opset, &mut attrs);
    built.unwrap_or_else(|| Err(OpError::Unsupported(format!("operator {name}"))))
}

/// The attributes of a DequantizeLinear with blocks along an axis. Its result has the scale's type unless it says another.
fn along(axis: i64, options: &WeightOnlyOptions) -> AttrMap {
    let attrs = AttrMap::new().with("axis", axis).with("block_size", options.block as i64);
    match options.scales() {
        BlockScales::E8m0 => attrs.with("output_dtype", i64::from(DType::F32.to_onnx())),
        _ => attrs,
    }
}

/// Quantizes a constant of two axes; columns beside each other where `by_column`.
pub(super) fn blocks(
    graph: &Graph,
    v: ValueId,
    by_column: bool,
    options: WeightOnlyOptions,
    exec: &Exec,
) -> Result<Option<Blocks>, QdqError> {
    let Some(w) = graph.constant(v) else { return Ok(None) };
    let &[rows, columns] = w.shape() else { return Ok(None) };
    let (n, k) = if by_column { (rows, columns) } else { (columns, rows) };
    let values = w.to_f32s()?;
    let blocks = Blocks::new(exec, Matrix { values: &values, n, k, by_column }, options);
    drop(values);
    w.release();
    Ok(Some(blocks))
}

/// What tells the quantized forms of constants apart.
pub(super) fn key(graph: &Graph, v: ValueId, by_column: bool, o: &WeightOnlyOptions) -> Option<Key> {
    Some((graph.const_id(v)?, by_column, format!("{o:?}")))
}

impl Writer<'_> {
    fn op(&self, name: &str, attrs: AttrMap) -> Result<Arc<dyn Op>, OpError> {
        make("", name, self.opset, attrs)
    }

    /// A node with one output of the same name.
    fn node(&mut self, name: &str, op: &str, attrs: AttrMap, inputs: &[Option<ValueId>]) -> Result<ValueId, OpError> {
        let op = self.op(op, attrs)?;
        Ok(self.patch.node(name, op, inputs))
    }

    /// Quantizes the constant that a node reads; columns beside each other where `by_column`.
    fn blocks(&mut self, v: ValueId, by_column: bool, options: WeightOnlyOptions) -> Result<Option<Blocks>, QdqError> {
        match key(self.graph, v, by_column, &options).and_then(|key| self.rounded.remove(&key)) {
            Some(blocks) => Ok(Some(blocks)),
            None => blocks(self.graph, v, by_column, options, self.exec),
        }
    }

    /// MatMul of a dequantized weight; a Gemm becomes one, because other runtimes look for MatMul.
    fn product(&mut self, job: &Job, node: &Node) -> Result<(), QdqError> {
        let (Some(w), Some(y)) = (node.input(1), node.output(0)) else { return Ok(()) };
        let by_column = is_transposed(node);
        let Some(key) = key(self.graph, w, by_column, &job.options) else { return Ok(()) };
        let floats = match self.written.get(&key).and_then(|v| v.first().copied()) {
            Some(floats) => floats,
            None => {
                let Some(blocks) = self.blocks(w, by_column, job.options)? else { return Ok(()) };
                let name = self.graph.value(w).name.clone();
                let floats = Some(self.dequantized(&name, &blocks)?);
                self.written.insert(key, vec![floats]);
                floats
            }
        };
        if node.op.name() == "MatMul" {
            self.patch.set_input(job.node, 1, floats);
            return Ok(());
        }
        let product =
            self.node(&format!("{}_MatMul", node.name), "MatMul", AttrMap::new(), &[node.input(0), floats])?;
        let out = match node.input(2) {
            Some(bias) => {
                self.node(&format!("{}_Add", node.name), "Add", AttrMap::new(), &[Some(product), Some(bias)])?
            }
            None => product,
        };
        self.patch.replace(y, out);
        Ok(())
    }

    /// The floats of a weight, `[k, n]`.
    fn dequantized(&mut self, name: &str, b: &Blocks) -> Result<ValueId, QdqError> {
        if b.options.codes == BlockType::Nf4 {
            return self.by_table(name, b);
        }
        let codes = self.patch.constant(&format!("{name}_quantized"), b.codes_by_row()?);
        let scale = self.patch.constant(&format!("{name}_scale"), b.scales(false)?);
        let zero = match b.zeros(false) {
            Some(zeros) => Some(self.patch.constant(&format!("{name}_zero_point"), zeros?)),
            None => None,
        };
        let attrs = along(0, &b.options);
        let inputs = [Some(codes), Some(scale), zero];
        let used = if zero.is_some() { 3 } else { 2 };
        Ok(self.node(&format!("{name}_DequantizeLinear"), "DequantizeLinear", attrs, &inputs[..used])?)
    }

    /// `table[codes] · scale`, block by block, without what fills up the last block.
    fn by_table(&mut self, name: &str, b: &Blocks) -> Result<ValueId, QdqError> {
        let zero = NF4_TABLE.encode(0.0);
        let codes = self.patch.constant(&format!("{name}_quantized"), b.codes_in_blocks(zero)?);
        let scales = b.scales(false)?.reshaped([b.blocks(), 1, b.n])?;
        let scale = self.patch.constant(&format!("{name}_scale"), scales);
        let patch = &mut self.patch;
        let table = *self.nf4.get_or_insert_with(|| patch.constant("nf4_table", Tensor::vector(NF4.to_vec())));
        let to = AttrMap::new().with("to", i64::from(DType::I32.to_onnx()));
        let places = self.node(&format!("{name}_places"), "Cast", to, &[Some(codes)])?;
        let units = self.node(&format!("{name}_units"), "Gather", AttrMap::new(), &[Some(table), Some(places)])?;
        let blocks = self.node(&format!("{name}_blocks"), "Mul", AttrMap::new(), &[Some(units), Some(scale)])?;
        let rows = b.blocks() * b.options.block;
        let shape = self.patch.constant(&format!("{name}_shape"), Tensor::vector(vec![rows as i64, b.n as i64]));
        let all = self.node(&format!("{name}_rows"), "Reshape", AttrMap::new(), &[Some(blocks), Some(shape)])?;
        if rows == b.k {
            return Ok(all);
        }
        let [start, end, axis] = [("start", 0), ("end", b.k as i64), ("axis", 0)]
            .map(|(what, v)| self.patch.constant(&format!("{name}_{what}"), Tensor::vector(vec![v])));
        let inputs = [Some(all), Some(start), Some(end), Some(axis)];
        Ok(self.node(&format!("{name}_Slice"), "Slice", AttrMap::new(), &inputs)?)
    }

    fn nbits(&mut self, job: &Job, node: &Node) -> Result<(), QdqError> {
        let (Some(w), Some(y)) = (node.input(1), node.output(0)) else { return Ok(()) };
        let by_column = is_transposed(node);
        let Some(key) = key(self.graph, w, by_column, &job.options) else { return Ok(()) };
        let Some([rows, columns]) =
            self.graph.constant(w).map(Tensor::shape).and_then(|s| <[usize; 2]>::try_from(s).ok())
        else {
            return Ok(());
        };
        let (n, k) = if by_column { (rows, columns) } else { (columns, rows) };
        if !self.written.contains_key(&key) {
            let Some(b) = self.blocks(w, by_column, job.options)? else { return Ok(()) };
            let name = self.graph.value(w).name.clone();
            let codes = self.patch.constant(&format!("{name}_quantized"), b.nbits_codes(self.exec)?);
            let scale = self.patch.constant(&format!("{name}_scale"), b.scales(true)?);
            let zero = match b.nbits_zeros() {
                Some(zeros) => Some(self.patch.constant(&format!("{name}_zero_point"), zeros?)),
                None => None,
            };
            self.written.insert(key.clone(), vec![Some(codes), Some(scale), zero]);
        }
        let attrs = AttrMap::new()
            .with("K", k as i64)
            .with("N", n as i64)
            .with("bits", job.options.codes.dtype().bits() as i64)
            .with("block_size", job.options.block as i64);
        // 0 is what an absent attribute says.
        let attrs = match job.options.accuracy_level() {
            0 => attrs,
            level => attrs.with("accuracy_level", level),
        };
        let op = make(MICROSOFT, "MatMulNBits", 1, attrs)?;
        let weights = self.written.get(&key).cloned().unwrap_or_default();
        let mut inputs: Vec<Option<ValueId>> = [node.input(0)].into_iter().chain(weights).collect();
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let product = self.patch.node(&format!("{}_MatMulNBits", node.name), op, &inputs);
        let out = match node.input(2) {
            Some(bias) => {
                self.node(&format!("{}_Add", node.name), "Add", AttrMap::new(), &[Some(product), Some(bias)])?
            }
            None => product,
        };
        self.patch.replace(y, out);
        Ok(())
    }

    /// A table whose rows are blocks along their own axis.
    fn table(&mut self, job: &Job, node: &Node) -> Result<(), QdqError> {
        let (Some(v), Some(y)) = (node.input(0), node.output(0)) else { return Ok(()) };
        let Some(b) = self.blocks(v, true, job.options)? else { return Ok(()) };
        let name = self.graph.value(v).name.clone();
        match (job.options.format, job.options.codes) {
            (BlockFormat::Matmulnbits, _) => {
                let out = self.gather_blocks(&name, node, &b)?;
                self.patch.replace(y, out);
            }
            (_, BlockType::Int8 | BlockType::Uint8 | BlockType::Mxint8) if b.options.scales() == BlockScales::F32 => {
                let out = self.gathered(&name, node, &b)?;
                self.patch.replace(y, out);
            }
            // Gather of narrower types is not in ONNX: other runtimes dequantize the table, and pick rows then.
            _ => {
                let floats = self.table_floats(&name, &b)?;
                self.patch.set_input(job.node, 0, Some(floats));
            }
        }
        Ok(())
    }

    /// Both weights of a recurrent operator, blocks along what is summed, behind a DequantizeLinear whatever the format: other
    /// forms are for products.
    fn recurrent(&mut self, job: &Job, node: &Node) -> Result<(), QdqError> {
        for input in [1, 2] {
            let Some(v) = node.input(input) else { continue };
            let Some(key) = key(self.graph, v, true, &job.options) else { continue };
            let floats = match self.written.get(&key).and_then(|v| v.first().copied().flatten()) {
                Some(floats) => floats,
                None => {
                    let Some(w) = self.graph.constant(v) else { continue };
                    let &[directions, rows, k] = w.shape() else { continue };
                    let values = w.to_f32s()?;
                    let matrix = Matrix { values: &values, n: directions * rows, k, by_column: true };
                    let blocks = Blocks::new(self.exec, matrix, job.options);
                    drop(values);
                    w.release();
                    let name = self.graph.value(v).name.clone();
                    let floats = self.table_floats(&name, &blocks)?;
                    let shape = [directions, rows, k].map(|d| d as i64);
                    let shape = self.patch.constant(&format!("{name}_shape"), Tensor::vector(shape.to_vec()));
                    let inputs = [Some(floats), Some(shape)];
                    let floats = self.node(&format!("{name}_Reshape"), "Reshape", AttrMap::new(), &inputs)?;
                    self.written.insert(key, vec![Some(floats)]);
                    floats
                }
            };
            self.patch.set_input(job.node, input, Some(floats));
        }
        Ok(())
    }

    fn gather_blocks(&mut self, name: &str, node: &Node, b: &Blocks) -> Result<ValueId, QdqError> {
        let bits = b.options.codes.dtype().bits();
        let codes = b.nbits_codes(self.exec)?;
        let row = codes.shape()[1] * codes.shape()[2];
        // Rows end with the last code, not with the last block.
        let used = (b.k * bits).div_ceil(8);
        let bytes: Vec<u8> = codes.bytes().chunks_exact(row.max(1)).flat_map(|r| r[..used].iter().copied()).collect();
        let codes = Tensor::from_bytes(DType::U8, [b.n, used], bytes)?;
        let codes = self.patch.constant(&format!("{name}_quantized"), codes);
        let scale = self.patch.constant(&format!("{name}_scale"), b.scales(true)?);
        let mut inputs = vec![Some(codes), node.input(1), Some(scale)];
        if let Some(zeros) = b.nbits_zeros() {
            inputs.push(Some(self.patch.constant(&format!("{name}_zero_point"), zeros?)));
        }
        let attrs = AttrMap::new()
            .with("gather_axis", 0i64)
            .with("quantize_axis", 1i64)
            .with("bits", bits as i64)
            .with("block_size", b.options.block as i64);
        let op = make(MICROSOFT, "GatherBlockQuantized", 1, attrs)?;
        Ok(self.patch.node(&format!("{}_GatherBlockQuantized", node.name), op, &inputs))
    }

    /// Codes, scales and zero points of the rows that are picked, dequantized then.
    fn gathered(&mut self, name: &str, node: &Node, b: &Blocks) -> Result<ValueId, QdqError> {
        let mut parts = vec![("quantized", b.codes_by_column()?), ("scale", b.scales(true)?)];
        if let Some(zeros) = b.zeros(true) {
            parts.push(("zero_point", zeros?));
        }
        let mut inputs = Vec::new();
        for (what, t) in parts {
            let c = self.patch.constant(&format!("{name}_{what}"), t);
            let picked =
                self.node(&format!("{}_{what}", node.name), "Gather", AttrMap::new(), &[Some(c), node.input(1)])?;
            inputs.push(Some(picked));
        }
        let attrs = along(-1, &b.options);
        Ok(self.node(&format!("{}_DequantizeLinear", node.name), "DequantizeLinear", attrs, &inputs)?)
    }

    /// The whole table as floats.
    fn table_floats(&mut self, name: &str, b: &Blocks) -> Result<ValueId, QdqError> {
        if b.options.codes == BlockType::Nf4 {
            let floats = self.by_table(name, b)?;
            let attrs = AttrMap::new().with("perm", narrowbit_ir::Attr::Ints(vec![1, 0]));
            return Ok(self.node(&format!("{name}_Transpose"), "Transpose", attrs, &[Some(floats)])?);
        }
        let codes = self.patch.constant(&format!("{name}_quantized"), b.codes_by_column()?);
        let scale = self.patch.constant(&format!("{name}_scale"), b.scales(true)?);
        let mut inputs = vec![Some(codes), Some(scale)];
        if let Some(zeros) = b.zeros(true) {
            inputs.push(Some(self.patch.constant(&format!("{name}_zero_point"), zeros?)));
        }
        let attrs = along(1, &b.options);
        Ok(self.node(&format!("{name}_DequantizeLinear"), "DequantizeLinear", attrs, &inputs)?)
    }
}
