//! The exponential function and tanh of vectors.
//!
//! `e^x = 2^n · e^r` with n the integer next to x/log 2 and |r| ≤ log(2)/2, where a polynomial gives e^r − 1. The error of
//! [`exp`] is at most 2 ulp wherever the result is a normal number; below that the result is exactly 0.

use super::simd::{Element, Real, Vector};

/// x taken apart: `e^x = 2^n · (1 + r·slope)`.
struct Reduced<V> {
    n: V,
    /// n + `ROUNDER`, whose low bits are the integer n.
    shifted: V,
    r: V,
    /// (e^r − 1)/r
    slope: V,
}

#[inline(always)]
fn reduce<V: Vector>(x: V) -> Reduced<V> {
    let [ln2_high, ln2_low] = V::Scalar::MINUS_LN_2;
    let rounder = V::splat(V::Scalar::ROUNDER);
    let shifted = x.mul_add(V::splat(V::Scalar::LOG2_E), rounder);
    let n = shifted.sub(rounder);
    let r = n.mul_add(V::splat(ln2_low), n.mul_add(V::splat(ln2_high), x));
    // A plain loop: the closure of an iterator would be compiled without the vectors' instructions.
    let coefficients = V::Scalar::EXP_POLYNOMIAL;
    let mut polynomial = V::splat(coefficients[coefficients.len() - 1]);
    for index in (0..coefficients.len() - 1).rev() {
        polynomial = polynomial.mul_add(r, V::splat(coefficients[index]));
    }
    let slope = polynomial.mul_add(r, V::splat(V::Scalar::ONE));
    Reduced {
        n,
        shifted,
        r,
        slope,
    }
}

/// e^x for x up to the logarithm of the largest number (kernels pass differences from a maximum). NaN gives NaN.
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    let one = V::splat(V::Scalar::ONE);
    let Reduced {
        n,
        shifted,
        r,
        slope,
    } = reduce(x);
    let is_normal = x.not_less(V::splat(V::Scalar::EXP_UNDERFLOW));
    slope
        .mul_add(r, one)
        .times_two_to(n, shifted)
        .or_zero(is_normal)
}

/// tanh x and its derivative 1 − tanh² x, without cancellation in either.
///
/// With `s = e^{−2|x|} − 1` both are quotients: `tanh |x| = −s/(2 + s)` and `1 − tanh² x = 4(1 + s)/(2 + s)²`.
#[inline(always)]
pub fn tanh<V: Vector>(x: V) -> (V, V) {
    let one = V::splat(V::Scalar::ONE);
    let two = one.add(one);
    let zero = V::splat(V::Scalar::ZERO);
    let magnitude = V::splat(V::Scalar::TANH_SATURATES).smaller(x.abs());
    let Reduced {
        n,
        shifted,
        r,
        slope,
    } = reduce(zero.sub(two.mul(magnitude)));
    let tail = slope.mul(r);
    let power = one.times_two_to(n, shifted);
    let s = power.mul_add(tail, power.sub(one));
    let reciprocal = one.div(two.add(s));
    let tanh = zero.sub(s).mul(reciprocal).with_sign_of(x);
    let twice = two.mul(reciprocal);
    let derivative = power.mul_add(tail, power).mul(twice.mul(twice));
    (tanh, derivative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::simd::{Isa, Kernel, Level, MAX_LANES, Memory, dispatch};

    /// A function of one vector, applied to an array.
    struct Map<'a, R> {
        values: &'a [R],
        tanh: bool,
    }

    impl<R: Real> Kernel for Map<'_, R> {
        type Output = Vec<R>;

        #[inline(always)]
        fn run<I: Isa>(self) -> Vec<R> {
            let mut results = Vec::with_capacity(self.values.len());
            let lanes = R::Vector::<I>::LANES;
            for values in self.values.chunks(lanes) {
                let mut padded = [R::ZERO; MAX_LANES];
                padded[..values.len()].copy_from_slice(values);
                // SAFETY: no vector has more than MAX_LANES lanes.
                let vector: R::Vector<I> = unsafe { Memory::load(padded.as_ptr()) };
                if self.tanh {
                    tanh(vector).0
                } else {
                    exp(vector)
                }
                .write(&mut padded);
                results.extend_from_slice(&padded[..values.len()]);
            }
            results
        }
    }

    fn apply<R: Real>(level: Level, tanh: bool, values: &[R]) -> Vec<R> {
        dispatch(level, Map { values, tanh })
    }

    fn ulp_f32(exact: f64) -> f64 {
        let exponent = exact.abs().log2().floor() as i32;
        2.0f64.powi(exponent.max(-126) - 23)
    }

    #[test]
    fn exp_f32_is_within_two_ulp_wherever_normal() {
        // Every 1499th float from -87.34 to 88.72, about 1.4 million of both signs.
        let negative = (0..(-87.336_54f32).to_bits() - (1 << 31))
            .step_by(1499)
            .map(|bits| -f32::from_bits(bits));
        let positive = (0..88.722_8f32.to_bits()).step_by(1499).map(f32::from_bits);
        let values: Vec<f32> = negative
            .chain(positive)
            .chain([-87.336_54, 88.722_8])
            .collect();
        for level in Level::available() {
            let worst = apply(level, false, &values)
                .iter()
                .zip(&values)
                .map(|(result, x)| {
                    let exact = f64::from(*x).exp();
                    (f64::from(*result) - exact).abs() / ulp_f32(exact)
                })
                .fold(0.0, f64::max);
            assert!(worst <= 2.0, "{level:?}: {worst} ulp");
        }
    }

    #[test]
    fn exp_f64_is_within_two_ulp() {
        let values: Vec<f64> = (-708_000..709_000)
            .map(|i| f64::from(i) * 1.000_3e-3)
            .collect();
        for level in Level::available() {
            for (result, x) in apply(level, false, &values).iter().zip(&values) {
                // The library's own exp is within 1 ulp.
                let exact = x.exp();
                assert!(
                    (result - exact).abs() <= 2.0 * (exact.next_up() - exact),
                    "{level:?}: exp({x}) = {result}"
                );
            }
        }
    }

    #[test]
    fn exp_at_special_points() {
        for level in Level::available() {
            let f32s = [
                0.0,
                -0.0,
                f32::NEG_INFINITY,
                -87.4,
                -104.0,
                -1e30,
                f32::MIN,
                f32::NAN,
                f32::from_bits(0x7fff_ffff),
            ];
            let results = apply(level, false, &f32s);
            assert_eq!(
                results[..7],
                [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                "{level:?}"
            );
            assert!(results[7].is_nan() && results[8].is_nan(), "{level:?}");
            let f64s = [
                0.0,
                f64::NEG_INFINITY,
                -709.0,
                -1e300,
                f64::from_bits(u64::MAX >> 1),
            ];
            let results = apply(level, false, &f64s);
            assert_eq!(results[..4], [1.0, 0.0, 0.0, 0.0], "{level:?}");
            assert!(results[4].is_nan(), "{level:?}");
        }
    }

    #[test]
    fn tanh_is_accurate_for_small_and_large_arguments() {
        let magnitudes = (0..4000)
            .map(|i| 1e-8 * 1.006f64.powi(i))
            .take_while(|x| *x < 40.0);
        let values: Vec<f64> = magnitudes
            .flat_map(|x| [x, -x])
            .chain([0.0, f64::INFINITY, f64::NEG_INFINITY])
            .collect();
        let singles: Vec<f32> = values.iter().map(|x| *x as f32).collect();
        for level in Level::available() {
            for (result, x) in apply(level, true, &values).iter().zip(&values) {
                assert!(
                    (result - x.tanh()).abs() <= 1e-15 * x.tanh().abs(),
                    "{level:?}: tanh({x}) = {result}"
                );
            }
            for (result, x) in apply(level, true, &singles).iter().zip(&singles) {
                let exact = f64::from(*x).tanh();
                assert!(
                    (f64::from(*result) - exact).abs() <= 4e-7 * exact.abs(),
                    "{level:?}: tanh({x}) = {result}"
                );
            }
            assert!(apply(level, true, &[f64::NAN])[0].is_nan());
        }
    }
}
