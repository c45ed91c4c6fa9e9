//! Symbolic reverse mode: the adjoint of any node as an expression of the same graph.
//!
//! Each derivative is written so that it stays finite where the true one is, and every product of an adjoint with a
//! local derivative goes through `scale_or_zero`: a branch that `where` did not take has the adjoint 0 and contributes
//! exactly 0, however wild its own derivative is.

use super::GraphError;
use super::expr::{Graph, Id, Op};
use super::ops::{BinaryOp, ReduceOp, UnaryOp};

type Contribution = Result<Id, GraphError>;

impl Graph {
    /// The derivatives of Σ upstream·loss with respect to each node of `wrt`, each at that node's own space.
    ///
    /// `upstream` lives at the space of `loss` or above it. A node that the loss does not depend on gets 0.
    pub fn gradient(&mut self, loss: Id, upstream: Id, wrt: &[Id]) -> Result<Vec<Id>, GraphError> {
        let upstream = self.broadcast(upstream, self.node(loss).space)?;
        let active = self.depending_on(wrt, loss);
        let mut adjoints: Vec<Option<Id>> = vec![None; loss as usize + 1];
        adjoints[loss as usize] = Some(upstream);
        for id in (0..=loss).rev() {
            let Some(adjoint) = adjoints[id as usize] else {
                continue;
            };
            for (position, &arg) in self.node(id).args().iter().enumerate() {
                if !active[arg as usize] {
                    continue;
                }
                let contribution = self.contribution(id, position, adjoint)?;
                let contribution = self.fit(contribution, self.node(arg).space)?;
                if self.constant_value(contribution) == Some(0.0) {
                    continue;
                }
                adjoints[arg as usize] = Some(match adjoints[arg as usize] {
                    None => contribution,
                    Some(sum) => self.binary(BinaryOp::Add, sum, contribution)?,
                });
            }
        }
        wrt.iter()
            .map(|&id| {
                let zero = self.constant(0.0);
                let adjoint = adjoints.get(id as usize).copied().flatten().unwrap_or(zero);
                Ok(self.widen(adjoint, self.node(id).space))
            })
            .collect()
    }

    /// For every node up to `last`, whether a gradient can flow from it into one of `wrt`.
    fn depending_on(&self, wrt: &[Id], last: Id) -> Vec<bool> {
        let mut active = vec![false; last as usize + 1];
        for id in 0..=last {
            let node = self.node(id);
            let differentiable = match node.op {
                Op::StopGradient | Op::Rank { .. } | Op::Order { .. } => false,
                Op::Unary(op) => !matches!(op, UnaryOp::Sign | UnaryOp::Not),
                Op::Binary(op) => !op.is_flag(),
                _ => true,
            };
            active[id as usize] = wrt.contains(&id)
                || (differentiable && node.args().iter().any(|&arg| active[arg as usize]));
        }
        active
    }

    /// An adjoint at the space of the argument that it belongs to: summed if the argument was broadcast.
    fn fit(&mut self, adjoint: Id, space: usize) -> Contribution {
        if self.constant_value(adjoint) == Some(0.0) {
            return Ok(self.constant(0.0));
        }
        if self.spaces.is_above(space, self.node(adjoint).space) {
            self.reduce(ReduceOp::Sum, adjoint, space)
        } else {
            self.broadcast(adjoint, space)
        }
    }

    /// What argument number `position` of a node receives from the node's adjoint.
    fn contribution(&mut self, id: Id, position: usize, adjoint: Id) -> Contribution {
        let node = self.node(id);
        let args = node.args();
        let x = args[0];
        let arg_space = self.node(args[position]).space;
        match node.op {
            Op::Unary(op) => self.unary_contribution(op, id, x, adjoint),
            Op::Binary(op) => self.binary_contribution(op, id, args[0], args[1], position, adjoint),
            Op::Where => self.where_contribution(x, position, adjoint),
            // `fit` sums over the elements that share the value.
            Op::Broadcast => Ok(adjoint),
            Op::Reduce(op) => self.reduce_contribution(op, id, x, adjoint),
            Op::Project(side) => self.collapse(adjoint, side),
            Op::Collapse(side) => self.project(adjoint, side),
            Op::Gather if position == 0 => Ok(self.scatter(adjoint, args[1])),
            Op::Scatter if position == 0 => Ok(self.gather(adjoint, args[1])),
            Op::Scan { reverse } => self.scan_contribution(
                id,
                reverse,
                args[1],
                args.get(2).copied(),
                position,
                adjoint,
            ),
            Op::Shift { by, .. } => self.shift(adjoint, by.saturating_neg(), 0.0),
            Op::Select(end) => Ok(self.place(end, adjoint, arg_space)),
            Op::Place(end) => self.end(end, adjoint),
            _ => Ok(self.constant(0.0)),
        }
    }

    fn scaled(&mut self, adjoint: Id, local: Id) -> Contribution {
        self.binary(BinaryOp::ScaleOrZero, adjoint, local)
    }

    /// The adjoint where the condition holds, 0 elsewhere.
    fn masked(&mut self, condition: Id, adjoint: Id) -> Contribution {
        let zero = self.constant(0.0);
        self.select(condition, adjoint, zero)
    }

    fn unary_contribution(&mut self, op: UnaryOp, value: Id, x: Id, adjoint: Id) -> Contribution {
        let one = self.constant(1.0);
        let local = match op {
            UnaryOp::Neg => return Ok(self.unary(UnaryOp::Neg, adjoint)),
            UnaryOp::Exp => value,
            UnaryOp::Log => self.unary(UnaryOp::Reciprocal, x),
            UnaryOp::Log1p => {
                let shifted = self.binary(BinaryOp::Add, one, x)?;
                self.unary(UnaryOp::Reciprocal, shifted)
            }
            UnaryOp::Expm1 => self.unary(UnaryOp::Exp, x),
            UnaryOp::Log1mexp => {
                // -1 / expm1(-x)
                let negative = self.unary(UnaryOp::Neg, x);
                let denominator = self.unary(UnaryOp::Expm1, negative);
                let inverse = self.unary(UnaryOp::Reciprocal, denominator);
                self.unary(UnaryOp::Neg, inverse)
            }
            UnaryOp::Sigmoid => {
                // σ(x)·σ(-x)
                let negative = self.unary(UnaryOp::Neg, x);
                let other = self.unary(UnaryOp::Sigmoid, negative);
                self.binary(BinaryOp::Mul, value, other)?
            }
            UnaryOp::LogSigmoid => {
                let negative = self.unary(UnaryOp::Neg, x);
                self.unary(UnaryOp::Sigmoid, negative)
            }
            UnaryOp::Softplus => self.unary(UnaryOp::Sigmoid, x),
            UnaryOp::Tanh => {
                let square = self.unary(UnaryOp::Square, value);
                self.binary(BinaryOp::Sub, one, square)?
            }
            UnaryOp::Relu => {
                let zero = self.constant(0.0);
                let positive = self.binary(BinaryOp::Gt, x, zero)?;
                return self.masked(positive, adjoint);
            }
            UnaryOp::Abs => self.unary(UnaryOp::Sign, x),
            UnaryOp::Square => {
                let two = self.constant(2.0);
                self.binary(BinaryOp::Mul, two, x)?
            }
            UnaryOp::Sqrt => {
                let half = self.constant(0.5);
                self.binary(BinaryOp::Div, half, value)?
            }
            UnaryOp::Reciprocal => {
                let square = self.unary(UnaryOp::Square, value);
                self.unary(UnaryOp::Neg, square)
            }
            UnaryOp::Sign | UnaryOp::Not => return Ok(self.constant(0.0)),
        };
        self.scaled(adjoint, local)
    }

    fn binary_contribution(
        &mut self,
        op: BinaryOp,
        value: Id,
        a: Id,
        b: Id,
        position: usize,
        adjoint: Id,
    ) -> Contribution {
        let first = position == 0;
        let local = match op {
            BinaryOp::Add => return Ok(adjoint),
            BinaryOp::Sub if first => return Ok(adjoint),
            BinaryOp::Sub => return Ok(self.unary(UnaryOp::Neg, adjoint)),
            BinaryOp::Mul | BinaryOp::ScaleOrZero => {
                if first {
                    b
                } else {
                    a
                }
            }
            BinaryOp::Div => {
                let inverse = self.unary(UnaryOp::Reciprocal, b);
                if first {
                    inverse
                } else {
                    // -(a/b)/b
                    let ratio = self.binary(BinaryOp::Div, value, b)?;
                    self.unary(UnaryOp::Neg, ratio)
                }
            }
            BinaryOp::Pow if first => self.power_slope(a, b)?,
            BinaryOp::Pow => self.exponent_slope(value, a, b)?,
            BinaryOp::Maximum | BinaryOp::Minimum => {
                return self.extremum_contribution(op, a, b, first, adjoint);
            }
            BinaryOp::ClampMin | BinaryOp::ClampMax => {
                let passes = match (op, first) {
                    (BinaryOp::ClampMin, true) => BinaryOp::Ge,
                    (BinaryOp::ClampMin, false) => BinaryOp::Lt,
                    (_, true) => BinaryOp::Le,
                    (_, false) => BinaryOp::Gt,
                };
                let condition = self.binary(passes, a, b)?;
                return self.masked(condition, adjoint);
            }
            _ => return Ok(self.constant(0.0)),
        };
        self.scaled(adjoint, local)
    }

    /// d a^b / da = b·a^(b-1), without the logarithm of the base; 0 where b = 0.
    fn power_slope(&mut self, a: Id, b: Id) -> Contribution {
        let one = self.constant(1.0);
        let lower = self.binary(BinaryOp::Sub, b, one)?;
        let power = self.binary(BinaryOp::Pow, a, lower)?;
        let slope = self.binary(BinaryOp::Mul, b, power)?;
        let zero = self.constant(0.0);
        let nonzero = self.binary(BinaryOp::Ne, b, zero)?;
        self.select(nonzero, slope, zero)
    }

    /// d a^b / db = a^b·log a, 0 where a = 0 and b >= 0 (its limit).
    fn exponent_slope(&mut self, value: Id, a: Id, b: Id) -> Contribution {
        let zero = self.constant(0.0);
        let log = self.unary(UnaryOp::Log, a);
        let slope = self.binary(BinaryOp::Mul, value, log)?;
        let base_zero = self.binary(BinaryOp::Eq, a, zero)?;
        let exponent = self.binary(BinaryOp::Ge, b, zero)?;
        let limit = self.binary(BinaryOp::And, base_zero, exponent)?;
        self.select(limit, zero, slope)
    }

    /// The whole adjoint where this argument is the extremum, half of it at a tie.
    fn extremum_contribution(
        &mut self,
        op: BinaryOp,
        a: Id,
        b: Id,
        first: bool,
        adjoint: Id,
    ) -> Contribution {
        let wins = if (op == BinaryOp::Maximum) == first {
            BinaryOp::Gt
        } else {
            BinaryOp::Lt
        };
        let zero = self.constant(0.0);
        let half = self.constant(0.5);
        let half = self.binary(BinaryOp::Mul, half, adjoint)?;
        let tie = self.binary(BinaryOp::Eq, a, b)?;
        let otherwise = self.select(tie, half, zero)?;
        let wins = self.binary(wins, a, b)?;
        self.select(wins, adjoint, otherwise)
    }

    fn where_contribution(&mut self, condition: Id, position: usize, adjoint: Id) -> Contribution {
        let zero = self.constant(0.0);
        match position {
            0 => Ok(zero),
            1 => self.select(condition, adjoint, zero),
            _ => self.select(condition, zero, adjoint),
        }
    }

    fn reduce_contribution(&mut self, op: ReduceOp, value: Id, x: Id, adjoint: Id) -> Contribution {
        let (space, to) = (self.node(x).space, self.node(value).space);
        match op {
            ReduceOp::Sum => self.broadcast(adjoint, space),
            ReduceOp::Mean => {
                let count = self.count(space, to)?;
                let share = self.binary(BinaryOp::Div, adjoint, count)?;
                self.broadcast(share, space)
            }
            ReduceOp::Max | ReduceOp::Min => {
                let attained = self.binary(BinaryOp::Eq, x, value)?;
                let ties = self.reduce(ReduceOp::Sum, attained, to)?;
                let share = self.binary(BinaryOp::Div, adjoint, ties)?;
                self.masked(attained, share)
            }
            ReduceOp::LogSumExp => {
                // Softmax weights; where every element is -inf they are 0, not NaN.
                let lowest = self.constant(f64::NEG_INFINITY);
                let zero = self.constant(0.0);
                let empty = self.binary(BinaryOp::Eq, value, lowest)?;
                let level = self.select(empty, zero, value)?;
                let difference = self.binary(BinaryOp::Sub, x, level)?;
                let weight = self.unary(UnaryOp::Exp, difference);
                self.scaled(adjoint, weight)
            }
        }
    }

    fn scan_contribution(
        &mut self,
        value: Id,
        reverse: bool,
        discount: Id,
        reset: Option<Id>,
        position: usize,
        adjoint: Id,
    ) -> Contribution {
        // The transpose runs the other way with the same discount and the same cuts.
        let flowing = self.scan(adjoint, !reverse, discount, reset)?;
        match position {
            0 => Ok(flowing),
            1 => {
                // Σ_t adjoint of (x_t + d·y_{t∓1}) times the y_{t∓1} that was carried.
                let zero = self.constant(0.0);
                let carried = match (reset, reverse) {
                    (None, _) => self.shift(value, if reverse { -1 } else { 1 }, 0.0)?,
                    (Some(reset), true) => {
                        let kept = self.select(reset, zero, value)?;
                        self.shift(kept, -1, 0.0)?
                    }
                    (Some(reset), false) => {
                        let carried = self.shift(value, 1, 0.0)?;
                        self.select(reset, zero, carried)?
                    }
                };
                self.scaled(flowing, carried)
            }
            _ => Ok(self.constant(0.0)),
        }
    }
}
