"""A hundred starting structures for relaxations: fixed, seeded, unlike each other.

    crystal    62  real crystals, volume off by up to 15 %, sheared, rattled by 0.1 to 0.2 Å
    pressure   12  the same under 5 to 20 GPa
    large       6  supercells of 100 to 130 atoms, volume off by up to 10 %
    slab       12  rattled, cell fixed
    molecule    8  molecules and clusters, rattled, cell fixed

Every element is one that both the `seed` model and CHGNet know.  No structure is chosen or left
out for what any model or optimiser makes of it; what is refused is a contact shorter than
`CLOSEST` times the sum of covalent radii.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import ase.build
import ase.io
import numpy as np
from ase import Atoms
from ase.cluster import Icosahedron
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

KINDS = {"crystal": 62, "pressure": 12, "large": 6, "slab": 12, "molecule": 8}
PER_PROTOTYPE = 4
SMALL_UP_TO = 24
LARGE = (100, 130)
CLOSEST = 0.62
VACUUM_A = 10.0

_FCC = {"Al": 4.05, "Cu": 3.61, "Ag": 4.09, "Pd": 3.89, "Pt": 3.92, "Ni": 3.52}
_ROCKSALT = {"MgO": 4.21, "NaCl": 5.64, "LiF": 4.03}


@dataclass(frozen=True)
class Start:
    """A structure to be relaxed.

    Args:
        kind: one of `KINDS`.
        name: formula and number within the kind.
        atoms: with cell and pbc; a molecule has a cell that serves as its box.
        moves_cell: whether the cell relaxes.
        pressure_gpa: external pressure.
    """

    kind: str
    name: str
    atoms: Atoms
    moves_cell: bool = True
    pressure_gpa: float = 0.0


def starts(seed: int = 20) -> list[Start]:
    """The set; the same for the same seed."""
    rng = np.random.default_rng(seed)
    makers = {
        "crystal": _crystals(rng),
        "pressure": _pressed(rng),
        "large": _large(rng),
        "slab": _slabs(rng),
        "molecule": _molecules(rng),
    }
    found: list[Start] = []
    for kind, whole in KINDS.items():
        found += [start for start, _ in zip(makers[kind], range(whole), strict=False)]
    return found


def perturbed(
    atoms: Atoms, rng: np.random.Generator, volume: float, rattle: tuple[float, float]
) -> Atoms:
    """Volume off by up to the share `volume`, sheared by some per cent, rattled.

    Args:
        rattle: smallest and largest standard deviation of a displacement, Å per component.
    """
    for _ in range(100):
        strain = 0.04 * rng.normal(size=(3, 3))
        strain = 0.5 * (strain + strain.T)
        strain -= np.eye(3) * np.trace(strain) / 3
        stretch = (np.eye(3) + strain) / np.linalg.det(np.eye(3) + strain) ** (1 / 3)
        stretch *= rng.uniform(1 - volume, 1 + volume) ** (1 / 3)
        trial = atoms.copy()
        trial.set_cell(trial.cell.array @ stretch, scale_atoms=True)
        trial.positions += rng.uniform(*rattle) * rng.normal(size=trial.positions.shape)
        if _apart(trial):
            return trial
    raise RuntimeError(f"{atoms.get_chemical_formula()} comes too close in every trial.")


def _apart(atoms: Atoms) -> bool:
    i, j, distance = neighbor_list("ijd", atoms, 3.0)
    radii = covalent_radii[atoms.numbers]
    return bool((distance > CLOSEST * (radii[i] + radii[j])).all())


def library(
    rng: np.random.Generator, largest: int, per_prototype: int = PER_PROTOTYPE
) -> Iterator[Atoms]:
    """The real crystals of up to `largest` atoms in random order.

    Args:
        per_prototype: how many of one prototype at most.
    """
    path = Path(__file__).parents[1] / "dpa4sim" / "crystals" / "experimental.extxyz"
    found = [atoms for atoms in ase.io.read(path, ":") if len(atoms) <= largest]
    taken: Counter[str] = Counter()
    for index in rng.permutation(len(found)):
        atoms = found[index]
        taken[atoms.info["prototype"]] += 1
        if taken[atoms.info["prototype"]] <= per_prototype:
            yield Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def _named(kind: str, number: int, atoms: Atoms, **rest: float) -> Start:
    return Start(kind, f"{atoms.get_chemical_formula()}-{kind}-{number}", atoms, **rest)


def _crystals(rng: np.random.Generator) -> Iterator[Start]:
    for number, atoms in enumerate(library(rng, SMALL_UP_TO)):
        yield _named("crystal", number, perturbed(atoms, rng, 0.15, (0.1, 0.2)))


def _pressed(rng: np.random.Generator) -> Iterator[Start]:
    for number, atoms in enumerate(library(rng, SMALL_UP_TO)):
        trial = perturbed(atoms, rng, 0.15, (0.1, 0.2))
        yield _named("pressure", number, trial, pressure_gpa=float(rng.uniform(5, 20)))


def _large(rng: np.random.Generator) -> Iterator[Start]:
    for number, atoms in enumerate(library(rng, 60)):
        repeats = _roundest(atoms)
        if repeats is not None:
            cell = atoms.repeat(repeats)
            yield _named("large", number, perturbed(cell, rng, 0.10, (0.1, 0.15)))


def _roundest(atoms: Atoms) -> tuple[int, int, int] | None:
    """Repeats to between `LARGE` atoms with the least unlike edges; None when there are none."""
    fitting = [
        repeats
        for repeats in product(range(1, 7), repeat=3)
        if LARGE[0] <= len(atoms) * np.prod(repeats) <= LARGE[1]
    ]
    lengths = atoms.cell.lengths()
    return min(fitting, key=lambda r: (np.ptp(np.log(lengths * np.array(r))), r), default=None)


def _slabs(rng: np.random.Generator) -> Iterator[Start]:
    perfect = [ase.build.fcc111(metal, (2, 2, 4), a=a) for metal, a in _FCC.items()]
    for salt, a in _ROCKSALT.items():
        perfect.append(
            ase.build.surface(ase.build.bulk(salt, "rocksalt", a=a, cubic=True), (1, 0, 0), 2)
        )
    perfect.append(ase.build.surface(ase.build.bulk("Si", cubic=True), (1, 1, 1), 2))
    perfect.append(
        ase.build.surface(ase.build.bulk("GaAs", "zincblende", a=5.65, cubic=True), (1, 1, 0), 3)
    )
    perfect.append(ase.build.bcc110("W", (2, 2, 4), a=3.165))
    for number, atoms in enumerate(perfect):
        slab = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell)
        slab.center(vacuum=VACUUM_A, axis=2)
        slab.pbc = (True, True, False)
        slab.positions += 0.1 * rng.normal(size=slab.positions.shape)
        yield _named("slab", number, slab, moves_cell=False)


def _molecules(rng: np.random.Generator) -> Iterator[Start]:
    corners = np.array(list(product((0, 1), repeat=3)), float)
    parity = corners.sum(1) % 2 == 0
    ring = np.array([[2.35 * np.cos(t), 2.35 * np.sin(t), 0] for t in np.arange(8) * np.pi / 4])
    ring[:, 2] = 0.5 * (-1.0) ** np.arange(8)
    perfect = [
        ase.build.molecule("C60"),
        _tetrahedron("P", 1.36),
        Atoms("S8", ring),
        _tetrahedron("Cl", 1.77, "C"),
        _tetrahedron("F", 1.56, "Si"),
        Atoms(np.where(parity, 11, 17), 2.6 * corners),
        Icosahedron("Cu", 2),
        ase.build.bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat((1, 1, 2)),
    ]
    for number, atoms in enumerate(perfect):
        molecule = Atoms(atoms.numbers, atoms.positions)
        molecule.center(vacuum=VACUUM_A)
        molecule.positions += 0.1 * rng.normal(size=molecule.positions.shape)
        yield _named("molecule", number, molecule, moves_cell=False)


def _tetrahedron(symbol: str, radius: float, center: str | None = None) -> Atoms:
    """Four atoms at `radius` Å from the middle, where there may be another."""
    places = radius / np.sqrt(3) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    atoms = Atoms(f"{symbol}4", places)
    return atoms if center is None else Atoms(center, [[0, 0, 0]]) + atoms
