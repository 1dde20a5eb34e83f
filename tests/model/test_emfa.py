"""The convolution: equivariance, gauge, attention weights, and its two implementations."""

from dataclasses import replace

import pytest
import torch
from models import (
    BASE,
    CUTOFF,
    OPTION_SETS,
    dimer,
    edge_features,
    largest,
    molecule,
    node_features,
    random_model,
    rotated,
    rotation_matrix,
    wigner,
)
from torch.nn.functional import softplus

from dpa4sim.config import DPA4Config
from dpa4sim.edges import neighbors
from dpa4sim.model.emfa import COMPETITION_FLOOR, EMFA

TOLERANCE = 1e-12
"""Sums of some hundred products of numbers up to 30."""

SETS = pytest.mark.parametrize("name", OPTION_SETS)


def setting(config: DPA4Config, turned: torch.Tensor | None = None):
    model = random_model(config)
    batch = molecule() if turned is None else rotated(molecule(), turned)
    x = node_features(6, config.top_degree, config.channels)
    return model.blocks[0].convolution, edge_features(model, batch), x


def scalars_of(module: EMFA, x: torch.Tensor) -> torch.Tensor:
    return module.mix_in(x)[:, 0].unflatten(1, (module.n_focus, module.width))


@SETS
def test_equivariant(name):
    config, matrix = OPTION_SETS[name], rotation_matrix(5)
    module, edges, x = setting(config)
    _, turned, _ = setting(config, matrix)
    D = wigner(config.top_degree, matrix)
    straight = module(x, edges)
    assert largest(straight) > 0.01
    assert largest(module(D @ x, turned) - D @ straight) < TOLERANCE * max(1, largest(straight))


@SETS
def test_roll_of_the_frames_is_a_gauge(name):
    """Another frame about every edge, the same convolution."""
    config = OPTION_SETS[name]
    module, edges, x = setting(config)
    model = random_model(config)
    vector = neighbors(molecule(), CUTOFF).vector
    roll = torch.linspace(-3, 3, len(vector)).double()
    rows = model.rotation(vector / vector.norm(dim=1, keepdim=True), roll)
    assert largest(rows - edges.rows) > 0.1 or rows.shape[1] == 1
    rolled = replace(edges, rows=rows)
    straight = module(x, edges)
    assert largest(module(x, rolled) - straight) < TOLERANCE * max(1, largest(straight))


@pytest.mark.parametrize("name", ["neo", "order_2", "zbl", "version_1_0"])
def test_hand_written_kernel_is_the_reference(name):
    config = replace(OPTION_SETS[name], n_focus=2)
    module, edges, x = setting(config)
    assert module.has_kernel
    plain, by_kernel = (
        module(x, replace(edges, offsets=offsets))
        for offsets in (None, tuple(edges.row_ptr.tolist()))
    )
    assert largest(plain - by_kernel) < TOLERANCE * max(1, largest(plain))


@pytest.mark.parametrize("name", ["focuses", "scatter", "per_channel"])
def test_no_kernel_where_it_does_not_apply(name):
    module, _, _ = setting(OPTION_SETS[name])
    assert not module.has_kernel


def test_attention_against_its_equation():
    """Eq. 25-28, edge by edge."""
    config = replace(OPTION_SETS["zbl"], n_heads=2, focus_channels=6)
    module, edges, x = setting(config)
    scalars = scalars_of(module, x)
    got = module._attention(scalars, edges)
    normed = scalars / (scalars.square().mean(-1, keepdim=True) + config.epsilon).sqrt()
    normed = normed * module.query_key_norm
    profile = (edges.profile(1)[:, 0] @ module.profile_mix).unflatten(1, (2, 6))
    strength = edges.weight**2 * edges.gate
    raw = torch.zeros_like(got)
    for e, (i, j) in enumerate(zip(edges.center.tolist(), edges.neighbor.tolist(), strict=True)):
        for f in range(2):
            q = normed[i, f] @ module.query.unflatten(1, (2, 6))[:, f]
            k = normed[j, f] @ module.key.unflatten(1, (2, 6))[:, f]
            for a in range(2):
                cut = slice(3 * a, 3 * a + 3)
                logit = q[cut] @ k[cut] / 3**0.5 + profile[e, f] @ module.radial_logit[:, f, a]
                raw[e, f, a] = strength[e] * logit.exp()
    total = softplus(module.null_logit) + config.epsilon
    total = total + torch.zeros(6, 2, 2).double().index_add(0, edges.center, raw)
    assert largest(got - raw / total[edges.center]) < TOLERANCE


def test_attention_leaves_a_share_to_nobody():
    module, edges, x = setting(OPTION_SETS["neo"])
    shares = module._attention(scalars_of(module, x), edges)[:, 0, 0]
    sums = torch.zeros(6).double().index_add(0, edges.center, shares)
    assert bool((shares >= 0).all())
    assert bool((sums < 1).all())
    assert float(sums.detach().max()) > 0.3


@pytest.mark.parametrize("name", ["neo", "scatter"])
def test_an_edge_at_the_cutoff_weighs_exactly_nothing(name):
    model = random_model(OPTION_SETS[name])
    module = model.blocks[0].convolution
    vector = torch.tensor([[CUTOFF, 0, 0], [-CUTOFF, 0, 0]], dtype=torch.float64)
    edges = edge_features(model, dimer(2.0), vector)
    x = node_features(2, model.config.max_degree, model.config.channels)
    weight = (
        module._attention(scalars_of(module, x), edges)
        if module.n_heads
        else module._scatter(edges)
    )
    assert not weight.any()


def test_scatter_weights():
    module, edges, _ = setting(OPTION_SETS["scatter"])
    expected = edges.degree_scale[edges.center] * edges.weight
    assert largest(module._scatter(edges)[:, 0, 0] - expected) < TOLERANCE


@pytest.mark.parametrize("edge_norm", [True, False])
def test_competition(edge_norm):
    """Shares of the focuses sum to 1, none below the floor; Eq. 22-24."""
    config = replace(BASE, n_focus=3, edge_norm=edge_norm, bias=True)
    module, _, _ = setting(config)
    scalars = 30 * torch.randn(7, 3, 8).double()
    got = module._competition(scalars)
    assert largest(got.sum(1) - 1) < TOLERANCE
    assert float(got.detach().min()) >= COMPETITION_FLOOR / 3
    x = scalars
    if edge_norm:
        x = x / (x.square().mean(-1, keepdim=True) + config.epsilon).sqrt() * module.focus_norm
    logit = torch.stack([x[:, f] @ module.focus_weight[:, f] for f in range(3)], 1)
    expected = 0.98 * torch.softmax(logit + module.focus_bias, 1) + 0.02 / 3
    assert largest(got - expected) < TOLERANCE


def test_output_gate():
    config = replace(BASE, n_focus=2, n_heads=4)
    module, _, x = setting(config)
    scalars = scalars_of(module, x)
    normed = scalars / (scalars.square().mean(-1, keepdim=True) + config.epsilon).sqrt()
    normed = normed * module.gate_norm
    got = module._output_gate(scalars).unflatten(1, (2, 4, 2))
    for f in range(2):
        for head in range(4):
            expected = torch.sigmoid(normed[:, f] @ module.gate_weight[:, f, head])
            assert largest(got[:, f, head] - expected[:, None]) < TOLERANCE


def test_starts_as_nothing():
    module = EMFA(BASE, 2, 1)
    assert not module.mix_out.weight.any()
