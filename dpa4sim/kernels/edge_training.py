"""The edge pipeline of one block and focus for training: energy, forces and their derivatives.

    x_e = A_e h_j (frame_training.py),   f_e = stack(x_e) (so2_training.py),
    m_i = sum over the edges of i (message_training.py)

Forces are first derivatives and the loss derives them once more, so a step passes the pipeline
four times:

| pass | who | gives |
|---|---|---|
| 1 | `_Convolution.forward` | m, and what the others need: f, u_t |
| 2 | `_ConvolutionBackward.forward` | dE/d(h, kernel, rotation, alpha); no weight gradients |
| 3 | `_ConvolutionBackward.backward` | cotangents through pass 2; those of f and u_t wait for |
| 4 | `_Convolution.backward` | cotangents through pass 1, of the weights too |

f and u_t are outputs of pass 1 so that pass 4 takes the cotangents of both routes together: each
matrix meets six products in a step.  Where edges are grouped (edge_groups.py, edge_order.py), the
stack has them by neighbour, a group that fits the cache at a time, and the messages by center.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpa4sim.kernels import so2_training
from dpa4sim.kernels.edge_convolution import Layer
from dpa4sim.kernels.edge_order import Arranged, Grouped, Listed, Part
from dpa4sim.kernels.frame_products import FrameShape
from dpa4sim.kernels.frame_training import Beginning
from dpa4sim.kernels.message_training import AtCenters, OnEdges, Turn
from dpa4sim.kernels.so2_training import StackShape, flatten, unflatten

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
class TrainingPlan:
    """Everything of the pipeline that is no differentiable tensor.

    Args:
        frame: index tables of the edge frame.
        stack: shape of the SO(2) stack, without its last layer where that acts on atoms.
        n_layers: S, the last included.
        scaled: whether layers carry a scalar scale.
        passes: the passes of the stack.
        order: in which order the edges pass.
    """

    frame: FrameShape
    stack: StackShape
    n_layers: int
    scaled: bool
    passes: Passes
    order: Grouped | Listed

    @property
    def n_activated(self) -> int:
        """Layers with an activation."""
        return self.n_layers - 1

    def of_part(self, tensors: Sequence[Any], part: int, n: int) -> Sequence[Any]:
        """The n tensors of one part by neighbour."""
        return tensors[part * n : (part + 1) * n]

    def sort(self, saved: Sequence[Tensor]) -> Saved:
        """What pass 1 saved."""
        n_pre = self.n_activated * len(self.order.at_neighbors)
        n_f = len(self.order.at_centers)
        first, rest = len(saved) - 2 * n_pre - n_f, len(saved) - n_pre
        f, pre = saved[first : first + n_f], saved[first + n_f : rest]
        return Saved(saved[:4], saved[4:first], f, pre, saved[rest:])

    def layers(self, weights: Sequence[Tensor]) -> list[Layer]:
        """Those of the stack."""
        n_layers = self.n_layers if self.stack.ends_linear else self.n_activated
        return unflatten(weights, self.stack, n_layers, self.scaled)

    def starts(self, given: Arranged) -> Iterator[tuple[int, Part, Beginning]]:
        """What comes before the stack, part by part."""
        for index, part in enumerate(self.order.at_neighbors):
            yield index, part, self.order.begin(part, given, self.frame)

    def ends(
        self, turn: Turn, on_atoms: Tensor, weights: Sequence[Tensor]
    ) -> list[tuple[Part, AtCenters | OnEdges]]:
        """What follows the stack, part by part."""
        last = weights[-1 - self.stack.max_order :]
        return [
            (part, self.order.end(part, turn, on_atoms, last, self.frame))
            for part in self.order.at_centers
        ]


class Saved(NamedTuple):
    """What the passes share.

    Args:
        inputs: node, kernel, rows, alpha.
        weights: of the stack and of the last layer.
        f: of each part by center.
        pre: u_t of each part by neighbour.
        gates: the same of the gates.
    """

    inputs: Sequence[Tensor]
    weights: Sequence[Tensor]
    f: Sequence[Tensor]
    pre: Sequence[Tensor]
    gates: Sequence[Tensor]


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
    """Passes 1 and 4.  Outputs: m, then f and the u_t of each part; no pass joins the u_t."""

    @staticmethod
    def forward(ctx: Any, plan: TrainingPlan, node: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, weights = (node, *tensors[:3]), tensors[3:]
        constants = [w.detach() for w in weights]
        s, layers = plan.frame, plan.layers(constants)
        given = plan.order.arrange(inputs, s)
        out = node.new_zeros(len(node), s.n_lm, s.width)
        of_parts, pre, gates = [], [], []
        for _, _, begin in plan.starts(given):
            f, pre_here, gates_here = plan.passes.forward(begin.features(), layers, plan.stack)
            of_parts.append(f)
            pre += pre_here
            gates += gates_here
        f = plan.order.by_center(of_parts)
        del of_parts
        for (_, end), z in zip(plan.ends(given.turn, out, constants), f, strict=True):
            end.collect(z)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *weights, *f, *pre, *gates)
        return out, *f, *pre

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, *d_states: Tensor | None) -> tuple[Any, ...]:
        plan, saved = ctx.plan, ctx.saved_tensors
        if d_out is None:
            d_out = saved[0].new_zeros(len(saved[0]), plan.frame.n_lm, plan.frame.width)
        if _force_passes:
            keep = torch.is_grad_enabled()
            found = _ConvolutionBackward.apply(plan, keep, d_out, *saved)
            return None, *found, *[None] * len(plan.sort(saved).weights)
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A network prepared for training was differentiated with create_graph=True. Its "
                "weight gradients are not differentiable again. Take forces inside force_pass()."
            )
        return (None, *_final_backward(plan, d_out.contiguous(), d_states, saved))


def _final_backward(
    plan: TrainingPlan,
    d_out: Tensor,
    d_states: Sequence[Tensor | None],
    saved: Sequence[Tensor],
) -> list[Tensor]:
    """Pass 4: cotangents of node, kernel, rows, alpha and the weights."""
    inputs, weights, f, pre, gates = plan.sort(saved)
    layers, n = plan.layers(weights), plan.n_activated
    given = plan.order.arrange(inputs, plan.frame)
    found, d_weights = given.empty(), [torch.zeros_like(w) for w in weights]
    d_f, d_f_given, d_pre = _like_all(f), d_states[: len(f)], d_states[len(f) :]
    ends = plan.ends(given.turn, d_out, weights)
    for (part, end), z, more in zip(ends, f, d_f_given, strict=True):
        here = d_f[part.edges]
        end.backward(z, found.turn.of(part.edges), here)
        _add_last(d_weights, end.weight_gradient(z))
        if more is not None:
            here += more
    for index, part, begin in plan.starts(given):
        of_part = (plan.of_part(tensors, index, n) for tensors in (d_pre, pre, gates))
        d_pre_here, pre_here, gates_here = of_part
        d_x, of_weights = plan.passes.final_backward(
            plan.order.by_neighbor(d_f, part),
            d_pre_here,
            begin.features(),
            pre_here,
            gates_here,
            layers,
            plan.stack,
        )
        _add(d_weights, of_weights)
        found.put(part, begin.backward(d_x), plan.order.edges_last)
    return [*plan.order.restore(found, inputs, plan.frame), *d_weights]


class _ConvolutionBackward(torch.autograd.Function):
    """Passes 2 and 3."""

    @staticmethod
    def forward(
        ctx: Any, plan: TrainingPlan, keep: bool, d_out: Tensor, *saved: Tensor
    ) -> tuple[Tensor, ...]:
        inputs, weights, f, pre, gates = plan.sort([t.detach() for t in saved])
        layers, n, d_out = plan.layers(weights), plan.n_activated, d_out.contiguous()
        given = plan.order.arrange(inputs, plan.frame)
        found, d_f = given.empty(), _like_all(f)
        for (part, end), z in zip(plan.ends(given.turn, d_out, weights), f, strict=True):
            end.backward(z, found.turn.of(part.edges), d_f[part.edges])
        kept: list[Tensor] = []
        for index, part, begin in plan.starts(given):
            pre_here, gates_here = (plan.of_part(tensors, index, n) for tensors in (pre, gates))
            d_f_here = plan.order.by_neighbor(d_f, part)
            d_x = plan.passes.backward(d_f_here, pre_here, gates_here, layers, plan.stack)
            if keep:
                kept += d_x
            found.put(part, begin.backward(d_x[0]), plan.order.edges_last)
        ctx.plan, ctx.n_kept = plan, len(kept)
        ctx.save_for_backward(*kept, d_out, *saved)
        return tuple(plan.order.restore(found, inputs, plan.frame))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dots: Tensor) -> tuple[Tensor | None, ...]:
        plan, tensors = ctx.plan, ctx.saved_tensors
        kept, (d_out, *saved) = tensors[: ctx.n_kept], tensors[ctx.n_kept :]
        inputs, weights, f, pre, gates = plan.sort(saved)
        layers, of_d_out = plan.layers(weights), torch.zeros_like(d_out)
        given, moving = (plan.order.arrange(t, plan.frame) for t in (inputs, dots))
        found, d_weights = given.empty(), [torch.zeros_like(w) for w in weights]
        ends = plan.ends(given.turn, d_out, weights)
        d_pre: list[Tensor] = []
        f_dots: list[Tensor] = []
        for index, part, begin in plan.starts(given):
            d_x = plan.of_part(kept, index, plan.n_layers)
            of_part = (plan.of_part(t, index, plan.n_activated) for t in (pre, gates))
            dot = plan.order.begin(part, moving, plan.frame)
            tangent, to_frame = begin.second(d_x[0], dot)
            found.put(part, to_frame, plan.order.edges_last)
            f_dot, of_pre, of_weights = plan.passes.second_backward(
                tangent, ends[0][1].d_stack, d_x, *of_part, layers, plan.stack
            )
            _add(d_weights, of_weights)
            d_pre += of_pre
            f_dots.append(f_dot)
        d_f = [torch.empty_like(z) for z in f]
        f_dots = plan.order.by_center(f_dots)
        for (part, end), z, z_dot, d_z in zip(ends, f, f_dots, d_f, strict=True):
            turns = moving.turn.of(part.edges), of_d_out, found.turn.of(part.edges)
            _add_last(d_weights, end.second(z, z_dot, *turns, d_z))
        of_inputs = plan.order.restore(found, inputs, plan.frame)
        return None, None, of_d_out, *of_inputs, *d_weights, *d_f, *d_pre, *[None] * len(gates)


def _like_all(parts: Sequence[Tensor]) -> Tensor:
    """Room for the rows of all parts together."""
    return parts[0].new_empty(sum(len(part) for part in parts), parts[0].shape[1])


def _add(totals: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    """To the weights of the stack, which come first."""
    for total, part in zip(totals, parts, strict=False):
        total += part


def _add_last(totals: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    """To the matrices of the last layer, where they are not the stack's."""
    _add(totals[len(totals) - len(parts) :], parts)
