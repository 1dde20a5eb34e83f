"""Multi-task checkpoints: written and read back, and what is refused.

That the numbers are DeePMD-kit's is shown in tests/parity.
"""

from __future__ import annotations

import pytest
import torch
from models import BASE, crystal, random_model

from dpa4sim.adapters.deepmd import branches_of, read_deepmd, write_deepmd, write_deepmd_branches
from dpa4sim.branches import branch_names, load_branches
from dpa4sim.errors import ModelError
from dpa4sim.potential import Potential, load

NETWORK = "model.Default.atomic_model.fitting_net.filter_layers.networks.0."


@pytest.fixture
def networks():
    return {name: random_model(BASE, seed) for seed, name in enumerate(("water", "alloy"))}


def test_branches_written_and_read_back(networks, tmp_path):
    path = tmp_path / "many.pt"
    write_deepmd_branches({k: (m.config, m.state_dict()) for k, m in networks.items()}, path)
    assert branch_names(path) == branches_of(path) == ("water", "alloy")
    for name, model in networks.items():
        config, state = read_deepmd(path, name)
        assert config == model.config
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    for name, found in load_branches(path, dtype="float64").items():
        expected = Potential(networks[name], dtype="float64")(crystal())
        assert torch.equal(found(crystal()).energy, expected.energy)


def test_a_single_task_has_no_branches(networks, tmp_path):
    model = networks["water"]
    write_deepmd(model.config, model.state_dict(), tmp_path / "one.pt")
    assert branch_names(tmp_path / "one.pt") == ()
    assert branch_names(tmp_path / "none.pt") == ()


def with_case(tmp_path, model, **options):
    """A checkpoint whose fitting net hears of one of two cases, appended to the descriptor."""
    path = tmp_path / "case.pt"
    write_deepmd(model.config, model.state_dict(), path)
    content = torch.load(path, weights_only=True)
    state = content["model"]
    state["_extra_state"]["model_params"]["fitting_net"] |= {"dim_case_embd": 2, **options}
    matrix = f"{NETWORK}hidden_layers.0.linear.matrix"
    rows = torch.arange(2.0 * state[matrix].shape[1], dtype=torch.float64).reshape(2, -1) / 100
    state[matrix] = torch.cat([state[matrix], rows])
    state["model.Default.atomic_model.fitting_net.case_embd"] = torch.tensor([0.0, 1.0]).double()
    torch.save(content, path)
    return path, rows[1]


def test_an_appended_case_is_a_bias(networks, tmp_path):
    model = networks["water"]
    path, row = with_case(tmp_path, model)
    config, state = read_deepmd(path)
    width = model.head.weights[0].shape[1] // 2
    assert config.energy_hidden == (width,)
    assert torch.equal(state["head.weights.0"], model.head.weights[0])
    assert torch.equal(state["head.biases.0"], model.head.biases[0] + row)


def test_options_without_a_case_change_nothing(networks, tmp_path):
    model = networks["water"]
    write_deepmd(model.config, model.state_dict(), tmp_path / "one.pt")
    content = torch.load(tmp_path / "one.pt", weights_only=True)
    fitting = content["model"]["_extra_state"]["model_params"]["fitting_net"]
    fitting |= {"dim_case_embd": 0, "case_film_embd": True}
    torch.save(content, tmp_path / "two.pt")
    config, state = read_deepmd(tmp_path / "two.pt")
    assert config == model.config
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_missing_tensor_is_named(networks, tmp_path):
    path, _ = with_case(tmp_path, networks["water"], case_film_embd=True)
    with pytest.raises(ModelError, match=r"lacks the tensor '.*case_film\.case_layer1\.matrix'"):
        load(path)
    content = torch.load(path, weights_only=True)
    del content["model"]["model.Default.atomic_model.fitting_net.case_embd"]
    torch.save(content, path)
    with pytest.raises(ModelError, match=r"lacks the tensor '.*case_embd'"):
        load(path)
