"""Validation errors of a run with branches beside runs on each set alone.

    python workflows/branches_figure.py RUN [water=RUN_ALONE ...] [-o branches.png]

prints a table and draws a panel each of energies and forces: every branch over the batches that it
has seen, the runs alone dashed, and dotted what the energies of the species and no forces at all
would be off, the spread of the labels.  RUN is a run directory of `dpa4sim train`, beside stores
that are still where they were.
"""

from __future__ import annotations

import argparse
import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dpa4sim.cli.table import table
from dpa4sim.data.statistics import compositions, energy_shifts
from dpa4sim.data.store import Store
from dpa4sim.plots import PALETTE

PANELS = {"energy_mae": "energy MAE, meV/atom", "force_mae": "force MAE, meV/Å"}


def curve(run: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and a column of train.csv."""
    with (run / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[1:]
    return tuple(np.array([float(row[name]) for row in rows]) for name in ("step", column))


def spread(store: Store) -> dict[str, float]:
    """Errors of a model that knows the energies of the species and no more, in the units shown."""
    shifts = energy_shifts(store)
    off = [
        (energy - counts @ shifts) / counts.sum(1)
        for _, counts, energy in compositions(store, store.species)
    ]
    forces = [block.forces.numpy() for block in store.blocks(np.flatnonzero(store.has("forces")))]
    return {
        "energy_mae": 1e3 * float(np.abs(np.concatenate(off)).mean()),
        "force_mae": 1e3 * float(np.abs(np.concatenate(forces)).mean()),
    }


def read_run(run: Path) -> tuple[dict[str, float], dict[str, Path]]:
    """Share of the batches, and store, of each branch of a run."""
    tables: dict[str, Any] = tomllib.loads((run / "config.toml").read_text())["branches"]
    total = sum(branch["weight"] for branch in tables.values())
    shares = {name: branch["weight"] / total for name, branch in tables.items()}
    return shares, {name: Path(branch["train"]) for name, branch in tables.items()}


def draw(run: Path, alone: dict[str, Path], out: Path) -> list[tuple[str, ...]]:
    """Write the figure; the rows of the table."""
    shares, stores = read_run(run)
    figure = Figure(figsize=(9.0, 3.8), dpi=160, layout="constrained")
    rows = []
    spreads = {name: spread(Store(path)) for name, path in stores.items()}
    for axes, (error, label) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for colour, (name, share) in zip(PALETTE, shares.items(), strict=False):
            step, value = curve(run, f"valid_{name}:{error}")
            axes.plot(step * share, value, color=colour, marker=".", label=name)
            axes.axhline(spreads[name][error], color=colour, linestyle=":", linewidth=1)
            row = [name, label, f"{spreads[name][error]:.4g}", f"{value[-1]:.4g}", ""]
            if name in alone:
                step, value = curve(alone[name], f"valid_{error}")
                axes.plot(step, value, color=colour, linestyle="--", label=f"{name} alone")
                row[-1] = f"{value[-1]:.4g}"
            rows.append(tuple(row))
        axes.set(yscale="log", xlabel="batches of this set", ylabel=label)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(out)
    return rows


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory with branches")
    parser.add_argument("alone", nargs="*", help="BRANCH=RUN: a run on this set alone")
    parser.add_argument("-o", "--out", type=Path, default=Path("branches.png"))
    args = parser.parse_args()
    pairs = (word.partition("=") for word in args.alone)
    rows = draw(args.run, {name: Path(path) for name, _, path in pairs}, args.out)
    print(table(("branch", "error", "spread of labels", "branches", "alone"), rows, left=2))
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
