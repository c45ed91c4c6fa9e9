//! A program's instructions as values, each with one definition, and what is known of them before they are scheduled.

use crate::objective::instruction::{Operand, Task};
use crate::objective::ops::{BinaryOp, UnaryOp};
use crate::objective::program::Program;
use crate::objective::space::{BATCH, SpaceId};

/// Index of a value: that of the instruction that computes it.
pub type ValueId = usize;

/// Where a value finds an argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    /// A number known now.
    Constant(f64),
    /// A kernel argument.
    Parameter(usize),
    /// Another value: of the batch, or of the space that the task says.
    Value(ValueId),
}

impl Source {
    /// The value, if it is one.
    pub fn value(self) -> Option<ValueId> {
        match self {
            Source::Value(value) => Some(value),
            _ => None,
        }
    }
}

/// What one instruction computes.
#[derive(Clone, Debug)]
pub struct Value {
    pub task: Task,
    pub args: Vec<Source>,
    pub space: SpaceId,
}

/// How a task gets at one of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// At the same element, or a number of the batch: computed in place.
    Here,
    /// At an element that always exists (that of a coarser space, or of a pair): computed in place, if that is cheap.
    Mapped,
    /// At elements that may not exist or are many: only from memory.
    Addressed,
}

impl Value {
    /// How this value is found in place from its arguments: `false` for what other threads have to finish first.
    pub fn is_pointwise(&self) -> bool {
        !matches!(
            self.task,
            Task::Reduce(..)
                | Task::Collapse(..)
                | Task::Scatter
                | Task::Order { .. }
                | Task::Scan { .. }
        )
    }

    /// How an argument is read.
    pub fn access(&self, position: usize) -> Access {
        match (self.task, position) {
            (Task::Expand(_) | Task::Project(..) | Task::Place(..), 0) => Access::Mapped,
            (Task::Gather | Task::Shift { .. } | Task::Select(..), 0) => Access::Addressed,
            (Task::Rank { .. } | Task::Order { .. }, 0) => Access::Addressed,
            (Task::Scan { .. }, 2) => Access::Addressed,
            _ => Access::Here,
        }
    }

    /// The work of computing it once its arguments are there, in additions.
    pub fn work(&self) -> u32 {
        match self.task {
            Task::Load(_) | Task::Position(_) | Task::Count(_) | Task::Place(..) => 2,
            Task::Fill => 0,
            Task::Expand(_) | Task::Select(..) | Task::Shift { .. } | Task::Gather => 2,
            Task::Project(..) => 4,
            Task::Unary(op) => unary_work(op),
            Task::Binary(BinaryOp::Div) => 8,
            Task::Binary(BinaryOp::Pow) => 100,
            Task::Binary(_) | Task::Where => 1,
            Task::Rank { .. } => 1000,
            Task::Reduce(..)
            | Task::Collapse(..)
            | Task::Scatter
            | Task::Order { .. }
            | Task::Scan { .. } => 0,
        }
    }
}

fn unary_work(op: UnaryOp) -> u32 {
    use UnaryOp::*;
    match op {
        Neg | Relu | Abs | Sign | Square | Not => 1,
        Sqrt | Reciprocal => 8,
        Exp | Log | Log1p | Expm1 | Tanh => 30,
        Log1mexp | Sigmoid | LogSigmoid | Softplus => 60,
    }
}

/// The values of a program, in order of evaluation, and where its outputs are.
pub struct Values {
    pub all: Vec<Value>,
    pub outputs: Vec<(Source, SpaceId)>,
}

impl Values {
    /// Follows which instruction wrote each slot last.
    pub fn new(program: &Program) -> Values {
        let mut writer = vec![0; program.slots];
        let mut all = Vec::with_capacity(program.instructions.len());
        let source = |operand: Operand, writer: &[ValueId]| match operand {
            Operand::Constant(value) => Source::Constant(value),
            Operand::Parameter(index) => Source::Parameter(index),
            Operand::Scalar(slot) | Operand::Vector(slot) => Source::Value(writer[slot]),
        };
        for (id, instruction) in program.instructions.iter().enumerate() {
            let args = instruction.args.iter();
            all.push(Value {
                task: instruction.task,
                args: args.map(|&operand| source(operand, &writer)).collect(),
                space: instruction.space,
            });
            writer[instruction.into] = id;
        }
        let outputs = program.outputs.iter();
        Values {
            outputs: outputs
                .map(|&(operand, space)| (source(operand, &writer), space))
                .collect(),
            all,
        }
    }

    /// The reduction to the batch that an output is, if it is nothing else.
    pub fn reduction_behind(&self, output: usize) -> Option<ValueId> {
        let (source, space) = self.outputs[output];
        let id = source.value().filter(|_| space == BATCH)?;
        let value = &self.all[id];
        (matches!(value.task, Task::Reduce(..)) && value.space == BATCH).then_some(id)
    }

    /// The values among a value's arguments, and how they are read. Numbers of the batch can be read anywhere.
    pub fn reads(&self, id: ValueId) -> impl Iterator<Item = (ValueId, Access)> {
        let value = &self.all[id];
        value
            .args
            .iter()
            .enumerate()
            .filter_map(move |(position, source)| {
                let arg = source.value()?;
                let access = match value.access(position) {
                    Access::Mapped if self.all[arg].space == BATCH => Access::Here,
                    access => access,
                };
                Some((arg, access))
            })
    }
}
