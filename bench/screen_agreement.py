"""`seed` screens chemical systems, and CHGNet the same candidates with its own relaxer.

    python -m bench screen_agreement --chgnet .peers/chgnet/bin/python --work FOLDER
        [--systems Li-Fe-O Al-Ni-Ti Na-Zn-S] [--plot docs/screen_agreement.png] [--most N]

`seed` learnt from CHGNet's energies, forces and stresses of other compounds, so this says what is
left of the teacher's ranking after the pupil's own relaxations.  Both sides start from the same
geometries: built-in prototypes that take the elements, and built-in crystals of the elements and
of known compounds as references.  `seed` goes through the campaign (batched L-BFGS); CHGNet
through its StructOptimizer (FIRE, FrechetCellFilter), one after another; fmax 0.02 eV/Å, at most
500 steps.  Each side is compared with its own references; both hulls are made by the same code.

Stated: rank correlation of the energies above the hull, overlap of what is stable and of what is
within 25 and 50 meV/atom of it, how far apart formation energies and volumes are, seconds of the
processor.  The sides alternate system by system.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from os import environ
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from ase.io import write

import dpa4sim
from bench.measure import company
from bench.record import save
from dpa4sim.plots import DPI, INK, PALETTE
from dpa4sim.potential import Potential
from dpa4sim.screen.candidate import unpack
from dpa4sim.screen.checks import post_checks
from dpa4sim.screen.hull import hull_table, reference_phases
from dpa4sim.screen.index import PhaseIndex
from dpa4sim.screen.rank import candidates_of, rank
from dpa4sim.screen.run import init
from dpa4sim.screen.runner import run
from dpa4sim.screen.settings import Candidates, Hull, Model, Relaxation, Settings
from dpa4sim.screen.table import BUILT_IN, geometry, to_atoms, to_table

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("chgnet_screen_worker.py")
FMAX, STEPS = 0.02, 500
CLOSE = (0.0, 0.025, 0.05)
"""eV/atom above the hull: what counts as stable, nearly stable, perhaps stable."""

SHOWN = {"formed": 1.0, "pairs": 0.98}
"""Share of the points inside the plot."""

KEPT = ("id", "name", "source", "formula", "chemical_system", "n_atoms")


def with_seed(potential: Potential, system: str, folder: Path) -> tuple[pa.Table, pa.Table, float]:
    """Results, hull and seconds of the processor; those of the first run are kept in a file."""
    from dpa4sim.pool.checkpoint import model_fingerprint

    settings = Settings(
        model=Model(hash=model_fingerprint(potential)),
        candidates=Candidates(chemical_systems=(system,)),
        relax=Relaxation(fmax=FMAX, max_steps=STEPS),
        hull=Hull(built_in=True),
    )
    note = folder.with_suffix(".seconds")
    begin = time.process_time()
    with init(folder, settings, potential, progress=True) as campaign:
        run(campaign, potential, progress=True)
        results = campaign.results()
        table = rank(campaign, results)
        starts = {row.id: row.packed for row in campaign.ledger.rows(0, results.num_rows)}
    if not note.exists():
        note.write_text(str(time.process_time() - begin))
    atoms = []
    for row in results.to_pylist():
        packed = starts[row["id"]]
        if packed is not None and row["status"] not in ("duplicate", "invalid"):
            atoms.append(unpack(packed))
            atoms[-1].info = {"name": f"c{row['id']}"}
    write(folder.with_suffix(".extxyz"), atoms, format="extxyz")
    return results, table, float(note.read_text())


def with_chgnet(python: str, results: pa.Table, folder: Path) -> tuple[pa.Table, pa.Table, float]:
    """The same with the teacher's relaxations."""
    start, end = folder.with_suffix(".extxyz"), folder.with_suffix(".jsonl")
    command = [python, str(WORKER), str(start), str(end), str(FMAX), str(STEPS)]
    subprocess.run(command, check=True, env={**environ, "OMP_NUM_THREADS": "1"})
    found = {int(row["name"][1:]): row for row in map(json.loads, end.read_text().splitlines())}
    starts = {int(atoms.info["name"][1:]): atoms for atoms in _read(start)}
    rows = [_row(row, starts, found.get(row["id"])) for row in results.to_pylist()]
    table, references = to_table(rows), PhaseIndex()
    for phase in reference_phases(table.filter(pc.equal(table["source"], BUILT_IN))):
        references.add(phase)
    seconds = sum(row["seconds"] for row in found.values())
    return table, hull_table(candidates_of(table), references), seconds


def _read(path: Path) -> list[Any]:
    from ase.io import read

    return list(read(path, ":"))


def _row(
    known: Mapping[str, Any], starts: Mapping[int, Any], found: Mapping[str, Any] | None
) -> dict[str, Any]:
    row = {name: known[name] for name in KEPT}
    if found is None:
        return row | {"status": known["status"], "flags": []}
    if found["energy"] is None:
        return row | {"status": "exploded", "flags": ["exploded"], "reason": found["reason"]}
    relaxed = to_atoms({**found, "pbc": [True] * 3})
    flags = post_checks(starts[known["id"]], relaxed)
    done = "converged" if found["steps"] < STEPS else "max_steps"
    kept = {name: found[name] for name in ("energy", "steps", "fmax")}
    return row | geometry(relaxed) | kept | {"status": done, "flags": flags}


def comparison(
    sides: tuple[tuple[pa.Table, pa.Table, float], tuple[pa.Table, pa.Table, float]],
) -> dict[str, Any]:
    """Figures of one system, and the pairs that the plot shows."""
    from scipy.stats import kendalltau, spearmanr

    (ours, our_hull, our_s), (theirs, their_hull, their_s) = sides
    pairs = [
        (a, b)
        for a, b in zip(our_hull.to_pylist(), their_hull.to_pylist(), strict=True)
        if a["rank"] is not None and b["rank"] is not None
    ]
    tables = (ours, theirs)
    above = np.array([[side["e_above_hull_self"] for side in pair] for pair in pairs])
    formed = np.array([[side["formation_energy"] for side in pair] for pair in pairs])
    volumes = [dict(zip(t["id"].to_pylist(), t["volume"].to_pylist(), strict=True)) for t in tables]
    grown = np.array([volumes[0][a["id"]] / volumes[1][a["id"]] for a, _ in pairs])
    converged = [
        sum(status == "converged" for status in candidates_of(t)["status"].to_pylist())
        for t in tables
    ]
    relaxed = sum(s not in ("duplicate", "invalid") for s in ours["status"].to_pylist())
    return {
        "candidates": our_hull.num_rows,
        "relaxed": relaxed,
        "compared": len(pairs),
        "spearman": float(spearmanr(*above.T).statistic),
        "kendall": float(kendalltau(*above.T).statistic),
        "overlap": {f"{1e3 * limit:g}": _overlap(above, limit) for limit in CLOSE},
        "above_hull_mae": float(np.abs(above[:, 0] - above[:, 1]).mean()),
        "formation_mae": float(np.abs(formed[:, 0] - formed[:, 1]).mean()),
        "formation_median": float(np.median(np.abs(formed[:, 0] - formed[:, 1]))),
        "volume_median": float(np.median(np.abs(grown - 1))),
        "converged": converged,
        "cpu_s": [our_s, their_s],
        "stable": [
            sorted(pair[k]["formula"] for pair in pairs if pair[k]["e_above_hull_self"] <= 0)
            for k in (0, 1)
        ],
        "pairs": above.tolist(),
        "formed": formed.tolist(),
    }


def _overlap(above: np.ndarray, limit: float) -> dict[str, float]:
    """How many of each side are as near, how many of both, and their share of either."""
    near = above <= limit
    both, either = int(near.all(1).sum()), int(near.any(1).sum())
    sides = near.sum(0).tolist()
    return {"ours": sides[0], "theirs": sides[1], "both": both, "jaccard": both / max(either, 1)}


def draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Formation energies, and energies above the hull, pupil against teacher."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.4), dpi=DPI, layout="constrained")
    titles = {
        "formed": ("formation energy", "eV/atom"),
        "pairs": ("energy above the hull", "eV/atom"),
    }
    for axes, (key, (title, unit)) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        every = np.concatenate([np.array(row[key]) for row in rows.values()])
        low, high = float(every.min()), float(np.quantile(every, SHOWN[key]))
        margin = 0.05 * (high - low)
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color="#adb5bd", linewidth=1)
        for colour, (system, row) in zip(PALETTE, rows.items(), strict=False):
            ours, theirs = np.array(row[key]).T
            label = f"{system}: {row['compared']}, rank correlation {row['spearman']:.2f}"
            axes.plot(theirs, ours, "o", ms=4, alpha=0.6, mew=0, color=colour, label=label)
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set_xlabel(f"CHGNet {title} ({unit})", color=INK)
        axes.set_ylabel(f"seed {title} ({unit})", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        beyond = int((every > ends[1]).any(1).sum())
        if beyond:
            axes.set_title(f"{beyond} of {len(every)} lie beyond", fontsize=8.5, color=INK)
    figure.axes[0].legend(frameon=False, fontsize=7.5, loc="upper left")
    figure.savefig(path)


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """The table."""
    print(f"{'system':10} compared  Spearman Kendall  both/either: on the hull, 25, 50 meV", end="")
    print("   dE_f meV/atom   cpu s")
    for system, row in rows.items():
        near = "  ".join(
            f"{found['both']}/{found['ours'] + found['theirs'] - found['both']}"
            for found in row["overlap"].values()
        )
        print(
            f"{system:10}{row['compared']:6}{row['spearman']:11.3f}{row['kendall']:8.3f}   "
            f"{near:38}"
            f"{1e3 * row['formation_mae']:9.1f}   {row['cpu_s'][0]:.0f} / {row['cpu_s'][1]:.0f}"
        )


def main(arguments: Sequence[str]) -> None:
    """Screen twice, compare, draw, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench screen_agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--chgnet", required=True, help="a python that has chgnet 0.4.2")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the runs")
    parser.add_argument("--systems", nargs="+", default=["Li-Fe-O", "Al-Ni-Ti", "Na-Zn-S"])
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "screen_agreement.png")
    parser.add_argument("--quick", action="store_true", help="no record")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    potential, rows = dpa4sim.load("seed"), {}
    for system in args.systems:
        ours = with_seed(potential, system, args.work / system)
        rows[system] = comparison((ours, with_chgnet(args.chgnet, ours[0], args.work / system)))
        show(rows)
    draw(rows, args.plot)
    if args.quick:
        return
    settings = {"model": "seed", "peer": "chgnet 0.4.2, StructOptimizer", "fmax": FMAX}
    settings |= {"max_steps": STEPS, "threads": 1, "load_per_core": company()}
    print("record:", save("screen_agreement", {"settings": settings, "rows": rows}))
