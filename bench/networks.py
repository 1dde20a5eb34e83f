"""Energy, forces and stress beside MACE with random weights: another network, the same structures.

    python -m bench networks --mace .peers/mace/bin/python [--sizes neo air] [--repeats 5] [--quick]

A comparison of cost and not of accuracy: MACE in the shapes of MACE-MP-0 (6 Å, 128 channels, two
layers), one batch of all structures on each side with the neighbour search, float32, one thread,
in turns.  Workloads are those of `inference`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.allocator import enter
from bench.inference import WORKLOADS, Peer, random_model, write_structures
from bench.measure import company
from bench.record import save
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.potential import Potential

MACES = ("small", "medium")


def measure(workload: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of every network on one workload."""
    structures = WORKLOADS[workload]()[: 4 if args.quick else None]
    species = tuple(sorted({s for atoms in structures for s in atoms.get_chemical_symbols()}))
    write_structures(structures, folder / f"{workload}.npz")
    batch = Batch.concatenate(from_atoms(atoms) for atoms in structures)
    ours = {size: Potential(random_model(size, species)) for size in args.sizes}
    peers = {
        size: Peer(args.mace, size, folder / f"{workload}.npz", dict(os.environ), "mace_worker.py")
        for size in MACES
    }
    found = {size: potential(batch) for size, potential in ours.items()}
    edges = next(iter(found.values())).edges
    times: dict[str, list[dict[str, float]]] = {}
    for repeat in range(args.repeats + 1):  # the first is not counted
        for size, potential in ours.items():
            wall, cpu = time.perf_counter(), time.process_time()
            potential(batch)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if repeat:
                times.setdefault(size, []).append({"wall": wall, "cpu": cpu})
        for size, peer in peers.items():
            spent = peer.ask("run")
            if repeat:
                times.setdefault(f"mace {size}", []).append(spent)
    for size, peer in peers.items():
        peer.ask(f"save {folder / size}.npz")
        if not np.isfinite(np.load(folder / f"{size}.npz")["force"]).all():
            raise RuntimeError(f"The forces of MACE {size} are not finite.")
        peer.process.kill()
    n_atoms = len(batch.positions)
    medians = {side: statistics.median(t["cpu"] for t in runs) for side, runs in times.items()}
    return {
        "workload": workload,
        "atoms": n_atoms,
        "k": 0 if edges is None else edges.n_edges / n_atoms,
        "us_per_atom": {side: 1e6 * spent / n_atoms for side, spent in medians.items()},
        "weights": {f"mace {size}": peer.about["weights"] for size, peer in peers.items()}
        | {size: sum(p.numel() for p in model.model.parameters()) for size, model in ours.items()},
        "times_faster_than_mace": {
            f"{mine} {size}": medians[f"mace {size}"] / medians[mine]
            for mine in ours
            for size in MACES
        },
    }


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench networks", description=__doc__)
    parser.add_argument("--mace", default=".peers/mace/bin/python")
    parser.add_argument("--sizes", nargs="+", default=["neo", "air"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--quick", action="store_true", help="four structures, no record")
    args = parser.parse_args(arguments)
    enter(args.allocator, "networks", arguments)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for workload in WORKLOADS:
            row = measure(workload, args, Path(folder))
            rows.append(row)
            shown = ", ".join(f"{side} {us:.0f}" for side, us in row["us_per_atom"].items())
            print(f"{workload:9} k {row['k']:.0f}, µs per atom: {shown}", flush=True)
    if not args.quick:
        settings = {"dtype": "float32", "threads": 1, "repeats": args.repeats}
        settings |= {"allocator": args.allocator, "load_per_core": company()}
        print("record:", save("networks", {"settings": settings, "rows": rows}))
