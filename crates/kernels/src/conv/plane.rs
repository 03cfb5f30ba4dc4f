//! A zero-padded copy of one image plane, its columns dealt out by their residue modulo
//! the stride, so that a window's taps are plain contiguous loads at any stride.

use crate::simd::{Simd, low_bits};

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

    /// Floats of the padded plane.
    pub(crate) fn len(&self) -> Option<usize> {
        self.rows.checked_mul(self.row_len())
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

/// A padded plane in scratch memory.
pub(crate) struct PaddedPlane<'a> {
    pub spread: Spread,
    pub data: &'a mut [f32],
}

impl PaddedPlane<'_> {
    /// Fills the plane from an `h × w` image, `fill` around it.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(&mut self, s: S, image: &[f32], fill: f32) {
        let sp = self.spread;
        let row_len = sp.row_len();
        for (r, row) in self.data.chunks_exact_mut(row_len).take(sp.rows).enumerate() {
            let y = r.wrapping_sub(sp.pad[0]);
            if y >= sp.h {
                row.fill(fill);
                continue;
            }
            let line = &image[y * sp.w..][..sp.w];
            for residue in 0..sp.stride[1] {
                spread_line(s, line, &sp, residue, fill, &mut row[residue * sp.part..][..sp.part]);
            }
        }
    }
}

/// `out[i] = line[i · stride + residue − pad]`, `fill` outside of the line.
#[inline(always)]
fn spread_line<S: Simd>(s: S, line: &[f32], sp: &Spread, residue: usize, fill: f32, out: &mut [f32]) {
    let step = sp.stride[1];
    // The first and one past the last position inside the line.
    let first = sp.pad[1].saturating_sub(residue).div_ceil(step).min(out.len());
    let end = (sp.w + sp.pad[1]).saturating_sub(residue).div_ceil(step).clamp(first, out.len());
    out[..first].fill(fill);
    out[end..].fill(fill);
    let mut i = first;
    while i < end {
        let bits = low_bits((end - i).min(S::LANES));
        // SAFETY: positions `first..end` map into the line, and `bits` ends at `end`.
        unsafe {
            let from = line.as_ptr().add(i * step + residue - sp.pad[1]);
            let v = if step == 1 { s.load_bits(from, bits) } else { s.load_strided_bits(from, step, bits) };
            s.store_bits(out.as_mut_ptr().add(i), v, bits);
        }
        i += S::LANES;
    }
}
