"""What was asked for of each structure, and the pool's jobs made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, repeat
from typing import Any

from dpa4sim.batch import Batch, complaint
from dpa4sim.edges import estimated_edges
from dpa4sim.errors import Dpa4simError
from dpa4sim.pool.queue import Job
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.freedom import free, trivial_orbits, unconstrained


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

        known = getattr(model, "known_elements", None)
        cells = repeat(self.cell) if isinstance(self.cell, bool) else self.cell
        pressures = (
            repeat(self.pressure_gpa)
            if isinstance(self.pressure_gpa, int | float)
            else self.pressure_gpa
        )
        fixed = repeat(None) if self.fixed_atoms is None else self.fixed_atoms
        first: Batch | None = None
        entries = zip(count(), stream_structures(structures), cells, pressures, fixed, strict=False)
        for index, (batch, source), moves, pressure, atoms in entries:
            system = batch.to("cpu")
            first = system if first is None else first
            reason = complaint(system, known) or _unlike(first, system)
            yield self._job(index, system, source, moves, pressure, atoms, reason, model.cutoff)

    def _job(
        self,
        index: int,
        system: Batch,
        source: Any,
        moves: bool,
        pressure: float,
        atoms: Sequence[int] | None,
        reason: str | None,
        cutoff: float,
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
        edges = 0.0 if reason else float(estimated_edges(system, cutoff)[0])
        return Job(index, system, terms, reason, edges)


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
