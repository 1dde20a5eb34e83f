"""The way to the edge frame with edges grouped by neighbour, against that of the list."""

from __future__ import annotations

import pytest
import torch

from dpa4sim.kernels.edge_groups import EdgeGroups
from dpa4sim.kernels.frame_products import FrameShape, fold, fold_to_kernel, fold_to_rows
from dpa4sim.kernels.frame_training import (
    AtNeighbors,
    InOrder,
    fold_lanes,
    fold_lanes_to_kernel,
    fold_lanes_to_rows,
)
from dpa4sim.model.frames import degree_of_lm

EXACT = 1e-12
SHAPES = {"neo": (2, 1, 1), "order_2": (3, 2, 2), "order_0": (2, 0, 1), "degree_0": (0, 0, 2)}


def shape(name: str) -> FrameShape:
    L, M, terms = SHAPES[name]
    lm = torch.tensor(degree_of_lm(L))
    return FrameShape(4, terms, L, M, torch.ones(len(lm), dtype=torch.float64), lm)


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def tensors(s: FrameShape, n_edges: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A kernel, and rotation rows without the degrees that an order does not have."""
    kernel = noise(n_edges, s.spans[-1][1], seed=seed)
    rows = noise(n_edges, 2 * s.max_order + 1, s.n_lm, seed=seed + 1)
    for order in range(1, s.max_order + 1):
        rows[:, 2 * order - 1 : 2 * order + 1, : order**2] = 0
    return kernel, rows


@pytest.mark.parametrize("name", SHAPES)
def test_products_with_edges_last_are_the_same(name):
    s = shape(name)
    kernel, rows = tensors(s, 5)
    d_folded = noise(5, s.n_rows, s.terms * s.n_lm, seed=2)
    lanes = d_folded.flatten(1).T.reshape(s.n_rows, s.terms, s.n_lm, 5)
    folded = fold_lanes(kernel.T, rows.permute(1, 2, 0), s)
    assert torch.equal(folded.flatten(0, 2).T, fold(kernel, rows, s).flatten(1))
    d_kernel = fold_lanes_to_kernel(lanes, rows.permute(1, 2, 0), s)
    assert float((d_kernel.T - fold_to_kernel(d_folded, rows, s)).abs().max()) < EXACT
    d_rows = fold_lanes_to_rows(lanes, kernel.T, s).permute(2, 0, 1)
    used = (rows != 0).double()  # `fold_to_rows` leaves noise where the rotation has no rows
    wanted = fold_to_rows(d_folded, kernel, s)
    assert float(((d_rows - wanted) * used).abs().max()) < EXACT
    assert float((d_rows * (1 - used)).abs().max()) == 0


@pytest.mark.parametrize("name", SHAPES)
def test_groups_by_neighbour_give_what_the_list_gives(name):
    s, n_atoms = shape(name), 5
    neighbor = torch.tensor([1, 4, 1, 0, 4, 4, 2, 1])
    found = EdgeGroups.build(neighbor, n_atoms)
    node, dot = (noise(n_atoms, s.terms * s.n_lm, s.width, seed=i) for i in (3, 4))
    d_x = noise(len(neighbor), s.n_rows * s.width, seed=5)
    plain = [
        InOrder(s, h[neighbor], *tensors(s, len(neighbor), seed))
        for h, seed in ((node, 6), (dot, 8))
    ]
    tangent, second = plain[0].second(d_x, plain[1])
    first = plain[0].backward(d_x)
    for group in found.groups:
        edge, mask = found.edge[group.slots], found.filled[group.slots].double()
        grouped = [
            AtNeighbors(
                s,
                h[group.atoms],
                one.kernel[edge].T * mask,
                one.rows[edge].permute(1, 2, 0) * mask,
            )
            for h, one in zip((node, dot), plain, strict=True)
        ]
        x = grouped[0].features()
        given = d_x[edge]
        here, of_second = grouped[0].second(given, grouped[1])
        of_first = grouped[0].backward(given)
        full = found.filled[group.slots]
        assert float((x - plain[0].features()[edge])[full].abs().max()) < EXACT
        assert float(x[~full].abs().sum()) == 0
        assert float((here - tangent[edge])[full].abs().max()) < EXACT
        for mine, theirs in ((of_first, first), (of_second, second)):
            near = torch.zeros_like(node).index_add(0, neighbor, theirs.near)[group.atoms]
            assert float((mine.near - near).abs().max()) < EXACT
            assert float((mine.kernel.T - theirs.kernel[edge])[full].abs().max()) < EXACT
            used = (plain[0].rows[edge] != 0).double()
            rows = mine.rows.permute(2, 0, 1) - theirs.rows[edge]
            assert float((rows * used)[full].abs().max()) < EXACT
