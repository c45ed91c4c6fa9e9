//! Running a program on the CPU: the arrays are checked, the spaces measured, the instructions executed in order.

use super::GraphError;
use super::instruction::{Extent, Instruction, Slot};
use super::program::Program;
use super::run::{Cut, Run, Scratch};
use super::space::{BATCH, SpaceId};
use super::step::{Argument, Block, Step, argument};
use crate::array::{Array, Dtype};
use crate::segments::{Segments, cpu};

/// Elements that elementwise instructions take at a time: a dozen slots of as many fit into a second-level cache.
const BLOCK: usize = 1 << 12;

/// Buffers that a program keeps for its next runs: one set per thread that calls it at the same time, up to this many.
const MOST_IDLE: usize = 4;

impl Program {
    /// Checks the arrays, computes, and writes the outputs (after every input has been read).
    pub fn run(&self, run: &Run) -> Result<(), GraphError> {
        let mut scratch = self.take_scratch();
        let result = self.run_in(run, &mut scratch);
        let mut idle = self.lock_idle();
        if idle.len() < MOST_IDLE {
            idle.push(scratch);
        }
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
        self.place_outputs(run, scratch)?;
        scratch.slots.resize_with(self.slots, Vec::new);
        let mut rest = self.instructions.as_slice();
        while let Some(first) = rest.first() {
            let long = scratch.lengths[first.space] > BLOCK;
            let together = if long { elementwise_prefix(rest) } else { 0 };
            if together == 0 {
                self.execute(first, run, scratch)?;
            } else {
                self.execute_blocks(&rest[..together], run, scratch)?;
            }
            rest = &rest[together.max(1)..];
        }
        for &(operand, place) in &scratch.places {
            match argument(operand, run, &scratch.slots) {
                Argument::Vector(values) => place.write(values),
                Argument::Scalar(value) => {
                    debug_assert_eq!(place.len(), 1);
                    place.write(&[value]);
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
        ];
        for (what, got, expected) in counts {
            if got != expected {
                return Err(GraphError(format!(
                    "{what}: expected {expected}, got {got}"
                )));
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
            scratch.lengths.push(cut.as_ref().map_or(0, Segments::len));
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
            Cut::Count(count) if self.parents[space] == BATCH => Ok(Segments::Whole(*count)),
            Cut::Count(count) if *count == parent => Ok(Segments::OneToOne(*count)),
            Cut::Count(count) => Err(GraphError(format!(
                "offsets of '{name}': a count of {count} means one element per element of '{parent_name}', \
                 of which there are {parent}"
            ))),
            Cut::Offsets(offsets) if offsets.dtype != Dtype::I64 => Err(GraphError(format!(
                "offsets of '{name}': expected dtype i64, got {}",
                offsets.dtype.name()
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
        if upper == BATCH {
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

    /// Finds each output's elements in the arrays given.
    fn place_outputs(&self, run: &Run, scratch: &mut Scratch) -> Result<(), GraphError> {
        for (index, array) in run.outputs.iter().enumerate() {
            if !matches!(array.dtype, Dtype::F32 | Dtype::F64) {
                return Err(GraphError(format!(
                    "outputs[{index}]: expected dtype f32 or f64, got {}",
                    array.dtype.name()
                )));
            }
        }
        scratch.places.clear();
        let mut arrays = run.outputs.iter().filter(|array| !array.is_empty());
        let (mut array, mut start) = (arrays.next(), 0);
        for (index, &(operand, space)) in self.outputs.iter().enumerate() {
            let length = scratch.lengths[space];
            if length == 0 {
                continue;
            }
            if array.is_some_and(|array| array.len() == start) {
                (array, start) = (arrays.next(), 0);
            }
            let room = array.map_or(0, |array| array.len() - start);
            let Some(array) = array.filter(|_| room >= length) else {
                return Err(GraphError(format!(
                    "output {index}: expected room for {length} values (one per element of '{}'), got {room}",
                    self.space_name(space)
                )));
            };
            scratch.places.push((operand, array.part(start, length)));
            start += length;
        }
        let left =
            array.map_or(0, |array| array.len() - start) + arrays.map(Array::len).sum::<usize>();
        if left > 0 {
            return Err(GraphError(format!("outputs: {left} values are not filled")));
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
        if array.is_scalar() && space != BATCH {
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

    fn execute(
        &self,
        instruction: &Instruction,
        run: &Run,
        scratch: &mut Scratch,
    ) -> Result<(), GraphError> {
        // Taken out while it is written, so that the other slots can be read.
        let mut out = self.take_slot(instruction, scratch)?;
        let step = Step {
            instruction,
            run,
            slots: &scratch.slots,
            segmentations: &scratch.segmentations,
        };
        step.compute(&mut out);
        scratch.slots[instruction.into] = out;
        Ok(())
    }

    /// The buffer that an instruction writes, with as many elements as its space has.
    fn take_slot(
        &self,
        instruction: &Instruction,
        scratch: &mut Scratch,
    ) -> Result<Vec<f64>, GraphError> {
        let length = scratch.lengths[instruction.space];
        let mut out = std::mem::take(&mut scratch.slots[instruction.into]);
        // A group of a million responses has a trillion pairs: no reason to take the process down.
        if out.try_reserve(length.saturating_sub(out.len())).is_err() {
            let space = self.space_name(instruction.space);
            return Err(GraphError(format!(
                "not enough memory for the {length} elements of '{space}'"
            )));
        }
        out.resize(length, 0.0);
        Ok(out)
    }

    /// Runs elementwise instructions on one space block by block: a block's intermediate values stay in the cache.
    fn execute_blocks(
        &self,
        instructions: &[Instruction],
        run: &Run,
        scratch: &mut Scratch,
    ) -> Result<(), GraphError> {
        let mut written: Vec<Slot> = instructions.iter().map(|step| step.into).collect();
        written.sort_unstable();
        written.dedup();
        let mut buffers = Vec::with_capacity(written.len());
        for &slot in &written {
            let writes = |step: &&Instruction| step.into == slot;
            if let Some(instruction) = instructions.iter().find(writes) {
                buffers.push(self.take_slot(instruction, scratch)?);
            }
        }
        let slots = &scratch.slots;
        let mut cut: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| buffer.chunks_mut(BLOCK))
            .collect();
        let blocks = std::iter::from_fn(|| {
            let pieces: Vec<&mut [f64]> = cut.iter_mut().filter_map(Iterator::next).collect();
            (pieces.len() == written.len()).then_some(pieces)
        });
        cpu::for_each(
            run.threads,
            (0..).step_by(BLOCK).zip(blocks),
            |(start, pieces)| {
                Block {
                    start,
                    written: &written,
                    pieces,
                    slots,
                    run,
                }
                .compute(instructions);
            },
        );
        for (&slot, buffer) in written.iter().zip(buffers) {
            scratch.slots[slot] = buffer;
        }
        Ok(())
    }
}

/// How many of the first instructions are elementwise on the first one's space.
fn elementwise_prefix(instructions: &[Instruction]) -> usize {
    let joins =
        |step: &&Instruction| step.task.is_elementwise() && step.space == instructions[0].space;
    instructions.iter().take_while(joins).count()
}
