"""What may move: strains, forces, and the sentences about what cannot be asked for."""

import numpy as np
import pytest
import torch
from toy import LennardJones, crystals, from_atoms, packed, without_bulk

from dpa4sim.errors import ConfigError, DataError
from dpa4sim.lattice import volume
from dpa4sim.pool.pack import join
from dpa4sim.relax.freedom import (
    Freedom,
    allowed_strains,
    cell_work,
    check_options,
    free,
    from_strain,
    intersection,
    project_forces,
    project_strain,
    to_strain,
    unconstrained,
)
from dpa4sim.units import GPA_PER_EV_A3

ROUNDING = 1e-14
"""A few operations on numbers of order one."""

NAN = float("nan")
DIAGONAL = (True, True, True, False, False, False)
PLANE = (True, True, False, False, False, True)
NO_ZZ = (True, True, False, True, True, True)


def matrices(count: int = 7) -> torch.Tensor:
    return torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(0)).double()


def test_the_strains_are_an_orthonormal_basis():
    basis = to_strain(torch.eye(6, dtype=torch.float64))
    products = torch.einsum("aij,bij->ab", basis, basis)
    torch.testing.assert_close(products, torch.eye(6).double(), rtol=0, atol=ROUNDING)
    places = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    for strain, (i, j) in zip(basis, places, strict=True):
        expected = np.zeros((3, 3))
        expected[i, j] = expected[j, i] = 1.0 if i == j else 0.5**0.5
        np.testing.assert_allclose(strain, expected, atol=ROUNDING)


def test_strain_and_coefficients_are_inverse_to_each_other():
    anything = matrices()
    symmetric = 0.5 * (anything + anything.transpose(1, 2))
    back = to_strain(from_strain(anything))
    torch.testing.assert_close(back, symmetric, rtol=0, atol=ROUNDING)
    q = from_strain(anything)
    torch.testing.assert_close(from_strain(to_strain(q)), q, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, 6),
        ({"mask": PLANE}, 3),
        ({"hydrostatic": True}, 1),
        ({"constant_volume": True}, 5),
        ({"constant_volume": True, "mask": DIAGONAL}, 2),
        ({"constant_volume": True, "mask": PLANE}, 2),
        ({"hydrostatic": True, "mask": DIAGONAL}, 1),
        ({"hydrostatic": True, "mask": NO_ZZ}, 0),
        ({"hydrostatic": True, "constant_volume": True}, 0),
    ],
)
def test_what_is_left_is_what_every_option_allows(options, left):
    projector = allowed_strains(**options)
    assert float(projector.diagonal().sum()) == pytest.approx(left, abs=ROUNDING)
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=ROUNDING)
    for name, value in options.items():
        one = allowed_strains(**{name: value})
        torch.testing.assert_close(one @ projector, projector, rtol=0, atol=ROUNDING)


def test_an_intersection_of_skew_planes_is_their_line():
    def plane(normal: list[float]) -> torch.Tensor:
        n = torch.tensor(normal).double()
        return torch.eye(3).double() - torch.outer(n, n) / (n @ n)

    line = torch.linalg.cross(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 2.9])).double()
    expected = torch.outer(line, line) / (line @ line)
    found = intersection(plane([1.0, 2, 3]), plane([1.0, 2, 2.9]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_work_is_pressure_and_stress_through_the_projector():
    batch = packed(crystals().values())
    cases: list[dict] = [
        {"pressure_gpa": 3.0},
        {"mask": (True, False, False, True, False, False)},
        {"hydrostatic": True, "pressure_gpa": -1.0},
        {"constant_volume": True},
        {"cell": False},
    ]
    freedom = join(*(free(b, **case)[1] for b, case in zip(batch.split(), cases, strict=True)))
    stress = matrices(5)
    stress = stress + stress.transpose(1, 2)
    stress[4] = NAN
    raw = -volume(batch.cell)[:, None, None] * stress
    size = volume(batch.cell) / GPA_PER_EV_A3
    raw[0] -= 3.0 * size[0] * torch.eye(3).double()
    raw[2] += 1.0 * size[2] * torch.eye(3).double()
    expected = torch.zeros(5, 3, 3).double()
    expected[0] = raw[0]
    expected[1, 0, 0], expected[1, 1, 2], expected[1, 2, 1] = (
        raw[1, 0, 0],
        raw[1, 1, 2],
        raw[1, 2, 1],
    )
    expected[2] = raw[2].diagonal().mean() * torch.eye(3).double()
    expected[3] = raw[3] - raw[3].diagonal().mean() * torch.eye(3).double()
    found = cell_work(freedom, batch, stress)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)  # volumes up to 400 Å^3


def test_work_of_one_system_does_not_see_the_others():
    batch = packed(crystals().values())
    options = [
        {"pressure_gpa": 3.0},
        {"mask": (True, False, False, True, False, False)},
        {"hydrostatic": True},
        {},
        {},
    ]
    parts = [free(b, **case)[1] for b, case in zip(batch.split(), options, strict=True)]
    stress = matrices(5)
    together = cell_work(join(*parts), batch, stress)
    alone = [
        cell_work(p, b, stress[s : s + 1])
        for s, (p, b) in enumerate(zip(parts, batch.split(), strict=True))
    ]
    assert torch.equal(together, torch.cat(alone))


def test_an_unconstrained_strain_keeps_its_bits():
    batch = packed(crystals().values())
    q = from_strain(matrices(5))
    assert torch.equal(project_strain(unconstrained(batch), q), q)
    assert not project_strain(unconstrained(batch, False), q).any()


def test_fixed_atoms_have_no_force():
    batch = packed(crystals().values())
    parts = [free(b, fixed_atoms=[0])[1] for b in batch.split()]
    forces = LennardJones()(batch).forces
    left = project_forces(join(*parts), batch, forces)
    starts = (batch.n_atoms.cumsum(0) - batch.n_atoms).tolist()
    assert not left[starts].any()
    others = [atom for atom in range(len(forces)) if atom not in starts]
    assert torch.equal(left[others], forces[others])


@pytest.mark.parametrize("chosen", [[0, 2], (2, 0, 2), [True, False, True, *[False] * 5]])
def test_fixed_atoms_are_named_by_index_or_flag(chosen):
    _, freedom = free(from_atoms(crystals()["left_handed"]), fixed_atoms=chosen)
    assert freedom.movable.tolist() == [0.0, 1.0, 0.0, *[1.0] * 5]


def test_nothing_asked_is_nothing_constrained():
    for system in packed([*crystals().values(), *without_bulk().values()]).split():
        cell = bool(system.pbc.all())
        returned, freedom = free(system, cell=cell)
        assert returned is system
        plain = unconstrained(system, cell)
        assert freedom.orbits is None
        assert plain.orbits is None
        for name in ("moves_cell", "pressure", "strain", "keeps_volume", "movable"):
            assert torch.equal(getattr(freedom, name), getattr(plain, name)), name


def test_pressure_is_converted():
    _, freedom = free(from_atoms(crystals()["cubic"]), pressure_gpa=GPA_PER_EV_A3)
    assert isinstance(freedom, Freedom)
    assert freedom.pressure.tolist() == [1.0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pressure_gpa": NAN}, "pressure_gpa = nan is not a pressure"),
        ({"pressure_gpa": float("inf")}, "Give a number in GPa"),
        (
            {"mask": (True, True, True)},
            "mask has 3 entries. Give six flags, for the strains xx, yy, zz",
        ),
        ({"mask": (False,) * 6}, "mask leave.* no strain"),
        ({"hydrostatic": True, "constant_volume": True}, "hydrostatic and constant_volume leave"),
        (
            {"hydrostatic": True, "mask": (True, True, False, False, False, False)},
            "mask and hydrostatic leave",
        ),
        ({"fix_symmetry": -0.1}, "fix_symmetry = -0.1 is no tolerance"),
        ({"fix_symmetry": NAN}, "Give True, False or a length"),
    ],
)
def test_options_that_nothing_can_follow(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_options(**options)
    with pytest.raises(ConfigError, match=sentence):
        free(from_atoms(crystals()["cubic"]), **options)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("slab", {}, "periodic along 2 of 3 lattice vectors. Set cell=False"),
        ("slab", {"pressure_gpa": 1.0}, "periodic along 2 of 3"),
        ("slab", {"pressure_gpa": 1.0, "cell": False}, "pressure_gpa cannot be used, for its cell"),
        ("molecule", {"mask": (True,) * 6, "cell": False}, "mask cannot be used"),
        (
            "cubic",
            {"hydrostatic": True, "mask": (True,) * 6, "cell": False},
            "mask and hydrostatic c",
        ),
        ("cubic", {"constant_volume": True, "cell": False}, "leave it out for this structure"),
        ("left_handed", {"fixed_atoms": [8]}, "names atom 8, and there are 8 atoms"),
        ("left_handed", {"fixed_atoms": [-1]}, "whole numbers from 0 to 7"),
        ("left_handed", {"fixed_atoms": [True] * 7}, "7 flags for 8 atoms"),
        ("left_handed", {"fixed_atoms": range(8), "cell": False}, "every atom is fixed"),
    ],
)
def test_options_that_this_structure_cannot_follow(name, options, sentence):
    system = from_atoms({**crystals(), **without_bulk()}[name])
    with pytest.raises(DataError, match=sentence):
        free(system, **options)
