"""Diffusion: mean square displacements of many replicas at several temperatures, in one batch.

    python workflows/diffusion.py [INPUT...] [--temperatures 2600 3600] [--element Al] [-o FOLDER]

Each crystal is relaxed and repeated; every temperature and replica of it is a trajectory of its own
in the fixed cell, and all of them run together.  D is a sixth of the slope of the mean square
displacement over time, averaged over atoms, time origins and replicas, the centre of mass held;
its error bar is the spread of the replicas.  With two temperatures or more, Arrhenius' law is
fitted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers
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
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.plots import DPI, INK, PALETTE
from dpa4sim.potential import EnergyModel
from dpa4sim.simulate import MDRun, read_trajectory
from dpa4sim.simulate.trajectory import SystemTrajectory, Trajectory
from dpa4sim.units import BOLTZMANN_EV_K

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CRYSTALS = "Aluminium"

LONGEST = 0.5
"""Longest lag, as a share of a trajectory: longer ones have too few time origins."""

FITTED = 0.3
"""Shortest lag of the fit, as a share of the longest: before it, atoms fly and vibrate."""

DIFFUSIVE = 0.25
"""How far from 1 the exponent of the displacements over time may be."""

CM2_S = 1e-4
"""1 Å^2/ps in cm^2/s."""

HEADERS = ("crystal", "atoms", "T (K)", "D (Å^2/ps)", "+-", "D (cm^2/s)", "exponent", "Ea (eV)")


@dataclass(frozen=True)
class Point:
    """A crystal at one temperature.

    Args:
        temperature: K, of the thermostat.
        lags: ps.
        msd: mean over the replicas, Å^2.
        spread: standard deviation of the replicas, Å^2; NaN for a single one.
        d: diffusion coefficient, Å^2/ps.
        error: its standard error from the spread of the replicas; NaN for a single one.
        exponent: d ln MSD / d ln t where the fit is made: 1 for diffusion, 0 for a solid.
    """

    temperature: float
    lags: Float[np.ndarray, " lag"]
    msd: Float[np.ndarray, " lag"]
    spread: Float[np.ndarray, " lag"]
    d: float
    error: float
    exponent: float


@dataclass(frozen=True)
class Diffusion:
    """A crystal at all temperatures.

    Args:
        name: of the crystal.
        n_atoms: in the cell that was simulated.
        points: by temperature; those of which no replica came through are missing.
        barrier: activation energy, eV.
        barrier_error: its standard error; NaN where there is no spread to tell it from.
        d0: prefactor, Å^2/ps.
        note: what went wrong; empty if nothing did.
    """

    name: str
    n_atoms: int
    points: tuple[Point, ...]
    barrier: float
    barrier_error: float
    d0: float
    note: str = ""


def diffuse(
    potential: EnergyModel,
    crystals: Sequence[Crystal],
    temperatures: Sequence[float],
    output: Path,
    *,
    element: str | None = None,
    replicas: int = 3,
    time_ps: float = 1.5,
    skip_ps: float = 0.45,
    timestep: float = 3.0,
    frame_every: int = 5,
    thermostat: str = "bussi",
    thermostat_time: float = 100.0,
    seed: int = 0,
    resume: bool = False,
) -> list[Diffusion]:
    """Run every crystal at every temperature in one call, and fit.

    Args:
        temperatures: K.
        output: the trajectory file, .h5.
        element: whose atoms count; all if None.
        replicas: trajectories of each crystal at each temperature.
        time_ps: length of each.
        skip_ps: what is left out at its start.
        timestep: fs.
        frame_every: steps between two frames.
        thermostat: "bussi", which leaves diffusion as it is, or "langevin", whose friction slows
            it.
        thermostat_time: fs.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: the output exists, or a crystal lacks the element.
    """
    check_temperatures(temperatures)
    n_frames = 1e3 * (time_ps - skip_ps) / (timestep * frame_every)
    if skip_ps < 0 or n_frames < 20:
        raise ConfigError(
            f"skip_ps={skip_ps} of time_ps={time_ps} leaves {max(n_frames, 0):.0f} frames. "
            "Run longer: a slope needs 20."
        )
    check_element(crystals, element)
    pairs = list(product(crystals, temperatures))
    runs = dpa4sim.md(
        potential,
        [crystal.atoms for crystal, _ in pairs],
        ensemble="nvt",
        thermostat=thermostat,
        thermostat_time=thermostat_time,
        temperature=[float(kelvin) for _, kelvin in pairs],
        timestep=timestep,
        time_ps=time_ps,
        seed=seed,
        replicas=replicas,
        output=output,
        frame_every=frame_every,
        store=("positions",),
        resume=resume,
        progress=True,
    )
    stride = len(temperatures) * replicas
    with read_trajectory(output) as trajectory:
        return [
            _fitted(
                crystal, temperatures, runs[first : first + stride], trajectory, skip_ps, element
            )
            for crystal, first in zip(crystals, range(0, len(runs), stride), strict=True)
        ]


def _fitted(
    crystal: Crystal,
    temperatures: Sequence[float],
    runs: Sequence[MDRun],
    trajectory: Trajectory,
    skip_ps: float,
    element: str | None,
) -> Diffusion:
    """The runs of one crystal: replicas of the first temperature, then of the second, ..."""
    replicas = len(runs) // len(temperatures)
    points, notes = [], []
    for j, kelvin in enumerate(temperatures):
        those = runs[j * replicas : (j + 1) * replicas]
        good = [run.index for run in those if run.status == Status.COMPLETED]
        notes += [f"{kelvin:g} K: {run.reason}." for run in those if run.index not in good]
        if good:
            moved = [displacements(trajectory.system(i), skip_ps, element) for i in good]
            points.append(slope(float(kelvin), moved))
    return arrhenius(crystal, points, notes)


def check_element(crystals: Sequence[Crystal], element: str | None) -> None:
    """Is there something to count?

    Raises:
        DataError: a crystal has no atom of the element.
    """
    for crystal in crystals:
        symbols = set(crystal.atoms.get_chemical_symbols())
        if element is not None and element not in symbols:
            raise DataError(
                f"{crystal.name} has no atom of '{element}'. It has {', '.join(sorted(symbols))}."
            )


def displacements(
    system: SystemTrajectory, skip_ps: float, element: str | None = None
) -> tuple[Float[np.ndarray, " lag"], Float[np.ndarray, " lag"]]:
    """Lags in ps, and the mean square displacements after them, in Å^2.

    The mean goes over atoms and time origins; the centre of mass is held.

    Args:
        skip_ps: what is left out at the start.
        element: whose atoms count; all if None.
    """
    late = system.time >= 1e3 * skip_ps - 1e-6
    places, time = system.positions[late], 1e-3 * system.time[late]
    weights = system.masses / system.masses.sum()
    places = places - np.einsum("a,fad->fd", weights, places)[:, None]
    if element is not None:
        places = places[:, system.atomic_numbers == atomic_numbers[element]]
    n_lags = int(LONGEST * len(places))
    msd = [np.square(places[lag:] - places[:-lag]).sum(2).mean() for lag in range(1, n_lags + 1)]
    return time[1 : n_lags + 1] - time[0], np.array(msd)


def slope(
    kelvin: float,
    replicas: Sequence[tuple[Float[np.ndarray, " lag"], Float[np.ndarray, " lag"]]],
) -> Point:
    """D = 1/6 d MSD / dt over the later lags, of the mean of the replicas; its error from them."""
    lags = replicas[0][0]
    every = np.array([msd for _, msd in replicas])
    late = lags >= FITTED * lags[-1]
    msd = every.mean(0)
    each = np.polyfit(lags[late], every[:, late].T, 1)[0] / 6
    alone = len(replicas) == 1
    growth = msd[late] > 0
    exponent = math.nan
    if growth.all():
        exponent = float(np.polyfit(np.log(lags[late]), np.log(msd[late]), 1)[0])
    return Point(
        temperature=kelvin,
        lags=lags,
        msd=msd,
        spread=np.full_like(msd, math.nan) if alone else every.std(0, ddof=1),
        d=float(each.mean()),
        error=math.nan if alone else float(each.std(ddof=1) / math.sqrt(len(each))),
        exponent=exponent,
    )


def arrhenius(crystal: Crystal, points: Sequence[Point], notes: Sequence[str] = ()) -> Diffusion:
    """D = D0 exp(-Ea / kT) by least squares of ln D, weighted if every point has an error."""
    said = list(notes)
    for point in points:
        if not abs(point.exponent - 1) <= DIFFUSIVE:
            said.append(
                f"{point.temperature:g} K: the displacements grow as t^{point.exponent:.2f}, "
                "not as t: run longer, or nothing diffuses."
            )
    usable = [point for point in points if point.d > 0]
    barrier = error = d0 = math.nan
    if len(usable) > 1:
        inverse = np.array([1 / (BOLTZMANN_EV_K * point.temperature) for point in usable])
        d = np.array([point.d for point in usable])
        width = np.array([point.error for point in usable]) / d
        if np.all(width > 0):
            line, covariance = np.polyfit(inverse, np.log(d), 1, w=1 / width, cov="unscaled")
            error = float(np.sqrt(covariance[0, 0]))
        else:
            line = np.polyfit(inverse, np.log(d), 1)
        barrier, d0 = -float(line[0]), math.exp(line[1])
    n_atoms = len(crystal.atoms)
    return Diffusion(crystal.name, n_atoms, tuple(points), barrier, error, d0, " ".join(said))


def report(found: Sequence[Diffusion]) -> str:
    """A row per crystal and temperature; the barrier in the first of them."""
    rows = []
    for each in found:
        barrier = f"{fixed(each.barrier, 3)} +- {fixed(each.barrier_error, 3)}"
        for place, point in enumerate(each.points):
            first = place == 0
            rows.append(
                [
                    each.name if first else "",
                    str(each.n_atoms) if first else "",
                    f"{point.temperature:g}",
                    fixed(point.d, 4),
                    fixed(point.error, 4),
                    f"{CM2_S * point.d:.2e}",
                    fixed(point.exponent, 2),
                    barrier if first else "",
                ]
            )
    return table(HEADERS, rows)


def draw(found: Sequence[Diffusion], path: Path) -> None:
    """Displacements over time with the spread of the replicas, and Arrhenius' plot."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    hot = [each for each in found if math.isfinite(each.barrier)]
    figure = Figure(figsize=(9.6 if hot else 5.4, 4.2), dpi=DPI, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 2 if hot else 1))
    shades = iter(PALETTE * sum(len(each.points) for each in found))
    for each in found:
        for point in each.points:
            label = f"{each.name}, {point.temperature:g} K"
            _draw_displacements(panels[0], point, next(shades), label)
    panels[0].set(xlabel="time (ps)", ylabel="mean square displacement (Å$^2$)")
    panels[0].set(xlim=(0, None), ylim=(0, None))
    if panels[0].has_data():
        panels[0].legend(frameon=False, labelcolor=INK, fontsize=8.5)
    for colour, each in zip(PALETTE * len(hot), hot, strict=False):
        _draw_arrhenius(panels[1], each, colour)
    if hot:
        panels[1].set(xlabel="1000 K / T", ylabel="D (Å$^2$/ps)", yscale="log")
        panels[1].yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        panels[1].yaxis.set_major_formatter("{x:g}")
        panels[1].yaxis.set_minor_locator(NullLocator())
        panels[1].legend(frameon=False, labelcolor=INK, fontsize=8.5)
    for axes in panels:
        open_frame(axes)
    figure.savefig(path)


def _draw_displacements(axes: Axes, point: Point, colour: str, label: str) -> None:
    spread = np.nan_to_num(point.spread)
    low, high = point.msd - spread, point.msd + spread
    axes.fill_between(point.lags, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(point.lags, point.msd, color=colour, label=label)


def _draw_arrhenius(axes: Axes, each: Diffusion, colour: str) -> None:
    usable = [point for point in each.points if point.d > 0]
    kelvin = np.array([point.temperature for point in usable])
    error = np.nan_to_num([point.error for point in usable])
    label = f"{each.name}, Ea = {each.barrier:.2f} eV"
    if math.isfinite(each.barrier_error):
        label = f"{each.name}, Ea = {each.barrier:.2f} ± {each.barrier_error:.2f} eV"
    d = [point.d for point in usable]
    axes.errorbar(
        1000 / kelvin, d, error, fmt="o", color=colour, markersize=5, capsize=3, label=label
    )
    fine = np.linspace(kelvin.min(), kelvin.max(), 50)
    axes.plot(1000 / fine, each.d0 * np.exp(-each.barrier / (BOLTZMANN_EV_K * fine)), color=colour)


def main(words: Sequence[str] | None = None) -> int:
    """Relax, repeat, run, fit, print, write, draw."""
    args = _arguments(words)
    potential, crystals = begin(args)
    check_element(crystals, args.element)
    start, notes = relaxed(potential, [primitive(crystal) for crystal in crystals], args.fmax)
    found = []
    if start:
        found = diffuse(
            potential,
            [supercell(crystal, args.atoms) for crystal in start],
            args.temperatures,
            args.out / TRAJECTORY,
            element=args.element,
            replicas=args.replicas,
            time_ps=args.time,
            skip_ps=args.skip,
            timestep=args.timestep,
            frame_every=args.frame_every,
            seed=args.seed,
            resume=args.resume,
        )
    draw(found, args.out / "diffusion.png")
    return finish(args, "diffusion", found, report(found), notes)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, CRYSTALS, "runs/diffusion", dtype="float32")
    add_trajectory(
        parser,
        temperatures=(2600.0, 3600.0),
        replicas=3,
        atoms=16,
        time=1.5,
        skip=0.45,
        timestep=3.0,
    )
    parser.add_argument("--element", help="whose atoms count [all]")
    parser.add_argument("--frame-every", type=int, default=5, help="steps between frames [5]")
    return parser.parse_args(words)


if __name__ == "__main__":
    leave(main)
