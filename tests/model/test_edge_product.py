"""The edge-node product, against its definition: rotate, then mix degrees by loops."""

from dataclasses import replace

import pytest
import torch
from models import BASE, edge_features, largest, molecule, node_features, random_model

from dpa4sim.model.edge_features import FrameLayout
from dpa4sim.model.edge_product import frame_matrix

TOLERANCE = 1e-12
"""Sums of some hundred products of numbers up to 30; 3e-14 is what we see."""

MODES = {
    "none": {"edge_product": "none"},
    "degree": {"edge_product": "degree", "max_order": 2},
    "rank_0": {"product_rank": 0},
    "rank_1": {"product_rank": 1, "max_order": 0},
    "rank_2": {"product_rank": 2, "max_order": 2},
    "mixed": {"product_rank": 2, "focus_channels": 5},
}
WAYS = pytest.mark.parametrize("mode", MODES)


def setting(mode: str):
    """The product, the edges of a molecule, node features, and the mixer of one convolution."""
    config = replace(BASE, n_focus=2, n_blocks=1, **MODES[mode])
    model = random_model(config)
    convolution = model.blocks[0].convolution
    x = node_features(6, config.max_degree, config.n_focus * config.focus_width)
    return convolution, edge_features(model, molecule()), x, convolution.profile_mix


@WAYS
def test_against_loops(mode):
    convolution, edges, x, mixer = setting(mode)
    module, layout = convolution.product, convolution.layout
    got = torch.stack(module(x, edges, layout, mixer), 1).unflatten(2, (-1, module.width))
    total, L = x.shape[2], module.max_degree
    rotated = torch.einsum("erl,elc->erc", frame_matrix(edges, layout), x[edges.neighbor])
    profile = edges.profile(L + 1)
    profile = profile if mixer is None else profile @ mixer
    expected = torch.zeros_like(rotated)
    if mode == "none":
        expected = rotated * profile[:, layout.degree]
    else:
        terms = module.terms or total
        kernel = (profile.flatten(1) @ module.weight).unflatten(1, (-1, terms))
        base = row = 0
        for m, size in enumerate(module.sizes):
            for _ in range(1 if m == 0 else 2):
                for source in range(size):
                    for target in range(size):
                        k = kernel[:, base + source * size + target]
                        if mode not in ("rank_0", "degree"):
                            k = k @ module.channel_basis
                        expected[:, row + target] += k * rotated[:, row + source]
                row += size
            base += size * size
    expected = expected.unflatten(2, (2, module.width)).transpose(1, 2)
    assert largest(got - expected) < TOLERANCE


@pytest.mark.parametrize("mode", ["degree", "rank_1", "rank_2", "mixed"])
def test_scalars_are_row_0(mode):
    convolution, edges, x, mixer = setting(mode)
    module = convolution.product
    kernel = module.kernel(edges, mixer)
    rows = module(x, edges, convolution.layout, mixer)
    for focus in range(2):
        scalars = module.scalars(kernel, module.node_features(x, focus), edges)
        assert largest(scalars - rows[focus][:, : module.width]) < TOLERANCE


def test_profile_folded_and_formed_agree():
    _, edges, _, _ = setting("rank_1")
    weight = torch.randn(3, 8, 11).double()
    formed = torch.einsum("elc,lcn->en", edges.profile(3), weight)
    assert largest(edges.project(weight) - formed) < TOLERANCE
    fewer = torch.einsum("elc,lcn->en", edges.profile(2), weight[:2])
    assert largest(edges.project(weight[:2]) - fewer) < TOLERANCE


@pytest.mark.parametrize(("degree", "order"), [(0, 0), (3, 1), (4, 4)])
def test_layout(degree, order):
    """`mask` keeps each row to its degree; `lift` makes up for the rows left out."""
    layout = FrameLayout.build(degree, order)
    for row, l in enumerate(layout.degree.tolist()):
        inside = torch.zeros((degree + 1) ** 2).double()
        inside[l * l : (l + 1) ** 2] = 1
        assert torch.equal(layout.mask[row], inside)
    for l in range(degree + 1):
        ratio = ((2 * l + 1) / (2 * order + 1)) ** 0.5 if l > order else 1.0
        assert layout.lift[l * l : (l + 1) ** 2].tolist() == pytest.approx([ratio] * (2 * l + 1))
