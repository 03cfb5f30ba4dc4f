//! Pixels that go to, or come from, places that are steps apart.

use crate::buffer::SharedMut;
use crate::error::{Result, exact, product, require};
use crate::exec::Exec;

const NAME: &str = "interleave";

/// Where the pixels of a part of an image stand in the whole, over up to three axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interleave {
    /// Images.
    pub n: usize,
    /// Extents of the part.
    pub made: [usize; 3],
    /// How many of them count, from the start.
    pub counts: [usize; 3],
    /// The place of the first one in the whole.
    pub first: [usize; 3],
    /// Places from one to the next.
    pub steps: [usize; 3],
    /// Extents of the whole.
    pub out: [usize; 3],
    /// Bytes of a pixel.
    pub bytes: usize,
}

impl Interleave {
    /// Bytes of the part.
    ///
    /// # Errors
    /// They are more than the address space has.
    pub fn part_len(&self) -> Result<usize> {
        let [a, b, c] = self.made;
        product(NAME, &[self.n, a, b, c, self.bytes])
    }

    fn check(&self, part: usize, whole: usize) -> Result {
        exact(NAME, "part", part, self.part_len()?)?;
        let [a, b, c] = self.out;
        exact(NAME, "whole", whole, product(NAME, &[self.n, a, b, c, self.bytes])?)?;
        let fits = (0..3).all(|i| {
            let last = self.counts[i].checked_sub(1).and_then(|n| n.checked_mul(self.steps[i]));
            let last = last.map_or(Some(0), |n| n.checked_add(self.first[i]));
            self.counts[i] <= self.made[i] && (self.counts[i] == 0 || last.is_some_and(|n| n < self.out[i]))
        });
        require(NAME, fits && self.steps.iter().all(|&s| s > 0), "the part does not lie in the whole")
    }

    /// Lines of pixels that count.
    fn lines(&self) -> usize {
        if self.counts[2] == 0 || self.bytes == 0 { 0 } else { self.n * self.counts[0] * self.counts[1] }
    }

    /// Lines that are worth a task.
    fn grain(&self) -> usize {
        const TASK: usize = 1 << 15;
        TASK / (self.counts[2] * self.bytes).max(1)
    }

    /// Where a line starts, in bytes of the part and of the whole.
    #[inline(always)]
    fn line(&self, i: usize) -> (usize, usize) {
        let (n, a, b) = (i / self.counts[1] / self.counts[0], i / self.counts[1] % self.counts[0], i % self.counts[1]);
        let part = ((n * self.made[0] + a) * self.made[1] + b) * self.made[2];
        let places = [self.first[0] + a * self.steps[0], self.first[1] + b * self.steps[1]];
        let whole = ((n * self.out[0] + places[0]) * self.out[1] + places[1]) * self.out[2] + self.first[2];
        (part * self.bytes, whole * self.bytes)
    }
}

/// Copies the pixels of `part` `[n, made, bytes]` to their places in `whole` `[n, out, bytes]`; other places stay as they are.
///
/// # Errors
/// A slice has another length, or the part does not lie in the whole.
pub fn interleave(exec: &Exec, p: &Interleave, part: &[u8], whole: &mut [u8]) -> Result {
    p.check(part.len(), whole.len())?;
    let to = SharedMut::new(whole);
    exec.split(p.lines(), p.grain(), &|lines| {
        for i in lines {
            let (from, at) = p.line(i);
            let line = &part[from..][..p.counts[2] * p.bytes];
            let len = (p.counts[2] - 1) * p.steps[2] * p.bytes + p.bytes;
            // SAFETY: the line's pixels lie in one line of the whole, as was checked, and no other line of the part does.
            let to = unsafe { to.slice(at, len) };
            copy_pixels(line, p.bytes, to, p.steps[2] * p.bytes, p.bytes);
        }
    });
    Ok(())
}

/// The inverse of [`interleave`]: copies the pixels of `part` from their places in `whole`. Pixels that don't count become 0.
///
/// # Errors
/// As [`interleave`].
pub fn pick_interleaved(exec: &Exec, p: &Interleave, whole: &[u8], part: &mut [u8]) -> Result {
    p.check(part.len(), whole.len())?;
    if p.counts != p.made {
        part.fill(0);
    }
    let to = SharedMut::new(part);
    exec.split(p.lines(), p.grain(), &|lines| {
        for i in lines {
            let (at, from) = p.line(i);
            let len = (p.counts[2] - 1) * p.steps[2] * p.bytes + p.bytes;
            // SAFETY: the line lies in the part, as was checked, and other lines are others.
            let to = unsafe { to.slice(at, p.counts[2] * p.bytes) };
            copy_pixels(&whole[from..][..len], p.steps[2] * p.bytes, to, p.bytes, p.bytes);
        }
    });
    Ok(())
}

/// Copies pixels of `bytes` bytes that are `from_step` and `to_step` bytes apart, as long as there are such.
#[inline(always)]
fn copy_pixels(from: &[u8], from_step: usize, to: &mut [u8], to_step: usize, bytes: usize) {
    /// With a length that the compiler knows.
    fn sized<const N: usize>(from: &[u8], from_step: usize, to: &mut [u8], to_step: usize) {
        for (from, to) in from.chunks(from_step).zip(to.chunks_mut(to_step)) {
            if let (Some(from), Some(to)) = (from.first_chunk::<N>(), to.first_chunk_mut::<N>()) {
                *to = *from;
            }
        }
    }
    match bytes {
        1 => sized::<1>(from, from_step, to, to_step),
        4 => sized::<4>(from, from_step, to, to_step),
        8 => sized::<8>(from, from_step, to, to_step),
        16 => sized::<16>(from, from_step, to, to_step),
        32 => sized::<32>(from, from_step, to, to_step),
        64 => sized::<64>(from, from_step, to, to_step),
        128 => sized::<128>(from, from_step, to, to_step),
        _ => {
            for (from, to) in from.chunks(from_step).zip(to.chunks_mut(to_step)) {
                to[..bytes].copy_from_slice(&from[..bytes]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, Random, execs};

    const BASE: Interleave = Interleave {
        n: 2,
        made: [2, 3, 5],
        counts: [2, 2, 4],
        first: [1, 0, 2],
        steps: [2, 3, 2],
        out: [4, 5, 10],
        bytes: 3,
    };

    /// The place of each pixel that counts, in the part and in the whole.
    fn places(p: &Interleave) -> Vec<(usize, usize)> {
        let mut all = Vec::new();
        for n in 0..p.n {
            for a in 0..p.counts[0] {
                for b in 0..p.counts[1] {
                    for c in 0..p.counts[2] {
                        let at = |i: usize, k: usize| p.first[i] + k * p.steps[i];
                        let whole = ((n * p.out[0] + at(0, a)) * p.out[1] + at(1, b)) * p.out[2] + at(2, c);
                        all.push((((n * p.made[0] + a) * p.made[1] + b) * p.made[2] + c, whole));
                    }
                }
            }
        }
        all
    }

    #[test]
    fn moves_pixels_of_any_size_there_and_back() {
        let mut random = Random::new(3);
        for bytes in [1, 3, 4, 8, 16, 24, 32, 64, 100, 128] {
            let p = Interleave { bytes, ..BASE };
            let part: Vec<u8> = (0..p.part_len().unwrap()).map(|_| random.next() as u8).collect();
            let mut want = vec![7u8; 2 * 4 * 5 * 10 * bytes];
            let mut back = vec![0u8; part.len()];
            for (from, to) in places(&p) {
                want[to * bytes..][..bytes].copy_from_slice(&part[from * bytes..][..bytes]);
                back[from * bytes..][..bytes].copy_from_slice(&part[from * bytes..][..bytes]);
            }
            for exec in execs() {
                let (mut part, mut whole) = (Guarded::new(&part), Guarded::new(&vec![7u8; want.len()]));
                interleave(&exec, &p, part.get(), whole.get()).unwrap();
                assert_eq!(whole.get(), want, "{p:?} {exec:?}");
                part.get().fill(9);
                pick_interleaved(&exec, &p, whole.get(), part.get()).unwrap();
                assert_eq!(part.get(), back, "{p:?} {exec:?}");
            }
        }
    }

    #[test]
    fn refuses_a_part_that_does_not_fit() {
        let exec = &execs()[0];
        let (part, mut whole) = (vec![0; BASE.part_len().unwrap()], vec![0; 2 * 4 * 5 * 10 * 3]);
        let mut run = |p: &Interleave, part: &[u8]| interleave(exec, p, part, &mut whole);
        assert!(run(&BASE, &part).is_ok());
        assert!(run(&Interleave { counts: [0; 3], ..BASE }, &part).is_ok());
        for p in [
            Interleave { counts: [2, 4, 4], ..BASE },
            Interleave { first: [1, 0, 4], ..BASE },
            Interleave { first: [usize::MAX, 0, 0], ..BASE },
            Interleave { steps: [0, 3, 2], ..BASE },
            Interleave { out: [4, 5, 11], ..BASE },
        ] {
            assert!(run(&p, &part).is_err(), "{p:?}");
        }
        assert!(run(&BASE, &part[1..]).is_err());
    }
}
