"""Thermal expansion: several crystals at several temperatures and zero pressure, in one batch.

    python workflows/npt_ensemble.py [INPUT...] [--temperatures 100 300 500] [-o FOLDER]

Each crystal is relaxed and repeated; every temperature and replica of it is a trajectory of its
own, and all of them run together.  The mean volumes have the error bars of block averages over the
samples in the trajectory file; the slope of ln V over T is three times the coefficient of linear
expansion.  Nuclei are classical: below the Debye temperature real crystals expand less.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float
from recipe import (
    TRAJECTORY,
    Crystal,
    add_arguments,
    add_trajectory,
    begin,
    check_temperatures,
    finish,
    leave,
    open_frame,
    primitive,
    relaxed,
    supercell,
)

import dpa4sim
from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import ConfigError, Status
from dpa4sim.plots import DPI, INK, PALETTE
from dpa4sim.potential import EnergyModel
from dpa4sim.simulate import MDRun, read_trajectory

CRYSTALS = "Aluminium Halite"

BLOCKS = 4
"""Parts of a trajectory whose means are taken to be independent of each other."""

DRIFT = 3.0
"""Standard errors by which two halves of a run may differ before it is called unsettled."""

HEADERS = ("crystal", "atoms", "T (K)", "V (Å^3/atom)", "+-", "halves", "alpha (1e-6/K)", "+-")


@dataclass(frozen=True)
class Point:
    """A crystal at one temperature.

    Args:
        temperature: K, of the thermostat.
        volume: mean, Å^3 per atom.
        error: standard error of the mean.
        halves: difference of the second and the first half of the runs, in its standard errors.
    """

    temperature: float
    volume: float
    error: float
    halves: float


@dataclass(frozen=True)
class Expansion:
    """A crystal at all temperatures.

    Args:
        name: of the crystal.
        n_atoms: in the cell that was simulated.
        points: by temperature; those of which no replica came through are missing.
        alpha: coefficient of linear expansion, 1/K, mean over the range of temperatures.
        alpha_error: its standard error.
        note: what went wrong; empty if nothing did.
    """

    name: str
    n_atoms: int
    points: tuple[Point, ...]
    alpha: float
    alpha_error: float
    note: str = ""


def expand(
    potential: EnergyModel,
    crystals: Sequence[Crystal],
    temperatures: Sequence[float],
    output: Path,
    *,
    replicas: int = 1,
    time_ps: float = 1.0,
    skip_ps: float = 0.3,
    timestep: float = 3.0,
    pressure_gpa: float = 0.0,
    coupling: str = "isotropic",
    barostat_time: float = 100.0,
    bulk_modulus_gpa: float = 100.0,
    seed: int = 0,
    resume: bool = False,
) -> list[Expansion]:
    """Run every crystal at every temperature in one call, and average.

    Args:
        temperatures: K.
        output: the trajectory file, .h5; samples of volume every ten steps.
        replicas: trajectories of each crystal at each temperature.
        time_ps: length of each.
        skip_ps: what is left out at its start.
        timestep: fs.
        coupling: which strains the barostat changes, as of `dpa4sim.md`.
        barostat_time: fs.
        bulk_modulus_gpa: a guess; it sets the pace of the barostat only.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: the output exists.
    """
    check_temperatures(temperatures)
    if not 0 <= skip_ps < time_ps:
        raise ConfigError(f"skip_ps={skip_ps} of time_ps={time_ps} leaves nothing to average.")
    pairs = list(product(crystals, temperatures))
    runs = dpa4sim.md(
        potential,
        [crystal.atoms for crystal, _ in pairs],
        ensemble="npt",
        coupling=coupling,
        temperature=[float(kelvin) for _, kelvin in pairs],
        pressure_gpa=pressure_gpa,
        timestep=timestep,
        time_ps=time_ps,
        barostat_time=barostat_time,
        bulk_modulus_gpa=bulk_modulus_gpa,
        seed=seed,
        replicas=replicas,
        output=output,
        frame_every=0,
        resume=resume,
        progress=True,
    )
    with read_trajectory(output) as trajectory:
        series = [trajectory.observables(i)["volume"] for i in range(len(runs))]
    kept = [each.values[each.time > 1e3 * skip_ps] for each in series]
    stride = len(temperatures) * replicas
    return [
        _averaged(crystal, temperatures, runs[first : first + stride], kept[first : first + stride])
        for crystal, first in zip(crystals, range(0, len(runs), stride), strict=True)
    ]


def _averaged(
    crystal: Crystal,
    temperatures: Sequence[float],
    runs: Sequence[MDRun],
    volumes: Sequence[Float[np.ndarray, " sample"]],
) -> Expansion:
    """The runs of one crystal: replicas of the first temperature, then of the second, ..."""
    n_atoms, replicas = len(crystal.atoms), len(runs) // len(temperatures)
    points, notes = [], []
    for j, kelvin in enumerate(temperatures):
        places = range(j * replicas, (j + 1) * replicas)
        good = [p for p in places if runs[p].status == Status.COMPLETED]
        notes += [f"{kelvin:g} K: {runs[p].reason}." for p in places if p not in good]
        if good:
            points.append(Point(float(kelvin), *mean_and_error([volumes[p] for p in good])))
    points = [replace(p, volume=p.volume / n_atoms, error=p.error / n_atoms) for p in points]
    unsettled = [p for p in points if abs(p.halves) > DRIFT]
    notes += [f"{p.temperature:g} K has not settled: skip more." for p in unsettled]
    alpha, error = linear_expansion(points)
    return Expansion(crystal.name, n_atoms, tuple(points), alpha, error, " ".join(notes))


def mean_and_error(
    series: Sequence[Float[np.ndarray, " sample"]],
) -> tuple[float, float, float]:
    """Mean of independent series, its standard error, and how unlike their halves are.

    The error is that of the means of blocks, `BLOCKS` to a series, which must be longer than the
    samples remember.  NaN where there are too few samples for it.
    """
    mean = float(np.mean(np.concatenate(series)))
    if min(len(each) for each in series) < 2 * BLOCKS:
        return mean, math.nan, math.nan
    blocks = np.array([[part.mean() for part in np.array_split(s, BLOCKS)] for s in series])
    error = float(blocks.std(ddof=1) / math.sqrt(blocks.size))
    half = BLOCKS // 2
    change = float(blocks[:, half:].mean() - blocks[:, :half].mean())
    return mean, error, change / (2 * error) if error > 0 else 0.0


def linear_expansion(points: Sequence[Point]) -> tuple[float, float]:
    """Coefficient 1/3 d ln V / dT by weighted least squares, and its standard error, 1/K."""
    if len(points) < 2:
        return math.nan, math.nan
    kelvin = np.array([point.temperature for point in points])
    volume = np.array([point.volume for point in points])
    width = np.array([point.error for point in points]) / volume
    if not np.all(width > 0):
        return float(np.polyfit(kelvin, np.log(volume), 1)[0]) / 3, math.nan
    slope, covariance = np.polyfit(kelvin, np.log(volume), 1, w=1 / width, cov="unscaled")
    return float(slope[0]) / 3, float(np.sqrt(covariance[0, 0])) / 3


def report(found: Sequence[Expansion]) -> str:
    """A row per crystal and temperature; the coefficient in the first of them."""
    rows = []
    for each in found:
        for place, point in enumerate(each.points):
            first = place == 0
            rows.append(
                [
                    each.name if first else "",
                    str(each.n_atoms) if first else "",
                    f"{point.temperature:g}",
                    fixed(point.volume, 3),
                    fixed(point.error, 3),
                    fixed(point.halves, 1),
                    fixed(1e6 * each.alpha, 1) if first else "",
                    fixed(1e6 * each.alpha_error, 1) if first else "",
                ]
            )
    text = "halves: difference of the second and first half of the runs in standard errors."
    return f"{table(HEADERS, rows)}\n{text}"


def draw(found: Sequence[Expansion], path: Path) -> None:
    """Volume over temperature relative to each crystal's line at the lowest, with error bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for place, each in enumerate(each for each in found if math.isfinite(each.alpha)):
        colour = PALETTE[place % len(PALETTE)]
        kelvin = np.array([point.temperature for point in each.points])
        volume = np.array([point.volume for point in each.points])
        error = np.nan_to_num([point.error for point in each.points])
        weight = 1 / error**2 if np.all(error > 0) else np.ones_like(error)
        level = np.average(np.log(volume) - 3 * each.alpha * kelvin, weights=weight)
        start = math.exp(level + 3 * each.alpha * kelvin.min())
        line = np.exp(level + 3 * each.alpha * kelvin) / start
        alpha = f"{1e6 * each.alpha:.0f}"
        if math.isfinite(each.alpha_error):
            alpha += f" ± {1e6 * each.alpha_error:.0f}"
        label = f"{each.name}, α = {alpha} · 10$^{{-6}}$/K"
        axes.plot(kelvin, 100 * (line - 1), color=colour, linewidth=1.2)
        axes.errorbar(
            kelvin,
            100 * (volume / start - 1),
            100 * error / start,
            fmt="osD^v"[place % 5],
            color=colour,
            markersize=5,
            capsize=3,
            linewidth=1.2,
            label=label,
        )
    axes.set(xlabel="temperature (K)", ylabel="change of the volume (%)")
    open_frame(axes)
    if axes.has_data():
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    figure.savefig(path)


def main(words: Sequence[str] | None = None) -> int:
    """Relax, repeat, run, average, print, write, draw."""
    args = _arguments(words)
    potential, crystals = begin(args)
    start, notes = relaxed(potential, [primitive(crystal) for crystal in crystals], args.fmax)
    found = []
    if start:
        found = expand(
            potential,
            [supercell(crystal, args.atoms) for crystal in start],
            args.temperatures,
            args.out / TRAJECTORY,
            replicas=args.replicas,
            time_ps=args.time,
            skip_ps=args.skip,
            timestep=args.timestep,
            pressure_gpa=args.pressure,
            coupling=args.coupling,
            seed=args.seed,
            resume=args.resume,
        )
    draw(found, args.out / "npt_ensemble.png")
    return finish(args, "npt_ensemble", found, report(found), notes)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, CRYSTALS, "runs/npt_ensemble", dtype="float32")
    add_trajectory(
        parser,
        temperatures=(100.0, 350.0, 600.0),
        replicas=1,
        atoms=24,
        time=1.0,
        skip=0.3,
        timestep=3.0,
    )
    parser.add_argument("--pressure", type=float, default=0.0, help="GPa [0]")
    parser.add_argument(
        "--coupling",
        default="isotropic",
        choices=("isotropic", "anisotropic", "triclinic"),
        help="which strains the barostat changes [isotropic]",
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    leave(main)
