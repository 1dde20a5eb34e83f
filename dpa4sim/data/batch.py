"""A batch of labelled structures, as training takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.batch import Batch


@dataclass(frozen=True)
class LabelledBatch:
    """Structures and their labels, NaN where a label is absent.

    Args:
        batch: the structures, positions in float64.
        energy: eV, float64.
        forces: eV/Å, float64.
        stress: eV/Å^3, float64, tension positive.
        frame: row of each system in the store.
        properties: by name, in the unit of the labels, float64.
        magnetic_forces: eV per Bohr magneton, float64; None where the store has no spins.
    """

    batch: Batch
    energy: Float[Tensor, " system"]
    forces: Float[Tensor, "atom 3"]
    stress: Float[Tensor, "system 3 3"]
    frame: Int[Tensor, " system"]
    properties: Mapping[str, Float[Tensor, "system task"]] = field(default_factory=dict)
    magnetic_forces: Float[Tensor, "atom 3"] | None = None

    def to(self, device: torch.device | str) -> LabelledBatch:
        """The same on another device."""
        return LabelledBatch(
            batch=self.batch.to(device),
            energy=self.energy.to(device),
            forces=self.forces.to(device),
            stress=self.stress.to(device),
            frame=self.frame.to(device),
            properties={name: value.to(device) for name, value in self.properties.items()},
            magnetic_forces=None
            if self.magnetic_forces is None
            else self.magnetic_forces.to(device),
        )
