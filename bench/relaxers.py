"""Optimisers on equal terms: one evaluation of the model per step, one criterion, one limit.

Converged is: every force and every row of the cell force (the derivative by the strain, divided by
the number of atoms) is shorter than fmax.  ASE's filter and this package's FIRE measure both in the
frame of the start cell, this package's L-BFGS and the loop around nvalchemi-toolkit-ops' in the
present one.  Each structure has `MOST` evaluations; a structure is sick where this package would
call it so: something is not finite, a force above 1e3 eV/Å, a volume outside 0.2 to 5 of the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa
from scipy.linalg import rq

from bench.starts import Start
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.criterion import FORCE_LIMIT, VOLUME_LIMITS

FMAX = 0.02
MOST = 500
MAX_STEP_A = 0.2


@dataclass(frozen=True)
class Outcome:
    """How one relaxation ended.

    Args:
        evaluations: of the model.
        converged: within `MOST` of them.
        enthalpy: E + p V at the end, eV per atom; NaN for a sick one.
        reason: what ended it, in a word or a sentence.
    """

    evaluations: int
    converged: bool
    enthalpy: float
    reason: str


class SickError(Exception):
    """The structure has left what means something."""


class Counted(Calculator):
    """An ASE calculator around a model that counts and refuses what is sick."""

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def __init__(self, model: EnergyModel, volume: float):
        super().__init__()
        self.model, self.volume, self.evaluations = model, volume, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Everything at once."""
        super().calculate(atoms, properties, system_changes)
        if self.evaluations >= MOST:
            raise SickError("out of evaluations")
        self.evaluations += 1
        energy, forces, stress = evaluate(self.model, from_atoms(self.atoms), self.volume)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        self.results["stress"] = full_3x3_to_voigt_6_stress(stress)


def evaluate(
    model: EnergyModel, batch: Batch, volume: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and stress of one structure.

    Args:
        volume: of the start, Å^3.

    Raises:
        SickError: it is sick.
    """
    growth = float(batch.volume[0]) / volume
    if not VOLUME_LIMITS[0] <= growth <= VOLUME_LIMITS[1]:
        raise SickError(f"volume changed by a factor {growth:.3g}")
    prediction = model(batch)
    energy = float(prediction.energy[0])
    forces, stress = prediction.forces.numpy(), prediction.stress[0].numpy()
    if not (np.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(stress).all()):
        raise SickError("not finite")
    if np.linalg.norm(forces, axis=1).max() > FORCE_LIMIT:
        raise SickError("a force above the limit")
    return energy, forces, stress


def with_ase(optimizer: type[FIRE] | type[BFGS], model: EnergyModel, start: Start) -> Outcome:
    """ASE's optimiser with its defaults; `FrechetCellFilter` where the cell moves."""
    atoms = start.atoms.copy()
    counted = Counted(model, atoms.get_volume())
    atoms.calc = counted
    pressure = start.pressure_gpa * GPa
    moving = FrechetCellFilter(atoms, scalar_pressure=pressure) if start.moves_cell else atoms
    try:
        converged = bool(optimizer(moving, logfile=None).run(fmax=FMAX, steps=MOST - 1))
        reason = "converged" if converged else "out of evaluations"
    except (SickError, np.linalg.LinAlgError) as error:
        return Outcome(counted.evaluations, False, float("nan"), str(error))
    enthalpy = float(counted.results["energy"] + pressure * atoms.get_volume())
    return Outcome(counted.evaluations, converged, enthalpy / len(atoms), reason)


def with_nvalchemi(model: EnergyModel, start: Start) -> Outcome:
    """nvalchemi-toolkit-ops' L-BFGS with its defaults, in float64.

    Its variable cell wants lattice vectors as columns with nothing above the diagonal.
    """
    from nvalchemiops.torch import lbfgs

    atoms = aligned(start.atoms) if start.moves_cell else start.atoms
    n, volume, pressure = len(atoms), atoms.get_volume(), start.pressure_gpa * GPa
    positions = torch.tensor(atoms.positions)
    columns = torch.tensor(atoms.cell.array.T.copy())[None]
    system_idx = torch.zeros(n, dtype=torch.int32)
    state = lbfgs.lbfgs_prepare_state(n + 2 * start.moves_cell, 1)
    offsets = torch.tensor([0, n], dtype=torch.int32)
    cell_state = lbfgs.lbfgs_prepare_cell_state(offsets, columns) if start.moves_cell else None
    first = from_atoms(atoms)
    enthalpy = float("nan")
    for count in range(1, MOST + 1):
        batch = first.with_geometry(positions, columns.transpose(1, 2).contiguous())
        try:
            energy, forces, stress = evaluate(model, batch, volume)
        except SickError as error:
            return Outcome(count, False, float("nan"), str(error))
        size = float(batch.volume[0])
        enthalpy = (energy + pressure * size) / n
        total = stress + pressure * np.eye(3)
        rows = np.linalg.norm(size * total / n, axis=1).max() if start.moves_cell else 0.0
        if max(np.linalg.norm(forces, axis=1).max(), rows) < FMAX:
            return Outcome(count, True, enthalpy, "converged")
        force = torch.from_numpy(forces).contiguous()
        if cell_state is None:
            lbfgs.lbfgs_step_coord(positions, force, state, system_idx, maxstep=MAX_STEP_A)
            continue
        lbfgs.lbfgs_step_coord_cell(
            positions,
            columns,
            force,
            torch.from_numpy(total)[None].contiguous(),
            state,
            cell_state,
            system_idx,
            maxstep=MAX_STEP_A,
        )
    return Outcome(MOST, False, enthalpy, "out of evaluations")


def aligned(atoms: Atoms) -> Atoms:
    """The same structure turned, or mirrored if its cell is left-handed: the matrix whose columns
    are the lattice vectors is lower triangular.
    """
    upper, turn = rq(atoms.cell.array)
    sign = np.diag(np.sign(np.diag(upper)))
    back = (sign @ turn).T
    return Atoms(atoms.numbers, atoms.positions @ back, cell=upper @ sign, pbc=atoms.pbc)


ONE_BY_ONE: dict[str, Callable[[EnergyModel, Start], Outcome]] = {
    "ase_fire": lambda model, start: with_ase(FIRE, model, start),
    "ase_bfgs": lambda model, start: with_ase(BFGS, model, start),
    "nvalchemi_lbfgs": with_nvalchemi,
}
