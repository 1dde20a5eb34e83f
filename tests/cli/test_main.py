"""The command itself: exit codes, speed of its start, and what it says to a wrong verb."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import dpa4sim
from dpa4sim.cli import VERBS, main

HELP_S = 0.5
IMPORT_S = 0.1
HEAVY = ("torch", "numpy", "ase", "pymatgen", "matplotlib", "torch_sim")


def best_of(n: int, *words: str) -> tuple[float, str]:
    """Shortest wall time of a python command, s, and its output; other jobs only lengthen it."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    return min(times), done.stdout


def test_help_is_fast_and_names_every_verb():
    seconds, out = best_of(5, "-m", "dpa4sim", "--help")
    assert all(verb in out for verb in VERBS)
    assert seconds < HELP_S


@pytest.mark.parametrize("statement", ["import dpa4sim", "from dpa4sim.cli import main"])
def test_import_is_instant_and_pulls_in_nothing_heavy(statement):
    code = (
        f"import time, sys; start = time.perf_counter(); {statement}; "
        "print(time.perf_counter() - start, *sys.modules)"
    )
    runs = [best_of(1, "-c", code)[1].split() for _ in range(5)]
    assert not set(HEAVY) & set(runs[0])
    assert min(float(words[0]) for words in runs) < IMPORT_S


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
