//! Places: how an element, and the segment or the pair it belongs to, is found from another one.

use super::{Emitter, Level, Place, PlaceInfo, Step, WHOLE};
use crate::objective::instruction::{Extent, Segmentation};
use crate::objective::ops::Side;
use crate::objective::space::{BATCH, SpaceId};

impl Emitter<'_> {
    pub(super) fn new_place(&mut self, space: SpaceId, index: String, level: Level) -> Place {
        self.places.push(PlaceInfo {
            space,
            index,
            level,
        });
        self.places.len() - 1
    }

    /// The element of `upper` above a place.
    pub(super) fn above(&mut self, mut place: Place, upper: SpaceId) -> Place {
        if upper == BATCH {
            return WHOLE;
        }
        if let Some((element, segment)) = self.shortcut
            && place == element
            && self.is_above(upper, self.places[segment].space)
        {
            place = segment;
        }
        while self.places[place].space != upper {
            place = self.parent(place);
        }
        place
    }

    fn is_above(&self, upper: SpaceId, mut lower: SpaceId) -> bool {
        // Parents have smaller numbers.
        while lower > upper {
            lower = self.plan.program.parents[lower];
        }
        lower == upper
    }

    fn parent(&mut self, place: Place) -> Place {
        if let Some(&known) = self.steps.get(&(place, Step::Parent)) {
            return known;
        }
        let PlaceInfo { space, level, .. } = self.places[place];
        let above = self.plan.program.parents[space];
        let found = if above == BATCH {
            WHOLE
        } else {
            let name = self.name("i");
            let count = self.size(above);
            let line = format!(
                "const i64 {name} = segment_of({}, {count}, {});",
                self.space(space),
                self.places[place].index
            );
            self.line(level, &line);
            self.new_place(above, name, level)
        };
        self.steps.insert((place, Step::Parent), found);
        found
    }

    /// The element on one side of the pair at a place.
    pub(super) fn side(&mut self, pair: Place, side: Side) -> Place {
        let step = (pair, Step::Side(side as u8));
        if let Some(&known) = self.steps.get(&step) {
            return known;
        }
        let PlaceInfo { space, level, .. } = self.places[pair];
        let parent = self.above(pair, self.plan.program.parents[space]);
        let square = self.square(parent, space);
        let name = self.name("i");
        let operator = if side == Side::I { "/" } else { "%" };
        let index = &self.places[pair].index;
        let line = format!(
            "const i64 {name} = {square}.first + ({index} - {square}.base) {operator} {square}.size;"
        );
        self.line(level, &line);
        let found = self.new_place(self.elements_of(space), name, level);
        self.steps.insert(step, found);
        found
    }

    pub(super) fn elements_of(&self, pairs: SpaceId) -> SpaceId {
        match self.plan.program.extents[pairs] {
            Extent::Pairs(elements) => elements,
            _ => pairs,
        }
    }

    /// The pairs below a place.
    pub(super) fn square(&mut self, place: Place, pairs: SpaceId) -> String {
        if let Some(known) = self.squares.get(&(place, pairs)) {
            return known.clone();
        }
        let name = self.name("q");
        let PlaceInfo { index, level, .. } = &self.places[place];
        let (level, elements) = (*level, self.elements_of(pairs));
        let line = format!(
            "const PairBlock {name} = pair_block({}, {}, {index});",
            self.space(elements),
            self.space(pairs)
        );
        self.line(level, &line);
        self.squares.insert((place, pairs), name.clone());
        name
    }

    /// The elements of `lower` below a place.
    pub(super) fn range(&mut self, place: Place, lower: SpaceId) -> String {
        if let Some(known) = self.ranges.get(&(place, lower)) {
            return known.clone();
        }
        let text = self.range_text(
            self.places[place].space,
            &self.places[place].index.clone(),
            lower,
        );
        let name = self.name("r");
        self.line(
            self.places[place].level,
            &format!("const Range {name} = {text};"),
        );
        self.ranges.insert((place, lower), name.clone());
        name
    }

    pub(super) fn range_text(&mut self, upper: SpaceId, index: &str, lower: SpaceId) -> String {
        if upper == BATCH {
            return format!("Range{{0, {}}}", self.size(lower));
        }
        let mut path = vec![lower];
        let mut space = self.plan.program.parents[lower];
        while space != upper {
            path.push(space);
            space = self.plan.program.parents[space];
        }
        let mut text = String::new();
        for space in path.into_iter().rev() {
            let space = self.space(space);
            text = match text.is_empty() {
                true => format!("segment({space}, {index})"),
                false => format!("segments({space}, {text})"),
            };
        }
        text
    }

    /// The segment to which a place belongs.
    pub(super) fn segment_at(&mut self, place: Place, segments: Segmentation) -> String {
        let (upper, lower) = self.plan.program.segmentations[segments];
        let above = self.above(place, upper);
        self.range(above, lower)
    }
}
