//! Elements narrower than a byte: 4-bit types two to a byte, 2-bit types four
//! to a byte, the first element in the lowest bits (ONNX `TensorProto.raw_data`).

/// The codes of `n` packed elements of `bits` (2 or 4) bits, one to a byte, not sign-extended.
pub fn unpack(bytes: &[u8], bits: usize, n: usize) -> Vec<u8> {
    let per = 8 / bits;
    let mask = (1u8 << bits) - 1;
    (0..n).map(|i| bytes.get(i / per).copied().unwrap_or(0) >> (bits * (i % per)) & mask).collect()
}

/// As [`unpack`], with the codes read as two's complement.
pub fn unpack_signed(bytes: &[u8], bits: usize, n: usize) -> Vec<i8> {
    let shift = 8 - bits;
    unpack(bytes, bits, n).into_iter().map(|c| ((c << shift) as i8) >> shift).collect()
}

/// Packs codes (only the low `bits` bits of each count) as ONNX does.
pub fn pack(codes: impl ExactSizeIterator<Item = u8>, bits: usize) -> Vec<u8> {
    let per = 8 / bits;
    let mask = (1u8 << bits) - 1;
    let mut out = vec![0u8; codes.len().div_ceil(per)];
    for (i, c) in codes.enumerate() {
        out[i / per] |= (c & mask) << (bits * (i % per));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks_every_code() {
        for bits in [2, 4] {
            let codes: Vec<u8> = (0..(1u8 << bits)).chain([1]).collect();
            let bytes = pack(codes.iter().copied(), bits);
            assert_eq!(unpack(&bytes, bits, codes.len()), codes);
        }
        assert_eq!(pack([1u8, 2, 3].into_iter(), 4), [0x21, 0x03]);
        assert_eq!(unpack_signed(&[0xf8], 4, 2), [-8, -1]);
        assert_eq!(unpack_signed(&[0b11_10_01_00], 2, 4), [0, 1, -2, -1]);
    }
}
