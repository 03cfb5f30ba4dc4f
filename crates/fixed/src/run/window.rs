//! Pooling of channels-last integers.

use narrowbit_kernels::Exec;

use super::data::{Data, Int, Width, with_ints};
use super::parts;

/// What becomes of the integers of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// The greatest; padding does not count.
    Max,
    /// The sum; padding is zero.
    Sum,
}

/// A window over channels-last images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// What is made of a window.
    pub fold: Fold,
    /// Images, height, width, channels.
    pub input: [usize; 4],
    /// Output height and width.
    pub output: [usize; 2],
    /// Window height and width.
    pub kernel: [usize; 2],
    /// Steps.
    pub strides: [usize; 2],
    /// Steps within a window.
    pub dilations: [usize; 2],
    /// Padding at the top and left.
    pub begins: [usize; 2],
}

impl Pool {
    pub(super) fn run(&self, exec: &Exec, x: &Data, width: Width) -> Data {
        let [n, _, _, c] = self.input;
        let mut y = Data::zeros(width, n * self.output[0] * self.output[1] * c);
        with_ints!(x, x => with_ints!(&mut y, y => self.all(exec, x, y)));
        y
    }

    fn all<A: Int, B: Int>(&self, exec: &Exec, x: &[A], y: &mut [B]) {
        let ([_, h, w, c], [oh, ow]) = (self.input, self.output);
        parts(exec, y, c, &|from, y| {
            let mut folded = vec![0i64; c];
            for (i, y) in y.chunks_mut(c.max(1)).enumerate() {
                let at = from / c + i;
                let (n, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
                folded.fill(if self.fold == Fold::Max { i64::MIN } else { 0 });
                for (ky, kx) in (0..self.kernel[0]).flat_map(|ky| (0..self.kernel[1]).map(move |kx| (ky, kx))) {
                    let iy = (oy * self.strides[0] + ky * self.dilations[0]).wrapping_sub(self.begins[0]);
                    let ix = (ox * self.strides[1] + kx * self.dilations[1]).wrapping_sub(self.begins[1]);
                    if iy < h && ix < w {
                        let pixel = &x[((n * h + iy) * w + ix) * c..][..c];
                        fold(self.fold, &mut folded, pixel);
                    }
                }
                y.iter_mut().zip(&folded).for_each(|(y, &v)| *y = B::low(v));
            }
        });
    }
}

#[inline(always)]
fn fold<A: Int>(how: Fold, folded: &mut [i64], pixel: &[A]) {
    match how {
        Fold::Max => folded.iter_mut().zip(pixel).for_each(|(f, x)| *f = (*f).max(x.wide())),
        Fold::Sum => folded.iter_mut().zip(pixel).for_each(|(f, x)| *f += x.wide()),
    }
}
