"""DeePMD-kit's trainer as the other side: its input for our recipe, whole runs, and timed steps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpa4sim.adapters.deepmd_options import config_to_deepmd
from dpa4sim.config import DPA4Config

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DP_INTRA_OP_PARALLELISM_THREADS": "1",
    "DP_INTER_OP_PARALLELISM_THREADS": "1",
    "DEVICE": "cpu",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
START_WORKER = Path(__file__).with_name("deepmd_start.py")
SHOWN_STEP = re.compile(r"Batch\s+(\d+): total wall time")
TESTED = re.compile(r"(Energy RMSE/Natoms|Force\s+RMSE)\s*:\s*([-+.\deE]+)")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
TIMED = 5
"""Steps in one turn; DeePMD-kit says where it is after each."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both trainers are told.

    Args:
        steps: of one frame each.
        warmup_steps: linear, from 0.2 of `lr`.
        lr: of the plateau; a cosine takes the last 65 % of the steps to `final_lr`.
        weight_decay: of HybridMuon; its other numbers are the defaults of both, which agree.
        clip: largest norm of the gradient.
        energy: weight of the energy MAE per atom; `force` of the mean force error length.
    """

    steps: int
    warmup_steps: int
    lr: float = 1e-3
    final_lr: float = 1e-6
    weight_decay: float = 1e-3
    clip: float = 5.0
    energy: float = 20.0
    force: float = 20.0


def first_weights(
    python: Path, config: DPA4Config, seed: int, shifts: Sequence[float], path: Path
) -> None:
    """A checkpoint of the network as DeePMD-kit would begin with it, but for the energy shifts."""
    model = config_to_deepmd(config, "float32")
    model["descriptor"] |= {"seed": seed, "use_amp": False}
    model["fitting_net"]["seed"] = seed
    source = path.with_suffix(".json")
    source.write_text(json.dumps(model, indent=1))
    _run([python, START_WORKER, source, path, *map(str, shifts)], path.with_suffix(".log"))


def input_of(
    config: DPA4Config,
    recipe: Recipe,
    seed: int,
    train: Sequence[Path],
    *,
    save_every: int,
    show_every: int,
    compiled: bool = False,
) -> dict[str, Any]:
    """`dp --pt train`'s input file."""
    model = config_to_deepmd(config, "float32") | {"use_compile": compiled}
    model["descriptor"] |= {"use_amp": False, "seed": seed}
    weights = {"e": recipe.energy, "f": recipe.force, "v": 0.0}
    return {
        "model": model,
        "optimizer": {"type": "HybridMuon", "weight_decay": recipe.weight_decay},
        "learning_rate": {
            "type": "wsd",
            "start_lr": recipe.lr,
            "stop_lr": recipe.final_lr,
            "warmup_steps": recipe.warmup_steps,
            "warmup_start_factor": 0.2,
            "decay_phase_ratio": 0.65,
            "decay_type": "cosine",
        },
        "loss": {
            "type": "ener",
            "loss_func": "mae",
            "f_use_norm": True,
            **{f"start_pref_{key}": value for key, value in weights.items()},
            **{f"limit_pref_{key}": value for key, value in weights.items()},
        },
        "training": {
            "training_data": {"systems": [str(path) for path in train], "batch_size": 1},
            "numb_steps": recipe.steps,
            "seed": seed,
            "disp_freq": show_every,
            "save_freq": save_every,
            "max_ckpt_keep": recipe.steps,
            "gradient_max_norm": recipe.clip,
        },
    }


def train(dp: Path, folder: Path, values: dict[str, Any], start: Path) -> None:
    """A whole run in `folder`."""
    (folder / "input.json").write_text(json.dumps(values, indent=1))
    _run(_command(dp, start), folder / "log", folder)


def test(dp: Path, checkpoint: Path, system: Path, frames: int) -> dict[str, float]:
    """What DeePMD-kit itself finds: energy RMSE (eV/atom) and force RMSE (eV/Å)."""
    log = checkpoint.with_suffix(".test.log")
    words = ["--pt", "test", "-m", checkpoint, "-s", system, "-n", frames]
    _run([dp, *words], log)
    found = dict(TESTED.findall(log.read_text()))
    keys = {"Energy RMSE/Natoms": "energy_rmse", "Force  RMSE": "force_rmse"}
    return {name: float(found[key]) for key, name in keys.items()}


class PausedTrainer(AbstractContextManager["PausedTrainer"]):
    """A run of DeePMD-kit that moves only while it is asked for steps; its process sleeps between.

    Args:
        values: its input, which shows a line every `TIMED` steps and saves nothing on the way.
    """

    def __init__(self, dp: Path, folder: Path, values: dict[str, Any], start: Path):
        (folder / "input.json").write_text(json.dumps(values, indent=1))
        self.process = subprocess.Popen(
            [str(word) for word in _command(dp, start)],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.step = 0
        self.warm_up = self.turn() * TIMED
        """CPU seconds of its start and first steps, compilation included."""

    def turn(self) -> float:
        """`TIMED` more steps; CPU seconds of each."""
        self.process.send_signal(signal.SIGCONT)
        before, target = self._cpu(), (self.step // TIMED + 1) * TIMED
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = SHOWN_STEP.search(line)
            if found and int(found[1]) >= target:
                self.process.send_signal(signal.SIGSTOP)
                self.step = int(found[1])
                return (self._cpu() - before) / TIMED
        raise RuntimeError(f"`dp train` ended early, status {self.process.wait()}.")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _cpu(self) -> float:
        """Seconds so far, compilers included; a sleeping process uses none."""
        time.sleep(0.02)  # the signal has arrived
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / CLOCK_TICKS


def _command(dp: Path, start: Path) -> list[Any]:
    options = ["--init-model", start, "--skip-neighbor-stat"]
    return [dp, "--pt", "train", "input.json", *options]


def _run(command: Sequence[Any], log: Path, folder: Path | None = None) -> None:
    """A process that must succeed, with what it says in a file."""
    with log.open("w") as file:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed with status {done.returncode}; see {log}.")
