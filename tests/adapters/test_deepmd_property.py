"""Property checkpoints of DeePMD-kit: written and read back, and what is refused.

That the numbers are DeePMD-kit's is shown in tests/parity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import BASE, crystal, largest, random_model

from dpa4sim.adapters.deepmd import read_deepmd, write_deepmd
from dpa4sim.config import DPA4Config, PropertyConfig
from dpa4sim.errors import ModelError
from dpa4sim.property import load_property

HEADS = {
    "skips": PropertyConfig(name="gap", task_dim=3, intensive=True, hidden=(8, 16, 16, 5)),
    "automatic": PropertyConfig(name="gap", hidden=(0, 0), activation="silu"),
    "one_bias": PropertyConfig(name="gap", task_dim=2, by_species=False, step_scales=False),
    "direct": PropertyConfig(name="gap", hidden=()),
}
ROUNDING = 1e-14


def written(tmp_path: Path, head: PropertyConfig = HEADS["skips"]) -> tuple[Path, Any]:
    """A checkpoint of a random model, and the model."""
    model = random_model(replace(BASE, property_head=head))
    with torch.no_grad():
        model.head.bias.copy_(torch.randn_like(model.head.bias))
        model.head.spread.copy_(torch.rand(head.task_dim).double().expand_as(model.head.spread) + 1)
    write_deepmd(model.config, model.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt", model


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A checkpoint whose content was changed."""
    path, _ = written(tmp_path)
    content = torch.load(path, weights_only=True)
    edit(content["model"])
    torch.save(content, path)
    return path


def fitting(model: dict[str, Any]) -> dict[str, Any]:
    return model["_extra_state"]["model_params"]["fitting_net"]


@pytest.mark.parametrize("name", HEADS)
def test_written_and_read_back(name, tmp_path):
    path, model = written(tmp_path, HEADS[name])
    config, state = read_deepmd(path)
    assert config == model.config
    before = model.state_dict()
    assert state.keys() == before.keys()
    for key, value in before.items():
        assert largest(state[key] - value) < ROUNDING, key
    values = load_property(path, dtype="float64").evaluate(crystal()).values
    assert values.shape == (1, HEADS[name].task_dim)


def test_every_tensor_of_the_network_is_there_twice(tmp_path):
    """DeePMD-kit's loader asks for both names."""
    path, _ = written(tmp_path)
    names = torch.load(path, weights_only=True)["model"]
    stem = "model.Default.atomic_model.fitting_net.filter_layers."
    single = {n.removeprefix(f"{stem}networks.") for n in names if n.startswith(f"{stem}networks.")}
    double = {n.removeprefix(f"{stem}_networks.") for n in names if n.startswith(f"{stem}_")}
    assert single == double
    assert len(single) == 2 * 5 + 3  # matrix and bias of five layers; three have a skip


def test_two_names_that_disagree(tmp_path):
    def edit(model: dict[str, Any]) -> None:
        name = "model.Default.atomic_model.fitting_net.filter_layers._networks.0.layers.0.bias"
        model[name] = model[name] + 1

    with pytest.raises(ModelError, match="two different tensors for the weight"):
        read_deepmd(edited(tmp_path, edit))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("numb_fparam", 2, "fitting_net.numb_fparam = 2, which dpa4sim does not compute"),
        ("dim_case_embd", 3, "fitting_net.dim_case_embd = 3"),
        ("exclude_types", [1], "fitting_net.exclude_types = [1]"),
        ("invented", 1, "option fitting_net.invented = 1, which dpa4sim does not know"),
        ("activation_function", "silut:3.0", "property_head.activation = 'silut:3.0'"),
    ],
)
def test_option_is_refused_by_name(option, value, words, tmp_path):
    path = edited(tmp_path, lambda model: fitting(model).update({option: value}))
    with pytest.raises(ModelError) as caught:
        read_deepmd(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_words_for_an_activation(tmp_path):
    path = edited(tmp_path, lambda m: fitting(m).update({"activation_function": "GELU_tf"}))
    assert read_deepmd(path)[0].property_head.activation == "gelu"


def test_options_that_are_left_out_have_deepmds_values(tmp_path):
    def edit(model: dict[str, Any]) -> None:
        for option in ("distinguish_types", "activation_function", "resnet_dt"):
            del fitting(model)[option]

    assert read_deepmd(edited(tmp_path, edit))[0].property_head == HEADS["skips"]


def test_property_without_a_name(tmp_path):
    path = edited(tmp_path, lambda model: fitting(model).pop("property_name"))
    with pytest.raises(ModelError, match=r"has no fitting_net\.property_name"):
        read_deepmd(path)


def test_statistics_are_needed(tmp_path):
    path = edited(tmp_path, lambda model: model.pop("model.Default.atomic_model.out_std"))
    with pytest.raises(ModelError, match="lacks the tensor 'out_std', the share of the property"):
        read_deepmd(path)


def test_hidden_widths_that_are_left_out_are_chosen(tmp_path):
    config = DPA4Config(species=("H",), property_head=PropertyConfig(name="gap", hidden=(0,)))
    model = random_model(replace(config, channels=8, n_blocks=1, max_degree=1))
    write_deepmd(model.config, model.state_dict(), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    del fitting(content["model"])["neuron"]
    torch.save(content, tmp_path / "a.pt")
    assert read_deepmd(tmp_path / "a.pt")[0].property_head.hidden == (0,)
