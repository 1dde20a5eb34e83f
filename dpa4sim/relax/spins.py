"""Magnetic moments that relax with the positions: coordinates of FIRE beside atoms and cell.

The coordinate of a moment is m / `MOMENT_PER_A`, so that it counts like a position.  Moments do not
turn or stretch with the cell.  Atoms that the model takes as not magnetic keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.batch import Batch, dot, max_over_atoms, sum_over_atoms
from dpa4sim.errors import ConfigError
from dpa4sim.moments import magnetic_elements
from dpa4sim.potential import EnergyModel, Prediction

MOMENT_PER_A = 3.0
"""Bohr magnetons that count as one Å of a step: virtual atoms stand off by about 1/3 Å of each."""


@dataclass(frozen=True)
class Spins:
    """Moments on their way down.

    Args:
        force: -dE/d(coordinate), eV/Å.
        velocity: of the coordinates.
    """

    force: Float[Tensor, "atom 3"]
    velocity: Float[Tensor, "atom 3"]


def at_rest(prediction: Prediction) -> Spins:
    """Moments that do not move yet."""
    force = spin_force(prediction)
    return Spins(force, torch.zeros_like(force))


def spin_force(prediction: Prediction) -> Float[Tensor, "atom 3"]:
    """Minus the derivative of the energy by the coordinates of the moments, eV/Å."""
    if prediction.magnetic_forces is None:
        raise ConfigError("The model returned no magnetic forces, and moments=True needs them.")
    return MOMENT_PER_A * prediction.magnetic_forces


def moved(batch: Batch, step: Float[Tensor, "atom 3"]) -> Batch:
    """The batch with its moments elsewhere.

    Args:
        step: of the coordinates, Å.
    """
    start = torch.zeros_like(step) if batch.magmoms is None else batch.magmoms
    return replace(batch, magmoms=start + MOMENT_PER_A * step)


def power(
    left: Float[Tensor, "atom 3"], right: Float[Tensor, "atom 3"], batch: Batch
) -> Float[Tensor, " system"]:
    """Scalar product over the atoms of each system."""
    return sum_over_atoms(dot(left, right), batch)


def magnetic_residual(prediction: Prediction, batch: Batch) -> Float[Tensor, " system"]:
    """Largest norm of a magnetic force, eV per Bohr magneton; NaN when one is no number."""
    force = spin_force(prediction) / MOMENT_PER_A
    return max_over_atoms(dot(force, force), batch).sqrt()


def check_moments(
    model: EnergyModel, moments: bool, magnetic_fmax: float, optimizer: str, fix_symmetry: bool
) -> None:
    """Raise about moments that cannot relax.

    Raises:
        ConfigError: the model has no spins, or a setting does not go with them.
    """
    if not magnetic_fmax > 0:
        raise ConfigError(
            f"magnetic_fmax={magnetic_fmax} can never be reached. Give a positive number of eV per "
            "Bohr magneton."
        )
    if not moments:
        return
    if not magnetic_elements(model):
        raise ConfigError("moments=True needs a model with spins, and this one has none.")
    if optimizer != "fire":
        raise ConfigError(
            f"Moments do not relax by {optimizer}, whose model Hessian knows bonds only. Set "
            "optimizer='fire'."
        )
    if fix_symmetry:
        raise ConfigError(
            "fix_symmetry keeps a space group of positions, which moments may break. Leave it out, "
            "or set moments=False."
        )
