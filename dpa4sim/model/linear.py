"""Linear maps that commute with rotations: one matrix per degree."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def degree_linear(
    x: Float[Tensor, "atom lm channel_in"], weight: Float[Tensor, "degree channel_in channel_out"]
) -> Float[Tensor, "atom lm channel_out"]:
    """Multiply the rows of degree l by matrix l.

    In memory lm comes before the atoms: a degree is then one matrix product over all atoms.
    """
    n_lm, n_atoms = weight.shape[0] ** 2, x.shape[0]
    rows = x.transpose(0, 1).split([2 * degree + 1 for degree in range(weight.shape[0])])
    parts = [row.flatten(0, 1) @ matrix for row, matrix in zip(rows, weight, strict=True)]
    return torch.cat(parts).unflatten(0, (n_lm, n_atoms)).transpose(0, 1)


def add_to_scalar(
    x: Float[Tensor, "atom lm channel"], addend: Float[Tensor, "*atom channel"]
) -> Float[Tensor, "atom lm channel"]:
    """Add to the l = 0 row."""
    scalar = x[:, :1] + addend.expand(x.shape[0], -1)[:, None]
    return torch.cat([scalar, x[:, 1:]], 1) if x.shape[1] > 1 else scalar


class DegreeLinear(nn.Module):
    """Degree-wise linear map of atom features, with a bias on the scalars where asked for."""

    def __init__(
        self, max_degree: int, channels_in: int, channels_out: int, bias: bool, zero: bool = False
    ) -> None:
        super().__init__()
        weight = torch.zeros(max_degree + 1, channels_in, channels_out)
        self.weight = nn.Parameter(weight if zero else truncated_normal(weight))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None

    def forward(self, x: Float[Tensor, "atom lm a"]) -> Float[Tensor, "atom lm b"]:
        """Mixed channels; degrees stay apart."""
        return _with_bias(degree_linear(x, self.weight), self.bias)

    def halves(
        self, x: Float[Tensor, "atom lm a"]
    ) -> tuple[Float[Tensor, "atom lm half_b"], Float[Tensor, "atom lm half_b"]]:
        """The first half of the mixed channels and the second, each by itself in memory."""
        weights = self.weight.chunk(2, -1)
        biases = (None, None) if self.bias is None else self.bias.chunk(2)
        first, second = (
            _with_bias(degree_linear(x, weight), bias)
            for weight, bias in zip(weights, biases, strict=True)
        )
        return first, second


def _with_bias(x: Tensor, bias: Tensor | None) -> Float[Tensor, "atom lm channel"]:
    return x if bias is None else add_to_scalar(x, bias)


def truncated_normal(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fill in place with a normal of variance gain^2 / (fan_in + fan_out), cut at three sigma."""
    sigma = gain / (weight.shape[-2] + weight.shape[-1]) ** 0.5
    return nn.init.trunc_normal_(weight, std=sigma, a=-3 * sigma, b=3 * sigma)
