"""dpa4sim eval MODEL DATA: errors against reference labels, of energies or of a property."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpa4sim.cli.options import add_model, add_speed, check_output, open_any_model, written_whole
from dpa4sim.cli.table import table
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.units import GPA_PER_EV_A3

if TYPE_CHECKING:
    from dpa4sim.batch import Batch
    from dpa4sim.data.frame import Frame
    from dpa4sim.potential import Potential, Prediction
    from dpa4sim.property import PropertyModel

QUANTITIES = ("energy", "forces", "stress")
UNITS = {"energy": ("meV/atom", 1e3), "forces": ("meV/Å", 1e3), "stress": ("meV/Å^3", 1e3)}
UNITS["magnetic forces"] = ("meV/μB", 1e3)
SPINS = ("magmoms", "magnetic_forces")


@dataclass
class Pairs:
    """Reference and prediction side by side, for every label that was there.

    Args:
        subsets: the subset of each frame that carried the label.
        reference: eV/atom, eV/Å or eV/Å^3, frame by frame.
        predicted: the same numbers by the model.
    """

    subsets: list[str] = field(default_factory=list)
    reference: list[np.ndarray] = field(default_factory=list)
    predicted: list[np.ndarray] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """How many frames carried the label."""
        return len(self.subsets)

    def add(self, subset: str, reference: np.ndarray, predicted: np.ndarray) -> None:
        """One frame's label."""
        self.subsets.append(subset)
        self.reference.append(reference.ravel())
        self.predicted.append(predicted.ravel())

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All numbers in two flat arrays."""
        return np.concatenate(self.reference), np.concatenate(self.predicted)

    def mae_of(self, subset: str) -> float:
        """Mean absolute error of one subset; NaN where it has no such label."""
        pairs = zip(self.subsets, self.reference, self.predicted, strict=True)
        errors = [np.abs(b - a) for name, a, b in pairs if name == subset]
        return float(np.concatenate(errors).mean()) if errors else math.nan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, DATA, the keys of the labels, and the plot."""
    add_model(parser)
    add_speed(parser)
    parser.add_argument("data", metavar="DATA", help="labelled structures, in any format")
    for name in QUANTITIES:
        parser.add_argument(
            f"--{name}-key", metavar="KEY", help=f"where the {name} labels are [REF_{name}, {name}]"
        )
    for name, what in zip(SPINS, ("magnetic moments", "magnetic forces"), strict=True):
        key = name.replace("_", "-")
        parser.add_argument(
            f"--{key}-key", metavar="KEY", help=f"where the {what} are, for a model with spins"
        )
    parser.add_argument("--parity", metavar="PNG", type=Path, help="also draw a parity plot")
    parser.add_argument(
        "--batch-atoms", type=int, default=2000, help="atoms that are evaluated together [2000]"
    )


def run(args: argparse.Namespace) -> int:
    """Compare, print the table, draw the plot."""
    if args.parity is not None:
        check_output(args.parity, (".png", ".pdf", ".svg"))
    from dpa4sim.data.frame import LabelKeys
    from dpa4sim.data.read import read_frames
    from dpa4sim.moments import magnetic_elements

    if args.batch_atoms < 1:
        raise ConfigError(f"--batch-atoms {args.batch_atoms} is too small. Give 1 or more.")
    potential = open_any_model(args)
    from dpa4sim.property import PropertyModel

    if isinstance(potential, PropertyModel):
        return _run_property(potential, args)
    named = {name: getattr(args, f"{name}_key") for name in (*QUANTITIES, *SPINS)}
    spins = bool(magnetic_elements(potential))
    for name in SPINS:
        if named[name] is not None and not spins:
            key = name.replace("_", "-")
            raise ConfigError(f"{args.model} has no spins. Leave out --{key}-key.")
    keys = LabelKeys(**named, moments=spins)
    pairs, n_frames = compare(potential, read_frames(args.data, keys), args.batch_atoms)
    if not any(pair.frames for pair in pairs.values()):
        raise DataError(
            f"{args.data} has no reference labels: neither REF_energy, REF_forces, REF_stress "
            "nor energy, forces, stress. Say where they are: --energy-key, --forces-key."
        )
    print(report(pairs, n_frames))
    if len({name for pair in pairs.values() for name in pair.subsets}) > 1:
        print("\n" + subset_report(pairs))
    _draw(pairs, args.parity)
    return 0


def _draw(pairs: dict[str, Pairs], path: Path | None) -> None:
    if path is None:
        return
    from dpa4sim.plots import draw_parity

    panels = {name: pair.arrays() for name, pair in pairs.items() if pair.frames}
    with written_whole(path) as partial:
        draw_parity(panels, partial)
    print(f"\nparity plot: {path}")


def _run_property(model: PropertyModel, args: argparse.Namespace) -> int:
    """The same for a model of a property, in the unit of its labels."""
    from dpa4sim.data.frame import LabelKeys
    from dpa4sim.data.read import read_frames

    for name in QUANTITIES:
        if getattr(args, f"{name}_key") is not None:
            raise ConfigError(
                f"{args.model} predicts the property '{model.name}' and no energy, forces or "
                f"stress. Leave out --{name}-key."
            )
    frames = read_frames(args.data, LabelKeys(properties=(model.name,)))
    pairs, n_frames = compare_property(model, frames, args.batch_atoms)
    rows = [_row(name, "of the labels", pair, 1.0, n_frames) for name, pair in pairs.items()]
    print(table(("property", "unit", "frames", "MAE", "RMSE", "largest"), rows, left=2))
    if len(pairs) > 1:
        print(f"\nall {len(pairs)} numbers: {_overall(pairs)}")
    _draw(pairs, args.parity)
    return 0


def compare_property(
    model: PropertyModel, frames: Iterable[Frame], batch_atoms: int
) -> tuple[dict[str, Pairs], int]:
    """Labels and predictions of each number of a property.

    Raises:
        DataError: a frame cannot be evaluated, or has another number of labels.
    """
    width = model.config.property_head.task_dim
    names = [model.name] if width == 1 else [f"{model.name} {k}" for k in range(width)]
    pairs, n_frames = {name: Pairs() for name in names}, 0
    for group in _groups(frames, batch_atoms):
        n_frames += len(group)
        values = model(_checked(model, group).to(model.device)).values.cpu().numpy()
        for frame, predicted in zip(group, values, strict=True):
            label = frame.properties[model.name]
            if len(label) != width:
                raise DataError(
                    f"{frame.where}: its property '{model.name}' has {len(label)} numbers; the "
                    f"model predicts {width}."
                )
            for k, name in enumerate(names):
                pairs[name].add(frame.subset, label[k : k + 1], predicted[k : k + 1])
    return pairs, n_frames


def _overall(pairs: dict[str, Pairs]) -> str:
    reference, predicted = (
        np.concatenate(each) for each in zip(*(p.arrays() for p in pairs.values()), strict=True)
    )
    error = np.abs(predicted - reference)
    return f"MAE {error.mean():.4g}  RMSE {np.sqrt((error**2).mean()):.4g}"


def compare(
    potential: Potential, frames: Iterable[Frame], batch_atoms: int
) -> tuple[dict[str, Pairs], int]:
    """Evaluate frames in batches of at most so many atoms; a larger frame goes by itself.

    Raises:
        DataError: a frame cannot be evaluated.
    """
    from dpa4sim.moments import magnetic_elements

    pairs, n_frames = {name: Pairs() for name in QUANTITIES}, 0
    if magnetic_elements(potential):
        pairs["magnetic forces"] = Pairs()
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


def subset_report(pairs: dict[str, Pairs]) -> str:
    """MAE of every subset, and their geometric mean.  Table 2

    LWAMAE = exp(mean over subsets of log MAE): each subset counts the same, in ratios.
    """
    names = sorted({name for pair in pairs.values() for name in pair.subsets})
    shown = [name for name, pair in pairs.items() if pair.frames]
    maes = {q: np.array([UNITS[q][1] * pairs[q].mae_of(name) for name in names]) for q in shown}
    rows = []
    for row, name in enumerate(names):
        frames = max(pairs[q].subsets.count(name) for q in shown)
        cells = (f"{maes[q][row]:.4g}" if np.isfinite(maes[q][row]) else "-" for q in shown)
        rows.append((name or "(no name)", str(frames), *cells))
    with np.errstate(divide="ignore"):
        means = [np.exp(np.nanmean(np.log(maes[q]))) for q in shown]
    rows.append(("LWAMAE", "", *(f"{mean:.4g}" for mean in means)))
    return table(("MAE by subset", "frames", *(f"{q} {UNITS[q][0]}" for q in shown)), rows)


def _groups(frames: Iterable[Frame], batch_atoms: int) -> Iterator[list[Frame]]:
    group: list[Frame] = []
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


def _checked(model: Potential | PropertyModel, group: list[Frame]) -> Batch:
    from dpa4sim.batch import Batch
    from dpa4sim.complaint import complaint
    from dpa4sim.moments import magnetic_elements, moments_complaint, with_moments

    magnetic = magnetic_elements(model)
    for frame in group:
        reason = complaint(frame.system, model.known_elements)
        reason = reason or moments_complaint(frame.system, magnetic)
        if reason is not None:
            raise DataError(f"{frame.where} cannot be evaluated: {reason}.")
    return Batch.concatenate(with_moments(frame.system, magnetic) for frame in group)


def _compare_group(potential: Potential, group: list[Frame], pairs: dict[str, Pairs]) -> None:
    batch = _checked(potential, group)
    prediction = potential(batch.to(potential.device))
    sizes = batch.n_atoms.tolist()
    energies = prediction.energy.cpu().numpy()
    forces = np.split(prediction.forces.cpu().numpy(), np.cumsum(sizes)[:-1])
    stresses = prediction.stress.cpu().numpy()
    for s, frame in enumerate(group):
        if frame.energy is not None:
            pairs["energy"].add(
                frame.subset, np.array([frame.energy / sizes[s]]), energies[s : s + 1] / sizes[s]
            )
        if frame.forces is not None:
            pairs["forces"].add(frame.subset, frame.forces, forces[s])
        if frame.stress is not None and np.isfinite(stresses[s]).all():
            pairs["stress"].add(frame.subset, frame.stress, stresses[s])
    if "magnetic forces" in pairs:
        _compare_spins(potential, group, prediction, pairs["magnetic forces"])


def _compare_spins(
    potential: Potential, group: list[Frame], prediction: Prediction, pairs: Pairs
) -> None:
    """Magnetic forces of those atoms that the model takes as magnetic."""
    from dpa4sim.moments import magnetic_elements

    forces = prediction.magnetic_forces.cpu().numpy()  # type: ignore[union-attr]
    magnetic = sorted(magnetic_elements(potential))
    start = 0
    for frame in group:
        own = forces[start : start + len(frame.system.positions)]
        start += len(own)
        which = np.isin(frame.system.atomic_numbers.numpy(), magnetic)
        if frame.magnetic_forces is not None and which.any():
            pairs.add(frame.subset, frame.magnetic_forces[which], own[which])


def _row(name: str, unit: str, pair: Pairs, factor: float, n_frames: int) -> tuple[str, ...]:
    if not pair.frames:
        return (name, unit, f"0 of {n_frames}", "absent", "absent", "absent")
    reference, predicted = pair.arrays()
    error = factor * np.abs(predicted - reference)
    numbers = (error.mean(), np.sqrt((error**2).mean()), error.max())
    return (name, unit, f"{pair.frames} of {n_frames}", *(f"{x:.4g}" for x in numbers))
