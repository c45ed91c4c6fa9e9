//! Huge pages for large outputs.

use crate::view::View;

/// Asks the system to back the memory of a contiguous view by huge pages where it has not been touched yet.
///
/// A gradient of hundreds of megabytes is usually fresh memory; taking it in pages of 4 KiB costs several times what writing
/// it does. This is advice about speed: nothing depends on its being followed, and the contents do not change.
pub fn prefer_huge(view: &View) {
    if view.is_contiguous() {
        advise(view.address, view.len() * view.dtype.size());
    }
}

#[cfg(target_os = "linux")]
fn advise(address: usize, bytes: usize) {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    const HUGE_PAGE: usize = 2 << 20;

    let start = address.next_multiple_of(HUGE_PAGE);
    let end = (address + bytes) / HUGE_PAGE * HUGE_PAGE;
    if start < end {
        // SAFETY: the pages lie within the view; this advice leaves their contents alone, and so does its refusal.
        unsafe { madvise(start as *mut c_void, end - start, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_address: usize, _bytes: usize) {}
