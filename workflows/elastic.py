"""Elastic constants of several crystals: every strain of every crystal in one batch.

    python workflows/elastic.py [INPUT...] [--model seed] [--clamped] [-o FOLDER]

Each crystal is relaxed, then strained along the six independent directions by several amounts,
where its atoms relax in the fixed cell.  The constants are the slopes of the second Piola-Kirchhoff
stress over the Green-Lagrange strain (pymatgen's fit), averaged over the crystal's symmetry and
turned into its standard axes (IEEE 176: those of the cube for a cubic crystal).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from jaxtyping import Float
from pymatgen.analysis.elasticity import Deformation, ElasticTensor, Strain, Stress
from pymatgen.analysis.elasticity.elastic import diff_fit
from pymatgen.io.ase import AseAtomsAdaptor
from recipe import (
    SYMMETRY_PRECISION_A,
    Crystal,
    add_arguments,
    begin,
    finish,
    leave,
    primitive,
    relaxed,
)

import dpa4sim
from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import ConfigError, Status
from dpa4sim.plots import DPI, GRID, INK, PALETTE
from dpa4sim.potential import EnergyModel
from dpa4sim.units import GPA_PER_EV_A3

CRYSTALS = "Copper Aluminium Silicon Periclase Halite Magnesium"

STEPS = (-1.0, -0.5, 0.5, 1.0)
"""Strains along each direction, as multiples of the largest.  With rest they are the five points of
a central difference, from which the stress's second to fourth order drop out."""

SHOWN = ("C11", "C33", "C12", "C13", "C44", "C66")
HEADERS = ("crystal", *SHOWN, "K", "G", "stable", "off")


@dataclass(frozen=True)
class Elasticity:
    """The elastic constants of a crystal.

    Args:
        name: of the crystal.
        n_atoms: in the cell that was computed.
        tensor_gpa: C in Voigt's notation, in the crystal's standard axes.
        asymmetry_gpa: largest change by averaging over the symmetry: what the numbers are good for.
        k_voigt: bulk modulus at equal strain, GPa.
        k_vrh: bulk modulus, average of Voigt's and Reuss', GPa.
        g_vrh: shear modulus, the same average, GPa.
        softest_gpa: smallest eigenvalue of C; the crystal is stable if it is positive (Born).
        note: why there are no constants; empty if there are.
    """

    name: str
    n_atoms: int
    tensor_gpa: Float[np.ndarray, "6 6"]
    asymmetry_gpa: float = math.nan
    k_voigt: float = math.nan
    k_vrh: float = math.nan
    g_vrh: float = math.nan
    softest_gpa: float = math.nan
    note: str = ""

    @property
    def stable(self) -> bool:
        """Does every small strain cost energy?"""
        return self.softest_gpa > 0


def elasticity(
    potential: EnergyModel,
    crystals: Sequence[Crystal],
    *,
    strain: float = 0.01,
    clamped: bool = False,
    fmax: float = 2e-5,
) -> list[Elasticity]:
    """Strain relaxed crystals, all of them in one call, and fit their constants.

    Args:
        strain: the largest.
        clamped: the atoms follow the strain and do not relax.
        fmax: eV/Å; what is left of the forces is an error of the stress, the larger beside it the
            smaller the strain.

    Raises:
        ConfigError: no usable strain.
    """
    if not 0 < strain <= 0.05:
        raise ConfigError(f"strain={strain} is not small. Give more than 0 up to 0.05.")
    strains = [Strain.from_voigt(step * strain * unit) for unit in np.eye(6) for step in STEPS]
    deformations = [each.get_deformation_matrix(shape="symmetric") for each in strains]
    strained = [deformed(each.atoms, f) for each in crystals for f in [np.eye(3), *deformations]]
    steps = 0 if clamped else 500
    result = dpa4sim.relax(
        potential, strained, fmax=fmax, cell=False, max_steps=steps, progress=True
    )
    good = {Status.CONVERGED} | ({Status.MAX_STEPS} if clamped else set())
    found, stride = [], 1 + len(strains)
    for i, crystal in enumerate(crystals):
        places = range(i * stride, (i + 1) * stride)
        lost = [result.reasons[p] for p in places if result.status[p] not in good]
        if lost:
            note = f"{len(lost)} of {stride} strains have no stress: {lost[0]}."
            empty = np.full((6, 6), math.nan)
            found.append(Elasticity(crystal.name, len(crystal.atoms), empty, note=note))
            continue
        stresses = [GPA_PER_EV_A3 * result.predictions[p].stress[0].numpy() for p in places]
        found.append(fit(crystal, strains, deformations, stresses))
    return found


def deformed(atoms: Atoms, gradient: Float[np.ndarray, "3 3"]) -> Atoms:
    """The crystal with every vector v replaced by F v."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ np.asarray(gradient).T, scale_atoms=True)
    return atoms


def fit(
    crystal: Crystal,
    strains: Sequence[Strain],
    deformations: Sequence[Deformation],
    stresses: Sequence[Float[np.ndarray, "3 3"]],
) -> Elasticity:
    """C_ij = d(second Piola-Kirchhoff stress i) / d(Green-Lagrange strain j), then symmetrised.

    Args:
        stresses: Cauchy, tension positive, GPa: at rest, then one per strain.
    """
    material = [
        Stress(stress).piola_kirchoff_2(gradient)
        for stress, gradient in zip(stresses[1:], deformations, strict=True)
    ]
    raw = ElasticTensor(diff_fit(strains, material, eq_stress=stresses[0], order=2)[0])
    structure = AseAtomsAdaptor.get_structure(crystal.atoms)
    averaged = raw.voigt_symmetrized.fit_to_structure(structure, symprec=10 * SYMMETRY_PRECISION_A)
    tensor = averaged.convert_to_ieee(structure, initial_fit=False)
    return Elasticity(
        name=crystal.name,
        n_atoms=len(crystal.atoms),
        tensor_gpa=np.array(tensor.voigt),
        asymmetry_gpa=float(np.abs(raw.voigt - averaged.voigt).max()),
        k_voigt=float(tensor.k_voigt),
        k_vrh=float(tensor.k_vrh),
        g_vrh=float(tensor.g_vrh),
        softest_gpa=softest(tensor.voigt),
    )


def softest(tensor: Float[np.ndarray, "6 6"]) -> float:
    """Smallest eigenvalue of C as a map of strains, which weigh a shear twice (Mandel's factors).

    Born's criteria of every crystal system say together that it is positive.
    """
    weights = np.sqrt([1, 1, 1, 2, 2, 2])
    return float(np.linalg.eigvalsh(tensor * np.outer(weights, weights)).min())


def young_modulus(
    tensor: Float[np.ndarray, "6 6"], directions: Float[np.ndarray, "direction 3"]
) -> Float[np.ndarray, " direction"]:
    """1 / E(n) = n n : S : n n, for unit vectors n; in the unit of C."""
    n = directions
    pairs = [n[:, 0] ** 2, n[:, 1] ** 2, n[:, 2] ** 2]
    pairs += [n[:, 1] * n[:, 2], n[:, 0] * n[:, 2], n[:, 0] * n[:, 1]]
    voigt = np.stack(pairs, 1)
    return 1 / np.einsum("di,ij,dj->d", voigt, np.linalg.inv(tensor), voigt)


def report(found: Sequence[Elasticity]) -> str:
    """One row per crystal, in GPa."""
    rows = []
    for each in found:
        constants = [each.tensor_gpa[int(name[1]) - 1, int(name[2]) - 1] for name in SHOWN]
        numbers = [*constants, each.k_vrh, each.g_vrh]
        stable = "-" if each.note else "yes" if each.stable else "NO"
        cells = [fixed(number, 1) for number in numbers]
        rows.append([each.name, *cells, stable, fixed(each.asymmetry_gpa, 2)])
    text = "GPa; K, G: averages of Voigt and Reuss; off: what the symmetry had to correct."
    return f"{table(HEADERS, rows)}\n{text}"


def draw(found: Sequence[Elasticity], path: Path) -> None:
    """Young's modulus by direction in the plane of x3 and x1 + x2: a cube's [001], [111], [110]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 5.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(projection="polar")
    angle = np.linspace(0, 2 * np.pi, 361)
    across = np.sin(angle) / np.sqrt(2)
    directions = np.stack([across, across, np.cos(angle)], 1)
    for place, each in enumerate(each for each in found if each.stable):
        colour = PALETTE[place % len(PALETTE)]
        axes.plot(angle, young_modulus(each.tensor_gpa, directions), color=colour, label=each.name)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    diagonal = float(np.degrees(np.arccos(3**-0.5)))
    axes.set_thetagrids([0, diagonal, 90, 180, 270], ["[001]", "[111]", "[110]", "", ""])
    axes.set_rlabel_position(205)
    axes.grid(color=GRID)
    axes.tick_params(labelcolor=INK, labelsize=8.5)
    title = "Young's modulus by direction (GPa)"
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    if any(each.stable for each in found):
        axes.legend(loc="upper left", bbox_to_anchor=(1.05, 1), frameon=False, labelcolor=INK)
    figure.savefig(path)


def main(words: Sequence[str] | None = None) -> int:
    """Relax, strain, fit, print, write, draw."""
    args = _arguments(words)
    potential, crystals = begin(args)
    start, notes = relaxed(potential, [primitive(crystal) for crystal in crystals], args.fmax)
    strain = args.strain / 100
    found = []
    if start:
        found = elasticity(potential, start, strain=strain, clamped=args.clamped, fmax=args.fmax)
    draw(found, args.out / "elastic.png")
    return finish(args, "elastic", found, report(found), notes)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, CRYSTALS, "runs/elastic", dtype="float64")
    parser.add_argument("--strain", type=float, default=1.0, help="the largest, percent [1]")
    parser.add_argument("--clamped", action="store_true", help="do not relax the atoms")
    parser.add_argument("--fmax", type=float, default=2e-5, help="eV/Å [0.00002]")
    return parser.parse_args(words)


if __name__ == "__main__":
    leave(main)
