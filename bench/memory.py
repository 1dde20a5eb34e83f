"""Peak memory per edge, of inference and of a training step.

    python -m bench memory [--sizes seed neo air] [--quick]

Each case runs in a process of its own on two batches of crystals; what the larger one needs more,
over its additional edges, is the memory per edge, and the largest batch per GiB follows.

    inference          Potential, kernels written by hand
    inference, large   as batches of very many edges are run: activations are made again
    inference, plain   the same without them: autograd of the whole network
    training           energy and forces to the gradient of every weight, kernels written by hand
    training, recompute  the same with the activations of a block made again in the backward pass
    training, autograd   without the kernels
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import torch

from bench.measure import company
from bench.record import save

CASES = (
    "inference",
    "inference, large",
    "inference, plain",
    "training",
    "training, recompute",
    "training, autograd",
)
ATOMS = {"inference": (512, 2048), "training": (128, 512)}
"""Of the smaller and the larger batch."""

SPACING_A = 2.7


def batch_of(n_atoms: int, elements: list[int]) -> Any:
    """A shaken simple cubic crystal."""
    from dpa4sim.batch import Batch

    side = {128: (4, 4, 8), 512: (8, 8, 8), 2048: (8, 16, 16), 64: (4, 4, 4)}[n_atoms]
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in side))
    noise = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0), dtype=grid.dtype)
    numbers = torch.tensor(elements)[torch.arange(n_atoms) % len(elements)]
    cell = SPACING_A * torch.diag(torch.tensor(side, dtype=torch.float64))
    return Batch.single(SPACING_A * grid + 0.1 * noise, numbers, cell, True)


def child(case: str, size: str, n_atoms: int) -> None:
    """Run one case; print edges and the peak in bytes."""
    from bench.modes import network
    from dpa4sim.edges import Edges, neighbors
    from dpa4sim.model import dpa4
    from dpa4sim.potential import Potential
    from dpa4sim.train.compiled import force_pass, prepare

    torch.set_num_threads(1)
    model = network(size)
    batch = batch_of(n_atoms, list(model.config.atomic_numbers[:4]))
    edges = neighbors(batch, model.config.cutoff)
    if case.startswith("inference"):
        model.hand_written = case != "inference, plain"
        if case == "inference, large":
            dpa4.is_large, dpa4.room = lambda n_edges: True, lambda n_edges: 0
        Potential(model)(batch)
    else:
        model.requires_grad_(True).train()
        if case != "training, autograd":
            model = prepare(model, compile=False, recompute=case.endswith("recompute"))
        species = torch.arange(n_atoms) % 4
        vector = edges.vector.float().requires_grad_(True)
        energies, _ = model(species, Edges(edges.center, edges.neighbor, vector, edges.row_ptr))
        with force_pass():
            (g,) = torch.autograd.grad(energies.sum(), vector, create_graph=True)
        (g.square().sum() + energies.sum().float()).backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"edges": edges.n_edges, "peak": peak}))


def measure(case: str, size: str, atoms: tuple[int, int]) -> dict[str, float]:
    """Bytes per edge from two processes."""
    found = []
    for n_atoms in atoms:
        command = [sys.executable, "-m", "bench", "memory", "--child", case, size, str(n_atoms)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    small, large = found
    per_edge = (large["peak"] - small["peak"]) / (large["edges"] - small["edges"])
    k = large["edges"] / atoms[1]
    return {
        "edges": large["edges"],
        "k": k,
        "peak_mib": large["peak"] / 2**20,
        "bytes_per_edge": per_edge,
        "edges_per_gib": 2**30 / per_edge,
        "atoms_per_gib": 2**30 / per_edge / k,
    }


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=["seed"])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="small batches of seed, no record")
    args = parser.parse_args(arguments)
    if args.child:
        child(args.child[0], args.child[1], int(args.child[2]))
        return
    rows: dict[str, dict[str, Any]] = {}
    for size in ["seed"] if args.quick else args.sizes:
        for case in CASES:
            atoms = (64, 128) if args.quick else ATOMS[case.split(",")[0]]
            found = rows.setdefault(size, {})[case] = measure(case, size, atoms)
            print(f"{size:5} {case:20} {found['bytes_per_edge']:9.0f} bytes per edge", flush=True)
    if not args.quick:
        settings = {"dtype": "float32", "threads": 1, "load_per_core": company()}
        print("record:", save("memory", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
