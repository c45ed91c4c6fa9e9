//! What a program is made of: instructions over numbered slots, and how many elements a space has.

use super::ops::{BinaryOp, End, ReduceOp, Side, UnaryOp};
use super::space::SpaceId;

/// Index of a slot: one value per element of the space of the instruction that writes it.
pub type Slot = usize;

/// Index into [`Program::segmentations`].
pub type Segmentation = usize;

/// Where an instruction finds an argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// A number known when the program was made.
    Constant(f64),
    /// A run-time number, by index into [`Program::parameters`].
    Parameter(usize),
    /// A slot of the batch space: one value for all elements.
    Scalar(Slot),
    /// A slot of the space at hand: one value per element.
    Vector(Slot),
}

/// What an instruction computes; the operators are those of [`Op`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// A column, by index into [`Program::columns`].
    Load(usize),
    /// Positions inside the segments.
    Position(Segmentation),
    /// Sizes of the segments.
    Count(Segmentation),
    /// One argument.
    Unary(UnaryOp),
    /// Two arguments.
    Binary(BinaryOp),
    /// Condition, value where true, value where false.
    Where,
    /// One scalar argument for all elements.
    Fill,
    /// One value per segment, for all its elements.
    Expand(Segmentation),
    /// One value per segment, from all its elements.
    Reduce(ReduceOp, Segmentation),
    /// From elements (cut by the segmentation) to their pairs.
    Project(Side, Segmentation),
    /// From pairs to the elements (cut by the segmentation).
    Collapse(Side, Segmentation),
    /// 1-based ranks inside the segments.
    Rank {
        segments: Segmentation,
        descending: bool,
    },
    /// Indices of the elements in sorted order.
    Order {
        segments: Segmentation,
        descending: bool,
    },
    /// Values, order.
    Gather,
    /// Values, order.
    Scatter,
    /// Values, discount, and perhaps resets.
    Scan {
        segments: Segmentation,
        reverse: bool,
    },
    /// Values at an earlier (by > 0) or later position.
    Shift {
        segments: Segmentation,
        by: i64,
        fill: f64,
    },
    /// First or last element of each segment.
    Select(End, Segmentation),
    /// One value per segment, at its first or last element.
    Place(End, Segmentation),
}

impl Task {
    /// Whether element k of the result needs nothing but element k of the arguments.
    pub fn is_elementwise(self) -> bool {
        matches!(
            self,
            Task::Load(_) | Task::Unary(_) | Task::Binary(_) | Task::Where | Task::Fill
        )
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// What is computed.
    pub task: Task,
    /// The arguments, in the order that the task names them.
    pub args: Vec<Operand>,
    /// Where the result goes; never one of the arguments.
    pub into: Slot,
    /// The space of the result.
    pub space: SpaceId,
}

/// How many elements a space has, or how its elements are found from others'.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Extent {
    /// Not needed by this program.
    Unused,
    /// One element.
    Batch,
    /// Given at run time, by index into [`Program::spaces`].
    Given(usize),
    /// The pairs of this space's elements.
    Pairs(SpaceId),
}
