//! Weights by blocks.

use narrowbit_kernels::Exec;
use narrowbit_tensor::Tensor;

use super::sums::Sums;
use super::{Choice, Explanation};
use crate::approach::{Algorithm, BlockFormat, BlockType, WeightOnlyOptions};
use crate::plan::WeightError;
use crate::weight_only::Quantized;

/// Explains a weight of two axes whose summed axis is the last one where `by_column`, and the first one otherwise.
///
/// # Errors
/// When the weight can't be read.
pub fn blocks(
    exec: &Exec,
    w: &Tensor,
    by_column: bool,
    options: WeightOnlyOptions,
) -> Result<Explanation, WeightError> {
    let values = w.to_f32s()?;
    let mut formula = Vec::new();
    let mut choices: Vec<Choice> = Vec::new();
    for (i, o) in [options].into_iter().chain(others(options)).enumerate() {
        let Some(made) = Quantized::new(exec, &values, w.shape(), by_column, o) else { continue };
        let mut choice = of_blocks(&made, o);
        if i == 0 {
            formula = lines(&made, o);
            choice.chosen = true;
        }
        choices.push(choice);
    }
    Ok(Explanation { formula, choices })
}

/// Other algorithms, lengths and types.
fn others(o: WeightOnlyOptions) -> impl Iterator<Item = WeightOnlyOptions> {
    let plain = WeightOnlyOptions { format: BlockFormat::Qdq, accuracy_level: None, scales: None, ..o };
    let algorithms =
        [Algorithm::Rtn, Algorithm::Mse, Algorithm::Hqq].map(|algorithm| WeightOnlyOptions { algorithm, ..plain });
    let lengths = [16, 32, 64, 128].map(|block| WeightOnlyOptions { block, ..plain });
    use BlockType::{Fp8E4m3, Int2, Int4, Int8, Mxfp4, Nf4, Uint4};
    let types = [Int8, Uint4, Int4, Int2, Fp8E4m3, Nf4, Mxfp4].map(|codes| {
        let mut own = plain;
        own.take_type(codes);
        if codes == Mxfp4 {
            own.block = crate::approach::MX_BLOCK;
        }
        own
    });
    let same = move |n: &WeightOnlyOptions| (n.codes, n.block, n.algorithm) != (o.codes, o.block, o.algorithm);
    algorithms.into_iter().chain(lengths).chain(types).filter(move |n| same(n) && n.check().is_ok())
}

fn of_blocks(made: &Quantized, o: WeightOnlyOptions) -> Choice {
    let mut all = Sums::default();
    for b in made.blocks() {
        all.scale(b.scale);
        b.values.iter().for_each(|&(x, back, beyond)| all.add(x, back, beyond));
    }
    let zero_point = made.blocks().next().map_or(0, |b| b.zero);
    let choice = all.choice(o.codes.to_string(), format!("block {}", o.block), &algorithm(o.algorithm));
    Choice { symmetric: !o.codes.has_zero_point(), zero_point, ..choice }
}

fn algorithm(a: Algorithm) -> String {
    match a {
        Algorithm::Rtn => "rtn",
        Algorithm::Mse => "mse",
        Algorithm::Hqq => "hqq",
    }
    .to_owned()
}

/// The numbers of the block that errs most.
fn lines(made: &Quantized, o: WeightOnlyOptions) -> Vec<String> {
    let mut worst: Option<(Sums, usize)> = None;
    for (i, b) in made.blocks().enumerate() {
        let mut own = Sums::default();
        b.values.iter().for_each(|&(x, back, beyond)| own.add(x, back, beyond));
        if worst.as_ref().is_none_or(|(w, _)| own.noise() > w.noise()) {
            worst = Some((own, i));
        }
    }
    let Some((sums, at)) = worst else { return Vec::new() };
    let Some(b) = made.blocks().nth(at) else { return Vec::new() };
    let (column, first) = (at / made.per_column(), at % made.per_column() * o.block);
    let last = (first + b.values.len()).saturating_sub(1);
    let greatest = b.values.iter().fold(0f32, |m, v| m.max(v.0.abs()));
    let mut lines = vec![
        format!(
            "{} blocks of {}; that of the greatest error is of output {column}, elements {first} … {last}:",
            made.blocks().count(),
            o.block
        ),
        format!("scale = {:e}, {}; the greatest magnitude in it is {greatest:.6}", b.scale, how(o)),
    ];
    lines.push(match (o.codes.code_range(), o.codes.has_zero_point()) {
        (Some((lo, hi)), true) => {
            format!(
                "code = clamp(round(x / {:e}) + {}, {lo}, {hi}), x ≈ (code − {}) · {:e}",
                b.scale, b.zero, b.zero, b.scale
            )
        }
        (Some((lo, hi)), false) => {
            format!("code = clamp(round(x / {:e}), {lo}, {hi}), x ≈ code · {:e}", b.scale, b.scale)
        }
        (None, _) => format!("code = the value of {} nearest to x / {:e}, x ≈ value · {:e}", o.codes, b.scale, b.scale),
    });
    lines.push(format!(
        "its error: SQNR {:.1} dB, the mean square {:.3e}",
        sums.sqnr_db(),
        sums.noise() / sums.count().max(1) as f64
    ));
    lines
}

fn how(o: WeightOnlyOptions) -> &'static str {
    match (o.codes.mx_exponent(), o.algorithm) {
        (Some(_), Algorithm::Rtn) => "2^(⌊log2 max|x|⌋ − emax), as the Microscaling format says",
        (Some(_), _) => "the power of two with the least squared error",
        (None, Algorithm::Rtn) => "the least at which nothing saturates",
        (None, Algorithm::Mse) => "that with the least squared error of the block",
        (None, Algorithm::Hqq) => "with the zero point that makes the error sparse",
    }
}

#[cfg(test)]
mod tests {
    use narrowbit_kernels::Isa;

    use super::*;

    #[test]
    fn names_the_block_that_errs_most() {
        // Two columns of 32; the second half of column 1 has an outlier.
        let mut values: Vec<f32> = (0..64).map(|i| ((i * 37 % 19) as f32 - 9.0) / 90.0).collect();
        values[32 + 20] = 3.0;
        let w = Tensor::new([2, 32], values).unwrap();
        let o = WeightOnlyOptions { block: 16, algorithm: Algorithm::Rtn, ..WeightOnlyOptions::default() };
        let found = blocks(&Exec::new(Isa::detect(), 1), &w, true, o).unwrap();
        assert!(
            found.formula[0].contains("4 blocks of 16") && found.formula[0].contains("output 1, elements 16 … 31"),
            "{found:?}"
        );
        assert!(
            found.choices[0].chosen && found.choices[0].granularity == "block 16" && found.choices[0].format == "int4"
        );
        let int8 = found.choices.iter().find(|c| c.format == "int8").unwrap();
        assert!(int8.sqnr_db > found.choices[0].sqnr_db + 10.0);
        for format in ["nf4", "uint4", "mxfp4"] {
            assert!(found.choices.iter().any(|c| c.format == format), "{format}");
        }
    }
}
