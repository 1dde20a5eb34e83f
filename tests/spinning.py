"""Structures with magnetic moments, labelled by an exact model of both."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from labelled import crystal, label

STIFFNESS, TARGET = 0.1, 1.2
"""eV per Bohr magneton to the fourth, and the moment's length at rest."""


def spinning(n: int, seed: int = 0) -> list[Atoms]:
    """Crystals with moments m, E = E_LJ + sum k (m^2 - t^2)^2, and their magnetic forces."""
    rng, frames = np.random.default_rng(seed), []
    for k in range(n):
        atoms = label(crystal(seed + k))
        frames.append(with_moments(atoms, 0.7 * rng.normal(size=(4, 3))))
    return frames


def with_moments(atoms: Atoms, moments: np.ndarray) -> Atoms:
    excess = (moments**2).sum(1) - TARGET**2
    atoms.calc.results["energy"] += STIFFNESS * (excess**2).sum()
    atoms.arrays["magmoms"] = moments
    atoms.arrays["magnetic_forces"] = -4 * STIFFNESS * excess[:, None] * moments
    return atoms


def path_of_moments(n: int, factor: float = 1.0) -> list[Atoms]:
    """One crystal whose moments wander; the magnetic forces times a factor."""
    rng, moments, frames = np.random.default_rng(2), np.ones((4, 3)), []
    for _ in range(n):
        moments = moments + 0.03 * rng.normal(size=(4, 3))
        atoms = with_moments(label(crystal(0)), moments)
        atoms.arrays["magnetic_forces"] *= factor
        frames.append(atoms)
    return frames
