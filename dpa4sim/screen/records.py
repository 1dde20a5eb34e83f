"""What goes into the ledger and comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Entry:
    """A candidate as ingest writes it; `packed` is None when there is nothing to relax."""

    name: str
    source: str
    formula: str
    chemical_system: str
    n_atoms: int
    state: str
    reason: str
    packed: bytes | None


class Row(NamedTuple):
    """A candidate as it lies in the ledger; `packed` is its start geometry."""

    id: int
    name: str
    source: str
    formula: str
    chemical_system: str
    n_atoms: int
    state: str
    status: str
    reason: str
    duplicate_of: int | None
    packed: bytes | None


@dataclass(frozen=True)
class Lease:
    """The right to work on a chunk, of which the candidates are numbered first to beyond - 1."""

    chunk: int
    first: int
    beyond: int
    attempt: int
    worker: str

    @property
    def part(self) -> str:
        """Name of the file for its results, which no other attempt writes."""
        return part_name(self.chunk, self.attempt)


class Held(NamedTuple):
    """A chunk that a worker has, and until when (Unix time)."""

    chunk: int
    attempt: int
    worker: str
    expires: float

    @property
    def part(self) -> str:
        """Name of the file that the worker will write."""
        return part_name(self.chunk, self.attempt)


class Part(NamedTuple):
    """A file of results, and what it must hold."""

    chunk: int
    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Outcome:
    """How a candidate ended: state of the ledger, status and reason of the table."""

    state: str
    status: str
    reason: str
    id: int


def part_name(chunk: int, attempt: int) -> str:
    """File for the results of a chunk, which no other attempt writes."""
    return f"{chunk:06}-{attempt}.parquet"
