"""Phases -> pymatgen's entries and compositions, which are compared at no cost.

A phase diagram sorts its entries by composition and looks for entries among others.  pymatgen finds
the order of two compositions out of the electronegativities of their elements, at every comparison,
and whether two entries are equal out of all they hold: more than half of the time of a diagram.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from pymatgen.analysis.phase_diagram import PDEntry
from pymatgen.core import Composition, Element

from dpa4sim.screen.index import Phase


class Ranked(Composition):
    """A reduced composition whose place in pymatgen's order is known.

    Two of one call of `compositions` compare by their places, all others as pymatgen does it.
    """

    order: tuple[str, ...] = ()
    """All elements of the call, by electronegativity; one object for all compositions of it."""
    place: tuple[float, ...] = ()
    """Atoms of each."""

    __hash__ = Composition.__hash__

    def __getitem__(self, key: Any) -> float:
        return self._data.get(key, 0) if isinstance(key, Element) else super().__getitem__(key)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ranked) and self.order and self.order is other.order:
            return self.place == other.place
        return super().__eq__(other)

    def __lt__(self, other: Any) -> bool:
        if isinstance(other, Ranked) and self.order and self.order is other.order:
            return self.place < other.place
        return bool(super().__lt__(other))


class Single(PDEntry):  # type: ignore[misc]
    """The only entry of its composition, equal to itself alone."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def entries(phases: Sequence[Phase]) -> list[Single]:
    """What a phase diagram is made of: phases of different compositions."""
    return [
        Single(composition, phase.energy_per_atom * composition.num_atoms, name=phase.name)
        for phase, composition in zip(phases, compositions(phases), strict=True)
    ]


def compositions(phases: Sequence[Phase]) -> list[Ranked]:
    """The reduced compositions of phases, which may be compared with each other at no cost."""
    symbols = {symbol for phase in phases for symbol in phase.elements}
    order = tuple(sorted(symbols, key=_element))
    found = []
    for phase in phases:
        composition = Ranked(dict(phase.amounts))
        amounts = dict(phase.amounts)
        place = tuple(amounts.get(symbol, 0.0) for symbol in order)
        # cached properties, known here, that take pymatgen long to find out
        vars(composition).update(reduced_composition=composition, reduced_formula=phase.formula)
        vars(composition).update(order=order, place=place)
        found.append(composition)
    return found


@cache
def _element(symbol: str) -> Element:
    return Element(symbol)
