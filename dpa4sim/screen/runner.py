"""The runner: takes chunk after chunk, relaxes it in one pool, stores it, says so in the ledger."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from dpa4sim.errors import SICK, ResumeError, Status
from dpa4sim.pool.capacity import edge_capacity
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.pool.progress import Progress
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.result import Relaxed
from dpa4sim.relax.run import relax_each
from dpa4sim.screen.campaign import Campaign, alone, cannot_write, check_complete
from dpa4sim.screen.candidate import unpack
from dpa4sim.screen.ingest import equal_ones
from dpa4sim.screen.records import Lease, Outcome, Row
from dpa4sim.screen.table import (
    BUILT_IN,
    finite,
    geometry,
    is_sound,
    to_atoms,
    to_table,
    write_part,
)
from dpa4sim.screen.worker import LEASE_S, Worker, chunk_folder, holds, sweep

if TYPE_CHECKING:
    from ase import Atoms

POLL_S = 1.0
"""Between two looks whether another worker's chunk has become free."""

ROWS_AT_ONCE = 8192
"""Structures in memory while equal ones are looked for; a formula that has more is not cut."""

WHOLE = (1, 1)
"""The shard that is everything."""


def run(
    campaign: Campaign,
    potential: EnergyModel,
    *,
    shard: tuple[int, int] = WHOLE,
    progress: bool | None = None,
    checkpoint_every_s: float = 60.0,
) -> None:
    """Work on a campaign until every chunk of the shard is done, by this process or by others.

    Args:
        shard: (i, n): every n-th chunk from the i-th on.
        progress: as of `dpa4sim.relax`.
        checkpoint_every_s: seconds between two checkpoints of the chunk at work.

    Raises:
        ResumeError: the model, a setting or a version is not that of the beginning, or the
            directory cannot be written.
    """
    campaign.check_model(model_fingerprint(potential))
    check_complete(campaign)
    choose_shard(campaign, shard)
    try:
        tidy(campaign)
        max_edges = measure_room(campaign, potential)
        ledger, mine = campaign.ledger, 0
        reporter = Progress("screen", ledger.to_relax(shard), progress)
        with closing(reporter), Worker(ledger.path, campaign.work) as worker:
            for lease in _leases(campaign, worker, shard):
                reporter.skip(ledger.relaxed()[0] - reporter.before - mine)  # others work, too
                chunk = _Chunk(campaign, potential, lease, max_edges, checkpoint_every_s)
                mine += chunk.run(reporter)
        if shard == WHOLE:
            mark_twins(campaign)
    except OSError as error:
        raise ResumeError(cannot_write(campaign.directory, error)) from error


def choose_shard(campaign: Campaign, shard: tuple[int, int]) -> None:
    """Remember which part of the work this directory is for.

    Raises:
        ResumeError: it was begun for another.
    """
    i, n = shard
    if not 1 <= i <= n:
        raise ResumeError(f"There is no shard {i}/{n}. Give one from 1/{n} to {n}/{n}.")
    before = campaign.ledger.settle("shard", f"{i}/{n}")
    if before != f"{i}/{n}":
        raise ResumeError(
            f"{campaign.directory} was begun as shard {before}, and now it is {i}/{n}. Give "
            f"--shard {before}, or a copy of the directory from before its first run."
        )


def tidy(campaign: Campaign) -> list[int]:
    """Put damaged parts back into the queue, and remove what no living worker owns.

    Returns:
        The chunks whose results were lost.
    """
    ledger = campaign.ledger
    lost = [
        part
        for part in ledger.parts()
        if not is_sound(campaign.parts / part.name, part.size, part.digest)
    ]
    for part in lost:
        ledger.requeue(part)
    # first what is there, then whose it is: what somebody makes in between is not looked at
    files = [*campaign.parts.glob("*.parquet"), *campaign.parts.glob(".*.parquet")]
    folders = list(campaign.work.glob("chunk-*"))
    owned = {held.part for held in ledger.running() if holds(campaign.work, held)}
    done = ledger.parts()
    owned |= {part.name for part in done}
    for path in files:
        if path.name.removeprefix(".").replace(".partial", "") not in owned:
            path.unlink(missing_ok=True)
    finished = {part.chunk for part in done}
    for folder in folders:
        if int(folder.name.removeprefix("chunk-")) in finished:
            shutil.rmtree(folder, ignore_errors=True)
    sweep(campaign.work)
    return [part.chunk for part in lost]


def mark_twins(campaign: Campaign) -> None:
    """Once all is relaxed: which structures have become equal to an earlier one."""
    ledger = campaign.ledger
    if not campaign.settings.candidates.deduplicate or ledger.fact("twins") is not None:
        return
    if set(ledger.chunks()) - {"done"}:
        return
    with alone(campaign):
        if ledger.fact("twins") is None:
            ledger.mark_twins(list(_twins(campaign)))


def _twins(campaign: Campaign) -> Iterator[tuple[int, int]]:
    table = campaign.results(("id", "status", "source", "formula"))
    by_formula: dict[str, list[int]] = {}
    columns = (table[name].to_pylist() for name in ("id", "status", "source", "formula"))
    for number, status, source, formula in zip(*columns, strict=True):
        if status in ("converged", "max_steps") and source != BUILT_IN:
            by_formula.setdefault(formula, []).append(number)
    doubtful = (numbers for numbers in by_formula.values() if len(numbers) > 1)
    for together in _filled(doubtful, ROWS_AT_ONCE):
        found = campaign.select([number for numbers in together for number in numbers])
        structures = {row["id"]: row for row in found.to_pylist()}
        for numbers in together:
            rows = [structures[number] for number in numbers]
            same = equal_ones(rows[0]["formula"], [to_atoms(row) for row in rows], scale=False)
            for number, first in zip(numbers, same, strict=True):
                if first is not None:
                    yield number, numbers[first]


def _filled(groups: Iterable[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Groups that go together, as long as they have no more than `most` members."""
    together: list[list[int]] = []
    count = 0
    for group in groups:
        if together and count + len(group) > most:
            yield together
            together, count = [], 0
        together.append(group)
        count += len(group)
    if together:
        yield together


def measure_room(campaign: Campaign, potential: EnergyModel) -> float:
    """Edges of the working set: the same for every worker, for the bits depend on it.

    A power of two, so that a little more or less memory does not matter.
    """
    asked = campaign.settings.relax.max_edges
    if asked:
        return asked
    known = campaign.ledger.fact("max_edges")
    if known is None:
        fits = edge_capacity(potential).working
        known = campaign.ledger.settle("max_edges", repr(2.0 ** math.floor(math.log2(fits))))
    return float(known)


def _leases(campaign: Campaign, worker: Worker, shard: tuple[int, int]) -> Iterator[Lease]:
    """Chunks to work on; waits while others have the last ones."""
    ledger, held = campaign.ledger, partial(holds, campaign.work)
    while True:
        lease = ledger.lease(worker.name, held, LEASE_S, shard)
        if lease is not None:
            yield lease
        elif any(other.chunk % shard[1] == shard[0] - 1 for other in ledger.running()):
            time.sleep(POLL_S)
        else:
            return


class _Chunk:
    """The relaxation of one chunk."""

    def __init__(
        self,
        campaign: Campaign,
        potential: EnergyModel,
        lease: Lease,
        max_edges: float,
        checkpoint_every_s: float,
    ):
        self.campaign, self.potential, self.lease = campaign, potential, lease
        self.max_edges, self.checkpoint_every_s = max_edges, checkpoint_every_s

    def run(self, progress: Progress) -> int:
        """Relax, store, say so; what others have done meanwhile is left as it is.

        Returns:
            How many structures have been relaxed.
        """
        begin = time.monotonic()
        rows = list(self.campaign.ledger.rows(self.lease.first, self.lease.beyond))
        waiting = [row for row in rows if row.state == "running" and row.packed is not None]
        starts = {row.id: unpack(row.packed) for row in waiting if row.packed is not None}
        found: dict[int, Relaxed] = {}
        if waiting:
            for record in self._relaxed(list(starts.values())):
                found[waiting[record.index].id] = record
                progress.advance(
                    structures=1, atom_steps=record.steps * len(record.batch.positions)
                )
        table = to_table([_row(row, starts.get(row.id), found.get(row.id)) for row in rows])
        columns = (table[name].to_pylist() for name in ("status", "reason", "id"))
        outcomes = [
            Outcome(_state(status), status, reason, number)
            for status, reason, number in zip(*columns, strict=True)
            if number in found
        ]
        path = self.campaign.parts / self.lease.part
        size, digest = write_part(path, table)
        seconds = time.monotonic() - begin
        if not self.campaign.ledger.complete(self.lease, size, digest, outcomes, seconds):
            path.unlink(missing_ok=True)
            return 0
        shutil.rmtree(chunk_folder(self.campaign.work, self.lease.chunk), ignore_errors=True)
        return len(outcomes)

    def _relaxed(self, starts: Sequence[Atoms]) -> Iterable[Relaxed]:
        asked = self.campaign.settings.relax
        return relax_each(
            self.potential,
            [_stated(atoms, self.potential) for atoms in starts],
            fmax=asked.fmax,
            cell=asked.cell,
            optimizer=asked.optimizer,
            cell_filter=asked.cell_filter,
            max_steps=asked.max_steps,
            pressure_gpa=asked.pressure_gpa,
            fix_symmetry=asked.fix_symmetry,
            max_force_spread=asked.max_force_spread or None,
            max_edges=self.max_edges,
            progress=False,
            directory=chunk_folder(self.campaign.work, self.lease.chunk),
            checkpoint_every_s=self.checkpoint_every_s,
        )


def _stated(atoms: Atoms, potential: EnergyModel) -> Atoms:
    """Charge and spin for all of a chunk or for none: no candidate may depend on its neighbours."""
    config = getattr(potential, "config", None)
    conditioned = config is not None and config.charge_spin
    default = config.default_charge_spin if config is not None else ()
    for place, name in enumerate(("charge", "spin")):
        if not conditioned:
            atoms.info.pop(name, None)
        else:
            atoms.info.setdefault(name, default[place] if default else 0.0)
    return atoms


def _row(row: Row, start: Atoms | None, record: Relaxed | None) -> dict[str, Any]:
    """A row of the table."""
    known = {name: getattr(row, name) for name in ("id", "name", "source", "formula")}
    known |= {"chemical_system": row.chemical_system, "n_atoms": row.n_atoms, "flags": []}
    if record is None or start is None:
        reason = row.reason
        if row.duplicate_of is not None:
            reason = f"equal to candidate {row.duplicate_of}"
        return known | {"status": row.state, "reason": reason, "duplicate_of": row.duplicate_of}
    known["status"] = record.status.name.lower()
    known["reason"] = "" if record.status == Status.CONVERGED else record.reason
    if record.status == Status.INVALID:
        return known
    from dpa4sim.adapters.ase import to_atoms as from_batch

    (relaxed,) = from_batch(record.batch)
    return {
        **known,
        **geometry(relaxed),
        **_checked(start, relaxed, record.status),
        "energy": finite(record.energy),
        "fmax": finite(record.fmax),
        "max_stress": finite(record.stress_max),
        "force_spread": _spread(record),
        "steps": record.steps,
    }


def _spread(record: Relaxed) -> float | None:
    """Largest force spread of an ensemble at the end, eV/Å."""
    spread = None if record.prediction is None else record.prediction.force_spread
    return None if spread is None else finite(float(spread.max()))


def _checked(start: Atoms, relaxed: Atoms, status: Status) -> dict[str, Any]:
    """Flags of the post-checks and both space groups; a check that fails is a flag itself."""
    try:
        return _checks(start, relaxed, status)
    except BaseException as error:  # moyopy's panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return {"flags": ["not_checked"]}


def _checks(start: Atoms, relaxed: Atoms, status: Status) -> dict[str, Any]:
    from dpa4sim.screen.checks import post_checks
    from dpa4sim.screen.symmetry import space_group

    before = space_group(start)
    if status in SICK:
        return {"flags": [status.name.lower()], "space_group_start": before}
    after = space_group(relaxed)
    flags = post_checks(start, relaxed, space_groups=(before, after))
    return {"flags": flags, "space_group_start": before, "space_group": after}


def _state(status: str) -> str:
    if status == "invalid":
        return "invalid"
    return "failed" if Status[status.upper()] in SICK else "done"
