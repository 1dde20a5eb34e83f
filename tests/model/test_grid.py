"""Quadrature grids: exactness of the rules, of the product, and equivariance."""

import importlib.util
import sys
from math import pi, sqrt
from pathlib import Path

import pytest
import torch
from models import largest, rotation_matrix, wigner
from scipy.integrate import lebedev_rule
from torch import nn

from dpa4sim.model.frames import RotationRows, degree_of_lm
from dpa4sim.model.grid import GridProduct, MessageGrid, lebedev, rotation_grid, sphere_grid

TOLERANCE = 1e-13
"""Sums of up to 350 grid values of order 1; 2e-14 is what we see."""

POINTS = {1: 6, 2: 26, 3: 38, 4: 74, 5: 86, 6: 146, 7: 170}
"""Table 3 of the paper, and the 6-point rule."""

C = 3
OPERATIONS = pytest.mark.parametrize("operation", ["product", "mlp", "branch"])


def fields(degree: int, n_frames: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random fields (atom, lm, frame * channel); components with |k| > l do not exist."""
    generator = torch.Generator().manual_seed(seed)
    shape = 2, 4, (degree + 1) ** 2, n_frames, C
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    lm = torch.tensor(degree_of_lm(degree))
    frame = (torch.arange(n_frames) + 1) // 2
    a, b = (x * (frame <= lm[:, None])[..., None]).flatten(3).unbind(0)
    return a, b


def product(tables, operation: str, **options) -> GridProduct:
    torch.manual_seed(1)
    module = GridProduct(tables, C, operation, n_branches=2, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("degree", POINTS)
def test_rule_is_exact_to_three_times_the_degree(degree):
    points, weights = lebedev(degree)
    assert len(points) == POINTS[degree]
    assert largest(points.norm(dim=1) - 1) < TOLERANCE
    integrals = weights @ RotationRows(3 * degree, 0).harmonics(points)
    assert float(integrals[0]) == pytest.approx(1, abs=TOLERANCE)
    assert largest(integrals[1:]) < TOLERANCE


@pytest.mark.parametrize("degree", POINTS)
def test_rule_is_the_smallest_that_is(degree):
    """It is not exact much farther, so it was not chosen larger than needed."""
    points, weights = lebedev(degree)
    integrals = weights @ RotationRows(3 * degree + 4, 0).harmonics(points)
    assert largest(integrals[1:]) > 1e-3


@pytest.mark.parametrize("degree", range(1, 7))
def test_to_grid_and_back(degree):
    tables = sphere_grid(degree)
    assert largest(tables.from_grid @ tables.to_grid - torch.eye((degree + 1) ** 2)) < TOLERANCE


@pytest.mark.parametrize(("degree", "frame"), [(1, 1), (2, 1), (3, 2), (3, 0)])
def test_to_rotation_grid_and_back(degree, frame):
    """The identity on the components that exist, |k| <= l."""
    tables, size = rotation_grid(degree, frame), (degree + 1) ** 2
    lm, k = torch.tensor(degree_of_lm(degree)), (torch.arange(2 * frame + 1) + 1) // 2
    exists = (k <= lm[:, None]).flatten().double()
    assert tables.to_grid.shape[1] == size * (2 * frame + 1)
    assert largest(tables.from_grid @ tables.to_grid - torch.diag(exists)) < TOLERANCE


@pytest.mark.parametrize("degree", range(1, 7))
def test_product_is_that_of_a_much_finer_rule(degree):
    """c_lm = (2l + 1) / sqrt(L + 1) <Y_lm, (Y . a) (Y . b)> by a rule of order 59."""
    points, weights = lebedev_rule(59)
    harmonics = RotationRows(degree, 0).harmonics(torch.from_numpy(points.T.copy()))
    width = 2.0 * torch.tensor(degree_of_lm(degree)).double() + 1
    project = (harmonics * (torch.from_numpy(weights) / (4 * pi))[:, None] * width).T
    a, b = fields(degree)
    expected = project @ ((harmonics @ a) * (harmonics @ b)) / sqrt(degree + 1)
    tables = sphere_grid(degree)
    got = tables.from_grid @ ((tables.to_grid @ a) * (tables.to_grid @ b))
    assert largest(got - expected) < 10 * TOLERANCE


@pytest.mark.parametrize(("degree", "frame"), [(2, 1), (3, 2)])
def test_rotation_product_is_that_of_a_much_finer_rule(degree, frame):
    points, weights = lebedev_rule(35)
    n_rolls, rotation = 17, RotationRows(degree, frame)
    roll = torch.arange(n_rolls).double() * (2 * pi / n_rolls) + 0.3
    direction = torch.from_numpy(points.T.copy())
    values = rotation(direction.repeat_interleave(n_rolls, 0), roll.repeat(len(direction)))
    values = values.transpose(1, 2).flatten(1)
    weight = torch.from_numpy(weights / (4 * pi)).repeat_interleave(n_rolls) / n_rolls
    width = 2.0 * torch.tensor(degree_of_lm(degree)).double() + 1
    width = width.repeat_interleave(2 * frame + 1)
    a, b = (x.reshape(4, -1, C) for x in fields(degree, 2 * frame + 1))
    expected = (values * weight[:, None] * width).T @ ((values @ a) * (values @ b))
    tables = rotation_grid(degree, frame)
    got = tables.from_grid @ ((tables.to_grid @ a) * (tables.to_grid @ b))
    assert largest(got - expected) < 10 * TOLERANCE


def test_product_of_two_vectors_by_hand():
    """(n . u)(n . v) has the mean u . v / 3; at L = 1 nothing of l = 1 remains."""
    u, v = torch.tensor([0.3, -0.5, 2.0]).double(), torch.tensor([1.0, 0.7, -0.2]).double()
    a, b = (torch.cat([x.new_zeros(1), x])[None, :, None] for x in (u, v))
    tables = sphere_grid(1)
    got = (tables.from_grid @ ((tables.to_grid @ a) * (tables.to_grid @ b)))[0, :, 0]
    assert float(got[0]) == pytest.approx(float(u @ v) / 3 / sqrt(2), abs=TOLERANCE)
    assert largest(got[1:]) < TOLERANCE


@pytest.mark.parametrize("degree", [1, 2, 4])
@OPERATIONS
def test_sphere_product_is_equivariant(degree, operation):
    module = product(sphere_grid(degree), operation, bias=True)
    a, b = fields(degree)
    for matrix in (rotation_matrix(1), -rotation_matrix(2)):
        D = wigner(degree, matrix)
        assert largest(module(D @ a, D @ b) - D @ module(a, b)) < 100 * TOLERANCE


@pytest.mark.parametrize(("degree", "frame"), [(1, 1), (3, 2), (3, 0)])
@pytest.mark.parametrize("paired", [True, False])
@OPERATIONS
def test_rotation_product_is_equivariant(degree, frame, paired, operation):
    """Under rotations; the rotation group has a hand, so not under reflections."""
    module = product(rotation_grid(degree, frame), operation, paired=paired)
    a, b = fields(degree, 2 * frame + 1)
    D = wigner(degree, rotation_matrix(1))
    assert largest(module(D @ a, D @ b) - D @ module(a, b)) < 100 * TOLERANCE


def test_a_coarser_rule_is_not_equivariant():
    """The checks above would see a rule of order 2 L."""
    module = product(sphere_grid(4), "product")
    points, weights = lebedev_rule(7)
    harmonics = RotationRows(4, 0).harmonics(torch.from_numpy(points.T.copy()))
    width = 2.0 * torch.tensor(degree_of_lm(4)).double() + 1
    module.to_grid = harmonics
    module.from_grid = (harmonics * torch.from_numpy(weights / (4 * pi))[:, None] * width).T
    a, b = fields(4)
    D = wigner(4, rotation_matrix(1))
    assert largest(module(D @ a, D @ b) - D @ module(a, b)) > 1e-3


def test_scalar_gate_and_addend():
    """c sigmoid([a_0, b_0] W + w), and silu(a_0) b_0 on row 0 only."""
    module = product(sphere_grid(2), "product", bias=True)
    a, b = fields(2)
    bare = module.from_grid @ ((module.to_grid @ a) * (module.to_grid @ b))
    pair = torch.cat([a[:, 0], b[:, 0]], -1)
    expected = bare * torch.sigmoid(pair @ module.gate + module.gate_bias)[:, None]
    expected[:, 0] += nn.functional.silu(a[:, 0]) * b[:, 0]
    assert largest(module(a, b) - expected) < TOLERANCE


def test_branches_are_mixed_by_the_router():
    """One branch alone is the operation without a router."""
    module = product(sphere_grid(2), "branch")
    a, b = fields(2)
    with torch.no_grad():
        module.router.zero_()
    got = module._product(a, b, torch.cat([a[:, 0], b[:, 0]], -1))
    to_grid, from_grid = module.to_grid, module.from_grid
    parts = [
        from_grid @ ((to_grid @ (a @ module.left[:, cut])) * (to_grid @ (b @ module.right[:, cut])))
        for cut in (slice(0, C), slice(C, 2 * C))
    ]
    assert largest(got - (parts[0] + parts[1]) / 2 @ module.out) < 10 * TOLERANCE


@OPERATIONS
def test_message_grid_is_equivariant_and_keeps_focuses_apart(operation):
    torch.manual_seed(0)
    module = MessageGrid(2, 1, C, 2, operation, 2, bias=True).double()
    with torch.no_grad():
        module.scale.fill_(0.7)
    message, atom = (x.repeat(1, 1, 2) for x in fields(2))
    atom = atom * torch.linspace(0.5, 1.5, 2 * C).double()
    D = wigner(2, rotation_matrix(1))
    plain = module(message, atom)
    assert largest(module(D @ message, D @ atom) - D @ plain) < 100 * TOLERANCE
    assert largest(plain - message) > 0.01
    changed = message.clone()
    changed[..., C:] = 0
    assert torch.equal(module(changed, atom)[..., :C], plain[..., :C])


def equivariance_bench():
    path = Path(__file__).parents[2] / "bench" / "equivariance.py"
    spec = importlib.util.spec_from_file_location("equivariance_bench", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("table", ["3", "S-1"])
def test_errors_are_not_above_the_paper(table, degree):
    """float64 at unit variance; float32 with the numbers that a fresh network feeds."""
    bench = equivariance_bench()
    row = bench.measure(table, degree if table == "3" else 1, degree)
    assert row.n_points == POINTS[degree]
    assert 0 < row.float64 < row.float64_paper
    assert 0 < row.float32_network < row.float32_paper
    assert row.float32 < 1e-6  # 8 to 16 is the size of the largest outputs, 9.5e-7 their last bit
