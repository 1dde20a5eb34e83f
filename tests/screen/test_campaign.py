"""A campaign: what goes in comes out, once, in order, and the same in any way of getting there."""

from __future__ import annotations

import os
import resource
import tempfile
import threading
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from screening import EDGES, alloys, begun, finished, given, settings
from toy import LennardJones
from tqdm import tqdm

import dpa4sim
from dpa4sim.errors import ResumeError
from dpa4sim.pool.capacity import Capacity
from dpa4sim.relax.run import relax
from dpa4sim.screen.campaign import open_campaign
from dpa4sim.screen.candidate import Candidate
from dpa4sim.screen.hull import HULL
from dpa4sim.screen.rank import rank
from dpa4sim.screen.records import Outcome
from dpa4sim.screen.run import init, run
from dpa4sim.screen.runner import measure_room, tidy
from dpa4sim.screen.settings import Hull
from dpa4sim.screen.table import BUILT_IN, RESULTS, to_atoms
from dpa4sim.screen.worker import Worker, holds

FILE_TOLERANCE_EV = 1e-6
"""A file keeps eight decimals of the start, and a relaxation ends within fmax."""

NOBODY = 65534
"""Root may write everywhere."""


def test_results_are_those_of_relax(tmp_path):
    table = finished(tmp_path / "run")
    assert table.schema == RESULTS
    assert table["id"].to_pylist() == list(range(12))
    assert table["name"].to_pylist() == [f"alloy-{i}" for i in range(12)]
    for first in range(0, 12, 5):
        alone = relax(
            LennardJones(), alloys(12)[first : first + 5], max_steps=15, fmax=0.05, max_edges=20_000
        )
        rows = table.slice(first, 5).to_pylist()
        assert [row["energy"] for row in rows] == alone.energy
        assert [row["steps"] for row in rows] == alone.steps
        assert [row["status"] for row in rows] == [s.name.lower() for s in alone.status]
        for row, atoms in zip(rows, alone.to_atoms(), strict=True):
            assert (to_atoms(row).positions == atoms.positions).all()
            assert row["volume"] == pytest.approx(atoms.get_volume())
            assert row["fmax"] < 0.05 or row["status"] != "converged"


def test_what_has_become_equal_is_marked_however_little_is_looked_at_at_once(tmp_path, monkeypatch):
    strains = ([1, 1, 1], [1, 1, 1.08], [0.95, 1, 1.06], [1.0, 1.05, 1.05])
    shapes = [bulk("Cu", "fcc", a=3.6, cubic=True) for _ in strains]  # of one crystal
    for atoms, strain in zip(shapes, strains, strict=True):
        atoms.set_cell(atoms.cell * strain, scale_atoms=True)
    shapes[3].cell[0, 1] += 0.2
    mixed = [atoms for pair in zip(shapes, alloys(5, seed=9)[1:], strict=True) for atoms in pair]
    starts = [Candidate(f"c{number}", "given", atoms) for number, atoms in enumerate(mixed)]
    options = settings(max_steps=200)
    marked = []
    for most in (1, 10**6):
        monkeypatch.setattr("dpa4sim.screen.runner.ROWS_AT_ONCE", most)
        folder = tmp_path / str(most)
        with init(folder, options, LennardJones(), starts, progress=False) as campaign:
            run(campaign, LennardJones(), progress=False)
            table = campaign.results(("duplicate_of", "id", "flags"))
            assert table.column_names == ["duplicate_of", "id", "flags"]
            marked.append(table.to_pydict())
            assert campaign.select([4, 0]).to_pylist() == [
                row
                | {"flags": [flag for flag in row["flags"] if flag != "duplicate"]}
                | {"duplicate_of": None}
                for row in campaign.results().take([0, 4]).to_pylist()
            ]
    assert marked[0] == marked[1]
    assert marked[0]["duplicate_of"] == [None, None, 0, None, 0, None, 0, None]
    assert [("duplicate" in flags) for flags in marked[0]["flags"]][::2] == [
        False,
        True,
        True,
        True,
    ]


def test_a_finished_campaign_answers_without_work(tmp_path, monkeypatch):
    before = finished(tmp_path / "run")

    def busy(*_, **__):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr("dpa4sim.screen.runner.relax_each", busy)
    assert finished(tmp_path / "run").equals(before)


def test_a_sick_candidate_changes_no_other(tmp_path):
    """Two atoms so close that they fly apart, in the middle of a chunk."""
    calm = finished(tmp_path / "calm", 5)
    candidates = given(5)
    candidates[2].atoms.positions[1] = candidates[2].atoms.positions[0] + [0.6, 0, 0]
    with init(tmp_path / "sick", settings(), LennardJones(), candidates, progress=False) as found:
        run(found, LennardJones(), progress=False)
        table = found.results()
        assert found.ledger.states()["exploded"] == 1
    assert table["status"][2].as_py() == "exploded"
    assert "exploded" in table["flags"][2].as_py()
    keep = [0, 1, 3, 4]
    assert table.take(keep).equals(calm.take(keep))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fmax = 0.05", "fmax = 0.01", r"relax\.fmax = 0\.05, and now it is 0\.01"),
        ("max_steps = 15", "max_steps = 20", r"relax\.max_steps = 15, and now it is 20"),
        ('torch = "', 'torch = "0.', r"versions\.torch"),
        ("chunk_size = 5", "chunk_size = 6", r"candidates\.chunk_size = 5, and now it is 6"),
        ("[relax]", "[relax", "campaign.toml is damaged"),
        ("format = 1", "format = 2", "has the format 2"),
    ],
)
def test_settings_that_were_edited_are_refused(tmp_path, old, new, words):
    begun(tmp_path / "run").close()
    path = tmp_path / "run" / "campaign.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ResumeError, match=words):
        open_campaign(tmp_path / "run")


def test_other_settings_models_and_versions_are_refused(tmp_path, monkeypatch):
    campaign = begun(tmp_path / "run")
    with pytest.raises(ResumeError, match=r"relax\.max_steps = 15, and now it is 14"):
        begun(tmp_path / "run", max_steps=14)

    class Other(LennardJones):
        pass

    with pytest.raises(ResumeError, match=r"model\.hash = 'LennardJones', and now .*Other"):
        run(campaign, Other(), progress=False)
    monkeypatch.setattr("dpa4sim.screen.campaign.versions", lambda: {"torch": "0.1"})
    with pytest.raises(ResumeError, match=r"versions\."):
        run(campaign, LennardJones(), progress=False)
    campaign.close()


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(ResumeError, match="holds other files"):
        begun(tmp_path / "run")
    with pytest.raises(ResumeError, match="is no campaign"):
        open_campaign(tmp_path / "run")
    with pytest.raises(ResumeError, match="is a file"):
        begun(tmp_path / "run" / "thesis.tex")


def test_the_public_call(tmp_path):
    """Paths, one structure or many; the same call answers again; a directory is one campaign's."""
    write(tmp_path / "a.extxyz", alloys(3))
    options = {"fmax": 0.05, "max_steps": 15, "max_edges": EDGES, "progress": False}
    table = dpa4sim.screen(
        LennardJones(), tmp_path / "a.extxyz", directory=tmp_path / "files", **options
    )
    assert table.schema.names == HULL.names
    assert table["name"].to_pylist() == ["alloy-0", "alloy-1", "alloy-2"]
    given_here = dpa4sim.screen(LennardJones(), alloys(3), directory=tmp_path / "here", **options)
    energies = (table["energy_per_atom"].to_numpy(), given_here["energy_per_atom"].to_numpy())
    np.testing.assert_allclose(*energies, atol=FILE_TOLERANCE_EV)
    one = dpa4sim.screen(LennardJones(), alloys(1)[0], directory=tmp_path / "one", **options)
    assert one["energy_per_atom"].to_pylist() == given_here["energy_per_atom"].to_pylist()[:1]
    with pytest.raises(ResumeError, match="Candidate 1"):
        dpa4sim.screen(LennardJones(), alloys(3)[:1], directory=tmp_path / "here", **options)


def test_built_in_references_are_relaxed_and_are_no_candidates(tmp_path):
    copper = bulk("Cu", "bcc", a=2.9)
    asked = replace(settings(), hull=Hull(built_in=True))
    with init(tmp_path / "run", asked, LennardJones(), [Candidate("x", "x", copper)]) as campaign:
        run(campaign, LennardJones(), progress=False)
        results, table = campaign.results(), rank(campaign)
    built_in = [row for row in results.to_pylist() if row["source"] == BUILT_IN]
    assert {row["formula"] for row in built_in} == {"Cu"}
    lowest = min(row["energy"] / row["n_atoms"] for row in built_in)
    (row,) = table.to_pylist()
    assert (row["name"], row["missing_references"]) == ("x", "")
    expected = results["energy"][0].as_py() - lowest
    assert row["e_above_hull_reference"] == pytest.approx(expected, abs=1e-12)


class Slow(LennardJones):
    """Takes its time, so that two runners meet."""

    __qualname__ = "LennardJones"

    def __call__(self, batch):
        time.sleep(0.01)
        return super().__call__(batch)


def worker(folder: Path, potential) -> None:
    with open_campaign(folder) as campaign:
        run(campaign, potential, progress=False)


def forked(*works) -> list[int]:
    """Exit codes of works that run at the same time, each in a process of its own."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            tqdm.set_lock(threading.RLock())  # else it dies with the lock that it shares with us
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_two_runners_share_the_work(tmp_path):
    calm = finished(tmp_path / "calm", 30)
    begun(tmp_path / "run", 30).close()
    work = partial(worker, tmp_path / "run", Slow())
    assert forked(work, work) == [0, 0]
    with open_campaign(tmp_path / "run") as campaign:
        assert campaign.results().equals(calm)
        attempts = campaign.ledger.db.execute("SELECT attempt, worker FROM chunk").fetchall()
    assert [attempt for attempt, _ in attempts] == [1] * 6
    assert len({name for _, name in attempts}) == 2
    assert sorted(p.name for p in (tmp_path / "run" / "results").iterdir()) == [
        f"{chunk:06}-1.parquet" for chunk in range(6)
    ]
    assert list((tmp_path / "run" / "work").iterdir()) == []


def test_who_has_lost_the_lease_stores_nothing(tmp_path):
    """A worker that seemed dead comes back with its results when another has them already."""
    calm = finished(tmp_path / "calm", 5)
    with begun(tmp_path / "run", 5) as campaign:
        ledger = campaign.ledger
        late = ledger.lease("late", lambda held: True, 60.0, (1, 1))
        assert ledger.lease("other", lambda held: True, 60.0, (1, 1)) is None
        run(campaign, LennardJones(), progress=False)
        before = ledger.parts()
        assert before[0].name == "000000-2.parquet"
        assert not ledger.complete(late, 1, "nonsense", [Outcome("done", "converged", "", 0)], 1.0)
        assert ledger.parts() == before
        assert campaign.results().equals(calm)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_part_is_computed_again_and_no_other(tmp_path, damage):
    calm = finished(tmp_path / "run")
    path = tmp_path / "run" / "results" / "000002-1.parquet"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        path.write_bytes(content[:-50] if damage == "cut" else flipped)
    wrong = pytest.raises(ResumeError, match=r"000002-1\.parquet is damaged or missing")
    with open_campaign(tmp_path / "run", read_only=True) as campaign, wrong:
        campaign.results()
    assert finished(tmp_path / "run").equals(calm)
    names = [p.name for p in sorted((tmp_path / "run" / "results").iterdir())]
    assert names == ["000000-1.parquet", "000001-1.parquet", "000002-2.parquet"]


def test_what_a_dead_worker_left_is_removed(tmp_path):
    begun(tmp_path / "run").close()
    results, work = tmp_path / "run" / "results", tmp_path / "run" / "work"
    (results / "000001-7.parquet").write_text("an attempt that nobody counts")
    (results / ".000001-8.partial.parquet").write_text("half a file")
    (work / "worker-dead.lock").write_text("")
    finished(tmp_path / "run")
    assert [p.name for p in sorted(results.iterdir())] == [f"00000{i}-1.parquet" for i in range(3)]
    assert list(work.iterdir()) == []


def test_a_living_worker_keeps_what_it_has(tmp_path):
    """Tidying up takes nothing from somebody who is at work."""
    with begun(tmp_path / "run") as campaign, Worker(campaign.ledger.path, campaign.work) as other:
        lease = campaign.ledger.lease(other.name, lambda held: True, 60.0, (1, 1))
        (campaign.parts / lease.part).write_text("being written")
        tidy(campaign)
        assert (campaign.parts / lease.part).exists()
        assert holds(campaign.work, campaign.ledger.running()[0])
        next_one = campaign.ledger.lease("me", partial(holds, campaign.work), 60.0, (1, 1))
        assert next_one.chunk == 1


def limited(folder: Path, bytes_per_file: int) -> None:
    """A run in which no file may grow past a size, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, resource.RLIM_INFINITY))
    full = pytest.raises(ResumeError, match="What was stored is safe; make room on the disk")
    with full, open_campaign(folder) as campaign:
        run(campaign, LennardJones(), progress=False, checkpoint_every_s=0.0)


@pytest.mark.parametrize("size", [400, 3_000, 8_000, 20_000, 40_000, 60_000])
def test_a_full_disk_is_said_and_loses_nothing(tmp_path, size):
    """Whatever is the first that does not fit: a checkpoint, a part, the ledger."""
    calm = finished(tmp_path / "calm", 30)
    begun(tmp_path / "run", 30).close()
    assert forked(partial(limited, tmp_path / "run", size)) == [0]
    assert finished(tmp_path / "run", 30).equals(calm)


def watched(folder: Path) -> None:
    """What can be done in a directory that cannot be written."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    assert not os.access(folder, os.W_OK)
    with open_campaign(folder, read_only=True) as campaign:
        assert campaign.ledger.states() == {"converged": 12}
        assert campaign.results().num_rows == 12
    with pytest.raises(ResumeError, match=r"readonly|cannot be written|cannot be used"):
        worker(folder, LennardJones())


def test_a_directory_that_cannot_be_written(tmp_path):
    """It can be looked at, and a run says what is wrong."""
    with tempfile.TemporaryDirectory() as outer:
        Path(outer).chmod(0o755)
        folder = Path(outer) / "run"
        states = finished(folder)["status"].to_pylist()
        assert states == ["converged"] * 12
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            assert forked(partial(watched, folder)) == [0]
        finally:
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)


def test_checks_that_fail_stop_nothing(tmp_path, monkeypatch, capsys):
    """Whatever a library does with a strange structure, its row is there and the others go on."""

    class PanicException(BaseException):
        """As moyopy raises it."""

    def panics(*_, **__):
        raise PanicException("index out of bounds")

    monkeypatch.setattr("dpa4sim.screen.symmetry.space_group", panics)
    monkeypatch.setattr("dpa4sim.screen.dedup.duplicates", panics)
    candidates = [*given(3), given(1)[0]]
    with init(tmp_path / "run", settings(), LennardJones(), candidates, progress=False) as found:
        run(found, LennardJones(), progress=False)
        rows = found.results().to_pylist()
    assert [row["status"] for row in rows] == ["converged"] * 4
    assert [row["flags"] for row in rows] == [["not_checked"]] * 4
    assert rows[0]["energy"] == rows[3]["energy"]
    assert "duplicates were not looked for (index out of bounds)" in capsys.readouterr().err


def test_the_working_set_is_measured_once(tmp_path, monkeypatch):
    """The bits of a network depend on who shares the batch: a second runner must not differ."""
    asked = replace(settings(), relax=replace(settings().relax, max_edges=0.0))
    measured = iter([3000.0, 100.0])
    monkeypatch.setattr(
        "dpa4sim.screen.runner.edge_capacity", lambda _: Capacity(next(measured), 1e9)
    )
    with init(tmp_path / "run", asked, LennardJones(), given(2), progress=False) as campaign:
        assert [measure_room(campaign, LennardJones()) for _ in range(2)] == [2048.0, 2048.0]
