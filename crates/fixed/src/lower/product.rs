//! Conv, ConvTranspose, Gemm and MatMul with constant weights.

use narrowbit_ir::{Node, NodeId};
use narrowbit_kernels::conv::Conv2dParams;
use narrowbit_kernels::integer::ApartWeights;
use narrowbit_ops::math::gemm::Gemm;
use narrowbit_ops::nn::{Conv, ConvTranspose, Window};

use super::constant::numbers;
use super::convert::within;
use super::{Lowering, State, Why};
use crate::dyadic::Dyadic;
use crate::run::{Dense, Direct, FILL, Step, Weights, Width};
use crate::value::{Codes, Fixed, Layout, Unit};

/// A product brought to one form: a convolution whose images may be of one pixel.
struct Product {
    conv: Conv2dParams,
    /// `[oc, c / groups, kh, kw]`.
    weights: Vec<i64>,
    /// Whether it is a matrix product.
    matrix: bool,
    /// The shape of the result.
    shape: Vec<usize>,
}

impl Product {
    /// How many products a sum has.
    fn depth(&self) -> usize {
        self.conv.c / self.conv.groups * self.conv.kh * self.conv.kw
    }

    /// The channel of the input that a weight multiplies.
    fn channel(&self, weight: usize) -> usize {
        let (per, taps) = (self.depth(), self.conv.kh * self.conv.kw);
        match self.matrix {
            true => weight / self.conv.oc,
            false => {
                let (out, own) = (weight / per, self.conv.c / self.conv.groups);
                out / (self.conv.oc / self.conv.groups) * own + weight / taps % own
            }
        }
    }
}

impl Lowering<'_> {
    pub(super) fn product(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let weight = node.input(1).and_then(|v| self.states.get(&v));
        let Some(State::Constant(w)) = weight.cloned() else {
            if node.op.name() == "MatMul" {
                return self.pair(id, node);
            }
            return Err("its second operand is no constant of integers".into());
        };
        let x = self.ints(node, 0)?;
        // Channels that are added up have one unit, the finest; a depthwise convolution keeps theirs apart.
        let apart =
            node.op.downcast::<Conv>().is_some_and(|c| x.shape.get(1) == Some(&c.group)) && w.shape.get(1) == Some(&1);
        let folds = !apart && x.unit.axis.is_some() && x.unit.divisor == 1 && has_channels(node, &x);
        let mixed = x.unit.axis.is_some() && !apart && !folds;
        let x = if mixed || x.unit.divisor != 1 { self.expanded(x, i32::MIN)? } else { x };
        let (x, p) = match node.op.name() {
            "Conv" => self.conv(node, x, &w)?,
            "ConvTranspose" => self.conv_transpose(node, x, &w)?,
            _ => self.matrix(node, x, &w)?,
        };
        super::fits(&p.shape)?;
        if p.conv.c < p.conv.groups || p.conv.oc < p.conv.groups {
            return Err("it has no channels".into());
        }
        let (x, p) = if folds { folded(x, p)? } else { (x, p) };
        let unit = self.product_unit(node, &x, &w, &p)?;
        let bias = self.bias(node, &unit, p.conv.oc)?;
        let bounds = sums(&p, &x, &bias);
        let most = bounds.iter().fold((0, 0), |(lo, hi), b| (b.0.min(lo), b.1.max(hi)));
        let whole = |v: i128| i64::try_from(v).map_err(|_| "its sums would need more than 64 bits".to_owned());
        let most = (whole(most.0)?, whole(most.1)?);
        let buffer = self.buffer().unwrap_or((i64::MIN, i64::MAX));
        let saturates = !within(most, buffer);
        let (register, words) = self.sum(&x, &p, &bias, most, buffer)?;
        let bias_words = if bias.is_empty() { "" } else { " + bias in units of the product" };
        let aligned = if folds { " of aligned channels" } else { "" };
        let depth = p.depth();
        self.row(id, format!("{words}: sums of {depth} products{aligned}{bias_words}"), most).saturates = saturates;
        let bounds = (most.0.max(buffer.0), most.1.min(buffer.1));
        let layout = Layout::natural(p.shape.len(), unit.axis.or((p.shape.len() == 4).then_some(3)));
        self.set(node, Fixed { register, shape: p.shape, layout, unit, zero: 0, bounds });
        Ok(())
    }

    /// The step for a product: the integer kernels where 32 bits hold all sums, else plain loops.
    fn sum(
        &mut self,
        x: &Fixed,
        p: &Product,
        bias: &[i64],
        most: (i64, i64),
        buffer: (i64, i64),
    ) -> Result<(usize, String), Why> {
        let width = self.widths[x.register];
        let (weights, conv) = (&p.weights, p.conv);
        let w = Weights { values: weights, bias, zero: x.zero, signed: width == Width::I8 };
        let len: usize = p.shape.iter().product();
        let narrow = matches!(width, Width::I8 | Width::U8);
        let alone = conv.groups > 1 && conv.c / conv.groups < 4;
        let kernels = narrow && !alone && Width::wide(most) == Width::I32 && within(most, buffer) && len > 0;
        if let Some(parts) = w.parts(p.depth()).filter(|_| kernels) {
            let dense = match p.matrix {
                true => Dense::matrix(self.exec, [conv.n, conv.c, conv.oc], &w, parts),
                false => Dense::conv(self.exec, conv, &w, parts),
            };
            let dense = dense.map_err(|e| e.to_string())?;
            let to = self.step(Step::Dense(Box::new(dense)), &[x.register], Width::I32, len);
            let bytes = if parts == 1 { String::new() } else { format!(" of weights of {parts} bytes") };
            return Ok((to, format!("8-bit products{bytes} in a 32-bit accumulator")));
        }
        if let Some(apart) = self.apart(p, &w, most).filter(|_| within(most, buffer) && width.is_narrow() && len > 0) {
            let to = self.step(Step::Apart(Box::new(apart)), &[x.register], Width::I32, len);
            return Ok((to, "products of each channel in a 32-bit accumulator".into()));
        }
        let mut ordered = weights.clone();
        if p.matrix {
            // `k × n` to `[n, k, 1, 1]`.
            let (k, n) = (conv.c, conv.oc);
            (0..k * n).for_each(|i| ordered[i % n * k + i / n] = weights[i]);
        }
        let direct = Direct::new(conv, &Weights { values: &ordered, ..w }, buffer);
        let kept = (most.0.max(buffer.0), most.1.min(buffer.1));
        let to = self.step(Step::Direct(Box::new(direct)), &[x.register], Width::wide(kept), len);
        let bits = if Width::wide(kept) == Width::I32 { 32 } else { 64 };
        Ok((to, format!("products in a {bits}-bit accumulator")))
    }

    /// A depthwise convolution whose sums, weights and biases fit 32 bits.
    fn apart(&self, p: &Product, w: &Weights<'_>, most: (i64, i64)) -> Option<ApartWeights> {
        let narrow = |all: &[i64]| all.iter().map(|&v| i32::try_from(v).ok()).collect::<Option<Vec<i32>>>();
        let conv = Some(p.conv).filter(|c| !p.matrix && c.groups == c.c && Width::wide(most) == Width::I32)?;
        ApartWeights::new(&conv, &narrow(w.values)?, &narrow(w.bias)?, i32::try_from(w.zero).ok()?).ok()
    }

    fn conv(&mut self, node: &Node, x: Fixed, w: &Codes) -> Result<(Fixed, Product), Why> {
        let op: &Conv = node.op.downcast().ok_or("it is another operator of that name")?;
        let s = op.resolve(&x.shape, &w.shape).map_err(|e| e.to_string())?;
        let x = self.image(x)?;
        let conv = params(&s.window, [s.batch, s.c, s.m, op.group], &x.shape)?;
        Ok((x, Product { conv, weights: w.values.clone(), matrix: false, shape: s.output() }))
    }

    /// As a convolution of the image with zeros between its pixels.
    fn conv_transpose(&mut self, node: &Node, x: Fixed, w: &Codes) -> Result<(Fixed, Product), Why> {
        let op: &ConvTranspose = node.op.downcast().ok_or("it is another operator of that name")?;
        let s = op.resolve(&x.shape, &w.shape).map_err(|e| e.to_string())?;
        let x = self.image(x)?;
        if s.window.rank() != 2 {
            return Err("it is not of two dimensions".into());
        }
        let (x, reach) = self.spread(x, &s.window)?;
        let [kh, kw] = [s.window.kernel[0], s.window.kernel[1]];
        let (c, m, taps) = (s.c / op.group, s.m / op.group, kh * kw);
        let mut weights = vec![0; w.values.len()];
        for (i, &v) in w.values.iter().enumerate() {
            // From [c, m / group, tap] to [m, c / group, tap], the window turned round.
            let (tap, o, ch) = (i % taps, i / taps % m, i / (taps * m));
            let (group, ch) = (ch / c, ch % c);
            weights[((group * m + o) * c + ch) * taps + taps - 1 - tap] = v;
        }
        let conv = Conv2dParams {
            n: s.batch,
            c: s.c,
            h: reach[0],
            w: reach[1],
            oc: s.m,
            kh,
            kw,
            strides: [1, 1],
            pads: [0; 4],
            dilations: [s.window.dilations[0], s.window.dilations[1]],
            groups: op.group,
        };
        Ok((x, Product { conv, weights, matrix: false, shape: s.output() }))
    }

    /// The image that a plain convolution makes a transposed one of: each pixel `stride` apart, padded or cropped so that
    /// windows of step 1 give the output.
    fn spread(&mut self, x: Fixed, window: &Window) -> Result<(Fixed, [usize; 2]), Why> {
        let &[n, c, h, w] = &x.shape[..] else { return Err("it is not of two dimensions".into()) };
        let extent = |a: usize| (window.kernel[a] - 1) * window.dilations[a];
        let reach = [window.input[0] + extent(0), window.input[1] + extent(1)];
        let len = n.checked_mul(reach[0]).and_then(|v| v.checked_mul(reach[1])).and_then(|v| v.checked_mul(c));
        let len = len.filter(|&len| len <= super::MOST_ELEMENTS).ok_or("its image is too large")?;
        // Where a pixel of the spread image comes from, along one axis.
        let from = |a: usize, at: usize, count: usize| {
            let at = (at + window.begins[a]).checked_sub(extent(a))?;
            let pixel = at / window.strides[a];
            (at.is_multiple_of(window.strides[a]) && pixel < count).then_some(pixel)
        };
        let mut indices = Vec::with_capacity(len);
        for i in 0..len / c.max(1) {
            let (image, y, at) = (i / (reach[0] * reach[1]), i / reach[1] % reach[0], i % reach[1]);
            let pixel = from(0, y, h).zip(from(1, at, w)).map(|(y, at)| (image * h + y) * w + at);
            indices.extend((0..c).map(|ch| pixel.map_or(FILL, |p| (p * c + ch) as u32)));
        }
        let register = self.step(Step::Gather(indices, x.zero), &[x.register], self.widths[x.register], len);
        let bounds = (x.bounds.0.min(x.zero), x.bounds.1.max(x.zero));
        Ok((Fixed { register, shape: vec![n, c, reach[0], reach[1]], bounds, ..x }, reach))
    }

    /// A tensor of images, channels last; lines are images of one row.
    fn image(&mut self, x: Fixed) -> Result<Fixed, Why> {
        match x.shape.len() {
            4 => Ok(self.laid(x, Layout::ChannelsLast)),
            n => Err(format!("it is of {} dimensions", n.saturating_sub(2))),
        }
    }

    fn matrix(&mut self, node: &Node, x: Fixed, w: &Codes) -> Result<(Fixed, Product), Why> {
        let gemm: Option<&Gemm> = node.op.downcast();
        if gemm.is_some_and(|g| g.trans_a || g.alpha != 1.0 || g.beta != 1.0) {
            return Err("it has alpha, beta or a transposed first operand".into());
        }
        let (&[rows, columns], Some(&depth)) = (&w.shape[..], x.shape.last()) else {
            return Err("its weight is no matrix".into());
        };
        let transposed = gemm.is_some_and(|g| g.trans_b);
        let (k, n) = if transposed { (columns, rows) } else { (rows, columns) };
        if k != depth {
            return Err("its operands do not fit together".into());
        }
        let at = |i: usize| if transposed { w.values[i % n * k + i / n] } else { w.values[i] };
        let weights = (0..k * n).map(at).collect();
        let x = self.laid(x, Layout::Plain);
        let m: usize = x.shape[..x.shape.len() - 1].iter().product();
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        let conv = Conv2dParams {
            n: m,
            c: k,
            h: 1,
            w: 1,
            oc: n,
            kh: 1,
            kw: 1,
            strides: [1, 1],
            pads: [0; 4],
            dilations: [1, 1],
            groups: 1,
        };
        Ok((x, Product { conv, weights, matrix: true, shape }))
    }

    /// The unit of the sums: the scale of the data times that of each weight.
    fn product_unit(&self, node: &Node, x: &Fixed, w: &Codes, p: &Product) -> Result<Unit, Why> {
        let (oc, inputs) = (p.conv.oc, x.unit.scales.len());
        let of = |i: usize| x.unit.scales[if inputs == 1 { 0 } else { i * inputs / oc }];
        let times =
            |(i, s): (usize, &Dyadic)| s.times(of(i)).ok_or_else(|| "its scale does not fit 64 bits".to_owned());
        // With a unit for each channel of the input, so has the output, whatever the weight has.
        let own = if inputs > 1 && w.unit.axis.is_none() { vec![w.unit.scales[0]; oc] } else { w.unit.scales.clone() };
        let scales = own.iter().enumerate().map(times).collect::<Result<Vec<_>, _>>()?;
        let rank = w.shape.len();
        let channels = match node.op.name() {
            "Conv" => 0,
            "ConvTranspose" => 1,
            "Gemm" if node.op.downcast::<Gemm>().is_some_and(|g| g.trans_b) => 0,
            _ => rank - 1,
        };
        match w.unit.axis {
            None if inputs > 1 => Ok(Unit { scales, axis: Some(p.shape.len() - 1), divisor: 1 }),
            None => Ok(Unit { scales, axis: None, divisor: 1 }),
            Some(a) if rank - a == channels && scales.len() == p.conv.oc => {
                let axis = if p.matrix { 1 } else { p.shape.len() - 1 };
                Ok(Unit { scales, axis: Some(axis), divisor: 1 })
            }
            _ => Err("its weight has scales along another axis than the output's channels".into()),
        }
    }

    /// The bias in units of the product.
    fn bias(&self, node: &Node, unit: &Unit, channels: usize) -> Result<Vec<i64>, Why> {
        let Some(v) = node.input(2) else { return Ok(Vec::new()) };
        let of = |c: usize| unit.scales[if unit.scales.len() == 1 { 0 } else { c }];
        let whole = |c: usize, value: Dyadic| {
            let n = value.in_units(of(c)).filter(|n| i32::try_from(*n).is_ok());
            n.ok_or_else(|| format!("its bias of channel {c} is no whole number of units of the product in 32 bits"))
        };
        let values: Vec<Dyadic> = match self.states.get(&v) {
            Some(State::Constant(b)) => {
                let scale =
                    |i: usize| b.unit.scales[if b.unit.scales.len() == 1 { 0 } else { i % b.unit.scales.len() }];
                let value = |(i, &v): (usize, &i64)| scale(i).times(Dyadic::new(v, 0));
                b.values.iter().enumerate().map(value).collect::<Option<_>>().ok_or("its bias does not fit 64 bits")?
            }
            _ => numbers(&self.tensor(node, 2).ok_or("its bias is no constant")?)?,
        };
        if values.len() != channels {
            return Err("its bias is no row of the output".into());
        }
        values.into_iter().enumerate().map(|(c, v)| whole(c, v)).collect()
    }
}

/// Whether the units of a value lie along the axis over which a product adds up.
fn has_channels(node: &Node, x: &Fixed) -> bool {
    let rank = x.shape.len();
    let axis = if node.op.name().starts_with("Conv") { rank.checked_sub(1) } else { Some(1) };
    let channels = axis.and_then(|a| rank.checked_sub(a)).and_then(|at| x.shape.get(at));
    x.unit.axis == axis && channels == Some(&x.unit.scales.len())
}

/// The channels of the data aligned to the finest by their weights: `(x · 2ⁿ) · w = x · (w · 2ⁿ)`, so that the data stay
/// codes.
fn folded(x: Fixed, p: Product) -> Result<(Fixed, Product), Why> {
    let finest = x.unit.scales.iter().map(|s| s.frac).max().unwrap_or(0);
    let unit = Dyadic::new(1, finest);
    let factor = |s: &Dyadic| s.in_units(unit).ok_or_else(|| "its channels are too far apart".to_owned());
    let factors = x.unit.scales.iter().map(factor).collect::<Result<Vec<_>, _>>()?;
    let aligned = |(i, &w): (usize, &i64)| w.checked_mul(factors[p.channel(i)]);
    let weights: Option<Vec<i64>> = p.weights.iter().enumerate().map(aligned).collect();
    let weights = weights.ok_or("its weights would need more than 64 bits to align its channels")?;
    Ok((Fixed { unit: Unit::tensor(unit), ..x }, Product { weights, ..p }))
}

fn params(window: &Window, [n, c, oc, groups]: [usize; 4], x: &[usize]) -> Result<Conv2dParams, Why> {
    let (&[kh, kw], &[_, _, h, w]) = (&window.kernel[..], x) else { return Err("it is not of two dimensions".into()) };
    let pads = [window.begins[0], window.begins[1], window.ends[0], window.ends[1]];
    let p = Conv2dParams {
        n,
        c,
        h,
        w,
        oc,
        kh,
        kw,
        strides: [window.strides[0], window.strides[1]],
        pads,
        dilations: [window.dilations[0], window.dilations[1]],
        groups,
    };
    p.output().map_err(|e| e.to_string())?;
    Ok(p)
}

/// The least and the greatest sum of each output channel, its bias with it: the data may be anything within their bounds.
fn sums(p: &Product, x: &Fixed, bias: &[i64]) -> Vec<(i128, i128)> {
    let (low, high) = (i128::from((x.bounds.0 - x.zero).min(0)), i128::from((x.bounds.1 - x.zero).max(0)));
    let (oc, per) = (p.conv.oc, p.weights.len() / p.conv.oc.max(1));
    let mut found: Vec<(i128, i128)> = (0..oc).map(|c| bias.get(c).map_or((0, 0), |&b| (b.into(), b.into()))).collect();
    for (i, &w) in p.weights.iter().enumerate() {
        let channel = if p.matrix { i % oc } else { i / per };
        let (a, b) = (i128::from(w) * low, i128::from(w) * high);
        found[channel].0 += a.min(b);
        found[channel].1 += a.max(b);
    }
    found
}
