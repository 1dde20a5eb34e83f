"""What recording saves: steps of small working sets, eager, the network recorded, the whole step.

    python -m bench steps [--device cuda] [--size air] [--kernels triton] [--accuracy high]
        [--quick]

FIRE with the Frechet filter, L-BFGS and Langevin dynamics of 8-atom crystals of silicon, 2 to 512
of them, random weights; wall time of four steps as `relax` and `md` take them, in turns, after a
synchronisation.  On a processor nothing is recorded: only the eager side is there, as a dry run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import ase.build
import torch

from bench.inference import random_model
from bench.measure import Stepper, company, interleaved
from bench.overhead import NEVER
from bench.record import save
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.potential import Potential
from dpa4sim.relax.fire import FireSettings, fire_init, fire_step
from dpa4sim.relax.freedom import unconstrained
from dpa4sim.relax.lbfgs import LbfgsSettings, lbfgs_init, lbfgs_step, settled
from dpa4sim.simulate.nvt import langevin_step
from dpa4sim.simulate.state import md_init, set_conditions
from dpa4sim.step_graphs import take_steps

COUNTS = (2, 8, 64, 512)
"""Crystals of eight atoms."""

STEPS = 4
"""Between two looks of the host, as in a relaxation on CUDA."""


def crystals(count: int) -> Batch:
    """Rattled conventional cells, each another."""
    images = []
    for seed in range(count):
        atoms = ase.build.bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=seed)
        images.append(from_atoms(atoms))
    return Batch.concatenate(images)


def potentials(args: argparse.Namespace) -> dict[str, Potential]:
    """The sides: the same weights."""
    asked: dict[str, Any] = {"device": args.device, "kernels": args.kernels}
    asked["accuracy"] = args.accuracy

    def made(compile: bool) -> Potential:
        return Potential(random_model(args.size, ("Si",)), compile=compile, **asked)

    sides = {"eager": made(False)}
    if torch.device(args.device).type == "cuda":
        sides["network recorded"], sides["steps recorded"] = made(True), made(True)
        sides["network recorded"].step_graphs = None
    return sides


def methods(batch: Batch, model: Potential) -> dict[str, tuple[Any, Any, Any]]:
    """(state, step, what settles a padded state) of each kind of step."""
    freedom = unconstrained(batch, True)
    endless: dict[str, Any] = {"fmax": NEVER, "max_steps": 10**6}
    fire = fire_init(batch, model, freedom=freedom, settings=FireSettings(**endless))
    descent = lbfgs_init(batch, model, freedom=freedom, settings=LbfgsSettings(**endless))
    motion = md_init(batch, model, conditions=set_conditions(batch, n_steps=10**6))
    return {
        "fire": (fire, fire_step, None),
        "lbfgs": (descent, lbfgs_step, settled),
        "langevin": (motion, langevin_step, None),
    }


def measure(args: argparse.Namespace, count: int) -> list[dict[str, Any]]:
    """One row per method."""
    batch = crystals(count).to(args.device)
    sides = {name: (p, methods(batch, p)) for name, p in potentials(args).items()}
    rows = []
    for method in ("fire", "lbfgs", "langevin"):
        runs = {name: stepper(p, *kinds[method]) for name, (p, kinds) in sides.items()}
        rounds, repeats = (1, 1) if args.quick else (7, 5)
        times = interleaved(runs, rounds=rounds, repeats=repeats)
        row: dict[str, Any] = {"method": method, "systems": count, "atoms": len(batch.positions)}
        row["ms_per_step"] = {name: 1e3 * t.wall / STEPS for name, t in times.items()}
        row["recordings_refused"] = [
            name for name, (p, _) in sides.items() if p.step_graphs and p.step_graphs.refused
        ]
        rows.append(row)
        said = ", ".join(f"{name} {ms:.3f}" for name, ms in row["ms_per_step"].items())
        print(f"{method:10}{count:5} x 8 atoms: {said} ms/step", flush=True)
    return rows


def stepper(model: Potential, state: Any, step: Any, settle: Any) -> Callable[[], None]:
    """Four steps a call, done when it returns."""

    def walk(now: Any) -> Any:
        after = take_steps(step, now, model, STEPS, settle)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return after

    return Stepper(state, walk)


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="air")
    parser.add_argument("--kernels", default="torch")
    parser.add_argument("--accuracy", default="exact")
    parser.add_argument("--quick", action="store_true", help="2 crystals, few rounds, no record")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [row for n in (COUNTS[:1] if args.quick else COUNTS) for row in measure(args, n)]
    if args.quick or torch.device(args.device).type != "cuda":
        return
    settings = {"size": args.size, "kernels": args.kernels, "accuracy": args.accuracy}
    settings |= {"steps": STEPS, "load_per_core": company()}
    print("record:", save(f"steps-{args.size}", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
