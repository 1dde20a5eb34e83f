"""The settings of a Potential beside each other: accuracy, and the compiled network.

    python -m bench modes [--sizes seed neo air] [--quick]

Energy, forces and stress with the neighbour search, float32, one thread, in turns; the force
deviation is from the same weights in float64.  Workloads: one crystal of two atoms, sixteen and 64
mixed crystals.  The compiled network is made in a fresh cache (cold) and opened again (warm).
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from typing import Any

import torch

import dpa4sim
from bench.inference import crystals, random_model
from bench.measure import company, interleaved
from bench.record import save
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential


def network(size: str) -> DPA4:
    """The released model, or a named size with random weights for the elements of the crystals."""
    if size == "seed":
        return dpa4sim.load("seed").model
    species = sorted({symbol for atoms in crystals() for symbol in atoms.symbols})
    return random_model(size, tuple(species))


def workloads(model: DPA4, quick: bool) -> dict[str, Batch]:
    """Batches whose elements the model knows."""
    known = set(model.config.species)
    found = [atoms for atoms in crystals() if set(atoms.symbols) <= known]
    smallest = min(found, key=len)
    chosen = {"1 crystal": [smallest], "16 crystals": found[:16], "64 crystals": found}
    if quick:
        del chosen["64 crystals"]
    return {
        name: Batch.concatenate(from_atoms(atoms) for atoms in images)
        for name, images in chosen.items()
    }


def timed_compile(model: DPA4) -> tuple[Potential, dict[str, float]]:
    """The compiled potential, and the seconds that it took to make it and to open it again."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPA4SIM_CACHE"] = folder
        begin = time.perf_counter()
        Potential(model, compile=True)
        cold = time.perf_counter() - begin
        begin = time.perf_counter()
        potential = Potential(model, compile=True)
        warm = time.perf_counter() - begin
    return potential, {"cold_wall_s": cold, "warm_wall_s": warm}


def measure(size: str, rounds: int, quick: bool) -> dict[str, Any]:
    """Times, deviations and compile times of one network."""
    model = network(size)
    exact64 = Potential(copy.deepcopy(model), dtype="float64")
    sides = {
        "exact": Potential(copy.deepcopy(model)),
        "fast": Potential(copy.deepcopy(model), accuracy="fast"),
    }
    sides["compiled"], compile_time = timed_compile(copy.deepcopy(model))
    rows = {}
    for name, batch in workloads(model, quick).items():
        wanted = exact64(batch).forces
        deviation = {
            side: float((potential(batch).forces - wanted).abs().max())
            for side, potential in sides.items()
        }
        runs = {side: (lambda p=p, batch=batch: p(batch)) for side, p in sides.items()}
        times = interleaved(runs, rounds=rounds, repeats=20 if len(batch.positions) < 20 else 1)
        n_edges = neighbors(batch, model.config.cutoff).n_edges
        rows[name] = {
            "atoms": len(batch.positions),
            "edges": n_edges,
            "k": n_edges / len(batch.positions),
            "largest_force_eV_A": float(wanted.abs().max()),
            "force_deviation_eV_A": deviation,
            "cpu_s": {side: time.cpu for side, time in times.items()},
            "cpu_min_s": {side: time.cpu_min for side, time in times.items()},
            "times_faster_than_exact": {
                side: times["exact"].cpu_min / time.cpu_min for side, time in times.items()
            },
        }
        print(size, name, n_edges, "edges", rows[name]["times_faster_than_exact"], deviation)
    return {"compile": compile_time, "workloads": rows}


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench modes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=["seed"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="seed, few rounds, no record")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes, rounds = (["seed"], 2) if args.quick else (args.sizes, args.rounds)
    rows = {size: measure(size, rounds, args.quick) for size in sizes}
    if args.quick:
        return
    settings = {"dtype": "float32", "threads": 1, "rounds": rounds, "load_per_core": company()}
    print("record:", save("modes", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
