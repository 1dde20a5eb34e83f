"""The ledger: who the candidates are, and how far each has come.  SQLite, synced at every commit.

candidate   queued -> running -> done | failed;  invalid and duplicate from the start
structure   the start geometries, packed
chunk       queued -> running -> done: leases, and the parts that hold the results
source      files as they were when they were read
twin        relaxed structures that are equal to an earlier one
fact        how far ingest has come, and what else must not change
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple
from itertools import accumulate
from pathlib import Path
from typing import Any

from dpa4sim.errors import ResumeError
from dpa4sim.screen.records import Entry, Held, Lease, Outcome, Part, Row

SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS source (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS candidate (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, formula TEXT NOT NULL,
    chemical_system TEXT NOT NULL, n_atoms INTEGER NOT NULL, state TEXT NOT NULL,
    status TEXT NOT NULL, reason TEXT NOT NULL, duplicate_of INTEGER);
CREATE INDEX IF NOT EXISTS by_formula ON candidate (formula);
CREATE TABLE IF NOT EXISTS structure (id INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS chunk (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL, beyond INTEGER NOT NULL, state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '',
    expires REAL NOT NULL DEFAULT 0, part TEXT NOT NULL DEFAULT '',
    size INTEGER NOT NULL DEFAULT 0, digest TEXT NOT NULL DEFAULT '',
    relaxed INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS twin (id INTEGER PRIMARY KEY, first INTEGER NOT NULL);
"""
BUSY_S = 120.0
"""How long to wait for another process's transaction, all of which are short."""


class Ledger:
    """An open ledger; not to be carried over a fork.

    Args:
        path: of the file.
        read_only: change nothing, which works in a directory that cannot be written, too.

    Raises:
        ResumeError: it cannot be opened, or is damaged.
    """

    def __init__(self, path: Path, read_only: bool = False):
        self.path = path
        with self._said():
            if read_only:
                frozen = not os.access(path.parent, os.W_OK) and not _wal(path).exists()
                uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if frozen else ''}"
                self.db = sqlite3.connect(uri, timeout=BUSY_S, isolation_level=None, uri=True)
            else:
                self.db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.execute("PRAGMA synchronous = FULL")
                self.db.executescript(SCHEMA)
            self.db.execute("SELECT count(*) FROM fact")

    def close(self) -> None:
        """Let go of the file."""
        self.db.close()

    def fact(self, key: str) -> str | None:
        """A remembered value."""
        with self._said():
            found = self.db.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def remember(self, **facts: str) -> None:
        """Remember values."""
        with self._change() as db:
            _remember(db, facts)

    def settle(self, key: str, value: str) -> str:
        """Remember a value unless there is one; the one that holds."""
        with self._change() as db:
            db.execute("INSERT OR IGNORE INTO fact VALUES (?, ?)", (key, value))
        return self.fact(key) or value

    def append(self, first: int, entries: Sequence[Entry], facts: Mapping[str, str]) -> None:
        """Add candidates, and how far ingest has come with them, in one step."""
        numbered = list(enumerate(entries, first))
        with self._change() as db:
            db.executemany(
                "INSERT INTO candidate VALUES (?, ?, ?, ?, ?, ?, ?, '', ?, NULL)",
                ((number, *astuple(entry)[:-1]) for number, entry in numbered),
            )
            db.executemany(
                "INSERT INTO structure VALUES (?, ?)",
                ((number, entry.packed) for number, entry in numbered if entry.packed is not None),
            )
            _remember(db, facts)

    def add_sources(self, sources: Sequence[tuple[int, str, int, int]]) -> None:
        """Remember files: number, path, bytes, time of the last change in ns."""
        with self._change() as db:
            db.executemany("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", sources)

    def sources(self) -> list[tuple[int, str, int, int]]:
        """The files of `add_sources`."""
        return self._all("SELECT id, path, size, modified FROM source ORDER BY id")

    def cut(self, chunk_size: int, facts: Mapping[str, str]) -> None:
        """Cut the candidates into chunks: they are complete."""
        with self._change() as db:
            ((total,),) = db.execute("SELECT count(*) FROM candidate")
            db.executemany(
                "INSERT INTO chunk (id, first, beyond, state) VALUES (?, ?, ?, 'queued')",
                (
                    (number, first, min(first + chunk_size, total))
                    for number, first in enumerate(range(0, total, chunk_size))
                ),
            )
            _remember(db, facts)

    def count(self) -> int:
        """Candidates until now."""
        return int(self._all("SELECT count(*) FROM candidate")[0][0])

    def states(self) -> dict[str, int]:
        """Candidates by state, and by status where there is one."""
        query = (
            "SELECT iif(status = '', state, status), count(*) FROM candidate GROUP BY 1 ORDER BY 1"
        )
        return dict(self._all(query))

    def chunks(self) -> dict[str, int]:
        """Chunks by state."""
        return dict(self._all("SELECT state, count(*) FROM chunk GROUP BY state"))

    def relaxed(self) -> tuple[int, float]:
        """Structures that have been relaxed, and the seconds that workers spent on them."""
        ((count, seconds),) = self._all(
            "SELECT coalesce(sum(relaxed), 0), coalesce(sum(seconds), 0.0) FROM chunk "
            "WHERE state = 'done'"
        )
        return int(count), float(seconds)

    def throughput(self) -> list[tuple[float, int]]:
        """Seconds of work, and structures that were relaxed by then, chunk after chunk."""
        query = "SELECT seconds, relaxed FROM chunk WHERE state = 'done' ORDER BY id"
        seconds, relaxed = zip(*(self._all(query) or [(0.0, 0)]), strict=True)
        return list(zip(accumulate(seconds), accumulate(relaxed), strict=True))

    def to_relax(self, shard: tuple[int, int]) -> int:
        """Structures of a shard that are or were to be relaxed."""
        query = (
            "SELECT count(*) FROM chunk JOIN candidate ON candidate.id >= first AND "
            "candidate.id < beyond WHERE chunk.id % ? = ? AND candidate.state != 'duplicate' AND "
            "candidate.id IN (SELECT id FROM structure)"
        )
        return int(self._all(query, (shard[1], shard[0] - 1))[0][0])

    def formulas(self, after: str) -> list[str]:
        """Formulas of two candidates or more that come after one, in their order."""
        query = (
            "SELECT formula FROM candidate WHERE state = 'queued' AND formula > ? "
            "GROUP BY formula HAVING count(*) > 1 ORDER BY formula"
        )
        return [formula for (formula,) in self._all(query, (after,))]

    def chemical_systems(self) -> list[str]:
        """Of all that are to be relaxed."""
        query = "SELECT DISTINCT chemical_system FROM candidate WHERE state = 'queued' ORDER BY 1"
        return [system for (system,) in self._all(query)]

    def of_formula(self, formula: str) -> list[tuple[int, str, bytes]]:
        """Number, source and packed structure of the queued candidates of a formula."""
        return self._all(
            "SELECT id, source, packed FROM candidate JOIN structure USING (id) "
            "WHERE formula = ? AND state = 'queued' ORDER BY id",
            (formula,),
        )

    def mark_duplicates(self, pairs: Iterable[tuple[int, int]], facts: Mapping[str, str]) -> None:
        """Candidates that are equal to an earlier one: (first, itself)."""
        with self._change() as db:
            db.executemany(
                "UPDATE candidate SET state = 'duplicate', status = 'duplicate', "
                "duplicate_of = ? WHERE id = ?",
                pairs,
            )
            _remember(db, facts)

    def lease(
        self, worker: str, held: Callable[[Held], bool], lasts: float, shard: tuple[int, int]
    ) -> Lease | None:
        """Take the first chunk that nobody works on.

        Args:
            worker: who takes it.
            held: whether a chunk that somebody has taken is still theirs.
            lasts: seconds until it may be taken away, unless it is renewed.
            shard: (i, n): only chunks whose number leaves i - 1 when divided by n.
        """
        with self._change() as db:
            rows = db.execute(
                "SELECT id, first, beyond, attempt, state, worker, expires FROM chunk "
                "WHERE state != 'done' AND id % ? = ? ORDER BY id",
                (shard[1], shard[0] - 1),
            )
            for number, first, beyond, attempt, state, owner, expires in rows.fetchall():
                if state == "running" and held(Held(number, attempt, owner, expires)):
                    continue
                db.execute(
                    "UPDATE chunk SET state = 'running', worker = ?, attempt = ?, expires = ? "
                    "WHERE id = ?",
                    (worker, attempt + 1, time.time() + lasts, number),
                )
                db.execute(
                    "UPDATE candidate SET state = 'running' WHERE state = 'queued' "
                    "AND id >= ? AND id < ?",
                    (first, beyond),
                )
                return Lease(number, first, beyond, attempt + 1, worker)
        return None

    def renew(self, worker: str, lasts: float) -> None:
        """A worker says that it lives."""
        with self._change() as db:
            db.execute(
                "UPDATE chunk SET expires = ? WHERE worker = ? AND state = 'running'",
                (time.time() + lasts, worker),
            )

    def rows(self, first: int, beyond: int) -> Iterator[Row]:
        """Candidates by number."""
        query = (
            "SELECT candidate.*, packed FROM candidate LEFT JOIN structure USING (id) "
            "WHERE id >= ? AND id < ? ORDER BY id"
        )
        return (Row(*row) for row in self._all(query, (first, beyond)))

    def complete(
        self, lease: Lease, size: int, digest: str, outcomes: Sequence[Outcome], seconds: float
    ) -> bool:
        """The results of a chunk are on the disk; False when somebody else has the chunk now."""
        row = lease.part, size, digest, len(outcomes), seconds
        with self._change() as db:
            done = db.execute(
                "UPDATE chunk SET state = 'done', part = ?, size = ?, digest = ?, relaxed = ?, "
                "seconds = ? WHERE id = ? AND worker = ? AND attempt = ? AND state = 'running'",
                (*row, lease.chunk, lease.worker, lease.attempt),
            )
            if done.rowcount != 1:
                return False
            db.executemany(
                "UPDATE candidate SET state = ?, status = ?, reason = ? WHERE id = ?",
                map(astuple, outcomes),
            )
        return True

    def parts(self) -> list[Part]:
        """The files that hold results, in order."""
        query = "SELECT id, part, size, digest FROM chunk WHERE state = 'done' ORDER BY id"
        return [Part(*row) for row in self._all(query)]

    def running(self) -> list[Held]:
        """Chunks that somebody has taken."""
        query = "SELECT id, attempt, worker, expires FROM chunk WHERE state = 'running'"
        return [Held(*row) for row in self._all(query)]

    def requeue(self, part: Part) -> None:
        """The results of a chunk are lost: it is to be worked on again, unless it is already."""
        with self._change() as db:
            lost = db.execute(
                "UPDATE chunk SET state = 'queued', part = '' WHERE id = ? AND state = 'done' "
                "AND part = ?",
                (part.chunk, part.name),
            )
            if lost.rowcount != 1:
                return
            db.execute(
                "UPDATE candidate SET state = 'queued', status = '', reason = '' WHERE "
                "state != 'duplicate' AND id IN (SELECT structure.id FROM structure, chunk "
                "WHERE chunk.id = ? AND structure.id >= first AND structure.id < beyond)",
                (part.chunk,),
            )
            db.execute("DELETE FROM twin")
            db.execute("DELETE FROM fact WHERE key = 'twins'")

    def mark_twins(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Relaxed structures that are equal to an earlier one (itself, first), and no others."""
        with self._change() as db:
            db.execute("DELETE FROM twin")
            db.executemany("INSERT INTO twin VALUES (?, ?)", pairs)
            _remember(db, {"twins": "complete"})

    def twins(self) -> dict[int, int]:
        """Of each relaxed structure that is equal to an earlier one, which."""
        return dict(self._all("SELECT id, first FROM twin"))

    def copy(self, path: Path) -> None:
        """The same ledger in another file."""
        with self._said(), closing(sqlite3.connect(path)) as other:
            self.db.backup(other)

    def adopt(self, other: Ledger, shard: tuple[int, int]) -> None:
        """Take over what another copy of this ledger knows of the chunks of its shard."""
        mine = (shard[1], shard[0] - 1)
        chunks = other._all("SELECT * FROM chunk WHERE id % ? = ?", mine)
        with self._change() as db:
            for chunk in chunks:
                db.execute(f"REPLACE INTO chunk VALUES ({', '.join('?' * len(chunk))})", chunk)
                query = "SELECT state, status, reason, id FROM candidate WHERE id >= ? AND id < ?"
                rows = other._all(query, chunk[1:3])
                db.executemany(
                    "UPDATE candidate SET state = ?, status = ?, reason = ? WHERE id = ?", rows
                )

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._said():
            return self.db.execute(query, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when the block ends, or never was."""
        with self._said():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    @contextmanager
    def _said(self) -> Iterator[None]:
        """SQLite's complaints in our words."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise ResumeError(
                f"{self.path} cannot be used: {error}. What was stored is safe; make room on the "
                "disk or the folder writable, then type the same command again."
            ) from error
        except sqlite3.DatabaseError as error:
            raise ResumeError(
                f"{self.path} is damaged ({error}). Put a copy back, or begin in a new directory."
            ) from error


def _remember(db: sqlite3.Connection, facts: Mapping[str, str]) -> None:
    db.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?)", list(facts.items()))


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")
