"""Every operator, reduction, scan, sort and projection: value and gradient against torch in f64."""

import pytest
from worlds import ORDER, compare

CASES = {
    "add": lambda t, f: t["ta"] + t["tx"],
    "radd": lambda t, f: 2.0 + t["ta"],
    "sub": lambda t, f: t["ta"] - t["tx"],
    "rsub": lambda t, f: 2.0 - t["ta"],
    "mul": lambda t, f: t["ta"] * t["tx"],
    "div": lambda t, f: t["ta"] / t["tx"],
    "rdiv": lambda t, f: 2.0 / t["tx"],
    "pow": lambda t, f: t["tx"] ** t["ta"],
    "pow number": lambda t, f: t["tx"] ** 1.7,
    "rpow": lambda t, f: 2.0 ** t["ta"],
    "neg": lambda t, f: -t["ta"],
    "abs": lambda t, f: abs(t["ta"]) + f.absolute(t["ta"]),
    "exp": lambda t, f: f.exp(t["ta"]),
    "log": lambda t, f: f.log(t["tx"]),
    "log1p": lambda t, f: f.log1p(t["tx"]),
    "expm1": lambda t, f: f.expm1(t["ta"]),
    "log1mexp": lambda t, f: f.log1mexp(-t["tx"]),
    "sigmoid": lambda t, f: f.sigmoid(3.0 * t["ta"]),
    "log_sigmoid": lambda t, f: f.log_sigmoid(3.0 * t["ta"]),
    "softplus": lambda t, f: f.softplus(3.0 * t["ta"]),
    "tanh": lambda t, f: f.tanh(t["ta"]),
    "relu": lambda t, f: f.relu(t["ta"]),
    "sign": lambda t, f: f.sign(t["ta"]) * t["tx"],
    "square": lambda t, f: f.square(t["ta"]),
    "sqrt": lambda t, f: f.sqrt(t["tx"]),
    "minimum": lambda t, f: f.minimum(t["ta"], t["tx"]) + f.minimum(t["ta"], 0.3),
    "maximum": lambda t, f: f.maximum(t["ta"], t["tx"]) + f.maximum(0.3, t["ta"]),
    "tie of maximum": lambda t, f: f.maximum(t["ta"], t["ta"] * 1.0) + f.maximum(t["ta"] - t["ta"], 0.0),
    "clamp": lambda t, f: f.clamp(t["ta"], -0.5, 0.5) + t["ta"].clamp(max=0.2) + t["ta"].clamp(min=0.1),
    "where": lambda t, f: f.where(t["ta"] > 0, t["tx"], f.exp(t["ta"])),
    "where numbers": lambda t, f: f.where(t["ta"] > 0, 1.0, t["ta"]),
    "untaken branch": lambda t, f: f.where(t["ta"] > 0, f.log(f.where(t["ta"] > 0, t["ta"], 1.0)), 0.0),
    "comparisons": lambda t, f: t["tx"] * ((t["ta"] < 0.1) + (t["ta"] <= 0.2) + (t["ta"] > 0) + (t["ta"] >= 0.4)),
    "equality": lambda t, f: t["tx"] * ((t["ta"] == t["ta"]) + (t["ta"] != t["tx"])),
    "logic": lambda t, f: t["tx"] * (((t["ta"] > 0) & (t["tx"] > 1)) | ~(t["ta"] > -1)),
    "stop_gradient": lambda t, f: f.stop_gradient(t["ta"]) * t["ta"] + t["tx"].detach(),
    "constant": lambda t, f: t["ta"] * 0.0 + 3.0,
    # Levels
    "response meets token": lambda t, f: t["ta"] * t.response["ra"],
    "group meets token": lambda t, f: t["ta"] * t.response.group["ga"],
    "batch meets token": lambda t, f: t["ta"] * t.batch["ba"],
    "three levels": lambda t, f: f.exp(t.response["ra"] * t.response.group["ga"]) * t["ta"],
    "position": lambda t, f: t.position * t["ta"],
    "response position": lambda t, f: t.response.position * t.response["ra"],
    "length": lambda t, f: t["ta"].sum() / t.response.length,
    "size": lambda t, f: t.response.group["ga"] * t.response.group.size,
    # Reductions
    "sum": lambda t, f: t["ta"].sum(),
    "mean": lambda t, f: t["ta"].mean(),
    "sum to group": lambda t, f: t["ta"].sum("group"),
    "mean to group": lambda t, f: t["ta"].mean("group"),
    "mean to batch": lambda t, f: t["ta"].mean("batch"),
    "count": lambda t, f: t["ta"].count() * t.response["ra"],
    "count to group": lambda t, f: t["ta"].count("group") * t.response.group["ga"],
    "count to batch": lambda t, f: t["ta"] / t["ta"].count("batch"),
    "sum of coarse at fine": lambda t, f: (t.response["ra"] + 0.0 * t["ta"]).sum(),
    "coarse value summed": lambda t, f: (t.response.group["ga"] * t.response["rx"]).sum("batch"),
    "max": lambda t, f: t.response["ra"].max(),
    "min": lambda t, f: t.response["ra"].min(),
    "max to batch": lambda t, f: t["ta"].max("batch"),
    "logsumexp": lambda t, f: t.response["ra"].logsumexp(),
    "logsumexp to batch": lambda t, f: t["ta"].logsumexp("batch"),
    "logmeanexp": lambda t, f: t.response["ra"].logmeanexp(),
    "logmeanexp to batch": lambda t, f: t["ta"].logmeanexp("batch"),
    "softmax": lambda t, f: t.response["ra"].softmax() * t.response["rx"],
    "log_softmax": lambda t, f: t.response["ra"].log_softmax(),
    "softmax of tokens": lambda t, f: t["ta"].softmax() * t["tx"],
    "softmax in batch": lambda t, f: t["ta"].softmax("batch") * t["tx"],
    "two reductions": lambda t, f: (t["ta"].sum() * t.response["rx"]).mean(),
    # Order
    "rank": lambda t, f: t.response["ra"].rank() * t.response["rx"],
    "rank ascending": lambda t, f: t.response["ra"].rank(descending=False) * t.response["ra"],
    "rank in batch": lambda t, f: t.response["ra"].rank("batch") * t.response["ra"],
    "sort": lambda t, f: t.response["ra"].sort() * t.response["rx"],
    "sort descending": lambda t, f: t.response["ra"].sort(descending=True) * t.response["rx"],
    "sort in batch": lambda t, f: f.exp(t["ta"].sort("batch")) * t["tx"],
    "sort by key": lambda t, f: t.response["ra"].sort(key=t.response["rx"]) * t.response["rx"],
    # Along the tokens
    "suffix_sum": lambda t, f: t["ta"].suffix_sum() * t["tx"],
    "prefix_sum": lambda t, f: t["ta"].prefix_sum() * t["tx"],
    "discounted": lambda t, f: t["ta"].suffix_sum(0.9) * t["tx"] + t["ta"].prefix_sum(0.5),
    "discount as a column": lambda t, f: t["ta"].suffix_sum(t.batch["bx"].detach()) * t["tx"],
    "reset": lambda t, f: t["ta"].suffix_sum(reset=t["tx"] > 0.75) * t["tx"],
    "prefix reset": lambda t, f: t["ta"].prefix_sum(0.8, reset=t["tx"] > 0.75) * t["tx"],
    "shift": lambda t, f: t["ta"].shift(-1) * t["tx"] + t["ta"].shift(2, 0.5) * t["tx"],
    "first": lambda t, f: t["ta"].first(),
    "last": lambda t, f: t["ta"].last() * t.response["ra"],
}

PAIRS = {
    "difference": lambda i, j, p, r, f: i(r["ra"]) - j(r["rx"]),
    "margin loss": lambda i, j, p, r, f: f.where(i(r["rx"]) > j(r["rx"]), f.softplus(j(r["ra"]) - i(r["ra"])), 0.0),
    "column": lambda i, j, p, r, f: f.square(i(r["ra"]) - j(r["ra"]) - p["pa"]),
    "sum to group": lambda i, j, p, r, f: (i(r["ra"]) * j(r["rx"])).sum(),
    "mean to group": lambda i, j, p, r, f: (i(r["ra"]) * p["pa"]).mean(),
    "partners of i": lambda i, j, p, r, f: (i(r["ra"]) * p["pa"]).sum("i"),
    "partners of j": lambda i, j, p, r, f: (i(r["ra"]) * p["pa"]).mean("j") * r["rx"],
    "group value": lambda i, j, p, r, f: r.group["ga"] * i(r["ra"]),
    "ranks": lambda i, j, p, r, f: abs(i(r["ra"].rank()) - j(r["ra"].rank())) * i(r["ra"]) * p["pa"],
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    # What goes where in a sorted batch depends on the order responses come in.
    compare(CASES[case], order=range(6) if case == "sort in batch" else ORDER)


@pytest.mark.parametrize("case", ["suffix_sum", "reset", "softmax", "mean to batch", "length", "group meets token"])
def test_operator_packed(case):
    compare(CASES[case], padded=False)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_pairs(case):
    def function(token, functions):
        pairs = token.response.group.pairs()
        i, j = pairs
        return PAIRS[case](i, j, pairs, token.response, functions)

    compare(function)
