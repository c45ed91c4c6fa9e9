//! The passes of forward over one chunk.

use super::super::exp::Exp;
use super::super::topk::TopK;
use super::{CHUNK, Fold, SETTLE, Scratch, Settling, Shift, ShiftVector, UNROLL, fold, largest};
use crate::simd::{Element, Isa, Kernel, Level, MAX_LANES, Memory, Real, Vector, dispatch, total};

/// Σ e^d over a chunk, of d = factor·(x − origin).
///
/// # Safety
/// `len` elements can be read at `x`.
pub unsafe fn mass<E: Element>(
    level: Level,
    x: *const E,
    len: usize,
    shift: Shift<E::Real>,
) -> f64 {
    dispatch(level, MassOf { x, len, shift })
}

struct MassOf<E: Element> {
    x: *const E,
    len: usize,
    shift: Shift<E::Real>,
}

/// Sums over a chunk, of d = factor·(x − origin), the largest d being 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Σ e^d
    pub mass: f64,
    /// Σ e^d·d
    pub weighted: f64,
    /// Σ e^2d
    pub squares: f64,
}

impl Moments {
    pub const NOTHING: Moments = Moments {
        mass: 0.0,
        weighted: 0.0,
        squares: 0.0,
    };
}

/// The moments of a chunk. Their mass is to the bit what [`mass`] gives.
///
/// # Safety
/// `len` elements can be read at `x`.
pub unsafe fn moments<E: Element>(
    level: Level,
    x: *const E,
    len: usize,
    shift: Shift<E::Real>,
) -> Moments {
    dispatch(level, MomentsOf { x, len, shift })
}

struct MomentsOf<E: Element> {
    x: *const E,
    len: usize,
    shift: Shift<E::Real>,
}

/// Without `SCALED`, for a factor of 1.
struct MassFold<V, const SCALED: bool> {
    shift: ShiftVector<V>,
    mass: Settling<V>,
}

impl<V: Vector, const SCALED: bool> Fold<V> for MassFold<V, SCALED> {
    #[inline(always)]
    fn add(&mut self, chain: usize, x: V) {
        let offset = x.sub(self.shift.origin);
        let d = if SCALED {
            offset.mul(self.shift.factor)
        } else {
            offset
        };
        let mass = &mut self.mass.running[chain];
        *mass = Exp::in_sum(d).add_to(*mass);
    }

    #[inline(always)]
    fn settle(&mut self) {
        self.mass.settle();
    }
}

struct MomentsFold<V> {
    shift: ShiftVector<V>,
    /// e^d is 0 below; d is held at it, so that 0·d is 0.
    lowest: V,
    mass: Settling<V>,
    weighted: Settling<V>,
    squares: Settling<V>,
}

impl<V: Vector> Fold<V> for MomentsFold<V> {
    #[inline(always)]
    fn add(&mut self, chain: usize, x: V) {
        let d = self.shift.apply(x);
        let exp = Exp::in_sum(d);
        let e = exp.value();
        let (mass, weighted, squares) = (
            &mut self.mass.running[chain],
            &mut self.weighted.running[chain],
            &mut self.squares.running[chain],
        );
        *mass = exp.add_to(*mass);
        *weighted = e.mul_add(self.lowest.larger(d), *weighted);
        *squares = e.mul_add(e, *squares);
    }

    #[inline(always)]
    fn settle(&mut self) {
        self.mass.settle();
        self.weighted.settle();
        self.squares.settle();
    }
}

impl<E: Element> MassOf<E> {
    #[inline(always)]
    fn run_scaled<I: Isa, const SCALED: bool>(&self) -> f64 {
        let mut sums = MassFold::<_, SCALED> {
            shift: self.shift.vector::<E::Vector<I>>(),
            mass: Settling::zero(),
        };
        // SAFETY: that of `mass`.
        unsafe { fold::<true, E, E::Vector<I>>(self.x, self.len, &mut sums) };
        sums.mass.total()
    }
}

impl<E: Element> Kernel for MassOf<E> {
    type Output = f64;

    #[inline(always)]
    fn run<I: Isa>(self) -> f64 {
        if self.shift.factor == E::Real::ONE {
            self.run_scaled::<I, false>()
        } else {
            self.run_scaled::<I, true>()
        }
    }
}

impl<E: Element> Kernel for MomentsOf<E> {
    type Output = Moments;

    #[inline(always)]
    fn run<I: Isa>(self) -> Moments {
        let shift = self.shift.vector::<E::Vector<I>>();
        let lowest = <E::Vector<I> as Vector>::splat(E::Real::EXP_UNDERFLOW);
        let mut sums = MomentsFold {
            shift,
            lowest,
            mass: Settling::zero(),
            weighted: Settling::zero(),
            squares: Settling::zero(),
        };
        // SAFETY: that of `moments`.
        unsafe { fold::<true, E, E::Vector<I>>(self.x, self.len, &mut sums) };
        Moments {
            mass: sums.mass.total(),
            weighted: sums.weighted.total(),
            squares: sums.squares.total(),
        }
    }
}

/// Σ (x − origin).
///
/// # Safety
/// `len` elements can be read at `x`.
pub unsafe fn offsets<E: Element>(level: Level, x: *const E, len: usize, origin: E::Real) -> f64 {
    // Few elements at a time: here the terms are as large as they come, and their errors are not damped by e^d.
    const PART: usize = CHUNK / 8;
    let mut sum = 0.0;
    for start in (0..len).step_by(PART) {
        // SAFETY: the part is below `len`.
        let (x, len) = (unsafe { x.add(start) }, PART.min(len - start));
        sum += dispatch(level, Offsets { x, len, origin });
    }
    sum
}

struct Offsets<E: Element> {
    x: *const E,
    len: usize,
    origin: E::Real,
}

/// Adds up `down·x − down·origin`.
struct OffsetsFold<V> {
    down: V,
    minus_origin: V,
    sum: [V; UNROLL],
}

impl<V: Vector> Fold<V> for OffsetsFold<V> {
    #[inline(always)]
    fn add(&mut self, chain: usize, x: V) {
        self.sum[chain] = self.sum[chain].add(x.mul_add(self.down, self.minus_origin));
    }
}

impl<E: Element> Kernel for Offsets<E> {
    type Output = f64;

    #[inline(always)]
    fn run<I: Isa>(self) -> f64 {
        // Scaled down by a power of two, the sum of a chunk cannot overflow.
        const DOWN: f64 = 1.0 / (2 * CHUNK) as f64;
        let origin = self.origin.to_f64();
        let splat = |value| <E::Vector<I> as Vector>::splat(E::Real::from_f64(value));
        let mut whole_steps = OffsetsFold {
            down: splat(DOWN),
            minus_origin: splat(-origin * DOWN),
            sum: [splat(0.0); UNROLL],
        };
        let whole = self.len - self.len % (UNROLL * <E::Vector<I> as Vector>::LANES);
        let mut rest = 0.0;
        // SAFETY: that of `offsets`.
        unsafe {
            fold::<false, E, E::Vector<I>>(self.x, whole, &mut whole_steps);
            for index in whole..self.len {
                rest += self.x.add(index).read_unaligned().to_f64() - origin;
            }
        }
        total(whole_steps.sum) / DOWN + rest
    }
}

/// Sums over a chunk of two rows of logits, of d = factor·(z − origin) and d' = factor·(w − origin').
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossed {
    /// Σ e^d, to the bit what [`mass`] gives
    pub mass: f64,
    /// Σ e^d', likewise
    pub reference_mass: f64,
    /// Σ e^d·(d − d'), +inf where a term is
    pub forward: f64,
    /// Σ e^d'·(d' − d), +inf where a term is
    pub backward: f64,
}

/// The crossed sums of the first `len` elements.
pub fn crossed<R: Real>(
    level: Level,
    z: (&Scratch<R>, Shift<R>),
    w: (&Scratch<R>, Shift<R>),
    len: usize,
) -> Crossed {
    dispatch(level, CrossedOf { z, w, len })
}

struct CrossedOf<'a, R> {
    z: (&'a Scratch<R>, Shift<R>),
    w: (&'a Scratch<R>, Shift<R>),
    len: usize,
}

impl<R: Real> Kernel for CrossedOf<'_, R> {
    type Output = Crossed;

    #[inline(always)]
    fn run<I: Isa>(self) -> Crossed {
        let zero = <R::Vector<I> as Vector>::splat(R::ZERO);
        let (shift_z, shift_w) = (
            self.z.1.vector::<R::Vector<I>>(),
            self.w.1.vector::<R::Vector<I>>(),
        );
        let nothing = Settling::<R::Vector<I>>::zero();
        let (mut mass, mut reference_mass) = (nothing, nothing);
        let (mut forward, mut backward) = (nothing, nothing);
        // The extremes of d − d'. It is infinite where one of two probabilities is 0, and NaN, hence passed over, where both are.
        let (mut most, mut least) = ([zero; UNROLL], [zero; UNROLL]);
        let lanes = <R::Vector<I> as Vector>::LANES;
        let (whole, steps) = (
            self.len / (UNROLL * lanes),
            self.len.div_ceil(UNROLL * lanes),
        );
        for step in 0..steps {
            for i in 0..UNROLL {
                let at = (step * UNROLL + i) * lanes;
                // SAFETY: a scratch is padded to whole steps.
                let (z, w): (R::Vector<I>, R::Vector<I>) = unsafe {
                    (
                        Memory::load(self.z.0.0[at..].as_ptr()),
                        Memory::load(self.w.0.0[at..].as_ptr()),
                    )
                };
                let (dz, dw) = (shift_z.apply(z), shift_w.apply(w));
                let (exp_z, exp_w) = (Exp::in_sum(dz), Exp::in_sum(dw));
                let (p, q) = (exp_z.value(), exp_w.value());
                mass.running[i] = exp_z.add_to(mass.running[i]);
                reference_mass.running[i] = exp_w.add_to(reference_mass.running[i]);
                let gap = dz.sub(dw);
                let (p_gap, q_gap) = (
                    p.mul(gap).or_zero(p.not_equal(zero)),
                    q.mul(gap).or_zero(q.not_equal(zero)),
                );
                forward.running[i] = forward.running[i].add(p_gap);
                backward.running[i] = backward.running[i].sub(q_gap);
                most[i] = gap.larger(most[i]);
                least[i] = gap.smaller(least[i]);
            }
            // Where `fold` settles, so that the masses are the same to the bit.
            if (step + 1) % SETTLE == 0 || step + 1 == whole || step + 1 == steps {
                for sum in [&mut mass, &mut reference_mass, &mut forward, &mut backward] {
                    sum.settle();
                }
            }
        }
        let or_infinite = |sum: f64, extreme: R| {
            if extreme.to_f64() == f64::INFINITY {
                f64::INFINITY
            } else {
                sum
            }
        };
        Crossed {
            mass: mass.total(),
            reference_mass: reference_mass.total(),
            forward: or_infinite(forward.total(), largest(most)),
            backward: or_infinite(
                backward.total(),
                largest([zero.sub(least[0]), zero.sub(least[1])]),
            ),
        }
    }
}

/// Enters the elements of a chunk into `top`.
///
/// # Safety
/// `len` elements can be read at `x`.
pub unsafe fn select<E: Element>(level: Level, x: *const E, len: usize, top: &mut TopK<E::Real>) {
    dispatch(level, Select { x, len, top });
}

struct Select<'a, E: Element> {
    x: *const E,
    len: usize,
    top: &'a mut TopK<E::Real>,
}

struct SelectFold<'a, V: Vector> {
    top: &'a mut TopK<V::Scalar>,
    threshold: V,
}

impl<V: Vector> Fold<V> for SelectFold<'_, V> {
    #[inline(always)]
    fn add(&mut self, _chain: usize, x: V) {
        if V::any(self.threshold.less(x)) {
            let mut lanes = [V::Scalar::ZERO; MAX_LANES];
            x.write(&mut lanes);
            self.top.extend(&lanes[..V::LANES]);
            self.threshold = V::splat(self.top.threshold());
        }
    }
}

impl<E: Element> Kernel for Select<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let threshold = <E::Vector<I> as Vector>::splat(self.top.threshold());
        let mut selection = SelectFold::<E::Vector<I>> {
            top: self.top,
            threshold,
        };
        // SAFETY: that of `select`.
        unsafe { fold::<false, E, E::Vector<I>>(self.x, self.len, &mut selection) };
    }
}
