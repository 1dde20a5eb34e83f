"""Volumes of an ideal gas are known exactly; so are means and errors of a correlated series."""

from __future__ import annotations

import json
import math
from types import ModuleType

import numpy as np
import pytest
from ase.build import bulk
from toy import Free, LennardJones, Sick

import dpa4sim
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.model_file import released
from dpa4sim.units import BOLTZMANN_EV_K, GPA_PER_EV_A3

EXACT = 1e-9  # sums of a few numbers
SIGMA = 4.0  # standard errors: one run in 16,000 is unluckier
TIMESTEP_BIAS = 0.005  # of the ideal gas's volume, at 1/25 of the barostat's time


@pytest.fixture(scope="module")
def npt(recipe) -> ModuleType:
    return recipe("npt_ensemble")


@pytest.fixture(scope="module")
def gas(npt, recipe, tmp_path_factory):
    """32 free atoms at 0.1 GPa and two temperatures, from a volume between the two answers."""
    atoms = bulk("Cu", "fcc", a=5.8, cubic=True).repeat((2, 2, 2))
    (found,) = npt.expand(
        Free(),
        [recipe("recipe").Crystal("gas", atoms)],
        [300.0, 400.0],
        tmp_path_factory.mktemp("npt") / "gas.h5",
        replicas=16,
        time_ps=5.0,
        skip_ps=1.0,
        timestep=4.0,
        pressure_gpa=0.1,
        bulk_modulus_gpa=0.1,
    )
    return found


def test_ideal_gas(gas):
    """V^N exp(-P V / kT) has the mean (N + 1) kT / P."""
    assert gas.note == ""
    assert [point.temperature for point in gas.points] == [300.0, 400.0]
    for point in gas.points:
        kt = BOLTZMANN_EV_K * point.temperature
        exact = 33 / 32 * kt / (0.1 / GPA_PER_EV_A3)
        allowed = SIGMA * point.error + TIMESTEP_BIAS * exact
        assert point.volume == pytest.approx(exact, abs=allowed)
        # one sample is 1 / sqrt(33) wide; they forget in some 0.2 ps
        usual = exact / math.sqrt(33 * 16 * 4.0 / 0.2)
        assert usual / 2 < point.error < 2 * usual


def test_ideal_gas_expands_as_its_temperature(gas):
    exact = math.log(4 / 3) / 100 / 3
    assert gas.alpha == pytest.approx(exact, abs=SIGMA * gas.alpha_error)
    assert gas.alpha_error < 0.1 * exact


def test_the_error_of_a_correlated_series_is_that_of_its_repetitions(npt):
    """x_n = 0.9 x_(n-1) + noise remembers 19 samples."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, 200, 4))
    series = np.zeros((4000, 200, 4))
    for n in range(1, 4000):
        series[n] = 0.9 * series[n - 1] + noise[n]
    series = series[200:]
    means, errors, halves = np.array(
        [npt.mean_and_error(list(series[:, run].T)) for run in range(200)]
    ).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(means.std(), rel=0.15)  # 200 repetitions
    assert 0.7 < halves.std() < 1.3
    assert abs(halves).max() < 5


def test_a_series_that_has_not_settled_is_noticed(npt):
    rng = np.random.default_rng(0)
    series = [np.linspace(0, 1, 400) + 0.3 * rng.normal(size=400) for _ in range(6)]
    assert npt.mean_and_error(series)[2] > npt.DRIFT


def test_too_few_samples_have_no_error(npt):
    mean, error, halves = npt.mean_and_error([np.arange(2.0 * npt.BLOCKS - 1)])
    assert mean == npt.BLOCKS - 1
    assert math.isnan(error)
    assert math.isnan(halves)


def test_the_coefficient_weighs_points_by_their_errors(npt):
    kelvin = np.array([100.0, 200.0, 300.0, 400.0])
    volume = 20 * np.exp(3 * 2e-5 * kelvin)
    points = [npt.Point(t, v, 0.01, 0.0) for t, v in zip(kelvin, volume, strict=True)]
    alpha, error = npt.linear_expansion(points)
    assert alpha == pytest.approx(2e-5, rel=EXACT)
    # textbook: variance of a slope with equal errors, here of ln V
    spread = np.square(kelvin - kelvin.mean()).sum()
    assert error == pytest.approx(0.01 / volume.mean() / np.sqrt(spread) / 3, rel=0.02)
    wild = [*points, npt.Point(500.0, 30.0, 10.0, 0.0)]
    assert npt.linear_expansion(wild)[0] == pytest.approx(2e-5, rel=0.01)
    bare = [npt.Point(t, v, math.nan, math.nan) for t, v in zip(kelvin, volume, strict=True)]
    alpha, error = npt.linear_expansion(bare)
    assert alpha == pytest.approx(2e-5, rel=EXACT)
    assert math.isnan(error)
    assert math.isnan(npt.linear_expansion(points[:1])[0])


def test_a_crystal_is_the_same_beside_others_and_a_sick_one_is_named(npt, recipe, tmp_path):
    """Each replica has a path of its own; the first crystal's place is the same in both calls."""
    crystal = recipe("recipe").Crystal
    good = crystal("good", bulk("Cu", "fcc", a=3.23, cubic=True))
    bad = crystal("bad", bulk("Cu", "fcc", a=3.23, cubic=True))
    bad.atoms.numbers[:] = Sick.MARK
    larger = crystal("larger", bulk("Zn", "fcc", a=3.56, cubic=True))
    model = Sick(LennardJones(), "forces", np.nan, from_call=20)
    settings = {"replicas": 2, "time_ps": 0.2, "skip_ps": 0.05, "bulk_modulus_gpa": 200.0}
    (alone,) = npt.expand(model, [good], [100.0, 300.0], tmp_path / "a.h5", **settings)
    model.calls = 0
    some = npt.expand(model, [good, bad, larger], [100.0, 300.0], tmp_path / "b.h5", **settings)
    assert [p.volume for p in some[0].points] == [p.volume for p in alone.points]
    assert some[0].points[0].volume < some[0].points[1].volume
    assert some[0].note == ""
    assert some[1].points == ()
    assert some[1].note.count("300 K: energy, force") == 2
    assert math.isnan(some[1].alpha)
    start = larger.atoms.get_volume() / 4  # at rest; copper's is a quarter smaller
    assert all(start < p.volume < 1.1 * start for p in some[2].points)


def test_the_start_is_left_out(npt, recipe, monkeypatch, tmp_path):
    """A sample every ten steps, those later than 60 fs of 200."""
    counts = []
    monkeypatch.setattr(npt, "mean_and_error", lambda s: counts.append(len(s[0])) or (1.0, 0.1, 0))
    crystals = [recipe("recipe").Crystal("Cu", bulk("Cu", a=3.23))]
    settings = {"time_ps": 0.2, "skip_ps": 0.06, "timestep": 2.0}
    npt.expand(LennardJones(), crystals, [300.0], tmp_path / "a.h5", **settings)
    assert counts == [7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatures": []}, "temperatures=.*Give some, each once"),
        ({"temperatures": [300.0, 300.0]}, "temperatures=.*Give some, each once"),
        ({"skip_ps": 1.0}, r"skip_ps=1.0 of time_ps=1.0 leaves nothing"),
        ({"timestep": -1.0}, "timestep=-1.0 cannot be used"),
        ({"coupling": "cubic"}, "coupling='cubic' is not known"),
    ],
)
def test_settings_that_cannot_be_used(npt, recipe, tmp_path, settings, message):
    crystals = [recipe("recipe").Crystal("Cu", bulk("Cu"))]
    settings = {"temperatures": [300.0]} | settings
    with pytest.raises(ConfigError, match=message):
        npt.expand(Free(), crystals, output=tmp_path / "a.h5", **settings)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.skipif("seed" not in released(), reason="no released model 'seed' in this package")
def test_the_recipe_runs_once_and_never_over_its_trajectory(npt, tmp_path, capsys):
    words = ["Potassium", "--temperatures", "100", "300", "--atoms", "2", "--time", "0.3"]
    words += ["--skip", "0.05", "-o", str(tmp_path)]
    assert npt.main(words) in (0, 3)  # 3 if so short a run has not settled
    assert "alpha (1e-6/K)" in capsys.readouterr().out
    assert (tmp_path / "npt_ensemble.png").read_bytes().startswith(b"\x89PNG")
    (potassium,) = json.loads((tmp_path / "npt_ensemble.json").read_text())["crystals"]
    assert [point["temperature"] for point in potassium["points"]] == [100, 300]
    with dpa4sim.read_trajectory(tmp_path / "trajectory.h5") as trajectory:
        assert trajectory.temperature[:, 0].tolist() == [100, 300]
    with pytest.raises(ConfigError, match=r"trajectory.h5 exists\. .*--resume"):
        npt.main(words)
    with pytest.raises(DataError, match="no file and no built-in crystal 'Unobtainium'"):
        npt.main(["Unobtainium", "-o", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
