"""What was asked for of each structure, and the pool's jobs made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, repeat
from typing import Any

from dpa4sim.batch import Batch
from dpa4sim.complaint import complaints
from dpa4sim.edges import estimated_edges
from dpa4sim.errors import Dpa4simError
from dpa4sim.moments import magnetic_elements, moments_complaint, with_moments
from dpa4sim.pool.queue import Job
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.freedom import free, trivial_orbits, unconstrained

AT_ONCE = 64
"""Structures that are read and checked together."""


@dataclass(frozen=True)
class Terms:
    """What was asked for, structure by structure."""

    cell: bool | Iterable[bool]
    pressure_gpa: float | Iterable[float]
    fixed_atoms: Iterable[Sequence[int]] | None
    mask: Sequence[bool] | None
    hydrostatic: bool
    constant_volume: bool
    fix_symmetry: bool

    def described(self) -> dict[str, Any]:
        """What is the same for all; the rest is in the digest of the structures."""
        return {
            "mask": None if self.mask is None else [bool(flag) for flag in self.mask],
            "hydrostatic": self.hydrostatic,
            "constant_volume": self.constant_volume,
            "fix_symmetry": self.fix_symmetry,
        }

    def jobs(self, structures: Any, model: EnergyModel) -> Iterator[Job]:
        """One job per structure, read when asked for."""
        from dpa4sim.adapters.files import stream_structures

        cells = repeat(self.cell) if isinstance(self.cell, bool) else self.cell
        pressures = (
            repeat(self.pressure_gpa)
            if isinstance(self.pressure_gpa, int | float)
            else self.pressure_gpa
        )
        fixed = repeat(None) if self.fixed_atoms is None else self.fixed_atoms
        entries = zip(count(), stream_structures(structures), cells, pressures, fixed, strict=False)
        first: Batch | None = None
        for group in _groups(entries):
            first = group[0][1][0].to("cpu") if first is None else first
            yield from self._jobs(group, first, model)

    def _jobs(self, group: Sequence[Any], first: Batch, model: EnergyModel) -> list[Job]:
        """The jobs of some structures, whose checks cost less together."""
        magnetic = magnetic_elements(model)
        systems = [with_moments(batch.to("cpu"), magnetic) for _, (batch, _), *_ in group]
        wrong = complaints(systems, getattr(model, "known_elements", None))
        pairs = zip(wrong, systems, strict=True)
        reasons = [reason or moments_complaint(system, magnetic) for reason, system in pairs]
        jobs = [
            self._job(
                index, system, source, moves, pressure, atoms, reason or _unlike(first, system)
            )
            for (index, (_, source), moves, pressure, atoms), system, reason in zip(
                group, systems, reasons, strict=True
            )
        ]
        fit = [job.system for job in jobs if job.refusal is None]
        if not fit:
            return jobs
        edges = iter(estimated_edges(Batch.concatenate(fit), model.cutoff).tolist())
        return [job if job.refusal else replace(job, edges=next(edges)) for job in jobs]

    def _job(
        self,
        index: int,
        system: Batch,
        source: Any,
        moves: bool,
        pressure: float,
        atoms: Sequence[int] | None,
        reason: str | None,
    ) -> Job:
        terms = unconstrained(system, bool(moves))
        if reason is None:
            try:
                system, terms = free(
                    system,
                    cell=bool(moves),
                    pressure_gpa=float(pressure),
                    mask=self.mask if moves else None,
                    hydrostatic=self.hydrostatic and bool(moves),
                    constant_volume=self.constant_volume and bool(moves),
                    fixed_atoms=_fixed(source) if atoms is None else atoms,
                    fix_symmetry=self.fix_symmetry,
                )
            except Dpa4simError as error:
                reason = str(error).rstrip(".")
        if self.fix_symmetry and terms.orbits is None:
            terms = replace(terms, orbits=trivial_orbits(system))
        return Job(index, system, terms, reason)


def _groups(entries: Iterable[Any]) -> Iterator[list[Any]]:
    """Up to `AT_ONCE` entries; those before an unreadable one come out before the error does."""
    group: list[Any] = []
    try:
        for entry in entries:
            group.append(entry)
            if len(group) == AT_ONCE:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def _fixed(source: Any) -> list[int] | None:
    """Atoms that the structure itself says are fixed."""
    if not getattr(source, "constraints", None):
        return None
    from dpa4sim.adapters.ase import fixed_atoms

    return fixed_atoms(source)


def _unlike(first: Batch, system: Batch) -> str | None:
    """Complaint about a charge or spin that is given for one structure and not for another."""
    for name in ("charge", "spin"):
        if (getattr(first, name) is None) != (getattr(system, name) is None):
            return f"'{name}' is given for the first structure or for this one, not for both"
    return None
