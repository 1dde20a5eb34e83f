"""Spherical harmonics and edge frames, against SciPy and against D Y(p) = Y(R p)."""

from math import pi, sqrt

import numpy as np
import pytest
import torch
from models import largest
from scipy.special import sph_harm_y

from dpa4sim.model.frames import RotationRows, degree_of_lm, degree_of_row, order_of_row, tangents

TOLERANCE = 2e-14
"""Recursions of at most six float64 steps; 3e-15 is what we see."""

FLOAT32_TOLERANCE = 2e-6
"""Sixteen float32 roundings (6e-8) of numbers up to 1; 4e-7 is what we see at L = 6."""

TOP = 6
CASES = pytest.mark.parametrize(
    ("degree", "order"), [(L, M) for L in range(7) for M in range(L + 1)]
)


def directions(n: int = 50) -> torch.Tensor:
    """Random ones, the axes, and both sides of the seam z = 0 and of the poles."""
    points = np.random.default_rng(0).normal(size=(n, 3))
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    seam = [[0.6, 0.8, 1e-15], [0.6, 0.8, -1e-15], [-0.6, 0.8, 0.0], [1, 0, -1e-9]]
    poles = [[1e-9, 0, 1], [0, 1e-9, -1], [1e-160, 0, -1], [3e-5, -4e-5, -1]]
    points = torch.from_numpy(np.concatenate([points, axes, seam, poles]))
    return points / points.norm(dim=1, keepdim=True)


def frame_matrices(direction: torch.Tensor) -> torch.Tensor:
    """R of each direction, rows (t1, t2, n): R n = z."""
    first, second = tangents(direction)
    return torch.stack([first, second, direction], 1)


def orders(max_order: int) -> list[int]:
    """m of each row: 0, -1, +1, -2, +2, ..."""
    return [0] + [m for order in range(1, max_order + 1) for m in (-order, order)]


def reference_harmonics(points: torch.Tensor, degree: int) -> torch.Tensor:
    """Real harmonics of one degree from SciPy's complex ones, in this package's convention."""
    x, y, z = points.numpy().T
    theta, phi = np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)
    columns = []
    for m in range(-degree, degree + 1):
        value = sph_harm_y(degree, abs(m), theta, phi) * sqrt(4 * pi / (2 * degree + 1))
        value = value * (-1) ** m  # takes the Condon-Shortley phase away
        real = value.real if m == 0 else sqrt(2) * (value.real if m > 0 else value.imag)
        columns.append(real * ((-1) ** m if m >= 0 else (-1) ** (abs(m) + 1)))
    return torch.from_numpy(np.stack(columns, 1))


@pytest.mark.parametrize("degree", range(TOP + 1))
def test_harmonics_are_those_of_scipy(degree):
    points = directions()
    block = slice(degree**2, (degree + 1) ** 2)
    got = RotationRows(TOP, 0).harmonics(points)[:, block]
    assert largest(got - reference_harmonics(points, degree)) < 10 * TOLERANCE
    assert largest(got.square().sum(1) - 1) < TOLERANCE


def test_first_degree_is_y_z_minus_x():
    points = directions()
    got = RotationRows(1, 0).harmonics(points)
    x, y, z = points.unbind(1)
    assert torch.equal(got[:, 0], torch.ones_like(x))
    assert largest(got[:, 1:] - torch.stack([y, z, -x], 1)) < TOLERANCE


@CASES
def test_rows_turn_the_harmonics_into_the_edge_frame(degree, order):
    """D Y(p) = Y(R p) for the rows that are kept, for every degree."""
    direction = directions()
    rows = RotationRows(degree, order)(direction)
    assert rows.shape == (len(direction), 2 * order + 1, (degree + 1) ** 2)
    harmonics = RotationRows(degree, 0).harmonics
    for point in directions(4)[:4]:
        turned = harmonics(frame_matrices(direction) @ point)
        for index, m in enumerate(orders(order)):
            for l in range(degree + 1):
                block = slice(l * l, (l + 1) ** 2)
                got = rows[:, index, block] @ harmonics(point[None])[0, block]
                expected = turned[:, l * l + l + m] if abs(m) <= l else torch.zeros_like(got)
                assert largest(got - expected) < TOLERANCE


@CASES
def test_rows_are_orthonormal(degree, order):
    rows = RotationRows(degree, order)(directions())
    for l in range(degree + 1):
        kept = [index for index, m in enumerate(orders(order)) if abs(m) <= l]
        block = rows[:, kept, l * l : (l + 1) ** 2]
        assert largest(block @ block.transpose(1, 2) - torch.eye(len(kept))) < TOLERANCE


def test_row_0_is_the_harmonics_and_the_edge_itself_points_along_z():
    direction = directions()
    rows = RotationRows(TOP, TOP)(direction)
    harmonics = RotationRows(TOP, 0).harmonics(direction)
    assert torch.equal(rows[:, 0], harmonics)
    for index, m in enumerate(orders(TOP)):
        for l in range(abs(m), TOP + 1):
            block = slice(l * l, (l + 1) ** 2)
            value = (rows[:, index, block] * harmonics[:, block]).sum(1)
            assert largest(value - float(m == 0)) < TOLERANCE


def test_tangents_are_right_handed_everywhere():
    frames = frame_matrices(directions())
    assert largest(frames @ frames.transpose(1, 2) - torch.eye(3)) < TOLERANCE
    assert largest(torch.linalg.det(frames) - 1) < TOLERANCE


def test_charts_on_the_seam():
    """On z = 0 the two charts differ by a roll about the direction, which is a gauge."""
    points = torch.tensor([[0.6, 0.8, 1e-300], [0.6, 0.8, -1e-300]], dtype=torch.float64)
    upper, lower = frame_matrices(points)
    roll = upper @ lower.T
    assert largest(roll[2] - torch.tensor([0.0, 0, 1])) < TOLERANCE
    assert largest(roll - torch.eye(3)) > 0.1
    assert largest(frame_matrices(-points) @ points[0] - torch.tensor([0.0, 0, -1])) < TOLERANCE


def test_roll_turns_each_pair_of_rows():
    """Rows -m and +m turn into each other by m times the angle; row 0 stays."""
    direction, angle = directions(), 0.7
    rotation = RotationRows(4, 3)
    plain = rotation(direction)
    rolled = rotation(direction, torch.full((len(direction),), angle, dtype=torch.float64))
    assert torch.equal(rolled[:, 0], plain[:, 0])
    for m in (1, 2, 3):
        pair, turned = plain[:, 2 * m - 1 : 2 * m + 1], rolled[:, 2 * m - 1 : 2 * m + 1]
        mixing = torch.einsum("eap,ebp->ab", turned, pair) / len(direction) / (5 - m)
        cos, sin = np.cos(m * angle), abs(np.sin(m * angle))
        assert largest(mixing.diagonal() - cos) < TOLERANCE
        assert largest(mixing[0, 1].abs() - sin) < TOLERANCE
        assert largest(mixing[0, 1] + mixing[1, 0]) < TOLERANCE


def test_float32_rows():
    direction = directions()
    exact, single = RotationRows(TOP, 2), RotationRows(TOP, 2).float()
    error = largest(single(direction.float()) - exact(direction.float().double()))
    assert error < FLOAT32_TOLERANCE


def test_rows_are_differentiable_on_the_poles():
    direction = directions()[-8:].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(RotationRows(3, 2)(direction).sum(), direction)
    assert bool(gradient.isfinite().all())


@CASES
def test_index_tables(degree, order):
    rows = list(zip(degree_of_row(degree, order), order_of_row(degree, order), strict=True))
    expected = [(l, 0) for l in range(degree + 1)]
    for m in range(1, order + 1):
        expected += [(l, 2 * m - 1) for l in range(m, degree + 1)]
        expected += [(l, 2 * m) for l in range(m, degree + 1)]
    assert rows == expected
    assert degree_of_lm(degree) == [l for l in range(degree + 1) for _ in range(2 * l + 1)]
