"""512 structures relaxed end to end, `seed` model: this package, TorchSim, and one at a time.

    python -m bench relaxation [--structures 512] [--alone 48] [--quick]

Every structure is a real crystal, volume off by up to 10 %, sheared, rattled by 0.05 to 0.15 Å; the
cell relaxes; fmax is 0.02 eV/Å and counts the cell's forces on every side; at most 500 steps.

    dpa4sim lbfgs, fire   `dpa4sim.relax`
    torchsim fire         `torch_sim.optimize` with its InFlight autobatcher, Frechet filter,
                          `adapters.torchsim.DPA4Model`, the same number of atoms at once
    ase fire, bfgs        one at a time with FrechetCellFilter, for a random part of the structures;
                          the rest is scaled by the number of structures

Times are of the process; the sides run one after the other in turns of a quarter of the structures,
so that a slow hour of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.optimize import BFGS, FIRE

import dpa4sim
from bench.allocator import enter
from bench.measure import company
from bench.record import save
from bench.relaxers import FMAX, MOST, with_ase
from bench.starts import Start, library, perturbed
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.adapters.torchsim import DPA4Model
from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.potential import EnergyModel, Potential, Prediction

ATOMS_AT_ONCE = 1024
TURNS = 4
STEPS_BETWEEN_SWAPS = 5
"""TorchSim's own default."""


def structures(count: int, largest: int = 24, seed: int = 11) -> list[Atoms]:
    """Crystals of up to `largest` atoms, each as often as it takes, perturbed differently."""
    rng = np.random.default_rng(seed)
    known = list(library(np.random.default_rng(seed), largest, per_prototype=1000))
    return [perturbed(known[index % len(known)], rng, 0.10, (0.05, 0.15)) for index in range(count)]


class Counted:
    """A model that counts the structures it evaluates."""

    def __init__(self, model: EnergyModel):
        self.model, self.cutoff, self.device = model, model.cutoff, model.device
        self.structures = 0

    def __call__(self, batch: Batch) -> Prediction:
        """What the model says."""
        self.structures += batch.n_systems
        return self.model(batch)


def with_dpa4sim(optimizer: str, potential: Potential, images: Sequence[Atoms]) -> dict[str, Any]:
    """One call."""
    batch = Batch.concatenate(from_atoms(atoms) for atoms in images)
    per_atom = neighbors(batch, potential.cutoff).n_edges / len(batch.positions)
    result = dpa4sim.relax(
        potential,
        list(images),
        fmax=FMAX,
        optimizer=optimizer,
        max_steps=MOST - 1,
        max_edges=per_atom * ATOMS_AT_ONCE,
        progress=False,
    )
    converged = sum(status == dpa4sim.Status.CONVERGED for status in result.status)
    return {"converged": converged, "evaluations": sum(result.evaluations)}


def with_torchsim(potential: Potential, images: Sequence[Atoms]) -> dict[str, Any]:
    """TorchSim's runner; converged as its own criterion says, cell forces included."""
    import torch_sim as ts

    counted = Counted(potential)
    model = DPA4Model(counted)
    converged = ts.generate_force_convergence_fn(FMAX, include_cell_forces=True)
    batcher = ts.InFlightAutoBatcher(
        model, memory_scales_with="n_atoms", max_memory_scaler=ATOMS_AT_ONCE
    )
    state: Any = ts.optimize(
        list(images),
        model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=converged,
        max_steps=MOST,
        steps_between_swaps=STEPS_BETWEEN_SWAPS,
        autobatcher=batcher,
        init_kwargs={"cell_filter": ts.CellFilter.frechet},
    )
    return {"converged": int(converged(state, None).sum()), "evaluations": counted.structures}


def with_ase_alone(
    optimizer: type[FIRE] | type[BFGS], potential: Potential, images: Sequence[Atoms]
) -> dict[str, Any]:
    """One after another."""
    ends = [with_ase(optimizer, potential, Start("crystal", "", atoms)) for atoms in images]
    return {
        "converged": sum(end.converged for end in ends),
        "evaluations": sum(end.evaluations for end in ends),
    }


def measure(count: int, alone: int, largest: int = 24) -> dict[str, dict[str, Any]]:
    """Seconds, structures per hour and evaluations of every side."""
    potential = dpa4sim.load("seed")
    images = structures(count, largest)
    chosen = np.random.default_rng(0).permutation(count)[:alone]
    few = [images[index] for index in chosen]
    sides: dict[str, tuple[Callable[[Any], dict[str, Any]], list[Atoms]]] = {
        "dpa4sim lbfgs": (lambda part: with_dpa4sim("lbfgs", potential, part), images),
        "dpa4sim fire": (lambda part: with_dpa4sim("fire", potential, part), images),
        "torchsim fire": (lambda part: with_torchsim(potential, part), images),
        "ase fire": (lambda part: with_ase_alone(FIRE, potential, part), few),
        "ase bfgs": (lambda part: with_ase_alone(BFGS, potential, part), few),
    }
    rows = {
        name: {
            "structures": len(part),
            "cpu_s": 0.0,
            "wall_s": 0.0,
            "converged": 0,
            "evaluations": 0,
        }
        for name, (_, part) in sides.items()
    }
    for turn in range(TURNS):
        for name, (run, part) in sides.items():
            share = part[turn::TURNS]
            if not share:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            found = run(share)
            rows[name]["cpu_s"] += time.process_time() - cpu
            rows[name]["wall_s"] += time.perf_counter() - wall
            for key, value in found.items():
                rows[name][key] += value
            print(f"turn {turn + 1}/{TURNS} {name:14} {rows[name]['cpu_s']:8.1f} s cpu", flush=True)
    for row in rows.values():
        row["structures_per_cpu_hour"] = 3600 * row["structures"] / max(row["cpu_s"], 1e-9)
        row["evaluations_per_structure"] = row["evaluations"] / row["structures"]
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench relaxation", description=__doc__)
    parser.add_argument("--structures", type=int, default=512)
    parser.add_argument("--alone", type=int, default=48, help="structures that ASE gets")
    parser.add_argument("--allocator", choices=["tuned", "default"], default="default")
    parser.add_argument("--quick", action="store_true", help="two small structures, no record")
    args = parser.parse_args(arguments)
    enter(args.allocator, "relaxation", arguments)
    torch.set_num_threads(1)
    rows = measure(2, 1, largest=2) if args.quick else measure(args.structures, args.alone)
    best = rows["dpa4sim lbfgs"]["structures_per_cpu_hour"]
    print(f"{'side':15} structures/h (cpu)  evaluations each  converged   lbfgs is faster by")
    for name, row in rows.items():
        row["lbfgs_times_faster"] = best / row["structures_per_cpu_hour"]
        print(
            f"{name:15}{row['structures_per_cpu_hour']:19.0f}{row['evaluations_per_structure']:18.1f}"
            f"{row['converged']:7d}/{row['structures']}{row['lbfgs_times_faster']:17.2f}"
        )
    if args.quick:
        return
    settings = {"model": "seed", "dtype": "float32", "fmax": FMAX, "max_steps": MOST, "threads": 1}
    settings |= {"atoms_at_once": ATOMS_AT_ONCE, "allocator": args.allocator, "turns": TURNS}
    settings |= {"alone": f"{args.alone} structures, rates scaled", "k": _k()}
    settings["load_per_core"] = company()
    name = "relaxation" if args.allocator == "default" else f"relaxation-{args.allocator}"
    print("record:", save(name, {"settings": settings, "rows": rows}))


def _k() -> float:
    batch = Batch.concatenate(from_atoms(atoms) for atoms in structures(64))
    cutoff = dpa4sim.load("seed").cutoff
    return neighbors(batch, cutoff).n_edges / len(batch.positions)
