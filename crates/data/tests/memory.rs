//! Peak memory does not grow with the number of samples. A test binary of its own, because the
//! peak is that of the process; it says that it is skipped where there is no `/proc`.

use std::path::Path;

use narrowbit_data::{DataOptions, Dataset, InputSpec, NpzWriter};
use narrowbit_tensor::{DType, Tensor};

const SAMPLE: [usize; 3] = [64, 64, 3];

fn peak_kb() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}

/// Floats that deflate does not shrink to nothing: 48 KiB a sample.
fn write(path: &Path, samples: usize, compressed: bool) {
    let mut w = NpzWriter::create(path).unwrap();
    if compressed {
        w = w.compressed();
    }
    let n: usize = SAMPLE.iter().product();
    for s in 0..samples {
        let values: Vec<f32> = (0..n).map(|i| ((i * 7 + s) % 1013) as f32 * 0.5).collect();
        let shape = [1].into_iter().chain(SAMPLE).collect::<Vec<_>>();
        w.append("images", &Tensor::new(shape, values).unwrap()).unwrap();
    }
    w.finish().unwrap();
}

fn pass(path: &Path, shuffle: bool) {
    let spec = InputSpec::new("input", DType::F32, [None, Some(3), Some(64), Some(64)]);
    let options = DataOptions { shuffle, ..DataOptions::default() };
    let data = Dataset::open(path, &options).unwrap().bind(&[spec]).unwrap();
    let sum: usize = data.batches(8).map(|b| b.unwrap().indices.len()).sum();
    assert_eq!(sum, data.len());
}

#[test]
fn keeps_memory_flat_from_100_to_1000_samples() {
    if peak_kb().is_none() {
        eprintln!("skipped: no /proc/self/status");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for compressed in [false, true] {
        for shuffle in [false, true] {
            let peak = |samples: usize| {
                let path = dir.path().join(format!("{samples}.npz"));
                write(&path, samples, compressed);
                pass(&path, shuffle);
                peak_kb().unwrap()
            };
            let (small, large) = (peak(200), peak(1000));
            // 1000 samples are 48 MB; allocator noise and the 8 MB whole-member cache stay below 4 MB more.
            assert!(
                large.saturating_sub(small) < 4096,
                "compressed {compressed}, shuffle {shuffle}: {small} kB, then {large} kB"
            );
            eprintln!("compressed {compressed}, shuffle {shuffle}: {small} kB, then {large} kB");
        }
    }
}
