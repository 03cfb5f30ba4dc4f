//! Memory aligned to cache lines, and per-thread scratch that is reused.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pages::{self, Pages};

/// Bytes to which every buffer is aligned.
pub const ALIGNMENT: usize = 64;

/// Bytes of a small page: a load waits for an earlier store whose address differs by a multiple of it.
const PAGE: usize = 4096;
/// Bytes from which buffers start at different places of a page.
const STAGGERED: usize = 4 * PAGE;
/// How much further than the one before a buffer starts: so that some in a row are not near each other, nor near in
/// units of 512 bytes, by which many strides differ from a page. Pairs of lines, which are fetched together, stay pairs.
const STAGGER: usize = 14 * ALIGNMENT;

/// A zero-initialised, 64-byte aligned array of f32.
pub struct Buffer {
    data: NonNull<f32>,
    len: usize,
    home: Home,
}

/// Where a buffer's memory comes from.
enum Home {
    /// The allocator, from some bytes before the buffer on.
    Heap { before: usize },
    /// Pages of the system, which may be huge ones; kept until no buffer in them is left.
    Pages { _kept: Arc<Pages> },
}

// SAFETY: the buffer owns its memory like a `Box<[f32]>`.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zeros. Aborts, like `Vec`, when the system has no memory left. Large buffers start at different places of a
    /// page: what reads one and writes another in step would have each load wait for a store.
    pub fn new(len: usize) -> Buffer {
        Self::try_new(len).unwrap_or_else(|| handle_alloc_error(Self::asked_for(len)))
    }

    /// As [`Buffer::new`]; `None` when the system has no memory left.
    pub fn try_new(len: usize) -> Option<Buffer> {
        static BUFFERS: AtomicUsize = AtomicUsize::new(0);
        let before = match len.saturating_mul(size_of::<f32>()) {
            ..STAGGERED => 0,
            _ => BUFFERS.fetch_add(1, Ordering::Relaxed).wrapping_mul(STAGGER) % PAGE,
        };
        Self::within(len, before, pages::alone)
    }

    /// As [`Buffer::new`], for contents that stay as long as a model: small ones share huge pages, so that reading one
    /// after the other does not miss the TLB at each.
    pub(crate) fn lasting(len: usize) -> Buffer {
        Self::within(len, 0, pages::shared).unwrap_or_else(|| handle_alloc_error(Self::asked_for(len)))
    }

    /// So many zeros; `None` when the system has no memory left.
    fn within(
        len: usize,
        before: usize,
        pages: impl FnOnce(usize) -> Option<(NonNull<u8>, Arc<Pages>)>,
    ) -> Option<Buffer> {
        if len == 0 {
            return Some(Buffer { data: NonNull::dangling(), len, home: Home::Heap { before: 0 } });
        }
        let layout = Self::layout(len, before)?;
        if let Some((start, kept)) = pages(layout.size()) {
            // SAFETY: `before` is less than the size.
            let data = unsafe { start.add(before) }.cast();
            return Some(Buffer { data, len, home: Home::Pages { _kept: kept } });
        }
        // SAFETY: the layout has a size above zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(raw)?;
        // SAFETY: as above.
        Some(Buffer { data: unsafe { start.add(before) }.cast(), len, home: Home::Heap { before } })
    }

    /// Of `len` floats and so many bytes before them, a multiple of the alignment; `None` beyond the address space.
    fn layout(len: usize, before: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<f32>())?.checked_add(before)?;
        Layout::from_size_align(bytes, ALIGNMENT).ok()
    }

    /// What an abort says was asked for.
    fn asked_for(len: usize) -> Layout {
        Self::layout(len, 0).unwrap_or(Layout::new::<f32>())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (1.., Home::Heap { before }) = (self.len, &self.home)
            && let Some(layout) = Self::layout(self.len, *before)
        {
            // SAFETY: allocated in `within` with the same layout, and that many bytes before the data.
            unsafe { dealloc(self.data.as_ptr().cast::<u8>().sub(*before), layout) }
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialised elements (none when dangling).
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: `len` initialised elements, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        let mut copy = Buffer::new(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} f32)", self.len)
    }
}

thread_local! {
    static SPARE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// Calls `body` with at least `len` floats of this thread's scratch (contents
/// arbitrary). Nested uses get different memory; nothing is freed, so a warm
/// thread does not allocate.
pub(crate) fn with_scratch<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let spare = SPARE.with(|list| {
        let mut list = list.borrow_mut();
        // The smallest that fits, so that nested uses of several sizes settle.
        let best = (0..list.len()).filter(|&i| list[i].len() >= len).min_by_key(|&i| list[i].len());
        best.map(|i| list.swap_remove(i))
    });
    let mut buffer = spare.unwrap_or_else(|| Buffer::new(len.next_multiple_of(4096)));
    let result = body(&mut buffer[..len]);
    SPARE.with(|list| {
        let mut list = list.borrow_mut();
        if list.len() >= MAX_SPARE {
            // Keep the larger ones.
            if let Some(i) = (0..list.len()).min_by_key(|&i| list[i].len()) {
                list.swap_remove(i);
            }
        }
        list.push(buffer);
    });
    result
}

/// Calls `body` with `len` bytes of this thread's scratch, aligned to [`ALIGNMENT`], contents arbitrary. Nested uses get different memory; a warm thread does not allocate.
pub fn with_scratch_bytes<R>(len: usize, body: impl FnOnce(&mut [u8]) -> R) -> R {
    with_scratch(len.div_ceil(4), |scratch| {
        // SAFETY: the floats are as many bytes at least, and bytes hold anything.
        body(unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), len) })
    })
}

/// Scratch buffers that a thread keeps.
const MAX_SPARE: usize = 4;

/// A raw pointer that tasks on several threads may use for disjoint elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T);

// SAFETY: users write disjoint elements, as each construction site explains.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        SharedMut(slice.as_mut_ptr())
    }

    pub(crate) fn from_ptr(pointer: *mut T) -> Self {
        SharedMut(pointer)
    }

    pub(crate) fn ptr(self) -> *mut T {
        self.0
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// In bounds, and no other reference to them lives.
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: passed on to the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_every_size() {
        for len in [0, 1, 15, 4096, 2 << 20] {
            let buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            assert!(len == 0 || (buffer.as_ptr() as usize).is_multiple_of(ALIGNMENT));
            assert!(buffer.iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn gives_nothing_where_the_system_has_nothing() {
        for len in [1 << 58, 1 << 60, usize::MAX / 4, usize::MAX] {
            assert!(Buffer::try_new(len).is_none(), "{len}");
        }
        assert_eq!(Buffer::try_new(100).map(|b| b.len()), Some(100));
    }

    #[test]
    fn starts_large_buffers_at_different_places_of_a_page() {
        for len in [STAGGERED / 4, 3 << 20] {
            let buffers: Vec<Buffer> = (0..5).map(|_| Buffer::new(len)).collect();
            assert!(buffers.iter().all(|b| b.len() == len && b.iter().all(|&x| x == 0.0)));
            let place = |b: &Buffer| b.as_ptr() as usize % PAGE;
            // Other tests take buffers meanwhile, so that some in a row may meet.
            assert!(buffers.windows(2).any(|b| place(&b[0]) != place(&b[1])), "{len}");
        }
    }

    #[test]
    fn gives_nested_scratch_its_own_memory() {
        with_scratch(10, |a| {
            a.fill(1.0);
            with_scratch(10, |b| b.fill(2.0));
            assert!(a.iter().all(|&x| x == 1.0));
        });
    }
}
