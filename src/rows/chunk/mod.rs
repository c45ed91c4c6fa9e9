//! Passes over one chunk of a row.
//!
//! A chunk is read from memory once, by the pass that finds its maximum, and stays in the first-level cache for the passes
//! behind it. Sums are taken relative to the chunk's own maximum in two vectors of lanes, whichever way the elements come
//! (straight from the logits or through a [`Scratch`]), so that equal elements give equal bits.

pub mod backward;
pub mod forward;
mod mass;
mod maximum;
mod scratch;

pub use mass::{Mass, measure, measure_moments};
pub use maximum::maximum;
pub use scratch::{Cap, Scratch};

use crate::simd::{Element, MAX_LANES, Memory, Real, Vector, prefetch, total};

/// Elements in a chunk: 16 KiB of f32.
pub const CHUNK: usize = 4096;

/// Vectors per step of a pass; two chains of additions keep an adder busy.
const UNROLL: usize = 2;

/// Steps after which running sums are put aside. A sum that holds the largest term, 1, takes the others with an error of
/// up to half of its last bit each; so it takes few of them, and then few sums of them.
const SETTLE: usize = 16;

/// Elements per step at most.
const MAX_STEP: usize = UNROLL * MAX_LANES;

const CACHE_LINE: usize = 64;

/// Of the smallest first-level cache that matters.
const FIRST_LEVEL: usize = 32 << 10;

/// Asks for the element that stands at the place of `x` in the next chunk. It waits in the first-level cache if the two
/// chunks fill no more than half of that, in the second otherwise: where they fill it, they would drive each other out.
/// The first level waits for few lines at once, so the second is asked for its lines half a chunk earlier.
#[inline(always)]
fn prefetch_next<E>(x: *const E) {
    let next = x.wrapping_add(CHUNK);
    if 2 * CHUNK * size_of::<E>() <= FIRST_LEVEL / 2 {
        prefetch::<true, E>(next);
        prefetch::<false, E>(next.wrapping_add(CHUNK / 2));
    } else {
        prefetch::<false, E>(next);
    }
}

/// What a pass does with each vector; vectors of the same chain come one after the other.
trait Fold<V> {
    fn add(&mut self, chain: usize, x: V);

    /// Some of `x` may be the −inf of [`fold`].
    #[inline(always)]
    fn add_padded(&mut self, chain: usize, x: V) {
        self.add(chain, x);
    }

    /// Whether it takes the next steps, which begin with `next`; asked every [`SETTLE`] steps.
    #[inline(always)]
    fn goes_on(&self, _next: V) -> bool {
        true
    }

    /// Puts running sums aside; called every [`SETTLE`] steps and at the end.
    #[inline(always)]
    fn settle(&mut self) {}
}

/// A sum over a chunk: one that runs, and the earlier ones that were put aside.
#[derive(Clone, Copy)]
struct Settling<V> {
    running: [V; UNROLL],
    settled: [V; UNROLL],
}

impl<V: Vector> Settling<V> {
    #[inline(always)]
    fn zero() -> Settling<V> {
        let zeros = [V::splat(V::Scalar::ZERO); UNROLL];
        Settling {
            running: zeros,
            settled: zeros,
        }
    }

    #[inline(always)]
    fn settle(&mut self) {
        for chain in 0..UNROLL {
            self.settled[chain] = self.settled[chain].add(self.running[chain]);
            self.running[chain] = V::splat(V::Scalar::ZERO);
        }
    }

    /// Of a sum that has been settled.
    #[inline(always)]
    fn total(self) -> f64 {
        total(self.settled)
    }
}

/// Feeds `len` elements to `fold`, the last step filled up with −inf. With `AHEAD`, asks for the next chunk meanwhile. False where
/// the fold did not take all.
///
/// # Safety
/// `len` elements can be read at `x`.
#[inline(always)]
unsafe fn fold<const AHEAD: bool, E: Element, V: Memory<E> + Vector>(
    x: *const E,
    len: usize,
    fold: &mut impl Fold<V>,
) -> bool {
    let step = UNROLL * V::LANES;
    let whole = len - len % step;
    // SAFETY: all reads are of elements below `len`, or of the padded copy of the last ones.
    unsafe {
        for block in (0..whole).step_by(SETTLE * step) {
            if !fold.goes_on(V::load(x.add(block))) {
                return false;
            }
            for start in (block..whole.min(block + SETTLE * step)).step_by(step) {
                if AHEAD {
                    for line in 0..(step * size_of::<E>()).div_ceil(CACHE_LINE) {
                        prefetch_next(x.add(start).wrapping_byte_add(line * CACHE_LINE));
                    }
                }
                for chain in 0..UNROLL {
                    fold.add(chain, V::load(x.add(start + chain * V::LANES)));
                }
            }
            fold.settle();
        }
        if whole < len {
            let mut rest = [E::NEG_INFINITY; MAX_STEP];
            x.add(whole)
                .copy_to_nonoverlapping(rest.as_mut_ptr(), len - whole);
            for chain in 0..UNROLL {
                fold.add_padded(chain, V::load(rest.as_ptr().add(chain * V::LANES)));
            }
            fold.settle();
        }
    }
    true
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

/// `x ↦ factor·(x − origin) − remainder`. The difference comes first: near the origin it is exact, however large both are.
#[derive(Clone, Copy)]
pub struct Shift<R> {
    pub origin: R,
    pub factor: R,
    pub remainder: R,
}

#[derive(Clone, Copy)]
struct ShiftVector<V> {
    origin: V,
    factor: V,
    minus_remainder: V,
}

impl<R: Real> Shift<R> {
    #[inline(always)]
    fn vector<V: Vector<Scalar = R>>(self) -> ShiftVector<V> {
        ShiftVector {
            origin: V::splat(self.origin),
            factor: V::splat(self.factor),
            minus_remainder: V::splat(R::ZERO).sub(V::splat(self.remainder)),
        }
    }
}

impl<V: Vector> ShiftVector<V> {
    #[inline(always)]
    fn apply(&self, x: V) -> V {
        x.sub(self.origin)
            .mul_add(self.factor, self.minus_remainder)
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
                prefetch_next(source.add(at));
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
