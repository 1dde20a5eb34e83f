"""Equivariance error of the grid product beside the paper's: its Tables 3 and S-1.

    python -m bench equivariance

The measure is the paper's: rotate the coefficients and then multiply on the grid, or multiply and
then rotate; the largest absolute difference of the two, over random rotations.  Table 3 turns full
coefficients by rotations of SO(3); Table S-1 turns the rows |m| <= M about z.  The product is the
one that the network uses (the reference's, bilinear, gated); the paper's has a SiLU on the grid.

The paper states neither how many numbers it drew nor how large they are, on which an absolute error
depends: in float32 it goes in steps of the last bit of the largest output.  Two sizes are recorded:
normal numbers of variance 1, and of the variance that a fresh network of the paper's width feeds to
this product (1 behind its norm, 64 / (64 + 384) behind its linear map).
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import pi
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpa4sim.model.frames import RotationRows, degree_of_lm
from dpa4sim.model.grid import GridProduct, GridTables, lebedev, sphere_grid

RECORD = Path(__file__).parent / "records" / "equivariance.cpu.json"
N_ATOMS, CHANNELS, N_ROTATIONS = 8, 16, 32
NETWORK_AMPLITUDE = (64 / (64 + 384)) ** 0.5
"""Standard deviation behind a fresh `FeedForward.widen` with C = 64 and 2 x 192 outputs."""

PAPER = {
    (2, 2): (2.31e-14, 2.38e-7),
    (3, 3): (3.58e-14, 3.58e-7),
    (4, 4): (5.82e-14, 6.56e-7),
    (5, 5): (3.22e-14, 6.56e-7),
    (6, 6): (7.99e-14, 8.35e-7),
    (7, 7): (6.86e-14, 8.79e-7),
}
"""Table 3, Lebedev columns: (L, L) -> errors in float64 and float32."""

PAPER_TRUNCATED = {
    (1, 2): (2.31e-14, 2.38e-7),
    (1, 3): (3.55e-14, 2.98e-7),
    (1, 4): (1.04e-13, 9.54e-7),
    (1, 5): (9.34e-14, 7.15e-7),
    (1, 6): (8.56e-14, 2.15e-6),
    (1, 7): (2.08e-13, 3.34e-6),
    (2, 2): (1.50e-14, 2.38e-7),
    (2, 3): (5.71e-14, 3.58e-7),
    (2, 4): (9.15e-14, 5.96e-7),
    (2, 5): (7.83e-14, 4.77e-7),
    (2, 6): (1.29e-13, 9.54e-7),
    (2, 7): (1.56e-13, 1.43e-6),
}
"""Table S-1, Lebedev columns: (M, L) -> errors in float64 and float32."""

PAPER_PRODUCT_GRID = {2: 3.62e-7, 3: 7.04e-7, 4: 7.97e-7, 5: 1.48e-6, 6: 4.14e-6, 7: 3.19e-6}
"""Table 3, float64 error of the latitude-longitude grids."""


@dataclass(frozen=True)
class Row:
    """One line of a table; errors of this package at two sizes of coefficients, and the paper's.

    Args:
        order: M; equal to `degree` where no row is left out.
    """

    table: str
    order: int
    degree: int
    n_points: int
    float64: float
    float64_network: float
    float64_paper: float
    float32: float
    float32_network: float
    float32_paper: float


def main(words: list[str] | None = None) -> None:
    """Measure, print, record."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(words)
    rows = [measure("3", M, L) for M, L in PAPER]
    rows += [measure("S-1", M, L) for M, L in PAPER_TRUNCATED]
    print("                       float64:                     float32:")
    print("table   M   L  points     unit  network    paper       unit  network    paper")
    for row in rows:
        print(
            f"{row.table:>5} {row.order:3d} {row.degree:3d} {row.n_points:7d}"
            f"{row.float64:9.1e}{row.float64_network:9.1e}{row.float64_paper:9.1e}"
            f"  {row.float32:9.1e}{row.float32_network:9.1e}{row.float32_paper:9.1e}"
        )
    record = {
        "claim": "the grid product is equivariant to rounding (paper Tables 3 and S-1)",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "numpy", "scipy")},
        "threads": torch.get_num_threads(),
        "features": f"{N_ATOMS} x {CHANNELS} normal numbers a row, {N_ROTATIONS} rotations",
        "network_amplitude": NETWORK_AMPLITUDE,
        "product_grid_float64_paper": PAPER_PRODUCT_GRID,
        "rows": [asdict(row) for row in rows],
    }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def measure(table: str, order: int, degree: int) -> Row:
    """Both precisions of one (M, L)."""
    papers = (PAPER if table == "3" else PAPER_TRUNCATED)[order, degree]
    values: list[float] = []
    for dtype, paper in zip((torch.float64, torch.float32), papers, strict=True):
        for amplitude in (1.0, NETWORK_AMPLITUDE):
            about_z = table == "S-1"
            values.append(equivariance_error(degree, order, dtype, amplitude, about_z))
        values.append(paper)
    return Row(table, order, degree, len(lebedev(degree)[1]), *values)


def equivariance_error(
    degree: int,
    order: int,
    dtype: torch.dtype,
    amplitude: float = 1.0,
    about_z: bool = False,
) -> float:
    """Largest entry of f(D a, D b) - D f(a, b) for the product f over random rotations D.

    Args:
        degree: L.
        order: M; the rows |m| <= M take part.
        amplitude: standard deviation of the coefficients.
        about_z: whether D turns about z only, as it must where M < L.
    """
    rng = np.random.default_rng(100 * degree + order)
    torch.manual_seed(100 * degree + order)
    kept = [lm for lm, m in enumerate(_orders(degree)) if abs(m) <= order]
    tables = sphere_grid(degree)
    tables = GridTables(tables.to_grid[:, kept].contiguous(), tables.from_grid[kept].contiguous())
    product = GridProduct(tables, CHANNELS, "product").to(dtype).requires_grad_(False)
    worst = 0.0
    for _ in range(N_ROTATIONS):
        turn = _roll(rng) if about_z else _turn(rng)
        rotation = _wigner(degree, turn)[kept][:, kept].to(dtype)
        fields = amplitude * rng.normal(size=(2, N_ATOMS, len(kept), CHANNELS))
        a, b = torch.from_numpy(fields).to(dtype)
        difference = product(rotation @ a, rotation @ b) - rotation @ product(a, b)
        worst = max(worst, float(difference.abs().max()))
    return worst


def _orders(degree: int) -> list[int]:
    """The order m of each packed row."""
    return [lm - l * l - l for lm, l in enumerate(degree_of_lm(degree))]


def _turn(rng: np.random.Generator) -> Tensor:
    """A random rotation."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return torch.from_numpy(q * np.linalg.det(q))


def _roll(rng: np.random.Generator) -> Tensor:
    """A random rotation about z."""
    angle = rng.uniform(0, 2 * pi)
    cos, sin = np.cos(angle), np.sin(angle)
    return torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)


def _wigner(degree: int, turn: Tensor) -> Tensor:
    """D with D Y(p) = Y(R p), by exact quadrature: D = <Y(R p) Y(p)^T> (2 l + 1)."""
    points, weights = lebedev(degree)
    harmonics = RotationRows(degree, 0).harmonics
    width = 2.0 * torch.tensor(degree_of_lm(degree)).double() + 1
    return (harmonics(points @ turn.T) * weights[:, None]).T @ harmonics(points) * width
