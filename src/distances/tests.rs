//! The passes at every instruction set, in every dtype, at lengths around those of vectors.

use half::{bf16, f16};

use super::pass::{Operand, Pair, Scaled, SumOfSquares};
use super::*;
use crate::simd::{Element, Level, dispatch};

const LENGTHS: [usize; 9] = [0, 1, 7, 16, 63, 64, 65, 130, 1001];

fn numbers<E: Element>(len: usize, seed: u64) -> Vec<E> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            E::from_f64((state >> 40) as f64 / f64::from(1 << 23) - 1.0)
        })
        .collect()
}

fn check<A: Operand, B: Operand<Real = A::Real>>(roundings: f64, tolerance: f64) {
    for level in Level::available() {
        for len in LENGTHS {
            let (first, second) = (numbers::<A>(len, 1), numbers::<B>(len, 2));
            let pair = Pair {
                first: first.as_ptr(),
                second: second.as_ptr(),
                len,
            };
            let differences: Vec<f64> = first
                .iter()
                .zip(&second)
                .map(|(a, b)| a.to_f64() - b.to_f64())
                .collect();
            let exact: f64 = differences.iter().map(|d| d * d).sum();
            let found = dispatch(level, SumOfSquares(pair));
            assert!(
                (found - exact).abs() <= roundings * exact,
                "{level:?}: {found} of {len} elements, expected {exact}"
            );
            for stream in [false, true] {
                let mut gradient = vec![A::from_f64(7.0); len + 1];
                let scale = <A::Real as Element>::from_f64(0.5);
                let target = gradient.as_mut_ptr();
                dispatch(
                    level,
                    Scaled {
                        pair,
                        scale,
                        target,
                        stream,
                    },
                );
                for (got, difference) in gradient.iter().zip(&differences) {
                    assert!(
                        (got.to_f64() - 0.5 * difference).abs() <= tolerance,
                        "{level:?}"
                    );
                }
                assert_eq!(
                    gradient[len].to_f64(),
                    7.0,
                    "{level:?}: written behind the end"
                );
            }
        }
    }
}

#[test]
fn every_pair_of_dtypes() {
    check::<f64, f64>(1e-13, 1e-15);
    check::<f32, f32>(1e-6, 1e-7);
    check::<f32, f16>(1e-6, 1e-7);
    check::<f32, bf16>(1e-6, 1e-7);
    check::<f16, f32>(1e-6, 1e-3);
    check::<f16, f16>(1e-6, 1e-3);
    check::<f16, bf16>(1e-6, 1e-3);
    check::<bf16, f32>(1e-6, 4e-3);
    check::<bf16, f16>(1e-6, 4e-3);
    check::<bf16, bf16>(1e-6, 4e-3);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let view = |dtype: &str, shape: &[usize], strides: &[isize]| {
        // SAFETY: nothing is read.
        unsafe { Array::new(4096, Dtype::from_name(dtype).unwrap(), shape, strides) }.unwrap()
    };
    let refused = |first, second| Samples::new(first, second).err().unwrap().to_string();
    let good = || view("f32", &[2, 3], &[3, 1]);
    assert!(refused(view("f32", &[2, 3], &[1, 2]), good()).starts_with("first: shape [2, 3]"));
    assert!(refused(view("i64", &[2, 3], &[3, 1]), good()).starts_with("first: dtype i64"));
    assert!(refused(good(), view("f32", &[2, 4], &[4, 1])).starts_with("second: shape [2, 4]"));
    assert!(refused(good(), view("f64", &[2, 3], &[3, 1])).starts_with("second: dtype f64"));
    let samples = Samples::new(good(), view("f16", &[2, 3], &[9, 1])).unwrap();
    assert!(samples.check_forward(&view("f64", &[2], &[1])).is_err());
    assert!(samples.check_forward(&view("f32", &[2], &[1])).is_ok());
    let grads = view("f32", &[2], &[1]);
    assert!(
        samples
            .check_backward(&grads, &view("f16", &[2, 3], &[3, 1]))
            .is_err()
    );
    assert!(samples.check_backward(&grads, &good()).is_ok());
}
