//! The exponential function and tanh of vectors.
//!
//! `e^x = 2^(n/S) · e^r` with n the integer next to S·x/log 2 and |r| ≤ log(2)/2/S. A vector brings a table of the S powers
//! of an octave, if it can look into one in a register, and a polynomial for e^r, shorter the finer the steps: of degree 2
//! with AVX-512 (S = 32), 3 with AVX2 (S = 8), and without a table (S = 1) 6 in f32 and 11 in f64.
//!
//! The error of [`exp`] is at most 2 ulp wherever the result is a normal number; below that the result is exactly 0. Where
//! exponentials are added up, [`Exp::in_sum`] saves one operation of twelve.

use crate::simd::{Element, Real, Vector};

/// x taken apart, given the number of steps and the polynomial.
struct Reduced<V> {
    /// n + `ROUNDER`, whose low bits are the integer n.
    shifted: V,
    r: V,
    /// (e^r − 1)/r
    slope: V,
}

/// With `ROUNDED`, log 2 is a number of the vector's, not the sum of two.
#[inline(always)]
fn reduce<V: Vector, const ROUNDED: bool>(
    x: V,
    steps: V::Scalar,
    polynomial: &[V::Scalar],
) -> Reduced<V> {
    let rounder = V::splat(V::Scalar::ROUNDER);
    let shifted = x.mul_add(V::splat(V::Scalar::LOG2_E * steps), rounder);
    let n = shifted.sub(rounder);
    // The number of steps is a power of two, so all quotients keep their digits.
    let r = if ROUNDED {
        n.mul_add(V::splat(V::Scalar::MINUS_LN_2 / steps), x)
    } else {
        let [high, low] = V::Scalar::MINUS_LN_2_PARTS;
        n.mul_add(V::splat(low / steps), n.mul_add(V::splat(high / steps), x))
    };
    // A plain loop: the closure of an iterator would be compiled without the vectors' instructions.
    let mut slope = V::splat(polynomial[polynomial.len() - 1]);
    for index in (0..polynomial.len() - 1).rev() {
        slope = slope.mul_add(r, V::splat(polynomial[index]));
    }
    Reduced { shifted, r, slope }
}

/// e^x before its last operation, which depends on what becomes of it; for x up to 88 in f32 and 709 in f64 (kernels pass
/// differences from a maximum). NaN gives NaN.
pub struct Exp<V: Vector> {
    /// 2^(n/S)
    power: V,
    r: V,
    slope: V,
    is_normal: V::Mask,
}

impl<V: Vector> Exp<V> {
    /// Within 2 ulp.
    #[inline(always)]
    fn exact(x: V) -> Exp<V> {
        Exp::new::<false>(x)
    }

    /// For a term of a sum that has a 1 among its terms. Log 2 is rounded, where that product is not: in f32 the relative
    /// error is at most 2^-22 + 2.8e-9·|x|, the second part of it at most 1.1e-9 of the sum.
    #[inline(always)]
    pub fn in_sum(x: V) -> Exp<V> {
        if V::FUSES {
            Exp::new::<true>(x)
        } else {
            Exp::new::<false>(x)
        }
    }

    #[inline(always)]
    fn new<const ROUNDED: bool>(x: V) -> Exp<V> {
        let Reduced { shifted, r, slope } = reduce::<V, ROUNDED>(x, V::STEPS, V::EXP_POLYNOMIAL);
        Exp {
            power: V::two_to_steps(shifted),
            r,
            slope,
            is_normal: x.not_less(V::splat(V::Scalar::EXP_UNDERFLOW)),
        }
    }

    #[inline(always)]
    pub fn value(&self) -> V {
        let growth = self.slope.mul(self.r);
        growth
            .mul_add(self.power, self.power)
            .or_zero(self.is_normal)
    }

    /// e^x but for another rounding
    #[inline(always)]
    pub fn rough(&self) -> V {
        let factor = self.slope.mul_add(self.r, V::splat(V::Scalar::ONE));
        self.power.mul(factor).or_zero(self.is_normal)
    }

    /// `sum + e^x`
    #[inline(always)]
    pub fn add_to(&self, sum: V) -> V {
        let factor = self.slope.mul_add(self.r, V::splat(V::Scalar::ONE));
        sum.add_product_where(self.is_normal, self.power, factor)
    }
}

/// e^x
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    Exp::exact(x).value()
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
    // In whole octaves, where the polynomial is as good for e^r − 1 as for e^r.
    let Reduced { shifted, r, slope } = reduce::<V, false>(
        zero.sub(two.mul(magnitude)),
        V::Scalar::ONE,
        V::Scalar::OCTAVE_POLYNOMIAL,
    );
    let tail = slope.mul(r);
    let power = V::two_to(shifted);
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
    use crate::simd::{Isa, Kernel, Level, MAX_LANES, Memory, dispatch};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        /// 0 + e^x, as in a sum
        Term,
        Tanh,
    }
    use Function::*;

    /// A function of one vector, applied to an array.
    struct Map<'a, R> {
        values: &'a [R],
        function: Function,
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
                match self.function {
                    Exp => exp(vector),
                    Term => super::Exp::in_sum(vector).add_to(Vector::splat(R::ZERO)),
                    Tanh => tanh(vector).0,
                }
                .write(&mut padded);
                results.extend_from_slice(&padded[..values.len()]);
            }
            results
        }
    }

    fn apply<R: Real>(level: Level, function: Function, values: &[R]) -> Vec<R> {
        dispatch(level, Map { values, function })
    }

    fn ulp_f32(exact: f64) -> f64 {
        let exponent = exact.abs().log2().floor() as i32;
        2.0f64.powi(exponent.max(-126) - 23)
    }

    /// Every 1499th float from -87.34 to 88, about 1.4 million of both signs.
    fn normal_range() -> Vec<f32> {
        let negative = (0..(-87.336_54f32).to_bits() - (1 << 31))
            .step_by(1499)
            .map(|bits| -f32::from_bits(bits));
        let positive = (0..88f32.to_bits()).step_by(1499).map(f32::from_bits);
        negative.chain(positive).chain([-87.336_54, 88.0]).collect()
    }

    #[test]
    fn exp_f32_is_within_two_ulp_wherever_normal() {
        let values = normal_range();
        for level in Level::available() {
            for (result, x) in apply(level, Exp, &values).iter().zip(&values) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(*result) - exact).abs() / ulp_f32(exact);
                assert!(error <= 2.0, "{level:?}: exp({x}) errs by {error} ulp");
            }
        }
    }

    #[test]
    fn a_term_of_a_sum_is_within_its_relative_error() {
        let values = normal_range();
        for level in Level::available() {
            for (result, x) in apply(level, Term, &values).iter().zip(&values) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(*result) / exact - 1.0).abs();
                let allowed = 0.5f64.powi(22) + 2.8e-9 * f64::from(x.abs());
                assert!(error <= allowed, "{level:?}: exp({x}) errs by {error}");
            }
        }
    }

    #[test]
    fn exp_f64_is_within_two_ulp() {
        let values: Vec<f64> = (-708_000..709_000)
            .map(|i| f64::from(i) * 1.000_3e-3)
            .collect();
        for level in Level::available() {
            for (result, x) in apply(level, Exp, &values).iter().zip(&values) {
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
        let cases = Level::available().flat_map(|level| [(level, Exp), (level, Term)]);
        for (level, function) in cases {
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
            let results = apply(level, function, &f32s);
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
            let results = apply(level, function, &f64s);
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
            for (result, x) in apply(level, Tanh, &values).iter().zip(&values) {
                assert!(
                    (result - x.tanh()).abs() <= 1e-15 * x.tanh().abs(),
                    "{level:?}: tanh({x}) = {result}"
                );
            }
            for (result, x) in apply(level, Tanh, &singles).iter().zip(&singles) {
                let exact = f64::from(*x).tanh();
                assert!(
                    (f64::from(*result) - exact).abs() <= 4e-7 * exact.abs(),
                    "{level:?}: tanh({x}) = {result}"
                );
            }
            assert!(apply(level, Tanh, &[f64::NAN])[0].is_nan());
        }
    }
}
