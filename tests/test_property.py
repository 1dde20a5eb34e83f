"""Models of a property: laws, files, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from models import BASE, crystal, dimer, largest, molecule, random_model, rotated, rotation_matrix

import dpa4sim
from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config, PropertyConfig
from dpa4sim.errors import ConfigError, DataError, ModelError
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel, load_any, load_property, predicts_property

TOLERANCE = 1e-11
"""Sums of a few numbers around 1 in another order."""


def model_of(dtype="float64", **head):
    asked = PropertyConfig(name="gap", **{"task_dim": 2, "hidden": (8, 16), **head})
    network = random_model(replace(BASE, property_head=asked))
    with torch.no_grad():
        network.head.bias.copy_(torch.randn_like(network.head.bias))
    return PropertyModel(network, card={"labels": "none"}, dtype=dtype)


@pytest.mark.parametrize("intensive", [True, False])
def test_value_is_the_mean_or_the_sum_of_the_shares(intensive):
    prediction = model_of(intensive=intensive).evaluate([molecule(), crystal()])
    assert prediction.values.shape == (2, 2)
    assert prediction.atomic_values.shape == (10, 2)
    assert prediction.values.dtype == torch.float64
    for system, atoms in ((0, slice(0, 6)), (1, slice(6, 10))):
        shares = prediction.atomic_values[atoms]
        expected = shares.mean(0) if intensive else shares.sum(0)
        assert largest(prediction.values[system] - expected) < TOLERANCE


@pytest.mark.parametrize("intensive", [True, False])
def test_two_far_molecules_are_one_or_double(intensive):
    model, one = model_of(intensive=intensive), molecule()
    apart = torch.cat([one.positions, one.positions + 50])
    both = Batch.single(apart, one.atomic_numbers.repeat(2))
    ratio = model.evaluate(both).values / model.evaluate(one).values
    assert largest(ratio - (1 if intensive else 2)) < TOLERANCE


def test_rotation_and_order_change_nothing():
    model, one = model_of(), crystal()
    value = model.evaluate(one).values
    assert largest(model.evaluate(rotated(one, rotation_matrix())).values - value) < TOLERANCE
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Batch.single(one.positions[order], one.atomic_numbers[order], one.cell[0], pbc=True)
    prediction = model.evaluate(shuffled)
    assert largest(prediction.values - value) < TOLERANCE
    shares = model.evaluate(one).atomic_values[order]
    assert largest(prediction.atomic_values - shares) < TOLERANCE


def test_saved_and_opened(tmp_path):
    model = model_of()
    model.save(tmp_path / "gap.safetensors")
    again = load_property(tmp_path / "gap.safetensors", dtype="float64")
    assert again.config == model.config
    assert again.card == {"labels": "none"}
    assert again.name == "gap"
    assert torch.equal(again.evaluate(molecule()).values, model.evaluate(molecule()).values)
    single = dpa4sim.load_property(tmp_path / "gap.safetensors").evaluate(molecule()).values
    assert largest(single - model.evaluate(molecule()).values) < 1e-4
    assert isinstance(load_any(tmp_path / "gap.safetensors"), PropertyModel)


def test_kind_of_a_file(tmp_path):
    model_of().save(tmp_path / "gap.safetensors")
    Potential(random_model(BASE)).save(tmp_path / "energy.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no model")
    assert predicts_property(tmp_path / "gap.safetensors")
    for name in ("energy", "broken", "missing"):
        assert not predicts_property(tmp_path / f"{name}.safetensors")
    assert isinstance(load_any(tmp_path / "energy.safetensors"), Potential)


def test_asked_for_energies(tmp_path):
    model_of().save(tmp_path / "gap.safetensors")
    with pytest.raises(ModelError, match=r"property 'gap' and no energy, so there are no forces"):
        dpa4sim.load(tmp_path / "gap.safetensors")


def test_energy_model_asked_for_a_property(tmp_path):
    Potential(random_model(BASE)).save(tmp_path / "energy.safetensors")
    with pytest.raises(ModelError, match=r"predicts energies, no property\. Open it by dpa4sim"):
        load_property(tmp_path / "energy.safetensors")


def test_element_that_it_does_not_know():
    with pytest.raises(DataError, match=r"Structure 1 .*does not know the element\(s\) Au"):
        model_of().evaluate([molecule(), dimer(2.0, (79, 79))])


def test_other_precision():
    with pytest.raises(ConfigError, match="dtype = 'float16'"):
        model_of(dtype="float16")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "a/b"}, "property_head.name = 'a/b' cannot name a label"),
        ({"name": "gap", "task_dim": 0}, "property_head.task_dim = 0"),
        ({"name": "gap", "hidden": [-1]}, "no width may be negative"),
        ({"name": "gap", "activation": "sine"}, "property_head.activation = 'sine'"),
        ({"name": "gap", "tasks": 2}, "Did you mean 'property_head.task_dim'"),
    ],
)
def test_head_that_cannot_be(values, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        DPA4Config.from_dict({"species": ["H"], "property_head": values})


def test_no_repulsion_beside_a_property():
    with pytest.raises(ConfigError, match="has no ZBL energy"):
        replace(BASE, zbl_inner=0.5, zbl_outer=1.0, property_head=PropertyConfig(name="gap"))


def test_config_comes_back_from_plain_values():
    config = replace(BASE, property_head=PropertyConfig(name="gap", hidden=(3, 4)))
    assert DPA4Config.from_dict(config.to_dict()) == config
    assert "property_head" not in BASE.to_dict()
