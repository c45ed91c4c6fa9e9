"""The functions an objective is written with. All act element by element, on natural logarithms, in f64."""

from __future__ import annotations

from .expression import Expression, Number, binary, build, check_levels, lift, trace_of, unary


def exp(x: Expression | Number) -> Expression:
    """e to the x."""
    return unary("exp", _expression("exp", x))


def log(x: Expression | Number) -> Expression:
    """Natural logarithm. For log-probabilities prefer `log_sigmoid`, `log1mexp`, `logsumexp`, which do not cancel."""
    return unary("log", _expression("log", x))


def log1p(x: Expression | Number) -> Expression:
    """log(1 + x), exact for small x."""
    return unary("log1p", _expression("log1p", x))


def expm1(x: Expression | Number) -> Expression:
    """exp(x) − 1, exact for small x."""
    return unary("expm1", _expression("expm1", x))


def log1mexp(x: Expression | Number) -> Expression:
    """log(1 − exp(x)) for x < 0: the log-probability of the complement of an event with log-probability x."""
    return unary("log1mexp", _expression("log1mexp", x))


def sigmoid(x: Expression | Number) -> Expression:
    """1 / (1 + exp(−x))."""
    return unary("sigmoid", _expression("sigmoid", x))


def log_sigmoid(x: Expression | Number) -> Expression:
    """log σ(x) = −log(1 + exp(−x)); never overflows."""
    return unary("log_sigmoid", _expression("log_sigmoid", x))


def softplus(x: Expression | Number) -> Expression:
    """log(1 + exp(x)); never overflows."""
    return unary("softplus", _expression("softplus", x))


def tanh(x: Expression | Number) -> Expression:
    """Hyperbolic tangent."""
    return unary("tanh", _expression("tanh", x))


def relu(x: Expression | Number) -> Expression:
    """max(x, 0), with derivative 0 at 0."""
    return unary("relu", _expression("relu", x))


def absolute(x: Expression | Number) -> Expression:
    """|x|, with derivative 0 at 0. The built-in `abs` does the same."""
    return unary("abs", _expression("absolute", x))


def sign(x: Expression | Number) -> Expression:
    """−1, 0 or 1; no gradient passes."""
    return unary("sign", _expression("sign", x))


def square(x: Expression | Number) -> Expression:
    """x²."""
    return unary("square", _expression("square", x))


def sqrt(x: Expression | Number) -> Expression:
    """Square root."""
    return unary("sqrt", _expression("sqrt", x))


def minimum(a: Expression | Number, b: Expression | Number) -> Expression:
    """The smaller of two values; where they are equal each gets half of the gradient."""
    return binary("minimum", a, b)


def maximum(a: Expression | Number, b: Expression | Number) -> Expression:
    """The larger of two values; where they are equal each gets half of the gradient."""
    return binary("maximum", a, b)


def clamp(x: Expression, min: Expression | Number | None = None, max: Expression | Number | None = None) -> Expression:
    """Limit x to [min, max]; the gradient passes inside and at the limits, not outside."""
    return _expression("clamp", x).clamp(min, max)


def where(condition: Expression, a: Expression | Number, b: Expression | Number) -> Expression:
    """`a` where the condition is not 0, else `b`; the branch not taken contributes exactly nothing to a gradient."""
    trace = trace_of("where", condition, a, b)
    nodes = [lift(trace, value) for value in (condition, a, b)]
    check_levels(*nodes)
    return build(trace, trace.graph.where, *(value.node for value in nodes))


def stop_gradient(x: Expression) -> Expression:
    """The same value, through which no gradient passes."""
    return _expression("stop_gradient", x).detach()


def record(name: str, x: Expression) -> None:
    """Log the mean of x over its level under `name` in `score.metrics`."""
    expression = _expression("record", x)
    expression.trace.record(name, expression)


def _expression(operation: str, x: object) -> Expression:
    return lift(trace_of(operation, x), x)
