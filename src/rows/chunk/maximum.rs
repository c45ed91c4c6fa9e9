//! The pass that finds the largest logit of a chunk.

use super::{Fold, UNROLL, fold, largest};
use crate::simd::{Element, Isa, Kernel, Level, Vector, dispatch};

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
                && let Some(largest) = by_bits(self.x, self.len)
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
unsafe fn by_bits<E: Element>(x: *const E, len: usize) -> Option<E::Real> {
    let (mut largest, mut smallest) = (i16::MIN, i16::MAX);
    // A plain loop, whose order does not matter: the compiler makes vectors of it.
    for index in 0..len {
        // SAFETY: the element is below `len`, and of 16 bits.
        let bits = unsafe { x.add(index).cast::<i16>().read_unaligned() };
        largest = largest.max(bits);
        smallest = smallest.min(bits);
    }
    let bits = if largest >= 0 { largest } else { smallest };
    // SAFETY: an `E` is a float of 16 bits.
    let value = unsafe { (&raw const bits).cast::<E>().read_unaligned() }.to_real();
    (!value.to_f64().is_nan()).then_some(value)
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
