"""The recipes of workflows/train are runs that the trainer takes, with the paper's numbers."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from dpa4sim.model import DPA4
from dpa4sim.train.build import model_config
from dpa4sim.train.settings import read_settings

FOLDER = Path(__file__).parents[2] / "workflows" / "train"
# Tables S-17 and S-18: lr, atoms per GPU, GPUs, weights of E, F and V, millions of parameters
PAPER = {
    "mptrj_neo": (6.5e-4, 2100, 1, (20, 20, 5), 1.60),
    "mptrj_air": (6e-4, 1500, 1, (20, 20, 5), 2.76),
    "mptrj_plus": (5.5e-4, 1200, 2, (20, 20, 5), 5.40),
    "mptrj_pro": (4.3e-4, 300, 8, (20, 20, 5), 20.91),
    "spice_air": (5e-4, 2000, 1, (15, 20, 0), 2.76),
    "spice_plus": (5e-4, 2000, 1, (15, 20, 0), 5.40),
}


def test_there_are_no_others():
    assert {path.stem for path in FOLDER.glob("*.toml")} == {
        *PAPER,
        "small",
        "finetune",
        "nio_spin",
        "universal",
        "direct_water",
        "branches",
    }


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper(name):
    lr, atoms, gpus, weights, millions = PAPER[name]
    asked = read_settings(FOLDER / f"{name}.toml")
    assert (asked.optimizer.lr, asked.data.max_atoms, asked.data.batches_per_step) == (
        lr,
        atoms,
        gpus,
    )
    assert tuple(term[0] for term in (asked.loss.energy, asked.loss.force, asked.loss.virial)) == (
        weights
    )
    assert (asked.run.steps, asked.schedule.warmup_steps) == (2_000_000, 5000)
    assert asked.schedule.final_lr == 1e-6
    from ase.data import chemical_symbols

    config = model_config(asked.model, chemical_symbols[1:119])
    n = sum(p.numel() for p in DPA4(config).parameters())
    assert n / 1e6 == pytest.approx(millions, abs=0.006)


OTHERS = ["small", "finetune", "universal", "direct_water", "branches", "nio_spin"]


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_are_settings(name):
    assert read_settings(FOLDER / f"{name}.toml").run.steps > 0


def test_the_small_set_has_labels(tmp_path, monkeypatch, capsys):
    out = tmp_path / "small.extxyz"
    monkeypatch.setattr(sys, "argv", ["small_data.py", str(out), "--frames", "3"])
    runpy.run_path(str(FOLDER / "small_data.py"), run_name="__main__")
    assert "3 frames" in capsys.readouterr().out
    frames = read(out, ":")
    assert len(frames) == 3
    for atoms in frames:
        assert {"energy", "forces", "stress"} <= atoms.calc.results.keys()


def test_crystals_of_a_few_elements(tmp_path, monkeypatch, capsys):
    """Of three labelled files: what has other elements, or no oxygen, stays out."""
    made = {"a": bulk("MgO", "rocksalt", a=4.2), "b": bulk("Mg"), "c": bulk("NiO", "rocksalt", 4.2)}
    for name, atoms in made.items():
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((len(atoms), 3)))
        write(tmp_path / f"{name}.extxyz", atoms)
    out = tmp_path / "out.xyz"
    files = [str(path) for path in sorted(tmp_path.glob("*.extxyz"))]
    monkeypatch.setattr(sys, "argv", ["branches_data.py", str(out), *files])
    runpy.run_path(str(FOLDER / "branches_data.py"), run_name="__main__")
    assert "1 frames" in capsys.readouterr().out
    (atoms,) = read(out, ":")
    assert atoms.get_chemical_formula() == "MgO"
    assert atoms.get_potential_energy() == -1.0
