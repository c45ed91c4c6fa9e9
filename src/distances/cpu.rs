//! Squared distances on the CPU.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};

use super::pass::{Operand, Pair, Scaled, SumOfSquares};
use super::{CHUNK, Samples};
use crate::array::{ArgumentError, Array, Dtype};
use crate::outputs;
use crate::simd::{Element, Level, dispatch, fence};
use crate::threads::for_each_range;

/// The body for the element types of the two matrices, which `Samples::check` let through.
macro_rules! with_types {
    ($samples:expr, |$a:ident, $b:ident| $body:expr) => {
        match $samples.first.dtype {
            Dtype::F16 => with_types!(f16, $samples.second, |$a, $b| $body),
            Dtype::Bf16 => with_types!(bf16, $samples.second, |$a, $b| $body),
            Dtype::F32 => with_types!(f32, $samples.second, |$a, $b| $body),
            _ => with_types!(f64, f64, |$a, $b| $body),
        }
    };
    ($first:ty, $second:ty, |$a:ident, $b:ident| $body:expr) => {{
        type $a = $first;
        type $b = $second;
        $body
    }};
    ($first:ty, $second:expr, |$a:ident, $b:ident| $body:expr) => {
        match $second.dtype {
            Dtype::F16 => with_types!($first, f16, |$a, $b| $body),
            Dtype::Bf16 => with_types!($first, bf16, |$a, $b| $body),
            _ => with_types!($first, f32, |$a, $b| $body),
        }
    };
}

/// Writes ‖first − second‖² of each sample into `out`.
///
/// # Safety
/// The views describe live memory; nobody else uses that of `out` during the call.
pub unsafe fn forward(samples: &Samples, out: &Array, threads: usize) -> Result<(), ArgumentError> {
    samples.check_forward(out)?;
    let level = Level::current()?;
    // f64 as bits, each written by one task.
    let partials: Vec<AtomicU64> = (0..samples.count() * samples.parts())
        .map(|_| AtomicU64::new(0))
        .collect();
    // SAFETY: the element types are those of the views.
    with_types!(samples, |A, B| unsafe {
        for_each_part(samples, threads, |index, sample, part| {
            let sum = dispatch(level, SumOfSquares(pair::<A, B>(samples, sample, part)));
            partials[index].store(sum.to_bits(), Ordering::Relaxed);
        });
    });
    for sample in 0..samples.count() {
        let parts = &partials[sample * samples.parts()..][..samples.parts()];
        let sum: f64 = parts
            .iter()
            .map(|part| f64::from_bits(part.load(Ordering::Relaxed)))
            .sum();
        // SAFETY: `out` is a contiguous vector of one number per sample, of one of these two types.
        unsafe {
            match out.dtype {
                Dtype::F64 => out.pointer::<f64>(sample as isize).write_unaligned(sum),
                _ => out
                    .pointer::<f32>(sample as isize)
                    .write_unaligned(sum as f32),
            }
        }
    }
    Ok(())
}

/// Writes 2·grads·(first − second), the gradient towards the first matrix, into `gradient`.
///
/// # Safety
/// The views describe live memory; nobody else uses that of `gradient` during the call.
pub unsafe fn backward(
    samples: &Samples,
    grads: &Array,
    gradient: &Array,
    threads: usize,
) -> Result<(), ArgumentError> {
    samples.check_backward(grads, gradient)?;
    let level = Level::current()?;
    let stream = outputs::streams(gradient);
    // SAFETY: the element types are those of the views; every part is written by one task.
    with_types!(samples, |A, B| unsafe {
        for_each_part(samples, threads, |_, sample, part| {
            let start = sample * samples.size() + part.start;
            dispatch(
                level,
                Scaled {
                    scale: real::<A>(2.0 * grads.read_float(sample)),
                    target: gradient.pointer::<A>(start as isize),
                    pair: pair::<A, B>(samples, sample, part),
                    stream,
                },
            );
            if stream {
                fence();
            }
        });
    });
    Ok(())
}

fn real<E: Element>(value: f64) -> E::Real {
    <E::Real as Element>::from_f64(value)
}

/// Calls `work` with the number, the sample and the elements of every chunk.
fn for_each_part(
    samples: &Samples,
    threads: usize,
    work: impl Fn(usize, usize, Range<usize>) + Sync,
) {
    let (size, parts) = (samples.size(), samples.parts());
    // As many chunks at a time as hold about CHUNK elements.
    let grain = CHUNK / size.clamp(1, CHUNK);
    for_each_range(threads, samples.count() * parts, grain, |range| {
        for index in range {
            let start = index % parts * CHUNK;
            work(index, index / parts, start..size.min(start + CHUNK));
        }
    });
}

/// # Safety
/// The matrices are of these types, and hold the elements `part` of `sample`.
unsafe fn pair<A: Operand, B: Operand>(
    samples: &Samples,
    sample: usize,
    part: Range<usize>,
) -> Pair<A, B> {
    let row = |view: &Array| view.offset(sample, 1) + part.start as isize;
    Pair {
        first: samples.first.pointer::<A>(row(&samples.first)),
        second: samples.second.pointer::<B>(row(&samples.second)),
        len: part.len(),
    }
}
