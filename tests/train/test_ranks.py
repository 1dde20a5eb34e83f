"""Several processes do what one does with all their batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training
from safetensors.torch import load_file

from dpa4sim.errors import ConfigError
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.run import train

PROGRAM = """
import json, sys
from dpa4sim.train.run import train
with open(sys.argv[1]) as file:
    train(json.load(file), directory=sys.argv[2], progress=False)
"""
SUM_TOLERANCE = 2e-6
"""Two float32 gradients in another order of summation, over six steps."""


def in_processes(asked: dict, directory: Path, world: int = 2) -> None:
    """Run `train` in so many processes, as torchrun starts them."""
    directory.parent.mkdir(exist_ok=True)
    file = directory.parent / "asked.json"
    file.write_text(json.dumps(asked))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = directory.parent / "program.py"
    script.write_text(PROGRAM)
    subprocess.run(
        [*torchrun, f"--nproc-per-node={world}", str(script), str(file), str(directory)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
        capture_output=True,
    )


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    data = training.store(tmp_path / "train.h5")
    asked = training.settings(data, 6, data={"batches_per_step": 2, "max_edges": 400})
    in_processes(asked, tmp_path / "two")
    train(asked, directory=tmp_path / "one", progress=False)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=SUM_TOLERANCE)
    errors = [
        json.loads((tmp_path / name / "report.json").read_text())["validation"]
        for name in ("one", "two")
    ]
    assert errors[0]["force_mae"] == pytest.approx(errors[1]["force_mae"], rel=1e-5)
    lines = (tmp_path / "two" / "train.csv").read_text().splitlines()
    assert len(lines) == 2 + 2  # names, units, a row at steps 5 and 6, each once


@pytest.mark.slow
def test_two_processes_draw_the_noise_of_one(tmp_path):
    """Batch k of a step has the same displaced atoms whoever computes it."""
    data = training.store(tmp_path / "train.h5")
    asked = training.settings(
        data,
        6,
        data={"batches_per_step": 2, "max_edges": 400},
        model={"force_head": "direct"},
        loss={"virial": 0},
    )
    in_processes(asked, tmp_path / "two")
    train(asked, directory=tmp_path / "one", progress=False)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    del one["head.embedding.linear.bias"]  # of six steps' rounding Adam makes steps of full length
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=10 * SUM_TOLERANCE)


def test_one_process_joins_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks.join("cpu", 3) == Ranks()


def test_batches_that_cannot_be_shared_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"batches_per_step = 3 cannot be shared by 2"):
        Ranks.join("cpu", 3)
