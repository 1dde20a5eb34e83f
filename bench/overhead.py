"""What a relaxation step costs beside the model: 1024 systems of 8 atoms, a model that is free.

    python -m bench overhead [--systems 1024] [--rounds 7] [--quick]

Sides: this package's FIRE (fixed cell, unit and Frechet filter) and L-BFGS (fixed and free cell,
with the real neighbour list of the cells), TorchSim's FIRE with the same filters and its L-BFGS
with the Frechet filter, and the kernels of nvalchemi-toolkit-ops that run on a processor: FIRE2 and
L-BFGS, fixed and variable cell.  The model gives the same small forces and stresses whenever it is
asked, so every side does a full step every time.  "compiled" are the steps of a model that was
loaded with compile=True; compiling them is not timed with them.  This package's steps judge
convergence and sickness; the others' do not, and their kernels leave that to the caller.

A Warp kernel is one ATen call whatever it does inside: compare the times, not the counts, with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from bench.allocator import enter
from bench.measure import Seconds, Stepper, calls, company, interleaved
from bench.record import save
from bench.toys import CompiledConstant, Constant, constant, eight_atom_cells, torchsim_constant
from dpa4sim.adapters.torchsim import to_state
from dpa4sim.batch import Batch
from dpa4sim.relax.fire import FireSettings, fire_init, fire_step
from dpa4sim.relax.freedom import unconstrained
from dpa4sim.relax.lbfgs import LbfgsSettings, lbfgs_init, lbfgs_step

NEVER = 1e-12
"""fmax in eV/Å that no step reaches."""

PAIRS = {
    "dpa4sim fire, frechet, compiled": "torchsim fire, frechet",
    "dpa4sim fire, frechet": "torchsim fire, frechet",
    "dpa4sim fire, unit": "torchsim fire, unit",
    "dpa4sim fire, fixed cell": "torchsim fire, fixed cell",
    "dpa4sim lbfgs, free cell": "torchsim lbfgs, frechet",
}
"""Which side is compared with which."""

TARGET = ("dpa4sim fire, frechet", "torchsim fire, frechet", 10.0)

COMPILED = ", compiled"
"""What the name of a side with compiled steps ends in."""


def ours(batch: Batch, model: Constant, compiled: bool) -> dict[str, Callable[[], Any]]:
    """This package's optimisers, each after its first evaluation.

    Args:
        compiled: also with compiled steps, which takes a minute or two the first time.
    """
    free, fixed = unconstrained(batch, True), unconstrained(batch, False)
    endless = FireSettings(fmax=NEVER, max_steps=10**6)
    descent = LbfgsSettings(fmax=NEVER, max_steps=10**6)
    fast = CompiledConstant(model.answer, model.cutoff)
    sides: dict[str, Callable[[], Any]] = {}
    for name, freedom, cell_filter in (
        ("fixed cell", fixed, None),
        ("unit", free, "unit"),
        ("frechet", free, "frechet"),
    ):
        state: Any = fire_init(
            batch, model, freedom=freedom, cell_filter=cell_filter, settings=endless
        )
        sides[f"dpa4sim fire, {name}"] = Stepper(state, lambda s: fire_step(s, model))
        if compiled and name == "frechet":
            sides[f"dpa4sim fire, {name}{COMPILED}"] = Stepper(state, lambda s: fire_step(s, fast))
    for name, freedom in (("fixed cell", fixed), ("free cell", free)):
        state = lbfgs_init(batch, model, freedom=freedom, settings=descent)
        sides[f"dpa4sim lbfgs, {name}"] = Stepper(state, lambda s: lbfgs_step(s, model))
    return sides


def torchsim(batch: Batch, model: Constant) -> dict[str, Callable[[], Any]]:
    """TorchSim's optimisers with a model that converts nothing."""
    import torch_sim as ts

    theirs = torchsim_constant(model.answer)
    sides: dict[str, Callable[[], Any]] = {}
    for name, cell_filter in (
        ("fixed cell", None),
        ("unit", ts.CellFilter.unit),
        ("frechet", ts.CellFilter.frechet),
    ):
        state: Any = ts.fire_init(to_state(batch), theirs, cell_filter=cell_filter)
        sides[f"torchsim fire, {name}"] = Stepper(state, lambda s: ts.fire_step(s, theirs))
    state = ts.lbfgs_init(to_state(batch), theirs, cell_filter=ts.CellFilter.frechet)
    sides["torchsim lbfgs, frechet"] = Stepper(state, lambda s: ts.lbfgs_step(s, theirs))
    return sides


def nvalchemi(batch: Batch, model: Constant) -> dict[str, Callable[[], Any]]:
    """The kernels of nvalchemi-toolkit-ops, every buffer made beforehand."""
    from nvalchemiops.torch import fire2, lbfgs

    n, m = len(batch.positions), batch.n_systems
    forces, stress = model.answer.forces, model.answer.stress
    system_idx = batch.system_idx.int()
    offsets = torch.nn.functional.pad(batch.n_atoms.cumsum(0), (1, 0)).int()

    def clocks() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        one = torch.ones(m, dtype=torch.float64)
        return 0.09 * one, 0.05 * one, torch.zeros(m, dtype=torch.int32)

    x, v, cell = batch.positions.clone(), torch.zeros_like(forces), batch.cell.clone()
    y, w, cell_v = batch.positions.clone(), torch.zeros_like(forces), torch.zeros_like(cell)
    alone, together = clocks(), clocks()
    z, u, box = batch.positions.clone(), batch.positions.clone(), batch.cell.clone()
    plain = lbfgs.lbfgs_prepare_state(n, m)
    packed = lbfgs.lbfgs_prepare_state(n + 2 * m, m)
    chart = lbfgs.lbfgs_prepare_cell_state(offsets, box)
    return {
        "nvalchemi-ops fire2, fixed cell": lambda: fire2.fire2_step_coord(
            x, v, forces, system_idx, *alone
        ),
        "nvalchemi-ops fire2, variable cell": lambda: fire2.fire2_step_coord_cell(
            y, w, forces, cell, cell_v, stress, system_idx, *together, atom_ptr=offsets
        ),
        "nvalchemi-ops lbfgs, fixed cell": lambda: lbfgs.lbfgs_step_coord(
            z, forces, plain, system_idx
        ),
        "nvalchemi-ops lbfgs, variable cell": lambda: lbfgs.lbfgs_step_coord_cell(
            u, box, forces, stress, packed, chart, system_idx
        ),
    }


def measure(systems: int, rounds: int, repeats: int, compiled: bool) -> dict[str, dict[str, Any]]:
    """Times and calls of every side."""
    batch = eight_atom_cells(systems)
    model = constant(batch)
    sides = {**ours(batch, model, compiled), **torchsim(batch, model), **nvalchemi(batch, model)}
    times: dict[str, Seconds] = interleaved(sides, rounds=rounds, repeats=repeats)
    rows = {}
    for name, run in sides.items():
        seconds = {f"{key}_ms": 1e3 * value for key, value in asdict(times[name]).items()}
        rows[name] = {**seconds, **calls(run)}
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench overhead", description=__doc__)
    parser.add_argument("--systems", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="default")
    parser.add_argument("--quick", action="store_true", help="a few small systems, no record")
    args = parser.parse_args(arguments)
    enter(args.allocator, "overhead", arguments)
    torch.set_num_threads(1)
    rows = measure(4, 1, 1, False) if args.quick else measure(args.systems, args.rounds, 5, True)
    print(f"{'side':36} cpu ms  wall ms   calls  reads")
    for name, row in rows.items():
        print(
            f"{name:36}{row['cpu_ms']:7.2f}{row['wall_ms']:9.2f}{row['aten_calls']:8d}"
            f"{row['reads']:7d} {row['reads_by_name'] or ''}"
        )
    ratios = {
        mine: rows[other]["cpu_ms"] / rows[mine]["cpu_ms"]
        for mine, other in PAIRS.items()
        if mine in rows
    }
    for mine, ratio in ratios.items():
        print(f"{mine} is {ratio:.1f} times faster than {PAIRS[mine]}")
    if args.quick:
        return
    settings = {"systems": args.systems, "atoms": 8, "dtype": "float64", "threads": 1}
    settings |= {"rounds": args.rounds, "repeats": 5, "allocator": args.allocator, "k": 43}
    settings["nvalchemi-toolkit-ops"] = version("nvalchemi-toolkit-ops")
    mine, other, wanted = TARGET
    target = {"sides": [mine, other], "times_faster": ratios[mine], "wanted": wanted}
    target["times_faster_compiled"] = ratios[mine + COMPILED]
    settings["load_per_core"] = company()
    name = "overhead" if args.allocator == "default" else f"overhead-{args.allocator}"
    print("record:", save(name, {"settings": settings, "target": target, "rows": rows}))
