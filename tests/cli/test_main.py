"""The command itself: exit codes, how little it imports, and what it says to a wrong verb."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dpa4sim
from dpa4sim.cli import VERBS, main

HEAVY = ("torch", "numpy", "ase", "pymatgen", "matplotlib", "torch_sim")


def output_of(*words: str) -> str:
    """What a python command prints."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return done.stdout


def test_help_names_every_verb():
    out = output_of("-m", "dpa4sim", "--help")
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("statement", ["import dpa4sim", "from dpa4sim.cli import main"])
def test_import_pulls_in_nothing_heavy(statement):
    out = output_of("-c", f"import sys; {statement}; print(*sys.modules)")
    assert not set(HEAVY) & set(out.split())


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert dpa4sim.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(("word", "hint"), [("relx", "relax"), ("evla", "eval"), ("ifno", "info")])
def test_wrong_verb_is_told_the_nearest(run, word, hint):
    code, out, err = run(word, "x")
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert f"Did you mean '{hint}'?" in err


def test_far_off_verb_is_told_all(run):
    code, _, err = run("quux")
    assert code == 2
    assert all(verb in err for verb in VERBS)


@pytest.mark.parametrize("words", [[], ["relax"], ["relax", "m", "in"], ["info", "m", "--no"]])
def test_wrong_usage_exits_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: dpa4sim" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_unknown_device_is_one_sentence(run, model):
    code, _, err = run("info", model, "--device", "abacus")
    assert code == 1
    assert err.startswith("error: --device abacus cannot be used. Valid here: cpu")
