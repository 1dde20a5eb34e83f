"""The edge pipeline of one block and focus for training: energy, forces and their derivatives.

    x_e = A_e h_j,   f_e = stack(x_e),   m_i = sum over the edges of i (message_training.py)

A = fold(kernel, rotation).  Forces are first derivatives and the loss derives them once more, so a
step passes the pipeline four times:

| pass | who | gives |
|---|---|---|
| 1 | `_Convolution.forward` | m, and what the others need: f, u_t |
| 2 | `_ConvolutionBackward.forward` | dE/d(h, kernel, rotation, alpha); no weight gradients |
| 3 | `_ConvolutionBackward.backward` | cotangents through pass 2; those of f and u_t wait for |
| 4 | `_Convolution.backward` | cotangents through pass 1, of the weights too |

f and u_t are outputs of pass 1 so that pass 4 takes the cotangents of both routes together: each
matrix meets six products in a step.  The edges pass in slabs of whole centers that fit the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpa4sim.kernels import so2_training
from dpa4sim.kernels.edge_convolution import Layer
from dpa4sim.kernels.frame_products import Folded, FrameShape, fold, fold_to_kernel, fold_to_rows
from dpa4sim.kernels.message_training import AtCenters, OnEdges, Turn
from dpa4sim.kernels.segments import chunks, counts
from dpa4sim.kernels.so2_training import StackShape, flatten, unflatten

SLAB_EDGES = 4096
"""Edges in flight."""

_force_passes = 0  # of the process: CUDA's backward runs in a thread of its own


@contextmanager
def force_pass() -> Iterator[None]:
    """Inside, a backward pass is the one for forces: it makes no weight gradients."""
    global _force_passes
    _force_passes += 1
    try:
        yield
    finally:
        _force_passes -= 1


@dataclass(frozen=True)
class Passes:
    """The four passes of the SO(2) stack, as written or compiled."""

    forward: Callable[..., Any] = so2_training.forward
    backward: Callable[..., Any] = so2_training.backward
    second_backward: Callable[..., Any] = so2_training.second_backward
    final_backward: Callable[..., Any] = so2_training.final_backward


@dataclass(frozen=True)
class Slab:
    """Consecutive edges: those of whole centers where offsets are known.

    Args:
        edges: which of all edges.
        center: atom i of each.
        neighbor: atom j of each.
        atoms: the centers; None where offsets are not known.
        counts: edges of each of them.
    """

    edges: slice
    center: Int[Tensor, " edge"]
    neighbor: Int[Tensor, " edge"]
    atoms: slice | None = None
    counts: Sequence[int] = ()


@dataclass(frozen=True)
class TrainingPlan:
    """Everything of the pipeline that is no differentiable tensor.

    Args:
        frame: index tables of the edge frame.
        stack: shape of the SO(2) stack, without its last layer where that acts on atoms.
        n_layers: S, the last included.
        scaled: whether layers carry a scalar scale.
        passes: the passes of the stack.
        slabs: the edges in order.
    """

    frame: FrameShape
    stack: StackShape
    n_layers: int
    scaled: bool
    passes: Passes
    slabs: Sequence[Slab]

    @property
    def n_saved(self) -> int:
        """Tensors of the slabs that pass 1 saves: f, and u_t and gates of all layers but one."""
        return len(self.slabs) * (2 * self.n_layers - 1)

    def of_slab(self, tensors: Sequence[Any], index: int) -> Sequence[Any]:
        """The S tensors of one slab."""
        return tensors[index * self.n_layers : (index + 1) * self.n_layers]

    def sort(self, saved: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Any]:
        """Inputs, weights, and (slab, (f, u_t), gates) of each slab from what pass 1 saved."""
        first, S = len(saved) - self.n_saved, self.n_layers
        states = saved[first:]
        gates = states[len(self.slabs) * S :]
        slabs = [
            (slab, self.of_slab(states, i), gates[i * (S - 1) : (i + 1) * (S - 1)])
            for i, slab in enumerate(self.slabs)
        ]
        return saved[:4], saved[4:first], slabs

    def layers(self, weights: Sequence[Tensor]) -> list[Layer]:
        """Those of the stack."""
        n_layers = self.n_layers if self.stack.ends_linear else self.n_layers - 1
        return unflatten(weights, self.stack, n_layers, self.scaled)

    def end(
        self, slab: Slab, inputs: Sequence[Tensor], weights: Sequence[Tensor], on_atoms: Tensor
    ) -> AtCenters | OnEdges:
        """What follows the stack."""
        turn = Turn.of(inputs, slab.edges)
        if slab.atoms is None:
            return OnEdges(self.frame, turn, on_atoms, slab.center)
        last = weights[-1 - self.stack.max_order :]
        return AtCenters(self.frame, turn, on_atoms, slab.atoms, slab.counts, last)


def slabs_of(
    center: Int[Tensor, " edge"],
    neighbor: Int[Tensor, " edge"],
    offsets: Sequence[int] | None,
    size: int = SLAB_EDGES,
) -> list[Slab]:
    """Cut the edges into slabs of whole centers; one slab of all where offsets are not known."""
    if offsets is None:
        return [Slab(slice(0, len(center)), center, neighbor)]
    of_atoms, found = counts(offsets), []
    for first, last in chunks(offsets, size):
        edges, atoms = slice(offsets[first], offsets[last]), slice(first, last)
        found.append(Slab(edges, center[edges], neighbor[edges], atoms, of_atoms[atoms]))
    return found


def convolve(
    node: Float[Tensor, "atom term_lm channel"],
    kernel: Float[Tensor, "edge column"],
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    layers: Sequence[Layer],
    plan: TrainingPlan,
) -> Float[Tensor, "atom lm channel"]:
    """Messages of one focus, summed at their centers."""
    return _Convolution.apply(plan, node, kernel, rows, alpha, *flatten(layers))[0]


class _Convolution(torch.autograd.Function):
    """Passes 1 and 4.  Outputs: m, then f and u_t of each slab; no pass copies them together."""

    @staticmethod
    def forward(ctx: Any, plan: TrainingPlan, node: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        (kernel, rows, alpha), weights = tensors[:3], tensors[3:]
        constants = [w.detach() for w in weights]
        s, layers = plan.frame, plan.layers(constants)
        out = node.new_zeros(len(node), s.n_lm, s.width)
        states: list[Tensor] = []
        gates: list[Tensor] = []
        for slab in plan.slabs:
            e = slab.edges
            x = torch.bmm(fold(kernel[e], rows[e], s), node.index_select(0, slab.neighbor))
            f, pre, gates_here = plan.passes.forward(x.flatten(1), layers, plan.stack)
            states += [f, *pre]
            gates += gates_here
            plan.end(slab, (node, *tensors[:3]), constants, out).collect(f)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(node, kernel, rows, alpha, *weights, *states, *gates)
        return out, *states

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, *d_states: Tensor | None) -> tuple[Any, ...]:
        plan, saved = ctx.plan, ctx.saved_tensors
        if d_out is None:
            d_out = saved[0].new_zeros(len(saved[0]), plan.frame.n_lm, plan.frame.width)
        n_weights = len(saved) - 4 - plan.n_saved
        if _force_passes:
            keep = torch.is_grad_enabled()
            found = _ConvolutionBackward.apply(plan, keep, d_out, *saved)
            return None, *found, *[None] * n_weights
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A network prepared for training was differentiated with create_graph=True. Its "
                "weight gradients are not differentiable again. Take forces inside force_pass()."
            )
        return (None, *_final_backward(plan, d_out, d_states, saved))


def _final_backward(
    plan: TrainingPlan,
    d_out: Tensor,
    d_states: Sequence[Tensor | None],
    saved: Sequence[Tensor],
) -> list[Tensor]:
    """Pass 4: cotangents of node, kernel, rows, alpha and the weights."""
    inputs, weights, states = plan.sort(saved)
    node, kernel, rows, _ = inputs
    s, d_out, layers = plan.frame, d_out.contiguous(), plan.layers(weights)
    found = [torch.zeros_like(t) for t in (*inputs, *weights)]
    for index, (slab, (f, *pre), gates) in enumerate(states):
        e = slab.edges
        d_f_given, *d_pre = plan.of_slab(d_states, index)
        end = plan.end(slab, inputs, weights, d_out)
        d_f = end.backward(f, Turn.of(found, e))
        if d_f_given is not None:
            d_f += d_f_given
        near, folded = node.index_select(0, slab.neighbor), fold(kernel[e], rows[e], s)
        x = torch.bmm(folded, near).flatten(1)
        d_x, of_weights = plan.passes.final_backward(d_f, d_pre, x, pre, gates, layers, plan.stack)
        of_weights += end.weight_gradient(f)
        for total, part in zip(found[4:], of_weights, strict=True):
            total += part
        _frame_backward(slab, d_x, near, folded, inputs, s, found)
    return found


def _frame_backward(
    slab: Slab,
    d_x: Float[Tensor, "edge row_channel"],
    near: Float[Tensor, "edge term_lm channel"],
    folded: Folded,
    inputs: Sequence[Tensor],
    s: FrameShape,
    found: Sequence[Tensor],
) -> None:
    """Cotangents of node and rotation (added) and kernel through x = A h.

    Args:
        near: h_j.
        folded: A.
    """
    e, M = slab.edges, 2 * s.max_order + 1
    kernel, rows = inputs[1][e], inputs[2][e]
    d_node, d_kernel, d_rows, *_ = found
    d_x = d_x.unflatten(1, (-1, s.width))
    d_node.index_add_(0, slab.neighbor, torch.bmm(folded.transpose(1, 2), d_x))
    d_folded = torch.bmm(d_x, near.transpose(1, 2))
    d_kernel[e] = fold_to_kernel(d_folded, rows, s)
    d_rows[e, :M, : s.n_lm] += fold_to_rows(d_folded, kernel, s)


class _ConvolutionBackward(torch.autograd.Function):
    """Passes 2 and 3."""

    @staticmethod
    def forward(
        ctx: Any, plan: TrainingPlan, keep: bool, d_out: Tensor, *saved: Tensor
    ) -> tuple[Tensor, ...]:
        inputs, weights, states = plan.sort([t.detach() for t in saved])
        node, kernel, rows, _ = inputs
        s, layers, d_out = plan.frame, plan.layers(weights), d_out.contiguous()
        kept: list[Tensor] = []
        found = [torch.zeros_like(t) for t in inputs]
        for slab, (f, *pre), gates in states:
            e, end = slab.edges, plan.end(slab, inputs, weights, d_out)
            d_f = end.backward(f, Turn.of(found, e))
            d_x = plan.passes.backward(d_f, pre, gates, layers, plan.stack)
            if keep:
                kept += d_x
            near, folded = node.index_select(0, slab.neighbor), fold(kernel[e], rows[e], s)
            _frame_backward(slab, d_x[0], near, folded, inputs, s, found)
        ctx.plan, ctx.n_kept = plan, len(kept)
        ctx.save_for_backward(*kept, d_out, *saved)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dots: Tensor) -> tuple[Tensor | None, ...]:
        plan, tensors = ctx.plan, ctx.saved_tensors
        kept, (d_out, *saved) = tensors[: ctx.n_kept], tensors[ctx.n_kept :]
        inputs, weights, states = plan.sort(saved)
        layers, of_d_out = plan.layers(weights), torch.zeros_like(d_out)
        found = [torch.zeros_like(t) for t in inputs]
        d_weights = [torch.zeros_like(w) for w in weights]
        d_states: list[Tensor] = []
        for index, (slab, (f, *pre), gates) in enumerate(states):
            e, d_x = slab.edges, plan.of_slab(kept, index)
            tangent = _to_frame_second(slab, d_x[0], inputs, dots, plan.frame, found)
            end = plan.end(slab, inputs, weights, d_out)
            f_dot, d_pre, of_weights = plan.passes.second_backward(
                tangent, end.d_stack, d_x, pre, gates, layers, plan.stack
            )
            d_f, of_last = end.second(f, f_dot, Turn.of(dots, e), of_d_out, Turn.of(found, e))
            for total, part in zip(d_weights, of_weights + of_last, strict=True):
                total += part
            d_states += [d_f, *d_pre]
        n_gates = len(plan.slabs) * (plan.n_layers - 1)
        return None, None, of_d_out, *found, *d_weights, *d_states, *[None] * n_gates


def _to_frame_second(
    slab: Slab,
    d_x: Tensor,
    inputs: Sequence[Tensor],
    dots: Sequence[Tensor],
    s: FrameShape,
    found: Sequence[Tensor],
) -> Float[Tensor, "edge row_channel"]:
    """Tangent of x = A h; cotangents of h, kernel and rotation through pass 2 (added)."""
    e, M = slab.edges, 2 * s.max_order + 1
    node, kernel, rows, _ = inputs
    node_dot, kernel_dot, rows_dot, _ = dots
    d_node, d_kernel, d_rows, _ = found
    near = node.index_select(0, slab.neighbor)
    near_dot = node_dot.index_select(0, slab.neighbor)
    folded = fold(kernel[e], rows[e], s)
    folded_dot = fold(kernel_dot[e], rows[e], s) + fold(kernel[e], rows_dot[e], s)
    first = d_x.unflatten(1, (-1, s.width))
    d_node.index_add_(0, slab.neighbor, torch.bmm(folded_dot.transpose(1, 2), first))
    of_folded = torch.bmm(first, near_dot.transpose(1, 2))
    of_folded_dot = torch.bmm(first, near.transpose(1, 2))
    d_kernel[e] = fold_to_kernel(of_folded, rows[e], s)
    d_kernel[e] += fold_to_kernel(of_folded_dot, rows_dot[e], s)
    d_rows[e, :M, : s.n_lm] += fold_to_rows(of_folded, kernel[e], s)
    d_rows[e, :M, : s.n_lm] += fold_to_rows(of_folded_dot, kernel_dot[e], s)
    return torch.baddbmm(torch.bmm(folded, near_dot), folded_dot, near).flatten(1)
