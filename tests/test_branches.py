"""One file of several branches: what it holds once, how one is chosen, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import BASE, crystal, molecule, random_model
from safetensors.torch import load_file

import dpa4sim
from dpa4sim.branches import Branches, branch_names, load_branches, once
from dpa4sim.config import PropertyConfig
from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.model.branches import BranchedDPA4
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel, load_property, predicts_property

NAMES = ("water", "alloy", "crystals")


def models() -> dict[str, Potential]:
    """Three branches with a modulated head."""
    model = BranchedDPA4(random_model(BASE), NAMES, "film")
    with torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.shifts.add_(torch.randn_like(model.shifts))
    return {
        name: Potential(model.network(name), card={"labels": f"of {name}"}, dtype="float64")
        for name in NAMES
    }


@pytest.fixture(scope="module")
def several() -> dict[str, Potential]:
    return models()


@pytest.fixture(scope="module")
def path(several, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("branches") / "several.safetensors"
    Branches(several).save(file)
    return file


def test_a_branch_comes_back_bit_for_bit(several, path):
    for name, before in several.items():
        after = dpa4sim.load(path, branch=name, dtype="float64")
        for batch in (crystal(), molecule()):
            assert torch.equal(before(batch).energy, after(batch).energy)
            assert torch.equal(before(batch).forces, after(batch).forces)
        assert after.card == {"branch": name, "labels": f"of {name}"}


def test_all_of_them(several, path):
    found = load_branches(path, dtype="float64")
    assert tuple(found) == NAMES == branch_names(path)
    assert len(found) == 3
    assert found.card["alloy"]["labels"] == "of alloy"
    for name in NAMES:
        assert torch.equal(found[name](crystal()).energy, several[name](crystal()).energy)


def test_what_is_shared_is_there_once(several, path):
    stored = load_file(path)
    trunk = {k for k in several["water"].model.state_dict() if not k.startswith("head.")}
    trunk.remove("energy_shift")
    assert {k.removeprefix("shared/") for k in stored if k.startswith("shared/")} == trunk
    own = {k.split("/", 1)[1] for k in stored if k.startswith("alloy/")}
    assert own == {"energy_shift", "head.weights.0", "head.biases.0", "head.out"}


def test_what_two_of_three_share_is_each_ones_own():
    one, other = torch.zeros(2), torch.ones(2)
    found = once({"a": {"w": one}, "b": {"w": one.clone()}, "c": {"w": other}})
    assert set(found) == {"a/w", "b/w", "c/w"}
    assert set(once({"a": {"w": one}, "b": {"w": one.clone()}})) == {"shared/w"}
    assert set(once({"a": {"w": one}, "b": {"w": one.double()}})) == {"a/w", "b/w"}


def test_a_branch_saved_alone_is_a_plain_model(path, tmp_path):
    dpa4sim.load(path, branch="water").save(tmp_path / "one.safetensors")
    assert branch_names(tmp_path / "one.safetensors") == ()
    again = dpa4sim.load(tmp_path / "one.safetensors")
    assert again.card["branch"] == "water"


def test_energies_and_properties_in_one_file(several, tmp_path):
    torch.manual_seed(0)
    config = replace(BASE, property_head=PropertyConfig(name="gap"))
    gap = PropertyModel(random_property(config), dtype="float64")
    file = tmp_path / "both.safetensors"
    Branches({"energy": several["water"], "gap": gap}).save(file)
    assert predicts_property(file, "gap")
    assert not predicts_property(file, "energy")
    again = load_property(file, branch="gap", dtype="float64")
    assert torch.equal(again(crystal()).values, gap(crystal()).values)
    with pytest.raises(ModelError, match="predicts the property 'gap'"):
        dpa4sim.load(file, branch="gap")


def random_property(config):
    from dpa4sim.model import DPA4

    with torch.random.fork_rng(devices=[]):
        return DPA4(config, dtype=torch.float64)


def test_the_same_branch_of_several_files_is_an_ensemble(several, path, tmp_path):
    other = tmp_path / "other.safetensors"
    Branches({"water": several["alloy"], "alloy": several["water"]}).save(other)
    both = dpa4sim.load([path, other], branch="water", dtype="float64")
    mean = 0.5 * (several["water"](crystal()).energy + several["alloy"](crystal()).energy)
    assert torch.allclose(both(crystal()).energy, mean, rtol=0, atol=1e-12)


def test_a_branch_must_be_chosen(path):
    words = r"has the branches water, alloy, crystals\. Choose one: branch='water'"
    with pytest.raises(ModelError, match=words):
        dpa4sim.load(path)
    with pytest.raises(ModelError, match=r"has no branch 'metal'\. It has water, alloy"):
        dpa4sim.load(path, branch="metal")
    with pytest.raises(ModelError, match=r"has the branches"):
        load_property(path)


def test_a_plain_file_has_none(several, tmp_path):
    several["water"].save(tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match="holds one network only; leave out branch='water'"):
        dpa4sim.load(tmp_path / "one.safetensors", branch="water")
    with pytest.raises(ModelError, match=r"has no branches. Open it by dpa4sim.load"):
        load_branches(tmp_path / "one.safetensors")
    assert branch_names(tmp_path / "nothing.safetensors") == ()


def test_a_damaged_header_is_named(path, tmp_path):
    from safetensors.torch import save_file

    header = '{"format": "dpa4sim-branches-1", "branches": {"a": {"card": {}}}}'
    save_file(
        {"shared/x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"dpa4sim": header}
    )
    with pytest.raises(ModelError, match="unusable header"):
        dpa4sim.load(tmp_path / "x.safetensors", branch="a")
    with pytest.raises(ModelError, match="lacks the tensor"):
        lacking(path, tmp_path / "y.safetensors")


def lacking(path: Path, out: Path) -> None:
    """Open a copy that lost a tensor of one branch."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    stored = load_file(path)
    del stored["water/head.out"]
    save_file(stored, out, metadata=metadata)
    dpa4sim.load(out, branch="water")


@pytest.mark.parametrize("name", ["", "a/b", " a", "1.5", "a:b"])
def test_names_that_a_file_cannot_hold(several, name):
    with pytest.raises(ConfigError, match="A branch cannot be called"):
        Branches({name: several["water"]})
    with pytest.raises(ConfigError, match="Branches need a model"):
        Branches({})
