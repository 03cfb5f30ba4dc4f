//! Integers times a mantissa, shifted right with rounding, saturated; each channel in its own way.

use crate::buffer::SharedMut;
use crate::error::{Result, exact, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd};

use super::FixedElement;

const NAME: &str = "rescale";
/// Elements that one task takes at least.
const GRAIN: usize = 1 << 14;
/// Elements to which the constants of few channels are repeated, so that vectors go over rows.
const PERIOD: usize = 64;

/// `y = clamp(((v + half + (v >> shift & even)) >> shift) + add, low, high)` with `v = (x − subtract) · factor`, all in 32
/// bits that wrap: where nothing overflows, `shift` bits are taken off with halves rounded up (`half = 2^(shift − 1)`,
/// `even = 0`) or to even (`half = 2^(shift − 1) − 1`, `even = 1`); `half = even = 0` with a shift of 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rescale {
    subtract: i32,
    add: i32,
    channels: usize,
    factor: Vec<i32>,
    half: Vec<i32>,
    even: Vec<i32>,
    shift: Vec<u32>,
    low: Vec<i32>,
    high: Vec<i32>,
}

/// What a channel is rescaled by: see [`Rescale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The formula names them.
pub struct RescaleChannel {
    pub factor: i32,
    pub half: i32,
    pub even: bool,
    pub shift: u32,
    pub low: i32,
    pub high: i32,
}

impl Rescale {
    /// For rows of these channels, with zero points `subtract` of what is read and `add` of what is made.
    ///
    /// # Errors
    /// There is no channel, or a shift is longer than 31 bits.
    pub fn new(subtract: i32, add: i32, channels: &[RescaleChannel]) -> Result<Rescale> {
        require(NAME, !channels.is_empty(), "there is no channel")?;
        require(NAME, channels.iter().all(|c| c.shift < 32), "a shift is longer than 31 bits")?;
        // Few channels are repeated to a row that vectors fill.
        let period = PERIOD.div_ceil(channels.len()) * channels.len();
        let all = || channels.iter().cycle().take(period);
        Ok(Rescale {
            subtract,
            add,
            channels: channels.len(),
            factor: all().map(|c| c.factor).collect(),
            half: all().map(|c| c.half).collect(),
            even: all().map(|c| c.even.into()).collect(),
            shift: all().map(|c| c.shift).collect(),
            low: all().map(|c| c.low).collect(),
            high: all().map(|c| c.high).collect(),
        })
    }
}

/// Rescales rows of channels, which lie innermost.
///
/// # Errors
/// `y` has another length than `x`, or that is no multiple of the channels.
pub fn rescale<A: FixedElement, B: FixedElement>(exec: &Exec, x: &[A], how: &Rescale, y: &mut [B]) -> Result {
    exact(NAME, "y", y.len(), x.len())?;
    require(NAME, x.len().is_multiple_of(how.channels.max(1)), "the last row is not complete")?;
    let period = how.factor.len();
    let (grain, out) = (GRAIN.next_multiple_of(period.max(1)), SharedMut::new(y));
    exec.split(x.len(), grain, &|range| {
        // SAFETY: ranges lie within `y`, which is as long as `x`, and do not overlap.
        let y = unsafe { out.slice(range.start, range.len()) };
        exec.isa().dispatch(Rows { x: &x[range], how, y });
    });
    Ok(())
}

/// Slices of one length that begin with the first channel.
struct Rows<'a, A, B> {
    x: &'a [A],
    how: &'a Rescale,
    y: &'a mut [B],
}

impl<A: FixedElement, B: FixedElement> Kernel for Rows<'_, A, B> {
    type Out = ();

    /// A plain loop: each tier's compilation of it has that tier's vectors.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Rescale { subtract, add, factor, half, even, shift, low, high, .. } = self.how;
        let period = factor.len();
        for (x, y) in self.x.chunks(period).zip(self.y.chunks_mut(period)) {
            let n = x.len();
            let (factor, half, even) = (&factor[..n], &half[..n], &even[..n]);
            let (shift, low, high, y) = (&shift[..n], &low[..n], &high[..n], &mut y[..n]);
            for c in 0..n {
                let v = x[c].wide().wrapping_sub(*subtract).wrapping_mul(factor[c]);
                // Shifts are below 32; the mask tells the compiler so.
                let by = shift[c] & 31;
                let v = v.wrapping_add(half[c]).wrapping_add(v >> by & even[c]) >> by;
                y[c] = B::low(v.wrapping_add(*add).max(low[c]).min(high[c]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    /// The plain definition on numbers that can't overflow.
    fn plain(x: i64, subtract: i64, add: i64, c: &RescaleChannel) -> i64 {
        let v = (x - subtract) * i64::from(c.factor);
        let (unit, q) = (1i64 << c.shift, v >> c.shift);
        let rest = 2 * (v - q * unit);
        let up = if c.even { rest > unit || rest == unit && q & 1 == 1 } else { rest >= unit && c.shift > 0 };
        (q + i64::from(up) + add).clamp(c.low.into(), c.high.into())
    }

    fn channel(random: &mut Random, even: bool) -> RescaleChannel {
        let shift = random.below(20) as u32;
        let half = if shift == 0 { 0 } else { (1 << (shift - 1)) - i32::from(even) };
        let (low, high) = (-(random.below(129) as i32), random.below(128) as i32);
        RescaleChannel { factor: 1 + random.below(255) as i32, half, even: even && shift > 0, shift, low, high }
    }

    fn check<A: FixedElement, B: FixedElement + PartialEq + std::fmt::Debug>(spread: usize, even: bool) {
        let mut random = Random::new(spread as u64);
        for channels in [1, 2, 3, 5, 16, 63, 64, 65, 130] {
            let all: Vec<_> = (0..channels).map(|_| channel(&mut random, even)).collect();
            for rows in [0, 1, 2, 7, 33, 700] {
                let value = |r: &mut Random| A::low(r.below(2 * spread) as i32 - spread as i32);
                let x: Vec<A> = (0..rows * channels).map(|_| value(&mut random)).collect();
                let of = |(i, x): (usize, &A)| B::low(plain(x.wide().into(), 3, -2, &all[i % channels]) as i32);
                let want: Vec<B> = x.iter().enumerate().map(of).collect();
                let how = Rescale::new(3, -2, &all).unwrap();
                for exec in execs() {
                    let (mut x, mut y) = (Guarded::new(&x), Guarded::new(&vec![B::low(0); want.len()]));
                    rescale(&exec, x.get(), &how, y.get()).unwrap();
                    assert_eq!(y.get(), want, "{channels} channels, {rows} rows, {exec:?}");
                }
            }
        }
    }

    #[test]
    fn rounds_and_saturates_each_channel() {
        for even in [false, true] {
            check::<i32, i8>(1 << 22, even);
            check::<i8, i32>(128, even);
            check::<u8, u8>(256, even);
            check::<i16, u16>(1 << 15, even);
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let one = RescaleChannel { factor: 1, half: 0, even: false, shift: 0, low: 0, high: 9 };
        let exec = &execs()[0];
        assert!(Rescale::new(0, 0, &[]).is_err());
        assert!(Rescale::new(0, 0, &[RescaleChannel { shift: 32, ..one }]).is_err());
        let how = Rescale::new(0, 0, &[one; 2]).unwrap();
        assert!(rescale(exec, &[1i32; 4], &how, &mut [0i8; 3]).is_err());
        assert!(rescale(exec, &[1i32; 3], &how, &mut [0i8; 3]).is_err());
    }
}
