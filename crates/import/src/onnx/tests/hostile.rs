//! Mutated files are read or refused, without a panic and in bounded memory.

use std::fs;
use std::path::Path;

use narrowbit_testkit::paths;
use narrowbit_testkit::random::Random;

use super::super::{check_supported, inline_functions, to_bytes};

const ROUNDS: usize = 3000;

/// Whatever can be done with a file's bytes before anything runs.
fn exercise(bytes: &[u8]) -> bool {
    let Ok(mut model) = super::super::parse(bytes.to_vec(), None) else { return false };
    model.graph.verify().unwrap();
    let _ = check_supported(&model);
    let written = to_bytes(&model).unwrap();
    super::super::parse(written, None).expect("what was written can be read");
    let _ = inline_functions(&mut model);
    model.graph.verify().unwrap();
    true
}

fn corpus() -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(paths::repo().join("fuzz/corpus/onnx"))
        .expect("the corpus lies in the repository")
        .flatten()
        .map(|e| e.path())
        .collect();
    files.sort();
    files.iter().map(|p| fs::read(p).unwrap()).collect()
}

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << random.below(8)),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = random.bits() as u8),
            // A length or a number of the greatest size.
            3 => drop(bytes.splice(at..at, [0xff; 9].into_iter().chain([1]))),
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let piece = other[from..].iter().take(random.below(64)).copied().collect::<Vec<_>>();
                drop(bytes.splice(at..at, piece));
            }
            _ => {
                let end = (at + random.below(32)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// The most memory that the process has held so far, in bytes.
fn peak_memory() -> Option<usize> {
    let status = fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kb| kb * 1024)
}

#[test]
fn replays_the_fuzzing_corpus() {
    for bytes in corpus() {
        exercise(&bytes);
    }
}

#[test]
fn survives_mutated_files() {
    let seeds: Vec<Vec<u8>> = corpus().into_iter().filter(|b| !b.is_empty()).collect();
    let mut random = Random::new(7);
    let readable = (0..ROUNDS).filter(|_| exercise(&mutate(&seeds, &mut random))).count();
    assert!(readable > ROUNDS / 100, "hardly any mutation is read: {readable} of {ROUNDS}");
    if let Some(peak) = peak_memory() {
        assert!(peak < 1 << 30, "the process held {} MiB", peak >> 20);
    }
}
