"""What makes a structure unusable, in words, before any model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from dpa4sim.batch import HEAVIEST, Batch, dot, symbol
from dpa4sim.edges import FARTHEST_A, Edges, computable, neighbors

MIN_DISTANCE_A = 1e-3
"""Two atoms closer than this are taken to be one site entered twice."""

PROBE_A = 6.0
"""A structure must be computable with this cutoff, a usual one, before any model sees it."""


def complaint(system: Batch, known_elements: frozenset[int] | None = None) -> str | None:
    """What makes a one-system Batch unusable, as half a sentence; None when it is usable.

    Args:
        system: a Batch of one system.
        known_elements: atomic numbers that the model knows; None to skip the check.
    """
    if system.positions.shape[0] == 0:
        return "it has no atoms"
    return (
        _not_finite(system)
        or _unknown(system, known_elements)
        or _flat(system)
        or _coincident(system)
    )


def complaints(
    systems: Sequence[Batch], known_elements: frozenset[int] | None = None
) -> list[str | None]:
    """`complaint` of each of many, five times faster: only the doubtful are looked at alone.

    Args:
        systems: Batches of one system on the CPU.
        known_elements: as of `complaint`.
    """
    plain = [replace(system, charge=None, spin=None) for system in systems]
    there = [index for index, system in enumerate(plain) if len(system.positions)]
    doubtful = [True] * len(systems)
    if there:
        batch = Batch.concatenate(plain[index] for index in there)
        found = _doubtful(batch, known_elements).tolist()
        for index, doubt in zip(there, found, strict=True):
            doubtful[index] = doubt or not _finite_state(systems[index])
    return [
        complaint(system, known_elements) if doubt else None
        for system, doubt in zip(systems, doubtful, strict=True)
    ]


def _doubtful(batch: Batch, known_elements: frozenset[int] | None) -> Bool[Tensor, " system"]:
    """Systems in which something may be wrong; all that have a complaint are among them."""
    known = torch.zeros(HEAVIEST + 1, dtype=torch.bool)
    known[[*range(1, HEAVIEST + 1)] if known_elements is None else sorted(known_elements)] = True
    numbers = batch.atomic_numbers
    strange = ~known[numbers.clamp(0, HEAVIEST)] | (numbers < 1) | (numbers > HEAVIEST)
    edges = _close(batch)
    crowded = batch.system_idx[torch.cat([strange.nonzero()[:, 0], edges.center])]
    doubtful = ~computable(batch, PROBE_A)
    doubtful[crowded] = True
    return doubtful


def _finite_state(system: Batch) -> bool:
    return all(
        value is None or bool(torch.isfinite(value).all()) for value in (system.charge, system.spin)
    )


def _not_finite(system: Batch) -> str | None:
    for name, rows in (("position of atom", system.positions), ("cell vector", system.cell[0])):
        sick = (~torch.isfinite(rows)).any(1)
        if bool(sick.any()):
            return f"{name} {int(sick.nonzero()[0])} is not a finite number"
        far = (rows.abs() > FARTHEST_A).any(1)
        if bool(far.any()):
            return f"{name} {int(far.nonzero()[0])} lies beyond {FARTHEST_A:.0e} Å"
    for name, value in (("charge", system.charge), ("spin", system.spin)):
        if value is not None and not bool(torch.isfinite(value).all()):
            return f"its {name} is not a finite number"
    return None


def _unknown(system: Batch, known_elements: frozenset[int] | None) -> str | None:
    numbers = set(system.atomic_numbers.tolist())
    nonsense = sorted(z for z in numbers if not 0 < z <= HEAVIEST)
    if nonsense:
        return f"no element has the atomic number {nonsense[0]}"
    strangers = sorted(numbers - known_elements) if known_elements is not None else []
    if strangers:
        return f"the model does not know the element(s) {', '.join(map(symbol, strangers))}"
    return None


def _flat(system: Batch) -> str | None:
    """Complaint about a periodic cell that cannot hold its atoms."""
    if bool(computable(system, PROBE_A)[0]):
        return None
    if bool(system.pbc.all()) and float(system.volume[0]) > 1e-6:
        return "its cell is so small or flat that its periodic images crowd onto each other"
    return "it is periodic but its cell has no volume; set pbc to False or give three vectors"


def _coincident(system: Batch) -> str | None:
    """Complaint about two atoms on one site, periodic images included."""
    edges = _close(system)
    if edges.n_edges == 0:
        return None
    first, second = int(edges.center[0]), int(edges.neighbor[0])
    if first == second:
        return f"atom {first} stands on its own periodic image"
    return f"atoms {first} and {second} stand on one site"


def _close(batch: Batch) -> Edges:
    """Pairs that stand on one site."""
    edges = neighbors(batch, cutoff=1.0)  # a shorter search pays for more, emptier grid cells
    close = dot(edges.vector, edges.vector) < MIN_DISTANCE_A**2
    return Edges(edges.center[close], edges.neighbor[close], edges.vector[close], edges.row_ptr)
