//! All pairs of a ranking whose scores differ by enough.

use super::run_starts;
use crate::segments::cpu::for_each;

/// For each place of the ranking, writes the first place of its group that it beats by more than 0 and at least
/// `min_gap`, or the group's end; returns how many pairs that makes.
pub fn first_beaten(
    scores: &[f64],
    order: &[i64],
    offsets: &[i64],
    min_gap: f64,
    first: &mut [i64],
) -> usize {
    let score = |place: usize| scores[order[place] as usize];
    let mut pairs = 0;
    for group in offsets.windows(2) {
        let (start, end) = (group[0] as usize, group[1] as usize);
        let mut beaten = start;
        for (place, first) in (start..end).zip(&mut first[start..end]) {
            let own = score(place);
            // Whoever is too close to a better one is too close to this one.
            while beaten < end && !(own > score(beaten) && own - score(beaten) >= min_gap) {
                beaten += 1;
            }
            *first = beaten as i64;
            pairs += end - beaten;
        }
    }
    pairs
}

/// Writes the elements of all pairs, by place of the chosen, then of the rejected.
pub fn write(
    order: &[i64],
    offsets: &[i64],
    first: &[i64],
    chosen: &mut [i64],
    rejected: &mut [i64],
    threads: usize,
) {
    let mut runs = Vec::new();
    let (mut chosen, mut rejected) = (chosen, rejected);
    for run in run_starts(offsets).windows(2) {
        let groups = &offsets[run[0]..=run[1]];
        let count = groups
            .windows(2)
            .map(|group| pairs_of(group, first))
            .sum::<usize>();
        let (own_chosen, rest_chosen) = chosen.split_at_mut(count);
        let (own_rejected, rest_rejected) = rejected.split_at_mut(count);
        runs.push((groups, own_chosen, own_rejected));
        (chosen, rejected) = (rest_chosen, rest_rejected);
    }
    for_each(
        threads,
        runs.into_iter(),
        |(groups, mut chosen, mut rejected)| {
            for group in groups.windows(2) {
                for place in group[0] as usize..group[1] as usize {
                    let beaten = &order[first[place] as usize..group[1] as usize];
                    chosen
                        .split_off_mut(..beaten.len())
                        .expect("counted")
                        .fill(order[place]);
                    rejected
                        .split_off_mut(..beaten.len())
                        .expect("counted")
                        .copy_from_slice(beaten);
                }
            }
        },
    );
}

fn pairs_of(group: &[i64], first: &[i64]) -> usize {
    first[group[0] as usize..group[1] as usize]
        .iter()
        .map(|&beaten| (group[1] - beaten) as usize)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(scores: &[f64], order: &[i64], offsets: &[i64], min_gap: f64) -> Vec<(i64, i64)> {
        let mut first = vec![0; scores.len()];
        let count = first_beaten(scores, order, offsets, min_gap, &mut first);
        let (mut chosen, mut rejected) = (vec![9; count], vec![9; count]);
        write(order, offsets, &first, &mut chosen, &mut rejected, 2);
        chosen.into_iter().zip(rejected).collect()
    }

    #[test]
    fn ties_are_no_pairs() {
        let scores = [5.0, 2.0, 2.0, 7.0];
        assert_eq!(
            all(&scores, &[0, 1, 2, 3], &[0, 3, 3, 4], 0.0),
            [(0, 1), (0, 2)]
        );
        assert_eq!(all(&scores, &[0, 1, 2, 3], &[0, 3, 3, 4], 3.5), []);
        assert_eq!(all(&[], &[], &[0], 0.0), []);
    }

    #[test]
    fn gaps_are_reached_exactly() {
        let scores = [3.0, 2.0, 1.0, 0.0];
        let pairs = all(&scores, &[0, 1, 2, 3], &[0, 4], 2.0);
        assert_eq!(pairs, [(0, 2), (0, 3), (1, 3)]);
    }
}
