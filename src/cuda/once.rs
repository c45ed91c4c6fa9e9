//! Values that are made once per key. While one is being made, which may take a second, the others can be had.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Result;

/// A map whose values are made at their first use.
pub struct OncePerKey<T> {
    slots: Mutex<HashMap<String, Slot<T>>>,
}

/// Locked while its value is being made.
type Slot<T> = Arc<Mutex<Option<T>>>;

impl<T: Copy> OncePerKey<T> {
    pub fn new() -> OncePerKey<T> {
        OncePerKey {
            slots: Mutex::new(HashMap::new()),
        }
    }

    /// The value of `key`, made by `make` where there is none yet. Threads that ask for the same key meanwhile wait for it, and
    /// try themselves where it failed.
    pub fn get(&self, key: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let slot = self.slot(key);
        let mut value = unpoisoned(&slot);
        if let Some(known) = *value {
            return Ok(known);
        }
        let made = make()?;
        *value = Some(made);
        Ok(made)
    }

    /// Holds the map's lock no longer than it takes to find a key.
    fn slot(&self, key: &str) -> Slot<T> {
        let mut slots = unpoisoned(&self.slots);
        if let Some(slot) = slots.get(key) {
            return Arc::clone(slot);
        }
        let slot = Slot::default();
        slots.insert(key.to_owned(), Arc::clone(&slot));
        slot
    }
}

/// A map and a slot are complete at any time: a panic elsewhere leaves nothing half done in them.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::cuda::CudaError;

    fn never() -> Result<u32> {
        Err(CudaError("made again".into()))
    }

    #[test]
    fn others_can_be_had_while_one_is_made() {
        let values = OncePerKey::new();
        values.get("known", || Ok(1)).unwrap();
        let (begun, begins) = mpsc::channel();
        let (finish, finished) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let values = &values;
            let slow = scope.spawn(move || {
                values.get("slow", || {
                    begun.send(()).unwrap();
                    finished.recv().unwrap();
                    Ok(2)
                })
            });
            begins.recv().unwrap();
            // Each of these would wait for ever behind a lock that is held while "slow" is made.
            assert_eq!(values.get("known", never).unwrap(), 1);
            assert_eq!(values.get("new", || Ok(3)).unwrap(), 3);
            finish.send(()).unwrap();
            assert_eq!(slow.join().unwrap().unwrap(), 2);
        });
        assert_eq!(values.get("slow", never).unwrap(), 2);
    }

    #[test]
    fn what_many_ask_for_at_once_is_made_once() {
        let (values, made) = (OncePerKey::new(), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let value = values.get("key", || {
                        thread::yield_now();
                        Ok(made.fetch_add(1, Ordering::SeqCst))
                    });
                    assert_eq!(value.unwrap(), 0);
                });
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_failed_is_tried_again() {
        let values = OncePerKey::new();
        assert_eq!(values.get("key", never).unwrap_err().0, "made again");
        assert_eq!(values.get("key", || Ok(4)).unwrap(), 4);
    }
}
