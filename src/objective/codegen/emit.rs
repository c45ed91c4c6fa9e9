//! CUDA C++ text of one traversal: values are written out where they are needed, each once per place.
//!
//! A place is an element of a space, known by the expression of its index. Lines that belong to a place stand in the
//! function's body, in that of a segment, or in that of an element.

use std::collections::HashMap;
use std::fmt::Write;

use super::super::ops::{BinaryOp, End, ReduceOp, Side, UnaryOp};
use super::super::program::{Extent, Program, Segmentation, Task};
use super::super::space::{BATCH, SpaceId};
use super::schedule::{Schedule, Sink, Slot, Traversal, Walk};
use super::values::{Source, ValueId, Values};

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

/// A number as C++.
fn literal(value: f64) -> String {
    if value.is_nan() {
        "not_a_number<f64>()".into()
    } else if value.is_infinite() {
        format!("{}infinity<f64>()", if value < 0.0 { "-" } else { "" })
    } else if value.is_sign_negative() {
        format!("({value:?})")
    } else {
        format!("{value:?}")
    }
}

impl Emitter<'_> {
    // Lines and names.

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

    // Places.

    fn new_place(&mut self, space: SpaceId, index: String, level: Level) -> Place {
        self.places.push(PlaceInfo {
            space,
            index,
            level,
        });
        self.places.len() - 1
    }

    /// The element of `upper` above a place.
    fn above(&mut self, mut place: Place, upper: SpaceId) -> Place {
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
                "const i64 {name} = owner({}, {count}, {});",
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
    fn side(&mut self, pair: Place, side: Side) -> Place {
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

    fn elements_of(&self, pairs: SpaceId) -> SpaceId {
        match self.plan.program.extents[pairs] {
            Extent::Pairs(elements) => elements,
            _ => pairs,
        }
    }

    /// The pairs below a place.
    fn square(&mut self, place: Place, pairs: SpaceId) -> String {
        if let Some(known) = self.squares.get(&(place, pairs)) {
            return known.clone();
        }
        let name = self.name("q");
        let PlaceInfo { index, level, .. } = &self.places[place];
        let (level, elements) = (*level, self.elements_of(pairs));
        let line = format!(
            "const Square {name} = square_of({}, {}, {index});",
            self.space(elements),
            self.space(pairs)
        );
        self.line(level, &line);
        self.squares.insert((place, pairs), name.clone());
        name
    }

    /// The elements of `lower` below a place.
    fn range(&mut self, place: Place, lower: SpaceId) -> String {
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

    fn range_text(&mut self, upper: SpaceId, index: &str, lower: SpaceId) -> String {
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

    // Values.

    fn source(&mut self, source: Source, place: Place) -> String {
        match source {
            Source::Constant(value) => literal(value),
            Source::Parameter(index) => format!("a.parameters[{index}]"),
            Source::Value(id) => self.value(id, place),
        }
    }

    fn argument(&mut self, id: ValueId, position: usize, place: Place) -> String {
        self.source(self.plan.values.all[id].args[position], place)
    }

    /// A value that can be read at any index, there.
    fn addressed(&self, source: Source, index: &str) -> String {
        match source {
            Source::Constant(value) => literal(value),
            Source::Parameter(index) => format!("a.parameters[{index}]"),
            Source::Value(id) => match self.plan.values.all[id].task {
                Task::Load(column) if self.plan.schedule.kept[id].is_none() => {
                    format!("read<C{column}, C{column}_TAKE>(a.columns[{column}], {index})")
                }
                _ => format!("get(a.slots[{}], {index})", self.slot(id)),
            },
        }
    }

    fn value(&mut self, id: ValueId, place: Place) -> String {
        let place = if self.plan.values.all[id].space == BATCH {
            WHOLE
        } else {
            place
        };
        if let Some(known) = self.known.get(&(id, place)) {
            return known.clone();
        }
        let index = self.places[place].index.clone();
        let (text, is_new) = if self.plan.schedule.is_kept_before(id, self.stage) {
            (self.addressed(Source::Value(id), &index), true)
        } else {
            self.computed(id, place, &index)
        };
        let name = if is_new {
            let name = self.name("v");
            self.line(
                self.places[place].level,
                &format!("const f64 {name} = {text};"),
            );
            name
        } else {
            text
        };
        self.known.insert((id, place), name.clone());
        name
    }

    /// The expression of a value in place, and whether it is more than a name.
    fn computed(&mut self, id: ValueId, place: Place, index: &str) -> (String, bool) {
        let value = &self.plan.values.all[id];
        let cut = |cut: Segmentation| self.plan.program.segmentations[cut];
        let text = match value.task {
            Task::Fill => return (self.argument(id, 0, WHOLE), false),
            Task::Expand(segments) => {
                let above = self.above(place, cut(segments).0);
                return (self.argument(id, 0, above), false);
            }
            Task::Project(side, _) => {
                let element = self.side(place, side);
                return (self.argument(id, 0, element), false);
            }
            Task::Load(_) => self.addressed(Source::Value(id), index),
            Task::Position(segments) => {
                format!("f64({index} - {}.begin)", self.segment_at(place, segments))
            }
            Task::Count(segments) => {
                let range = self.range(place, cut(segments).1);
                format!("f64({range}.end - {range}.begin)")
            }
            Task::Unary(op) => unary(op, &self.argument(id, 0, place)),
            Task::Binary(op) => {
                let (left, right) = (self.argument(id, 0, place), self.argument(id, 1, place));
                binary(op, &left, &right)
            }
            Task::Where => {
                let [condition, a, b] =
                    [0, 1, 2].map(|position| self.argument(id, position, place));
                format!("{condition} != 0 ? {a} : {b}")
            }
            Task::Gather => {
                let order = self.argument(id, 1, place);
                let count = self.size(value.space);
                self.addressed(value.args[0], &format!("element({order}, {count})"))
            }
            Task::Shift { segments, by, fill } => {
                let range = self.segment_at(place, segments);
                // Further than any segment is long, and far from overflow.
                let at = format!("{index} - ({})", by.clamp(-(1 << 50), 1 << 50));
                let inside = self.addressed(value.args[0], &at);
                format!(
                    "{at} >= {range}.begin && {at} < {range}.end ? {inside} : {}",
                    literal(fill)
                )
            }
            Task::Select(end, segments) => {
                let range = self.range(place, cut(segments).1);
                let at = end_of(&range, end);
                let inside = self.addressed(value.args[0], &at);
                format!("{range}.begin < {range}.end ? {inside} : 0.0")
            }
            Task::Place(end, segments) => {
                let above = self.above(place, cut(segments).0);
                let range = self.segment_at(place, segments);
                let inside = self.argument(id, 0, above);
                format!("{index} == {} ? {inside} : 0.0", end_of(&range, end))
            }
            Task::Rank {
                segments,
                descending,
            } => {
                let range = self.segment_at(place, segments);
                format!(
                    "1.0 + f64({})",
                    self.sorted_place(id, &range, index, descending)
                )
            }
            Task::Reduce(..)
            | Task::Collapse(..)
            | Task::Scatter
            | Task::Order { .. }
            | Task::Scan { .. } => self.addressed(Source::Value(id), index),
        };
        (text, true)
    }

    /// The segment to which a place belongs.
    fn segment_at(&mut self, place: Place, segments: Segmentation) -> String {
        let (upper, lower) = self.plan.program.segmentations[segments];
        let above = self.above(place, upper);
        self.range(above, lower)
    }

    fn sorted_place(&self, id: ValueId, range: &str, index: &str, descending: bool) -> String {
        let key = self.addressed(self.plan.values.all[id].args[0], "j");
        format!("sorted_place({range}, {index}, {descending}, [&](i64 j) {{ return {key}; }})")
    }

    // Sinks.

    fn sink(&mut self, sink: Sink, place: Place) {
        let index = self.places[place].index.clone();
        let line = match sink {
            Sink::Store(id) => {
                let value = self.value(id, place);
                format!("put(a.slots[{}], {index}, {value});", self.slot(id))
            }
            Sink::Output(output) => {
                let value = self.source(self.plan.values.outputs[output].0, place);
                format!("write<O{output}, O{output}_TAKE>(a.outputs[{output}], {index}, {value});")
            }
            Sink::Scatter(id) => {
                let (value, order) = (self.argument(id, 0, place), self.argument(id, 1, place));
                let count = self.size(self.plan.values.all[id].space);
                format!(
                    "put(a.slots[{}], element({order}, {count}), {value});",
                    self.slot(id)
                )
            }
            Sink::Order(id) => {
                let Task::Order {
                    segments,
                    descending,
                } = self.plan.values.all[id].task
                else {
                    return;
                };
                let range = self.segment_at(place, segments);
                let sorted = self.sorted_place(id, &range, &index, descending);
                format!(
                    "put(a.slots[{}], {range}.begin + {sorted}, f64({index}));",
                    self.slot(id)
                )
            }
            Sink::Reduce(id) => {
                let value = self.argument(id, 0, place);
                self.line(
                    Level::Segment,
                    &format!(
                        "{} s{id};",
                        accumulator(reduction(&self.plan.values.all[id].task))
                    ),
                );
                self.after_reduction(id);
                format!("s{id}.add({value});")
            }
            Sink::Finish(_) | Sink::Scan(_) => return,
        };
        self.line(self.places[place].level, &line);
    }

    /// What a team does with a reduction when all elements have been seen.
    fn after_reduction(&mut self, id: ValueId) {
        let value = &self.plan.values.all[id];
        let op = reduction(&value.task);
        let writes = if value.space == BATCH {
            let parts = self.plan.schedule.parts[id].iter().zip(fields(op));
            parts.fold(String::new(), |text, (slot, field)| {
                format!("{text}put(a.slots[{slot}], s, s{id}.{field}); ")
            })
        } else {
            let divisor = if op == ReduceOp::Mean {
                " / f64(most(1, r.end - r.begin))"
            } else {
                ""
            };
            format!(
                "put(a.slots[{}], s, s{id}.value(){divisor}); ",
                self.slot(id)
            )
        };
        let _ = writeln!(
            self.after,
            "s{id} = team.merged(s{id});\nif (team.rank == 0) {{ {writes}}}"
        );
    }

    fn finish(&mut self, id: ValueId, warp: usize) -> String {
        let Task::Reduce(op, cut) = self.plan.values.all[id].task else {
            return String::new();
        };
        let count = self.size(self.plan.program.segmentations[cut].1);
        let kind = accumulator(op);
        let parts = self.plan.schedule.parts[id].iter().zip(fields(op));
        let reads = parts.fold(String::new(), |text, (slot, field)| {
            format!("{text}s.{field} = get(a.slots[{slot}], c); ")
        });
        let divisor = if op == ReduceOp::Mean {
            format!(" / f64(most(1, {count}))")
        } else {
            String::new()
        };
        format!(
            "const {kind} s{id} = whole<{kind}>({warp}, {count}, [&](i64 c) {{ {kind} s; {reads}return s; }});\n\
             if (leads({warp})) put(a.slots[{}], 0, s{id}.value(){divisor});\n",
            self.slot(id)
        )
    }

    // Walks.

    /// The body of the function, but for the lines that stand before the walk.
    fn walk(&mut self, traversal: &Traversal) -> String {
        match traversal.walk {
            Walk::Pairs(pairs) => self.count_pairs(pairs),
            Walk::Once => {
                self.sinks(traversal, WHOLE);
                self.looped("once([&]() {", "});")
            }
            Walk::Elements(space) => {
                let element = self.new_place(space, "i".into(), Level::Element);
                self.sinks(traversal, element);
                let count = self.size(space);
                self.looped(&format!("each_element({count}, [&](i64 i) {{"), "});")
            }
            Walk::Chunks(space) => {
                let element = self.new_place(space, "i".into(), Level::Element);
                self.sinks(traversal, element);
                let count = self.size(space);
                self.by_teams(&format!("each_chunk({count}, "), "")
            }
            Walk::Segments(upper, lower) => {
                let segment = self.new_segment(upper, lower);
                let element = self.new_place(lower, "i".into(), Level::Element);
                self.shortcut = Some((element, segment));
                self.sinks(traversal, element);
                let (count, range) = (self.size(upper), self.range_text(upper, "s", lower));
                self.by_teams(
                    &format!(
                        "each_segment({count}, WARP_LENGTH, [&](i64 s) {{ return {range}; }}, "
                    ),
                    "",
                )
            }
            Walk::Squares(side, elements) => self.squares_walk(traversal, side, elements),
            Walk::Scan(id, _) => self.scan(id),
            Walk::Finish => {
                let mut body = String::new();
                for (warp, sink) in traversal.sinks.iter().enumerate() {
                    if let Sink::Finish(id) = sink {
                        body += &self.finish(*id, warp);
                    }
                }
                indented(&body, 1)
            }
        }
    }

    fn sinks(&mut self, traversal: &Traversal, place: Place) {
        for &sink in &traversal.sinks {
            self.sink(sink, place);
        }
    }

    fn new_segment(&mut self, upper: SpaceId, lower: SpaceId) -> Place {
        if upper == BATCH {
            return WHOLE;
        }
        let segment = self.new_place(upper, "s".into(), Level::Segment);
        self.ranges.insert((segment, lower), "r".into());
        segment
    }

    /// The walk as a loop over elements.
    fn looped(&self, head: &str, tail: &str) -> String {
        format!(
            "    {head}\n{}    {tail}\n",
            indented(&self.lines[Level::Element as usize], 2)
        )
    }

    /// The walk as a loop over segments, in each of which a team loops over elements.
    fn by_teams(&self, head: &str, first: &str) -> String {
        format!(
            "    {head}[&](i64 s, Range r, Team team) {{\n{}#pragma unroll 1\n        \
             for (i64 {index} = r.begin + team.rank; {index} < r.end; {index} += team.size) {{\n{first}{}        }}\n{}    }});\n",
            indented(&self.lines[Level::Segment as usize], 2),
            indented(&self.lines[Level::Element as usize], 3),
            indented(&self.after, 2),
            index = if first.is_empty() { "i" } else { "k" },
        )
    }

    fn count_pairs(&mut self, pairs: SpaceId) -> String {
        let elements = self.elements_of(pairs);
        let segments = self.size(self.plan.program.parents[elements]);
        let slot = self.plan.schedule.offsets[pairs].unwrap_or_default();
        format!(
            "    count_pairs((i64*)a.slots[{slot}], {}, {segments});\n",
            self.space(elements)
        )
    }

    fn squares_walk(&mut self, traversal: &Traversal, side: Side, elements: SpaceId) -> String {
        let pairs = elements + 1;
        let element = self.new_place(elements, "s".into(), Level::Segment);
        let above = self.above(element, self.plan.program.parents[elements]);
        let square = self.square(above, pairs);
        let pair = self.new_place(pairs, "i".into(), Level::Element);
        let other = self.new_place(elements, format!("({square}.first + k)"), Level::Element);
        let sides = if side == Side::I {
            [element, other]
        } else {
            [other, element]
        };
        self.steps.insert((pair, Step::Parent), above);
        self.steps
            .insert((pair, Step::Side(Side::I as u8)), sides[0]);
        self.steps
            .insert((pair, Step::Side(Side::J as u8)), sides[1]);
        self.sinks(traversal, pair);
        let index = match side {
            Side::I => format!("(s - {square}.first) * {square}.size + k"),
            Side::J => format!("k * {square}.size + s - {square}.first"),
        };
        let count = self.size(elements);
        let parent = match self.plan.program.parents[elements] {
            BATCH => "0".to_string(),
            above => format!("owner({}, {}, s)", self.space(elements), self.size(above)),
        };
        let range = format!(
            "Range{{0, square_of({}, {}, {parent}).size}}",
            self.space(elements),
            self.space(pairs)
        );
        self.by_teams(
            &format!("each_segment({count}, WARP_LENGTH, [&](i64 s) {{ return {range}; }}, "),
            &format!("            const i64 i = {square}.base + {index};\n"),
        )
    }

    fn scan(&mut self, id: ValueId) -> String {
        let value = &self.plan.values.all[id];
        let Task::Scan { segments, reverse } = value.task else {
            return String::new();
        };
        let (upper, lower) = self.plan.program.segmentations[segments];
        let segment = self.new_segment(upper, lower);
        let element = self.new_place(lower, "i".into(), Level::Element);
        self.shortcut = Some((element, segment));
        let (x, discount) = (self.argument(id, 0, element), self.argument(id, 1, WHOLE));
        let cut = match value.args.get(2) {
            None => "first".into(),
            Some(&reset) => format!(
                "first || {} != 0",
                self.addressed(reset, if reverse { "i + 1" } else { "i" })
            ),
        };
        let (count, range) = (self.size(upper), self.range_text(upper, "s", lower));
        format!(
            "    each_segment({count}, ANY_LENGTH, [&](i64 s) {{ return {range}; }}, [&](i64 s, Range r, Team team) {{\n\
             {}        scan(r, {reverse}, [&](i64 i, bool first) {{\n{}            \
             return Link{{{x}, {discount}, {cut}}};\n        \
             }}, [&](i64 i, f64 out) {{ put(a.slots[{}], i, out); }});\n    }});\n",
            indented(&self.lines[Level::Segment as usize], 2),
            indented(&self.lines[Level::Element as usize], 3),
            self.slot(id)
        )
    }
}

fn end_of(range: &str, end: End) -> String {
    match end {
        End::First => format!("{range}.begin"),
        End::Last => format!("{range}.end - 1"),
    }
}

fn reduction(task: &Task) -> ReduceOp {
    match task {
        Task::Reduce(op, _) => *op,
        _ => ReduceOp::Sum,
    }
}

fn accumulator(op: ReduceOp) -> &'static str {
    match op {
        ReduceOp::Sum | ReduceOp::Mean => "Sum",
        ReduceOp::Max => "Max",
        ReduceOp::Min => "Min",
        ReduceOp::LogSumExp => "LogSumExp",
    }
}

/// The members of an accumulator.
fn fields(op: ReduceOp) -> &'static [&'static str] {
    match op {
        ReduceOp::Sum | ReduceOp::Mean => &["total"],
        ReduceOp::Max => &["top"],
        ReduceOp::Min => &["bottom"],
        ReduceOp::LogSumExp => &["top", "sum"],
    }
}

fn unary(op: UnaryOp, x: &str) -> String {
    match op {
        UnaryOp::Neg => format!("-{x}"),
        UnaryOp::Abs => format!("fabs({x})"),
        UnaryOp::Reciprocal => format!("1.0 / {x}"),
        UnaryOp::Not => format!("flag({x} == 0)"),
        _ => format!("{}({x})", op.name()),
    }
}

fn binary(op: BinaryOp, a: &str, b: &str) -> String {
    use BinaryOp::*;
    match op {
        Add => format!("{a} + {b}"),
        Sub => format!("{a} - {b}"),
        Mul => format!("{a} * {b}"),
        Div => format!("{a} / {b}"),
        Pow => format!("pow({a}, {b})"),
        Minimum | ClampMax => format!("minimum({a}, {b})"),
        Maximum | ClampMin => format!("maximum({a}, {b})"),
        Lt => format!("flag({a} < {b})"),
        Le => format!("flag({a} <= {b})"),
        Gt => format!("flag({a} > {b})"),
        Ge => format!("flag({a} >= {b})"),
        Eq => format!("flag({a} == {b})"),
        Ne => format!("flag({a} != {b})"),
        And => format!("flag({a} != 0 && {b} != 0)"),
        Or => format!("flag({a} != 0 || {b} != 0)"),
        ScaleOrZero => format!("scale_or_zero({a}, {b})"),
    }
}
