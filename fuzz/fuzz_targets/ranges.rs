//! Files of calibrated ranges; every method takes a range from what can be read.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use narrowbit_quant::observe::Method;
use narrowbit_quant::ranges::Ranges;
use narrowbit_quant::scheme::{ActivationScheme, Statistic};

fuzz_target!(|text: &str| {
    let Ok(mut ranges) = Ranges::parse(text, Path::new("ranges.json")) else { return };
    let twice = ranges.clone();
    ranges.merge(&twice).expect("ranges merge with themselves");
    let scheme = ActivationScheme::default();
    for stats in ranges.tensors.values() {
        for method in [Method::Minmax, Method::MovingAverage, Method::Percentile(99.0), Method::Entropy, Method::Mse] {
            let point = stats.range(method, &scheme, Statistic::default(), true).map(|r| scheme.qparams(r));
            assert!(point.is_none_or(|p| p.scale.is_finite() && p.scale > 0.0));
        }
    }
});
