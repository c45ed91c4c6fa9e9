//! The thread pool: the crate's own, built when a call first wants more than one thread, never at import.
//!
//! A process that forks leaves its threads behind, so a pool belongs to the process that built it: the child builds
//! another. Pools are published through one atomic pointer rather than a lock, since a lock held by another thread at
//! the moment of a fork would stay locked in the child for ever. A pool that is replaced (by a fork or by a call that
//! wants more threads) is kept, idle: somebody may still be working in it.

use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

struct Pool {
    process: u32,
    workers: usize,
    pool: ThreadPool,
}

static CURRENT: AtomicPtr<Pool> = AtomicPtr::new(ptr::null_mut());

/// Runs `work` on consecutive ranges of at most `grain` indices that together cover `0..count`, on at most `threads`
/// threads, the calling one among them. Which thread takes which range is not fixed.
///
/// Where the system grants no further threads, the calling one does everything.
pub fn for_each_range(
    threads: usize,
    count: usize,
    grain: usize,
    work: impl Fn(Range<usize>) + Sync,
) {
    let grain = grain.max(1);
    let next = AtomicUsize::new(0);
    let drain = || {
        loop {
            let start = next.fetch_add(grain, Ordering::Relaxed);
            if start >= count {
                return;
            }
            work(start..count.min(start + grain));
        }
    };
    let helpers = threads.min(count.div_ceil(grain)).saturating_sub(1);
    match (helpers > 0).then(|| pool_of(helpers)).flatten() {
        Some(pool) => pool.in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| drain());
            }
            drain();
        }),
        None => drain(),
    }
}

/// A pool of this process with at least `workers` threads; `None` if the system refuses to start them.
fn pool_of(workers: usize) -> Option<&'static ThreadPool> {
    let process = std::process::id();
    loop {
        let seen = CURRENT.load(Ordering::Acquire);
        // SAFETY: a published pool is never freed.
        if let Some(current) = unsafe { seen.as_ref() }
            && current.process == process
            && current.workers >= workers
        {
            return Some(&current.pool);
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|index| format!("prefuse-{index}"))
            .build()
            .ok()?;
        let made = Box::into_raw(Box::new(Pool {
            process,
            workers,
            pool,
        }));
        if CURRENT
            .compare_exchange(seen, made, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: `made` was not published, so this is its only owner.
            drop(unsafe { Box::from_raw(made) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;

    #[test]
    fn every_index_is_visited_once() {
        for (threads, count, grain) in [
            (1, 10, 3),
            (3, 10, 3),
            (4, 1, 1),
            (2, 0, 1),
            (2, 100, 1),
            (8, 7, 100),
        ] {
            let visits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for_each_range(threads, count, grain, |range| {
                for index in range {
                    visits[index].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(
                visits
                    .iter()
                    .all(|visit| visit.load(Ordering::Relaxed) == 1)
            );
        }
    }

    #[test]
    fn no_more_threads_than_asked_for() {
        for threads in [1, 2, 3] {
            let seen = Mutex::new(HashSet::new());
            for_each_range(threads, 200, 1, |_| {
                seen.lock().unwrap().insert(std::thread::current().id());
            });
            assert!(seen.lock().unwrap().len() <= threads);
        }
    }
}
