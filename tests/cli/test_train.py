"""dpa4sim train: the table, the template, overrides anywhere, errors in a sentence."""

import tomllib

import pytest
import tomli_w
import training

from dpa4sim.cli import ERROR, GOOD, main


@pytest.fixture
def toml(tmp_path):
    asked = training.settings(training.store(tmp_path / "train.h5", 16), 6)
    asked["data"]["train"] = "train.h5"  # beside the file
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(asked))
    return path


def test_it_trains_and_prints_the_errors(toml, capsys):
    assert main(["train", str(toml), "--quiet", "optimizer.lr=1e-3"]) == GOOD
    out, err = capsys.readouterr()
    assert "force mae" in out
    assert "meV/Å" in out
    assert "6 steps; best weights:" in out
    assert err == ""
    folder = toml.with_suffix("")
    assert tomllib.loads((folder / "config.toml").read_text())["optimizer"]["lr"] == 1e-3
    assert "validation at step 6" in (folder / "log.txt").read_text()


def test_overrides_may_come_after_options(toml, tmp_path, capsys):
    words = ["train", str(toml), "-o", str(tmp_path / "else"), "run.steps=4", "run.log_every_s=0"]
    assert main(words) == GOOD
    out, err = capsys.readouterr()
    assert "4 steps;" in out
    assert "step 3/4" in err
    assert "left" in err


def test_the_template_goes_to_stdout(capsys):
    assert main(["train", "--template"]) == GOOD
    assert tomllib.loads(capsys.readouterr().out)["run"]["steps"] == 100_000


@pytest.mark.parametrize(("words", "message"), [
    ([], "--template > run.toml"),
    (["none.toml"], "There is no none.toml"),
    (["TOML", "optimizer.lrr=1"], "Did you mean 'optimizer.lr'?"),
    (["TOML", "run.device=abacus"], "cannot be used. Valid here: cpu"),
    (["TOML", "data.train=none.h5"], "does not exist"),
])  # fmt: skip
def test_errors_are_sentences(toml, capsys, words, message):
    assert main(["train", *(str(toml) if word == "TOML" else word for word in words)]) == ERROR
    assert message in capsys.readouterr().err
    assert not toml.with_suffix("").exists()
