"""Random expressions over all levels: value and gradient against torch in f64."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import compare

UNARY = {
    "tanh": lambda x, f: f.tanh(x),
    "sigmoid": lambda x, f: f.sigmoid(x),
    "log_sigmoid": lambda x, f: f.log_sigmoid(x),
    "softplus": lambda x, f: f.softplus(x),
    "relu": lambda x, f: f.relu(x),
    "negative": lambda x, f: -x,
    "root": lambda x, f: f.sqrt(1.0 + f.square(x)),
    "log": lambda x, f: f.log1p(f.square(x)),
    "bounded exp": lambda x, f: f.exp(f.tanh(x)),
    "power": lambda x, f: (0.5 + f.square(f.tanh(x))) ** 0.7,
    "clamp": lambda x, f: x.clamp(-0.8, 0.9),
    "detach": lambda x, f: x.detach(),
}
BINARY = {
    "add": lambda a, b, f: a + b,
    "sub": lambda a, b, f: a - b,
    "mul": lambda a, b, f: f.tanh(a) * b,
    "div": lambda a, b, f: a / (1.0 + f.square(b)),
    "minimum": lambda a, b, f: f.minimum(a, b - 0.1),
    "maximum": lambda a, b, f: f.maximum(a, b + 0.1),
    "where": lambda a, b, f: f.where(a > 0.05, b, a * 0.5),
}
REDUCE = ("sum", "mean", "logsumexp", "max", "min")
INSIDE = {
    "softmax": lambda x: x.softmax(),
    "suffix": lambda x: x.suffix_sum(0.7),
    "prefix": lambda x: x.prefix_sum(),
    "shift": lambda x: x.shift(1),
    "sort": lambda x: x.sort(),
    "rank": lambda x: x * x.rank(),
}
ABOVE = {"token": "response", "response": "group", "group": "batch", "pairs": "group"}
LETTER = {"token": "t", "response": "r", "group": "g", "batch": "b", "pairs": "p"}


def expressions(space, depth):
    """Trees as tuples; what each evaluates to lives at `space` or above."""
    leaf = st.tuples(st.just("column"), st.just(space), st.sampled_from("ax"))
    if depth == 0:
        return leaf
    same = st.deferred(lambda: expressions(space, depth - 1))
    grown = [
        st.tuples(st.just("unary"), st.sampled_from(sorted(UNARY)), same),
        st.tuples(st.just("binary"), st.sampled_from(sorted(BINARY)), same, same),
    ]
    if space != "batch":
        coarser = st.deferred(lambda: expressions(ABOVE[space], depth - 1))
        grown.append(st.tuples(st.just("binary"), st.sampled_from(sorted(BINARY)), same, coarser))
    if space in ("token", "response"):
        grown.append(st.tuples(st.just("inside"), st.sampled_from(sorted(INSIDE)), st.just(space), same))
    if space == "pairs":
        response = st.deferred(lambda: expressions("response", depth - 1))
        grown.append(st.tuples(st.just("project"), st.sampled_from("ij"), response))
    for finer in (below for below, above in ABOVE.items() if above == space):
        inner = st.deferred(lambda finer=finer: expressions(finer, depth - 1))
        grown.append(st.tuples(st.just("reduce"), st.sampled_from(REDUCE), st.just(finer), inner))
    return st.one_of(leaf, *grown)


def evaluate(tree, token, f):
    kind, *rest = tree
    if kind == "column":
        space, name = rest
        views = {"token": token, "response": token.response, "group": token.response.group, "batch": token.batch}
        view = views[space] if space != "pairs" else token.response.group.pairs()
        return view[LETTER[space] + name]
    if kind == "unary":
        return UNARY[rest[0]](evaluate(rest[1], token, f), f)
    if kind == "binary":
        return BINARY[rest[0]](evaluate(rest[1], token, f), evaluate(rest[2], token, f), f)
    if kind == "project":
        return getattr(token.response.group.pairs(), rest[0])(evaluate(_anchored(rest[1], "response"), token, f))
    operation, space, tree = rest
    inner = evaluate(_anchored(tree, space), token, f)
    return INSIDE[operation](inner) if kind == "inside" else getattr(inner, operation)()


def _anchored(tree, space):
    """A tree that certainly lives at its space: what is reduced or moved must not have stayed coarser."""
    return ("binary", "add", tree, ("column", space, "a"))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    space=st.sampled_from(["token", "response", "group", "pairs"]),
    data=st.data(),
    seed=st.integers(0, 1000),
    padded=st.booleans(),
)
def test_random_expression(space, data, seed, padded):
    tree = data.draw(expressions(space, 3))
    groups = [[3, 1, 4], [2], [1, 5]]  # no empty response: max and logsumexp of nothing are infinite
    compare(lambda token, f: evaluate(_anchored(tree, space), token, f), groups, seed=seed, padded=padded, rtol=1e-8)
