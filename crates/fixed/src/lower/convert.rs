//! QuantizeLinear, DequantizeLinear, Relu and Clip.

use narrowbit_ir::{Node, NodeId};
use narrowbit_tensor::DType;

use super::constant::{numbers, range, width_of};
use super::{Clip, Lowering, State, Why};
use crate::dyadic::{Dyadic, shifted};
use crate::proof::bits_of;
use crate::run::{Map, Step, Width};
use crate::value::{Fixed, Unit};

/// Right shifts beyond which nothing is left of 64 bits.
const MOST_SHIFT: i32 = 62;

impl Lowering<'_> {
    /// What the integers stand for is written down; they stay where they are.
    pub(super) fn dequantize(&mut self, node: &Node) -> Result<(), Why> {
        let x = node.input(0).ok_or("it reads nothing")?;
        let Some(State::Ints { fixed, codes: true, .. }) = self.states.get(&x).cloned() else {
            return Err("it dequantizes floats".into());
        };
        let (unit, zeros, _) = self.params(node, fixed.shape.len())?;
        let zero = *zeros.first().ok_or("it has no zero point")?;
        if unit.axis.is_some() || zeros.len() != 1 {
            return Err("an activation has a scale for each channel".into());
        }
        self.set(node, Fixed { unit, zero, ..fixed });
        Ok(())
    }

    /// A multiplication by a mantissa and a rounding shift.
    pub(super) fn quantize(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (x, out) = (node.input(0), node.output(0).ok_or("it makes nothing")?);
        let Some(State::Ints { fixed: x, codes: false, clip }) = x.and_then(|x| self.states.get(&x)).cloned() else {
            return Err("it quantizes codes".into());
        };
        let (unit, zeros, dtype) = self.params(node, x.shape.len())?;
        let said = node.op.attrs().int_or("output_dtype", 0).ok().and_then(DType::from_onnx);
        let width = width_of(dtype.or(said).or(Some(DType::U8))).ok_or("its codes are not integers of 8 or 16 bits")?;
        if unit.scales.len() != 1 {
            return Err("an activation has a scale for each channel".into());
        }
        let scale = unit.scales[0];
        if !scale.is_power_of_two() {
            return Err(format!("its scale is no power of two but {} · 2^{}", scale.mantissa, -scale.frac));
        }
        let map = self.requantizing(&x, scale, zeros[0], width, clip)?;
        let buffer = map.buffer;
        let product = product_bounds(&x, &map)?;
        let shifts = map.shift.iter().fold((i32::MAX, i32::MIN), |(lo, hi), &s| (lo.min(s), hi.max(s)));
        let bits = x.unit.bits();
        let words = words(&map, x.unit.bits(), shifts, self.options);
        let bounds = map.clamp;
        let same = map.factor.iter().all(|&f| f == 1) && shifts == (0, 0) && map.divisor == 1;
        let alias = same && x.zero == zeros[0] && self.widths[x.register] == width && within(x.bounds, bounds);
        let len = x.shape.iter().product();
        let to = match alias {
            true => x.register,
            false => self.step(Step::Map(Box::new(map)), &[x.register], width, len),
        };
        let row = self.row(id, words, product);
        row.multiplier_bits = (bits > 1).then_some(bits);
        row.shift = Some(shifts);
        row.saturates = buffer.is_some_and(|b| !within(product, b));
        let (unit, zero) = (Unit::tensor(Dyadic::ONE), 0);
        let fixed = Fixed { register: to, unit, zero, bounds, ..x };
        self.states.insert(out, State::Ints { fixed, codes: true, clip: Clip::default() });
        Ok(())
    }

    fn requantizing(&self, x: &Fixed, scale: Dyadic, zero: i64, width: Width, clip: Clip) -> Result<Map, Why> {
        let bits = x.unit.bits();
        if bits > self.options.multiplier_bits {
            let most = self.options.multiplier_bits;
            return Err(format!("its input's scale has a mantissa of {bits} bits, and multipliers have {most}"));
        }
        let shift = |s: &Dyadic| s.frac.checked_sub(scale.frac).filter(|s| s.abs() <= MOST_SHIFT);
        let shifts: Option<Vec<i32>> = x.unit.scales.iter().map(shift).collect();
        let (low, high) = range(width);
        let map = Map {
            subtract: x.zero,
            factor: x.unit.scales.iter().map(|s| s.mantissa).collect(),
            shift: shifts.ok_or("its shift is longer than 62 bits")?,
            divisor: x.unit.divisor,
            rounding: self.options.rounding,
            // What a mantissa multiplies lies in the buffer, too.
            buffer: self.buffer().filter(|_| bits > 1),
            add: zero,
            clamp: (low, high),
        };
        let code = |d: Dyadic, otherwise: i64| -> i64 {
            let shift = d.frac.saturating_sub(scale.frac);
            if d.mantissa == 0 || shift > MOST_SHIFT {
                return zero.clamp(low, high);
            }
            if shifted(d.mantissa, (-shift).max(0) as u32).is_none() {
                return otherwise;
            }
            let one =
                Map { factor: vec![d.mantissa], shift: vec![shift], add: zero, clamp: (low, high), ..Map::identity() };
            Map { rounding: self.options.rounding, ..one }.apply(1, 0)
        };
        let most = |d: Dyadic| if d.mantissa < 0 { low } else { high };
        let (least, greatest) = (clip.low.map(|d| code(d, most(d))), clip.high.map(|d| code(d, most(d))));
        let clamp = (low.max(least.unwrap_or(low)), high.min(greatest.unwrap_or(high)));
        Ok(Map { clamp: (clamp.0.min(clamp.1), clamp.1), ..map })
    }

    /// The range of a register in which products saturate.
    pub(super) fn buffer(&self) -> Option<(i64, i64)> {
        let bits = u32::from(self.options.buffer_bits?).clamp(2, 63);
        Some((-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1))
    }

    /// Relu and Clip wait for the rounding behind them.
    pub(super) fn clip(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (x, out) = (node.input(0), node.output(0).ok_or("it makes nothing")?);
        let Some(State::Ints { fixed, codes: false, clip }) = x.and_then(|x| self.states.get(&x)).cloned() else {
            return Err("it clips codes".into());
        };
        let bound = |i: usize, name: &str| -> Result<Option<Dyadic>, Why> {
            if node.op.name() == "Relu" {
                return Ok((i == 1).then_some(Dyadic::new(0, 0)));
            }
            if node.input(i).is_some() {
                let t = self.tensor(node, i).ok_or("a bound is only known at run time")?;
                return Ok(numbers(&t)?.first().copied());
            }
            let attr = node.op.attrs().float(name).ok().flatten();
            Ok(attr.and_then(|x| Dyadic::of_bits(x.to_bits())))
        };
        let (low, high) = (bound(1, "min")?, bound(2, "max")?);
        let words = match node.op.name() {
            "Relu" => "max(x, 0)".to_owned(),
            _ => "bounds of the codes of the rounding behind it".to_owned(),
        };
        let bounds = fixed.bounds;
        self.row(id, words, bounds);
        let both = |a: Option<Dyadic>, b: Option<Dyadic>, least: bool| match (a, b) {
            (Some(a), Some(b)) => Some(if less(a, b) == least { a } else { b }),
            (a, b) => a.or(b),
        };
        let clip = Clip { low: both(clip.low, low, false), high: both(clip.high, high, true) };
        self.states.insert(out, State::Ints { fixed, codes: false, clip });
        Ok(())
    }

    /// Applies bounds that can't wait.
    pub(super) fn settle(&mut self, x: Fixed, clip: Clip) -> Result<Fixed, Why> {
        if clip == Clip::default() {
            return Ok(x);
        }
        let zero = |d: &Dyadic| d.mantissa == 0;
        let wanted: Vec<Dyadic> = [clip.low, clip.high].into_iter().flatten().filter(|d| !zero(d)).collect();
        let x = match wanted.iter().map(|d| d.frac).max() {
            None => x,
            Some(frac) => self.expanded(x, frac)?,
        };
        let unit = x.unit.scales[0];
        let whole = |d: Dyadic| -> Result<i64, Why> {
            let n = d.in_units(unit).and_then(|n| n.checked_add(x.zero));
            n.ok_or_else(|| "a bound is no whole number of units".into())
        };
        let low = clip.low.map(whole).transpose()?.unwrap_or(i64::MIN);
        let high = clip.high.map(whole).transpose()?.unwrap_or(i64::MAX);
        let clamp = (low.min(high), high);
        let map = Map { clamp, ..Map::identity() };
        let (width, len) = (self.widths[x.register], x.shape.iter().product());
        let register = self.step(Step::Map(Box::new(map)), &[x.register], width, len);
        let bounds = (x.bounds.0.clamp(clamp.0, clamp.1), x.bounds.1.clamp(clamp.0, clamp.1));
        Ok(Fixed { register, bounds, ..x })
    }

    /// The value in a unit that is a power of two, of at least so many fraction bits: mantissas are multiplied in.
    pub(super) fn expanded(&mut self, x: Fixed, frac: i32) -> Result<Fixed, Why> {
        if x.unit.divisor != 1 {
            return Err("a mean is used before it is rounded".into());
        }
        let most = x.unit.scales.iter().map(|s| s.frac).max().unwrap_or(0).max(frac);
        if x.unit.is_plain() && x.unit.scales[0].frac == most && x.zero == 0 {
            return Ok(x);
        }
        let map = Map {
            subtract: x.zero,
            factor: x.unit.scales.iter().map(|s| s.mantissa).collect(),
            shift: x.unit.scales.iter().map(|s| s.frac.saturating_sub(most).max(-MOST_SHIFT)).collect(),
            ..Map::identity()
        };
        let bounds = product_bounds(&x, &map)?;
        let (width, len) = (Width::wide(bounds), x.shape.iter().product());
        let register = self.step(Step::Map(Box::new(map)), &[x.register], width, len);
        Ok(Fixed { register, bounds, unit: Unit::tensor(Dyadic::new(1, most)), zero: 0, ..x })
    }
}

fn words(map: &Map, bits: u32, (lo, hi): (i32, i32), options: super::Options) -> String {
    let mut text = if bits > 1 { format!("× mantissa of {bits} bits, ") } else { String::new() };
    if map.divisor != 1 {
        text.push_str(&format!("÷ {}, ", map.divisor));
    }
    let rounding = match options.rounding {
        crate::Rounding::HalfUp => "half up",
        crate::Rounding::HalfEven => "half to even",
    };
    let span = |lo: i32, hi: i32| if lo == hi { format!("{lo}") } else { format!("{lo}…{hi}") };
    text.push_str(&match (lo, hi) {
        (0, 0) if map.divisor == 1 => "no shift".to_owned(),
        (lo, hi) if hi <= 0 => format!("<< {}", span(-hi, -lo)),
        (lo, hi) => format!(">> {} ({rounding})", span(lo, hi)),
    });
    let zero = if map.add != 0 { format!(", + {}", map.add) } else { String::new() };
    format!("{text}{zero}, saturate to {}…{}", map.clamp.0, map.clamp.1)
}

pub(super) fn within(inner: (i64, i64), outer: (i64, i64)) -> bool {
    inner.0 >= outer.0 && inner.1 <= outer.1
}

fn less(a: Dyadic, b: Dyadic) -> bool {
    let key = |d: Dyadic| (d.mantissa as f64) * 2f64.powi(-d.frac);
    key(a) < key(b)
}

/// The range of what a map makes before its right shift.
fn product_bounds(x: &Fixed, map: &Map) -> Result<(i64, i64), Why> {
    let mut bounds = (0i128, 0i128);
    for (&f, &s) in map.factor.iter().zip(&map.shift) {
        for end in [x.bounds.0, x.bounds.1] {
            let v = (i128::from(end) - i128::from(x.zero)) * i128::from(f);
            let v = if s < 0 { v << (-s).min(62) } else { v };
            bounds = (bounds.0.min(v), bounds.1.max(v));
        }
    }
    let fits = |v: i128| i64::try_from(v).ok().filter(|v| bits_of((*v, *v)) <= 62);
    match (fits(bounds.0), fits(bounds.1)) {
        (Some(lo), Some(hi)) => Ok((lo, hi)),
        _ => Err("its integers would need more than 62 bits".into()),
    }
}
