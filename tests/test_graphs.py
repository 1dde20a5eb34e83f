"""Recorded networks: padded buckets change no number, and a recording is made once for each.

Without a device the recorder is a stand-in that runs the function again on the static inputs, which
is what a CUDA graph does; the real one is marked gpu.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import BASE, crystal, molecule, random_model, random_potential

from dpa4sim import graphs
from dpa4sim.batch import Batch
from dpa4sim.export import arguments, energy_and_gradient
from dpa4sim.graphs import GraphedNetwork, capacity
from dpa4sim.potential import Potential

SMALL = replace(BASE, channels=4, n_blocks=2, max_degree=2)
EXACT = 1e-11
"""eV, eV/Å: float64; products of other shapes are summed in another order."""


class Recorder:
    """Runs the function again on every replay, and counts."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, function, inputs):
        self.recorded += 1
        outputs = function(*inputs)

        def replay():
            self.replayed += 1
            for static, value in zip(outputs, function(*inputs), strict=True):
                static.copy_(value)

        return replay, outputs


def batches() -> list[Batch]:
    """Large and small in turn, so that what the large one leaves behind would be seen."""
    alone = Batch.single([[0.0, 0.0, 0.0]], [8])
    return [
        Batch.concatenate([crystal()] * 2),
        molecule(),
        alone,
        Batch.concatenate([crystal(), molecule(), alone]),
        crystal(),
    ]


def assert_same(found, expected) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, n_heads=0, zbl_inner=0.5, zbl_outer=0.9), replace(SMALL, bias=True)],
    ids=["attention", "sum_and_zbl", "bias"],
)
def test_padding_changes_no_number(config):
    potential = random_potential(config)
    plain, recorder = energy_and_gradient(potential.model), Recorder()
    graphed = GraphedNetwork(plain, potential.cutoff, recorder)
    for batch in batches():
        given = arguments(potential, batch)
        assert_same(graphed(*given), plain(*given))
    assert recorder.replayed == len(batches())


def test_charge_and_spin_are_padded_too():
    potential = random_potential(replace(SMALL, charge_spin=True))
    plain = energy_and_gradient(potential.model)
    graphed = GraphedNetwork(plain, potential.cutoff, Recorder())
    for charge in (2.0, -1.0):
        batch = replace(
            molecule(), charge=torch.tensor([charge]).double(), spin=torch.tensor([1.0]).double()
        )
        given = arguments(potential, batch)
        assert_same(graphed(*given), plain(*given))


def test_a_bucket_is_recorded_once():
    potential, recorder = random_potential(SMALL), Recorder()
    graphed = GraphedNetwork(energy_and_gradient(potential.model), potential.cutoff, recorder)
    for _ in range(3):
        graphed(*arguments(potential, molecule()))
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_answers_outlive_the_next_evaluation():
    potential = random_potential(SMALL)
    graphed = GraphedNetwork(energy_and_gradient(potential.model), potential.cutoff, Recorder())
    first = graphed(*arguments(potential, molecule()))
    before = [value.clone() for value in first]
    shifted = molecule()
    graphed(*arguments(potential, replace(shifted, positions=1.1 * shifted.positions)))
    assert all(torch.equal(a, b) for a, b in zip(first, before, strict=True))


def test_the_bucket_used_least_recently_goes(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    potential, recorder = random_potential(SMALL), Recorder()
    graphed = GraphedNetwork(energy_and_gradient(potential.model), potential.cutoff, recorder)
    small, medium, large = (
        arguments(potential, Batch.concatenate([crystal()] * n)) for n in (1, 4, 16)
    )
    for given in (small, medium, small, large, small):
        graphed(*given)
    assert recorder.recorded == 3
    graphed(*medium)
    assert recorder.recorded == 4


def test_large_batches_run_as_they_are(monkeypatch):
    monkeypatch.setattr(graphs, "GRAPHED_UP_TO", 0)
    potential, recorder = random_potential(SMALL), Recorder()
    graphed = GraphedNetwork(energy_and_gradient(potential.model), potential.cutoff, recorder)
    graphed(*arguments(potential, molecule()))
    assert recorder.recorded == 0


def test_sizes_of_buckets():
    sizes = sorted({capacity(n) for n in range(10_000)})
    assert sizes[0] == 32
    assert all(n <= capacity(n) <= max(32, 1.25 * n + 32) for n in range(10_000))
    assert all(size % 32 == 0 for size in sizes)
    assert len(sizes) < 30


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_a_recording_equals_the_eager_network(kernels):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = random_model(SMALL)
    eager = Potential(model, device="cuda", kernels=kernels)
    network = energy_and_gradient(eager.model)
    graphed = GraphedNetwork(network, eager.cutoff)
    for batch in 2 * batches():
        given = arguments(eager, batch.to("cuda"))
        for ours, theirs in zip(graphed(*given), network(*given), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
