"""From features to atomic energies.  Paper section 4.2, Eq. 1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from dpa4sim.config import DPA4Config
from dpa4sim.model.feed_forward import FeedForward, GatedFeedForward
from dpa4sim.model.linear import truncated_normal


class Readout(nn.Module):
    """Residual units after the last block; the scalars of the result are the descriptor."""

    def __init__(self, config: DPA4Config, max_degree: int) -> None:
        super().__init__()
        C, bias, gated = config.channels, config.bias, config.gated_linear
        hidden = config.ffn_channels or config.auto_hidden(gated)
        self.scalar = config.readout == "scalar"

        def unit() -> nn.Module:
            if config.readout == "scalar":
                return GatedFeedForward(0, C, hidden, gated_linear=gated, bias=bias)
            return FeedForward(
                max_degree,
                C,
                hidden,
                "so3",
                grid_order=config.grid_order,
                operation=config.readout,
                bias=bias,
            )

        self.units = nn.ModuleList(unit() for _ in range(config.readout_layers))

    def forward(self, x: Float[Tensor, "atom lm channel"]) -> Float[Tensor, "atom channel"]:
        """Descriptors: invariant features of each atom."""
        x = x[:, :1] if self.scalar else x
        for unit in self.units:
            x = x + unit(x)
        return x[:, 0]


class EnergyHead(nn.Module):
    """Gated layers from the descriptor to one number per atom: v silu(g), [v, g] = d W + b."""

    def __init__(self, config: DPA4Config) -> None:
        super().__init__()
        widths = [config.channels]
        widths += [width or config.auto_hidden(gated=True) for width in config.energy_hidden]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.weights = nn.ParameterList(truncated_normal(torch.empty(a, 2 * b)) for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(2 * b) for _, b in pairs)
        self.out = nn.Parameter(truncated_normal(torch.empty(widths[-1], 1)))

    def forward(self, descriptor: Float[Tensor, "atom channel"]) -> Float[Tensor, " atom"]:
        """Learned part of the atomic energies in eV."""
        hidden = descriptor
        for weight, bias in zip(self.weights, self.biases, strict=True):
            value, gate = torch.addmm(bias, hidden, weight).chunk(2, 1)
            hidden = value * silu(gate)
        return (hidden @ self.out)[:, 0]
