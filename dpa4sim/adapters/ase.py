"""ASE: Atoms <-> Batch, and a calculator for every ASE optimiser, filter and driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from dpa4sim.batch import Batch
from dpa4sim.complaint import complaint
from dpa4sim.errors import DataError
from dpa4sim.moments import magnetic_elements, moments_complaint, with_moments
from dpa4sim.potential import EnergyModel, Prediction

OCCUPANCY_TOLERANCE = 1e-3
"""CIF files write full occupancy as 1, 1.0, or 0.9999."""


def from_atoms(atoms: Atoms) -> Batch:
    """One system; `charge` and `spin` come from `atoms.info` when they are there.

    Initial magnetic moments come along; a number for each atom is a moment along z.

    A zero lattice vector along an open direction (a slab, a wire) is completed by ASE's
    `cell.complete()`; a molecule without any cell keeps its zeros.

    Raises:
        DataError: a site is partially occupied, or the charge or spin is no number.
    """
    _refuse_partial_occupancy(atoms)
    cell = atoms.cell
    missing = ~cell.mask()
    if atoms.pbc.any() and not (missing & atoms.pbc).any():
        cell = cell.complete()
    return Batch.single(
        torch.tensor(atoms.positions),
        torch.tensor(atoms.numbers),
        torch.tensor(cell.array),
        atoms.pbc.tolist(),
        charge=_total(atoms, "charge"),
        spin=_total(atoms, "spin"),
        magmoms=_moments(atoms),
    )


def to_atoms(
    batch: Batch, prediction: Prediction | None = None, *, templates: Sequence[Atoms] | None = None
) -> list[Atoms]:
    """One Atoms per system, with a SinglePointCalculator when a prediction is given.

    Magnetic moments become vectors in `initial_magmoms`, magnetic forces an array of that name.

    Args:
        batch: the systems.
        prediction: of this batch; a stress that is NaN (no volume) is left out.
        templates: Atoms whose info, arrays and constraints the results keep.

    Raises:
        DataError: the templates are not of these systems.
    """
    systems = batch.to("cpu").split()
    if templates is not None and len(templates) != len(systems):
        raise DataError(f"{len(templates)} templates for {len(systems)} systems. Give one each.")
    images, start = [], 0
    for index, system in enumerate(systems):
        atoms = _plain(system) if templates is None else _like(templates[index], system, index)
        stop = start + len(atoms)
        if prediction is not None:
            results = _results(prediction, index, slice(start, stop))
            by_moment = results.pop("magnetic_forces", None)
            atoms.calc = SinglePointCalculator(atoms, **results)
            if by_moment is not None:
                atoms.arrays["magnetic_forces"] = by_moment
        images.append(atoms)
        start = stop
    return images


def fixed_atoms(atoms: Atoms) -> list[int]:
    """Indices of the atoms that `FixAtoms` holds.

    Raises:
        DataError: another constraint is set, which would be lost.
    """
    from ase.constraints import FixAtoms

    held: set[int] = set()
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise DataError(
                f"the constraint {type(constraint).__name__} is not obeyed here. FixAtoms is; "
                "for a space group pass fix_symmetry=True; else remove it"
            )
        held |= set(constraint.get_indices().tolist())
    return sorted(held)


class DPA4Calculator(Calculator):
    """An ASE calculator around an EnergyModel.

    Args:
        potential: anything that turns a Batch into a Prediction, such as `dpa4sim.load(...)`.

    The stress has ASE's sign (tension positive) and Voigt order; it is not implemented for
    atoms without three independent lattice vectors.  A model with spins takes the initial magnetic
    moments as they are; ASE has no word for magnetic forces: `results["magnetic_forces"]`.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(self, potential: EnergyModel) -> None:
        super().__init__()
        self.potential = potential

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Everything at once: forces and stress come with the energy.

        Raises:
            DataError: the atoms cannot be evaluated; the message says why.
        """
        super().calculate(atoms, properties, system_changes)
        system = from_atoms(self.atoms)
        reason = complaint(system, getattr(self.potential, "known_elements", None))
        magnetic = magnetic_elements(self.potential)
        reason, system = (
            reason or moments_complaint(system, magnetic),
            with_moments(system, magnetic),
        )
        if reason is not None:
            formula = self.atoms.get_chemical_formula()
            raise DataError(f"{formula} cannot be evaluated: {reason}.")
        prediction = self.potential(system.to(self.potential.device))
        self.results = _results(prediction, 0, slice(None))
        if self.atoms.cell.rank < 3:
            self.results.pop("stress", None)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; ASE itself does not look at `atoms.info`."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is not None and not changes:
            changes = [k for k in ("charge", "spin") if self.atoms.info.get(k) != atoms.info.get(k)]
        return changes


def _results(prediction: Prediction, system: int, atoms: slice) -> dict[str, Any]:
    energy = float(prediction.energy[system])
    results = {
        "energy": energy,
        "free_energy": energy,
        "energies": prediction.atomic_energies[atoms].detach().cpu().numpy(),
        "forces": prediction.forces[atoms].detach().cpu().numpy(),
    }
    if prediction.magnetic_forces is not None:
        results["magnetic_forces"] = prediction.magnetic_forces[atoms].detach().cpu().numpy()
    stress = prediction.stress[system].detach().cpu().numpy()
    if np.isfinite(stress).all():
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
    return results


def _plain(system: Batch) -> Atoms:
    info = {
        name: float(value[0])
        for name, value in (("charge", system.charge), ("spin", system.spin))
        if value is not None
    }
    return Atoms(
        magmoms=_known_moments(system),
        numbers=system.atomic_numbers.numpy(),
        positions=system.positions.numpy(),
        cell=system.cell[0].numpy(),
        pbc=system.pbc[0].numpy(),
        info=info,
    )


def _like(template: Atoms, system: Batch, index: int) -> Atoms:
    if template.numbers.tolist() != system.atomic_numbers.tolist():
        raise DataError(
            f"Template {index} ({template.get_chemical_formula()}) does not hold the atoms of "
            f"system {index}. Give the structures that the batch was made from, in their order."
        )
    atoms = template.copy()
    atoms.pbc = system.pbc[0].numpy()
    atoms.set_cell(system.cell[0].numpy(), apply_constraint=False)
    atoms.set_positions(system.positions.numpy(), apply_constraint=False)
    moments = _known_moments(system)
    if moments is not None:
        atoms.arrays.pop("initial_magmoms", None)  # numbers along z cannot become vectors
        atoms.set_initial_magnetic_moments(moments)
    return atoms


def _moments(atoms: Atoms) -> torch.Tensor | None:
    """A vector for each atom; None where none was set."""
    if not atoms.has("initial_magmoms"):
        return None
    given = atoms.get_initial_magnetic_moments()
    return torch.tensor(given[:, None] * [0.0, 0.0, 1.0] if given.ndim == 1 else given)


def _known_moments(system: Batch) -> np.ndarray | None:
    """The moments of a system; zero for atoms whose moments nobody knows; None if for all."""
    if system.magmoms is None or bool(system.magmoms.isnan().all()):
        return None
    return system.magmoms.nan_to_num(0.0).numpy()


def _total(atoms: Atoms, name: str) -> float | None:
    value = atoms.info.get(name)
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{atoms.get_chemical_formula()} has info['{name}'] = {value!r}. Give one number."
        ) from None


def _refuse_partial_occupancy(atoms: Atoms) -> None:
    for kind, species in (atoms.info.get("occupancy") or {}).items():
        full = len(species) == 1 and abs(next(iter(species.values())) - 1) < OCCUPANCY_TOLERANCE
        if not full:
            parts = ", ".join(f"{symbol} {share:g}" for symbol, share in species.items())
            raise DataError(
                f"{atoms.get_chemical_formula()} is partially occupied: site {kind} holds {parts}. "
                "Give an ordered structure."
            )
