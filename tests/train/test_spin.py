"""Training on magnetic forces: the loss, its gradient, batches, whole runs, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from ase.io import write
from labelled import mixed
from models import largest
from spinning import spinning
from training import MODEL

import dpa4sim
from dpa4sim.adapters.deepmd import write_deepmd
from dpa4sim.config import DPA4Config, SpinConfig
from dpa4sim.data.frame import LabelKeys
from dpa4sim.data.read import read_frames
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.edges import neighbors
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.potential import Potential, load
from dpa4sim.train.build import open_split
from dpa4sim.train.compiled import prepare
from dpa4sim.train.directory import RunDirectory
from dpa4sim.train.finetune import extend_species
from dpa4sim.train.loss import Weights, objective, weight_at
from dpa4sim.train.muon import kind_of
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.run import TrainingRun
from dpa4sim.train.settings import Loss, read_settings
from dpa4sim.train.spin import SpinErrors, SpinTrainer, load_of

EXACT = 1e-9
"""Two float64 orders of the same sums."""
SLOPE = 1e-6
"""Central differences of a float64 loss, relative to the gradient's largest entry."""
SCHEMES = ("virtual", "native")
MAGNETIC = ["Cu"]


def stored(path: Path, frames, **keys) -> Path:
    write(path.with_suffix(".extxyz"), frames)
    read = read_frames(path.with_suffix(".extxyz"), LabelKeys(**keys))
    write_store(path, read, cutoff=MODEL["cutoff"])
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crystals of copper, magnetic, and aluminium, whose moments the model is not to look at."""
    frames = spinning(24)
    del frames[3].arrays["magnetic_forces"]
    return stored(tmp_path_factory.mktemp("data") / "set.h5", frames, magmoms="magmoms")


def settings(source: Path, steps: int = 12, scheme: str = "virtual", **tables):
    plain = {
        "run": {"steps": steps, "validate_every": 20, "log_every_s": 1e9},
        "data": {"train": str(source), "valid_fraction": 0.25, "max_edges": 900},
        "model": {**MODEL, "spin": {"scheme": scheme, "magnetic": MAGNETIC}},
        "optimizer": {"lr": 5e-3, "average": 0.9},
        "schedule": {"warmup_steps": 2},
    }
    for name, table in tables.items():
        plain[name] = {**plain.get(name, {}), **table}
    return plain


def trainer(source: Path, folder: Path, scheme: str = "virtual", **tables) -> SpinTrainer:
    """One whose weights are not those of a network without spins."""
    asked = read_settings(settings(source, scheme=scheme, run={"dtype": "float64"}, **tables))
    one = TrainingRun(asked, *open_split(asked), Ranks(), folder, None, quiet=True).trainer
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in one.model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=noise, dtype=weight.dtype)
    return one


def first_batch(one: SpinTrainer):
    plan, (labelled, *_) = next(iter(one.feed.steps(one.cursor, 1)))
    return labelled, torch.tensor(plan.labels, dtype=torch.float64)


def copper(labelled) -> np.ndarray:
    return labelled.batch.atomic_numbers.numpy() == 29


@pytest.mark.parametrize("form", ["mae", "mse", "huber"])
def test_the_term_in_words(form, source, tmp_path):
    """The plain loss, and beside it that of magnetic forces, copper's alone, where labelled."""
    one = trainer(source, tmp_path, loss={"form": form, "magnetic_force": 7.0, "huber_delta": 0.4})
    labelled, total = first_batch(one)
    found = one.predict(labelled)
    weights = Weights.at(one.settings.loss, one.rate / one.settings.optimizer.lr)
    plain = float(objective(found.plain, weights, one.settings.loss, total[:3]).detach())
    prediction = Potential(copy.deepcopy(one.model), dtype="float64")(labelled.batch)
    error = (prediction.magnetic_forces - labelled.magnetic_forces).numpy()
    error = error[copper(labelled) & np.isfinite(labelled.magnetic_forces.numpy()).all(1)]
    assert len(error) == total[3]
    length = np.linalg.norm(error, axis=1)
    expected = {
        "mae": length,
        "mse": (error**2).mean(1),
        "huber": np.where(length < 0.4, length**2 / 0.8, length - 0.2),
    }[form]
    magnetic = float(one.share(found, total).detach()) - plain
    assert magnetic == pytest.approx(7 * expected.mean(), rel=EXACT)


def test_residuals_are_those_of_the_potential(source, tmp_path):
    one = trainer(source, tmp_path)
    labelled, _ = first_batch(one)
    found = one.predict(labelled)
    prediction = Potential(copy.deepcopy(one.model), dtype="float64")(labelled.batch)
    energy = (prediction.energy - labelled.energy) / labelled.batch.n_atoms
    assert largest(found.plain.energy - energy) < EXACT
    assert largest(found.plain.forces - (prediction.forces - labelled.forces)) < EXACT


def gradients(one: SpinTrainer, labelled, total) -> dict[str, torch.Tensor]:
    one.model.zero_grad(set_to_none=True)
    one.share(one.predict(labelled), total).backward()
    named = one.model.named_parameters()
    return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_of_the_prepared_network_is_autograds(scheme, source, tmp_path):
    """The hand-written passes must let the derivative by the moments through."""
    one = trainer(source, tmp_path, scheme)
    batch = first_batch(one)
    found = []
    for hand_written in (True, False):
        one.model.hand_written = hand_written
        found.append(gradients(one, *batch))
    assert found[0].keys() == found[1].keys()
    scale = max(largest(value) for value in found[1].values())
    worst = {name: largest(found[0][name] - found[1][name]) / scale for name in found[0]}
    assert {name: value for name, value in worst.items() if value > EXACT} == {}


@pytest.mark.slow
def test_gradient_of_the_compiled_network_is_the_eager_ones(source, tmp_path):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for scheme in SCHEMES:
            one = trainer(source, tmp_path, scheme)
            batch = first_batch(one)
            eager = gradients(one, *batch)
            prepare(one.model, compile=True)
            compiled = gradients(one, *batch)
            assert compiled.keys() == eager.keys()
            scale = max(largest(value) for value in eager.values())
            for name, value in eager.items():
                assert largest(compiled[name] - value) < EXACT * scale, (scheme, name)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_is_the_slope_of_the_loss(scheme, source, tmp_path):
    """Of every weight, along one random direction in it."""
    only = {"energy": 0.0, "force": 0.0, "virial": 0.0, "magnetic_force": 1.0, "form": "mse"}
    one = trainer(source, tmp_path, scheme, loss=only)
    labelled, total = first_batch(one)
    gradient = gradients(one, labelled, total)
    noise = torch.Generator().manual_seed(1)
    scale, moved = max(largest(value) for value in gradient.values()), 0
    for name, weight in one.model.named_parameters():
        direction = torch.randn(weight.shape, generator=noise, dtype=weight.dtype)
        direction /= direction.norm()
        found = 0.0
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight += step * direction
            found += float(one.share(one.predict(labelled), total).detach()) / (2 * step)
            with torch.no_grad():
                weight -= step * direction
        expected = float((gradient[name] * direction).sum()) if name in gradient else 0.0
        assert abs(found - expected) < SLOPE * scale, name
        moved += abs(expected) > 1e3 * SLOPE * scale
    assert moved > 5


def test_atoms_that_are_not_magnetic_have_no_say(source, tmp_path):
    """Neither their moments nor their labels change the loss."""
    one = trainer(source, tmp_path)
    labelled, total = first_batch(one)
    before = one.share(one.predict(labelled), total)
    other = torch.tensor(~copper(labelled))
    labelled.batch.magmoms[other] += 1.0
    labelled.magnetic_forces[other] += 1.0
    assert torch.equal(one.share(one.predict(labelled), total), before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_moment_of_zero_is_no_trouble(scheme, source, tmp_path):
    """Its virtual atom would sit on the atom itself."""
    one = trainer(source, tmp_path, scheme)
    labelled, total = first_batch(one)
    labelled.batch.magmoms[:4] = 0.0
    found = gradients(one, labelled, total)
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_errors_by_hand(source, tmp_path):
    one = trainer(source, tmp_path)
    labelled, _ = first_batch(one)
    found, errors = one.predict(labelled), SpinErrors(one.device)
    for _ in range(2):
        errors.add(found)
    read, error = errors.read(), found.magnetic[found.known].detach()
    assert read["magnetic_force_mae"] == pytest.approx(float(error.abs().mean()))
    assert read["magnetic_force_rmse"] == pytest.approx(float(error.square().mean().sqrt()))
    assert read["magnetic_force_length"] == pytest.approx(float(error.norm(dim=1).mean()))
    forces = found.plain.forces.detach()
    assert read["force_mae"] == pytest.approx(float(forces.abs().mean()))
    assert errors.since(errors.copy()).read().keys() == read.keys()


def test_a_batch_counts_the_edges_that_the_network_sees(source):
    """Those of virtual atoms too: the budget is of memory and time."""
    store = Store(source)
    rows = np.array([5, 2, 11])
    for scheme in SCHEMES:
        spin = SpinConfig(scheme=scheme, magnetic=tuple(MAGNETIC))
        config = DPA4Config(species=("Al", "Cu"), spin=spin, **MODEL)
        found = load_of(store, rows, config)
        model = dpa4sim.model.DPA4(config)
        for k, row in enumerate(rows):
            batch = store.batch([row]).batch
            edges = neighbors(batch, config.cutoff)
            species = (batch.atomic_numbers == 29).long()
            kinds = species
            if scheme == "virtual":
                kinds, edges, _ = model.moments.with_virtual_atoms(
                    species, edges, batch.magmoms.to(edges.vector)
                )
            assert (found.n_edges[k], found.n_atoms[k]) == (edges.n_edges, len(kinds))
            assert found.n_labels[k] == species.sum()


def test_ignored_moments_are_told_of(source):
    store = Store(source)
    spin = SpinConfig(magnetic=tuple(MAGNETIC))
    found = load_of(store, np.arange(24), DPA4Config(species=("Al", "Cu"), spin=spin, **MODEL))
    batch = store.batch(range(24)).batch
    lengths = batch.magmoms.norm(dim=1)[batch.atomic_numbers == 13]
    assert found.ignored == {"Al": pytest.approx(float(lengths.max()))}
    assert found.n_labels[3] == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_run_learns_and_leaves_its_files(scheme, source, tmp_path):
    only = {"energy": 0.0, "force": 0.0, "virial": 0.0, "magnetic_force": 20.0}
    asked = settings(source, 40, scheme, loss=only, run={"validate_every": 10})
    result = dpa4sim.train(asked, directory=tmp_path / "run", progress=False)
    rows = (tmp_path / "run" / "train.csv").read_text().splitlines()
    names, units = rows[0].split(","), rows[1].split(",")
    column = names.index("valid_magnetic_force_mae")
    assert units[column] == "meV/μB"
    first, last = (float(row.split(",")[column]) for row in (rows[2], rows[-1]))
    assert last < 0.75 * first
    for name in ("curves.png", "parity.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "meV/μB" in log
    assert "moments that the model does not look at: Al up to " in log
    again = load(tmp_path / "run" / "best.safetensors")
    assert again.config.spin.magnetic == ("Cu",)
    assert again.config.spin.scheme == scheme
    batch = Store(source).batch([0]).batch
    forces = result.potential(batch).magnetic_forces
    assert torch.equal(again(batch).magnetic_forces, forces)


def test_interrupted_run_ends_with_the_same_weights(source, tmp_path):
    asked = read_settings(settings(source))
    whole = dpa4sim.train(settings(source), directory=tmp_path / "a", progress=False)
    parts = open_split(asked)
    names = ("train", "valid")
    hashes = {n: part.store.content_hash for n, part in zip(names, parts, strict=True)}
    place = RunDirectory(tmp_path / "b", asked, hashes)
    stopped = TrainingRun(asked, *parts, Ranks(), tmp_path / "b", place, quiet=True)
    for step in stopped.trainer.steps():
        if step == 5:
            stopped._checkpoint()
            break
    place.close()
    resumed = dpa4sim.train(settings(source), directory=tmp_path / "b", progress=False)
    state = resumed.potential.model.state_dict()
    for name, value in whole.potential.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_tables_of_moments_move_as_tables_do():
    """Without decay and not by Muon, as the reference has it."""
    for name in ("own", "of_neighbor"):
        assert kind_of(f"moment_features.{name}", (2, 8)) == "adam"
    assert kind_of("moment_features.inner", (1, 8)) == "adam"
    assert kind_of("moment_features.outer", (8, 8)) == "muon"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_going_on_from_a_model_with_spins(scheme, source, tmp_path):
    """A DeePMD-kit checkpoint; a species more, not magnetic: those before keep every bit."""
    one = trainer(source, tmp_path, scheme)
    before = Potential(copy.deepcopy(one.model), dtype="float64")
    batch = Store(source).batch([0, 1]).batch
    grown = extend_species(one.model, ["H"])
    after = Potential(grown, dtype="float64")
    assert grown.config.species == ("Al", "Cu", "H")
    for name in ("energy", "forces", "magnetic_forces"):
        assert torch.equal(getattr(before(batch), name), getattr(after(batch), name)), name
    write_deepmd(before.config, before.model.state_dict(), tmp_path / "spins.pt")
    plain = settings(source, 5)
    plain.pop("model")
    plain["finetune"] = {"model": str(tmp_path / "spins.pt")}
    result = dpa4sim.train(plain, directory=tmp_path / "on", progress=False)
    spin = result.potential.config.spin
    assert (spin.scheme, spin.magnetic) == (scheme, ("Cu",))
    assert "magnetic_force_mae" in result.errors


def test_frames_without_a_magnetic_atom_need_no_moments(source, tmp_path):
    """Frames of another data set, of which a model with spins learns the rest."""
    frames = spinning(4) + [atoms for atoms in mixed(40) if 29 not in atoms.numbers][:4]
    path = stored(tmp_path / "a.h5", frames)
    result = dpa4sim.train(settings(path, 5), directory=tmp_path / "a", progress=False)
    assert result.skipped == 0
    assert np.isfinite(result.errors["energy_mae"])
    path = stored(tmp_path / "b.h5", frames[4:])
    one = trainer(source, tmp_path)
    Potential(one.model).save(tmp_path / "spins.safetensors")
    plain = settings(path, 5, loss={"magnetic_force": 0.0, "virial": 0.0})
    plain.pop("model")
    plain["finetune"] = {"model": str(tmp_path / "spins.safetensors")}
    result = dpa4sim.train(plain, directory=tmp_path / "b", progress=False)
    assert result.skipped == 0
    assert np.isnan(result.errors["magnetic_force_mae"])


def test_frames_without_moments(source, tmp_path):
    frames = spinning(3)
    for name in ("magmoms", "magnetic_forces"):
        del frames[1].arrays[name]
    path = stored(tmp_path / "a.h5", frames)
    words = r"1 of the \d training frames have no magnetic moments.* is .*a\.extxyz#1 .*--magmoms"
    with pytest.raises(DataError, match=words):
        open_split(read_settings(settings(path)))


def test_store_without_spins(tmp_path):
    write(tmp_path / "a.extxyz", mixed(9))
    write_store(tmp_path / "a.h5", read_frames(tmp_path / "a.extxyz"), cutoff=3.0)
    with pytest.raises(DataError, match="have no magnetic moments, which a model with spins needs"):
        open_split(read_settings(settings(tmp_path / "a.h5")))


def test_no_label_for_the_term(tmp_path):
    frames = spinning(8)
    for atoms in frames:
        del atoms.arrays["magnetic_forces"]
    path = stored(tmp_path / "a.h5", frames, magmoms="magmoms")
    with pytest.raises(DataError, match=r"label 'magnetic_forces', and loss.magnetic_force = 20"):
        open_split(read_settings(settings(path)))
    open_split(read_settings(settings(path, loss={"magnetic_force": 0.0})))


def test_a_model_without_spins_asks_for_none_of_it(source, tmp_path):
    """On the same store: moments and magnetic forces are left alone."""
    plain = settings(source, 5)
    del plain["model"]["spin"]
    result = dpa4sim.train(plain, directory=tmp_path, progress=False)
    assert "magnetic_force_mae" not in result.errors
    assert not result.potential.config.has_spins


@pytest.mark.parametrize(
    ("spin", "words"),
    [
        ({"magnetic": ["Fe"]}, "spin.magnetic names Fe"),
        ({"magnetics": ["Cu"]}, "unknown key 'spin.magnetics'"),
        ({"magnetic": ["Cu"], "scheme": "real"}, "'virtual', 'native'"),
    ],
)
def test_bad_table(spin, words, source, tmp_path):
    plain = settings(source)
    plain["model"]["spin"] = spin
    with pytest.raises(ConfigError, match=words):
        dpa4sim.train(plain, directory=tmp_path, progress=False)


def test_weight_is_checked(source):
    for weight, words in ((-1.0, "at least 0"), ([1.0, 2.0, 3.0], "one weight, or two")):
        with pytest.raises(ConfigError, match=words):
            read_settings(settings(source, loss={"magnetic_force": weight}))


def test_weight_goes_with_the_rate():
    term = Loss(magnetic_force=(10.0, 2.0)).magnetic_force
    assert weight_at(term, 0.25) == pytest.approx(0.25 * 10 + 0.75 * 2)
