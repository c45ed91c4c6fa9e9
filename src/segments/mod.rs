//! Ragged structure: how the elements of one level are cut into segments by the level above it.
//!
//! A reduction visits the elements of a segment in a fixed order that depends on nothing but the segment's length, so
//! the same segment gives the same bits whatever stands beside it and however many threads run.

pub mod cpu;
pub mod cuda;

use std::ops::Range;

/// The segments of a child level: one contiguous range per element of the parent level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segments {
    /// One segment of so many elements.
    Whole(usize),
    /// So many segments of one element each.
    OneToOne(usize),
    /// Segment k is `offsets[k]..offsets[k + 1]`; starts at 0, never decreases.
    Ragged(Vec<usize>),
}

impl Segments {
    /// Ragged segments from 64-bit offsets; the error says what is wrong with them, without naming the argument.
    pub fn from_offsets(offsets: impl Iterator<Item = i64>) -> Result<Self, String> {
        let mut checked = Vec::with_capacity(offsets.size_hint().0);
        let mut previous = 0;
        for (index, offset) in offsets.enumerate() {
            if index == 0 && offset != 0 {
                return Err(format!("must start at 0, got {offset}"));
            }
            if offset < previous {
                return Err(format!(
                    "must not decrease, got {offset} after {previous} at index {index}"
                ));
            }
            previous = offset;
            checked.push(offset as usize);
        }
        if checked.is_empty() {
            return Err("must hold at least the initial 0, got no value".into());
        }
        Ok(Segments::Ragged(checked))
    }

    /// The number of segments.
    pub fn count(&self) -> usize {
        match self {
            Segments::Whole(_) => 1,
            Segments::OneToOne(count) => *count,
            Segments::Ragged(offsets) => offsets.len() - 1,
        }
    }

    /// The number of elements in all segments together.
    pub fn len(&self) -> usize {
        match self {
            Segments::Whole(len) | Segments::OneToOne(len) => *len,
            Segments::Ragged(offsets) => offsets[offsets.len() - 1],
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of one segment.
    #[inline]
    pub fn range(&self, segment: usize) -> Range<usize> {
        match self {
            Segments::Whole(len) => 0..*len,
            Segments::OneToOne(_) => segment..segment + 1,
            Segments::Ragged(offsets) => offsets[segment]..offsets[segment + 1],
        }
    }

    /// The elements of consecutive segments.
    #[inline]
    pub fn span(&self, segments: Range<usize>) -> Range<usize> {
        if segments.is_empty() {
            return 0..0;
        }
        self.range(segments.start).start..self.range(segments.end - 1).end
    }

    /// The segments of the grandchildren: `self` cuts the children, `below` the grandchildren.
    pub fn compose(&self, below: &Segments) -> Segments {
        match (self, below) {
            (Segments::Whole(_), _) => Segments::Whole(below.len()),
            (Segments::OneToOne(_), _) => below.clone(),
            (_, Segments::OneToOne(_)) => self.clone(),
            (Segments::Ragged(offsets), _) => Segments::Ragged(
                offsets
                    .iter()
                    .map(|&children| below.span(0..children).end)
                    .collect(),
            ),
        }
    }

    /// The segments of the ordered pairs of elements of each segment: K² for a segment of K.
    pub fn pairs(&self) -> Option<Segments> {
        let mut offsets = Vec::with_capacity(self.count() + 1);
        let mut total: usize = 0;
        offsets.push(0);
        for segment in 0..self.count() {
            let size = self.range(segment).len();
            total = total.checked_add(size.checked_mul(size)?)?;
            offsets.push(total);
        }
        Some(Segments::Ragged(offsets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_checked() {
        let bad = |offsets: &[i64]| Segments::from_offsets(offsets.iter().copied()).unwrap_err();
        assert!(bad(&[]).contains("at least"));
        assert!(bad(&[1, 2]).contains("start at 0"));
        assert!(bad(&[0, 3, 2]).contains("not decrease"));
        let good = Segments::from_offsets([0, 2, 2, 5].into_iter()).unwrap();
        assert_eq!((good.count(), good.len(), good.range(1)), (3, 5, 2..2));
    }

    #[test]
    fn composition_reaches_the_grandchildren() {
        let outer = Segments::Ragged(vec![0, 2, 2, 3]);
        let inner = Segments::Ragged(vec![0, 4, 5, 9]);
        assert_eq!(outer.compose(&inner), Segments::Ragged(vec![0, 5, 5, 9]));
        assert_eq!(Segments::Whole(3).compose(&inner), Segments::Whole(9));
        assert_eq!(Segments::OneToOne(3).compose(&inner), inner);
        assert_eq!(outer.compose(&Segments::OneToOne(3)), outer);
    }

    #[test]
    fn pairs_are_squares() {
        let segments = Segments::Ragged(vec![0, 2, 2, 5]);
        assert_eq!(segments.pairs(), Some(Segments::Ragged(vec![0, 4, 4, 13])));
        assert_eq!(Segments::Whole(usize::MAX).pairs(), None);
    }
}
