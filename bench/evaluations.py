"""Force evaluations to fmax 0.02 eV/Å over a hundred structures: this package's FIRE and L-BFGS,
ASE's FIRE and BFGS, nvalchemi-toolkit-ops' L-BFGS, each on the `seed` model and on CHGNet.

    python -m bench evaluations [--chgnet .peers/chgnet/bin/python] [--cache FOLDER] [--quick]

The structures are those of bench/starts.py, the terms those of bench/relaxers.py.  Without
`--chgnet` only the `seed` model is asked.  With `--cache` what was found is kept, one line per
structure, and only what is missing or belongs to other sources is computed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.units import GPa

import dpa4sim
from bench.chgnet_peer import CHGNet
from bench.record import save
from bench.relaxers import FMAX, MOST, ONE_BY_ONE, Outcome
from bench.starts import Start, starts
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.potential import EnergyModel

TOGETHER = ("fire", "lbfgs")
METHODS = (*TOGETHER, *ONE_BY_ONE)
EDGES_AT_ONCE = 200_000.0
"""Room of the pool; it changes no number."""

BASELINE = "ase_fire"
CLOSE_EV = 5e-3
"""An end this much above the best known one, per atom, is another and worse minimum."""

ROOT = Path(__file__).parents[1]


class Cache:
    """Outcomes of one model and method, one line per structure, kept for the same sources."""

    def __init__(self, folder: Path | None, model: str, method: str):
        watched = sorted((ROOT / "dpa4sim/relax").glob("*.py")) if method in TOGETHER else []
        digest = hashlib.sha256()
        for path in (ROOT / "bench/relaxers.py", *watched):
            digest.update(path.read_bytes())
        self.path = folder and folder / f"{model}.{method}.{digest.hexdigest()[:12]}.jsonl"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Outcome]:
        """What is known, by the fingerprint of the structure."""
        if self.path is None or not self.path.exists():
            return {}
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return {key: Outcome(**found) for key, found in lines}

    def add(self, key: str, outcome: Outcome) -> None:
        """Keep one."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps([key, asdict(outcome)]) + "\n")


def smallest(found: Sequence[Start]) -> list[Start]:
    """The smallest structure of each kind, the large ones left out."""
    kinds = dict.fromkeys(start.kind for start in found if start.kind != "large")
    return [min((s for s in found if s.kind == k), key=lambda s: len(s.atoms)) for k in kinds]


def fingerprint(start: Start) -> str:
    """Name and contents of a structure in a few letters."""
    atoms = start.atoms
    digest = hashlib.sha256(json.dumps([start.moves_cell, start.pressure_gpa]).encode())
    for values in (atoms.numbers, atoms.positions.round(9), atoms.cell.array.round(9), atoms.pbc):
        digest.update(values.tobytes())
    return f"{start.name} {digest.hexdigest()[:12]}"


def outcomes(
    method: str, name: str, model: EnergyModel, wanted: Sequence[Start], folder: Path | None
) -> list[Outcome]:
    """How every structure ends by one method."""
    cache = Cache(folder, name, method)
    known = cache.read()
    missing = [start for start in wanted if fingerprint(start) not in known]
    began = time.process_time()
    if method in TOGETHER and missing:
        for start, one in zip(missing, with_dpa4sim(method, model, missing), strict=True):
            known[fingerprint(start)] = one
            cache.add(fingerprint(start), one)
    for start in missing if method in ONE_BY_ONE else []:
        one = ONE_BY_ONE[method](model, start)
        known[fingerprint(start)] = one
        cache.add(fingerprint(start), one)
    found = [known[fingerprint(start)] for start in wanted]
    total = sum(one.evaluations for one in found)
    seconds = time.process_time() - began
    print(f"{name:7} {method:16} {total:6d} evaluations; {len(missing)} new in {seconds:.0f} s cpu")
    return found


def with_dpa4sim(optimizer: str, model: EnergyModel, starts: Sequence[Start]) -> list[Outcome]:
    """This package's, all structures in one call."""
    result = dpa4sim.relax(
        model,
        [from_atoms(start.atoms) for start in starts],
        fmax=FMAX,
        cell=[start.moves_cell for start in starts],
        optimizer=optimizer,
        max_steps=MOST - 1,
        pressure_gpa=[start.pressure_gpa for start in starts],
        max_edges=EDGES_AT_ONCE,
        progress=False,
    )
    outcomes = []
    for index, start in enumerate(starts):
        n = len(start.atoms)
        work = start.pressure_gpa * GPa * float(result.batches[index].volume[0])
        outcomes.append(
            Outcome(
                result.evaluations[index],
                result.status[index] == dpa4sim.Status.CONVERGED,
                (result.energy[index] + work) / n,
                result.reasons[index],
            )
        )
    return outcomes


def best_known(table: dict[str, list[Outcome]]) -> np.ndarray:
    """Lowest enthalpy at which any method converged, per structure; NaN where none did."""
    ends = np.array(
        [[o.enthalpy if o.converged else np.nan for o in row] for row in table.values()]
    )
    return np.where(np.isnan(ends).all(0), np.nan, np.nanmin(np.nan_to_num(ends, nan=np.inf), 0))


def summary(table: dict[str, list[Outcome]], wanted: Sequence[Start]) -> dict[str, dict[str, Any]]:
    """One row per method: evaluations, failures, ends above the best known."""
    best, kinds = best_known(table), np.array([start.kind for start in wanted])
    baseline = np.array([one.evaluations for one in table[BASELINE]])
    rows: dict[str, dict[str, Any]] = {}
    for method, found in table.items():
        counts = np.array([one.evaluations for one in found])
        above = np.array([one.enthalpy for one in found]) - best
        failed = np.array([not one.converged for one in found])
        rows[method] = {
            "total": int(counts.sum()),
            "median": float(np.median(counts)),
            "p90": float(np.percentile(counts, 90)),
            "largest": int(counts.max()),
            "share_of_ase_fire": float(counts.sum() / baseline.sum()),
            "not_converged": int(failed.sum()),
            "failed": {
                s.name: o.reason for s, o in zip(wanted, found, strict=True) if not o.converged
            },
            "above_best": int((above[~failed] > CLOSE_EV).sum()),
            "total_by_kind": {k: int(counts[kinds == k].sum()) for k in dict.fromkeys(kinds)},
        }
    return rows


def draw(tables: dict[str, dict[str, list[Outcome]]], path: Path) -> None:
    """Evaluations per structure: sorted curves, and L-BFGS against ASE's FIRE."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = {
        "ase_fire": ("ASE FIRE", "0.55", "-"),
        "fire": ("dpa4sim FIRE", "0.2", ":"),
        "ase_bfgs": ("ASE BFGS", "tab:orange", "-"),
        "nvalchemi_lbfgs": ("nvalchemi-toolkit-ops L-BFGS", "tab:green", "-"),
        "lbfgs": ("dpa4sim L-BFGS", "tab:blue", "-"),
    }
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(10, 4.2 * len(tables)), squeeze=False, layout="constrained"
    )
    for (left, right), (model, table) in zip(axes, tables.items(), strict=True):
        for method, (label, color, line) in names.items():
            if method in table:
                counts = np.sort([one.evaluations for one in table[method]])
                total = f"{label}: {counts.sum()}"
                left.plot(np.arange(1, len(counts) + 1), counts, line, color=color, label=total)
        left.set(yscale="log", xlabel="structures, sorted", ylabel="evaluations to 0.02 eV/Å")
        left.set_title(f"{model}: evaluations and their total")
        left.legend(frameon=False, fontsize=8)
        across = np.array([one.evaluations for one in table[BASELINE]])
        if "lbfgs" in table:
            up = np.array([one.evaluations for one in table["lbfgs"]])
            right.loglog(across, up, "o", color="tab:blue", markersize=4, alpha=0.7)
        ends = np.array([1, MOST])
        for share, line in ((1, "-"), (4, "--")):
            right.loglog(ends, ends / share, line, color="0.7", linewidth=1)
            right.text(MOST, MOST / share, f" 1/{share}" if share > 1 else " equal", fontsize=8)
        right.set(
            xlabel="ASE FIRE", ylabel="dpa4sim L-BFGS", xlim=(1, MOST * 1.8), ylim=(1, MOST * 1.2)
        )
        right.set_title(f"{model}: evaluations per structure")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(model: str, rows: dict[str, dict[str, Any]]) -> None:
    """The table of one model."""
    print(f"\n{model:18} total median   p90 largest  of ASE FIRE  unconverged  >5 meV above best")
    for method, row in rows.items():
        print(
            f"{method:16}{row['total']:8d}{row['median']:7.0f}{row['p90']:6.0f}{row['largest']:8d}"
            f"{row['share_of_ase_fire']:13.2f}{row['not_converged']:13d}{row['above_best']:19d}"
        )


def main(arguments: list[str]) -> None:
    """Count, print, draw, record."""
    parser = argparse.ArgumentParser(prog="python -m bench evaluations", description=__doc__)
    parser.add_argument("--chgnet", help="a python that has chgnet 0.4.2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--chgnet-methods", nargs="+", choices=METHODS, default=["lbfgs"], help="beside ASE FIRE"
    )
    parser.add_argument("--cache", type=Path, help="folder for outcomes, to go on after a stop")
    parser.add_argument(
        "--quick", action="store_true", help="one structure of each kind, no record"
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "evaluations.png")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted = smallest(starts()) if args.quick else starts()
    models: dict[str, Any] = {"seed": dpa4sim.load("seed")}
    if args.chgnet:
        models["chgnet"] = CHGNet(args.chgnet)
    asked = {"seed": args.methods, "chgnet": args.chgnet_methods}
    tables, summaries = {}, {}
    for name, model in models.items():
        methods = [BASELINE, *[m for m in asked[name] if m != BASELINE]]
        tables[name] = {m: outcomes(m, name, model, wanted, args.cache) for m in methods}
        summaries[name] = summary(tables[name], wanted)
        report(name, summaries[name])
    if args.chgnet:
        models["chgnet"].close()
    if args.quick or {BASELINE, *args.methods} != set(METHODS):
        print("no record: that takes every structure and every method")
        return
    draw(tables, args.plot)
    print("record:", save("evaluations", _record(tables, summaries, wanted)))


def _record(
    tables: dict[str, dict[str, list[Outcome]]],
    summaries: dict[str, dict[str, dict[str, Any]]],
    wanted: Sequence[Start],
) -> dict[str, Any]:
    rows = []
    for index, start in enumerate(wanted):
        row: dict[str, Any] = {"name": start.name, "atoms": len(start.atoms)}
        for model, table in tables.items():
            row[model] = {method: found[index].evaluations for method, found in table.items()}
        rows.append(row)
    settings = {"fmax": FMAX, "most_evaluations": MOST, "threads": 1, "dtype": "float32 models"}
    return {"settings": settings, "summary": summaries, "structures": rows}
