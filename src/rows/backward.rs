//! Backward on the CPU: one sweep that reads logits and writes their gradient, perhaps over them.
//!
//! With c the upstream gradient of a statistic, per element
//!
//! ```text
//! dz_j = p_j·(constant + slope·log p_j + kl·(log p_j − log q_j)) − rkl·q_j + each + 1[j=y]·c_logp
//! constant = −c_logp + c_lse − c_entropy·H − c_kl·KL + c_rkl,   slope = −c_entropy,   kl = c_kl,   rkl = c_rkl
//! each = c_mean/V
//! ```
//!
//! times dz/dx = scale/T·(1 − tanh²). The coefficients are computed once per row in f64; a term whose coefficient is 0 is
//! left out, not multiplied by 0. The label's element is computed in f64 from its log-probability (1 − p as −expm1), since
//! that is where a confident token's gradient cancels.
//!
//! Per logit: f16 and bf16 2 bytes read and 2 written, f32 4 and 4, f64 8 and 8; about as many flops as forward.

use std::ops::Range;

use half::{bf16, f16};

use super::chunk::backward::{self as pass, Divergence, Pull, PullInScratch};
use super::chunk::{CHUNK, Scratch};
use super::cpu::{
    Transform, chunk_part, load_part, read_element, row_pointer, rows_at_a_time, shares_rows,
};
use super::{LiveRow, Rows, Stat};
use crate::array::{ArgumentError, Array, Dtype};
use crate::outputs;
use crate::simd::{Element, Level, Real, dispatch, fence};
use crate::threads::for_each_range;

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
    grads: &Array,
    saved: &Array,
    gradient: &Array,
    threads: usize,
) -> Result<(), ArgumentError> {
    rows.check_backward(stats, grads, saved, gradient)?;
    let level = Level::current()?;
    // SAFETY: the caller's promise, and the check above.
    let live = unsafe { rows.live()? };
    let tables = Tables {
        stats,
        grads,
        saved,
        rows: rows.count(),
    };
    let backward = Backward::new(rows, tables, gradient, &live, level);
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
pub(super) struct Tables<'a> {
    pub stats: &'a [Stat],
    pub grads: &'a Array,
    pub saved: &'a Array,
    pub rows: usize,
}

impl Tables<'_> {
    /// # Safety
    /// The table is one of the two and describes live memory; `row` is one of its rows.
    unsafe fn read(&self, table: &Array, stat: Stat, row: usize) -> Option<f64> {
        let position = self.stats.iter().position(|known| *known == stat)?;
        // SAFETY: tables are of shape [stats, rows].
        Some(unsafe { table.read_float(position * self.rows + row) })
    }
}

/// The upstream gradients of the statistics of a row.
struct Upstream {
    logp: f64,
    lse: f64,
    entropy: f64,
    mean: f64,
    kl: f64,
    rkl: f64,
}

/// A product in which 0 stands for a term that is not there.
fn times(coefficient: f64, value: f64) -> f64 {
    if coefficient == 0.0 {
        0.0
    } else {
        coefficient * value
    }
}

impl Upstream {
    /// dvalue/dz at the label, `constant` being that of the module's formula.
    fn at_label(&self, constant: f64, log_p: f64, log_q: f64) -> f64 {
        let rest =
            constant + self.logp - times(self.entropy, log_p) + times(self.kl, log_p - log_q);
        let own = -times(self.logp, log_p.exp_m1());
        own + times(log_p.exp(), rest) - times(self.rkl, log_q.exp())
    }
}

/// What a row's gradient is made of. The coefficients are those of the module's formula, times scale/T.
struct RowGradient {
    transform: Transform,
    lse: f64,
    ref_lse: f64,
    constant: f64,
    slope: f64,
    each: f64,
    kl: f64,
    rkl: f64,
    /// The label's place in the row and the gradient of its logit; `None` where it belongs to another block.
    label: Option<(usize, f64)>,
}

/// A backward call whose arguments have been checked.
pub(super) struct Backward<'a> {
    rows: &'a Rows,
    tables: Tables<'a>,
    gradient: &'a Array,
    live: &'a [LiveRow],
    ignored: Vec<usize>,
    level: Level,
    stream: bool,
}

/// Room for a chunk of policy logits, one of slopes of the soft cap and one of reference logits.
pub(super) struct Room<R> {
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

impl<'a> Backward<'a> {
    /// `live` are all rows that are not ignored.
    pub fn new(
        rows: &'a Rows,
        tables: Tables<'a>,
        gradient: &'a Array,
        live: &'a [LiveRow],
        level: Level,
    ) -> Backward<'a> {
        // Over the logits, the lines are in the cache anyway.
        let stream = gradient.address != rows.logits.address && outputs::streams(gradient);
        Backward {
            rows,
            tables,
            gradient,
            live,
            ignored: ignored_rows(live, rows.count()),
            level,
            stream,
        }
    }

    /// # Safety
    /// The promise of [`backward`]; the logits are `E`s.
    pub unsafe fn run<E: Element>(&self, threads: usize) {
        let width = self.rows.width();
        // SAFETY: passed on to the caller; a task writes its chunks and nobody else does.
        unsafe {
            self.clear_ignored(threads);
            if shares_rows(self.live.len(), threads) {
                let chunks = width.div_ceil(CHUNK);
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
                        self.row::<E>(row, &mut room);
                    }
                    self.finish();
                });
            }
        }
    }

    /// Reads a row and writes its gradient; [`Backward::finish`] must follow before another thread looks.
    ///
    /// # Safety
    /// As for [`Backward::run`].
    pub unsafe fn row<E: Element>(&self, row: &LiveRow, room: &mut Option<Room<E::Real>>) {
        let width = self.rows.width();
        // SAFETY: passed on to the caller.
        unsafe {
            let gradient = self.row_gradient::<E::Real>(row);
            for index in 0..width.div_ceil(CHUNK) {
                self.write::<E>(row, gradient.as_ref(), chunk_part(index, width), room);
            }
        }
    }

    /// Makes what this thread has written visible to others.
    pub fn finish(&self) {
        if self.stream {
            fence();
        }
    }

    /// Writes zeros over the gradient of ignored rows.
    ///
    /// # Safety
    /// As for [`Backward::run`].
    pub unsafe fn clear_ignored(&self, threads: usize) {
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

    /// The upstream gradients of a row; `None` where the row's gradient is 0 throughout.
    fn upstream(&self, row: usize) -> Option<Upstream> {
        let read = |stat| self.read(self.tables.grads, stat, row).unwrap_or(0.0);
        let [logp, lse, entropy] = [Stat::Logp, Stat::Lse, Stat::Entropy].map(read);
        let [mean, kl, rkl] = [Stat::MeanLogit, Stat::Kl, Stat::Rkl].map(read);
        let is_dead = |lse| self.read(self.tables.saved, lse, row) == Some(f64::NEG_INFINITY);
        let nothing = [logp, lse, entropy, mean, kl, rkl]
            .iter()
            .all(|upstream| *upstream == 0.0);
        if nothing || is_dead(Stat::Lse) {
            return None;
        }
        // A reference row of nothing but -inf has rkl = 0, whatever the policy.
        let rkl = if is_dead(Stat::RefLse) { 0.0 } else { rkl };
        Some(Upstream {
            logp,
            lse,
            entropy,
            mean,
            kl,
            rkl,
        })
    }

    /// An entry of one of the two tables.
    fn read(&self, table: &Array, stat: Stat, row: usize) -> Option<f64> {
        // SAFETY: `row` is one of the rows, and the promise of `backward` covers the tables.
        unsafe { self.tables.read(table, stat, row) }
    }

    /// The coefficients of a row; `None` where the gradient is 0 throughout.
    ///
    /// # Safety
    /// As for [`Backward::run`].
    unsafe fn row_gradient<R: Real>(&self, row: &LiveRow) -> Option<RowGradient> {
        let upstream = self.upstream(row.index)?;
        let transform = Transform::of(self.rows, row);
        let unit = self.rows.scale / row.temperature;
        let times_saved = |upstream: f64, stat| {
            times(
                upstream,
                self.read(self.tables.saved, stat, row.index)
                    .unwrap_or(f64::NAN),
            )
        };
        let constant = upstream.lse - upstream.logp + upstream.rkl
            - times_saved(upstream.entropy, Stat::Entropy)
            - times_saved(upstream.kl, Stat::Kl);

        let at_label = |view: &Array| {
            row.label.map(|place| {
                // SAFETY: the label is within the row, and the caller vouches for the memory.
                transform.apply::<R>(self.level, unsafe { read_element(view, row.index, place) })
            })
        };
        let each = upstream.mean / self.rows.classes as f64;
        let own = at_label(&self.rows.logits);
        let lse = self.log_sum(Stat::Lse, Stat::Logp, row.index, own);
        let (reference, ref_lse) = match &self.rows.reference {
            Some(view) if upstream.kl != 0.0 || upstream.rkl != 0.0 => {
                let reference = at_label(view);
                let ref_lse = self.log_sum(Stat::RefLse, Stat::RefLogp, row.index, reference);
                (reference, ref_lse)
            }
            _ => (None, 0.0),
        };
        let label = row.label.zip(own).map(|(place, (z, slope))| {
            let log_q = reference.map_or(0.0, |(w, _)| w - ref_lse);
            let gradient = upstream.at_label(constant, z - lse, log_q) + each;
            (place, unit * slope * gradient)
        });
        Some(RowGradient {
            transform,
            lse,
            ref_lse,
            constant: unit * constant,
            slope: -unit * upstream.entropy,
            each: unit * each,
            kl: unit * upstream.kl,
            rkl: unit * upstream.rkl,
            label,
        })
    }

    /// `lse` of a row. Where the label's logit z is here and its log-probability has been saved as well, lse = z − logp may be
    /// known to more digits than the saved one has: rounding that to f32 costs 5e-4 at 1e4.
    fn log_sum(&self, lse: Stat, log_p: Stat, row: usize, label: Option<(f64, f64)>) -> f64 {
        let [lse, log_p] = [lse, log_p].map(|stat| self.read(self.tables.saved, stat, row));
        match (lse, log_p, label) {
            (Some(lse), Some(log_p), Some((z, _))) if log_p.abs() < lse.abs() => z - log_p,
            (lse, ..) => lse.unwrap_or(f64::NAN),
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
            let label = gradient.label.filter(|(place, _)| part.contains(place));
            // The label's element is written again, which must not overtake a streamed store.
            let stream = self.stream && label.is_none();
            if gradient.transform.cap.is_none() && gradient.kl == 0.0 && gradient.rkl == 0.0 {
                pass::pull(self.level, x, target, part.len(), gradient.pull(), stream);
            } else {
                let room = room.get_or_insert_with(Room::new);
                self.fill::<E>(row, gradient, x, &part, room);
                pass::store(self.level, &room.policy, target, part.len(), stream);
            }
            if let Some((place, value)) = label {
                target
                    .add(place - part.start)
                    .write_unaligned(E::from_f64(value));
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
        let slope = cap.is_some().then_some(&*slope);
        let pull = gradient.pull();
        let kernel = PullInScratch {
            z: policy,
            len,
            pull,
            reference: divergence,
            slope,
        };
        dispatch(level, kernel);
    }
}

impl RowGradient {
    fn pull<R: Real>(&self) -> Pull<R> {
        Pull {
            log_p: self.transform.log_probability(self.lse),
            constant: R::from_f64(self.constant),
            slope: R::from_f64(self.slope),
            each: R::from_f64(self.each),
        }
    }

    fn divergence<R: Real>(&self) -> Divergence<R> {
        Divergence {
            log_q: self.transform.log_probability(self.ref_lse),
            kl: R::from_f64(self.kl),
            rkl: R::from_f64(self.rkl),
        }
    }
}
