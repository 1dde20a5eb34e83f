"""One interaction block: convolution and feed-forward units on the residual stream.  Paper 4.2."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpa4sim.config import DPA4Config
from dpa4sim.kernels.row_chunks import atom_cuts, in_chunks
from dpa4sim.model.edge_features import EdgeFeatures
from dpa4sim.model.emfa import EMFA
from dpa4sim.model.feed_forward import FeedForward, GatedFeedForward
from dpa4sim.model.norm import DEGREE_NORM_EPSILON, DegreeNorm


class Block(nn.Module):
    """x <- x + N(EMFA(N(x)));  x <- x + N(FFN(N(x))) for each feed-forward unit."""

    def __init__(self, config: DPA4Config, max_degree: int, max_order: int) -> None:
        super().__init__()
        C, places = config.channels, config.norm_places
        node_degree = max_degree + config.extra_degree
        self.n_convolved, self.n_rows = (max_degree + 1) ** 2, (node_degree + 1) ** 2

        def norm(place: str, degree: int, epsilon: float = DEGREE_NORM_EPSILON) -> nn.Module:
            return DegreeNorm(degree, C, epsilon) if place in places else nn.Identity()

        self.convolution = EMFA(config, max_degree, max_order)
        self.norm_before = norm("before_convolution", max_degree)
        after = DEGREE_NORM_EPSILON if config.edge_norm else 1.0
        self.norm_after = norm("after_convolution", max_degree, after)
        units = range(config.ffn_blocks)
        self.feed_forward = nn.ModuleList(feed_forward(config, node_degree) for _ in units)
        self.ffn_norm_before = nn.ModuleList(norm("before_ffn", node_degree) for _ in units)
        self.ffn_norm_after = nn.ModuleList(norm("after_ffn", node_degree) for _ in units)
        scaled = config.ffn_blocks if config.layer_scale else 0
        self.ffn_scales = nn.ParameterList(torch.full((C,), 1e-3) for _ in range(scaled))

    def forward(
        self, x: Float[Tensor, "atom lm channel"], edges: EdgeFeatures
    ) -> Float[Tensor, "atom lm channel"]:
        """Updated features."""
        convolved, rest = x[:, : self.n_convolved], x[:, self.n_convolved :]
        message = self.norm_after(self.convolution(self.norm_before(convolved), edges))
        x = torch.cat([convolved + message, rest], 1) if rest.shape[1] else convolved + message
        for unit in range(len(self.feed_forward)):
            update = partial(self._update, unit)
            x = x + (
                in_chunks(update, [x], atom_cuts(len(x)), len(x)) if edges.sparing else update(x)
            )
        return x

    def _update(self, unit: int, x: Tensor, *rows: slice) -> Float[Tensor, "atom lm channel"]:
        """What one feed-forward unit adds to atoms; it does not matter which `rows` they are."""
        update = self.ffn_norm_after[unit](self.feed_forward[unit](self.ffn_norm_before[unit](x)))
        return update * self.ffn_scales[unit] if len(self.ffn_scales) else update


def feed_forward(config: DPA4Config, max_degree: int) -> nn.Module:
    """The feed-forward unit that the config asks for."""
    hidden = config.hidden_channels
    if config.ffn_grid == "none":
        return GatedFeedForward(
            max_degree,
            config.channels,
            hidden,
            gated_linear=config.gated_linear,
            bias=config.bias,
        )
    return FeedForward(
        max_degree,
        config.channels,
        hidden,
        config.ffn_grid,
        grid_order=min(config.grid_order, max_degree - config.extra_degree),
        operation=config.ffn_grid_operation,
        n_branches=config.ffn_grid_branches,
        bias=config.bias,
    )
