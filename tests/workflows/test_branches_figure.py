"""The figure of a run with branches: what its table says is what the runs say."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import training

from dpa4sim.data.store import Store
from dpa4sim.train.run import train


def test_spread_is_the_error_of_no_forces(recipe, tmp_path):
    store = Store(training.store(tmp_path / "a.h5", 8))
    frames = training.frames(8)
    forces = np.concatenate([frame.forces for frame in frames])
    found = recipe("branches_figure").spread(store)
    assert found["force_mae"] == pytest.approx(1e3 * np.abs(forces).mean(), rel=1e-6)
    energy = {z: [] for z in (29, 79)}
    for frame in frames:
        energy[int(frame.system.atomic_numbers[0])].append(frame.energy / 4)
    off = np.concatenate([np.array(values) - np.mean(values) for values in energy.values()])
    assert found["energy_mae"] == pytest.approx(1e3 * np.abs(off).mean(), rel=1e-4)


def test_it_draws_what_the_runs_say(recipe, tmp_path, monkeypatch, capsys):
    data = training.store(tmp_path / "a.h5", 8)
    alone = training.settings(data, 4)
    train(alone, directory=tmp_path / "alone", progress=False)
    several = training.settings(data, 4)
    del several["data"]["train"]
    several["branches"] = {"metals": {"train": str(data)}, "again": {"train": str(data)}}
    result = train(several, directory=tmp_path / "run", progress=False)
    words = [str(tmp_path / "run"), f"metals={tmp_path / 'alone'}", "-o", str(tmp_path / "x.png")]
    monkeypatch.setattr(sys, "argv", ["branches_figure.py", *words])
    recipe("branches_figure").main()
    text = capsys.readouterr().out
    assert f"{result.errors['metals:energy_mae']:.4g}" in text
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
