//! The codes, scale and zero point of one block of weights.

use narrowbit_kernels::blocks::ScaleSearch;

use super::table::{E2M1_TABLE, E4M3_TABLE, E5M2_TABLE, NF4_TABLE, Table};
use crate::approach::{Algorithm, BlockType, WeightOnlyOptions};

/// `x ≈ (code − zero) · scale`; for fp8 and NF4, `x ≈ value(code) · scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub scale: f32,
    pub zero: i32,
}

/// Chooses scale and zero point of a block, and writes its codes (two's complement where they are signed). Blocks of
/// [`Symmetric`] settings have a kernel.
pub(super) fn quantize(x: &[f32], options: &WeightOnlyOptions, codes: &mut [u8]) -> Point {
    let Some(table) = table(options.codes) else {
        return match options.codes {
            BlockType::Mxint8 => mx_integers(x, options.algorithm, codes),
            _ => integers(x, options, codes),
        };
    };
    let error = |scale: f32| {
        let inverse = 1.0 / scale;
        x.iter().map(|&v| (v - table.decode(table.encode(v * inverse)) * scale).powi(2)).sum::<f32>()
    };
    let scale = match options.codes.mx_exponent() {
        Some(most) => mx_scale(x, most, options.algorithm, error),
        None => table_scale(x, table, options.algorithm, error),
    };
    let inverse = 1.0 / scale;
    codes.iter_mut().zip(x).for_each(|(c, &v)| *c = table.encode(v * inverse));
    Point { scale, zero: 0 }
}

/// The values that the codes of a type stand for, to round to with a scale and zero point that are given.
pub(super) enum Values {
    Integers { low: f32, high: f32, unsigned: bool },
    Table(&'static Table),
}

impl Values {
    pub fn new(codes: BlockType) -> Values {
        match (table(codes), codes.code_range()) {
            (Some(table), _) => Values::Table(table),
            (None, range) => {
                // The Microscaling format does not use its least code.
                let (lo, hi) = if codes == BlockType::Mxint8 { (-127, 127) } else { range.unwrap_or((-8, 7)) };
                Values::Integers { low: lo as f32, high: hi as f32, unsigned: lo >= 0 }
            }
        }
    }

    /// The code nearest to a value, as a byte, and the value that it stands for.
    pub fn round(&self, x: f32, scale: f32, zero: u8) -> (u8, f32) {
        match *self {
            Values::Table(table) => {
                let code = table.encode(x / scale);
                (code, table.decode(code) * scale)
            }
            Values::Integers { low, high, unsigned } => {
                let zero = if unsigned { f32::from(zero) } else { f32::from(zero as i8) };
                let code = (Bounds { low: low - zero, high: high - zero }).round(x / scale);
                ((code + zero) as i32 as u8, code * scale)
            }
        }
    }
}

/// The values of types that are no integers.
fn table(codes: BlockType) -> Option<&'static Table> {
    Some(match codes {
        BlockType::Nf4 => &NF4_TABLE,
        BlockType::Fp8E4m3 | BlockType::Mxfp8E4m3 => &E4M3_TABLE,
        BlockType::Fp8E5m2 | BlockType::Mxfp8E5m2 => &E5M2_TABLE,
        BlockType::Fp4 | BlockType::Mxfp4 => &E2M1_TABLE,
        _ => return None,
    })
}

fn extremes(x: &[f32]) -> (f32, f32) {
    x.iter().fold((0f32, 0f32), |(lo, hi), &v| (lo.min(v), hi.max(v)))
}

/// A scale that divides: not 0, not infinite, with a finite inverse.
fn usable(scale: f32) -> f32 {
    if scale.is_finite() && scale >= f32::MIN_POSITIVE { scale } else { 1.0 }
}

/// The power of two of a block of a Microscaling format, `2^(⌊log2 max|x|⌋ − emax)` (OCP MX Specification 1.0, section
/// 6.3), or, by the least squared error, the one beside it. It is a normal float: from 2⁻¹²⁶ on; blocks of zeros have 1.
fn mx_scale(x: &[f32], most: i32, algorithm: Algorithm, error: impl Fn(f32) -> f32) -> f32 {
    let (lo, hi) = extremes(x);
    let peak = f64::from(hi.max(-lo));
    if peak == 0.0 || !peak.is_finite() {
        return 1.0;
    }
    // Every float is a normal double, whose exponent is the floor of its logarithm.
    let exponent = (peak.to_bits() >> 52) as i32 - 1023 - most;
    let power = |e: i32| f32::from_bits(((e.clamp(-126, 127) + 127) as u32) << 23);
    if algorithm != Algorithm::Mse {
        return power(exponent);
    }
    // Twice the scale, at which nothing saturates; half of it, where one value stands out.
    let tried = [0, 1, -1].map(|d| power(exponent + d)).map(|scale| (error(scale), scale));
    tried.into_iter().fold((f32::INFINITY, power(exponent)), |best, t| if t.0 < best.0 { t } else { best }).1
}

/// The integers of MXINT8, `code / 64` times a power of two; −128, the only value without an opposite, is not used (which
/// the specification leaves open in section 5.3.4).
fn mx_integers(x: &[f32], algorithm: Algorithm, codes: &mut [u8]) -> Point {
    /// Bits behind the point of an element.
    const FRACTION: i32 = 6;
    let bounds = Bounds::new((-127, 127), 0);
    let scale = mx_scale(x, FRACTION, algorithm, |scale| squared_error(x, scale, bounds));
    let inverse = 1.0 / scale;
    codes.iter_mut().zip(x).for_each(|(c, &v)| *c = bounds.round(v * inverse) as i32 as u8);
    Point { scale, zero: 0 }
}

/// The scale that puts the greatest magnitude on the greatest value, or, by the least squared error, a smaller one.
fn table_scale(x: &[f32], table: &Table, algorithm: Algorithm, error: impl Fn(f32) -> f32) -> f32 {
    /// Shares of the greatest magnitude that are tried.
    const SHARES: [f32; 8] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.75];
    let (lo, hi) = extremes(x);
    let full = usable(hi.max(-lo) / table.top());
    if algorithm != Algorithm::Mse {
        return full;
    }
    let tried = SHARES.iter().map(|s| full * s).map(|scale| (error(scale), scale));
    tried.fold((f32::INFINITY, full), |best, t| if t.0 < best.0 { t } else { best }).1
}

/// The codes in use, less the zero point: what `x / scale` is rounded and held to.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    low: f32,
    high: f32,
}

impl Bounds {
    fn new((lo, hi): (i32, i32), zero: i32) -> Bounds {
        Bounds { low: (lo - zero) as f32, high: (hi - zero) as f32 }
    }

    /// Rounds to the nearest, ties to even; both bounds are small.
    #[inline(always)]
    fn round(self, v: f32) -> f32 {
        /// 1.5 · 2²³: where the last bit of a float is worth 1. `round_ties_even` is a call on processors that the
        /// program may have to run on.
        const MAGIC: f32 = 12_582_912.0;
        (v.max(self.low).min(self.high) + MAGIC) - MAGIC
    }
}

const LANES: usize = 8;

/// Adds up a function of each element, in lanes that the compiler makes a vector of.
#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&v| term(v)).sum();
    for chunk in chunks {
        for (l, &v) in lanes.iter_mut().zip(chunk) {
            *l += term(v);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The sum of the squared errors.
fn squared_error(x: &[f32], scale: f32, bounds: Bounds) -> f32 {
    let inverse = 1.0 / scale;
    sum(x, |v| {
        let d = v - bounds.round(v * inverse) * scale;
        d * d
    })
}

/// The sum of the magnitudes of the errors.
fn absolute_error(x: &[f32], scale: f32, bounds: Bounds) -> f32 {
    let inverse = 1.0 / scale;
    sum(x, |v| (v - bounds.round(v * inverse) * scale).abs())
}

/// How the scales of blocks around zero are chosen, many blocks at a time (`narrowbit_kernels::blocks::search_scales`); `None`
/// for other settings. After a search over shares of the full range comes the exact optimum for the codes found.
pub(super) struct Symmetric {
    range: (i32, i32),
    shares: Vec<f32>,
    refinements: usize,
}

impl Symmetric {
    pub fn new(options: &WeightOnlyOptions) -> Option<Symmetric> {
        if options.codes.has_zero_point() || options.codes.mx_exponent().is_some() {
            return None;
        }
        let range = options.codes.code_range()?;
        match options.algorithm {
            Algorithm::Rtn => Some(Symmetric { range, shares: Vec::new(), refinements: 0 }),
            // The full range is the first that is tried.
            Algorithm::Mse => Some(Symmetric { range, shares: shares(range).skip(1).collect(), refinements: 3 }),
            Algorithm::Hqq => None,
        }
    }

    pub fn search(&self) -> ScaleSearch<'_> {
        ScaleSearch { range: self.range, shares: &self.shares, refinements: self.refinements }
    }
}

fn integers(x: &[f32], options: &WeightOnlyOptions, codes: &mut [u8]) -> Point {
    let range = options.codes.code_range().unwrap_or((-8, 7));
    let p = match options.algorithm {
        Algorithm::Hqq => hqq(x, range),
        Algorithm::Mse => least_squares_asymmetric(x, range),
        Algorithm::Rtn => asymmetric_point(extremes(x), range),
    };
    let (bounds, inverse) = (Bounds::new(range, p.zero), 1.0 / p.scale);
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = (bounds.round(v * inverse) as i32 + p.zero) as u8;
    }
    p
}

/// `scale = (max − min) / (hi − lo)`, `zero = round(lo − min / scale)`, the range widened to hold 0.
fn asymmetric_point((low, high): (f32, f32), (lo, hi): (i32, i32)) -> Point {
    let scale = usable((high - low) / (hi - lo) as f32);
    let zero = (lo as f32 - low / scale).round_ties_even().clamp(lo as f32, hi as f32);
    Point { scale, zero: zero as i32 }
}

/// The shares of the full range that a search tries: few bits gain from saturating much, many bits do not.
fn shares((lo, hi): (i32, i32)) -> impl Iterator<Item = f32> {
    let (least, count) = match hi - lo {
        0..=3 => (0.3, 28),
        4..=15 => (0.5, 20),
        _ => (0.8, 8),
    };
    (0..=count).map(move |i| 1.0 - (1.0 - least) * i as f32 / count as f32)
}

/// The scale and zero point with the least squared error of those where both ends of the range are drawn in by one share.
fn least_squares_asymmetric(x: &[f32], range: (i32, i32)) -> Point {
    let (low, high) = extremes(x);
    let mut best = (f32::INFINITY, asymmetric_point((low, high), range));
    for share in shares(range) {
        let p = asymmetric_point((low * share, high * share), range);
        let error = squared_error(x, p.scale, Bounds::new(range, p.zero));
        if error < best.0 {
            best = (error, p);
        }
    }
    best.1
}

/// Half-quadratic quantization (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"):
/// the zero point minimises Σ|e|^0.7 of the errors by alternating `e ← shrink(x − (q − z)·s)` and
/// `z ← mean(q − (x − e)/s)`, the weight β of the split growing from 10 by 1.01, 20 times at the most; the scale stays.
///
/// The published method keeps z real. ONNX zero points are codes: of the whole numbers beside the optimum and the one to
/// begin with, that with the least mean error is taken.
fn hqq(x: &[f32], range: (i32, i32)) -> Point {
    const P: f32 = 0.7;
    const KAPPA: f32 = 1.01;
    const ITERATIONS: usize = 20;
    let first = asymmetric_point(extremes(x), range);
    let (scale, inverse) = (first.scale, 1.0 / first.scale);
    let (lo, hi) = (range.0 as f32, range.1 as f32);
    let (mut z, mut beta, mut least) = (first.zero as f32, 10f32, f32::INFINITY);
    let mut best = z;
    for _ in 0..ITERATIONS {
        let code = |v: f32| (v * inverse + z).round_ties_even().clamp(lo, hi);
        let (mut error, mut next) = (0f32, 0f32);
        for &v in x {
            let q = code(v);
            let e = v - (q - z) * scale;
            error += e.abs();
            next += q - (v - shrink(e, beta, P)) * inverse;
        }
        if error >= least {
            break;
        }
        (least, best) = (error, z);
        z = next / x.len() as f32;
        beta *= KAPPA;
    }
    let candidates = [first.zero, best.floor() as i32, best.ceil() as i32];
    let candidates = candidates.map(|c| c.clamp(range.0, range.1));
    let errors = candidates.map(|zero| (absolute_error(x, scale, Bounds::new(range, zero)), zero));
    let zero = errors.into_iter().fold((f32::INFINITY, first.zero), |b, e| if e.0 < b.0 { e } else { b }).1;
    Point { scale, zero }
}

/// The generalised soft threshold of the lp norm: `sign(e) · max(|e| − |e|^(p−1) / β, 0)`.
fn shrink(e: f32, beta: f32, p: f32) -> f32 {
    let magnitude = e.abs();
    if magnitude == 0.0 { 0.0 } else { (magnitude - magnitude.powf(p - 1.0) / beta).max(0.0).copysign(e) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approach::BlockFormat;

    fn run(x: &[f32], codes: BlockType, algorithm: Algorithm) -> (Point, Vec<i32>) {
        let options =
            WeightOnlyOptions { codes, block: 16, algorithm, format: BlockFormat::Qdq, ..WeightOnlyOptions::default() };
        let mut out = vec![0u8; x.len()];
        let p = match Symmetric::new(&options) {
            Some(s) => {
                let mut scale = [0.0];
                let (isa, len) = (narrowbit_kernels::Isa::detect(), x.len());
                let to = (&mut out[..], len);
                narrowbit_kernels::blocks::search_scales(isa, (x, 1), [len, 1], s.search(), &mut scale, to).unwrap();
                Point { scale: scale[0], zero: 0 }
            }
            None => quantize(x, &options, &mut out),
        };
        let signed = codes.code_range().is_some_and(|r| r.0 < 0);
        (p, out.iter().map(|&c| if signed { i32::from(c as i8) } else { i32::from(c) }).collect())
    }

    /// The squared error of a block.
    fn error(x: &[f32], codes: BlockType, algorithm: Algorithm) -> f32 {
        let (p, q) = run(x, codes, algorithm);
        x.iter().zip(q).map(|(v, q)| (v - (q - p.zero) as f32 * p.scale).powi(2)).sum()
    }

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut r = narrowbit_tensor::SplitMix64::new(seed);
        (0..n).map(|_| r.normal() as f32 * 0.1).collect()
    }

    #[test]
    fn rounds_to_nearest_with_the_least_scale_that_saturates_nothing() {
        // −1.6 on −8 needs 0.2; 1.4 on 7 needs 0.2.
        let (p, q) = run(&[-1.6, 1.4, 0.35, -0.05], BlockType::Int4, Algorithm::Rtn);
        assert!((p.scale - 0.2).abs() < 1e-7 && p.zero == 0);
        assert_eq!(q, [-8, 7, 2, 0]);
    }

    #[test]
    fn gives_unsigned_codes_a_zero_point() {
        let (p, q) = run(&[-0.5, 1.0, 0.0], BlockType::Uint4, Algorithm::Rtn);
        assert_eq!((p.scale, p.zero), (0.1, 5));
        assert_eq!(q, [0, 15, 5]);
        let (p, q) = run(&[2.0, 3.0], BlockType::Uint2, Algorithm::Rtn);
        assert_eq!((p.scale, p.zero, q), (1.0, 0, vec![2, 3]));
    }

    #[test]
    fn gives_a_block_of_zeros_scale_one() {
        for codes in [BlockType::Int4, BlockType::Uint4, BlockType::Fp8E4m3, BlockType::Nf4] {
            let (p, _) = run(&[0.0; 16], codes, Algorithm::Mse);
            assert_eq!(p.scale, 1.0, "{codes}");
        }
        let (p, q) = run(&[0.0; 16], BlockType::Uint4, Algorithm::Hqq);
        assert_eq!((p.scale, q[0]), (1.0, p.zero));
    }

    #[test]
    fn searches_never_err_more_than_rounding() {
        for seed in 0..20 {
            let mut x = noise(32, seed);
            x[3] *= 4.0;
            for codes in [BlockType::Int8, BlockType::Int4, BlockType::Int2, BlockType::Uint4, BlockType::Uint2] {
                let (rtn, mse) = (error(&x, codes, Algorithm::Rtn), error(&x, codes, Algorithm::Mse));
                // The sums here run in another order.
                assert!(mse <= rtn * 1.0001, "{codes}: {mse} > {rtn}");
            }
        }
        let (rtn, mse): (f32, f32) = (0..20)
            .map(|s| noise(32, s))
            .map(|x| (error(&x, BlockType::Int2, Algorithm::Rtn), error(&x, BlockType::Int2, Algorithm::Mse)))
            .fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert!(mse < 0.75 * rtn, "two bits gain much from saturating: {mse} of {rtn}");
    }

    #[test]
    fn hqq_never_errs_more_than_its_beginning() {
        let absolute = |x: &[f32], a: Algorithm| {
            let (p, q) = run(x, BlockType::Uint4, a);
            x.iter().zip(q).map(|(v, q)| (v - (q - p.zero) as f32 * p.scale).abs()).sum::<f32>()
        };
        for seed in 0..20 {
            let mut x = noise(64, seed);
            x[7] += 0.4;
            let (rtn, hqq) = (absolute(&x, Algorithm::Rtn), absolute(&x, Algorithm::Hqq));
            assert!(hqq <= rtn * 1.0001, "{hqq} > {rtn}");
        }
    }

    #[test]
    fn shrinks_errors_by_the_threshold_of_the_norm() {
        // 0.5^(−0.3) = 1.231144; over β = 10: 0.1231144.
        assert!((shrink(0.5, 10.0, 0.7) - (0.5 - 0.123_114_4)).abs() < 1e-6);
        assert!((shrink(-0.5, 10.0, 0.7) + (0.5 - 0.123_114_4)).abs() < 1e-6);
        assert_eq!((shrink(0.0, 10.0, 0.7), shrink(0.1, 10.0, 0.7)), (0.0, 0.0));
    }

    #[test]
    fn gives_microscaling_formats_the_power_of_two_of_their_definition() {
        // ⌊log2 7⌋ = 2: less 2 of e2m1, 8 of e4m3, 15 of e5m2; 6 bits behind the point of the integers.
        let x = [7.0, -2.6, 0.24, -0.25, 0.0];
        let (p, q) = run(&x, BlockType::Mxfp4, Algorithm::Rtn);
        // 7 saturates at 6; 2.6 is nearer to 3 than to 2; 0.24 and the tie at 0.25 go to 0, which keeps its sign.
        assert_eq!((p.scale, q), (1.0, vec![7, 0x0d, 0, 8, 0]));
        let (p, q) = run(&x, BlockType::Mxfp8E4m3, Algorithm::Rtn);
        // 448 saturates nothing: 7 · 2⁶.
        assert_eq!((p.scale, q[0]), (2f32.powi(-6), 0x7e));
        let (p, q) = run(&x, BlockType::Mxfp8E5m2, Algorithm::Rtn);
        assert_eq!((p.scale, q[0]), (2f32.powi(-13), 0x7b));
        let (p, q) = run(&[1.99, -2.5 / 64.0, 3.5 / 64.0], BlockType::Mxint8, Algorithm::Rtn);
        assert_eq!((p.scale, q.iter().map(|&c| c as u8 as i8).collect::<Vec<_>>()), (1.0 / 64.0, vec![127, -2, 4]));
        assert_eq!(run(&[0.0; 32], BlockType::Mxfp4, Algorithm::Rtn).0.scale, 1.0);
        // 2⁻¹⁴⁹ has no scale among the normal floats: the least one is taken.
        let (p, q) = run(&[1e-45; 4], BlockType::Mxfp8E4m3, Algorithm::Rtn);
        assert_eq!((p.scale, q[0]), (f32::MIN_POSITIVE, 0));
        assert_eq!(run(&[f32::MAX; 4], BlockType::Mxint8, Algorithm::Mse).0.scale.log2().fract(), 0.0);
    }

    #[test]
    fn agrees_with_an_independent_reference_of_microscaling() {
        #[derive(serde::Deserialize)]
        struct Case {
            format: BlockType,
            values: Vec<f32>,
            scale: f32,
            codes: Vec<i32>,
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/schemes/microscaling.json");
        let mut all: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cases: Vec<Case> = serde_json::from_value(all["cases"].take()).unwrap();
        assert!(cases.len() > 60);
        for c in cases {
            let (p, q) = run(&c.values, c.format, Algorithm::Rtn);
            let signed: Vec<i32> = match c.format {
                BlockType::Mxint8 => q.iter().map(|&c| i32::from(c as u8 as i8)).collect(),
                _ => q,
            };
            assert_eq!((p.scale.to_bits(), signed), (c.scale.to_bits(), c.codes), "{} {:?}", c.format, c.values);
        }
    }

    #[test]
    fn looks_for_the_best_power_of_two_only_when_asked_to() {
        let values = |q: &[i32]| -> Vec<f32> { q.iter().map(|&c| E2M1_TABLE.decode(c as u8)).collect() };
        let error = |x: &[f32], a: Algorithm| {
            let (p, q) = run(x, BlockType::Mxfp4, a);
            x.iter().zip(values(&q)).map(|(v, q)| (v - q * p.scale).powi(2)).sum::<f32>()
        };
        // Saturating 7.9 at 6 costs more than steps of twice the size.
        let x = [7.9, 7.8, 4.0, 8.0 / 3.0];
        assert_eq!(run(&x, BlockType::Mxfp4, Algorithm::Rtn).0.scale, 1.0);
        assert_eq!(run(&x, BlockType::Mxfp4, Algorithm::Mse).0.scale, 2.0);
        for seed in 0..20 {
            let x = noise(32, seed);
            assert!(error(&x, Algorithm::Mse) <= error(&x, Algorithm::Rtn));
        }
    }

    #[test]
    fn puts_the_extreme_of_floats_on_the_greatest_value() {
        let (p, q) = run(&[-8.96, 4.48, 0.0], BlockType::Fp8E4m3, Algorithm::Rtn);
        assert_eq!((p.scale, q[0], q[2]), (0.02, 0xfe, 0));
        let (p, q) = run(&[-2.0, 2.0, 0.0, 1.12], BlockType::Nf4, Algorithm::Rtn);
        assert_eq!((p.scale, q), (2.0, vec![0, 15, 7, 13]));
    }
}
