//! Pixels that are mixed of others by a list for each.

use crate::error::{Result, exact, product, require};
use crate::exec::Exec;
use crate::simd::{Kernel, Simd, low_bits};

const NAME: &str = "mix_pixels";

/// A pixel of the source and its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tap {
    /// The pixel's number.
    pub pixel: u32,
    /// Its weight; a pixel of weight 0 is not read.
    pub weight: f32,
}

/// `y[i] = Σ weight · x[pixel]` over the `each` taps of pixel `i`, in their order and added up in 32 bits, each product and sum
/// rounded once; pixels have `c` channels side by side. Runs on the calling thread.
///
/// # Errors
/// A slice has another length than `x` `[pixels, c]`, `taps` `[results, each]` and `y` `[results, c]`, or a tap with a weight is
/// not in `x`.
pub fn mix_pixels(exec: &Exec, c: usize, x: &[f32], taps: &[Tap], each: usize, y: &mut [f32]) -> Result {
    require(NAME, c > 0 && each > 0, "there are no channels or no taps")?;
    require(NAME, x.len().is_multiple_of(c) && taps.len().is_multiple_of(each), "there are parts of pixels")?;
    exact(NAME, "y", y.len(), product(NAME, &[taps.len() / each, c])?)?;
    let pixels = x.len() / c;
    let inside = taps.iter().all(|t| t.weight == 0.0 || (t.pixel as usize) < pixels);
    require(NAME, inside, "a tap is not in the image")?;
    exec.isa().dispatch(Mix { c, x, taps, each, y });
    Ok(())
}

struct Mix<'a> {
    c: usize,
    x: &'a [f32],
    taps: &'a [Tap],
    each: usize,
    y: &'a mut [f32],
}

impl Kernel for Mix<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (taps, y) in self.taps.chunks_exact(self.each).zip(self.y.chunks_exact_mut(self.c)) {
            let mut i = 0;
            // Several vectors at a time, so that their sums overlap.
            while i + 4 * S::LANES <= self.c {
                let mut sums = [s.splat(0.0); 4];
                for tap in taps.iter().filter(|t| t.weight != 0.0) {
                    let weight = s.splat(tap.weight);
                    // SAFETY: `mix_pixels` checked that the pixel is in `x`, and the vectors are within its channels.
                    unsafe {
                        let from = self.x.as_ptr().add(tap.pixel as usize * self.c + i);
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = s.mul_add(weight, s.load(from.add(v * S::LANES)), *sum);
                        }
                    }
                }
                for (v, &sum) in sums.iter().enumerate() {
                    // SAFETY: within the result's channels.
                    unsafe { s.store(y.as_mut_ptr().add(i + v * S::LANES), sum) };
                }
                i += 4 * S::LANES;
            }
            while i < self.c {
                let bits = low_bits((self.c - i).min(S::LANES));
                let mut sum = s.splat(0.0);
                for tap in taps.iter().filter(|t| t.weight != 0.0) {
                    // SAFETY: as above, of the lanes that are left.
                    let x = unsafe { s.load_bits(self.x.as_ptr().add(tap.pixel as usize * self.c + i), bits) };
                    sum = s.mul_add(s.splat(tap.weight), x, sum);
                }
                // SAFETY: as above.
                unsafe { s.store_bits(y.as_mut_ptr().add(i), sum, bits) };
                i += S::LANES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, assert_close, assert_same_everywhere, bits, execs};

    #[test]
    fn adds_up_what_the_taps_say() {
        let mut r = Random::new(12);
        for c in [1, 3, 8, 31, 64, 83] {
            let (pixels, results, each) = (11, 7, 4);
            let mut x = r.vec(pixels * c);
            // A weight of 0 hides what is no number.
            x[..c].fill(f32::NAN);
            let tap = |i: usize, r: &mut Random| match i % 5 {
                0 => Tap { pixel: 0, weight: 0.0 },
                1 => Tap { pixel: u32::MAX, weight: 0.0 },
                _ => Tap { pixel: 1 + r.below(pixels - 1) as u32, weight: r.unit() },
            };
            let taps: Vec<Tap> = (0..results * each).map(|i| tap(i, &mut r)).collect();
            let value = |i: usize| {
                let of = taps[i / c * each..][..each].iter().filter(|t| t.weight != 0.0);
                of.map(|t| f64::from(t.weight) * f64::from(x[t.pixel as usize * c + i % c])).sum::<f64>() as f32
            };
            let want: Vec<f32> = (0..results * c).map(value).collect();
            for exec in execs() {
                let mut y = vec![9.0; want.len()];
                mix_pixels(&exec, c, &x, &taps, each, &mut y).unwrap();
                assert_close(&y, &want, 1e-6, &format!("{c} channels {exec:?}"));
            }
            assert_same_everywhere(&format!("{c} channels"), &|exec, edge| {
                let (mut x, mut y) = (Guarded::at(edge, &x), Guarded::at(edge, &vec![9f32; want.len()]));
                mix_pixels(exec, c, x.get(), &taps, each, y.get()).unwrap();
                bits(y.get())
            });
        }
    }

    #[test]
    fn refuses_taps_outside_of_the_image() {
        let exec = &execs()[0];
        let (x, tap) = ([1.0; 6], |pixel, weight| [Tap { pixel, weight }]);
        let run = |c, taps: &[Tap], each, y: &mut [f32]| mix_pixels(exec, c, &x, taps, each, y);
        assert!(run(2, &tap(2, 1.0), 1, &mut [0.0; 2]).is_ok());
        assert!(run(2, &tap(3, 1.0), 1, &mut [0.0; 2]).is_err());
        assert!(run(2, &tap(2, 1.0), 1, &mut [0.0; 3]).is_err());
        assert!(run(2, &tap(2, 1.0), 2, &mut [0.0; 2]).is_err());
        assert!(run(4, &tap(0, 1.0), 1, &mut [0.0; 4]).is_err());
        assert!(run(0, &tap(0, 1.0), 1, &mut []).is_err());
    }
}
