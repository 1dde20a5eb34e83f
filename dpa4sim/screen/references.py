"""Reference energies from files: pymatgen's computed entries, as the Materials Project gives them.

A file may hold a list of entries, a table of them by name, one entry per line, or a table with a
column `entry`; it may be compressed.  Entries are read one by one, and of each only what a hull
needs is kept: a file of several gigabytes does not have to fit into memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from dpa4sim.errors import DataError
from dpa4sim.screen.corrections import adjustment, check_scheme, correct
from dpa4sim.screen.index import Phase, PhaseIndex
from dpa4sim.screen.json_stream import entries_of

MODEL_KEY = "model_hash"
"""Among the parameters of an entry: the model that its energy is from."""

UNKNOWN = "unknown"

SOUND_AMOUNT = 1e-8


class References(PhaseIndex):
    """Phases whose energies are given, and where these are from.

    `theories` counts the entries: `model HASH`, a run type, or unknown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.theories: Counter[str] = Counter()


def read_references(
    paths: Iterable[str | Path],
    *,
    model_hash: str,
    mixed_references: bool = False,
    corrections: str = "none",
) -> References:
    """Reference phases of files.

    Args:
        paths: JSON files, such as .json, .jsonl, .json.gz.
        model_hash: of the model whose energies will be compared with these.
        mixed_references: accept energies from elsewhere.
        corrections: "none" takes uncorrected energies, "mp2020" corrects them; corrections of this
            scheme that an entry brings along are taken as they are.

    Raises:
        ConfigError: the scheme is not known.
        DataError: a file or an entry cannot be used, or an energy is from elsewhere.
    """
    check_scheme(corrections)
    references = References()
    for path in map(Path, paths):
        count = 0
        for name, entry in entries_of(path):
            count += 1
            where = f"{path} entry {name}"
            try:
                theory = theory_of(entry)
                phase = _phase(entry, name, corrections)
            except DataError as error:
                raise DataError(f"{where} cannot be used: {error}. Repair or remove it.") from None
            if theory != f"model {model_hash}" and not mixed_references:
                raise DataError(_mixed(where, phase, theory, model_hash))
            references.theories[theory] += 1
            references.add(phase)
        if count == 0:
            raise DataError(
                f"{path} holds no entry. Give pymatgen ComputedEntry objects as JSON, such as "
                "`dpa4sim screen export --format entries` writes."
            )
    return references


def theory_of(entry: dict[str, Any]) -> str:
    """Where an entry's energy is from: `model HASH`, the run type of a calculation, or unknown."""
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        return UNKNOWN
    if parameters.get(MODEL_KEY):
        return f"model {parameters[MODEL_KEY]}"
    return str(parameters.get("run_type") or UNKNOWN)


def _mixed(where: str, phase: Phase, theory: str, model_hash: str) -> str:
    origin = "of unknown origin" if theory == UNKNOWN else f"from {theory}"
    return (
        f"{where} ({phase.formula}) has an energy {origin}, and the candidates' are from model "
        f"{model_hash}: a hull of both means little. Relax the references with the same model, or "
        "say --mixed-references (mixed_references=True) if you mean it."
    )


def _phase(entry: dict[str, Any], name: str, corrections: str) -> Phase:
    from pymatgen.core import Composition

    given = entry.get("composition") or _composition_of(entry.get("structure"))
    try:
        composition = Composition(given).element_composition
        energy = float(entry["energy"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"it has no composition with an energy ({error!r})") from None
    strangers = sorted(set(composition.get_el_amt_dict()) - _symbols())
    if strangers:
        raise DataError(f"it has no composition of elements alone: {', '.join(strangers)}")
    if not composition.num_atoms > SOUND_AMOUNT or energy != energy or abs(energy) == float("inf"):
        raise DataError(f"composition {given}, energy {energy} eV")
    if corrections == "mp2020":
        energy += _correction(entry, composition, energy)
    return Phase.of(str(entry.get("entry_id") or name), composition, energy)


@cache
def _symbols() -> frozenset[str]:
    from pymatgen.core import Element

    return frozenset(element.symbol for element in Element)


def _composition_of(structure: Any) -> dict[str, float]:
    """What the sites of a serialised structure hold."""
    if not isinstance(structure, dict):
        return {}
    amounts: Counter[str] = Counter()
    for site in structure.get("sites", ()):
        for species in site.get("species", ()):
            amounts[species["element"]] += species["occu"]
    return dict(amounts)


def _correction(entry: dict[str, Any], composition: Any, energy: float) -> float:
    """What the scheme adds, eV: stored with the entry, or computed now."""
    from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

    stored = entry.get("energy_adjustments") or []
    if any(str(each.get("name")).startswith("MP2020") for each in stored):
        if "correction" in entry:
            return float(entry["correction"])
        return float(ComputedEntry.from_dict(entry).correction)
    structured = "structure" in entry
    if "run_type" in (entry.get("parameters") or {}):
        kind: type[ComputedEntry] = ComputedStructureEntry if structured else ComputedEntry
        return adjustment(kind.from_dict({**entry, "energy_adjustments": [], "correction": 0.0}))

    def structure() -> Any:
        return ComputedStructureEntry.from_dict(entry).structure

    return correct(composition, energy, structure if structured else None)
