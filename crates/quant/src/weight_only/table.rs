//! Codes whose values are no multiples of a step: the nearest entry of a sorted table.

use std::sync::LazyLock;

use narrowbit_tensor::{DType, minifloat};

/// The 16 values of NF4: quantiles of the normal distribution, scaled to −1 … 1, one of them 0 (Dettmers et al. 2023,
/// "QLoRA: Efficient Finetuning of Quantized LLMs", appendix E).
pub(super) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Values in ascending order.
#[derive(Debug)]
pub(super) struct Table {
    values: Vec<f32>,
    /// Between each value and the next one: where rounding goes up.
    middles: Vec<f32>,
    /// Whether code is sign and place of the magnitude, as in a minifloat.
    signed: bool,
}

/// NF4; a code is a place.
pub(super) static NF4_TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(NF4.to_vec(), false));
/// fp8 e4m3: the magnitudes of the codes 0 … 0x7e.
pub(super) static E4M3_TABLE: LazyLock<Table> =
    LazyLock::new(|| Table::new((0..0x7f).map(|c| minifloat::decode(DType::F8E4M3Fn, c)).collect(), true));

impl Table {
    fn new(values: Vec<f32>, signed: bool) -> Table {
        // Exact for the minifloats: neighbours differ in the last bit of few.
        let middles = values.windows(2).map(|w| ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32).collect();
        Table { values, middles, signed }
    }

    /// The greatest magnitude.
    pub fn top(&self) -> f32 {
        self.values[self.values.len() - 1]
    }

    /// The code of the nearest value; in the middle, the even code.
    pub fn encode(&self, x: f32) -> u8 {
        let v = if self.signed { x.abs() } else { x };
        let mut at = self.middles.partition_point(|&m| m < v);
        if at % 2 == 1 && self.middles.get(at) == Some(&v) {
            at += 1;
        }
        let sign = if self.signed && x.is_sign_negative() { 0x80 } else { 0 };
        at as u8 | sign
    }

    /// The value of a code that [`Table::encode`] made.
    pub fn decode(&self, code: u8) -> f32 {
        match self.signed {
            true => self.values[usize::from(code & 0x7f)] * if code & 0x80 == 0 { 1.0 } else { -1.0 },
            false => self.values[usize::from(code)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_fp8_as_the_definition_does() {
        for i in -4000..4000 {
            let x = i as f32 * 0.125;
            assert_eq!(E4M3_TABLE.encode(x), minifloat::encode(DType::F8E4M3Fn, x, true), "{x}");
            let small = i as f32 * 2f32.powi(-18);
            assert_eq!(E4M3_TABLE.encode(small), minifloat::encode(DType::F8E4M3Fn, small, true), "{small}");
        }
        assert_eq!(E4M3_TABLE.decode(E4M3_TABLE.encode(-500.0)), -448.0);
    }

    #[test]
    fn finds_the_nearest_quantile() {
        assert_eq!(NF4_TABLE.encode(-3.0), 0);
        assert_eq!(NF4_TABLE.encode(0.03), 7);
        assert_eq!(NF4_TABLE.encode(0.05), 8);
        assert_eq!(NF4_TABLE.decode(NF4_TABLE.encode(0.7)), NF4[14]);
    }
}
