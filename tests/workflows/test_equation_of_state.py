"""The equation of state of crystals whose lattice sums are known exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from ase.build import bulk
from toy import LennardJones, Sick

from dpa4sim.errors import ConfigError
from dpa4sim.model_file import released
from dpa4sim.potential import Prediction
from dpa4sim.units import GPA_PER_EV_A3

EXACT = 1e-9  # the formulas against themselves
DIFFERENCE = 1e-6  # central difference of a smooth function
# Birch-Murnaghan's third order is not the toy's law: over +-3 % in volume it misses this much.
V0_ERROR, B0_ERROR, B1_ERROR = 1e-4, 5e-3, 0.03
PRESSURE_ERROR_GPA = 0.05  # of some +-5 GPa


@pytest.fixture(scope="module")
def eos(recipe) -> ModuleType:
    return recipe("equation_of_state")


@pytest.fixture(scope="module")
def curves(eos, recipe):
    """An fcc and an hcp crystal in one call."""
    common, model = recipe("recipe"), LennardJones()
    crystals = [
        common.Crystal("fcc", bulk("Cu", "fcc", a=3.3)),
        common.Crystal("hcp", bulk("Zn", "hcp", a=2.4, c=3.9)),
    ]
    start, notes = common.relaxed(model, crystals, 1e-4)
    assert not notes
    return eos.scan(model, start, span=0.03, n_volumes=7, fmax=1e-4)


def lattice_sum(volume: float) -> float:
    """Energy per atom of fcc copper: an odd number, hence of the toy's size 0.9."""
    model = LennardJones()
    a = (4 * volume) ** (1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3), -1).reshape(-1, 3)
    sites = grid[grid.sum(1) % 2 == 0] * a / 2
    r2 = (sites**2).sum(1)
    r2 = r2[(r2 > 0) & (r2 < model.cutoff**2)]
    sixth = (0.9 * model.sigma) ** 6 / r2**3
    return float((2 * model.epsilon * (sixth**2 - sixth) * (1 - r2 / model.cutoff**2) ** 3).sum())


def exact_equation_of_state() -> tuple[float, float, float]:
    """V0, B0, B0' of the lattice sum, by a polynomial through a narrow range."""
    from scipy.optimize import minimize_scalar

    v0 = minimize_scalar(lattice_sum, bounds=(5, 12), method="bounded", options={"xatol": 1e-10}).x
    offsets = np.linspace(-0.01, 0.01, 11)
    energies = [lattice_sum(v0 * (1 + x)) for x in offsets]
    series = np.polynomial.Polynomial.fit(offsets, energies, 6).convert().coef
    second, third = 2 * series[2] / v0**2, 6 * series[3] / v0**3
    return v0, v0 * second, -1 - v0 * third / second


def test_fcc_has_the_constants_of_its_lattice_sum(curves):
    v0, b0, b1 = exact_equation_of_state()
    fcc = curves[0]
    assert fcc.v0 == pytest.approx(v0, rel=V0_ERROR)
    assert fcc.b0_gpa == pytest.approx(GPA_PER_EV_A3 * b0, rel=B0_ERROR)
    assert fcc.b1 == pytest.approx(b1, rel=B1_ERROR)
    assert fcc.e0 == pytest.approx(lattice_sum(v0), abs=1e-5)


def test_pressures_of_the_model_agree_with_the_fit_of_energies(curves):
    for curve in curves:
        assert curve.note == ""
        assert np.ptp(curve.pressures_gpa) > 5
        assert curve.pressure_error_gpa < PRESSURE_ERROR_GPA


def test_a_wrong_stress_is_noticed(eos, curves):
    wrong = replace(curves[0], pressures_gpa=1.1 * curves[0].pressures_gpa)
    assert eos.fit(wrong).pressure_error_gpa > 5 * PRESSURE_ERROR_GPA


def test_a_curve_of_the_equation_itself_is_recovered(eos):
    v = np.linspace(9, 11, 7)
    energies = eos.birch_murnaghan_energy(v, 10.0, 0.8, 4.7) - 3
    found = eos.fit(eos.Curve("exact", 1, v, energies, 0 * v))
    assert (found.v0, found.b1) == pytest.approx((10.0, 4.7), rel=1e-4)  # the fit's own tolerance
    assert found.b0_gpa == pytest.approx(0.8 * GPA_PER_EV_A3, rel=1e-4)
    assert found.e0 == pytest.approx(-3, abs=1e-6)


def test_pressure_is_the_slope_of_the_energy(eos):
    v, h = np.linspace(8, 13, 6), 1e-4
    law = (10.0, 0.8, 4.7)
    slope = eos.birch_murnaghan_energy(v + h, *law) - eos.birch_murnaghan_energy(v - h, *law)
    pressure = eos.birch_murnaghan_pressure(v, *law)
    np.testing.assert_allclose(pressure, -slope / (2 * h), atol=DIFFERENCE)
    assert abs(pressure).max() > 0.1


def test_atoms_relax_at_each_volume_unless_they_are_held(eos, recipe):
    atoms = bulk("Cu", "fcc", a=3.3, cubic=True)
    atoms.positions[1] += [0.0, 0.15, 0.0]
    crystal = recipe("recipe").Crystal("rattled", atoms)
    model = LennardJones()
    held = eos.scan(model, [crystal], n_volumes=5, span=0.02, hold="atoms")[0]
    free = eos.scan(model, [crystal], n_volumes=5, span=0.02, hold="cell")[0]
    np.testing.assert_allclose(held.volumes, free.volumes, rtol=EXACT)
    assert (free.energies < held.energies - 1e-2).all()


def test_no_minimum_is_said(eos):
    v = np.linspace(9, 11, 7)
    found = eos.fit(eos.Curve("falling", 1, v, -v, 0 * v))
    assert not found.fitted
    assert found.note == "No minimum of the energy lies between its volumes."


class FailsWhenLarge(LennardJones):
    """No forces for cells of more than 9.5 Å^3 per atom."""

    def __call__(self, batch) -> Prediction:
        prediction = super().__call__(batch)
        bad = (batch.volume / batch.n_atoms > 9.5)[batch.system_idx, None]
        return replace(prediction, forces=prediction.forces.masked_fill(bad, np.nan))


def test_volumes_without_a_result_are_left_out_and_counted(eos, recipe):
    crystal = recipe("recipe").Crystal("large", bulk("Cu", "fcc", a=3.3))
    (curve,) = eos.scan(FailsWhenLarge(), [crystal], n_volumes=9, span=0.2)
    assert len(curve.volumes) == (np.linspace(0.8, 1.2, 9) * 3.3**3 / 4 <= 9.5).sum() < 9
    assert "of 9 volumes are missing" in curve.note
    assert curve.fitted == (len(curve.volumes) >= eos.FEWEST)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hold": "shape"}, "hold='shape' is not known. Valid: atoms, cell, volume"),
        ({"span": 0.0}, "span=0.0, n_volumes=9 is no scan"),
        ({"span": 6}, "span=6, n_volumes=9 is no scan"),
        ({"n_volumes": 4}, "5 volumes or more"),
    ],
)
def test_settings_that_cannot_be_used(eos, settings, message):
    with pytest.raises(ConfigError, match=message):
        eos.scan(LennardJones(), [], **settings)


@pytest.mark.skipif("seed" not in released(), reason="no released model 'seed' in this package")
def test_the_recipe_runs(eos, tmp_path, capsys):
    assert eos.main(["Copper", "NaCl", "--volumes", "5", "-o", str(tmp_path / "new" / "eos")]) == 0
    out = capsys.readouterr().out
    assert "B0 (GPa)" in out
    assert "Halite" in out
    folder = tmp_path / "new" / "eos"
    assert (folder / "equation_of_state.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / "equation_of_state.json").read_text())
    copper, halite = content["crystals"]
    assert (copper["n_atoms"], halite["n_atoms"], len(halite["volumes"])) == (1, 2, 5)
    assert 100 < copper["b0_gpa"] < 180  # measured: 140
    assert 15 < halite["b0_gpa"] < 40  # measured: 25


def test_one_that_fails_is_below_the_table(eos, recipe, monkeypatch, tmp_path, capsys):
    common = recipe("recipe")
    bad = bulk("Cu", a=3.3)
    bad.numbers[:] = Sick.MARK
    crystals = [common.Crystal("bad", bad), common.Crystal("good", bulk("Cu", "fcc", a=3.3))]
    model = Sick(LennardJones(), "energy", np.nan)
    monkeypatch.setattr(eos, "begin", lambda args: (model, crystals))
    assert eos.main(["-o", str(tmp_path)]) == common.NOT_ALL
    assert "bad did not relax" in capsys.readouterr().out
    content = json.loads((tmp_path / "equation_of_state.json").read_text())
    assert [curve["name"] for curve in content["crystals"]] == ["good"]
