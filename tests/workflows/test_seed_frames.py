"""Perturbed frames: each does what its name says, and the same generator gives the same frames."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from ase.units import kB

EXACT = 1e-10  # the same arithmetic twice, or one multiplication apart


@pytest.fixture(scope="module")
def frames(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("seed_frames")


@pytest.fixture
def salt() -> Atoms:
    return bulk("NaCl", "rocksalt", 5.64, cubic=True)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_scale_volume(frames: ModuleType, salt: Atoms) -> None:
    grown = frames.scale_volume(salt, 1.1)
    assert grown.get_volume() == pytest.approx(1.1 * salt.get_volume(), rel=EXACT)
    np.testing.assert_allclose(grown.get_scaled_positions(), salt.get_scaled_positions())


def test_random_strain_is_symmetric_and_bounded(frames: ModuleType, salt: Atoms) -> None:
    strained = frames.random_strain(salt, generator(), 0.05)
    deformation = np.linalg.solve(salt.cell[:], strained.cell[:]) - np.eye(3)
    np.testing.assert_allclose(deformation, deformation.T, atol=EXACT)
    assert 0 < np.abs(deformation).max() <= 0.05


def test_rattle_has_the_stated_width(frames: ModuleType, salt: Atoms) -> None:
    large = salt.repeat(6)
    moved = frames.rattle(large, generator(), 0.1)
    # 5184 components: the standard error of the width is 1 %
    assert (moved.positions - large.positions).std() == pytest.approx(0.1, rel=0.05)


def test_springs_are_symmetric_and_let_the_crystal_move(frames: ModuleType, salt: Atoms) -> None:
    matrix = frames.spring_matrix(frames.rattle(salt, generator(), 0.1))
    np.testing.assert_allclose(matrix, matrix.T, atol=EXACT)
    shift = np.tile([1.0, 2.0, 3.0], len(salt))
    np.testing.assert_allclose(matrix @ shift, 0, atol=1e-9)
    assert np.linalg.eigvalsh(matrix).min() > -1e-9


def test_a_spring_is_stiffer_along_its_bond(frames: ModuleType) -> None:
    pair = Atoms("N2", [[0, 0, 0], [1.42, 0, 0]], cell=[12] * 3, pbc=True)
    block = frames.spring_matrix(pair)[:3, 3:]
    np.testing.assert_allclose(block, -frames.STIFFNESS * np.diag([1, 0.2, 0.2]), atol=EXACT)


def test_a_hot_crystal_holds_half_kt_in_each_mode(frames: ModuleType, salt: Atoms) -> None:
    matrix, rng, temperature = frames.spring_matrix(salt), generator(), 800.0
    stiff = np.linalg.eigvalsh(matrix) > frames.SOFTEST
    assert stiff[3:].mean() > 0.5
    energies = []
    for _ in range(400):
        moved = (frames.thermal(salt, rng, temperature).positions - salt.positions).ravel()
        energies.append(0.5 * moved @ matrix @ moved)
    # modes softer than SOFTEST hold less
    expected = 0.5 * kB * temperature
    bound = expected * np.array([stiff.sum(), len(stiff) - 3])
    assert bound[0] * 0.95 < np.mean(energies) < bound[1] * 1.05


def test_a_bond_moves_less_than_a_contact(frames: ModuleType) -> None:
    molecule = Atoms(
        "N4", [[0, 0, 0], [1.4, 0, 0], [0, 2.2, 0], [1.4, 2.2, 0]], cell=[12] * 3, pbc=1
    )
    rng = generator()
    lengths = np.array([
        frames.thermal(molecule, rng, 1000.0).get_distances(0, [1, 2]) for _ in range(200)
    ])  # fmt: skip
    bond, contact = lengths.std(0)
    assert bond < 0.7 * contact


def test_squeeze_pair_shortens_one_contact(frames: ModuleType, salt: Atoms) -> None:
    squeezed = frames.squeeze_pair(salt, generator(), 0.7)
    before, after = frames.shortest_contact(salt), frames.shortest_contact(squeezed)
    assert after == pytest.approx(0.7 * before, rel=1e-6)
    moved = np.linalg.norm(squeezed.positions - salt.positions, axis=1) > EXACT
    assert moved.sum() == 2


def test_swap_exchanges_two_elements(frames: ModuleType, salt: Atoms) -> None:
    swapped = frames.swap_species(salt, generator())
    assert (swapped.numbers != salt.numbers).sum() == 2
    assert sorted(swapped.numbers) == sorted(salt.numbers)


def test_a_vacancy_is_one_atom(frames: ModuleType, salt: Atoms) -> None:
    assert len(frames.vacancy(salt, generator())) == len(salt) - 1
    assert len(frames.vacancy(bulk("Cu"), generator())) == 1


def test_a_slab_has_its_vacuum(frames: ModuleType) -> None:
    crystal = bulk("NaCl", "rocksalt", 5.64).repeat((2, 2, 1))
    for seed in range(4):
        axis = int(generator(seed).integers(3))
        cut = frames.slab(crystal, generator(seed))
        normal = np.linalg.inv(cut.cell[:])[:, axis]
        heights = cut.positions @ normal / np.linalg.norm(normal)
        period = 1 / np.linalg.norm(normal)
        assert period - np.ptp(heights) == pytest.approx(frames.VACUUM, rel=1e-6)
        assert len(cut) == len(crystal)


def test_stretched_frames_end_where_chgnet_sees_nothing(frames: ModuleType) -> None:
    pulled = frames.stretched_frames(bulk("Na"), generator())
    nearest = [neighbor_list("d", atoms, 8.0).min() for atoms in pulled]
    assert nearest == sorted(nearest)
    assert frames.FARTHEST - 0.3 < nearest[-1] < 6.0
    assert {atoms.info["subset"] for atoms in pulled} == {"stretched"}


def test_perturbed_frames(frames: ModuleType) -> None:
    primitive = bulk("NaCl", "rocksalt", 5.64)
    kinds = set()
    for seed in range(6):
        made = frames.perturbed_frames(primitive, generator(seed))
        again = frames.perturbed_frames(primitive, generator(seed))
        for frame, copy in zip(made, again, strict=True):
            np.testing.assert_array_equal(frame.positions, copy.positions)
            assert frame.info == copy.info
            assert len(frame) <= frames.MAX_ATOMS
            assert frames.shortest_contact(frame) > frames.MIN_CONTACT
        assert len(made) <= 4
        kinds |= {frame.info["subset"] for frame in made}
    assert {"thermal", "strain", "squeeze"} <= kinds
    assert kinds & {"swap", "vacancy", "slab"}


def test_a_large_cell_gives_half_as_many(frames: ModuleType, salt: Atoms) -> None:
    assert len(frames.perturbed_frames(salt.repeat((2, 1, 1)), generator())) <= 2


def test_a_broken_frame_is_dropped(frames: ModuleType) -> None:
    crushed = bulk("NaCl", "rocksalt", 2.2)
    assert not frames.perturbed_frames(crushed, generator())
