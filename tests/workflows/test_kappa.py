"""Scores of conductivities by hand, batched forces, and phono3py itself where it is installed."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from toy import AseModel, LennardJones

from dpa4sim.errors import ConfigError, DataError

SAME_FORCE = 1e-10
"""eV/Å: sums of the same terms in another order."""


@pytest.fixture(scope="module")
def flow(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("kappa")


def installed(flow: ModuleType) -> bool:
    try:
        return version("phono3py") == flow.PHONO3PY
    except PackageNotFoundError:
        return False


def modes(seed: int, n_q: int = 4, n_bands: int = 6) -> dict:
    """A made-up crystal at one temperature, whose total is the mean over q of its modes."""
    rng = np.random.default_rng(seed)
    by_mode = rng.uniform(0.1, 1.0, (1, n_q, n_bands, 6))
    weights = rng.integers(1, 4, n_q)
    return {
        "has_imaginary_modes": False,
        "mode_kappa_tot_rta": by_mode.tolist(),
        "mode_weights": weights.tolist(),
        "kappa_tot_rta": (by_mode.sum((1, 2)) / weights.sum()).tolist(),
    }


def test_equal_conductivities_score_nothing_and_twice_as_large_a_third(flow: ModuleType) -> None:
    true = modes(1)
    assert flow.srme(true, true) == 0
    # all modes k against 2 k: 2 sum k / (n (K + 2 K)) with K = sum k / n
    double = {**true, **{key: (2 * np.array(true[key])).tolist() for key in KAPPAS}}
    assert flow.srme(double, true) == pytest.approx(2 / 3)
    assert flow.srme(true, double) == pytest.approx(2 / 3)


KAPPAS = ("mode_kappa_tot_rta", "kappa_tot_rta")


def test_errors_of_modes_do_not_cancel(flow: ModuleType) -> None:
    true, other = modes(1), modes(1)
    by_mode = np.array(true["mode_kappa_tot_rta"])
    swapped = by_mode[:, :, ::-1]
    other["mode_kappa_tot_rta"] = swapped.tolist()
    assert other["kappa_tot_rta"] == true["kappa_tot_rta"]
    difference = np.abs((by_mode - swapped)[0, ..., :3].mean(-1)).sum() / sum(true["mode_weights"])
    total = np.array(true["kappa_tot_rta"])[0, :3].mean()
    assert flow.srme(other, true) == pytest.approx(difference / total)


def test_every_form_of_the_reference_says_the_same(flow: ModuleType) -> None:
    true = modes(3)
    averages = {
        "mode_kappa_tot_avg": np.array(true["mode_kappa_tot_rta"])[..., :3].mean(-1).tolist(),
        "kappa_tot_avg": np.array(true["kappa_tot_rta"])[..., :3].mean(-1).tolist(),
    }
    assert flow.srme(modes(4), averages) == pytest.approx(flow.srme(modes(4), true))


@pytest.mark.parametrize(
    "sick",
    [
        {"has_imaginary_modes": True},
        {"broken_symmetry": True},
        {"error": "RuntimeError: it failed"},
        {**modes(1), "broken_symmetry": True},
        {**modes(1, n_q=3), "has_imaginary_modes": False},
        {**modes(1), "kappa_tot_rta": [[float("nan")] * 6]},
    ],
)
def test_what_has_no_conductivity_scores_worst(flow: ModuleType, sick: dict) -> None:
    assert flow.srme(sick, modes(1)) == 2


def test_a_crystal_that_was_not_computed_scores_worst(flow: ModuleType) -> None:
    true = {"a": modes(1), "b": modes(2)}
    assert flow.score({"a": modes(1)}, true) == {"a": 0, "b": 2}


def test_coherence_is_shared_by_heat_capacity(flow: ModuleType) -> None:
    rng = np.random.default_rng(0)
    particles, heat = rng.random((1, 2, 3, 6)), rng.random((1, 2, 3))
    coherence = rng.random((1, 2, 3, 3, 6))
    found = flow.mode_conductivity(particles, coherence, heat)
    for q in range(2):
        for s in range(3):
            pairs = (
                2 * heat[0, q, t] / (heat[0, q, s] + heat[0, q, t]) * coherence[0, q, t, s]
                for t in range(3)
            )
            np.testing.assert_allclose(found[0, q, s], particles[0, q, s] + sum(pairs))
    symmetric = coherence + coherence.swapaxes(2, 3)
    whole = flow.mode_conductivity(np.zeros_like(particles), symmetric, heat)
    np.testing.assert_allclose(whole.sum((1, 2)), symmetric.sum((1, 2, 3)))


@pytest.mark.parametrize(
    ("place", "frequency", "imaginary"),
    [
        ((0, 0), -0.005, False),
        ((0, 0), -0.02, True),
        ((0, 4), -0.001, True),
        ((2, 0), -0.001, True),
        ((1, 1), float("nan"), True),
    ],
)
def test_imaginary_modes(
    flow: ModuleType, place: tuple[int, int], frequency: float, imaginary: bool
) -> None:
    frequencies = np.linspace(0.5, 3, 18).reshape(3, 6)
    frequencies[place] = frequency
    assert flow.has_imaginary_modes(frequencies) is imaginary


def test_batched_forces_are_those_one_at_a_time(
    flow: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells: list[Atoms | None] = []
    for seed in range(5):
        atoms = bulk("CuAg", "cesiumchloride", a=3.0).repeat(2)
        atoms.rattle(0.03, seed=seed)
        cells.append(atoms)
    cells[2] = None
    model = LennardJones()
    monkeypatch.setattr(flow, "ATOMS_AT_ONCE", 40)  # two cells of 16 atoms
    found = flow.forces_of(model, cells, 16)
    assert not found[2].any()
    for cell, forces in zip(cells, found, strict=True):
        if cell is not None:
            cell.calc = AseModel(model)
            np.testing.assert_allclose(forces, cell.get_forces(), atol=SAME_FORCE)


def reference(path: Path, crystals: dict[str, dict]) -> Path:
    """As pandas writes a table."""
    rows = {str(i): name for i, name in enumerate(crystals)}
    columns: dict[str, dict] = {"material_id": rows}
    for row, name in rows.items():
        for key, value in crystals[name].items():
            columns.setdefault(key, {})[row] = value
    with gzip.open(path, "wt") as stream:
        json.dump(columns, stream)
    return path


def test_finished_crystals_are_not_computed_again(
    flow: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = []
    for name in ("mp-1", "mp-2"):
        atoms = bulk("Cu", "fcc", a=3.6)
        atoms.info["material_id"] = name
        frames.append(atoms)
    write(tmp_path / "crystals.extxyz", frames)
    true = {"mp-1": modes(1), "mp-2": modes(2), "mp-3": modes(3)}
    calls: list[str] = []

    def computed(potential: object, atoms: Atoms) -> dict:
        calls.append(atoms.info["material_id"])
        return modes(1)

    monkeypatch.setattr(flow, "crystal", computed)
    args = argparse.Namespace(
        structures=tmp_path / "crystals.extxyz",
        reference=reference(tmp_path / "dft.json.gz", true),
        out=tmp_path / "out",
    )
    assert flow.evaluate(LennardJones(), args) == 0
    assert flow.evaluate(LennardJones(), args) == 0
    assert calls == ["mp-1", "mp-2"]
    said = json.loads((tmp_path / "out" / "kappa.json").read_text())
    assert said["crystals"]["mp-1"] == 0
    assert said["crystals"]["mp-3"] == 2
    assert said["kappa_srme"] == pytest.approx(np.mean(list(said["crystals"].values())))


def test_a_reference_that_is_none_is_said(flow: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "dft.json.gz"
    path.write_bytes(gzip.compress(b"[1]"))
    with pytest.raises(DataError, match="is no table of conductivities"):
        flow.read_reference(path)


def test_another_version_is_refused(flow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "version", lambda name: "3.31.0")
    with pytest.raises(ConfigError, match=r"phono3py 3\.30\.0, and 3\.31\.0 is installed"):
        flow.check_phono3py()


def test_a_structure_without_its_supercell_is_an_error_of_its_own(flow: ModuleType) -> None:
    pytest.importorskip("phono3py", reason="phono3py is not installed (extra kappa)")
    found = flow.crystal(LennardJones(), bulk("Cu", "fcc", a=2.5))
    assert "fc3_supercell" in found["error"]


@pytest.mark.filterwarnings("ignore")  # of phonopy, about what will change in its next versions
def test_a_conductivity_by_phono3py(flow: ModuleType) -> None:
    if not installed(flow):
        pytest.skip(f"phono3py {flow.PHONO3PY} is not installed (extra kappa)")
    atoms = bulk("Cu", "fcc", a=3.6)
    atoms.info |= {"fc2_supercell": [3, 3, 3], "fc3_supercell": [2, 2, 2]}
    atoms.info["q_point_mesh"] = [4, 4, 4]
    found = flow.crystal(LennardJones(), atoms)
    assert not found.get("error")
    assert not found["broken_symmetry"]
    assert not found["has_imaginary_modes"]
    total = np.array(found["kappa_tot_rta"])[0]
    assert total[0] > 0
    np.testing.assert_allclose(total[:3], total[0], rtol=1e-6)  # cubic
    np.testing.assert_allclose(total[3:], 0, atol=1e-6 * total[0])
    # the modes are parts of the whole
    by_mode = np.array(found["mode_kappa_tot_rta"])[0].sum((0, 1)) / sum(found["mode_weights"])
    np.testing.assert_allclose(by_mode, total, rtol=1e-6, atol=1e-6 * total[0])
    assert flow.srme(found, found) == 0
