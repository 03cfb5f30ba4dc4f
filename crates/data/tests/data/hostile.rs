//! Damaged and lying input ends in an answer or an error: no panic, no unbounded memory.
//!
//! Each format has sound seeds, from `fixtures/` and `fuzz/corpus/`, and thousands of seeded
//! mutations of them. A failure names the case; the corpus keeps inputs that once were one.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use narrowbit_data::{DataOptions, Dataset, InputSpec, Labels, Limits, Preprocess, Split, SplitMix64};
use narrowbit_tensor::DType;

const CASES_PER_SEED: usize = 1500;

/// Panics seen anywhere, those that are caught included.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn seeds(target: &str, fixtures: &[&str]) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut out: Vec<_> = fixtures.iter().map(|f| ((*f).to_owned(), std::fs::read(folder.join(f)).unwrap())).collect();
    let corpus = root().join("fuzz/corpus").join(target);
    let mut entries: Vec<_> = std::fs::read_dir(&corpus).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    out.extend(entries.iter().map(|p| (p.display().to_string(), std::fs::read(p).unwrap())));
    assert!(!out.is_empty());
    out
}

/// A damaged copy: cut, flipped, overwritten with extreme numbers, repeated, or spliced.
fn mutate(rng: &mut SplitMix64, seed: &[u8]) -> Vec<u8> {
    const LIES: [u64; 8] = [0, 1, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
    let mut out = seed.to_vec();
    for _ in 0..=rng.below(3) {
        if out.is_empty() {
            break;
        }
        // Headers are small and at the front: half of the damage goes there.
        let span = if rng.below(2) == 0 { out.len().min(256) } else { out.len() };
        let at = rng.below(span as u64) as usize;
        match rng.below(8) {
            0 => out.truncate(at),
            1 | 2 => out[at] ^= 1 << rng.below(8),
            3 => out[at] = rng.next_u64() as u8,
            4 | 5 => {
                let width = [1, 2, 4, 8][rng.below(4) as usize].min(out.len() - at);
                let lie = LIES[rng.below(8) as usize].to_le_bytes();
                out[at..at + width].copy_from_slice(&lie[..width]);
            }
            6 => {
                let n = (rng.below(64) as usize).min(out.len() - at);
                let piece = out[at..at + n].to_vec();
                let to = rng.below(out.len() as u64) as usize;
                out.splice(to..to, piece);
            }
            _ => {
                let n = (rng.below(32) as usize).min(out.len() - at);
                out.drain(at..at + n);
            }
        }
    }
    out
}

/// Everything a caller does with a data set.
fn exercise(name: &str, bytes: Bytes) {
    let mut limits = Limits::default();
    (limits.read_bytes, limits.whole_bytes, limits.image_pixels) = (16 << 20, 128, 1 << 20);
    for (split, shuffle) in [(Split::Calibration, false), (Split::Test, true)] {
        let options =
            DataOptions { split, shuffle, samples: Some(8), limits: limits.clone(), ..DataOptions::default() };
        let Ok(data) = Dataset::from_bytes(name, bytes.clone(), &options) else { continue };
        let _ = (data.names(), data.arrays(), data.len());
        for _ in data.batches(3) {}
        let _ = data.sample(data.len().wrapping_sub(1));
        for spec in [[None, Some(3), Some(4)].as_slice(), &[None, Some(3), Some(4), Some(6)], &[None; 4]] {
            let Ok(data) = Dataset::from_bytes(name, bytes.clone(), &options) else { continue };
            let Ok(data) = data.bind(&[InputSpec::new("input", DType::F32, spec)]) else { continue };
            for _ in data.batches(2) {}
        }
    }
}

/// Runs `check` on the seeds and on mutations of each.
fn storm(target: &str, fixtures: &[&str], check: impl Fn(Bytes)) {
    let default = std::panic::take_hook();
    let watch = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        if std::thread::current().id() != watch {
            default(info);
        } else {
            eprintln!("{info}");
        }
    }));
    for (s, (name, seed)) in seeds(target, fixtures).into_iter().enumerate() {
        check(seed.clone().into());
        for case in 0..CASES_PER_SEED {
            let mut rng = SplitMix64::new((s * 1_000_003 + case) as u64);
            let bytes: Bytes = mutate(&mut rng, &seed).into();
            let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(bytes.clone())));
            assert!(
                run.is_ok(),
                "{target}: {name}, case {case} panics; input: {:02x?}",
                &bytes[..bytes.len().min(512)]
            );
        }
    }
    check_memory();
}

/// The peak of the whole test process stays far below what the lies ask for.
fn check_memory() {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .and_then(|l| l.split_whitespace().next()?.parse::<usize>().ok());
    assert!(peak.is_none_or(|kb| kb < 700 << 10), "peak {peak:?} kB");
}

#[test]
fn survives_hostile_npz() {
    storm("data_npz", &["parts.npz", "deflated.npz"], |b| exercise("x.npz", b));
}

#[test]
fn survives_hostile_npy() {
    storm("data_npy", &["fortran.npy"], |b| exercise("x.npy", b));
}

#[test]
fn survives_hostile_safetensors() {
    storm("data_safetensors", &["root.safetensors"], |b| exercise("x.safetensors", b));
}

#[test]
fn survives_hostile_hdf5() {
    storm("data_h5", &["root.h5", "types.h5", "items.h5"], |b| exercise("x.h5", b));
}

#[test]
fn survives_hostile_images() {
    storm("data_image", &["scene.png", "scene.JPG", "gray.png"], |b| exercise("x.png", b));
}

#[test]
fn survives_hostile_tables() {
    storm("data_labels", &[], |b| {
        if let Ok(labels) = Labels::from_bytes("labels.csv", b, &Limits::default()) {
            let _ = labels.read(0, labels.len());
        }
    });
}

#[test]
fn survives_hostile_preprocessing() {
    storm("data_preprocess", &[], |b| {
        if let Ok(text) = std::str::from_utf8(&b) {
            let _ = (Preprocess::from_json(text), Preprocess::from_toml(text));
        }
    });
}
