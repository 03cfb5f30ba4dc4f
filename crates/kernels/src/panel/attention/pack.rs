//! Keys and values in panels.

use super::{Plan, ValueHeads};
use crate::panel::matmul::{Interleave, column_sums, integers};
use crate::panel::pack::{find_limits, limit_words};
use crate::panel::packing::{Dense, Form};
use crate::simd::{Kernel, Simd};

impl Plan<'_> {
    pub fn pack_keys(&self, head: usize, panels: &mut [f32], offsets: &mut [f32]) {
        let (p, isa) = (self.p, self.exec.isa());
        let ((flip, zero), offsets) = (self.column(&p.kt), integers(offsets));
        offsets.fill(0);
        let (panels, limits) = panels.split_at_mut(self.key_words());
        for panel in 0..self.keys.count() {
            let (width, valid, first) = (self.keys.width(panel), self.keys.valid(panel), panel * self.keys.nr);
            let words = &mut panels[first * self.key_steps..][..width * self.key_steps];
            let [batch, step, row, column] = p.kt.strides;
            let source = self.sources[1].ptr().wrapping_add(self.skip([batch, step], head) + first * column);
            if column == 1 {
                isa.dispatch(Interleave { source, ld: row, k: p.depth, valid, width, flip, words });
            } else {
                isa.dispatch(Gather { source, stride: column, depth: p.depth, valid, width, flip, words });
            }
            self.find_limits(words, width, panel, limits);
            self.offsets(words, width, (p.depth, self.row_zero(), zero), &mut offsets[first..first + valid]);
        }
    }

    pub fn pack_values(&self, head: usize, panels: &mut [f32], offsets: &mut [f32]) {
        let (p, isa) = (self.p, self.exec.isa());
        let v = match &p.v {
            ValueHeads::Codes { v, .. } => v,
            ValueHeads::Floats(v) => return self.pack_floats(head, v.strides, panels),
        };
        let ((flip, zero), offsets) = (self.column(v), integers(offsets));
        let [batch, step, row, _] = v.strides;
        let (panels, limits) = panels.split_at_mut(self.value_words());
        for panel in 0..self.values.count() {
            let (width, valid, first) = (self.values.width(panel), self.values.valid(panel), panel * self.values.nr);
            let words = &mut panels[first * self.value_steps..][..width * self.value_steps];
            let source = self.sources[2].ptr().wrapping_add(self.skip([batch, step], head) + first);
            isa.dispatch(Interleave { source, ld: row, k: p.keys, valid, width, flip, words });
            self.find_limits(words, width, panel, limits);
            self.offsets(words, width, (p.keys, self.weight_zero(), zero), &mut offsets[first..first + valid]);
        }
    }

    /// Finds the limits of panel `panel` among those of an operand, if the kernel has any.
    fn find_limits(&self, words: &[f32], width: usize, panel: usize, limits: &mut [f32]) {
        let steps = words.len() / width;
        let len = limit_words(self.kernel, 1, (1, steps));
        find_limits(self.exec.isa(), words, (steps, width), &mut limits[panel * len..][..len]);
    }

    fn pack_floats(&self, head: usize, [batch, step, stride]: [usize; 3], panels: &mut [f32]) {
        let Some(packing) = &self.floats else { return };
        let start = self.sources[2].ptr().cast::<f32>().wrapping_add(self.skip([batch, step], head)).cast();
        let from = Dense { form: Form::F32, start, stride, by_column: false };
        for panel in 0..packing.columns.count() {
            // SAFETY: `check` covered the values.
            unsafe { packing.pack(self.exec.isa(), from, panel, &mut panels[packing.panel(panel)]) };
        }
    }

    /// What is added to the sums of each column for both zero points, but for the part that depends on the row.
    fn offsets(&self, words: &[f32], width: usize, (k, a_zero, b_zero): (usize, i32, i32), sums: &mut [i32]) {
        // SAFETY: the kernel is that of the tier, and the panel has whole steps.
        unsafe { column_sums(self.exec.isa(), self.kernel, words, width, sums) };
        let whole = (k as i32).wrapping_mul(a_zero).wrapping_mul(b_zero);
        sums.iter_mut().for_each(|s| *s = whole.wrapping_sub(a_zero.wrapping_mul(*s)));
    }
}

/// Contiguous columns into the words of a panel.
struct Gather<'a> {
    /// `valid` columns of `depth` bytes, `stride` bytes apart.
    source: *const u8,
    stride: usize,
    depth: usize,
    valid: usize,
    width: usize,
    flip: u8,
    words: &'a mut [f32],
}

impl Kernel for Gather<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.words.fill(0.0);
        // Words are moved whole where they lie on words.
        let aligned = self.stride.is_multiple_of(4) && self.source.addr().is_multiple_of(4);
        let whole = if aligned { self.depth / 4 } else { 0 };
        for first in (0..self.valid).step_by(S::LANES) {
            let columns = (self.valid - first).min(S::LANES);
            for step in (0..whole).step_by(S::LANES) {
                let source = self.source.wrapping_add(first * self.stride + step * 4).cast();
                let to = self.words.as_mut_ptr().wrapping_add(step * self.width + first);
                // SAFETY: whoever made `self` vouches for the columns; the panel has a word for each of their steps.
                unsafe {
                    s.transpose_tile(source, self.stride / 4, columns, (whole - step).min(S::LANES), to, self.width)
                };
            }
        }
        let flip = u32::from_le_bytes([self.flip; 4]);
        for line in self.words.chunks_exact_mut(self.width).take(whole) {
            line[..self.valid].iter_mut().for_each(|word| *word = f32::from_bits(word.to_bits() ^ flip));
        }
        for c in 0..self.valid {
            // SAFETY: as above.
            let column = unsafe { std::slice::from_raw_parts(self.source.wrapping_add(c * self.stride), self.depth) };
            for (step, bytes) in column.chunks(4).enumerate().skip(whole) {
                let mut word = [0u8; 4];
                word.iter_mut().zip(bytes).for_each(|(to, b)| *to = b ^ self.flip);
                self.words[step * self.width + c] = f32::from_bits(u32::from_le_bytes(word));
            }
        }
    }
}
