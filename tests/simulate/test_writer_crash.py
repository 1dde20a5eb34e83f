"""A trajectory survives kill -9 at any moment, and can be read while it is written."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from synthetic_run import (
    SETTINGS,
    SIZES,
    environ_with,
    moments,
    recording,
    records,
    value,
    write,
)

from dpa4sim.simulate import growing_file
from dpa4sim.simulate.layout import Counts
from dpa4sim.simulate.trajectory import read_trajectory
from dpa4sim.simulate.writer import TrajectoryWriter

N_KILLS = 25
LENGTH = 3000
"""Steps of a system: some seconds of writing, far more than the kills leave time for."""

PER_CHECKPOINT = 15
"""Moments between two checkpoints."""


def start(path: Path) -> TrajectoryWriter:
    return TrajectoryWriter.create(path, records(LENGTH), recording(), settings=SETTINGS)


def continued(path: Path, checkpoint: Path) -> tuple[TrajectoryWriter, int]:
    """A writer, and how many moments it has had; whatever the last process left behind."""
    if not path.exists():
        assert not checkpoint.exists(), "a file that once was there is always there"
        return start(path), 0
    if not checkpoint.exists():
        return TrajectoryWriter.resume(path, Counts()), 0
    stored = json.loads(checkpoint.read_text())
    return TrajectoryWriter.resume(path, Counts(**stored["counts"])), stored["moments"]


def work(path: Path, checkpoint: Path) -> None:
    """Write as fast as possible, with checkpoints, from wherever the last process was."""
    run = moments(LENGTH)
    writer, done = continued(path, checkpoint)
    with writer:
        for n in write(writer, run[done:]):
            if n % PER_CHECKPOINT == 0:
                stored = {"counts": asdict(writer.checkpoint()), "moments": done + n}
                fresh = checkpoint.with_suffix(".new")
                fresh.write_text(json.dumps(stored))
                os.replace(fresh, checkpoint)


def child(task, *args) -> int:
    """Fork: the new process does the task and ends without any good-bye."""
    process = os.fork()
    if process == 0:
        try:
            task(*args)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return process


def crash(folder: Path, seed: int, n_kills: int) -> None:
    """Kill the work again and again, then let it end; tells how far each kill let it come.

    Every other kill waits for a new checkpoint first: on a busy machine too the work advances.
    """
    path, checkpoint = folder / "run.h5", folder / "checkpoint.json"
    dice, progress = random.Random(seed), [0]
    for kill in range(n_kills):
        process = child(work, path, checkpoint)
        while kill % 2 and advanced(checkpoint) <= progress[-1]:
            time.sleep(1e-3)
            if os.waitpid(process, os.WNOHANG) != (0, 0):
                sys.exit(f"the work ended by itself after {progress}")
        time.sleep(10 ** dice.uniform(-2.5, -1.3))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the work ended by itself after {progress}: {status}")
        progress.append(advanced(checkpoint))
    _, status = os.waitpid(child(work, path, checkpoint), 0)
    print(json.dumps({"progress": progress, "end": status}))


def advanced(checkpoint: Path) -> int:
    """Moments before the last checkpoint."""
    return json.loads(checkpoint.read_text())["moments"] if checkpoint.exists() else 0


def die_before_counting(path: Path) -> None:
    """Kill -9 between the rows of an append and its counts."""

    def die(counts: Counts) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    run = moments(400)
    with TrajectoryWriter.create(path, records(400), recording(), settings={}) as writer:
        list(write(writer, run[:10]))
        writer.checkpoint()
        growing_file.vector_of = die
        list(write(writer, run[10:20]))
        writer.checkpoint()


def watch(path: Path) -> None:
    """Read again and again while another process writes; prints how much was seen each time."""
    seen: list[int] = []
    while not path.exists():
        time.sleep(0.001)
    with read_trajectory(path) as trajectory:
        while not seen or seen[-1] < whole():
            counts = trajectory.refresh()
            assert not seen or counts.frames >= seen[-1]
            n_rows = 0
            for system in range(len(SIZES)):
                n_rows += assert_true(trajectory.system(system), system)
            assert n_rows == counts.rows
            series = trajectory.observables(1)["rdf"]
            wanted = [value("rdf", 1, int(step), (5,)).numpy() for step in series.step]
            assert np.array_equal(series.values, np.reshape(wanted, (-1, 5)))
            seen.append(counts.frames)
    print(json.dumps(seen))


def assert_true(found, system: int) -> int:
    """Every frame is whole and what it should be; returns the number of its rows."""
    n = SIZES[system]
    assert np.array_equal(found.step, sorted(set(found.step.tolist())))
    for name, shape in (
        ("positions", (n, 3)),
        ("forces", (n, 3)),
        ("cell", (3, 3)),
        ("energy", ()),
    ):
        wanted = [value(name, system, int(step), shape).numpy() for step in found.step]
        assert np.array_equal(getattr(found, name), np.reshape(wanted, (-1, *shape)))
    return n * len(found)


def whole(length: int = 400) -> int:
    """Frames of a whole run of that length."""
    ends = [length + 7 * s for s in range(len(SIZES))]
    return sum(end // 8 + 1 + (end % 8 > 0) for end in ends)


def script(*args: str) -> Sequence[str]:
    return [sys.executable, __file__, *args]


def environment() -> dict[str, str]:
    return environ_with(Path(__file__).parents[1])


def contents(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visit(names.append)
        for name in names:
            if isinstance(file[name], h5py.Dataset):
                found[name] = np.asarray(file[name][()])
                found |= {f"{name}.{key}": np.asarray(v) for key, v in file[name].attrs.items()}
    return found


def killed(folder: Path, seed: int, n_kills: int) -> list[int]:
    done = subprocess.run(
        script("crash", str(folder), str(seed), str(n_kills)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["end"] == 0, done.stderr
    return result["progress"]


def test_killed_anywhere_and_resumed_it_is_the_same_file(tmp_path):
    progress = killed(tmp_path, seed=0, n_kills=N_KILLS)
    assert len(progress) == N_KILLS + 1
    assert progress == sorted(progress)
    assert progress[-1] < len(moments(LENGTH)), "every kill interrupted the run"
    with start(tmp_path / "uninterrupted.h5") as writer:
        list(write(writer, moments(LENGTH)))
    first, second = contents(tmp_path / "run.h5"), contents(tmp_path / "uninterrupted.h5")
    assert first.keys() == second.keys()
    assert not [
        name
        for name in first
        if first[name].dtype != second[name].dtype
        or not np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f")
    ]
    assert not (tmp_path / "run.h5.part").exists()


def test_a_killed_file_can_be_read_up_to_its_last_append(tmp_path):
    """Before anybody resumes it."""
    path, ready = tmp_path / "run.h5", tmp_path / "checkpoint.json"
    process = subprocess.Popen(script("work", str(path), str(ready)), env=environment())
    try:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    stored = Counts(**json.loads(ready.read_text())["counts"])
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(path, "r+")
    with read_trajectory(path) as trajectory:
        assert trajectory.counts.covers(stored)
        for system in range(len(SIZES)):
            assert_true(trajectory.system(system), system)


def test_rows_are_in_the_file_before_they_count(tmp_path):
    path = tmp_path / "run.h5"
    done = subprocess.run(script("halfway", str(path)), env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    with read_trajectory(path) as trajectory:
        whole = trajectory.counts
    with h5py.File(path, "r", swmr=True) as file:
        systems, steps, starts = (file[f"frames/{name}"][:] for name in ("system", "step", "start"))
        assert len(systems) > whole.frames
        for system, step, start in zip(systems, steps, starts, strict=True):
            n = SIZES[system]
            exact = value("positions", int(system), int(step), (n, 3)).numpy()
            assert np.array_equal(file["rows/positions"][start : start + n], exact)


def test_readers_see_whole_frames_while_it_is_written(tmp_path):
    path, length = tmp_path / "run.h5", 400
    reader = subprocess.Popen(
        script("watch", str(path)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with TrajectoryWriter.create(path, records(length), recording(), settings={}) as writer:
            for n in write(writer, moments(length)):
                time.sleep(0.01)
                if n % 4 == 0:
                    writer.checkpoint()
            with read_trajectory(path) as beside:  # in the writer's own process
                assert beside.counts == writer.checkpoint() or beside.counts.frames < whole(length)
        output, error = reader.communicate(timeout=60)
    finally:
        reader.kill()
    assert reader.returncode == 0, error
    seen = json.loads(output)
    assert seen == sorted(seen)
    assert seen[-1] == whole(length)


if __name__ == "__main__":
    if sys.argv[1] == "crash":
        crash(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1] == "halfway":
        die_before_counting(Path(sys.argv[2]))
    elif sys.argv[1] == "work":
        work(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        watch(Path(sys.argv[2]))
