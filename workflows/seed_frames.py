"""Frames away from equilibrium for the training set: strained, hot, defective, squeezed cells.

Pure functions of a structure and a random generator; `seed_labels.py` calls `perturbed_frames` on
each relaxed compound and `stretched_frames` on each element.
"""

from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from ase.units import kB

MAX_ATOMS = 24  # atoms of a perturbed frame; larger compounds are used as they are
LARGE = 16  # atoms from which a compound gives half as many frames
MIN_CONTACT = 0.55  # shortest distance of a frame, in sums of covalent radii
FARTHEST = 5.4  # Å; CHGNet sees no neighbour beyond 6
STIFFNESS = 3.0  # eV/Å^2 of a pair at the sum of its covalent radii
SOFTEST = 0.4  # eV/Å^2; softer modes would carry atoms away
VACUUM = 8.0  # Å


def strain(atoms: Atoms, deformation: np.ndarray) -> Atoms:
    """Deform cell and atoms by (1 + deformation), a (3, 3) matrix without unit."""
    strained = atoms.copy()
    strained.set_cell(atoms.cell[:] @ (np.eye(3) + deformation), scale_atoms=True)
    return strained


def scale_volume(atoms: Atoms, factor: float) -> Atoms:
    """Multiply the volume."""
    return strain(atoms, np.eye(3) * (np.cbrt(factor) - 1.0))


def random_strain(atoms: Atoms, rng: np.random.Generator, largest: float) -> Atoms:
    """A symmetric random strain with components up to `largest` (no unit)."""
    components = rng.uniform(-largest, largest, size=(3, 3))
    return strain(atoms, (components + components.T) / 2)


def rattle(atoms: Atoms, rng: np.random.Generator, sigma: float) -> Atoms:
    """Gaussian displacements, `sigma` Å per component."""
    moved = atoms.copy()
    moved.positions += rng.normal(scale=sigma, size=moved.positions.shape)
    return moved


def random_supercell(atoms: Atoms, rng: np.random.Generator, at_least: int) -> Atoms:
    """Repeat along random, preferably short directions to `at_least` atoms, below `MAX_ATOMS`."""
    cell = atoms.copy()
    while len(cell) < at_least and 2 * len(cell) <= MAX_ATOMS:
        lengths = cell.cell.lengths()
        weight = lengths**-3.0
        repeats = [1, 1, 1]
        repeats[rng.choice(3, p=weight / weight.sum())] = 2
        cell = cell.repeat(repeats)
    return cell


def spring_matrix(atoms: Atoms) -> np.ndarray:
    """Second derivatives (eV/Å^2) of springs that fall off with distance, (3 atom, 3 atom).

        k = STIFFNESS exp(-8 (r / (R_i + R_j) - 1)), a fifth of it across the bond

    Rough, but it tells a stiff bond from a soft contact, which uniform rattling does not.
    """
    first, second, distance, vector = neighbor_list("ijdD", atoms, 5.0)
    radii = covalent_radii[atoms.numbers]
    k = STIFFNESS * np.exp(-8 * (distance / (radii[first] + radii[second]) - 1)).clip(max=3.0)
    along = vector / distance[:, None]
    block = k[:, None, None] * (0.8 * along[:, :, None] * along[:, None] + 0.2 * np.eye(3))
    matrix = np.zeros((len(atoms), len(atoms), 3, 3))
    np.add.at(matrix, (first, second), -block)
    np.add.at(matrix, (first, first), block)
    return matrix.transpose(0, 2, 1, 3).reshape(3 * len(atoms), -1)


def thermal(atoms: Atoms, rng: np.random.Generator, temperature: float) -> Atoms:
    """A harmonic snapshot: normal modes of `spring_matrix` with kT each; temperature in K."""
    stiffness, modes = np.linalg.eigh(spring_matrix(atoms))
    width = np.sqrt(kB * temperature / stiffness.clip(min=SOFTEST))
    width[stiffness < 1e-8 * stiffness[-1]] = 0.0  # the crystal as a whole stays
    moved = atoms.copy()
    moved.positions += (modes @ (width * rng.normal(size=len(width)))).reshape(-1, 3)
    return moved


def swap_species(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Exchange two atoms of different elements; an element stays what it is."""
    swapped = atoms.copy()
    first = rng.integers(len(atoms))
    others = np.flatnonzero(atoms.numbers != atoms.numbers[first])
    if len(others):
        second = rng.choice(others)
        swapped.numbers[[first, second]] = atoms.numbers[[second, first]]
    return swapped


def vacancy(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Remove an atom, unless it is the last one."""
    left = atoms.copy()
    if len(left) > 1:
        del left[int(rng.integers(len(left)))]
    return left


def slab(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Vacuum across a random pair of lattice planes."""
    cut = atoms.copy()
    cut.wrap()
    cut.center(vacuum=VACUUM / 2, axis=int(rng.integers(3)))
    return cut


def squeeze_pair(atoms: Atoms, rng: np.random.Generator, factor: float) -> Atoms:
    """Bring one nearest-neighbour pair to `factor` times its distance, centre fixed."""
    first, second, distance, vector = neighbor_list("ijdD", atoms, 5.0)
    near = np.flatnonzero((distance < 1.1 * distance.min(initial=np.inf)) & (first != second))
    squeezed = atoms.copy()
    if len(near):
        pair = rng.choice(near)
        shift = vector[pair] * (1.0 - factor) / 2
        squeezed.positions[first[pair]] += shift
        squeezed.positions[second[pair]] -= shift
    return squeezed


def shortest_contact(atoms: Atoms) -> float:
    """The shortest distance in sums of covalent radii (no unit); inf without neighbours in 6 Å."""
    first, second, distance = neighbor_list("ijd", atoms, 6.0)
    radii = covalent_radii[atoms.numbers]
    return float(np.min(distance / (radii[first] + radii[second]), initial=np.inf))


def perturbed_frames(atoms: Atoms, rng: np.random.Generator) -> list[Atoms]:
    """The frames of one relaxed compound.

    Returns:
        A strained and a hot cell (300 to 1500 K); one of antisite, vacancy and slab; and one
        squeezed or violently rattled.  Compounds of `LARGE` atoms and more give the hot one and one
        other.  `info["subset"]` says how each was made; those with a contact shorter than
        `MIN_CONTACT` are left out.
    """
    small = random_supercell(atoms, rng, 4)
    wide = random_supercell(atoms, rng, 8)
    broken = {"swap": swap_species, "vacancy": vacancy, "slab": slab}
    kinds: dict[str, Callable[[], Atoms]] = {
        "thermal": lambda: thermal(random_strain(wide, rng, 0.03), rng, rng.uniform(300, 1500)),
        "strain": lambda: rattle(random_strain(small, rng, 0.06), rng, rng.uniform(0.01, 0.08)),
        "squeeze": lambda: squeeze_pair(rattle(small, rng, 0.03), rng, rng.uniform(0.68, 0.88)),
        "violent": lambda: rattle(random_strain(small, rng, 0.06), rng, rng.uniform(0.2, 0.4)),
        **{
            kind: lambda make=make: rattle(make(wide, rng), rng, rng.uniform(0.02, 0.1))
            for kind, make in broken.items()
        },
    }
    rough = str(rng.choice(["squeeze", "violent"]))
    defect = str(rng.choice(list(broken)))
    chosen = ["thermal", "strain", rough, defect]
    if len(atoms) >= LARGE:
        chosen = ["thermal", str(rng.choice(chosen[1:]))]
    return [
        marked(frame, kind)
        for kind in chosen
        if shortest_contact(frame := kinds[kind]()) > MIN_CONTACT
    ]


def stretched_frames(atoms: Atoms, rng: np.random.Generator) -> list[Atoms]:
    """Cells pulled apart towards free atoms, the nearest distance up to `FARTHEST` Å."""
    nearest = neighbor_list("d", atoms, FARTHEST).min(initial=FARTHEST)
    wanted = nearest + (FARTHEST - nearest) * np.array([0.25, 0.5, 0.75, 1.0])
    small = random_supercell(atoms, rng, 2)
    return [
        marked(rattle(scale_volume(small, (w / nearest) ** 3), rng, 0.05), "stretched")
        for w in wanted
    ]


def marked(atoms: Atoms, kind: str) -> Atoms:
    """The same frame with the name of its kind, which becomes a subset of the store."""
    atoms.info = {"subset": kind}
    return atoms
