"""Linear layers that commute with rotations about the edge.  Paper Eq. 19-21.

Edge rows are the edge frame's rows: m = 0 (l = 0..L), then -m (l = m..L) and +m for m = 1..M,
each with its channels, stored as one contiguous row of numbers per edge.  A layer is one matrix
product for m = 0 and one for each +-m pair; the gate of degree l meets neighbouring columns.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from dpa4sim.config import DPA4Config
from dpa4sim.kernels.edge_convolution import Layer
from dpa4sim.model.edge_features import FrameLayout
from dpa4sim.model.linear import truncated_normal
from dpa4sim.model.norm import DEGREE_NORM_EPSILON, degree_norm, row_weights


class SO2Stack(nn.Module):
    """Residual SO(2) layers in the edge frame.  Eq. 19-21

        x <- x + lambda act(W x),   W mixes degrees and channels of one (-m, +m) pair:
        y_-m = x_-m U - x_+m V,   y_+m = x_-m V + x_+m U

    act: silu on row 0, sigmoid(W_g y_0)_l on every row of degree l >= 1; none on the last layer
    (the paper has it on all).
    """

    degree: Tensor
    row_weight: Tensor

    def __init__(self, config: DPA4Config, max_degree: int, max_order: int) -> None:
        super().__init__()
        F, C, S = config.n_focus, config.focus_width, config.so2_layers
        self.n_focus, self.width, self.n_layers = F, C, S
        self.max_degree, self.max_order = max_degree, max_order
        self.bias = config.bias
        self.zonal = nn.ParameterList(self._matrix(max_degree + 1, 1, 1.0) for _ in range(S))
        self.pairs = nn.ModuleList(
            nn.ParameterList(
                self._matrix(max_degree - order + 1, 2, 0.5**0.5)
                for order in range(1, max_order + 1)
            )
            for _ in range(S)
        )
        gated = S - 1 if max_degree else 0
        self.gates = nn.ParameterList(
            truncated_normal(torch.empty(C, F * max_degree * C)) for _ in range(gated)
        )
        self.gate_biases = nn.ParameterList(
            torch.zeros(F * max_degree * C) for _ in range(gated if self.bias else 0)
        )
        self.biases = nn.ParameterList(torch.zeros(F * C) for _ in range(S if self.bias else 0))
        self.scales = nn.ParameterList(
            torch.full((F, C), 1e-3) for _ in range(S if config.layer_scale else 0)
        )
        normed = S - 1 if config.so2_norm else 0
        self.norm_scales = nn.ParameterList(torch.ones(F, max_degree + 1, C) for _ in range(normed))
        self.norm_biases = nn.ParameterList(torch.zeros(F, C) for _ in range(normed))
        layout = FrameLayout.build(max_degree, max_order)
        self.register_buffer("degree", layout.degree, persistent=False)
        self.register_buffer("row_weight", row_weights(layout.degree, C), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "edge row_channel"],
        focus: int,
        bias_factor: Float[Tensor, "edge channel"] | None = None,
    ) -> Float[Tensor, "edge row_channel"]:
        """All layers of one focus.

        Args:
            bias_factor: rho_0 s(r), which fades the first layer's bias out at the cutoff.
        """
        for layer in range(self.n_layers):
            u = self._norm(x, layer, focus)
            u = self._linear(u, layer, focus)
            if self.bias:
                bias = self.biases[layer].unflatten(0, (self.n_focus, self.width))[focus]
                if layer == 0 and bias_factor is not None:
                    bias = bias * bias_factor
                u = torch.cat([u[:, : self.width] + bias, u[:, self.width :]], 1)
            if layer < self.n_layers - 1:
                u = self._activate(u, layer, focus)
            if len(self.scales):
                scale = self.scales[layer][focus]
                u = (u.unflatten(1, (-1, self.width)) * scale).flatten(1)
            x = x + u
        return x

    def _linear(self, x: Tensor, layer: int, focus: int) -> Tensor:
        """One matrix product for m = 0 and one for each +-m pair."""
        zonal, pairs = self._matrices(layer, focus)
        matrices = [zonal, *pairs]
        inputs = x.split([len(matrix) for matrix in matrices], 1)
        parts = [part @ matrix for part, matrix in zip(inputs, matrices, strict=True)]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def layers(self, focus: int) -> tuple[Layer, ...]:
        """The stack of one focus as the kernel takes it: scales inside, residual of the last."""
        result = []
        for layer in range(self.n_layers):
            last = layer == self.n_layers - 1
            zonal, pairs = self._matrices(layer, focus)
            scale = self.scales[layer][focus] if len(self.scales) else None
            if scale is not None:
                zonal = zonal * scale.repeat(zonal.shape[1] // self.width)
                pairs = [pair * scale.repeat(pair.shape[1] // self.width) for pair in pairs]
                if not last:
                    plain, _ = self._matrices(layer, focus)
                    zonal = torch.cat([plain[:, : self.width], zonal[:, self.width :]], 1)
            if last:
                zonal, *pairs = (
                    matrix + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
                    for matrix in (zonal, *pairs)
                )
            gate = None
            if not last and self.max_degree:
                columns = self.max_degree * self.width
                gate = self.gates[layer].unflatten(1, (self.n_focus, columns))[:, focus]
            result.append(
                Layer(
                    zonal.contiguous(),
                    tuple(pair.contiguous() for pair in pairs),
                    None if gate is None else gate.contiguous(),
                    None if last else scale,
                )
            )
        return tuple(result)

    def _matrices(self, layer: int, focus: int) -> tuple[Tensor, list[Tensor]]:
        """Matrix of m = 0 and [[U, V], [-V, U]] of each pair."""
        size = (self.max_degree + 1) * self.width
        zonal = self.zonal[layer].unflatten(1, (self.n_focus, size))[:, focus]
        pairs = []
        for weight in cast(nn.ParameterList, self.pairs[layer]):  # adapted ones are no parameters
            n = weight.shape[0]
            u, v = weight.unflatten(1, (self.n_focus, 2, n))[:, focus].unbind(1)
            pairs.append(torch.cat([torch.cat([u, v], 1), torch.cat([-v, u], 1)]))
        return zonal, pairs

    def _activate(self, u: Tensor, layer: int, focus: int) -> Tensor:
        C, L = self.width, self.max_degree
        if L == 0:
            return silu(u)
        sizes = [C, L * C]  # the scalars, then the rows of degree l >= 1 in each frame
        for order in range(1, self.max_order + 1):
            sizes += 2 * [(L - order + 1) * C]
        scalar, *angular = u.split(sizes, 1)
        logit = scalar @ self.gates[layer].unflatten(1, (self.n_focus, L * C))[:, focus]
        if self.bias:
            logit = logit + self.gate_biases[layer].unflatten(0, (self.n_focus, L * C))[focus]
        gate = torch.sigmoid(logit)
        parts = [part * gate[:, L * C - part.shape[1] :] for part in angular]
        return torch.cat([silu(scalar), *parts], 1)

    def _norm(self, x: Tensor, layer: int, focus: int) -> Tensor:
        if layer >= len(self.norm_scales):
            return x
        scale = self.norm_scales[layer][focus][self.degree]
        bias = self.norm_biases[layer][focus]
        rows = x.unflatten(1, (-1, self.width))
        return degree_norm(rows, self.row_weight, scale, bias, DEGREE_NORM_EPSILON).flatten(1)

    def _matrix(self, n_degrees: int, copies: int, gain: float) -> Tensor:
        size = n_degrees * self.width
        weight = torch.empty(size, self.n_focus * copies * size)
        sigma = gain / (2 * size) ** 0.5
        return nn.init.trunc_normal_(weight, std=sigma, a=-3 * sigma, b=3 * sigma)
