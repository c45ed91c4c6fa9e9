//! Statistics and gradient in one visit on the CPU: the upstream gradients are known beforehand.
//!
//! Forward and then backward, row by row: the second finds the row in the second-level cache (250 KiB for 128 000 16-bit
//! logits), so that memory sees each logit once and its gradient once: f16 and bf16 2 bytes read and 2 written, f32 4 and 4,
//! f64 8 and 8, where the two calls read twice. Both write what they write when called one after the other, to the bit.

use half::{bf16, f16};

use super::backward::{Backward, Tables};
use super::cpu::{Forward, rows_at_a_time, shares_rows};
use super::{LiveRow, Rows, Stat};
use crate::array::{ArgumentError, Array, Dtype};
use crate::simd::{Element, Level};
use crate::threads::for_each_range;

/// Writes the statistics `stats` of every row into `out`, and d(Σ grads·stats)/dlogits into `gradient`, which may be the memory
/// of the logits itself.
///
/// `grads` and `out` are of shape `[stats, rows]`. `stats` are to contain what the gradients are computed from.
///
/// # Safety
/// Every view describes live memory that nobody else writes to meanwhile, `out` and `gradient` writable memory; `gradient` and
/// the logits are the same or apart.
pub unsafe fn both(
    rows: &Rows,
    (stats, k): (&[Stat], usize),
    grads: &Array,
    out: &Array,
    gradient: &Array,
    threads: usize,
) -> Result<(), ArgumentError> {
    rows.check_both((stats, k), grads, out, gradient)?;
    let level = Level::current()?;
    // SAFETY: the caller's promise, and the check above.
    let live = unsafe { rows.live()? };
    let tables = Tables {
        stats,
        grads,
        saved: out,
        rows: rows.count(),
    };
    let both = Both {
        forward: Forward::new(rows, (stats, k), out, &live, level),
        backward: Backward::new(rows, tables, gradient, &live, level),
        live: &live,
        width: rows.width(),
    };
    // SAFETY: as above; the dtype is that of the logits.
    unsafe {
        match rows.logits.dtype {
            Dtype::F16 => both.run::<f16>(threads),
            Dtype::Bf16 => both.run::<bf16>(threads),
            Dtype::F32 => both.run::<f32>(threads),
            Dtype::F64 => both.run::<f64>(threads),
            Dtype::I64 | Dtype::Bool => unreachable!("the check lets floats through only"),
        }
    }
    Ok(())
}

struct Both<'a> {
    forward: Forward<'a>,
    backward: Backward<'a>,
    live: &'a [LiveRow],
    width: usize,
}

impl Both<'_> {
    /// # Safety
    /// The promise of [`both`]; the logits are `E`s.
    unsafe fn run<E: Element>(&self, threads: usize) {
        if shares_rows(self.live.len(), threads) {
            // A row's chunks are spread over threads: no cache has all of it, and the first chunk of its gradient needs
            // what the last of its logits tells.
            // SAFETY: passed on to the caller.
            unsafe {
                self.forward.run::<E>(threads);
                self.backward.run::<E>(threads);
            }
            return;
        }
        // SAFETY: passed on to the caller.
        unsafe {
            self.forward.clear();
            self.backward.clear_ignored(threads);
        }
        let grain = rows_at_a_time(self.width);
        for_each_range(threads, self.live.len(), grain, |range| {
            let (mut forward_room, mut backward_room) = (None, None);
            for row in &self.live[range] {
                // SAFETY: passed on to the caller; a row's logits and its statistics are nobody else's.
                unsafe {
                    self.forward.row::<E>(row, &mut forward_room);
                    self.backward.row::<E>(row, &mut backward_room);
                }
            }
            self.backward.finish();
        });
    }
}
