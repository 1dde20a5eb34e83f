"""Files and mixed lists -> Batches: the one door through which structures come in.

Every format is read by ASE or pymatgen.  Compressed files (.gz, .bz2, .xz) are opened as such.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from glob import glob, has_magic
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from dpa4sim.batch import Batch
from dpa4sim.errors import DataError

FORMATS = "CIF (.cif), POSCAR (POSCAR*, CONTCAR*, .vasp, .poscar), extxyz (.xyz, .extxyz), \
ASE database (.db, .aselmdb), ASE trajectory (.traj), pymatgen or ASE-database JSON (.json)"

ROWS_PER_PAGE = 500
"""Rows of a database that are in memory at once."""

COMPRESSIONS = frozenset((".gz", ".bz2", ".xz"))


class Record(NamedTuple):
    """One entry of a file.

    Args:
        label: path#index, for messages and ledgers.
        batch: the structure as one system, or the reason why there is none.
        atoms: the structure as ASE read it, with its info, arrays and labels.
    """

    label: str
    batch: Batch | DataError
    atoms: Any = None


type Paths = str | Path | Iterable[str | Path]
type Entries = Iterator[tuple[str, Callable[[], Any]]]
"""Name of an entry, and the reading of it: an entry that fails does not stop the others."""


def read_structures(paths: Paths, *, skip: int = 0) -> Iterator[Record]:
    """Stream the structures of files, of the files of folders, or of globs.

    Paths are checked at once; an entry that cannot be read is a record with a DataError.

    Args:
        skip: records at the start of each file that are passed over without being parsed.

    Raises:
        DataError: a path does not exist, holds no structure file, or has an unknown format.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files = [file for path in given for file in _files(str(path))]
    return (record for file, read in files for record in _records(file, read, skip))


def named_files(path: str) -> list[Path]:
    """The structure files that a path names.

    Raises:
        DataError: there is none.
    """
    return [file for file, _ in _files(path)]


def is_structure_file(file: Path) -> bool:
    """Whether the name of a file says that it can be read."""
    return _reader(file) is not None


def structures_to_batches(structures: Any) -> list[Batch]:
    """One-system Batches of anything that holds structures.

    Args:
        structures: ASE Atoms, pymatgen Structure, Molecule or ComputedStructureEntry, TorchSim
            SimState, Batch, a path, or an iterable of these, mixed at will.

    Raises:
        DataError: there is none, one cannot be read, or one is something else.
    """
    return [batch for batch, _ in stream_structures(structures)]


def stream_structures(structures: Any) -> Iterator[tuple[Batch, Any]]:
    """One-system Batches one by one, each with the ASE Atoms that it came from, or None.

    Args:
        structures: as of `structures_to_batches`; an iterator is read only as far as needed.

    Raises:
        DataError: there is none, one cannot be read, or one is something else.
    """
    empty = True
    for entry in _batches(structures, ""):
        empty = False
        yield entry
    if empty:
        raise DataError("No structure was given. Give at least one.")


def _batches(structures: Any, place: str) -> Iterator[tuple[Batch, Any]]:
    if isinstance(structures, Batch):
        yield from ((system, None) for system in structures.split())
    elif isinstance(structures, str | Path):
        yield from _from_files(structures)
    elif _is_a(structures, "ase.atoms", "Atoms"):
        from dpa4sim.adapters.ase import from_atoms

        yield _named(from_atoms, structures, place), structures
    elif _is_a(structures, "pymatgen.core.structure", "SiteCollection"):
        from dpa4sim.adapters.pymatgen import from_structure

        yield _named(from_structure, structures, place), None
    elif _is_a(structures, "pymatgen.entries.computed_entries", "ComputedStructureEntry"):
        yield from _batches(structures.structure, place)
    elif _is_a(structures, "torch_sim.state", "SimState"):
        from dpa4sim.adapters.torchsim import from_state

        yield from ((system, None) for system in from_state(structures).split())
    elif isinstance(structures, Iterable) and not isinstance(structures, dict):
        for index, structure in enumerate(structures):
            yield from _batches(structure, f"{place}[{index}]" if place else f"Structure {index}")
    else:
        raise DataError(
            f"{place or 'The input'} is of type {type(structures).__name__}. Give ASE Atoms, a "
            "pymatgen Structure or Molecule, a TorchSim SimState, a Batch, or a path."
        )


def _from_files(path: str | Path) -> Iterator[tuple[Batch, Any]]:
    for record in read_structures(path):
        if isinstance(record.batch, DataError):
            raise record.batch
        yield record.batch, record.atoms


def _is_a(value: Any, module: str, name: str) -> bool:
    """Whether `value` is an instance, without importing: what was never imported has none."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def _named(convert: Callable[[Any], Batch], structure: Any, place: str) -> Batch:
    try:
        return convert(structure)
    except DataError as error:
        raise DataError(f"{place}: {error}" if place else str(error)) from None


def _files(path: str) -> list[tuple[Path, Callable[[Path], Entries]]]:
    """The structure files that a path names, each with its reader."""
    if Path(path).is_file():
        read = _reader(Path(path))
        if read is None:
            raise DataError(f"{path} has no known structure format. Known are {FORMATS}.")
        return [(Path(path), read)]
    if Path(path).is_dir():
        found = sorted(file for file in Path(path).iterdir() if file.is_file())
    elif has_magic(path):
        found = sorted(Path(name) for name in glob(path, recursive=True) if Path(name).is_file())
    else:
        raise DataError(f"There is no file or folder {path}. Give an existing path or a glob.")
    known = [(file, read) for file in found if (read := _reader(file)) is not None]
    if not known:
        raise DataError(f"{path} holds no structure file. Known formats are {FORMATS}.")
    return known


def _reader(file: Path) -> Callable[[Path], Entries] | None:
    name = file.stem if file.suffix.lower() in COMPRESSIONS else file.name
    if name.startswith(("POSCAR", "CONTCAR")):
        return _read_poscar
    return {
        ".cif": _read_cif,
        ".vasp": _read_poscar,
        ".poscar": _read_poscar,
        ".xyz": _read_extxyz,
        ".extxyz": _read_extxyz,
        ".db": _read_database,
        ".aselmdb": _read_aselmdb,
        ".traj": _read_trajectory,
        ".json": _read_json,
    }.get(Path(name).suffix.lower())


def _records(file: Path, read: Callable[[Path], Entries], skip: int = 0) -> Iterator[Record]:
    """Every entry of a file, the broken ones as errors; a file without entries is an error too."""
    count = 0
    try:
        if file.stat().st_size == 0:
            raise DataError("the file is empty")
        for name, load in read(file):
            label = f"{file}#{name}"
            count += 1
            if count <= skip:
                continue
            try:
                yield _record(label, load())
            except Exception as error:  # readers raise anything on a broken entry
                yield Record(label, _unreadable(label, error))
        if count == 0:
            raise DataError("it holds no structure")
    except Exception as error:  # the file as a whole: the entries after this point are lost
        label = str(file) if count == 0 else f"{file}#{count}"
        rest = "" if count == 0 else "; what follows it was not read"
        if count >= skip:
            yield Record(label, _unreadable(label, error, rest))


def _record(label: str, structure: Any) -> Record:
    from dpa4sim.adapters.ase import from_atoms

    if _is_a(structure, "ase.atoms", "Atoms"):
        return Record(label, from_atoms(structure), structure)
    ((batch, _),) = _batches(structure, "")
    return Record(label, batch)


def _unreadable(label: str, error: Exception, rest: str = "") -> DataError:
    what = str(error).strip() or type(error).__name__
    what = what if isinstance(error, DataError) else f"{type(error).__name__}: {what}"
    return DataError(f"{label} cannot be read: {what.rstrip('.')}{rest}. Repair or remove it.")


def _open(file: Path) -> IO[Any]:
    from monty.io import zopen

    return zopen(file, mode="rt", encoding="utf-8")


def _read_cif(file: Path) -> Entries:
    from ase.io.cif import parse_cif

    with _open(file) as stream:
        blocks = [block for block in parse_cif(stream) if block.has_structure()]
    for index, block in enumerate(blocks):
        yield str(index), partial(block.get_atoms, fractional_occupancies=True)


def _read_poscar(file: Path) -> Entries:
    from ase.io import read

    with _open(file) as stream:
        yield "0", partial(read, stream, format="vasp")


def _read_extxyz(file: Path) -> Entries:
    """Cut into frames by their atom counts, so that a broken frame costs only itself."""
    from ase.io import read

    with _open(file) as stream:
        for index, count in enumerate(stream):
            if not count.strip():
                break
            if not count.strip().isdecimal():
                raise DataError(f"expected the number of atoms, found {count.strip()[:40]!r}")
            lines = [count, *islice(stream, int(count) + 1)]  # ends with the file, whatever count
            yield str(index), partial(read, StringIO("".join(lines)), format="extxyz")


def _read_database(file: Path) -> Entries:
    """Page after page: SQLite's rows of one query are all fetched at once."""
    from ase.db import connect

    database, last = connect(file), 0
    while page := list(database.select(f"id>{last}", sort="id", limit=ROWS_PER_PAGE)):
        for row in page:
            yield str(row.id), partial(_from_row, row)
        last = page[-1].id


def _read_aselmdb(file: Path) -> Entries:
    from ase.db import connect

    try:
        database = connect(file, readonly=True)
    except ImportError as error:
        raise DataError(
            "it needs the package ase-db-backends; type: pip install 'dpa4sim[data]'"
        ) from error
    for number in database.ids:
        yield str(number), partial(_from_row_numbered, database, number)


def _from_row_numbered(database: Any, number: int) -> Any:
    return _from_row(database.get(id=number))


def _from_row(row: Any) -> Any:
    atoms = row.toatoms()
    # a property of the same name hides the stored "charge" and answers 0 (ASE 3.29)
    atoms.info.update({key: vars(row).get(key, row.get(key)) for key in row.key_value_pairs})
    return atoms


def _read_trajectory(file: Path) -> Entries:
    from ase.io.trajectory import TrajectoryReader

    with TrajectoryReader(file) as trajectory:
        for index in range(len(trajectory)):
            yield str(index), partial(trajectory.__getitem__, index)


def _read_json(file: Path) -> Entries:
    """A pymatgen object, a list of them, or a table of them by name; or an ASE database."""
    with _open(file) as stream:
        content = json.load(stream)
    if isinstance(content, dict) and "nextid" in content:
        yield from _read_database(file)
        return
    if isinstance(content, dict) and ("@class" in content or "structure" in content):
        content = [content]
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for name, entry in entries:
        yield str(name), partial(_from_json, entry)


def _from_json(entry: Any) -> Any:
    from pymatgen.core import Molecule, Structure

    if isinstance(entry, dict) and isinstance(entry.get("structure"), dict):
        entry = entry["structure"]
    kind = entry.get("@class") if isinstance(entry, dict) else None
    if kind in ("Structure", "IStructure"):
        return Structure.from_dict(entry)
    if kind in ("Molecule", "IMolecule"):
        return Molecule.from_dict(entry)
    raise DataError(
        f"it is {kind or type(entry).__name__}, no Structure, Molecule or ComputedStructureEntry"
    )
