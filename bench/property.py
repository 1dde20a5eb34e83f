"""Training on a property beside DeePMD-kit's trainer: one network, one recipe, the same steps.

    python -m bench property --qm9 QM9 --deepmd .peers/deepmd/bin/python --work RUNS

QM9 holds three systems of 80 molecules in DeePMD-kit's format, with labels band_prop.npy (HOMO,
LUMO, gap in Hartree).  The last 16 of each validate, the others train.  A step sees 8 molecules;
both sides have HybridMuon with Magma, the WSD schedule, the reference's smooth MAE, clipping and
float32, and no average of the weights; each starts from first weights of its own by the same rules.

What is not the same: the order of the frames (DeePMD-kit draws 8 of one system, ours mixes the
systems and sees each frame once per epoch), and the precision of Muon's products on a CPU.  All
errors are those of `dpa4sim.load_property` on the same frames; `dp test` confirms one of them.
Finished runs stay in RUNS, so that a stopped bench goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.deepmd_trainer import ENVIRONMENT, Recipe, input_of
from bench.measure import company
from bench.record import save
from dpa4sim.config import DPA4Config, PropertyConfig
from dpa4sim.data.frame import LabelKeys
from dpa4sim.data.read import read_frames
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.property import load_property
from dpa4sim.train import train
from dpa4sim.train.build import Split
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.validation import validation_errors

SYSTEMS = ("data_0", "data_1", "data_2")
LABEL = "band_prop"
VALID_FRAMES = 16
FRAMES_PER_STEP = 8
LARGEST_MOLECULE = 24
SIDES = ("deepmd", "dpa4sim")
TESTED = re.compile(r"PROPERTY (MAE|RMSE)\s*: ([-+.\deE]+)")


def network() -> DPA4Config:
    """Small, all branches of the default network, and a head of three numbers."""
    head = PropertyConfig(name=LABEL, task_dim=3, intensive=True, hidden=(64, 64))
    return DPA4Config(
        species=("H", "C", "N", "O"),
        channels=32,
        max_degree=2,
        n_blocks=2,
        so2_layers=2,
        property_head=head,
    )


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    Args:
        qm9: folder of the systems.
        python: of DeePMD-kit's environment.
        work: folder of the runs.
    """

    qm9: Path
    python: Path
    work: Path
    recipe: Recipe

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        keys = LabelKeys(properties=(LABEL,))
        for name, rows in (
            ("train", slice(None, -VALID_FRAMES)),
            ("valid", slice(-VALID_FRAMES, None)),
        ):
            for system in SYSTEMS:
                part_of(self.qm9 / system, self.work / name / system, rows)
            if not self.store_path(name).exists():
                folders = [str(self.work / name / system) for system in SYSTEMS]
                write_store(self.store_path(name), read_frames(folders, keys))

    def store_path(self, name: str) -> Path:
        """Of the training or the validation frames."""
        return self.work / f"{name}.h5"

    def input(self, seed: int) -> dict[str, Any]:
        """Of `dp --pt train`."""
        systems = [(self.work / "train" / system).resolve() for system in SYSTEMS]
        steps = self.recipe.steps
        values = input_of(network(), self.recipe, seed, systems, save_every=steps, show_every=steps)
        values["model"]["fitting_net"]["seed"] = seed
        values["loss"] = {"type": "property", "metric": ["mae", "rmse"]}
        values["training"]["training_data"]["batch_size"] = FRAMES_PER_STEP
        return values

    def settings(self, seed: int) -> dict[str, Any]:
        """Of our trainer."""
        recipe, stores = self.recipe, ("train", "valid")
        return {
            "run": {"steps": recipe.steps, "seed": seed, "validate_every": 0},
            "data": {
                **{name: str(self.store_path(name)) for name in stores},
                "max_edges": 0,
                "max_atoms": FRAMES_PER_STEP * LARGEST_MOLECULE - 8,
            },
            "model": network().to_dict(),
            "optimizer": {
                "lr": recipe.lr,
                "weight_decay": recipe.weight_decay,
                "clip": recipe.clip,
                "average": 0.0,
            },
            "schedule": {"warmup_steps": recipe.warmup_steps, "final_lr": recipe.final_lr},
        }


def part_of(source: Path, target: Path, rows: slice) -> None:
    """Some frames of a DeePMD system as a system of its own."""
    if target.exists():
        return
    folder = target / "set.000000"
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    for file in (source / folder.name).glob("*.npy"):
        np.save(folder / file.name, np.load(file)[rows])


def run_of(bench: Bench, side: str, seed: int) -> dict[str, Any]:
    """Errors of one run on the validation frames; made only if `bench.work` does not have it."""
    folder = bench.work / f"{side}-{seed}"
    answer = folder / "errors.json"
    if answer.exists():
        found: dict[str, Any] = json.loads(answer.read_text())
        return found
    before = sum(os.times()[:4])
    if side == "deepmd":
        model = folder / f"model.ckpt-{bench.recipe.steps}.pt"
        if not model.exists():
            folder.mkdir(exist_ok=True)
            (folder / "input.json").write_text(json.dumps(bench.input(seed), indent=1))
            words = ["--pt", "train", "input.json", "--skip-neighbor-stat"]
            dp(bench, words, folder, folder / "log")
    else:
        model = train(bench.settings(seed), directory=folder, progress=False).directory
        model = model / "best.safetensors"
    spent = sum(os.times()[:4]) - before
    store = Store(bench.store_path("valid"))
    errors = validation_errors(load_property(model), Split(store, np.arange(len(store))), Ranks())
    found = {"model": str(model), "errors": errors, "training_cpu_s": spent}
    answer.write_text(json.dumps(found, indent=1))
    return found


def dp(bench: Bench, words: Sequence[str], folder: Path, log: Path) -> str:
    """One of DeePMD-kit's own commands, and what it says."""
    with log.open("w") as file:
        done = subprocess.run(
            [str(bench.python.with_name("dp")), *words],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"dp {words[1]} failed with status {done.returncode}; see {log}.")
    return log.read_text()


def confirmed(bench: Bench, run: Mapping[str, Any]) -> dict[str, float]:
    """MAE and RMSE that DeePMD-kit itself finds for its checkpoint, over all three systems."""
    words = ["--pt", "test", "-m", run["model"], "-s", str(bench.work / "valid"), "-n", "1000"]
    text = dp(bench, words, bench.work, bench.work / "test.log")
    return {name.lower(): float(value) for name, value in TESTED.findall(text)[-2:]}


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Errors of each side over the seeds, and as a share of DeePMD-kit's."""
    rows: dict[str, Any] = {}
    for side, found in runs.items():
        row: dict[str, Any] = {"seeds": len(found)}
        for name in ("property_mae", "property_rmse"):
            values = [one["errors"][name] for one in found]
            row[name] = statistics.mean(values)
            row[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
            if "deepmd" in rows:
                row[f"{name}_share"] = row[name] / rows["deepmd"][name]
        row["training_cpu_s"] = statistics.mean(one["training_cpu_s"] for one in found)
        rows[side] = row
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench property",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--qm9", type=Path, required=True)
    parser.add_argument("--deepmd", type=Path, default=Path(".peers/deepmd/bin/python"))
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the runs")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args(arguments)
    recipe = Recipe(steps=asked.steps, warmup_steps=asked.steps // 10, lr=1e-3)
    bench = Bench(asked.qm9, asked.deepmd, asked.work.resolve(), recipe)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in range(1, asked.seeds + 1):
        for side in SIDES:
            runs[side].append(run_of(bench, side, seed))
            errors = runs[side][-1]["errors"]
            print(f"seed {seed} {side:8} MAE {errors['property_mae']:.5f}  RMSE "
                  f"{errors['property_rmse']:.5f}  {runs[side][-1]['training_cpu_s']:.0f} s cpu",
                  flush=True)  # fmt: skip
    rows, test = summary(runs), confirmed(bench, runs["deepmd"][0])
    for side, row in rows.items():
        print(
            f"{side:8} MAE {row['property_mae']:.5f} +- {row['property_mae_spread']:.5f}  RMSE "
            f"{row['property_rmse']:.5f} +- {row['property_rmse_spread']:.5f} Hartree"
        )
    print(f"dp test of deepmd's first run: MAE {test['mae']:.5f}  RMSE {test['rmse']:.5f}")
    each = {side: [one["errors"] for one in found] for side, found in runs.items()}
    record = {
        "sides": rows,
        "each": each,
        "dp_test": test,
        "frames_per_step": FRAMES_PER_STEP,
        "recipe": {"steps": recipe.steps, "lr": recipe.lr, "warmup_steps": recipe.warmup_steps},
        "network": network().to_dict(),
        "load_per_core": company(),
    }
    print(save("property", record))
