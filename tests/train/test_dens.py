"""Training on direct forces and displacements: noise, loss, whole runs, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import largest
from training import MODEL, store
from training import settings as energy_settings

import dpa4sim
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.data.store import Store
from dpa4sim.direct import DirectModel
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.model import DPA4
from dpa4sim.model.dens import NoisyForces
from dpa4sim.potential import Potential, load
from dpa4sim.train.build import build, open_split
from dpa4sim.train.dens import (
    EXPERIMENTAL,
    DirectTrainer,
    Displacement,
    direct_loss,
    displace,
    displaced_batch,
    fill_direct_statistics,
    noisy_residuals,
)
from dpa4sim.train.directory import RunDirectory
from dpa4sim.train.finetune import extend_species
from dpa4sim.train.loss import Weights, label_counts
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.run import TrainingRun
from dpa4sim.train.settings import Denoise, read_settings

GRADIENT = 1e-9
"""Two float64 orders of the same sums."""

quiet = pytest.mark.filterwarnings("ignore::dpa4sim.NonConservativeWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("data") / "set.h5", 32)


def settings(source: Path, steps: int = 12, **tables):
    given = {"model": {"force_head": "direct"}, "loss": {"virial": 0}}
    for name, table in tables.items():
        given[name] = {**given.get(name, {}), **table}
    return energy_settings(source, steps, **given)


def trainer(source: Path, folder: Path, **tables) -> DirectTrainer:
    asked = read_settings(settings(source, **{"run": {"dtype": "float64"}, **tables}))
    run = TrainingRun(asked, *open_split(asked), Ranks(), folder, None, quiet=True)
    assert isinstance(run.trainer, DirectTrainer)
    return run.trainer


def first_batch(one: DirectTrainer) -> LabelledBatch:
    return next(iter(one.feed.steps(one.cursor, 1)))[1][0]


def said(one: DirectTrainer, labelled: LabelledBatch, drawn: Displacement | None):
    inputs = one._inputs(displaced_batch(labelled.batch, drawn))
    return noisy_residuals(one.model, inputs, labelled, drawn, one.settings.denoise.std)


def test_noise_is_what_was_asked_for(source):
    labelled = Store(source).batch(np.arange(32))
    asked = Denoise(probability=0.3, atoms=0.25, std=0.1)
    drawn = [displace(asked, (1, step, 0), labelled) for step in range(400)]
    some = [each for each in drawn if each is not None]
    assert abs(len(some) / 400 - 0.3) < 0.08
    noisy = torch.stack([each.noisy for each in some])
    vector = torch.stack([each.vector for each in some])
    assert abs(float(noisy.double().mean()) - 0.25) < 0.01
    assert abs(float(vector[noisy].std()) - 0.1) < 0.002
    assert (vector[~noisy] == 0).all()


def test_noise_is_a_function_of_its_key(source):
    labelled = Store(source).batch(np.arange(8))
    always = Denoise(probability=1.0)
    first, again, other = (displace(always, (1, 2, k), labelled) for k in (0, 0, 1))
    assert torch.equal(first.vector, again.vector)
    assert not torch.equal(first.vector, other.vector)


def test_atoms_without_a_force_stay_in_place(source):
    labelled = Store(source).batch(np.arange(8))
    forces = labelled.forces.clone()
    forces[::2] = torch.nan
    drawn = displace(Denoise(probability=1.0, atoms=1.0), (0,), replace(labelled, forces=forces))
    assert drawn.noisy.tolist() == [False, True] * (len(forces) // 2)


@pytest.mark.parametrize("form", ["mae", "mse"])
def test_loss_in_words(form, source, tmp_path):
    """Sums over frames and atoms one by one, in units of the spreads."""
    one = trainer(source, tmp_path, loss={"form": form, "energy": 3, "force": 5, "virial": 0})
    labelled = first_batch(one)
    drawn = displace(Denoise(probability=1.0), (0,), labelled)
    found, head = said(one, labelled, drawn), one.model.head
    weights, total = Weights.at(one.settings.loss, 1.0), label_counts(labelled)
    species, edges, *_ = one._inputs(displaced_batch(labelled.batch, drawn))
    output = one.model.direct(species, edges, given=NoisyForces(labelled.forces, drawn.noisy))
    on_energy = on_atoms = 0.0
    for system, size in enumerate(labelled.batch.n_atoms.tolist()):
        atoms = labelled.batch.system_idx == system
        off = (output.energies[atoms].sum() - labelled.energy[system]) / head.energy_spread[0]
        on_energy += 3 * (off.abs() / size if form == "mae" else off**2 / size)
    for atom, noisy in enumerate(drawn.noisy.tolist()):
        if noisy:
            off, weight = output.noise[atom] - drawn.vector[atom] / 0.025, 10
        else:
            off, weight = (output.forces[atom] - labelled.forces[atom]) / head.force_spread, 5
        on_atoms += weight * (off.norm() if form == "mae" else off.square().mean())
    expected = on_energy / labelled.batch.n_systems + on_atoms / len(drawn.noisy)
    loss = direct_loss(found, head, weights, one.settings, total)
    assert largest(loss - expected) < GRADIENT


def test_a_head_that_knows_the_noise_has_no_loss(source, tmp_path, monkeypatch):
    one = trainer(source, tmp_path, loss={"energy": 0, "force": 0, "virial": 0})
    labelled = first_batch(one)
    drawn = displace(Denoise(probability=1.0, atoms=1.0), (0,), labelled)
    weights, total = Weights.at(one.settings.loss, 1.0), label_counts(labelled)
    asked, answer = one.model.direct, drawn.vector / one.settings.denoise.std
    for off, expected in ((0.0, 0.0), (1.0, 10 * 3**0.5)):
        noise = answer + off
        monkeypatch.setattr(one.model, "direct", lambda *a, n=noise: asked(*a)._replace(noise=n))
        found = said(one, labelled, drawn)
        loss = direct_loss(found, one.model.head, weights, one.settings, total)
        assert largest(loss - expected) < GRADIENT


def test_without_noise_it_is_the_loss_of_direct_forces(source, tmp_path):
    """Nobody is displaced: as if there were no displacements at all, and as a DirectModel says."""
    one = trainer(source, tmp_path)
    labelled = first_batch(one)
    nobody = torch.zeros(len(labelled.forces), dtype=torch.bool)
    clean = said(one, labelled, None)
    still = said(one, labelled, Displacement(torch.zeros_like(labelled.forces), nobody))
    for name in ("energy", "forces", "noise", "has_forces", "noisy"):
        assert torch.equal(getattr(clean, name), getattr(still, name)), name
    prediction = DirectModel(copy.deepcopy(one.model), dtype="float64").predict(labelled.batch)
    assert largest(clean.forces - (prediction.forces - labelled.forces)) < GRADIENT


def test_gradient_of_the_prepared_network_is_autograds(source, tmp_path):
    """The hand-written passes were made for forces; here the first pass back is the only one."""
    one = trainer(source, tmp_path, denoise={"probability": 1.0})
    labelled, found = first_batch(one), []
    for hand_written in (True, False):
        one.model.zero_grad()
        one.model.hand_written, one.place = hand_written, 0
        one.share(one.predict(labelled), label_counts(labelled)).backward()
        found.append(
            {n: p.grad.clone() for n, p in one.model.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    worst = {name: largest(found[0][name] - found[1][name]) for name in found[0]}
    assert {name: value for name, value in worst.items() if value > GRADIENT} == {}
    moving = {name for name, value in found[0].items() if largest(value) > 0}
    heads = {"head.force.linear.weight", "head.noise.linear.weight", "head.energy.out"}
    assert heads | {"head.embedding.linear.weight", "species_table"} <= moving


def test_batch_is_single(source, tmp_path):
    """The share of several frames is the sum of theirs, displaced atoms included."""
    one = trainer(source, tmp_path)
    rows = np.arange(4)
    together = one.feed.store.batch(rows)
    drawn = displace(Denoise(probability=1.0), (3,), together)
    weights = Weights.at(one.settings.loss, 1.0)
    total = label_counts(together)

    def loss(labelled: LabelledBatch, noise: Displacement) -> float:
        found = said(one, labelled, noise)
        return direct_loss(found, one.model.head, weights, one.settings, total).item()

    alone = 0.0
    for system in range(4):
        atoms = together.batch.system_idx == system
        part = Displacement(drawn.vector[atoms], drawn.noisy[atoms])
        alone += loss(one.feed.store.batch(rows[system : system + 1]), part)
    assert abs(loss(together, drawn) - alone) < GRADIENT


@quiet
def test_run_learns_and_leaves_its_files(source, tmp_path):
    asked = settings(source, 80, optimizer={"lr": 5e-3, "average": 0.9})
    asked["denoise"] = {"std": 0.05}
    result = dpa4sim.train(asked, directory=tmp_path / "run", progress=False)
    assert isinstance(result.potential, DirectModel)
    labels = Store(source).batch(np.arange(32)).forces
    assert result.errors["force_rmse"] < 0.5e3 * float(labels.square().mean().sqrt())
    assert "stress_mae" not in result.errors
    again = dpa4sim.load(tmp_path / "run" / "best.safetensors")
    assert isinstance(again, DirectModel)
    header = (tmp_path / "run" / "train.csv").read_text().splitlines()[0].split(",")
    assert {"train_noise_rmse", "valid_force_mae"} <= set(header)
    for name in ("curves.png", "parity.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    assert EXPERIMENTAL in (tmp_path / "run" / "log.txt").read_text()


def test_statistics_are_in_the_first_weights(source, tmp_path):
    one = trainer(source, tmp_path)
    frames = Store(source).batch(np.sort(one.feed.frames))
    size = float(frames.forces.square().sum(1).mean().sqrt())
    assert abs(float(one.model.head.force_spread) - size) < GRADIENT
    assert len(one.model.head.energy_spread.unique()) == 1
    assert float(one.model.head.energy_spread[0]) > 0


@pytest.mark.parametrize("per_step", [1, 2])
def test_interrupted_run_ends_with_the_same_weights(per_step, source, tmp_path):
    """The noise too goes on where it was."""
    asked_of = settings(source, data={"batches_per_step": per_step, "max_edges": 500})
    whole = dpa4sim.train(asked_of, directory=tmp_path / "a", progress=False)
    asked = read_settings(asked_of)
    parts = open_split(asked)
    hashes = {
        name: part.store.content_hash for name, part in zip(("train", "valid"), parts, strict=True)
    }
    place = RunDirectory(tmp_path / "b", asked, hashes)
    stopped = TrainingRun(asked, *parts, Ranks(), tmp_path / "b", place, quiet=True)
    for step in stopped.trainer.steps():
        if step == 5:
            stopped._checkpoint()
            break
    place.close()
    resumed = dpa4sim.train(asked_of, directory=tmp_path / "b", progress=False)
    state = resumed.potential.model.state_dict()
    for name, value in whole.potential.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_potential_gets_the_heads_and_keeps_its_energies(source, tmp_path):
    first = dpa4sim.train(energy_settings(source, 5), directory=tmp_path / "a", progress=False)
    asked = settings(source, 5, finetune={"refit_shifts": False})
    asked["finetune"]["model"] = str(tmp_path / "a" / "best.safetensors")
    asked["model"] = {"force_head": "direct"}
    plain = read_settings({**asked, "run": {**asked["run"], "dtype": "float64"}})
    grown = DirectModel(build(plain, *open_split(plain)), dtype="float64")
    batch = Store(source).batch(np.arange(4)).batch
    before = load(tmp_path / "a" / "best.safetensors", dtype="float64")(batch).energy
    assert largest(grown.predict(batch).energy - before) < 1e-5, "float32 weights divided once"
    second = dpa4sim.train(asked, directory=tmp_path / "b", progress=False)
    assert isinstance(second.potential, DirectModel)
    on = {**asked, "finetune": {"model": str(tmp_path / "b" / "best.safetensors")}}
    del on["model"]
    third = dpa4sim.train(on, directory=tmp_path / "c", progress=False)
    spread = second.potential.model.head.force_spread
    assert torch.equal(third.potential.model.head.force_spread, spread)
    assert isinstance(first.potential, Potential)


def test_a_new_species_starts_as_its_kin(source, tmp_path):
    model = trainer(source, tmp_path).model
    model.head.energy_spread.copy_(torch.tensor([1.0, 2.0]))
    extended = extend_species(model, ["Ag"])
    kin = model.config.species.index("Cu")
    assert extended.head.energy_spread.tolist()[:2] == [1.0, 2.0]
    assert extended.head.energy_spread[2] == model.head.energy_spread[kin]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"loss": {"virial": 5}}, "Set loss.virial=0"),
        ({"loss": {"form": "huber"}}, "not 'huber'"),
        ({"model": {"force_head": "mirrored"}}, "cannot learn forces"),
        ({"model": {"max_degree": 0}}, "Give max_degree >= 1"),
        ({"model": {"force_head": "none"}, "denoise": {"std": 0.1}}, r"\[denoise\] is for direct"),
        ({"denoise": {"atoms": 1.5}}, "denoise.atoms = 1.5; it must be from 0 to 1"),
        ({"denoise": {"sigma": 0.1}}, "unknown key 'denoise.sigma'"),
        ({"denoise": {"std": 0.0}}, "denoise.std = 0; it must be at least"),
    ],
)
def test_settings_that_cannot_be_used(tables, words, source, tmp_path):
    with pytest.raises(ConfigError, match=words):
        dpa4sim.train(settings(source, **tables), directory=tmp_path, progress=False)


def test_foreign_heads_are_trained_with_the_right_sign_only(source, tmp_path):
    mirrored = replace(dpa4sim.DPA4Config(species=("Cu", "Au"), **MODEL), force_head="mirrored")
    DirectModel(DPA4(mirrored)).save(tmp_path / "foreign.safetensors")
    asked = settings(source, 4, finetune={"model": str(tmp_path / "foreign.safetensors")})
    del asked["model"]
    with pytest.raises(ConfigError, match="cannot learn forces"):
        dpa4sim.train(asked, directory=tmp_path / "a", progress=False)
    asked["model"] = {"force_head": "direct"}
    result = dpa4sim.train(asked, directory=tmp_path / "b", progress=False)
    assert result.potential.config.force_head == "direct"


def test_labels_without_forces(source, tmp_path):
    model = trainer(source, tmp_path).model

    class Still(Store):
        def blocks(self, frames=None):
            for block in super().blocks(frames):
                yield replace(block, forces=torch.zeros_like(block.forces))

    with pytest.raises(DataError, match="no frame with forces that are not zero"):
        fill_direct_statistics(model, Still(source), np.arange(4))
