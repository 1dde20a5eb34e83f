"""The space group of a structure: refine it, and what it leaves free.  On the host, once.

An operation of the group carries the fractional coordinates x (a column) to  W x + w;  the
Cartesian rotation is  R = A^T W A^-T  for a cell A whose rows are the lattice vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.errors import DataError
from dpa4sim.relax.freedom import Orbits, from_strain, to_strain

EXACT_A = 1e-5
"""After the refinement every operation maps the structure onto itself this well."""


@dataclass(frozen=True)
class Symmetry:
    """A space group as one structure has it.

    Args:
        number: of the space group in the international tables.
        rotations: Cartesian, one per operation; pure translations of a larger cell included.
        orbits: which atoms they carry onto each other.
    """

    number: int
    rotations: Float[Tensor, "operation 3 3"]
    orbits: Orbits


def refine(system: Batch, symprec: float) -> tuple[Batch, Symmetry]:
    """Move atoms and cell onto the symmetry that they nearly have, without turning them.

    Args:
        system: one system, periodic in three dimensions.
        symprec: how far atoms may be from their ideal places, Å.

    Raises:
        DataError: not periodic in three dimensions, or no group is found at this tolerance.
    """
    if not bool(system.pbc.all()):
        raise DataError(
            f"its symmetry cannot be kept: it is periodic along {int(system.pbc.sum())} of 3 "
            "lattice vectors, and space groups need three. Set fix_symmetry=False for it."
        )
    from ase import Atoms
    from ase.spacegroup.symmetrize import refine_symmetry

    cell, numbers = system.cell[0].double().numpy(), system.atomic_numbers.numpy()
    atoms = Atoms(numbers, system.positions.double().numpy(), cell=cell, pbc=True)
    failure = DataError(
        f"no space group is found within {symprec:g} Å that the whole structure follows. "
        "Give fix_symmetry another tolerance in Å, or set it to False for this structure."
    )
    try:
        refine_symmetry(atoms, symprec)
        found = _group(atoms.positions, atoms.cell.array, numbers, failure)
    except (AttributeError, TypeError, ValueError, np.linalg.LinAlgError) as error:
        raise failure from error
    positions = torch.tensor(atoms.positions)
    return system.with_geometry(positions, torch.tensor(atoms.cell.array)[None]), found


def invariant_strains(
    rotations: Float[Tensor, "operation 3 3"],
) -> Float[Tensor, "strain strain"]:
    """Projector on the strains that every rotation leaves alone:  mean of  eps -> R eps R^T."""
    basis = to_strain(torch.eye(6, dtype=torch.float64))
    turned = torch.einsum("oij,kjl,oml->okim", rotations, basis, rotations).mean(0)
    projector = from_strain(turned)
    values, vectors = torch.linalg.eigh(0.5 * (projector + projector.T))
    kept = vectors[:, values > 0.5]
    return kept @ kept.T


def _group(
    positions: np.ndarray, cell: np.ndarray, numbers: np.ndarray, failure: DataError
) -> Symmetry:
    """The group of an exactly symmetric structure, and how it permutes the atoms."""
    import spglib

    inverse = np.linalg.inv(cell)
    fractions = positions @ inverse
    dataset = spglib.get_symmetry_dataset(
        (cell.tolist(), fractions.tolist(), numbers.tolist()), symprec=EXACT_A
    )
    if dataset is None:
        raise failure
    turns = np.einsum("ji,ojk,lk->oil", cell, dataset.rotations, inverse)
    left, _, right = np.linalg.svd(turns)
    orbits = _orbits(
        fractions, numbers, cell, dataset.rotations, dataset.translations, left @ right
    )
    if orbits is None:
        raise failure
    return Symmetry(int(dataset.number), torch.tensor(left @ right), orbits)


def _orbits(
    fractions: np.ndarray,
    numbers: np.ndarray,
    cell: np.ndarray,
    rotations: np.ndarray,
    translations: np.ndarray,
    turns: np.ndarray,
) -> Orbits | None:
    """Orbits of the atoms; None when an operation carries an atom to where there is no such atom.

    Args:
        rotations: W, integer.
        translations: w.
        turns: R, Cartesian.
    """
    n_atoms = len(fractions)
    inside = fractions % 1.0 % 1.0  # a second time: -1e-17 % 1.0 is 1.0
    tree = cKDTree(inside, boxsize=1.0)
    member_of, carry = np.full(n_atoms, -1), np.zeros((n_atoms, 3, 3))
    order: list[int] = []
    length: list[int] = []
    for first in range(n_atoms):
        if member_of[first] >= 0:
            continue
        images = (rotations @ fractions[first] + translations) % 1.0 % 1.0
        target = tree.query(images)[1]
        off = images - inside[target]
        off = np.linalg.norm((off - np.round(off)) @ cell, axis=1)
        members, chosen = np.unique(target, return_index=True)
        fits = (off < 10 * EXACT_A).all() and (numbers[members] == numbers[first]).all()
        if not fits or (member_of[members] >= 0).any():
            return None
        member_of[members] = len(length)
        carry[members] = turns[chosen] @ _site_projector(turns[target == first])
        order.extend(members.tolist())
        length.append(len(members))
    lengths = np.zeros(n_atoms, dtype=np.int64)
    lengths[: len(length)] = length
    return Orbits(
        order=torch.tensor(order),
        length=torch.tensor(lengths),
        member_of=torch.tensor(member_of),
        carry=torch.tensor(carry),
    )


def _site_projector(turns: np.ndarray) -> np.ndarray:
    """Projector on the vectors that the rotations of a site leave alone."""
    mean = turns.mean(0)
    values, vectors = np.linalg.eigh(0.5 * (mean + mean.T))
    kept = vectors[:, values > 0.5]
    return kept @ kept.T
