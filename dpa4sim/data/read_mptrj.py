"""MPtrj: {mp_id: {frame_id: {structure, uncorrected_total_energy, force, stress, ...}}} in JSON.

Stress is in kBar with VASP's sign (pressure positive); energies in eV, forces in eV/Å.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dpa4sim.data.frame import EV_A3_PER_KBAR, Entry, Frame, LabelKeys, frame
from dpa4sim.errors import DataError

ENERGY = "uncorrected_total_energy"
"""The energy of the calculation itself; `corrected_total_energy` has the MP2020 corrections."""

EVENTS_TO_LOOK_AT = 12
"""Of a JSON file, until its third level has been seen."""


def is_mptrj(path: Path) -> bool:
    """Whether the third level of a JSON file has a structure with an energy beside it."""
    try:
        import ijson
    except ImportError:
        return False
    with path.open("rb") as file:
        try:
            start = list(islice(ijson.parse(file), EVENTS_TO_LOOK_AT))
        except ijson.JSONError:
            return False
    depths = [prefix.count(".") for prefix, event, _ in start if event == "start_map"]
    third = [
        value for prefix, event, value in start if event == "map_key" and depths[:3] == [0, 0, 1]
    ]
    return len(third) > 2 and third[2] in _FIELDS


_FIELDS = frozenset(
    (
        *("structure", "uncorrected_total_energy", "corrected_total_energy", "energy_per_atom"),
        *("ef_per_atom", "e_per_atom_relaxed", "ef_per_atom_relaxed", "force", "stress"),
        *("magmom", "bandgap", "mp_id"),
    )
)


def read_mptrj(source: str, keys: LabelKeys) -> Iterator[Entry]:
    """Material after material; `keys.energy` may be `corrected_total_energy`.

    Raises:
        DataError: the `data` extra is missing.
    """
    try:
        import ijson
    except ImportError as error:
        raise DataError(
            f"{source} needs the package ijson. Type: pip install 'dpa4sim[data]'."
        ) from error
    with Path(source).open("rb") as file:
        try:
            for material, frames in ijson.kvitems(file, "", use_float=True):
                for name, content in frames.items():
                    yield _entry(source, f"{material}/{name}", content, keys)
        except ijson.JSONError as error:
            yield DataError(f"{source} cannot be read to its end: {error}. Fetch it again.")


def _entry(source: str, name: str, content: dict[str, Any], keys: LabelKeys) -> Entry:
    try:
        return _frame(source, name, content, keys)
    except DataError as error:
        return error
    except Exception as error:  # pymatgen raises many kinds on a broken structure
        return DataError(f"{source}#{name} cannot be read: {error!r}. Repair or remove it.")


def _frame(source: str, name: str, content: dict[str, Any], keys: LabelKeys) -> Frame:
    from pymatgen.core import Structure

    from dpa4sim.adapters.pymatgen import from_structure

    places = {"energy": keys.energy or ENERGY, "forces": keys.forces or "force"}
    places["stress"] = keys.stress or "stress"
    for word, key in places.items():
        if getattr(keys, word) is not None and key not in content:
            raise DataError(f"{source}#{name} has no '{key}'; it has {', '.join(content)}.")
    labels = {word: content.get(key) for word, key in places.items()}
    if labels["stress"] is not None:
        labels["stress"] = -EV_A3_PER_KBAR * np.asarray(labels["stress"], float)
    system = from_structure(Structure.from_dict(content["structure"]))
    asked = {key: content.get(key) for key in keys.properties}
    return frame(system, labels, source=source, name=name, properties=asked)
