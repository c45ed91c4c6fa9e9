//! The pass that finds the largest logit of a chunk.

use super::super::simd::{Element, Isa, Kernel, Level, MAX_WORDS, Vector, Words, dispatch};
use super::{Fold, UNROLL, fold, largest};

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

impl<E: Element> Kernel for Maximum<E> {
    type Output = E::Real;

    #[inline(always)]
    fn run<I: Isa>(self) -> E::Real {
        // SAFETY: that of `maximum`; all elements of two bytes are floats of 16 bits.
        unsafe {
            if size_of::<E>() == size_of::<i16>()
                && let Some(largest) = by_bits::<I, E>(self.x, self.len)
            {
                return largest;
            }
            by_value::<I, E>(self.x, self.len)
        }
    }
}

/// # Safety
/// `len` elements can be read at `x`.
#[inline(always)]
unsafe fn by_value<I: Isa, E: Element>(x: *const E, len: usize) -> E::Real {
    let lowest = <E::Vector<I> as Vector>::splat(E::Real::NEG_INFINITY);
    let mut most = MaximumFold([lowest; UNROLL]);
    // SAFETY: passed on to the caller.
    unsafe { fold::<false, E, E::Vector<I>>(x, len, &mut most) };
    largest(most.0)
}

struct MaximumFold<V>([V; UNROLL]);

impl<V: Vector> Fold<V> for MaximumFold<V> {
    #[inline(always)]
    fn add(&mut self, chain: usize, x: V) {
        self.0[chain] = x.larger(self.0[chain]);
    }
}

/// As [`by_value`], from the bits as signed integers, without a conversion: positive floats rise with their integers, and
/// negative floats fall, so of a chunk without positive ones the smallest integer is the largest float. A positive NaN is
/// above all floats and a negative one below; `None` where that makes the result a NaN.
///
/// # Safety
/// As for [`by_value`]; an `E` is a float of 16 bits.
#[inline(always)]
unsafe fn by_bits<I: Isa, E: Element>(x: *const E, len: usize) -> Option<E::Real> {
    let mut extremes = Extremes {
        largest: [I::I16::splat(i16::MIN); UNROLL],
        smallest: [I::I16::splat(i16::MAX); UNROLL],
    };
    let step = UNROLL * I::I16::LANES;
    let whole = len - len % step;
    // SAFETY: all reads are of elements below `len`, or of the padded copy of the last ones; the types have the same size.
    let (largest, smallest) = unsafe {
        for start in (0..whole).step_by(step) {
            extremes.add(x.add(start).cast());
        }
        if whole < len {
            let mut rest = [E::NEG_INFINITY; UNROLL * MAX_WORDS];
            x.add(whole)
                .copy_to_nonoverlapping(rest.as_mut_ptr(), len - whole);
            extremes.add(rest.as_ptr().cast());
        }
        extremes.total()
    };
    let bits = if largest >= 0 { largest } else { smallest };
    // SAFETY: an `E` is a float of 16 bits.
    let value = unsafe { (&raw const bits).cast::<E>().read_unaligned() }.to_real();
    (!value.to_f64().is_nan()).then_some(value)
}

/// Running extremes of words.
struct Extremes<W> {
    largest: [W; UNROLL],
    smallest: [W; UNROLL],
}

impl<W: Words> Extremes<W> {
    /// # Safety
    /// A step's worth of words can be read at `words`.
    #[inline(always)]
    unsafe fn add(&mut self, words: *const i16) {
        for chain in 0..UNROLL {
            // SAFETY: passed on to the caller.
            let words = unsafe { W::load(words.add(chain * W::LANES)) };
            self.largest[chain] = words.larger(self.largest[chain]);
            self.smallest[chain] = words.smaller(self.smallest[chain]);
        }
    }

    /// The largest and the smallest word.
    #[inline(always)]
    fn total(&self) -> (i16, i16) {
        let ([first, second], [third, fourth]) = (self.largest, self.smallest);
        let (mut high, mut low) = ([i16::MIN; MAX_WORDS], [i16::MAX; MAX_WORDS]);
        first.larger(second).write(&mut high);
        third.smaller(fourth).write(&mut low);
        let (mut largest, mut smallest) = (i16::MIN, i16::MAX);
        for lane in 0..MAX_WORDS {
            largest = largest.max(high[lane]);
            smallest = smallest.min(low[lane]);
        }
        (largest, smallest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Checks every level against a plain loop, at lengths around the steps of all of them.
    fn check<E: Element>(values: &[f64]) {
        let all: Vec<E> = values.iter().copied().map(E::from_f64).collect();
        for len in [1, 15, 64, 65, all.len()] {
            let exact = all[..len]
                .iter()
                .map(|x| x.to_f64())
                .fold(f64::NEG_INFINITY, f64::max);
            for level in Level::available() {
                // SAFETY: there are `len` elements.
                let found = unsafe { maximum(level, all.as_ptr(), len) }.to_f64();
                assert_eq!(found, exact, "{level:?}, {len} of {:?}", &values[..2]);
            }
        }
    }

    #[test]
    fn the_largest_of_either_sign_is_found_among_nan() {
        const LEN: i32 = 200;
        let mixed = |i: i32| f64::from((i * 37) % 101) - 50.0;
        let negative = |i: i32| -0.5 - f64::from((i * 37) % 101);
        let sparse = |i: i32| {
            if i % 70 == 40 {
                -1e-3
            } else {
                f64::NEG_INFINITY
            }
        };
        let with = |special: f64, f: fn(i32) -> f64| {
            (0..LEN)
                .map(|i| if i % 5 == 3 { special } else { f(i) })
                .collect::<Vec<f64>>()
        };
        for special in [0.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for values in [
                with(special, mixed),
                with(special, negative),
                with(special, sparse),
                vec![special; LEN as usize],
            ] {
                check::<bf16>(&values);
                check::<f16>(&values);
                check::<f32>(&values);
            }
        }
    }
}
