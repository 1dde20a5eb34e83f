"""Settings from TOML, from Python and from the command line; and what is refused."""

import json
import re
import tomllib
from dataclasses import asdict, fields
from pathlib import Path

import pytest

import dpa4sim.train.settings as module
from dpa4sim.errors import ConfigError
from dpa4sim.train.settings import Settings, read_settings

PLAIN = {"run": {"steps": 5000}, "data": {"train": "a.h5"}}
TEMPLATE = Path(module.__file__).with_name("template.toml")


def test_the_template_says_every_default_of_every_key():
    """With the comment signs of its optional lines taken away."""
    lines = [re.sub(r"^# (?=[\[a-z_]+\S* ?=|\[)", "", t) for t in TEMPLATE.read_text().splitlines()]
    said = tomllib.loads("\n".join(lines))
    plain = Settings(run=module.Run(steps=100000), data=module.Data(train="train.h5")).to_dict()
    for table, values in said.items():
        if table == "model":
            continue
        if table == "branches":
            (branch,) = values.values()
            default = asdict(module.Branch(train="water.h5"))
            assert branch == json.loads(json.dumps(default))
            continue
        for key, value in values.items():
            default = plain[table][key]
            expected = value if table != "loss" or not isinstance(default, list) else [value]
            assert default == expected or (table, key) in {
                ("run", "compile"),
                ("finetune", "model"),
            }, (table, key)
    for field in fields(Settings):
        if field.name not in ("model", "branches"):
            assert set(said[field.name]) == set(plain[field.name]), field.name


def test_the_template_can_be_run(tmp_path):
    (tmp_path / "run.toml").write_text(TEMPLATE.read_text())
    read = read_settings(tmp_path / "run.toml")
    assert read.data.train == str(tmp_path / "train.h5")
    assert read.data.valid == ""
    assert read.loss.energy == (20.0,)


def test_overrides_come_last():
    read = read_settings(
        PLAIN,
        ["optimizer.lr=3e-4", "run.device=cuda", "data.energy_shifts.O=-3", "loss.force=[2, 9]"],
    )
    assert (read.optimizer.lr, read.run.device) == (3e-4, "cuda")
    assert read.data.energy_shifts == {"O": -3.0}
    assert read.loss.force == (2.0, 9.0)
    assert read_settings(PLAIN).optimizer.lr != 3e-4


@pytest.mark.parametrize(("override", "message"), [
    ("run.stepz=3", "Did you mean 'run.steps'?"),
    ("modell.size=neo", "Did you mean 'model'?"),
    ("optimizer=3", "Write it as optimizer.lr=3e-4"),
    ("run=3", "Write it as"),
    ("run.steps.x=3", "is not a table"),
    ("run.steps=many", "is a str; expected int"),
    ("run.steps=0", "run.steps = 0; it must be at least 1"),
    ("loss.energy=[1, 2, 3]", "takes one weight, or two"),
    ("loss.form=l1", "Choose one of 'mae', 'mse', 'huber'"),
    ("data.valid_fraction=1.5", "from 0 to 0.9"),
    ("optimizer.lr=nan", "optimizer.lr = nan"),
    ("schedule.warmup_steps=9000", "is not below run.steps"),
    ("data.max_edges=0", "one must limit a batch"),
])  # fmt: skip
def test_what_is_refused(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_settings(PLAIN, [override])


def test_a_model_to_start_from_brings_its_own_options():
    with pytest.raises(ConfigError, match=r"remove \[model\]"):
        read_settings({**PLAIN, "model": {"channels": 8}, "finetune": {"model": "seed"}})


def test_files_that_are_not_settings(tmp_path):
    with pytest.raises(ConfigError, match="--template"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[run\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        read_settings(tmp_path / "broken.toml")
    (tmp_path / "short.toml").write_text("[run]\nsteps = 3\n")
    with pytest.raises(ConfigError, match=r"does not say 'data\.train'"):
        read_settings(tmp_path / "short.toml")
