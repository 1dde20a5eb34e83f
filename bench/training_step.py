"""A training step: plain autograd, the hand-written passes, compiled, and bfloat16 products.

    python -m bench training_step [--sizes small neo] [--data water/data_0]

192-atom water at a 6 Å cutoff, float32, one thread; sides interleaved.  A step is energy, forces
by a differentiable first backward pass, loss, and the backward pass to every weight.  Gradients are
compared with autograd's in float64 before anything is timed.  What compiling costs is the first
step's CPU time, that of the C++ compiler included.  The yardstick times DeePMD-kit's trainer.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch

from bench.allocator import enter
from bench.inference import random_model, water
from bench.measure import company, interleaved
from bench.record import save
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.config import DPA4Config
from dpa4sim.edges import Edges, neighbors
from dpa4sim.kernels.precision import matmul_precision
from dpa4sim.model import DPA4
from dpa4sim.train.compiled import fallbacks, force_pass, prepare

SPECIES = ("O", "H")
SMALL = DPA4Config(species=SPECIES, channels=32, max_degree=2, n_blocks=3, so2_layers=4)
TOLERANCE = 1e-3
"""Median over tensors of the relative gradient deviation from float64; bfloat16 is reported."""


def build(size: str) -> DPA4:
    """The network with no branch asleep."""
    if size != "small":
        return random_model(size, SPECIES)
    model = DPA4(SMALL)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def frame(folder: Path | None) -> ase.Atoms:
    """The first frame of a DeePMD folder, or a water-like cell."""
    if folder is None:
        return water()[0]
    names = (folder / "type_map.raw").read_text().split()
    symbols = [names[int(kind)] for kind in (folder / "type.raw").read_text().split()]
    part = folder / "set.000"
    box, coord = (np.load(part / f"{name}.npy")[0] for name in ("box", "coord"))
    return ase.Atoms(symbols, coord.reshape(-1, 3), cell=box.reshape(3, 3), pbc=True)


class Step:
    """One training step of a network on one batch; the gradients stay on the parameters."""

    def __init__(self, model: DPA4, atoms: ase.Atoms, precision: str = "highest"):
        self.model, self.precision = model, precision
        batch = from_atoms(atoms)
        self.edges = neighbors(batch, model.config.cutoff)
        numbers = model.config.atomic_numbers
        self.species = torch.tensor([numbers.index(z) for z in batch.atomic_numbers.tolist()])
        generator = torch.Generator().manual_seed(1)
        dtype = model.species_table.dtype
        labels = torch.randn(len(atoms), 3, generator=generator, dtype=torch.float64)
        self.forces = labels.to(dtype)

    def __call__(self) -> None:
        """Energy and force losses to the gradient of every weight."""
        context = nullcontext() if self.precision == "highest" else matmul_precision("medium")
        with context:
            edges = self.edges
            vector = edges.vector.to(self.forces.dtype).requires_grad_(True)
            energies, _ = self.model(
                self.species, Edges(edges.center, edges.neighbor, vector, edges.row_ptr)
            )
            with force_pass():
                (g,) = torch.autograd.grad(energies.sum(), vector, create_graph=True)
            forces = torch.zeros_like(self.forces).index_add(0, edges.center, g)
            forces = forces.index_add(0, edges.neighbor, g, alpha=-1)
            loss = torch.linalg.vector_norm(forces - self.forces + 1e-12, dim=1).mean()
            loss = loss + energies.mean().abs()
            self.model.zero_grad(set_to_none=True)
            loss.backward()

    def gradients(self) -> dict[str, torch.Tensor]:
        """Of the last step, float64."""
        named = self.model.named_parameters()
        return {name: p.grad.double() for name, p in named if p.grad is not None}


def median_deviation(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Over tensors, of the largest error relative to the tensor's largest entry."""
    errors = [
        float((found[name] - g).abs().max() / g.abs().max().clamp(min=1e-30))
        for name, g in exact.items()
    ]
    return float(np.median(errors))


def measure(size: str, atoms: ase.Atoms, rounds: int) -> dict[str, Any]:
    """Seconds per step of every side, its compile time and its gradients' deviation."""
    model = build(size)
    reference = Step(copy.deepcopy(model).double(), atoms)
    reference()
    exact = reference.gradients()
    sides = {
        "autograd": Step(copy.deepcopy(model), atoms),
        "passes": Step(prepare(copy.deepcopy(model), compile=False), atoms),
        "compiled": Step(prepare(copy.deepcopy(model), compile=True), atoms),
        "compiled_medium": Step(prepare(copy.deepcopy(model), compile=True), atoms, "medium"),
        "compiled_bfloat16": Step(
            prepare(copy.deepcopy(model), compile=True, products=torch.bfloat16), atoms
        ),
    }
    first, deviations = {}, {}
    for name, step in sides.items():
        start, cpu = time.perf_counter(), sum(os.times()[:4])
        step()
        first[name] = {"wall": time.perf_counter() - start, "cpu": sum(os.times()[:4]) - cpu}
        deviations[name] = median_deviation(step.gradients(), exact)
        if "bfloat16" not in name and not deviations[name] < TOLERANCE:
            raise RuntimeError(f"{size} {name}: the gradients disagree: {deviations[name]:.2e}")
    seconds = interleaved(sides, rounds=rounds, repeats=1)
    base = seconds["autograd"].cpu
    return {
        "size": size,
        "atoms": len(atoms),
        "edges": reference.edges.n_edges,
        "fallbacks": fallbacks(model),
        "first_step_seconds": first,
        "median_gradient_deviation_from_float64": deviations,
        "seconds": {name: asdict(times) for name, times in seconds.items()},
        "speedup_over_autograd": {name: base / times.cpu for name, times in seconds.items()},
    }


def main(arguments: list[str]) -> None:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench training_step", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["small", "neo"])
    parser.add_argument("--data", type=Path, default=None, help="a DeePMD-kit folder of water")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    args = parser.parse_args(arguments)
    enter(args.allocator, "training_step", arguments)
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # in children that are waited for and counted
    atoms, rows = frame(args.data), []
    for size in args.sizes:
        row = measure(size, atoms, args.rounds)
        rows.append(row)
        for name, times in row["seconds"].items():
            print(
                f"{size:6} {name:18} {1e3 * times['cpu']:8.0f} ms  "
                f"{row['speedup_over_autograd'][name]:.2f}x  first step "
                f"{row['first_step_seconds'][name]['cpu']:.0f} s cpu  gradients "
                f"{row['median_gradient_deviation_from_float64'][name]:.1e}"
            )
    settings = {"threads": 1, "dtype": "float32", "allocator": args.allocator}
    settings |= {"rounds": args.rounds, "processes_per_core": company()}
    print("record:", save("training_step", {"settings": settings, "rows": rows}))
