"""The hand-written edge kernel against plain autograd, its reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from models import BASE, NUMBERS, OPTION_SETS, crystal, molecule, random_model

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors, pad
from dpa4sim.kernels import edge_convolution, workspace
from dpa4sim.model import DPA4

ROUNDING = 2e-12
"""Same sums in another order in float64, forces of order 1 to 10."""

KERNEL_SETS = {
    name: config
    for name, config in OPTION_SETS.items()
    if config.edge_product != "none" and not config.bias and not config.so2_norm
} | {
    "heads": replace(BASE, n_heads=4, n_focus=2),
    "order_0": replace(BASE, max_order=0),
    "order_3": replace(BASE, max_degree=3, max_order=3, layer_scale=True),
    "one_layer": replace(BASE, so2_layers=1),
    "degree_0": replace(BASE, max_degree=0, max_order=0),
}


def star(n: int) -> tuple[Batch, Edges]:
    """n edges at the first atom and none at any other."""
    generator = torch.Generator().manual_seed(n)
    shell = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    shell = shell / shell.norm(dim=1, keepdim=True) * torch.linspace(1.5, 4.0, n)[:, None]
    positions = torch.cat([torch.zeros(1, 3, dtype=torch.float64), shell])
    batch = Batch.single(positions, torch.tensor([14] + [6, 8] * n)[: n + 1])
    row_ptr = torch.full((n + 2,), n)
    row_ptr[0] = 0
    center = torch.zeros(n, dtype=torch.long)
    return batch, Edges(center, torch.arange(1, n + 1), shell, row_ptr)


def evaluate(model: DPA4, batch: Batch, edges: Edges, by_kernel: bool) -> tuple:
    """Atomic energies and the gradient with respect to the edge vectors."""
    model.hand_written = by_kernel
    vector = edges.vector.detach().clone().requires_grad_(True)
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    energy, _ = model(species, replace(edges, vector=vector))
    (gradient,) = torch.autograd.grad(energy.sum(), vector)
    return energy.detach(), gradient


def assert_same(model: DPA4, batch: Batch, edges: Edges) -> None:
    reference = evaluate(model, batch, edges, by_kernel=False)
    found = evaluate(model, batch, edges, by_kernel=True)
    for ours, theirs in zip(found, reference, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", KERNEL_SETS)
@pytest.mark.parametrize("by_gauss", [False, True])
def test_energies_and_gradients_equal_autograd(name, by_gauss, monkeypatch):
    monkeypatch.setattr(edge_convolution, "CHUNK_EDGES", 7)  # many chunks, also of one center
    monkeypatch.setattr(edge_convolution, "GAUSS", (3, 1) if by_gauss else (10**9, 1))
    model = random_model(KERNEL_SETS[name]).requires_grad_(False)
    batch = Batch.concatenate([molecule(), crystal()])
    assert_same(model, batch, neighbors(batch, model.config.cutoff))


def test_what_is_not_stored_is_made_again_to_the_same_bits(monkeypatch):
    monkeypatch.setattr(edge_convolution, "CHUNK_EDGES", 40)
    model = random_model(BASE).requires_grad_(False)
    batch = Batch.concatenate([molecule(), crystal()])
    edges = neighbors(batch, model.config.cutoff)
    taken, real = [], edge_convolution._Stored.take
    monkeypatch.setattr(
        edge_convolution._Stored, "take", lambda n, *rest: taken.append(n) or real(n, *rest)
    )
    found = {}
    for room in (0, 150_000, 1 << 40):
        monkeypatch.setattr("dpa4sim.model.dpa4.room", lambda n, room=room: room)
        monkeypatch.setattr("dpa4sim.model.dpa4.is_large", lambda n: False)
        taken.clear()
        found[room] = evaluate(model, batch, edges, by_kernel=True), max(taken)
    (nothing, few), (part, some), (whole, every) = found.values()
    assert few <= 40 < some < every == edges.n_edges
    for result in (nothing, part):
        assert all(torch.equal(a, b) for a, b in zip(result, whole, strict=True))


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_a_batch_of_many_edges_gives_the_same(name, monkeypatch):
    monkeypatch.setattr("dpa4sim.model.dpa4.is_large", lambda n: True)
    for place in ("row_chunks.CHUNK_ATOMS", "row_chunks.CHUNK_EDGES"):
        monkeypatch.setattr(f"dpa4sim.kernels.{place}", 3)
    model = random_model(KERNEL_SETS[name]).requires_grad_(False)
    batch = Batch.concatenate([molecule(), crystal()])
    assert_same(model, batch, neighbors(batch, model.config.cutoff))


def test_nothing_is_stored_without_a_gradient(monkeypatch):
    taken, real = [], edge_convolution._Stored.take
    monkeypatch.setattr(
        edge_convolution._Stored, "take", lambda n, *rest: taken.append(n) or real(n, *rest)
    )
    monkeypatch.setattr(edge_convolution, "CHUNK_EDGES", 40)
    model = random_model(BASE).requires_grad_(False)
    batch = crystal()
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    with torch.no_grad():
        model(species, neighbors(batch, model.config.cutoff))
    assert 0 < max(taken) <= 40


def test_weights_are_prepared_once_and_again_when_they_change(monkeypatch):
    model = random_model(BASE).requires_grad_(False)
    batch = molecule()
    edges = neighbors(batch, model.config.cutoff)
    evaluate(model, batch, edges, by_kernel=True)
    stack, made = model.blocks[0].convolution.stack, []
    real = type(stack).layers
    monkeypatch.setattr(type(stack), "layers", lambda *a: made.append(1) or real(*a))
    evaluate(model, batch, edges, by_kernel=True)
    assert not made
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert_same(model, batch, edges)
    assert len(made) == len(model.blocks) * model.config.n_focus


def test_the_kernel_is_what_runs(monkeypatch):
    calls = []
    real = edge_convolution.gather
    monkeypatch.setattr(edge_convolution, "gather", lambda *a: calls.append(1) or real(*a))
    model = random_model(BASE).requires_grad_(False)
    batch = molecule()
    evaluate(model, batch, neighbors(batch, model.config.cutoff), by_kernel=True)
    assert calls
    calls.clear()
    evaluate(model, batch, neighbors(batch, model.config.cutoff), by_kernel=False)
    assert not calls


@pytest.mark.parametrize("n", [0, 1, 500])
def test_centers_without_and_with_many_neighbours(n):
    model = random_model(BASE).requires_grad_(False)
    assert_same(model, *star(n))


def test_every_atom_of_a_group_is_in_one_of_its_chunks(monkeypatch):
    """Sums of an atom that no chunk reaches would never be written."""
    monkeypatch.setattr(edge_convolution, "CHUNK_EDGES", 7)
    offsets = [0, 3, 5, 13, 13, 22, 22, 22, 24, 30, 31]  # atoms without edges between large ones
    groups = edge_convolution._groups(offsets)
    for atoms, parts in groups:
        assert (parts[0].start, parts[-1].stop) == (atoms.start, atoms.stop)
        assert all(a.stop == b.start for a, b in pairwise(parts))
    assert sum(offsets[a.stop] - offsets[a.start] for a, _ in groups) == offsets[-1]
    assert max(len(parts) for _, parts in groups) > 1


def test_padded_edges_are_silent(monkeypatch):
    """No center owns them, so nothing may be read that was never written for them."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, torch.nan))
    model = random_model(BASE).requires_grad_(False)
    batch = molecule()
    edges = neighbors(batch, model.config.cutoff)
    padded = pad(edges, edges.n_edges + 9, model.config.cutoff)
    energy, gradient = evaluate(model, batch, edges, by_kernel=True)
    longer, more = evaluate(model, batch, padded, by_kernel=True)
    torch.testing.assert_close(longer, energy, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(more[: len(gradient)], gradient, rtol=ROUNDING, atol=ROUNDING)
    assert not more[len(gradient) :].any()


def test_training_takes_autograd(monkeypatch):
    monkeypatch.setattr(edge_convolution, "gather", lambda *_: pytest.fail("the kernel ran"))
    model = random_model(BASE).requires_grad_(True)
    batch = molecule()
    edges = neighbors(batch, model.config.cutoff)
    vector = edges.vector.clone().requires_grad_(True)
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    energy, _ = model(species, replace(edges, vector=vector))
    (gradient,) = torch.autograd.grad(energy.sum(), vector, create_graph=True)
    gradient.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    assert sum(g is not None for g in gradients) > len(gradients) // 2


def test_a_second_backward_is_refused():
    model = random_model(BASE).requires_grad_(False)
    batch = molecule()
    edges = neighbors(batch, model.config.cutoff)
    vector = edges.vector.clone().requires_grad_(True)
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    energy, _ = model(species, replace(edges, vector=vector))
    torch.autograd.grad(energy.sum(), vector, retain_graph=True)
    with pytest.raises(RuntimeError, match="runs once"):
        torch.autograd.grad(energy.sum(), vector)


def test_buffers_are_reused_and_never_shared(monkeypatch):
    monkeypatch.setattr(workspace, "_idle", {})
    like = torch.zeros(0, dtype=torch.float64)
    first, second = workspace.take((100, 10), like), workspace.take((100, 10), like)
    assert first.data_ptr() != second.data_ptr()
    where = {first.data_ptr(), second.data_ptr()}
    workspace.give(first, second)
    again, other = workspace.take((99, 10), like), workspace.take((90, 10), like)
    assert {again.data_ptr(), other.data_ptr()} == where


def test_idle_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(workspace, "KEEP_BYTES", 8000)
    monkeypatch.setattr(workspace, "_idle", {})
    like = torch.zeros(0, dtype=torch.float64)
    workspace.give(*[workspace.take((600,), like) for _ in range(5)])
    assert sum(buffer.nbytes for buffer in workspace._idle[torch.float64]) <= 8000
