//! Rankings of many responses at once, inside the groups of one prompt each.
//!
//! Everything is exact and in a fixed order, so the result does not depend on the number of threads.

pub mod pairs;
pub mod rank;

/// Elements that one thread should have to work on before another one is asked to help.
const GRAIN: usize = 1 << 14;

/// Cuts `0..offsets.len() - 1` segments into runs of consecutive ones of about GRAIN elements: the first segment of each
/// run, then the number of segments.
fn run_starts(offsets: &[i64]) -> Vec<usize> {
    let last = offsets.len() - 1;
    let mut starts = vec![0];
    let mut taken = 0;
    for (segment, &offset) in offsets.iter().enumerate().take(last).skip(1) {
        if (offset - taken) as usize >= GRAIN {
            starts.push(segment);
            taken = offset;
        }
    }
    if last > 0 {
        starts.push(last);
    }
    starts
}
