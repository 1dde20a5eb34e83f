"""Training on a property: its loss, its gradient, whole runs, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import write
from models import largest
from torch.nn import functional
from training import MODEL

import dpa4sim
from dpa4sim.data.frame import LabelKeys
from dpa4sim.data.read import read_frames
from dpa4sim.data.writer import write_store
from dpa4sim.errors import ConfigError, DataError, ResumeError
from dpa4sim.potential import Potential, load
from dpa4sim.property import PropertyModel, load_property
from dpa4sim.train.build import open_split
from dpa4sim.train.finetune import extend_species
from dpa4sim.train.property import PropertyTrainer, property_loss, with_property_head
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.run import TrainingRun
from dpa4sim.train.settings import Loss, read_settings

HEAD = {"name": "gap", "task_dim": 2, "intensive": True, "hidden": [16, 16]}
GRADIENT = 1e-9
"""Two float64 orders of the same sums."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crystals whose property is a smooth function of the lattice constant and the element."""
    folder = tmp_path_factory.mktemp("data")
    rng, frames = np.random.default_rng(0), []
    for index in range(40):
        atoms = bulk(("Cu", "Au")[index % 2], cubic=True)
        scale = rng.uniform(0.92, 1.08)
        atoms.set_cell(atoms.cell[:] * scale, scale_atoms=True)
        atoms.info["gap"] = np.array([10 * (scale - 1) ** 2, scale]) + (index % 2)
        frames.append(atoms)
    write(folder / "set.extxyz", frames)
    read = read_frames(folder / "set.extxyz", LabelKeys(properties=("gap",)))
    write_store(folder / "set.h5", read, cutoff=MODEL["cutoff"])
    return folder / "set.h5"


def settings(source: Path, steps: int = 60, **tables):
    plain = {
        "run": {"steps": steps, "validate_every": 20, "log_every_s": 1e9},
        "data": {"train": str(source), "valid_fraction": 0.25, "max_edges": 900},
        "model": {**MODEL, "property_head": dict(HEAD)},
        "optimizer": {"lr": 5e-3, "average": 0.9},
        "schedule": {"warmup_steps": 2},
    }
    for name, table in tables.items():
        plain[name] = {**plain.get(name, {}), **table}
    return plain


def trainer(source: Path, folder: Path, **tables) -> PropertyTrainer:
    asked = read_settings(settings(source, **tables))
    return TrainingRun(asked, *open_split(asked), Ranks(), folder, None, quiet=True).trainer


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("mae", lambda x: x.abs().sum()),
        ("mse", lambda x: (x * x).sum()),
        ("smooth_mae", lambda x: functional.smooth_l1_loss(x, 0 * x, beta=0.3, reduction="sum")),
    ],
)
def test_forms_of_the_loss(form, expected):
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
    found = property_loss(x, Loss(property=form, property_beta=0.3))
    assert largest(found - expected(x)) < 1e-12


@pytest.mark.parametrize("intensive", [True, False])
def test_residuals_in_words(intensive, source, tmp_path):
    head = {**HEAD, "intensive": intensive}
    one = trainer(source, tmp_path, model={"property_head": head}, run={"dtype": "float64"})
    labelled = one.train_batch = next(iter(one.feed.steps(one.cursor, 1)))[1][0]
    found = one.predict(labelled)
    model = PropertyModel(copy.deepcopy(one.model), dtype="float64")
    error = model(labelled.batch).values - labelled.properties["gap"]
    assert largest(found.error - error) < GRADIENT
    size = 1 if intensive else labelled.batch.n_atoms[:, None]
    assert largest(found.scaled - error / model.model.head.spread[0] / size) < GRADIENT


def test_gradient_of_the_prepared_network_is_autograds(source, tmp_path):
    """The hand-written passes were made for forces; here the first pass back is the only one."""
    one = trainer(source, tmp_path, run={"dtype": "float64"})
    labelled = next(iter(one.feed.steps(one.cursor, 1)))[1][0]
    found = []
    for hand_written in (True, False):
        one.model.zero_grad()
        one.model.hand_written = hand_written
        one.share(one.predict(labelled), torch.ones(3)).backward()
        found.append(
            {n: p.grad.clone() for n, p in one.model.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    worst = {name: largest(found[0][name] - found[1][name]) for name in found[0]}
    assert {name: value for name, value in worst.items() if value > GRADIENT} == {}
    moving = {name for name, value in found[0].items() if largest(value) > 0}
    assert {"head.out", "head.out_bias", "head.weights.0", "species_table"} <= moving


def test_run_learns_and_leaves_its_files(source, tmp_path):
    result = dpa4sim.train(settings(source, steps=160), directory=tmp_path / "run", progress=False)
    assert isinstance(result.potential, PropertyModel)
    assert result.errors["property_scaled_mae"] < 0.4, "a constant has about 0.8"
    again = load_property(tmp_path / "run" / "best.safetensors")
    assert again.card["training"]["settings"]["model"]["property_head"]["name"] == "gap"
    header = (tmp_path / "run" / "train.csv").read_text().splitlines()[0].split(",")
    assert "valid_property_mae" in header
    assert not [name for name in header if "force" in name]
    for name in ("curves.png", "parity.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    assert "MAE" in (tmp_path / "run" / "log.txt").read_text()


def test_statistics_are_in_the_first_weights(source, tmp_path):
    head = trainer(source, tmp_path).model.head
    assert largest(head.bias[0] - head.bias[1]) > 0.5
    assert (head.spread > 0).all()


def test_interrupted_run_ends_with_the_same_weights(source, tmp_path):
    whole = dpa4sim.train(settings(source, steps=12), directory=tmp_path / "a", progress=False)
    run = TrainingRun  # the second one is stopped after a checkpoint at step 5
    asked = read_settings(settings(source, steps=12))
    from dpa4sim.train.directory import RunDirectory

    parts = open_split(asked)
    hashes = {
        name: part.store.content_hash for name, part in zip(("train", "valid"), parts, strict=True)
    }
    place = RunDirectory(tmp_path / "b", asked, hashes)
    stopped = run(asked, *parts, Ranks(), tmp_path / "b", place, quiet=True)
    for step in stopped.trainer.steps():
        if step == 5:
            stopped._checkpoint()
            break
    place.close()
    resumed = dpa4sim.train(settings(source, steps=12), directory=tmp_path / "b", progress=False)
    state = resumed.potential.model.state_dict()
    for name, value in whole.potential.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_other_head_is_no_continuation(source, tmp_path):
    dpa4sim.train(settings(source, steps=5), directory=tmp_path, progress=False)
    other = settings(source, steps=5, model={"property_head": {**HEAD, "intensive": False}})
    with pytest.raises(ResumeError, match="intensive"):
        dpa4sim.train(other, directory=tmp_path, progress=False)


def test_a_trained_trunk_gets_a_head(source, tmp_path):
    """From an energy model, and on from there; the trunk is the energy model's."""
    from dpa4sim.config import DPA4Config, PropertyConfig
    from dpa4sim.model import DPA4

    torch.manual_seed(0)
    base = Potential(DPA4(DPA4Config(species=("Cu", "Au", "O"), **MODEL)))
    base.save(tmp_path / "energy.safetensors")
    grown = with_property_head(base.model, PropertyConfig(**HEAD))
    for name, value in base.model.state_dict().items():
        if not name.startswith("head.") and name != "energy_shift":
            assert torch.equal(value, grown.state_dict()[name]), name
    plain = settings(source, steps=5)
    plain["model"] = {"property_head": dict(HEAD)}
    plain["finetune"] = {"model": str(tmp_path / "energy.safetensors")}
    first = dpa4sim.train(plain, directory=tmp_path / "a", progress=False)
    assert first.potential.config.species == ("Cu", "Au", "O")
    on = {**plain, "finetune": {"model": str(tmp_path / "a" / "best.safetensors")}}
    with pytest.raises(ConfigError, match="predicts the property 'gap' already"):
        dpa4sim.train(on, directory=tmp_path / "b", progress=False)
    del on["model"]
    second = dpa4sim.train(on, directory=tmp_path / "c", progress=False)
    bias = first.potential.model.head.bias
    assert torch.equal(second.potential.model.head.bias, bias)


def test_a_new_species_starts_as_its_kin_and_old_ones_keep_every_bit(source, tmp_path):
    model = trainer(source, tmp_path, run={"dtype": "float64"}).model
    before = model.config.species
    extended = extend_species(model, ["Ag"])
    assert extended.config.species == (*before, "Ag")
    for name in ("bias", "spread"):
        old, new = getattr(model.head, name), getattr(extended.head, name)
        assert torch.equal(new[:2], old)
        assert torch.equal(new[2], old[before.index("Cu")])


def test_store_without_the_property(source, tmp_path):
    plain = settings(source, model={"property_head": {**HEAD, "name": "colour"}})
    with pytest.raises(DataError, match=r"no training frame has the property 'colour'.*: gap"):
        dpa4sim.train(plain, directory=tmp_path, progress=False)


def test_energy_run_on_a_store_of_properties(source, tmp_path):
    plain = settings(source)
    del plain["model"]["property_head"]
    with pytest.raises(DataError, match="no training frame has a label 'energy'"):
        dpa4sim.train(plain, directory=tmp_path, progress=False)


def test_model_that_is_trained_is_no_potential(source, tmp_path):
    dpa4sim.train(settings(source, steps=5), directory=tmp_path, progress=False)
    with pytest.raises(dpa4sim.ModelError, match="predicts the property 'gap'"):
        load(tmp_path / "best.safetensors")
