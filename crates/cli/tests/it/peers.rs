//! Models that ONNX Runtime has quantized, in every form that it writes: its results, on integers.

use std::collections::BTreeMap;
use std::path::Path;

use narrowbit_data::NpzWriter;
use narrowbit_import::onnx;

use crate::home::{EXAMPLES, Home, python};
use crate::onnxruntime::samples;

/// ONNX Runtime quantizes an example in each of its forms; their names.
fn forms(home: &Home) -> Option<Vec<String>> {
    narrowbit_testkit::paths::python()?;
    let graph = onnx::load(home.path("model.onnx")).expect("the example").graph;
    let inputs = samples(&graph, &home.path("calib.npz"), &home.path("case.json"), SAMPLES);
    let mut out = NpzWriter::create(home.path("inputs.npz")).expect("a file");
    inputs.iter().for_each(|(name, t)| out.add(name.clone(), t).expect("an array"));
    out.finish().expect("a file");
    let made = python("peer_forms.py", &[&home.path("model.onnx"), &home.path("")])?.expect(0).json();
    Some(serde_json::from_value(made).expect("a list of names"))
}

/// What ranges of one run depend on: all samples are one batch on both sides.
const SAMPLES: usize = 32;

#[test]
fn runs_the_forms_of_onnx_runtime_on_integers_with_its_results() {
    if narrowbit_testkit::paths::peers_saturate() {
        return;
    }
    for example in EXAMPLES {
        let home = Home::with_example(example);
        let Some(forms) = forms(&home) else { return };
        for form in &forms {
            home.ok(&format!("run {form}.onnx --data inputs.npz --batch {SAMPLES} -o {form}.ours.npz"));
            let rows = home.json(&format!("bench {form}.onnx --runs 1 --warmup 1 --threads 1"));
            let of = |name: &str| rows[0]["integers"][name].as_u64().unwrap_or(0);
            println!("{example} {form}: {} of {} multiply-accumulates on integers", of("integer_macs"), of("macs"));
            // The file makes this model's weights by Transpose: for `quantize_dynamic` they are activations, which it
            // leaves alone unless it is asked.
            let left = example == "digits-vit" && ["dynamic_s8", "dynamic_u8"].contains(&form.as_str());
            let quantized = if left { 0.0 } else { 1.0 };
            assert!(of("integer_macs") as f64 >= quantized * of("macs") as f64 && of("macs") > 0, "{form}: {rows}");
        }
        let compare = Path::new("--compare");
        let ran = python("peer_forms.py", &[&home.path("model.onnx"), &home.path(""), compare]).expect("it was there");
        let report: BTreeMap<String, f64> = serde_json::from_value(ran.expect(0).json()).expect("numbers");
        assert_eq!(report.len(), forms.len());
        for (form, sqnr) in report {
            println!("{example} {form}: {sqnr:.1} dB");
            // A code that rounding moves across a border moves others behind it: 39 dB and more were measured. Operators on
            // codes round alike; floats between them, as in a normalisation, are alike but for their last bits.
            let least = if form.starts_with("qoperator") { 100.0 } else { 30.0 };
            assert!(sqnr > least, "{example} {form}: {sqnr} dB");
        }
    }
}
