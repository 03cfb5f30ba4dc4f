//! Whether memory is left, asked before it is taken.
//!
//! Rust's collections end the process where the allocator has nothing more to give. What data or a model decide the
//! size of is therefore asked for here first, so that a lack of memory is an error like any other.

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::MmapMut;

use crate::TensorError;

/// Bytes that stay free beside what is asked for: small things are allocated without asking.
const SLACK: usize = 24 << 20;
/// Smaller requests are added up, and the system is asked when they have come to as much.
const SMALL: usize = 1 << 20;
/// From here on what the machine has free is looked up, too: systems promise more than they have.
const LARGE: usize = 256 << 20;

/// Checks that `bytes` more can be allocated now, and that `working` bytes can be beside them for a while.
///
/// Takes no memory: what another thread allocates meanwhile may be missing then. Asks for some more than what is
/// named, so that small allocations in between need not ask.
///
/// # Errors
/// [`TensorError::Memory`] when the system refuses that much (a limit such as `ulimit -v`), or has not `bytes` free.
pub fn check(bytes: usize, working: usize) -> Result<(), TensorError> {
    static SINCE: AtomicUsize = AtomicUsize::new(0);
    let refused = || TensorError::Memory { bytes: bytes.saturating_add(working) };
    let all = bytes.checked_add(working).and_then(|n| n.checked_add(SLACK)).ok_or_else(refused)?;
    if all < SMALL + SLACK {
        let small = all - SLACK;
        if SINCE.fetch_add(small, Ordering::Relaxed) + small < SMALL {
            return Ok(());
        }
    }
    SINCE.store(0, Ordering::Relaxed);
    if bytes >= LARGE && free().is_some_and(|free| free < bytes) {
        return Err(refused());
    }
    // Pages that nobody touches cost nothing, and the allocator's own state stays as it is.
    MmapMut::map_anon(all).map(|pages| drop(black_box(pages))).map_err(|_| refused())
}

/// Bytes that the machine, or the container, can give to this program without ending one; `None` where the system does not
/// tell.
fn free() -> Option<usize> {
    let machine = total(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(left_to_groups(&groups, Path::new("/sys/fs/cgroup")).map_or(machine, |left| left.min(machine)))
}

/// What the control groups of this process leave it: of all from its own to the root, the least (Linux' cgroup v2). What the
/// files that a group has read occupy is given back to it when it needs more.
fn left_to_groups(groups: &str, root: &Path) -> Option<usize> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let left = |group: &Path| {
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
        // A group without a limit says "max".
        let (most, used) = (number("memory.max")?, number("memory.current")?);
        let stat = read("memory.stat").unwrap_or_default();
        let files = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<usize>().ok());
        Some(most.saturating_sub(used.saturating_sub(files.unwrap_or(0))))
    };
    Path::new(own).ancestors().filter_map(|group| left(&root.join(group))).min()
}

/// What is available, and free to swap to, in the words of Linux.
fn total(meminfo: &str) -> Option<usize> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
    };
    Some(field("MemAvailable:")?.saturating_add(field("SwapFree:").unwrap_or(0)))
}

/// A size in bytes for people, in decimal units.
pub fn readable(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_what_there_is() {
        assert_eq!(check(0, 0), Ok(()));
        assert_eq!(check(1 << 20, 1 << 20), Ok(()));
        assert!((0..100).all(|_| check(60_000, 0).is_ok()));
    }

    #[test]
    fn refuses_what_no_machine_has() {
        for (bytes, working) in [(1 << 60, 0), (usize::MAX, 0), (usize::MAX, usize::MAX), (0, 1 << 60)] {
            let all = bytes.saturating_add(working);
            assert_eq!(check(bytes, working), Err(TensorError::Memory { bytes: all }), "{bytes} {working}");
        }
        let text = TensorError::Memory { bytes: 3 << 30 }.to_string();
        assert!(text.contains("3.22 GB") && text.contains("help: "), "{text}");
    }

    #[test]
    fn reads_what_linux_says() {
        assert_eq!(total("MemTotal: 9 kB\nMemAvailable:   20 kB\nSwapFree: 1 kB\n"), Some(21 * 1024));
        assert_eq!(total("MemAvailable: 20 kB\n"), Some(20 * 1024));
        for other in ["", "MemAvailable: many kB\n", "MemFree: 20 kB\n", "MemAvailable: 20\n"] {
            assert_eq!(total(other), None, "{other}");
        }
    }

    #[test]
    fn writes_bytes_in_the_unit_that_fits() {
        let texts = [12, 1536, 3_000_000, 5_000_000_000].map(readable);
        assert_eq!(texts, ["12 B", "1.5 kB", "3.0 MB", "5.00 GB"]);
    }

    #[test]
    fn heeds_the_limits_of_all_control_groups() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let left = |groups: &str| left_to_groups(groups, root.path());
        assert_eq!(left("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "700\n");
        assert_eq!(left("0::/a/b\n"), None);
        write("a/memory.max", "1000\n");
        write("a/memory.current", "800\n");
        assert_eq!(left("0::/a/b\n"), Some(200));
        write("a/memory.stat", "anon 500\ninactive_file 300\n");
        assert_eq!(left("1:name=systemd:/\n0::/a/b\n"), Some(500));
        write("a/b/memory.max", "600\n");
        assert_eq!(left("0::/a/b\n"), Some(0));
        assert_eq!(left("1:memory:/a\n"), None);
    }
}
