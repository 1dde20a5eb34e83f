"""A map of crystals, and their neighbours."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from models import BASE, random_potential

from dpa4sim.errors import ConfigError, DataError

EXACT = 1e-10


@pytest.fixture(scope="module")
def explore(recipe) -> ModuleType:
    return recipe("explore_embeddings")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    random_potential(BASE).save(path)
    return path


@pytest.fixture(scope="module")
def crystals(tmp_path_factory) -> Path:
    """Two kinds of crystals, each at five lattice constants, one twice as large, and a stranger."""
    frames = []
    for k in range(5):
        for kind, atoms in (("Si", bulk("Si", a=5.4)), ("C", bulk("C", "diamond", a=3.6))):
            atoms.set_cell(atoms.cell * (1 + 0.01 * k), scale_atoms=True)
            atoms.info |= {"name": f"{kind}{k}", "kind": kind, "scale": 0.01 * k}
            frames.append(atoms)
    double = frames[0].repeat((2, 1, 1))
    double.info |= {"name": "Si0 twice", "kind": "Si", "scale": 0.0}
    gold = bulk("Au")
    gold.info |= {"name": "gold", "kind": "Au", "scale": 0.0}
    path = tmp_path_factory.mktemp("set") / "set.extxyz"
    write(path, [*frames, double, gold])
    return path


def test_components_are_those_of_the_covariance(explore):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5)) @ rng.normal(size=(5, 5))
    x -= x.mean(0)
    places, shares = explore.principal(x)
    variance, vectors = np.linalg.eigh(x.T @ x)
    order = np.argsort(-variance)[:2]
    np.testing.assert_allclose(shares, variance[order] / variance.sum(), atol=EXACT)
    np.testing.assert_allclose(np.abs(places), np.abs(x @ vectors[:, order]), atol=EXACT)
    assert (places[np.abs(places).argmax(0), [0, 1]] > 0).all()


def test_features_are_scaled_cut_and_centred(explore):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 3)) * [1.0, 50.0, 0.0] + [5.0, -3.0, 7.0]
    x = explore.standardised(features)
    assert np.abs(x.mean(0)).max() < EXACT
    assert (x[:, 2] == 0).all()
    assert (np.abs(x[:, :2].std(0) - 1) < 0.2).all()
    features[0] = 1e6
    np.testing.assert_allclose(explore.standardised(features)[1:].std(0), x[1:].std(0), atol=0.05)


def test_nearest_leaves_itself_out(explore):
    x = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    order, distance = explore.nearest(x, 0, 2)
    assert order.tolist() == [3, 2]
    assert distance.tolist() == [0.0, 1.0]


def test_a_supercell_stands_where_its_cell_stands(explore, model, crystals, tmp_path, capsys):
    words = [
        str(crystals),
        "--model",
        str(model),
        "--dtype",
        "float64",
        "-o",
        str(tmp_path / "map"),
    ]
    assert explore.main([*words, "--near", "Si0", "--colour", "kind", "--neighbours", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["Si0", "twice", "0.00", "Si"]
    assert [line.split()[-1] for line in lines[4:7]] == ["Si"] * 3
    assert "11 crystals, 1 left out" in "\n".join(lines)
    assert (tmp_path / "map" / "map.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "map" / "map.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 11
    np.testing.assert_allclose(
        float(rows["Si0"]["first"]), float(rows["Si0 twice"]["first"]), atol=1e-5
    )


@pytest.mark.parametrize("colour", ["volume", "scale"])
def test_numbers_colour_by_a_scale(colour, explore, model, crystals, tmp_path):
    words = [str(crystals), "--model", str(model), "--colour", colour, "--feature", "descriptor"]
    assert explore.main([*words, "-o", str(tmp_path)]) == 0
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--near", "Si9"], "no crystal 'Si9' on the map. Did you mean Si"),
        (["--colour", "gap"], "Si0 has no 'gap' to colour it by. It has volume, name, kind, scale"),
        (["--neighbours", "0"], "--neighbours 0 is too small"),
    ],
)
def test_bad_requests(words, message, explore, model, crystals, tmp_path):
    with pytest.raises(ConfigError) as caught:
        explore.main([str(crystals), "--model", str(model), "-o", str(tmp_path / "map"), *words])
    assert message in str(caught.value)
    assert not (tmp_path / "map").exists()


def test_too_few_crystals(explore, model, tmp_path):
    write(tmp_path / "two.extxyz", [bulk("Si"), Atoms("Au")])
    with pytest.raises(DataError, match="1 of 2 structures can be used; a map needs three"):
        explore.main([str(tmp_path / "two.extxyz"), "--model", str(model)])
