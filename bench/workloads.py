"""The five workloads by which potentials are compared, on any device.

    python -m bench workloads [--device cuda] [--size air] [--kernels triton] [--accuracy high]
        [--compile] [--only a b c d e] [--seconds 60] [--quick]

    a   1000 atoms of silicon, velocity Verlet by `dpa4sim.md`: steps/s, µs per atom and step
    b   silicon from 8 to 64,000 atoms, E + F + stress: µs per atom
    c   mixed crystals of 2 to 64 atoms relaxed together, 20 FIRE steps: µs per atom and step
    d   3,072 atoms of water, E + F + stress
    e   a training step of 1,500 atoms: energy and forces to the gradient of every weight

Random weights of a named size; numbers are checked to be finite, wall time after a synchronisation,
the median of what fits into the time given; peak memory of the device, of the process on a CPU.  A
row of the ladder that runs out of memory is recorded as that.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ase.build
import torch

import dpa4sim
from bench.growth import silicon
from bench.inference import crystals, random_model, water
from bench.measure import company
from bench.record import save
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.potential import Potential
from dpa4sim.train.compiled import force_pass, prepare

CELLS = (1, 2, 3, 5, 8, 12, 16, 20)
"""Cubes of so many conventional cells, 8 n^3 atoms."""


class Bench:
    """A size on a device.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.asked: dict[str, Any] = {"device": self.device, "compile": args.compile}
        self.asked |= {"kernels": args.kernels, "accuracy": args.accuracy}

    def potential(self, species: tuple[str, ...]) -> Potential:
        """Random weights for some elements."""
        return Potential(random_model(self.args.size, species), **self.asked)

    def wait(self) -> None:
        """Until the device has done what it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Median wall time of what fits into the time, after one that is not counted."""
        work()
        self.wait()
        times: list[float] = []
        while len(times) < 3 or sum(times) < self.args.seconds / 4:
            begin = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - begin)
            if sum(times) > self.args.seconds:
                break
        return statistics.median(times)

    def peak_mib(self) -> float:
        """Since the last call on CUDA; of the process until now on a CPU."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            torch.cuda.reset_peak_memory_stats()
            return peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def evaluation(self, potential: Potential, batch: Batch) -> dict[str, Any]:
        """E + F + stress with the neighbour search."""
        batch = batch.to(self.device)
        spent = self.seconds(lambda: potential(batch))
        if not bool(torch.isfinite(potential(batch).forces).all()):
            raise RuntimeError("The forces are not finite.")
        n_atoms, n_edges = len(batch.positions), neighbors(batch, potential.cutoff).n_edges
        row = {"atoms": n_atoms, "k": n_edges / n_atoms, "us_per_atom": 1e6 * spent / n_atoms}
        return {**row, "edges_per_s": n_edges / spent, "peak_mib": self.peak_mib()}

    def a(self) -> dict[str, Any]:
        """Dynamics of one crystal."""
        atoms = ase.build.bulk("Si", cubic=True) * ((2, 2, 2) if self.args.quick else (5, 5, 5))
        steps = 3 if self.args.quick else 200
        potential = self.potential(("Si",))

        def run(count: int) -> float:
            begin = time.perf_counter()
            dpa4sim.md(
                potential,
                [atoms],
                ensemble="nve",
                temperature=300.0,
                timestep=1.0,
                time_ps=count * 1e-3,
                progress=False,
            )
            self.wait()
            return time.perf_counter() - begin

        run(2)
        spent = (run(2 * steps) - run(steps)) / steps  # without the start
        rate = {"steps_per_s": 1 / spent, "us_per_atom_step": 1e6 * spent / len(atoms)}
        return {"atoms": len(atoms), **rate, "peak_mib": self.peak_mib()}

    def b(self) -> list[dict[str, Any]]:
        """The ladder."""
        potential, rows = self.potential(("Si",)), []
        for n in CELLS[:2] if self.args.quick else CELLS:
            try:
                rows.append(self.evaluation(potential, silicon(n, 0)))
            except torch.OutOfMemoryError:
                rows.append({"atoms": 8 * n**3, "out_of_memory": True})
            print("  ", rows[-1], flush=True)
            if "us_per_atom" in rows[-1]:
                row = rows[-1]
                if row["us_per_atom"] * row["atoms"] * 8e-6 > self.args.seconds:
                    break  # the next would take longer than it is given
        return rows

    def c(self) -> dict[str, Any]:
        """Relaxation of unlike structures, a fixed number of steps."""
        images, steps = crystals(4 if self.args.quick else 64), 3 if self.args.quick else 20
        species = tuple(sorted({symbol for atoms in images for symbol in atoms.symbols}))
        potential = self.potential(species)
        if self.device.type == "cuda":
            images = images * 16
        result: Any = None

        def relax(count: int) -> float:
            nonlocal result
            begin = time.perf_counter()
            result = dpa4sim.relax(
                potential,
                images,
                fmax=1e-9,
                optimizer="fire",
                max_steps=count,
                progress=False,
            )
            self.wait()
            return time.perf_counter() - begin

        relax(1)
        spent = relax(2 * steps) - relax(steps)
        atom_steps = sum(map(len, images)) * steps
        return {
            "structures": len(images),
            "atoms": sum(map(len, images)),
            "us_per_atom_step": 1e6 * spent / atom_steps,
            "ended": dict(Counter(status.name.lower() for status in result.status)),
            "peak_mib": self.peak_mib(),
        }

    def d(self) -> dict[str, Any]:
        """Water."""
        (atoms,) = water()
        repeated = atoms if self.args.quick else atoms * (2, 2, 4)
        return self.evaluation(self.potential(("O", "H")), from_atoms(repeated))

    def e(self) -> dict[str, Any]:
        """A training step."""
        (atoms,) = water()
        batch = from_atoms(atoms if self.args.quick else atoms * (2, 2, 2)).to(self.device)
        model = random_model(self.args.size, ("O", "H")).to(self.device).requires_grad_(True)
        model = prepare(model.train(), compile=self.args.compile)
        edges = neighbors(batch, model.config.cutoff)
        species = torch.where(batch.atomic_numbers == 8, 0, 1)
        vector = edges.vector.float().requires_grad_(True)
        list_ = Edges(edges.center, edges.neighbor, vector, edges.row_ptr)

        def step() -> None:
            energies, _ = model(species, list_)
            with force_pass():
                (g,) = torch.autograd.grad(energies.sum(), vector, create_graph=True)
            model.zero_grad(set_to_none=True)
            (g.square().sum() + energies.sum().float()).backward()

        spent, n_atoms = self.seconds(step), len(batch.positions)
        rate = {"us_per_atom": 1e6 * spent / n_atoms, "atoms_per_s": n_atoms / spent}
        return {"atoms": n_atoms, **rate, "peak_mib": self.peak_mib()}


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        prog="python -m bench workloads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="air")
    parser.add_argument("--kernels", default="torch", choices=("torch", "triton"))
    parser.add_argument("--accuracy", default="exact", choices=("exact", "high", "fast"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="+", default=list("abcde"), choices=list("abcde"))
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row")
    parser.add_argument("--quick", action="store_true", help="few atoms, no record")
    args = parser.parse_args(arguments)
    bench, rows = Bench(args), {}
    for name in args.only:
        rows[name] = getattr(bench, name)()
        print(name, rows[name], flush=True)
    if args.quick:
        return
    kept = {name: getattr(args, name) for name in ("device", "size", "kernels", "accuracy")}
    settings = {**kept, "compile": args.compile, "threads": torch.get_num_threads()}
    settings["load_per_core"] = company()
    way = "compiled" if args.compile else f"{args.kernels}-{args.accuracy}"
    record = save(f"workloads-{args.size}-{way}", {"settings": settings, "rows": rows})
    print("record:", record)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
