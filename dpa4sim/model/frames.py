"""Spherical harmonics and the rows of the edge-frame rotation.  Paper section 4.2.1.

| paper | here |
|---|---|
| Y_lm(r)      | row 0 of `RotationRows`, the packed index is l * l + l + m |
| D_ij, rows |m| <= M | `RotationRows`, ordered m = 0, -1, +1, -2, +2, ... |
| r_ij / |r_ij| | `direction` |

Everything follows from one set of constants, the gradient of the solid harmonics in their basis:

    d R_l / d x_a = G_a R_{l-1}                      (R_l: l-th degree, homogeneous, harmonic)
    Y_l(n)        = 1/l (n . G) Y_{l-1}(n)           (Euler's relation)
    row_{+-m,l}   ~ (t . G) row_{+-(m-1),l-1}        (t = t1 + i t2 spans the plane normal to n)

The last line holds because t . t = 0 = t . n: (t . grad)^m R_l is the order-m part seen along n.
A roll of (t1, t2) about n is a gauge: the network does not depend on it.

Convention: |Y_l| = 1 on the unit sphere; Y_1 = (y, z, -x); D Y(p) = Y(R p) with R n = z.
"""

from __future__ import annotations

from functools import lru_cache
from math import factorial, prod, sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

Polynomial = dict[tuple[int, int, int], float]


def degree_of_lm(max_degree: int) -> list[int]:
    """The degree l of each packed (l, m) row."""
    return [degree for degree in range(max_degree + 1) for _ in range(2 * degree + 1)]


def degree_of_row(max_degree: int, max_order: int) -> list[int]:
    """The degree l of each edge-frame row: m = 0 (l = 0..L), then -m and +m (l = m..L each)."""
    rows = list(range(max_degree + 1))
    for order in range(1, max_order + 1):
        rows += 2 * list(range(order, max_degree + 1))
    return rows


def order_of_row(max_degree: int, max_order: int) -> list[int]:
    """Which of the 2M + 1 rotation rows (0, -1, +1, -2, +2, ...) each edge-frame row uses."""
    rows = [0] * (max_degree + 1)
    for order in range(1, max_order + 1):
        n = max_degree - order + 1
        rows += [2 * order - 1] * n + [2 * order] * n
    return rows


def tangents(
    direction: Float[Tensor, "edge 3"],
) -> tuple[Float[Tensor, "edge 3"], Float[Tensor, "edge 3"]]:
    """Two unit vectors normal to the direction, right-handed: t1 x t2 = n.

    One chart for z >= 0 and one for z < 0, so there is no singular direction.
    """
    x, y, z = direction.unbind(1)
    side = torch.where(z < 0, -1.0, 1.0).to(z)
    slope = -1.0 / (side + z)
    mixed = x * y * slope
    first = torch.stack([1 + side * x * x * slope, side * mixed, -side * x], 1)
    second = torch.stack([mixed, side + y * y * slope, -y], 1)
    return first, second


class RotationRows(nn.Module):
    """Rows |m| <= M of the block-diagonal Wigner-D that turns each direction to +z.

    Entry [e, k, lm] is D^l_{m_k, m}, m_k = 0, -1, +1, ..., zero where l < |m_k|.  Row 0 is Y(n).
    """

    def __init__(self, max_degree: int, max_order: int) -> None:
        super().__init__()
        self.max_degree, self.max_order = max_degree, max_order
        for degree in range(1, max_degree + 1):
            table = torch.from_numpy(_gradient_table(degree) / degree)
            self.register_buffer(f"harmonic_{degree}", table, persistent=False)
        for order in range(1, max_order + 1):
            table = torch.from_numpy(_raising_table(max_degree, order))
            self.register_buffer(f"raise_{order}", table, persistent=False)

    def forward(
        self, direction: Float[Tensor, "edge 3"], roll: Float[Tensor, " edge"] | None = None
    ) -> Float[Tensor, "edge order lm"]:
        """The rows, smooth in the direction up to the gauge.

        Args:
            direction: unit vectors.
            roll: extra angle of the frame about each direction in radians (a gauge).
        """
        harmonics = self.harmonics(direction)
        if self.max_order == 0:
            return harmonics[:, None]
        first, second = tangents(direction)
        if roll is not None:
            cos, sin = roll.cos()[:, None], roll.sin()[:, None]
            first, second = cos * first - sin * second, sin * first + cos * second
        rows, real, imaginary = [harmonics], harmonics, torch.zeros_like(harmonics)
        for order in range(1, self.max_order + 1):
            table = self.get_buffer(f"raise_{order}")
            re = first[:, :, None] * real[:, None] - second[:, :, None] * imaginary[:, None]
            im = first[:, :, None] * imaginary[:, None] + second[:, :, None] * real[:, None]
            real, imaginary = re.flatten(1) @ table, im.flatten(1) @ table
            rows += [imaginary, -real] if order % 2 else [-imaginary, real]
        return torch.stack(rows, 1)

    def harmonics(self, direction: Float[Tensor, "edge 3"]) -> Float[Tensor, "edge lm"]:
        """Y_lm of unit vectors up to degree L."""
        values = [torch.ones_like(direction[:, :1])]
        for degree in range(1, self.max_degree + 1):
            product = direction[:, :, None] * values[-1][:, None, :]
            values.append(product.flatten(1) @ self.get_buffer(f"harmonic_{degree}"))
        return torch.cat(values, 1)


def _raising_table(max_degree: int, order: int) -> np.ndarray:
    """T (x) row_{m-1} -> row_m for all degrees, (3 (L + 1)^2, (L + 1)^2)."""
    size = (max_degree + 1) ** 2
    table = np.zeros((3, size, size))
    for degree in range(order, max_degree + 1):
        block = _gradient_table(degree).reshape(3, 2 * degree - 1, 2 * degree + 1)
        low, high = (degree - 1) ** 2, degree**2
        scale = sqrt((2.0 if order == 1 else 1.0) / ((degree + order) * (degree + order - 1)))
        table[:, low : low + 2 * degree - 1, high : high + 2 * degree + 1] = block * scale
    return table.reshape(3 * size, size)


@lru_cache(maxsize=32)
def _gradient_table(degree: int) -> np.ndarray:
    """G of degree l, (3 (2l - 1), 2l + 1): d R_l / d x_a = G_a R_{l-1}, from exact polynomials."""
    above, below = _solid_harmonics(degree), _solid_harmonics(degree - 1)
    monomials = sorted({key for poly in below for key in poly})
    basis = np.array([[poly.get(key, 0.0) for poly in below] for key in monomials])
    table = np.zeros((3, 2 * degree - 1, 2 * degree + 1))
    for m, poly in enumerate(above):
        for axis in range(3):
            slope = _derivative(poly, axis)
            target = np.array([slope.get(key, 0.0) for key in monomials])
            table[axis, :, m] = np.linalg.lstsq(basis, target, rcond=None)[0]
    return table.reshape(3 * (2 * degree - 1), 2 * degree + 1)


def _solid_harmonics(degree: int) -> list[Polynomial]:
    """R_lm for m = -l..l as polynomials {(i, j, k): coefficient of x^i y^j z^k}."""
    result = []
    for m in range(-degree, degree + 1):
        order = abs(m)
        sign = (-1) ** order if m > 0 else (-1) ** (order + 1)
        scale = sign * sqrt(2.0 * factorial(degree - order) / factorial(degree + order))
        polynomial = _multiply(_legendre(degree, order), _azimuth(order, cosine=m >= 0))
        scale = 1.0 if m == 0 else scale
        result.append({key: scale * value for key, value in polynomial.items()})
    return result


def _legendre(degree: int, order: int) -> Polynomial:
    """Associated Legendre function without its sin^m factor, made homogeneous with r^2."""
    below: Polynomial = {}
    here: Polynomial = {(0, 0, 0): float(prod(range(1, 2 * order, 2)))}
    for l in range(order + 1, degree + 1):
        up = _multiply({(0, 0, 1): (2 * l - 1) / (l - order)}, here)
        r2 = dict.fromkeys(((2, 0, 0), (0, 2, 0), (0, 0, 2)), -(l + order - 1) / (l - order))
        below, here = here, _add(up, _multiply(r2, below))
    return here


def _azimuth(order: int, cosine: bool) -> Polynomial:
    """Re or Im of (x + i y)^m."""
    real, imaginary = {(0, 0, 0): 1.0}, Polynomial()
    x, y, minus_y = {(1, 0, 0): 1.0}, {(0, 1, 0): 1.0}, {(0, 1, 0): -1.0}
    for _ in range(order):
        real, imaginary = (
            _add(_multiply(x, real), _multiply(minus_y, imaginary)),
            _add(_multiply(x, imaginary), _multiply(y, real)),
        )
    return real if cosine else imaginary


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    product: Polynomial = {}
    for (i, j, k), left in a.items():
        for (p, q, r), right in b.items():
            key = (i + p, j + q, k + r)
            product[key] = product.get(key, 0.0) + left * right
    return product


def _add(a: Polynomial, b: Polynomial) -> Polynomial:
    return {key: a.get(key, 0.0) + b.get(key, 0.0) for key in {*a, *b}}


def _derivative(a: Polynomial, axis: int) -> Polynomial:
    slope: Polynomial = {}
    for key, value in a.items():
        if key[axis]:
            lower = tuple(n - (i == axis) for i, n in enumerate(key))
            slope[lower] = value * key[axis]  # type: ignore[index]
    return slope
