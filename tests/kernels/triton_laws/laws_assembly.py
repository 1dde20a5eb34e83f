"""Forces, virials and energies in Triton against `potential.assemble`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernels.triton_laws.problems import DEVICE
from models import CUTOFF, crystal, molecule

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors, pad
from dpa4sim.kernels.triton_assemble import assemble_sums
from dpa4sim.kernels.triton_plan import EdgeGraph
from dpa4sim.potential import assemble

ROUNDING = 1e-13
"""Relative; sums of at most some hundred float64 numbers in another order."""


def lonely() -> Batch:
    """One atom that sees nobody."""
    return Batch.single(torch.zeros(1, 3), torch.tensor([14]))


def random_gradient(edges: Edges, n_atoms: int) -> tuple[torch.Tensor, torch.Tensor]:
    """dE/dvector and atomic energies."""
    generator = torch.Generator().manual_seed(7)
    gradient = torch.randn(edges.n_edges, 3, generator=generator, dtype=torch.float64)
    return gradient, torch.randn(n_atoms, generator=generator, dtype=torch.float64)


def by_kernel(batch: Batch, edges: Edges, gradient, energies):
    graph = EdgeGraph.build(edges.neighbor.to(DEVICE), edges.row_ptr.to(DEVICE))
    n_atoms = batch.n_atoms.to(DEVICE)
    tensors = (t.to(DEVICE) for t in (gradient, edges.vector, energies))
    return [t.cpu() for t in assemble_sums(*tensors, graph, n_atoms)]


def assert_same(batch: Batch, edges: Edges) -> None:
    gradient, energies = random_gradient(edges, len(batch.positions))
    forces, virial, energy = by_kernel(batch, edges, gradient, energies)
    wanted = assemble(batch, edges, energies, gradient)
    torch.testing.assert_close(forces, wanted.forces, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(energy, wanted.energy, rtol=ROUNDING, atol=ROUNDING)
    symmetric = 0.5 * (virial + virial.transpose(1, 2))
    expected = wanted.stress * batch.volume[:, None, None]
    solid = batch.volume > 0
    torch.testing.assert_close(symmetric[solid], expected[solid], rtol=ROUNDING, atol=1e-12)


def test_equals_the_reference_on_unlike_systems():
    batch = Batch.concatenate([crystal(), lonely(), crystal(), molecule()])
    assert_same(batch, neighbors(batch, CUTOFF))


def test_single_precision_gradients_are_summed_in_double():
    batch = crystal()
    edges = neighbors(batch, CUTOFF)
    gradient, energies = random_gradient(edges, len(batch.positions))
    found = by_kernel(batch, edges, gradient.float(), energies)
    exact = by_kernel(batch, edges, gradient.float().double(), energies)
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("batch", [lonely(), Batch.concatenate([lonely(), lonely()])])
def test_atoms_without_neighbours_feel_no_force(batch):
    edges = neighbors(batch, CUTOFF)
    forces, virial, energy = by_kernel(batch, edges, *random_gradient(edges, len(batch.positions)))
    assert not forces.any()
    assert not virial.any()
    assert energy.all()


def test_padding_counts_for_nothing():
    batch = Batch.concatenate([molecule(), crystal()])
    edges = neighbors(batch, CUTOFF)
    padded = pad(edges, edges.n_edges + 11, CUTOFF)
    gradient, energies = random_gradient(edges, len(batch.positions))
    poison = torch.full((11, 3), torch.nan, dtype=torch.float64)
    plain = by_kernel(batch, edges, gradient, energies)
    found = by_kernel(batch, padded, torch.cat([gradient, poison]), energies)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_a_system_does_not_notice_the_others_nor_a_repeat():
    """Bit for bit."""
    systems = [crystal(), molecule(), lonely()]
    batch = Batch.concatenate(systems)
    edges = neighbors(batch, CUTOFF)
    gradient, energies = random_gradient(edges, len(batch.positions))
    together = by_kernel(batch, edges, gradient, energies)
    again = by_kernel(batch, edges, gradient, energies)
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    atom = edge = 0
    for index, system in enumerate(systems):
        own = neighbors(system, CUTOFF)
        atoms = slice(atom, atom + len(system.positions))
        part = slice(edge, edge + own.n_edges)
        found = by_kernel(system, own, gradient[part], energies[atoms])
        assert torch.equal(found[0], together[0][atoms])
        assert torch.equal(found[1][0], together[1][index])
        assert torch.equal(found[2][0], together[2][index])
        atom, edge = atoms.stop, part.stop


def test_the_forces_of_a_system_add_up_to_nothing():
    batch = crystal()
    edges = neighbors(batch, CUTOFF)
    forces, _, _ = by_kernel(batch, edges, *random_gradient(edges, len(batch.positions)))
    assert float(forces.sum(0).abs().max()) < 1e-12
    assert float(forces.abs().max()) > 1


def test_derivatives_are_those_of_the_reference():
    """Of forces, virials and energies with respect to gradient, vectors and energies."""
    batch = Batch.concatenate([crystal(), lonely(), crystal()])
    batch = batch.select([0, 2])  # the virial of the reference is a stress: cells only
    edges = neighbors(batch, CUTOFF)
    gradient, energies = random_gradient(edges, len(batch.positions))
    leaves = [t.clone().requires_grad_(True) for t in (gradient, edges.vector, energies)]
    g, vector, e = leaves
    wanted = assemble(batch, replace(edges, vector=vector), e, g)
    probe = torch.linspace(-1, 2, wanted.forces.numel(), dtype=torch.float64).view(-1, 3)
    tilt = torch.arange(9.0, dtype=torch.float64).view(3, 3)

    def total(forces, virial, energy):
        return (forces * probe).sum() + (virial * (tilt + tilt.T)).sum() + (energy * energy).sum()

    virial = wanted.stress * batch.volume[:, None, None]
    expected = torch.autograd.grad(total(wanted.forces, virial, wanted.energy), leaves)
    graph = EdgeGraph.build(edges.neighbor.to(DEVICE), edges.row_ptr.to(DEVICE))
    sums = assemble_sums(*(t.to(DEVICE) for t in leaves), graph, batch.n_atoms.to(DEVICE))
    found = torch.autograd.grad(total(*(t.cpu() for t in sums)), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_padding_gets_no_derivative():
    batch = molecule()
    edges = neighbors(batch, CUTOFF)
    padded = pad(edges, edges.n_edges + 5, CUTOFF)
    gradient, energies = random_gradient(padded, len(batch.positions))
    leaf = gradient.clone().requires_grad_(True)
    graph = EdgeGraph.build(padded.neighbor.to(DEVICE), padded.row_ptr.to(DEVICE))
    sums = assemble_sums(
        leaf.to(DEVICE),
        padded.vector.to(DEVICE),
        energies.to(DEVICE),
        graph,
        batch.n_atoms.to(DEVICE),
    )
    probe = torch.arange(3.0, dtype=torch.float64) * torch.arange(6.0)[:, None]
    (found,) = torch.autograd.grad((sums[0].cpu() * probe).sum() + sums[1].sum().cpu(), leaf)
    assert found[: edges.n_edges].any(1).all()
    assert not found[edges.n_edges :].any()
