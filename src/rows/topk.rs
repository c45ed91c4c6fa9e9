//! The k largest of a stream of numbers.

use super::MAX_K;
use crate::simd::Real;

/// The k largest numbers seen, as a multiset: it does not depend on the order in which they came.
#[derive(Clone)]
pub struct TopK<R> {
    /// Falling; −inf where fewer than k numbers have been seen.
    largest: [R; MAX_K],
    k: usize,
}

impl<R: Real> TopK<R> {
    pub fn new(k: usize) -> TopK<R> {
        TopK {
            largest: [R::NEG_INFINITY; MAX_K],
            k: k.min(MAX_K),
        }
    }

    /// Only what is larger than this can change the selection.
    pub fn threshold(&self) -> R {
        self.largest[self.k - 1]
    }

    /// Enters numbers; NaN and −inf are passed over.
    pub fn extend(&mut self, numbers: &[R]) {
        for number in numbers {
            if *number > self.threshold() {
                self.insert(*number);
            }
        }
    }

    fn insert(&mut self, number: R) {
        let mut place = self.k - 1;
        while place > 0 && self.largest[place - 1] < number {
            self.largest[place] = self.largest[place - 1];
            place -= 1;
        }
        self.largest[place] = number;
    }

    /// The numbers, the largest first; fewer than k if fewer than k were above −inf.
    pub fn numbers(&self) -> &[R] {
        let found = self.largest[..self.k]
            .iter()
            .take_while(|number| **number > R::NEG_INFINITY)
            .count();
        &self.largest[..found]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_the_largest_in_any_order() {
        let numbers: Vec<f32> = (0..500).map(|i| ((i * 7919) % 251) as f32).collect();
        let mut sorted = numbers.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1, 2, 10, 64] {
            let mut forwards = TopK::new(k);
            forwards.extend(&numbers);
            let mut backwards = TopK::new(k);
            numbers
                .iter()
                .rev()
                .for_each(|number| backwards.extend(&[*number]));
            assert_eq!(forwards.numbers(), &sorted[..k]);
            assert_eq!(backwards.numbers(), &sorted[..k]);
        }
    }

    #[test]
    fn passes_over_nan_and_negative_infinity() {
        let mut top = TopK::new(5);
        top.extend(&[f64::NAN, f64::NEG_INFINITY, 3.0, f64::NAN, -1e300]);
        assert_eq!(top.numbers(), &[3.0, -1e300]);
    }
}
