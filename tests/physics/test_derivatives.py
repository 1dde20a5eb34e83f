"""Forces are -dE/dR and stress is dE/dstrain / V, by central differences of the energy."""

import pytest
import torch
from models import NUMBERS, OPTION_SETS, crystal, largest, molecule, random_model, random_potential

from dpa4sim.batch import Batch
from dpa4sim.potential import Potential

STEP = 1e-4
"""Å, or strain.  Five points: the formula is off by STEP^4 / 30 d^5E/dx^5."""

WEIGHTS = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
TOLERANCE = 1e-9
"""Per largest entry: rounding of energies up to 40 eV over STEP; 4e-11 is what we see."""

SETS = pytest.mark.parametrize("name", OPTION_SETS)
STRUCTURES = pytest.mark.parametrize("structure", [molecule, crystal])


def slopes(potential: Potential, variants: list[dict[int, Batch]]) -> torch.Tensor:
    """dE of each variant, {multiple of STEP: structure}, all in one batch."""
    parts = [variant[step] for variant in variants for step in WEIGHTS]
    energies = potential(Batch.concatenate(parts)).energy.reshape(len(variants), len(WEIGHTS))
    weights = torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
    return energies @ weights / STEP


@STRUCTURES
@SETS
def test_forces(name, structure):
    potential, batch = random_potential(OPTION_SETS[name]), structure()
    variants = []
    for index in range(batch.positions.numel()):
        unit = torch.zeros_like(batch.positions)
        unit.view(-1)[index] = STEP
        variants.append(
            {
                step: batch.with_geometry(batch.positions + step * unit, batch.cell)
                for step in WEIGHTS
            }
        )
    forces = potential(batch).forces
    slope = slopes(potential, variants).reshape(-1, 3)
    assert largest(forces) > 1e-3
    assert largest(forces + slope) < TOLERANCE * max(1, largest(forces))


@SETS
def test_stress(name):
    potential, batch = random_potential(OPTION_SETS[name]), crystal()
    variants = []
    for a, b in [(a, b) for a in range(3) for b in range(3)]:
        unit = torch.zeros(3, 3, dtype=torch.float64)
        unit[a, b] += 0.5 * STEP
        unit[b, a] += 0.5 * STEP
        variants.append({step: strained(batch, step * unit) for step in WEIGHTS})
    virial = batch.volume * potential(batch).stress[0]
    slope = slopes(potential, variants).reshape(3, 3)
    assert largest(virial) > 1e-3
    assert largest(virial - slope) < TOLERANCE * max(1, largest(virial))


def strained(batch: Batch, strain: torch.Tensor) -> Batch:
    matrix = torch.eye(3, dtype=torch.float64) + strain
    return batch.with_geometry(batch.positions @ matrix, batch.cell @ matrix)


@STRUCTURES
@SETS
def test_the_kernel_and_autograd_agree(name, structure):
    """`hand_written` is the backward pass by hand; without it PyTorch differentiates."""
    by_hand, plain = random_potential(OPTION_SETS[name]), random_potential(OPTION_SETS[name])
    plain.model.hand_written = False
    got, expected = by_hand(structure()), plain(structure())
    assert largest(got.energy - expected.energy) < TOLERANCE
    assert largest(got.forces - expected.forces) < TOLERANCE
    assert largest((got.stress - expected.stress).nan_to_num()) < TOLERANCE


def test_stress_is_symmetric_and_has_no_number_without_a_cell():
    potential = random_potential(OPTION_SETS["neo"])
    stress = potential(Batch.concatenate([crystal(), molecule()])).stress
    assert torch.equal(stress[0], stress[0].T)
    assert bool(stress[1].isnan().all())


def test_forces_of_a_float32_model_come_in_float64():
    prediction = random_potential(OPTION_SETS["neo"], dtype="float32")(crystal())
    for value in (prediction.energy, prediction.forces, prediction.stress):
        assert value.dtype == torch.float64
    assert prediction.atomic_energies.dtype == torch.float64


def test_energies_are_summed_in_float64():
    """A large shift swallows nothing: float32 would lose the learned part altogether."""
    shift = torch.tensor([-1e9 / 3, 2e8 / 3, 1e7 / 3], dtype=torch.float64)
    with_shift, without = random_model(OPTION_SETS["neo"]), random_model(OPTION_SETS["neo"])
    with_shift.energy_shift.copy_(shift)
    without.energy_shift.zero_()
    batch = crystal()
    got = Potential(with_shift, dtype="float32")(batch)
    learned = Potential(without, dtype="float32")(batch)
    kinds = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    last_bit = 1e-6  # of float64 at 1e9 eV
    assert largest(got.atomic_energies - learned.atomic_energies - shift[kinds]) < last_bit
    assert largest(got.energy - learned.energy - shift[kinds].sum()) < last_bit
    assert largest(learned.energy) > 1e3 * last_bit
