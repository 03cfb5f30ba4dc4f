//! Weights of [`super::direct`], in the order in which its vectors have the channels.

use super::NAME;
use crate::buffer::Buffer;
use crate::conv::Conv2dParams;
use crate::error::{Result, product};
use crate::isa::{Avx2, Isa, Vnni};

/// Channels of the widest vectors.
pub(super) const WIDE: usize = 64;
/// Channels of the narrowest vectors.
pub(super) const NARROW: usize = 16;

/// An instruction set that multiplies here.
#[derive(Clone, Copy)]
pub(super) enum Set {
    Vnni(Vnni),
    Avx2(Avx2),
}

impl Set {
    /// The best one of `isa`, if there is any.
    pub fn of(isa: Isa) -> Option<Set> {
        // AVX-VNNI has its own dot products, in `ints`.
        let avx2 = || Avx2::new(isa).filter(|_| !super::ints::multiplies_bytes(isa));
        Vnni::new(isa).map(Set::Vnni).or_else(|| avx2().map(Set::Avx2))
    }

    /// Channels of its widest vectors.
    pub fn widest(self) -> usize {
        match self {
            Set::Vnni(_) => WIDE,
            Set::Avx2(_) => WIDE / 2,
        }
    }

    /// Planes of words that hold its weights: the bytes, or their magnitudes and what bytes of the image are combined with.
    pub fn planes(self) -> usize {
        match self {
            Set::Vnni(_) => 1,
            Set::Avx2(_) => 2,
        }
    }
}

/// Packed weights.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// The planes, one after another.
    pub words: Buffer,
    /// By channel, what dot products of magnitudes lack; empty where weights are multiplied as they are.
    pub corrections: Vec<i32>,
}

impl Packed {
    /// Words in memory.
    pub fn len(&self) -> usize {
        self.words.len() + self.corrections.len()
    }
}

/// Rows of the result that share the words of a column.
pub(super) fn rows_together(p: &Conv2dParams) -> usize {
    match (p.kh, p.strides[0]) {
        (5, 1) => 4,
        (3 | 7, 1) | (5, 2) => 2,
        _ => 1,
    }
}

/// Words in a column: four rows of the image each.
fn quads(p: &Conv2dParams) -> usize {
    if p.kh == 3 { 1 } else { 2 }
}

/// Channels that one vector takes.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub first: usize,
    pub channels: usize,
    /// `channels`, or the bytes of the narrowest vectors if that is more.
    pub width: usize,
}

/// The channels by the widest vectors that they fill.
pub(super) fn pieces(c: usize, widest: usize) -> impl Iterator<Item = Piece> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = c - first;
        let wide = [WIDE, WIDE / 2].into_iter().find(|&width| width <= left.min(widest));
        let width = wide.unwrap_or(NARROW);
        let channels = left.min(width);
        let piece = Piece { first, channels, width };
        first += channels;
        (channels > 0).then_some(piece)
    })
}

/// The weights by plane, piece, row of the result, column of the window and word. `at(c, t)` is tap `t` of channel `c`, which
/// is an i8.
pub(super) fn pack(set: Set, p: &Conv2dParams, at: &dyn Fn(usize, usize) -> i32) -> Result<Packed> {
    let (window, quads) = (p.kh, quads(p));
    let count = rows_together(p) * window * quads;
    let plane = product(NAME, &[count, p.c.next_multiple_of(NARROW)])?;
    let mut data = Buffer::lasting(product(NAME, &[plane, set.planes()])?);
    let (first, second) = data.split_at_mut(plane);
    for piece in pieces(p.c, set.widest()) {
        let range = piece.first * count..(piece.first + piece.width) * count;
        let words = &mut first[range.clone()];
        for (index, words) in words.chunks_exact_mut(piece.width).enumerate() {
            let (row, kx, quad) = (index / quads / window, index / quads % window, index % quads);
            for c in 0..piece.channels {
                let byte = |k: usize| match (4 * quad + k).checked_sub(row * p.strides[0]) {
                    Some(ky) if ky < window => at(piece.first + c, ky * window + kx) as u8,
                    _ => 0,
                };
                words[place(c, piece.width)] = f32::from_bits(u32::from_le_bytes([0, 1, 2, 3].map(byte)));
            }
        }
        if set.planes() == 2 {
            for (size, turn) in words.iter_mut().zip(&mut second[range]) {
                let bytes = size.to_bits().to_le_bytes().map(|b| b as i8);
                *turn = f32::from_bits(u32::from_le_bytes(bytes.map(|w| if w < 0 { 0x7f } else { 0x80 })));
                *size = f32::from_bits(u32::from_le_bytes(bytes.map(i8::unsigned_abs)));
            }
        }
    }
    let correction = |c| (0..window * window).map(|t| 128 * at(c, t) - at(c, t).min(0)).sum();
    let corrections = if set.planes() == 2 { (0..p.c).map(correction).collect() } else { Vec::new() };
    Ok(Packed { words: data, corrections })
}

/// Where the word of channel `c` of a piece stands.
fn place(c: usize, width: usize) -> usize {
    c % 16 / 4 * (width / 4) + c / 16 * 4 + c % 4
}

/// Constants of the channels in the order of the words.
pub(super) fn spread<T: Copy + Default>(from: &[T], width: usize) -> [T; WIDE] {
    let mut to = [T::default(); WIDE];
    for (i, four) in from.chunks(4).enumerate() {
        let at = i % 4 * (width / 4) + i / 4 * 4;
        to[at..at + four.len()].copy_from_slice(four);
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_each_channel_once() {
        for (c, widest) in (1..300).flat_map(|c| [(c, WIDE), (c, WIDE / 2)]) {
            let mut next = 0;
            for piece in pieces(c, widest) {
                assert!(piece.width <= widest);
                assert_eq!(piece.first, next, "{c}");
                assert!(piece.width == piece.channels || piece.width == NARROW && piece.channels < NARROW, "{c}");
                next += piece.channels;
            }
            assert_eq!(next, c);
        }
    }
}
