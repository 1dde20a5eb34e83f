"""Results -> how far each candidate is above the convex hull, of the references and of everything.

Every chemical system gets its own PhaseDiagram by pymatgen, when it is its turn, from the phases
that can matter to it.  A candidate above the hull of the references is no vertex of the hull that
the candidates make together with them: only those below it are added there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dpa4sim.screen.corrections import check_scheme, correct, describe
from dpa4sim.screen.index import Phase, PhaseIndex

if TYPE_CHECKING:
    from pymatgen.analysis.phase_diagram import PhaseDiagram
    from pymatgen.core import Structure

HULL = pa.schema(
    [
        ("id", pa.int64()),
        ("rank", pa.int64()),
        ("name", pa.string()),
        ("formula", pa.string()),
        ("chemical_system", pa.string()),
        ("n_atoms", pa.int32()),
        ("space_group", pa.int16()),
        ("status", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("energy_per_atom", pa.float64()),
        ("correction_per_atom", pa.float64()),
        ("formation_energy", pa.float64()),
        ("e_above_hull_reference", pa.float64()),
        ("e_above_hull_self", pa.float64()),
        ("stable", pa.bool_()),
        ("decomposition", pa.string()),
        ("decomposition_reference", pa.string()),
        ("missing_references", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One row per candidate, sorted by id; energies in eV/atom.

    rank                     1 is the lowest above the hull of everything; null if not judged
    energy_per_atom          by the model, without correction_per_atom, which is to be added
    formation_energy         from the lowest references of the elements
    e_above_hull_reference   negative: below the hull of what was known
    e_above_hull_self        of the hull on which the candidates compete too
    decomposition            phases at its composition on that hull; itself where it is stable
    decomposition_reference  phases at its composition on the hull of the references
    missing_references       elements without a reference, which leave the columns of it null
"""

COLUMNS = (
    *("id", "name", "formula", "chemical_system", "n_atoms", "space_group", "status", "flags"),
    *("reason", "energy", "numbers", "positions", "cell"),
)
"""Of the results, what is looked at here; the last two only where a correction needs bonds."""

JUDGED = frozenset(("converged", "max_steps"))
"""A geometry that is not quite relaxed has an energy that can only be too high."""

UNSOUND = frozenset(("collapsed", "exploded", "fragmented"))
"""Flags of structures whose energy says nothing about a crystal: they are not ranked."""

ON_HULL = 1e-8
"""eV/atom; pymatgen's own tolerance.  Smaller distances are zero."""

SHARE_DIGITS = 4


@dataclass(frozen=True)
class _Entrant:
    """A candidate with an energy."""

    row: int
    phase: Phase
    competes: bool
    correction: float


@dataclass(frozen=True)
class _Place:
    """Distance from a hull in eV/atom, and the phases that make the hull at this composition."""

    distance: float
    phases: str


def hull_table(results: pa.Table, references: PhaseIndex, *, corrections: str = "none") -> pa.Table:
    """Distances of candidates from the hull of references, and from the hull of everything.

    Args:
        results: rows of the campaign; duplicates and rows without an energy get no distance.
        references: energies that stay fixed, treated with the same corrections.
        corrections: what is added to the model's energies: "none" or "mp2020".

    Returns:
        A table of schema `HULL`, the corrections and their version in its metadata.

    Raises:
        ConfigError: the scheme is not known.
    """
    check_scheme(corrections)
    results = results.sort_by("id")
    rows = _columns(results)
    entrants = list(_entrants(results, rows, corrections))
    reference, everything = place(entrants, references)
    table: dict[str, list[Any]] = {name: [None] * results.num_rows for name in HULL.names}
    for name in ("id", "name", "formula", "chemical_system", "n_atoms", "space_group"):
        table[name] = rows[name]
    for name in ("status", "flags", "reason"):
        table[name] = rows[name]
    table["stable"] = [False] * results.num_rows
    for entrant in entrants:
        _fill(table, entrant, references, reference, everything)
    _rank(table, entrants)
    return pa.table(table, schema=HULL.with_metadata(describe(corrections)))


def reference_phases(results: pa.Table, *, corrections: str = "none") -> Iterator[Phase]:
    """Relaxed structures as references, such as the elements by the same model.

    Args:
        results: rows of the campaign's schema; only sound ones are taken.
        corrections: as of `hull_table`.
    """
    check_scheme(corrections)
    for entrant in _entrants(results, _columns(results), corrections):
        if entrant.competes:
            yield entrant.phase


def place(
    entrants: Sequence[_Entrant], references: PhaseIndex
) -> tuple[dict[int, _Place], dict[int, _Place]]:
    """Where entrants are, by row: to the references, and to the hull of everything."""
    systems: defaultdict[tuple[str, ...], list[_Entrant]] = defaultdict(list)
    for entrant in entrants:
        systems[entrant.phase.elements].append(entrant)
    reference: dict[int, _Place] = {}
    everything: dict[int, _Place] = {}
    vertices = PhaseIndex()  # candidates that may be on the hull of everything
    for system in sorted(systems, key=lambda elements: (len(elements), elements)):
        known = references.within(system)
        complete = not references.missing(system)
        if complete:
            hull = diagram(known)
            known = _vertices(hull, known)
            reference |= _places(systems[system], hull)
        for entrant in systems[system]:
            above = complete and reference[entrant.row].distance >= 0
            if entrant.competes and not above:
                vertices.add(entrant.phase)
        new = vertices.within(system)
        if complete and not new:
            everything |= {entrant.row: reference[entrant.row] for entrant in systems[system]}
            continue
        merged = PhaseIndex()
        for phase in (*known, *new):
            merged.add(phase)
        if not merged.missing(system):
            everything |= _places(systems[system], diagram(merged.within(system)))
    return reference, everything


def diagram(phases: Sequence[Phase]) -> PhaseDiagram:
    """Make pymatgen's diagram of phases, among which are all elements.

    Compounds that are not below their elements are no vertices and are left out.
    """
    from pymatgen.analysis.phase_diagram import PhaseDiagram

    from dpa4sim.screen.entries import entries

    elements = {
        phase.elements[0]: phase.energy_per_atom for phase in phases if len(phase.amounts) == 1
    }
    kept = [
        phase
        for phase in phases
        if len(phase.amounts) == 1 or _above_elements(phase, elements) <= ON_HULL
    ]
    return PhaseDiagram(entries(kept))


def _vertices(hull: PhaseDiagram, phases: Sequence[Phase]) -> list[Phase]:
    """The phases that make a hull."""
    entries: list[Any] = list(hull.stable_entries)
    stable = {(entry.reduced_formula, entry.name) for entry in entries}
    return [phase for phase in phases if (phase.formula, phase.name) in stable]


def _above_elements(phase: Phase, elements: Mapping[str, float]) -> float:
    """Energy less that of the elements, eV/atom."""
    total = sum(amount for _, amount in phase.amounts)
    return phase.energy_per_atom - sum(a * elements[s] for s, a in phase.amounts) / total


def _places(entrants: Sequence[_Entrant], hull: PhaseDiagram) -> dict[int, _Place]:
    from dpa4sim.screen.entries import compositions

    known: dict[str, tuple[float, str]] = {}
    places = {}
    for entrant in entrants:
        phase = entrant.phase
        if phase.formula not in known:
            (composition,) = compositions([phase])
            shares, energy = hull.get_decomp_and_hull_energy_per_atom(composition)
            known[phase.formula] = energy, _said(shares)
        energy, said = known[phase.formula]
        distance = phase.energy_per_atom - energy
        places[entrant.row] = _Place(0.0 if abs(distance) < ON_HULL else distance, said)
    return places


def _said(shares: Mapping[Any, float]) -> str:
    """`0.6667 Fe2O3 (mp-1) + 0.3333 Li2O (mp-2)`: shares of the atoms, the largest first."""
    parts = [
        (-round(share, SHARE_DIGITS), entry.reduced_formula, entry.name)
        for entry, share in shares.items()
    ]
    return " + ".join(f"{-share:g} {formula} ({name})" for share, formula, name in sorted(parts))


def _columns(results: pa.Table) -> dict[str, list[Any]]:
    wanted = [n for n in COLUMNS if n in results.column_names and n not in ("positions", "cell")]
    return {name: results[name].to_pylist() for name in wanted}


def _entrants(
    results: pa.Table, rows: Mapping[str, list[Any]], corrections: str
) -> Iterator[_Entrant]:
    from pymatgen.core import Composition

    for row, (energy, status) in enumerate(zip(rows["energy"], rows["status"], strict=True)):
        if energy is None or energy != energy or status in ("duplicate", "invalid"):
            continue
        numbers = rows["numbers"][row]
        composition = Composition.from_dict(_amounts(numbers))
        shift = 0.0
        if corrections == "mp2020":
            shift = correct(composition, energy, lambda row=row: _structure(results, row))  # type: ignore[misc]
        phase = Phase.of(rows["name"][row], composition, energy + shift)
        competes = status in JUDGED and not UNSOUND & set(rows["flags"][row] or ())
        yield _Entrant(row, phase, competes, shift / len(numbers))


def _amounts(numbers: Sequence[int]) -> dict[str, int]:
    from dpa4sim.batch import symbol

    return {symbol(number): numbers.count(number) for number in sorted(set(numbers))}


def _structure(results: pa.Table, row: int) -> Structure:
    from pymatgen.core import Lattice, Structure

    (found,) = results.slice(row, 1).select(["numbers", "positions", "cell"]).to_pylist()
    flat, cell = found["positions"], found["cell"]
    positions = [flat[i : i + 3] for i in range(0, len(flat), 3)]
    lattice = Lattice([cell[i : i + 3] for i in range(0, 9, 3)])
    return Structure(lattice, found["numbers"], positions, coords_are_cartesian=True)


def _fill(
    table: dict[str, list[Any]],
    entrant: _Entrant,
    references: PhaseIndex,
    reference: Mapping[int, _Place],
    everything: Mapping[int, _Place],
) -> None:
    row, phase = entrant.row, entrant.phase
    table["energy_per_atom"][row] = phase.energy_per_atom - entrant.correction
    table["correction_per_atom"][row] = entrant.correction
    table["missing_references"][row] = ", ".join(references.missing(phase.elements))
    if row in reference:
        place = reference[row]
        table["e_above_hull_reference"][row] = place.distance
        table["decomposition_reference"][row] = place.phases
        lowest = ((symbol, references.element(symbol)) for symbol in phase.elements)
        elements = {symbol: found.energy_per_atom for symbol, found in lowest if found}
        table["formation_energy"][row] = _above_elements(phase, elements)
    if row in everything:
        place = everything[row]
        table["e_above_hull_self"][row] = place.distance
        table["decomposition"][row] = place.phases
        table["stable"][row] = entrant.competes and place.distance <= 0


def _rank(table: dict[str, list[Any]], entrants: Sequence[_Entrant]) -> None:
    """By the hull of everything; among equals, such as the stable, by that of the references."""

    def order(row: int) -> tuple[float, float, int]:
        known = table["e_above_hull_reference"][row]
        return table["e_above_hull_self"][row], 0.0 if known is None else known, table["id"][row]

    judged = (
        e.row for e in entrants if e.competes and table["e_above_hull_self"][e.row] is not None
    )
    for rank, row in enumerate(sorted(judged, key=order), start=1):
        table["rank"][row] = rank
