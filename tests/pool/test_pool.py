"""Any number of systems pass through a room of fixed size, and none notices the others."""

import itertools
import math

import pytest
import torch
from pool.countdown import Countdown, Counted, jobs
from toy import LennardJones

from dpa4sim.edges import neighbors
from dpa4sim.errors import Status
from dpa4sim.pool.capacity import Capacity
from dpa4sim.pool.pool import Pool
from dpa4sim.pool.progress import Progress

ROOMY = Capacity(math.inf, math.inf)


class Small:
    """A device with room for so many edges and no more."""

    def __init__(self, edges: int):
        self.model, self.edges = LennardJones(), edges
        self.cutoff, self.device, self.failures = self.model.cutoff, self.model.device, 0

    def __call__(self, batch):
        if neighbors(batch, self.cutoff).n_edges > self.edges:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return self.model(batch)


def run(work, capacity=ROOMY, model=None, stride: int = 1, lags: bool = False) -> list[Counted]:
    progress = Progress("count", None, False)
    pool = Pool(model or LennardJones(), Countdown(stride), capacity, progress)
    pool.lags = lags
    return list(pool.run(iter(work)))


def by_index(results: list[Counted]) -> list[tuple]:
    """What is said of each, in the order of the input."""
    ordered = sorted(results, key=lambda result: result.index)
    numbers = [None if r.path is None else r.path.tolist() for r in ordered]
    rows = [(r.index, r.status, r.steps, repr(r.total)) for r in ordered]
    return list(zip(rows, numbers, strict=True))


@pytest.fixture(scope="module")
def alone() -> list[tuple]:
    return by_index([result for job in jobs(30) for result in run([job])])


@pytest.mark.parametrize("lags", [False, True], ids=["looks first", "looks later"])
@pytest.mark.parametrize("stride", [1, 3, 20])
@pytest.mark.parametrize("room", [1, 4000, 20000, math.inf])
def test_who_shares_the_room_changes_no_bit(alone, room, stride, lags):
    results = run(jobs(30), Capacity(room, math.inf), stride=stride, lags=lags)
    assert by_index(results) == alone


def test_results_come_in_the_order_of_their_end():
    order = [result.index for result in run(jobs(30), Capacity(20000, math.inf))]
    assert sorted(order) == list(range(30))
    assert order != sorted(order)


def test_an_endless_input_is_read_only_as_far_as_there_is_room():
    read = []
    endless = (read.append(job.index) or job for job in jobs(10**9))
    progress = Progress("count", None, False)
    pool = Pool(LennardJones(), Countdown(), Capacity(8000, math.inf), progress)
    first = list(itertools.islice(pool.run(endless), 12))
    assert len(first) == 12
    assert len(read) < 30


def test_refused_jobs_are_named():
    refused = [result for result in run(jobs(30)) if result.status is Status.INVALID]
    assert [result.index for result in refused] == [6, 13, 20, 27]
    assert {result.reason for result in refused} == {"it is the seventh"}


@pytest.mark.parametrize("lags", [False, True], ids=["looks first", "looks later"])
@pytest.mark.parametrize("limit", [1000, 3000, 9000])
def test_when_memory_runs_out_the_room_is_halved_and_nobody_is_lost(alone, limit, lags, capsys):
    model = Small(limit)
    results = run(jobs(30), model=model, lags=lags)
    assert model.failures > 0
    assert "out of memory" in capsys.readouterr().err
    lost = {r.index for r in results if r.status is Status.OUT_OF_MEMORY}
    too_large = {
        job.index
        for job in jobs(30)
        if neighbors(job.system, model.cutoff).n_edges > limit and job.refusal is None
    }
    assert lost == too_large
    expected = [row for row in alone if row[0][0] not in lost]
    assert [row for row in by_index(results) if row[0][0] not in lost] == expected


def test_memory_that_runs_out_on_the_way_costs_only_who_cannot_fit_alone():
    """Shrinking crystals grow more edges than there is room for."""
    shrinking = {"growth": -0.03, "longest": 13}
    calm = by_index(run(jobs(20, **shrinking)))
    model = Small(5000)
    results = run(jobs(20, **shrinking), Capacity(1e9, 1e9), model)
    assert model.failures > 0
    lost = {r.index for r in results if r.status is Status.OUT_OF_MEMORY}
    assert 0 < len(lost) < 6
    for r in results:
        if r.index in lost:
            assert r.steps > 0, "it should have died on the way"
            assert len(r.batch.positions) == 32
    assert [row for row in by_index(results) if row[0][0] not in lost] == [
        row for row in calm if row[0][0] not in lost
    ]


def test_a_member_that_outgrows_the_device_ends():
    shrinking = {"growth": -0.03, "longest": 13}
    calm = by_index(run(jobs(20, **shrinking)))
    results = run(jobs(20, **shrinking), Capacity(8000, 5000))
    lost = {r.index for r in results if r.status is Status.OUT_OF_MEMORY}
    assert lost
    assert all(r.steps > 0 for r in results if r.index in lost)
    expected = [row for row in calm if row[0][0] not in lost]
    assert [row for row in by_index(results) if row[0][0] not in lost] == expected


def test_members_that_outgrow_the_room_step_aside_and_come_back():
    shrinking = {"growth": -0.03, "longest": 13}
    calm = by_index(run(jobs(20, **shrinking)))
    seen = []

    class Watched(Pool):
        def _step_aside(self, edges):
            super()._step_aside(edges)
            seen.append(len(self.aside))

    progress = Progress("count", None, False)
    pool = Watched(LennardJones(), Countdown(), Capacity(8000, math.inf), progress)
    assert by_index(list(pool.run(jobs(20, **shrinking)))) == calm
    assert seen


def test_a_structure_that_is_far_too_large_is_not_even_tried():
    results = run(jobs(5), Capacity(1000, 1000), Small(1000))
    lost = [r for r in results if r.status is Status.OUT_OF_MEMORY]
    assert lost
    assert all("fit" in r.reason and r.steps == 0 for r in lost)


def test_an_error_that_is_no_lack_of_memory_is_raised():
    class Broken(LennardJones):
        def __call__(self, batch):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(jobs(3), model=Broken())
