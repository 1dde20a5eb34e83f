"""The ledger: every transition is one transaction, and complaints are in our words."""

from __future__ import annotations

import sqlite3

import pytest

from dpa4sim.errors import ResumeError
from dpa4sim.screen.ledger import Ledger
from dpa4sim.screen.records import Entry, Outcome

WHOLE = (1, 1)


def entries(count: int, formula: str = "Cu") -> list[Entry]:
    return [
        Entry(f"n{i}", f"s#{i}", formula, formula, 1, "queued", "", b"x" * (i + 1))
        for i in range(count)
    ]


@pytest.fixture
def ledger(tmp_path):
    """Ten candidates of two formulas in chunks of four; the sixth is invalid."""
    found = Ledger(tmp_path / "ledger.sqlite")
    found.append(0, entries(5), {"place": "[0, 5]"})
    broken = Entry("bad", "s#5", "", "", 0, "invalid", "it is broken", None)
    found.append(5, [broken, *entries(4, "Ni")], {"place": "[0, 10]"})
    found.cut(4, {"stage": "complete"})
    yield found
    found.close()


def take(ledger: Ledger, worker: str, *, living: tuple[str, ...] = (), shard=WHOLE):
    return ledger.lease(worker, lambda held: held.worker in living, 60.0, shard)


def test_what_was_written_is_read(ledger):
    rows = list(ledger.rows(3, 7))
    assert [row.id for row in rows] == [3, 4, 5, 6]
    assert [row.packed for row in rows] == [b"xxxx", b"xxxxx", None, b"x"]
    assert (rows[2].state, rows[2].reason, rows[2].status) == ("invalid", "it is broken", "")
    assert ledger.fact("place") == "[0, 10]"
    assert ledger.count() == 10
    assert ledger.states() == {"invalid": 1, "queued": 9}
    assert ledger.formulas("") == ["Cu", "Ni"]
    assert ledger.formulas("Cu") == ["Ni"]
    assert [number for number, _, _ in ledger.of_formula("Ni")] == [6, 7, 8, 9]


def test_a_commit_is_all_or_nothing(ledger):
    before = list(ledger.rows(0, 100))
    twice = [Entry("new", "s", "Ag", "Ag", 1, "queued", "", b"x")] * 2
    with pytest.raises(ResumeError):
        ledger.append(9, twice, {"place": "[9, 9]"})  # number 9 is taken
    assert list(ledger.rows(0, 100)) == before
    assert ledger.fact("place") == "[0, 10]"


def test_chunks_are_leased_once_and_come_back_from_the_dead(ledger):
    first, second, third = (take(ledger, name, living=("a", "b")) for name in ("a", "b", "c"))
    assert [(c.first, c.beyond) for c in (first, second, third)] == [(0, 4), (4, 8), (8, 10)]
    assert take(ledger, "d", living=("a", "b", "c")) is None
    again = take(ledger, "d", living=("a", "c"))
    assert (again.chunk, again.attempt, again.part) == (1, 2, "000001-2.parquet")
    assert ledger.states() == {"invalid": 1, "running": 9}


def test_shards_have_nothing_in_common(ledger):
    found = [take(ledger, "a", living=("a",), shard=(i, 2)) for i in (2, 1, 1, 2)]
    assert [lease and lease.chunk for lease in found] == [1, 0, 2, None]
    assert [ledger.to_relax((i, 2)) for i in (1, 2)] == [6, 3]


def test_results_are_counted_once_and_can_be_lost(ledger):
    lease = take(ledger, "a")
    outcomes = [Outcome("done", "converged", "", i) for i in range(3)]
    outcomes.append(Outcome("invalid", "invalid", "the pool says so", 3))
    assert ledger.complete(lease, 7, "digest", outcomes, 2.0)
    assert not ledger.complete(lease, 7, "digest", outcomes, 2.0)
    assert ledger.parts() == [(0, "000000-1.parquet", 7, "digest")]
    assert ledger.states() == {"converged": 3, "invalid": 2, "queued": 5}
    assert ledger.relaxed() == (4, 2.0)
    assert ledger.throughput() == [(2.0, 4)]
    ledger.mark_twins([(2, 0)])
    (part,) = ledger.parts()
    ledger.requeue(part)
    assert ledger.parts() == []
    assert ledger.twins() == {}
    assert ledger.states() == {"invalid": 1, "queued": 9}
    assert take(ledger, "b", living=("b",)).part == "000000-2.parquet"
    ledger.requeue(part)  # somebody who saw the damage late takes nothing away
    assert take(ledger, "c", living=("b",)).chunk == 1


def test_duplicates_are_not_relaxed_again(ledger):
    ledger.mark_duplicates([(0, 2)], {"formula": "Cu"})
    assert ledger.to_relax(WHOLE) == 8
    ledger.complete(take(ledger, "a"), 7, "digest", [], 2.0)
    ledger.requeue(ledger.parts()[0])
    assert next(ledger.rows(2, 3)).state == "duplicate"


def test_a_fact_is_settled_once(ledger):
    assert ledger.settle("shard", "1/2") == "1/2"
    assert ledger.settle("shard", "2/2") == "1/2"


def test_a_copy_adopts_what_another_did(ledger, tmp_path):
    ledger.copy(tmp_path / "copy.sqlite")
    lease = take(ledger, "a", shard=(2, 2))
    ledger.complete(lease, 7, "digest", [Outcome("failed", "exploded", "it flew", 4)], 2.0)
    other = Ledger(tmp_path / "copy.sqlite")
    other.adopt(ledger, (2, 2))
    assert other.parts() == ledger.parts()
    assert next(other.rows(4, 5)).status == "exploded"
    assert other.chunks() == {"done": 1, "queued": 2}
    other.close()


def test_a_damaged_ledger_is_named(tmp_path):
    (tmp_path / "ledger.sqlite").write_text("nothing that SQLite knows, and enough of it " * 100)
    with pytest.raises(ResumeError, match=r"ledger\.sqlite is damaged"):
        Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(ResumeError, match=r"cannot be used"):
        Ledger(tmp_path / "nowhere" / "ledger.sqlite")


def test_every_commit_is_synced(ledger):
    """kill -9 needs less, but a power cut does not."""
    ((mode,),) = ledger.db.execute("PRAGMA journal_mode")
    ((level,),) = ledger.db.execute("PRAGMA synchronous")
    assert (mode, level) == ("wal", 2)
    assert isinstance(ledger.db, sqlite3.Connection)
