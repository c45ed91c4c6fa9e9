//! Forward on the CPU.
//!
//! Every live row is read from memory once. It is cut into chunks of [`CHUNK`] elements; of each, one pass finds the
//! maximum and another adds up exponentials relative to it, asking for the next chunk meanwhile, so that neither waits for
//! memory. [`combine`] adds the chunks in order. Ignored rows are not touched.
//!
//! For `logp`, `lse` and `top1`, operations per vector (16 logits with AVX-512):
//!
//! |  | bytes per logit | maximum | sum |
//! | --- | --- | --- | --- |
//! | bf16 | 2 | 1: of each 32, two extremes of their bits | 12: conversion, and as f32 |
//! | f16 | 2 | 1: likewise | 13: conversion in 2, and as f32 |
//! | f32 | 4 | 1 | 11: difference; 2 FMA and a difference for n and r; look-up, shift and addition for the power; 3 FMA; comparison |
//!
//! A factor other than 1 (temperature, scale) costs one more; f64 costs 8 more, a longer polynomial in place of the look-up,
//! for half the lanes. The floor is the larger of bytes over read bandwidth and, on a Zen 4 core, which completes two
//! operations of 512 bits per cycle, 6.5 cycles per 16 logits of bf16. Those take 9.6 there (a loop of the sum alone 7.8:
//! the third operand of an FMA keeps another port busy), f16 10.4 and f32 10.2, out of the second-level cache. Out of
//! memory the 16-bit ones take as long: 12 GB/s per core at 3.7 GHz. Statistics cost on top, per 16 logits: `entropy` and
//! `log_sum_sq` 5.5 cycles, a soft cap 25, `kl` and `rkl` 35 with the reference's own exponentials.
//!
//! [`combine`]: super::combine

use std::ops::Range;
use std::sync::OnceLock;

use half::{bf16, f16};

use super::chunk::forward::{self as pass, Sums};
use super::chunk::{CHUNK, Cap, Scratch, Shift, maximum};
use super::combine::{ChunkResult, Partial, ReferencePartial, Row};
use super::topk::TopK;
use super::{LiveRow, Rows, Stat};
use crate::array::{ArgumentError, Array, Dtype};
use crate::simd::{Element, Level, Real};
use crate::threads::for_each_range;

/// Writes the statistics `stats` of every row into `out`, shape `[stats, rows]`.
///
/// # Safety
/// Every view describes live memory that nobody writes to meanwhile, `out` writable memory.
pub unsafe fn forward(
    rows: &Rows,
    stats: &[Stat],
    k: usize,
    out: &Array,
    threads: usize,
) -> Result<(), ArgumentError> {
    rows.check_forward(stats, k, out)?;
    let level = Level::current()?;
    // SAFETY: the caller's promise, and the check above.
    let live = unsafe { rows.live()? };
    let forward = Forward::new(rows, (stats, k), out, &live, level);
    // SAFETY: as above; the dtype is that of the logits.
    unsafe {
        match rows.logits.dtype {
            Dtype::F16 => forward.run::<f16>(threads),
            Dtype::Bf16 => forward.run::<bf16>(threads),
            Dtype::F32 => forward.run::<f32>(threads),
            Dtype::F64 => forward.run::<f64>(threads),
            Dtype::I64 | Dtype::Bool => unreachable!("the check lets floats through only"),
        }
    }
    Ok(())
}

/// What has to be computed for the statistics asked for.
#[derive(Clone, Copy)]
struct Wants {
    moments: bool,
    mean: bool,
    top1: bool,
    /// The k of top-k statistics.
    top: Option<usize>,
    reference: bool,
    divergence: bool,
}

impl Wants {
    fn new(stats: &[Stat], k: usize) -> Wants {
        let any = |wanted: &[Stat]| stats.iter().any(|stat| wanted.contains(stat));
        Wants {
            moments: any(&[Stat::Entropy, Stat::LogSumSq]),
            mean: any(&[Stat::MeanLogit]),
            top1: any(&[Stat::Top1]),
            top: any(&[Stat::TopkMass, Stat::TopkEntropy]).then_some(k),
            reference: stats.iter().any(|stat| stat.needs_reference()),
            divergence: any(&[Stat::Kl, Stat::Rkl]),
        }
    }
}

/// From raw logits to z, for one row. Without a soft cap z = factor·x; with one, z is written out and the factor is 1.
#[derive(Clone, Copy)]
pub(super) struct Transform {
    pub factor: f64,
    /// inner and outer factor of the soft cap
    pub cap: Option<(f64, f64)>,
}

impl Transform {
    pub fn of(rows: &Rows, row: &LiveRow) -> Transform {
        if rows.softcap == 0.0 {
            Transform {
                factor: rows.scale / row.temperature,
                cap: None,
            }
        } else {
            Transform {
                factor: 1.0,
                cap: Some((rows.scale / rows.softcap, rows.softcap / row.temperature)),
            }
        }
    }

    /// The soft cap in the precision of the row.
    pub fn cap_in<R: Real>(&self) -> Option<Cap<R>> {
        self.cap.map(|(inner, outer)| Cap {
            inner: R::from_f64(inner),
            outer: R::from_f64(outer),
        })
    }

    /// From z or a raw logit to z − lse. The origin is a logit of that z or nearly so, what is left of lse is the remainder.
    pub fn log_probability<R: Real>(&self, lse: f64) -> Shift<R> {
        let factor = R::from_f64(self.factor);
        let origin = R::from_f64(lse / factor.to_f64());
        let remainder = R::from_f64(lse - origin.to_f64() * factor.to_f64());
        Shift {
            origin,
            factor,
            remainder,
        }
    }

    /// z of one logit, and what the soft cap multiplies the derivative dz/dx = scale/T by there; rounded as the vectors round.
    pub fn apply<R: Real>(&self, level: Level, x: f64) -> (f64, f64) {
        match self.cap_in::<R>() {
            None => (x * R::from_f64(self.factor).to_f64(), 1.0),
            Some(cap) => {
                let (z, slope) = cap.apply(level, R::from_f64(x));
                (z.to_f64(), slope.to_f64())
            }
        }
    }
}

/// The largest logit of a chunk, −inf where there is nothing above it, and the factor from logits to z.
#[derive(Clone, Copy)]
struct Highest<R> {
    logit: R,
    factor: R,
}

impl<R: Real> Highest<R> {
    /// What the logits are measured from: the largest, or 0 where there is none.
    fn origin(&self) -> R {
        if self.logit == R::NEG_INFINITY {
            R::ZERO
        } else {
            self.logit
        }
    }

    /// The largest z.
    fn z(&self) -> f64 {
        self.logit.to_f64() * self.factor.to_f64()
    }

    fn shift(&self) -> Shift<R> {
        Shift {
            origin: self.origin(),
            factor: self.factor,
            remainder: R::ZERO,
        }
    }
}

/// A pointer to the first element of a row.
///
/// # Safety
/// The view describes live memory of `E`s, and the row is one of its rows.
pub(super) unsafe fn row_pointer<E>(view: &Array, row: usize) -> *mut E {
    view.pointer(view.offset(row, view.shape.len() - 1))
}

/// Copies part of a row of whatever dtype into a scratch.
///
/// # Safety
/// The view describes live memory; `start + len` elements are in the row.
pub(super) unsafe fn load_part<R: Real>(
    level: Level,
    view: &Array,
    row: usize,
    part: &Range<usize>,
    scratch: &mut Scratch<R>,
) {
    // SAFETY: the pointer's type is that of the view, the rest is the caller's promise.
    unsafe {
        match view.dtype {
            Dtype::F16 => scratch.load(
                level,
                row_pointer::<f16>(view, row).add(part.start),
                part.len(),
            ),
            Dtype::Bf16 => scratch.load(
                level,
                row_pointer::<bf16>(view, row).add(part.start),
                part.len(),
            ),
            Dtype::F32 => scratch.load(
                level,
                row_pointer::<f32>(view, row).add(part.start),
                part.len(),
            ),
            Dtype::F64 => scratch.load(
                level,
                row_pointer::<f64>(view, row).add(part.start),
                part.len(),
            ),
            Dtype::I64 | Dtype::Bool => unreachable!("logits are floats"),
        }
    }
}

/// One element of a row, of whatever float dtype.
///
/// # Safety
/// The view describes live memory and has the element.
pub(super) unsafe fn read_element(view: &Array, row: usize, column: usize) -> f64 {
    // SAFETY: passed on to the caller.
    unsafe { view.read_float(row * view.shape[view.shape.len() - 1] + column) }
}

/// Where threads have to share a row, because there are not enough rows to go round.
pub(super) fn shares_rows(rows: usize, threads: usize) -> bool {
    threads > 1 && (1..4 * threads).contains(&rows)
}

/// How many rows of that width a thread takes at a time: about a chunk's worth at least.
pub(super) fn rows_at_a_time(width: usize) -> usize {
    4 * CHUNK / width.max(1)
}

/// The elements of the `index`-th chunk of a row.
pub(super) fn chunk_part(index: usize, width: usize) -> Range<usize> {
    index * CHUNK..width.min((index + 1) * CHUNK)
}

/// A forward call whose arguments have been checked.
pub(super) struct Forward<'a> {
    rows: &'a Rows,
    stats: &'a [Stat],
    out: &'a Array,
    live: &'a [LiveRow],
    wants: Wants,
    level: Level,
}

/// What a chunk that is a task of its own leaves behind.
type Task<R> = (ChunkResult, Option<TopK<R>>);

/// Room for a chunk of policy logits and one of reference logits.
pub(super) struct Room<R> {
    policy: Scratch<R>,
    reference: Scratch<R>,
}

impl<R: Real> Room<R> {
    fn new() -> Room<R> {
        Room {
            policy: Scratch::new(),
            reference: Scratch::new(),
        }
    }
}

impl<'a> Forward<'a> {
    /// Of the statistics with that k; `live` are all rows that are not ignored.
    pub fn new(
        rows: &'a Rows,
        (stats, k): (&'a [Stat], usize),
        out: &'a Array,
        live: &'a [LiveRow],
        level: Level,
    ) -> Forward<'a> {
        Forward {
            rows,
            stats,
            out,
            live,
            wants: Wants::new(stats, k),
            level,
        }
    }

    /// Writes 0 everywhere, which is the value of ignored rows.
    ///
    /// # Safety
    /// `out` describes writable memory.
    pub unsafe fn clear(&self) {
        // SAFETY: `out` is contiguous, as was checked; all dtypes of floats write 0 as zero bytes.
        unsafe {
            (self.out.address as *mut u8).write_bytes(0, self.out.len() * self.out.dtype.size())
        };
    }

    /// # Safety
    /// The promise of [`forward`]; the logits are `E`s.
    pub unsafe fn run<E: Element>(&self, threads: usize) {
        // SAFETY: passed on to the caller.
        unsafe { self.clear() };
        if shares_rows(self.live.len(), threads) {
            let chunks = self.rows.width().div_ceil(CHUNK);
            // SAFETY: passed on to the caller.
            unsafe { self.run_sharing_rows::<E>(chunks, threads) };
            return;
        }
        for_each_range(
            threads,
            self.live.len(),
            rows_at_a_time(self.rows.width()),
            |range| {
                let mut room = None;
                for row in &self.live[range] {
                    // SAFETY: passed on to the caller.
                    unsafe { self.row::<E>(row, &mut room) };
                }
            },
        );
    }

    /// Reads a row and writes its statistics.
    ///
    /// # Safety
    /// As for [`Forward::run`].
    pub unsafe fn row<E: Element>(&self, row: &LiveRow, room: &mut Option<Room<E::Real>>) {
        let mut state = Row::new();
        let mut top = self.wants.top.map(TopK::new);
        for index in 0..self.rows.width().div_ceil(CHUNK) {
            // SAFETY: passed on to the caller.
            state.add(&unsafe { self.chunk::<E>(row, index, room, top.as_mut()) });
        }
        // SAFETY: passed on to the caller.
        unsafe { self.write::<E>(row, &state, top.as_ref()) };
    }

    /// As [`Forward::run`], each chunk a task of its own.
    ///
    /// # Safety
    /// As for [`Forward::run`].
    unsafe fn run_sharing_rows<E: Element>(&self, chunks: usize, threads: usize) {
        let tasks = self.live.len() * chunks;
        let results: Vec<OnceLock<Task<E::Real>>> = (0..tasks).map(|_| OnceLock::new()).collect();
        for_each_range(threads, tasks, 1, |range| {
            let mut room = None;
            for task in range {
                let mut top = self.wants.top.map(TopK::new);
                let row = &self.live[task / chunks];
                results[task].get_or_init(|| {
                    // SAFETY: passed on to the caller.
                    let chunk =
                        unsafe { self.chunk::<E>(row, task % chunks, &mut room, top.as_mut()) };
                    (chunk, top)
                });
            }
        });
        for (row, results) in self.live.iter().zip(results.chunks(chunks)) {
            let mut state = Row::new();
            let mut top = self.wants.top.map(TopK::new);
            for (chunk, selected) in results.iter().filter_map(OnceLock::get) {
                state.add(chunk);
                if let (Some(top), Some(selected)) = (&mut top, selected) {
                    top.extend(selected.numbers());
                }
            }
            // SAFETY: passed on to the caller.
            unsafe { self.write::<E>(row, &state, top.as_ref()) };
        }
    }

    /// Reads one chunk of a row.
    ///
    /// # Safety
    /// As for [`Forward::run`]; the row has the chunk.
    unsafe fn chunk<E: Element>(
        &self,
        row: &LiveRow,
        index: usize,
        room: &mut Option<Room<E::Real>>,
        top: Option<&mut TopK<E::Real>>,
    ) -> ChunkResult {
        let part = chunk_part(index, self.rows.width());
        let transform = Transform::of(self.rows, row);
        // SAFETY: the row has the elements of `part`.
        unsafe {
            let x = row_pointer::<E>(&self.rows.logits, row.index)
                .add(part.start)
                .cast_const();
            let logit = maximum(self.level, x, part.len());
            if let Some(top) = top
                && logit > top.threshold()
            {
                pass::select(self.level, x, part.len(), top);
            }
            let outranked = self.wants.top1 && self.is_outranked::<E>(row, &part, x, logit);
            let factor = E::Real::from_f64(transform.factor);
            if transform.cap.is_none() && !self.wants.reference {
                let highest = Highest { logit, factor };
                let policy = self.policy(x, part.len(), highest, None);
                return ChunkResult {
                    policy,
                    reference: None,
                    outranked,
                };
            }
            let room = room.get_or_insert_with(Room::new);
            room.policy.load(self.level, x, part.len());
            let highest = self.prepare(&mut room.policy, part.len(), &transform);
            let reference = self.reference(row, &part, room, &transform, highest);
            let mass = reference
                .and_then(|reference| reference.crossed)
                .map(|crossed| crossed.mass);
            let policy = self.policy(room.policy.as_ptr(), part.len(), highest, mass);
            ChunkResult {
                policy,
                reference,
                outranked,
            }
        }
    }

    /// Turns raw logits into z, and finds the largest.
    fn prepare<R: Real>(
        &self,
        scratch: &mut Scratch<R>,
        len: usize,
        transform: &Transform,
    ) -> Highest<R> {
        if let Some(cap) = transform.cap_in() {
            scratch.cap(self.level, len, cap, None);
        }
        let factor = R::from_f64(transform.factor);
        // SAFETY: a scratch has `len` elements.
        let logit = unsafe { maximum(self.level, scratch.as_ptr(), len) };
        Highest { logit, factor }
    }

    /// What is kept of a chunk of policy logits, the mass of which may be known.
    ///
    /// # Safety
    /// `len` elements can be read at `x`.
    unsafe fn policy<E: Element>(
        &self,
        x: *const E,
        len: usize,
        highest: Highest<E::Real>,
        mass: Option<f64>,
    ) -> Partial {
        let shift = highest.shift();
        let sums = match mass {
            Some(mass) if !self.wants.moments => Sums {
                mass,
                weighted: 0.0,
                squares: 0.0,
            },
            // SAFETY: passed on to the caller.
            _ => unsafe { pass::sums(self.level, x, len, shift, self.wants.moments) },
        };
        let total = if self.wants.mean {
            // SAFETY: passed on to the caller.
            let offsets = unsafe { pass::offsets(self.level, x, len, shift.origin) };
            (offsets + len as f64 * shift.origin.to_f64()) * shift.factor.to_f64()
        } else {
            0.0
        };
        Partial {
            max: highest.z(),
            sums,
            total,
        }
    }

    /// What is kept of a chunk of reference logits, where they are wanted; the policy's are prepared in `room`.
    ///
    /// # Safety
    /// As for [`Forward::chunk`].
    unsafe fn reference<R: Real>(
        &self,
        row: &LiveRow,
        part: &Range<usize>,
        room: &mut Room<R>,
        transform: &Transform,
        policy: Highest<R>,
    ) -> Option<ReferencePartial> {
        let view = self
            .rows
            .reference
            .as_ref()
            .filter(|_| self.wants.reference)?;
        let len = part.len();
        // SAFETY: passed on to the caller.
        unsafe { load_part(self.level, view, row.index, part, &mut room.reference) };
        let highest = self.prepare(&mut room.reference, len, transform);
        let max = highest.z();
        if !self.wants.divergence {
            // SAFETY: a scratch has `len` elements.
            let sums = unsafe {
                pass::sums(
                    self.level,
                    room.reference.as_ptr(),
                    len,
                    highest.shift(),
                    false,
                )
            };
            return Some(ReferencePartial {
                max,
                mass: sums.mass,
                crossed: None,
            });
        }
        let (z, w) = (
            (&room.policy, policy.shift()),
            (&room.reference, highest.shift()),
        );
        let crossed = pass::crossed(self.level, z, w, len);
        Some(ReferencePartial {
            max,
            mass: crossed.reference_mass,
            crossed: Some(crossed),
        })
    }

    /// Whether the chunk has a logit larger than the label's, or an equal one before it; a label of another block is taken
    /// for outranked.
    ///
    /// # Safety
    /// As for [`Forward::chunk`]; `x` points to the elements of `part`, whose largest is `highest`.
    unsafe fn is_outranked<E: Element>(
        &self,
        row: &LiveRow,
        part: &Range<usize>,
        x: *const E,
        highest: E::Real,
    ) -> bool {
        let Some(place) = row.label else {
            return true;
        };
        // SAFETY: the label is within the row, what comes before it in the chunk within the chunk.
        let label = unsafe {
            row_pointer::<E>(&self.rows.logits, row.index)
                .add(place)
                .read_unaligned()
        }
        .to_real();
        let before = place.clamp(part.start, part.end) - part.start;
        // SAFETY: as above.
        let equals = |index: usize| unsafe { x.add(index).read_unaligned() }.to_real() == label;
        highest > label || highest == label && (0..before).any(equals)
    }

    /// Writes the statistics of a row.
    ///
    /// # Safety
    /// As for [`Forward::run`].
    unsafe fn write<E: Element>(&self, row: &LiveRow, state: &Row, top: Option<&TopK<E::Real>>) {
        let transform = Transform::of(self.rows, row);
        let z = |view: &Array| {
            row.label.map_or(f64::NEG_INFINITY, |place| {
                // SAFETY: the label is within the row, and the caller vouches for the memory.
                let label = unsafe { read_element(view, row.index, place) };
                transform.apply::<E::Real>(self.level, label).0
            })
        };
        let (mass, entropy) = top.map_or((0.0, 0.0), |top| {
            let largest: Vec<f64> = top
                .numbers()
                .iter()
                .map(|x| transform.apply::<E::Real>(self.level, x.to_f64()).0)
                .collect();
            state.top(&largest)
        });
        for (position, stat) in self.stats.iter().enumerate() {
            let value = match stat {
                Stat::Logp => state.log_p(z(&self.rows.logits)),
                Stat::Lse => state.lse(),
                Stat::Entropy => state.entropy(),
                Stat::LogSumSq => state.log_sum_sq(),
                Stat::MeanLogit => state.mean(self.rows.width()),
                Stat::Top1 => state.top1(),
                Stat::TopkMass => mass,
                Stat::TopkEntropy => entropy,
                Stat::RefLogp => self
                    .rows
                    .reference
                    .as_ref()
                    .map_or(f64::NAN, |view| state.log_q(z(view))),
                Stat::RefLse => state.ref_lse(),
                Stat::Kl => state.kl(),
                Stat::Rkl => state.rkl(),
            };
            let place = (position * self.rows.count() + row.index) as isize;
            // SAFETY: `out` is a contiguous table of [stats, rows] of this type, as was checked.
            unsafe {
                self.out
                    .pointer::<E::Real>(place)
                    .write_unaligned(E::Real::from_f64(value))
            };
        }
    }
}
