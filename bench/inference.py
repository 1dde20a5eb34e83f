"""Energy, forces and stress beside DeePMD-kit: same weights, same structures, interleaved.

    python -m bench inference --deepmd .peers/deepmd/bin/python [--compiled] [--repeats 5]

Workloads: 192-atom water-like liquid and 64 mixed crystals; sizes neo and air, float32, matmul
precision "highest" on both sides (`--matmul medium`: "medium" there, accuracy="fast" here), one
thread each.  With `--compiled` DeePMD-kit's compiled path
stands beside our `compile=True`, too.  `--allocator tuned` gives both processes an
allocator that keeps its pages.  Numbers are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import torch

from bench.allocator import enter
from bench.record import save
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.adapters.deepmd import write_deepmd
from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.edges import neighbors
from dpa4sim.kernels.triton_plan import Accuracy
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential, Prediction

TOLERANCE = {"highest": 2e-4, "medium": 2e-2}
"""Largest allowed force deviation between both sides, relative to the largest force."""


def random_model(size: str, species: tuple[str, ...]) -> DPA4:
    """A named size with every branch active; zero-initialised tensors get small random values."""
    torch.manual_seed(7)
    model = DPA4(DPA4Config.named(size, species))
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scales" in name or not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.1 * noise if parameter.ndim > 1 else 1 + 0.1 * noise)
    return model


def water() -> list[ase.Atoms]:
    """64 water molecules at 1 g/cm^3 on a jittered lattice: 192 atoms, k as in the liquid."""
    rng = np.random.default_rng(3)
    molecule = np.array([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    side = 12.42
    positions = []
    for index in np.ndindex(4, 4, 4):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        center = (np.array(index) + 0.5) * side / 4 + rng.normal(0, 0.15, 3)
        positions.append(molecule @ turn + center)
    return [ase.Atoms("OHH" * 64, np.concatenate(positions), cell=[side] * 3, pbc=True)]


def crystals(n: int = 64) -> list[ase.Atoms]:
    """Mixed crystals of 2-64 atoms from the package, rattled."""
    path = Path(__file__).parents[1] / "dpa4sim" / "crystals" / "experimental.extxyz"
    found = ase.io.read(path, ":")
    step = len(found) / n
    chosen = [found[int(i * step)].copy() for i in range(n)]
    for index, atoms in enumerate(chosen):
        atoms.rattle(0.05, seed=index)
    return chosen


WORKLOADS = {"water": water, "crystals": crystals}


class Peer:
    """A process of another program that evaluates on command."""

    def __init__(
        self,
        python: str,
        model: str | Path,
        data: Path,
        environment: dict[str, str],
        worker: str = "deepmd_worker.py",
    ):
        self.worker = Path(__file__).with_name(worker)
        self.process = subprocess.Popen(
            [python, str(self.worker), str(model), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.about = self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process ended; run {self.worker.name} by hand.")
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command, wait for its answer."""
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        return self.answer()


def write_structures(structures: list[ase.Atoms], path: Path) -> None:
    """What the worker reads."""
    data = {}
    for index, atoms in enumerate(structures):
        name = f"s{index:04d}"
        data[f"{name}/coord"], data[f"{name}/box"] = atoms.positions, atoms.cell.array
        data[f"{name}/symbols"] = np.array(atoms.get_chemical_symbols())
    np.savez(path, **data)


def deviation(ours: Prediction, theirs: Any) -> dict[str, float]:
    """Largest differences between both sides."""
    names = sorted({key.split("/")[0] for key in theirs.files})
    energy = np.array([theirs[f"{name}/energy"].ravel()[0] for name in names])
    force = np.concatenate([theirs[f"{name}/force"].reshape(-1, 3) for name in names])
    return {
        "energy_eV": float(np.abs(ours.energy.numpy() - energy).max()),
        "force_eV_A": float(np.abs(ours.forces.numpy() - force).max()),
        "largest_force_eV_A": float(np.abs(force).max()),
    }


def allowed(found: Prediction, matmul: str) -> float:
    """Largest allowed force deviation, eV/Å."""
    return TOLERANCE[matmul] * max(1.0, float(found.forces.abs().max()))


def interleaved(
    sides: dict[str, Potential], peers: dict[str, Peer], batch: Batch, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of everybody's evaluation, in turns."""
    times: dict[str, list[dict[str, float]]] = {side: [] for side in (*sides, *peers)}
    for _ in range(repeats):
        for name, side in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            side(batch)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            times[name].append({"wall": wall, "cpu": cpu})
        for mode, peer in peers.items():
            times[mode].append(peer.ask("run"))
    for peer in peers.values():
        peer.process.kill()
    return {
        side: {
            "wall_median": statistics.median(t["wall"] for t in runs),
            "wall_min": min(t["wall"] for t in runs),
            "cpu_median": statistics.median(t["cpu"] for t in runs),
            "cpu_min": min(t["cpu"] for t in runs),
        }
        for side, runs in times.items()
    }


def start_peers(args: argparse.Namespace, checkpoint: Path, data: Path) -> dict[str, Peer]:
    """DeePMD-kit's processes, with the precision that was asked for."""
    modes = {"eager": "0", **({"compiled": "1"} if args.compiled else {})}
    found = {}
    for mode, flag in modes.items():
        settings = {"DP_COMPILE_INFER": flag, "MATMUL_PRECISION": args.matmul}
        found[mode] = Peer(args.deepmd, checkpoint, data, {**os.environ, **settings})
        if found[mode].about["precision"] != args.matmul:
            raise RuntimeError(f"DeePMD-kit's precision is {found[mode].about['precision']}.")
    return found


def measure(size: str, workload: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Interleaved times of one size and workload, in seconds."""
    structures = WORKLOADS[workload]()
    species = tuple(sorted({s for atoms in structures for s in atoms.get_chemical_symbols()}))
    model = random_model(size, species)
    checkpoint, data = folder / f"{size}.{workload}.pt", folder / f"{workload}.npz"
    write_deepmd(model.config, model.state_dict(), checkpoint)
    write_structures(structures, data)
    accuracy: Accuracy = "exact" if args.matmul == "highest" else "fast"
    sides = {"dpa4sim": Potential(model, accuracy=accuracy)}
    if args.compiled:
        other = copy.deepcopy(model)
        sides["dpa4sim compiled"] = Potential(other, accuracy=accuracy, compile=True)
    potential = sides["dpa4sim"]
    batch = Batch.concatenate(from_atoms(atoms) for atoms in structures)
    edges = neighbors(batch, potential.cutoff)
    peers = start_peers(args, checkpoint, data)
    ours = potential(batch)
    limit = allowed(ours, args.matmul)
    for side in sides.values():
        torch.testing.assert_close(side(batch).forces, ours.forces, rtol=0, atol=limit)
    for mode, peer in peers.items():
        peer.ask("run")
        peer.ask(f"save {folder / mode}.npz")
        found = deviation(ours, np.load(folder / f"{mode}.npz"))
        if not found["force_eV_A"] < limit:
            raise RuntimeError(f"{size} {workload} {mode}: the numbers disagree: {found}")
    double = Potential(model, dtype="float64")(batch)
    exact = float((ours.forces - double.forces).abs().max())
    Potential(model)  # back to float32
    summary = interleaved(sides, peers, batch, args.repeats)
    seconds = {side: found["cpu_median"] for side, found in summary.items()}
    speedups = {mode: seconds[mode] / seconds["dpa4sim"] for mode in peers}
    if args.compiled:
        speedups["both compiled"] = seconds["compiled"] / seconds["dpa4sim compiled"]
    return {
        "size": size,
        "workload": workload,
        "atoms": len(batch.positions),
        "systems": batch.n_systems,
        "neighbors_per_atom": edges.n_edges / len(batch.positions),
        "edges_per_second": edges.n_edges / seconds["dpa4sim"],
        "agreement": found,
        "force_deviation_from_float64_eV_A": exact,
        "seconds": summary,
        "speedup_by_cpu_time": speedups,
    }


def main(arguments: list[str]) -> None:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench inference", description=__doc__)
    parser.add_argument("--deepmd", default=".peers/deepmd/bin/python")
    parser.add_argument("--compiled", action="store_true", help="also DeePMD-kit's compiled path")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["neo", "air"])
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--matmul", choices=list(TOLERANCE), default="highest")
    args = parser.parse_args(arguments)
    enter(args.allocator, "inference", arguments)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            for workload in WORKLOADS:
                row = measure(size, workload, args, Path(folder))
                rows.append(row)
                ratios = {k: round(v, 2) for k, v in row["speedup_by_cpu_time"].items()}
                ours = row["seconds"]["dpa4sim"]["cpu_median"]
                print(f"{size:5} {workload:9} dpa4sim {ours:.2f} s; times faster: {ratios}")
    path = save(
        f"inference-{args.allocator}{'' if args.matmul == 'highest' else '-medium'}",
        {
            "settings": {
                "dtype": "float32",
                "threads": 1,
                "matmul_precision": args.matmul,
                "allocator": args.allocator,
                "deepmd_kit": "3.2.0",
                "repeats": args.repeats,
            },
            "rows": rows,
        },
    )
    print(f"record: {path}")
