"""Work in a directory goes on where it stood, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from kill import killed
from pool.countdown import Countdown, Counted, jobs
from toy import LennardJones

from dpa4sim.errors import ResumeError, Status
from dpa4sim.pool import checkpoint
from dpa4sim.pool.capacity import Capacity
from dpa4sim.pool.checkpoint import Store, decode, encode
from dpa4sim.pool.pool import Pool
from dpa4sim.pool.progress import Progress

ROOM = Capacity(20000, 1e9)
ASKED = {"work": "count", "fmax": 0.02}
CRASH = Path(__file__).parent / "crash.py"


def pool_in(directory, every: float = 0.0, asked=ASKED, method=None) -> tuple[Pool, Store]:
    store = Store(directory, asked, every)
    progress = Progress("count", None, False)
    return Pool(LennardJones(), method or Countdown(), ROOM, progress, store), store


def run(directory, work=None, stop_after: int | None = None, **options) -> list[Counted]:
    pool, store = pool_in(directory, **options)
    try:
        return list(islice(pool.run(iter(jobs(20) if work is None else work)), stop_after))
    finally:
        store.close()


def rows(results) -> list[tuple]:
    ordered = sorted(results, key=lambda r: r.index)
    return [
        (r.index, r.status, r.steps, repr(r.total), r.path is None or r.path.tolist())
        for r in ordered
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[tuple]:
    return rows(run(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("stop_after", [1, 2, 5, 11, 19])
def test_an_abandoned_run_goes_on(whole, tmp_path, stop_after):
    run(tmp_path, stop_after=stop_after)
    again = run(tmp_path)
    assert rows(again) == whole


@pytest.mark.parametrize("stop_after", [3, 14])
def test_what_came_after_the_checkpoint_is_found_again(whole, tmp_path, stop_after):
    """The second run never reaches a checkpoint, and leaves a part that nobody counts."""
    run(tmp_path, stop_after=stop_after)
    run(tmp_path, stop_after=stop_after + 3, every=1e9)
    part = checkpoint.encode([])
    checkpoint._write(tmp_path / "results" / "00099.safetensors", part.tensors, part.facts)
    assert rows(run(tmp_path)) == whole


def test_a_finished_run_answers_without_work(whole, tmp_path):
    run(tmp_path)

    class Idle(Countdown):
        def start(self, jobs, model):
            raise AssertionError("nothing is left to do")

    assert rows(run(tmp_path, method=Idle())) == whole


def test_the_method_is_given_back_what_it_remembered(tmp_path):
    first = Countdown()
    run(tmp_path, stop_after=9, method=first)
    second = Countdown()
    run(tmp_path, stop_after=9, method=second)
    assert 0 < second.remembered <= first.remembered


def test_other_structures_are_refused(tmp_path):
    run(tmp_path, stop_after=9)
    changed = [
        replace(job, system=next(jobs(1)).system) if job.index == 3 else job for job in jobs(20)
    ]
    with pytest.raises(ResumeError, match="not those that this directory was begun with"):
        run(tmp_path, changed)
    with pytest.raises(ResumeError, match="not those that this directory was begun with"):
        run(tmp_path, jobs(2))


def test_other_settings_are_refused(tmp_path):
    run(tmp_path, stop_after=9)
    with pytest.raises(ResumeError, match=r"begun with fmax = 0\.02, and now fmax = 0\.05"):
        run(tmp_path, asked={**ASKED, "fmax": 0.05})


def test_a_directory_serves_one_process_at_a_time(tmp_path):
    _, store = pool_in(tmp_path)
    with pytest.raises(ResumeError, match="in use by another process"):
        pool_in(tmp_path)
    store.close()
    pool_in(tmp_path)[1].close()


def test_a_damaged_state_is_named(tmp_path):
    run(tmp_path, stop_after=9)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(ResumeError, match=r"state\.safetensors is damaged"):
        run(tmp_path)


def test_a_file_in_place_of_the_directory_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ResumeError, match="is a file"):
        run(tmp_path / "run")


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(whole, tmp_path, monkeypatch, capsys):
    write, calls = checkpoint._write, []

    def full(path, tensors, facts):
        calls.append(path)
        if 3 < len(calls) < 9:
            raise OSError(28, "No space left on device")
        write(path, tensors, facts)

    monkeypatch.setattr(checkpoint, "_write", full)
    assert rows(run(tmp_path)) == whole
    assert "No space left" in capsys.readouterr().err
    assert rows(run(tmp_path)) == whole


def test_at_the_end_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(path, tensors, facts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path)


def test_results_are_the_same_after_a_visit_to_the_disk(tmp_path):
    results = run(tmp_path)
    again = list(decode(Counted, encode(results)))
    assert rows(again) == rows(results)
    assert all(type(r.status) is Status for r in again)
    assert torch.equal(again[0].batch.positions, results[0].batch.positions)


def signalled(directory: Path, number: int, after: float) -> subprocess.CompletedProcess | None:
    """Run, and send a signal so many seconds after the first result."""
    command = [sys.executable, CRASH, directory, "40", "0.004"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(number)
    rest, _ = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, rest)


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_never_was(whole, tmp_path):
    started = time.monotonic()
    run(tmp_path / "calm")
    lasts = time.monotonic() - started
    for folder in killed(run, tmp_path, times=20, lasts=lasts, seed=7):
        assert rows(run(folder)) == whole


def test_sigterm_makes_a_checkpoint_and_then_ends_the_process(tmp_path):
    directory = tmp_path / "run"
    first = signalled(directory, signal.SIGTERM, 0.05)
    assert first.returncode == -signal.SIGTERM
    with checkpoint.safe_open(directory / "state.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert facts["finished"] is False
    assert facts["members"]
    assert os.path.exists(directory / "results" / "00000.safetensors")
