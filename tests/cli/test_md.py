"""dpa4sim md: the table, the file, the exit codes."""

from __future__ import annotations

import numpy as np
import pytest

import dpa4sim

QUICK = ("--steps", 20, "--sample-every", 5, "--frame-every", 10)


def last_line(out: str) -> str:
    return out.strip().splitlines()[-1]


def test_runs_and_writes_what_the_library_gives(run, model, crystals, tmp_path):
    out = tmp_path / "run.h5"
    code, text, err = run("md", model, crystals, "-o", out, "--replicas", 2, *QUICK)
    assert code == 0
    assert last_line(text) == f"4 trajectories: 4 completed. Written to {out}."
    assert "md: 4/4" in err
    rows = text.splitlines()[2:6]
    assert [row.split()[1:5] for row in rows] == [
        ["0", "Si2", "2", "completed"],
        ["1", "Si2", "2", "completed"],
        ["0", "Na4Cl4", "8", "completed"],
        ["1", "Na4Cl4", "8", "completed"],
    ]
    expected = dpa4sim.md(dpa4sim.load(model), crystals, replicas=2, steps=20, sample_every=5)
    with dpa4sim.read_trajectory(out) as trajectory:
        for each in expected:
            frames = trajectory.system(each.index)
            assert frames.step.tolist() == [0, 10, 20]
            np.testing.assert_array_equal(frames.positions[-1], each.batch.positions)


def test_one_temperature_per_structure(run, model, crystals, tmp_path):
    out = tmp_path / "run.h5"
    code, _, _ = run("md", model, crystals, "-o", out, "--temperature", "100,900", *QUICK)
    assert code == 0
    with dpa4sim.read_trajectory(out) as trajectory:
        first, second = (trajectory.observables(i)["temperature"].values[0] for i in (0, 1))
    assert first < 400 < second


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--timestep", "-1"), "timestep=-1.0 cannot be used"),
        (("--temperature", "1,2,3"), "temperature has 3 entries for 2 structures"),
        (("--steps", "0"), "steps=0 cannot be used"),
        (("--replicas", "0"), "replicas=0"),
    ],
)
def test_bad_settings(run, model, crystals, tmp_path, words, complaint):
    code, text, err = run("md", model, crystals, "-o", tmp_path / "run.h5", *words)
    assert (code, text) == (1, "")
    assert complaint in err
    assert list(tmp_path.glob("run*")) == []


def test_an_output_that_exists_is_kept_and_resumed_on_request(run, model, crystals, tmp_path):
    out = tmp_path / "run.h5"
    run("md", model, crystals, "-o", out, *QUICK)
    before = out.read_bytes()
    code, _, err = run("md", model, crystals, "-o", out, *QUICK)
    assert code == 1
    assert "exists" in err
    assert out.read_bytes() == before
    code, text, _ = run("md", model, crystals, "-o", out, "--resume", *QUICK)
    assert code == 0
    assert "2 completed" in last_line(text)


def test_what_cannot_run_is_named_and_does_not_stop_the_others(run, model, crystals, tmp_path):
    broken = tmp_path / "broken.cif"
    broken.write_text("no structure")
    code, text, _ = run("md", model, crystals, broken, "-o", tmp_path / "run.h5", *QUICK)
    assert code == 3
    assert "1 invalid" in last_line(text)
    assert "broken.cif" in text
