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

/// The element of an operand of `dims` that belongs to element `index` of a result of `shape`, as numpy broadcasts.
pub(crate) fn broadcast(dims: &[usize], shape: &[usize], mut index: usize) -> usize {
    let (mut at, mut step) = (0, 1);
    for i in 0..shape.len() {
        let len = shape[shape.len() - 1 - i];
        let coordinate = index % len;
        index /= len;
        if i < dims.len() {
            let dim = dims[dims.len() - 1 - i];
            at += if dim == 1 { 0 } else { coordinate * step };
            step *= dim;
        }
    }
    at
}

/// On which side of a slice an inaccessible page stands: an access beyond that end faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    /// The slice begins right behind one.
    Before,
    /// The slice ends right before one.
    Behind,
}

/// A slice at an inaccessible page; there is one on both sides when its bytes fill whole pages.
#[cfg(target_os = "linux")]
pub(crate) struct Guarded<T: Copy> {
    base: *mut libc::c_void,
    bytes: usize,
    start: *mut T,
    len: usize,
}

#[cfg(target_os = "linux")]
impl<T: Copy> Guarded<T> {
    /// A copy that ends right before an inaccessible page.
    pub(crate) fn new(data: &[T]) -> Guarded<T> {
        Guarded::at(Edge::Behind, data)
    }

    /// A copy with an inaccessible page at that end.
    pub(crate) fn at(edge: Edge, data: &[T]) -> Guarded<T> {
        const PAGE: usize = 4096;
        let payload = size_of_val(data).next_multiple_of(PAGE);
        let bytes = payload + 2 * PAGE;
        let before = if edge == Edge::Before { 0 } else { payload - size_of_val(data) };
        // SAFETY: a fresh anonymous mapping, whose first and last page are closed; the data lies between them.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(base, PAGE, libc::PROT_NONE), 0);
            assert_eq!(libc::mprotect(base.add(PAGE + payload), PAGE, libc::PROT_NONE), 0);
            let start = base.cast::<u8>().add(PAGE + before).cast::<T>();
            std::ptr::copy_nonoverlapping(data.as_ptr(), start, data.len());
            Guarded { base, bytes, start, len: data.len() }
        }
    }

    pub(crate) fn get(&mut self) -> &mut [T] {
        // SAFETY: `len` elements lie between the closed pages; borrowed exclusively.
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

/// What a test of all tiers runs: where operands lie, and the results' bits.
#[cfg(target_os = "linux")]
pub(crate) type Run<'a> = &'a dyn Fn(&Exec, Edge) -> Vec<u32>;

/// Runs on every tier, with one and three threads, with an inaccessible page before and behind the operands, and asserts the
/// bits of the scalar tier on one thread.
#[cfg(target_os = "linux")]
#[track_caller]
pub(crate) fn assert_same_everywhere(context: &str, run: Run<'_>) {
    let scalar = Exec::new(Isa::available().pop().expect("the scalar tier is everywhere"), 1);
    let want = run(&scalar, Edge::Behind);
    for exec in execs() {
        for edge in [Edge::Before, Edge::Behind] {
            let got = run(&exec, edge);
            let differs = got.iter().zip(&want).position(|(a, b)| a != b);
            assert_eq!(differs.map(|i| (i, got[i], want[i])), None, "{context} {exec:?} {edge:?}");
            assert_eq!(got.len(), want.len(), "{context} {exec:?}");
        }
    }
}

/// The bits of floats; all NaN are one.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// Floats with what functions treat apart: zeros of both signs, infinities, NaN, denormals.
pub(crate) fn with_special(mut x: Vec<f32>) -> Vec<f32> {
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -1e-40, f32::MAX];
    let step = x.len() / special.len();
    for (i, v) in special.into_iter().enumerate().filter(|_| step > 1) {
        x[i * step] = v;
    }
    x
}
