//! From a graph to a flat program: instructions in order of evaluation over numbered slots, each slot reused as soon as
//! its value is no longer needed.

use super::GraphError;
use super::expr::{Graph, Id, Op};
use super::instruction::{Extent, Instruction, Operand, Segmentation, Slot, Task};
use super::run::Scratch;
use super::space::{BATCH, SpaceId};
use std::collections::HashMap;
use std::sync::Mutex;

/// A compiled set of outputs; can be run any number of times, from several threads at once.
pub struct Program {
    /// The columns that `run` wants, in order: name and space.
    pub columns: Vec<(String, SpaceId)>,
    /// The parameters that `run` wants, in order.
    pub parameters: Vec<String>,
    /// The spaces whose segments `run` wants, in order, parents before children.
    pub spaces: Vec<SpaceId>,
    /// Pairs (coarser space, finer space) between which instructions reduce or expand.
    pub segmentations: Vec<(SpaceId, SpaceId)>,
    /// The steps.
    pub instructions: Vec<Instruction>,
    /// Where each output is at the end, and its space.
    pub outputs: Vec<(Operand, SpaceId)>,
    /// The number of slots.
    pub slots: usize,
    /// Name, parent and extent of every space of the graph.
    pub(super) space_names: Vec<String>,
    pub(super) parents: Vec<SpaceId>,
    pub(super) extents: Vec<Extent>,
    /// Buffers of finished runs, for the next ones.
    pub(super) idle: Mutex<Vec<Scratch>>,
}

impl Graph {
    /// A program that computes the outputs.
    pub fn compile(&self, outputs: &[Id]) -> Result<Program, GraphError> {
        let order = self.schedule(outputs);
        let mut compiler = Compiler::new(self, outputs, &order);
        for id in order {
            compiler.emit(id);
        }
        Ok(compiler.finish(outputs))
    }
}

impl Graph {
    /// The nodes that the outputs need, in an order in which arguments come first and elementwise work on one space
    /// stands together, where it runs block by block through the cache.
    fn schedule(&self, outputs: &[Id]) -> Vec<Id> {
        let mut waiting = self.reachable(outputs);
        let mut done = vec![false; self.size()];
        let mut order = Vec::with_capacity(waiting.len());
        let mut current = None;
        while !waiting.is_empty() {
            let ready = |&id: &Id| self.node(id).args().iter().all(|&arg| done[arg as usize]);
            let ready = || (0..waiting.len()).filter(|&index| ready(&waiting[index]));
            let kind = |index: usize| self.block_of(waiting[index]);
            let next = ready()
                .find(|&index| current.is_some() && kind(index) == current)
                // What is not part of a block may be what a later block waits for.
                .or_else(|| ready().find(|&index| kind(index).is_none()))
                .or_else(|| ready().min_by_key(|&index| kind(index)))
                .unwrap_or(0);
            current = kind(next);
            let id = waiting.remove(next);
            done[id as usize] = true;
            order.push(id);
        }
        order
    }

    /// The space of an elementwise node that is worth grouping.
    fn block_of(&self, id: Id) -> Option<SpaceId> {
        let node = self.node(id);
        let elementwise = matches!(
            node.op,
            Op::Column(_) | Op::Unary(_) | Op::Binary(_) | Op::Where
        );
        (elementwise && node.space != BATCH).then_some(node.space)
    }
}

struct Compiler<'a> {
    graph: &'a Graph,
    program: Program,
    /// Where each node's value is.
    operands: HashMap<Id, Operand>,
    /// The last instruction (by node) that needs a node's value; none for an output.
    last_use: HashMap<Id, Option<Id>>,
    free: HashMap<SpaceId, Vec<Slot>>,
    needed: Vec<bool>,
}

impl<'a> Compiler<'a> {
    fn new(graph: &'a Graph, outputs: &[Id], order: &[Id]) -> Self {
        let mut compiler = Compiler {
            graph,
            program: Program {
                columns: Vec::new(),
                parameters: Vec::new(),
                spaces: Vec::new(),
                segmentations: Vec::new(),
                instructions: Vec::new(),
                outputs: Vec::new(),
                slots: 0,
                space_names: Vec::new(),
                parents: Vec::new(),
                extents: Vec::new(),
                idle: Mutex::new(Vec::new()),
            },
            operands: HashMap::new(),
            last_use: HashMap::new(),
            free: HashMap::new(),
            needed: vec![false; graph.spaces.ids().end],
        };
        for &id in order {
            for &arg in graph.node(id).args() {
                let source = compiler.source(arg);
                compiler.last_use.insert(source, Some(id));
            }
        }
        for &id in outputs {
            let source = compiler.source(id);
            compiler.last_use.insert(source, None);
            compiler.need(graph.node(id).space);
        }
        compiler
    }

    /// The node that holds a node's value: `stop_gradient` computes nothing.
    fn source(&self, mut id: Id) -> Id {
        while self.graph.node(id).op == Op::StopGradient {
            id = self.graph.node(id).args()[0];
        }
        id
    }

    /// Marks a space, and all that its extent follows from, as needed.
    fn need(&mut self, mut space: SpaceId) {
        let spaces = &self.graph.spaces;
        space = spaces.pairs_of(space).map_or(space, |elements| {
            self.needed[space] = true;
            elements
        });
        while let Some(parent) = spaces.parent(space) {
            self.needed[space] = true;
            space = parent;
        }
    }

    fn segmentation(&mut self, upper: SpaceId, lower: SpaceId) -> Segmentation {
        self.need(lower);
        let known = &mut self.program.segmentations;
        known
            .iter()
            .position(|&pair| pair == (upper, lower))
            .unwrap_or_else(|| {
                known.push((upper, lower));
                known.len() - 1
            })
    }

    /// The segmentation of a space by its parent.
    fn by_parent(&mut self, space: SpaceId) -> Segmentation {
        let parent = self.graph.spaces.parent(space).unwrap_or(BATCH);
        self.segmentation(parent, space)
    }

    fn emit(&mut self, id: Id) {
        let node = self.graph.node(id);
        let arg_space = |graph: &Graph| graph.node(node.args()[0]).space;
        let task = match node.op {
            Op::StopGradient => return,
            Op::Constant(bits) => {
                let value = Operand::Constant(f64::from_bits(bits));
                self.operands.insert(id, value);
                return;
            }
            Op::Parameter(index) => {
                let name = &self.graph.parameters()[index as usize];
                self.program.parameters.push(name.clone());
                let value = Operand::Parameter(self.program.parameters.len() - 1);
                self.operands.insert(id, value);
                return;
            }
            Op::Column(index) => {
                let column = self.graph.columns()[index as usize].clone();
                self.program.columns.push(column);
                Task::Load(self.program.columns.len() - 1)
            }
            Op::Position => Task::Position(self.by_parent(node.space)),
            Op::Count(of) => Task::Count(self.segmentation(node.space, of)),
            Op::Unary(op) => Task::Unary(op),
            Op::Binary(op) => Task::Binary(op),
            Op::Where => Task::Where,
            Op::Broadcast => match arg_space(self.graph) {
                BATCH => Task::Fill,
                upper => Task::Expand(self.segmentation(upper, node.space)),
            },
            Op::Reduce(op) => {
                let lower = arg_space(self.graph);
                Task::Reduce(op, self.segmentation(node.space, lower))
            }
            Op::Project(side) => Task::Project(side, self.by_parent(arg_space(self.graph))),
            Op::Collapse(side) => Task::Collapse(side, self.by_parent(node.space)),
            Op::Rank { within, descending } => Task::Rank {
                segments: self.segmentation(within, node.space),
                descending,
            },
            Op::Order { within, descending } => Task::Order {
                segments: self.segmentation(within, node.space),
                descending,
            },
            Op::Gather => Task::Gather,
            Op::Scatter => Task::Scatter,
            Op::Scan { reverse } => Task::Scan {
                segments: self.by_parent(node.space),
                reverse,
            },
            Op::Shift { by, fill } => Task::Shift {
                segments: self.by_parent(node.space),
                by,
                fill: f64::from_bits(fill),
            },
            Op::Select(end) => {
                let lower = arg_space(self.graph);
                Task::Select(end, self.segmentation(node.space, lower))
            }
            Op::Place(end) => Task::Place(end, self.by_parent(node.space)),
        };
        self.need(node.space);
        let args: Vec<Operand> = node
            .args()
            .iter()
            .map(|&arg| self.operands[&self.source(arg)])
            .collect();
        // The result's slot is taken before the arguments' are given back: no instruction works in place.
        let into = self.take_slot(node.space);
        self.release(id);
        self.operands.insert(
            id,
            if node.space == BATCH {
                Operand::Scalar(into)
            } else {
                Operand::Vector(into)
            },
        );
        self.program.instructions.push(Instruction {
            task,
            args,
            into,
            space: node.space,
        });
    }

    fn take_slot(&mut self, space: SpaceId) -> Slot {
        let free = self.free.entry(space).or_default();
        free.pop().unwrap_or_else(|| {
            self.program.slots += 1;
            self.program.slots - 1
        })
    }

    /// Gives back the slots of the arguments that no later instruction needs.
    fn release(&mut self, id: Id) {
        let mut done: Vec<Id> = self.graph.node(id).args().to_vec();
        done.iter_mut().for_each(|arg| *arg = self.source(*arg));
        done.sort_unstable();
        done.dedup();
        for arg in done {
            if self.last_use[&arg] == Some(id)
                && let Operand::Scalar(slot) | Operand::Vector(slot) = self.operands[&arg]
            {
                let space = self.graph.node(arg).space;
                self.free.entry(space).or_default().push(slot);
            }
        }
    }

    fn finish(mut self, outputs: &[Id]) -> Program {
        let spaces = &self.graph.spaces;
        for space in spaces.ids() {
            self.program.space_names.push(spaces.name(space).into());
            self.program
                .parents
                .push(spaces.parent(space).unwrap_or(BATCH));
            let extent = match (space, spaces.pairs_of(space)) {
                (BATCH, _) => Extent::Batch,
                _ if !self.needed[space] => Extent::Unused,
                (_, Some(elements)) => Extent::Pairs(elements),
                (_, None) => {
                    self.program.spaces.push(space);
                    Extent::Given(self.program.spaces.len() - 1)
                }
            };
            self.program.extents.push(extent);
        }
        self.program.outputs = outputs
            .iter()
            .map(|&id| {
                let space = self.graph.node(id).space;
                (self.operands[&self.source(id)], space)
            })
            .collect();
        self.program
    }
}

impl Program {
    /// The name of a space.
    pub fn space_name(&self, space: SpaceId) -> &str {
        &self.space_names[space]
    }

    /// One line per instruction.
    pub fn listing(&self) -> Vec<String> {
        self.instructions
            .iter()
            .map(|instruction| {
                let args: Vec<String> = instruction
                    .args
                    .iter()
                    .map(|arg| self.operand_text(*arg))
                    .collect();
                let text = format!(
                    "%{} [{}] = {} {}",
                    instruction.into,
                    self.space_name(instruction.space),
                    self.task_text(instruction.task),
                    args.join(", ")
                );
                text.trim_end().to_string()
            })
            .collect()
    }

    fn operand_text(&self, operand: Operand) -> String {
        match operand {
            Operand::Constant(value) => value.to_string(),
            Operand::Parameter(index) => self.parameters[index].clone(),
            Operand::Scalar(slot) | Operand::Vector(slot) => format!("%{slot}"),
        }
    }

    fn task_text(&self, task: Task) -> String {
        let between = |segments: Segmentation| {
            let (upper, lower) = self.segmentations[segments];
            format!("({} > {})", self.space_name(upper), self.space_name(lower))
        };
        let direction = |descending: bool| {
            if descending {
                "descending"
            } else {
                "ascending"
            }
        };
        match task {
            Task::Load(column) => format!("load {}", self.columns[column].0),
            Task::Position(segments) => format!("position {}", between(segments)),
            Task::Count(segments) => format!("count {}", between(segments)),
            Task::Unary(op) => op.name().into(),
            Task::Binary(op) => op.name().into(),
            Task::Where => "where".into(),
            Task::Fill => "fill".into(),
            Task::Expand(segments) => format!("expand {}", between(segments)),
            Task::Reduce(op, segments) => format!("{} {}", op.name(), between(segments)),
            Task::Project(side, segments) => {
                format!("project_{} {}", side.name(), between(segments))
            }
            Task::Collapse(side, segments) => {
                format!("collapse_{} {}", side.name(), between(segments))
            }
            Task::Rank {
                segments,
                descending,
            } => format!("rank {} {}", direction(descending), between(segments)),
            Task::Order {
                segments,
                descending,
            } => format!("order {} {}", direction(descending), between(segments)),
            Task::Gather => "gather".into(),
            Task::Scatter => "scatter".into(),
            Task::Scan { segments, reverse } => {
                let name = if reverse { "suffix_sum" } else { "prefix_sum" };
                format!("{name} {}", between(segments))
            }
            Task::Shift { segments, by, fill } => {
                format!("shift by {by} fill {fill} {}", between(segments))
            }
            Task::Select(end, segments) => format!("{} {}", end.name(), between(segments)),
            Task::Place(end, segments) => format!("place_{} {}", end.name(), between(segments)),
        }
    }
}
