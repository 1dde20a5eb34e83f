"""EMFA: edge-conditioned, multi-focus, attention SO(2) convolution.  Paper section 4.2.3.

| paper | here |
|---|---|
| low-rank edge-node product, Eq. 16-18 | `EdgeProduct` |
| SO(2) layers, Eq. 19-21  | `SO2Stack` |
| cross-focus competition, Eq. 22-24 | `EMFA._competition` |
| envelope-gated attention, Eq. 25-28 | `EMFA._attention` |
| output gate, Eq. 29 | `EMFA._output_gate` |

Edge rows are the edge frame's rows: m = 0 (l = 0..L), then -m (l = m..L) and +m for m = 1..M,
each with its channels, stored as one contiguous row of numbers per edge.  A layer is one matrix
product for m = 0 and one for each +-m pair; the gate of degree l meets neighbouring columns.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from dpa4sim.config import DPA4Config
from dpa4sim.model.edge_features import EdgeFeatures, FrameLayout
from dpa4sim.model.embedding import sum_edges
from dpa4sim.model.frames import degree_of_lm
from dpa4sim.model.grid import MessageGrid
from dpa4sim.model.linear import DegreeLinear, truncated_normal
from dpa4sim.model.norm import DEGREE_NORM_EPSILON, degree_norm, root_mean_square, row_weights

COMPETITION_FLOOR = 0.02
"""Share of the focus weights that is spread evenly; the paper gives no value."""


class EdgeProduct(nn.Module):
    """Bring the neighbour's features to the edge frame and act on them by the edge.  Eq. 16-18

        x_e[l', m] = sum_l k_e[m; l, l']  sum_m' D^l_mm'(r_ij) h_j[l, m']

    The kernel k_e is a linear map of the radial-species profile; +m and -m share it.  "degree":
    one kernel for all channels.  "degree_channel": rank R, sum_r k_r B_r[c]; rank 0: a kernel for
    every channel.  "none": k = rho_l on the diagonal.

    Kernel and rotation are multiplied first: the features meet one small matrix per edge.
    """

    def __init__(self, config: DPA4Config, max_degree: int, max_order: int) -> None:
        super().__init__()
        self.mode, self.rank = config.edge_product, config.product_rank
        self.max_degree, self.max_order = max_degree, max_order
        self.n_focus, self.width = config.n_focus, config.focus_width
        total = self.n_focus * self.width
        self.sizes = [max_degree - order + 1 for order in range(max_order + 1)]
        n_kernel = sum(size * size for size in self.sizes)
        if self.mode == "degree" or (self.mode == "degree_channel" and self.rank):
            self.terms = self.rank if self.mode == "degree_channel" else 1
        else:
            self.terms = 0
        if self.mode != "none":
            columns = n_kernel * (self.terms or total)
            weight = torch.empty((max_degree + 1) * total, columns)
            self.weight = nn.Parameter(truncated_normal(weight))
        if self.mode == "degree_channel" and self.rank:
            basis = torch.ones(self.rank, total)
            self.channel_basis = nn.Parameter(basis)
        lm = torch.tensor(degree_of_lm(max_degree))
        for order in range(max_order + 1):
            local = (lm - order).clamp(min=0)
            self.register_buffer(f"source_{order}", local, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "atom lm channel"],
        edges: EdgeFeatures,
        layout: FrameLayout,
        mixer: Float[Tensor, "channel_in channel"] | None,
    ) -> list[Float[Tensor, "edge row_channel"]]:
        """The edge features of each focus.

        Args:
            x: node features of all focuses side by side.
            mixer: map of the profile to the width of all focuses; None where they agree.
        """
        if self.terms:
            return self._low_rank(x, edges, mixer)
        rotated = self._rotate(x, edges, layout)
        if self.mode == "none":
            profile = edges.profile(self.max_degree + 1)
            profile = profile if mixer is None else profile @ mixer
            product = rotated * profile[:, layout.degree]
        else:
            product = self._per_channel(rotated, edges, mixer)
        focused = product.unflatten(2, (self.n_focus, self.width))
        return [focused[:, :, focus].flatten(1) for focus in range(self.n_focus)]

    def _low_rank(
        self, x: Tensor, edges: EdgeFeatures, mixer: Tensor | None
    ) -> list[Float[Tensor, "edge row_channel"]]:
        kernel = edges.project(self._profile_weight(mixer))
        matrix = self._fold(kernel, edges.rows)
        products = []
        for focus in range(self.n_focus):
            columns = slice(focus * self.width, (focus + 1) * self.width)
            part = x[:, :, columns]
            if self.mode == "degree_channel":
                basis = self.channel_basis[:, columns]
                part = torch.cat([part * basis[term] for term in range(self.terms)], 1)
            gathered = part.contiguous().index_select(0, edges.neighbor)
            products.append(torch.bmm(matrix, gathered).flatten(1))
        return products

    def _fold(
        self, kernel: Float[Tensor, "edge column"], rows: Float[Tensor, "edge order lm"]
    ) -> Float[Tensor, "edge row term_lm"]:
        """Kernel times rotation, (E, rows, R (L + 1)^2); kernel columns are [l', r, l] per order."""
        folded, start = [], 0
        size_lm = (self.max_degree + 1) ** 2
        for order, size in enumerate(self.sizes):
            stop = start + size * size * self.terms
            block = kernel[:, start:stop].unflatten(1, (size * self.terms, size))
            block = block.index_select(2, self.get_buffer(f"source_{order}"))
            for row in (0,) if order == 0 else (2 * order - 1, 2 * order):
                product = block * rows[:, None, row, :size_lm]
                folded.append(product.reshape(-1, size, self.terms * size_lm))
            start = stop
        return torch.cat(folded, 1)

    def _profile_weight(self, mixer: Tensor | None) -> Float[Tensor, "degree channel column"]:
        """Kernel weights per degree with columns [l', r, l] in each order (stored [l, l', r])."""
        weight = self.weight.unflatten(0, (self.max_degree + 1, -1))
        if mixer is not None:
            weight = mixer @ weight
        if not self.terms:
            return weight
        parts, start = [], 0
        for size in self.sizes:
            stop = start + size * size * self.terms
            block = weight[..., start:stop].unflatten(-1, (size, size, self.terms))
            parts.append(block.permute(0, 1, 3, 4, 2).flatten(2))
            start = stop
        return torch.cat(parts, -1)

    def _rotate(
        self, x: Tensor, edges: EdgeFeatures, layout: FrameLayout
    ) -> Float[Tensor, "edge row channel"]:
        return torch.bmm(frame_matrix(edges, layout), x.index_select(0, edges.neighbor))

    def _per_channel(
        self, rotated: Tensor, edges: EdgeFeatures, mixer: Tensor | None
    ) -> Float[Tensor, "edge row channel"]:
        kernel = edges.project(self._profile_weight(mixer))
        kernel = kernel.unflatten(1, (-1, self.n_focus * self.width))
        products, start, row = [], 0, 0
        for order, size in enumerate(self.sizes):
            block = kernel[:, start : start + size * size].unflatten(1, (size, size))
            for _ in range(1 if order == 0 else 2):
                source = rotated[:, row : row + size, None]
                products.append((source * block).sum(1))
                row += size
            start += size * size
        return torch.cat(products, 1)


def frame_matrix(edges: EdgeFeatures, layout: FrameLayout) -> Float[Tensor, "edge row lm"]:
    """The rotation of |m| <= M rows, zero outside each row's degree."""
    size = layout.mask.shape[1]
    return edges.rows[:, :, :size].index_select(1, layout.order) * layout.mask


class SO2Stack(nn.Module):
    """Residual SO(2) layers in the edge frame.  Eq. 19-21

        x <- x + lambda act(W x),   W mixes degrees and channels and keeps m up to the pair (-m, +m):
        y_-m = x_-m U - x_+m V,   y_+m = x_-m V + x_+m U

    act: silu on row 0, sigmoid(W_g y_0)_l on every row of degree l >= 1; none on the last layer
    (the paper has it on all).
    """

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
        size = (self.max_degree + 1) * self.width
        zonal = self.zonal[layer].unflatten(1, (self.n_focus, size))[:, focus]
        parts, start = [x[:, :size] @ zonal], size
        for weight in self.pairs[layer]:
            n = weight.shape[0]
            u, v = weight.unflatten(1, (self.n_focus, 2, n))[:, focus].unbind(1)
            pair = torch.cat([torch.cat([u, v], 1), torch.cat([-v, u], 1)])
            parts.append(x[:, start : start + 2 * n] @ pair)
            start += 2 * n
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _activate(self, u: Tensor, layer: int, focus: int) -> Tensor:
        C, L = self.width, self.max_degree
        scalar = u[:, :C]
        if L == 0:
            return silu(scalar)
        logit = scalar @ self.gates[layer].unflatten(1, (self.n_focus, L * C))[:, focus]
        if self.bias:
            logit = logit + self.gate_biases[layer].unflatten(0, (self.n_focus, L * C))[focus]
        gate = torch.sigmoid(logit)
        parts, start = [silu(scalar)], C
        for order in range(self.max_order + 1):
            size = (L - max(order, 1) + 1) * C
            part_gate = gate[:, L * C - size :]
            for _ in range(1 if order == 0 else 2):
                parts.append(u[:, start : start + size] * part_gate)
                start += size
        return torch.cat(parts, 1)

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


class EMFA(nn.Module):
    """The convolution of one block: (N, (L + 1)^2, C) -> the same, zero at the start."""

    def __init__(self, config: DPA4Config, max_degree: int, max_order: int) -> None:
        super().__init__()
        F, Cf, C, A = config.n_focus, config.focus_width, config.channels, config.n_heads
        H, bias = F * Cf, config.bias
        self.n_focus, self.width, self.n_heads = F, Cf, A
        self.epsilon = config.epsilon
        self.mix_in = DegreeLinear(max_degree, C, H, bias)
        self.mix_out = DegreeLinear(max_degree, H, C, bias, zero=True)
        self.profile_mix = None
        if H != C:
            self.profile_mix = nn.Parameter(truncated_normal(torch.empty(C, H)))
        self.product = EdgeProduct(config, max_degree, max_order)
        self.stack = SO2Stack(config, max_degree, max_order)
        if F > 1:
            self.focus_weight = nn.Parameter(truncated_normal(torch.empty(Cf, F)))
            self.focus_norm = nn.Parameter(torch.ones(F, Cf)) if config.edge_norm else None
            self.focus_bias = nn.Parameter(torch.zeros(F)) if bias else None
        if A:
            self.query = nn.Parameter(truncated_normal(torch.empty(Cf, H)))
            self.key = nn.Parameter(truncated_normal(torch.empty(Cf, H)))
            self.query_key_norm = nn.Parameter(torch.ones(F, Cf))
            self.radial_logit = nn.Parameter(truncated_normal(torch.empty(Cf, F, A)))
            self.null_logit = nn.Parameter(torch.full((F, A), 0.5413))
            self.gate_norm = nn.Parameter(torch.ones(F, Cf))
            self.gate_weight = nn.Parameter(truncated_normal(torch.empty(Cf, F, A)))
        self.message_grid = None
        if config.message_grid:
            self.message_grid = MessageGrid(
                max_degree,
                min(config.grid_order, max_degree),
                Cf,
                F,
                config.message_grid_operation,
                config.message_grid_branches,
                bias,
            )
        layout = FrameLayout.build(max_degree, max_order)
        for name in ("degree", "order", "mask", "lift"):
            self.register_buffer(f"frame_{name}", getattr(layout, name), persistent=False)

    @property
    def layout(self) -> FrameLayout:
        """Index tables of the edge frame on this module's device."""
        return FrameLayout(self.frame_degree, self.frame_order, self.frame_mask, self.frame_lift)

    def forward(
        self, x: Float[Tensor, "atom lm channel"], edges: EdgeFeatures
    ) -> Float[Tensor, "atom lm channel"]:
        """Messages along the edges, summed at their centers.  Equivariant; silent at the cutoff."""
        layout = self.layout
        hidden = self.mix_in(x)
        scalars = hidden[:, 0].unflatten(1, (self.n_focus, self.width))
        local = self.product(hidden, edges, layout, self.profile_mix)
        weight = self._attention(scalars, edges) if self.n_heads else self._scatter(edges)
        competition = self._competition(local)
        bias_factor = self._bias_factor(edges)
        lift = frame_matrix(edges, layout) * layout.lift
        messages = []
        for focus, part in enumerate(local):
            factor = None if bias_factor is None else bias_factor[:, focus]
            part = self.stack(part, focus, factor).unflatten(1, (-1, self.width))
            alpha = weight[:, focus]
            if competition is not None:
                alpha = alpha * competition[:, focus, None]
            if alpha.shape[1] == 1:
                message = torch.bmm((lift * alpha[:, :, None]).transpose(1, 2), part)
            else:
                heads = part.unflatten(2, (alpha.shape[1], -1)) * alpha[:, None, :, None]
                message = torch.bmm(lift.transpose(1, 2), heads.flatten(2))
            messages.append(sum_edges(message, edges.center, x.shape[0]))
        message = torch.cat(messages, -1)
        if self.n_heads:
            message = message * self._output_gate(scalars)[:, None]
        if self.message_grid is not None:
            message = self.message_grid(message, hidden)
        return self.mix_out(message)

    def _scatter(self, edges: EdgeFeatures) -> Float[Tensor, "edge focus one"]:
        """n_i eta_j s(r_ij): the plain sum."""
        weight = edges.degree_scale.index_select(0, edges.center) * edges.gated_weight
        return weight[:, None, None].expand(-1, self.n_focus, 1)

    def _attention(
        self, scalars: Float[Tensor, "atom focus channel"], edges: EdgeFeatures
    ) -> Float[Tensor, "edge focus head"]:
        """Softmax over a center's edges and a null edge, gated by the envelope.  Eq. 25-28

            w_e = s^2 eta exp(a_e) / (softplus(z) + eps + sum_e' s^2 eta exp(a_e'))

        An edge at the cutoff has weight exactly 0, and it leaves three times differentiably.
        """
        F, A = self.n_focus, self.n_heads
        normed = root_mean_square(scalars, self.query_key_norm, self.epsilon)
        query = self._per_focus(normed, self.query).unflatten(2, (A, -1))
        key = self._per_focus(normed, self.key).unflatten(2, (A, -1))
        radial = torch.einsum("cfa,fcn->nfa", self.radial_logit, self._profile_columns())
        radial = edges.project(radial.flatten(1)[None])
        logit = query.index_select(0, edges.center) * key.index_select(0, edges.neighbor)
        logit = logit.sum(-1) * (self.width // A) ** -0.5 + radial.unflatten(1, (F, A))
        null = (softplus(self.null_logit) + self.epsilon).log()
        top = null.detach().expand(scalars.shape[0], F, A).contiguous()
        index = edges.center[:, None, None].expand_as(logit)
        top = top.scatter_reduce(0, index, logit.detach(), "amax")
        strength = edges.weight * edges.gated_weight
        share = strength[:, None, None] * torch.exp(logit - top.index_select(0, edges.center))
        total = torch.exp(null - top) + sum_edges(share, edges.center, scalars.shape[0])
        return share / total.index_select(0, edges.center)

    def _output_gate(
        self, scalars: Float[Tensor, "atom focus channel"]
    ) -> Float[Tensor, "atom focus_channel"]:
        """sigmoid of the center's scalars, one number per head.  Eq. 29"""
        normed = root_mean_square(scalars, self.gate_norm, self.epsilon)
        gate = torch.sigmoid(torch.einsum("nfc,cfa->nfa", normed, self.gate_weight))
        return gate.repeat_interleave(self.width // self.n_heads, -1).flatten(1)

    def _competition(
        self, local: list[Float[Tensor, "edge row_channel"]]
    ) -> Float[Tensor, "edge focus"] | None:
        """Softmax over the focuses of an edge from its scalars, with a floor.  Eq. 22-24"""
        if self.n_focus == 1:
            return None
        scalars = torch.stack([part[:, : self.width] for part in local], 1)
        if self.focus_norm is not None:
            scalars = root_mean_square(scalars, self.focus_norm, self.epsilon)
        logit = torch.einsum("efc,cf->ef", scalars, self.focus_weight)
        if self.focus_bias is not None:
            logit = logit + self.focus_bias
        share = torch.softmax(logit, 1)
        return (1 - COMPETITION_FLOOR) * share + COMPETITION_FLOOR / self.n_focus

    def _bias_factor(self, edges: EdgeFeatures) -> Float[Tensor, "edge focus channel"] | None:
        if not self.stack.bias:
            return None
        profile = edges.profile(1)[:, 0]
        profile = profile if self.profile_mix is None else profile @ self.profile_mix
        factor = profile * edges.weight[:, None]
        return factor.unflatten(1, (self.n_focus, self.width))

    def _profile_columns(self) -> Float[Tensor, "focus channel profile"]:
        """Map of the profile's channels to each focus' channels."""
        mixer = self.profile_mix
        if mixer is None:
            total = self.n_focus * self.width
            mixer = torch.eye(total, dtype=self.query.dtype, device=self.query.device)
        return mixer.unflatten(1, (self.n_focus, self.width)).permute(1, 2, 0)

    def _per_focus(
        self, x: Float[Tensor, "atom focus channel"], weight: Float[Tensor, "channel columns"]
    ) -> Float[Tensor, "atom focus channel"]:
        matrix = weight.unflatten(1, (self.n_focus, self.width)).transpose(0, 1)
        return torch.einsum("nfc,fcd->nfd", x, matrix)
