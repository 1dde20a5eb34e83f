"""One interaction block: order of its parts, extra degrees, equivariance."""

from dataclasses import replace

import pytest
import torch
from models import (
    BASE,
    OPTION_SETS,
    edge_features,
    largest,
    molecule,
    node_features,
    random_model,
    rotated,
    rotation_matrix,
    wigner,
)
from torch import nn

from dpa4sim.model.feed_forward import FeedForward, GatedFeedForward
from dpa4sim.model.norm import DegreeNorm

TOLERANCE = 1e-12
"""Per largest number: two normed layers of sums of a hundred products."""

PLACES = ("before_convolution", "after_convolution", "before_ffn", "after_ffn")


@pytest.mark.parametrize("name", OPTION_SETS)
def test_equivariant(name):
    config, matrix = OPTION_SETS[name], rotation_matrix(6)
    model, degree = random_model(config), config.top_degree + config.extra_degree
    x, D = node_features(6, degree, config.channels), wigner(degree, matrix)
    block = model.blocks[0]
    straight = block(x, edge_features(model, molecule()))
    turned = block(D @ x, edge_features(model, rotated(molecule(), matrix)))
    assert largest(turned - D @ straight) < 10 * TOLERANCE * max(1, largest(straight))


def test_parts_in_their_order():
    """x + N(conv(N(x))), then + scale N(ffn(N(x))) twice."""
    config = replace(BASE, ffn_blocks=2, layer_scale=True, norm_places=PLACES)
    model = random_model(config)
    block, edges = model.blocks[0], edge_features(model, molecule())
    x = node_features(6, 2, 8)
    expected = x + block.norm_after(block.convolution(block.norm_before(x), edges))
    for unit in range(2):
        update = block.feed_forward[unit](block.ffn_norm_before[unit](expected))
        update = block.ffn_norm_after[unit](update) * block.ffn_scales[unit]
        expected = expected + update
    assert largest(block(x, edges) - expected) < TOLERANCE * largest(expected)


def test_extra_degrees_pass_the_convolution_by():
    config = replace(BASE, extra_degree=1)
    model = random_model(config)
    block, edges = model.blocks[0], edge_features(model, molecule())
    with torch.no_grad():
        for parameter in block.feed_forward.parameters():
            parameter.zero_()
    x = node_features(6, 3, 8)
    y = block(x, edges)
    assert block.n_rows == 16
    assert torch.equal(y[:, 9:], x[:, 9:])
    assert largest(y[:, :9] - x[:, :9]) > 0.01


@pytest.mark.parametrize("place", PLACES)
def test_norm_places(place):
    model = random_model(replace(BASE, norm_places=(place,)))
    block = model.blocks[0]
    at = {
        "before_convolution": block.norm_before,
        "after_convolution": block.norm_after,
        "before_ffn": block.ffn_norm_before[0],
        "after_ffn": block.ffn_norm_after[0],
    }
    for name, module in at.items():
        assert isinstance(module, DegreeNorm if name == place else nn.Identity)


@pytest.mark.parametrize(("edge_norm", "epsilon"), [(True, 1e-5), (False, 1.0)])
def test_guard_of_the_norm_after_the_convolution(edge_norm, epsilon):
    block = random_model(replace(BASE, edge_norm=edge_norm)).blocks[0]
    assert block.norm_after.epsilon == epsilon
    assert block.ffn_norm_before[0].epsilon == 1e-5


def test_kind_of_feed_forward():
    kinds = {"none": GatedFeedForward, "s2": FeedForward, "so3": FeedForward}
    for grid, kind in kinds.items():
        assert type(random_model(replace(BASE, ffn_grid=grid)).blocks[0].feed_forward[0]) is kind
