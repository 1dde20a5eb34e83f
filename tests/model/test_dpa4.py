"""The whole network: what reaches it, what it ignores, its precision."""

from dataclasses import replace

import pytest
import torch
from models import (
    BASE,
    CUTOFF,
    NUMBERS,
    OPTION_SETS,
    largest,
    molecule,
    random_model,
    random_potential,
)

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.model import DPA4

TOLERANCE = 1e-12
"""eV: float64 sums of numbers up to 40."""


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, Edges]:
    batch = molecule()
    found = neighbors(batch, CUTOFF)
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    edges = Edges(found.center, found.neighbor, found.vector.to(dtype), found.row_ptr)
    return species, edges


@pytest.mark.parametrize("name", OPTION_SETS)
def test_every_weight_reaches_the_energy(name):
    """A weight without a gradient is dead, or forgotten."""
    model = random_model(OPTION_SETS[name])
    energy, _ = model(*inputs())
    energy.sum().backward()
    silent = {
        key
        for key, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert silent == set()


@pytest.mark.parametrize("name", OPTION_SETS)
def test_a_fresh_network_knows_species_only(name):
    """Convolution, feed-forward and read-out start at zero."""
    model = DPA4(OPTION_SETS[name], dtype=torch.float64)
    species, edges = inputs()
    energy, _ = model(species, edges)
    learned = (
        energy.detach()
        if model.bridge is None
        else energy.detach() - model._repulsion(species, edges, edges.vector)
    )
    for kind in range(3):
        same = learned[species == kind]
        assert largest(same - same[0]) < TOLERANCE


def test_energies_are_float64_and_shifted_by_species():
    model = random_model(BASE).float()
    species, edges = inputs(torch.float32)
    energy, descriptor = model(species, edges)
    assert energy.dtype == torch.float64
    assert descriptor.dtype == torch.float32
    shifted = random_model(BASE).float()
    shifted.energy_shift += torch.tensor([1.0, 20.0, 300.0])
    expected = energy + torch.tensor([1.0, 20.0, 300.0]).double()[species]
    assert largest(shifted(species, edges)[0] - expected) < TOLERANCE


@pytest.mark.parametrize(
    "move", [lambda m: m.float(), lambda m: m.half(), lambda m: m.to("cpu", torch.float32)]
)
def test_shifts_stay_float64_when_the_model_is_cast(move):
    model = random_model(BASE)
    before = model.energy_shift.clone()
    model = move(model)
    assert model.species_table.dtype != torch.float64
    assert model.energy_shift.dtype == torch.float64
    assert torch.equal(model.energy_shift, before)


def test_excluded_pairs_share_no_edge():
    """Si-O edges are silent: the numbers are those of a graph without them."""
    model = random_model(replace(BASE, excluded_pairs=(("O", "Si"),)))
    species, edges = inputs()
    energy, _ = model(species, edges)
    kept = {(0, 2), (2, 0)}
    pairs = zip(species[edges.center].tolist(), species[edges.neighbor].tolist(), strict=True)
    keep = torch.tensor([pair not in kept for pair in pairs])
    center = edges.center[keep]
    fewer = Edges(
        center,
        edges.neighbor[keep],
        edges.vector[keep],
        torch.searchsorted(center, torch.arange(len(species) + 1)),
    )
    assert int(keep.sum()) < len(keep)
    assert largest(model(species, fewer)[0] - energy) < TOLERANCE
    plain = random_model(BASE)
    assert largest(plain(species, edges)[0] - energy) > 1e-3


def test_excluded_pairs_do_not_repel():
    config = replace(OPTION_SETS["zbl"], excluded_pairs=(("Si", "C"), ("Si", "O"), ("C", "O")))
    model = random_model(replace(config, excluded_pairs=(*config.excluded_pairs, ("Si", "Si"))))
    batch = Batch.single(torch.tensor([[0.0, 0, 0], [0.3, 0, 0]]), torch.tensor([14, 6]))
    edges = neighbors(batch, CUTOFF)
    near, _ = model(torch.tensor([0, 1]), edges)
    lone, _ = model(
        torch.tensor([0, 1]), neighbors(batch.with_geometry(20 * batch.positions, batch.cell), 4.5)
    )
    assert largest(near - lone) < TOLERANCE


def test_versions():
    """1.1 and 1.2 are one function; 1.0 is another."""
    energies = {}
    for version in ("1.0", "1.1", "1.2"):
        model = random_model(replace(BASE, descriptor_version=version))
        energies[version] = model(*inputs())[0].detach()
    assert torch.equal(energies["1.1"], energies["1.2"])
    assert largest(energies["1.0"] - energies["1.1"]) > 1e-3


def test_envelope_cutoff_is_kept_in_float32():
    """As the reference stores it; a visible 1e-8 where the cutoff is not a float32 number."""
    assert random_model(replace(BASE, cutoff=5.3)).envelope_cutoff == pytest.approx(5.3, rel=1e-7)
    assert random_model(replace(BASE, cutoff=5.3)).envelope_cutoff != 5.3
    assert random_model(BASE).envelope_cutoff == CUTOFF


def test_descriptors_are_what_the_energy_is_read_from():
    model = random_model(BASE)
    species, edges = inputs()
    energy, descriptor = model(species, edges)
    assert largest(model.head(descriptor) + model.energy_shift[species] - energy) < TOLERANCE


@pytest.mark.parametrize("name", OPTION_SETS)
def test_one_atom_without_edges(name):
    batch = Batch.single(torch.zeros(1, 3), torch.tensor([8]))
    prediction = random_potential(OPTION_SETS[name])(batch)
    assert bool(prediction.energy.isfinite().all())
    assert not prediction.forces.any()
