"""Random problems for the Triton kernels, and the edge pipeline as plain sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import silu

from dpa4sim.kernels.edge_convolution import Layer, Plan
from dpa4sim.kernels.triton_plan import interpreted
from dpa4sim.model.edge_features import FrameLayout
from dpa4sim.model.frames import degree_of_lm

DEVICE = "cpu" if interpreted() else "cuda"
DTYPES = (torch.float64, torch.float32) if interpreted() else (torch.float32,)
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-4}
"""Sums of up to some thousand products of order 1 in another order, relative to the largest."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def problem(
    shape: tuple[int, int, int, int, int, int],
    counts: Sequence[int],
    padding: int = 0,
    seed: int = 0,
) -> tuple[Inputs, Plan]:
    """Node features, kernel, rotation rows and weights in float64, and their plan.

    Args:
        shape: L, M, channels, layers, terms, heads.
        counts: edges of each atom.
        padding: edges that no atom owns; every number of theirs is NaN.
    """
    L, M, C, S, R, A = shape
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    n_atoms, n_edges = len(counts), sum(counts)
    degrees = [L - m + 1 for m in range(M + 1)]
    layers = [_layer(random, degrees, C, last=s == S - 1) for s in range(S)]
    neighbor = torch.randint(0, n_atoms, (n_edges,), generator=generator)
    node = random(n_atoms, R * (L + 1) ** 2, C)
    kernel = random(n_edges, R * sum(size * size for size in degrees))
    rows = random(n_edges, 2 * M + 2, (L + 2) ** 2) * _allowed(L + 1, 2 * M + 2)
    alpha = random(n_edges, A)
    kernel, rows, alpha = (_pad(tensor, padding) for tensor in (kernel, rows, alpha))
    plan = Plan(
        width=C,
        terms=R,
        max_degree=L,
        max_order=M,
        lift=FrameLayout.build(L, M).lift,
        degree_of_lm=torch.tensor(degree_of_lm(L)),
        layers=tuple(layers),
        neighbor=torch.cat([neighbor, torch.full((padding,), n_atoms - 1)]),
        offsets=(0, *torch.tensor(counts).cumsum(0).tolist()),
        keep_bytes=1 << 30,
    )
    return (node, kernel, rows, alpha), plan


def _layer(random, degrees: list[int], C: int, *, last: bool) -> Layer:
    size = degrees[0] * C
    pairs = []
    for n in degrees[1:]:
        u, v = (0.3 * random(n * C, n * C) / (n * C) ** 0.5 for _ in range(2))
        pairs.append(torch.cat([torch.cat([u, v], 1), torch.cat([-v, u], 1)]))
    gate = None if last or len(degrees) == 0 or degrees[0] == 1 else random(C, size - C) / C**0.5
    return Layer(
        0.5 * random(size, size) / size**0.5, tuple(pairs), gate, None if last else random(C)
    )


def _allowed(max_degree: int, frames: int) -> Tensor:
    """The rotation has no entries with l < |m|."""
    order = (torch.arange(frames) + 1) // 2
    return order[:, None] <= torch.tensor(degree_of_lm(max_degree))


def _pad(tensor: Tensor, padding: int) -> Tensor:
    return torch.cat([tensor, tensor.new_full((padding, *tensor.shape[1:]), torch.nan)])


def moved(inputs: Inputs, plan: Plan, dtype: torch.dtype) -> tuple[Inputs, Plan]:
    """The same on the device under test."""

    def move(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.to(DEVICE, dtype if tensor.is_floating_point() else None)

    layers = tuple(
        Layer(
            move(layer.zonal),
            tuple(move(pair) for pair in layer.pairs),
            move(layer.gate),
            move(layer.scalar_scale),
        )
        for layer in plan.layers
    )
    there = {name: move(getattr(plan, name)) for name in ("lift", "degree_of_lm", "neighbor")}
    return tuple(move(tensor) for tensor in inputs), replace(plan, layers=layers, **there)


def reference(node: Tensor, kernel: Tensor, rows: Tensor, alpha: Tensor, plan: Plan) -> Tensor:
    """Messages by Eq. 16-25 as they stand, in plain operations; padding left out."""
    n_edges, C = plan.offsets[-1], plan.width
    centers = torch.arange(node.shape[0]).repeat_interleave(torch.tensor(plan.offsets).diff())
    kernel, rows, alpha = kernel[:n_edges], rows[:n_edges], alpha[:n_edges]
    h = node[plan.neighbor[:n_edges]].unflatten(1, (plan.terms, plan.n_lm))
    frames = {frame: order for order, frame, _, _ in plan.frames}
    x = {
        frame: _mix(kernel, _rotate(h, rows[:, frame], plan), order, plan)
        for frame, order in frames.items()
    }
    for layer in plan.layers:
        x = _apply(x, layer, C, last=layer is plan.layers[-1])
    out = node.new_zeros(node.shape[0], plan.n_lm, C)
    weight = alpha.repeat_interleave(C // alpha.shape[1], 1)
    for frame, order in frames.items():
        columns = [l * l + k for l in range(order, plan.max_degree + 1) for k in range(2 * l + 1)]
        degrees = plan.degree_of_lm[columns] - order
        turn = rows[:, frame][:, columns] * plan.lift[columns]
        message = turn[:, :, None] * x[frame][:, degrees] * weight[:, None]
        out = out.index_put((centers[:, None], torch.tensor(columns)), message, accumulate=True)
    return out


def _rotate(h: Tensor, row: Tensor, plan: Plan) -> list[Tensor]:
    """sum_m' D^l_mm' h[l, m'] of each degree; (edge, term, channel)."""
    return [
        (row[:, None, l * l : (l + 1) ** 2, None] * h[:, :, l * l : (l + 1) ** 2]).sum(2)
        for l in range(plan.max_degree + 1)
    ]


def _mix(kernel: Tensor, rotated: list[Tensor], order: int, plan: Plan) -> Tensor:
    """sum_{r, l} k[l', r, l] of one order."""
    size = plan.max_degree - order + 1
    start = sum(plan.terms * (plan.max_degree - m + 1) ** 2 for m in range(order))
    k = kernel[:, start : start + plan.terms * size * size].unflatten(1, (size, plan.terms, size))
    return torch.einsum("eprl,erlc->epc", k, torch.stack(rotated[order:], 2))


def _apply(x: dict[int, Tensor], layer: Layer, C: int, *, last: bool) -> dict[int, Tensor]:
    """One layer: a product for m = 0 and one of each (-m, +m) side by side."""
    u = {0: (x[0].flatten(1) @ layer.zonal).unflatten(1, (-1, C))}
    for index, pair in enumerate(layer.pairs):
        lower, upper = 2 * index + 1, 2 * index + 2
        both = (torch.cat([x[lower], x[upper]], 1).flatten(1) @ pair).unflatten(1, (-1, C))
        u[lower], u[upper] = both.chunk(2, 1)
    if last:
        return u
    scalar = u[0][:, 0]
    gate = scalar[:, None]  # of nothing where there is no degree l >= 1
    if layer.gate is not None:
        gate = torch.sigmoid(scalar @ layer.gate).unflatten(1, (-1, C))
    factor = 1 if layer.scalar_scale is None else layer.scalar_scale
    top = silu(scalar) * factor
    found = {0: x[0] + torch.cat([top[:, None], gate * u[0][:, 1:]], 1)}
    for frame in range(1, len(u)):
        order = (frame + 1) // 2
        found[frame] = x[frame] + gate[:, order - 1 :] * u[frame]
    return found


def gradients(function, inputs: Inputs, plan: Plan, probe: Tensor) -> list[Tensor]:
    """Output, and the cotangents of the four inputs for a probe of the output."""
    leaves = [tensor.detach().clone().requires_grad_(True) for tensor in inputs]
    out = function(*leaves, plan)
    return [out.detach(), *torch.autograd.grad((out * probe).sum(), leaves)]


def probe_of(inputs: Inputs, plan: Plan) -> Tensor:
    """A cotangent of the messages without a symmetry, float64."""
    shape = inputs[0].shape[0], plan.n_lm, plan.width
    generator = torch.Generator().manual_seed(99)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_close(found: Tensor, wanted: Tensor, what: str) -> None:
    """Equal up to rounding relative to the largest number."""
    assert found.shape == wanted.shape, what
    if not wanted.numel():
        return
    difference = (found.detach().cpu().double() - wanted.detach()).abs().max()
    bound = ROUNDING[found.dtype] * max(1.0, float(wanted.detach().abs().max()))
    assert float(difference) <= bound, f"{what}: {float(difference):.2e} > {bound:.2e}"
