"""Sums of models: values, what they know, and what tells them apart."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from models import BASE, NUMBERS, random_potential
from toy import Einstein, LennardJones, crystals, from_atoms, packed

import dpa4sim
from dpa4sim.composite import Sum
from dpa4sim.errors import DataError, ModelError, Status
from dpa4sim.potential import EnergyModel


def batch():
    return packed(crystals().values())


def test_a_sum_is_the_sum():
    model, d3 = LennardJones(), dpa4sim.d3("pbe", cutoff=15.0)
    both, one, other = (each(batch()) for each in (Sum([model, d3]), model, d3))
    for name in ("energy", "forces", "stress", "atomic_energies"):
        assert torch.equal(getattr(both, name), getattr(one, name) + getattr(other, name))
    assert Sum([d3, model]).cutoff == model.cutoff
    assert both.edges is not None
    assert isinstance(Sum([model, d3]), EnergyModel)
    assert len(Sum([Sum([model, d3]), d3]).parts) == 3


def test_potential_plus_d3_evaluates_and_relaxes():
    """Attraction makes a crystal smaller."""
    model = LennardJones()
    start = bulk("Cu", "fcc", a=3.5)
    apart = dpa4sim.relax(model, [start], progress=False)
    closer = dpa4sim.relax(Sum([model, dpa4sim.d3("pbe", cutoff=12.0)]), [start], progress=False)
    assert closer.status == [Status.CONVERGED]
    assert float(closer.batches[0].volume[0]) < 0.99 * float(apart.batches[0].volume[0])
    potential = random_potential(BASE)
    total = potential + dpa4sim.d3("pbe")
    atoms = Atoms("Si2", positions=[[0, 0, 0], [0, 0.2, 2.4]])
    expected = potential.evaluate(atoms).energy + dpa4sim.d3()(from_atoms(atoms)).energy
    assert torch.equal(total.evaluate(atoms).energy, expected)
    assert total.known_elements == frozenset(NUMBERS)


def test_what_tells_sums_apart():
    potential = random_potential(BASE)
    names = {
        (potential + dpa4sim.d3("pbe")).fingerprint,
        (potential + dpa4sim.d3("pbe0")).fingerprint,
        (potential + dpa4sim.d3("pbe", cutoff=20.0)).fingerprint,
        (random_potential(BASE, seed=1) + dpa4sim.d3("pbe")).fingerprint,
    }
    assert len(names) == 4


def test_a_relaxation_in_a_sum_is_the_same_alone_and_in_company():
    """Bit for bit: the pairs and the dispersion count in the order of the structure alone."""
    total = Sum([LennardJones(), dpa4sim.d3("pbe", cutoff=12.0)])
    starts = list(crystals().values())[:3]
    settings = {"max_steps": 6, "fmax": 1e-6, "progress": False}
    together = dpa4sim.relax(total, starts, **settings)
    for atoms, after in zip(starts, together.batches, strict=True):
        alone = dpa4sim.relax(total, [atoms], **settings)
        assert torch.equal(alone.batches[0].positions, after.positions)


def test_an_ase_calculator_takes_a_sum():
    from dpa4sim.adapters.ase import DPA4Calculator

    total, atoms = Sum([LennardJones(), dpa4sim.d3(cutoff=12.0)]), bulk("Cu")
    atoms.calc = DPA4Calculator(total)
    assert atoms.get_potential_energy() == float(total.evaluate(atoms).energy[0])


def test_elements_that_a_term_does_not_know():
    total = Sum([LennardJones(), dpa4sim.d3("pbe")])
    with pytest.raises(DataError, match=r"Structure 0 .*Pu"):
        total.evaluate(bulk("Pu", "fcc", a=4.6))
    assert Sum([LennardJones(), Einstein()]).known_elements is None


def test_terms_on_different_devices():
    with pytest.raises(ModelError, match="different devices: cpu, meta"):
        Sum([LennardJones(), LennardJones(device=torch.device("meta"))])
    with pytest.raises(ModelError, match="Give at least one"):
        Sum([])
