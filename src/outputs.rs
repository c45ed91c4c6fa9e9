//! How large outputs are written: around the caches, into huge pages.

use crate::array::Array;

/// Bytes from which on an output is large: by the time it is read, the caches would have lost it anyway.
const LARGE: usize = 32 << 20;

/// Whether an output is to be written by streamed stores, which its alignment must allow. If so, huge pages are asked for.
pub fn streams(view: &Array) -> bool {
    let element = view.dtype.size();
    let streams = view.len() * element >= LARGE && view.address.is_multiple_of(element);
    if streams {
        prefer_huge(view);
    }
    streams
}

/// Asks the system to back the memory of a contiguous view by huge pages where it has not been touched yet.
///
/// A gradient of hundreds of megabytes is usually fresh memory; taking it in pages of 4 KiB costs several times what writing
/// it does. This is advice about speed: nothing depends on its being followed, and the contents do not change.
pub fn prefer_huge(view: &Array) {
    if view.is_contiguous() {
        advise(view.address, view.len() * view.dtype.size());
    }
}

#[cfg(target_os = "linux")]
fn advise(address: usize, bytes: usize) {
    const HUGE_PAGE: usize = 2 << 20;

    let start = address.next_multiple_of(HUGE_PAGE);
    let end = (address + bytes) / HUGE_PAGE * HUGE_PAGE;
    if start < end {
        // SAFETY: the pages lie within the view; this advice leaves their contents alone, and so does its refusal.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_address: usize, _bytes: usize) {}
