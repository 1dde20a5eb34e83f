"""Rows of results without a campaign: structures with energies that are given or from EMT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Composition
from pymatgen.entries.computed_entries import ComputedEntry
from scipy.optimize import minimize_scalar

from dpa4sim.screen.table import geometry, to_table

RADIUS_A = {"Al": 1.43, "Cu": 1.28, "Ag": 1.44, "Au": 1.44, "Ni": 1.25, "Pd": 1.37, "Pt": 1.39}
"""Half the distance of neighbours in the metal, for a first guess of cells."""

MODEL = "0123abcd"


def row(number: int, atoms: Atoms, energy: float | None, **others: Any) -> dict[str, Any]:
    """A result that converged, unless `others` says something else."""
    composition = Composition(atoms.get_chemical_formula())
    fixed = {
        "id": number,
        "name": f"c{number}",
        "source": f"made#{number}",
        "formula": composition.reduced_formula,
        "chemical_system": composition.chemical_system,
        "n_atoms": len(atoms),
        "status": "converged",
        "reason": "",
        "flags": [],
        "energy": energy,
        "fmax": 0.01,
        "max_stress": 1e-4,
        "steps": 7 + number % 5,
        "space_group_start": 225,
        "space_group": 225,
    }
    return {**fixed, **geometry(atoms), **others}


def results(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The campaign's table of these rows."""
    return to_table(rows)


def plain(formula: str, energy: float, name: str, **parameters: Any) -> ComputedEntry:
    """A reference of the same model, unless `parameters` says something else."""
    parameters = parameters or {"model_hash": MODEL}
    return ComputedEntry(formula, energy, entry_id=name, parameters=parameters)


def alloys(symbols: Sequence[str]) -> Iterator[tuple[str, Atoms]]:
    """Metals and alloys of two and three of them: fcc, bcc, L1_2, L1_0, B2, and a ternary one."""
    for symbol in symbols:
        for kind in ("fcc", "bcc", "sc"):
            scale = {"fcc": 2 * 2**0.5, "bcc": 4 / 3**0.5, "sc": 2.0}[kind]
            yield f"{symbol}-{kind}", bulk(symbol, kind, a=scale * RADIUS_A[symbol])
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    for one, two in combinations(symbols, 2):
        middle = (RADIUS_A[one] + RADIUS_A[two]) / 2
        for minor, major in ((one, two), (two, one)):
            a = 2 * 2**0.5 * (RADIUS_A[minor] + 3 * RADIUS_A[major]) / 4
            yield (
                f"{minor}{major}3-L12",
                Atoms([minor, *[major] * 3], cell=[a] * 3, scaled_positions=corners, pbc=True),
            )
        a = 2 * 2**0.5 * middle
        layers = [one, two, two, one]
        yield (
            f"{one}{two}-L10",
            Atoms(layers, cell=[a] * 3, scaled_positions=corners, pbc=True),
        )
        a, ends = 4 / 3**0.5 * middle, [[0] * 3, [0.5] * 3]
        yield f"{one}{two}-B2", Atoms([one, two], cell=[a] * 3, scaled_positions=ends, pbc=True)
    for one, two, three in permutations(symbols, 3):
        a = 2 * 2**0.5 * (2 * RADIUS_A[one] + RADIUS_A[two] + RADIUS_A[three]) / 4
        kinds = [one, one, two, three]
        name = f"{one}2{two}{three}"
        yield name, Atoms(kinds, cell=[a] * 3, scaled_positions=corners, pbc=True)


def at_best_volume(atoms: Atoms) -> tuple[Atoms, float]:
    """Scaled to the lowest energy by EMT, and that energy in eV."""

    def scaled(scale: float) -> Atoms:
        copy = atoms.copy()
        copy.set_cell(atoms.cell * scale, scale_atoms=True)
        copy.calc = EMT()
        return copy

    def energy(scale: float) -> float:
        return float(scaled(scale).get_potential_energy())

    best = scaled(minimize_scalar(energy, bounds=(0.85, 1.2), method="bounded").x)
    found = float(best.get_potential_energy())
    best.calc = None
    return best, found


def write_entries(path: Path, entries: Sequence[Any]) -> Path:
    """As pymatgen writes them."""
    from monty.serialization import dumpfn

    dumpfn(list(entries), str(path))
    return path
