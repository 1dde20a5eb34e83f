"""Direct-force models of DeePMD-kit 3.2.0: energies, forces, denoising, loss, and what we export.

DeePMD-kit mirrors the y axis of this mode's vectors.  The importer keeps the numbers; a test here
says what that means, and that the same weights without the mirror rotate as they should.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpa4sim.adapters.deepmd import read_deepmd, write_deepmd
from dpa4sim.batch import Batch
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.data.read import read_frames
from dpa4sim.data.statistics import energy_shifts
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.direct import DirectModel
from dpa4sim.ensemble import load
from dpa4sim.errors import ModelError, NonConservativeWarning
from dpa4sim.model import DPA4
from dpa4sim.model.dens import DirectOutput, NoisyForces
from dpa4sim.model_file import fill
from dpa4sim.property import network_inputs
from dpa4sim.train.dens import (
    Displacement,
    direct_loss,
    displaced_batch,
    fill_direct_statistics,
    noisy_residuals,
)
from dpa4sim.train.loss import Weights
from dpa4sim.train.settings import read_settings

from .conftest import difference, read_numbers
from .peers import batch_of, kept_answers, run_script, write_system

pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::dpa4sim.NonConservativeWarning"),
]

SCRIPT = Path(__file__).with_name("dens_peer.py")
SOURCES = (SCRIPT, Path(__file__), SCRIPT.with_name("option_sets.py"))
MODELS = ("base", "schedule", "extra", "trained")
FITTED = 1e-10
"""The same least squares by another solver."""
TOLERANCE = 1e-11
"""Two float64 programs that add in different orders."""


@pytest.fixture(scope="module")
def answers(deepmd_python: Path, request: pytest.FixtureRequest) -> Path:
    """Folder of checkpoints and DeePMD-kit's answers, kept by pytest's cache."""

    def make(folder: Path) -> None:
        rng = np.random.default_rng(4)
        labels = {"energy": 3 * rng.normal(size=6) - 40, "force": rng.normal(size=(6, 21))}
        write_system(folder / "frames", [labels])
        run_script(deepmd_python, SCRIPT, folder, folder / "frames")

    return kept_answers(request, "parity_dens", deepmd_python, SOURCES, make)


def of_noisy(model: DirectModel, batch: Batch, forces: object, noisy: object) -> DirectOutput:
    """What the heads say of a structure whose atoms are said to be displaced."""
    species, edges, charge, spin, _ = network_inputs(model, batch)
    given = NoisyForces(torch.as_tensor(forces), torch.as_tensor(noisy))
    return model.model.direct(species, edges, charge, spin, given)


@pytest.mark.parametrize("name", MODELS)
def test_energy_and_direct_forces_agree(name: str, answers: Path) -> None:
    """All structures in one batch."""
    stored = read_numbers(answers / f"{name}.npz")
    model = load(answers / f"{name}.pt", dtype="float64")
    assert isinstance(model, DirectModel)
    prediction = model.evaluate([batch_of(given) for given in stored.values()])
    assert prediction.stress.isnan().all(), "DeePMD-kit says NaN too"
    sizes = np.array([len(given["atype"]) for given in stored.values()])
    energy = np.stack([given["energy"] for given in stored.values()])
    assert difference(prediction.energy / sizes, energy / sizes) < TOLERANCE
    forces = np.concatenate([given["force"] for given in stored.values()])
    assert np.abs(forces).max() > 1e-3
    assert difference(prediction.forces, forces) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_displaced_atoms_agree(name: str, answers: Path) -> None:
    """The forces as features, the head of the displacement, and what is normalised."""
    stored = read_numbers(answers / f"{name}.npz")
    model = load(answers / f"{name}.pt", dtype="float64")
    batch = Batch.concatenate(batch_of(given) for given in stored.values())
    given = {
        key: np.concatenate([one[key] for one in stored.values()])
        for key in ("force_input", "noise_mask", "noisy_force", "noise")
    }
    said = of_noisy(model, batch, given["force_input"], given["noise_mask"])
    assert difference(said.scaled_forces, given["noisy_force"]) < TOLERANCE
    assert difference(said.noise, given["noise"]) < TOLERANCE
    start = 0
    for name_of, one in stored.items():
        atoms = slice(start, start := start + len(one["atype"]))
        energy = said.energies[atoms].sum() / len(one["atype"])
        expected = one["noisy_energy"] / len(one["atype"])
        assert difference(energy, expected) < TOLERANCE, name_of


def test_deepmds_forces_are_mirrored_and_so_do_not_rotate(answers: Path) -> None:
    """Rotated with the structure they are wrong by as much as they are large; ours are right."""
    given = read_numbers(answers / "base.npz")["skewed"]
    config, state = read_deepmd(answers / "base.pt")
    one, quarter = batch_of(given), torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).double()
    turned = one.with_geometry(one.positions @ quarter.T, one.cell @ quarter.T)
    size, error = {}, {}
    for kind in ("mirrored", "direct"):
        network = DPA4(replace(config, force_head=kind), dtype=torch.float64)
        fill(network, state, "base.pt")
        model = DirectModel(network, dtype="float64")
        forces = model.evaluate(one).forces
        size[kind] = float(forces.abs().max())
        error[kind] = difference(model.evaluate(turned).forces, forces @ quarter.T, scaled=False)
    assert error["direct"] < TOLERANCE
    assert error["mirrored"] > 0.3 * size["mirrored"]


def test_deepmd_reads_what_we_export(answers: Path, deepmd_python: Path, tmp_path: Path) -> None:
    names = ("schedule", "extra")
    for name in names:
        write_deepmd(*read_deepmd(answers / f"{name}.pt"), tmp_path / f"{name}.pt")
    words = [tmp_path / f"{name}.{kind}" for name in names for kind in ("pt", "npz")]
    run_script(deepmd_python, SCRIPT, "eval", *words)
    for name in names:
        expected = read_numbers(answers / f"{name}.npz")
        for structure, got in read_numbers(tmp_path / f"{name}.npz").items():
            for quantity in ("energy", "force", "noisy_energy", "noisy_force", "noise"):
                off = difference(got[quantity], expected[structure][quantity])
                assert off < TOLERANCE, (name, structure, quantity)


COEFFICIENTS = {"energy": (3.0, 2.0), "force": (5.0, 1.0), "virial": (0.0,)}
NOISE_STD, RATE = 0.03, 0.4
"""As in dens_peer.py."""


@pytest.mark.parametrize("form", ["mae", "mse"])
@pytest.mark.parametrize("case", ["clean", "all", "some"])
def test_loss_agrees(form: str, case: str, answers: Path) -> None:
    """Both programs see the same weights, frames and displacements."""
    given = dict(np.load(answers / "loss.npz"))
    kinds = [int(word) for word in (answers / "frames" / "type.raw").read_text().split()]
    systems = [
        batch_of({"coord": coord.reshape(-1, 3), "box": box.reshape(3, 3), "atype": kinds})
        for coord, box in zip(given["coord"], given["box"], strict=True)
    ]
    labelled = LabelledBatch(
        batch=Batch.concatenate(systems),
        energy=torch.as_tensor(given["energy"]),
        forces=torch.as_tensor(given["force"]).reshape(-1, 3),
        stress=torch.full((2, 3, 3), torch.nan, dtype=torch.float64),
        frame=torch.arange(2),
    )
    displaced = given[f"{form}/{case}/coord"].reshape(-1, 3)
    drawn = None
    if case != "clean":
        noisy = torch.as_tensor(given[f"{form}/{case}/noise_mask"].reshape(-1))
        assert bool(noisy.all()) == (case == "all")
        vector = torch.as_tensor(displaced) - labelled.batch.positions
        drawn = Displacement(vector * noisy[:, None], noisy)
    model = load(answers / "uniform.pt", dtype="float64")
    asked = read_settings({
        "run": {"steps": 9}, "data": {"train": "x"}, "schedule": {"warmup_steps": 2},
        "loss": {"form": form, **COEFFICIENTS}, "denoise": {"std": NOISE_STD},
    })  # fmt: skip
    inputs = network_inputs(model, displaced_batch(labelled.batch, drawn))[:4]
    found = noisy_residuals(model.model, inputs, labelled, drawn, NOISE_STD)
    weights = Weights.at(asked.loss, RATE)
    total = torch.tensor([2.0, 14.0, 0.0], dtype=torch.float64)
    loss = direct_loss(found, model.model.head, weights, asked, total)
    assert difference(loss, given[f"{form}/{case}"]) < TOLERANCE


def test_statistics_are_those_of_dp_train(answers: Path, tmp_path: Path) -> None:
    """`dp train` found the spreads and the energies of the elements in the same frames."""
    write_store(tmp_path / "frames.h5", read_frames(answers / "frames"), cutoff=4.5)
    store = Store(tmp_path / "frames.h5")
    config, state = read_deepmd(answers / "trained.pt")
    model = DPA4(config, dtype=torch.float64)
    rows = np.arange(len(store))
    model.energy_shift.copy_(torch.as_tensor(energy_shifts(store, rows, config.species)))
    fill_direct_statistics(model, store, rows)
    assert difference(model.energy_shift, state["energy_shift"]) < FITTED
    assert difference(model.head.energy_spread, state["head.energy_spread"]) < FITTED
    assert difference(model.head.force_spread, state["head.force_spread"]) < FITTED


def test_a_head_with_the_right_sign_is_not_exported(answers: Path, tmp_path: Path) -> None:
    config, state = read_deepmd(answers / "base.pt")
    with pytest.raises(ModelError, match="opposite sign"):
        write_deepmd(replace(config, force_head="direct"), state, tmp_path / "ours.pt")


def test_a_foreign_head_says_so(answers: Path) -> None:
    model = load(answers / "base.pt")
    with pytest.warns(NonConservativeWarning, match="y axis of this head mirrored"):
        model.evaluate(batch_of(read_numbers(answers / "base.npz")["skewed"]))
