//! QuantizeLinear, DequantizeLinear, Relu and Clip.

use narrowbit_ir::{Node, NodeId};
use narrowbit_tensor::DType;

use super::constant::{numbers, range, width_of};
use super::{Clip, Lowering, State, Why};
use crate::dyadic::{Dyadic, shifted};
use crate::proof::bits_of;
use crate::run::{Map, Register, Step, Width};
use crate::value::{Fixed, Layout, Unit};

/// The axis of an image's channels, from the back.
const IMAGE_CHANNELS: usize = 3;
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
        let zero = one_zero(&zeros)?;
        let fixed = match unit.axis {
            None => fixed,
            Some(axis) => self.by_channel(fixed, axis)?,
        };
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
        let zero = one_zero(&zeros)?;
        if let Some(scale) = unit.scales.iter().find(|s| !s.is_power_of_two()) {
            return Err(format!("its scale is no power of two but {} · 2^{}", scale.mantissa, -scale.frac));
        }
        let axis = unit.axis.or((clip.channels() > 1).then_some(IMAGE_CHANNELS));
        let x = match axis {
            None => x,
            Some(a) if x.unit.axis.is_none_or(|own| own == a) => self.by_channel(x, a)?,
            Some(_) => return Err("its scales lie along another axis than those of its input".into()),
        };
        let map = self.requantizing(&x, &unit.scales, zero, width, &clip)?;
        let buffer = map.buffer;
        let product = product_bounds(&x, &map)?;
        let shifts = map.shift.iter().fold((i32::MAX, i32::MIN), |(lo, hi), &s| (lo.min(s), hi.max(s)));
        let bits = x.unit.bits();
        let words = words(&map, x.unit.bits(), shifts, self.options);
        let bounds = map.range();
        let same = map.factor.iter().all(|&f| f == 1) && shifts == (0, 0) && map.divisor == 1;
        let free = map.clamp.iter().all(|&c| within(x.bounds, c));
        let alias = same && x.zero == zero && self.widths[x.register] == width && free;
        let to = match alias {
            true => x.register,
            false => self.mapped(&x, map, width),
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

    /// A map of each integer, on the kernel where 32 bits hold what it needs.
    pub(super) fn mapped(&mut self, x: &Fixed, map: Map, width: Width) -> Register {
        let narrow = self.widths[x.register].is_narrow() && width.is_narrow();
        let step = match map.narrow(x.bounds).filter(|_| narrow) {
            Some(r) => Step::Rescale(Box::new(r)),
            None => Step::Map(Box::new(map)),
        };
        self.step(step, &[x.register], width, x.shape.iter().product())
    }

    /// The channels of an image, or of rows, innermost in memory.
    fn by_channel(&mut self, x: Fixed, axis: usize) -> Result<Fixed, Why> {
        let layout = Layout::natural(x.shape.len(), Some(axis));
        if axis != 1 && layout == Layout::Plain {
            return Err("an activation has scales along an axis that is not that of its channels".into());
        }
        Ok(self.laid(x, layout))
    }

    fn requantizing(&self, x: &Fixed, scales: &[Dyadic], zero: i64, width: Width, clip: &Clip) -> Result<Map, Why> {
        let bits = x.unit.bits();
        if bits > self.options.multiplier_bits {
            let most = self.options.multiplier_bits;
            return Err(format!("its input's scale has a mantissa of {bits} bits, and multipliers have {most}"));
        }
        let channels = x.unit.scales.len().max(scales.len()).max(clip.channels());
        let at = |all: &[Dyadic], c: usize| all.get(c).or(all.first()).copied();
        let (own, next) = (|c: usize| at(&x.unit.scales, c), |c: usize| at(scales, c));
        let shift = |c: usize| own(c)?.frac.checked_sub(next(c)?.frac).filter(|s| s.abs() <= MOST_SHIFT);
        let shifts: Option<Vec<i32>> = (0..channels).map(shift).collect();
        let ends = range(width);
        Ok(Map {
            subtract: x.zero,
            factor: (0..channels).filter_map(own).map(|s| s.mantissa).collect(),
            shift: shifts.ok_or("its shift is longer than 62 bits")?,
            divisor: x.unit.divisor,
            rounding: self.options.rounding,
            // What a mantissa multiplies lies in the buffer, too.
            buffer: self.buffer().filter(|_| bits > 1),
            add: zero,
            clamp: (0..channels)
                .map(|c| {
                    let code = |d: Dyadic| Some(self.code_of(d, next(c)?, zero, ends));
                    let (least, greatest) = (at(&clip.low, c).and_then(code), at(&clip.high, c).and_then(code));
                    let high = ends.1.min(greatest.unwrap_or(ends.1));
                    (ends.0.max(least.unwrap_or(ends.0)).min(high), high)
                })
                .collect(),
        })
    }

    /// The code of a number, within the ends of the codes.
    fn code_of(&self, d: Dyadic, scale: Dyadic, zero: i64, (low, high): (i64, i64)) -> i64 {
        let shift = d.frac.saturating_sub(scale.frac);
        if d.mantissa == 0 || shift > MOST_SHIFT {
            return zero.clamp(low, high);
        }
        if shifted(d.mantissa, (-shift).max(0) as u32).is_none() {
            return if d.mantissa < 0 { low } else { high };
        }
        let clamp = vec![(low, high)];
        let one = Map { factor: vec![d.mantissa], shift: vec![shift], add: zero, clamp, ..Map::identity() };
        Map { rounding: self.options.rounding, ..one }.apply(1, 0)
    }

    /// The range of a register in which products saturate.
    pub(super) fn buffer(&self) -> Option<(i64, i64)> {
        let bits = u32::from(self.options.buffer_bits?).clamp(2, 63);
        Some((-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1))
    }

    /// Relu, Clip, Min and Max wait for the rounding behind them.
    pub(super) fn clip(&mut self, id: NodeId, node: &Node) -> Result<(), Why> {
        let (x, out) = (node.input(0), node.output(0).ok_or("it makes nothing")?);
        let Some(State::Ints { fixed, codes: false, clip }) = x.and_then(|x| self.states.get(&x)).cloned() else {
            return Err("it clips codes".into());
        };
        let bound = |i: usize, name: &str| -> Result<Vec<Dyadic>, Why> {
            if node.input(i).is_some() {
                let t = self.tensor(node, i).ok_or("a bound is only known at run time")?;
                let channels = fixed.shape.len() == 4 && t.shape() == [1, fixed.shape[1], 1, 1];
                return if t.len() == 1 || channels {
                    numbers(&t)
                } else {
                    Err("its bounds are no row of channels".into())
                };
            }
            let attr = node.op.attrs().float(name).ok().flatten();
            Ok(attr.and_then(|x| Dyadic::of_bits(x.to_bits())).into_iter().collect())
        };
        let (low, high) = match node.op.name() {
            "Relu" => (vec![Dyadic::new(0, 0)], Vec::new()),
            "Min" | "Max" if node.inputs.len() != 2 => return Err("it has not two operands".into()),
            "Min" => (Vec::new(), bound(1, "")?),
            "Max" => (bound(1, "")?, Vec::new()),
            _ => (bound(1, "min")?, bound(2, "max")?),
        };
        let words = match node.op.name() {
            "Relu" => "max(x, 0)".to_owned(),
            _ => "bounds of the codes of the rounding behind it".to_owned(),
        };
        let bounds = fixed.bounds;
        self.row(id, words, bounds);
        let clip = Clip { low: tighter(&clip.low, &low, false), high: tighter(&clip.high, &high, true) };
        self.states.insert(out, State::Ints { fixed, codes: false, clip });
        Ok(())
    }

    /// Applies bounds that can't wait.
    pub(super) fn settle(&mut self, x: Fixed, clip: Clip) -> Result<Fixed, Why> {
        if clip == Clip::default() {
            return Ok(x);
        }
        let zero = |d: &Dyadic| d.mantissa == 0;
        let x = if clip.channels() > 1 { self.by_channel(x, IMAGE_CHANNELS)? } else { x };
        let wanted: Vec<Dyadic> = clip.low.iter().chain(&clip.high).copied().filter(|d| !zero(d)).collect();
        let x = match wanted.iter().map(|d| d.frac).max() {
            None => x,
            Some(frac) => self.expanded(x, frac)?,
        };
        let unit = x.unit.scales[0];
        let whole = |d: &Dyadic| -> Result<i64, Why> {
            let n = d.in_units(unit).and_then(|n| n.checked_add(x.zero));
            n.ok_or_else(|| "a bound is no whole number of units".into())
        };
        let low = clip.low.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
        let high = clip.high.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
        let at = |all: &[i64], c: usize, none: i64| all.get(c).or(all.first()).copied().unwrap_or(none);
        let ends = |c: usize| (at(&low, c, i64::MIN), at(&high, c, i64::MAX));
        let clamp: Vec<_> = (0..clip.channels()).map(ends).map(|(low, high)| (low.min(high), high)).collect();
        let map = Map { factor: vec![1; clamp.len()], shift: vec![0; clamp.len()], clamp, ..Map::identity() };
        let clamp = map.range();
        let register = self.mapped(&x, map, self.widths[x.register]);
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
            clamp: vec![(i64::MIN, i64::MAX); x.unit.scales.len()],
            ..Map::identity()
        };
        let bounds = product_bounds(&x, &map)?;
        let register = self.mapped(&x, map, Width::wide(bounds));
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
    let (least, greatest) = map.range();
    format!("{text}{zero}, saturate to {least}…{greatest}")
}

/// The one zero point of all channels.
fn one_zero(zeros: &[i64]) -> Result<i64, Why> {
    let first = *zeros.first().ok_or("it has no zero point")?;
    if zeros.iter().any(|&z| z != first) {
        return Err("the zero points of its channels differ".into());
    }
    Ok(first)
}

impl Clip {
    /// The number of bounds: 1 with one for all.
    fn channels(&self) -> usize {
        self.low.len().max(self.high.len()).max(1)
    }
}

/// The tighter of two bounds: the lesser one where `least`, else the greater one.
fn tighter(a: &[Dyadic], b: &[Dyadic], least: bool) -> Vec<Dyadic> {
    let at = |all: &[Dyadic], c: usize| all.get(c).or(all.first()).copied();
    let one = |c: usize| match (at(a, c), at(b, c)) {
        (Some(a), Some(b)) => Some(if less(a, b) == least { a } else { b }),
        (a, b) => a.or(b),
    };
    (0..a.len().max(b.len())).filter_map(one).collect()
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
