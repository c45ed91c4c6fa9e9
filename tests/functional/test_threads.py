"""Threads that call into the extension at once get what one thread alone gets."""

import threading

import pytest
import torch

import prefuse
from prefuse._prefuse import Graph

THREADS, ROUNDS = 8, 5


def together(work):
    """The results of `work(number of the thread)`, called several times from threads that start at once."""
    barrier, results, errors = threading.Barrier(THREADS), [[] for _ in range(THREADS)], []

    def repeat(number):
        try:
            barrier.wait()
            for _ in range(ROUNDS):
                results[number].append(work(number))
        except Exception as error:  # reported below, in the main thread
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(len(own) == ROUNDS for own in results)
    return results


def rows(number):
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(5, 40, 300, generator=generator).requires_grad_()
    labels = torch.randint(300, (5, 40), generator=generator)
    logps = prefuse.token_logps(logits, labels)
    logps.square().sum().backward()
    return torch.cat([logps.detach().reshape(-1), logits.grad.reshape(-1)])


def segments(number):
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(200, 50, generator=generator).requires_grad_()
    labels = torch.randint(50, (200,), generator=generator)
    offsets = torch.tensor([0, 3, 3, 90, 200])
    sums = prefuse.sequence_logps(logits, labels, cu_seqlens=offsets)
    sums.square().sum().backward()
    return torch.cat([sums.detach(), logits.grad.reshape(-1)])


def objective(number):
    """Pairs enough for the GIL to be released while the one program of all threads runs; their number differs."""
    generator = torch.Generator().manual_seed(number)
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    columns = {name: torch.randn(5000 + 100 * number, generator=generator) for name in names}
    score = prefuse.objectives.dpo.value_and_grad(**columns)
    return torch.cat([score.loss.reshape(1), score.losses, *score.gradients.values()])


@pytest.mark.parametrize("work", [rows, segments, objective], ids=lambda work: work.__name__)
def test_results_are_those_of_one_thread(work):
    for number, results in enumerate(together(work)):
        expected = work(number)
        assert all(torch.equal(result, expected) for result in results)


def test_one_graph_is_built_by_many_threads():
    """Equal expressions are one node, whoever builds them."""
    graph = Graph("shared", {"item": "batch"})

    def build(number):
        x = graph.column("x", "item")
        for power in range(50):
            x = graph.binary("add", graph.unary("square", x), graph.constant(float(power)))
        total = graph.reduce("sum", x, "batch")
        (gradient,) = graph.gradient(total, graph.constant(1.0), [graph.column("x", "item")])
        return total, gradient, graph.text(total), graph.compile([total, gradient]).instructions

    results = [result for own in together(build) for result in own]
    assert all(result == results[0] for result in results)
