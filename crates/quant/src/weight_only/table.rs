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
    /// The bit of the sign where a code is sign and place of the magnitude, as in a minifloat; else 0.
    sign: u8,
}

/// NF4; a code is a place.
pub(super) static NF4_TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(NF4.to_vec(), 0));
/// fp8 e4m3.
pub(super) static E4M3_TABLE: LazyLock<Table> = LazyLock::new(|| Table::minifloat(DType::F8E4M3Fn, 0x80));
/// fp8 e5m2.
pub(super) static E5M2_TABLE: LazyLock<Table> = LazyLock::new(|| Table::minifloat(DType::F8E5M2, 0x80));
/// fp4 e2m1.
pub(super) static E2M1_TABLE: LazyLock<Table> = LazyLock::new(|| Table::minifloat(DType::F4E2M1, 0x08));

impl Table {
    fn new(values: Vec<f32>, sign: u8) -> Table {
        // Exact for the minifloats: neighbours differ in the last bit of few.
        let middles = values.windows(2).map(|w| ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32).collect();
        Table { values, middles, sign }
    }

    /// The finite magnitudes of a type, which are the first codes.
    fn minifloat(dtype: DType, sign: u8) -> Table {
        let finite = (0..sign).map(|c| minifloat::decode(dtype, c)).take_while(|v| v.is_finite());
        Table::new(finite.collect(), sign)
    }

    /// The greatest magnitude.
    pub fn top(&self) -> f32 {
        self.values[self.values.len() - 1]
    }

    /// The code of the nearest value; in the middle, the even code.
    pub fn encode(&self, x: f32) -> u8 {
        let v = if self.sign != 0 { x.abs() } else { x };
        let mut at = self.middles.partition_point(|&m| m < v);
        if at % 2 == 1 && self.middles.get(at) == Some(&v) {
            at += 1;
        }
        at as u8 | if x.is_sign_negative() { self.sign } else { 0 }
    }

    /// The value of a code that [`Table::encode`] made.
    pub fn decode(&self, code: u8) -> f32 {
        let magnitude = self.values[usize::from(code & !self.sign)];
        if code & self.sign == 0 { magnitude } else { -magnitude }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_minifloats_as_the_definition_does() {
        let tables: [(&Table, DType); 3] =
            [(&E4M3_TABLE, DType::F8E4M3Fn), (&E5M2_TABLE, DType::F8E5M2), (&E2M1_TABLE, DType::F4E2M1)];
        for (table, dtype) in tables {
            assert_eq!(Some(table.top()), minifloat::max_value(dtype));
            for i in -4000..4000 {
                for x in [i as f32 * 0.125, i as f32 * 40.0, i as f32 * 2f32.powi(-18), i as f32 * 2f32.powi(-10)] {
                    let code = table.encode(x);
                    assert_eq!(code, minifloat::encode(dtype, x, true), "{dtype} {x}");
                    assert_eq!(table.decode(code), minifloat::decode(dtype, code), "{dtype} {x}");
                }
            }
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
