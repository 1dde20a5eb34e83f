"""Phonons against lattice sums, against one cell at a time, and what a table says of them."""

from __future__ import annotations

import json
import math
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_masses
from lattice_sums import pairs
from toy import AseModel, LennardJones, Sick

from dpa4sim.errors import ConfigError
from dpa4sim.model_file import released

pytest.importorskip("phonopy", reason="phonopy is not installed (extra phonons)")

SAME_THZ = 1e-8
"""The same forces to the last digits, whatever batch they were found in."""

LATTICE_SUM = 5e-4
"""Relative: displacements of 0.01 Å are no infinitesimal ones; 3.5e-4 is what we see."""

THZ = math.sqrt(1.602176634e-19 / 1.66053906660e-27) * 1e10 / (2 * math.pi * 1e12)
"""sqrt(eV / Å^2 / amu) in THz."""


@pytest.fixture(scope="module")
def flow(recipe) -> ModuleType:
    return recipe("phonons")


@pytest.fixture(scope="module")
def crystals(recipe):
    """An fcc and an hcp crystal, and one of two elements."""
    common = recipe("recipe")
    start = [
        common.Crystal("fcc", bulk("Cu", "fcc", a=3.3)),
        common.Crystal("hcp", bulk("Zn", "hcp", a=2.4, c=3.9)),
        common.Crystal(
            "cscl", Atoms("CuZn", scaled_positions=[[0] * 3, [0.5] * 3], cell=[2.7] * 3, pbc=True)
        ),
    ]
    good, notes = common.relaxed(LennardJones(), start, 1e-5)
    assert not notes
    return good


@pytest.fixture(scope="module")
def found(flow, crystals):
    kelvins = [10.0, 300.0, 3000.0]
    return flow.phonons(LennardJones(), crystals, height=7.0, temperatures=kelvins)


@pytest.fixture(scope="module")
def wide(flow, crystals):
    """The first in a supercell that is twice as high as the pairs reach."""
    return flow.phonons(LennardJones(), crystals[:1], height=12.0)[0]


def dynamical(atoms: Atoms, q: np.ndarray) -> np.ndarray:
    """Frequencies in THz of one atom per cell from the lattice sum over pairs.

    D(q) = 1/m sum_r (1 - cos q.r) [phi'' n n + phi' / r (1 - n n)],   n = r / |r|
    """
    found = pairs(atoms)
    sites, r, slope, curvature = found.sites, found.length, found.slope, found.curvature
    along = np.einsum("ri,rj->rij", sites, sites) / (r * r)[:, None, None]
    springs = curvature[:, None, None] * along + (slope / r)[:, None, None] * (np.eye(3) - along)
    phases = 1 - np.cos(2 * np.pi * found.grid @ q)
    matrix = np.einsum("r,rij->ij", phases, springs) / atomic_masses[atoms.numbers[0]]
    squares = np.linalg.eigvalsh(matrix)
    return THZ * np.sign(squares) * np.sqrt(np.abs(squares))


@pytest.mark.parametrize("label", ["X", "L", "W"])
def test_frequencies_are_those_of_the_lattice_sum(crystals, wide, label):
    points = crystals[0].atoms.cell.bandpath(eps=1e-2).special_points
    place = next(place for place, name in wide.ticks if label in name.split("|"))
    row = int(np.argmin(np.abs(wide.distance - place)))
    exact = dynamical(crystals[0].atoms, points[label])
    assert exact.min() > 1
    np.testing.assert_allclose(wide.bands[row], exact, rtol=LATTICE_SUM)


def test_one_batch_is_one_cell_at_a_time(flow, crystals, found):
    """phonopy with forces of an ASE calculator."""
    for crystal, together in zip(crystals, found, strict=True):
        phonopy = flow.prepare(crystal.atoms, 7.0, 0.01)
        forces = []
        for cell in phonopy.supercells_with_displacements:
            atoms = flow.atoms_of(cell)
            atoms.calc = AseModel(LennardJones())
            forces.append(atoms.get_forces())
        alone = flow.analyse(crystal, phonopy, forces, [300.0])
        np.testing.assert_allclose(together.bands, alone.bands, atol=SAME_THZ)
        np.testing.assert_allclose(together.density, alone.density, atol=SAME_THZ)


def test_all_cells_of_all_crystals_go_together(flow, crystals):
    calls = []

    class Counted(LennardJones):
        def __call__(self, batch):
            calls.append(batch.n_systems)
            return super().__call__(batch)

    found = flow.phonons(Counted(), crystals, height=6.0)
    assert calls == [sum(each.n_displaced for each in found)]


def test_sound_is_silent_at_gamma_and_every_mode_is_counted(found):
    for each in found:
        gamma = [place for place, label in each.ticks if label == "G"]
        row = int(np.argmin(np.abs(each.distance - gamma[0])))
        assert np.abs(each.bands[row][:3]).max() < 0.01
        states = np.sum(each.density) * (each.frequency[1] - each.frequency[0])
        assert states == pytest.approx(3 * each.n_atoms, rel=0.02)


def test_heat_capacity_freezes_out_and_ends_at_dulong_and_petit(found):
    for each in found[:2]:
        cold, warm, hot = (each.thermal[kelvin] for kelvin in (10.0, 300.0, 3000.0))
        assert 0 <= cold[2] < warm[2] < hot[2]
        assert hot[2] == pytest.approx(3 * each.n_atoms * 8.314, rel=2e-3)
        assert hot[0] < warm[0] < cold[0]


def test_imaginary_modes_are_named_and_end_the_thermal_properties(flow, recipe, crystals):
    """Nothing holds a simple cube of atoms that attract each other."""
    cube = recipe("recipe").Crystal("cube", bulk("Cu", "sc", a=2.35))
    bad, good = flow.phonons(LennardJones(), [cube, crystals[0]], height=8.0)
    assert bad.imaginary
    assert all(
        name.split()[0] in {"G", "M", "R", "X", "X|M", "M|R", "R|M"} for name in bad.imaginary
    )
    assert all("i THz)" in name for name in bad.imaginary)
    assert not bad.thermal
    assert not good.imaginary
    assert good.thermal
    text = flow.report([bad, good])
    assert bad.imaginary[0] in text
    assert "none" in text


def test_names_of_imaginary_modes(flow):
    distance = np.linspace(0, 1, 5)
    ticks = ((0.0, "G"), (1.0, "X"))
    bands = np.tile([1.0, 2.0, 3.0], (5, 1))
    bands[0] = [-0.2, -0.1, 0.0]  # acoustic, of rounding
    assert flow.name_imaginary(distance, bands, ticks) == ("G-G mode 1 (0.20i THz)",)
    bands[0] = 0
    assert flow.name_imaginary(distance, bands, ticks) == ()
    bands[2, 0] = -1.5
    assert flow.name_imaginary(distance, bands, ticks) == ("G-X mode 1 (1.50i THz)",)
    bands[4, 1] = -0.7
    assert flow.name_imaginary(distance, bands, ticks) == ("X mode 2 (0.70i THz)",)


def test_one_that_fails_has_a_note_and_the_others_phonons(flow, recipe, crystals):
    bad = bulk("Cu", "fcc", a=3.3)
    bad.numbers[:] = Sick.MARK
    model = Sick(LennardJones(), "forces", np.nan)
    one, other = flow.phonons(
        model, [recipe("recipe").Crystal("bad", bad), crystals[0]], height=6.0
    )
    assert one.note == "a displaced cell has forces that are no numbers."
    assert not other.note
    assert "bad" in flow.report([one, other])


def test_settings_without_sense(flow):
    for wrong in ({"height": 0.0}, {"displacement": -0.1}):
        with pytest.raises(ConfigError, match="Give a positive number of Å"):
            flow.phonons(LennardJones(), [], **wrong)
    with pytest.raises(ConfigError, match="Give some, each once"):
        flow.phonons(LennardJones(), [], temperatures=[300.0, 300.0])


@pytest.mark.skipif("seed" not in released(), reason="no released model 'seed' in this package")
def test_the_recipe_runs(flow, tmp_path, capsys):
    assert flow.main(["Copper", "--height", "6", "--dtype", "float32", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Cv (J/mol/K)" in out
    assert (tmp_path / "phonons.png").read_bytes().startswith(b"\x89PNG")
    (copper,) = json.loads((tmp_path / "phonons.json").read_text())["crystals"]
    assert 6 < np.max(copper["bands"]) < 8.5  # measured: 7.3 THz at L
    assert copper["thermal"]["300.0"][2] == pytest.approx(
        23.5, abs=1.0
    )  # measured, at constant p: 24.4
    assert not copper["imaginary"]
