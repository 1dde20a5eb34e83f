"""What is wrong with labelled data, found before step 0: each with file, frame and key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dpa4sim.complaint import complaint
from dpa4sim.data.consistency import Neighbours
from dpa4sim.data.frame import MAGNETIC_FORCES, MOMENTS, QUANTITIES, Entry, Frame
from dpa4sim.data.scale import Scales
from dpa4sim.data.trust import Trust
from dpa4sim.data.writer import geometry_hash
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.pool.progress import Progress
from dpa4sim.potential import EnergyModel

FEWEST_ZEROS = 2
"""Frames whose forces are all exactly zero before that is suspicious: a crystal's may be."""


class Problem(NamedTuple):
    """One thing that is wrong.

    Args:
        level: "error", or "warning" for what is suspected.
        kind: a few words that are the same for all of one kind.
        where: file, or file and frame.
        text: what and what to do.
    """

    level: str
    kind: str
    where: str
    text: str


@dataclass
class Source:
    """Counts of one file.

    Args:
        frames: read; `periodic` those with a volume, `stresses` those of them with a stress.
        with_forces: of more than one atom; `zero_forces` those where all are exactly zero.
    """

    frames: int = 0
    periodic: int = 0
    stresses: int = 0
    with_forces: int = 0
    zero_forces: int = 0


def check(
    read: Callable[[], Iterable[Entry]],
    *,
    require: Sequence[str] = ("energy", "forces"),
    model: EnergyModel | None = None,
    progress: bool | None = None,
) -> list[Problem]:
    """Look at every frame once, and a second time only to name what duplicates are of.

    Args:
        read: begins to read the data anew.
        require: labels that every frame should have.
        model: a trusted model that a few frames of each file are compared with.
        progress: None shows a bar on a terminal.

    Raises:
        ConfigError: a label that does not exist is required.
    """
    known = (*QUANTITIES, MOMENTS, MAGNETIC_FORCES)
    strange = [name for name in require if name not in known]
    if strange:
        raise ConfigError(f"There is no label '{strange[0]}'. Labels are {', '.join(known)}.")
    inspector = Inspector(require, model)
    bar = Progress("check", None, progress)
    for entry in read():
        inspector.look(entry)
        bar.advance(1)
    bar.close()
    return inspector.problems + inspector.conclude() + _duplicates(inspector.repeated, read)


class Inspector:
    """Collects problems while entries go by.

    Args:
        require: labels that every frame should have.
        model: a trusted model, if there is one.
    """

    def __init__(self, require: Sequence[str], model: EnergyModel | None) -> None:
        self.require, self.problems = require, list[Problem]()
        self.repeated: dict[int, list[str]] = {}
        self._known = getattr(model, "known_elements", None)
        self._seen: set[int] = set()
        self._sources: dict[str, Source] = {}
        self._neighbours, self._scales = Neighbours(), Scales()
        self._trust = None if model is None else Trust(model)

    def look(self, entry: Entry) -> None:
        """One frame, or the reason why there is none."""
        if isinstance(entry, DataError):
            self.problems.append(Problem("error", "cannot be used", "", str(entry)))
            return
        self._labels(entry)
        reason = complaint(entry.system, self._known)
        if reason is not None:
            self.problems.append(Problem("error", "structure", entry.where, reason))
            return
        key = geometry_hash(entry.system)
        if key in self._seen:
            self.repeated.setdefault(key, []).append(entry.where)
            return
        self._seen.add(key)
        self._neighbours.add(entry)
        self._scales.add(entry)
        if self._trust is not None:
            self._trust.add(entry)

    def conclude(self) -> list[Problem]:
        """What only all frames together show."""
        found = []
        for name, source in self._sources.items():
            zeros = source.zero_forces
            if zeros >= FEWEST_ZEROS and zeros == source.with_forces:
                text = f"all forces of all its {source.with_forces} frames are zero"
                found.append(Problem("warning", "zero forces", name, text))
            if 0 < source.stresses < source.periodic:
                text = f"{source.stresses} of its {source.periodic} periodic frames have a stress"
                found.append(Problem("warning", "stress for some", name, text))
        suspected = self._neighbours.findings() + self._scales.findings()
        suspected += [] if self._trust is None else self._trust.findings()
        return found + [Problem("warning", f"{key} label", name, t) for name, key, t in suspected]

    def _labels(self, frame: Frame) -> None:
        for name in self.require:
            if getattr(frame, name) is None:
                key = name.replace("_", "-")
                text = f"it has no label '{name}'; name its key with --{key}-key"
                self.problems.append(Problem("error", f"no {name}", frame.where, text))
        source = self._sources.setdefault(frame.source, Source())
        source.frames += 1
        if float(frame.system.volume[0]) > 0:
            source.periodic += 1
            source.stresses += frame.stress is not None
        if frame.forces is not None and len(frame.forces) > 1:
            source.with_forces += 1
            source.zero_forces += not np.any(frame.forces)


def _duplicates(
    repeated: dict[int, list[str]], read: Callable[[], Iterable[Entry]]
) -> list[Problem]:
    """A problem for each frame whose geometry came before, naming the first."""
    if not repeated:
        return []
    problems, open_keys = [], set(repeated)
    for entry in read():
        if isinstance(entry, DataError) or complaint(entry.system) is not None:
            continue
        key = geometry_hash(entry.system)
        if key in open_keys:
            open_keys.remove(key)
            for where in repeated[key]:
                text = f"its geometry is that of {entry.where}"
                problems.append(Problem("error", "duplicate", where, text))
        if not open_keys:
            break
    return problems
