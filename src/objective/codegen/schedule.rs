//! When each value is computed: stages, between which all threads wait, and in each stage the walks over spaces.
//!
//! A value that other threads' values go into (a reduction, a scan, an order) ends a stage. Everything else is computed
//! where it is used, as often as it is used, unless that is dear: such values are kept in the workspace, too.

use std::collections::BTreeSet;

use super::values::{Access, ValueId, Values};
use crate::objective::instruction::{Extent, Task};
use crate::objective::ops::{ReduceOp, Side};
use crate::objective::program::Program;
use crate::objective::space::{BATCH, SpaceId};

/// Work (in additions) up to which a value is computed again rather than kept.
const CHEAP: u32 = 12;
/// The same for a number of the batch, which every thread needs only once in a stage.
const CHEAP_NUMBER: u32 = 200;

/// Index of an array of the workspace.
pub type Slot = usize;

/// How long an array of the workspace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotSize {
    /// One number per element.
    Elements(SpaceId),
    /// One number per chunk of the space.
    Chunks(SpaceId),
    /// One offset per element of the parent, and one more.
    Offsets(SpaceId),
}

/// How the elements of a space are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// The offsets of a pair space are counted.
    Pairs(SpaceId),
    /// One thread, for numbers of the batch.
    Once,
    /// One thread per element.
    Elements(SpaceId),
    /// One block per chunk of elements.
    Chunks(SpaceId),
    /// One team per segment of the second space by the first.
    Segments(SpaceId, SpaceId),
    /// One team per element, over the pairs in which it stands on the side.
    Squares(Side, SpaceId),
    /// One warp per segment (by the elements of a space), in order, for one scan.
    Scan(ValueId, SpaceId),
    /// One warp per reduction to the batch, over the chunks.
    Finish,
}

impl Walk {
    /// Whether only the first block works.
    pub fn is_small(self) -> bool {
        matches!(self, Walk::Once | Walk::Finish | Walk::Pairs(_))
    }

    /// Whether every element of a space is visited, once.
    fn is_over(self, space: SpaceId) -> bool {
        match self {
            Walk::Elements(lower) | Walk::Chunks(lower) | Walk::Segments(_, lower) => {
                lower == space
            }
            _ => false,
        }
    }
}

/// What is done with values during a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// The value is kept in its slot.
    Store(ValueId),
    /// An output is written.
    Output(usize),
    /// The argument goes into the sum, maximum, … of a segment, a square or a chunk.
    Reduce(ValueId),
    /// The chunks' parts are put together, and written to the outputs that are the value.
    Finish(ValueId),
    /// The argument is written where the order says.
    Scatter(ValueId),
    /// The element's number is written at its sorted place.
    Order(ValueId),
    /// The walk's scan.
    Scan(ValueId),
}

/// A walk and its sinks.
#[derive(Debug)]
pub struct Traversal {
    pub walk: Walk,
    pub sinks: Vec<Sink>,
}

/// Traversals that may run at the same time.
pub type Stage = Vec<Traversal>;

/// The plan of a program.
pub struct Schedule {
    pub stages: Vec<Stage>,
    /// The stage in which each value is written to its slot, if it has one.
    pub kept: Vec<Option<usize>>,
    /// The slot of each value; that of a pair space's offsets is in `offsets`.
    pub slot_of: Vec<Option<Slot>>,
    /// The slots of the parts of a reduction to the batch: one, or two for a logsumexp.
    pub parts: Vec<Vec<Slot>>,
    /// The slot of the offsets of each space that is a pair space in use.
    pub offsets: Vec<Option<Slot>>,
    pub slots: Vec<SlotSize>,
}

impl Schedule {
    pub fn new(program: &Program, values: &Values) -> Schedule {
        let count = values.all.len();
        let mut planner = Planner {
            program,
            values,
            cost: vec![0; count],
            wanted: vec![false; count],
            here: vec![0; count],
            mapped: vec![0; count],
            last_read: vec![0; count],
            result: Schedule {
                stages: Vec::new(),
                kept: vec![None; count],
                slot_of: vec![None; count],
                parts: vec![Vec::new(); count],
                offsets: vec![None; program.extents.len()],
                slots: Vec::new(),
            },
        };
        planner.choose_kept();
        planner.time();
        planner.keep_dear();
        planner.fill_stages();
        planner.assign_slots();
        planner.result
    }

    /// Whether the value can be read from memory in a stage.
    pub fn is_kept_before(&self, id: ValueId, stage: usize) -> bool {
        self.kept[id].is_some_and(|kept| kept < stage)
    }
}

struct Planner<'a> {
    program: &'a Program,
    values: &'a Values,
    /// Work of computing a value in place.
    cost: Vec<u32>,
    /// Values that have to be kept whatever they cost.
    wanted: Vec<bool>,
    /// The first stage in which a value is there for the thread that visits its element,
    here: Vec<usize>,
    /// and for other threads.
    mapped: Vec<usize>,
    /// The last stage that reads it.
    last_read: Vec<usize>,
    result: Schedule,
}

impl Planner<'_> {
    fn is_pair_space(&self, space: SpaceId) -> bool {
        matches!(self.program.extents[space], Extent::Pairs(_))
    }

    /// Marks what must be kept: what is read by address, and what is dear and read by threads of a finer space.
    fn choose_kept(&mut self) {
        for id in 0..self.values.all.len() {
            let value = &self.values.all[id];
            let mut cost = value.work();
            for (arg, access) in self.values.reads(id) {
                let dear = access == Access::Mapped && self.cost[arg] > CHEAP;
                let addressed = access == Access::Addressed
                    && !matches!(self.values.all[arg].task, Task::Load(_));
                self.wanted[arg] |= dear || addressed;
                cost += if self.wanted[arg] { 2 } else { self.cost[arg] };
            }
            self.cost[id] = if value.is_pointwise() {
                cost.min(1 << 20)
            } else {
                2
            };
        }
    }

    /// Finds the first stage of everything.
    fn time(&mut self) {
        for id in 0..self.values.all.len() {
            let value = &self.values.all[id];
            // The offsets of pairs are counted in stage 0.
            let counts_pairs = match value.task {
                Task::Count(cut) => self.is_pair_space(self.program.segmentations[cut].1),
                _ => self.is_pair_space(value.space),
            };
            let first = usize::from(counts_pairs);
            let (mut here, mut mapped) = (first, first);
            for (arg, access) in self.values.reads(id) {
                let by_others = match access {
                    Access::Addressed => self.in_memory(arg),
                    _ => self.mapped[arg],
                };
                mapped = mapped.max(by_others);
                here = here.max(if access == Access::Here {
                    self.here[arg]
                } else {
                    by_others
                });
            }
            if !value.is_pointwise() {
                let to_batch = matches!(value.task, Task::Reduce(..)) && value.space == BATCH;
                let kept = here + usize::from(to_batch);
                self.result.kept[id] = Some(kept);
                (here, mapped) = (kept + 1, kept + 1);
            } else if self.wanted[id] {
                self.result.kept[id] = Some(here);
                mapped = here + 1;
            }
            self.here[id] = here;
            self.mapped[id] = mapped;
        }
    }

    /// The first stage in which any element of a value can be read from memory.
    fn in_memory(&self, id: ValueId) -> usize {
        match self.values.all[id].task {
            Task::Load(_) => self.here[id],
            _ => self.result.kept[id].map_or(0, |kept| kept + 1),
        }
    }

    /// The stage in which a value that is not pointwise is put together from its arguments.
    fn gathered(&self, id: ValueId) -> usize {
        let value = &self.values.all[id];
        let to_batch = matches!(value.task, Task::Reduce(..)) && value.space == BATCH;
        self.result.kept[id].unwrap_or(0) - usize::from(to_batch)
    }

    /// Keeps dear values that are needed in several stages, and notes when each is read.
    fn keep_dear(&mut self) {
        let mut demand: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.values.all.len()];
        for &(source, _) in &self.values.outputs {
            if let Some(id) = source.value() {
                demand[id].insert(self.here[id]);
            }
        }
        for id in (0..self.values.all.len()).rev() {
            self.last_read[id] = self.last_read[id].max(demand[id].last().copied().unwrap_or(0));
            let value = &self.values.all[id];
            let limit = if value.space == BATCH {
                CHEAP_NUMBER
            } else {
                CHEAP
            };
            if self.result.kept[id].is_none() && demand[id].len() > 1 && self.cost[id] > limit {
                self.result.kept[id] = demand[id].first().copied();
            }
            let computed = match self.result.kept[id] {
                _ if !value.is_pointwise() => BTreeSet::from([self.gathered(id)]),
                Some(kept) => BTreeSet::from([kept]),
                None => std::mem::take(&mut demand[id]),
            };
            let last = computed.last().copied().unwrap_or(0);
            for (arg, access) in self.values.reads(id) {
                self.last_read[arg] = self.last_read[arg].max(last);
                if access != Access::Addressed {
                    demand[arg].extend(&computed);
                }
            }
        }
    }

    /// Puts every sink into a traversal of its stage.
    fn fill_stages(&mut self) {
        for (number, sinks) in self.sinks().into_iter().enumerate() {
            let mut stage = Stage::new();
            if number == 0 {
                stage.extend(self.pair_counts());
            }
            // What insists on a walk comes first; the others join a walk over their space.
            let mut joining = Vec::new();
            for sink in sinks {
                match self.own_walk(sink) {
                    Some(walk) => join(&mut stage, |other| other == walk, walk, sink),
                    None => joining.push((self.preferred_walk(sink, number), sink)),
                }
            }
            joining.sort_by_key(|(walk, _)| !matches!(walk, Walk::Segments(..)));
            for (walk, sink) in joining {
                let known = stage.iter().any(|traversal| traversal.walk == walk);
                let space = self.space_of(sink);
                let suits = |other: Walk| {
                    if known {
                        other == walk
                    } else {
                        other.is_over(space)
                    }
                };
                join(&mut stage, suits, walk, sink);
            }
            self.result.stages.push(stage);
        }
    }

    /// What is done with values, stage by stage.
    fn sinks(&self) -> Vec<Vec<Sink>> {
        let mut sinks: Vec<Vec<Sink>> = Vec::new();
        let mut add = |stage: usize, sink: Sink| {
            if sinks.len() <= stage {
                sinks.resize_with(stage + 1, Vec::new);
            }
            sinks[stage].push(sink);
        };
        for (id, value) in self.values.all.iter().enumerate() {
            let Some(kept) = self.result.kept[id] else {
                continue;
            };
            match value.task {
                Task::Reduce(..) if value.space == BATCH => {
                    add(kept - 1, Sink::Reduce(id));
                    add(kept, Sink::Finish(id));
                }
                Task::Reduce(..) | Task::Collapse(..) => add(kept, Sink::Reduce(id)),
                Task::Scatter => add(kept, Sink::Scatter(id)),
                Task::Order { .. } => add(kept, Sink::Order(id)),
                Task::Scan { .. } => add(kept, Sink::Scan(id)),
                _ => add(kept, Sink::Store(id)),
            }
        }
        for (index, &(source, space)) in self.values.outputs.iter().enumerate() {
            // What finishes a reduction also writes it out.
            if self.values.reduction_behind(index).is_some() {
                continue;
            }
            let first = usize::from(self.is_pair_space(space));
            let stage = source.value().map_or(first, |id| self.here[id]);
            add(stage, Sink::Output(index));
        }
        sinks
    }

    fn pair_counts(&self) -> impl Iterator<Item = Traversal> {
        self.program.pair_spaces().map(|space| Traversal {
            walk: Walk::Pairs(space),
            sinks: Vec::new(),
        })
    }

    /// The space over which a sink walks.
    fn space_of(&self, sink: Sink) -> SpaceId {
        match sink {
            Sink::Output(index) => self.values.outputs[index].1,
            Sink::Store(id)
            | Sink::Scatter(id)
            | Sink::Order(id)
            | Sink::Scan(id)
            | Sink::Reduce(id)
            | Sink::Finish(id) => self.values.all[id].space,
        }
    }

    /// The walk that a sink insists on.
    fn own_walk(&self, sink: Sink) -> Option<Walk> {
        match sink {
            Sink::Reduce(id) => match self.values.all[id].task {
                Task::Reduce(_, cut) => {
                    let (upper, lower) = self.program.segmentations[cut];
                    Some(if upper == BATCH {
                        Walk::Chunks(lower)
                    } else {
                        Walk::Segments(upper, lower)
                    })
                }
                Task::Collapse(side, _) => Some(Walk::Squares(side, self.values.all[id].space)),
                _ => None,
            },
            Sink::Finish(_) => Some(Walk::Finish),
            Sink::Scan(id) => Some(Walk::Scan(
                id,
                self.program.parents[self.values.all[id].space],
            )),
            sink if self.space_of(sink) == BATCH => Some(Walk::Once),
            _ => None,
        }
    }

    /// The walk of a sink that would also join another: by segments, if what it needs belongs to segments.
    fn preferred_walk(&self, sink: Sink, stage: usize) -> Walk {
        let space = self.space_of(sink);
        let mut finest = BATCH;
        let mut waiting: Vec<ValueId> = Vec::new();
        match sink {
            Sink::Output(index) => waiting.extend(self.values.outputs[index].0.value()),
            Sink::Store(id) => self.look_into(id, space, &mut finest, &mut waiting),
            Sink::Scatter(id) => waiting.extend(
                self.values.all[id]
                    .args
                    .iter()
                    .filter_map(|arg| arg.value()),
            ),
            Sink::Order(id) => self.look_into(id, space, &mut finest, &mut waiting),
            Sink::Reduce(_) | Sink::Finish(_) | Sink::Scan(_) => {}
        }
        let mut seen = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            let value = &self.values.all[id];
            if value.space == space && !self.result.is_kept_before(id, stage) && seen.insert(id) {
                self.look_into(id, space, &mut finest, &mut waiting);
            }
        }
        if finest == BATCH {
            Walk::Elements(space)
        } else {
            Walk::Segments(finest, space)
        }
    }

    fn look_into(
        &self,
        id: ValueId,
        space: SpaceId,
        finest: &mut SpaceId,
        waiting: &mut Vec<ValueId>,
    ) {
        let value = &self.values.all[id];
        let cut = match value.task {
            Task::Position(cut) | Task::Expand(cut) | Task::Place(_, cut) => Some(cut),
            Task::Rank { segments, .. }
            | Task::Order { segments, .. }
            | Task::Shift { segments, .. } => Some(segments),
            _ => None,
        };
        let upper = match (cut, value.task) {
            (Some(cut), _) => self.program.segmentations[cut].0,
            (None, Task::Project(..)) => self.program.parents[space],
            _ => BATCH,
        };
        *finest = (*finest).max(upper);
        let here = self
            .values
            .reads(id)
            .filter(|&(_, access)| access == Access::Here);
        waiting.extend(here.map(|(arg, _)| arg));
    }

    /// Gives every kept value a slot; slots of values that nobody reads any more are used again.
    fn assign_slots(&mut self) {
        for space in self.program.pair_spaces() {
            self.result.offsets[space] = Some(self.result.slots.len());
            self.result.slots.push(SlotSize::Offsets(space));
        }
        let mut kept: Vec<(usize, ValueId)> = (0..self.values.all.len())
            .filter_map(|id| Some((self.result.kept[id]?, id)))
            .collect();
        kept.sort_unstable();
        // The last stage that reads each slot.
        let mut busy: Vec<usize> = vec![usize::MAX; self.result.slots.len()];
        for (stage, id) in kept {
            let value = &self.values.all[id];
            let size = SlotSize::Elements(value.space);
            let until = self.last_read[id].max(stage);
            let free =
                (0..busy.len()).find(|&slot| self.result.slots[slot] == size && busy[slot] < stage);
            let slot = free.unwrap_or_else(|| {
                self.result.slots.push(size);
                busy.push(0);
                busy.len() - 1
            });
            busy[slot] = until;
            self.result.slot_of[id] = Some(slot);
            if let (Task::Reduce(op, cut), BATCH) = (value.task, value.space) {
                let size = SlotSize::Chunks(self.program.segmentations[cut].1);
                let parts = if op == ReduceOp::LogSumExp { 2 } else { 1 };
                for _ in 0..parts {
                    self.result.parts[id].push(self.result.slots.len());
                    self.result.slots.push(size);
                    busy.push(usize::MAX);
                }
            }
        }
    }
}

/// Adds a sink to a traversal that suits it, or to a new one.
fn join(stage: &mut Stage, suits: impl Fn(Walk) -> bool, walk: Walk, sink: Sink) {
    match stage.iter_mut().find(|traversal| suits(traversal.walk)) {
        Some(traversal) => traversal.sinks.push(sink),
        None => stage.push(Traversal {
            walk,
            sinks: vec![sink],
        }),
    }
}
