"""Structures per hour of a whole screening campaign, `seed` model, beside runners that only relax.

    python -m bench screen_speed [--systems Li-Fe-O Al-Ni-Ti Na-Zn-S] [--alone 8] [--quick]

The built-in prototypes that take the elements of a system, in an extxyz file.

    dpa4sim          the campaign: read, validate, find duplicates, relax (L-BFGS) candidates and
                     built-in references, check, store, hull, ranked table, report with its figures
    torchsim fire    `torch_sim.optimize`, InFlight autobatcher, Frechet filter: relaxes, no more
    ase fire, bfgs   one at a time with FrechetCellFilter, for some of them; relaxes, no more

fmax 0.02 eV/Å, at most 500 steps, cells relax.  Seconds are those of the processor, of the process
and its children; the sides take turns system by system.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import write
from ase.optimize import BFGS, FIRE

import dpa4sim
from bench.measure import company
from bench.record import save
from bench.relaxation import ATOMS_AT_ONCE, with_ase_alone, with_torchsim
from bench.relaxers import FMAX, MOST
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.potential import Potential
from dpa4sim.screen.decorate import decorate
from dpa4sim.screen.rank import write_report
from dpa4sim.screen.run import init
from dpa4sim.screen.runner import run
from dpa4sim.screen.settings import Candidates, Hull, Model, Relaxation, Settings


def seconds() -> float:
    """Of the processor until now, children that have ended included."""
    return sum(os.times()[:4])


def with_campaign(potential: Potential, images: Sequence[Atoms]) -> dict[str, Any]:
    """From the file to the report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "candidates.extxyz"
        write(file, list(images), format="extxyz")
        settings = Settings(
            model=Model(hash=model_fingerprint(potential)),
            candidates=Candidates(files=(str(file),)),
            relax=Relaxation(fmax=FMAX, max_steps=MOST - 1),
            hull=Hull(built_in=True),
        )
        with init(Path(folder) / "run", settings, potential, progress=False) as campaign:
            run(campaign, potential, progress=False)
            table = write_report(campaign)
    return {"converged": table["status"].to_pylist().count("converged")}


def measure(systems: Sequence[str], alone: int, most: int | None = None) -> dict[str, Any]:
    """Seconds and structures of every side."""
    potential = dpa4sim.load("seed")
    sides: dict[str, Callable[[list[Atoms]], dict[str, Any]]] = {
        "dpa4sim": lambda images: with_campaign(potential, images),
        "torchsim fire": lambda images: with_torchsim(potential, images),
        "ase fire": lambda images: with_ase_alone(FIRE, potential, images),
        "ase bfgs": lambda images: with_ase_alone(BFGS, potential, images),
    }
    rows = {name: {"structures": 0, "cpu_s": 0.0, "converged": 0} for name in sides}
    for system in systems:
        images = [c.atoms for c in decorate(system) if c.atoms is not None][:most]
        chosen = np.random.default_rng(0).permutation(len(images))[:alone]
        few = [images[index] for index in chosen]
        for name, relaxed in sides.items():
            part = few if name.startswith("ase") else images
            begin = seconds()
            rows[name]["converged"] += relaxed([atoms.copy() for atoms in part])["converged"]
            rows[name]["cpu_s"] += seconds() - begin
            rows[name]["structures"] += len(part)
            print(f"{system} {name:14} {rows[name]['cpu_s']:8.1f} s cpu", flush=True)
    for row in rows.values():
        row["structures_per_cpu_hour"] = 3600 * row["structures"] / row["cpu_s"]
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench screen_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--systems", nargs="+", default=["Li-Fe-O", "Al-Ni-Ti", "Na-Zn-S"])
    parser.add_argument("--alone", type=int, default=8, help="structures per system for ASE")
    parser.add_argument("--quick", action="store_true", help="three structures, no record")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure(args.systems[:1], 1, 3) if args.quick else measure(args.systems, args.alone)
    best = rows["dpa4sim"]["structures_per_cpu_hour"]
    print(f"{'side':15} structures/h (cpu)  converged   the campaign is faster by")
    for name, row in rows.items():
        row["campaign_times_faster"] = best / row["structures_per_cpu_hour"]
        print(
            f"{name:15}{row['structures_per_cpu_hour']:19.0f}"
            f"{row['converged']:7d}/{row['structures']}{row['campaign_times_faster']:17.2f}"
        )
    if args.quick:
        return
    settings = {"model": "seed", "dtype": "float32", "fmax": FMAX, "max_steps": MOST, "threads": 1}
    settings |= {"systems": args.systems, "atoms_at_once": ATOMS_AT_ONCE}
    settings |= {"alone": f"{args.alone} structures per system", "load_per_core": company()}
    print("record:", save("screen_speed", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
