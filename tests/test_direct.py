"""Models of direct forces: laws, files, the warning, and who refuses them."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from models import (
    BASE,
    crystal,
    largest,
    molecule,
    random_model,
    random_potential,
    rotated,
    rotation_matrix,
)

import dpa4sim
from dpa4sim.adapters.ase import DPA4Calculator
from dpa4sim.batch import Batch
from dpa4sim.cli import main
from dpa4sim.direct import DirectModel
from dpa4sim.errors import ConfigError, DataError, ModelError, NonConservativeWarning, Status
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.potential import Potential
from dpa4sim.property import load_any

TOLERANCE = 1e-11
"""Sums of a few numbers around 1 in another order."""

quiet = pytest.mark.filterwarnings("ignore::dpa4sim.NonConservativeWarning")


def model_of(dtype: str = "float64", seed: int = 0, **changes: object) -> DirectModel:
    network = random_model(replace(BASE, force_head="direct", **changes), seed)
    with torch.no_grad():
        network.head.force_spread.fill_(0.7)
    return DirectModel(network, card={"labels": "none"}, dtype=dtype)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model_of().save(tmp_path / "direct.safetensors")
    return tmp_path / "direct.safetensors"


def test_it_says_once_that_it_is_not_conservative():
    model = model_of()
    with pytest.warns(NonConservativeWarning, match="not the gradient of its energy") as caught:
        model.evaluate(molecule())
    assert len(caught) == 1
    assert "mirrored" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.evaluate(crystal())
    with pytest.warns(NonConservativeWarning):
        model_of().evaluate(molecule())


@quiet
def test_forces_are_not_the_slope_of_the_energy_and_there_is_no_stress():
    model, one, h = model_of(), molecule(), 1e-4
    prediction = model.evaluate(one)
    step = torch.zeros_like(one.positions)
    step[2, 0] = h
    up, down = (
        model.evaluate(one.with_geometry(one.positions + s, one.cell)) for s in (step, -step)
    )
    slope = -(up.energy - down.energy) / (2 * h)
    assert abs(float(slope[0] - prediction.forces[2, 0])) > 1e-2
    assert prediction.stress.isnan().all()
    assert not prediction.has_stress
    assert prediction.forces.dtype == prediction.energy.dtype == torch.float64


@quiet
def test_batch_is_single_and_rotates():
    model, matrix = model_of(), rotation_matrix()
    together = model.evaluate([molecule(), crystal()])
    for system, atoms, one in ((0, slice(0, 6), molecule()), (1, slice(6, 10), crystal())):
        alone = model.evaluate(one)
        assert largest(together.forces[atoms] - alone.forces) < TOLERANCE
        assert largest(together.energy[system] - alone.energy[0]) < TOLERANCE
        turned = model.evaluate(rotated(one, matrix))
        assert largest(turned.forces - alone.forces @ matrix.T) < TOLERANCE
        assert largest(turned.energy - alone.energy) < TOLERANCE


@quiet
def test_a_broken_system_gets_no_number():
    lost = molecule().with_geometry(molecule().positions * math.nan, molecule().cell)
    prediction = model_of()(Batch.concatenate([lost, crystal()]))
    assert prediction.energy.isnan().tolist() == [True, False]
    assert prediction.forces[:6].isnan().all()
    assert prediction.forces[6:].isfinite().all()


@quiet
def test_saved_and_opened(saved):
    model, again = model_of(), dpa4sim.load(saved, dtype="float64")
    assert isinstance(again, dpa4sim.DirectModel)
    assert (again.config, again.card) == (model.config, {"labels": "none"})
    assert torch.equal(again.evaluate(molecule()).forces, model.evaluate(molecule()).forces)
    single = dpa4sim.load(saved).evaluate(molecule()).forces
    assert largest(single - model.evaluate(molecule()).forces) < 1e-3
    assert isinstance(load_any(saved), DirectModel)
    with pytest.raises(DataError, match="does not know the element"):
        again.evaluate(bulk("Cu"))


def test_two_models_are_told_apart():
    """Checkpoints of relaxations and campaigns ask which model it is."""
    one, other = model_of(), model_of(seed=1)
    assert model_fingerprint(one) == model_fingerprint(model_of())
    assert model_fingerprint(one) != model_fingerprint(other)
    assert model_fingerprint(one) != model_fingerprint(model_of(dtype="float32"))


def test_who_needs_a_potential_refuses(saved, tmp_path):
    other = random_potential(BASE)
    with pytest.raises(ModelError, match="predicts forces directly"):
        Potential(random_model(replace(BASE, force_head="direct")))
    with pytest.raises(ModelError, match="has no head for direct forces"):
        DirectModel(other.model)
    with pytest.raises(ModelError, match="predicts forces directly"):
        dpa4sim.load([saved, saved])
    with pytest.raises(ModelError, match="cannot be part of a sum"):
        model_of() + other
    with pytest.raises(ModelError, match="cannot be part of a sum"):
        other + model_of()
    with pytest.raises(ConfigError, match="compile=, kernels= and accuracy= are for potentials"):
        dpa4sim.load(saved, compile=True)
    with pytest.raises(ConfigError, match="compares energies at their minima"):
        dpa4sim.screen(model_of(), [bulk("Si")], directory=tmp_path / "campaign")


def test_lammps_and_phonons_refuse(monkeypatch):
    from dpa4sim.adapters.lammps import attach

    with pytest.raises(ConfigError, match="LAMMPS needs an energy"):
        attach(None, model_of(), ["Si"])
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "workflows")
    monkeypatch.delitem(sys.modules, "recipe", raising=False)
    import recipe

    with pytest.raises(ConfigError, match="Force constants are second derivatives"):
        recipe.forces_of(model_of(), [bulk("Si")], 10)


def test_relax_and_md_refuse():
    model, one = model_of(), crystal()
    with pytest.raises(ConfigError, match=r"relax needs forces.*allow_non_conservative=True"):
        dpa4sim.relax(model, one, cell=False)
    with pytest.raises(ConfigError, match=r"md needs forces.*allow_non_conservative=True"):
        dpa4sim.md(model, one, ensemble="nve")
    for cell in (True, [False, True]):
        with pytest.raises(ConfigError, match="relax with cell=True needs a stress"):
            dpa4sim.relax(model, [one, one], cell=cell, allow_non_conservative=True)
    with pytest.raises(ConfigError, match=r"npt.* needs a stress"):
        dpa4sim.md(model, one, ensemble="npt", allow_non_conservative=True)


@quiet
@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_relax_goes_on_when_told_to(optimizer, tmp_path):
    """The missing stress of a crystal is no sickness."""
    result = dpa4sim.relax(
        model_of(),
        [crystal(), molecule()],
        cell=False,
        optimizer=optimizer,
        max_steps=3,
        allow_non_conservative=True,
        directory=tmp_path / "work",
        progress=False,
    )
    assert set(result.status) <= {Status.MAX_STEPS, Status.CONVERGED}
    assert result.steps == [3, 3]
    assert math.isnan(result.stress_max[0])
    assert largest(result.batches[0].positions - crystal().positions) > 1e-3


@quiet
@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_md_goes_on_when_told_to(ensemble, tmp_path):
    runs = dpa4sim.md(
        model_of(),
        [crystal(), molecule()],
        ensemble=ensemble,
        temperature=20.0,
        timestep=0.1,
        steps=5,
        sample_every=1,
        output=tmp_path / "run.h5",
        allow_non_conservative=True,
        progress=False,
    )
    assert [run.status for run in runs] == [Status.COMPLETED] * 2
    assert math.isnan(runs[0].means["pressure_gpa"])
    assert runs[0].means["temperature"] > 0


def test_embeds_without_a_warning():
    """Descriptors are invariant; they have nothing to do with the forces."""
    found = model_of().embed([molecule(), crystal()])
    network = model_of().model
    assert found.descriptor.shape == (10, BASE.channels)
    assert largest(found.atomic_feature - network.head.energy.hidden(found.descriptor)) < TOLERANCE


@quiet
def test_ase_gets_energy_and_forces_and_is_told_that_there_is_no_stress():
    from ase.calculators.calculator import PropertyNotImplementedError

    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = DPA4Calculator(model_of())
    assert atoms.get_forces().shape == (8, 3)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_commands(saved, tmp_path, capsys):
    """What each verb makes of such a file: info tells, the others want the flag or refuse."""
    bulk("Si", cubic=True).write(tmp_path / "si.extxyz")

    def run(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        caught = capsys.readouterr()
        return code, caught.out + caught.err

    code, text = run("info", saved)
    assert code == 0
    assert "direct" in text
    out, start = tmp_path / "out.extxyz", tmp_path / "si.extxyz"
    code, text = run("relax", saved, start, "-o", out, "--fixed-cell")
    assert (code, "--allow-non-conservative" in text) == (1, True)
    code, text = run("relax", saved, start, "-o", out, "--allow-non-conservative")
    assert (code, "--fixed-cell" in text) == (1, True)
    relaxing = ("relax", saved, start, "-o", out, "--fixed-cell", "--max-steps", 1)
    with pytest.warns(NonConservativeWarning):
        code, text = run(*relaxing, "--allow-non-conservative")
    assert code in (0, 3), text
    code, text = run("md", saved, start, "-o", tmp_path / "a.h5")
    assert (code, "--allow-non-conservative" in text) == (1, True)
    moving = ("md", saved, start, "-o", tmp_path / "b.h5", "--steps", 2, "--timestep", 0.1)
    with pytest.warns(NonConservativeWarning):
        code, text = run(*moving, "--allow-non-conservative")
    assert code == 0, text
    code, text = run("relax", saved, start, "-o", out, "--compile")
    assert (code, "predicts forces directly" in text) == (1, True)
    for name in ("out.pt2", "out.mliap"):
        code, text = run("export", saved, tmp_path / name)
        assert (code, "predicts forces directly" in text) == (1, True)
    code, text = run("convert", saved, tmp_path / "out.pt")
    assert (code, "opposite sign" in text) == (1, True)
    code, text = run("screen", "init", tmp_path / "c", "--model", saved, "--candidates", start)
    assert (code, "predicts forces directly" in text) == (1, True)
