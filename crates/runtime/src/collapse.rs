//! Groups of elementwise nodes that depend on one tensor of 8-bit codes and nothing else.
//!
//! Whatever such nodes compute, on integers or between DequantizeLinear and QuantizeLinear, in a row or in branches that
//! join again (`x · (erf(x / √2) + 1) · ½`), each element of a result is a function of one code: a table of 256 entries.
//! The table is made by running each operator's own `eval` on all codes, so its results are those of the operators.

use std::collections::BTreeMap;

use narrowbit_ir::infer::Facts;
use narrowbit_ir::{Datum, EvalCx, Graph, Node, ValueId};
use narrowbit_tensor::{DType, Tensor};

use crate::lower;

/// Codes that are a function of other codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The codes that it depends on, of the same shape.
    pub source: ValueId,
    /// The bits of the result by the bits of the source.
    pub table: [u8; 256],
}

/// The values of 8 bits that are functions of others, by value. `constant` gives the content of values that do not
/// depend on the model's inputs.
pub fn find(graph: &Graph, facts: &Facts, constant: &dyn Fn(ValueId) -> Option<Tensor>) -> BTreeMap<ValueId, Lookup> {
    let mut finder = Finder { facts, constant, functions: BTreeMap::new() };
    for &id in graph.order() {
        let node = graph.node(id);
        if let Some(y) = node.output(0)
            && let Some(function) = finder.function(node, y)
        {
            finder.functions.insert(y, function);
        }
    }
    finder.functions.into_iter().filter_map(|(y, f)| Some((y, f.lookup()?))).collect()
}

/// What a value is for each of the 256 codes of its source, by their bits.
#[derive(Clone)]
struct Function {
    source: ValueId,
    values: Tensor,
}

impl Function {
    fn lookup(self) -> Option<Lookup> {
        let codes = is_code(self.values.dtype()).then(|| self.values.bytes().to_vec())?;
        Some(Lookup { source: self.source, table: codes.try_into().ok()? })
    }
}

fn is_code(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}

/// Whether each element of the operator's result depends on the same element of its operands only.
fn is_elementwise(node: &Node) -> bool {
    let name = node.op.name();
    let quantized = [
        "DequantizeLinear",
        "QuantizeLinear",
        "QLinearAdd",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearLeakyRelu",
        "Identity",
    ];
    node.outputs.len() == 1 && (quantized.contains(&name) || lower::is_function(name))
}

struct Finder<'a> {
    facts: &'a Facts,
    constant: &'a dyn Fn(ValueId) -> Option<Tensor>,
    functions: BTreeMap<ValueId, Function>,
}

impl Finder<'_> {
    /// What a node makes of each code, where its only operand that is not a single constant is a function of codes.
    fn function(&self, node: &Node, y: ValueId) -> Option<Function> {
        // A constant result is folded, and needs no table.
        if !is_elementwise(node) || self.facts.get(y).value.is_some() {
            return None;
        }
        let mut source = None;
        let mut operands = Vec::with_capacity(node.inputs.len());
        for v in &node.inputs {
            operands.push(match v {
                Some(v) => Some(Datum::Tensor(self.operand(*v, &mut source)?)),
                None => None,
            });
        }
        let source = source?;
        if self.extents(source)? != self.extents(y)? {
            return None;
        }
        let refs: Vec<Option<&Datum>> = operands.iter().map(Option::as_ref).collect();
        // What an operator refuses here it refuses as a step too, with an error that names the node.
        let values = node.op.eval(&EvalCx::new(&refs, 1)).ok()?.into_iter().next()?;
        (values.shape() == [256]).then_some(Function { source, values })
    }

    /// The values of an operand for all codes, or its single element.
    fn operand(&self, v: ValueId, source: &mut Option<ValueId>) -> Option<Tensor> {
        if let Some(single) = self.single(v) {
            return Some(single);
        }
        let function = match self.functions.get(&v) {
            Some(f) => f.clone(),
            None => codes(v, self.facts.dtype(v)?)?,
        };
        let same = *source.get_or_insert(function.source) == function.source;
        same.then_some(function.values)
    }

    /// A constant of one element as a scalar: shapes of one element do not matter where a result keeps its source's.
    fn single(&self, v: ValueId) -> Option<Tensor> {
        let one = self.extents(v)?.iter().all(|&d| d == 1);
        one.then(|| (self.constant)(v))??.reshaped([]).ok()
    }

    fn extents(&self, v: ValueId) -> Option<Vec<usize>> {
        self.facts.shape(v)?.iter().map(|d| d.as_usize()).collect()
    }
}

/// All codes of a type in the order of their bits, as a function of themselves.
fn codes(v: ValueId, dtype: DType) -> Option<Function> {
    let bits: Vec<u8> = (0..=255).collect();
    let values = is_code(dtype).then(|| Tensor::from_bytes(dtype, [256], bits))?.ok()?;
    Some(Function { source: v, values })
}
