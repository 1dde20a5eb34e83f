"""How relaxations ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpa4sim.batch import Batch, symbol
from dpa4sim.errors import SICK, DataError, Status
from dpa4sim.potential import Prediction


@dataclass(frozen=True)
class Relaxed:
    """How one structure ended.

    Args:
        index: its place in the input.
        status: CONVERGED, MAX_STEPS, or what went wrong.
        reason: the status as a sentence, with what is known about this structure.
        steps: moves tried.
        evaluations: evaluations of the model.
        fmax: largest |F| of an atom that may move, eV/Å.
        residual: what the criterion compares: the forces that are left and the rows of the cell
            force, eV/Å.
        stress_max: largest |component| of the stress, eV/Å^3; NaN for a system without a cell.
        energy: eV, without the work against a pressure.
        volume_change: V / V_start - 1; NaN for a system without a cell.
        batch: the last sound geometry, on the CPU.
        prediction: what the model said there; None when it was never asked.
        magnetic_fmax: largest magnetic force, eV per Bohr magneton; NaN of a model without spins.
    """

    index: int
    status: Status
    reason: str
    steps: int
    evaluations: int
    fmax: float
    residual: float
    stress_max: float
    energy: float
    volume_change: float
    batch: Batch
    prediction: Prediction | None
    magnetic_fmax: float = math.nan


@dataclass(frozen=True)
class RelaxResult:
    """One entry per structure in every list, in the order of the input.  Units: see Relaxed."""

    status: list[Status]
    reasons: list[str]
    steps: list[int]
    evaluations: list[int]
    fmax: list[float]
    residual: list[float]
    stress_max: list[float]
    energy: list[float]
    volume_change: list[float]
    batches: list[Batch]
    predictions: list[Prediction | None]
    magnetic_fmax: list[float]

    def __len__(self) -> int:
        return len(self.status)

    @classmethod
    def collect(cls, records: Sequence[Relaxed]) -> RelaxResult:
        """Lists from records."""
        return cls(
            status=[r.status for r in records],
            reasons=[r.reason for r in records],
            steps=[r.steps for r in records],
            evaluations=[r.evaluations for r in records],
            fmax=[r.fmax for r in records],
            residual=[r.residual for r in records],
            stress_max=[r.stress_max for r in records],
            energy=[r.energy for r in records],
            volume_change=[r.volume_change for r in records],
            batches=[r.batch for r in records],
            predictions=[r.prediction for r in records],
            magnetic_fmax=[r.magnetic_fmax for r in records],
        )

    def to_atoms(self) -> list[Any]:
        """The final structures as ase.Atoms, with their energy, forces and stress."""
        from dpa4sim.adapters.ase import to_atoms

        pairs = zip(self.batches, self.predictions, strict=True)
        return [to_atoms(batch, prediction)[0] for batch, prediction in pairs]


def raise_if(strict: bool, record: Relaxed) -> None:
    """Raise about a structure that went wrong, if that is what `strict` asks for.

    Raises:
        DataError: it went wrong.
    """
    if strict and record.status in SICK:
        numbers = Counter(record.batch.atomic_numbers.tolist())
        formula = "".join(symbol(z) + (str(n) if n > 1 else "") for z, n in numbers.items())
        raise DataError(
            f"structure {record.index} ({formula}, {numbers.total()} atoms): {record.reason}. "
            "Without strict=True it is marked and the others go on."
        )
