//! Short lists in place of a row's probabilities: the large ones as they are, the small ones rounded at random.
//!
//! With a threshold eps, class j of a row stands in its list where `p_j ≥ eps·u_j`, u_j uniform in (0, 1), with the value
//! `max(p_j, eps)`: a probability of at least eps always and as it is, a smaller one with probability p_j/eps and as eps.
//! So the expectation of what is listed (0 where a class is not) is p_j, its variance `p_j·(eps − p_j)`, and a list has at
//! most 1/eps entries in the mean. The label's class is never in the list: its probability is known to more digits from its
//! log-probability, and is handed out apart.
//!
//! u_j is the sum, modulo 1, of a hash of the number of the row and one of the number of the class, both keyed with seed and
//! step: the same on whatever thread, in whatever tile and block of classes. Any two of these sums are independent, of one row,
//! of one class or of neither, and gradients are linear in what is listed: so their variance is what it were if all were. The list depends on nothing but these, the row's logits and its final log-sum-exp, since a row is read
//! a second time, from the second-level cache, when that is known.
//!
//! Operations per vector of the second reading: conversion 1, bound of p 3, hash 2, threshold 2, comparison 1; p itself is computed
//! where the bound says that an element may be in the list.

use std::ops::Range;
use std::sync::OnceLock;

use half::{bf16, f16};

use super::chunk::{CHUNK, Scratch, Shift};
use super::cpu::{
    Forward, Transform, chunk_part, read_element, row_pointer, rows_at_a_time, shares_rows,
};
use super::exp::exp;
use super::{LiveRow, Rows, Stat, check_shape};
use crate::array::{ArgumentError, Array, Dtype};
use crate::simd::{Element, Isa, Kernel, Level, MAX_LANES, Memory, Real, Vector, dispatch};
use crate::threads::for_each_range;

/// Thresholds below it would not be normal numbers of f32.
const LEAST_EPS: f64 = 1.0 / (1u64 << 40) as f64;

/// From which probability on they are listed as they are, and what the hash is made of beside row and class.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    pub eps: f64,
    pub seed: u64,
    pub step: u64,
}

/// The lists of all rows.
pub struct Lists {
    /// How long each row's is; 0 for ignored rows.
    pub lengths: Vec<i64>,
    /// Those of the live rows.
    pub lists: Vec<List>,
}

/// The entries of a row.
#[derive(Default)]
pub struct List {
    /// Places in the row, rising.
    pub classes: Vec<i64>,
    /// `max(p, eps)·dz/dx`, rounded to the dtype of statistics when they are written.
    pub values: Vec<f64>,
}

impl PerRow<'_> {
    /// Writes `(1 − p)·dz/dx` and `p·dz/dx` of a label.
    ///
    /// # Safety
    /// `at_label` is a contiguous table [2, rows] of this type.
    pub(super) unsafe fn write_label<R: Real>(&self, row: usize, slope: f64, log_p: f64) {
        let pair = [-log_p.exp_m1() * slope, log_p.exp() * slope];
        for (line, value) in pair.into_iter().enumerate() {
            let place = (line * self.at_label.shape[1] + row) as isize;
            // SAFETY: passed on to the caller.
            unsafe {
                self.at_label
                    .pointer::<R>(place)
                    .write_unaligned(R::from_f64(value))
            };
        }
    }

    /// # Safety
    /// As for [`PerRow::write_label`], of whatever type.
    pub(super) unsafe fn clear_labels(&self) {
        let (labels, bytes) = (
            self.at_label,
            self.at_label.len() * self.at_label.dtype.size(),
        );
        // SAFETY: passed on to the caller.
        unsafe { (labels.address as *mut u8).write_bytes(0, bytes) };
    }
}

impl List {
    /// All classes but the label, as NaN.
    pub(super) fn of_nan(width: usize, label: Option<usize>) -> List {
        let others = (0..width).filter(|place| Some(*place) != label);
        let classes: Vec<i64> = others.map(|place| place as i64).collect();
        let values = vec![f64::NAN; classes.len()];
        List { classes, values }
    }

    fn with_capacity(capacity: usize) -> List {
        List {
            classes: Vec::with_capacity(capacity),
            values: Vec::with_capacity(capacity),
        }
    }
}

impl Lists {
    /// `lists` has one per live row of `count` rows.
    pub(super) fn new(count: usize, live: &[LiveRow], lists: Vec<List>) -> Lists {
        let mut lengths = vec![0; count];
        for (row, list) in live.iter().zip(&lists) {
            lengths[row.index] = list.classes.len() as i64;
        }
        Lists { lengths, lists }
    }

    /// The number of all entries.
    pub fn len(&self) -> usize {
        self.lists.iter().map(|list| list.classes.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What belongs to each row beside its logits.
pub struct PerRow<'a> {
    /// [rows] i64: numbers of the rows, for the hash.
    pub numbers: &'a Array,
    /// [2, rows], written: `(1 − p_y)·dz/dx` and `p_y·dz/dx` of the label's logit; 0 where it is not in this block.
    pub at_label: &'a Array,
}

/// Lists the probabilities of every live row. With `fresh` the statistics are computed first, into `table`; else `table`
/// has those of the whole vocabulary.
///
/// # Safety
/// Every view describes live memory that nobody else writes to meanwhile, `table` and `at_label` writable memory.
pub unsafe fn lists(
    rows: &Rows,
    (stats, k): (&[Stat], usize),
    (table, fresh): (&Array, bool),
    per_row: &PerRow<'_>,
    sampling: Sampling,
    threads: usize,
) -> Result<Lists, ArgumentError> {
    rows.check_forward(stats, k, table)?;
    check(rows, stats, per_row, sampling)?;
    let level = Level::current()?;
    // SAFETY: the caller's promise, and the checks above.
    let live = unsafe { rows.live()? };
    let call = Call {
        rows,
        stats,
        table,
        per_row,
        eps: sampling.eps,
        hashes: hashes_of(rows, sampling),
        level,
    };
    let forward = fresh.then(|| Forward::new(rows, (stats, k), table, &live, level));
    // SAFETY: as above; the dtype is that of the logits.
    Ok(unsafe {
        match rows.logits.dtype {
            Dtype::F16 => call.run::<f16>(&live, forward.as_ref(), threads),
            Dtype::Bf16 => call.run::<bf16>(&live, forward.as_ref(), threads),
            Dtype::F32 => call.run::<f32>(&live, forward.as_ref(), threads),
            Dtype::F64 => call.run::<f64>(&live, forward.as_ref(), threads),
            Dtype::I64 | Dtype::Bool => unreachable!("the check lets floats through only"),
        }
    })
}

pub(super) fn check(
    rows: &Rows,
    stats: &[Stat],
    per_row: &PerRow<'_>,
    sampling: Sampling,
) -> Result<(), ArgumentError> {
    for needed in [Stat::Lse, Stat::Logp] {
        if !stats.contains(&needed) {
            return Err(ArgumentError::Value(format!(
                "stats: lists need {:?} among the statistics",
                needed.name()
            )));
        }
    }
    if !(LEAST_EPS..=1.0).contains(&sampling.eps) {
        return Err(ArgumentError::Value(format!(
            "eps: {}, expected 2^-40 <= eps <= 1",
            sampling.eps
        )));
    }
    if rows.classes > i64::from(u32::MAX) {
        return Err(ArgumentError::Value(format!(
            "classes: {}, expected fewer than 2^32 for lists",
            rows.classes
        )));
    }
    if per_row.numbers.dtype != Dtype::I64 {
        return Err(ArgumentError::Type(format!(
            "numbers: dtype {}, expected i64",
            per_row.numbers.dtype.name()
        )));
    }
    check_shape(
        "numbers",
        per_row.numbers,
        &[rows.count()],
        "the number of rows",
    )?;
    rows.check_table("at_label", per_row.at_label, &[Stat::Logp, Stat::Lse])
}

/// A bijection of 64 bits that leaves no trace of small differences: the finalizer of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The hashes of a call.
pub(super) struct Hashes {
    of_rows: u64,
    /// Of the call's classes.
    pub of_classes: Vec<u32>,
}

impl Hashes {
    /// Of classes by their numbers in the vocabulary.
    pub fn new(sampling: Sampling, classes: Range<u64>) -> Hashes {
        let key = after(after(0, sampling.seed), sampling.step);
        let of_classes = after(key, 1);
        Hashes {
            of_rows: after(key, 2),
            of_classes: classes.map(|class| hash(of_classes, class)).collect(),
        }
    }

    pub fn of_row(&self, number: i64) -> u32 {
        hash(self.of_rows, number as u64)
    }
}

/// Those of the classes that the rows have, and of some more behind them, to the end of a block.
pub(super) fn hashes_of(rows: &Rows, sampling: Sampling) -> Hashes {
    let (first, count) = (rows.first_class as u64, rows.width() as u64);
    Hashes::new(sampling, first..first + count.next_multiple_of(BLOCK))
}

/// Classes that a kernel may take at a time.
const BLOCK: u64 = 32;

/// A key that another word has gone into.
fn after(key: u64, word: u64) -> u64 {
    mix((key ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15))
}

fn hash(key: u64, number: u64) -> u32 {
    (after(key, number) >> 32) as u32
}

/// No vector has fewer lanes than this.
const FEWEST_LANES: usize = 4;

/// Lists `len` elements at `x`, at most a chunk, the first of which stands at `place` of the row.
struct Sweep<'a, E: Element> {
    x: *const E,
    len: usize,
    place: usize,
    log_p: Shift<E::Real>,
    /// That of the row, and those of the elements' classes.
    hashes: (u32, &'a [u32]),
    eps: f64,
    /// dz/dx but for what a soft cap multiplies it by.
    unit: f64,
    slope: Option<&'a Scratch<E::Real>>,
    label: Option<usize>,
    list: &'a mut List,
}

impl<E: Element> Kernel for Sweep<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let lanes = <E::Vector<I> as Vector>::LANES;
        let whole = self.len - self.len % lanes;
        let (own, of_classes) = self.hashes;
        debug_assert!(of_classes.len() == self.len);
        let bound = Bound::<E::Vector<I>>::new(self.log_p, self.eps, own);
        // Without a branch: which vectors may have entries, then those alone.
        let mut places = [0u16; CHUNK / FEWEST_LANES];
        debug_assert!(lanes >= FEWEST_LANES && self.len <= CHUNK);
        let mut found = 0;
        for at in (0..whole).step_by(lanes) {
            // SAFETY: the caller of `sweep` vouches for `len` elements.
            let x: E::Vector<I> = unsafe { Memory::<E>::load(self.x.add(at)) };
            places[found] = at as u16;
            found += usize::from(bound.may_exceed(x, bound.hashes(&of_classes[at..])));
        }
        for &at in &places[..found] {
            let at = usize::from(at);
            // SAFETY: as above.
            let x: E::Vector<I> = unsafe { Memory::<E>::load(self.x.add(at)) };
            self.enter(&bound, x, bound.hashes(&of_classes[at..]), (at, lanes));
        }
        if whole < self.len {
            let mut rest = [E::NEG_INFINITY; MAX_LANES];
            // SAFETY: as above; fewer elements than a vector has are left.
            let x: E::Vector<I> = unsafe {
                self.x
                    .add(whole)
                    .copy_to_nonoverlapping(rest.as_mut_ptr(), self.len - whole);
                Memory::<E>::load(rest.as_ptr())
            };
            let mut hashes = [0; MAX_LANES];
            hashes[..self.len - whole].copy_from_slice(&of_classes[whole..]);
            self.enter(&bound, x, bound.hashes(&hashes), (whole, self.len - whole));
        }
    }
}

impl<E: Element> Sweep<'_, E> {
    /// Enters those of the first `count` lanes that are to be listed.
    #[inline(always)]
    fn enter<V: Vector<Scalar = E::Real>>(
        &mut self,
        bound: &Bound<V>,
        x: V,
        hashes: V,
        (at, count): (usize, usize),
    ) {
        let (mut listed, numbers) = bound.listed(x, hashes, count);
        while listed != 0 {
            let lane = listed.trailing_zeros() as usize;
            listed &= listed - 1;
            let place = self.place + at + lane;
            if self.label != Some(place) {
                let slope = self.slope.map_or(1.0, |slope| slope.at(at + lane).to_f64());
                let p = numbers[lane].to_f64();
                let p = if p < self.eps { self.eps } else { p };
                self.list.classes.push(place as i64);
                self.list.values.push(p * self.unit * slope);
            }
        }
    }
}

/// Tells elements that may be listed from those that cannot be, without their exponentials.
struct Bound<V: Vector> {
    /// The row's hash.
    own: u32,
    origin: V,
    factor: V,
    minus_remainder: V,
    /// From a logit to log2 p, and a little more than rounding may take away.
    log2_factor: V,
    minus_log2: V,
    scale: V,
    half: V,
}

impl<V: Vector> Bound<V> {
    #[inline(always)]
    fn new(shift: Shift<V::Scalar>, eps: f64, own: u32) -> Bound<V> {
        let splat = |value: f64| V::splat(V::Scalar::from_f64(value));
        let log2 = (shift.origin.to_f64() * shift.factor.to_f64() + shift.remainder.to_f64())
            * std::f64::consts::LOG2_E;
        let margin = 1e-4 + (log2.abs() + 200.0) / (1u32 << 21) as f64;
        let step = eps / (1u64 << 32) as f64;
        Bound {
            own,
            origin: V::splat(shift.origin),
            factor: V::splat(shift.factor),
            minus_remainder: V::splat(V::Scalar::ZERO).sub(V::splat(shift.remainder)),
            log2_factor: splat(shift.factor.to_f64() * std::f64::consts::LOG2_E),
            minus_log2: splat(margin - log2),
            scale: splat(step),
            half: splat(0.5 * step),
        }
    }

    #[inline(always)]
    fn log_p(&self, x: V) -> V {
        x.sub(self.origin)
            .mul_add(self.factor, self.minus_remainder)
    }

    /// Which of the first `count` lanes are to be listed, by their hashes, and p of all.
    #[inline(always)]
    fn listed(&self, x: V, hashes: V, count: usize) -> (u32, [V::Scalar; MAX_LANES]) {
        let p = exp(self.log_p(x));
        let mut numbers = [V::Scalar::ZERO; MAX_LANES];
        p.write(&mut numbers);
        let listed = V::bits(p.not_less(self.thresholds(hashes)));
        (listed & ((1 << count) - 1), numbers)
    }

    /// eps·u
    #[inline(always)]
    fn thresholds(&self, hashes: V) -> V {
        hashes.mul_add(self.scale, self.half)
    }

    /// Of a vector's classes, from those of the classes.
    #[inline(always)]
    fn hashes(&self, of_classes: &[u32]) -> V {
        let mut hashes = [V::Scalar::ZERO; MAX_LANES];
        debug_assert!(of_classes.len() >= V::LANES);
        // A plain loop, which the compiler makes vectors of; not of an iterator's.
        let mut lane = 0;
        while lane < V::LANES {
            // SAFETY: whoever calls this has a vector's worth of them.
            let of_class = unsafe { *of_classes.as_ptr().add(lane) };
            hashes[lane] = V::Scalar::from_integer(of_class.wrapping_add(self.own));
            lane += 1;
        }
        // SAFETY: no vector has more than MAX_LANES lanes.
        unsafe { Memory::<V::Scalar>::load(hashes.as_ptr()) }
    }

    /// Whether p may be at least its threshold in some lane.
    #[inline(always)]
    fn may_exceed(&self, x: V, hashes: V) -> bool {
        let most = V::power_above(x.mul_add(self.log2_factor, self.minus_log2));
        V::any(self.thresholds(hashes).less(most))
    }
}

/// Candidates of a row: classes of which some are to be listed, and no others are, with their logits; a multiple of
/// [`MAX_LANES`], filled up with −inf.
pub(super) struct Candidates<'a> {
    pub classes: &'a [u32],
    pub logits: &'a [f32],
    pub log_p: Shift<f32>,
    /// That of the row, and those of all classes.
    pub hashes: (u32, &'a [u32]),
    pub eps: f64,
    /// dz/dx
    pub unit: f64,
    pub label: Option<usize>,
}

impl Kernel for Candidates<'_> {
    type Output = List;

    #[inline(always)]
    fn run<I: Isa>(self) -> List {
        let lanes = <I::F32 as Vector>::LANES;
        let (own, of_classes) = self.hashes;
        let bound = Bound::<I::F32>::new(self.log_p, self.eps, own);
        let mut list = List::with_capacity(self.classes.len());
        let (classes, _) = self.classes.as_chunks::<MAX_LANES>();
        let (logits, _) = self.logits.as_chunks::<MAX_LANES>();
        for (classes, logits) in classes.iter().zip(logits) {
            let mut hashes = [0; MAX_LANES];
            let mut lane = 0;
            while lane < MAX_LANES {
                hashes[lane] = of_classes[classes[lane] as usize];
                lane += 1;
            }
            for at in (0..MAX_LANES).step_by(lanes) {
                // SAFETY: MAX_LANES is a multiple of the number of lanes.
                let x: I::F32 = unsafe { Memory::<f32>::load(logits[at..].as_ptr()) };
                let (mut listed, numbers) = bound.listed(x, bound.hashes(&hashes[at..]), lanes);
                while listed != 0 {
                    let lane = listed.trailing_zeros() as usize;
                    listed &= listed - 1;
                    let class = classes[at + lane];
                    if self.label != Some(class as usize) {
                        let p = f64::from(numbers[lane]).max(self.eps);
                        list.classes.push(i64::from(class));
                        list.values.push(p * self.unit);
                    }
                }
            }
        }
        list
    }
}

/// Capped logits of a chunk, and the slopes of the cap.
type Room<R> = (Scratch<R>, Scratch<R>);

/// A call whose arguments have been checked.
struct Call<'a> {
    rows: &'a Rows,
    stats: &'a [Stat],
    table: &'a Array,
    per_row: &'a PerRow<'a>,
    eps: f64,
    hashes: Hashes,
    level: Level,
}

impl Call<'_> {
    /// # Safety
    /// The promise of [`lists`]; the logits are `E`s.
    unsafe fn run<E: Element>(
        &self,
        live: &[LiveRow],
        forward: Option<&Forward<'_>>,
        threads: usize,
    ) -> Lists {
        // Where a row is shared by threads no cache has all of it anyway.
        let first = forward.filter(|_| shares_rows(live.len(), threads));
        let found: Vec<OnceLock<List>> = live.iter().map(|_| OnceLock::new()).collect();
        // SAFETY: passed on to the caller; a row's logits and its statistics are nobody else's.
        unsafe {
            self.per_row.clear_labels();
            if let Some(forward) = forward {
                forward.clear();
            }
            if let Some(forward) = first {
                forward.run::<E>(threads);
            }
        }
        let grain = rows_at_a_time(self.rows.width());
        for_each_range(threads, live.len(), grain, |range| {
            let (mut forward_room, mut room) = (None, None);
            let mut last = 0;
            for index in range {
                // SAFETY: as above.
                let list = found[index].get_or_init(|| unsafe {
                    if let (Some(forward), None) = (forward, first) {
                        forward.row::<E>(&live[index], &mut forward_room);
                    }
                    self.row::<E>(&live[index], last, &mut room)
                });
                last = list.classes.len();
            }
        });
        let lists = found
            .into_iter()
            .map(|list| list.into_inner().unwrap_or_default());
        Lists::new(self.rows.count(), live, lists.collect())
    }

    /// A statistic of a row.
    fn saved(&self, stat: Stat, row: usize) -> f64 {
        let position = self.stats.iter().position(|known| *known == stat);
        // SAFETY: the table is of shape [stats, rows], and the promise of `lists` covers it.
        position.map_or(f64::NAN, |position| unsafe {
            self.table.read_float(position * self.rows.count() + row)
        })
    }

    /// Lists a row, which has about `expected` entries, and writes what belongs to its label.
    ///
    /// # Safety
    /// As for [`Call::run`].
    unsafe fn row<E: Element>(
        &self,
        row: &LiveRow,
        expected: usize,
        room: &mut Option<Room<E::Real>>,
    ) -> List {
        let mut list = List::with_capacity(expected + expected / 4);
        let [lse, log_p] = [Stat::Lse, Stat::Logp].map(|stat| self.saved(stat, row.index));
        if lse == f64::NEG_INFINITY {
            return list; // nothing but -inf: the gradient is 0
        }
        let transform = Transform::of(self.rows, row);
        let unit = self.rows.scale / row.temperature;
        let own = row.label.map(|place| {
            // SAFETY: the label is within the row, and the caller vouches for the memory.
            let x = unsafe { read_element(&self.rows.logits, row.index, place) };
            transform.apply::<E::Real>(self.level, x)
        });
        let mut exact = lse;
        if let Some((z, slope)) = own {
            // As in the dense gradient: z − log p has more digits than a log-sum-exp far from 0, or the other way round.
            let log_p = if log_p.abs() < lse.abs() {
                exact = z - log_p;
                log_p
            } else {
                z - lse
            };
            // SAFETY: passed on to the caller.
            unsafe {
                self.per_row
                    .write_label::<E::Real>(row.index, unit * slope, log_p)
            };
        }
        if lse.is_nan() {
            return List::of_nan(self.rows.width(), row.label);
        }
        // SAFETY: `numbers` has one per row.
        let number = unsafe { self.per_row.numbers.read_i64(row.index) };
        let own = self.hashes.of_row(number);
        let shift = transform.log_probability::<E::Real>(exact);
        for index in 0..self.rows.width().div_ceil(CHUNK) {
            let part = chunk_part(index, self.rows.width());
            // SAFETY: passed on to the caller; the row has the elements of `part`.
            unsafe {
                let x = row_pointer::<E>(&self.rows.logits, row.index)
                    .add(part.start)
                    .cast_const();
                match transform.cap_in::<E::Real>() {
                    None => self.sweep(x, &part, (row, unit), (shift, own), None, &mut list),
                    Some(cap) => {
                        let (z, slope) =
                            room.get_or_insert_with(|| (Scratch::new(), Scratch::new()));
                        z.load(self.level, x, part.len());
                        z.cap(self.level, part.len(), cap, Some(slope));
                        let (z, slope) = (z.as_ptr(), Some(&*slope));
                        self.sweep(z, &part, (row, unit), (shift, own), slope, &mut list);
                    }
                }
            }
        }
        list
    }

    /// # Safety
    /// `x` points to the elements of `part`.
    unsafe fn sweep<E: Element>(
        &self,
        x: *const E,
        part: &Range<usize>,
        (row, unit): (&LiveRow, f64),
        (log_p, own): (Shift<E::Real>, u32),
        slope: Option<&Scratch<E::Real>>,
        list: &mut List,
    ) {
        dispatch(
            self.level,
            Sweep {
                x,
                len: part.len(),
                place: part.start,
                log_p,
                hashes: (own, &self.hashes.of_classes[part.clone()]),
                eps: self.eps,
                unit,
                slope,
                label: row.label,
                list,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Temperature;

    const WIDTH: usize = 2 * CHUNK + 77;
    const ROWS: usize = 3;

    fn array<T>(address: *const T, dtype: Dtype, shape: &[usize]) -> Array {
        let mut strides = vec![1; shape.len()];
        for dim in (1..shape.len()).rev() {
            strides[dim - 1] = strides[dim] * shape[dim] as isize;
        }
        // SAFETY: the tests keep the memory alive.
        unsafe { Array::new(address as usize, dtype, shape, &strides) }.unwrap()
    }

    /// Rows that look random, some of whose classes are banned.
    fn logits() -> Vec<f32> {
        (0..ROWS * WIDTH)
            .map(|i| match i % 11 {
                7 => f32::NEG_INFINITY,
                _ => ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0,
            })
            .collect()
    }

    #[test]
    fn every_level_lists_what_the_definition_says() {
        let (logits, labels, numbers) = (logits(), [5i64, 4100, 8268], [9i64, 2, 7]);
        let rows = Rows {
            logits: array(logits.as_ptr(), Dtype::F32, &[ROWS, WIDTH]),
            labels: array(labels.as_ptr(), Dtype::I64, &[ROWS]),
            mask: None,
            reference: None,
            temperature: Temperature::Same(0.9),
            scale: 1.0,
            softcap: 0.0,
            ignore_index: -100,
            first_class: 0,
            classes: WIDTH as i64,
        };
        let stats = [Stat::Lse, Stat::Logp];
        let sampling = Sampling {
            eps: 1e-3,
            seed: 11,
            step: 4,
        };
        for level in Level::available() {
            let (mut table, mut at_label) = ([0f32; 2 * ROWS], [0f32; 2 * ROWS]);
            let table = array(table.as_mut_ptr(), Dtype::F32, &[2, ROWS]);
            let per_row = PerRow {
                numbers: &array(numbers.as_ptr(), Dtype::I64, &[ROWS]),
                at_label: &array(at_label.as_mut_ptr(), Dtype::F32, &[2, ROWS]),
            };
            // SAFETY: all arrays are of vectors that live here.
            let lists = unsafe {
                let live = rows.live().unwrap();
                let forward = Forward::new(&rows, (&stats, 10), &table, &live, level);
                let call = Call {
                    rows: &rows,
                    stats: &stats,
                    table: &table,
                    per_row: &per_row,
                    eps: sampling.eps,
                    hashes: hashes_of(&rows, sampling),
                    level,
                };
                call.run::<f32>(&live, Some(&forward), 1)
            };
            for row in 0..ROWS {
                let found = &lists.lists[row].classes;
                assert!(
                    found.is_sorted() && found.len() > 100,
                    "{level:?}: {}",
                    found.len()
                );
                check_row(
                    &logits[row * WIDTH..][..WIDTH],
                    labels[row],
                    numbers[row],
                    sampling,
                    found,
                );
                assert_eq!(lists.lengths[row], found.len() as i64);
            }
        }
    }

    fn check_row(x: &[f32], label: i64, number: i64, sampling: Sampling, found: &[i64]) {
        let z: Vec<f64> = x.iter().map(|x| f64::from(*x) / 0.9).collect();
        let mass: f64 = z.iter().map(|z| z.exp()).sum();
        let hashes = Hashes::new(sampling, 0..z.len() as u64);
        let own = hashes.of_row(number);
        for (of_class, (class, z)) in hashes.of_classes.iter().zip(z.iter().enumerate()) {
            let u = (f64::from(own.wrapping_add(*of_class)) + 0.5) / (1u64 << 32) as f64;
            let ratio = z.exp() / mass / (sampling.eps * u);
            // Next to its threshold a probability may be rounded to either side.
            if (ratio - 1.0).abs() > 1e-5 {
                let listed = ratio > 1.0 && class as i64 != label;
                assert_eq!(
                    found.binary_search(&(class as i64)).is_ok(),
                    listed,
                    "{class}: {ratio}"
                );
            }
        }
    }
}
