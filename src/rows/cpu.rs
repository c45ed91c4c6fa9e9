//! Forward on the CPU.
//!
//! Every live row is read from memory once. It is cut into chunks of [`CHUNK`] elements; with AVX-512 one pass adds up their
//! exponentials ([`measure`]), elsewhere one finds the maximum and another adds up exponentials relative to it; either asks for
//! the next chunk meanwhile. [`combine`] adds the chunks in order. Ignored rows are not touched.
//!
//! For `logp` and `lse`, operations per vector (16 logits with AVX-512):
//!
//! |  | bytes per logit | one pass | maximum | sum from it |
//! | --- | --- | --- | --- | --- |
//! | bf16 | 2 | 9: conversion, and as f32 | 1: of each 32, two extremes of their bits | 12: conversion, and as f32 |
//! | f16 | 2 | 10: conversion in 2, and as f32 | 1: likewise | 13: conversion in 2, and as f32 |
//! | f32 | 4 | 8: 2 FMA and a difference for n and r; look-up and scaling for the power; 3 FMA | 1 | 11: difference; as before, with shift and addition for the power; comparison |
//!
//! A factor other than 1 (temperature, scale) costs one more, −inf or an unusual origin two; f64 costs 8 more, a longer
//! polynomial in place of the look-up, for half the lanes. The floor is the larger of bytes over read bandwidth and, where two
//! operations of 512 bits complete per cycle, 4.5 cycles per 16 logits of bf16. On an Emerald Rapids core at 2.6 GHz those take
//! 5 out of the second-level cache; out of memory they reach 90 to 95 % of the read bandwidth (a sum by PyTorch), on two
//! threads 80 to 90 %, f16 88 to 90 and 83 to 94 %, f32 more than that sum.
//! Statistics cost on top, per 16 logits: `entropy` and `log_sum_sq` 8 operations and the maximum, a soft cap 25 cycles, `kl` and
//! `rkl` 35 with the reference's own exponentials; with `logp` beside those, the pass of its mass.
//!
//! [`combine`]: super::combine

use std::ops::Range;
use std::sync::OnceLock;

use half::{bf16, f16};

use super::chunk::forward::{self as pass, Moments};
use super::chunk::{CHUNK, Cap, Mass, Scratch, Shift, maximum, measure, measure_moments};
use super::combine::{ChunkResult, CrossedPartial, Partial, ReferencePartial, Row};
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
    /// Log-probabilities or lse, or nothing that has a sum of its own.
    mass: bool,
    reference_mass: bool,
    /// The mass measured from the largest logit.
    sums: bool,
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
        let moments = any(&[Stat::Entropy, Stat::LogSumSq]);
        let top = any(&[Stat::TopkMass, Stat::TopkEntropy]);
        let divergence = any(&[Stat::Kl, Stat::Rkl]);
        let sums = top || divergence;
        Wants {
            mass: !(sums || moments) || any(&[Stat::Logp, Stat::Lse]),
            reference_mass: any(&[Stat::RefLogp, Stat::RefLse]),
            sums,
            moments,
            mean: any(&[Stat::MeanLogit]),
            top1: any(&[Stat::Top1]),
            top: top.then_some(k),
            reference: stats.iter().any(|stat| stat.needs_reference()),
            divergence,
        }
    }

    fn is_mass_alone(&self) -> bool {
        let more = self.sums || self.moments || self.mean || self.top1 || self.reference;
        self.mass && !more
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
    /// # Safety
    /// `len` elements can be read at `x`.
    unsafe fn of<E: Element<Real = R>>(
        level: Level,
        x: *const E,
        len: usize,
        factor: R,
    ) -> Highest<R> {
        Highest {
            // SAFETY: passed on to the caller.
            logit: unsafe { maximum(level, x, len) },
            factor,
        }
    }

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
        if self.wants.is_mass_alone() && self.rows.softcap == 0.0 {
            // SAFETY: passed on to the caller.
            unsafe { self.write::<E>(row, &Row::of(self.mass::<E>(row)), None, room) };
            return;
        }
        let mut state = Row::new();
        let mut top = self.wants.top.map(TopK::new);
        for index in 0..self.rows.width().div_ceil(CHUNK) {
            // SAFETY: passed on to the caller.
            state.add(&unsafe { self.chunk::<E>(row, index, room, top.as_mut()) });
        }
        // SAFETY: passed on to the caller.
        unsafe { self.write::<E>(row, &state, top.as_ref(), room) };
    }

    /// The mass of a row without a soft cap: that of its chunks, visited without stopping at each.
    ///
    /// # Safety
    /// As for [`Forward::run`].
    unsafe fn mass<E: Element>(&self, row: &LiveRow) -> Mass {
        let width = self.rows.width();
        let factor = E::Real::from_f64(Transform::of(self.rows, row).factor);
        let mut mass = Mass::NOTHING;
        let mut start = 0;
        // SAFETY: passed on to the caller; the row has the elements from `start` to `width`.
        unsafe {
            let x = row_pointer::<E>(&self.rows.logits, row.index).cast_const();
            while start < width {
                start += measure(self.level, x.add(start), width - start, factor, &mut mass);
                if start < width {
                    let len = CHUNK.min(width - start);
                    mass = mass.plus(&self.exact_mass(x.add(start), len, factor));
                    start += len;
                }
            }
        }
        mass
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
        let mut room = None;
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
            unsafe { self.write::<E>(row, &state, top.as_ref(), &mut room) };
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
            let logit =
                (self.wants.top1 || top.is_some()).then(|| maximum(self.level, x, part.len()));
            if let (Some(top), Some(logit)) = (top, logit)
                && logit > top.threshold()
            {
                pass::select(self.level, x, part.len(), top);
            }
            let outranked = self.wants.top1
                && logit.is_some_and(|logit| self.is_outranked::<E>(row, &part, x, logit));
            let factor = E::Real::from_f64(transform.factor);
            if transform.cap.is_none() && !self.wants.reference {
                let highest = logit.map(|logit| Highest { logit, factor });
                let (mass, policy) = self.policy(x, part.len(), factor, highest, None);
                return ChunkResult {
                    mass,
                    policy,
                    reference: None,
                    outranked,
                };
            }
            let room = room.get_or_insert_with(Room::new);
            room.policy.load(self.level, x, part.len());
            self.cap(&mut room.policy, part.len(), &transform);
            let z = room.policy.as_ptr();
            let highest = self
                .wants
                .divergence
                .then(|| Highest::of(self.level, z, part.len(), factor));
            let reference = self.reference(row, &part, room, &transform, highest);
            let known = reference
                .and_then(|reference| reference.crossed)
                .map(|crossed| crossed.sums.mass);
            let (mass, policy) = self.policy(z, part.len(), factor, highest, known);
            ChunkResult {
                mass,
                policy,
                reference,
                outranked,
            }
        }
    }

    /// Turns raw logits into z, but for the factor.
    fn cap<R: Real>(&self, scratch: &mut Scratch<R>, len: usize, transform: &Transform) {
        if let Some(cap) = transform.cap_in() {
            scratch.cap(self.level, len, cap, None);
        }
    }

    /// What is kept of a chunk of policy logits: its mass, and what has to be measured from the largest logit, which may be
    /// known, as may be the mass measured from that.
    ///
    /// # Safety
    /// `len` elements can be read at `x`.
    unsafe fn policy<E: Element>(
        &self,
        x: *const E,
        len: usize,
        factor: E::Real,
        highest: Option<Highest<E::Real>>,
        known: Option<f64>,
    ) -> (Mass, Partial) {
        let wants = &self.wants;
        // SAFETY: passed on to the caller.
        unsafe {
            let mut highest = highest;
            let mut both = None;
            if wants.moments {
                let of = highest.get_or_insert_with(|| Highest::of(self.level, x, len, factor));
                both = measure_moments(self.level, x, len, factor, of.logit);
            }
            let measured = match both {
                Some((mass, _)) => Some(mass),
                None => self.measured(wants.mass, x, len, factor),
            };
            if let Some(mass) = measured
                && !(wants.sums || wants.moments || wants.mean)
            {
                return (mass, Partial::NOTHING);
            }
            let highest = highest.unwrap_or_else(|| Highest::of(self.level, x, len, factor));
            let shift = highest.shift();
            let (moments, same) = match both {
                Some((_, moments)) => (moments, None),
                None if wants.moments => {
                    let moments = pass::moments(self.level, x, len, shift);
                    (moments, Some(moments.mass))
                }
                None => (Moments::NOTHING, None),
            };
            let is_wanted = wants.sums || wants.mass && measured.is_none();
            let mass = match known.or(same) {
                Some(mass) => mass,
                None if is_wanted => pass::mass(self.level, x, len, shift),
                None => 0.0,
            };
            let total = if wants.mean {
                let offsets = pass::offsets(self.level, x, len, shift.origin);
                (offsets + len as f64 * shift.origin.to_f64()) * shift.factor.to_f64()
            } else {
                0.0
            };
            let partial = Partial {
                max: highest.z(),
                mass,
                moments,
                total,
            };
            let mass = measured.unwrap_or_else(|| Mass::from_largest(partial.max, mass));
            (mass, partial)
        }
    }

    /// The mass of a chunk if it is wanted and can be had without knowing the largest logit.
    ///
    /// # Safety
    /// `len` elements can be read at `x`.
    unsafe fn measured<E: Element>(
        &self,
        wanted: bool,
        x: *const E,
        len: usize,
        factor: E::Real,
    ) -> Option<Mass> {
        let mut mass = Mass::NOTHING;
        // SAFETY: passed on to the caller.
        let all = wanted && unsafe { measure(self.level, x, len, factor, &mut mass) } == len;
        all.then_some(mass)
    }

    /// The mass of a chunk measured from its largest logit.
    ///
    /// # Safety
    /// `len` elements can be read at `x`.
    unsafe fn exact_mass<E: Element>(&self, x: *const E, len: usize, factor: E::Real) -> Mass {
        // SAFETY: passed on to the caller.
        unsafe {
            let highest = Highest::of(self.level, x, len, factor);
            let mass = pass::mass(self.level, x, len, highest.shift());
            Mass::from_largest(highest.z(), mass)
        }
    }

    /// What is kept of a chunk of reference logits, where they are wanted; the policy's are prepared in `room`, and their largest
    /// is given for a divergence.
    ///
    /// # Safety
    /// As for [`Forward::chunk`].
    unsafe fn reference<R: Real>(
        &self,
        row: &LiveRow,
        part: &Range<usize>,
        room: &mut Room<R>,
        transform: &Transform,
        policy: Option<Highest<R>>,
    ) -> Option<ReferencePartial> {
        let view = self
            .rows
            .reference
            .as_ref()
            .filter(|_| self.wants.reference)?;
        let len = part.len();
        let factor = R::from_f64(transform.factor);
        // SAFETY: passed on to the caller; a scratch has `len` elements.
        unsafe {
            load_part(self.level, view, row.index, part, &mut room.reference);
            self.cap(&mut room.reference, len, transform);
            let w = room.reference.as_ptr();
            let crossed = policy.map(|policy| {
                let highest = Highest::of(self.level, w, len, factor);
                let z = (&room.policy, policy.shift());
                CrossedPartial {
                    max: highest.z(),
                    sums: pass::crossed(self.level, z, (&room.reference, highest.shift()), len),
                }
            });
            let measured = self.measured(self.wants.reference_mass, w, len, factor);
            let mass = match (measured, &crossed) {
                (Some(mass), _) => mass,
                (None, Some(crossed)) => {
                    Mass::from_largest(crossed.max, crossed.sums.reference_mass)
                }
                (None, None) => self.exact_mass(w, len, factor),
            };
            Some(ReferencePartial { mass, crossed })
        }
    }

    /// The label's log-probability among the logits of `view`, whose mass is known.
    ///
    /// Where it is next to 0 the chunk of the label is summed up again from its largest logit: its distance from 0, which the
    /// gradient is made of, comes from other logits, and is not to be that of rounded terms.
    ///
    /// # Safety
    /// As for [`Forward::row`]; the view is that of the logits or of the reference.
    unsafe fn log_p<R: Real>(
        &self,
        row: &LiveRow,
        view: &Array,
        mass: &Mass,
        room: &mut Option<Room<R>>,
    ) -> f64 {
        const NEXT_TO_0: f64 = -1.0 / 64.0;
        let transform = Transform::of(self.rows, row);
        let Some(place) = row.label else {
            return mass.log_p(f64::NEG_INFINITY);
        };
        // SAFETY: the label is within the row, and the caller vouches for the memory.
        let label = unsafe { read_element(view, row.index, place) };
        let (z, _) = transform.apply::<R>(self.level, label);
        let value = mass.log_p(z);
        if !mass.rough || value < NEXT_TO_0 || value.is_nan() {
            return value;
        }
        let part = chunk_part(place / CHUNK, self.rows.width());
        let (len, factor) = (part.len(), R::from_f64(transform.factor));
        let scratch = &mut room.get_or_insert_with(Room::new).policy;
        // SAFETY: as above; a scratch has `len` elements.
        unsafe {
            load_part(self.level, view, row.index, &part, scratch);
            self.cap(scratch, len, &transform);
            let x = scratch.as_ptr();
            let Some(rough) = self.measured(true, x, len, factor) else {
                return value;
            };
            let exact = self.exact_mass(x, len, factor);
            mass.with(&rough, &exact).log_p(z)
        }
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
    unsafe fn write<E: Element>(
        &self,
        row: &LiveRow,
        state: &Row,
        top: Option<&TopK<E::Real>>,
        room: &mut Option<Room<E::Real>>,
    ) {
        let transform = Transform::of(self.rows, row);
        // SAFETY: passed on to the caller.
        let mut log_p = |view: &Array, mass: &Mass| unsafe { self.log_p(row, view, mass, room) };
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
                Stat::Logp => log_p(&self.rows.logits, state.mass()),
                Stat::Lse => state.mass().lse(),
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
                    .map_or(f64::NAN, |view| log_p(view, state.reference_mass())),
                Stat::RefLse => state.reference_mass().lse(),
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
