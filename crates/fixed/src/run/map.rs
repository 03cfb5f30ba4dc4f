//! Element by element: multiply by a mantissa, shift with rounding, add, saturate.

use narrowbit_kernels::integer::{Rescale, RescaleChannel};
use narrowbit_kernels::{Exec, KernelError, integer};

use super::data::{Data, Int, Width, with_ints, with_narrow};
use super::parts;

/// What a rounding shift does halfway between two integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// Up, `⌊x + 1/2⌋`: fixed-point hardware (QuantizeML, Vitis' activations).
    HalfUp,
    /// To the even one: QuantizeLinear.
    #[default]
    HalfEven,
}

/// `saturate(round((x − subtract) · factor / (divisor · 2^shift)) + add)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Taken off first: a zero point.
    pub subtract: i64,
    /// The mantissa, of each channel (innermost in memory) or of all.
    pub factor: Vec<i64>,
    /// Right shifts, as many; negative for left.
    pub shift: Vec<i32>,
    /// An integer to divide by, for means.
    pub divisor: i64,
    /// At halfway.
    pub rounding: Rounding,
    /// Where the product with the mantissa saturates, if it does.
    pub buffer: Option<(i64, i64)>,
    /// Added after the shift: a zero point.
    pub add: i64,
    /// The least and the greatest result, as many.
    pub clamp: Vec<(i64, i64)>,
}

impl Map {
    /// Nothing but what is set then.
    pub fn identity() -> Map {
        Map {
            subtract: 0,
            factor: vec![1],
            shift: vec![0],
            divisor: 1,
            rounding: Rounding::default(),
            buffer: None,
            add: 0,
            clamp: vec![(i64::MIN, i64::MAX)],
        }
    }

    /// The least and the greatest result of any channel.
    pub fn range(&self) -> (i64, i64) {
        self.clamp.iter().fold((i64::MAX, i64::MIN), |(lo, hi), c| (lo.min(c.0), hi.max(c.1)))
    }

    /// The result for one integer of a channel. Lowering has proved that no step overflows.
    #[inline(always)]
    pub fn apply(&self, x: i64, channel: usize) -> i64 {
        let mut v = x.wrapping_sub(self.subtract).wrapping_mul(self.factor[channel]);
        if let Some((low, high)) = self.buffer {
            v = v.clamp(low, high);
        }
        let v = match (self.shift[channel], self.divisor) {
            (s, 1) if s <= 0 => v << (-s).min(63),
            (s, 1) => shift_right(v, s as u32, self.rounding),
            (s, d) => divide(v, d, s, self.rounding),
        };
        let (least, greatest) = self.clamp[channel];
        v.wrapping_add(self.add).clamp(least, greatest)
    }

    /// The same on the kernel of 32 bits, where these hold all that integers within `bounds` can become on the way.
    pub fn narrow(&self, bounds: (i64, i64)) -> Option<Rescale> {
        let channels: Option<Vec<_>> = (0..self.factor.len()).map(|c| self.narrow_channel(c, bounds)).collect();
        let (subtract, add) = (i32::try_from(self.subtract).ok()?, i32::try_from(self.add).ok()?);
        Rescale::new(subtract, add, &channels?).ok().filter(|_| self.divisor == 1)
    }

    fn narrow_channel(&self, channel: usize, bounds: (i64, i64)) -> Option<RescaleChannel> {
        let shift = self.shift[channel];
        let (left, right) = (u32::try_from(-shift).unwrap_or(0), u32::try_from(shift).unwrap_or(0));
        let (half, even) = match (right, self.rounding) {
            (0, _) => (0, false),
            (1..31, Rounding::HalfUp) => (1 << (right - 1), false),
            (1..31, Rounding::HalfEven) => ((1 << (right - 1)) - 1, true),
            _ => return None,
        };
        let own = self.factor[channel];
        let factor = own.checked_mul(1i64.checked_shl(left).filter(|_| left < 31)?)?;
        for end in [bounds.0, bounds.1] {
            let x = end.checked_sub(self.subtract).filter(|&x| fits(x))?;
            let (product, v) = (x.checked_mul(own)?, x.checked_mul(factor)?);
            let kept = self.buffer.is_none_or(|b| (b.0..=b.1).contains(&product));
            let sum = v + i64::from(half) + i64::from(even);
            if !(kept && fits(v) && fits(sum) && fits((sum >> right) + self.add)) {
                return None;
            }
        }
        let (least, greatest) = self.clamp[channel];
        let end = |x: i64| x.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        let possible = least <= i32::MAX.into() && greatest >= i32::MIN.into();
        let factor = i32::try_from(factor).ok()?;
        possible.then_some(RescaleChannel { factor, half, even, shift: right, low: end(least), high: end(greatest) })
    }
}

fn fits(x: i64) -> bool {
    i32::try_from(x).is_ok()
}

/// As [`map`], on the kernel.
pub(super) fn rescale(exec: &Exec, x: &Data, width: Width, how: &Rescale) -> Result<Data, KernelError> {
    let mut y = Data::zeros(width, x.len());
    let wide = || KernelError::Invalid { kernel: "rescale", what: "its integers have 64 bits" };
    with_narrow!(x, x => with_narrow!(&mut y, y => integer::rescale(exec, x, how, y)?, wide()), wide());
    Ok(y)
}

#[inline(always)]
fn shift_right(v: i64, by: u32, rounding: Rounding) -> i64 {
    let half = 1i64 << (by - 1);
    match rounding {
        Rounding::HalfUp => v.wrapping_add(half) >> by,
        // Halfway and even below: one less than half is added.
        Rounding::HalfEven => v.wrapping_add(half - 1 + (v >> by & 1)) >> by,
    }
}

fn divide(v: i64, divisor: i64, shift: i32, rounding: Rounding) -> i64 {
    let (v, d) = if shift >= 0 {
        (i128::from(v), i128::from(divisor) << shift.min(63))
    } else {
        (i128::from(v) << (-shift).min(62), i128::from(divisor))
    };
    let (q, r) = (v.div_euclid(d), 2 * v.rem_euclid(d));
    let up = match rounding {
        Rounding::HalfUp => r >= d,
        Rounding::HalfEven => r > d || r == d && q & 1 == 1,
    };
    (q + i128::from(up)) as i64
}

/// Maps all of `x` to another width.
pub(super) fn map(exec: &Exec, x: &Data, width: Width, map: &Map) -> Data {
    let mut y = Data::zeros(width, x.len());
    with_ints!(x, x => with_ints!(&mut y, y => run(exec, x, y, map)));
    y
}

fn run<A: Int, B: Int>(exec: &Exec, x: &[A], y: &mut [B], map: &Map) {
    let channels = map.factor.len();
    // Whole rows of channels.
    parts(exec, y, channels, &|from, y| {
        let rows = x[from..][..y.len()].chunks(channels).zip(y.chunks_mut(channels));
        for (x, y) in rows {
            for (c, (x, y)) in x.iter().zip(y).enumerate() {
                *y = B::low(map.apply(x.wide(), c));
            }
        }
    });
}

/// How two operands become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// `(a << left) + (b << right)`.
    Add(u32, u32),
    /// `(a << left) − (b << right)`.
    Sub(u32, u32),
    /// `a · b`.
    Mul,
    /// `(a << left) / (b << right)`, the fraction cut off. Lowering has proved that `b` is above zero.
    Div(u32, u32),
}

/// Joins two tensors of one size, less their zero points.
pub(super) fn join(exec: &Exec, (a, b): (&Data, &Data), zeros: (i64, i64), width: Width, how: Join) -> Data {
    let mut y = Data::zeros(width, a.len());
    with_ints!(a, a => with_ints!(b, b => with_ints!(&mut y, y => joined(exec, (a, b), zeros, y, how))));
    y
}

/// What is done to equal parts of both operands and the result.
type Rows<'a, A, B, C> = dyn Fn(&[A], &[B], &mut [C]) + Sync + 'a;

fn joined<A: Int, B: Int, C: Int>(exec: &Exec, (a, b): (&[A], &[B]), (za, zb): (i64, i64), y: &mut [C], how: Join) {
    let mut each = |f: &Rows<'_, A, B, C>| {
        parts(exec, y, 1, &|from, y: &mut [C]| f(&a[from..][..y.len()], &b[from..][..y.len()], y));
    };
    macro_rules! each {
        ($f:expr) => {
            each(&|a, b, y| {
                for ((a, b), y) in a.iter().zip(b).zip(y) {
                    *y = C::low($f(a.wide().wrapping_sub(za), b.wide().wrapping_sub(zb)));
                }
            })
        };
    }
    match how {
        Join::Add(l, r) => each!(|a: i64, b: i64| (a << l).wrapping_add(b << r)),
        Join::Sub(l, r) => each!(|a: i64, b: i64| (a << l).wrapping_sub(b << r)),
        Join::Mul => each!(|a: i64, b: i64| a.wrapping_mul(b)),
        Join::Div(l, r) => each!(|a: i64, b: i64| (a << l).checked_div(b << r).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowbit_kernels::Isa;

    fn exec() -> Exec {
        Exec::new(Isa::detect(), 2)
    }

    #[test]
    fn gives_the_same_on_the_kernel() {
        let x: Vec<i64> = (0..600).map(|i| (i * i * 7919 % 4001 - 2000) * 33).collect();
        let data = Data::of(Width::I32, &x);
        for rounding in [Rounding::HalfUp, Rounding::HalfEven] {
            let map = Map {
                subtract: 5,
                factor: vec![1, 201, 77],
                shift: vec![-2, 9, 30],
                rounding,
                add: 3,
                clamp: vec![(-128, 127), (-100, 90), (i64::MIN, i64::MAX)],
                ..Map::identity()
            };
            let narrow = map.narrow((-66_000, 66_000)).unwrap();
            for width in [Width::I8, Width::U8, Width::I16, Width::I32] {
                let found = rescale(&exec(), &data, width, &narrow).unwrap();
                assert_eq!(found, super::map(&exec(), &data, width, &map), "{rounding:?}");
            }
        }
    }

    #[test]
    fn keeps_64_bits_where_32_may_overflow() {
        let bounds = (-1000, 1000);
        let one = Map { factor: vec![200], shift: vec![4], ..Map::identity() };
        assert!(one.narrow(bounds).is_some());
        assert!(one.narrow((0, 11_000_000)).is_none(), "the product");
        assert!(one.narrow((i64::MIN, 0)).is_none(), "the difference");
        let saturates = Map { buffer: Some((-32768, 32767)), ..one.clone() };
        assert!(saturates.narrow(bounds).is_none(), "the buffer");
        assert!(Map { buffer: Some((-200_000, 200_000)), ..one.clone() }.narrow(bounds).is_some());
        assert!(Map { shift: vec![31], ..one.clone() }.narrow(bounds).is_none(), "half");
        assert!(Map { shift: vec![-16], ..one.clone() }.narrow(bounds).is_none(), "a left shift");
        assert!(Map { divisor: 3, ..one.clone() }.narrow(bounds).is_none(), "a mean");
        assert!(Map { add: i64::from(i32::MAX), ..one }.narrow(bounds).is_none(), "the zero point");
        assert!(rescale(&exec(), &Data::I64(vec![1]), Width::I8, &Map::identity().narrow((0, 1)).unwrap()).is_err());
    }
}
