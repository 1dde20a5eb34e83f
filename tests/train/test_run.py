"""train(): what it leaves behind, how it goes on, and what it refuses before step 0."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch
import training
from kill import killed
from safetensors.torch import load_file
from training import settings

import dpa4sim
from dpa4sim.errors import ConfigError, DataError, ResumeError
from dpa4sim.train.directory import read_state
from dpa4sim.train.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return training.store(tmp_path_factory.mktemp("data") / "train.h5")


@pytest.fixture(scope="module")
def calm(data, tmp_path_factory):
    """One run from the first step to the last."""
    return train(settings(data), directory=tmp_path_factory.mktemp("run") / "calm", progress=False)


def weights(directory: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(directory / f"{name}.safetensors")


def assert_same(one: Path, other: Path) -> None:
    """The same weights, averages, moments and validations, bit for bit."""
    for name in ("last", "best"):
        a, b = weights(one, name), weights(other, name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    left, right = flat(read_state(one)["trainer"]), flat(read_state(other)["trainer"])
    assert left.keys() == right.keys()
    for key, value in left.items():
        same = torch.equal(value, right[key]) if torch.is_tensor(value) else value == right[key]
        assert same, key
    assert table(one) == table(other)


def flat(value, prefix=""):
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {k: v for name, inner in items for k, v in flat(inner, f"{prefix}{name}.").items()}


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "elapsed"} for row in rows]


def test_it_learns(data, tmp_path):
    result = train(
        settings(data, 60, run={"validate_every": 20}, optimizer={"lr": 5e-3}),
        directory=tmp_path / "run",
        progress=False,
    )
    rows = table(tmp_path / "run")[1:]
    assert [row["step"] for row in rows] == ["20", "40", "60"]
    first, last = (float(rows[i]["valid_force_mae"]) for i in (0, -1))
    assert last < 0.7 * first
    assert result.errors["force_mae"] == pytest.approx(last, rel=1e-6)


def test_what_it_leaves_behind(calm):
    names = {path.name for path in calm.directory.iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.toml", "log.txt", "train.csv", "last.safetensors", "best.safetensors",
        "state.pt", "curves.png", "parity.png", "report.json",
    }  # fmt: skip
    units = table(calm.directory)[0]
    assert (units["valid_energy_mae"], units["valid_stress_mae"]) == ("meV/atom", "GPa")
    report = json.loads((calm.directory / "report.json").read_text())
    assert report["steps"] == 12
    assert report["training_frames"] == 18
    assert report["validation_frames"] == 6
    for picture in ("curves.png", "parity.png"):
        assert (calm.directory / picture).read_bytes().startswith(b"\x89PNG")
    again = dpa4sim.load(calm.directory / "best.safetensors")
    assert again.card["training"]["settings"]["optimizer"]["name"] == "hybrid_muon"


def test_its_validation_is_what_the_model_says_of_the_frames(calm):
    """Errors of the potential that is given back, computed anew and by hand."""
    split = training.frames(24)
    from dpa4sim.train.build import open_split
    from dpa4sim.train.settings import read_settings

    config = json.loads((calm.directory / "report.json").read_text())["settings"]
    rows = open_split(read_settings(config))[1].frames
    error = [
        abs(calm.potential(split[row].system).energy.item() - split[row].energy) / 4 for row in rows
    ]
    assert calm.errors["energy_mae"] == pytest.approx(1e3 * sum(error) / len(error), rel=1e-4)


def test_a_run_that_is_over_answers_at_once(calm, data):
    again = train(settings(data), directory=calm.directory, progress=False)
    assert again.errors == calm.errors
    assert again.steps == 12


def test_the_order_of_the_frames_is_the_seeds(data, tmp_path, calm):
    other = train(settings(data, run={"seed": 2}), directory=tmp_path / "other", progress=False)
    a, b = weights(calm.directory), weights(other.directory)
    assert not all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_like_one_that_never_was(data, tmp_path):
    options = {"validate_every": 4, "checkpoint_every_s": 0.0}
    started = time.monotonic()
    train(settings(data, run=options), directory=tmp_path / "calm", progress=False)
    lasts = time.monotonic() - started

    def work(folder: Path) -> None:
        train(settings(data, run=options), directory=folder, progress=False)

    for folder in killed(work, tmp_path, times=10, lasts=4 * lasts, seed=3):
        work(folder)
        assert_same(folder, tmp_path / "calm")


def test_sigterm_makes_a_checkpoint(data, tmp_path):
    program = (
        "import sys; from dpa4sim.train.run import train; import tomllib;"
        "train(sys.argv[1], directory=sys.argv[2])"
    )
    asked = settings(data, 100_000, run={"log_every_s": 0.05})
    (tmp_path / "run.toml").write_text(tomli_w.dumps(asked))
    command = [sys.executable, "-c", program, str(tmp_path / "run.toml"), str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "step" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert read_state(tmp_path / "run")["trainer"]["done"] > 0


def test_other_settings_or_data_are_refused(calm, data, tmp_path):
    with pytest.raises(ResumeError, match=r"begun with optimizer\.lr = 0\.0006"):
        train(settings(data, optimizer={"lr": 1e-3}), directory=calm.directory, progress=False)
    other = training.store(tmp_path / "train.h5", seed=1)
    with pytest.raises(ResumeError, match=r"stores\.train|data\.train"):
        train(settings(other), directory=calm.directory, progress=False)
    faster = settings(data, run={"checkpoint_every_s": 1.0})
    assert train(faster, directory=calm.directory, progress=False).steps == 12


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(calm, data, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(calm.directory, older)
    known = tomllib.loads((older / "config.toml").read_text())
    del known["loss"]["magnetic_force"]
    (older / "config.toml").write_text(tomli_w.dumps(known))
    assert train(settings(data), directory=older, progress=False).steps == 12
    with pytest.raises(ResumeError, match=r"begun with loss\.magnetic_force = \[20\.0\]"):
        train(settings(data, loss={"magnetic_force": 1.0}), directory=older, progress=False)


def test_a_folder_with_other_files_is_not_touched(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ResumeError, match="holds other files"):
        train(settings(data), directory=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_named(calm, data, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(calm.directory, copy)
    content = (copy / "state.pt").read_bytes()
    (copy / "state.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ResumeError, match=r"state\.pt is damaged"):
        train(settings(data), directory=copy, progress=False)


def test_steps_that_are_not_finite_are_skipped_and_named(tmp_path):
    """One frame's forces overflow float32: its steps change nothing, until they are too many."""
    sick = training.store(tmp_path / "sick.h5", 8, sick=(2,))
    few = settings(sick, 24, data={"valid_fraction": 0.15, "max_edges": 80})
    result = train(few, directory=tmp_path / "few", progress=False)
    assert result.skipped in (3, 4)  # once an epoch of seven frames
    assert all(value.isfinite().all() for value in weights(result.directory).values())
    all_sick = training.store(tmp_path / "all.h5", 8, sick=tuple(range(8)))
    many = settings(all_sick, 200, run={"max_skipped": 5, "validate_every": 0})
    with pytest.raises(DataError, match=r"not finite in 50 steps in a row.*frame"):
        train(many, directory=tmp_path / "many", progress=False)


@pytest.mark.parametrize(("errors", "score"), [
    ((0.1, 0.2, 0.3), 20 * 0.1 + 20 * 0.2 + 5 * 0.3),
    ((math.nan, 0.2, 0.3), math.inf),  # a prediction that is not finite: labels were checked
    ((0.1, math.inf, 0.3), math.inf),
])  # fmt: skip
def test_a_sick_model_is_never_the_best(data, errors, score):
    from dpa4sim.train.settings import read_settings
    from dpa4sim.train.validation import merit

    found = dict(zip(("energy_mae", "force_length", "virial_mae"), errors, strict=True))
    assert merit(found, read_settings(settings(data))) == pytest.approx(score)


def test_a_term_without_weight_does_not_count(data):
    from dpa4sim.train.settings import read_settings
    from dpa4sim.train.validation import merit

    asked = read_settings(settings(data, loss={"virial": [5.0, 0.0]}))
    found = {"energy_mae": 1.0, "force_length": 1.0, "virial_mae": math.nan}
    assert merit(found, asked) == 40.0


def test_one_process_with_two_batches_a_step(data, tmp_path):
    """Two batches per step give the step of the batch of both."""
    asked = settings(data, 1, schedule={"warmup_steps": 0}, run={"dtype": "float64"})
    asked["data"] |= {"max_edges": 10_000}
    one = train(asked, directory=tmp_path / "one", progress=False)
    asked["data"] |= {"batches_per_step": 3}
    three = train(asked, directory=tmp_path / "three", progress=False)
    a, b = weights(one.directory), weights(three.directory)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"data": {"train": "none.h5"}}, DataError, r"does not exist\. Make one: dpa4sim data convert"),
    ({"data": {"train": __file__}}, DataError, r"is not a store\. Make one"),
    ({"data": {"valid_fraction": 0.0}}, DataError, "validation set is empty"),
    ({"data": {"min_distance": 9.0}}, DataError, "no frame that can be used"),
    ({"model": {"species": ["Cu"]}}, ConfigError, "model.species lacks Au"),
    ({"model": {"chanels": 8}}, ConfigError, "Did you mean 'channels'"),
    ({"model": {"size": "giant"}}, ConfigError, "Choose one of neo"),
    ({"data": {"energy_shifts": {"Zz": 1.0}}}, ConfigError, "Zz"),
])  # fmt: skip
def test_what_is_refused_before_step_0(data, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        train(settings(data, **change), directory=tmp_path / "run", progress=False)


def test_a_loss_on_labels_that_are_not_there_is_refused(tmp_path):
    from dataclasses import replace

    from dpa4sim.data.writer import write_store

    bare = [replace(frame, stress=None) for frame in training.frames(8)]
    write_store(tmp_path / "bare.h5", bare, cutoff=4.0)
    with pytest.raises(DataError, match=r"no training frame has a label 'stress'.*loss\.virial=0"):
        train(settings(tmp_path / "bare.h5"), directory=tmp_path / "run", progress=False)
    without = settings(tmp_path / "bare.h5", loss={"virial": 0})
    result = train(without, directory=tmp_path / "run", progress=False)
    assert math.isnan(result.errors["stress_mae"])
