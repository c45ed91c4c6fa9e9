//! Passes over one chunk of a row.
//!
//! A chunk is read from memory once, by the pass that finds its maximum, and stays in the first-level cache for the passes
//! behind it. Sums are taken relative to the chunk's own maximum in two vectors of lanes, whichever way the elements come
//! (straight from the logits or through a [`Scratch`]), so that equal elements give equal bits.

use super::exp::{exp, tanh};
use super::simd::{
    Element, Isa, Kernel, Level, MAX_LANES, Memory, Real, Vector, dispatch, prefetch,
};
use super::topk::TopK;

/// Elements in a chunk: 16 KiB of f32.
pub const CHUNK: usize = 4096;

/// Vectors per step of a pass; two chains of additions keep an adder busy.
const UNROLL: usize = 2;

/// Elements per step at most.
const MAX_STEP: usize = UNROLL * MAX_LANES;

const CACHE_LINE: usize = 64;

/// A chunk's worth of elements, padded with −inf to whole steps.
pub struct Scratch<R>(Box<[R]>);

impl<R: Real> Scratch<R> {
    pub fn new() -> Scratch<R> {
        Scratch(vec![R::ZERO; CHUNK].into_boxed_slice())
    }

    pub fn as_ptr(&self) -> *const R {
        self.0.as_ptr()
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

    /// Multiplies by `factors`.
    pub fn multiply(&mut self, factors: &Scratch<R>, len: usize) {
        for (element, factor) in self.0[..len].iter_mut().zip(&factors.0) {
            *element = *element * *factor;
        }
    }
}

/// A soft cap: `x ↦ outer·tanh(inner·x)`.
#[derive(Clone, Copy)]
pub struct Cap<R> {
    pub inner: R,
    pub outer: R,
}

/// What a pass does with the vectors of one step.
trait Fold<V> {
    fn step(&mut self, x: [V; UNROLL]);
}

/// Feeds `len` elements to `fold`, the last step filled up with −inf. With `AHEAD`, asks for the next chunk meanwhile.
///
/// # Safety
/// `len` elements can be read at `x`.
#[inline(always)]
unsafe fn fold<const AHEAD: bool, E: Element, V: Memory<E> + Vector>(
    x: *const E,
    len: usize,
    fold: &mut impl Fold<V>,
) {
    let step = UNROLL * V::LANES;
    let whole = len - len % step;
    // SAFETY: all reads are of elements below `len`, or of the padded copy of the last ones.
    unsafe {
        for start in (0..whole).step_by(step) {
            if AHEAD {
                for line in 0..(step * size_of::<E>()).div_ceil(CACHE_LINE) {
                    prefetch(
                        x.wrapping_add(CHUNK + start)
                            .wrapping_byte_add(line * CACHE_LINE),
                    );
                }
            }
            fold.step([V::load(x.add(start)), V::load(x.add(start + V::LANES))]);
        }
        if whole < len {
            let mut rest = [E::NEG_INFINITY; MAX_STEP];
            x.add(whole)
                .copy_to_nonoverlapping(rest.as_mut_ptr(), len - whole);
            fold.step([V::load(rest.as_ptr()), V::load(rest.as_ptr().add(V::LANES))]);
        }
    }
}

/// The sum of all lanes, in f64 and in order.
#[inline(always)]
fn total<V: Vector>(vectors: [V; UNROLL]) -> f64 {
    let mut sum = 0.0;
    for vector in vectors {
        let mut lanes = [V::Scalar::ZERO; MAX_LANES];
        vector.write(&mut lanes);
        sum += lanes[..V::LANES]
            .iter()
            .map(|lane| lane.to_f64())
            .sum::<f64>();
    }
    sum
}

/// The largest of all lanes that are not NaN, −inf if there is none.
#[inline(always)]
fn largest<V: Vector>(vectors: [V; UNROLL]) -> V::Scalar {
    let mut lanes = [V::Scalar::ZERO; MAX_LANES];
    let [first, second] = vectors;
    first.larger(second).write(&mut lanes);
    lanes[..V::LANES]
        .iter()
        .fold(V::Scalar::NEG_INFINITY, |most, lane| {
            if *lane > most { *lane } else { most }
        })
}

/// The largest of `len` elements, NaN passed over.
///
/// # Safety
/// `len` elements can be read at `x`.
pub unsafe fn maximum<E: Element>(level: Level, x: *const E, len: usize) -> E::Real {
    dispatch(level, Maximum { x, len })
}

struct Maximum<E> {
    x: *const E,
    len: usize,
}

struct MaximumFold<V>([V; UNROLL]);

impl<V: Vector> Fold<V> for MaximumFold<V> {
    #[inline(always)]
    fn step(&mut self, x: [V; UNROLL]) {
        for (most, x) in self.0.iter_mut().zip(x) {
            *most = x.larger(*most);
        }
    }
}

impl<E: Element> Kernel for Maximum<E> {
    type Output = E::Real;

    #[inline(always)]
    fn run<I: Isa>(self) -> E::Real {
        let lowest = <E::Vector<I> as Vector>::splat(E::Real::NEG_INFINITY);
        let mut most = MaximumFold([lowest; UNROLL]);
        // SAFETY: that of `maximum`.
        unsafe { fold::<false, E, E::Vector<I>>(self.x, self.len, &mut most) };
        largest(most.0)
    }
}

/// Sums over a chunk, of d = factor·x − origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sums {
    /// Σ e^d
    pub mass: f64,
    /// Σ e^d·d; 0 unless moments were asked for
    pub weighted: f64,
    /// Σ e^2d; 0 unless moments were asked for
    pub squares: f64,
}

/// `x ↦ factor·x − origin`, rounded once where the machine can.
#[derive(Clone, Copy)]
pub struct Shift<R> {
    pub factor: R,
    pub origin: R,
}

#[derive(Clone, Copy)]
struct ShiftVector<V> {
    factor: V,
    minus_origin: V,
}

impl<R: Real> Shift<R> {
    #[inline(always)]
    fn vector<V: Vector<Scalar = R>>(self) -> ShiftVector<V> {
        ShiftVector {
            factor: V::splat(self.factor),
            minus_origin: V::splat(R::ZERO).sub(V::splat(self.origin)),
        }
    }
}

impl<V: Vector> ShiftVector<V> {
    #[inline(always)]
    fn apply(&self, x: V) -> V {
        x.mul_add(self.factor, self.minus_origin)
    }
}

/// The sums of a chunk.
///
/// # Safety
/// `len` elements can be read at `x`.
pub unsafe fn sums<E: Element>(
    level: Level,
    x: *const E,
    len: usize,
    shift: Shift<E::Real>,
    moments: bool,
) -> Sums {
    dispatch(
        level,
        SumsOf {
            x,
            len,
            shift,
            moments,
        },
    )
}

struct SumsOf<E: Element> {
    x: *const E,
    len: usize,
    shift: Shift<E::Real>,
    moments: bool,
}

struct MassFold<V> {
    shift: ShiftVector<V>,
    mass: [V; UNROLL],
}

impl<V: Vector> Fold<V> for MassFold<V> {
    #[inline(always)]
    fn step(&mut self, x: [V; UNROLL]) {
        for (mass, x) in self.mass.iter_mut().zip(x) {
            *mass = mass.add(exp(self.shift.apply(x)));
        }
    }
}

struct MomentsFold<V> {
    shift: ShiftVector<V>,
    /// e^d is 0 below; d is held at it, so that 0·d is 0.
    lowest: V,
    mass: [V; UNROLL],
    weighted: [V; UNROLL],
    squares: [V; UNROLL],
}

impl<V: Vector> Fold<V> for MomentsFold<V> {
    #[inline(always)]
    fn step(&mut self, x: [V; UNROLL]) {
        for (i, x) in x.into_iter().enumerate() {
            let d = self.shift.apply(x);
            let e = exp(d);
            self.mass[i] = self.mass[i].add(e);
            self.weighted[i] = e.mul_add(self.lowest.larger(d), self.weighted[i]);
            self.squares[i] = e.mul_add(e, self.squares[i]);
        }
    }
}

impl<E: Element> Kernel for SumsOf<E> {
    type Output = Sums;

    #[inline(always)]
    fn run<I: Isa>(self) -> Sums {
        let zeros = [<E::Vector<I> as Vector>::splat(E::Real::ZERO); UNROLL];
        let shift = self.shift.vector::<E::Vector<I>>();
        if !self.moments {
            let mut sums = MassFold { shift, mass: zeros };
            // SAFETY: that of `sums`.
            unsafe { fold::<true, E, E::Vector<I>>(self.x, self.len, &mut sums) };
            return Sums {
                mass: total(sums.mass),
                weighted: 0.0,
                squares: 0.0,
            };
        }
        let lowest = <E::Vector<I> as Vector>::splat(E::Real::EXP_UNDERFLOW);
        let mut sums = MomentsFold {
            shift,
            lowest,
            mass: zeros,
            weighted: zeros,
            squares: zeros,
        };
        // SAFETY: that of `sums`.
        unsafe { fold::<true, E, E::Vector<I>>(self.x, self.len, &mut sums) };
        Sums {
            mass: total(sums.mass),
            weighted: total(sums.weighted),
            squares: total(sums.squares),
        }
    }
}

/// Σ (factor·x − origin).
///
/// # Safety
/// `len` elements can be read at `x`.
pub unsafe fn offsets<E: Element>(x: *const E, len: usize, shift: Shift<E::Real>) -> f64 {
    let (factor, origin) = (shift.factor.to_f64(), shift.origin.to_f64());
    // SAFETY: that of this function.
    let offset = |index: usize| unsafe { x.add(index).read_unaligned() }.to_f64() * factor - origin;
    let mut lanes = [0.0; 8];
    let whole = len - len % lanes.len();
    for start in (0..whole).step_by(lanes.len()) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += offset(start + lane);
        }
    }
    lanes.iter().sum::<f64>() + (whole..len).map(offset).sum::<f64>()
}

/// Sums over a chunk of two rows of logits, of d = factor·z − origin and d' = factor·w − origin'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossed {
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
        let (mut forward, mut backward) = ([zero; UNROLL], [zero; UNROLL]);
        // The extremes of d − d'. It is infinite where one of two probabilities is 0, and NaN, hence passed over, where both are.
        let (mut most, mut least) = ([zero; UNROLL], [zero; UNROLL]);
        let lanes = <R::Vector<I> as Vector>::LANES;
        for start in (0..self.len.next_multiple_of(UNROLL * lanes)).step_by(UNROLL * lanes) {
            for i in 0..UNROLL {
                let at = start + i * lanes;
                // SAFETY: a scratch is padded to whole steps.
                let (z, w): (R::Vector<I>, R::Vector<I>) = unsafe {
                    (
                        Memory::load(self.z.0.0[at..].as_ptr()),
                        Memory::load(self.w.0.0[at..].as_ptr()),
                    )
                };
                let (dz, dw) = (shift_z.apply(z), shift_w.apply(w));
                let (p, q) = (exp(dz), exp(dw));
                let gap = dz.sub(dw);
                forward[i] = forward[i].add(p.mul(gap).or_zero(p.not_equal(zero)));
                backward[i] = backward[i].sub(q.mul(gap).or_zero(q.not_equal(zero)));
                most[i] = gap.larger(most[i]);
                least[i] = gap.smaller(least[i]);
            }
        }
        let minus = |v: [R::Vector<I>; UNROLL]| v.map(|v| zero.sub(v));
        let or_infinite = |sum: f64, extreme: R| {
            if extreme.to_f64() == f64::INFINITY {
                f64::INFINITY
            } else {
                sum
            }
        };
        Crossed {
            forward: or_infinite(total(forward), largest(most)),
            backward: or_infinite(total(backward), largest(minus(least))),
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
    fn step(&mut self, x: [V; UNROLL]) {
        let [first, second] = x;
        if V::any(V::or(
            self.threshold.less(first),
            self.threshold.less(second),
        )) {
            for vector in x {
                let mut lanes = [V::Scalar::ZERO; MAX_LANES];
                vector.write(&mut lanes);
                self.top.extend(&lanes[..V::LANES]);
            }
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

/// A function of single vectors.
trait Function<V> {
    fn apply(&self, x: V) -> V;
}

struct Identity;

impl<V> Function<V> for Identity {
    #[inline(always)]
    fn apply(&self, x: V) -> V {
        x
    }
}

/// Writes `function` of `len` elements at `source` to `target`, which may be `source`.
///
/// With `stream`, stores go around the caches.
///
/// # Safety
/// `len` elements can be read at `source` and written at `target`; the two are the same or apart.
#[inline(always)]
unsafe fn map<V: Vector + Memory<S> + Memory<T>, S: Element, T: Element, const AHEAD: bool>(
    source: *const S,
    target: *mut T,
    len: usize,
    stream: bool,
    function: &impl Function<V>,
) {
    // SAFETY: all accesses are to elements below `len`; streamed ones are aligned because the ones before are not streamed.
    unsafe {
        let head = if stream {
            len.min(target.align_offset(V::LANES * size_of::<T>()))
        } else {
            0
        };
        let whole = head + (len - head) / V::LANES * V::LANES;
        map_part(source, target, head, function);
        for at in (head..whole).step_by(V::LANES) {
            if AHEAD {
                prefetch(source.wrapping_add(at + CHUNK));
            }
            let y = function.apply(Memory::<S>::load(source.add(at)));
            if stream {
                Memory::<T>::stream(y, target.add(at));
            } else {
                Memory::<T>::store(y, target.add(at));
            }
        }
        map_part(source.add(whole), target.add(whole), len - whole, function);
    }
}

/// As [`map`], for fewer elements than a vector has.
///
/// # Safety
/// As for [`map`].
#[inline(always)]
unsafe fn map_part<V: Vector + Memory<S> + Memory<T>, S: Element, T: Element>(
    source: *const S,
    target: *mut T,
    len: usize,
    function: &impl Function<V>,
) {
    if len == 0 {
        return;
    }
    let mut input = [S::ZERO; MAX_LANES];
    let mut output = [T::ZERO; MAX_LANES];
    // SAFETY: `len` is at most that of a vector, which is at most that of the arrays.
    unsafe {
        source.copy_to_nonoverlapping(input.as_mut_ptr(), len);
        let y = function.apply(Memory::<S>::load(input.as_ptr()));
        Memory::<T>::store(y, output.as_mut_ptr());
        target.copy_from_nonoverlapping(output.as_ptr(), len);
    }
}

/// The gradient that needs the policy's logits only, as a function of d = factor·x − origin − remainder = log p:
/// `p·(constant + slope·log p)`.
#[derive(Clone, Copy)]
pub struct Pull<R> {
    pub log_p: LogProbability<R>,
    pub constant: R,
    pub slope: R,
}

/// `x ↦ factor·x − lse`, the latter in two parts.
#[derive(Clone, Copy)]
pub struct LogProbability<R> {
    pub shift: Shift<R>,
    pub remainder: R,
}

#[derive(Clone, Copy)]
struct LogProbabilityVector<V> {
    shift: ShiftVector<V>,
    remainder: V,
}

impl<R: Real> LogProbability<R> {
    #[inline(always)]
    fn vector<V: Vector<Scalar = R>>(self) -> LogProbabilityVector<V> {
        LogProbabilityVector {
            shift: self.shift.vector(),
            remainder: V::splat(self.remainder),
        }
    }
}

impl<V: Vector> LogProbabilityVector<V> {
    #[inline(always)]
    fn apply(&self, x: V) -> V {
        self.shift.apply(x).sub(self.remainder)
    }
}

/// `p·constant`, or with `SLOPED` `p·(constant + slope·log p)`.
struct PullFunction<V, const SLOPED: bool> {
    log_p: LogProbabilityVector<V>,
    constant: V,
    slope: V,
    lowest: V,
}

impl<V: Vector, const SLOPED: bool> Function<V> for PullFunction<V, SLOPED> {
    #[inline(always)]
    fn apply(&self, x: V) -> V {
        let log_p = self.log_p.apply(x);
        let p = exp(log_p);
        if SLOPED {
            // Held where p is 0, so that p·log p is 0 there.
            p.mul(self.slope.mul_add(self.lowest.larger(log_p), self.constant))
        } else {
            p.mul(self.constant)
        }
    }
}

impl<R: Real> Pull<R> {
    #[inline(always)]
    fn function<V: Vector<Scalar = R>, const SLOPED: bool>(self) -> PullFunction<V, SLOPED> {
        PullFunction {
            log_p: self.log_p.vector(),
            constant: V::splat(self.constant),
            slope: V::splat(self.slope),
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
            if pull.slope == E::Real::ZERO {
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
    pub log_q: LogProbability<R>,
    pub kl: R,
    pub rkl: R,
}

/// Replaces the logits in `z` by the gradient; `reference` holds the other logits.
pub fn pull_in_scratch<R: Real>(
    level: Level,
    z: &mut Scratch<R>,
    len: usize,
    pull: Pull<R>,
    reference: Option<(&Scratch<R>, Divergence<R>)>,
) {
    dispatch(
        level,
        PullInScratch {
            z,
            len,
            pull,
            reference,
        },
    );
}

struct PullInScratch<'a, R> {
    z: &'a mut Scratch<R>,
    len: usize,
    pull: Pull<R>,
    reference: Option<(&'a Scratch<R>, Divergence<R>)>,
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
