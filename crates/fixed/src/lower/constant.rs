//! Reading constants as exact numbers.

use narrowbit_ir::{Node, NodeId, ValueId};
use narrowbit_tensor::{DType, Tensor};

use super::{Clip, Lowering, State, Why};
use crate::dyadic::Dyadic;
use crate::run::{Data, Width};
use crate::value::{Codes, Fixed, Layout, Unit};

impl Lowering<'_> {
    /// A constant input, also one that inference has folded.
    pub(super) fn tensor(&self, node: &Node, i: usize) -> Option<Tensor> {
        let v = node.input(i)?;
        self.graph.constant(v).or(self.facts.get(v).value.as_ref()).cloned()
    }

    /// The scales of a QuantizeLinear or DequantizeLinear with data of some rank, and the zero points of each.
    pub(super) fn params(&self, node: &Node, rank: usize) -> Result<(Unit, Vec<i64>, Option<DType>), Why> {
        let scale = self.tensor(node, 1).ok_or("its scale is only known at run time")?;
        if node.op.attrs().int_or("block_size", 0) != Ok(0) {
            return Err("it has a scale for each block".into());
        }
        let scales = numbers(&scale)?;
        if scales.iter().any(|s| s.mantissa <= 0) {
            return Err("a scale is not above zero".into());
        }
        let zero = self.tensor(node, 2);
        let zeros = match &zero {
            None if node.input(2).is_some() => return Err("its zero point is only known at run time".into()),
            None => vec![0; scales.len()],
            Some(z) if z.dtype().is_int() => z.to_i64s().map_err(|e| e.to_string())?,
            Some(z) => return Err(format!("its codes are {}", z.dtype())),
        };
        if zeros.len() != scales.len() {
            return Err(format!("it has {} scales and {} zero points", scales.len(), zeros.len()));
        }
        if scales.is_empty() || zeros.iter().any(|z| i32::try_from(*z).is_err()) {
            return Err("it has no scale, or a zero point of more than 32 bits".into());
        }
        let axis = if scale.rank() == 0 || scales.len() == 1 { None } else { Some(self.axis(node, rank)?) };
        let unit = Unit { scales, axis: axis.map(|a| rank - a), divisor: 1 };
        Ok((unit, zeros, zero.map(|z| z.dtype())))
    }

    fn axis(&self, node: &Node, rank: usize) -> Result<usize, Why> {
        let default = if rank == 1 { 0 } else { 1 };
        let axis = node.op.attrs().int_or("axis", default).map_err(|e| e.to_string())?;
        narrowbit_tensor::shape::axis(axis, rank).ok_or_else(|| format!("its axis {axis} is none of {rank}"))
    }

    /// A QuantizeLinear of what the program does not make: its codes are an input.
    pub(super) fn enter(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        self.before.insert(id);
        let out = node.output(0).ok_or("it makes nothing")?;
        self.input(out)
    }

    /// Integers of the graph that the program reads.
    pub(super) fn input(&mut self, v: ValueId) -> Result<(), Why> {
        let shape = self.shape(v)?;
        let width = width_of(self.facts.dtype(v)).ok_or("its codes are not integers of 8 or 16 bits")?;
        let len = shape.iter().product();
        let register = self.register(width, len);
        self.program.inputs.push((register, len, width));
        self.inputs.push(v);
        let (unit, bounds) = (Unit::tensor(Dyadic::ONE), range(width));
        let fixed = Fixed { register, shape, layout: Layout::Plain, unit, zero: 0, bounds };
        self.states.insert(v, State::Ints { fixed, codes: true, clip: Clip::default() });
        Ok(())
    }

    /// A DequantizeLinear of a constant, or of integers that the graph takes as they are.
    pub(super) fn constant_or_input(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (Some(x), Some(out)) = (node.input(0), node.output(0)) else { return Err("it reads nothing".into()) };
        let Some(codes) = self.tensor(node, 0) else {
            self.input(x)?;
            return self.dequantize(node);
        };
        self.before.insert(id);
        let (unit, zeros, _) = self.params(node, codes.rank())?;
        let inner = unit.axis.map_or(1, |a| codes.shape()[codes.rank() + 1 - a..].iter().product::<usize>());
        let zero = |i: usize| if zeros.len() == 1 { zeros[0] } else { zeros[i / inner.max(1) % zeros.len()] };
        let values = codes.to_i64s().map_err(|e| e.to_string())?;
        let values = values.into_iter().enumerate().map(|(i, v)| v.wrapping_sub(zero(i))).collect();
        self.states.insert(out, State::Constant(Codes { values, shape: codes.shape().to_vec(), unit }));
        Ok(())
    }
}

/// The elements of a tensor of floats, exactly.
pub(super) fn numbers(t: &Tensor) -> Result<Vec<Dyadic>, Why> {
    let values = t.to_f32s().map_err(|e| e.to_string())?;
    let exact = |x: &f32| Dyadic::of_bits(x.to_bits()).ok_or_else(|| "it reads a number that is not finite".to_owned());
    values.iter().map(exact).collect()
}

/// The width of integer codes.
pub(super) fn width_of(dtype: Option<DType>) -> Option<Width> {
    Some(match dtype? {
        DType::I8 => Width::I8,
        DType::U8 => Width::U8,
        DType::I16 => Width::I16,
        DType::U16 => Width::U16,
        _ => return None,
    })
}

/// The integers of a width.
pub(super) fn range(width: Width) -> (i64, i64) {
    match width {
        Width::I8 => (-128, 127),
        Width::U8 => (0, 255),
        Width::I16 => (-32768, 32767),
        Width::U16 => (0, 65535),
        Width::I32 => (i32::MIN.into(), i32::MAX.into()),
        Width::I64 => (i64::MIN, i64::MAX),
    }
}

/// Codes of the graph as integers of the program.
pub(crate) fn data(t: &Tensor) -> Option<Data> {
    let width = width_of(Some(t.dtype()))?;
    Some(match width {
        Width::I8 => Data::I8(t.slice::<i8>().ok()?.into_owned()),
        Width::U8 => Data::U8(t.slice::<u8>().ok()?.into_owned()),
        Width::I16 => Data::I16(t.slice::<i16>().ok()?.into_owned()),
        _ => Data::U16(t.slice::<u16>().ok()?.into_owned()),
    })
}
