"""train() from a trained model: new species, frozen groups, low-rank updates, refused settings."""

from dataclasses import replace

import pytest
import torch
import training
from models import random_potential

import dpa4sim
from dpa4sim.config import DPA4Config
from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.potential import Potential
from dpa4sim.train.run import train


@pytest.fixture
def copper(tmp_path):
    """A model that has never heard of gold."""
    config = DPA4Config(species=("Cu",), **training.MODEL)
    path = tmp_path / "copper.safetensors"
    random_potential(config, dtype="float32").save(path)
    return path


@pytest.fixture
def asked(copper, tmp_path):
    asked = training.settings(training.store(tmp_path / "train.h5", 12), 6)
    del asked["model"]
    return asked | {"finetune": {"model": str(copper)}}


def weights(potential: Potential) -> dict[str, torch.Tensor]:
    return potential.model.state_dict()


def test_it_learns_a_new_species_from_where_the_model_stands(asked, copper, tmp_path):
    result = train(asked, directory=tmp_path / "run", progress=False)
    assert result.potential.config.species == ("Cu", "Au")
    before, after = weights(dpa4sim.load(copper)), weights(result.potential)
    moved = (after["head.out"] - before["head.out"]).abs().max()
    assert 0 < moved < 0.01  # six small steps from there, not a new start
    gold = training.frames(2)[1]
    error = result.potential(gold.system).energy.item() - gold.energy
    assert abs(error) / 4 < 1.0  # eV/atom: its energy was fitted


def test_frozen_groups_stay(asked, copper, tmp_path):
    asked["finetune"] |= {"freeze": ["all but head"], "refit_shifts": False}
    result = train(asked, directory=tmp_path / "run", progress=False)
    before, after = weights(dpa4sim.load(copper)), weights(result.potential)
    changed = {
        name
        for name, value in before.items()
        if value.shape == after[name].shape and not torch.equal(value, after[name])
    }
    assert changed
    assert all(name.startswith("head") for name in changed)


def test_low_rank_updates_are_folded_into_a_plain_model(asked, copper, tmp_path):
    asked["finetune"] |= {"lora_rank": 2, "refit_shifts": False}
    result = train(asked, directory=tmp_path / "run", progress=False)
    again = dpa4sim.load(tmp_path / "run" / "best.safetensors")
    assert weights(again).keys() == weights(dpa4sim.load(copper)).keys()
    before = weights(dpa4sim.load(copper))
    changed = {
        name
        for name, value in weights(again).items()
        if value.shape == before[name].shape and not torch.equal(value, before[name])
    }
    assert "blocks.0.convolution.stack.zonal.0" in changed
    assert not any("norm" in name or name.startswith("head") for name in changed)
    sample = training.frames(1)[0].system
    torch.testing.assert_close(again(sample).energy, result.potential(sample).energy)


def test_a_low_rank_run_goes_on_where_it_stopped(asked, tmp_path, monkeypatch):
    asked["finetune"] |= {"lora_rank": 2}
    whole = train(asked, directory=tmp_path / "whole", progress=False)
    asked["run"] |= {"checkpoint_every_s": 0.0}
    from dpa4sim.train import run

    saved = run.TrainingRun._checkpoint

    def third(self):
        saved(self)
        if self.trainer.done == 3:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(run.TrainingRun, "_checkpoint", third)
        with pytest.raises(InterruptedError):
            train(asked, directory=tmp_path / "parts", progress=False)
    parts = train(asked, directory=tmp_path / "parts", progress=False)
    a, b = weights(whole.potential), weights(parts.potential)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"model": "nonesuch"}, ModelError, "There is no model 'nonesuch'"),
    ({"freeze": ["blocs"]}, ConfigError, "Did you mean 'blocks'"),
    ({"freeze": ["embedding", "all but embedding"]}, ConfigError, "leaves nothing to train"),
])  # fmt: skip
def test_what_is_refused(asked, tmp_path, change, error, message):
    asked["finetune"] |= change
    with pytest.raises(error, match=message):
        train(asked, directory=tmp_path / "run", progress=False)


def test_a_model_config_beside_it_is_refused(asked, tmp_path):
    both = asked | {"model": replace(DPA4Config(species=("Cu",))).to_dict()}
    with pytest.raises(ConfigError, match=r"remove \[model\]"):
        train(both, directory=tmp_path / "run", progress=False)
