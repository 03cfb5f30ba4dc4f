//! Functions of two tensors of 8-bit integers or floats.

use super::block::{BLOCK, Input, Quant, activate, integers, write};
use crate::activation::Activation;
use crate::elementwise::{Binary, BinaryOp, GRAIN};
use crate::error::{Result, exact, product};
use crate::exec::Exec;
use crate::panel::{Kind, Out, Rounding, Target};
use crate::simd::{Kernel, Simd};

const NAME: &str = "integer binary";

/// How the second operand repeats over the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// Both have as many elements.
    Same,
    /// One element for all.
    Scalar,
    /// The first is `[outer, axis, inner]`, the second goes along the axis: per channel of
    /// NCHW, or of NHWC with `inner` 1.
    Axis {
        /// Elements before the axis.
        outer: usize,
        /// Length of the axis.
        axis: usize,
        /// Elements after the axis.
        inner: usize,
    },
    /// The first is `[n, pixels, channels]` (NHWC), the second `[n, channels]`.
    Images {
        /// Images.
        n: usize,
        /// Pixels of an image.
        pixels: usize,
        /// Channels.
        channels: usize,
    },
}

impl Broadcast {
    /// Checks the lengths.
    fn check(self, a: usize, b: usize) -> Result {
        let (need_a, need_b) = match self {
            Broadcast::Same => (a, a),
            Broadcast::Scalar => (a, 1),
            Broadcast::Axis { outer, axis, inner } => (product(NAME, &[outer, axis, inner])?, axis),
            Broadcast::Images { n, pixels, channels } => {
                (product(NAME, &[n, pixels, channels])?, product(NAME, &[n, channels])?)
            }
        };
        exact(NAME, "a", a, need_a)?;
        exact(NAME, "b", b, need_b)
    }
}

/// `y = activation(op(a, b))` with `b` repeated over `a`; `y` has the elements of `a`.
///
/// # Errors
/// A slice has another length than the shape.
pub fn binary(
    exec: &Exec,
    op: BinaryOp,
    a: Quant<'_>,
    b: Quant<'_>,
    shape: Broadcast,
    activation: Activation,
    mut y: Target<'_>,
) -> Result {
    shape.check(a.len(), b.len())?;
    exact(NAME, "y", y.len(), a.len())?;
    if a.len() == 0 {
        return Ok(());
    }
    y.require_results(NAME)?;
    let work = Work { exec, op, a: a.input(), b: b.input(), activation, out: y.shared() };
    match shape {
        Broadcast::Same if work.is_plain_add() => exec.split(a.len(), GRAIN, &|range| {
            let Work { a, b, activation, out, .. } = work;
            exec.isa().dispatch(Add { a, b, activation, out, at: range.start, len: range.len() });
        }),
        Broadcast::Same => exec.split(a.len(), GRAIN, &|range| work.rows(range.start, 1, range.len(), range.start)),
        Broadcast::Scalar => exec.split(a.len(), GRAIN, &|range| work.run(range.start, range.len(), 0)),
        Broadcast::Axis { outer, axis, inner: 1 } => exec.split(outer, GRAIN / axis + 1, &|range| {
            work.rows(range.start * axis, range.len(), axis, 0);
        }),
        Broadcast::Axis { outer, axis, inner } => exec.split(outer * axis, GRAIN / inner + 1, &|range| {
            range.for_each(|row| work.run(row * inner, inner, row % axis));
        }),
        Broadcast::Images { n, pixels, channels } => exec.split(n * pixels, GRAIN / channels + 1, &|range| {
            let mut pixel = range.start;
            while pixel < range.end {
                let image = pixel / pixels;
                let end = range.end.min((image + 1) * pixels);
                work.rows(pixel * channels, end - pixel, channels, image * channels);
                pixel = end;
            }
        }),
    }
    Ok(())
}

/// What the tasks share.
struct Work<'a> {
    exec: &'a Exec,
    op: BinaryOp,
    a: Input,
    b: Input,
    activation: Activation,
    out: Out,
}

impl Work<'_> {
    fn is_plain_add(&self) -> bool {
        let ints = self.a.kind != Kind::F32 && self.b.kind != Kind::F32;
        ints && self.op == BinaryOp::Add && !self.activation.needs_pass()
    }

    /// `rows` rows of `columns` elements from `at` on, each with the elements of b from `b_at` on.
    fn rows(&self, at: usize, rows: usize, columns: usize, b_at: usize) {
        let Work { op, a, b, activation, out, .. } = *self;
        self.exec.isa().dispatch(Rows { op, a, b, activation, out, at, rows, columns, b_at, repeat: false });
    }

    /// `len` elements with one element of b.
    fn run(&self, at: usize, len: usize, b_at: usize) {
        let Work { op, a, b, activation, out, .. } = *self;
        self.exec.isa().dispatch(Rows { op, a, b, activation, out, at, rows: 1, columns: len, b_at, repeat: true });
    }
}

/// `rows × columns` elements of a and the target from `at` on lie in both, `columns` of b
/// (one, if it repeats) from `b_at` on; no other task writes them.
struct Rows {
    op: BinaryOp,
    a: Input,
    b: Input,
    activation: Activation,
    out: Out,
    at: usize,
    rows: usize,
    columns: usize,
    b_at: usize,
    repeat: bool,
}

impl Kernel for Rows {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut b = [0f32; BLOCK];
        // Several short rows at a time: `b` holds as many copies.
        let copies = if self.repeat { 1 } else { (BLOCK / self.columns).clamp(1, self.rows) };
        let width = self.columns * copies;
        for first in (0..width).step_by(BLOCK) {
            let len = BLOCK.min(width - first);
            if !self.repeat {
                for copy in 0..copies {
                    let part = len / copies;
                    // SAFETY: the struct's contract; all copies fit the block.
                    unsafe { self.b.read(s, self.b_at + first, part, b.as_mut_ptr().add(copy * part)) };
                }
            } else if first == 0 {
                // SAFETY: as above; one element.
                unsafe { self.b.read(s, self.b_at, 1, b.as_mut_ptr()) };
                b = [b[0]; BLOCK];
            }
            let total = self.rows * self.columns;
            for start in (first..total).step_by(width) {
                // The last group of short rows may be smaller.
                // SAFETY: the elements lie in both, as the struct says.
                unsafe { self.block(s, self.at + start, len.min(total - start), &b) };
            }
        }
    }
}

impl Rows {
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, s: S, at: usize, len: usize, b: &[f32; BLOCK]) {
        let mut a = [0f32; BLOCK];
        let y = a.as_mut_ptr();
        // SAFETY: passed on to the caller; `len` is at most that of the blocks.
        unsafe {
            self.a.read(s, at, len, y);
            Binary { op: self.op, a: y, b: b.as_ptr(), y, len, advance: (true, true) }.run(s);
            activate(s, self.activation, y, len);
            write(s, &self.out, at, len, y);
        }
    }
}

/// The sum of two integer tensors and a clamp, in registers: elements `at..at + len`.
struct Add {
    a: Input,
    b: Input,
    activation: Activation,
    out: Out,
    at: usize,
    len: usize,
}

impl Kernel for Add {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.a.kind, self.b.kind) {
            (Kind::I8, Kind::I8) => self.add::<S, true, true>(s),
            (Kind::I8, _) => self.add::<S, true, false>(s),
            (_, Kind::I8) => self.add::<S, false, true>(s),
            _ => self.add::<S, false, false>(s),
        }
    }
}

impl Add {
    #[inline(always)]
    fn add<S: Simd, const A: bool, const B: bool>(self, s: S) {
        let rounding = Rounding::new(s, &self.out);
        let scales = (s.splat(self.a.scale), s.splat(self.b.scale));
        let zeros = (s.splat_i(self.a.zero), s.splat_i(self.b.zero));
        let (low, high) = self.activation.bounds();
        let bounds = (s.splat(low), s.splat(high));
        let (mut at, end) = (self.at, self.at + self.len);
        while at < end {
            let n = S::LANES.min(end - at);
            // SAFETY: the elements lie in all three, and no other task writes them.
            unsafe {
                if n == S::LANES {
                    let v = self.value::<S, A, B>(s, at, S::LANES, scales, zeros, bounds);
                    self.out.put(s, &rounding, at, v, S::LANES);
                } else {
                    let v = self.value::<S, A, B>(s, at, n, scales, zeros, bounds);
                    self.out.put(s, &rounding, at, v, n);
                }
            }
            at += n;
        }
    }

    /// The sum of `n` elements from `at` on.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // Constants that stay in registers.
    unsafe fn value<S: Simd, const A: bool, const B: bool>(
        &self,
        s: S,
        at: usize,
        n: usize,
        scales: (S::F, S::F),
        zeros: (S::I, S::I),
        (low, high): (S::F, S::F),
    ) -> S::F {
        // SAFETY: passed on to the caller.
        let (a, b) =
            unsafe { (integers::<S, A>(s, self.a.data.add(at), n), integers::<S, B>(s, self.b.data.add(at), n)) };
        let a = s.mul(s.to_f32(s.sub_i(a, zeros.0)), scales.0);
        let b = s.mul(s.to_f32(s.sub_i(b, zeros.1)), scales.1);
        s.min(high, s.max(low, s.add(a, b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    fn apply(op: BinaryOp, a: f32, b: f32) -> f32 {
        match op {
            BinaryOp::Add => a + b,
            BinaryOp::Sub => a - b,
            BinaryOp::Mul => a * b,
            BinaryOp::Div => a / b,
            BinaryOp::Max => a.max(b),
            BinaryOp::Min => a.min(b),
            _ => unreachable!("not tested here"),
        }
    }

    const OPS: [BinaryOp; 6] =
        [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div, BinaryOp::Max, BinaryOp::Min];

    fn index(shape: Broadcast, i: usize) -> usize {
        match shape {
            Broadcast::Same => i,
            Broadcast::Scalar => 0,
            Broadcast::Axis { axis, inner, .. } => i / inner % axis,
            Broadcast::Images { pixels, channels, .. } => i / (pixels * channels) * channels + i % channels,
        }
    }

    fn shapes() -> Vec<(Broadcast, usize, usize)> {
        let axis = |outer, axis, inner| (Broadcast::Axis { outer, axis, inner }, outer * axis * inner, axis);
        let images =
            |n, pixels, channels| (Broadcast::Images { n, pixels, channels }, n * pixels * channels, n * channels);
        vec![
            (Broadcast::Same, 1, 1),
            (Broadcast::Same, 77, 77),
            (Broadcast::Same, 40_003, 40_003),
            (Broadcast::Scalar, 1333, 1),
            axis(3, 5, 7),
            axis(2, 3, 700),
            axis(41, 3, 1),
            axis(5, 600, 1),
            axis(3000, 17, 1),
            images(2, 9, 5),
            images(3, 400, 33),
            images(2, 3, 1030),
        ]
    }

    #[test]
    fn combines_integers_as_plain_loops_on_every_tier() {
        let mut random = Random::new(21);
        for (shape, len, b_len) in shapes() {
            let a: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            let b: Vec<i8> = (0..b_len).map(|_| random.next() as i8).collect();
            for op in OPS {
                let value = |i: usize| {
                    let x = (i32::from(a[i]) - 120) as f32 * 0.11;
                    apply(op, x, (i32::from(b[index(shape, i)]) + 3) as f32 * 0.07)
                };
                let round = |v: f32, zero: i32, (low, high): (i32, i32)| {
                    // A NaN (0 / 0) gives the smallest value.
                    let v = if v.is_nan() { f32::NEG_INFINITY } else { v * 4.5 };
                    v.round_ties_even().clamp((low - zero) as f32, (high - zero) as f32) as i32 + zero
                };
                let bytes: Vec<u8> = (0..len).map(|i| round(value(i).max(0.0), 9, (0, 255)) as u8).collect();
                let signed: Vec<i8> = (0..len).map(|i| round(value(i), -2, (-128, 127)) as i8).collect();
                for exec in execs() {
                    let (mut ga, mut gb) = (Guarded::new(&a), Guarded::new(&b));
                    let (a, b) = (Quant::U8(ga.get(), 0.11, 120), Quant::I8(gb.get(), 0.07, -3));
                    let mut y = Guarded::new(&signed);
                    y.get().fill(0);
                    let target = Target::I8(y.get(), 4.5, -2);
                    binary(&exec, op, a, b, shape, Activation::None, target).unwrap();
                    assert_eq!(y.get(), signed, "{op:?} {shape:?} {exec:?}");
                    if op == BinaryOp::Div {
                        continue; // Which operand a maximum passes on for NaN is tested elsewhere.
                    }
                    let mut y = Guarded::new(&bytes);
                    y.get().fill(0);
                    let target = Target::U8(y.get(), 4.5, 9);
                    binary(&exec, op, a, b, shape, Activation::Relu, target).unwrap();
                    assert_eq!(y.get(), bytes, "{op:?} {shape:?} {exec:?} relu");
                }
            }
        }
    }

    #[test]
    fn mixes_floats_and_integers_and_applies_activations() {
        let (a, b) = ([1.5f32, -2.0, 40.0], [7u8, 9, 255]);
        for exec in execs() {
            let mut y = [0f32; 3];
            let shape = Broadcast::Same;
            let (a, b) = (Quant::F32(&a), Quant::U8(&b, 0.5, 8));
            let act = Activation::LeakyRelu { alpha: 0.5 };
            binary(&exec, BinaryOp::Mul, a, b, shape, act, Target::F32(&mut y)).unwrap();
            assert_eq!(y, [-0.375, -0.5, 4940.0]);
            binary(&exec, BinaryOp::Add, b, b, shape, act, Target::F32(&mut y)).unwrap();
            assert_eq!(y, [-0.5, 1.0, 247.0]);
        }
    }

    #[test]
    fn refuses_lengths_that_do_not_fit_the_shape() {
        let exec = &execs()[0];
        let mut y = [0f32; 6];
        let mut run = |a: usize, b: usize, shape| {
            let (a, b) = (vec![0.0; a], vec![0.0; b]);
            binary(exec, BinaryOp::Add, Quant::F32(&a), Quant::F32(&b), shape, Activation::None, Target::F32(&mut y))
        };
        assert!(run(6, 6, Broadcast::Same).is_ok());
        assert!(run(5, 5, Broadcast::Same).is_err());
        assert!(run(6, 5, Broadcast::Same).is_err());
        assert!(run(6, 2, Broadcast::Scalar).is_err());
        assert!(run(6, 3, Broadcast::Axis { outer: 2, axis: 2, inner: 1 }).is_err());
        assert!(run(6, 3, Broadcast::Images { n: 2, pixels: 1, channels: 3 }).is_err());
        assert!(run(6, 1, Broadcast::Axis { outer: usize::MAX, axis: 1, inner: 3 }).is_err());
    }
}
