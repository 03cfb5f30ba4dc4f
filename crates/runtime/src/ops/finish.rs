//! What happens to the sums of an integer product: weights' and rows' formats, biases, residuals and roundings, put together
//! when a plan is made.

use narrowbit_ir::ValueId;
use narrowbit_kernels::Activation;
use narrowbit_kernels::panel::{CodeSum, Epilogue, Residual, RowParams, Rows, Stage, Target};
use narrowbit_tensor::DType;

use crate::error::StepError;
use crate::fuse::{Affine, Fusion, Ints, StepRow};
use crate::kernel::{BuildCx, RunCx};
use crate::lower::{IntWeights, QParams, Quantized};

/// Weights as the kernels take them: i8, with their scales and zero points by column.
pub(super) struct Loaded {
    pub data: Vec<i8>,
    pub scales: Vec<f32>,
    /// Empty where all are 0.
    pub zeros: Vec<i32>,
}

pub(super) fn load(cx: &BuildCx, w: &IntWeights, columns: usize) -> Option<Loaded> {
    let t = (cx.consts)(w.value)?;
    let (flip, shift) = if t.dtype() == DType::U8 { (0x80, 128) } else { (0, 0) };
    let data = t.bytes().iter().map(|&b| (b ^ flip) as i8).collect();
    t.release();
    if w.scales.is_empty() {
        return None;
    }
    // One for all columns, one for each, or one for each column of a group.
    let spread = |i: usize| i % w.scales.len();
    let zeros: Vec<i32> = (0..columns).map(|i| w.zeros[spread(i)] - shift).collect();
    let zeros = if zeros.iter().all(|&z| z == 0) { Vec::new() } else { zeros };
    Some(Loaded { data, scales: (0..columns).map(|i| w.scales[spread(i)]).collect(), zeros })
}

/// Everything of an epilogue but the residual.
pub(super) struct Finish {
    offsets: Vec<i32>,
    scales: Vec<f32>,
    weight_zeros: Vec<i32>,
    bias: Vec<f32>,
    activation: Activation,
    /// By column, or empty: what multiplies the activation's results.
    factors: Vec<f32>,
    /// By column, or empty: what is added then.
    shifts: Vec<f32>,
    output: Option<Codes>,
    /// What happens between the product and the residual.
    stage: Option<Stage>,
    /// The format that the sums are rounded to first.
    first: Option<QParams>,
    code_sum: Option<CodeSum>,
    /// A constant row in the place of a residual.
    row: Option<StepRow>,
    /// Where the residual stands among the operands, and what it means.
    residual: Option<(usize, Option<QParams>)>,
    /// Set where the format of the rows is made at run time.
    runtime: Option<RowFormat>,
}

/// The codes that results are rounded to.
#[derive(Clone, Copy)]
pub(super) struct Codes {
    pub dtype: DType,
    /// What a result is multiplied by to be a number of steps.
    pub inverse: f32,
    pub zero: i32,
}

impl From<QParams> for Codes {
    fn from(q: QParams) -> Codes {
        Codes { dtype: q.dtype, inverse: 1.0 / q.scale, zero: q.zero }
    }
}

/// The activation in units of `1 / inverse`, where it only bounds: what comes before a rounding can then be in steps.
pub(super) fn in_steps(activation: Activation, inverse: f32) -> Option<Activation> {
    match activation {
        Activation::None | Activation::Relu => Some(activation),
        Activation::Clip { lo, hi } => Some(Activation::Clip { lo: lo * inverse, hi: hi * inverse }),
        _ => None,
    }
}

/// Rows whose scale and zero point are operands.
struct RowFormat {
    dtype: DType,
    scale_at: usize,
    zero_at: Option<usize>,
    /// By column: the sum of the weights, less the depth times their zero point.
    column_sums: Vec<i32>,
    /// Whether each row has a scale and zero point of its own.
    by_row: bool,
}

/// Scale and zero point of the rows of one run.
pub(super) struct Format {
    /// One for each row, where they have their own.
    row_scales: Vec<f32>,
    /// As many zero points, as kernels see them.
    row_zeros: Vec<i32>,
    /// The zero point as the rows have it, where it is one.
    pub zero: i32,
    /// One for each column, where the rows have one format.
    offsets: Vec<i32>,
    scales: Vec<f32>,
}

/// The single element of an operand of u8 or i8.
fn zero_point(cx: &RunCx, i: usize) -> Result<i32, StepError> {
    let view = cx.view(i)?;
    let byte = view.bytes.first().copied().unwrap_or(0);
    Ok(if view.dtype == DType::I8 { i32::from(byte as i8) } else { i32::from(byte) })
}

/// The scale and zero point of a tensor whose `runtime` they are, at `ins[at]` and `ins[at + 1]`.
pub(super) fn runtime_params(cx: &RunCx, at: usize, zero: bool) -> Result<(f32, i32), StepError> {
    let scale = cx.f32s(at)?.first().copied().unwrap_or(1.0);
    Ok((scale, if zero { zero_point(cx, at + 1)? } else { 0 }))
}

/// Adds the operands that hold a format to those of a kernel.
pub(super) fn push_format(ins: &mut Vec<ValueId>, q: Quantized) -> Option<usize> {
    let runtime = q.runtime?;
    let at = ins.len();
    ins.push(runtime.scale);
    ins.extend(runtime.zero);
    Some(at)
}

impl Finish {
    /// Whether the format of the rows is made at run time.
    pub fn is_at_run_time(&self) -> bool {
        self.runtime.is_some()
    }

    /// `rows` is the format of the rows, `k` the depth of the product, `alpha` a factor of it.
    pub fn new(f: &Fusion, ints: &Ints, rows: QParams, w: Loaded, sums: &[i32], (k, alpha): (usize, f32)) -> Finish {
        // Kernels read i8 rows with 128 added.
        let zero = rows.zero + if rows.dtype == DType::I8 { 128 } else { 0 };
        let zero_of = |i: usize| w.zeros.get(i).copied().unwrap_or(0);
        let offset = |i: usize| {
            let sum = sums[i].wrapping_sub((k as i32).wrapping_mul(zero_of(i)));
            zero.wrapping_mul(sum).wrapping_neg()
        };
        Finish {
            offsets: (0..sums.len()).map(offset).collect(),
            scales: w.scales.iter().map(|s| alpha * rows.scale * s).collect(),
            weight_zeros: w.zeros,
            bias: Vec::new(),
            activation: f.activation,
            factors: Vec::new(),
            shifts: Vec::new(),
            // Codes are added in units of the result's, its zero point included.
            output: ints.output.map(|q| match ints.code_sum {
                Some(_) => Codes { dtype: q.dtype, inverse: 1.0, zero: 0 },
                None => Codes::from(q),
            }),
            stage: ints.stage.map(|q| stage(q, 1.0 / q.scale, ints.code_sum)),
            first: ints.stage.or(ints.output),
            code_sum: ints.code_sum,
            row: ints.row.clone(),
            residual: None,
            runtime: None,
        }
    }

    /// Takes what the activation's results are multiplied by and what is added to them, or says `None` where that is no
    /// constant. Several steps become one product and one sum.
    pub fn take_affine(&mut self, cx: &BuildCx, f: &Fusion) -> Option<()> {
        let columns = self.scales.len();
        let (mut factors, mut shifts): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        for step in &f.affine {
            let (Affine::Mul(v) | Affine::Add(v)) = *step;
            let values = (cx.consts)(v)?.to_f64s().ok()?;
            if values.len() != 1 && values.len() != columns {
                return None;
            }
            let by_column = values.iter().cycle().take(columns);
            match step {
                Affine::Mul(_) => {
                    factors.resize(columns, 1.0);
                    factors.iter_mut().zip(by_column.clone()).for_each(|(f, v)| *f *= v);
                    shifts.iter_mut().zip(by_column).for_each(|(s, v)| *s *= v);
                }
                Affine::Add(_) => {
                    shifts.resize(columns, 0.0);
                    shifts.iter_mut().zip(by_column).for_each(|(s, v)| *s += v);
                }
            }
        }
        self.factors = factors.into_iter().map(|f| f as f32).collect();
        self.shifts = shifts.into_iter().map(|s| s as f32).collect();
        Some(())
    }

    /// Adds the residual to the operands `ins`, where there is one; `place` gives the id of the layout that it is read in.
    pub fn take_residual(
        &mut self,
        f: &Fusion,
        ints: &Ints,
        ins: &mut Vec<ValueId>,
        place: impl Fn(ValueId) -> ValueId,
    ) {
        if let Some(r) = f.residual {
            self.residual = Some((ins.len(), ints.residual.map(|q| q.params)));
            ins.push(place(ints.residual.map_or(r, |q| q.value)));
        }
    }

    /// Lets the factors of the sums give steps of the first rounding at once, `scale_x · scale_w / scale_y`: one rounding
    /// less, and the arithmetic of QLinearConv, QLinearMatMul and QGemm. To be called after a bias was added; where
    /// something must be added or applied to floats first, nothing changes.
    pub fn at_once(&mut self) {
        let Some(first) = self.first else { return };
        let inverse = 1.0 / first.scale;
        let ratios: Vec<f32> = self.scales.iter().map(|s| s / first.scale).collect();
        let floats =
            !self.bias.is_empty() || !self.factors.is_empty() || !self.shifts.is_empty() || self.runtime.is_some();
        if floats || !ratios.iter().all(|r| r.is_finite()) {
            return;
        }
        if self.stage.is_some() {
            self.stage = Some(stage(first, 1.0, self.code_sum));
        } else if let (None, Some(activation), Some(output)) =
            (self.residual, in_steps(self.activation, inverse), &mut self.output)
        {
            (self.activation, output.inverse) = (activation, 1.0);
        } else {
            return;
        }
        self.scales = ratios;
    }

    /// Lets the format of the rows come from operands, which it adds to `ins`. To be called before a bias is added. One format
    /// for all rows becomes offsets and scales of the columns, once for each run; rows of their own stay with the rows.
    pub fn at_run_time(&mut self, x: Quantized, ins: &mut Vec<ValueId>, sums: &[i32], k: usize) {
        let Some(scale_at) = push_format(ins, x) else { return };
        let zero_of = |i: usize| self.weight_zeros.get(i).copied().unwrap_or(0);
        let corrected = |(i, s): (usize, &i32)| s.wrapping_sub((k as i32).wrapping_mul(zero_of(i)));
        let column_sums = sums.iter().enumerate().map(corrected).collect();
        let zero_at = x.runtime.and_then(|r| r.zero).map(|_| scale_at + 1);
        self.offsets.fill(0);
        let by_row = x.runtime.is_some_and(|r| r.by_row);
        self.runtime = Some(RowFormat { dtype: x.params.dtype, scale_at, zero_at, column_sums, by_row });
    }

    /// What the operands say of the rows.
    pub fn format(&self, cx: &RunCx) -> Result<Option<Format>, StepError> {
        let Some(f) = &self.runtime else { return Ok(None) };
        let shift = if f.dtype == DType::I8 { 128 } else { 0 };
        if f.by_row {
            let row_scales = cx.f32s(f.scale_at)?.to_vec();
            let zero = |b: &u8| if f.dtype == DType::I8 { i32::from(*b as i8) } else { i32::from(*b) };
            let row_zeros = match f.zero_at {
                Some(at) => cx.view(at)?.bytes.iter().map(|b| zero(b) + shift).collect(),
                None => vec![shift; row_scales.len()],
            };
            return Ok(Some(Format { row_scales, row_zeros, zero: 0, offsets: Vec::new(), scales: Vec::new() }));
        }
        let (scale, zero) = runtime_params(cx, f.scale_at, f.zero_at.is_some())?;
        let shifted = zero + shift;
        let offsets = f.column_sums.iter().map(|s| shifted.wrapping_mul(*s).wrapping_neg()).collect();
        let scales = self.scales.iter().map(|s| scale * s).collect();
        Ok(Some(Format { row_scales: Vec::new(), row_zeros: Vec::new(), zero, offsets, scales }))
    }

    /// Adds a bias of whole steps of each column's scale.
    pub fn add_steps(&mut self, steps: impl IntoIterator<Item = i32>) {
        self.offsets.iter_mut().zip(steps).for_each(|(o, s)| *o = o.wrapping_add(s));
    }

    /// Whether `unit` is what a step of each column is worth, but for the order of its multiplications.
    fn has_units(&self, unit: &[f32]) -> bool {
        let near = |(i, s): (usize, &f32)| {
            let u = unit[if unit.len() == 1 { 0 } else { i }];
            (u - s).abs() <= 1e-6 * s.abs()
        };
        self.runtime.is_none()
            && (unit.len() == 1 || unit.len() == self.scales.len())
            && self.scales.iter().enumerate().all(near)
    }

    /// Adds a bias: exactly as integers where it is a multiple of each column's scale, as a
    /// bias that was quantized with that scale is.
    pub fn add_bias(&mut self, bias: &[f32]) {
        let whole = |(b, s): (&f32, &f32)| {
            let steps = b / s;
            let near = steps.round_ties_even();
            (near.abs() < 1e9 && (steps - near).abs() <= 1e-6 * near.abs().max(1.0)).then_some(near as i32)
        };
        if self.runtime.is_some() {
            self.bias = bias.to_vec();
            return;
        }
        match bias.iter().zip(&self.scales).map(whole).collect::<Option<Vec<i32>>>() {
            Some(steps) => self.add_steps(steps),
            None => self.bias = bias.to_vec(),
        }
    }

    /// What follows the sums of a convolution into `channels` channels: its own bias, and all that is fused to it.
    pub fn take_rest(
        &mut self,
        cx: &BuildCx,
        (f, ints): (&Fusion, &Ints),
        ins: &mut Vec<ValueId>,
        channels: usize,
    ) -> Option<()> {
        if let Some(v) = cx.node.input(2) {
            match bias_steps(cx, v, self, channels) {
                Some(steps) => self.add_steps(steps),
                None => self.add_bias(&cx.floats(2)?),
            }
        }
        self.take_affine(cx, f)?;
        self.take_residual(f, ints, ins, cx.channels_last);
        self.at_once();
        Some(())
    }

    pub fn epilogue<'a>(&'a self, cx: &RunCx<'a>, format: &'a Option<Format>) -> Result<Epilogue<'a>, StepError> {
        let residual = match self.residual {
            None => self.row.as_ref().map_or(Residual::None, |r| Residual::Row(&r.steps, r.scale)),
            Some((i, None)) => Residual::F32(cx.f32s(i)?),
            Some((i, Some(q))) if q.dtype == DType::U8 => Residual::U8(cx.view(i)?.slice()?, q.scale, q.zero),
            Some((i, Some(q))) => Residual::I8(cx.view(i)?.slice()?, q.scale, q.zero),
        };
        let mut epilogue = Epilogue {
            offsets: &self.offsets,
            scales: &self.scales,
            weight_zeros: &self.weight_zeros,
            bias: &self.bias,
            stage: self.stage,
            residual,
            activation: self.activation,
            factors: &self.factors,
            shifts: &self.shifts,
            rows: None,
        };
        match (&self.runtime, format) {
            (Some(r), Some(f)) if !r.by_row => (epilogue.offsets, epilogue.scales) = (&f.offsets, &f.scales),
            (Some(r), Some(f)) => {
                let rows = RowParams { scales: &f.row_scales, zeros: &f.row_zeros, column_sums: &r.column_sums };
                epilogue.rows = Some(rows);
            }
            _ => {}
        }
        Ok(epilogue)
    }

    pub fn target<'a>(&self, cx: &'a mut RunCx) -> Result<Target<'a>, StepError> {
        target(self.output, cx)
    }

    /// Results in memory elsewhere, aligned for floats.
    pub fn target_of<'a>(&self, bytes: &'a mut [u8]) -> Target<'a> {
        match self.output {
            None => Target::F32(bytemuck::cast_slice_mut(bytes)),
            Some(Codes { dtype: DType::U8, inverse, zero }) => Target::U8(bytes, inverse, zero),
            Some(Codes { inverse, zero, .. }) => Target::I8(bytemuck::cast_slice_mut(bytes), inverse, zero),
        }
    }
}

/// The rounding before a sum.
fn stage(q: QParams, inverse: f32, sum: Option<CodeSum>) -> Stage {
    let signed = q.dtype == DType::I8;
    match sum {
        Some(sum) => Stage::of_codes(signed, inverse, q.zero, sum),
        None => Stage::new(signed, inverse, q.scale, q.zero),
    }
}

/// A constant bias of integers behind a DequantizeLinear with the columns' own steps, as integers: floats would round those
/// of over 24 bits.
pub(super) fn bias_steps(cx: &BuildCx, v: ValueId, finish: &Finish, columns: usize) -> Option<Vec<i32>> {
    let node = cx.graph.node(cx.graph.producer(v)?.0);
    let plain = node.op.name() == "DequantizeLinear" && node.input(2).is_none();
    let codes = (cx.consts)(node.input(0).filter(|_| plain)?).filter(|t| t.dtype() == DType::I32)?;
    let unit = (cx.consts)(node.input(1)?)?;
    let fits = codes.len() == columns && finish.has_units(&unit.to_f32s().ok()?);
    fits.then(|| codes.slice::<i32>().ok().map(|c| c.into_owned()))?
}

/// The result, in the codes that it is rounded to or as floats.
pub(super) fn target<'a>(output: Option<impl Into<Codes>>, cx: &'a mut RunCx) -> Result<Target<'a>, StepError> {
    let missing = narrowbit_ir::OpError::MissingInput(0);
    let out = cx.outs.first_mut().ok_or(missing)?;
    Ok(match output.map(Into::into) {
        None => Target::F32(out.slice()?),
        Some(Codes { dtype: DType::U8, inverse, zero }) => Target::U8(out.slice()?, inverse, zero),
        Some(Codes { inverse, zero, .. }) => Target::I8(out.slice()?, inverse, zero),
    })
}

pub(super) fn rows<'a>(cx: &RunCx<'a>, dtype: DType) -> Result<Rows<'a>, StepError> {
    rows_at(cx, 0, dtype)
}

pub(super) fn rows_at<'a>(cx: &RunCx<'a>, i: usize, dtype: DType) -> Result<Rows<'a>, StepError> {
    let x = cx.view(i)?;
    Ok(if dtype == DType::U8 { Rows::U8(x.slice()?) } else { Rows::I8(x.slice()?) })
}
