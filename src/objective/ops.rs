//! The operators: their names, and their scalar arithmetic (the one place where it is written).

use super::GraphError;

/// Declares an operator enum together with the names that Python uses.
macro_rules! operators {
    ($(#[$doc:meta])* $enum:ident, $what:literal, { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $enum { $($(#[$variant_doc])* $variant),+ }

        impl $enum {
            /// Every operator of this kind.
            pub const ALL: &'static [$enum] = &[$($enum::$variant),+];

            /// The name Python uses.
            pub fn name(self) -> &'static str {
                match self { $($enum::$variant => $name),+ }
            }

            /// The operator called `name`.
            pub fn parse(name: &str) -> Result<Self, GraphError> {
                Self::ALL.iter().copied().find(|op| op.name() == name).ok_or_else(|| {
                    let known: Vec<&str> = Self::ALL.iter().map(|op| op.name()).collect();
                    GraphError(format!("unknown {} '{name}'; expected one of {}", $what, known.join(" ")))
                })
            }
        }
    };
}

operators!(
    /// Elementwise functions of one argument.
    UnaryOp, "unary operator", {
        Neg = "neg",
        Exp = "exp",
        Log = "log",
        Log1p = "log1p",
        Expm1 = "expm1",
        /// `log(1 - e^x)` for x <= 0.
        Log1mexp = "log1mexp",
        Sigmoid = "sigmoid",
        LogSigmoid = "log_sigmoid",
        Softplus = "softplus",
        Tanh = "tanh",
        Relu = "relu",
        Abs = "abs",
        /// -1, 0 or 1.
        Sign = "sign",
        Square = "square",
        Sqrt = "sqrt",
        Reciprocal = "reciprocal",
        /// 1 where the argument is 0, else 0.
        Not = "not",
    }
);

operators!(
    /// Elementwise functions of two arguments; comparisons and logic give 0 or 1.
    BinaryOp, "binary operator", {
        Add = "add",
        Sub = "sub",
        Mul = "mul",
        Div = "div",
        Pow = "pow",
        /// The smaller one; a tie sends half of the gradient to each.
        Minimum = "minimum",
        /// The larger one; a tie sends half of the gradient to each.
        Maximum = "maximum",
        /// `maximum`, but at a tie the first argument gets the whole gradient.
        ClampMin = "clamp_min",
        /// `minimum`, but at a tie the first argument gets the whole gradient.
        ClampMax = "clamp_max",
        Lt = "lt",
        Le = "le",
        Gt = "gt",
        Ge = "ge",
        Eq = "eq",
        Ne = "ne",
        And = "and",
        Or = "or",
        /// The first argument (an adjoint) times the second, but exactly 0 where the adjoint is 0.
        ScaleOrZero = "scale_or_zero",
    }
);

operators!(
    /// Reductions of the segments of a space to one value per element of a coarser space.
    ReduceOp, "reduction", {
        Sum = "sum",
        /// 0 for an empty segment.
        Mean = "mean",
        /// −inf for an empty segment.
        Max = "max",
        /// +inf for an empty segment.
        Min = "min",
        /// −inf for an empty segment.
        LogSumExp = "logsumexp",
    }
);

operators!(
    /// Which of the two elements of a pair.
    Side, "side of a pair", {
        /// The first one (outer index).
        I = "i",
        /// The second one (inner index).
        J = "j",
    }
);

operators!(
    /// Which end of a segment.
    End, "end of a segment", {
        First = "first",
        Last = "last",
    }
);

/// 1 for true, 0 for false.
#[inline]
fn flag(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

/// The logistic function, without overflow and with full relative precision on both sides.
#[inline]
pub fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    (if x >= 0.0 { 1.0 } else { e }) / (1.0 + e)
}

/// `log(1 + e^x)`, without overflow.
#[inline]
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `log(1 - e^x)` for x <= 0, precise at both ends (Mächler 2012, "Accurately computing log(1 - exp(-|a|))").
#[inline]
pub fn log1mexp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 {
        (-x.exp_m1()).ln()
    } else {
        (-x.exp()).ln_1p()
    }
}

impl UnaryOp {
    /// Calls `visit` with this operator's scalar function: one dispatch, then a loop over a known function.
    #[inline]
    pub fn visit<V: VisitUnary>(self, visitor: V) -> V::Output {
        match self {
            UnaryOp::Neg => visitor.visit(|x| -x),
            UnaryOp::Exp => visitor.visit(f64::exp),
            UnaryOp::Log => visitor.visit(f64::ln),
            UnaryOp::Log1p => visitor.visit(f64::ln_1p),
            UnaryOp::Expm1 => visitor.visit(f64::exp_m1),
            UnaryOp::Log1mexp => visitor.visit(log1mexp),
            UnaryOp::Sigmoid => visitor.visit(sigmoid),
            UnaryOp::LogSigmoid => visitor.visit(|x| -softplus(-x)),
            UnaryOp::Softplus => visitor.visit(softplus),
            UnaryOp::Tanh => visitor.visit(f64::tanh),
            // Written so that NaN stays NaN.
            UnaryOp::Relu => visitor.visit(|x| if x <= 0.0 { 0.0 } else { x }),
            UnaryOp::Abs => visitor.visit(f64::abs),
            UnaryOp::Sign => visitor.visit(|x| flag(x > 0.0) - flag(x < 0.0)),
            UnaryOp::Square => visitor.visit(|x| x * x),
            UnaryOp::Sqrt => visitor.visit(f64::sqrt),
            UnaryOp::Reciprocal => visitor.visit(|x| 1.0 / x),
            UnaryOp::Not => visitor.visit(|x| flag(x == 0.0)),
        }
    }

    /// The value for one scalar.
    pub fn apply(self, x: f64) -> f64 {
        struct Apply(f64);
        impl VisitUnary for Apply {
            type Output = f64;
            fn visit(self, f: impl Fn(f64) -> f64) -> f64 {
                f(self.0)
            }
        }
        self.visit(Apply(x))
    }
}

/// Receives the scalar function of a [`UnaryOp`].
pub trait VisitUnary {
    /// What the visit gives back.
    type Output;
    /// Called once, with the function.
    fn visit(self, f: impl Fn(f64) -> f64) -> Self::Output;
}

/// The larger of two numbers, NaN if either is.
#[inline]
pub fn maximum(a: f64, b: f64) -> f64 {
    if a > b || a.is_nan() { a } else { b }
}

/// The smaller of two numbers, NaN if either is.
#[inline]
pub fn minimum(a: f64, b: f64) -> f64 {
    if a < b || a.is_nan() { a } else { b }
}

impl BinaryOp {
    /// Whether the order of the arguments is irrelevant.
    pub fn is_commutative(self) -> bool {
        use BinaryOp::*;
        matches!(self, Add | Mul | Minimum | Maximum | Eq | Ne | And | Or)
    }

    /// Whether the result is a 0/1 flag, through which no gradient passes.
    pub fn is_flag(self) -> bool {
        use BinaryOp::*;
        matches!(self, Lt | Le | Gt | Ge | Eq | Ne | And | Or)
    }

    /// Calls `visit` with this operator's scalar function.
    #[inline]
    pub fn visit<V: VisitBinary>(self, visitor: V) -> V::Output {
        match self {
            BinaryOp::Add => visitor.visit(|a, b| a + b),
            BinaryOp::Sub => visitor.visit(|a, b| a - b),
            BinaryOp::Mul => visitor.visit(|a, b| a * b),
            BinaryOp::Div => visitor.visit(|a, b| a / b),
            BinaryOp::Pow => visitor.visit(f64::powf),
            BinaryOp::Minimum | BinaryOp::ClampMax => visitor.visit(minimum),
            BinaryOp::Maximum | BinaryOp::ClampMin => visitor.visit(maximum),
            BinaryOp::Lt => visitor.visit(|a, b| flag(a < b)),
            BinaryOp::Le => visitor.visit(|a, b| flag(a <= b)),
            BinaryOp::Gt => visitor.visit(|a, b| flag(a > b)),
            BinaryOp::Ge => visitor.visit(|a, b| flag(a >= b)),
            BinaryOp::Eq => visitor.visit(|a, b| flag(a == b)),
            BinaryOp::Ne => visitor.visit(|a, b| flag(a != b)),
            BinaryOp::And => visitor.visit(|a, b| flag(a != 0.0 && b != 0.0)),
            BinaryOp::Or => visitor.visit(|a, b| flag(a != 0.0 || b != 0.0)),
            BinaryOp::ScaleOrZero => visitor.visit(|a, b| if a == 0.0 { 0.0 } else { a * b }),
        }
    }

    /// The value for two scalars.
    pub fn apply(self, a: f64, b: f64) -> f64 {
        struct Apply(f64, f64);
        impl VisitBinary for Apply {
            type Output = f64;
            fn visit(self, f: impl Fn(f64, f64) -> f64) -> f64 {
                f(self.0, self.1)
            }
        }
        self.visit(Apply(a, b))
    }
}

/// Receives the scalar function of a [`BinaryOp`].
pub trait VisitBinary {
    /// What the visit gives back.
    type Output;
    /// Called once, with the function.
    fn visit(self, f: impl Fn(f64, f64) -> f64) -> Self::Output;
}
