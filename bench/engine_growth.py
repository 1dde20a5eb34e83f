"""Time per atom of a relaxation step, from 1 to 10,000 structures and from 8 to 20,000 atoms.

    python -m bench engine_growth [--largest 80000] [--rounds 3] [--quick]

FIRE with the Frechet filter and L-BFGS, cells free, with a model that costs nothing (constant
forces, the real neighbour list) and with Lennard-Jones (neighbour list rebuilt every step).  Flat
means linear cost; what a small batch pays more is the fixed cost of a step, which is fitted:

    time of a step = fixed + atoms * slope
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ase.build
import numpy as np
import torch

from bench.allocator import enter
from bench.measure import Stepper, company, interleaved
from bench.overhead import NEVER
from bench.record import save
from bench.toys import LennardJones, constant, eight_atom_cells
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.fire import FireSettings, fire_init, fire_step
from dpa4sim.relax.freedom import unconstrained
from dpa4sim.relax.lbfgs import LbfgsSettings, lbfgs_init, lbfgs_step

COUNTS = (1, 10, 100, 1000, 10_000)
EDGES = ((2, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 4), (8, 8, 8), (16, 16, 8), (18, 18, 16))
"""Conventional fcc cells of 4 atoms along each side: 8 to 20,736 atoms in one structure."""

MOST_ATOM_STEPS = 200_000
"""Repetitions of one sample are chosen to make about this many."""

STEEP = 1000
"""Atoms from which on the spread of the time per atom is stated."""


def one_cell(repeats: tuple[int, int, int]) -> Batch:
    """A rattled supercell."""
    atoms = ase.build.bulk("Cu", "fcc", a=3.8, cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=3)
    return from_atoms(atoms)


def steppers(batch: Batch, model: EnergyModel) -> dict[str, Callable[[], Any]]:
    """Both optimisers at work."""
    freedom = unconstrained(batch, True)
    fire: Any = fire_init(
        batch, model, freedom=freedom, settings=FireSettings(fmax=NEVER, max_steps=10**6)
    )
    descent: Any = lbfgs_init(
        batch, model, freedom=freedom, settings=LbfgsSettings(fmax=NEVER, max_steps=10**6)
    )
    return {
        "fire": Stepper(fire, lambda s: fire_step(s, model)),
        "lbfgs": Stepper(descent, lambda s: lbfgs_step(s, model)),
    }


def measure(name: str, batch: Batch, rounds: int) -> list[dict[str, Any]]:
    """One row per optimiser and model."""
    count, rows = len(batch.positions), []
    models: dict[str, EnergyModel] = {"free": constant(batch), "lennard-jones": LennardJones()}
    for label, model in models.items():
        repeats = max(1, min(20, MOST_ATOM_STEPS // count // (1 if label == "free" else 10)))
        times = interleaved(steppers(batch, model), rounds=rounds, repeats=repeats)
        for optimizer, seconds in times.items():
            row = {"name": name, "model": label, "optimizer": optimizer, "atoms": count}
            row |= {"systems": batch.n_systems, "us_per_atom": 1e6 * seconds.cpu / count}
            rows.append({**row, **{f"{k}_ms": 1e3 * v for k, v in asdict(seconds).items()}})
            print(
                f"{name:16}{label:14}{optimizer:6}{1e3 * seconds.cpu:10.2f} ms"
                f"{1e6 * seconds.cpu / count:10.3f} us/atom",
                flush=True,
            )
    return rows


def spread(values: np.ndarray) -> float | None:
    """Largest less smallest over the mean; None for fewer than two values."""
    return float(np.ptp(values) / values.mean()) if len(values) > 1 else None


def shape(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Fixed cost and slope of each curve; spread of the time per atom from `STEEP` atoms on, as it
    is and without the fixed cost.
    """
    found = {}
    for ladder in ("structures", "atoms"):
        for model in ("free", "lennard-jones"):
            for optimizer in ("fire", "lbfgs"):
                curve = [
                    row
                    for row in rows
                    if (row["model"], row["optimizer"], row["ladder"]) == (model, optimizer, ladder)
                ]
                atoms = np.array([row["atoms"] for row in curve], float)
                ms = np.array([row["cpu_ms"] for row in curve])
                design = np.stack([np.ones_like(atoms), atoms], 1) / ms[:, None]
                fixed, slope = np.linalg.lstsq(design, np.ones_like(ms))[0]
                beyond = (ms - fixed) / atoms
                found[f"{ladder}, {model}, {optimizer}"] = {
                    "fixed_ms": float(fixed),
                    "us_per_atom": float(1e3 * slope),
                    "spread": spread(1e3 * ms[atoms >= STEEP] / atoms[atoms >= STEEP]),
                    "spread_beyond_fixed": spread(beyond[atoms >= STEEP]),
                }
    return found


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench engine_growth", description=__doc__)
    parser.add_argument("--largest", type=int, default=80_000, help="atoms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--quick", action="store_true", help="a few small batches, no record")
    args = parser.parse_args(arguments)
    enter(args.allocator, "engine_growth", arguments)
    torch.set_num_threads(1)
    largest, rounds = (64, 1) if args.quick else (args.largest, args.rounds)
    rows: list[dict[str, Any]] = []
    for count in COUNTS:
        if 8 * count <= largest:
            found = measure(f"{count} x 8 atoms", eight_atom_cells(count, a=3.8), rounds)
            rows += [{**row, "ladder": "structures"} for row in found]
    for repeats in EDGES:
        if 4 * int(np.prod(repeats)) <= largest:
            batch = one_cell(repeats)
            found = measure(f"{len(batch.positions)} atoms", batch, rounds)
            rows += [{**row, "ladder": "atoms"} for row in found]
    if args.quick:
        return
    shapes = shape(rows)
    for name, fit in shapes.items():
        parts = [fit["spread"], fit["spread_beyond_fixed"]]
        said = ["one point" if part is None else f"{100 * part:.0f} %" for part in parts]
        print(
            f"{name:34}{fit['fixed_ms']:6.2f} ms + {fit['us_per_atom']:.3f} us/atom; spread from "
            f"{STEEP} atoms on {said[0]}, beyond the fixed cost {said[1]}"
        )
    settings = {"threads": 1, "dtype": "float64", "k": 43, "rounds": args.rounds}
    settings |= {"allocator": args.allocator, "cutoff": LennardJones().cutoff}
    settings["load_per_core"] = company()
    name = "engine_growth" if args.allocator == "tuned" else f"engine_growth-{args.allocator}"
    print("record:", save(name, {"settings": settings, "shape": shapes, "rows": rows}))
