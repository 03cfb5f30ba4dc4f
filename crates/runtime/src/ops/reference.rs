//! Any operator, through its reference implementation on copied tensors.

use std::sync::Arc;

use narrowbit_ir::{Datum, EvalCx, Op, OpError};
use narrowbit_tensor::Tensor;

use crate::error::StepError;
use crate::kernel::{BuildCx, Built, Kernel, RunCx};

struct Reference {
    op: Arc<dyn Op>,
    /// By input of the node: its content, or its place among the operands.
    inputs: Vec<Operand>,
    /// By output of the node: its place among the results.
    outputs: Vec<Option<usize>>,
}

enum Operand {
    Absent,
    Constant(Datum),
    Read(usize),
}

/// The kernel of any node.
pub fn build(cx: &BuildCx) -> Built {
    let (mut ins, mut outs) = (Vec::new(), Vec::new());
    let mut inputs: Vec<Operand> = Vec::new();
    for v in &cx.node.inputs {
        inputs.push(match v.map(|v| (v, (cx.consts)(v))) {
            None => Operand::Absent,
            Some((_, Some(t))) => Operand::Constant(Datum::Tensor(t)),
            Some((v, None)) => {
                ins.push(v);
                Operand::Read(ins.len() - 1)
            }
        });
    }
    let outputs = cx
        .node
        .outputs
        .iter()
        .map(|v| {
            outs.push((*v)?);
            Some(outs.len() - 1)
        })
        .collect();
    Built { kernel: Box::new(Reference { op: cx.node.op.clone(), inputs, outputs }), ins, outs }
}

impl Kernel for Reference {
    fn name(&self) -> &str {
        "reference"
    }

    fn run(&self, cx: &mut RunCx) -> Result<(), StepError> {
        let mut read = Vec::new();
        for operand in &self.inputs {
            read.push(match operand {
                Operand::Read(i) => Some(Datum::Tensor(cx.view(*i)?.to_tensor()?)),
                _ => None,
            });
        }
        let refs: Vec<Option<&Datum>> = self
            .inputs
            .iter()
            .zip(&read)
            .map(|(operand, read)| match operand {
                Operand::Constant(d) => Some(d),
                _ => read.as_ref(),
            })
            .collect();
        let operands = EvalCx::new(&refs, self.outputs.len());
        operands.check_memory()?;
        let results = self.op.eval(&operands)?;
        for (i, place) in self.outputs.iter().enumerate().filter_map(|(i, p)| Some((i, (*p)?))) {
            let result = results.get(i).ok_or(OpError::Value(format!("output {i} was not made")))?;
            store(cx, i, place, result)?;
        }
        Ok(())
    }
}

fn store(cx: &mut RunCx, index: usize, place: usize, result: &Tensor) -> Result<(), StepError> {
    let out = &mut cx.outs[place];
    if out.dtype != result.dtype() || out.shape != result.shape() {
        return Err(StepError::Inferred {
            index,
            inferred: format!("{}{:?}", out.dtype, out.shape),
            actual: format!("{}{:?}", result.dtype(), result.shape()),
        });
    }
    out.bytes.copy_from_slice(result.bytes());
    Ok(())
}
