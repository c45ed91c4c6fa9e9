//! The pass that adds up the exponentials of a chunk whose largest logit nobody knows.
//!
//! `e^z = 2^n·e^r` with n a multiple of 1/STEPS. Where the instruction set multiplies by a power of two of any size, what is too
//! large for a float becomes infinite and what is too small 0, so the terms need no largest one to be measured from: those of
//! ordinary logits are taken as they are, those of others are divided by a power of two near the first few, and an infinite sum
//! tells that some logit is far above them. Division by a power of two changes no digit, and n·log 2 is subtracted from z with
//! one rounding, so a term is as exact wherever it is measured from.
//!
//! Its relative error is at most 2^-22, that of the largest as well, with which a probability next to 1 loses its distance from it:
//! where that matters the sum is made again from the largest on. Moments leave the largest out, and have it exact.

use std::f64::consts::{LN_2, LOG2_E};

use super::forward::Moments;
use super::{CACHE_LINE, CHUNK, Fold, MAX_STEP, SETTLE, Settling, UNROLL, fold, largest};
use crate::simd::{Element, Isa, Kernel, Level, Memory, Real, Vector, dispatch, prefetch, total};

/// Σ e^z = mass·e^origin
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mass {
    /// −inf where there is nothing.
    pub origin: f64,
    pub mass: f64,
    /// Whether the largest term is no more exact than the others.
    pub rough: bool,
}

/// Up to this magnitude z is measured from 0: e^z and the sums of it are far from the limits of a float.
const ORDINARY: f64 = 21.0;

/// So many octaves below its origin a term is nothing beside the largest, which is at most 31 below it. Lower ones are lifted to
/// this: processors take their time over numbers that are too small for a float.
const VANISHED: f64 = 125.0;

/// Origins beyond are left to the pass that knows the largest logit: as integers of steps they would not fit beside the rounder.
const MOST_OCTAVES: f64 = 65_536.0;

/// Adds the masses of the chunks of `len` elements to `sum`, one after the other, z being factor·x, up to one whose first logits
/// say too little about the others or that has NaN or +inf. Returns how many elements come before that: none where the instruction
/// set has no use for this.
///
/// # Safety
/// `len` elements can be read at `x`.
pub unsafe fn measure<E: Element>(
    level: Level,
    x: *const E,
    len: usize,
    factor: E::Real,
    sum: &mut Mass,
) -> usize {
    dispatch(
        level,
        Measure {
            x,
            len,
            factor,
            sum,
        },
    )
}

struct Measure<'a, E: Element> {
    x: *const E,
    len: usize,
    factor: E::Real,
    sum: &'a mut Mass,
}

/// What all terms of a row have in common.
#[derive(Clone, Copy)]
struct Terms<V> {
    octaves_per_logit: V,
    rounder: V,
    /// −(log 2)/factor as the sum of two; the second counts for a factor other than 1.
    minus_octave: [V; 2],
    one: V,
    slope: V,
    curvature: V,
}

impl<V: Vector> Terms<V> {
    #[inline(always)]
    fn new(factor: f64) -> Terms<V> {
        let splat = |value: f64| V::splat(V::Scalar::from_f64(value));
        let octave = -LN_2 / factor;
        let high = V::Scalar::from_f64(octave);
        let polynomial = V::EXP_POLYNOMIAL;
        Terms {
            octaves_per_logit: splat(factor * LOG2_E),
            rounder: V::splat(V::Scalar::ROUNDER / V::STEPS),
            minus_octave: [V::splat(high), splat(octave - high.to_f64())],
            one: V::splat(V::Scalar::ONE),
            slope: splat(polynomial[0].to_f64() * factor),
            curvature: splat(polynomial[1].to_f64() * factor * factor),
        }
    }

    /// Two factors of e^z, with `MOVED` of e^z/2^octaves; the first is a
    /// power of two's, the second next to 1.
    #[inline(always)]
    fn factors<const SCALED: bool, const MOVED: bool>(&self, x: V, octaves: V) -> [V; 2] {
        let shifted = x.mul_add(self.octaves_per_logit, self.rounder);
        let n = shifted.sub(self.rounder);
        let mut r = n.mul_add(self.minus_octave[0], x);
        if SCALED {
            r = n.mul_add(self.minus_octave[1], r);
        }
        let n = if MOVED { n.sub(octaves) } else { n };
        let slope = r.mul_add(self.curvature, self.slope);
        [V::any_power(shifted, n), slope.mul_add(r, self.one)]
    }
}

/// What the terms of a chunk are measured from.
#[derive(Clone, Copy)]
struct Origin<V> {
    octaves: V,
    /// A logit whose term is next to nothing.
    lowest: V,
}

impl<V: Vector> Origin<V> {
    #[inline(always)]
    fn new(octaves: f64, factor: f64) -> Origin<V> {
        let splat = |value: f64| V::splat(V::Scalar::from_f64(value));
        Origin {
            octaves: splat(octaves),
            lowest: splat((octaves - VANISHED) * LN_2 / factor),
        }
    }
}

/// Sums of what is below the largest logit, which itself is left out: its own terms are 1, however the others are rounded.
#[derive(Clone, Copy)]
struct BelowLargest<V> {
    largest: V,
    mass: Settling<V>,
    /// Σ e·(x − largest)
    weighted: Settling<V>,
    squares: Settling<V>,
    /// How many logits are below. Counted in floats, exactly: of bits in masks the compiler would make vectors.
    count: [V; UNROLL],
}

impl<V: Vector> BelowLargest<V> {
    #[inline(always)]
    fn new(largest: V) -> Self {
        let mut sums = BelowLargest {
            largest,
            mass: Settling::zero(),
            weighted: Settling::zero(),
            squares: Settling::zero(),
            count: [V::splat(V::Scalar::ZERO); UNROLL],
        };
        sums.start_squares();
        sums
    }

    /// From next to nothing instead of 0: beside 0 the square of a small term would be too small for a float, which takes time.
    #[inline(always)]
    fn start_squares(&mut self) {
        const NOTHING: f64 = 1e-36;
        self.squares.running = [V::splat(V::Scalar::from_f64(NOTHING)); UNROLL];
    }

    #[inline(always)]
    fn settle(&mut self) {
        self.mass.settle();
        self.weighted.settle();
        self.squares.settle();
        self.start_squares();
    }
}

/// With `SCALED`, for a factor other than 1; with `GUARDED`, from an origin other than 0 and for logits below the lowest; with
/// `MOMENTS`, for entropies, too.
struct MassFold<V, const SCALED: bool, const GUARDED: bool, const MOMENTS: bool> {
    terms: Terms<V>,
    origin: Origin<V>,
    mass: Settling<V>,
    below: BelowLargest<V>,
}

impl<V: Vector, const SCALED: bool, const GUARDED: bool, const MOMENTS: bool>
    MassFold<V, SCALED, GUARDED, MOMENTS>
{
    /// With `LIFT`, x may be below the lowest.
    #[inline(always)]
    fn add_term<const LIFT: bool>(&mut self, chain: usize, x: V) {
        let lifted = if LIFT { self.lifted(x) } else { x };
        let octaves = self.origin.octaves;
        let [power, growth] = self.terms.factors::<SCALED, GUARDED>(lifted, octaves);
        let mass = &mut self.mass.running[chain];
        *mass = power.mul_add(growth, *mass);
        if MOMENTS {
            let below = &mut self.below;
            let distance = lifted.sub(below.largest);
            let is_below = distance.less(V::splat(V::Scalar::ZERO));
            let mut e = power.mul(growth).or_zero(is_below);
            if LIFT {
                e = e.or_zero(self.origin.lowest.less(x));
            }
            let one = self.terms.one;
            let (count, mass, weighted, squares) = (
                &mut below.count[chain],
                &mut below.mass.running[chain],
                &mut below.weighted.running[chain],
                &mut below.squares.running[chain],
            );
            *count = count.add_product_where(is_below, one, one);
            *mass = mass.add(e);
            *weighted = e.mul_add(distance, *weighted);
            *squares = e.mul_add(e, *squares);
        }
    }

    /// NaN stays NaN.
    #[inline(always)]
    fn lifted(&self, x: V) -> V {
        self.origin.lowest.larger(x)
    }

    #[inline(always)]
    fn is_nan(&self) -> bool {
        let [one, other] = self.mass.settled;
        V::any(one.not_equal(one)) || V::any(other.not_equal(other))
    }
}

impl<V: Vector, const SCALED: bool, const GUARDED: bool, const MOMENTS: bool> Fold<V>
    for MassFold<V, SCALED, GUARDED, MOMENTS>
{
    #[inline(always)]
    fn add(&mut self, chain: usize, x: V) {
        self.add_term::<GUARDED>(chain, x);
    }

    #[inline(always)]
    fn add_padded(&mut self, chain: usize, x: V) {
        self.add_term::<true>(chain, x);
    }

    /// Not without `GUARDED` where a logit is below the lowest, as far as the next ones tell, or −inf, as the sum does.
    #[inline(always)]
    fn goes_on(&self, next: V) -> bool {
        GUARDED || !V::any(next.less(self.origin.lowest)) && !self.is_nan()
    }

    #[inline(always)]
    fn settle(&mut self) {
        self.mass.settle();
        if MOMENTS {
            self.below.settle();
        }
    }
}

/// What the sums of all chunks of a row start from.
#[derive(Clone, Copy)]
struct Start<V> {
    factor: f64,
    terms: Terms<V>,
    ordinary: Origin<V>,
    /// Between these a logit is ordinary.
    low: V,
    high: V,
}

/// The sums of a chunk, measured from so many octaves.
struct ChunkSums {
    octaves: f64,
    mass: f64,
    /// Those below the largest, if they are wanted.
    below: Moments,
    count: f64,
}

impl<V: Vector> Start<V> {
    /// `factor` is 1 without `SCALED`, which the compiler is to know.
    #[inline(always)]
    fn new<const SCALED: bool>(factor: V::Scalar) -> Start<V> {
        let splat = |value: f64| V::splat(V::Scalar::from_f64(value));
        let factor = if SCALED { factor.to_f64() } else { 1.0 };
        Start {
            factor,
            terms: Terms::new(factor),
            ordinary: Origin::new(0.0, factor),
            low: splat(-ORDINARY / factor),
            high: splat(ORDINARY / factor),
        }
    }

    /// The sums of a chunk of `len` elements, where they can be had.
    ///
    /// # Safety
    /// `len` elements can be read at `x`.
    #[inline(always)]
    unsafe fn chunk<E: Element<Real = V::Scalar>, const SCALED: bool, const MOMENTS: bool>(
        &self,
        x: *const E,
        len: usize,
        highest: V,
    ) -> Option<ChunkSums>
    where
        V: Memory<E>,
    {
        // SAFETY: passed on to the caller.
        unsafe {
            let first: V = first(x, len);
            if V::any(self.low.less(first)) && !V::any(self.high.less(first)) {
                let sums =
                    self.sum::<E, SCALED, false, MOMENTS>(x, len, 0.0, self.ordinary, highest);
                if !sums.mass.is_nan() {
                    return sums.if_finite();
                }
                return self
                    .sum::<E, SCALED, true, MOMENTS>(x, len, 0.0, self.ordinary, highest)
                    .if_finite();
            }
            let octaves = (largest([first; UNROLL]).to_f64() * self.factor * LOG2_E).round();
            if octaves.is_nan() || octaves.abs() > MOST_OCTAVES {
                return None;
            }
            let origin = Origin::new(octaves, self.factor);
            self.sum::<E, SCALED, true, MOMENTS>(x, len, octaves, origin, highest)
                .if_finite()
        }
    }

    /// The same from that origin; the mass is NaN where the chunk has NaN or has to be guarded.
    ///
    /// # Safety
    /// `len` elements can be read at `x`.
    #[inline(always)]
    unsafe fn sum<
        E: Element<Real = V::Scalar>,
        const SCALED: bool,
        const GUARDED: bool,
        const MOMENTS: bool,
    >(
        &self,
        x: *const E,
        len: usize,
        octaves: f64,
        origin: Origin<V>,
        highest: V,
    ) -> ChunkSums
    where
        V: Memory<E>,
    {
        let mut sums = MassFold::<V, SCALED, GUARDED, MOMENTS> {
            terms: self.terms,
            origin,
            mass: Settling::zero(),
            below: BelowLargest::new(highest),
        };
        // SAFETY: passed on to the caller.
        let all = unsafe {
            if len == CHUNK {
                fold_halves::<E, V>(x, &mut sums)
            } else {
                fold::<true, E, V>(x, len, &mut sums)
            }
        };
        let mut found = ChunkSums {
            octaves,
            mass: if all { sums.mass.total() } else { f64::NAN },
            below: Moments::NOTHING,
            count: 0.0,
        };
        if MOMENTS && all {
            found.below = Moments {
                mass: sums.below.mass.total(),
                weighted: sums.below.weighted.total(),
                squares: sums.below.squares.total(),
            };
            found.count = total(sums.below.count);
        }
        found
    }
}

impl ChunkSums {
    #[inline(always)]
    fn if_finite(self) -> Option<ChunkSums> {
        (self.mass.is_finite() && self.below.squares.is_finite()).then_some(self)
    }

    #[inline(always)]
    fn mass<R: Real, const SCALED: bool>(&self) -> Mass {
        // Without a factor an octave is what is subtracted for one.
        let octave = if SCALED {
            LN_2
        } else {
            R::from_f64(LN_2).to_f64()
        };
        Mass {
            origin: self.octaves * octave,
            mass: self.mass,
            rough: true,
        }
    }
}

impl<E: Element> Measure<'_, E> {
    #[inline(always)]
    fn run_scaled<I: Isa, const SCALED: bool>(self) -> usize {
        let begin = Start::<E::Vector<I>>::new::<SCALED>(self.factor);
        let nothing = begin.low;
        for start in (0..self.len).step_by(CHUNK) {
            let len = CHUNK.min(self.len - start);
            // SAFETY: that of `measure`; `len` elements are left at that place.
            let sums = unsafe { begin.chunk::<E, SCALED, false>(self.x.add(start), len, nothing) };
            let Some(sums) = sums else {
                return start;
            };
            *self.sum = self.sum.plus(&sums.mass::<E::Real, SCALED>());
        }
        self.len
    }
}

/// The mass of one chunk as [`measure`] adds it, to the bit, and its moments, measured from the largest logit, which is given;
/// `None` as there, or where squares are too large for a float.
///
/// # Safety
/// `len` elements, no more than a chunk has, can be read at `x`.
pub unsafe fn measure_moments<E: Element>(
    level: Level,
    x: *const E,
    len: usize,
    factor: E::Real,
    largest: E::Real,
) -> Option<(Mass, Moments)> {
    dispatch(
        level,
        MeasureMoments {
            x,
            len,
            factor,
            largest,
        },
    )
}

struct MeasureMoments<E: Element> {
    x: *const E,
    len: usize,
    factor: E::Real,
    largest: E::Real,
}

impl<E: Element> MeasureMoments<E> {
    #[inline(always)]
    fn run_scaled<I: Isa, const SCALED: bool>(self) -> Option<(Mass, Moments)> {
        let begin = Start::<E::Vector<I>>::new::<SCALED>(self.factor);
        let largest = <E::Vector<I> as Vector>::splat(self.largest);
        // SAFETY: that of `measure_moments`.
        let sums = unsafe { begin.chunk::<E, SCALED, true>(self.x, self.len, largest) }?;
        let mass = sums.mass::<E::Real, SCALED>();
        let step = UNROLL * <E::Vector<I> as Vector>::LANES;
        let largest = self.len.next_multiple_of(step) as f64 - sums.count;
        let unit = (mass.origin - self.largest.to_f64() * begin.factor).exp();
        let moments = Moments {
            mass: largest + unit * sums.below.mass,
            weighted: unit * begin.factor * sums.below.weighted,
            squares: largest + unit * unit * sums.below.squares,
        };
        Some((mass, moments))
    }
}

impl<E: Element> Kernel for MeasureMoments<E> {
    type Output = Option<(Mass, Moments)>;

    #[inline(always)]
    fn run<I: Isa>(self) -> Option<(Mass, Moments)> {
        if !<E::Vector<I> as Vector>::SCALES {
            None
        } else if self.factor == E::Real::ONE {
            self.run_scaled::<I, false>()
        } else {
            self.run_scaled::<I, true>()
        }
    }
}

/// The first vector of `len` elements, filled up with −inf.
///
/// # Safety
/// `len` elements can be read at `x`.
#[inline(always)]
unsafe fn first<E: Element, V: Memory<E> + Vector>(x: *const E, len: usize) -> V {
    // SAFETY: passed on to the caller; a vector has no more lanes than a step.
    unsafe {
        if len >= V::LANES {
            return Memory::<E>::load(x);
        }
        let mut padded = [E::NEG_INFINITY; MAX_STEP];
        x.copy_to_nonoverlapping(padded.as_mut_ptr(), len);
        Memory::<E>::load(padded.as_ptr())
    }
}

/// As [`fold`], for a whole chunk: a step of its first half and one of its second by turns. Memory is faster at two places than at
/// one, where each of them asks for its own next lines and for its place in the next chunk.
///
/// # Safety
/// [`CHUNK`] elements can be read at `x`.
#[inline(always)]
unsafe fn fold_halves<E: Element, V: Memory<E> + Vector>(
    x: *const E,
    fold: &mut impl Fold<V>,
) -> bool {
    const HALF: usize = CHUNK / 2;
    /// Bytes to the lines that the first level is asked for.
    const NEAR: usize = 1024;
    let step = UNROLL * V::LANES;
    let steps = SETTLE / 2 * step;
    for block in (0..HALF).step_by(steps) {
        // SAFETY: a chunk has two halves, and a half is a whole number of blocks.
        unsafe {
            if !(fold.goes_on(V::load(x.add(block))) && fold.goes_on(V::load(x.add(HALF + block))))
            {
                return false;
            }
            for start in (block..block + steps).step_by(step) {
                for half in 0..2 {
                    let x = x.add(half * HALF + start);
                    for line in 0..(step * size_of::<E>()).div_ceil(CACHE_LINE) {
                        let x = x.wrapping_byte_add(line * CACHE_LINE);
                        prefetch::<true, E>(x.wrapping_byte_add(NEAR));
                        prefetch::<false, E>(x.wrapping_add(CHUNK));
                    }
                    for chain in 0..UNROLL {
                        fold.add(chain, V::load(x.add(chain * V::LANES)));
                    }
                }
            }
        }
        fold.settle();
    }
    true
}

impl<E: Element> Kernel for Measure<'_, E> {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self) -> usize {
        if !<E::Vector<I> as Vector>::SCALES {
            0
        } else if self.factor == E::Real::ONE {
            self.run_scaled::<I, false>()
        } else {
            self.run_scaled::<I, true>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// What is measured of a row, and how far.
    fn measured<E: Element>(level: Level, x: &[E], factor: E::Real) -> (Mass, usize) {
        let mut mass = Mass::NOTHING;
        // SAFETY: the slice has its elements.
        let end = unsafe { measure(level, x.as_ptr(), x.len(), factor, &mut mass) };
        (mass, end)
    }

    /// The same in f64.
    fn exact_lse<E: Element>(x: &[E], factor: E::Real) -> f64 {
        let z = || x.iter().map(|x| x.to_f64() * factor.to_f64());
        let max = z().fold(f64::NEG_INFINITY, f64::max);
        max + z().map(|z| (z - max).exp()).sum::<f64>().ln()
    }

    fn spread(len: usize) -> impl Iterator<Item = f64> {
        (0..len).map(|i| f64::from((i as u32).wrapping_mul(2_654_435_761) >> 16) / 4096.0 - 8.0)
    }

    fn check<E: Element>(x: &[E], factor: f64) {
        let factor = E::Real::from_f64(factor);
        let exact = exact_lse(x, factor);
        for level in scaling() {
            let (mass, end) = measured(level, x, factor);
            assert_eq!(end, x.len(), "{level:?}");
            let error = (mass.lse() - exact).abs();
            assert!(
                error <= 4e-7,
                "{level:?}: {} instead of {exact}, {} of them",
                mass.lse(),
                x.len()
            );
        }
    }

    fn scaling() -> impl Iterator<Item = Level> {
        Level::available().filter(|level| *level >= Level::Avx512)
    }

    #[test]
    fn a_mass_is_that_of_the_definition_wherever_the_logits_are() {
        for len in [1, 15, 16, 77, CHUNK, 2 * CHUNK + 45] {
            for offset in [0.0, 25.0, -60.0, -300.0, 1e3, 1e4] {
                for factor in [1.0, 1.0 / 0.7, 0.7, 3e-3] {
                    let logits = || spread(len).map(|x| x + offset);
                    check::<f32>(&logits().map(f32::from_f64).collect::<Vec<_>>(), factor);
                    check::<bf16>(&logits().map(bf16::from_f64).collect::<Vec<_>>(), factor);
                    check::<f16>(&logits().map(f16::from_f64).collect::<Vec<_>>(), factor);
                }
            }
        }
    }

    #[test]
    fn logits_that_are_banned_or_far_below_are_nothing() {
        for low in [f32::NEG_INFINITY, f32::MIN, -1e30, -1e9, -1e4, -95.0] {
            // Among the first of a chunk, and first seen in the midst of one.
            for (every, from) in [(3, 0), (97, 40), (600, 555)] {
                let mut x: Vec<f32> = spread(2 * CHUNK + 45).map(f32::from_f64).collect();
                for place in (from..x.len()).step_by(every) {
                    x[place] = low;
                }
                check(&x, 1.0);
                check(&x, 0.9);
            }
        }
    }

    #[test]
    fn a_chunk_that_needs_its_largest_logit_is_left_to_it() {
        let stops = |special: f32, place: usize, expected: usize| {
            let mut x: Vec<f32> = spread(3 * CHUNK).map(f32::from_f64).collect();
            x[place] = special;
            for level in scaling() {
                assert_eq!(measured(level, &x, 1.0).1, expected, "{special} at {place}");
            }
        };
        for place in [0, 1, 20, 4000] {
            for special in [f32::NAN, -f32::NAN, f32::INFINITY, 1e30] {
                stops(special, CHUNK + place, CHUNK);
            }
        }
        stops(200.0, CHUNK + 20, CHUNK);
        let banned = [f32::NEG_INFINITY; 100];
        for level in Level::available() {
            assert_eq!(measured(level, &banned, 1.0), (Mass::NOTHING, 0));
        }
    }

    #[test]
    fn moments_are_those_of_the_definition() {
        for (len, offset) in [(1, 0.0), (77, 3.0), (CHUNK - 5, -300.0), (CHUNK, 5.0)] {
            for (factor, raised) in [(1.0, 0.0), (0.7, 0.0), (1.0, 9.0), (1.3, 22.0)] {
                let mut x: Vec<f32> = spread(len).map(|x| (x + offset) as f32).collect();
                let highest = 8.0 + offset as f32 + raised as f32;
                x[len / 2] = highest;
                if len > 70 {
                    // A banned one, and the largest twice.
                    x[60] = f32::NEG_INFINITY;
                    x[20] = highest;
                }
                let factor = factor as f32;
                let d = |x: &f32| f64::from(factor) * (f64::from(*x) - f64::from(highest));
                let rest = || x.iter().map(d).filter(|d| *d < 0.0 && d.is_finite());
                let tops = x.iter().filter(|x| **x == highest).count() as f64;
                for level in scaling() {
                    // SAFETY: the vector has its elements.
                    let (mass, moments) =
                        unsafe { measure_moments(level, x.as_ptr(), len, factor, highest) }
                            .unwrap();
                    assert_eq!(mass, measured(level, &x, factor).0);
                    // What is beside the largest, to the digits of a float of its own size.
                    for (found, exact) in [
                        (moments.mass - tops, rest().map(f64::exp).sum::<f64>()),
                        (moments.weighted, rest().map(|d| d.exp() * d).sum()),
                        (
                            moments.squares - tops,
                            rest().map(|d| (2.0 * d).exp()).sum(),
                        ),
                    ] {
                        let allowed = 1e-6 * exact.abs() + 1e-14;
                        assert!((found - exact).abs() <= allowed, "{found}, not {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn levels_without_such_powers_leave_all_to_the_largest() {
        let x: Vec<f32> = spread(CHUNK).map(f32::from_f64).collect();
        for level in Level::available().filter(|level| *level < Level::Avx512) {
            assert_eq!(measured(level, &x, 1.0).1, 0, "{level:?}");
        }
        let x: Vec<f64> = spread(CHUNK).collect();
        for level in Level::available() {
            assert_eq!(measured(level, &x, 1.0).1, 0, "{level:?}");
        }
    }
}
