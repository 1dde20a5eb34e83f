"""The hulls of chemical systems as points and edges, for figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpa4sim.screen.hull import ON_HULL, diagram
from dpa4sim.screen.index import Phase, PhaseIndex

if TYPE_CHECKING:
    from pymatgen.analysis.phase_diagram import PhaseDiagram

SIZES = (2, 3, 4)
"""Elements of systems that can be drawn."""

MOST_PHASES = 400
"""In one figure, the lowest above the hull; more hide each other."""


@dataclass(frozen=True)
class Point:
    """A phase in the figure of a system.

    Args:
        formula: reduced.
        name: of the reference or candidate.
        candidate: its id; None for a reference.
        shares: of the atoms, one for each element of the system.
        formation_energy: from the lowest phases of the elements, eV/atom.
        above: the hull, eV/atom.
    """

    formula: str
    name: str
    candidate: int | None
    shares: tuple[float, ...]
    formation_energy: float
    above: float

    @property
    def stable(self) -> bool:
        """Whether it is on the hull."""
        return self.above <= ON_HULL


@dataclass(frozen=True)
class SystemHull:
    """What can be seen of a system.

    Args:
        elements: in alphabetical order.
        points: the lowest phases, the stable first.
        edges: pairs of stable points that are neighbours on the hull.
        left_out: phases that are higher than all points.
    """

    elements: tuple[str, ...]
    points: list[Point]
    edges: list[tuple[int, int]]
    left_out: int

    @property
    def name(self) -> str:
        """Elements with dashes."""
        return "-".join(self.elements)


def drawable(table: pa.Table) -> list[tuple[str, ...]]:
    """Systems of ranked candidates that can be drawn, those with most candidates first."""
    ranked = table.filter(pc.is_valid(table["rank"]))
    counts = Counter(ranked["chemical_system"].to_pylist())
    systems = {name: tuple(sorted(name.split("-"))) for name in counts}
    sizes = [name for name, elements in systems.items() if len(elements) in SIZES]
    order = sorted(sizes, key=lambda name: (-counts[name], name))
    return [systems[name] for name in order]


def system_hulls(
    table: pa.Table, references: PhaseIndex, systems: Sequence[tuple[str, ...]]
) -> Iterator[SystemHull]:
    """The hull of everything in each system whose elements are all known.

    Args:
        table: of `hull_table`.
        references: that went into it.
    """
    ranked = _ranked(table)
    for elements in systems:
        known = [(phase, None) for phase in references.within(elements)]
        subsets = (each for n in range(len(elements)) for each in combinations(elements, n + 1))
        own = [_phase(row) for subset in subsets for row in ranked.get("-".join(subset), ())]
        merged = PhaseIndex()
        for phase, _ in (*known, *own):
            merged.add(phase)
        if not merged.missing(elements):
            yield _system(elements, [*known, *own], diagram(merged.within(elements)))


def _ranked(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Ranked candidates by their chemical system."""
    names = ["id", "name", "formula", "chemical_system", "energy_per_atom", "correction_per_atom"]
    ranked = table.filter(pc.is_valid(table["rank"])).select(names)
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ranked.to_pylist():
        found[row["chemical_system"]].append(row)
    return found


def _phase(row: Mapping[str, Any]) -> tuple[Phase, int]:
    from pymatgen.core import Composition

    composition = Composition(row["formula"])
    energy = row["energy_per_atom"] + row["correction_per_atom"]
    return Phase.of(row["name"], composition, energy * composition.num_atoms), row["id"]


def _system(
    elements: tuple[str, ...], phases: Sequence[tuple[Phase, int | None]], hull: PhaseDiagram
) -> SystemHull:
    from pymatgen.core import Composition

    lowest = {element.symbol: entry.energy_per_atom for element, entry in hull.el_refs.items()}
    ends = np.array([lowest[symbol] for symbol in elements])
    heights: dict[str, float] = {}
    points = []
    for phase, candidate in phases:
        amounts = dict(phase.amounts)
        shares = np.array([amounts.get(symbol, 0.0) for symbol in elements])
        shares = shares / shares.sum()
        if phase.formula not in heights:
            heights[phase.formula] = hull.get_hull_energy_per_atom(Composition(amounts))
        above = max(0.0, phase.energy_per_atom - heights[phase.formula])
        formation = float(phase.energy_per_atom - shares @ ends)
        point = Point(
            phase.formula, phase.name, candidate, tuple(shares.tolist()), formation, above
        )
        points.append(point)
    points.sort(key=lambda p: (not p.stable, p.above, p.formula, p.candidate is None, p.name))
    shown = points[:MOST_PHASES]
    return SystemHull(elements, shown, _edges(hull, shown), len(points) - len(shown))


def _edges(hull: PhaseDiagram, points: Sequence[Point]) -> list[tuple[int, int]]:
    """Each pair of corners of a facet, once."""
    places: dict[str, Any] = {}
    for place, point in enumerate(points):
        if point.stable:
            places.setdefault(point.formula, place)
    found = set()
    for facet in hull.facets:
        corners = sorted({places[hull.qhull_entries[i].reduced_formula] for i in facet})
        found |= set(combinations(corners, 2))
    return sorted(found)
