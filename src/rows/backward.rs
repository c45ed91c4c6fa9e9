//! Backward on the CPU: one sweep that reads logits and writes their gradient, perhaps over them.
//!
//! With c the upstream gradient of a statistic, per element
//!
//! ```text
//! dz_j = p_j·(constant + slope·log p_j + kl·(log p_j − log q_j)) − rkl·q_j + 1[j=y]·c_logp
//! constant = −c_logp + c_lse − c_entropy·H − c_kl·KL + c_rkl,   slope = −c_entropy,   kl = c_kl,   rkl = c_rkl
//! ```
//!
//! times dz/dx = scale/T·(1 − tanh²). The coefficients are computed once per row in f64; a term whose coefficient is 0 is
//! left out, not multiplied by 0. The label's element is computed in f64 from its log-probability (1 − p as −expm1), since
//! that is where a confident token's gradient cancels.
//!
//! Per logit: f16 and bf16 2 bytes read and 2 written, f32 4 and 4, f64 8 and 8; about as many flops as forward.

use std::ops::Range;

use half::{bf16, f16};

use super::chunk::{self, CHUNK, Divergence, LogProbability, Pull, Scratch, Shift};
use super::cpu::{
    Transform, chunk_part, load_part, read_element, row_pointer, rows_at_a_time, shares_rows,
};
use super::simd::{Element, Level, Real, fence};
use super::{LiveRow, Rows, Stat};
use crate::threads::for_each_range;
use crate::view::{ArgumentError, Dtype, View};

/// A gradient of at least so many bytes leaves the caches before anybody reads it; it is written around them.
const STREAM_FROM: usize = 32 << 20;

/// Writes d(Σ grads·stats)/dlogits into `gradient`, which may be the memory of the logits itself.
///
/// `grads` and `saved`, shape `[stats, rows]`, hold the upstream gradients and the values of `stats`.
///
/// # Safety
/// Every view describes live memory that nobody else writes to meanwhile, `gradient` writable memory; `gradient` and the
/// logits are the same or apart.
pub unsafe fn backward(
    rows: &Rows,
    stats: &[Stat],
    grads: &View,
    saved: &View,
    gradient: &View,
    threads: usize,
) -> Result<(), ArgumentError> {
    rows.check_backward(stats, grads, saved, gradient)?;
    let level = Level::current()?;
    // SAFETY: the caller's promise, and the check above.
    let live = unsafe { rows.live()? };
    let ignored = ignored_rows(&live, rows.count());
    let stream = gradient.address != rows.logits.address
        && gradient.len() * gradient.dtype.size() >= STREAM_FROM
        && gradient.address % gradient.dtype.size() == 0;
    let tables = Tables {
        stats,
        grads,
        saved,
        rows: rows.count(),
    };
    let backward = Backward {
        rows,
        tables,
        gradient,
        live: &live,
        ignored: &ignored,
        level,
        stream,
    };
    // SAFETY: as above; the dtype is that of the logits.
    unsafe {
        match rows.logits.dtype {
            Dtype::F16 => backward.run::<f16>(threads),
            Dtype::Bf16 => backward.run::<bf16>(threads),
            Dtype::F32 => backward.run::<f32>(threads),
            Dtype::F64 => backward.run::<f64>(threads),
            Dtype::I64 | Dtype::Bool => unreachable!("the check lets floats through only"),
        }
    }
    Ok(())
}

/// The rows that are not among `live`, which is in order.
fn ignored_rows(live: &[LiveRow], count: usize) -> Vec<usize> {
    let mut live = live.iter().map(|row| row.index).peekable();
    (0..count)
        .filter(|row| live.next_if_eq(row).is_none())
        .collect()
}

/// The upstream gradients and saved values of the statistics.
struct Tables<'a> {
    stats: &'a [Stat],
    grads: &'a View,
    saved: &'a View,
    rows: usize,
}

impl Tables<'_> {
    /// # Safety
    /// The table is one of the two and describes live memory; `row` is one of its rows.
    unsafe fn read(&self, table: &View, stat: Stat, row: usize) -> Option<f64> {
        let position = self.stats.iter().position(|known| *known == stat)?;
        // SAFETY: tables are of shape [stats, rows].
        Some(unsafe { table.read_float(position * self.rows + row) })
    }

    /// The upstream gradient of a statistic, 0 if it has none.
    ///
    /// # Safety
    /// The tables describe live memory; `row` is one of their rows.
    unsafe fn upstream(&self, stat: Stat, row: usize) -> f64 {
        // SAFETY: passed on to the caller.
        unsafe { self.read(self.grads, stat, row) }.unwrap_or(0.0)
    }
}

/// What a row's gradient is made of. The coefficients are those of the module's formula, times scale/T.
struct RowGradient {
    transform: Transform,
    lse: f64,
    ref_lse: f64,
    constant: f64,
    slope: f64,
    kl: f64,
    rkl: f64,
    /// The gradient of the label's logit.
    label: f64,
}

struct Backward<'a> {
    rows: &'a Rows,
    tables: Tables<'a>,
    gradient: &'a View,
    live: &'a [LiveRow],
    ignored: &'a [usize],
    level: Level,
    stream: bool,
}

/// Room for a chunk of policy logits, one of slopes of the soft cap and one of reference logits.
struct Room<R> {
    policy: Scratch<R>,
    slope: Scratch<R>,
    reference: Scratch<R>,
}

impl<R: Real> Room<R> {
    fn new() -> Room<R> {
        Room {
            policy: Scratch::new(),
            slope: Scratch::new(),
            reference: Scratch::new(),
        }
    }
}

impl Backward<'_> {
    /// # Safety
    /// The promise of [`backward`]; the logits are `E`s.
    unsafe fn run<E: Element>(&self, threads: usize) {
        let width = self.rows.width();
        let chunks = width.div_ceil(CHUNK);
        // SAFETY: passed on to the caller; a task writes its chunks and nobody else does.
        unsafe {
            self.clear_ignored(threads);
            if shares_rows(self.live.len(), threads) {
                // The coefficients depend on logits that another task may overwrite, so they all come first.
                let gradients: Vec<Option<RowGradient>> = self
                    .live
                    .iter()
                    .map(|row| self.row_gradient::<E::Real>(row))
                    .collect();
                for_each_range(threads, self.live.len() * chunks, 1, |tasks| {
                    let mut room = None;
                    for task in tasks {
                        let (row, part) = (task / chunks, chunk_part(task % chunks, width));
                        self.write::<E>(&self.live[row], gradients[row].as_ref(), part, &mut room);
                    }
                    self.finish();
                });
            } else {
                for_each_range(threads, self.live.len(), rows_at_a_time(width), |range| {
                    let mut room = None;
                    for row in &self.live[range] {
                        let gradient = self.row_gradient::<E::Real>(row);
                        for index in 0..chunks {
                            self.write::<E>(
                                row,
                                gradient.as_ref(),
                                chunk_part(index, width),
                                &mut room,
                            );
                        }
                    }
                    self.finish();
                });
            }
        }
    }

    /// Makes what this thread has written visible to others.
    fn finish(&self) {
        if self.stream {
            fence();
        }
    }

    /// Writes zeros over the gradient of ignored rows.
    ///
    /// # Safety
    /// As for [`Backward::run`].
    unsafe fn clear_ignored(&self, threads: usize) {
        let bytes = self.rows.width() * self.gradient.dtype.size();
        for_each_range(
            threads,
            self.ignored.len(),
            rows_at_a_time(self.rows.width()),
            |range| {
                for row in &self.ignored[range] {
                    let offset = self.gradient.offset(*row, self.rows.rank())
                        * self.gradient.dtype.size() as isize;
                    // SAFETY: rows are dense; zero bytes are 0 in every float dtype.
                    unsafe {
                        (self.gradient.address as *mut u8)
                            .wrapping_offset(offset)
                            .write_bytes(0, bytes)
                    };
                }
            },
        );
    }

    /// The coefficients of a row; `None` where the gradient is 0 throughout.
    ///
    /// # Safety
    /// As for [`Backward::run`].
    unsafe fn row_gradient<R: Real>(&self, row: &LiveRow) -> Option<RowGradient> {
        // SAFETY: passed on to the caller.
        let upstream = |stat| unsafe { self.tables.upstream(stat, row.index) };
        // SAFETY: as above.
        let saved = |stat| unsafe { self.tables.read(self.tables.saved, stat, row.index) };
        let [logp, lse, entropy, kl, rkl] =
            [Stat::Logp, Stat::Lse, Stat::Entropy, Stat::Kl, Stat::Rkl].map(upstream);
        if [logp, lse, entropy, kl, rkl]
            .iter()
            .all(|upstream| *upstream == 0.0)
            || saved(Stat::Lse) == Some(f64::NEG_INFINITY)
        {
            return None;
        }
        // A reference row of nothing but -inf has rkl = 0, whatever the policy.
        let rkl = if saved(Stat::RefLse) == Some(f64::NEG_INFINITY) {
            0.0
        } else {
            rkl
        };
        let times = |upstream: f64, stat| {
            if upstream == 0.0 {
                0.0
            } else {
                upstream * saved(stat).unwrap_or(f64::NAN)
            }
        };
        let constant = lse - logp - times(entropy, Stat::Entropy) - times(kl, Stat::Kl) + rkl;
        let transform = Transform::of(self.rows, row);
        let unit = self.rows.scale / row.temperature;

        // SAFETY: the label is within the row, and the caller vouches for the memory.
        let label = |view: &View| unsafe { read_element(view, row.index, row.label) };
        let x = label(&self.rows.logits);
        let z = transform.apply::<R>(x);
        let policy = self.log_sum(Stat::Lse, Stat::Logp, row.index, z);
        let (w, reference) = match &self.rows.reference {
            Some(view) if kl != 0.0 || rkl != 0.0 => {
                let w = transform.apply::<R>(label(view));
                (w, self.log_sum(Stat::RefLse, Stat::RefLogp, row.index, w))
            }
            _ => (0.0, 0.0),
        };
        let (log_p, log_q) = (z - policy, w - reference);
        let p = log_p.exp();
        let mut at_label =
            -logp * log_p.exp_m1() - if rkl == 0.0 { 0.0 } else { rkl * log_q.exp() };
        if p != 0.0 {
            let divergence = if kl == 0.0 { 0.0 } else { kl * (log_p - log_q) };
            at_label += p * (constant + logp - entropy * log_p + divergence);
        }
        Some(RowGradient {
            transform,
            lse: policy,
            ref_lse: reference,
            constant: unit * constant,
            slope: -unit * entropy,
            kl: unit * kl,
            rkl: unit * rkl,
            label: unit * at_label * transform.slope::<R>(x),
        })
    }

    /// `lse` of a row. Where the label's log-probability has been saved as well, lse = z − logp may be known to more digits
    /// than the saved one has: rounding that to f32 costs 5e-4 at 1e4.
    fn log_sum(&self, lse: Stat, log_p: Stat, row: usize, z: f64) -> f64 {
        // SAFETY: `row` is one of the rows, and the promise of `backward` covers the tables.
        let [lse, log_p] =
            [lse, log_p].map(|stat| unsafe { self.tables.read(self.tables.saved, stat, row) });
        match (lse, log_p) {
            (Some(lse), Some(log_p)) if log_p.abs() < lse.abs() => z - log_p,
            (lse, _) => lse.unwrap_or(f64::NAN),
        }
    }

    /// Writes the gradient of part of a row, which is one chunk.
    ///
    /// # Safety
    /// As for [`Backward::run`].
    unsafe fn write<E: Element>(
        &self,
        row: &LiveRow,
        gradient: Option<&RowGradient>,
        part: Range<usize>,
        room: &mut Option<Room<E::Real>>,
    ) {
        // SAFETY: the row has the elements of `part`.
        unsafe {
            let target = row_pointer::<E>(self.gradient, row.index).add(part.start);
            let Some(gradient) = gradient else {
                target.write_bytes(0, part.len());
                return;
            };
            let x = row_pointer::<E>(&self.rows.logits, row.index)
                .add(part.start)
                .cast_const();
            // The label's element is written again, which must not overtake a streamed store.
            let stream = self.stream && !part.contains(&row.label);
            if gradient.transform.cap.is_none() && gradient.kl == 0.0 && gradient.rkl == 0.0 {
                chunk::pull(self.level, x, target, part.len(), gradient.pull(), stream);
            } else {
                let room = room.get_or_insert_with(Room::new);
                self.fill::<E>(row, gradient, x, &part, room);
                chunk::store(self.level, &room.policy, target, part.len(), stream);
            }
            if part.contains(&row.label) {
                target
                    .add(row.label - part.start)
                    .write_unaligned(E::from_f64(gradient.label));
            }
        }
    }

    /// Computes the gradient of one chunk in `room.policy`.
    ///
    /// # Safety
    /// As for [`Backward::write`]; `x` points to the elements of `part`.
    unsafe fn fill<E: Element>(
        &self,
        row: &LiveRow,
        gradient: &RowGradient,
        x: *const E,
        part: &Range<usize>,
        room: &mut Room<E::Real>,
    ) {
        let Room {
            policy,
            slope,
            reference,
        } = room;
        let (level, len) = (self.level, part.len());
        let cap = gradient.transform.cap_in::<E::Real>();
        // SAFETY: passed on to the caller.
        unsafe { policy.load(level, x, len) };
        if let Some(cap) = cap {
            policy.cap(level, len, cap, Some(slope));
        }
        let divergence = match &self.rows.reference {
            Some(view) if gradient.kl != 0.0 || gradient.rkl != 0.0 => {
                // SAFETY: passed on to the caller.
                unsafe { load_part(level, view, row.index, part, reference) };
                if let Some(cap) = cap {
                    reference.cap(level, len, cap, None);
                }
                Some((&*reference, gradient.divergence()))
            }
            _ => None,
        };
        chunk::pull_in_scratch(level, policy, len, gradient.pull(), divergence);
        if cap.is_some() {
            policy.multiply(slope, len);
        }
    }
}

impl RowGradient {
    fn log_probability<R: Real>(&self, lse: f64) -> LogProbability<R> {
        let origin = R::from_f64(lse);
        LogProbability {
            shift: Shift {
                factor: R::from_f64(self.transform.factor),
                origin,
            },
            remainder: R::from_f64(lse - origin.to_f64()),
        }
    }

    fn pull<R: Real>(&self) -> Pull<R> {
        Pull {
            log_p: self.log_probability(self.lse),
            constant: R::from_f64(self.constant),
            slope: R::from_f64(self.slope),
        }
    }

    fn divergence<R: Real>(&self) -> Divergence<R> {
        Divergence {
            log_q: self.log_probability(self.ref_lse),
            kl: R::from_f64(self.kl),
            rkl: R::from_f64(self.rkl),
        }
    }
}
