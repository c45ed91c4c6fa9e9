//! What one run of a program takes: arrays, numbers, cuts, and buffers.

use super::instruction::Operand;
use crate::array::Array;
use crate::segments::Segments;

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
    /// Arrays that the outputs fill in order, one behind the other: one array for all, one for each, or between.
    pub outputs: &'a [Array],
    /// How many threads may work.
    pub threads: usize,
}

/// The buffers of one run.
#[derive(Default)]
pub struct Scratch {
    pub(super) slots: Vec<Vec<f64>>,
    /// Number of elements per space.
    pub(super) lengths: Vec<usize>,
    /// Per space, how its parent cuts it.
    pub(super) cuts: Vec<Option<Segments>>,
    /// As [`Program::segmentations`].
    pub(super) segmentations: Vec<Segments>,
    /// Where the outputs that have elements go.
    pub(super) places: Vec<(Operand, Array)>,
}
