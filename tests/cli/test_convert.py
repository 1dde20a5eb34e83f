"""dpa4sim convert: there and back without changing a bit."""

from __future__ import annotations

import pytest
import torch

import dpa4sim
from dpa4sim.adapters.deepmd import read_deepmd
from dpa4sim.model_file import read_safetensors


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back_is_bit_equal(run, model, crystals, tmp_path, dtype):
    source = tmp_path / "source.safetensors"
    dpa4sim.load(model, dtype=dtype).save(source)
    there, back = tmp_path / "there.pt", tmp_path / "back.safetensors"
    assert run("convert", source, there)[0] == 0
    assert run("convert", there, back)[0] == 0
    config, state, _ = read_safetensors(source)
    config_back, state_back, card = read_safetensors(back)
    assert config_back == config
    assert state_back.keys() == state.keys()
    for name, value in state.items():
        assert state_back[name].dtype == value.dtype, name
        assert torch.equal(state_back[name], value), name
    assert "there.pt" in card["origin"]
    before = dpa4sim.load(source, dtype=dtype).evaluate(crystals)
    after = dpa4sim.load(back, dtype=dtype).evaluate(crystals)
    assert torch.equal(before.energy, after.energy)


def test_the_checkpoint_is_one(run, model, tmp_path):
    run("convert", model, tmp_path / "out.pt")
    config, _ = read_deepmd(tmp_path / "out.pt")
    assert config == dpa4sim.load(model).config


def test_a_branch_is_chosen(run, model, tmp_path):
    """A multi-task checkpoint of one branch called `alloys`."""
    run("convert", model, tmp_path / "one.pt")
    content = torch.load(tmp_path / "one.pt", weights_only=True)["model"]
    extra = content.pop("_extra_state")
    params = {"model_dict": {"alloys": extra["model_params"]}}
    many = {key.replace("model.Default.", "model.alloys."): v for key, v in content.items()}
    torch.save({"model": many | {"_extra_state": {"model_params": params}}}, tmp_path / "many.pt")
    out = tmp_path / "out.safetensors"
    assert run("convert", tmp_path / "many.pt", out, "--branch", "alloys")[0] == 0
    assert dpa4sim.load(out).config == dpa4sim.load(model).config
    code, _, err = run("convert", tmp_path / "many.pt", out, "--branch", "metals")
    assert code == 1
    assert "alloys" in err
