"""The trainer beside DeePMD-kit's: one network, one recipe, the same number of steps.

    python -m bench yardstick --water WATER --deepmd .peers/deepmd/bin/python --work RUNS

WATER holds the DFT water frames in DeePMD-kit's format: data_0, data_1 and data_2 train, data_3
validates.  A step sees one frame of 192 atoms.  Both sides have HybridMuon with Magma, the WSD
schedule, the MAE of the energy per atom and of the length of the force error, clipping and float32;
weight averages are off (after a few hundred steps DeePMD-kit's would still be made of the first
weights).

    deepmd         `dp --pt train`
    dpa4sim        `dpa4sim.train` from the very first weights and energy shifts that DeePMD-kit has
    dpa4sim alone  the same from first weights of its own

What is not the same: the order of the frames (DeePMD-kit draws them, ours come once per epoch) and
the precision of Muon's products on a CPU (DeePMD-kit's are half precision).  All errors are those
of `dpa4sim.Potential` on the same frames, DeePMD-kit's checkpoints included; `dp test` confirms
them once.  Finished runs stay in RUNS, so that a stopped bench goes on.

Time per step is of the process (CPU seconds, one thread) at 6 Å, in turns of five steps; the other
side sleeps meanwhile.  --compiled compares the compiled paths as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import deepmd_trainer
from bench.deepmd_trainer import TIMED, PausedTrainer, Recipe
from bench.measure import company
from bench.record import save
from dpa4sim.config import DPA4Config
from dpa4sim.data.read import read_frames
from dpa4sim.data.statistics import energy_shifts
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.kernels.workspace import keep_pages
from dpa4sim.plots import DPI, INK, PALETTE
from dpa4sim.potential import Potential, load
from dpa4sim.train.build import Split, open_split
from dpa4sim.train.loop import Trainer
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.run import TrainingRun
from dpa4sim.train.settings import read_settings
from dpa4sim.train.validation import validation_errors

ROOT = Path(__file__).parents[1]
TRAIN, VALID = ("data_0", "data_1", "data_2"), "data_3"
SIDES = ("deepmd", "dpa4sim", "dpa4sim alone")
TIMED_CUTOFF = 6.0
"""Å, at which the time per step is taken, whatever the runs have."""
POINTS = 6
"""Checkpoints of a run that make its curve."""
CURVE_FRAMES = 8
SHOWN = {"energy_rmse": "energy RMSE (meV/atom)", "force_rmse": "force RMSE (meV/Å)"}


def network(cutoff: float) -> DPA4Config:
    """Small, all branches of the default network."""
    return DPA4Config(
        species=("H", "O"), cutoff=cutoff, channels=32, max_degree=2, n_blocks=2, so2_layers=2
    )


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    Args:
        water: folder of the frames.
        python: of DeePMD-kit's environment.
        work: folder of the runs.
    """

    water: Path
    python: Path
    work: Path
    config: DPA4Config
    recipe: Recipe

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        for name, parts in (("train", TRAIN), ("valid", (VALID,))):
            if not self.store_path(name).exists():
                folders = [str(self.water / part) for part in parts]
                write_store(self.store_path(name), read_frames(folders))

    @property
    def dp(self) -> Path:
        """DeePMD-kit's command."""
        return self.python.with_name("dp")

    @property
    def curve_every(self) -> int:
        """Steps between two points of a curve."""
        return max(self.recipe.steps // POINTS, 1)

    def store_path(self, name: str) -> Path:
        """Of the training or the validation frames."""
        return self.work / f"{name}.h5"

    def start(self, seed: int) -> Path:
        """First weights of DeePMD-kit's making, with the energy shifts that we fit."""
        path = self.work / f"start-{seed}.pt"
        if not path.exists():
            shifts = energy_shifts(Store(self.store_path("train")), None, self.config.species)
            deepmd_trainer.first_weights(self.python, self.config, seed, shifts.tolist(), path)
        return path

    def input(self, seed: int, **options: Any) -> dict[str, Any]:
        """Of `dp --pt train`."""
        systems = [(self.water / part).resolve() for part in TRAIN]
        return deepmd_trainer.input_of(self.config, self.recipe, seed, systems, **options)

    def settings(self, side: str, seed: int, compiled: bool = False) -> dict[str, Any]:
        """Of our trainer."""
        recipe = self.recipe
        first: dict[str, Any] = {"model": self.config.to_dict()}
        if side != "dpa4sim alone":
            first = {"finetune": {"model": str(self.start(seed)), "refit_shifts": False}}
        stores = {name: str(self.store_path(name)) for name in ("train", "valid")}
        one_frame = int(Store(self.store_path("train")).n_atoms.max())
        return {
            "run": {
                "steps": recipe.steps,
                "seed": seed,
                "compile": compiled,
                "validate_every": 0,
                "checkpoint_every_s": 1e9,
            },
            "data": {**stores, "max_edges": 0, "max_atoms": one_frame},
            "loss": {"energy": recipe.energy, "force": recipe.force, "virial": 0.0},
            "optimizer": {
                "lr": recipe.lr,
                "weight_decay": recipe.weight_decay,
                "clip": recipe.clip,
                "average": 0.0,
            },
            "schedule": {"warmup_steps": recipe.warmup_steps, "final_lr": recipe.final_lr},
            **first,
        }


def errors_of(potential: Potential, store: Store, most: int) -> dict[str, float]:
    """RMSE in meV/atom and meV/Å on up to `most` frames, evenly over the store."""
    rows = np.unique(np.linspace(0, len(store) - 1, most).round().astype(int))
    found = validation_errors(potential, Split(store, rows), Ranks())
    return {name: 1e3 * found[name] for name in SHOWN}


def run_of(bench: Bench, side: str, seed: int) -> dict[str, Any]:
    """Curve and final errors of one run; made only if `bench.work` does not have it."""
    folder = bench.work / f"{side.replace(' ', '-')}-{seed}"
    answer = folder / "errors.json"
    if answer.exists():
        found: dict[str, Any] = json.loads(answer.read_text())
        return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    begun = cpu()
    if side == "deepmd":
        values = bench.input(
            seed, save_every=bench.curve_every, show_every=max(bench.curve_every // 5, 1)
        )
        deepmd_trainer.train(bench.dp, folder, values, bench.start(seed))
        checkpoints = {step: folder / f"model.ckpt-{step}.pt" for step in steps_of(bench)}
    else:
        checkpoints = train_with_checkpoints(bench, side, seed, folder)
    spent = cpu() - begun
    valid = Store(bench.store_path("valid"))
    curve = [
        {"step": step, **errors_of(load(path), valid, CURVE_FRAMES)}
        for step, path in checkpoints.items()
    ]
    final = errors_of(load(checkpoints[bench.recipe.steps]), valid, len(valid))
    found = {"curve": curve, "final": final, "training_cpu_s": spent}
    answer.write_text(json.dumps(found, indent=1))
    return found


def steps_of(bench: Bench) -> list[int]:
    """Where the curves have points."""
    every, last = bench.curve_every, bench.recipe.steps
    return sorted({*range(every, last + 1, every), last})


def train_with_checkpoints(bench: Bench, side: str, seed: int, folder: Path) -> dict[int, Path]:
    """A run of ours, its weights kept at every point of the curve."""
    checkpoints = {step: folder / f"{step}.safetensors" for step in steps_of(bench)}
    trainer = our_trainer(bench.settings(side, seed), folder)
    for step in trainer.steps():
        if step in checkpoints:
            Potential(copy.deepcopy(trainer.model)).save(checkpoints[step])
    return checkpoints


def our_trainer(settings: Mapping[str, Any], folder: Path) -> Trainer:
    """Our training loop, ready for its first step."""
    asked = read_settings(settings)
    return TrainingRun(asked, *open_split(asked), Ranks(), folder, None, quiet=True).trainer


def times_of(bench: Bench, compiled: bool, turns: int) -> dict[str, Any]:
    """`step_times`, measured only if `bench.work` does not have them."""
    answer = bench.work / f"times-{'compiled' if compiled else 'eager'}.json"
    if not answer.exists():
        answer.write_text(json.dumps(step_times(bench, compiled, turns), indent=1))
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def step_times(bench: Bench, compiled: bool, turns: int) -> dict[str, Any]:
    """CPU seconds per step of both sides in turns, and of the first steps of each."""
    recipe = replace(bench.recipe, steps=TIMED * (turns + 2))
    work, config = bench.work / "timing", network(TIMED_CUTOFF)
    longest = replace(bench, recipe=recipe, work=work, config=config)
    keep_pages()  # as `dpa4sim train` does
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start, never = longest.start(1), longest.recipe.steps + 1
        values = longest.input(1, save_every=never, show_every=TIMED, compiled=compiled)
        before = cpu()
        steps = our_trainer(longest.settings("dpa4sim", 1, compiled), folder).steps()
        turn_of(steps)
        first = {"dpa4sim": cpu() - before}
        with PausedTrainer(longest.dp, folder, values, start) as theirs:
            first["deepmd"] = theirs.warm_up
            rounds = [{"deepmd": theirs.turn(), "dpa4sim": turn_of(steps)} for _ in range(turns)]
    rows = {
        side: {
            "cpu_s": statistics.median(one[side] for one in rounds),
            "cpu_s_min": min(one[side] for one in rounds),
            "first_steps_cpu_s": first[side],
        }
        for side in ("deepmd", "dpa4sim")
    }
    ratio = statistics.median(one["deepmd"] / one["dpa4sim"] for one in rounds)
    about = {"compiled": compiled, "cutoff": TIMED_CUTOFF, "turns": turns}
    return {**rows, "times_faster": ratio, **about, "load_per_core": company()}


def turn_of(steps: Iterator[int]) -> float:
    """One turn of our trainer; CPU seconds of each step."""
    before = cpu()
    for _ in range(TIMED):
        next(steps)
    return (cpu() - before) / TIMED


def cpu() -> float:
    """CPU seconds of this process so far, compilers included."""
    return sum(os.times()[:4])


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Final errors of each side over the seeds, and as a share of DeePMD-kit's."""
    rows: dict[str, Any] = {}
    for side, found in runs.items():
        row: dict[str, Any] = {"seeds": len(found)}
        for name in SHOWN:
            values = [one["final"][name] for one in found]
            row[name] = statistics.mean(values)
            row[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
            if "deepmd" in rows:
                row[f"{name}_share"] = row[name] / rows["deepmd"][name]
        rows[side] = row
    return rows


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Validation errors over the steps: the mean over the seeds, and a band around all of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.8), dpi=DPI, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 2), SHOWN.items(), strict=True):
        for (side, found), colour in zip(runs.items(), PALETTE, strict=False):
            steps = [point["step"] for point in found[0]["curve"]]
            values = np.array([[point[name] for point in one["curve"]] for one in found])
            text = f"{side}, {len(found)} seeds"
            axes.plot(steps, values.mean(0), color=colour, marker=".", label=text)
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
        axes.set(yscale="log", xlabel="step")
        axes.set_ylabel(f"validation {label}", color=INK)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "235" else "")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5)
    figure.savefig(path)


def show(rows: Mapping[str, Any], times: Sequence[Mapping[str, Any]]) -> None:
    """The table."""
    if rows:
        print(f"{'side':15}seeds   E RMSE meV/atom      F RMSE meV/Å        over deepmd's E, F")
    for side, row in rows.items():
        e, f = (f"{row[n]:9.3f} +- {row[f'{n}_spread']:6.3f}" for n in SHOWN)
        shares = "  ".join(f"{row[f'{n}_share']:8.3f}" for n in SHOWN if f"{n}_share" in row)
        print(f"{side:15}{row['seeds']:5}{e}{f}   {shares}")
    for row in times:
        word = "compiled" if row["compiled"] else "eager"
        theirs, own = (row[side] for side in ("deepmd", "dpa4sim"))
        starts = " and ".join(f"{one['first_steps_cpu_s']:.0f}" for one in (theirs, own))
        print(
            f"{word:9} s per step (cpu, {row['cutoff']:g} Å): deepmd {theirs['cpu_s']:.2f}, "
            f"dpa4sim {own['cpu_s']:.2f}, {row['times_faster']:.2f} times faster; "
            f"start and first {TIMED} steps {starts} s"
        )


def all_runs(bench: Bench, sides: Sequence[str], seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Seed after seed, so that whatever is done can be compared."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(1, seeds + 1):
        for side in sides:
            found = run_of(bench, side, seed)
            runs[side].append(found)
            words = "  ".join(f"{name} {value:.2f}" for name, value in found["final"].items())
            print(f"seed {seed} {side:15} {words}  {found['training_cpu_s']:.0f} s cpu", flush=True)
    return runs


def main(arguments: list[str]) -> None:
    """Measure, print, draw, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench yardstick",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--water", type=Path, required=True)
    parser.add_argument("--deepmd", type=Path, default=Path(".peers/deepmd/bin/python"))
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the runs")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cutoff", type=float, default=6.0)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--turns", type=int, default=6, help="of the timing; 0 for none")
    parser.add_argument("--compiled", action="store_true", help="time the compiled paths as well")
    parser.add_argument(
        "--times", action="store_true", help="the step times alone: yardstick-times"
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "yardstick.png")
    parser.add_argument("--quick", action="store_true", help="no record")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # children whose time is counted
    recipe = Recipe(steps=args.steps, warmup_steps=max(args.steps // 20, 1))
    bench = Bench(args.water, args.deepmd.absolute(), args.work, network(args.cutoff), recipe)
    modes = [False, True][: 1 + args.compiled] if args.turns else []
    times = [times_of(bench, compiled, args.turns) for compiled in modes]
    show({}, times)
    if args.times:
        about = {"deepmd_kit": "3.2.0", "atoms_per_step": 192, "load_per_core": company()}
        print("record:", save("yardstick-times", {"settings": about, "step_times": times}))
        return
    runs = all_runs(bench, args.sides, args.seeds)
    rows = summary(runs)
    last = bench.work / "deepmd-1" / f"model.ckpt-{recipe.steps}.pt"
    valid = (args.water / VALID).resolve()
    confirmed = None
    if last.exists():
        frames = len(Store(bench.store_path("valid")))
        confirmed = deepmd_trainer.test(bench.dp, last, valid, frames)
        words = ", ".join(f"{key} {1e3 * value:.3f}" for key, value in confirmed.items())
        print(f"dp test of seed 1: {words}")
    show(rows, times)
    draw(runs, args.plot)
    if args.quick:
        return
    settings = {"cutoff": args.cutoff, "recipe": asdict(recipe), "dtype": "float32", "threads": 1}
    settings |= {"deepmd_kit": "3.2.0", "atoms_per_step": 192, "load_per_core": company()}
    result = {"settings": settings, "rows": rows, "step_times": times, "dp_test": confirmed}
    print("record:", save("yardstick", {**result, "runs": runs}))
