//! Ragged reductions and scans on the CPU, accumulated in f64.

use std::ops::Range;
use std::sync::Mutex;

use super::Segments;
use crate::array::Element;
use crate::threads::for_each_range;

/// Elements that one thread should have to work on before another one is asked to help.
const GRAIN: usize = 1 << 14;

/// Sum of each segment; 0 for an empty one.
pub fn sum<T: Element>(values: &[T], segments: &Segments, out: &mut [f64], threads: usize) {
    reduce(values, segments, out, threads, sum_of);
}

/// Arithmetic mean of each segment; 0 for an empty one.
pub fn mean<T: Element>(values: &[T], segments: &Segments, out: &mut [f64], threads: usize) {
    reduce(values, segments, out, threads, |values| {
        sum_of(values) / values.len().max(1) as f64
    });
}

/// Largest element of each segment; −inf for an empty one, NaN if there is one.
pub fn max<T: Element>(values: &[T], segments: &Segments, out: &mut [f64], threads: usize) {
    reduce(values, segments, out, threads, max_of);
}

/// Smallest element of each segment; +inf for an empty one, NaN if there is one.
pub fn min<T: Element>(values: &[T], segments: &Segments, out: &mut [f64], threads: usize) {
    reduce(values, segments, out, threads, |values| {
        let smaller = |a: f64, x: f64| if x < a || x.is_nan() { x } else { a };
        values
            .iter()
            .fold(f64::INFINITY, |a, x| smaller(a, x.to_f64()))
    });
}

/// log Σ exp of each segment; −inf for an empty one.
pub fn logsumexp<T: Element>(values: &[T], segments: &Segments, out: &mut [f64], threads: usize) {
    reduce(values, segments, out, threads, |values| {
        let top = max_of(values);
        if top.is_infinite() {
            return top;
        }
        top + values
            .iter()
            .map(|x| (x.to_f64() - top).exp())
            .sum::<f64>()
            .ln()
    });
}

fn max_of<T: Element>(values: &[T]) -> f64 {
    let larger = |a: f64, x: f64| if x > a || x.is_nan() { x } else { a };
    values
        .iter()
        .fold(f64::NEG_INFINITY, |a, x| larger(a, x.to_f64()))
}

/// Eight running sums, so that the additions of a long segment need not wait for each other.
fn sum_of<T: Element>(values: &[T]) -> f64 {
    let (blocks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += x.to_f64();
        }
    }
    let blocks: f64 = lanes.iter().sum();
    rest.iter().fold(blocks, |sum, x| sum + x.to_f64())
}

fn reduce<T: Element>(
    values: &[T],
    segments: &Segments,
    out: &mut [f64],
    threads: usize,
    of_segment: impl Fn(&[T]) -> f64 + Sync,
) {
    // As many segments per piece as hold about GRAIN elements.
    let average = (segments.len() / segments.count().max(1)).max(1);
    fill(out, threads, GRAIN.div_ceil(average), |start, out| {
        for (segment, out) in (start..).zip(out) {
            *out = of_segment(&values[segments.range(segment)]);
        }
    });
}

/// Writes each parent value to all elements of its segment.
pub fn expand(values: &[f64], segments: &Segments, out: &mut [f64], threads: usize) {
    by_segments(segments, out, threads, |range, out, base| {
        for segment in range {
            let elements = segments.range(segment);
            out[elements.start - base..elements.end - base].fill(values[segment]);
        }
    });
}

/// The 0-based index of each element in its segment.
pub fn positions(segments: &Segments, out: &mut [f64], threads: usize) {
    each_segment(segments, out, threads, |_, out| {
        for (position, out) in out.iter_mut().enumerate() {
            *out = position as f64;
        }
    });
}

/// First (or last) element of each segment; 0 for an empty one.
pub fn select(values: &[f64], segments: &Segments, last: bool, out: &mut [f64], threads: usize) {
    reduce(values, segments, out, threads, |values| {
        let end = if last { values.last() } else { values.first() };
        end.copied().unwrap_or(0.0)
    });
}

/// Each parent value at the first (or last) element of its segment, 0 elsewhere; the transpose of [`select`].
pub fn place(values: &[f64], segments: &Segments, last: bool, out: &mut [f64], threads: usize) {
    each_segment(segments, out, threads, |segment, out| {
        out.fill(0.0);
        let end = if last {
            out.last_mut()
        } else {
            out.first_mut()
        };
        if let Some(end) = end {
            *end = values[segment];
        }
    });
}

/// How a scan runs over each segment.
#[derive(Clone, Copy)]
pub struct Scan<'a> {
    /// From the end to the start (a suffix sum).
    pub reverse: bool,
    /// Factor per step.
    pub discount: f64,
    /// Where not 0 at t, nothing is carried between t-1 and t.
    pub reset: Option<&'a [f64]>,
}

/// The inclusive discounted sum inside each segment.
pub fn scan(values: &[f64], segments: &Segments, how: Scan, out: &mut [f64], threads: usize) {
    each_segment(segments, out, threads, |segment, out| {
        let elements = segments.range(segment);
        let values = &values[elements.clone()];
        let reset = how.reset.map(|reset| &reset[elements]);
        // Whether nothing is carried between position t-1 and t.
        let cut = |t: usize| reset.is_some_and(|reset| reset[t] != 0.0);
        let mut carried = 0.0;
        if how.reverse {
            for t in (0..values.len()).rev() {
                out[t] = values[t] + carried;
                carried = if cut(t) { 0.0 } else { how.discount * out[t] };
            }
        } else {
            for t in 0..values.len() {
                out[t] = values[t] + if cut(t) { 0.0 } else { carried };
                carried = how.discount * out[t];
            }
        }
    });
}

/// `values[t - by]` inside each segment, `fill` where that lies outside of it.
pub fn shift(
    values: &[f64],
    segments: &Segments,
    by: i64,
    fill: f64,
    out: &mut [f64],
    threads: usize,
) {
    each_segment(segments, out, threads, |segment, out| {
        let values = &values[segments.range(segment)];
        let steps = usize::try_from(by.unsigned_abs())
            .unwrap_or(usize::MAX)
            .min(values.len());
        let kept = values.len() - steps;
        if by >= 0 {
            out[..steps].fill(fill);
            out[steps..].copy_from_slice(&values[..kept]);
        } else {
            out[..kept].copy_from_slice(&values[steps..]);
            out[kept..].fill(fill);
        }
    });
}

/// The stable order of the keys inside each segment, NaN last: for each sorted place, the index of its element.
pub fn order(keys: &[f64], segments: &Segments, descending: bool, out: &mut [f64], threads: usize) {
    let compare = |a: usize, b: usize| {
        let (a, b) = (keys[a], keys[b]);
        // NaN keys compare equal to each other and greater than any number, whichever the direction.
        match a.partial_cmp(&b) {
            Some(order) if descending => order.reverse(),
            Some(order) => order,
            None => a.is_nan().cmp(&b.is_nan()),
        }
    };
    each_segment(segments, out, threads, |segment, out| {
        let mut indices: Vec<usize> = segments.range(segment).collect();
        indices.sort_by(|&a, &b| compare(a, b));
        for (out, index) in out.iter_mut().zip(indices) {
            // Exact: no array has 2^53 elements.
            *out = index as f64;
        }
    });
}

/// The value of one element of each ordered pair; pairs are row-major in each segment.
pub fn project(values: &[f64], segments: &Segments, second: bool, out: &mut [f64]) {
    let mut base = 0;
    for segment in 0..segments.count() {
        let values = &values[segments.range(segment)];
        for (row, &value) in values.iter().enumerate() {
            let out = &mut out[base + row * values.len()..][..values.len()];
            if second {
                out.copy_from_slice(values);
            } else {
                out.fill(value);
            }
        }
        base += values.len() * values.len();
    }
}

/// The sum over the pairs in which each element is the first (or second) one; the transpose of [`project`].
pub fn collapse(values: &[f64], segments: &Segments, second: bool, out: &mut [f64]) {
    let mut base = 0;
    for segment in 0..segments.count() {
        let out = &mut out[segments.range(segment)];
        let size = out.len();
        let pairs = &values[base..base + size * size];
        if second {
            out.fill(0.0);
            for row in pairs.chunks_exact(size.max(1)) {
                for (out, value) in out.iter_mut().zip(row) {
                    *out += value;
                }
            }
        } else {
            for (out, row) in out.iter_mut().zip(pairs.chunks_exact(size.max(1))) {
                *out = sum_of(row);
            }
        }
        base += size * size;
    }
}

/// Lets threads fill pieces of `grain` elements of `out`; `work` gets the index of a piece's first element.
fn fill(out: &mut [f64], threads: usize, grain: usize, work: impl Fn(usize, &mut [f64]) + Sync) {
    if threads <= 1 || out.len() <= grain {
        work(0, out);
        return;
    }
    let pieces = (0..).step_by(grain).zip(out.chunks_mut(grain));
    for_each(threads, pieces, |(start, piece)| work(start, piece));
}

/// Lets threads fill the segments of `out`; `work` gets a segment and its elements.
fn each_segment(
    segments: &Segments,
    out: &mut [f64],
    threads: usize,
    work: impl Fn(usize, &mut [f64]) + Sync,
) {
    by_segments(segments, out, threads, |range, out, base| {
        for segment in range {
            let elements = segments.range(segment);
            work(
                segment,
                &mut out[elements.start - base..elements.end - base],
            );
        }
    });
}

/// Lets threads fill runs of consecutive segments of `out`, each run about GRAIN elements long. `work` gets the
/// segments of a run, their elements, and the index of the first of these.
fn by_segments(
    segments: &Segments,
    out: &mut [f64],
    threads: usize,
    work: impl Fn(Range<usize>, &mut [f64], usize) + Sync,
) {
    if threads <= 1 || out.len() <= GRAIN {
        work(0..segments.count(), out, 0);
        return;
    }
    for_each(
        threads,
        runs(segments, out).into_iter(),
        |(range, piece)| {
            let base = segments.span(range.clone()).start;
            work(range, piece, base);
        },
    );
}

/// Cuts `out` into runs of consecutive segments.
fn runs<'a>(segments: &Segments, out: &'a mut [f64]) -> Vec<(Range<usize>, &'a mut [f64])> {
    let mut runs = Vec::new();
    let (mut rest, mut first, mut taken) = (out, 0, 0);
    for segment in 0..segments.count() {
        let end = segments.range(segment).end;
        if end - taken >= GRAIN || segment + 1 == segments.count() {
            let (piece, remaining) = rest.split_at_mut(end - taken);
            runs.push((first..segment + 1, piece));
            (rest, first, taken) = (remaining, segment + 1, end);
        }
    }
    runs
}

/// Lets threads work on the items one by one, in no fixed order.
pub fn for_each<I: Iterator + Send>(threads: usize, items: I, work: impl Fn(I::Item) + Sync) {
    if threads <= 1 {
        return items.for_each(work);
    }
    let queue = Mutex::new(items);
    // Each thread drains the queue.
    for_each_range(threads, threads, 1, |_| {
        // A thread that panicked held the lock only while taking its item: the queue is intact.
        let take = || {
            let mut queue = queue
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            queue.next()
        };
        while let Some(item) = take() {
            work(item);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOWEST: f64 = f64::NEG_INFINITY;

    fn ragged() -> Segments {
        Segments::Ragged(vec![0, 0, 3, 3, 4])
    }

    fn filled(len: usize, write: impl FnOnce(&mut [f64])) -> Vec<f64> {
        let mut out = vec![f64::NAN; len];
        write(&mut out);
        out
    }

    #[test]
    fn reductions_of_empty_segments() {
        let values = [1.0_f32, 2.0, 4.0, 8.0];
        let of = |reduce: fn(&[f32], &Segments, &mut [f64], usize)| {
            filled(4, |out| reduce(&values, &ragged(), out, 1))
        };
        assert_eq!(of(sum), [0.0, 7.0, 0.0, 8.0]);
        assert_eq!(of(mean), [0.0, 7.0 / 3.0, 0.0, 8.0]);
        assert_eq!(of(max), [LOWEST, 4.0, LOWEST, 8.0]);
        assert_eq!(of(min), [f64::INFINITY, 1.0, f64::INFINITY, 8.0]);
        let levels = of(logsumexp);
        assert_eq!([levels[0], levels[2], levels[3]], [LOWEST, LOWEST, 8.0]);
    }

    #[test]
    fn special_values_survive_reductions() {
        let one = Segments::Whole(2);
        let of = |reduce: fn(&[f64], &Segments, &mut [f64], usize), values: [f64; 2]| {
            filled(1, |out| reduce(&values, &one, out, 1))[0]
        };
        assert!(of(max, [f64::NAN, 1.0]).is_nan() && of(max, [1.0, f64::NAN]).is_nan());
        assert!(of(min, [f64::NAN, 1.0]).is_nan() && of(min, [1.0, f64::NAN]).is_nan());
        assert!(of(logsumexp, [f64::NAN, 1.0]).is_nan());
        assert_eq!(of(logsumexp, [LOWEST, LOWEST]), LOWEST);
        assert_eq!(of(logsumexp, [f64::INFINITY, 0.0]), f64::INFINITY);
        assert_eq!(of(logsumexp, [1000.0, 1000.0]), 1000.0 + 2.0_f64.ln());
    }

    #[test]
    fn sums_of_f32_are_accumulated_in_f64() {
        let values = vec![0.1_f32; 1_000_003];
        let total = filled(1, |out| {
            sum(&values, &Segments::Whole(values.len()), out, 1)
        })[0];
        let expected = f64::from(0.1_f32) * values.len() as f64;
        assert!((total - expected).abs() < 1e-7, "{total}");
    }

    #[test]
    fn expansion_and_placement_skip_empty_segments() {
        let values = [9.0, 1.0, 9.0, 2.0];
        let expanded = filled(4, |out| expand(&values, &ragged(), out, 1));
        assert_eq!(expanded, [1.0, 1.0, 1.0, 2.0]);
        let first = filled(4, |out| place(&values, &ragged(), false, out, 1));
        assert_eq!(first, [1.0, 0.0, 0.0, 2.0]);
        let last = filled(4, |out| place(&values, &ragged(), true, out, 1));
        assert_eq!(last, [0.0, 0.0, 1.0, 2.0]);
        let selected = filled(4, |out| select(&expanded, &ragged(), true, out, 1));
        assert_eq!(selected, [0.0, 1.0, 0.0, 2.0]);
    }

    #[test]
    fn shifts_stay_inside_segments() {
        let values = [1.0, 2.0, 3.0, 4.0];
        let by = |steps| filled(4, |out| shift(&values, &ragged(), steps, -1.0, out, 1));
        assert_eq!(by(1), [-1.0, 1.0, 2.0, -1.0]);
        assert_eq!(by(-2), [3.0, -1.0, -1.0, -1.0]);
        assert_eq!(by(i64::MIN), [-1.0; 4]);
        assert_eq!(by(i64::MAX), [-1.0; 4]);
    }

    #[test]
    fn pairs_are_row_major() {
        let segments = Segments::Ragged(vec![0, 2, 2, 3]);
        let values = [1.0, 2.0, 3.0];
        let rows = filled(5, |out| project(&values, &segments, false, out));
        assert_eq!(rows, [1.0, 1.0, 2.0, 2.0, 3.0]);
        let columns = filled(5, |out| project(&values, &segments, true, out));
        assert_eq!(columns, [1.0, 2.0, 1.0, 2.0, 3.0]);
        let pairs = [1.0, 2.0, 4.0, 8.0, 16.0];
        let over_second = filled(3, |out| collapse(&pairs, &segments, false, out));
        assert_eq!(over_second, [3.0, 12.0, 16.0]);
        let over_first = filled(3, |out| collapse(&pairs, &segments, true, out));
        assert_eq!(over_first, [5.0, 10.0, 16.0]);
    }
}
