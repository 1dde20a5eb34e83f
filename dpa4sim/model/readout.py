"""From features to atomic energies.  Paper section 4.2, Eq. 1.  And to invariant properties."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, sigmoid, silu, softplus

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

    def hidden(self, descriptor: Float[Tensor, "atom channel"]) -> Float[Tensor, "atom hidden"]:
        """What the last gated layer gives."""
        hidden = descriptor
        for weight, bias in zip(self.weights, self.biases, strict=True):
            value, gate = torch.addmm(bias, hidden, weight).chunk(2, 1)
            hidden = value * silu(gate)
        return hidden

    def forward(self, descriptor: Float[Tensor, "atom channel"]) -> Float[Tensor, " atom"]:
        """Learned part of the atomic energies in eV."""
        return (self.hidden(descriptor) @ self.out)[:, 0]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "silu": silu,
    "gelu": partial(gelu, approximate="tanh"),
    "relu": relu,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "linear": lambda x: x,
}
STEP_MEAN, STEP_SPREAD = 0.1, 1e-3
"""Of the first step scales, as the reference draws them."""


class PropertyHead(nn.Module):
    """Layers with skip connections from the descriptor to each atom's share of a property.

        h <- skip(h) + t a(h W + b),    share = std_s (h W_out + b_out) + bias_s

    The skip is h where the width stays, (h, h) where it doubles, and nothing elsewhere; t is there
    where a skip is and `step_scales` are on.  bias_s and std_s are statistics of the labels, one
    row per species, in float64.  The property is the sum of the shares, or their mean.
    """

    bias: Tensor
    spread: Tensor

    def __init__(self, config: DPA4Config) -> None:
        super().__init__()
        asked, dim = config.property_head, config.property_head.task_dim
        self.activation = ACTIVATIONS[asked.activation]
        widths = [width or config.auto_hidden(gated=True) for width in asked.hidden]
        widths = [config.channels, *widths]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.weights = nn.ParameterList(_normal(a, b) for a, b in pairs)
        self.biases = nn.ParameterList(torch.randn(b) for _, b in pairs)
        self.steps = nn.ParameterDict({
            str(layer): STEP_MEAN + STEP_SPREAD * torch.randn(b)
            for layer, (a, b) in enumerate(pairs)
            if asked.step_scales and b in (a, 2 * a)
        })  # fmt: skip
        self.out = nn.Parameter(_normal(widths[-1], dim))
        self.out_bias = nn.Parameter(torch.randn(dim))
        n_species = len(config.species)
        self.register_buffer("bias", torch.zeros(n_species, dim, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(n_species, dim, dtype=torch.float64))

    def hidden(self, descriptor: Float[Tensor, "atom channel"]) -> Float[Tensor, "atom hidden"]:
        """What the last hidden layer gives."""
        hidden = descriptor
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = self.activation(torch.addmm(bias, hidden, weight))
            if str(layer) in self.steps:
                value = value * self.steps[str(layer)]
            if value.shape[1] == hidden.shape[1]:
                value = value + hidden
            elif value.shape[1] == 2 * hidden.shape[1]:
                value = value + torch.cat([hidden, hidden], 1)
            hidden = value
        return hidden

    def forward(
        self, descriptor: Float[Tensor, "atom channel"], species: Int[Tensor, " atom"]
    ) -> Float[Tensor, "atom task"]:
        """Shares of the atoms in the unit of the labels, float64."""
        value = torch.addmm(self.out_bias, self.hidden(descriptor), self.out)
        return value.double() * self.spread[species] + self.bias[species]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PropertyHead:
        """Move or cast everything but the statistics, which stay float64."""
        kept = {name: getattr(self, name) for name in ("bias", "spread")}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


def _normal(n_in: int, n_out: int) -> Tensor:
    """First weights of a layer, as the reference draws them."""
    return torch.randn(n_in, n_out) / (n_in + n_out) ** 0.5
