"""Norms that respect rotations.  Paper section 4.2.3 (norm N) and Eq. 39."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpa4sim.model.frames import degree_of_lm

DEGREE_NORM_EPSILON = 1e-5
"""Guard of the degree norm's variance, as the reference has it."""


def root_mean_square(
    x: Float[Tensor, "*axes channel"], scale: Float[Tensor, "*scale channel"], epsilon: float
) -> Float[Tensor, "*axes channel"]:
    """Divide by the root mean square over the channels, then scale.

    x = 0 stays 0 with a finite slope.
    """
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon) * scale


def degree_norm(
    x: Float[Tensor, "node row channel"],
    weight: Float[Tensor, " row"],
    scale: Float[Tensor, "row channel"],
    bias: Float[Tensor, " channel"],
    epsilon: float,
) -> Float[Tensor, "node row channel"]:
    """One variance for all rows, with the scalars (row 0) centred first.

        x_0 <- x_0 - mean_c x_0
        x   <- x (sum_row weight sum_c x^2 + eps)^(-1/2) scale,   x_0 <- x_0 + bias

    The paper does not print the centring and the bias of the scalars; the reference has them.

    Args:
        weight: 1 / ((L + 1) C n_l), n_l the number of rows of the row's degree.

    Commutes with rotations.
    """
    scalar, angular = x.split([1, x.shape[1] - 1], 1)
    x = torch.cat([scalar - scalar.mean(-1, keepdim=True), angular], 1)
    variance = ((x * x).sum(-1) * weight).sum(-1)
    x = x * (variance + epsilon).rsqrt()[:, None, None] * scale
    scalar, angular = x.split([1, x.shape[1] - 1], 1)
    return torch.cat([scalar + bias, angular], 1)


def row_weights(degree: Int[Tensor, " row"], channels: int) -> Float[Tensor, " row"]:
    """1 / ((L + 1) C n_l) for each row, n_l the number of rows of its degree."""
    count = (degree[:, None] == degree).double().sum(1)
    return 1.0 / (count * (degree.max() + 1) * channels)


class DegreeNorm(nn.Module):
    """`degree_norm` of atom features, one scale per degree and channel."""

    degree: Tensor
    weight: Tensor

    def __init__(
        self, max_degree: int, channels: int, epsilon: float = DEGREE_NORM_EPSILON
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.scale = nn.Parameter(torch.ones(max_degree + 1, 1, channels))
        self.bias = nn.Parameter(torch.zeros(1, channels))
        degree = torch.tensor(degree_of_lm(max_degree))
        self.register_buffer("degree", degree, persistent=False)
        self.register_buffer("weight", row_weights(degree, channels), persistent=False)

    def forward(self, x: Float[Tensor, "atom lm channel"]) -> Float[Tensor, "atom lm channel"]:
        """Normalised features."""
        scale = self.scale[self.degree, 0]
        return degree_norm(x, self.weight, scale, self.bias[0], self.epsilon)
