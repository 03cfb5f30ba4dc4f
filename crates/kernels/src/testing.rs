//! Helpers of the tests: pseudo-random data, memory with guard pages, comparison.

use crate::exec::Exec;
use crate::isa::Isa;

/// A small deterministic generator (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in −1 … 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() % 20001) as f32 / 10000.0 - 1.0
    }

    pub(crate) fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }
}

/// Each tier of this machine, and emulated tiles, with one and with three threads.
pub(crate) fn execs() -> Vec<Exec> {
    Isa::available()
        .into_iter()
        .chain([Isa::emulated()])
        .flat_map(|isa| [Exec::new(isa, 1), Exec::new(isa, 3)])
        .collect()
}

/// Asserts `|got − want| ≤ tolerance · max(1, |want|)`.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f32], tolerance: f32, context: &str) {
    assert_eq!(got.len(), want.len(), "{context}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let same = g == w || (g.is_nan() && w.is_nan());
        let near = (g - w).abs() <= tolerance * w.abs().max(1.0);
        assert!(same || near, "{context}: element {i} is {g}, not {w}");
    }
}

/// A slice that ends exactly at an inaccessible page, and starts right after one when
/// its bytes fill whole pages: an access beyond the end faults.
#[cfg(target_os = "linux")]
pub(crate) struct Guarded<T: Copy> {
    base: *mut libc::c_void,
    bytes: usize,
    start: *mut T,
    len: usize,
}

#[cfg(target_os = "linux")]
impl<T: Copy> Guarded<T> {
    pub(crate) fn new(data: &[T]) -> Guarded<T> {
        const PAGE: usize = 4096;
        let payload = size_of_val(data).next_multiple_of(PAGE);
        let bytes = payload + 2 * PAGE;
        // SAFETY: a fresh anonymous mapping, whose first and last page are closed.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(base, PAGE, libc::PROT_NONE), 0);
            assert_eq!(libc::mprotect(base.add(PAGE + payload), PAGE, libc::PROT_NONE), 0);
            let start = base.cast::<u8>().add(PAGE + payload - size_of_val(data)).cast::<T>();
            std::ptr::copy_nonoverlapping(data.as_ptr(), start, data.len());
            Guarded { base, bytes, start, len: data.len() }
        }
    }

    pub(crate) fn get(&mut self) -> &mut [T] {
        // SAFETY: `len` elements lie before the closed page; borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

#[cfg(target_os = "linux")]
impl<T: Copy> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}
