"""Ingest: read, validate, deduplicate, cut into chunks.  It goes on where it was interrupted.

Stages, each of which leaves the ledger in one step or moves a place in it forward:
read -> built_in -> deduplicate -> complete.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpa4sim.errors import ConfigError, DataError, ResumeError
from dpa4sim.pool.progress import Progress
from dpa4sim.screen.candidate import Candidate, pack, unpack
from dpa4sim.screen.ledger import Ledger
from dpa4sim.screen.reader import Read, Reader, Task
from dpa4sim.screen.records import Entry
from dpa4sim.screen.settings import Candidates as Asked
from dpa4sim.screen.settings import Settings
from dpa4sim.screen.table import BUILT_IN

if TYPE_CHECKING:
    from ase import Atoms

BLOCK = 500
"""Candidates that are written together."""

COMPLETE = "complete"

LONGEST_A = 1000.0
"""Of a lattice vector: 20 times what slabs with a vacuum need."""


class Source(NamedTuple):
    """A file, or candidates that are made here."""

    task: Task | None
    candidates: Iterable[Candidate]


def ingest(
    ledger: Ledger,
    settings: Settings,
    given: Iterable[Candidate] | None,
    known: frozenset[int] | None,
    progress: bool | None,
) -> None:
    """Bring every candidate into the ledger, or what is missing of them.

    Args:
        given: candidates that are no files.
        known: atomic numbers that the model knows; None for all.
        progress: as of `dpa4sim.relax`.

    Raises:
        ConfigError: there is nothing to read.
        ResumeError: files or candidates are not those of the beginning.
    """
    asked = settings.candidates
    stage = ledger.fact("stage") or "read"
    if given is not None and ledger.count():
        given = _beyond(ledger, given, stage)
    if stage == "read":
        _read(ledger, settings, given, known, progress)
        stage = "built_in"
    if stage == "built_in":
        _built_in(ledger, settings, known)
        stage = "deduplicate"
    if stage == "deduplicate":
        if asked.deduplicate:
            _deduplicate(ledger, scale=settings.relax.cell)
        ledger.cut(asked.chunk_size, {"stage": COMPLETE, "candidates": digest(ledger)})


def is_complete(ledger: Ledger) -> bool:
    """Whether all candidates are in the ledger."""
    return ledger.fact("stage") == COMPLETE


def digest(ledger: Ledger) -> str:
    """Tells one set of candidates from another."""
    found = hashlib.sha256()
    for first in range(0, ledger.count(), BLOCK):
        for row in ledger.rows(first, first + BLOCK):
            place = Path(row.source).name  # folders differ from machine to machine
            words = (row.name, place, row.reason.replace(row.source, place), row.duplicate_of)
            found.update(json.dumps(words).encode())
            found.update(row.packed or b"")
    return found.hexdigest()


def check_sources(ledger: Ledger, asked: Asked) -> None:
    """The files are still those that ingest began with.

    Raises:
        ResumeError: one was changed, added or removed; the message names it.
    """
    before = {path: (size, modified) for _, path, size, modified in ledger.sources()}
    now = {path: (size, modified) for _, path, size, modified in _stated(asked)}
    for path in sorted(before.keys() | now.keys()):
        if before.get(path) != now.get(path):
            what = "added" if path not in before else "changed" if path in now else "removed"
            raise ResumeError(
                f"{path} was {what} since the campaign was begun. Put back what was there, or "
                "begin in a new directory."
            )


def _read(
    ledger: Ledger,
    settings: Settings,
    given: Iterable[Candidate] | None,
    known: frozenset[int] | None,
    progress: bool | None,
) -> None:
    asked = settings.candidates
    if ledger.fact("place") is None:
        ledger.add_sources(_stated(asked))
        ledger.remember(place="[0, 0]")
    else:
        check_sources(ledger, asked)
    ordinal, skip = json.loads(ledger.fact("place") or "[0, 0]")
    sources = _sources(ledger, asked, given)
    if not sources:
        raise ConfigError("There are no candidates. Give files, or a chemical system.")
    reporter = Progress("ingest", None, progress)
    reporter.skip(ledger.count())
    reader = Reader(asked.reader_timeout_s)
    try:
        stream = _placed(reader, sources, ordinal, skip)
        number = ledger.count()
        while block := list(islice(stream, BLOCK)):
            entries = [_entry(found, known) for _, found in block]
            place = json.dumps(block[-1][0])
            ledger.append(number, entries, {"place": place})
            number += len(entries)
            reporter.advance(structures=len(entries))
    finally:
        reader.close()
        reporter.close()
    ledger.remember(stage="built_in")


def _placed(
    reader: Reader, sources: Sequence[Source], ordinal: int, skip: int
) -> Iterator[tuple[tuple[int, int], Read]]:
    """What is read from a place on, each with the place after it."""
    for number, source in enumerate(sources[ordinal:], ordinal):
        begin = skip if number == ordinal else 0
        if source.task is not None:
            found = reader.entries(replace(source.task, skip=begin))
        else:
            found = map(_packed, islice(source.candidates, begin, None))
        for index, entry in enumerate(found, begin + 1):
            yield (number, index), entry


def _sources(ledger: Ledger, asked: Asked, given: Iterable[Candidate] | None) -> list[Source]:
    columns = (asked.structure_column, asked.name_column)
    found = [Source(Task(path, 0, *columns), ()) for _, path, _, _ in ledger.sources()]
    for system in asked.chemical_systems:
        found.append(Source(None, made(system, asked.substitute)))
    if given is not None:
        found.append(Source(None, given))
    return found


def made(system: str, substitute: Sequence[str]) -> Iterator[Candidate]:
    """Candidates of a chemical system: decorated prototypes, or the user's own structures.

    Args:
        system: such as Li-Fe-O.
        substitute: files whose structures take its elements.
    """
    if not substitute:
        from dpa4sim.screen.decorate import decorate

        yield from decorate(system)
        return
    from dpa4sim.adapters.ase import to_atoms
    from dpa4sim.adapters.files import read_structures
    from dpa4sim.screen.substitute import substitute as substituted

    structures = [
        record.atoms if record.atoms is not None else to_atoms(record.batch)[0]
        for record in read_structures(substitute)
        if not isinstance(record.batch, DataError)
    ]
    yield from substituted(structures, system)


def _packed(candidate: Candidate) -> Read:
    if candidate.atoms is None:
        return Read(candidate.name, candidate.source, candidate.reason, None)
    try:
        return Read(candidate.name, candidate.source, "", pack(candidate.atoms))
    except DataError as error:
        return Read(candidate.name, candidate.source, str(error), None)


def _entry(found: Read, known: frozenset[int] | None) -> Entry:
    """What the ledger keeps of a candidate: it waits, or is invalid."""
    from dpa4sim.screen.validity import invalid_reason

    formula, system, count, reason = "", "", 0, found.reason
    if found.packed is not None:
        atoms = unpack(found.packed)
        count = len(atoms)
        reason = invalid_reason(atoms, known) or _too_long(atoms)
        formula, system = composition(atoms)
    state, packed = ("queued", found.packed) if not reason else ("invalid", None)
    return Entry(found.name, found.source, formula, system, count, state, reason, packed)


def _too_long(atoms: Atoms) -> str:
    """Lattice reductions and matchers take for ever, or all memory, over a needle of a cell."""
    longest = float(atoms.cell.lengths().max())
    if longest <= LONGEST_A:
        return ""
    return f"a lattice vector is {longest:.3g} Å long; candidates may have up to {LONGEST_A:g} Å"


def composition(atoms: Atoms) -> tuple[str, str]:
    """Reduced formula and chemical system; empty for what is no element."""
    from pymatgen.core import Composition

    if not len(atoms) or not all(0 < z <= 118 for z in atoms.numbers):
        return "", ""
    found = Composition(atoms.symbols.formula.count())
    return found.reduced_formula, found.chemical_system


def _built_in(ledger: Ledger, settings: Settings, known: frozenset[int] | None) -> None:
    """Crystals of the elements, and of pairs of them, that will serve as references."""
    entries: list[Entry] = []
    if settings.hull.built_in:
        found = _crystals(ledger.chemical_systems())
        unique = {each.name: Candidate(each.name, BUILT_IN, each.atoms) for each in found}
        entries = [_entry(_packed(each), known) for each in unique.values()]
    ledger.append(ledger.count(), entries, {"stage": "deduplicate"})


def _crystals(systems: Iterable[str]) -> Iterator[Candidate]:
    """Of the elements, as far as they form any, and of what is known of their systems."""
    from dpa4sim.screen.elements import elemental_crystals, known_crystals

    systems = list(systems)
    for element in sorted({element for system in systems for element in system.split("-")}):
        with suppress(ConfigError):  # none is known: the hull will say that it is missing
            yield from elemental_crystals([element])
    for system in systems:
        yield from known_crystals(system)


def _deduplicate(ledger: Ledger, scale: bool) -> None:
    """Formula by formula; built-in crystals keep to themselves.

    Args:
        scale: whether structures that differ in size only are equal, as their cells relax.
    """
    for formula in ledger.formulas(ledger.fact("formula") or ""):
        rows = [row for row in ledger.of_formula(formula) if row[1] != BUILT_IN]
        numbers = [number for number, _, _ in rows]
        found = equal_ones(formula, [unpack(packed) for _, _, packed in rows], scale)
        pairs = [
            (numbers[first], number)
            for number, first in zip(numbers, found, strict=True)
            if first is not None
        ]
        ledger.mark_duplicates(pairs, {"formula": formula})


def equal_ones(formula: str, structures: Sequence[Atoms], scale: bool) -> list[int | None]:
    """`dedup.duplicates`; where it fails there are none, which costs time and no result."""
    from dpa4sim.screen.dedup import duplicates

    try:
        return duplicates(structures, scale=scale)
    except BaseException as error:  # moyopy's panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        print(f"{formula}: duplicates were not looked for ({error})", file=sys.stderr)
        return [None] * len(structures)


def _beyond(ledger: Ledger, given: Iterable[Candidate], stage: str) -> Iterator[Candidate]:
    """All of the given candidates, those that are in the ledger after a comparison with it."""
    stream, place = iter(given), 0
    total = sum(1 for _ in _own(ledger))
    for place, row in enumerate(_own(ledger)):
        mine = next(stream, None)
        found = None if mine is None else _packed(mine)
        same = found is not None and found.name == row.name
        if found is None or not same or row.packed not in (None, found.packed):
            raise _other(place, row.name, "nothing" if found is None else found.name)
    if stage != "read":
        extra = next(stream, None)
        if extra is not None:
            raise _other(total, "nothing", extra.name)
    return _after(total, stream)


def _after(total: int, stream: Iterator[Candidate]) -> Iterator[Candidate]:
    """So many that will be skipped, and then the rest."""
    yield from (Candidate("", "", None) for _ in range(total))
    yield from stream


def _own(ledger: Ledger) -> Iterator[Any]:
    for first in range(0, ledger.count(), BLOCK):
        yield from (row for row in ledger.rows(first, first + BLOCK) if row.source != BUILT_IN)


def _other(place: int, before: str, now: str) -> ResumeError:
    return ResumeError(
        f"Candidate {place} was {before} when the campaign was begun, and now it is {now}. Give "
        "the same candidates in the same order, or a new directory."
    )


def _stated(asked: Asked) -> list[tuple[int, str, int, int]]:
    """Number, absolute path, bytes and time of change of every file."""
    from dpa4sim.adapters.files import named_files

    files: list[Path] = []
    for path in asked.files:
        single = path.lower().endswith((".csv", ".csv.gz")) and Path(path).is_file()
        files += [Path(path)] if single else named_files(path)
    stats = [(str(file.absolute()), file.stat()) for file in files]
    return [(n, path, s.st_size, s.st_mtime_ns) for n, (path, s) in enumerate(stats)]
