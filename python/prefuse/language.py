"""The language objectives are written in.

An objective is a function of a view and of hyper-parameters, decorated by its kind:

    @pair_objective(paper="2405.14734", equation="eq. 6")
    def simpo(pair, *, beta=2.0, gamma=1.0):
        '''SimPO.'''
        margin = pair.chosen.avg_logp - pair.rejected.avg_logp
        return -log_sigmoid(beta * margin - gamma)

    score = simpo(beta=2.5)(chosen_logps=w, rejected_logps=l, chosen_lengths=n_w, rejected_lengths=n_l)
    score.loss.backward()

It runs once, on symbols; value, gradient and formula come from what it did. Log-likelihoods are in nats; everything is
computed in f64 whatever the dtype of the columns.

**Levels.** token ⊂ response ⊂ group ⊂ batch; a pair is a group whose two responses have names. Coarser values
broadcast to finer levels; finer ones are reduced: `x.sum()`, `x.mean()`, `x.max()`, `x.logsumexp()`, `x.logmeanexp()`
to the level above, or to a named one (`x.mean("batch")`); `x.softmax()` normalises. The loss is one value per item
(pair, response, group) or one for the batch.

**Columns and the arguments they are given as.**

In a pair (one value per pair, [B], unless it says otherwise):

| written | argument |
| --- | --- |
| `pair.chosen.logp`, `.ref_logp`, `.length` | `chosen_logps`, `ref_chosen_logps`, `chosen_lengths` |
| `pair.chosen["score"]`, `pair["margin"]` | `chosen_score`, `margin` |
| `pair.chosen.token.logp`, `.token["kl"]` | `chosen_token_logps`, `chosen_token_kl` by token, with `chosen_mask` |
| `pair.response("gold").logp` | `gold_logps` |
| `pair.batch["delta"]` (and in every view) | `delta`, a number |

In a point objective or a list, [R]:

| written | argument |
| --- | --- |
| `response.logp`, `response["label"]` | `logps`, `label` |
| `group["x"]`, `pairs["p"]` | `x` [G], `p` [G, K, K] |
| `response.token.logp`, `response.token["kl"]` | `token_logps`, `token_kl` by token, with `mask` |

In a token objective:

| written | argument |
| --- | --- |
| `token.logp`, `token["advantage"]` | `logps`, `advantage` by token, with `mask` |
| `token.response["reward"]`, `token.response.group["x"]` | `reward` [R], `x` [G] |

Tokens are padded [R, T] with a boolean mask, or packed [N] with offsets `cu_seqlens` [R + 1] in its place. Where groups
matter, `groups` [R] holds one integer id per response, in any order; results per group come by ascending id. Response
columns may also come as [G, K].
A mean over the batch's tokens divides by `response.batch_length`, or is `x.token_mean()` of a token value: its number
of tokens may be given instead, for a batch spread over several calls (`prefuse.batch_totals`).
A response's log-probability and length may be left out where its tokens are given: the sum and the count stand for
them. A length counts at least 1, so that an empty response has average 0.

**Hyper-parameters** are keyword-only and have defaults. Numbers are run-time values: changing one compiles nothing, and
an array with one value per item may take a number's place. A bool, str or None shapes the formula: `if` may look at it.

**Rewards** are what a second return value says, (loss, {"chosen": …, "rejected": …}) or (loss, reward), and otherwise
β·logratio if the reference is used, β·avg_logp if lengths are, β·logp if neither is (β = 1 if there is no `beta`).
`record("name", x)` adds the mean of x to `score.metrics`.
"""

from .errors import LanguageError
from .scoring.decorators import group_objective, pair_objective, point_objective, token_objective
from .scoring.objective import Objective
from .scoring.papers import Paper
from .scoring.registry import find, names, register
from .scoring.score import Score
from .scoring.traced import ColumnInfo
from .scoring.wrapped import TorchObjective, from_torch
from .tracing.expression import Expression, Pairs
from .tracing.functions import (
    absolute,
    clamp,
    exp,
    expm1,
    log,
    log1mexp,
    log1p,
    log_sigmoid,
    maximum,
    minimum,
    record,
    relu,
    sigmoid,
    sign,
    softplus,
    sqrt,
    square,
    stop_gradient,
    tanh,
    where,
)
from .tracing.views import BatchView, GroupView, PairView, ResponseView, TokenView

__all__ = [
    "BatchView",
    "ColumnInfo",
    "Expression",
    "GroupView",
    "LanguageError",
    "Objective",
    "PairView",
    "Pairs",
    "Paper",
    "ResponseView",
    "Score",
    "TokenView",
    "TorchObjective",
    "absolute",
    "clamp",
    "exp",
    "expm1",
    "find",
    "from_torch",
    "group_objective",
    "log",
    "log1mexp",
    "log1p",
    "log_sigmoid",
    "maximum",
    "minimum",
    "names",
    "pair_objective",
    "point_objective",
    "record",
    "register",
    "relu",
    "sigmoid",
    "sign",
    "softplus",
    "sqrt",
    "square",
    "stop_gradient",
    "tanh",
    "token_objective",
    "where",
]
