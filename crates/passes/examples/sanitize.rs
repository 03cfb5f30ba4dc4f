//! Sanitizes ONNX files and says what was done: `sanitize IN.onnx OUT.onnx [DUMP_DIR]`.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;

use narrowbit_import::onnx::{self, SaveOptions};
use narrowbit_passes::{SanitizeOptions, sanitize};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, dump @ ..] = args.as_slice() else {
        return Err("usage: sanitize IN.onnx OUT.onnx [DUMP_DIR]".into());
    };
    let mut model = onnx::load(input)?;
    let start = Instant::now();
    let dump_dir = dump.first().map(Into::into);
    let report = sanitize(&mut model, &SanitizeOptions { dump_dir, ..SanitizeOptions::default() })?;
    println!("{input}: {report}\n  {:.3} s", start.elapsed().as_secs_f64());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, node) in model.graph.nodes() {
        *counts.entry(node.op.name().into()).or_default() += 1;
    }
    println!("  {counts:?}");
    onnx::save(&model, output, &SaveOptions::default())?;
    Ok(())
}
