"""How many edges fit on a device at once: measured once for a kind of model, then remembered."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpa4sim import __version__
from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.moments import magnetic_elements
from dpa4sim.potential import EnergyModel, Potential

PROBES = (6, 8)
"""Atoms along each axis of the two cubes whose evaluation is measured."""

PROBE_NEIGHBORS = 70
"""Neighbours per atom in the probes, as in a usual crystal within 6 Å."""

SHARE = {"cuda": 0.85, "cpu": 0.5}
"""Part of the free memory that evaluations may take; the rest is for peaks and for others."""

ESTIMATE_ERROR = 1.5
"""On CUDA a structure is tried up to this factor over the room, for edges are an estimate."""

CPU_EDGES = 250_000
"""More edges at once make a processor no faster (bench/records, growth)."""

UNMEASURED_BYTES = 40_000
"""Per edge, where the peak of a process cannot be measured: twice what Neo takes on a CPU."""


@dataclass(frozen=True)
class Capacity:
    """What a device can hold.

    Args:
        working: edges of the systems that are worked on together.
        largest: edges of the largest single system that is tried at all.
    """

    working: float
    largest: float


def edge_capacity(model: EnergyModel) -> Capacity:
    """Edges that an evaluation on the model's device may have.

    The bytes per edge are measured by two evaluations, once per network size, precision and
    device, and kept in the user's cache folder; the free memory is asked for each time.
    """
    kind = torch.device(model.device).type
    fits = max(SHARE[kind] * _free_bytes(model.device) / _remembered(model), PROBE_NEIGHBORS)
    if kind == "cpu":
        return Capacity(min(fits, CPU_EDGES), fits)
    return Capacity(fits, ESTIMATE_ERROR * fits)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how PyTorch says that memory is short, on CUDA or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def bytes_per_edge(model: EnergyModel) -> float:
    """Slope of the peak memory between two evaluations of unlike size."""
    small, large = (probe(model, n) for n in PROBES)
    more = neighbors(large, model.cutoff).n_edges - neighbors(small, model.cutoff).n_edges
    model(small)  # what is made once and kept must not count
    low, high = _peak_bytes(model, small), _peak_bytes(model, large)
    if low is None or high is None:
        return UNMEASURED_BYTES
    return max((high - low) / max(more, 1), 100.0)


def probe(model: EnergyModel, n: int) -> Batch:
    """A cube of n x n x n atoms of the lightest known element with a usual number of edges."""
    spacing = model.cutoff * (4.19 / PROBE_NEIGHBORS) ** (1 / 3)
    axis = spacing * torch.arange(n, dtype=torch.float64)
    positions = torch.cartesian_prod(axis, axis, axis)
    element = min(getattr(model, "known_elements", None) or {1})
    cell = n * spacing * torch.eye(3, dtype=torch.float64)
    state: dict[str, Any] = {"charge": 0, "spin": 0} if _is_conditioned(model) else {}
    magnetic = magnetic_elements(model)
    if magnetic:
        element, state["magmoms"] = min(magnetic), torch.ones_like(positions)
    batch = Batch.single(positions, [element] * len(positions), cell, True, **state)
    return batch.to(model.device)


def _is_conditioned(model: EnergyModel) -> bool:
    config = getattr(model, "config", None)
    return config is not None and config.charge_spin


def _peak_bytes(model: EnergyModel, batch: Batch) -> int | None:
    """Memory that one evaluation takes at its worst; None where the system does not tell."""
    device = torch.device(model.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model(batch)
        return torch.cuda.max_memory_allocated(device) - before
    resident = _reset_peak()
    if resident is None:
        return None
    model(batch)
    peak = _status_bytes("VmHWM")
    return None if peak is None else peak - resident


def _reset_peak() -> int | None:
    """Forget the high-water mark of this process (Linux); its resident bytes now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return None if found is None else 1024 * int(found.group(1))


def _free_bytes(device: torch.device | str) -> int:
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    try:
        text = Path("/proc/meminfo").read_text()
        found = re.search(r"MemAvailable:\s+(\d+) kB", text)
        return 1024 * int(found.group(1)) if found else 4 << 30
    except OSError:
        return 4 << 30


def _remembered(model: EnergyModel) -> float:
    """Bytes per edge from the cache, or measured and put there.

    A model that we know nothing of is measured every time on CUDA, and never on a processor, where
    a usual guess serves.
    """
    key = _fingerprint(model)
    if key is None and torch.device(model.device).type == "cpu":
        return UNMEASURED_BYTES
    path = cache_folder() / "bytes_per_edge.json"
    known = _read(path)
    if key is not None and key in known:
        return float(known[key])
    cost = bytes_per_edge(model)
    if key is not None:
        _write(path, {**known, key: cost})
    return cost


def cache_folder() -> Path:
    """Where measurements of this machine are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dpa4sim"


def _fingerprint(model: EnergyModel) -> str | None:
    """What the memory of an evaluation depends on; None for a model that we know nothing of."""
    if not isinstance(model, Potential):
        return None
    device = torch.device(model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    parts = [model.config.to_dict(), str(model.dtype), name, torch.__version__, __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, known: dict[str, Any]) -> None:
    """Remember, whole or not at all; a folder that cannot be written costs time only."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
