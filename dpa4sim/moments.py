"""Magnetic moments on their way to a model: who needs them, and what is wrong with them.

A model says by `magnetic_elements`, atomic numbers, whose moments it looks at; without that
attribute it has no spins and moments are left behind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpa4sim.batch import Batch, symbol
from dpa4sim.config import DPA4Config
from dpa4sim.errors import DataError


def magnetic_elements(model: Any) -> frozenset[int]:
    """Atomic numbers of the elements whose moments a model looks at; none without spins."""
    return frozenset(getattr(model, "magnetic_elements", None) or ())


def magnetic_numbers(config: DPA4Config | None) -> frozenset[int]:
    """The same of a network's config; None where there is no network."""
    if config is None:
        return frozenset()
    pairs = zip(config.species, config.atomic_numbers, strict=True)
    return frozenset(number for name, number in pairs if name in config.spin.magnetic)


def is_magnetic(batch: Batch, elements: Collection[int]) -> Bool[Tensor, " atom"]:
    """Which atoms are of some elements."""
    chosen = batch.atomic_numbers.new_tensor(sorted(elements))
    return (batch.atomic_numbers[:, None] == chosen).any(1)


def moments_complaint(system: Batch, elements: Collection[int]) -> str | None:
    """What is wrong with the moments of a one-system Batch, as half a sentence.

    Args:
        elements: `magnetic_elements` of the model; of other atoms any moment will do.
    """
    magnetic = is_magnetic(system, elements)
    if not bool(magnetic.any()):
        return None
    given = system.magmoms
    if given is None or bool(given[magnetic].isnan().all()):
        names = ", ".join(symbol(z) for z in sorted(set(system.atomic_numbers[magnetic].tolist())))
        return (
            f"it has no magnetic moments, and the model has spins on {names}; set them by "
            "atoms.set_initial_magnetic_moments, a vector or a number along z for each atom"
        )
    sick = magnetic & ~given.isfinite().all(1)
    if bool(sick.any()):
        return f"the magnetic moment of atom {int(sick.nonzero()[0])} is not finite"
    return None


def with_moments(system: Batch, elements: Collection[int]) -> Batch:
    """The system as a model takes it: zero where it does not look, nothing if it never looks.

    A system without one of the elements needs no moments; what was given for it is kept.
    """
    if not elements:
        return replace(system, magmoms=None)
    given, unknown = system.magmoms, torch.full_like(system.positions, torch.nan)
    moments = unknown if given is None else given.double()
    ignored = ~is_magnetic(system, elements)[:, None] & ~moments.isfinite()
    return replace(system, magmoms=moments.masked_fill(ignored, 0.0))


def moments_of(batch: Batch) -> Float[Tensor, "atom 3"]:
    """The moments in Bohr magnetons, for a model that needs them.

    Raises:
        DataError: the batch carries none.
    """
    if batch.magmoms is None:
        raise DataError(
            "This model has spins, and the structures carry no magnetic moments. Set "
            "atoms.set_initial_magnetic_moments on each, or Batch.magmoms."
        )
    return batch.magmoms.detach()
