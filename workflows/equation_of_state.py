"""Equation of state of several crystals: volumes of all of them in one batch, then a fit for each.

    python workflows/equation_of_state.py [INPUT...] [--model seed] [--hold cell] [-o FOLDER]

Each crystal is relaxed, then scaled to a series of volumes, where its atoms relax in the fixed
cell.  The energies are fitted by the third-order equation of Birch and Murnaghan.  The pressures
that the model states at the same points are no part of the fit: they check it.

With the shape of the cell held, the bulk modulus of a crystal that is not cubic is Voigt's average
of its elastic constants; `--hold volume` lets the shape relax too, which gives that of Reuss: what
a fluid would press against.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pymatgen.analysis.eos import EOS, EOSError
from recipe import Crystal, add_arguments, begin, finish, leave, open_frame, primitive, relaxed

import dpa4sim
from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import ConfigError, Status
from dpa4sim.plots import DPI, FAINT, INK, PALETTE
from dpa4sim.potential import EnergyModel
from dpa4sim.relax import RelaxResult
from dpa4sim.units import GPA_PER_EV_A3

CRYSTALS = "Copper Aluminium Silicon Periclase Halite Fluorite"

HOLDS = ("atoms", "cell", "volume")
"""What stands still at each volume: everything; the cell; its volume only."""

FEWEST = 5
"""Points of a fit of four numbers whose quality can still be judged."""

HEADERS = ("crystal", "atoms", "V0 (Å^3/atom)", "B0 (GPa)", "B0'", "rms (meV/atom)", "dP (GPa)")


@dataclass(frozen=True)
class Curve:
    """A crystal at several volumes, and the equation of state through them.

    Args:
        name: of the crystal.
        n_atoms: in the cell that was computed.
        volumes: Å^3 per atom.
        energies: eV per atom.
        pressures_gpa: what the model states, no part of the fit.
        v0: volume of the fit's minimum, Å^3 per atom.
        e0: energy there, eV per atom.
        b0_gpa: bulk modulus there.
        b1: its derivative by the pressure.
        rms: of the fit, eV per atom.
        pressure_error_gpa: largest difference of the fit's pressure and the model's.
        note: why there is no fit, or what is missing; empty if all is well.
    """

    name: str
    n_atoms: int
    volumes: Float[np.ndarray, " point"]
    energies: Float[np.ndarray, " point"]
    pressures_gpa: Float[np.ndarray, " point"]
    v0: float = math.nan
    e0: float = math.nan
    b0_gpa: float = math.nan
    b1: float = math.nan
    rms: float = math.nan
    pressure_error_gpa: float = math.nan
    note: str = ""

    @property
    def fitted(self) -> bool:
        """Whether there is a fit."""
        return math.isfinite(self.v0)


def scan(
    potential: EnergyModel,
    crystals: Sequence[Crystal],
    *,
    span: float = 0.06,
    n_volumes: int = 9,
    hold: str = "cell",
    fmax: float = 1e-3,
) -> list[Curve]:
    """Scale relaxed crystals to a series of volumes, all of them in one call.

    Args:
        span: the volumes go from 1 - span to 1 + span of the relaxed one.
        n_volumes: per crystal.
        hold: what stands still at each volume, one of `HOLDS`.
        fmax: eV/Å.

    Raises:
        ConfigError: a setting cannot be used.
    """
    if hold not in HOLDS:
        raise ConfigError(f"hold={hold!r} is not known. Valid: {', '.join(HOLDS)}.")
    if not 0 < span < 0.5 or n_volumes < FEWEST:
        raise ConfigError(
            f"span={span}, n_volumes={n_volumes} is no scan. Give a span between 0 and 0.5, such "
            f"as 0.06, and {FEWEST} volumes or more."
        )
    factors = np.linspace(1 - span, 1 + span, n_volumes)
    scaled = []
    for crystal in crystals:
        for factor in factors:
            atoms = crystal.atoms.copy()
            atoms.set_cell(atoms.cell.array * factor ** (1 / 3), scale_atoms=True)
            scaled.append(atoms)
    result = dpa4sim.relax(
        potential,
        scaled,
        fmax=fmax,
        cell=hold == "volume",
        constant_volume=hold == "volume",
        max_steps=0 if hold == "atoms" else 500,
        progress=True,
    )
    good = {Status.CONVERGED} | ({Status.MAX_STEPS} if hold == "atoms" else set())
    places = [range(i * n_volumes, (i + 1) * n_volumes) for i in range(len(crystals))]
    return [
        fit(_points(crystal, result, where, good))
        for crystal, where in zip(crystals, places, strict=True)
    ]


def _points(crystal: Crystal, result: RelaxResult, places: range, good: set[Status]) -> Curve:
    """The volumes at which all is well; how many are not is noted."""
    usable = [p for p in places if result.status[p] in good]
    lost = [result.reasons[p] for p in places if p not in usable]
    note = f"{len(lost)} of {len(places)} volumes are missing: {lost[0]}." if lost else ""
    n_atoms = len(crystal.atoms)
    stresses = [result.predictions[p].stress[0] for p in usable]
    return Curve(
        crystal.name,
        n_atoms,
        np.array([float(result.batches[p].volume[0]) / n_atoms for p in usable]),
        np.array([result.energy[p] / n_atoms for p in usable]),
        np.array([-GPA_PER_EV_A3 * float(stress.trace()) / 3 for stress in stresses]),
        note=note,
    )


def fit(curve: Curve) -> Curve:
    """Put the third-order equation of Birch and Murnaghan through a curve's energies."""
    if len(curve.volumes) < FEWEST:
        return curve
    try:
        found = EOS(eos_name="birch_murnaghan").fit(curve.volumes, curve.energies)
    except EOSError:
        note = f"{curve.note} No minimum of the energy lies between its volumes.".strip()
        return replace(curve, note=note)
    v0, b0, b1 = float(found.v0), float(found.b0), float(found.b1)
    modelled = birch_murnaghan_pressure(curve.volumes, v0, b0, b1) * GPA_PER_EV_A3
    return replace(
        curve,
        v0=v0,
        e0=float(found.e0),
        b0_gpa=b0 * GPA_PER_EV_A3,
        b1=b1,
        rms=float(np.sqrt(np.mean((found.func(curve.volumes) - curve.energies) ** 2))),
        pressure_error_gpa=float(np.abs(modelled - curve.pressures_gpa).max()),
    )


def birch_murnaghan_energy(
    volume: Float[np.ndarray, " point"], v0: float, b0: float, b1: float
) -> Float[np.ndarray, " point"]:
    """E - E0 = 9/16 B0 V0 [(x^2 - 1)^3 B0' + (x^2 - 1)^2 (6 - 4 x^2)], x = (V0 / V)^(1/3)."""
    x2 = (v0 / volume) ** (2 / 3)
    return 9 / 16 * b0 * v0 * ((x2 - 1) ** 3 * b1 + (x2 - 1) ** 2 * (6 - 4 * x2))


def birch_murnaghan_pressure(
    volume: Float[np.ndarray, " point"], v0: float, b0: float, b1: float
) -> Float[np.ndarray, " point"]:
    """P = -dE/dV = 3/2 B0 (x^7 - x^5) [1 + 3/4 (B0' - 4) (x^2 - 1)], x = (V0 / V)^(1/3)."""
    x = (v0 / volume) ** (1 / 3)
    return 1.5 * b0 * (x**7 - x**5) * (1 + 0.75 * (b1 - 4) * (x**2 - 1))


def report(curves: Sequence[Curve]) -> str:
    """One row per crystal."""
    rows = [
        [
            curve.name,
            str(curve.n_atoms),
            fixed(curve.v0, 3),
            fixed(curve.b0_gpa, 1),
            fixed(curve.b1, 2),
            fixed(1e3 * curve.rms, 3),
            fixed(curve.pressure_error_gpa, 2),
        ]
        for curve in curves
    ]
    return table(HEADERS, rows)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Energy and pressure over the volume relative to V0: points, and the fitted curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), dpi=DPI, layout="constrained")
    energy, pressure = figure.subplots(1, 2)
    for place, curve in enumerate(each for each in curves if each.fitted):
        colour = PALETTE[place % len(PALETTE)]
        dash = ("-", "--", ":")[place // len(PALETTE) % 3]
        ratio = curve.volumes / curve.v0
        fine = np.linspace(ratio.min(), ratio.max(), 200)
        law = curve.v0, curve.b0_gpa / GPA_PER_EV_A3, curve.b1
        energy.plot(ratio, 1e3 * (curve.energies - curve.e0), "o", color=colour, markersize=4)
        modelled = birch_murnaghan_energy(fine * curve.v0, *law)
        energy.plot(fine, 1e3 * modelled, dash, color=colour)
        pressure.plot(ratio, curve.pressures_gpa, "o", color=colour, markersize=4)
        modelled = GPA_PER_EV_A3 * birch_murnaghan_pressure(fine * curve.v0, *law)
        label = f"{curve.name}, B$_0$ = {curve.b0_gpa:.0f} GPa"
        pressure.plot(fine, modelled, dash, color=colour, label=label)
    energy.set(xlabel="V / V$_0$", ylabel="E - E$_0$ (meV/atom)")
    pressure.set(xlabel="V / V$_0$", ylabel="pressure (GPa)")
    energy.set_title("fitted: energies", loc="left", fontsize=10, color=INK)
    title = "not fitted: the model's pressures"
    pressure.set_title(title, loc="left", fontsize=10, color=INK)
    for axes in (energy, pressure):
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        open_frame(axes)
    if any(curve.fitted for curve in curves):
        pressure.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    figure.savefig(path)


def main(words: Sequence[str] | None = None) -> int:
    """Relax, scan, fit, print, write, draw."""
    args = _arguments(words)
    potential, crystals = begin(args)
    start, notes = relaxed(potential, [primitive(crystal) for crystal in crystals], args.fmax)
    curves = []
    if start:
        span, volumes = args.span / 100, args.volumes
        curves = scan(
            potential, start, span=span, n_volumes=volumes, hold=args.hold, fmax=args.fmax
        )
    draw(curves, args.out / "equation_of_state.png")
    return finish(args, "equation_of_state", curves, report(curves), notes)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, CRYSTALS, "runs/equation_of_state", dtype="float64")
    parser.add_argument("--span", type=float, default=6.0, help="of the volumes, +- percent [6]")
    parser.add_argument("--volumes", type=int, default=9, help="per crystal [9]")
    parser.add_argument(
        "--hold", default="cell", choices=HOLDS, help="what stands still at each volume [cell]"
    )
    parser.add_argument("--fmax", type=float, default=1e-3, help="eV/Å [0.001]")
    return parser.parse_args(words)


if __name__ == "__main__":
    leave(main)
