"""Embeddings and property models of DeePMD-kit 3.2.0, number for number, and what we export."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from dpa4sim.adapters.deepmd import read_deepmd, write_deepmd
from dpa4sim.cli import main
from dpa4sim.config import PropertyConfig
from dpa4sim.data.frame import LabelKeys
from dpa4sim.data.read import read_frames
from dpa4sim.data.statistics import property_statistics
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.potential import Potential, load
from dpa4sim.property import PropertyModel, load_property

from .conftest import Numbers, difference, read_numbers
from .option_sets import TYPE_MAP
from .peers import batch_of, kept_answers, run_script, write_system

pytestmark = [pytest.mark.peer, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("property_peer.py")
SOURCES = (SCRIPT, Path(__file__), SCRIPT.with_name("option_sets.py"))
HEADS = ("intensive", "extensive", "one_bias", "direct", "trained")
TOLERANCE = 1e-11
"""Two float64 programs that add in different orders; 3e-14 is what we see."""
FITTED = 1e-10
"""The same least squares from frames in another order."""
ORDER = 6
"""Frames of the first set; the second holds the rest."""


@pytest.fixture(scope="module")
def answers(deepmd_python: Path, request: pytest.FixtureRequest) -> Path:
    """Folder of checkpoints and DeePMD-kit's answers, kept by pytest's cache."""

    def make(folder: Path) -> None:
        rng = np.random.default_rng(4)
        gaps = [rng.normal(size=(n, 3)) * [1, 2, 3] + [1, 5, -4] for n in (ORDER, 4)]
        write_system(folder / "frames", [{"gap": gap} for gap in gaps])  # and no energies
        run_script(deepmd_python, SCRIPT, folder, folder / "frames")

    return kept_answers(request, "parity_property", deepmd_python, SOURCES, make)


def off(model: Potential | PropertyModel, stored: dict[str, Numbers]) -> dict[str, float]:
    """Largest difference of each quantity, over all structures in one mixed batch."""
    batches = [batch_of(given) for given in stored.values()]
    features = model.embed(batches)
    found = {name: getattr(features, name) for name in ("descriptor", "atomic_feature")}
    per_system = {"structural_feature": features.structural_feature}
    if isinstance(model, PropertyModel):
        prediction = model.evaluate(batches)
        found["atom_property"] = prediction.atomic_values
        per_system["property"] = prediction.values
    worst = {}
    for name, values in found.items():
        worst[name] = difference(values, np.concatenate([one[name] for one in stored.values()]))
    for name, values in per_system.items():
        worst[name] = difference(values, np.stack([one[name] for one in stored.values()]))
    return worst


@pytest.mark.parametrize("name", HEADS)
def test_property_agrees(name: str, answers: Path) -> None:
    stored = read_numbers(answers / f"{name}.npz")
    worst = off(load_property(answers / f"{name}.pt", dtype="float64"), stored)
    assert set(worst) >= {"property", "atom_property", "structural_feature"}
    assert {name: value for name, value in worst.items() if value > TOLERANCE} == {}


def test_embeddings_of_an_energy_model_agree(answers: Path) -> None:
    worst = off(load(answers / "base.pt", dtype="float64"), read_numbers(answers / "base.npz"))
    assert {name: value for name, value in worst.items() if value > TOLERANCE} == {}


def test_dp_embed_writes_the_same_file(answers: Path, tmp_path: Path) -> None:
    """Groups, datasets, shapes, types, attributes and numbers, of a system of two sets."""
    out = tmp_path / "ours.hdf5"
    words = ["embed", answers / "base.pt", answers / "frames", "-o", out, "--dtype", "float64"]
    assert main([str(word) for word in words]) == 0
    with h5py.File(out) as ours, h5py.File(answers / "embedding.hdf5") as theirs:
        assert list(ours) == list(theirs) == ["frames"]
        assert list(ours.attrs["type_map"]) == list(theirs.attrs["type_map"])
        mine, other = ours["frames"], theirs["frames"]
        assert set(mine) == {*other, "frames"}
        assert mine["frames"][:].tolist() == list(range(other.attrs["nframes"]))
        assert mine.attrs["nframes"] == other.attrs["nframes"]
        assert Path(mine.attrs["system"]).name == Path(other.attrs["system"]).name
        for name in other:
            assert mine[name].dtype == other[name].dtype
            assert mine[name].shape == other[name].shape
            assert difference(mine[name][:], other[name][:]) < TOLERANCE


def test_statistics_are_those_of_dp_train(answers: Path, tmp_path: Path) -> None:
    """`dp train` found bias and spread of each element in the same frames."""
    frames = read_frames(answers / "frames", LabelKeys(properties=("gap",)))
    write_store(tmp_path / "frames.h5", frames, cutoff=4.5)
    store = Store(tmp_path / "frames.h5")
    head = PropertyConfig(name="gap", task_dim=3, intensive=True)
    bias, spread = property_statistics(store, np.arange(len(store)), TYPE_MAP, head)
    _, state = read_deepmd(answers / "trained.pt")
    assert difference(bias, state["head.bias"]) < FITTED
    assert difference(np.tile(spread, (len(TYPE_MAP), 1)), state["head.spread"]) < FITTED


def test_deepmd_reads_what_we_export(answers: Path, deepmd_python: Path, tmp_path: Path) -> None:
    for name in ("intensive", "one_bias"):
        write_deepmd(*read_deepmd(answers / f"{name}.pt"), tmp_path / f"{name}.pt")
        run_script(deepmd_python, SCRIPT, "eval", tmp_path / f"{name}.pt", tmp_path / f"{name}.npz")
        expected = read_numbers(answers / f"{name}.npz")
        for structure, got in read_numbers(tmp_path / f"{name}.npz").items():
            for quantity, value in expected[structure].items():
                assert difference(got[quantity], value) < TOLERANCE, (name, structure, quantity)
