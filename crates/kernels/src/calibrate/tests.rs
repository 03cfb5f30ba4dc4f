use super::*;
use crate::testing::{Guarded, Random, execs};

fn data(len: usize) -> Vec<f32> {
    let mut r = Random::new(len as u64);
    let mut x: Vec<f32> = (0..len).map(|_| r.unit() * 5.0).collect();
    for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3.0, -3.0] {
        if len > 4 {
            x[r.below(len)] = v;
        }
    }
    x
}

fn reference(x: impl Iterator<Item = f32>) -> Range {
    x.fold(Range::EMPTY, |mut range, v| {
        range.nan += u64::from(v.is_nan());
        range.infinite += u64::from(v.is_infinite());
        if v.is_finite() {
            range.min = range.min.min(v);
            range.max = range.max.max(v);
        }
        range
    })
}

#[test]
fn finds_ranges_and_counts_what_is_not_finite() {
    for exec in execs() {
        for len in [0, 1, 15, 16, 100, 70_001] {
            let x = data(len);
            let mut g = Guarded::new(&x);
            assert_eq!(min_max(&exec, g.get()), reference(x.iter().copied()), "{len} {exec:?}");
        }
        for [outer, c, inner] in [[3, 5, 37], [50, 70, 1], [1, 1, 1], [2, 3, 20_000]] {
            let x = data(outer * c * inner);
            let mut g = Guarded::new(&x);
            let mut ranges = vec![Range::EMPTY; c];
            channel_min_max(&exec, g.get(), [outer, c, inner], &mut ranges).unwrap();
            for (channel, got) in ranges.iter().enumerate() {
                let own = x.iter().enumerate().filter(|(i, _)| i / inner % c == channel).map(|(_, &v)| v);
                assert_eq!(*got, reference(own), "{outer} {c} {inner} {exec:?}");
            }
        }
    }
}

#[test]
fn counts_every_element_once_in_its_bin() {
    for exec in execs() {
        for (len, bins, low, high, absolute) in [
            (0, 3, 0.0, 1.0, false),
            (37, 7, -2.0, 2.0, false),
            (200_000, 2048, 0.0, 4.0, true),
            (70_000, 64, -4.0, 4.0, false),
            (9000, 1, -1.0, 0.5, false),
        ] {
            let x = data(len);
            let mut want = vec![1u64; bins];
            let mut outside = Outside::default();
            let factor = bins as f32 / (high - low);
            for v in x.iter().map(|v: &f32| if absolute { v.abs() } else { *v }) {
                if v.is_nan() {
                    outside.nan += 1;
                } else if v < low {
                    outside.below += 1;
                } else if v > high {
                    outside.above += 1;
                } else {
                    let exact = (f64::from(v) - f64::from(low)) * f64::from(factor);
                    let bin = if bins == 64 { exact as usize } else { ((v - low) * factor) as usize };
                    want[bin.min(bins - 1)] += 1;
                }
            }
            let mut got = vec![1u64; bins];
            let mut g = Guarded::new(&x);
            assert_eq!(histogram(&exec, g.get(), (low, high), absolute, &mut got).unwrap(), outside);
            assert_eq!(got, want, "{len} {exec:?}");
        }
    }
}

#[test]
fn counts_and_finds_the_extremes_in_one_pass_within_the_range() {
    for exec in execs() {
        for len in [1, 37, 1024, 5000, 200_003] {
            let mut r = Random::new(len as u64);
            let mut x: Vec<f32> = (0..len).map(|_| r.unit() * 3.9).collect();
            let (mut want, mut got) = (vec![7u64; 64], vec![7u64; 64]);
            histogram(&exec, &x, (-4.0, 4.0), false, &mut want).unwrap();
            let extremes = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |m, &v| (m.0.min(v), m.1.max(v)));
            let mut g = Guarded::new(&x);
            assert_eq!(histogram_within(&exec, g.get(), (-4.0, 4.0), &mut got).unwrap(), Some(extremes));
            assert_eq!(got, want, "{len} {exec:?}");
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 4.0, -4.0] {
                x[len / 2] = odd;
                assert_eq!(histogram_within(&exec, &x, (-4.0, 4.0), &mut got).unwrap(), None, "{odd}");
                assert_eq!(got, want, "{len} {odd} {exec:?}");
            }
        }
    }
}

#[test]
fn sums_to_f64_precision_of_the_parts() {
    for exec in execs() {
        for len in [0, 5, 1000, 300_000] {
            let x = data(len);
            let finite = || x.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v));
            let got = moments(&exec, &x);
            assert_eq!(got.count, finite().count() as u64);
            // f32 sums of 256 elements of magnitude ≤ 25, ~1e-5 each at random signs.
            let tolerance = 1e-6 * (1.0 + len as f64);
            assert!((got.sum - finite().sum::<f64>()).abs() < tolerance);
            assert!((got.sum_square - finite().map(|v| v * v).sum::<f64>()).abs() < 10.0 * tolerance);
            assert_eq!(f64::from(got.abs_max), finite().map(f64::abs).fold(0.0, f64::max));
        }
    }
}

#[test]
fn refuses_an_empty_range_and_no_bins() {
    let exec = Exec::new(crate::Isa::detect(), 1);
    assert!(histogram(&exec, &[1.0], (1.0, 1.0), false, &mut [0]).is_err());
    assert!(histogram(&exec, &[1.0], (0.0, f32::INFINITY), false, &mut [0]).is_err());
    assert!(histogram(&exec, &[1.0], (0.0, 1.0), false, &mut []).is_err());
}
