//! The pass that adds up the exponentials of a chunk whose largest logit nobody knows.
//!
//! `e^z = 2^n·e^r` with n a multiple of 1/STEPS. Where the instruction set multiplies by a power of two of any size, what is too
//! large for a float becomes infinite and what is too small 0, so the terms need no largest one to be measured from: those of
//! ordinary logits are taken as they are, those of others are divided by a power of two near the first few, and an infinite sum
//! tells that some logit is far above them. Division by a power of two changes no digit, and n·log 2 is subtracted from z with
//! one rounding, so a term is as exact wherever it is measured from.
//!
//! Its relative error is at most 2^-22, that of the largest as well: sums from the largest on have that one exact, without which
//! a probability next to 1 loses its distance from it.

use std::f64::consts::{LN_2, LOG2_E};

use super::{CACHE_LINE, CHUNK, Fold, MAX_STEP, SETTLE, Settling, UNROLL, fold, largest};
use crate::simd::{Element, Isa, Kernel, Level, Memory, Real, Vector, dispatch, prefetch};

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
pub(super) const VANISHED: f64 = 125.0;

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
pub(super) struct Terms<V> {
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
    pub fn new(factor: f64) -> Terms<V> {
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

    /// Two factors of e^z, with `MOVED` of e^z/2^octaves; the first is a power of two's, the second next to 1. Both are 1 for 0.
    #[inline(always)]
    pub fn factors<const SCALED: bool, const MOVED: bool>(&self, x: V, octaves: V) -> [V; 2] {
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

/// With `SCALED`, for a factor other than 1; with `GUARDED`, from an origin other than 0 and for logits below the lowest.
struct MassFold<V, const SCALED: bool, const GUARDED: bool> {
    terms: Terms<V>,
    origin: Origin<V>,
    mass: Settling<V>,
}

impl<V: Vector, const SCALED: bool, const GUARDED: bool> MassFold<V, SCALED, GUARDED> {
    /// For x not below the lowest.
    #[inline(always)]
    fn add_lifted(&mut self, chain: usize, x: V) {
        let octaves = self.origin.octaves;
        let [power, growth] = self.terms.factors::<SCALED, GUARDED>(x, octaves);
        let mass = &mut self.mass.running[chain];
        *mass = power.mul_add(growth, *mass);
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

impl<V: Vector, const SCALED: bool, const GUARDED: bool> Fold<V> for MassFold<V, SCALED, GUARDED> {
    #[inline(always)]
    fn add(&mut self, chain: usize, x: V) {
        let lifted = if GUARDED { self.lifted(x) } else { x };
        self.add_lifted(chain, lifted);
    }

    #[inline(always)]
    fn add_padded(&mut self, chain: usize, x: V) {
        self.add_lifted(chain, self.lifted(x));
    }

    /// Not without `GUARDED` where a logit is below the lowest, as far as the next ones tell, or −inf, as the sum does.
    #[inline(always)]
    fn goes_on(&self, next: V) -> bool {
        GUARDED || !V::any(next.less(self.origin.lowest)) && !self.is_nan()
    }

    #[inline(always)]
    fn settle(&mut self) {
        self.mass.settle();
    }
}

impl<E: Element> Measure<'_, E> {
    #[inline(always)]
    fn run_scaled<I: Isa, const SCALED: bool>(self) -> usize {
        let splat = |value: f64| <E::Vector<I> as Vector>::splat(E::Real::from_f64(value));
        let factor = if SCALED { self.factor.to_f64() } else { 1.0 };
        let terms = Terms::<E::Vector<I>>::new(factor);
        // Without a factor an octave is what is subtracted for one.
        let octave = if SCALED {
            LN_2
        } else {
            E::Real::from_f64(LN_2).to_f64()
        };
        let ordinary = Origin::<E::Vector<I>>::new(0.0, factor);
        let (low, high) = (splat(-ORDINARY / factor), splat(ORDINARY / factor));
        for start in (0..self.len).step_by(CHUNK) {
            let len = CHUNK.min(self.len - start);
            // SAFETY: that of `measure`; `len` elements are left at `x`.
            let (x, first) = unsafe {
                let x = self.x.add(start);
                (x, first::<I, E>(x, len))
            };
            let is_ordinary = <E::Vector<I> as Vector>::any(low.less(first))
                && !<E::Vector<I> as Vector>::any(high.less(first));
            let (mut octaves, mut origin) = (0.0, ordinary);
            if !is_ordinary {
                octaves = (largest([first; UNROLL]).to_f64() * factor * LOG2_E).round();
                if octaves.is_nan() || octaves.abs() > MOST_OCTAVES {
                    return start;
                }
                origin = Origin::new(octaves, factor);
            }
            let mut mass = f64::NAN;
            // SAFETY: as above.
            unsafe {
                if is_ordinary {
                    mass = sum::<I, E, SCALED, false>(x, len, terms, origin);
                }
                if mass.is_nan() {
                    mass = sum::<I, E, SCALED, true>(x, len, terms, origin);
                }
            }
            if !mass.is_finite() {
                return start;
            }
            *self.sum = self.sum.plus(&Mass {
                origin: octaves * octave,
                mass,
                rough: true,
            });
        }
        self.len
    }
}

/// The first vector of `len` elements, filled up with −inf.
///
/// # Safety
/// `len` elements can be read at `x`.
#[inline(always)]
unsafe fn first<I: Isa, E: Element>(x: *const E, len: usize) -> E::Vector<I> {
    // SAFETY: passed on to the caller; a vector has no more lanes than a step.
    unsafe {
        if len >= <E::Vector<I> as Vector>::LANES {
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

/// The mass of a chunk, NaN where it has NaN or has to be guarded.
///
/// # Safety
/// `len` elements can be read at `x`.
#[inline(always)]
unsafe fn sum<I: Isa, E: Element, const SCALED: bool, const GUARDED: bool>(
    x: *const E,
    len: usize,
    terms: Terms<E::Vector<I>>,
    origin: Origin<E::Vector<I>>,
) -> f64 {
    let mut sums = MassFold::<E::Vector<I>, SCALED, GUARDED> {
        terms,
        origin,
        mass: Settling::zero(),
    };
    // SAFETY: passed on to the caller.
    let all = unsafe {
        if len == CHUNK {
            fold_halves::<E, E::Vector<I>>(x, &mut sums)
        } else {
            fold::<true, E, E::Vector<I>>(x, len, &mut sums)
        }
    };
    if all { sums.mass.total() } else { f64::NAN }
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
        Level::available().filter(|level| *level == Level::Avx512)
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
    fn levels_without_such_powers_leave_all_to_the_largest() {
        let x: Vec<f32> = spread(CHUNK).map(f32::from_f64).collect();
        for level in Level::available().filter(|level| *level != Level::Avx512) {
            assert_eq!(measured(level, &x, 1.0).1, 0, "{level:?}");
        }
        let x: Vec<f64> = spread(CHUNK).collect();
        for level in Level::available() {
            assert_eq!(measured(level, &x, 1.0).1, 0, "{level:?}");
        }
    }
}
