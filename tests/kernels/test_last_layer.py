"""The last layer behind the sum over edges, against the plain order of both."""

from __future__ import annotations

import pytest
import torch

from dpa4sim.kernels import last_layer
from dpa4sim.kernels.frame_products import FrameShape, weigh
from dpa4sim.model.frames import degree_of_lm

ROUNDING = 1e-12
"""Same sums in another order in float64, numbers of order 1 to 10."""

COUNTS = [3, 0, 5, 1]
SHAPES = {"neo": (3, 1, 1), "heads": (2, 2, 3), "order_0": (2, 0, 2), "degree_0": (0, 0, 1)}


def problem(max_degree: int, max_order: int, heads: int) -> tuple:
    """A frame, the matrices of a layer, and x, rows and alpha of a few edges."""
    torch.manual_seed(1)
    width = 6
    lm = torch.tensor(degree_of_lm(max_degree))
    rescale = torch.where(lm > max_order, 1.3, 1.0).double()
    s = FrameShape(width, 1, max_degree, max_order, rescale, lm)
    sizes = [s.sizes[0], *(2 * size for size in s.sizes[1:])]
    matrices = [torch.randn(n * width, n * width, dtype=torch.float64) for n in sizes]
    for pair in matrices[1:]:
        n = len(pair) // 2
        pair[n:, n:], pair[n:, :n] = pair[:n, :n], -pair[:n, n:]
    n_edges = sum(COUNTS)
    x = torch.randn(n_edges, s.n_rows * width, dtype=torch.float64)
    rows = torch.randn(n_edges, 2 * max_order + 3, s.n_lm + 2, dtype=torch.float64)
    for order in range(1, max_order + 1):
        rows[:, 2 * order - 1 : 2 * order + 1, : order**2] = 0
    alpha = torch.randn(n_edges, heads, dtype=torch.float64)
    return s, matrices, x, rows, alpha


def plain(s, matrices, x, rows, alpha):
    """The layer on every edge, the rotation back, the weight, the sum."""
    parts = x.split([len(matrix) for matrix in matrices], 1)
    y = torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)], 1)
    weighted = weigh(y, alpha, s.n_rows).unflatten(1, (s.n_rows, s.width))
    orders = [row for _, row, first, last in s.frames for _ in range(first, last)]
    lifted = rows[:, orders, : s.n_lm] * s.mask
    messages = torch.bmm(lifted.transpose(1, 2), weighted)
    return torch.stack([part.sum(0) for part in messages.split(COUNTS)])


@pytest.mark.parametrize("name", SHAPES)
def test_messages_equal_the_layer_on_every_edge(name):
    s, matrices, x, rows, alpha = problem(*SHAPES[name])
    sums = last_layer.empty_sums(len(COUNTS), alpha.shape[1], s, x)
    last_layer.sum_centers(x, last_layer.weighted_rows(rows, alpha, s), COUNTS, sums, s)
    found = last_layer.last_layer(sums, matrices, s) * s.lift[:, None]
    torch.testing.assert_close(
        found, plain(s, matrices, x, rows, alpha), rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_equal_autograd(name):
    s, matrices, x, rows, alpha = problem(*SHAPES[name])
    leaves = [tensor.clone().requires_grad_() for tensor in (x, rows, alpha)]
    message = plain(s, matrices, *leaves)
    gradient = torch.randn_like(message)
    expected = torch.autograd.grad(message, leaves, gradient)
    d_sums = last_layer.last_layer_backward(gradient * s.lift[:, None], matrices, alpha.shape[1], s)
    weighted = last_layer.weighted_rows(rows, alpha, s)
    dx, d_weighted = last_layer.sum_centers_backward(x, weighted, COUNTS, d_sums, s)
    d_rows, d_alpha = torch.zeros_like(rows), torch.full_like(alpha, torch.nan)
    last_layer.unweigh(d_weighted, rows, alpha, s, d_rows, d_alpha)
    for ours, theirs in zip((dx, d_rows, d_alpha), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", SHAPES)
def test_weight_gradients_equal_autograd(name):
    s, matrices, x, rows, alpha = problem(*SHAPES[name])
    leaves = [matrix.clone().requires_grad_() for matrix in matrices]
    message = plain(s, leaves, x, rows, alpha)
    gradient = torch.randn_like(message)
    expected = torch.autograd.grad(message, leaves, gradient)
    sums = last_layer.empty_sums(len(COUNTS), alpha.shape[1], s, x)
    last_layer.sum_centers(x, last_layer.weighted_rows(rows, alpha, s), COUNTS, sums, s)
    found = last_layer.last_layer_weights(sums, gradient * s.lift[:, None], s)
    for order, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if order:  # U and V of [[U, V], [-V, U]]
            n = len(theirs) // 2
            (a, b), (c, d) = (theirs[i : i + n].split(n, 1) for i in (0, n))
            theirs = torch.cat([torch.cat([a + d, b - c], 1), torch.zeros_like(theirs[n:])])
        torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


def test_sums_are_added():
    s, _, x, rows, alpha = problem(*SHAPES["heads"])
    weighted = last_layer.weighted_rows(rows, alpha, s)
    sums, doubled = (last_layer.empty_sums(len(COUNTS), alpha.shape[1], s, x) for _ in range(2))
    for target, add in ((sums, False), (doubled, False), (doubled, True)):
        last_layer.sum_centers(x, weighted, COUNTS, target, s, add)
    for twice, once in zip(doubled, sums, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=ROUNDING, atol=ROUNDING)
