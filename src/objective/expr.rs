//! The expression graph: an arena of hash-consed nodes, each with its index space.
//!
//! Elementwise nodes take arguments of their own space or of the batch; anything in between is widened by an explicit
//! `Broadcast`, and a broadcast is moved behind the elementwise operation when all arguments allow it, so that work is
//! done at the coarsest space where it is the same.

use std::collections::HashMap;

use super::GraphError;
use super::ops::{BinaryOp, End, ReduceOp, Side, UnaryOp};
use super::space::{BATCH, SpaceId, SpaceTree};

/// Index of a node in its graph; arguments come before the nodes that use them.
pub type Id = u32;

/// What a node computes. Floats are kept as bits so that equal nodes are found by hashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A number; batch space.
    Constant(u64),
    /// A run-time number, by index into [`Graph::parameters`]; batch space.
    Parameter(u32),
    /// A run-time array, by index into [`Graph::columns`].
    Column(u32),
    /// 0-based index of an element inside its parent.
    Position,
    /// How many elements of the given space lie below each element.
    Count(SpaceId),
    /// (x).
    Unary(UnaryOp),
    /// (a, b).
    Binary(BinaryOp),
    /// (condition, a, b): a where the condition is not 0.
    Where,
    /// (x): the value of the ancestor element.
    Broadcast,
    /// (x): over each segment.
    Reduce(ReduceOp),
    /// (x): the value of one of the two elements of a pair.
    Project(Side),
    /// (x): sum over the pairs in which the element stands on the given side; the transpose of `Project`.
    Collapse(Side),
    /// (key): 1-based rank inside the ancestor's segment, ties by input order, NaN last.
    Rank { within: SpaceId, descending: bool },
    /// (key): for each sorted place, the index of the element that belongs there.
    Order { within: SpaceId, descending: bool },
    /// (x, order): x in sorted order.
    Gather,
    /// (x, order): back from sorted order; the transpose of `Gather`.
    Scatter,
    /// (x, discount[, reset]): inclusive discounted sum from the start (from the end if `reverse`) of each segment.
    /// Between t-1 and t nothing is carried where reset[t] is not 0.
    Scan { reverse: bool },
    /// (x): x[t - by] inside the segment, the fill value beyond its ends.
    Shift { by: i64, fill: u64 },
    /// (x): first or last element of each segment, 0 for an empty one.
    Select(End),
    /// (x): the parent's value at the first or last element, 0 elsewhere; the transpose of `Select`.
    Place(End),
    /// (x): x, without gradient.
    StopGradient,
}

/// One node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Where it lives.
    pub space: SpaceId,
    args: [Id; 3],
    arity: u8,
}

impl Node {
    fn new(op: Op, space: SpaceId, args: &[Id]) -> Self {
        let mut padded = [0; 3];
        padded[..args.len()].copy_from_slice(args);
        Node {
            op,
            space,
            args: padded,
            arity: args.len() as u8,
        }
    }

    /// The arguments.
    pub fn args(&self) -> &[Id] {
        &self.args[..usize::from(self.arity)]
    }
}

/// One objective's expressions.
pub struct Graph {
    name: String,
    /// The index spaces.
    pub spaces: SpaceTree,
    nodes: Vec<Node>,
    known: HashMap<Node, Id>,
    parameters: Vec<String>,
    columns: Vec<(String, SpaceId)>,
}

impl Graph {
    /// An empty graph over the declared `(space, parent)` spaces.
    pub fn new(name: &str, spaces: &[(String, String)]) -> Result<Self, GraphError> {
        Ok(Graph {
            name: name.into(),
            spaces: SpaceTree::new(spaces)?,
            nodes: Vec::new(),
            known: HashMap::new(),
            parameters: Vec::new(),
            columns: Vec::new(),
        })
    }

    /// The objective's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of nodes.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// The names of the parameters, by the index in [`Op::Parameter`].
    pub fn parameters(&self) -> &[String] {
        &self.parameters
    }

    /// The names and spaces of the columns, by the index in [`Op::Column`].
    pub fn columns(&self) -> &[(String, SpaceId)] {
        &self.columns
    }

    /// The node of an id that is known to be valid.
    pub fn node(&self, id: Id) -> Node {
        self.nodes[id as usize]
    }

    /// The id as given from outside, if there is such a node.
    pub fn check(&self, id: i64) -> Result<Id, GraphError> {
        usize::try_from(id)
            .ok()
            .filter(|&index| index < self.nodes.len())
            .map(|index| index as Id)
            .ok_or_else(|| {
                GraphError(format!(
                    "no node {id} in graph '{}', which has {} nodes",
                    self.name,
                    self.nodes.len()
                ))
            })
    }

    /// The value of a constant, broadcast or not.
    pub fn constant_value(&self, id: Id) -> Option<f64> {
        match self.node(self.unbroadcast(id)).op {
            Op::Constant(bits) => Some(f64::from_bits(bits)),
            _ => None,
        }
    }

    // Leaves.

    /// A number.
    pub fn constant(&mut self, value: f64) -> Id {
        self.intern(Op::Constant(value.to_bits()), BATCH, &[])
    }

    /// A run-time number.
    pub fn parameter(&mut self, name: &str) -> Id {
        let index = self
            .parameters
            .iter()
            .position(|known| known == name)
            .unwrap_or_else(|| {
                self.parameters.push(name.into());
                self.parameters.len() - 1
            });
        self.intern(Op::Parameter(index as u32), BATCH, &[])
    }

    /// A run-time array with one value per element of `space`.
    pub fn column(&mut self, name: &str, space: SpaceId) -> Result<Id, GraphError> {
        let index = match self.columns.iter().position(|(known, _)| known == name) {
            Some(index) if self.columns[index].1 != space => {
                return Err(GraphError(format!(
                    "column '{name}' is already declared at '{}' and cannot be one at '{}' too",
                    self.spaces.name(self.columns[index].1),
                    self.spaces.name(space)
                )));
            }
            Some(index) => index,
            None => {
                self.columns.push((name.into(), space));
                self.columns.len() - 1
            }
        };
        Ok(self.intern(Op::Column(index as u32), space, &[]))
    }

    /// The 0-based index of each element inside its parent.
    pub fn position(&mut self, space: SpaceId) -> Result<Id, GraphError> {
        self.below_batch("position", space)?;
        Ok(self.intern(Op::Position, space, &[]))
    }

    /// The number of elements of `space` below each element of `to`.
    pub fn count(&mut self, space: SpaceId, to: SpaceId) -> Result<Id, GraphError> {
        self.must_be_above("count", to, space)?;
        if to == space {
            let one = self.constant(1.0);
            return Ok(self.widen(one, space));
        }
        Ok(self.intern(Op::Count(space), to, &[]))
    }

    // Elementwise.

    /// A function of one argument.
    pub fn unary(&mut self, op: UnaryOp, x: Id) -> Id {
        let source = self.unbroadcast(x);
        let result = match self.simplify_unary(op, source) {
            Some(id) => id,
            None => self.intern(Op::Unary(op), self.node(source).space, &[source]),
        };
        self.widen(result, self.node(x).space)
    }

    /// A function of two arguments.
    pub fn binary(&mut self, op: BinaryOp, a: Id, b: Id) -> Result<Id, GraphError> {
        let (space, level, [a, b]) = self.align(op.name(), [a, b])?;
        let result = match self.simplify_binary(op, a, b)? {
            Some(id) => id,
            None => {
                let swapped = op
                    .is_commutative()
                    .then(|| self.known.get(&Node::new(Op::Binary(op), level, &[b, a])))
                    .flatten()
                    .copied();
                swapped.unwrap_or_else(|| self.intern(Op::Binary(op), level, &[a, b]))
            }
        };
        Ok(self.widen(result, space))
    }

    /// `a` where the condition is not 0, `b` elsewhere; the branch not taken contributes nothing to any gradient.
    pub fn select(&mut self, condition: Id, a: Id, b: Id) -> Result<Id, GraphError> {
        let (space, level, [condition, a, b]) = self.align("where", [condition, a, b])?;
        let result = match self.simplify_where(condition, a, b) {
            Some(id) => id,
            None => self.intern(Op::Where, level, &[condition, a, b]),
        };
        Ok(self.widen(result, space))
    }

    /// `x` as a constant.
    pub fn stop_gradient(&mut self, x: Id) -> Id {
        let source = self.unbroadcast(x);
        let node = self.node(source);
        let result = match node.op {
            Op::StopGradient | Op::Constant(_) | Op::Position | Op::Count(_) | Op::Rank { .. } => {
                source
            }
            _ => self.intern(Op::StopGradient, node.space, &[source]),
        };
        self.widen(result, self.node(x).space)
    }

    // Between spaces.

    /// `x` at a space below its own.
    pub fn broadcast(&mut self, x: Id, to: SpaceId) -> Result<Id, GraphError> {
        self.must_be_above("broadcast", self.node(x).space, to)?;
        Ok(self.widen(x, to))
    }

    /// One value per element of `to`, from the elements below it.
    pub fn reduce(&mut self, op: ReduceOp, x: Id, to: SpaceId) -> Result<Id, GraphError> {
        let space = self.node(x).space;
        self.must_be_above(op.name(), to, space)?;
        if space == to {
            return Ok(x);
        }
        match self.simplify_reduce(op, x, to)? {
            Some(id) => Ok(id),
            None => Ok(self.intern(Op::Reduce(op), to, &[x])),
        }
    }

    /// The value of the element on one side of each pair.
    pub fn project(&mut self, x: Id, side: Side) -> Result<Id, GraphError> {
        let space = self.node(x).space;
        let pairs = self.spaces.pairs(space).ok_or_else(|| {
            GraphError(format!(
                "project: the elements of '{}' have no pairs; expected a space below 'batch' that is not a pair space",
                self.spaces.name(space)
            ))
        })?;
        Ok(self.intern(Op::Project(side), pairs, &[x]))
    }

    /// For each element, the sum over the pairs in which it stands on the given side.
    pub fn collapse(&mut self, x: Id, side: Side) -> Result<Id, GraphError> {
        let space = self.node(x).space;
        let elements = self.spaces.pairs_of(space).ok_or_else(|| {
            GraphError(format!(
                "collapse: '{}' is not a pair space",
                self.spaces.name(space)
            ))
        })?;
        Ok(self.intern(Op::Collapse(side), elements, &[x]))
    }

    // Inside segments.

    /// The 1-based rank inside each element of `within`; stable, NaN last, without gradient.
    pub fn rank(&mut self, x: Id, within: SpaceId, descending: bool) -> Result<Id, GraphError> {
        let space = self.node(x).space;
        self.must_be_strictly_above("rank", within, space)?;
        Ok(self.intern(Op::Rank { within, descending }, space, &[x]))
    }

    /// `x` permuted by the stable order of `key` (NaN last) inside each element of `within`.
    pub fn sort(
        &mut self,
        x: Id,
        key: Id,
        within: SpaceId,
        descending: bool,
    ) -> Result<Id, GraphError> {
        let space = self.joined("sort", &[x, key])?;
        self.must_be_strictly_above("sort", within, space)?;
        let (x, key) = (self.widen(x, space), self.widen(key, space));
        let order = self.intern(Op::Order { within, descending }, space, &[key]);
        Ok(self.gather(x, order))
    }

    /// `x` in the given order.
    pub(super) fn gather(&mut self, x: Id, order: Id) -> Id {
        self.intern(Op::Gather, self.node(x).space, &[x, order])
    }

    /// `x` back from the given order.
    pub(super) fn scatter(&mut self, x: Id, order: Id) -> Id {
        self.intern(Op::Scatter, self.node(x).space, &[x, order])
    }

    /// The inclusive discounted sum inside each parent element, from the start, or from the end if `reverse`.
    /// Between position t-1 and t nothing is carried where `reset` is not 0 at t.
    pub fn scan(
        &mut self,
        x: Id,
        reverse: bool,
        discount: Id,
        reset: Option<Id>,
    ) -> Result<Id, GraphError> {
        let space = self.node(x).space;
        self.below_batch("scan", space)?;
        if self.node(discount).space != BATCH {
            return Err(GraphError(format!(
                "scan: the discount lives at '{}'; expected one value for the 'batch'",
                self.spaces.name(self.node(discount).space)
            )));
        }
        match reset {
            None => Ok(self.intern(Op::Scan { reverse }, space, &[x, discount])),
            Some(reset) => {
                self.must_be_above("scan (reset)", self.node(reset).space, space)?;
                let reset = self.widen(reset, space);
                Ok(self.intern(Op::Scan { reverse }, space, &[x, discount, reset]))
            }
        }
    }

    /// `x[t - by]` inside each parent element, `fill` where that lies outside of it.
    pub fn shift(&mut self, x: Id, by: i64, fill: f64) -> Result<Id, GraphError> {
        let space = self.node(x).space;
        self.below_batch("shift", space)?;
        if by == 0 {
            return Ok(x);
        }
        let fill = fill.to_bits();
        Ok(self.intern(Op::Shift { by, fill }, space, &[x]))
    }

    /// The first or last element of each parent element's segment; 0 for an empty one.
    pub fn end(&mut self, end: End, x: Id) -> Result<Id, GraphError> {
        let space = self.node(x).space;
        self.below_batch(end.name(), space)?;
        let parent = self.spaces.parent(space).unwrap_or(BATCH);
        Ok(self.intern(Op::Select(end), parent, &[x]))
    }

    /// The parent's value at the first or last element of its segment of `space`, 0 elsewhere.
    pub(super) fn place(&mut self, end: End, x: Id, space: SpaceId) -> Id {
        self.intern(Op::Place(end), space, &[x])
    }

    // Plumbing.

    /// The node, new or known.
    pub(super) fn intern(&mut self, op: Op, space: SpaceId, args: &[Id]) -> Id {
        let node = Node::new(op, space, args);
        *self.known.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            (self.nodes.len() - 1) as Id
        })
    }

    /// `x` itself, or what it broadcasts.
    pub(super) fn unbroadcast(&self, x: Id) -> Id {
        let node = self.node(x);
        if node.op == Op::Broadcast {
            node.args[0]
        } else {
            x
        }
    }

    /// `x` at `space`, which its own space is known to be above.
    pub(super) fn widen(&mut self, x: Id, space: SpaceId) -> Id {
        if self.node(x).space == space {
            return x;
        }
        let source = self.unbroadcast(x);
        self.intern(Op::Broadcast, space, &[source])
    }

    /// Prepares elementwise arguments: the space of the result, the coarsest space at which it can be computed, and
    /// the arguments at that space (or at the batch, from which no broadcast is needed).
    fn align<const N: usize>(
        &mut self,
        what: &str,
        args: [Id; N],
    ) -> Result<(SpaceId, SpaceId, [Id; N]), GraphError> {
        let space = self.joined(what, &args)?;
        let sources = args.map(|arg| self.unbroadcast(arg));
        let level = self.joined(what, &sources)?;
        let aligned = sources.map(|source| {
            if self.node(source).space == BATCH {
                source
            } else {
                self.widen(source, level)
            }
        });
        Ok((space, level, aligned))
    }

    fn joined(&self, what: &str, args: &[Id]) -> Result<SpaceId, GraphError> {
        let mut joined = BATCH;
        for &arg in args {
            let space = self.node(arg).space;
            joined = self.spaces.join(joined, space).ok_or_else(|| {
                let (a, b) = (self.spaces.name(joined), self.spaces.name(space));
                GraphError(format!(
                    "{what}: '{a}' and '{b}' cannot be combined, neither contains the other"
                ))
            })?;
        }
        Ok(joined)
    }

    fn below_batch(&self, what: &str, space: SpaceId) -> Result<(), GraphError> {
        if space == BATCH {
            return Err(GraphError(format!(
                "{what}: expected a space below 'batch', got 'batch'"
            )));
        }
        Ok(())
    }

    fn must_be_above(&self, what: &str, upper: SpaceId, lower: SpaceId) -> Result<(), GraphError> {
        if self.spaces.is_above(upper, lower) {
            return Ok(());
        }
        Err(GraphError(format!(
            "{what}: '{}' does not contain '{}'",
            self.spaces.name(upper),
            self.spaces.name(lower)
        )))
    }

    fn must_be_strictly_above(
        &self,
        what: &str,
        upper: SpaceId,
        lower: SpaceId,
    ) -> Result<(), GraphError> {
        self.below_batch(what, lower)?;
        self.must_be_above(what, upper, lower)?;
        if upper == lower {
            return Err(GraphError(format!(
                "{what}: the elements of '{0}' cannot be ordered within '{0}'; expected a space above it",
                self.spaces.name(lower)
            )));
        }
        Ok(())
    }

    /// The column and parameter nodes that the outputs depend on, in order of creation.
    pub fn leaves_of(&self, outputs: &[Id]) -> Vec<Id> {
        self.reachable(outputs)
            .into_iter()
            .filter(|&id| matches!(self.node(id).op, Op::Column(_) | Op::Parameter(_)))
            .collect()
    }

    /// Whether what an output is for one top-level element (a group) depends on what `columns` are for another.
    pub fn crosses_batch(&self, outputs: &[Id], columns: &[Id]) -> bool {
        self.reachable(outputs).into_iter().any(|id| {
            let reads = |leaf: &Id| columns.contains(leaf);
            self.mixes_groups(self.node(id)) && self.leaves_of(&[id]).iter().any(reads)
        })
    }

    /// Whether a node brings elements together that have nothing but the batch above them.
    fn mixes_groups(&self, node: Node) -> bool {
        match node.op {
            Op::Reduce(_) | Op::Select(_) => node.space == BATCH,
            Op::Rank { within, .. } | Op::Order { within, .. } => within == BATCH,
            Op::Scan { .. } | Op::Shift { .. } | Op::Project(_) | Op::Collapse(_) => {
                self.spaces.parent(node.space) == Some(BATCH)
            }
            _ => false,
        }
    }

    /// Every node that the outputs depend on, arguments first.
    pub(super) fn reachable(&self, outputs: &[Id]) -> Vec<Id> {
        let mut needed = vec![false; self.nodes.len()];
        for &id in outputs {
            needed[id as usize] = true;
        }
        for index in (0..self.nodes.len()).rev() {
            if needed[index] {
                for &arg in self.nodes[index].args() {
                    needed[arg as usize] = true;
                }
            }
        }
        (0..self.nodes.len() as Id)
            .filter(|&id| needed[id as usize])
            .collect()
    }
}
