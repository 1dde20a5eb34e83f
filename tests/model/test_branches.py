"""Branches: modulation in words, folding without a difference, one trunk for all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import BASE, NUMBERS, OPTION_SETS, crystal, largest, random_model
from torch.func import functional_call
from torch.nn.functional import silu

from dpa4sim.config import DPA4Config, PropertyConfig
from dpa4sim.edges import neighbors
from dpa4sim.errors import ConfigError
from dpa4sim.model import DPA4
from dpa4sim.model.branches import BranchedDPA4, Modulation, fold_factors
from dpa4sim.potential import Potential

NAMES = ("water", "alloy", "crystals")
KINDS = ("film", "concat", "own", "shared")
ROUNDING = 1e-12
"""eV and eV/Å; the same float64 numbers added in another order."""
SINGLE = 2e-5
"""eV; folded in float64, kept in float32."""


def branched(kind: str, config: DPA4Config = BASE) -> BranchedDPA4:
    """A float64 network in which every weight of every branch is awake."""
    plain = random_model(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = BranchedDPA4(plain, NAMES, kind)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("head."):
                    parameter.add_(0.3 * torch.randn_like(parameter))
            model.shifts.add_(torch.randn_like(model.shifts))
    return model.eval()


def energies(model: DPA4) -> torch.Tensor:
    """Atomic energies of a crystal, by autograd's path."""
    batch = crystal()
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    return model(species, neighbors(batch, model.config.cutoff))[0]


@pytest.mark.parametrize("hidden", [(0,), (12, 0), ()])
def test_folding_is_modulating_every_feature(hidden):
    """x (1 + e^a tanh gamma) + e^b tanh beta before each matrix, written out."""
    head = random_model(replace(BASE, energy_hidden=hidden)).head
    torch.manual_seed(2)
    widths = [weight.shape[0] for weight in (*head.weights, head.out)]
    modulation = Modulation(3, widths).double()
    with torch.no_grad():
        for parameter in modulation.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(5, BASE.channels, dtype=torch.float64)
    case = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    tensors, constant = fold_factors(dict(head.named_parameters()), modulation(case))
    folded = functional_call(head, tensors, (x,)) + constant

    code = silu(case @ modulation.inner) @ modulation.outer
    for place, matrix in enumerate([*head.weights, head.out]):
        gamma, beta = (code @ modulation.projectors[place]).chunk(2)
        growth = modulation.scale_strength_log[place].exp() * gamma.tanh()
        x = x * (1 + growth) + modulation.shift_strength_log[place].exp() * beta.tanh()
        x = x @ matrix
        if place < len(head.weights):
            value, gate = (x + head.biases[place]).chunk(2, 1)
            x = value * silu(gate)
    assert largest(folded - x[:, 0]) < ROUNDING


def test_modulation_starts_as_none():
    """A new branch says what the head says, bit for bit."""
    plain = random_model(BASE)
    model = BranchedDPA4(plain, NAMES, "film")
    assert torch.equal(energies(model), energies(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_is_a_plain_network(kind):
    model = branched(kind, OPTION_SETS["zbl"])
    for name in NAMES:
        model.choose(name)
        plain = model.network(name)
        assert type(plain) is DPA4
        assert largest(energies(plain) - energies(model)) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_folds_too(kind):
    model = branched(kind)
    expected = energies(model.network("alloy"))
    found = Potential(model.float().network("alloy"))(crystal()).atomic_energies
    assert largest(found - expected) < SINGLE


@pytest.mark.parametrize("kind", KINDS)
def test_branches_differ_in_what_is_their_own(kind):
    """The trunk is the same to the last bit, and so are the heads of branches that share them."""
    states = {name: branched(kind).network(name).state_dict() for name in NAMES}
    differs = {
        name
        for name, value in states["water"].items()
        if not torch.equal(value, states["alloy"][name])
    }
    heads = {
        "shared": set(),
        "concat": {"head.biases.0"},
        "film": {"head.weights.0", "head.biases.0", "head.out"},
        "own": {"head.weights.0", "head.biases.0", "head.out"},
    }
    assert differs == heads[kind] | {"energy_shift"}


def test_shifts_of_a_branch_touch_no_other():
    model = branched("film")
    before = {name: energies(model.network(name)) for name in NAMES}
    with torch.no_grad():
        model.shifts[1] += 7.0
    for name, value in before.items():
        change = energies(model.network(name)) - value
        assert largest(change - (7.0 if name == "alloy" else 0.0)) < ROUNDING


def test_gradients_reach_the_chosen_head_only():
    model = branched("own")
    model.choose("alloy")
    energies(model).sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[2] for name in moved if name.startswith("head.")} == {"1"}
    drawn = {id(parameter) for parameter in model.parameters_of(["alloy"])}
    named = dict(model.named_parameters())
    assert {id(named[name]) for name in moved} <= drawn
    assert not {id(p) for name, p in named.items() if name.startswith("head.members.0.")} & drawn


@pytest.mark.parametrize("kind", ["film", "concat"])
def test_gradients_reach_what_tells_branches_apart(kind):
    model = branched(kind)
    model.choose("crystals")
    energies(model).sum().backward()
    asleep = [
        name
        for name, p in model.named_parameters()
        if name.startswith("head.") and (p.grad is None or not p.grad.any())
    ]
    assert asleep == []


def test_shifts_stay_in_double_precision():
    model = branched("film")
    model.shifts[0, 0] = -431.123456789012345
    model.float()
    assert model.shifts.dtype == torch.float64
    assert model.network("water").energy_shift.dtype == torch.float64
    assert model.shifts[0, 0].item() == -431.123456789012345


def test_frozen_weights_stay_frozen():
    plain = random_model(BASE)
    for parameter in (plain.species_table, *plain.head.parameters()):
        parameter.requires_grad_(False)
    model = BranchedDPA4(plain, NAMES, "own")
    assert not model.species_table.requires_grad
    assert not any(parameter.requires_grad for parameter in model.head.parameters())
    assert model.basis.parameter.requires_grad


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        ((), "film", "at least one"),
        (("a", "a"), "film", "each name once"),
        (("a", "b"), "lora", "Choose one of 'film'"),
    ],
)
def test_what_is_refused(names, kind, words):
    with pytest.raises(ConfigError, match=words):
        BranchedDPA4(random_model(BASE), names, kind)


def test_a_property_has_no_branches():
    plain = DPA4(replace(BASE, property_head=PropertyConfig(name="gap")))
    with pytest.raises(ConfigError, match="predicts the property 'gap'"):
        BranchedDPA4(plain, NAMES)
