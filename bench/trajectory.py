"""Writing trajectories: 1000 systems x 8 atoms per frame, against TorchSim's HDF5 reporter.

    python -m bench trajectory [--systems 1000] [--frames 200] [--peer-frames 2] [--rounds 5]

Both write positions and cell in double precision and one number per system.  Ours go into one
file, TorchSim's into one per system; its compression and its rounding to single precision are off.
Stated per frame: how long the caller is held up, and how long until everything is written (ours:
and synced to the disk).  What was written is read back and compared.
TorchSim writes once, for a frame takes it up to minutes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import torch

from bench.record import save
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.simulate.layout import Recording, SystemRecord
from dpa4sim.simulate.trajectory import read_trajectory
from dpa4sim.simulate.writer import Frames, TrajectoryWriter

STORED = ("positions", "cell", "energy")


def crystals(n_systems: int) -> list[Batch]:
    """Rattled 8-atom cells of silicon."""
    systems = []
    for seed in range(n_systems):
        atoms = ase.build.bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=seed)
        systems.append(from_atoms(atoms))
    return systems


def positions_at(batch: Batch, step: int) -> torch.Tensor:
    """Something that differs in every frame."""
    return batch.positions + 0.01 * np.sin(step)


def ours(systems: list[Batch], n_frames: int, folder: Path) -> dict[str, Any]:
    """Seconds per frame, and the size of the file."""
    batch, n = Batch.concatenate(systems), len(systems)
    recording = Recording(interval=1, store=STORED)
    records = [SystemRecord(batch=system, label=f"si-{i}") for i, system in enumerate(systems)]
    path, numbers = folder / "ours.h5", list(range(n))
    status, held = torch.zeros(n, dtype=torch.long), []
    begin = time.perf_counter()
    with TrajectoryWriter.create(path, records, recording, settings={}) as writer:
        creation = time.perf_counter() - begin
        cpu, begin = time.process_time(), time.perf_counter()
        for step in range(n_frames):
            moment = Frames(
                systems=numbers,
                steps=torch.full((n,), step),
                status=status,
                positions=positions_at(batch, step),
                cell=batch.cell,
                energy=batch.cell[:, 0, 0] + step,
            )
            start = time.perf_counter()
            writer.frames(moment)
            held.append(time.perf_counter() - start)
        writer.checkpoint()
        whole, cpu = time.perf_counter() - begin, time.process_time() - cpu
    start = time.perf_counter()
    with read_trajectory(path) as trajectory:
        found = trajectory.system(n // 2)
    reading = time.perf_counter() - start
    chosen = systems[n // 2]
    for step in range(n_frames):
        assert np.array_equal(found.positions[step], positions_at(chosen, step).numpy())
    return {
        "create_s": creation,
        "held_ms_per_frame": 1e3 * statistics.median(held),
        "held_max_ms": 1e3 * max(held),
        "ms_per_frame": 1e3 * whole / n_frames,
        "cpu_ms_per_frame": 1e3 * cpu / n_frames,
        "bytes_per_frame": path.stat().st_size / n_frames,
        "read_one_system_s": reading,
        "files": 1,
        "frames": n_frames,
    }


def torch_sims(systems: list[Batch], n_frames: int, folder: Path) -> dict[str, Any]:
    """The same with `torch_sim.TrajectoryReporter`."""
    import torch_sim

    from dpa4sim.adapters.torchsim import to_state

    batch, n = Batch.concatenate(systems), len(systems)
    state = to_state(batch)
    paths = [folder / f"peer-{i}.h5" for i in range(n)]
    begin = time.perf_counter()
    reporter = torch_sim.TrajectoryReporter(
        paths,
        state_frequency=1,
        state_kwargs={"variable_cell": True},
        trajectory_kwargs={"coerce_to_float32": False, "compress_data": False},
        prop_calculators={1: {"energy": lambda state: state.cell[:, 0, 0]}},
    )
    creation = time.perf_counter() - begin
    held = []
    cpu, begin = time.process_time(), time.perf_counter()
    for step in range(1, n_frames + 1):
        state.positions = positions_at(batch, step)
        start = time.perf_counter()
        reporter.report(state, step)
        held.append(time.perf_counter() - start)
    whole, cpu = time.perf_counter() - begin, time.process_time() - cpu
    start = time.perf_counter()
    reporter.finish()
    closing = time.perf_counter() - start
    chosen = systems[n // 2]
    with torch_sim.TorchSimTrajectory(paths[n // 2], mode="r") as trajectory:
        stored = trajectory.get_array("positions")
    assert np.array_equal(stored[-1], positions_at(chosen, n_frames).numpy())
    return {
        "create_s": creation,
        "close_s": closing,
        "held_ms_per_frame": 1e3 * statistics.median(held),
        "held_max_ms": 1e3 * max(held),
        "ms_per_frame": 1e3 * whole / n_frames,
        "cpu_ms_per_frame": 1e3 * cpu / n_frames,
        "bytes_per_frame": sum(path.stat().st_size for path in paths) / n_frames,
        "files": n,
        "frames": n_frames,
    }


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench trajectory", description=__doc__)
    parser.add_argument("--systems", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--peer-frames", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # TorchSim holds every file open
    systems = crystals(args.systems)
    rows: dict[str, list[dict[str, Any]]] = {"dpa4sim": [], "torch_sim": []}
    tasks = [("dpa4sim", ours, args.frames)] * args.rounds
    for name, write, n_frames in [*tasks, ("torch_sim", torch_sims, args.peer_frames)]:
        with tempfile.TemporaryDirectory() as folder:
            row = write(systems, n_frames, Path(folder))
        rows[name].append(row)
        print(
            f"{name:9} create {row['create_s']:.2f} s, "
            f"caller held {row['held_ms_per_frame']:.2f} ms/frame, "
            f"written {row['ms_per_frame']:.2f} ms/frame, cpu {row['cpu_ms_per_frame']:.2f}"
        )
    medians = {
        name: {key: statistics.median(row[key] for row in found) for key in found[0]}
        for name, found in rows.items()
    }
    times = {
        key: medians["torch_sim"][key] / medians["dpa4sim"][key]
        for key in ("held_ms_per_frame", "ms_per_frame", "cpu_ms_per_frame")
    }
    print("TorchSim / dpa4sim:", ", ".join(f"{key} {value:.0f}" for key, value in times.items()))
    settings = {"systems": args.systems, "atoms": 8, "stored": STORED, "threads": 1}
    result = {"settings": settings, "medians": medians, "rows": rows, "times": times}
    print("record:", save("trajectory", result))
