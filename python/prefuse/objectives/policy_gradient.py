"""Reinforcement objectives: PPO and what surrounds it, REINFORCE, RLOO, mirror descent, pairwise policy optimization.

Notation: ``ρ = π/π_old`` with π_old the policy that sampled (columns ``old_logps``), ``A`` an advantage, ``h`` the
log-ratio to the reference. Log-ratios to π_old above 20 count as 20, with gradient 0 (`_policy_terms`).

Samples, rewards and advantages are the caller's; `prefuse.objectives.advantages` makes advantages of rewards and
values.
"""

from __future__ import annotations

from ..language import (
    Expression,
    GroupView,
    PairView,
    Paper,
    ResponseView,
    TokenView,
    absolute,
    clamp,
    exp,
    group_objective,
    maximum,
    minimum,
    pair_objective,
    point_objective,
    relu,
    sigmoid,
    square,
    stop_gradient,
    token_objective,
    where,
)
from ._policy_terms import (
    averaged,
    clipped_surrogate,
    generalized_advantage,
    is_last,
    k3,
    leave_one_out,
    log_ratio_to_old,
    ratio_of,
    whitened,
)
from ._terms import NON_NEGATIVE, POSITIVE, choice, weighted_likelihood

CLIP = "[0, 1]"

_MDPO = Paper("2005.09814", "Mirror Descent Policy Optimization", "Tomar et al. 2020")
_CRPG = Paper("2409.20370", "The Perfect Blend: Redefining RLHF with Mixture of Judges", "Xu et al. 2024")


@token_objective(
    paper=Paper("1707.06347", "Proximal Policy Optimization Algorithms", "Schulman et al. 2017"),
    equation="eqs. 7 and 9",
    bounds={"clip": CLIP, "clip_high": NON_NEGATIVE, "value_clip": POSITIVE, "value_weight": NON_NEGATIVE},
)
def ppo(
    token: TokenView,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    value_weight: float | None = None,
    value_clip: float | None = None,
    entropy_weight: float | None = None,
    whiten: bool = False,
    average: str = "tokens",
    max_tokens: float | None = None,
    num_tokens: float | None = None,
) -> Expression:
    """Proximal policy optimization, PPO.

    ``-min(ρ A, clip(ρ, 1-ε, 1+ε) A) + c₁ (V - G)² - c₂ H``, averaged over tokens.

    Columns by token: ``old_logps`` and ``advantage``; with c₁ also ``value`` (V) and ``return`` (G); with c₂
    ``entropy`` (H).

    clip: ε, 0.1-0.3; clip_high: another ε upwards. value_weight: c₁, 0.1-1. value_clip: limits V to its old value
    (column ``old_value``) ± this and takes the larger of both squares. entropy_weight: c₂, 0-0.01. whiten: give
    advantages mean 0 and variance 1 over the batch. average: ``"tokens"``, ``"response"``, ``"constant"`` or ``"sum"``,
    with max_tokens and num_tokens as in `grpo`.
    Libraries: TRL, MOSS and verl put a factor ½ before the value's square: halve value_weight.
    """
    advantage = whitened(token["advantage"]) if whiten else stop_gradient(token["advantage"])
    loss = clipped_surrogate(ratio_of(token), advantage, clip, clip if clip_high is None else clip_high)
    if value_weight is not None:
        loss = loss + value_weight * squared_value_error(token, value_clip)
    if entropy_weight is not None:
        loss = loss - entropy_weight * token["entropy"]
    return averaged(loss, average, max_tokens, num_tokens)


def squared_value_error(token: TokenView, value_clip: float | None) -> Expression:
    """``(V - G)²``, or the larger of it and ``(clip(V, V_old ± ε) - G)²``."""
    value, target = token["value"], stop_gradient(token["return"])
    if value_clip is None:
        return square(value - target)
    old = stop_gradient(token["old_value"])
    return maximum(square(value - target), square(clamp(value, old - value_clip, old + value_clip) - target))


@token_objective(
    paper=Paper("2307.04964", "Secrets of RLHF in Large Language Models Part I: PPO", "Zheng et al. 2023"),
    equation="eqs. 15 to 17",
    identities=("ppo_max = ppo(value_weight=0.5, value_clip=0.2)",),
    bounds={"clip": CLIP, "value_clip": POSITIVE, "value_weight": NON_NEGATIVE, "ptx_weight": NON_NEGATIVE},
)
def ppo_max(
    token: TokenView,
    *,
    clip: float = 0.2,
    value_clip: float = 0.2,
    value_weight: float = 1.0,
    entropy_weight: float | None = None,
    entropy_target: float = 35.0,
    ptx_weight: float | None = None,
) -> Expression:
    """PPO-max for language models, as in the authors' code.

    ``mean -min(ρ A, clip(ρ) A) + c ½ mean max((V - G)², (clip(V, V_old ± ε) - G)²) + w |mean H - H₀| + λ NLL``, each
    mean over tokens of the batch.

    Columns by token: ``old_logps``, ``advantage``, ``value``, ``old_value``, ``return``; with w ``entropy``; with λ the
    response column ``pretrain``, true for responses of pretraining text, which only the NLL sees (their other columns
    may hold anything finite).

    clip, value_clip: 0.2. value_weight: c. entropy_weight: w, and entropy_target: H₀ in nats. ptx_weight: λ, 0-1.
    Rewards are normalised outside (`RunningMoments`), advantages may be whitened and clipped to ±0.5.
    """
    rollout = token.position * 0.0 + 1.0 if ptx_weight is None else 1.0 - token.response["pretrain"]
    policy = clipped_surrogate(ratio_of(token), stop_gradient(token["advantage"]), clip, clip)
    loss = batch_mean(token, policy + 0.5 * value_weight * squared_value_error(token, value_clip), "rollout", rollout)
    if entropy_weight is not None:
        entropy = batch_mean(token, token["entropy"], "rollout", rollout)
        loss = loss + entropy_weight * absolute(entropy - entropy_target)
    if ptx_weight is not None:
        loss = loss + ptx_weight * batch_mean(token, -token.logp, "pretrain", token.response["pretrain"])
    return loss


def batch_mean(token: TokenView, x: Expression, which: str, kept: Expression) -> Expression:
    """Mean of x over the batch's tokens where `kept` is 1, which are called `which`; 0 if there are none."""
    flags = where(token.position >= 0.0, kept, 0.0)
    count = token.response.total(f"batch_{which}_tokens", flags.sum("batch"))
    return where(flags > 0.5, x, 0.0).sum("batch") / maximum(count, 1.0)


@token_objective(
    paper=Paper("2404.08495", "Dataset Reset Policy Optimization for RLHF", "Chang et al. 2024"),
    equation="algorithm 1",
    identities=("dr_po = ppo where roll_in=0",),
    bounds={"clip": CLIP, "value_weight": NON_NEGATIVE, "value_clip": POSITIVE},
    variants={"original": {"mask_value": False}},
)
def dr_po(
    token: TokenView,
    *,
    clip: float = 0.2,
    value_weight: float | None = None,
    value_clip: float = 0.2,
    mask_value: bool = True,
) -> Expression:
    """Dataset reset policy optimization, DR-PO: PPO after a prefix.

    ``Σ m max(-A ρ, -A clip(ρ)) / Σ m + c ½ mean max((V - G)², (clip(V) - G)²)``, m being 0 on the first ``roll_in``
    tokens of a response, which were copied from the data.

    Columns: ``roll_in`` by response, those of `ppo` by token.

    clip: ε, 0.2. value_weight: c, 0.1. value_clip: 0.2. mask_value: whether the value's error is
    masked as well; the authors' code takes it over all tokens.
    """
    generated = token.position >= token.response["roll_in"]
    policy = clipped_surrogate(ratio_of(token), stop_gradient(token["advantage"]), clip, clip)
    loss = batch_mean(token, policy, "generated", generated)
    if value_weight is None:
        return loss
    error = 0.5 * squared_value_error(token, value_clip)
    mean = batch_mean(token, error, "generated", generated) if mask_value else error.token_mean()
    return loss + value_weight * mean


@token_objective(
    paper=Paper("2404.18922", "DPO Meets PPO: Reinforced Token Optimization for RLHF", "Zhong et al. 2024"),
    equation="eq. 4.7",
    bounds={"clip": CLIP, "reward_clip": POSITIVE, "discount": "[0, 1]", "smoothing": "[0, 1]"},
    variants={"original": {"reward_clip": 0.05, "whiten": True}},
)
def rto(
    token: TokenView,
    *,
    dpo_weight: float = 0.05,
    kl_weight: float = 0.01,
    score_weight: float = 1.0,
    reward_clip: float | None = None,
    discount: float = 1.0,
    smoothing: float = 0.95,
    clip: float = 0.2,
    whiten: bool = False,
) -> Expression:
    """Reinforced token optimization, RTO: PPO on a DPO model's rewards.

    ``r_t = β₁ log π_dpo/π_ref - β₂ log π_old/π_ref``, plus β₃ times the score at the last token; advantages by GAE,
    then the clipped surrogate, averaged over each response.

    Columns by token: ``old_logps``, ``ref_logps``, ``dpo_logps``, ``value``; by response ``score``.

    dpo_weight: β₁, small. kl_weight: β₂, PPO's. score_weight: β₃. discount, smoothing: γ and λ of GAE. clip: ε.
    whiten: advantages to mean 0 and variance 1 over the batch. reward_clip: limits of ``β₁ log π_dpo/π_ref``; the
    authors' code has 0.05, the paper none.
    """
    reference = stop_gradient(token.ref_logp)
    dense = dpo_weight * stop_gradient(token["dpo_logps"] - token.ref_logp)
    if reward_clip is not None:
        dense = clamp(dense, -reward_clip, reward_clip)
    last = where(is_last(token), score_weight * stop_gradient(token.response["score"]), 0.0)
    reward = dense - kl_weight * (token["old_logps"] - reference) + last
    advantage = generalized_advantage(token, reward, discount, smoothing)
    return clipped_surrogate(ratio_of(token), whitened(advantage) if whiten else advantage, clip, clip).mean()


@token_objective(paper=_MDPO, equation="eq. 5", bounds={"step_size": POSITIVE})
def mdpo(token: TokenView, *, step_size: float = 1.0, divergence: str = "exact") -> Expression:
    """Mirror descent policy optimization, on-policy.

    ``-ρ A + KL(π‖π_k)/t`` by token, averaged over the batch; π_k is the policy that sampled, kept for several steps.

    Columns by token: ``old_logps``, ``advantage``, and for ``divergence="exact"`` ``kl``, that of the full
    next-token distributions (`token_stats` gives it with its gradient).

    step_size: t, annealed from 1 to 0 in the paper (1 - k/K). divergence: ``"exact"``, or ``"k3"`` for the sampled
    estimate ``e^{-x} + x - 1`` of the log-ratio x.
    """
    log_ratio = log_ratio_to_old(token)
    if divergence not in ("exact", "k3"):
        raise ValueError(f'mdpo: divergence must be "exact" or "k3", got {divergence!r}')
    kl = token["kl"] if divergence == "exact" else k3(log_ratio)
    return (kl / step_size - exp(log_ratio) * stop_gradient(token["advantage"])).token_mean()


@token_objective(
    paper=_MDPO, equation="section 4.2", bounds={"temperature": NON_NEGATIVE, "entropy_weight": NON_NEGATIVE}
)
def mdpo_off(token: TokenView, *, temperature: float = 1.0, entropy_weight: float = 0.2) -> Expression:
    """Mirror descent policy optimization off-policy, from the code.

    ``κ log π + (λ - κ) log π_k - Q``: for actions drawn from π by reparameterisation, with the gradient through Q.

    Columns by token: ``old_logps`` (log π_k) and ``q``, the critic's value of the action.

    temperature: κ, 1. entropy_weight: λ, 0.2. With κ = λ this is the policy loss of soft actor-critic.
    """
    previous = stop_gradient(token["old_logps"])
    return (temperature * token.logp + (entropy_weight - temperature) * previous - token["q"]).token_mean()


@token_objective(
    paper=Paper("2409.06957", "Policy Filtration in RLHF to Fine-Tune LLM for Code Generation", "Shen and Zhang 2024"),
    equation="section 4",
    bounds={"power": POSITIVE},
)
def pf_ppo_weight(token: TokenView, *, rule: str = "best_random", power: float = 2.0) -> Expression:
    """Weights of policy filtration, PF-PPO: what to learn from.

    A weight per response from the column ``reward`` within its ``groups``: ``ppo(average="response").weighted_by(
    pf_ppo_weight())``. Of N responses ``"best"`` keeps the best; ``"best_random"`` weighs the best 4 and every other 1;
    ``"best_worst"`` keeps these two; ``"power"`` takes |reward|^p over the whole batch. Weights average to 1.

    rule: as above; the paper picks the rule whose kept rewards fit the true scores best. power: p of ``"power"``, 2.
    """
    response = token.response
    reward = stop_gradient(response["reward"])
    if rule == "power":
        raw = absolute(reward) ** power
        return raw / maximum(raw.mean("batch"), 1e-12)
    best, worst = reward.rank("group") == 1.0, reward.rank("group", descending=False) == 1.0
    rules = {"best": best, "best_worst": best | worst, "best_random": where(best, 4.0, 1.0)}
    if rule not in rules:
        raise ValueError(f"pf_ppo_weight: rule must be one of {', '.join((*rules, 'power'))}, got {rule!r}")
    return rules[rule] / rules[rule].mean("group")


@point_objective(
    paper=Paper(
        "2402.14740",
        "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
        "Williams 1992; for language models Ahmadian et al. 2024",
    ),
    equation="eq. 6",
    bounds={"beta": NON_NEGATIVE},
)
def reinforce(
    response: ResponseView, *, beta: float | None = None, baseline: str = "batch", average: str = "sum"
) -> Expression:
    """REINFORCE on whole responses.

    ``-(R - b) log π(y)``, with ``R = reward - β h``; neither R nor b takes a gradient.

    Columns: ``reward``; ``groups`` for baselines within a prompt.

    beta: KL coefficient inside the reward, 0.01-0.1; None leaves the reference out. baseline: ``"none"``,
    ``"batch"`` or ``"group"`` for a mean, ``"leave_one_out"`` for the mean of the group's others, ``"given"`` for the
    column ``value``. average: ``"sum"`` over the tokens, or ``"response"`` for their mean.
    """
    reward = response["reward"] if beta is None else response["reward"] - beta * response.logratio
    reward = stop_gradient(reward)
    if baseline == "leave_one_out":
        advantage = leave_one_out(reward)
    elif baseline in ("batch", "group"):
        advantage = reward - reward.mean(baseline)
    elif baseline in ("none", "given"):
        advantage = reward if baseline == "none" else reward - stop_gradient(response["value"])
    else:
        raise ValueError(
            f'reinforce: baseline must be "none", "batch", "group", "leave_one_out" or "given", got {baseline!r}'
        )
    if average not in ("sum", "response"):
        raise ValueError(f'reinforce: average must be "sum" or "response", got {average!r}')
    return -advantage * (response.logp if average == "sum" else response.avg_logp)


@point_objective(
    paper=Paper(
        "2402.14740",
        "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
        "Ahmadian et al. 2024",
    ),
    equation="section 2.3",
    identities=('rloo = reinforce(beta=0.05, baseline="leave_one_out")',),
    bounds={"beta": NON_NEGATIVE, "clip": CLIP, "clip_high": NON_NEGATIVE},
    variants={"trl-1.16": {"clip": 0.2}},
)
def rloo(
    response: ResponseView,
    *,
    beta: float = 0.05,
    reference: bool = True,
    clip: float | None = None,
    clip_high: float | None = None,
) -> Expression:
    """REINFORCE leave-one-out, RLOO.

    ``-(R_i - mean_{j≠i} R_j) log π(y_i)`` over the responses to one prompt, ``R = reward - β h``, constants.

    Columns: ``reward``, ``groups``; with clip also ``old_logps``, from which the KL in R is then taken.

    beta: KL coefficient inside the reward, 0.01-0.1; reference: False leaves it out. clip: ε of the clipped ratio of
    whole responses; None is the paper's plain gradient. clip_high: another ε upwards.
    Libraries: TRL's trainer clips (0.2) and can whiten advantages.
    """
    sampler = response.logp if clip is None else response["old_logps"]
    reward = response["reward"] - beta * (sampler - response.ref_logp) if reference else response["reward"]
    advantage = leave_one_out(stop_gradient(reward))
    if clip is None:
        return -advantage * response.logp
    return clipped_surrogate(ratio_of(response), advantage, clip, clip if clip_high is None else clip_high)


@pair_objective(
    paper=Paper(
        "2310.00212",
        "Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment",
        "Wu et al. 2023",
    ),
    equation="theorem 1",
    bounds={"beta": NON_NEGATIVE, "clip": NON_NEGATIVE},
)
def p3o(
    pair: PairView, *, beta: float = 0.05, clip: float = 0.2, clipping: str = "joint"
) -> tuple[Expression, dict[str, Expression]]:
    """Pairwise proximal policy optimization, P3O, clips as reconstructed.

    For two responses drawn from π_old, called chosen and rejected here in any order:
    ``d = r̃(1) - r̃(2)``, ``r̃ = reward - β log π_old/π_ref``. V1, ``"separate"``: ``-½ Σ_i min(c_i ρ_i, c_i clip(ρ_i,
    1±ε))`` with ``c_1 = sg[d ρ_2]``, ``c_2 = -sg[d ρ_1]``. V2, ``"joint"``: ``-½ min(c z, c clip(z, z_old ± ε))`` with
    ``z = log π(1) - log π(2)``, ``c = sg[d ρ_1 ρ_2]``. Unclipped both have the gradient ``-½ d ρ_1 ρ_2`` of the paper's
    theorem; V1's value is then 0. Whatever is added to both rewards of a prompt changes nothing.

    Columns: ``chosen_reward``, ``rejected_reward``, ``chosen_old_logps``, ``rejected_old_logps``.

    beta: KL coefficient, 0.02-0.2. clip: ε, 0.2. clipping: which version.
    """
    first, second = pair.chosen, pair.rejected
    gap = stop_gradient(regularised_reward(first, beta) - regularised_reward(second, beta))
    ratios = ratio_of(first), ratio_of(second)
    if clipping == "separate":
        terms = [
            pessimistic(stop_gradient(signed * other), ratio, 1.0 - clip, 1.0 + clip)
            for signed, ratio, other in ((gap, ratios[0], ratios[1]), (-gap, ratios[1], ratios[0]))
        ]
        return -0.5 * (terms[0] + terms[1]), rewards_of(pair, beta)
    if clipping != "joint":
        raise ValueError(f'p3o: clipping must be "joint" or "separate", got {clipping!r}')
    old = stop_gradient(first["old_logps"] - second["old_logps"])
    coefficient = stop_gradient(gap * ratios[0] * ratios[1])
    return -0.5 * pessimistic(coefficient, first.logp - second.logp, old - clip, old + clip), rewards_of(pair, beta)


def regularised_reward(response: ResponseView, beta: float) -> Expression:
    """``reward - β log π_old/π_ref`` of a response."""
    return response["reward"] - beta * (response["old_logps"] - response.ref_logp)


def pessimistic(
    coefficient: Expression, x: Expression, low: Expression | float, high: Expression | float
) -> Expression:
    """``min(c x, c clip(x, low, high))``."""
    return minimum(coefficient * x, coefficient * clamp(x, low, high))


def rewards_of(pair: PairView, beta: float) -> dict[str, Expression]:
    """The rewards P3O compares."""
    return {role: regularised_reward(pair.response(role), beta) for role in ("chosen", "rejected")}


@point_objective(paper=_CRPG, equation="eqs. 11 and 12", bounds={"kl_max": POSITIVE})
def crpg(response: ResponseView, *, kl_max: float = 10.0, average: str = "sum") -> Expression:
    """Calibrated-regularised policy gradient, CRPG.

    ``-(R̃ - mean R̃) log π(y)`` with ``R̃ = J σ(reward - base) max(0, 1 - kl/kl_max)``, the mean over the batch.

    Columns: ``reward``, ``base_reward`` (that of a baseline answer to the prompt), ``judge`` (J: 1 if every constraint
    is met, else 0), ``kl`` (the rollout policy's log-ratio to the reference).

    kl_max: nats beyond which a response counts nothing. average: as in `crraft`.
    """
    calibrated = sigmoid(response["reward"] - response["base_reward"])
    kept = stop_gradient(response["judge"] * calibrated * relu(1.0 - response["kl"] / kl_max))
    return weighted_likelihood("crpg: average", kept - kept.mean("batch"), response, average)


@group_objective(paper=_CRPG, equation="eqs. 17 and 18", bounds={"kl_max": POSITIVE})
def crraft_list(group: GroupView, *, kl_max: float = 10.0, average: str = "sum") -> Expression:
    """Calibrated-regularised reward ranking, CRRAFT of CGPO.

    ``-c log π(y*)``: y* has the largest calibrated reward ``c = σ(reward - base)`` among the responses to a prompt that
    meet every constraint and whose log-ratio is at most kl_max; without any the loss is 0, where the paper falls back
    on the baseline answer if that meets every constraint.

    Columns: ``reward``, ``judge``, and ``base_reward`` by group.

    kl_max: nats. average: ``"sum"`` over tokens, or ``"response"`` for the mean over those of y*.
    """
    response = group.response
    calibrated = stop_gradient(sigmoid(response["reward"] - group["base_reward"]))
    admissible = (response["judge"] > 0.5) & (response.logratio <= kl_max)
    best = where(admissible, calibrated, -1.0).rank() == 1.0
    likelihood = choice("crraft_list: average", average, {"sum": response.logp, "response": response.avg_logp})
    return -where(best & admissible, calibrated * likelihood, 0.0).sum()
