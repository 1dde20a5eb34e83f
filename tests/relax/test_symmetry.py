"""The space group of a structure is found, refined and kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import FIRE
from ase.spacegroup import crystal
from ase.spacegroup.symmetrize import check_symmetry
from toy import AseModel, LennardJones, from_atoms, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.errors import DataError, Status
from dpa4sim.pool.pack import join
from dpa4sim.potential import Prediction
from dpa4sim.relax import symmetry
from dpa4sim.relax.fire import FireSettings, FireState, fire_init, fire_step
from dpa4sim.relax.freedom import Freedom, free, symmetrize, trivial_orbits, unconstrained


def symmetric(rattle: float = 1e-3) -> dict[str, Atoms]:
    """Crystals of unlike systems, turned, with the noise of a file that keeps three decimals."""
    noise = np.random.default_rng(4)
    pair, odd = {"symbols": ["Cu", "Ni"]}, {"symbols": ["Cu", "Co"]}
    perfect = {
        "cubic": bulk("Cu", "fcc", a=3.8, cubic=True),
        "supercell": bulk("Ti", "hcp", a=2.6, c=4.3) * (2, 1, 1),
        "rutile": crystal(
            **pair,
            basis=[(0, 0, 0), (0.31, 0.31, 0)],
            spacegroup=136,
            cellpar=[4.6, 4.6, 2.9, 90, 90, 90],
        ),
        "quartz": crystal(
            **odd,
            basis=[(0.45, 0, 1 / 3), (0.41, 0.27, 0.12)],
            spacegroup=152,
            cellpar=[6.2, 6.2, 6.6, 90, 90, 120],
        ),
        "monoclinic": crystal(
            **pair,
            basis=[(0.1, 0.25, 0.15), (0.6, 0.25, 0.3)],
            spacegroup=11,
            cellpar=[3.8, 4.2, 4.6, 90, 104, 90],
        ),
    }
    for atoms in perfect.values():
        atoms.rotate(40, noise.normal(size=3), rotate_cell=True)
        atoms.positions += rattle * noise.normal(size=atoms.positions.shape)
    return perfect


NUMBERS = {"cubic": 225, "supercell": 194, "rutile": 136, "quartz": 152, "monoclinic": 11}

TIGHT_A = 1e-5
"""Tolerance at which a relaxed structure must still have its space group."""

AVERAGE_TOLERANCE = 1e-12
"""Forces of order one: two ways to add up to 200 of them."""

REFINED_A = 1e-10
"""An operation of the group carries a refined structure onto itself to the rounding of spglib."""

ASE_TOLERANCE_A = 1e-8
"""Over 60 steps; measured 1e-12 at most where ASE keeps its own rounding in bounds."""


def group_number(system: Batch, symprec: float) -> int:
    atoms = Atoms(
        system.atomic_numbers.numpy(), system.positions.numpy(), cell=system.cell[0].numpy(), pbc=1
    )
    return check_symmetry(atoms, symprec=symprec).number


def averaged(atoms: Atoms, vectors: np.ndarray, symprec: float = TIGHT_A) -> np.ndarray:
    """Group average over every operation, by brute force in Cartesian coordinates."""
    found = check_symmetry(atoms, symprec=symprec)
    lattice, total = atoms.cell.array, np.zeros_like(vectors)
    fractions = atoms.get_scaled_positions(wrap=False)
    for turn, shift in zip(found.rotations, found.translations, strict=True):
        cartesian = lattice.T @ turn @ np.linalg.inv(lattice.T)
        for i, place in enumerate(fractions):
            off = fractions - (turn @ place + shift)
            distance = np.linalg.norm((off - np.round(off)) @ lattice, axis=1)
            assert distance.min() < REFINED_A
            total[distance.argmin()] += cartesian @ vectors[i]
    return total / len(found.rotations)


def refined(name: str) -> tuple[Atoms, Batch, Freedom]:
    system, freedom = free(from_atoms(symmetric()[name]), fix_symmetry=True)
    atoms = symmetric()[name]
    atoms.set_cell(system.cell[0].numpy())
    atoms.positions = system.positions.numpy()
    return atoms, system, freedom


@pytest.mark.parametrize("name", NUMBERS)
def test_a_structure_with_noise_gets_its_exact_group(name):
    rough = from_atoms(symmetric()[name])
    _, system, _ = refined(name)
    assert group_number(rough, TIGHT_A) != NUMBERS[name]
    assert group_number(system, 1e-9) == NUMBERS[name]
    assert 1e-5 < (system.positions - rough.positions).abs().max() < 0.02
    assert (system.cell - rough.cell).abs().max() < 0.02


@pytest.mark.parametrize("name", NUMBERS)
def test_symmetrize_is_the_average_over_the_group(name):
    atoms, system, freedom = refined(name)
    vectors = np.random.default_rng(0).normal(size=atoms.positions.shape)
    ours = symmetrize(freedom.orbits, system, torch.tensor(vectors)).numpy()
    np.testing.assert_allclose(ours, averaged(atoms, vectors), atol=AVERAGE_TOLERANCE)
    again = symmetrize(freedom.orbits, system, torch.tensor(ours)).numpy()
    np.testing.assert_allclose(again, ours, atol=AVERAGE_TOLERANCE)


@pytest.mark.parametrize(
    ("name", "orbits", "strains"),
    [
        ("cubic", [4], 1),
        ("supercell", [4], 3),
        ("rutile", [2, 4], 2),
        ("quartz", [3, 6], 2),
        ("monoclinic", [2, 2], 4),
    ],
)
def test_what_a_group_leaves_free(name, orbits, strains):
    """The supercell keeps the operations that map its own lattice onto itself."""
    _, system, freedom = refined(name)
    assert [n for n in freedom.orbits.length.tolist() if n] == orbits
    assert float(freedom.strain[0].diagonal().sum()) == pytest.approx(strains)
    found = symmetry.refine(system, 0.01)[1]
    strain = torch.randn(6, 1, generator=torch.Generator().manual_seed(1)).double()
    matrix = symmetry.to_strain((freedom.strain[0] @ strain).T)[0]
    turned = found.rotations @ matrix @ found.rotations.transpose(1, 2)
    torch.testing.assert_close(turned, matrix.expand_as(turned), rtol=0, atol=AVERAGE_TOLERANCE)


def test_symmetrize_does_not_see_the_others():
    parts = [refined(name) for name in NUMBERS]
    batch = join(*(system for _, system, _ in parts))
    freedom = join(*(freedom for _, _, freedom in parts))
    vectors = torch.randn(
        batch.positions.shape, generator=torch.Generator().manual_seed(2)
    ).double()
    together = symmetrize(freedom.orbits, batch, vectors)
    for s, (_, system, alone) in enumerate(parts):
        mine = batch.system_idx == s
        assert torch.equal(symmetrize(alone.orbits, system, vectors[mine]), together[mine])


def test_without_symmetry_every_vector_stays():
    batch = join(*(from_atoms(atoms) for atoms in symmetric().values()))
    vectors = torch.randn(
        batch.positions.shape, generator=torch.Generator().manual_seed(3)
    ).double()
    assert torch.equal(symmetrize(trivial_orbits(batch), batch, vectors), vectors)


def crooked(batch: Batch) -> Prediction:
    """A model that is not symmetric: every atom and every strain gets a push of its own."""
    prediction, noise = LennardJones()(batch), torch.Generator().manual_seed(5)
    forces = 0.05 * torch.randn(batch.positions.shape, generator=noise, dtype=torch.float64)
    stress = 1e-3 * torch.randn(batch.cell.shape, generator=noise, dtype=torch.float64)
    stress = prediction.stress + stress + stress.transpose(1, 2)
    return replace(prediction, forces=prediction.forces + forces, stress=stress)


crooked.cutoff, crooked.device = LennardJones().cutoff, LennardJones().device


def relaxed(batch: Batch, freedom: Freedom, model, cell_filter: str) -> FireState:
    settings = FireSettings(fmax=0.02, max_steps=300)
    state = fire_init(batch, model, freedom=freedom, cell_filter=cell_filter, settings=settings)
    while bool(state.running.any()):
        state = fire_step(state, model)
    return state


@pytest.mark.parametrize("cell_filter", ["frechet", "unit"])
def test_the_group_outlives_a_relaxation(cell_filter):
    """A mate without symmetry is in the batch; each structure changes, its group does not.

    The supercell of the hexagonal crystal has no hexagonal lattice: an orthorhombic group is left.
    """
    parts = [refined(name)[1:] for name in NUMBERS]
    stranger = from_atoms(symmetric(rattle=0.1)["quartz"])
    parts.append((stranger, replace(unconstrained(stranger), orbits=trivial_orbits(stranger))))
    batch = join(*(system for system, _ in parts))
    freedom = join(*(freedom for _, freedom in parts))
    state = relaxed(batch, freedom, crooked, cell_filter)
    assert state.status[:5].tolist() == [Status.CONVERGED] * 5
    assert state.steps[:5].min() > 5
    numbers = [group_number(system, TIGHT_A) for system in state.batch.split()]
    assert numbers == [*(NUMBERS | {"supercell": 63}).values(), 1]


def test_without_the_constraint_the_group_is_lost():
    _, system, _ = refined("rutile")
    state = relaxed(system, unconstrained(system), crooked, "frechet")
    assert group_number(state.batch, TIGHT_A) < 136


@pytest.mark.parametrize("cell_filter", [FrechetCellFilter, UnitCellFilter])
@pytest.mark.parametrize("name", NUMBERS)
def test_the_steps_are_those_of_ase(name, cell_filter):
    _, system, freedom = refined(name)
    atoms = symmetric()[name]
    atoms.set_constraint(FixSymmetry(atoms))
    atoms.calc = AseModel(LennardJones())
    np.testing.assert_allclose(atoms.positions, system.positions, atol=REFINED_A)
    optimizer = FIRE(cell_filter(atoms), logfile=None)
    settings = FireSettings(fmax=1e-300, max_steps=1000)
    which = "frechet" if cell_filter is FrechetCellFilter else "unit"
    state = fire_init(system, LennardJones(), freedom=freedom, cell_filter=which, settings=settings)
    worst = 0.0
    for _ in range(60):
        state = fire_step(state, LennardJones())
        optimizer.step()
        off = np.abs(atoms.positions - state.batch.positions.numpy()).max()
        worst = max(worst, off, np.abs(atoms.cell.array - state.batch.cell[0].numpy()).max())
    print(f"{name}: {worst:.1e}")
    assert worst < ASE_TOLERANCE_A


def test_atoms_equivalent_to_a_fixed_one_stay_too():
    _, freedom = free(from_atoms(symmetric()["rutile"]), fixed_atoms=[3], fix_symmetry=True)
    assert freedom.movable.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_group_that_leaves_the_cell_nothing():
    """A cubic cell of constant volume stands still."""
    options = {"constant_volume": True, "fix_symmetry": True}
    _, freedom = free(from_atoms(symmetric()["cubic"]), **options)
    assert freedom.moves_cell.tolist() == [False]
    assert not freedom.strain.any()
    _, freedom = free(from_atoms(symmetric()["rutile"]), **options)
    assert float(freedom.strain[0].diagonal().sum()) == pytest.approx(1.0)


def test_a_slab_has_no_space_group():
    with pytest.raises(DataError, match="periodic along 2 of 3"):
        free(from_atoms(without_bulk()["slab"]), cell=False, fix_symmetry=True)


def test_a_tolerance_finds_what_it_allows():
    rough = from_atoms(symmetric(rattle=0.03)["cubic"])
    assert group_number(free(rough, fix_symmetry=True)[0], TIGHT_A) < 225
    assert group_number(free(rough, fix_symmetry=0.3)[0], TIGHT_A) == 225
