//! Room for a chunk, in which it is converted and soft-capped.

use super::super::exp::tanh;
use super::{CHUNK, Identity, MAX_STEP, map};
use crate::simd::{Element, Isa, Kernel, Level, MAX_LANES, Memory, Real, Vector, dispatch};

/// A chunk's worth of elements, padded with −inf to whole steps.
pub struct Scratch<R>(pub(super) Box<[R]>);

impl<R: Real> Scratch<R> {
    pub fn new() -> Scratch<R> {
        Scratch(vec![R::ZERO; CHUNK].into_boxed_slice())
    }

    pub fn as_ptr(&self) -> *const R {
        self.0.as_ptr()
    }

    pub fn at(&self, index: usize) -> R {
        self.0[index]
    }

    fn pad(&mut self, len: usize) {
        self.0[len..len.next_multiple_of(MAX_STEP)].fill(R::NEG_INFINITY);
    }

    /// Takes over `len` elements of any type.
    ///
    /// # Safety
    /// `len <= CHUNK` elements can be read at `source`.
    pub unsafe fn load<E: Element>(&mut self, level: Level, source: *const E, len: usize) {
        if size_of::<E::Real>() == size_of::<R>() {
            // Equal sizes mean equal types: there are two of them, f32 and f64.
            dispatch(
                level,
                Convert {
                    source,
                    len,
                    target: self.0.as_mut_ptr().cast::<E::Real>(),
                },
            );
        } else {
            for (index, element) in self.0[..len].iter_mut().enumerate() {
                // SAFETY: the caller vouches for `len` elements.
                *element = R::from_f64(unsafe { source.add(index).read_unaligned() }.to_f64());
            }
        }
        self.pad(len);
    }

    /// Applies `x ↦ outer·tanh(inner·x)` to the first `len` elements; `slope`, where given, receives `tanh'(inner·x)`.
    pub fn cap(&mut self, level: Level, len: usize, cap: Cap<R>, slope: Option<&mut Scratch<R>>) {
        dispatch(
            level,
            Capping {
                elements: &mut self.0,
                len,
                cap,
                slope: slope.map(|slope| &mut slope.0[..]),
            },
        );
        self.pad(len);
    }
}

/// A soft cap: `x ↦ outer·tanh(inner·x)`.
#[derive(Clone, Copy)]
pub struct Cap<R> {
    pub inner: R,
    pub outer: R,
}

impl<R: Real> Cap<R> {
    /// The capped logit and tanh'(inner·x), to the bit what [`Scratch::cap`] makes of it.
    pub fn apply(self, level: Level, x: R) -> (R, R) {
        dispatch(level, CapOne { cap: self, x })
    }
}

struct CapOne<R> {
    cap: Cap<R>,
    x: R,
}

impl<R: Real> Kernel for CapOne<R> {
    type Output = (R, R);

    #[inline(always)]
    fn run<I: Isa>(self) -> (R, R) {
        let splat = <R::Vector<I> as Vector>::splat;
        let (value, slope) = tanh(splat(self.x).mul(splat(self.cap.inner)));
        let (mut values, mut slopes) = ([R::ZERO; MAX_LANES], [R::ZERO; MAX_LANES]);
        value.mul(splat(self.cap.outer)).write(&mut values);
        slope.write(&mut slopes);
        (values[0], slopes[0])
    }
}

struct Convert<E: Element> {
    source: *const E,
    len: usize,
    target: *mut E::Real,
}

impl<E: Element> Kernel for Convert<E> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let identity = Identity;
        // SAFETY: that of `Scratch::load`; the target is a scratch of at least `len` elements.
        unsafe {
            map::<E::Vector<I>, E, E::Real, true>(
                self.source,
                self.target,
                self.len,
                false,
                &identity,
            )
        };
    }
}

struct Capping<'a, R> {
    elements: &'a mut [R],
    len: usize,
    cap: Cap<R>,
    slope: Option<&'a mut [R]>,
}

impl<R: Real> Kernel for Capping<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self) {
        let inner = <R::Vector<I> as Vector>::splat(self.cap.inner);
        let outer = <R::Vector<I> as Vector>::splat(self.cap.outer);
        let lanes = <R::Vector<I> as Vector>::LANES;
        for start in (0..self.len).step_by(lanes) {
            let elements = &mut self.elements[start..start + lanes];
            // SAFETY: the slices have as many elements as the vector; a scratch is a whole number of vectors.
            unsafe {
                let x: R::Vector<I> = Memory::load(elements.as_ptr());
                let (value, slope) = tanh(x.mul(inner));
                Memory::<R>::store(value.mul(outer), elements.as_mut_ptr());
                if let Some(slopes) = &mut self.slope {
                    Memory::<R>::store(slope, slopes[start..start + lanes].as_mut_ptr());
                }
            }
        }
    }
}
