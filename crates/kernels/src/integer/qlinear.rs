//! Sums and products of two tensors of codes, formed in units of the result's codes: the arithmetic of QLinearAdd and
//! QLinearMul, which differs in its roundings from that of two dequantized tensors.

use crate::buffer::SharedMut;
use crate::elementwise::GRAIN;
use crate::error::{Result, exact, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd};

use super::block::integers;

const NAME: &str = "qlinear binary";

/// What is made of codes `a` and `b` before it is rounded half to even and saturated to a code, all in f32 and in this
/// order (ONNX Runtime's `MlasQLinearAdd` and `MlasQLinearMul`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CodeOp {
    /// `fma(a, ratio_a, fma(b, ratio_b, fixed))`.
    Add {
        /// The scales of a and b over that of the result.
        ratios: [f32; 2],
        /// The result's zero point less those of a and b in units of the result.
        fixed: f32,
    },
    /// `((a − zero_a) · (b − zero_b)) · ratio + zero`.
    Mul {
        /// The zero points of a and b.
        zeros: [i32; 2],
        /// The product of their scales over the result's.
        ratio: f32,
        /// The result's zero point.
        zero: f32,
    },
}

/// Two tensors of 8-bit codes, the second repeated over the first: that is runs of `run` elements, which take turns with
/// what the second holds, as long runs of its own or single elements.
#[derive(Clone, Copy, Debug)]
pub struct CodePair<'a> {
    /// The codes of the result's shape, by their bits.
    pub all: &'a [u8],
    /// The codes that repeat, by their bits.
    pub part: &'a [u8],
    /// Elements of a run.
    pub run: usize,
    /// Whether a run meets a single element of `part`, else a run.
    pub single: bool,
    /// Whether `part` is the first operand.
    pub swapped: bool,
    /// Whether codes, those of the result too, are i8, else u8.
    pub signed: bool,
}

impl CodePair<'_> {
    /// How many runs meet different elements of `part`.
    fn cycle(&self) -> usize {
        if self.single { self.part.len() } else { self.part.len() / self.run.max(1) }
    }

    fn check(&self, y: usize) -> Result {
        exact(NAME, "y", y, self.all.len())?;
        if self.all.is_empty() {
            return Ok(());
        }
        require(NAME, self.run > 0 && self.all.len().is_multiple_of(self.run), "the first tensor is not whole runs")?;
        let whole = self.single || self.part.len().is_multiple_of(self.run);
        let cycle = self.cycle();
        let turns = cycle > 0 && (self.all.len() / self.run).is_multiple_of(cycle);
        require(NAME, whole && turns, "the second tensor does not repeat over the first")
    }
}

/// `y = saturate(round_half_even(op(a, b)))`; NaN gives the least code.
///
/// # Errors
/// A slice has another length than the runs say.
pub fn qlinear_binary(exec: &Exec, op: CodeOp, pair: &CodePair<'_>, y: &mut [u8]) -> Result {
    pair.check(y.len())?;
    let y = SharedMut::new(y);
    exec.split(pair.all.len(), GRAIN, &|range| {
        exec.isa().dispatch(Part { op, pair, y: y.ptr(), at: range.start, end: range.end });
    });
    Ok(())
}

/// Elements `at..end`, which no other task writes; `check` has accepted the pair.
struct Part<'a> {
    op: CodeOp,
    pair: &'a CodePair<'a>,
    y: *mut u8,
    at: usize,
    end: usize,
}

impl Kernel for Part<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.pair.signed, self.pair.single) {
            (false, false) => self.runs::<S, false, false>(s),
            (false, true) => self.runs::<S, false, true>(s),
            (true, false) => self.runs::<S, true, false>(s),
            (true, true) => self.runs::<S, true, true>(s),
        }
    }
}

impl Part<'_> {
    #[inline(always)]
    fn runs<S: Simd, const SIGNED: bool, const SINGLE: bool>(&self, s: S) {
        let (run, cycle) = (self.pair.run, self.pair.cycle());
        let mut at = self.at;
        while at < self.end {
            let (turn, offset) = (at / run % cycle, at % run);
            let len = (run - offset).min(self.end - at);
            let part = if SINGLE { turn } else { turn * run + offset };
            // SAFETY: `check` made sure of both places.
            unsafe { self.line::<S, SIGNED, SINGLE>(s, at, part, len) };
            at += len;
        }
    }

    /// `len` elements from `at` on, with those of the second tensor from `part` on, or its one there.
    ///
    /// # Safety
    /// They lie in the tensors.
    #[inline(always)]
    unsafe fn line<S: Simd, const SIGNED: bool, const SINGLE: bool>(&self, s: S, at: usize, part: usize, len: usize) {
        let (all, part) = (self.pair.all.as_ptr().wrapping_add(at), self.pair.part.as_ptr().wrapping_add(part));
        let steps = Steps::new(s, self.op, SIGNED);
        let y = self.y.wrapping_add(at);
        let mut i = 0;
        // SAFETY: passed on to the caller.
        unsafe {
            let one = s.to_f32(s.splat_i(code::<SIGNED>(*part)));
            while i < len {
                let n = S::LANES.min(len - i);
                // With a length that the compiler knows, no masks are made.
                if n == S::LANES {
                    let other = if SINGLE { one } else { floats::<S, SIGNED>(s, part.add(i), S::LANES) };
                    let codes = steps.codes(s, floats::<S, SIGNED>(s, all.add(i), S::LANES), other, self.pair.swapped);
                    s.store_low8_n(y.add(i), codes, S::LANES);
                } else {
                    let other = if SINGLE { one } else { floats::<S, SIGNED>(s, part.add(i), n) };
                    let codes = steps.codes(s, floats::<S, SIGNED>(s, all.add(i), n), other, self.pair.swapped);
                    s.store_low8_n(y.add(i), codes, n);
                }
                i += n;
            }
        }
    }
}

/// The value of a code.
fn code<const SIGNED: bool>(bits: u8) -> i32 {
    if SIGNED { i32::from(bits as i8) } else { i32::from(bits) }
}

/// `n` codes as floats.
///
/// # Safety
/// `p` covers them.
#[inline(always)]
unsafe fn floats<S: Simd, const SIGNED: bool>(s: S, p: *const u8, n: usize) -> S::F {
    // SAFETY: passed on to the caller.
    s.to_f32(unsafe { integers::<S, SIGNED>(s, p, n) })
}

/// A [`CodeOp`] in vectors.
struct Steps<S: Simd> {
    op: CodeOp,
    /// Ratios of a sum, or zero points of a product: of a and b.
    a: S::F,
    b: S::F,
    ratio: S::F,
    fixed: S::F,
    low: S::F,
    high: S::F,
}

impl<S: Simd> Steps<S> {
    #[inline(always)]
    fn new(s: S, op: CodeOp, signed: bool) -> Self {
        let ([a, b], ratio, fixed) = match op {
            CodeOp::Add { ratios, fixed } => (ratios, 1.0, fixed),
            CodeOp::Mul { zeros, ratio, zero } => (zeros.map(|z| z as f32), ratio, zero),
        };
        let (low, high) = if signed { (-128.0, 127.0) } else { (0.0, 255.0) };
        let splat = |x| s.splat(x);
        Steps {
            op,
            a: splat(a),
            b: splat(b),
            ratio: splat(ratio),
            fixed: splat(fixed),
            low: splat(low),
            high: splat(high),
        }
    }

    #[inline(always)]
    fn codes(&self, s: S, all: S::F, part: S::F, swapped: bool) -> S::I {
        let (a, b) = if swapped { (part, all) } else { (all, part) };
        let v = match self.op {
            CodeOp::Add { .. } => s.mul_add(a, self.a, s.mul_add(b, self.b, self.fixed)),
            // Differences and products of codes are exact in f32.
            CodeOp::Mul { .. } => s.add(s.mul(s.mul(s.sub(a, self.a), s.sub(b, self.b)), self.ratio), self.fixed),
        };
        // `max` passes its second operand on when the first is NaN.
        s.to_i32(s.max(s.min(self.high, v), self.low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    fn plain(op: CodeOp, a: i32, b: i32, signed: bool) -> u8 {
        let v = match op {
            CodeOp::Add { ratios: [ra, rb], fixed } => (a as f32).mul_add(ra, (b as f32).mul_add(rb, fixed)),
            CodeOp::Mul { zeros: [za, zb], ratio, zero } => ((a - za) * (b - zb)) as f32 * ratio + zero,
        };
        let (low, high) = if signed { (-128.0, 127.0) } else { (0.0, 255.0) };
        f32::max(v, low).min(high).round_ties_even() as i32 as u8
    }

    fn value(bits: u8, signed: bool) -> i32 {
        if signed { code::<true>(bits) } else { code::<false>(bits) }
    }

    /// Runs of the first tensor, their length, and what the second has: runs or single elements.
    const SHAPES: [(usize, usize, usize, bool); 8] = [
        (1, 1, 1, false),
        (1, 40_003, 1, false),
        (12, 37, 1, false),
        (12, 16, 3, false),
        (6, 1000, 3, true),
        (40, 3, 8, true),
        (1, 777, 1, true),
        (5, 4096, 1, false),
    ];

    #[test]
    fn combines_codes_as_plain_loops_on_every_tier() {
        let mut random = Random::new(31);
        // Ratios of a half make ties.
        let ops = [
            CodeOp::Add { ratios: [0.5, 0.5], fixed: 3.0 },
            CodeOp::Add { ratios: [0.713, 1.3], fixed: -61.37 },
            CodeOp::Mul { zeros: [3, -7], ratio: 0.5, zero: 11.0 },
            CodeOp::Mul { zeros: [120, 3], ratio: 0.0123, zero: 60.0 },
        ];
        for (runs, run, cycle, single) in SHAPES {
            let all: Vec<u8> = (0..runs * run).map(|_| random.next() as u8).collect();
            let part: Vec<u8> = (0..cycle * if single { 1 } else { run }).map(|_| random.next() as u8).collect();
            for (op, exec) in ops.iter().flat_map(|&op| execs().into_iter().map(move |e| (op, e))) {
                for (signed, swapped) in [(false, false), (false, true), (true, false), (true, true)] {
                    let want = |i: usize| {
                        let turn = i / run % cycle;
                        let other = part[if single { turn } else { turn * run + i % run }];
                        let (x, o) = (value(all[i], signed), value(other, signed));
                        if swapped { plain(op, o, x, signed) } else { plain(op, x, o, signed) }
                    };
                    let want: Vec<u8> = (0..all.len()).map(want).collect();
                    let (mut a, mut p, mut y) = (Guarded::new(&all), Guarded::new(&part), Guarded::new(&all));
                    let pair = CodePair { all: a.get(), part: p.get(), run, single, swapped, signed };
                    qlinear_binary(&exec, op, &pair, y.get()).unwrap();
                    assert_eq!(y.get(), want, "{op:?} {runs}×{run} {exec:?} signed {signed} swapped {swapped}");
                }
            }
        }
    }

    #[test]
    fn gives_the_least_code_for_what_is_no_number() {
        for exec in execs() {
            let pair = CodePair { all: &[1; 20], part: &[0], run: 20, single: true, swapped: false, signed: true };
            let mut y = [0; 20];
            let op = CodeOp::Add { ratios: [f32::INFINITY, f32::INFINITY], fixed: 0.0 };
            qlinear_binary(&exec, op, &pair, &mut y).unwrap();
            assert_eq!(y, [0x80; 20]);
        }
    }

    #[test]
    fn refuses_tensors_that_do_not_repeat() {
        let exec = &execs()[0];
        let op = CodeOp::Add { ratios: [1.0, 1.0], fixed: 0.0 };
        let run = |all: usize, part: usize, run: usize, single: bool, y: usize| {
            let (all, part, mut y) = (vec![0; all], vec![0; part], vec![0; y]);
            let pair = CodePair { all: &all, part: &part, run, single, swapped: false, signed: false };
            qlinear_binary(exec, op, &pair, &mut y)
        };
        assert!(run(6, 3, 3, false, 6).is_ok());
        assert!(run(0, 0, 0, false, 0).is_ok());
        assert!(run(6, 3, 3, false, 5).is_err());
        assert!(run(6, 3, 4, false, 6).is_err());
        assert!(run(6, 4, 3, false, 6).is_err());
        assert!(run(6, 0, 3, false, 6).is_err());
        assert!(run(6, 0, 3, true, 6).is_err());
        assert!(run(6, 4, 3, true, 6).is_err());
        assert!(run(6, 3, 0, true, 6).is_err());
    }
}
