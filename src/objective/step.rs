//! Executing instructions in f64: one at a time over a whole space, or elementwise ones together over a block of it.

use super::instruction::{Instruction, Operand, Slot, Task};
use super::ops::{End, ReduceOp, Side, VisitBinary, VisitUnary};
use super::run::Run;
use crate::segments::{Segments, cpu};

/// Some elements of a space, on which elementwise instructions are being executed.
pub(super) struct Block<'a> {
    /// The index of the first element.
    pub(super) start: usize,
    /// The slots that are written, ascending, and for each its elements of this block.
    pub(super) written: &'a [Slot],
    pub(super) pieces: Vec<&'a mut [f64]>,
    /// All other slots.
    pub(super) slots: &'a [Vec<f64>],
    pub(super) run: &'a Run<'a>,
}

impl Block<'_> {
    pub(super) fn compute(&mut self, instructions: &[Instruction]) {
        for instruction in instructions {
            let Ok(index) = self.written.binary_search(&instruction.into) else {
                continue;
            };
            // Taken out while it is written; no instruction reads what it writes.
            let out = std::mem::take(&mut self.pieces[index]);
            let args = [0, 1, 2].map(|position| match instruction.args.get(position) {
                Some(&operand) => self.argument(operand, out.len()),
                None => Argument::Scalar(0.0),
            });
            elementwise(instruction.task, self.run, self.start, args, out);
            self.pieces[index] = out;
        }
    }

    fn argument(&self, operand: Operand, len: usize) -> Argument<'_> {
        match operand {
            Operand::Vector(slot) => match self.written.binary_search(&slot) {
                Ok(index) => Argument::Vector(&*self.pieces[index]),
                Err(_) => Argument::Vector(&self.slots[slot][self.start..self.start + len]),
            },
            _ => argument(operand, self.run, self.slots),
        }
    }
}

/// One elementwise instruction on the elements from `start` on.
fn elementwise(task: Task, run: &Run, start: usize, args: [Argument; 3], out: &mut [f64]) {
    let [a, b, c] = args;
    match task {
        Task::Load(column) => run.columns[column].part(start, out.len()).read(out),
        Task::Unary(op) => op.visit(UnaryLoop { x: a, out }),
        Task::Binary(op) => op.visit(BinaryLoop { a, b, out }),
        Task::Where => select(a, b, c, out),
        Task::Fill => out.fill(a.at(0)),
        _ => debug_assert!(false, "{task:?} is not elementwise"),
    }
}

/// The value of an operand.
#[derive(Clone, Copy)]
pub(super) enum Argument<'a> {
    Scalar(f64),
    Vector(&'a [f64]),
}

pub(super) fn argument<'a>(operand: Operand, run: &Run, slots: &'a [Vec<f64>]) -> Argument<'a> {
    match operand {
        Operand::Constant(value) => Argument::Scalar(value),
        Operand::Parameter(index) => Argument::Scalar(run.parameters[index]),
        Operand::Scalar(slot) => Argument::Scalar(slots[slot][0]),
        Operand::Vector(slot) => Argument::Vector(&slots[slot]),
    }
}

impl Argument<'_> {
    #[inline]
    fn at(&self, index: usize) -> f64 {
        match self {
            Argument::Scalar(value) => *value,
            Argument::Vector(values) => values[index],
        }
    }
}

/// One instruction being executed.
pub(super) struct Step<'a> {
    pub(super) instruction: &'a Instruction,
    pub(super) run: &'a Run<'a>,
    pub(super) slots: &'a [Vec<f64>],
    pub(super) segmentations: &'a [Segments],
}

impl<'a> Step<'a> {
    fn argument(&self, position: usize) -> Argument<'a> {
        argument(self.instruction.args[position], self.run, self.slots)
    }

    /// An argument that has one value per element of its space, be it the batch.
    fn values(&self, position: usize) -> &'a [f64] {
        match &self.instruction.args[position] {
            Operand::Scalar(slot) | Operand::Vector(slot) => self.slots[*slot].as_slice(),
            Operand::Parameter(index) => std::slice::from_ref(&self.run.parameters[*index]),
            Operand::Constant(value) => std::slice::from_ref(value),
        }
    }

    pub(super) fn compute(&self, out: &mut [f64]) {
        let threads = self.run.threads;
        let segments = |index: usize| &self.segmentations[index];
        match self.instruction.task {
            Task::Position(cut) => cpu::positions(segments(cut), out, threads),
            Task::Count(cut) => {
                for (segment, out) in out.iter_mut().enumerate() {
                    *out = segments(cut).range(segment).len() as f64;
                }
            }
            Task::Expand(cut) => cpu::expand(self.values(0), segments(cut), out, threads),
            Task::Reduce(op, cut) => reduce(op, self.values(0), segments(cut), out, threads),
            Task::Project(side, cut) => {
                cpu::project(self.values(0), segments(cut), side == Side::J, out);
            }
            Task::Collapse(side, cut) => {
                cpu::collapse(self.values(0), segments(cut), side == Side::J, out);
            }
            Task::Rank {
                segments: cut,
                descending,
            } => rank(self.values(0), segments(cut), descending, out, threads),
            Task::Order {
                segments: cut,
                descending,
            } => cpu::order(self.values(0), segments(cut), descending, out, threads),
            Task::Gather => {
                let values = self.values(0);
                for (out, &index) in out.iter_mut().zip(self.values(1)) {
                    *out = values[index as usize];
                }
            }
            Task::Scatter => {
                for (value, &index) in self.values(0).iter().zip(self.values(1)) {
                    out[index as usize] = *value;
                }
            }
            Task::Scan {
                segments: cut,
                reverse,
            } => {
                let how = cpu::Scan {
                    reverse,
                    discount: self.argument(1).at(0),
                    reset: (self.instruction.args.len() > 2).then(|| self.values(2)),
                };
                cpu::scan(self.values(0), segments(cut), how, out, threads);
            }
            Task::Shift {
                segments: cut,
                by,
                fill,
            } => cpu::shift(self.values(0), segments(cut), by, fill, out, threads),
            Task::Select(end, cut) => {
                let last = end == End::Last;
                cpu::select(self.values(0), segments(cut), last, out, threads);
            }
            Task::Place(end, cut) => {
                let last = end == End::Last;
                cpu::place(self.values(0), segments(cut), last, out, threads);
            }
            task => {
                let argument = |position| match self.instruction.args.len() > position {
                    true => self.argument(position),
                    false => Argument::Scalar(0.0),
                };
                elementwise(task, self.run, 0, [0, 1, 2].map(argument), out);
            }
        }
    }
}

fn reduce(op: ReduceOp, values: &[f64], segments: &Segments, out: &mut [f64], threads: usize) {
    match op {
        ReduceOp::Sum => cpu::sum(values, segments, out, threads),
        ReduceOp::Mean => cpu::mean(values, segments, out, threads),
        ReduceOp::Max => cpu::max(values, segments, out, threads),
        ReduceOp::Min => cpu::min(values, segments, out, threads),
        ReduceOp::LogSumExp => cpu::logsumexp(values, segments, out, threads),
    }
}

fn rank(keys: &[f64], segments: &Segments, descending: bool, out: &mut [f64], threads: usize) {
    let mut order = vec![0.0; keys.len()];
    cpu::order(keys, segments, descending, &mut order, threads);
    for segment in 0..segments.count() {
        for (place, &index) in order[segments.range(segment)].iter().enumerate() {
            out[index as usize] = (place + 1) as f64;
        }
    }
}

/// `a` where the condition is not 0, else `b`.
fn select(condition: Argument, a: Argument, b: Argument, out: &mut [f64]) {
    for (index, out) in out.iter_mut().enumerate() {
        let chosen = if condition.at(index) != 0.0 { &a } else { &b };
        *out = chosen.at(index);
    }
}

struct UnaryLoop<'a, 'o> {
    x: Argument<'a>,
    out: &'o mut [f64],
}

impl VisitUnary for UnaryLoop<'_, '_> {
    type Output = ();

    fn visit(self, f: impl Fn(f64) -> f64) {
        match self.x {
            Argument::Scalar(x) => self.out.fill(f(x)),
            Argument::Vector(x) => {
                for (out, &x) in self.out.iter_mut().zip(x) {
                    *out = f(x);
                }
            }
        }
    }
}

struct BinaryLoop<'a, 'o> {
    a: Argument<'a>,
    b: Argument<'a>,
    out: &'o mut [f64],
}

impl VisitBinary for BinaryLoop<'_, '_> {
    type Output = ();

    fn visit(self, f: impl Fn(f64, f64) -> f64) {
        use Argument::{Scalar, Vector};
        let out = self.out.iter_mut();
        match (self.a, self.b) {
            (Scalar(a), Scalar(b)) => out.for_each(|out| *out = f(a, b)),
            (Vector(a), Scalar(b)) => out.zip(a).for_each(|(out, &a)| *out = f(a, b)),
            (Scalar(a), Vector(b)) => out.zip(b).for_each(|(out, &b)| *out = f(a, b)),
            (Vector(a), Vector(b)) => {
                for ((out, &a), &b) in out.zip(a).zip(b) {
                    *out = f(a, b);
                }
            }
        }
    }
}
