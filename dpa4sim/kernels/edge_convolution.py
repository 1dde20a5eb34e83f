"""The edge pipeline of one block and focus, forward and hand-written backward.

    x_e   = fold(kernel_e, rotation_e) h_j              gather, rotate, mix degrees
    x_e  <- SO(2) stack                                 residual layers
    m_i   = sum_e alpha_e lift(rotation_e)^T x_e        rotate back, weigh, sum at the center

Plain autograd (model/emfa.py) is the reference.  Here the edges pass in chunks of whole centers
through buffers that stay in cache, nothing is stored but the pre-activations and gates, and the
last layer, which is linear, acts after the sum at the center (last_layer.py).  What does not fit
into `Plan.keep_bytes` is not stored but made again in the backward pass, to the same bits.  First
derivatives with respect to node features, kernel, rotation rows and weights alpha; the network's
weights are constants.  For the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpa4sim.kernels.activations import (
    ActivationLoops,
    ActivationShape,
    Sums,
    activate,
    activate_backward,
    add_common,
    pair_columns,
)
from dpa4sim.kernels.frame_products import FrameShape
from dpa4sim.kernels.gather import GatherShape, gather, gather_backward
from dpa4sim.kernels.last_layer import (
    empty_sums,
    last_layer,
    last_layer_backward,
    sum_centers,
    sum_centers_backward,
    unweigh,
    weighted_rows,
)
from dpa4sim.kernels.loops import Run, open_loops
from dpa4sim.kernels.precision import by_size, matmul_precision
from dpa4sim.kernels.segments import chunks, counts
from dpa4sim.kernels.workspace import give, take

CHUNK_EDGES = 768
"""Edges in flight; measured flat between 512 and 2048 on two x86 machines."""

GROUP_ATOMS = 96
"""Atoms whose sums are kept until the last layer acts on them all: 6 MB in Neo."""

GAUSS = (256, 128)
"""Edges, and columns of -m, from which on three products are faster than one of twice their size:
the sums around them must cost less than the quarter of the arithmetic that they save."""


@dataclass(frozen=True)
class Layer:
    """One SO(2) layer of one focus.

    Args:
        zonal: matrix of the m = 0 rows.
        pairs: [[U, V], [-V, U]] of each order m >= 1.
        gate: matrix from the scalars to the gates; None on the last, linear layer.
        scalar_scale: lambda of the scalar row; that of other rows is inside the matrices.
    """

    zonal: Float[Tensor, "row_channel row_channel"]
    pairs: tuple[Tensor, ...]
    gate: Tensor | None
    scalar_scale: Tensor | None

    @cached_property
    def thirds(self) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """U, V - U and -(U + V) of each pair, for Gauss' three products."""
        found = []
        for pair in self.pairs:
            n = len(pair) // 2
            u, v = pair[:n, :n].contiguous(), pair[:n, n:]
            found.append((u, v - u, -(u + v)))
        return tuple(found)


@dataclass(frozen=True)
class Plan(FrameShape):
    """Everything of the pipeline that is constant during an evaluation.

    Args:
        layers: the SO(2) stack; the last layer carries its residual, W + 1.
        neighbor: atom j of each edge.
        offsets: row_ptr as Python integers.
        keep_bytes: what may be stored for the backward pass.
        compiled: whether the loops between the matrix products are.
        precision: of large matrix products; small ones are exact, which is faster.
    """

    layers: tuple[Layer, ...]
    neighbor: Int[Tensor, " edge"]
    offsets: Sequence[int]
    keep_bytes: int
    compiled: bool = field(default=False, kw_only=True)
    precision: str = field(default="highest", kw_only=True)

    @cached_property
    def counts(self) -> list[int]:
        """Edges of each atom."""
        return counts(self.offsets)

    def of_layers(self, n_edges: int) -> AbstractContextManager[None]:
        """Precision of the products of the layers before the last."""
        return matmul_precision(by_size(self.precision, n_edges * self.layers[0].zonal.numel()))

    def gather_loops(self, kernel: Tensor, rows: Tensor) -> tuple[Run, ...] | None:
        """The compiled loops of the gather, where they are asked for."""
        return GatherShape.open(kernel, rows, self) if self.compiled else None

    @property
    def last_matrices(self) -> tuple[Tensor, ...]:
        """Of the last layer."""
        return self.layers[-1].zonal, *self.layers[-1].pairs


def edge_convolution(
    node: Float[Tensor, "atom term_lm channel"],
    kernel: Float[Tensor, "edge column"],
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    plan: Plan,
) -> Float[Tensor, "atom lm channel"]:
    """Messages of one focus, summed at their centers."""
    return _EdgeConvolution.apply(node, kernel, rows, alpha, plan)


class _EdgeConvolution(torch.autograd.Function):
    @staticmethod
    @matmul_precision("highest")
    def forward(
        ctx: Any, node: Tensor, kernel: Tensor, rows: Tensor, alpha: Tensor, plan: Plan
    ) -> Tensor:
        out = node.new_zeros(node.shape[0], plan.n_lm, plan.width)
        node, kernel, rows = node.contiguous(), kernel.contiguous(), rows.contiguous()
        kept, scratch, n_kept = _buffers(plan, kernel, any(ctx.needs_input_grad))
        for atoms, parts in _groups(plan.offsets):
            sums = empty_sums(atoms.stop - atoms.start, alpha.shape[1], plan, node)
            for part in parts:
                edges = slice(plan.offsets[part.start], plan.offsets[part.stop])
                stored = kept.part(edges) if edges.stop <= n_kept else scratch.first(edges)
                _stack(node, kernel[edges], rows[edges], plan, edges, stored)
                weighted = weighted_rows(rows[edges], alpha[edges], plan)
                here = [of_order[..., _within(part, atoms), :] for of_order in sums]
                sum_centers(stored.final, weighted, plan.counts[part], here, plan)
            out[atoms] = last_layer(sums, plan.last_matrices, plan)
        out *= plan.lift[:, None]
        give(*scratch.all)
        ctx.save_for_backward(node, kernel, rows, alpha)
        ctx.plan, ctx.kept, ctx.n_kept = plan, kept, n_kept
        return out

    @staticmethod
    @once_differentiable
    @matmul_precision("highest")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        if ctx.kept is None:
            raise RuntimeError("This kernel's backward runs once; its buffers are reused.")
        node, kernel, rows, alpha = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        scratch = _scratch(plan, kernel, ctx.n_kept)
        gradient = gradient * plan.lift[:, None]
        d_node, d_kernel = torch.zeros_like(node), torch.zeros_like(kernel)  # padding stays zero
        d_rows, d_alpha = torch.zeros_like(rows), torch.zeros_like(alpha)
        for atoms, parts in _groups(plan.offsets):
            d_sums = last_layer_backward(gradient[atoms], plan.last_matrices, alpha.shape[1], plan)
            for part in parts:
                edges = slice(plan.offsets[part.start], plan.offsets[part.stop])
                stored = kept.part(edges)
                if edges.stop > ctx.n_kept:
                    stored = scratch.first(edges)
                    _stack(node, kernel[edges], rows[edges], plan, edges, stored)
                weighted = weighted_rows(rows[edges], alpha[edges], plan)
                here = [of_order[..., _within(part, atoms), :] for of_order in d_sums]
                dx, d_weighted = sum_centers_backward(
                    stored.final, weighted, plan.counts[part], here, plan
                )
                unweigh(d_weighted, rows[edges], alpha[edges], plan, d_rows[edges], d_alpha[edges])
                dx = _stack_backward(dx, stored, plan)
                d_kernel[edges], of_rows = gather_backward(
                    dx, node, kernel[edges], rows[edges], plan.neighbor[edges], d_node, plan,
                    plan.gather_loops(kernel, rows),
                )  # fmt: skip
                d_rows[edges, : of_rows.shape[1], : plan.n_lm] += of_rows
        give(*kept.all, *scratch.all)
        return d_node, d_kernel, d_rows, d_alpha, None


@dataclass(frozen=True)
class _Stored:
    """What the backward pass needs of the SO(2) stack, one row per edge.

    Args:
        pre: what goes into each activation.
        gates: of each activation.
        final: what goes into the last layer.
    """

    pre: list[Tensor]
    gates: list[Tensor]
    final: Tensor

    @classmethod
    def take(cls, n_edges: int, plan: Plan, like: Tensor) -> _Stored:
        """Room for so many edges."""
        gated, total = len(plan.layers) - 1, plan.n_rows * plan.width
        return cls(
            [take((n_edges, total), like) for _ in range(gated)],
            [take((n_edges, plan.max_degree * plan.width), like) for _ in range(gated)],
            take((n_edges, total), like),
        )

    @property
    def all(self) -> tuple[Tensor, ...]:
        """Every buffer."""
        return (self.final, *self.pre, *self.gates)

    def part(self, edges: slice) -> _Stored:
        """The rows of some edges."""
        return _Stored([p[edges] for p in self.pre], [g[edges] for g in self.gates],
                       self.final[edges])  # fmt: skip

    def first(self, edges: slice) -> _Stored:
        """As many rows from the start as there are edges."""
        return self.part(slice(edges.stop - edges.start))


def _buffers(plan: Plan, like: Tensor, keeps: bool) -> tuple[_Stored, _Stored, int]:
    """Buffers that stay for the backward pass, one chunk of passing ones, and the edges kept."""
    gated = len(plan.layers) - 1
    width = (gated + 1) * plan.n_rows + gated * plan.max_degree
    room = plan.keep_bytes // (width * plan.width * like.element_size()) if keeps else 0
    n_kept = len(like)
    if n_kept > room:
        ends = [plan.offsets[last] for _, last in chunks(plan.offsets, CHUNK_EDGES)]
        n_kept = max((end for end in ends if end <= room), default=0)
    return _Stored.take(n_kept, plan, like), _scratch(plan, like, n_kept), n_kept


def _scratch(plan: Plan, like: Tensor, n_kept: int) -> _Stored:
    """Room for the largest chunk that is not kept."""
    spans = [(plan.offsets[a], plan.offsets[b]) for a, b in chunks(plan.offsets, CHUNK_EDGES)]
    largest = max((stop - start for start, stop in spans if stop > n_kept), default=0)
    return _Stored.take(largest, plan, like)


def _groups(offsets: Sequence[int]) -> list[tuple[slice, list[slice]]]:
    """(atoms, the same in chunks of edges), so many that the last layer's products are large."""
    parts = [slice(first, last) for first, last in chunks(offsets, CHUNK_EDGES)]
    groups: list[tuple[slice, list[slice]]] = []
    for part in parts:
        atoms, known = groups[-1] if groups else (slice(0, -1), [])
        if part.start == atoms.stop and part.stop - atoms.start <= GROUP_ATOMS:
            groups[-1] = slice(atoms.start, part.stop), [*known, part]
        else:  # also where atoms without edges lie between
            groups.append((part, [part]))
    return groups


def _within(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _stack(
    node: Tensor, kernel: Tensor, rows: Tensor, plan: Plan, edges: slice, stored: _Stored
) -> None:
    """Gather, rotate and pass the layers, into `stored`."""
    x = stored.final
    gather(node, kernel, rows, plan.neighbor[edges], x, plan, plan.gather_loops(kernel, rows))
    sums = _sums(x, plan)
    for (minus, plus), total in zip(pair_columns(plan), sums, strict=bool(sums)):
        torch.add(x[:, minus], x[:, plus], out=total)
    for layer, u, gate in zip(plan.layers[:-1], stored.pre, stored.gates, strict=True):
        with plan.of_layers(len(x)):
            _linear(x, layer, sums, u)
            if layer.gate is not None:
                torch.mm(u[:, : plan.width], layer.gate, out=gate)
        activate(x, u, gate, layer.scalar_scale, sums, plan, _loops(layer, sums, plan, x))


def _stack_backward(dx: Tensor, stored: _Stored, plan: Plan) -> Tensor:
    """Cotangent of what went into the layers."""
    du, sums = torch.empty_like(dx), _sums(dx, plan)
    d_logit = torch.empty_like(stored.gates[0]) if stored.gates else du
    common: list[Tensor] = []
    for t in reversed(range(len(stored.pre))):
        layer, u, gate = plan.layers[t], stored.pre[t], stored.gates[t]
        loops = _loops(layer, sums, plan, dx)
        if loops is not None and not common:
            common = [torch.zeros_like(total) for total in sums]
        activate_backward(
            dx, u, gate, layer.scalar_scale, common, du, d_logit, sums, plan, loops
        )  # fmt: skip
        with plan.of_layers(len(dx)):
            if layer.gate is not None:
                du[:, : plan.width].addmm_(d_logit, layer.gate.T)
            common = _linear_backward(du, layer, sums, dx)
    add_common(dx, common, plan)
    return dx


def _sums(x: Tensor, plan: Plan) -> list[Tensor]:
    """Room for the sums of Gauss' products; none where he does not help."""
    if len(plan.layers) == 1 or not _by_gauss(plan.layers[0], len(x)):
        return []
    return [x.new_empty(len(x), size * plan.width) for size in plan.sizes[1:]]


def _loops(layer: Layer, sums: Sums, plan: Plan, x: Tensor) -> ActivationLoops | None:
    """The compiled loops between this layer and the next, where they are asked for."""
    if not plan.compiled or layer.gate is None:
        return None
    scaled, summed = layer.scalar_scale is not None, bool(sums)
    shape = ActivationShape(plan.width, plan.max_degree, plan.max_order, scaled, summed, x.dtype)
    runs = open_loops(shape)
    return None if runs is None else ActivationLoops(shape, *runs)


def _linear(x: Tensor, layer: Layer, sums: Sums, out: Tensor) -> None:
    """Out = x W: a product for m = 0, and for each pair of -m and +m one, or three of half the size

    y_-m = (x_- + x_+) U - x_+ (U + V)        y_+m = (x_- + x_+) U + x_- (V - U)
    """
    size = layer.zonal.shape[0]
    torch.mm(x[:, :size], layer.zonal, out=out[:, :size])
    if not sums:
        for pair, minus, plus in _pairs(layer):
            both = slice(minus.start, plus.stop)
            torch.mm(x[:, both], pair, out=out[:, both])
        return
    for total, (u, difference, negated), (_, minus, plus) in zip(
        sums, layer.thirds, _pairs(layer), strict=True
    ):
        common = torch.mm(total, u, out=out[:, plus])
        out[:, minus].copy_(common).addmm_(x[:, plus], negated)
        common.addmm_(x[:, minus], difference)


def _linear_backward(du: Tensor, layer: Layer, sums: Sums, dx: Tensor) -> list[Tensor]:
    """Dx += du W^T, by as many products, but for what is the same for -m and +m: returned."""
    size = layer.zonal.shape[0]
    dx[:, :size].addmm_(du[:, :size], layer.zonal.T)
    if not sums:
        for pair, minus, plus in _pairs(layer):
            both = slice(minus.start, plus.stop)
            dx[:, both].addmm_(du[:, both], pair.T)
        return []
    common = []
    for total, (u, difference, negated), (_, minus, plus) in zip(
        sums, layer.thirds, _pairs(layer), strict=True
    ):
        common.append(torch.mm(total, u.T))
        dx[:, minus].addmm_(du[:, plus], difference.T)
        dx[:, plus].addmm_(du[:, minus], negated.T)
    return common


def _by_gauss(layer: Layer, n_edges: int) -> bool:
    edges, columns = GAUSS
    return n_edges >= edges and bool(layer.pairs) and len(layer.pairs[0]) >= 2 * columns


def _pairs(layer: Layer) -> list[tuple[Tensor, slice, slice]]:
    """Each pair's matrix, and the columns of -m and +m."""
    found, start = [], layer.zonal.shape[0]
    for pair in layer.pairs:
        n = len(pair) // 2
        found.append((pair, slice(start, start + n), slice(start + n, start + 2 * n)))
        start += 2 * n
    return found
