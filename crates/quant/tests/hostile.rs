//! Damaged settings and ranges are taken or refused: no panic, bounded memory.

use std::collections::BTreeMap;
use std::path::Path;

use narrowbit_ir::text;
use narrowbit_kernels::{Exec, Isa};
use narrowbit_ops::Registry;
use narrowbit_quant::encodings::{Decided, Encodings, Format};
use narrowbit_quant::observe::Method;
use narrowbit_quant::options::{Matcher, QuantOptions};
use narrowbit_quant::quantize;
use narrowbit_quant::ranges::{Ranges, graph_hash};
use narrowbit_testkit::hostile;
use narrowbit_testkit::random::Random;

const ROUNDS: usize = 20_000;
const MEMORY: usize = 1 << 29;

/// A model for the settings and the ranges of the corpus.
fn model() -> narrowbit_ir::Model {
    let text = "model opset=17 graph \"g\" { input %x: f32[n, 4] const %w: f32[4, 4] = random(1)
        %p = MatMul(%x, %w) @\"first\" %r = Relu(%p) %y = MatMul(%r, %w) @\"second\" output %y }";
    text::parse_model(text, &Registry).unwrap()
}

/// Whatever can be done with settings before there are ranges.
fn exercise_config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let json: Option<QuantOptions> = serde_json::from_str(text).ok();
    let Some(options) = json.or_else(|| toml::from_str(text).ok()) else { return false };
    let shown = toml::to_string(&options).expect("settings can be written");
    assert_eq!(toml::to_string(&toml::from_str::<QuantOptions>(&shown).expect("and read")).unwrap(), shown);
    let _ = Matcher::new(&options.overrides);
    let _ = quantize::layout(&model(), &options);
    true
}

/// Whatever can be done with ranges; they are taken for those of the model.
fn exercise_ranges(bytes: &[u8], exec: &Exec) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(mut ranges) = Ranges::parse(text, Path::new("ranges.json")) else { return false };
    let twice = ranges.clone();
    ranges.merge(&twice).expect("ranges merge with themselves");
    let model = model();
    ranges.graph = graph_hash(&model.graph);
    for method in [Method::Minmax, Method::MovingAverage, Method::Percentile(99.0), Method::Entropy, Method::Mse] {
        let mut model = model.clone();
        let options = QuantOptions { method, ..QuantOptions::default() };
        let layout = quantize::layout(&model, &options).unwrap();
        if let Ok((plan, _)) = quantize::quantize(&mut model, layout, &ranges, &options, exec) {
            for a in plan.activations.values() {
                assert!(a.point.scale.is_finite() && a.point.scale > 0.0, "{method:?}: {a:?}");
            }
        }
    }
    true
}

/// Whatever can be done with encodings; they are taken for those of the model.
fn exercise_encodings(bytes: &[u8], exec: &Exec) -> bool {
    let Ok(given) = Encodings::parse(bytes, Path::new("encodings.json")) else { return false };
    for format in [Format::Vitis, Format::Aimet, Format::AimetV0, Format::Ort] {
        let _ = given.write(format);
    }
    let mut model = model();
    let options = QuantOptions::default();
    let layout = quantize::layout(&model, &options).unwrap();
    let _ = quantize::quantize_with(&mut model, layout, &Ranges::default(), &given, &options, Default::default(), exec);
    true
}

/// Whatever can be done with decisions of tensors; they are taken for those of the model.
fn exercise_decisions(bytes: &[u8], exec: &Exec) -> bool {
    let Ok(all) = serde_json::from_slice::<BTreeMap<String, Decided>>(bytes) else { return false };
    let Ok(given) = Encodings::of_decided(&all) else { return false };
    assert!((13..=21).contains(&given.least_opset()));
    let mut model = model();
    let options = QuantOptions::default();
    let layout = quantize::layout(&model, &options).unwrap();
    let _ = quantize::quantize_with(&mut model, layout, &Ranges::default(), &given, &options, Default::default(), exec);
    let _ = Encodings::decided(&model.graph, Some(&options));
    true
}

fn replay(target: &str, exercise: impl Fn(&[u8]) -> bool) {
    for (name, bytes) in hostile::corpus(target) {
        assert_ne!(exercise(&bytes), name.starts_with("bad_"), "{name}");
    }
}

fn storm(target: &str, seed: u64, rounds: usize, exercise: impl Fn(&[u8]) -> bool) {
    let (seeds, mut random) = (hostile::corpus(target), Random::new(seed));
    let readable = (0..rounds).filter(|_| exercise(&hostile::mutate(&seeds, &mut random))).count();
    assert!(readable > rounds / 100, "hardly any mutation is read: {readable} of {rounds}");
    hostile::assert_memory_below(MEMORY);
}

#[test]
fn replays_the_corpus() {
    let exec = Exec::new(Isa::detect(), 1);
    replay("quant_config", exercise_config);
    replay("ranges", |bytes| exercise_ranges(bytes, &exec));
    replay("encodings", |bytes| exercise_encodings(bytes, &exec));
    replay("decisions", |bytes| exercise_decisions(bytes, &exec));
}

#[test]
fn survives_damaged_settings() {
    storm("quant_config", 17, ROUNDS, exercise_config);
}

#[test]
fn survives_damaged_ranges() {
    let exec = Exec::new(Isa::detect(), 1);
    storm("ranges", 19, ROUNDS, |bytes| exercise_ranges(bytes, &exec));
}

#[test]
fn survives_damaged_encodings() {
    let exec = Exec::new(Isa::detect(), 1);
    storm("encodings", 23, ROUNDS / 2, |bytes| exercise_encodings(bytes, &exec));
}

#[test]
fn survives_damaged_decisions() {
    let exec = Exec::new(Isa::detect(), 1);
    storm("decisions", 31, ROUNDS / 2, |bytes| exercise_decisions(bytes, &exec));
}
