"""DeePMD LMDB: one msgpack record per frame and one with the type_map, as dpdata documents it.

An array is {"type", "shape", "data"}; a frame has coords, atom_types, and cells, energies, forces
and virials as far as they are known.  A frame without cells, or with empty ones, is open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dpa4sim.data.frame import (
    MAGNETIC_FORCES,
    MOMENTS,
    PER_ATOM,
    Entry,
    Frame,
    LabelKeys,
    frame,
)
from dpa4sim.data.read_deepmd import VIRTUAL, atomic_numbers, numbers_of, system_of
from dpa4sim.errors import DataError

METADATA = b"__metadata__"

NAMES = {
    "coord": ("coords", "coord"),
    "cell": ("cells", "cell", "box"),
    "energy": ("energies", "energy"),
    "forces": ("forces", "force"),
    "virial": ("virials", "virial"),
    "stress": ("stress",),
    MOMENTS: ("spins", "spin"),
    MAGNETIC_FORCES: ("force_mags", "force_mag"),
    "types": ("atom_types", "real_atom_types"),
}
"""Our word, and the words of the records."""


def read_lmdb(source: str, keys: LabelKeys) -> Iterator[Entry]:
    """Frames in the order of their keys; the labels' names can be changed by `keys`.

    Raises:
        DataError: the `data` extra is missing, or it is another kind of LMDB.
    """
    lmdb, msgpack = _libraries(source)
    from pathlib import Path

    try:
        environment = lmdb.open(
            source, readonly=True, lock=False, subdir=Path(source).is_dir(), readahead=True
        )
    except lmdb.Error as error:
        raise DataError(f"{source} cannot be opened: {error}. Give a whole LMDB.") from error
    with environment, environment.begin() as transaction:
        metadata = transaction.get(METADATA)
        if metadata is None:
            raise DataError(
                f"{source} has no record '{METADATA.decode()}', so it is no DeePMD LMDB. "
                "An ASE LMDB ends in .aselmdb."
            )
        names = msgpack.unpackb(metadata, strict_map_key=False).get("type_map")
        if not names:
            raise DataError(f"{source} has no type_map. Write it again with a newer dpdata.")
        table = atomic_numbers(names, source)
        for key, value in transaction.cursor():
            if key != METADATA:
                yield _entry(source, key.decode(), value, table, keys, msgpack)


def _libraries(source: str) -> tuple[Any, Any]:
    try:
        import lmdb
        import msgpack
    except ImportError as error:
        raise DataError(
            f"{source} needs the packages lmdb and msgpack. Type: pip install 'dpa4sim[data]'."
        ) from error
    return lmdb, msgpack


def _entry(
    source: str, key: str, value: bytes, table: np.ndarray, keys: LabelKeys, msgpack: Any
) -> Entry:
    name = str(int(key)) if key.isdecimal() else key
    try:
        record = msgpack.unpackb(value, strict_map_key=False)
        return _frame(source, name, _arrays(record, keys), table, keys.properties)
    except DataError as error:
        return error
    except Exception as error:  # msgpack raises many kinds on a cut record
        return DataError(f"{source}#{name} cannot be read: {error}. Repair or remove it.")


def _arrays(record: dict[Any, Any], keys: LabelKeys) -> dict[str, np.ndarray]:
    plain = {k.decode() if isinstance(k, bytes) else k: v for k, v in record.items()}
    found = {}
    for word, names in NAMES.items():
        asked = getattr(keys, word, None)
        value = next((plain[n] for n in ((asked,) if asked else names) if n in plain), None)
        if value is not None:
            found[word] = _decoded(value)
        elif asked:
            raise DataError(f"a frame has no '{asked}'; it has {', '.join(plain)}.")
    given = {key: _decoded(plain[key]) for key in keys.properties if key in plain}
    return found | {f"property {key}": value for key, value in given.items()}


def _decoded(value: Any) -> np.ndarray:
    if not isinstance(value, dict):
        return np.asarray(value)
    entry = {k.decode() if isinstance(k, bytes) else k: v for k, v in value.items()}
    kind = entry["type"].decode() if isinstance(entry["type"], bytes) else entry["type"]
    return np.frombuffer(entry["data"], np.dtype(kind)).reshape(entry["shape"])


def _frame(
    source: str,
    name: str,
    arrays: dict[str, np.ndarray],
    table: np.ndarray,
    properties: tuple[str, ...],
) -> Frame:
    for needed in ("coord", "types"):
        if needed not in arrays:
            raise DataError(f"{source}#{name} has no {NAMES[needed][0]}. Repair or remove it.")
    types = arrays["types"].ravel().astype(np.int64)
    real = types != VIRTUAL
    numbers = numbers_of(types[real], table, f"{source}#{name}")
    system = system_of(arrays["coord"].reshape(-1, 3)[real], numbers, arrays.get("cell"))
    labels: dict[str, Any] = {
        key: arrays[key] for key in ("energy", "stress", "virial") if key in arrays
    }
    labels |= {key: arrays[key].reshape(-1, 3)[real] for key in PER_ATOM if key in arrays}
    kept = [arrays[key].dtype for key in ("coord", *PER_ATOM) if key in arrays]
    dtype = "float32" if all(each == np.float32 for each in kept) else "float64"
    asked = {key: arrays.get(f"property {key}") for key in properties}
    return frame(system, labels, source=source, name=name, dtype=dtype, properties=asked)
