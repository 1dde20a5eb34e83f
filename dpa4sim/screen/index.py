"""Phases by chemical system: the few of them that can shape the hull of one system, at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import gcd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymatgen.core import Composition


@dataclass(frozen=True, slots=True)
class Phase:
    """A compound with an energy.

    Args:
        name: what a decomposition calls it.
        formula: reduced.
        amounts: atoms of each element in the reduced formula.
        energy_per_atom: eV/atom, corrected if a scheme is in use.
    """

    name: str
    formula: str
    amounts: tuple[tuple[str, float], ...]
    energy_per_atom: float

    @classmethod
    def of(cls, name: str, composition: Composition, energy: float) -> Phase:
        """From the energy (eV) of a whole composition."""
        amounts = composition.get_el_amt_dict()
        unit = 1.0
        if all(float(amount).is_integer() for amount in amounts.values()):
            unit = gcd(*map(int, amounts.values()))
        reduced = tuple(sorted((symbol, amount / unit) for symbol, amount in amounts.items()))
        formula = composition.element_composition.reduced_formula
        return cls(name, formula, reduced, energy / composition.num_atoms)

    @property
    def elements(self) -> tuple[str, ...]:
        """Its symbols in alphabetical order."""
        return tuple(symbol for symbol, _ in self.amounts)


class PhaseIndex:
    """The lowest phase of every composition, found by the elements that it may contain.

    A higher polymorph is no vertex of any hull, so that leaving it out changes nothing.
    """

    def __init__(self) -> None:
        self._systems: dict[tuple[str, ...], dict[str, Phase]] = {}

    def __len__(self) -> int:
        """Compositions."""
        return sum(map(len, self._systems.values()))

    def __iter__(self) -> Iterator[Phase]:
        for phases in self._systems.values():
            yield from phases.values()

    def add(self, phase: Phase) -> None:
        """Keep a phase if none of its composition is lower; the name decides between equals."""
        phases = self._systems.setdefault(phase.elements, {})
        known = phases.get(phase.formula)
        order = phase.energy_per_atom, phase.name
        if known is None or order < (known.energy_per_atom, known.name):
            phases[phase.formula] = phase

    def within(self, elements: Collection[str]) -> list[Phase]:
        """The phases that hold no other element, sorted by formula."""
        symbols = sorted(set(elements))
        if 2 ** len(symbols) <= len(self._systems):
            every = (subset for n in range(len(symbols)) for subset in combinations(symbols, n + 1))
            found = [self._systems[subset] for subset in every if subset in self._systems]
        else:
            wanted = set(symbols)
            found = [
                phases for system, phases in self._systems.items() if wanted.issuperset(system)
            ]
        unsorted = (phase for phases in found for phase in phases.values())
        return sorted(unsorted, key=lambda phase: phase.formula)

    def element(self, symbol: str) -> Phase | None:
        """The lowest phase of an element."""
        return next(iter(self._systems.get((symbol,), {}).values()), None)

    def missing(self, elements: Collection[str]) -> list[str]:
        """The elements of which there is no phase, in alphabetical order."""
        return [symbol for symbol in sorted(set(elements)) if self.element(symbol) is None]
