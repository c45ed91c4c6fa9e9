//! The passes of backward over one chunk.

use super::super::exp::exp;
use super::{Function, Identity, Scratch, Shift, ShiftVector, map};
use crate::simd::{Element, Isa, Kernel, Level, Memory, Real, Vector, dispatch};

/// The gradient that needs the policy's logits only: `p·(constant + slope·log p) + each`.
#[derive(Clone, Copy)]
pub struct Pull<R> {
    /// From a logit to its log p.
    pub log_p: Shift<R>,
    pub constant: R,
    pub slope: R,
    pub each: R,
}

/// `p·constant`, or with `FULL` the whole of [`Pull`].
struct PullFunction<V, const FULL: bool> {
    log_p: ShiftVector<V>,
    constant: V,
    slope: V,
    each: V,
    lowest: V,
}

impl<V: Vector, const FULL: bool> Function<V> for PullFunction<V, FULL> {
    #[inline(always)]
    fn apply(&self, x: V) -> V {
        let log_p = self.log_p.apply(x);
        let p = exp(log_p);
        if FULL {
            // Held where p is 0, so that p·log p is 0 there.
            let factor = self.slope.mul_add(self.lowest.larger(log_p), self.constant);
            p.mul_add(factor, self.each)
        } else {
            p.mul(self.constant)
        }
    }
}

impl<R: Real> Pull<R> {
    #[inline(always)]
    fn function<V: Vector<Scalar = R>, const FULL: bool>(self) -> PullFunction<V, FULL> {
        PullFunction {
            log_p: self.log_p.vector(),
            constant: V::splat(self.constant),
            slope: V::splat(self.slope),
            each: V::splat(self.each),
            lowest: V::splat(R::EXP_UNDERFLOW),
        }
    }
}

/// Writes the gradient of `len` elements.
///
/// # Safety
/// `len` elements can be read at `x` and written at `target`; the two are the same or apart.
pub unsafe fn pull<E: Element>(
    level: Level,
    x: *const E,
    target: *mut E,
    len: usize,
    pull: Pull<E::Real>,
    stream: bool,
) {
    dispatch(
        level,
        PullOf {
            x,
            target,
            len,
            pull,
            stream,
        },
    );
}

struct PullOf<E: Element> {
    x: *const E,
    target: *mut E,
    len: usize,
    pull: Pull<E::Real>,
    stream: bool,
}

impl<E: Element> Kernel for PullOf<E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self {
            x,
            target,
            len,
            pull,
            stream,
        } = self;
        // SAFETY: that of the function `pull`.
        unsafe {
            if pull.slope == E::Real::ZERO && pull.each == E::Real::ZERO {
                let function = pull.function::<E::Vector<I>, false>();
                map::<E::Vector<I>, E, E, true>(x, target, len, stream, &function);
            } else {
                let function = pull.function::<E::Vector<I>, true>();
                map::<E::Vector<I>, E, E, true>(x, target, len, stream, &function);
            }
        }
    }
}

/// What the divergences from the reference add to the gradient:
/// `kl·p·(log p − log q) − rkl·q`.
#[derive(Clone, Copy)]
pub struct Divergence<R> {
    /// From a reference logit to its log q.
    pub log_q: Shift<R>,
    pub kl: R,
    pub rkl: R,
}

/// The gradient of the `len` logits in a scratch, which takes their place.
pub struct PullInScratch<'a, R> {
    pub z: &'a mut Scratch<R>,
    pub len: usize,
    pub pull: Pull<R>,
    /// Reference logits and what they contribute.
    pub reference: Option<(&'a Scratch<R>, Divergence<R>)>,
    /// What the gradient is multiplied by, element by element.
    pub slope: Option<&'a Scratch<R>>,
}

impl<R: Real> Kernel for PullInScratch<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let zero = <R::Vector<I> as Vector>::splat(R::ZERO);
        let function = self.pull.function::<R::Vector<I>, true>();
        let lanes = <R::Vector<I> as Vector>::LANES;
        for start in (0..self.len).step_by(lanes) {
            let elements = &mut self.z.0[start..start + lanes];
            // SAFETY: the slices have as many elements as the vector; a scratch is a whole number of vectors.
            unsafe {
                let z: R::Vector<I> = Memory::load(elements.as_ptr());
                let mut gradient = function.apply(z);
                if let Some((reference, divergence)) = &self.reference {
                    let w = Memory::load(reference.0[start..start + lanes].as_ptr());
                    let log_q = divergence.log_q.vector::<R::Vector<I>>().apply(w);
                    if divergence.kl != R::ZERO {
                        let log_p = function.log_p.apply(z);
                        let p = exp(log_p);
                        let kl = <R::Vector<I> as Vector>::splat(divergence.kl);
                        gradient = gradient
                            .add(p.mul(kl.mul(log_p.sub(log_q))).or_zero(p.not_equal(zero)));
                    }
                    if divergence.rkl != R::ZERO {
                        let rkl = <R::Vector<I> as Vector>::splat(divergence.rkl);
                        gradient = gradient.sub(exp(log_q).mul(rkl));
                    }
                }
                if let Some(slope) = self.slope {
                    gradient = gradient.mul(Memory::load(slope.0[start..start + lanes].as_ptr()));
                }
                Memory::<R>::store(gradient, elements.as_mut_ptr());
            }
        }
    }
}

/// Writes the first `len` elements of a scratch to `target`.
///
/// # Safety
/// `len` elements can be written at `target`.
pub unsafe fn store<E: Element>(
    level: Level,
    scratch: &Scratch<E::Real>,
    target: *mut E,
    len: usize,
    stream: bool,
) {
    dispatch(
        level,
        Store {
            source: scratch.as_ptr(),
            target,
            len,
            stream,
        },
    );
}

struct Store<E: Element> {
    source: *const E::Real,
    target: *mut E,
    len: usize,
    stream: bool,
}

impl<E: Element> Kernel for Store<E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Self {
            source,
            target,
            len,
            stream,
        } = self;
        // SAFETY: that of the function `store`.
        unsafe { map::<E::Vector<I>, E::Real, E, false>(source, target, len, stream, &Identity) };
    }
}
