//! Passes over the elements of two arrays side by side.

use half::{bf16, f16};

use crate::simd::{Element, Isa, Kernel, MAX_LANES, Memory, Real, Vector, prefetch, total};

/// Chains of additions that run side by side.
const CHAINS: usize = 4;

/// Elements by which memory is asked for before it is read; what is asked for behind the end of an array is asked for in vain.
const AHEAD: usize = 2048;

type VectorOf<I, R> = <R as Element>::Vector<I>;

/// An element type whose elements come and go as vectors of its arithmetic's type, whatever the other operand is.
pub trait Operand: Element {
    /// # Safety
    /// As many elements as the vector has lanes can be read at `source`.
    unsafe fn load<I: Isa>(source: *const Self) -> VectorOf<I, Self::Real>;

    /// # Safety
    /// As many elements can be written at `target`, which for `stream` is aligned to the size of all of them.
    unsafe fn store<I: Isa>(vector: VectorOf<I, Self::Real>, target: *mut Self, stream: bool);
}

macro_rules! operand {
    ($($element:ty),+) => {
        $(impl Operand for $element {
            #[inline(always)]
            unsafe fn load<I: Isa>(source: *const Self) -> VectorOf<I, Self::Real> {
                // SAFETY: the caller's promise.
                unsafe { Memory::<Self>::load(source) }
            }

            #[inline(always)]
            unsafe fn store<I: Isa>(vector: VectorOf<I, Self::Real>, target: *mut Self, stream: bool) {
                // SAFETY: the caller's promise.
                unsafe {
                    if stream {
                        Memory::<Self>::stream(vector, target)
                    } else {
                        Memory::<Self>::store(vector, target)
                    }
                }
            }
        })+
    };
}

operand!(f16, bf16, f32, f64);

/// Two arrays of `len` elements, to be read only.
#[derive(Clone, Copy)]
pub struct Pair<A, B> {
    pub first: *const A,
    pub second: *const B,
    pub len: usize,
}

impl<R: Real, A: Operand<Real = R>, B: Operand<Real = R>> Pair<A, B> {
    /// The differences at `at`, a whole vector of them.
    ///
    /// # Safety
    /// The arrays hold so many elements behind `at`.
    #[inline(always)]
    unsafe fn difference<I: Isa>(&self, at: usize) -> VectorOf<I, R> {
        // SAFETY: the caller's promise.
        unsafe { A::load::<I>(self.first.add(at)).sub(B::load::<I>(self.second.add(at))) }
    }

    /// Asks for what comes `AHEAD` elements behind `at`.
    #[inline(always)]
    fn prefetch(&self, at: usize) {
        prefetch::<false, A>(self.first.wrapping_add(at + AHEAD));
        prefetch::<false, B>(self.second.wrapping_add(at + AHEAD));
    }

    /// As `difference` for the elements from `at` to `end`, fewer than a vector's; 0 in the lanes behind them.
    ///
    /// # Safety
    /// `end` is at most `len`.
    #[inline(always)]
    unsafe fn part<I: Isa>(&self, at: usize, end: usize) -> VectorOf<I, R> {
        let (mut first, mut second) = ([A::ZERO; MAX_LANES], [B::ZERO; MAX_LANES]);
        let count = end - at;
        // SAFETY: fewer elements than a vector has lanes, which are at most those of the arrays.
        unsafe {
            self.first
                .add(at)
                .copy_to_nonoverlapping(first.as_mut_ptr(), count);
            self.second
                .add(at)
                .copy_to_nonoverlapping(second.as_mut_ptr(), count);
            A::load::<I>(first.as_ptr()).sub(B::load::<I>(second.as_ptr()))
        }
    }
}

/// Σ (first − second)². The arrays hold what their `len` says.
pub struct SumOfSquares<A, B>(pub Pair<A, B>);

impl<R: Real, A: Operand<Real = R>, B: Operand<Real = R>> Kernel for SumOfSquares<A, B> {
    type Output = f64;

    #[inline(always)]
    fn run<I: Isa>(self) -> f64 {
        let pair = self.0;
        let lanes = <VectorOf<I, R> as Vector>::LANES;
        let mut sums = [<VectorOf<I, R> as Vector>::splat(R::ZERO); CHAINS];
        let (whole, vectors) = (
            pair.len - pair.len % (CHAINS * lanes),
            pair.len - pair.len % lanes,
        );
        // SAFETY: all reads are of elements below `len`.
        unsafe {
            for start in (0..whole).step_by(CHAINS * lanes) {
                for (chain, sum) in sums.iter_mut().enumerate() {
                    pair.prefetch(start + chain * lanes);
                    let difference = pair.difference::<I>(start + chain * lanes);
                    *sum = difference.mul_add(difference, *sum);
                }
            }
            for (sum, at) in sums.iter_mut().zip((whole..vectors).step_by(lanes)) {
                let difference = pair.difference::<I>(at);
                *sum = difference.mul_add(difference, *sum);
            }
            if vectors < pair.len {
                let difference = pair.part::<I>(vectors, pair.len);
                sums[CHAINS - 1] = difference.mul_add(difference, sums[CHAINS - 1]);
            }
        }
        total(sums)
    }
}

/// Writes `scale·(first − second)` to `target`, which has room for it and is none of the two; with `stream` around the caches.
pub struct Scaled<A: Element, B> {
    pub pair: Pair<A, B>,
    pub scale: A::Real,
    pub target: *mut A,
    pub stream: bool,
}

impl<R: Real, A: Operand<Real = R>, B: Operand<Real = R>> Kernel for Scaled<A, B> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self) {
        let Scaled {
            pair,
            target,
            stream,
            ..
        } = self;
        let lanes = <VectorOf<I, R> as Vector>::LANES;
        let scale = <VectorOf<I, R> as Vector>::splat(self.scale);
        // Streamed stores are aligned: the elements before the first boundary are written apart.
        let head = if stream {
            pair.len.min(target.align_offset(lanes * size_of::<A>()))
        } else {
            0
        };
        let whole = head + (pair.len - head) / lanes * lanes;
        // SAFETY: all accesses are to elements below `len`.
        unsafe {
            self.write_part::<I>(0, head);
            for at in (head..whole).step_by(lanes) {
                pair.prefetch(at);
                let gradient = pair.difference::<I>(at).mul(scale);
                A::store::<I>(gradient, target.add(at), stream);
            }
            self.write_part::<I>(whole, pair.len);
        }
    }
}

impl<R: Real, A: Operand<Real = R>, B: Operand<Real = R>> Scaled<A, B> {
    /// Writes the elements from `at` to `end`, fewer than a vector's.
    ///
    /// # Safety
    /// `end` is at most the arrays' length.
    #[inline(always)]
    unsafe fn write_part<I: Isa>(&self, at: usize, end: usize) {
        if at == end {
            return;
        }
        let scale = <VectorOf<I, R> as Vector>::splat(self.scale);
        let mut gradient = [A::ZERO; MAX_LANES];
        // SAFETY: fewer elements than a vector has lanes, which are at most those of the array.
        unsafe {
            let vector = self.pair.part::<I>(at, end).mul(scale);
            A::store::<I>(vector, gradient.as_mut_ptr(), false);
            self.target
                .add(at)
                .copy_from_nonoverlapping(gradient.as_ptr(), end - at);
        }
    }
}
