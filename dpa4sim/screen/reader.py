"""Structure files are read in a process of their own: a parser that hangs or dies stops nothing.

The child (`serve`) is told file after file on stdin and answers with
frames on stdout: two lengths, a JSON head, and a packed structure.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dpa4sim.errors import DataError

LENGTHS = struct.Struct("<II")
STRUCTURE_COLUMNS = ("structure", "cif", "poscar", "atoms", "initial_structure")
NAME_COLUMNS = ("name", "material_id", "id", "mp_id", "label")
GRACE = 1.5
"""The child interrupts a parser after its time, the parent kills the child after so many times."""

START_S = 300.0
"""Until the child answers for the first time; on a busy machine its imports take a while."""


@dataclass(frozen=True)
class Task:
    """A file, and where to begin in it.

    Args:
        path: of the file.
        skip: entries that were read before.
        structure_column: of a CSV file; empty looks for a usual name.
        name_column: of a CSV file; empty looks for a usual name.
    """

    path: str
    skip: int = 0
    structure_column: str = ""
    name_column: str = ""


@dataclass(frozen=True)
class Read:
    """An entry of a file: a packed structure, or the reason why there is none."""

    name: str
    source: str
    reason: str
    packed: bytes | None


class Reader:
    """Reads files in a child process, which is begun again when it hangs or dies.

    Args:
        timeout_s: seconds that an entry may take.
    """

    def __init__(self, timeout_s: float):
        self.timeout_s, self.patience_s = timeout_s, GRACE * timeout_s
        self.child: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the child."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for stream in (self.child.stdin, self.child.stdout):
                if stream is not None:
                    stream.close()
        self.child = None

    def entries(self, task: Task) -> Iterator[Read]:
        """The entries of a file; where the child fails, the reason, and what follows.

        After two failures in a row the rest of the file is given up.
        """
        place, failed = task.skip, False
        self._ask(task)
        while True:
            found = self._answer()
            if isinstance(found, str):
                self.close()
                rest = "; what follows it was not read" if failed else ""
                source = f"{task.path}#{place}"
                yield Read(Path(source).name, source, f"{found}{rest}", None)
                if failed:
                    return
                place, failed = place + 1, True
                self._ask(Task(**{**asdict(task), "skip": place}))
            elif found is None:
                return
            else:
                place, failed = place + 1, False
                yield found

    def _ask(self, task: Task) -> None:
        if self.child is None:
            call = f"from dpa4sim.screen.reader import serve; serve({self.timeout_s!r})"
            self.child = subprocess.Popen(
                [sys.executable, "-c", call],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            trouble = self._answer(START_S)
            if isinstance(trouble, str):
                self.close()
                raise DataError(
                    f"No structure file can be read: the process for it did not start ({trouble}). "
                    "Type: dpa4sim doctor."
                )
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, and the answer will say so

    def _answer(self, timeout_s: float | None = None) -> Read | str | None:
        """An entry, None at the end of the file, or what is wrong with the child."""
        limit = self.patience_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        lengths = self._bytes(LENGTHS.size, deadline)
        if lengths is None or len(lengths) < LENGTHS.size:
            return self._trouble(lengths, limit)
        head_size, packed_size = LENGTHS.unpack(lengths)
        content = self._bytes(head_size + packed_size, deadline)
        if content is None or len(content) < head_size + packed_size:
            return self._trouble(content, limit)
        head = json.loads(content[:head_size])
        if "end" in head:
            return None
        return Read(**head, packed=content[head_size:] or None)

    def _trouble(self, found: bytes | None, limit: float) -> str:
        if found is None:
            return f"reading it took longer than {limit:g} s"
        assert self.child is not None
        return f"reading it ended the reader (exit code {self.child.wait()})"

    def _bytes(self, count: int, deadline: float) -> bytes | None:
        """So many bytes of the child; fewer when it has died, None when time is up."""
        assert self.child is not None
        assert self.child.stdout is not None
        handle, found = self.child.stdout.fileno(), bytearray()
        while len(found) < count:
            ready, _, _ = select.select([handle], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                return None
            more = os.read(handle, count - len(found))
            if not more:
                break
            found += more
        return bytes(found)


def read(task: Task) -> Iterator[Read]:
    """The entries of a file, in this process."""
    from dpa4sim.adapters.ase import to_atoms
    from dpa4sim.adapters.files import read_structures

    if _is_csv(task.path):
        yield from _read_csv(task)
        return
    for record in read_structures(task.path, skip=task.skip):
        name = Path(record.label).name
        if isinstance(record.batch, DataError):
            yield Read(name, record.label, str(record.batch), None)
            continue
        atoms = record.atoms if record.atoms is not None else to_atoms(record.batch)[0]
        yield _read(str(atoms.info.get("name") or name), record.label, atoms)


def _read(name: str, source: str, atoms: Any) -> Read:
    from dpa4sim.screen.candidate import pack

    try:
        return Read(name, source, "", pack(atoms))
    except DataError as error:
        return Read(name, source, str(error), None)


def _is_csv(path: str) -> bool:
    return path.lower().endswith((".csv", ".csv.gz"))


def _read_csv(task: Task) -> Iterator[Read]:
    csv.field_size_limit(1 << 30)
    open_text: Any = gzip.open if task.path.lower().endswith(".gz") else open
    with open_text(task.path, "rt", newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        names = list(rows.fieldnames or ())
        column = _column(task, names, task.structure_column, STRUCTURE_COLUMNS)
        named = [name for name in (task.name_column, *NAME_COLUMNS) if name in names]
        for index, row in enumerate(rows):
            if index < task.skip:
                continue
            name = (row[named[0]] if named else None) or f"{Path(task.path).name}#{index}"
            yield _from_text(name, f"{task.path}#{index}", row[column] or "")


def _column(task: Task, names: list[str], given: str, usual: tuple[str, ...]) -> str:
    found = [name for name in ((given,) if given else usual) if name in names]
    if not found:
        raise DataError(
            f"{task.path} has no column {given or ' or '.join(usual)}. Its columns: "
            f"{', '.join(names)}. Name it with --structure-column."
        )
    return found[0]


def _from_text(name: str, source: str, text: str) -> Read:
    """A structure from a cell of a table: JSON of pymatgen, CIF or POSCAR."""
    from io import StringIO

    from ase.io import read as read_ase
    from pymatgen.core import Structure

    from dpa4sim.adapters.ase import to_atoms
    from dpa4sim.adapters.pymatgen import from_structure

    text = text.strip()
    try:
        atoms: Any
        if text.startswith("{"):
            atoms = to_atoms(from_structure(Structure.from_dict(json.loads(text))))[0]
        elif "_cell_length" in text:
            atoms = read_ase(StringIO(text), format="cif", fractional_occupancies=True)
        else:
            atoms = read_ase(StringIO(text), format="vasp")
        return _read(name, source, atoms)
    except Exception as error:  # readers raise anything on a broken entry
        what = str(error).strip() or "nothing is known of why"
        return Read(name, source, f"it cannot be read: {type(error).__name__}: {what}", None)


def serve(timeout_s: float) -> None:
    """The child: tasks in, entries out.

    Args:
        timeout_s: an entry that takes longer is an error; of a parser that does not let itself be
            interrupted the parent will make an end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers, silence = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # what a reader prints is no answer
    os.dup2(silence, 2)
    _answer_all(answers, timeout_s)


def _answer_all(answers: int, timeout_s: float) -> None:
    import warnings

    for module in ("ase.io", "pymatgen.core", "dpa4sim.adapters.ase", "dpa4sim.adapters.files"):
        import_module(module)  # not on the time of the first file
    warnings.simplefilter("ignore")
    _limit_memory()
    _send(answers, {"end": True}, b"")
    signal.signal(signal.SIGALRM, _too_long)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        try:
            for found in _timely(read(task), timeout_s):
                head = {"name": found.name, "source": found.source, "reason": found.reason}
                _send(answers, head, found.packed or b"")
        except Exception as error:  # whatever a file makes a reader raise
            if task.skip == 0:
                head = {"name": Path(task.path).name, "source": task.path, "reason": str(error)}
                _send(answers, head, b"")
        _send(answers, {"end": True}, b"")


def _timely(entries: Iterator[Read], timeout_s: float) -> Iterator[Read]:
    """The same entries; TimeoutError inside the reading of one that takes too long."""
    while True:
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        found = next(entries, None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if found is None:
            return
        yield found


def _too_long(*_: Any) -> None:
    raise TimeoutError("it took too long")


def _limit_memory() -> None:
    """A file that asks for more than half the machine is an error, and ends nothing else."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + whole // 2, hard))


def _end_with(parent: int) -> None:
    """A child whose parent was killed has nobody to answer to."""
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


def _send(handle: int, head: dict[str, Any], packed: bytes) -> None:
    text = json.dumps(head).encode()
    content = memoryview(LENGTHS.pack(len(text), len(packed)) + text + packed)
    while content:
        content = content[os.write(handle, content) :]
