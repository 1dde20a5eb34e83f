"""Three choices of the paper, undone one at a time on a small set, beside their effect there.

    python -m bench ablation --water WATER --work RUNS [--steps 300] [--seeds 3]

WATER holds the DFT water frames in DeePMD-kit's format: data_0, data_1 and data_2 train, data_3
validates.  The network is small (16 channels, L = 2, cutoff 4 Å) and the run is short, so this
shows the sign of an effect at best; the spread over the seeds says whether it shows that.

    reference        attention, rank-1 edge product, WSD
    scatter          n_heads = 0: messages are summed, weighted by the envelope (Table S-3)
    scalar scaling   edge_product = "none": the edge only scales a message (Table S-5)
    cosine           the learning rate falls from the end of the warm-up on (Table S-14)

The same seed gives all variants the same order of frames.  Errors are MAEs of the last averaged
weights.  Finished runs stay in RUNS, so that a stopped bench goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measure import company
from bench.record import save
from dpa4sim.data.read import read_frames
from dpa4sim.data.writer import write_store
from dpa4sim.plots import DPI, FAINT, INK, PALETTE
from dpa4sim.train.run import train

ROOT = Path(__file__).parents[1]
TRAIN, VALID = ("data_0", "data_1", "data_2"), "data_3"
VALID_FRAMES = 20
NETWORK = {
    "species": ["H", "O"],
    "cutoff": 4.0,
    "channels": 16,
    "max_degree": 2,
    "n_blocks": 2,
    "so2_layers": 2,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "reference": {},
    "scatter": {"model": {"n_heads": 0}},
    "scalar scaling": {"model": {"edge_product": "none"}},
    "cosine": {"schedule": {"name": "cosine"}},
}
SHOWN = {"energy_mae": "energy MAE (meV/atom)", "force_mae": "force MAE (meV/Å)"}
PAPER = {
    "scatter": {"energy_mae": 30.691 / 27.839, "force_mae": 40.072 / 38.184},
    "scalar scaling": {"energy_mae": 28.493 / 27.611, "force_mae": 38.349 / 35.689},
    "cosine": {"energy_mae": 28.638 / 27.828, "force_mae": 38.607 / 37.022},
}
"""Error over that of the reference choice in Tables S-3 (64 channels), S-5 and S-14."""


def stores(water: Path, work: Path) -> dict[str, str]:
    """Training frames, and some of the validation frames."""
    paths = {name: work / f"{name}.h5" for name in ("train", "valid")}
    if not paths["train"].exists():
        write_store(paths["train"], read_frames([str(water / part) for part in TRAIN]))
    if not paths["valid"].exists():
        frames = list(read_frames([str(water / VALID)]))
        step = max(len(frames) // VALID_FRAMES, 1)
        write_store(paths["valid"], frames[::step][:VALID_FRAMES])
    return {name: str(path) for name, path in paths.items()}


def errors_of(
    variant: str, seed: int, steps: int, data: Mapping[str, str], work: Path
) -> dict[str, float]:
    """MAE in meV/atom and meV/Å of one run; made only if `work` does not have it."""
    folder = work / f"{variant.replace(' ', '-')}-{seed}"
    report = folder / "report.json"
    if not report.exists():
        shutil.rmtree(folder, ignore_errors=True)
        settings: dict[str, dict[str, Any]] = {
            "run": {"steps": steps, "seed": seed, "validate_every": 0, "compile": False},
            "data": {**data, "max_edges": 0, "max_atoms": 192},
            "model": dict(NETWORK),
            "loss": {"virial": 0.0},
            "optimizer": {"lr": 1e-3, "average": 0.99},
            "schedule": {"warmup_steps": max(steps // 20, 1)},
        }
        for table, values in VARIANTS[variant].items():
            settings[table] |= values
        train(settings, directory=folder, progress=False)
    found = json.loads(report.read_text())["validation"]
    return {name: found[name] for name in SHOWN}


def summary(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Mean and spread of each variant, and its error over the reference's, seed by seed."""
    rows: dict[str, dict[str, Any]] = {}
    for variant, found in runs.items():
        row: dict[str, Any] = {"seeds": len(found)}
        for name in SHOWN:
            values = np.array([one[name] for one in found])
            pairs = zip(values, runs["reference"], strict=False)
            ratios = [float(value / one[name]) for value, one in pairs]
            row[name], row[f"{name}_ratios"] = float(values.mean()), ratios
            row[f"{name}_spread"] = statistics.stdev(values.tolist()) if len(values) > 1 else 0.0
            row[f"{name}_paper"] = PAPER.get(variant, {}).get(name)
        rows[variant] = row
    return rows


def draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Each variant's errors over the reference's: a point for each seed, and the paper's."""
    from matplotlib.figure import Figure

    undone = [variant for variant in rows if variant != "reference"]
    figure = Figure(figsize=(8.4, 3.2), dpi=DPI, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 2, sharey=True), SHOWN.items(), strict=True):
        axes.axvline(1, color=FAINT, linewidth=1)
        for place, variant in enumerate(undone):
            ratios = rows[variant][f"{name}_ratios"]
            axes.plot(ratios, [place] * len(ratios), "o", color=PALETTE[0], alpha=0.6)
            axes.plot(np.mean(ratios), place, "|", color=PALETTE[0], markersize=18, mew=2)
            axes.plot(rows[variant][f"{name}_paper"], place, "D", color=PALETTE[1])
        axes.set(yticks=range(len(undone)), yticklabels=undone, ylim=(len(undone) - 0.5, -0.5))
        axes.set_xlabel(f"{label.split(' (')[0]} over the reference's", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    axes.plot([], [], "o", color=PALETTE[0], label="here, each seed")
    axes.plot([], [], "D", color=PALETTE[1], label="paper")
    axes.legend(frameon=False, fontsize=8.5)
    figure.savefig(path)


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """The table."""
    print(f"{'variant':16}seeds  E MAE meV/atom      F MAE meV/Å       E, F over reference (paper)")
    for variant, row in rows.items():
        values = "".join(f"{row[n]:9.3f} +- {row[f'{n}_spread']:6.3f}" for n in SHOWN)
        words = ""
        for name in SHOWN if variant != "reference" else ():
            words += f"  {np.mean(row[f'{name}_ratios']):.3f} ({row[f'{name}_paper']:.3f})"
        print(f"{variant:16}{row['seeds']:5}{values} {words}")


def main(arguments: list[str]) -> None:
    """Measure, print, draw, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--water", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the runs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "ablation.png")
    parser.add_argument("--quick", action="store_true", help="no record")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    data = stores(args.water, args.work)
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for seed in range(1, args.seeds + 1):
        for variant, found in runs.items():
            found.append(errors_of(variant, seed, args.steps, data, args.work))
            words = "  ".join(f"{name} {value:.2f}" for name, value in found[-1].items())
            print(f"seed {seed} {variant:15} {words}", flush=True)
    rows = summary(runs)
    show(rows)
    draw(rows, args.plot)
    if args.quick:
        return
    settings = {"network": NETWORK, "steps": args.steps, "lr": 1e-3, "load_per_core": company()}
    print("record:", save("ablation", {"settings": settings, "rows": rows, "runs": runs}))
