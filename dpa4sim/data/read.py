"""Any labelled file or folder -> frames, one after another, so that a file need not fit in memory.

.extxyz .xyz .db .aselmdb .traj   ASE's formats (read_ase.py); SPICE-MACE-OFF is an extxyz
folder with type.raw              DeePMD npy and npy/mixed (read_deepmd.py)
.hdf5 .h5, FILE#/PATH             DeePMD HDF5, one system or many; or a store of our own
.lmdb, folder with data.mdb       DeePMD LMDB (read_lmdb.py)
.json                             MPtrj (read_mptrj.py), else structures without labels
folder                            all of these in it, at any depth
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from dpa4sim.data.frame import Entry, Frame, LabelKeys
from dpa4sim.errors import DataError

type Reader = Callable[[str, LabelKeys], Iterator[Entry]]

HDF5 = (".h5", ".hdf5")
FORMATS = "extxyz, ASE db, aselmdb and traj, DeePMD npy, HDF5 and LMDB, MPtrj json, dpa4sim store"


def read_frames(
    paths: Iterable[str | Path] | str | Path,
    keys: LabelKeys | None = None,
    *,
    subset: str | None = None,
) -> Iterator[Frame]:
    """Frame after frame of files and folders.

    Args:
        paths: what to read, in this order.
        keys: where the labels are.
        subset: name for all frames instead of the one that a file gives.

    Raises:
        DataError: no such file, nothing in it, or a frame or label that cannot be used.
    """
    for entry in read_entries(paths, keys, subset=subset):
        if isinstance(entry, DataError):
            raise entry
        yield entry


def read_entries(
    paths: Iterable[str | Path] | str | Path,
    keys: LabelKeys | None = None,
    *,
    subset: str | None = None,
) -> Iterator[Entry]:
    """As `read_frames`, but a frame that cannot be used is given as its error.

    Raises:
        DataError: no such file, or an unknown format.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    sources = [source for path in given for source in find_sources(str(path))]
    return _entries(sources, keys or LabelKeys(), subset)


def find_sources(path: str) -> list[tuple[str, Reader]]:
    """The sources that a path names, each with its reader.

    Raises:
        DataError: there is nothing there that can be read.
    """
    file, _, inside = path.partition("#")
    if inside and Path(file).is_file():
        from dpa4sim.data.read_deepmd import read_hdf5

        return [(path, read_hdf5)]
    here = Path(path)
    reader = _reader(here)
    if reader is not None:
        return [(path, reader)]
    if here.is_dir():
        found = [(str(each), read) for each in _inside(here) if (read := _reader(each))]
        if found:
            return found
        raise DataError(f"{path} holds no labelled data. Known are {FORMATS}.")
    from dpa4sim.adapters.files import named_files
    from dpa4sim.data.read_ase import read_ase

    return [(str(file), _reader(file) or read_ase) for file in named_files(path)]


def _entries(
    sources: list[tuple[str, Reader]], keys: LabelKeys, subset: str | None
) -> Iterator[Entry]:
    for source, reader in sources:
        empty = True
        try:
            for entry in reader(source, keys):
                empty = False
                if subset is not None and isinstance(entry, Frame):
                    entry = replace(entry, subset=subset)
                yield _with_properties(entry, keys)
        except DataError as error:
            yield error
            continue
        except (OSError, ValueError, KeyError, RuntimeError) as error:  # a broken or cut file
            kind = type(error).__name__
            yield DataError(f"{source} cannot be read ({kind}: {error}). Repair or remove it.")
            continue
        if empty:
            yield DataError(f"{source} holds no frame. Remove it or give another file.")


def _with_properties(entry: Entry, keys: LabelKeys) -> Entry:
    """The frame, or an error if it lacks a property that was asked for."""
    if isinstance(entry, Frame):
        for name in keys.properties:
            if name not in entry.properties:
                return DataError(
                    f"{entry.where} has no property '{name}'. DeePMD data has it in {name}.npy, "
                    f"extxyz in the frame's info as {name}=..."
                )
    return entry


def _reader(path: Path) -> Reader | None:
    """Who reads this one source; None for a folder of several and for an unknown format."""
    from dpa4sim.data.read_ase import read_ase
    from dpa4sim.data.read_deepmd import read_hdf5, read_npy
    from dpa4sim.data.read_lmdb import read_lmdb
    from dpa4sim.data.read_mptrj import is_mptrj, read_mptrj

    if path.is_dir():
        if (path / "type.raw").exists():
            return read_npy
        return read_lmdb if (path / "data.mdb").exists() else None
    if not path.is_file():
        return None
    if path.suffix in HDF5:
        from dpa4sim.data.store import is_store, read_store

        return read_store if is_store(path) else read_hdf5
    if path.suffix == ".lmdb":
        return read_lmdb
    if path.suffix == ".json" and is_mptrj(path):
        return read_mptrj
    from dpa4sim.adapters.files import is_structure_file

    return read_ase if is_structure_file(path) else None


def _inside(folder: Path) -> Iterator[Path]:
    """Files and systems below a folder, in order; what is inside a system is not looked at."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and _reader(path) is None:
            yield from _inside(path)
        else:
            yield path
