"""Free atoms under friction diffuse as Einstein says; straight paths have exact displacements."""

from __future__ import annotations

import json
import math
from types import ModuleType

import numpy as np
import pytest
from ase.build import bulk
from ase.data import atomic_masses
from toy import Free, LennardJones, Sick

from dpa4sim.errors import ConfigError, DataError
from dpa4sim.model_file import released
from dpa4sim.simulate.trajectory import SystemTrajectory
from dpa4sim.units import BOLTZMANN_EV_K, EV_PER_AMU_A2_FS2

EXACT = 1e-9  # sums of a few numbers
SIGMA = 4.0  # standard errors: one run in 16,000 is unluckier


@pytest.fixture(scope="module")
def diffusion(recipe) -> ModuleType:
    return recipe("diffusion")


@pytest.fixture(scope="module")
def gas(diffusion, recipe, tmp_path_factory):
    """Free copper atoms in a bath that slows them in 50 fs."""
    atoms = bulk("Cu", "fcc", a=6.0, cubic=True).repeat((2, 2, 1))
    (found,) = diffusion.diffuse(
        Free(),
        [recipe("recipe").Crystal("gas", atoms)],
        [300.0, 600.0],
        tmp_path_factory.mktemp("diffusion") / "gas.h5",
        replicas=24,
        time_ps=5.0,
        skip_ps=0.5,
        timestep=5.0,
        frame_every=20,
        thermostat="langevin",
        thermostat_time=50.0,
    )
    return found


def test_free_atoms_obey_einstein(gas):
    """D = kT tau / m; with the centre of mass held, 15 of 16 atoms are free."""
    assert gas.note == ""
    for point in gas.points:
        mass = atomic_masses[29] * EV_PER_AMU_A2_FS2
        exact = 1e3 * 15 / 16 * BOLTZMANN_EV_K * point.temperature * 50.0 / mass
        assert point.d == pytest.approx(exact, abs=SIGMA * point.error)
        assert point.error < 0.06 * exact
        assert point.exponent == pytest.approx(1, abs=0.15)
        assert (point.spread > 0).all()


def walk(positions: np.ndarray, numbers: list[int], step_fs: float = 10.0) -> SystemTrajectory:
    n_frames = len(positions)
    return SystemTrajectory(
        label="walk",
        atomic_numbers=np.array(numbers),
        masses=atomic_masses[numbers],
        pbc=np.ones(3, bool),
        step=np.arange(n_frames),
        time=step_fs * np.arange(n_frames),
        status=np.zeros(n_frames, int),
        positions=positions,
    )


def test_straight_paths(diffusion):
    """Two atoms that part at v each way, in a cell that drifts: (v t)^2, whatever the origin."""
    t = np.arange(41)[:, None, None]
    parting = t * np.array([[0.3, 0, 0], [-0.3, 0, 0]]) + t**2 * np.array([0.0, 0.01, 0.0])
    lags, msd = diffusion.displacements(walk(parting, [29, 29]), 0.1)
    assert len(lags) == 15  # half of the 31 frames from 0.1 ps on
    np.testing.assert_allclose(lags, 0.01 * np.arange(1, 16))
    np.testing.assert_allclose(msd, (0.3 * np.arange(1, 16)) ** 2, rtol=EXACT)


def test_only_the_element_counts(diffusion):
    t = np.arange(21)[:, None, None]
    paths = t * np.array([[0.2, 0, 0], [-0.2, 0, 0], [0, 0, 0], [0, 0, 0]])
    system = walk(paths, [11, 11, 17, 17])
    _, msd = diffusion.displacements(system, 0.0, "Na")
    np.testing.assert_allclose(msd, (0.2 * np.arange(1, 11)) ** 2, rtol=EXACT)
    assert diffusion.displacements(system, 0.0, "Cl")[1].max() < EXACT
    half = diffusion.displacements(system, 0.0)[1]
    np.testing.assert_allclose(half, 0.5 * msd, rtol=EXACT)


def test_slope_and_spread(diffusion):
    """What comes before the late part of the lags does not count."""
    lags = np.linspace(0.1, 2.0, 20)
    early = np.where(lags < 0.5, 5.0, 0.0)
    point = diffusion.slope(500.0, [(lags, 6 * d * lags + early) for d in (0.9, 1.1)])
    assert point.d == pytest.approx(1.0, rel=EXACT)
    assert point.error == pytest.approx(0.1, rel=EXACT)
    assert point.exponent == pytest.approx(1.0, rel=EXACT)
    np.testing.assert_allclose(point.spread, 1.2 * lags / math.sqrt(2), rtol=EXACT)
    alone = diffusion.slope(500.0, [(lags, 6 * lags)])
    assert alone.d == pytest.approx(1.0, rel=EXACT)
    assert math.isnan(alone.error)


def test_arrhenius(diffusion, recipe):
    crystal = recipe("recipe").Crystal("made up", bulk("Cu"))
    lags = np.linspace(0.1, 2.0, 20)

    def points(replicas: tuple[float, ...]) -> list:
        found = []
        for kelvin in (500.0, 700.0, 1000.0):
            d = 30 * math.exp(-0.25 / (BOLTZMANN_EV_K * kelvin))
            found.append(diffusion.slope(kelvin, [(lags, 6 * d * x * lags) for x in replicas]))
        return found

    found = diffusion.arrhenius(crystal, points((0.9, 1.1)))
    assert (found.barrier, found.d0) == pytest.approx((0.25, 30.0), rel=1e-6)
    inverse = 1 / (BOLTZMANN_EV_K * np.array([500.0, 700.0, 1000.0]))
    spread = np.square(inverse - inverse.mean()).sum()
    assert found.barrier_error == pytest.approx(0.1 / math.sqrt(spread), rel=1e-6)
    single = diffusion.arrhenius(crystal, points((1.0,)))
    assert single.barrier == pytest.approx(0.25, rel=1e-6)
    assert math.isnan(single.barrier_error)
    assert math.isnan(diffusion.arrhenius(crystal, points((1.0,))[:1]).barrier)


def test_a_solid_is_said_not_to_diffuse_and_a_sick_replica_is_named(diffusion, recipe, tmp_path):
    crystal = recipe("recipe").Crystal
    solid = crystal("solid", bulk("Cu", "fcc", a=3.23, cubic=True))
    bad = crystal("bad", solid.atoms.copy())
    bad.atoms.numbers[:] = Sick.MARK
    model = Sick(LennardJones(), "forces", np.inf, from_call=30)
    settings = {"time_ps": 0.6, "skip_ps": 0.1, "timestep": 2.0, "frame_every": 5, "replicas": 2}
    found = diffusion.diffuse(model, [solid, bad], [300.0], tmp_path / "a.h5", **settings)
    (point,) = found[0].points
    assert point.msd.max() < 0.5
    assert "300 K: the displacements grow as t^" in found[0].note
    assert found[1].points == ()
    assert found[1].note.count("300 K: ") == 2
    diffusion.draw(found, tmp_path / "a.png")
    assert "solid" in diffusion.report(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatures": []}, "Give some, each once"),
        ({"temperatures": [300.0, 300.0]}, "Give some, each once"),
        ({"time_ps": 0.6, "skip_ps": 0.5}, "leaves 7 frames. Run longer"),
        ({"time_ps": 0.5, "skip_ps": 0.9}, "leaves 0 frames"),
        ({"element": "Na"}, "copper has no atom of 'Na'. It has Cu"),
        ({"thermostat": "nose"}, "thermostat='nose' is not known"),
    ],
)
def test_settings_that_cannot_be_used(diffusion, recipe, tmp_path, settings, message):
    crystals = [recipe("recipe").Crystal("copper", bulk("Cu"))]
    settings = {"temperatures": [300.0]} | settings
    with pytest.raises((ConfigError, DataError), match=message):
        diffusion.diffuse(Free(), crystals, output=tmp_path / "a.h5", **settings)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.skipif("seed" not in released(), reason="no released model 'seed' in this package")
def test_the_recipe_runs(diffusion, tmp_path, capsys):
    words = ["Potassium", "--temperatures", "600", "900", "--atoms", "2", "--time", "0.6"]
    words += ["--skip", "0.1", "--replicas", "2", "-o", str(tmp_path)]
    assert diffusion.main(words) in (0, 3)  # 3: half a picosecond is not yet diffusion
    assert "D (Å^2/ps)" in capsys.readouterr().out
    assert (tmp_path / "diffusion.png").read_bytes().startswith(b"\x89PNG")
    (potassium,) = json.loads((tmp_path / "diffusion.json").read_text())["crystals"]
    assert [point["temperature"] for point in potassium["points"]] == [600, 900]
    with pytest.raises(DataError, match="Potassium has no atom of 'Rb'"):
        diffusion.main(["Potassium", "--element", "Rb", "-o", str(tmp_path / "new")])
