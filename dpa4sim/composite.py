"""Models made of models: what they share, and the sum of several energies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from dpa4sim.batch import Batch
from dpa4sim.errors import ModelError
from dpa4sim.moments import magnetic_elements
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.potential import EnergyModel, Prediction, checked_batch


class Composite:
    """Several models that are asked together.

    Args:
        parts: on one device.

    Raises:
        ModelError: there is none, or they are on different devices.
    """

    def __init__(self, parts: Sequence[EnergyModel]) -> None:
        if not parts:
            raise ModelError("Nothing is made of no models. Give at least one.")
        if not all(getattr(part, "conservative", True) for part in parts):
            raise ModelError(
                "A model of direct forces cannot be part of a sum or an ensemble: its forces are "
                "not the gradient of its energy. Use it by itself."
            )
        devices = sorted({str(torch.device(part.device)) for part in parts})
        if len(devices) > 1:
            raise ModelError(
                f"The models are on different devices: {', '.join(devices)}. Make all of them on "
                f"one, such as dpa4sim.d3('pbe', device='{devices[-1]}')."
            )
        self.parts = tuple(parts)
        self.device = torch.device(parts[0].device)

    @property
    def cutoff(self) -> float:
        """The shortest of the parts', in Å: that of the edges which a prediction carries."""
        return min(part.cutoff for part in self.parts)

    @property
    def known_elements(self) -> frozenset[int] | None:
        """Atomic numbers that all parts were made for; None when no part says."""
        given = [getattr(part, "known_elements", None) for part in self.parts]
        known = [elements for elements in given if elements is not None]
        return frozenset.intersection(*known) if known else None

    @property
    def magnetic_elements(self) -> frozenset[int]:
        """Atomic numbers of the elements whose moments a part looks at."""
        return frozenset().union(*(magnetic_elements(part) for part in self.parts))

    @property
    def config(self) -> Any:
        """Of the first part that is a network: its charge and spin; None when none is."""
        return next((part.config for part in self.parts if hasattr(part, "config")), None)

    @property
    def has_spread(self) -> bool:
        """Whether predictions say how much members of an ensemble differ."""
        return any(getattr(part, "has_spread", False) for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """What tells two of a kind apart."""
        return f"{type(self).__name__}({', '.join(map(model_fingerprint, self.parts))})"

    def __add__(self, other: EnergyModel) -> Sum:
        """The sum of both energies."""
        return Sum([self, other])

    def __call__(self, batch: Batch) -> Prediction:
        """Energy, forces and stress of a trusted batch on this device; see `evaluate`."""
        raise NotImplementedError

    def evaluate(self, structures: Any) -> Prediction:
        """Energy, forces, stress and atomic energies of structures, in one batch.

        Args:
            structures: as of `Potential.evaluate`.

        Raises:
            DataError: a structure cannot be used; the message says which and why.
        """
        from dpa4sim.adapters.files import structures_to_batches

        systems = structures_to_batches(structures)
        batch = checked_batch(systems, self.config, self.known_elements)
        return replace(self(batch.to(self.device)), edges=None)


class Sum(Composite):
    """E = sum of the energies of its terms, such as a potential and a dispersion correction.

    Sums among the terms are taken apart.  What an ensemble among them says about its spread is
    that of the sum, for the other terms have none.

    Raises:
        ModelError: no term, or terms on different devices.
    """

    def __init__(self, terms: Sequence[EnergyModel]) -> None:
        super().__init__(
            [each for term in terms for each in (term.parts if isinstance(term, Sum) else [term])]
        )

    def limited(self, max_force_spread: float) -> Sum:
        """The same sum with a limit of the force spread, see `Ensemble.limited`."""
        terms: list[Any] = list(self.parts)
        return Sum(
            [
                term.limited(max_force_spread) if getattr(term, "has_spread", False) else term
                for term in terms
            ]
        )

    def __call__(self, batch: Batch) -> Prediction:
        """Energy, forces and stress of a trusted batch on this device; see `evaluate`."""
        said = [part(batch) for part in self.parts]
        nearest = min(range(len(said)), key=lambda place: self.parts[place].cutoff)
        by_moment = [each.magnetic_forces for each in said if each.magnetic_forces is not None]
        spreads = next((each for each in said if each.force_spread is not None), said[0])
        return Prediction(
            energy=sum_in_order([each.energy for each in said]),
            forces=sum_in_order([each.forces for each in said]),
            stress=sum_in_order([each.stress for each in said]),
            atomic_energies=sum_in_order([each.atomic_energies for each in said]),
            edges=said[nearest].edges,
            force_spread=spreads.force_spread,
            energy_spread=spreads.energy_spread,
            uncertain=spreads.uncertain,
            magnetic_forces=sum_in_order(by_moment) if by_moment else None,
        )


def sum_in_order(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after another: the same bits whatever the batch."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
