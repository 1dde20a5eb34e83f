"""Arithmetic of an evaluation beside what the processor can do, and against its neighbours.

    python -m bench flops [--sizes seed neo air] [--quick]

Operations of matrix products are counted by torch.utils.flop_counter while energy, forces and
stress of rattled silicon are computed; the ceiling is what a square float32 product of side 1024
reaches in the same process.  The ladder of neighbours changes the cutoff, k = 15 to 158, on the
same 512 atoms, so that time per edge shows what does not follow the edges.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.growth import seconds, silicon
from bench.inference import random_model
from bench.measure import company
from bench.modes import network
from bench.record import save
from dpa4sim.edges import neighbors
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential

CUTOFFS_A = (4.2, 5.2, 6.0, 7.2, 9.1)
"""Å: 16 to 158 neighbours in silicon."""

SIDE, ROUNDS = 1024, 7


def ceiling() -> float:
    """GFLOP/s of one square product, the best of some."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - begin)
    return 2e-9 * SIDE**3 / best


def in_place_product(out: Any, a: Any, b: Any, **_: Any) -> int:
    """Operations of addmm_ by its shapes, which PyTorch's own table leaves out."""
    return 2 * a[0] * a[1] * b[1]


def arithmetic(size: str, cells: int) -> dict[str, Any]:
    """Operations and rates of one network."""
    model = network(size) if size == "seed" else random_model(size, ("Si",))
    potential, batch = Potential(model), silicon(cells, 0)
    potential(batch)
    in_place = {torch.ops.aten.addmm_: in_place_product}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        potential(batch)
    operations = counter.get_total_flops()
    before = ceiling()
    spent, _ = seconds(potential, batch, ROUNDS)
    limit = max(before, ceiling())
    n_edges, n_atoms = neighbors(batch, potential.cutoff).n_edges, len(batch.positions)
    return {
        "atoms": n_atoms,
        "k": n_edges / n_atoms,
        "mflop_per_atom": 1e-6 * operations / n_atoms,
        "mflop_per_edge": 1e-6 * operations / n_edges,
        "gflop_per_s": 1e-9 * operations / spent,
        "ceiling_gflop_per_s": limit,
        "share_of_ceiling": 1e-9 * operations / spent / limit,
        "us_per_atom": 1e6 * spent / n_atoms,
        "edges_per_s": n_edges / spent,
    }


def ladder(cells: int) -> list[dict[str, float]]:
    """Time per edge against the number of neighbours, by the cutoff of Neo."""
    rows = []
    batch = silicon(cells, 0)
    for cutoff in CUTOFFS_A:
        torch.manual_seed(7)
        model = random_model("neo", ("Si",))
        wider = DPA4(replace(model.config, cutoff=cutoff))
        wider.load_state_dict(model.state_dict())
        potential = Potential(wider)
        potential(batch)
        spent, listing = seconds(potential, batch, 3)
        n_edges = neighbors(batch, cutoff).n_edges
        rows.append(
            {
                "cutoff": cutoff,
                "k": n_edges / len(batch.positions),
                "us_per_edge": 1e6 * spent / n_edges,
                "us_per_atom": 1e6 * spent / len(batch.positions),
                "neighbor_us_per_edge": 1e6 * listing / n_edges,
            }
        )
        print(f"k {rows[-1]['k']:6.1f}  {rows[-1]['us_per_edge']:7.2f} us per edge", flush=True)
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench flops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=["seed", "neo", "air"])
    parser.add_argument("--quick", action="store_true", help="64 atoms, seed, no record")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cells = 2 if args.quick else 3
    rows = {}
    for size in ["seed"] if args.quick else args.sizes:
        rows[size] = arithmetic(size, cells)
        print(size, {name: round(value, 2) for name, value in rows[size].items()}, flush=True)
    if args.quick:
        return
    steps = ladder(4)
    settings = {"dtype": "float32", "threads": 1, "load_per_core": company()}
    print("record:", save("flops", {"settings": settings, "rows": rows, "neighbors": steps}))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
