"""3D-properties of DPO: the likelihood of chosen responses rises, then falls (Yan et al. 2024, arXiv:2406.07327)."""

import numpy as np
import torch
from lab import thinned

from prefuse import objectives

TITLE = "3D-properties: DPO's likelihood rises and falls"
CLAIM = (
    "DPO first raises and then lowers the probability of chosen responses, more so for rejected responses that were "
    "unlikely from the start (off-policy); a weaker pull on the rejected side (Flex-DPO) or an SFT term cure it."
)

PROMPTS, RESPONSES, EPOCHS = 4, 10, 500  # response i is right for prompt i, 4 + i is rejected, 8 and 9 are in no pair
VARIANTS = {
    "DPO": (objectives.dpo(beta=0.1), 0.12),
    "DPO, off-policy": (objectives.dpo(beta=0.1), 0.02),
    "Flex-DPO": (objectives.flex_dpo(beta_chosen=0.1, beta_rejected=0.02), 0.12),
    "SFT-DPO": (objectives.dpo(beta=0.1) + 0.1 * objectives.sft(nll="sum"), 0.12),
}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(PROMPTS, 64), torch.nn.ReLU(), torch.nn.Linear(64, RESPONSES)).double()


def fit(model, probabilities):
    """The starting point: a model whose next-response probabilities are these."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    logits = probabilities.log()

    def closure():
        optimizer.zero_grad()
        loss = (model(torch.eye(PROMPTS).double()).log_softmax(1) - logits).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)


def train(objective, rejected_probability):
    """The mean probability of a chosen response, epoch by epoch."""
    rows = torch.arange(PROMPTS)
    start = torch.full((PROMPTS, RESPONSES), 0.12).double()
    start[:, 8:] = 0.02
    start[rows, 4 + rows] = rejected_probability
    start /= start.sum(1, keepdim=True)
    model, inputs = network(), torch.eye(PROMPTS).double()
    fit(model, start)
    optimizer, chosen = torch.optim.Adam(model.parameters(), lr=1e-3), []
    with torch.no_grad():
        reference = model(inputs).log_softmax(1)
    for _ in range(EPOCHS):
        logps = model(inputs).log_softmax(1)
        chosen.append(float(logps.detach()[rows, rows].exp().mean()))
        columns = {
            "chosen_logps": logps[rows, rows],
            "rejected_logps": logps[rows, 4 + rows],
            "ref_chosen_logps": reference[rows, rows],
            "ref_rejected_logps": reference[rows, 4 + rows],
        }
        optimizer.zero_grad()
        objective(**columns).loss.backward()
        optimizer.step()
    return np.array(chosen)


def main():
    chosen = {name: train(*variant) for name, variant in VARIANTS.items()}
    for name in ("DPO", "DPO, off-policy"):
        assert chosen[name].max() > 2 * chosen[name][0]
        assert chosen[name][-1] < chosen[name].max() - 0.05
    assert chosen["DPO"][-1] < chosen["DPO"].max() - 0.1
    assert chosen["DPO, off-policy"].max() < chosen["DPO"].max()
    assert chosen["Flex-DPO"][-1] > 0.9
    assert chosen["SFT-DPO"][-1] > 0.9
    return {"chosen": chosen}


def draw(axes, data):
    for name, values in data["chosen"].items():
        axes.plot(*thinned(values), label=name)
    axes.set(xlabel="epoch", ylabel="probability of the chosen response", ylim=(0, 1.02))
    axes.legend()


if __name__ == "__main__":
    main()
