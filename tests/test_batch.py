"""Packing and unpacking structures."""

import pytest
import torch

from dpa4sim.batch import Batch, cross, dot, symbol
from dpa4sim.errors import DataError

CUBE = 4.0 * torch.eye(3, dtype=torch.float64)


def water(**state) -> Batch:
    return Batch.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1], **state)


def salt(**state) -> Batch:
    return Batch.single([[0, 0, 0], [2.0, 2.0, 2.0]], [11, 17], CUBE, True, **state)


def fields(batch: Batch) -> dict:
    return {name: value for name, value in vars(batch).items() if value is not None}


def assert_same(first: Batch, second: Batch):
    assert fields(first).keys() == fields(second).keys()
    for name, value in fields(first).items():
        assert torch.equal(value, fields(second)[name]), name


def test_single_makes_float64_of_any_input():
    batch = Batch.single(torch.zeros(2, 3, dtype=torch.float32), [1, 1], torch.eye(3).half(), True)
    assert batch.positions.dtype == batch.cell.dtype == torch.float64
    assert batch.atomic_numbers.dtype == batch.system_idx.dtype == batch.n_atoms.dtype == torch.long
    assert batch.pbc.tolist() == [[True, True, True]]
    assert water().cell.eq(0).all()
    assert water().pbc.tolist() == [[False, False, False]]


def test_single_rounds_no_number_of_a_list():
    cell = [[4.1, 0.0, 0.0], [0.0, 4.2, 0.0], [0.1, 0.0, 4.3]]
    batch = Batch.single([[0.1, 0.2, 0.3]], [1], cell, True)
    assert batch.cell[0].tolist() == cell
    assert batch.positions.tolist() == [[0.1, 0.2, 0.3]]


def test_single_keeps_charge_and_spin():
    batch = water(charge=-1, spin=2)
    assert (batch.charge.tolist(), batch.spin.tolist()) == ([-1.0], [2.0])


def test_magnetic_moments_follow_their_atoms():
    up, down = [[0.0, 0.0, 1.5], [0, 0, 0]], [[0.0, 0.5, 0.0], [0, 0, 0.25]]
    first, second = salt(magmoms=up), salt(magmoms=down)
    batch = Batch.concatenate([first, water(), second])
    assert batch.magmoms[:2].tolist() == up
    assert batch.magmoms[2:5].isnan().all()
    for single, part in zip((first, second), (batch.split()[0], batch.split()[2]), strict=True):
        assert_same(part, single)
    assert_same(batch.select([2, 0]), Batch.concatenate([second, first]))
    padded = first.padded(5, 3)
    assert torch.equal(padded.magmoms[:2], first.magmoms)
    assert padded.magmoms[2:].eq(0).all()
    assert Batch.concatenate([salt(), water()]).magmoms is None


def test_one_moment_per_atom():
    with pytest.raises(
        DataError, match=r"have shape \(1, 3\). Give a vector to each of the 2 atoms"
    ):
        salt(magmoms=[[0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("numbers", "cell", "match"),
    [
        ([1], None, "2 positions and 1"),
        ([1, 1], torch.ones(3), "3 x 3"),
        ([1, 1], CUBE[:2], "3 x 3"),
    ],
)
def test_single_refuses_arrays_that_do_not_belong_together(numbers, cell, match):
    with pytest.raises(DataError, match=match):
        Batch.single(torch.zeros(2, 3), numbers, cell)


def test_concatenate_then_split_gives_the_parts_back():
    parts = [water(charge=1), salt(charge=0), water(charge=-1)]
    batch = Batch.concatenate(parts)
    assert batch.n_systems == 3
    assert batch.system_idx.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert batch.n_atoms.tolist() == [3, 2, 3]
    for part, again in zip(parts, batch.split(), strict=True):
        assert_same(part, again)
    assert_same(Batch.concatenate([Batch.concatenate(parts[:2]), parts[2]]), batch)


def test_concatenate_refuses_nothing_and_half_given_states():
    with pytest.raises(DataError, match="at least one"):
        Batch.concatenate([])
    with pytest.raises(DataError, match="1 of 2 structures carry 'charge'"):
        Batch.concatenate([water(charge=1), salt()])


def test_select_reorders_repeats_and_renumbers():
    batch = Batch.concatenate([water(spin=1), salt(spin=2), water(spin=3)])
    chosen = batch.select([2, 1, 2])
    parts = batch.split()
    assert_same(chosen, Batch.concatenate([parts[2], parts[1], parts[2]]))
    assert chosen.spin.tolist() == [3.0, 2.0, 3.0]


@pytest.mark.parametrize("systems", [[], [3], [-1]])
def test_select_refuses_what_is_not_there(systems):
    with pytest.raises(DataError):
        Batch.concatenate([water(), salt(), water()]).select(systems)


def test_to_moves_every_tensor():
    moved = Batch.concatenate([water(charge=0.0), salt(charge=1.0)]).to("meta")
    assert {value.device.type for value in fields(moved).values()} == {"meta"}
    assert moved.spin is None


def test_volume_is_positive_for_either_handedness_and_zero_without_a_cell():
    mirrored = salt().with_geometry(salt().positions, -salt().cell)
    batch = Batch.concatenate([salt(), mirrored, water()])
    assert batch.volume.tolist() == [64.0, 64.0, 0.0]


def test_dot_and_cross_agree_with_torch():
    left, right = torch.rand(
        2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(dot(left, right), torch.linalg.vecdot(left, right))
    torch.testing.assert_close(cross(left, right), torch.linalg.cross(left, right))


def test_symbols():
    assert [symbol(z) for z in (1, 118, 0, 119, -1)] == ["H", "Og", "Z=0", "Z=119", "Z=-1"]
