"""Memory and time of a store of a million frames: conversion, an epoch's order, random batches.

    python -m bench data_memory [--frames 1000000] [--batches 3000] [--quick]

Frames of two to four atoms are generated while they are written, so none of them is ever in memory
for long.  The resident set is read from the kernel; what stays is the index: per frame the number
of atoms, its offset, its edges and its flags.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bench.measure import company
from bench.record import save
from dpa4sim.batch import Batch
from dpa4sim.data.frame import Frame
from dpa4sim.data.sampler import EdgeBudget
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store

CUTOFF_A = 4.0
EDGES = 2000
"""Edges of a batch: some hundred frames, each at another place of the file."""

PER_DRAW = 4096
"""Frames whose numbers are drawn at once."""


def generated(n: int) -> Iterator[Frame]:
    """Frames of two to four atoms in a cube of 5 Å."""
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0, 0], [2.5, 2.5, 0], [2.5, 0, 2.5], [0, 2.5, 2.5]])
    cell, zero = 5.0 * torch.eye(3, dtype=torch.float64)[None], np.zeros((3, 3))
    for start in range(0, n, PER_DRAW):
        sizes = rng.integers(2, 5, PER_DRAW)
        moves = 0.1 * rng.normal(size=(PER_DRAW, 4, 3))
        forces = rng.normal(size=(PER_DRAW, 4, 3))
        energies = rng.normal(size=PER_DRAW)
        numbers = rng.integers(1, 90, (PER_DRAW, 4))
        for k in range(min(PER_DRAW, n - start)):
            size = int(sizes[k])
            system = Batch(
                positions=torch.from_numpy(corners[:size] + moves[k, :size]),
                atomic_numbers=torch.from_numpy(numbers[k, :size].copy()),
                cell=cell,
                pbc=torch.ones(1, 3, dtype=torch.bool),
                system_idx=torch.zeros(size, dtype=torch.long),
                n_atoms=torch.tensor([size]),
            )
            name = str(start + k)
            own = forces[k, :size].copy()
            yield Frame(name, system, float(energies[k]), own, zero, source="made", name=name)


def resident_mb() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(n_frames: int, n_batches: int, folder: Path) -> dict[str, object]:
    """Write, order and read; times in seconds, memory in MB."""
    path = folder / "million.h5"
    list(generated(2))
    before, start = resident_mb(), time.perf_counter()
    peak = [before]

    def watched() -> Iterator[Frame]:
        for k, frame in enumerate(generated(n_frames)):
            if k % PER_DRAW == 0:
                peak.append(resident_mb())
            yield frame

    write_store(path, watched(), cutoff=CUTOFF_A, progress=True)
    writing = time.perf_counter() - start
    wrote = {"start": before, "peak": max(peak), "end": resident_mb()}
    store = Store(path)
    edges, atoms = store.n_edges(CUTOFF_A), store.n_atoms
    sampler = EdgeBudget(edges, atoms, max_edges=EDGES, seed=0)
    start = time.perf_counter()
    batches = sampler.epoch(0)
    ordering = time.perf_counter() - start
    gc.collect()
    curve, start, n_read = [resident_mb()], time.perf_counter(), 0
    for index, rows in enumerate(batches[:n_batches]):
        n_read += len(store.batch(rows).frame)
        if (index + 1) % max(1, n_batches // 10) == 0:
            curve.append(resident_mb())
    reading = time.perf_counter() - start
    return {
        "frames": n_frames,
        "atoms": int(atoms.sum()),
        "file_mb": path.stat().st_size / 1e6,
        "writing_s": writing,
        "writing_mb": wrote,
        "epoch_s": ordering,
        "fill": sampler.fill(batches),
        "batches": min(n_batches, len(batches)),
        "frames_read": n_read,
        "ms_per_batch": 1e3 * reading / min(n_batches, len(batches)),
        "reading_mb": curve,
        "growth_mb": curve[-1] - curve[1],
    }


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench data_memory", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="a smoke run, without a record")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    n_frames, n_batches = (2000, 10) if args.quick else (args.frames, args.batches)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(n_frames, n_batches, Path(folder))
    for name, value in found.items():
        print(f"{name:14} {value}")
    if not args.quick:
        settings = {"cutoff": CUTOFF_A, "max_edges": EDGES, "threads": 1}
        record = {"settings": settings, "load": company(), **found}
        print("record:", save("data_memory", record))
