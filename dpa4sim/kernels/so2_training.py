"""The SO(2) stack of one focus, twice differentiable by hand.  Paper Eq. 19-21.

    x_0 = x,   u_t = x_t W_t,   x_{t+1} = x_t + act(u_t),   y = x_{S-1} W_{S-1}

Training differentiates forces, so a stack is passed four times; each pass is one pure function of
a slab of edges and each linear layer costs six matrix products in all, the least possible:

| pass | gives | products |
|---|---|---|
| `forward` | y, u_t | x W |
| `backward` | g_t = dE/dx_t | g_u W^T |
| `second_backward` | cotangents of g_y, u_t and W through `backward` | x' W, x'^T g_u |
| `final_backward` | cotangents of x and W, those of u_t and y added | u' W^T, x^T u' |

`second_backward` walks forward: x'_t, the cotangent of g_t, is a tangent of x_t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from dpa4sim.kernels.edge_convolution import Layer
from dpa4sim.kernels.frame_products import gated_groups, gated_rows

Slab = Float[Tensor, "edge row_channel"]


@dataclass(frozen=True)
class StackShape:
    """What the passes have to know besides tensors.

    Args:
        width: channels of the focus.
        max_degree: L.
        max_order: M.
        products: dtype of the operands of the matrix products; None is that of the edges.
        ends_linear: the last of the layers has no activation; otherwise all have one.
    """

    width: int
    max_degree: int
    max_order: int
    products: torch.dtype | None = None
    ends_linear: bool = True

    def gated_layers(self, layers: Sequence[Layer]) -> Sequence[Layer]:
        """Those with an activation."""
        return layers[:-1] if self.ends_linear else layers

    def gated(self) -> list[tuple[int, int, int]]:
        """What `gated_groups` gives for this stack."""
        return gated_groups(self.max_degree, self.max_order, self.width)

    def rows(self, x: Tensor, group: tuple[int, int, int]) -> Float[Tensor, "edge copy column"]:
        """The columns of one group, its copies apart."""
        return gated_rows(x, group, self.max_degree, self.width)


def flatten(layers: Sequence[Layer]) -> list[Tensor]:
    """The weights of the layers as a list."""
    found = []
    for layer in layers:
        found += [layer.zonal, *layer.pairs]
        found += [tensor for tensor in (layer.gate, layer.scalar_scale) if tensor is not None]
    return found


def unflatten(
    weights: Sequence[Tensor], shape: StackShape, n_layers: int, scaled: bool
) -> list[Layer]:
    """The layers of a list of weights; the reverse of `flatten`."""
    rest, layers = iter(weights), []
    for layer in range(n_layers):
        last = shape.ends_linear and layer == n_layers - 1
        zonal, pairs = next(rest), tuple(next(rest) for _ in range(shape.max_order))
        gate = next(rest) if shape.max_degree and not last else None
        layers.append(Layer(zonal, pairs, gate, next(rest) if scaled and not last else None))
    return layers


def forward(
    x: Slab, layers: Sequence[Layer], shape: StackShape
) -> tuple[Slab, list[Slab], list[Tensor]]:
    """Y, the pre-activations u_t, and the gates sigma(u_t0 G_t) of all layers but the last."""
    pre, gates = [], []
    for layer in shape.gated_layers(layers):
        u = _linear(x, layer, shape)
        gate = _gate(u, layer, shape)
        pre.append(u)
        gates.append(gate)
        x = _add_activated(x, u, gate, layer, shape)
    return (_linear(x, layers[-1], shape) if shape.ends_linear else x), pre, gates


def backward(
    d_y: Slab,
    pre: Sequence[Slab],
    gates: Sequence[Tensor],
    layers: Sequence[Layer],
    shape: StackShape,
) -> list[Slab]:
    """G_t = dE/dx_t, t = 0 ... S - 1, from dE/dy."""
    gated = shape.gated_layers(layers)
    found = [_linear_transposed(d_y, layers[-1], shape) if shape.ends_linear else d_y]
    for layer, u, gate in zip(reversed(gated), reversed(pre), reversed(gates), strict=True):
        d_u, _ = _activation_backward(found[0], u, gate, layer, shape)
        found.insert(0, found[0] + _linear_transposed(d_u, layer, shape))
    return found


def second_backward(
    tangent: Slab,
    d_y: Slab | None,
    d_x: Sequence[Slab],
    pre: Sequence[Slab],
    gates: Sequence[Tensor],
    layers: Sequence[Layer],
    shape: StackShape,
) -> tuple[Slab, list[Slab], list[Tensor]]:
    """Cotangents of d_y, of every u_t and of the weights through `backward`.

    Args:
        tangent: cotangent of g_0.
        d_y: dE/dy; None where the stack does not end linearly.
        d_x: what `backward` gave, g_0 first.
    """
    d_pre: list[Slab] = []
    d_weights: list[Tensor] = []
    gated = shape.gated_layers(layers)
    for layer, u, gate, g in zip(gated, pre, gates, d_x[1:], strict=True):
        d_u, d_logit = _activation_backward(g, u, gate, layer, shape)
        d_weights += _weight_gradient(tangent, d_u, layer, shape)
        u_tangent = _linear(tangent, layer, shape)
        step, of_u, of_gate, of_scale = _activation_second(
            u_tangent, g, u, gate, d_logit, layer, shape
        )
        d_weights += [t for t in (of_gate, of_scale) if t is not None]
        d_pre.append(of_u)
        tangent = tangent + step
    if d_y is None:
        return tangent, d_pre, d_weights
    d_weights += _weight_gradient(tangent, d_y, layers[-1], shape)
    return _linear(tangent, layers[-1], shape), d_pre, d_weights


def final_backward(
    d_y: Slab,
    d_pre: Sequence[Slab | None],
    x: Slab,
    pre: Sequence[Slab],
    gates: Sequence[Tensor],
    layers: Sequence[Layer],
    shape: StackShape,
) -> tuple[Slab, list[Tensor]]:
    """Cotangents of x and of the weights.

    Args:
        d_pre: what `second_backward` sent to the pre-activations, if anything.
    """
    inputs, C, d_x = [x], shape.width, d_y
    d_weights: list[Tensor] = []
    for t in range(len(layers) - 1):
        inputs.append(_add_activated(inputs[t], pre[t], gates[t], layers[t], shape))
    if shape.ends_linear:
        d_weights = _weight_gradient(inputs[-1], d_y, layers[-1], shape)
        d_x = _linear_transposed(d_y, layers[-1], shape)
    for t in reversed(range(len(pre))):
        layer, u = layers[t], pre[t]
        d_u, d_logit = _activation_backward(d_x, u, gates[t], layer, shape)
        extra = d_pre[t]
        if extra is not None:
            d_u = d_u + extra
        of_layer = _weight_gradient(inputs[t], d_u, layer, shape)
        if layer.gate is not None:
            of_layer.append(_product(u[:, :C].T, d_logit, shape))
        if layer.scalar_scale is not None:
            of_layer.append((d_x[:, :C] * silu(u[:, :C])).sum(0))
        d_weights = of_layer + d_weights
        d_x = d_x + _linear_transposed(d_u, layer, shape)
    return d_x, d_weights


def _product(a: Tensor, b: Tensor, shape: StackShape) -> Tensor:
    if shape.products is None:
        return a @ b
    return (a.to(shape.products) @ b.to(shape.products)).to(a.dtype)


def _linear(x: Slab, layer: Layer, shape: StackShape) -> Slab:
    """X W: one product for m = 0 and one for each +-m pair."""
    return _blocks(x, (layer.zonal, *layer.pairs), shape)


def _linear_transposed(x: Slab, layer: Layer, shape: StackShape) -> Slab:
    """X W^T."""
    return _blocks(x, [matrix.T for matrix in (layer.zonal, *layer.pairs)], shape)


def _blocks(x: Slab, matrices: Sequence[Tensor], shape: StackShape) -> Slab:
    parts = x.split([len(matrix) for matrix in matrices], 1)
    if torch.compiler.is_compiling() or shape.products is not None:
        products = [_product(a, b, shape) for a, b in zip(parts, matrices, strict=True)]
        return torch.cat(products, 1) if len(products) > 1 else products[0]
    out = torch.empty_like(x)  # written in place: no pass over memory to join the parts
    for part, matrix, target in zip(parts, matrices, _like(out, parts), strict=True):
        torch.mm(part, matrix, out=target)
    return out


def _like(x: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return x.split([part.shape[1] for part in parts], 1)


def _weight_gradient(x: Slab, d_u: Slab, layer: Layer, shape: StackShape) -> list[Tensor]:
    sizes = [len(matrix) for matrix in (layer.zonal, *layer.pairs)]
    pairs = zip(x.split(sizes, 1), d_u.split(sizes, 1), strict=True)
    return [_product(a.T, b, shape) for a, b in pairs]


def _gate(u: Slab, layer: Layer, shape: StackShape) -> Tensor:
    if layer.gate is None:
        return u[:, :0]
    return torch.sigmoid(_product(u[:, : shape.width], layer.gate, shape))


def _scaled(scalar: Tensor, layer: Layer) -> Tensor:
    return scalar if layer.scalar_scale is None else scalar * layer.scalar_scale


def _slope(u: Tensor) -> Tensor:
    """First derivative of silu."""
    s = torch.sigmoid(u)
    return s * (1 + u * (1 - s))


def _curvature(u: Tensor) -> Tensor:
    """Second derivative of silu."""
    s = torch.sigmoid(u)
    return s * (1 - s) * (2 + u * (1 - 2 * s))


def _join(scalar: Tensor, groups: Sequence[Tensor]) -> Slab:
    return torch.cat([scalar, *(group.flatten(1) for group in groups)], 1)


def _add_activated(x: Slab, u: Slab, gate: Tensor, layer: Layer, shape: StackShape) -> Slab:
    """X + act(u)."""
    C = shape.width
    scalar = x[:, :C] + _scaled(silu(u[:, :C]), layer)
    groups = [
        torch.addcmul(shape.rows(x, group), shape.rows(u, group), gate[:, None, group[2] :])
        for group in shape.gated()
    ]
    return _join(scalar, groups)


def _activation_backward(
    d_x: Slab, u: Slab, gate: Tensor, layer: Layer, shape: StackShape
) -> tuple[Slab, Tensor]:
    """Cotangents of u, and of the gates' logits."""
    C, groups = shape.width, []
    d_gate = torch.zeros_like(gate)
    for group in shape.gated():
        column, rows = group[2], shape.rows(d_x, group)
        groups.append(rows * gate[:, None, column:])
        d_gate = _add_columns(d_gate, _contract(rows, shape.rows(u, group)), column)
    d_logit = d_gate * gate * (1 - gate)
    scalar = d_x[:, :C] * _scaled(_slope(u[:, :C]), layer)
    if layer.gate is not None:
        scalar = scalar + _product(d_logit, layer.gate.T, shape)
    return _join(scalar, groups), d_logit


def _activation_second(
    tangent: Slab,
    d_x: Slab,
    u: Slab,
    gate: Tensor,
    d_logit: Tensor,
    layer: Layer,
    shape: StackShape,
) -> tuple[Slab, Slab, Tensor | None, Tensor | None]:
    """Cotangents of d_x, u, the gate matrix and the scale through `_activation_backward`.

    Args:
        tangent: cotangent of what it gave for u.
    """
    C = shape.width
    scalar, moved, d_scalar = u[:, :C], tangent[:, :C], d_x[:, :C]
    slope = _slope(scalar)
    step = moved * _scaled(slope, layer)
    of_scalar = moved * d_scalar * _scaled(_curvature(scalar), layer)
    of_scale = None if layer.scalar_scale is None else (moved * d_scalar * slope).sum(0)
    if layer.gate is None:
        return step, of_scalar, None, of_scale
    rate = _product(moved, layer.gate, shape)
    gate_tangent = rate * gate * (1 - gate)
    d_gate = rate * d_logit * (1 - 2 * gate)  # d_logit holds the factor gate (1 - gate)
    steps, of_rows = [], []
    for group in shape.gated():
        column = group[2]
        rows, moving = shape.rows(u, group), shape.rows(tangent, group)
        arriving, turning = shape.rows(d_x, group), gate_tangent[:, None, column:]
        steps.append(torch.addcmul(moving * gate[:, None, column:], rows, turning))
        of_rows.append(arriving * turning)
        contracted = _contract(arriving, moving) * gate[:, column:] * (1 - gate[:, column:])
        d_gate = _add_columns(d_gate, contracted, column)
    of_scalar = of_scalar + _product(d_gate, layer.gate.T, shape)
    of_gate = _product(scalar.T, d_gate, shape) + _product(moved.T, d_logit, shape)
    return _join(step, steps), _join(of_scalar, of_rows), of_gate, of_scale


def _contract(a: Tensor, b: Tensor) -> Float[Tensor, "edge column"]:
    """Sum over the copies of a b."""
    total = a[:, 0] * b[:, 0]
    for copy in range(1, a.shape[1]):
        total = torch.addcmul(total, a[:, copy], b[:, copy])
    return total


def _add_columns(total: Tensor, part: Tensor, column: int) -> Tensor:
    """Total with `part` added from a column on."""
    if column == 0:
        return total + part
    return torch.cat([total[:, :column], total[:, column:] + part], 1)
