//! CUDA C++ text of one traversal: values are written out where they are needed, each once per place.
//!
//! A place is an element of a space, known by the expression of its index. Lines that belong to a place stand in the
//! function's body, in that of a segment, or in that of an element.

mod expressions;
mod places;
mod walks;

use std::collections::HashMap;
use std::fmt::Write;

use super::schedule::{Schedule, Slot, Traversal, Walk};
use super::values::{ValueId, Values};
use crate::objective::program::Program;
use crate::objective::space::{BATCH, SpaceId};

/// Everything that a kernel's text follows from.
pub struct Plan<'a> {
    pub program: &'a Program,
    pub values: &'a Values,
    pub schedule: &'a Schedule,
    /// The index of each space in the kernel's argument.
    pub space_index: &'a [Option<usize>],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Function,
    Segment,
    Element,
}

/// Index of a place.
type Place = usize;

/// The one element of the batch.
const WHOLE: Place = 0;

struct PlaceInfo {
    space: SpaceId,
    index: String,
    level: Level,
}

/// Where a place is found from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Parent,
    Side(u8),
}

/// The C++ function of one traversal.
pub struct Emitter<'a> {
    plan: &'a Plan<'a>,
    stage: usize,
    lines: [String; 3],
    /// What follows the loop over the elements of a segment.
    after: String,
    places: Vec<PlaceInfo>,
    steps: HashMap<(Place, Step), Place>,
    /// The element of the walk, and the segment that is known to hold it.
    shortcut: Option<(Place, Place)>,
    known: HashMap<(ValueId, Place), String>,
    ranges: HashMap<(Place, SpaceId), String>,
    squares: HashMap<(Place, SpaceId), String>,
    sizes: Vec<bool>,
    names: usize,
}

/// The function called `name` that does a traversal of a stage.
pub fn traversal(plan: &Plan, stage: usize, name: &str, traversal: &Traversal) -> String {
    let mut emitter = Emitter {
        plan,
        stage,
        lines: Default::default(),
        after: String::new(),
        places: Vec::new(),
        steps: HashMap::new(),
        shortcut: None,
        known: HashMap::new(),
        ranges: HashMap::new(),
        squares: HashMap::new(),
        sizes: vec![false; plan.program.extents.len()],
        names: 0,
    };
    let once = traversal.walk == Walk::Once;
    let level = if once {
        Level::Element
    } else {
        Level::Function
    };
    emitter.new_place(BATCH, "0".into(), level);
    let body = emitter.walk(traversal);
    let comment = emitter.comment(traversal.walk);
    format!(
        "// {comment}\n__device__ inline void {name}(const Args& a) {{\n{}{body}}}\n",
        indented(&emitter.lines[0], 1)
    )
}

/// The text, each line moved to the right.
fn indented(text: &str, depth: usize) -> String {
    text.lines().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "{}{line}", "    ".repeat(depth));
        out
    })
}

impl Emitter<'_> {
    fn line(&mut self, level: Level, line: &str) {
        let text = &mut self.lines[level as usize];
        text.push_str(line);
        text.push('\n');
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn space(&self, space: SpaceId) -> String {
        // Every space that a program walks over or cuts is in its argument.
        format!(
            "a.spaces[{}]",
            self.plan.space_index[space].unwrap_or_default()
        )
    }

    fn slot(&self, id: ValueId) -> Slot {
        self.plan.schedule.slot_of[id].unwrap_or_default()
    }

    /// The number of elements of a space.
    fn size(&mut self, space: SpaceId) -> String {
        if space == BATCH {
            return "1".into();
        }
        let name = format!("n{}", self.plan.space_index[space].unwrap_or_default());
        if !self.sizes[space] {
            self.sizes[space] = true;
            let parent = self.size(self.plan.program.parents[space]);
            let line = format!("const i64 {name} = start({}, {parent});", self.space(space));
            self.line(Level::Function, &line);
        }
        name
    }

    fn comment(&self, walk: Walk) -> String {
        let name = |space: SpaceId| match self.plan.space_index[space] {
            Some(index) => format!("space {index}"),
            None => "the batch".into(),
        };
        match walk {
            Walk::Pairs(space) => format!("the offsets of {}", name(space)),
            Walk::Once => "numbers of the batch".into(),
            Walk::Elements(space) => format!("the elements of {}", name(space)),
            Walk::Chunks(space) => format!("the elements of {}, chunk by chunk", name(space)),
            Walk::Segments(upper, lower) => {
                format!("{}, by elements of {}", name(lower), name(upper))
            }
            Walk::Squares(side, space) => {
                format!(
                    "the pairs in which an element of {} stands on side {}",
                    name(space),
                    side.name()
                )
            }
            Walk::Scan(..) => "a scan".into(),
            Walk::Finish => "the chunks' parts put together".into(),
        }
    }
}
