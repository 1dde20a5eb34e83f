"""dpa4sim eval MODEL DATA: errors against reference labels."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpa4sim.cli.labels import QUANTITIES, Labelled, read_labelled
from dpa4sim.cli.options import add_model, check_output, open_model, written_whole
from dpa4sim.cli.table import table
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.units import GPA_PER_EV_A3

if TYPE_CHECKING:
    from dpa4sim.potential import Potential

UNITS = {"energy": ("meV/atom", 1e3), "forces": ("meV/Å", 1e3), "stress": ("meV/Å^3", 1e3)}


@dataclass
class Pairs:
    """Reference and prediction side by side, for every label that was there.

    Args:
        frames: how many frames carried the label.
        reference: eV/atom, eV/Å or eV/Å^3.
        predicted: the same numbers by the model.
    """

    frames: int = 0
    reference: list[np.ndarray] = field(default_factory=list)
    predicted: list[np.ndarray] = field(default_factory=list)

    def add(self, reference: np.ndarray, predicted: np.ndarray) -> None:
        """One frame's label."""
        self.frames += 1
        self.reference.append(reference.ravel())
        self.predicted.append(predicted.ravel())

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All numbers in two flat arrays."""
        return np.concatenate(self.reference), np.concatenate(self.predicted)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, DATA, the keys of the labels, and the plot."""
    add_model(parser)
    parser.add_argument("data", metavar="DATA", type=Path, help="labelled structures, extxyz")
    for name in QUANTITIES:
        parser.add_argument(
            f"--{name}-key", metavar="KEY", help=f"where the {name} labels are [REF_{name}, {name}]"
        )
    parser.add_argument("--parity", metavar="PNG", type=Path, help="also draw a parity plot")
    parser.add_argument(
        "--batch-atoms", type=int, default=2000, help="atoms that are evaluated together [2000]"
    )


def run(args: argparse.Namespace) -> int:
    """Compare, print the table, draw the plot."""
    if args.parity is not None:
        check_output(args.parity, (".png", ".pdf", ".svg"))
    if args.batch_atoms < 1:
        raise ConfigError(f"--batch-atoms {args.batch_atoms} is too small. Give 1 or more.")
    potential = open_model(args)
    keys = {name: getattr(args, f"{name}_key") for name in QUANTITIES}
    pairs, n_frames = compare(potential, read_labelled(args.data, keys), args.batch_atoms)
    if not any(pair.frames for pair in pairs.values()):
        raise DataError(
            f"{args.data} has no reference labels: neither REF_energy, REF_forces, REF_stress "
            "nor energy, forces, stress. Say where they are: --energy-key, --forces-key."
        )
    print(report(pairs, n_frames))
    if args.parity is not None:
        from dpa4sim.plots import draw_parity

        panels = {name: pair.arrays() for name, pair in pairs.items() if pair.frames}
        with written_whole(args.parity) as partial:
            draw_parity(panels, partial)
        print(f"\nparity plot: {args.parity}")
    return 0


def compare(
    potential: Potential, frames: Iterable[Labelled], batch_atoms: int
) -> tuple[dict[str, Pairs], int]:
    """Evaluate frames in batches of at most so many atoms; a larger frame goes by itself.

    Raises:
        DataError: a frame cannot be evaluated.
    """
    pairs, n_frames = {name: Pairs() for name in QUANTITIES}, 0
    for group in _groups(frames, batch_atoms):
        n_frames += len(group)
        _compare_group(potential, group, pairs)
    return pairs, n_frames


def report(pairs: dict[str, Pairs], n_frames: int) -> str:
    """MAE, RMSE and largest error of each quantity; stress also in GPa."""
    rows = []
    for name, pair in pairs.items():
        unit, factor = UNITS[name]
        rows.append(_row(name, unit, pair, factor, n_frames))
        if name == "stress" and pair.frames:
            rows.append(_row(name, "GPa", pair, GPA_PER_EV_A3, n_frames))
    return table(("quantity", "unit", "frames", "MAE", "RMSE", "largest"), rows, left=2)


def _groups(frames: Iterable[Labelled], batch_atoms: int) -> Iterator[list[Labelled]]:
    group: list[Labelled] = []
    used = 0
    for frame in frames:
        size = frame.system.positions.shape[0]
        if group and used + size > batch_atoms:
            yield group
            group, used = [], 0
        group.append(frame)
        used += size
    if group:
        yield group


def _compare_group(potential: Potential, group: list[Labelled], pairs: dict[str, Pairs]) -> None:
    from dpa4sim.batch import Batch, complaint

    for frame in group:
        reason = complaint(frame.system, potential.known_elements)
        if reason is not None:
            raise DataError(f"{frame.where} cannot be evaluated: {reason}.")
    batch = Batch.concatenate(frame.system for frame in group)
    prediction = potential(batch.to(potential.device))
    sizes = batch.n_atoms.tolist()
    energies = prediction.energy.cpu().numpy()
    forces = np.split(prediction.forces.cpu().numpy(), np.cumsum(sizes)[:-1])
    stresses = prediction.stress.cpu().numpy()
    for s, frame in enumerate(group):
        if frame.energy is not None:
            pairs["energy"].add(np.array(frame.energy / sizes[s]), energies[s] / sizes[s])
        if frame.forces is not None:
            pairs["forces"].add(frame.forces, forces[s])
        if frame.stress is not None and np.isfinite(stresses[s]).all():
            pairs["stress"].add(frame.stress, stresses[s])


def _row(name: str, unit: str, pair: Pairs, factor: float, n_frames: int) -> tuple[str, ...]:
    if not pair.frames:
        return (name, unit, f"0 of {n_frames}", "absent", "absent", "absent")
    reference, predicted = pair.arrays()
    error = factor * np.abs(predicted - reference)
    numbers = (error.mean(), np.sqrt((error**2).mean()), error.max())
    return (name, unit, f"{pair.frames} of {n_frames}", *(f"{x:.4g}" for x in numbers))
