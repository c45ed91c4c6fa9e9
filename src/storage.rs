//! Memory of large arrays, kept when it is given up and handed out again.
//!
//! A gradient of hundreds of megabytes is made anew at every step, and taking it from the system page by page costs several
//! times what writing it does. So a block that is given up stays mapped, idle, for the next array that it fits. Idle blocks
//! are bounded: beyond the limit the oldest go back to the system, and [`release`] gives back all of them.
//!
//! A block is a mapping of its own, begins at a huge page, and has one owner at a time: whoever took it, or the idle list.
//! While idle its pages are the first that the system takes when memory is short, and it is invisible to children that the
//! process forks, for which the parent would otherwise copy its pages at the next write. A child begins with an empty list of
//! its own, found through its process id, since a lock that another thread held at the moment of the fork would stay locked.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Blocks begin at such addresses.
const HUGE_PAGE: usize = 2 << 20;

/// Sizes of blocks per octave: what is not written of a block takes no memory, and similar arrays share a size.
const STEPS: usize = 8;

/// Memory that one owner may read and write. Dropped, it goes back to the system.
#[derive(Debug)]
pub struct Block {
    address: usize,
    bytes: usize,
}

impl Block {
    pub fn address(&self) -> usize {
        self.address
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the mapping is this block's, and nobody has it any longer.
        unsafe { system::unmap(self.address, self.bytes) };
    }
}

/// Blocks without an owner, those given up first in front.
struct Idle {
    blocks: Vec<Block>,
    bytes: usize,
}

struct Store {
    process: u32,
    idle: Mutex<Idle>,
}

static CURRENT: AtomicPtr<Store> = AtomicPtr::new(ptr::null_mut());

/// How many bytes are kept idle at most, as the last call said.
static LIMIT: AtomicUsize = AtomicUsize::new(0);

/// The process's own store, made when it is first asked for and never freed.
fn store() -> &'static Store {
    let process = std::process::id();
    loop {
        let seen = CURRENT.load(Ordering::Acquire);
        // SAFETY: a published store is never freed.
        if let Some(current) = unsafe { seen.as_ref() }
            && current.process == process
        {
            return current;
        }
        let idle = Mutex::new(Idle {
            blocks: Vec::new(),
            bytes: 0,
        });
        let made = Box::into_raw(Box::new(Store { process, idle }));
        if CURRENT
            .compare_exchange(seen, made, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: `made` was not published, so this is its only owner.
            drop(unsafe { Box::from_raw(made) });
        }
    }
}

fn with_idle<T>(work: impl FnOnce(&mut Idle) -> T) -> T {
    // A panic leaves the list as it is between two of its operations.
    work(&mut store().idle.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The size of the block for so many bytes; `None` where there is no such size.
fn size_of_block(bytes: usize) -> Option<usize> {
    let octave = 1 << bytes.max(1).ilog2();
    bytes.checked_next_multiple_of(HUGE_PAGE.max(octave / STEPS))
}

/// A block of at least `bytes`, with whatever contents; from now on at most `limit` bytes are kept idle. `None` where the
/// system has no memory left, or does not map memory this way.
pub fn take(bytes: usize, limit: usize) -> Option<Block> {
    let size = size_of_block(bytes)?;
    LIMIT.store(limit, Ordering::Relaxed);
    let visible = with_idle(|idle| idle.best(size)).filter(system::set_used);
    let new = || {
        system::map(size).map(|address| Block {
            address,
            bytes: size,
        })
    };
    visible.or_else(new)
}

/// Gives up a block, which is kept if it may be.
pub fn give(block: Block) {
    system::set_idle(&block);
    // What has to go is unmapped when the list is free for others again.
    let limit = LIMIT.load(Ordering::Relaxed);
    drop(with_idle(|idle| idle.keep(block, limit)));
}

/// Gives all idle blocks back to the system: how many bytes they were.
pub fn release() -> usize {
    let blocks = with_idle(|idle| {
        idle.bytes = 0;
        std::mem::take(&mut idle.blocks)
    });
    blocks.iter().map(|block| block.bytes).sum()
}

/// How many bytes are idle.
pub fn idle() -> usize {
    with_idle(|idle| idle.bytes)
}

impl Idle {
    /// Takes out the smallest block that has the size, unless it is more than twice that.
    fn best(&mut self, size: usize) -> Option<Block> {
        let fits = |block: &Block| (size..=2 * size).contains(&block.bytes);
        let candidates = self.blocks.iter().enumerate().filter(|(_, b)| fits(b));
        let (place, _) = candidates.min_by_key(|(_, block)| block.bytes)?;
        let block = self.blocks.remove(place);
        self.bytes -= block.bytes;
        Some(block)
    }

    /// Adds a block and takes out what is then above the limit, the oldest first.
    fn keep(&mut self, block: Block, limit: usize) -> Vec<Block> {
        if block.bytes > limit {
            return vec![block];
        }
        self.bytes += block.bytes;
        self.blocks.push(block);
        let mut gone = 0;
        while self.bytes > limit {
            self.bytes -= self.blocks[gone].bytes;
            gone += 1;
        }
        self.blocks.drain(..gone).collect()
    }
}

#[cfg(unix)]
mod system {
    use std::ptr;

    use super::{Block, HUGE_PAGE};

    /// New memory that begins at a huge page; `None` where there is none left.
    pub fn map(bytes: usize) -> Option<usize> {
        let whole = bytes.checked_add(HUGE_PAGE)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address that the system chooses.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), whole, access, kind, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return None;
        }
        let (begin, end) = (mapped as usize, mapped as usize + whole);
        let address = begin.next_multiple_of(HUGE_PAGE);
        // SAFETY: both are parts of the mapping that nobody has seen.
        unsafe {
            unmap(begin, address - begin);
            unmap(address + bytes, end - address - bytes);
        }
        #[cfg(target_os = "linux")]
        advise(address, bytes, libc::MADV_HUGEPAGE);
        Some(address)
    }

    /// # Safety
    /// The pages are mapped and nobody has them any longer.
    pub unsafe fn unmap(address: usize, bytes: usize) {
        if bytes > 0 {
            // SAFETY: passed on to the caller.
            unsafe { libc::munmap(address as *mut _, bytes) };
        }
    }

    /// Advice that leaves contents alone in this process; whether it is followed.
    #[cfg(target_os = "linux")]
    fn advise(address: usize, bytes: usize, advice: libc::c_int) -> bool {
        // SAFETY: the pages are a block's.
        unsafe { libc::madvise(address as *mut _, bytes, advice) == 0 }
    }

    /// Contents may be lost from now on, and children will not see the block.
    #[cfg(target_os = "linux")]
    pub fn set_idle(block: &Block) {
        advise(block.address, block.bytes, libc::MADV_FREE);
        advise(block.address, block.bytes, libc::MADV_DONTFORK);
    }

    /// Whether children will see the block; what is written to it stays in any case.
    #[cfg(target_os = "linux")]
    pub fn set_used(block: &Block) -> bool {
        advise(block.address, block.bytes, libc::MADV_DOFORK)
    }

    #[cfg(not(target_os = "linux"))]
    pub fn set_idle(_block: &Block) {}

    #[cfg(not(target_os = "linux"))]
    pub fn set_used(_block: &Block) -> bool {
        true
    }
}

#[cfg(not(unix))]
mod system {
    use super::Block;

    pub fn map(_bytes: usize) -> Option<usize> {
        None
    }

    /// # Safety
    /// There are no blocks here.
    pub unsafe fn unmap(_address: usize, _bytes: usize) {}

    pub fn set_idle(_block: &Block) {}

    pub fn set_used(_block: &Block) -> bool {
        true
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const LIMIT: usize = 40 << 20;

    fn fill(block: &Block, byte: u8) {
        // SAFETY: the test owns the block.
        unsafe { (block.address as *mut u8).write_bytes(byte, block.bytes) };
    }

    fn is_filled(block: &Block, byte: u8) -> bool {
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(block.address as *const u8, block.bytes) };
        bytes.iter().all(|found| *found == byte)
    }

    // One test, since the store is the process's.
    #[test]
    fn blocks_have_one_owner_and_idle_ones_are_bounded() {
        let first = take(5 << 20, LIMIT).unwrap();
        assert!(first.address.is_multiple_of(HUGE_PAGE) && first.bytes >= 5 << 20);
        let (address, bytes) = (first.address, first.bytes);
        give(first);
        assert_eq!(idle(), bytes);
        let again = take(4 << 20, LIMIT).unwrap();
        assert_eq!((again.address, idle()), (address, 0), "the same memory");
        give(again);
        let small = take(2 << 20, LIMIT).unwrap();
        assert_ne!(small.address, address, "more than twice as large");
        give(small);
        let large = take(LIMIT + 1, LIMIT).unwrap();
        give(large);
        assert_eq!(idle(), bytes + HUGE_PAGE, "above the limit alone: not kept");
        let (some, more) = (take(LIMIT - (6 << 20), LIMIT), take(6 << 20, LIMIT));
        let size = some.as_ref().unwrap().bytes;
        give(some.unwrap());
        assert_eq!(idle(), size + HUGE_PAGE, "the oldest goes first");
        drop(more);
        assert_eq!((release(), idle(), release()), (size + HUGE_PAGE, 0, 0));

        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                scope.spawn(move || {
                    for step in 0..20usize {
                        let one = take((1 + step % 3) << 21, LIMIT).unwrap();
                        let other = take(3 << 21, LIMIT).unwrap();
                        fill(&one, 2 * thread);
                        fill(&other, 2 * thread + 1);
                        assert!(is_filled(&one, 2 * thread) && is_filled(&other, 2 * thread + 1));
                        give(one);
                        give(other);
                    }
                });
            }
        });
        assert!(idle() <= LIMIT && release() > 0 && idle() == 0);
        assert!(take(usize::MAX / 2, LIMIT).is_none() && take(usize::MAX, LIMIT).is_none());
    }
}
