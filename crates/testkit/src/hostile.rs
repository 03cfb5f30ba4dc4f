//! Damaged input for parsers: the fuzzing corpus, seeded mutations of it, and a bound on memory.

use std::fs;
use std::path::Path;

use crate::paths;
use crate::random::Random;

/// Numbers that a text may hold where a small one is expected.
const NUMBERS: [&str; 8] =
    ["0", "-1", "1099511627776", "9223372036854775807", "99999999999999999999", "1e308", "-1e-320", "nan"];

/// The seeds of a fuzz target, by name: the files of `fuzz/corpus/<target>`.
///
/// # Panics
/// When the folder is missing or empty: a test without seeds tests nothing.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = paths::repo().join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&dir).expect("the corpus lies in the repository").flatten().collect();
    files.sort_by_key(|e| e.path());
    assert!(!files.is_empty(), "{} is empty", dir.display());
    let read = |e: &fs::DirEntry| fs::read(e.path()).expect("a seed can be read");
    files.iter().map(|e| (e.file_name().to_string_lossy().into_owned(), read(e))).collect()
}

/// A damaged copy of one of `seeds`, none of which may be empty: cut, flipped, overwritten, spliced with another
/// seed or with extreme numbers, binary and written out.
pub fn mutate(seeds: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].1.clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << random.below(8)),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = random.bits() as u8),
            // A varint of the greatest size.
            3 => drop(bytes.splice(at..at, [0xff; 9].into_iter().chain([1]))),
            4 => {
                let other = &seeds[random.below(seeds.len())].1;
                let from = random.below(other.len());
                let piece = other[from..].iter().take(random.below(64)).copied().collect::<Vec<_>>();
                drop(bytes.splice(at..at, piece));
            }
            5 => number(&mut bytes, at, NUMBERS[random.below(NUMBERS.len())]),
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

/// Replaces the first number at or behind `at` that is written in digits.
fn number(bytes: &mut Vec<u8>, at: usize, by: &str) {
    let Some(start) = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()) else { return };
    let end = (start..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
    bytes.splice(start..end, by.bytes());
}

/// Asserts that the process has never held more than `limit` bytes, where the system tells.
///
/// # Panics
/// When it has.
pub fn assert_memory_below(limit: usize) {
    let Ok(status) = fs::read_to_string(Path::new("/proc/self/status")) else { return };
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let peak = line.and_then(|l| l.split_whitespace().next()?.parse::<usize>().ok());
    assert!(peak.is_none_or(|kb| kb < limit >> 10), "the process held {peak:?} KiB");
}
