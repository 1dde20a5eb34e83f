"""What people read of a training run: the live line, train.csv, curves.png, parity.png."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from dpa4sim.data.batch import LabelledBatch
from dpa4sim.direct import DirectModel
from dpa4sim.moments import magnetic_elements, with_moments
from dpa4sim.plots import draw_curves, draw_parity
from dpa4sim.pool.checkpoint import whole
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel
from dpa4sim.train.loss import Errors
from dpa4sim.train.spin import compared_with_spins
from dpa4sim.units import GPA_PER_EV_A3

SHOWN = {
    "energy_mae": ("meV/atom", 1e3),
    "energy_rmse": ("meV/atom", 1e3),
    "force_mae": ("meV/Å", 1e3),
    "force_rmse": ("meV/Å", 1e3),
    "force_length": ("meV/Å", 1e3),
    "virial_mae": ("meV/atom", 1e3),
    "stress_mae": ("GPa", GPA_PER_EV_A3),
    "stress_rmse": ("GPa", GPA_PER_EV_A3),
    "noise_rmse": ("of its spread", 1.0),
    "magnetic_force_mae": ("meV/μB", 1e3),
    "magnetic_force_rmse": ("meV/μB", 1e3),
    "magnetic_force_length": ("meV/μB", 1e3),
    "property_mae": ("in the labels' unit", 1.0),
    "property_rmse": ("in the labels' unit", 1.0),
    "property_scaled_mae": ("of their spread", 1.0),
}
"""Unit and factor in which an error is shown."""


def columns_of(errors: Errors) -> dict[str, str]:
    """Columns of train.csv and their units."""
    units = {name: SHOWN[name][0] for name in errors.NAMES}
    return {
        "step": "1",
        "epoch": "1",
        "learning_rate": "1",
        "elapsed": "s",
        "skipped": "1",
        **{f"train_{name}": unit for name, unit in units.items()},
        **{f"valid_{name}": unit for name, unit in units.items()},
    }


def shown(errors: dict[str, float], prefix: str = "") -> dict[str, float]:
    """Errors in the units that are shown."""
    return {prefix + name: SHOWN[plain(name)][1] * value for name, value in errors.items()}


def plain(name: str) -> str:
    """The error that `BRANCH:error` is about."""
    return name.rpartition(":")[2]


SHORT = (
    ("E", "energy_mae"),
    ("F", "force_mae"),
    ("S", "stress_mae"),
    ("noise", "noise_rmse"),
    ("M", "magnetic_force_mae"),
    ("MAE", "property_mae"),
    ("=", "property_scaled_mae"),
)
"""What a line says of the errors."""


class LiveLine:
    """A line every few seconds on stderr: where the run stands and when it will end.

    Args:
        total: steps of the run.
        every: seconds.
        quiet: write nothing.
    """

    def __init__(self, total: int, every: float, quiet: bool):
        self.total, self.every, self.quiet = total, every, quiet
        self.last = self.begun = time.monotonic()
        self.first: int | None = None
        self.atoms = 0

    def due(self) -> bool:
        """Whether it is time for one."""
        return not self.quiet and time.monotonic() - self.last >= self.every

    def write(self, step: int, atoms: int, rate: float, errors: dict[str, float]) -> str:
        """The line; errors are those since the one before."""
        now = time.monotonic()
        speed = (atoms - self.atoms) / max(now - self.last, 1e-9)
        if self.first is None:
            self.first, self.begun = step, now
        taken = step - self.first
        left = "?" if not taken else clock((now - self.begun) / taken * (self.total - step))
        line = (
            f"step {step}/{self.total}  {in_short(errors)}  lr {rate:.2g}  {speed:,.0f} atoms/s  "
            f"{memory_gib():.1f} GiB  {left} left"
        )
        self.last, self.atoms = now, atoms
        self.say(line)
        return line

    def pause(self, atoms: int) -> None:
        """What took time until now was no step."""
        self.last, self.atoms = time.monotonic(), atoms

    def say(self, line: str) -> None:
        """A line on stderr."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def in_short(errors: dict[str, float]) -> str:
    """Mean errors of energy, forces and stress, or of a property, of those that have labels."""
    values = shown(errors)
    words = [
        f"{letter} {values[name]:.4g} {SHOWN[name][0]}"
        for letter, name in SHORT
        if not math.isnan(values.get(name, math.nan))
    ]
    return "  ".join(words)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def memory_gib() -> float:
    """Largest memory so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """curves.png: errors and learning rate over the steps."""
    with whole(path) as partial:
        draw_curves(rows, partial)


def write_parity(
    model: Potential | PropertyModel | DirectModel, batches: Iterable[LabelledBatch], path: Path
) -> None:
    """parity.png: prediction over label for the validation frames."""
    if isinstance(model, PropertyModel):
        panels = _of_property(model, batches)
    else:
        panels = _of_energies(model, batches)
    with whole(path) as partial:
        draw_parity(panels, partial)


def _of_property(
    model: PropertyModel, batches: Iterable[LabelledBatch]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    labels, values = [], []
    for labelled in batches:
        label = labelled.properties[model.name]
        known = label.isfinite().all(1)
        labels.append(label[known].numpy())
        values.append(model(labelled.batch.to(model.device)).values.cpu()[known].numpy())
    names = [model.name]
    if model.config.property_head.task_dim > 1:
        names = [f"{model.name} {k}" for k in range(model.config.property_head.task_dim)]
    columns = zip(np.concatenate(labels).T, np.concatenate(values).T, strict=True)
    return dict(zip(names, columns, strict=True))


def _of_energies(
    potential: Potential | DirectModel, batches: Iterable[LabelledBatch]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(name: str, label: torch.Tensor, value: torch.Tensor) -> None:
        known = label.isfinite()
        if known.any():
            pairs.setdefault(name, []).append(
                (label[known].cpu().numpy(), value[known].cpu().numpy())
            )

    for labelled in batches:
        labelled = labelled.to(potential.device)
        ask = potential.predict if isinstance(potential, DirectModel) else potential
        prediction = ask(with_moments(labelled.batch, magnetic_elements(potential)))
        size = labelled.batch.n_atoms
        add("energy", labelled.energy / size, prediction.energy / size)
        add("forces", labelled.forces, prediction.forces)
        if prediction.has_stress:
            add("stress", labelled.stress, prediction.stress)
        if magnetic_elements(potential):
            found = compared_with_spins(potential.config, labelled, prediction)
            if found.known.any():
                label = labelled.magnetic_forces[found.known]  # type: ignore[index]
                add("magnetic forces", label, label + found.magnetic[found.known])
    return {
        name: (np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found]))
        for name, found in pairs.items()
    }
