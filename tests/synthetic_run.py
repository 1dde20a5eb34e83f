"""A run of unlike systems whose every number is a formula: for tests of trajectories.

Three slots, four steps per call; a system that has ended stands still for one more call, gets its
last frame, and makes room for the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.errors import Status
from dpa4sim.simulate.layout import COLUMNS, Observable, Recording, SystemRecord
from dpa4sim.simulate.writer import Frames, TrajectoryWriter

SIZES = (3, 1, 8, 2, 5, 4)
SLOTS, STRIDE = 3, 4
SETTINGS = {"ensemble": "nvt", "friction": 0.01, "names": ["a", "b"]}


def recording(positions: str = "float64") -> Recording:
    """Everything, at three different intervals."""
    return Recording(
        interval=8,
        store=tuple(COLUMNS),
        positions=positions,
        observables=(
            Observable(name="msd", interval=4, unit="Å^2"),
            Observable(name="volume", interval=4, unit="Å^3"),
            Observable(name="rdf", interval=24, shape=(5,)),
        ),
    )


def records(length: int) -> list[SystemRecord]:
    """Molecules and crystals; system s runs for length + 7 s steps."""
    systems = []
    for s, n in enumerate(SIZES):
        solid = s % 2 == 0
        batch = Batch.single(
            value("positions", s, 0, (n, 3)),
            [1 + (s + k) % 20 for k in range(n)],
            (4.0 + s) * torch.eye(3) if solid else None,
            pbc=[solid, solid, s != 2 and solid],
        )
        systems.append(
            SystemRecord(
                batch=batch,
                label=f"system-{s}é",
                replica=s % 2,
                timestep=0.5 + s,
                n_steps=length + 7 * s,
                temperature=(300.0 + s, 400.0),
                pressure_gpa=(0.1 * s, 2.0),
            )
        )
    return systems


def value(name: str, system: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """What a quantity of a system is at a step."""
    phase = sum(map(ord, name)) + 1.7 * system + 0.003 * step
    number = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(phase + 0.1 * number).reshape(shape)


class Moment(NamedTuple):
    """The working set after one call; `ended` are the slots whose systems leave then."""

    systems: list[int]
    steps: list[int]
    ended: list[int]


def moments(length: int) -> list[Moment]:
    """The whole run, call by call."""
    ends = [length + 7 * s for s in range(len(SIZES))]
    waiting = list(range(len(SIZES)))
    slots = [(waiting.pop(0), 0) for _ in range(SLOTS)]
    found = []
    while slots:
        ended = [k for k, (s, step) in enumerate(slots) if step == ends[s]]
        found.append(Moment([s for s, _ in slots], [step for _, step in slots], ended))
        slots = [slot for k, slot in enumerate(slots) if k not in ended]
        slots = [(s, min(step + STRIDE, ends[s])) for s, step in slots]
        while len(slots) < SLOTS and waiting:
            slots.append((waiting.pop(0), 0))
    return found


def frames(systems: list[int], steps: list[int]) -> Frames:
    """What the run hands over."""

    def packed(name: str) -> Tensor:
        axis, shape, _ = COLUMNS[name]
        parts = [
            value(name, s, step, (SIZES[s], *shape) if axis == "atom" else (1, *shape))
            for s, step in zip(systems, steps, strict=True)
        ]
        return torch.cat(parts)

    return Frames(
        systems=systems,
        steps=torch.tensor(steps),
        status=torch.full((len(systems),), Status.RUNNING),
        **{name: packed(name) for name in COLUMNS},
    )


def samples(systems: list[int], steps: list[int]) -> dict[str, Tensor]:
    """Every observable of the working set."""
    shapes = {each.name: each.shape for each in recording().observables}
    pairs = list(zip(systems, steps, strict=True))
    return {
        name: torch.cat([value(name, s, step, (1, *shape)) for s, step in pairs])
        for name, shape in shapes.items()
    }


def write(writer: TrajectoryWriter, run: list[Moment]) -> Iterator[int]:
    """Hand over one moment after another; yields how many."""
    for index, (systems, steps, ended) in enumerate(run):
        writer.frames(frames(systems, steps))
        writer.observables(systems, torch.tensor(steps), samples(systems, steps))
        for slot in ended:
            writer.frames(frames([systems[slot]], [steps[slot]]), last=True)
        yield index + 1


def environ_with(folder: Path) -> dict[str, str]:
    """The environment for a process that imports from this folder first, on one thread."""
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*([given] if given else []), str(folder)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def expected_steps(length: int, system: int, interval: int, *, last: bool) -> list[int]:
    """Which steps of a system are stored."""
    end = length + 7 * system
    due = list(range(0, end + 1, interval))
    return due if end in due or not last else [*due, end]
