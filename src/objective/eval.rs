//! Running a program on the CPU, in f64, one loop over whole columns per instruction.

use super::GraphError;
use super::ops::{BinaryOp, End, ReduceOp, Side, UnaryOp, VisitBinary, VisitUnary};
use super::program::{Extent, Instruction, Operand, Program, Task};
use super::space::SpaceId;
use crate::segments::array::Array;
use crate::segments::{Segments, cpu};
use crate::view::Dtype;

/// Elements of an elementwise loop that one thread works on before another one is asked to help.
const GRAIN: usize = 1 << 14;

/// How the elements of a space are cut by its parent, as given by the caller.
pub enum Cut {
    /// So many elements: one segment if the parent is the batch, else one element per parent element.
    Count(usize),
    /// An i64 array of offsets, one more than the parent has elements.
    Offsets(Array),
}

/// The arrays and numbers of one run, in the order that the program names them.
pub struct Run<'a> {
    /// One array per [`Program::columns`].
    pub columns: &'a [Array],
    /// One number per [`Program::parameters`].
    pub parameters: &'a [f64],
    /// One cut per [`Program::spaces`].
    pub cuts: &'a [Cut],
    /// One array per output.
    pub outputs: &'a [Array],
    /// How many threads may work.
    pub threads: usize,
}

/// The buffers of one run.
#[derive(Default)]
pub struct Scratch {
    slots: Vec<Vec<f64>>,
    /// Number of elements per space.
    lengths: Vec<usize>,
    /// Per space, how its parent cuts it.
    cuts: Vec<Option<Segments>>,
    /// As [`Program::segmentations`].
    segmentations: Vec<Segments>,
}

impl Program {
    /// Checks the arrays, computes, and writes the outputs (after every input has been read).
    pub fn run(&self, run: &Run) -> Result<(), GraphError> {
        let mut scratch = self.take_scratch();
        let result = self.run_in(run, &mut scratch);
        self.lock_idle().push(scratch);
        result
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<Scratch>> {
        // A panic while the lock was held cannot have left the list of buffers half-changed.
        self.idle
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take_scratch(&self) -> Scratch {
        self.lock_idle().pop().unwrap_or_default()
    }

    fn run_in(&self, run: &Run, scratch: &mut Scratch) -> Result<(), GraphError> {
        self.check_counts(run)?;
        self.measure(run, scratch)?;
        self.check_columns(run, scratch)?;
        self.check_outputs(run, scratch)?;
        scratch.slots.resize_with(self.slots, Vec::new);
        for instruction in &self.instructions {
            self.execute(instruction, run, scratch);
        }
        for (&(operand, space), output) in self.outputs.iter().zip(run.outputs) {
            match argument(operand, run, &scratch.slots) {
                Argument::Vector(values) => output.write(values),
                Argument::Scalar(value) => {
                    debug_assert_eq!(scratch.lengths[space], 1);
                    output.write(&[value]);
                }
            }
        }
        Ok(())
    }

    /// The total number of elements of the run's columns: what decides whether it is worth leaving the interpreter.
    pub fn work(&self, run: &Run) -> usize {
        run.columns.iter().map(Array::len).sum()
    }

    fn check_counts(&self, run: &Run) -> Result<(), GraphError> {
        let counts = [
            ("columns", run.columns.len(), self.columns.len()),
            ("parameters", run.parameters.len(), self.parameters.len()),
            ("offsets", run.cuts.len(), self.spaces.len()),
            ("outputs", run.outputs.len(), self.outputs.len()),
        ];
        for (what, got, expected) in counts {
            if got != expected {
                return Err(GraphError(format!("{what}: expected {expected}, got {got}")));
            }
        }
        Ok(())
    }

    /// Finds the number of elements and the segments of every space that the program needs.
    fn measure(&self, run: &Run, scratch: &mut Scratch) -> Result<(), GraphError> {
        scratch.lengths.clear();
        scratch.cuts.clear();
        for (space, extent) in self.extents.iter().enumerate() {
            let cut = match *extent {
                Extent::Unused => None,
                Extent::Batch => Some(Segments::Whole(1)),
                Extent::Given(index) => {
                    let parent = scratch.lengths[self.parents[space]];
                    Some(self.given_cut(space, parent, &run.cuts[index])?)
                }
                Extent::Pairs(elements) => {
                    let pairs = scratch.cuts[elements].as_ref().and_then(Segments::pairs);
                    Some(pairs.ok_or_else(|| {
                        GraphError(format!(
                            "'{}' has too many pairs to count",
                            self.space_name(elements)
                        ))
                    })?)
                }
            };
            scratch
                .lengths
                .push(cut.as_ref().map_or(0, Segments::len));
            scratch.cuts.push(cut);
        }
        scratch.segmentations.clear();
        for &(upper, lower) in &self.segmentations {
            let segments = self.segments_between(upper, lower, scratch);
            scratch.segmentations.push(segments);
        }
        Ok(())
    }

    fn given_cut(&self, space: SpaceId, parent: usize, cut: &Cut) -> Result<Segments, GraphError> {
        let name = self.space_name(space);
        let parent_name = self.space_name(self.parents[space]);
        match cut {
            Cut::Count(count) if self.parents[space] == 0 => Ok(Segments::Whole(*count)),
            Cut::Count(count) if *count == parent => Ok(Segments::OneToOne(*count)),
            Cut::Count(count) => Err(GraphError(format!(
                "offsets of '{name}': a count of {count} means one element per element of '{parent_name}', \
                 of which there are {parent}"
            ))),
            Cut::Offsets(offsets) if offsets.dtype() != Dtype::I64 => Err(GraphError(format!(
                "offsets of '{name}': expected dtype i64, got {}",
                offsets.dtype().name()
            ))),
            Cut::Offsets(offsets) if offsets.len() != parent + 1 => Err(GraphError(format!(
                "offsets of '{name}': expected {} values (one more than '{parent_name}' has elements), got {}",
                parent + 1,
                offsets.len()
            ))),
            Cut::Offsets(offsets) => Segments::from_offsets(offsets.integers())
                .map_err(|problem| GraphError(format!("offsets of '{name}' {problem}"))),
        }
    }

    /// The segments of `lower` by `upper`, an ancestor.
    fn segments_between(&self, upper: SpaceId, lower: SpaceId, scratch: &Scratch) -> Segments {
        if upper == 0 {
            return Segments::Whole(scratch.lengths[lower]);
        }
        let cut = |space: SpaceId| scratch.cuts[space].clone().unwrap_or(Segments::Whole(0));
        let mut segments = cut(lower);
        let mut space = self.parents[lower];
        while space != upper {
            segments = cut(space).compose(&segments);
            space = self.parents[space];
        }
        segments
    }

    fn check_columns(&self, run: &Run, scratch: &Scratch) -> Result<(), GraphError> {
        for ((name, space), column) in self.columns.iter().zip(run.columns) {
            self.check_length(&format_args!("column '{name}'"), *space, column, scratch)?;
        }
        Ok(())
    }

    fn check_outputs(&self, run: &Run, scratch: &Scratch) -> Result<(), GraphError> {
        for (index, (&(_, space), output)) in self.outputs.iter().zip(run.outputs).enumerate() {
            if !matches!(output.dtype(), Dtype::F32 | Dtype::F64) {
                return Err(GraphError(format!(
                    "output {index}: expected dtype f32 or f64, got {}",
                    output.dtype().name()
                )));
            }
            self.check_length(&format_args!("output {index}"), space, output, scratch)?;
        }
        Ok(())
    }

    fn check_length(
        &self,
        what: &std::fmt::Arguments,
        space: SpaceId,
        array: &Array,
        scratch: &Scratch,
    ) -> Result<(), GraphError> {
        let (expected, name) = (scratch.lengths[space], self.space_name(space));
        if array.is_scalar() && space != 0 {
            return Err(GraphError(format!(
                "{what}: expected {expected} values (one per element of '{name}'), got a number without dimension"
            )));
        }
        if array.len() != expected {
            return Err(GraphError(format!(
                "{what}: expected {expected} values (one per element of '{name}'), got {}",
                array.len()
            )));
        }
        Ok(())
    }

    fn execute(&self, instruction: &Instruction, run: &Run, scratch: &mut Scratch) {
        let length = scratch.lengths[instruction.space];
        // Taken out while it is written, so that the other slots can be read.
        let mut out = std::mem::take(&mut scratch.slots[instruction.into]);
        out.resize(length, 0.0);
        let step = Step {
            instruction,
            run,
            slots: &scratch.slots,
            segmentations: &scratch.segmentations,
        };
        step.compute(&mut out);
        scratch.slots[instruction.into] = out;
    }
}

/// The value of an operand.
#[derive(Clone, Copy)]
enum Argument<'a> {
    Scalar(f64),
    Vector(&'a [f64]),
}

fn argument<'a>(operand: Operand, run: &Run, slots: &'a [Vec<f64>]) -> Argument<'a> {
    match operand {
        Operand::Constant(value) => Argument::Scalar(value),
        Operand::Parameter(index) => Argument::Scalar(run.parameters[index]),
        Operand::Scalar(slot) => Argument::Scalar(slots[slot][0]),
        Operand::Vector(slot) => Argument::Vector(&slots[slot]),
    }
}

impl Argument<'_> {
    /// The same elements of the argument as of the result.
    #[inline]
    fn piece(&self, start: usize, len: usize) -> Self {
        match self {
            Argument::Scalar(value) => Argument::Scalar(*value),
            Argument::Vector(values) => Argument::Vector(&values[start..start + len]),
        }
    }

    #[inline]
    fn at(&self, index: usize) -> f64 {
        match self {
            Argument::Scalar(value) => *value,
            Argument::Vector(values) => values[index],
        }
    }
}

/// One instruction being executed.
struct Step<'a> {
    instruction: &'a Instruction,
    run: &'a Run<'a>,
    slots: &'a [Vec<f64>],
    segmentations: &'a [Segments],
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

    fn compute(&self, out: &mut [f64]) {
        let threads = self.run.threads;
        let segments = |index: usize| &self.segmentations[index];
        match self.instruction.task {
            Task::Load(column) => self.run.columns[column].read(out),
            Task::Position(cut) => cpu::positions(segments(cut), out, threads),
            Task::Count(cut) => {
                for (segment, out) in out.iter_mut().enumerate() {
                    *out = segments(cut).range(segment).len() as f64;
                }
            }
            Task::Unary(op) => self.unary(op, out),
            Task::Binary(op) => self.binary(op, out),
            Task::Where => self.select(out),
            Task::Fill => out.fill(self.argument(0).at(0)),
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
                for (out, &index) in out.iter_mut().zip(self.values(1)) {
                    *out = self.values(0)[index as usize];
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
                cpu::select(self.values(0), segments(cut), end == End::Last, out, threads);
            }
            Task::Place(end, cut) => {
                cpu::place(self.values(0), segments(cut), end == End::Last, out, threads);
            }
        }
    }

    fn unary(&self, op: UnaryOp, out: &mut [f64]) {
        op.visit(UnaryLoop {
            x: self.argument(0),
            threads: self.run.threads,
            out,
        });
    }

    fn binary(&self, op: BinaryOp, out: &mut [f64]) {
        op.visit(BinaryLoop {
            a: self.argument(0),
            b: self.argument(1),
            threads: self.run.threads,
            out,
        });
    }

    fn select(&self, out: &mut [f64]) {
        let [condition, a, b] = [0, 1, 2].map(|position| self.argument(position));
        cpu::fill(out, self.run.threads, GRAIN, |start, out| {
            let [condition, a, b] = [condition, a, b].map(|x| x.piece(start, out.len()));
            for (index, out) in out.iter_mut().enumerate() {
                let chosen = if condition.at(index) != 0.0 { &a } else { &b };
                *out = chosen.at(index);
            }
        });
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

struct UnaryLoop<'a, 'o> {
    x: Argument<'a>,
    threads: usize,
    out: &'o mut [f64],
}

impl VisitUnary for UnaryLoop<'_, '_> {
    type Output = ();

    fn visit(self, f: impl Fn(f64) -> f64 + Copy + Sync) {
        cpu::fill(self.out, self.threads, GRAIN, |start, out| {
            match self.x.piece(start, out.len()) {
                Argument::Scalar(x) => out.fill(f(x)),
                Argument::Vector(x) => out.iter_mut().zip(x).for_each(|(out, &x)| *out = f(x)),
            }
        });
    }
}

struct BinaryLoop<'a, 'o> {
    a: Argument<'a>,
    b: Argument<'a>,
    threads: usize,
    out: &'o mut [f64],
}

impl VisitBinary for BinaryLoop<'_, '_> {
    type Output = ();

    fn visit(self, f: impl Fn(f64, f64) -> f64 + Copy + Sync) {
        use Argument::{Scalar, Vector};
        cpu::fill(self.out, self.threads, GRAIN, |start, out| {
            match (
                self.a.piece(start, out.len()),
                self.b.piece(start, out.len()),
            ) {
                (Scalar(a), Scalar(b)) => out.fill(f(a, b)),
                (Vector(a), Scalar(b)) => {
                    out.iter_mut().zip(a).for_each(|(out, &a)| *out = f(a, b));
                }
                (Scalar(a), Vector(b)) => {
                    out.iter_mut().zip(b).for_each(|(out, &b)| *out = f(a, b));
                }
                (Vector(a), Vector(b)) => {
                    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                        *out = f(a, b);
                    }
                }
            }
        });
    }
}

