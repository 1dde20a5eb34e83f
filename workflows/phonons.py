"""Phonons of several crystals: every displacement of every crystal in the same batches.

    python workflows/phonons.py [INPUT...] [--model seed] [--temperatures 100 300 1000] [-o FOLDER]

Each crystal is relaxed and repeated until it is so many Å high in every direction; phonopy
(`pip install 'dpa4sim[phonons]'`) says which atoms to displace, the potential evaluates all
displaced cells of all crystals together, and phonopy makes bands along the path of the Brillouin
zone, the density of states and the harmonic free energy, entropy and heat capacity of them.  Modes
with imaginary frequencies are named: the crystal would gain energy by moving along them.  There is
no non-analytical term: in ionic crystals the split of optical modes at Gamma is missing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from jaxtyping import Float
from recipe import (
    Crystal,
    add_arguments,
    begin,
    check_temperatures,
    finish,
    forces_of,
    leave,
    open_frame,
    primitive,
    relaxed,
)

from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import ConfigError
from dpa4sim.plots import DPI, FAINT, INK, PALETTE
from dpa4sim.potential import EnergyModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CRYSTALS = "Copper Aluminium Silicon Periclase Halite Magnesium"

ATOMS_AT_ONCE = 4000
SYMMETRY_PRECISION_A = 1e-3
PATH_PRECISION = 1e-2
"""Of cell lengths and angles: what lattice a relaxed cell is taken for."""

IMAGINARY_THZ = -0.05
"""Modes below are imaginary; differences of forces leave acoustic ones so far from zero."""

STILL_THZ = 0.01
"""Modes below are the crystal moving as a whole; their logarithm would spoil the free energy."""

MESH_A = 60.0
"""q points per direction times the lattice constant; finer changes no thermal property here."""

HEADERS = ("crystal", "atoms", "cells", "top (THz)", "lowest (THz)", "imaginary")
THERMAL = ("crystal", "T (K)", "F (kJ/mol)", "S (J/mol/K)", "Cv (J/mol/K)")


@dataclass(frozen=True)
class Phonons:
    """The phonons of a crystal.

    Args:
        name: of the crystal.
        n_atoms: in the primitive cell.
        n_displaced: cells with a displaced atom.
        distance: along the path, 1/Å.
        bands: frequencies there, THz; imaginary ones are negative.
        ticks: distance and label of the special points.
        frequency: of the density of states, THz.
        density: states per THz and primitive cell.
        thermal: by temperature in K: free energy in kJ/mol, entropy and heat capacity in J/mol/K,
            for a mole of primitive cells; empty where modes are imaginary.
        imaginary: point of the path, place among the modes, and frequency of imaginary modes.
        note: why there are no phonons; empty if there are.
    """

    name: str
    n_atoms: int
    n_displaced: int = 0
    distance: Float[np.ndarray, " q"] = field(default_factory=lambda: np.zeros(0))
    bands: Float[np.ndarray, "q band"] = field(default_factory=lambda: np.zeros((0, 0)))
    ticks: tuple[tuple[float, str], ...] = ()
    frequency: Float[np.ndarray, " point"] = field(default_factory=lambda: np.zeros(0))
    density: Float[np.ndarray, " point"] = field(default_factory=lambda: np.zeros(0))
    thermal: dict[float, tuple[float, float, float]] = field(default_factory=dict)
    imaginary: tuple[str, ...] = ()
    note: str = ""


def phonons(
    potential: EnergyModel,
    crystals: Sequence[Crystal],
    *,
    height: float = 10.0,
    displacement: float = 0.01,
    temperatures: Sequence[float] = (300.0,),
) -> list[Phonons]:
    """Phonons of relaxed crystals from one list of displaced cells.

    Args:
        height: least distance of opposite faces of the supercells, Å; forces that reach farther
            are folded back.
        displacement: of one atom at a time, Å.
        temperatures: of the thermal properties, K.

    Raises:
        ConfigError: phonopy is missing, or a setting cannot be used.
    """
    check_temperatures(temperatures)
    for name, value in (("height", height), ("displacement", displacement)):
        if not value > 0:
            raise ConfigError(f"{name}={value}. Give a positive number of Å.")
    prepared = [prepare(crystal.atoms, height, displacement) for crystal in crystals]
    cells = [atoms_of(cell) for each in prepared for cell in each.supercells_with_displacements]
    forces = iter(forces_of(potential, cells, ATOMS_AT_ONCE))
    found = []
    for crystal, each in zip(crystals, prepared, strict=True):
        own = [next(forces) for _ in each.supercells_with_displacements]
        found.append(analyse(crystal, each, own, temperatures))
    return found


def prepare(atoms: Atoms, height: float, displacement: float) -> Any:
    """Phonopy's object with the supercell and the displacements that symmetry leaves.

    Raises:
        ConfigError: phonopy is not installed.
    """
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise ConfigError("This needs phonopy. Type: pip install 'dpa4sim[phonons]'.") from error
    heights = 1 / np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    unit = PhonopyAtoms(
        symbols=atoms.symbols,
        cell=atoms.cell.array,
        positions=atoms.positions,
        masses=atoms.get_masses(),
    )
    phonopy = Phonopy(
        unit,
        supercell_matrix=np.diag(np.ceil(height / heights).astype(int)),
        primitive_matrix=np.eye(3),
        symprec=SYMMETRY_PRECISION_A,
    )
    phonopy.generate_displacements(distance=displacement)
    return phonopy


def atoms_of(cell: Any) -> Atoms:
    """A cell of phonopy's."""
    return Atoms(cell.symbols, cell=cell.cell, positions=cell.positions, pbc=True)


def analyse(
    crystal: Crystal,
    phonopy: Any,
    forces: Sequence[Float[np.ndarray, "atom 3"]],
    temperatures: Sequence[float],
) -> Phonons:
    """Bands, density of states and thermal properties of the forces of the displaced cells."""
    n_atoms = len(crystal.atoms)
    if not all(np.isfinite(each).all() for each in forces):
        note = "a displaced cell has forces that are no numbers."
        return Phonons(crystal.name, n_atoms, len(forces), note=note)
    phonopy.forces = forces
    phonopy.produce_force_constants(show_drift=False)
    phonopy.symmetrize_force_constants(show_drift=False)
    distance, bands, ticks = along_path(phonopy, crystal.atoms)
    phonopy.run_mesh(MESH_A)
    phonopy.run_total_dos()
    worst = float(np.min(phonopy.mesh.frequencies))
    imaginary = name_imaginary(distance, bands, ticks)
    if worst < IMAGINARY_THZ and not imaginary:
        imaginary = (f"off the path ({-worst:.2f}i THz)",)
    thermal = {} if imaginary else thermal_properties(phonopy, temperatures)
    return Phonons(
        name=crystal.name,
        n_atoms=n_atoms,
        n_displaced=len(forces),
        distance=distance,
        bands=bands,
        ticks=ticks,
        frequency=np.asarray(phonopy.total_dos.frequency_points),
        density=np.asarray(phonopy.total_dos.dos),
        thermal=thermal,
        imaginary=imaginary,
    )


def along_path(
    phonopy: Any, atoms: Atoms
) -> tuple[np.ndarray, np.ndarray, tuple[tuple[float, str], ...]]:
    """Distance and frequencies along ASE's path of the lattice, and where its points are."""
    path = atoms.cell.bandpath(density=25, eps=PATH_PRECISION)
    distance, places, labels = path.get_linear_kpoint_axis()
    phonopy.run_qpoints(path.kpts)
    bands = np.sort(phonopy.qpoints.frequencies, axis=1)
    named: dict[float, str] = {}
    for place, label in zip(places.tolist(), labels, strict=True):
        before = named.get(place)
        named[place] = label if before in (None, label) else f"{before}|{label}"
    return distance, bands, tuple(named.items())


def name_imaginary(
    distance: Float[np.ndarray, " q"],
    bands: Float[np.ndarray, "q band"],
    ticks: Sequence[tuple[float, str]],
) -> tuple[str, ...]:
    """Imaginary modes at the special points, and the worst between two where none of them has one.

    The three acoustic modes at Gamma are zero by invariance and left out.
    """
    found = []
    for place, label in ticks:
        modes = bands[int(np.argmin(np.abs(distance - place)))]
        for band, frequency in enumerate(modes):
            acoustic = label == "G" and np.sum(np.abs(modes) < np.abs(frequency)) < 3
            if frequency < IMAGINARY_THZ and not acoustic:
                found.append(f"{label} mode {band + 1} ({-frequency:.2f}i THz)")
    worst, band = np.unravel_index(np.argmin(bands), bands.shape)
    lowest = float(bands[worst, band])
    if not found and lowest < IMAGINARY_THZ:
        before = [label for place, label in ticks if place <= distance[worst]][-1]
        after = next(label for place, label in ticks if place >= distance[worst])
        found.append(f"{before}-{after} mode {band + 1} ({-lowest:.2f}i THz)")
    return tuple(dict.fromkeys(found))


def thermal_properties(
    phonopy: Any, temperatures: Sequence[float]
) -> dict[float, tuple[float, float, float]]:
    """By temperature: free energy (kJ/mol), entropy and heat capacity (J/mol/K)."""
    phonopy.run_thermal_properties(temperatures=list(temperatures), cutoff_frequency=STILL_THZ)
    _, *columns = phonopy.thermal_properties.thermal_properties
    rows = np.stack([np.asarray(column, float) for column in columns], 1)
    return {
        float(kelvin): (float(row[0]), float(row[1]), float(row[2]))
        for kelvin, row in zip(temperatures, rows, strict=True)
    }


def report(found: Sequence[Phonons]) -> str:
    """One row per crystal, then one per crystal and temperature."""
    rows, warm = [], []
    for each in found:
        top = float(each.bands.max()) if each.bands.size else math.nan
        low = float(each.bands.min()) if each.bands.size else math.nan
        said = ", ".join(each.imaginary[:3]) + (", ..." if len(each.imaginary) > 3 else "")
        cells = [str(each.n_atoms), str(each.n_displaced), fixed(top, 3), fixed(low, 3)]
        rows.append([each.name, *cells, said or ("-" if each.note else "none")])
        for kelvin, values in each.thermal.items():
            warm.append([each.name, f"{kelvin:g}", *(fixed(value, 3) for value in values)])
    text = "Per mole of primitive cells; crystals with imaginary modes have no free energy."
    return "\n".join([table(HEADERS, rows), table(THERMAL, warm), text])


def draw(found: Sequence[Phonons], path: Path) -> None:
    """A row per crystal: bands, and the density of states beside them."""
    from matplotlib.figure import Figure

    shown = [each for each in found if each.bands.size]
    rows = max(len(shown), 1)
    figure = Figure(figsize=(7.6, 2.6 * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, 2, sharey="row", squeeze=False, width_ratios=(3, 1))
    for place, (each, (left, right)) in enumerate(zip(shown, axes, strict=False)):
        colour = PALETTE[place % len(PALETTE)]
        left.plot(each.distance, each.bands, color=colour, linewidth=1.1)
        _draw_points(left, each)
        left.set_title(each.name, loc="left", fontsize=10, color=INK)
        left.set_ylabel("frequency (THz)", color=INK)
        right.fill_betweenx(each.frequency, each.density, color=colour, alpha=0.3, linewidth=0)
        right.plot(each.density, each.frequency, color=colour, linewidth=1.1)
        right.set_xlim(left=0)
        for axis in (left, right):
            open_frame(axis)
            axis.axhline(0, color=INK, linewidth=0.8)
        right.set_xlabel("states per THz" if place == len(shown) - 1 else "", color=INK)
    figure.savefig(path)


def _draw_points(axes: Axes, each: Phonons) -> None:
    for place, _ in each.ticks:
        axes.axvline(place, color=FAINT, linewidth=0.8)
    labels = [label.replace("G", "Γ") for _, label in each.ticks]
    axes.set_xticks([place for place, _ in each.ticks], labels)
    axes.set_xlim(each.distance[0], each.distance[-1])


def main(words: Sequence[str] | None = None) -> int:
    """Relax, displace, evaluate, print, write, draw."""
    args = _arguments(words)
    potential, crystals = begin(args)
    start, notes = relaxed(potential, [primitive(crystal) for crystal in crystals], args.fmax)
    found = phonons(
        potential,
        start,
        height=args.height,
        displacement=args.displacement,
        temperatures=args.temperatures,
    )
    draw(found, args.out / "phonons.png")
    return finish(args, "phonons", found, report(found), notes)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, CRYSTALS, "runs/phonons", dtype="float64")
    parser.add_argument("--height", type=float, default=10.0, help="of supercells, Å [10]")
    parser.add_argument("--displacement", type=float, default=0.01, help="Å [0.01]")
    parser.add_argument("--fmax", type=float, default=1e-4, help="of the start, eV/Å [0.0001]")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[100.0, 300.0, 1000.0], help="K"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    leave(main)
