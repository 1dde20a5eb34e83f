"""The objective is Eq. 70, whatever labels are missing."""

import numpy as np
import pytest
import torch
import training
from models import BASE

from dpa4sim.batch import Batch
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential
from dpa4sim.train.loss import Errors, Weights, compared, objective, residuals
from dpa4sim.train.settings import Loss

NAN = float("nan")


def labelled(n: int = 3) -> LabelledBatch:
    found = training.frames(n)
    batch = Batch.concatenate([frame.system for frame in found])
    return LabelledBatch(
        batch,
        torch.tensor([frame.energy for frame in found], dtype=torch.float64),
        torch.tensor(np.concatenate([frame.forces for frame in found])),
        torch.tensor(np.stack([frame.stress for frame in found])),
        torch.arange(n),
    )


def prediction(batch: Batch, seed: int = 0):
    noise = torch.Generator().manual_seed(seed)
    shapes = ((batch.n_systems,), batch.positions.shape, batch.cell.shape)
    return [torch.randn(s, generator=noise, dtype=torch.float64) for s in shapes]


def by_hand(given: LabelledBatch, energy, forces, virial, weights: Weights) -> float:
    """Eq. 70, frame by frame."""
    terms = {"energy": [], "force": [], "virial": []}
    start = 0
    for s, n in enumerate(given.batch.n_atoms.tolist()):
        atoms = slice(start, start + n)
        start += n
        label = given.stress[s] * given.batch.volume[s]
        terms["energy"].append(abs(energy[s] - given.energy[s]) / n)
        terms["force"] += [
            np.linalg.norm(a - b) for a, b in zip(forces[atoms], given.forces[atoms], strict=True)
        ]
        terms["virial"].append((virial[s] - label).abs().sum() / (9 * n))
    total = 0.0
    for name, values in terms.items():
        known = [float(v) for v in values if not np.isnan(float(v))]
        total += getattr(weights, name) * sum(known) / max(len(known), 1)
    return total


@pytest.mark.parametrize("missing", ["nothing", "energy", "forces", "stress"])
def test_it_is_the_equation(missing):
    given = labelled()
    if missing != "nothing":
        getattr(given, missing)[0 if missing != "forces" else slice(0, 4)] = NAN
    weights = Weights(20.0, 7.0, 3.0)
    energy, forces, virial = prediction(given.batch)
    found = compared(given, energy, forces, virial)
    ours = objective(found, weights, Loss(), found.counts)
    assert ours.item() == pytest.approx(by_hand(given, energy, forces, virial, weights), rel=1e-12)


@pytest.mark.parametrize("form", ["mae", "mse", "huber"])
def test_an_absent_label_has_no_gradient_and_a_present_one_has(form):
    given = labelled()
    given.energy[1], given.forces[4:8], given.stress[1] = NAN, NAN, NAN
    values = [value.requires_grad_() for value in prediction(given.batch)]
    found = compared(given, *values)
    objective(found, Weights(1.0, 1.0, 1.0), Loss(form=form), found.counts).backward()
    energy, forces, virial = (value.grad for value in values)
    assert energy[1] == 0
    assert (energy[[0, 2]] != 0).all()
    assert (forces[4:8] == 0).all()
    assert (forces[:4] != 0).any(1).all()
    assert (virial[1] == 0).all()
    assert (virial[[0, 2]] != 0).all()


def test_the_forms_are_what_they_are_called():
    given = labelled(1)
    size = given.batch.n_atoms[0]
    shift = torch.tensor([[0.3, 0.0, 0.4]], dtype=torch.float64)
    found = compared(given, given.energy, given.forces + shift, given.stress * given.batch.volume)
    only = Weights(0.0, 1.0, 0.0)

    def value(**options) -> float:
        return objective(found, only, Loss(**options), found.counts).item()

    assert value() == pytest.approx(0.5)
    assert value(form="mse") == pytest.approx(0.25 / 3)
    assert value(form="huber", huber_delta=0.2) == pytest.approx(0.4)
    assert value(form="huber", huber_delta=2.0) == pytest.approx(0.5 * 0.25 / 2)
    assert found.counts.tolist() == [1, size, 1]


def test_shares_of_batches_add_up_to_the_loss_of_them_all():
    given = labelled(3)
    given.energy[0] = NAN
    energy, forces, virial = prediction(given.batch)
    whole = compared(given, energy, forces, virial)
    weights = Weights(2.0, 3.0, 4.0)
    together = objective(whole, weights, Loss(), whole.counts)
    shares, start = [], 0
    for s, n in enumerate(given.batch.n_atoms.tolist()):
        atoms, one = slice(start, start + n), slice(s, s + 1)
        start += n
        part = LabelledBatch(
            given.batch.select([s]),
            given.energy[one],
            given.forces[atoms],
            given.stress[one],
            given.frame[one],
        )
        found = compared(part, energy[one], forces[atoms], virial[one])
        shares.append(objective(found, weights, Loss(), whole.counts))
    assert torch.stack(shares).sum().item() == pytest.approx(together.item(), rel=1e-12)


def test_the_residuals_of_a_network_are_those_of_the_potential():
    given = labelled()
    model = DPA4(BASE.__class__(**{**BASE.to_dict(), "species": ("Cu", "Au")}), torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    potential = Potential(model, dtype="float64")
    said = potential(given.batch)
    expected = compared(
        given, said.energy, said.forces, said.stress * given.batch.volume[:, None, None]
    )
    edges = neighbors(given.batch, potential.cutoff)
    vector = edges.vector.detach().requires_grad_()
    edges = Edges(edges.center, edges.neighbor, vector, edges.row_ptr)
    atomic, _ = model(potential._species_of[given.batch.atomic_numbers], edges)
    (gradient,) = torch.autograd.grad(atomic.sum(), vector)
    found = residuals(given, edges, atomic, gradient)
    for name in ("energy", "forces", "virial"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-11
        )


def test_weights_go_with_the_learning_rate():
    loss = Loss(energy=(0.02, 1.0), force=(1000.0, 1.0), virial=(0.0,))
    assert Weights.at(loss, 1.0) == Weights(0.02, 1000.0, 0.0)
    assert Weights.at(loss, 0.0) == Weights(1.0, 1.0, 0.0)
    assert Weights.at(loss, 0.5).force == pytest.approx(500.5)


def test_errors_are_means_over_labels():
    given = labelled()
    given.stress[:] = NAN
    given.energy[2] = NAN
    energy, forces, virial = prediction(given.batch)
    errors = Errors(torch.device("cpu"))
    for _ in range(2):
        errors.add(compared(given, energy, forces, virial))
    found = errors.read()
    size = given.batch.n_atoms
    per_atom = ((energy - given.energy) / size)[:2]
    difference = forces - given.forces
    assert found["energy_mae"] == pytest.approx(per_atom.abs().mean().item())
    assert found["energy_rmse"] == pytest.approx(per_atom.square().mean().sqrt().item())
    assert found["force_mae"] == pytest.approx(difference.abs().mean().item())
    assert found["force_rmse"] == pytest.approx(difference.square().mean().sqrt().item())
    assert found["force_length"] == pytest.approx(difference.norm(dim=1).mean().item())
    assert np.isnan(found["stress_mae"])


def test_errors_since_a_copy():
    given = labelled()
    energy, forces, virial = prediction(given.batch)
    errors, later = Errors(torch.device("cpu")), Errors(torch.device("cpu"))
    errors.add(compared(given, energy, forces, virial))
    before = errors.copy()
    second = compared(given, energy + 1, forces, virial)
    errors.add(second)
    later.add(second)
    assert errors.since(before).read() == pytest.approx(later.read())
    assert errors.read() != pytest.approx(later.read())
