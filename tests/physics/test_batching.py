"""A structure's numbers do not depend on what is computed beside it."""

import pytest
import torch
from ase import Atoms
from models import CUTOFF, NUMBERS, OPTION_SETS, crystal, dimer, largest, molecule, random_potential

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors, pad

TOLERANCE = 1e-12
"""eV, eV/Å: matrix products of other sizes add in another order."""

SETS = pytest.mark.parametrize("name", OPTION_SETS)


@SETS
def test_batch_is_its_members(name):
    potential = random_potential(OPTION_SETS[name])
    members = [molecule(), crystal(), lone(6), dimer(1.9), crystal()]
    together = potential(Batch.concatenate(members), descriptors=True)
    alone = [potential(member, descriptors=True) for member in members]
    for field in ("energy", "forces", "atomic_energies", "descriptors"):
        expected = torch.cat([getattr(one, field) for one in alone])
        assert largest(getattr(together, field) - expected) < TOLERANCE * 100
    stress = torch.cat([one.stress for one in alone])
    assert largest((together.stress - stress).nan_to_num()) < TOLERANCE


@pytest.mark.parametrize("repeat", [(2, 1, 1), (1, 3, 1), (1, 2, 2)])
@SETS
def test_supercell_has_the_energy_of_its_cells(name, repeat):
    potential, unit = random_potential(OPTION_SETS[name]), crystal()
    atoms = Atoms(unit.atomic_numbers, unit.positions, cell=unit.cell[0], pbc=True) * repeat
    many = Batch.single(
        torch.tensor(atoms.positions),
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.cell.array),
        pbc=True,
    )
    copies = len(atoms) // len(unit.positions)
    one, all_of_them = potential(unit), potential(many)
    assert largest(all_of_them.energy - copies * one.energy) < copies * 10 * TOLERANCE
    assert largest(all_of_them.forces - one.forces.repeat(copies, 1)) < 100 * TOLERANCE
    assert largest(all_of_them.stress - one.stress) < 10 * TOLERANCE


@SETS
def test_lone_atom_has_an_energy_of_its_species_only(name):
    """Alone, in a wide cell, or beyond everyone's cutoff: the same number, and no force."""
    potential = random_potential(OPTION_SETS[name])
    wide = 3 * CUTOFF * torch.eye(3, dtype=torch.float64)
    energies = []
    for number in NUMBERS:
        far = molecule()
        apart = Batch.single(
            torch.cat([far.positions, far.positions.new_tensor([[40.0, 0, 0]])]),
            torch.cat([far.atomic_numbers, torch.tensor([number])]),
        )
        parts = [lone(number), Batch.single(torch.ones(1, 3), torch.tensor([number]), wide, True)]
        prediction = potential(Batch.concatenate([*parts, apart]))
        kept = prediction.atomic_energies[[0, 1, -1]]
        assert largest(kept - kept[0]) < TOLERANCE
        assert largest(prediction.forces[[0, 1, -1]]) == 0
        energies.append(float(kept[0]))
    assert len(set(energies)) == len(NUMBERS)


@pytest.mark.parametrize("hand_written", [True, False])
@SETS
def test_padding_is_silent(name, hand_written):
    """Edges of two cutoffs from the last atom to itself change no energy and feel no force."""
    potential = random_potential(OPTION_SETS[name])
    potential.model.hand_written = hand_written
    batch = Batch.concatenate([molecule(), crystal()])
    species = potential._species_of[batch.atomic_numbers]
    edges = neighbors(batch, potential.cutoff)
    padded = pad(edges, edges.n_edges + 37, potential.cutoff)
    plain, plain_slope = _energy_and_slope(potential, species, edges)
    got, slope = _energy_and_slope(potential, species, padded)
    assert largest(got - plain) < TOLERANCE
    assert largest(slope[: edges.n_edges] - plain_slope) < 100 * TOLERANCE
    assert largest(slope[edges.n_edges :]) == 0


def test_edges_inside_the_cutoff_are_not_silent():
    """The check above would notice padding that is too short."""
    potential, batch = random_potential(OPTION_SETS["neo"]), molecule()
    species = potential._species_of[batch.atomic_numbers]
    edges = neighbors(batch, potential.cutoff)
    short = pad(edges, edges.n_edges + 37, 0.45 * potential.cutoff)
    potential.model.hand_written = False  # the kernel never looks past row_ptr
    plain, _ = _energy_and_slope(potential, species, edges)
    got, _ = _energy_and_slope(potential, species, short)
    assert largest(got - plain) > 1e3 * TOLERANCE


def _energy_and_slope(potential, species, edges):
    vector = edges.vector.clone().requires_grad_(True)
    given = Edges(edges.center, edges.neighbor, vector, edges.row_ptr)
    energy, _ = potential.model(species, given)
    (slope,) = torch.autograd.grad(energy.sum(), vector)
    return energy.detach(), slope


def lone(number: int) -> Batch:
    return Batch.single(torch.zeros(1, 3), torch.tensor([number]))
