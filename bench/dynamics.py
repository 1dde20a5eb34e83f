"""A step of molecular dynamics of 1000 systems of 8 atoms, beside TorchSim.

    python -m bench dynamics [--systems 1000] [--seed-systems 100] [--rounds 7] [--quick]

Ensembles: nve; nvt by Langevin and by stochastic velocity rescaling; npt by stochastic cell
rescaling, isotropic and triclinic, and beside it TorchSim's other two barostats.  Models, the same
on both sides: one that is free (constant forces), Lennard-Jones, and `seed` on fewer systems.
"compiled" are the steps of a model that was loaded with compile=True; compiling them is not timed
with them.  This package's steps also judge whether a system is sick; TorchSim's do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import ase.build
import torch

import dpa4sim
from bench.allocator import enter
from bench.measure import Stepper, calls, company, interleaved
from bench.record import save
from bench.toys import CompiledConstant, LennardJones, constant, eight_atom_cells, torchsim_constant
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.adapters.torchsim import DPA4Model, to_state
from dpa4sim.batch import Batch
from dpa4sim.potential import EnergyModel
from dpa4sim.simulate.npt import c_rescale_step
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step
from dpa4sim.simulate.state import md_init, set_conditions

TIMESTEP_FS, TEMPERATURE_K = 1.0, 300.0
OURS = {
    "nve": nve_step,
    "nvt langevin": langevin_step,
    "nvt rescaling": bussi_step,
    "npt isotropic": partial(c_rescale_step, coupling="isotropic"),
    "npt triclinic": partial(c_rescale_step, coupling="triclinic"),
}
THEIRS = {
    "nve": ("nve", "nve"),
    "nvt langevin": ("nvt_langevin", "nvt_langevin"),
    "nvt rescaling": ("nvt_vrescale", "nvt_vrescale"),
    "npt isotropic": ("npt_crescale", "npt_crescale_isotropic"),
    "npt triclinic": ("npt_crescale", "npt_crescale_triclinic"),
    "npt langevin": ("npt_langevin_isotropic", "npt_langevin_isotropic"),
    "npt nose-hoover": ("npt_nose_hoover_isotropic", "npt_nose_hoover_isotropic"),
}
"""Names of TorchSim's init and step functions."""

SAME = {"npt langevin": "npt isotropic", "npt nose-hoover": "npt isotropic"}
"""With which of ours a method that only TorchSim has is compared."""

COMPILED = ("nve", "nvt langevin", "npt isotropic")
"""Whose steps are also compiled, which takes a minute each the first time."""

TARGETS = {"nvt": 1.5, "npt": 5.0}


def ours(
    batch: Batch, model: EnergyModel, fast: EnergyModel | None
) -> dict[str, Callable[[], Any]]:
    """This package's steps, each from the same start.

    Args:
        fast: the same model as one that was loaded with compile=True; None for eager steps only.
    """
    conditions = set_conditions(
        batch, n_steps=10**6, timestep=TIMESTEP_FS, temperature=TEMPERATURE_K, pressure_gpa=0.0
    )
    sides: dict[str, Callable[[], Any]] = {}
    for name, step in OURS.items():
        state = md_init(batch, model, conditions=conditions)
        sides[f"dpa4sim {name}"] = Stepper(state, lambda s, step=step: step(s, model))
        if fast is not None and name in COMPILED:
            go_on = Stepper(state, lambda s, step=step: step(s, fast))
            sides[f"dpa4sim {name}, compiled"] = go_on
    return sides


def torchsim(batch: Batch, model: Any) -> dict[str, Callable[[], Any]]:
    """TorchSim's steps.

    Args:
        model: a TorchSim model.
    """
    from torch_sim import integrators
    from torch_sim.units import MetalUnits

    k_t = TEMPERATURE_K * float(MetalUnits.temperature)
    dt = 1e-3 * TIMESTEP_FS * float(MetalUnits.time)
    sides: dict[str, Callable[[], Any]] = {}
    for name, (start, step) in THEIRS.items():
        begin, go_on = getattr(integrators, f"{start}_init"), getattr(integrators, f"{step}_step")
        given = {"kT": torch.tensor(k_t), "dt": torch.tensor(dt)}
        moving: dict[str, Any] = {"dt": torch.tensor(dt)}
        if name != "nve":
            moving["kT"] = torch.tensor(k_t)
        if name.startswith("npt"):
            moving["external_pressure"] = torch.tensor(0.0)
        else:
            given.pop("dt")
        initial = to_state(batch)
        initial.rng = 0
        state = begin(initial, model, **given)
        sides[f"torchsim {name}"] = Stepper(
            state, lambda s, go_on=go_on, moving=moving: go_on(state=s, model=model, **moving)
        )
    return sides


def silicon(count: int) -> Batch:
    """Rattled conventional cells of silicon, for the `seed` model."""
    cells = []
    for index in range(count):
        atoms = ase.build.bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=index)
        cells.append(from_atoms(atoms))
    return Batch.concatenate(cells)


def measure(
    name: str,
    batch: Batch,
    model: EnergyModel,
    theirs: Any,
    rounds: int,
    repeats: int,
    fast: EnergyModel | None = None,
) -> dict[str, dict[str, Any]]:
    """Times of every ensemble on both sides, and TorchSim's over ours."""
    sides = {**ours(batch, model, fast), **torchsim(batch, theirs)}
    times = interleaved(sides, rounds=rounds, repeats=repeats)
    rows: dict[str, dict[str, Any]] = {}
    for side, seconds in times.items():
        ms = {f"{key}_ms": 1e3 * value for key, value in asdict(seconds).items()}
        rows[side] = {**ms, **(calls(sides[side]) if name == "free" else {})}
    for ensemble in THEIRS:
        mine = rows[f"dpa4sim {SAME.get(ensemble, ensemble)}"]
        other = rows[f"torchsim {ensemble}"]
        other["over_ours_cpu"] = other["cpu_ms"] / mine["cpu_ms"]
        other["over_ours_wall"] = other["wall_ms"] / mine["wall_ms"]
        compiled = rows.get(f"dpa4sim {SAME.get(ensemble, ensemble)}, compiled")
        if compiled is not None:
            other["over_compiled_cpu"] = other["cpu_ms"] / compiled["cpu_ms"]
    return rows


def report(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """The table of one model."""
    print(f"\n{name:34} cpu ms  wall ms   calls  reads  times ours (cpu), compiled")
    for side, row in rows.items():
        counts = f"{row['aten_calls']:8d}{row['reads']:7d}" if "reads" in row else 15 * " "
        ratio = f"{row['over_ours_cpu']:18.2f}" if "over_ours_cpu" in row else ""
        if "over_compiled_cpu" in row:
            ratio += f"{row['over_compiled_cpu']:10.2f}"
        print(f"{side:34}{row['cpu_ms']:7.2f}{row['wall_ms']:9.2f}{counts}{ratio}")


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench dynamics", description=__doc__)
    parser.add_argument("--systems", type=int, default=1000)
    parser.add_argument("--seed-systems", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="default")
    parser.add_argument("--quick", action="store_true", help="a few systems, no record")
    args = parser.parse_args(arguments)
    enter(args.allocator, "dynamics", arguments)
    torch.set_num_threads(1)
    count, few, rounds = (2, 1, 1) if args.quick else (args.systems, args.seed_systems, args.rounds)
    cells, fcc_a = eight_atom_cells(count), 3.8
    loose = eight_atom_cells(count, a=fcc_a)
    free, pair, seed = constant(cells, force=1e-3), LennardJones(), dpa4sim.load("seed")
    answer = torchsim_constant(free.answer)
    fast = None if args.quick else CompiledConstant(free.answer, free.cutoff)
    tables = {
        "free": measure("free", cells, free, answer, rounds, 1 if args.quick else 5, fast),
        "lennard-jones": measure("lj", loose, pair, DPA4Model(pair), rounds, 1),
        "seed": measure("seed", silicon(few), seed, DPA4Model(seed), min(rounds, 3), 1),
    }
    for name, rows in tables.items():
        report(name, rows)
    if args.quick:
        return
    settings = {"systems": args.systems, "systems_seed": args.seed_systems, "atoms": 8}
    settings |= {"threads": 1, "rounds": args.rounds, "allocator": args.allocator}
    settings |= {"timestep_fs": TIMESTEP_FS, "temperature_k": TEMPERATURE_K, "targets": TARGETS}
    settings["load_per_core"] = company()
    name = "dynamics" if args.allocator == "default" else f"dynamics-{args.allocator}"
    print("record:", save(name, {"settings": settings, "models": tables}))
