//! Values as C++ expressions.

use super::{Emitter, Place, WHOLE};
use crate::objective::codegen::values::{Source, ValueId};
use crate::objective::instruction::{Segmentation, Task};
use crate::objective::ops::{BinaryOp, End, UnaryOp};
use crate::objective::space::BATCH;

impl Emitter<'_> {
    pub(super) fn source(&mut self, source: Source, place: Place) -> String {
        match source {
            Source::Constant(value) => literal(value),
            Source::Parameter(index) => format!("a.parameters[{index}]"),
            Source::Value(id) => self.value(id, place),
        }
    }

    pub(super) fn argument(&mut self, id: ValueId, position: usize, place: Place) -> String {
        self.source(self.plan.values.all[id].args[position], place)
    }

    /// A value that can be read at any index, there.
    pub(super) fn addressed(&self, source: Source, index: &str) -> String {
        match source {
            Source::Constant(value) => literal(value),
            Source::Parameter(index) => format!("a.parameters[{index}]"),
            Source::Value(id) => match self.plan.values.all[id].task {
                Task::Load(column) if self.plan.schedule.kept[id].is_none() => {
                    format!("read<C{column}, C{column}_TAKE>(a.columns[{column}], {index})")
                }
                _ => format!("read_slot(a.slots[{}], {index})", self.slot(id)),
            },
        }
    }

    pub(super) fn value(&mut self, id: ValueId, place: Place) -> String {
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

    pub(super) fn sorted_place(
        &self,
        id: ValueId,
        range: &str,
        index: &str,
        descending: bool,
    ) -> String {
        let key = self.addressed(self.plan.values.all[id].args[0], "j");
        format!("sorted_rank({range}, {index}, {descending}, [&](i64 j) {{ return {key}; }})")
    }
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

fn end_of(range: &str, end: End) -> String {
    match end {
        End::First => format!("{range}.begin"),
        End::Last => format!("{range}.end - 1"),
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
