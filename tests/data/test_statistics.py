"""Shifts, ranges and outliers are those of the numbers that were put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from labelled import SHIFTS_EV, crystal, label, mixed

from dpa4sim.adapters.ase import from_atoms
from dpa4sim.data import statistics
from dpa4sim.data.frame import frame
from dpa4sim.data.statistics import (
    energy_shifts,
    isolated_energies,
    outliers,
    summary,
    without_close_pairs,
)
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.errors import ConfigError, DataError

SPECIES = ("Cu", "H", "Al")
EXACT = 1e-9


def stored(path, images):
    write_store(
        path,
        [
            frame(
                from_atoms(atoms),
                {k: atoms.calc.results.get(k) for k in ("energy", "forces", "stress")},
                source="made",
                name=str(k),
            )
            for k, atoms in enumerate(images)
        ],
    )
    return Store(path)


def with_energy(atoms, shifts):
    """Exactly the sum of its shifts."""
    label(atoms).calc.results["energy"] = sum(shifts[s] for s in atoms.get_chemical_symbols())
    return atoms


@pytest.fixture
def store(tmp_path):
    return stored(tmp_path / "a.h5", mixed(30))


@pytest.fixture
def exact(tmp_path):
    return stored(tmp_path / "a.h5", [with_energy(a, SHIFTS_EV) for a in mixed(30)])


def test_shifts_are_found_exactly(exact, monkeypatch):
    monkeypatch.setattr(statistics, "FRAMES_PER_FIT", 7)
    found = energy_shifts(exact, species=SPECIES)
    np.testing.assert_allclose(found, [SHIFTS_EV[s] for s in SPECIES], atol=EXACT)


def test_shifts_minimise_the_error_per_atom(store):
    """Against NumPy's least squares on the whole matrix, some frames only."""
    rows = np.arange(3, 25)
    batch = store.batch(rows)
    numbers = [batch.batch.atomic_numbers[batch.batch.system_idx == s] for s in range(len(rows))]
    counts = np.array([[(z == n).sum() for n in (29, 1, 13)] for z in numbers], float)
    size = counts.sum(1)
    expected = np.linalg.lstsq(counts / size[:, None], batch.energy.numpy() / size, rcond=None)[0]
    np.testing.assert_allclose(energy_shifts(store, rows, SPECIES), expected, atol=1e-7)


def test_given_shifts_stay_and_the_rest_is_fitted_around_them(exact):
    found = energy_shifts(exact, species=SPECIES, given={"Cu": SHIFTS_EV["Cu"] + 1.0})
    assert found[0] == SHIFTS_EV["Cu"] + 1.0
    assert found[1] == pytest.approx(SHIFTS_EV["H"], abs=EXACT)
    assert found[2] < SHIFTS_EV["Al"] - 0.1
    right = energy_shifts(exact, species=SPECIES, given={"Cu": SHIFTS_EV["Cu"]})
    np.testing.assert_allclose(right, [SHIFTS_EV[s] for s in SPECIES], atol=EXACT)
    every = dict(zip(SPECIES, (1.0, 2.0, 3.0), strict=True))
    assert energy_shifts(exact, species=SPECIES, given=every).tolist() == [1.0, 2.0, 3.0]


def test_an_element_that_no_frame_has_gets_zero(exact):
    assert energy_shifts(exact, species=(*SPECIES, "Xe"))[3] == 0.0


def test_one_composition_is_shared_out(tmp_path):
    """Water tells its elements not apart: the energy is right all the same."""
    water = Atoms("OH2", positions=[[0, 0, 0], [1.9, 0, 0], [0, 1.9, 0]])
    store = stored(tmp_path / "a.h5", [with_energy(water, {"O": -400.0, "H": -13.0})] * 3)
    found = dict(zip(("H", "O"), energy_shifts(store), strict=True))
    assert 2 * found["H"] + found["O"] == pytest.approx(-426.0)
    assert max(map(abs, found.values())) < 400


def test_shifts_of_isolated_atoms(tmp_path):
    alone = Atoms("H", positions=[[0, 0, 0]])
    store = stored(tmp_path / "a.h5", [*mixed(4), with_energy(alone, {"H": -13.6})])
    assert isolated_energies(store) == {"H": -13.6}


def test_shifts_that_cannot_be(store, tmp_path):
    with pytest.raises(DataError, match="holds Al, which is not among"):
        energy_shifts(store, species=("Cu", "H"))
    with pytest.raises(ConfigError, match="given for Fe"):
        energy_shifts(store, given={"Fe": 1.0})
    atoms = label(crystal(0))
    del atoms.calc.results["energy"]
    with pytest.raises(DataError, match="no frame with an energy"):
        energy_shifts(stored(tmp_path / "b.h5", [atoms]))


def test_summary_counts_and_measures(tmp_path, monkeypatch):
    monkeypatch.setattr("dpa4sim.data.store.FRAMES_PER_BLOCK", 4)
    images = mixed(9)
    store = stored(tmp_path / "a.h5", images)
    found = summary(store)
    assert (found.frames, found.atoms) == (9, sum(map(len, images)))
    has = {s: sum(s in a.get_chemical_symbols() for a in images) for s in ("H", "Al", "Cu")}
    assert found.elements == has
    assert found.coverage == {"energy": 9, "forces": 9, "stress": 6, "charge": 0, "spin": 0}
    crystals = [a for a in images if a.pbc.all()]
    norms = np.concatenate([np.linalg.norm(a.get_forces(), axis=1) for a in images])
    expected = {
        "energy": np.array([a.get_potential_energy() / len(a) for a in images]),
        "forces": norms,
        "stress": np.array([-np.trace(a.get_stress(voigt=False)) / 3 for a in crystals]),
    }
    for name, values in expected.items():
        one = found.ranges[name]
        numbers = (values.min(), values.max(), values.mean(), values.std())
        assert (one.low, one.high, one.mean, one.spread) == pytest.approx(numbers, abs=1e-12)
    assert found.edges == (
        store.n_edges(6.0).min(),
        store.n_edges(6.0).mean(),
        store.n_edges(6.0).max(),
    )
    assert found.shortest == store.min_distance.min()


def test_outliers_are_named_and_nothing_else(tmp_path):
    images = [label(crystal(k)) for k in range(40)]
    images[7].calc.results["energy"] += 100.0
    images[9].calc.results["forces"][2, 1] = 80.0
    close = Atoms("H2", positions=[[0, 0, 0], [0.5, 0, 0]])
    images.append(label(close))
    images[-1].calc.results |= {"energy": 2 * SHIFTS_EV["H"], "forces": np.zeros((2, 3))}
    found = {each.frame: each for each in outliers(stored(tmp_path / "a.h5", images))}
    assert sorted(found) == [7, 9, 40]
    assert "robust deviations" in found[7].reason
    assert found[9].reason.startswith("atom 2 feels 80")
    assert found[40].reason == "two atoms are 0.500 Å apart"
    assert found[9].where.startswith("made#9 (")


def test_frames_with_close_pairs_are_excluded(tmp_path):
    pair = label(Atoms("H2", positions=[[0, 0, 0], [0.9, 0, 0]]))
    store = stored(tmp_path / "a.h5", [*mixed(3), pair])
    assert without_close_pairs(store, 0.9).tolist()[3] in (True, False)  # on the rim
    assert without_close_pairs(store, 0.8).all()
    assert without_close_pairs(store, 1.0).tolist() == [True, True, True, False]


def test_a_frame_without_forces_has_no_part_in_their_range(tmp_path):
    atoms = label(crystal(0))
    bare = label(crystal(1))
    del bare.calc.results["forces"]
    found = summary(stored(tmp_path / "a.h5", [atoms, bare])).ranges["forces"]
    assert found.n_frames == 1
    assert found.high == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max())
    assert np.isfinite(found.mean)
    assert replace(found, n_frames=1) == found
