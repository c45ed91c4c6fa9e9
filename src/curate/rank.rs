//! The order of responses inside their groups.

use std::cmp::Ordering;

use super::run_starts;
use crate::segments::cpu::for_each;

/// Orders elements by group, inside a group by descending score and then by index.
///
/// `offsets` gets where each of its `len - 1` groups begins in `order`, and the end. Scores are not NaN. A group id that
/// is no group is an error: its index.
pub fn rank(
    scores: &[f64],
    groups: &[i64],
    offsets: &mut [i64],
    order: &mut [i64],
    threads: usize,
) -> Result<(), usize> {
    by_group(groups, offsets, order)?;
    let starts = run_starts(offsets);
    let mut runs = Vec::with_capacity(starts.len());
    let mut rest = order;
    for run in starts.windows(2) {
        let bounds = &offsets[run[0]..=run[1]];
        let (piece, remaining) = rest.split_at_mut((bounds[bounds.len() - 1] - bounds[0]) as usize);
        runs.push((bounds, piece));
        rest = remaining;
    }
    for_each(threads, runs.into_iter(), |(bounds, piece)| {
        let mut keyed = Vec::new();
        for group in bounds.windows(2) {
            let span = (group[0] - bounds[0]) as usize..(group[1] - bounds[0]) as usize;
            sort_group(scores, &mut piece[span], &mut keyed);
        }
    });
    Ok(())
}

/// The first of the best and the last of the worst elements of each group; -1 for an empty one. Errors as in [`rank`].
pub fn ends(
    scores: &[f64],
    groups: &[i64],
    best: &mut [i64],
    worst: &mut [i64],
) -> Result<(), usize> {
    best.fill(-1);
    worst.fill(-1);
    for (index, (&score, &group)) in scores.iter().zip(groups).enumerate() {
        let group = usize::try_from(group)
            .ok()
            .filter(|&group| group < best.len())
            .ok_or(index)?;
        if best[group] < 0 || score > scores[best[group] as usize] {
            best[group] = index as i64;
        }
        if worst[group] < 0 || score <= scores[worst[group] as usize] {
            worst[group] = index as i64;
        }
    }
    Ok(())
}

/// A stable counting sort: the elements of each group in the order they have.
fn by_group(groups: &[i64], offsets: &mut [i64], order: &mut [i64]) -> Result<(), usize> {
    let count = offsets.len() - 1;
    offsets.fill(0);
    for (index, &group) in groups.iter().enumerate() {
        let group = usize::try_from(group).map_err(|_| index)?;
        if group >= count {
            return Err(index);
        }
        offsets[group + 1] += 1;
    }
    for group in 0..count {
        offsets[group + 1] += offsets[group];
    }
    let mut next = offsets[..count].to_vec();
    for (index, &group) in groups.iter().enumerate() {
        let place = &mut next[group as usize];
        order[*place as usize] = index as i64;
        *place += 1;
    }
    Ok(())
}

/// Sorts the elements of one group; `keyed` is scratch.
fn sort_group(scores: &[f64], elements: &mut [i64], keyed: &mut Vec<(f64, i64)>) {
    // The scores are gathered once: comparing would fetch each of them log K times from all over the array.
    keyed.clear();
    keyed.extend(
        elements
            .iter()
            .map(|&element| (scores[element as usize], element)),
    );
    keyed.sort_unstable_by(|a, b| {
        let descending = b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal);
        descending.then(a.1.cmp(&b.1))
    });
    for (element, (_, sorted)) in elements.iter_mut().zip(keyed.iter()) {
        *element = *sorted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(scores: &[f64], groups: &[i64], count: usize) -> (Vec<i64>, Vec<i64>) {
        let (mut offsets, mut order) = (vec![7; count + 1], vec![7; scores.len()]);
        rank(scores, groups, &mut offsets, &mut order, 2).unwrap();
        (offsets, order)
    }

    #[test]
    fn equal_scores_keep_their_order() {
        let (offsets, order) = ranked(&[1.0, 3.0, 1.0, 0.0, 3.0, -0.0], &[2, 0, 2, 0, 0, 0], 4);
        assert_eq!(offsets, [0, 4, 4, 6, 6]);
        assert_eq!(order, [1, 4, 3, 5, 0, 2]);
    }

    #[test]
    fn ends_are_those_of_the_ranking() {
        let (scores, groups) = ([1.0, 3.0, 1.0, 0.0, 3.0, -0.0], [2, 0, 2, 0, 0, 0]);
        let (mut best, mut worst) = ([0; 3], [0; 3]);
        ends(&scores, &groups, &mut best, &mut worst).unwrap();
        assert_eq!((best, worst), ([1, -1, 0], [5, -1, 2]));
        assert_eq!(ends(&[0.0], &[-1], &mut best, &mut worst), Err(0));
    }

    #[test]
    fn nothing_is_ranked_as_nothing() {
        assert_eq!(ranked(&[], &[], 0), (vec![0], vec![]));
        assert_eq!(ranked(&[], &[], 2), (vec![0, 0, 0], vec![]));
    }

    #[test]
    fn an_id_that_is_no_group_is_named() {
        let (mut offsets, mut order) = (vec![0; 3], vec![0; 2]);
        for wrong in [2, -1] {
            assert_eq!(
                rank(&[0.0, 1.0], &[1, wrong], &mut offsets, &mut order, 1),
                Err(1)
            );
        }
    }

    #[test]
    fn threads_change_nothing() {
        let count = 5 * super::super::GRAIN;
        let groups: Vec<i64> = (0..count as i64).map(|i| (i * 7919) % 10_007).collect();
        let scores: Vec<f64> = (0..count).map(|i| ((i * 31) % 17) as f64).collect();
        let [serial, parallel] = [1, 4].map(|threads| {
            let (mut offsets, mut order) = (vec![0; 10_008], vec![0; count]);
            rank(&scores, &groups, &mut offsets, &mut order, threads).unwrap();
            (offsets, order)
        });
        let mut expected: Vec<i64> = (0..count as i64).collect();
        expected.sort_by(|&a, &b| {
            let (a, b) = (a as usize, b as usize);
            groups[a]
                .cmp(&groups[b])
                .then(scores[b].total_cmp(&scores[a]))
        });
        assert_eq!(serial.1, expected);
        assert_eq!(serial, parallel);
    }
}
