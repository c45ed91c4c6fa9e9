//! Walks over spaces, and what is done with values on the way.

use std::fmt::Write;

use super::{Emitter, Level, Place, Step, WHOLE, indented};
use crate::objective::codegen::schedule::{Sink, Traversal, Walk};
use crate::objective::codegen::values::ValueId;
use crate::objective::instruction::Task;
use crate::objective::ops::{ReduceOp, Side};
use crate::objective::space::{BATCH, SpaceId};

impl Emitter<'_> {
    fn sink(&mut self, sink: Sink, place: Place) {
        let index = self.places[place].index.clone();
        let line = match sink {
            Sink::Store(id) => {
                let value = self.value(id, place);
                format!("write_slot(a.slots[{}], {index}, {value});", self.slot(id))
            }
            Sink::Output(output) => {
                let value = self.source(self.plan.values.outputs[output].0, place);
                write(output, &index, &value)
            }
            Sink::Scatter(id) => {
                let (value, order) = (self.argument(id, 0, place), self.argument(id, 1, place));
                let count = self.size(self.plan.values.all[id].space);
                format!(
                    "write_slot(a.slots[{}], element({order}, {count}), {value});",
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
                    "write_slot(a.slots[{}], {range}.begin + {sorted}, f64({index}));",
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
                format!("{text}write_slot(a.slots[{slot}], s, s{id}.{field}); ")
            })
        } else {
            let divisor = if op == ReduceOp::Mean {
                " / f64(max_i64(1, r.end - r.begin))"
            } else {
                ""
            };
            format!(
                "write_slot(a.slots[{}], s, s{id}.value(){divisor}); ",
                self.slot(id)
            )
        };
        let _ = writeln!(
            self.after,
            "s{id} = team.reduced(s{id});\nif (team.rank == 0) {{ {writes}}}"
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
            format!("{text}s.{field} = read_slot(a.slots[{slot}], c); ")
        });
        let divisor = if op == ReduceOp::Mean {
            format!(" / f64(max_i64(1, {count}))")
        } else {
            String::new()
        };
        let outputs = (0..self.plan.values.outputs.len())
            .filter(|&output| self.plan.values.reduction_behind(output) == Some(id));
        let writes = outputs.fold(String::new(), |text, output| {
            format!("{text}    {}\n", write(output, "0", &format!("v{id}")))
        });
        format!(
            "const {kind} s{id} = reduce_chunks<{kind}>({warp}, {count}, [&](i64 c) {{ {kind} s; {reads}return s; }});\n\
             if (is_leader({warp})) {{\n    const f64 v{id} = s{id}.value(){divisor};\n    \
             write_slot(a.slots[{}], 0, v{id});\n{writes}}}\n",
            self.slot(id)
        )
    }

    /// The body of the function, but for the lines that stand before the walk.
    pub(super) fn walk(&mut self, traversal: &Traversal) -> String {
        match traversal.walk {
            Walk::Pairs(pairs) => self.count_pairs(pairs),
            Walk::Once => {
                self.sinks(traversal, WHOLE);
                self.looped("by_one_thread([&]() {", "});")
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
             for (i64 at = r.begin + team.rank; at < r.end; at += team.size) {{\n            \
             const i64 {index} = opaque(at);\n{first}{}        }}\n{}    }});\n",
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
            above => format!(
                "segment_of({}, {}, s)",
                self.space(elements),
                self.size(above)
            ),
        };
        let range = format!(
            "Range{{0, pair_block({}, {}, {parent}).size}}",
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
             return Affine{{{x}, {discount}, {cut}}};\n        \
             }}, [&](i64 i, f64 out) {{ write_slot(a.slots[{}], i, out); }});\n    }});\n",
            indented(&self.lines[Level::Segment as usize], 2),
            indented(&self.lines[Level::Element as usize], 3),
            self.slot(id)
        )
    }
}

/// A line that writes an output.
fn write(output: usize, index: &str, value: &str) -> String {
    format!("write<O{output}, O{output}_TAKE>(a.outputs[{output}], {index}, {value});")
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
        ReduceOp::Max => &["max"],
        ReduceOp::Min => &["min"],
        ReduceOp::LogSumExp => &["max", "sum"],
    }
}
