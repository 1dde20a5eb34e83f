"""Time per atom against the number of atoms in one cell, and against the number of structures.

    python -m bench growth [--size neo] [--largest 10000]
    python -m bench growth --size seed --largest 100000

Rattled silicon from 64 atoms up, and batches of 8-atom cells; energy, forces and stress in float32
on one thread, with the peak memory of the process until then.  Flat means linear cost.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from typing import Any

import ase.build
import numpy as np
import torch

import dpa4sim
from bench.allocator import enter
from bench.inference import random_model
from bench.measure import company
from bench.record import save
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.potential import Potential


def silicon(n: int, seed: int) -> Batch:
    """A cubic supercell of n x n x n conventional cells, 8 n^3 atoms."""
    atoms = ase.build.bulk("Si", cubic=True) * (n, n, n)
    atoms.rattle(0.05, seed=seed)
    return from_atoms(atoms)


def seconds(potential: Potential, batch: Batch, repeats: int) -> tuple[float, float]:
    """Median processor time of an evaluation and of its neighbour list."""
    whole, listing = [], []
    for _ in range(repeats):
        start = time.process_time()
        neighbors(batch, potential.cutoff)
        listing.append(time.process_time() - start)
        start = time.process_time()
        potential(batch)
        whole.append(time.process_time() - start)
    return statistics.median(whole), statistics.median(listing)


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench growth", description=__doc__)
    parser.add_argument("--size", default="neo")
    parser.add_argument("--largest", type=int, default=10_000)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    args = parser.parse_args(arguments)
    enter(args.allocator, "growth", arguments)
    torch.set_num_threads(1)
    is_seed = args.size == "seed"
    potential = dpa4sim.load("seed") if is_seed else Potential(random_model(args.size, ("Si",)))
    potential(silicon(2, 0))
    rows: list[dict[str, Any]] = []
    cells = [n for n in (2, 3, 4, 6, 8, 11, 16, 23) if 8 * n**3 <= args.largest * 1.1]
    batches = [(f"{8 * n**3} atoms", silicon(n, n)) for n in cells]
    for count in (n for n in (1, 10, 100, 1000, 10_000) if 8 * n <= args.largest):
        batches.append(
            (f"{count} x 8 atoms", Batch.concatenate(silicon(1, s) for s in range(count)))
        )
    for name, batch in batches:
        n_atoms = len(batch.positions)
        potential(batch)  # once for the pages and the workspace
        whole, listing = seconds(potential, batch, 3 if n_atoms < 2000 else 1)
        row = {
            "name": name,
            "atoms": n_atoms,
            "systems": batch.n_systems,
            "ms_per_atom": 1e3 * whole / n_atoms,
            "neighbor_ms_per_atom": 1e3 * listing / n_atoms,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        rows.append(row)
        print(
            f"{name:16} {row['ms_per_atom']:.3f} ms/atom, list {row['neighbor_ms_per_atom']:.4f}, "
            f"{row['peak_mib']:.0f} MiB",
            flush=True,
        )
    large = [row["ms_per_atom"] for row in rows if row["systems"] == 1 and row["atoms"] >= 100]
    spread = float(np.ptp(large) / np.mean(large))
    print(f"spread over {min(cells)}..{max(cells)} cells: {100 * spread:.0f} %")
    settings = {"size": args.size, "dtype": "float32", "threads": 1}
    settings["k"] = neighbors(silicon(4, 4), potential.cutoff).n_edges / 512
    settings |= {"allocator": args.allocator, "load_per_core": company()}
    name = f"growth-{args.allocator}" if args.size == "neo" else f"growth-{args.size}"
    print("record:", save(name, {"settings": settings, "spread": spread, "rows": rows}))
