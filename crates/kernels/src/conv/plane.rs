//! A zero-padded copy of one image plane, its columns dealt out by their residue modulo
//! the stride, so that a window's taps are plain contiguous loads at any stride.

use crate::simd::{Simd, low_bits};

/// Most floats of a padded plane: 1 GiB.
const MAX_PLANE: usize = 1 << 28;

/// The padded size of a plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub h: usize,
    pub w: usize,
    /// Value rows before the first and columns left of it.
    pub pad: [usize; 2],
    pub stride: [usize; 2],
    /// Rows of the padded plane.
    pub rows: usize,
    /// Columns of one residue in the padded plane.
    pub part: usize,
}

impl Spread {
    /// A plane that serves `out` windows of `window` at `stride` and `dilation`.
    pub(crate) fn new(
        [h, w]: [usize; 2],
        pad: [usize; 2],
        window: [usize; 2],
        stride: [usize; 2],
        dilation: [usize; 2],
        out: [usize; 2],
    ) -> Spread {
        let rows = (out[0] - 1) * stride[0] + (window[0] - 1) * dilation[0] + 1;
        // Loads of whole vectors may run over by one vector.
        let part = (out[1].next_multiple_of(16)) + ((window[1] - 1) * dilation[1]).div_ceil(stride[1]) + 1;
        Spread { h, w, pad, stride, rows, part }
    }

    /// Floats of the padded plane; `None` when it is unreasonably large, as a hostile
    /// stride or padding can make it.
    pub(crate) fn len(&self) -> Option<usize> {
        let row = self.part.checked_mul(self.stride[1])?;
        self.rows.checked_mul(row).filter(|&len| len <= MAX_PLANE)
    }

    /// Floats of one padded row, all residues.
    pub(crate) fn row_len(&self) -> usize {
        self.part * self.stride[1]
    }

    /// Where the tap `t` columns right of the window's left edge starts in a row.
    #[inline(always)]
    pub(crate) fn tap(&self, t: usize) -> usize {
        (t % self.stride[1]) * self.part + t / self.stride[1]
    }
}

/// A padded plane in scratch memory, which its owner fills with the border's value once.
pub(crate) struct PaddedPlane<'a> {
    pub spread: Spread,
    pub data: &'a mut [f32],
}

impl PaddedPlane<'_> {
    /// Copies an `h × w` image into the inside; the border stays as it is.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(&mut self, s: S, image: &[f32]) {
        let sp = self.spread;
        let row_len = sp.row_len();
        let rows = sp.h.min(sp.rows.saturating_sub(sp.pad[0]));
        for y in 0..rows {
            let line = &image[y * sp.w..][..sp.w];
            let row = &mut self.data[(y + sp.pad[0]) * row_len..][..row_len];
            if sp.stride[1] == 1 {
                copy_line(s, line, &mut row[sp.pad[1].min(row_len)..]);
            } else {
                for residue in 0..sp.stride[1] {
                    spread_line(s, line, &sp, residue, &mut row[residue * sp.part..][..sp.part]);
                }
            }
        }
    }
}

/// Copies as much of the line as fits.
#[inline(always)]
fn copy_line<S: Simd>(s: S, line: &[f32], out: &mut [f32]) {
    let len = line.len().min(out.len());
    let mut i = 0;
    while i < len {
        let bits = low_bits((len - i).min(S::LANES));
        // SAFETY: `bits` ends at `len`, which is in both.
        unsafe { s.store_bits(out.as_mut_ptr().add(i), s.load_bits(line.as_ptr().add(i), bits), bits) };
        i += S::LANES;
    }
}

/// `out[i] = line[i · stride + residue − pad]` for the positions inside the line.
#[inline(always)]
fn spread_line<S: Simd>(s: S, line: &[f32], sp: &Spread, residue: usize, out: &mut [f32]) {
    let step = sp.stride[1];
    // The first and one past the last position inside the line.
    let first = sp.pad[1].saturating_sub(residue).div_ceil(step).min(out.len());
    let end = (sp.w + sp.pad[1]).saturating_sub(residue).div_ceil(step).clamp(first, out.len());
    let mut i = first;
    while i < end {
        let bits = low_bits((end - i).min(S::LANES));
        // SAFETY: positions `first..end` map into the line, and `bits` ends at `end`.
        unsafe {
            let from = line.as_ptr().add(i * step + residue - sp.pad[1]);
            let v = s.load_strided_bits(from, step, bits);
            s.store_bits(out.as_mut_ptr().add(i), v, bits);
        }
        i += S::LANES;
    }
}
