"""What a wheel must do where there is torch and nothing else. Prints what it looked at; stops at the first failure."""

import contextlib
import importlib
import importlib.util
import io
import runpy
import sys

ABSENT = ("transformers", "trl", "peft", "liger_kernel", "matplotlib", "rich", "pytest")


def alone() -> None:
    present = [name for name in ABSENT if importlib.util.find_spec(name)]
    assert not present, f"not an empty environment: {present}"


def importing() -> None:
    import torch  # noqa: F401

    before = set(sys.modules)
    prefuse = importlib.import_module("prefuse")
    assert "site-packages" in prefuse.__file__, prefuse.__file__
    assert all(getattr(prefuse, name) is not None for name in prefuse.__all__)
    assert not {"pandas", "matplotlib", "transformers"} & (set(sys.modules) - before)


def logits() -> None:
    import torch

    import prefuse

    torch.manual_seed(0)
    scores, labels = torch.randn(4, 7, 50, requires_grad=True), torch.randint(0, 50, (4, 7))
    expected = scores.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(prefuse.token_logps(scores, labels), expected)
    torch.testing.assert_close(prefuse.sequence_logps(scores, labels), expected.sum(-1))
    assert (prefuse.token_stats(scores, labels, ("logp", "entropy")).entropy > 0).all()
    assert prefuse.response_lengths(labels).tolist() == [7] * 4
    score = prefuse.preference_loss("dpo", logits=scores, labels=labels, reference=scores.detach())
    torch.testing.assert_close(score.loss, torch.tensor(2.0).log())
    score.loss.backward()
    assert scores.grad is not None and scores.grad.abs().sum() > 0


def hidden_states() -> None:
    import torch

    import prefuse

    hidden, weight = torch.randn(4, 7, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (4, 7))
    expected = (hidden @ weight.T).log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(prefuse.linear_token_logps(hidden, weight, labels), expected)
    torch.testing.assert_close(prefuse.linear_sequence_logps(hidden, weight, labels), expected.sum(-1))
    torch.testing.assert_close(prefuse.linear_token_stats(hidden, weight, labels, ("logp",)).logp, expected)
    score = prefuse.preference_loss("simpo", hidden=hidden, weight=weight, labels=labels)
    score.loss.backward()
    assert weight.grad is not None and hidden.grad is not None


def objectives() -> None:
    import numpy as np

    import prefuse
    from prefuse.language import log_sigmoid

    assert len(prefuse.objectives.names()) > 100
    assert "SimPO" in str(prefuse.objectives.show("simpo"))
    one = np.array([-20.0]), np.array([-30.0]), np.array([-22.0]), np.array([-28.0])
    losses, _, _ = prefuse.dpo_loss(*one, beta=0.1)
    np.testing.assert_allclose(losses, np.log1p(np.exp(-0.1 * 4.0)))
    np.testing.assert_allclose(prefuse.pair_loss("ipo", *one, average=False)[0], (4.0 - 5.0) ** 2)

    @prefuse.pair_objective
    def mine(pair, *, beta=1.0):
        return -log_sigmoid(beta * (pair.chosen.logp - pair.rejected.logp))

    prefuse.check(mine)


def objectives_of_every_kind() -> None:
    """What is written with each decorator, and in torch, scores."""
    import torch

    import prefuse
    from prefuse.language import exp

    logps = torch.tensor([[-1.0, -2.0], [-3.0, -1.5]])
    point = prefuse.point_objective(lambda response, *, beta=1.0: -beta * response.logp)
    torch.testing.assert_close(point(logps=logps[0]).loss, torch.tensor(1.5))
    group = prefuse.group_objective(lambda group, *, beta=1.0: -(group.response.logp.softmax() * beta).max())
    torch.testing.assert_close(group(logps=logps).loss, -logps.softmax(1).amax(1).mean())
    token = prefuse.token_objective(lambda token, *, beta=1.0: (beta * exp(token.logp)).mean())
    expected = torch.stack([logps[0].exp().mean(), logps[1, 1].exp()])
    torch.testing.assert_close(token(logps=logps, mask=logps > -2.5).losses, expected)
    hinge = prefuse.from_torch(lambda pair, *, beta=1.0: torch.relu(1 - beta * (pair.chosen.logp - pair.rejected.logp)))
    losses = hinge(chosen_logps=logps[0], rejected_logps=logps[1]).losses
    torch.testing.assert_close(losses, torch.relu(1 - logps[0] + logps[1]))
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    plan = prefuse.explain("simpo", hidden=torch.zeros(2, 3, 4), weight=torch.zeros(5, 4), labels=tokens)
    assert plan.name == "forward", plan


def commands() -> None:
    said = {words: _said(*words) for words in (("doctor",), ("objectives", "length"), ("show", "dpo"))}
    assert "torch" in said["doctor",].lower(), said
    assert "simpo" in said["objectives", "length"]
    assert "log_sigmoid" in said["show", "dpo"]


def what_is_missing() -> None:
    """An extra that is not installed is one sentence that names it."""
    import prefuse
    from prefuse import viz

    try:
        viz.margin(prefuse.objectives.dpo)
    except ImportError as error:
        assert "matplotlib is not installed" in str(error) and "pip install" in str(error), error
    else:
        raise AssertionError("drew without matplotlib")
    assert "pip install 'prefuse[demo]'" in _said("demo", status=2)


def _said(*words: str, status: int = 0) -> str:
    """What `python -m prefuse words` prints, after checking how it ends."""
    said = io.StringIO()
    arguments, sys.argv = sys.argv, ["prefuse", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module("prefuse", run_name="__main__")
        code: object = 0
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            said.write(code)
            code = 1
    finally:
        sys.argv = arguments
    assert (code or 0) == status, (words, code, said.getvalue())
    return said.getvalue()


def main() -> None:
    for step in (
        alone,
        importing,
        logits,
        hidden_states,
        objectives,
        objectives_of_every_kind,
        commands,
        what_is_missing,
    ):
        step()
        print(f"ok  {step.__name__}")


if __name__ == "__main__":
    main()
