//! Memory straight from the system: zero pages that cost nothing until they are touched, huge ones where it has them.
//!
//! The allocator would write zeros first, on one core and before the system could be asked for huge pages. On virtual
//! machines pages of 4 KiB cost much of the bandwidth, because each miss of the TLB walks two tables.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes of pages that several buffers share.
const SHARED: usize = 8 * HUGE;
/// Buffers below this size are left to the allocator.
const LEAST: usize = 16 << 10;
/// Buffers in shared pages start on a multiple of this: cache lines of neighbours stay apart.
const STEP: usize = 128;

/// A range of pages of this process, given back when dropped.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the range belongs to its owner like a `Box<[u8]>`; the buffers in it share nothing.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

/// Pages of their own for `bytes`; `None` where the allocator serves as well or the system has none.
pub(crate) fn alone(bytes: usize) -> Option<(NonNull<u8>, Arc<Pages>)> {
    if bytes < HUGE {
        return None;
    }
    let pages = Pages::new(bytes)?;
    Some((pages.start, Arc::new(pages)))
}

/// A part of pages that others share; they are given back when no part is in use. Large ones get pages of their own,
/// and `None` is as for [`alone`].
pub(crate) fn shared(bytes: usize) -> Option<(NonNull<u8>, Arc<Pages>)> {
    /// The pages that are being filled, and how many of their bytes are given out.
    static FILLING: Mutex<(Weak<Pages>, usize)> = Mutex::new((Weak::new(), 0));
    if bytes < LEAST {
        return None;
    }
    if bytes > SHARED / 2 {
        return alone(bytes);
    }
    let mut filling = FILLING.lock().unwrap_or_else(PoisonError::into_inner);
    let pages = match filling.0.upgrade().filter(|p| filling.1 + bytes <= p.bytes) {
        Some(pages) => pages,
        None => {
            let pages = Arc::new(Pages::new(SHARED)?);
            *filling = (Arc::downgrade(&pages), 0);
            pages
        }
    };
    // SAFETY: `filling.1 + bytes` is within the pages, and nobody else gets these bytes: the count only grows.
    let start = unsafe { pages.start.add(filling.1) };
    filling.1 = (filling.1 + bytes).next_multiple_of(STEP);
    Some((start, pages))
}

#[cfg(target_os = "linux")]
impl Pages {
    /// At least `bytes` zeros from the start of a huge page on; `None` where the system has none.
    fn new(bytes: usize) -> Option<Pages> {
        use libc::{MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE};
        let bytes = bytes.checked_next_multiple_of(4096)?;
        let all = bytes.checked_add(HUGE)?;
        // SAFETY: a new private mapping touches nothing that exists.
        let raw = unsafe {
            libc::mmap(std::ptr::null_mut(), all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        };
        if raw == MAP_FAILED {
            return None;
        }
        let before = raw.cast::<u8>().align_offset(HUGE);
        // SAFETY: `before` is below `HUGE`, so both ranges given back and the one kept lie in the mapping; advice is a hint.
        unsafe {
            let start = raw.cast::<u8>().add(before);
            if before > 0 {
                libc::munmap(raw, before);
            }
            libc::munmap(start.add(bytes).cast(), HUGE - before);
            libc::madvise(start.cast(), bytes, MADV_HUGEPAGE);
            NonNull::new(start).map(|start| Pages { start, bytes })
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Pages {
    /// No pages: the allocator serves instead.
    fn new(_bytes: usize) -> Option<Pages> {
        None
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range was mapped in `new`, and every buffer in it kept this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Writes over a part and says whether it held zeros.
    fn fill(start: NonNull<u8>, bytes: usize, with: u8) -> bool {
        // SAFETY: the caller owns the part.
        let part = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), bytes) };
        let zero = part.iter().all(|&b| b == 0);
        part.fill(with);
        zero
    }

    #[test]
    fn gives_parts_that_hold_zeros_and_do_not_overlap() {
        let sizes = [LEAST, 100_001, 3 << 20, 7 << 20, 40_000, 5 << 20, 20 << 20, 1 << 20];
        let parts: Vec<_> = sizes.iter().map(|&bytes| shared(bytes).unwrap()).collect();
        for (i, (part, &bytes)) in parts.iter().zip(&sizes).enumerate() {
            assert!(fill(part.0, bytes, i as u8 + 1), "{bytes}");
            assert_eq!(part.0.as_ptr() as usize % crate::buffer::ALIGNMENT, 0);
        }
        for (i, (part, &bytes)) in parts.iter().zip(&sizes).enumerate() {
            // SAFETY: as in `fill`.
            let part = unsafe { std::slice::from_raw_parts(part.0.as_ptr(), bytes) };
            assert!(part.iter().all(|&b| b == i as u8 + 1), "{bytes}");
        }
    }

    #[test]
    fn starts_large_ranges_on_a_huge_page_and_leaves_small_ones_to_the_allocator() {
        let (start, _pages) = alone(HUGE + 1).unwrap();
        assert_eq!(start.as_ptr() as usize % HUGE, 0);
        assert!(fill(start, HUGE + 1, 7));
        assert!(alone(HUGE - 1).is_none());
        assert!(shared(LEAST - 1).is_none());
    }

    #[test]
    fn has_no_pages_for_impossible_sizes() {
        assert!(Pages::new(usize::MAX - 100).is_none());
        assert!(Pages::new(1 << 60).is_none());
    }
}
