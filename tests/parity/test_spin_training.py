"""A magnetic model that we train, in DeePMD-kit: its predictions, and its loss beside ours."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from labelled import crystal, label
from spinning import with_moments
from training import MODEL

import dpa4sim
from dpa4sim.adapters.deepmd import write_deepmd
from dpa4sim.data.read import read_frames
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.potential import Potential, load
from dpa4sim.train.build import open_split
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.run import TrainingRun
from dpa4sim.train.settings import read_settings

from .conftest import difference
from .peers import run_script

pytestmark = pytest.mark.peer

SCRIPT = Path(__file__).with_name("spin_training_peer.py")
NUMBERS = (13, 29, 29, 13)
TOLERANCE = 1e-10
"""Two float64 programs that add in different orders."""
SCHEMES = ("virtual", "native")


def frames(folder: Path) -> Path:
    """A store of crystals of one composition; copper is magnetic."""
    rng, images = np.random.default_rng(4), []
    for seed in range(8):
        atoms = crystal(seed)
        atoms.numbers = NUMBERS
        moments = 0.7 * rng.normal(size=(4, 3)) * (atoms.numbers == 29)[:, None]
        images.append(with_moments(label(atoms), moments))
    write(folder / "set.extxyz", images)
    write_store(folder / "set.h5", read_frames(folder / "set.extxyz"), cutoff=MODEL["cutoff"])
    return folder / "set.h5"


def settings(source: Path, scheme: str, form: str) -> dict:
    return {
        "run": {"steps": 12, "validate_every": 0, "dtype": "float64"},
        "data": {"train": str(source), "valid_fraction": 0.25, "max_edges": 900},
        "model": {**MODEL, "spin": {"scheme": scheme, "magnetic": ["Cu"]}},
        "loss": {"form": form, "energy": 3.0, "force": 5.0, "magnetic_force": 7.0, "virial": 2.0},
        "optimizer": {"lr": 2e-2, "average": 0.0},
        "schedule": {"warmup_steps": 2},
    }


def as_deepmd(store: Store, path: Path) -> None:
    """All frames of a store as the arrays that the peer takes."""
    labelled = store.batch(range(len(store)))
    batch, n = labelled.batch, len(store)
    virial = -batch.volume[:, None, None] * labelled.stress
    np.savez(
        path,
        coord=batch.positions.reshape(n, -1, 3).numpy(),
        box=batch.cell.reshape(n, 9).numpy(),
        spin=batch.magmoms.reshape(n, -1, 3).numpy(),
        atype=np.array([[13, 29].index(z) for z in NUMBERS]),
        energy=labelled.energy[:, None].numpy(),
        force=labelled.forces.reshape(n, -1, 3).numpy(),
        force_mag=labelled.magnetic_forces.reshape(n, -1, 3).numpy(),
        virial=virial.reshape(n, 9).numpy(),
    )


@pytest.fixture(scope="module")
def answers(deepmd_python: Path, tmp_path_factory) -> Path:
    """Models trained for a few steps and exported, and what DeePMD-kit says of them."""
    folder = tmp_path_factory.mktemp("spins")
    source = frames(folder)
    for scheme in SCHEMES:
        asked = settings(source, scheme, "mse")
        result = dpa4sim.train(asked, directory=folder / scheme, progress=False)
        network = result.potential.model
        write_deepmd(network.config, network.state_dict(), folder / f"{scheme}.pt")
    as_deepmd(Store(source), folder / "frames.npz")
    run_script(deepmd_python, SCRIPT, folder)
    return folder


@pytest.fixture(params=SCHEMES)
def answered(request, answers: Path):
    """Store, scheme, our model and DeePMD-kit's numbers."""
    best = load(answers / request.param / "best.safetensors", dtype="float64")
    with np.load(answers / f"{request.param}.npz") as said:
        return answers / "set.h5", request.param, best, dict(said)


def test_a_model_that_we_trained_predicts_the_same_there(answered):
    source, _, potential, said = answered
    prediction = potential(Store(source).batch(range(8)).batch)
    assert difference(prediction.energy, said["energy"].ravel()) < TOLERANCE
    assert difference(prediction.forces, said["force"].reshape(-1, 3)) < TOLERANCE
    assert difference(prediction.magnetic_forces, said["force_mag"].reshape(-1, 3)) < TOLERANCE
    assert np.abs(said["force_mag"]).max() > 1e-3


def residuals(source: Path, scheme: str, potential: Potential, form: str, folder: Path):
    """Our trainer with the trained weights, its residuals and its loss on all frames."""
    asked = read_settings(settings(source, scheme, form))
    one = TrainingRun(asked, *open_split(asked), Ranks(), folder, None, quiet=True).trainer
    one.model.load_state_dict(copy.deepcopy(potential.model.state_dict()))
    found = one.predict(Store(source).batch(range(8)))
    total = torch.tensor([8, 32, 8, 16], dtype=torch.float64)
    return found, float(one.share(found, total).detach())


def test_the_square_loss_is_that_of_deepmd(answered, tmp_path):
    """With its per-atom normalisation of energy and virial, `intensive_ener_virial`.

    Moments that stay as they are exert a torque: only the symmetric part of the virial is a stress,
    and theirs has the other as well.
    """
    source, scheme, potential, said = answered
    _, loss = residuals(source, scheme, potential, "mse", tmp_path)
    virial = said["virial"].reshape(-1, 3, 3) / len(NUMBERS)
    torque = 0.5 * (virial - virial.transpose(0, 2, 1))
    expected = float(said["mse"]) - 2.0 * (torque**2).mean()
    assert loss == pytest.approx(expected, rel=TOLERANCE)


def test_what_differs_in_the_absolute_loss(answered, tmp_path):
    """Theirs has the mean over components of forces and magnetic forces, ours the length.

    And theirs has the virial with its torque.
    """
    source, scheme, potential, said = answered
    found, loss = residuals(source, scheme, potential, "mae", tmp_path)
    parts = {
        "mae_e": found.plain.energy.abs().mean(),
        "mae_fr": found.plain.forces.abs().mean(),
        "mae_fm": found.magnetic[found.known].abs().mean(),
    }
    for name, value in parts.items():
        expected = float(said[f"mae_{name}"])
        assert float(value.detach()) == pytest.approx(expected, rel=TOLERANCE), name
    longer = 5 * found.plain.forces.norm(dim=1).mean() - 5 * parts["mae_fr"]
    longer += 7 * found.magnetic[found.known].norm(dim=1).mean() - 7 * parts["mae_fm"]
    longer += 2 * found.plain.virial.abs().mean()
    with np.load(source.with_name("frames.npz")) as labels:
        virial = np.abs(said["virial"].reshape(-1, 9) - labels["virial"]).mean() / len(NUMBERS)
    expected = float(said["mae"]) - 2 * virial
    assert loss - float(longer.detach()) == pytest.approx(expected, rel=TOLERANCE)
