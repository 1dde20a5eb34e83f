"""The yardstick and the ablation: both sides are told the same, and what is told is what is shown.

DeePMD-kit is a stand-in here: its `dp` hands back the weights it was given.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import ablation, yardstick
from bench.deepmd_trainer import TIMED, PausedTrainer, Recipe
from dpa4sim.adapters.deepmd import write_deepmd
from dpa4sim.adapters.deepmd_options import config_from_deepmd
from dpa4sim.data.store import Store
from dpa4sim.model import DPA4
from dpa4sim.potential import load
from dpa4sim.train.build import model_config
from dpa4sim.train.settings import read_settings

CUTOFF = 2.5
DP = """#!{python}
import json, shutil, sys, time
from pathlib import Path
words = sys.argv[1:]
if "test" in words:
    print("Energy RMSE/Natoms : 1.000000e-03 eV\\nForce  RMSE        : 2.000000e-02 eV/A")
    sys.exit()
training = json.loads(Path("input.json").read_text())["training"]
start = words[words.index("--init-model") + 1]
for step in range(1, training["numb_steps"] + 1):
    Path("step").write_text(str(step))
    if step % training["disp_freq"] == 0 or step == 1:
        print(f"INFO    Batch {{step:7d}}: total wall time = 0.01 s", flush=True)
    if step % training["save_freq"] == 0 or step == training["numb_steps"]:
        shutil.copy(start, f"model.ckpt-{{step}}.pt")
    begun = time.process_time()
    while time.process_time() - begun < 0.02:
        pass
"""


@pytest.fixture(scope="module")
def water(tmp_path_factory):
    """Frames of three molecules each, in DeePMD-kit's format, labels at random."""
    folder, rng = tmp_path_factory.mktemp("water"), np.random.default_rng(0)
    grid = 1.6 * np.stack(np.meshgrid(*[np.arange(3)] * 2, [0], indexing="ij"), -1).reshape(-1, 3)
    for name in (*yardstick.TRAIN, yardstick.VALID):
        inside = folder / name / "set.000"
        inside.mkdir(parents=True)
        (folder / name / "type_map.raw").write_text("O\nH\n")
        (folder / name / "type.raw").write_text("\n".join("011011011"))
        coord = grid + 0.1 * rng.normal(size=(3, 9, 3))
        np.save(inside / "coord.npy", coord.reshape(3, 27))
        np.save(inside / "box.npy", np.tile((5.0 * np.eye(3)).ravel(), (3, 1)))
        np.save(inside / "energy.npy", -30 + rng.normal(size=3))
        np.save(inside / "force.npy", rng.normal(size=(3, 27)))
    return folder


@pytest.fixture
def bench(water, tmp_path):
    """Three steps, with a stand-in for `dp` and first weights for two seeds."""
    dp = tmp_path / "bin" / "dp"
    dp.parent.mkdir()
    dp.write_text(DP.format(python=sys.executable))
    dp.chmod(0o755)
    recipe = Recipe(steps=3, warmup_steps=1)
    made = yardstick.Bench(
        water, dp.with_name("python"), tmp_path / "runs", yardstick.network(CUTOFF), recipe
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = DPA4(made.config).state_dict()
        write_deepmd(made.config, state, made.work / f"start-{seed}.pt")
    return made


def test_both_trainers_are_told_the_same(bench):
    odd = {"lr": 2e-3, "final_lr": 3e-6, "weight_decay": 4e-3, "clip": 6.0, "energy": 7.0}
    bench = replace(bench, recipe=Recipe(steps=30, warmup_steps=8, force=9.0, **odd))
    theirs = bench.input(7, save_every=1, show_every=1)
    ours = read_settings(bench.settings("dpa4sim alone", 7))
    assert config_from_deepmd(theirs["model"], 1.2, "input") == model_config(ours.model, ())
    rate, loss, training = (theirs[key] for key in ("learning_rate", "loss", "training"))
    schedule = ours.schedule
    assert (rate["start_lr"], rate["stop_lr"]) == (ours.optimizer.lr, schedule.final_lr)
    assert rate["warmup_steps"] == schedule.warmup_steps
    assert rate["warmup_start_factor"] == schedule.start_factor
    assert (rate["type"], rate["decay_phase_ratio"]) == (schedule.name, schedule.decay_fraction)
    assert theirs["optimizer"]["type"] == "HybridMuon"
    assert ours.optimizer.name == "hybrid_muon"
    assert theirs["optimizer"]["weight_decay"] == ours.optimizer.weight_decay
    assert (loss["loss_func"], loss["f_use_norm"]) == (ours.loss.form, True)
    for letter, name in zip("efv", ("energy", "force", "virial"), strict=True):
        for end in ("start", "limit"):
            assert (loss[f"{end}_pref_{letter}"],) == getattr(ours.loss, name)
    assert training["gradient_max_norm"] == ours.optimizer.clip
    assert training["numb_steps"] == ours.run.steps
    assert training["training_data"]["batch_size"] == 1
    assert ours.data.max_atoms == Store(ours.data.train).n_atoms.max()
    assert not training.get("enable_ema", False)
    assert ours.optimizer.average == 0


def test_both_trainers_begin_with_the_same_weights(bench):
    trainer = yardstick.our_trainer(bench.settings("dpa4sim", 2), bench.work)
    start = load(bench.start(2)).model.state_dict()
    mine = trainer.model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in start.items())


def test_the_yardstick_shows_what_was_trained(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(yardstick, "save", None)
    words = ["--water", bench.water, "--deepmd", bench.python, "--work", bench.work, "--steps", 3]
    words += ["--cutoff", CUTOFF, "--seeds", 2, "--turns", 0, "--plot", tmp_path / "plot.png"]
    yardstick.main([*map(str, words), "--quick"])
    first = capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 0
    assert "dp test of seed 1: energy_rmse 1.000, force_rmse 20.000" in first
    table = yardstick.all_runs(bench, yardstick.SIDES, 2)
    rows = yardstick.summary(table)
    valid = Store(bench.store_path("valid"))
    untrained = [yardstick.errors_of(load(bench.start(k)), valid, 3)["force_rmse"] for k in (1, 2)]
    assert [one["final"]["force_rmse"] for one in table["deepmd"]] == pytest.approx(untrained)
    assert rows["deepmd"]["force_rmse"] == pytest.approx(np.mean(untrained))
    assert rows["dpa4sim"]["force_rmse_share"] != 1
    assert [point["step"] for point in table["dpa4sim"][0]["curve"]] == [1, 2, 3]
    again = capsys.readouterr().out  # nothing was trained again
    assert again.splitlines() == [line for line in first.splitlines() if line.startswith("seed")]


def test_a_trainer_sleeps_between_its_turns(bench, tmp_path):
    values = bench.input(1, save_every=1000, show_every=TIMED)
    values["training"]["numb_steps"] = 500
    with PausedTrainer(bench.dp, tmp_path, values, bench.start(1)) as trainer:
        assert trainer.step == TIMED
        assert 0.01 < trainer.turn() < 0.1
        assert trainer.step == 2 * TIMED
        before = int(Path(tmp_path / "step").read_text())
        time.sleep(0.3)
        assert int(Path(tmp_path / "step").read_text()) == before < 3 * TIMED


def test_the_ablation_undoes_one_choice_at_a_time(water, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ablation, "save", None)
    asked = []

    def watched(settings, **options):
        asked.append(settings)
        return train(settings, **options)

    train = ablation.train
    monkeypatch.setattr(ablation, "train", watched)
    monkeypatch.setitem(ablation.NETWORK, "cutoff", CUTOFF)
    words = ["--water", water, "--work", tmp_path, "--steps", 2, "--seeds", 1]
    ablation.main([*map(str, words), "--plot", str(tmp_path / "plot.png"), "--quick"])
    reference, *undone = asked
    for settings, variant in zip(undone, list(ablation.VARIANTS)[1:], strict=True):
        changed = ablation.VARIANTS[variant]
        for table, values in settings.items():
            assert values == reference[table] | changed.get(table, {})
        assert settings != reference
    shown = capsys.readouterr().out
    assert all(variant in shown for variant in ablation.VARIANTS)
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_ratios_go_seed_by_seed():
    runs = {
        "reference": [
            {"energy_mae": 1.0, "force_mae": 10.0},
            {"energy_mae": 2.0, "force_mae": 20.0},
        ],
        "scatter": [{"energy_mae": 2.0, "force_mae": 10.0}, {"energy_mae": 2.0, "force_mae": 30.0}],
    }
    row = ablation.summary(runs)["scatter"]
    assert row["energy_mae_ratios"] == [2.0, 1.0]
    assert row["force_mae_ratios"] == [1.0, 1.5]
    assert row["force_mae"] == 20.0
