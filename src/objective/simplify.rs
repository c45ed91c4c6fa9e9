//! Local identities, applied while the graph is built. None changes a value that a user can see, NaN and infinities
//! included; only an adjoint of 0 removes what it multiplies.

use super::GraphError;
use super::expr::{Graph, Id, Op};
use super::ops::{BinaryOp, ReduceOp, UnaryOp};
use super::space::SpaceId;

impl Graph {
    /// The argument, if this is the given unary operator.
    fn under(&self, op: UnaryOp, id: Id) -> Option<Id> {
        let node = self.node(id);
        (node.op == Op::Unary(op)).then(|| node.args()[0])
    }

    pub(super) fn simplify_unary(&mut self, op: UnaryOp, x: Id) -> Option<Id> {
        if let Some(value) = self.constant_value(x) {
            return Some(self.constant(op.apply(value)));
        }
        match op {
            UnaryOp::Neg => self.simplify_neg(x),
            // Even functions do not see the sign.
            UnaryOp::Abs | UnaryOp::Square => {
                let inner = self.under(UnaryOp::Neg, x)?;
                Some(self.unary(op, inner))
            }
            _ => None,
        }
    }

    fn simplify_neg(&mut self, x: Id) -> Option<Id> {
        let node = self.node(x);
        if let (Op::Binary(op @ (BinaryOp::Mul | BinaryOp::Div)), &[a, b]) = (node.op, node.args())
            && let Some(value) = self.constant_value(a)
        {
            let negative = self.constant(-value);
            return self.binary(op, negative, b).ok();
        }
        self.under(UnaryOp::Neg, x)
    }

    pub(super) fn simplify_binary(
        &mut self,
        op: BinaryOp,
        a: Id,
        b: Id,
    ) -> Result<Option<Id>, GraphError> {
        let constants = (self.constant_value(a), self.constant_value(b));
        if let (Some(x), Some(y)) = constants {
            return Ok(Some(self.constant(op.apply(x, y))));
        }
        match op {
            BinaryOp::Add => self.simplify_add(a, b, constants),
            BinaryOp::Sub => self.simplify_sub(a, b, constants),
            BinaryOp::Mul => self.simplify_mul(a, b, constants),
            BinaryOp::Div => self.simplify_div(a, b, constants),
            BinaryOp::Pow => Ok(self.simplify_pow(a, constants.1)),
            BinaryOp::ScaleOrZero => self.simplify_scale_or_zero(a, b, constants),
            _ => Ok(None),
        }
    }

    fn simplify_add(
        &mut self,
        a: Id,
        b: Id,
        constants: (Option<f64>, Option<f64>),
    ) -> Result<Option<Id>, GraphError> {
        Ok(match constants {
            (Some(0.0), _) => Some(b),
            (_, Some(0.0)) => Some(a),
            _ => match (self.under(UnaryOp::Neg, a), self.under(UnaryOp::Neg, b)) {
                (_, Some(b)) => Some(self.binary(BinaryOp::Sub, a, b)?),
                (Some(a), None) => Some(self.binary(BinaryOp::Sub, b, a)?),
                (None, None) => None,
            },
        })
    }

    fn simplify_sub(
        &mut self,
        a: Id,
        b: Id,
        constants: (Option<f64>, Option<f64>),
    ) -> Result<Option<Id>, GraphError> {
        Ok(match constants {
            (Some(0.0), _) => Some(self.unary(UnaryOp::Neg, b)),
            (_, Some(0.0)) => Some(a),
            _ => match self.under(UnaryOp::Neg, b) {
                Some(b) => Some(self.binary(BinaryOp::Add, a, b)?),
                None => None,
            },
        })
    }

    fn simplify_mul(
        &mut self,
        a: Id,
        b: Id,
        constants: (Option<f64>, Option<f64>),
    ) -> Result<Option<Id>, GraphError> {
        match constants {
            (Some(1.0), _) => Ok(Some(b)),
            (_, Some(1.0)) => Ok(Some(a)),
            (Some(-1.0), _) => Ok(Some(self.unary(UnaryOp::Neg, b))),
            (_, Some(-1.0)) => Ok(Some(self.unary(UnaryOp::Neg, a))),
            _ => self.pull_out_sign(BinaryOp::Mul, a, b),
        }
    }

    fn simplify_div(
        &mut self,
        a: Id,
        b: Id,
        constants: (Option<f64>, Option<f64>),
    ) -> Result<Option<Id>, GraphError> {
        match constants {
            (Some(1.0), _) => Ok(Some(self.unary(UnaryOp::Reciprocal, b))),
            (_, Some(1.0)) => Ok(Some(a)),
            (_, Some(-1.0)) => Ok(Some(self.unary(UnaryOp::Neg, a))),
            _ => self.pull_out_sign(BinaryOp::Div, a, b),
        }
    }

    /// A sign in front of a factor moves in front of the product, where it can cancel.
    fn pull_out_sign(&mut self, op: BinaryOp, a: Id, b: Id) -> Result<Option<Id>, GraphError> {
        match (self.under(UnaryOp::Neg, a), self.under(UnaryOp::Neg, b)) {
            (None, None) => Ok(None),
            (Some(a), Some(b)) => Ok(Some(self.binary(op, a, b)?)),
            (negated_a, negated_b) => {
                let product = self.binary(op, negated_a.unwrap_or(a), negated_b.unwrap_or(b))?;
                Ok(Some(self.unary(UnaryOp::Neg, product)))
            }
        }
    }

    fn simplify_pow(&mut self, a: Id, exponent: Option<f64>) -> Option<Id> {
        match exponent? {
            0.0 => Some(self.constant(1.0)),
            1.0 => Some(a),
            2.0 => Some(self.unary(UnaryOp::Square, a)),
            -1.0 => Some(self.unary(UnaryOp::Reciprocal, a)),
            _ => None,
        }
    }

    fn simplify_scale_or_zero(
        &mut self,
        adjoint: Id,
        local: Id,
        constants: (Option<f64>, Option<f64>),
    ) -> Result<Option<Id>, GraphError> {
        match constants {
            (Some(0.0), _) | (_, Some(0.0)) => Ok(Some(self.constant(0.0))),
            (Some(_), _) => Ok(Some(self.binary(BinaryOp::Mul, adjoint, local)?)),
            (_, Some(value)) if value.is_finite() => {
                Ok(Some(self.binary(BinaryOp::Mul, adjoint, local)?))
            }
            _ => self.pull_out_sign(BinaryOp::ScaleOrZero, adjoint, local),
        }
    }

    pub(super) fn simplify_where(&mut self, condition: Id, a: Id, b: Id) -> Option<Id> {
        if a == b {
            return Some(a);
        }
        let value = self.constant_value(condition)?;
        Some(if value != 0.0 { a } else { b })
    }

    pub(super) fn simplify_reduce(
        &mut self,
        op: ReduceOp,
        x: Id,
        to: SpaceId,
    ) -> Result<Option<Id>, GraphError> {
        // The sum of a constant is that constant times the number of elements, of which there may be none: it must
        // be finite, or an empty segment would give 0·inf.
        let constant = self.constant_value(x).filter(|value| value.is_finite());
        match (op, constant) {
            (ReduceOp::Sum, Some(value)) => {
                let count = self.count(self.node(x).space, to)?;
                let value = self.constant(value);
                Ok(Some(self.binary(BinaryOp::Mul, value, count)?))
            }
            _ => Ok(None),
        }
    }
}
