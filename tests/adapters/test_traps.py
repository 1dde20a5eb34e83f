"""Mistakes that other engines' adapters make, measured on their releases: none of them in ours."""

import warnings
from collections.abc import Callable

import pytest
import torch
from ase.build import bulk
from ase.stress import voigt_6_to_full_3x3_stress
from models import OPTION_SETS, random_potential
from torch import Tensor
from toy import LennardJones, packed

from dpa4sim.adapters.ase import DPA4Calculator, to_atoms
from dpa4sim.adapters.torchsim import DPA4Model, FromTorchSim, to_state
from dpa4sim.batch import Batch
from dpa4sim.potential import EnergyModel

MODEL = LennardJones(cutoff=5.0)

STRAIN = 1e-5
SLOPE_TOLERANCE = 1e-7
"""eV/Å^3; a central difference over `STRAIN`, of stresses up to 0.1."""


def through_potential(model: EnergyModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Energies and stresses, read where this border gives them."""
    prediction = model(batch)
    return prediction.energy, prediction.stress


def through_ase(model: EnergyModel, batch: Batch) -> tuple[Tensor, Tensor]:
    calculator, energies, stresses = DPA4Calculator(model), [], []
    for atoms in to_atoms(batch):
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        stresses.append(torch.tensor(voigt_6_to_full_3x3_stress(atoms.get_stress())))
    return torch.tensor(energies, dtype=torch.float64), torch.stack(stresses)


def through_torchsim(model: EnergyModel, batch: Batch) -> tuple[Tensor, Tensor]:
    output = DPA4Model(model)(to_state(batch))
    return output["energy"], output["stress"]


def from_torchsim(model: EnergyModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """There and back: our model as TorchSim's, and that one as ours."""
    prediction = FromTorchSim(DPA4Model(model), cutoff=model.cutoff)(batch)
    return prediction.energy, prediction.stress


def through_nvalchemi(model: EnergyModel, batch: Batch) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of theirs, while they are imported
        pytest.importorskip("nvalchemi", reason="the extra is not installed")
        from dpa4sim.adapters import nvalchemi
    output = nvalchemi.DPA4Model(model)(nvalchemi.to_batch(batch))
    return output["energy"][:, 0], output["stress"]


BORDERS = (through_potential, through_ase, through_torchsim, from_torchsim, through_nvalchemi)

Border = Callable[[EnergyModel, Batch], tuple[Tensor, Tensor]]


def strained(batch: Batch, strain: Tensor) -> Batch:
    """Cells and atoms after r -> r (1 + strain)."""
    F = torch.eye(3, dtype=torch.float64) + strain
    return batch.with_geometry(batch.positions @ F, batch.cell @ F)


@pytest.mark.parametrize("border", BORDERS)
def test_tension_is_positive_and_the_slope_of_the_energy(border: Border):
    """Dilated, compressed and sheared crystals; the sign of a wrapper elsewhere was the other."""
    crystals = [bulk("Cu", cubic=True, a=a) for a in (3.6, 2.9, 3.25)]
    batch = packed(crystals)
    shear = torch.zeros(3, 3, dtype=torch.float64)
    shear[0, 1] = shear[1, 0] = 0.03
    batch = Batch.concatenate([*batch.split()[:2], strained(batch.split()[2], shear)])
    _, stress = border(MODEL, batch)
    assert stress[0].diagonal().min() > 0.01, "a dilated crystal pulls"
    assert stress[1].diagonal().max() < -0.01, "a compressed crystal pushes"
    assert stress[2, 0, 1] > 0.01, "a sheared crystal resists"
    for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        direction = torch.zeros(3, 3, dtype=torch.float64)
        direction[i, j] = direction[j, i] = STRAIN
        ahead, _ = border(MODEL, strained(batch, direction))
        behind, _ = border(MODEL, strained(batch, -direction))
        slope = (ahead - behind) / (2 * STRAIN) / batch.volume / (1 if i == j else 2)
        torch.testing.assert_close(stress[:, i, j], slope, rtol=0, atol=SLOPE_TOLERANCE)


def test_torchsim_meets_new_species_at_an_old_address():
    """DeePMD-kit's wrapper keeps species by the address of their tensor."""
    potential = random_potential(OPTION_SETS["neo"])
    model = DPA4Model(potential)
    state = to_state(packed([bulk("SiC", "zincblende", a=4.3), bulk("Si")]))
    address = state.atomic_numbers.data_ptr()
    for numbers in ([14, 6, 14, 14], [8, 6, 14, 8], [6, 6, 8, 8]):
        state.atomic_numbers.copy_(torch.tensor(numbers))
        assert state.atomic_numbers.data_ptr() == address
        assert torch.equal(model(state)["energy"], fresh_energy(potential, state, numbers))


def fresh_energy(potential, state, numbers: list[int]) -> Tensor:
    parts = [state[s] for s in range(state.n_systems)]
    systems = [
        Batch.single(p.positions.clone(), z, p.row_vector_cell.clone(), pbc=True)
        for p, z in zip(parts, (numbers[:2], numbers[2:]), strict=True)
    ]
    return potential(Batch.concatenate(systems)).energy


def test_ase_meets_new_species_in_the_same_array():
    potential = random_potential(OPTION_SETS["neo"])
    atoms = bulk("SiC", "zincblende", a=4.3)
    atoms.calc = DPA4Calculator(potential)
    for numbers in ([14, 6], [8, 6], [14, 14]):
        atoms.numbers[:] = numbers
        assert atoms.get_potential_energy() == float(potential(packed([atoms])).energy[0])


def test_nvalchemi_meets_new_species_at_an_old_address():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of theirs, while they are imported
        pytest.importorskip("nvalchemi", reason="the extra is not installed")
        from dpa4sim.adapters import nvalchemi
    potential = random_potential(OPTION_SETS["neo"])
    model, batch = nvalchemi.DPA4Model(potential), packed([bulk("SiC", "zincblende", a=4.3)])
    data = nvalchemi.to_batch(batch)
    address = data.atomic_numbers.data_ptr()
    for numbers in ([14, 6], [8, 6], [14, 14]):
        data.atomic_numbers.copy_(torch.tensor(numbers))
        assert data.atomic_numbers.data_ptr() == address
        expected = potential(Batch.single(batch.positions, numbers, batch.cell, pbc=True)).energy
        assert torch.equal(model(data)["energy"][:, 0], expected)


@pytest.mark.parametrize("border", BORDERS)
def test_borders_see_every_neighbour_as_the_density_grows(border: Border):
    """One model object, a crystal that shrinks until its neighbours have doubled twice."""
    batch = packed([bulk("Cu", cubic=True, a=4.4), bulk("Fe", cubic=True, a=3.5)])
    for factor in (1.0, 0.85, 0.7, 1.0):
        denser = batch.with_geometry(factor * batch.positions, factor * batch.cell)
        energy, stress = border(MODEL, denser)
        expected = LennardJones(cutoff=5.0)(denser)
        torch.testing.assert_close(energy, expected.energy, rtol=1e-13, atol=0)
        torch.testing.assert_close(stress, expected.stress, rtol=1e-12, atol=1e-13)
