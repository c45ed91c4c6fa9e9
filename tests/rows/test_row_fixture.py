"""Worked numbers: twelve label tokens of a tiny linear head, whose statistics other libraries computed."""

import pytest
import torch

from prefuse.functional import response_lengths, sequence_logps, token_stats
from tests.devices import here

pytestmark = pytest.mark.usefixtures("device")

W = torch.tensor([[1, 0, -1], [0, 1, 0.5], [-1, 0.5, 0], [0.5, -0.5, 1], [0, 0, 0.25]], dtype=torch.float64)
W_REF = torch.tensor([[0.5, 0.5, -1], [0, 1, 0], [-0.5, 0, 0.5], [1, -0.5, 0.5], [0, 0.25, 0]], dtype=torch.float64)
B, T, K = torch.meshgrid(torch.arange(4), torch.arange(5), torch.arange(3), indexing="ij")
X = (((7 * B + 3 * T + 5 * K) % 8) - 3.5).double() / 2
X_REF = (((3 * B + 5 * T + 7 * K) % 9) - 4).double() / 2
LABELS = torch.tensor(
    [[-100, 3, 1, 4, -100], [-100, 0, 3, 1, 4], [-100, 2, 0, -100, -100], [-100, 4, 2, 0, -100]],
)
SCORED = LABELS != -100
# fmt: off
EXPECTED = {
    "logp": [
        -0.423358, -4.201231, -2.472275,  # row 0
        -3.595217, -0.244511, -2.037348, -1.735858,  # row 1
        -0.534775, -3.310146,  # row 2
        -2.599848, -2.548358, -0.076231,  # row 3
    ],
    "ref_logp": [
        -1.993148, -0.575343, -2.139865,  # row 0
        -1.090285, -2.387491, -0.800731, -2.118148,  # row 1
        -0.606141, -0.836959,  # row 2
        -2.118148, -1.325343, -0.639865,  # row 3
    ],
    "entropy": [
        1.061476, 0.359316, 1.068487,  # row 0
        1.116822, 0.781255, 0.84032, 1.061476,  # row 1
        1.068487, 0.906988,  # row 2
        0.84032, 1.061476, 0.359316,  # row 3
    ],
    "log_sum_sq": [
        -0.754478, -0.150676, -0.847817,  # row 0
        -0.946015, -0.462928, -0.533369, -0.754478,  # row 1
        -0.847817, -0.576154,  # row 2
        -0.533369, -0.754478, -0.150676,  # row 3
    ],
    "mean_logit": [
        -0.2625, -0.1875, 0.0875,  # row 0
        0.3125, 0.1875, -0.1375, -0.2625,  # row 1
        0.0875, -0.0375,  # row 2
        -0.1375, -0.2625, -0.1875,  # row 3
    ],
    "top1": [
        1, 0, 0,  # row 0
        0, 1, 0, 0,  # row 1
        1, 0,  # row 2
        0, 0, 1,  # row 3
    ],
}
# fmt: on
KL = {"rkl": [5.924103, 5.263302, 1.781328, 4.390307], "kl": [5.452832, 4.168471, 1.374856, 4.926026]}
HALF_A_DIGIT = 5.1e-7
WEIGHT_GRADIENT = [
    [-0.042127, -0.276235, 1.302710],
    [0.043593, -0.262424, -0.755568],
    [1.744481, -2.577578, 1.500820],
    [0.242445, 2.690630, -1.434463],
    [-1.988393, 0.425606, -0.613499],
]


def policy():
    """Logits and labels."""
    return here((X @ W.T, LABELS))


def reference():
    """The same of the reference model."""
    return here((X_REF @ W_REF.T, LABELS))


def test_statistics():
    got = token_stats(*policy(), tuple(EXPECTED), reference_logits=reference()[0])
    for name, expected in EXPECTED.items():
        assert got[name][SCORED].tolist() == pytest.approx(expected, abs=HALF_A_DIGIT), name
        assert not got[name][~SCORED].any()


@pytest.mark.parametrize("name", ["kl", "rkl"])
def test_divergences_per_response(name):
    got = token_stats(*policy(), name, reference_logits=reference()[0])[name]
    assert got.sum(-1).tolist() == pytest.approx(KL[name], abs=4 * HALF_A_DIGIT)


def test_sequences():
    assert response_lengths(here(LABELS)).tolist() == [3, 4, 2, 3]
    # Summed in float32 by the library that they are from.
    float32_sum = 2 * HALF_A_DIGIT
    assert sequence_logps(*policy()).tolist() == pytest.approx(
        [-7.096864, -7.612934, -3.844921, -5.224437], abs=float32_sum
    )
    assert sequence_logps(*reference()).tolist() == pytest.approx(
        [-4.708355, -6.396654, -1.443101, -4.083355], abs=float32_sum
    )


def test_temperature_softcap_and_scale():
    got = token_stats(*policy(), ("logp", "entropy"), temperature=0.7, softcap=2.0, scale=0.5)
    assert got.logp[SCORED][:4].tolist() == pytest.approx(
        [-0.672597, -2.888891, -2.057885, -2.843697], abs=HALF_A_DIGIT
    )
    assert got.entropy[SCORED][:4].tolist() == pytest.approx([1.329054, 0.907886, 1.303903, 1.321561], abs=HALF_A_DIGIT)


def test_gradient_reaches_the_head():
    weight = here(W).clone().requires_grad_()
    logps = token_stats(here(X) @ weight.T, here(LABELS)).logp
    logps[SCORED].backward(torch.arange(1, 13).double() / 10)
    torch.testing.assert_close(weight.grad, torch.tensor(WEIGHT_GRADIENT).double(), rtol=0, atol=2 * HALF_A_DIGIT)
