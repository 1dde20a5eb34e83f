"""The first features of atoms, against sums written as loops."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import largest
from torch.nn.functional import silu

from dpa4sim.model.embedding import (
    ChargeSpin,
    EnvironmentSeed,
    angular_seed,
    degree_scale,
    species_table,
    sum_edges,
    sum_products,
)

TOLERANCE = 1e-13
"""Sums of some hundred products of numbers of order 1."""

CENTER, NEIGHBOR = torch.tensor([[0, 0, 0, 2, 2], [1, 2, 0, 0, 1]])
OFFSETS = (0, 3, 3, 5)  # atom 1 has no edges
WAYS = pytest.mark.parametrize("offsets", [None, OFFSETS])


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_sum_edges():
    message = numbers(5, 2, 3)
    got = sum_edges(message, CENTER, 3)
    assert largest(got - torch.stack([message[:3].sum(0), 0 * got[1], message[3:].sum(0)])) < 1e-15


@WAYS
def test_sum_products_and_its_slope(offsets):
    a, b = numbers(5, 2).requires_grad_(), numbers(5, 3, seed=1).requires_grad_()
    got = sum_products(a, b, CENTER, 3, offsets)
    expected = torch.zeros_like(got)
    for edge, atom in enumerate(CENTER.tolist()):
        expected = expected.index_add(0, torch.tensor([atom]), torch.outer(a[edge], b[edge])[None])
    assert largest(got - expected) < TOLERANCE
    weight = numbers(3, 2, 3, seed=2)
    slopes = torch.autograd.grad((got * weight).sum(), (a, b))
    wanted = torch.autograd.grad((expected * weight).sum(), (a, b))
    assert all(largest(x - y) < TOLERANCE for x, y in zip(slopes, wanted, strict=True))


def test_degree_scale():
    weight = torch.tensor([0.5, 1.0, 0.1, 0.0, 0.3], dtype=torch.float64)
    got = degree_scale(weight, CENTER, 3, 0.25)
    sums = torch.tensor([0.25 + 1 + 0.01 + 0.25, 0.25, 0.09 + 0.25], dtype=torch.float64)
    assert largest(got - sums**-0.5) < TOLERANCE
    assert float(got[1]) == 2


@WAYS
def test_angular_seed(offsets):
    """n_i sum_j Y_lm rho_l, with rho formed on every edge."""
    harmonics, hidden = numbers(5, 8), numbers(5, 4, seed=1)
    matrices, scale = numbers(2, 4, 6, seed=2), numbers(3, seed=3)
    got = angular_seed(harmonics, hidden, matrices, CENTER, scale, offsets)
    expected = torch.zeros(3, 8, 6).double()
    for edge, atom in enumerate(CENTER.tolist()):
        for row in range(8):
            l = 1 if row < 3 else 2
            rho = hidden[edge] @ matrices[l - 1]
            expected[atom, row] += scale[atom] * harmonics[edge, row] * rho
    assert largest(got - expected) < TOLERANCE


@pytest.mark.parametrize(("offsets", "sparing"), [(None, False), (OFFSETS, False), (OFFSETS, True)])
@pytest.mark.parametrize(("norm", "bias"), [(True, False), (False, True), (True, True)])
def test_environment_seed(norm, bias, offsets, sparing, monkeypatch):
    """Eq. 10-12 with every perceptron applied on every edge."""
    monkeypatch.setattr("dpa4sim.kernels.row_chunks.CHUNK_EDGES", 3)
    C = 12
    torch.manual_seed(0)
    seed = EnvironmentSeed(3, C, 5, norm, bias).double()
    for parameter in seed.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    basis, radial_vector, scale = numbers(5, 5), numbers(5, 4, seed=1), numbers(3, seed=2).abs()
    features, species = numbers(3, C, seed=3), torch.tensor([2, 0, 1])
    edges: Any = SimpleNamespace(
        center=CENTER,
        neighbor=NEIGHBOR,
        offsets=offsets,
        centers=offsets,
        sparing=sparing,
        degree_scale=scale,
    )
    got = seed(features, basis, radial_vector, species, edges, 1e-7)

    none = torch.zeros(()).double()
    kinds, r, g = seed.species_table[species], seed.radial, seed.pair
    matrix = torch.zeros(3, 4, C).double()
    for edge, (i, j) in enumerate(zip(CENTER.tolist(), NEIGHBOR.tolist(), strict=True)):
        p = silu(basis[edge] @ r.inner + (r.inner_bias if bias else none)) @ r.outer
        p = torch.cat([p + (r.outer_bias if bias else none), kinds[j], kinds[i]])
        p = silu(p @ g.inner + (g.inner_bias if bias else none)) @ g.outer
        p = p + (g.outer_bias if bias else none)
        matrix[i] += scale[i] * torch.outer(radial_vector[edge], p).detach()
    invariant = matrix.transpose(1, 2) @ matrix[:, :, :4]
    logits = (invariant.flatten(1) @ seed.out).chunk(2, 1)
    if norm:
        scales = seed.scale_norm, seed.shift_norm
        logits = [x / (x.square().mean(1, keepdim=True) + 1e-7).sqrt() * s[0]
                  for x, s in zip(logits, scales, strict=True)]  # fmt: skip
    growth = seed.scale_strength_log.exp() * torch.tanh(logits[0])
    shift = seed.shift_strength_log.exp() * torch.tanh(logits[1])
    assert largest(got - (features * (1 + growth) + shift)) < TOLERANCE


@pytest.mark.parametrize(
    ("channels", "axis", "kinds"), [(8, 4, 8), (2, 1, 8), (64, 8, 16), (160, 8, 32)]
)
def test_widths_of_the_environment_seed(channels, axis, kinds):
    seed = EnvironmentSeed(3, channels, 5, norm=True, bias=False)
    embed = min(channels, 128)
    assert seed.species_table.shape == (4, kinds)
    assert seed.out.shape == (embed * axis, 2 * channels)
    assert seed.radial.outer.shape[1] == max(32, embed - 2 * kinds)


def test_charge_and_spin():
    torch.manual_seed(0)
    module = ChargeSpin(6).double()
    with torch.no_grad():
        module.mix_bias.normal_()
    got = module(torch.tensor([-2.0, 3.0]).double(), torch.tensor([0.0, 1.0]).double())
    for row, (charge, spin) in enumerate([(-2, 0), (3, 1)]):
        both = torch.cat([module.charge_table[charge + 100], module.spin_table[spin]])
        assert largest(got[row] - silu(both @ module.mix + module.mix_bias)) < TOLERANCE


def test_species_table_ends_with_the_padding_row():
    table = species_table(5, 400)
    assert table.shape == (6, 400)
    assert not table[-1].any()
    assert float(table[:-1].std()) == pytest.approx(405**-0.5, rel=0.05)
