"""Low-rank updates: nothing at the start, only they train, and they fold away."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from models import BASE, CUTOFF, NUMBERS, OPTION_SETS, molecule, random_model
from torch import Tensor

from dpa4sim.config import DPA4Config
from dpa4sim.edges import Edges, neighbors
from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential
from dpa4sim.train.compiled import force_pass, prepare
from dpa4sim.train.finetune import freeze
from dpa4sim.train.lora import add_lora, fold
from dpa4sim.train.muon import HybridMuon, parameter_groups

ROUNDING = 1e-12
"""Two float64 sums in another order, relative to the largest number."""
SINGLE_ROUNDING = 1e-6

SETS = ("neo", "order_2", "focuses", "so3_grid")


def adapted(config: DPA4Config = BASE, *, awake: bool = True) -> DPA4:
    """A network with rank-2 updates, zero or random."""
    model = random_model(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        added = add_lora(model, rank=2, alpha=3.0)
        if awake:
            for parameter in added:
                parameter.data.normal_(std=0.3)
    return model


def loss(model: DPA4) -> Tensor:
    """Something that depends on energies and forces."""
    batch = molecule()
    found = neighbors(batch, CUTOFF)
    dtype = model.species_table.dtype
    vector = found.vector.detach().to(dtype).requires_grad_(True)
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    atomic, _ = model(species, Edges(found.center, found.neighbor, vector, found.row_ptr))
    with force_pass():
        (gradient,) = torch.autograd.grad(atomic.sum(), vector, create_graph=True)
    return atomic.square().sum() + gradient.square().sum()


def energies(model: DPA4) -> Tensor:
    dtype = str(model.species_table.dtype).removeprefix("torch.")
    return Potential(copy.deepcopy(model), dtype=dtype)(molecule()).atomic_energies


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_a_new_update_changes_no_bit() -> None:
    assert torch.equal(energies(adapted(awake=False)), energies(random_model(BASE)))


@pytest.mark.parametrize("name", SETS)
def test_folded_is_plain_and_equal(name: str) -> None:
    model, plain = adapted(OPTION_SETS[name]), random_model(OPTION_SETS[name])
    folded = fold(model)
    shapes = {key: value.shape for key, value in folded.state_dict().items()}
    assert shapes == {key: value.shape for key, value in plain.state_dict().items()}
    assert off(energies(folded), energies(model)) < ROUNDING
    assert off(energies(plain), energies(model)) > 1e-3
    assert all(parameter.requires_grad for parameter in folded.parameters())
    assert off(energies(adapted(OPTION_SETS[name])), energies(model)) == 0


def test_folded_in_single_precision_agrees() -> None:
    model = adapted().float()
    assert off(energies(fold(model)), energies(model)) < SINGLE_ROUNDING


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_gradients_are_those_of_the_weight(name: str, prepared: bool) -> None:
    """dL/dB = alpha / rank A^T dL/dW, dL/dA = alpha / rank dL/dW B^T, of the folded network."""
    model = adapted(OPTION_SETS[name])
    folded = fold(model)
    loss(folded).backward()
    loss(prepare(model, compile=False) if prepared else model).backward()
    expected = dict(folded.named_parameters())
    updated = 0
    for path, module in model.named_modules():
        if type(module).__name__ != "LowRank":
            continue
        of_weight = expected[path.replace("parametrizations.", "").removesuffix(".0")].grad
        assert of_weight is not None
        updated += 1
        down, up = module.get_parameter("down"), module.get_parameter("up")
        assert down.grad is not None
        assert up.grad is not None
        assert off(up.grad, 1.5 * down.detach().mT @ of_weight) < 100 * ROUNDING
        assert off(down.grad, 1.5 * of_weight @ up.detach().mT) < 100 * ROUNDING
    assert updated > 10


def test_the_blocks_learn_the_same_when_the_embedding_is_frozen() -> None:
    """The hand-written kernels without weight gradients must not take over."""
    gradients = []
    for groups in ([], ["embedding"]):
        model = random_model(BASE)
        freeze(model, groups)
        loss(model).backward()
        gradients.append(model.get_parameter("blocks.0.convolution.mix_in.weight").grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert off(gradients[1], gradients[0]) < ROUNDING


def test_training_moves_every_update_and_nothing_else() -> None:
    model = adapted(awake=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = parameter_groups(model, lr=0.1)
    assert [group["kind"] for group in groups] == ["muon"]
    optimizer = HybridMuon(groups)
    for _ in range(2):  # A has no gradient while B is zero
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        moves = name.endswith((".down", ".up"))
        assert torch.equal(value, before[name]) != moves, name


def test_frozen_groups_and_those_left_out_get_no_update() -> None:
    model = random_model(BASE)
    freeze(model, ["blocks.0"])
    add_lora(model, rank=1, alpha=1.0, only=["blocks"])
    with_update = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert with_update == {"1"}


def test_a_copy_and_its_state_work_as_the_original() -> None:
    model = adapted()
    twin = copy.deepcopy(model)
    other = adapted(awake=False)
    other.load_state_dict(model.state_dict())
    assert torch.equal(energies(twin), energies(model))
    assert torch.equal(energies(other), energies(model))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="rank"):
        add_lora(random_model(BASE), rank=0, alpha=1.0)
    with pytest.raises(ModelError, match="fold"):
        add_lora(adapted(), rank=1, alpha=1.0)
    with pytest.raises(ConfigError, match="Did you mean 'readout'"):
        add_lora(random_model(BASE), rank=1, alpha=1.0, only=["redout"])
    with pytest.raises(ConfigError, match="left for low-rank"):
        add_lora(random_model(replace(BASE)), rank=1, alpha=1.0, only=["head"])
