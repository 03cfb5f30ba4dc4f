//! The program's code knows no floating-point type.

use std::fs;
use std::path::{Path, PathBuf};

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("the sources are there").map(|e| e.expect("an entry").path());
    entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

#[test]
fn names_no_float_where_programs_run() {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/run");
    let all = files(&run);
    assert!(all.len() >= 4, "{all:?}");
    for file in all {
        let text = fs::read_to_string(&file).expect("a source is read");
        for word in ["f16", "bf16", "f32", "f64", "F32", "float("] {
            assert!(!text.contains(word), "{}: {word}", file.display());
        }
    }
}
